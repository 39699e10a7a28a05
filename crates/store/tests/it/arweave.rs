//! Transactions, bundles and proofs against objects that arweave-js and arbundles made (tests/reference/arweave.mjs),
//! and the client against a node that follows the published interface and checks what it is sent.

use crate::support::{noise, refused, spawn, store};
use axum::extract::{Path, State};
use axum::response::Html;
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use net::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::LazyLock;
use store::arweave::{
    ANCHOR_BLOCKS, Arweave, Bundle, CONFIRMATIONS, DataItem, DataTree, Draft, Key, Outcome, Proven, Tag, Transaction,
    TxId, Upload, car_tags, verify_chunk,
};
use store::cid::Cid;
use store::cli::arweave as cli;
use store::{Fetcher, Kind, car};

#[path = "../../../../tests/weave.rs"]
mod weave;

use weave::{Refusal, Shared, give_chunk, give_offset, give_transaction, node};

#[derive(Deserialize)]
struct Reference {
    jwk: Value,
    address: String,
    roots: Vec<Root>,
    transaction: Value,
    items: Vec<String>,
    bundle: String,
}

#[derive(Deserialize)]
struct Root {
    bytes: u64,
    root: String,
    chunks: Vec<ReferenceChunk>,
}

#[derive(Deserialize)]
struct ReferenceChunk {
    start: u64,
    end: u64,
    /// SHA-256 of the proof.
    proof: String,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("../reference/arweave.json")).unwrap()
}

/// A development key; reading one takes a while, so it is read once.
static KEY: LazyLock<Key> = LazyLock::new(|| Key::from_jwk(reference().jwk.to_string().as_bytes()).unwrap());

fn tree(bytes: u64) -> DataTree {
    DataTree::build(&mut &noise(bytes)[..], bytes).unwrap()
}

fn piece(data: &[u8], from: u64, to: u64) -> &[u8] {
    &data[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()]
}

#[test]
fn roots_chunks_and_proofs_are_those_that_arweave_js_makes() {
    for wanted in reference().roots {
        let (data, tree) = (noise(wanted.bytes), tree(wanted.bytes));
        assert_eq!(hex::encode(tree.root()), wanted.root, "{}", wanted.bytes);
        assert_eq!(tree.count(), wanted.chunks.len(), "{}", wanted.bytes);
        for (at, chunk) in wanted.chunks.iter().enumerate() {
            assert_eq!(tree.range(at), Some((chunk.start, chunk.end)));
            let proof = tree.proof(at).unwrap();
            assert_eq!(
                hex::encode(store::cid::digest(&store::cid::of_raw(&proof))),
                chunk.proof,
                "{} {at}",
                wanted.bytes
            );
            let bytes = piece(&data, chunk.start, chunk.end);
            for offset in [chunk.start, chunk.end - 1] {
                let proven = verify_chunk(&tree.root(), wanted.bytes, offset, &proof, bytes).unwrap();
                assert_eq!(proven, Proven { start: chunk.start, end: chunk.end });
            }
        }
    }
}

#[test]
fn a_proof_of_anything_else_is_refused() {
    let (bytes, data) = (700 << 10, noise(700 << 10));
    let tree = tree(bytes);
    let ((start, end), proof) = (tree.range(1).unwrap(), tree.proof(1).unwrap());
    let good = piece(&data, start, end);
    let verify = |root: &[u8; 32], bytes, offset, proof: &[u8], chunk: &[u8]| {
        verify_chunk(root, bytes, offset, proof, chunk).map_err(|e| {
            assert_eq!(e.kind, Kind::Corrupt);
            e.to_string()
        })
    };
    let root = tree.root();
    verify(&root, bytes, start, &proof, good).unwrap();
    let mut other = good.to_vec();
    other[7] ^= 1;
    assert!(verify(&root, bytes, start, &proof, &other).unwrap_err().contains("the bytes are others"));
    assert!(verify(&root, bytes, start, &proof, &good[1..]).unwrap_err().contains("the bytes are others"));
    assert!(verify(&root, bytes, start - 1, &proof, good).unwrap_err().contains("not under the root"));
    assert!(verify(&root, bytes, bytes, &proof, good).unwrap_err().contains("outside"));
    assert!(verify(&root, bytes + 1, bytes, &tree.proof(2).unwrap(), good).unwrap_err().contains("ends elsewhere"));
    assert!(verify(&[7; 32], bytes, start, &proof, good).unwrap_err().contains("not under the root"));
    assert!(verify(&root, bytes, start, &proof[1..], good).unwrap_err().contains("odd length"));
    assert!(verify(&root, bytes, start, &[], good).unwrap_err().contains("odd length"));
    assert!(verify(&root, bytes, start, &proof[96..], good).unwrap_err().contains("not under the root"));
    // Deep enough to take a while, if it were walked.
    assert!(verify(&root, bytes, start, &vec![0; 96 * 1_000_000 + 64], good).unwrap_err().contains("odd length"));
    // Every bit of a proof counts.
    for at in 0..proof.len() {
        let mut bent = proof.clone();
        bent[at] ^= 0x10;
        verify(&root, bytes, start, &bent, good).unwrap_err();
    }
}

