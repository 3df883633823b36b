//! One command in a fresh sandbox: what a program that starts another waits for.

use std::process::{Command, Stdio};

use super::peers::Bubblewrap;
use super::report::{Against, Goal, Report, Row};
use super::samples::timed;
use super::server::Server;
use super::{WARM_UP, beside, check_interrupted};
use crate::error::Error;

/// The program that is run: it ends at once, with success.
const TRUE: &str = "/bin/true";

/// Measures `forkyard run -- /bin/true`, `bwrap ... /bin/true` and `/bin/true` in turn.
pub(super) fn measure(
    server: &Server,
    image: Option<&str>,
    bubblewrap: Option<&Bubblewrap>,
    rounds: u32,
    report: &mut Report,
) -> Result<(), Error> {
    let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..WARM_UP + rounds as usize {
        check_interrupted()?;
        if round == WARM_UP {
            ours.clear();
            theirs.clear();
            bare.clear();
        }
        let mut run = server.client();
        run.arg("run").args(image).arg("--").arg(TRUE);
        timed(&mut ours, || succeed(&mut run))?;
        if let Some(bubblewrap) = bubblewrap {
            timed(&mut theirs, || succeed(&mut bubblewrap.command(TRUE)))?;
        }
        timed(&mut bare, || succeed(&mut Command::new(TRUE)))?;
    }
    let row = Row::times("one command in a fresh sandbox (forkyard run)", &ours);
    let theirs = bubblewrap.map(|_| theirs);
    report.add(beside(row, Against::Bubblewrap, theirs).goal(Goal::Within(1.2)));
    report.add(Row::times("for comparison: /bin/true, bare", &bare));
    Ok(())
}

fn succeed(command: &mut Command) -> Result<(), Error> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.map_err(|e| Error::io(format!("run {command:?}"), e))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Protocol(format!("{command:?} ended with {status}")))
}
