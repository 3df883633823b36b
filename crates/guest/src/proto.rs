//! What server, spawner and init say to each other: postcard in SEQPACKET messages.
//!
//! Descriptors travel beside a message, in the order that its type's documentation gives.

mod init;
mod saved;
mod taken;

use serde::{Deserialize, Serialize};

pub use init::{
    CommandState, Ended, InitBody, InitError, InitMessage, InitOk, InitRequest, Start, StartError,
    Streams,
};
pub use saved::{Label, Layer, Paused, RestoreError, Restored, Source, WriteReport};
pub use taken::{
    CommandRecord, HoldRequest, Records, SEALED, SessionRecord, StreamRecord, TakeError,
    TakeReport, TerminalRecord,
};

/// Which ids a sandbox has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ids {
    /// 65,536 ids from `base` up on the host. Needs root; files are shown through idmapped mounts.
    Range {
        /// The host id that is root inside.
        base: u32,
    },
    /// The same 65,536 ids as the spawner's own user namespace has.
    Outer,
    /// Root only, which is the spawner's user.
    Single,
}

/// Where an init is put before it is told what to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Directory of its group in the unified hierarchy, absolute.
    pub cgroup2: Option<String>,
    /// Directories of its groups in the v1 hierarchies, absolute.
    pub cgroup1: Vec<String>,
    /// Its ids.
    pub ids: Ids,
}

/// A host directory or file that a sandbox's mounts are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSource {
    /// Absolute path on the host.
    pub path: String,
    /// Whether the sandbox may only read it.
    pub read_only: bool,
    /// Whether mounts below it are shown too.
    pub recursive: bool,
}

/// Server to spawner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SpawnerRequest {
    /// Make a sandbox. With it: init's end of its control channel, then the socket that it listens
    /// at for later servers.
    Spawn {
        /// Comes back in the reply.
        seq: u64,
        /// Where it is made, unless one was prepared there.
        place: Place,
        /// What its root is made of, as [`Setup`] refers to it by index.
        sources: Vec<MountSource>,
        /// The rest, for init.
        setup: Box<Setup>,
    },
    /// Prepare an init for the sandbox that will be asked for at this place, when there is
    /// nothing else to do. One at a time: it takes the place of the one before.
    Prepare {
        /// Where.
        place: Place,
    },
    /// Have a child of the spawner serve on the socket that comes with this, as a template: it can
    /// take the picture of a sandbox, and makes sandboxes that go on from there.
    Template {
        /// As [`Place::cgroup2`]: the group that its memory counts to.
        cgroup2: Option<String>,
        /// As [`Place::cgroup1`].
        cgroup1: Vec<String>,
    },
    /// To a template: take the picture. With it: a socket to the sandbox's init, which holds
    /// still when it is told so there.
    Take {
        /// Comes back in the reply.
        seq: u64,
        /// Whose.
        source: Source,
        /// How many clones are made from it, the last of which has the copies of the files
        /// themselves. Then copies of memory are made to be used by the next picture, too. None
        /// where it is written down.
        clones: Option<u32>,
    },
    /// To a template: let go of all but copies of memory that the next picture can use. It must be
    /// of the same sandbox; no sandbox is made any more from the one before.
    Keep,
    /// To a template: copy what the sandbox wrote, without its processes. With it: as with
    /// [`Self::Take`].
    TakeFiles {
        /// Comes back in the reply.
        seq: u64,
        /// Whose.
        source: Source,
    },
    /// To a template: write what it has taken to disk.
    Persist {
        /// Comes back in the reply.
        seq: u64,
        /// The snapshot's directory, absolute; what was taken of files is in it.
        dir: String,
        /// What it says of itself.
        label: Label,
    },
    /// To a template: take the picture and write it to disk while all stays stopped, until
    /// something else comes or the server is gone. With it: as with [`Self::Take`].
    Pause {
        /// Comes back in the reply.
        seq: u64,
        /// Whose.
        source: Source,
        /// The snapshot's directory.
        dir: String,
        /// What it says of itself.
        label: Label,
    },
    /// To a template: read a snapshot, and make sandboxes that go on from there.
    Restore {
        /// Comes back in the reply.
        seq: u64,
        /// The snapshot's directory.
        dir: String,
        /// See [`Label::ids`].
        ids: String,
        /// What it told of layers when it was read before.
        known: Vec<Layer>,
        /// New sandboxes may share layers: the snapshot stays.
        share: bool,
    },
    /// Run a job in a child of the spawner, with its rights over the store. With it: the socket
    /// that the job's answer goes to, then the job's own descriptors.
    Job {
        /// Which job.
        name: String,
        /// Its arguments, in a form of its own.
        payload: Vec<u8>,
    },
}

/// Spawner to server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum SpawnerReply {
    /// The sandbox's init runs. With it: its pidfd.
    Spawned {
        /// The request's.
        seq: u64,
        /// Its process id on the host.
        pid: u32,
    },
    /// It failed.
    Failed {
        /// The request's.
        seq: u64,
        /// What was tried, and what the kernel said.
        failure: Failure,
    },
    /// A template has the picture.
    Taken {
        /// The request's.
        seq: u64,
        /// How the sandbox was set up.
        setup: Box<Setup>,
        /// How it went.
        report: TakeReport,
    },
    /// A template could not take it.
    NotTaken {
        /// The request's.
        seq: u64,
        /// Why not.
        why: TakeError,
    },
    /// A template has written it to disk.
    Persisted {
        /// The request's.
        seq: u64,
        /// How it went.
        report: WriteReport,
    },
    /// A template has written it to disk, and keeps the sandbox stopped.
    Paused {
        /// The request's.
        seq: u64,
        /// How it went.
        paused: Box<Paused>,
    },
    /// A template has read a snapshot.
    Restored {
        /// The request's.
        seq: u64,
        /// What there is.
        restored: Restored,
    },
    /// A template could not go on from a snapshot.
    NotRestored {
        /// The request's.
        seq: u64,
        /// Why not.
        why: RestoreError,
    },
}

