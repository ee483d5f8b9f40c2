//! What each version has done, in the shape of the statistics extension.

use std::collections::BTreeMap;

use bascule_serving::{InferError, Phase, Servable, ServingTable};
use serde::Serialize;

/// How often something happened and how long it took in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Duration {
    /// Times.
    pub count: u64,
    /// Nanoseconds in all.
    pub ns: u64,
}

impl From<Phase> for Duration {
    fn from(phase: Phase) -> Duration {
        Duration { count: phase.count, ns: phase.ns }
    }
}

/// The parts of an answer, each summed over all requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct InferenceStatistics {
    /// Answered requests, from arrival to the answer.
    pub success: Duration,
    /// Failed requests.
    pub fail: Duration,
    /// Waiting.
    pub queue: Duration,
    /// Joining inputs.
    pub compute_input: Duration,
    /// Inside the session.
    pub compute_infer: Duration,
    /// Splitting outputs.
    pub compute_output: Duration,
    /// Always 0: there is no cache of answers.
    pub cache_hit: Duration,
    /// Always 0: there is no cache of answers.
    pub cache_miss: Duration,
}

/// Runs of one batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BatchStatistics {
    /// Rows.
    pub batch_size: u64,
    /// Joining inputs.
    pub compute_input: Duration,
    /// Inside the session.
    pub compute_infer: Duration,
    /// Splitting outputs.
    pub compute_output: Duration,
}

/// What one version has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelStatistics {
    /// The model.
    pub name: String,
    /// The version.
    pub version: String,
    /// Unix time of the last run in milliseconds; 0 where there was none.
    pub last_inference: u64,
    /// Rows computed.
    pub inference_count: u64,
    /// Runs of a session.
    pub execution_count: u64,
    /// By part of an answer.
    pub inference_stats: InferenceStatistics,
    /// Always empty: no model answers a request more than once.
    pub response_stats: BTreeMap<String, Duration>,
    /// By batch size, ascending.
    pub batch_stats: Vec<BatchStatistics>,
    /// Always empty: sessions do not report it this way. `status` and the metrics show memory.
    pub memory_usage: [(); 0],
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatisticsReport {
    /// By model, then version.
    pub model_stats: Vec<ModelStatistics>,
}

/// The statistics of one version, of every version of a model, or of everything.
///
/// # Errors
/// Where the model is not known, or what is asked for does not answer.
pub fn statistics(table: &ServingTable, model: Option<&str>, version: Option<u64>) -> Result<StatisticsReport, InferError> {
    let model_stats = match model {
        Some(model) => super::answering(super::known(table, model)?, version)?.into_iter().map(|servable| of(servable)).collect(),
        None => {
            let mut routes: Vec<_> = table.routes().collect();
            routes.sort_by(|a, b| a.model.cmp(&b.model));
            routes.iter().flat_map(|route| route.versions()).map(|servable| of(servable)).collect()
        }
    };
    Ok(StatisticsReport { model_stats })
}

fn of(servable: &Servable) -> ModelStatistics {
    let stats = servable.stats().snapshot();
    let batch = |(rows, batch): (&u32, &bascule_serving::BatchStats)| BatchStatistics {
        batch_size: u64::from(*rows),
        compute_input: batch.compute_input.into(),
        compute_infer: batch.compute_infer.into(),
        compute_output: batch.compute_output.into(),
    };
    ModelStatistics {
        name: servable.model().to_owned(),
        version: servable.version().to_string(),
        last_inference: stats.last_inference_ms,
        inference_count: stats.inference_count,
        execution_count: stats.execution_count,
        inference_stats: InferenceStatistics {
            success: stats.success.into(),
            fail: stats.fail.into(),
            queue: stats.queue.into(),
            compute_input: stats.compute_input.into(),
            compute_infer: stats.compute_infer.into(),
            compute_output: stats.compute_output.into(),
            ..InferenceStatistics::default()
        },
        response_stats: BTreeMap::new(),
        batch_stats: stats.batches.iter().map(batch).collect(),
        memory_usage: [],
    }
}
