//! The ways in which a VM and its Softnet end.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// How one ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The VM closes its socket.
    Close,
    /// The VM gives its lease back first, as a guest does that shuts down.
    Release,
    /// SIGTERM.
    Sigterm,
    /// SIGINT, which is how Tart ends it.
    Sigint,
    /// In one of these ways, before the VM has its answer from the DHCP server.
    Early,
    /// SIGKILL for the process that carries the frames.
    Worker,
    /// SIGKILL for its privileged parent.
    Monitor,
    /// SIGKILL for both at once.
    Both,
}

impl End {
    /// All of them, each with how often it occurs.
    pub const ALL: [(Self, u64); 8] = [
        (Self::Close, 20),
        (Self::Release, 15),
        (Self::Sigterm, 15),
        (Self::Sigint, 10),
        (Self::Early, 10),
        (Self::Worker, 10),
        (Self::Monitor, 10),
        (Self::Both, 10),
    ];

    /// The word for it on the command line and in the figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Release => "release",
            Self::Sigterm => "sigterm",
            Self::Sigint => "sigint",
            Self::Early => "early",
            Self::Worker => "worker",
            Self::Monitor => "monitor",
            Self::Both => "both",
        }
    }

    /// Whether Softnet is to end with success.
    pub fn is_clean(self) -> bool {
        matches!(self, Self::Close | Self::Release | Self::Sigterm | Self::Sigint)
    }

    /// The ends in a list such as `close,both`, with their weights.
    pub fn list(names: &str) -> Result<Vec<(Self, u64)>> {
        names
            .split(',')
            .map(|name| {
                let end: Self = name.trim().parse()?;
                Self::ALL.iter().find(|(known, _)| *known == end).copied().context("each has a weight")
            })
            .collect()
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for End {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let Some((end, _)) = Self::ALL.iter().find(|(end, _)| end.name() == name) else {
            let known: Vec<&str> = Self::ALL.iter().map(|(end, _)| end.name()).collect();
            bail!("there is no end {name}; there are {}", known.join(", "));
        };
        Ok(*end)
    }
}
