//! Files of a sandbox: contents, trees, and what is known of them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use forkyard_engine::files::{
    Entry, EntryKind, FileOp, FileReply, FileRequest, INLINE_MAX, WriteTarget, read_entries,
};
use forkyard_engine::{Engine, LiveSandbox};
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::body::{Path, Query, long_json};
use crate::error::{Answer, Failed};
use crate::routes::{FileInfo, FileKind};

type Shared = State<Arc<Engine>>;

/// What moves at once between a file and a connection.
const CHUNK: usize = 256 * 1024;

/// Entries of a listing when nobody says how many.
const ENTRIES: u32 = 100_000;

#[derive(Deserialize)]
pub(crate) struct Target {
    path: String,
    user: Option<String>,
    mode: Option<String>,
    #[serde(default)]
    append: bool,
    #[serde(default)]
    parents: bool,
    #[serde(default)]
    recursive: bool,
    depth: Option<u32>,
    #[serde(default)]
    owners: bool,
}

#[derive(Deserialize)]
pub(crate) struct FromTo {
    from: String,
    to: String,
    user: Option<String>,
    #[serde(default)]
    recursive: bool,
}

async fn ask(
    live: &LiveSandbox,
    user: Option<String>,
    op: FileOp,
) -> Answer<(FileReply, Option<OwnedFd>)> {
    Ok(live.file(FileRequest { user, op }, None).await?)
}

pub(crate) async fn read(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(target): Query<Target>,
) -> Answer<Response> {
    let live = engine.find(&key)?;
    let op = FileOp::Read { path: target.path.into_bytes(), offset: 0, length: None };
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    match ask(&live, target.user, op).await? {
        (FileReply::Contents { contents, .. }, _) => Ok((kind, contents).into_response()),
        (FileReply::Opened { entry }, Some(fd)) => {
            let stream = read_file(File::from(fd), entry.size);
            let length = [(header::CONTENT_LENGTH, entry.size.to_string())];
            Ok((kind, length, HttpBody::from_stream(stream)).into_response())
        }
        _ => Err(confused()),
    }
}

/// A file's bytes, read on a thread that may wait for the disk. The guest may change the file
/// meanwhile: as many bytes as were announced come, or the stream breaks.
fn read_file(file: File, length: u64) -> impl Stream<Item = io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut file = file.take(length);
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            match (&mut file).take(CHUNK as u64).read_to_end(&mut chunk) {
                Ok(0) if file.limit() == 0 => return,
                Ok(0) => {
                    let _ = sender.blocking_send(Err(io::ErrorKind::UnexpectedEof.into()));
                    return;
                }
                Ok(_) => {
                    if sender.blocking_send(Ok(chunk.into())).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = sender.blocking_send(Err(error));
                    return;
                }
            }
        }
    });
    from_channel(receiver)
}

pub(crate) fn from_channel<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

pub(crate) async fn write(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(target): Query<Target>,
    request: Request,
) -> Answer<StatusCode> {
    let live = engine.find(&key)?;
    let mode = mode_of(target.mode.as_deref())?;
    let write = WriteTarget {
        path: target.path.into_bytes(),
        mode,
        append: target.append,
        create_parents: target.parents,
        exclusive: false,
    };
    let mut body = request.into_body().into_data_stream();
    let mut contents = Vec::new();
    while contents.len() <= INLINE_MAX {
        let Some(chunk) = body.next().await else {
            ask(&live, target.user, FileOp::Write { target: write, contents }).await?;
            return Ok(StatusCode::NO_CONTENT);
        };
        contents.extend_from_slice(&chunk.map_err(cut_off)?);
    }
    let op = FileOp::OpenWrite { target: write };
    let (FileReply::Opened { .. }, Some(fd)) = ask(&live, target.user, op).await? else {
        return Err(confused());
    };
    let (sender, receiver) = mpsc::channel(4);
    let writer = tokio::task::spawn_blocking(move || write_file(File::from(fd), receiver));
    let mut next = Some(Ok(Bytes::from(contents)));
    while let Some(chunk) = next {
        if sender.send(chunk.map_err(cut_off)?).await.is_err() {
            // The writer failed, and says why below.
            break;
        }
        next = body.next().await;
    }
    drop(sender);
    let written = writer.await.map_err(|e| Failed::new(500, e.to_string()))?;
    written.map_err(|e| {
        let code = if e.kind() == io::ErrorKind::StorageFull { 507 } else { 500 };
        Failed::new(code, format!("writing the file: {e}"))
    })?;
    Ok(StatusCode::NO_CONTENT)
}

