//! What must hold of anything that a decoder of requests returns.

use bascule_runtime_api::Tensor;
use bascule_serving::{ErrorCode, InferError, InferRequest};

/// The most that one request may hold; small, so that limits are reached.
pub const LIMIT: usize = 1 << 16;

/// A request's tensors hold together and within the limit; a refusal is the caller's fault and says why in a sentence.
pub fn check(read: Result<InferRequest, InferError>) {
    match read {
        Ok(request) => {
            for input in &request.inputs {
                let tensor = &input.tensor;
                let again = Tensor::new(tensor.datatype(), tensor.shape(), tensor.bytes().clone());
                again.expect("a decoded tensor is valid");
            }
        }
        Err(error) => {
            let codes = [ErrorCode::InvalidArgument, ErrorCode::Unsupported, ErrorCode::TooLarge];
            assert!(codes.contains(&error.code()), "{error:?}");
            let length = error.to_string().len();
            assert!((1..2000).contains(&length), "{error}");
        }
    }
}
