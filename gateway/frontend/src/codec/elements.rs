//! A JSON array of elements, straight into the storage of a tensor.
//!
//! Arrays may be nested in any way, row after row; what counts is that there are as many elements as the shape says. Storage is reserved
//! for what the text can hold, never for what a shape claims, and never beyond the budget. Deliberately absent: conversions that lose
//! something, such as 1.0 for an integer or 1 for a truth value.

use std::fmt::Display;

use bascule_runtime_api::{AlignedBuffer, DataType, Tensor, element_count};
use bascule_serving::InferError;
use bytemuck::Pod;
use bytes::Bytes;
use half::f16;

use super::cursor::{Cursor, MAX_DEPTH, Unexpected};
use super::number::Number;

/// What the decoded tensors of one request may take together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) left_bytes: usize,
    pub(crate) limit_bytes: usize,
}

impl Budget {
    pub(crate) fn new(limit_bytes: usize) -> Budget {
        Budget { left_bytes: limit_bytes, limit_bytes }
    }
}

/// Why reading an array ended early.
enum Stop {
    Unexpected(Unexpected),
    TooMany,
    TooLarge,
}

impl From<Unexpected> for Stop {
    fn from(unexpected: Unexpected) -> Stop {
        Stop::Unexpected(unexpected)
    }
}

