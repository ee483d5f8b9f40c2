//! A progress bar, only on a terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};

use bascule_registry::Progress;
use indicatif::{ProgressBar, ProgressStyle};

/// How far a transfer is, over all of its files.
pub(in crate::cli) struct Bar {
    bar: ProgressBar,
    done: Mutex<BTreeMap<String, u64>>,
}

impl Bar {
    pub(in crate::cli) fn new(total_bytes: u64) -> Bar {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total_bytes) } else { ProgressBar::hidden() };
        // A template that can't be read leaves the plain bar.
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {msg}")
        {
            bar.set_style(style);
        }
        Bar { bar, done: Mutex::default() }
    }

    pub(in crate::cli) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn advance(&self, file: &str, done: u64, _total: u64) {
        let mut all = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(file.to_owned(), done);
        self.bar.set_position(all.values().sum());
        self.bar.set_message(file.to_owned());
    }
}
