//! What a run promises of its tensors: each datatype and shape comes back bit for bit, and what does not fit is an error.

use bytes::Bytes;

use super::{Fixture, load, run, sample};
use crate::{AlignedBuffer, DataType, RunContext, RunError, Runtime, Session, Tensor};

pub(super) fn check(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    every_datatype_comes_back(runtime, fixture);
    booleans_are_zero_or_one(runtime, fixture);
    misaligned_inputs_give_the_same(runtime, fixture);
    what_does_not_fit_is_refused(runtime, fixture);
}

fn every_datatype_comes_back(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    for datatype in fixture.datatypes() {
        let cases: [(&[i64], &[&[i64]]); 4] = [
            (&[-1, 3], &[&[1, 3], &[7, 3], &[0, 3]]),
            (&[-1, -1], &[&[5, 0], &[0, 0], &[2, 9]]),
            (&[2, 2, 1], &[&[2, 2, 1]]),
            (&[], &[&[]]),
        ];
        for (declared, shapes) in cases {
            let mut session = load(runtime, &fixture.identity(datatype, declared));
            for shape in shapes {
                let input = sample(datatype, shape, 1);
                let outputs = run(session.as_mut(), std::slice::from_ref(&input));
                assert_eq!(outputs, [input], "{datatype} of {shape:?} does not come back as it was");
            }
        }
    }
}

fn booleans_are_zero_or_one(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let mut session = load(runtime, &fixture.identity(DataType::Bool, &[-1]));
    let input = tensor(DataType::Bool, &[5], Bytes::from_static(&[0, 1, 2, 0x80, 0xff]));
    let outputs = run(session.as_mut(), &[input]);
    assert_eq!(outputs[0].bytes()[..], [0, 1, 1, 1, 1], "a byte other than 0 is true, and true is 1");
}

fn misaligned_inputs_give_the_same(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    for datatype in fixture.datatypes() {
        let mut session = load(runtime, &fixture.identity(datatype, &[-1]));
        let aligned = sample(datatype, &[6], 2);
        for shift in 1..8 {
            let mut moved = AlignedBuffer::zeroed(aligned.bytes().len() + shift);
            moved.as_mut()[shift..].copy_from_slice(aligned.bytes());
            let moved = tensor(datatype, &[6], moved.into_bytes().slice(shift..));
            let outputs = run(session.as_mut(), &[moved]);
            assert_eq!(outputs[0], aligned, "{datatype} that lies {shift} bytes off does not come back as it was");
            assert!(outputs[0].is_aligned(), "an output of {datatype} is not aligned");
        }
    }
}

fn what_does_not_fit_is_refused(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let mut session = load(runtime, &fixture.identity(DataType::Fp32, &[-1, 3]));
    let fits = sample(DataType::Fp32, &[2, 3], 3);
    let cases = [
        ("no input", vec![]),
        ("an input too many", vec![fits.clone(), fits.clone()]),
        ("a rank too few", vec![sample(DataType::Fp32, &[3], 3)]),
        ("a rank too many", vec![sample(DataType::Fp32, &[1, 2, 3], 3)]),
        ("a scalar", vec![sample(DataType::Fp32, &[], 3)]),
        ("another size", vec![sample(DataType::Fp32, &[2, 4], 3)]),
        ("another datatype of that length", vec![sample(DataType::Int32, &[2, 3], 3)]),
        ("BYTES", vec![sample(DataType::Bytes, &[2, 3], 3)]),
    ];
    for (what, inputs) in cases {
        let message = invalid(session.as_mut(), &inputs, what);
        assert!(message.contains('x'), "the error for {what} does not name the input: {message}");
        assert_eq!(run(session.as_mut(), std::slice::from_ref(&fits))[0], fits, "after {what} the session is unusable");
    }
}

fn invalid(session: &mut dyn Session, inputs: &[Tensor], what: &str) -> String {
    match session.run(inputs, &RunContext::default()) {
        Err(RunError::InvalidInput { message }) => message,
        other => panic!("{what} gave {other:?}, expected an invalid input"),
    }
}

fn tensor(datatype: DataType, shape: &[i64], bytes: Bytes) -> Tensor {
    match Tensor::new(datatype, shape, bytes) {
        Ok(tensor) => tensor,
        Err(error) => panic!("the suite made a wrong tensor: {error}"),
    }
}
