//! How threads are scheduled.

use std::io;

use rustix::process::Pid;

/// `struct sched_attr` without deadlines: see
/// [sched_setattr(2)](https://man7.org/linux/man-pages/man2/sched_setattr.2.html).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `SCHED_*`
    pub policy: u32,
    /// `SCHED_FLAG_*`
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// 1 to 99 for real-time policies.
    pub priority: u32,
}

#[repr(C)]
#[derive(Default)]
struct Raw {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// A thread's.
pub fn attributes(tid: Pid) -> io::Result<Attributes> {
    let mut raw = Raw::default();
    // SAFETY: the kernel writes at most the size that it is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            tid.as_raw_nonzero().get(),
            &raw mut raw,
            size_of::<Raw>(),
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let Raw { policy, flags, nice, priority, .. } = raw;
    Ok(Attributes { policy, flags, nice, priority })
}

/// As the kernel reads it, for a call that is made later.
pub fn to_bytes(attributes: Attributes) -> [u8; 48] {
    let mut bytes = [0; 48];
    let mut at = 0;
    let mut put = |word: &[u8]| {
        bytes[at..at + word.len()].copy_from_slice(word);
        at += word.len();
    };
    put(&48_u32.to_le_bytes());
    put(&attributes.policy.to_le_bytes());
    put(&attributes.flags.to_le_bytes());
    put(&attributes.nice.to_le_bytes());
    put(&attributes.priority.to_le_bytes());
    bytes
}

/// Processors that a thread may run on, as the kernel's bit mask.
pub fn affinity(tid: Pid) -> io::Result<Vec<u8>> {
    // 8,192 processors, the most that the kernel is built for.
    let mut mask = vec![0_u8; 1024];
    // SAFETY: the kernel writes at most the length that it is given.
    let count = unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            tid.as_raw_nonzero().get(),
            mask.len(),
            mask.as_mut_ptr(),
        )
    };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    mask.truncate(count as usize);
    Ok(mask)
}

/// A thread's `ioprio_get`(2): class from bit 13, then level; 0 where it follows the nice value.
pub fn io_priority(tid: Pid) -> io::Result<u32> {
    const PROCESS: libc::c_int = 1;
    // SAFETY: no memory is passed.
    let result =
        unsafe { libc::syscall(libc::SYS_ioprio_get, PROCESS, tid.as_raw_nonzero().get()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as u32) }
}
