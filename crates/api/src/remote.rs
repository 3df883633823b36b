//! Clients over TCP: who they are, and what is not for them.
//!
//! Who opens the Unix socket is the user of the server, and may show sandboxes whatever that user
//! sees. Who has a key may use sandboxes, and not this machine: nothing of its files and networks,
//! no keys, no end of the server.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use forkyard_engine::Engine;
use forkyard_engine::model::{Net, SandboxSpec};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::error::{Answer, Failed};

/// How long a client may take to agree on keys.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The user of the server, over the Unix socket.
    Local,
    /// Somebody with a key, over TCP.
    Remote,
}

/// Certificate and key of a server.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// Why files are of no use for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// They do not fit together.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its private key, in PEM.
    ///
    /// # Errors
    /// When a file cannot be read, has nothing of the kind, or is of another key.
    pub fn load(certificates: &Path, key: &Path) -> Result<Self, TlsError> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |source| TlsError::File { path, source }
        };
        let chain: Vec<_> = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect)
            .map_err(failed(certificates))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(failed(key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Where clients over TCP connect to.
#[derive(Debug)]
pub struct Remote {
    listener: TcpListener,
    tls: Option<Tls>,
}

impl Remote {
    /// Listens at an address; port 0 is one that is free.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: SocketAddr, tls: Option<Tls>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, tls })
    }

    /// Its URL, with the port that it has.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match self.listener.local_addr() {
            Ok(address) => format!("{scheme}://{address}"),
            Err(error) => format!("{scheme}: {error}"),
        }
    }

    pub(crate) fn listener(&self) -> std::io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.listener.try_clone()?)
    }

    pub(crate) fn tls(&self) -> Option<Tls> {
        self.tls.clone()
    }
}

/// A connection as it is read and written.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Makes a connection ready to be served; none where the client does not come to terms.
pub(crate) async fn welcome(stream: TcpStream, tls: Option<Tls>) -> Option<Box<dyn Stream>> {
    // Answers are small, and somebody waits for each. A client that is gone without a word is found
    // out after the kernel's time (tcp(7), `tcp_keepalive_time`).
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
    let Some(Tls(acceptor)) = tls else { return Some(Box::new(stream)) };
    match tokio::time::timeout(HANDSHAKE_WAIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a handshake");
            None
        }
        Err(_) => None,
    }
}

/// Lets pass who has a key.
pub(crate) async fn authenticate(
    State(engine): State<Arc<Engine>>,
    request: Request,
    next: Next,
) -> Response {
    match secret(request.headers()).map(|secret| engine.has_key(secret)) {
        Some(Ok(true)) => next.run(request).await,
        Some(Err(error)) => Failed::from(error).into_response(),
        None => refused("this address takes requests with a key only"),
        Some(Ok(false)) => refused("no such key"),
    }
}

fn refused(why: &str) -> Response {
    let mut failed = Failed::new(401, why);
    failed.0.hint = Some(
        "`forkyard key create`, where the server runs, makes a key; send it as `X-API-Key: KEY` \
         or `Authorization: Bearer KEY`"
            .to_owned(),
    );
    ([(header::WWW_AUTHENTICATE, "Bearer")], failed).into_response()
}

/// The key that a request brings.
fn secret(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok();
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Keeps routes that are about this machine from who is not its user.
pub(crate) async fn local_only(
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    match caller {
        Caller::Local => next.run(request).await,
        Caller::Remote => not_for_remote("this request").into_response(),
    }
}

/// Whether a caller may have such a sandbox.
pub(crate) fn allowed(caller: Caller, spec: &SandboxSpec) -> Answer<()> {
    match caller {
        Caller::Remote if !spec.volumes.is_empty() => Err(not_for_remote("a volume")),
        Caller::Remote if spec.workspace.is_some() => Err(not_for_remote("a workspace")),
        Caller::Remote if spec.net == Net::Host => Err(not_for_remote("the host's network")),
        Caller::Local | Caller::Remote => Ok(()),
    }
}

fn not_for_remote(what: &str) -> Failed {
    let mut failed = Failed::new(403, format!("{what} is for the user of the server alone"));
    failed.0.hint = Some("ask over its Unix socket, where it runs".to_owned());
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_key_comes_in_either_header() {
        assert_eq!(secret(&headers("x-api-key", "k")), Some("k"));
        assert_eq!(secret(&headers("authorization", "bearer k")), Some("k"));
        assert_eq!(secret(&headers("authorization", "Basic k")), None);
        assert_eq!(secret(&headers("authorization", "k")), None);
        assert_eq!(secret(&HeaderMap::new()), None);
    }
}
