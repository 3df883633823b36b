//! System V objects: they belong to no process, and are looked at from within their namespace.

use std::cmp::Ordering;
use std::fs::File;
use std::os::fd::AsFd;

use forkyard_sys::remote::{self, Kind};
use forkyard_sys::system_v::{self, Object};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Capture;
use super::loose::Key;
use crate::error::{Context, Error, Result, unreadable};
use crate::picture::{LooseKind, Queue, Semaphores};
use crate::proc::{Stat, Status, refuse};
use crate::seize::Stopped;

const PAGE: u64 = 4096;

/// The most bytes of messages that are taken along.
const MESSAGES_MOST: u64 = 64 * 1024 * 1024;

/// The most semaphores of a set, which the kernel has for a bound of its own too.
const SEMAPHORES_MOST: u64 = 1 << 20;

/// As long as this lives, this process is in the IPC namespace of a sandbox. Without rights over
/// the one that it came from, it stays there: its forks get others.
pub(super) struct Inside {
    own: File,
}

impl Inside {
    pub(super) fn enter(space: &std::path::Path) -> Result<Self> {
        let failed = || "entering the ipc namespace of a sandbox".to_owned();
        let own = File::open("/proc/self/ns/ipc").context(failed)?;
        enter(&File::open(space).context(failed)?).context(failed)?;
        Ok(Self { own })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = enter(&self.own);
    }
}

fn enter(space: &File) -> rustix::io::Result<()> {
    let kind = LinkNameSpaceType::InterProcessCommunication;
    move_into_link_name_space(space.as_fd(), Some(kind))
}

/// A segment of shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    object: Object,
    pub(super) size: u64,
    swapped: bool,
}

impl Segment {
    pub(super) fn key(&self) -> Key {
        Key::SystemV(u64::from(self.object.id.cast_unsigned()))
    }

    /// For clones to have it at two places: for writing, and for reading alone.
    pub(super) fn kind(&self, at: u64, read_only: u64) -> LooseKind {
        LooseKind::SystemV { object: self.object, at, read_only }
    }

    fn length(&self) -> u64 {
        self.size.next_multiple_of(PAGE)
    }
}

/// A line of `/proc/sysvipc/*` by its columns.
struct Line(Vec<i64>);

impl Line {
    fn column(&self, number: usize) -> u64 {
        self.0.get(number).copied().unwrap_or_default().cast_unsigned()
    }
}

/// A table of them: all have key, id and permissions first.
fn table(name: &str) -> Result<Vec<Line>> {
    let path = format!("/proc/sysvipc/{name}");
    let text = std::fs::read_to_string(&path).context(|| format!("reading {path}"))?;
    parse(&text).ok_or_else(|| unreadable("/proc/sysvipc"))
}

fn parse(text: &str) -> Option<Vec<Line>> {
    let line = |line: &str| {
        let words = line.split_ascii_whitespace().enumerate();
        let number = |(column, word): (usize, &str)| match column {
            PERMISSIONS => i64::from_str_radix(word, 8).ok(),
            _ => word.parse::<i128>().ok().map(|number| number as i64),
        };
        words.map(number).collect::<Option<_>>().map(Line)
    };
    text.lines().skip(1).map(line).collect()
}

const PERMISSIONS: usize = 2;

