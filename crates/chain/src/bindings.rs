//! Rust types of the contracts, made from the committed ABI and bytecode in `contracts/abi`.
//!
//! Struct types come out of a JSON ABI inside a module named after the Solidity interface that declares them;
//! the short names at the end are the ones to use. Solidity's enums come out as `u8`: [`Stage`] and
//! [`LeaseStatus`] name their values.

mod treasury {
    alloy::sol!(
        #![sol(all_derives)]
        Treasury,
        "../../contracts/abi/Treasury.json"
    );
}

mod market {
    alloy::sol!(
        #![sol(all_derives)]
        LeaseMarket,
        "../../contracts/abi/LeaseMarket.json"
    );
}

mod factory {
    alloy::sol!(
        #![sol(all_derives)]
        TreasuryFactory,
        "../../contracts/abi/TreasuryFactory.json"
    );
}

mod oversight {
    alloy::sol!(
        #![sol(all_derives)]
        Oversight,
        "../../contracts/abi/Oversight.json"
    );
}

mod usdc {
    alloy::sol!(
        #![sol(all_derives)]
        TestUSDC,
        "../../contracts/abi/TestUSDC.json"
    );
}

mod channel {
    alloy::sol!(
        #![sol(all_derives)]
        BatchSettlement,
        "../../contracts/abi/BatchSettlement.json"
    );
}

mod collector {
    alloy::sol!(
        #![sol(all_derives)]
        DepositCollector3009,
        "../../contracts/abi/DepositCollector3009.json"
    );
}

mod permit2 {
    alloy::sol!(
        #![sol(all_derives)]
        Permit2,
        "../../contracts/abi/Permit2.json"
    );
}

mod exact_proxy {
    alloy::sol!(
        #![sol(all_derives)]
        ExactPermit2Proxy,
        "../../contracts/abi/ExactPermit2Proxy.json"
    );
}

mod upto_proxy {
    alloy::sol!(
        #![sol(all_derives)]
        UptoPermit2Proxy,
        "../../contracts/abi/UptoPermit2Proxy.json"
    );
}

mod identity {
    alloy::sol!(
        #![sol(all_derives)]
        IdentityRegistry,
        "../../contracts/abi/IdentityRegistry.json"
    );
}

mod multicall {
    alloy::sol!(
        #![sol(all_derives)]
        Multicall3,
        "../../contracts/abi/Multicall3.json"
    );
}

pub use channel::BatchSettlement;
pub use collector::DepositCollector3009;
pub use exact_proxy::ExactPermit2Proxy;
pub use factory::TreasuryFactory;
pub use identity::IdentityRegistry;
pub use market::{ILeaseMarket, LeaseMarket};
pub use multicall::Multicall3;
pub use oversight::Oversight;
pub use permit2::Permit2;
pub use treasury::{ITreasury, Treasury};
pub use upto_proxy::UptoPermit2Proxy;
pub use usdc::TestUSDC;

pub use ILeaseMarket::{Lease, Offer, Record};
pub use ITreasury::{
    Approval, Birth, ChannelConfig, GasMarket, Options, Payee, Policy, Standing, State, Timers, Voucher, VoucherClaim,
};
pub use LeaseMarket::LeaseMarketEvents as MarketEvent;
pub use Treasury::TreasuryEvents as TreasuryEvent;

use alloy::primitives::{Address, address};

/// What is asked of a price feed of Chainlink's kind.
pub mod price_feed {
    alloy::sol! {
        function decimals() external view returns (uint8);
        function latestRoundData() external view returns (uint80 roundId, int256 answer, uint256 startedAt, uint256 updatedAt, uint80 answeredInRound);
    }
}

/// The ERC-8004 identity registry: one address on Ethereum, Base and the other main nets
/// (<https://github.com/erc-8004/erc-8004-contracts>). Development chains have ours there.
pub const IDENTITY_REGISTRY: Address = address!("8004A169FB4a3325136EB29fA0ceB6D2e539a432");

/// Through which x402's `exact` and `upto` move tokens by Permit2; the same addresses on every chain
/// (`@x402/evm` 2.27.0). Development chains have ours there.
pub const X402_PROXIES: [Address; 2] =
    [address!("402085c248EeA27D92E8b30b2C58ed07f9E20001"), address!("4020A4f3b7b90ccA423B9fabCc0CE57C6C240002")];

/// Where the shared contracts of a world live. A treasury has an address of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The token: USDC, six decimals.
    pub usdc: Address,
    /// The lease market; all its rents are in `usdc`.
    pub market: Address,
    /// Creates treasuries.
    pub factory: Address,
}

/// What a treasury is doing: `ITreasury.Stage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Created, not yet activated (or not created at all).
    Unborn,
    /// The ordinary life.
    Alive,
    /// Stopped by the stewards; anyone may wind it down.
    Stopped,
    /// Refunds are open, `close` follows.
    WindingDown,
    /// The end: the beneficiary pulls.
    Closed,
}

impl State {
    /// The stage by name. The contract has no other values, so an unknown one means a foreign contract: it reads
    /// as [`Stage::Closed`], in which nothing is signed any more.
    pub fn stage(&self) -> Stage {
        match self.stage {
            0 => Stage::Unborn,
            1 => Stage::Alive,
            2 => Stage::Stopped,
            3 => Stage::WindingDown,
            _ => Stage::Closed,
        }
    }
}

/// Where a lease stands: `ILeaseMarket.LeaseState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseStatus {
    /// No such lease.
    None,
    /// Rented, and the provider has until `readyBy`.
    Requested,
    /// Running, or past its end and not closed yet.
    Ready,
    /// Paid out.
    Closed,
}

impl Lease {
    /// The lease's state by name. An unknown value means a foreign contract and reads as closed.
    pub fn status(&self) -> LeaseStatus {
        match self.state {
            0 => LeaseStatus::None,
            1 => LeaseStatus::Requested,
            2 => LeaseStatus::Ready,
            _ => LeaseStatus::Closed,
        }
    }
}
