//! Files between a sandbox and this machine, by the rules of `docker cp`.
//!
//! | SRC | DST is there, a directory | DST is there, a file | DST is not there |
//! | --- | --- | --- | --- |
//! | file | into it | replaced | made; refused where DST ends in a slash |
//! | directory | into it | refused | made, with SRC's contents |
//! | directory, with `/.` at its end | its contents into it | refused | the same |

mod extract;
mod local;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use forkyard_api::routes::{FileInfo, FileKind};
use futures_util::Stream;
use tokio::sync::{mpsc, oneshot};

use crate::args::CpOptions;
use crate::client::{Client, Url};
use crate::error::Error;
use crate::render;

/// Bytes handed from thread to connection at once.
const CHUNK: usize = 64 << 10;

/// Chunks on their way between a thread and the connection.
const AHEAD: usize = 4;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Local(PathBuf),
    Sandbox {
        id: String,
        path: Vec<u8>,
    },
    /// A tar archive on stdin or stdout.
    Archive,
}

/// `forkyard cp`
pub(super) async fn cp(client: &Client, options: &CpOptions) -> Result<(), Error> {
    match (Side::parse(&options.src)?, Side::parse(&options.dst)?) {
        (Side::Sandbox { id, path }, Side::Local(to)) => copy_out(client, &id, &path, &to).await,
        (Side::Local(from), Side::Sandbox { id, path }) => {
            copy_in(client, &from, options.follow_link, &id, &path).await
        }
        (Side::Sandbox { id, path }, Side::Archive) => archive_out(client, &id, &path).await,
        (Side::Archive, Side::Sandbox { id, path }) => {
            let (chunks, writer) = feed(|sender| send_all(io::stdin().lock(), sender))?;
            send(client, archive_url(&id, &path), chunks, writer).await
        }
        (Side::Sandbox { .. }, Side::Sandbox { .. }) => Err(Error::Usage {
            what: "cp: both sides are in sandboxes".to_owned(),
            hint: Some("pipe them: `forkyard cp A:/x - | forkyard cp - B:/`".to_owned()),
        }),
        _ => Err(Error::Usage {
            what: "cp: no side is in a sandbox".to_owned(),
            hint: Some("write one side as ID:PATH".to_owned()),
        }),
    }
}

