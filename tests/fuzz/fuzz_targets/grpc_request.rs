//! Encoded `ModelInferRequest` messages.
#![no_main]

use bascule_frontend::grpc::read_request;
use bascule_fuzz::{LIMIT, check};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| check(read_request(Bytes::copy_from_slice(message), LIMIT)));
