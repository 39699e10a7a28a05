//! What the contracts' bytecode does, in simulated time.

mod darwin;
mod differential;
mod lives;
mod thief;
