//! Rollout journals of several replicas in a store.

use std::collections::BTreeMap;

use bascule_registry::{JournalError, ModelName, Op, Proposal, Rollout, SharedJournal, StoreEnvironment};

/// Two replicas that share journals at `place`, in a store that works.
pub async fn check_shared(place: &str, environment: &StoreEnvironment) {
    let kept = tempfile::tempdir().unwrap();
    let open =
        |replica: &str| SharedJournal::open_in("rollout.journal", place, environment, Some(&kept.path().join(replica))).unwrap();
    let (one, other) = (open("one"), open("other"));
    let model = ModelName::new("m").unwrap();
    let weight = |version, weight_bp| Proposal::new(Op::Weight { version, weight_bp }, "ann", "because");
    one.check().await.unwrap();
    one.propose(&model, &weight(1, 10_000)).await.unwrap();
    let known = |rollout: Rollout| BTreeMap::from([(model.clone(), rollout)]);
    let seen = known(other.rollout(&model).await.unwrap());
    assert_eq!((seen[&model].seq, seen[&model].stable), (1, Some(1)));
    assert!(other.grown(&seen).await.unwrap().is_empty());

    // Of decisions at the same moment each has a number of its own, and a retry has that which it had.
    let (mine, theirs) = (weight(2, 1_000), weight(2, 2_000));
    let (a, b) = tokio::join!(one.propose(&model, &mine), other.propose(&model, &theirs));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!([a.min(b), a.max(b)], [2, 3]);
    assert_eq!(other.propose(&model, &mine).await.unwrap(), a);
    assert_eq!(other.grown(&seen).await.unwrap(), [model.clone()].into());
    let last = if a > b { 1_000 } else { 2_000 };
    for replica in [&one, &other, &open("one")] {
        assert_eq!(replica.rollout(&model).await.unwrap().candidate, Some((2, last)));
        assert_eq!(replica.health().error, None);
    }
}

/// What a replica says that is refused by the store: what was tried, and no secret.
pub async fn check_refused(place: &str, environment: &StoreEnvironment, parts: &[&str], secret: &str) {
    let journal = SharedJournal::open_in("rollout.journal", place, environment, None).unwrap();
    let error = journal.check().await.unwrap_err();
    let told = crate::s3::told(&error);
    assert!(matches!(error, JournalError::Unavailable { .. }), "{told}");
    for part in parts {
        assert!(told.contains(part), "{told}\nshould say {part}");
    }
    assert!(!told.contains(secret), "{told}");
}
