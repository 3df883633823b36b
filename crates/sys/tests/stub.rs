//! The stub by itself: each op, in a child that is nothing but the stub, and what becomes of one
//! whose tracer is killed.
#![cfg(target_arch = "x86_64")]

use std::time::Duration;

use forkyard_sys::caps;
use forkyard_sys::memory::Pages;
use forkyard_sys::process::SingleThreaded;
use forkyard_sys::ptrace::{self, Change};
use forkyard_sys::seccomp::Filter;
use forkyard_sys::stub::{self, Op};
use rustix::process::Pid;

/// Memory that a child shares with its test: words for what they tell each other, then ops.
struct Site {
    pages: Pages,
}

const WORDS: u64 = 0;
const FAILURE: u64 = 256;
const FRAME: u64 = 512;
const OPS: u64 = 4096;
const MORE_OPS: u64 = 8192;
const LENGTH: u64 = 16 * 4096;
const MARK: u64 = 4711;
const OP: u64 = size_of::<Op>() as u64;

impl Site {
    /// Each test has a place of its own: they run at the same time.
    fn new(number: u64) -> Self {
        let at = 0x4700_0000_0000 + number * 0x1_0000_0000;
        Self { pages: Pages::map_shared(at, LENGTH).expect("a free address") }
    }

    fn at(&self, offset: u64) -> u64 {
        self.pages.start() + offset
    }

    fn put(&mut self, offset: u64, ops: &[Op]) {
        let bytes: Vec<u8> = ops.iter().flat_map(|op| op.to_bytes()).collect();
        self.pages.write(self.at(offset), &bytes).expect("within the pages");
    }

    fn load(&self, n: u64) -> u32 {
        self.pages.load(word_at(n))
    }

    /// Two words, as the kernel and the stub write results.
    fn long(&self, offset: u64) -> i64 {
        let half = |at| u64::from(self.pages.load(at));
        (half(offset) | half(offset + 4) << 32).cast_signed()
    }

    fn result(&self, offset: u64, op: u64) -> i64 {
        self.long(offset + op * OP + stub::RESULT as u64)
    }

    /// A child that does these ops and nothing else, after `before`.
    fn start(&mut self, ops: &[Op], before: impl FnOnce()) -> Pid {
        self.put(OPS, ops);
        // SAFETY: the child makes ready and leaves for the stub, which never returns; the C library
        // keeps its allocator usable in a child forked from one of several threads.
        match unsafe { libc::fork() } {
            0 => {
                before();
                let Ok(proof) = SingleThreaded::prove() else { exit(250) };
                let code = stub::code().as_ptr() as u64;
                stub::enter(&proof, code, self.at(OPS), self.at(FAILURE), MARK)
            }
            child => Pid::from_raw(child).expect("fork"),
        }
    }

    /// Runs ops to their end; gives the exit status.
    fn run(&mut self, ops: &[Op]) -> i32 {
        let child = self.start(ops, || ());
        ended(child)
    }

    fn await_word(&self, n: u64, value: u32) {
        let mut left = 2000;
        while self.load(n) != value {
            assert!(left > 0, "word {n} is {}, not {value}", self.load(n));
            left -= 1;
            let now = self.load(n);
            self.pages.wait_while(word_at(n), now, Duration::from_millis(5));
        }
    }
}

/// Where the word of this number is.
fn word_at(n: u64) -> u64 {
    WORDS + 4 * n
}

fn exit(status: i32) -> ! {
    // SAFETY: ends the process at once, without handlers of its parent.
    unsafe { libc::_exit(status) }
}

fn ended(child: Pid) -> i32 {
    let waited = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
    let (_, status) = waited.expect("waitpid").expect("its end");
    status.exit_status().unwrap_or_else(|| -status.terminating_signal().unwrap_or(0))
}

fn call(number: libc::c_long, args: [u64; 6]) -> Op {
    Op::call(number, args)
}

fn exit_with(status: u64) -> Op {
    call(libc::SYS_exit_group, [status, 0, 0, 0, 0, 0])
}

