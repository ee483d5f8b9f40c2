//! NumPy's `.npy` files. An array that was read is the same after it was written.
#![no_main]

use bascule::npy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(tensor) = npy::read(file) else { return };
    let written = npy::write(&tensor).expect("what NumPy has a type for can be written");
    let again = npy::read(&written).expect("what was written can be read");
    assert_eq!((again.datatype(), again.shape(), again.bytes()), (tensor.datatype(), tensor.shape(), tensor.bytes()));
});
