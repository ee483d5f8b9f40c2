//! Signatures, external weights, settings, and models that can't be served.

use std::fs;

use bascule_onnx_writer::{Graph, models};
use bascule_runtime_api::{DataType, Device, LoadError, Runtime, Signature, Tensor, TensorSpec};

use crate::fixture::{Folders, floats, run};

fn specs(specs: &[(&str, DataType, &[i64])]) -> Vec<TensorSpec> {
    specs.iter().map(|(name, datatype, shape)| TensorSpec::new(*name, *datatype, *shape)).collect()
}

#[test]
fn the_signature_keeps_the_order_of_the_file() {
    let Some(folders) = Folders::new() else { return };
    let session = folders.load(&models::add_sub());
    let both: [&[i64]; 2] = [&[-1, 16], &[-1, 16]];
    let expected = Signature {
        inputs: specs(&[("INPUT0", DataType::Int32, both[0]), ("INPUT1", DataType::Int32, both[1])]),
        outputs: specs(&[("OUTPUT0", DataType::Int32, both[0]), ("OUTPUT1", DataType::Int32, both[1])]),
        batch_axis: Some(0),
    };
    assert_eq!(*session.signature(), expected);
}

#[test]
fn only_declared_outputs_are_given_in_declared_order() {
    let Some(folders) = Folders::new() else { return };
    let mut model = folders.write(&models::add_sub());
    let inputs = specs(&[("INPUT1", DataType::Int32, &[-1, 16]), ("INPUT0", DataType::Int32, &[-1, 16])]);
    let input = |first: i32| Tensor::from_elements([1, 16], &[first; 16]).unwrap();
    let cases: [&[&str]; 2] = [&["OUTPUT1"], &["OUTPUT1", "OUTPUT0"]];
    for names in cases {
        let outputs = names.iter().map(|name| TensorSpec::new(*name, DataType::Int32, [-1, 16])).collect();
        model.options.declared = Some(Signature { inputs: inputs.clone(), outputs, batch_axis: Some(0) });
        let mut session = folders.try_load(&model).unwrap();
        assert_eq!(session.signature().inputs[0].name, "INPUT0");
        let values = [("OUTPUT0", 10), ("OUTPUT1", 4)];
        let expected: Vec<Tensor> =
            names.iter().map(|name| input(values.iter().find(|value| value.0 == *name).unwrap().1)).collect();
        assert_eq!(run(session.as_mut(), &[input(7), input(3)]).unwrap(), expected);
    }
}

#[test]
fn the_model_file_lies_below_its_folder() {
    let Some(folders) = Folders::new() else { return };
    let mut model = folders.write(&models::add_sub());
    let real = model.dir.join(&model.options.entrypoint);
    let climbing = std::path::Path::new("..").join(model.dir.file_name().unwrap()).join(&model.options.entrypoint);
    assert!(model.dir.join(&climbing).is_file());
    for outside in [real, climbing] {
        model.options.entrypoint = outside;
        let error = folders.try_load(&model).err().unwrap();
        assert!(
            matches!(error, LoadError::InvalidModel { .. }) && error.to_string().contains("below the version's folder"),
            "{error}"
        );
    }
}

#[test]
fn a_file_that_is_too_long_for_the_library_is_refused_without_being_read() {
    let Some(folders) = Folders::new() else { return };
    let model = folders.write(&models::add_sub());
    // It takes no room on the disk: what was written is its start.
    fs::OpenOptions::new().write(true).open(model.dir.join("model.onnx")).unwrap().set_len(10 << 30).unwrap();
    let said = "model.onnx: has 10737418240 bytes, expected at most 2147483647: larger weights go into files of their own";
    assert_eq!(folders.refused(&model).to_string(), said);
    assert_eq!(folders.runtime.estimate(&model.dir, &model.options).unwrap_err().to_string(), said);
}

#[test]
fn what_is_no_tensor_is_named() {
    let Some(folders) = Folders::new() else { return };
    let nested = Graph::new()
        .nested_sequence_input("lists", DataType::Fp32)
        .input("x", DataType::Fp32, &[1])
        .output("y", DataType::Fp32, &[1])
        .node("Identity", &["x"], &["y"])
        .build();
    let cases = [
        (models::sequence_input(), "input 'words' has type Sequence<"),
        (models::sequence_output(), "output 'parts' has type Sequence<"),
        (models::optional_input(), "input 'maybe' has type Option<"),
    ];
    for (model, expected) in cases {
        let error = folders.refused(&folders.write(&model));
        assert!(matches!(&error, LoadError::Unsupported { message } if message.starts_with(expected)), "{error:?}");
    }
    // The library itself does not take this one.
    let error = folders.refused(&folders.write(&nested));
    assert!(matches!(error, LoadError::InvalidModel { .. }) && error.to_string().contains("seq(seq("), "{error:?}");
}

#[test]
fn an_unknown_rank_is_declared_or_refused() {
    let Some(folders) = Folders::new() else { return };
    let graph = Graph::new().input_of_unknown_rank("x", DataType::Fp32).output_of_unknown_rank("y", DataType::Fp32);
    let mut model = folders.write(&graph.node("Identity", &["x"], &["y"]).build());
    let error = folders.refused(&model);
    assert_eq!(error.to_string(), "input 'x' has no number of dimensions in the model: declare its shape");
    let shape: &[i64] = &[-1, 2];
    let declared = Signature {
        inputs: specs(&[("x", DataType::Fp32, shape)]),
        outputs: specs(&[("y", DataType::Fp32, shape)]),
        batch_axis: Some(0),
    };
    model.options.declared = Some(declared.clone());
    let mut session = folders.try_load(&model).unwrap();
    assert_eq!(*session.signature(), declared);
    let input = floats(&[1, 2], &[1.0, 2.0]);
    assert_eq!(run(session.as_mut(), std::slice::from_ref(&input)), Ok(vec![input]));
    // An output is served even so: its shape is seen when it is there.
    let graph = Graph::new().input("x", DataType::Fp32, shape).output_of_unknown_rank("y", DataType::Fp32);
    let session = folders.load(&graph.node("NonZero", &["x"], &["z"]).node("Identity", &["x"], &["y"]).build());
    assert_eq!(session.signature().inputs[0].shape, shape);
}

