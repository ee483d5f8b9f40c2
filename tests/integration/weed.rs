//! A real S3 server (SeaweedFS) that can be stopped and started again, with what it keeps.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::servers::{Server, find_or_skip, free_port, listens};

/// The server, and its folder.
pub struct Weed {
    server: Option<Server>,
    folder: tempfile::TempDir,
    program: PathBuf,
    /// Of S3, master, volume and filer.
    ports: [u16; 4],
}

impl Weed {
    /// Runs, with this bucket; `None`, and the test counted as skipped, where SeaweedFS is not set up.
    pub fn start(bucket: &str) -> Option<Weed> {
        let program = find_or_skip("seaweedfs/bin/weed")?;
        let ports = [(); 4].map(|()| free_port());
        let mut weed = Weed { server: None, folder: tempfile::tempdir().unwrap(), program, ports };
        weed.restart();
        let created = crate::http::call(([127, 0, 0, 1], weed.s3()).into(), "PUT", &format!("/{bucket}"), &[], b"");
        assert!((200..300).contains(&created.status) || created.status == 409, "{} {}", created.status, created.text());
        Some(weed)
    }

    /// Where it speaks S3.
    pub fn s3(&self) -> u16 {
        self.ports[0]
    }

    /// Starts it again, with what it kept.
    pub fn restart(&mut self) {
        let (dir, [s3, master, volume, filer]) = (self.folder.path().to_owned(), self.ports);
        let program = self.program.clone();
        let prepare = move |_: &Path| {
            let mut command = Command::new(program);
            // Nothing of a test is reported to anybody; and the ports that go with these are not theirs plus 10,000, which may be too high.
            command.args([
                "server",
                "-master.telemetry=false",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-filer",
                "-s3",
                "-volume.max=20",
            ]);
            command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
            for option in ["s3.port.grpc", "master.port.grpc", "volume.port.grpc", "filer.port.grpc"] {
                command.arg(format!("-{option}={}", free_port()));
            }
            command.arg(format!("-dir={}", dir.display())).arg(format!("-s3.port={s3}")).arg(format!("-master.port={master}"));
            command.arg(format!("-volume.port={volume}")).arg(format!("-filer.port={filer}"));
            command
        };
        self.server = Some(Server::start(prepare, || listens(s3) && listens(volume) && listens(filer)));
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.server = None;
    }
}
