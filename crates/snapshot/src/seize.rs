//! Stopping all processes of a sandbox, and letting them go on.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use forkyard_sys::ptrace::{self, Change, Reaper};
use forkyard_sys::remote::{self, Kind};
use forkyard_sys::{process, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use crate::error::{Context, Error, Result};
use crate::interrupted::hide_stop;
use crate::proc::{self, Stat, refuse};

/// How long threads may take to stop. Only one that waits for a disk, or for a child that it made
/// with vfork(2), takes more than microseconds, or one that gets no processor on a busy machine.
const STOP: Duration = Duration::from_millis(300);

/// After this long it is asked why a thread does not stop.
const LATE: Duration = Duration::from_millis(1);

/// How long a child of vfork(2) may take to its program while all else is stopped.
const START: Duration = Duration::from_millis(50);

/// How long it may take until all processes that come up are found.
const SETTLE: Duration = Duration::from_secs(1);

/// A stopped thread.
#[derive(Clone, Copy, Debug)]
struct Thread {
    process: Pid,
    stopped: bool,
    /// Why its process had stopped before, if it had.
    job_control: Option<i32>,
}

/// Whom to stop.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    /// Every process below an init, but for those that are none of the sandbox's.
    Below(Pid, Vec<Pid>),
    /// One process.
    One(Pid),
}

impl Scope {
    /// Processes, in the order of a walk from the top.
    pub(crate) fn walk(&self) -> Vec<Pid> {
        let (init, leave) = match self {
            Self::Below(init, leave) => (*init, leave),
            Self::One(pid) => return vec![*pid],
        };
        let mut found = vec![init];
        // A process may be met twice, where its parent ends meanwhile.
        let mut known = HashSet::from([init]);
        known.extend(leave);
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            next += 1;
            let Ok(tids) = proc::numbers(pid, "task") else { continue };
            for tid in tids {
                // A thread or process that is gone has no children any more.
                let Ok(text) = proc::read(pid, &format!("task/{tid}/children")) else { continue };
                let text = String::from_utf8_lossy(&text);
                let children = text
                    .split_ascii_whitespace()
                    .filter_map(|word| Pid::from_raw(word.parse().ok()?))
                    .filter(|child| known.insert(*child));
                found.extend(children);
            }
        }
        found.remove(0);
        found
    }
}

/// Processes, all of their threads stopped; dropping it lets them go on.
#[derive(Debug)]
pub(crate) struct Tree {
    scope: Scope,
    threads: HashMap<Pid, Thread>,
    zombies: HashSet<Pid>,
    events: OwnedFd,
    /// Processes whose stop for job control was taken back for as long as they are traced.
    to_stop: RefCell<HashSet<Pid>>,
    /// All threads are what they shall be when they go on.
    settled: bool,
    /// While threads are still being seized.
    reaper: Option<Reaper>,
}

/// A process of a stopped tree, by its id on the host.
#[derive(Clone, Debug)]
pub(crate) struct Stopped {
    pub(crate) pid: Pid,
    /// Its threads' ids on the host, the leader first; none of a zombie.
    pub(crate) threads: Vec<Pid>,
    /// The signal that had stopped it for job control.
    pub(crate) job_control: Option<i32>,
}

impl Tree {
    /// Stops all threads of these processes.
    pub(crate) fn stop(scope: Scope) -> Result<Self> {
        let events = signal::child_events().context(|| "signalfd".to_owned())?;
        let mut tree = Self {
            scope,
            threads: HashMap::new(),
            zombies: HashSet::new(),
            events,
            to_stop: RefCell::default(),
            settled: false,
            reaper: Some(ptrace::reap_meanwhile().context(|| "setitimer".to_owned())?),
        };
        let end = Instant::now() + SETTLE;
        loop {
            // What was born while the others were being stopped is found in the next round, or
            // told by its parent's stop.
            let found = tree.seize_new()?;
            tree.wait_all()?;
            if !found {
                break;
            }
            if Instant::now() > end {
                return Err(Error::Unsteady("new processes come without an end".to_owned()));
            }
        }
        tree.reaper = None;
        Ok(tree)
    }

    /// Lets all go on, where what the stop did to each was undone.
    pub(crate) fn let_go(mut self) {
        self.settled = true;
    }

    /// Whether a thread is gone: SIGKILL, or another thread that ends or executes its process, does
    /// not wait for one that is stopped.
    pub(crate) fn has_lost_any(&self) -> bool {
        self.threads.keys().any(|tid| is_gone(*tid))
    }

    /// Notes a process that is sent SIGSTOP again when all are let go: nobody sends it SIGCONT
    /// before.
    pub(crate) fn stop_later(&self, pid: Pid) {
        self.to_stop.borrow_mut().insert(pid);
    }

    /// Whether it is.
    pub(crate) fn is_to_stop(&self, pid: Pid) -> bool {
        self.to_stop.borrow().contains(&pid)
    }

