//! Payment schemes, a folder each with the same rooms: `types` (what is signed), `client` (signing),
//! `server` (verifying, no I/O) and `facilitator` (what the chain says about a settlement).

pub mod exact;
