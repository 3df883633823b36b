//! The place of the next sandbox, made ready while nobody waits for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forkyard_guest::proto::Place;

use crate::cgroup::{Cgroups, Group, Version};
use crate::engine::Engine;
use crate::error::Result;
use crate::ids::Mode;
use crate::model::{Limits, SandboxId};

/// How long after a sandbox the place of the next is made: whoever made that one has something to
/// ask of it first.
const PAUSE: Duration = Duration::from_millis(2);

/// Who the next sandbox will be, and the groups that its init waits in.
#[derive(Debug)]
pub(crate) struct Cradle {
    pub(crate) id: SandboxId,
    pub(crate) slot: u32,
    pub(crate) group: Group,
}

/// Where the next sandbox's place is kept.
#[derive(Debug, Default)]
pub(crate) struct Nursery(Mutex<Next>);

#[derive(Debug, Default)]
enum Next {
    #[default]
    Nothing,
    /// Somebody is making one.
    Coming,
    Ready(Cradle),
    /// The server ends: none is made any more.
    Closed,
}

impl Nursery {
    /// The place that is ready, if there is one.
    pub(crate) fn take(&self) -> Option<Cradle> {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *next) {
            Next::Ready(cradle) => Some(cradle),
            other => {
                *next = other;
                None
            }
        }
    }

    /// As [`Nursery::take`]; from now on there will be none.
    pub(crate) fn close(&self) -> Option<Cradle> {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *next, Next::Closed) {
            Next::Ready(cradle) => Some(cradle),
            _ => None,
        }
    }

    /// Whether it is up to the caller to make one.
    fn begin(&self) -> bool {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = matches!(*next, Next::Nothing);
        if nothing {
            *next = Next::Coming;
        }
        nothing
    }

    /// Gives the place back when it came too late.
    fn end(&self, made: Option<Cradle>) -> Option<Cradle> {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*next, made) {
            (Next::Coming, made) => {
                *next = made.map_or(Next::Nothing, Next::Ready);
                None
            }
            (_, made) => made,
        }
    }
}

impl Engine {
    /// Has the place of the next sandbox made soon, unless there is one.
    pub(crate) fn expect_another(self: &Arc<Self>) {
        if !self.nursery.begin() {
            return;
        }
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            let made = match engine.make_cradle().await {
                Ok(cradle) => Some(cradle),
                Err(error) => {
                    // The next sandbox is made in one go, and will tell.
                    tracing::debug!(%error, "preparing for the next sandbox");
                    None
                }
            };
            if let Some(late) = engine.nursery.end(made) {
                engine.remove_cradle(late);
            }
        });
    }

    async fn make_cradle(&self) -> Result<Cradle> {
        let id = SandboxId::new();
        let group = self.cgroups.create(&id, &Limits::default())?;
        let slot = match self.reserve_slot() {
            Ok(slot) => slot,
            Err(error) => {
                let _ = group.try_remove();
                return Err(error);
            }
        };
        let cradle = Cradle { id, slot, group };
        let prepared = self.spawner.prepare(place(&self.mode, slot, &cradle.group)).await;
        match prepared {
            Ok(()) => Ok(cradle),
            Err(error) => {
                self.remove_cradle(cradle);
                Err(error)
            }
        }
    }

    /// Removes a place that nobody will have, with who waits in it.
    pub(crate) fn remove_cradle(&self, cradle: Cradle) {
        self.release_slot(cradle.slot);
        let group = cradle.group;
        if let Err(error) = group.kill().and_then(|()| group.remove(Duration::from_millis(200))) {
            tracing::warn!(%error, "removing the groups of a sandbox that was not made");
        }
    }

    /// The groups of a new sandbox: those of its cradle, or new ones.
    pub(crate) fn groups(
        cgroups: &Cgroups,
        id: &SandboxId,
        limits: &Limits,
        cradle: Option<Group>,
    ) -> Result<Group> {
        let Some(mut group) = cradle else { return Ok(cgroups.create(id, limits)?) };
        if *limits != Limits::default()
            && let Err(error) = cgroups.update(&mut group, limits)
        {
            let _ = group.kill().and_then(|()| group.remove(Duration::from_millis(200)));
            return Err(error.into());
        }
        Ok(group)
    }
}

/// Where the init of a sandbox in these groups is put.
pub(crate) fn place(mode: &Mode, slot: u32, group: &Group) -> Place {
    let paths = |version| {
        let dirs = group.dirs().iter().filter(move |dir| dir.version() == version);
        dirs.map(|dir| dir.path().to_string_lossy().into_owned())
    };
    Place {
        cgroup2: paths(Version::V2).next(),
        cgroup1: paths(Version::V1).collect(),
        ids: mode.ids(slot),
    }
}
