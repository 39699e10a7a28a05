//! Who has paid a facilitator for its gas: a pure fold over its journal.
//!
//! x402 has no field for a facilitator's fee, and official clients sign the whole price over to the payee. So payees
//! pay beforehand: each has credit under the address it is paid at (anybody may add to it), and a settlement takes its
//! fee from there. Whoever settles for somebody else spends that payee's credit on paying that payee.

use crate::Usdc;
use crate::scheme::exact::Hash;
use borsh::io::{ErrorKind, Read};
use borsh::{BorshDeserialize, BorshSerialize};
use std::collections::{BTreeMap, VecDeque};

/// Ended settlements remembered for whoever asks again. A guess.
const ENDED_MAX: usize = 20_000;

/// What a settlement is found again by.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Settlement {
    pub token: [u8; 20],
    pub payer: [u8; 20],
    pub pay_to: [u8; 20],
    pub nonce: Hash,
    /// What is taken.
    pub amount: Usdc,
    /// Chain seconds: from then on it can never be taken.
    pub valid_before: u64,
    pub means: Means,
    /// Height of the chain when it was checked: before that it was not taken. 0 in records of earlier builds, which end
    /// here: then all of the chain is searched.
    #[borsh(deserialize_with = "or_zero")]
    pub since_block: u64,
}

/// By what a payer's money is moved. As bytes the order matters: of earlier builds 1 was EIP-3009, 0 either of the
/// others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Means {
    /// `exact` by Permit2: anybody may send it.
    Permit2,
    /// `exact` by EIP-3009: anybody may send it, and the token names its nonce.
    Eip3009,
    /// `upto` by Permit2: the facilitator alone sends it.
    Upto,
}

fn or_zero<R: Read>(reader: &mut R) -> borsh::io::Result<u64> {
    let mut bytes = [0; 8];
    match reader.read(&mut bytes)? {
        0 => Ok(0),
        8 => Ok(u64::from_le_bytes(bytes)),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// One record of the journal.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Record {
    /// Its fee is taken, and it is about to be sent. `credit`: what `account` gets once it is paid.
    Opened { key: Hash, account: [u8; 20], fee: Usdc, credit: Usdc, settlement: Settlement },
    /// How it ended: its transaction, or none, which gives the fee back.
    Ended { key: Hash, paid: Option<Hash> },
}

/// A settlement that has no end yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub account: [u8; 20],
    pub fee: Usdc,
    pub credit: Usdc,
    pub settlement: Settlement,
}

/// How a settlement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    New,
    Open,
    Paid(Hash),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    credit: BTreeMap<[u8; 20], Usdc>,
    open: BTreeMap<Hash, Open>,
    paid: BTreeMap<Hash, Hash>,
    order: VecDeque<Hash>,
    /// Fees of settlements that were paid.
    earned: Usdc,
}

impl Accounts {
    /// Replay and life alike. A record that does not fit changes nothing: a settlement is opened once, ended once.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Opened { key, account, fee, credit, settlement } => {
                let Some(left) = self.credit(account).checked_sub(*fee) else { return };
                if self.standing(key) != Standing::New {
                    return;
                }
                self.credit.insert(*account, left);
                let (account, fee, credit) = (*account, *fee, *credit);
                self.open.insert(*key, Open { account, fee, credit, settlement: settlement.clone() });
            }
            Record::Ended { key, paid } => {
                let Some(open) = self.open.remove(key) else { return };
                let back = if paid.is_some() { open.credit } else { open.fee };
                let credit = self.credit.entry(open.account).or_default();
                *credit = credit.saturating_add(back);
                let Some(transaction) = paid else { return };
                self.earned = self.earned.saturating_add(open.fee);
                self.paid.insert(*key, *transaction);
                self.order.push_back(*key);
                if self.order.len() > ENDED_MAX
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.paid.remove(&oldest);
                }
            }
        }
    }

    pub fn credit(&self, account: &[u8; 20]) -> Usdc {
        self.credit.get(account).copied().unwrap_or_default()
    }

    pub fn standing(&self, key: &Hash) -> Standing {
        match self.paid.get(key) {
            Some(transaction) => Standing::Paid(*transaction),
            None if self.open.contains_key(key) => Standing::Open,
            None => Standing::New,
        }
    }

    /// To be asked about after a start, or when nobody knows how it ended.
    pub fn open(&self) -> impl Iterator<Item = (&Hash, &Open)> {
        self.open.iter()
    }

    /// Whether a settlement that is remembered was paid in this transaction.
    pub fn has_paid_in(&self, transaction: &Hash) -> bool {
        self.paid.values().any(|paid| paid == transaction)
    }

    pub fn earned(&self) -> Usdc {
        self.earned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(key: u8, fee: u128, credit: u128) -> Record {
        let settlement = Settlement {
            token: [1; 20],
            payer: [2; 20],
            pay_to: [3; 20],
            nonce: [key; 32],
            amount: Usdc(100),
            valid_before: 10,
            means: Means::Eip3009,
            since_block: 7,
        };
        Record::Opened { key: [key; 32], account: [3; 20], fee: Usdc(fee), credit: Usdc(credit), settlement }
    }

    fn ended(key: u8, paid: bool) -> Record {
        Record::Ended { key: [key; 32], paid: paid.then_some([9; 32]) }
    }

    /// What was on disk before `since_block` was is read, too.
    #[test]
    fn a_record_of_an_earlier_build_ends_sooner() {
        let record = opened(1, 300, 0);
        let bytes = borsh::to_vec(&record).unwrap();
        assert_eq!(borsh::from_slice::<Record>(&bytes).unwrap(), record);
        let Record::Opened { settlement, .. } = borsh::from_slice(&bytes[..bytes.len() - 8]).unwrap() else { panic!() };
        assert_eq!((settlement.means, settlement.since_block), (Means::Eip3009, 0));
        assert!(borsh::from_slice::<Record>(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn credit_is_added_when_it_is_paid_and_fees_come_back_when_nothing_was_settled() {
        let mut accounts = Accounts::default();
        let mut step = |record: &Record| {
            accounts.apply(record);
            (accounts.credit(&[3; 20]), accounts.earned())
        };
        assert_eq!(step(&opened(1, 0, 1_000)), (Usdc(0), Usdc(0)), "promised is not paid");
        assert_eq!(step(&ended(1, true)), (Usdc(1_000), Usdc(0)));
        assert_eq!(step(&opened(2, 300, 0)), (Usdc(700), Usdc(0)));
        assert_eq!(step(&opened(2, 300, 0)), (Usdc(700), Usdc(0)), "once");
        assert_eq!(step(&ended(2, false)), (Usdc(1_000), Usdc(0)));
        assert_eq!(step(&ended(2, false)), (Usdc(1_000), Usdc(0)), "once");
        assert_eq!(step(&opened(2, 300, 0)), (Usdc(700), Usdc(0)), "it may be tried again");
        assert_eq!(step(&ended(2, true)), (Usdc(700), Usdc(300)));
        assert_eq!(step(&opened(2, 300, 0)), (Usdc(700), Usdc(300)), "and is never taken twice");
        assert_eq!(step(&opened(4, 701, 0)), (Usdc(700), Usdc(300)), "no credit, no settlement");
        assert_eq!(
            (accounts.standing(&[2; 32]), accounts.standing(&[4; 32])),
            (Standing::Paid([9; 32]), Standing::New)
        );
    }
}