    /// The processes, parents before their children.
    pub(crate) fn processes(&self) -> Vec<Stopped> {
        let mut by_process: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for (&tid, thread) in &self.threads {
            by_process.entry(thread.process).or_default().push(tid);
        }
        let stopped = |pid: Pid| {
            let mut threads = by_process.remove(&pid).unwrap_or_default();
            threads.sort_by_key(|tid| (*tid != pid, tid.as_raw_nonzero()));
            let job_control = self.threads.get(&pid).and_then(|leader| leader.job_control);
            Stopped { pid, threads, job_control }
        };
        self.scope.walk().into_iter().map(stopped).collect()
    }

    /// Seizes threads that are not yet known, and tells whether there were any.
    fn seize_new(&mut self) -> Result<bool> {
        let mut found = false;
        for pid in self.scope.walk() {
            if self.zombies.contains(&pid) {
                continue;
            }
            for tid in proc::numbers(pid, "task").unwrap_or_default() {
                let Some(tid) = Pid::from_raw(tid.cast_signed()) else { continue };
                if !self.threads.contains_key(&tid) {
                    found |= self.seize(pid, tid)?;
                }
            }
        }
        Ok(found)
    }

    /// A thread that is traced, or about to be, does not keep another from being seized.
    fn watch(&self, tid: Pid) -> Result<()> {
        let watched = self.reaper.as_ref().map_or(Ok(()), |reaper| reaper.watch(tid));
        watched.context(|| "counting threads".to_owned())
    }

    fn seize(&mut self, process: Pid, tid: Pid) -> Result<bool> {
        self.watch(tid)?;
        if let Err(error) = ptrace::seize(tid, ptrace::FOLLOW) {
            return self.unseizable(process, tid, error);
        }
        ptrace::interrupt(tid).or_else(gone).context(|| "PTRACE_INTERRUPT".to_owned())?;
        self.threads.insert(tid, Thread { process, stopped: false, job_control: None });
        Ok(true)
    }

