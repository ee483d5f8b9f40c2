//! Reading journals: page by page, from several gateways at a time.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bascule_registry::{Entry, JournalPage, ModelName, Registry};
use bascule_serving::{JournalHome, JournalKeeper, MAX_PAGE_ENTRIES, ModelJournal, ModelStatus, Status};
use futures::StreamExt as _;

use super::super::failure::Failure;
use super::super::gateway::{Gateway, model_path};
use super::super::output::note;
use super::{Journal, MAX_READ};
use crate::compose;
use crate::config::Place;

/// How many journals are asked for at a time: fewer than a gateway lets wait.
pub(super) const READS: usize = 8;

/// The journals of these models, by model, as each gateway gives them.
pub(super) async fn of_gateways(
    answered: &[(String, Status)],
    is_wanted: impl Fn(&ModelStatus) -> bool,
) -> Result<BTreeMap<String, Vec<Journal>>, Failure> {
    let gateways = answered.iter().map(|(place, _)| Gateway::at(place)).collect::<Result<Vec<_>, _>>()?;
    let mut wanted = Vec::new();
    for (gateway, (_, status)) in gateways.iter().zip(answered) {
        wanted.extend(status.models.iter().filter(|model| is_wanted(model)).map(|model| (gateway, model.as_ref())));
    }
    let mut reads = futures::stream::iter(wanted).map(|(gateway, model)| of_gateway(gateway, model)).buffered(READS);
    let mut journals: BTreeMap<String, Vec<Journal>> = BTreeMap::new();
    while let Some((model, read)) = reads.next().await {
        let journals = journals.entry(model.clone()).or_default();
        match read {
            Ok(journal) => journals.push(journal),
            Err(failure) => note(format!("warning: {model}: {}", failure.summary())),
        }
    }
    Ok(journals)
}

async fn of_gateway(gateway: &Gateway, model: &ModelStatus) -> (String, Result<Journal, Failure>) {
    let read = async {
        let path = format!("{}/journal", model_path(&model.name)?);
        let (mut home, mut pages) = (None, Pages::default());
        while let Some((before, limit)) = pages.next() {
            let before = before.map(|before| ("before", before.to_string()));
            let query: Vec<_> = before.into_iter().chain([("limit", limit.to_string())]).collect();
            let told: ModelJournal = gateway.get(&path, &query).await?;
            home = Some(told.home);
            pages.add(told.page);
        }
        let home = home.context("a journal has one page at the least")?;
        Ok(pages.into_journal(gateway.place(), home, Some(model.journal_seq)))
    };
    let read: Result<Journal, Failure> = read.await;
    (model.name.clone(), read.map_err(|failure| failure.context(format!("its journal can't be read at {}", gateway.place()))))
}

/// The journals of a registry, which is asked itself.
pub(in crate::cli) struct RegistryJournals(Registry);

impl RegistryJournals {
    /// Opens the registry; nothing, and a note on standard error, where its kind holds no journals.
    pub(in crate::cli) async fn open(place: Place) -> Result<Option<RegistryJournals>, Failure> {
        if !compose::holds_journals(&place)? {
            let scheme = place.scheme();
            note(format!("note: a registry at {scheme}:// holds no rollout journals: gateways keep them, and are asked for them"));
            return Ok(None);
        }
        let opened = tokio::task::spawn_blocking(move || compose::open_registry(&place, false)).await;
        let registry = opened.context("a blocking thread ended early")??;
        Ok(Some(RegistryJournals(registry)))
    }

    /// The journal of a model; nothing where the registry has none for it. Where gateways know one, an empty one is the model's own only if
    /// the registry has the model.
    pub(super) async fn read(&self, model: &str, others_know: bool) -> Result<Option<Journal>, Failure> {
        let name = ModelName::new(model).context("a gateway knows a model by a name that is none")?;
        let mut pages = Pages::default();
        while let Some((before, limit)) = pages.next() {
            let page = self.0.journal_page(&name, before, limit).await;
            pages.add(page.with_context(|| format!("its journal can't be read in the registry, {}", self.0.describe()))?);
        }
        if pages.entries.is_empty() && !(others_know && self.has(&name).await?) {
            return Ok(None);
        }
        let home = JournalHome { keeper: JournalKeeper::Registry, place: self.0.describe().to_owned() };
        Ok(Some(pages.into_journal(format!("the registry, {}", self.0.describe()), home, None)))
    }

