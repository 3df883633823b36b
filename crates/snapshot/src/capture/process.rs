//! A live process.

use forkyard_sys::stub::Op;

use super::Capture;
use super::thread::{self, THREAD_ROOM};
use crate::error::{Context, Result, unreadable};
use crate::inject::Hand;
use crate::picture::{Alive, SignalAction};
use crate::proc::{self, Stat, Status, refuse};
use crate::seize::Stopped;

/// SIGCHLD: with its flags, what becomes of children that end.
const CHILD: u32 = 17;

/// Room for the leader's own ops and answers.
const LEADER_ROOM: u64 = 12 * 1024;

/// Offsets of what a leader is asked for, in its data.
const TIMERS: usize = 0;
const ACTIONS: usize = 96;
const SUBREAPER: usize = ACTIONS + 64 * 32;
const LENGTH: usize = SUBREAPER + 8;

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
        let vdso = mappings.iter().find(|area| area.name == b"[vdso]");
        let vdso = vdso.ok_or_else(|| refuse(inner, &stat.name, "it has no vDSO"))?.start;
        let length = LEADER_ROOM + THREAD_ROOM * stopped.threads.len() as u64;
        let mut hand = Hand::new(self.tree, self.tail, pid, vdso, length)?;
        let leader = ask_leader(&mut hand, pid, status)?;
        let mut threads = Vec::with_capacity(stopped.threads.len());
        for (n, &tid) in stopped.threads.iter().enumerate() {
            let at = LEADER_ROOM + n as u64 * THREAD_ROOM;
            let mut thread = thread::read(&mut hand, pid, tid, at)?;
            let who = &mut thread.credentials;
            who.uids = who.uids.map(|id| self.users.inside(id));
            who.gids = who.gids.map(|id| self.groups.inside(id));
            who.groups.iter_mut().for_each(|id| *id = self.groups.inside(*id));
            threads.push(thread);
        }
        hand.close()?;
        let memory = self.read_memory(pid, inner, stat, mappings, leader.brk)?;
        let descriptors = self.read_descriptors(pid, inner, &stat.name)?;
        Ok(Alive {
            threads,
            memory,
            descriptors,
            directory: proc::link(pid, "cwd")?,
            umask: u32::from_str_radix(status.words("Umask").next().unwrap_or("22"), 8)
                .unwrap_or(0o22),
            actions: leader.actions,
            pending: thread::pending(pid, true)?,
            limits: limits(&proc::read(pid, "limits")?)
                .ok_or_else(|| unreadable("/proc/PID/limits"))?,
            timers: leader.timers,
            stopped: stopped.job_control,
            dumpable: leader.dumpable,
            subreaper: leader.subreaper,
            oom_score: number(&proc::read(pid, "oom_score_adj")?),
            personality: u32::from_str_radix(
                String::from_utf8_lossy(&proc::read(pid, "personality")?).trim(),
                16,
            )
            .unwrap_or_default(),
        })
    }

    /// What can be seen to be in the way before anything is touched.
    fn check(&self, stopped: &Stopped, status: &Status, stat: &Stat, inner: u32) -> Result<()> {
        let no = |what: &str| Err(refuse(inner, &stat.name, what));
        let filters = status.number("Seccomp_filters");
        if filters > 1 {
            return no("it has a seccomp filter of its own making");
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

/// What only the process itself can tell.
struct Leader {
    actions: Vec<Option<SignalAction>>,
    timers: [[u64; 4]; 3],
    brk: u64,
    dumpable: bool,
    subreaper: bool,
}

fn ask_leader(hand: &mut Hand<'_>, pid: rustix::process::Pid, status: &Status) -> Result<Leader> {
    let caught = status.hexadecimal("SigCgt");
    let ignored = status.hexadecimal("SigIgn");
    let asked: Vec<u32> = (1..=64).filter(|n| *n == CHILD || caught >> (n - 1) & 1 == 1).collect();
    let count = 3 + asked.len() + 3;
    let data_at = hand.data_address(0, count);
    let mut ops = Vec::with_capacity(count);
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
    ops.push(Op::call(libc::SYS_brk, [0; 6]).keep());
    ops.push(prctl(libc::PR_GET_DUMPABLE, 0));
    ops.push(prctl(libc::PR_GET_CHILD_SUBREAPER, data_at + SUBREAPER as u64));
    let mut data = vec![0; LENGTH];
    let results = hand.ask(pid, 0, &ops, &mut data)?;
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
        [word(at), word(at + 8), word(at + 16), word(at + 24)]
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
    })
}

fn number(bytes: &[u8]) -> i32 {
    String::from_utf8_lossy(bytes).trim().parse().unwrap_or_default()
}

/// `/proc/PID/limits`: a line for each `RLIMIT_*` in the order of their numbers, in columns.
fn limits(bytes: &[u8]) -> Option<Vec<(u64, u64)>> {
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
