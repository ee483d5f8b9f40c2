//! The fake runtime keeps the promises of every runtime, and does what its model files say.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use bascule_runtime_api::conformance::{self, Endless, Fixture, Model};
use bascule_runtime_api::{DataType, LoadOptions, RunContext, RunError, Runtime, Session, Tensor, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

struct Folders {
    runtime: FakeRuntime,
    root: TempDir,
    next: Cell<u32>,
}

impl Folders {
    fn new() -> Folders {
        Folders { runtime: FakeRuntime::new(), root: TempDir::new().unwrap(), next: Cell::new(0) }
    }

    fn file(&self, content: impl AsRef<[u8]>) -> Model {
        self.next.set(self.next.get() + 1);
        let dir: PathBuf = self.root.path().join(self.next.get().to_string());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("model.json"), content).unwrap();
        Model { dir, options: LoadOptions { entrypoint: "model.json".into(), ..LoadOptions::default() } }
    }

    fn model(&self, model: &FakeModel) -> Model {
        self.file(serde_json::to_vec(model).unwrap())
    }

    fn load(&self, model: &FakeModel) -> Box<dyn Session> {
        let made = self.model(model);
        self.runtime.load(&made.dir, &made.options).unwrap()
    }
}

impl Fixture for Folders {
    fn identity(&self, datatype: DataType, shape: &[i64]) -> Model {
        let batch_axis = (shape.first() == Some(&-1)).then_some(0);
        self.model(&FakeModel { batch_axis, ..identity(datatype, shape) })
    }

