//! A journal that replicas share, and that goes away.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bascule_registry::{Entry, JournalError, Proposal, Rollout, SourceHealth};

use super::*;

/// What another machine holds.
struct Remote {
    journal: LocalJournal,
    away: AtomicBool,
}

impl Remote {
    fn reach(&self) -> Result<&LocalJournal, JournalError> {
        if self.away.load(Ordering::SeqCst) {
            let source = Arc::new(std::io::Error::other("no answer"));
            return Err(JournalError::Unavailable { place: "the shared journal".to_owned(), source });
        }
        Ok(&self.journal)
    }
}

#[async_trait]
impl JournalStore for Remote {
    async fn append(&self, model: &ModelName, _: Layout, proposal: &Proposal) -> Result<u64, JournalError> {
        self.reach()?.propose(model, proposal).await
    }

    async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        self.reach()?.rollout(model).await
    }

    async fn grown(&self, known: &BTreeMap<ModelName, Rollout>) -> Result<BTreeSet<ModelName>, JournalError> {
        JournalStore::grown(self.reach()?, known).await
    }

    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        self.reach()?.journal(model).await
    }

    fn health(&self) -> Option<SourceHealth> {
        let error = self.reach().err().map(|error| with_causes(&error));
        Some(SourceHealth { name: None, describe: "shared".to_owned(), last_good: None, error, problems: Vec::new() })
    }
}

/// Two versions of a model whose source holds no journal.
fn world() -> (World, Arc<Remote>) {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    world.source.publish("m", 2, &constant(2.0));
    world.source.change("m", |model| model.layout = Layout::Plain);
    let journal = LocalJournal::open(&world.dir.path().join("shared")).unwrap();
    (world, Arc::new(Remote { journal, away: AtomicBool::new(false) }))
}

async fn start(world: &World, remote: &Arc<Remote>) -> Serving {
    let journal = Arc::<Remote>::clone(remote) as _;
    Engine::start(EngineOptions { journal, ..world.options() }).await.unwrap()
}

fn is_away(serving: &Serving) -> bool {
    serving.status().registry.journal.as_ref().is_some_and(|journal| journal.last_error.is_some())
}

#[tokio::test]
async fn while_the_journal_is_away_nothing_moves_and_then_all_is_followed() {
    let (world, remote) = world();
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    serving.apply("m", Op::Weight { version: 1, weight_bp: 10_000 }, "me", "", None).await.unwrap();
    serving.apply("m", Op::Weight { version: 2, weight_bp: 2_500 }, "me", "", None).await.unwrap();
    let split = |serving: &Serving| {
        let status = serving.status();
        let model = status.model("m").unwrap();
        (model.stable, model.candidate.as_ref().map(|candidate| (candidate.version, candidate.weight_bp)))
    };
    until(&serving, "the split", |serving| split(serving) == (Some(1), Some((2, 2_500)))).await;

    remote.away.store(true, Ordering::SeqCst);
    let Err(CommandError::Source { message }) = serving.apply("m", Op::Pin { version: 2 }, "me", "", None).await else { panic!() };
    assert_eq!(message, "the shared journal can't be reached: no answer");
    // It would take over at once.
    world.source.publish("m", 3, &constant(3.0));
    // One whose decisions nobody knows.
    world.source.publish("n", 1, &constant(1.0));
    world.source.change("n", |model| model.layout = Layout::Plain);
    serving.kick();
    until(&serving, "a look", is_away).await;
    assert_eq!((split(&serving), stable(&serving, "n")), ((Some(1), Some((2, 2_500))), None));
    assert!(serving.readiness().is_ready());
    world.source.change("m", |model| model.versions.clear());
    let looked = serving.status().registry.last_good_look;
    serving.kick();
    until(&serving, "another look", |serving| serving.status().registry.last_good_look != looked).await;
    assert_eq!(split(&serving), (Some(1), Some((2, 2_500))), "nothing that exists and no decisions");
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);

    keeping::let_go(&world).await;
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    until(&serving, "a look", is_away).await;
    assert_eq!(split(&serving), (Some(1), Some((2, 2_500))), "a restart");

    // Another replica reaches it.
    remote.journal.append(&name("m"), Op::Pin { version: 2 }, "another", "", Uuid::new_v4()).await.unwrap();
    remote.away.store(false, Ordering::SeqCst);
    serving.kick();
    until(&serving, "the pin", |serving| stable(serving, "m") == Some(2)).await;
    until(&serving, "the new model", |serving| stable(serving, "n") == Some(1)).await;
    assert!(!is_away(&serving));
}

#[tokio::test]
async fn a_fresh_gateway_is_not_ready_before_it_knows_what_was_decided() {
    let (world, remote) = world();
    remote.away.store(true, Ordering::SeqCst);
    let serving = start(&world, &remote).await;
    until(&serving, "a look", is_away).await;
    assert!(!serving.readiness().is_ready() && stable(&serving, "m").is_none());
    remote.journal.append(&name("m"), Op::Pin { version: 1 }, "another", "", Uuid::new_v4()).await.unwrap();
    remote.away.store(false, Ordering::SeqCst);
    serving.kick();
    serving.wait_ready().await;
    assert_eq!(stable(&serving, "m"), Some(1));
}

#[tokio::test]
async fn a_decision_does_not_wait_for_a_source_that_is_away() {
    let (world, remote) = world();
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    serving.apply("m", Op::Weight { version: 1, weight_bp: 10_000 }, "me", "", None).await.unwrap();
    until(&serving, "the first", |serving| stable(serving, "m") == Some(1)).await;
    world.source.down.store(true, Ordering::SeqCst);
    assert_eq!(serving.apply("m", Op::Weight { version: 2, weight_bp: 10_000 }, "me", "", None).await, Ok(2));
    until(&serving, "the decision", |serving| stable(serving, "m") == Some(2)).await;
    let registry = serving.status().registry;
    assert!(registry.last_error.is_some(), "{registry:?}");
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);

    keeping::let_go(&world).await;
    remote.journal.append(&name("m"), Op::Pin { version: 1 }, "another", "", Uuid::new_v4()).await.unwrap();
    let serving = start(&world, &remote).await;
    until(&serving, "a decision of another's", |serving| stable(serving, "m") == Some(1)).await;
    assert!(serving.status().registry.last_error.is_some() && serving.status().registry.last_good_look.is_none());
    world.source.down.store(false, Ordering::SeqCst);
    world.source.publish("m", 3, &constant(3.0));
    serving.kick();
    until(&serving, "the source", |serving| serving.status().registry.last_error.is_none()).await;
    assert_eq!(stable(&serving, "m"), Some(1), "the pin");
}
