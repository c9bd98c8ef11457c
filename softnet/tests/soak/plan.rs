//! What a run is to do: how long, how many VMs, and what becomes of each.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use lab::wire::Mac;

use crate::attacker::Attacker;
use crate::dice::Dice;
use crate::end::End;
use crate::ledger::Invariant;

/// What `cargo xtask soak` says to this program: `seed=1 seconds=240 vms=50 ends=close,both attackers=hog`, each of them
/// optional.
const VARIABLE: &str = "SOFTNET_SOAK";

/// VMs that stay from the start to the end of the run, to see whether their Softnets grow.
pub const RESIDENTS: usize = 4;

/// So many of a hundred VMs attack, if anybody does.
const ATTACKERS: u64 = 20;
/// Longer than the shortest lease that the server gives, with time to wake up and ask.
const PAST_A_LEASE: Duration = Duration::from_secs(150);

/// A whole run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What all random choices follow from.
    pub seed: u64,
    /// How long VMs join.
    pub duration: Duration,
    /// How many VMs there are at a time.
    pub vms: usize,
    /// The ways to end, with weights.
    pub ends: Vec<(End, u64)>,
    /// Who works against the others, with weights.
    pub attackers: Vec<(Attacker, u64)>,
    /// How long a VM stays once it has its address, at most.
    pub longest_stay: Duration,
    /// Bad frames that a flooding VM sends every [`crate::flood::PAUSE`].
    pub burst: usize,
}

/// What a VM does beside its errands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Nothing.
    Quiet,
    /// It sends what it must not, without a pause.
    Flood,
    /// It asks for more addresses under other client identifiers.
    Greedy,
    /// It declines the first address that it gets.
    Decline,
    /// It gives its address back and asks again.
    Return,
    /// It works against the others.
    Attack(Attacker),
}

/// When a VM ends that is to end early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// So long after it was started, whatever it has by then.
    After(Duration),
    /// When it was offered an address.
    Offered,
    /// When it has asked for that.
    Requested,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mac, habit, end, early, moment, exposed, .. } = self;
        write!(f, "{mac}, {habit:?}, exposed: {exposed}, end: {end}")?;
        if *end == End::Early { write!(f, " by {early} at {moment:?}") } else { Ok(()) }
    }
}

/// What becomes of one VM.
#[derive(Debug, Clone)]
pub struct Life {
    /// Who it is.
    pub mac: Mac,
    /// What it does.
    pub habit: Habit,
    /// How long it stays with its address; residents stay to the end of the run.
    pub stay: Option<Duration>,
    /// How it ends.
    pub end: End,
    /// If it ends early, in which of the other ways, and when.
    pub early: End,
    pub moment: Moment,
    /// Whether a port of the host leads to it.
    pub exposed: bool,
    /// Bad frames that it sends every [`crate::flood::PAUSE`], if it floods.
    pub burst: usize,
    /// Whether servers of the world go on talking to it.
    pub listens: bool,
    /// Whether it stays until leases have ended.
    pub long: bool,
    /// The dice of all further choices.
    pub dice: Dice,
}

impl Plan {
    /// A quarter of a minute, for all tests.
    pub fn short() -> Self {
        Self {
            seed: 1,
            duration: Duration::from_secs(14),
            vms: 20,
            ends: End::ALL.to_vec(),
            attackers: Attacker::ALL.to_vec(),
            longest_stay: Duration::from_secs(3),
            burst: 8,
        }
    }

    /// The run that the environment asks for, if it does.
    pub fn from_environment() -> Result<Option<Self>> {
        let Ok(words) = std::env::var(VARIABLE) else { return Ok(None) };
        let mut plan = Self {
            duration: Duration::from_secs(240),
            vms: 50,
            longest_stay: Duration::from_secs(14),
            burst: 32,
            ..Self::short()
        };
        for word in words.split_whitespace() {
            let (name, value) =
                word.split_once('=').with_context(|| format!("{VARIABLE}: {word} has no value"))?;
            match name {
                "seed" => plan.seed = value.parse().context("the seed is no number")?,
                "seconds" => {
                    plan.duration = Duration::from_secs(value.parse().context("the seconds are no number")?);
                }
                "vms" => plan.vms = value.parse().context("the VMs are no number")?,
                "ends" => plan.ends = End::list(value)?,
                "attackers" => plan.attackers = Attacker::list(value)?,
                _ => bail!("{VARIABLE}: there is no {name}"),
            }
        }
        ensure!(plan.vms > RESIDENTS, "fewer than {} VMs at a time churn nothing", RESIDENTS + 1);
        plan.subnet()?;
        Ok(Some(plan))
    }

