//! How much memory a caller is given before it has sent as much.
//!
//! A length that is announced costs its caller nothing, and what is kept for it costs everybody: so a buffer grows with what has arrived.
//! Each growth moves what is there, so it grows in few steps.

/// What a buffer begins with, at the most: so little that a thousand callers who announce much and send nothing take no noticeable part of
/// the memory that all share.
const FIRST_BYTES: usize = 64 << 10;

/// Up to here a caller that has filled its first buffer gets all that it has announced.
const SECOND_BYTES: usize = 1 << 20;

/// Beyond, a buffer may become so many times what has arrived.
const GROWTH: usize = 4;

/// The largest buffer for a caller of whom so many bytes have arrived.
pub(crate) fn trusted_bytes(arrived: usize) -> usize {
    let second = if arrived >= FIRST_BYTES { SECOND_BYTES } else { FIRST_BYTES };
    second.max(arrived.saturating_mul(GROWTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_grows_with_what_has_arrived() {
        for (arrived, trusted) in [
            (0, FIRST_BYTES),
            (1000, FIRST_BYTES),
            (FIRST_BYTES / 2, 2 * FIRST_BYTES),
            (FIRST_BYTES, SECOND_BYTES),
            (SECOND_BYTES, 4 * SECOND_BYTES),
            (usize::MAX, usize::MAX),
        ] {
            assert_eq!(trusted_bytes(arrived), trusted, "{arrived}");
        }
    }
}
