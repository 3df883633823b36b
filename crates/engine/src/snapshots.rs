//! The snapshots of a store: which there are, what is known of them, who uses them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forkyard_guest::proto::{Layer, Setup};
use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;

use crate::error::{Error, Result};
use crate::model::{SandboxSpec, Snapshot, SnapshotId, SnapshotState};
use crate::sandbox::Internal;
use crate::store::Store;

/// What the store keeps of a snapshot, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What users see.
    pub(crate) snapshot: Snapshot,
    /// What its sandbox was asked to be.
    pub(crate) spec: SandboxSpec,
    /// What that was made of.
    pub(crate) internal: Internal,
    /// How it was set up; none until it is taken.
    pub(crate) setup: Option<Setup>,
}

/// A snapshot that the server knows.
#[derive(Debug)]
pub(crate) struct Entry {
    id: SnapshotId,
    kept: Mutex<Kept>,
    /// What of its files sandboxes share, once it was read.
    layers: Mutex<Vec<Layer>>,
    /// Held for reading by who makes sandboxes from it, and for writing by who removes it.
    pub(crate) used: RwLock<()>,
}

impl Entry {
    pub(crate) fn id(&self) -> &SnapshotId {
        &self.id
    }

    pub(crate) fn kept(&self) -> Kept {
        self.lock().clone()
    }

    pub(crate) fn info(&self) -> Snapshot {
        self.lock().snapshot.clone()
    }

    /// What is known of layers in its files.
    pub(crate) fn layers(&self) -> Vec<Layer> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn know_layers(&self, layers: &[Layer]) {
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = layers.to_vec();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Snapshots {
    store: Arc<Store>,
    all: Mutex<BTreeMap<SnapshotId, Arc<Entry>>>,
}

impl Snapshots {
    /// Reads what the store knows. A record that cannot be read, one of a later version, is left
    /// alone.
    pub(crate) fn open(store: Arc<Store>) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (id, record) in store.snapshots()? {
            match serde_json::from_str(&record) {
                Ok(kept) => drop(all.insert(id.clone(), entry(id, kept))),
                Err(error) => tracing::error!(snapshot = %id, %error, "unreadable record"),
            }
        }
        Ok(Self { store, all: Mutex::new(all) })
    }

    fn index(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, Arc<Entry>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, by age.
    pub(crate) fn list(&self) -> Vec<Arc<Entry>> {
        self.index().values().cloned().collect()
    }

    /// The snapshot of this id or name.
    pub(crate) fn find(&self, key: &str) -> Result<Arc<Entry>> {
        let index = self.index();
        let by_id = index.get(&SnapshotId(key.to_owned()));
        let has_name = |entry: &&Arc<Entry>| entry.lock().snapshot.name.as_deref() == Some(key);
        by_id
            .or_else(|| index.values().find(has_name))
            .cloned()
            .ok_or_else(|| Error::NoSnapshot(key.to_owned()))
    }

    /// Writes a snapshot down that is about to be taken.
    pub(crate) fn add(&self, kept: Kept) -> Result<Arc<Entry>> {
        let mut index = self.index();
        if let Some(name) = &kept.snapshot.name {
            let named = |entry: &&Arc<Entry>| entry.lock().snapshot.name.as_ref() == Some(name);
            let taken = index.values().find(named).map(|entry| entry.id.to_string());
            if let Some(by) = taken
                .or_else(|| index.contains_key(&SnapshotId(name.clone())).then(|| name.clone()))
            {
                return Err(Error::SnapshotNameTaken { name: name.clone(), by });
            }
        }
        let id = kept.snapshot.id.clone();
        self.store.put_snapshot(&id, &to_json(&kept)?)?;
        let entry = entry(id.clone(), kept);
        index.insert(id, Arc::clone(&entry));
        Ok(entry)
    }

    /// Changes what is known of one: written to the store first, then here.
    pub(crate) fn change(&self, entry: &Entry, change: impl FnOnce(&mut Kept)) -> Result<()> {
        let mut kept = entry.lock();
        let mut next = kept.clone();
        change(&mut next);
        self.store.put_snapshot(&entry.id, &to_json(&next)?)?;
        *kept = next;
        Ok(())
    }

    /// Forgets one. Its directory is the caller's to remove.
    pub(crate) fn forget(&self, entry: &Entry) -> Result<()> {
        self.index().remove(&entry.id);
        self.store.remove_snapshot(&entry.id)
    }

    /// Whether the store knows one by this id, also one whose record cannot be read.
    pub(crate) fn knows(&self, id: &str) -> Result<bool> {
        Ok(self.store.snapshots()?.iter().any(|(known, _)| known.as_str() == id))
    }
}

fn entry(id: SnapshotId, kept: Kept) -> Arc<Entry> {
    Arc::new(Entry {
        id,
        kept: Mutex::new(kept),
        layers: Mutex::default(),
        used: RwLock::default(),
    })
}

fn to_json(kept: &Kept) -> Result<String> {
    serde_json::to_string(kept).map_err(|e| Error::Invalid(e.to_string()))
}

impl Kept {
    pub(crate) fn is_ready(&self) -> bool {
        self.snapshot.state == SnapshotState::Ready
    }
}
