use crate::support::{Store, noise, refused, spawn, store};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use net::Client;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use store::cid::{self, Cid};
use store::dag::{Link, Node};
use store::unixfs::{Limits, read_file};
use store::{Blocks, Fetcher, Kind, gateway};

/// A gateway that answers each request for a block as `answer` says: (block, how many were asked before).
fn gateway_that(
    blocks: &Blocks,
    answer: impl Fn(Bytes, u64) -> Response + Clone + Send + Sync + 'static,
) -> (Router, Arc<AtomicU64>) {
    let (blocks, asked) = (blocks.clone(), Arc::new(AtomicU64::new(0)));
    let count = asked.clone();
    let route = get(move |Path(text): Path<String>| async move {
        let before = count.fetch_add(1, Ordering::SeqCst);
        match blocks.get(&cid::parse(&text).unwrap()) {
            Ok(block) => answer(block, before),
            Err(_) => StatusCode::NOT_FOUND.into_response(),
        }
    });
    (Router::new().route("/ipfs/{cid}", route), asked)
}

fn honest(blocks: &Blocks) -> (Router, Arc<AtomicU64>) {
    gateway_that(blocks, |block, _| block.into_response())
}

/// 100 kB: 98 leaves and 34 inner nodes in several levels.
fn origin() -> (Store, Cid) {
    let origin = store();
    let root = origin.add(&noise(100_000));
    (origin, root)
}

fn fetcher(urls: &[&String]) -> Fetcher {
    Fetcher::new(Client::new(), urls.iter().map(|u| (*u).clone()).collect())
}

#[tokio::test]
async fn a_graph_arrives_whole_from_our_own_gateways() {
    let (origin, root) = origin();
    let (one, two) =
        (spawn(gateway::router(origin.blocks.clone())).await, spawn(gateway::router(origin.blocks.clone())).await);
    let here = store();
    let dest = here.dir.path().join("out");
    let seen = std::cell::RefCell::new(Vec::new());
    let done = fetcher(&[&one, &two])
        .fetch_file(&here.blocks, &root, &dest, Limits::default(), |p| {
            seen.borrow_mut().push((p.blocks_done, p.bytes_total))
        })
        .await
        .unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), noise(100_000));
    assert_eq!(done.blocks_done, u64::try_from(origin.count()).unwrap());
    assert_eq!(done.bytes_total, Some(done.bytes_done), "the root's claim was honest");
    assert!(done.sources.iter().all(|s| s.blocks > 0 && s.dropped.is_none()), "{:?}", done.sources);
    let seen = seen.into_inner();
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0), "progress goes forward");
    assert!(seen.last().unwrap().1.is_some());
}

#[tokio::test]
async fn a_file_of_one_block_and_one_of_one_leaf_many_times_arrive() {
    let (origin, here) = (store(), store());
    let one = origin.put_raw(b"one block");
    let url = spawn(gateway::router(origin.blocks.clone())).await;
    let done = fetcher(&[&url]).fetch_dag(&here.blocks, &one, |_| {}).await.unwrap();
    assert_eq!((done.blocks_done, done.bytes_done, done.bytes_total), (1, 9, Some(9)));
    // 1,000 leaves that are all the same one, below more nodes than are looked for at a time.
    let same = origin.add(&vec![7; 1_024_000]);
    let done = fetcher(&[&url, &url]).fetch_dag(&here.blocks, &same, |_| {}).await.unwrap();
    assert_eq!(read_file(&here.blocks, &same, 1_024_000).unwrap(), vec![7; 1_024_000]);
    let fetched: u64 = done.sources.iter().map(|source| source.blocks).sum();
    assert_eq!(fetched, u64::try_from(origin.count() - 1).unwrap(), "each once");
}

#[tokio::test]
async fn a_lying_source_is_dropped_by_name_and_none_of_its_bytes_are_kept() {
    let (origin, root) = origin();
    let (liar, _) = gateway_that(&origin.blocks, |block, before| {
        let mut bytes = block.to_vec();
        if before % 10 == 9 {
            bytes[0] ^= 1;
        }
        bytes.into_response()
    });
    let (liar, good) = (spawn(liar).await, spawn(honest(&origin.blocks).0).await);
    let here = store();
    let done = fetcher(&[&liar, &good]).fetch_dag(&here.blocks, &root, |_| {}).await.unwrap();
    let why = done.sources[0].dropped.as_deref().unwrap();
    assert!(why.contains("that are not block"), "{why}");
    assert_eq!(done.sources[0].url, liar);
    assert_eq!(done.sources[1].dropped, None);
    assert_eq!(read_file(&here.blocks, &root, 100_000).unwrap(), noise(100_000));
    assert_eq!(here.count(), origin.count());
}

