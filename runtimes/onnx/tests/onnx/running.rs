//! What a run computes, and whose fault it is where it does not.

use bascule_onnx_writer::{Attribute, Graph, models};
use bascule_runtime_api::{DataType, RunError, Tensor};

use crate::fixture::{Folders, floats, run};

#[test]
fn models_compute_what_they_say() {
    let Some(folders) = Folders::new() else { return };
    let mut constant = folders.load(&models::constant(7.5, 3));
    assert_eq!(run(constant.as_mut(), &[floats(&[2, 3], &[f32::NAN; 6])]), Ok(vec![floats(&[2, 3], &[7.5; 6])]));
    let mut linear = folders.load(&models::linear(&[1.0, 0.0, 0.0, 2.0], &[10.0, 20.0]));
    assert_eq!(run(linear.as_mut(), &[floats(&[1, 2], &[3.0, 4.0])]), Ok(vec![floats(&[1, 2], &[13.0, 28.0])]));
    let mut slow = folders.load(&models::slow());
    let iterations = Tensor::from_elements([], &[1000i64]).unwrap();
    assert_eq!(run(slow.as_mut(), &[iterations, floats(&[2], &[0.5, 1.5])]), Ok(vec![floats(&[2], &[1000.5, 1001.5])]));
}

#[test]
fn inputs_that_do_not_go_together_are_the_callers_fault() {
    let Some(folders) = Folders::new() else { return };
    let pair = |operator: &str, rank: usize, attributes: Vec<(&str, Attribute)>| {
        let shape = vec![-1; rank];
        let graph = Graph::new().input("a", DataType::Fp32, &shape).input("b", DataType::Fp32, &shape);
        graph.output("y", DataType::Fp32, &shape).node_with(operator, &["a", "b"], &["y"], attributes).build()
    };
    let zeroes = |shape: &[i64]| floats(shape, &vec![0.0; shape.iter().product::<i64>() as usize]);
    let reshape = Graph::new().input("x", DataType::Fp32, &[-1]).input("to", DataType::Int64, &[-1]);
    let reshape = reshape.output("y", DataType::Fp32, &[-1]).node("Reshape", &["x", "to"], &["y"]).build();
    let lstm = Graph::new().input("x", DataType::Fp32, &[1, -1, 1]).input("state", DataType::Fp32, &[1, -1, 1]);
    let lstm = lstm.weights("w", DataType::Fp32, &[1, 4, 1], vec![0; 16]).output("y", DataType::Fp32, &[1, 1, -1, 1]);
    let size = vec![("hidden_size", Attribute::Int(1))];
    let lstm = lstm.node_with("LSTM", &["x", "w", "w", "", "", "state"], &["y"], size).build();
    let cases = [
        (lstm, vec![zeroes(&[1, 1, 1]), zeroes(&[1, 8, 1])]),
        (models::add(), vec![zeroes(&[2]), zeroes(&[3])]),
        (models::add(), vec![zeroes(&[0]), zeroes(&[3])]),
        (pair("MatMul", 2, vec![]), vec![zeroes(&[2, 3]), zeroes(&[4, 2])]),
        (pair("MatMul", 3, vec![]), vec![zeroes(&[2, 2, 3]), zeroes(&[3, 3, 2])]),
        (pair("Gemm", 2, vec![]), vec![zeroes(&[2, 3]), zeroes(&[4, 2])]),
        (pair("Concat", 2, vec![("axis", Attribute::Int(0))]), vec![zeroes(&[2, 3]), zeroes(&[4, 2])]),
        (reshape, vec![zeroes(&[7]), Tensor::from_elements([1], &[6i64]).unwrap()]),
        (models::large(1, None), vec![Tensor::from_elements([1], &[i64::MAX]).unwrap()]),
    ];
    for (model, inputs) in cases {
        let mut session = folders.load(&model);
        match run(session.as_mut(), &inputs) {
            Err(RunError::InvalidInput { message }) => assert!(!message.contains(" /"), "a path in: {message}"),
            other => panic!("{inputs:?} gave {other:?}"),
        }
    }
}

#[test]
fn a_boolean_that_a_model_holds_is_zero_or_one() {
    let Some(folders) = Folders::new() else { return };
    let graph = Graph::new().input("x", DataType::Fp32, &[1]).output("y", DataType::Bool, &[4]);
    let graph = graph.weights("flags", DataType::Bool, &[4], vec![0, 1, 2, 0xff]).node("Identity", &["flags"], &["y"]);
    let mut session = folders.load(&graph.build());
    let output = run(session.as_mut(), &[floats(&[1], &[0.0])]).unwrap().remove(0);
    assert_eq!(output.bytes()[..], [0, 1, 1, 1]);
}

#[test]
fn a_session_goes_on_after_an_error() {
    let Some(folders) = Folders::new() else { return };
    let mut add = folders.load(&models::add());
    let two = floats(&[2], &[1.0, 2.0]);
    for _ in 0..3 {
        assert!(run(add.as_mut(), &[two.clone(), floats(&[3], &[0.0; 3])]).is_err());
        assert_eq!(run(add.as_mut(), &[two.clone(), two.clone()]), Ok(vec![floats(&[2], &[2.0, 4.0])]));
    }
}

#[test]
fn a_model_that_fails_is_not_the_callers_fault() {
    let Some(folders) = Folders::new() else { return };
    // Text that is no number can't be cast: the operator fails, and nothing in the signature forbids it.
    let graph = Graph::new().input("x", DataType::Bytes, &[-1]).output("y", DataType::Fp32, &[-1]);
    let to = Attribute::Int(1);
    let mut cast = folders.load(&graph.node_with("Cast", &["x"], &["y"], vec![("to", to)]).build());
    let numbers = Tensor::from_byte_strings([2], &["1.5", "2"]).unwrap();
    assert_eq!(run(cast.as_mut(), &[numbers]), Ok(vec![floats(&[2], &[1.5, 2.0])]));
    let words = Tensor::from_byte_strings([1], &["word"]).unwrap();
    let refused = run(cast.as_mut(), &[words]);
    assert!(matches!(refused, Err(RunError::Failed { .. })), "{refused:?}");
    // All sizes are fixed here, so that they were checked: what does not go together then is inside the model.
    let graph = Graph::new().input("x", DataType::Fp32, &[2]).output("y", DataType::Fp32, &[-1]);
    let to = Attribute::Tensor(DataType::Int64, vec![1], 3i64.to_le_bytes().to_vec());
    let graph = graph.node_with("Constant", &[], &["three"], vec![("value", to)]);
    // How many places there are is not known when the model is loaded, or loading would fail.
    let graph = graph.node("NonZero", &["x"], &["places"]).node("Shape", &["places"], &["two"]);
    let graph = graph.node("Mul", &["two", "three"], &["six"]).node("Reshape", &["x", "six"], &["y"]);
    let mut broken = folders.load(&graph.build());
    let refused = run(broken.as_mut(), &[floats(&[2], &[1.0, 1.0])]);
    assert!(matches!(refused, Err(RunError::Failed { .. })), "{refused:?}");
}
