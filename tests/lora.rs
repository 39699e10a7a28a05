//! Adapters for tests of several crates, which take this file in by its path.

use std::path::{Path, PathBuf};

/// Of SmolLM2-135M.
const LAYERS: usize = 30;
pub const WIDTH: u64 = 576;
const RANK: u64 = 4;
/// GGUF's numbers for types of values, and ggml's for a tensor of floats.
const F32: u32 = 6;
const STRING: u32 = 8;
const TENSOR_F32: u32 = 0;
const ALIGNMENT: usize = 32;

/// A LoRA adapter of SmolLM2-135M with weights of chance: nobody trained it, so it makes nonsense, and always the same.
/// Format: `docs/gguf.md` of ggml; tensors and keys as llama.cpp's `convert_lora_to_gguf.py` names them.
pub fn adapter(dir: &Path, seed: u64, width: u64) -> PathBuf {
    let text = |to: &mut Vec<u8>, text: &str| {
        to.extend(u64::try_from(text.len()).unwrap().to_le_bytes());
        to.extend(text.as_bytes());
    };
    let mut about = Vec::new();
    for (key, value) in [("general.type", "adapter"), ("general.architecture", "llama"), ("adapter.type", "lora")] {
        text(&mut about, key);
        about.extend(STRING.to_le_bytes());
        text(&mut about, value);
    }
    text(&mut about, "adapter.lora.alpha");
    about.extend(F32.to_le_bytes());
    about.extend(4f32.to_le_bytes());

    let (mut infos, mut data) = (Vec::new(), Vec::new());
    let mut chance = seed;
    for layer in 0..LAYERS {
        for (end, rows) in [("a", [width, RANK]), ("b", [RANK, width])] {
            text(&mut infos, &format!("blk.{layer}.attn_output.weight.lora_{end}"));
            infos.extend(2u32.to_le_bytes());
            rows.iter().for_each(|size| infos.extend(size.to_le_bytes()));
            infos.extend(TENSOR_F32.to_le_bytes());
            infos.extend(u64::try_from(data.len()).unwrap().to_le_bytes());
            for _ in 0..width * RANK {
                // Knuth's generator; the upper bits are good enough for weights.
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let of_one = f32::from(u16::try_from(chance >> 48).unwrap()) / f32::from(u16::MAX);
                data.extend(((of_one - 0.5) * 0.6).to_le_bytes());
            }
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
    }
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(u64::try_from(2 * LAYERS).unwrap().to_le_bytes());
    file.extend(4u64.to_le_bytes());
    file.extend(about);
    file.extend(infos);
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend(data);
    let path = dir.join(format!("adapter-{seed}-{width}.gguf"));
    std::fs::write(&path, file).unwrap();
    path
}
