//! Memory of this process at chosen addresses, filled from other processes.

mod huge;
mod transfer;

use std::io::{self, IoSliceMut};

use rustix::process::Pid;

use crate::remote;

pub use huge::HUGE;

/// The lowest address behind all that a process can map.
pub const ADDRESSES_END: u64 = 0x7fff_ffff_f000;

/// Has forks of this process inherit what is mapped in a range, or not; gaps in it do no harm.
///
/// For ranges in which only [`Pages`] lie, that a fork which does not inherit them does not use.
///
/// See `MADV_DONTFORK` in madvise(2).
pub fn set_inherited(start: u64, length: u64, inherited: bool) -> io::Result<()> {
    let advice = if inherited { libc::MADV_DOFORK } else { libc::MADV_DONTFORK };
    // SAFETY: nothing changes for this process. What forks do not have they do not use, as the
    // caller says.
    let result = unsafe { libc::madvise(start as *mut libc::c_void, length as usize, advice) };
    match io::Error::last_os_error() {
        // All that is mapped has been advised of.
        error if result < 0 && error.raw_os_error() != Some(libc::ENOMEM) => Err(error),
        _ => Ok(()),
    }
}

/// Pages of this process at an address of the caller's choice, where nothing else was. They stay
/// for the life of the process, and go on in its forks.
#[derive(Debug)]
pub struct Pages {
    start: u64,
    length: u64,
}

impl Pages {
    /// Maps private memory, all zeros, that counts only as far as it is used. With `grows_down`
    /// it is a stack, see `MAP_GROWSDOWN` in mmap(2).
    ///
    /// # Errors
    /// `EEXIST` where something is mapped there.
    pub fn map(start: u64, length: u64, grows_down: bool) -> io::Result<Self> {
        let kind = libc::MAP_PRIVATE;
        let kind = if grows_down { kind | libc::MAP_GROWSDOWN } else { kind };
        Self::map_as(start, length, kind)
    }

    /// Maps memory that this process shares with its forks; it too counts only as far as it is
    /// used.
    pub fn map_shared(start: u64, length: u64) -> io::Result<Self> {
        Self::map_as(start, length, libc::MAP_SHARED)
    }

    fn map_as(start: u64, length: u64, kind: i32) -> io::Result<Self> {
        // SAFETY: with MAP_FIXED_NOREPLACE nothing that exists is touched.
        let at = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                length as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                kind | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start, length })
    }

    /// Takes over what is mapped there.
    ///
    /// # Safety
    /// All of it is mapped, can be read, and nobody else unmaps or uses it.
    pub(crate) unsafe fn take(start: u64, length: u64) -> Self {
        Self { start, length }
    }

    /// First address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads memory of a process into these pages: pairs of an address there and one here, with a
    /// length.
    ///
    /// # Errors
    /// `EFAULT` when a place is not within these pages, or cannot be read all of it.
    pub fn fill(&mut self, pid: Pid, parts: &[(u64, u64, u64)]) -> io::Result<()> {
        /// `UIO_MAXIOV`
        const MOST: usize = 1024;
        let fault = || io::Error::from_raw_os_error(libc::EFAULT);
        self.populate_long(parts);
        for parts in parts.chunks(MOST) {
            let from: Vec<_> = parts.iter().map(|&(there, _, n)| (there, n as usize)).collect();
            let mut to = Vec::with_capacity(parts.len());
            for &(_, here, length) in parts {
                let offset = here.checked_sub(self.start).ok_or_else(fault)?;
                if offset.checked_add(length).is_none_or(|end| end > self.length) {
                    return Err(fault());
                }
                // SAFETY: within the pages that this value owns, which are mapped for writing
                // unless they were protected since, where the kernel's write fails. Parts that
                // overlap are only ever written by the kernel.
                let slice =
                    unsafe { std::slice::from_raw_parts_mut(here as *mut u8, length as usize) };
                to.push(IoSliceMut::new(slice));
            }
            let wanted: usize = from.iter().map(|&(_, length)| length).sum();
            if remote::read_memory(pid, &from, &mut to)? != wanted {
                return Err(fault());
            }
        }
        Ok(())
    }

    /// Writes into these pages.
    ///
    /// # Errors
    /// `EFAULT` when it is not all within them.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = at.checked_sub(self.start);
        let end = offset.and_then(|offset| offset.checked_add(bytes.len() as u64));
        if end.is_none_or(|end| end > self.length) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        // SAFETY: within the pages, which are this value's own.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        Ok(())
    }

    /// Changes what may be done with them, `PROT_*`: the last thing that happens to them here.
    /// Writing to them afterwards ends the process.
    pub fn protect(&self, protection: u32) -> io::Result<()> {
        // SAFETY: these pages are nobody's but this value's.
        let result = unsafe {
            libc::mprotect(self.start as *mut libc::c_void, self.length as usize, protection as i32)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Unmaps them.
    pub fn unmap(self) -> io::Result<()> {
        // SAFETY: these pages are nobody's but this value's, which is gone with this call.
        let result = unsafe { libc::munmap(self.start as *mut libc::c_void, self.length as usize) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives advice about a part of them, `MADV_*`: see madvise(2).
    pub fn advise(&mut self, start: u64, length: u64, advice: i32) -> io::Result<()> {
        let offset = start.checked_sub(self.start);
        let end = offset.and_then(|offset| offset.checked_add(length));
        if end.is_none_or(|end| end > self.length) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        // SAFETY: these pages are nobody's but this value's, and no reference into them lives.
        let result = unsafe { libc::madvise(start as *mut libc::c_void, length as usize, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Reads the 32-bit word at an offset, which other processes may write.
    pub fn load(&self, offset: u64) -> u32 {
        self.word(offset).load(std::sync::atomic::Ordering::Acquire)
    }

    /// Changes the 32-bit word at an offset, and wakes all who wait for it.
    pub fn store_and_wake(&self, offset: u64, value: u32) {
        let word = self.word(offset);
        word.store(value, std::sync::atomic::Ordering::Release);
        // SAFETY: FUTEX_WAKE does not touch memory; the address is valid.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
        }
    }

    /// Adds to the 32-bit word at an offset, and wakes all who wait for it; gives the sum.
    pub fn add_and_wake(&self, offset: u64, value: u32) -> u32 {
        let word = self.word(offset);
        let sum = word.fetch_add(value, std::sync::atomic::Ordering::AcqRel).wrapping_add(value);
        // SAFETY: as in `store_and_wake`.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
        }
        sum
    }

    /// Waits as long as the 32-bit word at an offset has this value, and not longer than `most`.
    pub fn wait_while(&self, offset: u64, value: u32, most: std::time::Duration) {
        let word = self.word(offset);
        let timeout = libc::timespec {
            tv_sec: most.as_secs() as libc::time_t,
            tv_nsec: most.subsec_nanos().into(),
        };
        // SAFETY: the word and the timeout live until the call returns; neither is written.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT,
                value,
                &raw const timeout,
            );
        }
    }

    fn word(&self, offset: u64) -> &std::sync::atomic::AtomicU32 {
        let offset = offset.min(self.length - 4) & !3;
        // SAFETY: aligned, within the pages, which live as long as this value; all access to it
        // by this program is atomic.
        unsafe { &*((self.start + offset) as *const std::sync::atomic::AtomicU32) }
    }
}
