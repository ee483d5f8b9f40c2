//! The journals of models, as every gateway and a registry give them, and how they differ.

mod compare;
mod reading;

use std::collections::BTreeMap;

use bascule_registry::{Entry, Layout, ModelName, Part, VersionNumber, deciding_entries};
use bascule_serving::{JournalHome, JournalKeeper, ModelStatus, Status};
use futures::StreamExt as _;
use serde::Serialize;

use super::deployed::Deployed;
use super::failure::Failure;
use super::output::note;
pub(super) use reading::RegistryJournals;

/// As many entries of one journal are read, the last ones.
const MAX_READ: usize = 2_000;

/// One journal, as somebody gives it.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    /// Who: the address of a gateway, or a registry.
    by: String,
    home: JournalHome,
    /// The last entry that a gateway follows; nothing where a registry was asked itself.
    followed: Option<u64>,
    /// The number of its last entry.
    seq: u64,
    /// Oldest first; the last ones, where there are more than [`MAX_READ`].
    entries: Vec<Entry>,
}

/// What is told of one journal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct JournalShown {
    model: String,
    /// Who gave it.
    by: String,
    keeper: JournalKeeper,
    place: String,
    /// Its last entry.
    seq: u64,
    /// The last entry that the gateway follows.
    followed: Option<u64>,
}

/// What was decided about a version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Decision {
    /// Its part since then.
    pub(super) part: Part,
    /// The entry that gave it this part.
    pub(super) entry: Entry,
}

/// The journals of several models.
#[derive(Debug, Default)]
pub(super) struct Journals {
    /// By model; those of gateways in their order, and that of a registry last.
    by_model: BTreeMap<String, Vec<Journal>>,
}

impl Journals {
    /// Reads the journals of these models from all gateways that have them, and from the registry. One that can't be read is named on standard
    /// error.
    pub(super) async fn read(
        answered: &[(String, Status)],
        registry: Option<&RegistryJournals>,
        is_wanted: impl Fn(&ModelStatus) -> bool,
        also: Option<&ModelName>,
    ) -> Result<Journals, Failure> {
        let mut journals = Journals { by_model: reading::of_gateways(answered, is_wanted).await? };
        let Some(registry) = registry else { return Ok(journals) };
        if let Some(model) = also {
            journals.by_model.entry(model.to_string()).or_default();
        }
        let is_there = |model: &str, journals: &[Journal]| {
            let mut layouts = answered.iter().filter_map(|(_, status)| status.model(model)).map(|known| known.layout).peekable();
            // Of what no gateway knows, the registry may know.
            layouts.peek().is_none() || layouts.any(|layout| layout.is_none_or(|layout| is_in_registry(layout, journals)))
        };
        note_those_beside(answered, &journals.by_model);
        let asked = journals.by_model.iter().filter(|(model, journals)| is_there(model, journals));
        let asked = asked.map(|(model, journals)| (model.clone(), !journals.is_empty())).collect::<Vec<_>>();
        let mut reads = futures::stream::iter(asked)
            .map(|(model, others_know)| async move { (registry.read(&model, others_know).await, model) })
            .buffered(reading::READS);
        while let Some((read, model)) = reads.next().await {
            match read {
                Ok(journal) => journals.by_model.entry(model).or_default().extend(journal),
                Err(failure) => note(format!("warning: {model}: {}", failure.summary())),
            }
        }
        drop(reads);
        Ok(journals)
    }

    /// What was decided about a version that runs, where its journal says why it has the part that it has.
    fn decision(&self, deployed: &Deployed) -> Option<Decision> {
        let journals = self.by_model.get(&deployed.model)?;
        let own = journals.iter().find(|journal| journal.by == deployed.gateway);
        let journal = own.or_else(|| journals.iter().find(|journal| journal.followed.is_none()))?;
        let (part, entry) = deciding_entries(&journal.entries).remove(&deployed.version)?;
        let fits = match deployed.stage.as_deref() {
            Some("stable") => matches!(part, Part::Stable | Part::Pinned),
            Some("candidate") => part == Part::Candidate,
            Some(_) => !part.takes_traffic(),
            // What is on its way has no stage yet.
            None => true,
        };
        fits.then(|| Decision { part, entry: entry.clone() })
    }

