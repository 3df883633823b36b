//! Stopping threads of other processes, and what a tracer can ask and change of them.
//!
//! Threads are seized (`PTRACE_SEIZE`): that stops and signals nobody, and a tracer that dies lets
//! go without a trace. All calls must come from the thread that seized, and need a stopped thread
//! but for [`seize`] and [`interrupt`]. See [ptrace(2)](https://man7.org/linux/man-pages/man2/ptrace.2.html).

mod reap;

use std::io;

use rustix::process::Pid;

pub use reap::{Reaper, reap_meanwhile};

/// A thread that [`seize`] was called on, by its id in this process's pid namespace.
pub type Tid = Pid;

/// New processes and threads of a seized one are seized too, and stopped; [`Op::trap`] stops.
///
/// [`Op::trap`]: crate::stub::Op::trap
pub const FOLLOW: u64 = (libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACESECCOMP) as u64;

/// General registers, `struct user_regs_struct`.
pub type Registers = libc::user_regs_struct;

/// What became of a seized thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stopped because it was told to, or has just been born: with the signal that stopped its
    /// process where that is stopped for job control.
    Interrupted {
        /// SIGSTOP, SIGTSTP, SIGTTIN or SIGTTOU.
        job_control: Option<i32>,
    },
    /// It stopped to be told of an event: one of `PTRACE_EVENT_*`.
    Event(i32),
    /// It stopped before a signal is delivered.
    Signal(i32),
    /// It is gone.
    Gone,
}

/// Begins to trace a thread, without stopping it.
///
/// # Errors
/// `EPERM` where it is traced by another or may not be traced, `ESRCH` when it is gone.
pub fn seize(tid: Tid, options: u64) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options)
}

/// Has it stop soon.
pub fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets it run, a signal delivered where one is given.
pub fn resume(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as u64)
}

/// Ends tracing; it goes on as if nothing had been.
pub fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as u64)
}

/// Waits for a change of a seized thread, of any where none is named. `None` where `wait` is false
/// and there is none.
pub fn wait(tid: Option<Tid>, wait: bool) -> io::Result<Option<(Tid, Change)>> {
    let mut status = 0;
    let flags = libc::__WALL | if wait { 0 } else { libc::WNOHANG };
    let which = tid.map_or(-1, |tid| tid.as_raw_nonzero().get());
    // SAFETY: `status` is valid for writes.
    let found = unsafe { libc::waitpid(which, &raw mut status, flags) };
    let found = match found {
        -1 => return Err(io::Error::last_os_error()),
        found => Pid::from_raw(found),
    };
    Ok(found.map(|tid| (tid, decode(status))))
}

fn decode(status: i32) -> Change {
    if !libc::WIFSTOPPED(status) {
        return Change::Gone;
    }
    let signal = libc::WSTOPSIG(status) & 0x7f;
    match status >> 16 {
        0 => Change::Signal(signal),
        libc::PTRACE_EVENT_STOP => {
            Change::Interrupted { job_control: (signal != libc::SIGTRAP).then_some(signal) }
        }
        event => Change::Event(event),
    }
}

/// What an event is about: the new process or thread, in this process's pid namespace.
pub fn event_message(tid: Tid) -> io::Result<u64> {
    let mut message = 0_u64;
    // SAFETY: a u64 is written to a u64.
    unsafe { raw(libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message) as u64) }?;
    Ok(message)
}

/// Its general registers.
pub fn registers(tid: Tid) -> io::Result<Registers> {
    let mut registers = no_registers();
    // SAFETY: the kernel writes one `user_regs_struct`.
    unsafe { raw(libc::PTRACE_GETREGS, tid, 0, (&raw mut registers) as u64) }?;
    Ok(registers)
}

/// Changes its general registers.
pub fn set_registers(tid: Tid, registers: &Registers) -> io::Result<()> {
    // SAFETY: the kernel reads one `user_regs_struct`.
    unsafe { raw(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(registers) as u64) }
}

