//! One file a command.

pub mod ask;
pub mod audit;
pub mod bench;
pub mod birth;
pub mod conversations;
pub mod engine;
pub mod facilitator;
pub mod fund;
pub mod launch;
pub mod link;
pub mod log;
pub mod node;
pub mod provider;
pub mod proxy;
pub mod receipt;
pub mod sim;
pub mod status;
pub mod steward;
pub mod store;
pub mod up;
pub mod verify;
pub mod watch;
