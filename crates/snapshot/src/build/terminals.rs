//! Terminals, made by init with the numbers that they had, and what sessions have of them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_sys::process::{self, CloneFlags, SingleThreaded};
use forkyard_sys::{channel, terminal};
use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, open};
use rustix::process::{WaitOptions, waitpid};

use super::Home;
use super::tree::{Node, Role};
use crate::error::{Context, Error, Result, unreadable};
use crate::picture::{DescriptionKind, Look, Picture, Process, Side, Slave, Terminal};

/// The most terminals of a sandbox.
const MOST: usize = 4096;

/// Flags that an opener of a slave can ask for again.
const KEPT: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::NONBLOCK)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC);

/// All terminals of a picture while it is built.
pub(super) struct Terminals {
    /// As the picture's.
    made: Vec<Made>,
    /// Sides that processes have, by their place among the picture's descriptions.
    opened: BTreeMap<usize, OwnedFd>,
}

struct Made {
    /// Until it is with who keeps it.
    master: Option<OwnedFd>,
    /// For sessions to take it, and so that it does not count as closed before all have theirs.
    slave: Option<OwnedFd>,
    number: u32,
    session: u32,
    foreground: u32,
}

impl Terminals {
    /// Makes them, and opens each side as it was open.
    pub(super) fn make(
        proof: &SingleThreaded,
        picture: &Picture,
        home: &mut dyn Home,
    ) -> Result<Self> {
        let mut terminals = Self { made: Vec::new(), opened: BTreeMap::new() };
        if picture.terminals.is_empty() {
            return Ok(terminals);
        }
        for (terminal, master) in picture.terminals.iter().zip(masters(&picture.terminals)?) {
            terminals.made.push(make_one(terminal, master)?);
        }
        for index in 0..terminals.made.len() {
            terminals.open_sides(proof, picture, index)?;
        }
        for (terminal, made) in picture.terminals.iter().zip(&mut terminals.made) {
            finish(terminal, made, home)?;
        }
        Ok(terminals)
    }

    /// The side that a description is.
    pub(super) fn take(&mut self, description: usize) -> Result<OwnedFd> {
        self.opened.remove(&description).ok_or_else(|| unreadable("a picture: no such terminal"))
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.made.is_empty()
    }

    fn open_sides(
        &mut self,
        proof: &SingleThreaded,
        picture: &Picture,
        terminal: usize,
    ) -> Result<()> {
        let Some(made) = self.made.get(terminal) else { return Ok(()) };
        let mut current = Vec::new();
        for (index, description) in picture.descriptions.iter().enumerate() {
            let DescriptionKind::Terminal { terminal: of, side } = description.kind else {
                continue;
            };
            if of != terminal {
                continue;
            }
            let flags = OFlags::from_bits_retain(description.flags);
            let side = match side {
                Side::Master => made.master(flags)?,
                Side::Slave => made.open_slave(flags)?,
                Side::Current => {
                    current.push((index, flags));
                    continue;
                }
            };
            self.opened.insert(index, side);
        }
        if !current.is_empty() {
            let slave = made.slave.as_ref().ok_or_else(|| unreadable("a picture: no slave"))?;
            let flags: Vec<OFlags> = current.iter().map(|(_, flags)| *flags).collect();
            let sides = open_current(proof, slave.as_fd(), &flags)?;
            self.opened.extend(current.into_iter().map(|(index, _)| index).zip(sides));
        }
        Ok(())
    }

    /// In a process that has begun its session: takes its controlling terminal.
    pub(super) fn begin_session(&self, node: &Node) -> Result<()> {
        if let Some(slave) = self.of_session(node).and_then(|made| made.slave.as_ref()) {
            terminal::take(slave).context(|| "TIOCSCTTY".to_owned())?;
        }
        Ok(())
    }

    /// In a process whose session has all its groups: who leads it says which of them is in the
    /// foreground; and a process that has given the terminal up gives it up.
    pub(super) fn settle(&self, node: &Node, process: Option<&Process>) {
        if let Some(made) = self.of_session(node)
            && let Some(slave) = &made.slave
        {
            // A group that is gone for good is in no foreground.
            let _ = terminal::set_foreground(slave, made.foreground);
        }
        let Some(process) = process.filter(|process| process.terminal.is_none()) else { return };
        for made in self.made.iter().filter(|made| made.session == process.session) {
            if let Some(slave) = &made.slave {
                // Unless it never had it.
                let _ = terminal::leave(slave);
            }
        }
    }

    /// The terminal of the session that a process leads.
    fn of_session(&self, node: &Node) -> Option<&Made> {
        let leads = node.leads_session && matches!(node.role, Role::Alive(_));
        self.made.iter().find(|made| leads && made.session == node.pid)
    }
}

impl Made {
    /// A master has one open file description: that of all who have it.
    fn master(&self, flags: OFlags) -> Result<OwnedFd> {
        let master = self.master.as_ref().ok_or_else(|| unreadable("a picture: no master"))?;
        let copy = master.try_clone().context(|| "fcntl F_DUPFD".to_owned())?;
        rustix::fs::fcntl_setfl(&copy, flags & (OFlags::NONBLOCK | OFlags::APPEND))
            .context(|| "fcntl F_SETFL".to_owned())?;
        Ok(copy)
    }

