//! The stage: a registry without version 2, the files of version 2 beside it, and a gateway over the registry.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long the gateway may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Manifest {
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    path: String,
    sha256: String,
}

/// A copy of the sample registry, in a folder that goes when this is dropped.
pub(super) struct Stage {
    dir: TempDir,
}

/// A running gateway; it is ended when this is dropped.
pub(super) struct Gateway {
    _child: Child,
    pub(super) http: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) admin: SocketAddr,
}

impl Stage {
    /// Copies the registry and takes version 2 out of the copy.
    pub(super) fn set(models: &Path) -> Result<Stage> {
        let dir = tempfile::Builder::new().prefix("bascule-demo-").tempdir().context("can't make a temporary folder")?;
        let stage = Stage { dir };
        super::copy_tree(&models.join("digits"), &stage.registry().join("digits"))?;
        let model = stage.registry().join("digits");
        let version = model.join("versions/2");
        let text = std::fs::read(version.join("manifest.json")).context("the sample model `digits` has no version 2")?;
        let manifest: Manifest = serde_json::from_slice(&text).context("the manifest of digits@2")?;
        std::fs::create_dir(stage.candidate())?;
        for file in manifest.files {
            let blob = model.join("blobs").join(&file.sha256);
            std::fs::rename(&blob, stage.candidate().join(&file.path)).with_context(|| format!("can't take {}", file.path))?;
        }
        std::fs::remove_dir_all(version)?;
        Ok(stage)
    }

    fn registry(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    fn candidate(&self) -> PathBuf {
        self.dir.path().join("candidate")
    }

    /// A command of this very program, in the stage's folder, without settings of the user's that would change the story.
    fn command(&self) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("can't find this program")?);
        command.current_dir(self.dir.path()).stdin(Stdio::null()).kill_on_drop(true);
        Ok(command)
    }

    /// Starts a gateway over the registry and waits until it is ready.
    pub(super) async fn serve(&self) -> Result<Gateway> {
        let any = "127.0.0.1:0";
        let mut command = self.command()?;
        command.args(["serve", "--registry"]).arg(self.registry()).arg("--state-dir").arg(self.dir.path().join("state"));
        command.args(["--http", any, "--grpc", any, "--admin", any, "--set", "log.level=warn"]);
        let mut child = command.stdout(Stdio::piped()).spawn().context("can't start the gateway")?;
        let stdout = child.stdout.take().context("the gateway has no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let [http, grpc, admin] = loop {
            match lines.next_line().await? {
                Some(line) => {
                    if let Some(addresses) = addresses(&line) {
                        break addresses;
                    }
                }
                None => bail!("the gateway ended before it listened: {}", child.wait().await?),
            }
        };
        // What it prints from now on is read and dropped: a full pipe would stop it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let gateway = Gateway { _child: child, http, grpc, admin };
        tokio::time::timeout(PATIENCE, gateway.ready()).await.context("the gateway did not become ready")??;
        Ok(gateway)
    }

    /// Publishes version 2 and waits until it serves.
    pub(super) async fn publish(&self, gateway: &Gateway) -> Result<()> {
        let mut command = self.command()?;
        command.args(["publish", "digits"]).arg(self.candidate()).args(["--version", "2", "--registry"]).arg(self.registry());
        command.arg("--gateway").arg(format!("http://{}", gateway.admin)).arg("--wait").stdout(Stdio::null());
        let status = command.status().await.context("can't start the publisher")?;
        ensure!(status.success(), "`bascule publish` failed: {status}");
        Ok(())
    }
}

impl Gateway {
    async fn ready(&self) -> Result<()> {
        let client = reqwest::Client::new();
        let url = format!("http://{}/v2/models/digits/ready", self.http);
        let mut look = tokio::time::interval(Duration::from_millis(20));
        loop {
            look.tick().await;
            if client.get(&url).send().await?.status().is_success() {
                return Ok(());
            }
        }
    }
}

/// The addresses in the line that `bascule serve` prints when it listens.
fn addresses(line: &str) -> Option<[SocketAddr; 3]> {
    let words: Vec<&str> = line.strip_prefix("bascule: ")?.split_whitespace().collect();
    let after = |name: &str| words.get(words.iter().position(|word| *word == name)? + 1)?.parse().ok();
    Some([after("http")?, after("grpc")?, after("admin")?])
}
