//! Prometheus' text format, version 0.0.4.

use std::fmt::Write as _;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by bucket.
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What follows the family's name: empty, or a histogram's `_bucket`, `_sum`, `_count`.
    suffix: &'static str,
    /// `a="1",b="2"`, escaped.
    labels: String,
    value: f64,
}

impl Sample {
    pub(crate) fn new(suffix: &'static str, labels: String, value: f64) -> Sample {
        Sample { suffix, labels, value }
    }
}

/// All series of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// The metric's name.
    pub(crate) name: String,
    /// What its values mean.
    pub(crate) kind: Kind,
    /// For people.
    pub(crate) help: String,
    /// Its lines.
    pub(crate) samples: Vec<Sample>,
}

impl Family {
    /// A gauge that is read at the time of a scrape.
    pub fn gauge(name: &str, help: &str) -> Family {
        Family { name: name.to_owned(), kind: Kind::Gauge, help: help.to_owned(), samples: Vec::new() }
    }

    /// Adds a series.
    pub fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        self.samples.push(Sample::new("", label_text(labels), value));
    }

    /// Whether it has no series.
    pub(crate) fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The same with one series.
    #[must_use]
    pub fn with(mut self, labels: &[(&str, &str)], value: f64) -> Family {
        self.add(labels, value);
        self
    }
}

/// Labels as they stand between the braces.
pub(crate) fn label_text(labels: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (index, (name, value)) in labels.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        // Writing to a string never fails.
        let _ = write!(text, "{comma}{name}=\"{value}\"");
    }
    text
}

/// The whole text, families by name. Families without a series are left out.
pub(crate) fn render(mut families: Vec<Family>) -> String {
    families.retain(|family| !family.samples.is_empty());
    families.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::new();
    let mut last = "";
    for family in &families {
        let name = &family.name;
        // What is recorded and computed under one name is one family.
        if std::mem::replace(&mut last, name) != name {
            head(&mut text, family);
        }
        for Sample { suffix, labels, value } in &family.samples {
            let _ = match labels.as_str() {
                "" => writeln!(text, "{name}{suffix} {}", number(*value)),
                labels => writeln!(text, "{name}{suffix}{{{labels}}} {}", number(*value)),
            };
        }
    }
    text
}

fn head(text: &mut String, family: &Family) {
    let name = &family.name;
    if !family.help.is_empty() {
        let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(text, "# HELP {name} {help}");
    }
    let _ = writeln!(text, "# TYPE {name} {}", family.kind.name());
}

fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}
