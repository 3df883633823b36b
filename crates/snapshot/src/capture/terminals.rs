//! Terminals: seen by their descriptors, looked at by the sandbox's init.

use std::os::fd::{AsFd, OwnedFd};

use forkyard_sys::terminal;
use rustix::fs::{FileType, OFlags, major, minor};

use super::Capture;
use super::descriptors::Seen;
use crate::error::{Context, Error, Result};
use crate::inside::Looker;
use crate::picture::{DescriptionKind, Look, LookError, Side, Terminal};
use crate::proc::refuse;

/// Major number of `/dev/tty` and `/dev/ptmx`, and their minors.
const SPECIAL: u32 = 5;
const CURRENT: u32 = 0;
const MASTER: u32 = 2;

/// `O_ASYNC`, which rustix does not name.
const SIGNALS: u32 = 0o20000;

/// Terminals seen so far, by their place in the picture.
#[derive(Debug, Default)]
pub(crate) struct Terminals(Vec<Found>);

#[derive(Debug)]
struct Found {
    number: Option<u32>,
    keeper: Option<u64>,
    master: Option<OwnedFd>,
    slave: Option<OwnedFd>,
    hung_up: bool,
    /// Where it was seen first: process, name, and descriptor.
    place: (u32, Vec<u8>, String),
}

impl Terminals {
    /// Knows those whose masters are kept outside.
    pub(super) fn kept(terminals: impl Iterator<Item = (u32, u64)>) -> Self {
        let found = |(number, keeper)| Found {
            number: Some(number),
            keeper: Some(keeper),
            master: None,
            slave: None,
            hung_up: false,
            place: (1, b"init".to_vec(), format!("/dev/pts/{number}")),
        };
        Self(terminals.map(found).collect())
    }

    fn find(&mut self, number: Option<u32>, hung_up: bool, seen: &Seen<'_>) -> usize {
        let same = |found: &Found| found.number == number && number.is_some();
        if let Some(known) = self.0.iter().position(same) {
            return known;
        }
        let place = (seen.inner, seen.name.to_vec(), seen.place());
        let (keeper, master, slave) = (None, None, None);
        self.0.push(Found { number, keeper, master, slave, hung_up, place });
        self.0.len() - 1
    }
}

impl Capture<'_> {
    /// What a descriptor of a terminal refers to; none where it is no terminal.
    pub(super) fn terminal(&mut self, seen: &Seen<'_>) -> Result<Option<DescriptionKind>> {
        if FileType::from_raw_mode(seen.stat.st_mode) != FileType::CharacterDevice {
            return Ok(None);
        }
        let device = (major(seen.stat.st_rdev), minor(seen.stat.st_rdev));
        let side = match device {
            (SPECIAL, CURRENT) => Side::Current,
            (SPECIAL, MASTER) => Side::Master,
            (major, minor) if terminal::slave_of(major, minor).is_some() => Side::Slave,
            _ => return Ok(None),
        };
        let flags = OFlags::from_bits_retain(seen.info.flags);
        if flags.contains(OFlags::PATH) {
            return Ok(None);
        }
        if seen.info.flags & SIGNALS != 0 {
            return Err(seen.refuse("a terminal that sends signals (O_ASYNC)"));
        }
        if side != Side::Current && seen.stat.st_dev != self.subject.terminal_device {
            return Err(seen.refuse("a terminal of another mount of devpts"));
        }
        let hung_up = side != Side::Master && is_hung_up(&seen.copy);
        let number = match side {
            Side::Master => {
                if flags & OFlags::RWMODE != OFlags::RDWR {
                    return Err(seen.refuse("the master of a terminal, open for one way only"));
                }
                let number = terminal::number(&seen.copy).context(|| "TIOCGPTN".to_owned())?;
                Some(number)
            }
            Side::Slave => terminal::slave_of(device.0, device.1),
            Side::Current if hung_up => None,
            Side::Current => match terminal::slave_number(&seen.copy) {
                Ok(number) => Some(number),
                Err(_) => return Err(seen.refuse("a terminal that is no pseudoterminal")),
            },
        };
        let index = self.terminals.find(number, hung_up, seen);
        if let Some(found) = self.terminals.0.get_mut(index) {
            found.hung_up |= hung_up;
            let end = if side == Side::Master { &mut found.master } else { &mut found.slave };
            if end.is_none() && !hung_up {
                *end = Some(seen.copy.try_clone().context(|| "fcntl F_DUPFD".to_owned())?);
            }
        }
        Ok(Some(DescriptionKind::Terminal { terminal: index, side }))
    }

    /// Has all be looked at, now that it is known which ends there are, and lets go of them.
    pub(super) fn look_at_terminals(&mut self, looker: &mut dyn Looker) -> Result<()> {
        for found in std::mem::take(&mut self.terminals).0 {
            let look = if found.hung_up { None } else { Some(Box::new(found.look(looker)?)) };
            let Found { number, keeper, .. } = found;
            self.picture.terminals.push(Terminal { number, keeper, look });
        }
        Ok(())
    }
}

impl Found {
    fn look(&self, looker: &mut dyn Looker) -> Result<Look> {
        let refuse = |what: &str| {
            let (pid, name, place) = &self.place;
            refuse(*pid, name, format!("{place}: {what}"))
        };
        if self.keeper.is_none() && self.master.is_none() {
            return Err(refuse("a terminal whose other side no process holds"));
        }
        let ends: Vec<_> = self.master.iter().chain(&self.slave).map(AsFd::as_fd).collect();
        let looked = looker.look(self.keeper, &ends);
        match looked.context(|| "asking init to look at a terminal".to_owned())? {
            Ok(look) => Ok(look),
            Err(LookError::Refused(what)) => Err(refuse(&what)),
            Err(LookError::Failed(what)) => {
                Err(Error::Failed { what, source: std::io::ErrorKind::Other.into() })
            }
        }
    }
}

/// After the end of its master a slave knows nothing any more.
fn is_hung_up(slave: &OwnedFd) -> bool {
    let settings = terminal::settings(slave);
    settings.is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
}
