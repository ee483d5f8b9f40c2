//! Bodies that are nothing but a tensor, read by a signature that the input begins with: datatype, whether there is a batch axis, rank,
//! and a byte for each dimension.
#![no_main]

use bascule_frontend::codec::decode_raw;
use bascule_fuzz::check;
use bascule_runtime_api::{DataType, Signature, TensorSpec};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(([datatype, batched, rank], rest)) = input.split_first_chunk() else { return };
    let Some((dims, body)) = rest.split_at_checked(usize::from(rank % 8)) else { return };
    let datatype = DataType::ALL[usize::from(*datatype) % DataType::ALL.len()];
    let shape: Vec<i64> = dims.iter().map(|dim| if *dim == u8::MAX { i64::MAX } else { i64::from(*dim) - 1 }).collect();
    let signature = Signature { inputs: vec![TensorSpec::new("x", datatype, shape)], ..Signature::default() };
    check(decode_raw(Bytes::copy_from_slice(body), &signature, batched % 2 == 1).map(|decoded| decoded.infer));
});
