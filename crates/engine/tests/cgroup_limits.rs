//! Limits and figures with real processes, on every way that this host offers: all its
//! hierarchies together, and, where there are v1 ones, these alone.

mod cgroup_support;

use std::os::unix::process::ExitStatusExt;

use cgroup_support::{Host, LONG, Shell, paths, remove};
use forkyard_engine::cgroup::{Controller, Group};
use forkyard_engine::model::{Limits, Usage};
use forkyard_testkit::{skip, wait_for};

const MIB: u64 = 1 << 20;

#[test]
fn a_memory_hog_is_killed_and_counted() {
    let mut tried = 0;
    for host in Host::all("hog").iter().filter(|host| host.offers(Controller::Memory)) {
        tried += 1;
        let group = host.create(&Limits { memory: Some(32 * MIB), ..Limits::default() });
        assert_eq!(group.oom_kills().unwrap(), Some(0));
        let mut hog = Shell::within(&group, "x=0123456789abcdef; while :; do x=$x$x; done");
        assert_eq!(hog.end().signal(), Some(9), "{}", host.what);
        assert_eq!(group.oom_kills().unwrap(), Some(1));
        let usage = group.usage();
        assert!(usage.memory_peak.is_some_and(|peak| peak > 16 * MIB && peak <= 32 * MIB));
        assert_eq!(usage.oom_kills, Some(1));
        remove(&group);
    }
    if tried == 0 {
        skip!("a memory controller that may be used");
    }
}

#[test]
fn out_of_memory_kills_the_hog_and_not_its_parent() {
    let mut tried = 0;
    for host in Host::all("parent").iter().filter(|host| host.offers(Controller::Memory)) {
        tried += 1;
        let group = host.create(&Limits { memory: Some(32 * MIB), ..Limits::default() });
        let hog = "sh -c 'x=0123456789abcdef; while :; do x=$x$x; done'; echo ended $?";
        let mut parent = Shell::within(&group, hog);
        assert_eq!(parent.hear(), "ended 137", "{}", host.what);
        assert!(parent.end().success());
        remove(&group);
    }
    if tried == 0 {
        skip!("a memory controller that may be used");
    }
}

#[test]
fn a_memory_limit_of_a_running_group_goes_up_and_down_and_away() {
    let mut tried = 0;
    for host in Host::all("resize").iter().filter(|host| host.offers(Controller::Memory)) {
        tried += 1;
        let limits = |mib: u64| Limits { memory: Some(mib * MIB), ..Limits::default() };
        let mut group = host.create(&limits(64));
        let dir = group
            .dirs()
            .iter()
            .map(|dir| dir.path().to_owned())
            .find(|dir| dir.join("memory.max").exists() || dir.join("memory.stat").exists())
            .unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.join(name));
        let limit = || read("memory.max").or_else(|_| read("memory.limit_in_bytes")).unwrap();
        for mib in [128, 32, 256] {
            host.cgroups().update(&mut group, &limits(mib)).unwrap();
            assert_eq!(limit().trim(), (mib * MIB).to_string(), "{}", host.what);
            if let Ok(both) = read("memory.memsw.limit_in_bytes") {
                assert_eq!(both, limit());
            }
        }
        host.cgroups().update(&mut group, &Limits::default()).unwrap();
        assert!(limit().trim() == "max" || limit().trim().parse::<u64>().unwrap() > 1 << 60);
        remove(&group);
    }
    if tried == 0 {
        skip!("a memory controller that may be used");
    }
}

#[test]
fn a_fork_bomb_is_bounded() {
    let mut tried = 0;
    for host in Host::all("bomb").iter().filter(|host| host.offers(Controller::Pids)) {
        tried += 1;
        let group = host.create(&Limits { pids: Some(8), ..Limits::default() });
        let mut bomb = Shell::within(&group, "while :; do sleep 1000 & done");
        assert!(!bomb.end().success(), "{}", host.what);
        assert_eq!(group.usage().pids, Some(7));
        group.kill().unwrap();
        remove(&group);
    }
    if tried == 0 {
        skip!("a pids controller that may be used");
    }
}

