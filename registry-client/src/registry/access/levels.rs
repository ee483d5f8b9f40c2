//! Listing one folder: page by page where the store gives pages, so that each has its time and a large folder may take as long as it
//! takes. All that is bounded is how long nothing comes, how slowly it comes, and how much.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::{DELIMITER, Path};
use object_store::{ListResult, Result};

use super::{LISTED_OBJECT, PATIENCE, Reached, Trouble};

/// No folder of a registry has as many files and folders.
const MAX_ENTRIES: usize = 5_000_000;

impl Reached {
    /// What lies in a folder.
    pub(super) async fn level(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let Some(store) = &self.levels else {
            // One answer, of which nothing is seen before all of it is there.
            return match tokio::time::timeout(PATIENCE, self.inner.list_with_delimiter(prefix)).await {
                Ok(outcome) => outcome.map_err(|error| self.access.explain(error)),
                Err(_) => Err(self.access.error(Trouble::Dripping)),
            };
        };
        let worth = |page: &ListResult| {
            let entries = page.objects.len() + page.common_prefixes.len();
            LISTED_OBJECT.saturating_mul(u32::try_from(entries).unwrap_or(u32::MAX))
        };
        let mut pages = self.pieces(pages(Arc::clone(store), prefix), worth);
        let (mut folders, mut objects) = (BTreeSet::new(), Vec::new());
        while let Some(page) = pages.try_next().await? {
            folders.extend(page.common_prefixes);
            objects.extend(page.objects);
            if folders.len() + objects.len() > MAX_ENTRIES {
                return Err(self.access.error(Trouble::Odd(format!("a folder with more than {MAX_ENTRIES} entries"))));
            }
        }
        Ok(ListResult { common_prefixes: folders.into_iter().collect(), objects, extensions: Default::default() })
    }
}

/// The pages of a listing, each asked for when the one before it is there.
fn pages(store: Arc<dyn PaginatedListStore>, prefix: Option<&Path>) -> BoxStream<'static, Result<ListResult>> {
    let prefix = prefix.filter(|prefix| !prefix.as_ref().is_empty()).map(|prefix| format!("{prefix}{DELIMITER}"));
    // What comes next: the first page, the one after a token, or none.
    type Next = Option<Option<String>>;
    let next = move |next: Next| {
        let (store, prefix) = (Arc::clone(&store), prefix.clone());
        async move {
            let Some(page_token) = next else { return Ok(None) };
            let options = PaginatedListOptions { delimiter: Some(DELIMITER.into()), page_token, ..Default::default() };
            let page = store.list_paginated(prefix.as_deref(), options).await?;
            Ok(Some((page.result, page.page_token.map(Some))))
        }
    };
    futures::stream::try_unfold(Some(None), next).boxed()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use object_store::list::PaginatedListResult;
    use object_store::memory::InMemory;
    use object_store::{ObjectMeta, ObjectStore as _};

    use super::super::Access;
    use super::*;

    /// So many pages of so many objects and one folder, each page after a pause.
    struct Paged {
        pause: Duration,
        pages: usize,
        objects: usize,
    }

    #[async_trait]
    impl PaginatedListStore for Paged {
        async fn list_paginated(&self, prefix: Option<&str>, options: PaginatedListOptions) -> Result<PaginatedListResult> {
            assert_eq!((prefix, options.delimiter.as_deref()), (Some("m/blobs/"), Some("/")));
            tokio::time::sleep(self.pause).await;
            let page: usize = options.page_token.map_or(0, |token| token.parse().unwrap());
            let object = |nth| ObjectMeta {
                location: Path::from(format!("m/blobs/{page}-{nth}")),
                last_modified: chrono::DateTime::UNIX_EPOCH,
                size: 1,
                e_tag: None,
                version: None,
            };
            let result = ListResult {
                common_prefixes: vec![Path::from("m/blobs/folder")],
                objects: (0..self.objects).map(object).collect(),
                extensions: Default::default(),
            };
            let page_token = (page + 1 < self.pages).then(|| (page + 1).to_string());
            Ok(PaginatedListResult { result, page_token })
        }
    }

    async fn listed(pause: u64, pages: usize, objects: usize) -> Result<(usize, usize), String> {
        let access = Access::new("s3://models".to_owned(), "nothing".to_owned(), "the place".to_owned());
        let paged = Paged { pause: Duration::from_secs(pause), pages, objects };
        let reached = Reached::new(Arc::new(InMemory::new()), Some(Arc::new(paged)), Arc::new(access));
        let level = reached.list_with_delimiter(Some(&Path::from("m/blobs"))).await.map_err(|error| error.to_string())?;
        Ok((level.objects.len(), level.common_prefixes.len()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_folder_may_take_as_long_as_it_comes_and_no_longer() {
        // Fifty thousand objects over a slow line: more than four minutes, of which no page takes eight seconds.
        assert_eq!(listed(5, 50, 1_000).await, Ok((50_000, 1)));
        let silent = listed(9, 50, 1_000).await.unwrap_err();
        assert!(silent.contains("no answer within 8 s"), "{silent}");
        let dripping = listed(7, 50, 1).await.unwrap_err();
        assert!(dripping.contains("too slowly"), "{dripping}");
    }
}
