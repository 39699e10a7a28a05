//! `cargo xtask bench`: the figures of docs/benchmarks.md, measured on worlds of real processes, as by `bench move`; `bench pay`,
//! `bench quality`, `bench journal` and `bench sim` without any, `bench infer` and `bench store` with one for their last rows.
//! All are part of the program itself, so that what `up` has built is not built again with other features.

use crate::{setup, shell};
use anyhow::Result;

pub fn run(flags: &[String]) -> Result<()> {
    match flags.first().map(String::as_str) {
        Some("infer") => setup::for_bench_infer()?,
        Some("pay") => {
            setup::for_bench_pay()?;
            if let Err(error) = peer("x402-axum") {
                println!("{error:#}; its row will say that it was not measured");
            }
        }
        Some("store") => setup::for_bench_store()?,
        Some("quality") => setup::for_bench_quality()?,
        Some("journal" | "sim") => setup::for_bench_alone()?,
        _ => setup::for_up()?,
    }
    setup::build()?;
    if flags.first().is_some_and(|bench| bench == "infer") {
        let mut build = shell::cargo();
        build.args(["build", "--quiet", "--workspace", "--example", "bare_loop"]);
        shell::quietly("the bare loop", &mut build)?;
    }
    let mut bench = std::process::Command::new(shell::target_dir().join("debug/vivarium"));
    shell::loudly("bench", bench.current_dir(shell::root()).arg("bench").args(flags))
}

/// Builds another's server to compare with. Each is a project of its own, no part of the workspace: nobody but this command
/// compiles it.
fn peer(name: &str) -> Result<()> {
    let manifest = shell::root().join("tests/peers").join(name).join("Cargo.toml");
    let mut build = shell::cargo();
    build.args(["build", "--locked", "--quiet", "--manifest-path"]).arg(manifest);
    build.arg("--target-dir").arg(shell::target_dir().join("peers"));
    shell::quietly(&format!("the peer {name}"), &mut build)
}
