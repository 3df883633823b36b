//! One thread: started, made what it was, and let go.

use forkyard_sys::schedule::{self, Attributes};
use forkyard_sys::stub::Op;

use super::program::Program;
use super::{attributes, credentials};
use crate::picture::{Signal, Thread};

/// Memory, files, signals and all else in common.
const FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// `struct clone_args` up to `set_tid_size`.
const CLONE_ARGS: usize = 10;

/// The gate at which the threads of a process wait for its leader: addresses of two words, so that
/// who arrives wakes nobody but the leader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate {
    /// How many are there.
    arrived: u64,
    /// Not zero when it is open.
    open: u64,
}

impl Gate {
    pub(super) fn new(program: &mut Program) -> Self {
        Self { arrived: program.put_words(&[0]), open: program.put_words(&[0]) }
    }

    /// Of the leader: waits for so many threads.
    pub(super) fn wait(self, threads: u32) -> Op {
        Op::wait_below(self.arrived, threads)
    }

    /// Of the leader: lets all go on.
    pub(super) fn open(self) -> [Op; 2] {
        [Op::add(self.open, 1), wake(self.open)]
    }
}

/// Starts a thread, which counts itself in at the gate, and waits there for the leader to open it.
pub(super) fn start(program: &mut Program, pid: u32, thread: &Thread, gate: Gate) -> Op {
    let mut ops = Vec::new();
    settle(program, pid, thread, &mut ops);
    ops.push(Op::add(gate.arrived, 1));
    ops.push(wake(gate.arrived));
    ops.push(Op::wait_while(gate.open, 0));
    ops.push(leave(program, thread));
    let ops = program.put_ops(&ops);
    let id = program.put_words(&[u64::from(thread.tid)]);
    let mut args = [0; CLONE_ARGS];
    // flags, then set_tid and set_tid_size: clone3(2).
    [args[0], args[8], args[9]] = [FLAGS, id, 1];
    let args = program.put_words(&args);
    Op::call(libc::SYS_clone3, [args, CLONE_ARGS as u64 * 8, 0, 0, 0, 0]).fork(ops).must()
}

/// All that a thread has for itself but registers, mask and alternate stack.
pub(super) fn settle(program: &mut Program, pid: u32, thread: &Thread, ops: &mut Vec<Op>) {
    let call = Op::call;
    let word = |n: usize| thread.registers.get(n).copied().unwrap_or_default();
    for (what, base) in [(0x1002, word(21)), (0x1001, word(22))] {
        // ARCH_SET_FS, ARCH_SET_GS
        ops.push(call(libc::SYS_arch_prctl, [what, base, 0, 0, 0, 0]).must());
    }
    ops.push(call(libc::SYS_set_tid_address, [thread.clear_tid, 0, 0, 0, 0, 0]));
    let (head, length) = thread.robust_list;
    if head != 0 {
        ops.push(call(libc::SYS_set_robust_list, [head, length, 0, 0, 0, 0]).must());
    }
    let (address, length, signature) = thread.rseq;
    if address != 0 {
        let args = [address, u64::from(length), 0, u64::from(signature), 0, 0];
        ops.push(call(libc::SYS_rseq, args).must());
    }
    let mut name = thread.name.clone();
    name.resize(16, 0);
    let name = program.put(&name);
    let prctl = |what: i32, value: u64| call(libc::SYS_prctl, [what as u64, value, 0, 0, 0, 0]);
    ops.push(prctl(libc::PR_SET_NAME, name));
    ops.push(prctl(libc::PR_SET_TIMERSLACK, thread.timer_slack));
    let affinity = program.put(&thread.affinity);
    let length = thread.affinity.len() as u64;
    ops.push(call(libc::SYS_sched_setaffinity, [0, length, affinity, 0, 0, 0]));
    let scheduling = thread.scheduling;
    let attributes = program.put(&schedule::to_bytes(Attributes {
        policy: scheduling.policy,
        flags: scheduling.flags,
        nice: scheduling.nice,
        priority: scheduling.priority,
    }));
    if scheduling.policy == libc::SCHED_IDLE as u32 {
        // It keeps a nice value for later, which is not set with this policy.
        let nice = i64::from(scheduling.nice).cast_unsigned();
        let own = u64::from(libc::PRIO_PROCESS);
        ops.push(call(libc::SYS_setpriority, [own, 0, nice, 0, 0, 0]));
    }
    ops.push(call(libc::SYS_sched_setattr, [0, attributes, 0, 0, 0, 0]));
    attributes::thread(&thread.attributes, ops);
    credentials::ops(program, &thread.credentials, forkyard_sys::caps::DEFAULT.bits(), ops);
    // After the ids: their change takes it away.
    ops.push(prctl(libc::PR_SET_PDEATHSIG, thread.death_signal as u64));
    for signal in &thread.pending {
        queue(program, pid, Some(thread.tid), signal, ops);
    }
}

