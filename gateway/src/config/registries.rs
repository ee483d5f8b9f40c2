//! `[[registry]]`: several registries, each with a name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bascule_serving::Absent;

use super::fields::Fields;
use super::key::Key;
use super::layers::{Layers, Origin};
use super::raw::{Located, Raw};
use super::settings::not_zero;
use super::trust::TrustedKey;
use super::value::{Place, Value};

pub(super) const URL: Key<Place> =
    Key::new("registry.url", || Place("./models".to_owned()), "the registry or repository that is served");
pub(super) const POLL_INTERVAL: Key<Duration> =
    Key::new("registry.poll_interval", || Duration::from_secs(2), "time between two looks at the registry")
        .live()
        .checked(not_zero);
pub(super) const SETTLE_INTERVAL: Key<Duration> = Key::new(
    "registry.settle_interval",
    || Duration::from_secs(1),
    "how long files of a plain version must keep size and time before they count",
);
pub(super) const ABSENT: Key<Absent> =
    Key::new("registry.absent", || Absent::Keep, "what happens to a version whose directory is deleted").live();
pub(super) const TRUST: Key<Vec<TrustedKey>> = Key::new(
    "registry.trust",
    Vec::new,
    "public keys that versions have to be signed by, or files with some (\"file:keys.pub\"); empty for versions that nobody signs",
)
.live();

/// What exists, and how it is looked for.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each field is the setting of the same name, which has its help text above")]
pub struct RegistryConfig {
    /// All of them; one at the least.
    pub all: Vec<RegistrySpec>,
    pub poll_interval: Duration,
    pub absent: Absent,
    pub trust: Vec<TrustedKey>,
}

impl RegistryConfig {
    /// `[registry]`, or the list `[[registry]]`.
    pub(super) fn take(layers: &mut Layers) -> RegistryConfig {
        let written = layers.take_registries();
        let (url, settle_interval) = (layers.take(&URL), layers.take(&SETTLE_INTERVAL));
        let origin = layers.origin_of(&URL);
        let (written, place) = written.unwrap_or((Vec::new(), Origin::Default));
        let all = choose(&written, &url, &origin, settle_interval);
        if all.iter().any(|spec| spec.settle_interval != settle_interval) {
            // Shown with their names, so that a change of one is seen.
            let shown = all.iter().map(|spec| (spec.name.as_deref().unwrap_or_default(), spec.settle_interval.show()));
            let shown = shown.map(|(name, interval)| format!("{name}={interval}")).collect::<Vec<_>>().join(",");
            layers.show_as(&SETTLE_INTERVAL, shown, place.clone());
        }
        if all.iter().any(|spec| spec.name.is_some()) {
            let shown = all.iter().map(|spec| format!("{}={}", spec.name.as_deref().unwrap_or_default(), spec.url.shown()));
            let shown = shown.collect::<Vec<_>>().join(",");
            layers.show_as(&URL, shown, if matches!(origin, Origin::Default) { place } else { origin });
        }
        RegistryConfig { all, poll_interval: layers.take(&POLL_INTERVAL), absent: layers.take(&ABSENT), trust: layers.take(&TRUST) }
    }

    /// The registry that a command works on, where the configuration leaves no doubt.
    ///
    /// # Errors
    /// Several are configured: their names.
    pub fn only(&self) -> Result<&RegistrySpec, String> {
        match self.all.as_slice() {
            [only] => Ok(only),
            several => {
                let names: Vec<_> = several.iter().filter_map(|spec| spec.name.as_deref()).collect();
                Err(format!("several registries are configured: say which one with --registry {}", names.join("|")))
            }
        }
    }

