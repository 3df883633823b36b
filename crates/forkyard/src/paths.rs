//! Where the server listens and what it keeps: the same answer for client and server.
//!
//! | | root | others |
//! | --- | --- | --- |
//! | store | `/var/lib/forkyard` | `$XDG_DATA_HOME/forkyard`, else `~/.local/share/forkyard` |
//! | socket | `/run/forkyard/server.sock` | `$XDG_RUNTIME_DIR/forkyard/server.sock`, else `/tmp/forkyard-UID/server.sock` |
//!
//! A store that is named has its socket inside, unless that is named too: two stores never share
//! a server.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Longest path a Unix socket can be bound to, unix(7).
const LONGEST_SOCKET: usize = 107;

/// Which server is meant.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct PathOptions {
    /// The server's socket
    #[arg(
        long,
        global = true,
        env = "FORKYARD_SOCKET",
        hide_env_values = true,
        value_name = "PATH"
    )]
    pub(crate) socket: Option<PathBuf>,
    /// The directory the server keeps everything in
    #[arg(long, global = true, env = "FORKYARD_STORE", hide_env_values = true, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
}

/// What the answer depends on, beside the options.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) uid: u32,
    pub(crate) home: Option<PathBuf>,
    pub(crate) data_home: Option<PathBuf>,
    pub(crate) runtime_dir: Option<PathBuf>,
}

/// Absolute paths of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) socket: PathBuf,
    pub(crate) store: PathBuf,
    /// Whether the socket's directory is one that anybody could have made.
    shared_tmp: bool,
}

impl Surroundings {
    /// Those of this process. Relative paths in XDG's variables are ignored, as XDG has it.
    pub(crate) fn of_process() -> Self {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        Self {
            uid: rustix::process::getuid().as_raw(),
            home: absolute("HOME"),
            data_home: absolute("XDG_DATA_HOME"),
            runtime_dir: absolute("XDG_RUNTIME_DIR"),
        }
    }

    fn store(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(PathBuf::from("/var/lib/forkyard"));
        }
        let data = self.data_home.clone();
        let data = data.or_else(|| self.home.as_ref().map(|home| home.join(".local/share")));
        data.map(|data| data.join("forkyard"))
    }
}

impl Paths {
    /// The paths that `options` mean in `around`.
    pub(crate) fn resolve(options: &PathOptions, around: &Surroundings) -> Result<Self, Error> {
        let default_store = around.store();
        let store = match &options.store {
            Some(path) => absolute(path)?,
            None => default_store.clone().ok_or_else(|| Error::Usage {
                what: "find the store: HOME is not set".to_owned(),
                hint: Some("name it: `--store DIR` or FORKYARD_STORE".to_owned()),
            })?,
        };
        let mut shared_tmp = false;
        let socket = if let Some(path) = &options.socket {
            absolute(path)?
        } else if default_store.as_ref() != Some(&store) {
            store.join("server.sock")
        } else if around.uid == 0 {
            PathBuf::from("/run/forkyard/server.sock")
        } else if let Some(runtime) = &around.runtime_dir {
            runtime.join("forkyard/server.sock")
        } else {
            shared_tmp = true;
            PathBuf::from(format!("/tmp/forkyard-{}/server.sock", around.uid))
        };
        if socket.as_os_str().len() > LONGEST_SOCKET {
            return Err(Error::Usage {
                what: format!(
                    "{}: longer than the {LONGEST_SOCKET} bytes of a socket's path",
                    socket.display()
                ),
                hint: Some("name a shorter one: `--socket PATH` or FORKYARD_SOCKET".to_owned()),
            });
        }
        Ok(Self { socket, store, shared_tmp })
    }

    /// The server's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.store.join("server.log")
    }

    /// Refuses a socket that somebody else may have put where ours belongs.
    pub(crate) fn check_socket(&self) -> Result<(), Error> {
        match self.socket.parent() {
            Some(directory) if self.shared_tmp => private_directory(directory),
            _ => Ok(()),
        }
    }

    /// Makes the directories of store and socket, for their owner alone.
    pub(crate) fn make_directories(&self) -> Result<(), Error> {
        make(&self.store)?;
        match self.socket.parent() {
            Some(directory) if self.shared_tmp => private_directory(directory),
            Some(directory) => make(directory),
            None => Ok(()),
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|e| Error::io(format!("resolve {}", path.display()), e))
}

