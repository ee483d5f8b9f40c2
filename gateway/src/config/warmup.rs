//! What settings files say of warm-up runs, checked before anything is made of it.

use bascule_registry::VersionNumber;
use bascule_runtime_api::{DataType, element_count};
use bascule_serving::{WarmupContent, WarmupInput};

/// Most bytes of one warm-up tensor: a shape out of a file must not exhaust memory.
const MAX_BYTES: usize = 256 << 20;
/// Bytes of an element whose datatype does not say.
const TEXT_BYTES: usize = 12;

/// What a settings file may ask for by a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// [`WarmupContent::Zero`].
    Zero,
    /// [`WarmupContent::Random`].
    Random,
}

impl From<Fill> for WarmupContent {
    fn from(fill: Fill) -> WarmupContent {
        match fill {
            Fill::Zero => WarmupContent::Zero,
            Fill::Random => WarmupContent::Random,
        }
    }
}

/// An input of a warm-up run.
///
/// # Errors
/// What is wrong with the shape, or with kept bytes that do not fit it.
pub(crate) fn input(name: &str, datatype: DataType, shape: Vec<i64>, content: WarmupContent) -> Result<WarmupInput, String> {
    let refuse = || format!("expected a shape without open or negative sizes and at most {MAX_BYTES} bytes, got {shape:?}");
    let count = element_count(&shape).ok_or_else(refuse)?;
    let each = datatype.element_bytes().unwrap_or(TEXT_BYTES);
    let bytes = count.checked_mul(each).filter(|bytes| *bytes <= MAX_BYTES).ok_or_else(refuse)?;
    if let WarmupContent::Raw(kept) = &content
        && datatype.element_bytes().is_some()
        && kept.len() != bytes
    {
        return Err(format!("expected a file of {bytes} bytes for {datatype} of shape {shape:?}, got {}", kept.len()));
    }
    Ok(WarmupInput { name: name.to_owned(), datatype, shape, content })
}

/// A version number out of a settings file.
pub(crate) fn version(number: i64) -> Option<VersionNumber> {
    VersionNumber::try_from(number).ok().filter(|version| bascule_registry::check_version(*version).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_shape_is_refused() {
        for shape in [&[i64::MAX][..], &[-1, 4], &[1 << 40, 1 << 40], &[1 << 30]] {
            for datatype in [DataType::Fp32, DataType::Bytes] {
                let refused = input("x", datatype, shape.to_vec(), WarmupContent::Zero).unwrap_err();
                assert!(refused.starts_with("expected a shape"), "{shape:?}");
            }
        }
        assert!(input("x", DataType::Fp32, vec![0, 4], WarmupContent::Random).is_ok());
    }

    #[test]
    fn kept_bytes_have_to_fit() {
        let raw = |length: usize| WarmupContent::Raw(vec![0; length].into());
        assert!(input("x", DataType::Fp32, vec![2, 2], raw(16)).is_ok());
        assert!(input("x", DataType::Fp32, vec![2, 2], raw(15)).unwrap_err().contains("a file of 16 bytes"));
        assert!(input("x", DataType::Bytes, vec![2], raw(5)).is_ok(), "only a reader of texts can tell");
    }
}
