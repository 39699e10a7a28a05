//! `vivarium receipt`: fetches a receipt, and checks receipts, off line or against the chain.

use super::link::{Link, Place, block_on};
use alloy::primitives::{Address, B256};
use anyhow::{Context, Result, bail, ensure};
use chain::Chain;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method};
use pay::receipt::cose::CoseReceipt;
use pay::receipt::refund::SignedRefund;
use pay::receipt::tree::Proof;
use pay::receipt::{Receipt, SignedReceipt};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Fetches the signed receipt of a call and checks it.
///
/// A good receipt is signed by the operator of this treasury in the receipt's epoch, and names this treasury and chain.
/// A heartbeat later it is also under a root on chain: `--out` keeps the proof of that beside it.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Flags {
    #[command(subcommand)]
    command: Option<Command>,
    /// The call's request id, as `vivarium ask` prints it
    #[arg(required = true)]
    id: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Write the receipt to FILE, and its proof, once there is one, to FILE.proof
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write it as COSE_Sign1 (CBOR) and not as JSON
    #[arg(long, requires = "out")]
    cose: bool,
    /// One JSON object: {"receipt": …, "signer", "is_operator_now", "proof"}
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    Verify(Verify),
}

/// Checks a receipt in a file, or what an agent says of money that goes back (`/refunds/ID`).
///
/// Without --rpc nothing is asked of anybody: the signature holds, and the signer is shown (or compared with
/// --operator). With --rpc the treasury's own events tell who was operator in the receipt's epoch and, with a proof,
/// whether a heartbeat carried its root.
#[derive(clap::Args)]
struct Verify {
    file: PathBuf,
    /// The receipt's Merkle proof [default: FILE.proof, where there is one]
    #[arg(long, value_name = "FILE")]
    proof: Option<PathBuf>,
    /// Who must have signed
    #[arg(long, value_name = "ADDRESS")]
    operator: Option<Address>,
    /// An endpoint of the receipt's chain
    #[arg(long, value_name = "URL")]
    rpc: Option<String>,
    /// The treasury it must be of
    #[arg(long, value_name = "ADDRESS")]
    agent: Option<Address>,
}

pub fn run(flags: Flags) -> Result<()> {
    block_on(async {
        match (flags.command, flags.id) {
            (Some(Command::Verify(verify)), _) => verify.run().await,
            (None, Some(id)) => {
                let out = flags.out.as_deref().map(|file| (file, if flags.cose { Form::Cose } else { Form::Json }));
                fetch(&flags.place.link()?, &id, out, flags.json).await
            }
            (None, None) => bail!("name a request, or a file: see `vivarium receipt --help`"),
        }
    })
}

/// How a receipt is written.
#[derive(Clone, Copy)]
enum Form {
    Json,
    Cose,
}

async fn fetch(link: &Link, id: &str, out: Option<(&Path, Form)>, json: bool) -> Result<()> {
    let value = link.get(&format!("/receipts/{id}")).await?;
    let signed = SignedReceipt::from_json(&value.to_string()).context("the agent's receipt is not a receipt")?;
    let receipt = &signed.receipt;
    ensure!(receipt.agent == link.world.treasury, "the receipt is for another agent ({})", receipt.agent);
    ensure!(receipt.chain_id == link.world.chain_id, "the receipt is for another chain ({})", receipt.chain_id);
    let signer = signed.signer().context("the receipt's signature is not valid")?;
    let state = link.record.read().await?.state;
    let now = state.epoch == receipt.epoch;
    ensure!(!now || signer == state.operator, "the receipt is signed by {signer}, the operator is {}", state.operator);
    // Before the first heartbeat after it there is none.
    let proof = link.get(&format!("/receipts/{id}/proof")).await.ok();
    if let Some((file, form)) = out {
        match form {
            Form::Json => write(file, value.to_string().as_bytes())?,
            Form::Cose => write(file, &cose(link, id).await?)?,
        }
        if let Some(proof) = &proof {
            write(&beside(file), proof.to_string().as_bytes())?;
        }
    }
    if json {
        println!("{}", json!({ "receipt": value, "signer": signer, "is_operator_now": now, "proof": proof }));
        return Ok(());
    }
    show(receipt);
    let whose = if now { ", the operator now" } else { ", operator of an earlier epoch" };
    println!("signed by   {signer}{whose}");
    match &proof {
        Some(proof) => println!("on chain    under the root of the heartbeat in block {}", proof["block"]),
        None => println!("on chain    with the next heartbeat"),
    }
    Ok(())
}

