//! One version: its files, its flavor, and the manifest that is made up from both.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;

use super::artifacts::{Artifacts, Files, Stamp, Unusable};
use super::error::MlflowError;
use super::mlmodel::{self, Flavor};
use super::{MlflowSource, wire};
use crate::digest::{Digest, DigestBuilder};
use crate::listing::{Generation, Layout};
use crate::manifest::{Lineage, MANIFEST_SCHEMA, Manifest, ManifestFile};
use crate::name::VersionKey;

/// Files that describe how Python is to be set up, or the version itself: nothing here needs them.
const LEFT_OUT: [&str; 8] = [
    mlmodel::FILE,
    "conda.yaml",
    "python_env.yaml",
    "requirements.txt",
    "registered_model_meta",
    "input_example.json",
    "input_example.npy",
    "serving_input_example.json",
];

/// Metrics or tags of one version that are taken over.
const MAX_MARKS: usize = 1_000;

/// The tags that are written back here, and so say nothing new.
pub(super) const OWN_TAGS: &str = "bascule.";

/// What came of reading a version.
#[derive(Debug, Clone)]
pub(super) enum Reading {
    Usable(Arc<Generation>),
    /// It stays out. For people, as the end of a sentence that begins with the version.
    Refused(String),
    /// It is tried again with the next look.
    Unread(String),
}

impl Reading {
    pub(super) fn is_usable(&self) -> bool {
        matches!(self, Self::Usable(_))
    }

    /// Whether it need not be read again soon.
    pub(super) fn is_final(&self) -> bool {
        !matches!(self, Self::Unread(_))
    }
}

/// The files that are served.
pub(super) fn served(files: &Files) -> impl Iterator<Item = (&str, &Stamp)> {
    files.iter().map(|(path, stamp)| (path.as_str(), stamp)).filter(|(path, _)| !LEFT_OUT.contains(path))
}

impl MlflowSource {
    pub(super) async fn read_version(&self, key: &VersionKey, said: &wire::ModelVersion) -> Result<Reading, MlflowError> {
        match self.read_generation(key, said).await {
            Ok(Some(generation)) => Ok(Reading::Usable(Arc::new(generation))),
            // Somebody may be about to upload it.
            Ok(None) => Ok(Reading::Unread(format!("has no file {}", mlmodel::FILE))),
            Err(Unusable::Refused(problem)) => Ok(Reading::Refused(problem)),
            Err(Unusable::Failed(error)) => Err(error),
        }
    }

    async fn read_generation(&self, key: &VersionKey, said: &wire::ModelVersion) -> Result<Option<Generation>, Unusable> {
        let artifacts = self.artifacts(key).await?;
        let files = artifacts.list(&format!("the files of {key}")).await?;
        let Some(described) = files.get(mlmodel::FILE) else { return Ok(None) };
        if !(1..=mlmodel::MAX_BYTES as u64).contains(&described.bytes) {
            let problem =
                format!("has a file {} of {} bytes, expected 1 to {}", mlmodel::FILE, described.bytes, mlmodel::MAX_BYTES);
            return Err(Unusable::Refused(problem));
        }
        let what = format!("file `{}` of {key}", mlmodel::FILE);
        let described = artifacts.read_small(&what, mlmodel::FILE, mlmodel::MAX_BYTES).await?;
        let model = mlmodel::parse(&described).map_err(Unusable::Refused)?;
        let (format, entrypoint) = entrypoint(&artifacts, key, &model.flavor, &files).await?;
        let run = self.run(&said.run_id).await?;
        let created = DateTime::from_timestamp_millis(said.creation_timestamp).unwrap_or(DateTime::UNIX_EPOCH);
        let manifest = Manifest { signature: model.signature, ..manifest(key, said, run, created, format, entrypoint, &files) };
        manifest
            .validate()
            .map_err(|error| Unusable::Refused(format!("can't be used: {}", crate::registry::versions::with_causes(&error))))?;
        let digest = digest(key, said, &files);
        self.stamps().insert(key.clone(), Arc::new(files));
        Ok(Some(Generation {
            key: key.clone(),
            digest,
            bytes: manifest.bytes(),
            layout: Layout::Mlflow,
            manifest: Arc::new(manifest),
            tombstoned: false,
            signatures: Vec::new(),
            stored: None,
        }))
    }

