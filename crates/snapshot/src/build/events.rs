//! What has no path and tells of events, made again.
//!
//! What is watched is added last, by init, when all processes are there but do not run: nothing
//! that building does shall be told to them. Entries of epoll descriptors for signals and for
//! processes are added by the process that had them: a signalfd wakes those who wait for signals
//! of the process that added it, and a pidfd is not there before its process.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use forkyard_sys::events::{self, set_next_watch, set_timer_ticks};
use forkyard_sys::process::{self, CloneFlags, SingleThreaded};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::OFlags;
use rustix::fs::inotify::{self, WatchFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::files::Files;
use crate::error::{Context, Result, unreadable};
use crate::picture::events::{Entry, Event, Timer, Watch};
use crate::picture::{Alive, Body, DescriptionKind, Picture};

/// `EPOLLERR | EPOLLHUP`, which every entry has but one that was for one event, and told it.
const ALWAYS: u32 = 0x18;

/// Entries that processes add themselves: by the index of the process, each with the index of its
/// epoll descriptor's description.
pub(super) type Own = BTreeMap<usize, Vec<(usize, Entry)>>;

/// Makes an object; none for one that each process makes for itself.
pub(super) fn open(
    proof: &SingleThreaded,
    event: &Event,
    flags: OFlags,
) -> Result<Option<OwnedFd>> {
    let nonblocking = flags.contains(OFlags::NONBLOCK);
    Ok(Some(match event {
        Event::Counter { count, semaphore } => counter(*count, *semaphore, nonblocking)?,
        Event::Timer(timer) => open_timer(timer, nonblocking)?,
        Event::Signals(mask) => {
            events::signalfd(*mask, nonblocking).context(|| "signalfd".to_owned())?
        }
        Event::Process(Some(_)) => return Ok(None),
        Event::Process(None) => gone(proof, flags)?,
        Event::Watches(_) => {
            let mut how = inotify::CreateFlags::CLOEXEC;
            how.set(inotify::CreateFlags::NONBLOCK, nonblocking);
            inotify::init(how).context(|| "inotify_init1".to_owned())?
        }
        Event::Poll(_) => {
            let poll = epoll::create(epoll::CreateFlags::CLOEXEC);
            poll.context(|| "epoll_create1".to_owned())?
        }
    }))
}

fn counter(count: u64, semaphore: bool, nonblocking: bool) -> Result<OwnedFd> {
    let failed = || "eventfd".to_owned();
    let mut how = EventfdFlags::CLOEXEC;
    how.set(EventfdFlags::SEMAPHORE, semaphore);
    how.set(EventfdFlags::NONBLOCK, nonblocking);
    let counter = eventfd(0, how).context(failed)?;
    if count != 0 {
        rustix::io::write(&counter, &count.to_ne_bytes()).context(failed)?;
    }
    Ok(counter)
}

fn open_timer(timer: &Timer, nonblocking: bool) -> Result<OwnedFd> {
    let clock = match timer.clock {
        0 => TimerfdClockId::Realtime,
        1 => TimerfdClockId::Monotonic,
        7 => TimerfdClockId::Boottime,
        _ => return Err(unreadable("a picture: no such clock")),
    };
    let mut how = TimerfdFlags::CLOEXEC;
    how.set(TimerfdFlags::NONBLOCK, nonblocking);
    let made = timerfd_create(clock, how).context(|| "timerfd_create".to_owned())?;
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let value = Itimerspec { it_value: time(timer.value), it_interval: time(timer.interval) };
    let how = TimerfdTimerFlags::from_bits_retain(timer.flags);
    timerfd_settime(&made, how, &value).context(|| "timerfd_settime".to_owned())?;
    if timer.ticks != 0 {
        set_timer_ticks(&made, timer.ticks).context(|| "TFD_IOC_SET_TICKS".to_owned())?;
    }
    Ok(made)
}

/// A pidfd of a process that is gone.
fn gone(proof: &SingleThreaded, flags: OFlags) -> Result<OwnedFd> {
    let failed = || "a pidfd of a process that is gone".to_owned();
    let child = process::fork(proof, CloneFlags::default(), None, |_| 0).context(failed)?;
    let pidfd = open_process(child.pid, flags).context(failed);
    waitpid(Some(child.pid), WaitOptions::empty()).context(failed)?;
    pidfd
}

fn open_process(pid: Pid, flags: OFlags) -> std::io::Result<OwnedFd> {
    // `PIDFD_NONBLOCK`, and `PIDFD_THREAD`, which a descriptor has as `O_EXCL`.
    let flags = flags & (OFlags::NONBLOCK | OFlags::EXCL);
    let flags = PidfdFlags::from_bits_retain(flags.bits());
    match pidfd_open(pid, flags) {
        Ok(pidfd) => Ok(pidfd),
        Err(error) => Err(error.into()),
    }
}

/// A process's own pidfds, by the index of their descriptions.
pub(super) fn open_processes(picture: &Picture, alive: &Alive) -> Result<BTreeMap<usize, OwnedFd>> {
    let mut made = BTreeMap::new();
    for descriptor in &alive.descriptors {
        let index = descriptor.description;
        let Some(description) = picture.descriptions.get(index) else { continue };
        if let DescriptionKind::Event(Event::Process(Some(pid))) = description.kind
            && !made.contains_key(&index)
            && let Some(pid) = Pid::from_raw(pid.cast_signed())
        {
            let flags = OFlags::from_bits_retain(description.flags);
            let pidfd = open_process(pid, flags);
            made.insert(index, pidfd.context(|| "pidfd_open".to_owned())?);
        }
    }
    Ok(made)
}

/// Finds who adds entries that init cannot add.
pub(super) fn own(picture: &Picture) -> Own {
    let mut own = Own::new();
    for (index, description) in picture.descriptions.iter().enumerate() {
        let DescriptionKind::Event(Event::Poll(entries)) = &description.kind else { continue };
        for entry in entries.iter().filter(|entry| is_own(picture, entry)) {
            let has = |wanted: usize| {
                move |body: &Body| match body {
                    Body::Alive(alive) => {
                        alive.descriptors.iter().any(|other| other.description == wanted)
                    }
                    Body::Zombie(_) => false,
                }
            };
            let (polls, is_told) = (has(index), has(entry.description));
            let mut all = picture.processes.iter().map(|process| &process.body);
            let who = all
                .position(|body| polls(body) && is_told(body))
                .or_else(|| picture.processes.iter().position(|process| is_told(&process.body)));
            if let Some(who) = who {
                own.entry(who).or_default().push((index, *entry));
            }
        }
    }
    own
}

fn is_own(picture: &Picture, entry: &Entry) -> bool {
    let target = picture.descriptions.get(entry.description);
    matches!(
        target.map(|target| &target.kind),
        Some(DescriptionKind::Event(Event::Signals(_) | Event::Process(Some(_))))
    )
}

/// Adds the entries that are a process's own: `processes` are its pidfds.
pub(super) fn add_own(
    files: &Files,
    index: usize,
    processes: &BTreeMap<usize, OwnedFd>,
) -> Result<()> {
    for (poll, entry) in files.own.get(&index).into_iter().flatten() {
        let target = files
            .description(entry.description)
            .or_else(|| processes.get(&entry.description).map(AsFd::as_fd));
        if let (Some(poll), Some(target)) = (files.description(*poll), target) {
            add(poll, target, entry)?;
        }
    }
    Ok(())
}

/// Adds all that is watched and waited for, and is not a process's own.
pub(super) fn settle(picture: &Picture, files: &Files) -> Result<()> {
    for (index, description) in picture.descriptions.iter().enumerate() {
        let DescriptionKind::Event(event) = &description.kind else { continue };
        let Some(file) = files.description(index) else { continue };
        match event {
            Event::Poll(entries) => {
                // What has told its one event comes first: it must be alone to be known.
                let (told, others): (Vec<&Entry>, _) = entries
                    .iter()
                    .filter(|entry| !is_own(picture, entry))
                    .partition(|entry| entry.events & ALWAYS == 0);
                for entry in told.into_iter().chain(others) {
                    if let Some(target) = files.description(entry.description) {
                        add(file, target, entry)?;
                    }
                }
            }
            Event::Watches(watches) => {
                for watch in watches {
                    add_watch(file, watch)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn add_watch(inotify: BorrowedFd<'_>, watch: &Watch) -> Result<()> {
    let failed = || format!("watching {}", String::from_utf8_lossy(&watch.path));
    set_next_watch(inotify, watch.number).context(failed)?;
    let mask = WatchFlags::from_bits_retain(watch.mask) | WatchFlags::DONT_FOLLOW;
    let number = inotify::add_watch(inotify, watch.path.as_slice(), mask).context(failed)?;
    if number != watch.number {
        return Err(std::io::Error::from(std::io::ErrorKind::AlreadyExists)).context(failed);
    }
    Ok(())
}

/// Adds an entry. One for one event that has been told waits for nothing until it is set again.
fn add(poll: BorrowedFd<'_>, target: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    let failed = || format!("having an epoll descriptor wait for descriptor {}", entry.number);
    let number = entry.number.cast_signed();
    // The target has that number meanwhile.
    let elsewhere = (poll.as_raw_fd() == number)
        .then(|| rustix::io::fcntl_dupfd_cloexec(poll, 0))
        .transpose()
        .context(failed)?;
    let poll = elsewhere.as_ref().map_or(poll, AsFd::as_fd);
    let data = epoll::EventData::new_u64(entry.data);
    let told = entry.events & ALWAYS == 0;
    let all = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP;
    let events = epoll::EventFlags::from_bits_retain(entry.events);
    let add = |target: BorrowedFd<'_>| -> std::io::Result<()> {
        if !told {
            return Ok(epoll::add(poll, target, data, events)?);
        }
        // Have it tell something now. What has nothing to tell can only fail from now on.
        epoll::add(poll, target, data, events | all)?;
        let mut one = Vec::with_capacity(1);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(poll, rustix::buffer::spare_capacity(&mut one), Some(&now))?;
        if one.is_empty() {
            epoll::modify(poll, target, data, events)?;
        }
        Ok(())
    };
    events::with_number(target, number, add).context(failed)
}
