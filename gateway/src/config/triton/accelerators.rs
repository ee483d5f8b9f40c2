//! `optimization.execution_accelerators`: the providers of ONNX Runtime that a model asks for, with their options.

use bascule_proto::inference::model_optimization_policy::ExecutionAccelerators;

/// Parameters of TensorRT as Triton names them, and as the library does. Others go to the library by the name that they have.
const TENSORRT: [(&str, &str); 3] = [
    ("max_workspace_size_bytes", "trt_max_workspace_size"),
    ("int8_calibration_table_name", "trt_int8_calibration_table_name"),
    ("int8_use_native_calibration_table", "trt_int8_use_native_calibration_table"),
];

/// What the accelerators come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Accelerators {
    /// Settings of the runtime.
    pub(super) options: Vec<(String, String)>,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn read(accelerators: &ExecutionAccelerators) -> Accelerators {
    let mut read = Accelerators::default();
    let mut providers = Vec::new();
    for (at, accelerator) in accelerators.gpu_execution_accelerator.iter().enumerate() {
        let path = format!("`optimization.execution_accelerators.gpu_execution_accelerator[{at}]");
        let name = accelerator.name.as_str();
        if !["cuda", "tensorrt"].contains(&name) {
            read.problems.push(format!("{path}.name`: expected cuda or tensorrt, got {name:?}"));
            continue;
        }
        providers.push(name);
        let mut parameters: Vec<_> = accelerator.parameters.iter().collect();
        parameters.sort();
        for (key, value) in parameters {
            let (key, value) = match (name, key.as_str()) {
                ("tensorrt", "precision_mode") => match value.as_str() {
                    "FP32" => continue,
                    "FP16" => ("trt_fp16_enable", "1"),
                    "INT8" => ("trt_int8_enable", "1"),
                    other => {
                        read.problems
                            .push(format!("{path}.parameters[\"precision_mode\"]`: expected FP32, FP16 or INT8, got {other:?}"));
                        continue;
                    }
                },
                ("tensorrt", key) => {
                    let own = TENSORRT.iter().find(|(theirs, _)| *theirs == key).map_or(key, |(_, own)| own);
                    (own, value.as_str())
                }
                (_, key) => (key, value.as_str()),
            };
            read.options.push((format!("{name}.{key}"), value.to_owned()));
        }
    }
    // What TensorRT does not take goes to CUDA, as it does there.
    if providers == ["tensorrt"] {
        providers.push("cuda");
    }
    if !providers.is_empty() {
        read.options.push(("providers".to_owned(), providers.join(",")));
    }
    for (at, accelerator) in accelerators.cpu_execution_accelerator.iter().enumerate() {
        read.warnings.push(format!(
            "`optimization.execution_accelerators.cpu_execution_accelerator[{at}]`: {:?} has no effect",
            accelerator.name
        ));
    }
    read
}
