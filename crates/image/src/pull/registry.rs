//! A registry, spoken to through `oci-client`; documents are fetched by our own hand, since their
//! size must be bounded.

use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol, SizedStream};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use reqwest::header::{ACCEPT, CONTENT_TYPE, WWW_AUTHENTICATE};

use super::PullOptions;
use super::credentials::Credentials;
use super::error::{Asked, PullError, deepest};
use crate::digest::Digest;
use crate::oci::{Descriptor, DocumentError, MAX_DOCUMENT};

/// What we can read.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Largest answer of a token service, in bytes; tokens with many scopes have a few KiB.
const MAX_TOKEN: u64 = 256 * 1024;

/// What we call ourselves.
const USER_AGENT: &str = concat!("forkyard/", env!("CARGO_PKG_VERSION"));

/// A repository of a registry, signed in to.
pub(super) struct Registry {
    client: Client,
    http: reqwest::Client,
    reference: Reference,
    /// `http` or `https`.
    scheme: &'static str,
    auth: RegistryAuth,
    stall: Duration,
}

/// A blob on its way.
pub(super) enum BlobStream {
    /// From its beginning, whatever was asked for.
    Whole(SizedStream),
    /// From where it was asked for.
    Rest(SizedStream),
}

impl Registry {
    /// Signs in. No token is asked for where the registry wants none.
    pub(super) async fn connect(
        reference: Reference,
        credentials: Credentials,
        options: &PullOptions,
    ) -> Result<Self, PullError> {
        let host = reference.resolve_registry().to_owned();
        let plain = options.plain_http || is_loopback(&host);
        // Fails when another part of the program has chosen a provider before, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let build = |why: String| PullError::Answer { what: "HTTP client".to_owned(), why };
        let proxies =
            if is_loopback(&host) { Proxies::default() } else { Proxies::of_environment() };
        let protocol = if plain { ClientProtocol::Http } else { ClientProtocol::Https };
        let client = Client::try_from(ClientConfig {
            protocol,
            connect_timeout: Some(options.connect_timeout),
            read_timeout: Some(options.stall_timeout),
            user_agent: USER_AGENT,
            https_proxy: proxies.https.clone(),
            http_proxy: proxies.http.clone(),
            no_proxy: proxies.except.clone(),
            ..ClientConfig::default()
        })
        .map_err(|e| build(deepest(&e)))?;
        let http = proxies
            .apply(reqwest::Client::builder())
            .and_then(|builder| {
                builder
                    .connect_timeout(options.connect_timeout)
                    .read_timeout(options.stall_timeout)
                    .user_agent(USER_AGENT)
                    .build()
            })
            .map_err(|e| build(deepest(&e)))?;
        let scheme = if plain { "http" } else { "https" };
        let (auth, stall) = (RegistryAuth::Anonymous, options.stall_timeout);
        let mut registry = Self { client, http, reference, scheme, auth, stall };
        registry.sign_in(credentials, options).await?;
        Ok(registry)
    }

