//! Whether models that nobody asks cost those that are asked: instructions a request, counted and not timed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Plan;
use crate::bars::{Bar, Bars};
use crate::calls::{HttpCall, Input};
use crate::gateway::{Connection, Gateway};
use crate::models;

const USED: usize = 50;
const REGISTERED: usize = 1000;
const ROUNDS_OF_ALL: usize = 10;

/// Counts with valgrind, in a gateway of 50 models and one of 1,000.
pub(crate) async fn measure(plan: &Plan, bars: &mut Bars) -> Result<()> {
    let bar = Bar::AtMost(1.02);
    let name = format!("instructions a request, {REGISTERED} models ÷ {USED} models, {USED} in use");
    if Command::new("valgrind").arg("--version").output().is_err() {
        bars.skip(&name, bar, "valgrind is not installed");
        return Ok(());
    }
    let few = Counted::start(plan, USED).await?;
    let many = Counted::start(plan, REGISTERED).await?;
    let mut ratios = Vec::new();
    for pair in 0..=plan.pairs {
        let (few, many) = if pair % 2 == 0 {
            let many = many.count().await?;
            (few.count().await?, many)
        } else {
            (few.count().await?, many.count().await?)
        };
        if pair > 0 {
            ratios.push(many / few);
        }
    }
    bars.add(&name, bar, &ratios, "HTTP JSON, the model's run included; counted by valgrind's callgrind");
    Ok(())
}

/// A gateway whose instructions are counted.
struct Counted {
    gateway: Gateway,
    folder: tempfile::TempDir,
}

impl Counted {
    async fn start(plan: &Plan, count: usize) -> Result<Counted> {
        let folder = tempfile::tempdir()?;
        let registry = folder.path().join("registry");
        for model in 0..count {
            models::write(&registry, &model_name(model), &models::perceptron(&[4, 8, 3]), "")?;
        }
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--instr-atstart=no", "--quiet"]);
        command.arg(format!("--callgrind-out-file={}", folder.path().join("out").display()));
        let config = folder.path().join("bascule.toml");
        let settings = "[load]\nmode = \"on_demand\"\non_demand_wait = \"5m\"\n[registry]\n";
        std::fs::write(&config, settings)?;
        command.arg(&plan.gateway).arg("serve").arg("--config").arg(&config).arg("--registry").arg(&registry);
        let gateway = Gateway::serve(command).await?;
        let counted = Counted { gateway, folder };
        counted.ask_all(12).await?;
        // What is looked at now and then is not part of a request.
        std::fs::write(&config, format!("{settings}poll_interval = \"1h\"\n"))?;
        let reloaded = Command::new("kill").args(["-HUP", &counted.gateway.server.id().to_string()]).status()?;
        ensure!(reloaded.success(), "the gateway can't be told to read its settings");
        Ok(counted)
    }

    async fn ask_all(&self, rounds: usize) -> Result<()> {
        // Over one connection: making them costs as much as what is counted.
        let mut connection = Connection::open(self.gateway.http).await?;
        for _ in 0..rounds {
            for model in 0..USED {
                let answer = connection.post(&call(model)).await?;
                ensure!(answer.status == 200, "{}", String::from_utf8_lossy(&answer.body));
            }
        }
        Ok(())
    }

    /// Instructions a request.
    async fn count(&self) -> Result<f64> {
        self.control("--instr=on")?;
        self.control("--zero")?;
        self.ask_all(ROUNDS_OF_ALL).await?;
        self.control("--dump")?;
        self.control("--instr=off")?;
        let instructions = last_total(self.folder.path())?;
        Ok(instructions as f64 / (ROUNDS_OF_ALL * USED) as f64)
    }

    fn control(&self, what: &str) -> Result<()> {
        let output = Command::new("callgrind_control").arg(what).arg(self.gateway.server.id().to_string()).output()?;
        ensure!(output.status.success(), "callgrind_control {what}: {}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }
}

fn model_name(model: usize) -> String {
    format!("m{model:04}")
}

fn call(model: usize) -> HttpCall {
    let name = model_name(model);
    Input { model: &name, name: "x", shape: &[1, 4] }.json()
}

/// The total of the newest dump.
fn last_total(folder: &Path) -> Result<u64> {
    let number = |path: &Path| path.extension()?.to_str()?.parse::<u32>().ok();
    let dumps = std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let newest = dumps.filter(|path| number(path).is_some()).max_by_key(|path| number(path)).context("valgrind wrote no dump")?;
    let text = std::fs::read_to_string(newest)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    total.and_then(|total| total.trim().parse().ok()).context("a dump of valgrind has no total")
}
