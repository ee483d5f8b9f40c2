//! A gateway of a test's own: the real program as a child process, on free ports, over a registry and a state folder that nobody
//! else uses.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bascule_onnx_writer::OnnxModel;
use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for something that must happen. Generous: it is only reached by a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package inside the repository").to_owned()
}

/// Counts the test that calls this as skipped, for this reason.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    bascule_onnx_writer::library::report_skipped(thread.name().unwrap_or("unnamed test"), reason);
}

/// A folder with a registry and a state directory, and the flags that every command in it gets.
pub struct Sandbox {
    dir: TempDir,
    settings: Vec<String>,
    /// What `--registry` says, where it says anything.
    place: Option<String>,
    variables: Vec<(String, String)>,
    library: PathBuf,
}

impl Sandbox {
    /// An empty registry; `None`, and the test counted as skipped, where there is no ONNX Runtime.
    pub fn new() -> Option<Sandbox> {
        let library = bascule_onnx_writer::library::find_or_skip()?;
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("registry")).expect("a registry folder");
        let settings = ["registry.poll_interval=200ms", "registry.settle_interval=50ms"].map(str::to_owned).to_vec();
        let place = Some(dir.path().join("registry").display().to_string());
        Some(Sandbox { dir, settings, place, variables: Vec::new(), library })
    }

    /// Adds a `--set key=value`.
    pub fn set(mut self, setting: &str) -> Sandbox {
        self.settings.push(setting.to_owned());
        self
    }

    /// Serves another place than the folder, or what the configuration file says.
    pub fn at(mut self, place: Option<&str>) -> Sandbox {
        self.place = place.map(str::to_owned);
        self
    }

    /// Gives every command an environment variable.
    pub fn variable(mut self, name: &str, value: &str) -> Sandbox {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Where the registry lies.
    pub fn registry(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    /// Where the gateway keeps what it must not forget.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A path for a test's own files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of the registry, through a temporary name as a careful user would.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) {
        let target = self.registry().join(path);
        std::fs::create_dir_all(target.parent().expect("a parent")).expect("folders");
        let temporary = self.dir.path().join("being-written");
        std::fs::write(&temporary, contents).expect("a written file");
        std::fs::rename(temporary, target).expect("a renamed file");
    }

    /// Writes a version in the plain layout.
    pub fn plain(&self, model: &str, version: u64, contents: &OnnxModel) {
        self.write(&format!("{model}/{version}/model.onnx"), &contents.bytes);
    }

    /// Publishes a version through the program.
    pub fn publish(&self, model: &str, version: u64, contents: &OnnxModel) -> Output {
        let file = self.path(&format!("{model}-{version}.onnx"));
        std::fs::write(&file, &contents.bytes).expect("a written model");
        let (file, version) = (file.display().to_string(), version.to_string());
        self.run(&["publish", model, &file, "--version", &version, "--registry", &self.registry().display().to_string()])
    }

    /// A command of the program, in an environment without settings of the user's.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bascule"));
        command.args(arguments).current_dir(self.dir.path());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BASCULE_") {
                command.env_remove(name);
            }
        }
        command.env("BASCULE_ONNXRUNTIME_LIBRARY", &self.library).envs(self.variables.iter().cloned());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Runs a command that must succeed; its standard output.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Starts a gateway and waits until it listens.
    pub fn serve(&self) -> Gateway {
        self.serve_with(&[])
    }

    /// The same with more arguments.
    pub fn serve_with(&self, arguments: &[&str]) -> Gateway {
        self.try_serve(arguments).unwrap_or_else(|(status, log)| panic!("the gateway ended before it listened: {status}\n{log}"))
    }

    /// The same; what it said and how it ended, where it did not get to listen.
    pub fn try_serve(&self, arguments: &[&str]) -> Result<Gateway, (ExitStatus, String)> {
        let any = "127.0.0.1:0";
        let state = self.state();
        let mut command = self.command(&["serve", "--http", any, "--grpc", any, "--admin", any]);
        if let Some(place) = &self.place {
            command.arg("--registry").arg(place);
        }
        command.arg("--state-dir").arg(state);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        Gateway::spawn(command)
    }
}

