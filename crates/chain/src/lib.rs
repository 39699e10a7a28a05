//! The chain as the rest of the project sees it: typed reads, orders that stewards sign, an outbox that neither
//! loses nor doubles a transaction, and a log reader that notices reorgs.
//!
//! Two cores here are pure machines ([`outbox::Outbox`] and [`logs::LogCore`]): they are told blocks, receipts and
//! failures, and say what to do. [`sender`] and [`logs::LogReader`] drive them over RPC. No decision about money is
//! made in this crate.

pub mod anvil;
pub mod audit;
pub mod bindings;
pub mod deploy;
mod error;
pub mod heads;
pub mod history;
pub mod logs;
pub mod market;
pub mod orders;
pub mod outbox;
pub mod preflight;
mod rpc;
pub mod safe;
pub mod sender;
pub mod treasury;
pub mod usdc;

pub use alloy;
pub use bindings::{Addresses, LeaseStatus, Stage};
pub use error::{Error, Kind, Revert};
pub use market::{LeaseView, MarketClient, OfferView};
pub use rpc::{Chain, Head};
pub use safe::Safe;
pub use sender::{Outcome, Sender, SenderHandle, Tx};
pub use treasury::{Snapshot, TreasuryClient};
pub use usdc::{Signing, UsdcClient};

use alloy::primitives::Address;

impl Chain {
    /// Reads of the treasury at `address`.
    pub fn treasury(&self, address: Address) -> TreasuryClient {
        TreasuryClient { chain: self.clone(), address }
    }

    /// Reads of the lease market at `address`.
    pub fn market(&self, address: Address) -> MarketClient {
        MarketClient { chain: self.clone(), address }
    }

    /// Reads of the token at `address`.
    pub fn usdc(&self, address: Address) -> UsdcClient {
        UsdcClient { chain: self.clone(), address }
    }
}
