//! Pseudoterminals beyond what rustix asks of them: all that a copy of one must have.
//!
//! See [ioctl_tty(2)](https://man7.org/linux/man-pages/man2/ioctl_tty.2.html) and
//! [pty(7)](https://man7.org/linux/man-pages/man7/pty.7.html). Most requests can be made at either
//! side, and mean the slave.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd};

use serde::{Deserialize, Serialize};

/// Numbers of requests that libc does not name, or not for all processors; `asm-generic/ioctls.h`.
const GET_DEVICE: u64 = 0x8004_5432;
const GET_PACKET: u64 = 0x8004_5438;
const GET_LOCK: u64 = 0x8004_5439;
const GET_EXCLUSIVE: u64 = 0x8004_5440;
const SET_LOCK: u64 = 0x4004_5431;
const GET_NUMBER: u64 = 0x8004_5430;
const GET_SETTINGS: u64 = 0x802c_542a;
const SET_SETTINGS: u64 = 0x402c_542b;

/// `TCOOFF` and `TCOON` of `asm-generic/termbits-common.h`.
const OUTPUT_OFF: libc::c_ulong = 0;
const OUTPUT_ON: libc::c_ulong = 1;

/// The major number of slaves (`Documentation/admin-guide/devices.txt`); all have this one, as
/// there are 20 bits of minor numbers.
const SLAVES: u32 = 136;

/// `struct termios2` of `asm-generic/termbits.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct Settings {
    /// `c_iflag`
    pub input: u32,
    /// `c_oflag`
    pub output: u32,
    /// `c_cflag`
    pub control: u32,
    /// `c_lflag`
    pub local: u32,
    /// `c_line`
    pub line: u8,
    /// `c_cc`, by `V*`.
    pub characters: [u8; 19],
    /// Of input and output, in bits per second.
    pub speeds: [u32; 2],
}

const _: () = assert!(size_of::<Settings>() == 44 && offset_of!(Settings, speeds) == 36);

/// A terminal's settings.
///
/// # Errors
/// `ENOTTY` for what is no terminal, `EIO` for one that was hung up.
pub fn settings(fd: impl AsFd) -> io::Result<Settings> {
    let mut settings = Settings::default();
    // SAFETY: the kernel writes one `struct termios2`.
    unsafe { ioctl(fd, GET_SETTINGS, (&raw mut settings) as u64) }?;
    Ok(settings)
}

/// Changes them at once.
pub fn set_settings(fd: impl AsFd, settings: &Settings) -> io::Result<()> {
    // SAFETY: the kernel reads one `struct termios2`.
    unsafe { ioctl(fd, SET_SETTINGS, std::ptr::from_ref(settings) as u64) }.map(drop)
}

/// The number N of `/dev/pts/N`, asked of the master.
pub fn number(master: impl AsFd) -> io::Result<u32> {
    get(master, GET_NUMBER)
}

/// The number N of the slave `/dev/pts/N` that this is, however it was opened.
///
/// # Errors
/// `ENOTTY` when it is another terminal or none, `EIO` for one that was hung up.
pub fn slave_number(fd: impl AsFd) -> io::Result<u32> {
    let device = get(fd, GET_DEVICE)?;
    slave_of_device(device).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTTY))
}

/// The number N of the slave with this device number, as `new_encode_dev` of the kernel has them
/// in `/proc/PID/stat`.
pub fn slave_of_device(device: u32) -> Option<u32> {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    slave_of(major, minor)
}

/// The number N of the slave with these device numbers.
pub fn slave_of(major: u32, minor: u32) -> Option<u32> {
    (major == SLAVES).then_some(minor)
}

/// Whether the slave cannot be opened: `unlockpt`(3).
pub fn is_locked(master: impl AsFd) -> io::Result<bool> {
    get(master, GET_LOCK).map(|locked| locked != 0)
}

/// Locks or unlocks it.
pub fn set_locked(master: impl AsFd, locked: bool) -> io::Result<()> {
    set(master, SET_LOCK, locked)
}

/// Whether the master is in packet mode, see `TIOCPKT`.
pub fn is_packet(master: impl AsFd) -> io::Result<bool> {
    get(master, GET_PACKET).map(|packet| packet != 0)
}

/// Begins or ends it.
pub fn set_packet(master: impl AsFd, packet: bool) -> io::Result<()> {
    set(master, libc::TIOCPKT, packet)
}

