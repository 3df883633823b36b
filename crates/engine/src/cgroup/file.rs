//! Reading and writing the small files of a control group, one call a value.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::{Errno, read as read_fd, write as write_fd};

use super::{Error, Result};

/// Longer than any file read here but `cgroup.procs`.
const SMALL: usize = 4096;

/// Writes `value` in one call, as control files need it.
pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    let failed = |errno| Error::call(format!("write `{value}` to"), path, errno);
    let fd = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    loop {
        match write_fd(&fd, value.as_bytes()) {
            Err(Errno::INTR) => {}
            done => return done.map(drop).map_err(failed),
        }
    }
}

/// As [`write`], for a file that only some kernels have; `false` when it is not there.
pub(super) fn write_optional(path: &Path, value: &str) -> Result<bool> {
    match write(path, value) {
        Ok(()) => Ok(true),
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a whole file; bytes that are not UTF-8 are replaced.
pub(super) fn read(path: &Path) -> Result<String> {
    let failed = |errno| Error::call("read", path, errno);
    let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let mut bytes = Vec::with_capacity(SMALL);
    loop {
        bytes.reserve(SMALL);
        match read_fd(&fd, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads a file that holds one number; `None` where the kernel says `max`.
pub(super) fn number(path: &Path) -> Result<Option<u64>> {
    let text = read(path)?;
    match text.trim() {
        "max" => Ok(None),
        digits => digits.parse().map(Some).map_err(|_| unreadable(path, "number", &text)),
    }
}

/// Reads the number after `key` in a file of `key value` lines.
pub(super) fn keyed(path: &Path, key: &'static str) -> Result<u64> {
    let text = read(path)?;
    find_key(&text, key).ok_or_else(|| unreadable(path, key, &text))
}

fn find_key(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
}

/// The processes of `cgroup.procs` in `dir`, threads not counted. Those outside our pid
/// namespace are listed as 0. A threaded group has no such list and counts as empty.
pub(super) fn procs(dir: &Path) -> Result<Vec<u32>> {
    let path = dir.join("cgroup.procs");
    match read(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect()),
        Err(Error::Call { errno: Errno::OPNOTSUPP, .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Names of processes, for messages.
pub(super) fn named(pids: Vec<u32>) -> Vec<(u32, String)> {
    let name = |pid| {
        let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        String::from_utf8_lossy(comm.trim_ascii_end()).escape_debug().to_string()
    };
    pids.into_iter().map(|pid| (pid, name(pid))).collect()
}

/// The names of the directories in `dir`, none when it is not there.
pub(super) fn subdirs(dir: &Path) -> Result<Vec<String>> {
    let failed = |error: std::io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Error::call("list", dir, errno)
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Makes a group that only its owner may change, and all may look at, as the kernel's own are.
pub(super) fn mkdir(dir: &Path) -> Result<()> {
    mkdirat(CWD, dir, Mode::from_raw_mode(0o755)).map_err(|errno| Error::call("mkdir", dir, errno))
}

/// Removes a group that has no processes and no groups in it.
pub(super) fn rmdir(dir: &Path) -> Result<()> {
    unlinkat(CWD, dir, AtFlags::REMOVEDIR).map_err(|errno| Error::call("rmdir", dir, errno))
}

fn unreadable(path: &Path, what: &'static str, text: &str) -> Error {
    Error::Unreadable { path: path.to_owned(), what, text: text.chars().take(80).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_is_found_by_its_whole_name() {
        let text = "usage_usec 7\nuser_usec 5\nnr_throttled 3\n";
        assert_eq!(find_key(text, "user_usec"), Some(5));
        assert_eq!(find_key(text, "usec"), None);
        assert_eq!(find_key("oom 1\noom_kill 2\n", "oom_kill"), Some(2));
    }

    #[test]
    fn a_number_file_reads_max_as_no_number_and_refuses_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pids.max");
        for (text, want) in [("max\n", None), ("42\n", Some(42))] {
            fs::write(&path, text).unwrap();
            assert_eq!(number(&path).unwrap(), want);
        }
        fs::write(&path, "many\n").unwrap();
        let error = number(&path).unwrap_err().to_string();
        assert!(error.ends_with("pids.max: no number in `many\n`"), "{error}");
    }

    #[test]
    fn a_write_makes_no_file_and_its_error_names_value_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.max");
        let error = write(&path, "123").unwrap_err();
        assert!(error.is_gone());
        assert!(error.to_string().starts_with("write `123` to /"), "{error}");
        assert!(!path.exists());
        assert!(!write_optional(&path, "123").unwrap());
    }

    #[test]
    fn a_long_list_of_processes_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<u32> = (1..=20_000).collect();
        let text: Vec<String> = all.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(dir.path().join("cgroup.procs"), text.concat()).unwrap();
        assert_eq!(procs(dir.path()).unwrap(), all);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_key_look_up_panic(text in "\\PC*", key in "[a-z_]{0,8}") {
            find_key(&text, &key);
        }
    }
}
