//! Which part of the host's `/etc` a sandbox may see.
//!
//! An allow-list, since anything may be put into `/etc`: what is not named here stays out. That
//! goes for shadow, ssh, machine-id, sudoers, cloud and container configuration and for files
//! that can hold tokens (gitconfig, npmrc, pip.conf); hosts, hostname and resolv.conf are made
//! for each sandbox. Of what is named, a file that not everybody may read or that holds a private
//! key stays out as well.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{HostError, accounts, failed};

/// Files and trees that are copied. A `*` at the end stands for any ending.
const ALLOWED: [&str; 47] = [
    // Dynamic linker: without its cache and paths, libraries outside /usr/lib are not found.
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    // Debian's alternatives: half of the commands in /usr/bin are links to here.
    "alternatives",
    // Public certificates, for TLS clients; keys are in directories that are not named.
    "ssl/certs",
    "ssl/cert.pem",
    "ssl/openssl.cnf",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/tls/openssl.cnf",
    "pki/ca-trust/extracted",
    "pki/java/cacerts",
    "crypto-policies/back-ends",
    "crypto-policies/config",
    "ca-certificates*",
    // Time and language.
    "localtime",
    "timezone",
    "locale.alias",
    "locale.conf",
    "locale.gen",
    // Which system this is; installers ask.
    "os-release",
    "debian_version",
    "lsb-release",
    "alpine-release",
    "arch-release",
    "fedora-release",
    "redhat-release",
    "system-release",
    // Terminals.
    "terminfo",
    "inputrc",
    "fonts",
    // Runtimes that keep their configuration here.
    "python2*",
    "python3*",
    "perl",
    "java*",
    "ghostscript",
    // Tables that libraries read.
    "mime.types",
    "protocols",
    "services",
    "rpc",
    "ethertypes",
    "networks",
    "magic",
    "magic.mime",
    "shells",
    "login.defs",
    "gai.conf",
];

/// Files that are the same in every sandbox.
const MADE: [(&str, &str); 3] =
    [("etc/nsswitch.conf", NSSWITCH), ("etc/profile", PROFILE), ("etc/bash.bashrc", BASHRC)];

/// No directory services: their sockets are not in the sandbox, and asking them takes time.
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n\
    networks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n";

const PROFILE: &str = "\
if [ \"$(id -u)\" = 0 ]; then
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
else
  PATH=/usr/local/bin:/usr/bin:/bin
fi
export PATH
if [ -n \"${BASH-}\" ] && [ \"$BASH\" != /bin/sh ] && [ -r /etc/bash.bashrc ]; then
  . /etc/bash.bashrc
fi
";

const BASHRC: &str = "\
[ -z \"$PS1\" ] && return
shopt -s checkwinsize
PS1='\\u@\\h:\\w\\$ '
";

/// Largest file copied, in bytes: certificate bundles of many authorities stay below 1 MiB.
const MAX_FILE: u64 = 4 << 20;

/// Most entries below `/etc`; a large set of certificates with its links has 1,000.
const MAX_ITEMS: usize = 20_000;

/// Deepest nesting below an allowed name.
const MAX_DEPTH: usize = 8;

/// An entry of the skeleton.
#[derive(Debug)]
pub(super) struct Item {
    /// Path from the root, without a leading slash.
    path: String,
    mode: u32,
    mtime: u64,
    user: bool,
    kind: ItemKind,
}

#[derive(Debug)]
enum ItemKind {
    Directory,
    Link(Vec<u8>),
    Made(String),
    /// The file of the same path on the host.
    Copy,
}

impl Item {
    pub(super) fn directory(path: &str, mode: u32) -> Self {
        Self { path: path.to_owned(), mode, mtime: 0, user: false, kind: ItemKind::Directory }
    }

    pub(super) fn link(path: &str, target: &[u8]) -> Self {
        let kind = ItemKind::Link(target.to_vec());
        Self { path: path.to_owned(), mode: 0o777, mtime: 0, user: false, kind }
    }

    fn made(path: &str, text: String) -> Self {
        let kind = ItemKind::Made(text);
        Self { path: path.to_owned(), mode: 0o644, mtime: 0, user: false, kind }
    }

    /// Gives it to the account `user`.
    pub(super) fn owned_by_user(self) -> Self {
        Self { user: true, ..self }
    }

    /// What of it does not need the host's file.
    pub(super) fn header(&self) -> impl std::fmt::Debug + '_ {
        self
    }

    /// The file of the host that it is copied from.
    pub(super) fn source(&self, root: &Path) -> Option<PathBuf> {
        matches!(self.kind, ItemKind::Copy).then(|| root.join(&self.path))
    }

    /// Writes it to an archive. A file with a private key in it is left out.
    pub(super) fn append(
        &self,
        root: &Path,
        archive: &mut tar::Builder<impl Write>,
    ) -> Result<(), HostError> {
        let path = if self.path.is_empty() { "./" } else { &self.path };
        let mut header = tar::Header::new_gnu();
        header.set_mode(self.mode);
        header.set_mtime(self.mtime);
        let id = if self.user { 1000 } else { 0 };
        header.set_uid(id);
        header.set_gid(id);
        header.set_size(0);
        let fail = failed("write", Path::new(path));
        match &self.kind {
            ItemKind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, path, io::empty()).map_err(fail)
            }
            ItemKind::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                let target = Path::new(std::ffi::OsStr::from_bytes(target));
                archive.append_link(&mut header, path, target).map_err(fail)
            }
            ItemKind::Made(text) => {
                header.set_size(text.len() as u64);
                archive.append_data(&mut header, path, text.as_bytes()).map_err(fail)
            }
            ItemKind::Copy => {
                let source = root.join(&self.path);
                let bytes = fs::read(&source).map_err(failed("read", &source))?;
                if holds_private_key(&bytes) {
                    return Ok(());
                }
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, path, bytes.as_slice()).map_err(fail)
            }
        }
    }
}

