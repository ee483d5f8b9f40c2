//! The messages of a call, put together from what the connection brings.
//!
//! A message's buffer is placed so that the first of its raw contents is aligned, where the first piece shows where that begins. It grows
//! with what has arrived ([`trusted_bytes`]), so a length that is claimed costs nothing; it is counted against the port's budget until its
//! answer is there. A caller may rest between messages of a stream as long as it likes; within a message it may neither pause for long nor
//! take forever. Deliberately absent: what messages mean.

use std::time::Duration;

use bascule_runtime_api::AlignedBuffer;
use bascule_serving::InferError;
use bytes::{Buf as _, Bytes};
use http_body::Body;
use http_body_util::BodyExt as _;
use tonic::Status;

use super::budget::Share;
use super::packing::Coding;
use super::wire;
use crate::patience::{Patience, Slow};
use crate::trust::trusted_bytes;

/// Flag and length before each message.
const HEADER_BYTES: usize = 5;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What messages may take, in bytes and in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_message_bytes: usize,
    /// How long a message may stand still.
    pub(crate) stall_timeout: Duration,
    /// How long a message may take.
    pub(crate) total_timeout: Duration,
}

/// A message as it came, and its memory.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    /// How it is packed.
    pub(crate) coding: Option<Coding>,
    pub(crate) share: Share,
}

/// Reads messages from a body.
pub(crate) struct Messages<B> {
    body: B,
    coding: Option<Coding>,
    limits: Limits,
    /// What has come and was not read yet.
    rest: Bytes,
    /// Bytes of a refused message that are still to come.
    refused_bytes: usize,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Messages that are packed with `coding` where they say that they are packed.
    pub(crate) fn new(body: B, coding: Option<Coding>, limits: Limits) -> Messages<B> {
        Messages { body, coding, limits, rest: Bytes::new(), refused_bytes: 0 }
    }

    /// The next message of a stream; none once the caller is done. The inner error is about this message: the next can be read.
    ///
    /// # Errors
    /// What the call ends with.
    pub(crate) async fn next(&mut self, share: Share) -> Result<Option<Result<Received, InferError>>, Status> {
        if self.refused_bytes > 0 {
            self.pass_over(&mut self.patience()).await?;
        }
        if !self.is_begun().await? {
            return Ok(None);
        }
        self.message(share, &mut self.patience()).await.map(Some)
    }

    /// The only message of a call, once all of the call is there.
    ///
    /// # Errors
    /// What the call ends with.
    pub(crate) async fn only(&mut self, share: Share) -> Result<Result<Received, InferError>, Status> {
        let mut patience = self.patience();
        if !self.has_more(&mut patience).await? {
            return Err(Status::invalid_argument("expected a message, got none"));
        }
        let message = self.message(share, &mut patience).await?;
        if message.is_ok() && self.has_more(&mut patience).await? {
            return Err(Status::invalid_argument("expected one message, got more"));
        }
        Ok(message)
    }

    /// For one message.
    fn patience(&self) -> Patience {
        Patience::new(self.limits.stall_timeout, self.limits.total_timeout)
    }

    /// Passes over what is left of a refused message.
    async fn pass_over(&mut self, patience: &mut Patience) -> Result<(), Status> {
        while self.refused_bytes > 0 {
            self.more(patience).await?;
            let passed = self.refused_bytes.min(self.rest.len());
            self.rest.advance(passed);
            self.refused_bytes -= passed;
        }
        Ok(())
    }

    /// Waits for a byte of the next message; false where none comes any more.
    async fn is_begun(&mut self) -> Result<bool, Status> {
        while self.rest.is_empty() {
            match self.body.frame().await {
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
                // The caller went away in the middle, or broke the protocol below.
                Some(Err(error)) => return Err(Status::from_error(error.into())),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The same within time.
    async fn has_more(&mut self, patience: &mut Patience) -> Result<bool, Status> {
        let limits = self.limits;
        patience.while_waiting(self.is_begun()).await.unwrap_or_else(|slow| Err(too_slow(slow, limits)))
    }

    /// Waits for more of a message.
    async fn more(&mut self, patience: &mut Patience) -> Result<(), Status> {
        if !self.rest.is_empty() || self.has_more(patience).await? {
            return Ok(());
        }
        Err(Status::invalid_argument("the request breaks off within a message"))
    }

    async fn message(&mut self, share: Share, patience: &mut Patience) -> Result<Result<Received, InferError>, Status> {
        let (coding, length) = self.header(patience).await?;
        let limit_bytes = self.limits.max_message_bytes;
        if length > limit_bytes {
            let error = InferError::TooLarge { what: "the message".to_owned(), limit_bytes };
            return Err(Status::resource_exhausted(error.to_string()));
        }
        let mut buffer = Buffer { bytes: AlignedBuffer::default(), taken_bytes: 0, length, share };
        while buffer.bytes.len() < length {
            self.more(patience).await?;
            if buffer.bytes.is_empty() && coding.is_none() {
                buffer.bytes = AlignedBuffer::with_capacity_aligned_at(0, wire::raw_offset(&self.rest));
            }
            let piece = self.rest.split_to(self.rest.len().min(length - buffer.bytes.len()));
            if let Err(error) = buffer.push(&piece) {
                self.refused_bytes = length - buffer.bytes.len() - piece.len();
                return Ok(Err(error));
            }
        }
        Ok(Ok(Received { bytes: buffer.bytes.into_bytes(), coding, share: buffer.share }))
    }

    async fn header(&mut self, patience: &mut Patience) -> Result<(Option<Coding>, usize), Status> {
        let mut header = [0; HEADER_BYTES];
        let mut filled = 0;
        while filled < HEADER_BYTES {
            self.more(patience).await?;
            let count = self.rest.len().min(HEADER_BYTES - filled);
            self.rest.copy_to_slice(&mut header[filled..filled + count]);
            filled += count;
        }
        let [flag, length @ ..] = header;
        let coding = match (flag, self.coding) {
            (0, _) => None,
            (1, Some(coding)) => Some(coding),
            (1, None) => return Err(Status::invalid_argument("a message is compressed and no header 'grpc-encoding' says how")),
            _ => return Err(Status::invalid_argument(format!("expected a message to begin with 0 or 1, got {flag}"))),
        };
        Ok((coding, usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX)))
    }
}

/// A message while it is put together.
struct Buffer {
    bytes: AlignedBuffer,
    taken_bytes: usize,
    /// What it says that it will have.
    length: usize,
    share: Share,
}

impl Buffer {
    fn push(&mut self, piece: &[u8]) -> Result<(), InferError> {
        let filled = self.bytes.len();
        let needed = filled + piece.len();
        if needed > self.taken_bytes {
            let size = self.length.min(trusted_bytes(filled).max(needed));
            self.share.take(size - self.taken_bytes)?;
            self.taken_bytes = size;
            self.bytes.reserve_total(size);
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }
}

fn too_slow(slow: Slow, limits: Limits) -> Status {
    Status::deadline_exceeded(match slow {
        Slow::Part => format!("no byte of the request came for {:?}", limits.stall_timeout),
        Slow::Whole => format!("the request took longer than {:?} to come", limits.total_timeout),
    })
}

#[cfg(test)]
mod tests;
