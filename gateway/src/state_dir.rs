//! The state directory: what must survive a restart, and the cache. One process has it at a time.

mod parts;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use bascule_registry::durable;

use parts::Part;

/// Says which registry a part belongs to.
const NOTE: &str = "registry.txt";

/// Why a directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another process has it.
    #[error("state directory {} is used by another gateway{}", path.display(), process(*holder))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, where it can be told.
        holder: Option<u32>,
    },
    /// The disk refuses.
    #[error("state directory {} can't be used", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

fn process(holder: Option<u32>) -> String {
    holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The directory, locked until this is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory where it is not there, and locks it. Blocks.
    ///
    /// # Errors
    /// Another process has it, or it can't be written.
    pub fn open(path: &Path) -> Result<StateDir, StateDirError> {
        let unusable = |source| StateDirError::Unusable { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(unusable)?;
        let path = path.canonicalize().map_err(unusable)?;
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who it is helps, and is not needed to know that it is there.
                drop(lock.read_to_string(&mut holder));
                return Err(StateDirError::InUse { path, holder: holder.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(unusable)?;
        Ok(StateDir { path, _lock: lock })
    }

    /// The directory, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where what is known of one registry lies: what is served of it, what the operator switched off, journals. A gateway that is
    /// pointed at another registry begins anew there, and finds everything again when it comes back. Made where it is not there.
    ///
    /// # Errors
    /// It can't be made.
    pub fn of_registry(&self, identity: &str) -> Result<PathBuf, StateDirError> {
        let dir = self.registry_dir(identity);
        let write = || {
            durable::create_dir(&dir)?;
            // Written each time: it tells when the part was used last.
            durable::write_file(&dir.join(NOTE), format!("{identity}\n").as_bytes())
        };
        match write() {
            Ok(()) => Ok(dir),
            Err(source) => Err(StateDirError::Unusable { path: dir, source }),
        }
    }

    /// The same for those that are served together, which have one such place: the one that was used last of those that hold something of
    /// one of them, so that nothing is forgotten where others join or leave, whatever their order. What other such places have of models
    /// that are unknown there is copied to it, once: each may have been served alone before.
    ///
    /// # Errors
    /// It can't be made, read or written.
    pub fn of_registries(&self, identities: &[String]) -> Result<PathBuf, StateDirError> {
        let unusable = |source| StateDirError::Unusable { path: self.path.clone(), source };
        let mut parts = parts::all(&self.path).map_err(unusable)?;
        // A note that was lost or damaged does not lose what it stands beside.
        parts.retain_mut(|part| {
            let owner = std::iter::once(&part.identity).chain(identities).find(|identity| self.registry_dir(identity) == part.dir);
            owner.cloned().map(|owner| part.identity = owner).is_some()
        });
        let homes: Vec<_> = identities.iter().filter_map(|identity| Some((identity, self.home(identity, &parts)?))).collect();
        // Of those that were used at the same time the first counts.
        let Some((_, chosen)) = homes.iter().rev().max_by_key(|(_, part)| part.used) else {
            return self.of_registry(identities.first().map_or("", String::as_str));
        };
        for (identity, _) in homes.iter().filter(|(identity, home)| home == chosen && chosen.identity != **identity) {
            tracing::info!(
                registry = identity,
                part = chosen.identity,
                "what is kept of it lies where it was served last, with another one"
            );
        }
        parts::join(chosen, homes.iter().filter(|(_, home)| home != chosen).copied()).map_err(unusable)?;
        self.of_registry(&chosen.identity)
    }

    /// Where what is kept of a registry was used last: in its own part, or in that of another one that it was served with.
    fn home<'a>(&self, identity: &str, parts: &'a [Part]) -> Option<&'a Part> {
        let own = self.registry_dir(identity);
        let holding = parts.iter().filter(|part| part.dir == own || part.joined.contains(identity));
        holding.max_by_key(|part| (part.used, part.dir == own))
    }

    fn registry_dir(&self, identity: &str) -> PathBuf {
        let digest = bascule_registry::Digest::of(identity.as_bytes()).to_string();
        self.path.join(format!("{}{}", parts::PREFIX, &digest[..12]))
    }

    /// Where what trials found is kept.
    pub fn trials_dir(&self) -> PathBuf {
        self.path.join("trials")
    }

    /// Where fetched versions lie, whatever registry they came from.
    pub fn cache_dir(&self) -> PathBuf {
        self.path.join("cache")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Says when a part was used last.
    fn used(part: &Path, seconds: u64) {
        let note = OpenOptions::new().write(true).open(part.join(NOTE)).unwrap();
        note.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }

    fn of(state: &StateDir, identities: &[&str]) -> PathBuf {
        state.of_registries(&identities.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn write(part: &Path, file: &str, text: &str) {
        std::fs::create_dir_all(part.join(file).parent().unwrap()).unwrap();
        std::fs::write(part.join(file), text).unwrap();
    }

    fn read(part: &Path, file: &str) -> Option<String> {
        std::fs::read_to_string(part.join(file)).ok()
    }

    #[test]
    fn each_registry_has_a_state_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let [a, again, b] = ["/srv/a", "/srv/a", "/srv/b"].map(|identity| state.of_registry(identity).unwrap());
        assert_eq!(a, again);
        assert_ne!(a, b);
        assert_eq!(std::fs::read_to_string(b.join("registry.txt")).unwrap(), "/srv/b\n");
        used(&a, 1);
        used(&b, 1);
        assert_eq!(of(&state, &["/srv/a", "/srv/b"]), a);
        let c = of(&state, &["/srv/c"]);
        assert_eq!(of(&state, &["/srv/new", "/srv/c"]), c, "one that joins before it takes nothing away");
        assert_eq!(of(&state, &["/srv/other", "/srv/another"]), of(&state, &["/srv/other"]));
        std::fs::write(c.join(NOTE), "").unwrap();
        assert_eq!(of(&state, &["/srv/new", "/srv/c"]), c, "nor does a note that is lost");
        assert_eq!(read(&c, NOTE).as_deref(), Some("/srv/c\n"));
        used(&a, 1);
        used(&b, 2);
        assert_eq!(of(&state, &["/srv/a", "/srv/b"]), b, "what was served last is served on, whatever the order");
    }

    /// A directory that served one registry, then another, and now both.
    #[test]
    fn registries_that_were_served_one_after_the_other_forget_nothing_together() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let both = ["/srv/a".to_owned(), "/srv/b".to_owned()];
        let a = state.of_registry(&both[0]).unwrap();
        for (file, text) in [("operator/of_a.json", "off"), ("served/of_a.json", "1"), ("served/both.json", "by a")] {
            write(&a, file, text);
        }
        write(&a, "journal/of_a/rollout/00000000000000000001.json", "pin");
        write(&a, "journal/both/rollout/00000000000000000002.json", "unpin");
        used(&a, 0);
        let b = state.of_registry(&both[1]).unwrap();
        write(&b, "served/of_b.json", "2");
        write(&b, "journal/both/rollout/00000000000000000001.json", "by b");

        assert_eq!(state.of_registries(&both).unwrap(), b);
        let check = |file: &str, expected: Option<&str>| assert_eq!(read(&b, file).as_deref(), expected, "{file}");
        check("served/of_b.json", Some("2"));
        check("operator/of_a.json", Some("off"));
        check("served/of_a.json", Some("1"));
        check("journal/of_a/rollout/00000000000000000001.json", Some("pin"));
        check("served/both.json", None);
        check("journal/both/rollout/00000000000000000001.json", Some("by b"));
        check("journal/both/rollout/00000000000000000002.json", None);
        assert_eq!(read(&a, "operator/of_a.json").as_deref(), Some("off"), "it stays where it was, too");

        // What is decided together from now on is not undone by what was.
        std::fs::remove_file(b.join("operator/of_a.json")).unwrap();
        assert_eq!(state.of_registries(&both).unwrap(), b);
        check("operator/of_a.json", None);
    }

    /// What was decided while both were served lies in the part of one of them.
    #[test]
    fn a_registry_that_is_served_alone_again_forgets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let [a, b] = ["/srv/a", "/srv/b"].map(|identity| state.of_registry(identity).unwrap());
        write(&a, "served/of_a.json", "1");
        used(&a, 1);
        assert_eq!(of(&state, &["/srv/a", "/srv/b"]), b);
        write(&b, "served/of_a.json", "2");
        used(&b, 2);
        assert_eq!(read(&of(&state, &["/srv/a"]), "served/of_a.json").as_deref(), Some("2"));
        assert_eq!(read(&b, NOTE).as_deref(), Some("/srv/b\n"), "it stays the part of the other one");

        // It takes that along to a third one, with all that lies there; once.
        let c = state.of_registry("/srv/c").unwrap();
        used(&b, 3);
        assert_eq!(of(&state, &["/srv/c", "/srv/a"]), c);
        assert_eq!(read(&c, "served/of_a.json").as_deref(), Some("2"));
        std::fs::remove_file(c.join("served/of_a.json")).unwrap();
        for identities in [&["/srv/a"][..], &["/srv/b", "/srv/c"], &["/srv/a", "/srv/b", "/srv/c"]] {
            assert_eq!(of(&state, identities), c);
            assert_eq!(read(&c, "served/of_a.json"), None);
        }
    }

    /// Whoever reads the list while it is written, or after the power went off, finds the old one or the new one.
    #[test]
    fn the_list_of_what_has_joined_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        for (nth, identity) in ["/srv/a", "/srv/b", "/srv/c"].into_iter().enumerate() {
            let part = state.of_registry(identity).unwrap();
            write(&part, &format!("served/of_{nth}.json"), "1");
            used(&part, nth as u64);
        }
        let c = of(&state, &["/srv/b", "/srv/c"]);
        let mut before = File::open(c.join("joined.txt")).unwrap();
        assert_eq!(of(&state, &["/srv/a", "/srv/b", "/srv/c"]), c);
        let mut text = String::new();
        before.read_to_string(&mut text).unwrap();
        assert_eq!(text, "/srv/b\n");
        assert_eq!(read(&c, "joined.txt").as_deref(), Some("/srv/a\n/srv/b\n"));
        let hidden = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().as_encoded_bytes().starts_with(b".");
        for folder in [c.clone(), c.join("served")] {
            assert!(!std::fs::read_dir(folder).unwrap().any(hidden), "nothing is left beside it");
        }
    }

    #[test]
    fn one_process_at_a_time_has_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        let expected = format!("is used by another gateway (process {})", std::process::id());
        assert!(error.ends_with(&expected) && error.contains("state"), "{error}");
        drop(first);
        StateDir::open(&path).unwrap();
    }
}
