use super::*;
use crate::conversation::{ConversationInput, ConversationKey, Stored, Transcript, Turn};
use crate::genesis::for_tests;
use crate::state::{Recorded, State};
use store::Blocks;
use tempfile::TempDir;

const AGENT: Address = Address::repeat_byte(0xa1);

/// A store that answers over HTTP, three stewards, and a node without its chain.
struct Bench {
    _dir: TempDir,
    blocks: Blocks,
    store: StoreClient,
    stewards: Vec<Steward>,
    share_keys: Vec<Identity>,
    operator: PrivateKeySigner,
    state: State,
    ring: KeyRing,
    lsn: u64,
    /// Records since the last checkpoint, as a segment carries them.
    tail: Vec<Recorded>,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blocks = Blocks::open(dir.path()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(store::serve(listener, blocks.clone(), std::future::pending()));
        let share_keys: Vec<Identity> = (0..3).map(|_| Identity::generate()).collect();
        let stewards = (1..).zip(&share_keys).map(|(n, key)| Steward {
            address: Address::repeat_byte(n),
            url: String::new(),
            share_recipient: key.recipient().to_string(),
        });
        Self {
            _dir: dir,
            store: StoreClient::new(net::Client::new(), vec![url]),
            blocks,
            stewards: stewards.collect(),
            share_keys,
            operator: PrivateKeySigner::random(),
            state: for_tests(),
            ring: KeyRing::default(),
            lsn: 0,
            tail: Vec::new(),
        }
    }

    fn record(&mut self, record: Recorded) {
        self.lsn += 1;
        self.state.apply(self.lsn, self.lsn, &record);
        self.tail.push(record);
    }

    /// As a customer's request does it.
    async fn store(&mut self, response: &str, payer: u8, text: &str) {
        let key: ConversationKey = rand::random();
        let turns = vec![Turn { role: "user".into(), content: text.into() }];
        let sealed = Transcript { response: response.into(), turns }.seal(&key).unwrap();
        let cid = self.store.put_bytes(&sealed).await.unwrap().to_string();
        let wrapped_key = self.ring.wrap(&key).unwrap();
        let (response, payer) = (response.to_owned(), [payer; 20]);
        self.ring.conversations.insert(response.clone(), key);
        self.record(Recorded::Conversation(ConversationInput::Store(Stored {
            response,
            payer,
            at: 1,
            cid,
            wrapped_key,
        })));
    }

    fn delete(&mut self, response: &str) {
        self.ring.conversations.remove(response);
        self.record(Recorded::Conversation(ConversationInput::Delete { response: response.into() }));
    }

    fn begin(&mut self, before: Option<&Checkpoint>) -> Draft {
        let seq = before.map_or(1, |before| before.seq + 1);
        self.ring.learn(&self.state.conversations);
        let (memory, chapter) = self.ring.begin(seq);
        self.tail.clear();
        Draft {
            epoch: 1,
            seq,
            prev: before.map_or(B256::ZERO, |before| B256::from(before.digest())),
            lsn: self.lsn,
            at: 1,
            state: self.state.encode(),
            memory,
            chapter,
            ring: self.ring.clone(),
            conversations: self.state.conversations.cids().map(str::to_owned).collect(),
            log: Vec::new(),
        }
    }

    async fn write(&self, draft: &Draft) -> Checkpoint {
        let home =
            Home { agent: AGENT, chain_id: 31337, stewards: &self.stewards, threshold: 2, operator: &self.operator };
        write(&self.store, &home, draft, (store::cid::of_raw(b"log"), 0)).await.unwrap()
    }

