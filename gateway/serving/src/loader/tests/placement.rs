//! On which devices sessions are made, and where a version is tried.

use super::*;
use crate::NoGpus;
use crate::state::FailedStep;
use crate::trial::{TrialFailure, examine};

/// A runtime and a machine with GPUs, of which so many bytes are free.
fn with_gpus(free: &[u64], devices: Devices) -> Fixture {
    let gpu = |(ordinal, free_bytes): (usize, &u64)| Gpu {
        ordinal: u32::try_from(ordinal).unwrap(),
        name: "a gpu".to_owned(),
        total_bytes: 100_000,
        free_bytes: *free_bytes,
    };
    let mut fixture = fixture(&FakeModel { bytes: 1000, ..constant(1.0) });
    fixture.runtime = FakeRuntime::with_gpus(u32::try_from(free.len()).unwrap());
    fixture.gpus = free.iter().enumerate().map(gpu).collect();
    fixture.settings.devices = devices;
    fixture
}

fn on(devices: &[Device]) -> Devices {
    Devices::These(devices.to_vec())
}

const FIRST: Device = Device::Cuda(0);
const SECOND: Device = Device::Cuda(1);

#[test]
fn each_device_has_its_instances_and_its_memory() {
    let mut fixture = with_gpus(&[50_000, 50_000], on(&[SECOND, FIRST]));
    fixture.settings.instances = 2;
    let verified = fixture.verify().unwrap();
    assert_eq!((verified.needs.on(FIRST), verified.needs.on(SECOND)), (2000, 2000));
    let loaded = fixture.load().unwrap();
    assert_eq!((loaded.servable.devices(), loaded.servable.devices_shown()), (&[FIRST, SECOND][..], "cuda:0, cuda:1".to_owned()));
    assert_eq!(loaded.servable.instances(), 4);
    assert_eq!((loaded.takes.on(Device::Cpu), loaded.takes.on(FIRST), loaded.takes.on(SECOND)), (0, 2000, 2000));
    assert_eq!(fixture.runtime.log().counts().live, 4);
}

#[test]
fn what_is_asked_for_and_absent_is_an_error() {
    let fixture = with_gpus(&[50_000], on(&[FIRST, Device::Cuda(7)]));
    assert_eq!(fixture.failure(), "verifying: device cuda:7 can't be used: the fake runtime has 1 of them");
}

#[test]
fn auto_goes_by_the_room_and_never_where_the_runtime_can_not() {
    let runs_on = |fixture: &Fixture| fixture.load().unwrap().servable.devices_shown();
    assert_eq!(runs_on(&with_gpus(&[], Devices::Auto)), "cpu");
    assert_eq!(runs_on(&with_gpus(&[10_000, 20_000], Devices::Auto)), "cuda:1");
    assert_eq!(runs_on(&with_gpus(&[10, 20], Devices::Auto)), "cpu");
    let mut without = with_gpus(&[10_000], Devices::Auto);
    without.runtime = FakeRuntime::new();
    assert_eq!(runs_on(&without), "cpu");
}

/// Notes where it was asked to try, and finds nothing wrong.
#[derive(Default)]
struct Noting(Mutex<Vec<Devices>>);

impl Trial for Noting {
    fn try_out(&self, job: &TrialJob, _: &str, _: u64, _: &Wanted) -> Result<Option<TrialReport>, TrialFailure> {
        self.0.lock().unwrap().push(job.settings.devices.clone());
        Ok(None)
    }
}

#[test]
fn a_trial_is_made_where_the_version_will_run_unless_there_is_no_room() {
    let check = |free: u64, crowded: CrowdedTrial| {
        let trial = Arc::new(Noting::default());
        let mut fixture = with_gpus(&[free], on(&[FIRST]));
        fixture.crowded = crowded;
        fixture.trial = Some(Arc::<Noting>::clone(&trial));
        let loaded = fixture.load().map(|loaded| (loaded.servable.devices_shown(), loaded.warnings));
        (trial.0.lock().unwrap().clone(), loaded.map_err(|failure| failure.step))
    };
    let gpu = "cuda:0".to_owned();
    assert_eq!(check(1000, CrowdedTrial::Fail), (vec![on(&[FIRST])], Ok((gpu.clone(), Vec::new()))));
    let why = "cuda:0 has 999 bytes free and its trial needs 1000 by estimate";
    let remark = format!("tried on the processor: {why}");
    assert_eq!(check(999, CrowdedTrial::Cpu), (vec![on(&[Device::Cpu])], Ok((gpu.clone(), vec![remark]))));
    assert_eq!(check(999, CrowdedTrial::Skip), (Vec::new(), Ok((gpu, vec![format!("not tried: {why}")]))));
    assert_eq!(check(999, CrowdedTrial::Fail), (Vec::new(), Err(FailedStep::Trial)));
}

