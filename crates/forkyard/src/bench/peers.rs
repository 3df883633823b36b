//! Peers that are measured in the same run, where this machine has them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde_json::json;

use crate::error::Error;

/// The program that drives agentdocker-lite.
const DRIVER: &str = include_str!("../../../../bench/agentdocker_lite.py");

/// The version that the goals are about.
const VERSION: &str = "0.0.3";

/// The Python that has agentdocker-lite; `python3` when not set.
const PYTHON: &str = "FORKYARD_BENCH_PYTHON";

/// bubblewrap, with the options that give what a sandbox of ours has.
#[derive(Debug)]
pub(super) struct Bubblewrap {
    root: PathBuf,
}

impl Bubblewrap {
    /// Finds it; else says how to get it. `root` is its root file system, the host's own if none.
    pub(super) fn find(root: Option<&str>) -> Result<Self, String> {
        let found = Self { root: PathBuf::from(root.unwrap_or("/")) };
        let status = found.command("/bin/true").stdin(Stdio::null()).status();
        match status {
            Ok(status) if status.success() => Ok(found),
            Ok(status) => Err(format!("bubblewrap does not work here: it ended with {status}")),
            Err(_) => Err("bubblewrap is not installed: apt-get install bubblewrap".to_owned()),
        }
    }

    /// Runs a program in a fresh sandbox.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("bwrap");
        command.args(["--unshare-all", "--ro-bind"]).arg(&self.root).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", program]);
        command
    }
}

/// agentdocker-lite in its Python, driven line by line: a request out, an answer back.
#[derive(Debug)]
pub(super) struct AgentDocker {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    times: BTreeMap<String, Vec<f64>>,
}

/// What the driver answers.
#[derive(Debug, Deserialize)]
struct Answer {
    /// Milliseconds of each step, one or more values each.
    #[serde(default)]
    times: BTreeMap<String, Vec<f64>>,
    /// What went wrong.
    error: Option<String>,
}

impl AgentDocker {
    /// Starts it; else says what it takes. Its state is kept below `directory`.
    pub(super) fn start(root: Option<&str>, directory: &Path) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("agentdocker-lite is left out: it is compared as root".to_owned());
        }
        let Some(root) = root else {
            return Err("agentdocker-lite is left out: it needs a root file system to work on; \
                        `debootstrap --variant=minbase bookworm DIR`, then --image DIR"
                .to_owned());
        };
        let python = std::env::var_os(PYTHON).unwrap_or_else(|| "python3".into());
        let mut child = Command::new(&python)
            .args(["-c", DRIVER, VERSION])
            .arg(std::fs::canonicalize(root).map_err(|e| format!("{root}: {e}"))?)
            .arg(directory.join("agentdocker-lite"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("agentdocker-lite is left out: {}: {e}", python.display()))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("agentdocker-lite is left out: no pipes".to_owned());
        };
        let answers = BufReader::new(answers);
        let requests = Some(requests);
        let mut started = Self { child, requests, answers, times: BTreeMap::new() };
        match started.ask(&json!({"do": "hello"})) {
            Ok(_) => Ok(started),
            Err(error) => Err(format!(
                "agentdocker-lite is left out: {error}; to have it, `python3 -m venv DIR` and \
                 `DIR/bin/pip install agentdocker-lite=={VERSION}`, then {PYTHON}=DIR/bin/python"
            )),
        }
    }

    /// One life; what its steps took is kept.
    pub(super) fn life(&mut self) -> Result<(), Error> {
        for (step, times) in self.ask(&json!({"do": "life"}))? {
            self.times.entry(step).or_default().extend(times);
        }
        Ok(())
    }

    /// Milliseconds that so many lives take that begin together.
    pub(super) fn at_once(&mut self, count: usize) -> Result<f64, Error> {
        let mut times = self.ask(&json!({"do": "at_once", "count": count}))?;
        let wall = times.remove("wall").and_then(|times| times.first().copied());
        wall.ok_or_else(|| Error::Protocol("agentdocker-lite: no time came back".to_owned()))
    }

    /// Forgets the times so far.
    pub(super) fn forget(&mut self) {
        self.times.clear();
    }

    /// Milliseconds of each step of all lives.
    pub(super) fn take(&mut self) -> BTreeMap<String, Vec<f64>> {
        std::mem::take(&mut self.times)
    }

    fn ask(&mut self, request: &serde_json::Value) -> Result<BTreeMap<String, Vec<f64>>, Error> {
        let broken = |e| Error::io("talk to agentdocker-lite", e);
        if let Some(requests) = &mut self.requests {
            // A driver that ended at once has said why.
            let _ = writeln!(requests, "{request}");
        }
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(broken)?;
        let answer: Answer = serde_json::from_str(&line)
            .map_err(|_| Error::Protocol(format!("its driver answered `{}`", line.trim())))?;
        match answer.error {
            Some(why) => Err(Error::Protocol(why)),
            None => Ok(answer.times),
        }
    }
}

impl Drop for AgentDocker {
    fn drop(&mut self) {
        // The driver ends with its stdin, after removing what it made.
        self.requests = None;
        let _ = self.child.wait();
    }
}
