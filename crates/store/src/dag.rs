//! MerkleDAG nodes (dag-pb); [`crate::walk`] follows their links.

use crate::cid::{self, Cid};
use crate::error::{Error, Result};
use crate::protobuf::{Reader, Value, len64, put_bytes, put_number};

/// A block may be at most this long, wherever it comes from (the limit of bitswap and of public gateways).
pub const BLOCK_BYTES_MAX: usize = 2 << 20;
/// One link of a node: `tsize` is the encoded size of all that lies below, as its author claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub cid: Cid,
    pub name: String,
    pub tsize: u64,
}

/// A decoded dag-pb node; `data` is empty where the field is absent.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Node {
    pub links: Vec<Link>,
    pub data: Vec<u8>,
}

impl Node {
    /// The block's bytes. Links keep their order: their author sorted them.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for link in &self.links {
            let mut inner = Vec::with_capacity(64 + link.name.len());
            put_bytes(1, &link.cid.to_bytes(), &mut inner);
            put_bytes(2, link.name.as_bytes(), &mut inner);
            put_number(3, link.tsize, &mut inner);
            put_bytes(2, &inner, &mut out);
        }
        put_bytes(1, &self.data, &mut out);
        out
    }

    /// Reads a block that already matched `cid`. `Corrupt` if it is no dag-pb node or links to hashes or
    /// codecs that are not spoken here.
    pub fn decode(cid: &Cid, bytes: &[u8]) -> Result<Self> {
        Self::read(bytes).map_err(|why| Error::corrupt(format!("{cid} is not a dag-pb node: {why}")))
    }

    fn read(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut links = Vec::new();
        let data = read_fields(bytes, |link| {
            links.push(Link { cid: link.cid, name: link.name.to_owned(), tsize: link.tsize });
        })?;
        Ok(Self { links, data: data.to_vec() })
    }
}

/// A link as it lies in its block: a walk copies no names.
struct BorrowedLink<'a> {
    cid: Cid,
    name: &'a str,
    tsize: u64,
}

/// Hands the links of a node to `each`, in order, and returns the node's data.
fn read_fields<'a>(bytes: &'a [u8], mut each: impl FnMut(BorrowedLink<'a>)) -> std::result::Result<&'a [u8], String> {
    let mut reader = Reader::new(bytes);
    let mut data = None;
    while let Some(field) = reader.field()? {
        match field {
            (1, Value::Bytes(bytes)) if data.is_none() => data = Some(bytes),
            (2, Value::Bytes(link)) => each(read_link(link)?),
            (number, _) => return Err(format!("field {number} is unknown or there twice")),
        }
    }
    Ok(data.unwrap_or_default())
}

fn read_link(bytes: &[u8]) -> std::result::Result<BorrowedLink<'_>, String> {
    let (mut hash, mut name, mut tsize) = (None, None, None);
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        match field {
            (1, Value::Bytes(bytes)) if hash.is_none() => hash = Some(bytes),
            (2, Value::Bytes(bytes)) if name.is_none() => name = Some(bytes),
            (3, Value::Varint(number)) if tsize.is_none() => tsize = Some(number),
            (number, _) => return Err(format!("a link's field {number} is unknown or there twice")),
        }
    }
    let hash = hash.ok_or("a link without a CID")?;
    let cid = Cid::try_from(hash).map_err(|e| format!("a link's CID does not parse: {e}"))?;
    cid::check(&cid)?;
    let name = std::str::from_utf8(name.unwrap_or_default()).map_err(|_| "a link's name is not UTF-8")?;
    Ok(BorrowedLink { cid, name, tsize: tsize.unwrap_or(0) })
}

/// Hands each CID that a block points to to `each`, in order; none for raw blocks. `Corrupt` as for [`Node::decode`];
/// what was heard before counts for nothing then.
pub(crate) fn each_link(cid: &Cid, bytes: &[u8], mut each: impl FnMut(Cid)) -> Result<()> {
    if cid.codec() == cid::RAW {
        return Ok(());
    }
    read_fields(bytes, |link| each(link.cid))
        .map(drop)
        .map_err(|why| Error::corrupt(format!("{cid} is not a dag-pb node: {why}")))
}

/// The CIDs that a block points to, in order; none for raw blocks.
pub fn links(cid: &Cid, bytes: &[u8]) -> Result<Vec<Cid>> {
    let mut links = Vec::new();
    each_link(cid, bytes, |link| links.push(link))?;
    Ok(links)
}

/// Everything in `bytes` that might be a link, whether or not they are a node: each sha2-256 multihash in them, under
/// both codecs. For who must not miss one in a block that does not parse.
pub(crate) fn possible_links(bytes: &[u8]) -> impl Iterator<Item = Cid> {
    let hashes = bytes.windows(34).filter(|window| window.starts_with(&[0x12, 0x20]));
    hashes.flat_map(|window| {
        let digest: [u8; 32] = window[2..].try_into().expect("34 bytes less two");
        [cid::raw(digest), cid::dag_pb(digest)]
    })
}

/// Encoded bytes of a whole graph by its root node's own claim; an upper bound for planning, never trusted.
pub fn claimed_bytes(cid: &Cid, bytes: &[u8]) -> Result<u64> {
    let own = len64(bytes);
    if cid.codec() == cid::RAW {
        return Ok(own);
    }
    let mut sum = own;
    read_fields(bytes, |link| sum = sum.saturating_add(link.tsize))
        .map_err(|why| Error::corrupt(format!("{cid} is not a dag-pb node: {why}")))?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(name: &str, content: &[u8]) -> Link {
        Link { cid: cid::of_raw(content), name: name.into(), tsize: len64(content) }
    }

    #[test]
    fn a_node_survives_and_others_are_told_apart() {
        let node = Node { links: vec![link("", b"a"), link("", b"b")], data: vec![8, 1] };
        let bytes = node.encode();
        let cid = cid::of_dag_pb(&bytes);
        assert_eq!(Node::decode(&cid, &bytes).unwrap(), node);
        let mut lying = bytes.clone();
        lying[1] = 0x7f;
        assert!(Node::decode(&cid, &lying).unwrap_err().to_string().contains("beyond the end"));
        // A link by identity hash would smuggle content past the block limit.
        let mut inner = Vec::new();
        put_bytes(1, &[0x01, 0x55, 0x00, 0x01, 0x61], &mut inner);
        let mut smuggled = Vec::new();
        put_bytes(2, &inner, &mut smuggled);
        assert!(Node::decode(&cid, &smuggled).unwrap_err().to_string().contains("hash 0x0"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = Node::decode(&cid::of_dag_pb(&bytes), &bytes);
        }
    }
}
