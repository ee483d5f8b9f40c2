//! What commands print.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use anyhow::Context as _;
use bytesize::ByteSize;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::Outcome;

/// Writes data to standard output.
pub(super) fn print(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush()) {
        // Whoever read has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written.context("can't write to standard output")?),
    }
}

/// Writes JSON to standard output.
pub(super) fn print_json(value: &impl Serialize) -> Outcome {
    print(&serde_json::to_string_pretty(value).context("can't write JSON")?)
}

/// Says something that is no data, on standard error.
pub(super) fn note(text: impl AsRef<str>) {
    // Where nobody reads notes, none is needed.
    drop(writeln!(io::stderr(), "{}", text.as_ref()));
}

/// A table without lines, as wide as the terminal.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// A table as text, without the spaces before its first column and after its last.
pub(super) fn rows(table: &Table) -> String {
    let bare = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
    table.lines().map(bare).collect::<Vec<_>>().join("\n")
}

/// A size for people.
pub(super) fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// A time in microseconds, for people.
pub(super) fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// Something that may be unknown.
pub(super) fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}
