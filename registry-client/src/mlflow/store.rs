//! Opening the store behind a tracking server.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{Error, ObjectStore};
use reqwest::Url;

/// Opens the store that a URL names, with credentials from the environment, and says where in it the URL points.
///
/// # Errors
/// A scheme that is no store, or settings in the environment that can't be used.
pub(super) fn open_store(url: &Url) -> Result<(Arc<dyn ObjectStore>, Path), Error> {
    let path = Path::from_url_path(url.path())?;
    let store: Arc<dyn ObjectStore> = match url.scheme() {
        "s3" | "s3a" => Arc::new(AmazonS3Builder::from_env().with_bucket_name(url.host_str().unwrap_or_default()).build()?),
        "gs" => Arc::new(GoogleCloudStorageBuilder::from_env().with_bucket_name(url.host_str().unwrap_or_default()).build()?),
        "az" => Arc::new(MicrosoftAzureBuilder::from_env().with_container_name(url.host_str().unwrap_or_default()).build()?),
        // container@account.blob.core.windows.net
        "wasb" | "wasbs" | "abfs" | "abfss" => {
            let account = url.host_str().unwrap_or_default().split('.').next().unwrap_or_default();
            let azure = MicrosoftAzureBuilder::from_env().with_account(account).with_container_name(url.username());
            Arc::new(azure.build()?)
        }
        "http" | "https" => {
            let mut root = url.clone();
            root.set_path("");
            Arc::new(HttpBuilder::new().with_url(root).build()?)
        }
        other => {
            let source = format!("{other}:// is no store that can be read from here").into();
            return Err(Error::Generic { store: "store", source });
        }
    };
    Ok((store, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_within_the_store() {
        let check = |url: &str, path: &str| assert_eq!(open_store(&Url::parse(url).unwrap()).unwrap().1.as_ref(), path, "{url}");
        check("s3://bucket/mlflow/1/models/m-1/artifacts", "mlflow/1/models/m-1/artifacts");
        check("wasbs://box@account.blob.core.windows.net/a/b", "a/b");
        check("http://127.0.0.1:1/files/a%20b", "files/a b");
        let refused = open_store(&Url::parse("ftp://host/x").unwrap()).err().unwrap();
        assert!(refused.to_string().contains("ftp"), "{refused}");
    }
}
