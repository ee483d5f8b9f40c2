use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bascule_runtime_api::{DataType, Device, Footprint, LoadOptions, RunError, Runtime};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};

use super::super::Golden;
use super::*;
use crate::nan::NanOutputs;
use crate::testing::{ENTRYPOINT, folder};

/// A model whose outputs are its inputs.
fn echo(specs: &[(&str, DataType)]) -> Box<dyn Session> {
    let spec = |prefix: &str| {
        specs.iter().map(|(name, datatype)| TensorSpec::new(format!("{prefix}{name}"), *datatype, [-1])).collect::<Vec<_>>()
    };
    let dir = folder(&FakeModel::new(FakeOp::Identity, spec("in_"), spec("")));
    let options = LoadOptions { entrypoint: ENTRYPOINT.into(), ..LoadOptions::default() };
    FakeRuntime::new().load(dir.path(), &options).unwrap()
}

fn asked(origin: &str, inputs: &[(&str, Tensor)]) -> Asked {
    let inputs = inputs.iter().map(|(name, tensor)| ((*name).to_owned(), GoldenTensor::of(tensor))).collect();
    Asked { origin: origin.to_owned(), inputs: AskedInputs::Named(inputs) }
}

fn floats(elements: &[f32]) -> Tensor {
    Tensor::from_elements([elements.len() as i64], elements).unwrap()
}

fn one_sample() -> RecordPlan {
    let integer = Tensor::from_elements([1], &[7_i64]).unwrap();
    RecordPlan { samples: vec![asked("r.json", &[("in_x", floats(&[1.5])), ("in_n", integer)])], ..RecordPlan::default() }
}

#[test]
fn what_is_recorded_is_what_a_version_is_compared_with() {
    let mut session = echo(&[("x", DataType::Fp32), ("n", DataType::Int64)]);
    let plan = RecordPlan { tolerance: Some(0.25), ..one_sample() };
    let recorded = record(session.as_mut(), &plan).unwrap();
    assert_eq!(
        recorded.text,
        "{\"schema\":1,\"samples\":[\n\
         {\"inputs\":{\"in_n\":{\"datatype\":\"INT64\",\"shape\":[1],\"data\":[7]},\
         \"in_x\":{\"datatype\":\"FP32\",\"shape\":[1],\"data\":[1.5]}},\
         \"outputs\":{\"n\":{\"datatype\":\"INT64\",\"shape\":[1],\"data\":[7]},\
         \"x\":{\"datatype\":\"FP32\",\"shape\":[1],\"data\":[1.5]}},\"tolerance\":{\"x\":0.25}}\n]}\n"
    );
    let tolerances: Vec<_> = recorded.outputs.iter().map(|output| (output.spec.name.as_str(), output.tolerance)).collect();
    assert_eq!((recorded.samples, tolerances), (1, vec![("x", Some(0.25)), ("n", None)]));
    let golden = Golden::parse(recorded.text.as_bytes()).unwrap();
    assert_eq!(golden.compare(session.as_mut(), &AtomicBool::new(false), &mut NanOutputs::default()), Ok(()));
    let changed = Golden::parse(
        recorded
            .text
            .replacen("\"shape\":[1],\"data\":[7]}},\"outputs", "\"shape\":[1],\"data\":[8]}},\"outputs", 1)
            .replace("[1.5]}},\"outputs", "[1.8]}},\"outputs")
            .as_bytes(),
    );
    let error = changed.unwrap().compare(session.as_mut(), &AtomicBool::new(false), &mut NanOutputs::default()).unwrap_err();
    assert!(error.starts_with("golden sample 0: output 'x': element 0: expected 1.5, got 1.79"), "{error}");
}

#[test]
fn outputs_and_tolerances_are_chosen_by_name() {
    let mut session = echo(&[("x", DataType::Fp32), ("n", DataType::Int64)]);
    let mut check = |only: &[&str], tolerances: &[(&str, f64)]| {
        let only = only.iter().map(|name| (*name).to_owned()).collect();
        let tolerances = tolerances.iter().map(|(name, tolerance)| ((*name).to_owned(), *tolerance)).collect();
        let recorded = record(session.as_mut(), &RecordPlan { only, tolerance: Some(0.5), tolerances, ..one_sample() });
        let shown = |output: RecordedOutput| (output.spec.name, output.tolerance);
        recorded.map(|recorded| recorded.outputs.into_iter().map(shown).collect::<Vec<_>>()).map_err(|failure| failure.cause)
    };
    assert_eq!(check(&["n"], &[]), Ok(vec![("n".into(), None)]));
    assert_eq!(check(&[], &[("n", 1.0), ("x", 2.0)]), Ok(vec![("x".into(), Some(2.0)), ("n".into(), Some(1.0))]));
    assert_eq!(check(&["z"], &[]), Err("the model has no output 'z', only x, n".into()));
    assert_eq!(check(&[], &[("z", 1.0)]), Err("the model has no output 'z', only x, n".into()));
    assert_eq!(check(&["x"], &[("n", 1.0)]), Err("output 'n' has a tolerance and is not recorded".into()));
}

