//! Going on from a picture: the commands and the session of another sandbox, in this one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use forkyard_snapshot::{Home, Times, copy_tree};
use forkyard_sys::landlock::Wall;
use rustix::process::Pid;

use super::{Command, Init, Session};
use crate::proto::{CommandRecord, CommandState, Failure, SessionRecord, Start};
use crate::session::Pipes;
use crate::streams::{self, ServerEnds};
use crate::template::{Held, IN_MEMORY, number_of_command, number_of_session};

impl Init<'_> {
    /// Builds the processes of a picture, and takes up their commands and session.
    pub(super) fn rebuild(&mut self, held: &Held) -> Result<Times, Failure> {
        let failed = |e: io::Error| Failure::new("letting go of the memory of a fork", &e);
        let mut times = Times::start();
        self.fill_memory_files()?;
        // What lies in memory is mapped, too.
        held.check_marks()?;
        self.builder.take_from_base(&self.setup, held.picture().open_paths())?;
        self.tell_of_fork(held);
        times.mark("files in memory");
        let mut lent = Lent {
            ends: BTreeMap::new(),
            masters: BTreeMap::new(),
            settings: self.builder.take_settings(),
            wall: self.confinement.wall.as_ref(),
            filter: self.confinement.bounds.filter_bytes(),
        };
        // Where nobody tells, ids begin anew.
        if let (Some(settings), last @ 1..) = (&lent.settings, held.records.last_pid) {
            crate::sysctl::set_last_pid(settings, last)
                .map_err(|e| Failure::new("setting the last process id", &e))?;
        }
        let mut commands = Vec::new();
        for record in held.records.commands.iter().filter(|record| !record.state.tty) {
            commands.push(take_up(record, held, &mut lent)?);
        }
        let session = held.records.session.as_ref();
        let session = session.map(|record| take_session(record, held, &mut lent)).transpose()?;
        forkyard_snapshot::build(&self.proof, held.picture(), held.stage(), &mut lent, &mut times)
            .map_err(|error| Failure { what: error.to_string(), errno: 5 })?;
        for record in held.records.commands.iter().filter(|record| record.state.tty) {
            commands.push(take_terminal(record, held, &mut lent)?);
        }
        let strays = lent.masters.into_values().collect();
        held.stage().release().map_err(failed)?;
        self.program = Some(held.stage().program());
        self.strays = strays;
        self.next_command = held.records.next_command;
        self.commands = commands.into_iter().map(|command| (command.state.id, command)).collect();
        if let Some(session) = session {
            self.sessions = 1;
            self.session = Some(session);
        }
        times.mark("let go");
        Ok(times)
    }
}

impl Init<'_> {
    /// Puts copies of what file systems in memory held where they belong.
    fn fill_memory_files(&self) -> Result<(), Failure> {
        let from = self.builder.generation(&self.setup)?;
        for (name, place) in IN_MEMORY {
            let copy = format!("{from}/{name}");
            if !Path::new(&copy).exists() {
                continue;
            }
            copy_tree(Path::new(&copy), &Path::new("/").join(place), 0)
                .map_err(|error| Failure { what: error.to_string(), errno: 5 })?;
            std::fs::remove_dir_all(&copy)
                .map_err(|e| Failure::new("removing copies of files in memory", &e))?;
        }
        Ok(())
    }
}

fn take_up(record: &CommandRecord, held: &Held, lent: &mut Lent<'_>) -> Result<Command, Failure> {
    let start = Start {
        argv: Vec::new(),
        shell: false,
        env: Vec::new(),
        cwd: None,
        user: None,
        tty: None,
        stdin: record.state.stdin,
        detach: true,
        timeout_ms: None,
    };
    let (uid, gid) = record.owner;
    let (ends, server_ends) = streams::make(&start, uid, gid)?;
    let id = record.state.id;
    if let Some(stdin) = server_ends.pipes()[0]
        && let Some(unread) = held.picture().inputs.get(&number_of_command(id, 0))
    {
        refill(stdin, unread)?;
    }
    for (stream, end) in [ends.stdin, ends.stdout, ends.stderr].into_iter().enumerate() {
        lent.ends.insert(number_of_command(id, stream as u64), end);
    }
    Ok(command(record, server_ends))
}

/// Takes up a command with the terminal that was made for it.
fn take_terminal(
    record: &CommandRecord,
    held: &Held,
    lent: &mut Lent<'_>,
) -> Result<Command, Failure> {
    let id = record.state.id;
    let number = held.records.terminals.iter().find(|terminal| terminal.command == Some(id));
    let master = number.and_then(|terminal| lent.masters.remove(&u64::from(terminal.number)));
    let master =
        master.ok_or_else(|| Failure::new(format!("the terminal of command {id}"), &invalid()))?;
    Ok(command(record, streams::terminal_ends(master)?))
}

fn command(record: &CommandRecord, ends: ServerEnds) -> Command {
    Command {
        // Whoever waited for the original does not wait for this one.
        state: CommandState { detach: true, ..record.state.clone() },
        ends,
        terminate_at: record
            .timeout_ms
            .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms))),
        kill_at: None,
        timed_out: false,
    }
}

fn take_session(
    record: &SessionRecord,
    held: &Held,
    lent: &mut Lent<'_>,
) -> Result<Session, Failure> {
    let (uid, gid) = record.owner;
    let pipes = Pipes::new(uid, gid)?;
    refill(pipes.line(), &record.line)?;
    for n in 0..record.streams.len() as u64 {
        if let Some(unread) = held.picture().inputs.get(&number_of_session(n)) {
            refill(pipes.trigger(), unread)?;
        }
    }
    let (ends, pipes) = pipes.into_shell_ends();
    for (n, end) in ends.into_iter().enumerate() {
        lent.ends.insert(number_of_session(n as u64), end);
    }
    let pid = Pid::from_raw(record.pid.cast_signed());
    let pid = pid.ok_or_else(|| Failure::new("the session's shell", &invalid()))?;
    Ok(Session { pid, generation: 1, pipes, starting: None })
}

fn refill(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Failure> {
    while !bytes.is_empty() {
        let written = rustix::io::write(fd, bytes)
            .map_err(|e| Failure::new("filling a pipe again", &e.into()))?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// What this sandbox lends to what is built in it.
struct Lent<'a> {
    ends: BTreeMap<u64, OwnedFd>,
    /// Masters of terminals that came to be, by their numbers.
    masters: BTreeMap<u64, OwnedFd>,
    /// `/proc/sys/kernel`
    settings: Option<OwnedFd>,
    wall: Option<&'a Wall>,
    filter: Vec<u8>,
}

impl Home for Lent<'_> {
    fn outside(&mut self, number: u64) -> io::Result<OwnedFd> {
        let end = self.ends.get(&number).ok_or_else(invalid)?;
        end.try_clone()
    }

    fn terminal(&mut self, keeper: u64, master: OwnedFd) {
        self.masters.insert(keeper, master);
    }

    fn next_id(&self, kind: &str, id: i32) -> io::Result<()> {
        crate::sysctl::next_id(self.settings.as_ref().ok_or_else(invalid)?, kind, id)
    }

    fn enter(&self) -> io::Result<()> {
        self.wall.map_or(Ok(()), Wall::restrict)
    }

    fn filter(&self) -> Vec<u8> {
        self.filter.clone()
    }
}
