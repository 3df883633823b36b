//! Building a picture's processes again, by the init of another sandbox.

mod attributes;
mod control;
mod credentials;
mod events;
mod files;
mod inet;
mod inheritance;
mod locks;
mod loose;
mod memory;
mod netlink;
mod of_processes;
pub(crate) mod program;
mod queues;
mod sockets;
mod system_v;
mod task;
mod terminals;
mod thread;
pub(crate) mod timers;
mod tree;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use forkyard_sys::process::{self, SingleThreaded};
use rustix::process::{Pid, WaitId, WaitIdOptions};

use self::control::{Control, ENDED, GO, LEFT, READY, STOP, Step};
use self::inheritance::Inheritance;
use self::terminals::Terminals;
use self::tree::{Node, Role};
use crate::error::{Context, Error, Result};
use crate::picture::{Body, Picture, Process};
use crate::proc::{self, Mapping};
use crate::stage::Stage;
use crate::times::Times;

/// How long building may take. Only a host that is out of memory, or has a hundred others to run,
/// takes more than milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a sandbox lends to the processes that are built in it.
pub trait Home {
    /// The descriptor that a process had which led out of its sandbox, by the number that it had in
    /// [`crate::Subject::outside`].
    fn outside(&mut self, number: u64) -> io::Result<OwnedFd>;

    /// Takes the master of a terminal that is kept outside of the picture, by the number that it had
    /// in [`crate::Subject::terminals`].
    fn terminal(&mut self, keeper: u64, master: OwnedFd);

    /// Has the next System V object of a kind, `shm`, `sem` or `msg`, get this id.
    fn next_id(&self, kind: &str, id: i32) -> io::Result<()>;

    /// Puts a child of init behind the wall that the sandbox has for commands, if any.
    fn enter(&self) -> io::Result<()>;

    /// The filter that holds every process, as [`forkyard_sys::seccomp::Filter::to_bytes`].
    fn filter(&self) -> Vec<u8>;
}

/// Builds all processes of a picture, whose memory this process holds as a fork of the one that
/// took it; they run when this returns.
pub fn build(
    proof: &SingleThreaded,
    picture: &Picture,
    stage: &Stage,
    home: &mut dyn Home,
    times: &mut Times,
) -> Result<()> {
    // Every process starts from what this one has.
    forkyard_sys::signal::forget_actions();
    let nodes = tree::plan(picture)?;
    let mut terminals = Terminals::make(proof, picture, home)?;
    system_v::make_all(picture, home)?;
    queues::make_all(picture)?;
    let files = files::open_all(proof, picture, stage, home, &mut terminals)?;
    times.mark("open");
    let control = Control::new(stage.work())?;
    let inheritance = Inheritance::plan(picture, &nodes, stage.mirrors());
    inheritance.withhold_all()?;
    let site = Site {
        picture,
        files: &files,
        terminals: &terminals,
        control: &control,
        home,
        nodes: &nodes,
        inheritance: &inheritance,
        awaited: awaited(picture),
        work: stage.program(),
        shared: stage.shared(),
        inherited: attributes::Inherited::read()?,
        own: proc::places(rustix::process::getpid())?,
    };
    for &root in nodes.roots() {
        site.fork(proof, root).context(|| "clone3 with a process id".to_owned())?;
    }
    times.mark("fork");
    site.settle()?;
    // What this process still had open would not be closed when they close it: its other end would
    // not be told, and an epoll descriptor would tell of it on.
    drop(terminals);
    loose::release(files.into_loose())?;
    control.open(GO);
    times.mark("build");
    Ok(())
}

/// What the processes being built have in common.
struct Site<'a> {
    picture: &'a Picture,
    files: &'a files::Files,
    terminals: &'a Terminals,
    control: &'a Control,
    home: &'a dyn Home,
    nodes: &'a tree::Plan,
    inheritance: &'a Inheritance,
    /// Children that are waited for while they are built, by their parents.
    awaited: BTreeMap<u32, Vec<&'a Process>>,
    /// The first address of room that each has for itself.
    work: u64,
    inherited: attributes::Inherited,
    /// What this process, and so every fork of it, has mapped.
    own: Vec<Mapping>,
    /// The first address of memory that processes share, up to the control page.
    shared: u64,
}

