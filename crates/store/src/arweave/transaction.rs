use super::key::{KEY_BYTES, id_of, verify};
use super::{Key, TxId, decode, deephash, encode, number};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// The format's own limit on names and values of tags together.
const TAG_BYTES_MAX: usize = 2048;
const ANCHOR_BYTES_MAX: usize = 64;

/// A label that gateways index by. Not a secret, and believed by nobody who checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    pub name: String,
    pub value: String,
}

impl Tag {
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// What a transaction will say, before it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The hash of a recent block: after 50 more the transaction can never be mined.
    pub anchor: Vec<u8>,
    /// Winston (1e-12 AR) for storing: the price that the network names, or more.
    pub reward_winston: u128,
    pub tags: Vec<Tag>,
    pub data_root: [u8; 32],
    pub data_bytes: u64,
}

/// A signed version 2 transaction, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub draft: Draft,
    /// The public key that pays, 512 bytes.
    pub owner: Vec<u8>,
    /// Where money goes beside the reward; empty in ours.
    target: Vec<u8>,
    quantity_winston: u128,
    signature: Vec<u8>,
}

impl Transaction {
    /// Signs a transaction that carries data and moves no money but the reward.
    ///
    /// `Usage` if tags or anchor are longer than the format takes.
    pub fn sign(key: &Key, draft: Draft) -> Result<Self> {
        let tag_bytes: usize = draft.tags.iter().map(|tag| tag.name.len() + tag.value.len()).sum();
        if tag_bytes > TAG_BYTES_MAX || draft.tags.iter().any(|tag| tag.name.is_empty() || tag.value.is_empty()) {
            return Err(Error::usage(format!("tags of {tag_bytes} bytes, or empty ones; {TAG_BYTES_MAX} are allowed")));
        }
        if draft.anchor.is_empty() || draft.anchor.len() > ANCHOR_BYTES_MAX || draft.data_bytes == 0 {
            return Err(Error::usage("a transaction needs an anchor and data"));
        }
        let owner = key.owner().to_vec();
        let mut made = Self { draft, owner, target: Vec::new(), quantity_winston: 0, signature: Vec::new() };
        made.signature = key.sign(&made.signed_bytes())?;
        Ok(made)
    }

    pub fn id(&self) -> TxId {
        id_of(&self.signature)
    }

    /// Checks that it is the transaction `id` and that its owner signed exactly this. `Corrupt` otherwise.
    pub fn verify(&self, id: &TxId) -> Result<()> {
        if self.id() != *id {
            return Err(Error::corrupt(format!("another transaction than {id}")));
        }
        if !verify(&self.owner, &self.signed_bytes(), &self.signature) {
            return Err(Error::corrupt(format!("transaction {id} was altered: its signature is not its owner's")));
        }
        Ok(())
    }

    /// The bytes that are signed.
    fn signed_bytes(&self) -> [u8; 48] {
        let Draft { anchor, reward_winston, tags, data_root, data_bytes } = &self.draft;
        let tags = tags
            .iter()
            .map(|tag| deephash::list(&[deephash::blob(tag.name.as_bytes()), deephash::blob(tag.value.as_bytes())]));
        let tags: Vec<_> = tags.collect();
        deephash::list(&[
            deephash::blob(b"2"),
            deephash::blob(&self.owner),
            deephash::blob(&self.target),
            deephash::blob(self.quantity_winston.to_string().as_bytes()),
            deephash::blob(reward_winston.to_string().as_bytes()),
            deephash::blob(anchor),
            deephash::list(&tags),
            deephash::blob(data_bytes.to_string().as_bytes()),
            deephash::blob(data_root),
        ])
    }

    /// As nodes take it and give it out.
    pub fn to_json(&self) -> Value {
        let tags = self.draft.tags.iter();
        let tags: Vec<Value> =
            tags.map(|t| json!({ "name": encode(t.name.as_bytes()), "value": encode(t.value.as_bytes()) })).collect();
        json!({
            "format": 2,
            "id": self.id().to_string(),
            "last_tx": encode(&self.draft.anchor),
            "owner": encode(&self.owner),
            "tags": tags,
            "target": encode(&self.target),
            "quantity": self.quantity_winston.to_string(),
            "data": "",
            "data_size": self.draft.data_bytes.to_string(),
            "data_root": encode(&self.draft.data_root),
            "reward": self.draft.reward_winston.to_string(),
            "signature": encode(&self.signature),
        })
    }

    /// Reads what a gateway sent; whether it is true says [`Transaction::verify`].
    ///
    /// `Corrupt` for anything that could not be signed as it stands; `Usage` for the old format 1, whose data has
    /// no proofs.
    pub fn from_json(value: &Value) -> Result<Self> {
        if value["format"].as_u64() == Some(1) {
            return Err(Error::usage("a transaction of format 1 proves nothing about its data; only format 2 is read"));
        }
        let wrong = |name: &str| Error::corrupt(format!("not a transaction: `{name}` is missing or malformed"));
        let text = |name: &str| value[name].as_str().ok_or_else(|| wrong(name));
        let bytes = |name: &str| text(name).and_then(|text| decode(text).ok_or_else(|| wrong(name)));
        let amount = |name: &str| text(name).and_then(|text| number::<u128>(text).ok_or_else(|| wrong(name)));
        let (owner, signature, anchor) = (bytes("owner")?, bytes("signature")?, bytes("last_tx")?);
        if owner.len() != KEY_BYTES || signature.len() != KEY_BYTES || anchor.len() > ANCHOR_BYTES_MAX {
            return Err(wrong("owner, signature or last_tx"));
        }
        let target = bytes("target")?;
        if !target.is_empty() && target.len() != 32 {
            return Err(wrong("target"));
        }
        let tags = value["tags"].as_array().ok_or_else(|| wrong("tags"))?;
        let draft = Draft {
            anchor,
            reward_winston: amount("reward")?,
            tags: tags.iter().map(|tag| read_tag(tag).ok_or_else(|| wrong("tags"))).collect::<Result<_>>()?,
            data_root: bytes("data_root")?.try_into().map_err(|_| wrong("data_root"))?,
            data_bytes: text("data_size").and_then(|text| number(text).ok_or_else(|| wrong("data_size")))?,
        };
        Ok(Self { draft, owner, target, quantity_winston: amount("quantity")?, signature })
    }
}

fn read_tag(tag: &Value) -> Option<Tag> {
    let text = |name: &str| String::from_utf8(decode(tag[name].as_str()?)?).ok();
    Some(Tag { name: text("name")?, value: text("value")? })
}
