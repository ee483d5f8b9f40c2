//! SeaweedFS, an S3 in one program.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ClientOptions, ObjectStoreExt as _};

/// It takes a few seconds.
const START_LIMIT: Duration = Duration::from_secs(60);
const BUCKET: &str = "models";

pub(super) struct SeaweedFs {
    child: Child,
    port: u16,
}

impl SeaweedFs {
    /// Starts it and makes a bucket.
    pub(super) async fn start(program: &Path, scratch: &Path) -> Result<Self> {
        let folder = scratch.join("seaweedfs");
        std::fs::create_dir(&folder)?;
        let (port, filer) = (free_port()?, free_port()?);
        let mut command = Command::new(std::path::absolute(program)?);
        command.current_dir(&folder).arg("server").args([
            "-master.telemetry=false",
            "-dir=.",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
        ]);
        command.args([
            "-volume.max=100",
            "-master.volumeSizeLimitMB=1024",
            "-filer",
            "-s3",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]);
        command.arg(format!("-s3.port={port}")).arg(format!("-filer.port={filer}"));
        for option in ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port.grpc", "s3.port.grpc"] {
            command.arg(format!("-{option}={}", free_port()?));
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self { child: child.with_context(|| format!("can't start {}", program.display()))?, port };
        server.wait(filer).await?;
        Ok(server)
    }

    async fn wait(&self, filer: u16) -> Result<()> {
        let began = Instant::now();
        let store = self.store()?;
        loop {
            ensure!(began.elapsed() < START_LIMIT, "SeaweedFS does not take a bucket within {START_LIMIT:?}");
            // Listening is not serving yet: volumes come a moment later.
            if make_bucket(filer) && store.put(&"probe".into(), "x".into()).await.is_ok() {
                return Ok(store.delete(&"probe".into()).await?);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The bucket as anybody's program reads it.
    pub(super) fn store(&self) -> Result<AmazonS3> {
        let builder = AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_access_key_id("bench")
            .with_secret_access_key("bench");
        Ok(builder.with_skip_signature(true).build()?)
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A folder of its buckets, made through its web server.
fn make_bucket(filer: u16) -> bool {
    use std::io::{Read as _, Write as _};
    let request = format!("POST /buckets/{BUCKET}/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let answer = TcpStream::connect(("127.0.0.1", filer)).and_then(|mut connection| {
        connection.write_all(request.as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    });
    answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 2"))
}

/// A port that nobody has now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
