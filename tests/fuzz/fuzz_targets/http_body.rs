//! Bodies of inference requests: JSON, JSON followed by binary tensors, and raw tensors.

#![no_main]

use bascule_frontend::codec::{Framing, decode, decode_raw};
use bascule_runtime_api::{DataType, Signature, TensorSpec};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const MAX_TENSOR_BYTES: usize = 1 << 20;

fuzz_target!(|input: (Option<u16>, &[u8])| {
    let (json_bytes, body) = input;
    let header = json_bytes.map(|length| length.to_string());
    let body = Bytes::copy_from_slice(body);
    let Ok(framing) = Framing::from_header(header.as_deref().map(str::as_bytes)) else { return };
    if let Ok(request) = decode(&body, framing, MAX_TENSOR_BYTES) {
        let decoded: usize = request.infer.inputs.iter().map(|input| input.tensor.bytes().len()).sum();
        assert!(decoded <= MAX_TENSOR_BYTES + body.len(), "more was decoded than was allowed");
    }
    for datatype in DataType::ALL {
        let signature = Signature { inputs: vec![TensorSpec::new("x", datatype, [-1, 2])], outputs: Vec::new(), batch_axis: Some(0) };
        drop(decode_raw(body.clone(), &signature, true));
    }
});
