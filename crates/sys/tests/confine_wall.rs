//! The Landlock wall against the real kernel.

#![allow(clippy::print_stderr)] // A skipped test says so.

#[path = "confine_common/mod.rs"]
#[allow(dead_code)] // The other test file uses the rest.
mod common;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use common::{Who, in_child, turn_into};
use forkyard_sys::landlock::{self, Strength, Wall};
use forkyard_sys::{caps, mount};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

/// Whether there is a wall to test; says so when not.
fn has_wall(oldest: u32) -> bool {
    let abi = landlock::abi().unwrap_or(0);
    if abi < oldest {
        eprintln!("skipped: Landlock ABI {abi}, {oldest} needed");
    }
    abi >= oldest
}

#[test]
fn nothing_outside_the_root_can_be_reached() {
    if !has_wall(2) {
        return;
    }
    for who in [Who::NamespaceRoot, Who::Nobody] {
        let inside = tempfile::tempdir().expect("directory");
        let outside = tempfile::tempdir().expect("directory");
        for directory in [&inside, &outside] {
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(directory, open).expect("chmod");
            fs::create_dir(directory.path().join("sub")).expect("mkdir");
            fs::write(directory.path().join("file"), "x").expect("write");
        }
        let root = File::open(inside.path()).expect("open");
        let wall = Wall::prepare(&[root.as_fd()], false).expect("prepare");
        assert_eq!(wall.strength(), Strength::Full);
        let leaked = File::open(outside.path()).expect("open");
        let mut before = File::open(outside.path().join("file")).expect("open");

        let answers = in_child(|| {
            turn_into(who)?;
            caps::set_no_new_privs()?;
            wall.restrict()?;
            let path = inside.path();
            let leak = openat(&leaked, "file", OFlags::RDONLY, Mode::empty());
            Ok(vec![
                errno(fs::read(path.join("file"))),
                errno(fs::write(path.join("new"), "y")),
                errno(before.read(&mut [0; 4])),
                errno(fs::read("/etc/passwd")),
                errno(fs::read_dir("/")),
                errno(fs::write(outside.path().join("new"), "y")),
                errno(leak.map_err(io::Error::from)),
                errno(std::process::Command::new("/bin/true").status()),
            ])
        });
        let denied = libc::EACCES;
        assert_eq!(answers, [0, 0, 0, denied, denied, denied, denied, denied], "{who:?}");
    }
}

#[test]
fn mounts_below_the_root_are_inside_and_the_old_root_is_not() {
    if !has_wall(2) {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let old = File::open("/").expect("open");
    let answers = in_child(|| {
        turn_into(Who::NamespaceRoot)?;
        // SAFETY: the child has one thread; only mounts are unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
        mount::make_private()?;
        let root = mount::new_mount("tmpfs", &[], 0)?;
        mount::attach_mount(&root, CWD, directory.path().to_str().unwrap_or_default())?;
        mkdirat(&root, "below", Mode::RWXU)?;
        let below = mount::new_mount("tmpfs", &[], 0)?;
        mount::attach_mount(&below, &root, "below")?;
        mount::pivot_into(&root)?.detach()?;

        let wall =
            Wall::prepare(&[mount::open_dir("/")?.as_fd()], false).map_err(io::Error::other)?;
        caps::set_no_new_privs()?;
        wall.restrict()?;
        let outside = openat(&old, "etc/passwd", OFlags::RDONLY, Mode::empty());
        Ok(vec![
            errno(fs::write("/file", "x")),
            errno(fs::write("/below/file", "x")),
            errno(fs::read("/below/file")),
            errno(outside.map_err(io::Error::from)),
        ])
    });
    assert_eq!(answers, [0, 0, 0, libc::EACCES]);
}

#[test]
fn files_move_between_directories_inside() {
    if !has_wall(2) {
        return;
    }
    let inside = tempfile::tempdir().expect("directory");
    for name in ["a", "b"] {
        fs::create_dir(inside.path().join(name)).expect("mkdir");
    }
    fs::write(inside.path().join("a/file"), "x").expect("write");
    let root = File::open(inside.path()).expect("open");
    let wall = Wall::prepare(&[root.as_fd()], false).expect("prepare");
    let answers = in_child(|| {
        caps::set_no_new_privs()?;
        wall.restrict()?;
        let (from, to) = (inside.path().join("a/file"), inside.path().join("b/file"));
        Ok(vec![
            errno(fs::hard_link(&from, inside.path().join("b/link"))),
            errno(fs::rename(from, to)),
        ])
    });
    assert_eq!(answers, [0, 0]);
}

#[test]
fn abstract_sockets_of_the_host_are_shut_out_with_its_network() {
    if !has_wall(6) {
        return;
    }
    let name = format!("forkyard-confine-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("address");
    let _listener = UnixListener::bind_addr(&address).expect("listen");
    let root = File::open("/").expect("open");
    for (host_network, expected) in [(true, libc::EPERM), (false, 0)] {
        let wall = Wall::prepare(&[root.as_fd()], host_network).expect("prepare");
        let answers = in_child(|| {
            caps::set_no_new_privs()?;
            wall.restrict()?;
            Ok(vec![errno(UnixStream::connect_addr(&address))])
        });
        assert_eq!(answers, [expected], "host network: {host_network}");
    }
}
