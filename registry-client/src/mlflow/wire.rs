//! What the server answers, as far as it is read. Unknown members are ignored; numbers may come as texts.

use serde::{Deserialize, Deserializer};

use super::client::Page;

/// `registered-models/search`.
#[derive(Debug, Deserialize)]
pub(super) struct Models {
    #[serde(default)]
    registered_models: Vec<RegisteredModel>,
    next_page_token: Option<String>,
}

impl Page for Models {
    type Item = RegisteredModel;

    fn open(self) -> (Vec<RegisteredModel>, Option<String>) {
        (self.registered_models, self.next_page_token)
    }
}

/// What the search for models says of one: as long as it says the same, nothing has happened to the model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct RegisteredModel {
    pub(super) name: String,
    #[serde(default, deserialize_with = "whole")]
    last_updated_timestamp: i64,
    #[serde(default)]
    latest_versions: Vec<ModelVersion>,
    #[serde(default)]
    pub(super) aliases: Vec<Alias>,
    #[serde(default)]
    tags: Vec<Tag>,
}

impl RegisteredModel {
    /// Prompts are kept as if they were models.
    pub(super) fn is_prompt(&self) -> bool {
        self.tags.iter().any(|tag| tag.key == "mlflow.prompt.is_prompt" && tag.value.eq_ignore_ascii_case("true"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Alias {
    pub(super) alias: String,
    pub(super) version: String,
}

/// `model-versions/search`.
#[derive(Debug, Deserialize)]
pub(super) struct Versions {
    #[serde(default)]
    model_versions: Vec<ModelVersion>,
    next_page_token: Option<String>,
}

impl Page for Versions {
    type Item = ModelVersion;

    fn open(self) -> (Vec<ModelVersion>, Option<String>) {
        (self.model_versions, self.next_page_token)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ModelVersion {
    pub(super) version: String,
    #[serde(default, deserialize_with = "whole")]
    pub(super) creation_timestamp: i64,
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(super) run_id: String,
    #[serde(default)]
    pub(super) user_id: String,
    #[serde(default = "ready")]
    pub(super) status: String,
    #[serde(default)]
    pub(super) status_message: String,
    #[serde(default)]
    pub(super) tags: Vec<Tag>,
}

/// Servers that know no states leave it out.
fn ready() -> String {
    READY.to_owned()
}

/// The only state in which a version's files are all there.
pub(super) const READY: &str = "READY";

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Tag {
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: String,
}

/// `model-versions/get-download-uri`.
#[derive(Debug, Deserialize)]
pub(super) struct DownloadUri {
    pub(super) artifact_uri: String,
}

/// A listing of the artifact proxy.
#[derive(Debug, Deserialize)]
pub(super) struct ArtifactFiles {
    #[serde(default)]
    pub(super) files: Vec<ArtifactFile>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ArtifactFile {
    /// Relative to the folder that was listed.
    pub(super) path: String,
    #[serde(default)]
    pub(super) is_dir: bool,
    /// Left out for an empty file.
    #[serde(default, deserialize_with = "whole")]
    pub(super) file_size: i64,
}

/// `runs/get`.
#[derive(Debug, Deserialize)]
pub(super) struct RunAnswer {
    pub(super) run: Run,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Run {
    #[serde(default)]
    pub(super) data: RunData,
    #[serde(default)]
    pub(super) inputs: RunInputs,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RunData {
    #[serde(default)]
    pub(super) metrics: Vec<Metric>,
    #[serde(default)]
    pub(super) tags: Vec<Tag>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Metric {
    pub(super) key: String,
    /// NaN and infinity come as texts.
    #[serde(default)]
    pub(super) value: serde_json::Value,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RunInputs {
    #[serde(default)]
    pub(super) dataset_inputs: Vec<DatasetInput>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DatasetInput {
    pub(super) dataset: Dataset,
}

#[derive(Debug, Deserialize)]
pub(super) struct Dataset {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) digest: String,
}

/// A whole number, which JSON of protocol buffers may write as a text.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(i64),
        Text(String),
        Nothing(()),
    }
    match Written::deserialize(deserializer).map_err(|_| serde::de::Error::custom("expected a whole number"))? {
        Written::Number(number) => Ok(number),
        Written::Text(text) => text.parse().map_err(|_| serde::de::Error::custom("expected a whole number")),
        Written::Nothing(()) => Ok(0),
    }
}
