//! The answers: one function a route, each from request to signature with every check on the way.

use crate::ack::{self, OnChain};
use crate::agent::{Agent, Proposed, Released, Seat};
use crate::api::CLEAR;
use crate::config::StewardConfig;
use crate::eyes::Eyes;
use crate::limits::{Asker, Limits, Route};
use crate::refusal::Refusal;
use crate::segments::{Kept, Place};
use crate::share;
use crate::suspicion::Fault;
use crate::watch::{self, BlockView, Disappointed, NotDue, Rescue};
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolStruct;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chain::bindings::{Birth, State};
use chain::orders::{Ack, Alarm, Order, digest, domain, recover, rescue_argument, sign};
use chain::safe;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::StoreClient;
use store::checkpoint::{Checkpoint, ConversationPage, SegmentHeader, SegmentList, ShareRequest};
use store::cid;
use store::seal::{self, Identity, Recipient};

/// A checkpoint object is one block.
const OBJECT_BYTES_MAX: usize = 2 << 20;
/// Longest snapshot that is fetched before acknowledging. As the node's own bound.
const SNAPSHOT_BYTES_MAX: usize = 256 << 20;
const SHARE_BYTES_MAX: usize = 4096;
/// Seconds ahead of chain time that a rescue's deadline may lie.
const DEADLINE_AHEAD_MAX: u64 = 2 * crate::watch::ORDER_SECS;
/// So long a treasury that is not this steward's is not asked about again for whoever names it. Short, since one that is
/// just being born, or whose quorum just named this steward, asks again.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// Such treasuries remembered at once; beyond that the chain is asked.
const UNKNOWN_MAX: usize = 1_024;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    pub treasury: Address,
    pub seq: u64,
    pub digest: B256,
}

/// The only order that a daemon signs for another.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderRequest {
    pub treasury: Address,
    pub action: String,
    pub offer: u64,
    /// Seconds.
    pub term: u32,
    /// Policy bounds it on chain: price cap, prepayment and day limit.
    pub prepay_uusdc: u128,
    pub nonce: u64,
    pub deadline: u64,
    /// Of the same [`chain::orders::Order`], by who asks.
    #[serde(default)]
    pub signature: Bytes,
}

impl OrderRequest {
    /// What is signed.
    fn order(&self) -> Order {
        let argument = rescue_argument(self.offer, self.term, self.prepay_uusdc);
        Order::new(&self.action, argument, U256::from(self.nonce), self.deadline)
    }

    fn rescue(&self) -> Rescue {
        let Self { offer, term, prepay_uusdc, nonce, deadline, .. } = *self;
        Rescue { offer, term: term.into(), prepay_uusdc, nonce, deadline }
    }
}

