//! An OpenAI base URL on this machine that pays by x402: what `vivarium proxy` serves.
//!
//! Ordinary SDKs talk to it unmodified. What it owes their user: nothing beyond the budget is signed, nothing is paid
//! twice for one call, and nothing that the SDK knows (its API key, cookies) reaches an agent. The buyer
//! ([`pay::buyer`]) holds the first two; this is HTTP around it.

mod agent;
mod problem;

pub use agent::{Agent, Whereabouts};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use bytes::{Bytes, BytesMut};
use economy::Usdc;
use futures::StreamExt;
use infer::api::files::Upload;
use pay::buyer::{Answer, Clock, Error, Fate, Kind};
use pay::seller::FRESH_ANSWER;
use pay::wire::{PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Longest request, and longest upload; the same as an agent's own limits.
const BODY_BYTES_MAX: usize = 1 << 20;
const UPLOAD_BYTES_MAX: usize = infer::api::files::BODY_BYTES_MAX;
const FILES: &str = "/v1/files";
/// Lists of what this payer paid for: the agent wants to know who asks.
const LISTS: [&str; 2] = [FILES, "/v1/batches"];
/// What is read and thrown away of a longer one, so that its sender hears the refusal and not a broken connection.
const DRAINED_BYTES_MAX: usize = 16 << 20;
/// Redirects followed for a free request.
const HOPS_MAX: usize = 4;
/// Longest silence inside a stream. Tokens come several a second; a host that is busy may take seconds for one. A guess,
/// unmeasured.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long open answers may take after Ctrl-C.
const CLOSING: Duration = Duration::from_secs(3);
/// What comes back from an agent's head beside the status.
const PASSED_BACK: [HeaderName; 7] = [
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::RETRY_AFTER,
    HeaderName::from_static("x-request-id"),
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    HeaderName::from_static("openai-processing-ms"),
];

/// Who lists, to an agent.
const PAYER: HeaderName = HeaderName::from_static("vivarium-payer");

/// What the proxy is made of.
pub struct Config {
    /// In order of preference. Their buyers share one budget ([`pay::buyer::Buyer::for_seller`]).
    pub agents: Vec<Agent>,
    /// For what is not paid.
    pub client: net::Client,
    pub budget_per_day: Usdc,
    pub when_unknown: WhenUnknown,
    /// Real time; the same that the buyers tell days by.
    pub now: Clock,
    /// Signs for lists of what was paid for. `None`: they are asked for unsigned, and refused.
    pub lister: Option<Lister>,
}

/// A header that says who lists, for the agent of this treasury.
pub type Lister = Box<dyn Fn(&Agent) -> Option<HeaderValue> + Send + Sync>;

/// What is done when an agent was paid for a call, does not answer, and nobody knows whether it took the payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenUnknown {
    /// The call fails. The same call asks the same agent with the same payment.
    Wait,
    /// The next agent is paid for it, too.
    PayAnother,
}

/// Serves on `listener` until `until` completes. `config.agents` must not be empty.
pub async fn serve(listener: TcpListener, config: Config, until: impl Future<Output = ()>) -> anyhow::Result<()> {
    assert!(!config.agents.is_empty(), "a proxy has an agent to buy from");
    let app = Router::new().fallback(answer).with_state(Arc::new(config));
    let listener = listener.tap_io(net::send_at_once);
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async {
        closed.await.ok();
    });
    let mut serving = std::pin::pin!(serving.into_future());
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        () = until => {}
    }
    close.send(()).ok();
    // Whoever is still listening after that is cut off; their payments are on record.
    match tokio::time::timeout(CLOSING, serving).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Ok(()),
    }
}

/// One line for one request, whatever becomes of it.
struct Line {
    config: Arc<Config>,
    what: String,
    status: Option<StatusCode>,
}

impl Drop for Line {
    fn drop(&mut self) {
        let status = self.status.map_or_else(|| "hung up".to_owned(), |status| status.as_u16().to_string());
        let spent = self.config.agents[0].buyer().signed_today();
        eprintln!("{} {status}; {spent} of {} spent today", self.what, self.config.budget_per_day);
    }
}

async fn answer(State(config): State<Arc<Config>>, request: Request) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path());
    // Dropped with this future when the client hangs up.
    let mut line = Line { config: Arc::clone(&config), what, status: None };
    let response = route(&config, request).await.unwrap_or_else(Problem::into_response);
    line.status = Some(response.status());
    response
}

