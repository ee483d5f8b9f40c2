//! A journal that replicas share, and that goes away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use bascule_registry::{Entry, JournalError, Proposal, Rollout, SourceHealth};

use super::*;

/// What another machine holds.
struct Remote {
    journal: LocalJournal,
    away: AtomicBool,
    /// What the registry itself has.
    published: Mutex<Vec<Entry>>,
    /// Taking over breaks off once so many are here; 0 where it does not.
    breaks_off: AtomicUsize,
    /// Of whom something was to be taken over.
    asked: Mutex<Vec<ModelName>>,
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
    async fn append(&self, model: &ModelName, layout: Layout, proposal: &Proposal) -> Result<u64, JournalError> {
        if layout.brings_journal() {
            self.take_over(model).await?;
        }
        self.reach()?.propose(model, proposal).await
    }

    async fn rollout(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        self.reach()?.rollout(model).await
    }

    async fn grown(&self, known: &BTreeMap<ModelName, Rollout>) -> Result<BTreeSet<ModelName>, JournalError> {
        JournalStore::grown(self.reach()?, known).await
    }

    async fn take_over(&self, model: &ModelName) -> Result<Rollout, JournalError> {
        let published = self.published.lock().unwrap().clone();
        let journal = self.reach()?;
        self.asked.lock().unwrap().push(model.clone());
        match self.breaks_off.load(Ordering::SeqCst) {
            0 => journal.take_over(model, &published).await,
            entries => {
                journal.take_over(model, published.get(..entries).unwrap_or_default()).await?;
                let source = Arc::new(std::io::Error::other("it broke off"));
                Err(JournalError::Unavailable { place: "the shared journal".to_owned(), source })
            }
        }
    }

    async fn entries(&self, model: &ModelName) -> Result<Vec<Entry>, JournalError> {
        self.reach()?.journal(model).await
    }

    async fn page(
        &self,
        model: &ModelName,
        layout: Layout,
        before: Option<u64>,
        limit: usize,
    ) -> Result<(crate::JournalHome, bascule_registry::JournalPage), JournalError> {
        JournalStore::page(self.reach()?, model, layout, before, limit).await
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
    let (away, breaks_off) = (AtomicBool::new(false), AtomicUsize::new(0));
    (world, Arc::new(Remote { journal, away, published: Mutex::default(), breaks_off, asked: Mutex::default() }))
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
    let registry = serving.status().registry.clone();
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

/// The owner of the registry decides.
fn publish_decision(world: &World, remote: &Remote, op: Op) {
    let mut published = remote.published.lock().unwrap();
    let (seq, id) = (published.len() as u64 + 1, Uuid::new_v4());
    published.push(Entry {
        schema: 1,
        seq,
        id,
        at: DateTime::UNIX_EPOCH,
        by: "the owner".to_owned(),
        reason: String::new(),
        rollout: id.to_string(),
        op,
        evidence: None,
        highest: Some(2),
        published: None,
    });
    let rollout = Rollout::fold(&*published);
    world.source.change("m", |model| {
        (model.layout, model.aliases, model.rollout) = (Layout::Web, rollout.aliases.clone(), rollout);
    });
}

#[tokio::test]
async fn a_journal_that_is_only_read_is_followed_and_decisions_here_go_on_from_it() {
    let (world, remote) = world();
    publish_decision(&world, &remote, Op::Weight { version: 1, weight_bp: 10_000 });
    publish_decision(&world, &remote, Op::Alias { name: "prod".to_owned(), version: Some(1) });
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    assert_eq!(stable(&serving, "m"), Some(1), "what its owner decides");
    assert_eq!(remote.journal.journal(&name("m")).await.unwrap().len(), 0, "nothing is written for that");
    let shown = |serving: &Serving| {
        let model = serving.status().model("m").cloned().unwrap();
        (model.stable, model.candidate.map(|candidate| (candidate.version, candidate.weight_bp)), model.pinned)
    };

    assert_eq!(
        serving.apply("m", Op::Weight { version: 2, weight_bp: 2_500 }, "me", "", None).await,
        Ok(3),
        "after what was there"
    );
    until(&serving, "the split", |serving| shown(serving) == (Some(1), Some((2, 2_500)), None)).await;
    assert_eq!(serving.apply("m", Op::Alias { name: "prod".to_owned(), version: None }, "me", "", None).await, Ok(4));
    until(&serving, "the alias", |serving| serving.status().model("m").unwrap().aliases.is_empty()).await;
    publish_decision(&world, &remote, Op::Weight { version: 2, weight_bp: 5_000 });
    serving.kick();
    until(&serving, "what the owner decides next", |serving| shown(serving) == (Some(1), Some((2, 5_000)), None)).await;
    serving.apply("m", Op::Pin { version: 1 }, "me", "", None).await.unwrap();
    publish_decision(&world, &remote, Op::Weight { version: 2, weight_bp: 10_000 });
    serving.kick();
    until(&serving, "both", |serving| shown(serving) == (Some(1), None, Some(1))).await;
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);

    keeping::let_go(&world).await;
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    serving.apply("m", Op::Unpin, "me", "", None).await.unwrap();
    until(&serving, "the owner's, unpinned", |serving| shown(serving) == (Some(2), None, None)).await;
    let ops: Vec<_> = remote.journal.journal(&name("m")).await.unwrap().iter().map(|entry| entry.published).collect();
    assert_eq!(ops, [Some(1), Some(2), None, None, Some(3), None, Some(4), None]);

    publish_decision(&world, &remote, Op::Unknown { op: "dance".to_owned() });
    serving.kick();
    until(&serving, "what can't be followed", |serving| {
        serving.status().model("m").unwrap().problems.iter().any(|problem| problem.contains("dance"))
    })
    .await;
    assert_eq!(shown(&serving), (Some(2), None, None));
}

/// Whatever was looked at before.
async fn look_again(serving: &Serving) {
    let looked = serving.status().registry.last_good_look;
    serving.kick();
    until(serving, "another look", |serving| serving.status().registry.last_good_look != looked).await;
}

#[tokio::test]
async fn what_was_taken_over_by_halves_counts_for_nothing() {
    let (world, remote) = world();
    publish_decision(&world, &remote, Op::Weight { version: 1, weight_bp: 10_000 });
    publish_decision(&world, &remote, Op::Weight { version: 2, weight_bp: 2_500 });
    publish_decision(&world, &remote, Op::Weight { version: 2, weight_bp: 10_000 });
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    let followed = |serving: &Serving| {
        let status = serving.status();
        status.model("m").map(|model| (model.stable, model.journal_seq)).unwrap()
    };
    assert_eq!(followed(&serving), (Some(2), 3), "what its owner decides");
    for entries in [1, 2] {
        remote.breaks_off.store(entries, Ordering::SeqCst);
        let refused = serving.apply("m", Op::Pin { version: 1 }, "me", "", None).await;
        assert!(matches!(refused, Err(CommandError::Source { .. })), "{refused:?}");
        assert_eq!(remote.journal.journal(&name("m")).await.unwrap().len(), entries);
        look_again(&serving).await;
        assert_eq!(followed(&serving), (Some(2), 3), "after {entries} of 3 entries");
    }
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);

