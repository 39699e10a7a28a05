//! Garbage is collected again and again while an agent lives.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3_600);

/// Makes everything that is stored now so old that only a pin keeps it.
fn grow_old(blocks: &Blocks) {
    for listed in blocks.iter() {
        let (cid, _) = listed.unwrap();
        // What is collected meanwhile is gone.
        if let Ok(file) = std::fs::File::open(blocks.dir().join("blocks").join(place(&cid))) {
            file.set_modified(SystemTime::now() - 2 * HOUR).unwrap();
        }
    }
}

fn place(cid: &Cid) -> std::path::PathBuf {
    let shard = hex::encode(&store::cid::digest(cid)[..1]);
    std::path::Path::new(&shard).join(cid.to_string())
}

/// As [`keep`] does it, once a checkpoint stands.
async fn kept(here: &Bench, made: &Checkpoint, before: Option<&Checkpoint>) {
    here.store.pin(&store::cid::raw(made.digest()), "checkpoint").await.unwrap();
    if let Some(older) = before.and_then(|before| before.prev) {
        here.store.unpin(&store::cid::raw(older.0), "checkpoint").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn collections_take_nothing_that_a_living_agent_needs_and_all_that_it_left() {
    let mut here = Bench::new().await;
    let log = store::cid::of_raw(b"log");
    here.store.put_block(&log, b"log").await.unwrap();
    let (stop, blocks) = (Arc::new(AtomicBool::new(false)), here.blocks.clone());
    let stopped = stop.clone();
    let collector = std::thread::spawn(move || {
        let (mut runs, mut removed) = (0u32, 0);
        while !stopped.load(Ordering::Relaxed) {
            match blocks.gc(HOUR) {
                Ok(done) => {
                    assert_eq!((done.missing_blocks, done.unreadable.len()), (0, 0), "a pin reaches what is gone");
                    (runs, removed) = (runs + 1, removed + done.removed_blocks);
                }
                Err(e) => assert_eq!(e.kind, store::Kind::Usage, "{e}"),
            }
        }
        (runs, removed)
    });
    // Conversations are sealed to a memory key, and the first checkpoint makes one.
    let first = here.checkpoint(None).await;
    kept(&here, &first, None).await;
    let mut made = vec![first];
    let mut said = std::collections::BTreeMap::new();
    for hour in 0..12u32 {
        here.now += 3_600;
        for call in 0..4 {
            let (response, text) = (format!("resp_{hour}_{call}"), format!("{hour} {call} ").repeat(400));
            let cid = here.store(&response, 1, &text).await;
            said.insert(response, (cid, text));
            here.ship().await;
        }
        if hour > 0 {
            let gone = format!("resp_{}_0", hour - 1);
            here.delete(&gone);
            said.remove(&gone);
            here.ship().await;
        }
        if hour == 6 {
            // Another chapter: the snapshot before and all segments after it are left behind.
            here.live.stands = None;
        }
        let next = here.checkpoint(made.last()).await;
        kept(&here, &next, made.last()).await;
        made.push(next);
        grow_old(&here.blocks);
    }
    stop.store(true, Ordering::Relaxed);
    let (runs, _) = collector.join().unwrap();
    assert!(runs > 12, "{runs} collections ran beside it");
    let done = here.blocks.gc(HOUR).unwrap();
    assert_eq!((done.missing_blocks, done.unreadable.len()), (0, 0));

    // The last checkpoint is whole, and so is the one before, which a reorganisation may make the last again.
    let last = &made[made.len() - 1];
    let live = here.restored(last).await;
    for (cid, text) in said.values() {
        let sealed = here.store.get_bytes(&store::cid::parse(cid).unwrap(), 1 << 20).await.unwrap();
        let key = &live.ring.conversations[cid];
        assert!(&Transcript::open(&sealed, key).unwrap().turns[0].content == text);
    }
    let before = &made[made.len() - 2];
    open(&here.store, before, &here.memory_key(before)).await.unwrap();
    // What only older ones named is gone.
    for older in &made[..5] {
        assert!(!here.blocks.has(&older.keys) && !here.blocks.has(&older.snapshot), "checkpoint {}", older.seq);
    }
}
