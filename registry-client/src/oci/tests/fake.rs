//! A small OCI registry whose answers can be bent.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

use crate::digest::Digest;

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// By lower-case name.
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// What the head says of the body's length, where that is not true.
    pub(super) claimed: Option<usize>,
}

impl Answer {
    pub(super) fn of(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// What a registry holds.
#[derive(Default)]
pub(super) struct Content {
    pub(super) manifests: BTreeMap<(String, String), Vec<u8>>,
    pub(super) blobs: BTreeMap<Digest, Vec<u8>>,
    uploads: HashMap<String, Vec<u8>>,
    begun: usize,
}

type Bend = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

/// A registry that runs until its test ends.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    inside: Arc<Inside>,
}

struct Inside {
    content: Mutex<Content>,
    asked: Mutex<Vec<Request>>,
    bend: Mutex<Option<Arc<Bend>>>,
    conditional: bool,
    /// Puts of manifests wait for one another before they take effect, and before they are answered.
    meet: Option<(Barrier, Barrier)>,
}

impl Fake {
    pub(super) async fn start() -> Fake {
        Self::start_as(false, None).await
    }

    /// One that may know `If-None-Match` for manifests, and in which so many puts of manifests wait for one another.
    pub(super) async fn start_as(conditional: bool, meet: Option<usize>) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let meet = meet.map(|parties| (Barrier::new(parties), Barrier::new(parties)));
        let (content, asked, bend) = (Mutex::default(), Mutex::default(), Mutex::default());
        let inside = Arc::new(Inside { content, asked, bend, conditional, meet });
        let serving = Arc::clone(&inside);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(Arc::clone(&serving), stream));
            }
        });
        Fake { address, inside }
    }

    pub(super) fn place(&self, repository: &str) -> String {
        format!("oci://{}/{repository}", self.address)
    }

    /// Answers some requests otherwise; `None` leaves a request to the registry.
    pub(super) fn bend(&self, bend: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) {
        *self.inside.bend.lock().unwrap() = Some(Arc::new(bend));
    }

    pub(super) fn straighten(&self) {
        *self.inside.bend.lock().unwrap() = None;
    }

    /// What was asked since the last call.
    pub(super) fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut *self.inside.asked.lock().unwrap())
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(&mut self.inside.content.lock().unwrap())
    }

    /// Pushes files as `oras push` does; the digest of the manifest.
    pub(super) fn push(&self, repository: &str, tag: &str, files: &[(&str, &[u8])]) -> Digest {
        let layers: Vec<_> = files
            .iter()
            .map(|(title, content)| {
                json!({
                    "mediaType": "application/octet-stream", "digest": format!("sha256:{}", Digest::of(content)),
                    "size": content.len(), "annotations": {"org.opencontainers.image.title": title},
                })
            })
            .collect();
        let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
            "digest": format!("sha256:{}", Digest::of(b"{}"))});
        let manifest = json!({"schemaVersion": 2, "artifactType": "application/vnd.unknown.artifact.v1", "config": empty,
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers});
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        self.change(|content| {
            content.blobs.extend(files.iter().map(|(_, file)| (Digest::of(file), file.to_vec())));
            content.manifests.insert((repository.to_owned(), tag.to_owned()), manifest);
        });
        digest
    }

    /// Points a tag at what another one names.
    pub(super) fn tag(&self, repository: &str, from: &str, to: &str) {
        self.change(|content| {
            let manifest = content.manifests[&(repository.to_owned(), from.to_owned())].clone();
            content.manifests.insert((repository.to_owned(), to.to_owned()), manifest);
        });
    }
}

async fn serve(inside: Arc<Inside>, stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    let Some(request) = read(&mut stream).await else { return };
    inside.asked.lock().unwrap().push(request.clone());
    let bend = inside.bend.lock().unwrap().clone();
    let puts_manifest = request.method == "PUT" && request.path().contains("/manifests/");
    let answer = match bend.and_then(|bend| bend(&request)) {
        Some(answer) => answer,
        None => {
            if let Some((before, _)) = inside.meet.as_ref().filter(|_| puts_manifest) {
                before.wait().await;
            }
            let answer = inside.answer(&request);
            if let Some((_, after)) = inside.meet.as_ref().filter(|_| puts_manifest) {
                after.wait().await;
            }
            answer
        }
    };
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.claimed.unwrap_or(answer.body.len())));
    let body = if request.method == "HEAD" { &[] } else { answer.body.as_slice() };
    drop(stream.write_all(head.as_bytes()).await);
    drop(stream.write_all(body).await);
    drop(stream.shutdown().await);
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => drop(headers.insert(name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { method, target, headers, body })
}

