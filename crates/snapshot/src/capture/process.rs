//! A live process.

use std::collections::BTreeMap;

use forkyard_sys::stub::Op;

use rustix::process::Pid;

use super::Capture;
use super::descriptors::ask_close_on_exec;
use super::memory::Told;
use super::thread::{self, THREAD_ROOM};
use super::{signals, timers};
use crate::error::{Context, Error, Result, unreadable};
use crate::inject::Hand;
use crate::picture::{Alive, ProcessAttributes, SignalAction};
use crate::proc::{self, Mapping, Stat, Status, refuse};
use crate::seize::Stopped;

/// SIGCHLD: with its flags, what becomes of children that end.
const CHILD: u32 = 17;

/// Room for the leader's own ops and answers.
const LEADER_ROOM: u64 = 12 * 1024;

/// Offsets of what a leader is asked for, in its data.
const TIMERS: usize = 0;
const ACTIONS: usize = 96;
const SUBREAPER: usize = ACTIONS + 64 * 32;
const STATE: usize = SUBREAPER + 8;
const LENGTH: usize = STATE + 8;

/// `MEMBARRIER_CMD_GET_REGISTRATIONS` of linux/membarrier.h, Linux 6.3.
const REGISTRATIONS: u64 = 1 << 9;

/// `ARCH_GET_XCOMP_PERM` of asm/prctl.h.
const PERMITTED_STATE: u64 = 0x1022;

impl Capture<'_> {
    pub(super) fn read_process(
        &mut self,
        stopped: &Stopped,
        status: &Status,
        stat: &Stat,
    ) -> Result<Alive> {
        let pid = stopped.pid;
        let inner = status.inner_id("NSpid");
        self.check(stopped, status, stat, inner)?;
        let mappings = self.mappings(pid)?;
        let no_vdso = || refuse(inner, &stat.name, "it has no vDSO that can be executed");
        let vdso = self.tail.vdso(&mappings).ok_or_else(no_vdso)?;
        self.tail.check_unused(vdso, &stopped.threads)?;
        // Whole files are read by descriptors, where there are any, and not page by page.
        let (mut descriptors, doubtful) = self.read_descriptors(pid, inner, &stat.name)?;
        let asked = LEADER_ROOM + THREAD_ROOM * stopped.threads.len() as u64;
        let shared_pages = self.shared_pages(&mappings);
        let length = asked + if shared_pages > 0 { shared_pages + THREAD_ROOM } else { 0 };
        let mut hand = Hand::new(self.tree, self.tail, pid, vdso, length, (inner, &stat.name))?;
        // All at the same time: most of what a thread takes is to be woken.
        let mut begun = Vec::with_capacity(stopped.threads.len());
        for &tid in &stopped.threads {
            begun.push(thread::begin(&mut hand, tid)?);
        }
        let room = |n: usize| LEADER_ROOM + n as u64 * THREAD_ROOM;
        let others = stopped.threads.iter().enumerate().skip(1);
        let others: Vec<_> =
            others.map(|(n, tid)| thread::ask(&mut hand, *tid, room(n))).collect::<Result<_>>()?;
        let leader = ask_leader(&mut hand, pid, status)?;
        self.read_stops(&mut hand, pid)?;
        ask_close_on_exec(&mut hand, pid, &mut descriptors, &doubtful)?;
        let mut answers = vec![leader.thread];
        for asked in others {
            let mut data = vec![0; thread::LENGTH];
            answers.push((hand.answer(&asked, &mut data)?, data));
        }
        let mut threads = Vec::with_capacity(stopped.threads.len());
        let mut ids = BTreeMap::new();
        let mut locked = 0;
        for ((begun, (results, data)), &tid) in begun.into_iter().zip(answers).zip(&stopped.threads)
        {
            let (mut thread, general, status) = thread::finish(pid, begun, &results, &data)?;
            if status.number("Seccomp_filters") > 1 {
                return Err(refuse(inner, &stat.name, OWN_FILTER));
            }
            locked = status.number("VmLck");
            thread.pending = signals::pending(tid, false, (inner, &stat.name))?;
            let who = &mut thread.credentials;
            who.uids = who.uids.map(|id| self.users.inside(id));
            who.gids = who.gids.map(|id| self.groups.inside(id));
            who.groups.iter_mut().for_each(|id| *id = self.groups.inside(*id));
            ids.insert(tid.as_raw_nonzero().get().cast_unsigned(), thread.tid);
            threads.push((thread, general));
        }
        let posix_timers = timers::read(&mut hand, pid, (inner, &stat.name), &ids)?;
        let lock_future = lock_future(pid, &hand, &mappings, locked)?;
        self.read_shared(&mut hand, pid, asked, &mappings)?;
        hand.close()?;
        let of_process = signals::pending(pid, true, (inner, &stat.name))?;
        let pending = signals::settle(&mut threads, of_process, &leader.actions);
        let threads = threads.into_iter().map(|(thread, _)| thread).collect();
        let told = Told {
            brk: leader.brk,
            lock_future,
            no_exec_gain: leader.no_exec_gain,
            no_huge_pages: status.words("THP_enabled").next() == Some("0"),
        };
        let memory = self.read_memory(pid, inner, stat, &mappings, &told)?;
        let alive = Alive {
            threads,
            memory,
            descriptors,
            directory: self.read_directory(pid, inner, &stat.name)?,
            umask: u32::from_str_radix(status.words("Umask").next().unwrap_or("22"), 8)
                .unwrap_or(0o22),
            actions: leader.actions,
            pending,
            limits: limits(&proc::read_record(pid, "limits")?)
                .ok_or_else(|| unreadable("/proc/PID/limits"))?,
            timers: leader.timers,
            posix_timers,
            stopped: stopped.job_control,
            stop_untold: false,
            dumpable: leader.dumpable,
            subreaper: leader.subreaper,
            oom_score: number(&proc::read_record(pid, "oom_score_adj")?),
            personality: hexadecimal(&proc::read_record(pid, "personality")?),
            attributes: ProcessAttributes {
                core_filter: hexadecimal(&proc::read_record(pid, "coredump_filter")?),
                barriers: leader.barriers,
                processor_state: leader.processor_state,
            },
        };
        self.note_seat(stopped, (inner, &stat.name), vdso, &mappings, &alive)?;
        Ok(alive)
    }

    /// What can be seen to be in the way before anything is touched.
    fn check(&self, stopped: &Stopped, status: &Status, stat: &Stat, inner: u32) -> Result<()> {
        let no = |what: &str| Err(refuse(inner, &stat.name, what));
        let waiting = status.hexadecimal("ShdPnd") | status.hexadecimal("SigPnd");
        if waiting >> (libc::SIGSTOP - 1) & 1 == 1 {
            // It would not get to the stub.
            let name = String::from_utf8_lossy(&stat.name);
            return Err(Error::Unsteady(format!("{name} is being stopped by a signal")));
        }
        if status.number("Seccomp_filters") > 1 {
            return no(OWN_FILTER);
        }
        for (space, sandboxs) in &self.subject.namespaces {
            if proc::link(stopped.pid, &format!("ns/{space}"))? != sandboxs.as_bytes() {
                return no(&format!("it is in a {space} namespace of its own making"));
            }
        }
        let root = format!("/proc/{}/root", stopped.pid);
        let stat = rustix::fs::stat(&root).context(|| format!("looking at {root}"))?;
        if (stat.st_dev, stat.st_ino) != self.subject.root {
            return no("it has another root directory");
        }
        Ok(())
    }
}

