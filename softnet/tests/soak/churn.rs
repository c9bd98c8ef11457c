//! Keeps the places full: starts VMs, carries their frames, ends them, and looks at what must hold meanwhile.
//!
//! One thread waits for all sockets and processes at once.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use lab::Counters;
use lab::wire::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::census::{self, Census};
use crate::dice::Dice;
use crate::figures::Figures;
use crate::growth::Growth;
use crate::ledger::{Invariant, Ledger};
use crate::plan::{Habit, Life, Plan, RESIDENTS};
use crate::slot::{Phase, Slot};
use crate::vm::{Event, Vm};

/// A VM without an address, an answer or an end for so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// From one look at the host to the next.
const LOOK: Duration = Duration::from_millis(500);
/// From one line about the progress to the next.
const PROGRESS: Duration = Duration::from_secs(10);
/// The age at which a VM's processes are compared with those of others.
const AGE: Duration = Duration::from_secs(1);
/// Frames that one VM may get in a turn, so that none starves the others.
const BUDGET: usize = 64;
/// So many of a hundred VMs are started again when they have just been told to end.
const RESTARTS: u64 = 15;
/// So many failures say enough.
const ENOUGH: u64 = 200;

/// The run.
#[derive(Debug)]
pub struct Churn<'a> {
    plan: &'a Plan,
    subnet: Ipv4Net,
    gateway: Ipv4Addr,
    /// The gateway's hardware address, which the first VM hears of.
    station: Option<Mac>,
    dice: Dice,
    began: Instant,
    /// As many as there are VMs at a time, and spare ones for those that are restarted before they have ended.
    places: Vec<Option<Slot>>,
    looked: Instant,
    told: Instant,
    census: Census,
    growth: Growth,
    pub figures: Figures,
    pub ledger: Ledger,
}

impl<'a> Churn<'a> {
    /// A run with all places empty.
    pub fn new(plan: &'a Plan) -> Result<Self> {
        let subnet = plan.subnet()?;
        let now = Instant::now();
        let pool = crate::plan::pool_size(subnet.prefix_len());
        Ok(Self {
            plan,
            subnet,
            gateway: subnet.hosts().next().context("an empty network")?,
            station: None,
            dice: Dice::new(plan.seed).split(u64::MAX),
            began: now,
            places: std::iter::repeat_with(|| None).take(plan.vms + plan.spare()).collect(),
            looked: now,
            told: now,
            census: Census::default(),
            growth: Growth::default(),
            figures: Figures { pool, ..Figures::default() },
            ledger: Ledger::default(),
        })
    }

    /// Does it all, to the end of the last VM.
    pub fn run(&mut self) -> Result<()> {
        loop {
            let now = Instant::now();
            let open = now < self.began + self.plan.duration && self.ledger.failures() < ENOUGH;
            if open {
                self.fill(now)?;
            } else if self.places.iter().all(Option::is_none) {
                break;
            }
            self.wait(now)?;
            let now = Instant::now();
            for place in 0..self.places.len() {
                self.attend(place, open, now)?;
            }
            if now >= self.looked + LOOK {
                self.look(now);
            }
        }
        self.sweep()?;
        self.figures.most_leased = self.census.most;
        self.figures.took = self.began.elapsed();
        self.figures.growth = self.growth.judge(&mut self.ledger);
        Ok(())
    }

    /// One last VM, whose start gives back what those left who were killed, and whose end leaves nothing.
    fn sweep(&mut self) -> Result<()> {
        let life = Life {
            habit: Habit::Quiet,
            stay: Some(Duration::ZERO),
            end: crate::end::End::Sigterm,
            ..self.plan.life(self.figures.vms)
        };
        self.join(0, life, Instant::now())?;
        while self.places.iter().any(Option::is_some) {
            self.wait(Instant::now())?;
            self.attend(0, true, Instant::now())?;
        }
        Ok(())
    }

