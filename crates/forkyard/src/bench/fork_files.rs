//! Live forks of sandboxes with many files, beside one that wrote none.

use forkyard_engine::model::SnapshotSpec;

use super::api::Api;
use super::report::{Against, Goal, Report, Row};
use super::samples::timed;
use super::{check_interrupted, milliseconds_of};
use crate::error::Error;

/// Makes 50,000 files.
const WRITE: &str = "mkdir /many && cd /many && for d in $(seq 50); do mkdir $d && \
                     for f in $(seq 1000); do echo $f >$d/$f; done; done; echo ready";

/// Says `alive` where these are.
const CHECK: &str = "[ -s /many/50/1000 ] && echo alive";

/// Forks of the one that wrote them, which take long.
const FEW: u32 = 3;

/// The snapshot's name.
const NAME: &str = "many-files";

/// Measures `rounds` forks of a sandbox that was made with many files, and some of one that wrote
/// them.
pub(super) fn measure(
    api: &mut Api,
    image: Option<&str>,
    rounds: u32,
    report: &mut Report,
) -> Result<(), Error> {
    let (mut wrote, mut stopped) = (Vec::new(), Vec::new());
    let source = api.create(image)?;
    let id = source.id.as_str();
    api.line(id, WRITE, "ready\n")?;
    for _ in 0..FEW {
        check_interrupted()?;
        let report = forked(api, id, CHECK, &mut wrote)?;
        stopped.push(milliseconds_of(report));
    }
    let spec = SnapshotSpec { name: Some(NAME.to_owned()), files_only: false, wait: true };
    api.snapshot(id, &spec)?;
    api.delete(id)?;

    let (mut fresh, mut given) = (Vec::new(), Vec::new());
    let empty = api.create(image)?;
    let full = api.create_from(NAME)?;
    for _ in 0..rounds {
        check_interrupted()?;
        forked(api, empty.id.as_str(), "echo alive", &mut fresh)?;
        forked(api, full.id.as_str(), CHECK, &mut given)?;
    }
    api.delete(empty.id.as_str())?;
    api.delete(full.id.as_str())?;
    api.remove_snapshot(NAME)?;

    report.add(Row::times("50,000 files, written: original stopped", &stopped));
    for (name, times) in [("written", &wrote), ("of a snapshot", &given)] {
        let row = Row::times(format!("50,000 files, {name}: first clone"), times);
        report.add(row.peer(Against::Fresh, &fresh).goal(Goal::Within(2.0)));
    }
    Ok(())
}

/// Forks one into one; how long it stood still, in microseconds.
fn forked(api: &mut Api, id: &str, check: &str, times: &mut Vec<f64>) -> Result<u64, Error> {
    let fork = timed(times, || api.fork(id, 1))?;
    for clone in &fork.clones {
        api.line(clone.id.as_str(), check, "alive\n")?;
        api.delete(clone.id.as_str())?;
    }
    Ok(fork.report.stopped_us)
}
