//! Execution providers: which parts of the library compute a model, and whether they really do.
//!
//! A model for a GPU is given to the providers asked for, and to no others; one that can't be made is an error. The library still puts
//! nodes on the processor that no provider takes: after loading it is asked where each node went, and a node on the processor is an error
//! too, or with `cpu_fallback = "warn"` a warning that says how many.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr;

use bascule_runtime_api::{Device, LoadError, LoadOptions};
use ort::ep::{ArbitrarilyConfigurableExecutionProvider as _, CUDA, ExecutionProvider as _, ExecutionProviderDispatch, TensorRT};
use ort::session::Session as OrtSession;
use ort::session::builder::SessionBuilder;
use ort::{AsPointer as _, sys};

/// Makes the library keep where each node went.
const RECORD: &str = "session.record_ep_graph_assignment_info";

/// The provider of the processor, as the library names it.
const CPU_PROVIDER: &str = "CPUExecutionProvider";

/// Kinds of nodes that an error names.
const NAMED_OPERATORS: usize = 5;

/// A part of the library that computes on GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Provider {
    Cuda,
    TensorRt,
}

impl Provider {
    const ALL: [Provider; 2] = [Provider::Cuda, Provider::TensorRt];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
        }
    }

    fn is_available(self) -> ort::Result<bool> {
        match self {
            Provider::Cuda => CUDA::is_available(),
            Provider::TensorRt => TensorRT::is_available(),
        }
    }
}

/// What the settings say of providers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Providers {
    /// In the order in which they are asked to take a node; empty for CUDA alone.
    named: Vec<Provider>,
    /// The library's own options of each.
    options: BTreeMap<(Provider, String), String>,
    allows_cpu: bool,
}

impl Providers {
    /// Takes a setting; false where it is none of these.
    ///
    /// # Errors
    /// [`LoadError::Option`] for a wrong value.
    pub(crate) fn take(&mut self, key: &str, value: &str) -> Result<bool, LoadError> {
        match key {
            "providers" => {
                self.named = value.split(',').map(|name| provider(key, name)).collect::<Result<_, _>>()?;
            }
            "cpu_fallback" => {
                self.allows_cpu = match value.trim() {
                    "error" => false,
                    "warn" => true,
                    _ => return Err(LoadError::option(key, format!("expected error or warn, got '{value}'"))),
                };
            }
            _ => {
                let Some((name, own)) = key.split_once('.') else { return Ok(false) };
                let Some(provider) = Provider::ALL.into_iter().find(|provider| provider.name() == name) else { return Ok(false) };
                if own == "device_id" {
                    return Err(LoadError::option(key, "the device is what `device` says".to_owned()));
                }
                self.options.insert((provider, own.to_owned()), value.to_owned());
            }
        }
        Ok(true)
    }

    /// Whether what is said of providers goes with the device.
    ///
    /// # Errors
    /// [`LoadError::Option`] where providers for a GPU are named and the model is to run on the processor, or options of one that is not
    /// used.
    pub(crate) fn check(&self, options: &LoadOptions) -> Result<(), LoadError> {
        let used = self.used();
        if options.device == Device::Cpu
            && let Some(provider) = self.named.first()
        {
            return Err(LoadError::option("providers", format!("{} needs a GPU, and the model's device is cpu", provider.name())));
        }
        if options.device != Device::Cpu
            && let Some((provider, key)) = self.options.keys().find(|(provider, _)| !used.contains(provider))
        {
            let name = provider.name();
            return Err(LoadError::option(&format!("{name}.{key}"), format!("`providers` does not name {name}")));
        }
        Ok(())
    }

    fn used(&self) -> Vec<Provider> {
        if self.named.is_empty() { vec![Provider::Cuda] } else { self.named.clone() }
    }

    /// Gives the session's nodes to the providers of a GPU; an error names the one that can't be made.
    pub(crate) fn apply(&self, mut builder: SessionBuilder, ordinal: u32) -> Result<SessionBuilder, String> {
        let ordinal = i32::try_from(ordinal).map_err(|_| "no such device".to_owned())?;
        for provider in self.used() {
            let failed = |error: &dyn std::fmt::Display| format!("the provider {} can't be used: {error}", provider.name());
            if !provider.is_available().map_err(|error| failed(&error))? {
                return Err(failed(&"this onnx runtime was built without it"));
            }
            builder = builder.with_execution_providers([self.made(provider, ordinal)]).map_err(|error| failed(&error))?;
        }
        builder.with_config_entry(RECORD, "1").map_err(|error| error.to_string())
    }

