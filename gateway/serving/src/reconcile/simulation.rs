//! A seeded simulation: a source that fails, lies and changes, an operator who changes his mind, loads that fail, kills, and any order
//! of what happens. After each step what must never happen has not happened. A failure names its seed.

mod checks;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bascule_registry::{Digest, Entry, Op, VersionNumber};
use bascule_runtime_api::Device;
use bascule_runtime_fake::FakeModel;
use uuid::Uuid;

use super::bench::{Bench, rules};
use super::*;
use crate::testing::{constant, listing, name};
use crate::{Absent, TransitionPolicy};

const STEPS: usize = 120;
const MODELS: [&str; 3] = ["a", "b", "c"];

/// Splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What a step did, as far as it excuses what follows.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Nothing that serves may stop because of it.
    Harmless,
    /// This model may lose what serves.
    MayStop(&'static str),
    /// Everything begins anew from the disk.
    Restart,
}

/// How eventful the histories were: checks that see nothing happen say nothing.
#[derive(Debug, Default)]
struct Tally {
    loaded: usize,
    drained: usize,
    failed: usize,
    refused: usize,
    restored: usize,
}

impl Tally {
    fn and(self, other: Tally) -> Tally {
        Tally {
            loaded: self.loaded + other.loaded,
            drained: self.drained + other.drained,
            failed: self.failed + other.failed,
            refused: self.refused + other.refused,
            restored: self.restored + other.restored,
        }
    }
}

struct Simulation {
    bench: Bench,
    tally: Tally,
    chance: Chance,
    next_version: BTreeMap<&'static str, VersionNumber>,
    /// Contents that no load survives.
    broken: BTreeSet<Digest>,
    next_content: u64,
    /// Models that have a stable version and may not lose it.
    serving: BTreeSet<&'static str>,
}

