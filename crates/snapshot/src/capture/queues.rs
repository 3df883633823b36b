//! POSIX message queues: found by their names, looked into by init, opened again by descriptors.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, fstat, open};

use super::Capture;
use super::descriptors::Seen;
use super::loose::DELETED;
use crate::error::{Context, Error, Result};
use crate::inside::{Answer, Looker, Request};
use crate::picture::{DescriptionKind, MessageQueue};

/// Where all queues of a sandbox are.
const PLACE: &str = "dev/mqueue";

/// The most bytes of all messages.
const MOST: usize = 64 * 1024 * 1024;

impl Capture<'_> {
    /// A descriptor of a queue: by its name where `mq_open`(3) opened it, or else by its path.
    pub(super) fn queue(&self, seen: &Seen<'_>) -> Result<DescriptionKind> {
        let path = format!("/{PLACE}/");
        let name = seen.link.strip_prefix(path.as_bytes());
        let by_path = name.is_some();
        let name = name.or_else(|| seen.link.strip_prefix(b"/")).unwrap_or_default();
        if name.is_empty() {
            return Ok(DescriptionKind::Path(seen.link.clone()));
        }
        let whole = [path.as_bytes(), name].concat();
        if !self.is_at(&whole, seen.stat.st_dev, seen.stat.st_ino) {
            let what = if name.ends_with(DELETED) { "a deleted" } else { "an unknown" };
            return Err(seen.refuse(&format!("{what} POSIX message queue")));
        }
        if by_path {
            return Ok(DescriptionKind::Path(whole));
        }
        let name = CString::new([b"/", name].concat()).unwrap_or_default();
        Ok(DescriptionKind::MessageQueue(name))
    }

    /// Has all queues be looked into, also those that nobody has open.
    pub(super) fn look_into_queues(&mut self, looker: &mut dyn Looker) -> Result<()> {
        let Ok(queues) = std::fs::read_dir(self.subject.path.join(PLACE)) else { return Ok(()) };
        let mut total = 0;
        for entry in queues {
            let failed = || "looking into POSIX message queues".to_owned();
            let entry = entry.context(failed)?;
            let name = entry.file_name();
            let refuse = |what: &str| Error::Refused {
                pid: 1,
                name: "init".to_owned(),
                what: format!("/{PLACE}/{}: a POSIX message queue{what}", name.display()),
            };
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let queue = open(entry.path(), flags, Mode::empty()).context(failed)?;
            let stat = fstat(&queue).context(failed)?;
            let answer = looker.look_into(Request::Queue, &[queue.as_fd()]).context(failed)?;
            let Answer::Queue { capacity, size, messages } = answer else {
                return Err(match answer {
                    Answer::Awaited => refuse(" that somebody waits to be told of (mq_notify)"),
                    Answer::Failed(errno) => Error::Failed {
                        what: failed(),
                        source: std::io::Error::from_raw_os_error(errno),
                    },
                    _ => Error::Failed {
                        what: failed(),
                        source: std::io::ErrorKind::InvalidData.into(),
                    },
                });
            };
            total += messages.iter().map(|(text, _)| text.len()).sum::<usize>();
            if total > MOST {
                return Err(refuse(": more bytes wait in all queues than can be taken along"));
            }
            let name = CString::new([b"/", name.as_bytes()].concat()).unwrap_or_default();
            let owner = (self.users.inside(stat.st_uid), self.groups.inside(stat.st_gid));
            let mode = stat.st_mode & 0o7777;
            let queue = MessageQueue { name, owner, mode, capacity, size, messages };
            self.picture.message_queues.push(queue);
        }
        Ok(())
    }
}

/// In init: takes all messages out and puts them back.
pub(crate) fn look_into(queue: &OwnedFd) -> std::io::Result<Answer> {
    use forkyard_sys::message_queues::{attributes, receive, send};
    // Putting back the first message would tell whoever waits for it.
    let mut state = [0; 128];
    let count = rustix::io::pread(queue, &mut state, 0)?;
    let state = String::from_utf8_lossy(state.get(..count).unwrap_or_default()).into_owned();
    let awaited = state.split_ascii_whitespace().find_map(|word| word.strip_prefix("NOTIFY_PID:"));
    if awaited != Some("0") {
        return Ok(Answer::Awaited);
    }
    let all = attributes(queue)?;
    let mut messages = Vec::new();
    let mut taken = Ok(());
    for _ in 0..all.count {
        match receive(queue, all.size) {
            Ok((text, priority)) => messages.push((serde_bytes::ByteBuf::from(text), priority)),
            Err(error) => taken = Err(error),
        }
    }
    for (text, priority) in &messages {
        let put = send(queue, text, *priority);
        taken = taken.and(put);
    }
    taken.map(|()| Answer::Queue { capacity: all.capacity, size: all.size, messages })
}