#[test]
fn data_of_another_length_than_named_is_refused() {
    refused(DataTree::build(&mut &b""[..], 0).map(drop), Kind::Usage, "nothing to store");
    refused(DataTree::build(&mut &b"abc"[..], 4).map(drop), Kind::Usage, "ends before");
    refused(DataTree::build(&mut &b"abc"[..], 2).map(drop), Kind::Usage, "goes on after");
}

#[test]
fn a_transaction_of_arweave_js_is_read_and_no_altered_one() {
    let made = reference().transaction;
    let id = TxId::parse(made["id"].as_str().unwrap()).unwrap();
    let transaction = Transaction::from_json(&made).unwrap();
    transaction.verify(&id).unwrap();
    assert_eq!((transaction.draft.data_bytes, transaction.draft.data_root), (300 << 10, tree(300 << 10).root()));
    assert_eq!(transaction.draft.reward_winston, 123_456_789_012_345);
    assert_eq!(transaction.draft.tags[1], Tag::new("Ünïcode", "ja"));
    assert_eq!(transaction.to_json()["signature"], made["signature"]);

    let other = URL_SAFE_NO_PAD.encode([9; 32]);
    for (field, value) in [
        ("reward", json!("1")),
        ("data_size", json!("1")),
        ("quantity", json!("1")),
        ("target", json!(other)),
        ("data_root", json!(other)),
        ("last_tx", json!(other)),
        ("tags", json!([])),
    ] {
        let mut altered = made.clone();
        altered[field] = value;
        let altered = Transaction::from_json(&altered).unwrap();
        refused(altered.verify(&id), Kind::Corrupt, "was altered");
    }
    refused(transaction.verify(&TxId([1; 32])), Kind::Corrupt, "another transaction");
    for (field, value) in [
        ("reward", json!("01")),
        ("reward", json!("-1")),
        ("reward", json!(5)),
        ("reward", json!("340282366920938463463374607431768211456")),
        ("data_size", json!("1 ")),
        ("data_root", json!("AA")),
        ("owner", json!("AA==")),
        ("signature", json!("AA")),
        ("tags", json!({})),
        ("tags", json!([{ "name": "Zm9v" }])),
        ("target", json!("AAAA")),
        ("last_tx", json!("A".repeat(1000))),
    ] {
        let mut altered = made.clone();
        altered[field] = value;
        refused(Transaction::from_json(&altered), Kind::Corrupt, "missing or malformed");
    }
    let mut old = made.clone();
    old["format"] = json!(1);
    refused(Transaction::from_json(&old), Kind::Usage, "format 1");
    refused(Transaction::from_json(&json!("<html>")), Kind::Corrupt, "missing or malformed");
}

fn draft(tree: &DataTree) -> Draft {
    let tags = vec![Tag::new("A", "b")];
    Draft { anchor: vec![3; 48], reward_winston: 77, tags, data_root: tree.root(), data_bytes: tree.bytes() }
}