/// All that goes below `/etc`, sorted as it is found.
pub(super) fn items(root: &Path) -> Result<Vec<Item>, HostError> {
    let etc = root.join("etc");
    let mut items = Vec::new();
    let read = |name: &str| fs::read_to_string(etc.join(name)).unwrap_or_default();
    let bash = root.join("bin/bash").exists() || root.join("usr/bin/bash").exists();
    let shell = if bash { "/bin/bash" } else { "/bin/sh" };
    items.push(Item::made("etc/passwd", accounts::passwd(&read("passwd"), shell)));
    items.push(Item::made("etc/group", accounts::group(&read("group"))));
    items.extend(MADE.iter().map(|(path, text)| Item::made(path, (*text).to_owned())));
    for pattern in ALLOWED {
        for name in matching(&etc, pattern)? {
            if let Some((parent, _)) = name.rsplit_once('/') {
                let path = format!("etc/{parent}");
                if !items.iter().any(|item| item.path == path) {
                    items.push(Item::directory(&path, 0o755));
                }
            }
            collect(root, &format!("etc/{name}"), 0, &mut items)?;
        }
    }
    Ok(items)
}

/// The names below `/etc` that a pattern stands for.
fn matching(etc: &Path, pattern: &str) -> Result<Vec<String>, HostError> {
    let Some(start) = pattern.strip_suffix('*') else { return Ok(vec![pattern.to_owned()]) };
    let mut names: Vec<String> = match fs::read_dir(etc) {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(start))
            .collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(failed("readdir", etc)(e)),
    };
    names.sort();
    Ok(names)
}

/// Adds a file, a link or a whole tree, as far as everybody may read it. What vanishes meanwhile
/// is not there.
fn collect(root: &Path, path: &str, depth: usize, items: &mut Vec<Item>) -> Result<(), HostError> {
    let full = root.join(path);
    let Ok(meta) = fs::symlink_metadata(&full) else { return Ok(()) };
    if items.len() >= MAX_ITEMS || depth > MAX_DEPTH {
        return Ok(());
    }
    let mode = meta.permissions().mode() & 0o755;
    let mtime = u64::try_from(meta.mtime()).unwrap_or_default();
    let item = |kind| Item { path: path.to_owned(), mode, mtime, user: false, kind };
    if meta.is_symlink() {
        if let Ok(target) = fs::read_link(&full) {
            items.push(item(ItemKind::Link(target.as_os_str().as_bytes().to_vec())));
        }
    } else if meta.is_dir() {
        // Not for everybody: not for sandboxes either.
        if mode & 0o005 != 0o005 {
            return Ok(());
        }
        items.push(item(ItemKind::Directory));
        let entries = fs::read_dir(&full).map_err(failed("readdir", &full))?;
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        for name in names {
            collect(root, &format!("{path}/{name}"), depth + 1, items)?;
        }
    } else if meta.is_file() && mode & 0o004 != 0 && meta.len() <= MAX_FILE {
        // Readable to everybody, but perhaps not to us: a security module may have its say.
        if File::open(&full).is_ok() {
            items.push(item(ItemKind::Copy));
        }
    }
    Ok(())
}

/// Whether a file looks like a key in PEM form (RFC 7468).
fn holds_private_key(bytes: &[u8]) -> bool {
    let mark = b"PRIVATE KEY-----";
    bytes.windows(mark.len()).any(|window| window == mark)
}
