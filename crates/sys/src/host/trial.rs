//! What only trying tells: namespaces, mounts and clone3 in a forked child.
//!
//! The child of a process with several threads may not allocate or take locks, so all it needs is
//! prepared before the fork, and it makes plain system calls from then on. It writes one word per
//! feature to a pipe, lends its user namespace to the parent (for the idmapped mount), and ends when
//! the parent closes the other pipe, or dies. Its mounts and namespaces end with it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode as FileMode, OFlags, mkdirat, open};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use rustix::thread::UnshareFlags;

use super::{Feature, Findings, Host, Mode, Presence, read_number};
use crate::mount::{self, MountAttr};

/// What the child tries, in the order of its answer.
const TRIED: [Feature; 13] = [
    Feature::CloneIntoCgroup,
    Feature::UserNamespace,
    Feature::MountNamespace,
    Feature::NetNamespace,
    Feature::IpcNamespace,
    Feature::UtsNamespace,
    Feature::CgroupNamespace,
    Feature::TimeNamespace,
    Feature::Overlay,
    Feature::OverlayOnStore,
    Feature::PidNamespace,
    Feature::SetTid,
    Feature::ProcMount,
];

/// The answer for what was not tried; otherwise an errno, or 0.
const NOT_TRIED: i32 = -1;

/// How long the child may take; it takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

type Answers = [i32; TRIED.len()];

/// What came of trying.
pub(super) struct Outcome {
    answers: io::Result<Answers>,
    idmapped: Option<io::Result<()>>,
    /// Why the overlay was not tried on the store.
    layers: Option<io::Error>,
}

/// Tries everything; `store` is a directory of the store's file system, `cgroup` the version 2
/// group of this process.
pub(super) fn run(store: &Path, cgroup: Option<&Path>) -> Outcome {
    let layers = Layers::make(store);
    let mut idmapped = None;
    let cgroup = cgroup.and_then(|path| mount::open_dir(path).ok());
    let answers = try_in_child(
        layers.as_ref().ok().map(|layers| layers.directory.as_fd()),
        cgroup.as_ref().map(AsFd::as_fd),
        |user_namespace| idmapped = Some(idmapped_mount(store, user_namespace)),
    );
    Outcome { answers, idmapped, layers: layers.err() }
}

