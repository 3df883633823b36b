//! The file service: init's answers to file requests, inside the sandbox.
//!
//! The guest is hostile. It puts symbolic links, fifos, sockets, devices and endless directories
//! where a request goes, and exchanges them while it is answered. What keeps that harmless:
//!
//! - Paths are resolved by the kernel within the sandbox's root, never through procfs's magic
//!   links ([`Root`]); contents on procfs are refused, and nothing is written to any file system
//!   whose files are the kernel's answers.
//! - Whatever makes, removes or changes a name works on a directory's descriptor and one name,
//!   and never follows that name. Trees are walked by descriptors, each step checked.
//! - Only regular files and directories have their contents opened, without waiting.
//! - A request runs with its user's ids and without capabilities; root's as root of the sandbox.
//!
//! What may take long ([`is_long`]) is for a process of its own, which calls the same [`handle`].
//! A volume that the sandbox's owner put on FUSE or NFS can still make any access wait.
//!
//! # Example
//!
//! ```
//! use forkyard_guest::files::proto::{FileOp, FileRequest};
//! use forkyard_guest::files::{Defaults, Root, handle, is_long};
//!
//! let root = Root::open("/")?;
//! let request = FileRequest {
//!     user: Some("0".into()),
//!     op: FileOp::Stat { path: b"notes.txt".to_vec(), follow: true },
//! };
//! assert!(!is_long(&request));
//! let defaults = Defaults { cwd: b"/nowhere".to_vec(), user: String::new() };
//! let (reply, descriptor) = handle(&root, request, None, &defaults);
//! assert!(reply.is_err() && descriptor.is_none());
//! # Ok::<(), std::io::Error>(())
//! ```

mod archive;
pub(crate) mod contents;
mod copy;
mod copy_file;
mod dir;
mod extract;
mod links;
mod list;
mod names;
mod path;
pub mod proto;
mod remove;
pub(crate) mod root;
pub(crate) mod tar_read;

use std::os::fd::{AsFd, OwnedFd};

use forkyard_sys::fsid::FsIdentity;
use rustix::fs::{self, Mode, Stat};
use rustix::process;

use crate::users::{self, Names, User};
use path::GuestPath;
use proto::{
    Entry, EntryKind, FileError, FileErrorKind, FileOp, FileReply, FileRequest, LIMIT_MAX,
};
pub use root::Root;

/// Most entries of a listing that init gives itself.
const SHORT_LISTING: u32 = 1024;

/// What a request leaves open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Absolute path of the directory that relative paths start from; the acting user's home
    /// when empty.
    pub cwd: Vec<u8>,
    /// `USER[:GROUP]` of requests that name none; root when empty.
    pub user: String,
}

/// Whether a request may take long, and is for a process of its own.
pub fn is_long(request: &FileRequest) -> bool {
    match &request.op {
        FileOp::List { depth, limit, .. } => *depth > 1 || *limit > SHORT_LISTING,
        FileOp::Remove { recursive, .. } => *recursive,
        // A rename that turns out to cross file systems (on an overlay any directory of a lower
        // layer does) is a copy.
        FileOp::Move { .. }
        | FileOp::Copy { .. }
        | FileOp::Archive { .. }
        | FileOp::Extract { .. } => true,
        FileOp::Stat { .. }
        | FileOp::Read { .. }
        | FileOp::Write { .. }
        | FileOp::OpenWrite { .. }
        | FileOp::MakeDir { .. } => false,
    }
}

/// Answers a request, with `root` as the root of all paths: [`Root::open`] of `/` in a sandbox.
///
/// `io` is the pipe of [`FileOp::Archive`] (its writing end) and [`FileOp::Extract`] (its reading
/// end). The descriptor in the answer belongs to [`FileReply::Opened`] and
/// [`FileReply::EntriesIn`].
///
/// The calling thread has the acting user's file rights meanwhile, and the process umask 0; both
/// are restored. SIGPIPE must be ignored or blocked: the reader of an archive may go away.
pub fn handle(
    root: &Root,
    request: FileRequest,
    io: Option<OwnedFd>,
    defaults: &Defaults,
) -> (Result<FileReply, FileError>, Option<OwnedFd>) {
    match answer(root, request, io, defaults) {
        Ok((reply, descriptor)) => (Ok(reply), descriptor),
        Err(error) => (Err(error), None),
    }
}

/// A reply, and the descriptor that belongs to it.
type Answer = Result<(FileReply, Option<OwnedFd>), FileError>;

