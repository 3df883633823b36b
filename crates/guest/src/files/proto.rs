//! What the server asks of the file service, and what it answers.
//!
//! Encoded with postcard. A descriptor that belongs to a request or a reply travels beside it.

use std::fmt;
use std::os::fd::AsFd;

use rustix::io::{Errno, retry_on_intr};
use serde::{Deserialize, Serialize};

/// Most bytes of contents that a request or a reply holds itself; more travels as a descriptor.
pub const INLINE_MAX: usize = 64 * 1024;

/// Most bytes of encoded entries that a reply holds itself; more travels as a memory file.
pub const INLINE_ENTRIES_MAX: usize = 64 * 1024;

/// Most bytes of entries that one listing gives; it is `truncated` from there on.
pub const ENTRIES_MAX: usize = 64 * 1024 * 1024;

/// Most entries that one listing gives, whatever its `limit`.
pub const LIMIT_MAX: u32 = 100_000;

/// A request of the file service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    /// `USER[:GROUP]` to act as, names or numbers; the default user when absent.
    pub user: Option<String>,
    /// What to do.
    pub op: FileOp,
}

/// What to do. A path is absolute, relative to the default working directory, or begins with
/// `~/` (the acting user's home); `.`, repeated and trailing slashes count for nothing, except
/// that nothing is written to a path with a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOp {
    /// Tell about a file: [`FileReply::Entry`].
    Stat {
        /// The file.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// Tell about what a symbolic link leads to, not the link.
        follow: bool,
    },
    /// Tell what is in a directory: [`FileReply::Entries`] or [`FileReply::EntriesIn`].
    List {
        /// The directory.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// 1 lists the directory alone, 2 its directories too, and so on.
        depth: u32,
        /// Most entries to give; at most [`LIMIT_MAX`].
        limit: u32,
    },
    /// Read a regular file: [`FileReply::Contents`] up to [`INLINE_MAX`], else
    /// [`FileReply::Opened`].
    Read {
        /// The file; symbolic links are followed.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// First byte.
        offset: u64,
        /// Most bytes; all when absent.
        length: Option<u64>,
    },
    /// Write a regular file in place, as a shell's `>` does: an existing file keeps its owner,
    /// links and attributes. [`FileReply::Done`].
    Write {
        /// How.
        target: WriteTarget,
        /// At most [`INLINE_MAX`] bytes.
        #[serde(with = "serde_bytes")]
        contents: Vec<u8>,
    },
    /// As [`FileOp::Write`] with the contents to come: [`FileReply::Opened`] with a descriptor
    /// open for writing, the file emptied unless it is appended to.
    OpenWrite {
        /// How.
        target: WriteTarget,
    },
    /// Make a directory: [`FileReply::Done`].
    MakeDir {
        /// The directory.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// Make missing parents (0755), and accept that it exists.
        parents: bool,
        /// Permission bits of the last one; the umask does not apply.
        mode: u32,
    },
    /// Remove a file, a symbolic link itself, an empty directory, or a tree: [`FileReply::Done`].
    /// A file system mounted in the tree ends it with an error.
    Remove {
        /// What.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// Remove a directory with all that is in it.
        recursive: bool,
    },
    /// Rename, by copy and removal where one rename cannot do it: [`FileReply::Done`].
    Move {
        /// What; a symbolic link itself.
        #[serde(with = "serde_bytes")]
        from: Vec<u8>,
        /// The new name, not a directory to put it in.
        #[serde(with = "serde_bytes")]
        to: Vec<u8>,
        /// Fail when `to` exists, instead of replacing a file or an empty directory.
        no_replace: bool,
    },
    /// Copy a file or tree with modes, times, symbolic links, extended attributes, holes and hard
    /// links; owners too when root does it: [`FileReply::Moved`]. It appears at once when it is
    /// whole. An existing file is replaced by a file; an existing directory is an error.
    Copy {
        /// What; a symbolic link itself.
        #[serde(with = "serde_bytes")]
        from: Vec<u8>,
        /// The copy's name, not a directory to put it in.
        #[serde(with = "serde_bytes")]
        to: Vec<u8>,
        /// Copy a directory with all that is in it.
        recursive: bool,
    },
    /// Write a tar stream of a file or tree to the pipe: [`FileReply::Moved`]. Names in it begin
    /// with the last part of `path`, or `.` for the root directory. Numeric owners, pax records
    /// for what ustar has no room for, hard links once.
    Archive {
        /// What; a symbolic link itself.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
    },
    /// Unpack a tar stream from the pipe below a directory: [`FileReply::Moved`]. Files in the
    /// way are replaced, directories kept. No name or link in it leads out of the directory.
    Extract {
        /// An existing directory.
        #[serde(with = "serde_bytes")]
        path: Vec<u8>,
        /// Give files the archive's owners (root only) and set-id bits, instead of the acting
        /// user's ids.
        keep_owners: bool,
    },
}

/// Which file is written, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteTarget {
    /// The file; symbolic links are followed, also to a file that is not there yet.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Permission bits afterwards; absent: as they were, 0644 for a new file. The umask does not
    /// apply. The kernel takes set-id bits off when anybody but root writes.
    pub mode: Option<u32>,
    /// Add to the end.
    pub append: bool,
    /// Make missing parents (0755).
    pub create_parents: bool,
    /// Fail when the file exists.
    pub exclusive: bool,
}

