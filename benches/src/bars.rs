//! The bars that the gateway is to meet, and whether it does here.

use crate::report::Report;
use crate::stats::{Estimate, estimate};

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

/// Whether a figure is what it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The whole interval lies within the bar.
    Met,
    /// The whole interval lies outside.
    Missed,
    /// The bar lies within the interval, or there is none.
    NotDecidableHere,
}

impl Bar {
    pub(crate) fn verdict(self, estimate: Estimate) -> Verdict {
        let Some((low, high)) = estimate.interval else { return Verdict::NotDecidableHere };
        let (inside, outside) = match self {
            Bar::AtMost(bar) => (high <= bar, low > bar),
            Bar::AtLeast(bar) => (low >= bar, high < bar),
        };
        match (inside, outside) {
            (true, _) => Verdict::Met,
            (_, true) => Verdict::Missed,
            _ => Verdict::NotDecidableHere,
        }
    }

    fn shown(self) -> String {
        match self {
            Bar::AtMost(bar) => format!("≤ {bar}"),
            Bar::AtLeast(bar) => format!("≥ {bar}"),
        }
    }
}

impl Verdict {
    fn shown(self) -> &'static str {
        match self {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::NotDecidableHere => "not decidable here",
        }
    }
}

/// Rows of the table of bars, in the order in which they were measured.
#[derive(Debug, Default)]
pub(crate) struct Bars {
    rows: Vec<Vec<String>>,
    values: Vec<(String, Vec<f64>)>,
}

impl Bars {
    /// Adds what was measured: one value a pair, and a remark.
    pub(crate) fn add(&mut self, name: &str, bar: Bar, values: &[f64], remark: &str) {
        self.values.push((name.to_owned(), values.to_vec()));
        let measured = estimate(values);
        let interval = measured.interval.map_or_else(String::new, |(low, high)| format!("{} to {}", digits(low), digits(high)));
        let verdict = bar.verdict(measured).shown();
        let cells = [name, &bar.shown(), &digits(measured.median), &interval, &values.len().to_string(), verdict, remark];
        self.rows.push(cells.map(str::to_owned).to_vec());
    }

    /// Adds a figure that only the whole run gives, such as the worst of all: it has no interval, and another run may give another.
    pub(crate) fn add_once(&mut self, name: &str, bar: Bar, value: f64, remark: &str) {
        let whole = Estimate { median: value, interval: Some((value, value)) };
        let cells = [name, &bar.shown(), &digits(value), "whole run", "1", bar.verdict(whole).shown(), remark];
        self.rows.push(cells.map(str::to_owned).to_vec());
    }

    /// Adds a row that could not be measured, and why.
    pub(crate) fn skip(&mut self, name: &str, bar: Bar, reason: &str) {
        self.rows.push([name, &bar.shown(), "", "", "0", "not measured", reason].map(str::to_owned).to_vec());
    }

    /// Prints the table.
    pub(crate) fn print(&self, report: &mut Report) {
        if !self.rows.is_empty() {
            report.table("Bars", &["row", "bar", "median", "95 % interval", "pairs", "verdict", "remark"], &self.rows);
            self.values.iter().for_each(|(row, values)| report.keep(row, values));
        }
    }
}

/// Three digits or so of a figure.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_where_the_whole_interval_lies_within() {
        let measured = |low, high| Estimate { median: 1.5, interval: Some((low, high)) };
        let none = Estimate { median: 1.5, interval: None };
        for (bar, estimate, verdict) in [
            (Bar::AtMost(1.6), measured(1.4, 1.6), Verdict::Met),
            (Bar::AtMost(1.6), measured(1.4, 1.61), Verdict::NotDecidableHere),
            (Bar::AtMost(1.6), measured(1.61, 1.7), Verdict::Missed),
            (Bar::AtMost(1.6), none, Verdict::NotDecidableHere),
            (Bar::AtLeast(0.95), measured(0.95, 1.0), Verdict::Met),
            (Bar::AtLeast(0.95), measured(0.9, 1.0), Verdict::NotDecidableHere),
            (Bar::AtLeast(0.95), measured(0.9, 0.94), Verdict::Missed),
        ] {
            assert_eq!(bar.verdict(estimate), verdict, "{bar:?} {estimate:?}");
        }
    }
}
