//! What can be known of a version before a session of it is made here: its runtime, its options, where it will run, the memory that this
//! takes, and what its trial says.

use std::sync::Arc;

use bascule_registry::Generation;
use bascule_runtime_api::{Device, Footprint, LoadError, LoadOptions, Runtime, Signature};

use super::golden::Golden;
use super::{LoadFailure, Runtimes, described, guarded};
use crate::budget::{Budget, DeviceBytes};
use crate::devices::{self, TrialPlace};
use crate::reconcile::Files;
use crate::state::FailedStep;
use crate::trial::{Trial, TrialJob, TrialReport, Wanted};
use crate::{CrowdedTrial, Devices, Gpus, ModelSettings};

/// What is to be verified.
#[derive(Debug)]
pub(crate) struct VerifyJob {
    pub(crate) generation: Arc<Generation>,
    pub(crate) settings: Arc<ModelSettings>,
    pub(crate) files: Files,
    /// What is reserved now, by which a device is chosen where the settings leave that open.
    pub(crate) budget: Budget,
    pub(crate) wanted: Wanted,
}

/// What decides where a version runs and is tried.
pub(crate) struct Surroundings<'a> {
    pub(crate) trial: Option<&'a dyn Trial>,
    pub(crate) crowded: CrowdedTrial,
    pub(crate) gpus: &'a dyn Gpus,
}

/// A version that may be loaded once its memory is there.
pub(crate) struct Verified {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) runtime_version: String,
    /// For a session on the first of the devices.
    pub(super) options: LoadOptions,
    /// Where its sessions will run, as many on each.
    pub(super) devices: Vec<Device>,
    pub(super) golden: Option<Golden>,
    /// Memory of all sessions together, while they are loaded.
    pub(crate) needs: DeviceBytes,
    /// Main memory of all sessions once they are loaded, where a trial has measured it.
    pub(super) measured: Option<u64>,
    /// What is to be known of it although it may be loaded.
    pub(super) warnings: Vec<String>,
}

impl Verified {
    /// The runtime, and the version of its library.
    pub(crate) fn runtime_name(&self) -> String {
        format!("{} {}", self.runtime.name(), self.runtime_version)
    }

    /// Whether there are golden samples.
    pub(crate) fn has_golden(&self) -> bool {
        self.golden.is_some()
    }

    /// The same version, whatever it answers.
    pub(crate) fn without_golden(self) -> Verified {
        Verified { golden: None, ..self }
    }

    /// Goes by what a trial has measured of one session. Memory of GPUs is not measured.
    fn take(&mut self, report: &TrialReport, sessions: u64) {
        let (Some(memory), Some(peak)) = (report.memory_bytes, report.peak_bytes) else { return };
        let all = memory.saturating_mul(sessions);
        self.measured = Some(all);
        self.needs.set(Device::Cpu, all.saturating_add(peak.saturating_sub(memory)));
    }

    /// What it needs while it is loaded; measured where a trial did so and no GPU has any of it.
    pub(crate) fn footprint(&self) -> Footprint {
        let device_bytes = self.needs.iter().filter(|(device, _)| *device != Device::Cpu).map(|(_, bytes)| bytes).sum();
        let measured = self.measured.is_some() && device_bytes == 0;
        Footprint { host_bytes: self.needs.on(Device::Cpu), device_bytes, measured }
    }
}

impl std::fmt::Debug for Verified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verified").field("runtime", &self.runtime.name()).field("needs", &self.needs).finish_non_exhaustive()
    }
}

/// Reads everything that can be known without making a session here, and has the version tried where there is a trial.
pub(crate) fn verify(runtimes: &Runtimes, job: &VerifyJob, around: &Surroundings<'_>) -> Result<Verified, LoadFailure> {
    guarded(FailedStep::Verifying, || {
        let failure = |cause: String| LoadFailure::new(FailedStep::Verifying, cause);
        let manifest = &job.generation.manifest;
        let (runtime, runtime_version) = runtimes.find(manifest, &job.settings)?;
        let mut options = options(&job.generation, &job.settings)?;
        let golden = match &manifest.golden {
            Some(path) => {
                Some(Golden::read(&job.files.dir().join(path)).map_err(|error| failure(format!("golden file {path}: {error}")))?)
            }
            None => None,
        };
        let devices = devices(runtime.as_ref(), job, &options, around.gpus)?;
        options.device = devices.first().copied().unwrap_or_default();
        let one = runtime.estimate(job.files.dir(), &options).map_err(|error| failure(described(&error)))?;
        let instances = u64::from(job.settings.instances.max(1));
        let mut needs = DeviceBytes::default();
        for device in &devices {
            let each = |bytes: u64| bytes.saturating_mul(instances);
            let of = Footprint { host_bytes: each(one.host_bytes), device_bytes: each(one.device_bytes), measured: false };
            needs.add_all(&DeviceBytes::of(of, *device));
        }
        let sessions = instances.saturating_mul(devices.len() as u64);
        let mut verified =
            Verified { runtime, runtime_version, options, devices, golden, needs, measured: None, warnings: Vec::new() };
        if let Some(report) = try_out(&mut verified, job, one, around)? {
            verified.take(&report, sessions);
        }
        Ok(verified)
    })
}

