//! The serving engine: which versions are loaded, which of them answers a request, and how one takes another's place.
//!
//! A request loads the [`ServingTable`] once, is assigned to a [`Servable`], and is queued or run there. A version lives through
//! the states of [`VersionState`]; the reconciler alone moves it, and the publisher alone writes the table.
//!
//! Deliberately absent: HTTP, gRPC, command lines, ONNX Runtime, libtorch. Concrete runtimes and sources are handed in.

#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod aspire;
mod assign;
mod batch;
mod budget;
mod check;
mod cost;
mod devices;
mod drain;
mod engine;
mod error;
mod flight;
mod histogram;
mod infer;
mod instance;
mod journal;
mod loader;
mod marks;
mod memory;
pub mod meters;
mod nan;
mod persist;
mod plan;
mod reconcile;
mod request;
mod servable;
mod serving;
mod settings;
mod state;
mod stats;
mod status;
mod steering;
mod table;
#[cfg(test)]
mod testing;
mod trial;
mod watchdog;

pub use assign::{BASIS_POINTS, bucket, rollout_seed};
pub use devices::{CrowdedTrial, Devices, Gpu, Gpus, NoGpus};
pub use engine::{Absent, Admit, Engine, EngineOptions, LiveOptions, RetryPolicy, SettingsError, SettingsReader, StartError};
pub use error::{ErrorCode, InferError};
pub use infer::{Routed, Router};
pub use journal::{JournalHome, JournalKeeper, JournalStore, MAX_PAGE_ENTRIES, ModelJournal};
pub use loader::golden::{Asked, AskedInputs, GoldenTensor, MAX_GOLDEN_BYTES, RecordPlan, RecordedOutput, Recording};
pub use loader::try_load;
pub use marks::{Mark, Marks};
pub use memory::{lower_priority, release};
pub use reconcile::MAX_FETCHES;
pub use request::{InferRequest, InferResponse, NamedTensor, RequestedOutput, RouteKey, VersionChoice};
pub use servable::{Servable, ServableSpec, Shown};
pub use serving::{Changes, CommandError, Serving};
pub use settings::{
    Inline, LoadMode, ModelSettings, Reshape, Reshapes, RolloutStrategy, TransitionPolicy, VersionPolicy, WarmupContent,
    WarmupInput, WarmupSample,
};
pub use state::{FailedStep, Failure, IllegalTransition, Outward, Stage, VersionState};
pub use stats::{BatchStats, Phase, Snapshot, Stats};
pub use status::{
    CandidateStatus, DeviceMemory, DrainReceipt, MemoryStatus, ModelStatus, Readiness, RegistryPart, RegistryStatus, Status,
    VersionStatus,
};
pub use table::{Candidate, Publisher, Route, ServingTable, Split, Standing};
pub use trial::{Latency, Trial, TrialFailure, TrialJob, TrialReport, Wanted, examine, record};
