//! The provider daemon from outside: real sandboxes, real processes, and (where anvil is) a real chain.

mod life;
mod sandbox;
mod sender;
mod tenants;
