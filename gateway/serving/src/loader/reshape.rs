//! A model seen in other shapes than its own: those that a `config.pbtxt` gives its tensors, so that clients of Triton need no change.
//!
//! The view lies between the runtime and all the rest: checks, metadata, batches and warm-up know the outward shapes alone, and the
//! runtime its own alone. Bytes are never touched, since both shapes have the same number of elements.

use std::sync::Arc;

use bascule_runtime_api::{Device, Footprint, Interrupt, RunContext, RunError, Session, Signature, Tensor, TensorSpec};

use crate::settings::{Reshape, Reshapes};

/// The session in its outward shapes; itself where it has no others.
///
/// # Errors
/// A tensor is to be reshaped whose own shape has another rank.
pub(super) fn view(session: Box<dyn Session>, reshapes: &Reshapes) -> Result<Box<dyn Session>, String> {
    if reshapes.is_empty() {
        return Ok(session);
    }
    let own = session.signature();
    let views = |specs: &[TensorSpec], side: &std::collections::BTreeMap<String, Reshape>| -> Result<Vec<View>, String> {
        specs.iter().map(|spec| View::of(spec, side.get(&spec.name), reshapes.batched)).collect()
    };
    let (inputs, outputs) = (views(&own.inputs, &reshapes.inputs)?, views(&own.outputs, &reshapes.outputs)?);
    let side = |views: &[View]| views.iter().map(|view| view.outward.clone()).collect();
    let signature = Signature { inputs: side(&inputs), outputs: side(&outputs), batch_axis: own.batch_axis };
    Ok(Box::new(Reshaped { session, signature, inputs, outputs, batched: reshapes.batched }))
}

/// One tensor.
struct View {
    outward: TensorSpec,
    reshape: Option<Reshape>,
}

impl View {
    fn of(own: &TensorSpec, reshape: Option<&Reshape>, batched: bool) -> Result<View, String> {
        let Some(reshape) = reshape else { return Ok(View { outward: own.clone(), reshape: None }) };
        let shape = relabelled(&own.shape, &reshape.own, &reshape.outward, batched).ok_or_else(|| {
            format!("tensor '{}' can't be reshaped: expected a rank of {}, got shape {:?}", own.name, reshape.own.len(), own.shape)
        })?;
        Ok(View { outward: TensorSpec::new(own.name.clone(), own.datatype, shape), reshape: Some(reshape.clone()) })
    }
}

struct Reshaped {
    session: Box<dyn Session>,
    signature: Signature,
    inputs: Vec<View>,
    outputs: Vec<View>,
    batched: bool,
}

impl Session for Reshaped {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(&mut self, inputs: &[Tensor], context: &RunContext) -> Result<Vec<Tensor>, RunError> {
        let inputs = inputs.iter().zip(&self.inputs).map(|(tensor, view)| match &view.reshape {
            None => Ok(tensor.clone()),
            Some(reshape) => {
                let unfit = || RunError::InvalidInput {
                    message: format!(
                        "input '{}': expected shape {:?}, got {:?}",
                        view.outward.name,
                        view.outward.shape,
                        tensor.shape()
                    ),
                };
                relabel(tensor, &reshape.outward, &reshape.own, self.batched).ok_or_else(unfit)
            }
        });
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let outputs = self.session.run(&inputs, context)?;
        let outputs = outputs.into_iter().zip(&self.outputs).map(|(tensor, view)| match &view.reshape {
            None => Ok(tensor),
            Some(reshape) => {
                let unfit = || RunError::Failed {
                    message: format!("output '{}' has shape {:?}, expected {:?}", view.outward.name, tensor.shape(), reshape.own),
                };
                relabel(&tensor, &reshape.own, &reshape.outward, self.batched).ok_or_else(unfit)
            }
        });
        outputs.collect()
    }

    fn interrupter(&self) -> Option<Arc<dyn Interrupt>> {
        self.session.interrupter()
    }

