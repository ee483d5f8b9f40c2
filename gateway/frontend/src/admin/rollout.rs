//! Rollout decisions as JSON.

use bascule_registry::{Op, check_version};
use bascule_serving::{ModelStatus, Status};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::refusal::Refusal;

const FULL_WEIGHT_BP: u32 = 10_000;

/// A decision, as the body of a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Decision {
    /// What to do.
    op: String,
    /// With which version.
    version: Option<u64>,
    /// Its share in basis points.
    weight_bp: Option<u32>,
    /// A name for it.
    alias: Option<String>,
    /// Who decides.
    #[serde(default = "anonymous")]
    pub(crate) by: String,
    /// Why.
    #[serde(default)]
    pub(crate) reason: String,
    /// The same id again is the same decision.
    pub(crate) id: Option<Uuid>,
}

fn anonymous() -> String {
    "admin api".to_owned()
}

impl Decision {
    /// The journal's word for it.
    pub(crate) fn op(&self) -> Result<Op, Refusal> {
        if let Some(version) = self.version {
            check_version(version).map_err(|error| Refusal::bad_request(error.to_string(), "give the version's number"))?;
        }
        let op = match self.op.as_str() {
            "weight" => Op::Weight { version: self.needed_version()?, weight_bp: self.needed_weight()? },
            "pin" => Op::Pin { version: self.needed_version()? },
            "unpin" => Op::Unpin,
            "promote" => Op::Promote { version: self.version },
            "abort" => Op::Abort,
            "rollback" => Op::Rollback { version: self.version },
            "alias" => Op::Alias { name: self.needed("alias", self.alias.clone())?, version: self.version },
            "clear" => Op::Clear { version: self.version },
            "hold" => Op::Hold { version: self.needed_version()? },
            "disable" => Op::Disable,
            "enable" => Op::Enable,
            other => {
                let other: String = other.chars().take(64).collect();
                let hint = "op is one of weight, pin, unpin, promote, abort, rollback, alias, clear, hold, disable, enable";
                return Err(Refusal::bad_request(format!("field 'op': '{other}' is not known"), hint));
            }
        };
        self.check_unused(&op)?;
        Ok(op)
    }

    fn needed<T>(&self, field: &str, value: Option<T>) -> Result<T, Refusal> {
        value.ok_or_else(|| Refusal::bad_request(format!("field '{field}' is missing"), format!("op '{}' needs it", self.op)))
    }

    fn needed_version(&self) -> Result<u64, Refusal> {
        self.needed("version", self.version)
    }

    fn needed_weight(&self) -> Result<u32, Refusal> {
        match self.needed("weight_bp", self.weight_bp)? {
            weight @ 0..=FULL_WEIGHT_BP => Ok(weight),
            weight => {
                Err(Refusal::bad_request(format!("field 'weight_bp': expected 0 to {FULL_WEIGHT_BP}, got {weight}"), "100 is 1 %"))
            }
        }
    }

    /// A field that the decision does not use is a misunderstanding.
    fn check_unused(&self, op: &Op) -> Result<(), Refusal> {
        let takes_version = op.version().is_some() || matches!(op, Op::Alias { .. });
        let unused = [
            ("version", self.version.is_some() && !takes_version),
            ("weight_bp", self.weight_bp.is_some() && !matches!(op, Op::Weight { .. })),
            ("alias", self.alias.is_some() && !matches!(op, Op::Alias { .. })),
        ];
        match unused.into_iter().find(|(_, unused)| *unused) {
            None => Ok(()),
            Some((field, _)) => Err(Refusal::bad_request(format!("op '{}' has no field '{field}'", self.op), "leave it out")),
        }
    }
}

/// The state of a model's rollout.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RolloutView<'a> {
    model: &'a str,
    /// `immediate` or `manual`.
    strategy: &'a str,
    stable: Option<u64>,
    candidate: Option<&'a bascule_serving::CandidateStatus>,
    pinned: Option<u64>,
    rejected: &'a [u64],
    aliases: &'a std::collections::BTreeMap<String, u64>,
    frozen: Option<&'a str>,
}

impl<'a> RolloutView<'a> {
    pub(crate) fn of(model: &'a ModelStatus) -> RolloutView<'a> {
        RolloutView {
            model: &model.name,
            strategy: &model.strategy,
            stable: model.stable,
            candidate: model.candidate.as_ref(),
            pinned: model.pinned,
            rejected: &model.rejected,
            aliases: &model.aliases,
            frozen: model.frozen.as_deref(),
        }
    }
}

/// A model of a status.
pub(crate) fn model<'a>(status: &'a Status, name: &str) -> Result<&'a ModelStatus, Refusal> {
    status.model(name).ok_or_else(|| Refusal::unknown_model(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(json: &str) -> Result<Op, String> {
        let decision: Decision = serde_json::from_str(json).map_err(|error| error.to_string())?;
        decision.op().map_err(|refusal| refusal.error)
    }

    #[test]
    fn decisions_are_read_strictly() {
        assert_eq!(op(r#"{"op":"weight","version":2,"weight_bp":1000}"#), Ok(Op::Weight { version: 2, weight_bp: 1000 }));
        assert_eq!(op(r#"{"op":"unpin","by":"ann","reason":"done"}"#), Ok(Op::Unpin));
        assert_eq!(op(r#"{"op":"alias","alias":"prod","version":3}"#), Ok(Op::Alias { name: "prod".into(), version: Some(3) }));
        assert_eq!(op(r#"{"op":"alias","alias":"prod"}"#), Ok(Op::Alias { name: "prod".into(), version: None }));
        assert_eq!(op(r#"{"op":"clear"}"#), Ok(Op::Clear { version: None }));
        assert_eq!(op(r#"{"op":"rollback","version":1}"#), Ok(Op::Rollback { version: Some(1) }));
        for (json, error) in [
            (r#"{"op":"weight","version":2}"#, "field 'weight_bp' is missing"),
            (r#"{"op":"weight","weight_bp":1}"#, "field 'version' is missing"),
            (r#"{"op":"weight","version":2,"weight_bp":10001}"#, "field 'weight_bp': expected 0 to 10000, got 10001"),
            (r#"{"op":"pin","version":2,"weight_bp":1}"#, "op 'pin' has no field 'weight_bp'"),
            (r#"{"op":"unpin","version":2}"#, "op 'unpin' has no field 'version'"),
            (r#"{"op":"start","version":2}"#, "field 'op': 'start' is not known"),
            (r#"{"op":"pin","version":0}"#, "version \"0\" is not a whole number from 1 to 9223372036854775807"),
        ] {
            assert_eq!(op(json).map_err(|found| found.replace("version 0 ", "version \"0\" ")), Err(error.to_owned()), "{json}");
        }
        assert!(op(r#"{"op":"unpin","vresion":1}"#).is_err_and(|error| error.contains("unknown field `vresion`")));
    }
}
