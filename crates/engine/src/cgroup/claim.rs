//! Making our base group in each hierarchy, and having v2 hand its controllers on to it.

use std::path::Path;

use super::survey::{SERVER_LEAF, limiting};
use super::{Controller, Lack, Place, Reason, Result, Seat, Survey, Tenure, Version, file};

/// Processes may be born in our group while we empty it; after so many rounds someone there is
/// faster than we are.
const ROUNDS: usize = 16;

/// Makes the base group `base` in all places of the survey; what fails is one more lack.
pub(super) fn claim(survey: Survey, base: &str) -> (Vec<Seat>, Vec<Lack>) {
    let mut lacks = survey.lacks;
    let mut seats = Vec::new();
    for place in survey.places {
        let path = place.dir.join(base);
        let made = match place.version {
            Version::V1 => make(&path).map(|()| Vec::new()),
            Version::V2 => hand_on(&place).and_then(|mut lost| {
                make(&path)?;
                lost.extend(enable(&path, &place.controllers));
                Ok(lost)
            }),
        };
        let mut lost = match made {
            Ok(lost) => lost,
            Err(error) => {
                let reason = Reason::Failed(error.to_string());
                lacks.extend(lacking(&place.controllers, &reason));
                continue;
            }
        };
        for &controller in &place.controllers {
            if let Some(reason) = missing_file(&path, place.version, controller) {
                lost.push(Lack { controller, reason });
            }
        }
        let mut controllers = place.controllers;
        controllers.retain(|controller| lost.iter().all(|lack| lack.controller != *controller));
        for lack in lost {
            // The first reason is the cause of the others.
            if !lacks.iter().any(|known| known.controller == lack.controller) {
                lacks.push(lack);
            }
        }
        seats.push(Seat { version: place.version, controllers, base: path });
    }
    lacks.retain(|lack| Controller::LIMITING.contains(&lack.controller));
    (seats, lacks)
}

/// Enables the controllers of a v2 place for the groups below it, which first must have no
/// processes. Returns those that could not be.
///
/// Nothing is enabled while there are some, although cpu and pids could be: the kernel would
/// turn our group into the root of a threaded subtree, where no sandbox can be.
fn hand_on(place: &Place) -> Result<Vec<Lack>> {
    let enabled = limiting(&place.dir.join("cgroup.subtree_control"));
    if place.controllers.iter().all(|controller| enabled.contains(controller)) {
        return Ok(Vec::new());
    }
    let others = if place.tenure == Tenure::Free { Vec::new() } else { empty(place)? };
    if !others.is_empty() {
        let reason = Reason::Occupied { dir: place.dir.clone(), pids: file::named(others) };
        return Ok(lacking(&place.controllers, &reason));
    }
    Ok(enable(&place.dir, &place.controllers))
}

/// Moves the processes of our group into a leaf, all or none. Returns those that are not ours
/// to move, or that keep coming.
fn empty(place: &Place) -> Result<Vec<u32>> {
    let me = std::process::id();
    let movable = |pid: u32| pid == me || (pid != 0 && place.tenure != Tenure::Borrowed);
    let leaf = place.dir.join(SERVER_LEAF);
    let mut pids = file::procs(&place.dir)?;
    for _ in 0..ROUNDS {
        if pids.is_empty() || !pids.iter().all(|pid| movable(*pid)) {
            break;
        }
        make(&leaf)?;
        for pid in pids {
            // One of the others may have ended meanwhile; if not, the next round tells.
            let moved = file::write(&leaf.join("cgroup.procs"), &pid.to_string());
            if pid == me {
                moved?;
            }
        }
        pids = file::procs(&place.dir)?;
    }
    pids.retain(|pid| *pid != me);
    Ok(pids)
}

/// Enables each controller by itself, so that one that cannot be (cpu, while there are realtime
/// processes) does not keep the others off.
fn enable(dir: &Path, controllers: &[Controller]) -> Vec<Lack> {
    let enable_one = |&controller: &Controller| {
        let error =
            file::write(&dir.join("cgroup.subtree_control"), &format!("+{controller}")).err()?;
        Some(Lack { controller, reason: Reason::Failed(error.to_string()) })
    };
    controllers.iter().filter_map(enable_one).collect()
}

fn lacking(controllers: &[Controller], reason: &Reason) -> Vec<Lack> {
    controllers.iter().map(|&controller| Lack { controller, reason: reason.clone() }).collect()
}

/// The control file that a kernel built without limits by `controller` does not have. The base
/// group has the same files as those to be made below it.
fn missing_file(base: &Path, version: Version, controller: Controller) -> Option<Reason> {
    let name = match (version, controller) {
        (Version::V1, Controller::Memory) => "memory.limit_in_bytes",
        (Version::V2, Controller::Memory) => "memory.max",
        (Version::V1, Controller::Cpu) => "cpu.cfs_quota_us",
        (Version::V2, Controller::Cpu) => "cpu.max",
        (_, Controller::Pids) => "pids.max",
        (_, Controller::CpuAcct) => "cpuacct.usage",
        (_, Controller::Freezer) => "freezer.state",
    };
    let path = base.join(name);
    (!path.exists()).then_some(Reason::NoFile(path))
}

/// Makes a group, or finds it made by an earlier server.
fn make(dir: &Path) -> Result<()> {
    match file::mkdir(dir) {
        Err(error) if !error.is_exists() => Err(error),
        _ => Ok(()),
    }
}