impl Side {
    /// `ID:PATH`, `-`, or a path; one that has a colon needs a slash or dot before it.
    fn parse(text: &OsStr) -> Result<Self, Error> {
        let bytes = text.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Archive);
        }
        let colon = bytes.iter().position(|byte| *byte == b':');
        let (Some(colon), false) = (colon, bytes.starts_with(b"/") || bytes.starts_with(b"."))
        else {
            return Ok(Self::Local(PathBuf::from(text)));
        };
        let (id, path) = bytes.split_at(colon);
        let path = path.get(1..).unwrap_or_default();
        match std::str::from_utf8(id) {
            Ok(id) if !id.is_empty() && !path.is_empty() => {
                Ok(Self::Sandbox { id: id.to_owned(), path: path.to_owned() })
            }
            Ok(id) if !id.contains('/') => Err(Error::Usage {
                what: format!("cp: `{}` lacks an id or a path", text.to_string_lossy()),
                hint: Some("write ID:PATH, or ./ before a local path with a colon".to_owned()),
            }),
            _ => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

/// From a sandbox to this machine.
async fn copy_out(client: &Client, id: &str, from: &[u8], to: &Path) -> Result<(), Error> {
    let source = stat(client, id, from).await?.ok_or_else(|| Error::Usage {
        what: format!("cp: {id}:{} is not there", String::from_utf8_lossy(from)),
        hint: None,
    })?;
    let is_directory = source.kind == FileKind::Directory;
    let there = match fs::metadata(to) {
        Ok(found) => Some(found.is_dir()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(format!("stat {}", to.display()), error)),
    };
    let name = last_part(from);
    let (directory, name) = match place(is_directory, from, name, to.as_os_str().as_bytes(), there)?
    {
        Place::Into(name) => (to.to_owned(), name),
        Place::As => {
            // A link to a file: what it leads to is replaced.
            let to = if there.is_some() { fs::canonicalize(to) } else { std::path::absolute(to) };
            let to = to.map_err(|e| Error::io("resolve DST", e))?;
            let (parent, name) = (to.parent().unwrap_or(Path::new("/")), to.file_name());
            (parent.to_owned(), name.unwrap_or_default().as_bytes().to_vec())
        }
    };
    let mut archive = client.download(archive_url(id, from)).await?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (tell, outcome) = oneshot::channel();
    std::thread::Builder::new()
        .name("extract".to_owned())
        .spawn(move || tell.send(extract::extract(receiver, &directory, &name)))
        .map_err(|e| Error::io("start a thread", e))?;
    loop {
        let chunk = archive.chunk().await.transpose();
        let Some(chunk) = chunk else { break };
        let (broken, chunk) = match chunk {
            Ok(chunk) => (None, Ok(chunk)),
            Err(error) => (Some(error), Err(())),
        };
        // A thread that takes no more has failed, and tells why.
        let refused = sender.send(chunk).await.is_err();
        if let Some(error) = broken {
            return Err(error);
        }
        if refused {
            break;
        }
    }
    drop(sender);
    let notes = outcome.await.map_err(|_| Error::Protocol("the extraction ended".to_owned()))??;
    for note in notes {
        render::note(&format!("note: {note}"));
    }
    Ok(())
}

/// From this machine into a sandbox.
async fn copy_in(
    client: &Client,
    from: &Path,
    follow_link: bool,
    id: &str,
    to: &[u8],
) -> Result<(), Error> {
    let found = if follow_link { fs::metadata(from) } else { fs::symlink_metadata(from) };
    let found = found.map_err(|e| Error::io(format!("stat {}", from.display()), e))?;
    let mut there = stat(client, id, to).await?.map(|info| info.kind);
    if there == Some(FileKind::Symlink) {
        let behind = stat(client, id, &[to, b"/."].concat()).await;
        there = behind.ok().flatten().map(|info| info.kind).or(there);
    }
    let there = there.map(|kind| kind == FileKind::Directory);
    let source = from.as_os_str().as_bytes();
    let name = local::name(from)?;
    let (directory, name) = match place(found.is_dir(), source, name.as_bytes(), to, there)? {
        Place::Into(name) => (to.to_vec(), name),
        Place::As => split(to),
    };
    let from = if follow_link {
        fs::canonicalize(from).map_err(|e| Error::io(format!("stat {}", from.display()), e))?
    } else {
        from.to_owned()
    };
    let name = PathBuf::from(OsString::from_vec(name));
    let (chunks, writer) = feed(move |sender| local::archive(&from, &name, sender))?;
    send(client, archive_url(id, &directory), chunks, writer).await
}

/// Where something is put.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Into the directory DST, under this name; `.` for its contents alone.
    Into(Vec<u8>),
    /// As DST itself, in DST's parent.
    As,
}

/// The rules. `there` is whether DST is a directory, where it is there at all.
fn place(
    is_directory: bool,
    source: &[u8],
    name: &[u8],
    to: &[u8],
    there: Option<bool>,
) -> Result<Place, Error> {
    let refuse = |why: &str| {
        let to = String::from_utf8_lossy(to);
        Err(Error::Usage { what: format!("cp: {to}: {why}"), hint: None })
    };
    let contents = source.ends_with(b"/.") || source == b".";
    match there {
        Some(true) if is_directory && contents => Ok(Place::Into(b".".to_vec())),
        Some(true) => Ok(Place::Into(name.to_vec())),
        Some(false) if is_directory => refuse("a file, where a directory is to be copied"),
        Some(false) if to.ends_with(b"/") => refuse("not a directory"),
        None if !is_directory && to.ends_with(b"/") => refuse("no such directory"),
        _ => Ok(Place::As),
    }
}

/// The last part of a path that is a name; `.` where there is none.
fn last_part(path: &[u8]) -> &[u8] {
    let named = |part: &&[u8]| !part.is_empty() && *part != b".";
    match path.rsplit(|byte| *byte == b'/').find(named) {
        Some(b"..") | None => b".",
        Some(name) => name,
    }
}

/// The directory and the name of a path in a sandbox.
fn split(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let path = path.get(..end).unwrap_or_default();
    let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (&b"."[..], path),
    };
    (directory.to_vec(), name.to_vec())
}

async fn archive_out(client: &Client, id: &str, path: &[u8]) -> Result<(), Error> {
    if io::stdout().is_terminal() {
        return Err(Error::Usage {
            what: "cp: an archive is nothing for a terminal".to_owned(),
            hint: Some("send it elsewhere: `forkyard cp ID:PATH - > FILE`".to_owned()),
        });
    }
    let mut archive = client.download(archive_url(id, path)).await?;
    while let Some(chunk) = archive.chunk().await? {
        render::data(&chunk)?;
    }
    Ok(())
}

async fn stat(client: &Client, id: &str, path: &[u8]) -> Result<Option<FileInfo>, Error> {
    match client.get::<FileInfo>(Url::sandbox(id).part("stat").query("path", path)).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => {
            // The file is not there, or the sandbox is not.
            client.get::<serde_json::Value>(Url::sandbox(id)).await.map(|_| None)
        }
        Err(error) => Err(error),
    }
}

