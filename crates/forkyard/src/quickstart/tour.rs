//! The steps. Each says what it shows, shows it, and checks that it is so.

use std::path::Path;
use std::time::{Duration, Instant};

use forkyard_engine::model::{Fork, ForkSpec, Sandbox};
use forkyard_sys::host::Feature;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::runtime::Handle;

use super::screen::{Screen, duration};
use super::stage::{Ran, Stage};
use super::times;
use crate::client::Url;
use crate::error::Error;

/// Sandboxes of the step that makes many at once.
const MANY: usize = 32;

/// How long a fork bomb may take to fill its sandbox, and a killed server to be gone.
const SOON: Duration = Duration::from_secs(10);

/// Walks through the steps.
#[derive(Debug)]
pub(super) struct Tour {
    stage: Stage,
    screen: Screen,
    runtime: Handle,
    steps: usize,
    failed: usize,
}

/// How it went.
#[derive(Debug)]
pub(super) struct Ended {
    took: Duration,
    steps: usize,
    pub(super) failed: usize,
}

/// Why a step does not show what it claims, or why it cannot be run at all.
enum Stop {
    Wrong(String),
    Broken(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

type Step = fn(&Tour) -> Result<(), Stop>;

impl Tour {
    pub(super) fn new(stage: Stage, screen: Screen, runtime: Handle) -> Self {
        Self { stage, screen, runtime, steps: 0, failed: 0 }
    }

    /// All steps. One that is wrong is told, and the next ones go on.
    pub(super) fn run(&mut self) -> Result<Ended, Error> {
        let start = Instant::now();
        let host = self.stage.host();
        let (kernel, mode) = (&host.kernel.release, host.mode);
        Screen::say(&format!("Sandboxes on this machine: Linux {kernel}, {mode}."))?;
        Screen::say(&format!(
            "Nothing is downloaded. All of it is in {}, and gone at the end.",
            self.stage.dir().display()
        ))?;
        let steps: [(&str, Step); 10] = [
            ("One command in a sandbox of its own, gone when the command is done", Self::run_once),
            ("A sandbox that stays, with this machine's own programs", Self::create),
            ("A session: what one line leaves behind, the next one finds", Self::session),
            ("Isolation: nothing of this machine but its programs", Self::isolation),
            ("The server is killed; sandboxes, commands and sessions live on", Self::takeover),
            ("Limits: a memory hog and a fork bomb harm nobody else", Self::limits),
            ("Break everything, then reset", Self::reset),
            ("Many at once", Self::many),
            ("What each operation takes, through the server", Self::times),
            ("Live fork: a running program, four times over", Self::fork),
        ];
        for (title, step) in steps {
            self.steps += 1;
            self.screen.title(self.steps, title)?;
            match step(self) {
                Ok(()) => {}
                Err(Stop::Wrong(why)) => {
                    self.failed += 1;
                    self.screen.failure(&why)?;
                }
                Err(Stop::Broken(error)) => return Err(error),
            }
        }
        Ok(Ended { took: start.elapsed(), steps: self.steps, failed: self.failed })
    }

    // Showing.

    /// Runs a line of shell and shows it.
    fn show(&self, line: &str) -> Result<Ran, Stop> {
        self.screen.command(line)?;
        let ran = self.stage.shell(line)?;
        self.screen.result(line, ran.took, &ran.output)?;
        Ok(ran)
    }

    /// The same, of a line that must succeed.
    fn show_ok(&self, line: &str) -> Result<String, Stop> {
        let ran = self.show(line)?;
        check(ran.code == 0, || format!("exit code {}, not 0", ran.code))?;
        Ok(ran.output)
    }

    fn remark(&self, text: &str) -> Result<(), Stop> {
        Ok(self.screen.remark(text)?)
    }

    fn inspect(&self, id: &str) -> Result<Sandbox, Stop> {
        Ok(self.runtime.block_on(self.stage.client().get(Url::sandbox(id)))?)
    }

    // Steps.

    fn run_once(&self) -> Result<(), Stop> {
        self.says("forkyard run -- echo hello", "hello\n")?;
        self.remark("that started the server, too; it runs now")?;
        self.says("forkyard run -- echo hello", "hello\n")
    }

    fn create(&self) -> Result<(), Stop> {
        let id = self.show_ok("forkyard create --name box")?;
        check(id.trim().len() == 12, || format!("no id: {id}"))?;
        let has = |program: &str| Path::new("/usr/bin").join(program).exists();
        if has("python3") {
            return self.says("forkyard exec box -- python3 -c 'print(6 * 7)'", "42\n");
        }
        self.says("forkyard exec box -c 'echo $((6 * 7))'", "42\n")
    }

    fn session(&self) -> Result<(), Stop> {
        let define = "forkyard exec -s box -c 'cd /tmp; greet() { echo \"$1 from $PWD\"; }'";
        self.says(define, "")?;
        self.says("forkyard exec -s box -c 'greet hello'", "hello from /tmp\n")
    }

    fn isolation(&self) -> Result<(), Stop> {
        if let Some(home) = std::env::home_dir().filter(|home| home.is_dir()) {
            let here = names(&home);
            let ran = self.show(&format!("forkyard exec box -- ls -A {}", quoted(&home)))?;
            let seen = here.iter().find(|name| ran.output.lines().any(|line| line == *name));
            check(seen.is_none(), || format!("{seen:?} of {} is seen", home.display()))?;
            self.remark(&format!("your home: {} files here, none of them there", here.len()))?;
        }
        let out = self.show_ok("forkyard exec box -c 'echo /proc/[0-9]*'")?;
        let (here, there) = (pids(), out.split_whitespace().count());
        check((1..=5).contains(&there), || format!("{there} processes in a fresh sandbox"))?;
        self.remark(&format!("{here} processes here, its own {there} there"))?;

        self.says("forkyard exec box -- ls /sys/class/net", "lo\n")?;
        self.remark("no network but its own loopback")?;

        self.says("forkyard exec box -- id -un", "root\n")?;
        let pid = self.inspect("box")?.pid.unwrap_or_default();
        let out = self.show_ok(&format!("grep Uid: /proc/{pid}/status"))?;
        let outside = out.split_whitespace().nth(1).and_then(|id| id.parse::<u32>().ok());
        let outside = outside.ok_or_else(|| Stop::Wrong("no user of its init".to_owned()))?;
        check(outside != 0, || "root inside is root outside".to_owned())?;
        self.remark(&if rustix::process::geteuid().as_raw() == outside {
            format!("root inside is you outside, uid {outside}: it has your rights at most")
        } else {
            format!("root inside is uid {outside} outside: nobody")
        })
    }

    fn fork(&self) -> Result<(), Stop> {
        let count = "i=0; while :; do i=$((i + 1)); echo $i >/tmp/count; sleep 0.01; done";
        self.stage.shell("forkyard create --name counter")?;
        self.show_ok(&format!("forkyard exec -d counter -c '{count}'"))?;
        let line = "forkyard fork counter -n 4 --name try";
        self.screen.command(line)?;
        let start = Instant::now();
        let spec = ForkSpec { count: Some(4), name: Some("try".to_owned()) };
        let url = Url::sandbox("counter").part("fork");
        let fork: Fork = self.runtime.block_on(self.stage.client().post(url, &spec))?;
        self.screen.result(line, start.elapsed(), "")?;
        let report = &fork.report;
        self.remark(&format!(
            "{} processes: the original stood still for {}, all four ran after {}",
            report.processes,
            duration(Duration::from_micros(report.stopped_us)),
            duration(Duration::from_micros(report.total_us)),
        ))?;
        let read = "for n in 1 2 3 4; do forkyard exec try-$n -- cat /tmp/count; done | xargs";
        let counts = |text: String| -> Vec<u64> {
            text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        let (before, after) = (counts(self.show_ok(read)?), counts(self.show_ok(read)?));
        let all_count = before.iter().zip(&after).filter(|(before, after)| before < after).count();
        check(all_count == 4, || format!("{all_count} of four count on"))?;
        self.remark("each counts on by itself, with memory and files of its own")?;
        let removed = self.stage.shell("forkyard rm counter try-1 try-2 try-3 try-4")?;
        check(removed.code == 0, || format!("removing the clones: {}", removed.output))
    }

    fn takeover(&self) -> Result<(), Stop> {
        let line = "forkyard exec -d box -c 'for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done'";
        let number = self.show_ok(line)?.trim().to_owned();
        let health = self.runtime.block_on(self.stage.health())?;
        let health = health.ok_or_else(|| Stop::Wrong("no server runs".to_owned()))?;
        let kill = format!("kill -9 {}", health.pid);
        self.screen.command(&kill)?;
        let start = Instant::now();
        let pid = Pid::from_raw(health.pid.cast_signed());
        let pid = pid.ok_or_else(|| Stop::Wrong("the server has no process id".to_owned()))?;
        rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .and_then(|server| {
                rustix::process::pidfd_send_signal(&server, Signal::KILL)?;
                // Readable once it is gone, pidfd_open(2).
                let mut fds = [PollFd::new(&server, PollFlags::IN)];
                let limit = Timespec { tv_sec: SOON.as_secs() as i64, tv_nsec: 0 };
                poll(&mut fds, Some(&limit))
            })
            .map_err(|e| Error::io("kill the server", e.into()))?;
        self.screen.result(&kill, start.elapsed(), "")?;
        self.remark("the next command starts a server that takes over")?;
        let out = self.show_ok(&format!("forkyard logs -f box {number} | tr '\\n' ' '; echo"))?;
        check(out.trim_end() == "1 2 3 4 5 6", || format!("output was lost: {out}"))?;
        self.says("forkyard exec -s box -c 'greet \"still here\"'", "still here from /tmp\n")
    }

    fn limits(&self) -> Result<(), Stop> {
        if !self.stage.host().has(Feature::CgroupWritable) {
            return self.remark(
                "left out: this user may make no control groups; `forkyard doctor` tells how",
            );
        }
        self.show_ok("forkyard create --name small --memory 64m --pids 64")?;
        let ran = self.show("forkyard exec small -- tail /dev/zero")?;
        check(ran.code == 137, || format!("exit code {}, not 137", ran.code))?;
        self.says("forkyard exec small -- echo alive", "alive\n")?;

        self.show_ok(
            "forkyard exec -d small -c 'b() { b | b & }; while b; do :; done 2>/dev/null'",
        )?;
        let start = Instant::now();
        let mut most = 0;
        while most < 60 && start.elapsed() < SOON {
            let usage = self.inspect("small")?.usage.unwrap_or_default();
            most = most.max(usage.pids.unwrap_or_default());
        }
        check(most >= 60, || format!("the bomb has {most} processes, not 64"))?;
        check(most <= 64, || format!("{most} processes, more than 64"))?;
        self.remark(&format!(
            "the bomb got {most} processes, of the 64 that the sandbox may have"
        ))?;
        self.show_ok("forkyard rm -f small").map(drop)
    }

    fn reset(&self) -> Result<(), Stop> {
        // Without root, programs belong to somebody who is nobody inside: they stay even there.
        let root = rustix::process::geteuid().is_root();
        let (what, proof, code) =
            if root { ("/usr/bin", "env", 127) } else { ("/etc", "cat /etc/passwd", 1) };
        let here = names(Path::new(what)).len();
        let count = format!("forkyard exec box -c 'ls {what} | wc -l'");
        let before = self.show_ok(&count)?;
        self.show_ok(&format!("forkyard exec box -- rm -rf {what}"))?;
        let ran = self.show(&format!("forkyard exec box -- {proof}"))?;
        check(ran.code == code, || format!("exit code {}, not {code}", ran.code))?;
        self.show_ok("forkyard reset box")?;
        self.says(&count, &before)?;
        let now = names(Path::new(what)).len();
        check(now == here, || format!("{what} of this machine had {here} files and has {now}"))?;
        self.remark(&format!("all there again; this machine's own {what} was never touched"))
    }

    fn many(&self) -> Result<(), Stop> {
        let line = format!("for i in $(seq {MANY}); do forkyard run -- hostname & done; wait");
        let out = self.show_ok(&line)?;
        let mut hosts: Vec<&str> = out.lines().collect();
        hosts.sort_unstable();
        hosts.dedup();
        check(hosts.len() == MANY, || format!("{} hosts, not {MANY}", hosts.len()))
    }

    fn times(&self) -> Result<(), Stop> {
        let times = self.runtime.block_on(times::measure(&self.stage.client()))?;
        for (name, value) in [
            ("create, ready for commands", times.create),
            ("`echo` in its session", times.builtin),
            ("`/bin/true` in its session", times.program),
            ("reset, ready again", times.reset),
            ("delete", times.delete),
            ("create, run /bin/true, delete", times.run),
        ] {
            Screen::row(name, value)?;
        }
        if cfg!(debug_assertions) {
            self.remark("built without optimisation: `cargo run --release` is faster")?;
        }
        Ok(())
    }

    /// Shows a line that must print exactly this.
    fn says(&self, line: &str, wanted: &str) -> Result<(), Stop> {
        let out = self.show_ok(line)?;
        check(out == wanted, || format!("it does not print {wanted:?} alone"))
    }
}

impl Ended {
    /// The verdict, and where to go from here.
    pub(super) fn print(&self) -> Result<(), Error> {
        let took = duration(self.took);
        Screen::say("")?;
        if self.failed > 0 {
            return Screen::say(&format!(
                "{} of {} steps FAILED, in {took}. `forkyard doctor` checks this machine.",
                self.failed, self.steps
            ));
        }
        Screen::say(&format!(
            "All {} steps showed what they claim, in {took}. Server, sandboxes and files are gone.",
            self.steps
        ))?;
        Screen::say(
            "\nNext:\n\
             \x20 cargo install --path crates/forkyard     puts `forkyard` on your PATH\n\
             \x20 forkyard run -it -- bash                 a shell in a sandbox of your own\n\
             \x20 forkyard image pull alpine               images from a registry\n\
             \x20 forkyard doctor                          what this machine offers\n\
             \x20 forkyard help, README.md, docs/          all the rest",
        )
    }
}

fn check(holds: bool, why: impl FnOnce() -> String) -> Result<(), Stop> {
    if holds { Ok(()) } else { Err(Stop::Wrong(why())) }
}

/// Names in a directory of this machine; none where it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Processes of this machine that we may see.
fn pids() -> usize {
    names(Path::new("/proc")).iter().filter(|name| name.parse::<u32>().is_ok()).count()
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
