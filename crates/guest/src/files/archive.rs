//! A file or tree as a tar stream.

use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{self, AtFlags, FileType, ResolveFlags, Stat};
use rustix::io::Errno;

use super::copy::Counts;
use super::dir::{Descent, FileId, all_names};
use super::links::Links;
use super::proto::{FileError, FileReply};
use super::root::{kind, open_directory, open_plain, pseudo};
use super::{Answer, Context, link_target};

/// Bytes of a tar block.
pub(super) const BLOCK: usize = 512;

/// Longest name in an archive; a tree can be deeper than any path that could be opened.
const NAME_MAX: usize = 64 * 1024;

/// Answers [`super::FileOp::Archive`].
pub(super) fn archive(cx: &Context<'_>, path: &[u8], pipe: OwnedFd) -> Answer {
    let path = cx.path(path)?;
    let fail = |error: &io::Error| {
        FileError::sys("archive", path.bytes(), Errno::from_io_error(error).unwrap_or(Errno::IO))
    };
    let mut writer =
        Writer { pipe: Pipe(pipe), links: Links::default(), counts: Counts::default() };
    let result = if path.last().is_some_and(|last| last != b"..") {
        let (parent, name) = path.split("archive")?;
        let parent = cx.root.directory("archive", parent)?;
        writer.tree(parent.as_fd(), name, name.to_vec())
    } else {
        // The root directory has no name of its own.
        let dir = cx.root.directory("archive", path.bytes())?;
        writer.tree(dir.as_fd(), b".", b".".to_vec())
    };
    // An archive that broke off gets no end mark.
    result.and_then(|()| writer.pipe.write_all(&[0; 2 * BLOCK])).map_err(|error| fail(&error))?;
    let Counts { entries, skipped } = writer.counts;
    Ok((FileReply::Moved { entries, skipped }, None))
}

struct Writer {
    pipe: Pipe,
    links: Links,
    counts: Counts,
}

