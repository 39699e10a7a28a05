//! What customers have kept here, conversations, files and batches: objects in the content store, each sealed under a key of its
//! own. The journal, checkpoints and moves carry place and key, so that any host of this agent finds and opens them.

use super::Api;
use super::problem::Problem;
use crate::ask::{Ask, Kept};
use crate::conversation::{ConversationKey, Stored};

impl Api {
    /// Seals an object under a fresh key, stores it, and has its place and key made durable before it answers.
    pub(super) async fn keep_sealed<E: std::fmt::Display>(
        &self,
        payer: [u8; 20],
        name: &str,
        seal: impl FnOnce(&ConversationKey) -> Result<Vec<u8>, E>,
    ) -> Result<(), Problem> {
        if !self.look(|node| node.can_store()).await? {
            return Err(Problem::for_unavail("nothing can be stored before the first checkpoint; try again", 5));
        }
        let key: ConversationKey = rand::random();
        let sealed = seal(&key).map_err(Problem::for_internal)?;
        let cid = self.cx.store.put_bytes(&sealed).await.map_err(away)?;
        let kept = Box::new(Kept { response: name.to_owned(), payer, cid: cid.to_string() });
        self.recorded(|reply| Ask::Keep { kept, key, reply }).await
    }

    /// An object as it was sealed, at most so many bytes of it.
    pub(super) async fn sealed(&self, stored: &Stored, bytes_max: usize) -> Result<Vec<u8>, Problem> {
        let cid = store::cid::parse(&stored.cid).map_err(Problem::for_internal)?;
        self.cx.store.get_bytes(&cid, bytes_max).await.map_err(away)
    }

    /// Destroys the key of an object, and the copy of an answer that was kept for a repetition with it.
    ///
    /// That copy goes first: if this is cut off between the two, the object is there to be deleted again. And after, for
    /// one that was kept meanwhile.
    pub(super) async fn forget_kept(&self, name: &str) -> Result<(), Problem> {
        let forget = || self.answers.forget_stored(name).map_err(Problem::for_internal);
        forget()?;
        let response = name.to_owned();
        self.recorded(|reply| Ask::Forget { response, reply }).await?;
        forget()
    }
}

fn away(e: store::Error) -> Problem {
    Problem::for_unavail(format!("the content store does not answer: {e}"), 2)
}
