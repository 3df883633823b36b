//! System V shared memory, semaphores and message queues, of the IPC namespace that this process
//! is in.
//!
//! See [sysvipc(7)](https://man7.org/linux/man-pages/man7/sysvipc.7.html). Objects are asked for by
//! their ids; a new one gets the id that was written to `/proc/sys/kernel/shm_next_id`,
//! `sem_next_id` or `msg_next_id` before.

use std::io;

use serde::{Deserialize, Serialize};

use crate::memory::Pages;

/// `MSG_COPY` of linux/msg.h.
const COPY: i32 = 0o40000;

/// `SHM_LOCKED` and `SHM_DEST` of linux/shm.h, among an object's permissions.
pub const LOCKED: u32 = 0o2000;
/// It goes with the last process that has it attached.
pub const DESTROYED: u32 = 0o1000;

/// What the three kinds have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its id.
    pub id: i32,
    /// Its key; 0 where it has none.
    pub key: i32,
    /// User and group.
    pub owner: (u32, u32),
    /// Permissions, and for shared memory [`LOCKED`] and [`DESTROYED`].
    pub mode: u32,
}

impl Object {
    fn flags(&self) -> i32 {
        libc::IPC_CREAT | libc::IPC_EXCL | (self.mode & 0o777).cast_signed()
    }

    fn own(&self, permissions: &mut libc::ipc_perm) {
        (permissions.uid, permissions.gid) = self.owner;
        permissions.mode = (self.mode & 0o777) as _;
    }
}

/// Makes shared memory of so many bytes; its id.
///
/// # Errors
/// `EEXIST` where its key is taken, `ENOSPC` and `ENOMEM` where there is no room.
pub fn make_memory(object: &Object, size: u64) -> io::Result<i32> {
    // SAFETY: no memory of this process is read or written.
    result(unsafe { libc::shmget(object.key, size as usize, object.flags()) })
}

/// Attaches shared memory of so many bytes, at an address where nothing is, or anywhere.
///
/// # Errors
/// `EINVAL` where something is mapped there, or there is no such memory.
pub fn attach(id: i32, at: Option<u64>, length: u64, read_only: bool) -> io::Result<Pages> {
    let flags = if read_only { libc::SHM_RDONLY } else { 0 };
    let at = at.unwrap_or_default() as *const libc::c_void;
    // SAFETY: without SHM_REMAP nothing that exists is touched.
    let start = unsafe { libc::shmat(id, at, flags) };
    if start.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just mapped all of the segment there, at least `length` as the caller
    // knows from whoever listed it; it is nobody else's.
    Ok(unsafe { Pages::take(start.addr() as u64, length) })
}

/// Gives shared memory its owner and permissions, and has it stay in memory where it did.
pub fn own_memory(object: &Object) -> io::Result<()> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut all: libc::shmid_ds = unsafe { std::mem::zeroed() };
    object.own(&mut all.shm_perm);
    // SAFETY: the kernel reads one `shmid_ds`.
    result(unsafe { libc::shmctl(object.id, libc::IPC_SET, &raw mut all) })?;
    if object.mode & LOCKED != 0 {
        // SAFETY: no argument.
        result(unsafe { libc::shmctl(object.id, libc::SHM_LOCK, std::ptr::null_mut()) })?;
    }
    Ok(())
}

/// Has shared memory go with the last process that has it attached.
pub fn destroy_memory(id: i32) -> io::Result<()> {
    // SAFETY: no argument.
    result(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

/// Makes a set of so many semaphores; its id.
pub fn make_semaphores(object: &Object, count: u32) -> io::Result<i32> {
    // SAFETY: no memory of this process is read or written.
    result(unsafe { libc::semget(object.key, count.cast_signed(), object.flags()) })
}

/// The values of a set of so many semaphores.
///
/// # Errors
/// `EINVAL` when there is no such set.
pub fn values(id: i32, count: u32) -> io::Result<Vec<u16>> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut all: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `semid_ds`.
    result(unsafe { libc::semctl(id, 0, libc::IPC_STAT, &raw mut all) })?;
    if all.sem_nsems != u64::from(count) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut values = vec![0_u16; count as usize];
    // SAFETY: the kernel writes as many values as the set has, which never changes.
    result(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) })?;
    Ok(values)
}

/// Gives a set, which is new, its values, owner and permissions. With `used` a semaphore operation
/// has been done: some programs take that for a sign that a set has its first values.
pub fn own_semaphores(object: &Object, values: &[u16], used: bool) -> io::Result<()> {
    if used {
        let mut nothing = libc::sembuf { sem_num: 0, sem_op: 0, sem_flg: libc::IPC_NOWAIT as i16 };
        // SAFETY: the kernel reads one `sembuf`. A new semaphore is zero, which this waits for.
        result(unsafe { libc::semop(object.id, &raw mut nothing, 1) })?;
    }
    // SAFETY: the kernel reads as many values as the set has: the caller made it of this many.
    result(unsafe { libc::semctl(object.id, 0, libc::SETALL, values.as_ptr()) })?;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut all: libc::semid_ds = unsafe { std::mem::zeroed() };
    object.own(&mut all.sem_perm);
    // SAFETY: the kernel reads one `semid_ds`.
    result(unsafe { libc::semctl(object.id, 0, libc::IPC_SET, &raw mut all) }).map(drop)
}

