mod placement;

use std::sync::Mutex;

use bascule_registry::Manifest;
use bascule_runtime_api::{DataType, Tensor, TensorSpec};
use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};
use tempfile::TempDir;

use super::*;
use crate::devices::Placements;
use crate::testing::{constant, folder, generation, minute, name};
use crate::trial::{Trial, TrialJob, TrialReport, Wanted};
use crate::{CrowdedTrial, Devices, Gpu};
use crate::{WarmupContent, WarmupInput, WarmupSample};

/// A version on disk, ready to be verified.
struct Fixture {
    runtime: FakeRuntime,
    dir: TempDir,
    generation: Generation,
    settings: ModelSettings,
    gpus: Vec<Gpu>,
    crowded: CrowdedTrial,
    trial: Option<Arc<dyn Trial>>,
    on_gpu: Option<(u64, Device)>,
    placements: Placements,
}

fn fixture(model: &FakeModel) -> Fixture {
    Fixture {
        runtime: FakeRuntime::new(),
        dir: folder(model),
        generation: generation(&name("m"), 1, ""),
        settings: ModelSettings::default(),
        gpus: Vec::new(),
        crowded: CrowdedTrial::default(),
        trial: None,
        on_gpu: None,
        placements: Placements::default(),
    }
}

impl Gpus for Vec<Gpu> {
    fn list(&self) -> Vec<Gpu> {
        self.clone()
    }
}

impl Fixture {
    fn manifest(&mut self) -> &mut Manifest {
        Arc::make_mut(&mut self.generation.manifest)
    }

    fn verify(&self) -> Result<Verified, LoadFailure> {
        self.verify_by(&Runtimes::open(vec![Arc::new(self.runtime.clone())]))
    }

    fn verify_by(&self, runtimes: &Runtimes) -> Result<Verified, LoadFailure> {
        let (generation, settings) = (Arc::new(self.generation.clone()), Arc::new(self.settings.clone()));
        let job = VerifyJob { on_gpu: self.on_gpu, ..VerifyJob::alone(generation, settings, Files::at(self.dir.path())) };
        let placements = self.placements.clone();
        let around = Surroundings { trial: self.trial.as_deref(), crowded: self.crowded, gpus: &self.gpus, placements };
        let verified = verify(runtimes, &job, &around)?;
        if verified.is_untried { try_out(verified, &job, &around) } else { Ok(verified) }
    }

    fn load(&self) -> Result<Loaded, LoadFailure> {
        self.load_within(WARM_UP_LIMIT)
    }

    fn load_within(&self, warm_up_limit: Duration) -> Result<Loaded, LoadFailure> {
        let verified = self.verify()?;
        let job = LoadJob {
            generation: Arc::new(self.generation.clone()),
            settings: Arc::new(self.settings.clone()),
            files: Files::at(self.dir.path()),
            verified,
        };
        load_within(job, None, warm_up_limit, || (), || minute(9))
    }

    fn failure(&self) -> String {
        let failure = self.load().unwrap_err();
        assert_eq!(self.runtime.log().counts().live, 0, "sessions that come to nothing are dropped");
        format!("{}: {}", failure.step.name(), failure.cause)
    }
}

#[test]
fn each_instance_has_a_session_and_the_estimate_counts_them() {
    let mut fixture = fixture(&FakeModel { bytes: 1000, ..constant(1.0) });
    fixture.settings.instances = 3;
    let estimate = fixture.verify().unwrap().footprint();
    assert!(estimate.host_bytes > 3000 && !estimate.measured, "{estimate:?}");
    let loaded = fixture.load().unwrap();
    assert_eq!((loaded.servable.instances(), loaded.warnings), (3, Vec::<String>::new()));
    let spec = loaded.servable.spec();
    assert_eq!((spec.runtime, spec.footprint.host_bytes, spec.footprint.measured, spec.loaded_at), ("fake", 3000, true, minute(9)));
    let counts = fixture.runtime.log().counts();
    assert_eq!((counts.live, counts.succeeded), (3, 3), "one warm-up run a session");
}

#[test]
fn the_model_file_is_one_of_the_version() {
    let outside = TempDir::new().unwrap();
    let model = serde_json::to_vec(&constant(2.0)).unwrap();
    std::fs::write(outside.path().join("other.json"), &model).unwrap();
    let mut fixture = fixture(&constant(1.0));
    std::fs::write(fixture.dir.path().join("stray.json"), &model).unwrap();
    let absolute = outside.path().join("other.json").display().to_string();
    for entrypoint in [absolute.as_str(), "../other.json", "stray.json"] {
        fixture.settings.entrypoint = Some(entrypoint.to_owned());
        let failure = fixture.failure();
        assert!(failure.starts_with("verifying: ") && failure.contains("not among the version's files"), "{failure}");
    }
    fixture.settings.entrypoint = Some(crate::testing::ENTRYPOINT.to_owned());
    fixture.load().unwrap();
}