/// Something that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {}", std::io::Error::from_raw_os_error(*errno))]
pub struct Failure {
    /// What was tried on what.
    pub what: String,
    /// The kernel's error number.
    pub errno: i32,
}

impl Failure {
    /// Says what was tried when `error` came.
    pub fn new(what: impl Into<String>, error: &std::io::Error) -> Self {
        // Errors that the standard library makes up have no number.
        Self { what: what.into(), errno: error.raw_os_error().unwrap_or(5) }
    }

    /// That what a snapshot needs of an image is not there any more.
    pub(crate) fn unfit(what: String) -> Self {
        Self { what, errno: rustix::io::Errno::STALE.raw_os_error() }
    }

    /// Whether a snapshot's image is another by now.
    pub fn is_unfit(&self) -> bool {
        self.errno == rustix::io::Errno::STALE.raw_os_error()
    }

    /// Whether the disk, or what the user may have of it, is full.
    pub fn is_full(&self) -> bool {
        [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT]
            .contains(&rustix::io::Errno::from_raw_os_error(self.errno))
    }
}

/// Name of the overlay of a host directory that is worked on.
pub const WORKSPACE: &str = "workspace";

/// One overlay of a sandbox's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Where it is mounted; `/` for the root itself.
    pub target: String,
    /// Its read-only layers, the topmost first, as indices into the sources.
    pub lowers: Vec<usize>,
    /// Layers of the sandbox's base above these, the topmost first; a reset leaves them out.
    #[serde(default)]
    pub base: Vec<usize>,
    /// Its name in a generation of the sandbox's directory: `GENERATION/NAME` is its upper,
    /// `GENERATION/NAME.work` beside it overlayfs's own.
    pub name: String,
}

/// A host directory or file shown in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Index into the sources.
    pub source: usize,
    /// Absolute path in the sandbox.
    pub target: String,
}

/// How init sets up a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Its id.
    #[serde(default)]
    pub id: String,
    /// How many forks lead to it from one that was made anew.
    #[serde(default)]
    pub forks: u32,
    /// Its host name.
    pub hostname: String,
    /// It stays in the host's network.
    pub host_network: bool,
    /// Its root and what else of it is an overlay of its own, the root first.
    pub overlays: Vec<Overlay>,
    /// Index of the source that is the sandbox's own directory, which holds the uppers.
    pub state: usize,
    /// Name of the generation of uppers below it, changed by each reset.
    pub generation: String,
    /// Index of the source that is the tree of device nodes.
    pub dev: usize,
    /// Host directories shown in it.
    pub volumes: Vec<VolumeMount>,
    /// Size of /tmp and of /dev/shm, in bytes.
    pub tmp_size: u64,
    /// Contents of /etc/resolv.conf, where it has a network to resolve in.
    pub resolv_conf: Option<Vec<u8>>,
    /// Mount a cgroup2 file system at /sys/fs/cgroup.
    pub cgroup2: bool,
    /// Restrict commands by Landlock.
    pub landlock: bool,
    /// Variables of every command, as `K=V`.
    pub env: Vec<String>,
    /// `USER[:GROUP]` of commands that name none.
    pub user: String,
    /// Working directory of commands that name none.
    pub workdir: String,
    /// Make the working directory where it is not there: an image names it, and not a person.
    pub make_workdir: bool,
    /// Start a session at once.
    pub session: bool,
    /// When it ends, in milliseconds since the epoch.
    pub deadline: Option<u64>,
}

/// A message that cannot be read; its sender is not one of ours.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(#[from] postcard::Error);

/// Writes a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Malformed> {
    Ok(postcard::to_stdvec(message)?)
}

/// Reads a message.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    Ok(postcard::from_bytes(bytes)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> InitRequest {
        let start = Start {
            argv: vec!["sh".to_owned(), "-c".to_owned(), "a\0b".to_owned()],
            shell: false,
            env: vec!["A=b".to_owned()],
            cwd: Some("/".to_owned()),
            user: None,
            tty: Some((24, 80)),
            stdin: true,
            detach: false,
            timeout_ms: Some(u64::MAX),
        };
        InitRequest { seq: 7, body: InitBody::Start(Box::new(start)) }
    }

    #[test]
    fn a_message_cut_short_is_malformed() {
        let whole = encode(&request()).unwrap();
        assert!(matches!(decode::<InitRequest>(&whole), Ok(InitRequest { seq: 7, .. })));
        for length in 0..whole.len() {
            assert!(decode::<InitRequest>(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_of_messages_panic(bytes: Vec<u8>) {
            let _ = decode::<SpawnerRequest>(&bytes);
            let _ = decode::<SpawnerReply>(&bytes);
            let _ = decode::<InitRequest>(&bytes);
            let _ = decode::<InitMessage>(&bytes);
        }

        #[test]
        fn no_change_of_a_message_makes_its_reader_panic(at: usize, byte: u8) {
            let mut bytes = encode(&request()).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(message) = decode::<InitRequest>(&bytes) {
                prop_assert!(encode(&message).is_ok());
            }
        }
    }
}
