//! Private parts that every request goes through, open to `benches/`.

use std::path::Path;

use crate::error::Result;
use crate::model::{Sandbox, SandboxId, SessionOutput};
use crate::session::Collected;
use crate::store::{Record, Store};

/// The rows of sandboxes in a store's database.
#[derive(Debug)]
pub struct Rows(Store);

impl Rows {
    /// Opens a database, or makes it.
    pub fn open(path: &Path) -> Result<Self> {
        Store::open(path).map(Self)
    }

    /// What is written before a sandbox is made; `internal` is JSON of the engine's own.
    pub fn insert(&self, sandbox: &Sandbox, internal: &str) -> Result<()> {
        self.0.insert(&record(sandbox, internal))
    }

    /// What is written when a sandbox's state changes.
    pub fn update(&self, sandbox: &Sandbox, internal: &str) -> Result<()> {
        self.0.update(&record(sandbox, internal), "start", "")
    }

    /// What is written when a sandbox is gone.
    pub fn remove(&self, id: &SandboxId) -> Result<()> {
        self.0.remove(id, "")
    }

    /// Reads all rows, as a server does when it starts; how many there are.
    pub fn read(&self) -> Result<usize> {
        Ok(self.0.sandboxes()?.len())
    }
}

fn record(sandbox: &Sandbox, internal: &str) -> Record {
    Record { sandbox: sandbox.clone(), internal: internal.to_owned() }
}

/// Makes the answer of what a session's line wrote to stdout.
pub fn session_output(stdout: Vec<u8>) -> SessionOutput {
    Collected::of(stdout).into_output(0)
}
