//! NumPy's `.npy` files, format versions 1 to 3: one array of numbers or truth values, in C order.
//!
//! Files are written little-endian as version 1, or 2 where the header is too long for it. Deliberately absent: Fortran order, pickled
//! objects, texts and structured types, which are refused by name.

use bascule_runtime_api::{AlignedBuffer, DataType, Tensor, element_count};

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The longest header that is read: that of an array of numbers has some 100 bytes.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Why a file is not an array that can be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NpyError {
    /// Not such a file, or cut off.
    #[error("not a .npy file: {0}")]
    Malformed(&'static str),
    /// Written by something newer.
    #[error("format version {0} is not known, expected 1 to 3")]
    Version(u8),
    /// Columns first.
    #[error("the array is in Fortran order; save it with numpy.ascontiguousarray")]
    FortranOrder,
    /// A type that no tensor has.
    #[error("the array has the type {0:?}, expected numbers or truth values")]
    Type(String),
    /// The contents don't fit the shape.
    #[error("the array does not fit its header")]
    Contents(#[source] bascule_runtime_api::TensorError),
}

/// Type codes: size in bytes is the digit. `BF16` has none in NumPy and `BYTES` is no number.
const CODES: [(&str, DataType); 12] = [
    ("b1", DataType::Bool),
    ("u1", DataType::Uint8),
    ("u2", DataType::Uint16),
    ("u4", DataType::Uint32),
    ("u8", DataType::Uint64),
    ("i1", DataType::Int8),
    ("i2", DataType::Int16),
    ("i4", DataType::Int32),
    ("i8", DataType::Int64),
    ("f2", DataType::Fp16),
    ("f4", DataType::Fp32),
    ("f8", DataType::Fp64),
];

/// Reads a file.
///
/// # Errors
/// What it is instead.
pub fn read(file: &[u8]) -> Result<Tensor, NpyError> {
    let rest = file.strip_prefix(MAGIC).ok_or(NpyError::Malformed("it does not start with the magic bytes"))?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or(NpyError::Malformed("it is cut off"))?;
    let (length, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(bytes, rest)| (usize::from(u16::from_le_bytes(*bytes)), rest)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(bytes, rest)| (u32::from_le_bytes(*bytes) as usize, rest)),
        other => return Err(NpyError::Version(other)),
    }
    .ok_or(NpyError::Malformed("it is cut off"))?;
    if length > MAX_HEADER_BYTES {
        return Err(NpyError::Malformed("its header is too long"));
    }
    let (header, contents) = rest.split_at_checked(length).ok_or(NpyError::Malformed("its header is cut off"))?;
    let header = Header::parse(std::str::from_utf8(header).map_err(|_| NpyError::Malformed("its header is not text"))?)?;
    if header.fortran_order && header.shape.len() > 1 {
        return Err(NpyError::FortranOrder);
    }
    let (datatype, big_endian) = datatype(&header.descr)?;
    let mut buffer = AlignedBuffer::copy_of(contents);
    if let Some(size) = datatype.element_bytes().filter(|_| big_endian) {
        buffer.as_mut().chunks_exact_mut(size).for_each(<[u8]>::reverse);
    }
    Tensor::new(datatype, &header.shape, buffer.into_bytes()).map_err(NpyError::Contents)
}

fn datatype(descr: &str) -> Result<(DataType, bool), NpyError> {
    let unknown = || NpyError::Type(descr.chars().take(40).collect());
    let code = descr.strip_prefix(['<', '|', '=', '>']).ok_or_else(unknown)?;
    let (_, datatype) = CODES.into_iter().find(|(known, _)| *known == code).ok_or_else(unknown)?;
    Ok((datatype, descr.starts_with('>')))
}

/// Writes a file; `None` for a datatype that NumPy has no type for.
pub fn write(tensor: &Tensor) -> Option<Vec<u8>> {
    let (code, datatype) = CODES.into_iter().find(|(_, datatype)| *datatype == tensor.datatype())?;
    let order = if datatype.element_bytes() == Some(1) { '|' } else { '<' };
    let sizes: Vec<String> = tensor.shape().iter().map(ToString::to_string).collect();
    let comma = if sizes.len() == 1 { "," } else { "" };
    let text = format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({}{comma}), }}", sizes.join(", "));
    // The contents start at a multiple of 64, which NumPy promises to its readers; a line feed ends the header.
    let padded = |prefix: usize| (prefix + text.len() + 1).next_multiple_of(64) - prefix;
    let mut file = MAGIC.to_vec();
    let length = match u16::try_from(padded(10)) {
        Ok(length) => {
            file.extend([1, 0]);
            file.extend(length.to_le_bytes());
            usize::from(length)
        }
        Err(_) => {
            let length = u32::try_from(padded(12)).ok()?;
            file.extend([2, 0]);
            file.extend(length.to_le_bytes());
            length as usize
        }
    };
    file.extend(format!("{text:<width$}\n", width = length - 1).as_bytes());
    file.extend_from_slice(tensor.bytes());
    Some(file)
}

/// What a header says: a Python dictionary of three members.
#[derive(Debug, Default)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<i64>,
}

impl Header {
    fn parse(text: &str) -> Result<Header, NpyError> {
        const WRONG: NpyError = NpyError::Malformed("its header is not a dictionary of descr, fortran_order and shape");
        let mut rest = text.trim().strip_prefix('{').and_then(|text| text.strip_suffix('}')).ok_or(WRONG)?.trim();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, value) = rest.split_once(':').ok_or(WRONG)?;
            let value = value.trim_start();
            let end = match value.chars().next() {
                Some('(') => value.find(')').map(|end| end + 1),
                // A structured type: it is refused as a whole.
                Some('[') => value.rfind(']').map(|end| end + 1),
                _ => Some(value.find(',').unwrap_or(value.len())),
            };
            let (value, tail) = value.split_at_checked(end.ok_or(WRONG)?).ok_or(WRONG)?;
            match key.trim().trim_matches(['\'', '"']) {
                "descr" => descr = Some(value.trim().trim_matches(['\'', '"']).to_owned()),
                "fortran_order" => fortran_order = Some(value.trim() == "True"),
                "shape" => shape = Some(sizes(value).ok_or(WRONG)?),
                _ => return Err(WRONG),
            }
            rest = tail.trim_start().strip_prefix(',').unwrap_or(tail).trim();
        }
        let header = Header { descr: descr.ok_or(WRONG)?, fortran_order: fortran_order.ok_or(WRONG)?, shape: shape.ok_or(WRONG)? };
        element_count(&header.shape).ok_or(NpyError::Malformed("its shape has too many elements"))?;
        Ok(header)
    }
}

fn sizes(tuple: &str) -> Option<Vec<i64>> {
    let inner = tuple.strip_prefix('(')?.strip_suffix(')')?;
    inner.split(',').map(str::trim).filter(|size| !size.is_empty()).map(|size| size.parse().ok()).collect()
}

#[cfg(test)]
mod tests;
