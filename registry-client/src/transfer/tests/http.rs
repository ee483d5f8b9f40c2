//! The same through a real client and real connections, to a server that breaks them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use object_store::http::HttpBuilder;
use object_store::path::Path as StorePath;
use object_store::{ClientOptions, RetryConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::listing::{Generation, Layout};
use crate::manifest::Manifest;
use crate::name::VersionKey;
use crate::registry::Registry;
use crate::source::{NoProgress, VersionSource as _};
use crate::testing::model;

const RANGE_BYTES: u64 = 64 << 10;

/// What one answer does.
#[derive(Debug, Clone, PartialEq)]
enum Fault {
    /// The connection is closed after so many bytes of the body.
    Cut(usize),
    /// Nothing comes after so many.
    Stall(usize),
    Status(u16),
    IgnoreRange,
    /// It announces the range and sends less, as if that were all.
    Short(usize),
    /// It announces the range and sends so much more.
    Long(usize),
    /// The object is another from now on.
    Replace(Vec<u8>),
    /// One byte is another.
    Flip(usize),
}

struct Object {
    content: Mutex<Vec<u8>>,
    e_tag: Mutex<u32>,
    script: Mutex<VecDeque<Option<Fault>>>,
    always: Option<Fault>,
    /// First and last byte of each range that was asked for.
    asked: Mutex<Vec<Option<(usize, usize)>>>,
}

struct Server {
    address: SocketAddr,
    object: Arc<Object>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(content: &[u8], script: impl IntoIterator<Item = Option<Fault>>, always: Option<Fault>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (content, script) = (Mutex::new(content.to_vec()), Mutex::new(script.into_iter().collect()));
        let object = Arc::new(Object { content, e_tag: Mutex::new(1), script, always, asked: Mutex::default() });
        let (address, served) = (listener.local_addr().unwrap(), Arc::clone(&object));
        let task = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(connection, Arc::clone(&served)));
            }
        });
        Self { address, object, task }
    }

    /// A registry whose client does not try by itself, so that what is seen is ours.
    fn registry(&self) -> Registry {
        let no_retries = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let store = HttpBuilder::new()
            .with_url(format!("http://{}", self.address))
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(no_retries)
            .build();
        let limits = TransferLimits {
            range_bytes: RANGE_BYTES,
            ranges: 4,
            stall: Duration::from_millis(500),
            tries: 3,
            backoff: Duration::from_millis(1),
            ..TransferLimits::default()
        };
        Registry::over(Arc::new(store.unwrap()), StorePath::default(), "test").with_transfers(Arc::new(Transfers::new(limits, 1)))
    }

    fn asked(&self) -> Vec<Option<(usize, usize)>> {
        self.object.asked.lock().unwrap().clone()
    }
}

/// One request, one connection. Whoever asks may go away at any time.
async fn answer(mut connection: TcpStream, object: Arc<Object>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if connection.read(&mut byte).await.unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    let range = header("range").map(|range| {
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap())
    });
    object.asked.lock().unwrap().push(range);
    let fault = object.script.lock().unwrap().pop_front().unwrap_or_else(|| object.always.clone());
    let (bytes, cut_at, stalls) = response(&object, fault, range, header("if-match"));
    drop(connection.write_all(&bytes[..cut_at.min(bytes.len())]).await);
    drop(connection.flush().await);
    if stalls {
        // Until the other side has had enough of it.
        drop(connection.read(&mut [0]).await);
    }
}