async fn route(config: &Config, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    // Browsers add it to whatever a page sends elsewhere, and to every POST; SDKs never do.
    if head.headers.contains_key(header::ORIGIN) {
        return Err(Problem::for_browser());
    }
    if !head.uri.path().starts_with("/v1/") {
        return Err(Problem::for_not_found(head.uri.path()));
    }
    match head.method {
        Method::POST => paid(config, &head.uri, &head.headers, read(body, head.uri.path() == FILES).await?).await,
        Method::GET | Method::DELETE => {
            let answer = free(config, &head.method, &head.uri, &head.headers).await?;
            // Of what is got only a batch's output has a price, and an agent sells that to whoever posts, too: this buyer
            // pays for posts.
            if head.method == Method::GET && answer.status() == StatusCode::PAYMENT_REQUIRED && is_content(&head.uri) {
                return paid(config, &head.uri, &head.headers, Bytes::from_static(b"{}")).await;
            }
            Ok(answer)
        }
        method => Err(Problem::for_bad_request("method_not_allowed", format!("{method} is not forwarded"))),
    }
}

fn is_content(uri: &Uri) -> bool {
    uri.path().starts_with(FILES) && uri.path().ends_with("/content")
}

/// The whole JSON body. What SDKs upload is a form, whose delimiter is another one with each try: it becomes JSON, so that
/// the same file sent again is the same call.
async fn read(body: Body, is_upload: bool) -> Result<Bytes, Problem> {
    let bytes_max = if is_upload { UPLOAD_BYTES_MAX } else { BODY_BYTES_MAX };
    let (mut whole, mut drained) = (BytesMut::new(), 0);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|e| Problem::for_bad_request("broken_body", format!("the request broke off: {e}")))?;
        if drained > 0 || whole.len() + piece.len() > bytes_max {
            drained += piece.len();
            if drained > DRAINED_BYTES_MAX {
                break;
            }
            continue;
        }
        whole.extend_from_slice(&piece);
    }
    if drained > 0 {
        return Err(Problem::for_too_long(bytes_max));
    }
    if is_upload {
        // What cannot be read the agent refuses, by the name of the field.
        return Ok(Upload::parse(&whole).map_or_else(|_| whole.freeze(), |upload| upload.to_json().to_string().into()));
    }
    // Some SDKs post nothing where there is nothing to say.
    if whole.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    if let Err(e) = serde_json::from_slice::<serde::de::IgnoredAny>(&whole) {
        return Err(Problem::for_bad_request("invalid_json", format!("the body is not JSON: {e}")));
    }
    Ok(whole.freeze())
}

/// The only headers of the client's that an agent sees.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    headers.get(header::ACCEPT).map(|value| (header::ACCEPT, value.clone())).into_iter().collect()
}

async fn paid(config: &Config, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let target = target(uri);
    let mut headers = forwarded(headers);
    // The same question tomorrow is a new question. A retry of one whose payment is out gets its answer all the same.
    headers.insert(FRESH_ANSWER, HeaderValue::from_static("1"));
    // Where a payment for this call is out already, that agent is asked first; then those that answered of late.
    let is_out = |agent: &Agent| agent.buyer().is_out(&format!("http://agent{target}"), &body);
    let mut agents: Vec<&Agent> = config.agents.iter().collect();
    agents.sort_by_key(|agent| (!is_out(agent), agent.is_in_trouble()));
    let mut last = Problem::for_unreachable("there is no agent");
    for (index, agent) in agents.iter().enumerate() {
        let is_last = index + 1 == agents.len();
        let error = match ask(agent, &target, &headers, &body).await {
            Ok(answer) => {
                agent.heard(answer.status != StatusCode::SERVICE_UNAVAILABLE);
                if answer.status == StatusCode::SERVICE_UNAVAILABLE && !is_last && !is_out(agent) {
                    continue;
                }
                let (status, headers) = (answer.status, answer.headers.clone());
                return Ok(pass_back(status, &headers, pieces(answer)));
            }
            Err(error) => error,
        };
        if error.kind == Kind::Unreachable {
            agent.heard(false);
        }
        // Whatever went wrong after a payment left, that is asked about before anybody else is paid.
        match agent.buyer().ask_about(&format!("http://agent{target}"), &body).await {
            None | Some(Fate::Unpaid) => {
                last = Problem::for_call(&error, (config.now)());
                if !may_try_elsewhere(&error) {
                    return Err(last);
                }
            }
            Some(Fate::Paid | Fate::Unknown) => {
                agent.heard(false);
                last = Problem::for_call(&Error { kind: Kind::OutcomeUnknown, ..error }, (config.now)());
                if config.when_unknown == WhenUnknown::Wait {
                    return Err(last);
                }
            }
        }
    }
    Err(last)
}

