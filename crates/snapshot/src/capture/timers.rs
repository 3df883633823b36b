//! POSIX timers of a process: what /proc tells of them, and how long they have to go.

use std::collections::BTreeMap;

use forkyard_sys::stub::Op;
use rustix::process::Pid;

use crate::build::timers::HIGHEST_TRIED;
use crate::error::{Result, unreadable};
use crate::inject::Hand;
use crate::picture::PosixTimer;
use crate::proc::{self, refuse};

/// More are refused: each costs a system call while the process is stopped.
const MOST: usize = 4096;

/// The clock that a timer has which was made on the processor time of "the calling thread":
/// whichever that was.
const CALLING_THREAD: i32 = -2;

/// How many are asked for at once.
const CHUNK: usize = 64;

/// `SIGEV_THREAD_ID`, and `SIGEV_NONE` for a timer whose thread is gone.
const THREAD_ID: i32 = 4;
const NONE: i32 = 1;

/// The timers of a process whose threads have these ids, on the host and inside.
pub(super) fn read(
    hand: &mut Hand<'_>,
    pid: Pid,
    who: (u32, &[u8]),
    threads: &BTreeMap<u32, u32>,
) -> Result<Vec<PosixTimer>> {
    // Kernels without CONFIG_CHECKPOINT_RESTORE have no such file, and no set_tid either.
    let bytes = proc::read(pid, "timers")?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| unreadable("/proc/PID/timers"))?;
    let mut timers = parse(text).ok_or_else(|| unreadable("/proc/PID/timers"))?;
    if timers.len() > MOST {
        return Err(refuse(who.0, who.1, format!("it has more than {MOST} timers")));
    }
    let can_choose = forkyard_sys::timer::can_restore_ids();
    for timer in &mut timers {
        if timer.id > HIGHEST_TRIED && !can_choose {
            let what = format!("timer {} has an id that this kernel gives to no other", timer.id);
            return Err(refuse(who.0, who.1, what));
        }
        if timer.clock == CALLING_THREAD && threads.len() > 1 {
            let what = format!("timer {} counts the processor time of a thread", timer.id);
            return Err(refuse(who.0, who.1, what));
        }
        if timer.notify == THREAD_ID {
            match threads.get(&timer.thread) {
                Some(&inside) => timer.thread = inside,
                // Nobody gets its signal any more.
                None => timer.notify = NONE,
            }
        }
    }
    for timers in timers.chunks_mut(CHUNK) {
        let data_at = hand.data_address(0, timers.len());
        let ops: Vec<Op> = (0_u64..)
            .zip(timers.iter())
            .map(|(n, timer)| {
                let at = data_at + n * 32;
                Op::call(libc::SYS_timer_gettime, [u64::from(timer.id), at, 0, 0, 0, 0])
            })
            .collect();
        let mut data = vec![0; timers.len() * 32];
        hand.ask(pid, 0, &ops, &mut data)?;
        for (timer, time) in timers.iter_mut().zip(data.chunks_exact(32)) {
            for (word, bytes) in timer.time.iter_mut().zip(time.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            }
        }
    }
    Ok(timers)
}

/// `/proc/PID/timers`, see `proc_pid_timers`(5): four lines for each, the oldest last.
fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (name, rest) = line.split_once(':')?;
        let rest = rest.trim();
        if name == "ID" {
            timers.push(PosixTimer { id: rest.parse().ok()?, ..PosixTimer::default() });
            continue;
        }
        let timer = timers.last_mut()?;
        match name {
            "signal" => {
                let (signal, value) = rest.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(value, 16).ok()?;
            }
            "notify" => {
                let (how, whom) = rest.split_once('/')?;
                let (kind, id) = whom.split_once('.')?;
                let thread = if kind == "tid" { THREAD_ID } else { 0 };
                timer.notify = thread
                    | match how {
                        "signal" => 0,
                        "none" => NONE,
                        "thread" => 2,
                        _ => return None,
                    };
                timer.thread = id.parse().ok()?;
            }
            "ClockID" => timer.clock = rest.parse().ok()?,
            _ => {}
        }
    }
    timers.sort_by_key(|timer| timer.id);
    Some(timers)
}

/// For the targets in `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(super) fn read_all(text: &str) {
    let timers = parse(text).unwrap_or_default();
    assert!(timers.is_sorted_by_key(|timer| timer.id) && timers.len() <= text.lines().count());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_read_as_the_kernel_tells_them() {
        let text = "ID: 7\nsignal: 34/00007f0000000001\nnotify: signal/tid.812\nClockID: 1\n\
                    ID: 2\nsignal: 14/0000000000000000\nnotify: none/pid.811\nClockID: -6\n";
        let timers = parse(text).unwrap();
        let [first, second] = timers.as_slice() else { panic!("{timers:?}") };
        assert_eq!((first.id, first.notify, first.clock), (2, NONE, -6));
        assert_eq!((second.id, second.notify, second.thread), (7, THREAD_ID, 812));
        assert_eq!((second.signal, second.value), (34, 0x7f00_0000_0001));
        assert_eq!(parse("ID: x\n"), None);
    }
}
