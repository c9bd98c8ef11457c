//! What is made of what happens: figures, and whether that is what was promised.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use lab::Counters;
use lab::wire::Mac;

use crate::breaker::Calm;
use crate::census::{self, Census};
use crate::churn::PATIENCE;
use crate::end::End;
use crate::errand::Step;
use crate::figures::Figures;
use crate::growth::{self, Growth};
use crate::ledger::{Invariant, Ledger};
use crate::plan::{Habit, RESIDENTS};
use crate::slot::{FIRST_PORT, Phase, Slot};
use crate::tracked;
use crate::vm::Event;

/// From one look at the host to the next.
pub const LOOK: Duration = Duration::from_millis(500);
/// From one line about the progress to the next.
const PROGRESS: Duration = Duration::from_secs(10);
/// The age at which a VM's processes are compared with those of others.
const AGE: Duration = Duration::from_secs(1);
/// From one count of the tracked connections to the next.
const COUNT: Duration = Duration::from_secs(2);
/// The connections that one VM may have, as Softnet has it by default (rule H4), and what may be there beside them: those
/// to the server, and those that have just ended.
const SHARE: usize = 16_384 + 160;

/// Sees everything.
#[derive(Debug)]
pub struct Judge {
    subnet: Ipv4Net,
    /// The gateway's hardware address, which the first VM hears of.
    station: Option<Mac>,
    began: Instant,
    looked: Instant,
    told: Instant,
    counted: Instant,
    calm: Arc<Calm>,
    census: Census,
    growth: Growth,
    /// What the run amounts to.
    pub figures: Figures,
    /// What was promised.
    pub ledger: Ledger,
}

impl Judge {
    /// The judge of a run that begins now, in this network.
    pub fn new(subnet: Ipv4Net, calm: Arc<Calm>, now: Instant) -> Self {
        let pool = crate::plan::pool_size(subnet.prefix_len());
        Self {
            subnet,
            station: None,
            began: now,
            looked: now,
            told: now,
            counted: now,
            calm,
            census: Census::default(),
            growth: Growth::default(),
            figures: Figures { pool, ..Figures::default() },
            ledger: Ledger::default(),
        }
    }

    /// The gateway's address.
    pub fn gateway(&self) -> Result<Ipv4Addr> {
        self.subnet.hosts().next().context("an empty network")
    }

    /// When it wants to look at the host.
    pub fn deadline(&self) -> Instant {
        self.looked + LOOK
    }

    /// Takes the sum at the end of the run.
    pub fn conclude(&mut self, has_hogs: bool) {
        self.figures.most_leased = self.census.most;
        self.figures.took = self.began.elapsed();
        self.figures.growth = self.growth.judge(has_hogs, &mut self.ledger);
    }

    /// Notes what a frame came to for the VM in `slot`; `places` are the others.
    pub fn note(&mut self, slot: &mut Slot, places: &[Option<Slot>], event: Event, now: Instant) {
        let mac = slot.vm.life.mac;
        match event {
            Event::Offered(station) => {
                let known = *self.station.get_or_insert(station);
                self.ledger
                    .check(Invariant::Apart, station == known, || format!("{station} offers addresses"));
            }
            Event::Bound(address) => self.note_address(slot, places, address, now),
            Event::Renewed => {
                self.figures.renewed += 1;
                self.ledger.check(Invariant::Kept, true, String::new);
            }
            Event::Refused { renewal } => {
                self.figures.refused += 1;
                let kept = !(renewal && slot.vm.is_honest());
                self.ledger.check(Invariant::Kept, kept, || format!("{mac} may not renew"));
            }
            Event::Done(step, in_time) => self.note_step(step, in_time),
            Event::Denied => {
                // A server that has just been started may refuse for a moment.
                let fine = !slot.vm.is_honest() || self.calm.excuses(now);
                self.ledger.check(Invariant::Names, fine, || format!("the resolver refuses {mac} an answer"));
            }
            Event::Awake(took) => {
                self.figures.awoken += 1;
                self.ledger.check(Invariant::Awake, true, String::new);
                self.figures.longest_awakening = self.figures.longest_awakening.max(took);
            }
            Event::Shadowed { exposed, what } => {
                // As long as no VM exposes it, any flow may be given the port.
                let of_nobody = exposed.is_some_and(|port| !is_exposed(places, port));
                self.ledger.check(Invariant::Shadow, of_nobody, || format!("{mac} got {what}"));
            }
            Event::Exposed => self.ledger.check(Invariant::Shadow, true, String::new),
            Event::Inherited(whose) => self.ledger.check(Invariant::Heir, false, || {
                format!("{mac} with {:?} got what is for {whose}", slot.vm.address())
            }),
            Event::Second(address) => {
                let honest = slot.vm.is_honest();
                self.ledger.check(Invariant::Alone, !honest, || {
                    format!("{mac} has {:?} and could have {address} too", slot.vm.address())
                });
            }
            Event::Overheard(station) => {
                self.ledger.check(Invariant::Apart, false, || format!("{mac} hears {station}"));
            }
        }
    }

