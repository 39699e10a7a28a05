//! Sealed objects of strangers. What must hold: whatever opens was sealed, its header unchanged to the byte, and says what
//! was sealed; every refusal is one of the two kinds; and memory is a multiple of the object.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use store::Kind;
use store::seal::{self, Identity};
use vivarium_fuzz::bounded;

/// Of this test alone.
const KEY: &str = "AGE-SECRET-KEY-1VYSXKETEYPNX7U3QW35X2GRXW4A85ETJYPHKVGRGV4SKGETJWVSS0M0438";
/// Sealed to it: alone, and after somebody else.
const SEALED: [&[u8]; 2] = [include_bytes!("age_header/alone.age"), include_bytes!("age_header/second.age")];
const PLAIN: &[u8] = b"what was sealed\n";

static IDENTITY: LazyLock<Identity> = LazyLock::new(|| Identity::parse(KEY).expect("a key of age"));

fuzz_target!(|data: &[u8]| {
    // Once per process, not in the first input's share of memory.
    let identity = &*IDENTITY;
    let opened = bounded(256 * 1024 + 16 * data.len(), || seal::open(data, identity, 4096));
    match &opened {
        Ok(plain) => {
            assert!(SEALED.contains(&data), "altered and opened");
            assert_eq!(plain, PLAIN);
        }
        Err(refused) => assert!(matches!(refused.kind, Kind::Corrupt | Kind::Key), "{refused}"),
    }
});