    fn made(&self, provider: Provider, ordinal: i32) -> ExecutionProviderDispatch {
        let options = self.options.iter().filter(|((of, _), _)| *of == provider).map(|((_, key), value)| (key, value));
        let made = match provider {
            Provider::Cuda => options
                .fold(CUDA::default().with_device_id(ordinal), |made, (key, value)| made.with_arbitrary_config(key, value))
                .build(),
            Provider::TensorRt => options
                .fold(TensorRT::default().with_device_id(ordinal), |made, (key, value)| made.with_arbitrary_config(key, value))
                .build(),
        };
        made.error_on_failure()
    }

    /// What is to be said of the nodes that went to the processor, where any did.
    ///
    /// # Errors
    /// Where that is not allowed.
    pub(crate) fn judge(&self, assigned: &Assigned) -> Result<Option<String>, String> {
        let Some(share) = assigned.on_cpu() else { return Ok(None) };
        if self.allows_cpu {
            return Ok(Some(format!("{share} run on the processor")));
        }
        Err(format!("{share} would run on the processor; cpu_fallback = \"warn\" in [runtime] of model.toml allows that"))
    }
}

fn provider(key: &str, name: &str) -> Result<Provider, LoadError> {
    let name = name.trim();
    Provider::ALL
        .into_iter()
        .find(|provider| provider.name() == name)
        .ok_or_else(|| LoadError::option(key, format!("expected cuda, tensorrt or both with a comma between, got '{name}'")))
}

/// Whether an option is one of those that [`Providers::take`] takes: all of them are about GPUs.
pub(crate) fn is_for_gpus(key: &str) -> bool {
    let of_provider = |name: &str| Provider::ALL.into_iter().any(|provider| provider.name() == name);
    matches!(key, "providers" | "cpu_fallback") || key.split_once('.').is_some_and(|(name, _)| of_provider(name))
}

/// Whether this library has what computes on NVIDIA GPUs.
pub(crate) fn has_cuda() -> bool {
    Provider::Cuda.is_available().unwrap_or(false)
}

/// The nodes of a session: how many of each operator went to each provider.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Assigned(BTreeMap<(String, String), usize>);

impl Assigned {
    /// Asks the library, which has to have been told to [`RECORD`] it.
    #[expect(unsafe_code, reason = "the library tells it by functions that the wrapper does not have")]
    pub(crate) fn of(session: &OrtSession) -> ort::Result<Assigned> {
        let api = ort::api();
        let mut assigned = Assigned::default();
        // SAFETY: the session lives, and so does what it tells of itself; every place for a result is one of ours.
        unsafe {
            let (mut parts, mut count) = (ptr::null(), 0);
            told((api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut parts, &raw mut count))?;
            for part in 0..count {
                let part = *parts.add(part);
                let (mut provider, mut nodes, mut node_count) = (ptr::null(), ptr::null(), 0);
                told((api.EpAssignedSubgraph_GetEpName)(part, &raw mut provider))?;
                told((api.EpAssignedSubgraph_GetNodes)(part, &raw mut nodes, &raw mut node_count))?;
                let provider = CStr::from_ptr(provider).to_string_lossy().into_owned();
                for node in 0..node_count {
                    let mut operator = ptr::null();
                    told((api.EpAssignedNode_GetOperatorType)(*nodes.add(node), &raw mut operator))?;
                    let operator = CStr::from_ptr(operator).to_string_lossy().into_owned();
                    *assigned.0.entry((provider.clone(), operator)).or_default() += 1;
                }
            }
        }
        Ok(assigned)
    }

    /// The share of the nodes that are on the processor, with their operators; `None` where there are none.
    fn on_cpu(&self) -> Option<String> {
        let total: usize = self.0.values().sum();
        let mut operators: Vec<(&str, usize)> = self
            .0
            .iter()
            .filter(|((provider, _), _)| provider == CPU_PROVIDER)
            .map(|((_, operator), count)| (operator.as_str(), *count))
            .collect();
        let count: usize = operators.iter().map(|(_, count)| count).sum();
        if count == 0 {
            return None;
        }
        operators.sort_by_key(|(operator, count)| (std::cmp::Reverse(*count), *operator));
        let rest = operators.len().saturating_sub(NAMED_OPERATORS);
        let mut named: Vec<String> =
            operators.iter().take(NAMED_OPERATORS).map(|(operator, count)| format!("{operator} {count}")).collect();
        if rest > 0 {
            named.push(format!("{rest} other operators"));
        }
        Some(format!("{count} of {total} nodes ({}, {:.0} %)", named.join(", "), 100.0 * count as f64 / total as f64))
    }
}

