//! Large files to and from a real S3, over connections that break.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bascule_registry::{Cache, Digest, ModelName, NoProgress, PublishRequest, Registry};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as StorePath;
use object_store::{ClientOptions, ObjectStoreExt as _, RetryConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::servers::{Server, find_or_skip, free_port, listens, seaweedfs};

const BUCKET: &str = "models";

/// SeaweedFS, with a bucket that anybody may read and write.
async fn start() -> Option<(Server, u16)> {
    let program = find_or_skip("seaweedfs/bin/weed")?;
    let (port, filer) = (free_port(), free_port());
    let prepare = |folder: &Path| seaweedfs(&program, folder, &[("s3.port", port), ("filer.port", filer)]);
    let server = Server::start(prepare, || listens(port) && listens(filer));
    let bucket = format!("http://127.0.0.1:{filer}/buckets/{BUCKET}/");
    // Listening is not serving yet: volumes come a moment later.
    for tries in 0.. {
        let made = reqwest::Client::new().post(&bucket).send().await.is_ok_and(|made| made.status().is_success());
        if made && store(port).put(&"probe".into(), "x".into()).await.is_ok() {
            break;
        }
        assert!(tries < 600, "the bucket can't be written");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Some((server, port))
}

/// The bucket, through a client that tries nothing again by itself: what is seen is ours.
fn store(port: u16) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .with_skip_signature(true)
        .build()
        .unwrap()
}

fn registry(port: u16) -> Registry {
    let store = Arc::new(store(port));
    Registry::over(Arc::<AmazonS3>::clone(&store) as _, StorePath::default(), "S3 of a test").with_multipart(store)
}

/// Passes bytes on, and breaks connections.
struct Proxy {
    port: u16,
    rules: Arc<Rules>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Rules {
    /// So many connections more are cut after `cut_after` bytes of what the server sends.
    cuts: AtomicU64,
    cut_after: u64,
    cut: AtomicU64,
    /// Bytes that clients may still send; then the line is dead.
    upstream: AtomicU64,
}

impl Proxy {
    async fn start(to: u16, rules: Rules) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (port, rules) = (listener.local_addr().unwrap().port(), Arc::new(rules));
        let shared = Arc::clone(&rules);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(pass(client, SocketAddr::from(([127, 0, 0, 1], to)), Arc::clone(&shared)));
            }
        });
        Self { port, rules, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, server: SocketAddr, rules: Arc<Rules>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.into_split(), server.into_split());
    let cuts = rules.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |cuts| cuts.checked_sub(1)).is_ok();
    let up = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
            let left = rules.upstream.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(read as u64));
            if left.is_err() || to_server.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let (mut buffer, mut passed) = (vec![0; 64 << 10], 0_u64);
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            passed += read as u64;
            if cuts && passed > rules.cut_after {
                rules.cut.fetch_add(1, Ordering::SeqCst);
                return;
            }
            if to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    // Whichever side ends first ends the connection.
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Bytes of which no two MiB are the same.
fn content(mebibytes: u8) -> Vec<u8> {
    let mut content = Vec::new();
    for nth in 1..=mebibytes {
        content.resize(usize::from(nth) << 20, nth);
    }
    content
}

fn request(dir: &Path, content: &[u8]) -> PublishRequest {
    let place = dir.join("model.onnx");
    std::fs::write(&place, content).unwrap();
    PublishRequest::new(ModelName::new("m").unwrap(), "onnx", "model.onnx", vec![("model.onnx".into(), place)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_file_comes_whole_over_connections_that_break() {
    let Some((server, port)) = start().await else { return };
    let (client, content) = (tempfile::tempdir_in(server.folder()).unwrap(), content(41));
    let published = registry(port).publish(request(client.path(), &content), &NoProgress).await.unwrap();
    let proxy =
        Proxy::start(port, Rules { cuts: 9.into(), cut_after: 3 << 20, upstream: u64::MAX.into(), ..Rules::default() }).await;
    let through = registry(proxy.port);
    let generation = through.versions(&published.key.model).await.unwrap()[&1].clone();
    let cache = Cache::open(client.path().join("cache")).unwrap();
    let lease = cache.ensure(&through, &generation, &NoProgress).await.unwrap();
    assert!(std::fs::read(lease.dir().join("model.onnx")).unwrap() == content);
    assert_eq!(lease.files()[0].sha256, Digest::of(&content));
    assert!(proxy.rules.cut.load(Ordering::SeqCst) >= 3, "connections were cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_over_a_line_that_dies_goes_on_over_the_next() {
    let Some((_server, port)) = start().await else { return };
    let (files, content) = (tempfile::tempdir().unwrap(), content(97));
    let wanted = || PublishRequest { resume_dir: Some(files.path().join("uploads")), ..request(files.path(), &content) };
    let proxy = Proxy::start(port, Rules { upstream: (82 << 20).into(), ..Rules::default() }).await;
    let error = registry(proxy.port).publish(wanted(), &NoProgress).await.unwrap_err();
    assert!(error.to_string().contains("can't be reached"), "{error}");
    assert_eq!(files.path().join("uploads").read_dir().unwrap().count(), 1, "it is remembered");
    let published = registry(port).publish(wanted(), &NoProgress).await.unwrap();
    assert!(published.reused_bytes >= 8 << 20, "{} bytes were there already", published.reused_bytes);
    assert!(published.reused_bytes < published.bytes);
    assert_eq!(files.path().join("uploads").read_dir().unwrap().count(), 0);
    let blob = StorePath::from(format!("m/blobs/{}", Digest::of(&content)));
    assert!(store(port).get(&blob).await.unwrap().bytes().await.unwrap() == content);
}

/// What this machine remembers of an upload that the store has forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_store_has_forgotten_begins_anew() {
    let Some((_server, port)) = start().await else { return };
    let (files, content) = (tempfile::tempdir().unwrap(), content(97));
    let wanted = || PublishRequest { resume_dir: Some(files.path().join("uploads")), ..request(files.path(), &content) };
    let proxy = Proxy::start(port, Rules { upstream: (82 << 20).into(), ..Rules::default() }).await;
    registry(proxy.port).publish(wanted(), &NoProgress).await.unwrap_err();
    let place = files.path().join("uploads").read_dir().unwrap().next().unwrap().unwrap().path();
    let known = std::fs::read_to_string(&place).unwrap();
    let (head, _) = known.split_once('\n').unwrap();
    let head: serde_json::Value = serde_json::from_str(head).unwrap();
    let id = head["upload"].as_str().unwrap().to_owned();
    let blob = StorePath::from(format!("m/blobs/{}", Digest::of(&content)));
    object_store::multipart::MultipartStore::abort_multipart(&store(port), &blob, &id).await.unwrap();
    registry(port).publish(wanted(), &NoProgress).await.unwrap();
    assert!(store(port).get(&blob).await.unwrap().bytes().await.unwrap() == content);
}
