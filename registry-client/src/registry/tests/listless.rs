//! A store that can't list, as a web server that only hands out files.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};

use crate::clock::ManualClock;
use crate::registry::access::lacking;
use crate::registry::{Registry, location};
use crate::testing::{CountingStore, registry_over};

#[derive(Debug)]
pub(super) struct Listless(Arc<CountingStore>);

impl Listless {
    /// A registry that is read through such a store; what is read is counted.
    pub(super) fn registry(objects: &Arc<dyn ObjectStore>, clock: &Arc<ManualClock>) -> (Registry, Arc<CountingStore>) {
        let counting = Arc::new(CountingStore::new(Arc::clone(objects)));
        let store: Arc<dyn ObjectStore> = Arc::new(Self(Arc::clone(&counting)));
        let registry = registry_over(&store).with_clock(Arc::<ManualClock>::clone(clock));
        (Registry { may_list: location::Listing::Unknown, ..registry }, counting)
    }
}

impl std::fmt::Display for Listless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a store that can't list")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Listless {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        futures::stream::once(async { Err(lacking()) }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(lacking())
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
