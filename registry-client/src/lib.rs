//! Which versions exist, and verified bytes on disk.
//!
//! A [`VersionSource`] lists versions and brings their files; [`DirectorySource`], [`Registry`] and [`OciRegistry`] are some. A
//! [`PublishTarget`] takes new ones; a [`Registry`] also holds the rollout [`journal`]. [`Cache`] keeps fetched versions on local disk, verified and complete or not
//! at all. What comes from a registry is not trusted: names and manifests are checked once, where they come in.
//!
//! Deliberately absent: tensors and signatures (carried unread), which versions should be loaded, HTTP, threads of our own.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod cache;
mod clock;
pub mod conformance;
mod digest;
mod directory;
pub mod durable;
pub mod journal;
mod listing;
mod log;
mod manifest;
mod mlflow;
mod name;
mod oci;
mod plain;
mod registries;
mod registry;
mod settle;
mod signing;
#[cfg(test)]
mod simulation;
mod source;
mod steering;
#[cfg(test)]
mod testing;
mod transfer;

pub use cache::{Cache, CacheError, Evicted, Lease};
pub use clock::{Clock, ManualClock, SystemClock};
pub use digest::{Digest, DigestError};
pub use directory::{DirectoryOptions, DirectorySource, SETTLE_INTERVAL, Watch};
pub use journal::{
    Entry, JournalError, JournalPage, LocalJournal, Op, Part, Proposal, Rollout, SharedJournal, SharedJournalError, Weight,
    WeightError, deciding_entries,
};
pub use listing::{Cursor, Generation, Layout, ListedModel, Listing};
pub use manifest::{FORMAT_UNKNOWN, Lineage, MANIFEST_SCHEMA, MAX_FILES, Manifest, ManifestError, ManifestFile, format_of};
pub use mlflow::{MlflowCredentials, MlflowOptions, MlflowPlaceError, MlflowSource};
pub use name::{MAX_VERSION, ModelName, NameError, VersionKey, VersionNumber, check_file_path, check_version, parse_version};
pub use oci::{OciCredentials, OciOptions, OciRegistry, Secret};
pub use registries::{NamedSource, Registries};
pub use registry::{
    Finding, GC_GRACE, Garbage, Leftover, PublishError, PublishRequest, PublishTarget, Published, REPAIR_INTERVAL, Registry,
    RegistryError, StoreEnvironment, Survey, Verification, bad_signatures, collect_files, without_secrets,
};
pub use signing::{KeyError, ManifestSignature, PublicKey, SecretKey, Trust, Trusted, Untrusted};
pub use source::{Cause, FetchError, Fetched, FetchedFile, NoProgress, Progress, SourceError, SourceHealth, VersionSource};
pub use steering::{Decided, Steering, SteeringAlias, Verdict, WriteBack};
