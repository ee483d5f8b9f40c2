//! Answers as they go out: messages in gRPC's framing, and a body that sends them.
//!
//! The raw contents of an answer are sent from where they lie; only small ones are joined with what is around them. Deliberately absent:
//! the pace at which the caller reads, which [`super::watch`] has.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bascule_proto::inference::{ModelInferResponse, ModelStreamInferResponse};
use bascule_serving::InferError;
use bytes::Bytes;
use futures::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use prost::{Message as _, encode_length_delimiter, length_delimiter_len};
use smallvec::SmallVec;
use tonic::Status;
use tonic::body::Body;

use super::budget::Share;
use super::packing::{Coding, ENCODING, pack};

/// Flag and length before each message.
const HEADER_BYTES: usize = 5;

/// `raw_output_contents` of `ModelInferResponse`: field 6, with a length.
const RAW_TAG: u8 = 6 << 3 | 2;

/// `infer_response` of `ModelStreamInferResponse`: field 2, with a length.
const RESPONSE_TAG: u8 = 2 << 3 | 2;

/// Contents below this are joined: a frame of their own would cost more.
const SMALL_BYTES: usize = 4 << 10;

/// A message in its framing, in parts that are sent one after the other.
pub(crate) type Parts = SmallVec<[Bytes; 3]>;

/// An encoded message and the memory that counts until it is sent.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) parts: Parts,
    pub(crate) share: Arc<Share>,
}

/// A message before it is framed: its first bytes with room for the header, and the parts behind them.
struct Layout {
    first: Vec<u8>,
    rest: SmallVec<[Bytes; 2]>,
}

/// Encodes the answer of a single call.
///
/// # Errors
/// [`InferError::Internal`] where it is longer than a message can be.
pub(crate) fn single(response: ModelInferResponse, coding: Option<Coding>) -> Result<Parts, InferError> {
    framed(lay_out(response, false), coding)
}

/// Encodes an answer within a stream.
///
/// # Errors
/// As [`single`].
pub(crate) fn streamed(response: ModelInferResponse, coding: Option<Coding>) -> Result<Parts, InferError> {
    framed(lay_out(response, true), coding)
}

/// Encodes an error within a stream.
///
/// # Errors
/// As [`single`].
pub(crate) fn streamed_error(id: String, error_message: String, coding: Option<Coding>) -> Result<Parts, InferError> {
    let infer_response = Some(ModelInferResponse { id, ..ModelInferResponse::default() });
    let response = ModelStreamInferResponse { error_message, infer_response };
    let first = [&[0; HEADER_BYTES][..], &response.encode_to_vec()].concat();
    framed(Layout { first, rest: SmallVec::new() }, coding)
}

fn lay_out(mut response: ModelInferResponse, is_streamed: bool) -> Layout {
    let raw = std::mem::take(&mut response.raw_output_contents);
    let length = response.encoded_len() + raw.iter().map(|contents| field_bytes(contents.len())).sum::<usize>();
    let mut tail = vec![0; HEADER_BYTES];
    if is_streamed {
        begin_field(&mut tail, RESPONSE_TAG, length);
    }
    response.encode_raw(&mut tail);
    let mut first = None;
    let mut rest = SmallVec::new();
    for contents in raw {
        begin_field(&mut tail, RAW_TAG, contents.len());
        if contents.len() < SMALL_BYTES {
            tail.extend_from_slice(&contents);
            continue;
        }
        let joined = std::mem::take(&mut tail);
        match first {
            None => first = Some(joined),
            Some(_) => rest.push(joined.into()),
        }
        rest.push(contents);
    }
    match first {
        None => Layout { first: tail, rest },
        Some(first) => {
            rest.extend(Some(tail).filter(|tail| !tail.is_empty()).map(Bytes::from));
            Layout { first, rest }
        }
    }
}

fn begin_field(buffer: &mut Vec<u8>, tag: u8, length: usize) {
    buffer.push(tag);
    // Fails only where a buffer can't grow, and a vector can.
    let _ = encode_length_delimiter(length, buffer);
}

fn field_bytes(length: usize) -> usize {
    1 + length_delimiter_len(length) + length
}

