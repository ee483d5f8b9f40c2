//! The bytes of a `ModelInferRequest` before they are decoded: what they would take in memory.
//!
//! A message of the protobuf format can be small and yet decode into many times its size: an empty input takes two bytes on the wire
//! and hundreds in memory, a small number one byte and eight. [`check`] walks the bytes once, without decoding or allocating, and
//! refuses what would take more than a request may, or has more parts than any request needs. Invariant: what the decoder would read,
//! the walk has seen, unknown groups and what follows them included; where it can't go on, the message is refused.

use bascule_runtime_api::DataType;
use smallvec::{SmallVec, smallvec};

use super::decode::MAX_PARAMETERS;
use crate::codec::{MAX_RANK, MAX_TENSORS};

/// Messages beyond this may take long to read: about a fifth of a millisecond.
pub(crate) const LARGE_BYTES: usize = 64 << 10;

/// How far [`raw_offset`] looks.
const RAW_OFFSET_BYTES: usize = 4 << 10;

/// The wire types that enclose other fields.
const START_GROUP: u64 = 3;
const END_GROUP: u64 = 4;

/// Groups within each other: nothing in the protocol has any.
const MAX_GROUP_DEPTH: usize = 16;

/// Why a message is not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    /// Too many of one part.
    #[error("expected at most {limit} {what}, got more")]
    Count {
        /// Which part.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// The typed contents are larger in memory than a request may be.
    #[error("the contents of all inputs take more than {limit_bytes} bytes")]
    Memory {
        /// How much is allowed.
        limit_bytes: usize,
    },
    /// The bytes are no message of the format.
    #[error("expected whole fields, got bytes that break off or do not nest")]
    Malformed,
}

/// Memory of an element of `bytes_contents` beside its bytes.
const BYTES_ELEMENT_BYTES: usize = size_of::<bytes::Bytes>();

/// Checks an encoded `ModelInferRequest`; `limit_bytes` is what its typed contents may take. Returns what they take.
pub(crate) fn check(message: &[u8], limit_bytes: usize) -> Result<usize, Excess> {
    let mut counts = Counts::default();
    let mut budget = Budget { used_bytes: 0, limit_bytes };
    for field in Fields(message) {
        let field = field?;
        match field.number {
            4 => counts.parameters.add("parameters")?,
            5 => {
                counts.inputs.add("inputs")?;
                check_input(field.bytes, &mut counts, &mut budget)?;
            }
            6 => {
                counts.outputs.add("outputs")?;
                check_output(field.bytes, &mut counts)?;
            }
            7 => counts.raw.add("entries in raw_input_contents")?,
            _ => {}
        }
    }
    Ok(budget.used_bytes)
}

/// Where the first of the raw contents begins in a message of which this is the beginning; 0 where that does not show.
pub(crate) fn raw_offset(beginning: &[u8]) -> usize {
    // What describes the tensors is short: a walk over more would hold up other calls.
    let beginning = &beginning[..beginning.len().min(RAW_OFFSET_BYTES)];
    let mut fields = Fields(beginning);
    while let Some((number, wire_type)) = fields.tag() {
        if number == 7 && wire_type == 2 {
            return fields.varint().map_or(0, |_| beginning.len() - fields.0.len());
        }
        if wire_type == START_GROUP || fields.value(wire_type).is_none() {
            return 0;
        }
    }
    0
}

fn check_output(output: &[u8], counts: &mut Counts) -> Result<(), Excess> {
    for field in Fields(output) {
        if field?.number == 2 {
            counts.parameters.add("parameters")?;
        }
    }
    Ok(())
}

