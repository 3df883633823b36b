//! Becoming a process of the picture: what Rust can still do, then a program for the stub.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_sys::process::{self, SingleThreaded};
use forkyard_sys::stub::Op;
use rustix::fs::Mode;

use super::Site;
use super::control::{ENDED, GO, READY, STOP};
use super::events;
use super::memory::{self, Numbers};
use super::of_processes;
use super::program::Program;
use super::{attributes, locks, thread, timers};
use crate::error::{Context, Result};
use crate::picture::{Alive, Body};

/// `SECCOMP_SET_MODE_FILTER` with `SECCOMP_FILTER_FLAG_TSYNC`.
const FILTER: [u64; 2] = [1, 1];

/// Becomes the process with this index.
pub(super) fn become_it(proof: &SingleThreaded, site: &Site<'_>, index: usize) -> Result<i32> {
    let process = site.picture.processes.get(index);
    let Some((process, Body::Alive(alive))) = process.map(|process| (process, &process.body))
    else {
        return Ok(0);
    };
    let directory = super::files::path_of(&alive.directory, &site.files.loose)?;
    rustix::process::chdir(directory.as_slice())
        .context(|| format!("entering {}", String::from_utf8_lossy(&directory)))?;
    rustix::process::umask(Mode::from_raw_mode(alive.umask));
    attributes::write(alive, site.inherited)?;
    let mut processes = events::open_processes(site.picture, alive)?;
    events::add_own(site.files, index, &processes)?;
    of_processes::open(site.picture, alive, &mut processes)?;
    let numbers = place_descriptors(site, alive, &processes)?;
    let mut program = Program::new(site.work);
    let ops = ops(&mut program, site, index, alive, &numbers)?;
    match program.run(proof, site.control, process.pid, &ops)? {}
}

