//! Tensors for warm-up runs: of nothing, of bytes that somebody has kept, or of chance that is the same each time.

use bascule_runtime_api::{AlignedBuffer, DataType, Tensor, element_count};

use crate::{WarmupContent, WarmupInput};

/// Letters of a made-up text.
const LETTERS: usize = 8;

/// Makes the tensor.
///
/// # Errors
/// Shape and content do not fit together.
pub(super) fn tensor(input: &WarmupInput) -> Result<Tensor, String> {
    let WarmupInput { datatype, shape, content, .. } = input;
    let count = element_count(shape).ok_or_else(|| format!("expected a shape without open or negative sizes, got {shape:?}"))?;
    let mut chance = Chance(0x5eed);
    let made = match (content, datatype.element_bytes()) {
        (WarmupContent::Raw(bytes), _) => Tensor::new(*datatype, shape, AlignedBuffer::copy_of(bytes).into_bytes()),
        (WarmupContent::Zero, None) => Tensor::from_byte_strings(shape, &vec![""; count]),
        (WarmupContent::Random, None) => {
            let words: Vec<[u8; LETTERS]> = (0..count).map(|_| std::array::from_fn(|_| b'a' + chance.below(26))).collect();
            Tensor::from_byte_strings(shape, &words)
        }
        (content, Some(size)) => {
            let mut buffer = AlignedBuffer::zeroed(count.saturating_mul(size));
            if *content == WarmupContent::Random {
                buffer.as_mut().chunks_exact_mut(size).for_each(|element| chance.fill(*datatype, element));
            }
            Tensor::new(*datatype, shape, buffer.into_bytes())
        }
    };
    made.map_err(|error| error.to_string())
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

    fn made(datatype: DataType, shape: &[i64], content: WarmupContent) -> Result<Tensor, String> {
        tensor(&WarmupInput { name: "x".into(), datatype, shape: shape.to_vec(), content })
    }

    #[test]
    fn every_datatype_is_filled_and_the_same_each_time() {
        for datatype in DataType::ALL {
            let zero = made(datatype, &[3, 5], WarmupContent::Zero).unwrap();
            let random = made(datatype, &[3, 5], WarmupContent::Random).unwrap();
            assert_ne!(zero, random, "{datatype}");
            assert_eq!(random, made(datatype, &[3, 5], WarmupContent::Random).unwrap());
            assert_eq!((random.datatype(), random.shape()), (datatype, &[3, 5][..]));
        }
        let floats = made(DataType::Fp32, &[1000], WarmupContent::Random).unwrap();
        assert!(floats.elements::<f32>().unwrap().iter().all(|value| (0.0..1.0).contains(value)));
        let numbers = made(DataType::Int64, &[1000], WarmupContent::Random).unwrap();
        assert!(numbers.elements::<i64>().unwrap().iter().all(|value| (0..128).contains(value)));
        assert_eq!(made(DataType::Fp32, &[0, 4], WarmupContent::Random).unwrap().element_count(), 0);
    }

    #[test]
    fn kept_bytes_are_sent_as_they_are_and_have_to_fit() {
        let raw = |bytes: &[u8]| WarmupContent::Raw(bytes.into());
        assert_eq!(made(DataType::Uint8, &[2, 2], raw(&[1, 2, 3, 4])).unwrap().bytes()[..], [1, 2, 3, 4]);
        assert!(made(DataType::Uint8, &[2, 2], raw(&[1, 2, 3])).is_err());
        assert!(made(DataType::Bytes, &[1], raw(&[1, 0, 0, 0, b'a'])).is_ok());
        assert!(made(DataType::Uint8, &[-1], WarmupContent::Zero).is_err());
    }
}
