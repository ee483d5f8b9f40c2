//! Places that a gateway uses: ports, registry, state directory.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use crate::compose;
use crate::config::Config;
use crate::state_dir::{StateDir, StateDirError};

use super::super::gateway::Gateway;
use super::super::listing;
use super::Finding;

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let server = &config.server;
    let running = is_gateway(server.admin).await;
    let mut findings = vec![
        port("HTTP port", "server.http", server.http, running),
        port("gRPC port", "server.grpc", server.grpc, running),
        port("admin port", "server.admin", server.admin, running),
    ];
    findings.push(registry(config).await);
    findings.extend(registries_writable(config));
    findings.push(state(&config.state_dir));
    findings
}

async fn is_gateway(admin: SocketAddr) -> bool {
    match Gateway::at(&format!("http://{admin}")) {
        Ok(gateway) => gateway.get::<serde_json::Value>("config", &[]).await.is_ok(),
        Err(_) => false,
    }
}

fn port(what: &'static str, setting: &str, address: SocketAddr, running: bool) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(what, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && running => {
            Finding::ok(what, format!("{address} is taken, and a gateway runs here"))
        }
        Err(error) => Finding::broken(
            what,
            format!("{address}: {error}"),
            format!("end what listens there, or set {setting} to another address"),
        ),
    }
}

async fn registry(config: &Config) -> Finding {
    let place = config.registry.describe();
    match listing::list(config).await {
        Ok(listing) => {
            let versions: usize = listing.models.values().map(|model| model.versions.len()).sum();
            let found = format!("{place}: {} models, {versions} versions", listing.models.len());
            let problems = listing.problems.len() + listing.models.values().map(|model| model.problems.len()).sum::<usize>();
            match problems {
                0 => Finding::ok("registry", found),
                _ => Finding::warning("registry", format!("{found}, {problems} problems"), "`bascule check` names them"),
            }
        }
        Err(failure) => {
            let only_here = config.registry.all.iter().all(|spec| compose::local_path(&spec.url).is_ok());
            let hint = if only_here {
                "make it, or name another with --registry or registry.url"
            } else {
                "look at the place and at the credentials in the environment, or name another with --registry or registry.url"
            };
            Finding::broken("registry", failure.summary(), hint)
        }
    }
}

/// Whether something can be published from here; nothing is said of what is no directory.
fn registries_writable(config: &Config) -> impl Iterator<Item = Finding> {
    let roots = config.registry.all.iter().filter_map(|spec| compose::local_path(&spec.url).ok());
    roots.filter(|root| root.is_dir()).map(|root| registry_writable(&root))
}

fn registry_writable(root: &Path) -> Finding {
    match tempfile::Builder::new().prefix(".bascule-doctor").tempfile_in(root) {
        Ok(_) => Finding::ok("registry, writing", "possible"),
        Err(error) => Finding::warning(
            "registry, writing",
            error.to_string(),
            "serving needs no more than reading; publish and rollout need permission to write there",
        ),
    }
}

fn state(dir: &Path) -> Finding {
    let what = "state directory";
    if !dir.exists() {
        return Finding::ok(what, format!("{} is made by the first `bascule serve`", dir.display()));
    }
    match StateDir::open(dir) {
        Ok(_) => Finding::ok(what, format!("{} is free and can be written", dir.display())),
        Err(error @ StateDirError::InUse { .. }) => {
            Finding::warning(what, error.to_string(), "a second gateway needs its own: --state-dir")
        }
        Err(error) => Finding::broken(
            what,
            format!("{:#}", anyhow::Error::new(error)),
            "give it to the user that runs the gateway, or set state.dir",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_a_fault_unless_a_gateway_has_it() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(port("HTTP port", "server.http", address, true).health, Health::Ok);
        let fault = port("HTTP port", "server.http", address, false);
        assert_eq!(fault.health, Health::Broken);
        assert!(fault.hint.unwrap().contains("server.http"));
        assert_eq!(port("HTTP port", "server.http", "127.0.0.1:0".parse().unwrap(), false).health, Health::Ok);
    }

    #[test]
    fn a_state_directory_is_not_made_by_looking() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("state");
        assert_eq!(state(&dir).health, Health::Ok);
        assert!(!dir.exists());
        let held = StateDir::open(&dir).unwrap();
        assert_eq!(state(&dir).health, Health::Warning);
        drop(held);
        assert_eq!(state(&dir).health, Health::Ok);
    }
}
