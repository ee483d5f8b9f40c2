//! Opening stores that other machines hold, by the variables that their users have set for other tools already.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientOptions, HeaderValue, ObjectStore, RetryConfig};

use super::StoreEnvironment;
use crate::registry::access::Access;

/// A peer that can't be reached at all is found out within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that has gone quiet in the middle of a request is given up after this time. How long it may take to begin with its answer is
/// bounded more tightly by [`crate::registry::access::Reached`].
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Nothing is tried again once this much time has passed: whoever polls will come back.
const RETRY_TIMEOUT: Duration = Duration::from_secs(4);
/// The largest file of credentials that is looked into.
const MAX_CREDENTIALS_BYTES: u64 = 1 << 20;

/// A store, and how it was opened.
pub(super) struct Store {
    pub(super) objects: Arc<dyn ObjectStore>,
    /// The same, where it lists folders in pages.
    pub(super) levels: Option<Arc<dyn PaginatedListStore>>,
    /// The same, where uploads in parts can be continued.
    pub(super) multipart: Option<Arc<dyn MultipartStore>>,
    pub(super) access: Access,
}

impl Store {
    fn new(store: impl ObjectStore + MultipartStore + PaginatedListStore, access: Access) -> Self {
        let store = Arc::new(store);
        Self { objects: Arc::clone(&store) as _, levels: Some(Arc::clone(&store) as _), multipart: Some(store), access }
    }
}

/// The error says what is wrong, as the end of a sentence that names the place.
pub(super) type Outcome = Result<Store, String>;

fn client() -> ClientOptions {
    // Large files take as long as they take: silence is bounded, not the whole transfer.
    ClientOptions::new()
        .with_user_agent(HeaderValue::from_static(concat!("bascule/", env!("CARGO_PKG_VERSION"))))
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_read_timeout(READ_TIMEOUT)
        .with_timeout_disabled()
}

fn retry() -> RetryConfig {
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 };
    RetryConfig { backoff, max_retries: 3, retry_timeout: RETRY_TIMEOUT }
}

/// Whoever writes an endpoint without TLS wants none.
fn is_plain_http(endpoint: Option<&str>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("http://")))
}

/// An endpoint without whatever else its URL may hold.
fn shown(endpoint: &str) -> String {
    let parsed = reqwest::Url::parse(endpoint).ok();
    parsed.map_or_else(|| "an endpoint that is not a URL".to_owned(), |url| url.origin().ascii_serialization())
}

/// Enough of a key's name to recognise it. Names of keys are no secrets; they are shortened all the same.
fn masked(key: &str) -> String {
    let chars: Vec<_> = key.chars().collect();
    match chars.as_slice() {
        [a, b, c, d, .., y, z] if chars.len() >= 12 => format!("{a}{b}{c}{d}…{y}{z}"),
        _ => "…".to_owned(),
    }
}

