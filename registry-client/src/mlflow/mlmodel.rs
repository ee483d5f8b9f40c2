//! `MLmodel`: which flavors a version has, and its signature.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::tensors;
use crate::name::{check_file_path, quoted};

/// The file's name.
pub(super) const FILE: &str = "MLmodel";
/// The largest that is read.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// How to get a TorchScript model into MLflow.
const EXPORT: &str =
    "log the result of torch.jit.script or torch.jit.trace with serialization_format=\"pickle\", which keeps it as TorchScript";

/// What of a version is served.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Served {
    pub(super) flavor: Flavor,
    /// Ours, as a manifest has it.
    pub(super) signature: Option<Value>,
}

/// A flavor that has a runtime here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Flavor {
    /// The model file.
    Onnx { file: String },
    /// The folder with the model file, or that file.
    Torch { data: String },
}

#[derive(Deserialize)]
struct Mlmodel {
    #[serde(default)]
    flavors: BTreeMap<String, Parts>,
    #[serde(default)]
    signature: Option<Signature>,
}

/// Of a flavor, as far as it matters here; other flavors may have anything there.
#[derive(Default, Deserialize)]
struct Parts {
    #[serde(default)]
    data: Option<Value>,
    #[serde(default)]
    model_data: Option<Value>,
}

#[derive(Deserialize)]
struct Signature {
    /// JSON.
    #[serde(default)]
    inputs: Option<String>,
    #[serde(default)]
    outputs: Option<String>,
}

/// Reads the file. A problem is the end of a sentence that begins with the version.
pub(super) fn parse(bytes: &[u8]) -> Result<Served, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("has a file {FILE} that is not UTF-8"))?;
    let mlmodel: Mlmodel = serde_saphyr::from_str(text).map_err(|error| {
        // Only the first line: the others quote the file.
        let said = error.to_string();
        format!("has a file {FILE} that can't be read: {}", quoted(said.lines().next().unwrap_or_default()))
    })?;
    let flavor = flavor(&mlmodel.flavors)?;
    let signature = mlmodel.signature.unwrap_or(Signature { inputs: None, outputs: None });
    let read = tensors::signature(signature.inputs.as_deref(), signature.outputs.as_deref());
    let signature = match (read, &flavor) {
        (Ok(signature), Flavor::Onnx { .. }) => signature.filter(tensors::is_named),
        // The file tells.
        (Err(_), Flavor::Onnx { .. }) => None,
        (Ok(Some(signature)), Flavor::Torch { .. }) => Some(tensors::named(signature)),
        (Ok(None), Flavor::Torch { .. }) => {
            return Err(
                "is a TorchScript model without a signature in MLmodel: log it with one of tensors, inputs and outputs both".into(),
            );
        }
        (Err(problem), Flavor::Torch { .. }) => return Err(format!("is a TorchScript model, and {problem}")),
    };
    Ok(Served { flavor, signature })
}

fn flavor(flavors: &BTreeMap<String, Parts>) -> Result<Flavor, String> {
    let path = |field: &str, value: Option<&Value>| {
        let path = value.and_then(Value::as_str).filter(|path| check_file_path(path).is_ok()).map(str::to_owned);
        path.ok_or_else(|| format!("has no path of a file in {FILE} at flavors.{field}"))
    };
    if let Some(onnx) = flavors.get("onnx") {
        return Ok(Flavor::Onnx { file: path("onnx.data", onnx.data.as_ref())? });
    }
    if let Some(torch) = flavors.get("pytorch") {
        return Ok(Flavor::Torch { data: path("pytorch.model_data", torch.model_data.as_ref())? });
    }
    let names: Vec<&str> = flavors.keys().map(String::as_str).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(format!("has no flavor that can be served, which are onnx and pytorch; it has {}", quoted(&names)))
}

/// The model file of a PyTorch flavor, among the version's files.
pub(super) fn torch_file<'a>(data: &str, paths: impl Iterator<Item = &'a str> + Clone) -> Result<&'a str, String> {
    let find = |ending: &str| {
        paths.clone().find(|path| {
            let inside = path.strip_prefix(data).and_then(|rest| rest.strip_prefix('/'));
            (*path == data || inside.is_some_and(|name| !name.contains('/'))) && path.ends_with(ending)
        })
    };
    if let Some(file) = find(".pth").or_else(|| find(".pt")) {
        return Ok(file);
    }
    if find(".pt2").is_some() {
        return Err(format!("is a program of torch.export, which has no runtime here: {EXPORT}"));
    }
    Err(format!("has no file .pth or .pt in {}, where flavors.pytorch.model_data points", quoted(data)))
}

/// How much of a model file's end tells whether it is TorchScript.
pub(super) const TAIL_BYTES: u64 = 64 << 10;