const OWN_FILTER: &str = "it has a seccomp filter of its own making";

/// What only the process itself can tell.
struct Leader {
    actions: Vec<Option<SignalAction>>,
    timers: [[u64; 4]; 3],
    brk: u64,
    dumpable: bool,
    subreaper: bool,
    no_exec_gain: u32,
    barriers: u32,
    processor_state: u64,
    /// What its thread answered, for [`thread::finish`].
    thread: (Vec<i64>, Vec<u8>),
}

/// Asks the leader about its process and its thread.
fn ask_leader(hand: &mut Hand<'_>, pid: Pid, status: &Status) -> Result<Leader> {
    let caught = status.hexadecimal("SigCgt");
    let ignored = status.hexadecimal("SigIgn");
    let asked: Vec<u32> = (1..=64).filter(|n| *n == CHILD || caught >> (n - 1) & 1 == 1).collect();
    let count = 3 + asked.len() + 6;
    let data_at = hand.data_address(0, count + thread::QUESTIONS);
    let of_thread = thread::questions(data_at + LENGTH as u64);
    let mut ops = Vec::with_capacity(count + thread::QUESTIONS);
    for which in 0..3_u64 {
        let at = data_at + TIMERS as u64 + which * 32;
        ops.push(Op::call(libc::SYS_getitimer, [which, at, 0, 0, 0, 0]).keep());
    }
    for &signal in &asked {
        let at = data_at + ACTIONS as u64 + u64::from(signal - 1) * 32;
        ops.push(Op::call(libc::SYS_rt_sigaction, [u64::from(signal), 0, at, 8, 0, 0]).keep());
    }
    let prctl =
        |what: i32, arg: u64| Op::call(libc::SYS_prctl, [what as u64, arg, 0, 0, 0, 0]).keep();
    ops.push(Op::call(libc::SYS_membarrier, [REGISTRATIONS, 0, 0, 0, 0, 0]).keep());
    ops.push(Op::call(libc::SYS_arch_prctl, [PERMITTED_STATE, data_at + STATE as u64, 0, 0, 0, 0]));
    ops.push(prctl(libc::PR_GET_MDWE, 0));
    ops.push(Op::call(libc::SYS_brk, [0; 6]).keep());
    ops.push(prctl(libc::PR_GET_DUMPABLE, 0));
    ops.push(prctl(libc::PR_GET_CHILD_SUBREAPER, data_at + SUBREAPER as u64));
    ops.extend(of_thread);
    let mut data = vec![0; LENGTH + thread::LENGTH];
    let mut results = hand.ask(pid, 0, &ops, &mut data)?;
    let of_thread = (results.split_off(count), data.split_off(LENGTH));
    let word = |at: usize| {
        let bytes = data.get(at..at + 8).unwrap_or_default();
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    };
    let actions = (0..64_usize).map(|n| {
        let at = ACTIONS + n * 32;
        let action = SignalAction {
            handler: word(at),
            flags: word(at + 8),
            restorer: word(at + 16),
            mask: word(at + 24),
        };
        if ignored >> n & 1 == 1 && action.handler != 1 {
            return Some(SignalAction { handler: 1, ..action });
        }
        (action != SignalAction::default()).then_some(action)
    });
    let timers = [0, 1, 2].map(|which| {
        let at = TIMERS + which * 32;
        match [word(at), word(at + 8), word(at + 16), word(at + 24)] {
            // It rang, and is set again when its signal is taken: a moment later, unless it waits.
            [seconds, micros, 0, 0] => [seconds, micros, seconds, micros],
            running => running,
        }
    });
    let result = |back: usize| {
        results.len().checked_sub(back).and_then(|at| results.get(at)).copied().unwrap_or_default()
    };
    Ok(Leader {
        actions: actions.collect(),
        timers,
        brk: result(3).cast_unsigned(),
        dumpable: result(2) == 1,
        subreaper: word(SUBREAPER) as u32 != 0,
        no_exec_gain: result(4).max(0) as u32,
        barriers: result(6).max(0) as u32,
        processor_state: word(STATE),
        thread: of_thread,
    })
}

