//! What /proc tells of a process, read.

use std::fs::File;
use std::os::unix::ffi::OsStringExt;

use memchr::memchr;
use rustix::buffer::spare_capacity;
use rustix::process::Pid;

use crate::error::{Context, Error, Result, unreadable};

/// Where a sandbox's root is mounted in its mount namespace.
pub const ROOT_PLACE: &str = "/above/root";

/// Most of these files are shorter, and are read at once: their length is not known before.
const ROOM: usize = 8 * 1024;

/// Reads a file of a process.
pub(crate) fn read(pid: Pid, file: &str) -> Result<Vec<u8>> {
    read_while(pid, file, |_| true)
}

/// The same, of a file that the kernel makes in one go: what is shorter than asked for is all.
pub(crate) fn read_record(pid: Pid, file: &str) -> Result<Vec<u8>> {
    read_while(pid, file, |bytes| bytes.len() == bytes.capacity())
}

fn read_while(pid: Pid, file: &str, may_go_on: impl Fn(&Vec<u8>) -> bool) -> Result<Vec<u8>> {
    let path = format!("/proc/{pid}/{file}");
    let read_all = || {
        let open = File::open(&path)?;
        let mut bytes = Vec::with_capacity(ROOM);
        while rustix::io::read(&open, spare_capacity(&mut bytes))? > 0 && may_go_on(&bytes) {
            bytes.reserve(ROOM / 2);
        }
        Ok::<_, std::io::Error>(bytes)
    };
    read_all().context(|| format!("reading {path}"))
}

/// Reads a link of a process.
pub(crate) fn link(pid: Pid, file: &str) -> Result<Vec<u8>> {
    let path = format!("/proc/{pid}/{file}");
    let target = std::fs::read_link(&path).context(|| format!("reading the link {path}"))?;
    Ok(inside(target.into_os_string().into_vec()))
}

/// A path as its sandbox has it: seen from outside, it begins with where the root is mounted.
///
/// Paths of roots that are gone do not, and whoever has their files checks where they are.
pub(crate) fn inside(path: Vec<u8>) -> Vec<u8> {
    match path.strip_prefix(ROOT_PLACE.as_bytes()) {
        Some(b"") => b"/".to_vec(),
        Some(rest) if rest.starts_with(b"/") => rest.to_vec(),
        // Marked as what was deleted is.
        Some(rest) if rest.starts_with(b" (") => [b"/", rest].concat(),
        _ => path,
    }
}

/// The numbers that a directory of a process names.
pub(crate) fn numbers(pid: Pid, dir: &str) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/{dir}");
    let entries = std::fs::read_dir(&path).context(|| format!("listing {path}"))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry.context(|| format!("listing {path}"))?;
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// `/proc/PID/stat`: fields by their number in proc(5), less one; the name apart.
pub(crate) struct Stat {
    pub(crate) name: Vec<u8>,
    fields: Vec<u64>,
    pub(crate) state: u8,
}

impl Stat {
    pub(crate) fn read(pid: Pid) -> Result<Self> {
        Self::parse(&read_record(pid, "stat")?).ok_or_else(|| unreadable("/proc/PID/stat"))
    }

    /// A name may hold anything, brackets and line ends too: it ends at the last bracket.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let open = bytes.iter().position(|&b| b == b'(')?;
        let close = bytes.iter().rposition(|&b| b == b')')?;
        let name = bytes.get(open + 1..close)?.to_vec();
        let rest = std::str::from_utf8(bytes.get(close + 2..)?).ok()?;
        let mut words = rest.split_ascii_whitespace();
        let state = *words.next()?.as_bytes().first()?;
        let fields = words
            .map(|word| word.parse::<i128>().ok().map(|number| number as u64))
            .collect::<Option<_>>()?;
        Some(Self { name, fields, state })
    }

    /// A field by its number in `proc_pid_stat`(5), from 4 up.
    pub(crate) fn field(&self, number: usize) -> u64 {
        self.fields.get(number - 4).copied().unwrap_or_default()
    }
}

/// `/proc/PID/status`, by names.
pub(crate) struct Status(Vec<u8>);

