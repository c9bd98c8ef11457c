//! Records which generation of the kernel's ruleset Softnet made.
//!
//! The kernel reports a change by Softnet itself like any other. After each of its own transactions, under
//! the lock, Softnet records the number of the ruleset's generation. The kernel ends the messages of each
//! transaction with the number of the generation that the transaction made. So a table of Softnet's that
//! changed in a later generation than the recorded one was changed by another program.

use std::fs;
use std::io;

use super::run_dir::RunDir;
use crate::host::files;
use crate::netlink::nftables::generation;

/// What is known about changes to the networks' tables.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Tables {
    /// Nothing has changed.
    #[default]
    Same,
    /// A table changed, most recently in the generation with this number.
    ChangedIn(u32),
    /// Notifications were lost, so a table may have changed.
    Unknown,
}

impl Tables {
    /// Combines this with what a `later` notification reports.
    pub fn and_then(self, later: Tables) -> Tables {
        match (self, later) {
            (known, Tables::Same) => known,
            (Tables::Unknown, _) => Tables::Unknown,
            (_, later) => later,
        }
    }

    /// Whether another program may have changed a table since Softnet last did. Call it under the lock.
    pub fn were_changed_by_others(self, run_dir: &RunDir) -> bool {
        match self {
            Tables::Same => false,
            // The numbers wrap around.
            Tables::ChangedIn(number) => {
                noted(run_dir).is_none_or(|noted| noted.wrapping_sub(number).cast_signed() < 0)
            }
            Tables::Unknown => if_as_noted(run_dir).is_none(),
        }
    }
}

/// Records that the ruleset is as Softnet made it, by one transaction since generation `before`. Call it
/// under the lock, after that transaction. If another program has made a change meanwhile, nothing is
/// recorded, and the keeper renders the rules once more.
pub fn note(run_dir: &RunDir, before: Option<u32>) {
    let after = generation().ok();
    let path = run_dir.generation_file();
    let noted = match after.filter(|after| before.map(|before| before.wrapping_add(1)) == Some(*after)) {
        Some(own) => files::write_atomically(&path, &own.to_string()).map_err(io::Error::other),
        None => files::remove_file(&path).map_err(io::Error::other),
    };
    if let Err(error) = noted {
        tracing::debug!(%error, "cannot record the ruleset's generation");
    }
}

/// The ruleset's generation, if the ruleset is unchanged since Softnet last changed it. Call it under the lock.
pub fn if_as_noted(run_dir: &RunDir) -> Option<u32> {
    generation().ok().filter(|present| noted(run_dir) == Some(*present))
}

fn noted(run_dir: &RunDir) -> Option<u32> {
    fs::read_to_string(run_dir.generation_file()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_notifications_leave_the_tables_unknown() {
        let (one, two) = (Tables::ChangedIn(1), Tables::ChangedIn(2));
        assert_eq!(one.and_then(two).and_then(Tables::Same), two);
        assert_eq!(one.and_then(Tables::Unknown).and_then(two), Tables::Unknown);
    }
}
