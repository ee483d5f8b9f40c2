use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::*;
use crate::clock::ManualClock;
use crate::name::ModelName;
use crate::testing::{Failure, FaultyStore, model};

fn journal(store: &Arc<dyn ObjectStore>) -> JournalEntries {
    JournalEntries::new(Arc::clone(store), Path::from("m/rollout"))
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

fn pin(version: u64) -> Proposal {
    Proposal::new(Op::Pin { version }, "me", "because")
}

const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

#[tokio::test]
async fn appends_are_numbered_from_one_and_retries_are_one() {
    let store = memory();
    let journal = journal(&store);
    assert_eq!(journal.rollout().await.unwrap(), Rollout::default());
    let proposal = Proposal { evidence: Some(serde_json::json!({"errors": 0})), ..pin(1) };
    for _ in 0..3 {
        assert_eq!(journal.append(&proposal, NOW).await.unwrap(), 1);
    }
    assert_eq!(journal.append(&pin(2), NOW).await.unwrap(), 2);
    assert_eq!(journal.append(&proposal, NOW).await.unwrap(), 1, "late retries are known too");
    let entries = journal.all().await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((&entries[0].by, &entries[0].evidence), (&"me".to_owned(), &proposal.evidence));
    assert_eq!(journal.rollout().await.unwrap(), Rollout::fold(&entries));
}

#[tokio::test]
async fn an_entry_that_nobody_could_read_is_not_written() {
    let store = memory();
    let journal = journal(&store);
    let refused = journal.append(&Proposal { reason: "x".repeat(1 << 20), ..pin(1) }, NOW).await.unwrap_err();
    assert!(refused.to_string().contains("the limit is 1048576"), "{refused}");
    assert!(journal.all().await.unwrap().is_empty());
}

#[tokio::test]
async fn entries_belong_to_the_rollout_that_they_move() {
    let store = memory();
    let journal = journal(&store);
    let weight = |weight_bp| Proposal::new(Op::Weight { version: 2, weight_bp }, "me", "");
    let first = weight(100);
    for proposal in [&first, &weight(200), &weight(0), &weight(300)] {
        journal.append(proposal, NOW).await.unwrap();
    }
    let rollouts: Vec<_> = journal.all().await.unwrap().into_iter().map(|entry| entry.rollout).collect();
    assert_eq!(rollouts[..3], [first.id.to_string(), first.id.to_string(), first.id.to_string()]);
    assert_ne!(rollouts[3], rollouts[0]);
}

#[tokio::test]
async fn of_two_writers_both_are_written_and_the_second_is_checked_anew() {
    let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::reliable(memory()).meeting_at("00001.json", 2));
    let (one, two) = (journal(&store), journal(&store));
    let (a, b) = (pin(1), pin(2));
    let (first, second) = tokio::join!(one.append(&a, NOW), two.append(&b, NOW));
    let mut numbers = [first.unwrap(), second.unwrap()];
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(one.all().await.unwrap().len(), 2);

    // Both want to begin a rollout; whoever comes second finds that there is one.
    let store: Arc<dyn ObjectStore> = Arc::new(FaultyStore::reliable(memory()).meeting_at("00001.json", 2));
    let (one, two) = (journal(&store), journal(&store));
    let start = |version| Proposal::new(Op::Start { version, weight_bp: 1 }, "me", "");
    let (a, b) = (start(1), start(2));
    let refused = match tokio::join!(one.append(&a, NOW), two.append(&b, NOW)) {
        (Ok(1), Err(refused)) | (Err(refused), Ok(1)) => refused,
        other => panic!("one should be refused: {other:?}"),
    };
    assert!(refused.to_string().contains("is being rolled out"), "{refused}");
    assert_eq!(one.all().await.unwrap().len(), 1);
}

