//! Data items and bundles (ANS-104): many signed objects inside the data of one transaction.

use super::key::{KEY_BYTES, id_of, verify};
use super::{Key, Tag, TxId, deephash};
use crate::error::{Error, Result};

/// The only signature type spoken: RSA of 4096 bits.
const ARWEAVE_SIGNATURE: u16 = 1;
/// Limits of ANS-104.
const TAGS_MAX: usize = 128;
const TAG_BYTES_MAX: usize = 4096;
/// Items of a bundle that is read. A choice: their headers are then at most 16 MiB.
const ITEMS_MAX: usize = 1 << 18;
const COUNT_BYTES: usize = 32;
const ENTRY_BYTES: usize = 64;

/// One signed object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataItem {
    pub owner: Vec<u8>,
    target: Option<[u8; 32]>,
    anchor: Option<[u8; 32]>,
    pub tags: Vec<Tag>,
    pub data: Vec<u8>,
    signature: Vec<u8>,
}

impl DataItem {
    /// Signs `data` with its tags. `Usage` if the tags are more than ANS-104 takes.
    pub fn sign(key: &Key, tags: Vec<Tag>, data: Vec<u8>) -> Result<Self> {
        check_tags(&tags).map_err(Error::usage)?;
        let owner = key.owner().to_vec();
        let mut made = Self { owner, target: None, anchor: None, tags, data, signature: Vec::new() };
        made.signature = key.sign(&made.signed_bytes())?;
        Ok(made)
    }

    pub fn id(&self) -> TxId {
        id_of(&self.signature)
    }

    /// Checks that its owner signed exactly this. `Corrupt` otherwise.
    pub fn verify(&self) -> Result<()> {
        match verify(&self.owner, &self.signed_bytes(), &self.signature) {
            true => Ok(()),
            false => Err(Error::corrupt(format!("data item {} was altered", self.id()))),
        }
    }

    fn signed_bytes(&self) -> [u8; 48] {
        let optional = |field: &Option<[u8; 32]>| deephash::blob(field.as_ref().map_or(&[][..], |bytes| bytes));
        deephash::list(&[
            deephash::blob(b"dataitem"),
            deephash::blob(b"1"),
            deephash::blob(ARWEAVE_SIGNATURE.to_string().as_bytes()),
            deephash::blob(&self.owner),
            optional(&self.target),
            optional(&self.anchor),
            deephash::blob(&write_tags(&self.tags)),
            deephash::blob(&self.data),
        ])
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let tags = write_tags(&self.tags);
        let mut out = Vec::with_capacity(2 * KEY_BYTES + 128 + tags.len() + self.data.len());
        out.extend_from_slice(&ARWEAVE_SIGNATURE.to_le_bytes());
        out.extend_from_slice(&self.signature);
        out.extend_from_slice(&self.owner);
        for field in [&self.target, &self.anchor] {
            out.push(u8::from(field.is_some()));
            out.extend(field.iter().flatten());
        }
        for count in [self.tags.len(), tags.len()] {
            out.extend_from_slice(&number(count).to_le_bytes());
        }
        out.extend_from_slice(&tags);
        out.extend_from_slice(&self.data);
        out
    }

    /// Reads an item and checks its signature. `Corrupt` with the reason otherwise; `Usage` for a signature of
    /// another kind than Arweave's own.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor { rest: bytes };
        let kind = cursor.array::<2>().map(u16::from_le_bytes).map_err(malformed)?;
        if kind != ARWEAVE_SIGNATURE {
            return Err(Error::usage(format!("a data item signed by kind {kind}; only Arweave's own keys are read")));
        }
        let item = Self::read(cursor).map_err(malformed)?;
        item.verify()?;
        Ok(item)
    }

    fn read(mut cursor: Cursor) -> std::result::Result<Self, String> {
        let signature = cursor.take(KEY_BYTES)?.to_vec();
        let owner = cursor.take(KEY_BYTES)?.to_vec();
        let (target, anchor) = (cursor.optional()?, cursor.optional()?);
        let (count, length) = (cursor.count()?, cursor.count()?);
        if count > TAGS_MAX || length > TAG_BYTES_MAX {
            return Err(format!("{count} tags of {length} bytes; {TAGS_MAX} and {TAG_BYTES_MAX} are allowed"));
        }
        let written = cursor.take(length)?;
        let tags = read_tags(written)?;
        if tags.len() != count {
            return Err(format!("{} tags where {count} are named", tags.len()));
        }
        check_tags(&tags)?;
        // What is signed is the one form that everybody writes; another encoding of the same tags would not verify.
        if write_tags(&tags) != written {
            return Err("tags in another form than the usual one".into());
        }
        Ok(Self { owner, target, anchor, tags, data: cursor.rest.to_vec(), signature })
    }
}

/// Many items as the data of one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    pub items: Vec<DataItem>,
}

impl Bundle {
    /// The tags that tell gateways to look inside.
    pub fn tags() -> Vec<Tag> {
        vec![Tag::new("Bundle-Format", "binary"), Tag::new("Bundle-Version", "2.0.0")]
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let written: Vec<_> = self.items.iter().map(|item| (item.id(), item.to_bytes())).collect();
        let mut out = wide(written.len()).to_vec();
        for (id, bytes) in &written {
            out.extend_from_slice(&wide(bytes.len()));
            out.extend_from_slice(&id.0);
        }
        written.into_iter().for_each(|(_, bytes)| out.extend_from_slice(&bytes));
        out
    }

