//! What the environment says about object stores.

use std::collections::BTreeMap;
use std::fmt;

/// The variables that object stores go by, as the ecosystem names them: those that start with `AWS_`, `AZURE_` or `GOOGLE_`, and the
/// few others that instance roles come with. Their values are never shown.
#[derive(Clone, Default)]
pub struct StoreEnvironment(BTreeMap<String, String>);

impl StoreEnvironment {
    /// That of this process.
    #[expect(
        clippy::disallowed_methods,
        reason = "credentials of stores come from the environment, by the names that other tools use"
    )]
    pub fn of_process() -> Self {
        let texts = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        texts
            .filter(|(name, _)| ["AWS_", "AZURE_", "GOOGLE_"].iter().any(|start| name.starts_with(start)) || is_other(name))
            .collect()
    }

    /// The value of a variable that is set to something.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The first of these that is set to something, with its value.
    pub(super) fn first(&self, names: &[&'static str]) -> Option<(&'static str, &str)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    /// All that start so and are set to something, with their names in lower case.
    pub(super) fn starting_with(&self, start: &'static str) -> impl Iterator<Item = (String, &str)> {
        let set = self.0.iter().filter(move |(name, value)| name.starts_with(start) && !value.is_empty());
        set.map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
    }
}

/// Those without one of the usual starts.
fn is_other(name: &str) -> bool {
    ["IDENTITY_ENDPOINT", "SERVICE_ACCOUNT"].contains(&name)
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for StoreEnvironment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for StoreEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