/// The answer, after how many bytes the connection ends, and whether it stands still there first.
fn response(
    object: &Object,
    fault: Option<Fault>,
    range: Option<(usize, usize)>,
    if_match: Option<String>,
) -> (Vec<u8>, usize, bool) {
    let mut content = object.content.lock().unwrap();
    if let Some(Fault::Replace(other)) = &fault {
        (*content, *object.e_tag.lock().unwrap()) = (other.clone(), 2);
    }
    let e_tag = format!("\"{}\"", object.e_tag.lock().unwrap());
    let status = |code: u16| {
        (format!("HTTP/1.1 {code} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes(), usize::MAX, false)
    };
    match fault {
        Some(Fault::Status(code)) => return status(code),
        _ if if_match.is_some_and(|wanted| wanted != e_tag) => return status(412),
        _ => {}
    }
    let range = range.filter(|_| fault != Some(Fault::IgnoreRange));
    let (first, last) = range.unwrap_or((0, content.len() - 1));
    let last = last.min(content.len() - 1);
    let mut body = content[first..=last].to_vec();
    match &fault {
        Some(Fault::Short(bytes)) => body.truncate(*bytes),
        Some(Fault::Long(bytes)) => body.extend(vec![b'#'; *bytes]),
        Some(Fault::Flip(at)) if *at < body.len() => body[*at] ^= 1,
        _ => {}
    }
    let line = match range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {first}-{last}/{}", content.len()),
        None => "200 OK".to_owned(),
    };
    let length = body.len();
    let date = "Last-Modified: Sun, 01 Nov 2026 00:00:00 GMT";
    let mut bytes =
        format!("HTTP/1.1 {line}\r\nContent-Length: {length}\r\nETag: {e_tag}\r\n{date}\r\nConnection: close\r\n\r\n").into_bytes();
    let head = bytes.len();
    bytes.extend(body);
    match fault {
        Some(Fault::Cut(after)) => (bytes, head + after, false),
        Some(Fault::Stall(after)) => (bytes, head + after, true),
        _ => (bytes, usize::MAX, false),
    }
}

/// A version of one file, which is not listed anywhere.
fn generation(content: &[u8]) -> Generation {
    let key = VersionKey::new(model("m"), 1);
    let manifest = serde_json::json!({
        "schema": 1, "model": "m", "version": 1, "format": "onnx", "entrypoint": "model.onnx", "created": "2026-01-01T00:00:00Z",
        "files": [{"path": "model.onnx", "sha256": Digest::of(content), "bytes": content.len()}],
    });
    let (manifest, digest) = Manifest::parse(manifest.to_string().as_bytes()).unwrap();
    let bytes = manifest.bytes();
    Generation {
        key,
        digest,
        bytes,
        layout: Layout::Registry,
        manifest: manifest.into(),
        tombstoned: false,
        signatures: Vec::new(),
        stored: None,
    }
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|nth| (nth * 31 % 251) as u8).collect()
}

/// Fetches through the server. What lies there afterwards is right, or nothing.
async fn fetch(server: &Server, expected: &[u8]) -> Result<(), FetchError> {
    let dest = tempfile::tempdir().unwrap();
    let outcome = server.registry().fetch(&generation(expected), dest.path(), &NoProgress).await;
    let place = dest.path().join("model.onnx");
    match &outcome {
        Ok(_) => assert!(std::fs::read(place).unwrap() == expected),
        Err(_) => assert!(!place.exists()),
    }
    outcome.map(drop)
}

const SIZE: usize = 5 * RANGE_BYTES as usize + 1234;

#[tokio::test]
async fn a_connection_that_is_cut_costs_only_what_is_missing() {
    let (content, range) = (content(SIZE), RANGE_BYTES as usize);
    for after in [0, 1, 2, 17, 1_000, 1_448, 16_384, range / 2, range - 2, range - 1] {
        let server = Server::start(&content, [Some(Fault::Cut(after))], None).await;
        fetch(&server, &content).await.unwrap();
        let asked: Vec<_> = server.asked().into_iter().flatten().collect();
        assert_eq!(asked.len(), 7, "six ranges, and one again: {asked:?}");
        let again = asked.iter().filter(|(first, last)| *last == range - 1 && *first == after).count();
        assert_eq!(again, if after == 0 { 2 } else { 1 }, "cut after {after}: {asked:?}");
    }
}

#[tokio::test]
async fn every_connection_may_be_cut() {
    let content = content(SIZE);
    let server = Server::start(&content, [], Some(Fault::Cut(20_000))).await;
    fetch(&server, &content).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 5 * 4 + 1, "twenty thousand bytes at a time: {asked:?}");
}

