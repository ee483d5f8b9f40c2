//! An answer: printed, or saved as `.npy`.

use std::path::Path;

use anyhow::{Context as _, anyhow};
use bascule_runtime_api::{DataType, Tensor};
use serde_json::{Value, json};

use crate::npy;

use super::super::Outcome;
use super::super::failure::Failure;
use super::super::output::{print, print_json};

/// A list with more elements than this is cut where it is printed for people.
const SHOWN_ELEMENTS: usize = 64;

/// What came back.
pub(super) struct Answer {
    pub(super) model: String,
    pub(super) version: String,
    pub(super) outputs: Vec<(String, Tensor)>,
}

impl Answer {
    /// Writes an output to a `.npy` file.
    pub(super) fn save(&self, name: &str, path: &Path) -> Outcome {
        let found = self.outputs.iter().find(|(output, _)| output == name);
        let (_, tensor) = found.ok_or_else(|| Failure::new(format!("the answer has no output '{name}'")))?;
        let file = npy::write(tensor)
            .ok_or_else(|| anyhow!("output '{name}' has datatype {}, for which .npy has no type", tensor.datatype()))?;
        Ok(std::fs::write(path, file).with_context(|| format!("can't write {}", path.display()))?)
    }

    /// Prints it.
    pub(super) fn print(&self, as_json: bool) -> Outcome {
        if as_json {
            let outputs: Vec<Value> = self.outputs.iter().map(|(name, tensor)| whole(name, tensor)).collect();
            return print_json(&json!({ "model_name": self.model, "model_version": self.version, "outputs": outputs }));
        }
        print(&format!("{} version {}", self.model, self.version))?;
        for (name, tensor) in &self.outputs {
            let elements = elements(tensor, SHOWN_ELEMENTS);
            let shown: Vec<String> = elements.iter().map(ToString::to_string).collect();
            let more = if tensor.element_count() > elements.len() { ", …" } else { "" };
            print(&format!("{name} {}{:?}: {}{more}", tensor.datatype(), tensor.shape(), shown.join(", ")))?;
        }
        Ok(())
    }
}

fn whole(name: &str, tensor: &Tensor) -> Value {
    json!({ "name": name, "datatype": tensor.datatype().name(), "shape": tensor.shape(), "data": elements(tensor, usize::MAX) })
}

/// The first elements as JSON; what is no number becomes a text.
fn elements(tensor: &Tensor, limit: usize) -> Vec<Value> {
    let float = |value: f64| serde_json::Number::from_f64(value).map_or_else(|| json!(value.to_string()), Value::Number);
    macro_rules! list {
        ($type:ty, $show:expr) => {
            tensor.elements::<$type>().unwrap_or_default().iter().take(limit).map($show).collect()
        };
    }
    match tensor.datatype() {
        DataType::Bool => tensor.bytes().iter().take(limit).map(|byte| json!(*byte != 0)).collect(),
        DataType::Uint8 => list!(u8, |value| json!(value)),
        DataType::Uint16 => list!(u16, |value| json!(value)),
        DataType::Uint32 => list!(u32, |value| json!(value)),
        DataType::Uint64 => list!(u64, |value| json!(value)),
        DataType::Int8 => list!(i8, |value| json!(value)),
        DataType::Int16 => list!(i16, |value| json!(value)),
        DataType::Int32 => list!(i32, |value| json!(value)),
        DataType::Int64 => list!(i64, |value| json!(value)),
        DataType::Fp16 => list!(half::f16, |value| float(value.to_f64())),
        DataType::Bf16 => list!(half::bf16, |value| float(value.to_f64())),
        // By way of text: the digits of the widening would be shown otherwise.
        DataType::Fp32 => list!(f32, |value| float(value.to_string().parse().unwrap_or(f64::from(*value)))),
        DataType::Fp64 => list!(f64, |value| float(*value)),
        DataType::Bytes => tensor.byte_strings().take(limit).map(|text| json!(String::from_utf8_lossy(text))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_shown_as_they_are() {
        let floats = Tensor::from_elements([3], &[0.1f32, f32::NAN, 1e10]).unwrap();
        assert_eq!(elements(&floats, 9), [json!(0.1), json!("NaN"), json!(1e10)]);
        assert_eq!(elements(&floats, 1), [json!(0.1)]);
        let texts = Tensor::from_byte_strings([2], &["a", "é"]).unwrap();
        assert_eq!(whole("t", &texts), json!({ "name": "t", "datatype": "BYTES", "shape": [2], "data": ["a", "é"] }));
    }

    #[test]
    fn an_output_that_is_not_there_or_has_no_type_is_not_saved() {
        let folder = tempfile::tempdir().unwrap();
        let texts = Tensor::from_byte_strings([1], &["a"]).unwrap();
        let answer = Answer { model: "m".into(), version: "1".into(), outputs: vec![("t".into(), texts)] };
        assert!(answer.save("u", &folder.path().join("u.npy")).unwrap_err().text().contains("no output 'u'"));
        assert!(answer.save("t", &folder.path().join("t.npy")).unwrap_err().text().contains("BYTES"));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
