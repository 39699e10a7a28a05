//! Finished answers, kept a day for the same request asked again: on this host's disk, outside journal and checkpoints.
//!
//! The answer of a stored response goes with it when that is deleted: its file is called after both.
//!
//! Each lies under a key of its own, made of the payment's signature and of the question. The journal and the chain
//! have the signature, nobody but the customer keeps the question: whoever takes the disk reads nothing. A file is
//! renamed into its place when it is whole, so `kill -9` leaves an answer or none. Nothing is synced: what a power cut
//! takes is an answer, not money. Whoever asks for an answer that is not here any more (a day later, on another host)
//! gets its receipt.

use crate::error::{Error, Result};
use borsh::{BorshDeserialize, BorshSerialize};
use bytes::Bytes;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use pay::RequestId;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;

/// How long an answer is kept, chain seconds.
const KEPT_SECS: u64 = 86_400;
/// Most answers, and most bytes of all files together; the oldest give way. A guess, unmeasured.
const ANSWERS_MAX: usize = 20_000;
const ALL_BYTES_MAX: u64 = 256 << 20;
/// A longer answer is not kept.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Between the names of a request and of its stored response.
const STORED_AS: char = '-';
/// In front of the sealed bytes: when it was made (chain seconds, little-endian) and the cipher's nonce.
const AT_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;

/// What a request asks, as far as payments need to know it.
#[derive(Clone, Copy)]
pub struct Question {
    /// sha2-256 of the request's body: in the journal and on receipts.
    pub digest: [u8; 32],
    /// Another digest of it, which goes nowhere: half of the answer's key.
    secret: [u8; 32],
}

impl Question {
    pub fn of(body: &[u8]) -> Self {
        let secret = Sha256::new().chain_update(b"vivarium kept answer").chain_update(body).finalize();
        Self { digest: Sha256::digest(body).into(), secret: secret.into() }
    }

    /// The key of the answer that was paid with this signature. All parts but the
    /// last have one length, and together far more chance in them than a key needs.
    fn key(&self, request: &RequestId, signature: &[u8]) -> Key {
        let key = Sha256::new().chain_update(self.secret).chain_update(request.0).chain_update(signature).finalize();
        <[u8; 32]>::from(key).into()
    }
}

/// A finished answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub body: Bytes,
    pub content_type: String,
    pub payment_response: Option<String>,
}

/// [`Answer`] in its file.
#[derive(BorshSerialize, BorshDeserialize)]
struct Sealed {
    body: Vec<u8>,
    content_type: String,
    payment_response: Option<String>,
}

