use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::*;

async fn filled(entries: u64, reason_bytes: usize) -> (Arc<dyn ObjectStore>, JournalEntries) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let journal = JournalEntries::new(Arc::clone(&store), Path::from("m/rollout"));
    for version in 1..=entries {
        let proposal = Proposal::new(Op::Pin { version }, "me", "x".repeat(reason_bytes));
        journal.append(&proposal, DateTime::UNIX_EPOCH).await.unwrap();
    }
    (store, journal)
}

fn seqs(page: &JournalPage) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.seq).collect()
}

#[tokio::test]
async fn the_newest_come_first_and_the_pages_are_the_whole_journal() {
    let (_, journal) = filled(37, 0).await;
    let first = journal.page(None, 5).await.unwrap();
    assert_eq!((first.seq, seqs(&first), first.before), (37, vec![37, 36, 35, 34, 33], Some(33)));
    for limit in [1, 16, 17, 36, 37, 100] {
        let (mut all, mut before) = (Vec::new(), None);
        loop {
            let page = journal.page(before, limit).await.unwrap();
            assert!(page.entries.len() <= limit && page.seq == 37, "{limit}");
            all.extend(page.entries);
            before = page.before;
            if before.is_none() {
                break;
            }
        }
        all.reverse();
        assert_eq!(all, journal.all().await.unwrap(), "{limit}");
    }
    let none = journal.page(Some(1), 5).await.unwrap();
    assert_eq!((none.seq, none.entries.len(), none.before), (37, 0, None));
    assert_eq!(seqs(&journal.page(Some(1_000), 2).await.unwrap()), [37, 36], "what is asked for need not be there");
    let empty = filled(0, 0).await.1.page(None, 5).await.unwrap();
    assert_eq!(empty, JournalPage::default());
}

#[tokio::test]
async fn a_page_of_large_entries_is_short() {
    let (_, journal) = filled(5, 900_000).await;
    let page = journal.page(None, 100).await.unwrap();
    assert_eq!((seqs(&page), page.before), (vec![5, 4, 3], Some(3)), "the third brings it over two MiB");
    assert_eq!(seqs(&journal.page(page.before, 100).await.unwrap()), [2, 1]);
}

#[tokio::test]
async fn what_can_not_be_read_is_in_its_place() {
    let (store, journal) = filled(3, 0).await;
    store.put(&Path::from(format!("m/rollout/{:020}.json", 2)), "{".into()).await.unwrap();
    let page = journal.page(None, 10).await.unwrap();
    assert_eq!(seqs(&page), [3, 2, 1]);
    assert!(matches!(&page.entries[1].op, Op::Unknown { op } if op.starts_with("unreadable")), "{:?}", page.entries[1]);
    let told: JournalPage = serde_json::from_value(serde_json::to_value(&page).unwrap()).unwrap();
    assert_eq!(told, page, "also after it was handed on");
}