#[test]
fn a_format_that_files_do_not_tell_is_that_of_the_settings() {
    let mut fixture = fixture(&constant(1.0));
    fixture.manifest().format = FORMAT_UNKNOWN.to_owned();
    assert!(fixture.failure().contains("`entrypoint` in model.toml"));
    fixture.settings.runtime = Some("other".to_owned());
    assert!(fixture.failure().contains("no runtime loads"));
    fixture.settings.runtime = Some("fake".to_owned());
    fixture.load().unwrap();
    fixture.settings.runtime = None;
    let path = "net.fake.json";
    std::fs::rename(fixture.dir.path().join(crate::testing::ENTRYPOINT), fixture.dir.path().join(path)).unwrap();
    fixture.manifest().files[0].path = path.to_owned();
    fixture.settings.entrypoint = Some(path.to_owned());
    fixture.load().unwrap();
}

/// A runtime that opens its library with the first model.
#[derive(Default)]
struct Late {
    runtime: FakeRuntime,
    is_open: AtomicBool,
}

impl Runtime for Late {
    fn name(&self) -> &'static str {
        self.runtime.name()
    }

    fn format(&self) -> &'static str {
        self.runtime.format()
    }

    fn version(&self) -> Result<String, LoadError> {
        let is_open = self.is_open.load(Ordering::SeqCst);
        Ok(if is_open { "2.0" } else { "not opened yet" }.to_owned())
    }

    fn estimate(&self, dir: &Path, options: &LoadOptions) -> Result<Footprint, LoadError> {
        self.is_open.store(true, Ordering::SeqCst);
        self.runtime.estimate(dir, options)
    }

    fn load(&self, dir: &Path, options: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        self.runtime.load(dir, options)
    }
}

#[test]
fn a_library_that_is_opened_late_is_known_by_its_version_all_the_same() {
    let fixture = fixture(&constant(1.0));
    let verified = fixture.verify_by(&Runtimes::open(vec![Arc::new(Late::default())])).unwrap();
    assert_eq!(verified.runtime_name(), "fake 2.0");
}

#[test]
fn failures_name_their_step_and_cause() {
    let missing = fixture(&constant(1.0));
    std::fs::remove_file(missing.dir.path().join(crate::testing::ENTRYPOINT)).unwrap();
    assert!(missing.failure().starts_with("verifying: can't read model.json: "));

    let refused = fixture(&FakeModel { fail_load: Some("out of luck".to_owned()), ..constant(1.0) });
    assert_eq!(refused.failure(), "loading: model.json: out of luck");

    let mut format = fixture(&constant(1.0));
    format.manifest().format = "torchscript".to_owned();
    assert_eq!(format.failure(), "verifying: no runtime loads the format 'torchscript'; formats known: fake");

    let mut signature = fixture(&constant(1.0));
    signature.manifest().signature = Some(serde_json::json!({"inputs": 3}));
    assert!(signature.failure().starts_with("verifying: manifest field `signature`: "));

    let mut option = fixture(&constant(1.0));
    option.settings.runtime_options.insert("speed".to_owned(), "11".to_owned());
    assert_eq!(option.failure(), "loading: setting 'speed': the fake runtime has no settings");

    let mut golden = fixture(&constant(1.0));
    golden.manifest().golden = Some("golden.json".to_owned());
    assert!(golden.failure().starts_with("verifying: golden file golden.json: "));
}

#[test]
fn the_manifests_signature_goes_before_that_of_the_settings_and_contradictions_fail() {
    let mut fixture = fixture(&constant(1.0));
    let wrong = Signature { inputs: vec![TensorSpec::new("z", DataType::Fp32, [-1, 2])], ..Signature::default() };
    fixture.settings.declared = Some(wrong);
    let failure = fixture.failure();
    assert!(failure.starts_with("loading: the declared signature contradicts model.json: input 'z'"), "{failure}");
    let right = Signature { inputs: vec![TensorSpec::new("x", DataType::Fp32, [-1, 2])], outputs: vec![], batch_axis: Some(0) };
    fixture.manifest().signature = Some(serde_json::to_value(right).unwrap());
    assert!(fixture.load().is_ok());
}

