//! End to end, with real processes: whole worlds as `vivarium up` starts them.

mod archivist;
mod batches;
mod bench;
mod crashes;
mod deposits;
mod disturbed;
mod drain;
mod facilitator;
mod faults;
mod identity;
mod leaving;
mod life;
mod own_models;
mod partitions;
mod proxy;
mod rebuild;
mod receipts;
mod refusals;
mod settling;
mod sim;
mod sleep;
mod store;
mod stub;
mod suppliers;
mod verify;
mod world;
