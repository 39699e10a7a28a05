use super::*;
use proptest::prelude::*;

fn leaves(count: u32) -> Vec<Hash> {
    (0..count).map(|n| leaf(keccak256(n.to_be_bytes()), Usdc(n.into()))).collect()
}

/// RFC 6962, 2.1, word for word.
fn by_the_rfc(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => [0; 32],
        [one] => *one,
        _ => {
            let mut k = 1;
            while k * 2 < leaves.len() {
                k *= 2;
            }
            parent(&by_the_rfc(&leaves[..k]), &by_the_rfc(&leaves[k..]))
        }
    }
}

#[test]
fn roots_are_the_rfcs_and_every_leaf_is_under_every_later_root() {
    let leaves = leaves(70);
    let mut tree = Tree::default();
    for leaf in &leaves {
        tree.push(*leaf);
    }
    for size in 0..=70 {
        let root = by_the_rfc(&leaves[..size as usize]);
        assert_eq!(tree.root_of(size), root, "{size}");
        for index in 0..size {
            let proof = tree.proof(index, size);
            assert_eq!(proof.root(&leaves[index as usize]), root, "{index} of {size}");
            assert_ne!(proof.root(&[7; 32]), root);
        }
    }
}

/// The same numbers are in contracts/test/Receipts.t.sol, checked there by OpenZeppelin's library; computed with
/// viem 2.57.
#[test]
fn the_vector_that_a_contract_checks() {
    let leaves = leaves(5);
    let mut tree = Tree::default();
    leaves.iter().for_each(|leaf| tree.push(*leaf));
    let proof = tree.proof(4, 5);
    expect_test::expect![[r#"{"index":4,"size":5,"path":["0x74b40674e274dd36ec11c1ada70f6335861b398b602744614381ca539f98a234"],"root":"0x62aa95be4d0705810ae58c8e50bff88f482c3f45a51a1d915d851626adb5f72f","block":12}"#]]
        .assert_eq(&proof.to_json(&tree.root_of(5), Some(12)));
    let inner = tree.proof(1, 5);
    expect_test::expect![[r#"{"index":1,"size":5,"path":["0xc47ed78177e0f4c046558f7a73de043a17d8edf2aa97edf1dd743dab435e79b9","0x92de5186dc8f7d5cae3b5af2f797e18a35ee04721681a24849e1ff931b72f9ed","0xbab3efe6612d109aca3bf5363b243c9d418bea5812b5ca54adbfbafde5cab8d1"],"root":"0x62aa95be4d0705810ae58c8e50bff88f482c3f45a51a1d915d851626adb5f72f","block":null}"#]].assert_eq(&inner.to_json(&tree.root_of(5), None));
    let (read, root) = Proof::from_json(&inner.to_json(&tree.root_of(5), None)).unwrap();
    assert_eq!((read.root(&leaves[1]), &read), (root, &inner));
}

/// A heartbeat that is lost, one whose end is never told, and receipts that come while one is on its way.
#[test]
fn a_day_ends_with_the_first_heartbeat_of_the_next_one_that_is_on_chain() {
    let leaves = leaves(6);
    let mut trees = Trees::default();
    assert_eq!(trees.cut((1, 0), 9), [0; 32], "no receipt, no root");
    let places: Vec<Place> = leaves[..3].iter().map(|leaf| trees.add(*leaf, 10)).collect();
    assert_eq!(trees.proof(places[0]), None, "not on chain yet");
    let root = trees.cut((2, 0), 10);
    let late = trees.add(leaves[3], 10);
    assert_eq!(trees.root_of((2, 0)), root, "a heartbeat sent again carries the same root");
    trees.anchored((2, 0), 100);
    assert_eq!(trees.proof(places[2]).map(|(proof, on, at)| (proof.root(&leaves[2]), on, at)), Some((root, root, 100)));
    assert_eq!(trees.proof(late), None);

    // The next day: the first heartbeat is lost, the second one's end is unknown, the third is mined.
    trees.cut((3, 0), 11);
    trees.lost((3, 0));
    trees.cut((4, 0), 11);
    let last = trees.add(leaves[4], 11);
    let root = trees.cut((5, 0), 11);
    let next = trees.add(leaves[5], 11);
    trees.anchored((5, 0), 120);
    for (place, leaf) in [(places[0], leaves[0]), (late, leaves[3]), (last, leaves[4])] {
        assert_eq!(trees.proof(place).map(|(proof, on, _)| (proof.root(&leaf), on)), Some((root, root)));
    }
    // The late word of an earlier root of the same tree takes nothing back.
    trees.anchored((4, 0), 121);
    assert_eq!(trees.proof(late).unwrap().2, 120);
    // The tree is closed: what came after its cut is in the next one, under its own roots.
    let root = trees.cut((6, 0), 11);
    trees.anchored((6, 0), 130);
    assert_eq!(trees.proof(next).map(|(proof, on, at)| (proof.root(&leaves[5]), on, at)), Some((root, root, 130)));
    assert_eq!(root, leaves[5]);
    // A successor decodes the same trees.
    assert_eq!(borsh::from_slice::<Trees>(&borsh::to_vec(&trees).unwrap()).unwrap(), trees);
    // Forgotten by where they were placed first: `next` came while the first tree was open.
    let newest = trees.add(leaves[0], 11);
    trees.cut((7, 0), 11);
    trees.anchored((7, 0), 140);
    trees.forget_before(1);
    assert_eq!((trees.proof(next), trees.proof(newest).is_some()), (None, true));
}

proptest! {
    /// Whatever happens to heartbeats: a proof, where there is one, leads to a root that a heartbeat carried.
    #[test]
    fn every_proof_leads_to_a_root_that_was_sent(steps in proptest::collection::vec((0u8..4, 0u64..3), 0..120)) {
        let mut trees = Trees::default();
        let (mut kept, mut sent, mut open, mut day) = (Vec::new(), BTreeMap::new(), Vec::new(), 0);
        for (n, (kind, more)) in (0u64..).zip(steps) {
            match kind {
                0 => day += more,
                1 => {
                    let leaf = leaf(keccak256(n.to_be_bytes()), Usdc(n.into()));
                    kept.push((trees.add(leaf, day), leaf));
                }
                2 => {
                    sent.insert(trees.cut((n, 0), day), n);
                    open.push(n);
                }
                _ if !open.is_empty() => {
                    let heartbeat = open.remove(usize::try_from(more).unwrap() % open.len());
                    if more == 2 { trees.lost((heartbeat, 0)) } else { trees.anchored((heartbeat, 0), n) }
                }
                _ => {}
            }
        }
        for (place, leaf) in &kept {
            if let Some((proof, root, _)) = trees.proof(*place) {
                prop_assert!(sent.contains_key(&root));
                prop_assert_eq!(proof.root(leaf), root);
            }
        }
        // One more heartbeat that arrives brings every receipt on chain.
        trees.cut((u64::MAX, 0), day);
        trees.anchored((u64::MAX, 0), u64::MAX);
        for (place, _) in &kept {
            prop_assert!(trees.proof(*place).is_some());
        }
    }
}
