//! The stores behind a tracking server, opened as registries are, and kept open.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use object_store::ObjectStore;
use object_store::path::Path;
use reqwest::Url;

use crate::registry::versions::with_causes;
use crate::registry::{StoreEnvironment, location};

/// Stores that are kept open. More are most likely a server that makes up places.
const MAX_OPEN: usize = 64;

/// Stores by their places, without any path.
pub(super) struct Stores {
    environment: StoreEnvironment,
    open: Mutex<BTreeMap<String, Arc<dyn ObjectStore>>>,
}

impl Stores {
    pub(super) fn new(environment: StoreEnvironment) -> Self {
        Self { environment, open: Mutex::default() }
    }

    /// The store that a URL names, and where in it the URL points.
    ///
    /// # Errors
    /// What is wrong with the place or with the settings for it, for people, as the end of a sentence that begins with the place.
    pub(super) fn open(&self, url: &Url) -> Result<(Arc<dyn ObjectStore>, Path), String> {
        let path = Path::from_url_path(url.path()).map_err(|error| format!("has a path that no object can have: {error}"))?;
        // Other names of the same stores.
        let scheme = match url.scheme() {
            "wasb" | "wasbs" => "abfss",
            scheme => scheme,
        };
        let rest = url.as_str().split_once("://").map_or("", |(_, rest)| rest);
        let place = format!("{scheme}://{}", rest.split(['/', '?', '#']).next().unwrap_or_default());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&place) {
            return Ok((Arc::clone(store), path));
        }
        let opened = location::open(&place, &self.environment);
        let store = opened.map_err(|error| format!("can't be opened: {}", with_causes(&error)))?.store;
        if open.len() >= MAX_OPEN {
            open.clear();
        }
        open.insert(place, Arc::clone(&store));
        Ok((store, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores() -> Stores {
        let environment = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "hunter2")];
        Stores::new(environment.into_iter().collect())
    }

    #[test]
    fn the_path_within_the_store() {
        let stores = stores();
        let check = |url: &str, path: &str| {
            assert_eq!(stores.open(&Url::parse(url).unwrap()).unwrap().1.as_ref(), path, "{url}");
        };
        check("s3://bucket/mlflow/1/models/m-1/artifacts", "mlflow/1/models/m-1/artifacts");
        check("wasbs://box@account.blob.core.windows.net/a/b", "a/b");
        check("http://127.0.0.1:1/files/a%20b?x", "files/a b");
    }

    #[test]
    fn a_store_is_opened_once() {
        let stores = stores();
        let open = |url: &str| stores.open(&Url::parse(url).unwrap()).unwrap().0;
        assert!(Arc::ptr_eq(&open("s3://bucket/a"), &open("s3://bucket/b/c")));
        assert!(!Arc::ptr_eq(&open("s3://bucket/a"), &open("s3://other/a")));
        for number in 0..2 * MAX_OPEN {
            open(&format!("s3://bucket{number}/a"));
        }
        assert!(stores.open.lock().unwrap().len() <= MAX_OPEN);
    }

    #[test]
    fn a_place_that_cannot_be_opened_says_why() {
        let half = Stores::new([("AWS_ACCESS_KEY_ID", "key")].into_iter().collect());
        for (stores, url, expected) in [
            (stores(), "ftp://host/x", "ftp:// are not supported"),
            (stores(), "az://box/x", "AZURE_STORAGE_ACCOUNT_NAME"),
            (stores(), "https://me:hunter2@host/x", "a name or a password"),
            (half, "s3://bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ] {
            let refused = stores.open(&Url::parse(url).unwrap()).err().unwrap();
            assert!(refused.contains(expected) && !refused.contains("hunter2"), "{url}: {refused}");
        }
    }
}