fn warm_up(input: &str, values: [f32; 2]) -> WarmupSample {
    let content = WarmupContent::Raw(Tensor::from_elements([1, 2], &values).unwrap().bytes()[..].into());
    let inputs = vec![WarmupInput { name: input.to_owned(), datatype: DataType::Fp32, shape: vec![1, 2], content }];
    WarmupSample { name: "typical".to_owned(), inputs, count: 2 }
}

#[test]
fn configured_warm_ups_have_to_succeed() {
    let mut fixture = fixture(&constant(1.0));
    fixture.settings.warmup = vec![warm_up("x", [1.0, 2.0])];
    fixture.load().unwrap();
    assert_eq!(fixture.runtime.log().counts().succeeded, 2);
    fixture.settings.warmup = vec![warm_up("q", [1.0, 2.0])];
    let unknown = fixture.load().unwrap_err();
    assert_eq!(
        (unknown.step, unknown.cause.as_str()),
        (FailedStep::Warming, "warm-up 'typical': the model has no input 'q'; expected x")
    );
    fixture.settings.warmup = vec![WarmupSample { inputs: Vec::new(), ..warm_up("x", [1.0, 2.0]) }];
    assert_eq!(fixture.load().unwrap_err().cause, "warm-up 'typical': input 'x' of the model is missing");
}

#[test]
fn a_configured_warm_up_that_fails_fails_the_version() {
    let mut fixture = fixture(&FakeModel { fail_run_every: Some(2), ..constant(1.0) });
    fixture.settings.warmup = vec![warm_up("x", [1.0, 2.0])];
    assert_eq!(fixture.failure(), "warming: warm-up 'typical': run 2 fails, as every 2th does");
}

#[test]
fn a_made_up_warm_up_that_fails_is_a_warning() {
    let fixture = fixture(&FakeModel { fail_run_every: Some(1), ..constant(1.0) });
    let loaded = fixture.load().unwrap();
    assert_eq!(loaded.warnings, ["no warm-up: a run with zeros failed: run 1 fails, as every 1th does"]);
}

#[test]
fn zeros_are_made_up_for_every_datatype_and_not_beyond_reason() {
    for datatype in DataType::ALL {
        let (x, y) = (TensorSpec::new("x", datatype, [-1, 3]), TensorSpec::new("y", datatype, [-1, 3]));
        let fixture = fixture(&FakeModel::new(FakeOp::Identity, vec![x], vec![y]));
        assert_eq!(fixture.load().unwrap().warnings, Vec::<String>::new(), "{datatype}");
    }
    for dims in [[1 << 40, 1], [i64::MAX, 2]] {
        let (x, y) = (TensorSpec::new("x", DataType::Int8, dims), TensorSpec::new("y", DataType::Int8, dims));
        let fixture = fixture(&FakeModel::new(FakeOp::Identity, vec![x], vec![y]));
        let expected = format!("no warm-up: input 'x' of shape {dims:?} is too large to make up");
        assert_eq!(fixture.load().unwrap().warnings, [expected]);
    }
}

#[test]
fn a_warm_up_that_does_not_end_is_stopped_and_fails_the_version() {
    let mut fixture = fixture(&FakeModel { block: true, ..constant(1.0) });
    fixture.settings.instances = 2;
    let expected = "warm-up runs and golden samples took more than 20ms together and were stopped";
    for (samples, runs) in [(Vec::new(), 1), (vec![warm_up("x", [1.0, 2.0])], 2)] {
        fixture.settings.warmup = samples;
        let failure = fixture.load_within(Duration::from_millis(20)).unwrap_err();
        assert_eq!((failure.step, failure.cause.as_str()), (FailedStep::Warming, expected));
        let counts = fixture.runtime.log().counts();
        assert_eq!((counts.live, counts.interrupted), (0, runs), "the first run is stopped, no other begins");
    }
}