#[tokio::test]
async fn many_writers_leave_no_gap() {
    let store = memory();
    let writers = (0..8).map(|writer| {
        let journal = journal(&store);
        tokio::spawn(async move {
            for version in 1..=10 {
                journal.append(&pin(writer * 10 + version), NOW).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let entries = journal(&store).all().await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), (1..=80).collect::<Vec<_>>());
    assert!(entries.iter().all(|entry| matches!(entry.op, Op::Pin { .. })));
}

/// A writer that is killed at its k-th operation, or whose answer is lost there, and retries with the same id.
#[tokio::test]
async fn a_killed_append_is_repeated_without_being_doubled() {
    for failure in [Failure::Refused, Failure::AnswerLost] {
        for calls in 0.. {
            let inner = memory();
            journal(&inner).append(&pin(1), NOW).await.unwrap();
            let faulty: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Arc::clone(&inner), calls, failure));
            let proposal = pin(2);
            let outcome = journal(&faulty).append(&proposal, NOW).await;
            assert_eq!(journal(&inner).append(&proposal, NOW).await.unwrap(), 2);
            assert_eq!(journal(&inner).all().await.unwrap().len(), 2, "{failure:?} at {calls}");
            if outcome.is_ok() && failure == Failure::Refused {
                assert!(calls > 2, "only {calls} operations");
                break;
            }
            if calls > 50 {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_checkpoint_every_hundred_saves_reading_and_changes_nothing() {
    let counting = Arc::new(FaultyStore::reliable(memory()));
    let store: Arc<dyn ObjectStore> = Arc::<FaultyStore>::clone(&counting);
    let written = journal(&store);
    let early = pin(1);
    written.append(&early, NOW).await.unwrap();
    for version in 2..=205 {
        written.append(&pin(version), NOW).await.unwrap();
    }
    let checkpoint = |seq: u64| Path::from(format!("m/rollout/checkpoint/{seq}.json"));
    for (seq, there) in [(100, true), (200, true), (205, false)] {
        assert_eq!(store.head(&checkpoint(seq)).await.is_ok(), there, "{seq}");
    }
    let from_entries = Rollout::fold(&written.all().await.unwrap());
    let before = counting.calls();
    assert_eq!(journal(&store).rollout().await.unwrap(), from_entries);
    let with_checkpoint = counting.calls() - before;
    assert!(with_checkpoint < 40, "{with_checkpoint} operations");
    assert_eq!(journal(&store).append(&early, NOW).await.unwrap(), 1, "ids are remembered across checkpoints");

    // Checkpoints that are damaged, missing, or made by other rules are passed over.
    for content in [Some("{ half"), Some("{\"fold\":999,\"rollout\":{\"seq\":200,\"pinned\":7},\"ids\":[]}"), None] {
        match content {
            Some(content) => drop(store.put(&checkpoint(200), content.into()).await.unwrap()),
            None => store.delete(&checkpoint(200)).await.unwrap(),
        }
        assert_eq!(journal(&store).rollout().await.unwrap(), from_entries, "{content:?}");
    }
}

#[tokio::test]
async fn a_local_journal_survives_and_keeps_models_apart() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state/journal");
    let clock = Arc::new(ManualClock::default());
    let local = LocalJournal::with_clock(&place, Arc::<ManualClock>::clone(&clock)).unwrap();
    let (a, b) = (model("a"), model("b"));
    let id = Uuid::new_v4();
    let append = async |name: &ModelName, op, id| local.append(name, op, "me", "", id).await;
    assert_eq!(append(&a, Op::Pin { version: 1 }, id).await.unwrap(), 1);
    assert_eq!(append(&a, Op::Pin { version: 1 }, id).await.unwrap(), 1);
    assert_eq!(append(&b, Op::Disable, Uuid::new_v4()).await.unwrap(), 1);
    let refused = append(&b, Op::Unpin, Uuid::new_v4()).await.unwrap_err();
    assert!(matches!(refused, JournalError::Refused { .. }), "{refused}");
    drop(local);
    let again = LocalJournal::open(&place).unwrap();
    assert_eq!(again.rollout(&a).await.unwrap().pinned, Some(1));
    assert!(again.rollout(&b).await.unwrap().disabled);
    assert_eq!(again.journal(&a).await.unwrap()[0].at, DateTime::UNIX_EPOCH, "the clock is the one that was given");
    assert!(again.journal(&model("c")).await.unwrap().is_empty());
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert!(LocalJournal::open(&dir.path().join("file/below")).is_err());
}

#[tokio::test]
async fn another_journal_is_taken_over_once_whoever_does_it() {
    let (theirs, ours) = (memory(), memory());
    let publish = async |proposal: &Proposal| journal(&theirs).append(proposal, NOW).await.unwrap();
    publish(&pin(1)).await;
    publish(&Proposal { highest: Some(4), ..Proposal::new(Op::Weight { version: 1, weight_bp: 10_000 }, "them", "") }).await;
    let take_over = async |store: &Arc<dyn ObjectStore>| {
        let published = journal(&theirs).after(journal(&ours).rollout().await?.followed.saturating_sub(1)).await?;
        Ok::<_, JournalError>(journal(store).take_over(&published).await?.0)
    };
    let (one, other) = tokio::join!(take_over(&ours), take_over(&ours));
    assert_eq!((one.unwrap(), other.unwrap().seq), (journal(&ours).rollout().await.unwrap(), 2));
    assert_eq!(journal(&ours).append(&Proposal::new(Op::Unpin, "me", ""), NOW).await.unwrap(), 3);
    // Nothing is pinned here any more: what makes no sense is taken over all the same.
    publish(&Proposal::new(Op::Unpin, "them", "")).await;
    publish(&pin(2)).await;
    for _ in 0..2 {
        let rollout = take_over(&ours).await.unwrap();
        assert_eq!((rollout.seq, rollout.followed, rollout.pinned, rollout.stable_highest), (5, 4, Some(2), Some(4)));
    }
    let entries = journal(&ours).all().await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.published).collect::<Vec<_>>(), [Some(1), Some(2), None, Some(3), Some(4)]);
    assert_eq!((entries[4].by.as_str(), entries[4].id), ("me", journal(&theirs).all().await.unwrap()[3].id));

    let path = Path::from("m/rollout/00000000000000000005.json");
    theirs
        .put(
            &path,
            r#"{"schema":9,"seq":5,"id":"00000000-0000-0000-0000-000000000000","at":"2026-01-01T00:00:00Z","op":"x"}"#.into(),
        )
        .await
        .unwrap();
    let error = take_over(&ours).await.unwrap_err();
    assert!(matches!(error, JournalError::Frozen(_)), "{error}");
    // A writer that is killed anywhere leaves what the next one goes on from.
    for failure in [Failure::Refused, Failure::AnswerLost] {
        for calls in 0..20 {
            let inner = memory();
            let faulty: Arc<dyn ObjectStore> = Arc::new(FaultyStore::new(Arc::clone(&inner), calls, failure));
            let published = &journal(&theirs).all().await.unwrap()[..4];
            drop(journal(&faulty).take_over(published).await);
            assert_eq!(journal(&inner).take_over(published).await.unwrap().0.seq, 4, "{failure:?} at {calls}");
        }
    }
}

#[tokio::test]
async fn a_journal_that_was_replaced_is_not_taken_over_from() {
    let (theirs, restored, ours) = (memory(), memory(), memory());
    for (store, versions) in [(&theirs, 1..=3), (&restored, 1..=1)] {
        for version in versions {
            let id = Uuid::from_u128(u128::from(version));
            journal(store).append(&Proposal { id, ..pin(version) }, NOW).await.unwrap();
        }
    }
    let published = journal(&theirs).all().await.unwrap();
    let (taken, copied) = journal(&ours).take_over(&published).await.unwrap();
    assert_eq!(copied, 3);
    assert_eq!((taken.followed, taken.followed_id, taken.is_decided_here()), (3, Some(published[2].id), false));
    // From the last one on is enough.
    assert_eq!(journal(&ours).take_over(&published[2..]).await.unwrap().1, 0);
    for last in 1..=5 {
        let published = journal(&restored).all().await.unwrap();
        for error in [
            journal(&ours).take_over(&published).await.unwrap_err(),
            // What a look knows without reading, where it can be known.
            match taken.agree_with(&Rollout::fold(&published)) {
                Ok(()) if last > 3 => JournalError::Replaced { followed: 3, last },
                agreed => agreed.unwrap_err(),
            },
        ] {
            assert!(matches!(error, JournalError::Replaced { followed: 3, last: seen } if seen == last), "{error}");
        }
        journal(&restored).append(&pin(9), NOW).await.unwrap();
    }
    assert_eq!(journal(&ours).all().await.unwrap().len(), 3);
    // A checkpoint knows it, too.
    let text = serde_json::to_string(&taken).unwrap();
    assert_eq!(serde_json::from_str::<Rollout>(&text).unwrap(), taken);
}