/// `s3://bucket`: Amazon's, or any that speaks its protocol.
pub(super) fn s3(bucket: &str, place: String, environment: &StoreEnvironment) -> Outcome {
    for (one, other) in [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")] {
        if environment.get(one).is_some() && environment.get(other).is_none() {
            return Err(format!("needs {other} beside {one}"));
        }
    }
    let mut builder = AmazonS3Builder::new().with_client_options(client()).with_retry(retry());
    for (name, value) in environment.starting_with("AWS_") {
        if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let endpoint = environment.first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
    if is_plain_http(endpoint.map(|(_, url)| url)) {
        builder = builder.with_allow_http(true);
    }
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
    let endpoint = endpoint.map_or_else(|| format!("https://s3.{region}.amazonaws.com"), |(_, url)| shown(url));
    let tried = format!("{}, region {region}, endpoint {endpoint}", aws_credentials(environment));
    let store = builder.with_bucket_name(bucket).build().map_err(|error| format!("can't be opened: {error}"))?;
    Ok(Store::new(store, Access::new(place, tried, format!("bucket `{bucket}`"))))
}

/// What will be tried, in the order in which the store looks for credentials.
fn aws_credentials(environment: &StoreEnvironment) -> String {
    let set = |name| environment.get(name).is_some();
    if environment.get("AWS_SKIP_SIGNATURE").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return "no credentials, as AWS_SKIP_SIGNATURE says".to_owned();
    }
    if let Some(key) = environment.get("AWS_ACCESS_KEY_ID") {
        let token = environment.first(&["AWS_SESSION_TOKEN", "AWS_TOKEN"]);
        let token = token.map(|(name, _)| format!(" with the session token from {name}")).unwrap_or_default();
        return format!("the access key {} from AWS_ACCESS_KEY_ID{token}", masked(key));
    }
    if let (Some(role), true) = (environment.get("AWS_ROLE_ARN"), set("AWS_WEB_IDENTITY_TOKEN_FILE")) {
        return format!("the role {role} from AWS_ROLE_ARN with the token that AWS_WEB_IDENTITY_TOKEN_FILE names");
    }
    if set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        return "the container's credentials at AWS_CONTAINER_CREDENTIALS_RELATIVE_URI".to_owned();
    }
    if set("AWS_CONTAINER_CREDENTIALS_FULL_URI") && set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        return "the container's credentials at AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned();
    }
    let profile = if set("AWS_PROFILE") { "; AWS_PROFILE is set, but profiles are not read: export their keys" } else { "" };
    format!(
        "the instance's role by its metadata service, since there is no key in AWS_ACCESS_KEY_ID, no web identity in AWS_ROLE_ARN and \
         AWS_WEB_IDENTITY_TOKEN_FILE and no container's in AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or \
         AWS_CONTAINER_CREDENTIALS_FULL_URI{profile}"
    )
}

/// `gs://bucket`.
pub(super) fn gcs(bucket: &str, place: String, environment: &StoreEnvironment) -> Outcome {
    let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client()).with_retry(retry());
    if let Some(path) = environment.get("SERVICE_ACCOUNT") {
        builder = builder.with_service_account_path(path);
    }
    for (name, value) in environment.starting_with("GOOGLE_") {
        if let Ok(key) = name.parse::<GoogleConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    const FILES: [&str; 4] =
        ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"];
    let file = environment.first(&FILES);
    let key = environment.get("GOOGLE_SERVICE_ACCOUNT_KEY");
    let in_file = match file {
        Some((name, path)) => base_url(&read_credentials(path).map_err(|why| format!("needs the file that {name} names: {why}"))?),
        None => key.and_then(base_url),
    };
    let base_url = environment.get("GOOGLE_BASE_URL").map(str::to_owned).or(in_file);
    if is_plain_http(base_url.as_deref()) {
        builder = builder.with_config(GoogleConfigKey::Client(object_store::ClientConfigKey::AllowHttp), "true");
    }
    let credentials = match (environment.get("GOOGLE_BEARER_TOKEN"), file, key) {
        (Some(_), _, _) => "the token from GOOGLE_BEARER_TOKEN".to_owned(),
        (_, Some((name, path)), _) => format!("the credentials in {path} from {name}"),
        (_, None, Some(_)) => "the service account from GOOGLE_SERVICE_ACCOUNT_KEY".to_owned(),
        _ => "the user's application default credentials, then the instance's account by its metadata service, since neither \
              GOOGLE_APPLICATION_CREDENTIALS nor GOOGLE_SERVICE_ACCOUNT names a file"
            .to_owned(),
    };
    let endpoint = base_url.as_deref().map_or_else(|| "https://storage.googleapis.com".to_owned(), shown);
    // What is wrong with credentials may quote them.
    let unusable = |_| format!("can't be opened with {credentials}: they are not those of a service account or a user");
    let store = builder.with_bucket_name(bucket).build().map_err(unusable)?;
    Ok(Store::new(store, Access::new(place, format!("{credentials}, endpoint {endpoint}"), format!("bucket `{bucket}`"))))
}

