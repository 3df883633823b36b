//! Limits and accounting with real processes, on every way that this host offers: all its
//! hierarchies together, and, where there are v1 ones, these alone.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use forkyard_engine::cgroup::{Cgroups, Controller, Error, Group, Survey, Version};
use forkyard_engine::model::{Limits, SandboxId};
use forkyard_testkit::{skip, wait_for};

const MIB: u64 = 1 << 20;

/// Far longer than anything here takes, for a machine under load.
const LONG: Duration = Duration::from_secs(20);

/// The base groups of one test, removed with all in them when it ends, failed or not.
struct Host {
    cgroups: Option<Cgroups>,
    what: &'static str,
}

impl Host {
    /// Servers of tests that run at once must not meet, so `test` is part of the tag.
    fn all(test: &str) -> Vec<Self> {
        let survey = Survey::take().unwrap();
        let mut v1_alone = survey.clone();
        v1_alone.places.retain(|place| place.version == Version::V1);
        let mut hosts = Vec::new();
        if !survey.places.is_empty() {
            hosts.push(Self::new("as it is", survey, &format!("test-{test}")));
        }
        if !v1_alone.places.is_empty() {
            hosts.push(Self::new("v1 alone", v1_alone, &format!("test-{test}-v1")));
        }
        hosts
    }

    fn new(what: &'static str, survey: Survey, tag: &str) -> Self {
        Self { cgroups: Some(Cgroups::claim(survey, tag).unwrap()), what }
    }

    fn cgroups(&self) -> &Cgroups {
        self.cgroups.as_ref().unwrap()
    }

    fn offers(&self, controller: Controller) -> bool {
        self.cgroups().offers(controller).is_some()
    }

    fn create(&self, limits: &Limits) -> Group {
        self.cgroups().create(&id(1), limits).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(cgroups) = self.cgroups.take() {
            let swept = cgroups.sweep(&BTreeSet::new()).unwrap();
            if std::thread::panicking() {
                let _ = cgroups.retire();
                return;
            }
            assert!(swept.iter().all(|swept| swept.error.is_none()), "{swept:?}");
            cgroups.retire().unwrap();
        }
    }
}

/// A shell that waits for a line before it runs its script, so that it can be attached first.
struct Shell {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn new(script: &str) -> Self {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("read go\n{script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn within(group: &Group, script: &str) -> Self {
        let mut shell = Self::new(script);
        group.attach(shell.pid()).unwrap();
        shell.say("go");
        shell
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits for the next line of its output.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn id(n: u32) -> SandboxId {
    format!("{n:012}").parse().unwrap()
}

fn remove(group: &Group) {
    group.remove(LONG).unwrap();
    for dir in group.dirs() {
        assert!(!dir.path().exists(), "{}", dir.path().display());
    }
}

fn is_in(pid: u32, dir: &Path) -> bool {
    let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    procs.lines().any(|line| line == pid.to_string())
}

fn paths(group: &Group) -> Vec<PathBuf> {
    group.dirs().iter().map(|dir| dir.path().to_owned()).collect()
}

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
        assert_eq!(group.usage(), forkyard_engine::model::Usage::default());
        assert!(!group.populated().unwrap());
    }
    if hosts.is_empty() {
        skip!("a cgroup hierarchy that may be written");
    }
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
        // A busy neighbour gives the shell every chance to run, were it not frozen.
        assert!(Command::new("/bin/sh").args(["-c", "sleep 0.02"]).status().unwrap().success());
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
