//! Whether an answer has NaN in it. That is no error, a model may mean it; but nobody should find out by accident.

use std::collections::BTreeSet;

use bascule_runtime_api::{DataType, Signature, Tensor};

/// Elements of each output of a request that are looked at, so that a look costs next to nothing beside the run.
pub(crate) const LOOKED_AT: usize = 1024;

/// The outputs of a version that had NaN before it took traffic.
#[derive(Debug, Default)]
pub(crate) struct NanOutputs(BTreeSet<String>);

impl NanOutputs {
    /// Looks at all that a run gave.
    pub(crate) fn look(&mut self, signature: &Signature, outputs: &[Tensor]) {
        let named = signature.outputs.iter().zip(outputs);
        self.0.extend(named.filter(|(_, output)| has_nan(output, usize::MAX)).map(|(spec, _)| spec.name.clone()));
    }

    /// What is said of them.
    pub(crate) fn warning(&self) -> Option<String> {
        let names: Vec<String> = self.0.iter().map(|name| format!("'{name}'")).collect();
        let outputs = if names.len() == 1 { "output" } else { "outputs" };
        (!names.is_empty()).then(|| format!("{outputs} {} had NaN in warm-up runs or golden samples", names.join(", ")))
    }
}

/// How many of these have NaN among the elements that are looked at.
pub(crate) fn count<'a>(outputs: impl IntoIterator<Item = &'a Tensor>) -> u64 {
    outputs.into_iter().map(|output| u64::from(has_nan(output, LOOKED_AT))).sum()
}

/// Whether one of the first `limit` elements of a floating-point tensor is NaN. Reads the bytes wherever they lie, and allocates nothing.
pub(crate) fn has_nan(tensor: &Tensor, limit: usize) -> bool {
    // Without its sign a NaN is larger than infinity, as an integer. No early end: that lets the compiler look at many at a time.
    macro_rules! any {
        ($bits:ty, $infinity:expr) => {{
            const WIDTH: usize = size_of::<$bits>();
            let (elements, _) = tensor.bytes().as_chunks::<WIDTH>();
            let looked_at = &elements[..elements.len().min(limit)];
            looked_at.iter().fold(false, |found, bytes| found | (<$bits>::from_le_bytes(*bytes) & (<$bits>::MAX >> 1) > $infinity))
        }};
    }
    match tensor.datatype() {
        DataType::Fp16 => any!(u16, 0x7c00),
        DataType::Bf16 => any!(u16, 0x7f80),
        DataType::Fp32 => any!(u32, 0x7f80_0000),
        DataType::Fp64 => any!(u64, 0x7ff0_0000_0000_0000),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn nan_is_found_in_every_floating_point_datatype_and_nothing_else_is() {
        macro_rules! check {
            ($rust:ty, $nan:expr, $others:expr) => {
                let others: [$rust; 5] = $others;
                let tensor = |elements: &[$rust]| Tensor::from_elements([elements.len() as i64], elements).unwrap();
                assert!(!has_nan(&tensor(&others), usize::MAX), stringify!($rust));
                for nan in [$nan, -$nan] {
                    assert!(has_nan(&tensor(&[&others[..], &[nan]].concat()), usize::MAX), stringify!($rust));
                }
            };
        }
        check!(f32, f32::NAN, [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN]);
        check!(f64, f64::NAN, [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MAX]);
        check!(f16, f16::NAN, [f16::ZERO, f16::NEG_ZERO, f16::INFINITY, f16::NEG_INFINITY, f16::MIN]);
        check!(bf16, bf16::NAN, [bf16::ZERO, bf16::NEG_ZERO, bf16::INFINITY, bf16::NEG_INFINITY, bf16::MAX]);
        // The least NaN, and bits that would be one.
        assert!(has_nan(&Tensor::from_elements([1], &[f32::from_bits(0x7f80_0001)]).unwrap(), 1));
        assert!(!has_nan(&Tensor::from_elements([1], &[0x7fc0_0000_u32]).unwrap(), 1));
    }

    #[test]
    fn no_more_is_looked_at_than_the_limit() {
        let tensor = Tensor::from_elements([3], &[1.0_f32, 2.0, f32::NAN]).unwrap();
        assert_eq!([2, 3, 4].map(|limit| has_nan(&tensor, limit)), [false, true, true]);
        let ending_in_nan = |elements: usize| {
            let all: Vec<f64> = (1..elements).map(|n| n as f64).chain([f64::NAN]).collect();
            Tensor::from_elements([elements as i64], &all).unwrap()
        };
        let outputs =
            [ending_in_nan(1024), ending_in_nan(1), ending_in_nan(1025), Tensor::from_elements([0], &[0_f32; 0]).unwrap()];
        assert_eq!(count(&outputs), 2);
        let misaligned = bytes::Bytes::from([&[0], &f32::NAN.to_le_bytes()[..]].concat()).slice(1..);
        assert!(has_nan(&Tensor::new(DataType::Fp32, [1], misaligned).unwrap(), 1));
    }
}
