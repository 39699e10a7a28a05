//! Content identifiers, narrowed to what this project speaks: sha2-256, raw or dag-pb.
//!
//! On chain only the 32-byte digest is kept; the codec is agreed by convention ([`raw`], [`dag_pb`]).

use crate::error::{Error, Result};
use multihash_codetable::Multihash;
use sha2::{Digest, Sha256};
use std::str::FromStr;

pub use cid::Cid;

/// Multicodec of plain bytes.
pub const RAW: u64 = 0x55;
/// Multicodec of a MerkleDAG protobuf node.
pub const DAG_PB: u64 = 0x70;
/// Multihash code of SHA2-256.
const SHA2_256: u64 = 0x12;
/// No text form of an accepted CID is longer (base2 of 36 bytes and its prefix).
const TEXT_BYTES_MAX: usize = 300;

/// Reads a CID in any of its text forms. CIDv1 (raw or dag-pb) and CIDv0, both sha2-256 only.
///
/// Fails with `Usage`, naming what does not fit: other hashes (identity among them: it would put any
/// amount of data inside the name), other codecs, other lengths.
pub fn parse(text: &str) -> Result<Cid> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::usage(format!("a CID of {} characters is too long to be one", text.len())));
    }
    // The parser behind this also takes whole paths (`/ipfs/…`); here a name is a name.
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(Error::usage(format!("{text:?} is not a CID")));
    }
    let cid = Cid::from_str(text).map_err(|e| Error::usage(format!("`{text}` is not a CID")).caused_by(e))?;
    check(&cid).map_err(Error::usage)?;
    Ok(cid)
}

/// What keeps `cid` from being one that this store speaks, in words.
pub(crate) fn check(cid: &Cid) -> std::result::Result<(), String> {
    if cid.codec() != RAW && cid.codec() != DAG_PB {
        return Err(format!("{cid} has codec 0x{:x}; only raw (0x55) and dag-pb (0x70) are spoken", cid.codec()));
    }
    if cid.hash().code() != SHA2_256 || cid.hash().digest().len() != 32 {
        return Err(format!("{cid} has hash 0x{:x}; only 32-byte sha2-256 (0x12) is spoken", cid.hash().code()));
    }
    Ok(())
}

/// The sha2-256 digest inside `cid`, which must have passed [`parse`] or come from this module.
pub fn digest(cid: &Cid) -> [u8; 32] {
    let mut digest = [0; 32];
    let inside = cid.hash().digest();
    // A CID of another hash would be cut or padded; it then matches no block and is found missing.
    let length = inside.len().min(32);
    digest[..length].copy_from_slice(&inside[..length]);
    digest
}

/// CIDv1 of a raw block with this digest.
pub fn raw(digest: [u8; 32]) -> Cid {
    Cid::new_v1(RAW, wrap(digest))
}

/// CIDv1 of a dag-pb block with this digest.
pub fn dag_pb(digest: [u8; 32]) -> Cid {
    Cid::new_v1(DAG_PB, wrap(digest))
}

/// CIDv1 raw of `bytes`.
pub fn of_raw(bytes: &[u8]) -> Cid {
    raw(sha256(bytes))
}

/// CIDv1 dag-pb of `bytes`, which should be an encoded node.
pub fn of_dag_pb(bytes: &[u8]) -> Cid {
    dag_pb(sha256(bytes))
}

/// The one name of a block: CIDv0 and its CIDv1 twin are the same block.
pub fn normal(cid: &Cid) -> Cid {
    match cid.version() {
        cid::Version::V0 => Cid::new_v1(DAG_PB, *cid.hash()),
        cid::Version::V1 => *cid,
    }
}

/// CIDv0 of a dag-pb CID (the old profile's form).
pub(crate) fn as_v0(cid: &Cid) -> Cid {
    Cid::new_v0(*cid.hash()).unwrap_or(*cid)
}

/// Checks `bytes` against `cid`; `Corrupt` if they differ.
pub fn verify(cid: &Cid, bytes: &[u8]) -> Result<()> {
    check(cid).map_err(Error::corrupt)?;
    if sha256(bytes)[..] != *cid.hash().digest() {
        return Err(Error::corrupt(format!("{} bytes do not hash to {cid}", bytes.len())));
    }
    Ok(())
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn wrap(digest: [u8; 32]) -> Multihash {
    Multihash::wrap(SHA2_256, &digest).expect("32 bytes fit into a multihash of 64")
}

/// CIDs as JSON strings, for `#[serde(with)]`. The strict [`parse`] reads them.
pub mod text {
    use super::{Cid, parse};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(cid)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cid, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    /// `Option<Cid>` as a string or null.
    pub mod maybe {
        use super::{Cid, Deserialize, Deserializer, Serializer, parse};
        use serde::de::Error as _;

        pub fn serialize<S: Serializer>(cid: &Option<Cid>, serializer: S) -> Result<S::Ok, S::Error> {
            match cid {
                Some(cid) => serializer.collect_str(cid),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cid>, D::Error> {
            let text = Option::<String>::deserialize(deserializer)?;
            text.map(|t| parse(&t).map_err(D::Error::custom)).transpose()
        }
    }

    /// `Vec<Cid>` as an array of strings.
    pub mod many {
        use super::{Cid, Deserialize, Deserializer, Serializer, parse};
        use serde::de::Error as _;

        pub fn serialize<S: Serializer>(cids: &[Cid], serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(cids.iter().map(Cid::to_string))
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Cid>, D::Error> {
            let texts = Vec::<String>::deserialize(deserializer)?;
            texts.iter().map(|t| parse(t).map_err(D::Error::custom)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_raw_and_dag_pb_names_are_read() {
        let good = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
        assert_eq!(parse(good).unwrap(), of_raw(b""));
        assert_eq!(
            normal(&parse("QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH").unwrap()),
            of_dag_pb(b"\x0a\x04\x08\x02\x18\x00")
        );
        for (bad, why) in [
            ("", "not a CID"),
            ("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyk", "not a CID"),
            ("bafyaaiakacdajzkdlbzq", "not a CID"),
            ("/ipfs/bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", "not a CID"),
            ("x\n/ipfs/bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", "not a CID"),
            // identity hash of "abc", raw
            ("bafkqaa3bmjrq", "hash 0x0"),
            // dag-cbor codec
            ("bafyreigdmqpykrgxyaxtlafqpqhzrb7qy2rh75nldvfd4tucqmqqme5yje", "codec 0x71"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.to_string().contains(why), "{bad}: {error}");
        }
        assert!(parse(&"b".repeat(100_000)).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn a_changed_bit_does_not_verify() {
        let cid = of_raw(b"abc");
        verify(&cid, b"abc").unwrap();
        assert_eq!(verify(&cid, b"abd").unwrap_err().kind, crate::Kind::Corrupt);
        assert_eq!(raw(digest(&cid)), cid);
    }
}