/// Whether the end of a file is that of a TorchScript archive: its directory, which is at the end, names the constants of the program.
/// What torch.save writes has none.
pub(super) fn check_torchscript(tail: &[u8]) -> Result<(), String> {
    let has = |wanted: &[u8]| tail.windows(wanted.len()).any(|window| window == wanted);
    if has(b"constants.pkl") {
        return Ok(());
    }
    Err(format!("has a pickled PyTorch model, which is Python and no program of its own: {EXPORT}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TENSORS: &str = r#"
signature:
  inputs: '[{"type": "tensor", "name": "x", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}},
    {"type": "tensor", "name": "text", "tensor-spec": {"dtype": "str", "shape": [-1]}}]'
  outputs: '[{"type": "tensor", "name": "y", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]'
  params: null
"#;
    const UNNAMED: &str = r#"
signature:
  inputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float16", "shape": [2, 3]}}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "bool", "shape": [2]}}]'
"#;
    const COLUMNS: &str = r#"
signature:
  inputs: '[{"type": "double", "name": "age", "required": true}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1]}}]'
"#;
    const ONNX: &str =
        "flavors:\n  onnx:\n    code: null\n    data: model.onnx\n    providers: [A, B]\n  python_function: {env: {}}\n";
    const TORCH: &str = "flavors:\n  pytorch:\n    model_data: data\n    pytorch_version: 2.13.0\n";

    #[test]
    fn onnx() {
        let served = parse(format!("{ONNX}{TENSORS}").as_bytes()).unwrap();
        assert_eq!(served.flavor, Flavor::Onnx { file: "model.onnx".into() });
        let inputs = json!([
            { "name": "x", "datatype": "FP32", "shape": [-1, 4] },
            { "name": "text", "datatype": "BYTES", "shape": [-1] }
        ]);
        let outputs = json!([{ "name": "y", "datatype": "INT64", "shape": [-1] }]);
        assert_eq!(served.signature, Some(json!({ "inputs": inputs, "outputs": outputs, "batch_axis": 0 })));
        // The file tells where MLmodel can't.
        for signature in [UNNAMED, COLUMNS, "", "signature: null\n", "signature:\n  inputs: 'nonsense'\n"] {
            assert_eq!(parse(format!("{ONNX}{signature}").as_bytes()).unwrap().signature, None, "{signature}");
        }
    }

    #[test]
    fn torchscript() {
        let served = parse(format!("{TORCH}{UNNAMED}").as_bytes()).unwrap();
        assert_eq!(served.flavor, Flavor::Torch { data: "data".into() });
        let inputs = json!([{ "name": "INPUT__0", "datatype": "FP16", "shape": [2, 3] }]);
        let outputs = json!([{ "name": "OUTPUT__0", "datatype": "BOOL", "shape": [2] }]);
        assert_eq!(served.signature, Some(json!({ "inputs": inputs, "outputs": outputs, "batch_axis": null })));
        let refused = |text: &str| parse(format!("{TORCH}{text}").as_bytes()).unwrap_err();
        assert!(refused("").contains("without a signature"));
        assert!(
            refused(COLUMNS).contains(r#"signature.inputs in MLmodel has "age" as a column of a table"#),
            "{}",
            refused(COLUMNS)
        );
        let odd = UNNAMED.replace("float16", "complex64");
        assert!(refused(&odd).contains(r#"dtype "complex64""#), "{}", refused(&odd));
        let odd = UNNAMED.replace("[2, 3]", "[-2]");
        assert!(refused(&odd).contains("with shape [-2]"), "{}", refused(&odd));
    }

    #[test]
    fn the_file_of_a_torch_model() {
        let find = |data: &str, paths: &[&'static str]| torch_file(data, paths.iter().copied()).map_err(|problem| problem.clone());
        assert_eq!(find("data", &["MLmodel", "data/model.pth", "data/pickle_module_info.txt"]), Ok("data/model.pth"));
        assert_eq!(find("model.pt", &["model.pt"]), Ok("model.pt"));
        assert_eq!(find("data", &["data/model.pt2", "data/model.pth"]), Ok("data/model.pth"));
        assert!(find("data", &["data/model.pt2"]).unwrap_err().contains("torch.export"));
        assert!(find("data", &["data/deep/model.pth", "other/model.pth"]).unwrap_err().contains("no file .pth or .pt"));
    }

    #[test]
    fn what_has_no_runtime() {
        let refused = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert!(refused("flavors:\n  sklearn: {}\n  python_function: {}\n").contains(r#"it has "python_function, sklearn""#));
        assert!(refused("artifact_path: model\n").contains("it has \"none\""));
        assert!(refused("flavors:\n  onnx: {data: 7}\n").contains("flavors.onnx.data"));
        assert!(refused("flavors:\n  onnx: {data: /etc/passwd}\n").contains("flavors.onnx.data"));
        // Aliases that stand for ever more.
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(", ")));
        }
        bomb.push_str("flavors:\n  onnx:\n    data: *a11\n");
        assert!(refused(&bomb).contains("can't be read"), "{}", refused(&bomb));
    }

    #[test]
    fn torchscript_is_told_from_a_pickle() {
        assert_eq!(check_torchscript(b"..archive/code/__torch__.py..archive/constants.pkl.."), Ok(()));
        for pickle in [&b"..archive/data.pkl..archive/data/0.."[..], b"", b"\x80\x02}q\x00."] {
            assert!(check_torchscript(pickle).unwrap_err().contains("torch.jit.script"));
        }
    }
}
