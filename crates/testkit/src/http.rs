//! HTTP over a Unix socket, one connection a request, without async in the caller.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// A client of the server that listens on a socket.
#[derive(Clone, Debug)]
pub struct Http {
    socket: PathBuf,
    limit: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody listens, or may be reached.
    #[error("connect {socket}: {source}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The errno.
        source: std::io::Error,
    },
    /// The path is no URI, or a header is none.
    #[error("request: {0}")]
    Request(#[from] hyper::http::Error),
    /// The connection broke or spoke no HTTP.
    #[error("{request}: {source}")]
    Exchange {
        /// Method and path.
        request: String,
        /// What hyper says.
        source: hyper::Error,
    },
    /// The limit passed.
    #[error("{request}: no answer within {limit:?}")]
    Late {
        /// Method and path.
        request: String,
        /// The limit.
        limit: Duration,
    },
    /// No runtime could be made: descriptors or memory are short.
    #[error("start a tokio runtime: {0}")]
    Runtime(std::io::Error),
}

impl Http {
    /// A client of the server on this socket, with 30 seconds for each exchange.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), limit: Duration::from_secs(30) }
    }

    /// The same client with another limit for each exchange.
    #[must_use]
    pub fn limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Sends one request and reads the whole answer: its status and its body.
    ///
    /// `target` is path and query, percent-encoded. A body that is not empty is declared as JSON;
    /// no route minds it where bytes are meant.
    pub fn request(
        &self,
        method: &str,
        target: &str,
        body: impl Into<Bytes>,
    ) -> Result<(u16, Bytes), HttpError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(HttpError::Runtime)?;
        let body = body.into();
        runtime.block_on(async {
            let exchange = self.exchange(method, target, body);
            tokio::time::timeout(self.limit, exchange).await.unwrap_or_else(|_| {
                Err(HttpError::Late { request: format!("{method} {target}"), limit: self.limit })
            })
        })
    }

    async fn exchange(
        &self,
        method: &str,
        target: &str,
        body: Bytes,
    ) -> Result<(u16, Bytes), HttpError> {
        let method = Method::from_bytes(method.as_bytes()).map_err(hyper::http::Error::from)?;
        let broken = |source| HttpError::Exchange { request: format!("{method} {target}"), source };
        let mut request =
            Request::builder().method(&method).uri(target).header(header::HOST, "localhost");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body))?;

        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| HttpError::Connect { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // The runtime ends with this request, and the connection with it.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
        Ok((status, body))
    }

    /// GET; panics when there is no answer.
    #[track_caller]
    pub fn get(&self, target: &str) -> (u16, Bytes) {
        answer(self.request("GET", target, Bytes::new()))
    }

    /// POST; panics when there is no answer.
    #[track_caller]
    pub fn post(&self, target: &str, body: impl Into<Bytes>) -> (u16, Bytes) {
        answer(self.request("POST", target, body))
    }

    /// PUT; panics when there is no answer.
    #[track_caller]
    pub fn put(&self, target: &str, body: impl Into<Bytes>) -> (u16, Bytes) {
        answer(self.request("PUT", target, body))
    }

    /// DELETE; panics when there is no answer.
    #[track_caller]
    pub fn delete(&self, target: &str) -> (u16, Bytes) {
        answer(self.request("DELETE", target, Bytes::new()))
    }
}

#[track_caller]
fn answer(result: Result<(u16, Bytes), HttpError>) -> (u16, Bytes) {
    result.unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers one connection with `reply` once the request ends with `last`; gives the request.
    fn serve_once(
        listener: UnixListener,
        last: &'static str,
        reply: &'static str,
    ) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut chunk = [0; 1024];
            while !request.ends_with(last.as_bytes()) {
                let got = stream.read(&mut chunk).unwrap();
                assert_ne!(got, 0, "{}", String::from_utf8_lossy(&request));
                request.extend_from_slice(&chunk[..got]);
            }
            stream.write_all(reply.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        })
    }

    #[test]
    fn a_post_carries_its_body_and_gets_status_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = serve_once(
            listener,
            "{\"a\":1}",
            "HTTP/1.1 201 Created\r\ncontent-length: 3\r\n\r\nyes",
        );
        let (status, body) = Http::new(&socket).post("/v1/x?y=1", "{\"a\":1}");
        assert_eq!((status, &body[..]), (201, &b"yes"[..]));
        let request = server.join().unwrap();
        assert!(request.starts_with("POST /v1/x?y=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("content-length: 7\r\n"), "{request}");
    }

    #[test]
    fn a_server_that_hangs_is_told_after_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        // Connections are queued by the kernel and never accepted.
        let _listener = UnixListener::bind(&socket).unwrap();
        let http = Http::new(&socket).limit(Duration::from_millis(20));
        let error = http.request("GET", "/v1/health", "").unwrap_err();
        assert_eq!(error.to_string(), "GET /v1/health: no answer within 20ms");
    }

    #[test]
    fn nobody_listening_names_the_socket() {
        let error = Http::new("/nowhere/s").request("GET", "/", "").unwrap_err();
        assert!(error.to_string().starts_with("connect /nowhere/s: "), "{error}");
    }
}
