//! The HTTP client: one request a connection, over the server's Unix socket.
//!
//! A command line makes one request, seldom two; nothing is pooled. Whatever the server refuses
//! comes back as [`Error::Server`] with its own words.

pub(crate) mod frames;
mod launch;
mod url;

use bytes::Bytes;
use forkyard_api::routes::ErrorBody;
use forkyard_api::stream::PROTOCOL;
use futures_util::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

pub(crate) use url::Url;

use crate::error::Error;
use crate::paths::Paths;
use frames::FrameStream;

/// Largest answer that is read whole; longer ones are streamed.
const LARGEST_ANSWER: usize = 64 << 20;

/// Longest line of a streamed answer of lines.
const LONGEST_LINE: usize = 1 << 20;

type Body = UnsyncBoxBody<Bytes, Error>;

/// Speaks to one server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    paths: Paths,
}

impl Client {
    /// A client of the server at `paths`, which is started when it does not run.
    pub(crate) fn new(paths: Paths) -> Self {
        Self { paths }
    }

    /// Asks, and reads the answer's JSON.
    pub(crate) async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, Error> {
        self.answer(Method::GET, url, empty()).await
    }

    /// Sends JSON, and reads the answer's JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        url: Url,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.answer(Method::POST, url, json(body)?).await
    }

    /// Sends a request without a body, for an answer without one.
    pub(crate) async fn call(&self, method: Method, url: Url) -> Result<(), Error> {
        self.send(method, url, empty()).await.map(drop)
    }

    /// Sends JSON, for an answer without a body.
    pub(crate) async fn tell(&self, url: Url, body: &impl Serialize) -> Result<(), Error> {
        self.send(Method::POST, url, json(body)?).await.map(drop)
    }

    /// Sends bytes as they come, for an answer without a body.
    pub(crate) async fn upload<S>(&self, url: Url, chunks: S) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Send + 'static,
    {
        use futures_util::TryStreamExt;
        let body = StreamBody::new(chunks.map_ok(BodyFrame::data));
        self.send(Method::PUT, url, body.boxed_unsync()).await.map(drop)
    }

    /// Asks for bytes that are read as they come.
    pub(crate) async fn download(&self, url: Url) -> Result<Download, Error> {
        let response = self.send(Method::GET, url, empty()).await?;
        Ok(Download { body: response.into_body() })
    }

    /// Sends JSON, and reads lines of JSON as they come.
    pub(crate) async fn lines(&self, url: Url, body: &impl Serialize) -> Result<Lines, Error> {
        let response = self.send(Method::POST, url, json(body)?).await?;
        Ok(Lines { body: Download { body: response.into_body() }, buffer: Vec::new() })
    }

    /// Sends JSON, and turns the connection into a stream of frames.
    pub(crate) async fn open(&self, url: Url, body: &impl Serialize) -> Result<FrameStream, Error> {
        self.upgrade(Method::POST, url, json(body)?).await
    }

    /// Turns a connection into a stream of frames of a command that was started before.
    pub(crate) async fn attach(&self, url: Url) -> Result<FrameStream, Error> {
        self.upgrade(Method::GET, url, empty()).await
    }

    /// As [`Client::get`], of a server that runs already; nothing when none does.
    pub(crate) async fn get_if_running<T: DeserializeOwned>(
        &self,
        url: Url,
    ) -> Result<Option<T>, Error> {
        let Some(stream) = launch::connect(&self.paths).await? else { return Ok(None) };
        let response = exchange(stream, request(Method::GET, &url, empty())?).await?;
        read_json(checked(response).await?).await.map(Some)
    }

    /// As [`Client::call`], of a server that runs already; whether there was one.
    pub(crate) async fn call_if_running(&self, method: Method, url: Url) -> Result<bool, Error> {
        let Some(stream) = launch::connect(&self.paths).await? else { return Ok(false) };
        let response = exchange(stream, request(method, &url, empty())?).await?;
        checked(response).await.map(|_| true)
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Body,
    ) -> Result<T, Error> {
        read_json(self.send(method, url, body).await?).await
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        let again = method == Method::GET;
        let request = request(method, &url, body)?;
        let stream = launch::connect_or_start(&self.paths).await?;
        let response = match exchange(stream, request).await {
            // A server that is being killed takes connections until it is gone. A question can be
            // asked again, of the next server.
            Err(Error::Http(_)) if again => {
                let request = self::request(Method::GET, &url, empty())?;
                exchange(launch::connect_or_start(&self.paths).await?, request).await?
            }
            response => response?,
        };
        checked(response).await
    }

    async fn upgrade(&self, method: Method, url: Url, body: Body) -> Result<FrameStream, Error> {
        let mut request = request(method, &url, body)?;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
        let stream = launch::connect_or_start(&self.paths).await?;
        let response = checked(exchange(stream, request).await?).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            return Err(Error::Protocol(format!("no stream where one was asked for: {status}")));
        }
        let upgraded = hyper::upgrade::on(response).await?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| Error::Protocol("the upgraded connection is no socket".to_owned()))?;
        Ok(FrameStream::new(parts.io.into_inner(), &parts.read_buf))
    }
}

/// An answer that is read piece by piece.
#[derive(Debug)]
pub(crate) struct Download {
    body: Incoming,
}

impl Download {
    /// The next bytes, or nothing at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// An answer that is lines of JSON.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Download,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next line's value, or nothing at the end.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return parse(&line).map(Some);
            }
            match self.body.chunk().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return parse(&std::mem::take(&mut self.buffer)).map(Some),
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(Error::Protocol(format!("a line of more than {LONGEST_LINE} bytes")));
            }
        }
    }
}

fn empty() -> Body {
    full(Bytes::new())
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn json(body: &impl Serialize) -> Result<Body, Error> {
    serde_json::to_vec(body)
        .map(|bytes| full(bytes.into()))
        .map_err(|e| Error::Protocol(format!("write JSON: {e}")))
}

fn request(method: Method, url: &Url, body: Body) -> Result<Request<Body>, Error> {
    Request::builder()
        .method(method)
        .uri(url.as_str())
        .header(HOST, "forkyard")
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|e| Error::Protocol(format!("make a request of {}: {e}", url.as_str())))
}

async fn exchange(stream: UnixStream, request: Request<Body>) -> Result<Response<Incoming>, Error> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // What goes wrong in the connection is told to the request that it carries.
    tokio::spawn(async move { connection.with_upgrades().await.ok() });
    Ok(sender.send_request(request).await?)
}

/// The response, or the error that it is.
async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let bytes = read_all(response).await?;
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorBody {
        code: status.as_u16(),
        message: format!("the server answered {status}: {}", String::from_utf8_lossy(&bytes)),
        hint: None,
        exit_code: None,
    });
    Err(Error::Server(body))
}

async fn read_json<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Error> {
    parse(&read_all(response).await?)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Protocol(format!("read its answer: {e}")))
}

async fn read_all(response: Response<Incoming>) -> Result<Vec<u8>, Error> {
    let mut download = Download { body: response.into_body() };
    let mut all = Vec::new();
    while let Some(chunk) = download.chunk().await? {
        if all.len() + chunk.len() > LARGEST_ANSWER {
            return Err(Error::Protocol(format!("an answer of more than {LARGEST_ANSWER} bytes")));
        }
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}
