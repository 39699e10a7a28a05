//! All automation of the project: `cargo xtask <command>`.
//!
//! Nothing here is needed to *run* an agent; it is what a developer's machine does around the program:
//! fetch what is missing, build, start a world, run every check.

mod bench;
mod contracts;
mod deep;
mod engines;
mod fuzz;
mod gguf;
mod lives;
mod mutants;
mod numbers;
mod setup;
mod shell;
mod test;
mod up;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask <command>

  up [flags]      install what is missing, build, and start a world: `vivarium up [flags]`
                  (cargo xtask up --help lists the flags)
  test            everything: formatting, clippy, licences, contracts, all tests, one whole life with real processes
  test --deep [STEP…]   the counts that take hours (invariants, fuzz, mutants, fuzzers, payments, …): goes on
                  where it was broken off, and writes its report into docs/benchmarks.md. Commit first
  fuzz [TARGET…] [--seconds N | --runs N]   libFuzzer on the parsers of what strangers send, 20 s each unless told
                  otherwise (fuzz/README.md)
  bench           start worlds and print the figures of docs/benchmarks.md
  bench pay       what a payment costs, without worlds, beside the official Express server (--write: into the docs;
                  `target/debug/vivarium bench pay --help` names the counts)
  bench infer     the engine alone, beside llama.cpp's own server (--write: into the docs)
  bench store     what content addressing costs over plain reading and hashing (--write: into the docs)
  bench move      what customers feel while the agent moves and when a host is lost (--write: into the docs)
  bench journal   what durability costs, beside a plain file on the same disk (--dir DIR; --write: into the docs)
  bench sim       what simulated lives cost, one at a time and by thousands (--write: into the docs)
  bench quality   what classify, extract and rerank get right on small sets of our own (--write: into the docs)
  engines [DIR]   one engine program for each class of processor, beside the program in DIR (default: target/release);
                  `cargo build --release` makes the rest of a release. On x86-64 only
  contracts       build the contracts and write their ABI and bytecode (contracts/abi)
  setup           only install what is missing
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    let outcome = match command {
        "up" => up::run(rest),
        "test" => test::run(rest),
        "fuzz" => fuzz::run(rest),
        "bench" => bench::run(rest),
        "engines" => engines::run(rest),
        "contracts" => no_arguments(command, rest).and_then(|()| build_contracts()),
        "setup" => no_arguments(command, rest).and_then(|()| setup::everything()),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("no command {other:?}; `cargo xtask help` lists them")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build_contracts() -> anyhow::Result<()> {
    setup::npm("contracts")?;
    contracts::build(shell::root())
}

fn no_arguments(command: &str, rest: &[String]) -> anyhow::Result<()> {
    match rest.first() {
        None => Ok(()),
        Some(extra) => Err(anyhow::anyhow!("`cargo xtask {command}` takes no arguments, got {extra:?}")),
    }
}
