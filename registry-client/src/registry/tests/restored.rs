//! Registries that were restored from an older backup while somebody follows them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use uuid::Uuid;

use super::listless::Listless;
use crate::clock::ManualClock;
use crate::journal::Op;
use crate::listing::Listing;
use crate::name::VersionKey;
use crate::registry::{REPAIR_INTERVAL, Registry};
use crate::source::{NoProgress, VersionSource as _};
use crate::testing::{model, registry_over, request};

/// A registry whose objects can be put back to what they were, a clock, and another registry over the same objects that writes.
struct World {
    objects: Arc<dyn ObjectStore>,
    clock: Arc<ManualClock>,
    writer: Registry,
    files: tempfile::TempDir,
}

type Backup = BTreeMap<Path, Bytes>;

impl World {
    fn new() -> Self {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let writer = registry_over(&objects);
        Self { objects, clock: Arc::default(), writer, files: tempfile::tempdir().unwrap() }
    }

    /// Whoever follows the registry: by listings, or where that is not possible by its change log.
    fn readers(&self) -> [Registry; 2] {
        let listing = registry_over(&self.objects).with_clock(Arc::<ManualClock>::clone(&self.clock));
        [listing, Listless::registry(&self.objects, &self.clock).0]
    }

    async fn publish(&self, content: &str) -> u64 {
        let wanted = request(self.files.path(), "m", None, &[("model.onnx", content.as_bytes())]);
        self.writer.publish(wanted, &NoProgress).await.unwrap().key.version
    }

    async fn pin(&self, version: u64) {
        self.writer.append(&model("m"), Op::Pin { version }, "me", "", Uuid::new_v4()).await.unwrap();
    }

    async fn backup(&self) -> Backup {
        let listed: Vec<_> = self.objects.list(None).try_collect().await.unwrap();
        let mut backup = Backup::new();
        for object in listed {
            let content = self.objects.get(&object.location).await.unwrap().bytes().await.unwrap();
            backup.insert(object.location, content);
        }
        backup
    }

    async fn restore(&self, backup: Backup) {
        for path in self.backup().await.into_keys() {
            self.objects.delete(&path).await.unwrap();
        }
        for (path, content) in backup {
            self.objects.put(&path, content.into()).await.unwrap();
        }
    }
}

fn is_of_journal(path: &Path) -> bool {
    path.as_ref().contains("/rollout/")
}

async fn look(reader: &Registry) -> Listing {
    reader.list(None).await.unwrap().unwrap()
}

fn versions(listing: &Listing) -> Vec<u64> {
    listing.models["m"].versions.keys().copied().collect()
}

#[tokio::test]
async fn what_comes_after_a_restored_backup_is_followed_without_a_restart() {
    for nth in 0..2 {
        let world = World::new();
        let reader = &world.readers()[nth];
        for content in ["one", "two"] {
            world.publish(content).await;
        }
        world.pin(1).await;
        let backup = world.backup().await;
        for content in ["three", "four"] {
            world.publish(content).await;
        }
        world.pin(2).await;
        world.pin(3).await;
        let before = look(reader).await;
        assert_eq!((versions(&before), before.models["m"].rollout.pinned), (vec![1, 2, 3, 4], Some(3)));

        world.restore(backup).await;
        let unseen = look(reader).await;
        assert_eq!((versions(&unseen), unseen.models["m"].rollout.pinned), (vec![1, 2, 3, 4], Some(3)), "not before the repair");
        world.clock.advance(REPAIR_INTERVAL);
        let repaired = look(reader).await;
        assert!(repaired.complete, "{nth}: {:?}", repaired.problems);
        assert_eq!((versions(&repaired), repaired.models["m"].rollout.pinned), (vec![1, 2], Some(1)), "{nth}");
        let told = &repaired.problems[0];
        assert!(told.starts_with("its change log ends at entry 3, and had 7: it was restored from an older backup"), "{told}");
        let told = &repaired.models["m"].problems[0];
        assert!(told.starts_with("its journal is not the one that was read, which had 3 entries"), "{told}");

        // The number comes again, with another content.
        assert_eq!(world.publish("another three").await, 3);
        world.pin(2).await;
        let after = look(reader).await;
        assert!(after.complete, "{nth}: {:?}", after.problems);
        assert_eq!((versions(&after), after.models["m"].rollout.pinned), (vec![1, 2, 3], Some(2)), "{nth}: at the next poll");
        let key = VersionKey::new(model("m"), 3);
        let digest = |listing: &Listing| listing.generation(&key).unwrap().digest;
        assert_ne!(digest(&after), digest(&before), "{nth}");
        world.clock.advance(REPAIR_INTERVAL);
        let settled = look(reader).await;
        assert!(settled.complete && settled.problems.is_empty() && settled.models["m"].problems.is_empty(), "{nth}: {settled:?}");
    }
}