fn check_input(input: &[u8], counts: &mut Counts, budget: &mut Budget) -> Result<(), Excess> {
    let mut rank = Count::new(MAX_RANK);
    for field in Fields(input) {
        let field = field?;
        match field.number {
            3 if field.bytes.is_empty() => rank.add("dimensions of an input")?,
            3 => (0..varints(field.bytes)).try_for_each(|_| rank.add("dimensions of an input"))?,
            4 => counts.parameters.add("parameters")?,
            5 => check_contents(field.bytes, budget)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_contents(contents: &[u8], budget: &mut Budget) -> Result<(), Excess> {
    for field in Fields(contents) {
        let field = field?;
        let bytes = match field.number {
            // Lists of numbers: packed, or one by one, which has no bytes of its own here.
            1 => field.varints(),
            2 | 4 => field.varints().saturating_mul(4),
            3 | 5 => field.varints().saturating_mul(8),
            6 => field.bytes.len().max(4),
            7 => field.bytes.len().max(8),
            8 => field.bytes.len() + BYTES_ELEMENT_BYTES,
            _ => 0,
        };
        budget.take(bytes)?;
    }
    Ok(())
}

struct Budget {
    used_bytes: usize,
    limit_bytes: usize,
}

impl Budget {
    fn take(&mut self, bytes: usize) -> Result<(), Excess> {
        self.used_bytes = self.used_bytes.saturating_add(bytes);
        if self.used_bytes > self.limit_bytes { Err(Excess::Memory { limit_bytes: self.limit_bytes }) } else { Ok(()) }
    }
}

struct Counts {
    inputs: Count,
    outputs: Count,
    raw: Count,
    parameters: Count,
}

impl Default for Counts {
    fn default() -> Self {
        let tensors = || Count::new(MAX_TENSORS);
        Counts { inputs: tensors(), outputs: tensors(), raw: tensors(), parameters: Count::new(MAX_PARAMETERS) }
    }
}

struct Count {
    seen: usize,
    limit: usize,
}

impl Count {
    const fn new(limit: usize) -> Count {
        Count { seen: 0, limit }
    }

    fn add(&mut self, what: &'static str) -> Result<(), Excess> {
        self.seen += 1;
        if self.seen > self.limit { Err(Excess::Count { what, limit: self.limit }) } else { Ok(()) }
    }
}

/// A field of an encoded message.
struct Field<'a> {
    number: u64,
    /// The contents where the field has a length, else empty.
    bytes: &'a [u8],
}

impl Field<'_> {
    /// Numbers in a list of them.
    fn varints(&self) -> usize {
        varints(self.bytes).max(1)
    }
}

fn varints(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte < 0x80).count()
}

/// The fields of an encoded message. A group has no contents here: what is unknown is skipped, and nothing known is a group.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Excess>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Excess::Malformed))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<Field<'a>> {
        let (number, wire_type) = self.tag()?;
        let bytes = if wire_type == START_GROUP {
            self.skip_group(number)?;
            &[][..]
        } else {
            self.value(wire_type)?
        };
        Some(Field { number, bytes })
    }

    fn tag(&mut self) -> Option<(u64, u64)> {
        let tag = self.varint()?;
        Some((tag >> 3, tag & 7))
    }

    /// The contents of a value that has a length; the others are passed over.
    fn value(&mut self, wire_type: u64) -> Option<&'a [u8]> {
        match wire_type {
            0 => self.varint().map(|_| &[][..]),
            1 => self.take(8).map(|_| &[][..]),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.take(length)
            }
            5 => self.take(4).map(|_| &[][..]),
            _ => None,
        }
    }

    /// Passes over a group that has begun, up to its own end.
    fn skip_group(&mut self, number: u64) -> Option<()> {
        let mut open: SmallVec<[u64; MAX_GROUP_DEPTH]> = smallvec![number];
        while let Some(innermost) = open.last() {
            match self.tag()? {
                (number, START_GROUP) if open.len() < MAX_GROUP_DEPTH => open.push(number),
                (number, END_GROUP) if number == *innermost => drop(open.pop()),
                (_, START_GROUP | END_GROUP) => return None,
                (_, wire_type) => drop(self.value(wire_type)?),
            }
        }
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

/// Whether to read a message takes so long that it must not hold up the other calls of a thread. Raw contents are only passed over, but
/// for BYTES, whose elements are checked one by one.
pub(crate) fn is_heavy(message: &[u8]) -> bool {
    if message.len() <= LARGE_BYTES {
        return false;
    }
    let mut fields = Fields(message);
    let (mut walked_bytes, mut raw) = (0, 0);
    while !fields.0.is_empty() {
        let before = fields.0.len();
        let (number, bytes) = match fields.tag() {
            Some((number, wire_type)) if wire_type != START_GROUP => match fields.value(wire_type) {
                Some(bytes) => (number, bytes),
                None => return false,
            },
            // What a group has to be walked for is not known before.
            Some(_) => return true,
            None => return false,
        };
        if number == 7 {
            raw += 1;
        } else {
            walked_bytes += before - fields.0.len();
        }
        if walked_bytes > LARGE_BYTES || raw > MAX_TENSORS || number == 5 && is_bytes(bytes) {
            return true;
        }
    }
    false
}

/// Whether an input is of BYTES. What is malformed is found later.
fn is_bytes(input: &[u8]) -> bool {
    Fields(input).filter_map(Result::ok).any(|field| field.number == 2 && field.bytes == DataType::Bytes.name().as_bytes())
}

#[cfg(test)]
mod tests;
