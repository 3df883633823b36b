//! Imports of everything that an image can be on disk.

use std::fs;

use forkyard_testkit::oci::{Layout, TestLayer, gzip, host_platform};
use forkyard_testkit::{TestServer, find_program, image_dir, skip};
use serde_json::json;

use crate::make::{
    self, archive, assert_has_only, base, device, dir, file, hardlink, import, inspect, layer,
    layout, listed, plain, refused_fetch, root_fs, symlink,
};
use crate::support::{refused, stderr};

#[test]
fn a_directory_is_used_in_place_and_never_written_to() {
    let server = TestServer::start();
    let image = image_dir();
    image.file("/srv/kept", "as it was", 0o644);
    let path = image.path().canonicalize().unwrap();
    server.ok(&["image", "import", path.to_str().unwrap(), "mine"]);
    assert_eq!(
        server.ok(&["run", "mine", "--", "sh", "-c", "cat /srv/kept; rm /srv/kept; ls /srv"]),
        "as it was"
    );
    assert_eq!(fs::read_to_string(path.join("srv/kept")).unwrap(), "as it was");
    assert_eq!(inspect(&server, "mine").layers, [path.to_str().unwrap()]);
    server.ok(&["image", "rm", "mine"]);
    assert!(path.join("srv/kept").exists(), "the directory is its owner's");
    assert_has_only(&server, 0);
}

#[test]
fn a_directory_that_has_gone_is_named() {
    let server = TestServer::start();
    let image = image_dir();
    let path = image.path().canonicalize().unwrap();
    server.ok(&["image", "import", path.to_str().unwrap(), "mine"]);
    drop(image);
    refused(&server.cli(&["run", "mine", "--", "true"]), 125, path.to_str().unwrap());
}

