//! System calls made by a stopped process of a guest on our behalf.
//!
//! The stub is written behind the kernel's vDSO, whose last page is not filled: the only place of
//! a process that can hold instructions, is in nobody's way, and needs no call of the process
//! itself to be had. From there the process maps an area for ops and results.
//!
//! At no moment would it do harm if the tracer were killed: the stub ends by giving the thread
//! back what it was, see [`forkyard_sys::stub`].

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use forkyard_sys::ptrace::{self, Change, Registers, Rseq};
use forkyard_sys::remote;
use forkyard_sys::stub::{self, Op};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::error::{Context, Error, Result};
use crate::interrupted::{hide_stop, leave_sequence, restart};
use crate::proc::{Mapping, refuse};
use crate::seize::{Tree, await_event};

/// How long a few system calls may take.
const PATIENCE: Duration = Duration::from_secs(1);

const PAGE: u64 = 4096;

/// All signals.
const ALL: u64 = u64::MAX;

/// The unused end of the vDSO, as it is in every process of this kernel.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    /// How long the vDSO is as a whole.
    length: u64,
    /// From the vDSO's beginning.
    offset: u64,
    /// What is there.
    bytes: Vec<u8>,
}

impl Tail {
    /// Looks at this process's own vDSO.
    pub(crate) fn find() -> Result<Self> {
        let me = rustix::process::getpid();
        let failed = || Error::Failed {
            what: "looking for room behind the vDSO".to_owned(),
            source: std::io::ErrorKind::Unsupported.into(),
        };
        let all = crate::proc::places(me)?;
        let vdso = all.iter().find(|area| area.name == b"[vdso]").ok_or_else(failed)?;
        let length = (vdso.end - vdso.start) as usize;
        let memory = open_memory(me)?;
        let mut image = vec![0; length];
        memory.read_exact_at(&mut image, vdso.start).context(|| "reading the vDSO".to_owned())?;
        let used = loaded_length(&image).ok_or_else(failed)?;
        let offset = used.next_multiple_of(64);
        let bytes = image.get(offset..).unwrap_or_default().to_vec();
        if bytes.len() < stub::code().len() + 8 * size_of::<Op>() + size_of::<Registers>() {
            return Err(failed());
        }
        Ok(Self { length: length as u64, offset: offset as u64, bytes })
    }
}

impl Tail {
    /// Where a process with these mappings has its vDSO, if that is whole and can be executed.
    pub(crate) fn vdso(&self, mappings: &[Mapping]) -> Option<u64> {
        let found = mappings.iter().find(|area| area.name == b"[vdso]")?;
        let is_whole = found.end - found.start == self.length;
        (is_whole && found.permissions.get(2) == Some(&b'x')).then_some(found.start)
    }

    /// Makes sure that none of these threads is there, on its way back from the stub of a tracer
    /// that was killed: what it goes through must not be overwritten.
    pub(crate) fn check_unused(&self, vdso: u64, threads: &[Pid]) -> Result<()> {
        let start = vdso + self.offset;
        for &tid in threads {
            let registers = ptrace::registers(tid).context(|| "PTRACE_GETREGS".to_owned())?;
            if (start..start + self.bytes.len() as u64).contains(&registers.rip) {
                let why = "a thread is on its way back from another fork";
                return Err(Error::Unsteady(why.to_owned()));
            }
        }
        Ok(())
    }
}

