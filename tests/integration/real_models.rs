//! Models that others trained, as their packages ship them: silero-vad in two versions of one signature, and magika.
//!
//! The expected numbers are those of ONNX Runtime's own Python package for the same files.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use bascule_onnx_writer::OnnxModel;
use bascule_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use bascule_proto::inference::model_infer_request::InferInputTensor;
use bascule_proto::inference::{ModelInferRequest, ModelInferResponse};
use bytes::Bytes;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::http::{call, get};
use crate::sandbox::{Gateway, Sandbox, repository, skip};

/// Names the folder with the models.
const MODELS_VARIABLE: &str = "BASCULE_TEST_MODELS";

/// Kernels differ a little between processors.
const TOLERANCE: f32 = 1e-3;

/// What silero-vad hears in the first parts of [`samples`], one after the other.
const HEARD_BY_5: [f32; 6] = [0.478_973, 0.513_708, 0.726_654, 0.837_473, 0.740_882, 0.923_962];
const HEARD_BY_6: [f32; 6] = [0.586_676, 0.796_336, 0.807_388, 0.632_391, 0.519_842, 0.700_683];

/// Samples of a part: 512 new ones after 64 that are told again.
const PART: usize = 576;
const STATE: usize = 2 * 128;
const RATE: i64 = 16_000;

const MAGIKA_BYTES: usize = 2048;
const MAGIKA_LABELS: usize = 214;

/// Texts, and the number of the label that magika gives each: Python, lines of JSON, HTML, C.
const TEXTS: [(&str, usize); 4] = [
    ("import os\n\ndef main():\n    print(os.getcwd())\n\n", 143),
    ("{\"name\": \"bascule\", \"weights\": [1, 2, 3]},\n", 88),
    ("<html><body><p class=\"a\">text</p></body></html>\n", 71),
    ("#include <stdio.h>\nint main(void) { return printf(\"x\"); }\n", 17),
];

/// A model out of a package; where the packages are not there, the test is counted as skipped.
pub fn model_or_skip(package: &str, file: &str) -> Option<OnnxModel> {
    let set = std::env::var_os(MODELS_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let path = set.clone().unwrap_or_else(|| repository().join(".deps/models")).join(package).join(file);
    match std::fs::read(&path) {
        Ok(bytes) => Some(OnnxModel { bytes, files: Vec::new() }),
        Err(error) => {
            assert!(set.is_none(), "{MODELS_VARIABLE} has no {}: {error}", path.display());
            skip(&format!("{package} is not installed; `make test-deps` installs it"));
            None
        }
    }
}

fn publish(sandbox: &Sandbox, model: &str, version: u64, contents: &OnnxModel) {
    let output = sandbox.publish(model, version, contents);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn bytes_of<T: bytemuck::NoUninit>(elements: &[T]) -> Bytes {
    Bytes::copy_from_slice(bytemuck::cast_slice(elements))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|element| f32::from_le_bytes(element.try_into().unwrap())).collect()
}

/// A part of a buzz of 125 Hz that swells and fades. Every sample is exact in binary, so it is the same everywhere.
fn samples(part: usize) -> Vec<f32> {
    let sample = |index: i64| {
        let (saw, triangle, loudness) = (index % 128 - 64, (index % 16 - 8).abs() - 4, (index % 4096 - 2048).abs());
        (saw * triangle * loudness) as f32 / (1 << 20) as f32
    };
    (0..PART).map(|offset| sample((part * 512 + offset) as i64)).collect()
}

fn question(version: &str, part: usize, state: Bytes) -> ModelInferRequest {
    let tensor = |name: &str, datatype: &str, shape: &[i64]| InferInputTensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    };
    ModelInferRequest {
        model_name: "vad".into(),
        model_version: version.into(),
        inputs: vec![tensor("input", "FP32", &[1, PART as i64]), tensor("state", "FP32", &[2, 1, 128]), tensor("sr", "INT64", &[])],
        raw_input_contents: vec![bytes_of(&samples(part)), state, bytes_of(&[RATE])],
        ..ModelInferRequest::default()
    }
}