    /// All of them for people.
    pub fn describe(&self) -> String {
        self.all.iter().map(|spec| spec.url.0.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// One registry of several, or the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrySpec {
    /// What users call it; nothing for the only one.
    pub name: Option<String>,
    /// Where it is.
    pub url: Place,
    /// How long files of a plain version must keep size and time before they count.
    pub settle_interval: Duration,
}

/// One entry as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    name: String,
    url: Place,
    settle_interval: Option<Duration>,
}

/// What one entry may say and counts for all: two looks at different times would be two engines.
const OF_ALL: [&str; 3] = ["poll_interval", "absent", "trust"];

/// Reads the list, and hands on what counts for all registries.
pub(crate) fn read(items: Vec<Located>, path: &Arc<Path>, layers: &mut Layers) -> Vec<Written> {
    let mut written: Vec<Written> = Vec::new();
    let mut shared: Vec<(&str, Located)> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let origin = || Origin::File { path: Arc::clone(path), line: item.line };
        let Raw::Table(mut table) = item.raw.clone() else {
            layers.refuse(origin(), format!("`registry`: expected [[registry]] tables, got {} among them", item.raw));
            continue;
        };
        for key in OF_ALL {
            let Some(given) = table.remove(key) else { continue };
            match shared.iter().find(|(known, _)| *known == key) {
                Some((_, first)) if first.raw != given.raw => {
                    let problem =
                        format!("`registry[{index}].{key}`: counts for every registry, and another one says {}", first.raw);
                    layers.refuse(Origin::File { path: Arc::clone(path), line: given.line }, problem);
                }
                Some(_) => {}
                None => shared.push((key, given)),
            }
        }
        let mut problems = Vec::new();
        let mut fields = Fields::new("bascule.toml", &format!("registry[{index}]."), table, &mut problems);
        let name = fields.need::<String>("name", item.line);
        let url = fields.need::<Place>("url", item.line);
        let settle_interval = fields.take::<Duration>("settle_interval");
        fields.refuse_rest();
        if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
            fields.refuse("name", item.line, format!("expected letters, digits, `.`, `_` and `-`, got {name:?}"));
        }
        if let Some(name) = name.as_ref().filter(|name| written.iter().any(|other| other.name == **name)) {
            fields.refuse("name", item.line, format!("{name:?} is the name of another registry"));
        }
        if let Some(url) = url.as_ref().filter(|url| written.iter().any(|other| other.url == located(url, path))) {
            fields.refuse("url", item.line, format!("{:?} is another registry's", url.shown()));
        }
        for problem in problems {
            // The file and the line are said by the origin.
            let (place, text) = problem.split_once(": ").unwrap_or(("", &problem));
            let line = place.rsplit(':').next().and_then(|line| line.parse().ok()).unwrap_or(item.line);
            layers.refuse(Origin::File { path: Arc::clone(path), line }, text.to_owned());
        }
        if let (Some(name), Some(url)) = (name, url) {
            written.push(Written { name, url: located(&url, path), settle_interval });
        }
    }
    for (key, Located { raw, line }) in shared {
        layers.give_raw(&format!("registry.{key}"), raw, Origin::File { path: Arc::clone(path), line });
    }
    written
}

