//! What a buyer must not forget: what it signed, what is out, how its channels stand. On disk before anything leaves.

use super::{Error, Kind};
use crate::Usdc;
use crate::scheme::channel::ChannelId;
use crate::scheme::exact::Hash;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Hosts whose spending of a day is told apart; more than that in a day are one.
const HOSTS_MAX: usize = 1_000;

/// First bytes of the file: what it is, and the version of its form.
const MAGIC: &[u8; 8] = b"vivbuy\0\x01";

#[derive(Debug, Default, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Memory {
    /// Over the buyer's lifetime: authorisations, and on channels what the largest voucher allows.
    pub signed: Usdc,
    /// Day (clock / 86,400) that the next two are about.
    pub day: u64,
    pub day_signed: Usdc,
    pub by_host: BTreeMap<String, Usdc>,
    /// By call (payee, path and body), so that the same call finds it on whatever host the agent is now.
    pub unresolved: BTreeMap<Hash, Signed>,
    pub channels: BTreeMap<ChannelId, OwnChannel>,
}

/// A payment that is out.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Signed {
    /// The whole header, ASCII.
    pub header: String,
    /// The offer's amount.
    pub amount: Usdc,
    pub on_channel: Option<OnChannel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct OnChannel {
    pub id: ChannelId,
    /// The voucher.
    pub max: Usdc,
    /// What came with it; zero for a mere voucher.
    pub deposit: Usdc,
}

/// A channel of ours, as far as we know.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct OwnChannel {
    /// What the seller says was charged; never above what we signed.
    pub charged: Usdc,
    /// Deposits that were answered for.
    pub balance: Usdc,
    /// All deposits ever signed, executed or not.
    pub deposited: Usdc,
    /// The largest voucher ever signed.
    pub max: Usdc,
}

impl Memory {
    /// Starts the day that `now` is in, if it is a new one. A clock that goes back starts none.
    pub fn turn_to(&mut self, now: u64) {
        let day = now / 86_400;
        if day > self.day {
            (self.day, self.day_signed) = (day, Usdc::ZERO);
            self.by_host.clear();
        }
    }

    pub fn count(&mut self, host: &str, amount: Usdc) {
        self.signed = self.signed.saturating_add(amount);
        self.day_signed = self.day_signed.saturating_add(amount);
        let known = self.by_host.len() < HOSTS_MAX || self.by_host.contains_key(host);
        let host = if known { host } else { "others" };
        let sum = self.by_host.entry(host.to_owned()).or_default();
        *sum = sum.saturating_add(amount);
    }

    pub fn of_host(&self, host: &str) -> Usdc {
        let unknown = if self.by_host.len() < HOSTS_MAX { None } else { self.by_host.get("others") };
        self.by_host.get(host).or(unknown).copied().unwrap_or_default()
    }
}

/// The file, or nothing: then a crash forgets.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    /// Held locked for as long as the buyer lives: two processes that sign from one record would both pay.
    lock: File,
}

impl Drop for Record {
    /// Closing is not enough: a child that another thread is just starting has a copy until it runs its own program.
    fn drop(&mut self) {
        self.lock.unlock().ok();
    }
}

impl Record {
    /// Opens or creates the record; it must belong to nobody else.
    pub fn open(path: &Path) -> Result<(Self, Memory), Error> {
        let name = path.display().to_string();
        let fail = |what: &str, e: &dyn std::fmt::Display| Error::new(Kind::Usage, &name, format!("{what}: {e}"));
        let lock = path.with_extension("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
        let lock = lock.map_err(|e| fail("cannot open the record's lock", &e))?;
        lock.try_lock().map_err(|e| fail("the record is in use by another process", &e))?;
        let memory = match fs::read(path) {
            Ok(bytes) => {
                let body =
                    bytes.strip_prefix(MAGIC).ok_or_else(|| fail("not a buyer's record", &"wrong first bytes"))?;
                borsh::from_slice(body).map_err(|e| fail("the record is damaged; nothing is paid by it", &e))?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Memory::default(),
            Err(e) => return Err(fail("cannot read the record", &e)),
        };
        Ok((Self { path: path.to_owned(), lock }, memory))
    }

    /// Replaces the record; durable when it returns.
    pub fn save(&self, memory: &Memory) -> Result<(), Error> {
        let write = || -> std::io::Result<()> {
            let partial = self.path.with_extension("partial");
            let mut file = File::create(&partial)?;
            file.write_all(MAGIC)?;
            file.write_all(&borsh::to_vec(memory)?)?;
            file.sync_all()?;
            fs::rename(&partial, &self.path)?;
            // The name too must be on disk.
            match self.path.parent() {
                Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
                _ => File::open(".")?.sync_all(),
            }
        };
        write().map_err(|e| {
            let message = format!("cannot write the record of payments: {e}; nothing was sent");
            Error::new(Kind::Usage, &self.path.display().to_string(), message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_whole_and_belongs_to_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buyer.record");
        let (record, mut memory) = Record::open(&path).unwrap();
        assert_eq!(memory, Memory::default());
        memory.turn_to(86_400 * 3);
        memory.count("a:1", Usdc(5));
        memory.channels.insert(ChannelId([1; 32]), OwnChannel { charged: Usdc(1), ..OwnChannel::default() });
        let on_channel = Some(OnChannel { id: ChannelId([1; 32]), max: Usdc(9), deposit: Usdc(0) });
        memory.unresolved.insert([2; 32], Signed { header: "e30=".into(), amount: Usdc(5), on_channel });
        record.save(&memory).unwrap();
        assert_eq!(Record::open(&path).unwrap_err().kind, Kind::Usage, "in use");
        drop(record);
        assert_eq!(Record::open(&path).unwrap().1, memory);
        fs::write(&path, b"something else").unwrap();
        assert_eq!(Record::open(&path).unwrap_err().kind, Kind::Usage);
        fs::write(&path, [&MAGIC[..], &[1, 2, 3]].concat()).unwrap();
        assert_eq!(Record::open(&path).unwrap_err().kind, Kind::Usage, "torn");
    }

    #[test]
    fn days_and_hosts_are_told_apart() {
        let mut memory = Memory::default();
        memory.turn_to(86_400);
        memory.count("a", Usdc(1));
        memory.count("b", Usdc(2));
        memory.turn_to(86_401);
        memory.turn_to(5);
        assert_eq!((memory.day_signed, memory.of_host("a"), memory.of_host("c")), (Usdc(3), Usdc(1), Usdc(0)));
        memory.turn_to(2 * 86_400);
        assert_eq!((memory.day_signed, memory.of_host("a"), memory.signed), (Usdc(0), Usdc(0), Usdc(3)));
    }
}
