//! Commands: start, list, attach, wait, signal.

use std::sync::Arc;

use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use forkyard_engine::model::{Command, CommandId, CommandSpec};
use forkyard_engine::{Attachment, Engine, LiveSandbox};
use serde::Deserialize;

use crate::body::{Body, Path, Query};
use crate::error::{Answer, Failed};
use crate::pipe::{self, Opening};
use crate::remote::{Caller, allowed};
use crate::routes::{Run, Signal};
use crate::stream::PROTOCOL;

type Shared = State<Arc<Engine>>;

/// Makes a sandbox, runs a command in it, and removes it.
pub(crate) async fn run(
    State(engine): Shared,
    Extension(caller): Extension<Caller>,
    mut request: Request,
) -> Answer<Response> {
    let upgrade = upgrade_of(&mut request)?
        .ok_or_else(|| Failed::new(426, format!("this needs `Upgrade: {PROTOCOL}`")))?;
    let Body(run) = Body::<Run>::from_request(request, &()).await?;
    let Run { sandbox, command, keep } = run;
    allowed(caller, &sandbox)?;
    let owner = Arc::clone(&engine);
    // In a task of its own: a client that goes away meanwhile leaves no half-made sandbox.
    let started = tokio::spawn(async move {
        let (live, command) = owner.run(sandbox, command, !keep).await?;
        let attachment = command.attach(0, 0);
        let opening = Opening { sandbox: Some(live.info()), command: command.info() };
        tokio::spawn(async move {
            pipe::serve(upgrade, opening, attachment, &live).await;
            owner.remove_if_ephemeral(&live).await;
        });
        Ok::<_, forkyard_engine::Error>(())
    });
    started.await.map_err(|e| Failed::new(500, e.to_string()))??;
    Ok(switching())
}

/// Starts a command; its stdio follows when the connection is upgraded.
pub(crate) async fn start(
    State(engine): Shared,
    Path(key): Path<String>,
    mut request: Request,
) -> Answer<Response> {
    let upgrade = upgrade_of(&mut request)?;
    let Body(spec) = Body::<CommandSpec>::from_request(request, &()).await?;
    let live = engine.find(&key)?;
    if upgrade.is_none() && !spec.detach {
        return Err(Failed::new(
            400,
            format!("a command without `detach` needs `Upgrade: {PROTOCOL}`"),
        ));
    }
    let command = live.start(spec).await?;
    match upgrade {
        None => Ok((StatusCode::CREATED, Json(command.info())).into_response()),
        Some(upgrade) => Ok(follow(upgrade, command.attach(0, 0), live)),
    }
}

#[derive(Deserialize)]
pub(crate) struct Offsets {
    #[serde(default)]
    stdout: u64,
    #[serde(default)]
    stderr: u64,
}

pub(crate) async fn attach(
    State(engine): Shared,
    Path((key, number)): Path<(String, u32)>,
    Query(offsets): Query<Offsets>,
    mut request: Request,
) -> Answer<Response> {
    let upgrade = upgrade_of(&mut request)?
        .ok_or_else(|| Failed::new(426, format!("this needs `Upgrade: {PROTOCOL}`")))?;
    let live = engine.find(&key)?;
    let attachment = live.command(CommandId(number))?.attach(offsets.stdout, offsets.stderr);
    Ok(follow_then(upgrade, attachment, live, engine))
}

fn follow(
    upgrade: hyper::upgrade::OnUpgrade,
    attachment: Attachment,
    live: Arc<LiveSandbox>,
) -> Response {
    let opening = Opening { sandbox: None, command: attachment.command().info() };
    tokio::spawn(async move { pipe::serve(upgrade, opening, attachment, &live).await });
    switching()
}

/// As `follow`; a sandbox that was made for this command goes with it.
fn follow_then(
    upgrade: hyper::upgrade::OnUpgrade,
    attachment: Attachment,
    live: Arc<LiveSandbox>,
    engine: Arc<Engine>,
) -> Response {
    let opening = Opening { sandbox: None, command: attachment.command().info() };
    tokio::spawn(async move {
        pipe::serve(upgrade, opening, attachment, &live).await;
        engine.remove_if_ephemeral(&live).await;
    });
    switching()
}

pub(crate) async fn list(
    State(engine): Shared,
    Path(key): Path<String>,
) -> Answer<Json<Vec<Command>>> {
    Ok(Json(engine.find(&key)?.list_commands().iter().map(|c| c.info()).collect()))
}

pub(crate) async fn inspect(
    State(engine): Shared,
    Path((key, number)): Path<(String, u32)>,
) -> Answer<Json<Command>> {
    Ok(Json(engine.find(&key)?.command(CommandId(number))?.info()))
}

pub(crate) async fn forget(
    State(engine): Shared,
    Path((key, number)): Path<(String, u32)>,
) -> Answer<StatusCode> {
    engine.find(&key)?.forget(CommandId(number)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn wait(
    State(engine): Shared,
    Path((key, number)): Path<(String, u32)>,
) -> Answer<Json<Command>> {
    let command = engine.find(&key)?.command(CommandId(number))?;
    Ok(Json(command.wait().await))
}

pub(crate) async fn signal(
    State(engine): Shared,
    Path((key, number)): Path<(String, u32)>,
    Body(signal): Body<Signal>,
) -> Answer<StatusCode> {
    engine.find(&key)?.signal(CommandId(number), signal.signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
pub(crate) struct WhichStream {
    stream: Option<String>,
}

/// The output that is kept of a command.
pub(crate) async fn output(
    State(engine): Shared,
    Path((key, number)): Path<(String, u32)>,
    Query(which): Query<WhichStream>,
) -> Answer<Response> {
    let command = engine.find(&key)?.command(CommandId(number))?;
    let index = match which.stream.as_deref() {
        None | Some("stdout") => 0,
        Some("stderr") => 1,
        Some(other) => return Err(Failed::new(400, format!("stream `{other}`: stdout or stderr"))),
    };
    let bytes = match command.spools().get(index) {
        None => Vec::new(),
        Some(spool) => {
            let most = usize::try_from(spool.length() - spool.start()).unwrap_or(usize::MAX);
            spool
                .read(spool.start(), most)
                .map_err(|e| Failed::new(500, format!("reading output: {e}")))?
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

/// The upgrade that a request asks for, if it does.
fn upgrade_of(request: &mut Request) -> Answer<Option<hyper::upgrade::OnUpgrade>> {
    let Some(protocol) = request.headers().get(header::UPGRADE) else { return Ok(None) };
    if !protocol.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()) {
        return Err(Failed::new(400, format!("unknown protocol to upgrade to: not {PROTOCOL}")));
    }
    Ok(Some(hyper::upgrade::on(request)))
}

fn switching() -> Response {
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