#[expect(unsafe_code, reason = "a status belongs to whoever receives it")]
fn told(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the library gave it, and it is taken once.
    unsafe { ort::Error::result_from_status(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(nodes: &[(&str, &str, usize)]) -> Assigned {
        Assigned(nodes.iter().map(|(provider, operator, count)| ((provider.to_string(), operator.to_string()), *count)).collect())
    }

    fn providers(options: &[(&str, &str)]) -> Result<Providers, String> {
        let mut providers = Providers::default();
        for (key, value) in options {
            assert!(providers.take(key, value).map_err(|error| error.to_string())?, "{key} is not taken");
        }
        Ok(providers)
    }

    #[test]
    fn what_runs_elsewhere_is_an_error_or_a_warning_and_never_silent() {
        let strict = providers(&[]).unwrap();
        let lenient = providers(&[("cpu_fallback", "warn")]).unwrap();
        let whole = assigned(&[("CUDAExecutionProvider", "Conv", 9), ("TensorrtExecutionProvider", "MatMul", 1)]);
        assert_eq!((strict.judge(&whole), lenient.judge(&whole)), (Ok(None), Ok(None)));
        let split = assigned(&[("CUDAExecutionProvider", "Conv", 9), (CPU_PROVIDER, "NonZero", 1), (CPU_PROVIDER, "Shape", 2)]);
        let error = strict.judge(&split).unwrap_err();
        assert!(error.starts_with("3 of 12 nodes (Shape 2, NonZero 1, 25 %) would run on the processor; cpu_fallback"), "{error}");
        let warning = lenient.judge(&split).unwrap().unwrap();
        assert_eq!(warning, "3 of 12 nodes (Shape 2, NonZero 1, 25 %) run on the processor");
        let names = ["A", "B", "C", "D", "E", "F", "G"].map(|name| (CPU_PROVIDER, name, 1));
        let many = lenient.judge(&assigned(&names)).unwrap().unwrap();
        assert_eq!(many, "7 of 7 nodes (A 1, B 1, C 1, D 1, E 1, 2 other operators, 100 %) run on the processor");
    }

    #[test]
    fn the_library_tells_where_each_node_went() {
        let Some(path) = bascule_onnx_writer::library::find_or_skip() else { return };
        let library = crate::library::open(&[path], 0).unwrap();
        let dir = tempfile::TempDir::new().unwrap();
        bascule_onnx_writer::models::linear(&[1.0, 2.0], &[0.5, 0.5]).write_to(dir.path()).unwrap();
        let builder = OrtSession::builder(&library.environment).unwrap().with_config_entry(RECORD, "1").unwrap();
        let session = builder.clone().commit_from_file(dir.path().join("model.onnx")).unwrap();
        let share = Assigned::of(&session).unwrap().on_cpu().unwrap();
        let (count, rest) = share.split_once(" of ").unwrap();
        assert!(rest.starts_with(&format!("{count} nodes (")) && rest.ends_with(", 100 %)"), "{share}");
        assert!(count != "0" && (share.contains("MatMul") || share.contains("Gemm")), "{share}");
    }

    #[test]
    fn providers_go_with_the_device() {
        let check = |device: Device, settings: &[(&str, &str)]| {
            let options = LoadOptions { device, ..LoadOptions::default() };
            providers(settings)?.check(&options).map_err(|error| error.to_string())
        };
        let gpu = Device::Cuda(1);
        assert_eq!(check(gpu, &[("providers", "tensorrt, cuda"), ("tensorrt.trt_fp16_enable", "1")]), Ok(()));
        assert_eq!(check(gpu, &[("cuda.cudnn_conv_algo_search", "HEURISTIC")]), Ok(()));
        assert_eq!(check(Device::Cpu, &[("cuda.arena_extend_strategy", "kSameAsRequested")]), Ok(()));
        for (device, settings, expected) in [
            (Device::Cpu, vec![("providers", "cuda")], "setting 'providers': cuda needs a GPU, and the model's device is cpu"),
            (gpu, vec![("tensorrt.x", "1")], "setting 'tensorrt.x': `providers` does not name tensorrt"),
            (
                gpu,
                vec![("providers", "cuda,")],
                "setting 'providers': expected cuda, tensorrt or both with a comma between, got ''",
            ),
            (gpu, vec![("cuda.device_id", "1")], "setting 'cuda.device_id': the device is what `device` says"),
            (gpu, vec![("cpu_fallback", "yes")], "setting 'cpu_fallback': expected error or warn, got 'yes'"),
        ] {
            assert_eq!(check(device, &settings), Err(expected.to_owned()));
        }
        for (key, is_one) in
            [("providers", true), ("cpu_fallback", true), ("cuda.x", true), ("tensorrt.y", true), ("rocm.x", false)]
        {
            assert_eq!(is_for_gpus(key), is_one, "{key}");
        }
        let mut providers = Providers::default();
        assert!(!providers.take("rocm.x", "1").unwrap() && !providers.take("execution_mode", "1").unwrap());
    }
}
