//! Three steward daemons around one real treasury: every refusal by name, then a death and a rescue.

mod frozen;
mod host;
mod quorum;
mod safe;
mod strangers;
mod world;

use chain::alloy::primitives::{Address, B256, Bytes, U256};
use chain::orders::{Ack, collect, domain};
use chain::treasury::calls;
use chain::{market, sender::Tx};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use store::checkpoint::{Checkpoint, ConversationPage, SegmentList, ShareRequest};
use store::seal::{self, Identity};
use world::{World, key, until};

/// Keys by number: 7 is the node of the first lease, 8 of the one after the rescue, 9 a stranger.
const NODE: u8 = 7;
const NEXT: u8 = 8;
const STRANGER: u8 = 9;

#[tokio::test(flavor = "multi_thread")]
async fn stewards_refuse_by_name_then_rescue() {
    let world = World::start().await;
    let (treasury, lease) = world.give_birth(key(NODE).address()).await;
    let stewards = world.stewards().await;
    let secret = Identity::generate().to_secret_string().as_bytes().to_vec();

    let digest = acknowledge(&world, treasury, &stewards, &secret).await;
    segments(&world, treasury, &stewards).await;
    let digest = skip_to_a_checkpoint(&world, treasury, &stewards, &secret, digest).await;

    // Nobody needs a share, and nobody is silent.
    let mine = world.share_request(treasury, 1, lease, NODE, &Identity::generate());
    world.refused(0, "share", &mine, "not_restoring").await;
    let theirs = world.share_request(treasury, 1, lease, STRANGER, &Identity::generate());
    world.refused(0, "share", &theirs, "wrong_operator").await;
    let forged = ShareRequest { recipient: Identity::generate().recipient().to_string(), ..mine.clone() };
    world.refused(0, "share", &forged, "wrong_operator").await;
    let head = world.chain.head().await.unwrap().timestamp;
    let order = |action: &str| json!({ "treasury": treasury, "action": action, "offer": 2, "term": 600, "prepay_uusdc": 1, "nonce": 0, "deadline": head + 100 });
    world.refused(1, "sign-order", &order("rescue"), "bad_request").await;
    let rescue_now = world.rescue_request(treasury, &world::sorted_stewards()[0], (2, 600, 1), 0).await;
    world.refused(1, "sign-order", &rescue_now, "no_silence").await;
    for action in ["pause", "stop", "evict", "extendMandate"] {
        world.refused(1, "sign-order", &order(action), "not_for_daemons").await;
    }

    rescue(&world, treasury, digest, &secret).await;
    world.stop().await;
}

/// What is done to a checkpoint before it is signed.
type Change<'a> = &'a dyn Fn(&mut Checkpoint);

/// The first checkpoint: all that is wrong with it in turn, then acknowledged by two and committed.
async fn acknowledge(world: &World, treasury: Address, stewards: &[Value], secret: &[u8]) -> B256 {
    let good =
        |signer: u8, change: &dyn Fn(&mut Checkpoint)| world.checkpoint(treasury, stewards, secret, signer, change);
    let ask = |seq: u64, digest: B256| json!({ "treasury": treasury, "seq": seq, "digest": digest });
    let lost = store::cid::of_raw(b"never stored");
    let list = SegmentList { agent: treasury, prev: None, segments: vec![lost] };
    let list = world.put(&list.to_bytes()).await;
    let page = world.put(&ConversationPage { conversations: vec![lost], keys: String::new() }.to_bytes()).await;
    let cases: [(u8, Change, &str); 9] = [
        (STRANGER, &|_| (), "wrong_operator"),
        (NODE, &|c| c.epoch = 2, "wrong_epoch"),
        (NODE, &|c| c.seq = 2, "wrong_seq"),
        (NODE, &|c| c.prev = Some(B256::repeat_byte(1)), "wrong_prev"),
        (NODE, &|c| c.snapshot = lost, "not_stored"),
        (NODE, &|c| (c.lsn, c.segments) = (11, Some(list)), "not_stored"),
        (NODE, &|c| c.conversations = vec![page], "not_stored"),
        (NODE, &|c| c.conversations = vec![c.log], "bad_object"),
        (NODE, &|c| c.shares[0].steward = Address::repeat_byte(1), "no_share"),
    ];
    for (signer, change, code) in cases {
        let object = good(signer, change);
        world.put(&object.to_bytes()).await;
        world.refused(0, "ack", &ask(1, object.digest().into()), code).await;
    }
    let (one, two) = (good(NODE, &|_| ()), good(NODE, &|c| (c.lsn, c.snapshot_lsn) = (11, 11)));
    let digest = B256::from(one.digest());
    world.refused(0, "ack", &ask(1, digest), "not_stored").await;
    for object in [&one, &two] {
        world.put(&object.to_bytes()).await;
    }
    world.refused(0, "ack", &ask(2, digest), "wrong_seq").await;
    world.refused(0, "ack", &json!({ "treasury": STRANGER }), "bad_request").await;
    let unknown = json!({ "treasury": Address::repeat_byte(3), "seq": 1, "digest": digest });
    let (status, _) = world.post(0, "ack", &unknown).await;
    assert!(status >= 400);

    let mut acks = Vec::new();
    for steward in [0, 1] {
        let answer = world.accepted(steward, "ack", &ask(1, digest)).await;
        acks.push(serde_json::from_value::<Bytes>(answer["signature"].clone()).unwrap());
        // Again the same: fine. Another object for the same place: never.
        world.accepted(steward, "ack", &ask(1, digest)).await;
        world.refused(steward, "ack", &ask(1, two.digest().into()), "already_signed").await;
    }
    let ack = Ack { epoch: 1, seq: 1, digest, prev: B256::ZERO };
    let acks =
        collect(&ack, &domain(world.chain.chain_id(), treasury), &acks, &world.addresses_of_stewards(), 2).unwrap();
    world.node(NODE, treasury, calls::commit(1, digest, B256::ZERO, acks)).await;
    world.refused(0, "ack", &ask(1, digest), "wrong_seq").await;
    digest
}

