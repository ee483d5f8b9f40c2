//! Requests in files → samples to record.
//!
//! A file holds what a client would send: one request in the protocol's JSON, an array of them, or one after the other, as JSON Lines
//! have them. A `.npy` file is the only input of its model. Deliberately absent: the binary extension, and what else a request may say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_frontend::codec::{Framing, decode};
use bascule_serving::{Asked, AskedInputs, GoldenTensor, MAX_GOLDEN_BYTES};
use bytes::Bytes;

use crate::cli::failure::Failure;
use crate::npy;

/// The tensors of one request: an element takes two bytes of a file of samples at the least, and eight of memory at the most.
const MAX_TENSOR_BYTES: usize = 4 * MAX_GOLDEN_BYTES as usize;

/// Reads every file; the samples are numbered through, as a trial numbers them.
pub(super) fn read(files: &[PathBuf]) -> Result<Vec<Asked>, Failure> {
    let mut samples = Vec::new();
    for file in files {
        let unreadable = || format!("--from: can't read {}", file.display());
        let content = std::fs::read(file).with_context(unreadable)?;
        let inputs = match file.extension().is_some_and(|extension| extension == "npy") {
            true => vec![AskedInputs::Only(GoldenTensor::of(&npy::read(&content).with_context(unreadable)?))],
            false => requests(file, &content)?,
        };
        for inputs in inputs {
            samples.push(Asked { origin: format!("sample {} ({})", samples.len(), file.display()), inputs });
        }
    }
    Ok(samples)
}

fn requests(file: &Path, content: &[u8]) -> Result<Vec<AskedInputs>, Failure> {
    let wrong = |cause: String| Failure::new(format!("--from: {}: {cause}", file.display())).hint(HINT);
    let bodies = bodies(content).map_err(wrong)?;
    if bodies.is_empty() {
        return Err(wrong("it holds no request".to_owned()));
    }
    let read = |(index, body)| inputs(body).map(AskedInputs::Named).map_err(|cause| wrong(format!("request {index}: {cause}")));
    bodies.into_iter().enumerate().map(read).collect()
}

/// What a request looks like.
const HINT: &str = r#"a request is {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}"#;

fn inputs(body: &[u8]) -> Result<BTreeMap<String, GoldenTensor>, String> {
    let decoded = decode(&Bytes::copy_from_slice(body), Framing::Json, MAX_TENSOR_BYTES).map_err(|error| error.to_string())?;
    let mut inputs = BTreeMap::new();
    for input in decoded.infer.inputs {
        if inputs.insert(input.name.clone(), GoldenTensor::of(&input.tensor)).is_some() {
            return Err(format!("input '{}' comes twice", input.name));
        }
    }
    Ok(inputs)
}

/// Divides a file into objects, without reading what they say.
fn bodies(content: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut rest = content.trim_ascii();
    let is_array = rest.starts_with(b"[");
    if is_array {
        rest = rest[1..].strip_suffix(b"]").ok_or("expected a ']' at the end of the array")?.trim_ascii();
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let index = found.len();
        if !rest.starts_with(b"{") {
            return Err(format!("request {index}: expected an object"));
        }
        let end = object_bytes(rest).ok_or_else(|| format!("request {index}: its object does not end"))?;
        let (object, after) = rest.split_at(end);
        found.push(object);
        rest = after.trim_ascii_start();
        if is_array && !rest.is_empty() {
            let next = rest.strip_prefix(b",").map(<[u8]>::trim_ascii_start).filter(|next| !next.is_empty());
            rest = next.ok_or_else(|| format!("request {index}: expected ',' and another object after it, or ']'"))?;
        }
    }
    Ok(found)
}

/// How long the object is that the text begins with; `None` where it does not end.
fn object_bytes(text: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (index, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' if !in_string => depth += 1,
            b'}' if !in_string => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(index + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bascule_runtime_api::Tensor;

    use super::*;

    fn request(name: &str, data: &str) -> String {
        format!(r#"{{"id": "a}}\"{{", "inputs": [{{"name": "{name}", "datatype": "FP32", "shape": [1], "data": [{data}]}}]}}"#)
    }

    /// Reads one file; each sample's origin and the names of its inputs.
    fn check(name: &str, content: &[u8]) -> Result<Vec<(String, Vec<String>)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let shown = |text: String| text.replace(&file.display().to_string(), name);
        let samples = read(std::slice::from_ref(&file)).map_err(|failure| shown(failure.text()))?;
        let named = |asked: Asked| match asked.inputs {
            AskedInputs::Named(inputs) => (shown(asked.origin), inputs.into_keys().collect()),
            AskedInputs::Only(_) => (shown(asked.origin), Vec::new()),
        };
        Ok(samples.into_iter().map(named).collect())
    }

    #[test]
    fn requests_come_alone_in_an_array_or_one_after_the_other() {
        let (a, b) = (request("a", "1"), request("b", "NaN"));
        let both =
            || Ok(vec![("sample 0 (r)".to_owned(), vec!["a".to_owned()]), ("sample 1 (r)".to_owned(), vec!["b".to_owned()])]);
        assert_eq!(check("r", a.as_bytes()).map(|samples| samples.len()), Ok(1));
        for text in [format!("{a}\n{b}\n"), format!("{a}{b}"), format!(" [ {a},\n{b} ]\n")] {
            assert_eq!(check("r", text.as_bytes()), both(), "{text}");
        }
        let array = npy::write(&Tensor::from_elements([2], &[1.0_f32, 2.0]).unwrap()).unwrap();
        assert_eq!(check("x.npy", &array), Ok(vec![("sample 0 (x.npy)".to_owned(), vec![])]));
    }

    #[test]
    fn what_is_no_request_is_named() {
        let a = request("a", "1");
        let twice = a.replace("}]}", r#"}, {"name": "a", "datatype": "FP32", "shape": [0], "data": []}]}"#);
        for (text, expected) in [
            (String::new(), "it holds no request"),
            ("[]".to_owned(), "it holds no request"),
            ("3".to_owned(), "request 0: expected an object"),
            (format!("{a} 3"), "request 1: expected an object"),
            (format!("[{a}"), "expected a ']' at the end of the array"),
            (format!("[{a} {a}]"), "request 0: expected ',' and another object after it"),
            (format!("[{a},]"), "request 0: expected ',' and another object after it"),
            (format!("{a}{{"), "request 1: its object does not end"),
            (format!("{a}\n{}", request("b", "\"x\"")), "request 1: input 'b', element 0: expected a number, found a string"),
            ("{}".to_owned(), "request 0: request: 'inputs' is missing"),
            (twice, "request 0: input 'a' comes twice"),
        ] {
            let said = check("r", text.as_bytes()).unwrap_err();
            assert!(said.starts_with(&format!("error: --from: r: {expected}")) && said.contains("hint: a request is"), "{said}");
        }
        assert!(check("x.npy", b"none").unwrap_err().starts_with("error: --from: can't read x.npy\ncaused by: not a .npy file"));
    }
}
