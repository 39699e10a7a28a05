//! `vivarium verify`: an answer is made again from its receipt, its request and the model, and held against what was paid.

use super::link::{Place, block_on};
use alloy::primitives::Address;
use anyhow::{Context, Result, bail, ensure};
use infer::rerun;
use infer::{ChatTemplate, EngineClass, EngineClient, EngineConfig, EngineEvent, Hello};
use node::rerun::{Judged, NotTried, Question};
use pay::receipt::{Receipt, SignedReceipt};
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use store::Blocks;
use store::fetch::Fetcher;
use store::unixfs::{Limits, Profile, import_reader};

/// Exit statuses beside 0; 1 and 2 are failures to verify at all.
const DIFFERENT: u8 = 3;
const UNKNOWN: u8 = 4;

/// Makes an answer again, token by token, and says whether it is the one that was paid.
///
/// Off line: the receipt's signature, the request against the receipt's digest, the model's file against its CID. Then the
/// engine beside this program runs the request as the receipt says: rendered by the model's own template, with that
/// sampling, seed and number of threads.
///
/// Exit status: 0 same; 3 different, with the first place; 4 cannot say: another build of the engine, other instruction
/// sets or threads than the receipt's, or an answer that cannot be made again, and which; 1 and 2 it was not tried.
///
/// The answer's bits are a matter of the engine's program, the instruction sets that it was compiled for and its threads:
/// with others an honest agent's answer may differ, so nothing is said. The program is fetched by the code CID that the
/// agent's lease names.
#[derive(clap::Args)]
pub struct Flags {
    /// The receipt as JSON (`vivarium receipt ID --out FILE`)
    receipt: PathBuf,
    /// The request's body, byte by byte as it was sent
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// The answer's body as it came: one JSON object, or the stream's events
    #[arg(long, value_name = "FILE")]
    answer: PathBuf,
    /// The model's file
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The file of the adapter that the receipt names
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// A store or trustless gateway to fetch from what is not given as a file; may be repeated [default: the world's]
    #[arg(long, value_name = "URL")]
    from: Vec<String>,
    /// Who must have signed the receipt
    #[arg(long, value_name = "ADDRESS")]
    operator: Option<Address>,
    /// Threads of arithmetic [default: the receipt's; with others nothing can be said]
    #[arg(long, value_name = "N")]
    threads: Option<u32>,
    /// One JSON object: {"verdict": "same" | "different" | "unknown", "why": [...], "place", "signer"}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// What can be said of an answer.
enum Verdict {
    Same,
    Different { why: Vec<String>, place: Option<rerun::Place> },
    Unknown(Vec<String>),
}

pub fn run(flags: Flags) -> Result<ExitCode> {
    block_on(async {
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let receipt = String::from_utf8(read(&flags.receipt)?).context("the receipt is not JSON")?;
        let signed = SignedReceipt::from_json(receipt.trim())?;
        let signer = signed.signer().context("the receipt's signature is not valid")?;
        if let Some(operator) = flags.operator {
            signed.verify(operator)?;
        }
        let (request, answer) = (read(&flags.request)?, read(&flags.answer)?);
        let verdict = match Question::of(&signed.receipt, &request, Some(&answer)) {
            Ok(question) => answered_again(&question, &flags).await?,
            Err(e) => not_tried(e)?,
        };
        Ok(report(&verdict, &signed.receipt, signer, flags.json))
    })
}

fn not_tried(why: NotTried) -> Result<Verdict> {
    match why {
        NotTried::Unknown(why) => Ok(Verdict::Unknown(why)),
        NotTried::Invalid(why) => bail!(why),
    }
}

async fn answered_again(question: &Question, flags: &Flags) -> Result<Verdict> {
    let scratch = Scratch::new()?;
    let model = weights("model", question.receipt.model, flags.model.as_deref(), flags, &scratch.0).await?;
    let mut adapters = Vec::new();
    if question.receipt.adapter != [0; 32] {
        let adapter = flags.adapter.as_deref();
        adapters.push(weights("adapter", question.receipt.adapter, adapter, flags, &scratch.0).await?);
    }
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let folder = own.parent().context("this program lies in a folder")?;
    let config = EngineConfig {
        program: infer::engines::made_by(folder, &question.run.engine.program_sha256),
        model,
        adapters,
        socket: scratch.0.join("engine.sock"),
        threads: flags.threads.unwrap_or(question.run.engine.threads),
        threads_max: EngineConfig::cores(),
        ctx: question.run.engine.context,
        slots: 1,
    };
    let (engine, hello) = EngineClient::spawn(config).await?;
    if let Err(e) = question.fits(&EngineClass::of(&hello, engine.program_sha256())) {
        return not_tried(e);
    }
    match made(question, &engine, &hello).await? {
        Ok(made) => Ok(match question.judged(&made) {
            Judged::Same => Verdict::Same,
            Judged::Different { why, place } => Verdict::Different { why, place },
        }),
        Err(e) => not_tried(e),
    }
}

/// The text that the engine makes of the request, if that is what the receipt says was run.
async fn made(question: &Question, engine: &EngineClient, hello: &Hello) -> Result<Result<String, NotTried>> {
    let template = ChatTemplate::new(hello.chat_template.as_deref(), &hello.bos, &hello.eos)?;
    let prompt = question.prompt(&template)?;
    let tokens = engine.count_tokens(&prompt, question.add_bos()).await?;
    let generate = match question.generate(prompt, tokens, hello, (hello.adapters > 0).then_some(0)) {
        Ok(generate) => generate,
        Err(e) => return Ok(Err(e)),
    };
    let mut generation = engine.generate(generate)?;
    let mut text = String::new();
    loop {
        match generation.recv().await.context("the engine ended without an answer")? {
            EngineEvent::Accepted { .. } => {}
            EngineEvent::Tokens { text: more, .. } => text.push_str(&more),
            EngineEvent::Done { .. } => return Ok(Ok(text)),
            EngineEvent::Embedded { .. } => bail!("the model makes vectors and no text"),
            EngineEvent::Failed { message, .. } => bail!("the engine does not answer: {message}"),
        }
    }
}

/// The file of the model or adapter that the receipt names by this digest: `given`, or fetched; every byte is checked.
async fn weights(what: &str, digest: [u8; 32], given: Option<&Path>, flags: &Flags, scratch: &Path) -> Result<PathBuf> {
    if let Some(path) = given {
        for profile in [Profile::V1_2025, Profile::V0_2015] {
            let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            if store::cid::digest(&import_reader(&mut file, profile, &mut |_, _| Ok(()))?.cid) == digest {
                return Ok(path.to_owned());
            }
        }
        bail!(
            "{} is not the {what} that the receipt names (sha2-256 {} in its CID)",
            path.display(),
            hex::encode(digest)
        );
    }
    let from = if flags.from.is_empty() { flags.place.stores() } else { flags.from.clone() };
    ensure!(!from.is_empty(), "name the {what}'s file by --{what}, or a store that has it by --from");
    let blocks = Blocks::open(scratch.join(format!("{what}.blocks")))?;
    let file = scratch.join(format!("{what}.gguf"));
    let fetcher = Fetcher::new(net::Client::new(), from);
    // A receipt has the digest alone; a file of one block is that block itself.
    let tree = store::cid::dag_pb(digest);
    if fetcher.fetch_file(&blocks, &tree, &file, Limits::default(), |_| ()).await.is_ok() {
        return Ok(file);
    }
    let block = store::cid::raw(digest);
    let fetched = fetcher.fetch_file(&blocks, &block, &file, Limits::default(), |_| ()).await;
    fetched.with_context(|| format!("the {what} {tree} (or {block}) cannot be fetched"))?;
    Ok(file)
}

fn report(verdict: &Verdict, receipt: &Receipt, signer: Address, json: bool) -> ExitCode {
    let (word, code, why, place) = match verdict {
        Verdict::Same => ("same", ExitCode::SUCCESS, &[][..], None),
        Verdict::Different { why, place } => ("different", ExitCode::from(DIFFERENT), &why[..], place.as_ref()),
        Verdict::Unknown(why) => ("unknown", ExitCode::from(UNKNOWN), &why[..], None),
    };
    if json {
        let place = place.map(|p| {
            let rerun::Place { bytes, line, column, answered, made } = p;
            json!({ "bytes": bytes, "line": line, "column": column, "answered": answered, "made": made })
        });
        println!("{}", json!({ "verdict": word, "why": why, "place": place, "signer": signer }));
        return code;
    }
    println!("receipt     {} (epoch {}), signed by {signer}", receipt.request, receipt.epoch);
    match verdict {
        Verdict::Same => println!("same        the engine makes this answer of this request, to the last character"),
        Verdict::Different { .. } => println!("different   the engine does not make this answer of this request"),
        Verdict::Unknown(_) => println!("cannot say  whether the engine makes this answer of this request"),
    }
    for why in why {
        println!("            {why}");
    }
    if let Some(place) = place {
        println!("first at    line {}, column {} ({} bytes are the same)", place.line, place.column, place.bytes);
        println!("answered    {}", shown(&place.answered));
        println!("made        {}", shown(&place.made));
    }
    code
}

fn shown(text: &str) -> String {
    if text.is_empty() { "(the end)".to_owned() } else { Value::from(text).to_string() }
}

/// A folder for the engine's socket and what is fetched, as long as it is needed.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let dir = std::env::temp_dir().join(format!("vivarium-verify-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is a temporary file's fate.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