/// Whether the call left nothing behind that could be money, or what it left is known to be dead.
fn may_try_elsewhere(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Unreachable | Kind::WrongSeller | Kind::NoAllowance | Kind::BadAnswer | Kind::OutcomeUnknown
    )
}

/// Asks one agent; once more if the record says that it is elsewhere now.
async fn ask(agent: &Agent, target: &str, headers: &HeaderMap, body: &Bytes) -> Result<Answer, Error> {
    let post =
        async |url: &str| agent.buyer().post_bytes(&format!("{url}{target}"), headers.clone(), body.clone()).await;
    let nowhere = |why| Error { kind: Kind::Unreachable, url: target.to_owned(), message: format!("{why:#}") };
    let url = agent.url().await.map_err(nowhere)?;
    let error = match post(&url).await {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    if !may_try_elsewhere(&error) {
        return Err(error);
    }
    match agent.read().await {
        Ok(now) if now != url => post(&now).await,
        _ => Err(error),
    }
}

/// What costs nothing: forwarded as it is, redirects followed here so that the SDK keeps to its base URL.
async fn free(config: &Config, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Response, Problem> {
    let target = target(uri);
    let plain = forwarded(headers);
    let mut last = String::from("there is no agent");
    for agent in &config.agents {
        let mut place = agent.url().await;
        let mut headers = plain.clone();
        if *method == Method::GET && LISTS.contains(&uri.path()) {
            // By the chain's time, which was read with the address.
            let who = config.lister.as_ref().and_then(|lister| lister(agent));
            headers.extend(who.map(|who| (PAYER, who)));
        }
        for attempt in 0..2 {
            let got = match &place {
                Ok(url) => get(&config.client, method, &format!("{url}{target}"), &headers).await,
                Err(e) => Err(format!("{e:#}")),
            };
            match got {
                Ok(response) => {
                    let url = response.url.clone();
                    let body = futures::stream::unfold((response.body, url), |(mut body, url)| async {
                        let piece = body.chunk(&url).await.transpose()?;
                        Some((piece, (body, url)))
                    });
                    return Ok(pass_back(response.status, &response.headers, Body::from_stream(body)));
                }
                Err(why) => last = why,
            }
            // What was deleted at one agent must not be deleted at another's.
            if attempt == 0 {
                place = agent.read().await;
            }
        }
        if *method != Method::GET {
            break;
        }
    }
    Err(Problem::for_unreachable(last))
}

async fn get(client: &net::Client, method: &Method, url: &str, headers: &HeaderMap) -> Result<net::Response, String> {
    let mut url = url.to_owned();
    for _ in 0..=HOPS_MAX {
        let response =
            client.send(method.clone(), &url, headers.clone(), Bytes::new()).await.map_err(|e| e.to_string())?;
        if !matches!(response.status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
            return Ok(response);
        }
        let location =
            response.header(&header::LOCATION).ok_or_else(|| format!("{url} redirects without a location"))?;
        let base = url.split('/').take(3).collect::<Vec<_>>().join("/");
        let is_path = location.starts_with('/') && !location.starts_with("//");
        url = if is_path { format!("{base}{location}") } else { location.to_owned() };
    }
    Err(format!("{url}: redirected more than {HOPS_MAX} times"))
}

fn target(uri: &Uri) -> String {
    uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string)
}

/// The answer's body, piece by piece as it comes. Dropped with the client's connection, and then the agent's is too.
fn pieces(answer: Answer) -> Body {
    Body::from_stream(futures::stream::unfold(answer, |mut answer| async {
        let piece = match tokio::time::timeout(SILENCE_MAX, answer.chunk()).await {
            Ok(piece) => piece.transpose()?.map_err(|e| e.to_string()),
            Err(_) => Err(format!("nothing came for {} s", SILENCE_MAX.as_secs())),
        };
        if let Err(error) = &piece {
            eprintln!("an answer broke off: {error}");
        }
        Some((piece, answer))
    }))
}

fn pass_back(status: StatusCode, headers: &HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for name in PASSED_BACK {
        if let Some(value) = headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}
