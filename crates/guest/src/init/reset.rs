//! Everything ends, and a new root takes the place of the old one.

use forkyard_sys::mount::OldRoot;
use forkyard_sys::process::{self, CloneFlags};
use rustix::process::WaitOptions;

use super::{Init, open_root};
use crate::files::Root;
use crate::kernel_files::Fresh;
use crate::proto::{Failure, InitError, InitOk};

impl Init<'_> {
    /// Starts again, and answers as soon as the new root is there: the old one is let go after.
    pub(super) fn reset(&mut self, seq: u64, generation: String) {
        let old = match self.renew(generation) {
            Ok(old) => old,
            Err(failure) => return self.reply(seq, Err(InitError::Failed(failure)), &[]),
        };
        self.reply(seq, Ok(InitOk::Done), &[]);
        let (old_root, old_files) = old;
        drop(old_files);
        if old_root.detach().is_err() {
            // Nothing may run where the old root could still be found.
            self.deadline = Some(0);
            return;
        }
        self.start_first_session();
    }

    /// Kills everything, and moves into a root as new as at the start.
    fn renew(&mut self, generation: String) -> Result<(OldRoot, Root), Failure> {
        let _ = process::kill_all(9);
        for seq in std::mem::take(&mut self.workers).into_values() {
            self.lose_request(seq);
        }
        self.commands.clear();
        self.drop_hooks();
        self.strays.clear();
        self.program = None;
        self.gone.clear();
        self.session = None;
        // Shared memory, semaphores and queues outlive processes.
        process::unshare(&self.proof, CloneFlags::IPC)
            .map_err(|e| Failure::new("unshare of the ipc namespace", &e))?;
        self.setup.generation = generation;
        self.setup.overlays.iter_mut().for_each(|overlay| overlay.base.clear());
        // Made while they die. Nothing of the new root may be where the dying could see it.
        self.builder.make_uppers(&self.setup)?;
        let fresh = Fresh::mount(self.setup.tmp_size)?;
        self.kill_everything();
        let old_root = self.builder.enter(&self.setup, fresh)?;
        let (root, wall) = open_root(&self.setup, self.builder.stand()?)?;
        self.confinement.wall = wall;
        Ok((old_root, std::mem::replace(&mut self.root, root)))
    }

    /// Starts the session that was asked for at the start, behind the answer that all is ready. A
    /// sandbox without a shell is still good for commands; the first line will say so.
    pub(super) fn start_first_session(&mut self) {
        if self.setup.session {
            let _ = self.start_session();
        }
    }

    /// Kills and reaps every other process of the sandbox.
    pub(super) fn kill_everything(&self) {
        loop {
            let _ = process::kill_all(9);
            loop {
                match rustix::process::wait(WaitOptions::NOHANG) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    // ECHILD: nobody is left.
                    Err(_) => return self.drain_child_events(),
                }
            }
            let mut fds =
                [rustix::event::PollFd::new(&self.children, rustix::event::PollFlags::IN)];
            let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let _ = rustix::event::poll(&mut fds, Some(&wait));
            self.drain_child_events();
        }
    }
}