fn read_credentials(path: &str) -> Result<String, std::io::Error> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_CREDENTIALS_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Where the account's file says that its buckets are.
fn base_url(credentials: &str) -> Option<String> {
    let parsed: serde_json::Value = serde_json::from_str(credentials).ok()?;
    Some(parsed.get("gcs_base_url")?.as_str()?.to_owned())
}

/// `az://container`, or `abfss://container@account.dfs.core.windows.net`.
pub(super) fn azure(scheme: &str, authority: &str, place: String, environment: &StoreEnvironment) -> Outcome {
    let mut builder = MicrosoftAzureBuilder::new().with_client_options(client()).with_retry(retry());
    if let Some(endpoint) = environment.get("IDENTITY_ENDPOINT") {
        builder = builder.with_msi_endpoint(endpoint);
    }
    for (name, value) in environment.starting_with("AZURE_") {
        if let Ok(key) = name.parse::<AzureConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let endpoint = environment.first(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]).map(|(_, url)| url);
    if is_plain_http(endpoint) {
        builder = builder.with_allow_http(true);
    }
    let (container, host) = authority.split_once('@').map_or((authority, None), |(container, host)| (container, Some(host)));
    let in_place = host.and_then(|host| host.split('.').next()).map(str::to_owned);
    let account = in_place.or_else(|| builder.get_config_value(&AzureConfigKey::AccountName));
    let emulated = environment.get("AZURE_STORAGE_USE_EMULATOR").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let account = match (account, emulated) {
        (Some(account), _) => account,
        (None, true) => "devstoreaccount1".to_owned(),
        (None, false) => return Err("needs the name of the storage account in AZURE_STORAGE_ACCOUNT_NAME".to_owned()),
    };
    let shown_endpoint = match endpoint {
        Some(endpoint) => shown(endpoint),
        None if emulated => "that of the emulator".to_owned(),
        None => format!("https://{account}.blob.core.windows.net"),
    };
    let tried = format!("{}, account {account}, endpoint {shown_endpoint}", azure_credentials(environment));
    let builder = match host {
        Some(_) => builder.with_url(format!("{scheme}://{authority}")),
        None => builder.with_container_name(container),
    };
    let store = builder.build().map_err(|error| format!("can't be opened: {error}"))?;
    Ok(Store::new(store, Access::new(place, tried, format!("container `{container}`"))))
}

/// What will be tried, in the order in which the store looks for credentials.
fn azure_credentials(environment: &StoreEnvironment) -> String {
    let set = |name| environment.get(name).is_some();
    let skip = environment.get("AZURE_SKIP_SIGNATURE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if skip {
        return "no credentials, as AZURE_SKIP_SIGNATURE says".to_owned();
    }
    if set("AZURE_STORAGE_TOKEN") {
        return "the token from AZURE_STORAGE_TOKEN".to_owned();
    }
    if let Some((name, _)) =
        environment.first(&["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY"])
    {
        return format!("the account's key from {name}");
    }
    let client = environment.first(&["AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID"]);
    if let Some((name, id)) = client {
        if set("AZURE_FEDERATED_TOKEN_FILE") {
            return format!("the workload identity {id} from {name} with the token that AZURE_FEDERATED_TOKEN_FILE names");
        }
        if let Some((secret, _)) = environment.first(&["AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET"]) {
            return format!("the client {id} from {name} with the secret from {secret}");
        }
    }
    if let Some((name, _)) = environment.first(&["AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN"]) {
        return format!("the shared access signature from {name}");
    }
    if environment.get("AZURE_STORAGE_USE_EMULATOR").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return "the emulator's well-known key".to_owned();
    }
    "the machine's managed identity by its metadata service, since there is no key in AZURE_STORAGE_ACCOUNT_KEY, no client in \
     AZURE_CLIENT_ID and no signature in AZURE_STORAGE_SAS_TOKEN"
        .to_owned()
}