/// Whether nobody else may open this side, see `TIOCEXCL`.
pub fn is_exclusive(fd: impl AsFd) -> io::Result<bool> {
    get(fd, GET_EXCLUSIVE).map(|exclusive| exclusive != 0)
}

/// Has nobody else open this side, or anybody.
pub fn set_exclusive(fd: impl AsFd, exclusive: bool) -> io::Result<()> {
    let request = if exclusive { libc::TIOCEXCL } else { libc::TIOCNXCL };
    // SAFETY: no argument.
    unsafe { ioctl(fd, request, 0) }.map(drop)
}

/// The session whose controlling terminal this is, asked of the master; an id of this process's
/// pid namespace, 0 for one that is in another.
///
/// # Errors
/// `ENOTTY` where it is nobody's.
pub fn session(master: impl AsFd) -> io::Result<u32> {
    get(master, libc::TIOCGSID)
}

/// The process group in the foreground, asked of the master; 0 where there is none, or none in
/// this pid namespace.
pub fn foreground(master: impl AsFd) -> io::Result<u32> {
    get(master, libc::TIOCGPGRP)
}

/// Puts a process group in the foreground of this process's controlling terminal.
pub fn set_foreground(fd: impl AsFd, group: u32) -> io::Result<()> {
    // SAFETY: the kernel reads an int.
    unsafe { ioctl(fd, libc::TIOCSPGRP, (&raw const group) as u64) }.map(drop)
}

/// Makes it the controlling terminal of the session that this process leads.
///
/// # Errors
/// `EPERM` when another session has it, or this one has another.
pub fn take(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the argument is a number.
    unsafe { ioctl(fd, libc::TIOCSCTTY, 0) }.map(drop)
}

/// Gives it up as this process's controlling terminal; for one that does not lead its session.
pub fn leave(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: no argument.
    unsafe { ioctl(fd, libc::TIOCNOTTY, 0) }.map(drop)
}

/// How many bytes can be read; line by line, without the ends of files and the last line where
/// that is not complete.
pub fn waiting(fd: impl AsFd) -> io::Result<usize> {
    get(fd, libc::FIONREAD).map(|count| count as usize)
}

/// The number of its line discipline, 0 for the usual one.
pub fn discipline(fd: impl AsFd) -> io::Result<u32> {
    get(fd, libc::TIOCGETD)
}

/// Stops or starts output, as tcflow(3).
pub fn set_output(fd: impl AsFd, on: bool) -> io::Result<()> {
    let what = if on { OUTPUT_ON } else { OUTPUT_OFF };
    // SAFETY: the argument is a number.
    unsafe { ioctl(fd, libc::TCXONC, what) }.map(drop)
}

fn get(fd: impl AsFd, request: u64) -> io::Result<u32> {
    let mut value = 0_u32;
    // SAFETY: each of the requests writes one int.
    unsafe { ioctl(fd, request, (&raw mut value) as u64) }?;
    Ok(value)
}

fn set(fd: impl AsFd, request: u64, value: bool) -> io::Result<()> {
    let value = i32::from(value);
    // SAFETY: each of the requests reads one int.
    unsafe { ioctl(fd, request, (&raw const value) as u64) }.map(drop)
}

/// # Safety
/// `argument` must be what the request says: a number, or the address of what it reads or writes.
unsafe fn ioctl(fd: impl AsFd, request: u64, argument: u64) -> io::Result<i32> {
    // SAFETY: by this function's contract.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slaves_are_told_from_other_devices_by_their_numbers() {
        assert_eq!(slave_of_device(0x8800), Some(0));
        assert_eq!(slave_of_device(0x8807), Some(7));
        assert_eq!(slave_of_device(0x10_882c), Some(300));
        assert_eq!(slave_of_device(0x0500), None);
        assert_eq!(slave_of_device(0), None);
    }

    #[test]
    fn settings_are_read_back_as_they_were_set() {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let Ok(master) = rustix::pty::openpt(flags) else { return };
        let mut changed = settings(&master).unwrap();
        changed.characters[4] = 9;
        changed.local ^= libc::ECHO;
        set_settings(&master, &changed).unwrap();
        assert_eq!(settings(&master).unwrap(), changed);
        assert!(is_locked(&master).unwrap());
        set_locked(&master, false).unwrap();
        assert!(!is_locked(&master).unwrap() && !is_packet(&master).unwrap());
        assert!(session(&master).is_err());
    }
}