impl Status {
    pub(crate) fn read(pid: Pid) -> Result<Self> {
        Ok(Self(read_record(pid, "status")?))
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of(text: Vec<u8>) -> Self {
        Self(text)
    }

    pub(crate) fn read_thread(pid: Pid, tid: u32) -> Result<Self> {
        Ok(Self(read_record(pid, &format!("task/{tid}/status"))?))
    }

    /// What follows a name, in words. The name of the process comes first and cannot imitate
    /// another line: the kernel escapes its line ends.
    pub(crate) fn words(&self, name: &str) -> impl Iterator<Item = &str> {
        let line = self.0.split(|&b| b == b'\n').find_map(|line| {
            line.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b":"))
        });
        std::str::from_utf8(line.unwrap_or_default()).unwrap_or_default().split_ascii_whitespace()
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.words(name).next().and_then(|word| word.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn numbers<const N: usize>(&self, name: &str) -> [u32; N] {
        let mut numbers = [0; N];
        for (number, word) in numbers.iter_mut().zip(self.words(name)) {
            *number = word.parse().unwrap_or_default();
        }
        numbers
    }

    pub(crate) fn hexadecimal(&self, name: &str) -> u64 {
        let word = self.words(name).next().unwrap_or_default();
        u64::from_str_radix(word, 16).unwrap_or_default()
    }

    /// Its id in the innermost pid namespace.
    pub(crate) fn inner_id(&self, name: &str) -> u32 {
        self.words(name).last().and_then(|word| word.parse().ok()).unwrap_or_default()
    }
}

/// One mapping of `/proc/PID/smaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// `rwxp` and its like.
    pub(crate) permissions: [u8; 4],
    pub(crate) offset: u64,
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
    pub(crate) name: Vec<u8>,
    pub(crate) flags: Vec<[u8; 2]>,
    /// Kilobytes of pages that are not the file's.
    pub(crate) anonymous: u64,
    /// Kilobytes of pages that others have, too: clean ones and dirty ones.
    pub(crate) common: [u64; 2],
    /// Kilobytes that are swapped out.
    pub(crate) swapped: u64,
    /// Key of pkeys(7).
    pub(crate) protection_key: u64,
}

impl Mapping {
    /// As `st_dev` has it.
    pub(crate) fn device(&self) -> u64 {
        rustix::fs::makedev(self.device.0, self.device.1)
    }

    /// Kilobytes of pages of its own, in memory or swapped out.
    pub(crate) fn own(&self) -> u64 {
        self.anonymous.saturating_add(self.swapped)
    }

    /// Whether it is private memory of which the process has much in common with others since one
    /// forked the other. Its pages must not be pinned: see
    /// [`fill_from`](forkyard_sys::memory::Pages::fill_from).
    pub(crate) fn is_in_common(&self) -> bool {
        /// In KiB. Less than this is copied faster than it is told apart.
        const LEAST: u64 = 64;
        let [clean, dirty] = self.common;
        self.shows_anonymous() && clean.saturating_add(dirty) >= LEAST
    }

    /// Whether it is private memory that no file is behind.
    pub(crate) fn shows_anonymous(&self) -> bool {
        self.inode == 0
            && self.device == (0, 0)
            && (self.name.is_empty() || self.name.starts_with(b"["))
    }

    /// Its line in `/proc/PID/maps`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn shown(&self) -> Vec<u8> {
        let Self { start, end, offset, device: (major, minor), inode, .. } = self;
        let mut line = format!("{start:08x}-{end:08x} ").into_bytes();
        line.extend_from_slice(&self.permissions);
        line.extend_from_slice(
            format!(" {offset:08x} {major:02x}:{minor:02x} {inode} ").as_bytes(),
        );
        line.extend_from_slice(&self.name);
        line
    }

    /// The name that its process gave it, see `PR_SET_VMA`(2const).
    pub(crate) fn given_name(&self) -> Option<Vec<u8>> {
        let given = [b"[anon:".as_slice(), b"[anon_shmem:"];
        let name = given.iter().find_map(|start| self.name.strip_prefix(*start))?;
        name.strip_suffix(b"]").map(<[u8]>::to_vec)
    }
}

/// The mappings of a process.
pub(crate) fn mappings(pid: Pid) -> Result<Vec<Mapping>> {
    parse_mappings(&read(pid, "smaps")?).ok_or_else(|| unreadable("/proc/PID/smaps"))
}