/// A relative path in a file is relative to the file's folder.
fn located(url: &Place, path: &Path) -> Place {
    match path.parent().filter(|dir| *dir != Path::new("")) {
        Some(dir) => url.clone().relative_to(dir),
        None => url.clone(),
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The registries that are used: those of the file, or the one that a flag or a variable names, by its name in the file or its place.
pub(crate) fn choose(written: &[Written], url: &Place, origin: &Origin, settle_interval: Duration) -> Vec<RegistrySpec> {
    let spec = |written: &Written| RegistrySpec {
        name: Some(written.name.clone()),
        url: written.url.clone(),
        settle_interval: written.settle_interval.unwrap_or(settle_interval),
    };
    if matches!(origin, Origin::Default) && !written.is_empty() {
        return written.iter().map(spec).collect();
    }
    if let Some(named) = written.iter().find(|written| written.name == url.0) {
        return vec![spec(named)];
    }
    vec![RegistrySpec { name: None, url: url.clone(), settle_interval }]
}

#[cfg(test)]
mod tests {
    use super::super::env::Environment;
    use super::super::{Effective, Given, load};
    use super::*;

    fn read(text: &str, registry: Option<&str>) -> Result<Effective, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bascule.toml");
        std::fs::write(&path, text).unwrap();
        let flags = registry.map(|registry| ("registry.url", "--registry", registry.to_owned())).into_iter().collect();
        let dir = format!("{}/", folder.path().display());
        load(&Given { file: Some(path), flags, ..Given::default() }, &Environment::default())
            .map_err(|error| error.problems.iter().map(|problem| problem.to_string().replace(&dir, "")).collect())
    }

    fn chosen(effective: &Effective) -> Vec<String> {
        let shown = |spec: &RegistrySpec| {
            let last = spec.url.0.rsplit('/').next().unwrap_or_default();
            format!("{} {last} {:?}", spec.name.as_deref().unwrap_or("-"), spec.settle_interval)
        };
        effective.config.registry.all.iter().map(shown).collect()
    }

    const TWO: &str = "[[registry]]\nname = \"prod\"\nurl = \"s3://models/live\"\npoll_interval = \"5s\"\n\n[[registry]]\nname = \"lab\"\n\
                       url = \"./lab\"\nsettle_interval = \"3s\"\n";

    #[test]
    fn a_list_names_its_registries() {
        let effective = read(TWO, None).unwrap();
        assert_eq!(chosen(&effective), ["prod live 1s", "lab lab 3s"]);
        assert_eq!(effective.config.registry.poll_interval, Duration::from_secs(5));
        assert!(Path::new(&effective.config.registry.all[1].url.0).is_absolute(), "relative to the file");
        let error = effective.config.registry.only().unwrap_err();
        assert!(error.contains("--registry prod|lab"), "{error}");
        let shown = |effective: &Effective, name| effective.entries.iter().find(|entry| entry.name == name).unwrap().value.clone();
        assert_eq!(shown(&effective, "registry.settle_interval"), "prod=1s,lab=3s", "a reload sees a change of one");
        assert_eq!(shown(&read(TWO, Some("./elsewhere")).unwrap(), "registry.settle_interval"), "1s");
        let entry = effective.entries.iter().find(|entry| entry.name == "registry.url").unwrap();
        assert!(
            entry.value.starts_with("prod=s3://models/live,lab=") && matches!(entry.origin, Origin::File { line: 1, .. }),
            "{entry:?}"
        );
    }

    #[test]
    fn a_flag_chooses_one_or_another_place() {
        assert_eq!(chosen(&read(TWO, Some("lab")).unwrap()), ["lab lab 3s"]);
        assert_eq!(chosen(&read(TWO, Some("./elsewhere")).unwrap()), ["- elsewhere 1s"]);
        assert_eq!(chosen(&read("", Some("./elsewhere")).unwrap()), ["- elsewhere 1s"]);
        assert_eq!(chosen(&read("", None).unwrap()), ["- models 1s"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let check = |text: &str, expected: &[&str]| assert_eq!(read(text, None).unwrap_err(), expected, "{text}");
        check("[[registry]]\nurl = \"a\"\n", &["bascule.toml:1: `registry[0].name`: is missing"]);
        check("[[registry]]\nname = \"a\"\n", &["bascule.toml:1: `registry[0].url`: is missing"]);
        check(
            "[[registry]]\nname = \"a b\"\nurl = \"a\"\n",
            &["bascule.toml:1: `registry[0].name`: expected letters, digits, `.`, `_` and `-`, got \"a b\""],
        );
        check(
            "[[registry]]\nname = \"a\"\nurl = \"a\"\n[[registry]]\nname = \"a\"\nurl = \"b\"\n",
            &["bascule.toml:4: `registry[1].name`: \"a\" is the name of another registry"],
        );
        check(
            "[[registry]]\nname = \"a\"\nurl = \"a\"\nsettle_intervall = \"1s\"\n",
            &["bascule.toml:4: `registry[0].settle_intervall` is not a setting, did you mean `settle_interval`?"],
        );
        check(
            "[[registry]]\nname = \"a\"\nurl = \"a\"\nabsent = \"keep\"\n[[registry]]\nname = \"b\"\nurl = \"b\"\nabsent = \"unload\"\n",
            &["bascule.toml:8: `registry[1].absent`: counts for every registry, and another one says \"keep\""],
        );
        check("registry = [1]\n", &["bascule.toml:1: `registry`: expected [[registry]] tables, got 1 among them"]);
    }
}
