//! The one line to try, made from the signature of a model that is served.

use std::net::SocketAddr;

use bascule_runtime_api::{DataType, Signature, element_count};
use bascule_serving::Serving;
use serde_json::json;

use super::super::output::{note, print};

/// A request with more elements than this is no line to copy.
const MAX_ELEMENTS: usize = 256;

/// Waits until the gateway is ready, and prints a request that one of its models answers.
pub(super) async fn print_when_ready(serving: Serving, http: SocketAddr) {
    serving.wait_ready().await;
    let line = line(&serving, http);
    if print(&line).is_err() {
        note(&line);
    }
}

fn line(serving: &Serving, http: SocketAddr) -> String {
    let status = serving.status();
    let served = status.models.iter().filter(|model| model.stable.is_some());
    let signatures = served.filter_map(|model| {
        let routed = serving.router().route(&model.name).ok()?;
        Some((model.name.clone(), routed.route().stable.as_ref()?.signature().clone()))
    });
    let requests = signatures.filter_map(|(name, signature)| Some((name, request(&signature)?)));
    match requests.min_by_key(|(_, request)| request.len()) {
        Some((name, request)) => format!("try: curl -s http://{http}/v2/models/{name}/infer -d '{request}'"),
        None => format!("try: curl -s http://{http}/v2/models/stats"),
    }
}

/// A request of zeros, with one row where the model takes any number; `None` where it would be long.
fn request(signature: &Signature) -> Option<String> {
    let inputs = signature.inputs.iter().map(|input| {
        let shape: Vec<i64> = input.shape.iter().map(|size| if *size < 0 { 1 } else { *size }).collect();
        let count = element_count(&shape).filter(|count| *count <= MAX_ELEMENTS)?;
        let element = match input.datatype {
            DataType::Bool => "false",
            DataType::Bytes => "\"text\"",
            // JSON has no form of it.
            DataType::Bf16 => return None,
            _ => "0",
        };
        let (name, shape) = (json!(input.name), json!(shape));
        let contents = vec![element; count].join(",");
        Some(format!(r#"{{"name":{name},"shape":{shape},"datatype":"{}","data":[{contents}]}}"#, input.datatype))
    });
    let inputs: Option<Vec<String>> = inputs.collect();
    let request = format!(r#"{{"inputs":[{}]}}"#, inputs?.join(","));
    // A quote in a name would end the shell's text.
    (!request.contains('\'')).then_some(request)
}

#[cfg(test)]
mod tests {
    use bascule_runtime_api::TensorSpec;

    use super::*;

    fn check(inputs: &[(DataType, &[i64])]) -> Option<String> {
        let specs = inputs.iter().enumerate().map(|(at, (datatype, shape))| TensorSpec::new(format!("x{at}"), *datatype, *shape));
        request(&Signature { inputs: specs.collect(), ..Signature::default() })
    }

    #[test]
    fn a_request_fits_the_signature() {
        assert_eq!(
            check(&[(DataType::Fp32, &[-1, 2]), (DataType::Bytes, &[1])]).unwrap(),
            r#"{"inputs":[{"name":"x0","shape":[1,2],"datatype":"FP32","data":[0,0]},{"name":"x1","shape":[1],"datatype":"BYTES","data":["text"]}]}"#
        );
        assert_eq!(check(&[(DataType::Fp32, &[1, 3, 224, 224])]), None);
        assert_eq!(check(&[(DataType::Bf16, &[1])]), None);
        assert_eq!(check(&[(DataType::Int8, &[i64::MAX, 9])]), None);
    }
}