impl Inside {
    fn answer(&self, request: &Request) -> Answer {
        let mut content = self.content.lock().unwrap();
        let path = request.path().strip_prefix("/v2/").unwrap_or(request.path()).to_owned();
        if path == "_catalog" {
            let names: std::collections::BTreeSet<_> = content.manifests.keys().map(|(repository, _)| repository).collect();
            return Answer::of(200, json!({ "repositories": names }).to_string());
        }
        if let Some(repository) = path.strip_suffix("/tags/list") {
            let tags: Vec<_> = content.manifests.keys().filter(|key| key.0 == repository).map(|key| &key.1).collect();
            let missing = Answer::of(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such repository"}]}"#);
            return if tags.is_empty() { missing } else { Answer::of(200, json!({ "tags": tags }).to_string()) };
        }
        if path.contains("/blobs/uploads/") {
            return content.upload(request, &path);
        }
        if let Some((_, digest)) = path.split_once("/blobs/sha256:") {
            let blob = content.blobs.get(&digest.parse().unwrap());
            return blob.map_or_else(|| Answer::of(404, ""), |blob| part(request, blob));
        }
        let Some((repository, reference)) = path.split_once("/manifests/") else { return Answer::of(404, "") };
        let key = (repository.to_owned(), reference.to_owned());
        if request.method == "PUT" {
            if self.conditional && request.header("if-none-match") == Some("*") && content.manifests.contains_key(&key) {
                return Answer::of(412, "");
            }
            let digest = Digest::of(&request.body);
            content.manifests.insert(key, request.body.clone());
            return Answer::of(201, "").with("docker-content-digest", format!("sha256:{digest}"));
        }
        match content.manifests.get(&key) {
            Some(manifest) => {
                let digest = Digest::of(manifest);
                Answer::of(200, manifest.clone()).with("docker-content-digest", format!("sha256:{digest}"))
            }
            None => Answer::of(404, ""),
        }
    }
}

impl Content {
    fn upload(&mut self, request: &Request, path: &str) -> Answer {
        let next = |path: &str| Answer::of(202, "").with("location", format!("/v2/{path}?state=x"));
        match request.method.as_str() {
            "POST" => {
                self.begun += 1;
                let path = format!("{path}{}", self.begun);
                self.uploads.insert(path.clone(), Vec::new());
                next(&path)
            }
            "PATCH" => {
                let upload = self.uploads.get_mut(path).unwrap();
                let start = request.header("content-range").unwrap().split('-').next().unwrap().parse::<usize>().unwrap();
                if start != upload.len() {
                    return Answer::of(416, "");
                }
                upload.extend(&request.body);
                next(path)
            }
            _ => {
                let mut blob = self.uploads.remove(path).unwrap();
                blob.extend(&request.body);
                let digest = Digest::of(&blob);
                if !request.target.contains(&format!("state=x&digest=sha256%3A{digest}")) {
                    return Answer::of(400, r#"{"errors":[{"code":"DIGEST_INVALID","message":"another digest"}]}"#);
                }
                self.blobs.insert(digest, blob);
                Answer::of(201, "").with("docker-content-digest", format!("sha256:{digest}"))
            }
        }
    }
}

/// The part of a blob that is asked for.
fn part(request: &Request, blob: &[u8]) -> Answer {
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let Some((start, last)) = range else { return Answer::of(200, blob) };
    let (start, last) = (start.parse::<usize>().unwrap(), last.parse::<usize>().unwrap().min(blob.len().saturating_sub(1)));
    if start >= blob.len() {
        return Answer::of(416, "");
    }
    Answer::of(206, &blob[start..=last]).with("content-range", format!("bytes {start}-{last}/{}", blob.len()))
}