/// Puts descriptors where they belong; what is mapped is above all of them.
fn place_descriptors(
    site: &Site<'_>,
    alive: &Alive,
    processes: &BTreeMap<usize, OwnedFd>,
) -> Result<Numbers> {
    let mut fds: Vec<(BorrowedFd<'_>, i32, bool)> = Vec::new();
    for descriptor in &alive.descriptors {
        let index = descriptor.description;
        let file = site.files.description(index);
        if let Some(file) = file.or_else(|| processes.get(&index).map(AsFd::as_fd)) {
            let number = descriptor.number.cast_signed();
            fds.push((file, number, descriptor.close_on_exec));
        }
    }
    let above = fds.iter().map(|&(_, number, _)| number).max().unwrap_or(2) + 1;
    let mut numbers = Numbers { first: above, ..Numbers::default() };
    let mut next = above;
    for file in memory::files(alive) {
        if let Some(fd) = site.files.mapped.get(&file) {
            fds.push((fd.as_fd(), next, false));
            numbers.by_file.insert(file, next);
            next += 1;
        }
    }
    process::replace_fds(&fds).context(|| "placing descriptors".to_owned())?;
    Ok(numbers)
}

/// What the stub does to make this process what it was.
fn ops(
    program: &mut Program,
    site: &Site<'_>,
    index: usize,
    alive: &Alive,
    numbers: &Numbers,
) -> Result<Vec<Op>> {
    let pid = site.picture.processes.get(index).map_or(0, |process| process.pid);
    let mut ops = memory::ops(program, site, alive, numbers)?;
    ops.push(Op::call(
        libc::SYS_close_range,
        [u64::from(numbers.first.cast_unsigned()), u64::from(u32::MAX), 0, 0, 0, 0],
    ));
    memory::close(alive, &mut ops);
    // READ_IMPLIES_EXEC would have changed what was mapped.
    ops.push(Op::call(libc::SYS_personality, [u64::from(alive.personality), 0, 0, 0, 0, 0]).must());
    // Children that have come to an end or a stop have been told of, and their signals with them.
    see_ended(site, pid, &mut ops);
    let ended = site.control.address(ENDED);
    ops.push(Op::add(ended, 1));
    ops.push(thread::wake(ended));
    see_stopped(site, pid, &mut ops);
    drain(program, &mut ops);
    locks::take_own(program, alive, &mut ops);
    signal_actions(program, alive, &mut ops);
    attributes::begin(&alive.attributes, &mut ops);
    let gate = thread::Gate::new(program);
    let (leader, others) = alive
        .threads
        .split_first()
        .ok_or_else(|| crate::error::unreadable("a picture: a process without threads"))?;
    for other in others {
        ops.push(thread::start(program, pid, other, gate));
    }
    timers::make(program, alive, &mut ops);
    thread::settle(program, pid, leader, &mut ops);
    locks::set_owners(program, site.picture, index, alive, &mut ops);
    ops.push(gate.wait(others.len() as u32));
    let filter = site.home.filter();
    let count = filter.len() as u64 / 8;
    let filter = program.put(&filter);
    let description = program.put_words(&[count, filter]);
    let [mode, flags] = FILTER;
    ops.push(Op::call(libc::SYS_seccomp, [mode, flags, description, 0, 0, 0]).must());
    attributes::settle(alive, &mut ops);
    for signal in &alive.pending {
        thread::queue(program, pid, None, signal, &mut ops);
    }
    limits(program, alive, &mut ops);
    // Ready: on the word that all share, and then as one.
    let (ready, go) = (site.control.address(READY), site.control.address(GO));
    ops.push(Op::add(ready, 1));
    ops.push(thread::wake(ready));
    if alive.stopped.is_some() {
        // The end of another process would have it go on where it leaves its group an orphan. By
        // SIGSTOP, which nothing keeps from having its effect at once. Nobody is there to have it
        // go on before all go.
        ops.push(Op::wait_while(site.control.address(STOP), 0));
        ops.push(Op::call(libc::SYS_kill, [u64::from(pid), libc::SIGSTOP as u64, 0, 0, 0, 0]));
    } else {
        ops.push(Op::wait_while(go, 0));
    }
    of_processes::seek(site.picture, alive, &mut ops);
    ops.push(Op::call(libc::SYS_munmap, [site.control.address(0), 4096, 0, 0, 0, 0]));
    ops.extend(gate.open());
    timers::set(program, alive, &mut ops);
    ops.push(thread::leave(program, leader));
    Ok(ops)
}

fn signal_actions(program: &mut Program, alive: &Alive, ops: &mut Vec<Op>) {
    for (n, action) in alive.actions.iter().enumerate() {
        let Some(action) = action else { continue };
        let at = program.put_words(&[action.handler, action.flags, action.restorer, action.mask]);
        ops.push(Op::call(libc::SYS_rt_sigaction, [n as u64 + 1, at, 0, 8, 0, 0]));
    }
}

/// `P_PID` of waitid(2).
const ONE_PROCESS: u64 = 1;

/// Waits for children that shall be zombies.
fn see_ended(site: &Site<'_>, pid: u32, ops: &mut Vec<Op>) {
    for child in site.awaited(pid) {
        if let Body::Zombie(_) = child.body {
            let how = (libc::WEXITED | libc::WNOWAIT) as u64;
            ops.push(Op::call(libc::SYS_waitid, [ONE_PROCESS, child.pid.into(), 0, how, 0, 0]));
        }
    }
}

/// Waits for children that shall be stopped, and takes note of that where their parent did.
fn see_stopped(site: &Site<'_>, pid: u32, ops: &mut Vec<Op>) {
    for child in site.awaited(pid).filter(|child| child.is_stopped()) {
        let untold = matches!(&child.body, Body::Alive(alive) if alive.stop_untold);
        let how = (libc::WSTOPPED | if untold { libc::WNOWAIT } else { 0 }) as u64;
        ops.push(Op::call(libc::SYS_waitid, [ONE_PROCESS, child.pid.into(), 0, how, 0, 0]));
    }
}

/// Takes away what came while the process was built.
fn drain(program: &mut Program, ops: &mut Vec<Op>) {
    let all = program.put_words(&[u64::MAX]);
    let none = program.put_words(&[0, 0]);
    ops.push(Op::call(libc::SYS_rt_sigtimedwait, [all, 0, none, 8, 0, 0]));
}

fn limits(program: &mut Program, alive: &Alive, ops: &mut Vec<Op>) {
    for (which, &(soft, hard)) in alive.limits.iter().enumerate() {
        let at = program.put_words(&[soft, hard]);
        ops.push(Op::call(libc::SYS_prlimit64, [0, which as u64, at, 0, 0, 0]));
    }
}
