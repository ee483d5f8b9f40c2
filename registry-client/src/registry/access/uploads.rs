//! Uploads in parts to a store of another machine, with its errors in our words as everywhere else.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Error as StoreError, MultipartId, MultipartUpload, PutMultipartOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::{Access, access_error};

/// Uploads that can be continued.
pub(in crate::registry) struct ReachedUploads {
    inner: Arc<dyn MultipartStore>,
    access: Arc<Access>,
}

impl ReachedUploads {
    pub(in crate::registry) fn new(inner: Arc<dyn MultipartStore>, access: Arc<Access>) -> Self {
        Self { inner, access }
    }
}

#[async_trait]
impl MultipartStore for ReachedUploads {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.access.refuse_writing()?;
        self.inner.create_multipart(path).await.map_err(|error| self.access.explain(error))
    }

    async fn create_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<MultipartId> {
        self.access.refuse_writing()?;
        self.inner.create_multipart_opts(path, options).await.map_err(|error| self.access.explain(error))
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, nth: usize, content: PutPayload) -> Result<PartId> {
        self.access.refuse_writing()?;
        self.inner.put_part(path, id, nth, content).await.map_err(|error| self.access.explain(error))
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.access.refuse_writing()?;
        self.inner.complete_multipart(path, id, parts).await.map_err(|error| self.access.explain(error))
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.access.refuse_writing()?;
        self.inner.abort_multipart(path, id).await.map_err(|error| self.access.explain(error))
    }
}

/// One upload that can't be continued.
pub(super) struct ReachedUpload {
    pub(super) inner: Box<dyn MultipartUpload>,
    pub(super) access: Arc<Access>,
}

impl fmt::Debug for ReachedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReachedUpload").field("access", &self.access).finish_non_exhaustive()
    }
}

#[async_trait]
impl MultipartUpload for ReachedUpload {
    fn put_part(&mut self, content: PutPayload) -> UploadPart {
        let access = Arc::clone(&self.access);
        self.inner.put_part(content).map(move |sent| sent.map_err(|error| access.explain(error))).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await.map_err(|error| self.access.explain(error))
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await.map_err(|error| self.access.explain(error))
    }
}

/// Whether the store says that it does not know an upload, or parts of it, any more.
pub(in crate::registry) fn has_forgotten_upload(error: &StoreError) -> bool {
    const CODES: [&str; 4] = ["NoSuchUpload", "InvalidPart", "InvalidPartOrder", "InvalidBlockList"];
    match error {
        StoreError::NotFound { .. } => true,
        error => access_error(error).and_then(|error| error.code()).is_some_and(|code| CODES.contains(&code)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use object_store::ObjectStoreExt as _;
    use object_store::path::Path;

    use super::has_forgotten_upload;
    use crate::registry::location::{StoreEnvironment, open};
    use crate::registry::versions::with_causes;

    /// A store that answers all requests with this status, and a body that holds a secret.
    fn server(status: &'static str, code: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap_or_default();
                let body = format!("<Error><Code>{code}</Code><Message>No.</Message><Token-0>SECRET</Token-0></Error>");
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).unwrap_or_default();
            }
        });
        endpoint
    }

    #[tokio::test]
    async fn no_error_of_an_upload_shows_more_than_code_and_message() {
        for (status, code, forgotten) in [
            ("403 Forbidden", "AccessDenied", false),
            ("404 Not Found", "NoSuchUpload", true),
            ("409 Conflict", "OperationAborted", false),
            ("412 Precondition Failed", "PreconditionFailed", false),
            ("400 Bad Request", "InvalidPart", true),
            ("400 Bad Request", "EntityTooSmall", false),
            ("404 Not Found", "NoSuchBucket", false),
        ] {
            let endpoint = server(status, code);
            let environment: StoreEnvironment =
                [("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAM7Q"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_ENDPOINT_URL", &*endpoint)]
                    .into_iter()
                    .collect();
            let opened = open("s3://models", &environment).unwrap();
            let uploads = opened.multipart.unwrap();
            let (path, id) = (Path::from("m/blobs/x"), "an upload".to_owned());
            let errors = [
                uploads.create_multipart(&path).await.unwrap_err(),
                uploads.put_part(&path, &id, 0, "part".into()).await.unwrap_err(),
                uploads.complete_multipart(&path, &id, vec![]).await.unwrap_err(),
                uploads.abort_multipart(&path, &id).await.unwrap_err(),
                opened.store.put_multipart(&path).await.unwrap_err(),
                opened.store.get(&path).await.unwrap_err(),
            ];
            for error in errors {
                let text = format!("{} {error:?}", with_causes(&error));
                assert!(text.contains(code) && !text.contains("SECRET"), "{code}: {text}");
                assert_eq!(has_forgotten_upload(&error), forgotten, "{text}");
            }
        }
    }
}
