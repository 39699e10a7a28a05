use crate::connect::{Connector, Dial};
use crate::error::{Error, Kind, chain_of};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::net::TcpStream;

/// Time to the response's head, and then for each wait for more of it. Chosen, not measured: long enough for a busy two-core
/// host.
const DEADLINE: Duration = Duration::from_secs(30);
/// What a body that is read whole brings at least in a deadline, bytes: 35 kB/s by the usual one. A guess, unmeasured.
const BYTES_A_DEADLINE: usize = 1 << 20;
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Size limit of a body that is read whole unless the caller names another.
const WHOLE_BODY_BYTES_MAX: usize = 64 << 20;

/// Connections of hyper's own client, kept for the next request: plain TCP for `http://`, TLS 1.2 or 1.3 for `https://`.
pub type Pool = legacy::Client<Connector, Full<Bytes>>;

/// What every connection of the project begins as: small requests leave at once, and nobody waits long for a host that
/// is gone. Trusts Mozilla's list of authorities as the crate `webpki-roots` has it, and not the machine's, which a
/// sandbox does not see.
pub fn pool() -> Pool {
    static PUBLIC: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| Arc::new(config_of(public_roots())));
    pool_of(&PUBLIC)
}

fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

fn config_of(roots: RootCertStore) -> ClientConfig {
    // Named, and not the process's default: another crate in the tree may choose another.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn pool_of(config: &Arc<ClientConfig>) -> Pool {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_DEADLINE));
    connector.set_nodelay(true);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(ClientConfig::clone(config))
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    legacy::Client::builder(TokioExecutor::new()).build(Connector::of_machine(connector))
}

/// For every connection that a server takes: small pieces (a stream's frames, an answer's head) leave at once. One that
/// waits for the acknowledgement of the one before comes up to 40 ms late.
pub fn send_at_once(stream: &mut TcpStream) {
    // The kernel refuses only for a connection that is gone already.
    stream.set_nodelay(true).ok();
}

/// What the kernel holds of a connection's answer for a reader that does not read, bytes; Linux takes twice as much,
/// with its own bookkeeping in it. Left alone it holds megabytes. A connection sends at most this much in a round trip.
pub const SEND_BUFFER_BYTES: usize = 16 << 10;

/// [`send_at_once`], for a server that charges what its transport took: what a reader leaves unread stays here, but for
/// a small buffer. hyper's own, which axum's server does not let us set, is 16 frames of a body: it takes a further one
/// when one of them has gone to the kernel.
pub fn send_as_read(stream: &mut TcpStream) {
    send_at_once(stream);
    // Refused only for a connection that is gone already.
    socket2::SockRef::from(&*stream).set_send_buffer_size(SEND_BUFFER_BYTES).ok();
}

/// Whether this is an address that a [`Client`] can speak to.
pub fn is_http(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some()
}

/// A pooled HTTP/1.1 client. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Pool,
    deadline: Duration,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    pub fn new() -> Self {
        Self { pool: pool(), deadline: DEADLINE }
    }

    /// A client that trusts this certificate (DER) beside the public authorities: a private one's, for services inside an
    /// organisation.
    ///
    /// # Errors
    /// It cannot be read as one.
    pub fn trusting(certificate: &[u8]) -> Result<Self, Error> {
        let mut roots = public_roots();
        let certificate = CertificateDer::from(certificate.to_vec());
        roots.add(certificate).map_err(|e| Error::new(Kind::Usage, "a trusted certificate", e))?;
        Ok(Self { pool: pool_of(&Arc::new(config_of(roots))), deadline: DEADLINE })
    }

    /// A client whose connections come about by `dial`, without TLS: of a simulated network, or a tunnel.
    pub fn dialling(dial: Dial) -> Self {
        let pool = legacy::Client::builder(TokioExecutor::new()).build(Connector::by(dial));
        Self { pool, deadline: DEADLINE }
    }

    /// The same connections with another deadline: for the response's head, for a body of JSON after it, and for each wait
    /// for more of a body that is read whole. One that is read piece by piece ([`Body::chunk`]) is its reader's to time.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { pool: self.pool.clone(), deadline }
    }

    pub async fn get(&self, url: &str) -> Result<Response, Error> {
        self.send(Method::GET, url, HeaderMap::new(), Bytes::new()).await
    }

    pub async fn head(&self, url: &str) -> Result<Response, Error> {
        self.send(Method::HEAD, url, HeaderMap::new(), Bytes::new()).await
    }

    pub async fn put(&self, url: &str, body: impl Into<Bytes>) -> Result<Response, Error> {
        self.send(Method::PUT, url, HeaderMap::new(), body.into()).await
    }

    /// `GET` whose answer must be 2xx JSON.
    pub async fn get_json<T: DeserializeOwned>(&self, url: &str) -> Result<T, Error> {
        self.get(url).await?.success()?.json().await
    }

    /// `POST` of JSON; the caller looks at the status.
    pub async fn post_json(&self, url: &str, value: &impl Serialize) -> Result<Response, Error> {
        let body = serde_json::to_vec(value).map_err(|e| Error::new(Kind::Usage, url, e))?;
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.send(Method::POST, url, headers, Bytes::from(body)).await
    }

    /// `POST` of JSON whose answer must be 2xx JSON.
    pub async fn call_json<T: DeserializeOwned>(&self, url: &str, value: &impl Serialize) -> Result<T, Error> {
        self.post_json(url, value).await?.success_or_read().await?.json().await
    }

    /// One exchange. Redirects are never followed here: whoever pays must look at the new address first.
    pub async fn send(&self, method: Method, url: &str, headers: HeaderMap, body: Bytes) -> Result<Response, Error> {
        let uri: Uri = url.parse().map_err(|e| Error::new(Kind::Usage, url, format!("not a URL: {e}")))?;
        if !is_http(&uri) {
            return Err(Error::new(Kind::Usage, url, "only http:// and https:// URLs are spoken here"));
        }
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::new(body))
            .map_err(|e| Error::new(Kind::Usage, url, e))?;
        *request.headers_mut() = headers;
        let answer = match tokio::time::timeout(self.deadline, self.pool.request(request)).await {
            Err(_) => {
                let message = format!("no answer within {} s", self.deadline.as_secs_f32());
                return Err(Error::new(Kind::Unknown, url, message));
            }
            Ok(Err(e)) if e.is_connect() => return Err(Error::new(Kind::Unreachable, url, chain_of(&e))),
            Ok(Err(e)) => return Err(Error::new(Kind::Unknown, url, chain_of(&e))),
            Ok(Ok(answer)) => answer,
        };
        let (head, body) = answer.into_parts();
        let body = Body { inner: body, deadline: self.deadline };
        Ok(Response { url: url.to_owned(), status: head.status, headers: head.headers, body })
    }
}