    keeping::let_go(&world).await;
    world.source.down.store(true, Ordering::SeqCst);
    let serving = start(&world, &remote).await;
    until(&serving, "what was served", |serving| stable(serving, "m").is_some()).await;
    until(&serving, "a look", |serving| serving.status().registry.last_error.is_some()).await;
    assert_eq!(followed(&serving), (Some(2), 3), "without the registry, too");
    world.source.down.store(false, Ordering::SeqCst);
    remote.breaks_off.store(0, Ordering::SeqCst);
    look_again(&serving).await;

    // All is taken over, and the decision makes no sense: the owner's journal goes on counting.
    let refused = serving.apply("m", Op::Unpin, "me", "", None).await;
    assert!(matches!(refused, Err(CommandError::Rejected { .. })), "{refused:?}");
    assert_eq!(remote.journal.journal(&name("m")).await.unwrap().len(), 3);
    publish_decision(&world, &remote, Op::Pin { version: 1 });
    serving.kick();
    until(&serving, "what the owner decides next", |serving| stable(serving, "m") == Some(1)).await;
    assert_eq!(remote.journal.journal(&name("m")).await.unwrap().len(), 3, "nothing is written for that");
    assert_eq!(serving.apply("m", Op::Unpin, "me", "", None).await, Ok(5));
    until(&serving, "the decision here", |serving| stable(serving, "m") == Some(2)).await;
}

#[tokio::test]
async fn a_registry_that_was_restored_is_not_followed_on_unseen() {
    let (world, remote) = world();
    for version in [1, 2, 1] {
        publish_decision(&world, &remote, Op::Weight { version, weight_bp: 10_000 });
    }
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    assert_eq!(serving.apply("m", Op::Alias { name: "prod".to_owned(), version: Some(1) }, "me", "", None).await, Ok(4));
    until(&serving, "the decision here", |serving| !serving.status().model("m").unwrap().aliases.is_empty()).await;
    let problem = |serving: &Serving| {
        let problems = serving.status().model("m").unwrap().problems.clone();
        problems.into_iter().find(|problem| problem.contains("restored"))
    };
    assert_eq!(problem(&serving), None);

    remote.published.lock().unwrap().truncate(1);
    // Shorter, as long, and longer than what was taken over.
    for last in 2..=5 {
        publish_decision(&world, &remote, Op::Weight { version: 2, weight_bp: 10_000 });
        look_again(&serving).await;
        let told = problem(&serving).unwrap_or_else(|| panic!("{last} entries"));
        assert!(told.contains(&format!("ends at entry {last}, and up to entry 3 it was taken over")), "{told}");
        assert_eq!(stable(&serving, "m"), Some(1), "{last} entries");
    }
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);

    keeping::let_go(&world).await;
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    until(&serving, "the same after a restart", |serving| problem(serving).is_some()).await;
    assert_eq!(stable(&serving, "m"), Some(1));
    assert_eq!(remote.journal.journal(&name("m")).await.unwrap().len(), 4, "nothing was taken over");
}

