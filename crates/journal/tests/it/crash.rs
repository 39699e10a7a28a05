//! The registry of crash points and the sources say the same.

use journal::crash::{POINTS, is_registered};
use std::collections::BTreeSet;
use std::path::Path;

/// Names in `crash_point!("…")` below `dir`.
fn used_below(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            used_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).expect("text");
            for rest in text.split("crash_point!(\"").skip(1) {
                found.insert(rest.split('"').next().unwrap_or_default().to_owned());
            }
        }
    }
}

#[test]
fn every_point_in_the_sources_is_registered_and_every_registered_point_is_in_the_sources() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates/");
    let mut used = BTreeSet::new();
    for entry in std::fs::read_dir(crates).expect("crates/") {
        let sources = entry.expect("readable").path().join("src");
        if sources.is_dir() {
            used_below(&sources, &mut used);
        }
    }
    let registered: BTreeSet<String> = POINTS.iter().map(|p| p.name.to_owned()).collect();
    assert_eq!(registered.len(), POINTS.len(), "a name stands twice in the registry");
    assert_eq!(used, registered, "left: crash_point! in the sources; right: journal::crash::POINTS");
}

#[test]
fn only_whole_names_are_registered() {
    assert!(is_registered("pay.served"));
    assert!(!is_registered("pay.serve") && !is_registered("pay.served2") && !is_registered(""));
    assert!(POINTS.iter().all(|p| !p.guards.is_empty()));
}
