//! `vivarium receipt`: fetches a receipt, and checks receipts, off line or against the chain.

use super::link::{Link, Place, block_on};
use alloy::primitives::{Address, B256};
use anyhow::{Context, Result, bail, ensure};
use chain::Chain;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Method};
use pay::receipt::cose::CoseReceipt;
use pay::receipt::refund::{RefundNote, SignedRefund};
use pay::receipt::tree::Proof;
use pay::receipt::{PaidBy, Receipt, SignedReceipt};
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
        match &proof {
            Some(proof) => write(&beside(file), proof.to_string().as_bytes())?,
            // One of another receipt, written under this name before, would be held against this one.
            None => forget(&beside(file))?,
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
        match &read(&self.file)? {
            Document::Receipt(receipt, signer) => self.receipt(receipt, *signer).await,
            Document::Refund(note, signer) => self.refund(note, *signer).await,
        }
    }

    async fn receipt(&self, receipt: &Receipt, signer: Address) -> Result<()> {
        let signed = Signed {
            what: "the receipt",
            agent: receipt.agent,
            chain_id: receipt.chain_id,
            epoch: receipt.epoch,
            signer,
        };
        self.agrees(&signed)?;
        let proof = self.proof(receipt)?;
        show(receipt);
        let Some(chain) = self.chain_of(&signed).await? else {
            if proof.is_some() {
                println!("proof       holds; whether its root is on chain, --rpc tells");
            }
            return Ok(());
        };
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

    async fn refund(&self, note: &RefundNote, signer: Address) -> Result<()> {
        let signed =
            Signed { what: "the statement", agent: note.agent, chain_id: note.chain_id, epoch: note.epoch, signer };
        self.agrees(&signed)?;
        println!("refund      of {} (epoch {})", note.request, note.epoch);
        println!("goes back   {} to {}", note.amount, note.payer);
        println!("because     {}", note.why());
        self.chain_of(&signed).await.map(drop)
    }

    /// What can be told off line.
    fn agrees(&self, signed: &Signed) -> Result<()> {
        if let Some(agent) = self.agent {
            ensure!(signed.agent == agent, "{} is for another agent ({})", signed.what, signed.agent);
        }
        self.operator.map_or(Ok(()), |operator| signed.is_by(operator))
    }

    /// The chain, where one was named and it says that this signer was operator in its epoch.
    async fn chain_of(&self, signed: &Signed) -> Result<Option<Chain>> {
        let Signed { agent, chain_id, epoch, signer, .. } = *signed;
        let Some(rpc) = &self.rpc else {
            let compared = if self.operator.is_some() { ", as it should" } else { " (compare it, or give --rpc)" };
            println!("signed by   {signer}{compared}");
            return Ok(None);
        };
        let chain = Chain::connect(rpc, chain_id)?;
        chain.verify_chain().await?;
        let operators = chain::history::operators(&chain, agent).await?;
        let operator = operators.get(&epoch).with_context(|| format!("the treasury {agent} has no epoch {epoch}"))?;
        signed.is_by(*operator)?;
        println!("signed by   {signer}, operator of epoch {epoch}");
        Ok(Some(chain))
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

/// Who signed, and for whom.
struct Signed {
    what: &'static str,
    agent: Address,
    chain_id: u64,
    epoch: u64,
    signer: Address,
}

impl Signed {
    fn is_by(&self, operator: Address) -> Result<()> {
        let signer = self.signer;
        ensure!(signer == operator, "signed by {signer}, not by the operator {operator}, or altered after signing");
        Ok(())
    }
}

/// What an operator has signed, and the key that did.
enum Document {
    Receipt(Box<Receipt>, Address),
    Refund(RefundNote, Address),
}

/// Any of the forms: JSON begins with a brace, COSE never does; and only a refund says its kind.
fn read(file: &Path) -> Result<Document> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    if !bytes.trim_ascii_start().starts_with(b"{") {
        let signed = CoseReceipt::from_bytes(&bytes)?;
        return Ok(Document::Receipt(Box::new(signed.receipt), signed.operator));
    }
    let text = std::str::from_utf8(&bytes)?.trim();
    let is_refund = serde_json::from_str::<serde_json::Value>(text).is_ok_and(|json| json["kind"] == "refund");
    if is_refund {
        let signed = SignedRefund::from_json(text)?;
        let signer = signed.signer().context("the statement's signature is not valid")?;
        return Ok(Document::Refund(signed.note, signer));
    }
    let signed = SignedReceipt::from_json(text)?;
    let signer = signed.signer().context("the receipt's signature is not valid")?;
    Ok(Document::Receipt(Box::new(signed.receipt), signer))
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
    if let PaidBy::Voucher { channel, charged } = &receipt.paid_by {
        println!("channel     {}, charged {charged} in all with this call", B256::from(*channel));
    }
    match receipt.embedding_tokens {
        0 => println!(
            "for         {} prompt tokens, {} of them cached, and {} completion tokens",
            receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens
        ),
        tokens => println!("for         {tokens} tokens of texts that became vectors"),
    }
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

fn forget(file: &Path) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

/// Where a receipt's proof is kept.
fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".proof");
    PathBuf::from(name)
}