#[test]
fn processes_are_bounded_without_being_asked_for() {
    let mut tried = 0;
    for host in Host::all("default").iter().filter(|host| host.offers(Controller::Pids)) {
        tried += 1;
        let group = host.create(&Limits::default());
        let limit =
            paths(&group).iter().find_map(|dir| std::fs::read_to_string(dir.join("pids.max")).ok());
        assert_eq!(limit.as_deref(), Some("4096\n"), "{}", host.what);
        remove(&group);
    }
    if tried == 0 {
        skip!("a pids controller that may be used");
    }
}

#[test]
fn a_cpu_limit_throttles_and_can_come_later() {
    let mut tried = 0;
    for host in Host::all("cpu").iter().filter(|host| host.offers(Controller::Cpu)) {
        tried += 1;
        let mut group = host.create(&Limits::default());
        let _spinners: Vec<Shell> =
            (0..3).map(|_| Shell::within(&group, "while :; do :; done")).collect();
        let limits = Limits { cpus: Some(0.1), ..Limits::default() };
        host.cgroups().update(&mut group, &limits).unwrap();
        let dirs = paths(&group);
        let throttled = || {
            let stats =
                dirs.iter().filter_map(|dir| std::fs::read_to_string(dir.join("cpu.stat")).ok());
            let text: String = stats.collect();
            let line = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
            line.is_some_and(|count| count.parse::<u64>().unwrap() >= 2)
        };
        wait_for("throttling", LONG, throttled);
        host.cgroups().update(&mut group, &Limits::default()).unwrap();
        group.kill().unwrap();
        remove(&group);
    }
    if tried == 0 {
        skip!("a cpu controller that may be used");
    }
}

#[test]
fn directories_are_made_only_where_they_are_needed() {
    for host in Host::all("needed") {
        let plain = host.create(&Limits::default());
        let limited = if host.offers(Controller::Cpu) {
            host.create(&Limits { cpus: Some(1.0), ..Limits::default() })
        } else {
            host.create(&Limits::default())
        };
        let has_v2 =
            |group: &Group| group.dirs().first().map(|dir| dir.path().join("cgroup.kill").exists());
        if has_v2(&plain) == Some(true) {
            let names = ["cpu.cfs_quota_us", "cpuacct.usage", "freezer.state"];
            for dir in paths(&plain) {
                assert!(names.iter().all(|name| !dir.join(name).exists()), "{}", dir.display());
            }
        }
        assert!(limited.dirs().len() >= plain.dirs().len());
        remove(&plain);
        remove(&limited);
    }
}

#[test]
fn usage_counts_what_a_process_did() {
    let hosts = Host::all("usage");
    for host in &hosts {
        let group = host.create(&Limits::default());
        let before = group.usage();
        let mut shell = Shell::within(
            &group,
            "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; read end",
        );
        assert_eq!(shell.hear(), "done");
        let usage = group.usage();
        if usage.cpu_us.is_some() {
            assert_eq!(before.cpu_us, Some(0));
            assert!(usage.cpu_us > Some(1000), "{}: {usage:?}", host.what);
        }
        if host.offers(Controller::Memory) {
            assert!(usage.memory_peak >= usage.memory, "{usage:?}");
            assert!(usage.memory_peak.is_some_and(|peak| peak > 0 && peak < 64 * MIB), "{usage:?}");
        }
        if host.offers(Controller::Pids) {
            assert_eq!((before.pids, usage.pids), (Some(0), Some(1)));
        }
        assert!(group.populated().unwrap());
        shell.say("end");
        shell.end();
        wait_for("an empty group", LONG, || !group.populated().unwrap());
        remove(&group);
        assert_eq!(group.usage(), Usage::default());
        assert!(!group.populated().unwrap());
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
}
