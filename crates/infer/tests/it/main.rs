//! What strangers send, through the public surface.

mod fuzz;
mod openai;
mod templates;
