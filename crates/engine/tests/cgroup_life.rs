//! Groups from creation to removal with real processes, on every way that this host offers: all
//! its hierarchies together, and, where there are v1 ones, these alone.

// A failure of a helper is a failure of the test that uses it.
#![allow(clippy::unwrap_used)]

mod cgroup_support;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cgroup_support::{Host, Shell, id, paths, remove};
use forkyard_engine::cgroup::{Cgroups, Error, Group, Survey};
use forkyard_engine::model::Limits;
use forkyard_testkit::skip;

fn is_in(pid: u32, dir: &Path) -> bool {
    let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    procs.lines().any(|line| line == pid.to_string())
}

#[test]
fn a_stored_group_is_as_good_as_the_first() {
    let hosts = Host::all("stored");
    for host in &hosts {
        let group = host.create(&Limits::default());
        let text = serde_json::to_string(&group).unwrap();
        let again: Group = serde_json::from_str(&text).unwrap();
        assert_eq!(again, group);
        let mut shell = Shell::within(&again, "read end");
        again.kill().unwrap();
        assert_eq!(shell.end().signal(), Some(9));
        remove(&again);
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}

#[test]
fn kill_reaches_every_process_of_a_tree_that_forks() {
    let hosts = Host::all("kill");
    for host in &hosts {
        let group = host.create(&Limits { pids: None, ..Limits::default() });
        let script = "for i in 1 2 3 4 5; do sh -c 'while :; do sleep 0.01; done' & done; \
                      setsid sleep 1000 & echo up; read end";
        let mut shell = Shell::within(&group, script);
        assert_eq!(shell.hear(), "up");
        group.kill().unwrap();
        assert_eq!(shell.end().signal(), Some(9), "{}", host.what);
        remove(&group);
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}

#[test]
fn a_frozen_group_uses_no_time_and_goes_on_when_thawed() {
    let hosts = Host::all("freeze");
    for host in &hosts {
        let group = host.create(&Limits::default());
        let mut shell = Shell::within(&group, "while read line; do echo $line; done");
        shell.say("one");
        assert_eq!(shell.hear(), "one");
        if !group.freeze().unwrap() {
            continue;
        }
        let before = group.usage().cpu_us;
        shell.say("two");
        // A whole process comes and goes meanwhile: time enough for the shell to answer.
        assert!(Command::new("/bin/sh").args(["-c", "exit"]).status().unwrap().success());
        assert_eq!(group.usage().cpu_us, before, "{}", host.what);
        group.thaw().unwrap();
        assert_eq!(shell.hear(), "two");
        assert!(group.freeze().unwrap());
        group.kill().unwrap();
        assert_eq!(shell.end().signal(), Some(9), "{}: frozen ones die too", host.what);
        remove(&group);
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}

#[test]
fn a_busy_group_is_not_removed_and_says_who_is_in_it() {
    let hosts = Host::all("busy");
    for host in &hosts {
        let group = host.create(&Limits::default());
        let mut shell = Shell::within(&group, "echo here; read end");
        assert_eq!(shell.hear(), "here");
        match group.remove(Duration::from_millis(1)) {
            Err(error @ Error::Busy { .. }) => {
                let who = format!("{} (sh)", shell.pid());
                assert!(error.to_string().contains(&who), "{}: {error}", host.what);
            }
            other => panic!("{}: {other:?}", host.what),
        }
        shell.say("end");
        shell.end();
        remove(&group);
        group.try_remove().unwrap();
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}

#[test]
fn groups_made_inside_go_too() {
    let hosts = Host::all("nested");
    for host in &hosts {
        let group = host.create(&Limits::default());
        for dir in paths(&group) {
            std::fs::create_dir_all(dir.join("a/b")).unwrap();
            std::fs::create_dir(dir.join("c")).unwrap();
        }
        let mut shell = Shell::new("read end");
        for dir in paths(&group) {
            std::fs::write(dir.join("a/b/cgroup.procs"), shell.pid().to_string()).unwrap();
        }
        match group.try_remove() {
            Err(Error::Busy { pids, .. }) => assert_eq!(pids.first().unwrap().0, shell.pid()),
            other => panic!("{}: {other:?}", host.what),
        }
        group.kill().unwrap();
        assert_eq!(shell.end().signal(), Some(9), "{}", host.what);
        remove(&group);
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}

#[test]
fn a_group_still_there_is_not_used_again() {
    let hosts = Host::all("again");
    for host in &hosts {
        let first = host.create(&Limits::default());
        first.kill().unwrap();
        let second = host.create(&Limits::default());
        assert_eq!(first.name(), id(1).as_str());
        assert_eq!(second.name(), format!("{}.2", id(1)));
        let mut shell = Shell::within(&second, "echo alive; read end");
        assert_eq!(shell.hear(), "alive", "{}", host.what);
        drop(shell);
        remove(&first);
        remove(&second);
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}

#[test]
fn a_sweep_kills_what_nobody_owns_and_leaves_the_rest() {
    let hosts = Host::all("sweep");
    for host in &hosts {
        let kept = host.cgroups().create(&id(1), &Limits::default()).unwrap();
        let lost = host.cgroups().create(&id(2), &Limits::default()).unwrap();
        let mut owned = Shell::within(&kept, "echo here; read end; echo still");
        let mut stray = Shell::within(&lost, "read end");
        // As after an attach that was cut off: in the last hierarchy only.
        let mut half = Shell::new("read end");
        let last = lost.dirs().last().unwrap().path().join("cgroup.procs");
        std::fs::write(last, half.pid().to_string()).unwrap();
        assert_eq!(owned.hear(), "here");

        let swept = host.cgroups().sweep(&BTreeSet::from([kept.name()])).unwrap();
        assert_eq!(swept.len(), 1, "{}: {swept:?}", host.what);
        assert_eq!(swept[0].name, lost.name());
        assert!(swept[0].error.is_none(), "{}: {swept:?}", host.what);
        assert_eq!(stray.end().signal(), Some(9));
        assert_eq!(half.end().signal(), Some(9));
        owned.say("end");
        assert_eq!(owned.hear(), "still");
        owned.end();
        remove(&kept);
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}

#[test]
fn base_groups_are_shared_by_restarts_and_go_when_empty() {
    let survey = Survey::take().unwrap();
    if survey.places.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
    let host = Host::new("as it is", survey.clone(), "test-retire");
    let group = host.create(&Limits::default());
    let bases: Vec<PathBuf> =
        group.dirs().iter().filter_map(|dir| dir.path().parent()).map(PathBuf::from).collect();
    Cgroups::claim(survey, "test-retire").unwrap().retire().unwrap();
    assert!(bases.iter().all(|base| base.exists()), "a base with a sandbox stays");
    remove(&group);
    drop(host);
    assert!(bases.iter().all(|base| !base.exists()));
}

#[test]
fn a_process_that_is_gone_cannot_be_attached() {
    let hosts = Host::all("gone");
    for host in &hosts {
        let group = host.create(&Limits::default());
        let mut shell = Shell::new("");
        shell.say("go");
        shell.end();
        let error = group.attach(shell.pid()).unwrap_err().to_string();
        assert!(error.contains("cgroup.procs: No such process"), "{}: {error}", host.what);
        remove(&group);
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}

#[test]
fn the_v2_directory_is_given_for_clone() {
    let hosts = Host::all("fd");
    for host in &hosts {
        let group = host.create(&Limits::default());
        let unified = paths(&group).into_iter().find(|dir| dir.join("cgroup.kill").exists());
        let fd = group.dir_fd().unwrap();
        assert_eq!(fd.is_some(), unified.is_some(), "{}", host.what);
        if let (Some(fd), Some(dir)) = (fd, unified) {
            let stat = rustix::fs::fstat(&fd).unwrap();
            assert_eq!(stat.st_ino, rustix::fs::stat(&dir).unwrap().st_ino);
            let mut shell = Shell::new("read end");
            std::fs::write(dir.join("cgroup.procs"), shell.pid().to_string()).unwrap();
            group.attach_cloned(shell.pid()).unwrap();
            for dir in paths(&group) {
                assert!(is_in(shell.pid(), &dir), "{}", dir.display());
            }
            group.kill().unwrap();
            shell.end();
        }
        remove(&group);
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}
