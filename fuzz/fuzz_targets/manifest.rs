//! Manifests of strangers. What must hold: what is taken is within the bounds that no agent may leave, is written and read
//! again as itself, and has one written form; a refusal is a few lines; and memory is a multiple of the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node::manifest::Manifest;
use vivarium_fuzz::bounded;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A key of dots is a table in a table for each of them, about 500 bytes; 64 MiB for the longest text that is taken.
    let manifest = match bounded(64 * 1024 + 1024 * text.len(), || Manifest::parse(text)) {
        Ok(manifest) => manifest,
        Err(refused) => {
            assert!(refused.to_string().len() < 1024 + 8 * text.len(), "a refusal that is longer than its reason");
            return;
        }
    };
    let written = manifest.to_toml().expect("what was read can be written");
    let again = Manifest::parse(&written).expect("what was written here");
    assert!(again == manifest, "written again it is another manifest");
    assert!(again.to_toml().expect("twice") == written, "two forms of one manifest");
    assert!((1..=30).contains(&manifest.lease_days) && (1..=2).contains(&manifest.prepay_days), "a lease's length");
    let stewards = manifest.stewards.len();
    assert!(stewards >= 1 && usize::from(manifest.threshold) <= stewards, "a quorum that nobody can make");
    assert!(stewards == 1 || manifest.threshold >= 2, "one steward of several can act alone");
    assert!(manifest.stewards.windows(2).all(|pair| pair[0].address < pair[1].address), "a steward twice");
    assert!(manifest.min_call_uusdc > 0 && manifest.min_call_uusdc <= manifest.max_call_uusdc, "a call's price");
    assert!(!manifest.store_urls.is_empty(), "no store");
    assert!((1..=60).contains(&manifest.payments.final_blocks), "finality");
    if let Some(most) = &manifest.ceilings {
        assert!(most.day_limit_uusdc >= manifest.day_limit_uusdc && most.lease_days <= 30, "a ceiling below the limit");
    }
});
