//! The fences of ARCHITECTURE.md, held against what Cargo says.

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};
use std::collections::{BTreeMap, BTreeSet};

/// Everything that `root` reaches through normal and build dependencies.
fn reach(metadata: &Metadata, root: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves by default");
    let names: BTreeMap<&PackageId, String> = metadata.packages.iter().map(|p| (&p.id, p.name.to_string())).collect();
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let start = metadata
        .workspace_packages()
        .into_iter()
        .find(|p| p.name.as_str() == root)
        .unwrap_or_else(|| panic!("no crate `{root}` in the workspace"));
    let mut seen = BTreeSet::new();
    let mut queue = vec![&start.id];
    while let Some(id) = queue.pop() {
        for dep in &nodes[id].deps {
            let only_dev = dep.dep_kinds.iter().all(|k| k.kind == DependencyKind::Development);
            if !only_dev && seen.insert(&dep.pkg) {
                queue.push(&dep.pkg);
            }
        }
    }
    seen.into_iter().map(|id| names[id].clone()).collect()
}

/// The workspace crates among them.
fn reach_inside(metadata: &Metadata, root: &str) -> BTreeSet<String> {
    let ours: BTreeSet<String> = metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect();
    reach(metadata, root).into_iter().filter(|n| ours.contains(n)).collect()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .other_options(vec!["--locked".into()])
        .exec()
        .expect("cargo metadata runs in the workspace")
}

#[test]
fn the_pure_machine_reaches_no_io_no_clock_and_no_chance() {
    let reached = reach(&metadata(), "economy");
    for forbidden in ["tokio", "hyper", "reqwest", "axum", "alloy", "rand", "chrono", "getrandom", "net", "chain"] {
        assert!(!reached.contains(forbidden), "economy reaches {forbidden}");
    }
}

#[test]
fn text_cannot_reach_a_signer() {
    let metadata = metadata();
    for root in ["engine", "infer"] {
        let reached = reach(&metadata, root);
        for forbidden in ["alloy", "alloy-signer-local", "k256", "secp256k1", "age", "chain", "pay", "store", "node"] {
            assert!(!reached.contains(forbidden), "{root} reaches {forbidden}");
        }
    }
}

#[test]
fn crates_depend_on_each_other_as_the_architecture_says() {
    let metadata = metadata();
    let allowed: [(&str, &[&str]); 11] = [
        ("economy", &[]),
        ("journal", &[]),
        ("net", &[]),
        ("infer", &[]),
        ("engine", &["infer"]),
        ("pay", &["economy", "net"]),
        ("pay-reqwest", &["economy", "net", "pay"]),
        ("chain", &["economy", "net"]),
        ("store", &["net"]),
        ("steward", &["chain", "economy", "net", "store"]),
        ("sim", &["chain", "economy", "journal", "net", "pay", "steward", "store"]),
    ];
    for (root, allowed) in allowed {
        for reached in reach_inside(&metadata, root) {
            assert!(
                allowed.contains(&reached.as_str()),
                "{root} reaches {reached}, which ARCHITECTURE.md does not allow"
            );
        }
    }
    assert!(!reach_inside(&metadata, "host").contains("node"), "the provider daemon must never depend on node");
}
