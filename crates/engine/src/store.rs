//! The store's database: what exists and what happened, in SQLite.
//!
//! Every change of state is written before it is acted on. WAL with `synchronous=NORMAL`: a killed
//! server loses nothing, a host that loses power at most the last moments, and with it every
//! sandbox anyway.

mod keys;
mod snapshots;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::clock::now;
use crate::error::{Error, Result};
use crate::model::{Event, Sandbox, SandboxId, SandboxSpec, State};

/// Oldest events beyond this many are forgotten at start.
const EVENTS_KEPT: u32 = 100_000;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS sandboxes (
    id TEXT PRIMARY KEY, name TEXT UNIQUE, image TEXT NOT NULL, state TEXT NOT NULL, reason TEXT,
    created_at INTEGER NOT NULL, started_at INTEGER, ended_at INTEGER, deadline INTEGER,
    parent TEXT, pid INTEGER, spec TEXT NOT NULL, internal TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, sandbox TEXT NOT NULL,
    kind TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of ON events (sandbox);
CREATE TABLE IF NOT EXISTS images (
    name TEXT PRIMARY KEY, created_at INTEGER NOT NULL, image TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshots (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keys (
    hash TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT UNIQUE, created_at INTEGER NOT NULL
) WITHOUT ROWID;
";

/// A sandbox as it is stored: what users see, and what the engine needs besides.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) sandbox: Sandbox,
    /// JSON of [`crate::sandbox::Internal`].
    pub(crate) internal: String,
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Mutex<Connection>,
    /// Its write-ahead log.
    log: PathBuf,
}

impl Store {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::try_open(path).map_err(|error| match error {
            Error::Store(source) => Error::Database { path: path.to_owned(), source },
            error => error,
        })
    }

    fn try_open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "cache_size", -512)?;
        connection.execute_batch(SCHEMA)?;
        connection.execute(
            "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?1",
            [EVENTS_KEPT],
        )?;
        connection.set_prepared_statement_cache_capacity(32);
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Ok(Self { connection: Mutex::new(connection), log: log.into() })
    }

    /// A panic elsewhere leaves no half transaction: SQLite rolls it back.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a sandbox and the event of its creation.
    pub(crate) fn insert(&self, record: &Record) -> Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let Sandbox { id, name, image, state, created_at, deadline, parent, spec, .. } =
            &record.sandbox;
        transaction
            .prepare_cached(
                "INSERT INTO sandboxes (id, name, image, state, created_at, deadline, parent, \
                 spec, internal) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                id.as_str(),
                name,
                image,
                state.word(),
                *created_at as i64,
                deadline.map(|at| at as i64),
                parent.as_ref().map(SandboxId::as_str),
                to_json(spec)?,
                record.internal,
            ])?;
        add_event(&transaction, id, "create", image)?;
        transaction.commit()?;
        Ok(())
    }

    /// Writes what can change of a sandbox, and an event.
    pub(crate) fn update(&self, record: &Record, kind: &str, detail: &str) -> Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let sandbox = &record.sandbox;
        transaction
            .prepare_cached(
                // One that is being deleted no longer has its name.
                "UPDATE sandboxes SET state = ?2, reason = ?3, started_at = ?4, ended_at = ?5, \
                 deadline = ?6, pid = ?7, internal = ?8, \
                 name = CASE ?2 WHEN 'deleting' THEN NULL ELSE name END WHERE id = ?1",
            )?
            .execute(params![
                sandbox.id.as_str(),
                sandbox.state.word(),
                sandbox.reason,
                sandbox.started_at.map(|at| at as i64),
                sandbox.ended_at.map(|at| at as i64),
                sandbox.deadline.map(|at| at as i64),
                sandbox.pid,
                record.internal,
            ])?;
        add_event(&transaction, &sandbox.id, kind, detail)?;
        transaction.commit()?;
        Ok(())
    }

    /// Forgets a sandbox; its events stay.
    pub(crate) fn remove(&self, id: &SandboxId, detail: &str) -> Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        transaction
            .prepare_cached("DELETE FROM sandboxes WHERE id = ?1")?
            .execute([id.as_str()])?;
        add_event(&transaction, id, "delete", detail)?;
        transaction.commit()?;
        Ok(())
    }

    pub(crate) fn event(&self, id: &SandboxId, kind: &str, detail: &str) -> Result<()> {
        add_event(&self.lock(), id, kind, detail)
    }

    pub(crate) fn events(&self, id: &SandboxId) -> Result<Vec<Event>> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(
            "SELECT seq, at, sandbox, kind, detail FROM events WHERE sandbox = ?1 ORDER BY seq",
        )?;
        let rows = statement.query_map([id.as_str()], |row| {
            Ok(Event {
                seq: row.get::<_, i64>(0)? as u64,
                at: row.get::<_, i64>(1)? as u64,
                sandbox: SandboxId(row.get(2)?),
                kind: row.get(3)?,
                detail: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// All sandboxes, by age.
    pub(crate) fn sandboxes(&self) -> Result<Vec<Record>> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(
            "SELECT id, name, image, state, reason, created_at, started_at, ended_at, deadline, \
             parent, pid, spec, internal FROM sandboxes ORDER BY id",
        )?;
        let rows = statement.query_map([], record)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Adds an image, or replaces the one of that name.
    pub(crate) fn put_image(&self, name: &str, image: &str) -> Result<()> {
        self.lock()
            .prepare_cached(
                "INSERT OR REPLACE INTO images (name, created_at, image) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![name, now() as i64, image])?;
        Ok(())
    }

    pub(crate) fn image(&self, name: &str) -> Result<Option<String>> {
        Ok(self
            .lock()
            .prepare_cached("SELECT image FROM images WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?)
    }

    /// Name, time and JSON of every image.
    pub(crate) fn images(&self) -> Result<Vec<(String, u64, String)>> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached("SELECT name, created_at, image FROM images ORDER BY name")?;
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, row.get(2)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(crate) fn remove_image(&self, name: &str) -> Result<bool> {
        let removed =
            self.lock().prepare_cached("DELETE FROM images WHERE name = ?1")?.execute([name])?;
        Ok(removed > 0)
    }
}

fn add_event(connection: &Connection, id: &SandboxId, kind: &str, detail: &str) -> Result<()> {
    connection
        .prepare_cached("INSERT INTO events (at, sandbox, kind, detail) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![now() as i64, id.as_str(), kind, detail])?;
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let time = |i: usize| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(i)?.map(|t| t as u64));
    let spec: String = row.get(11)?;
    let bad = |i: usize, e: serde_json::Error| {
        rusqlite::Error::FromSqlConversionFailure(i, rusqlite::types::Type::Text, Box::new(e))
    };
    let spec: SandboxSpec = serde_json::from_str(&spec).map_err(|e| bad(11, e))?;
    let state: String = row.get(3)?;
    Ok(Record {
        sandbox: Sandbox {
            id: SandboxId(row.get(0)?),
            name: row.get(1)?,
            image: row.get(2)?,
            state: State::from_word(&state),
            reason: row.get(4)?,
            created_at: time(5)?.unwrap_or(0),
            started_at: time(6)?,
            ended_at: time(7)?,
            deadline: time(8)?,
            parent: row.get::<_, Option<String>>(9)?.map(SandboxId),
            pid: row.get(10)?,
            spec,
            usage: None,
        },
        internal: row.get(12)?,
    })
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Invalid(e.to_string()))
}

impl State {
    /// The state's name in the store and for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Resetting => "resetting",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Ended => "ended",
            Self::Deleting => "deleting",
        }
    }

    /// An unknown word, of a later version, counts as ended: nothing is done with it.
    fn from_word(word: &str) -> Self {
        use State::{Creating, Deleting, Paused, Resetting, Resuming, Running};
        [Creating, Running, Resetting, Paused, Resuming, Deleting]
            .into_iter()
            .find(|state| state.word() == word)
            .unwrap_or(Self::Ended)
    }
}