async fn segments(world: &World, treasury: Address, stewards: &[Value]) {
    assert_eq!(stewards.len(), 3);
    let sealed = world.put(b"sealed records").await;
    let header = |signer: u8, epoch: u64, index: u64, first: u64, prev: Option<store::cid::Cid>| {
        world.segment(treasury, signer, (epoch, index, first), sealed, prev)
    };
    world.refused(0, "segments", &header(STRANGER, 1, 0, 11, None), "wrong_operator").await;
    world.refused(0, "segments", &header(NODE, 2, 0, 11, None), "wrong_epoch").await;
    let lost = world.segment(treasury, NODE, (1, 0, 11), store::cid::of_raw(b"lost"), None);
    world.refused(0, "segments", &lost, "not_stored").await;
    for steward in 0..3 {
        let first = header(NODE, 1, 0, 11, None);
        world.accepted(steward, "segments", &first).await;
        world.accepted(steward, "segments", &first).await;
        world.refused(steward, "segments", &header(NODE, 1, 1, 15, Some(sealed)), "gap").await;
        world.accepted(steward, "segments", &header(NODE, 1, 1, 21, Some(sealed))).await;
        let listed = world.get(steward, &format!("segments/{treasury}?after_lsn=20")).await;
        assert_eq!(listed.as_array().unwrap().len(), 1);
        let listed = world.get(steward, &format!("segments/{treasury}?epoch_from=0&after_lsn=0")).await;
        assert_eq!(listed, serde_json::to_value([first, header(NODE, 1, 1, 21, Some(sealed))]).unwrap());
    }
}

/// Records that only a checkpoint holds are skipped by the segments after it: accepted as soon as the chain has
/// that checkpoint, and not before.
async fn skip_to_a_checkpoint(world: &World, treasury: Address, stewards: &[Value], secret: &[u8], prev: B256) -> B256 {
    let object = world.checkpoint(treasury, stewards, secret, NODE, &|c| {
        (c.seq, c.lsn, c.snapshot_lsn, c.prev) = (2, 35, 35, Some(prev));
    });
    let digest = B256::from(object.digest());
    world.put(&object.to_bytes()).await;
    let sealed = world.put(b"sealed records").await;
    let header = world.segment(treasury, NODE, (1, 2, 36), sealed, Some(sealed));
    let mut acks = Vec::new();
    for steward in [0, 1] {
        let ask = json!({ "treasury": treasury, "seq": 2, "digest": digest });
        let answer = world.accepted(steward, "ack", &ask).await;
        acks.push(serde_json::from_value::<Bytes>(answer["signature"].clone()).unwrap());
        world.refused(steward, "segments", &header, "gap").await;
    }
    let ack = Ack { epoch: 1, seq: 2, digest, prev };
    let acks =
        collect(&ack, &domain(world.chain.chain_id(), treasury), &acks, &world.addresses_of_stewards(), 2).unwrap();
    world.node(NODE, treasury, calls::commit(2, digest, prev, acks)).await;
    for steward in 0..3 {
        world.accepted(steward, "segments", &header).await;
        assert_eq!(world.get(steward, &format!("segments/{treasury}")).await, json!([header]));
    }
    digest
}

