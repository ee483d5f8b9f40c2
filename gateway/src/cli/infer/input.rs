//! Inputs as a user writes them → tensors.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use bascule_runtime_api::{AlignedBuffer, DataType, Tensor, TensorSpec};
use serde_json::{Number, Value};

use crate::npy;

use super::super::failure::Failure;

/// Nesting beyond this is no tensor.
const MAX_AXES: usize = 64;

/// One input that was read.
pub(super) enum Sent {
    /// Complete.
    Tensor(String, Tensor),
    /// Lists, whose datatype the model knows.
    Json(String, Value),
}

/// Reads every input.
pub(super) fn read(inputs: &[(String, String)]) -> Result<Vec<Sent>, Failure> {
    inputs
        .iter()
        .map(|(name, text)| read_one(name, text).map_err(|error| error.context(format!("--input {name}")).into()))
        .collect()
}

fn read_one(name: &str, text: &str) -> anyhow::Result<Sent> {
    let Some(path) = text.strip_prefix('@').map(Path::new) else {
        return Ok(Sent::Json(name.to_owned(), serde_json::from_str(text).context("expected @file.npy, @file.json or JSON")?));
    };
    let unreadable = || format!("can't read {}", path.display());
    let content = std::fs::read(path).with_context(unreadable)?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(Sent::Json(name.to_owned(), serde_json::from_slice(&content).with_context(unreadable)?));
    }
    Ok(Sent::Tensor(name.to_owned(), npy::read(&content).with_context(unreadable)?))
}

impl Sent {
    /// Whether the model has to be asked for the datatype.
    pub(super) fn needs_spec(&self) -> bool {
        matches!(self, Sent::Json(..))
    }

    /// The tensor, by the model's own inputs.
    pub(super) fn tensor(self, specs: &[TensorSpec]) -> Result<(String, Tensor), Failure> {
        match self {
            Sent::Tensor(name, tensor) => Ok((name, tensor)),
            Sent::Json(name, json) => {
                let spec = specs.iter().find(|spec| spec.name == name).ok_or_else(|| {
                    let known: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
                    anyhow!("the model has no input '{name}', only {}", known.join(", "))
                })?;
                let tensor = from_json(spec.datatype, &json).with_context(|| format!("--input {name}"))?;
                Ok((name, tensor))
            }
        }
    }
}

/// Nested lists of one shape → a tensor.
fn from_json(datatype: DataType, json: &Value) -> anyhow::Result<Tensor> {
    let mut shape = Vec::new();
    let mut inner = json;
    while let Value::Array(items) = inner {
        shape.push(i64::try_from(items.len())?);
        if shape.len() > MAX_AXES {
            return Err(anyhow!("the lists are nested deeper than {MAX_AXES}"));
        }
        let Some(first) = items.first() else { break };
        inner = first;
    }
    let mut leaves = Vec::new();
    collect(json, &shape, &mut leaves)?;
    if datatype == DataType::Bytes {
        let texts: Option<Vec<&str>> = leaves.iter().map(|leaf| leaf.as_str()).collect();
        return Ok(Tensor::from_byte_strings(&shape, &texts.context("expected texts for BYTES")?)?);
    }
    let mut bytes = Vec::new();
    for leaf in leaves {
        element(datatype, leaf, &mut bytes).with_context(|| format!("{leaf} is no {datatype}"))?;
    }
    Ok(Tensor::new(datatype, &shape, AlignedBuffer::copy_of(&bytes).into_bytes())?)
}

fn collect<'a>(json: &'a Value, shape: &[i64], leaves: &mut Vec<&'a Value>) -> anyhow::Result<()> {
    match (json, shape.split_first()) {
        (Value::Array(items), Some((size, rest))) if i64::try_from(items.len())? == *size => {
            items.iter().try_for_each(|item| collect(item, rest, leaves))
        }
        (Value::Array(_), _) | (_, Some(_)) => Err(anyhow!("the lists have different lengths")),
        (leaf, None) => {
            leaves.push(leaf);
            Ok(())
        }
    }
}

