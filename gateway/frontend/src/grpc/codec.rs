//! From the bytes of a message to its fields, with the check of [`super::wire`] before.

use bascule_proto::inference::ModelInferRequest;
use bascule_serving::InferError;
use bytes::Bytes;
use prost::Message as _;

use super::wire::{self, Excess};

/// Decodes a message whose typed contents may take `limit_bytes` in memory; what they take is told to `take` before.
///
/// # Errors
/// [`InferError::InvalidArgument`] where it is malformed or has too many parts, [`InferError::TooLarge`], and those of `take`.
pub(crate) fn decode(
    message: Bytes,
    limit_bytes: usize,
    take: impl FnOnce(usize) -> Result<(), InferError>,
) -> Result<ModelInferRequest, InferError> {
    let malformed = |cause: &dyn std::fmt::Display| InferError::invalid(format!("request is not a ModelInferRequest: {cause}"));
    let typed_bytes = wire::check(&message, limit_bytes).map_err(|excess| match excess {
        Excess::Count { .. } => InferError::invalid(format!("request: {excess}")),
        Excess::Memory { limit_bytes } => InferError::TooLarge { what: "the contents of all inputs".to_owned(), limit_bytes },
        Excess::Malformed => malformed(&excess),
    })?;
    take(typed_bytes)?;
    ModelInferRequest::decode(message).map_err(|error| malformed(&error))
}
