//! What a model takes and gives: names, datatypes and shapes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DataType, RunError, Tensor};

/// One input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// The tensor's name in the model.
    pub name: String,
    /// Its element type.
    pub datatype: DataType,
    /// The whole shape, the batch axis included; −1 stands for any size.
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// A spec from its parts.
    pub fn new(name: impl Into<String>, datatype: DataType, shape: impl Into<Vec<i64>>) -> TensorSpec {
        TensorSpec { name: name.into(), datatype, shape: shape.into() }
    }

    /// Whether a concrete shape fits: same rank, and equal wherever this spec names a size.
    pub fn accepts(&self, shape: &[i64]) -> bool {
        self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(|(want, got)| *want < 0 || want == got)
    }
}

/// The inputs and outputs of a model, in its own order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Signature {
    /// Every required input.
    pub inputs: Vec<TensorSpec>,
    /// Every output.
    pub outputs: Vec<TensorSpec>,
    /// `Some(0)` where every input and output has a leading axis along which independent requests may be joined.
    #[serde(default)]
    pub batch_axis: Option<u8>,
}

/// Where a tensor belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Among the inputs.
    Input,
    /// Among the outputs.
    Output,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Input => "input",
            Side::Output => "output",
        })
    }
}

/// Two descriptions of one model differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SignatureError {
    /// A tensor that is declared is not in the model.
    #[error("{side} '{name}' is declared but the model has only {present:?}")]
    Missing {
        /// Where.
        side: Side,
        /// The declared name.
        name: String,
        /// The names that the model has.
        present: Vec<String>,
    },
    /// The model has an input that is not declared.
    #[error("the model has {side} '{name}' which is not declared")]
    Undeclared {
        /// Where.
        side: Side,
        /// The model's name for it.
        name: String,
    },
    /// Datatypes differ.
    #[error("{side} '{name}' is declared {declared} but is {actual} in the model")]
    DataType {
        /// Where.
        side: Side,
        /// The tensor.
        name: String,
        /// As declared.
        declared: DataType,
        /// As in the model.
        actual: DataType,
    },
    /// Shapes can't both be right.
    #[error("{side} '{name}' is declared with shape {declared:?} but has shape {actual:?} in the model")]
    Shape {
        /// Where.
        side: Side,
        /// The tensor.
        name: String,
        /// As declared.
        declared: Vec<i64>,
        /// As in the model.
        actual: Vec<i64>,
    },
}

impl Signature {
    /// Whether every tensor has a dynamic leading axis, which is how a file says that it can be batched.
    pub fn has_dynamic_leading_axis(&self) -> bool {
        !self.inputs.is_empty()
            && self.inputs.iter().chain(&self.outputs).all(|spec| spec.shape.first().is_some_and(|dim| *dim < 0))
    }

    /// Compares a declaration with what the model itself says. The declaration may leave outputs out, may name a size where the
    /// model takes any, and may leave open what the model fixes; it may not contradict.
    pub fn check_against(&self, model: &Signature) -> Result<(), SignatureError> {
        check_side(Side::Input, &self.inputs, &model.inputs)?;
        check_side(Side::Output, &self.outputs, &model.outputs)?;
        match model.inputs.iter().find(|spec| !self.inputs.iter().any(|declared| declared.name == spec.name)) {
            Some(spec) => Err(SignatureError::Undeclared { side: Side::Input, name: spec.name.clone() }),
            None => Ok(()),
        }
    }

    /// This signature, the model's own, as a declaration narrows it. Inputs keep the model's order; outputs are the declared ones in
    /// declared order, or all where none is declared; a size that the declaration names replaces one that the model leaves open; the
    /// batch axis is the declaration's.
    ///
    /// # Errors
    /// Where the declaration contradicts this signature, or declares a batch axis along which the model has a fixed size.
    pub fn narrowed_by(&self, declared: &Signature) -> Result<Signature, SignatureError> {
        declared.check_against(self)?;
        let inputs = self.inputs.iter().filter_map(|spec| Some(narrowed(spec, named(&declared.inputs, &spec.name)?))).collect();
        let outputs = if declared.outputs.is_empty() {
            self.outputs.clone()
        } else {
            declared.outputs.iter().filter_map(|spec| Some(narrowed(named(&self.outputs, &spec.name)?, spec))).collect()
        };
        if declared.batch_axis.is_some() {
            let served = self.outputs.iter().filter(|spec| named(&outputs, &spec.name).is_some());
            check_batchable(Side::Input, self.inputs.iter())?;
            check_batchable(Side::Output, served)?;
        }
        Ok(Signature { inputs, outputs, batch_axis: declared.batch_axis })
    }