/// Where the sessions are to run.
fn devices(runtime: &dyn Runtime, job: &VerifyJob, options: &LoadOptions, gpus: &dyn Gpus) -> Result<Vec<Device>, LoadFailure> {
    let failure = |error: &LoadError| LoadFailure::new(FailedStep::Verifying, described(error));
    match &job.settings.devices {
        Devices::These(devices) => {
            devices.iter().try_for_each(|device| runtime.check_device(*device)).map_err(|error| failure(&error))?;
            Ok(devices.clone())
        }
        Devices::EveryGpu => {
            let devices: Vec<Device> = gpus.list().iter().map(|gpu| Device::Cuda(gpu.ordinal)).collect();
            if devices.is_empty() {
                let cause = "a GPU is asked for and this machine has none, or no driver for it";
                return Err(LoadFailure::new(FailedStep::Verifying, cause));
            }
            devices.iter().try_for_each(|device| runtime.check_device(*device)).map_err(|error| failure(&error))?;
            Ok(devices)
        }
        Devices::Auto => {
            let gpus = gpus.list();
            // Nothing is estimated, and no library opened, where there is nothing to choose.
            let Some(first) = gpus.first() else { return Ok(vec![Device::Cpu]) };
            let options = LoadOptions { device: Device::Cuda(first.ordinal), ..options.clone() };
            let one = runtime.estimate(job.files.dir(), &options).map_err(|error| failure(&error))?;
            let bytes = one.device_bytes.saturating_mul(u64::from(job.settings.instances.max(1)));
            Ok(vec![devices::choose(&gpus, &job.budget, bytes, |device| runtime.check_device(device).is_ok())])
        }
    }
}

/// Has one session tried where there is a trial, on its own device or where the settings say.
fn try_out(
    verified: &mut Verified,
    job: &VerifyJob,
    one: Footprint,
    around: &Surroundings<'_>,
) -> Result<Option<TrialReport>, LoadFailure> {
    let Some(trial) = around.trial else { return Ok(None) };
    let device = match devices::trial_place(verified.options.device, one.device_bytes, &around.gpus.list(), around.crowded) {
        TrialPlace::On(device, remark) => {
            verified.warnings.extend(remark);
            device
        }
        TrialPlace::Nowhere(why) => {
            verified.warnings.push(why);
            return Ok(None);
        }
        TrialPlace::Refused(why) => return Err(LoadFailure::new(FailedStep::Trial, why)),
    };
    let settings = ModelSettings { devices: Devices::These(vec![device]), ..(*job.settings).clone() };
    let tried = TrialJob::new(Arc::clone(&job.generation), Arc::new(settings), job.files.dir());
    Ok(trial.try_out(&tried, &verified.runtime_name(), one.host_bytes, &job.wanted)?)
}

/// The manifest's signature goes before that of the settings; the runtime compares it with the file. The model file is one of those that
/// the version's digest stands for.
fn options(generation: &Generation, settings: &ModelSettings) -> Result<LoadOptions, LoadFailure> {
    let manifest = &generation.manifest;
    let entrypoint = settings.entrypoint.as_deref().unwrap_or(&manifest.entrypoint);
    if !manifest.files.iter().any(|file| file.path == entrypoint) {
        let cause = format!("the settings name the model file {entrypoint:?}, which is not among the version's files");
        return Err(LoadFailure::new(FailedStep::Verifying, cause));
    }
    let declared = match &manifest.signature {
        Some(signature) => {
            let read = serde_json::from_value::<Signature>(signature.clone());
            Some(read.map_err(|error| LoadFailure::new(FailedStep::Verifying, format!("manifest field `signature`: {error}")))?)
        }
        None => settings.declared.clone(),
    };
    Ok(LoadOptions {
        entrypoint: entrypoint.into(),
        // Where it runs is decided later.
        device: Device::Cpu,
        intra_op_threads: settings.intra_op_threads,
        inter_op_threads: 1,
        declared,
        options: settings.runtime_options.clone(),
    })
}
