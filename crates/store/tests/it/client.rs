use crate::support::{SMALL, noise, refused, spawn, store};
use axum::Router;
use axum::routing::any;
use net::Client;
use store::dag::{Link, Node};
use store::{Kind, StoreClient, cid, gateway, unixfs};

const NOBODY: &str = "http://127.0.0.1:1";

fn client(urls: &[&str]) -> StoreClient {
    StoreClient::new(Client::new(), urls.iter().map(|u| (*u).to_owned()).collect())
}

#[tokio::test]
async fn bytes_of_any_size_go_in_and_come_out() {
    let here = store();
    let url = spawn(gateway::router(here.blocks.clone())).await;
    let client = client(&[&format!("{url}/")]);
    for (bytes, codec) in
        [(0, cid::RAW), (1, cid::RAW), (1 << 20, cid::RAW), ((1 << 20) + 1, cid::DAG_PB), (5 << 20, cid::DAG_PB)]
    {
        let content = noise(bytes);
        let cid = client.put_bytes(&content).await.unwrap();
        assert_eq!(cid.codec(), codec, "{bytes}");
        assert!(client.get_bytes(&cid, content.len()).await.unwrap() == content, "{bytes}");
        if bytes > 0 {
            refused(client.get_bytes(&cid, content.len() - 1).await, Kind::OverLimit, "are allowed here");
        }
    }
    // Three levels deep, put by somebody with another profile.
    let cid = here.add(&noise(50_000));
    assert!(client.get_bytes(&cid, 50_000).await.unwrap() == noise(50_000));
}

#[tokio::test]
async fn a_directory_goes_in_as_a_stream() {
    let (here, there) = (store(), store());
    let url = spawn(gateway::router(there.blocks.clone())).await;
    let source = here.dir.path().join("code");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("a"), noise(30_000)).unwrap();
    std::fs::write(source.join("b"), b"b").unwrap();
    let put = client(&[&url]).put_path(&source, SMALL).await.unwrap();
    assert_eq!(put.bytes, 30_001);
    let dest = there.dir.path().join("out");
    unixfs::export(&there.blocks, &put.cid, &dest, unixfs::Limits::default()).unwrap();
    assert_eq!(std::fs::read(dest.join("a")).unwrap(), noise(30_000));
    refused(client(&[&url]).put_path(&source.join("absent"), SMALL).await, Kind::Usage, "there is no");
    refused(client(&[NOBODY]).put_path(&source, SMALL).await, Kind::Unreachable, NOBODY);
}

#[tokio::test]
async fn reads_fail_over_and_writes_need_one() {
    let here = store();
    let good = spawn(gateway::router(here.blocks.clone())).await;
    let liar = spawn(Router::new().fallback(any(|| async { "other bytes" }))).await;
    let full = spawn(Router::new().fallback(any(|| async { axum::http::StatusCode::INSUFFICIENT_STORAGE }))).await;
    let empty = spawn(gateway::router(store().blocks)).await;

    let cid = client(&[NOBODY, &full, &good]).put_bytes(b"abc").await.unwrap();
    assert_eq!(client(&[NOBODY, &liar, &empty, &good]).get_bytes(&cid, 3).await.unwrap(), b"abc");

    refused(client(&[&full, NOBODY]).put_bytes(b"abc").await, Kind::DiskFull, &full);
    refused(client(&[NOBODY]).put_bytes(b"abc").await, Kind::Unreachable, NOBODY);
    refused(client(&[&empty]).get_bytes(&cid, 3).await, Kind::Missing, &empty);
    refused(client(&[&empty, NOBODY]).get_bytes(&cid, 3).await, Kind::Unreachable, NOBODY);
    refused(client(&[&liar]).get_bytes(&cid, 3).await, Kind::Corrupt, &liar);
    refused(client(&[]).get_bytes(&cid, 3).await, Kind::Usage, "no store is named");
    refused(client(&[&good]).put_block(&cid, b"other").await, Kind::Corrupt, "do not hash");
}

#[tokio::test]
async fn what_is_pinned_over_http_stays_until_it_is_let_go_of() {
    let here = store();
    let good = spawn(gateway::router(here.blocks.clone())).await;
    let client = client(&[NOBODY, &good]);
    let cid = client.put_bytes(&noise(3 << 20)).await.unwrap();
    client.pin(&cid, "weights").await.unwrap();
    client.pin(&cid, "weights").await.unwrap();
    assert_eq!(here.blocks.pins().unwrap()[0].reasons, ["weights"]);
    assert_eq!(here.blocks.gc(std::time::Duration::ZERO).unwrap().removed_blocks, 0);
    client.unpin(&cid, "log").await;
    assert_eq!(here.blocks.pins().unwrap().len(), 1, "another reason");
    client.unpin(&cid, "weights").await;
    client.unpin(&cid, "weights").await;
    assert_eq!(here.blocks.gc(std::time::Duration::ZERO).unwrap().kept_blocks, 0);
    // Nobody promises to keep what is not there.
    refused(client.pin(&cid, "weights").await, Kind::Unreachable, "has not all of");
    let url = format!("{good}/pins/{cid}");
    let status = |answer: net::Response| answer.status.as_u16();
    assert_eq!(status(Client::new().put(&url, Vec::new()).await.unwrap()), 400, "without a reason");
    assert_eq!(status(Client::new().put(&format!("{url}?reason="), Vec::new()).await.unwrap()), 404);
}

#[tokio::test]
async fn a_file_of_few_wide_nodes_inside_each_other_ends_early() {
    let here = store();
    let url = spawn(gateway::router(here.blocks.clone())).await;
    // 40,000 links on each of four levels, to the next level and to one leaf of one byte.
    let leaf = here.put_raw(b"x");
    let (mut below, mut bytes) = (leaf, 1u64);
    for _ in 0..4 {
        let links = (0..40_000).map(|at| if at == 0 { below } else { leaf });
        let links = links.map(|cid| Link { cid, name: String::new(), tsize: 0 }).collect();
        let mut data = vec![0x08, 2, 0x20];
        number(bytes, &mut data);
        (1..40_000).for_each(|_| data.extend_from_slice(&[0x20, 1]));
        bytes += 39_999;
        below = here.put_node(&Node { links, data });
    }
    refused(client(&[&url]).get_bytes(&below, 1 << 20).await, Kind::OverLimit, "the graph is too wide");
}

/// A number of protobuf.
fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}