/// How much of an ELF image is needed once it is loaded: the end of its one loaded segment. What
/// follows are section headers, which nobody looks at in memory.
fn loaded_length(image: &[u8]) -> Option<usize> {
    let word = |at: usize| Some(u64::from_le_bytes(image.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
    // `e_phoff`, `e_phentsize`, `e_phnum`, then `p_type`, `p_offset`, `p_filesz`: elf(5).
    let (table, size, count) = (word(32)? as usize, half(54)?, half(56)?);
    (0..usize::from(count))
        .filter_map(|n| {
            let at = table + n * usize::from(size);
            let loaded = image.get(at..at + 4)? == [1, 0, 0, 0];
            loaded.then(|| Some((word(at + 8)? + word(at + 32)?) as usize)).flatten()
        })
        .max()
}

fn open_memory(pid: Pid) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    File::options().read(true).write(true).open(&path).context(|| format!("opening {path}"))
}

/// A stopped process that makes calls for us.
pub(crate) struct Hand<'a> {
    tree: &'a Tree,
    pid: Pid,
    memory: File,
    tail: &'a Tail,
    /// Where the stub is.
    base: u64,
    /// Its data area and that area's length.
    area: u64,
    length: u64,
    /// Threads that are in the stub, with what they were.
    threads: Vec<(Pid, Original)>,
    /// Threads that stopped in the stub for a signal that it ran into.
    faulted: RefCell<HashSet<Pid>>,
    /// The process's id inside and its name, for messages.
    who: (u32, &'a [u8]),
}

/// What a thread is doing for us.
#[derive(Debug)]
pub(crate) struct Asked {
    tid: Pid,
    /// Where its ops are, and how long they and what follows them is.
    at: u64,
    length: usize,
    /// How many they are, and where in all of it their data begins.
    ops: usize,
    data_at: usize,
}

/// What a thread was before it made calls for us.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Original {
    /// As it goes on, with what the kernel needs to make an interrupted call again.
    pub(crate) registers: Registers,
    /// Blocked signals.
    pub(crate) mask: u64,
    /// Its restartable sequences.
    pub(crate) rseq: Rseq,
    /// It is in the stub.
    entered: bool,
}