    fn footprint(&self) -> Footprint {
        self.session.footprint()
    }

    fn device(&self) -> Device {
        self.session.device()
    }

    fn warnings(&self) -> Vec<String> {
        self.session.warnings()
    }
}

fn relabel(tensor: &Tensor, from: &[i64], to: &[i64], batched: bool) -> Option<Tensor> {
    let shape = relabelled(tensor.shape(), from, to, batched)?;
    Tensor::new(tensor.datatype(), shape, tensor.bytes().clone()).ok()
}

/// A shape that is read as `from`, written as `to`: open sizes keep their order, and the batch its place.
fn relabelled(shape: &[i64], from: &[i64], to: &[i64], batched: bool) -> Option<Vec<i64>> {
    let (batch, rest) = shape.split_at_checked(usize::from(batched))?;
    if rest.len() != from.len() {
        return None;
    }
    let mut open = from.iter().zip(rest).filter(|(size, _)| **size < 0).map(|(_, size)| *size);
    let sizes = to.iter().map(|size| if *size < 0 { open.next() } else { Some(*size) });
    batch.iter().copied().map(Some).chain(sizes).collect()
}

#[cfg(test)]
mod tests {
    use bascule_runtime_api::{DataType, LoadOptions, Runtime as _};
    use bascule_runtime_fake::{FakeModel, FakeOp, FakeRuntime};

    use super::*;
    use crate::testing::{ENTRYPOINT, folder};

    #[test]
    fn callers_see_one_shape_and_the_model_another() {
        let side = |name: &str| vec![TensorSpec::new(name, DataType::Int32, [-1])];
        let dir = folder(&FakeModel { batch_axis: Some(0), ..FakeModel::new(FakeOp::Identity, side("x"), side("y")) });
        let load = || {
            let options = LoadOptions { entrypoint: ENTRYPOINT.into(), ..LoadOptions::default() };
            FakeRuntime::new().load(dir.path(), &options).unwrap()
        };
        let scalar = || Reshape::new(&[1], &[]).unwrap();
        let inputs = [("x".to_owned(), scalar())].into();
        let reshapes = Reshapes { inputs, outputs: [("y".to_owned(), scalar())].into(), batched: true };
        let mut session = view(load(), &reshapes).unwrap();
        assert_eq!(
            (&session.signature().inputs[0].shape[..], &session.signature().outputs[0].shape[..]),
            (&[-1, 1][..], &[-1, 1][..])
        );
        let sent = Tensor::from_elements([3, 1], &[7, 8, 9]).unwrap();
        assert_eq!(session.run(std::slice::from_ref(&sent), &RunContext::default()).unwrap(), [sent]);
        let unfit = Tensor::from_elements([3], &[7, 8, 9]).unwrap();
        assert!(matches!(session.run(&[unfit], &RunContext::default()), Err(RunError::InvalidInput { .. })));
        let wrong = Reshapes { inputs: [("x".to_owned(), Reshape::new(&[6], &[2, 3]).unwrap())].into(), ..reshapes };
        assert!(view(load(), &wrong).is_err_and(|error| error.contains("'x'")));
    }

    #[test]
    fn open_sizes_keep_their_order_and_the_batch_its_place() {
        let check = |shape: &[i64], from: &[i64], to: &[i64], batched, expected: Option<&[i64]>| {
            assert_eq!(relabelled(shape, from, to, batched).as_deref(), expected, "{shape:?}: {from:?} -> {to:?}");
        };
        check(&[7, 1], &[1], &[], true, Some(&[7]));
        check(&[7], &[], &[1], true, Some(&[7, 1]));
        check(&[4, 6], &[4, 6], &[24], false, Some(&[24]));
        check(&[2, 5, 3, 9], &[-1, 3, -1], &[3, -1, -1], true, Some(&[2, 3, 5, 9]));
        check(&[7, 1], &[1, 1], &[], true, None);
        check(&[], &[], &[1], true, None);
    }
}
