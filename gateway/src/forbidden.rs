//! A runtime for a format that the configuration does not allow: it says so, and opens nothing.

use std::path::Path;

use bascule_runtime_api::{Footprint, LoadError, LoadOptions, Runtime, Session};

/// Stands where the runtime of the format would.
pub(crate) struct Forbidden {
    pub(crate) name: &'static str,
    pub(crate) format: &'static str,
}

impl Forbidden {
    fn refused<T>(&self) -> Result<T, LoadError> {
        Err(LoadError::Unavailable {
            message: format!("models of the format {} are not allowed here", self.format),
            hint: "load.formats in bascule.toml names the formats that are".to_owned(),
        })
    }
}

impl Runtime for Forbidden {
    fn name(&self) -> &'static str {
        self.name
    }

    fn format(&self) -> &'static str {
        self.format
    }

    fn version(&self) -> Result<String, LoadError> {
        self.refused()
    }

    fn is_optional(&self) -> bool {
        true
    }

    fn estimate(&self, _: &Path, _: &LoadOptions) -> Result<Footprint, LoadError> {
        self.refused()
    }

    fn load(&self, _: &Path, _: &LoadOptions) -> Result<Box<dyn Session>, LoadError> {
        self.refused()
    }
}
