//! v2 with controllers on a tree of plain files, for hosts that have no such v2; and hosts that
//! offer nothing. What the kernel adds to a write is not tested here.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tempfile::TempDir;

use super::*;

/// A v2 hierarchy with one group, `own`, and the files the kernel would put in it.
struct Fake {
    dir: TempDir,
}

impl Fake {
    fn new(controllers: &str) -> Self {
        let fake = Self { dir: tempfile::tempdir().unwrap() };
        let own = fake.own();
        fs::create_dir(&own).unwrap();
        let files = [
            ("cgroup.type", "domain\n"),
            ("cgroup.controllers", controllers),
            ("cgroup.subtree_control", ""),
            ("cgroup.procs", ""),
        ];
        for (name, text) in files {
            fs::write(own.join(name), text).unwrap();
        }
        fake.group("own/forkyard-t", &["memory.max", "cpu.max", "pids.max"]);
        fake.group("own/forkyard-server", &[]);
        fake
    }

    fn own(&self) -> PathBuf {
        self.dir.path().join("own")
    }

    fn group(&self, path: &str, files: &[&str]) -> PathBuf {
        let dir = self.dir.path().join(path);
        fs::create_dir_all(&dir).unwrap();
        for name in files.iter().chain(&["cgroup.procs", "cgroup.subtree_control"]) {
            fs::write(dir.join(name), "").unwrap();
        }
        dir
    }

    fn survey_from(&self, path: &str, options: &str) -> Survey {
        let root = self.dir.path().display();
        let mountinfo = format!("1 0 0:9 / {root} {options} - cgroup2 cgroup2 rw\n");
        Survey::of(mountinfo.as_bytes(), format!("0::{path}\n").as_bytes())
    }

    fn survey(&self) -> Survey {
        self.survey_from("/own", "rw")
    }

