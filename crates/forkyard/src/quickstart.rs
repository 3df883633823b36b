//! `forkyard quickstart`: the main job done on this machine, shown step by step and checked.
//!
//! Every command that is shown is run as it is shown, by a shell, against a server and a store of
//! the quickstart's own; what is printed below it is what it printed. A step that does not show
//! what its title claims is told as `FAILED`, and the exit code is then 1.
//!
//! | part | what it does |
//! | --- | --- |
//! | [`stage`] | the temporary store, the server, and their end |
//! | [`tour`] | the steps |
//! | [`times`] | the last step: what each operation takes |
//! | [`screen`] | how it looks |

mod screen;
mod stage;
mod times;
mod tour;

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::Error;
use screen::Screen;
use stage::Stage;
use tour::Tour;

/// Longer than the slowest machine needs by far: a hang is told, and cleaned up behind.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs all steps; the exit code.
pub(crate) fn quickstart() -> Result<u8, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("start the quickstart", e))?;
    let stage = Stage::open()?;
    let mut tour = Tour::new(stage.clone(), Screen::of_stdout(), runtime.handle().clone());
    let outcome = runtime.block_on(async {
        let steps = tokio::task::spawn_blocking(move || tour.run());
        tokio::select! {
            done = steps => match done {
                Ok(outcome) => outcome,
                Err(error) => Err(Error::Protocol(format!("the quickstart broke off: {error}"))),
            },
            () = asked_to_end() => Err(Error::Interrupted),
            () = tokio::time::sleep(LIMIT) => Err(Error::Usage {
                what: format!("quickstart: not done after {} s", LIMIT.as_secs()),
                hint: Some("`forkyard doctor` checks this host".to_owned()),
            }),
        }
    });
    let closed = stage.close();
    // A step that hangs is not waited for.
    runtime.shutdown_background();
    let ended = outcome?;
    closed?;
    ended.print()?;
    Ok(u8::from(ended.failed > 0))
}

/// Ctrl-C, or SIGTERM: what was made is removed then, too.
async fn asked_to_end() {
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}
