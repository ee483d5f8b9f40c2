use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::sync::watch;

use super::*;
use crate::clock::ManualClock;
use crate::registry::Registry;
use crate::source::NoProgress;
use crate::testing::{model, registry_over, request};

/// A registry in memory that can be cut off, and that can be made to hang.
struct Switchable {
    registry: Registry,
    down: AtomicBool,
    hangs: watch::Sender<bool>,
    /// How many times a look has to wait for something.
    steps: AtomicUsize,
}

#[async_trait]
impl VersionSource for Switchable {
    fn describe(&self) -> String {
        "switchable".into()
    }

    async fn list(&self, since: Option<&Cursor>) -> Result<Option<Listing>, SourceError> {
        self.hangs.subscribe().wait_for(|hangs| !hangs).await.unwrap();
        for _ in 0..self.steps.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if self.down.load(Ordering::SeqCst) {
            return Err(SourceError::unavailable("the store", std::io::Error::other("unplugged")));
        }
        self.registry.list(since).await
    }

    async fn fetch(&self, generation: &Generation, dest: &Path, progress: &dyn Progress) -> Result<Fetched, FetchError> {
        self.registry.fetch(generation, dest, progress).await
    }
}

struct World {
    sources: Vec<Arc<Switchable>>,
    writers: Vec<Registry>,
    all: Registries,
    clock: Arc<ManualClock>,
    files: tempfile::TempDir,
}

impl World {
    fn new(names: &[&str]) -> World {
        let clock = Arc::new(ManualClock::default());
        let (mut sources, mut writers) = (Vec::new(), Vec::new());
        for _ in names {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let registry = registry_over(&store).with_clock(Arc::<ManualClock>::clone(&clock));
            let (down, hangs, steps) = (AtomicBool::new(false), watch::channel(false).0, AtomicUsize::new(0));
            sources.push(Arc::new(Switchable { registry, down, hangs, steps }));
            writers.push(registry_over(&store));
        }
        let world = World { all: Registries::new(Vec::new()), sources, writers, clock, files: tempfile::tempdir().unwrap() };
        World { all: world.restarted(names), ..world }
    }

    /// The same registries, read by a program that has just started.
    fn restarted(&self, names: &[&str]) -> Registries {
        let member = |(name, source): (&&str, &Arc<Switchable>)| NamedSource {
            name: Some((*name).to_owned()),
            place: format!("memory://{name}").into(),
            source: Arc::<Switchable>::clone(source),
        };
        let members = names.iter().zip(&self.sources).map(member).collect();
        Registries::new(members).with_clock(Arc::<ManualClock>::clone(&self.clock))
    }

    async fn publish(&self, to: usize, name: &str, version: u64) {
        let content = format!("{name} {version} of {to}");
        let dir = self.files.path().join(format!("{to}-{name}-{version}"));
        let request = request(&dir, name, Some(version), &[("model.onnx", content.as_bytes())]);
        self.writers[to].publish(request, &NoProgress).await.unwrap();
    }

    async fn list(&self) -> Listing {
        // Past every backoff.
        self.clock.advance(MAX_BACKOFF);
        self.all.list(None).await.unwrap().unwrap()
    }
}

fn shown(listing: &Listing) -> Vec<String> {
    let of = |model: &Arc<crate::ListedModel>| {
        let versions: Vec<_> = model.versions.keys().map(ToString::to_string).collect();
        format!("{} {} {}", model.name, versions.join(","), model.registry.as_deref().unwrap_or("-"))
    };
    listing.models.values().map(of).collect()
}

