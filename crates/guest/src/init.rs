//! init: process 1 of a sandbox. Sets it up, starts and reaps commands, answers file requests.
//!
//! A plain fork of the spawner with one thread and no program of its own. It holds all
//! capabilities in the sandbox's user namespace, which commands do not, and cannot be traced or
//! read by them. One server at a time talks to it; when that one is gone, the next connects to the
//! socket that init listens at, outside of the sandbox's reach.

mod commands;
mod forked;
mod hold;
mod rebuild;
mod requests;
mod reset;
mod seal;
mod session;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forkyard_sys::landlock::Wall;
use forkyard_sys::mount::OldRoot;
use forkyard_sys::process::{self, SingleThreaded};
use forkyard_sys::{caps, channel, namespace, net, signal};
use rustix::event::epoll;
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid, setrlimit};
use serde::{Deserialize, Serialize};

use crate::files::{self, Root};
use crate::kernel_files::{Fresh, KernelFiles, Stand};
use crate::launch::{Bounds, Confinement};
use crate::proto::{
    CommandState, Failure, InitBody, InitError, InitMessage, InitOk, InitRequest, Setup, decode,
    encode,
};
use crate::rootfs::Builder;
use crate::session::Pipes;
use crate::streams::ServerEnds;
use crate::template::Held;

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
    held: Option<&Held>,
) -> i32 {
    if process::close_all_but(&[cord.as_fd()]).is_err() {
        return 1;
    }
    let Ok(Some(message)) = channel::receive(&cord) else { return 1 };
    let Ok(growth) = decode::<Growth>(&message.bytes) else { return 1 };
    let kernel_files = joined.and_then(|()| grow(&growth, held.is_some()));
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
    let born = Instant::now();
    let parts = match kernel_files.and_then(|files| set_up(&setup, files, mounts)) {
        Ok(parts) => parts,
        Err(failure) => {
            if let Ok(bytes) = encode(&InitMessage::Ready(Err(InitError::Setup(failure)))) {
                let _ = channel::send(&control, &bytes, &[]);
            }
            return 1;
        }
    };
    let set_up_us = born.elapsed().as_micros() as u64;
    let mut init = Init {
        proof,
        deadline: setup.deadline,
        holder: None,
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
        strays: Vec::new(),
        workers: BTreeMap::new(),
        session: None,
        sessions: 0,
        program: None,
        gone: Vec::new(),
        hooks: forked::Hooks::default(),
    };
    if init.watch().is_err() || init.serve_on(control).is_err() {
        return 1;
    }
    if let Some(held) = held {
        // Nothing runs where the old root can still be found.
        if parts.old_root.detach().is_err() {
            return 1;
        }
        match init.rebuild(held) {
            Ok(times) => {
                let set_up = ("root".to_owned(), set_up_us);
                let parts = [set_up].into_iter().chain(times.in_microseconds()).collect();
                init.tell(&InitMessage::Rebuilt(parts));
            }
            Err(failure) => {
                init.tell(&InitMessage::Ready(Err(InitError::Setup(failure))));
                return 1;
            }
        }
        init.tell(&InitMessage::Ready(Ok(())));
        init.start_hooks();
        return init.run();
    }
    init.tell(&InitMessage::Ready(Ok(())));
    if parts.old_root.detach().is_err() {
        return 1;
    }
    forked::forget();
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
fn grow(growth: &Growth, keep_settings: bool) -> Result<KernelFiles, Failure> {
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
    KernelFiles::mount(growth.own_network, keep_settings)
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
    let (root, wall) = open_root(setup, builder.stand()?)?;
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

fn open_root(setup: &Setup, stand: &Stand) -> Result<(Root, Option<Wall>), Failure> {
    let root = Root::open("/").map_err(|e| Failure::new("opening the root", &e))?;
    if !setup.landlock {
        return Ok((root, None));
    }
    let open = forkyard_sys::mount::open_dir;
    let failed = |e: io::Error| Failure::new("opening /", &e);
    let (above, dir) = (stand.above().map_err(failed)?, open("/").map_err(failed)?);
    let queues = open("/dev/mqueue").map_err(|e| Failure::new("opening /dev/mqueue", &e))?;
    // Programs may be of this root yet when it is gone, and open their own files by /proc.
    let dirs = [above.as_fd(), dir.as_fd(), queues.as_fd()];
    let wall = Wall::prepare(&dirs, setup.host_network)
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
    /// Tells that it is a shell yet, and not a fork of this process.
    starting: Option<File>,
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
    /// Who will have it hold still.
    holder: Option<OwnedFd>,
    commands: BTreeMap<u32, Command>,
    next_command: u32,
    /// Masters of terminals that processes still have whose command was one of the original.
    strays: Vec<OwnedFd>,
    /// Processes that answer file requests, and the numbers of these.
    workers: BTreeMap<u32, u64>,
    session: Option<Session>,
    sessions: u32,
    /// Where processes that were built keep what they were built by.
    program: Option<u64>,
    /// Devices of its roots before this one, the oldest first.
    gone: Vec<u64>,
    hooks: forked::Hooks,
    deadline: Option<u64>,
}

const SERVER: u64 = 0;
const LISTENER: u64 = 1;
const CHILDREN: u64 = 2;
const HOLD: u64 = 3;

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
                    HOLD => self.hold(),
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
            InitBody::Hold => self.expect_hold(fds),
            InitBody::Namespace => match namespace::own_user() {
                Ok(namespace) => (Ok(InitOk::Done), vec![namespace]),
                Err(error) => {
                    let failure = Failure::new("opening the user namespace", &error);
                    (Err(failure.into()), Vec::new())
                }
            },
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
}

fn done() -> Reply {
    (Ok(InitOk::Done), Vec::new())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
