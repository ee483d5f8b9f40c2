//! What modules take and give, and whose fault it is when they fail.

use bascule_runtime_api::{DataType, RunError, Tensor, TensorSpec};

use crate::fixture::{Folders, floats, floats_spec, run};

fn elements(tensor: &Tensor) -> Vec<f32> {
    tensor.elements::<f32>().unwrap().into_owned()
}

#[test]
fn tensors_tuples_lists_and_what_is_nested_in_them_are_outputs() {
    let folders = Folders::new();
    let y = |count: usize| (0..count).map(|place| floats_spec(&format!("y{place}"), &[-1])).collect::<Vec<_>>();
    for (forward, count) in [
        ("x: Tensor) -> Tensor:\n    return torch.add(x, 1)", 1),
        ("x: Tensor) -> Tuple[Tensor, Tensor]:\n    return (torch.add(x, 1), torch.add(x, 2))", 2),
        ("x: Tensor) -> List[Tensor]:\n    return [torch.add(x, 1), torch.add(x, 2), torch.add(x, 3)]", 3),
        (
            "x: Tensor) -> Tuple[Tensor, Tuple[Tensor, List[Tensor]]]:\n    return (torch.add(x, 1), (torch.add(x, 2), [torch.add(x, 3)]))",
            3,
        ),
        // What is declared is served, and more may be there.
        ("x: Tensor) -> Tuple[Tensor, Tensor]:\n    return (torch.add(x, 1), torch.add(x, 2))", 1),
    ] {
        let model = folders.script(forward, vec![floats_spec("x", &[-1])], y(count));
        let outputs = run(folders.load(&model).as_mut(), &[floats(&[2], &[10.0, 20.0])]).unwrap();
        let expected: Vec<Vec<f32>> = (1..=count).map(|plus| vec![10.0 + plus as f32, 20.0 + plus as f32]).collect();
        assert_eq!(outputs.iter().map(elements).collect::<Vec<_>>(), expected, "{forward}");
    }
}