    /// The run that made a version, where there is one and it is still there.
    async fn run(&self, id: &str) -> Result<wire::Run, MlflowError> {
        if id.is_empty() {
            return Ok(wire::Run::default());
        }
        match self.client.get::<wire::RunAnswer>("the run of a version", "runs/get", &[("run_id", id)]).await {
            Ok(answer) => Ok(answer.run),
            // Models outlive the runs that made them.
            Err(MlflowError::NotFound { .. } | MlflowError::Status { status: 400, .. } | MlflowError::Denied { .. }) => {
                Ok(wire::Run::default())
            }
            Err(error) => Err(error),
        }
    }
}

/// Format and model file of a flavor.
async fn entrypoint(
    artifacts: &Artifacts,
    key: &VersionKey,
    flavor: &Flavor,
    files: &Files,
) -> Result<(&'static str, String), Unusable> {
    match flavor {
        Flavor::Onnx { file } if files.contains_key(file) => Ok(("onnx", file.clone())),
        Flavor::Onnx { file } => {
            Err(Unusable::Refused(format!("lacks the file {file:?}, where flavors.onnx.data in MLmodel points")))
        }
        Flavor::Torch { data } => {
            let file = mlmodel::torch_file(data, files.keys().map(String::as_str)).map_err(Unusable::Refused)?;
            let stamp = files.get(file).cloned().unwrap_or_default();
            let what = format!("file `{file}` of {key}");
            let failed = |error| Unusable::Failed(MlflowError::malformed(&what, format!("broke off: {error}")));
            let end = stamp.bytes.saturating_sub(mlmodel::TAIL_BYTES)..stamp.bytes;
            let pieces = artifacts.ranged(what.clone(), file, &stamp).read(end).await.map_err(failed)?;
            let tail: Vec<_> = pieces.try_collect().await.map_err(failed)?;
            mlmodel::check_torchscript(&tail.concat()).map_err(Unusable::Refused)?;
            Ok(("torchscript", file.to_owned()))
        }
    }
}

fn manifest(
    key: &VersionKey,
    said: &wire::ModelVersion,
    run: wire::Run,
    created: DateTime<Utc>,
    format: &str,
    entrypoint: String,
    files: &Files,
) -> Manifest {
    let tag = |name: &str| run.data.tags.iter().find(|tag| tag.key == name).map(|tag| tag.value.clone());
    let data = run.inputs.dataset_inputs.first().map(|input| format!("{} {}", input.dataset.name, input.dataset.digest));
    let lineage = Lineage {
        run_id: Some(said.run_id.clone()).filter(|run| !run.is_empty()),
        code: tag("mlflow.source.git.commit"),
        data,
        parent: None,
        extra: [("source".to_owned(), shown_source(&said.source).into())].into(),
    };
    let metrics = run.data.metrics.iter().filter_map(|metric| Some((metric.key.clone(), metric.value.as_f64()?)));
    let tags = said.tags.iter().filter(|tag| !tag.key.starts_with(OWN_TAGS)).map(|tag| (tag.key.clone(), tag.value.clone()));
    let file = |(path, stamp): (&str, &Stamp)| ManifestFile { path: path.to_owned(), sha256: None, bytes: stamp.bytes };
    Manifest {
        schema: MANIFEST_SCHEMA,
        model: key.model.clone(),
        version: key.version,
        format: format.to_owned(),
        entrypoint,
        files: served(files).map(file).collect(),
        signature: None,
        golden: None,
        lineage,
        metrics: metrics.take(MAX_MARKS).collect(),
        tags: tags.take(MAX_MARKS).collect(),
        created,
        publisher: said.user_id.clone(),
        hold: false,
        extra: BTreeMap::new(),
    }
}

/// Names the content: the same where model, version, source and the files' paths and sizes are.
fn digest(key: &VersionKey, said: &wire::ModelVersion, files: &Files) -> Digest {
    let mut digest = DigestBuilder::default();
    digest.field(b"mlflow").field(key.model.as_str().as_bytes()).number(key.version).field(said.source.as_bytes());
    for (path, stamp) in files {
        digest.field(path.as_bytes()).number(stamp.bytes);
    }
    digest.finish()
}

/// A source without what may be a signature that lets others in.
fn shown_source(source: &str) -> String {
    source.split(['?', '#']).next().unwrap_or_default().to_owned()
}
