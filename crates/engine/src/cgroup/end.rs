//! Stopping, killing and removing the groups of a sandbox.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Controller, Dir, Error, Group, Result, Version, file};

/// Rounds of the v1 kill; each finds only what was forked during the one before, and forking
/// has been forbidden by then where there is the pids controller.
const KILL_ROUNDS: usize = 256;

/// How long freezing may take: processes stop at their next return to user space, those that
/// wait for a disk not before it answers.
const FREEZE_WAIT: Duration = Duration::from_millis(500);

/// How often to look at a group that is to become empty or frozen before pausing: a process
/// stops or dies within some 50 µs, which is less than the shortest sleep takes.
const EAGER_LOOKS: u32 = 12;

/// First and longest pause between two later looks. No file tells sooner: the kernel delays
/// notices of `cgroup.events` by up to 10 ms.
const PAUSE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(5));

/// Groups nested deeper are nobody's honest work; the kernel's own limit is not to be relied on.
const DEPTH: usize = 64;

impl Group {
    /// Stops all its processes, by `cgroup.freeze` (v2) or the v1 freezer, and waits until they
    /// are stopped, half a second at most. `false` where the host can do neither.
    ///
    /// When they do not stop in time they are left thawed and [`Error::Busy`] names them.
    pub fn freeze(&self) -> Result<bool> {
        let Some(dir) = self.freezer() else {
            return Ok(false);
        };
        dir.set_frozen(true)?;
        let frozen = wait(FREEZE_WAIT, || dir.is_frozen())?;
        if !frozen {
            dir.set_frozen(false)?;
            return Err(dir.busy("freeze"));
        }
        Ok(true)
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<()> {
        self.freezer().map_or(Ok(()), |dir| dir.set_frozen(false))
    }

    /// Sends SIGKILL to all its processes, nested groups included, frozen ones too. It does not
    /// wait until they are gone: [`Group::remove`] does.
    ///
    /// A killed group is to be removed, never used again: what is started in it may die at once.
    pub fn kill(&self) -> Result<()> {
        match self.unified() {
            Some(dir) => ok_if_gone(dir.kill()),
            None => self.kill_each(),
        }
    }

    /// As [`Group::kill`], also for processes that are in some of its directories only, as after
    /// an attach that was cut off.
    pub(super) fn kill_everywhere(&self) -> Result<()> {
        self.kill()?;
        if self.unified().is_some() { self.kill_each() } else { Ok(()) }
    }

    /// v1 has no call that kills a group: its processes are signalled one by one.
    fn kill_each(&self) -> Result<()> {
        if let Some(dir) = self.dir(Controller::Pids) {
            // Nothing in it may fork from now on.
            let _ = file::write(&dir.file("pids.max"), "0");
        }
        for dir in self.dirs.iter().filter(|dir| dir.version == Version::V1) {
            ok_if_gone(kill_listed(&dir.path))?;
        }
        // Frozen processes die when they are thawed.
        if let Some(dir) = self.dir(Controller::Freezer) {
            ok_if_gone(dir.set_frozen(false))?;
        }
        Ok(())
    }

    /// Removes its directories, with groups that someone made inside, in one attempt: does not
    /// wait. [`Error::Busy`] while there are processes; directories removed by then stay so, and
    /// the next attempt goes on with the others. What is gone already is no error.
    pub fn try_remove(&self) -> Result<()> {
        // v2 last: as long as it is there, what is left can be killed as one.
        self.dirs.iter().rev().try_for_each(Dir::remove)
    }

    /// As [`Group::try_remove`], trying again until `within` has passed. Blocks the thread.
    pub fn remove(&self, within: Duration) -> Result<()> {
        let mut busy = None;
        let done = wait(within, || match self.try_remove() {
            Err(error @ Error::Busy { .. }) => {
                busy = Some(error);
                Ok(false)
            }
            done => done.map(|()| true),
        })?;
        match busy {
            Some(error) if !done => Err(error),
            _ => Ok(()),
        }
    }

    fn freezer(&self) -> Option<&Dir> {
        self.unified().or_else(|| self.dir(Controller::Freezer))
    }
}

impl Dir {
    fn set_frozen(&self, frozen: bool) -> Result<()> {
        match (self.version, frozen) {
            (Version::V2, true) => file::write(&self.file("cgroup.freeze"), "1"),
            (Version::V2, false) => file::write(&self.file("cgroup.freeze"), "0"),
            (Version::V1, true) => file::write(&self.file("freezer.state"), "FROZEN"),
            (Version::V1, false) => file::write(&self.file("freezer.state"), "THAWED"),
        }
    }

