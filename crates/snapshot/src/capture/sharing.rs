//! What processes and threads have in common, or apart, in ways that cannot be built again.
//!
//! Threads of a process share all that they can, processes nothing but open file descriptions;
//! clone(2) and unshare(2) can do otherwise.

use std::cmp::Ordering;

use forkyard_sys::remote::{self, Kind};
use rustix::process::Pid;

use crate::error::{Context, Result};
use crate::proc::refuse;
use crate::seize::Stopped;

/// What two processes may not have in common.
const APART: [(Kind, &str); 3] = [
    (Kind::Memory, "its memory"),
    (Kind::Files, "its table of descriptors"),
    (Kind::Fs, "its working directory"),
];

/// What the threads of a process may not have apart.
const TOGETHER: [(Kind, &str); 2] =
    [(Kind::Files, "a table of descriptors"), (Kind::Fs, "a working directory")];

/// Processes that have been looked at, in the kernel's order of what they have.
#[derive(Debug, Default)]
pub(super) struct Sharing([Vec<(Pid, u32)>; 3]);

impl Sharing {
    /// Refuses a process that shares something with one before it, or whose threads do not share
    /// all that they can.
    pub(super) fn check(&mut self, stopped: &Stopped, inner: u32, name: &[u8]) -> Result<()> {
        if stopped.threads.first() != Some(&stopped.pid) {
            return Err(refuse(inner, name, "its main thread has ended, and others go on"));
        }
        for ((kind, what), known) in APART.into_iter().zip(&mut self.0) {
            let mut order = Ok(Ordering::Greater);
            let place = known.binary_search_by(|&(other, _)| {
                order = remote::compare(kind, (other, 0), (stopped.pid, 0));
                *order.as_ref().unwrap_or(&Ordering::Less)
            });
            order.context(|| "kcmp".to_owned())?;
            match place {
                Err(place) => known.insert(place, (stopped.pid, inner)),
                Ok(place) => {
                    let other = known.get(place).map_or(0, |(_, inner)| *inner);
                    let text = format!("it shares {what} with process {other}");
                    return Err(refuse(inner, name, text));
                }
            }
        }
        for &tid in stopped.threads.iter().skip(1) {
            for (kind, what) in TOGETHER {
                let same = remote::compare(kind, (stopped.pid, 0), (tid, 0));
                if same.context(|| "kcmp".to_owned())? != Ordering::Equal {
                    return Err(refuse(
                        inner,
                        name,
                        format!("a thread of it has {what} of its own"),
                    ));
                }
            }
        }
        Ok(())
    }
}