    fn note_step(&mut self, step: Step, in_time: bool) {
        match step {
            Step::Name | Step::NameByTcp if in_time => {
                self.ledger.check(Invariant::Names, true, String::new);
            }
            Step::Connect => {
                self.figures.served += 1;
                self.ledger.check(Invariant::Useful, true, String::new);
                if in_time {
                    self.ledger.check(Invariant::Connects, true, String::new);
                }
            }
            Step::Listen => self.ledger.check(Invariant::Heir, true, String::new),
            _ => {}
        }
    }

    /// A step that takes too long. That it does is noted when it does, and no more when it ends.
    fn note_delays(&mut self, slot: &mut Slot, now: Instant) {
        let mac = slot.vm.life.mac;
        if slot.vm.is_left_waiting(now, self.calm.excuses(now)) {
            self.ledger.check(Invariant::Awake, false, || {
                format!("{mac} has slept and gets no answer: {}", tail(&slot.softnet.log()))
            });
        }
        let Some(step) = slot.vm.late(now).filter(|_| slot.vm.is_honest()) else { return };
        let invariant = match step {
            Step::Name | Step::NameByTcp => Invariant::Names,
            Step::Connect | Step::Ask | Step::Listen => Invariant::Connects,
            Step::Resolve | Step::Ping => Invariant::Useful,
        };
        self.ledger.check(invariant, false, || format!("{mac} waits for {step:?}"));
    }

    fn note_address(&mut self, slot: &mut Slot, places: &[Option<Slot>], address: Ipv4Addr, now: Instant) {
        let mac = slot.vm.life.mac;
        if slot.vm.settled == Some(now) {
            self.figures.waits.push(now.saturating_duration_since(slot.vm.started));
            self.ledger.check(Invariant::Served, true, String::new);
            slot.find_worker();
        }
        self.figures.bound += 1;
        self.figures.addresses.insert(address);
        let in_pool = self.subnet.hosts().skip(1).any(|host| host == address);
        self.ledger.check(Invariant::Pool, in_pool, || format!("{mac} has {address}"));
        let others = places.iter().flatten().filter(|other| other.phase == Phase::Living);
        let holder =
            others.filter(|other| other.vm.address() == Some(address)).map(|other| other.vm.life.mac).next();
        self.ledger
            .check(Invariant::Alone, holder.is_none(), || format!("{mac} and {holder:?} have {address}"));
    }

    /// A VM that has waited too long is ended like any other, so that the run goes on.
    pub fn lose_patience(&mut self, slot: &mut Slot, now: Instant) {
        self.note_delays(slot, now);
        if slot.vm.settled.is_some() && !slot.vm.is_honest() {
            return;
        }
        let (address, errand) = slot.vm.waits(now);
        let mac = slot.vm.life.mac;
        if address > PATIENCE {
            let renews = slot.vm.address().is_some();
            let invariant = if renews { Invariant::Useful } else { Invariant::Served };
            self.ledger.check(invariant, false, || {
                let leased = census::leases().len();
                format!("{mac} has no answer; {leased} addresses are leased; {}", tail(&slot.softnet.log()))
            });
        } else if errand > PATIENCE {
            self.ledger.check(Invariant::Useful, false, || format!("{mac} cannot do its errand"));
        } else {
            return;
        }
        slot.vm.fall_silent();
        slot.spoilt = true;
    }

