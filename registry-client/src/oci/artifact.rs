//! A version as an OCI image manifest: one layer per file, titled with its path, and our own manifest as the config.
//!
//! The titles are ORAS' convention, so what `oras push` writes is read, and what is written here `oras pull` brings. Media types
//! of layers are not looked at: a file is what its title, digest and size say.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::api::IMAGE_MANIFEST;
use crate::digest::Digest;
use crate::manifest::{Lineage, MANIFEST_SCHEMA, MAX_FILES, MAX_MANIFEST_BYTES, Manifest, ManifestFile, guess_format};
use crate::name::{VersionKey, quoted};
use crate::signing::{MAX_SIGNATURES, ManifestSignature, SecretKey};

/// What an artifact of ours says that it is.
pub(super) const ARTIFACT_TYPE: &str = "application/vnd.bascule.model.v1";
/// The media type of our manifest as a config.
pub(super) const CONFIG_TYPE: &str = "application/vnd.bascule.manifest.v1+json";
/// The media type of a file.
const FILE_TYPE: &str = "application/octet-stream";
/// What stands where an artifact has no config or no layer.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const TITLE: &str = "org.opencontainers.image.title";
const CREATED: &str = "org.opencontainers.image.created";
const REVISION: &str = "org.opencontainers.image.revision";
const AUTHORS: &str = "org.opencontainers.image.authors";
/// What comes before the key's id in the name of an annotation that is a signature on the config: key and signature, with a space between.
const SIGNATURE: &str = "vnd.bascule.signature.";
/// How ORAS marks a folder that it has packed.
const UNPACK: &str = "io.deis.oras.content.unpack";

/// An image manifest, as far as it is of interest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImageManifest {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Names a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// A version as its image manifest has it; our own manifest is yet to be read, where there is one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Artifact {
    /// Where our manifest is, and how large.
    pub(super) config: Option<(Digest, u64)>,
    /// The signatures on it, as they were found.
    pub(super) signatures: Vec<ManifestSignature>,
    files: Vec<ManifestFile>,
    created: DateTime<Utc>,
    revision: Option<String>,
    authors: Option<String>,
}

impl Artifact {
    /// Reads and checks an image manifest; the error is the end of a sentence about the version.
    pub(super) fn parse(content: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        let invalid = |error: serde_json::Error| format!("its OCI manifest is not valid: {error}");
        let kind: Kind = serde_json::from_slice(content).map_err(invalid)?;
        if kind.manifests.is_some() {
            return Err("is an index of several manifests, not one artifact".into());
        }
        let image: ImageManifest = serde_json::from_slice(content).map_err(invalid)?;
        if image.schema_version != 2 {
            return Err(format!("its OCI manifest has schema version {}, not 2", image.schema_version));
        }
        let mut files = Vec::new();
        for (number, layer) in image.layers.iter().enumerate() {
            files.extend(layer.file().map_err(|problem| format!("its layer {number} {problem}"))?);
            if files.len() > MAX_FILES {
                return Err(format!("it has more than {MAX_FILES} files"));
            }
        }
        if files.is_empty() {
            return Err("it has no files".into());
        }
        let config = if image.config.media_type == CONFIG_TYPE {
            let digest = image.config.sha256().map_err(|problem| format!("its config {problem}"))?;
            if image.config.size > MAX_MANIFEST_BYTES {
                return Err(format!("its config has {} bytes, the limit is {MAX_MANIFEST_BYTES}", image.config.size));
            }
            Some((digest, image.config.size))
        } else {
            None
        };
        let signatures = image.annotations.iter().filter(|(name, _)| name.starts_with(SIGNATURE));
        let signatures = signatures.filter_map(|(_, text)| text.split_once(' ')).take(MAX_SIGNATURES);
        let signatures =
            signatures.map(|(key, signature)| ManifestSignature { key: key.to_owned(), signature: signature.to_owned() });
        let annotation = |name: &str| image.annotations.get(name).filter(|text| !text.is_empty()).cloned();
        let created = annotation(CREATED).and_then(|text| DateTime::parse_from_rfc3339(&text).ok());
        Ok(Self {
            config,
            signatures: signatures.collect(),
            files,
            created: created.map_or(DateTime::UNIX_EPOCH, |created| created.to_utc()),
            revision: annotation(REVISION),
            authors: annotation(AUTHORS),
        })
    }

