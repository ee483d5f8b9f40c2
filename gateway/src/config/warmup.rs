//! Tensors for warm-up runs: of nothing, or of chance that is the same each time.

use bascule_registry::VersionNumber;
use bascule_runtime_api::{AlignedBuffer, DataType, Tensor, element_count};

/// Most bytes of one warm-up tensor: a shape out of a file must not exhaust memory.
const MAX_BYTES: usize = 256 << 20;

/// What a warm-up tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Zeros, or empty texts.
    Zero,
    /// Floats from 0 to 1, whole numbers from 0 to 127, texts of eight letters.
    Random,
}

/// Makes a tensor.
///
/// # Errors
/// What is wrong with the shape.
pub(crate) fn tensor(datatype: DataType, shape: &[i64], fill: Fill) -> Result<Tensor, String> {
    let refuse = || format!("expected a shape without open or negative sizes and at most {MAX_BYTES} bytes, got {shape:?}");
    let count = element_count(shape).ok_or_else(refuse)?;
    let bytes =
        count.checked_mul(datatype.element_bytes().unwrap_or(LETTERS)).filter(|bytes| *bytes <= MAX_BYTES).ok_or_else(refuse)?;
    let mut chance = Chance(0x5eed);
    let made = match (datatype.element_bytes(), fill) {
        (None, Fill::Zero) => Tensor::from_byte_strings(shape, &vec![""; count]),
        (None, Fill::Random) => {
            let words: Vec<[u8; LETTERS]> = (0..count).map(|_| std::array::from_fn(|_| b'a' + chance.below(26))).collect();
            Tensor::from_byte_strings(shape, &words)
        }
        (Some(_), Fill::Zero) => Tensor::new(datatype, shape, AlignedBuffer::zeroed(bytes).into_bytes()),
        (Some(size), Fill::Random) => {
            let mut buffer = AlignedBuffer::zeroed(bytes);
            buffer.as_mut().chunks_exact_mut(size).for_each(|element| chance.fill(datatype, element));
            Tensor::new(datatype, shape, buffer.into_bytes())
        }
    };
    made.map_err(|error| error.to_string())
}

const LETTERS: usize = 8;

/// A version number out of a settings file.
pub(crate) fn version(number: i64) -> Option<VersionNumber> {
    VersionNumber::try_from(number).ok().filter(|version| bascule_registry::check_version(*version).is_ok())
}

/// SplitMix64: good enough to keep a model from short cuts for zeros.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u8) -> u8 {
        (self.next() % u64::from(limit)) as u8
    }

    fn fill(&mut self, datatype: DataType, element: &mut [u8]) {
        // 24 bits, as many as the narrowest common float holds exactly.
        let unit = (self.next() >> 40) as f32 / (1 << 24) as f32;
        match datatype {
            DataType::Fp16 => element.copy_from_slice(&half::f16::from_f32(unit).to_le_bytes()),
            DataType::Bf16 => element.copy_from_slice(&half::bf16::from_f32(unit).to_le_bytes()),
            DataType::Fp32 => element.copy_from_slice(&unit.to_le_bytes()),
            DataType::Fp64 => element.copy_from_slice(&f64::from(unit).to_le_bytes()),
            DataType::Bool => element[0] = self.below(2),
            // Little-endian: the first byte is the lowest.
            _ => element[0] = self.below(128),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_is_filled_and_the_same_each_time() {
        for datatype in DataType::ALL {
            let zero = tensor(datatype, &[3, 5], Fill::Zero).unwrap();
            let random = tensor(datatype, &[3, 5], Fill::Random).unwrap();
            assert_ne!(zero, random, "{datatype}");
            assert_eq!(random, tensor(datatype, &[3, 5], Fill::Random).unwrap());
            assert_eq!((random.datatype(), random.shape()), (datatype, &[3, 5][..]));
        }
        let floats = tensor(DataType::Fp32, &[1000], Fill::Random).unwrap();
        assert!(floats.elements::<f32>().unwrap().iter().all(|value| (0.0..1.0).contains(value)));
        let numbers = tensor(DataType::Int64, &[1000], Fill::Random).unwrap();
        assert!(numbers.elements::<i64>().unwrap().iter().all(|value| (0..128).contains(value)));
    }

    #[test]
    fn a_hostile_shape_is_refused() {
        for shape in [&[i64::MAX][..], &[-1, 4], &[1 << 40, 1 << 40], &[1 << 30]] {
            assert!(tensor(DataType::Fp32, shape, Fill::Zero).unwrap_err().starts_with("expected a shape"), "{shape:?}");
            assert!(tensor(DataType::Bytes, shape, Fill::Zero).is_err(), "{shape:?}");
        }
        assert_eq!(tensor(DataType::Fp32, &[0, 4], Fill::Random).unwrap().element_count(), 0);
    }
}