    fn fill(&mut self, now: Instant) -> Result<()> {
        for place in 0..self.plan.vms {
            if self.places.get(place).is_some_and(Option::is_none) {
                self.join(place, self.plan.life(self.figures.vms), now)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, place: usize, life: Life, now: Instant) -> Result<()> {
        let number = self.figures.vms;
        let slot = Slot::start(self.plan, number, place, Vm::new(life, self.gateway, now))?;
        self.figures.vms += 1;
        if let Some(empty) = self.places.get_mut(place) {
            *empty = Some(slot);
        }
        Ok(())
    }

    /// Starts the VM `mac` again in a spare place, as somebody does who does not wait for its end.
    fn restart(&mut self, mac: Mac, now: Instant) -> Result<()> {
        let spare =
            (self.plan.vms..self.places.len()).find(|&place| matches!(self.places.get(place), Some(None)));
        let Some(spare) = spare else { return Ok(()) };
        self.figures.restarted += 1;
        // The port of the host is its predecessor's still.
        self.join(spare, Life { mac, exposed: false, ..self.plan.life(self.figures.vms) }, now)
    }

    /// Waits until somebody has something to do.
    fn wait(&mut self, now: Instant) -> Result<()> {
        let mut next = self.looked + LOOK;
        let mut waiting = Vec::new();
        for slot in self.places.iter_mut().flatten() {
            next = next.min(slot.vm.deadline().filter(|_| slot.phase == Phase::Living).unwrap_or(next));
            if let Some(port) =
                slot.port.as_ref().filter(|_| slot.phase == Phase::Living && !slot.monitor.gone)
            {
                let blocked = !slot.vm.outbox.is_empty();
                let events = if blocked { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                waiting.push(PollFd::from_borrowed_fd(port.as_fd(), events));
            }
            let processes =
                std::iter::once(&slot.monitor).chain(&slot.worker).filter(|process| !process.gone);
            waiting.extend(processes.map(|process| PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)));
        }
        let left = next.saturating_duration_since(now);
        // Up to the next millisecond, so that a deadline has passed when it is looked at.
        let left = Timespec::try_from(left + Duration::from_micros(500))?;
        match poll(&mut waiting, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("wait for the VMs"),
        }
    }

    fn attend(&mut self, place: usize, open: bool, now: Instant) -> Result<()> {
        let victim = self.victim(place);
        let Some(mut slot) = self.places.get_mut(place).and_then(Option::take) else { return Ok(()) };
        for process in slot.processes() {
            process.gone = process.gone || is_over(process);
        }
        if slot.phase == Phase::Living {
            self.hear(&mut slot, now)?;
            // One that is to end with its question unasked does not get to ask it.
            if !wants_to_end(&slot, open, now) {
                slot.vm.act(now, victim);
                slot.flush();
            }
            self.judge_patience(&mut slot, now);
            if slot.monitor.gone {
                self.ledger.check(Invariant::Ends, false, || {
                    format!("a Softnet ended by itself: {}", tail(&slot.softnet.log()))
                });
                slot.spoilt = true;
                slot.phase = Phase::Ending(now);
            } else if wants_to_end(&slot, open, now) {
                *self.figures.ends.entry(slot.vm.life.end).or_default() += 1;
                slot.end(self.dice.next(), now)?;
                if open && slot.vm.settled.is_some() && self.dice.chance(RESTARTS) {
                    self.restart(slot.vm.life.mac, now)?;
                }
            }
        }
        if slot.is_over() {
            return self.bury(slot, now);
        }
        if !slot.killed && slot.ending_for(now).is_some_and(|time| time > PATIENCE) {
            self.ledger.check(Invariant::Ends, false, || {
                format!(
                    "no end of {} {:?}: {}",
                    slot.vm.life.mac,
                    slot.vm.life.end,
                    tail(&slot.softnet.log())
                )
            });
            slot.give_up();
        }
        if let Some(empty) = self.places.get_mut(place) {
            *empty = Some(slot);
        }
        Ok(())
    }

    /// Somebody else with an address, else somebody who is not there.
    fn victim(&mut self, place: usize) -> (Mac, Ipv4Addr) {
        let count = self.places.len() as u64;
        let other = usize::try_from(self.dice.below(count)).unwrap_or_default();
        let other = self.places.get(other).and_then(Option::as_ref).filter(|_| other != place);
        let held = other.and_then(|slot| Some((slot.vm.life.mac, slot.vm.address()?)));
        let nobody = Ipv4Addr::from(self.subnet.broadcast().to_bits().saturating_sub(1));
        held.unwrap_or((Mac([2, 0, 0, 0, 0, 1]), nobody))
    }

    fn hear(&mut self, slot: &mut Slot, now: Instant) -> Result<()> {
        let mut buffer = [0; 2048];
        for _ in 0..BUDGET {
            let Some(port) = &slot.port else { break };
            let Some(length) = port.try_recv(&mut buffer)? else { break };
            let event = slot.vm.hear(buffer.get(..length).unwrap_or_default(), now);
            if let Some(event) = event {
                self.note(slot, event, now);
            }
        }
        Ok(())
    }

    fn note(&mut self, slot: &mut Slot, event: Event, now: Instant) {
        let mac = slot.vm.life.mac;
        match event {
            Event::Offered(station) => {
                let known = *self.station.get_or_insert(station);
                self.ledger
                    .check(Invariant::Apart, station == known, || format!("{station} offers addresses"));
            }
            Event::Bound(address) => self.note_address(slot, address, now),
            Event::Renewed => self.figures.renewed += 1,
            Event::Refused => self.figures.refused += 1,
            Event::Served => {
                self.figures.served += 1;
                self.ledger.check(Invariant::Useful, true, String::new);
            }
            Event::Second(address) => self.ledger.check(Invariant::Alone, false, || {
                format!("{mac} has {:?} and could have {address} too", slot.vm.address())
            }),
            Event::Overheard(station) => {
                self.ledger.check(Invariant::Apart, false, || format!("{mac} hears {station}"));
            }
        }
    }

    fn note_address(&mut self, slot: &mut Slot, address: Ipv4Addr, now: Instant) {
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
        let others = self.places.iter().flatten().filter(|other| other.phase == Phase::Living);
        let holder =
            others.filter(|other| other.vm.address() == Some(address)).map(|other| other.vm.life.mac).next();
        self.ledger
            .check(Invariant::Alone, holder.is_none(), || format!("{mac} and {holder:?} have {address}"));
    }

    /// A VM that has waited too long is ended like any other, so that the run goes on.
    fn judge_patience(&mut self, slot: &mut Slot, now: Instant) {
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
    fn bury(&mut self, mut slot: Slot, now: Instant) -> Result<()> {
        if let Some(time) = slot.ending_for(now).filter(|_| !slot.spoilt) {
            self.figures.endings.push(time);
        }
        let status = slot.softnet.wait()?;
        let log = slot.softnet.log();
        let settled = slot.vm.settled.is_some();
        let end = slot.vm.life.end;
        if settled && !slot.spoilt {
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

    fn look(&mut self, now: Instant) {
        self.looked = now;
        let living = self.places.iter().flatten().filter(|slot| slot.phase == Phase::Living);
        let settled = living.filter_map(|slot| Some((slot.vm.life.mac, slot.vm.address()?, slot.vm.bound?)));
        let settled: Vec<_> = settled.collect();
        self.census.look(&settled, now, &mut self.ledger);
        for slot in self.places.iter().flatten().filter(|slot| slot.phase == Phase::Living) {
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
            self.growth.sample("dnsmasq", server);
        }
        if now >= self.told + PROGRESS {
            self.told = now;
            let count =
                |phase: fn(&Slot) -> bool| self.places.iter().flatten().filter(|slot| phase(slot)).count();
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
}

/// Whether the VM's time has come. When no more join, all others leave.
fn wants_to_end(slot: &Slot, open: bool, now: Instant) -> bool {
    if slot.spoilt {
        return true;
    }
    let early = slot.vm.life.end == crate::end::End::Early;
    match slot.vm.settled {
        None => early && slot.vm.is_early(now),
        Some(settled) => early || !open || slot.vm.life.stay.is_some_and(|stay| now >= settled + stay),
    }
}

fn is_over(process: &crate::slot::Process) -> bool {
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut one = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    poll(&mut one, Some(&none)).is_ok_and(|ready| ready > 0)
}

/// The end of a log, which says why.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(6)..).unwrap_or_default().join("\n")
}
