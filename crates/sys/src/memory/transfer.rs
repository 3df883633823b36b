//! What pages hold, brought there and away: between pages, and between pages and files.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::Pages;

impl Pages {
    /// Whether all of this is within them.
    pub fn holds(&self, at: u64, length: u64) -> bool {
        let offset = at.checked_sub(self.start);
        let end = offset.and_then(|offset| offset.checked_add(length));
        end.is_some_and(|end| end <= self.length)
    }

    /// Has the kernel provide a part of them now, for writing, at once rather than page by page.
    /// Where it does not know how, they come as they are written.
    pub fn populate(&mut self, at: u64, length: u64) {
        let _ = self.advise(at, length, libc::MADV_POPULATE_WRITE);
    }

    /// Provides the long ones of the parts that are about to be filled.
    pub(super) fn populate_long(&mut self, parts: &[(u64, u64, u64)]) {
        /// Less, in bytes, comes as fast page by page.
        const LONG: u64 = 32 * 1024;
        for &(_, here, length) in parts.iter().filter(|(.., length)| *length >= LONG) {
            self.populate(here, length);
        }
    }

    /// Which parts there are in memory of a file that these pages show: address and length.
    ///
    /// See [mincore(2)](https://man7.org/linux/man-pages/man2/mincore.2.html).
    pub fn resident(&self) -> io::Result<Vec<(u64, u64)>> {
        const PAGE: u64 = 4096;
        let mut there = vec![0_u8; self.length.div_ceil(PAGE) as usize];
        // SAFETY: the kernel writes a byte for each page.
        let result = unsafe {
            libc::mincore(self.start as *mut libc::c_void, self.length as usize, there.as_mut_ptr())
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut parts: Vec<(u64, u64)> = Vec::new();
        let pages = (self.start..).step_by(PAGE as usize).zip(there);
        for (page, _) in pages.filter(|(_, there)| there & 1 != 0) {
            match parts.last_mut() {
                Some((start, length)) if *start + *length == page => *length += PAGE,
                _ => parts.push((page, PAGE)),
            }
        }
        Ok(parts)
    }

    /// Copies `length` bytes at `source` of other pages to `at` of these.
    ///
    /// # Errors
    /// `EFAULT` when it is not all within them.
    pub fn copy_from(&mut self, at: u64, from: &Self, source: u64, length: u64) -> io::Result<()> {
        self.within(at, length)?;
        from.within(source, length)?;
        // SAFETY: both are within pages of values that own them, which are readable and writable
        // until they are protected; `map` lets no two values own the same.
        unsafe {
            std::ptr::copy_nonoverlapping(source as *const u8, at as *mut u8, length as usize);
        }
        Ok(())
    }

    /// Writes `length` bytes at `at` to a file.
    ///
    /// # Errors
    /// `EFAULT` when it is not all within these pages, or what pwrite(2) gave.
    pub fn write_to(&self, at: u64, length: u64, file: impl AsFd, offset: u64) -> io::Result<()> {
        self.within(at, length)?;
        let mut done = 0;
        while done < length {
            // SAFETY: within these pages; the kernel alone reads them.
            let count = unsafe {
                libc::pwrite(
                    file.as_fd().as_raw_fd(),
                    (at + done) as *const libc::c_void,
                    (length - done) as usize,
                    (offset + done).cast_signed(),
                )
            };
            match count {
                -1 => return Err(io::Error::last_os_error()),
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => done += count as u64,
            }
        }
        Ok(())
    }

    /// Reads up to `length` bytes of a file into these pages at `at`; gives how many there were
    /// before its end, or before what cannot be read.
    ///
    /// # Errors
    /// `EFAULT` when it is not all within these pages, or what pread(2) gave at once.
    pub fn read_from(
        &mut self,
        at: u64,
        length: u64,
        file: impl AsFd,
        offset: u64,
    ) -> io::Result<u64> {
        self.within(at, length)?;
        let mut done = 0;
        while done < length {
            // SAFETY: within these pages, which are this value's own; the kernel alone writes them.
            let count = unsafe {
                libc::pread(
                    file.as_fd().as_raw_fd(),
                    (at + done) as *mut libc::c_void,
                    (length - done) as usize,
                    (offset + done).cast_signed(),
                )
            };
            match count {
                -1 if done == 0 => return Err(io::Error::last_os_error()),
                -1 | 0 => break,
                count => done += count as u64,
            }
        }
        Ok(done)
    }

    /// As [`Pages::fill`], by `/proc/PID/mem` of the process: slower, page by page, but it leaves
    /// pages that the process has in common with others, since a fork, to all of them. The calls
    /// of `process_vm_readv`(2) pin what they read, and the kernel makes such pages its own first.
    ///
    /// # Errors
    /// `EFAULT` when a place is not within these pages, or cannot be read all of it.
    pub fn fill_from(&mut self, memory: impl AsFd, parts: &[(u64, u64, u64)]) -> io::Result<()> {
        self.populate_long(parts);
        parts.iter().try_for_each(|&(there, here, length)| {
            match self.read_from(here, length, &memory, there)? {
                read if read == length => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            }
        })
    }

    pub(crate) fn within(&self, at: u64, length: u64) -> io::Result<()> {
        if self.holds(at, length) {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::EFAULT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn bytes_go_through_pages_and_files_and_not_past_their_ends() {
        let mut one = Pages::map(0x4100_0000_0000, 2 * PAGE, false).unwrap();
        let mut other = Pages::map(0x4200_0000_0000, PAGE, false).unwrap();
        one.write(one.start() + PAGE, b"bytes").unwrap();
        other.copy_from(other.start(), &one, one.start() + PAGE, PAGE).unwrap();
        let file = tempfile();
        other.write_to(other.start(), 5, &file, 3).unwrap();
        let target = one.start();
        assert_eq!(one.read_from(target, PAGE, &file, 0).unwrap(), 8);
        assert!(one.copy_from(target + PAGE, &other, other.start() + 1, PAGE).is_err());
        assert!(one.write_to(target + PAGE, PAGE + 1, &file, 0).is_err());
        assert!(one.read_from(target - 1, 1, &file, 0).is_err());
        assert!(!one.holds(target, u64::MAX));
        one.unmap().unwrap();
        other.unmap().unwrap();
    }

    fn tempfile() -> std::os::fd::OwnedFd {
        rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }
}
