//! Breaks the host's side of the network, one thing at a time, and sees how soon it is whole again (rule H8).
//!
//! No VM starts in between, and half of the time none ends either: what comes back only because somebody new needs it, or
//! because somebody leaves, is no repair.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::stage::run;
use nix::sys::signal::{Signal, kill};

use crate::NETWORK;
use crate::attacker::Attacker;
use crate::census;
use crate::dice::Dice;
use crate::ledger::{Invariant, Ledger};
use crate::plan::Plan;
use crate::words::{self, KNOWN};

/// So soon everything is whole again.
const WHOLE: Duration = Duration::from_secs(5);
/// So long it is waited for longer, once that was too late, with VMs that start.
const LATER: Duration = Duration::from_secs(15);
/// From one look at the host to the next.
const LOOK: Duration = Duration::from_millis(100);
/// How long the resolver may think.
const ANSWER: Duration = Duration::from_millis(300);
/// How long the VMs may take until none is starting.
const SETTLING: Duration = Duration::from_secs(4);
/// So long after a repair what went wrong may still be the breaker's doing.
const AFTERMATH: Duration = Duration::from_secs(3);
/// The first thing is broken so long after the begin.
const FIRST: Duration = Duration::from_secs(3);

/// How long the kernel keeps a connection that nobody has answered, and a little more.
const UNREPLIED: Duration = Duration::from_secs(130);

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// What can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The server is killed.
    Kill,
    /// The ruleset is flushed, as firewall services do when they start.
    Rules,
    /// The bridge loses its address.
    Address,
    /// Forwarding is switched off.
    Forwarding,
    /// The server is stopped, and says nothing.
    Stop,
    /// The bridge is deleted.
    Bridge,
}

impl Damage {
    const ALL: [Self; 6] =
        [Self::Kill, Self::Rules, Self::Address, Self::Forwarding, Self::Stop, Self::Bridge];

    fn is_done(self) -> Result<()> {
        let signal = |signal| {
            let server = census::server().context("there is no server to break")?;
            kill(server, signal).with_context(|| format!("send {signal} to the server"))
        };
        match self {
            Self::Kill => signal(Signal::SIGKILL),
            Self::Stop => signal(Signal::SIGSTOP),
            Self::Rules => run("nft", &["flush", "ruleset"]).map(drop),
            Self::Address => run("ip", &["addr", "flush", "dev", NETWORK]).map(drop),
            Self::Forwarding => fs::write(FORWARDING, "0").context("switch forwarding off"),
            Self::Bridge => run("ip", &["link", "del", NETWORK]).map(drop),
        }
    }
}

/// What the breaker and the others tell each other.
#[derive(Debug, Default)]
pub struct Calm {
    /// No VM is to start.
    held: AtomicBool,
    /// And none is to end.
    still: AtomicBool,
    /// None is starting.
    quiet: AtomicBool,
    /// Something is broken, or was until a moment ago.
    excused: Mutex<Option<Excuse>>,
    /// When the ruleset was last flushed.
    flushed: Mutex<Option<Instant>>,
}

#[derive(Debug, Clone, Copy)]
enum Excuse {
    Broken,
    Until(Instant),
}

impl Calm {
    /// Whether VMs may start.
    pub fn may_start(&self) -> bool {
        !self.held.load(Ordering::Relaxed)
    }

    /// Whether VMs may end that have been told to.
    pub fn may_end(&self) -> bool {
        !self.still.load(Ordering::Relaxed)
    }

    fn hold(&self, starts: bool, ends: bool) {
        self.held.store(starts, Ordering::Relaxed);
        self.still.store(ends, Ordering::Relaxed);
    }

    /// Says whether some VM is starting.
    pub fn say(&self, quiet: bool) {
        self.quiet.store(quiet, Ordering::Relaxed);
    }

    /// Whether what goes wrong for a moment may be the breaker's doing.
    pub fn excuses(&self, now: Instant) -> bool {
        match *self.excused.lock().unwrap_or_else(PoisonError::into_inner) {
            None => false,
            Some(Excuse::Broken) => true,
            Some(Excuse::Until(end)) => now < end,
        }
    }

    /// Whether the kernel may not have counted each connection that there is: a flushed ruleset takes its counters along.
    pub fn has_miscounted(&self, now: Instant) -> bool {
        let flushed = *self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
        flushed.is_some_and(|at| now < at + UNREPLIED)
    }

    fn excuse(&self, excuse: Excuse) {
        *self.excused.lock().unwrap_or_else(PoisonError::into_inner) = Some(excuse);
    }
}

/// The breaker, on a thread of its own.
#[derive(Debug)]
pub struct Breaker {
    stop: Sender<()>,
    thread: JoinHandle<Ledger>,
}