/// Lets nothing in.
struct Closed;

impl Trial for Closed {
    fn admit(&self, _: &Generation) -> Result<(), TrialFailure> {
        Err(TrialFailure { step: "quarantine".to_owned(), cause: "kept out".to_owned() })
    }

    fn try_out(&self, _: &TrialJob, _: &str, _: u64, _: &Wanted) -> Result<Option<TrialReport>, TrialFailure> {
        Ok(None)
    }
}

#[test]
fn what_is_kept_out_is_not_let_in_by_going_without_its_trial() {
    for crowded in [CrowdedTrial::Cpu, CrowdedTrial::Skip, CrowdedTrial::Fail] {
        let mut fixture = with_gpus(&[999], on(&[FIRST]));
        fixture.crowded = crowded;
        fixture.trial = Some(Arc::new(Closed));
        assert_eq!(fixture.failure(), "quarantine: kept out", "{crowded:?}");
    }
}

/// Tries in this process what it is told to.
struct Examining(FakeRuntime);

impl Trial for Examining {
    fn try_out(&self, job: &TrialJob, _: &str, _: u64, _: &Wanted) -> Result<Option<TrialReport>, TrialFailure> {
        examine(&[Arc::new(self.0.clone())], job, &NoGpus).map(Some)
    }
}

#[test]
fn a_trial_on_the_processor_goes_without_what_is_said_of_gpus() {
    let with = |free: u64, device: Device, option: &str| {
        let mut fixture = with_gpus(&[free], on(&[device]));
        fixture.settings.runtime_options.insert(option.to_owned(), "tensorrt".to_owned());
        fixture.trial = Some(Arc::new(Examining(fixture.runtime.clone())));
        fixture
    };
    let loaded = with(999, FIRST, "gpu.providers").load().unwrap();
    assert_eq!((loaded.servable.devices_shown(), loaded.warnings.len()), ("cuda:0".to_owned(), 1), "{:?}", loaded.warnings);
    assert_eq!(with(1000, FIRST, "gpu.providers").load().unwrap().warnings, Vec::<String>::new());
    let expected = "loading: setting 'gpu.providers': it needs a GPU";
    assert_eq!(with(1000, Device::Cpu, "gpu.providers").failure(), expected, "where it is to run there");
    assert_eq!(with(999, FIRST, "speed").failure(), "loading: setting 'speed': the fake runtime has no settings");
}

#[test]
fn auto_counts_what_was_placed_and_is_not_loaded_yet() {
    let fixture = with_gpus(&[50_000, 50_000], Devices::Auto);
    let verified: Vec<Verified> = (0..4).map(|_| fixture.verify().unwrap()).collect();
    let placed: Vec<Device> = verified.iter().map(|verified| verified.devices[0]).collect();
    assert_eq!(placed, [FIRST, SECOND, FIRST, SECOND]);
    drop(verified);
    assert_eq!(fixture.verify().unwrap().devices, [FIRST], "none of them came to be loaded");
    let asked = with_gpus(&[50_000, 50_000], on(&[FIRST]));
    let _placed = asked.verify().unwrap();
    let auto = Fixture { settings: ModelSettings { devices: Devices::Auto, ..ModelSettings::default() }, ..asked };
    assert_eq!(auto.verify().unwrap().devices, [SECOND], "whoever else says where it runs");
}

#[test]
fn auto_that_leaves_the_gpu_of_another_version_is_a_warning() {
    let warnings = |free: u64, devices: Devices| {
        let mut fixture = with_gpus(&[free], devices);
        fixture.on_gpu = Some((3, FIRST));
        fixture.load().unwrap().warnings
    };
    let expected = "`auto` comes to the processor, because no GPU that can be used has room; version 3 runs on cuda:0";
    assert_eq!(warnings(10, Devices::Auto), [expected]);
    assert_eq!(warnings(50_000, Devices::Auto), Vec::<String>::new());
    assert_eq!(warnings(10, on(&[Device::Cpu])), Vec::<String>::new(), "that was asked for");
}
