use super::selection::Dups;
use crate::cid::{self, Cid};
use crate::error::{Error, Kind};
use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What is addressed by its hash never changes. 29030400 s is the value the gateway specification gives.
const FOR_EVER: &str = "public, max-age=29030400, immutable";
const IPFS_PATH: &str = "x-ipfs-path";
const IPFS_ROOTS: &str = "x-ipfs-roots";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Car,
}

/// `?format=` wins over `Accept`, as the specification says. Nothing asked for is a 406: a gateway that is
/// trusted to unpack files would be another program.
pub(super) fn format_of(query: Option<&str>, headers: &HeaderMap) -> Result<Format, Problem> {
    match query {
        Some("raw") => return Ok(Format::Raw),
        Some("car") => return Ok(Format::Car),
        Some(other) => return Err(Problem::bad(format!("format `{other}` is none of raw, car"))),
        None => {}
    }
    let accepts = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    for accept in accepts {
        let mut parts = accept.split(';').map(str::trim);
        match parts.next() {
            Some("application/vnd.ipld.raw") => return Ok(Format::Raw),
            Some("application/vnd.ipld.car") => {
                return match parts.find_map(|p| p.strip_prefix("version=")) {
                    None | Some("1") => Ok(Format::Car),
                    Some(other) => Err(Problem::not_acceptable(format!("CAR version {other} is not sent; 1 is"))),
                };
            }
            _ => {}
        }
    }
    match headers.contains_key(header::ACCEPT) {
        true => Err(Problem::not_acceptable("only application/vnd.ipld.raw and application/vnd.ipld.car are sent")),
        false => Err(Problem::bad("say ?format=raw or ?format=car, or the same by Accept")),
    }
}

pub(super) fn block_head(cid: &Cid) -> HeaderMap {
    let mut head = head(cid, format!("\"{cid}.raw\""), "bin");
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/vnd.ipld.raw"));
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    head
}

/// `what` is everything beside the CID that decides which blocks are sent. The entity tag is weak: the order of
/// blocks is ours to choose. Says nothing of the content type, which [`add_car_type`] does once the blocks are known.
pub(super) fn car_head(cid: &Cid, what: &str) -> HeaderMap {
    let tag = format!("W/\"{cid}.car.{}\"", hex::encode(&cid::sha256(what.as_bytes())[..8]));
    head(cid, tag, "car")
}

/// The content type of a CAR, which says whether a block may come twice, if that is known (IPIP-412).
pub(super) fn add_car_type(head: &mut HeaderMap, dups: Dups) {
    let kind = match dups {
        Dups::No => "application/vnd.ipld.car; version=1; order=dfs; dups=n",
        Dups::Unsaid => "application/vnd.ipld.car; version=1; order=dfs",
    };
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
}

fn head(cid: &Cid, tag: String, extension: &str) -> HeaderMap {
    let mut head = HeaderMap::new();
    let mut put = |name: HeaderName, value: String| {
        let value = HeaderValue::from_str(&value).expect("CIDs are letters and digits");
        head.insert(name, value);
    };
    put(header::ETAG, tag);
    put(header::CACHE_CONTROL, FOR_EVER.to_owned());
    put(header::CONTENT_DISPOSITION, format!("attachment; filename=\"{cid}.{extension}\""));
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned());
    put(header::VARY, "Accept".to_owned());
    put(HeaderName::from_static(IPFS_PATH), format!("/ipfs/{cid}"));
    put(HeaderName::from_static(IPFS_ROOTS), cid.to_string());
    head
}

/// Says where a path led: the request's path as it came, and the object behind each of its segments.
pub(super) fn add_path(head: &mut HeaderMap, path: &str, roots: &[Cid]) {
    let roots: Vec<String> = roots.iter().map(Cid::to_string).collect();
    for (name, value) in [(IPFS_PATH, path), (IPFS_ROOTS, &roots.join(","))] {
        // A path that is no header text (none that came as a URL is) leaves the header as it was.
        if let Ok(value) = HeaderValue::from_str(value) {
            head.insert(HeaderName::from_static(name), value);
        }
    }
}

/// What of a block is asked for by `Range`, as first and last byte; `None` for all of it. Several ranges at once are
/// answered with all of it, as the RFC allows.
pub(super) fn range_of(headers: &HeaderMap, bytes: u64) -> Result<Option<(u64, u64)>, Problem> {
    let Some(text) = headers.get(header::RANGE).and_then(|v| v.to_str().ok()) else { return Ok(None) };
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|text| text.split_once('-')) else { return Ok(None) };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let last = bytes.saturating_sub(1);
    let (from, to) = match (from, to) {
        ("", suffix) => match number(suffix) {
            Some(0) => (bytes, last),
            Some(suffix) => (bytes.saturating_sub(suffix), last),
            None => return Ok(None),
        },
        (from, asked_to) => match (number(from), if asked_to.is_empty() { Some(last) } else { number(asked_to) }) {
            // A range that ends before it begins is no range: it is passed over.
            (Some(from), Some(to)) if !asked_to.is_empty() && to < from => return Ok(None),
            (Some(from), Some(to)) => (from, to.min(last)),
            _ => return Ok(None),
        },
    };
    if from >= bytes {
        return Err(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "no_such_range", format!("it has {bytes} bytes")));
    }
    Ok(Some((from, to)))
}