impl Verify {
    async fn run(&self) -> Result<()> {
        if let Some(refund) = refund_in(&self.file)? {
            return self.refund(&refund).await;
        }
        let Found { receipt, signer } = &read(&self.file)?;
        if let Some(agent) = self.agent {
            ensure!(receipt.agent == agent, "the receipt is for another agent ({})", receipt.agent);
        }
        let must_be = |operator: Address| {
            ensure!(
                *signer == operator,
                "signed by {signer}, not by the operator {operator}, or altered after signing"
            );
            Ok(())
        };
        if let Some(operator) = self.operator {
            must_be(operator)?;
        }
        let proof = self.proof(receipt)?;
        show(receipt);
        let Some(rpc) = &self.rpc else {
            let compared = if self.operator.is_some() { ", as it should" } else { " (compare it, or give --rpc)" };
            println!("signed by   {signer}{compared}");
            if proof.is_some() {
                println!("proof       holds; whether its root is on chain, --rpc tells");
            }
            return Ok(());
        };
        let chain = Chain::connect(rpc, receipt.chain_id)?;
        chain.verify_chain().await?;
        let operators = chain::history::operators(&chain, receipt.agent).await?;
        let operator = operators
            .get(&receipt.epoch)
            .with_context(|| format!("the treasury {} has no epoch {}", receipt.agent, receipt.epoch))?;
        must_be(*operator)?;
        println!("signed by   {signer}, operator of epoch {}", receipt.epoch);
        let Some(root) = proof else {
            println!("on chain    not looked at: there is no proof beside the receipt");
            return Ok(());
        };
        let block = chain::history::block_of_root(&chain, receipt.agent, root)
            .await?
            .with_context(|| format!("no heartbeat of {} carried the proof's root {root}", receipt.agent))?;
        println!("on chain    under the root of the heartbeat in block {block}");
        Ok(())
    }

    async fn refund(&self, signed: &SignedRefund) -> Result<()> {
        let (note, signer) = (&signed.note, signed.signer().context("the statement's signature is not valid")?);
        if let Some(agent) = self.agent {
            ensure!(note.agent == agent, "the statement is another agent's ({})", note.agent);
        }
        let epoch = match (self.operator, &self.rpc) {
            (Some(operator), _) => Some(operator),
            (None, Some(rpc)) => {
                let chain = Chain::connect(rpc, note.chain_id)?;
                chain.verify_chain().await?;
                let operators = chain::history::operators(&chain, note.agent).await?;
                let missing = || format!("the treasury {} has no epoch {}", note.agent, note.epoch);
                Some(*operators.get(&note.epoch).with_context(missing)?)
            }
            (None, None) => None,
        };
        let is_theirs = epoch.is_none_or(|operator| operator == signer);
        ensure!(is_theirs, "signed by {signer}, not by the operator of epoch {}, or altered after signing", note.epoch);
        println!("refund      of {} (epoch {})", note.request, note.epoch);
        println!("goes back   {} to {}", note.amount, note.payer);
        println!("because     {}", note.why());
        let compared = if epoch.is_some() { ", the operator" } else { " (compare it, or give --rpc)" };
        println!("signed by   {signer}{compared}");
        Ok(())
    }

    /// The root that the proof leads to from this receipt, checked against the one it claims.
    fn proof(&self, receipt: &Receipt) -> Result<Option<B256>> {
        let file = match &self.proof {
            Some(file) => file.clone(),
            None => match beside(&self.file) {
                file if file.is_file() => file,
                _ => return Ok(None),
            },
        };
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let (proof, root) = Proof::from_json(&text)?;
        ensure!(proof.root(&receipt.leaf()) == root, "the proof is not of this receipt, or was altered");
        Ok(Some(B256::from(root)))
    }
}

/// A receipt and the key that signed it.
struct Found {
    receipt: Receipt,
    signer: Address,
}

/// The file, if it says that it is about a refund.
fn refund_in(file: &Path) -> Result<Option<SignedRefund>> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Ok(None) };
    if json["kind"] != "refund" {
        return Ok(None);
    }
    Ok(Some(SignedRefund::from_json(std::str::from_utf8(&bytes)?.trim())?))
}

/// Either form: JSON begins with a brace, COSE never does.
fn read(file: &Path) -> Result<Found> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if bytes.trim_ascii_start().starts_with(b"{") {
        let signed = SignedReceipt::from_json(std::str::from_utf8(&bytes)?.trim())?;
        let signer = signed.signer().context("the receipt's signature is not valid")?;
        return Ok(Found { receipt: signed.receipt, signer });
    }
    let signed = CoseReceipt::from_bytes(&bytes)?;
    Ok(Found { signer: signed.operator, receipt: signed.receipt })
}

/// The same receipt as the node gives it to readers of CBOR.
async fn cose(link: &Link, id: &str) -> Result<Vec<u8>> {
    let url = format!("{}/receipts/{id}", link.record.url().await?);
    let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/cose"))]);
    let answer = link.http.send(Method::GET, &url, headers, Default::default()).await?.success()?;
    let bytes = answer.bytes(4_096).await?.to_vec();
    CoseReceipt::from_bytes(&bytes).context("the agent's receipt is not a receipt")?;
    Ok(bytes)
}

fn show(receipt: &Receipt) {
    println!("receipt     {} (epoch {})", receipt.request, receipt.epoch);
    println!("paid        {} by {}", receipt.amount, receipt.payer);
    println!(
        "for         {} prompt tokens, {} of them cached, and {} completion tokens",
        receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens
    );
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// Where a receipt's proof is kept.
fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".proof");
    PathBuf::from(name)
}