    /// Says of each version that runs who decided about it, and since when that counts.
    pub(super) fn explain(&self, deployed: &mut [Deployed]) {
        for one in deployed {
            one.decision = self.decision(one);
            let decided_at = one.decision.as_ref().map(|decision| decision.entry.at);
            let read =
                self.by_model.get(&one.model).is_some_and(|journals| journals.iter().any(|journal| journal.by == one.gateway));
            one.journal_unread = one.decision.is_none() && !read && one.decided_at.is_some();
            let decided_at = decided_at.or(one.decided_at.filter(|_| one.journal_unread));
            one.since = decided_at.or(one.loaded_at);
        }
    }

    /// What the journal of a model says about its versions: the registry's own, where it was asked.
    pub(super) fn decisions(&self, model: &ModelName) -> BTreeMap<VersionNumber, Decision> {
        let journals = self.by_model.get(model.as_str()).map(Vec::as_slice).unwrap_or_default();
        let Some(journal) = compare::authority(journals) else { return BTreeMap::new() };
        let decided = deciding_entries(&journal.entries).into_iter();
        decided.map(|(version, (part, entry))| (version, Decision { part, entry: entry.clone() })).collect()
    }

    /// Where journals that should be the same are not, and what a gateway does not follow yet.
    pub(super) fn differences(&self) -> Vec<String> {
        self.by_model.iter().flat_map(|(model, journals)| compare::differences(model, journals)).collect()
    }

    /// All of them.
    pub(super) fn shown(&self) -> Vec<JournalShown> {
        let of = |model: &str, journal: &Journal| JournalShown {
            model: model.to_owned(),
            by: journal.by.clone(),
            keeper: journal.home.keeper,
            place: journal.home.place.clone(),
            seq: journal.seq,
            followed: journal.followed,
        };
        self.by_model.iter().flat_map(|(model, journals)| journals.iter().map(move |journal| of(model, journal))).collect()
    }
}

/// Whether the registry's own journal is one that those of gateways should agree with. One that is only read there is, until something is
/// decided beside it.
fn is_in_registry(layout: Layout, journals: &[Journal]) -> bool {
    let is_followed = |journal: &Journal| journal.home.keeper == JournalKeeper::Registry;
    layout.holds_journal() || (layout.brings_journal() && (journals.is_empty() || journals.iter().any(is_followed)))
}

/// Says which gateways go on from a registry's journal with decisions of their own: theirs are not compared with it.
fn note_those_beside(answered: &[(String, Status)], journals: &BTreeMap<String, Vec<Journal>>) {
    for (model, journals) in journals {
        let brings =
            |(_, status): &(String, Status)| status.model(model).and_then(|known| known.layout).is_some_and(Layout::brings_journal);
        if !answered.iter().any(brings) {
            continue;
        }
        for journal in journals.iter().filter(|journal| journal.home.keeper != JournalKeeper::Registry) {
            let (by, place) = (&journal.by, &journal.home.place);
            note(format!("note: {model}: at {by} the journal in {place} goes on from that of the registry's owner, and counts"));
        }
    }
}

/// Who has written an entry, for people.
pub(super) fn by(entry: &Entry) -> String {
    if entry.by.is_empty() { "unknown".to_owned() } else { one_line(&entry.by) }
}

/// What others wrote, so that it fits into a line and can't move the cursor of a terminal; cut where it is long.
pub(super) fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut line: String = text.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        line.push('…');
    }
    line
}

/// An entry in one line.
pub(super) fn said(entry: &Entry) -> String {
    let op = one_line(&super::rollout::said(&entry.op));
    let reason = if entry.reason.is_empty() { String::new() } else { format!(" ({})", one_line(&entry.reason)) };
    format!("{op} by {} at {}{reason}", by(entry), entry.at.format("%Y-%m-%d %H:%M:%S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_in_its_line() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a [2Jb c");
        assert_eq!(one_line(&"x".repeat(80)), "x".repeat(80));
        assert_eq!(one_line(&"x".repeat(81)), "x".repeat(80) + "…");
    }
}