/// The operator falls silent with no standby: the stewards rent a host by themselves, its node takes over, and
/// two shares give it the memory key.
async fn rescue(world: &World, treasury: Address, digest: B256, secret: &[u8]) {
    let client = world.chain.treasury(treasury);
    world.wait_in_chain_time(30).await;
    let rescued = until("a rescue", || async {
        let state = client.state().await.ok()?;
        (!state.standbyLease.is_zero()).then_some(state.standbyLease.to::<u64>())
    })
    .await;
    let view = world.chain.market(world.addresses.market).lease(rescued).await.unwrap();
    assert_eq!(view.lease.provider, world.second_provider.address(), "the dead host's owner was chosen again");
    assert_eq!((view.lease.term, view.lease.escrow), (600, 160_000));

    let ready = market::calls::ready(rescued, key(NEXT).address(), "http://127.0.0.1:3", B256::ZERO);
    world.second_provider.send_and_wait(Tx::call(world.addresses.market, ready, "ready")).await.unwrap();
    let exchange = Identity::generate();
    let request = world.share_request(treasury, 2, rescued, NEXT, &exchange);
    // Not before the takeover: the chain still names the dead node.
    world.refused(0, "share", &request, "wrong_operator").await;
    world.node(NEXT, treasury, calls::takeover()).await;
    let state = client.state().await.unwrap();
    assert!(state.restoring);
    assert_eq!((state.operator, state.epoch), (key(NEXT).address(), 2));

    world.refused(0, "share", &world.share_request(treasury, 1, rescued, NEXT, &exchange), "wrong_epoch").await;
    world.refused(0, "share", &world.share_request(treasury, 2, rescued + 1, NEXT, &exchange), "not_restoring").await;
    world.refused(0, "share", &world.share_request(treasury, 2, rescued, NODE, &exchange), "wrong_operator").await;
    // Everything is right now, but one of the third's two endpoints tells of another chain: nothing is released on that.
    world.lies.store(true, Ordering::SeqCst);
    world.refused(2, "share", &request, "no_view").await;
    world.lies.store(false, Ordering::SeqCst);
    let mut shares = Vec::new();
    // The third steward did not acknowledge this checkpoint; it fetches the object by the chain's digest.
    for steward in [0, 2] {
        let answer = world.accepted(steward, "share", &request).await;
        assert_eq!(answer["seq"], 2);
        shares.push(world::open_share(&answer, &exchange));
        world.refused(steward, "share", &request, "too_often").await;
        let released = world.released(steward, treasury);
        assert_eq!(released.len(), 1, "one that left, and none that was refused: {released:?}");
        assert_eq!(
            (&released[0]["seq"], &released[0]["epoch"], &released[0]["lease"]),
            (&json!(2), &json!(2), &json!(rescued))
        );
        assert_eq!(released[0]["recipient"], json!(exchange.recipient().to_string()));
        assert_eq!((&released[0]["operator"], &released[0]["digest"]), (&json!(key(NEXT).address()), &json!(digest)));
    }
    assert_eq!(world.released(1, treasury), [json!(null); 0], "nobody asked it");
    assert_eq!(seal::combine(&shares).unwrap().as_slice(), secret);

    // The old operator's segments end here; the new one's begin where it restored to.
    let sealed = world.put(b"sealed records").await;
    world.refused(0, "segments", &world.segment(treasury, NODE, (1, 3, 46), sealed, Some(sealed)), "wrong_epoch").await;
    world.accepted(0, "segments", &world.segment(treasury, NEXT, (2, 3, 46), sealed, None)).await;
    let status = world.get(0, "status").await;
    assert_eq!(status["agents"][0]["segments"], 2);
    assert_eq!(status["agents"][0]["last_ack"]["digest"], json!(digest));
    assert_eq!(U256::from(status["agents"][0]["checkpoint_seq"].as_u64().unwrap()), U256::from(2));
}

/// What cannot work is refused at the start, with the reason and before a port is listened on.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_at_the_start() {
    let world = World::start().await;
    let nobody = Address::repeat_byte(0x99);
    let good = world.config(0);
    let refused = async |change: &dyn Fn(&mut steward::StewardConfig), words: &str| {
        let mut config = good.clone();
        change(&mut config);
        let refusal = steward::run(config, std::future::pending()).await.unwrap_err();
        assert!(format!("{refusal:#}").contains(words), "{refusal:#}");
    };
    refused(&|c| c.chain_id = 5, "but chain 5 is configured").await;
    refused(&|c| c.rpc_urls = vec!["http://127.0.0.1:1".into()], "is it running?").await;
    refused(&|c| c.factory = Some(nobody), "no treasury factory at").await;
    refused(&|c| c.factory = Some(world.addresses.usdc), "no treasury factory at").await;
    refused(&|c| c.treasuries = vec![nobody], "no treasury at").await;
    refused(&|c| c.treasuries = vec![world.addresses.market], "is no treasury").await;
    world.stop().await;
}
