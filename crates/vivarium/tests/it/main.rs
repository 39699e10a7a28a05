//! End to end, with real processes: whole worlds as `vivarium up` starts them.

mod bench;
mod crashes;
mod life;
mod proxy;
mod refusals;
mod world;
