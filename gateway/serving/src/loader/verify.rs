//! What can be known of a version before a session of it is made here: its runtime, its options, where it will run, the memory that this
//! takes, and what its trial says.

use std::sync::Arc;

use bascule_registry::{Generation, VersionNumber};
use bascule_runtime_api::{Device, Footprint, LoadError, LoadOptions, Runtime, Signature};

use super::golden::Golden;
use super::{LoadFailure, Runtimes, described, guarded};
use crate::budget::{Budget, DeviceBytes};
use crate::devices::{self, Placed, Placements, TrialPlace};
use crate::reconcile::Files;
use crate::state::FailedStep;
use crate::trial::{Trial, TrialJob, TrialReport, Wanted};
use crate::{CrowdedTrial, Devices, Gpus, ModelSettings};

/// What is to be verified.
#[derive(Debug, Clone)]
pub(crate) struct VerifyJob {
    pub(crate) generation: Arc<Generation>,
    pub(crate) settings: Arc<ModelSettings>,
    pub(crate) files: Files,
    /// What is reserved now, by which a device is chosen where the settings leave that open.
    pub(crate) budget: Budget,
    pub(crate) wanted: Wanted,
    /// A version of the model that runs on a GPU now, and which.
    pub(crate) on_gpu: Option<(VersionNumber, Device)>,
}

impl VerifyJob {
    /// A version that is alone in the world.
    pub(crate) fn alone(generation: Arc<Generation>, settings: Arc<ModelSettings>, files: Files) -> VerifyJob {
        VerifyJob { generation, settings, files, budget: Budget::default(), wanted: Wanted::default(), on_gpu: None }
    }
}

/// What decides where a version runs and is tried.
pub(crate) struct Surroundings<'a> {
    pub(crate) trial: Option<&'a dyn Trial>,
    pub(crate) crowded: CrowdedTrial,
    pub(crate) gpus: &'a dyn Gpus,
    pub(crate) placements: Placements,
}

impl Surroundings<'_> {
    /// Where nothing is tried, and nothing else is placed.
    pub(crate) fn untried(gpus: &dyn Gpus) -> Surroundings<'_> {
        Surroundings { trial: None, crowded: CrowdedTrial::default(), gpus, placements: Placements::default() }
    }
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
    /// What one session takes by estimate.
    pub(super) one: Footprint,
    /// Whether it has to be tried before it is loaded.
    pub(crate) is_untried: bool,
    /// Its place on its devices, until this is dropped.
    pub(crate) placed: Placed,
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
    fn take(&mut self, report: &TrialReport, settings: &ModelSettings) {
        let (Some(memory), Some(peak)) = (report.memory_bytes, report.peak_bytes) else { return };
        let sessions = u64::from(settings.instances.max(1)).saturating_mul(self.devices.len() as u64);
        let all = memory.saturating_mul(sessions);
        self.measured = Some(all);
        self.needs.set(Device::Cpu, all.saturating_add(peak.saturating_sub(memory)));
    }

    /// What its trial on a device is told.
    fn trial_on(&self, device: Device, job: &VerifyJob) -> TrialJob {
        let mut settings = ModelSettings { devices: Devices::These(vec![device]), ..(*job.settings).clone() };
        if device != self.options.device {
            // On the processor those of a GPU mean nothing, and some are refused.
            settings.runtime_options.retain(|key, value| !self.runtime.is_for_gpus(key, value));
        }
        TrialJob::new(Arc::clone(&job.generation), Arc::new(settings), job.files.dir())
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

/// Reads everything that can be known without making a session here, what was found in an earlier trial included.
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
        if let Some(trial) = around.trial {
            trial.admit(&job.generation)?;
        }
        let (devices, placed) = devices(runtime.as_ref(), job, &options, around)?;
        options.device = devices.first().copied().unwrap_or_default();
        let one = runtime.estimate(job.files.dir(), &options).map_err(|error| failure(described(&error)))?;
        // A library that is opened when it is needed is open by now, and only now knows its version for sure.
        let runtime_version = runtime.version().unwrap_or(runtime_version);
        let instances = u64::from(job.settings.instances.max(1));
        let mut needs = DeviceBytes::default();
        for device in &devices {
            let each = |bytes: u64| bytes.saturating_mul(instances);
            let of = Footprint { host_bytes: each(one.host_bytes), device_bytes: each(one.device_bytes), measured: false };
            needs.add_all(&DeviceBytes::of(of, *device));
        }
        let warnings = left_gpu(job, options.device).into_iter().collect();
        let placed = placed.unwrap_or_else(|| around.placements.place(needs.clone()));
        let (measured, is_untried) = (None, false);
        let mut verified =
            Verified { runtime, runtime_version, options, devices, golden, needs, measured, warnings, one, is_untried, placed };
        if let Some(trial) = around.trial {
            let tried = verified.trial_on(verified.options.device, job);
            match trial.known(&tried, &verified.runtime_name()) {
                Some(report) => verified.take(&report, &job.settings),
                None => verified.is_untried = true,
            }
        }
        Ok(verified)
    })
}