#[tokio::test]
async fn a_listing_that_lacks_the_journal_is_asked_about_once_a_look() {
    let (world, remote) = world();
    for version in [1, 2, 1] {
        publish_decision(&world, &remote, Op::Weight { version, weight_bp: 10_000 });
    }
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    assert_eq!(serving.apply("m", Op::Alias { name: "prod".to_owned(), version: Some(1) }, "me", "", None).await, Ok(4));
    until(&serving, "the decision here", |serving| !serving.status().model("m").unwrap().aliases.is_empty()).await;
    remote.breaks_off.store(3, Ordering::SeqCst);
    world.source.change("m", |model| model.rollout = Rollout::default());
    remote.asked.lock().unwrap().clear();
    for looks in 1..=4 {
        look_again(&serving).await;
        let problems = serving.status().model("m").unwrap().problems.join("; ");
        assert!(problems.contains("it broke off") && !problems.contains("restored"), "look {looks}: {problems}");
        assert_eq!((stable(&serving, "m"), remote.asked.lock().unwrap().len()), (Some(1), looks));
    }
    remote.breaks_off.store(0, Ordering::SeqCst);
    look_again(&serving).await;
    assert_eq!(serving.status().model("m").unwrap().problems, [""; 0], "nothing was replaced");
}

#[tokio::test]
async fn a_version_that_was_yanked_leaves_while_the_journal_is_away() {
    let (world, remote) = world();
    publish_decision(&world, &remote, Op::Alias { name: "prod".to_owned(), version: Some(1) });
    let serving = start(&world, &remote).await;
    serving.wait_ready().await;
    assert_eq!(serving.apply("m", Op::Alias { name: "mine".to_owned(), version: Some(2) }, "me", "", None).await, Ok(2));
    until(&serving, "the latest", |serving| stable(serving, "m") == Some(2)).await;
    remote.away.store(true, Ordering::SeqCst);
    world.source.change("m", |model| {
        let generation = model.versions.get_mut(&2).unwrap();
        Arc::make_mut(generation).tombstoned = true;
    });
    serving.kick();
    until(&serving, "what is left", |serving| stable(serving, "m") == Some(1)).await;
    assert!(is_away(&serving));
    let status = serving.status();
    assert_eq!(status.model("m").unwrap().aliases.keys().collect::<Vec<_>>(), ["mine", "prod"], "what was decided stays");
}

#[tokio::test]
async fn a_place_that_takes_nothing_is_not_tried_for_every_model() {
    let (world, remote) = world();
    publish_decision(&world, &remote, Op::Disable);
    let names: Vec<_> = (0..20).map(|n| format!("n{n:02}")).collect();
    let published = Rollout::fold(&*remote.published.lock().unwrap());
    for model in &names {
        world.source.publish(model, 1, &constant(1.0));
        world.source.change(model, |model| (model.layout, model.rollout) = (Layout::Web, published.clone()));
        remote.journal.append(&name(model), Op::Pin { version: 1 }, "me", "", Uuid::new_v4()).await.unwrap();
    }
    remote.breaks_off.store(usize::MAX, Ordering::SeqCst);
    let serving = start(&world, &remote).await;
    let waiting = |serving: &Serving| -> BTreeSet<String> {
        let waits = |problem: &String| problem.contains("it was not asked for");
        let status = serving.status();
        status.models.iter().filter(|model| model.problems.iter().any(waits)).map(|model| model.name.clone()).collect()
    };
    until(&serving, "a look", |serving| waiting(serving).len() == names.len() - 8).await;
    // Later looks begin with those that were not tried, or the longest ago: all have their turn.
    let waited = Mutex::new(names.iter().cloned().collect::<BTreeSet<_>>());
    until(&serving, "every turn", |serving| {
        serving.kick();
        let mut waited = waited.lock().unwrap();
        let waiting = waiting(serving);
        waited.retain(|name| waiting.contains(name));
        waited.is_empty()
    })
    .await;
    remote.breaks_off.store(0, Ordering::SeqCst);
    serving.kick();
    let follows = |serving: &Serving, model: &String| serving.status().model(model).is_some_and(|model| model.journal_seq == 2);
    until(&serving, "all", |serving| names.iter().all(|model| follows(serving, model))).await;
}
