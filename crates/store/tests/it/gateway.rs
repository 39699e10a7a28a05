use crate::support::{noise, spawn, store};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use net::{Client, Response};
use store::dag::{Link, Node};
use store::{car, cid, gateway};

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
        (format!("/ipfs/{cid}"), 406, "not_acceptable"),
        (format!("/ipfs/{cid}?format=tar"), 400, "bad_request"),
        (format!("/ipfs/{cid}?format=car&dag-scope=some"), 400, "bad_request"),
        (format!("/ipfs/{cid}?format=car&entity-bytes=0:5"), 501, "unsupported"),
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
    let head = ask(Method::HEAD, &format!("{url}/ipfs/{absent}?format=raw"), &[]).await;
    assert_eq!(head.status, StatusCode::NOT_FOUND);
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