    fn is_frozen(&self) -> Result<bool> {
        match self.version {
            Version::V2 => Ok(file::keyed(&self.file("cgroup.events"), "frozen")? == 1),
            Version::V1 => Ok(file::read(&self.file("freezer.state"))?.trim() == "FROZEN"),
        }
    }

    fn kill(&self) -> Result<()> {
        file::write(&self.file("cgroup.kill"), "1")
    }

    /// The common case, nothing nested, is one call.
    fn remove(&self) -> Result<()> {
        match ok_if_gone(file::rmdir(&self.path)) {
            Err(error) if error.is_busy() => {
                remove_nested(&self.path, DEPTH)?;
                match ok_if_gone(file::rmdir(&self.path)) {
                    Err(error) if error.is_busy() => Err(self.busy("remove")),
                    done => done,
                }
            }
            done => done,
        }
    }

    fn busy(&self, what: &'static str) -> Error {
        let mut pids = Vec::new();
        let _ = each_group(&self.path, DEPTH, &mut |dir| {
            pids.extend(file::procs(dir)?);
            Ok(())
        });
        Error::Busy { what, path: self.path.clone(), pids: file::named(pids) }
    }
}

/// Removes the groups below `dir` that can be removed.
fn remove_nested(dir: &Path, depth: usize) -> Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(());
    };
    for name in file::subdirs(dir)? {
        let nested = dir.join(name);
        remove_nested(&nested, depth)?;
        match ok_if_gone(file::rmdir(&nested)) {
            Err(error) if !error.is_busy() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Signals the processes of a v1 group and those nested in it until all that are left have been
/// signalled.
fn kill_listed(dir: &Path) -> Result<()> {
    let mut signalled = BTreeSet::new();
    for _ in 0..KILL_ROUNDS {
        let before = signalled.len();
        each_group(dir, DEPTH, &mut |dir| kill_group(dir, &mut signalled))?;
        if signalled.len() == before {
            return Ok(());
        }
    }
    Ok(())
}

/// A number read from `cgroup.procs` may belong to a stranger by the time it is used. A
/// descriptor does not change its owner: one that was opened before its number was listed
/// again is a member's, or a dead process's.
fn kill_group(dir: &Path, signalled: &mut BTreeSet<u32>) -> Result<()> {
    let mut fresh = Vec::new();
    for number in file::procs(dir)?.into_iter().filter(|number| !signalled.contains(number)) {
        let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
        if let Some(Ok(fd)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            fresh.push((number, fd));
        }
    }
    if fresh.is_empty() {
        return Ok(());
    }
    let members: BTreeSet<u32> = file::procs(dir)?.into_iter().collect();
    for (number, fd) in fresh {
        if members.contains(&number) && pidfd_send_signal(&fd, Signal::KILL).is_ok() {
            signalled.insert(number);
        }
    }
    Ok(())
}

/// Calls `visit` for `dir` and every group below it.
fn each_group(dir: &Path, depth: usize, visit: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    visit(dir)?;
    let Some(depth) = depth.checked_sub(1) else {
        return Ok(());
    };
    for name in file::subdirs(dir)? {
        ok_if_gone(each_group(&dir.join(name), depth, visit))?;
    }
    Ok(())
}

/// Asks until the answer is yes, which it returns, or `within` has passed.
fn wait(within: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<bool> {
    let start = Instant::now();
    let (mut pause, longest) = PAUSE;
    let mut looks = 0;
    loop {
        if ask()? {
            return Ok(true);
        }
        if start.elapsed() >= within {
            return Ok(false);
        }
        looks += 1;
        if looks < EAGER_LOOKS {
            yield_now();
            continue;
        }
        sleep(pause);
        pause = (pause * 2).min(longest);
    }
}

fn ok_if_gone(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if error.is_gone() => Ok(()),
        done => done,
    }
}