/// What a daemon tells its peers: an alarm's name, or that it is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlarmRequest {
    pub treasury: Address,
    pub alarm: String,
    /// Chain seconds.
    pub at: u64,
    /// Of [`chain::orders::Alarm`], by the peer's order key.
    pub signature: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureAnswer {
    pub signer: Address,
    /// Over the message itself, or, where the signer owns the Safe that is the steward, over the Safe's message of it.
    pub signature: Bytes,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShareAnswer {
    /// The acknowledged checkpoint whose share it is.
    pub seq: u64,
    /// The share, sealed to the request's recipient.
    pub sealed_share_base64: String,
}

/// One steward: its keys, its eyes, its memory.
pub struct Desk {
    pub config: StewardConfig,
    pub eyes: Eyes,
    pub order_key: PrivateKeySigner,
    share_key: Identity,
    store: StoreClient,
    agents_dir: PathBuf,
    /// A std mutex: never held across an await, so what is checked and what is written belong together.
    agents: Mutex<BTreeMap<Address, Agent>>,
    /// The newest block that the watch looked at.
    block: Mutex<BlockView>,
    http: net::Client,
    started: Instant,
    limits: Mutex<Limits>,
    /// Providers that came to nothing for an agent, as the watch knows them.
    disappointed: Mutex<BTreeMap<Address, Disappointed>>,
    /// Treasuries that turned out not to be this steward's, and when.
    unknown: Mutex<BTreeMap<Address, Instant>>,
    /// Bad checkpoints that an operator signed, not told to the watch yet: treasury, epoch and lease, and which.
    bad: Mutex<BTreeMap<(Address, B256), (u64, u64)>>,
    /// Those that were told: each counts once.
    told: Mutex<BTreeSet<(Address, B256)>>,
}

impl Desk {
    pub fn new(
        config: StewardConfig,
        eyes: Eyes,
        order_key: PrivateKeySigner,
        share_key: Identity,
    ) -> std::io::Result<Self> {
        let agents_dir = config.data_dir.join("agents");
        std::fs::create_dir_all(&agents_dir)?;
        let http = net::Client::new();
        let store = StoreClient::new(http.clone(), config.store_urls.clone());
        Ok(Self {
            config,
            eyes,
            order_key,
            share_key,
            store,
            agents_dir,
            agents: Mutex::default(),
            block: Mutex::default(),
            http,
            started: Instant::now(),
            limits: Mutex::default(),
            disappointed: Mutex::default(),
            unknown: Mutex::default(),
            bad: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// `TooOften` for who asks `route` about `treasury` more than it may.
    pub fn admit(&self, from: IpAddr, treasury: Address, route: Route) -> Result<(), Refusal> {
        let known = Some(treasury).filter(|treasury| self.agents().contains_key(treasury));
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        match limits.take(Asker::new(from, known, route), now_ms) {
            true => Ok(()),
            false => Err(Refusal::TooOften),
        }
    }

    fn is_unknown(&self, treasury: Address) -> bool {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.retain(|_, since| since.elapsed() < UNKNOWN_FOR);
        unknown.contains_key(&treasury)
    }

    fn note_unknown(&self, treasury: Address) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.len() < UNKNOWN_MAX {
            unknown.insert(treasury, Instant::now());
        }
    }

    pub fn address(&self) -> Address {
        self.order_key.address()
    }

    pub fn http(&self) -> &net::Client {
        &self.http
    }

    pub fn share_recipient(&self) -> String {
        self.share_key.recipient().to_string()
    }

    /// Begins to watch `treasury` if it is a treasury of the configuration's or of its factory's, and this steward is one
    /// of its own, owns a Safe that is, or may rescue it. False if it is none of that; the chain is not asked again then
    /// for a few seconds.
    pub async fn adopt(&self, treasury: Address) -> Result<bool, Refusal> {
        if self.agents().contains_key(&treasury) {
            return Ok(true);
        }
        if self.is_unknown(treasury) {
            return Ok(false);
        }
        self.look_for(treasury).await
    }

    /// [`Desk::adopt`] for one that is not watched, whatever callers named before. `NotWatched` if there is no treasury
    /// (yet).
    ///
    /// A contract of a stranger's making can say of itself that this steward is one of its own: it is none of ours.
    pub async fn look_for(&self, treasury: Address) -> Result<bool, Refusal> {
        if self.is_genuine(treasury).await? == Some(false) {
            self.note_unknown(treasury);
            return Ok(false);
        }
        let Some(birth) = self.eyes.birth(treasury).await? else {
            self.note_unknown(treasury);
            return Err(Refusal::NotWatched);
        };
        let Some(seat) = self.eyes.seat(&birth, self.address()).await? else {
            self.note_unknown(treasury);
            return Ok(false);
        };
        let agent = Agent::open(&self.agents_dir, treasury, birth, seat)?;
        self.agents().entry(treasury).or_insert(agent);
        tracing::info!(%treasury, "watching an agent");
        Ok(true)
    }

    /// Whether the configuration names `treasury` or its factory made it; `None` if nothing is there.
    async fn is_genuine(&self, treasury: Address) -> Result<Option<bool>, Refusal> {
        if self.config.treasuries.contains(&treasury) {
            return Ok(Some(true));
        }
        match self.config.factory {
            Some(factory) => self.eyes.is_made_by(factory, treasury).await,
            None => Ok(Some(false)),
        }
    }

    /// Reads again what a quorum can change of an agent. One that does not name this steward any more is watched no
    /// longer, one that does now is watched from here on. False if it is none of its agents.
    pub async fn renew(&self, treasury: Address) -> Result<bool, Refusal> {
        if !self.agents().contains_key(&treasury) {
            return self.look_for(treasury).await;
        }
        let birth = self.eyes.birth(treasury).await?.ok_or(Refusal::NotWatched)?;
        let seat = self.eyes.seat(&birth, self.address()).await?;
        let is_ours = seat.is_some();
        let mut agents = self.agents();
        match (agents.get_mut(&treasury), seat) {
            (Some(agent), Some(seat)) => (agent.birth, agent.seat) = (birth, seat),
            (_, None) => {
                agents.remove(&treasury);
                tracing::warn!(%treasury, "the quorum named other stewards: watching it no longer");
            }
            (None, Some(_)) => {}
        }
        Ok(is_ours)
    }

    /// The agents watched, with what was fixed at their birth, and as whom this steward counts for them.
    pub fn watched(&self) -> BTreeMap<Address, (Birth, Seat)> {
        let entry = |(treasury, agent): (&Address, &Agent)| (*treasury, (agent.birth.clone(), agent.seat.clone()));
        self.agents().iter().map(entry).collect()
    }

    /// Signs as whom this steward is: with its own key, or as one owner of the Safe.
    fn sign<M: SolStruct>(&self, treasury: Address, message: &M) -> Result<Bytes, Refusal> {
        let (chain_id, seat) = (self.config.chain_id, self.with(treasury, |agent| Ok(agent.seat.clone()))?);
        let domain = domain(chain_id, treasury);
        let signed = match seat {
            Seat::Key { .. } | Seat::Rescuer { .. } => sign(message, &domain, &self.order_key),
            Seat::OwnerOf { safe, .. } => safe::sign(chain_id, safe, digest(message, &domain), &self.order_key),
        };
        signed.map_err(|e| Refusal::BadRequest { why: e.to_string() })
    }

    /// What the watch saw: kept for `/status` and for pruning. Of whom it could not read, what it saw last.
    pub fn saw(&self, mut block: BlockView, states: BTreeMap<Address, State>) {
        let mut agents = self.agents();
        for (treasury, state) in states {
            if let Some(agent) = agents.get_mut(&treasury) {
                agent.state = Some(state);
            }
        }
        drop(agents);
        let mut last = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let unread = last.treasuries.iter().filter(|view| block.unread.contains(&view.treasury));
        block.treasuries.extend(unread.cloned());
        *last = block;
    }

    /// What the watch remembers of providers, for what peers ask to have signed.
    pub fn set_disappointed(&self, disappointed: BTreeMap<Address, Disappointed>) {
        *self.disappointed.lock().unwrap_or_else(PoisonError::into_inner) = disappointed;
    }

    fn disappointed(&self, treasury: Address) -> Disappointed {
        let disappointed = self.disappointed.lock().unwrap_or_else(PoisonError::into_inner);
        disappointed.get(&treasury).cloned().unwrap_or_default()
    }

    pub fn block(&self) -> BlockView {
        self.block.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn agents(&self) -> MutexGuard<'_, BTreeMap<Address, Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a proposal to the quorum on the disk.
    pub fn note_proposal(&self, treasury: Address, proposed: &Proposed) -> Result<(), Refusal> {
        self.with(treasury, |agent| agent.note_proposal(proposed))
    }

    fn with<T>(&self, treasury: Address, act: impl FnOnce(&mut Agent) -> Result<T, Refusal>) -> Result<T, Refusal> {
        act(self.agents().get_mut(&treasury).ok_or(Refusal::NotWatched)?)
    }

    /// The chain's word about `treasury` now, agreed by all endpoints.
    async fn state(&self, treasury: Address) -> Result<State, Refusal> {
        if !self.adopt(treasury).await? {
            return Err(Refusal::NotWatched);
        }
        let head = self.eyes.head().await?;
        self.eyes.state(treasury, &head).await
    }

    /// `POST /ack`.
    pub async fn ack(&self, request: AckRequest) -> Result<SignatureAnswer, Refusal> {
        let AckRequest { treasury, seq, digest } = request;
        let state = self.state(treasury).await?;
        let chain = self.on_chain(treasury, &state);
        self.with(treasury, |agent| ack::check_request(&chain, seq, digest, agent.signed()))?;
        let (bytes, object) = self.fetch_object(digest).await?;
        ack::check_object(&chain, seq, &object)?;
        let before = self.with(treasury, |agent| Ok(agent.acknowledged(chain.checkpoint_digest)))?;
        let named = match self.open_share(&object) {
            Ok(_) => self.fetch_named(&object, before.as_ref()).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = named {
            // Its operator signed it as it is. What the store does not have is nobody's lie.
            if matches!(refusal, Refusal::NoShare { .. } | Refusal::BadObject { .. }) {
                self.hold_against(treasury, digest, (chain.epoch, state.activeLease.saturating_to()));
            }
            return Err(refusal);
        }
        // Fetching took a while: what is signed must be true now.
        let now = self.on_chain(treasury, &self.state(treasury).await?);
        if now != chain {
            self.with(treasury, |agent| ack::check_request(&now, seq, digest, agent.signed()))?;
            ack::check_object(&now, seq, &object)?;
        }
        self.with(treasury, |agent| agent.remember(now.epoch, seq, digest, &bytes))?;
        let ack = Ack { epoch: now.epoch, seq, digest, prev: now.checkpoint_digest };
        tracing::info!(%treasury, seq, %digest, "checkpoint acknowledged");
        self.answer(treasury, &ack)
    }

    fn hold_against(&self, treasury: Address, digest: B256, office: (u64, u64)) {
        if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert((treasury, digest)) {
            self.bad.lock().unwrap_or_else(PoisonError::into_inner).insert((treasury, digest), office);
        }
    }

    /// Bad checkpoints since the last time: of whom, and in which epoch and lease.
    pub fn bad_checkpoints(&self) -> Vec<(Address, (u64, u64))> {
        let bad = std::mem::take(&mut *self.bad.lock().unwrap_or_else(PoisonError::into_inner));
        bad.into_iter().map(|((treasury, _), office)| (treasury, office)).collect()
    }

    /// Fetches and verifies all that `object` names, but for what `before`, which this steward acknowledged, named too:
    /// an acknowledgement says that a successor will find it.
    async fn fetch_named(&self, object: &Checkpoint, before: Option<&Checkpoint>) -> Result<(), Refusal> {
        let not_stored = |what: String| move |e: store::Error| Refusal::NotStored { what: format!("{what}: {e}") };
        let fetch = |named: cid::Cid| async move {
            self.store.get_bytes(&named, SNAPSHOT_BYTES_MAX).await.map_err(not_stored(named.to_string()))
        };
        if before.is_none_or(|b| (b.snapshot, b.snapshot_bytes) != (object.snapshot, object.snapshot_bytes)) {
            let bytes = fetch(object.snapshot).await?.len();
            if u64::try_from(bytes) != Ok(object.snapshot_bytes) {
                let why = format!("the snapshot has {bytes} bytes, not {}", object.snapshot_bytes);
                return Err(Refusal::BadObject { why });
            }
        }
        fetch(object.keys).await?;
        fetch(object.log).await?;
        let known = before.and_then(|before| before.segments);
        let lists = SegmentList::read(&self.store, object.segments, known, object.agent).await;
        for (_, list) in lists.map_err(not_stored("a list of segments".into()))? {
            for segment in list.segments {
                fetch(segment).await?;
            }
        }
        for page in object.conversations.iter().filter(|page| before.is_none_or(|b| !b.conversations.contains(page))) {
            let page = ConversationPage::from_bytes(&fetch(*page).await?)
                .map_err(|e| Refusal::BadObject { why: e.to_string() })?;
            for conversation in page.conversations {
                fetch(conversation).await?;
            }
        }
        Ok(())
    }

    /// `POST /segments`.
    pub async fn segment(&self, header: SegmentHeader) -> Result<(), Refusal> {
        let treasury = header.agent;
        // Read for each header, though several come a second: one of an operator that was superseded a block ago
        // would tell it that its records are safe.
        let state = self.state(treasury).await?;
        if self.on_chain(treasury, &state).operator.is_zero() {
            return Err(Refusal::WrongStage);
        }
        if header.epoch != state.epoch {
            return Err(Refusal::WrongEpoch { current: state.epoch, got: header.epoch });
        }
        header.verify(state.operator, treasury, self.config.chain_id)?;
        if !self.is_stored(&header.cid).await {
            return Err(Refusal::NotStored { what: format!("segment {}", header.cid) });
        }
        let place = Place {
            epoch: header.epoch,
            index: header.index,
            first_lsn: header.first_lsn,
            last_lsn: header.last_lsn,
            cid: header.cid.to_string(),
            prev: header.prev.map(|p| p.to_string()),
        };
        let header = serde_json::to_value(&header).map_err(|e| Refusal::BadObject { why: e.to_string() })?;
        let kept = Kept { place, header };
        match self.with(treasury, |agent| agent.accept(kept.clone())) {
            // The chain of segments starts again at a checkpoint; perhaps the chain has one that the watch has not
            // come to yet. One that is only acknowledged does not count: a successor could not restore it.
            Err(Refusal::Gap { .. }) => {
                self.with(treasury, |agent| {
                    agent.state = Some(state);
                    Ok(())
                })?;
                self.prune(treasury).await?;
                self.with(treasury, |agent| agent.accept(kept))
            }
            done => done,
        }
    }

    /// `GET /segments/{treasury}`.
    pub fn segments(
        &self,
        treasury: Address,
        epoch_from: u64,
        after_lsn: u64,
    ) -> Result<Vec<serde_json::Value>, Refusal> {
        self.with(treasury, |agent| Ok(agent.segments().after(epoch_from, after_lsn).cloned().collect()))
    }

    /// `POST /share`.
    pub async fn share(&self, request: ShareRequest) -> Result<ShareAnswer, Refusal> {
        let treasury = request.treasury;
        let state = self.state(treasury).await?;
        let chain = self.on_chain(treasury, &state);
        share::check(&chain, &state, &request)?;
        let recipient = Recipient::parse(&request.recipient)
            .map_err(|e| Refusal::BadRequest { why: format!("the recipient: {e}") })?;
        self.with(treasury, Agent::may_share)?;
        let object = self.acknowledged(treasury, chain.checkpoint_digest).await?;
        let share = self.open_share(&object)?;
        let sealed = seal::seal(share.as_bytes(), &[recipient])
            .map_err(|e| Refusal::BadRequest { why: format!("nothing can be sealed to the recipient: {e}") })?;
        let released = Released {
            at: self.block().timestamp,
            epoch: chain.epoch,
            lease: request.lease,
            operator: chain.operator,
            recipient: request.recipient,
            seq: object.seq,
            digest: chain.checkpoint_digest,
        };
        self.with(treasury, |agent| agent.note_release(&released))?;
        tracing::warn!(
            %treasury, seq = object.seq, epoch = chain.epoch, lease = request.lease, to = %chain.operator,
            "share of the memory key released to a restoring operator"
        );
        Ok(ShareAnswer { seq: object.seq, sealed_share_base64: BASE64_STANDARD.encode(sealed) })
    }

    /// This steward's word to its peers about `treasury`, signed.
    pub fn alarm(&self, treasury: Address, alarm: &str, at: u64) -> Result<AlarmRequest, chain::Error> {
        let message = Alarm { alarm: alarm.to_owned(), at };
        let signature = sign(&message, &domain(self.config.chain_id, treasury), &self.order_key)?;
        Ok(AlarmRequest { treasury, alarm: message.alarm, at, signature })
    }

    /// Whose word `request` is: a peer's of the configuration, about an agent that is watched here, in a word that
    /// daemons have.
    pub fn peer_of(&self, request: &AlarmRequest) -> Result<Address, Refusal> {
        let AlarmRequest { treasury, alarm, at, signature } = request;
        if !self.agents().contains_key(treasury) {
            return Err(Refusal::NotWatched);
        }
        let mut known = watch::Alarm::ALL.iter().map(|a| a.as_str()).chain(Fault::ALL.iter().map(|f| f.as_str()));
        if alarm != CLEAR && !known.any(|known| known == alarm) {
            return Err(Refusal::BadRequest { why: "no alarm of that name".into() });
        }
        let message = Alarm { alarm: alarm.clone(), at: *at };
        let signer = recover(&message, &domain(self.config.chain_id, *treasury), signature).ok();
        let peer = self.config.peers.iter().map(|peer| peer.address).find(|peer| Some(*peer) == signer);
        peer.ok_or_else(|| Refusal::BadRequest { why: "no peer of this steward signed it".into() })
    }

    /// Refuses a request that neither a peer of the configuration nor a rescuer of the agent signed.
    fn check_asker(&self, request: &OrderRequest) -> Result<(), Refusal> {
        let rescuers = self.with(request.treasury, |agent| Ok(agent.birth.options.rescuers.clone()))?;
        let domain = domain(self.config.chain_id, request.treasury);
        let asker = recover(&request.order(), &domain, &request.signature).ok();
        let known = self.config.peers.iter().map(|peer| peer.address).chain(rescuers);
        match known.into_iter().any(|known| Some(known) == asker) {
            true => Ok(()),
            false => {
                Err(Refusal::BadRequest { why: "no peer of this steward and no rescuer of the agent signed it".into() })
            }
        }
    }

    /// `POST /sign-order`: a peer prepares a rescue; this steward signs if it sees the silence itself and would order the
    /// same.
    pub async fn sign_order(&self, request: OrderRequest) -> Result<SignatureAnswer, Refusal> {
        let OrderRequest { treasury, offer, term, prepay_uusdc, nonce, deadline, .. } = request;
        if request.action != "rescue" {
            return Err(Refusal::NotForDaemons { action: request.action });
        }
        if !self.adopt(treasury).await? {
            return Err(Refusal::NotWatched);
        }
        self.check_asker(&request)?;
        // A quorum may have named other stewards since this daemon last looked.
        if !self.renew(treasury).await? {
            return Err(Refusal::NotWatched);
        }
        let (birth, seat) = self.with(treasury, |agent| Ok((agent.birth.clone(), agent.seat.clone())))?;
        let head = self.eyes.head().await?;
        let (_, mut view) = self.eyes.look(treasury, &birth, (self.address(), &seat), &head).await?;
        if !view.may_rescue {
            return Err(Refusal::LeftToPeople);
        }
        view.rescue_due(head.timestamp).map_err(Refusal::NotDue)?;
        if nonce != view.order_nonce {
            return Err(Refusal::WrongNonce { expected: view.order_nonce, got: nonce });
        }
        if deadline < head.timestamp || deadline > head.timestamp.saturating_add(DEADLINE_AHEAD_MAX) {
            return Err(Refusal::BadDeadline);
        }
        let (offers, barred) = self.eyes.offers(treasury, birth.market, &head).await?;
        view.barred = barred;
        let chosen = view.agreed_offer(offer, &offers, &self.disappointed(treasury));
        let chosen = chosen.ok_or(Refusal::BadOffer { offer })?;
        if !view.is_funded_for(chosen) {
            return Err(Refusal::NotDue(NotDue::Asleep));
        }
        if !view.agrees_to(&request.rescue(), chosen) {
            return Err(Refusal::BadTerms);
        }
        tracing::warn!(%treasury, offer, term, prepay_uusdc, nonce, "rescue signed");
        // Rescuers are keys, also where the stewards are a Safe.
        let signed = sign(&request.order(), &domain(self.config.chain_id, treasury), &self.order_key);
        let signature = signed.map_err(|e| Refusal::BadRequest { why: e.to_string() })?;
        Ok(SignatureAnswer { signer: self.address(), signature })
    }

    /// After a checkpoint became the chain's: its segments and older objects go.
    pub async fn prune(&self, treasury: Address) -> Result<(), Refusal> {
        let Some(digest) = self.with(treasury, |agent| Ok(agent.wants_object()))? else { return Ok(()) };
        let object = self.acknowledged(treasury, digest).await?;
        self.with(treasury, |agent| agent.prune(digest, &object))
    }

    fn answer<M: SolStruct>(&self, treasury: Address, message: &M) -> Result<SignatureAnswer, Refusal> {
        Ok(SignatureAnswer { signer: self.address(), signature: self.sign(treasury, message)? })
    }

    fn on_chain(&self, treasury: Address, state: &State) -> OnChain {
        OnChain::of(self.config.chain_id, treasury, state)
    }

    async fn fetch_object(&self, digest: B256) -> Result<(Vec<u8>, Checkpoint), Refusal> {
        let name = cid::raw(digest.0);
        let bytes = self.store.get_bytes(&name, OBJECT_BYTES_MAX).await;
        let bytes = bytes.map_err(|e| Refusal::NotStored { what: format!("checkpoint {name}: {e}") })?;
        let object = Checkpoint::from_bytes(&bytes).map_err(|e| Refusal::BadObject { why: e.to_string() })?;
        Ok((bytes, object))
    }

    /// The object that the chain names, from the disk or (k others acknowledged it while this one was away) from
    /// the store. Its digest is on chain, so its signature need not be checked again.
    async fn acknowledged(&self, treasury: Address, digest: B256) -> Result<Checkpoint, Refusal> {
        if let Some(bytes) = self.with(treasury, |agent| Ok(agent.object(digest)))?
            && let Ok(object) = Checkpoint::from_bytes(&bytes)
            && object.digest() == digest.0
        {
            return Ok(object);
        }
        let (bytes, object) = self.fetch_object(digest).await?;
        self.with(treasury, |agent| agent.keep_object(digest, &bytes))?;
        Ok(object)
    }

    fn open_share(&self, object: &Checkpoint) -> Result<seal::Share, Refusal> {
        let no = |why: String| Refusal::NoShare { why };
        let share = object.share_of(self.address()).ok_or_else(|| no("there is none for it".into()))?;
        let sealed = BASE64_STANDARD.decode(&share.sealed).map_err(|e| no(e.to_string()))?;
        let plain = seal::open(&sealed, &self.share_key, SHARE_BYTES_MAX).map_err(|e| no(e.to_string()))?;
        seal::Share::from_bytes(&plain).map_err(|e| no(e.to_string()))
    }

    async fn is_stored(&self, name: &cid::Cid) -> bool {
        for url in self.store.urls() {
            let head = self.http.head(&format!("{url}/ipfs/{name}?format=raw")).await;
            if head.is_ok_and(|answer| answer.status.is_success()) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
pub(crate) mod tests;
