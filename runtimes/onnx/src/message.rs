//! Takes absolute paths out of what the library says: where files lie is not a caller's to know.
//!
//! Names of nodes look like paths too (`/layers/0/MatMul`) and stay: only the model's folder, and the library's own source files, are
//! taken for what they are.

use std::fs;
use std::path::Path;

/// `said`, where the path of a source file shrinks to the file's name.
pub(crate) fn without_source_folders(said: &str) -> String {
    let words: Vec<&str> = said.trim().split(' ').map(without_source_folder).collect();
    words.join(" ")
}

/// The same, where `dir` is left out as well.
pub(crate) fn without_paths(said: &str, dir: &Path) -> String {
    let mut text = said.to_owned();
    // The library may have resolved links on the way.
    for dir in [Some(dir.to_owned()), fs::canonicalize(dir).ok()].into_iter().flatten() {
        let dir = dir.display().to_string();
        text = text.replace(&format!("{dir}/"), "").replace(&dir, ".");
    }
    without_source_folders(&text)
}

/// `/build/core/graph.cc:150` → `graph.cc:150`; any other word as it is.
fn without_source_folder(word: &str) -> &str {
    let file = word.split(':').next().unwrap_or(word);
    let is_source = [".cc", ".cpp", ".h", ".hpp", ".cu"].iter().any(|ending| file.ends_with(ending));
    match file.rfind('/') {
        Some(slash) if is_source && word.starts_with('/') => &word[slash + 1..],
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_go_and_all_else_stays() {
        let check = |said: &str| without_paths(said, Path::new("/srv/my models/digits/1"));
        assert_eq!(check("Load model from /srv/my models/digits/1/model.onnx failed"), "Load model from model.onnx failed");
        assert_eq!(check("w.bin is outside /srv/my models/digits/1"), "w.bin is outside .");
        assert_eq!(
            check("/build/core/graph.cc:150 Graph() node '/layers/0/MatMul'\n"),
            "graph.cc:150 Graph() node '/layers/0/MatMul'"
        );
        assert_eq!(check("3 / 4, n/a, a/b.h"), "3 / 4, n/a, a/b.h");
        assert_eq!(check(""), "");
    }
}
