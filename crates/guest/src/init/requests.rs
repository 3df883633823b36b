//! File requests: answered at once, or by a process of their own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use forkyard_sys::process::{self, CloneFlags};

use super::{Init, Reply};
use crate::files;
use crate::proto::{Failure, InitError, InitOk};

impl Init<'_> {
    pub(super) fn file(&self, request: files::proto::FileRequest, mut fds: Vec<OwnedFd>) -> Reply {
        let defaults = files::Defaults {
            cwd: self.setup.workdir.clone().into_bytes(),
            user: self.setup.user.clone(),
        };
        let (result, fd) = files::handle(&self.root, request, fds.pop(), &defaults);
        (result.map(InitOk::File).map_err(InitError::File), fd.into_iter().collect())
    }

    /// Answers a request that takes its time from a process of its own.
    pub(super) fn file_worker(
        &mut self,
        seq: u64,
        request: files::proto::FileRequest,
        fds: Vec<OwnedFd>,
    ) {
        let forked = process::fork(&self.proof, CloneFlags::default(), None, |_| {
            let (result, fds) = self.file(request, fds);
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            self.reply(seq, result, &borrowed);
            0
        });
        match forked {
            Ok(child) => {
                self.workers.insert(child.pid.as_raw_nonzero().get().cast_unsigned(), seq);
            }
            Err(error) => {
                let failure = Failure::new("clone3 for a file request", &error);
                self.reply(seq, Err(failure.into()), &[]);
            }
        }
    }

    /// Tells that the process which was to answer a file request was killed: guests can do that.
    pub(super) fn lose_request(&self, seq: u64) {
        let killed = io::Error::from(rustix::io::Errno::INTR);
        let failure = Failure::new("answering a file request: the process was killed", &killed);
        self.reply(seq, Err(failure.into()), &[]);
    }
}
