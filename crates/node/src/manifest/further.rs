//! Models beside the first one, loaded when a request names them.

use super::Manifest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Far more than fit a host that takes turns with them. A choice.
const FURTHER_MAX: usize = 16;
/// A token that costs more than a thousand of the first model's is a slip of the pen.
const PRICE_PCT_MAX: u32 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It answers in text.
    Chat,
    /// It turns texts into vectors.
    Embedding,
}

/// As [`super::Model`], and what else is to be known before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Further {
    /// The name customers put into `model`.
    pub name: String,
    pub kind: Kind,
    pub cid: String,
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
    /// As [`super::Model`] has it.
    pub context: u32,
    /// What its tokens cost, percent of what those of `model`, or of `embedding`, do. None: as its bytes are to that
    /// one's, since a host reads all weights for every token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_pct: Option<u32>,
}

impl Further {
    /// Percent of the first model's, or the embedding model's, price of a token; rounded up, at least 1.
    pub fn price_pct_up(&self, manifest: &Manifest) -> u32 {
        let base = match self.kind {
            Kind::Chat => Some(manifest.model.bytes),
            Kind::Embedding => manifest.embedding.as_ref().map(|embedding| embedding.bytes),
        };
        let by_bytes = |base: u64| u128::from(self.bytes).saturating_mul(100).div_ceil(u128::from(base.max(1)));
        let by_bytes = || base.map_or(100, |base| u32::try_from(by_bytes(base)).unwrap_or(u32::MAX));
        self.price_pct.unwrap_or_else(by_bytes).max(1)
    }
}

impl Manifest {
    /// Place of the further model with this name that does this.
    pub fn further(&self, name: &str, kind: Kind) -> Option<usize> {
        self.models.iter().position(|model| model.name == name && model.kind == kind)
    }

    /// The names of the models that make vectors, the one that is always loaded first.
    pub fn vector_models(&self) -> impl Iterator<Item = &str> {
        let further = self.models.iter().filter(|model| model.kind == Kind::Embedding).map(|model| model.name.as_str());
        self.embedding.iter().map(|model| model.name.as_str()).chain(further)
    }

    /// What the book keeps as the route of a request that the further model at this place answers: it says on every
    /// host, and after every crash, which model the receipt is to name.
    pub fn booked(&self, route: &str, further: Option<usize>) -> String {
        match further.and_then(|at| self.models.get(at)) {
            Some(model) => format!("{route}{BY}{}", model.cid),
            None => route.to_owned(),
        }
    }

    pub(super) fn check_further(&self) -> Result<(), String> {
        if self.models.len() > FURTHER_MAX {
            return Err(format!("`models` has {} entries; the limit is {FURTHER_MAX}", self.models.len()));
        }
        if self.models.is_empty() && self.models_bytes_max.is_some() {
            return Err("`models_bytes_max` is for `models`, and there is none".to_owned());
        }
        let mut names: BTreeSet<String> = self.own_models().map(|(name, _)| name).collect();
        names.extend(self.embedding.iter().map(|embedding| embedding.name.clone()));
        let mut files: BTreeSet<&str> = self.adapters.iter().map(|adapter| adapter.file.as_str()).collect();
        files.extend([self.model.file.as_str()]);
        files.extend(self.embedding.iter().map(|embedding| embedding.file.as_str()));
        for (index, model) in self.models.iter().enumerate() {
            let field = |name: &str| format!("`models[{index}].{name}`");
            // Behind a colon an adapter is named.
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
            if model.name.is_empty() || model.name.len() > 128 || !model.name.bytes().all(is_plain) {
                return Err(format!(
                    "{} must have 1 to 128 letters, digits, dots, dashes, underscores or slashes",
                    field("name")
                ));
            }
            if !names.insert(model.name.clone()) || !files.insert(model.file.as_str()) {
                return Err(format!("{} and {} must be no other's", field("name"), field("file")));
            }
            if model.sha256.len() != 64 || !model.sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("{} must have 64 hex digits", field("sha256")));
            }
            // Receipts name it by this.
            store::cid::parse(&model.cid).map_err(|e| format!("{}: {e}", field("cid")))?;
            if model.context == 0 {
                return Err(format!("{} = 0: nothing could be asked", field("context")));
            }
            if model.price_pct.is_some_and(|pct| pct == 0 || pct > PRICE_PCT_MAX) {
                return Err(format!("{} must lie between 1 and {PRICE_PCT_MAX}", field("price_pct")));
            }
        }
        Ok(())
    }
}

const BY: &str = " by ";

/// The route of the API and the CID of the further model, of what [`Manifest::booked`] made.
pub fn booked_by(route: &str) -> (&str, Option<&str>) {
    match route.split_once(BY) {
        Some((route, cid)) => (route, Some(cid)),
        None => (route, None),
    }
}
