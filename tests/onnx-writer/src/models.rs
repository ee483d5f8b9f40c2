//! The models that tests ask for by name.

use bascule_runtime_api::DataType;

use crate::{Attribute, Graph, OnnxModel};

/// `y` is `x`: one input and one output of a datatype and shape.
pub fn identity(datatype: DataType, shape: &[i64]) -> OnnxModel {
    Graph::new().input("x", datatype, shape).output("y", datatype, shape).node("Identity", &["x"], &["y"]).build()
}

/// Every element of `y` is `value`, whatever `x` holds: `x` and `y` are FP32 `[-1, features]`. A test that gives each version a value
/// of its own sees which version answered.
pub fn constant(value: f32, features: i64) -> OnnxModel {
    let value = Attribute::Tensor(DataType::Fp32, vec![1], value.to_le_bytes().to_vec());
    Graph::new()
        .input("x", DataType::Fp32, &[-1, features])
        .output("y", DataType::Fp32, &[-1, features])
        .node("Shape", &["x"], &["shape"])
        .node_with("ConstantOfShape", &["shape"], &["y"], vec![("value", value)])
        .build()
}

/// `y` = `x`·`weights` + `bias`: `x` is FP32 `[-1, rows of weights]`, `y` is FP32 `[-1, length of bias]`. `weights` lie row by row.
///
/// # Panics
/// Where the length of `weights` is no multiple of that of `bias`.
pub fn linear(weights: &[f32], bias: &[f32]) -> OnnxModel {
    assert!(!bias.is_empty() && weights.len().is_multiple_of(bias.len()), "weights and bias don't go together");
    let (inputs, outputs) = ((weights.len() / bias.len()) as i64, bias.len() as i64);
    Graph::new()
        .input("x", DataType::Fp32, &[-1, inputs])
        .output("y", DataType::Fp32, &[-1, outputs])
        .weights("weights", DataType::Fp32, &[inputs, outputs], bytemuck::cast_slice(weights).to_vec())
        .weights("bias", DataType::Fp32, &[outputs], bytemuck::cast_slice(bias).to_vec())
        .node("Gemm", &["x", "weights", "bias"], &["y"])
        .build()
}

/// The sum and the difference of two INT32 inputs of `[-1, 16]`, under the names that Triton's example `simple` uses.
pub fn add_sub() -> OnnxModel {
    let shape = [-1, 16];
    Graph::new()
        .input("INPUT0", DataType::Int32, &shape)
        .input("INPUT1", DataType::Int32, &shape)
        .output("OUTPUT0", DataType::Int32, &shape)
        .output("OUTPUT1", DataType::Int32, &shape)
        .node("Add", &["INPUT0", "INPUT1"], &["OUTPUT0"])
        .node("Sub", &["INPUT0", "INPUT1"], &["OUTPUT1"])
        .build()
}

/// `y` = `a` + `b`, both FP32 of any one size: two sizes that differ are refused by the operator, not by the signature.
pub fn add() -> OnnxModel {
    Graph::new()
        .input("a", DataType::Fp32, &[-1])
        .input("b", DataType::Fp32, &[-1])
        .output("y", DataType::Fp32, &[-1])
        .node("Add", &["a", "b"], &["y"])
        .build()
}

/// Columns of [`large`]'s table.
pub const LARGE_COLUMNS: i64 = 256;

/// A table of FP32 weights of `megabytes` MiB, of which `y` is the rows that `x` names: `x` is INT64 `[-1]`, `y` FP32
/// `[-1, LARGE_COLUMNS]`. Every element of row `i` is `i`. It takes memory and hardly any time. `file` puts the table into a file
/// beside the model.
pub fn large(megabytes: usize, file: Option<&str>) -> OnnxModel {
    lookup(megabytes, |row| row as f32, file)
}

/// The same in `megabytes` MiB, but every element of every row is `value`: a [`constant`] that takes memory.
pub fn filled(megabytes: usize, value: f32) -> OnnxModel {
    lookup(megabytes, |_| value, None)
}

fn lookup(megabytes: usize, value: impl Fn(usize) -> f32, file: Option<&str>) -> OnnxModel {
    let rows = megabytes * (1 << 20) / (4 * LARGE_COLUMNS as usize);
    let mut table = Vec::with_capacity(megabytes << 20);
    for row in 0..rows {
        for _ in 0..LARGE_COLUMNS {
            table.extend_from_slice(&value(row).to_le_bytes());
        }
    }
    let shape = [rows as i64, LARGE_COLUMNS];
    let graph = Graph::new().input("x", DataType::Int64, &[-1]).output("y", DataType::Fp32, &[-1, LARGE_COLUMNS]);
    let graph = match file {
        Some(file) => graph.weights_in_file("table", DataType::Fp32, &shape, table, file),
        None => graph.weights("table", DataType::Fp32, &shape, table),
    };
    graph.node("Gather", &["table", "x"], &["y"]).build()
}

/// `y` = `x` + `iterations`, one at a time: as slow as one likes, and it can be interrupted between any two additions. `x` and `y`
/// are FP32 `[-1]`, `iterations` is an INT64 scalar, so requests can't be joined.
pub fn slow() -> OnnxModel {
    let one = Attribute::Tensor(DataType::Fp32, vec![1], 1f32.to_le_bytes().to_vec());
    let body = Graph::new()
        .input("iteration", DataType::Int64, &[])
        .input("go_on", DataType::Bool, &[])
        .input("sum", DataType::Fp32, &[-1])
        .output("still_go_on", DataType::Bool, &[])
        .output("next_sum", DataType::Fp32, &[-1])
        .node_with("Constant", &[], &["one"], vec![("value", one)])
        .node("Identity", &["go_on"], &["still_go_on"])
        .node("Add", &["sum", "one"], &["next_sum"]);
    Graph::new()
        .input("iterations", DataType::Int64, &[])
        .input("x", DataType::Fp32, &[-1])
        .output("y", DataType::Fp32, &[-1])
        .node_with("Loop", &["iterations", "", "x"], &["y"], vec![("body", Attribute::Graph(body))])
        .build()
}

/// An input that is a sequence, which can't be served.
pub fn sequence_input() -> OnnxModel {
    Graph::new()
        .sequence_input("words", DataType::Fp32)
        .output("length", DataType::Int64, &[])
        .node("SequenceLength", &["words"], &["length"])
        .build()
}

/// An output that is a sequence, which can't be served.
pub fn sequence_output() -> OnnxModel {
    Graph::new()
        .input("x", DataType::Fp32, &[-1])
        .sequence_output("parts", DataType::Fp32)
        .node("SplitToSequence", &["x"], &["parts"])
        .build()
}

/// An input that may be absent, which can't be served.
pub fn optional_input() -> OnnxModel {
    Graph::new()
        .optional_sequence_input("maybe", DataType::Fp32)
        .output("present", DataType::Bool, &[])
        .node("OptionalHasElement", &["maybe"], &["present"])
        .build()
}
