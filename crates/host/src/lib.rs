//! The provider daemon: it offers a machine on the lease market, runs each tenant's code in a sandbox while
//! the chain says so, and takes everything away again when the chain says so.
//!
//! Read in this order: [`config`] (what a provider writes down), [`lease_loop`] (every decision, pure),
//! [`offer`] (what it asks for), [`sandbox`] (what a tenant may see), [`tenant`] (one running process),
//! [`lease_dir`] (what a lease leaves on the disk), [`code`] (the tenant's program by CID), [`market`] (the
//! chain), [`daemon`] (the loop that joins them), [`api`] (`/status`).
//!
//! **Invariant:** nothing here depends on `node`. A tenant is a directory of bytes named by the chain; the
//! daemon knows its command line, its first line of output and nothing else.

pub mod api;
pub mod code;
pub mod config;
pub mod daemon;
pub mod error;
pub mod lease_dir;
pub mod lease_loop;
pub mod market;
pub mod offer;
pub mod sandbox;
pub mod sender;
pub mod tenant;

pub use config::HostConfig;
pub use daemon::run;
pub use error::{Error, Kind};