fn try_in_child(
    layers: Option<BorrowedFd<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
    with_namespace: impl FnOnce(BorrowedFd<'_>),
) -> io::Result<Answers> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let maps = [format!("0 {uid} 1"), format!("0 {gid} 1")];
    let (mut from_child, to_parent) = io::pipe()?;
    let (from_parent, to_child) = io::pipe()?;
    // SAFETY: the child makes system calls only, as the module says, and ends by `_exit`.
    let child = match unsafe { libc::fork() } {
        0 => {
            drop(to_child);
            let answers = child(&maps, layers, cgroup);
            let bytes: [[u8; 4]; TRIED.len()] = answers.map(i32::to_ne_bytes);
            let _ = (&to_parent).write_all(bytes.as_flattened());
            let _ = (&from_parent).read(&mut [0]);
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        pid => started(pid.into())?,
    };
    drop((to_parent, from_parent));
    let answers = read_answers(&mut from_child);
    if answers.is_ok() {
        let path = format!("/proc/{}/ns/user", child.as_raw_nonzero());
        if let Ok(namespace) = open(path, OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty()) {
            with_namespace(namespace.as_fd());
        }
    }
    // It is ours and not reaped yet, so that the pid is still its own.
    let _ = rustix::process::kill_process(child, Signal::KILL);
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    drop(to_child);
    answers
}

fn read_answers(pipe: &mut io::PipeReader) -> io::Result<Answers> {
    let limit = rustix::time::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut ready = [PollFd::new(pipe, PollFlags::IN)];
    if rustix::io::retry_on_intr(|| poll(&mut ready, Some(&limit)))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut bytes = [[0; 4]; TRIED.len()];
    pipe.read_exact(bytes.as_flattened_mut())?;
    Ok(bytes.map(i32::from_ne_bytes))
}

/// Runs in the child: tries all, from what needs nothing to what needs most.
fn child(
    maps: &[String; 2],
    layers: Option<BorrowedFd<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Answers {
    let mut answers = [NOT_TRIED; TRIED.len()];
    let mut note = |feature, result: io::Result<()>| {
        let errno = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        for (answer, _) in answers.iter_mut().zip(TRIED).filter(|(_, tried)| *tried == feature) {
            *answer = errno;
        }
        errno == 0
    };
    if let Some(cgroup) = cgroup {
        note(Feature::CloneIntoCgroup, clone_into_cgroup(cgroup));
    }
    if !note(Feature::UserNamespace, user_namespace(maps)) {
        return answers;
    }
    for (feature, flag) in [
        (Feature::NetNamespace, UnshareFlags::NEWNET),
        (Feature::IpcNamespace, UnshareFlags::NEWIPC),
        (Feature::UtsNamespace, UnshareFlags::NEWUTS),
        (Feature::CgroupNamespace, UnshareFlags::NEWCGROUP),
        (Feature::TimeNamespace, UnshareFlags::NEWTIME),
    ] {
        note(feature, unshare(flag));
    }
    // Layers must lie in the own mount namespace: the working directory moves there, a descriptor
    // does not.
    let layers = layers.map(|layers| Ok(rustix::process::fchdir(layers)?));
    let mounts = unshare(UnshareFlags::NEWNS).and_then(|()| mount::make_private());
    if note(Feature::MountNamespace, mounts) {
        if let Some(entered) = layers {
            note(Feature::OverlayOnStore, entered.and_then(|()| overlay()));
        }
        note(Feature::Overlay, overlay_on_tmpfs());
    }
    if note(Feature::PidNamespace, unshare(UnshareFlags::NEWPID)) {
        let mut status = first_process(&[1]);
        note(Feature::SetTid, status.as_ref().map(drop).map_err(again));
        if status.is_err() {
            status = first_process(&[]);
        }
        let mounted = status.and_then(|errno| match errno {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        });
        note(Feature::ProcMount, mounted);
    }
    answers
}

fn again(error: &io::Error) -> io::Error {
    io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
}

fn unshare(flag: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of the flags used here touches the descriptor table, the one thing that could
    // pull descriptors from under their owners.
    Ok(unsafe { rustix::thread::unshare_unsafe(flag) }?)
}

fn user_namespace(maps: &[String; 2]) -> io::Result<()> {
    unshare(UnshareFlags::NEWUSER)?;
    let files = [c"/proc/self/uid_map", c"/proc/self/gid_map"];
    put(c"/proc/self/setgroups", b"deny")?;
    files.into_iter().zip(maps).try_for_each(|(file, map)| put(file, map.as_bytes()))
}

fn put(file: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    let file = open(file, OFlags::WRONLY | OFlags::CLOEXEC, FileMode::empty())?;
    rustix::io::write(file, text)?;
    Ok(())
}

/// An overlay, attached nowhere, of `l`, `u` and `w` in the working directory.
///
/// Volatile, as a sandbox's is: the end of any other one syncs the whole upper file system.
fn overlay() -> io::Result<()> {
    let options = [
        ("lowerdir", "l"),
        ("upperdir", "u"),
        ("workdir", "w"),
        ("userxattr", ""),
        ("volatile", ""),
    ];
    mount::new_mount("overlay", &options, 0).map(drop)
}

fn overlay_on_tmpfs() -> io::Result<()> {
    let tmpfs = mount::new_mount("tmpfs", &[], 0)?;
    // It must be attached; `/` is the one directory that is sure to be there.
    mount::attach_mount(&tmpfs, rustix::fs::CWD, "/")?;
    for name in [c"l", c"u", c"w"] {
        mkdirat(&tmpfs, name, FileMode::RWXU)?;
    }
    rustix::process::fchdir(&tmpfs)?;
    overlay()
}

/// Starts the first process of a new pid namespace, with these pids, and has it mount a procfs.
/// Returns the errno of that mount, or 0.
fn first_process(pids: &[libc::pid_t]) -> io::Result<i32> {
    let arguments = CloneArguments {
        set_tid: if pids.is_empty() { 0 } else { pids.as_ptr() as u64 },
        set_tid_size: pids.len() as u64,
        ..CloneArguments::default()
    };
    clone3(arguments, || {
        let safe = mount::NOSUID | mount::NODEV | mount::NOEXEC;
        let mounted = mount::new_mount("proc", &[], safe);
        mounted.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO))
    })
}

fn clone_into_cgroup(cgroup: BorrowedFd<'_>) -> io::Result<()> {
    /// linux/sched.h.
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    let arguments = CloneArguments {
        flags: CLONE_INTO_CGROUP,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArguments::default()
    };
    clone3(arguments, || 0).map(drop)
}

/// `struct clone_args` of clone3(2), which not every libc has.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Starts a process that ends with the status `body` returns, and waits for it.
fn clone3(mut arguments: CloneArguments, body: impl FnOnce() -> i32) -> io::Result<i32> {
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM it is a fork: the child has a copy of everything, makes system calls
    // only, and ends by `_exit`. The arguments are valid for their size, and so is what they point
    // to, until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&arguments), size_of::<CloneArguments>())
    };
    if result == 0 {
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(body()) }
    }
    let child = started(result)?;
    let waited = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()))?;
    let status = waited.and_then(|(_, status)| status.exit_status());
    status.ok_or_else(|| Errno::CHILD.into())
}

/// The process that a fork or clone3 returned.
fn started(result: libc::c_long) -> io::Result<Pid> {
    // rustix takes negative numbers for a mistake of the program's.
    let pid = if result > 0 { Pid::from_raw(result as i32) } else { None };
    pid.ok_or_else(io::Error::last_os_error)
}

