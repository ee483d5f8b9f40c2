//! The state directory: what must survive a restart, and the cache. One process has it at a time.

mod parts;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
            std::fs::create_dir_all(&dir)?;
            // For people who look into the directory.
            std::fs::write(dir.join(NOTE), format!("{identity}\n"))
        };
        match write() {
            Ok(()) => Ok(dir),
            Err(source) => Err(StateDirError::Unusable { path: dir, source }),
        }
    }

    /// The same for several registries, which have one such place together: the one that was used last, so that nothing is forgotten where
    /// others join, whatever their order. What the others have of models that are unknown there is copied to it, once: each may have been
    /// served alone before.
    ///
    /// # Errors
    /// It can't be made, read or written.
    pub fn of_registries(&self, identities: &[String]) -> Result<PathBuf, StateDirError> {
        let mut known: Vec<_> = identities.iter().filter(|identity| self.registry_dir(identity).is_dir()).collect();
        // Of those that were used at the same time the first counts.
        known.sort_by_key(|identity| std::cmp::Reverse(last_use(&self.registry_dir(identity))));
        let chosen = known.first().copied().or(identities.first()).map_or("", String::as_str);
        let dir = self.registry_dir(chosen);
        let joined = parts::join(&dir, chosen, known.iter().skip(1).map(|other| (other.as_str(), self.registry_dir(other))));
        joined.map_err(|source| StateDirError::Unusable { path: dir, source })?;
        self.of_registry(chosen)
    }

    fn registry_dir(&self, identity: &str) -> PathBuf {
        let digest = bascule_registry::Digest::of(identity.as_bytes()).to_string();
        self.path.join(format!("registry-{}", &digest[..12]))
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

/// When a part was last opened: its note is written each time.
fn last_use(dir: &Path) -> Option<SystemTime> {
    std::fs::metadata(dir.join(NOTE)).and_then(|note| note.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_has_a_state_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let [a, again, b] = ["/srv/a", "/srv/a", "/srv/b"].map(|identity| state.of_registry(identity).unwrap());
        assert_eq!(a, again);
        assert_ne!(a, b);
        assert_eq!(std::fs::read_to_string(b.join("registry.txt")).unwrap(), "/srv/b\n");
        let of =
            |identities: &[&str]| state.of_registries(&identities.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()).unwrap();
        let used = |dir: &Path, seconds| {
            let note = OpenOptions::new().write(true).open(dir.join(NOTE)).unwrap();
            note.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
        };
        used(&a, 1);
        used(&b, 1);
        assert_eq!(of(&["/srv/a", "/srv/b"]), a);
        assert_eq!(of(&["/srv/new", "/srv/b"]), b, "one that joins before it takes nothing away");
        assert_eq!(of(&["/srv/other", "/srv/another"]), of(&["/srv/other"]));
        used(&a, 1);
        used(&b, 2);
        assert_eq!(of(&["/srv/a", "/srv/b"]), b, "what was served last is served on, whatever the order");
    }

    /// A directory that served one registry, then another, and now both.
    #[test]
    fn registries_that_were_served_one_after_the_other_forget_nothing_together() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let write = |dir: &Path, file: &str, text: &str| {
            std::fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
            std::fs::write(dir.join(file), text).unwrap();
        };
        let read = |dir: &Path, file: &str| std::fs::read_to_string(dir.join(file)).ok();
        let both = ["/srv/a".to_owned(), "/srv/b".to_owned()];
        let a = state.of_registry(&both[0]).unwrap();
        for (file, text) in [("operator/of_a.json", "off"), ("served/of_a.json", "1"), ("served/both.json", "by a")] {
            write(&a, file, text);
        }
        write(&a, "journal/of_a/rollout/00000000000000000001.json", "pin");
        write(&a, "journal/both/rollout/00000000000000000002.json", "unpin");
        let note = OpenOptions::new().write(true).open(a.join(NOTE)).unwrap();
        note.set_modified(SystemTime::UNIX_EPOCH).unwrap();
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
