//! What [`crate::describe`] tells, as messages of the protocol.

use std::collections::HashMap;

use bascule_proto::inference::model_metadata_response::TensorMetadata;
use bascule_proto::inference::repository_index_response::ModelIndex;
use bascule_proto::inference::{
    InferBatchStatistics, InferStatistics, ModelMetadataResponse, ModelStatistics, ModelStatisticsResponse,
    RepositoryIndexResponse, ServerMetadataResponse, StatisticDuration,
};

use crate::describe;

pub(crate) fn server_metadata(server: &describe::ServerMetadata) -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: server.name.to_owned(),
        version: server.version.to_owned(),
        extensions: server.extensions.iter().map(|&name| name.to_owned()).collect(),
    }
}

pub(crate) fn model_metadata(model: describe::ModelMetadata) -> ModelMetadataResponse {
    let tensor = |tensor: describe::TensorMetadata| TensorMetadata {
        name: tensor.name,
        datatype: tensor.datatype.to_owned(),
        shape: tensor.shape,
    };
    ModelMetadataResponse {
        name: model.name,
        versions: model.versions,
        platform: model.platform,
        inputs: model.inputs.into_iter().map(tensor).collect(),
        outputs: model.outputs.into_iter().map(tensor).collect(),
    }
}

pub(crate) fn statistics(report: describe::StatisticsReport) -> ModelStatisticsResponse {
    ModelStatisticsResponse { model_stats: report.model_stats.into_iter().map(version_statistics).collect() }
}

fn version_statistics(version: describe::ModelStatistics) -> ModelStatistics {
    let stats = version.inference_stats;
    let batch = |batch: describe::BatchStatistics| InferBatchStatistics {
        batch_size: batch.batch_size,
        compute_input: Some(duration(batch.compute_input)),
        compute_infer: Some(duration(batch.compute_infer)),
        compute_output: Some(duration(batch.compute_output)),
    };
    ModelStatistics {
        name: version.name,
        version: version.version,
        last_inference: version.last_inference,
        inference_count: version.inference_count,
        execution_count: version.execution_count,
        inference_stats: Some(InferStatistics {
            success: Some(duration(stats.success)),
            fail: Some(duration(stats.fail)),
            queue: Some(duration(stats.queue)),
            compute_input: Some(duration(stats.compute_input)),
            compute_infer: Some(duration(stats.compute_infer)),
            compute_output: Some(duration(stats.compute_output)),
            cache_hit: Some(duration(stats.cache_hit)),
            cache_miss: Some(duration(stats.cache_miss)),
        }),
        batch_stats: version.batch_stats.into_iter().map(batch).collect(),
        memory_usage: Vec::new(),
        response_stats: HashMap::new(),
    }
}

fn duration(duration: describe::Duration) -> StatisticDuration {
    StatisticDuration { count: duration.count, ns: duration.ns }
}

pub(crate) fn index(entries: Vec<describe::IndexEntry>) -> RepositoryIndexResponse {
    let model = |entry: describe::IndexEntry| ModelIndex {
        name: entry.name,
        version: entry.version.unwrap_or_default(),
        state: entry.state.unwrap_or_default(),
        reason: entry.reason.unwrap_or_default(),
    };
    RepositoryIndexResponse { models: entries.into_iter().map(model).collect() }
}