impl Site<'_> {
    fn fork(&self, proof: &SingleThreaded, index: usize) -> io::Result<()> {
        let Some(node) = self.nodes.node(index) else { return Ok(()) };
        self.inheritance.give(index)?;
        let forked = process::fork_as(proof, node.pid, |proof| {
            let failed = match self.grow(&proof, node) {
                Ok(status) => return status,
                Err(error) => error,
            };
            self.control.fail(&format!("building process {}: {failed}", node.pid));
            125
        });
        forked.and_then(|()| self.inheritance.withhold(index))
    }

    /// In the child: its own children, then itself.
    fn grow(&self, proof: &SingleThreaded, node: &Node) -> Result<i32> {
        if node.enters {
            self.home.enter().context(|| "landlock_restrict_self".to_owned())?;
        }
        let fork_all = |children: &[usize]| -> Result<()> {
            for &child in children {
                self.fork(proof, child).context(|| "clone3 with a process id".to_owned())?;
            }
            Ok(())
        };
        if node.forks() {
            self.inheritance.withhold_all()?;
        }
        fork_all(&node.early)?;
        if node.leads_session {
            rustix::process::setsid().context(|| "setsid".to_owned())?;
            // Before there are children, who have it from this process.
            self.terminals.begin_session(node)?;
        }
        if node.leads_group && !node.leads_session {
            rustix::process::setpgid(None, None).context(|| "setpgid".to_owned())?;
        }
        fork_all(&node.children)?;
        for &orphan in &node.orphans {
            self.orphan(proof, orphan)?;
        }
        if node.forks() {
            // What it has of it is its own from now on, for its program to pass on.
            self.inheritance.give_all()?;
        }
        self.control.arrive(Step::Forked)?;
        if !node.leads_group && !node.leads_session {
            let group = Pid::from_raw(node.group.cast_signed());
            rustix::process::setpgid(None, group).context(|| "setpgid".to_owned())?;
        }
        self.control.arrive(Step::Grouped)?;
        self.leave_group(node)?;
        if self.terminals.any() {
            let process = match node.role {
                Role::Alive(index) => self.picture.processes.get(index),
                _ => None,
            };
            self.terminals.settle(node, process);
            // Who only leads a group until its session has a foreground is still there.
            self.control.arrive(Step::Settled)?;
        }
        match node.role {
            Role::Temporary => Ok(0),
            Role::Zombie(status) => Ok(end_as(status)),
            Role::Alive(index) => task::become_it(proof, self, index),
        }
    }

    /// Those who led a group and are in another one go there one after the other.
    fn leave_group(&self, node: &Node) -> Result<()> {
        if let Some(rank) = node.leaves {
            self.control.await_count(LEFT, rank)?;
            let group = Pid::from_raw(node.group.cast_signed());
            rustix::process::setpgid(None, group).context(|| "setpgid".to_owned())?;
            self.control.count(LEFT);
        }
        self.control.await_count(LEFT, self.nodes.leavers())
    }

    /// Forks a child that is left to init at once: by way of a process that ends.
    fn orphan(&self, proof: &SingleThreaded, index: usize) -> Result<()> {
        // Through it goes what is the orphan's.
        let given = self.inheritance.give(index);
        let forked = given.and_then(|()| {
            process::fork_as(proof, self.nodes.spare(index), |proof| {
                i32::from(self.fork(&proof, index).is_err())
            })
        });
        let forked = forked.and_then(|()| self.inheritance.withhold(index));
        forked.context(|| "clone3 with a process id".to_owned())?;
        let pid = Pid::from_raw(self.nodes.spare(index).cast_signed());
        let waited = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
        match waited.context(|| "waitpid".to_owned())? {
            Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
            _ => Err(Error::Unsteady("a child was not made".to_owned())),
        }
    }

    /// Waits until all are what they shall be.
    fn settle(&self) -> Result<()> {
        let all = self.nodes.count();
        self.control.let_pass(Step::Forked, all)?;
        self.control.let_pass(Step::Grouped, all)?;
        if self.terminals.any() {
            self.control.let_pass(Step::Settled, all)?;
        }
        let wanted = self.nodes.alive();
        self.control.await_all(ENDED, wanted)?;
        self.see_own(WaitIdOptions::EXITED | WaitIdOptions::NOWAIT, |child| {
            matches!(child.body, Body::Zombie(_))
        });
        self.control.open(STOP);
        self.control.await_all(READY, wanted)?;
        self.see_own(WaitIdOptions::STOPPED, Process::is_stopped);
        loose::finish(self.picture, &self.files.loose)?;
        sockets::settle(self.picture, self.files, self.files.leaving.take())?;
        events::settle(self.picture, self.files)
    }

    /// Waits until children of init are what they shall be; each is about to.
    fn see_own(&self, how: WaitIdOptions, which: impl Fn(&Process) -> bool) {
        for child in self.awaited(1).filter(|child| which(child)) {
            if let Some(pid) = Pid::from_raw(child.pid.cast_signed()) {
                let _ = rustix::process::waitid(WaitId::Pid(pid), how);
            }
        }
    }

    /// Children of a process that shall be zombies or stopped.
    fn awaited(&self, parent: u32) -> impl Iterator<Item = &Process> {
        self.awaited.get(&parent).into_iter().flatten().copied()
    }
}

fn awaited(picture: &Picture) -> BTreeMap<u32, Vec<&Process>> {
    let mut awaited: BTreeMap<u32, Vec<&Process>> = BTreeMap::new();
    for process in &picture.processes {
        if matches!(process.body, Body::Zombie(_)) || process.is_stopped() {
            awaited.entry(process.parent).or_default().push(process);
        }
    }
    awaited
}

/// Ends as the original ended.
fn end_as(status: i32) -> i32 {
    let signal = status & 0x7f;
    if signal == 0 {
        return status >> 8 & 0xff;
    }
    // This is no program whose memory anyone shall see in a core.
    let _ = process::set_not_dumpable();
    let _ = forkyard_sys::signal::set_blocked(false);
    let _ = process::kill(rustix::process::getpid().as_raw_nonzero().get(), signal);
    128 + signal
}
