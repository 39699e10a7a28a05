//! Whole worlds in simulated time.