#[test]
fn a_sample_that_does_not_fit_is_named_by_where_it_comes_from() {
    let mut session = echo(&[("x", DataType::Fp32), ("n", DataType::Int64)]);
    let mut refused = |sample: Asked| {
        let failure = record(session.as_mut(), &RecordPlan { samples: vec![sample], ..RecordPlan::default() }).unwrap_err();
        assert_eq!(failure.step, "recording");
        failure.cause
    };
    assert_eq!(refused(asked("a.json", &[("in_x", floats(&[1.0]))])), "a.json: it has no input 'in_n'");
    let unknown = asked("b", &[("in_x", floats(&[1.0])), ("in_n", floats(&[1.0])), ("z", floats(&[1.0]))]);
    assert_eq!(refused(unknown), "b: the model has no input 'z'");
    let wrong = asked("c", &[("in_x", floats(&[1.0])), ("in_n", floats(&[1.0]))]);
    assert_eq!(refused(wrong), "c: the run failed: input 'in_n': expected INT64, got FP32");
    let only = Asked { origin: "x.npy".to_owned(), inputs: AskedInputs::Only(GoldenTensor::of(&floats(&[1.0]))) };
    assert_eq!(refused(only.clone()), "x.npy: it names no input, and the model has 2 of them");
    let mut single = echo(&[("x", DataType::Fp32)]);
    let recorded = record(single.as_mut(), &RecordPlan { samples: vec![only], ..RecordPlan::default() }).unwrap();
    assert!(recorded.text.contains(r#""inputs":{"in_x":"#), "{}", recorded.text);
}

#[test]
fn nan_and_infinity_are_recorded_and_compared_and_nan_is_told() {
    let mut session = echo(&[("x", DataType::Fp32)]);
    let sample = |elements: &[f32]| asked("s", &[("in_x", floats(elements))]);
    let plan = RecordPlan { samples: vec![sample(&[f32::NAN, f32::INFINITY]), sample(&[1.0, 1.0])], ..RecordPlan::default() };
    let recorded = record(session.as_mut(), &plan).unwrap();
    assert_eq!(recorded.warnings, ["output 'x' has NaN in 1 of 2 samples"]);
    let compare = |session: &mut dyn Session, text: &str| {
        Golden::parse(text.as_bytes())
            .unwrap()
            .compare(session, &AtomicBool::new(false), &mut NanOutputs::default())
            .err()
            .unwrap_or_default()
    };
    assert_eq!(compare(session.as_mut(), &recorded.text), "");
    let (before, answers) = recorded.text.split_once("\"outputs\"").unwrap();
    let changed = |from: &str, to: &str| format!("{before}\"outputs\"{}", answers.replacen(from, to, 1));
    for (from, to, expected) in [
        ("\"NaN\"", "3", "element 0: expected 3, got NaN"),
        ("\"Infinity\"", "3", "element 1: expected 3, got inf"),
        ("\"Infinity\"", "\"-Infinity\"", "element 1: expected -inf, got inf"),
    ] {
        assert_eq!(compare(session.as_mut(), &changed(from, to)), format!("golden sample 0: output 'x': {expected}"));
    }
    // A share of infinity is no tolerance.
    let finite = recorded.text.replacen("\"Infinity\"", "3", 1);
    assert_eq!(compare(session.as_mut(), &finite), "golden sample 0: output 'x': element 1: expected inf, got 3");
}

/// A model that answers how often it ran, times a step.
struct Counting {
    signature: Signature,
    step: f64,
    runs: f64,
}

impl Session for Counting {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, _inputs: &[Tensor], _context: &RunContext<'_>) -> Result<Vec<Tensor>, RunError> {
        self.runs += 1.0;
        Ok(vec![Tensor::from_elements([1], &[self.step * self.runs]).unwrap()])
    }

    fn interrupter(&self) -> Option<Arc<dyn bascule_runtime_api::Interrupt>> {
        None
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn device(&self) -> Device {
        Device::Cpu
    }
}

#[test]
fn an_output_that_differs_between_two_runs_is_refused() {
    let check = |step: f64, tolerance: Option<f64>| {
        let signature = Signature { outputs: vec![TensorSpec::new("y", DataType::Fp64, [1])], ..Signature::default() };
        let mut session = Counting { signature, step, runs: 0.0 };
        let plan = RecordPlan { samples: vec![asked("r.json", &[])], tolerance, ..RecordPlan::default() };
        record(&mut session, &plan).map(drop).map_err(|failure| (failure.step, failure.cause))
    };
    let differs = |text: &str| Err(("repeating".to_owned(), format!("r.json: output 'y' differs between two runs: {text}")));
    assert_eq!(check(0.5, None), differs("element 0: first 0.5, then 1, 0.5 apart"));
    assert_eq!(check(0.5, Some(0.25)), differs("element 0: first 0.5, then 1, 0.5 apart (tolerance 0.25)"));
    assert_eq!(check(0.5, Some(0.5)), Ok(()));
    assert_eq!(check(1e-6, None), Ok(()));
    assert_eq!(check(f64::NAN, None), Ok(()));
}

#[test]
fn a_file_that_could_not_be_read_again_is_not_written() {
    let mut session = echo(&[("x", DataType::Bytes)]);
    // Each sample holds it twice.
    let large = Tensor::from_byte_strings([1], &["x".repeat(20 << 20)]).unwrap();
    let plan = |count: usize| RecordPlan {
        samples: (0..count).map(|n| asked(&format!("sample {n}"), &[("in_x", large.clone())])).collect(),
        ..RecordPlan::default()
    };
    assert!(record(session.as_mut(), &plan(1)).is_ok());
    let refused = record(session.as_mut(), &plan(2)).unwrap_err().cause;
    assert_eq!(refused, "sample 1: the file would have more than the 67108864 bytes that are read of it");
    // Too many elements are refused before any is written.
    let many = Tensor::new(DataType::Uint8, [1 << 25], vec![0; 1 << 25].into()).unwrap();
    let mut document = Document::default();
    assert!(document.add(&BTreeMap::from([("x".to_owned(), many)]), &BTreeMap::new(), &[]).unwrap_err().contains("67108864"));
    assert!(document.lines.is_empty());
}
