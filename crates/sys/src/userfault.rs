//! Marks on the pages that another process writes, by its userfaultfd(2).
//!
//! A descriptor made by that process itself, and taken from it, is all it takes. The kernel marks
//! by itself (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7): nobody waits for anybody, and reads and writes
//! of the kernel's own count too. Marks are set and told by
//! [`scan_pages`](crate::remote::scan_pages), and are all gone when the descriptor is.
//!
//! See [`ioctl_userfaultfd(2)`](https://man7.org/linux/man-pages/man2/ioctl_userfaultfd.2.html) and
//! `Documentation/admin-guide/mm/pagemap.rst`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `UFFD_USER_MODE_ONLY` of linux/userfaultfd.h: what everybody may have.
const USER_MODE_ONLY: u32 = 1;

/// The flags of the call that makes the descriptor.
pub const FLAGS: u32 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u32 | USER_MODE_ONLY;

/// Whether this kernel marks by itself what is written.
pub fn is_offered() -> bool {
    // SAFETY: takes flags alone and returns a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
    // SAFETY: as above; nobody else has it.
    fd >= 0 && Marks::new(unsafe { OwnedFd::from_raw_fd(fd as i32) }).is_ok()
}

/// Marks on memory of the process that made the descriptor.
#[derive(Debug)]
pub struct Marks(OwnedFd);

impl Marks {
    /// Sets up a descriptor that was made with [`FLAGS`].
    ///
    /// # Errors
    /// `EINVAL` on kernels before 6.7.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        const UFFD_API: u64 = 0xaa;
        /// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
        const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
        const WP_ASYNC: u64 = 1 << 15;
        // `struct uffdio_api`: version, features, ioctls.
        let mut api = [UFFD_API, WP_ASYNC, 0];
        // SAFETY: the kernel reads and writes the three words that the pointer is to.
        match unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) } {
            0 => Ok(Self(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has writes to mapped private memory told from now on; what is written already counts as
    /// written.
    ///
    /// # Errors
    /// `EINVAL` where something else is mapped, `EBUSY` where another descriptor marks.
    pub fn track(&self, start: u64, length: u64) -> io::Result<()> {
        /// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
        const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
        const WRITE_PROTECT: u64 = 1 << 1;
        // `struct uffdio_register`: start, length, mode, ioctls.
        let mut register = [start, length, WRITE_PROTECT, 0];
        // SAFETY: the kernel reads and writes the four words that the pointer is to; what it
        // changes is another process's.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::memory::Pages;
    use crate::remote::{PageScan, page, scan_pages};

    const PAGE: u64 = 4096;

    fn own_marks() -> io::Result<Marks> {
        // SAFETY: takes flags alone and returns a new descriptor, which is nobody else's.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        Marks::new(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    #[test]
    fn what_is_written_after_a_scan_is_told_by_the_next() {
        let mut pages = Pages::map(0x4300_0000_0000, 4 * PAGE, false).unwrap();
        let (start, end) = (pages.start(), pages.start() + pages.length());
        pages.write(start, &[1; 3 * PAGE as usize]).unwrap();
        let marks = own_marks().unwrap();
        marks.track(start, pages.length()).unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let written = |protect| {
            let scan = PageScan {
                all_of: page::WRITTEN,
                any_of: page::PRESENT,
                protect,
                ..PageScan::default()
            };
            let found = scan_pages(&pagemap, start, end, scan).unwrap();
            found.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>()
        };
        assert_eq!(written(true), [(start, start + 3 * PAGE)]);
        assert_eq!(written(false), []);
        pages.write(start + PAGE, b"new").unwrap();
        // By the kernel on behalf of this process, and where there was nothing before.
        let zeros = File::open("/dev/zero").unwrap();
        pages.read_from(start + 3 * PAGE, 1, &zeros, 0).unwrap();
        assert_eq!(
            written(false),
            [(start + PAGE, start + 2 * PAGE), (start + 3 * PAGE, end)]
        );
        drop(marks);
        assert_eq!(written(false), [(start, end)], "without marks all counts as written");
        pages.unmap().unwrap();
    }
}
