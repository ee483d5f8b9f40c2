//! Whether the threads that operators may have fit the machine.
//!
//! Each runtime has threads of its own, which know nothing of the others'. One that has a single thread runs an operator on the thread
//! that asked for it, and counts for nothing here.

use crate::compose;
use crate::config::Config;

/// What is wrong where models of the formats that `is_used` knows run at once on so many processors.
pub(super) fn too_many(config: &Config, is_used: impl Fn(&str) -> bool, processors: usize) -> Option<String> {
    let counts = compose::operator_threads(config).into_iter().filter(|(format, _, threads)| is_used(format) && *threads > 1);
    let counts: Vec<(&str, u32)> = counts.map(|(_, setting, threads)| (setting, threads)).collect();
    let sum: usize = counts.iter().map(|(_, threads)| *threads as usize).sum();
    if sum <= processors {
        return None;
    }
    let named: Vec<String> = counts.iter().map(|(setting, threads)| format!("{setting} = {threads}")).collect();
    let together = if named.len() > 1 { "are together" } else { "is" };
    Some(format!(
        "{} {together} more than the {processors} processors of this machine: operators that run at once wait for each other",
        named.join(" and ")
    ))
}

/// The processors that this process may use.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::env::Environment;
    use crate::config::{Given, load};

    fn said(sets: &[&str], is_used: impl Fn(&str) -> bool) -> Option<String> {
        let given = Given { sets: sets.iter().map(|set| (*set).to_owned()).collect(), ..Given::default() };
        too_many(&load(&given, &Environment::default()).unwrap().config, is_used, 4)
    }

    #[test]
    fn what_runs_at_once_has_to_fit_the_machine() {
        let end = "more than the 4 processors of this machine: operators that run at once wait for each other";
        assert_eq!(said(&[], |_| true), None);
        assert_eq!(said(&["runtime.threads=2"], |_| true), None);
        let together = format!("onnxruntime.threads = 3 and torch.threads = 3 are together {end}");
        assert_eq!(said(&["runtime.threads=3"], |_| true), Some(together));
        assert_eq!(said(&["runtime.threads=4"], |format| format == "onnx"), None);
        assert_eq!(said(&["runtime.threads=4", "torch.threads=1"], |_| true), None);
        assert_eq!(said(&["torch.threads=5"], |_| true), Some(format!("torch.threads = 5 is {end}")));
        assert_eq!(said(&["torch.threads=5"], |format| format == "onnx"), None);
    }
}