/// An answer whose body has not been read yet.
#[derive(Debug)]
pub struct Response {
    pub url: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Response {
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// This answer if its status is 2xx.
    pub fn success(self) -> Result<Self, Error> {
        if self.status.is_success() {
            return Ok(self);
        }
        Err(Error::new(Kind::BadAnswer, &self.url, format!("answered {}", self.status)))
    }

    /// Like [`Response::success`], with the start of the refusing body in the message.
    pub async fn success_or_read(self) -> Result<Self, Error> {
        if self.status.is_success() {
            return Ok(self);
        }
        let (url, status, deadline) = (self.url.clone(), self.status, self.body.deadline);
        let whole = within(deadline, &url, self.bytes(64 << 10)).await;
        let text = whole.map(|b| String::from_utf8_lossy(&b).trim().to_owned()).unwrap_or_default();
        let text: String = text.chars().take(500).collect();
        Err(Error::new(Kind::BadAnswer, &url, format!("answered {status}: {text}")))
    }

    /// The whole body, at most `bytes_max` long. Whoever sends it and falls silent for the client's deadline, or brings less
    /// than a MiB in each, is not waited for.
    ///
    /// # Errors
    /// `BadAnswer` when it is longer, `Unknown` when it breaks off or does not come.
    pub async fn bytes(mut self, bytes_max: usize) -> Result<Bytes, Error> {
        let (url, deadline) = (self.url, self.body.deadline);
        let deadlines = u32::try_from(bytes_max / BYTES_A_DEADLINE).unwrap_or(u32::MAX).saturating_add(1);
        let whole = async {
            let mut whole = BytesMut::new();
            while let Some(chunk) = within(deadline, &url, self.body.chunk(&url)).await? {
                if whole.len() + chunk.len() > bytes_max {
                    return Err(Error::new(Kind::BadAnswer, &url, format!("answer is longer than {bytes_max} bytes")));
                }
                whole.extend_from_slice(&chunk);
            }
            Ok(whole.freeze())
        };
        within(deadline.saturating_mul(deadlines), &url, whole).await
    }

    /// The whole body within the client's deadline, as what it says.
    ///
    /// # Errors
    /// As [`Response::bytes`]; `BadAnswer` when it is something else.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let (url, deadline) = (self.url.clone(), self.body.deadline);
        let bytes = within(deadline, &url, self.bytes(WHOLE_BODY_BYTES_MAX)).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(Kind::BadAnswer, &url, format!("not the JSON expected: {e}")))
    }
}

async fn within<T>(deadline: Duration, url: &str, reading: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| {
        Error::new(Kind::Unknown, url, format!("began to answer, and was not done {} s later", deadline.as_secs_f32()))
    };
    tokio::time::timeout(deadline, reading).await.map_err(late)?
}

/// A body read chunk by chunk.
#[derive(Debug)]
pub struct Body {
    inner: Incoming,
    /// Its client's.
    deadline: Duration,
}

impl Body {
    /// The next data frame, or `None` at the end. Trailers are skipped.
    pub async fn chunk(&mut self, url: &str) -> Result<Option<Bytes>, Error> {
        loop {
            match self.inner.frame().await {
                None => return Ok(None),
                Some(Err(e)) => return Err(Error::new(Kind::Unknown, url, format!("broke off: {}", chain_of(&e)))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}
