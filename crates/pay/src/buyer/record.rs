//! What a buyer must not forget: what it signed, what is out, how its channels stand. On disk before anything leaves.

use super::unknown::EXPIRED_SECS;
use super::{Error, Kind};
use crate::Usdc;
use crate::scheme::channel::{CHANNEL, ChannelConfig, ChannelId, ChannelState};
use crate::scheme::exact::{EXACT, Hash};
use crate::scheme::upto::UPTO;
use crate::wire::PaymentPayload;
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Hosts whose spending of a day is told apart; more than that in a day are one.
const HOSTS_MAX: usize = 1_000;

/// Settled payments that are remembered, so that the same call gets the same answer; the oldest go first.
const SETTLED_MAX: usize = 1_000;
/// How long a settled payment is remembered: as long as sellers keep answers (24 h).
const SETTLED_SECS: u64 = 86_400;

/// First bytes of the file: what it is, and in the last one the version of its form.
const MAGIC: &[u8; 8] = b"vivbuy\0\x06";
/// The version before: the same without its last field, the ceilings.
const MAGIC_5: &[u8; 8] = b"vivbuy\0\x05";

/// Ceilings that are remembered; over it the oldest stay counted whole.
const CEILINGS_MAX: usize = 1_000;
/// How long one is: longer than any permission is valid, and than the day that it counts in.
const CEILING_SECS: u64 = 2 * 86_400;

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
    /// What these channels are between: with it a payer finds its money when nobody else tells.
    pub configs: BTreeMap<ChannelId, ChannelConfig>,
    /// `upto` payments that are counted by their ceiling, by their nonce: the chain has not told yet what they took.
    pub ceilings: BTreeMap<Hash, Ceiling>,
}

/// An `upto` payment that is counted by what it permits.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Ceiling {
    pub network: String,
    pub token: [u8; 20],
    pub pay_to: [u8; 20],
    pub amount: Usdc,
    /// Permit2's, chain seconds.
    pub deadline: u64,
    /// When it was signed, in seconds of the buyer's clock.
    pub at: u64,
    /// Under which it counts: as in [`Memory::day`] and [`Memory::by_host`].
    pub day: u64,
    pub host: String,
}

/// A payment that is out.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Signed {
    /// The request's name to the seller. Not made from the payment: a voucher is the same again while nothing is charged.
    pub name: [u8; 16],
    /// The whole header, ASCII.
    pub header: String,
    /// The offer's amount.
    pub amount: Usdc,
    pub on_channel: Option<OnChannel>,
    /// Where it was signed for: whom to ask about it.
    pub url: String,
    /// When it was signed, in seconds of the buyer's clock.
    pub at: u64,
    pub standing: Standing,
}

