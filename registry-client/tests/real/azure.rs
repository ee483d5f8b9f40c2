//! Registries at `az://`, against azurite.

use std::process::Command;
use std::sync::Arc;

use bascule_registry::conformance::check;
use bascule_registry::{Registry, StoreEnvironment, VersionSource as _};
use base64::Engine as _;
use object_store::ObjectStore;
use object_store::azure::MicrosoftAzureBuilder;
use sha2::{Digest as _, Sha256};

use crate::journals::{check_refused, check_shared};
use crate::layouts::{Ours, Place, Plain};
use crate::s3::told;
use crate::servers::{Server, find_or_skip, free_port, listens};

const ACCOUNT: &str = "tester";
/// Of this account, which only tests have.
const KEY: &str = "b25seS10ZXN0cy1rbm93LWl0";

fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}/{ACCOUNT}")
}

fn environment(port: u16, key: &str) -> StoreEnvironment {
    let endpoint = endpoint(port);
    let variables =
        [("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT), ("AZURE_STORAGE_ACCOUNT_KEY", key), ("AZURE_STORAGE_ENDPOINT", &endpoint)];
    variables.into_iter().collect()
}

/// HMAC-SHA256, as RFC 2104 has it: no client that can make containers is among the dependencies.
fn sign(text: &str) -> String {
    let key = base64::engine::general_purpose::STANDARD.decode(KEY).unwrap();
    let padded = |with: u8| (0..64).map(|index| key.get(index).copied().unwrap_or(0) ^ with).collect::<Vec<_>>();
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(text).finalize();
    base64::engine::general_purpose::STANDARD.encode(Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize())
}

async fn make_container(port: u16, name: &str) {
    let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let headers = format!("x-ms-date:{date}\nx-ms-version:2021-08-06");
    let signed = sign(&format!("PUT\n\n\n\n\n\n\n\n\n\n\n\n{headers}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"));
    let request = reqwest::Client::new()
        .put(format!("{}/{name}?restype=container", endpoint(port)))
        .header("x-ms-date", date)
        .header("x-ms-version", "2021-08-06")
        .header("content-length", "0")
        .header("authorization", format!("SharedKey {ACCOUNT}:{signed}"));
    let answer = request.send().await.unwrap();
    assert!(answer.status().is_success(), "{} {}", answer.status(), answer.text().await.unwrap());
}

#[tokio::test]
#[ignore = "long: needs azurite"]
async fn conformance_on_azurite() {
    let Some(program) = find_or_skip("azurite/node_modules/.bin/azurite-blob") else { return };
    let port = free_port();
    let start = |folder: &std::path::Path| {
        let mut command = Command::new(program);
        command.current_dir(folder).env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"));
        command.args(["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"]);
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
        command
    };
    let server = Server::start(start, || listens(port));
    make_container(port, "models").await;
    let open = |place: &str| Registry::open_in(place, &environment(port, KEY)).unwrap();

    let missing = told(&open("az://no-such-container").list(None).await.unwrap_err());
    assert!(missing.contains("container `no-such-container` does not exist (404 ContainerNotFound"), "{missing}");
    let wrong_key = "d3Jvbmc";
    let wrong = Registry::open_in("az://models/prod", &environment(port, &format!("{wrong_key}="))).unwrap();
    let wrong = told(&wrong.list(None).await.unwrap_err());
    assert!(wrong.contains("az://models/prod refused (403 AuthorizationFailure"), "{wrong}");
    assert!(
        wrong.contains("the account's key from AZURE_STORAGE_ACCOUNT_KEY, account tester, endpoint http://127.0.0.1"),
        "{wrong}"
    );
    assert!(!wrong.contains(wrong_key), "{wrong}");

    check_shared("az://models/decisions", &environment(port, KEY)).await;
    let refused = environment(port, &format!("{wrong_key}="));
    check_refused("az://models/decisions", &refused, &["rollout.journal az://models/decisions", "AuthorizationFailure"], wrong_key)
        .await;

    let store = MicrosoftAzureBuilder::new().with_account(ACCOUNT).with_access_key(KEY).with_endpoint(endpoint(port));
    let store: Arc<dyn ObjectStore> = Arc::new(store.with_container_name("models").with_allow_http(true).build().unwrap());
    let place = |at: &str, prefix: &str| Place::new(open(at), Arc::clone(&store), prefix);
    check(&Ours::new(place("az://models/ours", "ours"), open("az://models/ours"))).await;
    check(&Plain(place("az://models/plain", "plain").ended_by(server))).await;
}
