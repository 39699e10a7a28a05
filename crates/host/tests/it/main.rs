//! The provider daemon from outside: real sandboxes, real processes, and (where anvil is) a real chain.

mod sandbox;
mod tenants;