impl Breaker {
    /// Begins, if it is among the attackers.
    pub fn start(plan: &Plan, calm: &Arc<Calm>) -> Result<Option<Self>> {
        if !plan.has(Attacker::Break) {
            return Ok(None);
        }
        let gateway = plan.subnet()?.hosts().next().context("an empty network")?;
        let damages = damages(plan);
        let calm = Arc::clone(calm);
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut ledger = Ledger::default();
            for (moment, damage, still) in damages {
                let left = (began + moment).saturating_duration_since(Instant::now());
                if stopped.recv_timeout(left) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
                do_harm(damage, still, gateway, &calm, &mut ledger);
            }
            ledger
        });
        Ok(Some(Self { stop, thread }))
    }

    /// Ends it, and says what it has found.
    pub fn end(self) -> Ledger {
        // Gone already is as good.
        let _ = self.stop.send(());
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// When something is broken, what it is, and whether VMs may not even end meanwhile.
fn damages(plan: &Plan) -> Vec<(Duration, Damage, bool)> {
    let mut dice = Dice::new(plan.seed).split(u64::MAX - 1);
    let gap = (plan.duration / 12).clamp(Duration::from_secs(4), Duration::from_secs(20));
    let spread = u64::try_from(gap.as_millis() / 3).unwrap_or_default();
    let last = plan.duration.saturating_sub(WHOLE);
    let mut left = Vec::new();
    let mut damages = Vec::new();
    let mut moment = FIRST;
    while moment <= last {
        if left.is_empty() {
            left = Damage::ALL.to_vec();
        }
        let index = usize::try_from(dice.below(left.len() as u64)).unwrap_or_default();
        let at = moment + Duration::from_millis(dice.below(spread));
        damages.push((at, left.swap_remove(index), dice.chance(50)));
        moment += gap;
    }
    damages
}

fn do_harm(damage: Damage, still: bool, gateway: Ipv4Addr, calm: &Calm, ledger: &mut Ledger) {
    calm.hold(true, false);
    calm.say(false);
    wait(SETTLING, || calm.quiet.load(Ordering::Relaxed));
    calm.hold(true, still);
    let before = Host::look();
    calm.excuse(Excuse::Broken);
    let broken = Instant::now();
    if damage == Damage::Rules {
        *calm.flushed.lock().unwrap_or_else(PoisonError::into_inner) = Some(broken);
    }
    if let Err(error) = damage.is_done() {
        ledger.check(Invariant::Whole, false, || format!("{damage:?}: {error:#}"));
    } else {
        let mut wrong = None;
        let is_whole = wait(WHOLE, || {
            wrong = before.differs(gateway);
            wrong.is_none()
        });
        ledger.check(Invariant::Whole, is_whole, || {
            format!("{damage:?}: after {WHOLE:?} {}", wrong.unwrap_or_default())
        });
        eprintln!("{damage:?}: whole after {:.1} s: {is_whole}", broken.elapsed().as_secs_f64());
        if !is_whole {
            // Nobody else would let it go on, and the run is to show more than this.
            if let (Damage::Stop, Some(server)) = (damage, census::server()) {
                let _ = kill(server, Signal::SIGCONT);
            }
            calm.hold(false, false);
            wait(LATER, || before.differs(gateway).is_none());
        }
    }
    calm.hold(false, false);
    calm.excuse(Excuse::Until(Instant::now() + AFTERMATH));
}

/// Asks the host again and again, for it has no event for all of this; false if it never said yes.
fn wait(patience: Duration, mut question: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if question() {
            return true;
        }
        if began.elapsed() >= patience {
            return false;
        }
        std::thread::sleep(LOOK);
    }
}

/// What the host has when nothing is broken.
#[derive(Debug)]
struct Host {
    tables: Vec<String>,
    forwarding: String,
}

impl Host {
    fn look() -> Self {
        Self { tables: tables(), forwarding: fs::read_to_string(FORWARDING).unwrap_or_default() }
    }

    /// What is not as it was, if anything is not.
    fn differs(&self, gateway: Ipv4Addr) -> Option<String> {
        let now = Self::look();
        if now.forwarding != self.forwarding {
            return Some("forwarding is off".to_owned());
        }
        let addresses = run("ip", &["-oneline", "-4", "addr", "show", "dev", NETWORK]);
        if !addresses.is_ok_and(|text| text.contains(&format!(" {gateway}/"))) {
            return Some(format!("the bridge has no address {gateway}"));
        }
        if let Some(table) = self.tables.iter().find(|table| !now.tables.contains(table)) {
            return Some(format!("the ruleset lacks {table}"));
        }
        // Each TAP has a master again.
        let links = run("ip", &["-oneline", "link", "show", "type", "tun"]).unwrap_or_default();
        if let Some(link) = links.lines().find(|link| !link.contains(&format!("master {NETWORK} "))) {
            return Some(format!("a TAP is no port of the bridge: {link}"));
        }
        let works = census::server()
            .is_some_and(|server| census::state(server.as_raw()).is_some_and(|state| !"ZTt".contains(state)));
        if !works {
            return Some("there is no server that runs".to_owned());
        }
        match ask(gateway) {
            Ok(true) => None,
            Ok(false) => Some("the server refuses an answer".to_owned()),
            Err(error) => Some(format!("the server does not answer: {error}")),
        }
    }
}

/// The hooks in Softnet's tables.
fn tables() -> Vec<String> {
    let text = run("nft", &["list", "chains"]).unwrap_or_default();
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(|line| line.trim().trim_end_matches(" {")) {
        // What hangs on one interface goes with it.
        if line.starts_with("table") {
            line.clone_into(&mut table);
        } else if line.starts_with("type") && table.contains("softnet")
            && !table.contains("netdev")
            // Of the keeper's own look at the host's filters.
            && !table.contains("softnet-tap-snl")
        {
            found.push(format!("{line} in {table}"));
        }
    }
    found
}

/// Whether the gateway answers a question of a name that no cache knows.
fn ask(gateway: Ipv4Addr) -> io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect((gateway, 53))?;
    let id = socket.local_addr()?.port();
    socket.send(&words::question(id, &format!("whole-{id}.{KNOWN}")))?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    Ok(words::answers(buffer.get(..length).unwrap_or_default(), id) == Some(true))
}
