//! The chain crate against a real node (anvil) and the real contracts.

mod anvil;
mod heads;
mod life;
mod logs;
mod orders;
mod sender;
mod stand_in;
mod token;
mod torn;
mod world;