    fn claim(&self) -> Cgroups {
        Cgroups::claim(self.survey(), "t").unwrap()
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn reasons(lacks: &[Lack]) -> Vec<(Controller, Reason)> {
    lacks.iter().map(|lack| (lack.controller, lack.reason.clone())).collect()
}

/// Runs `look` in a thread that is nobody.
fn as_nobody<T: Send>(look: impl FnOnce() -> T + Send) -> T {
    let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
    std::thread::scope(|scope| {
        let nobody = scope.spawn(|| {
            if rustix::process::geteuid().is_root() {
                set_thread_groups(&[]).unwrap();
                set_thread_res_gid(gid, gid, gid).unwrap();
                set_thread_res_uid(uid, uid, uid).unwrap();
            }
            look()
        });
        nobody.join().unwrap()
    })
}

#[test]
fn the_server_moves_into_a_leaf_before_controllers_are_enabled() {
    let fake = Fake::new("cpuset cpu io memory pids\n");
    let me = std::process::id().to_string();
    fs::write(fake.own().join("cgroup.procs"), &me).unwrap();
    let cgroups = fake.claim();
    assert_eq!(cgroups.lacks(), []);
    assert_eq!(read(&fake.own().join("forkyard-server/cgroup.procs")), me);
    for controller in Controller::LIMITING {
        assert_eq!(cgroups.offers(controller), Some(Version::V2));
    }
    for dir in [fake.own(), fake.own().join("forkyard-t")] {
        assert!(read(&dir.join("cgroup.subtree_control")).starts_with("+pids"));
    }
}

#[test]
fn nothing_moves_and_nothing_is_enabled_while_others_are_in_a_borrowed_group() {
    let fake = Fake::new("cpu memory pids\n");
    let text = format!("1\n{}\n", std::process::id());
    fs::write(fake.own().join("cgroup.procs"), text).unwrap();
    let cgroups = fake.claim();
    assert_eq!(cgroups.lacks().len(), 3);
    for (_, reason) in reasons(cgroups.lacks()) {
        assert!(matches!(reason, Reason::Occupied { pids, .. } if pids[0].0 == 1));
    }
    assert_eq!(read(&fake.own().join("forkyard-server/cgroup.procs")), "");
    assert_eq!(read(&fake.own().join("cgroup.subtree_control")), "");
}

#[test]
fn a_group_that_hands_controllers_on_already_is_left_alone() {
    let fake = Fake::new("cpu memory pids\n");
    fs::write(fake.own().join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
    fs::write(fake.own().join("cgroup.procs"), "1\n").unwrap();
    assert_eq!(fake.claim().lacks(), []);
    assert_eq!(read(&fake.own().join("cgroup.subtree_control")), "cpu memory pids\n");
}

#[test]
fn a_server_in_the_leaf_of_an_earlier_one_works_beside_it() {
    let fake = Fake::new("memory\n");
    let survey = fake.survey_from("/own/forkyard-server", "rw");
    assert_eq!(survey.places[0].dir, fake.own());
    assert_eq!(survey.places[0].tenure, Tenure::Borrowed);
}

#[test]
fn the_true_root_and_that_of_a_namespace_are_told_apart() {
    let fake = Fake::new("memory\n");
    fake.group("", &["cgroup.controllers"]);
    let tenure = |survey: Survey| survey.places[0].tenure;
    assert_eq!(tenure(fake.survey_from("/", "rw")), Tenure::Free);
    fs::write(fake.dir.path().join("cgroup.type"), "domain\n").unwrap();
    assert_eq!(tenure(fake.survey_from("/", "rw")), Tenure::NamespaceRoot);
}

#[test]
fn what_v2_does_not_hand_down_is_lacking_with_a_hint() {
    let fake = Fake::new("memory pids\n");
    let cgroups = fake.claim();
    let want = [(Controller::Cpu, Reason::NotHandedDown(fake.own()))];
    assert_eq!(reasons(cgroups.lacks()), want);
    let limits = Limits { cpus: Some(0.5), ..Limits::default() };
    let error = cgroups.check(&limits).unwrap_err();
    let own = fake.own();
    let text = format!(
        "limits need the cgroup controller cpu: not in cgroup.controllers of {}",
        own.display()
    );
    assert_eq!(error.to_string(), text);
    assert!(error.hint().is_some_and(|hint| hint.contains("systemctl edit user@.service")));
}

#[test]
fn a_kernel_without_the_control_file_is_found_out() {
    let fake = Fake::new("cpu memory pids\n");
    let file = fake.own().join("forkyard-t/cpu.max");
    fs::remove_file(&file).unwrap();
    assert_eq!(reasons(fake.claim().lacks()), [(Controller::Cpu, Reason::NoFile(file))]);
}

#[test]
fn threaded_groups_read_only_mounts_and_hidden_groups_offer_nothing() {
    let fake = Fake::new("cpu memory pids\n");
    let all = |survey: Survey| {
        assert_eq!(survey.places, []);
        reasons(&survey.lacks)
    };
    let lacking = |reason: &Reason| Controller::LIMITING.map(|c| (c, reason.clone()));
    let mut found = all(fake.survey_from("/own", "ro"));
    found.sort_by_key(|(controller, _)| *controller);
    assert_eq!(found, lacking(&Reason::ReadOnly(fake.own())));
    found = all(fake.survey_from("/../own", "rw"));
    assert_eq!(found, lacking(&Reason::OutOfSight));
    fs::write(fake.own().join("cgroup.type"), "threaded\n").unwrap();
    found = all(fake.survey());
    found.sort_by_key(|(controller, _)| *controller);
    assert_eq!(found, lacking(&Reason::Threaded(fake.own())));
}

#[test]
fn without_permission_limits_are_refused_and_sandboxes_run_without() {
    let fake = Fake::new("cpu memory pids\n");
    let cgroups = as_nobody(|| {
        if !rustix::process::geteuid().is_root() {
            // A run as a plain user owns the tree; then the modes have to tell.
            let _ = fs::set_permissions(
                fake.own(),
                std::os::unix::fs::PermissionsExt::from_mode(0o555),
            );
        }
        Cgroups::claim(fake.survey(), "t").unwrap()
    });
    // It has to be removed in the end.
    let _ = fs::set_permissions(fake.own(), std::os::unix::fs::PermissionsExt::from_mode(0o755));
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    let error = cgroups.create(&"0123456789ab".parse().unwrap(), &limits).unwrap_err();
    let own = fake.own();
    let text = format!(
        "limits need the cgroup controller memory: no permission to write {}",
        own.display()
    );
    assert_eq!(error.to_string(), text);
    assert!(error.hint().is_some_and(|hint| hint.contains("systemd-run --user --scope")));

    let group = cgroups.create(&"0123456789ab".parse().unwrap(), &Limits::default()).unwrap();
    assert_eq!(group.dirs(), []);
    assert_eq!(group.usage(), crate::model::Usage::default());
    assert_eq!(group.oom_kills().unwrap(), None);
    assert!(!group.freeze().unwrap());
    assert!(group.dir_fd().unwrap().is_none());
    group.attach(1).unwrap();
    group.kill().unwrap();
    group.try_remove().unwrap();
}

#[test]
fn this_host_offers_nothing_to_nobody_unless_delegated() {
    let survey = as_nobody(Survey::take).unwrap();
    // A plain user cannot become nobody, and may have groups of its own.
    if rustix::process::geteuid().is_root() {
        for place in &survey.places {
            assert_eq!(place.tenure, Tenure::Delegated, "{place:?}");
        }
    }
    if survey.places.is_empty() {
        assert_eq!(survey.lacks.len(), Controller::LIMITING.len(), "{survey:?}");
    }
}

#[test]
fn limits_are_written_as_v2_wants_them_and_lifted() {
    let fake = Fake::new("cpu memory pids\n");
    let cgroups = fake.claim();
    let files = ["memory.max", "memory.swap.max", "cpu.max", "pids.max"];
    let path = fake.group("own/forkyard-t/0123456789ab", &files);
    let mut group = Group::new("0123456789ab".to_owned());
    group.find_dir(&cgroups.seats[0]);
    let limits = Limits { memory: Some(64 << 20), cpus: Some(0.255), pids: Some(100) };
    let texts = |group: &Group| {
        assert_eq!(group.dirs()[0].path(), path);
        files.map(|name| {
            let text = read(&path.join(name));
            // Plain files keep what a shorter write does not cover.
            fs::write(path.join(name), "").unwrap();
            text
        })
    };
    cgroups.update(&mut group, &limits).unwrap();
    assert_eq!(texts(&group), ["67108864", "0", "25500 100000", "100"]);
    limits::set(&group, &limits).unwrap();
    assert_eq!(texts(&group), ["67108864", "0", "25500 100000", "100"]);
    limits::set(&group, &Limits::default()).unwrap();
    assert_eq!(texts(&group), ["", "", "", "4096"], "a new group has no limits to lift");
    limits::change(&group, &Limits::default()).unwrap();
    assert_eq!(texts(&group), ["max", "max", "max 100000", "4096"]);
}

#[test]
fn usage_is_read_from_v2_files() {
    let fake = Fake::new("cpu memory pids\n");
    let cgroups = fake.claim();
    let path = fake.group("own/forkyard-t/0123456789ab", &[]);
    let files = [
        ("memory.current", "4096\n"),
        ("memory.peak", "8192\n"),
        ("memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("cpu.stat", "usage_usec 77\nuser_usec 70\nsystem_usec 7\n"),
        ("pids.current", "5\n"),
    ];
    for (name, text) in files {
        fs::write(path.join(name), text).unwrap();
    }
    let mut group = Group::new("0123456789ab".to_owned());
    group.find_dir(&cgroups.seats[0]);
    let want = crate::model::Usage {
        memory: Some(4096),
        memory_peak: Some(8192),
        cpu_us: Some(77),
        pids: Some(5),
        oom_kills: Some(2),
    };
    assert_eq!(group.usage(), want);
    fs::remove_file(path.join("memory.peak")).unwrap();
    assert_eq!(group.usage(), crate::model::Usage { memory_peak: None, ..want });
}

#[test]
fn tags_that_are_no_part_of_a_name_are_refused() {
    for tag in ["", "a/b", "..", "a b", &"x".repeat(65)] {
        let survey = Survey { places: Vec::new(), lacks: Vec::new() };
        assert!(matches!(Cgroups::claim(survey, tag), Err(Error::BadTag(_))), "{tag}");
    }
}
