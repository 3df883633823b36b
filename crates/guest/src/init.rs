//! init: process 1 of a sandbox. Sets it up, starts and reaps commands, answers file requests.
//!
//! A plain fork of the spawner with one thread and no program of its own. It holds all
//! capabilities in the sandbox's user namespace, which commands do not, and cannot be traced or
//! read by them. One server at a time talks to it; when that one is gone, the next connects to the
//! socket that init listens at, outside of the sandbox's reach.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forkyard_sys::landlock::Wall;
use forkyard_sys::mount::OldRoot;
use forkyard_sys::process::{self, CloneFlags, SingleThreaded};
use forkyard_sys::{caps, channel, net, signal};
use rustix::event::epoll;
use rustix::fs::CWD;
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid, WaitOptions, WaitStatus, setrlimit};
use serde::{Deserialize, Serialize};

use crate::files::{self, Root};
use crate::kernel_files::{Fresh, KernelFiles};
use crate::launch::{Bounds, Confinement, Launch, shell_path};
use crate::proto::{
    CommandState, Ended, Failure, InitBody, InitError, InitMessage, InitOk, InitRequest, Setup,
    Start, StartError, decode, encode,
};
use crate::rootfs::Builder;
use crate::session::{self, Pipes};
use crate::streams::{self, ServerEnds};

/// How long a command has between SIGTERM and SIGKILL when it is stopped.
const GRACE: Duration = Duration::from_secs(1);

/// SIGCONT.
const CONTINUE: i32 = 18;

/// The limit on core dumps, soft and hard. A handler that the host names in `core_pattern` runs as
/// the host's root and reads what a guest made; a limit of exactly one byte is what keeps the
/// kernel from starting it (core(5)), and too little for a file.
const CORE: Rlimit = Rlimit { current: Some(1), maximum: Some(1) };

/// What the spawner tells an init that is where it belongs, before what it will be is known.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Growth {
    /// It has one id only.
    pub(crate) single_id: bool,
    /// It has a network namespace of its own.
    pub(crate) own_network: bool,
}

/// What a new init is told by the spawner. With it: its end of the channel to the server, the
/// socket where later servers connect, and its mounts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Birth {
    /// How to set up the sandbox.
    pub(crate) setup: Setup,
}

/// Grows as it is told on `cord`, waits there to be told what to be, and runs that sandbox until
/// it ends; gives init's exit status. `bounds` hold every command.
///
/// What failed before is told in the answer to its birth.
pub(crate) fn main(
    proof: SingleThreaded,
    bounds: &Bounds,
    cord: OwnedFd,
    joined: Result<(), Failure>,
) -> i32 {
    if process::close_all_but(&[cord.as_fd()]).is_err() {
        return 1;
    }
    let Ok(Some(message)) = channel::receive(&cord) else { return 1 };
    let Ok(growth) = decode::<Growth>(&message.bytes) else { return 1 };
    let kernel_files = joined.and_then(|()| grow(&growth));
    let Ok(Some(message)) = channel::receive(&cord) else { return 1 };
    drop(cord);
    let mut fds = message.fds.into_iter();
    let (Ok(birth), Some(control), Some(listener)) =
        (decode::<Birth>(&message.bytes), fds.next(), fds.next())
    else {
        return 1;
    };
    let Birth { setup } = birth;
    let mounts = fds.collect();
    let parts = match kernel_files.and_then(|files| set_up(&setup, files, mounts)) {
        Ok(parts) => parts,
        Err(failure) => {
            if let Ok(bytes) = encode(&InitMessage::Ready(Err(InitError::Setup(failure)))) {
                let _ = channel::send(&control, &bytes, &[]);
            }
            return 1;
        }
    };
    let mut init = Init {
        proof,
        deadline: setup.deadline,
        setup,
        single_id: growth.single_id,
        confinement: Confinement { bounds, wall: parts.wall },
        root: parts.root,
        builder: parts.builder,
        children: parts.children,
        epoll: parts.epoll,
        listener,
        server: None,
        commands: BTreeMap::new(),
        next_command: 1,
        workers: BTreeMap::new(),
        session: None,
        sessions: 0,
    };
    if init.watch().is_err() || init.serve_on(control).is_err() {
        return 1;
    }
    init.tell(&InitMessage::Ready(Ok(())));
    if parts.old_root.detach().is_err() {
        return 1;
    }
    init.start_first_session();
    init.run()
}

struct Parts {
    builder: Builder,
    old_root: OldRoot,
    root: Root,
    wall: Option<Wall>,
    children: OwnedFd,
    epoll: OwnedFd,
}