    async fn sign_in(
        &mut self,
        credentials: Credentials,
        options: &PullOptions,
    ) -> Result<(), PullError> {
        self.auth = match credentials {
            Credentials::None => RegistryAuth::Anonymous,
            Credentials::Basic { user, password } => RegistryAuth::Basic(user, password),
            Credentials::Identity(token) => self.exchange(&token).await?,
        };
        let asked = self.asked("sign-in");
        let limit = options.connect_timeout + options.stall_timeout * 2;
        let auth = self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull);
        let token = match tokio::time::timeout(limit, auth).await {
            Ok(result) => result.map_err(|e| asked.client(&e))?,
            Err(_) => return Err(asked.stalled()),
        };
        if let Some(token) = token {
            self.auth = RegistryAuth::Bearer(token);
        }
        Ok(())
    }

    /// Trades an identity token for a token to pull with
    /// ([Docker's OAuth2 endpoint](https://distribution.github.io/distribution/spec/auth/oauth/)).
    async fn exchange(&self, identity: &str) -> Result<RegistryAuth, PullError> {
        let asked = self.asked("sign-in");
        let send = |request: reqwest::RequestBuilder| async {
            request.send().await.map_err(|e| asked.http(&e))
        };
        let url = format!("{}://{}/v2/", self.scheme, asked.registry);
        let answer = send(self.http.get(url)).await?;
        let challenge = answer.headers().get(WWW_AUTHENTICATE).and_then(|h| h.to_str().ok());
        let Some(challenge) = challenge.and_then(Challenge::parse) else {
            return Ok(RegistryAuth::Anonymous);
        };
        if self.scheme == "https" && !challenge.realm.starts_with("https://") {
            let why = "its token service is not on HTTPS".to_owned();
            return Err(PullError::Answer { what: asked.what.to_owned(), why });
        }
        let scope = format!("repository:{}:pull", self.reference.repository());
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", "forkyard"),
            ("service", &challenge.service),
            ("scope", &scope),
            ("refresh_token", identity),
        ];
        let form: Vec<String> = form.iter().map(|(k, v)| format!("{k}={}", percent(v))).collect();
        let request = self
            .http
            .post(&challenge.realm)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.join("&"));
        let answer = send(request).await?;
        let body = self.body(answer, &asked, MAX_TOKEN).await?;
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let token = value.get("access_token").or_else(|| value.get("token"));
        match token.and_then(serde_json::Value::as_str) {
            Some(token) => Ok(RegistryAuth::Bearer(token.to_owned())),
            None => Err(asked.status(401, "the token service gave no token")),
        }
    }

    /// The manifest or index that the reference names.
    pub(super) async fn named_manifest(&self) -> Result<(Digest, Vec<u8>), PullError> {
        let Some(text) = self.reference.digest() else {
            let bytes = self.document(self.reference.tag().unwrap_or("latest")).await?;
            return Ok((Digest::sha256_of(&bytes), bytes));
        };
        let digest: Digest = text.parse().map_err(|e: crate::BadDigest| {
            let reference = self.reference.to_string();
            PullError::Reference { reference, why: e.to_string() }
        })?;
        let bytes = self.manifest(&digest).await?;
        Ok((digest, bytes))
    }

    /// A manifest or index by its digest, verified.
    pub(super) async fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, PullError> {
        let bytes = self.document(&digest.to_string()).await?;
        if digest.matches(&bytes) {
            return Ok(bytes);
        }
        Err(PullError::wrong_digest(digest, &Digest::sha256_of(&bytes)))
    }

    async fn document(&self, name: &str) -> Result<Vec<u8>, PullError> {
        let (host, repository) = (self.reference.resolve_registry(), self.reference.repository());
        let what = match name.split_once(':') {
            Some(_) => format!("{repository}@{name}"),
            None => format!("{repository}:{name}"),
        };
        let asked = self.asked(&what);
        let url = format!("{}://{host}/v2/{repository}/manifests/{name}", self.scheme);
        let mut request = self.http.get(url).header(ACCEPT, MANIFEST_TYPES);
        request = match &self.auth {
            RegistryAuth::Anonymous => request,
            RegistryAuth::Basic(user, password) => request.basic_auth(user, Some(password)),
            RegistryAuth::Bearer(token) => request.bearer_auth(token),
        };
        let answer = request.send().await.map_err(|e| asked.http(&e))?;
        self.body(answer, &asked, MAX_DOCUMENT).await
    }

    /// The body of an answer, up to a limit; of an error, enough to repeat it.
    async fn body(
        &self,
        mut answer: reqwest::Response,
        asked: &Asked<'_>,
        most: u64,
    ) -> Result<Vec<u8>, PullError> {
        let status = answer.status();
        let most = if status.is_success() { most } else { 4096 };
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|e| asked.http(&e))? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > most {
                if !status.is_success() {
                    break;
                }
                let error = DocumentError::TooLarge(body.len() as u64);
                return Err(PullError::Document { what: asked.what.to_owned(), error });
            }
        }
        if status == reqwest::StatusCode::OK {
            return Ok(body);
        }
        Err(asked.status(status.as_u16(), &said(&body)))
    }

    /// A blob that is a document, verified.
    pub(super) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, PullError> {
        let what = format!("configuration {}", blob.digest);
        if blob.size > MAX_DOCUMENT {
            return Err(PullError::Document { what, error: DocumentError::TooLarge(blob.size) });
        }
        let (BlobStream::Whole(mut stream) | BlobStream::Rest(mut stream)) =
            self.blob(&blob.digest, 0).await?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < blob.size {
            match stream.next().await {
                Some(chunk) => {
                    bytes.extend_from_slice(&chunk.map_err(|e| self.transfer(&blob.digest, &e))?);
                }
                None => break,
            }
        }
        if bytes.len() as u64 == blob.size && blob.digest.matches(&bytes) {
            return Ok(bytes);
        }
        Err(PullError::wrong_digest(&blob.digest, &Digest::sha256_of(&bytes)))
    }

    /// Asks for a blob from an offset on.
    pub(super) async fn blob(&self, digest: &Digest, from: u64) -> Result<BlobStream, PullError> {
        let text = digest.to_string();
        let asked = self.asked(&text);
        let blob = text.as_str();
        if from == 0 {
            let stream = self.client.pull_blob_stream(&self.reference, blob).await;
            return stream.map(BlobStream::Whole).map_err(|e| asked.client(&e));
        }
        let answer = self.client.pull_blob_stream_partial(&self.reference, blob, from, None);
        match answer.await.map_err(|e| asked.client(&e))? {
            BlobResponse::Full(stream) => Ok(BlobStream::Whole(stream)),
            BlobResponse::Partial(stream) => Ok(BlobStream::Rest(stream)),
        }
    }

    /// What an error in the middle of a blob means.
    pub(super) fn transfer(&self, blob: &Digest, error: &std::io::Error) -> PullError {
        let text = blob.to_string();
        let asked = self.asked(&text);
        match error.get_ref().and_then(|e| e.downcast_ref::<reqwest::Error>()) {
            Some(error) => asked.http(error),
            None => PullError::Answer { what: text, why: deepest(error) },
        }
    }

    /// The registry's host and port.
    pub(super) fn host(&self) -> &str {
        self.reference.resolve_registry()
    }

    fn asked<'a>(&'a self, what: &'a str) -> Asked<'a> {
        Asked {
            registry: self.reference.resolve_registry(),
            repository: self.reference.repository(),
            what,
            stall: self.stall,
            with_credentials: !matches!(self.auth, RegistryAuth::Anonymous),
        }
    }
}

