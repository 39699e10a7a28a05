//! The crate from outside: our seller and our buyer against each other and against the official packages.

mod buyer;
mod conformance;
mod golden;
mod shop;
