//! `cargo xtask engines`: the engine once for each class of processor, beside the program. A node takes the best that its
//! machine runs (`infer/src/engines.rs`); their folder is what an agent's code CID names.

use crate::{setup, shell};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// As in `infer/src/engines.rs`; a test holds them together.
const CLASSES: [&str; 3] = ["x86-64-v4-amx", "x86-64-v3", "x86-64"];

pub fn run(arguments: &[String]) -> Result<()> {
    let dir = match arguments {
        [] => shell::target_dir().join("release"),
        [dir] if !dir.starts_with('-') => PathBuf::from(dir),
        other => bail!("`cargo xtask engines [DIR]`, got {other:?}"),
    };
    ensure!(
        cfg!(target_arch = "x86_64"),
        "classes are of x86-64 only; on this machine `cargo build --release` makes the one engine that there is"
    );
    setup::for_bench_alone()?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // A folder of its own: the rest of the workspace is not built again, and of the engine only llama.cpp for each class.
    let target = shell::target_dir().join("engines");
    let mut made_before = Vec::new();
    for class in CLASSES {
        forget_llama(&target.join("release/build"))?;
        let mut build = shell::cargo();
        build.args([
            "build",
            "--release",
            "--locked",
            "--package",
            "engine",
            "--bin",
            "vivarium-engine",
            "--target-dir",
        ]);
        build.arg(&target).env("GGML_VIVARIUM_CPU", class);
        shell::quietly(&format!("the engine for {class} (some minutes)"), &mut build)?;
        let made = dir.join(format!("vivarium-engine.{class}"));
        // Whoever runs the old one goes on with it.
        fs::remove_file(&made).ok();
        fs::copy(target.join("release/vivarium-engine"), &made)
            .with_context(|| format!("cannot write {}", made.display()))?;
        let bytes = fs::read(&made).with_context(|| format!("cannot read {}", made.display()))?;
        ensure!(
            !made_before.contains(&bytes),
            "{} is the program of another class: llama.cpp was not built again",
            class
        );
        made_before.push(bytes);
        println!("{}", made.display());
    }
    Ok(())
}

/// The build script of llama.cpp configures a folder once: whatever changes later, it builds the same again there.
fn forget_llama(builds: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(builds) else { return Ok(()) };
    for entry in entries {
        let path = entry.context("a build script's folder")?.path();
        let is_llama = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("llama-cpp-sys-2-"));
        // With its `out`, and not the compiled script itself.
        if is_llama && path.join("out").is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_that_is_built_is_one_that_nodes_look_for() {
        let source = fs::read_to_string(shell::root().join("crates/infer/src/engines.rs")).unwrap();
        let listed = CLASSES.map(|class| format!("{class:?}")).join(", ");
        assert!(source.contains(&format!("CLASSES: [&str; 3] = [{listed}];")), "{listed}");
        let recipe = fs::read_to_string(shell::root().join("crates/engine/native/llama.cmake")).unwrap();
        assert!(recipe.contains("x86-64-v4-amx") && recipe.contains("^x86-64(-v3)?$"));
    }
}
