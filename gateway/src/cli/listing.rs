//! One look at a registry, without a gateway.

use anyhow::Context as _;
use bascule_registry::{Listing, VersionSource};

use crate::compose::Source;
use crate::config::Config;

use super::failure::Failure;

/// Looks that wait for files to settle, at the most.
const MAX_LOOKS: usize = 5;
/// Looks, a second apart, that wait for a registry which is still being read, at the most.
const MAX_UNREAD: usize = 120;

/// Everything that exists. Plain versions count once their files have settled, so this may take twice the settle interval.
pub(super) async fn list(config: &Config) -> Result<Listing, Failure> {
    of(Source::open(config)?.versions().as_ref()).await
}

/// Everything that exists in what is open already.
pub(super) async fn of(source: &dyn VersionSource) -> Result<Listing, Failure> {
    let first = source.list(None).await.map_err(anyhow::Error::new)?;
    let mut listing = first.with_context(|| format!("{} can't be listed", source.describe()))?;
    let (mut looks, mut unread) = (0, 0);
    while looks < MAX_LOOKS {
        let Some(pause) = listing.recheck_after else { break };
        looks += usize::from(!listing.unread);
        unread += usize::from(listing.unread);
        if unread > MAX_UNREAD {
            let failure = Failure::new(format!("not every registry could be read: {}", listing.problems.join("; ")));
            return Err(failure.hint("name one that answers with --registry"));
        }
        tokio::time::sleep(pause).await;
        if let Some(later) = source.list(Some(&listing.cursor)).await.map_err(anyhow::Error::new)? {
            listing = later;
        }
    }
    Ok(listing)
}
