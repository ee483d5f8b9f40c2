//! What the gateway adds to a bare server of the same kind: server CPU a request, beside a server that answers the same bytes.
//!
//! Each pair is a round of the gateway and one of the bare server, one right after the other and now this, now that one first. What the
//! model itself takes is measured in this process and taken off where the bar says so.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use prost::Message as _;

use crate::Plan;
use crate::bare::Recorded;
use crate::bars::{Bar, Bars};
use crate::calls::{HttpCall, Input};
use crate::cores::held_to;
use crate::gateway::{Answer, Gateway, infer, post};
use crate::inprocess::InProcess;
use crate::models;
use crate::process::Server;
use crate::report::Report;
use crate::stats::median;
use crate::tools::{Driven, Streams, Tools};

/// A model that takes next to no time.
pub(crate) const TINY: Input<'_> = Input { model: "tiny", name: "x", shape: &[1, 4] };
const IMAGE: Input<'_> = Input { model: "image", name: "x", shape: &[1, 3, 224, 224] };

/// How a load reaches its server.
enum Call {
    Http { call: HttpCall, connections: usize },
    Grpc { message: Box<bascule_proto::inference::ModelInferRequest>, streams: Streams },
}

/// One line of the comparison.
struct Case {
    name: String,
    input: Input<'static>,
    call: Call,
    bar: f64,
    /// Whether the bar is for what is left without the model's own run.
    without_run: bool,
}

fn cases(plan: &Plan) -> Vec<Case> {
    let connections = plan.connections;
    let http = |name: &str, input: &Input<'static>, call, connections, bar, without_run| Case {
        name: format!("{name}, {connections} connections"),
        input: input.clone(),
        call: Call::Http { call, connections },
        bar,
        without_run,
    };
    let grpc = |name: &str, input: &Input<'static>, streams: Streams, bar, without_run| Case {
        name: format!("{name}, {} × {} streams", streams.connections, streams.each),
        input: input.clone(),
        call: Call::Grpc { message: Box::new(input.grpc()), streams },
        bar,
        without_run,
    };
    let streams = |connections, each| Streams { connections, each };
    vec![
        http("tiny model, HTTP JSON", &TINY, TINY.json(), connections, 1.6, true),
        http("tiny model, HTTP binary", &TINY, TINY.binary(), connections, 1.6, true),
        grpc("tiny model, gRPC", &TINY, streams(connections, 1), 1.5, true),
        grpc("tiny model, gRPC", &TINY, streams(1, connections), 1.5, true),
        http("600 KB both ways, HTTP binary", &IMAGE, IMAGE.binary(), 8, 1.5, false),
        grpc("600 KB both ways, gRPC", &IMAGE, streams(8, 1), 1.5, false),
    ]
}

/// Measures every protocol.
pub(crate) async fn measure(plan: &Plan, tools: &Tools, report: &mut Report, bars: &mut Bars) -> Result<()> {
    let registry = tempfile::tempdir()?;
    models::write(registry.path(), TINY.model, &models::perceptron(&[4, 8, 3]), "")?;
    models::write(registry.path(), IMAGE.model, &models::identity(&[-1, 3, 224, 224]), "")?;
    let gateway = Gateway::start(plan, registry.path(), &[]).await?;
    let runtime = InProcess::new(plan.cores);
    let mut rows = Vec::new();
    for case in cases(plan).iter().filter(|case| plan.wants(&case.name)) {
        let mut session = runtime.load(&registry.path().join(case.input.model).join("1"))?;
        let bare = start_bare(plan, case, &gateway).await?;
        let mut compared = Compared::default();
        for pair in 0..=plan.pairs {
            // The first pair warms both up and does not count.
            let counted = pair > 0;
            let run = runtime.run(session.as_mut(), &case.input, plan.round / 4)?;
            let [ours, theirs] = compare(plan, tools, case, &gateway, &bare, pair % 2 == 0).await?;
            if counted {
                compared.add(ours, theirs, run.cpu);
            }
        }
        let (net, raw) = (compared.net_ratios(), compared.raw_ratios());
        let (values, other) = if case.without_run { (&net, &raw) } else { (&raw, &net) };
        let remark = format!("{} {:.2}", if case.without_run { "raw" } else { "without the run" }, median(other));
        bars.add(&format!("{}: CPU ÷ bare server's", case.name), Bar::AtMost(case.bar), values, &remark);
        rows.extend(compared.rows(&case.name));
    }
    let head = ["load", "server", "requests/s", "p50 ms", "p99 ms", "CPU µs/request", "of it the run"];
    report.table("Cost of a request, server and clients on a core each", &head, &rows);
    Ok(())
}

