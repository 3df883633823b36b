//! Snapshots in the store's database.

use rusqlite::params;

use super::Store;
use crate::error::{Error, Result};
use crate::model::SnapshotId;

impl Store {
    /// Adds a snapshot, or replaces what is known of it: `record` is JSON.
    pub(crate) fn put_snapshot(&self, id: &SnapshotId, record: &str) -> Result<()> {
        self.lock()
            .prepare_cached("INSERT OR REPLACE INTO snapshots (id, record) VALUES (?1, ?2)")?
            .execute(params![id.as_str(), record])?;
        Ok(())
    }

    /// Forgets a snapshot.
    pub(crate) fn remove_snapshot(&self, id: &SnapshotId) -> Result<()> {
        self.lock()
            .prepare_cached("DELETE FROM snapshots WHERE id = ?1")?
            .execute([id.as_str()])?;
        Ok(())
    }

    /// All snapshots, by age.
    pub(crate) fn snapshots(&self) -> Result<Vec<(SnapshotId, String)>> {
        let connection = self.lock();
        let mut statement =
            connection.prepare_cached("SELECT id, record FROM snapshots ORDER BY id")?;
        let rows = statement.query_map([], |row| Ok((SnapshotId(row.get(0)?), row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Waits until all that was written so far has reached the disk: the write-ahead log is where
    /// it is, unless it has been brought from there to the database, which syncs by itself.
    ///
    /// No lock is held meanwhile: see <https://sqlite.org/wal.html>.
    pub(crate) async fn flush(&self) -> Result<()> {
        let path = self.log.clone();
        let failed = || Error::io(format!("syncing {}", path.display()));
        let log = path.clone();
        let synced = tokio::task::spawn_blocking(move || std::fs::File::open(log)?.sync_all());
        synced.await.map_err(|e| failed()(e.into()))?.map_err(failed())
    }
}