impl Writer {
    /// Writes `name` in `dir` as `path`, and what is in it.
    fn tree(&mut self, dir: BorrowedFd<'_>, name: &[u8], mut path: Vec<u8>) -> io::Result<()> {
        let mut way = Descent::default();
        let mut levels: Vec<(usize, Vec<CString>)> = Vec::new();
        let name = CString::new(name)?;
        if let Some(found) = self.entry(dir, &name, &path, true)? {
            levels.push((path.len(), all_names(&found)?));
            way.enter(found)?;
        }
        while let Some((length, pending)) = levels.last_mut() {
            path.truncate(*length);
            let Some(name) = pending.pop() else {
                levels.pop();
                way.leave()?;
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(name.to_bytes());
            if let Some(found) = self.entry(way.here()?, &name, &path, false)? {
                levels.push((path.len(), all_names(&found)?));
                way.enter(found)?;
            }
        }
        Ok(())
    }

    /// Writes one entry; gives the directory that it is. What disappears meanwhile is left out,
    /// except for the top.
    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        top: bool,
    ) -> io::Result<Option<OwnedFd>> {
        let stat = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if !top => return Ok(None),
            result => result?,
        };
        if path.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let id = FileId::of(&stat);
        let linked = stat.st_nlink > 1 && kind(&stat) != FileType::Directory;
        if linked && let Some((first, _)) = self.links.seen(id) {
            let first = first.to_vec();
            self.header(&stat, tar::EntryType::Link, path, &first, 0)?;
            return Ok(None);
        }
        match kind(&stat) {
            FileType::Directory => {
                let found = open_directory(dir, name.to_bytes(), ResolveFlags::empty())?;
                if pseudo(&found)?.is_some() {
                    self.counts.skipped += 1;
                    return Ok(None);
                }
                let mut path = path.to_vec();
                path.push(b'/');
                self.header(&stat, tar::EntryType::Directory, &path, b"", 0)?;
                return Ok(Some(found));
            }
            FileType::RegularFile => {
                let (file, stat) = match open_plain(dir, name.to_bytes()) {
                    Err(Errno::NOENT) if !top => return Ok(None),
                    result => result?,
                };
                if pseudo(&file)?.is_some() {
                    self.counts.skipped += 1;
                    return Ok(None);
                }
                let size = stat.st_size as u64;
                self.header(&stat, tar::EntryType::Regular, path, b"", size)?;
                self.data(&file, size)?;
            }
            FileType::Symlink => {
                let target = link_target(dir, name)?;
                self.header(&stat, tar::EntryType::Symlink, path, &target, 0)?;
            }
            FileType::Fifo => self.header(&stat, tar::EntryType::Fifo, path, b"", 0)?,
            _ => {
                self.counts.skipped += 1;
                return Ok(None);
            }
        }
        if linked {
            self.links.remember(id, path.to_vec(), id);
        }
        Ok(None)
    }

    /// Writes a header, after a pax header (POSIX.1-2017, pax interchange format) where ustar has
    /// no room.
    fn header(
        &mut self,
        stat: &Stat,
        what: tar::EntryType,
        path: &[u8],
        target: &[u8],
        size: u64,
    ) -> io::Result<()> {
        let mut pax: Vec<(&str, &[u8])> = Vec::new();
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        let room = old.name.len();
        let short = path.get(..room.min(path.len())).unwrap_or_default();
        old.name.iter_mut().zip(short).for_each(|(to, from)| *to = *from);
        let room = old.linkname.len();
        let short = target.get(..room.min(target.len())).unwrap_or_default();
        old.linkname.iter_mut().zip(short).for_each(|(to, from)| *to = *from);
        for (key, value) in [("path", path), ("linkpath", target)] {
            if value.len() > room {
                if std::str::from_utf8(value).is_err() {
                    pax.push(("hdrcharset", b"BINARY"));
                }
                pax.push((key, value));
            }
        }
        // Before 1970 is what ustar cannot say.
        let mtime = stat.st_mtime.to_string();
        if stat.st_mtime < 0 {
            pax.push(("mtime", mtime.as_bytes()));
        }
        if !pax.is_empty() {
            self.pax(&pax)?;
        }
        header.set_entry_type(what);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(size);
        header.set_cksum();
        self.pipe.write_all(header.as_bytes())?;
        self.counts.entries += 1;
        Ok(())
    }

    fn pax(&mut self, records: &[(&str, &[u8])]) -> io::Result<()> {
        let data: Vec<u8> =
            records.iter().flat_map(|(key, value)| pax_record(key.as_bytes(), value)).collect();
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        let name = b"PaxHeader";
        header.as_old_mut().name.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        header.set_cksum();
        self.pipe.write_all(header.as_bytes())?;
        let padding = data.len().next_multiple_of(BLOCK) - data.len();
        self.pipe.write_all(&data)?;
        self.pipe.write_all(&[0; BLOCK][..padding])
    }

    /// Writes exactly `size` bytes and the padding: the header said so, and the guest may change
    /// the file meanwhile.
    fn data(&mut self, file: &OwnedFd, size: u64) -> io::Result<()> {
        let file = std::fs::File::from(file.try_clone()?);
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut exact = file.take(size).chain(io::repeat(0)).take(size + padding);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let count = exact.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            // The padding may begin inside of what a short file left to zeros.
            self.pipe.write_all(buffer.get(..count).unwrap_or_default())?;
        }
    }
}

/// `LENGTH KEY=VALUE\n`, the length counting its own digits.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A pipe's end, waited for where it is non-blocking.
pub(super) struct Pipe(pub(super) OwnedFd);

impl Pipe {
    fn wait(&self, what: PollFlags) -> io::Result<()> {
        match rustix::event::poll(&mut [PollFd::new(&self.0, what)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.0, &mut *buffer) {
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}
