//! Signals that wait, and what they make of calls that were interrupted.

use forkyard_sys::ptrace::{self, Registers};
use rustix::process::Pid;

use crate::error::{Context, Result};
use crate::interrupted::{interrupt, restart};
use crate::picture::{Signal, SignalAction, Thread};
use crate::proc::refuse;
use crate::registers;

/// More that wait are refused: the kernel walks through all of them for each that it tells.
const MOST: usize = 1024;

/// Signals that wait for a thread, or for its process; `who` has its id inside and its name.
pub(super) fn pending(tid: Pid, of_process: bool, who: (u32, &[u8])) -> Result<Vec<Signal>> {
    let signals = ptrace::pending_signals(tid, of_process, MOST);
    let signals = signals.context(|| "PTRACE_PEEKSIGINFO".to_owned())?;
    if signals.len() > MOST {
        return Err(refuse(who.0, who.1, format!("more than {MOST} signals wait for it")));
    }
    Ok(signals.into_iter().map(|info| Signal(info.to_vec())).collect())
}

/// Makes up the mind of a stopped process: which thread takes a signal that one can take, and how
/// calls go on that the stop interrupted.
///
/// The kernel would do that as the process goes on. Where it is built again, all signals are there
/// before any thread goes on, so who is interrupted must be known.
pub(super) fn settle(
    threads: &mut [(Thread, Registers)],
    of_process: Vec<Signal>,
    actions: &[Option<SignalAction>],
) -> Vec<Signal> {
    let mut left = Vec::new();
    for signal in of_process {
        let taker = threads.iter_mut().find(|(thread, _)| !blocks(thread, number(&signal)));
        match taker {
            Some((thread, _)) => thread.pending.push(signal),
            None => left.push(signal),
        }
    }
    for (thread, general) in threads {
        match handler(thread, actions) {
            Some(action) => interrupt(general, action.flags),
            None => restart(general, false),
        }
        thread.registers = registers::words(general).to_vec();
    }
    left
}

/// The handler that a thread will run first.
fn handler<'a>(thread: &Thread, actions: &'a [Option<SignalAction>]) -> Option<&'a SignalAction> {
    let waiting = thread.pending.iter().map(number).filter(|&signal| !blocks(thread, signal));
    let action = |signal: usize| actions.get(signal.checked_sub(1)?)?.as_ref();
    // Default, ignored.
    let runs = |action: &SignalAction| action.handler > 1;
    waiting.filter(|&signal| action(signal).is_some_and(runs)).min().and_then(action)
}

fn number(signal: &Signal) -> usize {
    signal.0.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize
}

fn blocks(thread: &Thread, signal: usize) -> bool {
    (1..=64).contains(&signal) && thread.mask >> (signal - 1) & 1 == 1
}