fn make(directory: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(directory)
        .map_err(|e| Error::io(format!("mkdir {}", directory.display()), e))
}

/// Makes `directory` if need be; in the end it is ours, no link, and closed to others.
fn private_directory(directory: &Path) -> Result<(), Error> {
    let tried = |what: &str| format!("{what} {}", directory.display());
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io(tried("mkdir"), error)),
    }
    let found = fs::symlink_metadata(directory).map_err(|e| Error::io(tried("lstat"), e))?;
    let ours = found.uid() == rustix::process::getuid().as_raw();
    let others = found.mode() & 0o077;
    if found.is_dir() && ours && others == 0 {
        return Ok(());
    }
    Err(Error::Usage {
        what: format!("{}: not a directory of mode 0700 that is ours", directory.display()),
        hint: Some("set XDG_RUNTIME_DIR, or name a socket: FORKYARD_SOCKET".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Surroundings {
        Surroundings { uid: 1000, home: Some("/home/u".into()), ..Surroundings::default() }
    }

    fn resolved(options: &PathOptions, around: &Surroundings) -> (String, String) {
        let paths = Paths::resolve(options, around).unwrap();
        (paths.socket.display().to_string(), paths.store.display().to_string())
    }

    #[test]
    fn root_has_the_system_directories() {
        let root = Surroundings { uid: 0, runtime_dir: Some("/run/user/0".into()), ..user() };
        let (socket, store) = resolved(&PathOptions::default(), &root);
        assert_eq!(socket, "/run/forkyard/server.sock");
        assert_eq!(store, "/var/lib/forkyard");
    }

    #[test]
    fn others_have_those_of_xdg_with_fallbacks() {
        let (socket, store) = resolved(&PathOptions::default(), &user());
        assert_eq!(socket, "/tmp/forkyard-1000/server.sock");
        assert_eq!(store, "/home/u/.local/share/forkyard");
        let around = Surroundings {
            runtime_dir: Some("/run/user/1000".into()),
            data_home: Some("/data".into()),
            ..user()
        };
        let (socket, store) = resolved(&PathOptions::default(), &around);
        assert_eq!(socket, "/run/user/1000/forkyard/server.sock");
        assert_eq!(store, "/data/forkyard");
    }

    #[test]
    fn a_named_store_has_a_socket_of_its_own() {
        let options = PathOptions { store: Some("/s".into()), socket: None };
        assert_eq!(resolved(&options, &user()).0, "/s/server.sock");
        let options =
            PathOptions { store: Some("/home/u/.local/share/forkyard".into()), ..options };
        assert_eq!(resolved(&options, &user()).0, "/tmp/forkyard-1000/server.sock");
        let options = PathOptions { socket: Some("/x".into()), ..options };
        assert_eq!(resolved(&options, &user()).0, "/x");
    }

    #[test]
    fn a_socket_path_that_cannot_be_bound_is_refused() {
        let options = PathOptions { store: Some("/".repeat(120).into()), socket: None };
        let long = PathOptions { store: Some(format!("/{}", "s".repeat(120)).into()), ..options };
        let error = Paths::resolve(&long, &user()).unwrap_err();
        assert!(error.hint().unwrap().contains("--socket"));
    }

    #[test]
    fn without_a_home_a_store_must_be_named() {
        let around = Surroundings { home: None, ..user() };
        assert!(Paths::resolve(&PathOptions::default(), &around).is_err());
    }

    #[test]
    fn a_directory_open_to_others_is_not_private() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("d");
        private_directory(&directory).unwrap();
        private_directory(&directory).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        assert!(private_directory(&link).is_err());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o770);
        fs::set_permissions(&directory, mode).unwrap();
        assert!(private_directory(&directory).is_err());
    }
}
