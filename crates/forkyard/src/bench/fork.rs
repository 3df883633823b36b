//! Live forks of running programs, beside what CRIU takes for the same.
//!
//! CRIU is not run: its figures were measured on a machine with two processors (version 4.2, clone
//! into new namespaces with the original alive; dump and restore where that fails), and stand here
//! as they are.

use forkyard_engine::model::{Fork, Sandbox};

use super::api::Api;
use super::memory;
use super::report::{Against, Goal, Report, Row};
use super::samples::timed;
use super::server::Server;
use super::{check_interrupted, fork_files, milliseconds_of};
use crate::error::Error;

/// Clones of the request that tells what a further one takes.
const FURTHER: u32 = 5;

/// Clones that live at the same time.
const MANY: u32 = 100;

/// Most private memory of an idle one of many, in bytes.
const EACH_MAX: f64 = 3.0 * 1024.0 * 1024.0;

/// How much longer what has no root may take.
const ROOTLESS: f64 = 1.5;

/// A program that is forked while it runs.
struct Subject {
    name: &'static str,
    /// A line of the session that starts it, and says `ready` when it is.
    start: &'static str,
    /// A line that says `alive` where it runs.
    check: &'static str,
    /// What CRIU takes from the beginning of the dump to a running copy, in milliseconds.
    criu: Option<f64>,
    /// Most milliseconds to the first clone, and most that the original stands still.
    running: Option<f64>,
    stopped: f64,
}

const ALIVE: &str = "kill -0 $! && echo alive";

const SUBJECTS: [Subject; 6] = [
    Subject {
        name: "bash, idle",
        start: "echo ready",
        check: "echo alive",
        criu: Some(14.0),
        running: Some(4.0),
        stopped: 2.0,
    },
    Subject {
        name: "bash with a pipeline of three",
        start: "{ while :; do echo line; sleep 0.05; done | cat | cat >/tmp/lines; } & \
                until [ -s /tmp/lines ]; do sleep 0.01; done; echo ready",
        check: ALIVE,
        criu: Some(41.0),
        running: Some(8.0),
        stopped: 3.0,
    },
    Subject {
        name: "python HTTP server, 9 threads",
        start: concat!(
            "python3 -c '",
            include_str!("fork/server.py"),
            "' 9 & until [ -e /tmp/ready ]; do sleep 0.01; done; echo ready"
        ),
        check: ALIVE,
        criu: Some(52.0),
        running: Some(8.0),
        stopped: 3.0,
    },
    Subject {
        name: "python, 20 threads",
        start: concat!(
            "python3 -c '",
            include_str!("fork/threads.py"),
            "' 20 & until [ -e /tmp/ready ]; do sleep 0.01; done; echo ready"
        ),
        check: ALIVE,
        criu: None,
        running: None,
        stopped: 4.0,
    },
    Subject {
        name: "node HTTP server",
        start: concat!(
            "node -e '",
            include_str!("fork/server.js"),
            "' & until [ -e /tmp/ready ]; do sleep 0.01; done; echo ready"
        ),
        check: ALIVE,
        criu: Some(38.0),
        running: Some(12.0),
        stopped: 5.0,
    },
    Subject { start: HUNDRED, ..LARGE },
];

/// What many are made of, too.
const LARGE: Subject = Subject {
    name: "python holding 100 MiB",
    start: HUNDRED,
    check: ALIVE,
    criu: Some(222.0),
    running: Some(40.0),
    stopped: 4.0,
};

const HUNDRED: &str = concat!(
    "python3 -c '",
    include_str!("fork/large.py"),
    "' & until [ -e /tmp/ready ]; do sleep 0.01; done; echo ready"
);

/// Has the large one touch all its pages a number of times, and say how many milliseconds a pass
/// took.
const PASSES: &str = "echo 20 >/tmp/in; cat /tmp/out";

/// Measures `rounds` forks of each.
pub(super) fn measure(
    server: &Server,
    image: Option<&str>,
    rounds: u32,
    report: &mut Report,
) -> Result<(), Error> {
    let slower = if report.is_root() { 1.0 } else { ROOTLESS };
    let mut api = server.connect()?;
    for subject in &SUBJECTS {
        let mut times = Times::default();
        let mut done = Ok(());
        for _ in 0..super::WARM_UP {
            done = done.and_then(|()| round(&mut api, image, subject, &mut Times::default()));
        }
        for _ in 0..rounds {
            check_interrupted()?;
            done = done.and_then(|()| round(&mut api, image, subject, &mut times));
        }
        match done {
            Ok(()) => times.report(subject, slower, report),
            Err(Error::Server(error)) => {
                report.note(format!("{}: {}", subject.name, error.message));
            }
            Err(error) => return Err(error),
        }
    }
    many(&mut api, image, slower, report)?;
    fork_files::measure(&mut api, image, rounds, report)?;
    work_after(&mut api, image, report)
}

