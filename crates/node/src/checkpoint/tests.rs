use super::*;
use crate::conversation::{ConversationInput, ConversationKey, STORED_MAX, Stored, Transcript, Turn};
use crate::genesis::for_tests;
use crate::replicate::{self, PARTS_OF_A_DAY, Waiting};
use crate::state::{Recorded, State};
use economy::{Input, Usdc};
use pay::book::{BookInput, Delivery, Finish, Reservation, Timing};
use pay::receipt::run::Run;
use pay::receipt::{PaidBy, Receipt};
use pay::{RequestId, Settle, SettleExact, TransferMethod};
use store::Blocks;
use tempfile::TempDir;

mod collected;
mod folded;

const AGENT: Address = Address::repeat_byte(0xa1);
const CHAIN: u64 = 31337;
const EXPOSURE_MAX: u128 = 1_000_000;

/// A store that answers over HTTP, three stewards, and a node without its chain.
struct Bench {
    dir: TempDir,
    blocks: Blocks,
    store: StoreClient,
    stewards: Vec<Steward>,
    share_keys: Vec<Identity>,
    operator: PrivateKeySigner,
    live: Live,
    /// Chain seconds.
    now: u64,
}

/// In memory where there is some: thousands of small files, and syncs.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Bench {
    async fn new() -> Self {
        Self::at(folder()).await
    }

    async fn at(dir: TempDir) -> Self {
        let blocks = Blocks::open(dir.path().join("store")).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(store::serve(listener, blocks.clone(), std::future::pending()));
        let share_keys: Vec<Identity> = (0..3).map(|_| Identity::generate()).collect();
        let stewards = (1..).zip(&share_keys).map(|(n, key)| Steward {
            address: Address::repeat_byte(n),
            url: String::new(),
            share_recipient: key.recipient().to_string(),
        });
        let journal =
            journal::Journal::create(&dir.path().join("journal"), journal::Options::default(), Box::new(|_| ()));
        Self {
            store: StoreClient::new(net::Client::new(), vec![url]),
            blocks,
            stewards: stewards.collect(),
            share_keys,
            operator: PrivateKeySigner::from_bytes(&B256::repeat_byte(7)).unwrap(),
            live: Live::new(for_tests(), journal.unwrap(), 0, KeyRing::default(), EXPOSURE_MAX),
            now: 1_000_000,
            dir,
        }
    }

    fn record(&mut self, record: &Recorded) {
        self.live.record(self.now, record).unwrap();
    }

    /// As a customer's request does it.
    async fn store(&mut self, response: &str, payer: u8, text: &str) -> String {
        let key: ConversationKey = rand::random();
        let turns = vec![Turn { role: "user".into(), content: text.into() }];
        let sealed = Transcript { response: response.into(), turns, reply: None }.seal(&key).unwrap();
        let cid = self.store.put_bytes(&sealed).await.unwrap().to_string();
        self.stored(response, payer, &cid, key);
        cid
    }

    fn stored(&mut self, response: &str, payer: u8, cid: &str, key: ConversationKey) {
        let wrapped_key = self.live.ring.wrap(&key).unwrap();
        self.live.ring.conversations.insert(cid.to_owned(), key);
        let (response, payer, cid) = (response.to_owned(), [payer; 20], cid.to_owned());
        let stored = Stored { response, payer, at: self.now, cid, wrapped_key };
        self.record(&Recorded::Conversation(ConversationInput::Store(stored)));
    }

    fn snapshot(&mut self) {
        let made = self.live.snapshot().expect("none is being made").run();
        self.live.snapshot_made(&made);
        made.unwrap();
    }

    fn delete(&mut self, response: &str) {
        let cid = self.live.state.conversations.get(response).unwrap().cid.clone();
        self.live.ring.forget(&cid);
        self.record(&Recorded::Conversation(ConversationInput::Delete { response: response.into() }));
    }

    /// What was recorded and not shipped leaves.
    async fn ship(&mut self) {
        let first_lsn = self.live.shipping.replicated_lsn + 1;
        let last_lsn = self.live.journal.next_lsn() - 1;
        let Some(chapter) = self.live.ring.chapter.clone().filter(|_| last_lsn >= first_lsn) else { return };
        self.live.journal.sync().unwrap();
        let records = self.live.journal.export(first_lsn, last_lsn).unwrap();
        let to = Recipient::parse(&chapter).unwrap();
        let (cid, bytes) = replicate::store_sealed(&self.store, &records, &to).await.unwrap();
        self.live.shipping.sent.push(Sent { cid, first_lsn, last_lsn, bytes });
        self.live.replicated(last_lsn);
    }

    fn begin(&mut self, before: Option<&Checkpoint>) -> Draft {
        let place = Place {
            epoch: 1,
            seq: before.map_or(1, |before| before.seq + 1),
            prev: before.map_or(B256::ZERO, |before| B256::from(before.digest())),
            at: self.now,
            may_grow: true,
        };
        draw_up(&mut self.live, &place).unwrap()
    }

    async fn write(&self, draft: &mut Draft) -> Checkpoint {
        let home =
            Home { agent: AGENT, chain_id: CHAIN, stewards: &self.stewards, threshold: 2, operator: &self.operator };
        write(&self.store, &home, draft, (store::cid::of_raw(b"log"), 0)).await.unwrap()
    }

    async fn checkpoint(&mut self, before: Option<&Checkpoint>) -> Checkpoint {
        let mut draft = self.begin(before);
        let made = self.write(&mut draft).await;
        self.live.committed(Box::new(made.clone()), draft.pages);
        made
    }

    /// The memory key of `made`, from the shares of all stewards.
    fn memory_key(&self, made: &Checkpoint) -> Identity {
        let shares: Vec<seal::Share> = made
            .shares
            .iter()
            .zip(&self.share_keys)
            .map(|(share, key)| {
                let sealed = BASE64_STANDARD.decode(&share.sealed).unwrap();
                seal::Share::from_bytes(&seal::open(&sealed, key, 4096).unwrap()).unwrap()
            })
            .collect();
        let secret = seal::recover(&shares, 2, made.key_hash).unwrap().secret;
        Identity::parse(std::str::from_utf8(&secret).unwrap()).unwrap()
    }

    /// A host that restores `made` with all shares, and all segments that left since.
    async fn restored(&self, made: &Checkpoint) -> Live {
        let opened = open(&self.store, made, &self.memory_key(made)).await.unwrap();
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let snapshot = journal::Snapshot { lsn: opened.snapshot.lsn, bytes: opened.snapshot.state };
        let journal =
            journal::Journal::create_at(&dir, &snapshot, journal::Options::default(), Box::new(|_| ())).unwrap();
        let mut live =
            Live::new(State::decode(&snapshot.bytes).unwrap(), journal, snapshot.lsn, opened.ring, EXPOSURE_MAX);
        for run in &opened.runs {
            live.import(run).unwrap();
        }
        assert!(live.journal.next_lsn() > made.lsn, "it has less than it says");
        for segment in self.live.shipping.sent.iter().filter(|segment| segment.last_lsn > made.lsn) {
            let sealed = self.store.get_bytes(&segment.cid, SNAPSHOT_BYTES_MAX).await.unwrap();
            let run = live.ring.open_sealed(&sealed, SNAPSHOT_BYTES_MAX).unwrap();
            live.import(&run).unwrap();
        }
        live.ring.learn(&live.state.conversations);
        live
    }

    /// What lies in the store under `cid`, opened with every key of `ring` whatever it was made for.
    async fn opens(&self, cid: &str, ring: &KeyRing) -> Option<String> {
        let sealed = self.store.get_bytes(&store::cid::parse(cid).unwrap(), 1 << 20).await.unwrap();
        let opened = ring.conversations.values().find_map(|key| Transcript::open(&sealed, key).ok());
        opened.map(|transcript| transcript.turns[0].content.clone())
    }

    fn bytes_in_store(&self) -> u64 {
        self.blocks.iter().map(|block| block.unwrap().1).sum()
    }
}

