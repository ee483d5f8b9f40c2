//! Looks at a model file before libtorch does, and says what it is where it is no TorchScript.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use bascule_runtime_api::LoadError;
use zip::ZipArchive;

use crate::forward::{self, Argument};

/// What can be done about a file that holds something else.
const HINT: &str = "export the model with torch.jit.script(model).save(…) or torch.jit.trace(model, example).save(…)";

/// The longest end of a zip archive: its record, and a comment.
const ARCHIVE_END_BYTES: u64 = 22 + 65_535;

/// What begins the record at the end of a zip archive.
const ARCHIVE_END: &[u8] = b"PK\x05\x06";

/// What a file was found to be.
#[derive(Debug)]
pub(crate) struct Found {
    /// The file's size.
    pub(crate) bytes: u64,
    /// What `forward` takes, where that can be told.
    pub(crate) forward: Option<Vec<Argument>>,
}

/// Checks that `dir/entrypoint` is a TorchScript archive. Reads its table of contents and the code of one class.
///
/// # Errors
/// [`LoadError::InvalidModel`] says what the file is instead.
pub(crate) fn check(dir: &Path, entrypoint: &Path) -> Result<Found, LoadError> {
    let path = dir.join(entrypoint);
    let unreadable = |source: io::Error| LoadError::Io { path: entrypoint.to_owned(), source };
    let mut file = File::open(&path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let invalid = |message: String| LoadError::InvalidModel { entrypoint: entrypoint.to_owned(), message };
    if !metadata.is_file() {
        return Err(invalid("not a file".to_owned()));
    }
    if let Some(message) = not_an_archive(&mut file, metadata.len()).map_err(unreadable)? {
        return Err(invalid(message));
    }
    let mut archive = ZipArchive::new(file)
        .map_err(|error| invalid(format!("a damaged archive ({error}): the file is not as it was written")))?;
    // Names begin with a folder that is called as the file once was.
    let names: Vec<_> = archive.file_names().filter_map(Result::ok).collect();
    let has = |is_it: fn(&str) -> bool| names.iter().filter_map(|name| name.split_once('/')).any(|(_, member)| is_it(member));
    let has_pickle = has(|member| member == "data.pkl");
    if has_pickle && has(|member| member.starts_with("code/")) {
        return Ok(Found { bytes: metadata.len(), forward: forward::arguments(&mut archive) });
    }
    let instead = if has_pickle {
        "pickled Python objects, as torch.save writes them: reading them may run any code, so they are not served"
    } else if has(|member| member == "archive_format" || member.starts_with("models/")) {
        "a program of torch.export, which is not TorchScript"
    } else {
        "an archive, but not of TorchScript: it has no code"
    };
    Err(invalid(format!("{instead}; {HINT}")))
}

/// What a file is that does not end as an archive does; `None` for one that does.
fn not_an_archive(file: &mut File, length: u64) -> io::Result<Option<String>> {
    let mut start = [0; 16];
    let read = file.read(&mut start)?;
    let start = &start[..read];
    file.seek(SeekFrom::Start(length.saturating_sub(ARCHIVE_END_BYTES)))?;
    let mut end = Vec::new();
    file.take(ARCHIVE_END_BYTES).read_to_end(&mut end)?;
    if end.windows(ARCHIVE_END.len()).any(|window| window == ARCHIVE_END) {
        return Ok(None);
    }
    Ok(Some(match start {
        [] => "an empty file".to_owned(),
        [b'P', b'K', 3, 4, ..] => "an archive that breaks off before its end: the file is not complete, copy it again".to_owned(),
        [0x80, 2..=5, ..] => format!("pickled Python objects: reading them may run any code, so they are not served; {HINT}"),
        [b'<', ..] => "text that begins with '<', such as an error page, and no model".to_owned(),
        _ => format!("not a TorchScript file, which is a zip archive; {HINT}"),
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn said(content: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.pt"), content).unwrap();
        check(dir.path(), Path::new("model.pt")).map_or_else(|error| error.to_string(), |found| format!("{} bytes", found.bytes))
    }

    fn archive(members: &[&str]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for member in members {
            writer.start_file(*member, stored).unwrap();
            writer.write_all(b"content").unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn what_is_no_torchscript_is_told_by_name() {
        let scripted = archive(&["m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"]);
        assert_eq!(said(&scripted), format!("{} bytes", scripted.len()));
        for (content, expected) in [
            (Vec::new(), "model.pt: an empty file"),
            (scripted[..scripted.len() / 2].to_vec(), "model.pt: an archive that breaks off before its end"),
            (b"<!DOCTYPE html><html>".to_vec(), "model.pt: text that begins with '<'"),
            (b"\x80\x02}q\x00.".to_vec(), "model.pt: pickled Python objects: reading them may run any code"),
            (archive(&["m/data.pkl", "m/data/0"]), "model.pt: pickled Python objects, as torch.save writes them"),
            (archive(&["m/archive_format", "m/models/model.json"]), "model.pt: a program of torch.export"),
            (archive(&["word/document.xml"]), "model.pt: an archive, but not of TorchScript"),
            (b"\x08\x07\x12\x07pytorch".to_vec(), "model.pt: not a TorchScript file"),
        ] {
            let said = said(&content);
            assert!(said.starts_with(expected), "{said}");
        }
    }

    #[test]
    fn a_huge_file_without_content_is_refused_without_being_read() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("model.pt")).unwrap().set_len(10 << 30).unwrap();
        let error = check(dir.path(), Path::new("model.pt")).unwrap_err().to_string();
        assert!(error.starts_with("model.pt: not a TorchScript file"), "{error}");
    }
}
