//! A file watch: a hint that something has changed. The poll is the truth.

use std::path::Path;

use notify::event::{AccessKind, AccessMode};
use notify::{Config, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Hints that a directory has changed. Any number of changes make one hint until it is taken.
pub struct Watch {
    hints: mpsc::Receiver<()>,
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// Walks the whole directory, so it blocks. Links are not followed: one that leads out of the directory could lead to all of a disk,
    /// and what changes behind one that stays inside is watched where it lies.
    pub(super) fn start(root: &Path) -> notify::Result<Self> {
        let (sender, hints) = mpsc::channel(1);
        let on_event = move |event: notify::Result<notify::Event>| {
            if is_change(&event) {
                // Where one hint waits already, this one says the same.
                let _ = sender.try_send(());
            }
        };
        let mut watcher = RecommendedWatcher::new(on_event, Config::default().with_follow_symlinks(false))?;
        // The directory itself may be a link.
        watcher.watch(&root.canonicalize()?, RecursiveMode::Recursive)?;
        Ok(Self { hints, _watcher: watcher })
    }

    /// Waits for a hint. `None` where the watch has ended.
    pub async fn changed(&mut self) -> Option<()> {
        self.hints.recv().await
    }
}

/// Reading is no change: a look would else be the reason for the next.
fn is_change(event: &notify::Result<notify::Event>) -> bool {
    match event {
        Ok(event) => match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
            EventKind::Access(_) => false,
            _ => true,
        },
        // The watch may have lost events.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_is_no_change() {
        let event = |kind| Ok(notify::Event::new(kind));
        assert!(!is_change(&event(EventKind::Access(AccessKind::Read))));
        assert!(!is_change(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)))));
        assert!(!is_change(&event(EventKind::Access(AccessKind::Close(AccessMode::Read)))));
        assert!(is_change(&event(EventKind::Access(AccessKind::Close(AccessMode::Write)))));
        assert!(is_change(&event(EventKind::Create(notify::event::CreateKind::File))));
        assert!(is_change(&Err(notify::Error::generic("queue overflow"))));
    }

    #[tokio::test]
    async fn many_changes_make_one_hint_and_none_is_needed_to_wait() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(dir.path()).unwrap();
        for n in 0..100 {
            std::fs::write(dir.path().join(format!("file{n}")), b"x").unwrap();
        }
        assert_eq!(watch.changed().await, Some(()));
        std::fs::create_dir(dir.path().join("below")).unwrap();
        assert_eq!(watch.changed().await, Some(()));
    }

    #[tokio::test]
    async fn what_lies_behind_a_link_out_is_not_watched() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).unwrap();
        let mut watch = Watch::start(dir.path()).unwrap();
        std::fs::write(outside.path().join("file"), b"x").unwrap();
        // A watch is told of changes in their order: had it seen the first, it would tell of it before the second.
        std::fs::write(dir.path().join("inside"), b"x").unwrap();
        assert_eq!(watch.changed().await, Some(()));
        let place = dir.path().with_extension("link");
        std::os::unix::fs::symlink(dir.path(), &place).unwrap();
        let mut through = Watch::start(&place).unwrap();
        std::fs::write(dir.path().join("more"), b"x").unwrap();
        assert_eq!(through.changed().await, Some(()), "a root that is a link is watched");
        std::fs::remove_file(&place).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_can_not_be_watched() {
        assert!(Watch::start(Path::new("/no/such/directory/anywhere")).is_err());
    }
}