#[test]
fn calls_get_all_their_arguments_and_keep_their_results() {
    let mut site = Site::new(0);
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let kind = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let ops = [
        call(libc::SYS_getpid, [0; 6]).keep(),
        call(libc::SYS_mmap, [0, 4096, protection, kind, u64::MAX, 0]).keep(),
        call(libc::SYS_close, [u64::from(u32::MAX), 0, 0, 0, 0, 0]).keep(),
        call(libc::SYS_getpid, [0; 6]),
        exit_with(7),
    ];
    let child = site.start(&ops, || ());
    assert_eq!(ended(child), 7);
    assert_eq!(site.result(OPS, 0), i64::from(child.as_raw_nonzero().get()));
    assert!(site.result(OPS, 1) > 0, "mmap gave {}", site.result(OPS, 1));
    assert_eq!(site.result(OPS, 2), -i64::from(libc::EBADF));
    assert_eq!(site.result(OPS, 3), 0, "what nobody asked for is not kept");
}

#[test]
fn a_call_that_must_succeed_ends_the_process_and_says_which_it_was() {
    let mut site = Site::new(1);
    let fails = call(libc::SYS_close, [u64::from(u32::MAX), 0, 0, 0, 0, 0]).must();
    assert_eq!(site.run(&[call(libc::SYS_getpid, [0; 6]).must(), fails, exit_with(0)]), 125);
    let (which, error) = (site.long(FAILURE) as u32, site.long(FAILURE + 8));
    assert_eq!((i64::from(which), error), (libc::SYS_close, -i64::from(libc::EBADF)));
    assert_eq!(site.long(FAILURE + 16), MARK as i64);
}

#[test]
fn copies_adds_and_jumps_do_what_they_say() {
    let mut site = Site::new(2);
    site.pages.write(site.at(FRAME), b"eight by").expect("within the pages");
    let (first, third) = (site.at(word_at(0)), site.at(word_at(2)));
    let more = [Op::add(third, 5), Op::add(third, u32::MAX), exit_with(1)];
    site.put(MORE_OPS, &more);
    let ops = [
        Op::copy(first, site.at(FRAME), 8),
        Op::jump(site.at(MORE_OPS)),
        Op::add(third, 1000),
        exit_with(2),
    ];
    assert_eq!(site.run(&ops), 1);
    let words = [site.load(0), site.load(1)].map(u32::to_le_bytes).concat();
    assert_eq!((words.as_slice(), site.load(2)), (b"eight by".as_slice(), 4));
}

#[test]
fn waits_last_as_long_as_they_should() {
    let mut site = Site::new(3);
    let word = |n| site.at(word_at(n));
    let wake = |n| call(libc::SYS_futex, [word(n), libc::FUTEX_WAKE as u64, 1, 0, 0, 0]);
    let ops = [
        Op::wait_while(word(0), 0),
        Op::add(word(1), 1),
        wake(1),
        Op::wait_below(word(0), 3),
        Op::add(word(1), 1),
        wake(1),
        Op::wait_while(word(0), 0),
        Op::wait_below(word(0), 3),
        exit_with(0),
    ];
    let child = site.start(&ops, || ());
    site.pages.store_and_wake(word_at(0), 1);
    site.await_word(1, 1);
    site.pages.store_and_wake(word_at(0), 2);
    assert_eq!(site.load(1), 1, "it waits below 3");
    site.pages.store_and_wake(word_at(0), 3);
    site.await_word(1, 2);
    assert_eq!(ended(child), 0);
}

#[test]
fn a_child_that_it_forks_goes_on_at_its_own_ops() {
    let mut site = Site::new(4);
    let (mine, status) = (site.at(word_at(0)), site.at(word_at(1)));
    site.put(MORE_OPS, &[Op::add(mine, 1), exit_with(3)]);
    let ops = [
        call(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0])
            .keep()
            .must()
            .fork(site.at(MORE_OPS)),
        call(libc::SYS_wait4, [u64::MAX, status, 0, 0, 0, 0]).keep(),
        exit_with(4),
    ];
    assert_eq!(site.run(&ops), 4);
    assert_eq!((site.load(0), site.load(1)), (1, 3 << 8));
    // The child wrote its own result of 0 to the op before or after its parent did.
    assert!(site.result(OPS, 1) > 1);
}

