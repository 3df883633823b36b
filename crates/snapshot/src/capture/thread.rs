//! One thread.

use forkyard_sys::ptrace::{self, Registers};
use forkyard_sys::stub::Op;
use forkyard_sys::{remote, schedule};
use rustix::process::Pid;

use super::attributes;
use crate::error::{Context, Result};
use crate::inject::{Asked, Hand, Original};
use crate::picture::{Credentials, Scheduling, Thread};
use crate::proc::{self, Status};

/// Room for the ops and answers of one thread.
pub(super) const THREAD_ROOM: u64 = 1024;

/// Offsets of what a thread is asked for, in its data.
const STACK: usize = 0;
const CLEAR_TID: usize = 24;
const DEATH_SIGNAL: usize = 32;
const TSC: usize = 40;

/// How many questions there are.
pub(super) const QUESTIONS: usize = 6;

/// Length of the data.
pub(super) const LENGTH: usize = 48;

/// A thread as it was before it was asked anything.
pub(super) struct Begun {
    tid: Pid,
    original: Original,
    extended: Vec<u8>,
}

/// Reads what would be lost when a thread is asked something.
pub(super) fn begin(hand: &mut Hand<'_>, tid: Pid) -> Result<Begun> {
    // Before the stub: these are the thread's own.
    let original = hand.original(tid)?;
    let extended =
        ptrace::extended_registers(tid).context(|| format!("PTRACE_GETREGSET of thread {tid}"))?;
    if ptrace::uses_tiles(&extended) {
        return Err(hand.refuse("it is in the middle of work with matrix registers (AMX)"));
    }
    Ok(Begun { tid, original, extended })
}

/// What a thread is asked, with its data at this address.
pub(super) fn questions(data_at: u64) -> [Op; QUESTIONS] {
    let prctl =
        |what: i32, arg: u64| Op::call(libc::SYS_prctl, [what as u64, arg, 0, 0, 0, 0]).keep();
    [
        Op::call(libc::SYS_sigaltstack, [0, data_at + STACK as u64, 0, 0, 0, 0]).keep(),
        prctl(libc::PR_GET_TID_ADDRESS, data_at + CLEAR_TID as u64),
        prctl(libc::PR_GET_PDEATHSIG, data_at + DEATH_SIGNAL as u64),
        prctl(libc::PR_GET_TIMERSLACK, 0),
        prctl(libc::PR_GET_SECUREBITS, 0),
        prctl(libc::PR_GET_TSC, data_at + TSC as u64),
    ]
}

/// Begins to ask a thread, with room at `at` for what it is asked.
pub(super) fn ask(hand: &mut Hand<'_>, tid: Pid, at: u64) -> Result<Asked> {
    let questions = questions(hand.data_address(at, QUESTIONS));
    hand.begin(tid, at, &questions, &[0; LENGTH])
}

/// Reads a thread but for the signals that wait for it, and for its general registers, which are
/// given as they were found; `results` and `data` are what it answered.
pub(super) fn finish(
    pid: Pid,
    begun: Begun,
    results: &[i64],
    data: &[u8],
) -> Result<(Thread, Registers, Status)> {
    let Begun { tid, original: Original { registers, mask, rseq, .. }, extended } = begun;
    let failed = |what: &'static str| move || format!("{what} of thread {tid}");
    let word = |at: usize| {
        let bytes = data.get(at..at + 8).unwrap_or_default();
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    let result = |n: usize| results.get(n).copied().unwrap_or_default();
    let status = Status::read_thread(pid, tid.as_raw_nonzero().get().cast_unsigned())?;
    let scheduling = schedule::attributes(tid).context(failed("sched_getattr"))?;
    let thread = Thread {
        tid: status.inner_id("NSpid"),
        registers: Vec::new(),
        extended,
        mask,
        pending: Vec::new(),
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
        attributes: attributes::thread(tid, &status, word(TSC) as u32)?,
    };
    Ok((thread, registers, status))
}

fn name(pid: Pid, tid: Pid) -> Result<Vec<u8>> {
    let mut name = proc::read_record(pid, &format!("task/{tid}/comm"))?;
    name.pop();
    Ok(name)
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
