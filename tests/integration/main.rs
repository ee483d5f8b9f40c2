//! The program as its users see it: child processes, real ports, real clients, real models.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed expectation is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a test chooses the environment of what it starts")]
#![allow(unreachable_pub, reason = "a test program has no users outside itself")]

mod bad_input;
mod clients;
mod commands;
mod crate_edges;
mod decided;
mod faults;
mod golden;
mod http;
mod journals;
mod killed;
mod lifecycle;
mod mlflow;
mod oci;
mod outage;
mod plain_store;
mod real_models;
mod recorded;
mod registries;
mod registry_commands;
mod sandbox;
#[path = "../../registry-client/tests/real/servers.rs"]
mod servers;
mod supervise;
mod swap;
mod torch;
mod trial;
mod triton_repository;
mod weed;
