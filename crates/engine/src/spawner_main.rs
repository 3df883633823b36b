//! The spawner's way from the start of the program to serving.

use std::io::ErrorKind::UnexpectedEof;
use std::os::fd::{AsFd, OwnedFd};

use forkyard_guest::proto::{Failure, encode};
use forkyard_guest::spawner;
use forkyard_sys::process::{self, CloneFlags, SingleThreaded};
use forkyard_sys::{channel, namespace};
use rustix::process::{Gid, Uid};

/// Serves as the spawner, on the socket that is standard input; gives its exit status.
///
/// `mode` is the word of a [`Mode`](crate::Mode); `files`, how many descriptors a command has at
/// first. Must be called before any thread is started.
pub fn spawner_main(mode: &str, files: &str) -> i32 {
    let Ok(files) = files.parse() else { return 1 };
    let Ok(socket) = process::inherited_fd(0) else { return 1 };
    // Away from 0, so that sandboxes start with /dev/null there.
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(&socket, 3) else { return 1 };
    match prepare(mode, &socket)
        .and_then(|()| be_ready(mode, &socket))
        .and_then(|()| spawner::run(&socket, files, crate::jobs::run))
    {
        Ok(()) => 0,
        Err(failure) => {
            if let Ok(bytes) = encode(&failure) {
                let _ = channel::send(&socket, &bytes, &[]);
            }
            1
        }
    }
}

fn prepare(mode: &str, socket: &OwnedFd) -> Result<(), Failure> {
    let proof =
        SingleThreaded::prove().map_err(|e| Failure::new("counting the spawner's threads", &e))?;
    standard_streams()?;
    match mode {
        "subids" | "single" if let Some(namespace) = given_namespace(socket)? => {
            namespace::enter_user(&proof, namespace)
                .map_err(|e| Failure::new("entering an earlier user namespace", &e))?;
            process::become_user(Uid::ROOT, Gid::ROOT, &[], mode == "subids")
                .map_err(|e| Failure::new("taking on root's ids", &e))
        }
        "subids" => {
            process::unshare(&proof, CloneFlags::USER)
                .map_err(|e| Failure::new("unshare of the user namespace", &e))?;
            say(socket, b"ready")?;
            channel::receive(socket).map_err(|e| Failure::new("waiting for ids", &e))?;
            process::become_user(Uid::ROOT, Gid::ROOT, &[], true)
                .map_err(|e| Failure::new("taking on root's ids", &e))
        }
        "single" => spawner::become_root_of_one_id(&proof),
        _ => Ok(()),
    }
}

/// The user namespace that the server has for this spawner, if any: its first message.
fn given_namespace(socket: &OwnedFd) -> Result<Option<OwnedFd>, Failure> {
    let message = channel::receive(socket)
        .map_err(|e| Failure::new("waiting for a user namespace", &e))?
        .ok_or_else(|| Failure::new("waiting for a user namespace", &UnexpectedEof.into()))?;
    Ok(message.fds.into_iter().next())
}

/// Says so; without root, with the user namespace that it is in.
fn be_ready(mode: &str, socket: &OwnedFd) -> Result<(), Failure> {
    if mode == "root" {
        return say(socket, b"ready");
    }
    let own = namespace::own_user()
        .map_err(|e| Failure::new("opening the spawner's user namespace", &e))?;
    channel::send(socket, b"ready", &[own.as_fd()])
        .map_err(|e| Failure::new("answering the server", &e))
}

/// Gives this process, and so every sandbox's init, /dev/null as its standard streams.
fn standard_streams() -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new("opening /dev/null", &e);
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
        .map_err(|e| failed(e.into()))?;
    let fd = null.as_fd();
    process::place_fds(&[(fd, 0), (fd, 1), (fd, 2)]).map_err(failed)
}

fn say(socket: &OwnedFd, word: &[u8]) -> Result<(), Failure> {
    channel::send(socket, word, &[]).map_err(|e| Failure::new("answering the server", &e))
}
