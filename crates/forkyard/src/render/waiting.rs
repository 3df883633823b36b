//! Requests that may take long.

use std::time::Duration;

use crate::error::Error;

/// What takes longer than this is told to be under way.
const LONG: Duration = Duration::from_secs(1);

/// Says what is waited for, on a terminal, when that takes long.
pub(crate) async fn waiting<T>(
    what: &'static str,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::pin!(request);
    if let Ok(done) = tokio::time::timeout(LONG, &mut request).await {
        return done;
    }
    let spinner = indicatif::ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = request.await;
    spinner.finish_and_clear();
    done
}
