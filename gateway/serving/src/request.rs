//! A request and its answer, free of any protocol.

use std::sync::Arc;
use std::time::Instant;

use bascule_registry::VersionNumber;
use bascule_runtime_api::Tensor;
use smallvec::SmallVec;

use crate::Servable;

/// Which version a caller wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum VersionChoice {
    /// Whatever the route gives: the split of stable and candidate.
    #[default]
    Split,
    /// This one, whatever the split.
    Number(VersionNumber),
    /// What the alias points at.
    Alias(String),
}

/// What decides which side of a split a caller is on. The same key stays on the same side while the weight only grows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RouteKey {
    /// Each request for itself.
    #[default]
    Request,
    /// The caller's own key.
    Caller(Arc<[u8]>),
}

/// A tensor and the name that the caller gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTensor {
    /// As in the request.
    pub name: String,
    /// The contents.
    pub tensor: Tensor,
}

/// An output that the caller asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedOutput {
    /// As in the request.
    pub name: String,
}

/// One request, decoded.
#[derive(Debug, Clone, Default)]
pub struct InferRequest {
    /// Which version.
    pub version: VersionChoice,
    /// Which side of a split.
    pub key: RouteKey,
    /// The inputs, in the caller's order.
    pub inputs: SmallVec<[NamedTensor; 1]>,
    /// The outputs asked for, in the order of the answer; empty for all.
    pub outputs: SmallVec<[RequestedOutput; 1]>,
    /// 1 is the highest; 0 stands for the model's default.
    pub priority: u64,
    /// When nobody waits for the answer any more.
    pub deadline: Option<Instant>,
}

/// The answer, and what computed it.
#[derive(Debug, Clone)]
pub struct InferResponse {
    /// The version that computed every output.
    pub servable: Arc<Servable>,
    /// Position in the servable's signature and contents, in the order asked for.
    pub outputs: SmallVec<[(usize, Tensor); 1]>,
}
