//! Guests that do not want their changes told, or want others' told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use forkyard_branch::{Kind, Layers, Wanted, diff};
use forkyard_testkit::{finish, skip};
use support::{lower, open, white_out};

#[test]
fn what_a_guest_puts_in_the_way_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let lower = lower(dir.path());
    let upper = dir.path().join("upper");
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/secret"), "secret").unwrap();
    symlink("../outside", upper.join("a")).unwrap();
    symlink("../outside/secret", upper.join("text")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, upper.join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    let layers = Layers::new(vec![open(&upper)], vec![open(&lower)]);
    let changes = diff(&layers, &Wanted::default()).unwrap();
    assert!(changes.iter().all(|change| !change.path.ends_with(b"secret")));
    // Swapped between being looked at and being read.
    for change in &changes {
        let mut change = change.clone();
        if let Some(new) = change.new.as_mut() {
            new.kind = Kind::File;
            new.size = 6;
        }
        let mut text = Vec::new();
        forkyard_branch::Patch::new(&layers, "", &mut text).write(&change).unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("+secret"), "{text}");
    }
}

#[test]
fn a_tree_deeper_than_any_path_is_told_and_one_without_end_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&lower).unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let deepen = |mut at: std::os::fd::OwnedFd, name: &str, count: usize| {
        for _ in 0..count {
            rustix::fs::mkdirat(&at, name, rustix::fs::Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name, flags, rustix::fs::Mode::empty()).unwrap();
        }
        at
    };
    let long = "d".repeat(200);
    let end = deepen(open(&upper), &long, 100);
    rustix::fs::mkdirat(&end, "last", rustix::fs::Mode::RWXU).unwrap();
    let layers = Layers::new(vec![open(&upper)], vec![open(&lower)]);
    let changes = diff(&layers, &Wanted::default()).unwrap();
    assert_eq!(changes.len(), 101);
    assert!(changes.last().unwrap().path.ends_with(b"/last"));
    deepen(open(&upper), "d", forkyard_branch::DEPTH_MAX + 2);
    let error = diff(&layers, &Wanted::default()).unwrap_err();
    assert!(error.to_string().contains("directories within one another"), "{error}");
    // The directory's own removal does not go as deep.
    let mut rm = Command::new("rm");
    assert!(finish(rm.arg("-rf").arg(&upper), b"").status.success());
}

#[test]
fn files_that_may_not_be_read_are_told_without_their_contents() {
    if forkyard_testkit::is_root() {
        skip!("a user who may not read all files");
    }
    let dir = tempfile::tempdir().unwrap();
    let lower = lower(dir.path());
    fs::set_permissions(lower.join("text"), fs::Permissions::from_mode(0o000)).unwrap();
    let upper = dir.path().join("upper");
    white_out(&upper.join("text"));
    let layers = Layers::new(vec![open(&upper)], vec![open(&lower)]);
    let changes = diff(&layers, &Wanted::default()).unwrap();
    let mut text = Vec::new();
    forkyard_branch::Patch::new(&layers, "", &mut text).write(&changes[0]).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.ends_with("Binary files a/text and /dev/null differ\n"), "{text}");
}

/// Ended with the test, whatever becomes of that.
struct Guest(std::process::Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_tree_that_changes_all_the_time_is_told_without_fail() {
    let dir = tempfile::tempdir().unwrap();
    let lower = lower(dir.path());
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("a")).unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "not for guests\n").unwrap();
    let script = "cd upper; exec 2>/dev/null; while :; do mkdir d; echo x >d/f; echo y >text; rm -r d; ln -s ../lower d; \
                  rm text; ln -s ../secret text; rm d text; mkfifo text; rm text; done";
    let guest = Command::new("sh").args(["-c", script]).current_dir(&dir).spawn().unwrap();
    let _guest = Guest(guest);
    let layers = Layers::new(vec![open(&upper)], vec![open(&lower)]);
    for _ in 0..3000 {
        let mut text = Vec::new();
        let mut patch = forkyard_branch::Patch::new(&layers, "", &mut text);
        for change in diff(&layers, &Wanted::default()).unwrap() {
            assert!(!change.path.starts_with(b"d/a"), "{change:?}");
            patch.write(&change).unwrap();
        }
        assert!(!String::from_utf8_lossy(&text).contains("not for guests"));
    }
}
