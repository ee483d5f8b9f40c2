//! `bascule infer`: one request, to try a model.

mod answer;
mod grpc;
mod http;
mod input;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bascule_registry::{VersionNumber, parse_version};
use bascule_runtime_api::TensorSpec;
use clap::Args;
use serde::Deserialize;

use super::Outcome;
use super::args::{GatewayArgs, pair};
use super::failure::Failure;
use super::gateway::{Gateway, base_url, model_path};

/// Send one request and print the answer.
///
/// An input is a .npy file, a JSON file with nested lists, or such a list itself. The datatype of JSON is that of the model's input.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  bascule infer digits --input image=@models/testset/image.npy\n  \
                        bascule infer sum --input 'x=[[1, 2]]' --output y=@y.npy --grpc --key caller-7")]
pub(super) struct Infer {
    /// The model.
    model: String,
    /// An input: name=@file.npy, name=@file.json or name=JSON; may be repeated.
    #[arg(long = "input", value_name = "NAME=@FILE|JSON", value_parser = pair, required = true)]
    inputs: Vec<(String, String)>,
    /// An output to ask for, and a .npy file to write it to; all outputs are printed where none is named.
    #[arg(long = "output", value_name = "NAME[=@FILE]")]
    outputs: Vec<String>,
    /// Ask this version, whatever the split.
    #[arg(long, value_parser = |text: &str| parse_version(text).map_err(|error| error.to_string()))]
    version: Option<VersionNumber>,
    /// The key that keeps a caller on one side of a split.
    #[arg(long)]
    key: Option<String>,
    /// Use gRPC instead of HTTP.
    #[arg(long)]
    grpc: bool,
    /// The HTTP or gRPC port itself [default: the gateway is asked for it].
    #[arg(long)]
    url: Option<String>,
    /// How long the answer may take.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Print the whole answer as JSON.
    #[arg(long)]
    json: bool,
}

/// What is sent, however it is sent.
struct Question {
    model: String,
    version: Option<VersionNumber>,
    key: Option<String>,
    inputs: Vec<(String, bascule_runtime_api::Tensor)>,
    outputs: Vec<String>,
}

/// Where a gateway really listens.
#[derive(Deserialize)]
struct Shown {
    addresses: std::collections::BTreeMap<String, std::net::SocketAddr>,
}

impl Infer {
    pub(super) async fn run(self) -> Outcome {
        model_path(&self.model)?;
        let outputs = self.outputs.iter().map(|output| wanted(output)).collect::<Result<Vec<_>, _>>()?;
        let url = self.port().await?;
        let sent = input::read(&self.inputs)?;
        let needs_specs = sent.iter().any(input::Sent::needs_spec);
        let specs = if needs_specs { self.in_time(&url, self.specs(&url)).await? } else { Vec::new() };
        let question = Question {
            model: self.model.clone(),
            version: self.version,
            key: self.key.clone(),
            inputs: sent.into_iter().map(|sent| sent.tensor(&specs)).collect::<Result<_, _>>()?,
            outputs: outputs.iter().map(|(name, _)| name.clone()).collect(),
        };
        let answer = self.in_time(&url, self.ask(&url, question)).await?;
        for (name, path) in &outputs {
            if let Some(path) = path {
                answer.save(name, path)?;
            }
        }
        answer.print(self.json)
    }

    /// The URL of the port to ask.
    async fn port(&self) -> Result<String, Failure> {
        if let Some(url) = &self.url {
            return Ok(base_url(url)?.as_str().trim_end_matches('/').to_owned());
        }
        let gateway = Gateway::at(&self.gateway.url)?;
        let shown: Shown = gateway.get("config", &[]).await?;
        let port = if self.grpc { "grpc" } else { "http" };
        let address = shown.addresses.get(port).ok_or_else(|| anyhow!("the gateway does not say where it listens"))?;
        // A port that listens everywhere is reached where the gateway was reached.
        if address.ip().is_unspecified() {
            return Ok(format!("http://{}:{}", gateway.host(), address.port()));
        }
        Ok(format!("http://{address}"))
    }

    async fn ask(&self, url: &str, question: Question) -> Result<answer::Answer, Failure> {
        if self.grpc { grpc::ask(url, question).await } else { http::ask(url, &question).await }
    }

    /// The answer, unless it takes too long: going away then tells the gateway that nobody waits for it any more.
    async fn in_time<T>(&self, url: &str, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let late = || {
            let limit = humantime::format_duration(self.timeout);
            Failure::unreachable(anyhow!("{url} has not answered within {limit}")).hint("--timeout waits longer")
        };
        tokio::time::timeout(self.timeout, answer).await.unwrap_or_else(|_| Err(late()))
    }

    async fn specs(&self, url: &str) -> Result<Vec<TensorSpec>, Failure> {
        if self.grpc {
            grpc::specs(url, &self.model, self.version).await
        } else {
            http::specs(url, &self.model, self.version).await
        }
    }
}

/// `name` or `name=@file`.
fn wanted(text: &str) -> Result<(String, Option<PathBuf>), Failure> {
    match text.split_once('=') {
        None => Ok((text.to_owned(), None)),
        Some((name, file)) => match file.strip_prefix('@').filter(|file| !file.is_empty()) {
            Some(file) => Ok((name.to_owned(), Some(PathBuf::from(file)))),
            None => Err(Failure::usage(format!("--output: expected name or name=@file.npy, got {text:?}"))),
        },
    }
}

/// A spec as both protocols tell it.
fn spec(name: &str, datatype: &str, shape: &[i64]) -> Result<TensorSpec, Failure> {
    let datatype = datatype.parse().with_context(|| format!("input '{name}'"))?;
    Ok(TensorSpec::new(name, datatype, shape))
}

/// Nobody answers at a data port.
fn unreachable(url: &str, error: impl Into<anyhow::Error>) -> Failure {
    Failure::unreachable(error.into().context(format!("no gateway answers at {url}")))
        .hint("start one with `bascule serve`, or name its port with --url")
}