fn framed(layout: Layout, coding: Option<Coding>) -> Result<Parts, InferError> {
    let internal = |message: String| InferError::Internal { message };
    let Layout { mut first, mut rest } = layout;
    if let Some(coding) = coding {
        let message = std::iter::once(&first[HEADER_BYTES..]).chain(rest.iter().map(AsRef::as_ref));
        let packed = pack(coding, vec![0; HEADER_BYTES], message);
        first = packed.map_err(|error| internal(format!("an answer can't be packed: {error}")))?;
        rest.clear();
    }
    let length = first.len() - HEADER_BYTES + rest.iter().map(Bytes::len).sum::<usize>();
    let said = u32::try_from(length).map_err(|_| internal(format!("an answer of {length} bytes is longer than gRPC can say")))?;
    first[0] = u8::from(coding.is_some());
    first[1..HEADER_BYTES].copy_from_slice(&said.to_be_bytes());
    Ok(std::iter::once(first.into()).chain(rest).collect())
}

/// A response that sends these answers, packed as they say.
pub(crate) fn response<S>(answers: S, coding: Option<Coding>) -> Response<Body>
where
    S: Stream<Item = Result<Encoded, Status>> + Send + Unpin + 'static,
{
    let reply = Reply { answers: Some(answers), parts: Parts::new().into_iter(), share: None };
    let mut response = Response::new(Body::new(reply));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(coding) = coding {
        response.headers_mut().insert(ENCODING, coding.name());
    }
    response
}

/// A body of answers; its trailers say how the call ended.
struct Reply<S> {
    /// None once the trailers are out.
    answers: Option<S>,
    parts: smallvec::IntoIter<[Bytes; 3]>,
    share: Option<Arc<Share>>,
}

impl<S: Stream<Item = Result<Encoded, Status>> + Unpin> http_body::Body for Reply<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(part) = self.parts.next() {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            self.share = None;
            let Some(answers) = &mut self.answers else { return Poll::Ready(None) };
            let ended = match ready!(Pin::new(answers).poll_next(context)) {
                Some(Ok(Encoded { parts, share })) => {
                    self.parts = parts.into_iter();
                    self.share = Some(share);
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            // What still runs for this call is abandoned.
            self.answers = None;
            let mut trailers = HeaderMap::new();
            ended.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }
}

#[cfg(test)]
mod tests {
    use bascule_proto::inference::InferParameter;
    use bascule_proto::inference::model_infer_response::InferOutputTensor;
    use proptest::prelude::*;

    use super::*;
    use crate::grpc::budget::Budget;
    use crate::grpc::packing::unpack;

    fn answer(lengths: &[usize]) -> ModelInferResponse {
        let output = |length: &usize| InferOutputTensor { shape: vec![*length as i64], ..InferOutputTensor::default() };
        ModelInferResponse {
            model_name: "m".to_owned(),
            id: "42".to_owned(),
            parameters: [("p".to_owned(), InferParameter::default())].into(),
            outputs: lengths.iter().map(output).collect(),
            raw_output_contents: lengths.iter().map(|length| vec![7; *length].into()).collect(),
            ..ModelInferResponse::default()
        }
    }

    /// The message of a frame, unpacked.
    fn unframed(parts: &Parts, coding: Option<Coding>) -> Vec<u8> {
        let whole = parts.concat();
        let (header, message) = whole.split_at(HEADER_BYTES);
        assert_eq!(header[1..], u32::try_from(message.len()).unwrap().to_be_bytes());
        assert_eq!(header[0] == 1, coding.is_some());
        let share = Budget::new(usize::MAX).share();
        coding.map_or_else(|| message.to_vec(), |coding| unpack(coding, message, 1 << 30, &share).unwrap().to_vec())
    }

    #[test]
    fn large_contents_are_sent_from_where_they_lie() {
        let response = answer(&[3, 100_000, 5, 6, 200_000]);
        let large = [response.raw_output_contents[1].as_ptr(), response.raw_output_contents[4].as_ptr()];
        let parts = single(response, None).unwrap();
        assert_eq!([parts[1].as_ptr(), parts[3].as_ptr()], large);
        assert_eq!(parts.len(), 4);
        assert_eq!(single(answer(&[3, 5]), None).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn what_is_laid_out_is_what_the_library_would_write(
            lengths in prop::collection::vec(prop_oneof![0..200usize, SMALL_BYTES - 2..SMALL_BYTES + 2], 0..6),
            coding in prop::sample::select(vec![None, Some(Coding::Gzip), Some(Coding::Deflate)]),
        ) {
            let response = answer(&lengths);
            let whole = ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response.clone()) };
            prop_assert_eq!(unframed(&streamed(response.clone(), coding).unwrap(), coding), whole.encode_to_vec());
            let expected = response.encode_to_vec();
            prop_assert_eq!(unframed(&single(response, coding).unwrap(), coding), expected);
        }
    }
}
