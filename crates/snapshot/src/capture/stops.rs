//! Stops for job control: whether the parent knows.

use std::collections::HashMap;

use forkyard_sys::stub::Op;
use rustix::process::Pid;

use super::Capture;
use crate::error::Result;
use crate::inject::Hand;
use crate::picture::Body;

/// Children that are stopped, by their parents.
pub(super) type Stops = HashMap<Pid, Vec<u32>>;

/// How many children are asked about at once, for which the leader has room.
const AT_ONCE: usize = 32;

/// `P_PID` of waitid(2).
const ONE_PROCESS: u64 = 1;

/// Length of a `siginfo_t`, and where its `si_pid` is.
const INFO: usize = 128;
const PID: usize = 16;

impl Capture<'_> {
    /// Asks a process which of its children it would still be told of that they stopped.
    pub(super) fn read_stops(&mut self, hand: &mut Hand<'_>, pid: Pid) -> Result<()> {
        let children = self.stops.remove(&pid).unwrap_or_default();
        for children in children.chunks(AT_ONCE) {
            let infos = hand.data_address(0, children.len());
            let ops = children.iter().zip((infos..).step_by(INFO)).map(|(&child, info)| {
                let how = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
                Op::call(libc::SYS_waitid, [ONE_PROCESS, child.into(), info, how as u64, 0, 0])
            });
            let ops: Vec<Op> = ops.collect();
            let mut data = vec![0; children.len() * INFO];
            hand.ask(pid, 0, &ops, &mut data)?;
            let untold = children.iter().zip(data.chunks_exact(INFO)).filter(|(child, info)| {
                info.get(PID..PID + 4) == Some(child.to_le_bytes().as_slice())
            });
            self.untold_stops.extend(untold.map(|(&child, _)| child));
        }
        Ok(())
    }

    /// Notes what was found.
    pub(super) fn finish_stops(&mut self) {
        for process in &mut self.picture.processes {
            if let Body::Alive(alive) = &mut process.body {
                alive.stop_untold = self.untold_stops.contains(&process.pid);
            }
        }
    }
}
