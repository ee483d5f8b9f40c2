//! The classification extension: an output's best classes instead of its values.
//!
//! Each class is a BYTES element `value:index` or `value:index:label`, the best first, as Triton writes it: floats with six decimals,
//! integers as they are. Equal values keep the lower index first; what is no number comes last.
//!
//! Invariant: time grows with the output, memory with the classes that are kept, and those are bounded. Deliberately absent: BOOL and
//! BYTES, which have no order.

use std::cmp::Ordering;
use std::io::Write as _;

use bascule_runtime_api::{DataType, Element, Shape, Tensor};
use bascule_serving::InferError;
use half::{bf16, f16};

/// What the classes of one output may take: as much as a body by default.
const MAX_CLASSES_BYTES: usize = 64 << 20;

/// The shortest class, `0:0`, with its length before it.
const MIN_CLASS_BYTES: usize = 4 + 3;

/// The best `classes` of each row of an output, or of the whole output where it has no batch axis (`batched` is false). `classes` is 1 or
/// more; where there are fewer, all are given. `labels` names the classes by index.
///
/// # Errors
/// Where the output's datatype has no order, and [`InferError::TooLarge`] where so many classes take more than 64 MiB.
pub fn classify(
    name: &str,
    tensor: &Tensor,
    classes: usize,
    batched: bool,
    labels: Option<&[String]>,
) -> Result<Tensor, InferError> {
    let job = Job { name, tensor, classes, batched, labels };
    match tensor.datatype() {
        DataType::Uint8 => job.rank::<u8>(),
        DataType::Uint16 => job.rank::<u16>(),
        DataType::Uint32 => job.rank::<u32>(),
        DataType::Uint64 => job.rank::<u64>(),
        DataType::Int8 => job.rank::<i8>(),
        DataType::Int16 => job.rank::<i16>(),
        DataType::Int32 => job.rank::<i32>(),
        DataType::Int64 => job.rank::<i64>(),
        DataType::Fp16 => job.rank::<f16>(),
        DataType::Fp32 => job.rank::<f32>(),
        DataType::Fp64 => job.rank::<f64>(),
        DataType::Bf16 => job.rank::<bf16>(),
        datatype @ (DataType::Bool | DataType::Bytes) => Err(InferError::invalid(format!(
            "output '{name}': expected a datatype of numbers for the parameter 'classification', the output is {datatype}"
        ))),
    }
}

struct Job<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    classes: usize,
    batched: bool,
    labels: Option<&'a [String]>,
}

impl Job<'_> {
    fn rank<T: Score>(&self) -> Result<Tensor, InferError> {
        let broken = || InferError::Internal { message: format!("classes of output '{}' do not make a tensor", self.name) };
        let elements = self.tensor.elements::<T>().ok_or_else(broken)?;
        let rows = self.tensor.shape().first().filter(|_| self.batched);
        let rows = rows.map(|rows| usize::try_from(*rows)).transpose().map_err(|_| broken())?;
        let row_elements = elements.len() / rows.unwrap_or(1).max(1);
        let kept = self.classes.min(row_elements);
        // Known before any work is done.
        let least_bytes = kept.saturating_mul(rows.unwrap_or(1)).saturating_mul(MIN_CLASS_BYTES);
        if least_bytes > MAX_CLASSES_BYTES {
            return Err(self.too_large());
        }
        let mut written = Vec::with_capacity(least_bytes);
        let mut best = Vec::new();
        for row in 0..rows.unwrap_or(1) {
            let values = &elements[row * row_elements..(row + 1) * row_elements];
            select(values, kept, &mut best);
            for index in &best {
                self.write(&mut written, values[*index], *index)?;
            }
        }
        let mut shape = Shape::new();
        shape.extend(rows.and_then(|rows| i64::try_from(rows).ok()));
        shape.push(i64::try_from(kept).map_err(|_| broken())?);
        Tensor::new(DataType::Bytes, shape, written.into()).map_err(|_| broken())
    }

    /// Writes one class, with its length before it.
    fn write<T: Score>(&self, out: &mut Vec<u8>, value: T, index: usize) -> Result<(), InferError> {
        let prefix = out.len();
        out.extend_from_slice(&[0; 4]);
        value.write(out);
        // Writing to a vector can't fail.
        let _ = write!(out, ":{index}");
        if let Some(label) = self.labels.and_then(|labels| labels.get(index)) {
            out.push(b':');
            out.extend_from_slice(label.as_bytes());
        }
        let length = u32::try_from(out.len() - prefix - 4).ok().filter(|_| out.len() <= MAX_CLASSES_BYTES);
        let length = length.ok_or_else(|| self.too_large())?;
        out[prefix..prefix + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }

    fn too_large(&self) -> InferError {
        InferError::TooLarge { what: format!("the classification of output '{}'", self.name), limit_bytes: MAX_CLASSES_BYTES }
    }
}