/// A datatype's element as a JSON number.
trait FromNumber: Pod + Send {
    const EXPECTED: &'static str;
    fn from_number(number: &Number<'_>) -> Option<Self>;
}

macro_rules! from_number {
    ($($rust:ty, $read:ident, $expected:literal;)+) => {
        $(impl FromNumber for $rust {
            const EXPECTED: &'static str = $expected;
            fn from_number(number: &Number<'_>) -> Option<Self> {
                number.$read()?.try_into().ok()
            }
        })+
    };
    (float $($rust:ty, $read:ident;)+) => {
        $(impl FromNumber for $rust {
            const EXPECTED: &'static str = "a number";
            fn from_number(number: &Number<'_>) -> Option<Self> {
                Some(number.$read())
            }
        })+
    };
}

from_number! {
    u8, unsigned, "an integer from 0 to 255";
    u16, unsigned, "an integer from 0 to 65535";
    u32, unsigned, "an integer from 0 to 4294967295";
    u64, unsigned, "an integer from 0 to 18446744073709551615";
    i8, signed, "an integer from -128 to 127";
    i16, signed, "an integer from -32768 to 32767";
    i32, signed, "an integer from -2147483648 to 2147483647";
    i64, signed, "an integer from -9223372036854775808 to 9223372036854775807";
}

from_number! { float
    f16, f16;
    f32, f32;
    f64, f64;
}

/// Reads the array at the cursor as a tensor.
///
/// # Errors
/// Names `label` and the element, and says what was expected.
pub(crate) fn read_tensor(
    cursor: &mut Cursor<'_>,
    label: &dyn Display,
    datatype: DataType,
    shape: &[i64],
    budget: &mut Budget,
) -> Result<Tensor, InferError> {
    let Some(expected) = element_count(shape) else {
        return Err(InferError::invalid(format!(
            "{label}: expected dimensions of 0 or more whose product can be addressed, got shape {shape:?}"
        )));
    };
    if cursor.peek() != Some(b'[') {
        return Err(cursor.unexpected("an array").in_field(cursor.text(), format_args!("{label}, 'data'")));
    }
    let mut read = 0;
    let bytes = match datatype {
        DataType::Bool => booleans(cursor, expected, budget, &mut read),
        DataType::Uint8 => numbers::<u8>(cursor, expected, budget, &mut read),
        DataType::Uint16 => numbers::<u16>(cursor, expected, budget, &mut read),
        DataType::Uint32 => numbers::<u32>(cursor, expected, budget, &mut read),
        DataType::Uint64 => numbers::<u64>(cursor, expected, budget, &mut read),
        DataType::Int8 => numbers::<i8>(cursor, expected, budget, &mut read),
        DataType::Int16 => numbers::<i16>(cursor, expected, budget, &mut read),
        DataType::Int32 => numbers::<i32>(cursor, expected, budget, &mut read),
        DataType::Int64 => numbers::<i64>(cursor, expected, budget, &mut read),
        DataType::Fp16 => numbers::<f16>(cursor, expected, budget, &mut read),
        DataType::Fp32 => numbers::<f32>(cursor, expected, budget, &mut read),
        DataType::Fp64 => numbers::<f64>(cursor, expected, budget, &mut read),
        DataType::Bytes => strings(cursor, expected, budget, &mut read),
        DataType::Bf16 => {
            return Err(InferError::invalid(format!(
                "{label}: BF16 has no JSON form, expected binary data with its size in the parameter 'binary_data_size'"
            )));
        }
    };
    let bytes = match bytes {
        Ok(bytes) if read == expected => bytes,
        Ok(_) => return Err(wrong_count(label, shape, expected, read)),
        Err(Stop::TooMany) => return Err(wrong_count(label, shape, expected, "more")),
        Err(Stop::TooLarge) => return Err(InferError::TooLarge { what: label.to_string(), limit_bytes: budget.limit_bytes }),
        Err(Stop::Unexpected(unexpected)) => {
            return Err(unexpected.in_field(cursor.text(), format_args!("{label}, element {read}")));
        }
    };
    budget.left_bytes -= bytes.len().min(budget.left_bytes);
    Tensor::new(datatype, shape, bytes).map_err(|error| InferError::invalid(format!("{label}: {error}")))
}

fn wrong_count(label: &dyn Display, shape: &[i64], expected: usize, found: impl Display) -> InferError {
    InferError::invalid(format!("{label}: expected {expected} elements for shape {shape:?}, got {found}"))
}

/// Walks nested arrays and calls `element` at each value that is none.
fn walk<'a>(
    cursor: &mut Cursor<'a>,
    read: &mut usize,
    expected: usize,
    mut element: impl FnMut(&mut Cursor<'a>) -> Result<(), Stop>,
) -> Result<(), Stop> {
    cursor.expect(b'[', "an array")?;
    let mut depth = 1;
    let mut first = true;
    while depth > 0 {
        if !cursor.next_element(&mut first)? {
            depth -= 1;
            continue;
        }
        match cursor.peek() {
            Some(b'[') => {
                cursor.take(b'[');
                depth += 1;
                first = true;
                if depth > MAX_DEPTH {
                    return Err(cursor.unexpected("at most 64 levels of nesting").into());
                }
            }
            // Another bracket would be no element, but what is neither is one too many.
            Some(_) if *read == expected => return Err(Stop::TooMany),
            _ => {
                element(cursor)?;
                *read += 1;
            }
        }
    }
    Ok(())
}

/// How many elements to reserve: what the shape says, what the text can hold at two bytes an element, or what the budget allows.
fn reserve(cursor: &Cursor<'_>, expected: usize, allowed: usize) -> usize {
    expected.min(cursor.remaining() / 2 + 1).min(allowed)
}

/// Keeps a vector alive for the tensor that shows its bytes.
struct Stored<T>(Vec<T>);

impl<T: Pod> AsRef<[u8]> for Stored<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

fn numbers<T: FromNumber>(cursor: &mut Cursor<'_>, expected: usize, budget: &Budget, read: &mut usize) -> Result<Bytes, Stop> {
    let allowed = budget.left_bytes / size_of::<T>();
    let mut values: Vec<T> = Vec::with_capacity(reserve(cursor, expected, allowed));
    walk(cursor, read, expected, |cursor| {
        if values.len() == allowed {
            return Err(Stop::TooLarge);
        }
        let number = cursor.number(T::EXPECTED)?;
        let Some(value) = T::from_number(&number) else {
            return Err(Unexpected { at: cursor.place() - number.len(), expected: T::EXPECTED }.into());
        };
        values.push(value);
        Ok(())
    })?;
    Ok(Bytes::from_owner(Stored(values)))
}

fn booleans(cursor: &mut Cursor<'_>, expected: usize, budget: &Budget, read: &mut usize) -> Result<Bytes, Stop> {
    let allowed = budget.left_bytes;
    let mut values: Vec<u8> = Vec::with_capacity(reserve(cursor, expected, allowed));
    walk(cursor, read, expected, |cursor| {
        if values.len() == allowed {
            return Err(Stop::TooLarge);
        }
        values.push(u8::from(cursor.boolean("true or false")?));
        Ok(())
    })?;
    Ok(Bytes::from(values))
}

fn strings(cursor: &mut Cursor<'_>, expected: usize, budget: &Budget, read: &mut usize) -> Result<Bytes, Stop> {
    let mut values: Vec<u8> = Vec::new();
    walk(cursor, read, expected, |cursor| {
        let prefix = values.len();
        values.extend_from_slice(&[0; 4]);
        cursor.string_into(&mut values, "a string")?;
        if values.len() > budget.left_bytes {
            return Err(Stop::TooLarge);
        }
        let length = u32::try_from(values.len() - prefix - 4).map_err(|_| Stop::TooLarge)?;
        values[prefix..prefix + 4].copy_from_slice(&length.to_le_bytes());
        Ok(())
    })?;
    Ok(AlignedBuffer::copy_of(&values).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(datatype: DataType, shape: &[i64], text: &str) -> Result<Tensor, String> {
        let mut cursor = Cursor::new(text.as_bytes());
        read_tensor(&mut cursor, &"input 'x'", datatype, shape, &mut Budget::new(1000)).map_err(|error| error.to_string())
    }

    #[test]
    fn limits_of_every_integer_are_kept() {
        fn pair<T: bascule_runtime_api::Element + Display>(min: T, max: T, below: &str, above: &str) {
            let datatype = T::DATATYPE;
            let tensor = check(datatype, &[2], &format!("[{min},{max}]")).unwrap();
            assert_eq!(bytemuck::cast_slice::<T, u8>(&[min, max]), &tensor.bytes()[..], "{datatype}");
            for wrong in [below, above, "1.0", "1e2", "true", "\"1\"", "null", "NaN"] {
                let error = check(datatype, &[2], &format!("[0,{wrong}]")).unwrap_err();
                let found = if wrong == "\"1\"" { "a string" } else { wrong };
                assert_eq!(
                    error,
                    format!("input 'x', element 1: expected an integer from {min} to {max}, found {found} at byte 3"),
                    "{datatype} {wrong}"
                );
            }
        }
        pair(u8::MIN, u8::MAX, "-1", "256");
        pair(u16::MIN, u16::MAX, "-1", "65536");
        pair(u32::MIN, u32::MAX, "-1", "4294967296");
        pair(u64::MIN, u64::MAX, "-1", "18446744073709551616");
        pair(i8::MIN, i8::MAX, "-129", "128");
        pair(i16::MIN, i16::MAX, "-32769", "32768");
        pair(i32::MIN, i32::MAX, "-2147483649", "2147483648");
        pair(i64::MIN, i64::MAX, "-9223372036854775809", "9223372036854775808");
    }

    #[test]
    fn floats_take_what_their_type_has() {
        let single = check(DataType::Fp32, &[6], "[NaN, Infinity,-Infinity, 1e39, -0.0, 1]").unwrap();
        let single = single.elements::<f32>().unwrap();
        assert!(single[0].is_nan());
        assert_eq!(single[1..], [f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY, -0.0, 1.0]);
        let half = check(DataType::Fp16, &[2], "[1.5,-2]").unwrap();
        assert_eq!(half.elements::<f16>().unwrap().as_ref(), [f16::from_f32(1.5), f16::from_f32(-2.0)]);
        let double = check(DataType::Fp64, &[], "[0.1]").unwrap();
        assert_eq!(double.elements::<f64>().unwrap().as_ref(), [0.1]);
        assert_eq!(
            check(DataType::Fp32, &[1], "[\"1\"]").unwrap_err(),
            "input 'x', element 0: expected a number, found a string at byte 1"
        );
        assert_eq!(
            check(DataType::Bf16, &[1], "[1]").unwrap_err(),
            "input 'x': BF16 has no JSON form, expected binary data with its size in the parameter 'binary_data_size'"
        );
    }

    #[test]
    fn truth_values_and_strings_are_strict() {
        assert_eq!(check(DataType::Bool, &[3], "[true,false , true]").unwrap().bytes()[..], [1, 0, 1]);
        assert_eq!(
            check(DataType::Bool, &[1], "[1]").unwrap_err(),
            "input 'x', element 0: expected true or false, found 1 at byte 1"
        );
        let strings = check(DataType::Bytes, &[3], r#"["a","","é\u0000\ud83d\ude00"]"#).unwrap();
        assert_eq!(strings.byte_strings().collect::<Vec<_>>(), [b"a".as_slice(), b"", "é\0😀".as_bytes()]);
        assert_eq!(check(DataType::Bytes, &[1], "[1]").unwrap_err(), "input 'x', element 0: expected a string, found 1 at byte 1");
    }

    #[test]
    fn nesting_is_flattened_and_counted() {
        let flat = [1i32, 2, 3, 4];
        for text in ["[1,2,3,4]", "[[1,2],[3,4]]", "[[1],[2,3,4]]", "[[[1]],2,[],[[3]],4]", " [ [ 1 , 2 ] , [ 3 , 4 ] ]"] {
            assert_eq!(check(DataType::Int32, &[2, 2], text).unwrap().elements::<i32>().unwrap().as_ref(), flat, "{text}");
        }
        let depth = |levels: usize| format!("{}7{}", "[".repeat(levels), "]".repeat(levels));
        assert!(check(DataType::Int32, &[1], &depth(64)).is_ok());
        for levels in [65, 1_000_000] {
            let error = check(DataType::Int32, &[1], &depth(levels)).unwrap_err();
            assert!(error.starts_with("input 'x', element 0: expected at most 64 levels of nesting"), "{error}");
        }
    }

    #[test]
    fn counts_must_match_the_shape() {
        for (shape, text, expected) in [
            (&[2, 2][..], "[1,2,3]", "input 'x': expected 4 elements for shape [2, 2], got 3"),
            (&[2], "[1,2,3]", "input 'x': expected 2 elements for shape [2], got more"),
            (&[0, 4], "[1]", "input 'x': expected 0 elements for shape [0, 4], got more"),
            (&[], "[]", "input 'x': expected 1 elements for shape [], got 0"),
            (&[i64::MAX], "[1]", "input 'x': expected 9223372036854775807 elements for shape [9223372036854775807], got 1"),
            (&[-1], "[1]", "input 'x': expected dimensions of 0 or more whose product can be addressed, got shape [-1]"),
            (
                &[i64::MAX, 4],
                "[1]",
                "input 'x': expected dimensions of 0 or more whose product can be addressed, got shape [9223372036854775807, 4]",
            ),
            (&[1], "7", "input 'x', 'data': expected an array, found 7 at byte 0"),
            (&[1], "[7", "input 'x', element 1: expected ',' or ']', found the end at byte 2"),
            (&[1], "[7,", "input 'x', element 1: expected an integer from -128 to 127, found the end at byte 3"),
            (&[1], "[,7]", "input 'x', element 0: expected an integer from -128 to 127, found ',' at byte 1"),
        ] {
            assert_eq!(check(DataType::Int8, shape, text).unwrap_err(), expected, "{text}");
        }
        assert_eq!(check(DataType::Int8, &[0, 4], "[[],[]]").unwrap().element_count(), 0);
    }

    #[test]
    fn the_budget_is_kept() {
        let over = format!("[{}0]", "0,".repeat(125));
        assert_eq!(check(DataType::Fp64, &[126], &over).unwrap_err(), "input 'x' is larger than the limit of 1000 bytes");
        assert!(check(DataType::Fp32, &[126], &over).is_ok());
        let long = format!("[\"{}\"]", "a".repeat(997));
        assert_eq!(check(DataType::Bytes, &[1], &long).unwrap_err(), "input 'x' is larger than the limit of 1000 bytes");
    }
}
