//! A small HTTP server that answers by a function.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::super::{MlflowOptions, MlflowSource};

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: BTreeMap<String, String>,
    /// JSON, or nothing.
    pub(super) body: serde_json::Value,
}

/// What is sent back, byte for byte.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// A head and a body, and then the end.
    Bytes(Vec<u8>),
    /// A head, and this until nobody reads any more.
    Endless(Vec<u8>, Vec<u8>),
}

impl Answer {
    pub(super) fn json(value: &serde_json::Value) -> Answer {
        Answer::with(200, "", value.to_string().as_bytes())
    }

    /// `headers` are whole lines.
    pub(super) fn with(status: u16, headers: &str, body: &[u8]) -> Answer {
        let mut bytes = format!("HTTP/1.1 {status} So\r\n{headers}content-length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        Answer::Bytes(bytes)
    }

    pub(super) fn raw(text: &str) -> Answer {
        Answer::Bytes(text.as_bytes().to_vec())
    }
}

type Answering = Box<dyn Fn(&Asked) -> Answer + Send>;

pub(super) struct Fake {
    url: String,
    answering: Arc<Mutex<Answering>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    serving: JoinHandle<()>,
}

impl Fake {
    pub(super) async fn start(answer: impl Fn(&Asked) -> Answer + Send + 'static) -> Fake {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (answering, asked) = (Arc::new(Mutex::new(Box::new(answer) as Answering)), Arc::default());
        let serving = tokio::spawn(serve(listener, Arc::clone(&answering), Arc::clone(&asked)));
        Fake { url, answering, asked, serving }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn source(&self, options: MlflowOptions) -> MlflowSource {
        MlflowSource::new(&format!("mlflow+{}", self.url), options).unwrap()
    }

    /// Answers otherwise from now on.
    pub(super) fn change(&self, answer: impl Fn(&Asked) -> Answer + Send + 'static) {
        *self.answering.lock().unwrap() = Box::new(answer);
    }

    /// What was asked since this was last called.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, answering: Arc<Mutex<Answering>>, asked: Arc<Mutex<Vec<Asked>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer_one(stream, Arc::clone(&answering), Arc::clone(&asked)));
    }
}

/// One request for each connection. Whoever goes away early is not missed.
async fn answer_one(stream: TcpStream, answering: Arc<Mutex<Answering>>, all: Arc<Mutex<Vec<Asked>>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let asked = read(&mut stream).await?;
    all.lock().unwrap().push(asked.clone());
    let answer = (answering.lock().unwrap())(&asked);
    let stream = stream.get_mut();
    match answer {
        Answer::Bytes(bytes) => {
            let head = String::from_utf8_lossy(&bytes).into_owned();
            // Not kept open: what comes next is another connection.
            let closing = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
            let bytes = if head.len() == bytes.len() { closing.into_bytes() } else { bytes };
            stream.write_all(&bytes).await.ok()?;
        }
        Answer::Endless(head, piece) => {
            stream.write_all(&head).await.ok()?;
            while stream.write_all(&piece).await.is_ok() {}
        }
    }
    stream.shutdown().await.ok()
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let url = reqwest::Url::parse(&format!("http://fake{target}")).ok()?;
    let query = url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length: usize = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Some(Asked { method, path: url.path().to_owned(), query, headers, body })
}