/// The same, but only where they are and what they are called.
pub(crate) fn places(pid: Pid) -> Result<Vec<Mapping>> {
    let maps = read(pid, "maps")?;
    let lines = maps.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    let all: Option<Vec<Mapping>> = lines.map(parse_mapping).collect();
    all.ok_or_else(|| unreadable("/proc/PID/maps"))
}

pub(crate) fn parse_mappings(bytes: &[u8]) -> Option<Vec<Mapping>> {
    let mut all: Vec<Mapping> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        let line = rest.get(..end)?;
        rest = rest.get(end + 1..).unwrap_or_default();
        // Lines of a mapping begin with its address, in small letters; all others with a name.
        let (place, value) = match line.first() {
            Some(first) if !first.is_ascii_uppercase() => {
                all.push(parse_mapping(line)?);
                continue;
            }
            // Most of them are of no interest.
            Some(b'A' | b'P' | b'S' | b'V') => line.split_at(memchr(b':', line)? + 1),
            None | Some(_) => continue,
        };
        let last = all.last_mut()?;
        let [clean, dirty] = &mut last.common;
        let field = match place {
            b"Shared_Clean:" => clean,
            b"Shared_Dirty:" => dirty,
            b"Anonymous:" => &mut last.anonymous,
            b"Swap:" => &mut last.swapped,
            b"ProtectionKey:" => &mut last.protection_key,
            b"VmFlags:" => {
                let flags = value.split(|&b| b == b' ').filter_map(|flag| flag.try_into().ok());
                last.flags = flags.collect();
                continue;
            }
            _ => continue,
        };
        *field = std::str::from_utf8(value).ok()?.split_ascii_whitespace().next()?.parse().ok()?;
    }
    Some(all)
}

pub(crate) fn parse_mapping(line: &[u8]) -> Option<Mapping> {
    let mut words = line.splitn(6, |&b| b == b' ');
    let mut text = || std::str::from_utf8(words.next()?).ok();
    let (start, end) = text()?.split_once('-')?;
    let permissions = text()?.as_bytes().try_into().ok()?;
    let offset = text()?;
    let (major, minor) = text()?.split_once(':')?;
    let inode = text()?;
    let name = words.next().unwrap_or_default();
    let hexadecimal = |word| u64::from_str_radix(word, 16).ok();
    Some(Mapping {
        start: hexadecimal(start)?,
        end: hexadecimal(end)?,
        permissions,
        offset: hexadecimal(offset)?,
        device: (hexadecimal(major)? as u32, hexadecimal(minor)? as u32),
        inode: inode.parse().ok()?,
        name: inside(name.trim_ascii_start().to_vec()),
        flags: Vec::new(),
        anonymous: 0,
        common: [0; 2],
        swapped: 0,
        protection_key: 0,
    })
}

/// `/proc/PID/fdinfo/N`.
#[derive(Clone, Debug, Default)]
pub(crate) struct FdInfo {
    pub(crate) position: u64,
    pub(crate) flags: u32,
    /// All of it: what follows depends on what is open.
    pub(crate) text: String,
}

impl FdInfo {
    pub(crate) fn read(pid: Pid, number: u32) -> Result<Self> {
        let bytes = read_record(pid, &format!("fdinfo/{number}"))?;
        Self::parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| unreadable("/proc/PID/fdinfo"))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let info = Self { text: text.to_owned(), ..Self::default() };
        Some(Self {
            position: info.value("pos")?.parse::<i64>().ok()? as u64,
            flags: u32::from_str_radix(info.value("flags")?, 8).ok()?,
            ..info
        })
    }

    /// Inode of what is open, Linux 5.14.
    pub(crate) fn inode(&self) -> u64 {
        self.value("ino").and_then(|number| number.parse().ok()).unwrap_or_default()
    }

    /// What follows a name.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let line = self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    }
}

/// What cannot be copied of a process, said with its name.
pub(crate) fn refuse(pid: u32, name: &[u8], what: impl Into<String>) -> Error {
    Error::Refused { pid, name: String::from_utf8_lossy(name).into_owned(), what: what.into() }
}

#[cfg(test)]
mod tests;