    async fn has(&self, model: &ModelName) -> Result<bool, Failure> {
        let listed = self.0.model(model).await;
        let listed = listed.with_context(|| format!("it can't be read in the registry, {}", self.0.describe()))?;
        Ok(listed.is_some_and(|listed| listed.layout.holds_journal() || listed.layout.brings_journal()))
    }
}

/// The pages of one journal, from its end.
#[derive(Default)]
struct Pages {
    seq: u64,
    /// Newest first.
    entries: Vec<Entry>,
    /// There is at least one page.
    begun: bool,
    before: Option<u64>,
}

impl Pages {
    /// What is to be asked for: entries before this one, and how many; nothing once all have been read, or as many as are read.
    fn next(&self) -> Option<(Option<u64>, usize)> {
        let limit = MAX_READ.saturating_sub(self.entries.len()).min(MAX_PAGE_ENTRIES);
        match self.before {
            None if self.begun => None,
            _ if limit == 0 => None,
            before => Some((before, limit)),
        }
    }

    fn add(&mut self, page: JournalPage) {
        if !self.begun {
            self.seq = page.seq;
        }
        // Whoever says that there is more, and gives none of it, is not asked for ever.
        let goes_on = |before: &u64| !page.entries.is_empty() && self.before.is_none_or(|last| *before < last);
        self.before = page.before.filter(goes_on);
        self.begun = true;
        self.entries.extend(page.entries);
    }

    fn into_journal(self, by: String, home: JournalHome, followed: Option<u64>) -> Journal {
        let Pages { seq, mut entries, .. } = self;
        entries.reverse();
        Journal { by, home, followed, seq, entries }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(seqs: impl IntoIterator<Item = u64>, before: Option<u64>) -> JournalPage {
        let entry = |seq: u64| {
            let entry = json!({ "schema": 1, "seq": seq, "id": uuid::Uuid::nil(), "at": "2026-01-02T03:04:05Z", "op": "unpin" });
            serde_json::from_value(entry).unwrap()
        };
        JournalPage { seq: 2_500, entries: seqs.into_iter().map(entry).collect(), before }
    }

    #[test]
    fn pages_are_asked_for_until_there_are_enough() {
        let mut pages = Pages::default();
        assert_eq!(pages.next(), Some((None, 1_000)));
        pages.add(page((1_501..=2_500).rev(), Some(1_501)));
        assert_eq!(pages.next(), Some((Some(1_501), 1_000)));
        pages.add(page((1_101..=1_500).rev(), Some(1_101)));
        assert_eq!(pages.next(), Some((Some(1_101), 600)), "large entries make short pages");
        pages.add(page((501..=1_100).rev(), Some(501)));
        assert_eq!(pages.next(), None, "no more than {MAX_READ}");
        let home = JournalHome { keeper: JournalKeeper::Registry, place: "directory r".to_owned() };
        let journal = pages.into_journal("http://g".to_owned(), home, Some(2_500));
        let (first, last) = (journal.entries.first().unwrap().seq, journal.entries.last().unwrap().seq);
        assert_eq!((first, last, journal.seq), (501, 2_500, 2_500));
    }

    #[test]
    fn nobody_is_asked_for_ever() {
        let mut pages = Pages::default();
        pages.add(page([3, 2], Some(2)));
        pages.add(page([3, 2], Some(2)));
        assert_eq!(pages.next(), None, "the same again");
        let mut pages = Pages::default();
        pages.add(page([], Some(7)));
        assert_eq!(pages.next(), None, "more, and none of it");
    }
}
