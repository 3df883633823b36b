//! POSIX message queues, made by init with what is in them.

use forkyard_sys::message_queues::{self, Attributes};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};

use crate::error::{Context, Result};
use crate::picture::{MessageQueue, Picture};

/// Makes all of them.
pub(super) fn make_all(picture: &Picture) -> Result<()> {
    for queue in &picture.message_queues {
        make(queue)
            .context(|| format!("making the message queue {}", queue.name.to_string_lossy()))?;
    }
    Ok(())
}

fn make(queue: &MessageQueue) -> std::io::Result<()> {
    let MessageQueue { capacity, size, .. } = *queue;
    let made = message_queues::make(&queue.name, Attributes { capacity, size, count: 0 })?;
    for (text, priority) in &queue.messages {
        message_queues::send(&made, text, *priority)?;
    }
    let (uid, gid) = queue.owner;
    fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(fchmod(&made, Mode::from_raw_mode(queue.mode))?)
}
