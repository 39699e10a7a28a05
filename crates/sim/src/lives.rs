//! Whole lives from one seed, while faults rain: shipped machines on the contracts' bytecode, in simulated time.
//!
//! What is shipped: `economy::Agent`, `chain::outbox::Outbox`, `chain::logs::LogCore`, `pay::ChannelBook`, `economy::Silence`, `journal::log`,
//! `journal::Gate`, `steward::share`, the contracts.
//! What stands in for the rest (the node's wiring, stewards' daemons, providers, customers, endpoints) is here and honest;
//! whoever is not is a [`Fault`]. An auditor written apart ([`crate::audit`], and the end of [`life`]) looks after every
//! transaction and block. docs/reference/sim.md says what is left out.
//!
//! Read in this order: this file, [`chain`], [`disk`], [`node`], [`channels`], [`shares`], [`moving`], [`life`].

mod chain;
mod channels;
mod disk;
mod life;
mod moving;
mod node;
mod shares;

use crate::Chance;
use economy::DAY_SECS;
use std::fmt;

/// What goes wrong, now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The endpoint takes a transaction and its answer is lost, or loses both.
    RpcDrop,
    /// The endpoint is one to three blocks behind.
    RpcLag,
    /// The endpoint says that calls would revert which would not, and hides receipts.
    RpcLie,
    /// The endpoint is gone for some hours.
    RpcDown,
    /// One to three blocks never happened.
    Reorg,
    /// The node's process dies between two of its acts, and starts again from what it kept.
    Crash,
    /// The active host is gone for good, with everything on it.
    HostGone,
    /// A host that was given up still has the old key, and uses it.
    OldKey,
    /// A standby's host falls silent for good.
    StandbyGone,
    /// A rented host is not made ready.
    NeverReady,
    /// A provider doubles its price.
    PriceRaise,
    /// Stewards pause, and resume half a day later.
    Pause,
    /// Customers pay and get nothing.
    Unserved,
    /// The token freezes the treasury for some hours.
    Frozen,
    /// Gas costs a thousand times as much for some hours, or more than anybody here pays.
    FeeSpike,
    /// For half a day one steward too few acknowledges checkpoints, and nobody is rescued.
    StewardsSilent,
    /// The power fails while the node's journal is written: its last write is torn at any byte.
    TornTail,
    /// The node's disk takes no writes for some hours.
    FullDisk,
    /// What a node and its announced successor say to each other is lost, comes late or comes twice.
    PeerDrop,
    /// The pool forgets the node's next transaction, so that those after it wait.
    NonceGap,
    /// Strangers give a little, settle what is due before the agent does, settle what was settled again, or have the market
    /// pay what it owes.
    ThirdParty,
    /// The clock by which a node paces what it tries again stands still, or jumps ahead by hours.
    ClockSkew,
    /// The block of a handover, which a successor has acted on already, never happened.
    UndoneMove,
    /// The pool keeps a handover until it is too late for it.
    LateHandover,
    /// Nobody buys, until the agent has slept for want of money and a patron has it woken.
    Hunger,
}

impl Fault {
    pub const ALL: [Self; 25] = [
        Self::RpcDrop,
        Self::RpcLag,
        Self::RpcLie,
        Self::RpcDown,
        Self::Reorg,
        Self::Crash,
        Self::HostGone,
        Self::OldKey,
        Self::StandbyGone,
        Self::NeverReady,
        Self::PriceRaise,
        Self::Pause,
        Self::Unserved,
        Self::Frozen,
        Self::FeeSpike,
        Self::StewardsSilent,
        Self::TornTail,
        Self::FullDisk,
        Self::PeerDrop,
        Self::NonceGap,
        Self::ThirdParty,
        Self::ClockSkew,
        Self::UndoneMove,
        Self::LateHandover,
        Self::Hunger,
    ];

    /// A crash in each life, and every other fault in about a third of them: what very many lives are lived with.
    pub fn some_of(seed: u64) -> Vec<Self> {
        let mut chance = Chance::new(seed ^ 0x11fe);
        Self::ALL.into_iter().filter(|fault| *fault == Self::Crash || chance.of_1000(333)).collect()
    }

