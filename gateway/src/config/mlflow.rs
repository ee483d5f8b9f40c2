//! `[mlflow]`: how an MLflow tracking server is used.

use bascule_registry::{MlflowCredentials, ModelName, Weight};
use serde_json::{Value as Json, json};

use super::env::Environment;
use super::key::Key;
use super::layers::{Layers, Origin};
use super::raw::Raw;
use super::secret::{self, SecretPlace, SecretText};
use super::value::{Value, expected, text};

fn variable(name: &str) -> Option<SecretPlace> {
    Some(SecretPlace::Variable(name.to_owned()))
}

pub(super) const TOKEN: Key<Option<SecretPlace>> = Key::new(
    "mlflow.token",
    || variable("MLFLOW_TRACKING_TOKEN"),
    "the token for an MLflow server; mlflow.username goes before it",
);
pub(super) const USERNAME: Key<Option<SecretPlace>> =
    Key::new("mlflow.username", || variable("MLFLOW_TRACKING_USERNAME"), "the user of an MLflow server");
pub(super) const PASSWORD: Key<Option<SecretPlace>> =
    Key::new("mlflow.password", || variable("MLFLOW_TRACKING_PASSWORD"), "the password of that user");
pub(super) const STABLE_ALIAS: Key<String> = Key::new(
    "mlflow.stable_alias",
    || "champion".to_owned(),
    "the alias in MLflow of the version that is stable; new versions become stable by themselves only where a model lacks it",
)
.checked(alias);
pub(super) const CANDIDATE_ALIAS: Key<String> =
    Key::new("mlflow.candidate_alias", || "challenger".to_owned(), "the alias in MLflow of the version under test").checked(alias);
pub(super) const CANDIDATE_WEIGHT: Key<Weight> =
    Key::new("mlflow.candidate_weight", || Weight(1_000), "the share of the traffic for the version under test").checked(share);
pub(super) const WRITE_BACK: Key<bool> = Key::new(
    "mlflow.write_back",
    || false,
    "a version that is promoted or aborted here has MLflow's aliases moved and tags set on it",
);
pub(super) const WEBHOOK_SECRET: Key<Option<SecretPlace>> = Key::new(
    "mlflow.webhook_secret",
    || None,
    "the secret of MLflow's webhooks to /admin/webhooks/mlflow on the admin port; without it they are refused",
);

#[expect(clippy::ptr_arg, reason = "a check takes what its setting holds")]
fn alias(name: &String) -> Result<(), &'static str> {
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    if is_number || ModelName::new(name).is_err() {
        return Err("expected a name of letters, digits, \".\", \"_\" and \"-\" that is no number");
    }
    Ok(())
}

fn share(weight: &Weight) -> Result<(), &'static str> {
    if (1..10_000).contains(&weight.0) { Ok(()) } else { Err("expected more than 0% and less than 100%") }
}

