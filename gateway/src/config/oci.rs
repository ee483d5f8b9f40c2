//! `[oci]`: who asks OCI registries.

use bascule_registry::OciCredentials;

use super::env::Environment;
use super::key::Key;
use super::layers::Layers;
use super::secret::SecretPlace;

pub(super) const USERNAME: Key<Option<SecretPlace>> = Key::new(
    "oci.username",
    || None,
    "where the user name for an OCI registry lies; unset for what `docker login` has left in Docker's config.json",
);
pub(super) const PASSWORD: Key<Option<SecretPlace>> =
    Key::new("oci.password", || None, "where the password or token for an OCI registry lies; goes with oci.username");

/// Who asks OCI registries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OciConfig {
    username: Option<SecretPlace>,
    password: Option<SecretPlace>,
    /// What both stand for, and where else credentials are looked for.
    pub credentials: OciCredentials,
}

impl OciConfig {
    pub(super) fn take(layers: &mut Layers) -> OciConfig {
        let (username, password) = (layers.take(&USERNAME), layers.take(&PASSWORD));
        let message = match (&username, &password) {
            (Some(_), None) => Some("`oci.username` needs `oci.password` beside it"),
            (None, Some(_)) => Some("`oci.password` needs `oci.username` beside it"),
            _ => None,
        };
        if let Some(message) = message {
            let origin = if username.is_some() { layers.origin_of(&USERNAME) } else { layers.origin_of(&PASSWORD) };
            layers.refuse(origin, message);
        }
        OciConfig { username, password, credentials: OciCredentials::default() }
    }

    /// Takes from the environment what the settings name, and where Docker's configuration is.
    pub(super) fn open(&mut self, environment: &Environment, layers: &mut Layers) {
        self.credentials.docker_config = environment.docker_config();
        let (Some(username), Some(password)) = (&self.username, &self.password) else { return };
        let mut open = |key: &Key<Option<SecretPlace>>, name: &str, place: &SecretPlace| {
            let secret = place.open(environment);
            secret.map_err(|problem| layers.refuse(layers.origin_of(key), format!("`{name}`: {problem}"))).ok()
        };
        let (username, password) = (open(&USERNAME, "oci.username", username), open(&PASSWORD, "oci.password", password));
        self.credentials.login = username.zip(password);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Given, load};
    use super::*;

    #[test]
    fn secrets_come_from_where_the_settings_say() {
        let check = |sets: &[&str], variables: &[(&str, &str)]| {
            let given = Given { sets: sets.iter().map(|set| (*set).to_owned()).collect(), ..Given::default() };
            load(&given, &Environment::of(variables)).map(|effective| effective.config.oci.credentials)
        };
        let both = ["oci.username=env:WHO", "oci.password=env:PASS"];
        let credentials = check(&both, &[("WHO", "me"), ("PASS", "hunter2"), ("HOME", "/home/me")]).unwrap();
        assert!(credentials.login.is_some() && !format!("{credentials:?}").contains("hunter2"), "{credentials:?}");
        assert_eq!(credentials.docker_config, Some("/home/me/.docker".into()));
        let elsewhere = check(&[], &[("HOME", "/home/me"), ("DOCKER_CONFIG", "/etc/docker-login")]).unwrap();
        assert_eq!((elsewhere.login, elsewhere.docker_config), (None, Some("/etc/docker-login".into())));
        let refused = |sets: &[&str], part: &str| {
            let error = check(sets, &[("WHO", "me")]).unwrap_err();
            assert!(error.problems.iter().any(|problem| problem.to_string().contains(part)), "{:?}", error.problems);
        };
        refused(&both, "`oci.password`: the variable PASS is not set");
        refused(&both[..1], "needs `oci.password`");
        refused(&both[1..], "needs `oci.username`");
        refused(&["oci.username=env:WHO", "oci.password=hunter2"], "not the secret itself");
    }
}
