//! What must hold after every step of a history.

use super::*;

impl Simulation {
    /// Looks at everything that must hold after each step.
    pub(super) fn check(&mut self, step: &Step) {
        let failed = |status: &crate::VersionStatus| status.failed_step.is_some();
        let versions = || self.bench.snapshot.status.models.iter().flat_map(|model| &model.versions);
        self.tally.failed += versions().filter(|version| failed(version)).count();
        self.tally.refused += versions().filter(|version| version.failed_step.as_deref() == Some("memory")).count();
        self.check_table();
        self.check_memory();
        self.check_turns();
        self.check_availability(step);
    }

    /// The table names what is ready and nothing else.
    fn check_table(&self) {
        for route in self.bench.router.table().routes() {
            let model = &self.bench.reconciler.models[&route.model];
            let ready: BTreeSet<usize> = model
                .residencies
                .values()
                .filter(|residency| residency.stage() == Stage::Ready)
                .map(|residency| Arc::as_ptr(residency.servable.as_ref().unwrap()).addr())
                .collect();
            for servable in route.servables() {
                assert!(ready.contains(&Arc::as_ptr(servable).addr()), "the table names {servable:?}, which is not ready");
            }
            let numbers: BTreeSet<VersionNumber> = route.servables().map(|servable| servable.version()).collect();
            assert_eq!(numbers.len(), route.servables().count(), "the table names one version twice");
            assert_eq!(route.stable.is_some(), route.standing == crate::Standing::Serving);
        }
    }

    /// What is reserved is what residencies have, and no more than there is.
    fn check_memory(&self) {
        let reconciler = &self.bench.reconciler;
        let residencies = || reconciler.models.values().flat_map(|model| model.residencies.values());
        let (mut reserved, mut freeing) = (DeviceBytes::default(), DeviceBytes::default());
        residencies().for_each(|residency| reserved.add_all(&residency.reserved));
        let draining = residencies().filter(|residency| residency.stage() == Stage::Draining && !residency.overdue);
        draining.for_each(|residency| freeing.add_all(&residency.reserved));
        for (device, ledger) in reconciler.budget.iter() {
            assert_eq!((ledger.reserved, ledger.freeing), (reserved.on(device), freeing.on(device)), "{device}");
            assert!(ledger.limit.is_none_or(|limit| ledger.reserved <= limit), "{device}: {ledger:?}");
        }
        assert!(reserved.iter().all(|(device, _)| reconciler.budget.iter().any(|(known, _)| known == device)));
    }

    /// One load at a time a model, and as many of all as the rules say.
    fn check_turns(&self) {
        let reconciler = &self.bench.reconciler;
        assert!(reconciler.fetching <= MAX_FETCHES && reconciler.verifying <= loads::MAX_VERIFYING);
        assert!(reconciler.trying <= loads::MAX_TRYING);
        assert!(reconciler.loading <= self.bench.rules.live.loader_threads);
        let fetching = reconciler.models.values().flat_map(|model| model.residencies.values());
        assert_eq!(fetching.filter(|residency| residency.stage() == Stage::Fetching).count(), reconciler.fetching);
        for model in reconciler.models.values() {
            let loading = model
                .residencies
                .values()
                .filter(|residency| residency.stage().is_loading() && residency.stage() != Stage::Pending);
            assert!(loading.count() <= 1, "{}: {}", model.name, self.bench.stages(model.name.as_ref()));
        }
    }

    /// Whoever has served goes on serving, unless somebody wants otherwise.
    fn check_availability(&mut self, step: &Step) {
        let rules = &self.bench.rules;
        let promised = rules.live.transition == TransitionPolicy::AvailabilityPreserving && rules.load_mode != LoadMode::OnDemand;
        if *step == Step::Restart {
            self.serving.clear();
        }
        if let Step::MayStop(model) = step {
            self.serving.remove(model);
        }
        for model in MODELS {
            let serves = self.bench.stable(model).is_some();
            let lost = promised && !serves && self.serving.contains(model) && !self.serving_is_yanked(model);
            assert!(!lost, "{model} stopped serving after {step:?}: {}", self.bench.stages(model));
            if serves {
                self.serving.insert(model);
            } else {
                self.serving.remove(model);
            }
        }
    }

    /// Whether the version that served was taken away on purpose, by a tombstone that came with this look.
    fn serving_is_yanked(&self, model: &str) -> bool {
        let state = self.bench.reconciler.models.get(model);
        let exists = state.and_then(|state| state.exists.as_ref());
        let serving = state.and_then(|state| state.serving);
        let generation = serving.and_then(|serving| exists?.versions.get(&serving));
        generation.is_none_or(|generation| generation.tombstoned)
    }
}
