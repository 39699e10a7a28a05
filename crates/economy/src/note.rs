//! Facts worth a line in `vivarium log`. A closed list: no text of a model or customer gets in.

use crate::money::{Address, Usdc};
use crate::output::{StopWhy, Task};
use crate::policy::Limits;
use crate::price::Price;
use borsh::{BorshDeserialize, BorshSerialize};
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Note {
    Booted {
        epoch: u64,
        lease: u64,
        restored: bool,
    },
    /// This agent acts from this lease now.
    LivesOn {
        epoch: u64,
        lease: u64,
        provider: Address,
    },
    ChoseHost {
        offer: u64,
        provider: Address,
        rent_day: Usdc,
        of: u32,
        penalised: bool,
        newcomer: bool,
    },
    NoHost {
        why: NoHost,
    },
    StandbyReady {
        lease: u64,
        after_secs: u64,
    },
    StandbyGone {
        lease: u64,
        why: StandbyGone,
    },
    MoveBegins {
        from: u64,
        to: u64,
        used_pct: u32,
    },
    MoveWaits {
        lease: u64,
        why: MoveWaits,
    },
    DrainOver {
        lease: u64,
    },
    /// Seconds left at two hosts' cost less income; `None`: without end.
    Runway {
        secs: Option<u64>,
        before: Level,
        level: Level,
    },
    PriceSet {
        price: Price,
        floor: Usdc,
        busy_pct: u32,
    },
    Seed {
        amount: Usdc,
    },
    Gift {
        from: Address,
        amount: Usdc,
    },
    /// More money on chain than any event explains: booked as a gift.
    Unexplained {
        amount: Usdc,
    },
    BooksDontBalance {
        account: Side,
        chain: Usdc,
        ledger: i128,
    },
    BooksBalanceAgain,
    Reorg {
        block: u64,
    },
    Paused,
    Resumed,
    Challenged {
        at: u64,
    },
    CheckpointAcknowledged {
        seq: u64,
    },
    TaskFailed {
        task: Task,
        reason: String,
        retry_at: u64,
    },
    TaskUnknown {
        task: Task,
    },
    /// Unknown for so long that it is tried again; the chain itself forbids that it happens twice.
    TaskLost {
        task: Task,
    },
    GaveUp {
        task: Task,
    },
    EscrowShort {
        needed: Usdc,
        left: Usdc,
    },
    GasLow {
        operator_wei: u128,
        relay_wei: u128,
    },
    /// What the treasury has for gas is nearly gone, and `max` may be spent on more.
    BuysGas {
        treasury_wei: u128,
        max: Usdc,
    },
    GasBought {
        amount: Usdc,
    },
    /// A quorum changed what the treasury allows.
    LimitsChanged {
        before: Limits,
        after: Limits,
    },
    PurseFilled {
        amount: Usdc,
    },
    PurseReturned {
        amount: Usdc,
    },
    Ending {
        why: StopWhy,
    },
    EndingCalledOff {
        funds: Usdc,
    },
    WindingDown {
        until: u64,
    },
    Closed {
        earned: Usdc,
        rent: Usdc,
        gifts: Usdc,
        refunds: Usdc,
    },
    CodeChanged {
        digest: [u8; 32],
    },
    StoragePaid {
        amount: Usdc,
    },
    /// The archivist asks for more than a day may take: nothing is paid.
    ArchiveTooDear {
        price: Usdc,
        most: Usdc,
    },
    /// It gives its hosts up with so much left, and stewards wake it when there is as much as `wakes_at`.
    Hibernates {
        until: u64,
        funds: Usdc,
        wakes_at: Usdc,
    },
}

impl Note {
    /// A word for machines that sort lines by what they are about.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Booted { .. } | Self::LivesOn { .. } | Self::CodeChanged { .. } => "life",
            Self::ChoseHost { .. }
            | Self::NoHost { .. }
            | Self::StandbyReady { .. }
            | Self::StandbyGone { .. }
            | Self::DrainOver { .. } => "host",
            Self::MoveBegins { .. } | Self::MoveWaits { .. } => "move",
            Self::Runway { .. } => "runway",
            Self::PriceSet { .. } => "price",
            Self::Seed { .. } | Self::Gift { .. } | Self::Unexplained { .. } => "income",
            Self::BooksDontBalance { .. } | Self::BooksBalanceAgain | Self::Reorg { .. } => "books",
            Self::Paused | Self::Resumed | Self::Challenged { .. } | Self::LimitsChanged { .. } => "oversight",
            Self::CheckpointAcknowledged { .. } => "checkpoint",
            Self::TaskFailed { .. } | Self::TaskUnknown { .. } | Self::TaskLost { .. } | Self::GaveUp { .. } => {
                "trouble"
            }
            Self::EscrowShort { .. } | Self::GasLow { .. } | Self::BuysGas { .. } | Self::ArchiveTooDear { .. } => {
                "limit"
            }
            Self::StoragePaid { .. } => "archive",
            Self::GasBought { .. } => "gas",
            Self::PurseFilled { .. } | Self::PurseReturned { .. } => "purse",
            Self::Ending { .. }
            | Self::EndingCalledOff { .. }
            | Self::WindingDown { .. }
            | Self::Closed { .. }
            | Self::Hibernates { .. } => "end",
        }
    }
}

