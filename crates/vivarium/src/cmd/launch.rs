//! `vivarium launch`: becomes another program that the kernel ends together with its parent.
//!
//! A parent that is killed cannot stop its children; the kernel can, if the child asks for it before it becomes
//! the program. Asking from the parent's side would need code between fork and exec.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;

#[derive(clap::Args)]
pub struct Flags {
    /// The process whose end ends this one.
    #[arg(long)]
    parent: i32,
    /// The signal that is sent then.
    #[arg(long)]
    signal: i32,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub fn run(flags: Flags) -> Result<()> {
    let signal = Signal::from_named_raw(flags.signal).with_context(|| format!("{} is no signal", flags.signal))?;
    set_parent_process_death_signal(Some(signal)).context("cannot ask to end with the parent")?;
    // The parent may have died before we asked: then the signal never comes.
    if getppid() != Pid::from_raw(flags.parent) {
        bail!("the parent {} is gone already", flags.parent);
    }
    let (program, arguments) = flags.command.split_first().context("no program to launch")?;
    Err(std::process::Command::new(program).args(arguments).exec())
        .with_context(|| format!("cannot start {}", program.to_string_lossy()))
}