#[test]
fn it_leaves_for_all_registers_of_a_frame() {
    let mut site = Site::new(5);
    let mut frame = ptrace::no_registers();
    // Nothing can be executed there, so that it stops before it changes anything.
    frame.rip = site.at(0);
    frame.rsp = site.at(LENGTH);
    (frame.cs, frame.ss, frame.eflags) = (0x33, 0x2b, 0x246);
    let names = [
        &mut frame.rax,
        &mut frame.rbx,
        &mut frame.rcx,
        &mut frame.rdx,
        &mut frame.rsi,
        &mut frame.rdi,
        &mut frame.rbp,
        &mut frame.r8,
        &mut frame.r9,
        &mut frame.r10,
        &mut frame.r11,
        &mut frame.r12,
        &mut frame.r13,
        &mut frame.r14,
        &mut frame.r15,
    ];
    for (n, register) in names.into_iter().enumerate() {
        *register = 0x1111_1111_1111 * (n as u64 + 1);
    }
    let bytes: Vec<u8> = general(&frame).iter().flat_map(|word| word.to_le_bytes()).collect();
    site.pages.write(site.at(FRAME), &bytes).expect("within the pages");
    let below = site.at(LENGTH) - 128;
    site.pages.write(below, &[9; 128]).expect("within the pages");
    let child = site.start(&[Op::wait_while(site.at(0), 0), Op::resume(site.at(FRAME))], || ());
    ptrace::seize(child, 0).expect("PTRACE_SEIZE");
    site.pages.store_and_wake(word_at(0), 1);
    let stopped = ptrace::wait(Some(child), true).expect("waitpid").map(|(_, change)| change);
    assert_eq!(stopped, Some(Change::Signal(libc::SIGSEGV)));
    let mut found = ptrace::registers(child).expect("PTRACE_GETREGS");
    // Flags that the processor sets as it likes.
    found.eflags = frame.eflags | found.eflags & !0x1_0002;
    let kept = |registers: &ptrace::Registers| {
        let mut words = general(registers);
        words.truncate(20);
        words.remove(15);
        words
    };
    assert_eq!(kept(&found), kept(&frame));
    assert_eq!(site.long(LENGTH - 128), 0x0909_0909_0909_0909, "what leaf functions use is left");
    ptrace::detach(child, libc::SIGKILL).expect("PTRACE_DETACH");
    assert_eq!(ended(child), -libc::SIGKILL);
}

/// As `struct user_regs_struct` has them: up to `ss`, the 21st, they are what a frame sets.
fn general(registers: &ptrace::Registers) -> Vec<u64> {
    let r = registers;
    vec![
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx,
        r.rsi, r.rdi, r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss,
    ]
}

#[test]
fn one_whose_tracer_is_killed_at_the_trap_goes_on_by_itself() {
    let mut site = Site::new(6);
    let filter = Filter::compile().expect("compile");
    let word = |n| site.at(word_at(n));
    let ops = [
        Op::wait_while(word(0), 0),
        call(libc::SYS_getpid, [0; 6]).keep(),
        Op::trap(),
        Op::add(word(2), 1),
        exit_with(0),
    ];
    // SAFETY: this child makes another, traces it, and waits to be killed.
    let tracer = match unsafe { libc::fork() } {
        0 => {
            let child = site.start(&ops, || {
                if caps::set_no_new_privs().and_then(|()| filter.install()).is_err() {
                    exit(251);
                }
            });
            if ptrace::seize(child, ptrace::FOLLOW).is_err() {
                exit(252);
            }
            site.pages.store_and_wake(word_at(0), 1);
            let trapped = Ok(Some((child, Change::Event(libc::PTRACE_EVENT_SECCOMP))));
            if ptrace::wait(Some(child), true).map_err(drop) != trapped {
                exit(253);
            }
            site.pages.store_and_wake(word_at(1), 1);
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        tracer => Pid::from_raw(tracer).expect("fork"),
    };
    site.await_word(1, 1);
    assert_eq!(site.load(2), 0, "it waits for its tracer");
    rustix::process::kill_process(tracer, rustix::process::Signal::KILL).expect("kill");
    assert_eq!(ended(tracer), -libc::SIGKILL);
    site.await_word(2, 1);
}