#[tokio::test]
async fn the_memory_of_another_agent_or_chain_is_refused_by_name() {
    let made = Bench::new().await.checkpoint(None).await;
    assert!(is_of(&made, AGENT, CHAIN).is_ok());
    let (other, another) = (Address::repeat_byte(0xbb), CHAIN + 1);
    for (agent, chain_id) in [(other, CHAIN), (AGENT, another), (other, another)] {
        let made = Checkpoint { agent, chain_id, ..made.clone() };
        let error = is_of(&made, AGENT, CHAIN).expect_err("it is somebody else's");
        assert_eq!(error.kind, crate::Kind::Corrupt);
        let said = error.to_string();
        assert!(
            said.contains(&format!("belongs to agent {agent} on chain {chain_id}, not to agent {AGENT}")),
            "{said}"
        );
    }
}

/// Whether anything in the ring opens the conversation, or a page in the store that has its key. Memory keys aside.
async fn ring_opens(here: &Bench, checkpoints: &[&Checkpoint], cid: &str) -> bool {
    let mut ring = KeyRing { memory: Vec::new(), chapters: Vec::new(), ..here.live.ring.clone() };
    for page in checkpoints.iter().flat_map(|made| &made.conversations) {
        let bytes = here.store.get_bytes(page, PAGE_BYTES_MAX).await.unwrap();
        for number in ring.pages.keys().copied().collect::<Vec<_>>() {
            // Each key is tried on each page, whatever it was made for.
            let _ = ring.read_page(number, &bytes);
        }
    }
    here.opens(cid, &ring).await.is_some()
}