impl Capture<'_> {
    /// Which shared memory there is.
    pub(super) fn segments(&self) -> Result<Vec<Segment>> {
        let segment = |line: &Line| Segment {
            object: self.object(line, 7),
            size: line.column(3),
            swapped: line.column(15) != 0,
        };
        Ok(table("shm")?.iter().map(segment).collect())
    }

    /// What a line says; user and group begin at a column.
    fn object(&self, line: &Line, owner: usize) -> Object {
        let id = |column| line.column(column) as u32;
        Object {
            id: line.column(1) as i32,
            key: line.column(0) as i32,
            owner: (self.users.inside(id(owner)), self.groups.inside(id(owner + 1))),
            mode: id(PERMISSIONS),
        }
    }

    /// Copies what shared memory holds.
    pub(super) fn read_segments(&mut self, segments: &[Segment]) -> Result<()> {
        let failed = || "reading System V shared memory".to_owned();
        for segment in segments {
            let index = self.loose.entry(segment.key(), || segment.kind(0, 0));
            let Some(LooseKind::SystemV { at, .. }) = self.loose.kind(index) else { continue };
            let (at, length) = (*at, segment.length());
            let pages = system_v::attach(segment.object.id, Some(at), length, true);
            let pages = pages.context(failed)?;
            // What is swapped out does not count as resident.
            let all = vec![(at, length)];
            let parts = if segment.swapped { all } else { pages.resident().context(failed)? };
            let all = parts.iter().map(|(_, length)| length).sum();
            let mut staged = Vec::with_capacity(parts.len());
            if all > 0 {
                let mut mirror = self.stage.mirror(0, all, false)?;
                let mut next = mirror.start();
                for (start, length) in parts {
                    mirror.copy_from(next, &pages, start, length).context(failed)?;
                    staged.push((start - at, length, next));
                    next += length;
                }
                self.stage.keep(mirror, all);
            }
            pages.unmap().context(failed)?;
            self.loose.fill(index, segment.size, staged);
        }
        Ok(())
    }

    /// Semaphores and messages.
    pub(super) fn read_system_v(&mut self, processes: &[Stopped]) -> Result<()> {
        for line in table("sem")? {
            let object = self.object(&line, 4);
            let failed = || format!("reading System V semaphores (id {})", object.id);
            let count = line.column(3).min(SEMAPHORES_MOST) as u32;
            let values = system_v::values(object.id, count).context(failed)?;
            let used = line.column(8) != 0;
            self.picture.semaphores.push(Semaphores { object, values, used });
        }
        if self.picture.semaphores.iter().any(|semaphores| semaphores.used) {
            processes.iter().try_for_each(check_adjustments)?;
        }
        let mut total = 0;
        for line in table("msg")? {
            let object = self.object(&line, 7);
            total += line.column(3);
            if total > MESSAGES_MOST {
                return Err(Error::Refused {
                    pid: 1,
                    name: "init".to_owned(),
                    what: format!("more than {} MiB of System V messages", MESSAGES_MOST >> 20),
                });
            }
            let queue = read_queue(object, line.column(3), line.column(4));
            let failed = || format!("reading System V messages (id {})", object.id);
            self.picture.queues.push(queue.context(failed)?);
        }
        Ok(())
    }
}

fn read_queue(object: Object, bytes: u64, count: u64) -> std::io::Result<Queue> {
    let capacity = system_v::queue_capacity(object.id)?;
    let mut messages = Vec::new();
    for place in 0..count as u32 {
        let Some((kind, text)) = system_v::peek(object.id, place, bytes as usize)? else { break };
        messages.push((kind, serde_bytes::ByteBuf::from(text)));
    }
    Ok(Queue { object, capacity, messages })
}

/// What a process will take back of semaphores at its end nobody can tell, only that there may be
/// something: then the kernel keeps a list for it, as for every process that has started a thread.
/// This thread has none, see [`Reader::start`](super::reader::Reader::start).
fn check_adjustments(stopped: &Stopped) -> Result<()> {
    let me = rustix::process::getpid();
    for &tid in &stopped.threads {
        let same = remote::compare(Kind::Adjustments, (me, 0), (tid, 0));
        if same.context(|| "kcmp".to_owned())? != Ordering::Equal {
            let what = "it has threads, or System V semaphores to give back (SEM_UNDO)";
            let inner = Status::read(stopped.pid)?.inner_id("NSpid");
            return Err(refuse(inner, &Stat::read(stopped.pid)?.name, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_objects_are_read() {
        let text = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      \
                    ctime\n  -559038737      32769  1640          2 100000 0 0 0 1 \
                    18446744073709551615\n";
        let lines = parse(text).unwrap();
        let columns = [0, 1, 2, 3, 4].map(|column| lines[0].column(column) as i32);
        assert_eq!(columns, [-559_038_737, 32769, 0o1640, 2, 100_000]);
        assert!(parse("names\nno numbers").is_none());
        assert!(parse("names\n").unwrap().is_empty());
    }
}