/// What a registry says in an error: the message of its first error, or all of it.
fn said(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = value.pointer("/errors/0/message").and_then(serde_json::Value::as_str);
    message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned)
}

/// Whether a registry's host is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let address: Option<std::net::IpAddr> = name.parse().ok();
    name == "localhost" || address.is_some_and(|address| address.is_loopback())
}

/// The challenge of a registry that wants a bearer token (RFC 6750, section 3).
struct Challenge {
    realm: String,
    service: String,
}

impl Challenge {
    fn parse(header: &str) -> Option<Self> {
        let (scheme, fields) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let field = |name: &str| {
            let start = fields.find(&format!("{name}=\""))? + name.len() + 2;
            let value = fields.get(start..)?;
            value.get(..value.find('"')?).map(str::to_owned)
        };
        Some(Self { realm: field("realm")?, service: field("service").unwrap_or_default() })
    }
}

/// For the targets in `fuzz/`.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_challenge(header: &str) {
    let _ = Challenge::parse(header);
}

/// Percent-encodes a value of a form.
fn percent(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Proxies as the environment names them.
#[derive(Default)]
struct Proxies {
    https: Option<String>,
    http: Option<String>,
    except: Option<String>,
}

impl Proxies {
    fn of_environment() -> Self {
        let get = |lower: &str| {
            let value = std::env::var(lower).or_else(|_| std::env::var(lower.to_uppercase()));
            value.ok().filter(|value| !value.is_empty())
        };
        Self { https: get("https_proxy"), http: get("http_proxy"), except: get("no_proxy") }
    }

    fn apply(
        &self,
        mut builder: reqwest::ClientBuilder,
    ) -> reqwest::Result<reqwest::ClientBuilder> {
        // Without this, reqwest would look into the environment by itself.
        builder = builder.no_proxy();
        let except = || self.except.as_deref().and_then(reqwest::NoProxy::from_string);
        if let Some(proxy) = &self.https {
            builder = builder.proxy(reqwest::Proxy::https(proxy)?.no_proxy(except()));
        }
        if let Some(proxy) = &self.http {
            builder = builder.proxy(reqwest::Proxy::http(proxy)?.no_proxy(except()));
        }
        Ok(builder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.9.1", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "10.0.0.1:5000", "localhost.example.org", "127.0.0.1.nip.io"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn challenges_are_taken_apart() {
        let header = "Bearer realm=\"https://auth.example/token\",service=\"reg\",scope=\"x\"";
        let challenge = Challenge::parse(header).unwrap();
        assert_eq!(challenge.realm, "https://auth.example/token");
        assert_eq!(challenge.service, "reg");
        assert!(Challenge::parse("Basic realm=\"x\"").is_none());
        assert_eq!(percent("a b/c&d"), "a%20b%2Fc%26d");
    }
}
