//! System calls that are tried in this process; each does nothing that lasts.

use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::thread::CapabilitySet;

use super::{Feature, Findings};

/// What everything rests on.
pub(super) fn essential(found: &mut Findings) {
    let me = rustix::process::getpid();
    let flags = rustix::process::PidfdFlags::empty();
    let pidfd = rustix::process::pidfd_open(me, flags);
    found.tried(Feature::Pidfd, nothing(pidfd), None);
    let (path, beneath) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_MAGICLINKS);
    let opened = rustix::fs::openat2(CWD, "/", path, Mode::empty(), beneath);
    found.tried(Feature::Openat2, nothing(opened), None);
    let memfd = rustix::fs::memfd_create("probe", rustix::fs::MemfdFlags::CLOEXEC);
    found.tried(Feature::Memfd, nothing(memfd), None);
    found.tried(Feature::CloseRange, close_range(), None);
    let errno = seccomp_action(libc::SECCOMP_RET_ERRNO);
    found.tried(Feature::Seccomp, errno, Some("use a kernel with CONFIG_SECCOMP_FILTER"));
}

/// Everything.
pub(super) fn all(found: &mut Findings) {
    essential(found);
    found.tried(Feature::SeccompNotify, seccomp_action(libc::SECCOMP_RET_USER_NOTIF), None);
    found.tried(Feature::PagemapScan, pagemap_scan(), Some("use Linux 6.7 or newer"));
    faults(found);
    io_uring(found);
    let held = rustix::thread::capabilities(None).map(|sets| sets.effective);
    match held {
        Ok(held) if held.contains(CapabilitySet::CHECKPOINT_RESTORE) => {
            found.present(Feature::CheckpointRestore, "held");
        }
        Ok(held) if held.contains(CapabilitySet::SYS_ADMIN) => {
            found.present(Feature::CheckpointRestore, "by CAP_SYS_ADMIN");
        }
        Ok(_) => {
            let remedy = "setcap cap_checkpoint_restore+ep on the forkyard binary";
            found.absent(Feature::CheckpointRestore, "not held", Some(remedy));
        }
        Err(errno) => found.unknown(Feature::CheckpointRestore, errno.to_string()),
    }
}

fn nothing<T>(result: rustix::io::Result<T>) -> io::Result<()> {
    Ok(result.map(drop)?)
}

fn answered(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn close_range() -> io::Result<()> {
    // SAFETY: no descriptor has this number, for it is beyond the kernel's limit: nothing closes.
    answered(unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, 0) })
}

/// `SECCOMP_GET_ACTION_AVAIL` of seccomp(2).
fn seccomp_action(action: u32) -> io::Result<()> {
    // SAFETY: the kernel reads the word that the pointer is to.
    answered(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            std::ptr::from_ref(&action),
        )
    })
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vector: u64,
    vector_length: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_any_of_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;

fn pagemap_scan() -> io::Result<()> {
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    let page = rustix::param::page_size() as u64;
    let start = std::ptr::from_ref(&pagemap) as u64 & !(page - 1);
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        start,
        end: start + page,
        // PAGE_IS_PRESENT; without a vector the kernel only walks.
        category_mask: 1 << 3,
        return_mask: 1 << 3,
        ..ScanArgument::default()
    };
    // SAFETY: `argument` has the size that it states, and the kernel writes nothing outside it.
    let result = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    answered(result.into())
}

/// userfaultfd(2), and what `UFFDIO_API` says of its features.
fn faults(found: &mut Findings) {
    const USER_MODE_ONLY: libc::c_int = 1;
    const UFFD_API: u64 = 0xaa;
    /// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
    const UFFDIO_API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
    const WP_ASYNC: u64 = 1 << 15;

    let flags = libc::O_CLOEXEC | USER_MODE_ONLY;
    // SAFETY: takes flags alone and returns a new descriptor.
    let result = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if result < 0 {
        let error = io::Error::last_os_error().to_string();
        let remedy = Some("use a kernel with CONFIG_USERFAULTFD");
        found.absent(Feature::Userfaultfd, error.clone(), remedy);
        found.absent(Feature::WriteProtectAsync, error, None);
        return;
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd =
        unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(result as i32) };
    found.present(Feature::Userfaultfd, "user mode faults");
    // `struct uffdio_api`: version, features, ioctls.
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: the kernel fills the three words that the pointer is to.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) };
    match answered(result.into()) {
        Ok(()) if api[1] & WP_ASYNC != 0 => found.present(Feature::WriteProtectAsync, "works"),
        Ok(()) => {
            let remedy = Some("use Linux 6.7 or newer");
            found.absent(Feature::WriteProtectAsync, "not offered", remedy);
        }
        Err(error) => found.unknown(Feature::WriteProtectAsync, error.to_string()),
    }
}

fn io_uring(found: &mut Findings) {
    // SAFETY: no entries and a null pointer: the kernel refuses it as invalid, unless it refuses
    // io_uring altogether.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, 0) };
    match answered(result).map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) | Err((Some(libc::EFAULT | libc::EINVAL), _)) => {
            found.present(Feature::IoUring, "works");
        }
        Err((_, error)) => {
            let remedy = Some("sysctl -w kernel.io_uring_disabled=0");
            found.absent(Feature::IoUring, error.to_string(), remedy);
        }
    }
}