#[tokio::test(start_paused = true)]
async fn models_come_from_where_they_are() {
    let world = World::new(&["prod", "lab"]);
    world.publish(0, "digits", 1).await;
    world.publish(1, "faces", 3).await;
    let listing = world.list().await;
    assert!(listing.complete && listing.problems.is_empty(), "{:?}", listing.problems);
    assert_eq!(shown(&listing), ["digits 1 memory://prod", "faces 3 memory://lab"]);
    for (name, content) in [("digits", "digits 1 of 0"), ("faces", "faces 3 of 1")] {
        let generation = listing.models[&model(name)].versions.values().next().unwrap();
        let dest = tempfile::tempdir().unwrap();
        world.all.fetch(generation, dest.path(), &NoProgress).await.unwrap();
        assert_eq!(std::fs::read_to_string(dest.path().join("model.onnx")).unwrap(), content);
    }
    assert!(world.all.list(Some(&listing.cursor)).await.unwrap().is_none(), "nothing has changed");
    world.publish(1, "faces", 4).await;
    let next = world.list().await;
    assert!(Arc::ptr_eq(&next.models[&model("digits")], &listing.models[&model("digits")]), "what stays is shared");
    assert_eq!(shown(&next), ["digits 1 memory://prod", "faces 3,4 memory://lab"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_holds_up_no_other_and_loses_nothing() {
    let world = World::new(&["prod", "lab"]);
    world.publish(0, "digits", 1).await;
    world.publish(1, "faces", 1).await;
    world.list().await;
    world.sources[0].down.store(true, Ordering::SeqCst);
    world.publish(1, "faces", 2).await;
    let listing = world.list().await;
    assert_eq!(shown(&listing), ["digits 1 memory://prod", "faces 1,2 memory://lab"]);
    assert_eq!(listing.problems, ["registry `prod`: the store can't be read: unplugged"]);
    let health = world.all.health();
    assert_eq!(health[0].error.as_deref(), Some("the store can't be read: unplugged"));
    assert!(health[0].last_good < health[1].last_good && health[0].last_good.is_some(), "{health:?}");
    world.sources[1].down.store(true, Ordering::SeqCst);
    world.clock.advance(MAX_BACKOFF);
    let error = with_causes(&world.all.list(Some(&listing.cursor)).await.unwrap_err());
    assert!(error.contains("every registry can't be read") && error.contains("unplugged"), "{error}");
    world.sources.iter().for_each(|source| source.down.store(false, Ordering::SeqCst));
    let listing = world.list().await;
    assert!(listing.complete && listing.problems.is_empty());
    assert!(world.all.health().iter().all(|health| health.error.is_none()));
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_is_left_alone_for_a_while() {
    let world = World::new(&["prod", "lab"]);
    world.sources[0].down.store(true, Ordering::SeqCst);
    let listing = world.list().await;
    assert!(!listing.complete, "what is in a registry that was never read is not known");
    world.sources[0].down.store(false, Ordering::SeqCst);
    world.publish(0, "digits", 1).await;
    assert_eq!(shown(&world.all.list(None).await.unwrap().unwrap()), [""; 0]);
    assert_eq!(shown(&world.list().await), ["digits 1 memory://prod"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_is_in_a_later_look() {
    let world = World::new(&["prod", "lab"]);
    world.publish(0, "digits", 1).await;
    world.publish(1, "faces", 1).await;
    world.sources[0].hangs.send_replace(true);
    let listing = world.list().await;
    assert!(!listing.complete);
    assert_eq!(shown(&listing), ["faces 1 memory://lab"]);
    assert_eq!(listing.problems, ["registry `prod`: it is being read"]);
    world.publish(1, "faces", 2).await;
    assert_eq!(shown(&world.list().await), ["faces 1,2 memory://lab"], "the other goes on");
    world.sources[0].hangs.send_replace(false);
    let listing = world.list().await;
    assert!(listing.complete);
    assert_eq!(shown(&listing), ["digits 1 memory://prod", "faces 1,2 memory://lab"]);
}

#[tokio::test(start_paused = true)]
async fn a_long_look_takes_as_long_as_it_takes_and_no_longer() {
    let alone = World::new(&["prod"]);
    alone.publish(0, "digits", 1).await;
    alone.sources[0].steps.store(1_000, Ordering::SeqCst);
    assert_eq!(shown(&alone.list().await), ["digits 1 memory://prod"], "nobody is held up by the only one");

    let world = World::new(&["prod", "lab"]);
    world.publish(0, "digits", 1).await;
    world.publish(1, "faces", 1).await;
    world.sources[0].steps.store(80, Ordering::SeqCst);
    let listing = world.list().await;
    assert!(listing.unread && !listing.complete);
    assert_eq!(shown(&listing), ["faces 1 memory://lab"]);
    // It goes on while nobody asks.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let listing = world.list().await;
    assert!(!listing.unread);
    assert_eq!(shown(&listing), ["digits 1 memory://prod", "faces 1 memory://lab"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_in_two_registries_is_told_and_stays_where_it_was() {
    let world = World::new(&["prod", "lab"]);
    world.publish(0, "digits", 1).await;
    world.list().await;
    world.publish(1, "digits", 9).await;
    world.publish(0, "digits", 2).await;
    let listing = world.list().await;
    assert_eq!(shown(&listing), ["digits 1,2 memory://prod"]);
    let problems = &listing.models[&model("digits")].problems;
    assert!(problems.len() == 1 && problems[0].contains("`lab`") && problems[0].contains("`prod`"), "{problems:?}");

    let fresh = world.restarted(&["prod", "lab"]);
    let listing = fresh.list(None).await.unwrap().unwrap();
    assert_eq!(shown(&listing), ["digits  -"], "nobody knows where it was: from neither");
    assert!(!listing.complete, "what serves is not taken away for that");
    let problems = &listing.models[&model("digits")].problems;
    assert!(problems[0].contains("`lab`") && problems[0].contains("`prod`") && problems[0].contains("rename"), "{problems:?}");

    let fresh = world.restarted(&["prod", "lab"]);
    assert!(fresh.adopt(&model("digits"), "memory://lab"));
    assert!(!fresh.adopt(&model("faces"), "memory://elsewhere"), "a registry that is none of these");
    assert_eq!(shown(&fresh.list(None).await.unwrap().unwrap()), ["digits 9 memory://lab"]);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_away_keeps_its_names() {
    let world = World::new(&["prod", "lab"]);
    world.publish(1, "digits", 9).await;
    world.sources[0].down.store(true, Ordering::SeqCst);
    assert!(world.all.adopt(&model("digits"), "memory://prod"));
    let listing = world.list().await;
    assert_eq!(shown(&listing), ["digits  -"]);
    assert!(listing.models[&model("digits")].problems[0].contains("can't be read whole"), "{listing:?}");
    world.sources[0].down.store(false, Ordering::SeqCst);
    assert_eq!(shown(&world.list().await), ["digits  -"], "an empty answer says nothing");
    // Once it can be read and has other models, and no such one, the other registry's counts.
    world.publish(0, "faces", 1).await;
    assert_eq!(shown(&world.list().await), ["digits 9 memory://lab", "faces 1 memory://prod"]);
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_back_empty_loses_nothing() {
    let world = World::new(&["prod", "lab"]);
    world.publish(0, "digits", 1).await;
    world.publish(1, "faces", 1).await;
    world.list().await;
    let empty = World::new(&["prod", "lab"]);
    let members = vec![
        NamedSource { source: Arc::<Switchable>::clone(&empty.sources[0]), ..world.all.members[0].clone() },
        world.all.members[1].clone(),
    ];
    let World { all, .. } = world;
    let all = Registries { members, ..all };
    empty.clock.advance(MAX_BACKOFF);
    let listing = all.list(None).await.unwrap().unwrap();
    assert!(!listing.complete);
    assert_eq!(shown(&listing), ["digits 1 memory://prod", "faces 1 memory://lab"]);
    assert!(listing.problems[0].contains("empty now"), "{:?}", listing.problems);
}

#[tokio::test(start_paused = true)]
async fn a_look_at_what_has_not_changed_puts_nothing_together() {
    for names in [&["prod"][..], &["prod", "lab"]] {
        let world = World::new(names);
        world.publish(0, "digits", 1).await;
        if names.len() > 1 {
            world.publish(1, "faces", 1).await;
        }
        let listing = world.list().await;
        // All looks of this test are on this thread.
        let digests = || crate::listing::DIGESTS.with(std::cell::Cell::get);
        let before = digests();
        for _ in 0..3 {
            world.clock.advance(MAX_BACKOFF);
            assert!(world.all.list(Some(&listing.cursor)).await.unwrap().is_none(), "{names:?}");
        }
        let again = world.list().await;
        assert_eq!(digests(), before, "{names:?}: nothing has changed");
        assert_eq!(again.cursor, listing.cursor);
        assert!(again.at > listing.at, "and it is as old as the last look");
        assert!(Arc::ptr_eq(&again.models[&model("digits")], &listing.models[&model("digits")]));

        world.publish(0, "digits", 2).await;
        let next = world.list().await;
        assert_eq!(shown(&next)[0], "digits 1,2 memory://prod");
        assert!(digests() > before && next.cursor != listing.cursor, "{names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_in_a_listing_counts_as_a_change_too() {
    let world = World::new(&["prod", "lab"]);
    world.publish(0, "digits", 1).await;
    world.publish(1, "digits", 9).await;
    let listing = world.list().await;
    assert_eq!(shown(&listing), ["digits  -"], "from neither");
    assert!(world.all.adopt(&model("digits"), "memory://lab"));
    assert_eq!(shown(&world.list().await), ["digits 9 memory://lab"], "who is told whose it is goes by it");
    let listing = world.list().await;
    world.sources[0].down.store(true, Ordering::SeqCst);
    let failing = world.list().await;
    assert!(failing.cursor != listing.cursor && failing.problems.len() == 1, "{failing:?}");
    world.sources[0].down.store(false, Ordering::SeqCst);
    assert_eq!(world.list().await.cursor, listing.cursor);
}