fn element(datatype: DataType, leaf: &Value, bytes: &mut Vec<u8>) -> Option<()> {
    let float = || leaf.as_f64();
    let whole = |number: &Number| number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    let integer = || leaf.as_number().and_then(whole);
    match datatype {
        DataType::Bool => bytes.push(u8::from(leaf.as_bool()?)),
        DataType::Uint8 => bytes.extend(u8::try_from(integer()?).ok()?.to_le_bytes()),
        DataType::Uint16 => bytes.extend(u16::try_from(integer()?).ok()?.to_le_bytes()),
        DataType::Uint32 => bytes.extend(u32::try_from(integer()?).ok()?.to_le_bytes()),
        DataType::Uint64 => bytes.extend(u64::try_from(integer()?).ok()?.to_le_bytes()),
        DataType::Int8 => bytes.extend(i8::try_from(integer()?).ok()?.to_le_bytes()),
        DataType::Int16 => bytes.extend(i16::try_from(integer()?).ok()?.to_le_bytes()),
        DataType::Int32 => bytes.extend(i32::try_from(integer()?).ok()?.to_le_bytes()),
        DataType::Int64 => bytes.extend(i64::try_from(integer()?).ok()?.to_le_bytes()),
        DataType::Fp16 => bytes.extend(half::f16::from_f64(float()?).to_le_bytes()),
        DataType::Bf16 => bytes.extend(half::bf16::from_f64(float()?).to_le_bytes()),
        DataType::Fp32 => bytes.extend((float()? as f32).to_le_bytes()),
        DataType::Fp64 => bytes.extend(float()?.to_le_bytes()),
        DataType::Bytes => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(datatype: DataType, json: Value) -> Result<(Vec<i64>, usize), String> {
        let tensor = from_json(datatype, &json).map_err(|error| format!("{error:#}"))?;
        Ok((tensor.shape().to_vec(), tensor.bytes().len()))
    }

    #[test]
    fn lists_of_one_shape_become_tensors() {
        assert_eq!(check(DataType::Fp32, json!([[1, 2.5], [3, 4]])), Ok((vec![2, 2], 16)));
        assert_eq!(check(DataType::Int64, json!(7)), Ok((vec![], 8)));
        assert_eq!(check(DataType::Bytes, json!([["a", "bc"]])), Ok((vec![1, 2], 11)));
        assert_eq!(check(DataType::Fp16, json!([])), Ok((vec![0], 0)));
        for datatype in DataType::ALL.into_iter().filter(|datatype| *datatype != DataType::Bytes) {
            let one = if datatype == DataType::Bool { json!([true]) } else { json!([1]) };
            assert_eq!(check(datatype, one), Ok((vec![1], datatype.element_bytes().unwrap())), "{datatype}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(check(DataType::Fp32, json!([[1], [2, 3]])), Err("the lists have different lengths".into()));
        assert_eq!(check(DataType::Fp32, json!([1, [2]])), Err("the lists have different lengths".into()));
        assert_eq!(check(DataType::Uint8, json!([256])), Err("256 is no UINT8".into()));
        assert_eq!(check(DataType::Int32, json!([1.5])), Err("1.5 is no INT32".into()));
        assert_eq!(check(DataType::Bytes, json!([1])), Err("expected texts for BYTES".into()));
        let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(check(DataType::Fp32, deep), Err("the lists are nested deeper than 64".into()));
    }

    #[test]
    fn a_name_that_the_model_lacks_is_refused() {
        let sent = Sent::Json("z".into(), json!([1]));
        let specs = [TensorSpec::new("x", DataType::Fp32, [1])];
        assert_eq!(sent.tensor(&specs).unwrap_err().text(), "error: the model has no input 'z', only x\n");
    }
}
