//! The crate from outside: our seller and our buyer against each other and against the official packages.

mod batches;
mod buyer;
mod chain;
mod channels;
mod conformance;
mod example;
mod external;
mod fuzz;
mod golden;
mod grief;
mod market;
mod network;
mod purse;
mod schemes;
mod shop;
mod table;
mod wallets;

#[path = "../../../../tests/simulated.rs"]
mod simulated;
