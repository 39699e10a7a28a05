//! What the contracts' bytecode does, in simulated time.

mod differential;
mod thief;