/// A running gateway; it is killed when this is dropped.
pub struct Gateway {
    child: Child,
    /// Where the data ports and the admin port listen.
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

fn collect(mut from: impl Read + Send + 'static, into: Arc<Mutex<String>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            into.lock().expect("the log").push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
    })
}

impl Gateway {
    fn spawn(mut command: Command) -> Result<Gateway, (ExitStatus, String)> {
        let mut child = command.spawn().expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = collect(child.stderr.take().expect("a pipe"), Arc::clone(&log));
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        while stdout.read_line(&mut line).is_ok_and(|length| length > 0) {
            if let Some([http, grpc, admin]) = addresses(&line) {
                collect(stdout, Arc::clone(&log));
                return Ok(Gateway { child, http, grpc, admin, log });
            }
            log.lock().expect("the log").push_str(&line);
            line.clear();
        }
        let status = child.wait().expect("a status");
        stderr.join().expect("the log is whole");
        let log = log.lock().expect("the log").clone();
        Err((status, log))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it wrote so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Waits until it was started again by its supervisor, and goes on with the ports that it has now.
    pub fn follow(&mut self) {
        let before = self.http;
        let started = Instant::now();
        while self.http == before {
            let log = self.log();
            if let Some([http, grpc, admin]) = log.lines().rev().find_map(addresses) {
                (self.http, self.grpc, self.admin) = (http, grpc, admin);
            }
            assert!(started.elapsed() < PATIENCE, "the gateway is not started again\n{log}");
            pause();
        }
    }

    /// Sends a signal, for example `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().expect("kill");
        assert!(status.success(), "kill -{name}");
    }

    /// Kills it as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the gateway did not end\n{}", self.log());
            pause();
        }
    }

    /// Asks for `path` on the data port until `accept` says yes to status and body.
    pub fn eventually(&self, path: &str, accept: impl Fn(u16, &Value) -> bool) -> Value {
        self.eventually_at(self.http, path, accept)
    }

    /// The same on the admin port.
    pub fn eventually_admin(&self, path: &str, accept: impl Fn(u16, &Value) -> bool) -> Value {
        self.eventually_at(self.admin, path, accept)
    }

    /// The same of another server.
    pub fn eventually_of(&self, address: SocketAddr, path: &str, accept: impl Fn(u16, &Value) -> bool) -> Value {
        self.eventually_at(address, path, accept)
    }

    fn eventually_at(&self, address: SocketAddr, path: &str, accept: impl Fn(u16, &Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let answer = crate::http::get(address, path);
            if accept(answer.status, &answer.json_or_null()) {
                return answer.json_or_null();
            }
            assert!(started.elapsed() < PATIENCE, "{path} still answers {} {}\n{}", answer.status, answer.text(), self.log());
            pause();
        }
    }

    /// Waits until the server says that it is ready.
    pub fn ready(self) -> Gateway {
        self.eventually("/v2/health/ready", |status, _| status == 200);
        self
    }

    /// Waits until a version answers.
    pub fn wait_version(&self, model: &str, version: u64) {
        self.eventually(&format!("/v2/models/{model}/versions/{version}/ready"), |status, _| status == 200);
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).expect("statm");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a page count") * 4096
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Lets other processes run before the next look; what is waited for is the look's result, never the time.
fn pause() {
    let (_sender, never) = std::sync::mpsc::sync_channel::<()>(0);
    let _timed_out = never.recv_timeout(Duration::from_millis(5));
}

fn addresses(line: &str) -> Option<[SocketAddr; 3]> {
    let words: Vec<&str> = line.strip_prefix("bascule: ")?.split_whitespace().collect();
    let after = |name: &str| words.get(words.iter().position(|word| *word == name)? + 1)?.parse().ok();
    Some([after("http")?, after("grpc")?, after("admin")?])
}
