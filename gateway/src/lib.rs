//! The program `bascule` as a library: configuration, composition and subcommands.
//!
//! `main.rs` turns arguments into a subcommand and its result into an exit code; everything else is here, so that tests can call it.
//! Deliberately absent: engine, protocols and registries, which are crates of their own.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod allocator;
pub mod cli;
pub mod compose;
pub mod config;
mod forbidden;
mod gpus;
pub mod npy;
pub mod server;
pub mod state_dir;
pub mod supervise;
pub mod trial;
