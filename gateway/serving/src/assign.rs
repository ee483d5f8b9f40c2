//! Which version answers a request: a pure function of the route, the caller's choice and the caller's key.

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::table::{Route, Split, Standing};
use crate::{InferError, Servable, VersionChoice};

/// The whole of the traffic, in the unit of weights.
pub const BASIS_POINTS: u32 = 10_000;

/// The seed of a rollout: callers are spread anew by each rollout and stay where they are within one.
pub fn rollout_seed(rollout_id: &str) -> u64 {
    xxh3_64(rollout_id.as_bytes())
}

/// The caller's place among the 10 000. A candidate of weight `w` answers those below `w`, so raising the weight never takes a caller
/// back, and replicas agree without talking.
pub fn bucket(key: &[u8], seed: u64) -> u32 {
    let place = xxh3_64_with_seed(key, seed) % u64::from(BASIS_POINTS);
    u32::try_from(place).unwrap_or(0)
}

/// Picks the version. `key` is called only where there is a split to decide.
pub(crate) fn assign<'r>(
    route: &'r Route,
    choice: &VersionChoice,
    key: impl FnOnce(u64) -> u32,
) -> Result<&'r Arc<Servable>, InferError> {
    let number = match choice {
        VersionChoice::Split => return split(route, key),
        VersionChoice::Number(number) => *number,
        VersionChoice::Alias(alias) => *route
            .aliases
            .get(alias)
            .ok_or_else(|| InferError::UnknownAlias { model: route.model.to_string(), alias: alias.clone() })?,
    };
    route.version(number).ok_or_else(|| route.missing_version(number))
}

fn split(route: &Route, key: impl FnOnce(u64) -> u32) -> Result<&Arc<Servable>, InferError> {
    if let Some(candidate) = &route.candidate
        && let Split::Canary { weight_bp } = candidate.split
        && (weight_bp >= BASIS_POINTS || (weight_bp > 0 && key(route.seed) < weight_bp))
    {
        return Ok(&candidate.servable);
    }
    match (&route.stable, &route.standing) {
        (Some(stable), _) => Ok(stable),
        (None, Standing::Unloaded) => Err(InferError::Unloaded { model: route.model.to_string() }),
        (None, Standing::NotReady { reason, retry_after }) => {
            Err(InferError::NotReady { model: route.model.to_string(), reason: reason.clone(), retry_after: *retry_after })
        }
        (None, Standing::Waking) => Err(InferError::NotReady {
            model: route.model.to_string(),
            reason: "it is being loaded".to_owned(),
            retry_after: crate::table::RETRY_AFTER,
        }),
        (None, Standing::Serving | Standing::OnDemand) => Err(InferError::NotReady {
            model: route.model.to_string(),
            reason: "no version takes traffic".to_owned(),
            retry_after: crate::table::RETRY_AFTER,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Golden values: a change here moves callers between versions in every fleet that upgrades.
    #[test]
    fn buckets_are_pinned() {
        let seed = rollout_seed("7f0c3b1e-0000-4000-8000-000000000001");
        let found: Vec<u32> = ["alice", "bob", "carol", "", "user-12345"].iter().map(|key| bucket(key.as_bytes(), seed)).collect();
        assert_eq!((seed, found), (GOLDEN_SEED, GOLDEN_BUCKETS.to_vec()));
    }

    /// Computed with an independent implementation of XXH3 (Python's `xxhash`).
    const GOLDEN_SEED: u64 = 2_867_520_451_757_588_362;
    const GOLDEN_BUCKETS: [u32; 5] = [9634, 2335, 912, 3974, 9044];

    proptest! {
        #[test]
        fn raising_the_weight_moves_callers_one_way_only(key: Vec<u8>, id: String, low in 0..=BASIS_POINTS, more in 0..=BASIS_POINTS) {
            let place = bucket(&key, rollout_seed(&id));
            prop_assert!(place < BASIS_POINTS);
            let high = (low + more).min(BASIS_POINTS);
            prop_assert!(place >= low || place < high, "a canary caller stays one");
        }
    }

    #[test]
    fn the_share_of_callers_is_the_weight() {
        let seed = rollout_seed("share");
        let canary = (0..100_000u32).filter(|caller| bucket(&caller.to_le_bytes(), seed) < 1_000).count();
        assert!((9_700..10_300).contains(&canary), "{canary} of 100 000 at 10 %");
    }
}
