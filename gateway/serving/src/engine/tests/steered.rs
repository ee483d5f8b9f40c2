//! Sources with names of their own for stable and candidate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use async_trait::async_trait;
use bascule_registry::{Decided, Entry, SourceError, Steering, SteeringAlias, Verdict, WriteBack};

use super::*;

fn point(world: &World, stable: Option<u64>, candidate: Option<u64>) {
    let alias = |name: &str, version| SteeringAlias { name: name.to_owned(), version };
    let (stable, candidate) = (alias("champion", stable), alias("challenger", candidate));
    world.source.change("m", |model| {
        model.layout = Layout::Mlflow;
        model.steering = Some(Steering { by: "mlflow".to_owned(), stable, candidate, candidate_weight_bp: 1_000 });
    });
}

fn world(versions: std::ops::RangeInclusive<u64>) -> World {
    let world = World::new();
    for version in versions {
        world.source.publish("m", version, &constant(version as f64));
    }
    world
}

async fn journal(world: &World) -> Vec<Entry> {
    LocalJournal::open(&world.dir.path().join("journal")).unwrap().journal(&name("m")).await.unwrap()
}

async fn ops(world: &World) -> Vec<String> {
    journal(world).await.iter().map(|entry| format!("{} {:?} by {}", entry.op.name(), entry.op.version(), entry.by)).collect()
}

fn candidate(serving: &Serving) -> Option<u64> {
    serving.router().table().route("m")?.candidate.as_ref().map(|candidate| candidate.servable.version())
}

fn loaded(serving: &Serving) -> Vec<u64> {
    serving.router().table().route("m").map(|route| route.versions().iter().map(|one| one.version()).collect()).unwrap_or_default()
}