#[test]
fn what_is_signed_here_holds_and_is_never_signed_the_same_way_twice() {
    assert_eq!(KEY.address(), reference().address);
    let tree = tree(1000);
    let (one, two) = (Transaction::sign(&KEY, draft(&tree)).unwrap(), Transaction::sign(&KEY, draft(&tree)).unwrap());
    assert_ne!(one.id(), two.id());
    let read = Transaction::from_json(&one.to_json()).unwrap();
    read.verify(&one.id()).unwrap();
    assert_eq!(read, one);
    let long = Draft { tags: vec![Tag::new("A", "b".repeat(3000))], ..draft(&tree) };
    refused(Transaction::sign(&KEY, long), Kind::Usage, "tags of 3001 bytes");
    refused(Transaction::sign(&KEY, Draft { anchor: vec![], ..draft(&tree) }), Kind::Usage, "anchor");
}

#[test]
fn keys_that_are_none_are_refused_without_quoting_them() {
    let jwk = reference().jwk;
    let with = |field: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[field] = value;
        Key::from_jwk(jwk.to_string().as_bytes())
    };
    refused(Key::from_jwk(b"{}"), Kind::Key, "not a JWK");
    refused(with("kty", json!("EC")), Kind::Key, "another kind");
    refused(with("p", jwk["q"].clone()), Kind::Key, "do not belong together");
    refused(with("d", json!("!")), Kind::Key, "no base64url");
    refused(with("n", json!("A".repeat(4000))), Kind::Key, "no base64url");
    refused(Key::from_jwk(&vec![b' '; 20 << 10]), Kind::Key, "16 KiB");
    assert_eq!(format!("{:?}", *KEY), format!("Key({})", reference().address));
}

#[test]
fn a_bundle_of_arbundles_is_read_and_no_altered_one() {
    let Reference { bundle, items, .. } = reference();
    let bytes = URL_SAFE_NO_PAD.decode(bundle).unwrap();
    let read = Bundle::from_bytes(&bytes).unwrap();
    assert_eq!(read.items.iter().map(|item| item.id().to_string()).collect::<Vec<_>>(), items);
    assert_eq!(read.items[0].data, b"hello item");
    assert_eq!(read.items[0].tags, [Tag::new("Content-Type", "text/plain"), Tag::new("N", "1")]);
    assert_eq!((read.items[1].data.clone(), read.items[1].tags.len()), (noise(1000), 0));
    assert_eq!(read.to_bytes(), bytes);

    let heads = 32 + 2 * 64;
    let mut data = bytes.clone();
    *data.last_mut().unwrap() ^= 1;
    refused(Bundle::from_bytes(&data), Kind::Corrupt, "was altered");
    let mut id = bytes.clone();
    id[64] ^= 1;
    refused(Bundle::from_bytes(&id), Kind::Corrupt, "the item called");
    let mut kind = bytes.clone();
    kind[heads] = 3;
    refused(Bundle::from_bytes(&kind), Kind::Usage, "kind 3");
    refused(Bundle::from_bytes(&bytes[..bytes.len() - 1]), Kind::Corrupt, "bytes are named");
    refused(Bundle::from_bytes(&[&bytes[..], &[0]].concat()), Kind::Corrupt, "after the last item");
    // Counts and lengths that nobody could mean: nothing is allocated for them.
    for at in [0, 7, 8, 31, 39, 40, 63] {
        let mut huge = bytes.clone();
        huge[at] = 0xff;
        refused(Bundle::from_bytes(&huge), Kind::Corrupt, "not a data item or bundle");
    }
    refused(Bundle::from_bytes(&[]), Kind::Corrupt, "not a data item or bundle");
}

#[test]
fn items_signed_here_come_back_from_a_bundle() {
    let item = |tags: &[(&str, &str)], data: &[u8]| {
        DataItem::sign(&KEY, tags.iter().map(|(n, v)| Tag::new(*n, *v)).collect(), data.to_vec()).unwrap()
    };
    let bundle = Bundle { items: vec![item(&[("a", "ä"), ("long", &"x".repeat(300))], b"one"), item(&[], b"")] };
    assert_eq!(Bundle::from_bytes(&bundle.to_bytes()).unwrap(), bundle);
    assert_eq!(Bundle::from_bytes(&Bundle::default().to_bytes()).unwrap(), Bundle::default());
    let many = vec![Tag::new("n", "v"); 129];
    refused(DataItem::sign(&KEY, many, vec![]), Kind::Usage, "more than 128 tags");
    refused(DataItem::sign(&KEY, vec![Tag::new("n", "")], vec![]), Kind::Usage, "without name or value");
}

