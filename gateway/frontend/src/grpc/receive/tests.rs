use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::sleep;
use tonic::Code;

use super::*;
use crate::grpc::budget::Budget;

const LIMITS: Limits =
    Limits { max_message_bytes: 1 << 20, stall_timeout: Duration::from_secs(10), total_timeout: Duration::from_secs(120) };

type Body = StreamBody<Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>>>>>;

/// A caller that pauses before each of these pieces.
fn body(pieces: Vec<(Duration, Vec<u8>)>) -> Body {
    StreamBody::new(Box::pin(frames(pieces)))
}

fn frames(pieces: Vec<(Duration, Vec<u8>)>) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    stream::iter(pieces).then(|(pause, piece)| async move {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        Ok(Frame::data(piece.into()))
    })
}

/// The same, and one that then neither sends nor ends.
fn body_that_hangs(pieces: Vec<(Duration, Vec<u8>)>) -> Body {
    StreamBody::new(Box::pin(frames(pieces).chain(stream::pending())))
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

fn at_once(pieces: &[&[u8]]) -> Vec<(Duration, Vec<u8>)> {
    pieces.iter().map(|piece| (Duration::ZERO, piece.to_vec())).collect()
}

fn plenty() -> Arc<Budget> {
    Budget::new(1 << 30)
}

#[tokio::test]
async fn messages_are_put_together_however_they_come() {
    let message: Vec<u8> = (0..500_000u32).map(|number| number as u8).collect();
    let sent = [framed(&message), framed(b""), framed(b"abc")].concat();
    for piece_bytes in [1usize, 3, 5, 70_000, sent.len()] {
        // Pieces of one byte each are for the small ones.
        let sent = if piece_bytes < 10 { &sent[message.len() + HEADER_BYTES..] } else { &sent[..] };
        let pieces = sent.chunks(piece_bytes).map(|piece| (Duration::ZERO, piece.to_vec())).collect();
        let mut messages = Messages::new(body(pieces), None, LIMITS);
        let mut lengths = Vec::new();
        while let Some(received) = messages.next(plenty().share()).await.unwrap() {
            let received = received.unwrap();
            assert!(received.bytes.len() < 4 || received.bytes == message);
            lengths.push(received.bytes.len());
        }
        let expected: &[usize] = if piece_bytes < 10 { &[0, 3] } else { &[message.len(), 0, 3] };
        assert_eq!(lengths, expected);
    }
}

#[tokio::test]
async fn a_claim_costs_nothing_and_what_comes_is_counted() {
    let budget = Budget::new(trusted_bytes(0));
    let claim = [&[0][..], &(1u32 << 20).to_be_bytes(), b"x"].concat();
    let mut messages = Messages::new(body_that_hangs(at_once(&[&claim])), None, LIMITS);
    {
        let mut next = std::pin::pin!(messages.next(budget.share()));
        assert!(futures::poll!(next.as_mut()).is_pending());
        // The first buffer is all that is taken: a byte more is not there, the rest of the claim is not missing.
        assert!(budget.share().take(1).is_err());
    }
    assert!(budget.share().take(trusted_bytes(0)).is_ok(), "what was taken is given back");
}

#[tokio::test]
async fn a_message_that_the_budget_refuses_is_passed_over() {
    let budget = Budget::new(trusted_bytes(0) + 10);
    let sent = [framed(&vec![1; 400_000]), framed(b"abc")].concat();
    let pieces = sent.chunks(50_000).map(|piece| (Duration::ZERO, piece.to_vec())).collect();
    let mut messages = Messages::new(body(pieces), None, LIMITS);
    let refused = messages.next(budget.share()).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(refused, InferError::Overloaded { .. }));
    let next = messages.next(budget.share()).await.unwrap().unwrap().unwrap();
    assert_eq!(next.bytes, b"abc"[..]);
    assert!(messages.next(budget.share()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_stream_may_rest_between_messages_and_not_within() {
    let limits = Limits { stall_timeout: Duration::from_millis(20), ..LIMITS };
    let rest = 2 * limits.stall_timeout;
    let half = &framed(b"abcdef")[..8];
    let mut messages = Messages::new(body_that_hangs(vec![(rest, framed(b"abc")), (rest, half.to_vec())]), None, limits);
    assert_eq!(messages.next(plenty().share()).await.unwrap().unwrap().unwrap().bytes, b"abc"[..]);
    let status = messages.next(plenty().share()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "no byte of the request came for 20ms"));
}

#[tokio::test]
async fn a_message_that_trickles_is_given_up() {
    let limits = Limits { total_timeout: Duration::from_millis(50), ..LIMITS };
    let trickle = || framed(&[7; 100_000]).chunks(1).map(|byte| (Duration::from_millis(1), byte.to_vec())).collect();
    let too_slow = (Code::DeadlineExceeded, "the request took longer than 50ms to come");
    let status = Messages::new(body(trickle()), None, limits).only(plenty().share()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), too_slow);
    let status = Messages::new(body(trickle()), None, limits).next(plenty().share()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), too_slow);
    let limits = Limits { stall_timeout: Duration::from_millis(20), ..LIMITS };
    let silent = Messages::new(body_that_hangs(Vec::new()), None, limits).only(plenty().share()).await.unwrap_err();
    assert_eq!((silent.code(), silent.message()), (Code::DeadlineExceeded, "no byte of the request came for 20ms"));
}

#[tokio::test]
async fn what_is_no_message_is_named() {
    let two = [framed(b"a"), framed(b"b")].concat();
    let large = [&[0][..], &u32::MAX.to_be_bytes()].concat();
    for (sent, message) in [
        (&b""[..], "expected a message, got none"),
        (b"\0\0", "the request breaks off within a message"),
        (b"\0\0\0\0\x09abc", "the request breaks off within a message"),
        (b"\x01\0\0\0\0", "a message is compressed and no header 'grpc-encoding' says how"),
        (b"\x07\0\0\0\0", "expected a message to begin with 0 or 1, got 7"),
        (&two, "expected one message, got more"),
        (&large, "the message is larger than the limit of 1048576 bytes"),
    ] {
        let status = Messages::new(body(at_once(&[sent])), None, LIMITS).only(plenty().share()).await.unwrap_err();
        assert_eq!(status.message(), message);
    }
}
