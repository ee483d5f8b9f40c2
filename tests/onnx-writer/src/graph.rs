//! Builds a graph node by node.

use std::fs;
use std::io;
use std::path::Path;

use bascule_runtime_api::DataType;
use prost::Message;

use crate::proto::{
    AttributeProto, DimensionProto, ElementTypeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// The version of ONNX's operators that every model is written for; old enough for any library that can be used.
const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// A model: the bytes of `model.onnx`, and the files that lie beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnnxModel {
    /// The content of `model.onnx`.
    pub bytes: Vec<u8>,
    /// Files of weights, by their path relative to `model.onnx`.
    pub files: Vec<(String, Vec<u8>)>,
}

impl OnnxModel {
    /// Writes `model.onnx` and all else into a folder that exists.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_to(&self, dir: &Path) -> io::Result<()> {
        for (name, content) in &self.files {
            fs::write(dir.join(name), content)?;
        }
        fs::write(dir.join("model.onnx"), &self.bytes)
    }
}

/// A node's attribute.
#[derive(Debug, Clone)]
pub enum Attribute {
    /// A number.
    Int(i64),
    /// Several numbers.
    Ints(Vec<i64>),
    /// A tensor: datatype, shape, little-endian elements.
    Tensor(DataType, Vec<i64>, Vec<u8>),
    /// A subgraph.
    Graph(Graph),
}

/// A graph in the making.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    proto: GraphProto,
    files: Vec<(String, Vec<u8>)>,
}

impl Graph {
    /// A graph with nothing in it.
    pub fn new() -> Graph {
        Graph { proto: GraphProto { name: "graph".into(), ..GraphProto::default() }, files: Vec::new() }
    }

    /// Adds an input. A size of −1 is named after its axis, so that equal axes of two tensors have one name.
    #[must_use]
    pub fn input(mut self, name: &str, datatype: DataType, shape: &[i64]) -> Graph {
        self.proto.input.push(value(name, tensor_type(datatype, Some(shape))));
        self
    }

    /// Adds an input whose number of dimensions is not told.
    #[must_use]
    pub fn input_of_unknown_rank(mut self, name: &str, datatype: DataType) -> Graph {
        self.proto.input.push(value(name, tensor_type(datatype, None)));
        self
    }

    /// Adds an input that is a sequence of tensors.
    #[must_use]
    pub fn sequence_input(mut self, name: &str, datatype: DataType) -> Graph {
        self.proto.input.push(value(name, sequence_of(tensor_type(datatype, None))));
        self
    }

    /// Adds an input that is a sequence of sequences of tensors.
    #[must_use]
    pub fn nested_sequence_input(mut self, name: &str, datatype: DataType) -> Graph {
        self.proto.input.push(value(name, sequence_of(sequence_of(tensor_type(datatype, None)))));
        self
    }

    /// Adds an input that is an optional sequence of tensors.
    #[must_use]
    pub fn optional_sequence_input(mut self, name: &str, datatype: DataType) -> Graph {
        let elem_type = Some(Box::new(sequence_of(tensor_type(datatype, None))));
        let optional = TypeProto { optional_type: Some(ElementTypeProto { elem_type }), ..TypeProto::default() };
        self.proto.input.push(value(name, optional));
        self
    }

    /// Adds an output.
    #[must_use]
    pub fn output(mut self, name: &str, datatype: DataType, shape: &[i64]) -> Graph {
        self.proto.output.push(value(name, tensor_type(datatype, Some(shape))));
        self
    }

    /// Adds an output whose number of dimensions is not told.
    #[must_use]
    pub fn output_of_unknown_rank(mut self, name: &str, datatype: DataType) -> Graph {
        self.proto.output.push(value(name, tensor_type(datatype, None)));
        self
    }

    /// Adds an output that is a sequence of tensors.
    #[must_use]
    pub fn sequence_output(mut self, name: &str, datatype: DataType) -> Graph {
        self.proto.output.push(value(name, sequence_of(tensor_type(datatype, None))));
        self
    }

    /// Adds a node of an operator.
    #[must_use]
    pub fn node(self, operator: &str, inputs: &[&str], outputs: &[&str]) -> Graph {
        self.node_with(operator, inputs, outputs, Vec::new())
    }