/// The folder, and what lies in it.
pub struct Answers {
    dir: PathBuf,
    index: Mutex<Index>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Index {
    by_request: BTreeMap<RequestId, Kept>,
    /// Those of stored responses.
    by_response: BTreeMap<ResponseTag, RequestId>,
    by_age: BTreeSet<(u64, RequestId)>,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Kept {
    at: u64,
    bytes: u64,
    /// Set where the answer is also a stored response.
    stored_as: Option<ResponseTag>,
}

/// A digest of a response's id: the id itself would let whoever reads the folder's listing read the conversation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ResponseTag([u8; 16]);

impl ResponseTag {
    fn of(response: &str) -> Self {
        let digest: [u8; 32] =
            Sha256::new().chain_update(b"vivarium stored as").chain_update(response).finalize().into();
        Self(*digest.first_chunk().expect("32 bytes begin with 16"))
    }
}

fn file_name(request: &RequestId, stored_as: Option<ResponseTag>) -> String {
    match stored_as {
        Some(tag) => format!("{request}{STORED_AS}{}", hex::encode(tag.0)),
        None => request.to_string(),
    }
}

impl Answers {
    /// Opens the folder `dir`, making it if need be. What a crash left unfinished is removed.
    ///
    /// # Errors
    /// `Retry` when the disk refuses.
    pub fn open(dir: &Path) -> Result<Self> {
        let refused = |e| Error::retry(format!("answers cannot be kept in {}", dir.display())).caused_by(e);
        std::fs::create_dir_all(dir).map_err(refused)?;
        let mut index = Index::default();
        for entry in std::fs::read_dir(dir).map_err(refused)? {
            let path = entry.map_err(refused)?.path();
            match Self::look(&path) {
                Some((request, kept)) => index.add(request, kept),
                None => drop(std::fs::remove_file(&path)),
            }
        }
        Ok(Self { dir: dir.to_owned(), index: Mutex::new(index), changed: watch::channel(0).0 })
    }

    fn look(path: &Path) -> Option<(RequestId, Kept)> {
        use std::io::Read;
        let name = path.file_name()?.to_str()?;
        let (request, stored_as) = match name.split_once(STORED_AS) {
            Some((request, tag)) => (request, Some(ResponseTag(hex::decode(tag).ok()?.try_into().ok()?))),
            None => (name, None),
        };
        let request = request.parse().ok()?;
        let mut file = std::fs::File::open(path).ok()?;
        let mut at = [0; AT_BYTES];
        file.read_exact(&mut at).ok()?;
        Some((request, Kept { at: u64::from_le_bytes(at), bytes: file.metadata().ok()?.len(), stored_as }))
    }

    /// Keeps the answer of `request`, which was paid with this signature; `response` is its id if it is stored too. An
    /// answer that cannot be kept is only told to the log: nobody has paid for its repetition.
    pub async fn keep(
        &self,
        (request, question, signature): (RequestId, Question, &[u8]),
        answer: &Answer,
        response: Option<&str>,
        now: u64,
    ) {
        if answer.body.len() > ANSWER_BYTES_MAX {
            return;
        }
        let plain = Sealed {
            body: answer.body.to_vec(),
            content_type: answer.content_type.clone(),
            payment_response: answer.payment_response.clone(),
        };
        let stored_as = response.map(ResponseTag::of);
        let (path, key) = (self.dir.join(file_name(&request, stored_as)), question.key(&request, signature));
        let written = tokio::task::spawn_blocking(move || {
            let plain = borsh::to_vec(&plain)?;
            let nonce: [u8; NONCE_BYTES] = rand::random();
            let at = now.to_le_bytes();
            let sealed = XChaCha20Poly1305::new(&key)
                .encrypt(&XNonce::from(nonce), Payload { msg: &plain, aad: &at })
                .map_err(|e| std::io::Error::other(e.to_string()))?;
            let bytes = [&at[..], &nonce, &sealed].concat();
            let unfinished = path.with_extension("part");
            std::fs::write(&unfinished, &bytes)?;
            std::fs::rename(&unfinished, &path)?;
            Ok::<_, std::io::Error>(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
        });
        match written.await {
            Ok(Ok(bytes)) => self.kept(request, Kept { at: now, bytes, stored_as }),
            Ok(Err(e)) => tracing::warn!(error = %e, %request, "an answer cannot be kept"),
            Err(e) => tracing::error!(error = %e, %request, "keeping an answer ended badly"),
        }
    }

    fn kept(&self, request: RequestId, kept: Kept) {
        let gone = {
            let mut index = self.index();
            let before = index.by_request.get(&request).map(|before| file_name(&request, before.stored_as));
            index.add(request, kept);
            let mut gone = index.make_room(kept.at);
            gone.extend(before.filter(|name| *name != file_name(&request, kept.stored_as)));
            gone
        };
        for name in gone {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Removes the answer that is stored as `response`, if it is here.
    ///
    /// # Errors
    /// `Retry` when the disk refuses: the answer is still there then.
    pub fn forget_stored(&self, response: &str) -> Result<()> {
        let mut index = self.index();
        let Some(request) = index.by_response.get(&ResponseTag::of(response)).copied() else { return Ok(()) };
        let Some(kept) = index.by_request.get(&request) else { return Ok(()) };
        match std::fs::remove_file(self.dir.join(file_name(&request, kept.stored_as))) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::retry("the kept answer of a deleted response cannot be removed").caused_by(e))
            }
            _ => {
                index.forget(&request);
                Ok(())
            }
        }
    }

    /// Whether `request` has an answer here.
    pub fn has(&self, request: &RequestId) -> bool {
        self.index().by_request.contains_key(request)
    }

    /// The answer of `request`, waited for at most `patience`. `None` also for another question or signature than it
    /// was kept under.
    pub async fn read(
        &self,
        (request, question, signature): (RequestId, Question, &[u8]),
        patience: Duration,
    ) -> Option<Answer> {
        let mut changed = self.changed.subscribe();
        let arrives = async {
            while !self.has(&request) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(patience, arrives).await.ok()?;
        let path = self.dir.join(file_name(&request, self.index().by_request.get(&request)?.stored_as));
        let bytes = tokio::task::spawn_blocking(move || std::fs::read(path)).await.ok()?.ok()?;
        let (at, rest) = bytes.split_at_checked(AT_BYTES)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_BYTES)?;
        let nonce = XNonce::from(<[u8; NONCE_BYTES]>::try_from(nonce).ok()?);
        let plain = XChaCha20Poly1305::new(&question.key(&request, signature))
            .decrypt(&nonce, Payload { msg: sealed, aad: at })
            .ok()?;
        let Sealed { body, content_type, payment_response } = borsh::from_slice(&plain).ok()?;
        Some(Answer { body: body.into(), content_type, payment_response })
    }

    /// A std mutex and not tokio's: nothing is awaited while it is held. A poisoned lock means that a holder
    /// panicked, and a panic ends the process.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no holder of this lock panics and lives")
    }
}

impl Index {
    fn add(&mut self, request: RequestId, kept: Kept) {
        self.forget(&request);
        self.by_request.insert(request, kept);
        self.by_response.extend(kept.stored_as.map(|tag| (tag, request)));
        self.by_age.insert((kept.at, request));
        self.bytes += kept.bytes;
    }

