//! Descriptors of which all is known only when all have been seen.

use rustix::process::Pid;

use super::descriptors::Seen;
use crate::error::Error;
use crate::proc;

/// Where a description was found.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) pid: Pid,
    pub(super) number: u32,
    pub(super) inner: u32,
    name: Vec<u8>,
    link: Vec<u8>,
    /// Index of the description.
    pub(super) index: usize,
}

impl Waiting {
    pub(super) fn of(seen: &Seen<'_>, index: usize) -> Self {
        let (pid, number, inner) = (seen.pid, seen.number, seen.inner);
        Self { pid, number, inner, name: seen.name.to_vec(), link: seen.link.clone(), index }
    }

    pub(super) fn refuse(&self, what: &str) -> Error {
        let link = String::from_utf8_lossy(&self.link);
        let what = format!("descriptor {} ({link}): {what}", self.number);
        proc::refuse(self.inner, &self.name, what)
    }

    /// Something that a program is about to take: to wait is better than to refuse.
    pub(super) fn not_yet(&self, what: &str) -> Error {
        let (name, link) =
            (String::from_utf8_lossy(&self.name), String::from_utf8_lossy(&self.link));
        let (inner, number) = (self.inner, self.number);
        Error::Unsteady(format!("process {inner} ({name}), descriptor {number} ({link}): {what}"))
    }
}
