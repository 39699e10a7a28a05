use crate::support::{noise, spawn, store};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use net::{Client, Response};
use store::dag::{Link, Node};
use store::{car, cid, gateway, unixfs};

async fn ask(method: Method, url: &str, headers: &[(HeaderName, &str)]) -> Response {
    let headers = headers.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap()));
    Client::new().send(method, url, HeaderMap::from_iter(headers), Bytes::new()).await.unwrap()
}

async fn code(answer: Response) -> String {
    let body: serde_json::Value = answer.json().await.unwrap();
    assert!(body["error"]["request_id"].as_str().unwrap().len() == 16, "{body}");
    body["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_raw_block_is_served_as_the_specification_says() {
    let here = store();
    let cid = here.put_raw(b"abc");
    let url = format!("{}/ipfs/{cid}", spawn(gateway::router(here.blocks.clone())).await);
    let by_query = ask(Method::GET, &format!("{url}?format=raw"), &[]).await;
    assert_eq!(by_query.header(&header::CONTENT_TYPE), Some("application/vnd.ipld.raw"));
    assert_eq!(by_query.header(&header::ETAG), Some(format!("\"{cid}.raw\"").as_str()));
    assert_eq!(by_query.header(&header::CACHE_CONTROL), Some("public, max-age=29030400, immutable"));
    assert_eq!(by_query.header(&header::X_CONTENT_TYPE_OPTIONS), Some("nosniff"));
    assert_eq!(&by_query.bytes(10).await.unwrap()[..], b"abc");

    let by_accept = ask(Method::GET, &url, &[(header::ACCEPT, "application/vnd.ipld.raw")]).await;
    assert_eq!(&by_accept.bytes(10).await.unwrap()[..], b"abc");
    let head = ask(Method::HEAD, &format!("{url}?format=raw"), &[]).await;
    assert_eq!((head.status, head.header(&header::CONTENT_LENGTH)), (StatusCode::OK, Some("3")));
    let tag = format!("\"{cid}.raw\"");
    let again = ask(Method::GET, &format!("{url}?format=raw"), &[(header::IF_NONE_MATCH, tag.as_str())]).await;
    assert_eq!(again.status, StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_with_the_reason() {
    let here = store();
    let cid = here.put_raw(b"abc");
    let absent = cid::of_raw(b"absent");
    let url = spawn(gateway::router(here.blocks.clone())).await;
    for (path, status, expected) in [
        (format!("/ipfs/{cid}"), 400, "bad_request"),
        (format!("/ipfs/{cid}?format=tar"), 400, "bad_request"),
        (format!("/ipfs/{cid}?format=car&dag-scope=some"), 400, "bad_request"),
        (format!("/ipfs/{cid}?format=car&entity-bytes=5"), 400, "bad_request"),
        (format!("/ipfs/{cid}?format=car&entity-bytes=0:5&dag-scope=all"), 400, "bad_request"),
        (format!("/ipfs/{cid}?format=car&entity-bytes=3:*"), 400, "bad_request"),
        (format!("/ipfs/{cid}?format=car&car-version=2"), 406, "not_acceptable"),
        (format!("/ipfs/{cid}/below?format=raw"), 400, "bad_request"),
        (format!("/ipfs/{cid}/below?format=car"), 404, "not_found"),
        (format!("/ipfs/{absent}/below?format=car"), 404, "not_found"),
        (format!("/ipfs/{cid}/{}?format=car", "a/".repeat(65)), 400, "bad_request"),
        (format!("/ipfs/{absent}?format=raw"), 404, "not_found"),
        (format!("/ipfs/{absent}?format=car"), 404, "not_found"),
        ("/ipfs/hello?format=raw".into(), 400, "bad_request"),
        // An identity hash would make the server answer anything for any name.
        ("/ipfs/bafkqaa3bmjrq?format=raw".into(), 400, "bad_request"),
        // A path hidden in a name must not reach a header.
        (format!("/ipfs/x%0A%2Fipfs%2F{cid}?format=raw"), 400, "bad_request"),
        ("/nothing".into(), 404, "no_such_route"),
    ] {
        let answer = ask(Method::GET, &format!("{url}{path}"), &[]).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        assert_eq!(code(answer).await, expected, "{path}");
    }
    for format in ["raw", "car"] {
        let absent = format!("{url}/ipfs/{absent}?format={format}");
        assert_eq!(ask(Method::HEAD, &absent, &[]).await.status, StatusCode::NOT_FOUND);
        let cached = [(header::CACHE_CONTROL, "only-if-cached")];
        assert_eq!(ask(Method::GET, &absent, &cached).await.status, StatusCode::PRECONDITION_FAILED);
        let here = format!("{url}/ipfs/{cid}?format={format}");
        assert_eq!(ask(Method::GET, &here, &cached).await.status, StatusCode::OK);
    }
    let html = [(header::ACCEPT, "text/html")];
    assert_eq!(ask(Method::GET, &format!("{url}/ipfs/{cid}"), &html).await.status, StatusCode::NOT_ACCEPTABLE);
    // A graph that matches its hashes and is none: the fault of whoever made it, not of this server.
    let broken = here.put_node(&Node { links: vec![], data: vec![8, 9] });
    let broken = format!("{url}/ipfs/{broken}/below?format=car");
    assert_eq!(ask(Method::GET, &broken, &[]).await.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_block_that_is_put_while_a_collection_runs_is_here_when_the_answer_is() {
    let here = store();
    let cid = here.put_raw(b"abc");
    let url = format!("{}/blocks/{cid}", spawn(gateway::router(here.blocks.clone())).await);
    // Another process collects: it has found this block old enough, and has not removed it yet.
    let collecting = std::fs::File::create(here.dir.path().join("lock")).unwrap();
    collecting.lock().unwrap();
    let put = tokio::spawn(async move { Client::new().put(&url, Bytes::from_static(b"abc")).await.unwrap().status });
    tokio::pin!(put);
    let answered = tokio::time::timeout(std::time::Duration::from_millis(300), &mut put).await;
    assert!(answered.is_err(), "it was answered though the block is about to go: {answered:?}");
    here.blocks.delete(&cid).unwrap();
    collecting.unlock().unwrap();
    assert_eq!(put.await.unwrap(), StatusCode::CREATED);
    assert!(here.blocks.has(&cid));
}

#[tokio::test]
async fn a_part_of_a_block_is_served_and_the_probe_is_answered() {
    let here = store();
    let cid = here.put_raw(b"abcdef");
    let url = spawn(gateway::router(here.blocks.clone())).await;
    let block = format!("{url}/ipfs/{cid}?format=raw");
    let part = ask(Method::GET, &block, &[(header::RANGE, "bytes=2-3")]).await;
    assert_eq!((part.status, part.header(&header::CONTENT_RANGE)), (StatusCode::PARTIAL_CONTENT, Some("bytes 2-3/6")));
    assert_eq!(&part.bytes(10).await.unwrap()[..], b"cd");
    let beyond = ask(Method::GET, &block, &[(header::RANGE, "bytes=6-")]).await;
    assert_eq!(beyond.status, StatusCode::RANGE_NOT_SATISFIABLE);
    let two = ask(Method::GET, &block, &[(header::RANGE, "bytes=0-1,3-4")]).await;
    assert_eq!((two.status, &two.bytes(10).await.unwrap()[..]), (StatusCode::OK, &b"abcdef"[..]));
    let head = ask(Method::HEAD, &block, &[]).await;
    assert_eq!(head.header(&header::ACCEPT_RANGES), Some("bytes"));

    for method in [Method::GET, Method::HEAD] {
        let probe = ask(method, &format!("{url}/ipfs/bafkqaaa?format=raw"), &[]).await;
        assert_eq!((probe.status, probe.bytes(10).await.unwrap().len()), (StatusCode::OK, 0));
    }
    // Asked for by Accept, the answer says under which URL it can be kept.
    let accepted =
        ask(Method::GET, &format!("{url}/ipfs/{cid}"), &[(header::ACCEPT, "application/vnd.ipld.raw")]).await;
    let location = format!("/ipfs/{cid}?format=raw");
    assert_eq!(accepted.header(&header::CONTENT_LOCATION), Some(location.as_str()));
}

/// The CIDs in a CAR, in order, each block verified.
async fn blocks_in(url: &str) -> Vec<cid::Cid> {
    let answer = ask(Method::GET, url, &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{url}");
    let bytes = answer.bytes(4 << 20).await.unwrap();
    let mut reader = car::Reader::new(&bytes[..]).unwrap();
    let mut found = Vec::new();
    while let Some((cid, _)) = reader.next_block().unwrap() {
        found.push(cid);
    }
    found
}

#[tokio::test]
async fn a_part_of_a_file_comes_with_the_blocks_that_prove_it_and_no_others() {
    let here = store();
    // Nine leaves of 1 KiB (the last 808 bytes) under three nodes of at most four, under the root.
    let content = noise(9_000);
    let file = here.add(&content);
    let url = format!("{}/ipfs/{file}?format=car", spawn(gateway::router(here.blocks.clone())).await);
    for (range, blocks) in [
        ("0:*", 13),
        ("0:0", 3),
        ("1023:1023", 3),
        ("1023:1024", 4),
        ("4095:4096", 5),
        ("8192:*", 3),
        ("-1:*", 3),
        ("-808:*", 3),
        ("-809:*", 5),
        ("1024:-1025", 10),
        ("8999:100000", 3),
    ] {
        let found = blocks_in(&format!("{url}&entity-bytes={range}")).await;
        assert_eq!(found.len(), blocks, "{range}");
        assert_eq!(found[0], file);
        // What came is enough to read the range, and every leaf that came is in it.
        let text = content.chunks(1024).map(cid::of_raw).collect::<Vec<_>>();
        let leaves: Vec<_> = found.iter().filter(|c| c.codec() == cid::RAW).collect();
        assert!(leaves.iter().all(|leaf| text.contains(leaf)), "{range}");
    }
    let tags = async |query: &str| {
        let head = ask(Method::HEAD, &format!("{url}{query}"), &[]).await;
        head.header(&header::ETAG).unwrap().to_owned()
    };
    let all = [
        tags("").await,
        tags("&dag-scope=entity").await,
        tags("&entity-bytes=0:0").await,
        tags("&dag-scope=block").await,
    ];
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{all:?}");
    let again = ask(Method::GET, &format!("{url}&entity-bytes=0:0"), &[(header::IF_NONE_MATCH, all[2].as_str())]).await;
    assert_eq!(again.status, StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn the_same_node_in_two_parts_of_a_range_is_sent_once_and_followed_twice() {
    let here = store();
    // Four leaves under one node, that node twice under the root: bytes 3..5 are its end and its beginning.
    let leaves: Vec<_> = [b"a", b"b", b"c", b"d"].iter().map(|leaf| here.put_raw(*leaf)).collect();
    let link = |cid: &cid::Cid| Link { cid: *cid, name: String::new(), tsize: 1 };
    let sizes = |sizes: &[u8]| {
        let total = sizes.iter().sum();
        let mut data = vec![8, 2, 0x18, total];
        sizes.iter().for_each(|size| data.extend([0x20, *size]));
        data
    };
    let node = here.put_node(&Node { links: leaves.iter().map(link).collect(), data: sizes(&[1, 1, 1, 1]) });
    let root = here.put_node(&Node { links: vec![link(&node), link(&node)], data: sizes(&[4, 4]) });
    let url = format!("{}/ipfs/{root}?format=car", spawn(gateway::router(here.blocks.clone())).await);
    assert_eq!(blocks_in(&format!("{url}&entity-bytes=3:4")).await, [root, node, leaves[3], leaves[0]]);
    assert_eq!(blocks_in(&format!("{url}&entity-bytes=0:4")).await.len(), 6);
    assert_eq!(blocks_in(&format!("{url}&entity-bytes=0:*")).await.len(), 6);
}

#[tokio::test]
async fn a_path_is_followed_through_plain_and_sharded_directories() {
    let here = store();
    let source = here.dir.path().join("tree");
    std::fs::create_dir_all(source.join("sub dir/many")).unwrap();
    std::fs::write(source.join("sub dir/ä"), noise(3 << 20)).unwrap();
    (0..1100).for_each(|i| std::fs::write(source.join(format!("sub dir/many/{i:0200}")), [7]).unwrap());
    let put = &mut |cid, bytes: Vec<u8>| here.blocks.put_later(&cid, &bytes);
    let root = store::unixfs::import_path(&source, store::unixfs::Profile::V1_2025, put).unwrap().cid;
    let base = spawn(gateway::router(here.blocks.clone())).await;

    let file = format!("{base}/ipfs/{root}/sub%20dir/%C3%A4?format=car");
    let found = blocks_in(&file).await;
    assert_eq!((found.len(), found[0]), (2 + 4, root));
    let head = ask(Method::HEAD, &file, &[]).await;
    let path = format!("/ipfs/{root}/sub%20dir/%C3%A4");
    assert_eq!(head.headers["x-ipfs-path"].to_str().unwrap(), path);
    let roots: Vec<&str> = head.headers["x-ipfs-roots"].to_str().unwrap().split(',').collect();
    assert_eq!((roots.len(), roots[0], roots[2]), (3, root.to_string().as_str(), found[2].to_string().as_str()));
    assert_eq!(blocks_in(&format!("{file}&dag-scope=block")).await.len(), 3);
    assert_eq!(blocks_in(&format!("{file}&entity-bytes=0:10")).await.len(), 2 + 2);

    // Of a sharded directory `entity` is all parts that list it, and none of the files.
    let many = format!("{base}/ipfs/{root}/sub%20dir/many?format=car");
    let listing = blocks_in(&format!("{many}&dag-scope=entity")).await;
    assert!(listing.len() > 100 && listing.iter().all(|c| c.codec() == cid::DAG_PB), "{}", listing.len());
    // All 1,100 files have the same one block.
    assert_eq!(blocks_in(&many).await.len(), listing.len() + 1);
    let one = blocks_in(&format!("{base}/ipfs/{root}/sub%20dir/many/{:0200}?format=car", 7)).await;
    assert!((4..=6).contains(&one.len()), "{}", one.len());
    assert_eq!(one.last(), Some(&cid::of_raw(&[7])));
    for absent in ["sub%20dir/none", "none/at/all", "sub%20dir/many/1", "sub%20dir/%C3%A4/below"] {
        let answer = ask(Method::GET, &format!("{base}/ipfs/{root}/{absent}?format=car"), &[]).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{absent}");
    }
    assert_eq!(blocks_in(&format!("{base}/ipfs/{root}/?format=car&dag-scope=block")).await, [root]);
}

#[tokio::test]
async fn few_blocks_do_not_make_a_car_without_end() {
    let here = store();
    // Forty levels that each link twice to the next: 2^40 paths, 41 blocks; as plain nodes and as a file.
    let mut plain = here.put_raw(b"x");
    let mut file = plain;
    let mut bytes = 1u64;
    for _ in 0..40 {
        let twice =
            |cid| vec![Link { cid, name: String::new(), tsize: 0 }, Link { cid, name: String::new(), tsize: 0 }];
        plain = here.put_node(&Node { links: twice(plain), data: vec![8, 1] });
        let mut data = vec![8, 2];
        for (field, value) in [(0x18, bytes * 2), (0x20, bytes), (0x20, bytes)] {
            data.push(field);
            let mut value = value;
            while value >= 0x80 {
                data.push(value.to_le_bytes()[0] | 0x80);
                value >>= 7;
            }
            data.push(value.to_le_bytes()[0]);
        }
        file = here.put_node(&Node { links: twice(file), data });
        bytes *= 2;
    }
    let url = spawn(gateway::router(here.blocks.clone())).await;
    assert_eq!(blocks_in(&format!("{url}/ipfs/{plain}?format=car")).await.len(), 41);
    for range in ["0:*", "1:-2", "0:1", "1000000:2000000"] {
        let found = blocks_in(&format!("{url}/ipfs/{file}?format=car&entity-bytes={range}")).await;
        assert_eq!(found.len(), 41, "{range}");
    }
}

#[tokio::test]
async fn a_car_holds_as_much_as_its_scope_says() {
    let here = store();
    let file = here.add(&noise(9_000));
    let link = Link { cid: file, name: "file".into(), tsize: 0 };
    let dir = here.put_node(&Node { links: vec![link], data: vec![8, 1] });
    let url = spawn(gateway::router(here.blocks.clone())).await;
    for (root, scope, blocks) in [
        (file, "all", 13),
        (file, "entity", 13),
        (file, "block", 1),
        (dir, "all", 14),
        (dir, "entity", 1),
        (dir, "block", 1),
    ] {
        let answer = ask(Method::GET, &format!("{url}/ipfs/{root}?format=car&dag-scope={scope}"), &[]).await;
        let kind = answer.header(&header::CONTENT_TYPE).unwrap();
        assert_eq!(kind, "application/vnd.ipld.car; version=1; order=dfs; dups=n");
        let bytes = answer.bytes(1 << 20).await.unwrap();
        let there = store();
        let done = car::import(&there.blocks, &bytes[..]).unwrap();
        assert_eq!((done.roots, done.blocks), (vec![root], blocks), "{scope}");
    }
}

#[tokio::test]
async fn a_car_says_that_no_block_comes_twice_only_where_so_few_can_be_below() {
    let here = store();
    let file = here.add(&noise(9_000));
    let claims = |tsize| {
        let link = Link { cid: file, name: "file".into(), tsize };
        here.put_node(&Node { links: vec![link], data: vec![8, 1] })
    };
    // As many links as are remembered take so many bytes of nodes; a claim of more is a claim of more links.
    let most = 38 * u64::try_from(store::walk::LEAVES_REMEMBERED_MAX).unwrap();
    let (few, many) = (claims(most - 100), claims(most + 100));
    // A file whose nodes claim to be smaller than its content.
    let without_sizes = here.put_node(&Node {
        links: vec![Link { cid: file, name: String::new(), tsize: 0 }],
        data: vec![8, 2, 0x18, 0xa8, 0x46, 0x20, 0xa8, 0x46],
    });
    let url = spawn(gateway::router(here.blocks.clone())).await;
    let (certain, open) = ("; version=1; order=dfs; dups=n", "; version=1; order=dfs");
    for (root, scope, says, blocks) in [
        (file, "all", certain, 13),
        (few, "all", certain, 14),
        (many, "all", open, 14),
        (many, "entity", open, 1),
        (many, "block", certain, 1),
        (without_sizes, "all", open, 14),
        (without_sizes, "entity", open, 14),
    ] {
        let url = format!("{url}/ipfs/{root}?format=car&dag-scope={scope}");
        for method in [Method::HEAD, Method::GET] {
            let answer = ask(method, &url, &[]).await;
            let kind = answer.header(&header::CONTENT_TYPE).unwrap().to_owned();
            assert_eq!(kind, format!("application/vnd.ipld.car{says}"), "{url}");
        }
        assert_eq!(blocks_in(&url).await.len(), blocks, "{url}");
        // What is not counted anew is not told anew.
        let tag = ask(Method::HEAD, &url, &[]).await.header(&header::ETAG).unwrap().to_owned();
        let again = ask(Method::GET, &url, &[(header::IF_NONE_MATCH, tag.as_str())]).await;
        assert_eq!((again.status, again.header(&header::CONTENT_TYPE)), (StatusCode::NOT_MODIFIED, None));
    }
}

#[tokio::test]
async fn a_car_that_cannot_be_finished_breaks_off_audibly() {
    let here = store();
    let file = here.add(&noise(9_000));
    let victim = here.blocks.iter().map(Result::unwrap).map(|(c, _)| c).find(|c| c.codec() == cid::RAW).unwrap();
    here.blocks.delete(&victim).unwrap();
    let url = spawn(gateway::router(here.blocks.clone())).await;
    // The head may be lost with the rest, if the break comes before it was written.
    let url = format!("{url}/ipfs/{file}?format=car");
    let broken = match Client::new().send(Method::GET, &url, HeaderMap::new(), Bytes::new()).await {
        Ok(answer) => answer.bytes(1 << 20).await.unwrap_err(),
        Err(broken) => broken,
    };
    assert_eq!(broken.kind, net::Kind::Unknown);
}

#[tokio::test]
async fn a_block_is_taken_only_if_it_is_what_it_says() {
    let here = store();
    let url = spawn(gateway::router(here.blocks.clone())).await;
    let http = Client::new();
    let cid = cid::of_raw(b"abc");
    let good = http.put(&format!("{url}/blocks/{cid}"), &b"abc"[..]).await.unwrap();
    assert_eq!(good.status, StatusCode::CREATED);
    assert_eq!(&here.blocks.get(&cid).unwrap()[..], b"abc");

    let other = cid::of_raw(b"other");
    let lie = http.put(&format!("{url}/blocks/{other}"), &b"abc"[..]).await.unwrap();
    assert_eq!((lie.status.as_u16(), code(lie).await.as_str()), (400, "wrong_bytes"));
    let long = vec![7; (2 << 20) + 1];
    let long_cid = cid::of_raw(&long);
    let refused = http.put(&format!("{url}/blocks/{long_cid}"), long).await.unwrap();
    assert_eq!((refused.status.as_u16(), code(refused).await.as_str()), (413, "block_too_large"));
    assert_eq!(here.count(), 1);
}

#[tokio::test]
async fn the_daemon_stops_when_told_and_not_before() {
    let here = store();
    let cid = here.put_raw(b"abc");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(store::serve(listener, here.blocks.clone(), async move {
        let _ = stopped.await;
    }));
    let health: serde_json::Value = Client::new().get_json(&format!("{url}/health")).await.unwrap();
    assert_eq!(health["ok"], true);
    assert!(!serving.is_finished());
    assert_eq!(ask(Method::GET, &format!("{url}/ipfs/{cid}?format=raw"), &[]).await.status, StatusCode::OK);
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    assert_eq!(Client::new().get(&url).await.unwrap_err().kind, net::Kind::Unreachable);
}

/// The public client of this protocol, from npm (tests/clients): Helia's trustless gateway fetcher, which checks each
/// block itself. A lie is none of what it takes.
#[tokio::test(flavor = "multi_thread")]
async fn helias_fetcher_brings_a_graph_and_takes_no_lie() {
    let here = store();
    let content = noise(3_500_000);
    let put = &mut |cid, bytes: Vec<u8>| here.blocks.put_later(&cid, &bytes);
    let root = unixfs::import_bytes(&content, unixfs::Profile::V1_2025, put).unwrap().cid;
    let many = here.add(&content[..100_000]);
    let url = spawn(gateway::router(here.blocks.clone())).await;
    let helia = async |url: &str, root: &cid::Cid| -> serde_json::Value {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clients");
        let (url, root) = (url.to_owned(), root.to_string());
        let run = move || {
            let mut node = std::process::Command::new("node");
            node.args(["gateway.mjs", &url, &root]).current_dir(folder).output().unwrap()
        };
        let out = tokio::task::spawn_blocking(run).await.unwrap();
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)))
    };
    for (root, content, blocks) in [(root, &content[..], 5), (many, &content[..100_000], 133)] {
        let sha256 = hex::encode(cid::digest(&cid::of_raw(content)));
        let got = helia(&url, &root).await;
        assert_eq!(got, serde_json::json!({ "blocks": blocks, "bytes": content.len(), "sha256": sha256 }));
    }
    let absent = helia(&url, &cid::of_raw(b"absent")).await;
    assert!(absent["error"].as_str().is_some_and(|why| why.contains("received 404")), "{absent}");
    let liar = spawn(axum::Router::new().fallback(|| async { "other bytes" })).await;
    let lied = helia(&liar, &root).await;
    assert!(lied["error"].as_str().is_some_and(|why| why.contains("from any gateway")), "{lied}");
}