/// Queues a signal again: for one thread, or the process.
pub(super) fn queue(
    program: &mut Program,
    pid: u32,
    tid: Option<u32>,
    signal: &Signal,
    ops: &mut Vec<Op>,
) {
    let number = signal.0.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let info = program.put(&signal.0);
    let (pid, number) = (u64::from(pid), u64::from(number));
    ops.push(match tid {
        Some(tid) => {
            Op::call(libc::SYS_rt_tgsigqueueinfo, [pid, u64::from(tid), number, info, 0, 0]).must()
        }
        None => Op::call(libc::SYS_rt_sigqueueinfo, [pid, number, info, 0, 0, 0]).must(),
    });
}

/// Wakes all who wait for a word.
pub(super) fn wake(address: u64) -> Op {
    let all = i32::MAX as u64;
    Op::call(libc::SYS_futex, [address, libc::FUTEX_WAKE as u64, all, 0, 0, 0])
}

/// `uc_flags`: there are extended registers, and a stack segment that counts.
const CONTEXT_FLAGS: u64 = 7;

/// The magic numbers that mark extended registers in a signal frame, `asm/sigcontext.h`.
const MAGIC_BEGIN: u32 = 0x4650_5853;
const MAGIC_END: u32 = 0x4650_5845;

/// Offset of what software may use in the area of extended registers.
const SOFTWARE: usize = 464;

/// Leaves for the thread's own registers, by a signal frame: sigreturn restores all at once.
pub(super) fn leave(program: &mut Program, thread: &Thread) -> Op {
    let extended = extended(&thread.extended);
    let extended = program.put(&extended);
    let word = |n: usize| thread.registers.get(n).copied().unwrap_or_default();
    let [address, flags, size] = thread.alternate_stack;
    let mut words = vec![CONTEXT_FLAGS, 0, address, flags, size];
    // From r8 to flags, in the order of `struct sigcontext_64`; by their places in
    // `struct user_regs_struct`.
    words.extend([9, 8, 7, 6, 3, 2, 1, 0, 14, 13, 4, 5, 12, 10, 11, 19, 16, 18].map(word));
    // cs, gs, fs, ss
    words.push(word(17) & 0xffff | (word(20) & 0xffff) << 48);
    // err, trapno, oldmask, cr2, fpstate
    words.extend([0, 0, thread.mask, 0, extended]);
    words.extend([0; 8]);
    words.push(thread.mask);
    Op::sigreturn(program.put_words(&words))
}

/// Extended registers as a signal frame has them.
fn extended(registers: &[u8]) -> Vec<u8> {
    let mut bytes = registers.to_vec();
    let size = bytes.len() as u32;
    let features: [u8; 8] = bytes
        .get(SOFTWARE..SOFTWARE + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .unwrap_or_default();
    let mut software = Vec::new();
    software.extend_from_slice(&MAGIC_BEGIN.to_le_bytes());
    software.extend_from_slice(&(size + 4).to_le_bytes());
    software.extend_from_slice(&features);
    software.extend_from_slice(&size.to_le_bytes());
    if let Some(place) = bytes.get_mut(SOFTWARE..SOFTWARE + software.len()) {
        place.copy_from_slice(&software);
    }
    bytes.extend_from_slice(&MAGIC_END.to_le_bytes());
    bytes
}