/// A web server, from which nothing but reading is expected. `origin` has neither path nor credentials.
pub(super) fn http(origin: &str, place: String) -> Outcome {
    // The store puts nothing away of the paths that a listing names, so it begins at the server's root.
    let options = client().with_allow_http(is_plain_http(Some(origin)));
    let store = HttpBuilder::new().with_url(origin).with_client_options(options).with_retry(retry()).build();
    let store = store.map_err(|error| format!("can't be opened: {error}"))?;
    let access = Access::new(place, format!("no credentials, endpoint {origin}"), "the place".to_owned());
    Ok(Store { objects: Arc::new(store), levels: None, multipart: None, access: access.read_only() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> StoreEnvironment {
        variables.iter().copied().collect()
    }

    #[test]
    fn what_is_tried_is_told_without_secrets() {
        let tried = |variables: &[(&str, &str)]| {
            s3("models", "s3://models".to_owned(), &environment(variables)).map(|store| store.access.tried().to_owned())
        };
        let keys = [("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAM7Q"), ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")];
        let told = tried(
            &[&keys[..], &[("AWS_ENDPOINT_URL", "http://user:pass@127.0.0.1:9/x?y=z"), ("AWS_REGION", "eu-west-1")]].concat(),
        );
        assert_eq!(told.unwrap(), "the access key AKIA…7Q from AWS_ACCESS_KEY_ID, region eu-west-1, endpoint http://127.0.0.1:9");
        assert_eq!(tried(&keys[..1]).unwrap_err(), "needs AWS_SECRET_ACCESS_KEY beside AWS_ACCESS_KEY_ID");
        assert_eq!(tried(&keys[1..]).unwrap_err(), "needs AWS_ACCESS_KEY_ID beside AWS_SECRET_ACCESS_KEY");
        let nothing = tried(&[("AWS_PROFILE", "work")]).unwrap();
        for part in [
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "metadata",
            "AWS_PROFILE is set",
        ] {
            assert!(nothing.contains(part), "{nothing} should name {part}");
        }
        let role = tried(&[("AWS_ROLE_ARN", "arn:aws:iam::1:role/x"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/token")]).unwrap();
        assert!(role.starts_with("the role arn:aws:iam::1:role/x"), "{role}");
    }

    #[test]
    fn stores_of_azure_and_google_name_what_they_need() {
        let azure = |variables: &[(&str, &str)]| azure("az", "models", "az://models".to_owned(), &environment(variables));
        assert!(azure(&[]).err().unwrap().contains("AZURE_STORAGE_ACCOUNT_NAME"));
        let Store { access, .. } =
            azure(&[("AZURE_STORAGE_ACCOUNT_NAME", "me"), ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")]).unwrap();
        assert_eq!(
            access.tried(),
            "the account's key from AZURE_STORAGE_ACCOUNT_KEY, account me, endpoint https://me.blob.core.windows.net"
        );
        let Store { access, .. } = azure(&[("AZURE_STORAGE_ACCOUNT_NAME", "me")]).unwrap();
        assert!(access.tried().contains("managed identity"), "{}", access.tried());
        let gone = gcs("models", "gs://models".to_owned(), &environment(&[("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")]));
        assert!(gone.err().unwrap().contains("GOOGLE_APPLICATION_CREDENTIALS"));
        let secret = r#"{"private_key":"SECRET","private_key_id":"","client_email":""}"#;
        let wrong = gcs("models", "gs://models".to_owned(), &environment(&[("GOOGLE_SERVICE_ACCOUNT_KEY", secret)])).err().unwrap();
        assert!(wrong.contains("GOOGLE_SERVICE_ACCOUNT_KEY") && !wrong.contains("SECRET"), "{wrong}");
    }

    #[test]
    fn the_environment_is_shown_without_its_values() {
        let shown = format!("{:?}", environment(&[("AWS_SECRET_ACCESS_KEY", "hidden")]));
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hidden"), "{shown}");
    }
}