/// Takes on root's ids, and does all that is the same for every sandbox.
fn grow(growth: &Growth) -> Result<KernelFiles, Failure> {
    let failed = |what: &'static str| move |e: io::Error| Failure::new(what, &e);
    process::become_user(Uid::ROOT, Gid::ROOT, &[], !growth.single_id)
        .map_err(failed("taking on root's ids"))?;
    process::set_not_dumpable().map_err(failed("prctl PR_SET_DUMPABLE"))?;
    setrlimit(Resource::Core, CORE).map_err(|e| Failure::new("setrlimit core", &e.into()))?;
    rustix::process::setsid().map_err(|e| Failure::new("setsid", &e.into()))?;
    process::unshare_cgroup().map_err(failed("unshare of the cgroup namespace"))?;
    if growth.own_network {
        net::loopback_up().map_err(failed("setting lo up"))?;
    }
    KernelFiles::mount(growth.own_network)
}

/// Builds the root and moves into it, and gives up what can be given up.
fn set_up(setup: &Setup, files: KernelFiles, mounts: Vec<OwnedFd>) -> Result<Parts, Failure> {
    let failed = |what: &'static str| move |e: io::Error| Failure::new(what, &e);
    rustix::system::sethostname(setup.hostname.as_bytes())
        .map_err(|e| Failure::new("sethostname", &e.into()))?;
    if setup.cgroup2 {
        files.add_cgroup2()?;
    }
    let mut builder = Builder::new(files, mounts);
    builder.make_identity(setup)?;
    builder.make_uppers(setup)?;
    let old_root = builder.enter(setup, Fresh::mount(setup.tmp_size)?)?;
    caps::limit_bounding_set().map_err(failed("dropping the bounding set"))?;
    caps::set_no_new_privs().map_err(failed("prctl PR_SET_NO_NEW_PRIVS"))?;
    let (root, wall) = open_root(setup)?;
    Ok(Parts {
        builder,
        old_root,
        root,
        wall,
        children: signal::child_events().map_err(failed("signalfd"))?,
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| Failure::new("epoll_create", &e.into()))?,
    })
}

fn open_root(setup: &Setup) -> Result<(Root, Option<Wall>), Failure> {
    let root = Root::open("/").map_err(|e| Failure::new("opening the root", &e))?;
    if !setup.landlock {
        return Ok((root, None));
    }
    let dir = forkyard_sys::mount::open_dir("/").map_err(|e| Failure::new("opening /", &e))?;
    let wall = Wall::prepare(dir.as_fd(), setup.host_network)
        .map_err(|e| Failure::new(e.to_string(), &io::ErrorKind::Other.into()))?;
    Ok((root, Some(wall)))
}

/// A command and what init keeps of it for the next server.
struct Command {
    state: CommandState,
    ends: ServerEnds,
    /// When it is sent SIGTERM, then when SIGKILL.
    terminate_at: Option<Instant>,
    kill_at: Option<Instant>,
    timed_out: bool,
}

struct Session {
    pid: Pid,
    generation: u32,
    pipes: Pipes,
}

struct Init<'a> {
    proof: SingleThreaded,
    setup: Setup,
    single_id: bool,
    confinement: Confinement<'a>,
    builder: Builder,
    root: Root,
    children: OwnedFd,
    epoll: OwnedFd,
    listener: OwnedFd,
    server: Option<OwnedFd>,
    commands: BTreeMap<u32, Command>,
    next_command: u32,
    /// Processes that answer file requests, and the numbers of these.
    workers: BTreeMap<u32, u64>,
    session: Option<Session>,
    sessions: u32,
    deadline: Option<u64>,
}

const SERVER: u64 = 0;
const LISTENER: u64 = 1;
const CHILDREN: u64 = 2;

type Reply = (Result<InitOk, InitError>, Vec<OwnedFd>);

