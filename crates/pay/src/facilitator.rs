//! Between sellers and the chain, in both directions: settling for others ([`api`], [`account`]), having others settle
//! ([`remote`]), and several settlements in one transaction ([`batch`], [`multicall`]).
//!
//! All but [`remote`] is pure. What a facilitator says is never proof: the chain is asked.

pub mod account;
pub mod api;
pub mod batch;
pub mod multicall;
pub mod remote;