/// The probability of speech and the next state.
fn heard(answer: &ModelInferResponse) -> (f32, Bytes) {
    let place = |name| answer.outputs.iter().position(|output| output.name == name).expect("the model's outputs");
    let probability = floats(&answer.raw_output_contents[place("output")]);
    let state = answer.raw_output_contents[place("stateN")].clone();
    assert_eq!((probability.len(), state.len()), (1, 4 * STATE));
    assert!(floats(&state).iter().all(|value| value.is_finite()) && (0.0..=1.0).contains(&probability[0]), "{probability:?}");
    (probability[0], state)
}

fn silence() -> Bytes {
    bytes_of(&[0f32; STATE])
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn connect(gateway: &str) -> GrpcInferenceServiceClient<Channel> {
    GrpcInferenceServiceClient::connect(gateway.to_owned()).await.unwrap()
}

fn silero() -> Option<(Sandbox, OnnxModel, OnnxModel)> {
    let five = model_or_skip("silero-vad-5.1.2", "silero_vad.onnx")?;
    let six = model_or_skip("silero-vad-6.0.0", "silero_vad.onnx")?;
    Some((Sandbox::new()?, five, six))
}

#[test]
fn two_voice_detectors_hear_what_they_hear_elsewhere() {
    let Some((sandbox, five, six)) = silero() else { return };
    publish(&sandbox, "vad", 5, &five);
    publish(&sandbox, "vad", 6, &six);
    sandbox.write("vad/model.toml", "version_policy = \"all\"\n");
    let gateway = sandbox.serve().ready();
    gateway.wait_version("vad", 5);
    gateway.wait_version("vad", 6);
    let metadata = get(gateway.http, "/v2/models/vad").json();
    let input = |name: &str, datatype: &str, shape: Value| json!({ "name": name, "datatype": datatype, "shape": shape });
    let inputs = json!([
        input("input", "FP32", json!([-1, -1])),
        input("state", "FP32", json!([2, -1, 128])),
        input("sr", "INT64", json!([]))
    ]);
    assert_eq!((&metadata["inputs"], &metadata["versions"]), (&inputs, &json!(["5", "6"])), "{metadata}");
    runtime().block_on(async {
        let mut client = connect(&format!("http://{}", gateway.grpc)).await;
        for (version, expected) in [("5", HEARD_BY_5), ("6", HEARD_BY_6)] {
            let mut state = silence();
            for (part, expected) in expected.into_iter().enumerate() {
                let answer = client.model_infer(question(version, part, state.clone())).await.unwrap().into_inner();
                let again = client.model_infer(question(version, part, state)).await.unwrap().into_inner();
                assert_eq!(answer.raw_output_contents, again.raw_output_contents, "the same question has the same answer");
                let (probability, next) = heard(&answer);
                assert!(
                    (probability - expected).abs() < TOLERANCE,
                    "version {version}, part {part}: {probability}, not {expected}"
                );
                state = next;
            }
        }
    });
}

/// Calls until told to stop, and at least until version 6 has answered; how often each version did.
async fn listen(gateway: String, stop: Arc<AtomicBool>, begun: Arc<Barrier>) -> [u64; 2] {
    let mut client = connect(&gateway).await;
    let mut answered = [0, 0];
    while !stop.load(Ordering::Relaxed) || answered[1] == 0 {
        let answer = client.model_infer(question("", 0, silence())).await.expect("no call fails").into_inner();
        let (version, expected) = if answer.model_version == "5" { (0, HEARD_BY_5[0]) } else { (1, HEARD_BY_6[0]) };
        assert_eq!(answer.model_version, ["5", "6"][version]);
        let (probability, _) = heard(&answer);
        assert!((probability - expected).abs() < TOLERANCE, "version {} answered {probability}", answer.model_version);
        if answered == [0, 0] {
            begun.wait();
        }
        answered[version] += 1;
    }
    answered
}

#[test]
fn a_voice_detector_is_swapped_under_calls() {
    let Some((sandbox, five, six)) = silero() else { return };
    publish(&sandbox, "vad", 5, &five);
    let gateway = sandbox.serve().ready();
    gateway.wait_version("vad", 5);
    let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(4)));
    let listener = || {
        let (address, stop, begun) = (format!("http://{}", gateway.grpc), Arc::clone(&stop), Arc::clone(&begun));
        std::thread::spawn(move || runtime().block_on(listen(address, stop, begun)))
    };
    let listeners = [listener(), listener(), listener()];
    begun.wait();
    publish(&sandbox, "vad", 6, &six);
    gateway.eventually_admin("/admin/v1/status", |_, status| status["models"][0]["stable"] == 6);
    stop.store(true, Ordering::Relaxed);
    for listener in listeners {
        let answered = listener.join().expect("a caller saw a failure");
        assert!(answered.iter().all(|count| *count > 0), "{answered:?}");
    }
}

