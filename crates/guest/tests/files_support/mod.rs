//! A directory that plays the sandbox's root, and requests on it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use forkyard_guest::files::proto::{
    Entry, FileError, FileErrorKind, FileOp, FileReply, FileRequest, WriteTarget, read_entries,
};
use forkyard_guest::files::{Defaults, Root, handle};
use rustix::process::{getegid, geteuid, umask};

/// A reply with its descriptor.
pub type Answer = Result<(FileReply, Option<OwnedFd>), FileError>;

/// The directory; removed at the end.
pub struct Place {
    dir: tempfile::TempDir,
    root: Root,
}

impl Place {
    pub fn new() -> Self {
        // Tests of one process share its umask; requests clear and restore it.
        umask(rustix::fs::Mode::empty());
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        let root = Root::open(dir.path()).expect("the root");
        Self { dir, root }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub fn root(&self) -> &Root {
        &self.root
    }

    pub fn file(&self, path: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.at(path), contents).expect("a file");
    }

    pub fn dir(&self, path: &str) {
        fs::create_dir_all(self.at(path)).expect("a directory");
    }

    pub fn link(&self, target: impl AsRef<Path>, path: &str) {
        std::os::unix::fs::symlink(target, self.at(path)).expect("a symbolic link");
    }

    pub fn text(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).expect("a file's text")
    }

    /// Asks as the test's own user.
    pub fn ask(&self, op: FileOp) -> Answer {
        ask_in(&self.root, &own_user(), op, None)
    }

    pub fn ask_as(&self, user: &str, op: FileOp) -> Answer {
        ask_in(&self.root, user, op, None)
    }

    pub fn ask_with(&self, op: FileOp, pipe: OwnedFd) -> Answer {
        ask_in(&self.root, &own_user(), op, Some(pipe))
    }

    /// Why a request is refused.
    pub fn error(&self, op: FileOp) -> FileErrorKind {
        self.ask(op).expect_err("an error").kind
    }

    /// The text of a refusal.
    pub fn refusal(&self, op: FileOp) -> String {
        match self.error(op) {
            FileErrorKind::Refused(why) => why,
            other => panic!("not refused but {other:?}"),
        }
    }

    pub fn list(&self, path: &str, depth: u32, limit: u32) -> (Vec<Entry>, bool) {
        entries(self.ask(list(path, depth, limit)).expect("a listing"))
    }
}

pub fn own_user() -> String {
    format!("{}:{}", geteuid().as_raw(), getegid().as_raw())
}

pub fn ask_in(root: &Root, user: &str, op: FileOp, pipe: Option<OwnedFd>) -> Answer {
    let defaults = Defaults { cwd: b"/".to_vec(), user: user.to_owned() };
    let (reply, fd) = handle(root, FileRequest { user: None, op }, pipe, &defaults);
    reply.map(|reply| (reply, fd))
}

pub fn entries((reply, fd): (FileReply, Option<OwnedFd>)) -> (Vec<Entry>, bool) {
    match reply {
        FileReply::Entries { entries, truncated } => (entries, truncated),
        FileReply::EntriesIn { length, truncated } => {
            let file = fd.expect("a memory file");
            (read_entries(&file, length).expect("entries"), truncated)
        }
        other => panic!("no listing but {other:?}"),
    }
}

pub fn paths(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

pub fn bytes(path: impl AsRef<[u8]>) -> Vec<u8> {
    path.as_ref().to_vec()
}

pub fn stat(path: &str) -> FileOp {
    FileOp::Stat { path: bytes(path), follow: true }
}

pub fn read(path: &str) -> FileOp {
    FileOp::Read { path: bytes(path), offset: 0, length: None }
}

pub fn list(path: &str, depth: u32, limit: u32) -> FileOp {
    FileOp::List { path: bytes(path), depth, limit }
}

pub fn write(path: &str, contents: &str) -> FileOp {
    write_to(WriteTarget { path: bytes(path), ..WriteTarget::default() }, contents)
}

pub fn write_to(target: WriteTarget, contents: &str) -> FileOp {
    FileOp::Write { target, contents: bytes(contents) }
}

pub fn make_dir(path: &str, parents: bool, mode: u32) -> FileOp {
    FileOp::MakeDir { path: bytes(path), parents, mode }
}

pub fn remove(path: &str, recursive: bool) -> FileOp {
    FileOp::Remove { path: bytes(path), recursive }
}

pub fn rename(from: &str, to: &str, no_replace: bool) -> FileOp {
    FileOp::Move { from: bytes(from), to: bytes(to), no_replace }
}

pub fn copy(from: &str, to: &str, recursive: bool) -> FileOp {
    FileOp::Copy { from: bytes(from), to: bytes(to), recursive }
}

pub fn contents(answer: Answer) -> Vec<u8> {
    match answer.expect("contents").0 {
        FileReply::Contents { contents, .. } => contents,
        other => panic!("no contents but {other:?}"),
    }
}

pub fn entry(answer: Answer) -> Entry {
    match answer.expect("an entry").0 {
        FileReply::Entry(entry) => entry,
        other => panic!("no entry but {other:?}"),
    }
}

/// A chain of `depth` directories of a name of ten bytes below `top`, `file` in the innermost.
/// Made by descriptors, since its path is longer than any path may be.
pub fn deep_tree(top: &Path, depth: usize) {
    use rustix::fs::{Mode, OFlags, mkdirat, open, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::create_dir(top).expect("the top");
    let mut here = open(top, flags, Mode::empty()).expect("the top");
    for _ in 0..depth {
        mkdirat(&here, c"ten-bytes-", Mode::RWXU).expect("one down");
        here = openat(&here, c"ten-bytes-", flags, Mode::empty()).expect("one down");
    }
    let flags = OFlags::WRONLY | OFlags::CREATE;
    openat(&here, c"file", flags, Mode::RUSR | Mode::WUSR).expect("a file");
}

/// How deep a chain of [`deep_tree`] is, and whether its file is there.
pub fn measure_deep_tree(top: &Path) -> (usize, bool) {
    use rustix::fs::{AtFlags, Mode, OFlags, open, openat, statat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = open(top, flags, Mode::empty()).expect("the top");
    let mut depth = 0;
    while let Ok(next) = openat(&here, c"ten-bytes-", flags, Mode::empty()) {
        here = next;
        depth += 1;
    }
    (depth, statat(&here, c"file", AtFlags::empty()).is_ok())
}

/// Runs one test of this program again as root of a user namespace with that one id and of a mount
/// namespace, where it may mount. None inside of it: that is where the test goes on.
pub fn mount_namespace(test: &str) -> Option<Output> {
    const INSIDE: &str = "FORKYARD_TEST_IN_MOUNT_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "--propagation", "private", "--"]);
    command.arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    Some(command.output().expect("unshare(1)"))
}

/// The outcome of [`mount_namespace`], told with what the test said.
pub fn passed(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
}