impl Init<'_> {
    fn watch(&self) -> io::Result<()> {
        let flags = epoll::EventFlags::IN;
        epoll::add(&self.epoll, &self.listener, epoll::EventData::new_u64(LISTENER), flags)?;
        epoll::add(&self.epoll, &self.children, epoll::EventData::new_u64(CHILDREN), flags)?;
        Ok(())
    }

    /// Talks to this server from now on; the one before is hung up on.
    fn serve_on(&mut self, server: OwnedFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN;
        // Closing a descriptor takes it out of the epoll set: a forked worker may still hold a
        // copy, so it is taken out by name.
        if let Some(old) = self.server.take() {
            let _ = epoll::delete(&self.epoll, &old);
        }
        epoll::add(&self.epoll, &server, epoll::EventData::new_u64(SERVER), flags)?;
        self.server = Some(server);
        Ok(())
    }

    fn run(&mut self) -> i32 {
        let mut events = Vec::with_capacity(8);
        loop {
            if self.over() {
                return 0;
            }
            self.enforce_timeouts();
            events.clear();
            let timeout = self.next_timeout();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return 1,
            }
            // Ends first: a request that follows may ask for what they changed.
            if events.iter().any(|event| event.data.u64() == CHILDREN) {
                self.drain_child_events();
                self.reap();
            }
            for event in &events {
                match event.data.u64() {
                    SERVER => self.receive(),
                    LISTENER => {
                        if let Ok(server) = channel::accept(&self.listener) {
                            let _ = self.serve_on(server);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn receive(&mut self) {
        let Some(server) = &self.server else { return };
        if let Ok(Some(message)) = channel::receive(server) {
            if let Ok(request) = decode::<InitRequest>(&message.bytes) {
                self.answer(request, message.fds);
            }
        } else {
            let _ = epoll::delete(&self.epoll, server);
            self.server = None;
        }
    }

    fn answer(&mut self, request: InitRequest, fds: Vec<OwnedFd>) {
        let InitRequest { seq, body } = request;
        let (result, fds) = match body {
            InitBody::Start(start) => return self.start(seq, &start),
            InitBody::Session => return self.give_session(seq),
            InitBody::Adopt { command } => return self.adopt(seq, command),
            InitBody::File(request) => {
                if files::is_long(&request) {
                    return self.file_worker(seq, *request, fds);
                }
                self.file(*request, fds)
            }
            InitBody::EndSession => {
                self.end_session();
                done()
            }
            InitBody::Interrupt { after, force } => {
                self.interrupt(after, force);
                done()
            }
            InitBody::List => {
                let states = self.commands.values().map(|c| c.state.clone()).collect();
                (Ok(InitOk::Commands(states)), Vec::new())
            }
            InitBody::Signal { command, signal } => {
                (self.signal(command, signal).map(|()| InitOk::Done), Vec::new())
            }
            InitBody::CloseStdin { command } => {
                if let Some(command) = self.commands.get_mut(&command) {
                    command.ends.close_stdin();
                }
                done()
            }
            InitBody::Stop { command } => {
                if let Some(command) = self.commands.get_mut(&command) {
                    command.terminate_at = Some(Instant::now());
                }
                done()
            }
            InitBody::Forget { command } => {
                (self.forget(command).map(|()| InitOk::Done), Vec::new())
            }
            InitBody::Reset { generation } if generation == self.setup.generation => done(),
            InitBody::Reset { generation } => {
                return self.reset(seq, generation);
            }
            InitBody::End => {
                self.kill_everything();
                self.deadline = Some(0);
                done()
            }
            InitBody::Deadline { at } => {
                self.deadline = at;
                done()
            }
        };
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.reply(seq, result, &borrowed);
    }

    fn reply(&self, seq: u64, result: Result<InitOk, InitError>, fds: &[BorrowedFd<'_>]) {
        if let (Some(server), Ok(bytes)) =
            (&self.server, encode(&InitMessage::Reply { seq, result }))
        {
            // A server that is gone is noticed when the socket is read. One that is there waits for
            // an answer, also where the kernel lets us send no descriptors.
            if let Err(error) = channel::send(server, &bytes, fds)
                && !fds.is_empty()
            {
                let failure = Failure::new("sending descriptors to the server", &error);
                self.reply(seq, Err(failure.into()), &[]);
            }
        }
    }

    fn tell(&self, message: &InitMessage) {
        if let (Some(server), Ok(bytes)) = (&self.server, encode(message)) {
            let _ = channel::send(server, &bytes, &[]);
        }
    }

    // Commands.

    fn start(&mut self, seq: u64, start: &Start) {
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

    fn adopt(&self, seq: u64, command: u32) {
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

    fn signal(&self, command: u32, signal: i32) -> Result<(), InitError> {
        let state = &self.commands.get(&command).ok_or(InitError::NoCommand(command))?.state;
        if state.exit.is_none() {
            // The command leads a session and a group of its own.
            process::kill(-(state.pid as i32), signal)
                .map_err(|e| Failure::new(format!("kill with signal {signal}"), &e))?;
        }
        Ok(())
    }

    fn forget(&mut self, id: u32) -> Result<(), InitError> {
        match self.commands.get(&id) {
            None => Err(InitError::NoCommand(id)),
            Some(command) if command.state.exit.is_none() => Err(InitError::Running(id)),
            Some(_) => {
                self.commands.remove(&id);
                Ok(())
            }
        }
    }

    fn enforce_timeouts(&mut self) {
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
    fn next_timeout(&self) -> Option<rustix::event::Timespec> {
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

    fn over(&self) -> bool {
        self.deadline.is_some_and(|at| at <= now())
    }

    // Ends.

    fn drain_child_events(&self) {
        let mut buffer = [0_u8; 512];
        while matches!(rustix::io::read(&self.children, &mut buffer), Ok(n) if n > 0) {}
    }

    fn reap(&mut self) {
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
        let message = InitMessage::Exited { command: command.state.id, ended };
        self.tell(&message);
    }

    // Session.

    fn give_session(&mut self, seq: u64) {
        if self.session.is_none()
            && let Err(error) = self.start_session()
        {
            return self.reply(seq, Err(error.into()), &[]);
        }
        if let Some(session) = &self.session {
            let ok = InitOk::Session { generation: session.generation };
            self.reply(seq, Ok(ok), &session.pipes.server_fds());
        }
    }

    fn start_session(&mut self) -> Result<(), StartError> {
        let shell = shell_path().ok_or(StartError::NoShell)?;
        let argv = session::shell_argv(shell);
        let launch = Launch::shell(&self.root, &self.setup, &argv, shell, self.single_id)?;
        let pipes = Pipes::new(launch.user.uid, launch.user.gid)?;
        let null = rustix::fs::openat(
            CWD,
            "/dev/null",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|e| Failure::new("opening /dev/null", &e.into()))?;
        let mut fds = vec![(null.as_fd(), 0)];
        fds.extend(pipes.shell_fds());
        let child = launch.fork(&self.proof, &self.confinement, &fds, None)?;
        self.sessions += 1;
        self.session = Some(Session { pid: child.pid, generation: self.sessions, pipes });
        Ok(())
    }

    /// Ends the shell and its group. Told now and not when it is reaped: whoever runs a line is
    /// not to wait for a shell that this session is no more.
    fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            let _ = process::kill(-session.pid.as_raw_nonzero().get(), 9);
            let ended = Ended { code: None, signal: Some(9), timed_out: false };
            self.tell(&InitMessage::SessionEnded { generation: session.generation, ended });
        }
    }

    /// Ends what the current line of the session started, and the line itself.
    fn interrupt(&self, after: u32, force: bool) {
        let Some(session) = &self.session else { return };
        let shell = session.pid.as_raw_nonzero().get();
        // The shell first: it runs the trap as soon as the child that it waits for is gone.
        let _ = process::kill(shell, session::INTERRUPT);
        let signal = if force { 9 } else { 15 };
        for pid in crate::tree::descendants(shell.cast_unsigned(), after) {
            let _ = process::kill(pid as i32, signal);
        }
    }

    // Files.

    fn file(&self, request: files::proto::FileRequest, mut fds: Vec<OwnedFd>) -> Reply {
        let defaults = files::Defaults {
            cwd: self.setup.workdir.clone().into_bytes(),
            user: self.setup.user.clone(),
        };
        let (result, fd) = files::handle(&self.root, request, fds.pop(), &defaults);
        (result.map(InitOk::File).map_err(InitError::File), fd.into_iter().collect())
    }

    /// Answers a request that takes its time from a process of its own.
    fn file_worker(&mut self, seq: u64, request: files::proto::FileRequest, fds: Vec<OwnedFd>) {
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
    fn lose_request(&self, seq: u64) {
        let killed = io::Error::from(rustix::io::Errno::INTR);
        let failure = Failure::new("answering a file request: the process was killed", &killed);
        self.reply(seq, Err(failure.into()), &[]);
    }

    // Reset.

    /// Starts again, and answers as soon as the new root is there: the old one is let go after.
    fn reset(&mut self, seq: u64, generation: String) {
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
        self.session = None;
        // Shared memory, semaphores and queues outlive processes.
        process::unshare(&self.proof, CloneFlags::IPC)
            .map_err(|e| Failure::new("unshare of the ipc namespace", &e))?;
        self.setup.generation = generation;
        // Made while they die. Nothing of the new root may be where the dying could see it.
        self.builder.make_uppers(&self.setup)?;
        let fresh = Fresh::mount(self.setup.tmp_size)?;
        self.kill_everything();
        let old_root = self.builder.enter(&self.setup, fresh)?;
        let (root, wall) = open_root(&self.setup)?;
        self.confinement.wall = wall;
        Ok((old_root, std::mem::replace(&mut self.root, root)))
    }

    /// Starts the session that was asked for at the start, behind the answer that all is ready. A
    /// sandbox without a shell is still good for commands; the first line will say so.
    fn start_first_session(&mut self) {
        if self.setup.session {
            let _ = self.start_session();
        }
    }

    /// Kills and reaps every other process of the sandbox.
    fn kill_everything(&self) {
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

fn done() -> Reply {
    (Ok(InitOk::Done), Vec::new())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