fn write_file(mut file: File, mut chunks: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(chunk) = chunks.blocking_recv() {
        file.write_all(&chunk)?;
    }
    Ok(())
}

/// Takes the error by value to be given to `map_err`.
#[expect(clippy::needless_pass_by_value)]
fn cut_off(error: axum::Error) -> Failed {
    Failed::new(400, format!("body: {error}"))
}

pub(crate) async fn remove(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(target): Query<Target>,
) -> Answer<StatusCode> {
    let live = engine.find(&key)?;
    let op = FileOp::Remove { path: target.path.into_bytes(), recursive: target.recursive };
    ask(&live, target.user, op).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn stat(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(target): Query<Target>,
) -> Answer<Json<FileInfo>> {
    let live = engine.find(&key)?;
    let op = FileOp::Stat { path: target.path.into_bytes(), follow: false };
    match ask(&live, target.user, op).await? {
        (FileReply::Entry(entry), _) => Ok(Json(info(entry))),
        _ => Err(confused()),
    }
}

pub(crate) async fn list(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(target): Query<Target>,
) -> Answer<Response> {
    let live = engine.find(&key)?;
    let depth = target.depth.unwrap_or(1);
    if depth == 0 {
        return Err(Failed::new(400, "depth 0: at least 1"));
    }
    let path = target.path.into_bytes();
    // Entries are told relative to the directory, whose absolute path init knows.
    let op = FileOp::Stat { path: path.clone(), follow: false };
    let (FileReply::Entry(directory), _) = ask(&live, target.user.clone(), op).await? else {
        return Err(confused());
    };
    let op = FileOp::List { path, depth, limit: ENTRIES };
    let infos = move |entries: Vec<Entry>| -> Vec<FileInfo> {
        let base = directory.path.strip_suffix(b"/").unwrap_or(&directory.path);
        let absolute = |entry: Entry| Entry { path: [base, b"/", &*entry.path].concat(), ..entry };
        entries.into_iter().map(|entry| info(absolute(entry))).collect()
    };
    match ask(&live, target.user, op).await? {
        (FileReply::Entries { entries, .. }, _) => Ok(Json(infos(entries)).into_response()),
        (FileReply::EntriesIn { length, .. }, Some(fd)) => {
            let entries = move || {
                read_entries(fd.as_fd(), length)
                    .map(infos)
                    .map_err(|e| Failed::new(500, format!("reading a listing: {e}")))
            };
            long_json(entries).await
        }
        _ => Err(confused()),
    }
}

pub(crate) async fn make_dir(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(target): Query<Target>,
) -> Answer<StatusCode> {
    let live = engine.find(&key)?;
    let mode = mode_of(target.mode.as_deref())?.unwrap_or(0o755);
    let op = FileOp::MakeDir { path: target.path.into_bytes(), parents: target.parents, mode };
    ask(&live, target.user, op).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn rename(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(paths): Query<FromTo>,
) -> Answer<StatusCode> {
    let live = engine.find(&key)?;
    let (from, to) = (paths.from.into_bytes(), paths.to.into_bytes());
    ask(&live, paths.user, FileOp::Move { from, to, no_replace: false }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn copy(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(paths): Query<FromTo>,
) -> Answer<StatusCode> {
    let live = engine.find(&key)?;
    let (from, to) = (paths.from.into_bytes(), paths.to.into_bytes());
    ask(&live, paths.user, FileOp::Copy { from, to, recursive: paths.recursive }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A tar stream of a file or tree.
pub(crate) async fn archive(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(target): Query<Target>,
) -> Answer<Response> {
    let live = engine.find(&key)?;
    let path = target.path.into_bytes();
    // So that a wrong path is an error and not a broken stream.
    let op = FileOp::Stat { path: path.clone(), follow: false };
    ask(&live, target.user.clone(), op).await?;
    let (read, write) = pipe()?;
    let (sender, receiver) = mpsc::channel(2);
    let request = FileRequest { user: target.user, op: FileOp::Archive { path } };
    tokio::spawn(async move {
        let pumped = tokio::task::spawn_blocking({
            let sender = sender.clone();
            move || pump(File::from(read), &sender)
        });
        let result = live.file(request, Some(write.as_fd())).await;
        // The last writing end on this side: the pump ends when the guest's is closed too.
        drop(write);
        let _ = pumped.await;
        if let Err(error) = result {
            let _ = sender.send(Err(io::Error::other(error.to_string()))).await;
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/x-tar")];
    Ok((kind, HttpBody::from_stream(from_channel(receiver))).into_response())
}

fn pump(mut from: File, to: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match (&mut from).take(CHUNK as u64).read_to_end(&mut chunk) {
            Ok(0) => return,
            Ok(_) if to.blocking_send(Ok(chunk.into())).is_err() => return,
            Ok(_) => {}
            Err(error) => {
                let _ = to.blocking_send(Err(error));
                return;
            }
        }
    }
}

/// Unpacks a tar stream below a directory.
pub(crate) async fn extract(
    State(engine): Shared,
    Path(key): Path<String>,
    Query(target): Query<Target>,
    request: Request,
) -> Answer<StatusCode> {
    let live = engine.find(&key)?;
    let (read, write) = pipe()?;
    let op = FileOp::Extract { path: target.path.into_bytes(), keep_owners: target.owners };
    let (sender, receiver) = mpsc::channel(4);
    let writer = tokio::task::spawn_blocking(move || write_file(File::from(write), receiver));
    let feed = async move {
        let mut body = request.into_body().into_data_stream();
        while let Some(chunk) = body.next().await {
            if sender.send(chunk.map_err(cut_off)?).await.is_err() {
                // The other side has stopped reading, and says why in its answer.
                break;
            }
        }
        Ok::<_, Failed>(())
    };
    let asked = async {
        let result = live.file(FileRequest { user: target.user, op }, Some(read.as_fd())).await;
        drop(read);
        result
    };
    let (fed, extracted) = tokio::join!(feed, asked);
    let _ = writer.await;
    fed?;
    extracted?;
    Ok(StatusCode::NO_CONTENT)
}

fn pipe() -> Answer<(OwnedFd, OwnedFd)> {
    forkyard_engine::files::pipe().map_err(|e| Failed::new(500, format!("pipe: {e}")))
}

/// Permission bits in octal, as chmod takes them.
fn mode_of(text: Option<&str>) -> Answer<Option<u32>> {
    let Some(text) = text else { return Ok(None) };
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(Some(mode)),
        _ => Err(Failed::new(400, format!("mode `{text}`: octal digits, at most 7777"))),
    }
}

fn info(entry: Entry) -> FileInfo {
    let path = String::from_utf8_lossy(&entry.path).into_owned();
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    FileInfo {
        name: if name.is_empty() { path.clone() } else { name },
        path,
        kind: match entry.kind {
            EntryKind::File => FileKind::File,
            EntryKind::Directory => FileKind::Directory,
            EntryKind::Symlink => FileKind::Symlink,
            EntryKind::Other => FileKind::Other,
        },
        size: entry.size,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        modified_at: entry.mtime * 1000 + i64::from(entry.mtime_nsec / 1_000_000),
        target: entry.target.map(|target| String::from_utf8_lossy(&target).into_owned()),
    }
}

fn confused() -> Failed {
    Failed::new(500, "init gave an answer of another kind")
}
