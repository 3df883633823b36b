//! What has no path and tells of events. Its state is in `/proc/PID/fdinfo`.

use std::cmp::Ordering;
use std::collections::HashMap;

use forkyard_sys::events::{EpollSlot, compare_epoll_target};
use rustix::process::Pid;
use rustix::time::{ClockId, Timespec, clock_gettime, timerfd_gettime};

use super::Capture;
use super::descriptors::Seen;
use super::waiting::Waiting;
use super::watches::watches;
use crate::error::{Context, Result, unreadable};
use crate::picture::events::{Entry, Event, Timer};
use crate::picture::{Body, DescriptionKind};
use crate::proc::{self, FdInfo};

/// `TFD_TIMER_ABSTIME`
const ABSOLUTE: u32 = 1;

/// Most entries of one epoll descriptor.
const ENTRIES_MAX: usize = 65_536;

impl Capture<'_> {
    /// What is behind a descriptor whose link begins with `anon_inode:`.
    pub(super) fn event(&mut self, seen: &Seen<'_>) -> Result<Event> {
        let info = &seen.info;
        let bad = || unreadable("/proc/PID/fdinfo");
        let link = seen.link.strip_prefix(b"anon_inode:").unwrap_or_default();
        Ok(match link {
            b"[eventfd]" => Event::Counter {
                count: hexadecimal(info.value("eventfd-count")).ok_or_else(bad)?,
                semaphore: info.value("eventfd-semaphore") == Some("1"),
            },
            b"[timerfd]" => Event::Timer(timer(seen)?),
            b"[signalfd]" => Event::Signals(hexadecimal(info.value("sigmask")).ok_or_else(bad)?),
            b"[pidfd]" => Event::Process(self.process_of(seen)?),
            b"inotify" => Event::Watches(watches(self, seen)?),
            b"[eventpoll]" => {
                let index = self.descriptions.all.len();
                let (entries, inodes) = entries(info).ok_or_else(bad)?.into_iter().unzip();
                self.descriptions.waiting.push((Waiting::of(seen, index), inodes));
                Event::Poll(entries)
            }
            _ => return Err(seen.refuse("a kernel object that cannot be copied")),
        })
    }

    /// Whom a pidfd refers to, by the id inside.
    fn process_of(&self, seen: &Seen<'_>) -> Result<Option<u32>> {
        let ids: Option<Vec<i32>> = seen
            .info
            .value("NSpid")
            .map(|ids| ids.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect());
        match ids.as_deref() {
            Some([-1]) => Ok(None),
            Some([here, .., inner]) => {
                let known = Pid::from_raw(*here).and_then(|pid| self.inner_ids.get(&pid));
                if known.is_some_and(|known| known.cast_signed() == *inner) {
                    return Ok(known.copied());
                }
                Err(seen.refuse("a pidfd of a thread, or of a process of forkyard's"))
            }
            _ => Err(seen.refuse("a pidfd of a process outside of the sandbox")),
        }
    }

    /// Finds what the entries of all epoll descriptors refer to.
    pub(super) fn resolve_entries(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.descriptions.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let mut by_number = HashMap::new();
        for process in &self.picture.processes {
            let Body::Alive(alive) = &process.body else { continue };
            for descriptor in &alive.descriptors {
                by_number.insert((process.pid, descriptor.number), descriptor.description);
            }
        }
        for (poll, inodes) in waiting {
            let kind = self.descriptions.all.get(poll.index).map(|description| &description.kind);
            let Some(DescriptionKind::Event(Event::Poll(entries))) = kind else { continue };
            let mut entries = entries.clone();
            let mut seen: HashMap<u32, u32> = HashMap::new();
            for (entry, inode) in entries.iter_mut().zip(inodes) {
                let nth = seen.entry(entry.number).or_default();
                let slot = EpollSlot { epoll: poll.number, target: entry.number, nth: *nth };
                *nth += 1;
                let likely = by_number.get(&(poll.inner, entry.number)).copied();
                entry.description = self.target(&poll, slot, inode, likely)?;
            }
            if let Some(description) = self.descriptions.all.get_mut(poll.index) {
                description.kind = DescriptionKind::Event(Event::Poll(entries));
            }
        }
        Ok(())
    }

    /// The description that an entry refers to: mostly the one that its number still has.
    fn target(
        &self,
        poll: &Waiting,
        slot: EpollSlot,
        inode: u64,
        likely: Option<usize>,
    ) -> Result<usize> {
        let compare = |pid: Pid, number: u32| {
            let order = compare_epoll_target((pid, number), poll.pid, slot);
            order.context(|| "kcmp of what an epoll descriptor waits for".to_owned())
        };
        if let Some(likely) = likely
            && compare(poll.pid, slot.target)? == Ordering::Equal
        {
            return Ok(likely);
        }
        if let Ok(index) = self.descriptions.find(inode, compare)? {
            return Ok(index);
        }
        let what =
            format!("it waits for what was descriptor {}, which no process has open", slot.target);
        Err(poll.refuse(&what))
    }
}

