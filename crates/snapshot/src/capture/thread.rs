//! One thread.

use forkyard_sys::stub::Op;
use forkyard_sys::{ptrace, remote, schedule};
use rustix::process::Pid;

use crate::error::{Context, Result};
use crate::inject::{Hand, restart};
use crate::picture::{Credentials, Scheduling, Signal, Thread};
use crate::proc::{self, Status};
use crate::registers;

/// Room for the ops and answers of one thread.
pub(super) const THREAD_ROOM: u64 = 1024;

/// Offsets of what a thread is asked for, in its data.
const STACK: usize = 0;
const CLEAR_TID: usize = 24;
const DEATH_SIGNAL: usize = 32;
const LENGTH: usize = 40;

/// Reads a thread; with the status that tells of its process too.
pub(super) fn read(hand: &mut Hand<'_>, pid: Pid, tid: Pid, at: u64) -> Result<(Thread, Status)> {
    let failed = |what: &'static str| move || format!("{what} of thread {tid}");
    // Before the stub: these are the thread's own.
    let (mut general, mask) = hand.original(tid)?;
    let extended = ptrace::extended_registers(tid).context(failed("PTRACE_GETREGSET"))?;
    let rseq = ptrace::rseq(tid).unwrap_or_default();
    let data_at = hand.data_address(at, 5);
    let prctl =
        |what: i32, arg: u64| Op::call(libc::SYS_prctl, [what as u64, arg, 0, 0, 0, 0]).keep();
    let ops = [
        Op::call(libc::SYS_sigaltstack, [0, data_at + STACK as u64, 0, 0, 0, 0]).keep(),
        prctl(libc::PR_GET_TID_ADDRESS, data_at + CLEAR_TID as u64),
        prctl(libc::PR_GET_PDEATHSIG, data_at + DEATH_SIGNAL as u64),
        prctl(libc::PR_GET_TIMERSLACK, 0),
        prctl(libc::PR_GET_SECUREBITS, 0),
    ];
    let mut data = vec![0; LENGTH];
    let results = hand.ask(tid, at, &ops, &mut data)?;
    let word = |at: usize| {
        let bytes = data.get(at..at + 8).unwrap_or_default();
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    let result = |n: usize| results.get(n).copied().unwrap_or_default();
    if rseq.address != 0 {
        leave_sequence(pid, rseq.address, &mut general)?;
    }
    restart(&mut general, false);
    let status = Status::read_thread(pid, tid.as_raw_nonzero().get().cast_unsigned())?;
    let scheduling = schedule::attributes(tid).context(failed("sched_getattr"))?;
    let thread = Thread {
        tid: status.inner_id("NSpid"),
        registers: registers::words(&general).to_vec(),
        extended,
        mask,
        pending: pending(tid, false)?,
        alternate_stack: [word(STACK), word(STACK + 8) & 0xffff_ffff, word(STACK + 16)],
        clear_tid: word(CLEAR_TID),
        robust_list: remote::robust_list(tid).context(failed("get_robust_list"))?,
        rseq: (rseq.address, rseq.length, rseq.signature),
        name: name(pid, tid)?,
        credentials: credentials(&status, result(4) as u32),
        death_signal: word(DEATH_SIGNAL) as i32,
        timer_slack: result(3).cast_unsigned(),
        scheduling: Scheduling {
            policy: scheduling.policy,
            nice: scheduling.nice,
            priority: scheduling.priority,
            flags: scheduling.flags,
        },
        affinity: schedule::affinity(tid).context(failed("sched_getaffinity"))?,
    };
    Ok((thread, status))
}

fn name(pid: Pid, tid: Pid) -> Result<Vec<u8>> {
    let mut name = proc::read(pid, &format!("task/{tid}/comm"))?;
    name.pop();
    Ok(name)
}

/// A thread that is stopped within a restartable sequence goes on where that is aborted: it will
/// not find itself on the same processor.
fn leave_sequence(pid: Pid, rseq: u64, registers: &mut ptrace::Registers) -> Result<()> {
    let read = |at: u64, bytes: &mut [u8]| {
        let length = bytes.len();
        let mut to = [std::io::IoSliceMut::new(bytes)];
        let count = remote::read_memory(pid, &[(at, length)], &mut to);
        count.context(|| "reading a restartable sequence".to_owned()).map(|count| count == length)
    };
    let word = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 8).unwrap_or_default();
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    // `rseq_cs` of `struct rseq`, then `start_ip`, `post_commit_offset`, `abort_ip` there.
    let mut pointer = [0; 8];
    if !read(rseq + 8, &mut pointer)? || word(&pointer, 0) == 0 {
        return Ok(());
    }
    let mut section = [0; 32];
    if !read(word(&pointer, 0), &mut section)? {
        return Ok(());
    }
    let (start, length, abort) = (word(&section, 8), word(&section, 16), word(&section, 24));
    if registers.rip.wrapping_sub(start) < length {
        registers.rip = abort;
    }
    Ok(())
}

/// Signals that wait for a thread, or for its process.
pub(super) fn pending(tid: Pid, of_process: bool) -> Result<Vec<Signal>> {
    let signals = ptrace::pending_signals(tid, of_process);
    let signals = signals.context(|| "PTRACE_PEEKSIGINFO".to_owned())?;
    Ok(signals.into_iter().map(|info| Signal(info.to_vec())).collect())
}

fn credentials(status: &Status, secure_bits: u32) -> Credentials {
    Credentials {
        uids: status.numbers("Uid"),
        gids: status.numbers("Gid"),
        groups: status.words("Groups").filter_map(|word| word.parse().ok()).collect(),
        capabilities: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .map(|name| status.hexadecimal(name)),
        secure_bits,
    }
}