fn archive_url(id: &str, path: &[u8]) -> Url {
    Url::sandbox(id).part("archive").query("path", path)
}

/// Chunks of an upload; an error breaks the upload off, its cause is told by the thread.
type Sender = mpsc::Sender<Result<Bytes, Error>>;
type Outcome = oneshot::Receiver<Result<(), Error>>;

/// Runs `write` on a thread of its own; what it sends is the stream.
fn feed<W>(write: W) -> Result<(mpsc::Receiver<Result<Bytes, Error>>, Outcome), Error>
where
    W: FnOnce(&Sender) -> Result<(), Error> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (tell, outcome) = oneshot::channel();
    std::thread::Builder::new()
        .name("archive".to_owned())
        .spawn(move || {
            let result = write(&sender);
            if result.is_err() {
                let _ = sender.blocking_send(Err(Error::Protocol("broken off".to_owned())));
            }
            let _ = tell.send(result);
        })
        .map_err(|e| Error::io("start a thread", e))?;
    Ok((receiver, outcome))
}

/// Uploads, and tells the more telling of two errors: the server's, then the thread's.
async fn send(
    client: &Client,
    url: Url,
    chunks: mpsc::Receiver<Result<Bytes, Error>>,
    outcome: Outcome,
) -> Result<(), Error> {
    match client.upload(url, stream(chunks)).await {
        Err(Error::Http(broken)) => match outcome.await {
            Ok(Err(cause)) => Err(cause),
            _ => Err(Error::Http(broken)),
        },
        result => result,
    }
}

fn stream<T>(mut chunks: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    futures_util::stream::poll_fn(move |context| chunks.poll_recv(context))
}

/// Sends all of `source`.
fn send_all(mut source: impl Read, sender: &Sender) -> Result<(), Error> {
    loop {
        let mut buffer = vec![0; CHUNK];
        let length = match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read stdin", error)),
        };
        buffer.truncate(length);
        if sender.blocking_send(Ok(buffer.into())).is_err() {
            // The upload has ended, and tells why.
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(text: &str) -> Side {
        Side::parse(OsStr::new(text)).unwrap()
    }

    #[test]
    fn a_colon_makes_a_sandbox_but_after_a_slash_or_dot() {
        let sandbox = |id: &str, path: &str| Side::Sandbox { id: id.into(), path: path.into() };
        assert_eq!(side("box:/x:y"), sandbox("box", "/x:y"));
        assert_eq!(side("box:."), sandbox("box", "."));
        assert_eq!(side("-"), Side::Archive);
        for local in ["/a:b", "./a:b", "../a:b", "plain"] {
            assert_eq!(side(local), Side::Local(local.into()));
        }
        assert!(Side::parse(OsStr::new("box:")).is_err());
        assert!(Side::parse(OsStr::new(":/x")).is_err());
    }

    #[test]
    fn the_rules_are_those_of_docker_cp() {
        let into = |name: &str| Some(Place::Into(name.into()));
        let cases = [
            (false, "/f", "/d", Some(true), into("f")),
            (false, "/f", "/d", Some(false), Some(Place::As)),
            (false, "/f", "/d/", Some(false), None),
            (false, "/f", "/d", None, Some(Place::As)),
            (false, "/f", "/d/", None, None),
            (true, "/s", "/d", Some(true), into("s")),
            (true, "/s/.", "/d", Some(true), into(".")),
            (true, ".", "/d", Some(true), into(".")),
            (true, "/s", "/d", Some(false), None),
            (true, "/s", "/d", None, Some(Place::As)),
            (true, "/s/.", "/d/", None, Some(Place::As)),
        ];
        for (is_directory, source, to, there, expected) in cases {
            let source = source.as_bytes();
            let got = place(is_directory, source, last_part(source), to.as_bytes(), there);
            assert_eq!(got.ok(), expected, "{source:?} {to} {there:?}");
        }
    }

    #[test]
    fn paths_in_a_sandbox_come_apart() {
        let cases =
            [("/a/b", "/a/", "b"), ("/a/b//", "/a/", "b"), ("b", ".", "b"), ("/b", "/", "b")];
        for (path, directory, name) in cases {
            assert_eq!(split(path.as_bytes()), (directory.into(), name.into()), "{path}");
        }
        assert_eq!(last_part(b"/a/b/."), b"b");
        assert_eq!(last_part(b"/"), b".");
        assert_eq!(last_part(b"/a/.."), b".");
    }
}
