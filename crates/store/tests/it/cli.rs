use crate::support::{noise, refused, spawn, store};
use std::fs;
use std::time::Duration;
use store::car::Version;
use store::cli;
use store::unixfs::{Limits, Profile};
use store::{Blocks, Kind, gateway};

#[tokio::test]
async fn a_newcomer_adds_lists_moves_verifies_and_collects() {
    let home = tempfile::tempdir().unwrap();
    let (one, two) = (home.path().join("one"), home.path().join("two"));
    let source = home.path().join("weights");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("model.gguf"), noise(3 << 20)).unwrap();
    fs::write(source.join("README"), b"read me").unwrap();

    let mut heard = 0;
    let added = cli::add(&one, &source, Profile::V1_2025, |bytes| heard = bytes).unwrap();
    assert_eq!((added.bytes, added.blocks), ((3 << 20) + 7, 6));
    assert!(heard > added.bytes);
    let json = serde_json::to_value(&added).unwrap();
    assert_eq!((json["cid"].as_str(), json["bytes"].as_u64()), (Some(added.cid.as_str()), Some(added.bytes)));

    assert_eq!(cli::ls(&one, None).unwrap()[0].reasons, [cli::ADDED]);
    let names: Vec<_> = cli::ls(&one, Some(&added.cid)).unwrap().into_iter().map(|e| e.name.unwrap()).collect();
    assert_eq!(names, ["README", "model.gguf"]);

    let car = home.path().join("weights.car");
    let exported = cli::export(&one, &added.cid, &car, Version::V1, |_| {}).unwrap();
    assert_eq!((exported.blocks, exported.bytes), (6, fs::metadata(&car).unwrap().len()));
    refused(cli::export(&one, &added.cid, &car, Version::V1, |_| {}), Kind::Usage, "is there already");
    let second = home.path().join("weights.v2.car");
    let exported = cli::export(&one, &added.cid, &second, Version::V2, |_| {}).unwrap();
    assert_eq!((exported.blocks, exported.bytes), (6, fs::metadata(&second).unwrap().len()));
    assert_eq!(cli::import(&home.path().join("three"), &second, |_| {}).unwrap().blocks, 6);
    assert_eq!(cli::import(&two, &car, |_| {}).unwrap().roots, std::slice::from_ref(&added.cid));

    let checked = cli::verify(&two, Some(&added.cid), |_| {}).unwrap();
    assert_eq!((checked.blocks, checked.damaged.len(), checked.missing.len()), (6, 0, 0));

    cli::pin(&two, &added.cid, "weights", |_| {}).unwrap();
    assert_eq!(cli::unpin(&two, &added.cid, Some(cli::ADDED)).unwrap().reasons, ["weights"]);
    refused(cli::unpin(&two, &added.cid, Some(cli::ADDED)), Kind::Missing, "is not pinned as added");
    assert_eq!(cli::gc(&two, Duration::ZERO, |_| {}).unwrap().removed_blocks, 0);
    cli::unpin(&two, &added.cid, None).unwrap();
    assert_eq!(cli::gc(&two, Duration::ZERO, |_| {}).unwrap().removed_blocks, 6);
    refused(cli::pin(&two, &added.cid, "weights", |_| {}), Kind::Missing, "is not in");

    let url = spawn(gateway::router(Blocks::open(&one).unwrap())).await;
    let dest = home.path().join("out");
    let got = cli::get(&two, &added.cid, &dest, vec![url.clone()], Limits::default(), |_| {}).await.unwrap();
    assert_eq!((got.bytes, got.sources[0].blocks), (added.bytes, 6));
    assert_eq!(fs::read(dest.join("model.gguf")).unwrap(), noise(3 << 20));
}

#[test]
fn verify_tells_damaged_from_missing() {
    let here = store();
    let root = here.add(&noise(4_000));
    let dir = here.dir.path();
    let leaves: Vec<_> = here.blocks.iter().map(Result::unwrap).filter(|(c, _)| *c != root).collect();
    here.blocks.delete(&leaves[0].0).unwrap();
    let shard = hex::encode(&store::cid::digest(&leaves[1].0)[..1]);
    fs::write(dir.join("blocks").join(shard).join(leaves[1].0.to_string()), b"bit rot").unwrap();
    let found = cli::verify(dir, Some(&root.to_string()), |_| {}).unwrap();
    assert_eq!((found.missing, found.damaged), (vec![leaves[0].0.to_string()], vec![leaves[1].0.to_string()]));
    assert_eq!(found.blocks, 3);
    // The damaged one is gone now: what is left is sound.
    assert_eq!(cli::verify(dir, None, |_| {}).unwrap().damaged, [""; 0]);
}

#[test]
fn half_a_car_file_does_not_stay() {
    let here = store();
    let root = here.add(&noise(4_000));
    let victim = here.blocks.iter().map(Result::unwrap).map(|(c, _)| c).find(|c| *c != root).unwrap();
    here.blocks.delete(&victim).unwrap();
    let car = here.dir.path().join("out.car");
    refused(
        cli::export(here.dir.path(), &root.to_string(), &car, Version::V2, |_| {}),
        Kind::Missing,
        &victim.to_string(),
    );
    assert!(!car.exists());
}
