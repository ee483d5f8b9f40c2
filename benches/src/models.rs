//! The models that the benchmarks serve.

use std::path::Path;

use anyhow::Result;
use bascule_onnx_writer::{Attribute, Graph, OnnxModel, models};
use bascule_runtime_api::DataType;

/// Writes a plain model: version 1, and its settings.
pub(crate) fn write(registry: &Path, name: &str, model: &OnnxModel, settings: &str) -> Result<()> {
    let dir = registry.join(name);
    std::fs::create_dir_all(dir.join("1"))?;
    model.write_to(&dir.join("1"))?;
    std::fs::write(dir.join("model.toml"), settings)?;
    Ok(())
}

/// A perceptron without a bias: `layers[i]` columns in, `layers[i + 1]` out, cut off below zero.
pub(crate) fn perceptron(layers: &[usize]) -> OnnxModel {
    let shape = |columns: Option<&usize>| [-1, columns.copied().unwrap_or(0) as i64];
    let mut graph =
        Graph::new().input("x", DataType::Fp32, &shape(layers.first())).output("y", DataType::Fp32, &shape(layers.last()));
    let mut from = "x".to_owned();
    for (layer, sizes) in layers.windows(2).enumerate() {
        let (weights, product) = (format!("weights{layer}"), format!("product{layer}"));
        let to = if layer + 2 == layers.len() { "y".to_owned() } else { format!("layer{layer}") };
        // Some pattern without symmetry; small enough that nothing overflows.
        let element = |index: usize| ((index * 37 + layer) % 101) as f32 / 5000.0 - 0.01;
        let elements = (0..sizes[0] * sizes[1]).flat_map(|index| element(index).to_le_bytes()).collect();
        graph = graph
            .weights(&weights, DataType::Fp32, &[sizes[0] as i64, sizes[1] as i64], elements)
            .node("MatMul", &[&from, &weights], &[&product])
            .node("Relu", &[&product], &[&to]);
        from = to;
    }
    graph.build()
}

/// What comes goes out again.
pub(crate) fn identity(shape: &[i64]) -> OnnxModel {
    models::identity(DataType::Fp32, shape)
}

/// Little work on much memory: what comes is taken for rows of a table of so many megabytes. The rows depend on the request: what does not
/// is worked out when a model is loaded, and the table forgotten.
pub(crate) fn table(megabytes: usize) -> OnnxModel {
    let rows = megabytes * (1 << 20) / 16;
    let element = |index: usize| ((index % 1009) as f32 / 1009.0).to_le_bytes();
    Graph::new()
        .input("x", DataType::Fp32, &[-1, 4])
        .output("y", DataType::Fp32, &[-1, 4, 4])
        .weights("table", DataType::Fp32, &[rows as i64, 4], (0..rows * 4).flat_map(element).collect())
        .node_with("Cast", &["x"], &["row"], vec![("to", Attribute::Int(INT64))])
        .node("Gather", &["table", "row"], &["y"])
        .build()
}

/// The number of INT64 among the element types of an ONNX file.
const INT64: i64 = 7;