/// The indices of the best `kept` values, the best first. Never holds more than twice as many.
fn select<T: Score>(values: &[T], kept: usize, best: &mut Vec<usize>) {
    const MIN_ROOM: usize = 256;
    best.clear();
    if kept == 0 {
        return;
    }
    let by_rank = |left: &usize, right: &usize| values[*left].rank(&values[*right]).then(left.cmp(right));
    let room = kept.saturating_mul(2).max(MIN_ROOM);
    // The last that is kept of what was seen: who comes later must be better.
    let mut last: Option<T> = None;
    for (index, value) in values.iter().enumerate() {
        if last.is_some_and(|last| value.rank(&last) != Ordering::Less) {
            continue;
        }
        best.push(index);
        if best.len() == room {
            let (_, at, _) = best.select_nth_unstable_by(kept - 1, by_rank);
            last = Some(values[*at]);
            best.truncate(kept);
        }
    }
    if best.len() > kept {
        best.select_nth_unstable_by(kept - 1, by_rank);
        best.truncate(kept);
    }
    best.sort_unstable_by(by_rank);
}

/// A value that classes are ranked by.
trait Score: Element {
    /// Which comes first.
    fn rank(&self, other: &Self) -> Ordering;
    /// Writes it as Triton does.
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! integer_score {
    ($($rust:ty),+) => {
        $(impl Score for $rust {
            fn rank(&self, other: &Self) -> Ordering {
                other.cmp(self)
            }
            fn write(&self, out: &mut Vec<u8>) {
                // Writing to a vector can't fail.
                let _ = write!(out, "{self}");
            }
        })+
    };
}

macro_rules! float_score {
    ($($rust:ty),+) => {
        $(impl Score for $rust {
            fn rank(&self, other: &Self) -> Ordering {
                // Only what is no number can't be compared, and that is last.
                other.partial_cmp(self).unwrap_or_else(|| self.is_nan().cmp(&other.is_nan()))
            }
            fn write(&self, out: &mut Vec<u8>) {
                let value = f64::from(*self);
                // Writing to a vector can't fail.
                let _ = if value.is_nan() { write!(out, "nan") } else { write!(out, "{value:.6}") };
            }
        })+
    };
}

integer_score!(u8, u16, u32, u64, i8, i16, i32, i64);
float_score!(f16, f32, f64, bf16);

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Element>(shape: &[i64], values: &[T], classes: usize, batched: bool, labels: &[&str]) -> (Vec<i64>, Vec<String>) {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let tensor = Tensor::from_elements(shape, values).unwrap();
        let ranked =
            classify("y", &tensor, classes, batched, Some(&labels).filter(|labels| !labels.is_empty()).map(Vec::as_slice)).unwrap();
        assert_eq!(ranked.datatype(), DataType::Bytes);
        let strings = ranked.byte_strings().map(|element| String::from_utf8(element.to_vec()).unwrap()).collect();
        (ranked.shape().to_vec(), strings)
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_best_come_first() {
        assert_eq!(check(&[1, 3], &[3f32, 3.0, 3.0], 2, true, &[]), (vec![1, 2], strings(&["3.000000:0", "3.000000:1"])));
        assert_eq!(
            check(&[1, 3, 1, 2], &[5f32, 4.0, 3.0, 2.0, 1.0, 6.0], 2, false, &[]),
            (vec![2], strings(&["6.000000:5", "5.000000:0"]))
        );
        assert_eq!(
            check(&[2, 3], &[1f64, 3.0, 2.0, 9.5, 7.0, 8.0], 2, true, &["a", "b"]),
            (vec![2, 2], strings(&["3.000000:1:b", "2.000000:2", "9.500000:0:a", "8.000000:2"]))
        );
        assert_eq!(
            check(&[2, 3], &[1i32, 3, 2, 9, 7, 8], 9, false, &[]),
            (vec![6], strings(&["9:3", "8:5", "7:4", "3:1", "2:2", "1:0"]))
        );
        assert_eq!(
            check(&[4], &[-1i8, 0, -128, 127], 3, false, &["p", "q", "r", "s"]),
            (vec![3], strings(&["127:3:s", "0:1:q", "-1:0:p"]))
        );
    }

    #[test]
    fn odd_values_and_shapes_have_an_answer() {
        let odd = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0];
        assert_eq!(check(&[4], &odd, 4, false, &[]), (vec![4], strings(&["inf:2", "-0.000000:3", "-inf:1", "nan:0"])));
        assert_eq!(check(&[], &[7u64], 3, false, &[]), (vec![1], strings(&["7:0"])));
        assert_eq!(check(&[0, 3], &[] as &[f32], 2, true, &[]), (vec![0, 0], vec![]));
        assert_eq!(check(&[2, 0], &[] as &[f32], 2, true, &[]), (vec![2, 0], vec![]));
        assert_eq!(check(&[2], &[f16::from_f32(0.5), f16::from_f32(1.0)], 1, false, &[]), (vec![1], strings(&["1.000000:1"])));
        assert_eq!(check(&[2], &[1u8, 2], usize::MAX, false, &[]), (vec![2], strings(&["2:1", "1:0"])));
    }

