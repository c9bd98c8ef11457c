//! Identifies one process by its number, which the kernel reuses later, and its start time.

use std::fmt;
use std::fs;
use std::str::FromStr;

/// Identifies a process, and no later one with the same number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Incarnation {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5)).
    started: u64,
}

impl Incarnation {
    /// This process.
    pub fn of_this_process() -> Option<Self> {
        Incarnation::of(std::process::id())
    }

    /// The process that has the number now; `None` if there is none or it is a zombie.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may contain any character, also blanks and parentheses.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Incarnation { pid, started })
    }

    /// Whether it still runs.
    pub fn lives(self) -> bool {
        Incarnation::of(self.pid) == Some(self)
    }

    /// The name of the program that the process with this number runs.
    pub fn name(pid: u32) -> Option<String> {
        Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for Incarnation {
    type Err = ();

    /// Parses what the `Display` of [`Incarnation`] writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (pid, started) = text.split_once(' ').ok_or(())?;
        Ok(Incarnation { pid: pid.parse().map_err(drop)?, started: started.trim().parse().map_err(drop)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_distinguished_from_a_later_one_with_its_number() {
        let own = Incarnation::of_this_process().unwrap();
        assert!(own.lives());
        assert_eq!(own.to_string().parse(), Ok(own));
        assert!(!Incarnation { started: own.started + 1, ..own }.lives());
        assert_eq!("7".parse::<Incarnation>(), Err(()));
        assert_eq!(Incarnation::of(u32::MAX), None);
    }
}
