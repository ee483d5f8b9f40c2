//! The request path: one load of the table, one assignment, one run.

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::assign::{BASIS_POINTS, assign, bucket};
use crate::check::check;
use crate::servable::Miss;
use crate::table::{Publisher, Route};
use crate::{ErrorCode, InferError, InferRequest, InferResponse, RouteKey, Servable, ServingTable, VersionChoice, meters};

/// The request path's view of the engine: the table, and nothing that changes it.
#[derive(Debug, Clone)]
pub struct Router {
    table: Arc<ArcSwap<ServingTable>>,
}

/// A route and the table generation that it was read from.
#[derive(Debug, Clone)]
pub struct Routed {
    route: Arc<Route>,
    generation: u64,
}

impl Routed {
    /// The route.
    pub fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// The version that an unversioned request without a candidate gets, or the one whose answer the request wants where it is known by
    /// number: what a body without a description of its tensors is read by.
    pub fn servable(&self, version: &VersionChoice) -> Result<&Arc<Servable>, InferError> {
        assign(&self.route, version, |_| BASIS_POINTS)
    }
}

impl Router {
    /// An empty table, and the only handle that can write it.
    pub fn new() -> (Router, Publisher) {
        let table = Arc::new(ArcSwap::from_pointee(ServingTable::default()));
        (Router { table: Arc::clone(&table) }, Publisher::new(table))
    }

    /// The table as it is now.
    pub fn table(&self) -> Arc<ServingTable> {
        self.table.load_full()
    }

    /// The route of a model: the one load of the table that a request makes.
    pub fn route(&self, model: &str) -> Result<Routed, InferError> {
        let table = self.table.load();
        match table.route(model) {
            Some(route) => {
                route.last_use.touch();
                Ok(Routed { route: Arc::clone(route), generation: table.generation() })
            }
            None => Err(InferError::UnknownModel { model: model.chars().take(128).collect() }),
        }
    }

    /// Refuses a request of which only the head is there where the rest would come in vain: whichever version answers it, by number
    /// where the head says one, has a full queue. A glance at the table and no more: which version answers is decided by the table of
    /// the moment when the request is whole.
    ///
    /// # Errors
    /// [`InferError::Overloaded`].
    pub fn check_room(&self, model: &str, version: Option<u64>) -> Result<(), InferError> {
        let table = self.table.load();
        let Some(route) = table.route(model) else { return Ok(()) };
        let may_answer = |servable: &&Arc<Servable>| version.is_none_or(|version| servable.version() == version);
        match route.servables().find(may_answer) {
            Some(first) if route.servables().filter(may_answer).all(|servable| !servable.has_room()) => Err(first.refuse()),
            _ => Ok(()),
        }
    }

    /// Answers a request by the route that was read for it. Where the version closed meanwhile, a table of a later generation is read
    /// and the request is assigned anew, with the same key.
    pub async fn infer(&self, routed: Routed, request: &InferRequest) -> Result<InferResponse, InferError> {
        let chance = Chance::new();
        let Routed { mut route, mut generation } = routed;
        loop {
            let assigned = assign(&route, &request.version, |seed| place(&request.key, seed, &chance));
            let servable = Arc::clone(assigned.inspect_err(|error| meters::unassigned(&route.model, error.code()))?);
            let checked = check(&servable, request).inspect_err(|error| servable.refused(error.code()))?;
            let ran = servable.run(checked.inputs, checked.rows, request.priority, request.deadline).await;
            match ran {
                Ok(answer) => {
                    let mut outputs: Vec<Option<_>> = answer.outputs.into_iter().map(Some).collect();
                    let outputs = checked
                        .outputs
                        .iter()
                        .filter_map(|index| outputs.get_mut(*index).and_then(Option::take).map(|tensor| (*index, tensor)))
                        .collect();
                    return Ok(InferResponse { servable, outputs });
                }
                Err(Miss::Error(error)) => return Err(error),
                Err(Miss::Closed) => {}
            }
            if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                servable.refused(ErrorCode::DeadlineExceeded);
                return Err(InferError::DeadlineExceeded);
            }
            let model = route.model.clone();
            let table = self.table.load();
            if table.generation() == generation {
                servable.refused(ErrorCode::Internal);
                return Err(InferError::Internal { message: format!("{servable:?} closed while the table still names it") });
            }
            generation = table.generation();
            route = match table.route(model.as_ref()) {
                Some(route) => Arc::clone(route),
                None => return Err(InferError::UnknownModel { model: model.to_string() }),
            };
        }
    }
}

/// The caller's place among the basis points.
fn place(key: &RouteKey, seed: u64, chance: &Chance) -> u32 {
    match key {
        RouteKey::Caller(key) => bucket(key, seed),
        RouteKey::Request => bucket(&chance.0.to_le_bytes(), seed),
    }
}

/// A number of a request's own: the same however often the request is assigned.
struct Chance(u64);

impl Chance {
    fn new() -> Chance {
        thread_local! {
            // A random start and a step that visits every number: no lock, no shared counter.
            static NEXT: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
        }
        Chance(NEXT.with(|next| {
            let chance = next.get();
            next.set(chance.wrapping_add(0x9E37_79B9_7F4A_7C15));
            chance
        }))
    }
}

#[cfg(test)]
mod tests;