    fn open_slave(&self, flags: OFlags) -> Result<OwnedFd> {
        let path = format!("/dev/pts/{}", self.number);
        let how = flags & KEPT | OFlags::NOCTTY | OFlags::CLOEXEC;
        open(path.as_str(), how, Mode::empty()).context(|| format!("opening {path}"))
    }
}

/// Opens as many masters as there are terminals, each with its number: the kernel gives the lowest
/// that is free.
fn masters(terminals: &[Terminal]) -> Result<Vec<(u32, OwnedFd)>> {
    let mut wanted: Vec<u32> = terminals.iter().filter_map(|terminal| terminal.number).collect();
    let unnamed = terminals.len() - wanted.len();
    wanted.sort_unstable();
    let (mut named, mut others) = (BTreeMap::new(), Vec::new());
    while named.len() < wanted.len() || others.len() < unnamed {
        if named.len() + others.len() > MOST {
            return Err(unreadable("a picture: terminals of no number"));
        }
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = open("/dev/pts/ptmx", flags, Mode::empty())
            .context(|| "opening /dev/pts/ptmx".to_owned())?;
        let number = terminal::number(&master).context(|| "TIOCGPTN".to_owned())?;
        if wanted.binary_search(&number).is_ok() {
            named.insert(number, master);
        } else {
            others.push((number, master));
        }
    }
    let masters = terminals.iter().map(|terminal| match terminal.number {
        Some(number) => named.remove(&number).map(|master| (number, master)),
        None => others.pop(),
    });
    masters.collect::<Option<_>>().ok_or_else(|| unreadable("a picture: two terminals of a number"))
}

fn make_one(terminal: &Terminal, (number, master): (u32, OwnedFd)) -> Result<Made> {
    let failed = |what: &'static str| move || format!("{what} of terminal {number}");
    terminal::set_locked(&master, false).context(failed("TIOCSPTLCK"))?;
    let mut made = Made { master: Some(master), slave: None, number, session: 0, foreground: 0 };
    let look = terminal.look.as_deref();
    if look.is_none_or(|look| look.slave != Slave::Fresh) {
        made.slave = Some(made.open_slave(OFlags::RDWR | OFlags::NONBLOCK)?);
    }
    let Some(look) = look else { return Ok(made) };
    (made.session, made.foreground) = (look.session, look.foreground);
    let Some(master) = &made.master else { return Ok(made) };
    // What has one side only is set by the other.
    let slave = made.slave.as_ref().unwrap_or(master);
    crate::terminal::apply(master.as_fd(), slave.as_fd(), look).context(failed("settings"))?;
    own(&made, look).context(failed("the owner"))?;
    Ok(made)
}

fn own(made: &Made, look: &Look) -> std::io::Result<()> {
    let Some(slave) = &made.slave else { return Ok(()) };
    let stat = fstat(slave)?;
    let (uid, gid) = look.owner;
    if (stat.st_uid, stat.st_gid) != (uid, gid) {
        fchown(slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if stat.st_mode & 0o7777 != look.mode {
        fchmod(slave, Mode::from_raw_mode(look.mode))?;
    }
    Ok(())
}

/// What would be in the way of opening the sides; and those who keep masters get them.
fn finish(terminal: &Terminal, made: &mut Made, home: &mut dyn Home) -> Result<()> {
    let Some(look) = terminal.look.as_deref() else {
        // Its slaves are hung up.
        made.master = None;
        return Ok(());
    };
    let number = made.number;
    let failed = |what: &'static str| move || format!("{what} of terminal {number}");
    if let Some(slave) = made.slave.as_ref().filter(|_| look.exclusive) {
        terminal::set_exclusive(slave, true).context(failed("TIOCEXCL"))?;
    }
    if let Some(master) = made.master.take() {
        terminal::set_locked(&master, look.locked).context(failed("TIOCSPTLCK"))?;
        terminal::set_packet(&master, look.packet).context(failed("TIOCPKT"))?;
        if let Some(keeper) = terminal.keeper {
            home.terminal(keeper, master);
        }
    }
    Ok(())
}

/// Opens `/dev/tty` for a terminal: by a process whose controlling terminal it is for the moment.
fn open_current(
    proof: &SingleThreaded,
    slave: BorrowedFd<'_>,
    flags: &[OFlags],
) -> Result<Vec<OwnedFd>> {
    let (ours, theirs) = channel::pair().context(|| "socketpair".to_owned())?;
    let child = process::fork(proof, CloneFlags::default(), None, |_| {
        let open_all = || -> std::io::Result<()> {
            rustix::process::setsid()?;
            terminal::take(slave)?;
            for flags in flags {
                let how = *flags & KEPT | OFlags::CLOEXEC;
                let opened = open("/dev/tty", how, Mode::empty())?;
                channel::send(&theirs, b"tty", &[opened.as_fd()])?;
            }
            Ok(())
        };
        open_all().map_or(1, |()| 0)
    });
    let child = child.context(|| "clone3".to_owned())?;
    drop(theirs);
    let mut opened = Vec::new();
    while let Some(message) = channel::receive(&ours).context(|| "recvmsg".to_owned())? {
        opened.extend(message.fds);
    }
    // Its id may be one that is needed.
    waitpid(Some(child.pid), WaitOptions::empty()).context(|| "waitpid".to_owned())?;
    if opened.len() == flags.len() {
        return Ok(opened);
    }
    Err(Error::Failed {
        what: "opening /dev/tty".to_owned(),
        source: std::io::ErrorKind::Other.into(),
    })
}
