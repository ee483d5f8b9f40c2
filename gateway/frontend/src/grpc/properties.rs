//! Whatever a message holds, reading it gives a request or an error that has a name: never a panic, never a wrong tensor.

use std::collections::HashMap;

use bascule_proto::inference::infer_parameter::ParameterChoice;
use bascule_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use bascule_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};
use bascule_runtime_api::{DataType, element_count};
use bascule_serving::{ErrorCode, InferError, InferRequest};
use bytes::Bytes;
use proptest::collection::{hash_map, vec};
use proptest::prelude::*;
use prost::Message as _;

use super::read_request;

const LIMIT: usize = 4096;

fn parameters() -> impl Strategy<Value = HashMap<String, InferParameter>> {
    let names = prop_oneof![
        Just("timeout"),
        Just("priority"),
        Just("sequence_id"),
        Just("version"),
        Just("classification"),
        Just("shared_memory_region"),
        Just("other")
    ];
    let choice = prop_oneof![
        any::<bool>().prop_map(ParameterChoice::BoolParam),
        any::<i64>().prop_map(ParameterChoice::Int64Param),
        any::<u64>().prop_map(ParameterChoice::Uint64Param),
        any::<f64>().prop_map(ParameterChoice::DoubleParam),
        ".{0,6}".prop_map(ParameterChoice::StringParam),
    ];
    let parameter = prop::option::weighted(0.95, choice).prop_map(|parameter_choice| InferParameter { parameter_choice });
    hash_map(names.prop_map(str::to_owned), parameter, 0..3)
}

fn contents() -> impl Strategy<Value = InferTensorContents> {
    let none = InferTensorContents::default;
    prop_oneof![
        vec(any::<bool>(), 0..6).prop_map(move |bool_contents| InferTensorContents { bool_contents, ..none() }),
        vec(-300..70_000i32, 0..6).prop_map(move |int_contents| InferTensorContents { int_contents, ..none() }),
        vec(any::<i64>(), 0..6).prop_map(move |int64_contents| InferTensorContents { int64_contents, ..none() }),
        vec(0..70_000u32, 0..6).prop_map(move |uint_contents| InferTensorContents { uint_contents, ..none() }),
        vec(any::<u64>(), 0..6).prop_map(move |uint64_contents| InferTensorContents { uint64_contents, ..none() }),
        vec(any::<f32>(), 0..6).prop_map(move |fp32_contents| InferTensorContents { fp32_contents, ..none() }),
        vec(any::<f64>(), 0..6).prop_map(move |fp64_contents| InferTensorContents { fp64_contents, ..none() }),
        vec(vec(any::<u8>(), 0..4).prop_map(Bytes::from), 0..6)
            .prop_map(move |bytes_contents| InferTensorContents { bytes_contents, ..none() }),
    ]
}

fn input() -> impl Strategy<Value = InferInputTensor> {
    let datatype = prop_oneof![
        9 => prop::sample::select(&DataType::ALL[..]).prop_map(|datatype| datatype.name().to_owned()),
        1 => ".{0,6}",
    ];
    let dim = prop_oneof![8 => 0..4i64, 1 => any::<i64>()];
    (".{0,3}", datatype, vec(dim, 0..3), prop::option::of(contents()), parameters())
        .prop_map(|(name, datatype, shape, contents, parameters)| InferInputTensor { name, datatype, shape, parameters, contents })
}

fn request() -> impl Strategy<Value = ModelInferRequest> {
    let output = (".{0,3}", parameters()).prop_map(|(name, parameters)| InferRequestedOutputTensor { name, parameters });
    let raw = vec(vec(any::<u8>(), 0..17).prop_map(Bytes::from), 0..3);
    let version = prop_oneof![3 => Just(String::new()), 1 => "[0-9a-z]{0,3}"];
    (version, parameters(), vec(input(), 0..3), vec(output, 0..2), raw).prop_map(
        |(model_version, parameters, inputs, outputs, raw_input_contents)| ModelInferRequest {
            model_version,
            parameters,
            inputs,
            outputs,
            raw_input_contents,
            ..ModelInferRequest::default()
        },
    )
}

/// Checks what came of a message.
fn check(read: Result<InferRequest, InferError>) -> Result<(), TestCaseError> {
    match read {
        Ok(request) => {
            for named in &request.inputs {
                let tensor = &named.tensor;
                let count = element_count(tensor.shape());
                prop_assert_eq!(count, Some(tensor.element_count()));
                if let Some(element_bytes) = tensor.datatype().element_bytes() {
                    prop_assert_eq!(tensor.bytes().len(), tensor.element_count() * element_bytes);
                } else {
                    prop_assert_eq!(tensor.byte_strings().count(), tensor.element_count());
                }
            }
        }
        Err(error) => {
            let codes = [ErrorCode::InvalidArgument, ErrorCode::Unsupported, ErrorCode::TooLarge];
            prop_assert!(codes.contains(&error.code()), "{error:?}");
            prop_assert!(error.to_string().len() < 1000, "{error}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_request_is_read_or_refused_by_name(request in request()) {
        check(read_request(request.encode_to_vec().into(), LIMIT))?;
    }

    #[test]
    fn so_is_one_that_was_damaged(request in request(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
        let mut bytes = request.encode_to_vec();
        if !bytes.is_empty() {
            let index = at.index(bytes.len());
            bytes[index] = byte;
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        check(read_request(bytes.into(), LIMIT))?;
    }

    #[test]
    fn and_so_are_bytes_of_any_kind(bytes: Vec<u8>) {
        check(read_request(bytes.into(), LIMIT))?;
    }
}
