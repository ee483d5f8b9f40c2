//! The suite that every runtime passes.
//!
//! [`check`] loads and runs the models that a [`Fixture`] makes, and panics with a sentence where the runtime differs from what
//! [`crate::Runtime`] and [`crate::Session`] promise. It belongs into the tests of each runtime. It measures no time: the only clock
//! is a limit after which a run that can't be interrupted is called a failure instead of a hang.
//!
//! Deliberately absent: what only one runtime has (its library, its own settings, its operators).

mod inputs;
mod loading;
mod sessions;

use std::path::PathBuf;

use crate::{DataType, LoadOptions, RunContext, Runtime, Session, Tensor};

/// A model on disk, and how it is loaded.
#[derive(Debug, Clone)]
pub struct Model {
    /// The version's folder.
    pub dir: PathBuf,
    /// Entrypoint and all else.
    pub options: LoadOptions,
}

/// A model that runs until it is interrupted.
#[derive(Debug, Clone)]
pub struct Endless {
    /// The model.
    pub model: Model,
    /// Inputs with which it does not end by itself.
    pub forever: Vec<Tensor>,
    /// Inputs with which it ends at once after [`Fixture::unblock`].
    pub brief: Vec<Tensor>,
}

/// Makes models in the runtime's own format, each in a new folder that lives as long as the fixture.
pub trait Fixture {
    /// A model with one input `x` and one output `y`, both of this datatype and shape, that returns what it gets. It can be
    /// batched where the first size is −1.
    fn identity(&self, datatype: DataType, shape: &[i64]) -> Model;

    /// The datatypes that the runtime has.
    fn datatypes(&self) -> Vec<DataType> {
        DataType::ALL.to_vec()
    }

    /// Whether the format says what a model takes and gives. Where it does not, [`Fixture::identity`] declares it.
    fn has_schema(&self) -> bool {
        true
    }

    /// Models whose file is damaged, each with a word for how: empty, truncated, of another format.
    fn broken(&self) -> Vec<(&'static str, Model)>;

    /// A model that does not end by itself; `None` where sessions have no interrupter.
    fn endless(&self) -> Option<Endless>;

    /// Called before [`Endless::brief`] is run.
    fn unblock(&self) {}

    /// Sessions that are alive, where the runtime can tell.
    fn live_sessions(&self) -> Option<usize> {
        None
    }
}

/// Runs the suite.
///
/// # Panics
/// At the first promise that the runtime does not keep.
pub fn check(runtime: &dyn Runtime, fixture: &dyn Fixture) {
    let before = fixture.live_sessions();
    loading::check(runtime, fixture);
    inputs::check(runtime, fixture);
    sessions::check(runtime, fixture);
    assert_eq!(fixture.live_sessions(), before, "sessions are still alive after each was dropped");
}

fn load(runtime: &dyn Runtime, model: &Model) -> Box<dyn Session> {
    match runtime.load(&model.dir, &model.options) {
        Ok(session) => session,
        Err(error) => panic!("{} does not load: {error}", model.options.entrypoint.display()),
    }
}

fn run(session: &mut dyn Session, inputs: &[Tensor]) -> Vec<Tensor> {
    match session.run(inputs, &RunContext::default()) {
        Ok(outputs) => outputs,
        Err(error) => panic!("a run with {inputs:?} failed: {error}"),
    }
}

/// A tensor whose elements differ, and for floats include NaN with a payload: the bytes must come back as they are. `seed` makes
/// two tensors of one shape differ.
fn sample(datatype: DataType, shape: &[i64], seed: u64) -> Tensor {
    let count: usize = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or_default()).product();
    let tensor = match datatype {
        DataType::Bytes => {
            let words: [&[u8]; 6] = [b"", b"a", "\u{fc}ber".as_bytes(), &[0xff, 0xfe, 0x80], b"nul\0inside\0", &[b'x'; 300]];
            let elements: Vec<&[u8]> = words.into_iter().cycle().skip(seed as usize).take(count).collect();
            Tensor::from_byte_strings(shape, &elements)
        }
        DataType::Bool => Tensor::new(datatype, shape, (0..count).map(|index| ((index as u64 + seed) % 2) as u8).collect()),
        _ => {
            let length = count * datatype.element_bytes().unwrap_or_default();
            // A multiplicative generator; its first eight bytes are all ones, which is a NaN in every float type.
            let mut state = u64::MAX;
            let mut bytes = Vec::with_capacity(length + 8);
            while bytes.len() < length {
                bytes.extend_from_slice(&state.to_le_bytes());
                state = (state ^ (state >> 29) ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
            }
            bytes.truncate(length);
            Tensor::new(datatype, shape, bytes.into())
        }
    };
    match tensor {
        Ok(tensor) => tensor,
        Err(error) => panic!("the suite made a wrong tensor: {error}"),
    }
}
