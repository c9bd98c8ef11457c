//! The names that a controller gives to its policies: `desiredRevision`. A request that was delayed or repeated must
//! not bring an old policy back.

use std::collections::VecDeque;

/// How many replaced revisions are remembered.
const MOST_REPLACED: usize = 1024;

/// The present revision and those that it replaced.
#[derive(Debug, Default)]
pub struct Revisions {
    current: Option<String>,
    replaced: VecDeque<String>,
}

/// What a revision means for a policy.
#[derive(Debug, Eq, PartialEq)]
pub enum Step {
    /// The policy is new, or nothing was said about its revision.
    Apply,
    /// It is in force already.
    Nothing,
}

impl Revisions {
    /// The present revision.
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// What to do with a policy of this revision; `same` says whether the policy is the one in force.
    ///
    /// # Errors
    /// When the revision names another policy, or one that was replaced.
    pub fn judge(&self, revision: Option<&str>, same: bool) -> Result<Step, &'static str> {
        let Some(revision) = revision else { return Ok(Step::Apply) };
        if self.current() == Some(revision) {
            return if same {
                Ok(Step::Nothing)
            } else {
                Err("desiredRevision names the policy in force, which is another")
            };
        }
        if self.replaced.iter().any(|replaced| replaced == revision) {
            return Err("desiredRevision names a policy that was replaced");
        }
        Ok(Step::Apply)
    }

    /// A policy of this revision is in force now.
    pub fn replace(&mut self, revision: Option<String>) {
        if let Some(old) = std::mem::replace(&mut self.current, revision) {
            if self.replaced.len() == MOST_REPLACED {
                self.replaced.pop_front();
            }
            self.replaced.push_back(old);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_one_policy_and_never_comes_back() {
        let mut revisions = Revisions::default();
        assert_eq!(revisions.judge(Some("1"), true), Ok(Step::Apply));
        revisions.replace(Some("1".into()));
        assert_eq!(revisions.judge(Some("1"), true), Ok(Step::Nothing));
        revisions.judge(Some("1"), false).unwrap_err();
        revisions.replace(Some("2".into()));
        revisions.judge(Some("1"), true).unwrap_err();
        // Without a revision nothing is compared.
        assert_eq!(revisions.judge(None, true), Ok(Step::Apply));
        revisions.replace(None);
        assert_eq!(revisions.current(), None);
        revisions.judge(Some("2"), true).unwrap_err();
    }

    #[test]
    fn the_last_1024_are_remembered() {
        let mut revisions = Revisions::default();
        for number in 0..=1025 {
            revisions.replace(Some(number.to_string()));
        }
        assert_eq!(revisions.judge(Some("0"), false), Ok(Step::Apply));
        revisions.judge(Some("1"), false).unwrap_err();
        revisions.judge(Some("1024"), false).unwrap_err();
    }
}
