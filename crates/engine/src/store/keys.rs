//! Keys in the store's database.

use rusqlite::{OptionalExtension, params};

use super::Store;
use crate::error::Result;
use crate::model::Key;

impl Store {
    /// Adds a key, of whose secret this is the hash.
    pub(crate) fn put_key(&self, key: &Key, hash: &str) -> Result<()> {
        self.lock()
            .prepare_cached(
                "INSERT INTO keys (hash, id, name, created_at) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![hash, key.id, key.name, key.created_at as i64])?;
        Ok(())
    }

    /// All keys, by age.
    pub(crate) fn keys(&self) -> Result<Vec<Key>> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached("SELECT id, name, created_at FROM keys ORDER BY created_at, id")?;
        let rows = statement.query_map([], |row| {
            let created_at = row.get::<_, i64>(2)? as u64;
            Ok(Key { id: row.get(0)?, name: row.get(1)?, created_at })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether there is a key with a secret of this hash.
    pub(crate) fn has_key(&self, hash: &str) -> Result<bool> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached("SELECT 1 FROM keys WHERE hash = ?1")?;
        Ok(statement.query_row([hash], |_| Ok(())).optional()?.is_some())
    }

    /// Forgets a key.
    pub(crate) fn remove_key(&self, id: &str) -> Result<()> {
        self.lock().prepare_cached("DELETE FROM keys WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}