#[tokio::test]
async fn a_host_that_forgets_keeps_neither_key_nor_page_also_while_a_checkpoint_is_made() {
    let mut here = Bench::new().await;
    let first = here.checkpoint(None).await;
    let (one, two) = (here.store("resp_1", 1, "secret").await, here.store("resp_2", 1, "other").await);
    here.ship().await;
    let second = here.checkpoint(Some(&first)).await;
    assert!(ring_opens(&here, &[&second], &one).await);
    here.delete("resp_1");
    assert!(!ring_opens(&here, &[&second], &one).await, "the key of its page is still here");
    assert!(ring_opens(&here, &[&second], &two).await);

    // Forgotten between the drawing up of a checkpoint and its standing.
    let three = here.store("resp_3", 1, "late").await;
    here.ship().await;
    let mut draft = here.begin(Some(&second));
    let third = here.write(&mut draft).await;
    here.delete("resp_3");
    here.live.committed(Box::new(third.clone()), draft.pages);
    assert!(!ring_opens(&here, &[&second, &third], &three).await, "the checkpoint brought the page's key back");
    here.ship().await;
    let fourth = here.checkpoint(Some(&third)).await;
    let live = here.restored(&fourth).await;
    assert_eq!(
        here.opens(&two, &live.ring).await.as_deref(),
        Some("other"),
        "what else was on the page is on a new one"
    );
    assert_eq!(here.opens(&three, &live.ring).await, None);
}

