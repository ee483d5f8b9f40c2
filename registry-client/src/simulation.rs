//! A seeded simulation: publishers, readers and a cache over a store that drops, delays, repeats, reorders, cuts short, corrupts and lies
//! about what it holds. What must never happen has not happened, and once the faults stop everybody sees what was committed.
//!
//! A failure names its seed: `BASCULE_SEED=17 cargo test -p bascule-registry simulation` runs that one alone. What the store does to an
//! operation follows from the seed, the operation, its path and how often it was asked, so it hardly depends on the order in which
//! threads of the disk end.

mod chance;
mod history;
mod store;

use std::ops::Range;

use chance::Chance;
use history::Tally;

#[test]
fn nothing_but_what_was_published_is_ever_kept() {
    simulate(chosen().unwrap_or(0..300));
}

#[test]
#[ignore = "long: 10,000 histories"]
fn nor_in_10_000_histories() {
    simulate(chosen().unwrap_or(0..10_000));
}

/// Much of a history is waiting for the disk: several side by side take less time.
const SIDE_BY_SIDE: usize = 4;

/// The one seed that somebody wants to see alone.
#[expect(clippy::disallowed_methods, reason = "the environment tells a test which seed to run")]
fn chosen() -> Option<Range<u64>> {
    let seed: u64 = std::env::var("BASCULE_SEED").ok()?.parse().ok()?;
    Some(seed..seed + 1)
}

fn simulate(seeds: Range<u64>) {
    let total = std::thread::scope(|scope| {
        let all = &seeds;
        let begin = |first| scope.spawn(move || histories(all.clone().skip(first).step_by(SIDE_BY_SIDE)));
        let workers: Vec<_> = (0..SIDE_BY_SIDE).map(begin).collect();
        workers.into_iter().map(|worker| worker.join().expect("a history failed")).fold(Tally::default(), Tally::and)
    });
    println!("{total:?}");
    let histories = seeds.end - seeds.start;
    if histories >= 100 {
        // Histories in which nothing happens show nothing.
        for (what, count) in total.counts() {
            assert!(count >= histories / 10, "{what}: {count} in {seeds:?}");
        }
    }
}

fn histories(seeds: impl Iterator<Item = u64>) -> Tally {
    let mut total = Tally::default();
    for seed in seeds {
        // One thread for the disk: what it does is done in the order in which it was asked.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).max_blocking_threads(1).build();
        let history = std::panic::AssertUnwindSafe(|| runtime.unwrap().block_on(history::run(seed)));
        match std::panic::catch_unwind(history) {
            Ok(tally) => total = total.and(tally),
            Err(panic) => {
                eprintln!("the seed of this history is {seed}: BASCULE_SEED={seed} cargo test -p bascule-registry simulation");
                std::panic::resume_unwind(panic);
            }
        }
    }
    total
}