fn rules_by(chance: &mut Chance) -> Rules {
    Rules {
        load_mode: chance.pick(&[LoadMode::Watch, LoadMode::Watch, LoadMode::Explicit, LoadMode::OnDemand]),
        explicit_models: vec![name("a")],
        live: LiveOptions {
            explicit_follow: chance.percent(30),
            resurrect: chance.percent(30),
            transition: chance.pick(&[
                TransitionPolicy::AvailabilityPreserving,
                TransitionPolicy::AvailabilityPreserving,
                TransitionPolicy::ResourcePreserving,
            ]),
            absent: chance.pick(&[Absent::Keep, Absent::Keep, Absent::Unload]),
            strict_ready: chance.percent(20),
            memory_budgets: chance
                .percent(40)
                .then_some([(Device::Cpu, 4500), (Device::Cuda(0), 2500)])
                .into_iter()
                .flatten()
                .collect(),
            loader_threads: 1 + chance.below(2),
            ..LiveOptions::default()
        },
        ..rules()
    }
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut chance = Chance(seed);
        let rules = rules_by(&mut chance);
        Simulation {
            bench: Bench::new(rules),
            tally: Tally::default(),
            chance,
            next_version: BTreeMap::new(),
            broken: BTreeSet::new(),
            next_content: 0,
            serving: BTreeSet::new(),
        }
    }

    fn run(&mut self) {
        self.bench.settle();
        for _ in 0..STEPS {
            let step = self.step();
            self.check(&step);
        }
        self.converge();
        self.shut_down();
    }

    fn step(&mut self) -> Step {
        match self.chance.below(100) {
            0..=39 => self.work(),
            40..=51 => self.publish(),
            52..=63 => self.look(),
            64..=69 => self.bad_look(),
            70..=74 => self.decide(),
            75..=77 => self.tombstone(),
            78..=79 => self.delete(),
            80..=83 => self.configure(),
            84..=86 => self.unload(),
            87..=89 => self.load(),
            90..=93 => self.want(),
            94..=97 => {
                let seconds = 1 + self.chance.below(40) as u64;
                self.bench.wait(Duration::from_secs(seconds));
                Step::Harmless
            }
            _ => self.restart(),
        }
    }

    fn model(&mut self) -> &'static str {
        self.chance.pick(&MODELS)
    }

    /// Some of the work that waits, in any order; fetches may fail.
    fn work(&mut self) -> Step {
        for _ in 0..1 + self.chance.below(3) {
            if self.bench.work.is_empty() {
                break;
            }
            let index = self.chance.below(self.bench.work.len());
            match self.bench.work.remove(index) {
                Effect::Fetch { id, .. } if self.chance.percent(20) => self.bench.fail_fetch(id),
                effect => self.bench.perform(effect),
            }
        }
        Step::Harmless
    }

    fn content(&mut self) -> FakeModel {
        self.next_content += 1;
        let fail_load = self.chance.percent(20).then(|| "no luck".to_owned());
        let panic_on_run = self.chance.percent(1);
        FakeModel { bytes: 1000, fail_load, panic_on_run, value: self.next_content as f64, ..constant(0.0) }
    }

    /// A new version, or new content of one that is there.
    fn publish(&mut self) -> Step {
        let model = self.model();
        let highest = *self.next_version.entry(model).and_modify(|version| *version += 1).or_insert(1);
        let version = if self.chance.percent(25) { 1 + self.chance.next() % highest } else { highest };
        let content = self.content();
        let generation = self.bench.publish(model, version, &content);
        if content.fail_load.is_some() || content.panic_on_run {
            self.broken.insert(generation.digest);
        }
        if self.chance.percent(15) {
            let versions = &mut self.bench.source.get_mut(model).unwrap().versions;
            let generation = Arc::make_mut(versions.get_mut(&version).unwrap());
            Arc::make_mut(&mut generation.manifest).hold = true;
        }
        Step::Harmless
    }

    /// What is gone on purpose may go: tombstones, and directories where the user wants that.
    fn look(&mut self) -> Step {
        self.bench.look();
        Step::Harmless
    }

    fn bad_look(&mut self) -> Step {
        let before: Vec<_> = self.bench.router.table().routes().map(|route| (route.model.clone(), served(route))).collect();
        let look = match self.chance.below(5) {
            0 => Look::Failed("the source is gone".to_owned()),
            1 => Look::Slow,
            2 => Look::Unchanged,
            3 => Look::Listed(Box::new(listing(true, []))),
            // In part: some models, and of those all that they have now.
            _ => {
                let models: Vec<_> = self.bench.source.values().filter(|_| self.chance.percent(50)).cloned().collect();
                Look::Listed(Box::new(listing(false, models)))
            }
        };
        let lies = matches!(look, Look::Failed(_) | Look::Slow | Look::Unchanged)
            || matches!(&look, Look::Listed(listing) if listing.models.is_empty());
        self.bench.looked(look);
        let table = self.bench.router.table();
        for (model, served_before) in before {
            let after = table.route(model.as_ref()).map(|route| served(route)).unwrap_or_default();
            // A listing in part may bring tombstones, decisions and successors: then availability is checked as ever.
            assert!(
                !lies || served_before.is_subset(&after),
                "a source that fails took {served_before:?} of {model}, {after:?} is left"
            );
        }
        Step::Harmless
    }

    /// A decision that the journal would accept.
    fn decide(&mut self) -> Step {
        let model = self.model();
        let Some(listed) = self.bench.source.get_mut(model) else { return Step::Harmless };
        let versions: Vec<VersionNumber> = listed.versions.keys().copied().collect();
        let Some(version) = (!versions.is_empty()).then(|| self.chance.pick(&versions)) else { return Step::Harmless };
        let op = match self.chance.below(9) {
            0 => Op::Weight { version, weight_bp: 1000 },
            1 => Op::Weight { version, weight_bp: 10_000 },
            2 => Op::Weight { version, weight_bp: 0 },
            3 => Op::Pin { version },
            4 => Op::Unpin,
            5 => Op::Rollback { version: None },
            6 => Op::Hold { version },
            7 => Op::Disable,
            _ => Op::Clear { version: None },
        };
        if listed.rollout.validate(&op).is_ok() {
            let at = chrono::DateTime::UNIX_EPOCH + self.bench.at;
            let seq = listed.rollout.seq + 1;
            let (by, reason, rollout) = ("sim".to_owned(), String::new(), String::new());
            let id = Uuid::from_u128(u128::from(self.chance.next()));
            let highest = versions.last().copied();
            listed.rollout.apply(&Entry {
                schema: 1,
                seq,
                id,
                at,
                by,
                reason,
                rollout,
                op,
                evidence: None,
                highest,
                published: None,
            });
        }
        Step::Harmless
    }

    fn tombstone(&mut self) -> Step {
        let model = self.model();
        let Some(listed) = self.bench.source.get_mut(model) else { return Step::Harmless };
        let versions: Vec<VersionNumber> = listed.versions.keys().copied().collect();
        if versions.is_empty() {
            return Step::Harmless;
        }
        let version = self.chance.pick(&versions);
        Arc::make_mut(listed.versions.get_mut(&version).unwrap()).tombstoned = true;
        self.bench.look();
        Step::MayStop(model)
    }

    /// A directory is gone; the look that shows it comes at once, so that nothing else is excused by it.
    fn delete(&mut self) -> Step {
        let model = self.model();
        let Some(listed) = self.bench.source.get_mut(model) else { return Step::Harmless };
        let versions: Vec<VersionNumber> = listed.versions.keys().copied().collect();
        if self.chance.percent(30) || versions.len() < 2 {
            self.bench.source.remove(model);
        } else {
            let version = self.chance.pick(&versions);
            listed.versions.remove(&version);
        }
        self.bench.look();
        if self.bench.rules.live.absent == Absent::Unload { Step::MayStop(model) } else { Step::Harmless }
    }

    fn configure(&mut self) -> Step {
        let model = self.model();
        let settings = self.chance.pick(&[
            "",
            "latest=2",
            "latest=3 instances=2",
            "all",
            "manual",
            "latest=1 manual",
            "gpu",
            "latest=2 gpus",
            "bad",
        ]);
        if self.bench.source.contains_key(model) {
            self.bench.configure(model, settings);
        }
        Step::Harmless
    }

    fn unload(&mut self) -> Step {
        let model = self.model();
        self.bench.unload(model);
        Step::MayStop(model)
    }

    fn load(&mut self) -> Step {
        let model = self.model();
        drop(self.bench.load(model));
        self.bench.look();
        Step::Harmless
    }

    /// A kill. Half of the time all that is on disk comes back before anybody can look.
    fn restart(&mut self) -> Step {
        let rules = self.bench.rules.clone();
        let promised = rules.live.transition == TransitionPolicy::AvailabilityPreserving
            && rules.live.memory_budgets.is_empty()
            && rules.load_mode != LoadMode::OnDemand;
        self.bench.restart();
        if self.chance.percent(50) {
            self.bench.run();
            for (model, served) in self.bench.disk.served.clone() {
                let off = matches!(self.bench.disk.operator.get(&model), Some(Operator::Off { .. }));
                if promised && !off && served.stable.is_some() {
                    self.tally.restored += 1;
                    let stages = self.bench.stages(model.as_ref());
                    assert!(self.bench.stable(model.as_ref()).is_some(), "{model} served {served:?} before the restart: {stages}");
                }
            }
        }
        Step::Restart
    }

    fn want(&mut self) -> Step {
        let model = self.model();
        self.bench.tell(Event::Wanted { model: name(model) });
        Step::Harmless
    }

    /// Once nothing fails but what is broken, all that should be ready is.
    fn converge(&mut self) {
        self.bench.look();
        for _ in 0..40 {
            self.bench.run();
            self.bench.wait(Duration::from_secs(60));
            for model in MODELS {
                self.bench.tell(Event::Wanted { model: name(model) });
            }
        }
        self.bench.run();
        self.check(&Step::Harmless);
        for model in self.bench.reconciler.models.values() {
            for version in model.aspired.versions.keys() {
                let lives: Vec<_> = model.residencies.values().filter(|residency| residency.version() == *version).collect();
                let well = lives.iter().any(|residency| residency.stage() == Stage::Ready);
                let excused = lives.iter().any(|residency| {
                    let refused = residency
                        .failure()
                        .is_some_and(|failure| matches!(failure.step, crate::FailedStep::Memory | crate::FailedStep::Settings));
                    refused
                        || self.broken.contains(&residency.generation.digest)
                        || !self.bench.rules.live.memory_budgets.is_empty()
                });
                assert!(well || excused, "{}: {}", model.name, self.bench.stages(model.name.as_ref()));
            }
        }
    }

    fn shut_down(&mut self) {
        self.bench.tell(Event::Shutdown { drain_timeout: Duration::from_secs(1) });
        self.bench.run();
        assert!(self.bench.snapshot.stopped, "{:?}", self.bench.snapshot.status.models);
        assert!(self.bench.reconciler.budget.iter().all(|(_, ledger)| ledger.reserved == 0));
        assert!(self.bench.snapshot.residents.is_empty());
        // Those of reconcilers that were killed are dropped by their own threads, in their own time.
        assert!(self.bench.runtime.log().wait_until(Duration::from_secs(30), |counts| counts.live == 0));
        self.tally.loaded += self.bench.runtime.log().counts().loaded;
        self.tally.drained += self.bench.reconciler.receipts.len();
    }
}

