//! Many sandboxes alive at the same time, each with an idle session.

use super::check_interrupted;
use super::memory;
use super::report::{Goal, Report, Row};
use super::samples::timed;
use super::server::Server;
use crate::error::Error;

/// How many.
const COUNT: usize = 500;

/// How many creates the first and the last are the median of.
const ENDS: usize = 15;

/// Most private memory of each, in bytes.
const EACH_MAX: f64 = 3.0 * 1024.0 * 1024.0;

/// Most that the last may take, as a multiple of the first.
const SLOWER_MAX: f64 = 1.5;

/// Makes the sandboxes, measures them and removes them again.
pub(super) fn measure(
    server: &Server,
    image: Option<&str>,
    report: &mut Report,
) -> Result<(), Error> {
    let mut api = server.connect()?;
    // The first of a server's life pays for what all share.
    for _ in 0..super::WARM_UP {
        let sandbox = api.create(image)?;
        api.delete(sandbox.id.as_str())?;
    }
    let before = memory::of_all(&server.processes())?;
    let available = memory::available()?;
    let mut creates = Vec::with_capacity(COUNT);
    let mut sandboxes = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        check_interrupted()?;
        let sandbox = timed(&mut creates, || api.create(image))?;
        // A session that was used: the server holds its pipes, the shell waits.
        api.line(sandbox.id.as_str(), "echo hello", "hello\n")?;
        sandboxes.push(sandbox);
    }
    let taken = available - memory::available()?;
    let grown = memory::of_all(&server.processes())?.private - before.private;
    let mut each = Vec::with_capacity(COUNT);
    for sandbox in &sandboxes {
        let pid = sandbox.pid.unwrap_or_default();
        match memory::of_all(&memory::tree(pid)) {
            Ok(memory) => each.push(memory.private + grown / COUNT as f64),
            Err(error) => {
                report.note(format!("memory of sandboxes: {error}; it takes root to see"));
                break;
            }
        }
    }
    let name = format!("{COUNT} alive: private memory of each, a share of the server's included");
    report.add(Row::bytes(name, &each).goal(Goal::AtMost(EACH_MAX)));
    let name = format!("{COUNT} alive: what the machine has less for each, kernel included");
    report.add(Row::bytes(name, &[taken / COUNT as f64]));
    let first: Vec<f64> = creates.iter().take(ENDS).copied().collect();
    let last: Vec<f64> = creates.iter().rev().take(ENDS).copied().collect();
    report.add(
        Row::times(format!("{COUNT} alive: create of the last {ENDS}, beside the first"), &last)
            .peer(super::Against::First, &first)
            .goal(Goal::Within(SLOWER_MAX)),
    );
    let mut deletes = Vec::with_capacity(COUNT);
    for sandbox in &sandboxes {
        timed(&mut deletes, || api.delete(sandbox.id.as_str()))?;
    }
    report.add(Row::times(format!("{COUNT} alive: delete"), &deletes));
    Ok(())
}
