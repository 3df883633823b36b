//! Timers: made with the process, set when it goes on.

use forkyard_sys::stub::Op;
use forkyard_sys::timer;

use super::program::Program;
use crate::picture::{Alive, PosixTimer};

/// `SIGEV_NONE`
const NONE: u64 = 1;

/// The highest id that is tried for by making timers and deleting them again, where the kernel
/// gives no other way to choose one.
pub(crate) const HIGHEST_TRIED: u32 = 1024;

/// Makes a process's POSIX timers, by the ids that they had, when all its threads are there.
pub(super) fn make(program: &mut Program, alive: &Alive, ops: &mut Vec<Op>) {
    if alive.posix_timers.is_empty() {
        return;
    }
    if !timer::can_restore_ids() {
        return make_by_trying(program, &alive.posix_timers, ops);
    }
    let choose =
        |on: u64| Op::call(libc::SYS_prctl, [timer::RESTORE_IDS as u64, on, 0, 0, 0, 0]).must();
    ops.push(choose(1));
    for timer in &alive.posix_timers {
        ops.push(create(program, timer));
    }
    ops.push(choose(0));
}

/// Ids are given out in their order, also those of timers that are gone.
fn make_by_trying(program: &mut Program, timers: &[PosixTimer], ops: &mut Vec<Op>) {
    let last = timers.iter().map(|timer| timer.id).max().unwrap_or_default();
    for id in 0..=last.min(HIGHEST_TRIED) {
        if let Some(timer) = timers.iter().find(|timer| timer.id == id) {
            ops.push(create(program, timer));
        } else {
            let none = PosixTimer { id, clock: 1, notify: NONE as i32, ..PosixTimer::default() };
            ops.push(create(program, &none));
            let delete = [u64::from(id), 0, 0, 0, 0, 0];
            ops.push(Op::call(libc::SYS_timer_delete, delete).must());
        }
    }
}

fn create(program: &mut Program, timer: &PosixTimer) -> Op {
    // `struct sigevent`: value, signal and kind, thread; 64 bytes.
    let how =
        u64::from(timer.signal.cast_unsigned()) | u64::from(timer.notify.cast_unsigned()) << 32;
    let event = program.put_words(&[timer.value, how, u64::from(timer.thread), 0, 0, 0, 0, 0]);
    let id = program.put_words(&[u64::from(timer.id)]);
    let clock = i64::from(timer.clock).cast_unsigned();
    Op::call(libc::SYS_timer_create, [clock, event, id, 0, 0, 0]).must()
}

/// Sets all timers to what they had left.
pub(super) fn set(program: &mut Program, alive: &Alive, ops: &mut Vec<Op>) {
    for (which, timer) in alive.timers.iter().enumerate().filter(|(_, timer)| **timer != [0; 4]) {
        let at = program.put_words(timer);
        ops.push(Op::call(libc::SYS_setitimer, [which as u64, at, 0, 0, 0, 0]));
    }
    for timer in alive.posix_timers.iter().filter(|timer| timer.time != [0; 4]) {
        let at = program.put_words(&timer.time);
        ops.push(Op::call(libc::SYS_timer_settime, [u64::from(timer.id), 0, at, 0, 0, 0]));
    }
}
