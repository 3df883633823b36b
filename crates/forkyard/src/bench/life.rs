//! One sandbox from create to delete, step by step, beside the floor and the peer.

use std::time::Instant;

use super::api::Api;
use super::floor::Probe;
use super::peers::AgentDocker;
use super::report::{Against, Goal, Report, Row};
use super::samples::{milliseconds, timed};
use super::server::Server;
use super::{WARM_UP, beside, check_interrupted};
use crate::error::Error;

/// Lines a life runs in its session after the first, and programs in them.
const ECHOES: usize = 5;
const TRUES: usize = 3;

/// The small file.
const FILE: &str = "/root/small";
const CONTENTS: [u8; 1024] = [b'x'; 1024];

/// Everything that has its turn in a round.
pub(super) struct Lives<'a> {
    pub(super) server: &'a Server,
    pub(super) image: Option<&'a str>,
    pub(super) floor: Probe,
    pub(super) peer: Option<&'a mut AgentDocker>,
}

/// Milliseconds of each step, over all rounds.
#[derive(Default)]
struct Times {
    create: Vec<f64>,
    first_echo: Vec<f64>,
    echo: Vec<f64>,
    program: Vec<f64>,
    exec: Vec<f64>,
    write: Vec<f64>,
    read: Vec<f64>,
    reset: Vec<f64>,
    reset_echo: Vec<f64>,
    delete: Vec<f64>,
}

impl Lives<'_> {
    /// Measures `rounds` lives and adds their rows.
    pub(super) fn measure(mut self, rounds: u32, report: &mut Report) -> Result<(), Error> {
        let mut api = self.server.connect()?;
        for _ in 0..WARM_UP {
            live(&mut api, self.image, &mut Times::default())?;
            self.floor.round()?;
        }
        if let Some(peer) = &mut self.peer {
            peer.life()?;
            peer.forget();
        }
        let (mut ours, mut floor) = (Times::default(), Vec::new());
        for _ in 0..rounds {
            check_interrupted()?;
            live(&mut api, self.image, &mut ours)?;
            floor.push(self.floor.round()?);
            if let Some(peer) = &mut self.peer {
                peer.life()?;
            }
        }
        self.report(ours, &floor, report);
        Ok(())
    }

    fn report(self, ours: Times, floor: &[f64], report: &mut Report) {
        let theirs = self.peer.map(AgentDocker::take).unwrap_or_default();
        let steps = [
            ("create", ours.create, Some(Goal::Faster(8.0)), "create"),
            ("create to the first echo", ours.first_echo.clone(), None, "first_echo"),
            ("echo in the session", ours.echo, Some(Goal::Faster(40.0)), "echo"),
            ("/bin/true in the session", ours.program, None, "program"),
            ("/bin/true as a command, streamed", ours.exec, None, ""),
            ("write a file of 1 KiB", ours.write, None, "write"),
            ("read a file of 1 KiB", ours.read, None, "read"),
            ("reset", ours.reset, Some(Goal::Faster(20.0)), "reset"),
            ("reset to the first echo", ours.reset_echo, None, "reset_echo"),
            ("delete", ours.delete, Some(Goal::Faster(8.0)), "delete"),
        ];
        for (name, times, goal, key) in steps {
            let row = Row::times(name, &times);
            let row = beside(row, Against::AgentDocker, theirs.get(key).cloned());
            report.add(match goal {
                Some(goal) => row.goal(goal),
                None => row,
            });
        }
        report.add(
            Row::times("create to the first echo, beside the floor", &ours.first_echo)
                .peer(Against::Floor, floor)
                .goal(Goal::Within(1.7)),
        );
    }
}

/// One life; adds what each step took.
fn live(api: &mut Api, image: Option<&str>, times: &mut Times) -> Result<(), Error> {
    let start = Instant::now();
    let sandbox = timed(&mut times.create, || api.create(image))?;
    let id = sandbox.id.as_str();
    api.line(id, "echo hello", "hello\n")?;
    times.first_echo.push(milliseconds(start.elapsed()));
    for _ in 0..ECHOES {
        timed(&mut times.echo, || api.line(id, "echo hello", "hello\n"))?;
    }
    for _ in 0..TRUES {
        timed(&mut times.program, || api.line(id, "/bin/true", ""))?;
    }
    timed(&mut times.exec, || api.exec(id))?;
    timed(&mut times.write, || api.write(id, FILE, &CONTENTS))?;
    let read = timed(&mut times.read, || api.read(id, FILE))?;
    if read != CONTENTS {
        return Err(Error::Protocol(format!("{FILE} came back with {} bytes", read.len())));
    }
    let start = Instant::now();
    timed(&mut times.reset, || api.reset(id))?;
    api.line(id, &format!("test ! -e {FILE} && echo hello"), "hello\n")?;
    times.reset_echo.push(milliseconds(start.elapsed()));
    timed(&mut times.delete, || api.delete(id))
}