#[tokio::test]
async fn a_journal_keeps_what_came_after_the_checkpoint_before() {
    let mut here = Bench::new().await;
    let lived = |here: &mut Bench| {
        // Longer than one of the journal's files.
        let line = Recorded::Line { kind: "long".into(), text: "x".repeat(1 << 20) };
        (0..9).for_each(|_| here.record(&line));
        here.live.journal.sync().unwrap();
        here.live.durable = here.live.journal.last_lsn();
    };
    lived(&mut here);
    here.ship().await;
    let first = here.checkpoint(None).await;
    here.snapshot();
    assert_eq!(here.live.journal.first_lsn(), 1, "the first checkpoint may be taken back");
    lived(&mut here);
    here.ship().await;
    let second = here.checkpoint(Some(&first)).await;
    lived(&mut here);
    here.snapshot();
    let kept = here.live.journal.first_lsn();
    assert!(kept > 1 && kept <= first.lsn + 1, "{kept} after checkpoints of {} and {}", first.lsn, second.lsn);
    // Whoever follows from the first goes on, and so does a start here.
    let last = here.live.journal.last_lsn();
    here.live.journal.export(first.lsn + 1, last).unwrap();
    let state = here.live.state.encode();
    let dir = here.dir.path().join("journal");
    drop(here.live);
    let (replayed, journal) =
        Live::replay(&dir, || unreachable!("a snapshot is there"), Box::new(|_| ())).unwrap().unwrap();
    assert_eq!((replayed.encode() == state, journal.last_lsn()), (true, last));
}

#[tokio::test]
async fn whoever_restores_the_checkpoint_after_a_deletion_cannot_open_the_conversation_any_more() {
    let mut here = Bench::new().await;
    let first = here.checkpoint(None).await;
    let cids = [
        here.store("resp_1", 1, "my secret").await,
        here.store("resp_2", 1, "mine, too").await,
        here.store("resp_3", 2, "another's").await,
    ];
    // Their records alone bring them to a successor, before any checkpoint has them.
    here.ship().await;
    let wrapped: Vec<Stored> = here.live.state.conversations.iter().cloned().collect();
    let live = here.restored(&first).await;
    assert_eq!(here.opens(&cids[0], &live.ring).await.as_deref(), Some("my secret"));

    let second = here.checkpoint(Some(&first)).await;
    let live = here.restored(&second).await;
    assert_eq!(here.opens(&cids[0], &live.ring).await.as_deref(), Some("my secret"));
    assert_eq!(live.state.conversations.of_payer(&[1; 20]).count(), 2);

    here.delete("resp_1");
    here.ship().await;
    let third = here.checkpoint(Some(&second)).await;
    let mut live = here.restored(&third).await;
    assert!(here.blocks.has(&store::cid::parse(&cids[0]).unwrap()), "its sealed bytes are still there");
    assert_eq!(here.opens(&cids[0], &live.ring).await, None);
    assert!(live.state.conversations.get("resp_1").is_none());
    assert_eq!(here.opens(&cids[1], &live.ring).await.as_deref(), Some("mine, too"));
    assert_eq!(here.opens(&cids[2], &live.ring).await.as_deref(), Some("another's"));

    // Nor by anything else that the shares of this checkpoint open: not by the record that brought the key, which is
    // in a segment that it names, and not by key objects and pages before it, which are still in the store.
    for stored in wrapped {
        live.state.conversations.apply(&ConversationInput::Store(stored));
    }
    live.ring.learn(&live.state.conversations);
    assert!(!live.ring.conversations.contains_key(&cids[0]) && live.ring.conversations.contains_key(&cids[1]));
    for older in [&first, &second] {
        let sealed = here.store.get_bytes(&older.keys, KEYS_BYTES_MAX).await.unwrap();
        let secrets = live.ring.memory.iter().map(|key| &key.secret).chain(&live.ring.chapters);
        for identity in secrets.map(|secret| Identity::parse(secret).unwrap()) {
            assert!(KeyRing::open(older, &sealed, &identity).is_err());
        }
        for page in &older.conversations {
            let page = here.store.get_bytes(page, PAGE_BYTES_MAX).await.unwrap();
            assert!(live.ring.read_page(0, &page).is_err());
        }
    }
    // The host that lived through it has forgotten it, too.
    assert_eq!(here.opens(&cids[0], &here.live.ring).await, None);
    assert_eq!(here.live.ring.memory.len(), 1);
}

