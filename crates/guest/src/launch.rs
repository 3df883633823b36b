//! Starts a command: resolves who and where, forks, confines the child, and executes.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use forkyard_sys::landlock::Wall;
use forkyard_sys::process::{self, Child, CloneFlags, SingleThreaded};
use forkyard_sys::seccomp::Filter;
use forkyard_sys::{caps, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid, getrlimit, setrlimit};

use crate::files::Root;
use crate::proto::{Failure, Setup, Start, StartError, decode, encode};
use crate::streams::CommandEnds;
use crate::users::{self, User, UserError};

/// Where programs are looked for when nobody says.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a child may take from its fork to its program: reading that from a slow disk counts.
const START: Duration = Duration::from_secs(10);

/// After this long without a word from a child, it may have been stopped.
const STOPPED: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What holds the commands of all sandboxes back.
#[derive(Debug)]
pub(crate) struct Bounds {
    filter: Filter,
    /// How many descriptors a command may have open. The kernel lets a user have that many on
    /// their way through sockets: beyond, only those with a higher limit can send any. So the
    /// spawner and init, who may have a guest's user, keep twice as many.
    files: Rlimit,
}

impl Bounds {
    /// The filter, for who installs it by hand.
    pub(crate) fn filter_bytes(&self) -> Vec<u8> {
        self.filter.to_bytes()
    }

    /// `files`: how many descriptors a command has at first, if it may have as many.
    pub(crate) fn new(filter: Filter, files: u64) -> Self {
        let own = getrlimit(Resource::Nofile);
        let maximum = own.maximum.map(|all| (all / 2).max(1));
        let current = maximum.map_or(files, |maximum| files.min(maximum));
        Self { filter, files: Rlimit { current: Some(current), maximum } }
    }
}

/// What holds every command back.
#[derive(Debug)]
pub(crate) struct Confinement<'a> {
    pub(crate) bounds: &'a Bounds,
    pub(crate) wall: Option<Wall>,
}

/// A command with everything resolved.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) user: User,
    program: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: String,
    /// Somebody asked for that directory, and it is not just where the image starts.
    cwd_asked: bool,
    tty: bool,
    single_id: bool,
}

impl Launch {
    /// Resolves a command against the sandbox's defaults and files.
    pub(crate) fn resolve(
        root: &Root,
        setup: &Setup,
        start: &Start,
        single_id: bool,
    ) -> Result<Self, StartError> {
        let user = resolve_user(root, start.user.as_deref().unwrap_or(&setup.user))?;
        let env = environment(setup, start, &user);
        let argv = if start.shell {
            let shell = shell_path().ok_or(StartError::NoShell)?;
            let mut argv = vec![shell.to_owned(), "-c".to_owned()];
            argv.extend(start.argv.iter().cloned());
            argv
        } else {
            start.argv.clone()
        };
        let name = argv.first().cloned().unwrap_or_default();
        let program = candidates(&name, &env)?;
        Ok(Self {
            user,
            program,
            argv: c_strings(&argv, "argument")?,
            env: c_strings(&env, "variable")?,
            cwd: start.cwd.clone().unwrap_or_else(|| setup.workdir.clone()),
            cwd_asked: start.cwd.is_some() || !setup.make_workdir,
            tty: start.tty.is_some(),
            single_id,
        })
    }

    /// Resolves the session's shell: `program` is not looked up.
    pub(crate) fn shell(
        root: &Root,
        setup: &Setup,
        argv: &[String],
        program: &str,
        single_id: bool,
    ) -> Result<Self, StartError> {
        let start = Start {
            argv: argv.to_vec(),
            shell: false,
            env: Vec::new(),
            cwd: None,
            user: None,
            tty: None,
            stdin: false,
            detach: true,
            timeout_ms: None,
        };
        let user = resolve_user(root, &setup.user)?;
        let env = environment(setup, &start, &user);
        Ok(Self {
            user,
            program: c_strings(&[program.to_owned()], "program")?,
            argv: c_strings(argv, "argument")?,
            env: c_strings(&env, "variable")?,
            cwd: setup.workdir.clone(),
            cwd_asked: !setup.make_workdir,
            tty: false,
            single_id,
        })
    }

