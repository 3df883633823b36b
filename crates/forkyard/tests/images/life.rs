//! Images in the store: listed, inspected, shared, replaced, in use, removed.

use forkyard_testkit::{TestServer, image_dir};
use serde_json::Value;

use crate::make::{
    assert_has_only, base, file, import, inspect, layer, layers, layout, listed, plain,
};
use crate::support::{code, create, refused, stderr};

#[test]
fn a_layer_that_two_images_share_is_stored_once_and_goes_with_the_last() {
    let server = TestServer::start();
    let shared = base();
    for name in ["one", "two"] {
        let layout = layout(name, &[&shared, &layer(&[file("name", name)])], &plain());
        import(&server, layout.dir.path());
    }
    assert_has_only(&server, 3);
    server.ok(&["image", "rm", "one"]);
    assert_has_only(&server, 2);
    assert_eq!(server.ok(&["run", "two", "--", "cat", "/name"]), "two");
    server.ok(&["image", "rm", "two"]);
    assert_has_only(&server, 0);
}

#[test]
fn an_image_that_a_sandbox_is_made_from_stays() {
    let server = TestServer::start();
    let layout = layout("used:latest", &[&base()], &plain());
    import(&server, layout.dir.path());
    // The tag `latest` may be left out.
    let sandbox = create(&server, &["used"]);
    for name in ["used", "used:latest"] {
        let out = server.cli(&["image", "rm", name]);
        refused(&out, 125, &format!("used by sandbox {}", sandbox.id));
        assert!(stderr(&out).contains("hint: remove the sandbox first"), "{}", stderr(&out));
    }
    assert_eq!(sandbox.sh("echo alive"), "alive\n");
    server.ok(&["rm", &sandbox.id]);
    server.ok(&["image", "rm", "used"]);
    assert_has_only(&server, 0);
}

#[test]
fn an_image_that_takes_anothers_name_leaves_sandboxes_of_that_one_alone() {
    let server = TestServer::start();
    let shared = base();
    let (old, new) = (layer(&[file("version", "old")]), layer(&[file("version", "new")]));
    let import_as = |name: &str, own| {
        import(&server, layout(name, &[&shared, own], &plain()).dir.path());
    };
    import_as("app", &old);
    let sandbox = create(&server, &["app"]);
    import_as("app", &new);
    assert_eq!(server.ok(&["run", "app", "--", "cat", "/version"]), "new");
    assert_eq!(sandbox.sh("cat /version"), "old");
    // Another image that has the layer goes: the sandbox still needs it.
    import_as("other", &old);
    server.ok(&["image", "rm", "other"]);
    server.ok(&["reset", &sandbox.id]);
    assert_eq!(sandbox.sh("cat /version"), "old");
    server.ok(&["rm", &sandbox.id]);
    server.ok(&["image", "rm", "app"]);
    assert_has_only(&server, 0);
}

#[test]
fn a_replaced_image_that_nobody_uses_goes_at_once() {
    let server = TestServer::start();
    let shared = base();
    for version in ["1", "2", "3"] {
        let own = layer(&[file("version", version)]);
        import(&server, layout("app", &[&shared, &own], &plain()).dir.path());
        assert_has_only(&server, 2);
    }
    // The same again changes nothing.
    let own = layer(&[file("version", "3")]);
    import(&server, layout("app", &[&shared, &own], &plain()).dir.path());
    assert_eq!(layers(&server), 2);
    assert_eq!(listed(&server).len(), 1);
}

#[test]
fn listings_are_for_people_and_for_programs() {
    let server = TestServer::start();
    assert_eq!(server.ok(&["image", "ls", "--json"]).trim(), "[]");
    assert_eq!(server.ok(&["image", "ls", "-q"]), "");
    let layout = layout("app:1", &[&base(), &layer(&[file("own", "12345")])], &plain());
    import(&server, layout.dir.path());
    assert_eq!(server.ok(&["image", "ls", "-q"]), "app:1\n");
    let table = server.ok(&["image", "ls"]);
    assert!(table.starts_with("NAME    DIGEST"), "{table}");
    assert!(table.lines().nth(1).unwrap().starts_with("app:1   "), "{table}");
    let json: Value = serde_json::from_str(&server.ok(&["image", "list", "--json"])).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["layers"]), (&"app:1".into(), &2.into()));

    let details = inspect(&server, "app:1");
    assert_eq!(details.layers.len(), 2);
    assert_eq!(details.digest, json[0]["digest"].as_str().unwrap());
    assert_eq!(details.config.cmd, ["/bin/sh"]);
    let card = server.ok(&["image", "inspect", "app:1"]);
    assert!(card.contains("Command:    /bin/sh\n"), "{card}");
    assert!(server.ok(&["image", "inspect", "host"]).contains("Layer:      /usr\n"));
}

#[test]
fn an_image_that_is_not_there_is_named_with_what_to_do() {
    let server = TestServer::start();
    let commands: [&[&str]; 4] = [
        &["create", "nope:1"],
        &["run", "nope:1", "--", "true"],
        &["image", "inspect", "nope:1"],
        &["image", "rm", "nope:1"],
    ];
    for args in commands {
        let out = server.cli(args);
        refused(&out, 125, "no such image: nope:1");
        assert!(stderr(&out).contains("`forkyard image pull REF`"), "{}", stderr(&out));
    }
    assert_eq!(code(&server.cli(&["image", "rm", "-f", "nope:1"])), 0);
    assert_eq!(server.ok(&["ls", "-aq"]), "");
}

#[test]
fn of_several_to_remove_each_is_tried_and_each_failure_told() {
    let server = TestServer::start();
    let image = image_dir();
    server.ok(&["image", "import", image.path().to_str().unwrap(), "there"]);
    let out = server.cli(&["image", "rm", "nope", "there", "neither"]);
    assert_eq!((code(&out), String::from_utf8_lossy(&out.stdout).as_ref()), (125, "there\n"));
    let told = stderr(&out);
    assert!(told.contains("no such image: nope") && told.contains("image: neither"), "{told}");
}

#[test]
fn the_host_image_can_be_neither_removed_nor_replaced() {
    let server = TestServer::start();
    let image = image_dir();
    let out = server.cli(&["image", "import", image.path().to_str().unwrap(), "host"]);
    refused(&out, 125, "host");
    refused(&server.cli(&["image", "rm", "host"]), 125, "host");
}