/// Registers that hold nothing.
pub fn no_registers() -> Registers {
    // SAFETY: all fields are integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// `NT_X86_XSTATE` of `linux/elf.h`.
const XSTATE: u64 = 0x202;

/// AMX tiles, among the parts of the processor's state.
pub const TILES: u64 = 1 << 18;

/// Its floating point, vector and other extended registers, as the processor's XSAVE lays them out,
/// up to the last that it uses: a signal frame takes no more than its thread may use.
pub fn extended_registers(tid: Tid) -> io::Result<Vec<u8>> {
    // Room for AMX tiles; the kernel says how much it wrote.
    let mut bytes = vec![0_u8; 16 * 1024];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel writes at most `iov_len` bytes to `iov_base`, and the length to `part`.
    unsafe { raw(libc::PTRACE_GETREGSET, tid, XSTATE, (&raw mut part) as u64) }?;
    bytes.truncate(part.iov_len);
    bytes.truncate(used_length(parts_in_use(&bytes)));
    Ok(bytes)
}

/// Whether extended registers hold AMX tiles.
pub fn uses_tiles(extended: &[u8]) -> bool {
    parts_in_use(extended) & TILES != 0
}

/// `XSTATE_BV` of the header, see "XSAVE Area" in volume 1 of Intel's Software Developer's Manual.
fn parts_in_use(extended: &[u8]) -> u64 {
    const HEADER: usize = 512;
    let word = extended.get(HEADER..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Where the last of these parts ends.
fn used_length(parts: u64) -> usize {
    /// The x87 and SSE registers, which have no entry of their own, and the header.
    const LEAST: usize = 576;
    let ends = part_ends().iter().zip(0..).filter(|(_, part)| parts >> part & 1 == 1);
    ends.map(|(&end, _)| end).max().unwrap_or_default().max(LEAST)
}

/// Where each part of the processor's state ends, beyond the first two.
///
/// To ask the processor takes ten microseconds and more in a virtual machine, each time: whoever
/// forks processes that stop others asks before.
#[cfg(target_arch = "x86_64")]
pub fn part_ends() -> &'static [usize; 63] {
    /// The leaf of CPUID that tells length and offset of each part.
    const STATE: u32 = 0xd;
    static ENDS: std::sync::OnceLock<[usize; 63]> = std::sync::OnceLock::new();
    ENDS.get_or_init(|| {
        let offered = std::arch::x86_64::__cpuid_count(STATE, 0);
        let offered = u64::from(offered.eax) | u64::from(offered.edx) << 32;
        std::array::from_fn(|part| {
            if part < 2 || offered >> part & 1 == 0 {
                return 0;
            }
            let told = std::arch::x86_64::__cpuid_count(STATE, part as u32);
            (told.eax + told.ebx) as usize
        })
    })
}

/// Where each part of the processor's state ends: behind all that there is.
#[cfg(not(target_arch = "x86_64"))]
pub fn part_ends() -> &'static [usize; 63] {
    &[usize::MAX; 63]
}

/// Its blocked signals, bit N - 1 for signal N.
pub fn signal_mask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes as many bytes as it is told, 8.
    unsafe { raw(libc::PTRACE_GETSIGMASK, tid, 8, (&raw mut mask) as u64) }?;
    Ok(mask)
}

/// Changes its blocked signals.
pub fn set_signal_mask(tid: Tid, mask: u64) -> io::Result<()> {
    // SAFETY: the kernel reads 8 bytes.
    unsafe { raw(libc::PTRACE_SETSIGMASK, tid, 8, (&raw const mask) as u64) }
}

/// A `siginfo_t` as the kernel has it.
pub type SignalInfo = [u8; 128];

/// Signals that wait for delivery: of the thread, or those of its whole process, oldest first; not
/// many more than `most`, for the time that it takes grows with the square of their number.
pub fn pending_signals(tid: Tid, of_process: bool, most: usize) -> io::Result<Vec<SignalInfo>> {
    let mut all = Vec::new();
    loop {
        let mut chunk = [[0_u8; 128]; 32];
        let args = libc::ptrace_peeksiginfo_args {
            off: all.len() as u64,
            flags: if of_process { libc::PTRACE_PEEKSIGINFO_SHARED } else { 0 },
            nr: chunk.len() as i32,
        };
        // SAFETY: `args` is read, and at most `nr` structures of 128 bytes are written to `chunk`;
        // the count comes back as the result.
        let count = unsafe {
            libc::ptrace(
                libc::PTRACE_PEEKSIGINFO,
                tid.as_raw_nonzero().get(),
                std::ptr::from_ref(&args),
                chunk.as_mut_ptr(),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        let count = (count as usize).min(chunk.len());
        all.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if count < chunk.len() || all.len() > most {
            return Ok(all);
        }
    }
}

/// Where a thread registered for restartable sequences, see rseq(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rseq {
    /// Address of its `struct rseq`; 0 where it did not register.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// What aborts are marked with.
    pub signature: u32,
}

/// Its restartable sequences.
pub fn rseq(tid: Tid) -> io::Result<Rseq> {
    // `struct ptrace_rseq_configuration` of linux/ptrace.h.
    const GET: libc::c_uint = 0x420f;
    let mut words = [0_u32; 6];
    // SAFETY: the kernel writes at most the length that it is given, 24 bytes.
    unsafe { raw(GET, tid, size_of_val(&words) as u64, (&raw mut words) as u64) }?;
    let [low, high, length, signature, ..] = words;
    Ok(Rseq { address: u64::from(high) << 32 | u64::from(low), length, signature })
}

/// Whether its system calls may be turned into signals, see "Syscall User Dispatch" of the kernel's
/// documents.
pub fn dispatches_calls(tid: Tid) -> io::Result<bool> {
    // `struct ptrace_sud_config`: mode, selector, offset, length; Linux 6.4.
    const GET: libc::c_uint = 0x4211;
    let mut words = [0_u64; 4];
    // SAFETY: the kernel writes at most the length that it is given, 32 bytes.
    unsafe { raw(GET, tid, size_of_val(&words) as u64, (&raw mut words) as u64) }?;
    Ok(words[0] != 0)
}

fn request(what: libc::c_uint, tid: Tid, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: the callers' requests read and write no memory of this process.
    unsafe { raw(what, tid, address, data) }
}

/// # Safety
/// `data` must be what the request says: a number, or the address of what it reads or writes.
unsafe fn raw(what: libc::c_uint, tid: Tid, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: by this function's contract.
    let result = unsafe { libc::ptrace(what, tid.as_raw_nonzero().get(), address, data) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