impl Signed {
    pub fn scheme(&self) -> &'static str {
        let is_upto = || {
            let payment = PaymentPayload::from_header(&self.header);
            payment.is_ok_and(|payment| payment.accepted.get("scheme").is_some_and(|scheme| scheme == UPTO))
        };
        match self.on_channel {
            Some(_) => CHANNEL,
            None if is_upto() => UPTO,
            None => EXACT,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Standing {
    /// Nobody has said what became of it.
    Unknown,
    /// It can take nothing more than it took. Its answer was not read to the end: the same call asks for it again.
    Settled,
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
    /// All deposits that are in or may still go in: what was signed and not executed counts until the chain, asked after
    /// its time, says that it is not there.
    pub deposited: Usdc,
    /// Until when the newest deposit can be executed, in seconds of the buyer's clock.
    pub deposit_until: u64,
    /// The largest voucher ever signed.
    pub max: Usdc,
}

impl OwnChannel {
    /// In the channel and not spent.
    pub fn left(&self) -> Usdc {
        self.balance.saturating_sub(self.charged)
    }

    /// A deposit was signed, and nobody has said that it is in.
    pub fn is_uncertain(&self) -> bool {
        self.deposited > self.balance
    }
}

impl Memory {
    /// Believes what the chain says of a channel at `now`. Deposits on their way are part of it from here on, whatever
    /// their answers say.
    pub fn see(&mut self, id: &ChannelId, state: &ChannelState, now: u64) {
        let own = self.channels.entry(*id).or_default();
        let leaving = state.withdrawal.map_or(Usdc::ZERO, |withdrawal| withdrawal.amount);
        own.balance = state.balance.saturating_sub(leaving);
        own.charged = own.charged.max(state.claimed);
        let may_land = now <= own.deposit_until.saturating_add(EXPIRED_SECS);
        own.deposited = if may_land { own.deposited.max(own.balance) } else { own.balance };
        for on in self.unresolved.values_mut().filter_map(|signed| signed.on_channel.as_mut()) {
            if on.id == *id {
                on.deposit = Usdc::ZERO;
            }
        }
    }

    /// Starts the day that `now` is in, if it is a new one. A clock that goes back starts none.
    pub fn turn_to(&mut self, now: u64) {
        let day = now / 86_400;
        if day > self.day {
            (self.day, self.day_signed) = (day, Usdc::ZERO);
            self.by_host.clear();
        }
    }

    /// The host's name that it is counted under.
    pub fn count(&mut self, host: &str, amount: Usdc) -> String {
        self.signed = self.signed.saturating_add(amount);
        self.day_signed = self.day_signed.saturating_add(amount);
        let known = self.by_host.len() < HOSTS_MAX || self.by_host.contains_key(host);
        let host = if known { host } else { "others" };
        let sum = self.by_host.entry(host.to_owned()).or_default();
        *sum = sum.saturating_add(amount);
        host.to_owned()
    }

    /// Counts `amount` as signed today, if less is.
    pub fn count_at_least(&mut self, amount: Usdc) {
        let missing = amount.saturating_sub(self.day_signed);
        self.signed = self.signed.saturating_add(missing);
        self.day_signed = self.day_signed.saturating_add(missing);
    }

    /// Counts an `upto` payment by its ceiling until the chain tells what it took.
    pub fn count_ceiling(&mut self, nonce: Hash, ceiling: Ceiling) {
        let now = ceiling.at;
        self.ceilings.retain(|_, old| now <= old.at.saturating_add(CEILING_SECS));
        if self.ceilings.len() < CEILINGS_MAX {
            self.ceilings.insert(nonce, ceiling);
        }
    }

    /// The `upto` payment of this nonce took so much, and can take nothing more: the rest of its ceiling no longer counts.
    pub fn charge(&mut self, nonce: &Hash, charged: Usdc) {
        let Some(ceiling) = self.ceilings.remove(nonce) else { return };
        let rest = ceiling.amount.saturating_sub(charged);
        self.signed = self.signed.saturating_sub(rest);
        if ceiling.day == self.day {
            self.day_signed = self.day_signed.saturating_sub(rest);
            if let Some(sum) = self.by_host.get_mut(&ceiling.host) {
                *sum = sum.saturating_sub(rest);
            }
        }
    }

    /// Payments that nobody has said the outcome of.
    pub fn unknown(&self) -> usize {
        self.unresolved.values().filter(|signed| signed.standing == Standing::Unknown).count()
    }

    /// Forgets settled payments that are no longer worth remembering.
    pub fn forget_settled(&mut self, now: u64) {
        let is_settled = |signed: &Signed| signed.standing == Standing::Settled;
        self.unresolved.retain(|_, signed| !is_settled(signed) || now <= signed.at.saturating_add(SETTLED_SECS));
        let mut settled: Vec<(u64, Hash)> =
            self.unresolved.iter().filter(|(_, s)| is_settled(s)).map(|(key, s)| (s.at, *key)).collect();
        if settled.len() > SETTLED_MAX {
            settled.sort_unstable();
            for (_, key) in &settled[..settled.len() - SETTLED_MAX] {
                self.unresolved.remove(key);
            }
        }
    }

    /// The most that vouchers of unknown outcome on this channel allow, other than the one of `key`.
    pub fn unknown_on(&self, channel: &ChannelId, key: &Hash) -> Usdc {
        let others = self.unresolved.iter().filter(|(k, s)| *k != key && s.standing == Standing::Unknown);
        others
            .filter_map(|(_, s)| s.on_channel)
            .filter(|on| on.id == *channel)
            .map(|on| on.max)
            .max()
            .unwrap_or_default()
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
        let lock = open_lock(path)?;
        lock.try_lock().map_err(|_| {
            let message = "another process pays by this record, and two would each spend its limits";
            Error::new(Kind::InUse, &path.display().to_string(), message)
        })?;
        Self::read(path, lock)
    }

    /// Opens or creates the record, once it belongs to nobody else. Blocks.
    pub fn open_in_turn(path: &Path, waits: impl FnOnce()) -> Result<(Self, Memory), Error> {
        let lock = open_lock(path)?;
        if lock.try_lock().is_err() {
            waits();
            lock.lock().map_err(|e| fail(path, "cannot wait for the record", &e))?;
        }
        Self::read(path, lock)
    }

    fn read(path: &Path, lock: File) -> Result<(Self, Memory), Error> {
        let fail = |what: &str, e: &dyn std::fmt::Display| fail(path, what, e);
        let memory = match fs::read(path) {
            Ok(bytes) => {
                let body = match (bytes.strip_prefix(MAGIC), bytes.strip_prefix(MAGIC_5)) {
                    (Some(body), _) => body.to_vec(),
                    // No ceilings: a length of zero.
                    (None, Some(body)) => [body, &[0; 4]].concat(),
                    (None, None) => {
                        return Err(match bytes.strip_prefix(&MAGIC[..7]) {
                            Some(_) => {
                                fail("a record of another version of this program", &"use that one, or move it away")
                            }
                            None => fail("not a buyer's record", &"wrong first bytes"),
                        });
                    }
                };
                borsh::from_slice(&body).map_err(|e| fail("the record is damaged; nothing is paid by it", &e))?
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

fn open_lock(path: &Path) -> Result<File, Error> {
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.with_extension("lock"));
    lock.map_err(|e| fail(path, "cannot open the record's lock", &e))
}

fn fail(path: &Path, what: &str, e: &dyn std::fmt::Display) -> Error {
    Error::new(Kind::Usage, &path.display().to_string(), format!("{what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::channel::Withdrawal;
    use sha2::{Digest, Sha256};

    fn signed(at: u64, standing: Standing) -> Signed {
        let name = [7; 16];
        Signed { name, header: "e30=".into(), amount: Usdc(5), on_channel: None, url: "http://a/".into(), at, standing }
    }

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
        memory.unresolved.insert([2; 32], Signed { on_channel, ..signed(7, Standing::Unknown) });
        record.save(&memory).unwrap();
        assert_eq!(Record::open(&path).unwrap_err().kind, Kind::InUse);
        drop(record);
        assert_eq!(Record::open(&path).unwrap().1, memory);
        fs::write(&path, b"something else").unwrap();
        assert_eq!(Record::open(&path).unwrap_err().kind, Kind::Usage);
        fs::write(&path, [&MAGIC[..], &[1, 2, 3]].concat()).unwrap();
        assert_eq!(Record::open(&path).unwrap_err().kind, Kind::Usage, "torn");
    }

    #[test]
    fn a_record_of_the_version_before_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buyer.record");
        let mut memory = Memory::default();
        memory.count("a", Usdc(5));
        let body = borsh::to_vec(&memory).unwrap();
        fs::write(&path, [MAGIC_5, &body[..body.len() - 4]].concat()).unwrap();
        assert_eq!(Record::open(&path).unwrap().1, memory);
    }

    #[test]
    fn a_ceiling_counts_until_it_is_known_what_was_taken() {
        let mut memory = Memory::default();
        memory.turn_to(86_400);
        let ceiling = |amount, at, day, host: String| Ceiling {
            network: "eip155:1".into(),
            token: [1; 20],
            pay_to: [2; 20],
            amount: Usdc(amount),
            deadline: 0,
            at,
            day,
            host,
        };
        for (nonce, amount) in [(1, 10), (2, 20)] {
            let host = memory.count("a", Usdc(amount));
            memory.count_ceiling([nonce; 32], ceiling(amount, 86_400, 1, host));
        }
        memory.charge(&[1; 32], Usdc(4));
        assert_eq!((memory.signed, memory.day_signed, memory.of_host("a")), (Usdc(24), Usdc(24), Usdc(24)));
        memory.charge(&[1; 32], Usdc(0));
        assert_eq!(memory.signed, Usdc(24), "once");
        // What is told the next day no longer lowers that day's sum.
        memory.turn_to(2 * 86_400);
        memory.count("a", Usdc(3));
        memory.charge(&[2; 32], Usdc(20));
        assert_eq!((memory.signed, memory.day_signed, memory.of_host("a")), (Usdc(27), Usdc(3), Usdc(3)));
        memory.count_at_least(Usdc(2));
        assert_eq!(memory.day_signed, Usdc(3));
        memory.count_at_least(Usdc(5));
        assert_eq!((memory.signed, memory.day_signed), (Usdc(29), Usdc(5)));
        memory.count_ceiling([3; 32], ceiling(1, 86_400, 1, "a".into()));
        memory.count_ceiling([4; 32], ceiling(1, 86_401 + CEILING_SECS, 3, "a".into()));
        assert_eq!(memory.ceilings.len(), 1, "the old one counts whole, for good");
    }

    #[test]
    fn a_record_in_use_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buyer.record");
        let (first, memory) = Record::open(&path).unwrap();
        let (waits, waiting) = std::sync::mpsc::channel();
        let second = std::thread::spawn({
            let path = path.clone();
            move || Record::open_in_turn(&path, || waits.send(()).unwrap()).unwrap().1
        });
        waiting.recv().unwrap();
        let memory = Memory { signed: Usdc(3), ..memory };
        first.save(&memory).unwrap();
        drop(first);
        assert_eq!(second.join().unwrap(), memory, "what the first one wrote");
        Record::open_in_turn(&path, || panic!("nobody has it")).unwrap();
        fs::write(&path, [&MAGIC[..7], &[1]].concat()).unwrap();
        let error = Record::open(&path).unwrap_err();
        assert!(error.message.contains("another version"), "{error}");
    }

    #[test]
    fn a_deposit_that_never_went_in_is_forgotten_when_it_no_longer_can() {
        let id = ChannelId([1; 32]);
        let mut memory = Memory::default();
        let signed = OwnChannel { deposited: Usdc(50), deposit_until: 1_000, ..OwnChannel::default() };
        memory.channels.insert(id, signed);
        let on_channel = Some(OnChannel { id, max: Usdc(9), deposit: Usdc(50) });
        memory.unresolved.insert([2; 32], Signed { on_channel, ..self::signed(7, Standing::Unknown) });
        let state =
            |balance, claimed| ChannelState { balance: Usdc(balance), claimed: Usdc(claimed), ..Default::default() };
        memory.see(&id, &state(0, 0), 1_000 + EXPIRED_SECS);
        assert_eq!(memory.channels[&id].deposited, Usdc(50), "it may still go in");
        // What the chain said counts: the answer that comes after all adds nothing to it.
        assert_eq!(memory.unresolved[&[2; 32]].on_channel.unwrap().deposit, Usdc::ZERO);
        memory.see(&id, &state(50, 20), 1_000);
        let own = memory.channels[&id];
        assert_eq!((own.balance, own.charged, own.left(), own.is_uncertain()), (Usdc(50), Usdc(20), Usdc(30), false));
        memory.channels.get_mut(&id).unwrap().deposited = Usdc(90);
        memory.see(&id, &state(50, 0), 1_001 + EXPIRED_SECS);
        let own = memory.channels[&id];
        assert_eq!((own.deposited, own.charged, own.is_uncertain()), (Usdc(50), Usdc(20), false));
        // What the payer takes out can pay for nothing.
        let withdrawal = Some(Withdrawal { amount: Usdc(30), since: 5 });
        memory.see(&id, &ChannelState { withdrawal, ..state(50, 20) }, 2_000);
        assert_eq!(memory.channels[&id].left(), Usdc::ZERO);
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

    #[test]
    fn settled_payments_are_forgotten_after_a_day_or_when_they_are_many_and_unknown_ones_never() {
        let mut memory = Memory::default();
        let key = |n: usize| Sha256::digest(n.to_be_bytes()).into();
        for n in 0..SETTLED_MAX + 5 {
            memory.unresolved.insert(key(n), signed(u64::try_from(n).unwrap(), Standing::Settled));
        }
        memory.unresolved.insert([0; 32], signed(0, Standing::Unknown));
        memory.forget_settled(10);
        assert_eq!((memory.unresolved.len(), memory.unknown()), (SETTLED_MAX + 1, 1));
        assert!(!memory.unresolved.contains_key(&key(4)) && memory.unresolved.contains_key(&key(5)));
        memory.forget_settled(u64::MAX);
        assert_eq!((memory.unresolved.len(), memory.unknown()), (1, 1));
    }
}