    /// The version's manifest, with our own one, where there is one, as it is stored.
    pub(super) fn manifest(self, key: &VersionKey, config: Option<&[u8]>) -> Result<Manifest, String> {
        let Some(config) = config else { return self.made_up(key) };
        let (manifest, _) = Manifest::parse(config).map_err(|error| format!("its config: {error}"))?;
        let by_path = |files: &[ManifestFile]| {
            let files = files.iter().map(|file| (file.path.clone(), (file.sha256, file.bytes)));
            files.collect::<BTreeMap<_, _>>()
        };
        let (said, there) = (by_path(&manifest.files), by_path(&self.files));
        if said.len() != self.files.len() || said != there {
            let differs = |(path, file): &(&String, &_)| there.get(*path) != Some(*file);
            let path = said.iter().find(differs).or_else(|| there.iter().find(|(path, _)| !said.contains_key(*path)));
            let path = path.map_or("a file", |(path, _)| path.as_str());
            return Err(format!("its config and its layers differ over {}", quoted(path)));
        }
        // The tag and the repository say what it is: a version may be tagged anew, and copied to another repository.
        Ok(Manifest { model: key.model.clone(), version: key.version, ..manifest })
    }

    /// What can be said of an artifact that is not of ours.
    fn made_up(self, key: &VersionKey) -> Result<Manifest, String> {
        let (format, entrypoint) = guess_format(self.files.iter().map(|file| file.path.as_str()));
        let manifest = Manifest {
            schema: MANIFEST_SCHEMA,
            model: key.model.clone(),
            version: key.version,
            format: format.to_owned(),
            entrypoint: entrypoint.to_owned(),
            signature: None,
            golden: None,
            lineage: Lineage { code: self.revision, ..Lineage::default() },
            metrics: BTreeMap::new(),
            tags: BTreeMap::new(),
            created: self.created,
            publisher: self.authors.unwrap_or_default(),
            hold: false,
            extra: BTreeMap::new(),
            files: self.files,
        };
        manifest.validate().map_err(|error| error_chain(&error))?;
        Ok(manifest)
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    crate::registry::versions::with_causes(error)
}

impl Descriptor {
    fn sha256(&self) -> Result<Digest, String> {
        let digest = self.digest.strip_prefix("sha256:").and_then(|digest| digest.parse().ok());
        digest.ok_or_else(|| format!("has digest {}, and only sha256 is read", quoted(&self.digest)))
    }

