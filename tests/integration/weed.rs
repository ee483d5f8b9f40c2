//! A real S3 server (SeaweedFS) that can be stopped and started again, with what it keeps.

use std::path::{Path, PathBuf};

use crate::servers::{Server, find_or_skip, free_port, listens, seaweedfs};

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
        let [s3, master, volume, filer] = self.ports;
        // The same at each start: what it keeps names them.
        let ports = [("s3.port", s3), ("master.port", master), ("volume.port", volume), ("filer.port", filer)];
        let prepare = |_: &Path| seaweedfs(&self.program, self.folder.path(), &ports);
        self.server = Some(Server::start(prepare, || listens(s3) && listens(volume) && listens(filer)));
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.server = None;
    }
}
