//! The model file: checked, loaded, and asked about its words.

use std::cell::RefCell;
use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, bail};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::token::LlamaToken;

use crate::arriving::Arriving;
use crate::gpu;

/// What computes: our version and the library's. Compiler and instruction set are the build's own matter,
/// which a lease names by its code's CID.
pub(crate) const BUILD: &str = concat!("vivarium-engine/", env!("CARGO_PKG_VERSION"), " llama-cpp-sys-2/0.1.161");

/// First bytes of every GGUF file.
const MAGIC: [u8; 4] = *b"GGUF";

pub(crate) struct Model {
    // Before the backend, because fields are dropped in this order.
    pub(crate) model: LlamaModel,
    pub(crate) backend: LlamaBackend,
    path: PathBuf,
    /// Bytes of the longest token: a text of more than that many for each token of the context cannot fit it.
    pub(crate) token_bytes_max: usize,
}

impl Model {
    pub(crate) fn load(path: &Path) -> anyhow::Result<Model> {
        Model::load_with(path, &LlamaModelParams::default())
    }

    /// The same of a file that is still arriving: words and shapes are read while it does, and no number before it is
    /// whole (llama.cpp takes tensors in an order that is not the file's).
    pub(crate) fn load_arriving<R: Read + 'static>(path: &Path, mut arriving: Arriving<R>) -> anyhow::Result<Model> {
        arriving.wait_for_header(path)?;
        let failed = Rc::new(RefCell::new(None));
        let failure = Rc::clone(&failed);
        // Asked before each tensor.
        let params = LlamaModelParams::default().with_progress_callback(move |_| match arriving.wait_for_all() {
            Ok(()) => true,
            Err(error) => {
                *failure.borrow_mut() = Some(error);
                false
            }
        });
        let loaded = Model::load_with(path, &params);
        match failed.borrow_mut().take() {
            Some(error) => Err(error),
            None => loaded,
        }
    }

    fn load_with(path: &Path, params: &LlamaModelParams) -> anyhow::Result<Model> {
        check(path)?;
        let mut backend = LlamaBackend::init().context("cannot initialise llama.cpp")?;
        // Two hundred lines a start. What matters of them is in our own messages.
        backend.void_logs();
        let model = LlamaModel::load_from_file(&backend, path, params).map_err(|_| {
            let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            anyhow::anyhow!(
                "llama.cpp refuses the model {} ({bytes} bytes): it is cut off, damaged or of an unknown kind; \
                 fetch it again and check its sha256",
                path.display()
            )
        })?;
        let longest = model.vocab().tokens().map(|token| model.vocab().token_to_piece(token, true, None).len()).max();
        Ok(Model { model, backend, path: path.to_owned(), token_bytes_max: longest.unwrap_or(1).max(1) })
    }

    /// Loads adapters of this model. They live as long as the model does.
    pub(crate) fn load_adapters(&mut self, paths: &[PathBuf]) -> anyhow::Result<Vec<LlamaLoraAdapter>> {
        let mut adapters = Vec::with_capacity(paths.len());
        for path in paths {
            check(path)?;
            adapters.push(self.model.lora_adapter_init(path).map_err(|_| {
                anyhow::anyhow!(
                    "llama.cpp refuses the adapter {}: it is cut off, damaged, no LoRA, or of another model than {}",
                    path.display(),
                    self.path.display()
                )
            })?);
        }
        Ok(adapters)
    }

    /// The tokens of a text; control tokens spelled in it become tokens. Slow for long texts: not for the decoding thread.
    pub(crate) fn tokenize(&self, text: &str, add_bos: bool) -> Vec<LlamaToken> {
        self.model.vocab().tokenize(text.as_bytes(), add_bos, true)
    }

    /// The tokens of a text that is nothing but text, with what the model puts around one.
    pub(crate) fn tokenize_plain(&self, text: &str) -> Vec<LlamaToken> {
        self.model.vocab().tokenize(text.as_bytes(), true, false)
    }

    /// How many numbers a vector has, of a model that turns texts into vectors; `None` of one that answers. Its file says
    /// which it is: only the former have a way of pooling.
    pub(crate) fn dimensions(&self) -> anyhow::Result<Option<u32>> {
        let about = |key: &str| self.model.meta_val_str(key).ok();
        let architecture = about("general.architecture").unwrap_or_default();
        match about(&format!("{architecture}.pooling_type")).as_deref() {
            None | Some("0") => Ok(None),
            Some("4") => bail!("the model {} ranks pairs of texts, which is not supported", self.path.display()),
            Some(_) => Ok(Some(u32::try_from(self.model.n_embd_out()).context("the model's vectors")?)),
        }
    }

    /// A token's bytes, which need not be whole characters; a control token has none.
    pub(crate) fn piece(&self, token: LlamaToken) -> Vec<u8> {
        self.model.vocab().token_to_piece(token, false, None)
    }

    /// Every token of the vocabulary.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = LlamaToken> {
        (0..self.model.n_vocab()).map(LlamaToken::new)
    }

    pub(crate) fn n_vocab(&self) -> u32 {
        u32::try_from(self.model.n_vocab()).unwrap_or(0)
    }

    /// How a token is spelled, control tokens included.
    pub(crate) fn spelling(&self, token: LlamaToken) -> Vec<u8> {
        self.model.vocab().token_to_piece(token, true, None)
    }

    /// Whether the model ends its turn with this token.
    pub(crate) fn ends_turn(&self, token: LlamaToken) -> bool {
        self.model.vocab().is_eog(token)
    }

    pub(crate) fn n_ctx_train(&self) -> u32 {
        self.model.n_ctx_train()
    }

    pub(crate) fn name(&self) -> String {
        self.model.meta_val_str("general.name").unwrap_or_else(|_| {
            self.path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned())
        })
    }

    pub(crate) fn chat_template(&self) -> Option<String> {
        self.model.chat_template(None).ok()?.to_string().ok()
    }

    pub(crate) fn bos(&self) -> String {
        self.spelled(self.model.vocab().bos())
    }

    pub(crate) fn eos(&self) -> String {
        self.spelled(self.model.vocab().eos())
    }

    /// How a template spells a token; a model without one gives it a negative number.
    fn spelled(&self, token: LlamaToken) -> String {
        if token.0 < 0 {
            return String::new();
        }
        String::from_utf8_lossy(&self.spelling(token)).into_owned()
    }

    /// The instruction sets that the arithmetic was compiled for, in lower case, such as `avx,avx2,fma`; before them the
    /// devices that compute beside the processor.
    #[expect(unsafe_code, reason = "the safe wrapper does not offer this one call")]
    pub(crate) fn isa(&self) -> String {
        // SAFETY: the returned text is static, ends with a zero, and is only written during this call; it is made once,
        // by the main thread, after the backend was initialised.
        let info = unsafe { CStr::from_ptr(llama_cpp_sys_2::llama_print_system_info()) };
        let sets = isa_of(&info.to_string_lossy());
        gpu::names().into_iter().chain([sets]).collect::<Vec<_>>().join(",")
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    let advice = "give --model a GGUF file";
    let mut file = File::open(path).with_context(|| format!("cannot open the model {}; {advice}", path.display()))?;
    let metadata = file.metadata().with_context(|| format!("cannot read the model {}", path.display()))?;
    if !metadata.is_file() {
        bail!("the model {} is not a file; {advice}", path.display());
    }
    let mut magic = [0; 4];
    if file.read_exact(&mut magic).is_err() || magic != MAGIC {
        bail!("the model {} ({} bytes) is not a GGUF file; {advice}", path.display(), metadata.len());
    }
    Ok(())
}

/// Picks the names with value 1 out of `CPU : AVX = 1 | AVX2 = 1 | … | REPACK = 1 | `.
fn isa_of(info: &str) -> String {
    let on = info.split(['|', ':']).filter_map(|field| {
        let (name, value) = field.split_once('=')?;
        (value.trim() == "1").then(|| name.trim().to_ascii_lowercase())
    });
    // How the arithmetic is arranged, not what the processor can do.
    on.filter(|name| !matches!(name.as_str(), "llamafile" | "repack" | "openmp")).collect::<Vec<_>>().join(",")
}

/// llama.cpp's start is once in a process at a time, so tests that load a model take turns.
#[cfg(test)]
pub(crate) fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    // A test that failed leaves nothing behind.
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_sets_are_those_that_are_on() {
        let info = "CPU : SSE3 = 1 | AVX2 = 1 | AMX_INT8 = 0 | RISCV_VECT = 0 | LLAMAFILE = 1 | REPACK = 1 | ";
        assert_eq!(isa_of(info), "sse3,avx2");
    }
}
