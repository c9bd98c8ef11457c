//! An error in how Softnet was called: it names the flag, the value, the reason and the fix.

use std::fmt;

/// An invalid command line.
#[derive(Debug, Eq, PartialEq)]
pub struct UsageError {
    flag: &'static str,
    value: Option<String>,
    reason: String,
}

impl UsageError {
    /// `value` of `flag` cannot be used, for `reason`, which ends with what to do.
    pub fn new(flag: &'static str, value: impl Into<String>, reason: impl fmt::Display) -> Self {
        UsageError { flag, value: Some(value.into()), reason: reason.to_string() }
    }

    /// `flag` itself is missing or contradicts another.
    pub fn flag(flag: &'static str, reason: impl fmt::Display) -> Self {
        UsageError { flag, value: None, reason: reason.to_string() }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            // A value may contain any character; quoted and escaped it stays on one line.
            Some(value) => write!(f, "{} {value:?}: {}", self.flag, self.reason),
            None => write!(f, "{}: {}", self.flag, self.reason),
        }
    }
}

impl std::error::Error for UsageError {}