fn served(route: &crate::Route) -> BTreeSet<(VersionNumber, Digest)> {
    route.servables().map(|servable| (servable.version(), *servable.digest())).collect()
}

#[test]
fn nothing_that_must_never_happen_happens() {
    simulate(0..300);
}

#[test]
#[ignore = "long: 10,000 histories"]
fn nor_does_it_in_10_000_histories() {
    simulate(0..10_000);
}

/// Much of a history is waiting for the threads of instances: several side by side take less time.
const SIDE_BY_SIDE: usize = 4;

fn simulate(seeds: std::ops::Range<u64>) {
    let total = std::thread::scope(|scope| {
        let all = &seeds;
        let begin = |first| scope.spawn(move || histories(all.clone().skip(first).step_by(SIDE_BY_SIDE)));
        let workers: Vec<_> = (0..SIDE_BY_SIDE).map(begin).collect();
        workers.into_iter().map(|worker| worker.join().expect("a history failed")).fold(Tally::default(), Tally::and)
    });
    println!("{total:?}");
    for (what, count) in [
        ("loads", total.loaded),
        ("drains", total.drained),
        ("failures", total.failed),
        ("refusals", total.refused),
        ("restores", total.restored),
    ] {
        assert!(count as u64 >= (seeds.end - seeds.start) / 10, "{what}: {count} in {seeds:?}");
    }
}

fn histories(seeds: impl Iterator<Item = u64>) -> Tally {
    let mut total = Tally::default();
    for seed in seeds {
        let mut simulation = Simulation::new(seed);
        let history = std::panic::AssertUnwindSafe(|| simulation.run());
        if let Err(panic) = std::panic::catch_unwind(history) {
            eprintln!("the seed of this history is {seed}");
            std::panic::resume_unwind(panic);
        }
        total = total.and(simulation.tally);
    }
    total
}