fn hexadecimal(text: Option<&str>) -> Option<u64> {
    u64::from_str_radix(text?, 16).ok()
}

/// Lines as `tfd: 5 events: 19 data: 5  pos:0 ino:61ef sdev:7`, with the inode apart.
fn entries(info: &FdInfo) -> Option<Vec<(Entry, u64)>> {
    let lines = info.text.lines().filter_map(|line| line.strip_prefix("tfd:")).take(ENTRIES_MAX);
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let events = words.nth(1)?;
        let data = words.nth(1)?;
        let entry = Entry {
            number,
            description: usize::MAX,
            events: u32::from_str_radix(events, 16).ok()?,
            data: u64::from_str_radix(data, 16).ok()?,
        };
        let inode = words.find_map(|word| word.strip_prefix("ino:"));
        Some((entry, hexadecimal(inode).unwrap_or_default()))
    };
    lines.map(entry).collect()
}

fn timer(seen: &Seen<'_>) -> Result<Timer> {
    let bad = || unreadable("/proc/PID/fdinfo of a timer");
    let mut timer = parse_timer(&seen.info).ok_or_else(bad)?;
    for _ in 0..3 {
        let spent = timer.value == (0, 0);
        if !spent || timer.ticks != 0 && timer.interval == (0, 0) {
            break;
        }
        // It is not armed, or expires right now; or it has expired, and does not go on counting
        // until somebody looks, which does not show to the program: a read would do the same.
        timerfd_gettime(&seen.copy).context(|| "timerfd_gettime".to_owned())?;
        let text = proc::read(seen.pid, &format!("fdinfo/{}", seen.number))?;
        let info = FdInfo::parse(&String::from_utf8_lossy(&text)).ok_or_else(bad)?;
        timer = parse_timer(&info).ok_or_else(bad)?;
    }
    if timer.flags & ABSOLUTE != 0 && timer.value != (0, 0) {
        let clock = match timer.clock {
            0 => ClockId::Realtime,
            1 => ClockId::Monotonic,
            7 => ClockId::Boottime,
            _ => return Err(seen.refuse("a timer that wakes the machine")),
        };
        timer.value = sum(clock_gettime(clock), timer.value);
    }
    Ok(timer)
}

fn sum(now: Timespec, rest: (i64, i64)) -> (i64, i64) {
    let nanos = now.tv_nsec + rest.1;
    (now.tv_sec + rest.0 + nanos / 1_000_000_000, nanos % 1_000_000_000)
}

fn parse_timer(info: &FdInfo) -> Option<Timer> {
    let pair = |name| {
        let text = info.value(name)?.strip_prefix('(')?.strip_suffix(')')?;
        let (seconds, nanos) = text.split_once(", ")?;
        Some((seconds.parse().ok()?, nanos.parse().ok()?))
    };
    Some(Timer {
        clock: info.value("clockid")?.parse().ok()?,
        ticks: info.value("ticks")?.parse().ok()?,
        flags: u32::from_str_radix(info.value("settime flags")?, 8).ok()?,
        value: pair("it_value")?,
        interval: pair("it_interval")?,
    })
}

/// For the targets in `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(super) fn read_all(info: &FdInfo) {
    assert!(entries(info).is_none_or(|all| all.len() <= ENTRIES_MAX));
    let _ = (parse_timer(info), hexadecimal(info.value("sigmask")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_and_entries_are_read() {
        let timer = "pos:\t0\nflags:\t02\nclockid: 7\nticks: 3\nsettime flags: 01\n\
                     it_value: (1, 20)\nit_interval: (0, 5)\n";
        let expected = Timer { clock: 7, ticks: 3, flags: 1, value: (1, 20), interval: (0, 5) };
        assert_eq!(parse_timer(&FdInfo::parse(timer).unwrap()), Some(expected));
        let poll = "pos:\t0\nflags:\t02\n\
                    tfd:       11 events: 80000019 data: fffffffffffffff1  pos:0 ino:40e sdev:10\n";
        let [(entry, inode)] = entries(&FdInfo::parse(poll).unwrap()).unwrap()[..] else {
            panic!()
        };
        assert_eq!(
            (entry.number, entry.events, entry.data, inode),
            (11, 0x8000_0019, 0xffff_ffff_ffff_fff1, 0x40e)
        );
    }
}