#[test]
fn a_dictionary_gives_its_outputs_by_name() {
    let folders = Folders::new();
    let forward = "x: Tensor) -> Dict[str, Tensor]:\n    return {\"less\": torch.sub(x, 1), \"more\": torch.add(x, 1)}";
    let outputs = |names: &[&str]| names.iter().map(|name| floats_spec(name, &[-1])).collect::<Vec<_>>();
    let model = folders.script(forward, vec![floats_spec("x", &[-1])], outputs(&["more", "less"]));
    let got = run(folders.load(&model).as_mut(), &[floats(&[1], &[5.0])]).unwrap();
    assert_eq!(got.iter().map(elements).collect::<Vec<_>>(), [[6.0], [4.0]]);
    let model = folders.script(forward, vec![floats_spec("x", &[-1])], outputs(&["most"]));
    let error = run(folders.load(&model).as_mut(), &[floats(&[1], &[5.0])]).unwrap_err();
    let RunError::Failed { message } = error else { panic!("{error:?}") };
    assert_eq!(message, r#"output 'most': the model returned a dictionary with ["less", "more"] and without it"#);
}

#[test]
fn numbers_in_names_say_which_argument_is_meant() {
    let folders = Folders::new();
    let forward = "a: Tensor,\n    b: Tensor) -> Tuple[Tensor, Tensor]:\n    return (torch.sub(a, b), torch.add(a, b))";
    for (names, expected) in [
        (["INPUT__0", "INPUT__1"], [-9.0, 11.0]),
        (["INPUT__1", "INPUT__0"], [9.0, 11.0]),
        (["b", "a"], [9.0, 11.0]),
        (["p", "q"], [-9.0, 11.0]),
    ] {
        let inputs = names.map(|name| floats_spec(name, &[-1])).to_vec();
        let outputs = vec![floats_spec("OUTPUT__1", &[-1]), floats_spec("OUTPUT__0", &[-1])];
        let model = folders.script(forward, inputs, outputs);
        let got = run(folders.load(&model).as_mut(), &[floats(&[1], &[1.0]), floats(&[1], &[10.0])]).unwrap();
        assert_eq!([elements(&got[1])[0], elements(&got[0])[0]], expected, "{names:?}");
    }
}

#[test]
fn forward_gets_what_its_types_ask_for() {
    let folders = Folders::new();
    let y = || vec![floats_spec("y", &[-1])];
    let two = || vec![floats_spec("a", &[-1]), floats_spec("b", &[-1])];
    let both = [floats(&[1], &[1.0]), floats(&[1], &[10.0])];
    let list = folders.script("all: List[Tensor]) -> Tensor:\n    return torch.sub(all[0], all[1])", two(), y());
    assert_eq!(elements(&run(folders.load(&list).as_mut(), &both).unwrap()[0]), [-9.0]);
    let named = folders.script("all: Dict[str, Tensor]) -> Tensor:\n    return torch.sub(all[\"b\"], all[\"a\"])", two(), y());
    assert_eq!(elements(&run(folders.load(&named).as_mut(), &both).unwrap()[0]), [9.0]);
    let scalars = "x: Tensor,\n    n: int,\n    f: float,\n    negate: bool) -> Tensor:\n    y = torch.add(torch.mul(x, n), f)\n    \
                   if negate:\n      z = torch.neg(y)\n    else:\n      z = y\n    return z";
    let inputs = vec![
        TensorSpec::new("negate", DataType::Bool, [1]),
        TensorSpec::new("f", DataType::Fp64, []),
        TensorSpec::new("n", DataType::Int32, [-1]),
        floats_spec("x", &[-1]),
    ];
    let model = folders.script(scalars, inputs, y());
    let mut session = folders.load(&model);
    let given = |n: &[i32]| {
        let negate = Tensor::new(DataType::Bool, [1], bytes::Bytes::from_static(&[1])).unwrap();
        let n = Tensor::from_elements([n.len() as i64], n).unwrap();
        [negate, Tensor::from_elements([], &[0.5f64]).unwrap(), n, floats(&[2], &[1.0, 2.0])]
    };
    assert_eq!(elements(&run(session.as_mut(), &given(&[3])).unwrap()[0]), [-3.5, -6.5]);
    let error = run(session.as_mut(), &given(&[3, 4])).unwrap_err();
    let message = "input 'n': expected one element, since forward takes it as int, got shape [2]".to_owned();
    assert_eq!(error, RunError::InvalidInput { message });
    let short = folders.script("a: Tensor,\n    b: Tensor) -> Tensor:\n    return a", vec![floats_spec("a", &[-1])], y());
    assert_eq!(folders.refused(&short), r#"inputs ["a"] are declared, but forward takes a: Tensor, b: Tensor"#);
}

#[test]
fn integers_and_truth_values_go_in_and_out() {
    let folders = Folders::new();
    let forward = "n: Tensor,\n    keep: Tensor) -> Tuple[Tensor, Tensor]:\n    return (torch.where(keep, n, torch.neg(n)), torch.logical_not(keep))";
    let inputs = vec![TensorSpec::new("n", DataType::Int64, [-1]), TensorSpec::new("keep", DataType::Bool, [-1])];
    let outputs = vec![TensorSpec::new("m", DataType::Int64, [-1]), TensorSpec::new("dropped", DataType::Bool, [-1])];
    let model = folders.script(forward, inputs, outputs);
    let keep = Tensor::new(DataType::Bool, [3], bytes::Bytes::from_static(&[1, 0, 7])).unwrap();
    let got = run(folders.load(&model).as_mut(), &[Tensor::from_elements([3], &[1i64, 2, 3]).unwrap(), keep]).unwrap();
    assert_eq!(got[0].elements::<i64>().unwrap().as_ref(), [1, -2, 3]);
    assert_eq!(got[1].bytes()[..], [0, 1, 0]);
}

#[test]
fn what_a_model_keeps_is_its_own() {
    let folders = Folders::new();
    // The first answer is the model's own tensor, and each run writes to it.
    let forward = "x: Tensor) -> Tensor:\n    return torch.add_(self.weight, x)";
    let content = crate::archive::write(&crate::archive::Script { forward, weight: &[1.0, 2.0] });
    let model = folders.file(&content, vec![floats_spec("x", &[2])], vec![floats_spec("y", &[2])]);
    let mut session = folders.load(&model);
    let first = run(session.as_mut(), &[floats(&[2], &[10.0, 10.0])]).unwrap();
    let second = run(session.as_mut(), &[floats(&[2], &[10.0, 10.0])]).unwrap();
    assert_eq!((elements(&first[0]), elements(&second[0])), (vec![11.0, 12.0], vec![21.0, 22.0]));
    drop(session);
    assert_eq!(elements(&second[0]), [21.0, 22.0]);
}

#[test]
fn sizes_that_do_not_go_together_are_the_callers_fault_and_what_else_fails_is_the_models() {
    let folders = Folders::new();
    let two = || vec![floats_spec("a", &[-1]), floats_spec("b", &[-1])];
    let model =
        folders.script("a: Tensor,\n    b: Tensor) -> Tensor:\n    return torch.add(a, b)", two(), vec![floats_spec("y", &[-1])]);
    let mut session = folders.load(&model);
    let error = run(session.as_mut(), &[floats(&[2], &[0.0; 2]), floats(&[3], &[0.0; 3])]).unwrap_err();
    let RunError::InvalidInput { message } = &error else { panic!("{error:?}") };
    assert!(message.starts_with("The size of tensor a (2) must match the size of tensor b (3)"), "{message}");
    assert!(run(session.as_mut(), &[floats(&[1], &[1.0]), floats(&[1], &[2.0])]).is_ok(), "a failed run harms the next");
    let raising = "x: Tensor) -> Tensor:\n    ops.prim.RaiseException(\"no more\", \"builtins.ValueError\")\n    return x";
    let model = folders.script(raising, vec![floats_spec("x", &[-1])], vec![floats_spec("y", &[-1])]);
    let error = run(folders.load(&model).as_mut(), &[floats(&[1], &[1.0])]).unwrap_err();
    assert!(matches!(&error, RunError::Failed { message } if message.contains("no more")), "{error:?}");
}

#[test]
fn outputs_that_are_not_as_declared_fail_the_run() {
    let folders = Folders::new();
    let x = || vec![floats_spec("x", &[-1])];
    let y = |datatype| vec![TensorSpec::new("y", datatype, [-1])];
    let failed = |forward: &str, outputs| match run(
        folders.load(&folders.script(forward, x(), outputs)).as_mut(),
        &[floats(&[1], &[1.0])],
    ) {
        Err(RunError::Failed { message }) => message,
        other => panic!("{other:?}"),
    };
    let same = "x: Tensor) -> Tensor:\n    return x";
    assert_eq!(failed(same, y(DataType::Int64)), "output 'y': expected INT64, the model gave elements of type Float");
    let two = vec![floats_spec("y", &[-1]), floats_spec("z", &[-1])];
    assert_eq!(failed(same, two), "the model returned 1 tensors, expected 2");
    assert_eq!(
        failed("x: Tensor) -> int:\n    return 7", y(DataType::Fp32)),
        "the model returned an int, expected tensors, tuples and lists of them, or a dictionary"
    );
    // NaN is a value as any other.
    let nan = folders.script("x: Tensor) -> Tensor:\n    return torch.sqrt(torch.neg(x))", x(), y(DataType::Fp32));
    assert!(elements(&run(folders.load(&nan).as_mut(), &[floats(&[1], &[1.0])]).unwrap()[0])[0].is_nan());
}

#[test]
fn a_declaration_is_needed() {
    let folders = Folders::new();
    let mut model = folders.script("x: Tensor) -> Tensor:\n    return x", vec![], vec![]);
    model.options.declared = None;
    let said = folders.refused(&model);
    assert!(
        said.starts_with(
            "model.pt: a TorchScript file does not say what it takes and gives (forward takes x: Tensor); declare it in model.toml"
        ),
        "{said}"
    );
}
