//! What holds for any bytes: no panic, and reading what was written gives back the same.

use bascule_runtime_api::{AlignedBuffer, DataType, Tensor, TensorSpec};
use bascule_serving::InferError;
use bytes::Bytes;
use half::f16;
use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1 << 16;

/// Valid requests, to be damaged.
const SAMPLES: [&str; 5] = [
    r#"{"id":"7","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1.5,-2e3],[NaN,0]]}],"outputs":[{"name":"y","parameters":{"classification":2}}]}"#,
    r#"{"parameters":{"timeout":100,"priority":1,"version":"canary","k":"v"},"inputs":[{"data":["a\u00e9\ud83d\ude00","b"],"name":"s","shape":[2],"datatype":"BYTES"}]}"#,
    r#"{"inputs":[{"name":"x","shape":[4],"datatype":"INT8","parameters":{"binary_data_size":4}}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}abcd"#,
    r#"{"inputs":[{"name":"a","shape":[1],"datatype":"BOOL","data":[true]},{"name":"b","shape":[0],"datatype":"UINT64","data":[]}],"x":{"y":[null,{}]}}"#,
    r#"{"inputs":[{"name":"i","shape":[3],"datatype":"INT64","data":[-9223372036854775808,0,9223372036854775807]}]}"#,
];

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![Just(Framing::Json), Just(Framing::Raw), (1usize..400).prop_map(|json_bytes| Framing::Split { json_bytes })]
}

/// Damage at a place: a byte replaced, removed, doubled, or everything behind it cut off.
fn damage(text: &mut Vec<u8>, place: usize, kind: u8, byte: u8) {
    if text.is_empty() {
        return;
    }
    let at = place % text.len();
    match kind {
        0 => text[at] = byte,
        1 => drop(text.remove(at)),
        2 => text.insert(at, byte),
        _ => text.truncate(at),
    }
}

/// Whatever was decoded holds together, whatever was not says why in a sentence of bounded length.
fn check(result: Result<DecodedRequest, InferError>) -> Result<(), TestCaseError> {
    match result {
        Ok(decoded) => {
            for input in &decoded.infer.inputs {
                let tensor = &input.tensor;
                prop_assert!(Tensor::new(tensor.datatype(), tensor.shape(), tensor.bytes().clone()).is_ok());
            }
        }
        Err(error) => {
            let text = error.to_string();
            prop_assert!(!text.is_empty() && text.len() < 2000, "{text}");
            prop_assert!(!matches!(error, InferError::Internal { .. }), "{text}");
        }
    }
    Ok(())
}

fn tensor_with(shape: Vec<i64>, datatype: DataType, seed: Vec<u8>, strings: Vec<String>) -> Tensor {
    let count: usize = shape.iter().map(|dim| *dim as usize).product();
    let byte = |at: usize| seed.get(at % seed.len().max(1)).copied().unwrap_or(0);
    match datatype.element_bytes() {
        None => {
            let elements: Vec<&str> =
                (0..count).map(|at| strings.get(at % strings.len().max(1)).map_or("", String::as_str)).collect();
            Tensor::from_byte_strings(shape, &elements).unwrap()
        }
        Some(unit) => {
            let raw: Vec<u8> =
                (0..count * unit).map(|at| if datatype == DataType::Bool { byte(at) & 1 } else { byte(at) }).collect();
            Tensor::new(datatype, shape, AlignedBuffer::copy_of(&raw).into_bytes()).unwrap()
        }
    }
}

fn tensors() -> impl Strategy<Value = Tensor> {
    let datatype = proptest::sample::select(DataType::ALL.to_vec());
    (
        prop::collection::vec(0i64..4, 0..4),
        datatype,
        prop::collection::vec(any::<u8>(), 1..64),
        prop::collection::vec(any::<String>(), 1..4),
    )
        .prop_map(|(shape, datatype, seed, strings)| tensor_with(shape, datatype, seed, strings))
}

