//! Commands: started, signalled, timed, reaped.

use std::time::{Duration, Instant};

use forkyard_sys::{channel, process};
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::{CONTINUE, Command, GRACE, Init, now};
use crate::launch::Launch;
use crate::proto::{
    CommandState, Ended, Failure, InitError, InitMessage, InitOk, Start, StartError, encode,
};
use crate::streams;

impl Init<'_> {
    pub(super) fn start(&mut self, seq: u64, start: &Start) {
        match self.try_start(start) {
            Ok(command) => {
                let streams = command.ends.streams;
                let ok = InitOk::Started { command: command.state.clone(), streams };
                self.reply(seq, Ok(ok), &command.ends.fds());
                self.commands.insert(command.state.id, command);
            }
            Err(error) => self.reply(seq, Err(error.into()), &[]),
        }
    }

    /// Starts a command that the server did not ask for, and tells it so; its number.
    pub(super) fn begin(&mut self, start: &Start) -> Result<u32, StartError> {
        let command = self.try_start(start)?;
        let id = command.state.id;
        let streams = command.ends.streams;
        let message = InitMessage::Began { command: command.state.clone(), streams };
        if let (Some(server), Ok(bytes)) = (&self.server, encode(&message)) {
            let _ = channel::send(server, &bytes, &command.ends.fds());
        }
        self.commands.insert(id, command);
        Ok(id)
    }

    fn try_start(&mut self, start: &Start) -> Result<Command, StartError> {
        let launch = Launch::resolve(&self.root, &self.setup, start, self.single_id)?;
        let (ends, server_ends) = streams::make(start, launch.user.uid, launch.user.gid)?;
        let child = launch.start(&self.proof, &self.confinement, &ends)?;
        let id = self.next_command;
        self.next_command += 1;
        Ok(Command {
            state: CommandState {
                id,
                pid: child.pid.as_raw_nonzero().get().cast_unsigned(),
                argv: start.argv.clone(),
                tty: start.tty.is_some(),
                stdin: start.stdin,
                detach: start.detach,
                started_at: now(),
                exit: None,
            },
            ends: server_ends,
            terminate_at: start
                .timeout_ms
                .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms))),
            kill_at: None,
            timed_out: false,
        })
    }

    pub(super) fn adopt(&self, seq: u64, command: u32) {
        match self.commands.get(&command) {
            Some(command) => {
                let ok = InitOk::Started {
                    command: command.state.clone(),
                    streams: command.ends.streams,
                };
                self.reply(seq, Ok(ok), &command.ends.fds());
            }
            None => self.reply(seq, Err(InitError::NoCommand(command)), &[]),
        }
    }

    pub(super) fn signal(&self, command: u32, signal: i32) -> Result<(), InitError> {
        let state = &self.commands.get(&command).ok_or(InitError::NoCommand(command))?.state;
        if state.exit.is_none() {
            // The command leads a session and a group of its own.
            process::kill(-(state.pid as i32), signal)
                .map_err(|e| Failure::new(format!("kill with signal {signal}"), &e))?;
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, id: u32) -> Result<(), InitError> {
        match self.commands.get(&id) {
            None => Err(InitError::NoCommand(id)),
            Some(command) if command.state.exit.is_none() => Err(InitError::Running(id)),
            Some(_) => {
                self.commands.remove(&id);
                Ok(())
            }
        }
    }

    pub(super) fn enforce_timeouts(&mut self) {
        let now = Instant::now();
        let mut signals = Vec::new();
        for command in self.commands.values_mut().filter(|c| c.state.exit.is_none()) {
            if command.terminate_at.is_some_and(|at| at <= now) {
                command.terminate_at = None;
                command.kill_at = Some(now + GRACE);
                command.timed_out = true;
                signals.push((command.state.pid, 15));
            } else if command.kill_at.is_some_and(|at| at <= now) {
                command.kill_at = None;
                signals.push((command.state.pid, 9));
            }
        }
        for (pid, signal) in signals {
            let _ = process::kill(-(pid as i32), signal);
        }
    }

    /// Time until something must be done, or for ever.
    pub(super) fn next_timeout(&self) -> Option<rustix::event::Timespec> {
        let soonest = self
            .commands
            .values()
            .filter(|command| command.state.exit.is_none())
            .filter_map(|command| command.terminate_at.or(command.kill_at))
            .min()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let over = self.deadline.map(|at| Duration::from_millis(at.saturating_sub(now())));
        let wait = match (soonest, over) {
            (Some(a), Some(b)) => a.min(b),
            (Some(wait), None) | (None, Some(wait)) => wait,
            (None, None) => return None,
        };
        // Rounded up: waking a little early would only mean to wait again.
        let wait = wait + Duration::from_millis(1);
        Some(rustix::event::Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        })
    }

    pub(super) fn over(&self) -> bool {
        self.deadline.is_some_and(|at| at <= now())
    }

    pub(super) fn drain_child_events(&self) {
        let mut buffer = [0_u8; 512];
        while matches!(rustix::io::read(&self.children, &mut buffer), Ok(n) if n > 0) {}
    }

    pub(super) fn reap(&mut self) {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        while let Ok(Some((pid, status))) = rustix::process::wait(options) {
            if status.stopped() {
                self.stopped(pid);
            } else {
                self.ended(pid, status);
            }
        }
    }

    /// A guest's root can stop any process but init. Whoever waits for a file request is not to
    /// wait for it; commands and shells stay stopped, as is usual.
    fn stopped(&self, pid: Pid) {
        if self.workers.contains_key(&pid.as_raw_nonzero().get().cast_unsigned()) {
            let _ = process::kill(pid.as_raw_nonzero().get(), CONTINUE);
        }
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) {
        let mut ended = Ended {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            timed_out: false,
        };
        if self.session.as_ref().is_some_and(|session| session.pid == pid) {
            if let Some(session) = self.session.take() {
                self.tell(&InitMessage::SessionEnded { generation: session.generation, ended });
            }
            return;
        }
        let number = pid.as_raw_nonzero().get().cast_unsigned();
        if let Some(seq) = self.workers.remove(&number) {
            // One that was killed may have answered before: the server knows which wait.
            if status.signaled() {
                self.lose_request(seq);
            }
            return;
        }
        let running = |c: &&mut Command| c.state.pid == number && c.state.exit.is_none();
        let Some(command) = self.commands.values_mut().find(running) else { return };
        ended.timed_out = command.timed_out;
        command.state.exit = Some(ended);
        if command.timed_out {
            // What ignored SIGTERM and outlived its leader.
            let _ = process::kill(-(number as i32), 9);
        }
        let id = command.state.id;
        self.tell(&InitMessage::Exited { command: id, ended });
        self.hook_ended(id, ended.code.filter(|_| !ended.timed_out));
    }
}