    /// Forks and executes, and waits until the program has replaced the fork.
    pub(crate) fn start(
        &self,
        proof: &SingleThreaded,
        confinement: &Confinement<'_>,
        ends: &CommandEnds,
    ) -> Result<Child, StartError> {
        let fds = [(ends.stdin.as_fd(), 0), (ends.stdout.as_fd(), 1), (ends.stderr.as_fd(), 2)];
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Failure::new("pipe", &e.into()))?;
        let child = self.fork(proof, confinement, &fds, Some(&write))?;
        drop(write);
        let refusal = hear(File::from(read), child.pid).map_err(|e| Failure::new("pipe", &e))?;
        if refusal.is_empty() {
            return Ok(child);
        }
        Err(decode::<StartError>(&refusal).unwrap_or_else(|_| {
            Failure::new("starting the command", &io::ErrorKind::InvalidData.into()).into()
        }))
    }

    /// Forks and executes; why it did not comes through `report`, if at all.
    pub(crate) fn fork(
        &self,
        proof: &SingleThreaded,
        confinement: &Confinement<'_>,
        fds: &[(BorrowedFd<'_>, i32)],
        report: Option<&OwnedFd>,
    ) -> Result<Child, StartError> {
        process::fork(proof, CloneFlags::default(), None, |_| {
            let Err(refusal) = self.become_command(confinement, fds, report);
            if let (Some(report), Ok(bytes)) = (report, encode(&refusal)) {
                let _ = rustix::io::write(report, &bytes);
            }
            match refusal {
                StartError::NotFound(_) => 127,
                _ => 126,
            }
        })
        .map_err(|e| match e.raw_os_error() {
            Some(errno) if errno == rustix::io::Errno::AGAIN.raw_os_error() => {
                StartError::Processes
            }
            _ => Failure::new("clone3 for a command", &e).into(),
        })
    }

    /// In the child: takes on the command's streams, user, limits and program.
    fn become_command(
        &self,
        confinement: &Confinement<'_>,
        fds: &[(BorrowedFd<'_>, i32)],
        report: Option<&OwnedFd>,
    ) -> Result<std::convert::Infallible, StartError> {
        let failed = |what: &'static str| move |e: io::Error| Failure::new(what, &e);
        rustix::process::setsid().map_err(|e| Failure::new("setsid", &e.into()))?;
        if let Some(wall) = &confinement.wall {
            wall.restrict().map_err(failed("landlock_restrict_self"))?;
        }
        // Before any path of the guest's is looked up: the directory or program may be a link to
        // `/proc/self/fd/N`, and init's descriptors lead to layers and uppers.
        process::place_fds_alone(fds, report.map(AsFd::as_fd))
            .map_err(failed("placing descriptors"))?;
        if self.tty {
            process::take_terminal().map_err(failed("taking the terminal"))?;
        }
        setrlimit(Resource::Nofile, confinement.bounds.files)
            .map_err(|e| Failure::new("setrlimit nofile", &e.into()))?;
        self.become_user()?;
        self.enter_directory()?;
        if self.user.uid == 0 {
            caps::keep_default().map_err(failed("setting capabilities"))?;
        } else {
            caps::drop_all().map_err(failed("dropping capabilities"))?;
        }
        process::set_not_dumpable().map_err(failed("prctl PR_SET_DUMPABLE"))?;
        signal::set_blocked(false).map_err(failed("unblocking signals"))?;
        confinement.bounds.filter.install().map_err(failed("installing the seccomp filter"))?;
        self.exec()
    }

    fn become_user(&self) -> Result<(), StartError> {
        let user = &self.user;
        let groups: Vec<Gid> = user.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        // With a single id setgroups(2) is denied, and there are no groups to set.
        process::become_user(uid, gid, &groups, !self.single_id).map_err(|e| StartError::User {
            user: String::from_utf8_lossy(&user.name).into_owned(),
            why: e.to_string(),
        })
    }

    fn enter_directory(&self) -> Result<(), StartError> {
        let entered = match rustix::process::chdir(self.cwd.as_str()) {
            // Where an image starts may be closed to a user that the image does not expect, as
            // root's home is.
            Err(rustix::io::Errno::ACCESS) if !self.cwd_asked => rustix::process::chdir("/"),
            entered => entered,
        };
        entered.map_err(|e| StartError::Directory {
            path: self.cwd.clone(),
            why: io::Error::from(e).to_string(),
        })
    }

    fn exec(&self) -> Result<std::convert::Infallible, StartError> {
        let mut refused: Option<(String, io::Error)> = None;
        for program in &self.program {
            let error = process::execve(program, &self.argv, &self.env);
            let missing = matches!(
                error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
                Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)
            );
            // As a shell does it: one that is there but cannot be run is told of in the end.
            if !missing && refused.is_none() {
                refused = Some((program.to_string_lossy().into_owned(), error));
            }
        }
        let name = self.argv.first().map(|name| name.to_string_lossy().into_owned());
        match refused {
            Some((program, error)) => Err(StartError::NotExecutable {
                why: match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                    Some(rustix::io::Errno::ACCESS) if is_directory(&program) => {
                        "a directory".to_owned()
                    }
                    Some(rustix::io::Errno::NOEXEC) => {
                        "not a program for this processor, nor a script with a `#!` line".to_owned()
                    }
                    _ => error.to_string(),
                },
                program,
            }),
            None => Err(StartError::NotFound(name.unwrap_or_default())),
        }
    }
}

fn is_directory(path: &str) -> bool {
    let stat = rustix::fs::stat(path);
    stat.is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// What a child says until it executes: nothing when it could.
///
/// A guest's root can stop the child meanwhile, which must not stop init: it is set going again,
/// and killed when that does not help.
pub(crate) fn hear(mut report: File, child: Pid) -> io::Result<Vec<u8>> {
    let pid = child.as_raw_nonzero().get();
    let end = Instant::now() + START;
    let mut heard = Vec::new();
    loop {
        let mut fds = [PollFd::new(&report, PollFlags::IN)];
        match poll(&mut fds, Some(&STOPPED)) {
            Ok(0) => process::kill(pid, if Instant::now() < end { 18 } else { 9 })?,
            Ok(_) => {
                let mut chunk = [0; 4096];
                match report.read(&mut chunk)? {
                    0 => return Ok(heard),
                    n => heard.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The shell of this sandbox, bash for preference.
pub(crate) fn shell_path() -> Option<&'static str> {
    ["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh"]
        .into_iter()
        .find(|path| rustix::fs::access(*path, rustix::fs::Access::EXEC_OK).is_ok())
}

fn resolve_user(root: &Root, spec: &str) -> Result<User, StartError> {
    let refused = |e: UserError| StartError::User { user: spec.to_owned(), why: e.to_string() };
    if spec.is_empty() || spec == "0" || spec == "0:0" {
        return Ok(User::root());
    }
    let mut user = users::resolve(root, spec).map_err(refused)?;
    user.check_mapped().map_err(refused)?;
    Ok(user)
}

/// The sandbox's variables, then what follows from the user, then the command's own; of two with
/// one name the later counts.
fn environment(setup: &Setup, start: &Start, user: &User) -> Vec<String> {
    let home = String::from_utf8_lossy(&user.home);
    let mut env: Vec<String> = vec![
        format!("PATH={DEFAULT_PATH}"),
        format!("HOSTNAME={}", setup.hostname),
        format!("HOME={home}"),
    ];
    if start.tty.is_some() {
        env.push("TERM=xterm".to_owned());
    }
    for variable in setup.env.iter().chain(&start.env) {
        let Some((name, _)) = variable.split_once('=') else { continue };
        let same =
            |other: &String| other.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        match env.iter_mut().find(|other| same(other)) {
            Some(other) => other.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
    env
}

/// Where a program may be: itself when its name has a slash, else each directory of `PATH`.
fn candidates(name: &str, env: &[String]) -> Result<Vec<CString>, StartError> {
    if name.is_empty() {
        return Err(StartError::NotFound(String::new()));
    }
    if name.contains('/') {
        return c_strings(&[name.to_owned()], "program");
    }
    let path = env.iter().find_map(|v| v.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let paths: Vec<String> = path
        .split(':')
        .map(|dir| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") })
        .collect();
    c_strings(&paths, "program")
}

fn c_strings(strings: &[String], what: &str) -> Result<Vec<CString>, StartError> {
    strings
        .iter()
        .map(|s| {
            CString::new(s.as_str()).map_err(|_| {
                Failure::new(format!("{what} with a NUL byte"), &rustix::io::Errno::INVAL.into())
                    .into()
            })
        })
        .collect()
}
