//! The body of a call that the library reads: within the port's budget, and within time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::budget::Share;
use super::service::Service;

/// A body that fails where it stands still, where it takes too long, and where it takes more memory than there is.
pub(crate) struct GuardedBody {
    body: Incoming,
    share: Share,
    stall_timeout: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    total_timeout: Duration,
    total: Pin<Box<Sleep>>,
    /// When it is to end as if its caller were done.
    ends: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl GuardedBody {
    pub(crate) fn new(body: Incoming, service: &Service, ends: Option<CancellationToken>) -> GuardedBody {
        let limits = service.limits();
        GuardedBody {
            body,
            share: service.budget.share(),
            stall_timeout: limits.stall_timeout,
            stall: None,
            total_timeout: limits.total_timeout,
            total: Box::pin(sleep(limits.total_timeout)),
            ends: ends.map(|ends| Box::pin(ends.cancelled_owned())),
        }
    }

    /// Why nothing more is waited for.
    fn given_up(&mut self, context: &mut Context<'_>) -> Option<Option<Status>> {
        if self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(context).is_ready()) {
            return Some(None);
        }
        let (stall_timeout, total_timeout) = (self.stall_timeout, self.total_timeout);
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(stall_timeout)));
        let message = if stall.as_mut().poll(context).is_ready() {
            format!("no byte of the request came for {stall_timeout:?}")
        } else if self.total.as_mut().poll(context).is_ready() {
            format!("the request took longer than {total_timeout:?} to come")
        } else {
            return None;
        };
        Some(Some(Status::deadline_exceeded(message)))
    }
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.stall = None;
                let taken = self.share.take(frame.data_ref().map_or(0, Bytes::len)).map(|()| frame);
                Poll::Ready(Some(taken.map_err(|error| Status::resource_exhausted(error.to_string()))))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Status::from_error(error.into())))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.given_up(context) {
                Some(ended) => Poll::Ready(ended.map(Err)),
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
