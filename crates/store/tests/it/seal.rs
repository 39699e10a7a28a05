use crate::support::{noise, refused};
use proptest::prelude::*;
use store::Kind;
use store::seal::{Identity, Recipient, Share, combine, key_hash, lockbox, open, recover, seal, split};

#[test]
fn sealed_bytes_open_for_each_recipient_and_nobody_else() {
    let (one, two, stranger) = (Identity::generate(), Identity::generate(), Identity::generate());
    let plain = noise(200_000);
    let sealed = seal(&plain, &[one.recipient(), two.recipient()]).unwrap();
    assert_eq!(open(&sealed, &one, plain.len()).unwrap(), plain);
    assert_eq!(open(&sealed, &two, plain.len()).unwrap(), plain);
    refused(open(&sealed, &stranger, plain.len()), Kind::Key, "is not sealed to");
    refused(open(&sealed, &one, plain.len() - 1), Kind::OverLimit, "over 199999 bytes");
    refused(seal(&plain, &[]), Kind::Usage, "nothing can be sealed");
    assert_eq!(open(&seal(b"", &[one.recipient()]).unwrap(), &one, 0).unwrap(), b"");
}

#[test]
fn every_changed_or_missing_byte_is_noticed() {
    let one = Identity::generate();
    let sealed = seal(b"memory", &[one.recipient()]).unwrap();
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        assert!(open(&changed, &one, 100).is_err(), "byte {at}");
        assert!(open(&sealed[..at], &one, 100).is_err(), "cut at {at}");
    }
    refused(open(b"<html>", &one, 100), Kind::Corrupt, "age format");
}

/// Each of the shortest lines that there are would have the reader begin anew.
#[test]
fn a_header_without_an_end_is_not_read() {
    let one = Identity::generate();
    let endless = [&b"age-encryption.org/v1\n"[..], &b"-> a\n\n".repeat(5_000)].concat();
    refused(open(&endless, &one, 100), Kind::Corrupt, "no end of its header");
    let many = vec![one.recipient(); 100];
    assert_eq!(open(&seal(b"m", &many).unwrap(), &one, 1).unwrap(), b"m");
    refused(seal(b"m", &vec![one.recipient(); 101]), Kind::Usage, "at most 100");
}

#[test]
fn keys_survive_their_text() {
    let one = Identity::generate();
    let text = one.to_secret_string();
    assert!(text.starts_with("AGE-SECRET-KEY-1"));
    assert_eq!(Identity::parse(&text).unwrap().recipient(), one.recipient());
    assert_eq!(Recipient::parse(&one.recipient().to_string()).unwrap(), one.recipient());
    refused(Identity::parse(&one.recipient().to_string()), Kind::Key, "not an age secret key");
    refused(Recipient::parse("age1"), Kind::Key, "not an age recipient");
    assert!(!format!("{one:?}").contains("SECRET"), "a secret must not reach a log");
}

#[test]
fn any_k_shares_give_the_key_and_fewer_do_not() {
    let key = Identity::generate().to_secret_string();
    let secret = key.as_bytes();
    for (k, n) in [(1, 1), (1, 3), (2, 2), (2, 3), (3, 5), (5, 9)] {
        let shares = split(secret, k, n).unwrap();
        assert_eq!(shares.len(), n);
        for from in 0..=n - k {
            assert_eq!(combine(&shares[from..from + k]).unwrap()[..], *secret, "{k} of {n}");
            assert_eq!(recover(&shares[from..from + k], k, key_hash(secret)).unwrap().secret[..], *secret);
        }
        if k > 1 {
            refused(recover(&shares[..k - 1], k, key_hash(secret)), Kind::Key, "are needed");
            assert!(combine(&shares[..k - 1]).map_or(true, |s| s[..] != *secret));
        }
    }
    for (k, n) in [(0, 3), (4, 3), (2, 256)] {
        refused(split(secret, k, n), Kind::Usage, "cannot be split");
    }
    refused(split(b"", 2, 3), Kind::Usage, "cannot be split");
}

#[test]
fn an_altered_share_is_named_and_does_not_stop_the_good_ones() {
    let secret = b"AGE-SECRET-KEY-1EXAMPLE";
    let hash = key_hash(secret);
    let shares = split(secret, 2, 3).unwrap();
    for victim in 0..3 {
        for byte in 1..shares[0].as_bytes().len() {
            let mut handed_in = shares.clone();
            let mut bytes = shares[victim].as_bytes().to_vec();
            bytes[byte] ^= 0x80;
            handed_in[victim] = Share::from_bytes(&bytes).unwrap();
            let found = recover(&handed_in, 2, hash).unwrap();
            assert_eq!(found.secret[..], *secret);
            assert_eq!(found.bad, [shares[victim].number()]);
            // With exactly k of them, there is nothing to fall back on.
            let pair = [handed_in[victim].clone(), handed_in[(victim + 1) % 3].clone()];
            refused(recover(&pair, 2, hash), Kind::Key, "were altered");
        }
    }
    assert!(recover(&shares, 2, hash).unwrap().bad.is_empty());
    // The same share twice is one share.
    refused(recover(&[shares[0].clone(), shares[0].clone()], 2, hash), Kind::Key, "were altered");
    for bad in [&b""[..], &[0, 1], &[1], &[1; 5000]] {
        refused(Share::from_bytes(bad), Kind::Key, "are not a share");
    }
}

#[test]
fn a_locked_secret_opens_only_with_its_key_and_unchanged() {
    let key = [7; 32];
    let locked = lockbox::lock(&key, b"node key").unwrap();
    assert_eq!(lockbox::unlock(&key, &locked).unwrap()[..], *b"node key");
    assert_ne!(lockbox::lock(&key, b"node key").unwrap(), locked, "each lock has its own nonce");
    refused(lockbox::unlock(&[8; 32], &locked), Kind::Key, "another key");
    for at in 0..locked.len() {
        let mut changed = locked.clone();
        changed[at] ^= 1;
        assert!(lockbox::unlock(&key, &changed).is_err(), "byte {at}");
    }
    refused(lockbox::unlock(&key, b"short"), Kind::Corrupt, "not a locked secret");
}

proptest! {
    #[test]
    fn no_bytes_make_opening_panic(bytes: Vec<u8>) {
        let headed = [&b"age-encryption.org/v1\n"[..], &bytes].concat();
        prop_assert!(open(&headed, &Identity::generate(), 100).is_err());
        prop_assert!(lockbox::unlock(&[1; 32], &[&b"VIVLOCK1"[..], &bytes].concat()).is_err());
        let _ = Share::from_bytes(&bytes).map(|s| combine(&[s]));
    }
}
