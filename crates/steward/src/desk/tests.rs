use super::*;
use crate::api::{Notes, router};
use crate::eyes::clone_of;
use crate::stand_in::{answers, endpoint, failure, served};
use chain::bindings::{Treasury, TreasuryFactory};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const ME: u8 = 11;
pub(crate) const FACTORY: Address = Address::repeat_byte(0xfa);
const IMPLEMENTATION: Address = Address::repeat_byte(0x1e);

fn key(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
}

/// Key [`ME`]'s daemon on the chain at `rpc`, with a factory.
pub(crate) fn desk(dir: &std::path::Path, rpc: &str, change: impl FnOnce(&mut StewardConfig)) -> Desk {
    let mut config = StewardConfig {
        data_dir: dir.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        rpc_urls: vec![rpc.to_owned()],
        chain_id: 31337,
        treasuries: vec![],
        factory: Some(FACTORY),
        order_key_file: dir.join("order.key"),
        share_key_file: dir.join("share.key"),
        peers: vec![],
        store_urls: vec![],
        probe: false,
    };
    change(&mut config);
    let eyes = Eyes::new(&config.rpc_urls, 31337).unwrap();
    Desk::new(config, eyes, key(ME), Identity::generate()).unwrap()
}

/// What a chain answers on which all treasuries name this steward, and `code` is at each.
pub(crate) fn one_of_ours(method: &str, params: &Value, code: &Bytes) -> Option<Value> {
    let birth = Birth { stewards: vec![key(ME).address()], threshold: 1, ..Birth::default() };
    match method {
        "eth_getCode" => Some(json!(code)),
        "eth_call" => answers::<TreasuryFactory::implementationCall>(params, &IMPLEMENTATION)
            .or_else(|| answers::<Treasury::birthOfCall>(params, &birth)),
        _ => None,
    }
}

/// The code of what [`FACTORY`] makes.
pub(crate) fn genuine() -> Bytes {
    clone_of(IMPLEMENTATION)
}

async fn steward(desk: Desk) -> String {
    served(router(Arc::new(desk), Notes::default())).await
}

#[tokio::test]
async fn a_treasury_that_is_none_is_looked_for_once_and_who_floods_is_told_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    // No contract is anywhere.
    let empty = move |_: &str, _: &Value| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(json!("0x"))
    };
    let url = steward(desk(dir.path(), &endpoint(empty).await, |_| ())).await;
    let http = net::Client::new();
    let nobody = Address::repeat_byte(3);
    let header = SegmentHeader {
        agent: nobody,
        chain_id: 31337,
        epoch: 1,
        index: 0,
        first_lsn: 1,
        last_lsn: 2,
        cid: cid::of_raw(b"segment"),
        prev: None,
        bytes: 7,
        recipient: Identity::generate().recipient().to_string(),
        signature: format!("0x{}", "00".repeat(65)),
    };
    let rescue = json!({ "treasury": nobody, "action": "rescue", "offer": 1, "term": 600, "prepay_uusdc": 1,
        "nonce": 0, "deadline": 1 });
    let share = json!({ "treasury": nobody, "chain_id": 31337, "epoch": 1, "lease": 1,
        "recipient": Identity::generate().recipient().to_string(), "signature": format!("0x{}", "00".repeat(65)) });
    let routes = [
        ("ack", json!({ "treasury": nobody, "seq": 1, "digest": B256::ZERO }), 30),
        ("sign-order", rescue, 30),
        ("segments", serde_json::to_value(header).unwrap(), 300),
        ("segments of", json!({}), 300),
        ("share", share, 30),
    ];
    for (route, body, burst) in routes {
        let (mut unknown, mut told_to_wait) = (0, 0);
        // A busy machine lets a few more through while this goes on.
        for _ in 0..2 * burst {
            let answer = match route {
                "segments of" => http.get(&format!("{url}/segments/{nobody}")).await.unwrap(),
                _ => http.post_json(&format!("{url}/{route}"), &body).await.unwrap(),
            };
            match answer.status.as_u16() {
                404 => unknown += 1,
                429 => told_to_wait += 1,
                other => panic!("{route}: {other}"),
            }
        }
        assert!(unknown >= burst && told_to_wait > 0, "{route}: {unknown} let in, {told_to_wait} told to wait");
    }
    let asked = asked.load(Ordering::SeqCst);
    // Each time it was forgotten, twice more: seconds on a busy machine, and never once a request.
    assert!((1..=24).contains(&asked), "the chain was asked {asked} times");
}

#[tokio::test]
async fn a_strangers_contract_that_names_this_steward_is_not_watched() {
    let stranger = Address::repeat_byte(3);
    for (code, treasuries, factory, watched) in [
        (genuine(), vec![], Some(FACTORY), true),
        (clone_of(Address::repeat_byte(0x66)), vec![], Some(FACTORY), false),
        (Bytes::from_static(&[0x60]), vec![], Some(FACTORY), false),
        (genuine(), vec![], None, false),
        (Bytes::from_static(&[0x60]), vec![stranger], None, true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let said = code.clone();
        let chain = endpoint(move |method, params| one_of_ours(method, params, &said).ok_or_else(|| failure(method)));
        let desk = desk(dir.path(), &chain.await, |c| (c.treasuries, c.factory) = (treasuries, factory));
        let url = steward(desk).await;
        let answer = net::Client::new().get(&format!("{url}/segments/{stranger}")).await.unwrap();
        assert_eq!(answer.status.as_u16(), if watched { 200 } else { 404 }, "{code} of {factory:?}");
        // Nor is anything of it kept on the disk.
        assert_eq!(dir.path().join("agents").join(stranger.to_string()).exists(), watched);
    }
}
