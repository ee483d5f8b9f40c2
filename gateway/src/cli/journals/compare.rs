//! How the journals of one model differ, as several give them. Pure.

use bascule_registry::Entry;
use bascule_serving::JournalKeeper;

use super::{Journal, said};

/// The one that the others should agree with: the registry's own, where it was asked; else that with the most entries.
pub(super) fn authority(journals: &[Journal]) -> Option<&Journal> {
    let own = journals.iter().find(|journal| journal.followed.is_none());
    // Of several the first.
    own.or_else(|| journals.iter().rev().max_by_key(|journal| journal.seq))
}

/// What is not as it should be: journals that say different things, and entries that a gateway does not follow.
pub(super) fn differences(model: &str, journals: &[Journal]) -> Vec<String> {
    let Some(authority) = authority(journals) else { return Vec::new() };
    let mut differences = Vec::new();
    for journal in journals {
        if let Some(difference) = difference(authority, journal) {
            let alone = [authority, journal].iter().any(|one| one.home.keeper == JournalKeeper::StateDirectory);
            let alone = if alone { "; a state directory is for one gateway alone, `rollout.journal` is for several" } else { "" };
            differences.push(format!("{model}: {difference}{alone}"));
        }
        if let Some(followed) = journal.followed.filter(|followed| *followed != journal.seq) {
            let last = journal.entries.last().map_or_else(|| "there is none".to_owned(), said);
            let (by, seq) = (&journal.by, journal.seq);
            differences
                .push(format!("{model}: {by} follows its journal up to entry {followed}, and the last one is {seq}: {last}"));
        }
    }
    differences
}

/// How one differs from the one that it should agree with.
fn difference(authority: &Journal, other: &Journal) -> Option<String> {
    let in_other = |seq: u64| -> Option<&Entry> {
        let first = other.entries.first()?.seq;
        other.entries.get(usize::try_from(seq.checked_sub(first)?).ok()?)
    };
    let mut both = authority.entries.iter().filter_map(|entry| Some((entry, in_other(entry.seq)?)));
    if let Some((here, there)) = both.find(|(here, there)| here.id != there.id) {
        return Some(format!("entry {} is at {}: {}; at {}: {}", here.seq, other.by, said(there), authority.by, said(here)));
    }
    let (more, fewer) = if authority.seq >= other.seq { (authority, other) } else { (other, authority) };
    let count = more.seq - fewer.seq;
    (count > 0).then(|| {
        let last = more.entries.last().map(|entry| format!(", the last: {}", said(entry))).unwrap_or_default();
        let entries = if count == 1 { "entry" } else { "entries" };
        format!("{} has {count} {entries} that {} has not{last}", more.by, fewer.by)
    })
}

#[cfg(test)]
mod tests {
    use bascule_serving::JournalHome;
    use serde_json::json;

    use super::*;

    const PIN: &str = "pin 2 by ann at 2026-01-02 03:04:05";

    /// A journal whose entries have these ids.
    fn journal(by: &str, ids: &[u128], followed: Option<u64>) -> Journal {
        let entry = |(id, seq): (&u128, u64)| {
            let id = uuid::Uuid::from_u128(*id);
            let entry = json!({
                "schema": 1, "seq": seq, "id": id, "at": "2026-01-02T03:04:05Z", "by": "ann", "op": "pin", "version": seq,
            });
            serde_json::from_value(entry).unwrap()
        };
        let home = JournalHome { keeper: JournalKeeper::Registry, place: "directory r".to_owned() };
        let entries = ids.iter().zip(1..).map(entry).collect();
        Journal { by: by.to_owned(), home, followed, seq: ids.len() as u64, entries }
    }

    fn alone(journal: Journal) -> Journal {
        Journal { home: JournalHome { keeper: JournalKeeper::StateDirectory, ..journal.home }, ..journal }
    }

    #[test]
    fn journals_that_agree_say_nothing() {
        let registry = journal("r", &[1, 2], None);
        assert_eq!(differences("m", &[]), [""; 0]);
        assert_eq!(differences("m", &[journal("a", &[], Some(0)), journal("b", &[], Some(0))]), [""; 0]);
        assert_eq!(differences("m", &[journal("a", &[1, 2], Some(2)), journal("b", &[1, 2], Some(2)), registry.clone()]), [""; 0]);
        // The first entries of a long one were not read.
        let mut late = journal("a", &[1, 2], Some(2));
        late.entries.remove(0);
        assert_eq!(differences("m", &[late, registry]), [""; 0]);
    }

    #[test]
    fn what_differs_is_told_with_who_has_what() {
        let behind = differences("m", &[journal("a", &[1], Some(1)), journal("r", &[1, 2], None)]);
        assert_eq!(behind, [format!("m: r has 1 entry that a has not, the last: {PIN}")]);
        let other = differences("m", &[journal("a", &[1, 9, 3], Some(3)), journal("r", &[1, 2], None)]);
        assert_eq!(other, [format!("m: entry 2 is at a: {PIN}; at r: {PIN}")]);
        let not_yet = differences("m", &[journal("a", &[1, 2], Some(1))]);
        assert_eq!(not_yet, [format!("m: a follows its journal up to entry 1, and the last one is 2: {PIN}")]);
        let apart = differences("m", &[alone(journal("a", &[], Some(0))), alone(journal("b", &[7, 8], Some(2)))]);
        assert_eq!(apart.len(), 1, "{apart:?}");
        assert!(apart[0].starts_with("m: b has 2 entries that a has not") && apart[0].contains("`rollout.journal`"), "{apart:?}");
    }
}