    fn forget(&mut self, request: &RequestId) {
        if let Some(gone) = self.by_request.remove(request) {
            self.by_age.remove(&(gone.at, *request));
            if let Some(tag) = gone.stored_as {
                self.by_response.remove(&tag);
            }
            self.bytes -= gone.bytes;
        }
    }

    /// Forgets what is too old or too much, oldest first. Returns the names of its files.
    fn make_room(&mut self, now: u64) -> Vec<String> {
        let mut gone = Vec::new();
        while let Some((at, request)) = self.by_age.first().copied() {
            let is_old = at.saturating_add(KEPT_SECS) < now;
            if !is_old && self.by_request.len() <= ANSWERS_MAX && self.bytes <= ALL_BYTES_MAX {
                break;
            }
            gone.push(file_name(&request, self.by_request.get(&request).and_then(|kept| kept.stored_as)));
            self.forget(&request);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &[u8] = &[7; 65];

    fn request(n: u8) -> RequestId {
        RequestId([n; 16])
    }

    fn answer(text: &str) -> Answer {
        let payment_response = Some("e30=".to_owned());
        Answer { body: Bytes::from(text.to_owned()), content_type: "text/event-stream".into(), payment_response }
    }

    fn question() -> Question {
        Question::of(b"what is the answer?")
    }

    async fn read(answers: &Answers, n: u8) -> Option<Answer> {
        answers.read((request(n), question(), SIGNATURE), Duration::ZERO).await
    }

    #[tokio::test]
    async fn an_answer_is_there_after_a_crash_for_whoever_paid_and_asks_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let answers = Answers::open(dir.path()).unwrap();
        answers.keep((request(1), question(), SIGNATURE), &answer("forty-two"), None, 1_000).await;
        // Killed while another one was written.
        std::fs::write(dir.path().join(format!("{}.part", request(2))), b"half").unwrap();
        drop(answers);
        let answers = Answers::open(dir.path()).unwrap();
        assert_eq!(read(&answers, 1).await, Some(answer("forty-two")));
        assert_eq!(read(&answers, 2).await, None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing unfinished stays");
        // The signature alone stands on chain, the question alone in the customer's log.
        for (question, signature) in [(Question::of(b"what?"), SIGNATURE), (question(), &[8; 65])] {
            assert_eq!(answers.read((request(1), question, signature), Duration::ZERO).await, None);
        }
        let file = std::fs::read(dir.path().join(request(1).to_string())).unwrap();
        assert!(!file.windows(9).any(|part| part == b"forty-two"));
    }

    #[tokio::test]
    async fn the_answer_of_a_stored_response_goes_with_it_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let answers = Answers::open(dir.path()).unwrap();
        for (n, response) in [(1, "resp_a"), (2, "resp_b"), (3, "resp_c")] {
            answers.keep((request(n), question(), SIGNATURE), &answer(response), Some(response), 1_000).await;
        }
        answers.keep((request(4), question(), SIGNATURE), &answer("x"), None, 1_000).await;
        answers.forget_stored("resp_a").unwrap();
        answers.forget_stored("resp_a").unwrap();
        drop(answers);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(!names.iter().any(|name| name.to_str().unwrap().contains("resp_")), "{names:?}");
        let answers = Answers::open(dir.path()).unwrap();
        assert_eq!(read(&answers, 1).await, None);
        assert_eq!(read(&answers, 2).await, Some(answer("resp_b")));
        answers.forget_stored("resp_b").unwrap();
        answers.forget_stored("resp_x").unwrap();
        assert_eq!((read(&answers, 2).await, read(&answers, 3).await), (None, Some(answer("resp_c"))));
        assert_eq!(read(&answers, 4).await, Some(answer("x")));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn an_answer_that_was_tampered_with_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let answers = Answers::open(dir.path()).unwrap();
        answers.keep((request(1), question(), SIGNATURE), &answer("forty-two"), None, 1_000).await;
        let path = dir.path().join(request(1).to_string());
        let mut bytes = std::fs::read(&path).unwrap();
        for at in [0, AT_BYTES, AT_BYTES + NONCE_BYTES] {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(read(&answers, 1).await, None, "byte {at}");
            bytes[at] ^= 1;
        }
        // Nor is another request's answer anybody's.
        std::fs::write(dir.path().join(request(2).to_string()), &bytes).unwrap();
        assert_eq!(read(&Answers::open(dir.path()).unwrap(), 2).await, None);
    }

    #[tokio::test]
    async fn answers_are_kept_a_day_and_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let answers = Answers::open(dir.path()).unwrap();
        for (n, at) in [(1, 1_000), (2, 2_000), (3, 1_001 + KEPT_SECS)] {
            answers.keep((request(n), question(), SIGNATURE), &answer("x"), None, at).await;
        }
        assert_eq!((read(&answers, 1).await, read(&answers, 2).await), (None, Some(answer("x"))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        let mut index = Index::default();
        for n in 0..4 {
            index.add(request(n), Kept { at: u64::from(n), bytes: ALL_BYTES_MAX / 3, stored_as: None });
        }
        assert_eq!((index.make_room(4), index.by_request.len()), (vec![request(0).to_string()], 3));
        // Served again, it counts once.
        index.add(request(1), Kept { at: 9, bytes: 1, stored_as: None });
        assert_eq!((index.by_request.len(), index.bytes), (3, ALL_BYTES_MAX / 3 * 2 + 1));
        let long = Answer { body: vec![0; ANSWER_BYTES_MAX + 1].into(), ..answer("") };
        answers.keep((request(9), question(), SIGNATURE), &long, None, 5).await;
        assert!(!answers.has(&request(9)));
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_the_answer() {
        let dir = tempfile::tempdir().unwrap();
        let answers = Answers::open(dir.path()).unwrap();
        let patience = Duration::from_secs(60);
        let (heard, ()) = tokio::join!(answers.read((request(1), question(), SIGNATURE), patience), async {
            answers.keep((request(1), question(), SIGNATURE), &answer("late"), None, 1).await;
        });
        assert_eq!(heard, Some(answer("late")));
    }
}
