//! The template of a sandbox's last fork, which is kept for some time where the sandbox has much
//! memory: the next fork copies only what was written since.
//!
//! It has nothing of the sandbox but these copies, and descriptors that tell what is written. Who
//! takes a picture of the sandbox has it alone: nobody else can mark memory meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::LiveSandbox;
use crate::account::Account;
use crate::spawner::Template;

/// How long after a fork it is kept: long enough for who forks again and again, and not longer,
/// for it has memory.
const KEPT: Duration = Duration::from_secs(10);

/// How often it is looked whether the sandbox needs the memory itself.
const LOOK: Duration = Duration::from_millis(500);

/// Where it is kept.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    idle: Arc<Mutex<Option<Idle>>>,
    /// Counts what takes away the memory that it has copies of.
    losses: AtomicU64,
    /// Counts forks that it was kept after.
    forks: AtomicU64,
    /// What its memory counts to, from its start to its end.
    account: std::sync::Mutex<Weak<Account>>,
}

#[derive(Debug)]
struct Idle {
    template: Template,
    /// After which fork.
    fork: u64,
}

/// The right to take a picture, with the template of the last one.
#[derive(Debug)]
pub(crate) struct Turn {
    slot: OwnedMutexGuard<Option<Idle>>,
    losses: u64,
}

impl Turn {
    /// The template of the last picture, if it is there yet.
    pub(crate) fn template(&mut self) -> Option<Template> {
        self.slot.take().map(|idle| idle.template).filter(Template::is_alive)
    }
}

impl LiveSandbox {
    /// Waits until nobody else takes a picture or makes clones of one. To be asked for before
    /// `transition`.
    pub(crate) async fn template_turn(&self) -> Turn {
        let losses = self.keeper.losses.load(Ordering::SeqCst);
        let slot = Arc::clone(&self.keeper.idle).lock_owned().await;
        Turn { slot, losses }
    }

    /// The same; there is no template then, and nothing is marked for one.
    pub(crate) async fn without_template(&self) -> Turn {
        let mut turn = self.template_turn().await;
        if let Some(template) = turn.template() {
            template.end().await;
        }
        turn
    }

    /// Keeps the template that took the last picture for the next one.
    pub(crate) async fn keep_template(self: &Arc<Self>, mut turn: Turn, template: Template) {
        if template.keep().await.is_err() {
            return;
        }
        let fork = self.keeper.forks.fetch_add(1, Ordering::Relaxed);
        let losses = turn.losses;
        *turn.slot = Some(Idle { template, fork });
        drop(turn);
        if self.keeper.losses.load(Ordering::SeqCst) != losses {
            self.let_template_go();
        }
        let live = Arc::downgrade(self);
        let until = Instant::now() + KEPT;
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                // Who has it now keeps it again.
                let Some(live) = live.upgrade() else { return };
                let Ok(mut slot) = live.keeper.idle.try_lock() else { return };
                if slot.as_ref().is_none_or(|idle| idle.fork != fork) {
                    return;
                }
                if Instant::now() >= until || live.is_over_limit() {
                    slot.take();
                }
            }
        });
    }

    /// Whether it and its template hold more memory together than it may have.
    fn is_over_limit(&self) -> bool {
        let (Some(limit), Some(account)) = (self.info().spec.limits.memory, self.account()) else {
            return false;
        };
        let held = self.group().and_then(|group| group.held()).map_or(0, |(held, _)| held);
        held.saturating_add(account.used().1) > limit
    }

    /// Has the memory of its template count to this.
    pub(crate) fn set_account(&self, account: Option<&Arc<Account>>) {
        let weak = account.map(Arc::downgrade).unwrap_or_default();
        *self.keeper.account.lock().unwrap_or_else(PoisonError::into_inner) = weak;
    }

    /// What the memory of its template counts to, where there is one.
    pub(super) fn account(&self) -> Option<Arc<Account>> {
        self.keeper.account.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// Has no template any more: what it has copies of is gone.
    pub(crate) fn let_template_go(&self) {
        self.keeper.losses.fetch_add(1, Ordering::SeqCst);
        // Who has it now does not keep it.
        if let Ok(mut slot) = self.keeper.idle.try_lock() {
            slot.take();
        }
    }
}