    /// Adds a node of an operator with attributes.
    #[must_use]
    pub fn node_with(mut self, operator: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<(&str, Attribute)>) -> Graph {
        self.proto.node.push(NodeProto {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: outputs.iter().map(|name| (*name).to_owned()).collect(),
            name: format!("{operator}_{}", self.proto.node.len()),
            op_type: operator.to_owned(),
            attribute: attributes.into_iter().map(|(name, attribute)| attribute_proto(name, attribute)).collect(),
            domain: String::new(),
        });
        self
    }

    /// Adds weights: datatype, shape, little-endian elements.
    #[must_use]
    pub fn weights(mut self, name: &str, datatype: DataType, shape: &[i64], elements: Vec<u8>) -> Graph {
        self.proto.initializer.push(tensor(name, datatype, shape, elements));
        self
    }

    /// Adds weights that lie in a file of their own.
    #[must_use]
    pub fn weights_in_file(self, name: &str, datatype: DataType, shape: &[i64], elements: Vec<u8>, file: &str) -> Graph {
        let length = elements.len();
        let mut graph = self.weights_elsewhere(name, datatype, shape, file, length);
        graph.files.push((file.to_owned(), elements));
        graph
    }

    /// Adds weights that the model says lie at `location`, without making that file.
    #[must_use]
    pub fn weights_elsewhere(mut self, name: &str, datatype: DataType, shape: &[i64], location: &str, length: usize) -> Graph {
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        let mut proto = tensor(name, datatype, shape, Vec::new());
        proto.raw_data = None;
        proto.external_data =
            vec![entry("location", location.to_owned()), entry("offset", "0".to_owned()), entry("length", length.to_string())];
        // The value of EXTERNAL.
        proto.data_location = 1;
        self.proto.initializer.push(proto);
        self
    }

    /// The model.
    pub fn build(self) -> OnnxModel {
        let opset = OperatorSetIdProto { domain: String::new(), version: OPSET };
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "bascule".into(),
            graph: Some(self.proto),
            opset_import: vec![opset],
        };
        OnnxModel { bytes: model.encode_to_vec(), files: self.files }
    }
}

/// A datatype's number in `TensorProto.DataType`.
fn number(datatype: DataType) -> i32 {
    match datatype {
        DataType::Fp32 => 1,
        DataType::Uint8 => 2,
        DataType::Int8 => 3,
        DataType::Uint16 => 4,
        DataType::Int16 => 5,
        DataType::Int32 => 6,
        DataType::Int64 => 7,
        DataType::Bytes => 8,
        DataType::Bool => 9,
        DataType::Fp16 => 10,
        DataType::Fp64 => 11,
        DataType::Uint32 => 12,
        DataType::Uint64 => 13,
        DataType::Bf16 => 16,
    }
}

fn value(name: &str, r#type: TypeProto) -> ValueInfoProto {
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type) }
}

fn tensor_type(datatype: DataType, shape: Option<&[i64]>) -> TypeProto {
    let dimension = |(axis, size): (usize, &i64)| match *size {
        size if size >= 0 => DimensionProto { dim_value: Some(size), dim_param: None },
        _ => DimensionProto { dim_value: None, dim_param: Some(format!("axis{axis}")) },
    };
    let shape = shape.map(|shape| TensorShapeProto { dim: shape.iter().enumerate().map(dimension).collect() });
    TypeProto { tensor_type: Some(TensorTypeProto { elem_type: number(datatype), shape }), ..TypeProto::default() }
}

fn sequence_of(element: TypeProto) -> TypeProto {
    let sequence_type = Some(ElementTypeProto { elem_type: Some(Box::new(element)) });
    TypeProto { sequence_type, ..TypeProto::default() }
}

fn tensor(name: &str, datatype: DataType, shape: &[i64], elements: Vec<u8>) -> TensorProto {
    TensorProto {
        dims: shape.to_vec(),
        data_type: number(datatype),
        name: name.to_owned(),
        raw_data: Some(elements),
        ..TensorProto::default()
    }
}

fn attribute_proto(name: &str, attribute: Attribute) -> AttributeProto {
    let proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    // The numbers are those of AttributeProto.AttributeType.
    match attribute {
        Attribute::Int(i) => AttributeProto { i, r#type: 2, ..proto },
        Attribute::Tensor(datatype, shape, elements) => {
            AttributeProto { t: Some(tensor("", datatype, &shape, elements)), r#type: 4, ..proto }
        }
        Attribute::Graph(graph) => AttributeProto { g: Some(graph.proto), r#type: 5, ..proto },
        Attribute::Ints(ints) => AttributeProto { ints, r#type: 7, ..proto },
    }
}
