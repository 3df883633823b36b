//! Lines in a sandbox's session: one at a time, interrupted when their time is up.

use std::time::Duration;

use forkyard_guest::proto::{InitBody, InitOk};
use tokio::sync::watch;
use tokio::time::Instant;

use super::LiveSandbox;
use crate::error::{Error, Result};
use crate::model::SessionOutput;
use crate::session::{Collected, PATIENCE, Progress, Session};

impl LiveSandbox {
    /// Runs a line in the session and waits for its end. Lines wait for each other.
    pub async fn run_line(&self, line: &str, timeout: Option<Duration>) -> Result<SessionOutput> {
        if line.as_bytes().contains(&0) {
            return Err(Error::Invalid("command with a NUL byte".to_owned()));
        }
        self.check_running()?;
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut slot = self.session.lock().await;
        // Put back when it is known to be good: who hangs up in a line leaves none here.
        let mut session = self.live_session(slot.take()).await?;
        let ended = self.session_ended.subscribe();
        let mut collected = Collected::default();
        let over = wait_for_shell(ended, session.generation);
        tokio::pin!(over);
        let run = async {
            match session.settle(until).await? {
                Progress::Done(_) => {}
                other => return Ok(other),
            }
            if !session.start(line.as_bytes())? {
                return Ok(Progress::Gone);
            }
            session.wait(&mut collected, until).await
        };
        let result = tokio::select! {
            biased;
            result = run => match result? {
                // Its end is told before its pipes are closed.
                Progress::Gone => Err(over.await),
                other => Ok(other),
            },
            code = &mut over => Err(code),
        };
        match result {
            Ok(Progress::Done(status)) => {
                *slot = Some(session);
                let mut output = collected.told(status).await?;
                output.oom = status == 128 + 9 && self.had_oom();
                Ok(output)
            }
            Ok(_) => {
                let survived = self.interrupt(&mut session, &mut collected).await?;
                if survived {
                    *slot = Some(session);
                }
                let mut output = collected.told(124).await?;
                output.timed_out = true;
                output.shell_ended = !survived;
                Ok(output)
            }
            Err(code) => {
                self.check_running()?;
                // Its end may be heard of before its last words.
                session.drain_rest(&mut collected)?;
                let mut output = collected.told(code).await?;
                output.oom = code == 128 + 9 && self.had_oom();
                output.shell_ended = true;
                Ok(output)
            }
        }
    }

    /// Ends the line that runs; whether the shell survived it.
    async fn interrupt(&self, session: &mut Session, collected: &mut Collected) -> Result<bool> {
        let after = session.last_background;
        let tries = [false, true, true].map(|force| (force, PATIENCE));
        // A shell that runs a loop of its own in function after function: one trap leaves one.
        let more = [(true, Duration::from_millis(10)); 50];
        let end = Instant::now() + 6 * PATIENCE;
        for (force, patience) in tries.into_iter().chain(more) {
            if end <= Instant::now() {
                break;
            }
            self.ask(InitBody::Interrupt { after, force }, &[]).await?;
            match session.wait(collected, Some(Instant::now() + patience)).await? {
                Progress::Done(_) => return Ok(true),
                Progress::TimeUp => {}
                Progress::Gone => return Ok(false),
            }
        }
        self.ask(InitBody::EndSession, &[]).await?;
        Ok(false)
    }

    /// The session that is there, or one taken up from init, which starts a shell if need be.
    async fn live_session(&self, session: Option<Session>) -> Result<Session> {
        match session {
            Some(session) if session.generation > self.session_ended.borrow().0 => Ok(session),
            _ => {
                let (ok, fds) = self.ask(InitBody::Session, &[]).await?;
                let InitOk::Session { generation } = ok else { return Err(self.gone()) };
                // Only a shell that this server did not see start may have a line of another's.
                let stale = session.is_none();
                Session::new(generation, fds, stale)
            }
        }
    }

    /// Ends the session's shell; the next line gets a new one.
    pub async fn end_session(&self) -> Result<()> {
        self.ask(InitBody::EndSession, &[]).await?;
        self.session.lock().await.take();
        Ok(())
    }
}

/// Waits for the end of a shell, and gives its exit code.
async fn wait_for_shell(mut ended: watch::Receiver<(u32, i32)>, generation: u32) -> i32 {
    ended.wait_for(|(last, _)| *last >= generation).await.map_or(255, |end| end.1)
}
