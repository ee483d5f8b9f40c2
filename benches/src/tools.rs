//! Public load tools that drive the servers: wrk over HTTP/1.1, h2load over gRPC.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prost::Message as _;
use tempfile::TempDir;

use crate::calls::HttpCall;
use crate::cores::{Cores, held_to};

/// What a load did. Times are in microseconds, from sending a request to its whole answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Driven {
    pub(crate) requests: u64,
    pub(crate) rate: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// How many calls are under way at a time over gRPC.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) connections: usize,
    pub(crate) each: usize,
}

/// Runs the tools, on the clients' core.
pub(crate) struct Tools {
    wrk: OsString,
    h2load: OsString,
    core: usize,
    scratch: TempDir,
}

impl Tools {
    /// Takes the tools from `folder` where they are there, else from the path.
    ///
    /// # Errors
    /// Where they are not there either.
    pub(crate) fn find(folder: &Path, cores: Cores) -> Result<Tools> {
        let tool = |name: &str| {
            let own = folder.join(name);
            let tool = if own.exists() { own.into_os_string() } else { name.into() };
            let found = Command::new(&tool).arg("--version").output();
            found.map(|_| tool).with_context(|| format!("{name} is not there: run make bench, or install it"))
        };
        Ok(Tools { wrk: tool("wrk")?, h2load: tool("h2load")?, core: cores.client, scratch: tempfile::tempdir()? })
    }

    /// Sends a call again and again over so many connections.
    pub(crate) fn http(&self, address: SocketAddr, call: &HttpCall, connections: usize, length: Duration) -> Result<Driven> {
        let script = self.write("call.lua", script(&self.write("body", &call.body)?, call).as_bytes())?;
        let mut command = held_to(self.core, &self.wrk);
        command.args(["--threads", "1", "--connections", &connections.to_string(), "--timeout", "30s"]);
        command.args(["--duration", &format!("{}s", whole_seconds(length)), "--script"]).arg(script);
        let output = said(command.arg(format!("http://{address}{}", call.path)))?;
        read_wrk(&output).with_context(|| format!("unexpected output of wrk:\n{output}"))
    }

    /// Sends a message again and again as the only one of a call.
    pub(crate) fn grpc(
        &self,
        address: SocketAddr,
        message: &bascule_proto::inference::ModelInferRequest,
        streams: Streams,
        length: Duration,
    ) -> Result<Driven> {
        let message = message.encode_to_vec();
        let framed = [&[0], u32::try_from(message.len())?.to_be_bytes().as_slice(), &message].concat();
        let mut command = self.h2load(&framed, streams, length)?;
        for header in ["content-type: application/grpc", "te: trailers"] {
            command.args(["--header", header]);
        }
        self.run_h2load(command.arg(format!("http://{address}/inference.GRPCInferenceService/ModelInfer")))
    }

    fn h2load(&self, body: &[u8], streams: Streams, length: Duration) -> Result<Command> {
        let mut command = held_to(self.core, &self.h2load);
        command.args(["--threads", "1", "--clients", &streams.connections.to_string()]);
        command.args(["--max-concurrent-streams", &streams.each.to_string()]);
        command.args(["--duration", &format!("{}", whole_seconds(length)), "--data"]).arg(self.write("body", body)?);
        command.arg("--log-file").arg(self.log()?);
        Ok(command)
    }

    /// A log that is not there: h2load appends to one that is.
    fn log(&self) -> Result<PathBuf> {
        let log = self.scratch.path().join("log");
        if log.exists() {
            std::fs::remove_file(&log)?;
        }
        Ok(log)
    }

    fn run_h2load(&self, command: &mut Command) -> Result<Driven> {
        let output = said(command)?;
        let log = std::fs::read_to_string(self.scratch.path().join("log"))?;
        read_h2load(&output, &log).with_context(|| format!("unexpected output of h2load:\n{output}"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.scratch.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path)
    }
}

/// The tools take no fractions.
fn whole_seconds(length: Duration) -> u64 {
    length.as_secs().max(1)
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("can't start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?} failed:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// What makes wrk send the call, and say in one line what came of it.
fn script(body: &Path, call: &HttpCall) -> String {
    let mut script = format!("local body = io.open('{}', 'rb')\nwrk.method = 'POST'\nwrk.body = body:read('*a')\n", body.display());
    for (name, value) in call.headers() {
        // Writing to a string does not fail.
        let _ = writeln!(script, "wrk.headers['{name}'] = '{value}'");
    }
    script
        + "function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('load %d %d %d %f %f\\n', summary.requests, failed, summary.duration,
    latency:percentile(50), latency:percentile(99)))
end
"
}

fn read_wrk(output: &str) -> Result<Driven> {
    let line = output.lines().find_map(|line| line.strip_prefix("load ")).context("no summary")?;
    let figures = line.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let [requests, failed, micros, p50, p99] = figures[..] else { anyhow::bail!("expected five figures") };
    ensure!(failed == 0.0, "{failed} requests failed");
    ensure!(requests > 0.0, "no request was answered");
    Ok(Driven { requests: requests as u64, rate: requests / (micros / 1e6), p50, p99 })
}

/// Reads the summary, and the log, of which each line has when a request was sent, its status and how long it took.
fn read_h2load(output: &str, log: &str) -> Result<Driven> {
    let finished = output.lines().find_map(|line| line.strip_prefix("finished in ")).context("no summary")?;
    let rate = finished.split(", ").find_map(|part| part.strip_suffix(" req/s")).context("no rate")?.parse()?;
    let mut times = Vec::new();
    for line in log.lines() {
        let fields: Vec<i64> = line.split('\t').map(str::parse).collect::<Result<_, _>>()?;
        let [_, status, micros] = fields[..] else { anyhow::bail!("expected three figures in '{line}'") };
        ensure!(status == 200, "a request was answered with status {status}");
        times.push(micros);
    }
    ensure!(!times.is_empty(), "no request was answered");
    times.sort_unstable();
    let quantile = |quantile: f64| times[((times.len() - 1) as f64 * quantile).round() as usize] as f64;
    Ok(Driven { requests: times.len() as u64, rate, p50: quantile(0.5), p99: quantile(0.99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_wrk_is_read() {
        let output = "Running 1s test @ http://127.0.0.1:1/\n  2 threads\nload 1000 0 500000 150.5 900.0\n";
        assert_eq!(read_wrk(output).unwrap(), Driven { requests: 1000, rate: 2000.0, p50: 150.5, p99: 900.0 });
        assert_eq!(read_wrk("load 1000 3 500000 1 1").unwrap_err().to_string(), "3 requests failed");
        assert!(read_wrk("no such line").is_err());
    }

    #[test]
    fn the_log_of_h2load_is_read() {
        let output = "starting benchmark...\nfinished in 1.50s, 2.00 req/s, 270B/s\nrequests: 3 total\n";
        let log = "1\t200\t30\n2\t200\t10\n3\t200\t20\n";
        assert_eq!(read_h2load(output, log).unwrap(), Driven { requests: 3, rate: 2.0, p50: 20.0, p99: 30.0 });
        let refused = read_h2load(output, "1\t429\t30\n").unwrap_err().to_string();
        assert_eq!(refused, "a request was answered with status 429");
        assert!(read_h2load(output, "").is_err());
        assert!(read_h2load("no summary", "").is_err());
    }
}