    /// Reads a bundle and checks every item in it, as [`DataItem::from_bytes`] does.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut heads = Cursor { rest: bytes };
        let count = heads.wide().map_err(malformed)?;
        let heads_bytes = count.saturating_mul(ENTRY_BYTES).saturating_add(COUNT_BYTES);
        if count > ITEMS_MAX || heads_bytes > bytes.len() {
            return Err(malformed(format!("a bundle of {count} items in {} bytes", bytes.len())));
        }
        let mut bodies = Cursor { rest: &bytes[heads_bytes..] };
        let mut items = Vec::new();
        for _ in 0..count {
            let length = heads.wide().map_err(malformed)?;
            let id = TxId(heads.array().map_err(malformed)?);
            let item = DataItem::from_bytes(bodies.take(length).map_err(malformed)?)?;
            if item.id() != id {
                return Err(malformed(format!("the item called {id} is {}", item.id())));
            }
            items.push(item);
        }
        match bodies.rest.is_empty() {
            true => Ok(Self { items }),
            false => Err(malformed(format!("{} bytes after the last item", bodies.rest.len()))),
        }
    }
}

fn malformed(why: String) -> Error {
    Error::corrupt(format!("not a data item or bundle: {why}"))
}

fn check_tags(tags: &[Tag]) -> std::result::Result<(), String> {
    if tags.len() > TAGS_MAX || write_tags(tags).len() > TAG_BYTES_MAX {
        return Err(format!("more than {TAGS_MAX} tags or {TAG_BYTES_MAX} bytes of them"));
    }
    match tags.iter().any(|tag| tag.name.is_empty() || tag.value.is_empty()) {
        true => Err("a tag without name or value".into()),
        false => Ok(()),
    }
}

/// Avro: an array in one block, each string behind its length; nothing at all for no tags.
fn write_tags(tags: &[Tag]) -> Vec<u8> {
    let mut out = Vec::new();
    if tags.is_empty() {
        return out;
    }
    // Zigzag of a number that is not negative is twice the number.
    crate::protobuf::put_varint(number(tags.len()) << 1, &mut out);
    for text in tags.iter().flat_map(|tag| [&tag.name, &tag.value]) {
        crate::protobuf::put_varint(number(text.len()) << 1, &mut out);
        out.extend_from_slice(text.as_bytes());
    }
    out.push(0);
    out
}

fn read_tags(bytes: &[u8]) -> std::result::Result<Vec<Tag>, String> {
    let mut cursor = Cursor { rest: bytes };
    let mut tags = Vec::new();
    while !cursor.rest.is_empty() {
        let count = cursor.zigzag()?;
        if count == 0 {
            break;
        }
        for _ in 0..count {
            let mut text = || -> std::result::Result<String, String> {
                let length = cursor.zigzag()?;
                String::from_utf8(cursor.take(length)?.to_vec()).map_err(|_| "a tag is not UTF-8".into())
            };
            tags.push(Tag { name: text()?, value: text()? });
            if tags.len() > TAGS_MAX {
                return Err(format!("over {TAGS_MAX} tags"));
            }
        }
    }
    match cursor.rest.is_empty() {
        true => Ok(tags),
        false => Err("bytes after the tags".into()),
    }
}

/// A length as 64 bits.
fn number(length: usize) -> u64 {
    u64::try_from(length).expect("no length is over 2^64")
}

/// A length as 32 bytes, the lowest first.
fn wide(length: usize) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number(length).to_le_bytes());
    bytes
}

/// What is left to read; every length is held against it before anything is copied.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> std::result::Result<&'a [u8], String> {
        if length > self.rest.len() {
            return Err(format!("{length} bytes are named where {} are left", self.rest.len()));
        }
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "a field is cut".into())
    }

    fn count(&mut self) -> std::result::Result<usize, String> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| "a length over the address space".into())
    }

    fn wide(&mut self) -> std::result::Result<usize, String> {
        let bytes: [u8; 32] = self.array()?;
        let (low, high) = bytes.split_at(8);
        let low = u64::from_le_bytes(low.try_into().map_err(|_| "a field is cut")?);
        match high.iter().all(|byte| *byte == 0) {
            true => usize::try_from(low).map_err(|_| "a length over the address space".into()),
            false => Err("a length over 64 bits".into()),
        }
    }

    fn optional(&mut self) -> std::result::Result<Option<[u8; 32]>, String> {
        match self.take(1)? {
            [0] => Ok(None),
            [1] => self.array().map(Some),
            _ => Err("a field neither there nor not there".into()),
        }
    }

    /// A zigzag number that is not negative. Negative counts (blocks with their size) nobody writes.
    fn zigzag(&mut self) -> std::result::Result<usize, String> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return match value & 1 {
                    0 => usize::try_from(value >> 1).map_err(|_| "a length over the address space".into()),
                    _ => Err("a negative length".into()),
                };
            }
        }
        Err("a length over 35 bits".into())
    }
}
