//! Holding still while a picture of the sandbox is taken.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use forkyard_snapshot::SealError;
use forkyard_snapshot::picture::{Look, LookError};
use forkyard_sys::channel::{self, Message};
use forkyard_sys::sockets::diag;
use forkyard_sys::terminal;
use rustix::event::epoll;

use super::seal::{Seal, no_seal};
use super::{Command, HOLD, Init, Reply, done};
use crate::proto::{
    CommandRecord, CommandState, Failure, HoldRequest, InitError, Malformed, Records,
    SessionRecord, StreamRecord, TerminalRecord, decode, encode,
};
use crate::template::is_to_hold;

/// The longest line that is taken along: no session runs a longer one.
const LINE_MAX: u64 = 16 * 1024 * 1024;

impl Init<'_> {
    /// Awaits the word to hold still on this socket.
    pub(super) fn expect_hold(&mut self, mut fds: Vec<OwnedFd>) -> Reply {
        self.end_hold();
        if let Some(socket) = fds.pop() {
            let data = epoll::EventData::new_u64(HOLD);
            if let Err(error) = epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN) {
                let failure = Failure::new("epoll_ctl", &error.into());
                return (Err(InitError::Failed(failure)), Vec::new());
            }
            self.holder = Some(socket);
        }
        done()
    }

    /// Tells what there is, and does nothing until it may go on. Whoever takes the picture is
    /// bound to end, and with it this. It may ask before, too, what there is.
    pub(super) fn hold(&mut self) {
        self.await_shell();
        let asked = self.holder.as_ref().and_then(|holder| {
            let message = channel::receive(holder).ok()??;
            self.tell_holder(holder).then_some(message)
        });
        match asked {
            Some(message) if !is_to_hold(&message.bytes) => return,
            Some(_) => self.serve_holder(),
            None => {}
        }
        self.end_hold();
    }

    fn tell_holder(&self, holder: &OwnedFd) -> bool {
        if let Ok(root) = forkyard_sys::mount::open_dir("/")
            && let Ok(ipc) = std::fs::File::open("/proc/self/ns/ipc")
            && let Ok(bytes) = encode(&self.records(&root))
        {
            // One who has left this network namespace cannot make it there and come back. Not every
            // kernel can tell.
            let diag = diag::open().ok();
            let fds = [Some(root.as_fd()), Some(ipc.as_fd()), diag.as_ref().map(AsFd::as_fd)];
            let fds = fds.into_iter().flatten().collect::<Vec<_>>();
            return channel::send(holder, &bytes, &fds).is_ok();
        }
        false
    }

    /// Asked once all processes have stopped, and again with each try.
    fn serve_holder(&mut self) {
        let Some(holder) = self.holder.take() else { return };
        let mut seal = None;
        while let Ok(Some(message)) = channel::receive(&holder)
            && let Ok((answer, fds)) = self.answer_holder(message, &mut seal)
            && channel::send(&holder, &answer, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())
                .is_ok()
        {}
        self.unseal(seal);
        self.builder.tidy_sealed(&self.setup);
        self.holder = Some(holder);
    }

    fn answer_holder(
        &mut self,
        message: Message,
        seal: &mut Option<Seal>,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), Malformed> {
        let nothing = |bytes| (bytes, Vec::new());
        match decode(&message.bytes)? {
            HoldRequest::Terminal(kept) => encode(&self.look(kept, message.fds)).map(nothing),
            HoldRequest::Sockets(request) => {
                encode(&forkyard_snapshot::answer(&request, &message.fds)).map(nothing)
            }
            HoldRequest::Seal(linked) => {
                self.unseal(seal.take());
                let begun = self.begin_seal(&linked).map(|begun| *seal = Some(begun));
                encode(&begun.map_err(|failure| failure.to_string())).map(nothing)
            }
            HoldRequest::Open(openings) => {
                let opened = seal.as_ref().map_or_else(|| Err(no_seal()), |it| it.open(&openings));
                let (answer, fds) = match opened {
                    Ok(fds) => (Ok(()), fds),
                    Err(failure) => (Err(failure.to_string()), Vec::new()),
                };
                Ok((encode::<Result<(), String>>(&answer)?, fds))
            }
            HoldRequest::WaitAt(doors) => {
                let seal = seal.as_mut().ok_or_else(no_seal);
                let known = seal.and_then(|seal| seal.wait_at(doors, message.fds));
                encode(&known.map_err(|failure| failure.to_string())).map(nothing)
            }
            HoldRequest::Commit => {
                let done = match seal.take() {
                    Some(seal) => self.commit_seal(seal),
                    None => Err(SealError::NotMoved(no_seal().to_string())),
                };
                encode(&done).map(nothing)
            }
            HoldRequest::Unseal => {
                self.unseal(seal.take());
                encode(&()).map(nothing)
            }
        }
    }

    fn look(&self, kept: Option<u32>, fds: Vec<OwnedFd>) -> Result<Look, LookError> {
        let missing = || LookError::Failed("a terminal that nobody holds".to_owned());
        let mut fds = fds.into_iter();
        let passed;
        let (master, read_by_server) = if let Some(number) = kept {
            let found = self.masters().find(|(master, _)| has_number(master, number));
            found.map(|(master, command)| (master, command.is_some())).ok_or_else(missing)?
        } else {
            passed = fds.next().ok_or_else(missing)?;
            (&passed, false)
        };
        forkyard_snapshot::look(master, fds.next().as_ref(), !read_by_server)
    }

    /// Terminals that this process holds the masters of, with the command whose streams they are.
    fn masters(&self) -> impl Iterator<Item = (&OwnedFd, Option<&CommandState>)> {
        let commands = self.commands.values().filter_map(|command: &Command| {
            command.ends.master().map(|master| (master, Some(&command.state)))
        });
        commands.chain(self.strays.iter().map(|master| (master, None)))
    }

    fn terminals(&self) -> Vec<TerminalRecord> {
        let record = |(master, state): (&OwnedFd, Option<&CommandState>)| {
            let command = state.filter(|state| state.exit.is_none()).map(|state| state.id);
            Some(TerminalRecord { number: terminal::number(master).ok()?, command })
        };
        self.masters().filter_map(record).collect()
    }

    fn end_hold(&mut self) {
        if let Some(holder) = self.holder.take() {
            let _ = epoll::delete(&self.epoll, &holder);
        }
    }

    fn records(&self, root: &OwnedFd) -> Records {
        let running = self.commands.values().filter(|command| command.state.exit.is_none());
        let commands = running.map(|command| CommandRecord {
            state: command.state.clone(),
            streams: command.ends.pipes().map(|pipe| pipe.and_then(identity)),
            owner: owner(command.ends.pipes().into_iter().flatten().next()),
            timeout_ms: command
                .terminate_at
                .map(|at| at.saturating_duration_since(Instant::now()).as_millis() as u64),
        });
        let session = self.session.as_ref().map(|session| SessionRecord {
            pid: session.pid.as_raw_nonzero().get().cast_unsigned(),
            streams: session
                .pipes
                .shell_fds()
                .into_iter()
                .filter_map(|(fd, _)| identity(&fd))
                .collect(),
            owner: owner(Some(session.pipes.line())),
            line: line(session.pipes.line()),
        });
        Records {
            setup: self.setup.clone(),
            commands: commands.collect(),
            next_command: self.next_command,
            session,
            workers: self.workers.keys().copied().collect(),
            namespaces: namespaces(),
            root: identity(root),
            terminals: self.terminals(),
            terminal_device: rustix::fs::stat("/dev/pts").map_or(0, |stat| stat.st_dev),
            last_pid: crate::sysctl::last_pid(),
            program: self.program,
            gone: self.gone.clone(),
        }
    }
}

fn has_number(master: &OwnedFd, number: u32) -> bool {
    terminal::number(master).is_ok_and(|own| own == number)
}

/// Of this process, and so of the sandbox. Nobody else may look, for init cannot be traced.
fn namespaces() -> Vec<(String, String)> {
    let link = |name: &&str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).ok()?;
        Some(((*name).to_owned(), link.to_string_lossy().into_owned()))
    };
    ["mnt", "net", "ipc", "uts", "user", "pid", "cgroup", "time"].iter().filter_map(link).collect()
}

fn identity(fd: &impl AsFd) -> Option<StreamRecord> {
    rustix::fs::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

fn owner(fd: Option<&OwnedFd>) -> (u32, u32) {
    let stat = fd.and_then(|fd| rustix::fs::fstat(fd).ok());
    stat.map_or((0, 0), |stat| (stat.st_uid, stat.st_gid))
}

fn line(fd: &OwnedFd) -> Vec<u8> {
    let length = rustix::fs::fstat(fd).map_or(0, |stat| stat.st_size as u64).min(LINE_MAX);
    let mut bytes = vec![0; length as usize];
    let read = rustix::io::pread(fd, bytes.as_mut_slice(), 0).unwrap_or(0);
    bytes.truncate(read);
    bytes
}
