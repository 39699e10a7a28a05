//! The program with all commands.

mod cmd;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// An AI service that pays its own bills, and everything around it.
///
/// `vivarium up` starts a whole world on this machine: a development chain, a content store, stewards, providers,
/// and one agent that sells answers and pays its rent. The other commands talk to that world, or run one part of it.
#[derive(Parser)]
#[command(name = "vivarium", version, arg_required_else_help = true)]
#[command(after_help = "Commands find their world by --data-dir, else $VIVARIUM_WORLD, else ./.vivarium/world.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(cmd::up::Flags),
    Birth(cmd::birth::Flags),
    Status(cmd::status::Flags),
    Watch(cmd::watch::Flags),
    Ask(cmd::ask::Flags),
    Conversations(cmd::conversations::Flags),
    Proxy(cmd::proxy::Flags),
    Log(cmd::log::Flags),
    Audit(cmd::audit::Flags),
    Fund(cmd::fund::Flags),
    Receipt(cmd::receipt::Flags),
    Verify(cmd::verify::Flags),
    Steward(cmd::steward::Flags),
    Facilitator(cmd::facilitator::Flags),
    Provider(cmd::provider::Flags),
    Store(cmd::store::Flags),
    Sim(cmd::sim::Flags),
    /// Runs the inference engine (llama.cpp) that lies beside this program.
    #[command(disable_help_flag = true)]
    Engine(cmd::engine::Flags),
    /// One agent, started by its provider inside the sandbox.
    #[command(hide = true)]
    Node(cmd::node::Flags),
    #[command(hide = true)]
    Launch(cmd::launch::Flags),
    #[command(hide = true)]
    Bench(cmd::bench::Flags),
}

fn main() -> ExitCode {
    abort_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => return refuse(&refusal),
    };
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Up(flags) => cmd::up::run(flags).map(done),
        Command::Birth(flags) => cmd::birth::run(flags).map(done),
        Command::Status(flags) => cmd::status::run(flags).map(done),
        Command::Watch(flags) => cmd::watch::run(flags).map(done),
        Command::Ask(flags) => cmd::ask::run(flags).map(done),
        Command::Conversations(flags) => cmd::conversations::run(flags).map(done),
        Command::Proxy(flags) => cmd::proxy::run(flags).map(done),
        Command::Log(flags) => cmd::log::run(flags).map(done),
        Command::Audit(flags) => cmd::audit::run(flags),
        Command::Fund(flags) => cmd::fund::run(flags).map(done),
        Command::Receipt(flags) => cmd::receipt::run(flags).map(done),
        Command::Verify(flags) => cmd::verify::run(flags),
        Command::Facilitator(flags) => cmd::facilitator::run(flags).map(done),
        Command::Steward(flags) => cmd::steward::run(flags).map(done),
        Command::Provider(flags) => cmd::provider::run(flags).map(done),
        Command::Store(flags) => Ok(cmd::store::run(flags)),
        Command::Sim(flags) => cmd::sim::run(flags),
        Command::Engine(flags) => cmd::engine::run(flags).map(done),
        Command::Node(flags) => cmd::node::run(flags),
        Command::Launch(flags) => cmd::launch::run(flags).map(done),
        Command::Bench(flags) => cmd::bench::run(flags).map(done),
    }
}

/// A panic in any task ends the process: half a program must not go on signing.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // `vivarium status | head`: whoever read our output has seen enough.
        let message = info.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            std::process::exit(141);
        }
        print(info);
        std::process::abort();
    }));
}

/// Help and version go to standard output; a refusal is one line with what to do.
fn refuse(refusal: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    match refusal.kind() {
        DisplayHelp | DisplayVersion => {
            print!("{refusal}");
            return ExitCode::SUCCESS;
        }
        DisplayHelpOnMissingArgumentOrSubcommand => eprint!("{refusal}"),
        _ => {
            let text = refusal.to_string();
            let end = ["\nUsage:", "\nFor more information"].iter().filter_map(|mark| text.find(mark)).min();
            let what = text[..end.unwrap_or(text.len())].trim().trim_start_matches("error: ");
            let command = std::env::args().nth(1).filter(|word| Cli::command().find_subcommand(word).is_some());
            let command = command.map_or_else(|| "vivarium".to_owned(), |word| format!("vivarium {word}"));
            eprintln!("vivarium: {}; see `{command} --help`", one_line(what));
        }
    }
    ExitCode::from(2)
}

/// An error as people read it: one line with its causes.
fn say(error: &anyhow::Error) {
    eprintln!("vivarium: {}", one_line(&format!("{error:#}")));
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
