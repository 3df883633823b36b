//! Memory and descriptors of other processes.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};

use rustix::process::Pid;

/// Reads memory of a process into several places, `at` and on; gives how many bytes were read.
///
/// See [process_vm_readv(2)](https://man7.org/linux/man-pages/man2/process_vm_readv.2.html).
pub fn read_memory(
    pid: Pid,
    from: &[(u64, usize)],
    to: &mut [IoSliceMut<'_>],
) -> io::Result<usize> {
    let remote: Vec<libc::iovec> = from
        .iter()
        .map(|&(at, length)| libc::iovec { iov_base: at as *mut libc::c_void, iov_len: length })
        .collect();
    // SAFETY: an `IoSliceMut` has the layout of `iovec`, and is valid for writes; the other
    // process's addresses are checked by the kernel.
    let count = unsafe {
        libc::process_vm_readv(
            pid.as_raw_nonzero().get(),
            to.as_mut_ptr().cast(),
            to.len() as u64,
            remote.as_ptr(),
            remote.len() as u64,
            0,
        )
    };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// Writes memory of a process, where it may write itself; gives how many bytes were written.
pub fn write_memory(pid: Pid, at: u64, bytes: &[u8]) -> io::Result<usize> {
    let local = [IoSlice::new(bytes)];
    let remote = [libc::iovec { iov_base: at as *mut libc::c_void, iov_len: bytes.len() }];
    // SAFETY: an `IoSlice` has the layout of `iovec`; the other process's addresses are checked by
    // the kernel.
    let count = unsafe {
        libc::process_vm_writev(
            pid.as_raw_nonzero().get(),
            local.as_ptr().cast(),
            1,
            remote.as_ptr(),
            1,
            0,
        )
    };
    if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
}

/// What two descriptors, or two processes, may have in common; see
/// [kcmp(2)](https://man7.org/linux/man-pages/man2/kcmp.2.html).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An open file description; the numbers are descriptors.
    File,
    /// The table of descriptors.
    Files,
    /// Working directory, root and umask.
    Fs,
    /// Signal handlers.
    SignalHandlers,
    /// Memory.
    Memory,
    /// What System V semaphores are to be adjusted by at the end; equal where there is no list yet.
    Adjustments,
}

/// The order of what two processes have, by the kernel's own measure.
pub fn compare(kind: Kind, one: (Pid, u64), other: (Pid, u64)) -> io::Result<std::cmp::Ordering> {
    let kind = match kind {
        Kind::File => 0,
        Kind::Memory => 1,
        Kind::Files => 2,
        Kind::Fs => 3,
        Kind::SignalHandlers => 4,
        Kind::Adjustments => 6,
    };
    // SAFETY: kcmp reads no memory of this process.
    ordering(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            one.0.as_raw_nonzero().get(),
            other.0.as_raw_nonzero().get(),
            kind,
            one.1,
            other.1,
        )
    })
}

/// What kcmp(2) returns, as an order.
pub(crate) fn ordering(result: libc::c_long) -> io::Result<std::cmp::Ordering> {
    match result {
        0 => Ok(std::cmp::Ordering::Equal),
        1 => Ok(std::cmp::Ordering::Less),
        2 | 3 => Ok(std::cmp::Ordering::Greater),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where a thread's list of robust futexes begins, and its length; see `get_robust_list`(2).
pub fn robust_list(tid: Pid) -> io::Result<(u64, u64)> {
    let (mut head, mut length) = (0_u64, 0_u64);
    // SAFETY: the kernel writes one pointer and one size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            tid.as_raw_nonzero().get(),
            &raw mut head,
            &raw mut length,
        )
    };
    if result == 0 { Ok((head, length)) } else { Err(io::Error::last_os_error()) }
}

/// Who is told of an open file description by a signal: kind, id as this process sees it, and
/// signal; see `F_GETOWN_EX` in fcntl(2).
pub fn signal_owner(file: impl AsFd) -> io::Result<Option<(i32, i32, i32)>> {
    const F_GETSIG: i32 = 11;
    const F_GETOWN_EX: i32 = 16;
    let mut owner = [0_i32; 2];
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the kernel writes a `struct f_owner_ex`, two integers; the second call takes none.
    let (result, signal) =
        unsafe { (libc::fcntl(fd, F_GETOWN_EX, owner.as_mut_ptr()), libc::fcntl(fd, F_GETSIG)) };
    if result < 0 || signal < 0 {
        return Err(io::Error::last_os_error());
    }
    let [kind, id] = owner;
    Ok((id != 0 || signal != 0).then_some((kind, id, signal)))
}

