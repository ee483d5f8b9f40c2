//! SeaweedFS: one program that is an S3, a WebDAV server, and a web server that only hands out files.

use bascule_registry::StoreEnvironment;
use object_store::aws::{AmazonS3, AmazonS3Builder};

use crate::servers::{Server, find_or_skip, free_port, listens, seaweedfs};

/// The key that it accepts.
pub const ACCESS_KEY: &str = "AKIATESTER00EXAMPLE7Q";
/// What belongs to the key.
pub const SECRET_KEY: &str = "only-tests-know-it";

/// Where its servers are.
#[derive(Debug, Clone)]
pub struct SeaweedFs {
    pub s3: u16,
    pub webdav: u16,
    /// Hands out files over HTTP, and takes them without credentials.
    pub files: u16,
}

impl SeaweedFs {
    /// Starts it; `None` where this machine does not have it.
    pub async fn start() -> Option<(Server, SeaweedFs)> {
        let program = find_or_skip("seaweedfs/bin/weed")?;
        let ports = SeaweedFs { s3: free_port(), webdav: free_port(), files: free_port() };
        let prepare = |folder: &std::path::Path| {
            let identity = serde_json::json!({ "identities": [{
                "name": "tester",
                "credentials": [{ "accessKey": ACCESS_KEY, "secretKey": SECRET_KEY }],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }] });
            std::fs::write(folder.join("s3.json"), identity.to_string()).unwrap();
            let mut command = seaweedfs(&program, folder, &[("s3.port", ports.s3), ("filer.port", ports.files)]);
            command.args(["-s3.config=s3.json", "-webdav", "-webdav.cacheDir=."]);
            command.arg(format!("-webdav.port={}", ports.webdav));
            command
        };
        let server = Server::start(prepare, || [ports.s3, ports.webdav, ports.files].into_iter().all(listens));
        Some((server, ports))
    }

    /// Makes a bucket, once the server is able to.
    pub async fn make_bucket(&self, name: &str) {
        let url = format!("http://127.0.0.1:{}/buckets/{name}/", self.files);
        crate::servers::until("the bucket is made", async || {
            let made = reqwest::Client::new().post(&url).send().await;
            made.is_ok_and(|made| made.status().is_success())
        })
        .await;
        // Listening is not serving yet: volumes come a moment later.
        let store = self.store(name);
        crate::servers::until("the bucket can be written", async || {
            use object_store::ObjectStoreExt as _;
            store.put(&"probe".into(), "x".into()).await.is_ok() && store.delete(&"probe".into()).await.is_ok()
        })
        .await;
    }

    /// What the environment of its users says.
    pub fn environment(&self) -> StoreEnvironment {
        self.environment_with(ACCESS_KEY, SECRET_KEY)
    }

    pub fn environment_with(&self, key: &str, secret: &str) -> StoreEnvironment {
        let endpoint = format!("http://127.0.0.1:{}", self.s3);
        [("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_ENDPOINT_URL", &endpoint)].into_iter().collect()
    }

    /// A bucket as anybody's program reads and writes it.
    pub fn store(&self, bucket: &str) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_endpoint(format!("http://127.0.0.1:{}", self.s3))
            .with_allow_http(true)
            .with_access_key_id(ACCESS_KEY)
            .with_secret_access_key(SECRET_KEY)
            .build()
            .unwrap()
    }
}
