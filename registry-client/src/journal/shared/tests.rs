use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::super::Op;
use super::*;
use crate::clock::ManualClock;
use crate::testing::{CountingStore, FaultyStore, model};

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn over(store: &Arc<dyn ObjectStore>, kept: Option<&FsPath>) -> SharedJournal {
    let registry = Registry::over(Arc::clone(store), Path::from("team/journal"), "s3://team/journal");
    SharedJournal::over("rollout.journal", Held::Store(Box::new(registry)), kept)
}

fn in_dir(dir: &FsPath, kept: &FsPath) -> SharedJournal {
    SharedJournal::open_in("rollout.journal", &dir.display().to_string(), &StoreEnvironment::default(), Some(kept)).unwrap()
}

fn pin(version: u64) -> Proposal {
    Proposal::new(Op::Pin { version }, "me", "because")
}

/// What a replica knows.
async fn known(journal: &SharedJournal, names: &[&str]) -> BTreeMap<ModelName, Rollout> {
    let mut known = BTreeMap::new();
    for name in names {
        known.insert(model(name), journal.rollout(&model(name)).await.unwrap());
    }
    known
}

async fn grown(journal: &SharedJournal, known: &BTreeMap<ModelName, Rollout>) -> Vec<String> {
    journal.grown(known).await.unwrap().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn replicas_follow_one_another_by_one_read_where_nothing_was_decided() {
    let counting = Arc::new(CountingStore::new(memory()));
    let store: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&counting);
    let (one, other) = (over(&store, None), over(&store, None));
    assert_eq!(one.propose(&model("a"), &pin(1)).await.unwrap(), 1);
    assert_eq!(grown(&other, &BTreeMap::new()).await, [""; 0]);
    let mut seen = known(&other, &["a", "b", "c"]).await;
    assert_eq!(seen[&model("a")].pinned, Some(1));
    let next = |seq: u64| format!("team/journal/_changes/{seq:020}.json");
    let probes = || ["a", "b", "c"].map(|name| counting.gets(&format!("team/journal/{name}/rollout/{:020}.json", 2)));
    let (before, reads) = (probes(), counting.gets(&next(2)));
    for _ in 0..5 {
        assert_eq!(grown(&other, &seen).await, [""; 0]);
    }
    assert_eq!((probes(), counting.gets(&next(2))), (before, reads + 5), "one read a look, whatever the number of models");

    let decision = pin(2);
    for replica in [&one, &other] {
        assert_eq!(replica.propose(&model("a"), &decision).await.unwrap(), 2, "a retry through another replica is the same");
    }
    assert_eq!(one.propose(&model("c"), &pin(3)).await.unwrap(), 1);
    assert_eq!(grown(&other, &seen).await, ["a", "c"]);
    seen = known(&other, &["a", "b", "c"]).await;
    assert_eq!((seen[&model("a")].pinned, seen[&model("c")].pinned), (Some(2), Some(3)));
    assert_eq!(grown(&other, &seen).await, [""; 0]);
    let refused = one.propose(&model("b"), &Proposal::new(Op::Unpin, "me", "")).await.unwrap_err();
    assert!(matches!(refused, JournalError::Refused { .. }), "{refused}");
}

