//! Recorded texts of hosts, and texts that no host would write.

use proptest::prelude::*;

use super::*;

/// Debian 12 and the like: systemd, v2 only, a shell of a login session.
const UNIFIED: (&str, &str) = (
    "24 31 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw\n\
     27 24 0:25 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 \
     rw,nsdelegate,memory_recursiveprot\n",
    "0::/user.slice/user-1000.slice/session-3.scope\n",
);

/// The same host, under `systemd-run --user --scope -p Delegate=yes`.
const USER_SCOPE: (&str, &str) =
    (UNIFIED.0, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1f0a2b3c.scope\n");

/// systemd's hybrid: v1 with joint cpu and cpuacct, v2 on the side.
const HYBRID: (&str, &str) = (
    "25 30 0:23 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755\n\
     26 25 0:24 / /sys/fs/cgroup/unified rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 \
     cgroup2 rw,nsdelegate\n\
     27 25 0:25 / /sys/fs/cgroup/systemd rw,nosuid,nodev,noexec,relatime shared:10 - cgroup \
     cgroup rw,xattr,name=systemd\n\
     30 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:15 - cgroup \
     cgroup rw,cpu,cpuacct\n\
     31 25 0:29 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:16 - cgroup \
     cgroup rw,memory\n\
     33 25 0:31 / /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime shared:18 - cgroup cgroup \
     rw,pids\n\
     34 25 0:32 / /sys/fs/cgroup/net_cls,net_prio rw,relatime shared:19 - cgroup cgroup \
     rw,net_cls,net_prio\n",
    "12:net_cls,net_prio:/\n\
     9:pids:/user.slice/user-0.slice/session-1.scope\n\
     6:memory:/user.slice/user-0.slice/session-1.scope\n\
     4:cpu,cpuacct:/user.slice\n\
     1:name=systemd:/user.slice/user-0.slice/session-1.scope\n\
     0::/user.slice/user-0.slice/session-1.scope\n",
);

/// Docker on a v1 host, the host's cgroup namespace: only the container's part is mounted.
const DOCKER_V1: (&str, &str) = (
    "619 618 0:61 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,mode=755\n\
     620 619 0:33 /docker/4f2a /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:16 - \
     cgroup cgroup rw,memory\n\
     621 619 0:31 /docker/4f2a /sys/fs/cgroup/pids rw,nosuid,nodev,noexec,relatime master:18 - \
     cgroup cgroup rw,pids\n",
    "6:memory:/docker/4f2a\n5:pids:/docker/4f2a/inner\n4:cpu,cpuacct:/docker/4f2a\n",
);

/// Docker on a v2 host with a cgroup namespace, unprivileged.
const DOCKER_V2: (&str, &str) = (
    "1024 1020 0:29 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n",
    "0::/\n",
);

fn owns((mountinfo, membership): (&str, &str)) -> Vec<Own> {
    own_groups(mountinfo.as_bytes(), membership.as_bytes())
}

fn dirs(host: (&str, &str)) -> Vec<(Version, Vec<Controller>, Result<String, Reason>)> {
    let text = |dir: PathBuf| dir.to_string_lossy().into_owned();
    owns(host).into_iter().map(|own| (own.version, own.controllers, own.dir.map(text))).collect()
}

#[test]
fn a_login_session_of_a_unified_host_is_found() {
    let dir = "/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope".to_owned();
    assert_eq!(dirs(UNIFIED), [(Version::V2, vec![], Ok(dir))]);
}

#[test]
fn a_delegated_user_scope_is_found() {
    let dir = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/\
               run-r1f0a2b3c.scope";
    assert_eq!(dirs(USER_SCOPE), [(Version::V2, vec![], Ok(dir.to_owned()))]);
}

#[test]
fn a_hybrid_has_v2_first_and_joint_controllers_together() {
    use Controller::{Cpu, CpuAcct, Memory, Pids};
    let scope = "user.slice/user-0.slice/session-1.scope";
    let dir = |name: &str| Ok(format!("/sys/fs/cgroup/{name}"));
    let want = [
        (Version::V2, vec![], dir(&format!("unified/{scope}"))),
        (Version::V1, vec![Pids], dir(&format!("pids/{scope}"))),
        (Version::V1, vec![Memory], dir(&format!("memory/{scope}"))),
        (Version::V1, vec![Cpu, CpuAcct], dir("cpu,cpuacct/user.slice")),
    ];
    assert_eq!(dirs(HYBRID), want);
}

#[test]
fn a_container_sees_its_own_part_of_a_v1_hierarchy() {
    use Controller::{Cpu, CpuAcct, Memory, Pids};
    let want = [
        (Version::V1, vec![Memory], Err(Reason::ReadOnly("/sys/fs/cgroup/memory".into()))),
        (Version::V1, vec![Pids], Ok("/sys/fs/cgroup/pids/inner".to_owned())),
        (Version::V1, vec![Cpu, CpuAcct], Err(Reason::Nowhere)),
    ];
    assert_eq!(dirs(DOCKER_V1), want);
}

#[test]
fn a_container_with_a_namespace_is_at_its_root() {
    let own = owns(DOCKER_V2).remove(0);
    assert_eq!(own.path, Path::new("/"));
    assert_eq!(own.dir, Err(Reason::ReadOnly("/sys/fs/cgroup".into())));
}

#[test]
fn a_group_outside_the_cgroup_namespace_or_the_mount_is_out_of_sight() {
    for (root, path) in [("/", "/../other"), ("/docker/a", "/docker/ab"), ("/..", "/")] {
        let mountinfo = format!("9 8 0:29 {root} /cg rw - cgroup2 cgroup rw\n");
        let found = dirs((&mountinfo, &format!("0::{path}\n")));
        assert_eq!(found, [(Version::V2, vec![], Err(Reason::OutOfSight))], "{root} {path}");
    }
}

#[test]
fn a_writable_mount_is_preferred_and_then_the_latest() {
    let mountinfo = "1 0 0:9 / /a rw - cgroup2 none rw\n\
                     2 0 0:9 / /b rw - cgroup2 none rw\n\
                     3 0 0:9 / /c ro - cgroup2 none rw\n";
    assert_eq!(dirs((mountinfo, "0::/x\n")), [(Version::V2, vec![], Ok("/b/x".to_owned()))]);
}

#[test]
fn escaped_mount_points_and_colons_in_paths_are_understood() {
    let mountinfo = "1 0 0:9 / /my\\040cg\\134 rw shared:1 master:2 - cgroup2 none rw\n";
    let found = dirs((mountinfo, "0::/a:b (deleted)\n"));
    assert_eq!(found, [(Version::V2, vec![], Ok("/my cg\\/a:b (deleted)".to_owned()))]);
    assert_eq!(unescape(b"\\"), b"\\");
    assert_eq!(unescape(b"\\09"), b"\\09");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(
        mountinfo in prop::collection::vec(any::<u8>(), 0..300),
        membership in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        own_groups(&mountinfo, &membership);
    }

    #[test]
    fn no_near_miss_makes_the_parser_panic_or_leave_the_mount(
        mountinfo in "([0-9]{1,2} [0-9] 0:1 (/|/a|/\\.\\.|x|) (/m|/m/\\.\\.|y|) (ro|rw|)( shared:1)?( -)? (cgroup2?|proc) s? ?(rw|ro)(,memory|,cpu,cpuacct)?\n){0,4}",
        membership in "([0-9]?:(memory|cpu|cpuacct|,|cpu,cpuacct|):?(/a|/a/b|/\\.\\./c|/|)\n?){0,4}",
    ) {
        for own in own_groups(mountinfo.as_bytes(), membership.as_bytes()) {
            if let Ok(dir) = own.dir {
                prop_assert!(dir.is_absolute());
            }
            prop_assert!(own.version == Version::V2 || !own.controllers.is_empty());
        }
    }

    #[test]
    fn every_path_below_the_mount_root_is_found_below_the_mount_point(
        parts in prop::collection::vec("[a-z@:.-]{1,8}", 1..5),
    ) {
        prop_assume!(parts.iter().all(|part| part != "." && part != ".."));
        let path = parts.join("/");
        let mountinfo = "1 0 0:9 /base /cg rw - cgroup2 none rw\n";
        let found = dirs((mountinfo, &format!("0::/base/{path}\n")));
        prop_assert_eq!(found, [(Version::V2, vec![], Ok(format!("/cg/{path}")))]);
    }
}