    #[test]
    fn few_of_many_are_those_that_a_full_sort_begins_with() {
        // Values that repeat, rise, fall and are no numbers, as the pieces of the selection meet them.
        let scattered: Vec<f32> = (0..5_000u32).map(|index| (index.wrapping_mul(2_654_435_761) % 1_009) as f32).collect();
        let rising: Vec<f32> = (0..5_000).map(|index| if index % 7 == 0 { f32::NAN } else { index as f32 }).collect();
        let falling: Vec<f32> = rising.iter().rev().copied().collect();
        for values in [scattered, rising, falling] {
            let mut sorted: Vec<usize> = (0..values.len()).collect();
            sorted.sort_by(|left, right| values[*left].rank(&values[*right]));
            for kept in [0, 1, 2, 127, 128, 129, 2_500, 4_999, 5_000] {
                let mut best = Vec::new();
                select(&values, kept, &mut best);
                assert_eq!(best, sorted[..kept], "{kept}");
                assert!(best.capacity() <= (2 * kept).max(256).next_power_of_two(), "{} for {kept}", best.capacity());
            }
        }
    }

    #[test]
    fn more_classes_than_an_answer_holds_are_refused() {
        let many = Tensor::new(DataType::Uint8, [10 << 20], vec![0; 10 << 20].into()).unwrap();
        let error = classify("y", &many, 1_000_000_000, false, None).unwrap_err();
        assert_eq!(error.to_string(), "the classification of output 'y' is larger than the limit of 67108864 bytes");
        assert_eq!(error.code(), bascule_serving::ErrorCode::TooLarge);
        // Labels count as well.
        let label = ["l".repeat(40 << 20), "l".repeat(40 << 20)];
        let two = Tensor::from_elements([2], &[1u8, 2]).unwrap();
        assert!(classify("y", &two, 1, false, Some(&label)).is_ok());
        assert!(matches!(classify("y", &two, 2, false, Some(&label)), Err(InferError::TooLarge { .. })));
    }

    #[test]
    fn what_has_no_order_is_refused() {
        for tensor in [Tensor::new(DataType::Bool, [1], vec![1].into()).unwrap(), Tensor::from_byte_strings([1], &["a"]).unwrap()] {
            let error = classify("y", &tensor, 1, false, None).unwrap_err();
            let datatype = tensor.datatype();
            assert_eq!(
                error.to_string(),
                format!("output 'y': expected a datatype of numbers for the parameter 'classification', the output is {datatype}")
            );
        }
    }
}