#[tokio::test]
async fn with_only_liars_left_the_fetch_ends_and_says_who() {
    let (origin, root) = origin();
    let (html, _) = gateway_that(&origin.blocks, |_, _| {
        ([(header::CONTENT_TYPE, "text/html")], "<html>Welcome to the captive portal</html>").into_response()
    });
    let (long, _) = gateway_that(&origin.blocks, |_, _| vec![0u8; 3 << 20].into_response());
    let (html, long) = (spawn(html).await, spawn(long).await);
    let here = store();
    let failed = fetcher(&[&html, &long]).fetch_dag(&here.blocks, &root, |_| {}).await;
    let message = failed.as_ref().unwrap_err().to_string();
    assert!(message.contains("text/html") && message.contains(&long), "{message}");
    refused(failed, Kind::Unreachable, &root.to_string());
    assert_eq!(here.count(), 0);
}

#[tokio::test]
async fn a_stalled_source_is_overtaken() {
    let (origin, root) = origin();
    let (stalled, asked) = gateway_that(&origin.blocks, |block, _| {
        // Half of the block, then silence with the connection open.
        let half = block.slice(..block.len() / 2);
        let first = futures::stream::iter([Ok::<_, std::io::Error>(half)]);
        Body::from_stream(futures::StreamExt::chain(first, futures::stream::pending())).into_response()
    });
    let (stalled, good) = (spawn(stalled).await, spawn(honest(&origin.blocks).0).await);
    let here = store();
    let started = Instant::now();
    let done = fetcher(&[&stalled, &good]).fetch_dag(&here.blocks, &root, |_| {}).await.unwrap();
    assert!(asked.load(Ordering::SeqCst) > 0, "it was asked and believed in");
    assert_eq!(done.sources[0].blocks, 0);
    assert_eq!(read_file(&here.blocks, &root, 100_000).unwrap(), noise(100_000));
    // Its own deadline is 5 s a try; the other source must not have waited for that.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_source_that_dies_half_way_is_not_missed() {
    let (origin, root) = origin();
    let (dying, _) = gateway_that(&origin.blocks, |block, before| match before {
        0..30 => block.into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    });
    let nobody = "http://127.0.0.1:1".to_owned();
    let (dying, good) = (spawn(dying).await, spawn(honest(&origin.blocks).0).await);
    let here = store();
    let done = fetcher(&[&nobody, &dying, &good]).fetch_dag(&here.blocks, &root, |_| {}).await.unwrap();
    assert_eq!(done.sources[0].blocks, 0);
    assert_eq!(read_file(&here.blocks, &root, 100_000).unwrap(), noise(100_000));
}

#[tokio::test]
async fn what_is_here_is_not_asked_again() {
    let (origin, root) = origin();
    let all = u64::try_from(origin.count()).unwrap();
    let (dying, _) = gateway_that(&origin.blocks, |block, before| match before {
        0..40 => block.into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    });
    let dying = spawn(dying).await;
    let here = store();
    refused(fetcher(&[&dying]).fetch_dag(&here.blocks, &root, |_| {}).await, Kind::Unreachable, "answered 500");
    let kept = u64::try_from(here.count()).unwrap();
    assert_eq!(kept, 40);

    let (good, asked) = honest(&origin.blocks);
    let good = spawn(good).await;
    // A new handle on the folder, as after a kill.
    let blocks = Blocks::open(here.dir.path()).unwrap();
    let done = fetcher(&[&good]).fetch_dag(&blocks, &root, |_| {}).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), all - kept);
    assert_eq!((done.sources[0].blocks, done.blocks_done), (all - kept, all));
    // With everything here, no source is needed.
    let done = fetcher(&[]).fetch_dag(&blocks, &root, |_| {}).await.unwrap();
    assert_eq!(done.blocks_done, all);
    assert_eq!(asked.load(Ordering::SeqCst), all - kept);
}

/// The child of the test below: fetches until it is killed.
#[tokio::test]
#[ignore = "a process of its own, started by `a_fetch_that_was_killed_goes_on_where_it_was`"]
async fn fetch_for_ever() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let blocks = Blocks::open(variable("STORE_TEST_DIR")).unwrap();
    let root = cid::parse(&variable("STORE_TEST_ROOT")).unwrap();
    fetcher(&[&variable("STORE_TEST_URL")]).fetch_dag(&blocks, &root, |_| {}).await.unwrap();
}