#[tokio::test]
async fn names_are_followed_and_nothing_else_is_loaded() {
    let world = world(1..=4);
    point(&world, Some(2), None);
    let serving = world.start().await;
    until(&serving, "the champion", |serving| stable(serving, "m") == Some(2)).await;
    // Neither the lowest nor the highest was ever looked at.
    assert_eq!(loaded(&serving), [2]);
    assert_eq!(ops(&world).await, ["promote Some(2) by mlflow", "alias Some(2) by mlflow"]);

    point(&world, Some(2), Some(3));
    serving.kick();
    until(&serving, "the challenger", |serving| candidate(serving) == Some(3)).await;
    point(&world, Some(3), None);
    serving.kick();
    until(&serving, "the promotion", |serving| stable(serving, "m") == Some(3) && candidate(serving).is_none()).await;

    // The operator's word counts until a name moves again.
    serving.apply("m", Op::Rollback { version: Some(2) }, "ann", "", None).await.unwrap();
    until(&serving, "the rollback", |serving| stable(serving, "m") == Some(2)).await;
    world.source.publish("m", 5, &constant(5.0));
    serving.load("m").await.unwrap();
    assert_eq!(stable(&serving, "m"), Some(2));
    assert!(!loaded(&serving).contains(&5));
    point(&world, Some(4), None);
    serving.kick();
    until(&serving, "the next champion", |serving| stable(serving, "m") == Some(4)).await;

    // Without the name, what comes later becomes stable by itself.
    point(&world, None, None);
    world.source.publish("m", 6, &constant(6.0));
    serving.load("m").await.unwrap();
    until(&serving, "the latest", |serving| stable(serving, "m") == Some(6)).await;
    serving.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_name_that_points_at_nothing_waits_and_is_named() {
    let world = world(1..=2);
    point(&world, Some(7), None);
    let serving = world.start().await;
    let says = |serving: &Serving| {
        let status = serving.status();
        status.model("m").is_some_and(|model| model.problems.iter().any(|problem| problem.contains("champion points at version 7")))
    };
    until(&serving, "the problem", says).await;
    assert!(loaded(&serving).is_empty(), "nobody guesses");
    world.source.publish("m", 7, &constant(7.0));
    serving.kick();
    until(&serving, "the champion", |serving| stable(serving, "m") == Some(7)).await;
    point(&world, Some(9), None);
    serving.kick();
    until(&serving, "the next problem", |serving| {
        let status = serving.status();
        status.model("m").is_some_and(|model| model.problems.iter().any(|problem| problem.contains("version 9")))
    })
    .await;
    assert_eq!(stable(&serving, "m"), Some(7), "what serves stays");
    serving.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn replicas_write_one_move_once_and_a_restart_writes_nothing() {
    let world = world(1..=3);
    point(&world, Some(1), Some(2));
    let other = World { source: Arc::clone(&world.source), runtime: FakeRuntime::new(), dir: TempDir::new().unwrap() };
    let shared = |own: &World| EngineOptions {
        journal: Arc::new(Shared(LocalJournal::open(&world.dir.path().join("journal")).unwrap())),
        ..own.options()
    };
    let (one, two) = (Engine::start(shared(&world)).await.unwrap(), Engine::start(shared(&other)).await.unwrap());
    for serving in [&one, &two] {
        until(serving, "both names", |serving| stable(serving, "m") == Some(1) && candidate(serving) == Some(2)).await;
    }
    assert_eq!(journal(&world).await.len(), 4, "{:?}", ops(&world).await);
    point(&world, Some(3), Some(2));
    one.kick();
    two.kick();
    for serving in [&one, &two] {
        until(serving, "the move", |serving| stable(serving, "m") == Some(3) && candidate(serving) == Some(2)).await;
    }
    let written = journal(&world).await.len();
    assert_eq!(written, 8, "{:?}", ops(&world).await);
    two.shutdown(Duration::from_secs(5)).await;
    one.shutdown(Duration::from_secs(5)).await;
    drop((one, two));
    keeping::let_go(&world).await;
    let again = Engine::start(shared(&world)).await.unwrap();
    until(&again, "the same", |serving| stable(serving, "m") == Some(3) && candidate(serving) == Some(2)).await;
    assert_eq!(journal(&world).await.len(), written, "{:?}", ops(&world).await);
    again.shutdown(Duration::from_secs(5)).await;
}

/// A journal that others may write, too.
struct Shared(LocalJournal);

#[async_trait]
impl JournalStore for Shared {
    async fn append(
        &self,
        model: &ModelName,
        _: Layout,
        proposal: &bascule_registry::Proposal,
    ) -> Result<u64, bascule_registry::JournalError> {
        self.0.propose(model, proposal).await
    }

    async fn rollout(&self, model: &ModelName) -> Result<bascule_registry::Rollout, bascule_registry::JournalError> {
        self.0.rollout(model).await
    }

    async fn grown(
        &self,
        known: &BTreeMap<ModelName, bascule_registry::Rollout>,
    ) -> Result<BTreeSet<ModelName>, bascule_registry::JournalError> {
        JournalStore::grown(&self.0, known).await
    }

    async fn take_over(&self, model: &ModelName) -> Result<bascule_registry::Rollout, bascule_registry::JournalError> {
        self.0.rollout(model).await
    }

    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, bascule_registry::JournalError> {
        self.0.journal(model).await
    }

    async fn page(
        &self,
        model: &ModelName,
        layout: Layout,
        before: Option<u64>,
        limit: usize,
    ) -> Result<(crate::JournalHome, bascule_registry::JournalPage), bascule_registry::JournalError> {
        JournalStore::page(&self.0, model, layout, before, limit).await
    }
}

/// Notes what it is told, once it works.
#[derive(Default)]
struct Told {
    down: AtomicBool,
    told: Mutex<Vec<Decided>>,
}

#[async_trait]
impl WriteBack for Told {
    async fn tell(&self, _: &ModelName, decided: &Decided) -> Result<(), SourceError> {
        if self.down.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("read only"));
            return Err(SourceError::Unavailable { place: "the tracking server".to_owned(), source });
        }
        self.told.lock().unwrap().push(decided.clone());
        Ok(())
    }
}