    /// Looks at how it ended and at what it has counted.
    pub fn bury(&mut self, mut slot: Slot, now: Instant) -> Result<()> {
        if let Some(time) = slot.ending_for(now).filter(|_| !slot.spoilt) {
            self.figures.endings.push(time);
        }
        let status = slot.softnet.wait()?;
        let log = slot.softnet.log();
        let settled = slot.vm.settled.is_some();
        let end = slot.vm.life.end;
        if settled && !slot.spoilt && end != End::Early {
            let fine = status.success() == end.is_clean();
            self.ledger.check(Invariant::Ends, fine, || format!("{end}: {status}: {}", tail(&log)));
        }
        self.figures.good += slot.vm.sent.good;
        self.figures.bad += slot.vm.sent.bad;
        if let Some(counters) = log.lines().rev().find_map(Counters::parse) {
            let count = |name| counters.from_vm.get(name).copied().unwrap_or_default();
            let (forwarded, dropped, sent) = (count("forwarded"), count("dropped"), slot.vm.sent);
            let fine = forwarded <= sent.good && dropped >= sent.judged;
            self.ledger.check(Invariant::Counted, fine, || {
                format!("{sent:?}, and Softnet forwarded {forwarded} and dropped {dropped}")
            });
            self.figures.count(&counters);
        } else if settled && end.is_clean() && !slot.spoilt {
            self.ledger.check(Invariant::Counted, false, || format!("{end}: no counters: {}", tail(&log)));
        }
        Ok(())
    }

    /// Looks at the host, and at how the VMs in `places` do on it.
    pub fn look(&mut self, places: &[Option<Slot>], now: Instant) {
        self.looked = now;
        let living = places.iter().flatten().filter(|slot| slot.phase == Phase::Living);
        let settled = living.filter_map(|slot| Some((slot.vm.life.mac, slot.vm.address()?, slot.vm.bound?)));
        let settled: Vec<_> = settled.collect();
        self.census.look(&settled, now, &mut self.ledger);
        for slot in places.iter().flatten().filter(|slot| slot.phase == Phase::Living) {
            let Some(settled) = slot.vm.settled else { continue };
            let age = now.saturating_duration_since(settled);
            // Residents again and again, the others once.
            let kind = match slot.vm.life.habit {
                Habit::Flood => "flooding",
                Habit::Greedy => "greedy",
                _ => "quiet",
            };
            let whose = match slot.number {
                number if number < RESIDENTS && age >= AGE => format!("resident {number}, {kind}"),
                number if number >= RESIDENTS && age >= AGE && age < AGE + LOOK => kind.to_owned(),
                _ => continue,
            };
            if let Some(worker) = &slot.worker {
                self.growth.sample(&format!("worker, {whose}"), worker.pid);
                self.growth.sample(&format!("monitor, {whose}"), slot.monitor.pid);
            }
        }
        if let Some(server) = census::server() {
            self.growth.sample(growth::SERVER, server);
        }
        if now >= self.counted + COUNT {
            self.counted = now;
            self.count_connections(places);
        }
        if now >= self.told + PROGRESS {
            self.told = now;
            let count = |phase: fn(&Slot) -> bool| places.iter().flatten().filter(|slot| phase(slot)).count();
            eprintln!(
                "{:>4.0} s: {} VMs started, {} have an address, {} are ending, {} failures",
                self.began.elapsed().as_secs_f64(),
                self.figures.vms,
                count(|slot| slot.vm.address().is_some()),
                count(|slot| slot.phase != Phase::Living),
                self.ledger.failures()
            );
        }
    }

    fn count_connections(&mut self, places: &[Option<Slot>]) {
        let counts = match tracked::by_source(self.subnet) {
            Ok(counts) => counts,
            Err(error) => {
                return self.ledger.check(Invariant::Share, false, || format!("cannot count: {error:#}"));
            }
        };
        // Once more than it may have, and what came in while no rule was there.
        let share = if self.calm.has_miscounted(Instant::now()) { 3 * SHARE } else { SHARE };
        for (address, count) in counts {
            self.figures.most_connections = self.figures.most_connections.max(count);
            self.ledger.check(Invariant::Share, count <= share, || {
                let holder = places.iter().flatten().find(|slot| slot.vm.address() == Some(address));
                let habit = holder.map(|slot| slot.vm.life.habit);
                format!("{address} has {count} connections; it is of {habit:?}")
            });
        }
    }
}

/// The end of a log, which says why.
pub fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(6)..).unwrap_or_default().join("\n")
}

/// Whether a VM that has an address exposes this port of the host.
fn is_exposed(places: &[Option<Slot>], port: u16) -> bool {
    let place = usize::from(port).checked_sub(FIRST_PORT);
    let slot = place.and_then(|place| places.get(place)).and_then(Option::as_ref);
    slot.is_some_and(|slot| {
        slot.vm.life.exposed && slot.phase == Phase::Living && slot.vm.address().is_some()
    })
}
