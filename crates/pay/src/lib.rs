//! x402 payments: the seller's side, the buyer's side and the book between them.
//!
//! Read in this order: [`wire`] (what goes over HTTP), [`scheme`] (what is signed), [`book`] (the pure fold that
//! knows who owes what), [`risk`] (when a payment is settled, and what waits for it), [`seller`] and [`buyer`] (what an
//! HTTP handler and an HTTP client call), [`facilitator`] (settling for others, and having others settle), [`receipt`].
//!
//! **Invariant:** no price is decided and no transaction is sent here. Prices come in as values, settlements leave
//! as intents ([`Settle`]), outcomes come back as inputs of the book.
//! **Invariant:** only [`buyer`] and [`facilitator::remote`] do I/O and read a clock, and only the first rolls dice.

pub mod book;
pub mod buyer;
pub mod facilitator;
pub mod meter;
mod reason;
pub mod receipt;
pub mod risk;
pub mod scheme;
pub mod seller;
pub mod wire;

pub use book::{BookInput, BookOutput, ChannelBook, Decision, RequestId};
pub use buyer::{Buyer, BuyerPolicy};
pub use economy::Usdc;
pub use reason::{Reason, Refusal};
pub use receipt::Receipt;
pub use risk::RiskPolicy;
pub use scheme::exact::{SettleExact, Verified};
pub use scheme::{Settle, TransferMethod};
pub use seller::offers::{Accepted, ChannelPrice, ChannelTerms, Prices, Taken, Terms};
pub use seller::{Challenge, Seller};