/// A promotion that was never told before a restart. It is told then, unless a name moved while nobody looked: the name has the last word.
#[tokio::test]
async fn a_restart_tells_what_was_left_and_nothing_that_the_source_has_overtaken() {
    for moved in [false, true] {
        let world = world(1..=3);
        point(&world, Some(1), None);
        let told = Arc::new(Told::default());
        told.down.store(true, Ordering::SeqCst);
        let options = || EngineOptions { write_back: Some(Arc::<Told>::clone(&told)), ..world.options() };
        let serving = Engine::start(options()).await.unwrap();
        until(&serving, "the champion", |serving| stable(serving, "m") == Some(1)).await;
        serving.apply("m", Op::Promote { version: Some(2) }, "ann", "better", None).await.unwrap();
        until(&serving, "the promotion", |serving| stable(serving, "m") == Some(2)).await;
        serving.shutdown(Duration::from_secs(5)).await;
        drop(serving);
        keeping::let_go(&world).await;
        if moved {
            point(&world, Some(3), None);
        }
        told.down.store(false, Ordering::SeqCst);
        let again = Engine::start(options()).await.unwrap();
        if moved {
            until(&again, "the name's move", |serving| stable(serving, "m") == Some(3)).await;
            again.load("m").await.unwrap();
            assert_eq!(*told.told.lock().unwrap(), []);
            // What is decided after that is told, and from where.
            again.apply("m", Op::Promote { version: Some(1) }, "ann", "better", None).await.unwrap();
        }
        until(&again, "the promotion told", |_| !told.told.lock().unwrap().is_empty()).await;
        let heard = told.told.lock().unwrap().clone();
        let (version, from) = if moved { (1, 3) } else { (2, 1) };
        assert_eq!((heard.len(), heard[0].version, heard[0].verdict), (1, version, Verdict::Promoted), "{moved}");
        assert_eq!(heard[0].stable_from, [Some(from)].into(), "{moved}");
        again.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn what_is_decided_here_is_told_until_that_works() {
    let world = world(1..=3);
    point(&world, Some(1), None);
    let told = Arc::new(Told::default());
    let options = EngineOptions { write_back: Some(Arc::<Told>::clone(&told)), ..world.options() };
    let serving = Engine::start(options).await.unwrap();
    until(&serving, "the champion", |serving| stable(serving, "m") == Some(1)).await;
    told.down.store(true, Ordering::SeqCst);
    serving.apply("m", Op::Promote { version: Some(2) }, "ann", "better", None).await.unwrap();
    until(&serving, "the promotion", |serving| stable(serving, "m") == Some(2)).await;
    let says = |serving: &Serving| {
        let status = serving.status();
        status.model("m").is_some_and(|model| model.problems.iter().any(|problem| problem.contains("read only")))
    };
    until(&serving, "the problem", says).await;
    told.down.store(false, Ordering::SeqCst);
    until(&serving, "the end of it", |serving| !says(serving)).await;
    let heard = told.told.lock().unwrap().clone();
    let heard: Vec<_> = heard.iter().map(|one| (one.version, one.verdict, one.by.as_str(), one.reason.as_str())).collect();
    assert_eq!(heard, [(2, Verdict::Promoted, "ann", "better")], "what the source decided itself it is not told");
    // It comes back as a move of the source's own name, which is noted and changes nothing.
    point(&world, Some(2), None);
    serving.load("m").await.unwrap();
    serving.load("m").await.unwrap();
    assert_eq!(stable(&serving, "m"), Some(2));
    let last = journal(&world).await.pop().unwrap();
    assert_eq!((last.op, last.by.as_str()), (Op::Alias { name: "champion".to_owned(), version: Some(2) }, "mlflow"));
    assert_eq!(told.told.lock().unwrap().len(), 1);
    serving.shutdown(Duration::from_secs(5)).await;
}