impl<'a> Hand<'a> {
    /// Puts the stub into a stopped process, whose leader maps an area of `length` bytes.
    pub(crate) fn new(
        tree: &'a Tree,
        tail: &'a Tail,
        pid: Pid,
        vdso: u64,
        length: u64,
        who: (u32, &'a [u8]),
    ) -> Result<Self> {
        let memory = open_memory(pid)?;
        let base = vdso + tail.offset;
        let length = length.next_multiple_of(PAGE);
        let (threads, faulted) = (Vec::new(), RefCell::default());
        let mut hand =
            Self { tree, pid, memory, tail, base, area: 0, length, threads, faulted, who };
        let map = Op::call(
            libc::SYS_mmap,
            [
                0,
                length,
                (libc::PROT_READ | libc::PROT_WRITE) as u64,
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
                u64::MAX,
                0,
            ],
        );
        let Original { registers, mask, .. } = hand.original(pid)?;
        // Behind the code: ops, mask, registers.
        let ops_at = base + stub::code().len().next_multiple_of(64) as u64;
        let mask_at = ops_at + 4 * size_of::<Op>() as u64;
        let mut bytes = stub::code().to_vec();
        bytes.resize((ops_at - base) as usize, 0);
        for op in leave(&[map], mask_at, mask_at + 8) {
            bytes.extend_from_slice(&op.to_bytes());
        }
        bytes.extend_from_slice(&mask.to_le_bytes());
        bytes.extend_from_slice(&frame(&registers));
        hand.memory.write_all_at(&bytes, base).context(|| "writing behind the vDSO".to_owned())?;
        let area = hand.go(pid, ops_at)?;
        if area < 0 {
            let error = std::io::Error::from_raw_os_error(-area as i32);
            return Err(error).context(|| "mmap in a process that is forked".to_owned());
        }
        hand.area = area.cast_unsigned();
        Ok(hand)
    }

    /// Has a thread execute these ops, written at `at` in the area together with what follows
    /// them there; what they kept is read back.
    pub(crate) fn ask(
        &mut self,
        tid: Pid,
        at: u64,
        ops: &[Op],
        data: &mut [u8],
    ) -> Result<Vec<i64>> {
        let asked = self.begin(tid, at, ops, data)?;
        self.answer(&asked, data)
    }

    /// Begins what [`Self::ask`] does: several threads can be at it at the same time.
    pub(crate) fn begin(&mut self, tid: Pid, at: u64, ops: &[Op], data: &[u8]) -> Result<Asked> {
        let Original { registers, mask, .. } = self.original(tid)?;
        let ops_at = self.area + at;
        let mask_at = ops_at + ((ops.len() + 3) * size_of::<Op>()) as u64;
        let mut bytes = Vec::new();
        for op in leave(ops, mask_at, mask_at + 8) {
            bytes.extend_from_slice(&op.to_bytes());
        }
        bytes.extend_from_slice(&mask.to_le_bytes());
        bytes.extend_from_slice(&frame(&registers));
        let data_at = bytes.len();
        bytes.extend_from_slice(data);
        if at + bytes.len() as u64 > self.length {
            return Err(Error::Unsteady("a process asks for more than expected".to_owned()));
        }
        self.write(ops_at, &bytes)?;
        self.start(tid, ops_at)?;
        Ok(Asked { tid, at: ops_at, length: bytes.len(), ops: ops.len(), data_at })
    }

    /// Waits until a thread has done what it was asked, and reads what it kept.
    pub(crate) fn answer(&self, asked: &Asked, data: &mut [u8]) -> Result<Vec<i64>> {
        self.await_trap(asked.tid)?;
        let mut bytes = vec![0; asked.length];
        self.read(asked.at, &mut bytes)?;
        let (ops_back, data_back) = bytes.split_at(asked.data_at);
        data.copy_from_slice(data_back);
        let results = ops_back.chunks_exact(size_of::<Op>()).take(asked.ops).map(|op| {
            let result = op.get(stub::RESULT..).unwrap_or_default();
            i64::from_le_bytes(result.try_into().unwrap_or_default())
        });
        Ok(results.collect())
    }

    /// Has a thread that stopped in the middle of its ops do the rest of them.
    pub(crate) fn go_on(&self, tid: Pid) -> Result<()> {
        ptrace::resume(tid, 0).context(|| "PTRACE_CONT".to_owned())?;
        self.await_trap(tid).map(drop)
    }

    /// Has a thread make a descriptor, and takes it: it is closed there even if this process dies
    /// meanwhile.
    pub(crate) fn ask_for_descriptor(&mut self, tid: Pid, call: Op) -> Result<OwnedFd> {
        let result = self.area + stub::RESULT as u64;
        let close = self.area + 3 * size_of::<Op>() as u64;
        let ops = [
            call.keep(),
            Op::copy(close + stub::ARGUMENT as u64, result, 8),
            Op::trap(),
            Op::call(libc::SYS_close, [u64::MAX, 0, 0, 0, 0, 0]),
        ];
        let number = self.ask(tid, 0, &ops, &mut [])?.first().copied().unwrap_or_default();
        let failed = || "a descriptor of a process that is forked".to_owned();
        if number < 0 {
            let error = std::io::Error::from_raw_os_error(-number as i32);
            return Err(error).context(failed);
        }
        let open = || {
            let process = pidfd_open(self.pid, PidfdFlags::empty())?;
            pidfd_getfd(&process, number as i32, PidfdGetfdFlags::empty())
        };
        let taken = open().context(failed);
        let close = Op::call(libc::SYS_close, [number.cast_unsigned(), 0, 0, 0, 0, 0]);
        self.ask(tid, 0, &[close], &mut [])?;
        taken
    }

    /// What is said of a process that cannot be forked.
    pub(crate) fn refuse(&self, what: &str) -> Error {
        refuse(self.who.0, self.who.1, what)
    }

    /// What a thread was before it made calls for us.
    pub(crate) fn original(&mut self, tid: Pid) -> Result<Original> {
        if let Some((_, original)) = self.threads.iter().find(|(other, _)| *other == tid) {
            return Ok(*original);
        }
        let mut registers = ptrace::registers(tid).context(|| "PTRACE_GETREGS".to_owned())?;
        if let Some(what) = strange(tid, &registers) {
            return Err(self.refuse(what));
        }
        let mask = ptrace::signal_mask(tid).context(|| "PTRACE_GETSIGMASK".to_owned())?;
        let rseq = ptrace::rseq(tid).unwrap_or_default();
        hide_stop(&mut registers);
        leave_sequence(self.pid, &rseq, &mut registers);
        let original = Original { registers, mask, rseq, entered: false };
        self.threads.push((tid, original));
        Ok(original)
    }

    /// Where data that goes with this many ops at `at` lies.
    pub(crate) fn data_address(&self, at: u64, ops: usize) -> u64 {
        self.area + at + ((ops + 3) * size_of::<Op>() + 8 + size_of::<Registers>()) as u64
    }

    /// Starts the stub in a thread, and waits until it traps; gives its last result.
    fn go(&mut self, tid: Pid, ops: u64) -> Result<i64> {
        self.start(tid, ops)?;
        self.await_trap(tid)
    }

    fn start(&mut self, tid: Pid, ops: u64) -> Result<()> {
        let entered = self.threads.iter_mut().find(|(other, _)| *other == tid);
        let mut registers = match &entered {
            Some((_, original)) => original.registers,
            None => ptrace::registers(tid).context(|| "PTRACE_GETREGS".to_owned())?,
        };
        self.faulted.get_mut().remove(&tid);
        registers.rip = self.base;
        registers.r12 = ops;
        // No call is restarted, and the trap's own number is not tried again.
        registers.orig_rax = u64::MAX;
        registers.rax = 0;
        let go = || {
            ptrace::set_registers(tid, &registers)?;
            // Only now: if this process dies in between, the stub sets the mask back.
            ptrace::set_signal_mask(tid, ALL)?;
            ptrace::resume(tid, 0)
        };
        if let Some((_, original)) = entered {
            original.entered = true;
        }
        go().context(|| "starting the stub".to_owned())
    }

    fn await_trap(&self, tid: Pid) -> Result<i64> {
        loop {
            self.wait(tid, |change| change == Change::Event(libc::PTRACE_EVENT_SECCOMP))?;
            let registers = ptrace::registers(tid).context(|| "PTRACE_GETREGS".to_owned())?;
            if registers.orig_rax == u64::from(stub::TRAP_CALL) {
                return Ok(registers.r13.cast_signed());
            }
            // Another call that the filter leaves to us.
            ptrace::resume(tid, 0).context(|| "PTRACE_CONT".to_owned())?;
        }
    }

    fn wait(&self, tid: Pid, wanted: impl Fn(Change) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match ptrace::wait(Some(tid), false) {
                Ok(Some((_, change))) if wanted(change) => return Ok(()),
                Ok(Some((_, Change::Gone))) => {
                    return Err(Error::Unsteady("a process was killed".to_owned()));
                }
                // It cannot be blocked: taken back, so that the thread finds out of the stub.
                Ok(Some((_, Change::Signal(libc::SIGSTOP)))) => {
                    self.tree.stop_later(self.pid);
                    ptrace::resume(tid, 0).context(|| "PTRACE_CONT".to_owned())?;
                }
                // What the stub runs into itself. It is where its registers can be set.
                Ok(Some((_, Change::Signal(signal)))) => {
                    self.faulted.borrow_mut().insert(tid);
                    return Err(Error::Unsteady(format!("a process got signal {signal}")));
                }
                Ok(Some(_)) => {
                    ptrace::resume(tid, 0).context(|| "PTRACE_CONT".to_owned())?;
                }
                Ok(None) if Instant::now() < end => await_event(self.tree.events(), end),
                Ok(None) => {
                    return Err(Error::Unsteady("a process makes no calls".to_owned()));
                }
                Err(error) => return Err(error).context(|| "waitpid".to_owned()),
            }
        }
    }

