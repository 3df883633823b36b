//! What memory of a template counts to: a group of its own, whose limit is what its sandbox's leaves.
//!
//! It is not in the sandbox's own group: pages that clones share go on counting there for as long as
//! a clone lives, and the kernel could end a guest's process for want of memory that the template
//! took. Out of memory, a template is ended alone, and the fork has failed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cgroup::{Cgroups, Group, Version};
use crate::error::{Error, Result};
use crate::model::Limits;
use crate::sandbox::LiveSandbox;

/// A sandbox with less memory of its own than this, in bytes, and without a limit has no template
/// whose memory is worth an account: it is gone after milliseconds.
const WORTH: u64 = 8 << 20;

/// What a template has for itself, in bytes: a program, page tables, what it knows of processes.
const FOR_ITSELF: u64 = 16 << 20;

/// How long the end of a template that has ended for its server is waited for: all its memory is
/// given back meanwhile.
const END_WAIT: Duration = Duration::from_secs(10);

/// The account of one template.
#[derive(Debug)]
pub(crate) struct Account {
    group: Group,
    /// It was ended for want of memory.
    ran_out: AtomicBool,
    bounds: Mutex<Option<Bounds>>,
}

/// What a sandbox's limit leaves.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    used: u64,
    limit: u64,
}

/// What a template may have, and whether that is to be counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room(Option<Bounds>);

impl Room {
    /// Of a sandbox; `None` where nothing is counted.
    ///
    /// # Errors
    /// [`Error::ForkMemory`] where its limit leaves less than there is to be copied.
    pub(crate) fn beside(live: &LiveSandbox) -> Result<Option<Self>> {
        let Some((used, own)) = live.group().and_then(|group| group.held()) else {
            return Ok(None);
        };
        match live.info().spec.limits.memory {
            None if own < WORTH => Ok(None),
            None => Ok(Some(Self(None))),
            Some(limit) if own > limit.saturating_sub(used) => {
                Err(Error::ForkMemory { used, limit, copied: Some(own) })
            }
            Some(limit) => Ok(Some(Self(Some(Bounds { used, limit })))),
        }
    }

    fn limits(self) -> Limits {
        let left = |Bounds { used, limit }| limit.saturating_sub(used).saturating_add(FOR_ITSELF);
        Limits { memory: self.0.map(left), ..Limits::default() }
    }
}

impl Account {
    /// Opens one for a sandbox's template.
    pub(crate) fn open(cgroups: &Cgroups, live: &LiveSandbox, room: Room) -> Result<Arc<Self>> {
        let group = cgroups.create(live.id(), &room.limits())?;
        let bounds = Mutex::new(room.0);
        Ok(Arc::new(Self { group, ran_out: AtomicBool::new(false), bounds }))
    }

    /// Gives its template this room for the next picture.
    pub(crate) fn bound(&self, cgroups: &Cgroups, room: Room) -> Result<()> {
        let before = std::mem::replace(&mut *self.bounds(), room.0);
        if before.is_none() && room.0.is_none() {
            return Ok(());
        }
        Ok(cgroups.update(&mut self.group.clone(), &room.limits())?)
    }

    /// Lifts the limit: what making clones takes is theirs.
    pub(crate) fn unbound(&self, cgroups: &Cgroups) {
        if self.bounds().is_some()
            && let Err(error) = cgroups.update(&mut self.group.clone(), &Limits::default())
        {
            tracing::debug!(%error, "lifting the limit of a template");
        }
    }

    /// Paths of its group: in the unified hierarchy, and in others.
    pub(crate) fn paths(&self) -> (Option<String>, Vec<String>) {
        let paths = |version| {
            let dirs = self.group.dirs().iter().filter(move |dir| dir.version() == version);
            dirs.map(|dir| dir.path().to_string_lossy().into_owned())
        };
        (paths(Version::V2).next(), paths(Version::V1).collect())
    }

    /// Bytes that count to it now, all and without what can be read again from files.
    pub(crate) fn used(&self) -> (u64, u64) {
        let all = self.group.usage().memory.unwrap_or_default();
        (all, self.group.held().map_or(0, |(held, _)| held))
    }

    /// Its template has ended, or is about to.
    pub(crate) fn end(&self) {
        let kills = self.group.oom_kills().ok().flatten().unwrap_or_default();
        self.ran_out.store(kills > 0, Ordering::SeqCst);
        let group = self.group.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = group.remove(END_WAIT) {
                tracing::warn!(%error, "removing the group of a template");
            }
        });
    }

    /// Why its template ended in the middle of its work, where that was for want of memory.
    pub(crate) fn why(&self) -> Option<Error> {
        let Bounds { used, limit } =
            self.bounds().filter(|_| self.ran_out.load(Ordering::SeqCst))?;
        Some(Error::ForkMemory { used, limit, copied: None })
    }

    fn bounds(&self) -> MutexGuard<'_, Option<Bounds>> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
