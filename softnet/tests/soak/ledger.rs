//! What must hold, how often it was looked at, and what was found otherwise.

use std::fmt;
use std::sync::LazyLock;
use std::time::Instant;

/// Examples kept of what was found otherwise.
const EXAMPLES: usize = 4;

/// How often one is told of while it happens.
const TOLD: u64 = 20;

/// When the first look was taken.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invariant {
    /// Every VM gets an address in time.
    Served,
    /// No living VM has an address that another living VM has.
    Alone,
    /// Every address is of the network's pool.
    Pool,
    /// The server's file, Softnet's notes and locks, and the VM say the same.
    Noted,
    /// Addresses are given away again only when they were given back.
    GivenBack,
    /// Nothing leaves Softnet under a MAC or an address that is not the VM's at that moment, and nothing that is marked.
    Own,
    /// Nothing reaches the LAN or the metadata service, and the uplink sees the host's address only.
    World,
    /// No VM gets a frame of another.
    Apart,
    /// Every bad frame is counted as dropped, and no more are forwarded than were good.
    Counted,
    /// A VM with an address reaches its gateway and the world, and may renew.
    Useful,
    /// The resolver answers every VM, by both transports, in time and without a refusal.
    Names,
    /// Every VM opens connections to the world in time.
    Connects,
    /// Nobody gets what is for whoever had its address before.
    Heir,
    /// The host's service, and a VM with an exposed port, keep their peers.
    Shadow,
    /// Who has slept longer than its lease is answered at once.
    Awake,
    /// No VM holds more tracked connections than its share.
    Share,
    /// What is broken is whole again soon, without a start.
    Whole,
    /// No renewal is refused.
    Kept,
    /// Each Softnet ends when, and as, it is told.
    Ends,
    /// Memory does not grow.
    Memory,
    /// Descriptors do not grow.
    Descriptors,
    /// Nothing of a VM stays on the host.
    Traces,
    /// `softnet network down` leaves nothing of the network.
    Down,
}

impl Invariant {
    /// All of them in the order of the report.
    pub const ALL: [Self; 23] = [
        Self::Served,
        Self::Alone,
        Self::Pool,
        Self::Noted,
        Self::GivenBack,
        Self::Own,
        Self::World,
        Self::Apart,
        Self::Counted,
        Self::Useful,
        Self::Names,
        Self::Connects,
        Self::Heir,
        Self::Shadow,
        Self::Awake,
        Self::Share,
        Self::Whole,
        Self::Kept,
        Self::Ends,
        Self::Memory,
        Self::Descriptors,
        Self::Traces,
        Self::Down,
    ];

    fn says(self) -> &'static str {
        match self {
            Self::Served => "every VM gets an address",
            Self::Alone => "no two living VMs have the same address",
            Self::Pool => "every address is from the pool",
            Self::Noted => "the server and the locks agree with the VM",
            Self::GivenBack => "an address is given away when it was given back",
            Self::Own => "nothing leaves but under the VM's own addresses",
            Self::World => "nothing leaves the host that must not",
            Self::Apart => "no VM hears another",
            Self::Counted => "every bad frame is dropped and counted",
            Self::Useful => "the network works for every VM",
            Self::Names => "every VM gets its names",
            Self::Connects => "every VM gets new connections to the world",
            Self::Heir => "nobody gets a former holder's connections",
            Self::Shadow => "the host and exposed ports keep their peers",
            Self::Awake => "who overslept its lease is answered at once",
            Self::Share => "no VM has more connections than its share",
            Self::Whole => "what is broken is whole again in 5 s",
            Self::Kept => "no renewal is refused",
            Self::Ends => "every Softnet ends when and as it is told",
            Self::Memory => "memory is flat",
            Self::Descriptors => "descriptors are flat",
            Self::Traces => "nothing of a VM stays",
            Self::Down => "the network can be taken down",
        }
    }
}

/// What was found of one invariant.
#[derive(Debug, Clone, Default)]
struct Entry {
    looks: u64,
    failures: u64,
    examples: Vec<String>,
}

/// The book of all invariants.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: [Entry; Invariant::ALL.len()],
}

impl Ledger {
    /// Notes that the invariant was looked at; `why` says what was found if it does not hold.
    pub fn check(&mut self, invariant: Invariant, holds: bool, why: impl FnOnce() -> String) {
        let Some(entry) = self.entries.get_mut(invariant as usize) else { return };
        entry.looks += 1;
        LazyLock::force(&BEGUN);
        if holds {
            return;
        }
        entry.failures += 1;
        if entry.failures > TOLD {
            return;
        }
        let why = why();
        // With the time, which the report does not have.
        eprintln!("{:4.0} s: {}: {why}", BEGUN.elapsed().as_secs_f64(), invariant.says());
        if entry.examples.len() < EXAMPLES {
            entry.examples.push(why);
        }
    }

    /// Adds what another has noted.
    pub fn add(&mut self, other: Self) {
        for (own, theirs) in self.entries.iter_mut().zip(other.entries) {
            own.looks += theirs.looks;
            own.failures += theirs.failures;
            own.examples.extend(theirs.examples);
            own.examples.truncate(EXAMPLES);
        }
    }

    /// How often anything was found otherwise.
    pub fn failures(&self) -> u64 {
        self.entries.iter().map(|entry| entry.failures).sum()
    }

    /// What was never looked at, and so proves nothing.
    pub fn is_idle(&self, invariant: Invariant) -> bool {
        self.entries.get(invariant as usize).is_none_or(|entry| entry.looks == 0)
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for invariant in Invariant::ALL {
            let Some(entry) = self.entries.get(invariant as usize) else { continue };
            let verdict = match entry {
                Entry { looks: 0, .. } => "not looked at".to_owned(),
                Entry { failures: 0, .. } => "ok".to_owned(),
                Entry { failures, .. } => format!("FAILED {failures} times"),
            };
            writeln!(f, "{:<50} {:>9}  {verdict}", invariant.says(), entry.looks)?;
            for example in &entry.examples {
                writeln!(f, "    {}", example.trim().replace('\n', "\n    "))?;
            }
        }
        Ok(())
    }
}
