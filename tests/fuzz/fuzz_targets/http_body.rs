//! JSON bodies, alone and before a binary section. The first two bytes say where the JSON ends.
#![no_main]

use bascule_frontend::codec::{Framing, decode};
use bascule_fuzz::{LIMIT, check};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((split, body)) = input.split_first_chunk() else { return };
    let framing = match usize::from(u16::from_le_bytes(*split)) {
        0 => Framing::Json,
        json_bytes => Framing::Split { json_bytes },
    };
    check(decode(&Bytes::copy_from_slice(body), framing, LIMIT).map(|decoded| decoded.infer));
});
