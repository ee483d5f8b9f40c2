//! Writes TorchScript files, as libtorch reads them, without Python.
//!
//! A file is a zip archive of what is not compressed: the module's code, its attributes as a pickle, and the raw bytes of its tensors.

use std::io::{Cursor, Write as _};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A module of one class, `forward` and at most one tensor.
pub(crate) struct Script<'a> {
    /// The lines of `forward` from its first argument after `self` on: `x: Tensor) -> Tensor:\n    return x`.
    pub(crate) forward: &'a str,
    /// A tensor of FP32 that the code knows as `self.weight`, as one row.
    pub(crate) weight: &'a [f32],
}

/// The file of a module.
pub(crate) fn write(script: &Script<'_>) -> Vec<u8> {
    let has_weight = !script.weight.is_empty();
    let attribute = if has_weight { "  weight : Tensor\n" } else { "" };
    let code = format!(
        "class Model(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n{attribute}  def forward(self: __torch__.Model,\n    {}\n",
        script.forward
    );
    let weight: Vec<u8> = script.weight.iter().flat_map(|element| element.to_le_bytes()).collect();
    let pickle = pickle(script.weight.len());
    let mut members: Vec<(&str, &[u8])> = vec![
        ("model/data.pkl", &pickle),
        ("model/code/__torch__.py", code.as_bytes()),
        // An empty tuple.
        ("model/constants.pkl", b"\x80\x02)."),
        ("model/version", b"3\n"),
        ("model/byteorder", b"little"),
    ];
    if has_weight {
        members.push(("model/data/0", &weight));
    }
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    // What libtorch writes, too: it reads the tensors where they lie.
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
    for (name, content) in members {
        archive.start_file(name, stored).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// The module's attributes: protocol 2, an object of the class with a dictionary as its state.
fn pickle(weights: usize) -> Vec<u8> {
    let mut pickle = b"\x80\x02c__torch__\nModel\n)\x81}(".to_vec();
    text(&mut pickle, "training");
    // False.
    pickle.push(b'\x89');
    if weights > 0 {
        text(&mut pickle, "weight");
        pickle.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend_from_slice(b"ctorch\nFloatStorage\n");
        text(&mut pickle, "0");
        text(&mut pickle, "cpu");
        number(&mut pickle, weights);
        // The storage; from element 0 on; one row; stride 1; no gradient, no hooks.
        pickle.extend_from_slice(b"tQ");
        number(&mut pickle, 0);
        number(&mut pickle, weights);
        pickle.push(b'\x85');
        number(&mut pickle, 1);
        pickle.extend_from_slice(b"\x85\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend_from_slice(b"ub.");
    pickle
}

fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
    pickle.extend_from_slice(text.as_bytes());
}

fn number(pickle: &mut Vec<u8>, number: usize) {
    pickle.push(b'J');
    pickle.extend_from_slice(&i32::try_from(number).unwrap().to_le_bytes());
}
