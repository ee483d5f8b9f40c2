//! What loading promises: the signature, and an error of the right kind for each fault.

use super::{Fixture, Model, load};
use crate::{DataType, Device, LoadError, LoadOptions, Runtime, Signature, TensorSpec};

pub(super) fn check(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    the_library_has_a_version(runtime);
    the_signature_is_that_of_the_model(runtime, fixture);
    a_declaration_narrows(runtime, fixture);
    a_contradiction_is_refused(runtime, fixture);
    broken_files_are_refused(runtime, fixture);
    a_missing_file_is_refused(runtime, fixture);
    what_the_runtime_lacks_is_refused(runtime, fixture);
    memory_is_estimated(runtime, fixture);
}

fn the_library_has_a_version(runtime: &dyn Runtime) {
    let version = runtime.version().unwrap_or_else(|error| panic!("{} has no version: {error}", runtime.name()));
    assert!(!version.is_empty(), "{} has an empty version", runtime.name());
    assert!(!runtime.format().is_empty(), "{} has no format", runtime.name());
}

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec::new(name, datatype, shape)
}

fn the_signature_is_that_of_the_model(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let cases: [(&[i64], Option<u8>); 4] = [(&[-1, 3], Some(0)), (&[2, -1], None), (&[2, 3], None), (&[], None)];
    for (shape, batch_axis) in cases {
        let session = load(runtime, &fixture.identity(DataType::Fp32, shape));
        let inputs = vec![spec("x", DataType::Fp32, shape)];
        let outputs = vec![spec("y", DataType::Fp32, shape)];
        assert_eq!(*session.signature(), Signature { inputs, outputs, batch_axis }, "the signature of an identity of {shape:?}");
        assert_eq!(session.device(), Device::Cpu, "a model that asks for no device runs elsewhere");
    }
}

fn a_declaration_narrows(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let mut model = fixture.identity(DataType::Fp32, &[-1, -1]);
    let inputs = vec![spec("x", DataType::Fp32, &[-1, 4])];
    let cases = [(Some(0), vec![spec("y", DataType::Fp32, &[-1, 4])]), (None, vec![])];
    // Without a schema, outputs that are not declared are not there.
    let cases = cases.into_iter().filter(|(_, outputs)| fixture.has_schema() || !outputs.is_empty());
    for (batch_axis, outputs) in cases {
        let expected = if outputs.is_empty() { vec![spec("y", DataType::Fp32, &[-1, -1])] } else { outputs.clone() };
        model.options.declared = Some(Signature { inputs: inputs.clone(), outputs, batch_axis });
        let session = load(runtime, &model);
        let expected = Signature { inputs: inputs.clone(), outputs: expected, batch_axis };
        assert_eq!(*session.signature(), expected, "a declaration narrows the signature and settles the batch axis");
    }
}

fn a_contradiction_is_refused(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    if !fixture.has_schema() {
        // Nothing to contradict.
        return;
    }
    let model = fixture.identity(DataType::Fp32, &[-1, 3]);
    let cases = [
        ("another datatype", spec("x", DataType::Int64, &[-1, 3]), spec("y", DataType::Fp32, &[-1, 3])),
        ("another size", spec("x", DataType::Fp32, &[-1, 3]), spec("y", DataType::Fp32, &[-1, 4])),
        ("another rank", spec("x", DataType::Fp32, &[3]), spec("y", DataType::Fp32, &[-1, 3])),
        ("another name", spec("z", DataType::Fp32, &[-1, 3]), spec("y", DataType::Fp32, &[-1, 3])),
    ];
    for (what, input, output) in cases {
        let declared = Some(Signature { inputs: vec![input], outputs: vec![output], batch_axis: None });
        let options = LoadOptions { declared, ..model.options.clone() };
        match refused(runtime, &Model { options, ..model.clone() }, what) {
            LoadError::Signature { entrypoint, .. } => assert_eq!(entrypoint, model.options.entrypoint, "{what}"),
            other => panic!("a declaration with {what} gave {other:?}, expected a signature error"),
        }
    }
}

fn broken_files_are_refused(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    for (how, model) in fixture.broken() {
        let error = refused(runtime, &model, how);
        let LoadError::InvalidModel { entrypoint, message } = &error else {
            panic!("a model file that is {how} gave {error:?}, expected an invalid model");
        };
        assert_eq!(*entrypoint, model.options.entrypoint, "{how}");
        assert!(!message.trim().is_empty(), "a model file that is {how} gave an empty message");
    }
}

fn a_missing_file_is_refused(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let mut model = fixture.identity(DataType::Fp32, &[1]);
    model.options.entrypoint = "no-such-file".into();
    let loaded = refused(runtime, &model, "absent");
    assert!(matches!(loaded, LoadError::Io { .. }), "an absent model file gave {loaded:?}, expected that it can't be read");
    let estimated = runtime.estimate(&model.dir, &model.options);
    assert!(matches!(estimated, Err(LoadError::Io { .. })), "the estimate of an absent model file gave {estimated:?}");
}

fn what_the_runtime_lacks_is_refused(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let mut model = fixture.identity(DataType::Fp32, &[1]);
    assert!(runtime.check_device(Device::Cpu).is_ok(), "every runtime can compute on the processor");
    let absent = runtime.check_device(Device::Cuda(u32::MAX));
    assert!(matches!(absent, Err(LoadError::Device { .. })), "a device that is not there is said to be there: {absent:?}");
    model.options.device = Device::Cuda(u32::MAX);
    let error = refused(runtime, &model, "for a device that is not there");
    assert!(
        matches!(error, LoadError::Device { device: Device::Cuda(u32::MAX), .. }),
        "a device that is not there gave {error:?}, expected a device error and never another device"
    );
    model.options.device = Device::Cpu;
    model.options.options.insert("no_such_setting".into(), "1".into());
    match refused(runtime, &model, "with an unknown setting") {
        LoadError::Option { key, .. } => assert_eq!(key, "no_such_setting"),
        other => panic!("an unknown setting gave {other:?}, expected an option error that names it"),
    }
}

fn memory_is_estimated(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let model = fixture.identity(DataType::Fp32, &[1]);
    let estimate = runtime.estimate(&model.dir, &model.options).unwrap_or_else(|error| panic!("no estimate: {error}"));
    assert!(!estimate.measured, "an estimate calls itself measured");
    assert!(estimate.host_bytes > 0, "a model on the processor is estimated to take no memory");
    assert_eq!(estimate.device_bytes, 0, "a model on the processor is estimated to take memory of a device");
    assert_eq!(load(runtime, &model).footprint().device_bytes, 0, "a session on the processor takes memory of a device");
}

/// The error of a load that must fail; it must not tell where the version's folder is.
fn refused(runtime: &dyn Runtime, model: &Model, what: &str) -> LoadError {
    let Err(error) = runtime.load(&model.dir, &model.options) else {
        panic!("a model that is {what} was loaded");
    };
    let text = error.to_string();
    assert!(!text.contains(&*model.dir.to_string_lossy()), "the error tells the folder's absolute path: {text}");
    error
}