fn client(urls: &[&str]) -> Arweave {
    Arweave::new(Client::new(), urls.iter().map(|url| (*url).to_owned()).collect())
}

/// The CAR of a graph of 900 kB in a file, its root and its length.
fn a_car() -> (tempfile::NamedTempFile, store::cid::Cid, u64) {
    let here = store();
    let root = here.add(&noise(900_000));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let (_, bytes) = car::export(&here.blocks, &root, file.as_file_mut()).unwrap();
    file.flush().unwrap();
    (file, root, bytes)
}

fn tree_of(file: &tempfile::NamedTempFile, bytes: u64) -> DataTree {
    DataTree::build(&mut std::fs::File::open(file.path()).unwrap(), bytes).unwrap()
}

#[tokio::test]
async fn a_graph_goes_to_arweave_and_comes_back_though_the_sender_died_half_way() {
    let weave = Shared::default();
    let url = spawn(node(&weave)).await;
    let arweave = client(&[&url]);
    let (file, root, bytes) = a_car();
    let tree = tree_of(&file, bytes);
    assert_eq!(tree.count(), 4);

    refused(arweave.prepare(&KEY, &tree, vec![], 10 * u128::from(bytes) - 1).await, Kind::OverLimit, "are allowed");
    let mut upload = arweave.prepare(&KEY, &tree, car_tags(&root), 10 * u128::from(bytes)).await.unwrap();
    assert_eq!(weave.lock().unwrap().posts.len(), 0, "nothing is sent before it is written down");
    assert_eq!(arweave.balance_winston(&KEY.address()).await.unwrap(), 5000);

    // The node stops taking posts after the transaction and two chunks.
    weave.lock().unwrap().posts_max = Some(3);
    let mut kept = String::new();
    let sent = arweave.send(&mut upload, &tree, file.path(), |upload| {
        kept = serde_json::to_string(upload).unwrap();
        Ok(())
    });
    refused(sent.await, Kind::Unreachable, "does not take the chunk");

    weave.lock().unwrap().posts_max = None;
    let mut again: Upload = serde_json::from_str(&kept).unwrap();
    let id = again.id().unwrap();
    arweave.send(&mut again, &tree, file.path(), |_| Ok(())).await.unwrap();
    assert_eq!(weave.lock().unwrap().posts, ["tx", "chunk", "chunk", "chunk", "chunk"], "nothing is sent twice");

    let there = store();
    let done = arweave.import(&there.blocks, &id, bytes).await.unwrap();
    assert_eq!(done.roots, [root]);
    assert_eq!(store::unixfs::read_file(&there.blocks, &root, 900_000).unwrap(), noise(900_000));
    refused(arweave.import(&there.blocks, &id, bytes - 1).await, Kind::OverLimit, "are allowed here");
    refused(arweave.read(&TxId([5; 32]), bytes, |_| Ok(())).await, Kind::Missing, "cannot be had");

    // Another file than was signed is not sent.
    let mut changed = std::fs::read(file.path()).unwrap();
    changed[5] ^= 1;
    let mut fresh = arweave.prepare(&KEY, &tree, vec![], u128::MAX).await.unwrap();
    let other = DataTree::build(&mut &changed[..], bytes).unwrap();
    refused(arweave.send(&mut fresh, &other, file.path(), |_| Ok(())).await, Kind::Usage, "other data");
    std::fs::write(file.path(), &changed).unwrap();
    refused(arweave.send(&mut fresh, &tree, file.path(), |_| Ok(())).await, Kind::Usage, "has changed");
}