    /// As `--faults` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RpcDrop => "rpc-drop",
            Self::RpcLag => "rpc-lag",
            Self::RpcLie => "rpc-lie",
            Self::RpcDown => "rpc-down",
            Self::Reorg => "reorg",
            Self::Crash => "crash",
            Self::HostGone => "host-gone",
            Self::OldKey => "old-key",
            Self::StandbyGone => "standby-gone",
            Self::NeverReady => "never-ready",
            Self::PriceRaise => "price-raise",
            Self::Pause => "pause",
            Self::Unserved => "unserved",
            Self::Frozen => "frozen",
            Self::FeeSpike => "fee-spike",
            Self::StewardsSilent => "stewards-silent",
            Self::TornTail => "torn-tail",
            Self::FullDisk => "full-disk",
            Self::PeerDrop => "peer-drop",
            Self::NonceGap => "nonce-gap",
            Self::ThirdParty => "third-party",
            Self::ClockSkew => "clock-skew",
            Self::UndoneMove => "undone-move",
            Self::LateHandover => "late-handover",
            Self::Hunger => "hunger",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Of a thousand occasions, so many have it: requests to the endpoint, blocks, rented leases, calls or handovers.
    fn permille(self) -> u64 {
        match self {
            Self::RpcDrop | Self::RpcLie | Self::Unserved => 60,
            Self::RpcLag | Self::NonceGap => 150,
            Self::ClockSkew => 100,
            Self::Reorg | Self::ThirdParty => 30,
            Self::Crash | Self::OldKey | Self::TornTail => 20,
            Self::NeverReady => 200,
            Self::PeerDrop => 300,
            Self::UndoneMove | Self::LateHandover => 400,
            Self::RpcDown
            | Self::HostGone
            | Self::StandbyGone
            | Self::PriceRaise
            | Self::Pause
            | Self::Frozen
            | Self::FeeSpike
            | Self::StewardsSilent
            | Self::FullDisk => 4,
            // Of lives that have it, all.
            Self::Hunger => 1_000,
        }
    }
}

/// A wrong world, planted: what the auditor is worth is how many of these it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Money out of nothing.
    MadeMoney,
    /// The ledger never hears of rent.
    DeafLedger,
    /// A key that nobody appointed is the operator.
    UsurpedKey,
    /// What was paid for is not delivered, and the book says that it was.
    ChargedForNothing,
    /// The contract takes more in a day than birth allows.
    LooseDayLimit,
    /// The checkpoint's number goes back.
    ForgottenCheckpoint,
    /// A lease is left behind by the end.
    StrandedLease,
    /// A pause does not hold.
    UnheldPause,
    /// What a record caused leaves before the record is on the disk, and the power fails.
    EarlyOutput,
    /// The disk forgets what it said was synced.
    ForgetfulDisk,
    /// No standby looks whether its operator is silent.
    SleepingStandby,
    /// Stewards give their shares to whoever asks.
    CarelessStewards,
    /// The memory opens with one share.
    OneShareOpens,
    /// While a handover is on its way, what leaves does not wait for the successor's disk.
    HurriedMove,
    /// What waited for the successor's disk waits on when the handover is over.
    ShutGate,
    /// A node that is operator again, because the block of its handover is gone, goes on from the last checkpoint.
    ForgottenOffice,
    /// The agent takes more for a call than the customer authorised.
    Overcharge,
    /// More is claimed from a channel than was delivered.
    GreedyClaim,
}

impl Bug {
    /// Each with what it breaks: an invariant, or what a machine promises.
    pub const ALL: [(Self, &str); 18] = [
        (Self::MadeMoney, "I1"),
        (Self::DeafLedger, "I1"),
        (Self::UsurpedKey, "I2"),
        (Self::ChargedForNothing, "I3"),
        (Self::LooseDayLimit, "I4"),
        (Self::ForgottenCheckpoint, "I5"),
        (Self::StrandedLease, "I6"),
        (Self::UnheldPause, "I7"),
        (Self::EarlyOutput, "output commit"),
        (Self::ForgetfulDisk, "journal"),
        (Self::SleepingStandby, "takeover"),
        (Self::CarelessStewards, "shares"),
        (Self::OneShareOpens, "shares"),
        (Self::HurriedMove, "moving"),
        (Self::ShutGate, "moving"),
        (Self::ForgottenOffice, "moving"),
        (Self::Overcharge, "I3"),
        (Self::GreedyClaim, "I3"),
    ];
}

