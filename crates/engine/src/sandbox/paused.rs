//! A sandbox that loses its init, and gets another.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::LiveSandbox;
use crate::error::{Error, Result};

impl LiveSandbox {
    /// Waits until its init, which was killed, is gone, and all who wait for it have been told.
    pub(crate) async fn wait_gone(&self, within: Duration) -> Result<()> {
        self.reaped(within).await?;
        if tokio::time::timeout(within, self.wait_ended()).await.is_err() {
            let failed = Error::io(format!("waiting for the end of sandbox {}", self.id()));
            return Err(failed(std::io::ErrorKind::TimedOut.into()));
        }
        Ok(())
    }

    /// Makes it ready for another init, as it was when it was new.
    pub(crate) async fn revive(&self) {
        self.ended.send_replace(false);
        self.forget_session().await;
        self.foreign.store(false, Ordering::Relaxed);
        self.pidfd.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.record().1.oom_kills = 0;
    }
}