#[tokio::test]
async fn a_connection_that_stands_still_is_left() {
    let content = content(SIZE);
    for after in [0, 1, 1_000] {
        let server = Server::start(&content, [Some(Fault::Stall(after)), None, Some(Fault::Stall(after))], None).await;
        fetch(&server, &content).await.unwrap();
        assert_eq!(server.asked().len(), 8);
    }
}

#[tokio::test]
async fn refusals_are_tried_again_a_few_times() {
    let content = content(SIZE);
    let script = [500, 503, 200, 500, 403, 500].map(|code| (code != 200).then_some(Fault::Status(code)));
    let server = Server::start(&content, script, None).await;
    fetch(&server, &content).await.unwrap();
    for code in [500, 503, 403] {
        let server = Server::start(&content, [], Some(Fault::Status(code))).await;
        let error = fetch(&server, &content).await.unwrap_err();
        assert!(matches!(error, FetchError::Unavailable { .. }) && error.to_string().contains("model.onnx"), "{error}");
        assert!(server.asked().len() <= 1 + 4 * 3, "{:?}", server.asked());
    }
    let server = Server::start(&content, [], Some(Fault::Status(404))).await;
    let error = fetch(&server, &content).await.unwrap_err();
    assert!(matches!(error, FetchError::NotFound { .. }), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start() {
    for size in [1, RANGE_BYTES as usize, SIZE] {
        let whole = content(size);
        let server = Server::start(&whole, [], Some(Fault::IgnoreRange)).await;
        fetch(&server, &whole).await.unwrap();
        assert_eq!(server.asked().last(), Some(&None), "it is asked for the whole file");
        let mut flipped = whole.clone();
        flipped[size / 2] ^= 1;
        let error = fetch(&server, &flipped).await.unwrap_err();
        assert!(matches!(error, FetchError::Corrupt { .. }), "{error}");
    }
    // One that forgets how in the middle of a file is not believed.
    let large = content(SIZE);
    let server = Server::start(&large, [None, Some(Fault::IgnoreRange), Some(Fault::IgnoreRange)], None).await;
    fetch(&server, &large).await.unwrap();
    assert_eq!(server.asked().len(), 8);
}

#[tokio::test]
async fn an_answer_that_is_short_or_long_is_made_good() {
    let content = content(SIZE);
    for fault in [Fault::Short(0), Fault::Short(1), Fault::Short(5_000), Fault::Long(1), Fault::Long(100_000)] {
        let server = Server::start(&content, [None, Some(fault.clone()), Some(fault.clone())], None).await;
        assert!(fetch(&server, &content).await.is_ok(), "{fault:?}");
        assert_eq!(server.asked().len(), 8, "{fault:?}: {:?}", server.asked());
    }
}

#[tokio::test]
async fn an_object_that_is_replaced_meanwhile_is_never_mixed() {
    let (content, other) = (content(SIZE), vec![7; SIZE]);
    for at in 1..6 {
        let script = (0..6).map(|nth| (nth == at).then(|| Fault::Replace(other.clone())));
        let server = Server::start(&content, script, None).await;
        let error = fetch(&server, &content).await.unwrap_err();
        assert!(matches!(error, FetchError::Changed { .. }), "at {at}: {error}");
    }
    let server = Server::start(&content, [None, Some(Fault::Replace(content[1..].to_vec()))], None).await;
    let error = fetch(&server, &content).await.unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. } | FetchError::Size { .. }), "{error}");
}

#[tokio::test]
async fn a_flipped_bit_is_corrupt_wherever_it_is() {
    let content = content(SIZE);
    for (nth, at) in [(0, 0), (0, RANGE_BYTES as usize - 1), (1, 0), (1, 1), (3, 30_000), (5, 0), (5, 1_233)] {
        let script = (0..6).map(|answer| (answer == nth).then_some(Fault::Flip(at)));
        let server = Server::start(&content, script, None).await;
        let error = fetch(&server, &content).await.unwrap_err();
        assert!(matches!(error, FetchError::Corrupt { .. }), "answer {nth}, byte {at}: {error}");
    }
}
