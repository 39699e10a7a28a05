//! Streams that were open at the cut of a move: the old node goes on with them and reports how they ended; its successor
//! charges and signs. A restart of either must not lose that, so both have it on disk, sealed under their lease's key.
//!
//! What the old node does not report in time (its process is gone, and with it the stream) the successor closes at the last
//! mark. A report that comes twice, or after that, changes nothing: the book closes a call once.

use crate::context::Context;
use crate::conversation::ConversationInput;
use crate::error::{Error, Result};
use crate::main_loop::{Event, Node};
use crate::settle;
use crate::shared::Role;
use crate::state::Recorded;
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use pay::RequestId;
use pay::book::{BookInput, ChannelInput};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::seal::lockbox;

/// After a move, streams open at the cut that the old node has not reported by then are closed at their last mark. In
/// worlds with short days `restoreTimeout`, if that is less: the next move must not come before it.
const PATIENCE: Duration = Duration::from_secs(60);
/// A report is tried for a minute.
const ATTEMPTS: u32 = 30;
const RETRY: Duration = Duration::from_secs(2);

/// What a successor waits for.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Awaited {
    epoch: u64,
    /// Under which the old node reports.
    token: String,
    /// What it was serving at the cut.
    open: BTreeSet<RequestId>,
    /// Chain seconds.
    until: u64,
}

/// What a former operator has to report.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Reports {
    url: String,
    token: String,
    /// As [`Recorded`] is encoded.
    records: Vec<Vec<u8>>,
}

/// One thing on disk, whole or not at all, under the lease's key.
struct File {
    path: PathBuf,
    seal_key: [u8; 32],
}

impl File {
    fn awaited(cx: &Context) -> Self {
        Self::named(cx, "awaited.sealed")
    }

    fn reports(cx: &Context) -> Self {
        Self::named(cx, "reports.sealed")
    }

    fn named(cx: &Context, name: &str) -> Self {
        Self { path: cx.config.data_dir.join(name), seal_key: *cx.ring_file.seal_key() }
    }

    fn load<T: BorshDeserialize>(&self) -> Result<Option<T>> {
        let bad = |what: &str| Error::corrupt(format!("{} {what}", self.path.display()));
        match std::fs::read(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::retry(format!("cannot read {}", self.path.display())).caused_by(e)),
            Ok(sealed) => {
                let plain = lockbox::unlock(&self.seal_key, &sealed)
                    .map_err(|e| bad("does not open under this lease's key").caused_by(e))?;
                borsh::from_slice(&plain).map(Some).map_err(|e| bad("does not decode").caused_by(e))
            }
        }
    }

    fn save(&self, what: &impl BorshSerialize) -> Result<()> {
        let failed = || Error::retry(format!("{} cannot be written", self.path.display()));
        let plain = borsh::to_vec(what).map_err(|e| failed().caused_by(e))?;
        lockbox::lock_to(&self.path, &self.seal_key, &plain).map_err(|e| failed().caused_by(e))
    }

    fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::retry(format!("{} cannot be removed", self.path.display())).caused_by(e))
            }
            _ => Ok(()),
        }
    }
}

// ---- the successor ----

impl Node {
    /// This node begins to lead where another one ended, which has said its last word: what that one was serving, it still
    /// serves.
    pub(crate) fn await_reports(&mut self, epoch: u64) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let patience = PATIENCE.as_secs().min(self.cx.birth.timers.restoreTimeout.into());
        let awaited = Awaited {
            epoch,
            token: self.granted_token.clone().unwrap_or_default(),
            open: settle::being_served(live),
            until: self.now() + patience,
        };
        File::awaited(&self.cx).save(&awaited)?;
        self.wait_for(awaited);
        Ok(())
    }

    /// This process begins where another one of this host ended: whatever that one was serving is over, but for what a
    /// former operator still serves.
    pub(crate) fn close_interrupted(&mut self, epoch: u64) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let mut interrupted = settle::being_served(live);
        let awaited = File::awaited(&self.cx).load::<Awaited>()?.filter(|awaited| awaited.epoch == epoch);
        if let Some(awaited) = awaited {
            interrupted.retain(|request| !awaited.open.contains(request));
            self.granted_token = Some(awaited.token.clone());
            self.wait_for(awaited);
        }
        settle::close_unreported(self, &interrupted)
    }

    fn wait_for(&self, awaited: Awaited) {
        let left = Duration::from_secs(awaited.until.saturating_sub(self.now()));
        let cx = self.cx.clone();
        tokio::spawn(async move {
            tokio::time::sleep(left).await;
            cx.tell(Event::LateIsOver(awaited.open)).await;
        });
    }

    /// A former operator has had its time to report what it was serving at the cut.
    pub(crate) fn on_late_is_over(&mut self, open: &BTreeSet<RequestId>) -> Result<()> {
        settle::close_unreported(self, open)?;
        File::awaited(&self.cx).remove()
    }

    /// What the former operator said after the cut: charged and signed here.
    pub(crate) fn take_report(&mut self, token: &str, record: &[u8]) -> Result<()> {
        if self.granted_token.as_deref() != Some(token) {
            return Err(Error::superseded("only the node whose journal this one continues may report deliveries"));
        }
        let recorded = Recorded::decode(record)?;
        if !is_report(&recorded) {
            return Err(Error::superseded("only deliveries can be reported after the cut"));
        }
        let now = self.now();
        match &mut self.live {
            Some(live) if self.role == Role::Active => {
                live.record(now, &recorded)?;
                if matches!(recorded, Recorded::Conversation(_)) {
                    live.ring.learn(&live.state.conversations);
                }
                Ok(())
            }
            _ => Err(Error::retry("this node is not active yet")),
        }
    }
}

