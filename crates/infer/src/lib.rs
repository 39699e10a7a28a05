//! What the node knows of inference: the wire to the engine, the engine as a supervised child, the
//! model's chat template, and the types of the API that is sold.
//!
//! **Invariant:** nothing here reads a clock or rolls dice for an answer; seeds and dates come in as values.
//! **Invariant:** with `default-features = false` only [`wire`] is left, so that the engine carries neither tokio nor templates.

pub mod wire;

#[cfg(feature = "client")]
pub mod api;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
pub mod engines;
#[cfg(feature = "client")]
mod pool;
#[cfg(feature = "client")]
pub mod rerun;
#[cfg(feature = "client")]
mod run;
#[cfg(feature = "client")]
pub mod template;

#[cfg(feature = "client")]
pub use client::{EngineClient, EngineConfig, EngineEvent, Error, ErrorKind, Generation};
#[cfg(feature = "client")]
pub use pool::{EnginePool, Later, Loaded, Policy as PoolPolicy, Prepare, Reading, Why, resident_bytes};
#[cfg(feature = "client")]
pub use run::{EngineClass, Run, SamplingUsed};
#[cfg(feature = "client")]
pub use template::{ChatTemplate, TemplateError};
pub use wire::{FailureKind, Finish, Generate, Grammar, Hello, TokenLogprob};
