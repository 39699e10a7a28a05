//! `GET /events`: status and log lines as they happen, and where the agent went when it moves.

use super::Api;
use super::gate::Kind;
use super::problem::Problem;
use crate::shared::Bulletin;
use axum::extract::{ConnectInfo, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use serde_json::json;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio_stream::wrappers::BroadcastStream;

pub async fn stream(
    State(api): State<Api>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let inside = api.readers.enter(from.ip(), Kind::Reader)?;
    let first = api.shared.status().map(Bulletin::Status).into_iter();
    let moved = api.shared.moved().map(Bulletin::Moved).into_iter();
    // A reader that fell behind loses lines, not the connection: `/log` has them all.
    let later = BroadcastStream::new(api.shared.bulletins()).filter_map(|b| async move { b.ok() });
    let all = stream::iter(first.chain(moved)).chain(later).filter_map(move |b| {
        // Until the reader hangs up.
        let _ = &inside;
        async move { encode(&b).map(Ok) }
    });
    Ok(Sse::new(all).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

fn encode(bulletin: &Bulletin) -> Option<Event> {
    let (name, data) = match bulletin {
        Bulletin::Status(status) => ("status", serde_json::to_string(&**status).ok()?),
        Bulletin::Moved(url) => ("moved", json!({ "url": url }).to_string()),
        Bulletin::Line(line) => (
            "log",
            json!({ "seq": line.seq, "at": line.at, "block": line.block, "kind": line.kind, "text": line.text })
                .to_string(),
        ),
    };
    Some(Event::default().event(name).data(data))
}