fn is_report(recorded: &Recorded) -> bool {
    match recorded {
        Recorded::Book(BookInput::Mark { .. } | BookInput::Delivered { .. } | BookInput::Aborted { .. })
        | Recorded::Conversation(ConversationInput::Store(_)) => true,
        Recorded::Book(BookInput::Channel(input)) => {
            matches!(input, ChannelInput::Mark { .. } | ChannelInput::Charged { .. } | ChannelInput::Aborted { .. })
        }
        _ => false,
    }
}

/// How far a stream is, which the next mark or its end says anew.
fn is_mark(recorded: &Recorded) -> bool {
    matches!(recorded, Recorded::Book(BookInput::Mark { .. } | BookInput::Channel(ChannelInput::Mark { .. })))
}

// ---- the former operator ----

impl Node {
    /// Something of a stream that goes on after this journal was closed, for the successor. It is on this disk when this
    /// returns; a mark is said once, and not kept.
    pub(crate) fn report_late(&mut self, recorded: Recorded) -> Result<()> {
        let (record, is_mark) = (recorded.encode(), is_mark(&recorded));
        if !is_mark {
            self.late.push(recorded);
        }
        let Some(url) = self.shared.moved() else { return Ok(()) };
        let Some((token, _)) = self.successor.clone() else { return Ok(()) };
        if !is_mark {
            let records = self.late.iter().map(Recorded::encode).collect();
            File::reports(&self.cx).save(&Reports { url: url.clone(), token: token.clone(), records })?;
        }
        let attempts = if is_mark { 1 } else { ATTEMPTS };
        tokio::spawn(report(self.cx.clone(), url, token, record, attempts));
        Ok(())
    }

    /// After a start: what a process before this one had to report is reported again. If the succession is taken back, it
    /// is this node's own to charge.
    pub(crate) fn resume_reports(&mut self) -> Result<()> {
        let Some(reports) = File::reports(&self.cx).load::<Reports>()? else { return Ok(()) };
        self.late = reports.records.iter().map(|record| Recorded::decode(record)).collect::<Result<_>>()?;
        for record in reports.records {
            tokio::spawn(report(self.cx.clone(), reports.url.clone(), reports.token.clone(), record, ATTEMPTS));
        }
        Ok(())
    }

    /// What ended after this journal was closed is in it now.
    pub(crate) fn reports_are_over(&self) -> Result<()> {
        File::reports(&self.cx).remove()
    }
}

async fn report(cx: Arc<Context>, url: String, token: String, record: Vec<u8>, attempts: u32) {
    let mut headers = HeaderMap::new();
    let Ok(bearer) = HeaderValue::from_str(&format!("Bearer {token}")) else { return };
    headers.insert(header::AUTHORIZATION, bearer);
    let body = Bytes::from(record);
    for attempt in 1..=attempts {
        let url = format!("{url}/peer/delivered");
        let sent = cx.http.send(Method::POST, &url, headers.clone(), body.clone()).await;
        match sent {
            Ok(answer) if answer.status.is_success() || answer.status.is_client_error() => return,
            _ if attempt < attempts => tokio::time::sleep(RETRY).await,
            _ => tracing::warn!(
                "what ended after the cut could not be reported: the successor closes it at its last mark"
            ),
        }
    }
}
