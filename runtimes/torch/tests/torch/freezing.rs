//! Modules that are frozen when they are loaded, and runs in inference mode: they answer as the module was written.

use bascule_runtime_api::conformance::Model;
use bascule_runtime_api::{RunError, Session};

use crate::archive::{Script, write};
use crate::fixture::{Folders, floats, floats_spec, run};

fn load(folders: &Folders, model: &Model, key: &str, value: &str) -> Box<dyn Session> {
    let mut model = model.clone();
    model.options.options.insert(key.to_owned(), value.to_owned());
    folders.load(&model)
}

fn module(folders: &Folders, forward: &str, weight: &[f32]) -> Model {
    folders.file(&write(&Script { forward, weight }), vec![floats_spec("x", &[-1])], vec![floats_spec("y", &[-1])])
}

fn answer(session: &mut dyn Session, x: &[f32]) -> Result<Vec<f32>, RunError> {
    let outputs = run(session, &[floats(&[x.len() as i64], x)])?;
    Ok(outputs[0].elements::<f32>().unwrap().into_owned())
}

#[test]
fn a_module_answers_alike_however_it_is_run() {
    let folders = Folders::new();
    for (forward, weight, expected) in [
        // What follows from the parameters alone is computed once.
        ("return torch.add(x, torch.sum(torch.exp(self.weight)))", &[0.0, 0.0][..], [3.0, 3.0, 3.0]),
        // What a run leaves is there in the next: in a parameter, in another tensor in its place.
        ("return torch.add(torch.add_(self.weight, x), 0)", &[1.0], [2.0, 3.0, 4.0]),
        ("_0 = torch.add(self.weight, x)\n    self.weight = _0\n    return _0", &[1.0], [2.0, 3.0, 4.0]),
        ("_0 = torch.mul_(torch.slice(self.weight, 0, 0, 1), 2)\n    return torch.add(x, self.weight)", &[1.0], [3.0, 5.0, 9.0]),
        (
            "return torch.reshape(torch.linear(torch.reshape(x, [1, 1]), torch.reshape(self.weight, [1, 1])), [1])",
            &[2.5],
            [2.5, 2.5, 2.5],
        ),
        // An input is the module's to write to, in whole and in part.
        ("return torch.add_(x, self.weight)", &[2.0], [3.0, 3.0, 3.0]),
        ("_0 = torch.mul_(torch.slice(x, 0, 0, 1), 5)\n    return x", &[], [5.0, 5.0, 5.0]),
        // What was given in one run is written to in the next.
        ("_0 = torch.add(torch.add_(self.weight, x), 0)\n    self.weight = x\n    return _0", &[5.0], [6.0, 2.0, 2.0]),
    ] {
        let model = module(&folders, &format!("x: Tensor) -> Tensor:\n    {forward}"), weight);
        for (key, value) in [
            ("FREEZE", "auto"),
            ("FREEZE", "optimize"),
            ("FREEZE", "off"),
            ("INFERENCE_MODE", "false"),
            ("DISABLE_OPTIMIZED_EXECUTION", "true"),
        ] {
            let mut session = load(&folders, &model, key, value);
            assert_eq!(session.remarks(), [""; 0], "{forward}");
            let found = [(); 3].map(|()| answer(session.as_mut(), &[1.0]).unwrap()[0]);
            assert_eq!(found, expected, "{forward}, {key} = {value}");
        }
    }
}

#[test]
fn a_module_that_cannot_be_frozen_is_served_as_it_is_and_says_why() {
    let folders = Folders::new();
    let model = module(&folders, "x: Tensor) -> __torch__.Model:\n    return self", &[]);
    let mut session = folders.load(&model);
    let [remark] = session.remarks() else { panic!("{:?}", session.remarks()) };
    assert!(remark.starts_with("the module is served as it is, since it can't be frozen: "), "{remark}");
    let RunError::Failed { message } = answer(session.as_mut(), &[1.0]).unwrap_err() else { panic!("another error") };
    assert!(message.starts_with("the model returned an object, expected tensors"), "{message}");
    assert_eq!(load(&folders, &model, "FREEZE", "off").remarks(), [""; 0]);
}

#[test]
fn what_a_frozen_module_raises_is_told() {
    let folders = Folders::new();
    // What is called is inlined, and the method itself is gone by then.
    let forward = |text: &str| {
        format!(
            "x: Tensor) -> Tensor:\n    return (self).checked(x, )\n  def checked(self: __torch__.Model,\n    x: Tensor) -> Tensor:\n    \
             if torch.lt(torch.numel(x), 2):\n      ops.prim.RaiseException(\"{text}\", \"builtins.ValueError\")\n    \
             else:\n      pass\n    return torch.add(x, self.weight)"
        )
    };
    let mut sessions: Vec<_> =
        (0..8).map(|number| folders.load(&module(&folders, &forward(&format!("too short for {number}")), &[1.0]))).collect();
    for (number, session) in sessions.iter_mut().enumerate() {
        for _ in 0..4 {
            let RunError::Failed { message } = answer(session.as_mut(), &[1.0]).unwrap_err() else { panic!("another error") };
            assert_eq!(message, format!("builtins.ValueError: too short for {number}"));
            assert_eq!(answer(session.as_mut(), &[1.0, 2.0]), Ok(vec![2.0, 3.0]));
        }
    }
}

#[test]
fn a_module_that_asks_for_gradients_itself_needs_inference_mode_off() {
    let folders = Folders::new();
    let forward = "x: Tensor) -> Tensor:\n    ops.aten.set_grad_enabled(True)\n    _0 = torch.requires_grad_(torch.detach(x))\n    \
                   _1 = torch.autograd.grad([torch.sum(torch.mul(_0, _0))], [_0])\n    return unchecked_cast(Tensor, _1[0])";
    let model = module(&folders, forward, &[]);
    let mut session = load(&folders, &model, "INFERENCE_MODE", "false");
    for _ in 0..3 {
        assert_eq!(answer(session.as_mut(), &[1.0, 3.0]), Ok(vec![2.0, 6.0]));
    }
    assert!(matches!(answer(folders.load(&model).as_mut(), &[1.0, 3.0]), Err(RunError::Failed { .. })));
    // The thread is left as it was.
    let plain = module(&folders, "x: Tensor) -> Tensor:\n    return torch.add(x, self.weight)", &[1.0]);
    assert_eq!(answer(folders.load(&plain).as_mut(), &[1.0]), Ok(vec![2.0]));
}
