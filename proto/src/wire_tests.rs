//! The contract with clients built elsewhere, checked against bytes written by hand and against the
//! descriptors, not against what this crate itself encodes.

use std::collections::HashMap;

use prost::Message as _;
use prost::bytes::Bytes;
use prost_reflect::{DescriptorPool, Kind};

use crate::FILE_DESCRIPTOR_SET;
use crate::inference::infer_parameter::ParameterChoice;
use crate::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::inference::{InferParameter, InferTensorContents, ModelInferRequest};

fn pool() -> DescriptorPool {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap()
}

/// A field of wire type 2: tag, length, contents.
fn delimited(number: u8, contents: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2, u8::try_from(contents.len()).unwrap()];
    bytes.extend_from_slice(contents);
    bytes
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

#[test]
fn an_infer_request_is_these_bytes() {
    let priority = [delimited(1, b"priority"), delimited(2, &[5 << 3, 7])].concat();
    let binary = [delimited(1, b"binary_data"), delimited(2, &[1 << 3, 1])].concat();
    let class = [delimited(1, b"classification"), delimited(2, &[2 << 3, 3])].concat();
    let raw_input = [delimited(1, b"x"), delimited(2, b"FP32"), delimited(3, &[1, 2]), delimited(4, &binary)].concat();
    let typed_input = [
        delimited(1, b"s"),
        delimited(2, b"BYTES"),
        // A dimension of -1 is the longest varint.
        delimited(3, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        delimited(5, &delimited(8, b"\xff\x00")),
    ]
    .concat();
    let output = [delimited(1, b"y"), delimited(2, &class)].concat();
    let by_hand = [
        delimited(1, b"mlp"),
        delimited(2, b"3"),
        delimited(3, b"id-1"),
        delimited(4, &priority),
        delimited(5, &raw_input),
        delimited(5, &typed_input),
        delimited(6, &output),
        delimited(7, &[0, 0, 128, 63, 0, 0, 0, 64]),
    ]
    .concat();

    let request = ModelInferRequest {
        model_name: "mlp".to_owned(),
        model_version: "3".to_owned(),
        id: "id-1".to_owned(),
        parameters: HashMap::from([("priority".to_owned(), parameter(ParameterChoice::Uint64Param(7)))]),
        inputs: vec![
            InferInputTensor {
                name: "x".to_owned(),
                datatype: "FP32".to_owned(),
                shape: vec![1, 2],
                parameters: HashMap::from([("binary_data".to_owned(), parameter(ParameterChoice::BoolParam(true)))]),
                contents: None,
            },
            InferInputTensor {
                name: "s".to_owned(),
                datatype: "BYTES".to_owned(),
                shape: vec![-1],
                parameters: HashMap::new(),
                contents: Some(InferTensorContents { bytes_contents: vec![Bytes::from_static(b"\xff\x00")], ..Default::default() }),
            },
        ],
        outputs: vec![InferRequestedOutputTensor {
            name: "y".to_owned(),
            parameters: HashMap::from([("classification".to_owned(), parameter(ParameterChoice::Int64Param(3)))]),
        }],
        raw_input_contents: vec![Bytes::from_static(&[0, 0, 128, 63, 0, 0, 0, 64])],
    };
    assert_eq!(request.encode_to_vec(), by_hand);
    assert_eq!(ModelInferRequest::decode(&by_hand[..]).unwrap(), request);
}

#[test]
fn raw_contents_are_slices_of_the_received_buffer() {
    let received = Bytes::from(delimited(7, &[9; 100]));
    let within = received.as_ptr_range();
    let request = ModelInferRequest::decode(received).unwrap();
    assert_eq!(request.raw_input_contents[0], [9; 100][..]);
    assert!(within.contains(&request.raw_input_contents[0].as_ptr()));
}

#[test]
fn truncated_bytes_are_an_error_at_every_length() {
    let whole = delimited(5, &delimited(2, b"FP32"));
    for length in 1..whole.len() {
        assert!(ModelInferRequest::decode(&whole[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn fields_have_the_numbers_and_types_that_clients_were_built_with() {
    let pool = pool();
    let check = |message: &str, field: &str, number: u32, kind: &str| {
        let message = pool.get_message_by_name(&format!("inference.{message}")).unwrap();
        let field = message.get_field_by_name(field).unwrap();
        let found = match field.kind() {
            Kind::Message(message) if message.is_map_entry() => "map".to_owned(),
            Kind::Message(message) => message.name().to_owned(),
            Kind::Enum(enumeration) => enumeration.name().to_owned(),
            scalar => format!("{scalar:?}"),
        };
        let found = if field.is_list() { format!("[{found}]") } else { found };
        assert_eq!((field.number(), found.as_str()), (number, kind), "{field:?}");
    };
    check("ServerLiveResponse", "live", 1, "bool");
    check("ServerReadyResponse", "ready", 1, "bool");
    check("ModelReadyRequest", "version", 2, "string");
    check("ServerMetadataResponse", "extensions", 3, "[string]");
    check("ModelMetadataResponse", "versions", 2, "[string]");
    check("ModelMetadataResponse", "platform", 3, "string");
    check("ModelMetadataResponse", "inputs", 4, "[TensorMetadata]");
    check("ModelMetadataResponse", "outputs", 5, "[TensorMetadata]");
    check("ModelMetadataResponse.TensorMetadata", "shape", 3, "[int64]");
    check("InferParameter", "double_param", 4, "double");
    check("InferParameter", "uint64_param", 5, "uint64");
    check("InferTensorContents", "int_contents", 2, "[int32]");
    check("InferTensorContents", "uint_contents", 4, "[uint32]");
    check("InferTensorContents", "fp64_contents", 7, "[double]");
    check("InferTensorContents", "bytes_contents", 8, "[bytes]");
    check("ModelInferResponse", "model_version", 2, "string");
    check("ModelInferResponse", "id", 3, "string");
    check("ModelInferResponse", "parameters", 4, "map");
    check("ModelInferResponse", "outputs", 5, "[InferOutputTensor]");
    check("ModelInferResponse", "raw_output_contents", 6, "[bytes]");
    check("ModelInferResponse.InferOutputTensor", "contents", 5, "InferTensorContents");
    check("ModelStreamInferResponse", "error_message", 1, "string");
    check("ModelStreamInferResponse", "infer_response", 2, "ModelInferResponse");
    check("ModelStatistics", "last_inference", 3, "uint64");
    check("ModelStatistics", "inference_stats", 6, "InferStatistics");
    check("ModelStatistics", "batch_stats", 7, "[InferBatchStatistics]");
    check("InferStatistics", "queue", 3, "StatisticDuration");
    check("InferStatistics", "cache_miss", 8, "StatisticDuration");
    check("RepositoryIndexRequest", "ready", 2, "bool");
    check("RepositoryIndexResponse.ModelIndex", "reason", 4, "string");
    // Other definitions of this protocol have it at 1.
    check("RepositoryModelLoadRequest", "model_name", 2, "string");
    check("RepositoryModelUnloadRequest", "model_name", 2, "string");
    check("RepositoryModelLoadRequest", "parameters", 3, "map");
    check("ModelConfig", "max_batch_size", 4, "int32");
    check("ModelConfig", "input", 5, "[ModelInput]");
    check("ModelConfig", "output", 6, "[ModelOutput]");
    check("ModelConfig", "instance_group", 7, "[ModelInstanceGroup]");
    check("ModelConfig", "dynamic_batching", 11, "ModelDynamicBatching");
    check("ModelConfig", "backend", 17, "string");
    check("ModelInput", "dims", 4, "[int64]");
    check("ModelOutput", "dims", 3, "[int64]");
    check("ModelInstanceGroup", "kind", 4, "Kind");
}

#[test]
fn the_service_has_every_method_under_its_path() {
    let pool = pool();
    let service = pool.get_service_by_name("inference.GRPCInferenceService").unwrap();
    let methods: Vec<_> = service
        .methods()
        .map(|method| {
            let (request, response) = (method.input(), method.output());
            assert_eq!(request.name(), format!("{}Request", request_stem(method.name())));
            assert_eq!(response.name(), format!("{}Response", method.name()));
            let streams = method.is_client_streaming() && method.is_server_streaming();
            assert_eq!(streams, method.name() == "ModelStreamInfer");
            method.name().to_owned()
        })
        .collect();
    assert_eq!(
        methods,
        [
            "ServerLive",
            "ServerReady",
            "ModelReady",
            "ServerMetadata",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
            "ModelInfer",
            "ModelStreamInfer",
            "RepositoryIndex",
            "RepositoryModelLoad",
            "RepositoryModelUnload",
            "SystemSharedMemoryStatus",
            "SystemSharedMemoryRegister",
            "SystemSharedMemoryUnregister",
            "CudaSharedMemoryStatus",
            "CudaSharedMemoryRegister",
            "CudaSharedMemoryUnregister",
            "TraceSetting",
            "LogSettings",
        ]
    );
}

/// A stream carries the same requests as single calls.
fn request_stem(method: &str) -> &str {
    match method {
        "ModelStreamInfer" => "ModelInfer",
        other => other,
    }
}

#[test]
fn no_message_contains_itself() {
    // What the text reader relies on to bound its depth.
    fn depth(message: &prost_reflect::MessageDescriptor, above: &mut Vec<String>) -> usize {
        let name = message.full_name().to_owned();
        assert!(!above.contains(&name), "{name} contains itself: {above:?}");
        above.push(name);
        let deepest = message.fields().filter_map(|field| field.kind().as_message().map(|inner| depth(inner, above))).max();
        above.pop();
        1 + deepest.unwrap_or(0)
    }
    let pool = pool();
    for message in pool.all_messages() {
        assert!(depth(&message, &mut Vec::new()) < 16);
    }
}

#[test]
fn the_descriptor_set_carries_no_comments() {
    let files: Vec<_> = pool().files().map(|file| file.file_descriptor_proto().clone()).collect();
    let names: Vec<_> = files.iter().map(|file| file.name()).collect();
    assert_eq!(names, ["model_config.proto", "grpc_service.proto"]);
    assert!(files.iter().all(|file| file.source_code_info.is_none()));
}
