//! Where files and batches lie: as stored conversations do, sealed, each object under a key of its own, which the journal,
//! checkpoints and moves carry.

use crate::api::Api;
use crate::api::problem::Problem;
use crate::batch::{BATCH, Batch, Input, Line, Object};
use crate::conversation::{ConversationKey, Stored};
use std::sync::atomic::AtomicU64;
use store::seal::lockbox;
use tokio::sync::{Mutex, Semaphore};

/// Largest object, sealed, bytes: a whole upload, or the answers of a part.
const OBJECT_BYTES_MAX: usize = 32 << 20;
/// Uploads that are read at once: each may take 10 MB of memory before anything is paid. A guess, unmeasured.
const UPLOADS_MAX: usize = 4;

pub struct Desk {
    /// A batch is read, changed and written by one at a time.
    turn: Mutex<()>,
    pub(in crate::api) uploads: Semaphore,
    /// For `/metrics`: lines answered since the start, those that gave way to live requests, and batches not ended.
    pub(in crate::api) lines: AtomicU64,
    pub(in crate::api) interrupted: AtomicU64,
    pub(in crate::api) open: AtomicU64,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            turn: Mutex::new(()),
            uploads: Semaphore::new(UPLOADS_MAX),
            lines: AtomicU64::new(0),
            interrupted: AtomicU64::new(0),
            open: AtomicU64::new(0),
        }
    }
}

impl Api {
    /// What is kept under this name, and where.
    pub(in crate::api) async fn object(&self, name: &str) -> Result<Option<(Stored, Object)>, Problem> {
        let wanted = name.to_owned();
        match self.look(move |node| node.conversation(&wanted)).await? {
            Some((stored, key)) => {
                let object = self.opened(&stored, &key).await?;
                Ok(Some((stored, object)))
            }
            None => Ok(None),
        }
    }

    pub(in crate::api) async fn opened(&self, stored: &Stored, key: &ConversationKey) -> Result<Object, Problem> {
        let sealed = self.sealed(stored, OBJECT_BYTES_MAX).await?;
        let plain = lockbox::unlock(key, &sealed).map_err(Problem::for_internal)?;
        borsh::from_slice(&plain).map_err(Problem::for_internal)
    }

    /// Keeps an object; answered once that is durable.
    pub(in crate::api) async fn keep_object(&self, payer: [u8; 20], name: &str, it: &Object) -> Result<(), Problem> {
        let plain = borsh::to_vec(it).map_err(Problem::for_internal)?;
        self.keep_sealed(payer, name, |key| lockbox::lock(key, &plain)).await
    }

    pub(in crate::api) async fn batch(&self, id: &str) -> Result<Option<(Stored, Batch)>, Problem> {
        match self.object(id).await? {
            Some((stored, Object::Batch(batch))) => Ok(Some((stored, *batch))),
            _ => Ok(None),
        }
    }

    /// Keeps a new batch if `allowed` of all that are not over or not paid, and those of its customer.
    pub(in crate::api) async fn open_batch(
        &self,
        payer: [u8; 20],
        batch: Batch,
        allowed: impl FnOnce(usize, usize) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let _turn = self.desk.turn.lock().await;
        let (mut open, mut unpaid) = (0, 0);
        for (stored, key) in self.look(|node| node.objects_named(BATCH)).await? {
            let Object::Batch(other) = self.opened(&stored, &key).await? else { continue };
            open += usize::from(!other.stage.is_over());
            unpaid += usize::from(other.is_unpaid() && stored.payer == payer);
        }
        allowed(open, unpaid)?;
        self.keep_object(payer, &batch.id.clone(), &Object::Batch(Box::new(batch))).await
    }

    /// One step of a batch, kept before this returns. `None`: there is no such batch.
    pub(in crate::api) async fn step_batch(&self, id: &str, input: Input) -> Result<Option<Batch>, Problem> {
        let _turn = self.desk.turn.lock().await;
        let Some((stored, mut batch)) = self.batch(id).await? else { return Ok(None) };
        if batch.step(self.shared.now(), input) {
            // A part that is kept, and whose batch is not, is written again under the same name.
            while let Some((name, lines)) = batch.split_part() {
                self.keep_object(stored.payer, &name, &Object::Part(lines)).await?;
            }
            self.keep_object(stored.payer, id, &Object::Batch(Box::new(batch.clone()))).await?;
        }
        Ok(Some(batch))
    }

    /// The answered lines of a batch that stand in one of its two files.
    pub(in crate::api) async fn lines_of(&self, batch: &Batch, failed: bool) -> Result<String, Problem> {
        let mut text = String::new();
        let mut add = |lines: &[Line]| {
            for line in lines.iter().filter(|line| line.failed == failed) {
                text.push_str(&line.json);
                text.push('\n');
            }
        };
        for name in batch.part_names() {
            match self.object(&name).await? {
                Some((_, Object::Part(lines))) => add(&lines),
                _ => return Err(Problem::for_not_found("a part of this file is not kept any more")),
            }
        }
        add(&batch.tail);
        Ok(text)
    }

    /// After one of the files of a batch was deleted: parts that stand in neither go.
    pub(in crate::api) async fn forget_parts(&self, batch: &Batch) -> Result<(), Problem> {
        if !batch.needs_parts() {
            for name in batch.part_names() {
                self.forget_kept(&name).await?;
            }
        }
        Ok(())
    }
}

impl crate::main_loop::Node {
    /// What is kept under names that begin with this, but for the parts of batches.
    pub(in crate::api) fn objects_named(&self, prefix: &str) -> Vec<(Stored, ConversationKey)> {
        let Some(live) = &self.live else { return Vec::new() };
        let whole = live.state.conversations.named(prefix).filter(|stored| !stored.response.contains('.'));
        let key = |stored: &Stored| live.ring.conversations.get(&stored.cid).copied();
        whole.filter_map(|stored| Some((stored.clone(), key(stored)?))).collect()
    }
}
