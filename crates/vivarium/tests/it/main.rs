//! End to end, with real processes: whole worlds as `vivarium up` starts them.

mod crashes;
mod facilitator;
mod life;
mod proxy;
mod refusals;
mod world;
