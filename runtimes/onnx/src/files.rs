//! Which files a model reads: its own, and those of weights that it keeps elsewhere.
//!
//! The model file is walked field by field and its weights are skipped, so that a model of many gigabytes costs a few reads. The
//! walk knows only the fields that lead to `external_data` and believes no length that exceeds what holds it.
//!
//! Deliberately absent: any check of the model itself; the library does that.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::path::{Component, Path};

use bascule_runtime_api::LoadError;

/// Nesting that no real graph has; deeper ones are not followed.
const MAX_DEPTH: usize = 64;

/// Longest path of a file of weights, in bytes.
const MAX_PATH_BYTES: u64 = 4096;

/// The most that a protobuf message can have, and so a model file with the weights that lie in it.
const MAX_MODEL_BYTES: u64 = i32::MAX as u64;

/// Bytes of the model file and of every file that it names, each counted once.
///
/// # Errors
/// [`LoadError::Io`] where one of the files can't be read, [`LoadError::InvalidModel`] where the model names one outside the folder, or is itself
/// longer than the library could read.
pub(crate) fn total_bytes(dir: &Path, entrypoint: &Path) -> Result<u64, LoadError> {
    if !lies_below(entrypoint) {
        let message = "expected a file below the version's folder".to_owned();
        return Err(LoadError::InvalidModel { entrypoint: entrypoint.to_owned(), message });
    }
    let own = size_of(dir, entrypoint)?;
    if own > MAX_MODEL_BYTES {
        let message = format!("has {own} bytes, expected at most {MAX_MODEL_BYTES}: larger weights go into files of their own");
        return Err(LoadError::InvalidModel { entrypoint: entrypoint.to_owned(), message });
    }
    let beside = entrypoint.parent().unwrap_or(Path::new(""));
    let mut total = own;
    for location in weight_files(&dir.join(entrypoint)) {
        let path = Path::new(&location);
        if !lies_below(path) {
            let message = format!("its weights lie at '{location}', expected a file below the model's folder");
            return Err(LoadError::InvalidModel { entrypoint: entrypoint.to_owned(), message });
        }
        total = total.saturating_add(size_of(dir, &beside.join(path))?);
    }
    Ok(total)
}

fn lies_below(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

fn size_of(dir: &Path, file: &Path) -> Result<u64, LoadError> {
    let unreadable = |source| LoadError::Io { path: file.to_owned(), source };
    let metadata = fs::metadata(dir.join(file)).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "not a file")));
    }
    Ok(metadata.len())
}

/// The locations that the model's tensors name. A damaged file gives what was found before the damage: the library will refuse it.
fn weight_files(model: &Path) -> BTreeSet<String> {
    let opened = File::open(model).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
    let Ok((file, length)) = opened else { return BTreeSet::new() };
    let mut walk = Walk { file: BufReader::new(file), at: 0, found: BTreeSet::new() };
    // An error only says that the file is damaged.
    let _ = walk.message(Message::Model, length, 0);
    walk.found
}

/// The messages of `onnx.proto` on the way to a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Function,
    Graph,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
    Entry,
}

impl Message {
    /// What a field holds, where that may lead to a tensor.
    fn field(self, number: u64) -> Option<Message> {
        match (self, number) {
            (Message::Model, 7) => Some(Message::Graph),
            (Message::Model, 25) => Some(Message::Function),
            (Message::Function, 7) | (Message::Graph, 1) => Some(Message::Node),
            (Message::Graph, 5) | (Message::Attribute, 5 | 10) | (Message::SparseTensor, 1 | 2) => Some(Message::Tensor),
            (Message::Graph, 15) | (Message::Attribute, 22 | 23) => Some(Message::SparseTensor),
            (Message::Node, 5) => Some(Message::Attribute),
            (Message::Attribute, 6 | 11) => Some(Message::Graph),
            (Message::Tensor, 13) => Some(Message::Entry),
            _ => None,
        }
    }
}

struct Walk<R> {
    file: R,
    at: u64,
    found: BTreeSet<String>,
}

