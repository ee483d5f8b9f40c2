//! An answer of the engine into `ModelInferResponse`. Tensors become raw contents without a copy.

use bascule_proto::inference::ModelInferResponse;
use bascule_proto::inference::model_infer_response::InferOutputTensor;
use bascule_serving::{InferError, InferResponse};

use super::decode::OutputChoice;
use crate::codec::classify;

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
        let classes = choices.iter().find(|choice| choice.name == *name).map_or(0, |choice| choice.classes);
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
