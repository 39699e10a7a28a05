//! The command line. By hand: a few flags are not worth a dependency in this process.

use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
vivarium-engine: serves one model on a Unix socket

usage: vivarium-engine --model FILE --socket PATH [options]

  --model FILE       the model, a GGUF file; one that pools makes vectors, another answers
  --socket PATH      where to listen; frames as in crates/infer/src/wire.rs
  --adapter FILE     a LoRA adapter of the model, a GGUF file; may be repeated, and requests choose one by its place
  --threads N        threads of arithmetic whose bits answers have (default 1)
  --threads-max N    as many threads as are fastest at the time, up to N, where they give the same bits (default: --threads)
  --ctx N            tokens of context for each request (default 2048)
  --slots N          requests that decode side by side (default 8); texts become vectors one by one
  --exit-with-stdin  end when standard input closes
  --arriving         the model's file is still arriving: standard input says, in numbers of 8 bytes (little-endian), how
                     many of its bytes may be read, from the start; the last number is its length
  --help             this text";

/// Upper bounds against mistyped numbers; what really fits is a matter of memory.
const THREADS_MAX: u32 = 512;
const CTX_MAX: u32 = 1 << 20;
/// Bound of llama.cpp is 256; more than these make each other slow.
const SLOTS_MAX: u32 = 64;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Run(Args),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) model: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) adapters: Vec<PathBuf>,
    /// Whose bits answers have.
    pub(crate) threads: u32,
    /// Not fewer than `threads`.
    pub(crate) threads_max: u32,
    /// Tokens of context of each request.
    pub(crate) ctx: u32,
    pub(crate) slots: u32,
    pub(crate) exit_with_stdin: bool,
    pub(crate) arriving: bool,
}

pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut args = args.into_iter();
    let (mut model, mut socket, mut adapters) = (None, None, Vec::new());
    let (mut threads, mut threads_max, mut ctx, mut slots) = (1, 1, 2_048, 8);
    let (mut exit_with_stdin, mut arriving) = (false, false);
    while let Some(flag) = args.next() {
        let Some(flag) = flag.to_str().map(str::to_owned) else {
            return Err(format!("unknown argument {}", flag.display()));
        };
        let mut value = || args.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--model" => model = Some(PathBuf::from(value()?)),
            "--socket" => socket = Some(PathBuf::from(value()?)),
            "--adapter" => adapters.push(PathBuf::from(value()?)),
            "--threads" => threads = number(&flag, &value()?, THREADS_MAX)?,
            "--threads-max" => threads_max = number(&flag, &value()?, THREADS_MAX)?,
            "--ctx" => ctx = number(&flag, &value()?, CTX_MAX)?,
            "--slots" => slots = number(&flag, &value()?, SLOTS_MAX)?,
            "--exit-with-stdin" => exit_with_stdin = true,
            "--arriving" => arriving = true,
            _ => return Err(format!("unknown argument {flag}")),
        }
    }
    Ok(Command::Run(Args {
        model: model.ok_or("--model is missing")?,
        socket: socket.ok_or("--socket is missing")?,
        adapters,
        threads,
        threads_max: threads_max.max(threads),
        ctx,
        slots,
        exit_with_stdin,
        arriving,
    }))
}

fn number(flag: &str, value: &OsString, max: u32) -> Result<u32, String> {
    let text = value.to_str().unwrap_or_default();
    match text.parse() {
        Ok(number) if (1..=max).contains(&number) => Ok(number),
        _ => Err(format!("{flag} takes a number from 1 to {max}, not {}", value.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        parse(line.split_whitespace().map(OsString::from)).unwrap_err()
    }

    #[test]
    fn wrong_arguments_are_named() {
        assert_eq!(refused("--socket s"), "--model is missing");
        assert_eq!(refused("--model m --socket"), "--socket needs a value");
        assert_eq!(refused("--model m --socket s --threads 0"), "--threads takes a number from 1 to 512, not 0");
        assert_eq!(refused("--model m --socket s --ctx 1k"), "--ctx takes a number from 1 to 1048576, not 1k");
        assert_eq!(refused("--model m --socket s --speed 9"), "unknown argument --speed");
    }

    #[test]
    fn adapters_keep_their_order() {
        let line = "--model m --adapter b --socket s --adapter a";
        let Ok(Command::Run(args)) = parse(line.split_whitespace().map(OsString::from)) else { panic!("{line}") };
        assert_eq!(args.adapters, ["b", "a"].map(PathBuf::from));
    }

    #[test]
    fn the_rest_has_defaults() {
        let Ok(Command::Run(args)) = parse(["--model", "m", "--socket", "s"].map(OsString::from)) else {
            panic!("two flags are enough");
        };
        assert_eq!((args.threads, args.ctx, args.slots, args.exit_with_stdin), (1, 2_048, 8, false));
        assert_eq!(args.threads_max, 1);
    }

    #[test]
    fn at_most_is_never_fewer_than_asked_for() {
        let line = "--model m --socket s --threads 4 --threads-max 2";
        let Ok(Command::Run(args)) = parse(line.split_whitespace().map(OsString::from)) else { panic!("{line}") };
        assert_eq!((args.threads, args.threads_max), (4, 4));
    }
}
