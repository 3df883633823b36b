//! The floor: the system calls that no sandbox can be made without, and nothing else.
//!
//! A process of its own with one thread, started as a hidden command, makes as few steps as give a
//! shell in namespaces of its own on an overlay of its own, as many overlays as the image has:
//!
//! ```text
//! parent                                   child
//!   | mkdir upper, work; chown               |
//!   | pipe, clone3 (user, mount, pid, net,   |
//!   |   ipc, uts)                            |
//!   | write uid_map, gid_map, then a byte -> | setresuid, unshare (cgroup)
//!   |                                        | mount overlay, pivot_root
//!   | read "ready" <- - - - - - - - - - - -  | execve /bin/sh -c "echo ready"
//! ```
//!
//! No /proc, /dev and /sys, no idmapped layers, no limits, no confinement, no record of it, no
//! client: what forkyard adds to this is the price of those.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use forkyard_sys::mount;
use forkyard_sys::process::{self, CloneFlags, SingleThreaded};
use rustix::mount::MountFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Uid};

use super::options::FloorOptions;
use super::samples::milliseconds;
use crate::error::Error;
use crate::render;

/// First host id of its sandboxes where the server's user is root: any that nobody has.
const BASE: u32 = 0x6fff_0000;

/// The host's directories that are lower layers or links in a root of the host's own files.
const HOST_TREES: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Where the root is mounted until it is the root: a directory that every host has.
const ANCHOR: &str = "/dev";