    /// A thread that cannot be seized is gone, is a zombie, or is traced by somebody else.
    fn unseizable(&mut self, process: Pid, tid: Pid, error: std::io::Error) -> Result<bool> {
        let Ok(stat) = Stat::read(tid) else { return Ok(false) };
        if matches!(stat.state, b'Z' | b'X') {
            if process == tid {
                self.zombies.insert(tid);
            }
            return Ok(false);
        }
        let Ok(status) = proc::Status::read(tid) else { return Ok(false) };
        match status.number("TracerPid") {
            // Gone by now, or let go by another just now.
            0 if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EPERM)) => {
                Err(Error::Unsteady(format!("process {process} could not be stopped: {error}")))
            }
            0 => Err(error).context(|| format!("PTRACE_SEIZE of process {process}")),
            // Born of a thread that is seized, and has not stopped yet; or late in a try before.
            tracer if tracer == u64::from(std::process::id()) => {
                ptrace::interrupt(tid).or_else(gone).context(|| "PTRACE_INTERRUPT".to_owned())?;
                self.threads.insert(tid, Thread { process, stopped: false, job_control: None });
                Ok(true)
            }
            _ => Err(refuse(status.inner_id("NSpid"), &stat.name, "it is being traced")),
        }
    }

    /// Waits until all seized threads have stopped.
    fn wait_all(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut late = begun + LATE;
        let mut starting = None;
        while self.threads.values().any(|thread| !thread.stopped) {
            match ptrace::wait(None, false) {
                Ok(Some((tid, change))) => self.change(tid, change)?,
                Ok(None) if Instant::now() < late => await_event(&self.events, late),
                Ok(None) => {
                    late = Instant::now() + LATE;
                    self.forget_gone();
                    let waits = self.let_children_start()?;
                    if waits && starting.is_none() {
                        starting = Some(Instant::now());
                    }
                    let patient = starting.is_none_or(|since| since.elapsed() < START);
                    if !patient || begun.elapsed() > STOP {
                        return Err(self.unsteady(waits));
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => self.forget_gone(),
                Err(error) => return Err(error).context(|| "waitpid".to_owned()),
            }
        }
        Ok(())
    }

    /// Takes threads off the list that ended unnoticed.
    fn forget_gone(&mut self) {
        self.threads.retain(|tid, thread| thread.stopped || !is_gone(*tid));
    }

    /// A parent in vfork(2) does not stop before its child has a program of its own: has such
    /// children go on until then, and tells whether there are any.
    fn let_children_start(&mut self) -> Result<bool> {
        let late: Vec<Pid> = self
            .threads
            .iter()
            .filter(|(_, thread)| !thread.stopped)
            .map(|(tid, _)| *tid)
            .collect();
        let mut waits = false;
        for parent in late {
            let Ok(text) = proc::read(parent, &format!("task/{parent}/children")) else { continue };
            let text = String::from_utf8_lossy(&text).into_owned();
            let children =
                text.split_ascii_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?));
            for child in children {
                let same = remote::compare(Kind::Memory, (parent, 0), (child, 0));
                if !matches!(same, Ok(std::cmp::Ordering::Equal)) {
                    continue;
                }
                waits = true;
                if let Some(thread) = self.threads.get_mut(&child).filter(|thread| thread.stopped) {
                    thread.stopped = false;
                    ptrace::resume(child, 0).or_else(gone).context(|| "PTRACE_CONT".to_owned())?;
                }
            }
        }
        Ok(waits)
    }

    fn change(&mut self, tid: Pid, change: Change) -> Result<()> {
        match change {
            Change::Gone => {
                self.threads.remove(&tid);
            }
            Change::Interrupted { job_control } => {
                let process = if let Some(thread) = self.threads.get(&tid) {
                    thread.process
                } else {
                    // Born of a thread that is traced, and so traced and stopped itself.
                    self.watch(tid)?;
                    let tgid = proc::Status::read(tid)?.number("Tgid");
                    Pid::from_raw(tgid as i32).unwrap_or(tid)
                };
                self.threads.insert(tid, Thread { process, stopped: true, job_control });
            }
            // On to the stop that it was asked for. A signal has its effect before that.
            Change::Event(event) => {
                if event == libc::PTRACE_EVENT_EXEC {
                    self.executed(tid)?;
                }
                go_on(tid, 0)?;
            }
            Change::Signal(signal) => go_on(tid, signal)?,
        }
        Ok(())
    }

    /// A thread that executes a program takes on the id of its process.
    fn executed(&mut self, leader: Pid) -> Result<()> {
        let former = ptrace::event_message(leader).context(|| "PTRACE_GETEVENTMSG".to_owned())?;
        if let Some(former) = Pid::from_raw(former as i32).filter(|former| *former != leader) {
            self.threads.remove(&former);
        }
        self.threads.insert(leader, Thread { process: leader, stopped: false, job_control: None });
        Ok(())
    }

    fn unsteady(&self, waits: bool) -> Error {
        let late = self.threads.iter().find(|(_, thread)| !thread.stopped);
        let name = late.and_then(|(tid, _)| Stat::read(*tid).ok());
        let name = name.map(|stat| String::from_utf8_lossy(&stat.name).into_owned());
        let name = name.unwrap_or_default();
        Error::Unsteady(if waits {
            format!("{name} waits for a child of vfork(2) that runs no program of its own yet")
        } else {
            format!("{name} does not stop")
        })
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for pid in std::mem::take(self.to_stop.get_mut()) {
            // One that is gone needs no signal.
            let _ = process::kill(pid.as_raw_nonzero().get(), libc::SIGSTOP);
        }
        for (tid, thread) in &self.threads {
            // One that has not stopped cannot be let go yet.
            if thread.stopped {
                if !self.settled {
                    keep_from_telling(*tid);
                }
                let _ = ptrace::detach(*tid, 0);
            }
        }
        let late = self.threads.iter().filter(|(_, thread)| !thread.stopped);
        let late: Vec<Pid> = late.map(|(tid, _)| *tid).collect();
        // A parent in vfork(2) stops now that its child goes on. Those that do not are let go when
        // this process ends, or are found again by the next try.
        let end = Instant::now() + STOP;
        for tid in late {
            // The child of one may have been let go on.
            let _ = ptrace::interrupt(tid);
            while Instant::now() < end {
                match ptrace::wait(Some(tid), false) {
                    Ok(Some((_, Change::Signal(signal)))) => {
                        let _ = ptrace::detach(tid, signal);
                        break;
                    }
                    Ok(Some(_)) => {
                        keep_from_telling(tid);
                        let _ = ptrace::detach(tid, 0);
                        break;
                    }
                    Ok(None) => await_event(&self.events, end),
                    Err(_) => break,
                }
            }
        }
    }
}

fn is_gone(tid: Pid) -> bool {
    !Stat::read(tid).is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X'))
}

/// Has a thread that was asked nothing go on as if it had not been stopped.
fn keep_from_telling(tid: Pid) {
    let Ok(mut registers) = ptrace::registers(tid) else { return };
    let result = registers.rax;
    hide_stop(&mut registers);
    if registers.rax != result {
        let _ = ptrace::set_registers(tid, &registers);
    }
}

/// Has a thread go on to the stop that it was asked for. That is asked for again first: it would
/// tell its program of the signal that it stopped for, which may be one that is ignored.
fn go_on(tid: Pid, signal: i32) -> Result<()> {
    for done in [ptrace::interrupt(tid), ptrace::resume(tid, signal)] {
        done.or_else(gone).context(|| "ptrace".to_owned())?;
    }
    Ok(())
}

/// That a thread is gone is told by what is waited for.
fn gone(error: std::io::Error) -> std::io::Result<()> {
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// Waits until a traced thread changed, or until `end`.
pub(crate) fn await_event(events: &OwnedFd, end: Instant) {
    let rest = end.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
    let mut fds = [PollFd::new(events, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&timeout));
    let mut buffer = [0; 512];
    while matches!(rustix::io::read(events, &mut buffer), Ok(n) if n > 0) {}
}

impl Tree {
    /// What becomes readable when a traced thread changes.
    pub(crate) fn events(&self) -> &OwnedFd {
        &self.events
    }
}