/// How much of a life there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Days, on leases of six days.
    Whole,
    /// Eleven hours on leases of twelve, with a move in them; faults come eight times as often. For very many lives.
    Short,
}

impl Pace {
    /// Of a lease.
    fn term_secs(self) -> u32 {
        match self {
            Self::Whole => 6 * DAY_SECS,
            Self::Short => DAY_SECS / 2,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub seed: u64,
    /// Ascending.
    pub faults: Vec<Fault>,
    /// Until stewards stop it and it closes its affairs; a short life has its own time.
    pub days: u64,
    pub pace: Pace,
    pub bug: Option<Bug>,
}

impl Setting {
    /// Until stewards stop it.
    fn life_secs(&self) -> u64 {
        match self.pace {
            Pace::Whole => self.days * u64::from(DAY_SECS),
            Pace::Short => SHORT_SECS,
        }
    }
}

/// Of a short life: past the time of its first move, before its lease ends.
const SHORT_SECS: u64 = 11 * 3_600;

/// Days of an ordinary life: with leases of six days, two moves at least.
pub const DAYS: u64 = 8;

/// What became of a life that broke nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lived {
    /// Simulated, from birth to close.
    pub secs: u64,
    pub blocks: u64,
    /// Transactions that were carried out, and that were refused.
    pub done: u64,
    pub refused: u64,
    pub calls: u64,
    /// Served on channels.
    pub channel_calls: u64,
    pub moves: u64,
    /// Of these, so many in which the successor began without the old node's last words.
    pub cut_short: u64,
    /// Further moves, each of which a branch took back.
    pub undone: u64,
    pub takeovers: u64,
    /// Of silent operators, by their standbys; refused ones included.
    pub challenges: u64,
    /// Shares that stewards gave to operators that had to restore, and refused to others.
    pub shares: u64,
    pub shares_refused: u64,
    /// Orders of the quorum, refused ones included.
    pub rescues: u64,
    /// Blocks in which the market owed it what a frozen token had refused.
    pub owed_blocks: u64,
    /// Micro-USDC that lay in channels when it was closed: payers had to take it out by themselves.
    pub left_in_channels: u128,
    /// Its host was gone and no other was to be had: stewards stopped it and closed its affairs.
    pub given_up: bool,
    /// How often each fault really came.
    pub faults: Vec<(Fault, u64)>,
    /// How often its process died, by moment.
    pub crashes: Vec<(String, u64)>,
    /// sha2-256 of all that was told: equal for equal seeds.
    pub digest: [u8; 32],
}

/// An invariant that does not hold, and how it came to that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub setting: Setting,
    /// Its number in DESIGN §12, or the machine whose promise it was; and in words.
    pub what: String,
    /// The last events, oldest first.
    pub story: Vec<String>,
}

impl Broken {
    /// The one line that repeats it.
    pub fn command(&self) -> String {
        let faults: Vec<&str> = self.setting.faults.iter().map(|fault| fault.name()).collect();
        let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(",") };
        let length = match self.setting.pace {
            Pace::Whole => format!("--days {}", self.setting.days),
            Pace::Short => "--short".to_owned(),
        };
        format!("vivarium sim --from {} --seeds 1 --faults {faults} {length}", self.setting.seed)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.setting.seed, self.what)?;
        for event in &self.story {
            writeln!(f, "  {event}")?;
        }
        write!(f, "repeat: {}", self.command())
    }
}

/// Lives a life.
///
/// # Errors
/// An invariant does not hold.
///
/// # Panics
/// A machine's own assertion does not hold: a broken invariant, too.
pub fn live(setting: &Setting) -> Result<Lived, Box<Broken>> {
    life::Life::born(setting.clone()).live()
}
