//! The probe against the real host.

use std::fs;

use forkyard_sys::host::{Feature, Host, Presence};

#[test]
fn every_feature_gets_a_finding_and_nothing_stays_behind() {
    let store = tempfile::tempdir().expect("directory");
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let before = mounts();
    let host = Host::probe(store.path());
    let missing: Vec<_> =
        Feature::ALL.iter().filter(|feature| !host.findings.contains_key(feature)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let untried = host.findings.values().find(|found| found.detail.starts_with("could not be"));
    assert_eq!(untried, None);
    assert_eq!(fs::read_dir(store.path()).expect("list").count(), 0);
    assert_eq!(mounts(), before);
    assert_eq!(host.store.expect("store").directory, store.path());
}

#[test]
fn probing_again_gives_the_same_answer() {
    let store = tempfile::tempdir().expect("directory");
    let presences = || {
        let findings = Host::probe(store.path()).findings;
        findings.into_iter().map(|(feature, found)| (feature, found.presence)).collect::<Vec<_>>()
    };
    assert_eq!(presences(), presences());
}

#[test]
fn a_store_that_is_not_there_yet_is_judged_by_its_parent() {
    let parent = tempfile::tempdir().expect("directory");
    let host = Host::probe(&parent.path().join("a/b"));
    assert_eq!(host.store.expect("store").directory, parent.path());
    assert_eq!(fs::read_dir(parent.path()).expect("list").count(), 0);
}

#[test]
fn what_is_absent_and_required_is_the_verdict() {
    let mut host = Host::probe_quick();
    assert_eq!(host.verdict(), Ok(host.mode));
    let finding = host.findings.get_mut(&Feature::Seccomp).expect("seccomp");
    finding.presence = Presence::Absent;
    assert_eq!(host.verdict(), Err(vec![Feature::Seccomp]));
    assert!(!host.has(Feature::Seccomp));
}

#[test]
fn quick_probe_tries_no_namespace() {
    let host = Host::probe_quick();
    assert!(!host.findings.contains_key(&Feature::UserNamespace));
    assert!(host.has(Feature::Pidfd) && host.store.is_none());
}
