//! Looking at a terminal, by a process of its sandbox that holds its master.
//!
//! Nearly all is asked. What nobody has read cannot be: it is taken out and put back, within some
//! system calls of a process that nobody but the sandbox's end ends, while all of the guest is
//! stopped and nobody types. See [`unread`] for why that is exact.

mod unread;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use forkyard_sys::terminal::{self, Settings};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Stat, fstat};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use crate::picture::{Look, LookError, Slave, Unread};

pub(crate) use unread::Ends;

/// The result of looking.
type Result<T> = std::result::Result<T, LookError>;

/// How the slave is opened to look; with `O_NONBLOCK`, which `OpenptFlags` does not name.
const PEER: OpenptFlags = OpenptFlags::RDWR
    .union(OpenptFlags::NOCTTY)
    .union(OpenptFlags::CLOEXEC)
    .union(OpenptFlags::from_bits_retain(rustix::fs::OFlags::NONBLOCK.bits()));

/// Looks at a terminal; `slave` is one that a stopped process has, where any has.
///
/// `keep_output` takes along what the master's holder has not read; otherwise somebody who is not
/// stopped reads there.
///
/// # Errors
/// [`LookError::Refused`] for what cannot be made again.
pub fn look(master: &OwnedFd, slave: Option<&OwnedFd>, keep_output: bool) -> Result<Look> {
    let size = rustix::termios::tcgetwinsize(master).map_err(failed("TIOCGWINSZ"))?;
    let events = events(master, PollFlags::IN | PollFlags::PRI).map_err(failed("poll"))?;
    let state = match slave {
        Some(_) => Slave::Open,
        None if events.contains(PollFlags::HUP) => Slave::Closed,
        None => Slave::Fresh,
    };
    let mut look = Look {
        settings: terminal::settings(master).map_err(failed("TCGETS2"))?,
        size: [size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel],
        locked: terminal::is_locked(master).map_err(failed("TIOCGPTLCK"))?,
        packet: terminal::is_packet(master).map_err(failed("TIOCGPKT"))?,
        slave: state,
        session: terminal::session(master).unwrap_or_default(),
        foreground: terminal::foreground(master).unwrap_or_default(),
        ..Look::default()
    };
    if look.settings.local & libc::EXTPROC != 0 {
        return refused("its lines are edited elsewhere (EXTPROC)");
    }
    if look.packet && events.contains(PollFlags::PRI) {
        return refused("its holder has not read of a change in packet mode");
    }
    // Opening it would be its first opening, and closing it then told to the master.
    if state == Slave::Fresh {
        let path = format!("/dev/pts/{}", terminal::number(master).map_err(failed("TIOCGPTN"))?);
        let stat = rustix::fs::stat(path.as_str()).map_err(failed("stat of a terminal"))?;
        set_owner(&mut look, &stat);
        return Ok(look);
    }
    let Some(end) = open_slave(master, slave, &mut look)? else {
        if events.contains(PollFlags::IN) {
            return refused("its last output is unread, and nobody can open it");
        }
        return Ok(look);
    };
    set_owner(&mut look, &fstat(&end).map_err(failed("fstat"))?);
    for side in [master.as_fd(), end.as_fd()] {
        if terminal::discipline(side).map_err(failed("TIOCGETD"))? != 0 {
            return refused("its line discipline is not the usual one");
        }
    }
    let ends = Ends::new(master.as_fd(), end.as_fd(), look.settings);
    if look.packet {
        terminal::set_packet(master, false).map_err(failed("TIOCPKT"))?;
    }
    let looked = ends.look(keep_output);
    if look.packet {
        terminal::set_packet(master, true).map_err(failed("TIOCPKT"))?;
    }
    (look.unread, look.stopped) = looked?;
    Ok(look)
}

/// Opens the slave for this process alone, which so can read and write without waiting; none where
/// it is closed to all and nobody has it.
fn open_slave(
    master: &OwnedFd,
    slave: Option<&OwnedFd>,
    look: &mut Look,
) -> Result<Option<OwnedFd>> {
    let unlock = |locked| terminal::set_locked(master, locked).map_err(failed("TIOCSPTLCK"));
    if let Some(slave) = slave {
        look.exclusive = terminal::is_exclusive(slave).map_err(failed("TIOCGEXCL"))?;
    }
    if look.locked {
        unlock(false)?;
    }
    let exclusive = slave.filter(|_| look.exclusive);
    let release = exclusive.map_or(Ok(()), |slave| terminal::set_exclusive(slave, false));
    let opened = release.and_then(|()| Ok(ioctl_tiocgptpeer(master, PEER)?));
    if let Some(slave) = exclusive {
        terminal::set_exclusive(slave, true).map_err(failed("TIOCEXCL"))?;
    }
    if look.locked {
        unlock(true)?;
    }
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) && slave.is_none() => {
            look.exclusive = true;
            Ok(None)
        }
        Err(error) => Err(failed("TIOCGPTPEER")(error)),
    }
}

fn set_owner(look: &mut Look, stat: &Stat) {
    look.owner = (stat.st_uid, stat.st_gid);
    look.mode = stat.st_mode & 0o7777;
}

/// Makes a new terminal what another was, as far as no process has a part in it.
pub(crate) fn apply(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, look: &Look) -> io::Result<()> {
    let [ws_row, ws_col, ws_xpixel, ws_ypixel] = look.size;
    let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel, ws_ypixel };
    rustix::termios::tcsetwinsize(master, size)?;
    let was: Settings = terminal::settings(slave)?;
    if was != look.settings {
        terminal::set_settings(slave, &look.settings)?;
    }
    if look.unread != Unread::default() || look.stopped.is_some() {
        Ends::new(master, slave, look.settings).put(&look.unread, look.stopped)?;
    }
    Ok(())
}

fn refused<T>(what: &str) -> Result<T> {
    Err(LookError::Refused(what.to_owned()))
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> LookError {
    move |error| LookError::Failed(format!("{what} of a terminal: {}", error.into()))
}

/// What poll(2) says at once. For a terminal it has what was written to the other side arrive
/// first, unless there is something to read already.
fn events(fd: impl AsFd, wanted: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(&fd, wanted)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let [fd] = fds;
    Ok(fd.revents())
}