/// The probe's process, as the bench talks to it.
#[derive(Debug)]
pub(super) struct Probe {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    /// Starts it; `image` is what the bench's sandboxes are made of.
    pub(super) fn start(directory: &Path, image: Option<&str>) -> Result<Self, Error> {
        let directory = directory.join("floor");
        let mut command = Command::new("/proc/self/exe");
        command.arg0("forkyard").arg("bench-floor").arg("--directory").arg(directory);
        // An archive is no directory: the host's own files stand for it.
        if let Some(root) = image.filter(|image| Path::new(image).is_dir()) {
            command.arg("--root").arg(root);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::io("start the floor probe", e))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(requests), Some(answers)) => {
                Ok(Self { child, requests: Some(requests), answers: BufReader::new(answers) })
            }
            _ => Err(Error::Protocol("the floor probe has no pipes".to_owned())),
        }
    }

    /// Has one sandbox made; the milliseconds until its shell's first word.
    pub(super) fn round(&mut self) -> Result<f64, Error> {
        let failed = |e| Error::io("talk to the floor probe", e);
        if let Some(requests) = &mut self.requests {
            writeln!(requests).map_err(failed)?;
        }
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(failed)?;
        line.trim()
            .parse()
            .map_err(|_| Error::Protocol("the floor probe failed; see above".to_owned()))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// `forkyard bench-floor`: makes a sandbox for each line of stdin, and answers with its time.
pub(crate) fn serve(options: &FloorOptions) -> Result<(), Error> {
    let proof = SingleThreaded::prove().map_err(|e| Error::io("count the probe's threads", e))?;
    let floor = Floor::prepare(&proof, options)?;
    let mut line = String::new();
    for number in 0.. {
        line.clear();
        let read = io::stdin().lock().read_line(&mut line);
        if read.map_err(|e| Error::io("read a request", e))? == 0 {
            break;
        }
        let time = floor.round(&proof, number)?;
        render::line(&time.to_string())?;
    }
    Ok(())
}

/// What all rounds share.
struct Floor {
    directory: PathBuf,
    /// Each overlay's lower directory and where it is mounted below the root.
    overlays: Vec<(PathBuf, PathBuf)>,
    root: bool,
}

impl Floor {
    fn prepare(proof: &SingleThreaded, options: &FloorOptions) -> Result<Self, Error> {
        let directory = options.directory.clone();
        let tried = |what: String| move |e: io::Error| Error::io(what, e);
        make(&directory)?;
        let root = rustix::process::geteuid().is_root();
        if root {
            // So that nothing that is mounted here is told to any other namespace.
            process::unshare(proof, CloneFlags::MOUNT).map_err(tried("unshare mounts".into()))?;
            mount::make_private().map_err(tried("make mounts private".into()))?;
        }
        // The overlay's own error would not say which directory is missing.
        let found = |path: &Path| {
            path.canonicalize().map_err(tried(format!("look for {}", path.display())))
        };
        let mut overlays = Vec::new();
        if let Some(lower) = &options.root {
            overlays.push((found(lower)?, PathBuf::new()));
        } else {
            let skeleton = directory.join("skeleton");
            make(&skeleton)?;
            overlays.push((found(&skeleton)?, PathBuf::new()));
            for name in HOST_TREES {
                let (host, place) = (Path::new("/").join(name), skeleton.join(name));
                if let Ok(target) = fs::read_link(&host) {
                    symlink(target, place).map_err(tried(format!("link {name}")))?;
                } else if host.is_dir() {
                    make(&place)?;
                    overlays.push((host, PathBuf::from(name)));
                }
            }
        }
        Ok(Self { directory, overlays, root })
    }

    /// Makes a sandbox; milliseconds until its shell's first word.
    fn round(&self, proof: &SingleThreaded, number: u32) -> Result<f64, Error> {
        let tried = |what: &'static str| move |e: io::Error| Error::io(what, e);
        let start = Instant::now();
        let uppers = self.make_uppers(number)?;
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (go, may_go) = pipe().map_err(tried("pipe2"))?;
        let (output, said) = pipe().map_err(tried("pipe2"))?;
        let namespaces = CloneFlags::USER
            .and(CloneFlags::MOUNT)
            .and(CloneFlags::PID)
            .and(CloneFlags::NET)
            .and(CloneFlags::IPC)
            .and(CloneFlags::UTS);
        let child = process::fork(proof, namespaces, None, |_| {
            let Err(error) = self.become_shell(&go, &said, &uppers);
            // Read by the parent in the place of the shell's word.
            let _ = rustix::io::write(&said, error.to_string().as_bytes());
            1
        })
        .map_err(tried("clone3"))?;
        drop((said, go));
        self.write_maps(child.pid).map_err(tried("write the id maps"))?;
        rustix::io::write(&may_go, b"1").map_err(|e| Error::io("let the child go", e.into()))?;
        let mut word = [0; 128];
        let mut output = File::from(output);
        let count = output.read(&mut word).map_err(tried("read the shell's word"))?;
        let time = milliseconds(start.elapsed());
        rustix::process::waitid(
            rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        )
        .map_err(|e| Error::io("wait for the shell", e.into()))?;
        match word.get(..count) {
            Some(b"ready\n") => Ok(time),
            said => {
                let said = String::from_utf8_lossy(said.unwrap_or_default()).into_owned();
                Err(Error::Protocol(format!("the floor probe's child failed: {said}")))
            }
        }
    }

    /// An upper and a work directory for each overlay.
    fn make_uppers(&self, number: u32) -> Result<Vec<PathBuf>, Error> {
        let mut all = Vec::with_capacity(self.overlays.len());
        for overlay in 0..self.overlays.len() {
            let path = self.directory.join(format!("{number}-{overlay}"));
            make(&path)?;
            for part in ["upper", "work"] {
                let part = path.join(part);
                make(&part)?;
                if self.root {
                    chown(&part, Some(BASE), Some(BASE))
                        .map_err(|e| Error::io(format!("chown {}", part.display()), e))?;
                }
            }
            all.push(path);
        }
        Ok(all)
    }

    fn write_maps(&self, child: rustix::process::Pid) -> io::Result<()> {
        let write = |file: &str, text: String| fs::write(format!("/proc/{child}/{file}"), text);
        if self.root {
            write("uid_map", format!("0 {BASE} 65536"))?;
            return write("gid_map", format!("0 {BASE} 65536"));
        }
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("0 {} 1", rustix::process::geteuid()))?;
        write("gid_map", format!("0 {} 1", rustix::process::getegid()))
    }

    /// In the child: from the clone to the shell.
    fn become_shell(
        &self,
        go: &OwnedFd,
        said: &OwnedFd,
        uppers: &[PathBuf],
    ) -> io::Result<std::convert::Infallible> {
        rustix::io::read(go, &mut [0; 1])?;
        // In this namespace, as an overlay takes nothing that is mounted in another; by the user of
        // the server, who alone may look into the store.
        let mut overlays = Vec::with_capacity(uppers.len());
        for ((lower, place), own) in self.overlays.iter().zip(uppers) {
            overlays.push((mount::open_dir(lower)?, place, mount::open_dir(own)?));
        }
        process::become_user(Uid::ROOT, Gid::ROOT, &[], self.root)?;
        process::unshare_cgroup()?;
        let mut root: Option<OwnedFd> = None;
        for (lower, place, own) in &overlays {
            let by_fd = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
            // By number, as paths with commas and colons are no options.
            let own = by_fd(own);
            let options = format!(
                "lowerdir={},upperdir={own}/upper,workdir={own}/work,userxattr,volatile",
                by_fd(lower)
            );
            let options = std::ffi::CString::new(options)?;
            let target = match &root {
                None => PathBuf::from(ANCHOR),
                Some(root) => Path::new(&by_fd(root)).join(place),
            };
            let flags = MountFlags::empty();
            rustix::mount::mount("overlay", &target, "overlay", flags, options.as_c_str())?;
            if root.is_none() {
                root = Some(mount::open_dir(ANCHOR)?);
            }
        }
        let root = root.ok_or(io::ErrorKind::NotFound)?;
        mount::pivot_into(&root)?.detach()?;
        process::place_fds(&[(said.as_fd(), 1)])?;
        let argv = [c"sh", c"-c", c"echo ready"].map(std::ffi::CStr::to_owned);
        Err(process::execve(c"/bin/sh", &argv, &[c"PATH=/usr/bin:/bin".to_owned()]))
    }
}

fn make(directory: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .mode(0o755)
        .create(directory)
        .map_err(|e| Error::io(format!("mkdir {}", directory.display()), e))
}