#[tokio::test]
async fn a_gateway_that_lies_is_given_up_and_one_that_is_honest_is_enough() {
    let weave = Shared::default();
    let good = spawn(node(&weave)).await;
    let data = noise(600_000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &data).unwrap();
    let tree = tree_of(&file, 600_000);
    let mut upload = client(&[&good]).prepare(&KEY, &tree, vec![], u128::MAX).await.unwrap();
    client(&[&good]).send(&mut upload, &tree, file.path(), |_| Ok(())).await.unwrap();
    let id = upload.id().unwrap();

    // Right until the second chunk, of which it changes a byte.
    let bent = weave.clone();
    let liar = Router::new()
        .route(
            "/chunk/{offset}",
            get(move |Path(offset): Path<u64>| async move {
                let Json(mut json) = give_chunk(State(bent), Path(offset)).await?;
                if offset > 1 << 40 {
                    json["chunk"] = json!(URL_SAFE_NO_PAD.encode([1; 1000]));
                }
                Ok::<_, Refusal>(Json(json))
            }),
        )
        .route("/tx/{id}", get(give_transaction))
        .route("/tx/{id}/offset", get(give_offset))
        .with_state(weave.clone());
    let liar = spawn(liar).await;
    let html = spawn(Router::new().fallback(|| async { Html("<html>Welcome to the captive portal</html>") })).await;
    let endless = spawn(Router::new().fallback(|| async { "1".repeat(3 << 20) })).await;

    let mut read = Vec::new();
    let all = ["http://127.0.0.1:1", &html, &endless, &liar, &good];
    let all = client(&all);
    let bytes = all.read(&id, 1 << 20, |chunk| {
        read.extend_from_slice(chunk);
        Ok(())
    });
    assert_eq!(bytes.await.unwrap(), 600_000);
    assert!(read == data);

    let mut heard = 0;
    let liars = client(&[&html, &liar]);
    let failed = liars.read(&id, 1 << 20, |chunk| {
        heard += chunk.len();
        Ok(())
    });
    refused(failed.await, Kind::Corrupt, "not proven");
    assert_eq!(heard, 256 << 10, "what was proven before was handed out");
    refused(client(&[&html]).transaction(&id).await, Kind::Corrupt, "something else than an Arweave gateway's answer");
    refused(client(&[&html]).price_winston(1).await, Kind::Corrupt, "no amount");
    refused(client(&[]).price_winston(1).await, Kind::Usage, "no gateway is named");
}

#[tokio::test]
async fn a_transaction_is_followed_to_its_end() {
    let weave = Shared::default();
    weave.lock().unwrap().height = 500;
    let url = spawn(node(&weave)).await;
    let arweave = client(&[&url]);
    let tree = tree(1000);
    let upload = arweave.prepare(&KEY, &tree, vec![], u128::MAX).await.unwrap();
    let (id, anchor) = (upload.id().unwrap(), upload.anchor_height);
    assert_eq!(anchor, 500);
    let outcome = async |height: u64| {
        weave.lock().unwrap().height = height;
        arweave.outcome(&id, anchor).await
    };
    // Never sent: known to be unpaid only when no block can take it any more.
    assert_eq!(outcome(500 + ANCHOR_BLOCKS).await, Outcome::Unknown);
    assert_eq!(outcome(500 + ANCHOR_BLOCKS + CONFIRMATIONS).await, Outcome::Unknown);
    assert_eq!(outcome(500 + ANCHOR_BLOCKS + CONFIRMATIONS + 1).await, Outcome::Unpaid);
    // With a gateway that cannot be asked nothing is certain.
    let two = client(&[&url, "http://127.0.0.1:1"]);
    assert_eq!(two.outcome(&id, anchor).await, Outcome::Unknown);

    weave.lock().unwrap().height = 500;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), noise(1000)).unwrap();
    arweave.send(&mut upload.clone(), &tree, file.path(), |_| Ok(())).await.unwrap();
    assert_eq!(outcome(500).await, Outcome::Unknown, "pending");
    weave.lock().unwrap().transactions[0].mined_at = Some(510);
    assert_eq!(outcome(510 + CONFIRMATIONS - 1).await, Outcome::Unknown);
    assert_eq!(outcome(510 + CONFIRMATIONS).await, Outcome::Paid);
}