/// Whether the reader wants an answer only if it costs no fetch. Nothing is ever fetched here, so it changes only
/// how a miss is called.
pub(super) fn only_if_cached(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("only-if-cached"))
}

/// Whether the reader has this very entity already.
pub(super) fn not_modified(request: &HeaderMap, head: &HeaderMap) -> bool {
    let weak = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let Some(tag) = head.get(header::ETAG).and_then(|v| v.to_str().ok()).map(weak) else { return false };
    let asked = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    asked.flat_map(|v| v.split(',')).map(weak).any(|t| t == tag || t == "*")
}

/// A refusal as every API of this project words it: `{"error":{"code","message","request_id"}}`.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", message)
    }

    pub fn missing(cid: &Cid) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("block {cid} is not here"))
    }

    /// The same refusal for a reader who said `only-if-cached`.
    pub fn or_not_cached(self, headers: &HeaderMap) -> Self {
        match self.status == StatusCode::NOT_FOUND && only_if_cached(headers) {
            true => Self { status: StatusCode::PRECONDITION_FAILED, code: "not_cached", ..self },
            false => self,
        }
    }
}

impl From<Error> for Problem {
    /// The inner story is logged; the reader gets the status of who must act.
    fn from(e: Error) -> Self {
        let (status, code) = match e.kind {
            Kind::Usage => (StatusCode::BAD_REQUEST, "bad_request"),
            Kind::Missing => (StatusCode::NOT_FOUND, "not_found"),
            Kind::OverLimit => (StatusCode::PAYLOAD_TOO_LARGE, "block_too_large"),
            Kind::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            Kind::Unreachable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            // The blocks are what they are called: whoever made them made no graph that can be walked.
            Kind::Corrupt => (StatusCode::UNPROCESSABLE_ENTITY, "malformed_graph"),
            Kind::Disk | Kind::Key | Kind::Bug => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        if status.is_server_error() {
            let cause = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
            tracing::error!(error = %e, %cause, "a store request failed");
        }
        Self::new(status, code, e.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let request_id = hex::encode(rand::random::<[u8; 8]>());
        tracing::debug!(%request_id, status = %self.status, message = %self.message, "refused");
        let body = serde_json::json!({
            "error": { "code": self.code, "message": self.message, "request_id": request_id }
        });
        (self.status, Json(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_query_wins_over_accept_and_nothing_asked_is_refused() {
        let both = accept("application/vnd.ipld.raw");
        assert_eq!(format_of(Some("car"), &both).unwrap(), Format::Car);
        assert_eq!(format_of(None, &both).unwrap(), Format::Raw);
        let car = accept("text/html, application/vnd.ipld.car; version=1; order=dfs; dups=n");
        assert_eq!(format_of(None, &car).unwrap(), Format::Car);
        for refused in [accept("*/*"), accept("text/html"), accept("application/vnd.ipld.car; version=2")] {
            assert_eq!(format_of(None, &refused).unwrap_err().status, StatusCode::NOT_ACCEPTABLE);
        }
        assert_eq!(format_of(None, &HeaderMap::new()).unwrap_err().status, StatusCode::BAD_REQUEST);
        assert_eq!(format_of(Some("tar"), &HeaderMap::new()).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
    #[test]
    fn one_range_is_understood_and_others_are_passed_over() {
        let range = |text: &'static str, bytes| {
            range_of(&HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(text))]), bytes)
                .map_err(|problem| problem.status.as_u16())
        };
        assert_eq!(range("bytes=0-0", 10), Ok(Some((0, 0))));
        assert_eq!(range("bytes=3-", 10), Ok(Some((3, 9))));
        assert_eq!(range("bytes=3-99", 10), Ok(Some((3, 9))));
        assert_eq!(range("bytes=-4", 10), Ok(Some((6, 9))));
        assert_eq!(range("bytes=-40", 10), Ok(Some((0, 9))));
        for passed_over in ["bytes=5-4", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "bytes=-", "bytes=+1-2"] {
            assert_eq!(range(passed_over, 10), Ok(None), "{passed_over}");
        }
        for beyond in ["bytes=10-", "bytes=10-20", "bytes=-0"] {
            assert_eq!(range(beyond, 10), Err(416), "{beyond}");
        }
        assert_eq!(range("bytes=0-", 0), Err(416));
    }
}