#[test]
fn weights_in_files_of_their_own_are_read_and_counted() {
    let Some(folders) = Folders::new() else { return };
    let model = folders.write(&models::large(2, Some("table.bin")));
    let bytes = fs::metadata(model.dir.join("model.onnx")).unwrap().len() + (2 << 20);
    let estimate = folders.runtime.estimate(&model.dir, &model.options).unwrap();
    assert_eq!(estimate.host_bytes, 2 * bytes + (1 << 20));
    // A file that the model does not name is none of its memory.
    fs::write(model.dir.join("labels.txt"), vec![b'x'; 1 << 20]).unwrap();
    assert_eq!(folders.runtime.estimate(&model.dir, &model.options).unwrap(), estimate);
    let mut session = folders.try_load(&model).unwrap();
    assert_eq!(session.footprint().host_bytes, bytes + (1 << 20));
    let rows = Tensor::from_elements([2], &[3i64, 500]).unwrap();
    let output = run(session.as_mut(), &[rows]).unwrap().remove(0);
    assert_eq!(output.shape(), [2, models::LARGE_COLUMNS]);
    let elements = output.elements::<f32>().unwrap();
    assert_eq!((elements[0], elements[elements.len() - 1]), (3.0, 500.0));
}

#[test]
fn weights_that_are_absent_or_elsewhere_are_named() {
    let Some(folders) = Folders::new() else { return };
    let at = |location: &str| {
        let graph = Graph::new().input("x", DataType::Int64, &[-1]).output("y", DataType::Fp32, &[-1, 4]);
        let graph = graph.weights_elsewhere("table", DataType::Fp32, &[2, 4], location, 32);
        folders.write(&graph.node("Gather", &["table", "x"], &["y"]).build())
    };
    let absent = at("table.bin");
    assert_eq!(folders.refused(&absent).to_string(), "can't read table.bin");
    fs::write(absent.dir.join("table.bin"), [0; 8]).unwrap();
    let short = folders.refused(&absent);
    assert!(matches!(short, LoadError::InvalidModel { .. }), "{short:?}");
    assert!(!short.to_string().contains(absent.dir.to_str().unwrap()), "{short}");
    let secret = folders.write(&models::identity(DataType::Fp32, &[1])).dir.join("secret.bin");
    fs::write(&secret, [0; 32]).unwrap();
    let folder = secret.parent().unwrap().file_name().unwrap().to_str().unwrap();
    for location in [secret.to_str().unwrap().to_owned(), format!("../{folder}/secret.bin")] {
        let error = folders.refused(&at(&location));
        let expected = format!("model.onnx: its weights lie at '{location}', expected a file below the model's folder");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn settings_are_taken_and_a_gpu_is_refused() {
    let Some(folders) = Folders::new() else { return };
    let mut model = folders.write(&models::linear(&[1.0, 2.0], &[0.5, 0.5]));
    let settings = [
        ("intra_op_thread_count", "2"),
        ("inter_op_thread_count", "2"),
        ("execution_mode", "1"),
        ("graph_optimization_level", "-1"),
        ("enable_mem_arena", "0"),
        ("enable_mem_pattern", "0"),
        ("session.use_device_allocator_for_initializers", "1"),
    ];
    for (key, value) in settings {
        model.options.options.insert(key.into(), value.into());
        let mut session = folders.try_load(&model).unwrap();
        assert_eq!(run(session.as_mut(), &[floats(&[1, 1], &[10.0])]), Ok(vec![floats(&[1, 2], &[10.5, 20.5])]), "{key}");
    }
    model.options.options = [("memory.enable_memory_arena_shrinkage".to_owned(), "cpu:0".to_owned())].into();
    let mut session = folders.try_load(&model).unwrap();
    assert_eq!(run(session.as_mut(), &[floats(&[1, 1], &[1.0])]), Ok(vec![floats(&[1, 2], &[1.5, 2.5])]));
    model.options.device = Device::Cuda(0);
    let error = folders.refused(&model).to_string();
    assert!(error.starts_with("device cuda:0 can't be used: onnx runtime 1."), "{error}");
    assert!(error.ends_with("was built without CUDA; onnxruntime.library sets another one"), "{error}");
    model.options.device = Device::Cpu;
    model.options.options = [("providers".to_owned(), "cuda".to_owned())].into();
    let error = folders.refused(&model).to_string();
    assert_eq!(error, "setting 'providers': cuda needs a GPU, and the model's device is cpu");
}

#[test]
fn an_unknown_operator_is_named() {
    let Some(folders) = Folders::new() else { return };
    let graph = Graph::new().input("x", DataType::Fp32, &[-1]).output("y", DataType::Fp32, &[-1]);
    let error = folders.refused(&folders.write(&graph.node("Transmogrify", &["x"], &["y"]).build()));
    assert!(matches!(error, LoadError::InvalidModel { .. }) && error.to_string().contains("Transmogrify"), "{error:?}");
}