#[tokio::test]
async fn the_command_signs_again_only_when_the_first_transaction_can_never_be_mined() {
    let weave = Shared::default();
    weave.lock().unwrap().height = 100;
    let url = spawn(node(&weave)).await;
    let here = store();
    let cid = here.add(&noise(600_000)).to_string();
    let wallet = here.dir.path().join("wallet.json");
    std::fs::write(&wallet, reference().jwk.to_string()).unwrap();
    let told = std::cell::RefCell::new(Vec::new());
    let put = async |reward_max| {
        let progress = |bytes| told.borrow_mut().push(bytes);
        cli::put(here.dir.path(), &cid, vec![url.clone()], &wallet, reward_max, progress).await
    };
    let sent = || {
        let weave = weave.lock().unwrap();
        (weave.transactions.iter().map(|t| t.id.to_string()).collect::<Vec<_>>(), weave.posts.len())
    };

    refused(cli::status(here.dir.path(), &cid, vec![url.clone()]).await, Kind::Missing, "was not sent");
    refused(put(1).await, Kind::OverLimit, "are allowed");
    weave.lock().unwrap().posts_max = Some(2);
    refused(put(u128::MAX).await, Kind::Unreachable, "does not take the chunk");
    assert_eq!(told.take(), [0, 0, 256 << 10], "of the transaction, and of one chunk");
    weave.lock().unwrap().posts_max = None;
    let first = put(u128::MAX).await.unwrap();
    assert_eq!(told.take(), [0, 256 << 10, first.bytes - (256 << 10)], "of the other two: what one call sends");
    assert_eq!((first.outcome, first.cid.as_str()), ("unknown", cid.as_str()));
    assert_eq!(sent(), (vec![first.transaction.clone()], 1 + 3));
    assert_eq!(put(u128::MAX).await.unwrap(), first);
    assert_eq!(sent().1, 4, "all was sent: nothing is sent again");

    // The network lost it, and its anchor is too old now.
    weave.lock().unwrap().transactions.clear();
    weave.lock().unwrap().height = 100 + ANCHOR_BLOCKS + CONFIRMATIONS;
    assert_eq!(put(u128::MAX).await.unwrap().transaction, first.transaction, "it may still be mined");
    weave.lock().unwrap().height += 1;
    assert_eq!(cli::status(here.dir.path(), &cid, vec![url.clone()]).await.unwrap().outcome, "unpaid");
    let second = put(u128::MAX).await.unwrap();
    assert_ne!(second.transaction, first.transaction);
    let height = weave.lock().unwrap().height;
    weave.lock().unwrap().transactions[0].mined_at = Some(height);
    weave.lock().unwrap().height += CONFIRMATIONS;
    assert_eq!(cli::status(here.dir.path(), &cid, vec![url.clone()]).await.unwrap().outcome, "paid");

    let there = store();
    let heard = std::cell::RefCell::new(Vec::new());
    let progress = |bytes| heard.borrow_mut().push(bytes);
    let got = cli::get(there.dir.path(), &second.transaction, vec![url.clone()], 1 << 20, progress).await.unwrap();
    assert_eq!(heard.take(), [256 << 10, 512 << 10, second.bytes]);
    assert_eq!(got.roots, std::slice::from_ref(&cid));
    assert_eq!(there.blocks.pins().unwrap()[0].root.to_string(), cid);
    let left = std::fs::read_dir(here.dir.path().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "no CAR file stays behind");
}