/// Pages of a process that `PAGEMAP_SCAN` found alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PageRange {
    /// First address.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// What they have of [`PageScan::report`].
    pub categories: u64,
}

/// Properties of pages, `PAGE_IS_*` of linux/fs.h.
pub mod page {
    /// Written since write protection began.
    pub const WRITTEN: u64 = 1 << 1;
    /// Belongs to a file, or to shared memory.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// Swapped out, or on its way.
    pub const SWAPPED: u64 = 1 << 4;
    /// The zero page.
    pub const ZERO: u64 = 1 << 5;
    /// A guard installed by madvise.
    pub const GUARD: u64 = 1 << 8;
}

/// What to look for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageScan {
    /// These are looked at the other way round.
    pub inverted: u64,
    /// All of these must be.
    pub all_of: u64,
    /// One of these must be, where any is given.
    pub any_of: u64,
    /// These are told.
    pub report: u64,
    /// What is found is protected from writes again, where tracking is set up.
    pub protect: bool,
}

/// Scans pages between two addresses by a process's `/proc/PID/pagemap`.
///
/// See `Documentation/admin-guide/mm/pagemap.rst`.
///
/// # Errors
/// `ENOTTY` on kernels before 6.7.
pub fn scan_pages(
    pagemap: &File,
    start: u64,
    end: u64,
    scan: PageScan,
) -> io::Result<Vec<PageRange>> {
    #[repr(C)]
    #[derive(Default)]
    struct Arg {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }
    // _IOWR('f', 16, struct pm_scan_arg)
    const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<Arg>() as u64) << 16 | (b'f' as u64) << 8 | 16;
    let mut found = Vec::new();
    let mut chunk = vec![PageRange::default(); 512];
    let mut from = start;
    while from < end {
        let mut arg = Arg {
            size: size_of::<Arg>() as u64,
            flags: u64::from(scan.protect),
            start: from,
            end,
            vec: chunk.as_mut_ptr() as u64,
            vec_len: chunk.len() as u64,
            category_inverted: scan.inverted,
            category_mask: scan.all_of,
            category_anyof_mask: scan.any_of,
            return_mask: scan.report,
            ..Arg::default()
        };
        // SAFETY: `arg` is as the kernel lays it out; it writes at most `vec_len` ranges to `vec`.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        found.extend_from_slice(chunk.get(..count as usize).unwrap_or_default());
        if arg.walk_end <= from {
            break;
        }
        from = arg.walk_end;
    }
    Ok(found)
}

/// The name of what a process has mapped at an address, by its `/proc/PID/maps`: without the
/// escapes of that file.
///
/// See `PROCMAP_QUERY` of linux/fs.h.
///
/// # Errors
/// `ENOTTY` on kernels before 6.11, `ENOENT` where nothing is mapped.
pub fn mapping_name(maps: &File, address: u64) -> io::Result<Vec<u8>> {
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        size: u64,
        lookup: u64,
        address: u64,
        start: u64,
        end: u64,
        flags: u64,
        page_size: u64,
        offset: u64,
        inode: u64,
        device: [u32; 2],
        name_size: u32,
        build_id_size: u32,
        name_addr: u64,
        build_id_addr: u64,
    }
    // _IOWR('f', 17, struct procmap_query)
    const PROCMAP_QUERY: u64 =
        3 << 30 | (size_of::<Query>() as u64) << 16 | (b'f' as u64) << 8 | 0x11;
    let mut name = vec![0_u8; libc::PATH_MAX as usize];
    let mut query = Query {
        size: size_of::<Query>() as u64,
        address,
        name_size: name.len() as u32,
        name_addr: name.as_mut_ptr() as u64,
        ..Query::default()
    };
    // SAFETY: `query` is as the kernel lays it out; it writes at most `name_size` bytes to `name`,
    // which lives until the call returns.
    if unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // With the zero that ends it.
    name.truncate((query.name_size as usize).saturating_sub(1));
    Ok(name)
}