async fn start_bare(plan: &Plan, case: &Case, gateway: &Gateway) -> Result<(Server, SocketAddr)> {
    match &case.call {
        Call::Http { call, .. } => start_bare_http(plan, &post(gateway.http, call).await?),
        Call::Grpc { message, .. } => {
            let (answer, headers) = infer(gateway.grpc, message).await?;
            bare_server(plan, "bare-grpc", &Recorded::write(plan.scratch.path(), "answer", &headers, &answer.encode_to_vec())?)
        }
    }
}

/// Starts a server that answers what the gateway did.
pub(crate) fn start_bare_http(plan: &Plan, answer: &Answer) -> Result<(Server, SocketAddr)> {
    ensure!(answer.status == 200, "the gateway answered {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    bare_server(plan, "bare-http", &Recorded::write(plan.scratch.path(), "answer", &answer.headers, &answer.body)?)
}

fn bare_server(plan: &Plan, kind: &str, answer: &Recorded) -> Result<(Server, SocketAddr)> {
    let mut command = held_to(plan.cores.server, std::env::current_exe()?);
    command.arg(kind).args(answer.arguments());
    let server = Server::start(command, |line| line.starts_with("listening "))?;
    let address = server.greeting.split_whitespace().nth(1).context("no address in the greeting")?.parse()?;
    Ok((server, address))
}

/// One round of each side, the gateway's first.
async fn compare(
    plan: &Plan,
    tools: &Tools,
    case: &Case,
    gateway: &Gateway,
    bare: &(Server, SocketAddr),
    gateway_first: bool,
) -> Result<[(Driven, f64); 2]> {
    let ours = async || {
        let before = gateway.successes(case.input.model).await?;
        let address = if matches!(case.call, Call::Http { .. }) { gateway.http } else { gateway.grpc };
        let round = drive(plan, tools, case, address, &gateway.server)?;
        let answered = gateway.successes(case.input.model).await? - before;
        // Those under way when the load ended are answered and not counted by the tool.
        ensure!(answered >= round.0.requests, "{} requests were sent and {answered} answered with success", round.0.requests);
        anyhow::Ok(round)
    };
    let theirs = || drive(plan, tools, case, bare.1, &bare.0);
    if gateway_first {
        let first = ours().await?;
        return Ok([first, theirs()?]);
    }
    let first = theirs()?;
    Ok([ours().await?, first])
}

/// What a load did, and the server's CPU time a request in microseconds.
fn drive(plan: &Plan, tools: &Tools, case: &Case, address: SocketAddr, server: &Server) -> Result<(Driven, f64)> {
    let before = server.cpu()?;
    let driven = match &case.call {
        Call::Http { call, connections } => tools.http(address, call, *connections, plan.round)?,
        Call::Grpc { message, streams } => tools.grpc(address, message, *streams, plan.round)?,
    };
    let cpu = server.cpu()? - before;
    Ok((driven, cpu.as_secs_f64() * 1e6 / driven.requests as f64))
}

/// Rounds of both sides, and runs of the model between them.
#[derive(Default)]
struct Compared {
    ours: Vec<(Driven, f64)>,
    theirs: Vec<(Driven, f64)>,
    runs: Vec<f64>,
}

impl Compared {
    fn add(&mut self, ours: (Driven, f64), theirs: (Driven, f64), run: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
        self.runs.push(run);
    }

    fn raw_ratios(&self) -> Vec<f64> {
        self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours.1 / theirs.1).collect()
    }

    fn net_ratios(&self) -> Vec<f64> {
        let sides = self.ours.iter().zip(&self.theirs).zip(&self.runs);
        sides.map(|((ours, theirs), run)| (ours.1 - run) / theirs.1).collect()
    }

    fn rows(&self, name: &str) -> [Vec<String>; 2] {
        let row = |server: &str, rounds: &[(Driven, f64)], run: Option<f64>| {
            let middle = |figure: fn(&(Driven, f64)) -> f64| median(&rounds.iter().map(figure).collect::<Vec<_>>());
            vec![
                name.to_owned(),
                server.to_owned(),
                format!("{:.0}", middle(|round| round.0.rate)),
                format!("{:.3}", middle(|round| round.0.p50 / 1e3)),
                format!("{:.3}", middle(|round| round.0.p99 / 1e3)),
                format!("{:.1}", middle(|round| round.1)),
                run.map(|run| format!("{run:.1}")).unwrap_or_default(),
            ]
        };
        [row("bare", &self.theirs, None), row("bascule", &self.ours, Some(median(&self.runs)))]
    }
}