#[tokio::test]
async fn a_fetch_that_was_killed_goes_on_where_it_was() {
    let (origin, root) = origin();
    let all = u64::try_from(origin.count()).unwrap();
    // Answers 60 requests, then says so and answers none.
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let (asked, blocks) = (Arc::new(AtomicU64::new(0)), origin.blocks.clone());
    let route = get(move |Path(text): Path<String>| async move {
        if asked.fetch_add(1, Ordering::SeqCst) >= 60 {
            told.send(()).ok();
            std::future::pending::<()>().await;
        }
        blocks.get(&cid::parse(&text).unwrap()).unwrap().into_response()
    });
    let falling_silent = spawn(Router::new().route("/ipfs/{cid}", route)).await;
    let here = store();
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["fetch::fetch_for_ever", "--exact", "--ignored"])
        .env("STORE_TEST_DIR", here.dir.path())
        .env("STORE_TEST_URL", &falling_silent)
        .env("STORE_TEST_ROOT", root.to_string())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    heard.recv().await.unwrap();
    // SIGKILL, with requests out.
    child.kill().await.unwrap();

    let checked = store::cli::verify(here.dir.path(), None, |_| {}).unwrap();
    let kept = checked.blocks;
    assert!(checked.damaged.is_empty() && (50..=60).contains(&kept), "{checked:?}");
    let (good, asked) = honest(&origin.blocks);
    let good = spawn(good).await;
    let done = fetcher(&[&good]).fetch_dag(&here.blocks, &root, |_| {}).await.unwrap();
    assert_eq!((asked.load(Ordering::SeqCst), done.blocks_done), (all - kept, all));
    assert_eq!(read_file(&here.blocks, &root, 100_000).unwrap(), noise(100_000));
}

#[tokio::test]
async fn links_that_are_not_spoken_end_the_fetch() {
    let origin = store();
    // By identity hash (content inside the name), and to a dag-cbor block.
    for link in [&[0x01, 0x55, 0x00, 0x02, b'h', b'i'][..], &[&[0x01, 0x71, 0x12, 0x20][..], &[7; 32]].concat()] {
        let mut inner = vec![0x0a, u8::try_from(link.len()).unwrap()];
        inner.extend_from_slice(link);
        let node = [&[0x12, u8::try_from(inner.len()).unwrap()], &inner[..]].concat();
        let root = cid::of_dag_pb(&node);
        origin.blocks.put_later(&root, &node).unwrap();
        let url = spawn(honest(&origin.blocks).0).await;
        let here = store();
        refused(fetcher(&[&url]).fetch_dag(&here.blocks, &root, |_| {}).await, Kind::Corrupt, "spoken");
    }
}

#[tokio::test]
async fn a_block_that_nobody_has_is_missing_and_named() {
    let (origin, root) = origin();
    let victim = origin.blocks.iter().map(Result::unwrap).map(|(c, _)| c).find(|c| *c != root).unwrap();
    origin.blocks.delete(&victim).unwrap();
    let (one, two) = (spawn(honest(&origin.blocks).0).await, spawn(honest(&origin.blocks).0).await);
    let here = store();
    refused(fetcher(&[&one, &two]).fetch_dag(&here.blocks, &root, |_| {}).await, Kind::Missing, &victim.to_string());
    refused(fetcher(&[]).fetch_dag(&here.blocks, &root, |_| {}).await, Kind::Missing, "no source is named");
}

#[tokio::test]
async fn sources_that_hold_different_halves_add_up() {
    let (origin, root) = origin();
    let (one, two) = (store(), store());
    for (at, listed) in origin.blocks.iter().enumerate() {
        let (cid, _) = listed.unwrap();
        let half = if at % 2 == 0 { &one } else { &two };
        half.blocks.put(&cid, &origin.blocks.get(&cid).unwrap()).unwrap();
    }
    let urls = [spawn(honest(&one.blocks).0).await, spawn(honest(&two.blocks).0).await];
    let here = store();
    fetcher(&[&urls[0], &urls[1]]).fetch_dag(&here.blocks, &root, |_| {}).await.unwrap();
    assert_eq!(read_file(&here.blocks, &root, 100_000).unwrap(), noise(100_000));
}

#[tokio::test]
async fn endless_nesting_and_endless_length_end_early() {
    let origin = store();
    let mut deep = origin.put_raw(b"x");
    for level in 0..100u8 {
        let link = Link { cid: deep, name: String::new(), tsize: 0 };
        deep = origin.put_node(&Node { links: vec![link], data: vec![level] });
    }
    let long = origin.add(&noise(100_000));
    let url = spawn(honest(&origin.blocks).0).await;
    let here = store();
    refused(fetcher(&[&url]).fetch_dag(&here.blocks, &deep, |_| {}).await, Kind::OverLimit, "levels deep");
    let small = fetcher(&[&url]).with_bytes_max(50_000);
    refused(small.fetch_dag(&here.blocks, &long, |_| {}).await, Kind::OverLimit, "50000 bytes");
}
