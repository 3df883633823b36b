//! Many whole lives at the same time: create, one line, reset, delete.

use std::sync::Barrier;
use std::time::Instant;

use super::api::Api;
use super::peers::AgentDocker;
use super::report::{Against, Goal, Report, Row};
use super::samples::milliseconds;
use super::server::Server;
use super::{beside, check_interrupted};
use crate::error::Error;

/// The count that has a goal, and the goal.
const JUDGED: usize = 32;
const TIMES_FASTER: f64 = 6.0;

/// How often the peer may fail before it is left out.
const PEER_FAILURES: u32 = 5;

/// Measures how long `count` lives take that begin together.
pub(super) fn measure(
    server: &Server,
    image: Option<&str>,
    mut peer: Option<&mut AgentDocker>,
    count: usize,
    rounds: u32,
    report: &mut Report,
) -> Result<(), Error> {
    let (mut ours, mut theirs, mut failures) = (Vec::new(), Vec::new(), 0);
    all_at_once(server, image, count)?;
    for _ in 0..rounds {
        check_interrupted()?;
        ours.push(all_at_once(server, image, count)?);
        match peer.as_mut().map(|peer| peer.at_once(count)) {
            Some(Ok(time)) => theirs.push(time),
            // Some of its shells do not start when many do.
            Some(Err(error)) => {
                failures += 1;
                if failures == PEER_FAILURES {
                    let what = format!("agentdocker-lite did not get through {count} at once");
                    report.note(format!("{what}, {failures} times; at last: {error}"));
                    peer = None;
                }
            }
            None => {}
        }
    }
    let row = Row::times(format!("{count} whole lives at once"), &ours);
    let row =
        beside(row, Against::AgentDocker, peer.map(|_| theirs).filter(|theirs| !theirs.is_empty()));
    report.add(if count == JUDGED { row.goal(Goal::Faster(TIMES_FASTER)) } else { row });
    Ok(())
}

/// Milliseconds from the first request to the last answer.
fn all_at_once(server: &Server, image: Option<&str>, count: usize) -> Result<f64, Error> {
    let start_line = Barrier::new(count + 1);
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(count);
        for _ in 0..count {
            let mut api = server.connect()?;
            let start_line = &start_line;
            threads.push(scope.spawn(move || {
                start_line.wait();
                live(&mut api, image)
            }));
        }
        let start = Instant::now();
        start_line.wait();
        for thread in threads {
            let lived = thread.join();
            lived.map_err(|_| Error::Protocol("a thread of the bench panicked".to_owned()))??;
        }
        Ok(milliseconds(start.elapsed()))
    })
}

fn live(api: &mut Api, image: Option<&str>) -> Result<(), Error> {
    let sandbox = api.create(image)?;
    let id = sandbox.id.as_str();
    api.line(id, "echo hello", "hello\n")?;
    api.reset(id)?;
    api.delete(id)
}
