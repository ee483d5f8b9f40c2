//! What a changed configuration means for a running gateway.

use super::layers::Entry;

/// The settings that differ between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Those that apply at once.
    pub live: Vec<Change>,
    /// Those that keep their old value until the gateway is started anew.
    pub refused: Vec<Change>,
}

/// One setting that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The dotted name.
    pub name: &'static str,
    /// As it was.
    pub old: String,
    /// As it is written now.
    pub new: String,
}

impl Changes {
    /// A setting of those that apply at once does not, as it turned out.
    pub fn refuse(&mut self, name: &str) {
        let (refused, live) = std::mem::take(&mut self.live).into_iter().partition(|change| change.name == name);
        self.live = live;
        self.refused.extend::<Vec<_>>(refused);
    }
}

/// Compares what applies with what was read now.
pub fn changes(old: &[Entry], new: &[Entry]) -> Changes {
    let mut changes = Changes::default();
    for entry in new {
        let Some(before) = old.iter().find(|before| before.name == entry.name && before.value != entry.value) else {
            continue;
        };
        let change = Change { name: entry.name, old: before.value.clone(), new: entry.value.clone() };
        if entry.live { changes.live.push(change) } else { changes.refused.push(change) }
    }
    changes
}