    /// The first address of the area.
    pub(crate) fn area(&self) -> u64 {
        self.area
    }

    /// Gives all threads back what they were.
    pub(crate) fn close(mut self) -> Result<()> {
        self.give_back()?;
        if self.tree.is_to_stop(self.pid) {
            return Err(Error::Unsteady("a process is being stopped by a signal".to_owned()));
        }
        Ok(())
    }

    fn give_back(&mut self) -> Result<()> {
        let threads = std::mem::take(&mut self.threads);
        let Some(((leader, _), others)) = threads.split_first() else { return Ok(()) };
        // Others first: what brings them back if we die is in the area.
        let mut done = self.release(others);
        if self.area != 0 && done.is_ok() {
            done = self.unmap(*leader);
        }
        // A thread that is still in the stub needs it to find back.
        self.release(threads.get(..1).unwrap_or_default()).and(done)?;
        self.memory
            .write_all_at(&self.tail.bytes, self.base)
            .context(|| "writing behind the vDSO".to_owned())
    }

    fn unmap(&mut self, leader: Pid) -> Result<()> {
        let ops_at = self.base + stub::code().len().next_multiple_of(64) as u64;
        let unmap = Op::call(libc::SYS_munmap, [self.area, self.length, 0, 0, 0, 0]);
        self.memory
            .write_all_at(&unmap.to_bytes(), ops_at)
            .context(|| "writing behind the vDSO".to_owned())?;
        self.area = 0;
        self.go(leader, ops_at).map(drop)
    }