/// Milliseconds, over all rounds.
#[derive(Default)]
struct Times {
    stopped: Vec<f64>,
    /// From the request to the answer that says that the only clone runs.
    running: Vec<f64>,
    again: Vec<f64>,
    further: Vec<f64>,
}

impl Times {
    fn report(self, subject: &Subject, slower: f64, report: &mut Report) {
        let name = subject.name;
        let stopped = Row::times(format!("{name}: original stopped"), &self.stopped);
        report.add(stopped.goal(Goal::AtMost(subject.stopped * slower)));
        let mut running = Row::times(format!("{name}: first clone"), &self.running);
        if let Some(criu) = subject.criu {
            running = running.peer(Against::Criu, &[criu]);
        }
        report.add(match subject.running {
            Some(most) => running.goal(Goal::AtMost(most * slower)),
            None => running,
        });
        report.add(Row::times(format!("{name}: forked again"), &self.again));
        let further = Row::times(format!("{name}: each further clone"), &self.further);
        report.add(further.goal(Goal::AtMost(3.0 * slower)));
    }
}

/// A fresh source, forked once, again, and into several.
fn round(
    api: &mut Api,
    image: Option<&str>,
    subject: &Subject,
    times: &mut Times,
) -> Result<(), Error> {
    let source = start(api, image, subject)?;
    let id = source.id.as_str();
    let first = timed(&mut times.running, || api.fork(id, 1))?;
    times.stopped.push(milliseconds_of(first.report.stopped_us));
    finish(api, subject, &first)?;
    let again = timed(&mut times.again, || api.fork(id, 1))?;
    finish(api, subject, &again)?;
    let several = api.fork(id, FURTHER)?;
    let further = several.report.total_us.saturating_sub(several.report.running_us);
    times.further.push(milliseconds_of(further) / f64::from(FURTHER - 1));
    finish(api, subject, &several)?;
    api.delete(id)
}

fn start(api: &mut Api, image: Option<&str>, subject: &Subject) -> Result<Sandbox, Error> {
    let source = api.create(image)?;
    api.line(source.id.as_str(), subject.start, "ready\n")?;
    Ok(source)
}

/// Makes sure that clones live, and removes them.
fn finish(api: &mut Api, subject: &Subject, fork: &Fork) -> Result<(), Error> {
    for clone in &fork.clones {
        api.line(clone.id.as_str(), subject.check, "alive\n")?;
    }
    fork.clones.iter().try_for_each(|clone| api.delete(clone.id.as_str()))
}

/// Many clones of a large one.
fn many(api: &mut Api, image: Option<&str>, slower: f64, report: &mut Report) -> Result<(), Error> {
    let source = start(api, image, &LARGE)?;
    let mut time = Vec::new();
    let fork = timed(&mut time, || api.fork(source.id.as_str(), MANY))?;
    let trees = fork.clones.iter().filter_map(|clone| clone.pid).map(memory::tree);
    let each: Result<Vec<f64>, _> =
        trees.map(|tree| memory::of_all(&tree).map(|memory| memory.private)).collect();
    report.add(
        Row::times(format!("{}: {MANY} clones", LARGE.name), &time)
            .goal(Goal::AtMost(1500.0 * slower)),
    );
    match each {
        Ok(each) => report.add(
            Row::bytes(format!("{}: private memory of each of {MANY}", LARGE.name), &each)
                .goal(Goal::AtMost(EACH_MAX)),
        ),
        Err(error) => report.note(format!("memory of clones: {error}; it takes root to see")),
    }
    finish(api, &LARGE, &fork)?;
    api.delete(source.id.as_str())
}

/// How fast an original works after a fork, beside before.
fn work_after(api: &mut Api, image: Option<&str>, report: &mut Report) -> Result<(), Error> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let source = start(api, image, &LARGE)?;
    let id = source.id.as_str();
    for _ in 0..5 {
        api.output(id, PASSES)?;
        before.push(passes(api, id)?);
        let fork = api.fork(id, 1)?;
        // Once over all pages.
        api.output(id, PASSES)?;
        after.push(passes(api, id)?);
        finish(api, &LARGE, &fork)?;
    }
    report.add(
        Row::times("work of an original after its fork, pages touched", &after)
            .peer(Against::First, &before)
            .goal(Goal::Within(1.05)),
    );
    api.delete(id)
}

fn passes(api: &mut Api, id: &str) -> Result<f64, Error> {
    let text = api.output(id, PASSES)?;
    text.trim().parse().map_err(|_| Error::Protocol(format!("a pass took {text:?}")))
}
