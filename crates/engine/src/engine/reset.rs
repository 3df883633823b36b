//! Starting a sandbox again from its image.

use std::sync::Arc;

use forkyard_guest::proto::{InitBody, SEALED};

use super::{Engine, SETUP_WAIT};
use crate::error::{Error, Result};
use crate::model::State;
use crate::sandbox::{Internal, LiveSandbox};

impl Engine {
    /// Throws away everything that a sandbox did, and starts it again from its image.
    pub async fn reset(self: &Arc<Self>, live: &Arc<LiveSandbox>) -> Result<()> {
        let _turn = live.transition.lock().await;
        if live.state() != State::Running {
            return Err(live.wrong_state());
        }
        live.change("reset", "", |sandbox, _| sandbox.state = State::Resetting)?;
        self.reset_now(live).await
    }

    /// The reset of a sandbox that is written down as being reset. Done again, as by a server that
    /// did not hear of its end or did not come to write it down, it changes nothing.
    pub(crate) async fn reset_now(self: &Arc<Self>, live: &Arc<LiveSandbox>) -> Result<()> {
        live.let_template_go();
        let internal = live.internal();
        let old = self.layout.sandbox(live.id()).join(internal.generation_name());
        let next = Internal { generation: internal.generation + 1, ..internal };
        let reset = InitBody::Reset { generation: next.generation_name() };
        let done = match tokio::time::timeout(SETUP_WAIT, live.ask(reset, &[])).await {
            Ok(done) => done.map(drop),
            Err(_) => Err(Error::Invalid("resetting the sandbox took too long".to_owned())),
        };
        live.lose_everything();
        live.forget_session().await;
        if let Err(error) = done {
            // Half a reset is no sandbox.
            live.kill();
            return Err(error);
        }
        // No layer of it any more, if a fork that was cut off left one.
        self.layout.discard(&self.layout.sandbox(live.id()).join(SEALED))?;
        live.change_in_memory(|sandbox, internal| {
            sandbox.state = State::Running;
            internal.generation = next.generation;
            internal.bases.clear();
        });
        let (engine, live) = (Arc::clone(self), Arc::clone(live));
        self.behind(async move {
            engine.end_reset(&live, next.generation).await?;
            engine.layout.discard(&old)?;
            engine.release_bases(next.bases.iter().map(|base| &base.dir));
            engine.trash.sweep();
            Ok(())
        });
        Ok(())
    }

    /// Writes down that a reset is over, unless the sandbox has gone on to something else.
    async fn end_reset(&self, live: &LiveSandbox, generation: u32) -> Result<()> {
        let _turn = live.transition.lock().await;
        if live.state() == State::Running && live.internal().generation == generation {
            live.change("ready", "", |_, _| ())?;
        }
        Ok(())
    }
}
