//! The program of a process that is being built: ops and their data, at known addresses.

use forkyard_sys::memory::Pages;
use forkyard_sys::process::SingleThreaded;
use forkyard_sys::stub::{self, Op};

use super::control::{Control, FAILED_CALL};
use crate::error::{Context, Result};
use crate::proc::Mapping;

/// More than the data of any program.
const MOST: u64 = 64 * 1024 * 1024;

/// Length of the code.
const PAGE: u64 = 4096;

/// Whether this is what a process was built by, where it keeps that.
pub(crate) fn is_left_behind(mapping: &Mapping, program: u64) -> bool {
    let data = program + PAGE;
    match (mapping.start, &mapping.permissions) {
        (start, b"r-xp") => start == program && mapping.end == data,
        (start, b"rw-p") => start == data && mapping.end - start < MOST,
        _ => false,
    }
}

/// Code in the first page, data behind.
pub(super) struct Program {
    base: u64,
    data: Vec<u8>,
}

impl Program {
    pub(super) fn new(base: u64) -> Self {
        Self { base, data: Vec::new() }
    }

    /// Puts data down, and gives its address: a multiple of 64.
    pub(super) fn put(&mut self, bytes: &[u8]) -> u64 {
        let at = self.data.len().next_multiple_of(64);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        self.base + PAGE + at as u64
    }

    /// Puts words down.
    pub(super) fn put_words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(&bytes)
    }

    /// Puts ops down.
    pub(super) fn put_ops(&mut self, ops: &[Op]) -> u64 {
        let bytes: Vec<u8> = ops.iter().flat_map(|op| op.to_bytes()).collect();
        self.put(&bytes)
    }

    /// Leaves for these ops.
    pub(super) fn run(
        mut self,
        proof: &SingleThreaded,
        control: &Control,
        pid: u32,
        ops: &[Op],
    ) -> Result<std::convert::Infallible> {
        let start = self.put_ops(ops);
        let failed = || "mapping the program of a process".to_owned();
        let mut code = Pages::map(self.base, PAGE, false).context(failed)?;
        code.write(self.base, stub::code()).context(failed)?;
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        code.protect(protection as u32).context(failed)?;
        let length = (self.data.len() as u64).next_multiple_of(PAGE);
        let mut data = Pages::map(self.base + PAGE, length, false).context(failed)?;
        data.write(self.base + PAGE, &self.data).context(failed)?;
        stub::enter(proof, self.base, start, control.address(FAILED_CALL), u64::from(pid))
    }
}