    /// Takes threads out of their traps: registers that say which call was interrupted can be set
    /// where a thread stops for us, but not in the middle of a call.
    fn release(&self, threads: &[(Pid, Original)]) -> Result<()> {
        let inside = threads.iter().filter(|(_, original)| original.entered).collect::<Vec<_>>();
        let leave = |tid| {
            if self.faulted.borrow().contains(&tid) {
                return Ok(());
            }
            let mut out = ptrace::registers(tid)?;
            out.orig_rax = u64::MAX;
            ptrace::set_registers(tid, &out)?;
            ptrace::interrupt(tid)?;
            ptrace::resume(tid, 0)
        };
        let mut done = Ok(());
        let left = inside.iter().map(|(tid, _)| leave(*tid)).collect::<Vec<_>>();
        for ((tid, original), left) in inside.iter().zip(left) {
            let restored = left.context(|| "leaving the stub".to_owned()).and_then(|()| {
                if !self.faulted.borrow_mut().remove(tid) {
                    self.wait(*tid, |change| matches!(change, Change::Interrupted { .. }))?;
                }
                // In this order: with its own mask the stub would still bring it back, not so
                // without.
                ptrace::set_signal_mask(*tid, original.mask)
                    .and_then(|()| ptrace::set_registers(*tid, &original.registers))
                    .context(|| "PTRACE_SETREGS".to_owned())
            });
            done = restored.and(done);
        }
        done
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let done = remote::write_memory(self.pid, at, bytes);
        let done = done.context(|| "process_vm_writev".to_owned())?;
        whole(done, bytes.len())
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let length = bytes.len();
        let mut to = [std::io::IoSliceMut::new(bytes)];
        let done = remote::read_memory(self.pid, &[(at, length)], &mut to);
        whole(done.context(|| "process_vm_readv".to_owned())?, length)
    }
}

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            let _ = self.give_back();
        }
    }
}

fn whole(done: usize, wanted: usize) -> Result<()> {
    if done == wanted {
        return Ok(());
    }
    Err(Error::Unsteady("memory went away while it was read".to_owned()))
}

/// Ops, then the way back to what the thread was.
fn leave(ops: &[Op], mask_at: u64, frame_at: u64) -> Vec<Op> {
    let set_mask =
        Op::call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as u64, mask_at, 0, 8, 0, 0]);
    ops.iter().copied().chain([Op::trap(), set_mask, Op::resume(frame_at)]).collect()
}

/// Registers as a thread finds them that nobody stopped: an interrupted call is made again.
fn frame(registers: &Registers) -> Vec<u8> {
    let mut registers = *registers;
    restart(&mut registers, true);
    crate::registers::words(&registers).iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What of a thread the stub, or who builds it again, cannot deal with.
fn strange(tid: Pid, registers: &Registers) -> Option<&'static str> {
    /// The kernel's selectors for code and data of 64-bit programs.
    const CODE: u64 = 0x33;
    const DATA: u64 = 0x2b;
    if registers.cs != CODE {
        return Some("it is a 32-bit program");
    }
    let of_its_own = |selector: u64| selector != 0 && selector != DATA;
    if [registers.ds, registers.es, registers.fs, registers.gs].into_iter().any(of_its_own) {
        return Some("it has memory segments of its own making");
    }
    // Kernels without it say that they do not know the request.
    ptrace::dispatches_calls(tid)
        .unwrap_or(false)
        .then_some("it has its system calls turned into signals")
}
