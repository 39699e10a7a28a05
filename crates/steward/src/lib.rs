//! The steward daemon: one of k of n that watch over an agent. It acknowledges checkpoints, keeps the headers of
//! sealed segments, holds a share of the memory key, challenges a silent operator and prepares a rescue.
//!
//! Read in this order: [`config`], [`watch`] (when it acts by itself, pure), [`suspicion`]
//! (when it proposes that a host be evicted, pure), [`again`] (when what came to nothing is tried again, pure), [`unread`]
//! (agents that cannot be read while others can, pure), [`ack`] (when it acknowledges, pure),
//! [`segments`] (which headers it keeps, pure), [`share`] (who gets its share of a key, pure), [`refusal`] (every no has a name), [`eyes`] (the chain, through one
//! or two endpoints that must agree), [`agent`] (what it remembers, on disk), [`desk`] (the answers, route by
//! route), [`limits`] (how often each may be asked for, pure), [`api`], [`rescue`], [`finder`] (which treasuries are this steward's), [`daemon`]; and [`orders`], which people use.
//!
//! **Invariant:** the daemon signs two things only, an acknowledgement and, where birth allowed it, a `rescue`. What
//! pauses, stops or evicts is signed by a person, through [`orders`].
//! **Invariant:** nothing is signed before what it rests on is on the disk, and nothing on the word of a caller:
//! the chain is read for each decision.

pub mod ack;
pub mod again;
pub mod agent;
pub mod api;
pub mod config;
pub mod daemon;
pub mod desk;
pub mod eyes;
pub mod finder;
pub mod limits;
pub mod orders;
pub mod refusal;
pub mod rescue;
pub mod segments;
pub mod share;
#[cfg(test)]
mod stand_in;
pub mod suspicion;
pub mod unread;
pub mod watch;

pub use config::StewardConfig;
pub use daemon::run;
pub use refusal::Refusal;