/// An answer of the file service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileReply {
    /// It is done.
    Done,
    /// What is known of a file; `path` is absolute.
    Entry(Entry),
    /// What is in a directory, by path.
    Entries {
        /// Paths are relative to the directory listed.
        entries: Vec<Entry>,
        /// There are more.
        truncated: bool,
    },
    /// The same in a memory file that comes with the reply; [`read_entries`] decodes it.
    EntriesIn {
        /// Bytes in the file.
        length: u64,
        /// There are more.
        truncated: bool,
    },
    /// A file's bytes.
    Contents {
        /// The file; names of its owners are not looked up.
        entry: Entry,
        /// What was asked for, shorter at the file's end.
        #[serde(with = "serde_bytes")]
        contents: Vec<u8>,
    },
    /// The descriptor with the reply is open on a regular file, for reading at the offset asked
    /// for or for writing. The guest may change the file at any time.
    Opened {
        /// The file, as it was when it was opened; names of its owners are not looked up.
        entry: Entry,
    },
    /// A tree went through.
    Moved {
        /// Files, directories and links.
        entries: u64,
        /// Those left out: devices and sockets, and what lies on a pseudo file system.
        skipped: u64,
    },
}

/// What kind of file something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or fifo.
    Other,
}

/// A file in the sandbox. All of it is the guest's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Absolute, or relative to the directory listed; any bytes but NUL.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner, as the sandbox sees it.
    pub uid: u32,
    /// Group, as the sandbox sees it.
    pub gid: u32,
    /// Name of the owner in the sandbox's `/etc/passwd`; empty without one.
    pub owner: String,
    /// Name of the group in the sandbox's `/etc/group`; empty without one.
    pub group: String,
    /// Last change of contents, seconds since the epoch.
    pub mtime: i64,
    /// Nanoseconds on top.
    pub mtime_nsec: u32,
    /// Where a symbolic link leads, as it is written in it.
    pub target: Option<serde_bytes::ByteBuf>,
}

/// Why a file request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{action} {}: {kind}", Shown(path))]
pub struct FileError {
    /// What was tried: a system call's name, or a word for it.
    pub action: String,
    /// On which path, as the request gave it or where in its tree.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Why it failed.
    pub kind: FileErrorKind,
}

/// Why, in the kinds that a caller tells apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum FileErrorKind {
    /// ENOENT
    #[error("no such file or directory")]
    NotFound,
    /// EACCES, EPERM
    #[error("permission denied")]
    PermissionDenied,
    /// ENOTDIR
    #[error("not a directory")]
    NotADirectory,
    /// EISDIR
    #[error("is a directory")]
    IsADirectory,
    /// EEXIST
    #[error("exists already")]
    AlreadyExists,
    /// ENOTEMPTY
    #[error("directory is not empty")]
    NotEmpty,
    /// More than a limit of the service.
    #[error("too large: {0}")]
    TooLarge(String),
    /// ENOSPC, EDQUOT
    #[error("no space left")]
    NoSpace,
    /// The service does not do that, or what was asked is malformed.
    #[error("refused: {0}")]
    Refused(String),
    /// The user to act as is not known or not possible.
    #[error("{0}")]
    NoSuchUser(String),
    /// Any other error of the kernel.
    #[error("{} (errno {errno})", std::io::Error::from_raw_os_error(*errno))]
    Other {
        /// Its number.
        errno: i32,
    },
}

impl FileError {
    pub(super) fn new(action: &str, path: &[u8], kind: FileErrorKind) -> Self {
        // An archive's names are longer than any path.
        const MOST: usize = 4096;
        let path = path.get(..MOST).unwrap_or(path).to_vec();
        Self { action: action.to_owned(), path, kind }
    }

    pub(super) fn refused(action: &str, path: &[u8], why: &str) -> Self {
        Self::new(action, path, FileErrorKind::Refused(why.to_owned()))
    }

    pub(super) fn sys(action: &str, path: &[u8], errno: Errno) -> Self {
        Self::new(action, path, errno.into())
    }
}

impl From<Errno> for FileErrorKind {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::NotFound,
            Errno::ACCESS | Errno::PERM => Self::PermissionDenied,
            Errno::NOTDIR => Self::NotADirectory,
            Errno::ISDIR => Self::IsADirectory,
            Errno::EXIST => Self::AlreadyExists,
            Errno::NOTEMPTY => Self::NotEmpty,
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace,
            Errno::FBIG => Self::TooLarge("the file system has no room for such a file".into()),
            Errno::STALE => Self::Refused("the tree changed while it was walked".into()),
            // What RESOLVE_NO_MAGICLINKS gives, and a loop.
            Errno::LOOP => Self::Refused(
                "the path is a loop of symbolic links, or leads through a link of /proc; \
                 run a command for that"
                    .into(),
            ),
            other => Self::Other { errno: other.raw_os_error() },
        }
    }
}

/// A path in a message: control characters escaped, long ones cut.
struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 256;
        let cut = self.0.get(..MOST).unwrap_or(self.0);
        write!(f, "{}", String::from_utf8_lossy(cut).escape_debug())?;
        if self.0.len() > MOST { f.write_str("...") } else { Ok(()) }
    }
}

/// Reads the entries of a [`FileReply::EntriesIn`] from the memory file that came with it.
///
/// # Errors
///
/// `EMSGSIZE` for a `length` over [`ENTRIES_MAX`], `EBADMSG` for contents that are not entries,
/// or what `pread(2)` gives.
pub fn read_entries(file: impl AsFd, length: u64) -> std::io::Result<Vec<Entry>> {
    if length > ENTRIES_MAX as u64 {
        return Err(Errno::MSGSIZE.into());
    }
    let mut encoded = vec![0; length as usize];
    let mut have = 0;
    while let Some(rest) = encoded.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match retry_on_intr(|| rustix::io::pread(&file, &mut *rest, have as u64))? {
            0 => return Err(Errno::BADMSG.into()),
            count => have += count,
        }
    }
    postcard::from_bytes(&encoded).map_err(|_| Errno::BADMSG.into())
}