impl<R: Read + Seek> Walk<R> {
    /// Walks one message that ends at `end`.
    fn message(&mut self, message: Message, end: u64, depth: usize) -> io::Result<()> {
        let mut key = String::new();
        while self.at < end {
            let tag = self.varint()?;
            match tag & 7 {
                0 => drop(self.varint()?),
                1 => self.skip(8, end)?,
                5 => self.skip(4, end)?,
                2 => {
                    let length = self.varint()?;
                    let field_end = self.at.checked_add(length).filter(|field_end| *field_end <= end).ok_or_else(damaged)?;
                    match message.field(tag >> 3) {
                        Some(inner) if depth < MAX_DEPTH => self.message(inner, field_end, depth + 1)?,
                        _ if message == Message::Entry && length <= MAX_PATH_BYTES => self.entry(tag >> 3, length, &mut key)?,
                        _ => self.skip(length, end)?,
                    }
                }
                _ => return Err(damaged()),
            }
        }
        if self.at == end { Ok(()) } else { Err(damaged()) }
    }

    /// One string of a key-value pair; the key comes first.
    fn entry(&mut self, field: u64, length: u64, key: &mut String) -> io::Result<()> {
        let mut text = String::new();
        self.file.by_ref().take(length).read_to_string(&mut text)?;
        self.at += length;
        match field {
            1 => *key = text,
            2 if key == "location" => drop(self.found.insert(text)),
            _ => {}
        }
        Ok(())
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.file.read_exact(&mut byte)?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    fn skip(&mut self, length: u64, end: u64) -> io::Result<()> {
        let target = self.at.checked_add(length).filter(|target| *target <= end).ok_or_else(damaged)?;
        // A relative seek keeps what is buffered; no file is longer than an i64 can say.
        self.file.seek_relative(i64::try_from(length).map_err(|_| damaged())?)?;
        self.at = target;
        Ok(())
    }
}

fn damaged() -> io::Error {
    io::Error::from(io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use bascule_onnx_writer::{Attribute, Graph, OnnxModel};
    use bascule_runtime_api::DataType;

    use super::*;

    fn model() -> OnnxModel {
        let weights = |graph: Graph, name: &str, file: &str| graph.weights_elsewhere(name, DataType::Fp32, &[2], file, 8);
        let body = weights(Graph::new(), "inner", "deep/inner.bin").node("Identity", &["inner"], &["z"]);
        let graph = weights(Graph::new().input("x", DataType::Fp32, &[2]), "a", "a.bin");
        let graph = weights(weights(graph, "b", "b.bin"), "c", "a.bin").weights("d", DataType::Fp32, &[2], vec![0; 8]);
        graph.node_with("If", &["x"], &["y"], vec![("then_branch", Attribute::Graph(body))]).build()
    }

    fn walk(bytes: &[u8]) -> (io::Result<()>, BTreeSet<String>) {
        let mut walk = Walk { file: Cursor::new(bytes), at: 0, found: BTreeSet::new() };
        (walk.message(Message::Model, bytes.len() as u64, 0), walk.found)
    }

    #[test]
    fn every_file_of_weights_is_found_once() {
        let (result, found) = walk(&model().bytes);
        result.unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a.bin", "b.bin", "deep/inner.bin"]);
    }

    #[test]
    fn a_damaged_file_ends_the_walk() {
        let whole = model().bytes;
        for length in 0..whole.len() {
            // What is found before the damage stays; what matters is that the walk ends.
            assert!(walk(&whole[..length]).1.len() <= 3);
        }
        for position in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[position] ^= 1 << bit;
                // Two tensors share a file; a changed name is one more.
                assert!(walk(&damaged).1.len() <= 4);
            }
        }
        let endless = [0xff; 64];
        assert!(walk(&endless).0.is_err());
        // A length of 2^64 - 1 in a field that is skipped.
        let mut too_long = vec![0x12];
        too_long.extend([0xff; 9]);
        too_long.push(0x01);
        assert!(walk(&too_long).0.is_err());
    }
}
