//! Locks on files, and who is told by signals.

use std::os::fd::OwnedFd;

use forkyard_sys::lock;
use forkyard_sys::stub::Op;
use rustix::fs::{FlockOperation, OFlags, flock};

use super::program::Program;
use crate::error::{Context, Result};
use crate::picture::{Alive, Body, Description, LockKind, Picture, Process};

/// Takes the locks that belong to a description.
pub(super) fn take(file: &OwnedFd, description: &Description) -> Result<()> {
    for lock in &description.locks {
        let taken = match lock.kind {
            LockKind::Whole if lock.exclusive => {
                flock(file, FlockOperation::NonBlockingLockExclusive).map_err(Into::into)
            }
            LockKind::Whole => {
                flock(file, FlockOperation::NonBlockingLockShared).map_err(Into::into)
            }
            LockKind::Description => {
                lock::set_for_description(file, lock.exclusive, lock.start, lock.end)
            }
            LockKind::Process => Ok(()),
        };
        taken.context(|| "locking a file anew".to_owned())?;
    }
    Ok(())
}

/// Takes the locks of a process: when it closes no descriptor any more, as each would end those
/// of its file.
pub(super) fn take_own(program: &mut Program, alive: &Alive, ops: &mut Vec<Op>) {
    let mut taken = Vec::new();
    for descriptor in &alive.descriptors {
        for lock in &descriptor.locks {
            // Told for each descriptor of the description.
            if taken.contains(&(descriptor.description, lock)) {
                continue;
            }
            taken.push((descriptor.description, lock));
            let words = lock::to_words(lock.exclusive, lock.start, lock.end);
            let at = program.put_words(&words);
            let number = u64::from(descriptor.number);
            ops.push(Op::call(libc::SYS_fcntl, [number, libc::F_SETLK as u64, at, 0, 0, 0]).must());
        }
    }
}

/// Says who is told of a description by signals. The first process that has it does so, with its
/// own rights: these count when a signal is sent.
pub(super) fn set_owners(
    program: &mut Program,
    picture: &Picture,
    index: usize,
    alive: &Alive,
    ops: &mut Vec<Op>,
) {
    const F_SETSIG: u64 = 10;
    const F_SETOWN_EX: u64 = 15;
    let before = picture.processes.get(..index).unwrap_or_default();
    let had = |process: &Process, description: usize| match &process.body {
        Body::Alive(alive) => alive.descriptors.iter().any(|fd| fd.description == description),
        Body::Zombie(_) => false,
    };
    let mut done = Vec::new();
    for descriptor in &alive.descriptors {
        let known = picture.descriptions.get(descriptor.description);
        let Some((description, owner)) =
            known.and_then(|description| Some((description, description.owner?)))
        else {
            continue;
        };
        if done.contains(&descriptor.description)
            || before.iter().any(|process| had(process, descriptor.description))
        {
            continue;
        }
        done.push(descriptor.description);
        let number = u64::from(descriptor.number);
        let mut fcntl = |what: u64, value: u64| {
            ops.push(Op::call(libc::SYS_fcntl, [number, what, value, 0, 0, 0]));
        };
        let kind = u64::from(owner.kind.cast_unsigned());
        fcntl(F_SETOWN_EX, program.put_words(&[kind | u64::from(owner.id) << 32]));
        fcntl(F_SETSIG, owner.signal as u64);
        if description.flags & libc::O_ASYNC as u32 != 0 {
            let settable = OFlags::APPEND | OFlags::NONBLOCK | OFlags::DIRECT | OFlags::NOATIME;
            let settable = settable.bits() | libc::O_ASYNC as u32;
            fcntl(libc::F_SETFL as u64, u64::from(description.flags & settable));
        }
    }
}
