//! The classification extension: an output's best classes instead of its values.
//!
//! Each class is a BYTES element `value:index` or `value:index:label`, the best first, as Triton writes it: floats with six decimals,
//! integers as they are. Equal values keep the lower index first; what is no number comes last. Deliberately absent: BOOL and BYTES,
//! which have no order.

use std::cmp::Ordering;
use std::fmt::Write as _;

use bascule_runtime_api::{DataType, Element, Shape, Tensor};
use bascule_serving::InferError;
use half::{bf16, f16};

/// The best `classes` of each row of an output, or of the whole output where it has no batch axis (`batched` is false). `classes` is 1 or
/// more; where there are fewer, all are given. `labels` names the classes by index.
///
/// # Errors
/// Where the output's datatype has no order.
pub fn classify(
    name: &str,
    tensor: &Tensor,
    classes: usize,
    batched: bool,
    labels: Option<&[String]>,
) -> Result<Tensor, InferError> {
    let job = Job { tensor, classes, batched, labels };
    let ranked = match tensor.datatype() {
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
        datatype @ (DataType::Bool | DataType::Bytes) => {
            return Err(InferError::invalid(format!(
                "output '{name}': expected a datatype of numbers for the parameter 'classification', the output is {datatype}"
            )));
        }
    };
    ranked.ok_or_else(|| InferError::Internal { message: format!("classes of output '{name}' do not make a tensor") })
}

struct Job<'a> {
    tensor: &'a Tensor,
    classes: usize,
    batched: bool,
    labels: Option<&'a [String]>,
}

impl Job<'_> {
    fn rank<T: Score>(&self) -> Option<Tensor> {
        let elements = self.tensor.elements::<T>()?;
        let rows = self.tensor.shape().first().filter(|_| self.batched).map(|rows| usize::try_from(*rows)).transpose().ok()?;
        let row_elements = elements.len() / rows.unwrap_or(1).max(1);
        let kept = self.classes.min(row_elements);
        let mut best = Vec::with_capacity(kept * rows.unwrap_or(1));
        let mut order: Vec<usize> = Vec::new();
        for row in 0..rows.unwrap_or(1) {
            let values = &elements[row * row_elements..(row + 1) * row_elements];
            order.clear();
            order.extend(0..row_elements);
            let by_rank = |left: &usize, right: &usize| values[*left].rank(&values[*right]).then(left.cmp(right));
            if kept > 0 && kept < row_elements {
                order.select_nth_unstable_by(kept - 1, by_rank);
                order.truncate(kept);
            }
            order.sort_unstable_by(by_rank);
            best.extend(order.iter().map(|index| self.show(values[*index], *index)));
        }
        let mut shape = Shape::new();
        shape.extend(rows.and_then(|rows| i64::try_from(rows).ok()));
        shape.push(i64::try_from(kept).ok()?);
        Tensor::from_byte_strings(shape, &best).ok()
    }

    fn show<T: Score>(&self, value: T, index: usize) -> String {
        let mut text = value.shown();
        // Writing to a string can't fail.
        let _ = write!(text, ":{index}");
        if let Some(label) = self.labels.and_then(|labels| labels.get(index)) {
            text.push(':');
            text.push_str(label);
        }
        text
    }
}

/// A value that classes are ranked by.
trait Score: Element {
    /// Which comes first.
    fn rank(&self, other: &Self) -> Ordering;
    fn shown(&self) -> String;
}

macro_rules! integer_score {
    ($($rust:ty),+) => {
        $(impl Score for $rust {
            fn rank(&self, other: &Self) -> Ordering {
                other.cmp(self)
            }
            fn shown(&self) -> String {
                self.to_string()
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
            fn shown(&self) -> String {
                let value = f64::from(*self);
                if value.is_nan() { "nan".to_owned() } else { format!("{value:.6}") }
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
