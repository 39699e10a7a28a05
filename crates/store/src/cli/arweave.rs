use crate::arweave::{Arweave, DataTree, Key, Outcome, TxId, Upload, car_tags};
use crate::blocks::Blocks;
use crate::car;
use crate::checkpoint::keys;
use crate::cid::{self, Cid};
use crate::cli::{Moved, pin_roots};
use crate::error::{Error, Kind, Result, off_thread};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// What storing a graph on Arweave has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stored {
    pub cid: String,
    /// The id under which the CAR file of the graph lies there.
    pub transaction: String,
    /// Bytes of that CAR file.
    pub bytes: u64,
    /// A decimal string, as amounts are on the wire.
    pub reward_winston: String,
    /// `paid`, `unpaid` or `unknown`.
    pub outcome: &'static str,
}

/// Sends the CAR file of a graph, which must be here whole, and says what is known of its transaction.
///
/// The signed transaction is kept in the store's folder before it is sent, a file a graph: run again after a crash
/// this goes on with the same one. Another one is signed only when the gateways know that the first will never be
/// mined. `OverLimit` if the network asks more than `reward_winston_max`. `Usage` for an agent's keys: what is there can
/// never be destroyed. `progress` hears the bytes sent so far by this call.
pub async fn put(
    dir: &Path,
    cid: &str,
    gateways: Vec<String>,
    key: &Path,
    reward_winston_max: u128,
    progress: impl Fn(u64),
) -> Result<Stored> {
    put_with(dir, cid::parse(cid)?, Vec::new(), gateways, key, reward_winston_max, progress).await
}

/// [`put`] with the graphs below `others` in the same CAR file. They must be the same each time.
pub async fn put_with(
    dir: &Path,
    root: Cid,
    others: Vec<Cid>,
    gateways: Vec<String>,
    key: &Path,
    reward_winston_max: u128,
    progress: impl Fn(u64),
) -> Result<Stored> {
    let blocks = Blocks::open(dir)?;
    let arweave = Arweave::new(net::Client::new(), gateways);
    let (file, tree) = off_thread(move || car_of(&blocks, &root, &others)).await?;
    let record = record_path(dir, &root)?;
    let mut upload = match read_record(&record)? {
        Some(upload) if arweave.outcome(&upload.id()?, upload.anchor_height).await != Outcome::Unpaid => upload,
        _ => {
            let json = fs::read(key).map_err(|e| Error::key(format!("cannot read {}", key.display())).caused_by(e))?;
            arweave.prepare(&Key::from_jwk(&json)?, &tree, car_tags(&root), reward_winston_max).await?
        }
    };
    let before = upload.bytes_done(&tree);
    let sent = arweave.send(&mut upload, &tree, file.path(), |upload| {
        progress(upload.bytes_done(&tree) - before);
        write_record(&record, upload)
    });
    sent.await?;
    stored(&arweave, &root, &upload).await
}

/// What is known of a graph that [`put`] sent. `Missing` if it sent none.
pub async fn status(dir: &Path, cid: &str, gateways: Vec<String>) -> Result<Stored> {
    let root = cid::parse(cid)?;
    Blocks::open(dir)?;
    let upload = read_record(&record_path(dir, &root)?)?;
    let upload = upload.ok_or_else(|| Error::missing(format!("{cid} was not sent to Arweave from this store")))?;
    stored(&Arweave::new(net::Client::new(), gateways), &root, &upload).await
}

/// Stores and pins the graph in the CAR file that a transaction holds. `progress` hears the bytes read so far.
pub async fn get(
    dir: &Path,
    transaction: &str,
    gateways: Vec<String>,
    bytes_max: u64,
    progress: impl Fn(u64),
) -> Result<Moved> {
    let (id, blocks) = (TxId::parse(transaction)?, Blocks::open(dir)?);
    let _writing = blocks.writing()?;
    let done = Arweave::new(net::Client::new(), gateways).import_each(&blocks, &id, bytes_max, progress).await?;
    pin_roots(&blocks, &done)
}

async fn stored(arweave: &Arweave, root: &Cid, upload: &Upload) -> Result<Stored> {
    let transaction = upload.transaction()?;
    let outcome = match arweave.outcome(&transaction.id(), upload.anchor_height).await {
        Outcome::Paid => "paid",
        Outcome::Unpaid => "unpaid",
        Outcome::Unknown => "unknown",
    };
    Ok(Stored {
        cid: root.to_string(),
        transaction: transaction.id().to_string(),
        bytes: transaction.draft.data_bytes,
        reward_winston: transaction.draft.reward_winston.to_string(),
        outcome,
    })
}

/// The same graph gives the same file each time, so it need not be kept between two tries.
fn car_of(blocks: &Blocks, root: &Cid, others: &[Cid]) -> Result<(TemporaryFile, DataTree)> {
    let failed = |e| Error::disk("cannot write the CAR file", e);
    let path = blocks.tmp_path();
    let mut out = BufWriter::new(File::create_new(&path).map_err(failed)?);
    let file = TemporaryFile { path };
    // Each block: the keys may lie in a directory, or below a root of links.
    let (_, bytes) =
        car::export_each(blocks, root, others, &mut out, |cid, block| match keys::is_key_object(cid, block) {
            true => Err(Error::usage(format!("{cid} holds an agent's keys, which must stay destructible"))),
            false => Ok(()),
        })?;
    drop(out);
    let tree = DataTree::build(&mut File::open(&file.path).map_err(failed)?, bytes)?;
    Ok((file, tree))
}

/// Removed when it is not needed any more; what a crash leaves is swept with the store's other temporary files.
struct TemporaryFile {
    path: PathBuf,
}

impl TemporaryFile {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

fn record_path(dir: &Path, root: &Cid) -> Result<PathBuf> {
    let folder = dir.join("arweave");
    fs::create_dir_all(&folder).map_err(|e| Error::disk(format!("cannot make {}", folder.display()), e))?;
    Ok(folder.join(format!("{}.json", cid::normal(root))))
}

fn read_record(path: &Path) -> Result<Option<Upload>> {
    let failed =
        |why| Error::new(Kind::Disk, format!("{} {why}; move it away only if you know its fate", path.display()));
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| failed("is no record").caused_by(e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("cannot be read").caused_by(e)),
    }
}

/// Whole or not at all, and durable before anything is sent.
fn write_record(path: &Path, upload: &Upload) -> Result<()> {
    let failed = |e| Error::disk(format!("cannot write {}", path.display()), e);
    let json = serde_json::to_vec(upload).map_err(|e| Error::bug("an upload is no JSON").caused_by(e))?;
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).map_err(failed)?;
    file.write_all(&json).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}