#[tokio::test]
async fn what_is_stored_while_a_checkpoint_is_made_opens_whether_it_is_mined_or_not() {
    let mut here = Bench::new().await;
    let first = here.checkpoint(None).await;
    let mut draft = here.begin(Some(&first));
    let cid = here.store("resp_1", 1, "meanwhile").await;
    here.ship().await;
    let made = here.write(&mut draft).await;
    for chosen in [&first, &made] {
        let live = here.restored(chosen).await;
        assert_eq!(here.opens(&cid, &live.ring).await.as_deref(), Some("meanwhile"), "{}", chosen.seq);
    }
    // Begun and given up: the next one goes on.
    let third = here.checkpoint(Some(&first)).await;
    let live = here.restored(&third).await;
    assert_eq!(here.opens(&cid, &live.ring).await.as_deref(), Some("meanwhile"));
}

#[tokio::test]
async fn a_key_object_of_another_checkpoint_is_refused_by_name() {
    let mut here = Bench::new().await;
    let first = here.checkpoint(None).await;
    let memory = here.memory_key(&first);
    let wrong = here.live.ring.seal_for(first.seq + 1, &Pages::new(), &memory.recipient()).unwrap();
    let refused = KeyRing::open(&first, &wrong, &memory).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("of checkpoint 2, not of 1"), "{refused}");
    let swapped = Checkpoint { keys: first.snapshot, ..first.clone() };
    let refused = open(&here.store, &swapped, &memory).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("key object"), "{refused}");
}

#[test]
fn a_checkpoint_rests_on_older_segments_only_where_they_are_whole_few_and_of_this_epoch() {
    let sent = |first_lsn, last_lsn, bytes| Sent { cid: store::cid::of_raw(b"run"), first_lsn, last_lsn, bytes };
    let before = Checkpoint { lsn: 10, snapshot_bytes: 100, epoch: 3, segments_bytes: 4_200, ..example(AGENT, CHAIN) };
    let grown = |sent: &[Sent], epoch| Body::grown(&before, sent, epoch).map(|(_, lsn)| lsn);
    assert_eq!(grown(&[], 3), Some(10));
    assert_eq!(grown(&[sent(1, 10, 9_999), sent(11, 20, 1_000), sent(21, 21, 1_200)], 3), Some(21));
    assert_eq!(grown(&[sent(11, 20, 1_000), sent(21, 21, 1_201)], 3), None, "over 64 snapshots");
    assert_eq!(grown(&[sent(12, 20, 1)], 3), None, "a gap");
    assert_eq!(grown(&[sent(11, 20, 1)], 4), None, "another epoch");
    assert_eq!(grown(&[sent(9, 20, 1)], 3), Some(20), "replaced by a longer one");
}

/// The first of an agent, unsigned; what it names is nowhere.
pub(crate) fn example(agent: Address, chain_id: u64) -> Checkpoint {
    let recipient = Identity::generate().recipient().to_string();
    Checkpoint {
        version: store::checkpoint::VERSION,
        agent,
        chain_id,
        epoch: 1,
        seq: 1,
        prev: None,
        lsn: 1,
        snapshot: store::cid::of_raw(b"snapshot"),
        snapshot_bytes: 8,
        snapshot_lsn: 1,
        segments: None,
        segments_bytes: 0,
        chapter: recipient.clone(),
        keys: store::cid::of_raw(b"keys"),
        recipient,
        key_hash: B256::ZERO,
        threshold: 1,
        shares: Vec::new(),
        conversations: Vec::new(),
        log: store::cid::of_raw(b"log"),
        log_seq: 0,
        created_at: 1,
        signature: String::new(),
    }
}

// ---- a day ----

