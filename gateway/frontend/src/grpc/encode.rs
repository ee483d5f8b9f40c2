//! An answer of the engine into `ModelInferResponse`. Tensors become raw contents without a copy.

use bascule_proto::inference::ModelInferResponse;
use bascule_proto::inference::model_infer_response::InferOutputTensor;
use bascule_serving::{InferError, InferResponse};

use super::decode::OutputChoice;
use super::wire::LARGE_BYTES;
use crate::codec::classify;

/// Whether classes of a large output were asked for: finding them takes long.
pub(crate) fn is_heavy(response: &InferResponse, choices: &[OutputChoice]) -> bool {
    let specs = &response.servable.signature().outputs;
    response.outputs.iter().any(|(index, tensor)| {
        let classes = specs.get(*index).map_or(0, |spec| classes(&spec.name, choices));
        classes > 0 && tensor.bytes().len() > LARGE_BYTES
    })
}

fn classes(name: &str, choices: &[OutputChoice]) -> usize {
    choices.iter().find(|choice| choice.name == name).map_or(0, |choice| choice.classes)
}

/// Encodes an answer: outputs in the order asked for, as classes where that was asked for.
///
/// # Errors
/// Where an output has no classes.
pub(crate) fn encode(id: String, response: InferResponse, choices: &[OutputChoice]) -> Result<ModelInferResponse, InferError> {
    let InferResponse { servable, outputs } = response;
    let mut encoded = ModelInferResponse {
        model_name: servable.model().to_owned(),
        model_version: servable.version().to_string(),
        id,
        outputs: Vec::with_capacity(outputs.len()),
        raw_output_contents: Vec::with_capacity(outputs.len()),
        ..ModelInferResponse::default()
    };
    for (index, tensor) in outputs {
        let Some(spec) = servable.signature().outputs.get(index) else {
            return Err(InferError::Internal {
                message: format!("{servable:?} answered with output {index}, which it does not have"),
            });
        };
        let name = &spec.name;
        let classes = classes(name, choices);
        let tensor =
            if classes == 0 { tensor } else { classify(name, &tensor, classes, servable.is_batched(), servable.labels(name))? };
        encoded.outputs.push(InferOutputTensor {
            name: name.clone(),
            datatype: tensor.datatype().name().to_owned(),
            shape: tensor.shape().to_vec(),
            ..InferOutputTensor::default()
        });
        encoded.raw_output_contents.push(tensor.into_bytes());
    }
    Ok(encoded)
}
