//! Base groups of a test's own, and shells to be put into groups below them.

// A failure here is a failure of the test that uses it; not every test file uses everything.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use forkyard_engine::cgroup::{Cgroups, Controller, Group, Survey, Version};
use forkyard_engine::model::{Limits, SandboxId};

/// Far longer than anything here takes, for a machine under load.
pub const LONG: Duration = Duration::from_secs(20);

/// The base groups of one test, removed with all in them when it ends, failed or not.
pub struct Host {
    cgroups: Option<Cgroups>,
    pub what: &'static str,
}

impl Host {
    /// Servers of tests that run at once must not meet, so `test` is part of the tag.
    pub fn all(test: &str) -> Vec<Self> {
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

    pub fn new(what: &'static str, survey: Survey, tag: &str) -> Self {
        Self { cgroups: Some(Cgroups::claim(survey, tag).unwrap()), what }
    }

    pub fn cgroups(&self) -> &Cgroups {
        self.cgroups.as_ref().unwrap()
    }

    pub fn offers(&self, controller: Controller) -> bool {
        self.cgroups().offers(controller).is_some()
    }

    pub fn create(&self, limits: &Limits) -> Group {
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
pub struct Shell {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Shell {
    pub fn new(script: &str) -> Self {
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

    pub fn within(group: &Group, script: &str) -> Self {
        let mut shell = Self::new(script);
        group.attach(shell.pid()).unwrap();
        shell.say("go");
        shell
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits for the next line of its output.
    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn id(n: u32) -> SandboxId {
    format!("{n:012}").parse().unwrap()
}

pub fn remove(group: &Group) {
    group.remove(LONG).unwrap();
    for dir in group.dirs() {
        assert!(!dir.path().exists(), "{}", dir.path().display());
    }
}

pub fn paths(group: &Group) -> Vec<PathBuf> {
    group.dirs().iter().map(|dir| dir.path().to_owned()).collect()
}
