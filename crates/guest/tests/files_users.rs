//! Users and groups from files that the guest writes.

mod files_support;

use files_support::*;
use forkyard_guest::users::{
    DATABASE_MAX, User, UserError, group_is_mapped, id_is_mapped, resolve,
};
use proptest::prelude::*;

fn place(passwd: impl AsRef<[u8]>, group: impl AsRef<[u8]>) -> Place {
    let place = Place::new();
    place.dir("etc");
    place.file("etc/passwd", passwd);
    place.file("etc/group", group);
    place
}

fn ids(user: &User) -> (u32, u32, &[u32]) {
    (user.uid, user.gid, &user.groups)
}

#[test]
fn names_numbers_and_groups_resolve_as_docker_does() {
    let place = place(
        "root:x:0:0:root:/root:/bin/bash\nagent:x:1000:1001:,,,:/home/agent:/bin/zsh\n42:x:7:7::/:\n",
        "root:x:0:\nagent:x:1001:\nwheel:x:10:root,agent\ndocker:x:20:agent,\n",
    );
    let user = |spec| resolve(place.root(), spec).expect(spec);
    assert_eq!(ids(&user("agent")), (1000, 1001, &[10, 20][..]));
    assert_eq!(user("agent"), user("1000"));
    assert_eq!(
        (user("agent").home, user("agent").shell),
        (bytes("/home/agent"), bytes("/bin/zsh"))
    );
    assert_eq!(ids(&user("agent:wheel")), (1000, 10, &[][..]));
    assert_eq!(ids(&user("agent:99")), (1000, 99, &[][..]));
    assert_eq!(ids(&user("5000")), (5000, 0, &[][..]));
    assert_eq!((user("5000").home, user("5000").name), (bytes("/"), bytes("5000")));
    // A name comes before a number.
    assert_eq!(user("42").uid, 7);
    assert_eq!(user("42").shell, bytes("/bin/sh"));
}

#[test]
fn what_does_not_exist_is_told_by_name() {
    let place = place("root:x:0:0::/root:/bin/sh\n", "");
    let error = |spec| resolve(place.root(), spec).expect_err(spec);
    assert_eq!(error("ghost"), UserError::NoSuchUser("ghost".into()));
    assert_eq!(error("root:ghosts"), UserError::NoSuchGroup("ghosts".into()));
    for spec in ["", ":", "root:", ":0", "a\0b"] {
        assert_eq!(error(spec), UserError::Malformed(spec.into()), "{spec:?}");
    }
    for spec in ["4294967295", "-1", "99999999999", "root:4294967295"] {
        assert!(resolve(place.root(), spec).is_err(), "{spec}");
    }
}

#[test]
fn root_is_found_whatever_the_guest_does_to_its_files() {
    let too_large = "x".repeat(DATABASE_MAX + 1);
    for passwd in ["", "garbage", "root:x:notanumber:0::/:\n", too_large.as_str()] {
        let place = place(passwd, too_large.as_str());
        for spec in ["root", "0"] {
            assert_eq!(
                resolve(place.root(), spec).expect(spec),
                User { name: bytes("root"), ..User::root() }
            );
        }
        assert_eq!(resolve(place.root(), "1000").expect("a number").uid, 1000);
    }
    let place = Place::new();
    assert_eq!(resolve(place.root(), "root").expect("root"), User::root());
    assert!(matches!(resolve(place.root(), "me"), Err(UserError::NoSuchUser(_))));
}

#[test]
fn databases_that_are_no_files_are_not_waited_for() {
    let place = Place::new();
    place.dir("etc/group");
    let dir = std::fs::File::open(place.at("etc")).expect("the directory");
    rustix::fs::mknodat(&dir, c"passwd", rustix::fs::FileType::Fifo, 0o666.into(), 0)
        .expect("a fifo");
    assert!(matches!(resolve(place.root(), "me"), Err(UserError::Unreadable(_))));
    assert!(matches!(resolve(place.root(), "0:me"), Err(UserError::Unreadable(_))));
    assert_eq!(resolve(place.root(), "0").expect("root").uid, 0);
}

#[test]
fn names_that_are_not_utf_8_do_no_harm() {
    let place = place(b"\xff\xfe:x:5:5::/\xff:/bin/sh\nme:x:6:6::/:\n", b"g\xff:x:9:me,\xff\n");
    assert_eq!(ids(&resolve(place.root(), "me").expect("me")), (6, 6, &[9][..]));
    assert_eq!(resolve(place.root(), "5").expect("a number").name, b"\xff\xfe");
}

#[test]
fn a_user_namespace_with_one_id_says_that_only_root_exists() {
    if let Some(output) = mount_namespace("a_user_namespace_with_one_id_says_that_only_root_exists")
    {
        return passed(&output);
    }
    assert!(id_is_mapped(0) && !id_is_mapped(1000) && !group_is_mapped(1000));
    let place = Place::new();
    place.file("x", "text");
    for user in ["1000", "0:1000"] {
        let error = place.ask_as(user, read("/x")).expect_err("refused").to_string();
        assert!(error.contains("only root exists in this sandbox"), "{error}");
    }
    for user in ["", "0", "root", "0:0"] {
        assert_eq!(contents(place.ask_as(user, read("/x"))), b"text");
    }
}

proptest! {
    #[test]
    fn a_user_that_is_written_is_found_among_any_garbage(
        before in proptest::collection::vec(any::<u8>(), 0..300),
        after in proptest::collection::vec(any::<u8>(), 0..300),
        name in "[a-z_][a-z0-9_-]{0,30}",
        uid in 0..u32::MAX,
        gid in 0..u32::MAX,
    ) {
        // Garbage that happens to name the same user would rightly win.
        let line = format!("{name}:x:{uid}:{gid}:c:/home/{name}:/bin/x");
        let clash = [name.as_bytes(), b":"].concat();
        prop_assume!(!before.windows(clash.len()).any(|part| part == clash));
        let passwd = [&before[..], b"\n", line.as_bytes(), b"\n", &after[..]].concat();
        let place = place(passwd, &before);
        let user = resolve(place.root(), &name).expect("the user");
        prop_assert_eq!((user.uid, user.gid), (uid, gid));
        prop_assert_eq!(user.home, format!("/home/{name}").into_bytes());
    }

    #[test]
    fn no_specification_and_no_file_makes_resolving_panic(
        passwd in "([a-z0-9:,/\u{ff}\n\0-]{0,20}){0,10}",
        group in "([a-z0-9:,\n]{0,20}){0,10}",
        spec in "[a-z0-9:\n\0-]{0,12}",
    ) {
        let place = place(passwd, group);
        if let Ok(user) = resolve(place.root(), &spec) {
            prop_assert!(user.uid != u32::MAX && user.gid != u32::MAX);
            prop_assert!(user.home.starts_with(b"/") && user.shell.starts_with(b"/"));
        }
    }
}