    /// The file that a layer is; `None` for what stands where there is no layer.
    fn file(&self) -> Result<Option<ManifestFile>, String> {
        let Some(title) = self.annotations.get(TITLE) else {
            if self.media_type == EMPTY_TYPE {
                return Ok(None);
            }
            return Err(format!("has no title ({TITLE}), so it is no file: is it a container image?"));
        };
        if self.annotations.get(UNPACK).is_some_and(|packed| packed == "true") {
            return Err(format!("is the folder {}, packed: push its files one by one", quoted(title)));
        }
        crate::name::check_file_path(title).map_err(|error| format!("can't be used: {error}"))?;
        Ok(Some(ManifestFile { path: title.clone(), sha256: Some(self.sha256()?), bytes: self.size }))
    }
}

/// The image manifest that a version is pushed as; its config is our manifest in these bytes, and these keys sign it.
pub(super) fn image_manifest(manifest: &Manifest, config: &[u8], signers: &[SecretKey]) -> Result<Vec<u8>, serde_json::Error> {
    let blob = |media_type: &str, digest: Digest, size: u64| Descriptor {
        media_type: media_type.to_owned(),
        digest: format!("sha256:{digest}"),
        size,
        annotations: BTreeMap::new(),
    };
    let layers = manifest.files.iter().filter_map(|file| {
        let annotations = BTreeMap::from([(TITLE.to_owned(), file.path.clone())]);
        Some(Descriptor { annotations, ..blob(FILE_TYPE, file.sha256?, file.bytes) })
    });
    let created = manifest.created.to_rfc3339_opts(SecondsFormat::Secs, true);
    let mut annotations = BTreeMap::from([(CREATED.to_owned(), created)]);
    annotations.extend(manifest.lineage.code.clone().map(|code| (REVISION.to_owned(), code)));
    annotations.extend(Some(&manifest.publisher).filter(|name| !name.is_empty()).map(|name| (AUTHORS.to_owned(), name.clone())));
    let digest = Digest::of(config);
    annotations.extend(signers.iter().map(|signer| {
        let ManifestSignature { key, signature } = signer.sign(&digest);
        (format!("{SIGNATURE}{}", signer.public().id()), format!("{key} {signature}"))
    }));
    serde_json::to_vec(&ImageManifest {
        schema_version: 2,
        media_type: Some(IMAGE_MANIFEST.to_owned()),
        artifact_type: Some(ARTIFACT_TYPE.to_owned()),
        config: blob(CONFIG_TYPE, digest, config.len() as u64),
        layers: layers.collect(),
        annotations,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::name::ModelName;

    fn key() -> VersionKey {
        VersionKey::new(ModelName::new("digits").unwrap(), 4)
    }

    fn layer(title: &str, content: &[u8]) -> Value {
        json!({"mediaType": "x", "digest": format!("sha256:{}", Digest::of(content)), "size": content.len(),
            "annotations": {TITLE: title}})
    }

    fn pushed(layers: &[Value]) -> Value {
        json!({"schemaVersion": 2, "config": {"mediaType": EMPTY_TYPE, "digest": "sha256:x", "size": 2}, "layers": layers,
            "annotations": {CREATED: "2026-01-02T03:04:05+01:00", REVISION: "abc"}})
    }

    fn read(image: &Value) -> Result<Manifest, String> {
        Artifact::parse(image.to_string().as_bytes())?.manifest(&key(), None)
    }

    #[test]
    fn what_oras_pushes_is_read() {
        let manifest = read(&pushed(&[layer("notes.txt", b"n"), layer("net/classifier.onnx", b"model")])).unwrap();
        assert_eq!((manifest.format.as_str(), manifest.entrypoint.as_str()), ("onnx", "net/classifier.onnx"));
        assert_eq!(manifest.files[1].sha256, Some(Digest::of(b"model")));
        assert_eq!(manifest.created.to_rfc3339(), "2026-01-02T02:04:05+00:00");
        assert_eq!((manifest.key(), manifest.lineage.code.as_deref()), (key(), Some("abc")));
        let (_, read_again) = (manifest.validate().unwrap(), read(&pushed(&[layer("weights.bin", b"w")])).unwrap());
        assert_eq!(read_again.format, crate::manifest::FORMAT_UNKNOWN);
    }

    #[test]
    fn hostile_manifests_are_refused_by_name() {
        let check = |image: Value, part: &str| {
            let problem = read(&image).unwrap_err();
            assert!(problem.contains(part), "{problem}");
        };
        check(json!([]), "not valid");
        check(json!({"schemaVersion": 2, "manifests": []}), "index of several");
        check(json!({"schemaVersion": 1, "config": pushed(&[])["config"], "layers": []}), "schema version 1");
        check(pushed(&[]), "no files");
        check(pushed(&[layer("../../etc/passwd", b"")]), "`.` or `..`");
        check(pushed(&[layer("/etc/passwd", b"")]), "absolute");
        check(pushed(&[layer("a.onnx", b""), layer("a.onnx", b"x")]), "twice");
        check(pushed(&[layer("a", b""), layer("a/b", b"x")]), "both as a file and as a folder");
        let with = |key: &str, value: Value| {
            let mut layer = layer("a.onnx", b"x");
            layer[key] = value;
            pushed(&[layer])
        };
        check(with("digest", json!("sha512:00")), "only sha256");
        check(with("digest", json!("sha256:../x")), "only sha256");
        check(with("size", json!(-1)), "not valid");
        check(with("annotations", json!({})), "is it a container image?");
        check(with("annotations", json!({TITLE: "folder", UNPACK: "true"})), "push its files one by one");
        check(
            pushed(&[
                {
                    let mut huge = layer("a", b"x");
                    huge["size"] = json!(u64::MAX);
                    huge
                },
                layer("b", b"x"),
            ]),
            "2^63-1",
        );
    }

    #[test]
    fn ours_is_read_back_under_the_tag_and_a_config_that_differs_is_refused() {
        let mut manifest = read(&pushed(&[layer("model.onnx", b"model")])).unwrap();
        manifest.metrics.insert("accuracy".into(), 0.9);
        manifest.version = 3;
        let config = serde_json::to_vec_pretty(&manifest).unwrap();
        let signer = SecretKey::generate().unwrap();
        let image = image_manifest(&manifest, &config, std::slice::from_ref(&signer)).unwrap();
        let artifact = Artifact::parse(&image).unwrap();
        assert_eq!(artifact.signatures, [signer.sign(&Digest::of(&config))]);
        assert_eq!(artifact.config, Some((Digest::of(&config), config.len() as u64)));
        assert_eq!(artifact.clone().manifest(&key(), Some(&config)), Ok(Manifest { version: 4, ..manifest.clone() }));
        manifest.files[0].sha256 = Some(Digest::of(b"another"));
        let config = serde_json::to_vec(&manifest).unwrap();
        let problem = artifact.manifest(&key(), Some(&config)).unwrap_err();
        assert!(problem.contains("differ over \"model.onnx\""), "{problem}");
    }
}