/// What magika looks at: the beginning and the end of a text, which repeats itself here.
fn look_at(text: &str) -> Vec<i32> {
    text.bytes().cycle().take(MAGIKA_BYTES).map(i32::from).collect()
}

/// The probabilities of a request's rows; the datatype is told as it is.
fn classify(gateway: &Gateway, version: u64, rows: &[Vec<i32>]) -> Result<Vec<Vec<f32>>, (u16, String)> {
    let raw = bytes_of(&rows.concat());
    let parameters = json!({ "binary_data_size": raw.len() });
    let input = json!({ "name": "bytes", "datatype": "INT32", "shape": [rows.len(), MAGIKA_BYTES], "parameters": parameters });
    let head = json!({ "inputs": [input], "parameters": { "binary_data_output": true } }).to_string();
    let length = head.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    let path = format!("/v2/models/magika/versions/{version}/infer");
    let answer = call(gateway.http, "POST", &path, &headers, &[head.as_bytes(), &raw].concat());
    if answer.status != 200 {
        return Err((answer.status, answer.error()));
    }
    let head: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let values = floats(&answer.body[head..]);
    assert_eq!(values.len(), rows.len() * MAGIKA_LABELS);
    Ok(values.chunks(MAGIKA_LABELS).map(<[f32]>::to_vec).collect())
}

fn assert_label(probabilities: &[f32], label: usize) {
    let sum: f32 = probabilities.iter().sum();
    assert!((sum - 1.0).abs() < TOLERANCE && probabilities.iter().all(|value| (0.0..=1.0).contains(value)), "the sum is {sum}");
    let best = (0..probabilities.len()).max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]));
    assert_eq!(best, Some(label));
}

#[test]
fn a_file_classifier_answers_in_batches_as_it_does_alone() {
    let Some(classifier) = model_or_skip("magika-1.0.3", "model.onnx") else { return };
    let Some(older) = model_or_skip("magika-0.5.1", "model.onnx") else { return };
    let Some(sandbox) = Sandbox::new() else { return };
    publish(&sandbox, "magika", 1, &older);
    publish(&sandbox, "magika", 2, &classifier);
    // The delay is longer than the test: a batch runs because it is full.
    let batching = "version_policy = \"all\"\ninstances = 1\nmax_batch_size = 4\nmax_queue_delay = \"10m\"\n";
    sandbox.write("magika/model.toml", batching);
    let gateway = sandbox.serve().ready();
    gateway.wait_version("magika", 1);
    gateway.wait_version("magika", 2);
    let together = classify(&gateway, 2, &TEXTS.map(|(text, _)| look_at(text))).unwrap();
    std::thread::scope(|scope| {
        let callers = TEXTS.map(|(text, _)| scope.spawn(|| classify(&gateway, 2, &[look_at(text)]).unwrap().remove(0)));
        for ((caller, expected), (_, label)) in callers.into_iter().zip(&together).zip(TEXTS) {
            let alone = caller.join().unwrap();
            assert_label(&alone, label);
            assert!(alone.iter().zip(expected).all(|(alone, together)| (alone - together).abs() < TOLERANCE));
        }
    });
    let statistics = get(gateway.http, "/v2/models/magika/versions/2/stats").json();
    let version = &statistics["model_stats"][0];
    assert_eq!((&version["inference_count"], &version["execution_count"]), (&json!(8), &json!(2)), "{statistics}");
    let (status, error) = classify(&gateway, 1, &[look_at("x")]).expect_err("the older model takes other tensors");
    assert_eq!(status, 400);
    assert!(error.contains("bytes") && error.contains("FP32"), "{error}");
}