    async fn checkpoint(&mut self, before: Option<&Checkpoint>) -> Checkpoint {
        let draft = self.begin(before);
        let made = self.write(&draft).await;
        self.ring.stands(&made);
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

    /// A host that restores `made` with all shares, and the records after it.
    async fn restored(&self, made: &Checkpoint) -> (State, KeyRing) {
        let (snapshot, mut ring) = open(&self.store, made, &self.memory_key(made)).await.unwrap();
        let mut state = State::decode(&snapshot.state).unwrap();
        for (lsn, record) in (snapshot.lsn + 1..).zip(&self.tail) {
            state.apply(lsn, lsn, record);
        }
        ring.learn(&state.conversations);
        (state, ring)
    }

    /// What lies in the store under `cid`, opened with every key of `ring` whatever it was made for.
    async fn opens(&self, cid: &str, ring: &KeyRing) -> Option<String> {
        let sealed = self.store.get_bytes(&store::cid::parse(cid).unwrap(), 1 << 20).await.unwrap();
        let opened = ring.conversations.values().find_map(|key| Transcript::open(&sealed, key).ok());
        opened.map(|transcript| transcript.turns[0].content.clone())
    }
}

#[tokio::test]
async fn whoever_restores_the_checkpoint_after_a_deletion_cannot_open_the_conversation_any_more() {
    let mut here = Bench::new().await;
    let first = here.checkpoint(None).await;
    here.store("resp_1", 1, "my secret").await;
    here.store("resp_2", 1, "mine, too").await;
    here.store("resp_3", 2, "another's").await;
    let cid = |here: &Bench, id: &str| here.state.conversations.get(id).unwrap().cid.clone();
    let cids = ["resp_1", "resp_2", "resp_3"].map(|id| cid(&here, id));
    // Their records alone bring them to a successor, before any checkpoint has them.
    let (_, ring) = here.restored(&first).await;
    assert_eq!(here.opens(&cids[0], &ring).await.as_deref(), Some("my secret"));
    let wrapped = here.tail.clone();

    let second = here.checkpoint(Some(&first)).await;
    let (state, ring) = here.restored(&second).await;
    assert_eq!(here.opens(&cids[0], &ring).await.as_deref(), Some("my secret"));
    assert_eq!(state.conversations.of_payer(&[1; 20]).count(), 2);

    here.delete("resp_1");
    let third = here.checkpoint(Some(&second)).await;
    let (mut state, mut ring) = here.restored(&third).await;
    assert!(here.blocks.has(&store::cid::parse(&cids[0]).unwrap()), "its sealed bytes are still there");
    assert_eq!(here.opens(&cids[0], &ring).await, None);
    assert!(state.conversations.get("resp_1").is_none());
    assert_eq!(here.opens(&cids[1], &ring).await.as_deref(), Some("mine, too"));
    assert_eq!(here.opens(&cids[2], &ring).await.as_deref(), Some("another's"));

    // Nor by anything else that the shares of this checkpoint open: not by the records that brought the key, not by
    // the key objects before it, which are still in the store.
    for record in &wrapped {
        let Recorded::Conversation(input) = record else { continue };
        state.conversations.apply(input);
    }
    ring.learn(&state.conversations);
    assert!(!ring.conversations.contains_key("resp_1"));
    for older in [&first, &second] {
        let sealed = here.store.get_bytes(&older.keys, KEYS_BYTES_MAX).await.unwrap();
        let secrets = ring.memory.iter().map(|key| &key.secret).chain(&ring.chapters);
        for identity in secrets.map(|secret| Identity::parse(secret).unwrap()) {
            assert!(KeyRing::open(older, &sealed, &identity).is_err());
        }
    }
    // The host that lived through it has forgotten them, too.
    assert_eq!(here.opens(&cids[0], &here.ring).await, None);
    assert_eq!(here.ring.memory.len(), 1);
}

#[tokio::test]
async fn what_is_stored_while_a_checkpoint_is_made_opens_whether_it_is_mined_or_not() {
    let mut here = Bench::new().await;
    let first = here.checkpoint(None).await;
    let draft = here.begin(Some(&first));
    here.store("resp_1", 1, "meanwhile").await;
    let made = here.write(&draft).await;
    let cid = here.state.conversations.get("resp_1").unwrap().cid.clone();
    for chosen in [&first, &made] {
        let (_, ring) = here.restored(chosen).await;
        assert_eq!(here.opens(&cid, &ring).await.as_deref(), Some("meanwhile"), "{}", chosen.seq);
    }
    // Begun and given up: the next one goes on.
    let (third, _) = (here.checkpoint(Some(&first)).await, here.tail.clear());
    let (_, ring) = here.restored(&third).await;
    assert_eq!(here.opens(&cid, &ring).await.as_deref(), Some("meanwhile"));
}

#[tokio::test]
async fn a_key_object_of_another_checkpoint_is_refused_by_name() {
    let mut here = Bench::new().await;
    let first = here.checkpoint(None).await;
    let memory = here.memory_key(&first);
    let wrong = here.ring.seal_for(first.seq + 1, &memory.recipient()).unwrap();
    let refused = KeyRing::open(&first, &wrong, &memory).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("of checkpoint 2, not of 1"), "{refused}");
    let swapped = Checkpoint { keys: first.snapshot, ..first.clone() };
    let refused = open(&here.store, &swapped, &memory).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("key object"), "{refused}");
}
