//! Who is told of a decision: the registry that the model comes from.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bascule_registry::{Decided, ModelName, Registries, SourceError, WriteBack};

/// Registries that take note of what is decided here.
pub(super) struct Told {
    pub(super) registries: Arc<Registries>,
    /// By what identifies them.
    pub(super) servers: BTreeMap<Arc<str>, Arc<dyn WriteBack>>,
}

#[async_trait]
impl WriteBack for Told {
    async fn tell(&self, model: &ModelName, decided: &Decided) -> Result<(), SourceError> {
        match self.registries.place_of(model).and_then(|place| self.servers.get(&place)) {
            Some(server) => server.tell(model, decided).await,
            // It belongs to a registry that keeps no such names.
            None => Ok(()),
        }
    }
}
