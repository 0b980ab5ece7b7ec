//! What is said of one thing that was looked at.

use serde::Serialize;

/// How good it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It serves as it should.
    Ok,
    /// It serves, and worse than it could.
    Warning,
    /// It does not serve.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Check {
    /// Nothing is to be done.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    /// With what would make it better.
    pub fn warning(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into());
        Self { name, verdict: Verdict::Warning, found: found.into(), advice }
    }

    /// With what has to be done.
    pub fn problem(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into());
        Self { name, verdict: Verdict::Problem, found: found.into(), advice }
    }
}