/// Makes a message queue; its id.
pub fn make_queue(object: &Object) -> io::Result<i32> {
    // SAFETY: no memory of this process is read or written.
    result(unsafe { libc::msgget(object.key, object.flags()) })
}

/// How many bytes a queue holds at most.
pub fn queue_capacity(id: i32) -> io::Result<u64> {
    Ok(queue(id)?.msg_qbytes)
}

fn queue(id: i32) -> io::Result<libc::msqid_ds> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut all: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `msqid_ds`.
    result(unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut all) })?;
    Ok(all)
}

/// The message at a place in a queue, which keeps it: type and bytes; none behind the last.
///
/// # Errors
/// `E2BIG` for one of more than `most` bytes, `ENOSYS` from a kernel that cannot.
pub fn peek(id: i32, place: u32, most: usize) -> io::Result<Option<(i64, Vec<u8>)>> {
    let mut buffer = vec![0_u8; 8 + most];
    let flags = COPY | libc::IPC_NOWAIT;
    // SAFETY: the kernel writes a long and at most `most` bytes behind it.
    let count =
        unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), most, i64::from(place), flags) };
    if count < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOMSG) { Ok(None) } else { Err(error) };
    }
    buffer.truncate(8 + count as usize);
    let text = buffer.split_off(8);
    let kind = buffer.try_into().map_or(0, i64::from_ne_bytes);
    Ok(Some((kind, text)))
}

/// Puts a message into a queue, which must have room.
pub fn send(id: i32, kind: i64, text: &[u8]) -> io::Result<()> {
    let mut buffer = kind.to_ne_bytes().to_vec();
    buffer.extend_from_slice(text);
    // SAFETY: the kernel reads a long and as many bytes as it is told.
    result(unsafe { libc::msgsnd(id, buffer.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) })
        .map(drop)
}

/// Gives a queue its owner, permissions and capacity.
pub fn own_queue(object: &Object, capacity: u64) -> io::Result<()> {
    let mut all = queue(object.id)?;
    object.own(&mut all.msg_perm);
    all.msg_qbytes = capacity;
    // SAFETY: the kernel reads one `msqid_ds`.
    result(unsafe { libc::msgctl(object.id, libc::IPC_SET, &raw mut all) }).map(drop)
}

fn result(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes back now what this thread would take back of semaphores at its end, and has none of that
/// from then on: as one that never started another. See `CLONE_SYSVSEM` in
/// [unshare(2)](https://man7.org/linux/man-pages/man2/unshare.2.html).
pub fn drop_adjustments() -> io::Result<()> {
    // SAFETY: no memory is passed, and nothing but the list is unshared.
    if unsafe { libc::unshare(libc::CLONE_SYSVSEM) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_looked_at_and_stay() {
        let object = Object { mode: 0o600, ..Object::default() };
        let id = make_queue(&object).unwrap();
        send(id, 7, b"first").unwrap();
        send(id, 3, b"").unwrap();
        let looked = (peek(id, 0, 100), peek(id, 1, 100), peek(id, 2, 100), peek(id, 0, 4));
        // SAFETY: no argument.
        result(unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).unwrap();
        if matches!(&looked.0, Err(error) if error.raw_os_error() == Some(libc::ENOSYS)) {
            return;
        }
        assert_eq!(looked.0.unwrap(), Some((7, b"first".to_vec())));
        assert_eq!(looked.1.unwrap(), Some((3, Vec::new())));
        assert_eq!(looked.2.unwrap(), None);
        assert_eq!(looked.3.unwrap_err().raw_os_error(), Some(libc::E2BIG));
    }

    #[test]
    fn memory_is_attached_where_nothing_is() {
        let object = Object { mode: 0o600, ..Object::default() };
        let id = make_memory(&object, 5000).unwrap();
        let at = 0x4700_0000_0000;
        let mut pages = attach(id, Some(at), 8192, false).unwrap();
        let again = attach(id, Some(at), 8192, false).map(drop);
        pages.write(at + 4998, b"bytes").unwrap();
        let other = attach(id, None, 8192, true).unwrap();
        destroy_memory(id).unwrap();
        assert!(again.is_err());
        let mut copy = Pages::map(0x4800_0000_0000, 4096, false).unwrap();
        copy.copy_from(copy.start(), &other, other.start() + 4998, 5).unwrap();
        assert_eq!(copy.load(0).to_le_bytes(), *b"byte");
        for pages in [pages, other, copy] {
            pages.unmap().unwrap();
        }
    }

    #[test]
    fn semaphores_are_made_of_values() {
        let object = Object { mode: 0o600, ..Object::default() };
        let id = make_semaphores(&object, 3).unwrap();
        let object = Object { id, ..object };
        own_semaphores(&object, &[5, 0, 32767], true).unwrap();
        let read = values(id, 3);
        let of_other_size = values(id, 2);
        // SAFETY: no argument.
        result(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).unwrap();
        assert_eq!(read.unwrap(), [5, 0, 32767]);
        assert!(of_other_size.is_err());
    }
}