#[tokio::test]
async fn a_graph_that_no_source_brings_comes_from_the_transaction_that_is_named_for_it() {
    let weave = Shared::default();
    let url = spawn(node(&weave)).await;
    let arweave = client(&["http://127.0.0.1:1", &url]);
    let (file, root, bytes) = a_car();
    let tree = tree_of(&file, bytes);
    let mut upload = arweave.prepare(&KEY, &tree, car_tags(&root), u128::MAX).await.unwrap();
    arweave.send(&mut upload, &tree, file.path(), |_| Ok(())).await.unwrap();
    let id = upload.id().unwrap();

    // A source that knows nothing, and one that is not there.
    let empty = spawn(store::gateway::router(store().blocks)).await;
    let fetcher = || Fetcher::new(Client::new(), vec![empty.clone(), "http://127.0.0.1:1".to_owned()]);
    let here = store();
    refused(fetcher().fetch_dag(&here.blocks, &root, |_| {}).await, Kind::Unreachable, "cannot be had");
    let archived = || fetcher().with_archive(arweave.clone(), id);
    archived().fetch_dag(&here.blocks, &root, |_| {}).await.unwrap();
    assert_eq!(store::unixfs::read_file(&here.blocks, &root, 900_000).unwrap(), noise(900_000));

    // The same for a file that fills at its final place: nothing of it comes from a source, only its nodes, or a part.
    let all: Vec<Cid> = here.blocks.iter().map(|block| block.unwrap().0).collect();
    let (leaves, inner): (Vec<Cid>, Vec<Cid>) = all.into_iter().partition(|cid| cid.codec() == store::cid::RAW);
    assert!(leaves.len() > 3 && !inner.is_empty(), "{} leaves", leaves.len());
    for known in [&[][..], &inner, &[&inner[..], &leaves[..2]].concat()] {
        let (part, host) = (store(), store());
        for cid in known {
            part.blocks.put(cid, &here.blocks.get(cid).unwrap()).unwrap();
        }
        let source = spawn(store::gateway::router(part.blocks.clone())).await;
        let fetcher = Fetcher::new(Client::new(), vec![source]).with_archive(arweave.clone(), id);
        let weights = host.dir.path().join("weights");
        let (verified, told) = tokio::sync::watch::channel(0);
        fetcher.fetch_in_place(&host.blocks, &root, (&weights, 900_000), verified, |_| {}).await.unwrap();
        assert_eq!((std::fs::read(&weights).unwrap(), *told.borrow()), (noise(900_000), 900_000));
        assert_eq!(host.count(), inner.len(), "leaves stay in the file alone");
    }

    // A transaction of something else is no archive of this, and a longer one than allowed is not read.
    let there = store();
    let other = store().add(&noise(7_000));
    refused(archived().fetch_dag(&there.blocks, &other, |_| {}).await, Kind::Missing, "no source is named");
    let short = store();
    let refusal = archived().with_bytes_max(1000).fetch_dag(&short.blocks, &root, |_| {}).await;
    refused(refusal, Kind::OverLimit, "nor can its archive");
    assert_eq!(short.count(), 0);
}

/// A child that does not outlive its test, whatever happens.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A real gateway, from npm (tests/arlocal). Its database is compiled at installation, so it is no part of an
/// ordinary run.
#[tokio::test]
async fn arlocal_takes_what_is_signed_here_and_gives_it_back() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/arlocal");
    if std::env::var_os("VIVARIUM_DEEP").is_none() {
        return;
    }
    assert!(
        std::path::Path::new(folder).join("node_modules").exists(),
        "`cargo xtask test --deep arweave` installs it"
    );
    let home = tempfile::tempdir().unwrap();
    let child = std::process::Command::new("node")
        .args(["-r", &format!("{folder}/loopback.cjs"), &format!("{folder}/node_modules/arlocal/bin/index.js")])
        .args(["0", "--hidelogs", "--dbpath", "db"])
        .current_dir(home.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Process(child);
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.0.stdout.take().unwrap()));
    let port =
        lines.map(Result::unwrap).find_map(|line| line.strip_prefix("listening on ").map(str::to_owned)).unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let run = async {
        let http = Client::new();
        http.get(&format!("{url}/mint/{}/900000000000000", KEY.address())).await?.success()?;
        let arweave = client(&[&url]);
        let (file, root, bytes) = a_car();
        let tree = tree_of(&file, bytes);
        let mut upload = arweave.prepare(&KEY, &tree, car_tags(&root), u128::MAX).await.unwrap();
        let id = upload.id().unwrap();
        assert_eq!(arweave.outcome(&id, upload.anchor_height).await, Outcome::Unknown);
        arweave.send(&mut upload, &tree, file.path(), |_| Ok(())).await.unwrap();
        assert_eq!(arweave.outcome(&id, upload.anchor_height).await, Outcome::Unknown, "pending");
        http.get(&format!("{url}/mine/{}", CONFIRMATIONS + 1)).await?.success()?;
        assert_eq!(arweave.outcome(&id, upload.anchor_height).await, Outcome::Paid);
        let there = store();
        assert_eq!(arweave.import(&there.blocks, &id, bytes).await.unwrap().roots, [root]);
        assert_eq!(store::unixfs::read_file(&there.blocks, &root, 900_000).unwrap(), noise(900_000));
        Ok::<_, net::Error>(arweave.transaction(&id).await.unwrap())
    };
    let transaction = run.await;

    let mut check = std::process::Command::new("node")
        .arg(format!("{folder}/verify.cjs"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(transaction.unwrap().to_json().to_string().as_bytes()).unwrap();
    assert_eq!(String::from_utf8(check.wait_with_output().unwrap().stdout).unwrap().trim(), "valid");
}