    /// The smallest network with room for the VMs of a moment and for a few that have just ended.
    pub fn subnet(&self) -> Result<Ipv4Net> {
        let needed = u64::try_from(self.vms + self.vms.div_ceil(5))?;
        let prefix = (20..=28).rev().find(|&prefix| pool_size(prefix) >= needed);
        Ok(Ipv4Net::new(
            Ipv4Addr::new(10, 9, 0, 0),
            prefix.with_context(|| format!("{} VMs at a time are too many", self.vms))?,
        )?)
    }

    /// How many VMs at a time may be there beside those, because they were restarted before they had ended.
    pub fn spare(&self) -> usize {
        self.vms.div_ceil(20)
    }

    /// Seconds that a lease lasts. None ends by itself while the run lasts, so an address that is free again was given
    /// back.
    pub fn lease_seconds(&self) -> u64 {
        self.duration.as_secs() * 2 + 600
    }

    /// Whether this attacker is about.
    pub fn has(&self, attacker: Attacker) -> bool {
        self.attackers.iter().any(|(one, _)| *one == attacker)
    }

    /// Whether a lease of the shortest kind can end while VMs still join.
    pub fn is_long(&self) -> bool {
        self.duration >= PAST_A_LEASE + Duration::from_secs(20)
    }

    /// What a run of this plan has occasion to look at.
    pub fn looks_at(&self) -> impl Iterator<Item = Invariant> {
        Invariant::ALL.into_iter().filter(|invariant| match invariant {
            Invariant::Awake => self.has(Attacker::Sleep) && self.is_long(),
            Invariant::Heir => self.has(Attacker::Drip),
            Invariant::Shadow => self.has(Attacker::Shadow),
            Invariant::Whole => self.has(Attacker::Break),
            _ => true,
        })
    }

    /// The attackers that are VMs, with weights. Nobody oversleeps a lease in a short run.
    fn attacking(&self) -> Vec<(Attacker, u64)> {
        let is_about = |(attacker, weight): &(Attacker, u64)| {
            *weight > 0 && (*attacker != Attacker::Sleep || self.is_long())
        };
        self.attackers.iter().filter(|it| is_about(it)).copied().collect()
    }

    /// What becomes of the VM with this number.
    pub fn life(&self, number: usize) -> Life {
        let mut dice = Dice::new(self.seed).split(number as u64);
        let mac = dice.mac();
        let attacking = self.attacking();
        let resident = number < RESIDENTS;
        // What a resident does is what would make it grow.
        let habit = match number {
            0 | 1 => Habit::Flood,
            2 => Habit::Greedy,
            3 => Habit::Quiet,
            // One of each at once, so that each is about for most of the run.
            _ if number - RESIDENTS < attacking.len() => {
                Habit::Attack(attacking.get(number - RESIDENTS).map_or(Attacker::Leak, |(one, _)| *one))
            }
            _ if !attacking.is_empty() && dice.chance(ATTACKERS) => {
                Habit::Attack(dice.pick(&attacking).unwrap_or(Attacker::Leak))
            }
            _ => {
                let habits = [
                    (Habit::Quiet, 55),
                    (Habit::Flood, 20),
                    (Habit::Greedy, 10),
                    (Habit::Decline, 5),
                    (Habit::Return, 10),
                ];
                dice.pick(&habits).unwrap_or(Habit::Quiet)
            }
        };
        let end = dice.pick(&self.ends).unwrap_or(End::Close);
        let ways = [(End::Close, 1), (End::Sigterm, 1), (End::Sigint, 1), (End::Both, 1)];
        let early = dice.pick(&ways).unwrap_or(End::Close);
        let moment = match dice.below(3) {
            0 => Moment::After(Duration::from_millis(dice.below(700))),
            1 => Moment::Offered,
            _ => Moment::Requested,
        };
        let least = 500;
        let spread = u64::try_from(self.longest_stay.as_millis()).unwrap_or(least).saturating_sub(least);
        let stay = Duration::from_millis(least + dice.below(spread));
        let long = self.is_long()
            && (habit == Habit::Attack(Attacker::Sleep)
                || habit == Habit::Attack(Attacker::Desync) && dice.chance(5));
        // Those that are to be felt all the time stay all the time.
        let stays = match habit {
            Habit::Attack(Attacker::Desync) => false,
            _ => resident || number - RESIDENTS < attacking.len(),
        };
        let stay = match habit {
            _ if long => PAST_A_LEASE,
            // Time for two tricks.
            Habit::Attack(Attacker::Desync) => stay.max(Duration::from_secs(4)),
            _ => stay,
        };
        Life {
            mac,
            habit,
            stay: (long || !stays).then_some(stay),
            end: if resident && end == End::Early { End::Close } else { end },
            early,
            moment,
            exposed: dice.chance(20),
            burst: self.burst,
            listens: self.has(Attacker::Drip),
            long,
            dice,
        }
    }
}

/// How many addresses the network's server hands out: all but its own, the first and the last.
pub fn pool_size(prefix: u8) -> u64 {
    (1 << (32 - prefix)) - 3
}