/// `MCL_*` for what a process maps from now on: only to be seen by what it mapped for us, with
/// which it has `locked` KiB of memory locked.
fn lock_future(pid: Pid, hand: &Hand<'_>, mappings: &[Mapping], locked: u64) -> Result<u32> {
    let before = mappings.iter().filter(|mapping| mapping.flags.contains(b"lo"));
    let before: u64 = before.map(|mapping| (mapping.end - mapping.start) / 1024).sum();
    if locked <= before {
        return Ok(0);
    }
    let area = proc::mappings(pid)?.into_iter().find(|area| area.start == hand.area());
    let on_fault = area.is_some_and(|area| area.flags.contains(b"lf"));
    let on_fault = if on_fault { libc::MCL_ONFAULT } else { 0 };
    Ok((libc::MCL_FUTURE | on_fault) as u32)
}

fn hexadecimal(bytes: &[u8]) -> u32 {
    u32::from_str_radix(String::from_utf8_lossy(bytes).trim(), 16).unwrap_or_default()
}

fn number(bytes: &[u8]) -> i32 {
    String::from_utf8_lossy(bytes).trim().parse().unwrap_or_default()
}

/// `/proc/PID/limits`: a line for each `RLIMIT_*` in the order of their numbers, in columns.
pub(super) fn limits(bytes: &[u8]) -> Option<Vec<(u64, u64)>> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.lines()
        .skip(1)
        .map(|line| {
            let mut values = line.get(25..)?.split_ascii_whitespace().map(|word| match word {
                "unlimited" => Some(u64::MAX),
                number => number.parse().ok(),
            });
            Some((values.next()??, values.next()??))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn own_limits_are_read() {
        let all = limits(&proc::read(rustix::process::getpid(), "limits").unwrap()).unwrap();
        assert_eq!(all.len(), 16);
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let told = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        assert_eq!(all[libc::RLIMIT_NOFILE as usize], (told(files.current), told(files.maximum)));
    }

    proptest! {
        #[test]
        fn limits_of_any_size_are_read(soft: u64, hard in any::<Option<u64>>()) {
            let shown = hard.map_or("unlimited".to_owned(), |hard| hard.to_string());
            let text = format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max realtime timeout      {soft:<20} {shown:<20} us\n"
            );
            prop_assert_eq!(limits(text.as_bytes()), Some(vec![(soft, hard.unwrap_or(u64::MAX))]));
        }

        #[test]
        fn anything_for_limits_is_read_without_a_panic(bytes: Vec<u8>) {
            let _ = limits(&bytes);
        }
    }
}