    /// Whether tensors fit the inputs, one for each in order.
    ///
    /// # Errors
    /// [`RunError::InvalidInput`] names the input and what was expected.
    pub fn check_inputs(&self, tensors: &[Tensor]) -> Result<(), RunError> {
        if tensors.len() != self.inputs.len() {
            let names: Vec<&str> = self.inputs.iter().map(|spec| spec.name.as_str()).collect();
            let message = format!("expected {} inputs {names:?}, got {}", self.inputs.len(), tensors.len());
            return Err(RunError::InvalidInput { message });
        }
        for (spec, tensor) in self.inputs.iter().zip(tensors) {
            let name = &spec.name;
            if tensor.datatype() != spec.datatype {
                let message = format!("input '{name}': expected {}, got {}", spec.datatype, tensor.datatype());
                return Err(RunError::InvalidInput { message });
            }
            if !spec.accepts(tensor.shape()) {
                let message = format!("input '{name}': expected shape {:?}, got {:?}", spec.shape, tensor.shape());
                return Err(RunError::InvalidInput { message });
            }
        }
        Ok(())
    }
}

fn named<'a>(side: &'a [TensorSpec], name: &str) -> Option<&'a TensorSpec> {
    side.iter().find(|spec| spec.name == name)
}

/// A model's spec with the sizes that the declaration of the same tensor adds.
fn narrowed(model: &TensorSpec, declared: &TensorSpec) -> TensorSpec {
    let sizes = model.shape.iter().zip(&declared.shape);
    let shape: Vec<i64> = sizes.map(|(model, declared)| if *declared < 0 { *model } else { *declared }).collect();
    TensorSpec { name: model.name.clone(), datatype: model.datatype, shape }
}

fn check_batchable<'a>(side: Side, mut model: impl Iterator<Item = &'a TensorSpec>) -> Result<(), SignatureError> {
    match model.find(|spec| spec.shape.first().is_none_or(|dim| *dim >= 0)) {
        None => Ok(()),
        Some(spec) => {
            let declared = std::iter::once(-1).chain(spec.shape.iter().skip(1).copied()).collect();
            Err(SignatureError::Shape { side, name: spec.name.clone(), declared, actual: spec.shape.clone() })
        }
    }
}

