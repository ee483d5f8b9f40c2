//! The codec of inference calls: the check of [`super::wire`] before every message is decoded.

use bascule_proto::inference::ModelInferRequest;
use bascule_serving::InferError;
use bytes::{Buf as _, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::wire::{self, Excess};
use crate::errors::grpc_code;

/// Decodes inference requests and encodes `Answer`s.
#[derive(Debug)]
pub(crate) struct InferCodec<Answer> {
    limit_bytes: usize,
    answer: std::marker::PhantomData<fn() -> Answer>,
}

impl<Answer> InferCodec<Answer> {
    /// A codec whose requests may take `limit_bytes` once decoded.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        InferCodec { limit_bytes, answer: std::marker::PhantomData }
    }
}

impl<Answer: Message + 'static> Codec for InferCodec<Answer> {
    type Encode = Answer;
    type Decode = ModelInferRequest;
    type Encoder = AnswerEncoder<Answer>;
    type Decoder = RequestDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        AnswerEncoder(std::marker::PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder { limit_bytes: self.limit_bytes }
    }
}

/// Writes answers.
#[derive(Debug)]
pub(crate) struct AnswerEncoder<Answer>(std::marker::PhantomData<fn() -> Answer>);

impl<Answer: Message> Encoder for AnswerEncoder<Answer> {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, item: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Reads requests.
#[derive(Debug)]
pub(crate) struct RequestDecoder {
    limit_bytes: usize,
}

impl Decoder for RequestDecoder {
    type Item = ModelInferRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<ModelInferRequest>, Status> {
        // Shares the received buffer; the decoder then gives slices of it away.
        let message = buffer.copy_to_bytes(buffer.remaining());
        decode(message, self.limit_bytes).map(Some).map_err(|error| Status::new(grpc_code(error.code()), error.to_string()))
    }
}

/// Decodes a message that may take `limit_bytes` in memory.
///
/// # Errors
/// [`InferError::InvalidArgument`] where it is malformed or has too many parts, [`InferError::TooLarge`].
pub(crate) fn decode(message: Bytes, limit_bytes: usize) -> Result<ModelInferRequest, InferError> {
    wire::check(&message, limit_bytes).map_err(|excess| match excess {
        Excess::Count { .. } => InferError::invalid(format!("request: {excess}")),
        Excess::Memory { limit_bytes } => InferError::TooLarge { what: "the contents of all inputs".to_owned(), limit_bytes },
    })?;
    ModelInferRequest::decode(message).map_err(|error| InferError::invalid(format!("request is not a ModelInferRequest: {error}")))
}