fn answer(root: &Root, request: FileRequest, io: Option<OwnedFd>, defaults: &Defaults) -> Answer {
    let user = acting_user(root, request.user.as_ref().unwrap_or(&defaults.user))?;
    let names = match &request.op {
        FileOp::Stat { .. } | FileOp::List { .. } => Names::read(root),
        _ => Names::default(),
    };
    let cwd = if defaults.cwd.is_empty() { user.home.clone() } else { defaults.cwd.clone() };
    let cx = Context { root, user, cwd, names };
    let _umask = Umask::cleared();
    let _identity = cx.take_identity()?;
    dispatch(&cx, request.op, io)
}

fn dispatch(cx: &Context<'_>, op: FileOp, io: Option<OwnedFd>) -> Answer {
    let pipe = |action: &str, path: &[u8]| {
        io.ok_or_else(|| FileError::refused(action, path, "no pipe came with the request"))
    };
    match op {
        FileOp::Stat { path, follow } => list::stat(cx, &path, follow),
        FileOp::List { path, depth, limit } => list::list(cx, &path, depth, limit.min(LIMIT_MAX)),
        FileOp::Read { path, offset, length } => contents::read(cx, &path, offset, length),
        FileOp::Write { target, contents } => contents::write(cx, &target, &contents),
        FileOp::OpenWrite { target } => contents::open_write(cx, &target),
        FileOp::MakeDir { path, parents, mode } => names::make_dir(cx, &path, parents, mode),
        FileOp::Remove { path, recursive } => remove::remove(cx, &path, recursive),
        FileOp::Move { from, to, no_replace } => names::rename(cx, &from, &to, no_replace),
        FileOp::Copy { from, to, recursive } => copy::copy(cx, &from, &to, recursive),
        FileOp::Archive { path } => archive::archive(cx, &path, pipe("archive", &path)?),
        FileOp::Extract { path, keep_owners } => {
            extract::extract(cx, &path, keep_owners, pipe("extract", &path)?)
        }
    }
}

fn acting_user(root: &Root, spec: &str) -> Result<User, FileError> {
    if spec.is_empty() {
        return Ok(User::root());
    }
    users::resolve(root, spec).and_then(|mut user| user.check_mapped().map(|()| user)).map_err(
        |error| {
            let kind = FileErrorKind::NoSuchUser(error.to_string());
            FileError::new("user", spec.as_bytes(), kind)
        },
    )
}

/// What one request runs with.
struct Context<'a> {
    root: &'a Root,
    user: User,
    cwd: Vec<u8>,
    names: Names,
}

impl Context<'_> {
    fn path(&self, raw: &[u8]) -> Result<GuestPath, FileError> {
        GuestPath::new(raw, &self.cwd, &self.user.home)
    }

    /// Whether the request acts as root of the sandbox, with init's capabilities.
    fn is_root(&self) -> bool {
        self.user.uid == 0 && process::geteuid().is_root()
    }

    /// Takes on the user's file rights. Nothing to do for root as init already is.
    fn take_identity(&self) -> Result<Option<FsIdentity>, FileError> {
        let user = &self.user;
        let present = (process::geteuid().as_raw(), process::getegid().as_raw());
        if (user.uid, user.gid) == present && (user.uid == 0 || user.groups.is_empty()) {
            return Ok(None);
        }
        FsIdentity::assume(user.uid, user.gid, &user.groups).map(Some).map_err(|error| {
            let who = String::from_utf8_lossy(&user.name);
            let why = format!("acting as user {who} ({}:{}): {error}", user.uid, user.gid);
            FileError::new("setfsuid", &user.name, FileErrorKind::NoSuchUser(why))
        })
    }

    fn entry(&self, path: Vec<u8>, stat: &Stat, target: Option<Vec<u8>>) -> Entry {
        Entry {
            path,
            kind: match root::kind(stat) {
                fs::FileType::RegularFile => EntryKind::File,
                fs::FileType::Directory => EntryKind::Directory,
                fs::FileType::Symlink => EntryKind::Symlink,
                _ => EntryKind::Other,
            },
            size: stat.st_size as u64,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            owner: self.names.user(stat.st_uid),
            group: self.names.group(stat.st_gid),
            mtime: stat.st_mtime,
            mtime_nsec: stat.st_mtime_nsec as u32,
            target: target.map(serde_bytes::ByteBuf::from),
        }
    }
}

/// Where the symbolic link `name` in `dir` leads.
fn link_target(dir: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<Vec<u8>> {
    fs::readlinkat(dir, name, Vec::new()).map(std::ffi::CString::into_bytes)
}

/// Clears the umask while it lives: requests say which mode they want.
struct Umask(Mode);

impl Umask {
    fn cleared() -> Self {
        Self(process::umask(Mode::empty()))
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        process::umask(self.0);
    }
}
