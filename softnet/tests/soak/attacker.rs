//! Who works against the others during a run: guests with bad habits, servers of the world, and whoever breaks the host.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attacker {
    /// A VM whose Softnet and whose server are to believe different things of its lease (rule B7).
    Desync,
    /// A VM that opens more connections than its share, to a world that stays silent (rule H4).
    Filler,
    /// A VM that keeps the resolver busy with what has no answer (rule H4).
    Hog,
    /// A VM that speaks from ports of the host, to whom the host speaks to (rule H6).
    Shadow,
    /// A VM that sends what connection tracking does not translate (rule H7).
    Leak,
    /// A VM that sleeps longer than its lease and then renews (rule C10). No attacker, but as hard to serve.
    Sleep,
    /// Servers that go on talking to those who have left (rule H3).
    Drip,
    /// Somebody with root on the host who kills the server and breaks the network (rule H8).
    Break,
}

impl Attacker {
    /// All of them, each with how often a VM is one; nought if none is.
    pub const ALL: [(Self, u64); 8] = [
        (Self::Desync, 30),
        (Self::Filler, 10),
        (Self::Hog, 15),
        (Self::Shadow, 20),
        (Self::Leak, 15),
        (Self::Sleep, 2),
        (Self::Drip, 0),
        (Self::Break, 0),
    ];

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Desync => "desync",
            Self::Filler => "filler",
            Self::Hog => "hog",
            Self::Shadow => "shadow",
            Self::Leak => "leak",
            Self::Sleep => "sleep",
            Self::Drip => "drip",
            Self::Break => "break",
        }
    }

    /// The attackers in a list such as `desync,hog`, with their weights; `none` is the empty list.
    pub fn list(names: &str) -> Result<Vec<(Self, u64)>> {
        if names == "none" {
            return Ok(Vec::new());
        }
        names
            .split(',')
            .map(|name| {
                let attacker: Self = name.trim().parse()?;
                Self::ALL.iter().find(|(known, _)| *known == attacker).copied().context("each has a weight")
            })
            .collect()
    }
}

impl fmt::Display for Attacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Attacker {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let Some((attacker, _)) = Self::ALL.iter().find(|(attacker, _)| attacker.name() == name) else {
            let known: Vec<&str> = Self::ALL.iter().map(|(attacker, _)| attacker.name()).collect();
            bail!("there is no attacker {name}; there are {}, or none at all", known.join(", "));
        };
        Ok(*attacker)
    }
}