/// The two sums that are compared with the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Side {
    Balance,
    Escrow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub enum NoHost {
    /// No offer fits term, price cap and room.
    NoneFits,
    /// Only the active host's owner offers.
    SameOwner,
    /// All that fit failed lately.
    AllFailed,
    DayLimit,
    Money,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum StandbyGone {
    NeverReady,
    Silent {
        secs: u64,
    },
    TooOld {
        left_pct: u32,
    },
    /// To save its rent.
    Hunger,
    SameOwner,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum MoveWaits {
    NoStandby,
    NotReady,
    Silent,
    Unable,
}

/// How hungry the agent is, by its runway. Ordered: later is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, BorshSerialize, BorshDeserialize)]
pub enum Level {
    #[default]
    Fed,
    Under7Days,
    Under3Days,
    /// Under one day: no standby any more.
    Frugal,
    /// Not enough left but to end in good order.
    Final,
}

/// The first and last two bytes of an address: enough to tell hosts apart in a line.
struct Short<'a>(&'a Address);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = self.0;
        write!(f, "0x{:02x}{:02x}..{:02x}{:02x}", a[0], a[1], a[18], a[19])
    }
}

/// `$0.92`, to the nearest cent; sums under a cent with all six decimals. Display only.
struct Dollars(Usdc);

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micro = self.0.0;
        if micro > 0 && micro < 10_000 {
            return write!(f, "$0.{micro:06}");
        }
        let cents = micro.saturating_add(5_000) / 10_000;
        write!(f, "${}.{:02}", cents / 100, cents % 100)
    }
}

impl fmt::Display for NoHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoneFits => "no offer fits in term, price cap and room",
            Self::SameOwner => "only the active host's owner offers, and two leases never share an owner",
            Self::AllFailed => "all that fit failed lately",
            Self::DayLimit => "the day limit leaves no room",
            Self::Money => "the treasury must first cover the active host",
        })
    }
}

impl fmt::Display for StandbyGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeverReady => f.write_str("it was not ready in time"),
            Self::Silent { secs } => write!(f, "it has not answered for {secs} s"),
            Self::TooOld { left_pct } => {
                write!(f, "only {left_pct} % of its term would be left at the move: a fresh one follows")
            }
            Self::Hunger => f.write_str("the money is better kept for the active host"),
            Self::SameOwner => f.write_str("it belongs to the active host's owner"),
            Self::Ended => f.write_str("its term is over"),
        }
    }
}

impl fmt::Display for MoveWaits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStandby => "there is no standby",
            Self::NotReady => "the standby is not ready yet",
            Self::Silent => "the standby has not answered lately",
            Self::Unable => "the standby says that it is not able to lead yet",
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fed => "fed",
            Self::Under7Days => "under seven days",
            Self::Under3Days => "under three days",
            Self::Frugal => "under one day, no standby",
            Self::Final => "final",
        })
    }
}