/// A copy of the store's mount, attached nowhere, with its ids shown through `user_namespace`.
fn idmapped_mount(store: &Path, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let copy = mount::clone_mount(mount::open_dir(store)?, "", false)?;
    let attributes = MountAttr { idmap: Some(user_namespace), ..MountAttr::default() };
    mount::mount_setattr(copy, attributes)
}

/// Directories for an overlay on the store's file system, removed again when dropped.
struct Layers {
    path: PathBuf,
    directory: OwnedFd,
}

impl Layers {
    fn make(store: &Path) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = store.join(format!(".forkyard-probe-{}-{number}", std::process::id()));
        rustix::fs::mkdir(&path, FileMode::RWXU)?;
        let layers = mount::open_dir(&path).map(|directory| Self { path: path.clone(), directory });
        let layers = layers.inspect_err(|_| drop(std::fs::remove_dir(&path)))?;
        for name in ["l", "u", "w"] {
            mkdirat(&layers.directory, name, FileMode::RWXU)?;
        }
        Ok(layers)
    }
}

impl Drop for Layers {
    /// The kernel leaves a mark of the volatile overlay in the work directory, in directories that
    /// nobody may look into; their owner may change that.
    fn drop(&mut self) {
        for name in ["w/work", "w/work/incompat", "w/work/incompat/volatile"] {
            let _ = rustix::fs::chmod(self.path.join(name), FileMode::RWXU);
        }
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Turns what came of trying into findings.
pub(super) fn report(found: &mut Findings, outcome: &Outcome, host: &Host) {
    let answers = match &outcome.answers {
        Ok(answers) => answers,
        Err(error) => {
            for feature in TRIED.into_iter().chain([Feature::IdmappedMount]) {
                found.unknown(feature, format!("could not be tried: {error}"));
            }
            return;
        }
    };
    let answer = |feature| {
        let at = TRIED.iter().position(|tried| *tried == feature);
        at.and_then(|at| answers.get(at)).copied().unwrap_or(NOT_TRIED)
    };
    for (feature, errno) in TRIED.into_iter().zip(answers.iter().copied()) {
        match errno {
            0 => found.present(feature, "works"),
            NOT_TRIED => found.unknown(feature, untried(feature, outcome, host)),
            errno => {
                let error = io::Error::from_raw_os_error(errno).to_string();
                found.add(feature, Presence::Absent, error, remedy(feature, host));
            }
        }
    }
    let made = answer(Feature::UserNamespace) == 0;
    if made && answer(Feature::MountNamespace) == libc::EPERM {
        let detail = "can be made, but gives no capabilities";
        found.absent(Feature::UserNamespace, detail, Some(&allow_namespaces()));
    }
    match &outcome.idmapped {
        Some(Ok(())) => found.present(Feature::IdmappedMount, "works"),
        Some(Err(error)) => {
            let remedy = match host.mode {
                Mode::Root => "keep the store on ext4, xfs, btrfs or tmpfs",
                _ => "run the server as root",
            };
            found.absent(Feature::IdmappedMount, error.to_string(), Some(remedy));
        }
        None => found.unknown(Feature::IdmappedMount, "needs a user namespace"),
    }
}

fn untried(feature: Feature, outcome: &Outcome, host: &Host) -> String {
    match (feature, &outcome.layers) {
        (Feature::CloneIntoCgroup, _) if host.cgroups.v2.is_none() => {
            "no version 2 hierarchy".to_owned()
        }
        (Feature::OverlayOnStore, Some(error)) => format!("could not be tried: {error}"),
        _ => "needs a user namespace".to_owned(),
    }
}

fn remedy(feature: Feature, host: &Host) -> Option<String> {
    let text = match feature {
        Feature::UserNamespace => return Some(allow_namespaces()),
        Feature::CloneIntoCgroup if host.mode != Mode::Root => {
            "start it in a delegated group: systemd-run --user --scope -p Delegate=yes ..."
        }
        Feature::ProcMount => {
            "in a container, unmask /proc: --security-opt systempaths=unconfined (Docker)"
        }
        Feature::Overlay => "modprobe overlay",
        Feature::OverlayOnStore => "point XDG_DATA_HOME to ext4, xfs, btrfs or tmpfs",
        _ => return None,
    };
    Some(text.to_owned())
}

/// What stands in the way of user namespaces here, as the command that moves it.
fn allow_namespaces() -> String {
    let zero = |path| read_number(path) == Some(0);
    if zero("/proc/sys/user/max_user_namespaces") {
        "sysctl -w user.max_user_namespaces=65536"
    } else if zero("/proc/sys/kernel/unprivileged_userns_clone") {
        "sysctl -w kernel.unprivileged_userns_clone=1"
    } else if read_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for \
         forkyard with `userns,` (docs/host-setup.md)"
    } else {
        "in a container, allow it: --security-opt seccomp=unconfined --security-opt \
         apparmor=unconfined (Docker)"
    }
    .to_owned()
}
