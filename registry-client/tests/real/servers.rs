//! Starting real servers on ports of their own, and ending them.

#![allow(dead_code, reason = "each test program that includes this uses what it needs")]
#![allow(clippy::disallowed_methods, reason = "the environment tells tests where things are")]

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// No server takes nearly as long to start.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A file below the folder that `BASCULE_TEST_SERVERS` names; the test is counted as skipped where it is not there.
pub fn find_or_skip(relative: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("BASCULE_TEST_SERVERS").map(PathBuf::from);
    let found = folder.map(|folder| folder.join(relative)).filter(|path| path.exists());
    if found.is_none() {
        skip(&format!("there is no {relative} (make test-servers)"));
    }
    found
}

/// Counts the test that calls this as skipped.
pub fn skip(reason: &str) {
    use std::io::Write as _;
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("unnamed test"));
    match std::env::var_os("BASCULE_SKIP_LOG") {
        Some(log) => File::options().append(true).create(true).open(log).unwrap().write_all(line.as_bytes()).unwrap(),
        None => std::io::stderr().write_all(line.as_bytes()).unwrap(),
    }
}

/// A port that nobody has now, and that no other test of this program was given.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// SeaweedFS over a folder, with an S3 and a server of files. Ports are those that are given by the name of their option, else free ones.
pub fn seaweedfs(program: &Path, folder: &Path, ports: &[(&str, u16)]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).arg("server");
    // Nothing of a test is reported to anybody.
    command.args(["-master.telemetry=false", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]);
    command.args(["-volume.max=100", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
    // Where they are not told, those that go with others are these plus 10,000, which may be too high.
    for option in ["s3.port", "filer.port", "master.port", "volume.port"] {
        for option in [option.to_owned(), format!("{option}.grpc")] {
            let given = ports.iter().find(|(name, _)| *name == option).map(|(_, port)| *port);
            command.arg(format!("-{option}={}", given.unwrap_or_else(free_port)));
        }
    }
    command
}

/// A server that ends with its test, and a folder for what it keeps.
pub struct Server {
    child: Child,
    folder: TempDir,
}

impl Server {
    /// Starts it in a folder of its own, and waits until `ready`. What it prints is shown where it does not get there.
    pub fn start(prepare: impl FnOnce(&Path) -> Command, ready: impl Fn() -> bool) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("server.log");
        let out = File::create(&log).unwrap();
        let mut command = prepare(folder.path());
        command.stdin(Stdio::null()).stderr(out.try_clone().unwrap()).stdout(out);
        // Some are several processes, and all of them are to end.
        command.process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let mut server = Server { child, folder };
        let began = Instant::now();
        while !ready() {
            let ended = server.child.try_wait().unwrap();
            if ended.is_some() || began.elapsed() > START_LIMIT {
                panic!("{command:?} is not ready ({ended:?}): {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// The folder that it was started with.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        drop(Command::new("kill").args(["-KILL", "--", &group]).status());
        drop(self.child.wait());
    }
}

/// Whether something listens there.
pub fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Waits until something is so, for no longer than a server takes to start.
pub async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < START_LIMIT, "it did not come to pass that {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
