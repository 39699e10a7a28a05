//! Engine programs beside each other, one for each class of processor, of which the best that this processor runs is taken.
//!
//! Between a program for any x86-64 and one for the newest lie factors of two to four, and a program for the newest dies on
//! an older one. `cargo xtask engines` makes them; where there are none, the one program `vivarium-engine` is for the machine
//! that built it.

use crate::run::sha256;
use std::path::{Path, PathBuf};

/// Of every engine; a class follows after a dot.
pub const PROGRAM: &str = "vivarium-engine";

/// Classes of processors, the best first: name (x86-64 levels as in the System V psABI) and whether this processor is one.
/// AVX-512 without AMX is none: it brought nothing over AVX2.
pub const CLASSES: [&str; 3] = ["x86-64-v4-amx", "x86-64-v3", "x86-64"];

/// The best engine in a folder for this processor; `vivarium-engine` when there is none for a class.
pub fn best_in(dir: &Path) -> PathBuf {
    choose(dir, runs_here)
}

/// All engines in a folder, the one without a class first.
pub fn all_in(dir: &Path) -> Vec<PathBuf> {
    let named = CLASSES.iter().map(|class| dir.join(format!("{PROGRAM}.{class}")));
    std::iter::once(dir.join(PROGRAM)).chain(named).filter(|path| path.is_file()).collect()
}

/// The engine in a folder with this sha2-256 (hexadecimal), which made an answer that is to be made again; the best for this
/// processor where there is none, or where it does not run here.
pub fn made_by(dir: &Path, digest: &str) -> PathBuf {
    let is_it = |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| sha256(&bytes) == digest);
    let runs = |path: &PathBuf| {
        let class = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PROGRAM));
        class.is_some_and(|class| class.is_empty() || class.strip_prefix('.').is_some_and(runs_here))
    };
    all_in(dir).into_iter().filter(runs).find(is_it).unwrap_or_else(|| best_in(dir))
}

fn choose(dir: &Path, runs: impl Fn(&str) -> bool) -> PathBuf {
    let mut named = CLASSES.iter().filter(|class| runs(class)).map(|class| dir.join(format!("{PROGRAM}.{class}")));
    named.find(|path| path.is_file()).unwrap_or_else(|| dir.join(PROGRAM))
}

#[cfg(target_arch = "x86_64")]
fn runs_here(class: &str) -> bool {
    use std::arch::is_x86_feature_detected as has;
    let v3 = || has!("avx2") && has!("fma") && has!("f16c") && has!("bmi2") && has!("sse4.2");
    let v4 = || v3() && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match class {
        "x86-64" => true,
        "x86-64-v3" => v3(),
        "x86-64-v4-amx" => v4() && has!("avx512vnni") && has!("avx512vbmi") && has_amx(),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn runs_here(_class: &str) -> bool {
    false
}

/// Tiles of 8-bit numbers, by Linux's own word, which has asked the processor and knows whether it saves them.
#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    let said = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = said.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    ["amx_tile", "amx_int8"].iter().all(|flag| flags.split_whitespace().any(|word| word == *flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_runs_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| std::fs::write(dir.path().join(name), name).unwrap();
        let chosen = |runs: &[&str]| {
            let path = choose(dir.path(), |class| runs.contains(&class));
            path.file_name().unwrap().to_str().unwrap().to_owned()
        };
        let every = CLASSES;
        assert_eq!(chosen(&every), "vivarium-engine", "the only name that is left is said in the error");
        put("vivarium-engine");
        assert_eq!(chosen(&every), "vivarium-engine");
        put("vivarium-engine.x86-64");
        put("vivarium-engine.x86-64-v3");
        assert_eq!(chosen(&every), "vivarium-engine.x86-64-v3");
        assert_eq!(chosen(&["x86-64"]), "vivarium-engine.x86-64");
        assert_eq!(chosen(&[]), "vivarium-engine");
        put("vivarium-engine.x86-64-v4-amx");
        assert_eq!(chosen(&every), "vivarium-engine.x86-64-v4-amx");
        assert_eq!(chosen(&every[1..]), "vivarium-engine.x86-64-v3");
        let all: Vec<_> = all_in(dir.path()).into_iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0], "vivarium-engine");
    }

    #[test]
    fn an_answer_is_made_again_by_the_program_that_made_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vivarium-engine", "vivarium-engine.x86-64", "vivarium-engine.x86-64-v9"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let of = |name: &str| made_by(dir.path(), &sha256(name.as_bytes()));
        assert_eq!(of("vivarium-engine"), dir.path().join("vivarium-engine"));
        if cfg!(target_arch = "x86_64") {
            assert_eq!(of("vivarium-engine.x86-64"), dir.path().join("vivarium-engine.x86-64"));
        }
        assert_eq!(of("another"), best_in(dir.path()));
    }

    #[test]
    fn every_class_is_known_to_this_build() {
        if cfg!(target_arch = "x86_64") {
            assert!(runs_here("x86-64"));
        }
        assert!(!runs_here("x86-64-v9"));
    }
}