#[test]
fn layers_of_an_oci_layout_lie_one_above_the_other() {
    let server = TestServer::start();
    let lower = layer(&[
        dir("d"),
        file("d/hidden", "lower"),
        file("d/changed", "lower"),
        dir("opaque"),
        file("opaque/hidden", "lower"),
        file("gone", "lower"),
        file("link/target", "through"),
    ]);
    let upper = layer(&[
        file("d/.wh.hidden", ""),
        file("d/changed", "upper"),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/new", "upper"),
        file(".wh.gone", ""),
        hardlink("d/twin", "d/changed"),
        symlink("soft", "link/target"),
        device("null"),
    ]);
    let layout = layout("app:1", &[&base(), &lower, &upper], &plain());
    let out = server.cli(&["image", "import", layout.dir.path().to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "app:1\n");
    let told = stderr(&out);
    assert!(told.contains("device"), "what is left out is told: {told}");
    let seen = server.ok(&[
        "run",
        "app:1",
        "--",
        "sh",
        "-c",
        "cd /; ls d opaque; ls -d gone null 2>/dev/null; cat d/changed d/twin soft opaque/new; \
         [ d/changed -ef d/twin ] && echo ' same'",
    ]);
    assert_eq!(seen, "d:\nchanged\ntwin\n\nopaque:\nnew\nupperupperthroughupper same\n");
    assert_has_only(&server, 3);
    server.ok(&["image", "rm", "app:1"]);
    assert_has_only(&server, 0);
}

#[test]
fn archives_of_docker_save_and_of_layouts_are_imported_compressed_or_not() {
    if find_program("skopeo").is_none() {
        skip!("skopeo");
    }
    let server = TestServer::start();
    // Of the compressions, Docker's format knows gzip alone.
    let own = TestLayer::gzip_of(&archive(&[file("hello", "saved")]));
    let layout = layout("1", &[&base(), &own], &plain());
    let saved = server.dir().join("saved.tar");
    let from = format!("oci:{}:1", layout.dir.path().display());
    make::skopeo(&from, &format!("docker-archive:{}:example/saved:2", saved.display()));
    let packed = server.dir().join("saved.tar.gz");
    fs::write(&packed, gzip(&fs::read(&saved).unwrap())).unwrap();
    let oci = server.dir().join("oci.tar.zst");
    fs::write(&oci, zstd(&layout.archive())).unwrap();
    for path in [saved, packed, oci] {
        let name = import(&server, &path);
        assert_eq!(server.ok(&["run", &name, "--", "cat", "/hello"]), "saved", "{path:?}");
        assert_has_only(&server, 2);
        server.ok(&["image", "rm", &name]);
        assert_has_only(&server, 0);
    }
}

#[test]
fn an_archive_of_a_root_file_system_becomes_an_image_of_one_layer() {
    let server = TestServer::start();
    let plain = root_fs();
    let forms = [("my.tar", plain.clone()), ("my.tar.gz", gzip(&plain)), ("my.tzst", zstd(&plain))];
    for (name, bytes) in forms {
        let path = server.dir().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(import(&server, &path), "my");
        // The same contents, however they are packed.
        assert_has_only(&server, 1);
        assert_eq!(server.ok(&["run", "my", "--", "sh", "-c", "echo $0 $1", "a", "b"]), "a b\n");
    }
    assert_eq!(listed(&server).len(), 1);
}

#[test]
fn a_relative_path_is_taken_from_where_the_caller_is() {
    let server = TestServer::start();
    fs::write(server.dir().join("here.tar"), root_fs()).unwrap();
    let mut command = server.command(&["image", "import", "here.tar"]);
    let out = forkyard_testkit::finish(command.current_dir(server.dir()), b"");
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(listed(&server)[0].name, "here");
}

#[test]
fn of_several_images_one_must_be_named() {
    let server = TestServer::start();
    let mut layout = Layout::new();
    for name in ["one", "two"] {
        let own = layer(&[file("name", name)]);
        let manifest = layout.manifest_with(&[&base(), &own], &host_platform(), &plain());
        layout.tag(name, manifest);
    }
    let path = layout.dir.path().to_str().unwrap();
    let out = server.cli(&["image", "import", path]);
    refused_fetch(&out, "it holds several images: one, two");
    assert!(stderr(&out).contains("hint: `forkyard image import PATH NAME`"), "{}", stderr(&out));
    assert_has_only(&server, 0);
    server.ok(&["image", "import", path, "two"]);
    assert_eq!(server.ok(&["run", "two", "--", "cat", "/name"]), "two");
}

#[test]
fn an_image_for_another_machine_is_taken_only_when_asked_for() {
    let server = TestServer::start();
    let mut foreign = fs::read("/proc/self/exe").unwrap();
    // e_machine (elf(5)): EM_SPARC.
    foreign[18..20].copy_from_slice(&2_u16.to_ne_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_size(foreign.len() as u64);
    header.set_mode(0o755);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "bin/foreign", foreign.as_slice()).unwrap();
    let own = TestLayer::zstd_of(&builder.into_inner().unwrap());
    let mut layout = Layout::new();
    let manifest = layout.manifest_with(&[&base(), &own], "linux/sparc64", &plain());
    layout.tag("odd", manifest);
    let path = layout.dir.path().to_str().unwrap();
    let out = server.cli(&["image", "import", path]);
    refused_fetch(&out, "there is linux/sparc64");
    assert!(stderr(&out).contains("hint: `--platform OS/ARCH`"), "{}", stderr(&out));
    assert_has_only(&server, 0);
    refused(&server.cli(&["image", "import", "--platform", "odd", path]), 125, "odd");

    server.ok(&["image", "import", "--platform", "linux/sparc64", path]);
    assert_eq!(inspect(&server, "odd").platform.as_deref(), Some("linux/sparc64"));
    let out = server.cli(&["run", "odd", "--", "/bin/foreign"]);
    refused(&out, 126, "/bin/foreign: not a program for this processor");
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing() {
    let server = TestServer::start();
    let layout = layout("1", &[&base()], &plain());
    let whole = layout.archive();
    let half = server.dir().join("half.tar");
    fs::write(&half, &whole[..whole.len() / 2]).unwrap();
    let text = server.dir().join("text.tar");
    fs::write(&text, "certainly not an archive\n".repeat(100)).unwrap();
    let empty = server.dir().join("empty.tar");
    fs::write(&empty, archive(&[])).unwrap();
    let nothing = server.dir().join("nothing");
    for path in [&half, &text, &empty, &nothing] {
        let out = server.cli(&["image", "import", path.to_str().unwrap()]);
        refused_fetch(&out, path.file_name().unwrap().to_str().unwrap());
    }
    refused(&server.cli(&["image", "import", "/dev/null"]), 125, "/dev/null");
    assert_eq!(listed(&server), []);
    assert_has_only(&server, 0);
}

#[test]
fn a_damaged_layer_takes_the_whole_import_away() {
    let server = TestServer::start();
    let own = layer(&[file("own", "contents")]);
    let damaged = |change: &dyn Fn(&Layout)| {
        let layout = layout("1", &[&base(), &own], &plain());
        change(&layout);
        let out = server.cli(&["image", "import", layout.dir.path().to_str().unwrap()]);
        assert_has_only(&server, 0);
        out
    };
    let out = damaged(&|layout| {
        let path = layout.blob_path(&own.digest());
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    });
    refused_fetch(&out, "its contents are damaged");
    let out = damaged(&|layout| {
        fs::write(layout.blob_path(&own.digest()), &own.bytes[..own.bytes.len() / 2]).unwrap();
    });
    refused_fetch(&out, "its contents are damaged");
    let out = damaged(&|layout| fs::remove_file(layout.blob_path(&own.digest())).unwrap());
    refused_fetch(&out, "missing");
    let lying = TestLayer { diff_id: base().diff_id, ..own.clone() };
    let layout = make::layout("1", &[&lying], &json!({}));
    let out = server.cli(&["image", "import", layout.dir.path().to_str().unwrap()]);
    refused_fetch(&out, "its contents have the digest");
    assert_has_only(&server, 0);
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    TestLayer::zstd_of(bytes).bytes
}