    fn broken(&self) -> Vec<(&'static str, Model)> {
        let whole = serde_json::to_vec(&identity(DataType::Fp32, &[1])).unwrap();
        vec![
            ("empty", self.file("")),
            ("truncated", self.file(&whole[..whole.len() / 2])),
            ("of another format", self.file([0xff, 0x00, 0x08, 0x07])),
            ("with an unknown key", self.file(r#"{"op": "identity", "inputs": [], "outputs": [], "speed": 1}"#)),
        ]
    }

    fn endless(&self) -> Option<Endless> {
        let model = self.model(&FakeModel { block: true, ..identity(DataType::Fp32, &[1]) });
        let inputs = vec![numbers(&[1], &[1.0])];
        Some(Endless { model, forever: inputs.clone(), brief: inputs })
    }

    fn unblock(&self) {
        self.runtime.log().release();
    }

    fn live_sessions(&self) -> Option<usize> {
        Some(self.runtime.log().counts().live)
    }
}

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec::new(name, datatype, shape)
}

fn identity(datatype: DataType, shape: &[i64]) -> FakeModel {
    FakeModel::new(FakeOp::Identity, vec![spec("x", datatype, shape)], vec![spec("y", datatype, shape)])
}

fn numbers(shape: &[i64], elements: &[f32]) -> Tensor {
    Tensor::from_elements(shape, elements).unwrap()
}

fn run(session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
    session.run(inputs, &RunContext::default())
}

#[test]
fn it_keeps_the_promises_of_every_runtime() {
    let folders = Folders::new();
    conformance::check(&folders.runtime, &folders);
}

#[test]
fn a_constant_fills_every_datatype_with_its_value() {
    let folders = Folders::new();
    for datatype in DataType::ALL {
        let (inputs, outputs) = (vec![spec("x", DataType::Int8, &[-1, 9])], vec![spec("y", datatype, &[-1, 2])]);
        let mut session = folders.load(&FakeModel { value: 1.0, ..FakeModel::new(FakeOp::Constant, inputs, outputs) });
        let input = Tensor::from_elements([3, 9], &[0i8; 27]).unwrap();
        let output = run(session.as_mut(), &[input]).unwrap().remove(0);
        assert_eq!((output.datatype(), output.shape()), (datatype, [3, 2].as_slice()));
        let one = match datatype {
            DataType::Bytes => b"\x01\0\0\x001".to_vec(),
            DataType::Fp16 => half::f16::ONE.to_le_bytes().to_vec(),
            DataType::Bf16 => half::bf16::ONE.to_le_bytes().to_vec(),
            DataType::Fp32 => 1f32.to_le_bytes().to_vec(),
            DataType::Fp64 => 1f64.to_le_bytes().to_vec(),
            _ => 1u64.to_le_bytes()[..datatype.element_bytes().unwrap()].to_vec(),
        };
        assert_eq!(output.bytes()[..], one.repeat(6), "{datatype}");
    }
}

#[test]
fn add_sums_and_refuses_sizes_that_differ() {
    let folders = Folders::new();
    let inputs = vec![spec("a", DataType::Fp32, &[-1]), spec("b", DataType::Fp32, &[-1])];
    let mut session = folders.load(&FakeModel::new(FakeOp::Add, inputs, vec![spec("sum", DataType::Fp32, &[-1])]));
    let pair = numbers(&[2], &[1.0, 2.0]);
    assert_eq!(run(session.as_mut(), &[pair.clone(), pair.clone()]), Ok(vec![numbers(&[2], &[2.0, 4.0])]));
    let refused = run(session.as_mut(), &[pair, numbers(&[1], &[1.0])]);
    assert!(matches!(refused, Err(RunError::InvalidInput { .. })), "{refused:?}");
}

#[test]
fn it_fails_where_the_model_says_so() {
    let folders = Folders::new();
    let refused = folders.model(&FakeModel { fail_load: Some("out of luck".into()), ..identity(DataType::Fp32, &[1]) });
    let error = folders.runtime.load(&refused.dir, &refused.options).err().unwrap();
    assert_eq!(error.to_string(), "model.json: out of luck");

    let mut session = folders.load(&FakeModel { fail_run_every: Some(3), ..identity(DataType::Fp32, &[1]) });
    let input = [numbers(&[1], &[5.0])];
    let failed: Vec<bool> = (0..7).map(|_| run(session.as_mut(), &input).is_err()).collect();
    assert_eq!(failed, [false, false, true, false, false, true, false]);

    let mut session = folders.load(&FakeModel { panic_on_run: true, ..identity(DataType::Fp32, &[1]) });
    assert!(thread::spawn(move || run(session.as_mut(), &input).is_ok()).join().is_err());
    let counts = folders.runtime.log().counts();
    assert_eq!((counts.succeeded, counts.failed, counts.running, counts.live), (5, 3, 0, 1));
}

#[test]
fn the_log_says_who_did_what() {
    let folders = Folders::new();
    let model = FakeModel { tag: "seven".into(), bytes: 1 << 20, ..identity(DataType::Fp32, &[-1]) };
    let mut session = folders.load(&model);
    assert_eq!(session.footprint().host_bytes, 1 << 20);
    for rows in [1, 4, 4] {
        run(session.as_mut(), &[numbers(&[rows], &vec![0.0; rows as usize])]).unwrap();
    }
    let log = folders.runtime.log();
    assert_eq!(log.batch_sizes(), BTreeMap::from([(1, 1), (4, 2)]));
    assert_eq!((log.loads()[0].session, log.loads()[0].thread), (1, thread::current().id()));
    assert!(log.drops().is_empty());
    let dropper = thread::Builder::new().name("dropper".into()).spawn(|| drop(session)).unwrap();
    let id = dropper.thread().id();
    dropper.join().unwrap();
    let drops = log.drops();
    assert_eq!(drops[0].session, 1);
    assert_eq!((drops[0].tag.as_str(), drops[0].thread, drops[0].thread_name.as_deref()), ("seven", id, Some("dropper")));
}

#[test]
fn a_blocked_run_waits_for_the_gate() {
    let folders = Folders::new();
    let mut session = folders.load(&FakeModel { block: true, ..identity(DataType::Fp32, &[1]) });
    let log = folders.runtime.log();
    let runner = thread::spawn(move || run(session.as_mut(), &[numbers(&[1], &[1.0])]));
    assert!(log.wait_until(LIMIT, |counts| counts.blocked == 1));
    assert_eq!(log.counts().succeeded, 0);
    log.release();
    assert_eq!(runner.join().unwrap(), Ok(vec![numbers(&[1], &[1.0])]));
    assert!(log.wait_until(LIMIT, |counts| counts.blocked == 0 && counts.live == 0));
    assert!(!log.wait_until(Duration::ZERO, |counts| counts.blocked == 1));
}

#[test]
fn a_delay_ends_when_the_run_is_interrupted() {
    let folders = Folders::new();
    let day = Duration::from_secs(86_400).as_micros() as u64;
    let mut session = folders.load(&FakeModel { delay_us: day, ..identity(DataType::Fp32, &[1]) });
    let interrupter = session.interrupter().unwrap();
    let runner = thread::spawn(move || run(session.as_mut(), &[numbers(&[1], &[1.0])]));
    assert!(folders.runtime.log().wait_until(LIMIT, |counts| counts.running == 1));
    interrupter.interrupt();
    assert_eq!(runner.join().unwrap(), Err(RunError::Interrupted));
    assert_eq!(folders.runtime.log().counts().interrupted, 1);
}

#[test]
fn models_that_make_no_sense_are_refused() {
    let folders = Folders::new();
    let (float, open) = (spec("x", DataType::Fp32, &[-1]), spec("y", DataType::Fp32, &[-1]));
    let cases = [
        (FakeModel::new(FakeOp::Identity, vec![float.clone()], vec![]), "an identity of 1 inputs has 0 outputs"),
        (FakeModel::new(FakeOp::Add, vec![], vec![open.clone()]), "add needs an input"),
        (FakeModel::new(FakeOp::Add, vec![spec("s", DataType::Bytes, &[1])], vec![]), "add can't sum BYTES"),
        (
            FakeModel::new(FakeOp::Constant, vec![], vec![open]),
            "output 'y' of a constant has shape [-1], expected sizes (the first may be the first input's)",
        ),
        (FakeModel { fail_run_every: Some(0), ..identity(DataType::Fp32, &[1]) }, "'fail_run_every' is 0, expected 1 or more"),
    ];
    for (model, expected) in cases {
        let made = folders.model(&model);
        let error = folders.runtime.load(&made.dir, &made.options).err().unwrap();
        assert_eq!(error.to_string(), format!("model.json: {expected}"));
    }
}
