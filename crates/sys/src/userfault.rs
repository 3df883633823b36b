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

use crate::memory::Pages;

/// `UFFD_USER_MODE_ONLY` of linux/userfaultfd.h: what everybody may have.
const USER_MODE_ONLY: u32 = 1;

/// The flags of the call that makes the descriptor.
pub const FLAGS: u32 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u32 | USER_MODE_ONLY;

/// Whether this kernel marks by itself what is written.
pub fn is_offered() -> bool {
    open().and_then(Marks::new).is_ok()
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
        const WP_ASYNC: u64 = 1 << 15;
        agree(&fd, WP_ASYNC)?;
        Ok(Self(fd))
    }

    /// Has writes to mapped private memory told from now on; what is written already counts as
    /// written.
    ///
    /// # Errors
    /// `EINVAL` where something else is mapped, `EBUSY` where another descriptor marks.
    pub fn track(&self, start: u64, length: u64) -> io::Result<()> {
        const WRITE_PROTECT: u64 = 1 << 1;
        register(&self.0, start, length, WRITE_PROTECT)
    }
}

/// Moves pages of this process to one range of its own.
#[derive(Debug)]
pub(crate) struct Mover {
    fd: OwnedFd,
    to: u64,
    length: u64,
}

impl Mover {
    /// Moves to a range of private memory, which nobody touches meanwhile.
    ///
    /// # Errors
    /// `EINVAL` on kernels before 6.8.
    pub(crate) fn to(to: u64, length: u64) -> io::Result<Self> {
        const MOVE: u64 = 1 << 16;
        const MISSING: u64 = 1 << 0;
        let fd = open()?;
        agree(&fd, MOVE)?;
        register(&fd, to, length, MISSING)?;
        Ok(Self { fd, to, length })
    }

    /// Moves the first of these pages, which are gone from there then.
    pub(crate) fn from(&self, pages: &mut Pages) -> io::Result<()> {
        /// `_IOWR(0xaa, 0x05, struct uffdio_move)`.
        const UFFDIO_MOVE: libc::Ioctl = 0xc028_aa05_u32 as libc::Ioctl;
        const ALLOW_SRC_HOLES: u64 = 1 << 1;
        pages.within(pages.start(), self.length)?;
        // `struct uffdio_move`: where to, where from, length, mode, bytes moved.
        let mut arg = [self.to, pages.start(), self.length, ALLOW_SRC_HOLES, 0];
        // SAFETY: the kernel reads and writes the five words that the pointer is to. What it moves
        // from is the caller's alone, and becomes zeros; what it moves to was registered by who
        // owns it, and holds nothing: it fails where it does.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_MOVE, arg.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: takes flags alone and returns a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Agrees with the kernel on features.
fn agree(fd: &OwnedFd, features: u64) -> io::Result<()> {
    const UFFD_API: u64 = 0xaa;
    /// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
    const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
    // `struct uffdio_api`: version, features, ioctls.
    let mut api = [UFFD_API, features, 0];
    // SAFETY: the kernel reads and writes the three words that the pointer is to.
    match unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn register(fd: &OwnedFd, start: u64, length: u64, mode: u64) -> io::Result<()> {
    /// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
    const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;
    // `struct uffdio_register`: start, length, mode, ioctls.
    let mut register = [start, length, mode, 0];
    // SAFETY: the kernel reads and writes the four words that the pointer is to. It changes when
    // faults of a range are told of, which stops nobody: this is asked for to mark writes, or for
    // pages that nobody touches.
    match unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::remote::{PageScan, page, scan_pages};

    const PAGE: u64 = 4096;

    #[test]
    fn what_is_written_after_a_scan_is_told_by_the_next() {
        let mut pages = Pages::map(0x4300_0000_0000, 4 * PAGE, false).unwrap();
        let (start, end) = (pages.start(), pages.start() + pages.length());
        pages.write(start, &[1; 3 * PAGE as usize]).unwrap();
        let marks = open().and_then(Marks::new).unwrap();
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
        assert_eq!(written(false), [(start + PAGE, start + 2 * PAGE), (start + 3 * PAGE, end)]);
        drop(marks);
        assert_eq!(written(false), [(start, end)], "without marks all counts as written");
        pages.unmap().unwrap();
    }
}