/// A remark where `auto` comes to the processor while another version has a GPU: it may be slower by far.
fn left_gpu(job: &VerifyJob, device: Device) -> Option<String> {
    let (version, gpu) = job.on_gpu.filter(|_| job.settings.devices == Devices::Auto && device == Device::Cpu)?;
    Some(format!("`auto` comes to the processor, because no GPU that can be used has room; version {version} runs on {gpu}"))
}

/// Where the sessions are to run; with their place there where it was chosen.
fn devices(
    runtime: &dyn Runtime,
    job: &VerifyJob,
    options: &LoadOptions,
    around: &Surroundings<'_>,
) -> Result<(Vec<Device>, Option<Placed>), LoadFailure> {
    let gpus = around.gpus;
    let failure = |error: &LoadError| LoadFailure::new(FailedStep::Verifying, described(error));
    match &job.settings.devices {
        Devices::These(devices) => {
            devices.iter().try_for_each(|device| runtime.check_device(*device)).map_err(|error| failure(&error))?;
            Ok((devices.clone(), None))
        }
        Devices::EveryGpu => {
            let devices: Vec<Device> = gpus.list().iter().map(|gpu| Device::Cuda(gpu.ordinal)).collect();
            if devices.is_empty() {
                let cause = "a GPU is asked for and this machine has none, or no driver for it";
                return Err(LoadFailure::new(FailedStep::Verifying, cause));
            }
            devices.iter().try_for_each(|device| runtime.check_device(*device)).map_err(|error| failure(&error))?;
            Ok((devices, None))
        }
        Devices::Auto => {
            let mut gpus = gpus.list();
            // Nothing is estimated, and no library opened, where there is nothing to choose.
            let Some(first) = gpus.first() else { return Ok((vec![Device::Cpu], None)) };
            let options = LoadOptions { device: Device::Cuda(first.ordinal), ..options.clone() };
            let one = runtime.estimate(job.files.dir(), &options).map_err(|error| failure(&error))?;
            let bytes = one.device_bytes.saturating_mul(u64::from(job.settings.instances.max(1)));
            gpus.retain(|gpu| runtime.check_device(Device::Cuda(gpu.ordinal)).is_ok());
            let (device, placed) = around.placements.choose(&gpus, &job.budget, bytes);
            Ok((vec![device], Some(placed)))
        }
    }
}

/// Has one session tried where there is a trial, on its own device or where the settings say.
pub(crate) fn try_out(mut verified: Verified, job: &VerifyJob, around: &Surroundings<'_>) -> Result<Verified, LoadFailure> {
    guarded(FailedStep::Trial, || {
        verified.is_untried = false;
        let Some(trial) = around.trial else { return Ok(verified) };
        let (own, bytes) = (verified.options.device, verified.one.device_bytes);
        let device = match devices::trial_place(own, bytes, &around.gpus.list(), around.crowded) {
            TrialPlace::On(device, remark) => {
                verified.warnings.extend(remark);
                device
            }
            TrialPlace::Nowhere(why) => {
                verified.warnings.push(why);
                return Ok(verified);
            }
            TrialPlace::Refused(why) => return Err(LoadFailure::new(FailedStep::Trial, why)),
        };
        let tried = verified.trial_on(device, job);
        let report = trial.try_out(&tried, &verified.runtime_name(), verified.one.host_bytes, &job.wanted)?;
        if let Some(report) = report {
            verified.take(&report, &job.settings);
        }
        Ok(verified)
    })
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
