//! The crate from outside: our seller and our buyer against each other and against the official packages.

mod buyer;
mod chain;
mod channels;
mod conformance;
mod example;
mod fuzz;
mod golden;
mod market;
mod schemes;
mod shop;
mod table;