impl Bench {
    /// The records of one call paid by `exact`, as a node writes them.
    fn call(&mut self, number: u64) {
        let request = RequestId(u128::from(number).to_be_bytes());
        let hash = |part: u8| -> [u8; 32] {
            let mut bytes = [part; 32];
            bytes[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
            bytes
        };
        let (payer, nonce, amount) = ([u8::try_from(number % 200).unwrap(); 20], hash(1), Usdc(1_000));
        let settlement = Settle::Exact(SettleExact {
            payer,
            value: amount,
            valid_after: 0,
            valid_before: self.now + 300,
            nonce,
            signature: [hash(2), hash(3)].concat().into_iter().chain([27]).collect(),
            is_signed_by_key: true,
        });
        let id = RequestId::of_payment(TransferMethod::Eip3009, &payer, &nonce);
        let reservation = Reservation {
            request: id,
            settlement,
            timing: Timing::AtOnce,
            route: "POST /v1/responses".into(),
            body_digest: hash(4),
            identifier: Some(hash(5)),
            prompt_tokens: 100,
            max_tokens: 256,
            run: String::new(),
            at: self.now,
        };
        let delivery = Delivery {
            cached_tokens: 0,
            completion_tokens: 200,
            bytes: 800,
            output_digest: hash(6),
            finish: Finish::Stop,
            at: self.now,
            confirmed: true,
        };
        let receipt = Receipt {
            agent: AGENT,
            chain_id: CHAIN,
            epoch: 1,
            request,
            payer: payer.into(),
            paid_by: PaidBy::Authorization { nonce, transaction: hash(8) },
            model: hash(7),
            adapter: [0; 32],
            run: Run::default(),
            prompt: hash(4),
            output: hash(6),
            prompt_tokens: 100,
            cached_tokens: 0,
            completion_tokens: 200,
            embedding_tokens: 0,
            amount,
            issued_at: self.now,
        };
        let json = pay::receipt::SignedReceipt { receipt, signature: [9; 65] }.to_json();
        let settled = BookInput::Settled {
            method: TransferMethod::Eip3009,
            payer,
            nonce,
            amount,
            tx: hash(8),
            block: number,
            recorded: true,
        };
        let (first_lsn, last_lsn) = (self.live.journal.next_lsn(), self.live.journal.next_lsn());
        for record in [
            Recorded::Book(BookInput::Reserved(reservation)),
            Recorded::Book(BookInput::Mark { request: id, tokens: 64, amount: Usdc(300) }),
            Recorded::Book(BookInput::Mark { request: id, tokens: 128, amount: Usdc(600) }),
            Recorded::Book(BookInput::SettleSent { request: id }),
            Recorded::Book(BookInput::Delivered { request: id, delivery, amount }),
            Recorded::Book(settled),
            Recorded::Receipt { request: request.to_string(), json, cose: [9; 64] },
            Recorded::Life(Input::Earned { first_lsn, last_lsn, count: 1, tokens: 200, sum: amount }),
        ] {
            self.record(&record);
        }
    }
}

/// A day of 10,000 calls of an agent that remembers as many conversations as it may, sealed and stored: 64 MB of them, and
/// 1 GiB on a disk in the deep run (`cargo xtask test --deep memory`). Every tenth call stores one more. What the day puts
/// into stores is held against what the day changed: records, and the text of conversations.
#[tokio::test]
async fn a_day_of_ten_thousand_calls_writes_little_more_than_it_changed() {
    const CALLS: u64 = 10_000;
    const DAY: u64 = 86_400;
    const BEFORE: u64 = 2_000;
    let is_deep = std::env::var_os("VIVARIUM_DEEP").is_some();
    let (dir, text_bytes) = if is_deep { (tempfile::tempdir().unwrap(), 107_375) } else { (folder(), 6_500) };
    let mut here = Bench::at(dir).await;
    let mut stands = here.checkpoint(None).await;
    let mut texts = Vec::new();
    for number in 0..STORED_MAX {
        let text = text_of(number, text_bytes);
        let response = format!("resp_{number:024x}");
        texts.push((here.store(&response, 1, &text).await, number));
    }
    let memory = here.bytes_in_store();
    assert!(memory > u64::try_from(STORED_MAX * text_bytes).unwrap(), "{memory} bytes are stored");
    let disk_before = bytes_to_disk();
    for number in 0..BEFORE {
        here.now += 8;
        here.call(number);
    }
    // The snapshot that begins a chapter: its share of a day is reckoned below.
    here.live.stands = None;
    stands = here.checkpoint(Some(&stands)).await;
    let (begun, lsn) = (here.bytes_in_store(), here.live.journal.next_lsn());

    let (mut said, mut since_ms, mut next_checkpoint) = (0, None, here.now + 3_600);
    let start = here.now;
    for call in 0..CALLS {
        here.now = start + call * DAY / CALLS;
        here.call(BEFORE + call);
        if call % 10 == 0 {
            let text = format!("{call:-<10000}");
            here.store(&format!("resp_day_{call:020x}"), 2, &text).await;
            said += u64::try_from(text.len()).unwrap();
        }
        let now_ms = here.now * 1_000;
        let waiting = Waiting {
            since_ms: *since_ms.get_or_insert(now_ms),
            now_ms,
            day_secs: DAY,
            records: here.live.journal.next_lsn() - 1 - here.live.shipping.replicated_lsn,
            exposed: (0, 1),
            is_urgent: false,
        };
        if waiting.is_due() {
            here.ship().await;
            since_ms = None;
        }
        if here.now >= next_checkpoint {
            let before = here.now.saturating_sub(DAY);
            here.record(&Recorded::Book(BookInput::Pruned { before }));
            stands = here.checkpoint(Some(&stands)).await;
            next_checkpoint += 3_600;
        }
    }
    here.ship().await;
    stands = here.checkpoint(Some(&stands)).await;
    assert!(here.live.shipping.sent.is_empty() && stands.seq > 24, "{}", stands.seq);

    let written = here.bytes_in_store() - begun;
    here.live.journal.sync().unwrap();
    let journal = here.live.journal.export(lsn, here.live.journal.next_lsn() - 1).unwrap();
    let changed = u64::try_from(journal.len()).unwrap() + said;
    let of_snapshots = stands.segments_bytes / SEGMENTS_PER_SNAPSHOT;
    let over = |bytes: u64| (bytes * 1_000 / changed).saturating_sub(1_000);
    println!(
        "memory of {memory} bytes; changed {changed} bytes, written {written} ({} per mille over), of snapshots {of_snapshots} a day ({} with \
         them); a snapshot has {}, so one is made in {} days; segments at most {PARTS_OF_A_DAY} a day; this process \
         sent {} bytes to disks, its local journal, store and temporary files among them",
        over(written),
        over(written + of_snapshots),
        stands.snapshot_bytes,
        stands.snapshot_bytes * SEGMENTS_PER_SNAPSHOT / stands.segments_bytes.max(1),
        bytes_to_disk().saturating_sub(disk_before),
    );
    assert!(written > changed, "less than changed: something is not stored");
    assert!(over(written + of_snapshots) <= 50, "{} per mille over what changed", over(written + of_snapshots));

    // And all of it comes back.
    let live = here.restored(&stands).await;
    assert_eq!(live.state.digest(), here.live.state.digest());
    assert_eq!(live.ring.conversations, here.live.ring.conversations);
    // The oldest made room for the day's. Of the others, every hundredth is read.
    let left: Vec<_> = texts.iter().filter(|(cid, _)| live.ring.conversations.contains_key(cid)).collect();
    assert!(left.len() > STORED_MAX / 2, "{} conversations are left", left.len());
    for (cid, number) in left.iter().step_by(100) {
        let sealed = here.store.get_bytes(&store::cid::parse(cid).unwrap(), 1 << 20).await.unwrap();
        let transcript = Transcript::open(&sealed, &live.ring.conversations[cid]).unwrap();
        assert!(transcript.turns[0].content == text_of(*number, text_bytes), "conversation {number}");
    }
}

/// A text of so many bytes, of which no two are alike.
fn text_of(number: usize, bytes: usize) -> String {
    let mut text = format!("{number} ").repeat(bytes / 2);
    text.truncate(bytes);
    text
}

/// What the kernel counts for this process, all tests in it together: a figure beside the ones that are counted here.
fn bytes_to_disk() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0)
}