/// By the time of the repair as much has been written again as there was: numbers alone tell nothing.
#[tokio::test]
async fn a_log_and_a_journal_that_have_grown_again_are_known_for_others() {
    for nth in 0..2 {
        let world = World::new();
        let reader = &world.readers()[nth];
        world.publish("one").await;
        world.publish("two").await;
        let backup = world.backup().await;
        world.publish("three").await;
        world.pin(2).await;
        let before = look(reader).await;
        assert_eq!(before.models["m"].rollout.pinned, Some(2));
        world.restore(backup).await;
        world.publish("another three").await;
        world.pin(3).await;
        world.clock.advance(REPAIR_INTERVAL);
        let repaired = look(reader).await;
        let key = VersionKey::new(model("m"), 3);
        let digest = |listing: &Listing| listing.generation(&key).unwrap().digest;
        assert!(repaired.complete, "{nth}: {:?}", repaired.problems);
        assert_ne!(digest(&repaired), digest(&before), "{nth}");
        assert_eq!(repaired.models["m"].rollout.pinned, Some(3), "{nth}");
        world.pin(1).await;
        let grown = look(reader).await;
        assert_eq!(grown.models["m"].rollout.pinned, Some(1), "{nth}");
        let told = grown.models["m"].problems.concat();
        assert!(told.contains("its journal is not the one that was read"), "{nth}: {told}");
    }
}

/// Nothing else of the registry has changed then.
#[tokio::test]
async fn a_journal_of_the_same_length_is_known_for_another() {
    for nth in 0..2 {
        let world = World::new();
        let reader = &world.readers()[nth];
        world.publish("one").await;
        world.publish("two").await;
        let undecided = world.backup().await;
        world.pin(1).await;
        let mut decided = world.backup().await;
        assert_eq!(look(reader).await.models["m"].rollout.pinned, Some(1));
        world.restore(undecided).await;
        world.pin(2).await;
        decided.extend(world.backup().await.into_iter().filter(|(path, _)| is_of_journal(path)));
        world.restore(decided).await;
        world.clock.advance(REPAIR_INTERVAL);
        let repaired = look(reader).await;
        assert_eq!(repaired.models["m"].rollout.pinned, Some(2), "{nth}");
        let told = repaired.models["m"].problems.concat();
        assert!(told.contains("its journal is not the one that was read, which had 1 entries"), "{nth}: {told}");
        world.clock.advance(REPAIR_INTERVAL);
        let settled = look(reader).await;
        assert!(settled.complete && settled.models["m"].problems.is_empty(), "{nth}: {settled:?}");
    }
}

/// Whoever restores a bucket may not be through, and a rule or a slip may have removed it: nobody has decided so.
#[tokio::test]
async fn an_empty_journal_takes_no_decision_back() {
    for nth in 0..2 {
        let world = World::new();
        let reader = &world.readers()[nth];
        world.publish("one").await;
        world.publish("two").await;
        world.pin(2).await;
        world.pin(1).await;
        assert_eq!(look(reader).await.models["m"].rollout.pinned, Some(1));
        let mut emptied = world.backup().await;
        emptied.retain(|path, _| !is_of_journal(path));
        world.restore(emptied).await;
        for _ in 0..2 {
            world.clock.advance(REPAIR_INTERVAL);
            let kept = look(reader).await;
            assert_eq!((versions(&kept), kept.models["m"].rollout.pinned), (vec![1, 2], Some(1)), "{nth}");
            let told = kept.problems.concat();
            assert!(!kept.complete && told.contains("it ends at entry 0, but entry 2 was there"), "{nth}: {told}");
        }
        // Versions go on meanwhile, as fast as a model with a failure is tried again; and a decision begins the journal anew.
        world.publish("three").await;
        world.clock.advance(Duration::from_secs(60));
        assert_eq!(versions(&look(reader).await), [1, 2, 3], "{nth}");
        world.pin(3).await;
        world.clock.advance(REPAIR_INTERVAL);
        let again = look(reader).await;
        assert!(again.complete, "{nth}: {:?}", again.problems);
        assert_eq!(again.models["m"].rollout.pinned, Some(3), "{nth}");
        assert!(again.models["m"].problems.concat().contains("its journal is not the one that was read"), "{nth}");
    }
}
