//! What a clone is told of its fork: `/run/forkyard/fork`, and the hooks of the sandbox.
//!
//! All of it lies in files that the guest may have made into anything. Whatever is in the way there
//! keeps a clone from being told, and from nothing else.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Init, now};
use crate::files::root::{kind, open_beneath, open_directory};
use crate::proto::{InitMessage, Start};
use crate::template::Held;

/// Where hooks are.
const HOOKS: &str = "/etc/forkyard/fork.d";

/// Most hooks that are run, and most names that are looked at to find them.
const HOOKS_MAX: usize = 64;
const NAMES_MAX: usize = 1024;

/// How long a hook may take.
const HOOK_TIME_MS: u64 = 10_000;

/// The directory that tells of a fork, and the name in it.
const PLACE: [&str; 2] = ["run", "forkyard"];
const NAME: &str = "fork";
const PART: &str = ".fork";

/// Hooks that are to be run, one after the other.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    waiting: VecDeque<String>,
    env: Vec<String>,
    /// The command that the one is which runs.
    running: Option<u32>,
}

impl Init<'_> {
    /// Notes whom this sandbox was forked from, and tells so in its files. Nothing runs yet.
    ///
    /// One that goes on from where itself was paused is no fork.
    pub(super) fn tell_of_fork(&mut self, held: &Held) {
        let source = &held.records.setup;
        if source.id == self.setup.id {
            return;
        }
        self.setup.forks = source.forks.saturating_add(1);
        let (id, parent, forks) = (&self.setup.id, &source.id, self.setup.forks);
        let time = rfc3339(now() / 1000);
        let text = format!("id={id}\nparent={parent}\ngeneration={forks}\ntime={time}\n");
        self.hooks.env = vec![
            format!("FORKYARD_ID={id}"),
            format!("FORKYARD_PARENT={parent}"),
            format!("FORKYARD_GENERATION={forks}"),
        ];
        if let Err(error) = write_place(text.as_bytes()) {
            self.warn(format!("/run/forkyard/fork was not written: {error}"));
        }
    }

    /// Runs the sandbox's hooks, the first now, where it was forked.
    pub(super) fn start_hooks(&mut self) {
        if !self.hooks.env.is_empty() {
            self.hooks.waiting = self.find_hooks();
            self.next_hook();
        }
    }

    /// Goes on to the next hook when a command that ended was one. `code`: its exit code, where it
    /// exited by itself and in time.
    pub(super) fn hook_ended(&mut self, command: u32, code: Option<i32>) {
        if self.hooks.running != Some(command) {
            return;
        }
        self.hooks.running = None;
        match code {
            Some(0) => {}
            Some(code) => self.warn(format!("hook {command} exited with {code}")),
            None => self.warn(format!("hook {command} was killed")),
        }
        self.next_hook();
    }

    /// Lets go of all hooks that were not run.
    pub(super) fn drop_hooks(&mut self) {
        self.hooks = Hooks::default();
    }

    fn next_hook(&mut self) {
        while let Some(name) = self.hooks.waiting.pop_front() {
            let start = Start {
                argv: vec![format!("{HOOKS}/{name}")],
                shell: false,
                env: self.hooks.env.clone(),
                cwd: Some("/".to_owned()),
                user: Some("0".to_owned()),
                tty: None,
                stdin: false,
                detach: true,
                timeout_ms: Some(HOOK_TIME_MS),
            };
            match self.begin(&start) {
                Ok(id) => {
                    self.hooks.running = Some(id);
                    return;
                }
                Err(error) => self.warn(format!("hook {name}: {error}")),
            }
        }
    }

    /// Names of executable files, in order.
    fn find_hooks(&self) -> VecDeque<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(dir) = self.root.resolve(HOOKS.as_bytes(), flags, Mode::empty()) else {
            return VecDeque::new();
        };
        let Ok(entries) = rustix::fs::Dir::read_from(&dir) else { return VecDeque::new() };
        let names = entries.take(NAMES_MAX).flatten();
        let names = names.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let mut names: Vec<_> =
            names.filter(|name| is_name(name) && self.is_executable(name)).collect();
        names.sort_unstable();
        names.truncate(HOOKS_MAX);
        names.into()
    }

    fn is_executable(&self, name: &str) -> bool {
        let path = format!("{HOOKS}/{name}");
        let file = self.root.resolve(path.as_bytes(), OFlags::PATH, Mode::empty());
        let stat = file.and_then(rustix::fs::fstat);
        stat.is_ok_and(|stat| {
            kind(&stat) == rustix::fs::FileType::RegularFile && stat.st_mode & 0o111 != 0
        })
    }

    fn warn(&self, what: String) {
        self.tell(&InitMessage::Warning(what));
    }
}

/// Names as run-parts(8) takes them, and dots within: no editor's leavings.
fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    !name.starts_with('.') && name.bytes().all(known)
}

/// Opens the directory, which is of the sandbox's own files: nothing is written to a host's
/// directory that is shown there, nor where a link leads.
fn open_place(make: bool) -> io::Result<OwnedFd> {
    let mut dir = forkyard_sys::mount::open_dir("/")?;
    for part in PLACE {
        if make {
            match rustix::fs::mkdirat(&dir, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        dir = open_directory(&dir, part.as_bytes(), ResolveFlags::NO_XDEV)?;
    }
    Ok(dir)
}

/// Takes away what tells of a fork in files that come from a clone.
pub(super) fn forget() {
    if let Ok(dir) = open_place(false) {
        let _ = rustix::fs::unlinkat(dir, NAME, AtFlags::empty());
    }
}

/// Writes the file as a whole, in the place of the one before.
fn write_place(mut text: &[u8]) -> io::Result<()> {
    let dir = open_place(true)?;
    match rustix::fs::unlinkat(&dir, PART, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let mode = Mode::from_raw_mode(0o644);
    let file = open_beneath(&dir, PART.as_bytes(), flags, mode, how)?;
    while !text.is_empty() {
        let written = rustix::io::write(&file, text)?;
        text = text.get(written..).unwrap_or_default();
    }
    rustix::fs::fchmod(&file, mode)?;
    rustix::fs::renameat(&dir, PART, &dir, NAME)?;
    Ok(())
}

/// Seconds since the epoch as RFC 3339 has a time, in UTC.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar from days, in eras of 400 years that begin in March.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_rfc_3339_has_them() {
        for (seconds, wanted) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), wanted);
        }
    }

    #[test]
    fn names_of_hooks_are_plain() {
        assert!(["10-seed", "a.sh", "A_b"].into_iter().all(is_name));
        assert!(![".hidden", "a~", "a b", "a\nb", "ä"].into_iter().any(is_name));
    }
}