impl Value for Weight {
    fn schema() -> Json {
        json!({ "type": "string", "description": "a share such as \"10%\"" })
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn read(raw: &Raw) -> Result<Self, String> {
        text(raw).and_then(|text| text.parse().ok()).map_or_else(|| expected("a share such as \"10%\"", raw), Ok)
    }
}

/// An MLflow tracking server.
#[derive(Debug, Clone, PartialEq)]
pub struct MlflowConfig {
    /// `mlflow.token`, or `mlflow.username` and `mlflow.password`.
    pub credentials: MlflowCredentials,
    /// `mlflow.stable_alias`.
    pub stable_alias: String,
    /// `mlflow.candidate_alias`.
    pub candidate_alias: String,
    /// `mlflow.candidate_weight`.
    pub candidate_weight: Weight,
    /// `mlflow.write_back`.
    pub write_back: bool,
    /// `mlflow.webhook_secret`.
    pub webhook_secret: Option<SecretText>,
}

impl MlflowConfig {
    pub(super) fn take(layers: &mut Layers, environment: &Environment) -> MlflowConfig {
        let mut secret = |key: &Key<Option<SecretPlace>>| secret::take(layers, key, environment);
        let (token, username, password) = (secret(&TOKEN), secret(&USERNAME), secret(&PASSWORD));
        let webhook_secret = secret(&WEBHOOK_SECRET);
        let config = MlflowConfig {
            credentials: credentials(layers, token, username, password),
            stable_alias: layers.take(&STABLE_ALIAS),
            candidate_alias: layers.take(&CANDIDATE_ALIAS),
            candidate_weight: layers.take(&CANDIDATE_WEIGHT),
            write_back: layers.take(&WRITE_BACK),
            webhook_secret,
        };
        if config.stable_alias == config.candidate_alias {
            let message = format!("`mlflow.candidate_alias`: {} is `mlflow.stable_alias` too", config.candidate_alias);
            layers.refuse(layers.origin_of(&CANDIDATE_ALIAS), message);
        }
        config
    }
}

fn credentials(
    layers: &mut Layers,
    token: Option<SecretText>,
    username: Option<SecretText>,
    password: Option<SecretText>,
) -> MlflowCredentials {
    let own = |secret: SecretText| secret.expose().to_owned();
    // Half a pair that nobody has set here is of another tool's environment.
    let is_pair = username.is_some() && password.is_some();
    let username = username.filter(|_| is_pair || layers.origin_of(&USERNAME) != Origin::Default);
    let password = password.filter(|_| is_pair || layers.origin_of(&PASSWORD) != Origin::Default);
    match (token, username, password) {
        (_, Some(username), Some(password)) => MlflowCredentials::Basic { username: own(username), password: own(password) },
        (_, Some(_), None) => {
            layers.refuse(layers.origin_of(&USERNAME), "`mlflow.username` is set, and `mlflow.password` is not");
            MlflowCredentials::None
        }
        (_, None, Some(_)) => {
            layers.refuse(layers.origin_of(&PASSWORD), "`mlflow.password` is set, and `mlflow.username` is not");
            MlflowCredentials::None
        }
        (Some(token), None, None) => MlflowCredentials::Token(own(token)),
        (None, None, None) => MlflowCredentials::None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Given, load};
    use super::*;

    fn config(environment: &[(&str, &str)], sets: &[&str]) -> Result<MlflowConfig, Vec<String>> {
        let given = Given { sets: sets.iter().map(|set| (*set).to_owned()).collect(), ..Given::default() };
        let loaded = load(&given, &Environment::of(environment));
        loaded.map(|effective| effective.config.mlflow).map_err(|error| error.problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn credentials_come_from_where_mlflow_has_them() {
        let check = |environment: &[(&str, &str)], expected: MlflowCredentials| {
            assert_eq!(config(environment, &[]).unwrap().credentials, expected);
        };
        check(&[], MlflowCredentials::None);
        check(&[("MLFLOW_TRACKING_TOKEN", "t")], MlflowCredentials::Token("t".into()));
        let (username, password) = (("MLFLOW_TRACKING_USERNAME", "u"), ("MLFLOW_TRACKING_PASSWORD", "p"));
        let basic = MlflowCredentials::Basic { username: "u".into(), password: "p".into() };
        check(&[username, password, ("MLFLOW_TRACKING_TOKEN", "t")], basic);
        // Half a pair that other tools have set is none of ours; half a pair that was given is a mistake.
        check(&[username], MlflowCredentials::None);
        check(&[password], MlflowCredentials::None);
        check(&[username, ("MLFLOW_TRACKING_TOKEN", "t")], MlflowCredentials::Token("t".into()));
        let problems = config(&[("MINE", "u")], &["mlflow.username=env:MINE"]).unwrap_err();
        assert_eq!(problems, ["--set: `mlflow.username` is set, and `mlflow.password` is not"]);
        let problems = config(&[("MINE", "p"), ("MLFLOW_TRACKING_TOKEN", "t")], &["mlflow.password=env:MINE"]).unwrap_err();
        assert_eq!(problems, ["--set: `mlflow.password` is set, and `mlflow.username` is not"]);
        let own = config(&[("MINE", "t")], &["mlflow.token=env:MINE"]).unwrap();
        assert_eq!(own.credentials, MlflowCredentials::Token("t".into()));
        let shown = format!("{own:?}");
        assert!(!shown.contains("\"t\""), "{shown}");
    }

    #[test]
    fn what_is_named_has_to_be_there() {
        let problems = config(&[], &["mlflow.webhook_secret=env:NOBODY"]).unwrap_err();
        assert_eq!(problems, ["--set: `mlflow.webhook_secret`: the variable NOBODY is not set"]);
        let problems = config(&[], &["mlflow.token=hunter2"]).unwrap_err();
        assert!(problems.len() == 1 && !problems[0].contains("hunter2"), "{problems:?}");
    }

    #[test]
    fn aliases_and_weights() {
        for (set, expected) in [
            ("mlflow.stable_alias=7", "no number"),
            ("mlflow.stable_alias=a b", "letters"),
            ("mlflow.stable_alias=challenger", "`mlflow.stable_alias` too"),
            ("mlflow.candidate_weight=0%", "more than 0%"),
            ("mlflow.candidate_weight=100%", "less than 100%"),
            ("mlflow.candidate_weight=10", "a share such as"),
        ] {
            let problems = config(&[], &[set]).unwrap_err();
            assert!(problems.iter().any(|problem| problem.contains(expected)), "{set}: {problems:?}");
        }
        let set = config(&[], &["mlflow.stable_alias=prod", "mlflow.candidate_weight=2.5%"]).unwrap();
        assert_eq!((set.stable_alias.as_str(), set.candidate_weight, set.write_back), ("prod", Weight(250), false));
    }
}