fn check_side(side: Side, declared: &[TensorSpec], actual: &[TensorSpec]) -> Result<(), SignatureError> {
    for spec in declared {
        let name = spec.name.clone();
        let Some(found) = actual.iter().find(|found| found.name == spec.name) else {
            let present = actual.iter().map(|found| found.name.clone()).collect();
            return Err(SignatureError::Missing { side, name, present });
        };
        if found.datatype != spec.datatype {
            return Err(SignatureError::DataType { side, name, declared: spec.datatype, actual: found.datatype });
        }
        let fits = found.shape.len() == spec.shape.len()
            && found.shape.iter().zip(&spec.shape).all(|(actual, declared)| *actual < 0 || *declared < 0 || actual == declared);
        if !fits {
            return Err(SignatureError::Shape { side, name, declared: spec.shape.clone(), actual: found.shape.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(inputs: &[(&str, DataType, &[i64])], outputs: &[(&str, DataType, &[i64])]) -> Signature {
        let specs = |side: &[(&str, DataType, &[i64])]| {
            side.iter().map(|(name, datatype, shape)| TensorSpec::new(*name, *datatype, *shape)).collect()
        };
        Signature { inputs: specs(inputs), outputs: specs(outputs), batch_axis: None }
    }

    #[test]
    fn a_declaration_may_narrow_and_may_not_contradict() {
        use DataType::{Fp32, Int64};
        let model = signature(&[("x", Fp32, &[-1, 4])], &[("y", Fp32, &[-1, 3]), ("z", Int64, &[-1])]);
        let check = |inputs: &[(&str, DataType, &[i64])], outputs: &[(&str, DataType, &[i64])]| {
            signature(inputs, outputs).check_against(&model).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[("x", Fp32, &[-1, 4])], &[("y", Fp32, &[8, -1])]), Ok(()));
        assert_eq!(
            check(&[("x", Fp32, &[-1, 5])], &[]),
            Err("input 'x' is declared with shape [-1, 5] but has shape [-1, 4] in the model".into())
        );
        assert_eq!(check(&[("x", Int64, &[-1, 4])], &[]), Err("input 'x' is declared INT64 but is FP32 in the model".into()));
        assert_eq!(check(&[], &[]), Err("the model has input 'x' which is not declared".into()));
        assert_eq!(
            check(&[("x", Fp32, &[-1, 4])], &[("w", Fp32, &[])]),
            Err("output 'w' is declared but the model has only [\"y\", \"z\"]".into())
        );
    }

    #[test]
    fn a_declaration_narrows_what_is_served() {
        use DataType::{Fp32, Int64};
        let model = signature(
            &[("a", Fp32, &[-1, 4]), ("b", Int64, &[-1, -1])],
            &[("y", Fp32, &[-1, 3]), ("z", Int64, &[2, 2]), ("w", Fp32, &[-1])],
        );
        let inputs: [(&str, DataType, &[i64]); 2] = [("b", Int64, &[-1, 7]), ("a", Fp32, &[-1, -1])];
        let check = |outputs: &[(&str, DataType, &[i64])], batch_axis: Option<u8>| {
            let declared = Signature { batch_axis, ..signature(&inputs, outputs) };
            model.narrowed_by(&declared).map_err(|error| error.to_string())
        };
        let narrowed_inputs: [(&str, DataType, &[i64]); 2] = [("a", Fp32, &[-1, 4]), ("b", Int64, &[-1, 7])];
        assert_eq!(
            check(&[("w", Fp32, &[-1]), ("y", Fp32, &[8, -1])], Some(0)),
            Ok(Signature { batch_axis: Some(0), ..signature(&narrowed_inputs, &[("w", Fp32, &[-1]), ("y", Fp32, &[8, 3])]) })
        );
        assert_eq!(check(&[], None).map(|served| served.outputs), Ok(model.outputs.clone()));
        assert_eq!(
            check(&[("z", Int64, &[2, 2])], Some(0)),
            Err("output 'z' is declared with shape [-1, 2] but has shape [2, 2] in the model".into())
        );
        assert!(check(&[("y", Int64, &[-1, 3])], None).is_err());
    }

    #[test]
    fn inputs_that_do_not_fit_are_named() {
        use DataType::{Fp32, Int64};
        let model = signature(&[("x", Fp32, &[-1, 2]), ("n", Int64, &[])], &[]);
        let pair = Tensor::from_elements([1, 2], &[1.0f32, 2.0]).unwrap();
        let flat = Tensor::from_elements([2], &[1.0f32, 2.0]).unwrap();
        let number = Tensor::from_elements([], &[7i64]).unwrap();
        let check = |tensors: &[&Tensor]| {
            let tensors: Vec<Tensor> = tensors.iter().copied().cloned().collect();
            model.check_inputs(&tensors).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[&pair, &number]), Ok(()));
        assert_eq!(check(&[&pair]), Err("expected 2 inputs [\"x\", \"n\"], got 1".into()));
        assert_eq!(check(&[&number, &pair]), Err("input 'x': expected FP32, got INT64".into()));
        assert_eq!(check(&[&flat, &number]), Err("input 'x': expected shape [-1, 2], got [2]".into()));
    }

    #[test]
    fn a_dynamic_first_axis_everywhere_means_batchable() {
        use DataType::Fp32;
        assert!(signature(&[("x", Fp32, &[-1, 4])], &[("y", Fp32, &[-1])]).has_dynamic_leading_axis());
        assert!(!signature(&[("x", Fp32, &[-1, 4])], &[("y", Fp32, &[3])]).has_dynamic_leading_axis());
        assert!(!signature(&[("x", Fp32, &[-1]), ("r", Fp32, &[])], &[("y", Fp32, &[-1])]).has_dynamic_leading_axis());
        assert!(!signature(&[], &[]).has_dynamic_leading_axis());
    }
}