#[test]
fn settings_that_want_batches_of_what_cannot_be_batched_fail_before_any_run() {
    let spec = |name: &str, shape: &[i64]| TensorSpec::new(name, DataType::Int64, shape);
    let model = |inputs: &[TensorSpec], outputs: &[TensorSpec]| FakeModel::new(FakeOp::Constant, inputs.to_vec(), outputs.to_vec());
    let audio = spec("audio", &[-1, 512]);
    let cases = [
        (
            model(&[audio.clone(), spec("sr", &[])], &[spec("y", &[-1, 1])]),
            "input 'sr' of the model has shape [], expected a first dimension of any size (-1)",
        ),
        (
            model(std::slice::from_ref(&audio), &[spec("y", &[2, 1])]),
            "output 'y' of the model has shape [2, 1], expected a first dimension of any size (-1)",
        ),
        (model(&[], &[spec("y", &[1])]), "the model has no input"),
    ];
    for (model, contradiction) in cases {
        let mut fixture = fixture(&model);
        assert!(fixture.load().is_ok(), "without batches it loads");
        fixture.settings.max_batch_size = Some(0);
        assert!(fixture.load().is_ok());
        let runs = fixture.runtime.log().counts().succeeded;
        fixture.settings.max_batch_size = Some(8);
        let expected = format!("loading: the settings contradict model.json: `max_batch_size` is 8 but {contradiction}");
        let failure = fixture.load().unwrap_err();
        assert_eq!(format!("{}: {}", failure.step.name(), failure.cause), expected);
        assert_eq!(fixture.runtime.log().counts().succeeded, runs);
    }
}

#[test]
fn golden_samples_decide() {
    let mut fixture = fixture(&constant(7.0));
    fixture.manifest().golden = Some("golden.json".to_owned());
    let sample = |value: f32| {
        format!(
            r#"{{"schema": 1, "samples": [{{"inputs": {{"x": {{"datatype": "FP32", "shape": [1, 2], "data": [1, 2]}}}},
                "outputs": {{"y": {{"datatype": "FP32", "shape": [1, 1], "data": [{value}]}}}}}}]}}"#
        )
    };
    std::fs::write(fixture.dir.path().join("golden.json"), sample(7.0)).unwrap();
    assert!(fixture.load().is_ok());
    std::fs::write(fixture.dir.path().join("golden.json"), sample(8.0)).unwrap();
    let failure = fixture.load().unwrap_err();
    assert_eq!(
        (failure.step, failure.cause.as_str()),
        (FailedStep::Golden, "golden sample 0: output 'y': element 0: expected 8, got 7")
    );
}

#[test]
fn nan_before_any_traffic_is_a_warning() {
    let spec = |name: &str| TensorSpec::new(name, DataType::Fp32, [1, 2]);
    let mut fixture = fixture(&FakeModel::new(FakeOp::Identity, vec![spec("x")], vec![spec("y")]));
    let expected = ["output 'y' had NaN in warm-up runs or golden samples"];
    fixture.settings.instances = 2;
    fixture.settings.warmup = vec![warm_up("x", [1.0, f32::NAN])];
    assert_eq!(fixture.load().unwrap().warnings, expected);
    fixture.settings.warmup = vec![warm_up("x", [1.0, 2.0])];
    assert!(fixture.load().unwrap().warnings.is_empty());
    fixture.manifest().golden = Some("golden.json".to_owned());
    let tensor = r#"{"datatype": "FP32", "shape": [1, 2], "data": ["NaN", 1]}"#;
    let golden = format!(r#"{{"schema": 1, "samples": [{{"inputs": {{"x": {tensor}}}, "outputs": {{"y": {tensor}}}}}]}}"#);
    std::fs::write(fixture.dir.path().join("golden.json"), golden).unwrap();
    assert_eq!(fixture.load().unwrap().warnings, expected);
}

#[test]
fn a_panic_fails_the_version_and_nothing_else() {
    let fixture = fixture(&FakeModel { panic_on_run: true, tag: "bomb".to_owned(), ..constant(1.0) });
    assert_eq!(fixture.failure(), "warming: the runtime panicked: the fake model 'bomb' panics on every run");
}

#[test]
fn warm_up_begins_after_the_sessions_are_made_and_off_the_callers_thread() {
    let fixture = fixture(&constant(1.0));
    let verified = fixture.verify().unwrap();
    let job = LoadJob {
        generation: Arc::new(fixture.generation.clone()),
        settings: Arc::default(),
        files: Files::at(fixture.dir.path()),
        verified,
    };
    let seen = Arc::new(Mutex::new(None));
    let (noted, log) = (Arc::clone(&seen), fixture.runtime.log());
    let on_warming = move || *noted.lock().unwrap() = Some((log.counts().loaded, log.counts().succeeded));
    drop(load(job, None, on_warming, || minute(0)).unwrap());
    assert_eq!(*seen.lock().unwrap(), Some((1, 0)));
    let here = thread::current().id();
    let events = fixture.runtime.log().loads();
    assert!(events.iter().all(|event| event.thread != here && event.thread_name.as_deref() == Some("loader")), "{events:?}");
}
