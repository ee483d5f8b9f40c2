//! Every source against real servers, started by the tests where this machine has them.
//!
//! `make test-servers` and `make test-all` set them up in `.deps/`; a test whose server is not there is counted as skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]
#![allow(unreachable_pub, reason = "one binary")]

mod azure;
mod gcs;
mod http;
mod journals;
mod layouts;
mod mlflow;
mod oci;
mod s3;
mod seaweedfs;
mod servers;
mod transfers;