/// Each limit that is not what it was, with both values.
fn limits_changed(before: &Limits, after: &Limits, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Limits { day_limit, price_e6_max, term_max, prepay_max, gas_day_max_wei, gas_target_wei, starve_floor } =
        before;
    let both: [(&str, &dyn fmt::Display, &dyn fmt::Display); 7] = [
        ("a day", day_limit, &after.day_limit),
        ("price x 1e6 a second", price_e6_max, &after.price_e6_max),
        ("term in seconds", term_max, &after.term_max),
        ("prepaid seconds", prepay_max, &after.prepay_max),
        ("wei for gas a day", gas_day_max_wei, &after.gas_day_max_wei),
        ("wei for operator and relay", gas_target_wei, &after.gas_target_wei),
        ("floor", starve_floor, &after.starve_floor),
    ];
    let mut separator = "";
    for (what, was, is) in both {
        let (was, is) = (was.to_string(), is.to_string());
        if was != is {
            write!(f, "{separator} {what} {was} -> {is}")?;
            separator = ",";
        }
    }
    Ok(())
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booted { epoch, lease, restored } => {
                let memory = if *restored { ", memory restored from the last acknowledged checkpoint" } else { "" };
                write!(f, "began to run on lease {lease} in epoch {epoch}{memory}")
            }
            Self::LivesOn { epoch, lease, provider } => {
                write!(f, "lives on lease {lease} of {} since epoch {epoch}", Short(provider))
            }
            Self::ChoseHost { offer, provider, rent_day, of, penalised, newcomer } => {
                let record = match (newcomer, penalised) {
                    (true, _) => ", no record yet",
                    (false, true) => ", in spite of its record",
                    (false, false) => "",
                };
                write!(
                    f,
                    "chose offer {offer} of {} at {}/day: cheapest per served token of {of}, other owner than the active host{record}",
                    Short(provider),
                    Dollars(*rent_day)
                )
            }
            Self::NoHost { why } => write!(f, "rents no standby: {why}"),
            Self::StandbyReady { lease, after_secs } => {
                write!(f, "standby on lease {lease} is ready after {after_secs} s")
            }
            Self::StandbyGone { lease, why } => write!(f, "releases the standby on lease {lease}: {why}"),
            Self::MoveBegins { from, to, used_pct } => {
                write!(f, "moves from lease {from} to lease {to}: {used_pct} % of its term is used")
            }
            Self::MoveWaits { lease, why } => write!(f, "should leave lease {lease} but waits: {why}"),
            Self::DrainOver { lease } => write!(f, "releases lease {lease}: the old node has finished"),
            Self::Runway { secs, before, level } => {
                let what = if level > before { "runway alarm" } else { "runway recovers" };
                match secs {
                    None => write!(f, "{what}: income covers the rent ({level})"),
                    Some(secs) => write!(f, "{what}: {secs} s left with two hosts ({level})"),
                }
            }
            Self::PriceSet { price, floor, busy_pct } => write!(
                f,
                "sells a million tokens at {} (prompt {}, cached {}, embedded {}), at least {} a call: floor {}, {busy_pct} % busy",
                Dollars(price.mtok_completion_uusdc),
                Dollars(price.mtok_prompt_uusdc),
                Dollars(price.mtok_cached_uusdc),
                Dollars(price.mtok_embedding_uusdc),
                Dollars(price.call_uusdc),
                Dollars(*floor)
            ),
            Self::Seed { amount } => write!(f, "seed of {amount}"),
            Self::Gift { from, amount } => write!(f, "gift of {amount} from {}", Short(from)),
            Self::Unexplained { amount } => write!(f, "{amount} came in that no event explains: booked as a gift"),
            Self::BooksDontBalance { account, chain, ledger } => {
                let account = match account {
                    Side::Balance => "balance",
                    Side::Escrow => "escrow",
                };
                write!(
                    f,
                    "books do not balance: {account} on chain is {chain}, the ledger says {ledger} micro-USDC; spending stops"
                )
            }
            Self::BooksBalanceAgain => f.write_str("books balance again; spending goes on"),
            Self::Reorg { block } => write!(f, "the chain took block {block} back: entries reversed"),
            Self::Paused => f.write_str("paused by the stewards: no money leaves; serving goes on"),
            Self::Resumed => f.write_str("resumed by the stewards"),
            Self::Challenged { at } => write!(f, "challenged at {at}: answers by a heartbeat"),
            Self::CheckpointAcknowledged { seq } => write!(f, "checkpoint {seq} is acknowledged"),
            Self::TaskFailed { task, reason, retry_at } => {
                write!(f, "{task} failed: {reason}; tried again from {retry_at} on")
            }
            Self::TaskUnknown { task } => {
                write!(f, "nobody knows what became of a {task}: waits for the chain to tell")
            }
            Self::TaskLost { task } => write!(f, "the chain shows no trace of a {task}: tries again"),
            Self::GaveUp { task } => write!(f, "gave up on a {task} after several attempts"),
            Self::EscrowShort { needed, left } => {
                write!(f, "escrow needs {needed}, day limit and balance leave {left}: waits")
            }
            Self::GasLow { operator_wei, relay_wei } => {
                write!(f, "gas is low (operator {operator_wei} wei, relay {relay_wei} wei): asks the treasury for more")
            }
            Self::BuysGas { treasury_wei, max } => {
                write!(f, "the treasury has {treasury_wei} wei left for gas: buys more for at most {max}")
            }
            Self::GasBought { amount } => write!(f, "bought gas for {amount}"),
            Self::LimitsChanged { before, after } => {
                f.write_str("the stewards changed its limits:")?;
                limits_changed(before, after, f)
            }
            Self::StoragePaid { amount } => write!(f, "paid {amount} to the archivist for a copy of its memory"),
            Self::ArchiveTooDear { price, most } => {
                write!(f, "the archivist asks {price} for a copy of its memory, a day may take {most}: nothing is paid")
            }
            Self::PurseFilled { amount } => write!(f, "puts {amount} into the purse, to buy with"),
            Self::PurseReturned { amount } => write!(f, "{amount} came back from the purse"),
            Self::Ending { why } => write!(f, "stops selling and settles its affairs: {why}"),
            Self::EndingCalledOff { funds } => write!(f, "goes on: {funds} at hand"),
            Self::WindingDown { until } => write!(f, "winds down; the treasury can be closed from {until} on"),
            Self::Closed { earned, rent, gifts, refunds } => {
                write!(f, "closed: earned {earned}, rent {rent}, gifts {gifts}, refunds {refunds}")
            }
            Self::Hibernates { until, funds, wakes_at } => {
                write!(f, "lies down with {funds}, until {until} at most: stewards wake it once there is {wakes_at}")
            }
            Self::CodeChanged { digest } => write!(
                f,
                "another build goes on from here: {:02x}{:02x}{:02x}{:02x}",
                digest[0], digest[1], digest[2], digest[3]
            ),
        }
    }
}
