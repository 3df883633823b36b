//! Names, ranges of ids, and who is about to leave them.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::error::{Error, Result};
use crate::ids::SLOTS;
use crate::model::{SandboxId, State};
use crate::sandbox::{Internal, LiveSandbox};
use crate::store::Record;

/// How long something is waited for that is as good as gone.
const LEAVE_WAIT: Duration = Duration::from_secs(2);

impl Engine {
    /// Takes a range of ids.
    pub(crate) fn reserve_slot(&self) -> Result<u32> {
        let mut index = self.index();
        let slot = (0..SLOTS)
            .find(|slot| !index.slots.contains(slot))
            .ok_or_else(|| Error::Invalid(format!("{SLOTS} sandboxes exist: no more ids")))?;
        index.slots.insert(slot);
        Ok(slot)
    }

    pub(crate) fn release_slot(&self, slot: u32) {
        self.index().slots.remove(&slot);
    }

    /// Takes a name for a sandbox, when need be from one that is about to leave.
    pub(super) async fn take_name(&self, id: &SandboxId, name: &str) -> Result<()> {
        match self.reserve_name(id, name) {
            Err(Error::NameTaken { .. }) => {
                self.wait_leaving(|live| live.info().name.as_deref() == Some(name)).await;
                self.reserve_name(id, name)
            }
            reserved => reserved,
        }
    }

    fn reserve_name(&self, id: &SandboxId, name: &str) -> Result<()> {
        let mut index = self.index();
        if let Some(by) = index.names.get(name) {
            return Err(Error::NameTaken { name: name.to_owned(), by: by.to_string() });
        }
        if name.parse::<SandboxId>().is_ok_and(|id| index.by_id.contains_key(&id)) {
            return Err(Error::NameTaken { name: name.to_owned(), by: name.to_owned() });
        }
        index.names.insert(name.to_owned(), id.clone());
        Ok(())
    }

    pub(super) fn release(&self, live: &LiveSandbox) {
        let mut index = self.index();
        index.by_id.remove(live.id());
        let record = live.record();
        index.slots.remove(&record.1.slot);
        if let Some(name) = &record.0.name
            && index.names.get(name) == Some(live.id())
        {
            index.names.remove(name);
        }
        drop((record, index));
        self.released.notify_waiters();
    }

    /// Waits for sandboxes that are on their way out, so that what their user was told is over
    /// stands in nobody's way: the end of a `run` is told before its sandbox is removed.
    pub async fn wait_leaving(&self, concerned: impl Fn(&LiveSandbox) -> bool) {
        let leaving = |live: &LiveSandbox| match live.state() {
            State::Deleting => true,
            State::Running if live.internal().ephemeral => {
                live.list_commands().iter().all(|command| command.info().exit.is_some())
            }
            _ => false,
        };
        let gone = async {
            loop {
                let released = self.released.notified();
                if !self.list().iter().any(|live| concerned(live) && leaving(live)) {
                    return;
                }
                released.await;
            }
        };
        // Too late is not wrong: whoever asked looks again.
        let _ = tokio::time::timeout(LEAVE_WAIT, gone).await;
    }

    /// Takes a sandbox up from the store.
    pub(crate) fn take_up(&self, record: &Record, internal: Internal) -> Arc<LiveSandbox> {
        let slot = internal.slot;
        let live = LiveSandbox::new(Arc::clone(&self.store), record.sandbox.clone(), internal);
        let mut index = self.index();
        index.slots.insert(slot);
        if let Some(name) = &record.sandbox.name {
            index.names.insert(name.clone(), live.id().clone());
        }
        index.by_id.insert(live.id().clone(), Arc::clone(&live));
        live
    }
}
