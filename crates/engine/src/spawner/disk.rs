//! What a template is asked about snapshots on disk.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use forkyard_guest::proto::{
    Label, Layer, Paused, RestoreError, Restored, Setup, Source, SpawnerReply, SpawnerRequest,
    TakeReport, WriteReport,
};

use super::{Template, ask, confused};
use crate::error::{Error, Result};

impl Template {
    /// Copies what a sandbox wrote. `holder` is the end of a socket to its init.
    pub(crate) async fn take_files(
        &self,
        source: Source,
        holder: &OwnedFd,
    ) -> Result<(Setup, TakeReport)> {
        let request = |seq| SpawnerRequest::TakeFiles { seq, source };
        match ask(&self.link, request, &[holder.as_fd()]).await? {
            (SpawnerReply::Taken { setup, report, .. }, _) => Ok((*setup, report)),
            (SpawnerReply::NotTaken { why, .. }, _) => Err(Error::NotForked(why)),
            _ => Err(confused()),
        }
    }

    /// Writes what it has taken to a directory.
    pub(crate) async fn persist(&self, dir: &Path, label: Label) -> Result<WriteReport> {
        let dir = dir.to_string_lossy().into_owned();
        let request = |seq| SpawnerRequest::Persist { seq, dir, label };
        match ask(&self.link, request, &[]).await? {
            (SpawnerReply::Persisted { report, .. }, _) => Ok(report),
            _ => Err(confused()),
        }
    }

    /// Takes a sandbox's picture and writes it to a directory. Its processes stay stopped until
    /// this template is dropped.
    pub(crate) async fn pause(
        &self,
        source: Source,
        dir: &Path,
        label: Label,
        holder: &OwnedFd,
    ) -> Result<Paused> {
        let dir = dir.to_string_lossy().into_owned();
        let request = |seq| SpawnerRequest::Pause { seq, source, dir, label };
        match ask(&self.link, request, &[holder.as_fd()]).await? {
            (SpawnerReply::Paused { paused, .. }, _) => Ok(*paused),
            (SpawnerReply::NotTaken { why, .. }, _) => Err(Error::NotForked(why)),
            _ => Err(confused()),
        }
    }

    /// Reads a snapshot, to make sandboxes from it. Where it stays they share what of its files is
    /// large; what is `known` of that is not read again.
    pub(crate) async fn restore(
        &self,
        dir: &Path,
        ids: &str,
        known: Option<Vec<Layer>>,
    ) -> Result<Restored> {
        let (dir, ids) = (dir.to_string_lossy().into_owned(), ids.to_owned());
        let share = known.is_some();
        let known = known.unwrap_or_default();
        let request = |seq| SpawnerRequest::Restore { seq, dir, ids, known, share };
        match ask(&self.link, request, &[]).await? {
            (SpawnerReply::Restored { restored, .. }, _) => Ok(restored),
            (SpawnerReply::NotRestored { why, .. }, _) => Err(match why {
                RestoreError::Refused(why) => Error::NotRestored(why),
                RestoreError::Failed(failure) => Error::Kernel(failure),
            }),
            _ => Err(confused()),
        }
    }
}