/// Equal, where all that is no number counts as one value.
fn same(left: &Tensor, right: &Tensor) -> bool {
    let plain = |tensor: &Tensor| -> Vec<u8> {
        match tensor.datatype() {
            DataType::Fp16 => tensor
                .elements::<f16>()
                .unwrap()
                .iter()
                .flat_map(|v| if v.is_nan() { f16::NAN } else { *v }.to_le_bytes())
                .collect(),
            DataType::Fp32 => tensor
                .elements::<f32>()
                .unwrap()
                .iter()
                .flat_map(|v| if v.is_nan() { f32::NAN } else { *v }.to_le_bytes())
                .collect(),
            DataType::Fp64 => tensor
                .elements::<f64>()
                .unwrap()
                .iter()
                .flat_map(|v| if v.is_nan() { f64::NAN } else { *v }.to_le_bytes())
                .collect(),
            _ => tensor.bytes().to_vec(),
        }
    };
    left.datatype() == right.datatype() && left.shape() == right.shape() && plain(left) == plain(right)
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), framing in framing()) {
        check(decode(&Bytes::from(bytes), framing, LIMIT))?;
    }

    #[test]
    fn json_like_bytes_neither(text in r#"[\[\]{}":,0-9eE+.\\ua-cNI \-]{0,200}"#) {
        check(decode(&Bytes::from(format!("{{\"inputs\":[{text}")), Framing::Json, LIMIT))?;
        check(decode(&Bytes::from(text), Framing::Json, LIMIT))?;
    }

    #[test]
    fn damaged_requests_neither(
        sample in 0..SAMPLES.len(), places in prop::collection::vec((any::<usize>(), 0u8..4, any::<u8>()), 1..4), split in any::<bool>()
    ) {
        let mut text = SAMPLES[sample].as_bytes().to_vec();
        for (place, kind, byte) in places {
            damage(&mut text, place, kind, byte);
        }
        let json_bytes = SAMPLES[sample].rfind('}').unwrap_or(0) + 1;
        let framing = if split { Framing::Split { json_bytes } } else { Framing::Json };
        check(decode(&Bytes::from(text), framing, LIMIT))?;
    }

    #[test]
    fn raw_bodies_neither(
        body in prop::collection::vec(any::<u8>(), 0..64), datatype in proptest::sample::select(DataType::ALL.to_vec()),
        shape in prop::collection::vec(prop_oneof![-1i64..4, Just(i64::MAX)], 0..4), batched in any::<bool>()
    ) {
        let signature = bascule_runtime_api::Signature { inputs: vec![TensorSpec::new("x", datatype, shape)], ..Default::default() };
        check(decode_raw(body.into(), &signature, batched))?;
    }

    #[test]
    fn what_is_written_reads_back(tensor in tensors(), name in any::<String>(), binary in any::<bool>(), id in any::<Option<String>>()) {
        // BF16 is read in binary only.
        let binary = binary || tensor.datatype() == DataType::Bf16;
        let rendered = [Rendered { name: &name, tensor: tensor.clone(), binary }];
        let encoded = encode(id.as_deref(), "m", 1, &rendered, NanStyle::Bare).unwrap();
        // An answer's outputs have the members of a request's inputs.
        let json = String::from_utf8(encoded.json).unwrap().replacen("\"outputs\":[{\"name\"", "\"inputs\":[{\"name\"", 1);
        let framing = if encoded.has_binary { Framing::Split { json_bytes: json.len() } } else { Framing::Json };
        let body = [json.as_bytes(), &encoded.binary.concat()].concat();
        let decoded = decode(&body.into(), framing, LIMIT).unwrap();
        prop_assert_eq!(&decoded.id, &id);
        prop_assert_eq!(&decoded.infer.inputs[0].name, &name);
        prop_assert!(same(&decoded.infer.inputs[0].tensor, &tensor), "{:?} {tensor:?}", decoded.infer.inputs[0]);
    }

    #[test]
    fn strict_json_is_what_others_read(tensor in tensors(), name in any::<String>()) {
        let rendered = [Rendered { name: &name, tensor: tensor.clone(), binary: false }];
        let encoded = encode(None, "m", 1, &rendered, NanStyle::Null).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&encoded.json).unwrap();
        prop_assert_eq!(value["outputs"][0]["name"].as_str(), Some(name.as_str()));
        prop_assert_eq!(value["outputs"][0]["data"].as_array().unwrap().len(), tensor.element_count());
    }

    #[test]
    fn classes_are_the_best_ones(tensor in tensors(), classes in 1usize..6, batched in any::<bool>()) {
        let numeric = !matches!(tensor.datatype(), DataType::Bool | DataType::Bytes);
        let ranked = classify("y", &tensor, classes, batched, None);
        prop_assert_eq!(ranked.is_ok(), numeric);
        let Ok(ranked) = ranked else { return Ok(()) };
        let rows = if batched { tensor.shape().first().copied() } else { None };
        let per_row = tensor.element_count() / rows.unwrap_or(1).max(1) as usize;
        prop_assert_eq!(ranked.element_count(), classes.min(per_row) * rows.unwrap_or(1) as usize);
    }
}