#[tokio::test]
async fn an_append_to_the_change_log_that_was_lost_only_delays() {
    let (store, clock) = (memory(), Arc::new(ManualClock::default()));
    let follower = over(&store, None).with_clock(Arc::<ManualClock>::clone(&clock) as Arc<dyn Clock>);
    over(&store, None).propose(&model("a"), &pin(1)).await.unwrap();
    assert_eq!(grown(&follower, &BTreeMap::new()).await, [""; 0]);
    let seen = known(&follower, &["a"]).await;
    let Held::Store(registry) = &follower.held else { panic!() };
    registry.entries(&model("a")).append(&pin(2), DateTime::UNIX_EPOCH).await.unwrap();
    assert_eq!(grown(&follower, &seen).await, [""; 0]);
    clock.advance(REPAIR_INTERVAL);
    assert_eq!(grown(&follower, &seen).await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn asking_for_many_journals_is_gone_on_with_at_the_next_look() {
    let faulty = Arc::new(FaultyStore::reliable(memory()));
    let store: Arc<dyn ObjectStore> = Arc::<FaultyStore>::clone(&faulty);
    let clock = Arc::new(ManualClock::default());
    let journal = over(&store, None).with_clock(Arc::<ManualClock>::clone(&clock) as Arc<dyn Clock>);
    let names: Vec<_> = (0..2_000).map(|n| format!("m{n:04}")).collect();
    let seen: BTreeMap<_, _> = names.iter().map(|name| (model(name), Rollout::default())).collect();
    journal.grown(&seen).await.unwrap();
    let Held::Store(registry) = &journal.held else { panic!() };
    // The last of them, and the change log does not tell.
    registry.entries(&model("m1999")).append(&pin(1), DateTime::UNIX_EPOCH).await.unwrap();
    clock.advance(REPAIR_INTERVAL);
    faulty.slow_down(Duration::from_millis(50));
    assert_eq!(grown(&journal, &seen).await, [""; 0], "not yet");
    // What the log names does not wait for the others.
    registry.entries(&model("m1990")).append(&pin(1), DateTime::UNIX_EPOCH).await.unwrap();
    registry.note_decision(&model("m1990"), None).await;
    assert_eq!(grown(&journal, &seen).await, ["m1990", "m1999"]);
    assert_eq!(journal.health().error, None);
    assert_eq!(grown(&journal, &seen).await, [""; 0], "told once");

    clock.advance(REPAIR_INTERVAL);
    faulty.slow_down(PATIENCE * 2);
    let error = with_causes(&journal.grown(&seen).await.unwrap_err());
    assert!(error.ends_with("no answer within 5 s"), "{error}");
    let name = model("m1999");
    let limit = Duration::from_secs(300);
    faulty.slow_down(limit * 2);
    let errors = [
        tokio::time::timeout(limit, journal.rollout(&name)).await.unwrap().unwrap_err(),
        tokio::time::timeout(limit, journal.journal(&name)).await.unwrap().unwrap_err(),
        tokio::time::timeout(limit, journal.page(&name, None, 1)).await.unwrap().unwrap_err(),
    ];
    for error in errors {
        assert!(with_causes(&error).ends_with("no answer within 30 s"), "{}", with_causes(&error));
    }
}

#[tokio::test]
async fn a_change_log_that_was_restored_is_followed_again() {
    let (store, clock) = (memory(), Arc::new(ManualClock::default()));
    let follower = over(&store, None).with_clock(Arc::<ManualClock>::clone(&clock) as Arc<dyn Clock>);
    for version in 1..=3 {
        over(&store, None).propose(&model("a"), &pin(version)).await.unwrap();
    }
    follower.grown(&BTreeMap::new()).await.unwrap();
    let seen = known(&follower, &["a", "b"]).await;
    for seq in 2..=3 {
        store.delete(&Path::from(format!("team/journal/_changes/{seq:020}.json"))).await.unwrap();
    }
    clock.advance(REPAIR_INTERVAL);
    assert_eq!(grown(&follower, &seen).await, [""; 0]);
    over(&store, None).propose(&model("b"), &pin(1)).await.unwrap();
    assert_eq!(grown(&follower, &seen).await, ["b"], "without waiting for the next time that all are asked for");
}

#[tokio::test]
async fn what_is_taken_over_is_told_where_there_is_something() {
    let (store, theirs) = (memory(), over(&memory(), None));
    theirs.propose(&model("a"), &pin(1)).await.unwrap();
    let published = theirs.journal(&model("a")).await.unwrap();
    let journal = over(&store, None);
    let Held::Store(registry) = &journal.held else { panic!() };
    assert_eq!(journal.take_over(&model("a"), &published).await.unwrap().seq, 1);
    assert_eq!(registry.last_change().await.unwrap(), 1);
    assert_eq!(journal.take_over(&model("a"), &published).await.unwrap().seq, 1);
    assert_eq!(registry.last_change().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_kept_of_several_decisions_at_once_is_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept.json");
    let floors = Arc::new(Floors::open("place", Some(&kept)));
    for round in 0..20 {
        let saves = (1..=8).map(|seq| {
            let floors = Arc::clone(&floors);
            tokio::spawn(async move {
                floors.raise(&model("a"), round * 8 + seq);
                floors.save().await;
            })
        });
        futures::future::join_all(saves).await.into_iter().for_each(|saved| saved.unwrap());
        assert_eq!(Floors::open("place", Some(&kept)).of(&model("a")), round * 8 + 8);
    }
}

#[tokio::test]
async fn a_place_that_is_away_is_told_by_its_setting_and_asked_ever_more_rarely() {
    let faulty = Arc::new(FaultyStore::reliable(memory()));
    let store: Arc<dyn ObjectStore> = Arc::<FaultyStore>::clone(&faulty);
    let clock = Arc::new(ManualClock::default());
    let journal = over(&store, None).with_clock(Arc::<ManualClock>::clone(&clock) as Arc<dyn Clock>);
    journal.propose(&model("a"), &pin(1)).await.unwrap();
    journal.grown(&BTreeMap::new()).await.unwrap();
    let seen = known(&journal, &["a"]).await;
    assert_eq!((journal.health().error, journal.health().last_good), (None, Some(DateTime::UNIX_EPOCH)));

    faulty.refuse(Some(""));
    let told = |error: &JournalError| {
        let text = with_causes(error);
        assert!(matches!(error, JournalError::Unavailable { .. }), "{text}");
        assert!(text.starts_with("rollout.journal s3://team/journal can't be reached: "), "{text}");
        text
    };
    let why = told(&journal.grown(&seen).await.unwrap_err());
    told(&journal.rollout(&model("a")).await.unwrap_err());
    told(&journal.propose(&model("a"), &pin(2)).await.unwrap_err());
    let health = journal.health();
    assert_eq!((health.error, health.last_good), (Some(why), Some(DateTime::UNIX_EPOCH)), "the age of the last good look stays");
    let mut asked = 0;
    for _ in 0..1_000 {
        clock.advance(Duration::from_secs(1));
        let before = faulty.calls();
        journal.grown(&seen).await.unwrap_err();
        asked += usize::from(faulty.calls() > before);
    }
    assert!((30..=60).contains(&asked), "{asked} times in 1000 s");

    faulty.refuse(None);
    let other = over(&store, None);
    other.propose(&model("a"), &pin(3)).await.unwrap();
    clock.advance(MAX_BACKOFF);
    assert_eq!(grown(&journal, &seen).await, ["a"], "what was decided meanwhile");
    assert_eq!(journal.health().error, None);

    faulty.refuse(Some(""));
    journal.grown(&seen).await.unwrap_err();
    faulty.refuse(None);
    journal.propose(&model("a"), &pin(4)).await.unwrap();
    assert_eq!(grown(&journal, &seen).await, ["a"], "whoever could write does not wait to read");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_not_waited_for() {
    let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::reliable(memory()).meeting_at("put-if-absent.json", 2));
    let error = with_causes(&over(&store, None).propose(&model("a"), &pin(1)).await.unwrap_err());
    assert_eq!(error, "rollout.journal s3://team/journal can't be reached: no answer within 30 s");
}

#[tokio::test]
async fn a_store_without_put_if_absent_is_refused_before_anything_is_decided() {
    for faulty in [FaultyStore::reliable(memory()).without_create(), FaultyStore::reliable(memory()).ignoring_create()] {
        let store: Arc<dyn ObjectStore> = Arc::new(faulty);
        let journal = over(&store, None);
        for error in [journal.check().await.unwrap_err(), journal.propose(&model("a"), &pin(1)).await.unwrap_err()] {
            assert_eq!(error.to_string(), "rollout.journal s3://team/journal can't hold a journal: it lacks put-if-absent");
        }
        assert!(journal.journal(&model("a")).await.unwrap().is_empty());
    }
    over(&memory(), None).check().await.unwrap();
}

#[tokio::test]
async fn a_place_that_was_emptied_is_not_believed_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, store) = (dir.path().join("kept.json"), memory());
    let journal = over(&store, Some(&kept));
    journal.propose(&model("a"), &pin(1)).await.unwrap();
    journal.propose(&model("a"), &pin(2)).await.unwrap();
    drop(journal);
    for seq in 1..=2 {
        store.delete(&Path::from(format!("team/journal/a/rollout/{seq:020}.json"))).await.unwrap();
    }
    let again = over(&store, Some(&kept));
    for error in [again.rollout(&model("a")).await.unwrap_err(), again.propose(&model("a"), &pin(3)).await.unwrap_err()] {
        let text = with_causes(&error);
        assert!(text.contains("rollout.journal") && text.ends_with("it ends at entry 0, but entry 2 was there"), "{text}");
    }
    assert_eq!(over(&store, None).rollout(&model("a")).await.unwrap(), Rollout::default(), "nothing was written");
    // Another place begins anew.
    let registry = Registry::over(memory(), Path::default(), "s3://elsewhere");
    let elsewhere = SharedJournal::over("rollout.journal", Held::Store(Box::new(registry)), Some(&kept));
    assert_eq!(elsewhere.propose(&model("a"), &pin(3)).await.unwrap(), 1);
    std::fs::write(&kept, "{ half").unwrap();
    assert_eq!(over(&store, Some(&kept)).rollout(&model("a")).await.unwrap().seq, 0, "a damaged file counts as absent");
}

#[tokio::test]
async fn a_directory_is_made_once_and_then_has_to_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, kept) = (folder.path().join("share/journal"), folder.path().join("kept.json"));
    let passing_by = SharedJournal::open("rollout.journal", &dir.display().to_string(), None).unwrap();
    passing_by.check().await.unwrap();
    assert!(passing_by.propose(&model("a"), &pin(1)).await.is_err() && !dir.exists(), "a command makes none");
    let (one, other) = (in_dir(&dir, &kept), in_dir(&dir, &folder.path().join("of-another.json")));
    assert_eq!(one.propose(&model("a"), &pin(1)).await.unwrap(), 1);
    assert!(dir.join("a/00000000000000000001.json").is_file(), "as one replica's own");
    assert_eq!(known(&passing_by, &["a"]).await[&model("a")].pinned, Some(1));
    let mut seen = known(&other, &["a", "b"]).await;
    assert_eq!(grown(&other, &seen).await, [""; 0]);
    one.propose(&model("b"), &pin(2)).await.unwrap();
    assert_eq!(grown(&other, &seen).await, ["b"]);
    seen = known(&other, &["a", "b"]).await;

    std::fs::rename(folder.path().join("share"), folder.path().join("away")).unwrap();
    let error = with_causes(&other.grown(&seen).await.unwrap_err());
    assert!(error.starts_with(&format!("rollout.journal {} can't be reached: ", dir.display())), "{error}");
    other.propose(&model("a"), &pin(3)).await.unwrap_err();
    drop(one);
    let restarted = in_dir(&dir, &kept);
    assert!(!dir.exists(), "a share that is not mounted is not replaced");
    restarted.rollout(&model("a")).await.unwrap_err();
    // Somebody else has made the folder.
    std::fs::create_dir_all(&dir).unwrap();
    let error = with_causes(&restarted.rollout(&model("a")).await.unwrap_err());
    assert!(error.ends_with("it ends at entry 0, but entry 1 was there"), "{error}");
    std::fs::remove_dir_all(folder.path().join("share")).unwrap();
    std::fs::rename(folder.path().join("away"), folder.path().join("share")).unwrap();
    assert_eq!(restarted.rollout(&model("a")).await.unwrap().pinned, Some(1));
    assert_eq!(restarted.propose(&model("a"), &pin(3)).await.unwrap(), 2);
}

#[test]
fn places_that_can_hold_no_journal_are_refused_by_name() {
    let environment = [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "hidden")].into_iter().collect();
    let open = |place: &str| SharedJournal::open_in("rollout.journal", place, &environment, None);
    let refused = |place: &str| open(place).err().unwrap_or_else(|| panic!("{place} is taken")).to_string();
    for (place, why) in [
        ("http://host/journal", "put-if-absent"),
        ("https://host/journal", "put-if-absent"),
        ("memory://", "forgotten"),
        ("oci://host/journal", "no object store"),
        ("mlflow+http://host", "no object store"),
    ] {
        let error = refused(place);
        assert!(error.starts_with(&format!("\"{place}\" can't hold a journal: ")) && error.contains(why), "{error}");
        assert!(error.contains("s3://"), "{error}");
    }
    assert!(refused("s3://me:secret@bucket/x").starts_with("\"s3://…@bucket/x\" names no bucket"));
    assert!(refused("s3://bucket/x?a=b").contains("has a query"));
    assert!(refused("").contains("is empty"));
    assert_eq!(open("s3://bucket/journal").ok().unwrap().describe(), "s3://bucket/journal");
}
