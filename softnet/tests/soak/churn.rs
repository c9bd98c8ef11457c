//! Keeps the places full: starts VMs, carries their frames, and ends them.
//!
//! One thread waits for all sockets and processes at once.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::wire::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::attacker::Attacker;
use crate::breaker::Calm;
use crate::dice::Dice;
use crate::end::End;
use crate::flood::NOBODY;
use crate::judge::{Judge, tail};
use crate::ledger::Invariant;
use crate::plan::{Habit, Life, Plan};
use crate::slot::{Phase, Process, Slot};
use crate::vm::Vm;

/// A VM without an address, an answer or an end for so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);
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
    dice: Dice,
    began: Instant,
    /// As many as there are VMs at a time, and spare ones for those that are restarted before they have ended.
    places: Vec<Option<Slot>>,
    calm: Arc<Calm>,
    /// Whoever sees it all.
    pub judge: Judge,
}

impl<'a> Churn<'a> {
    /// A run with all places empty.
    pub fn new(plan: &'a Plan, calm: &Arc<Calm>) -> Result<Self> {
        let began = Instant::now();
        Ok(Self {
            plan,
            dice: Dice::new(plan.seed).split(u64::MAX),
            began,
            places: std::iter::repeat_with(|| None).take(plan.vms + plan.spare()).collect(),
            calm: Arc::clone(calm),
            judge: Judge::new(plan.subnet()?, Arc::clone(calm), began),
        })
    }

    /// Does it all, to the end of the last VM.
    pub fn run(&mut self) -> Result<()> {
        loop {
            let now = Instant::now();
            let open = now < self.began + self.plan.duration && self.judge.ledger.failures() < ENOUGH;
            if open {
                if self.calm.may_start() {
                    self.fill(now)?;
                }
            } else if self.places.iter().all(Option::is_none) {
                break;
            }
            let is_settled = |slot: &Slot| slot.phase == Phase::Living && slot.vm.settled.is_some();
            self.calm.say(self.places.iter().flatten().all(is_settled));
            self.wait(now)?;
            let now = Instant::now();
            for place in 0..self.places.len() {
                self.attend(place, open, now)?;
            }
            if now >= self.judge.deadline() {
                self.judge.look(&self.places, now);
            }
        }
        self.sweep()?;
        self.judge.conclude(self.plan.has(Attacker::Hog));
        Ok(())
    }

    /// One last VM, whose start gives back what those left who were killed, and whose end leaves nothing.
    fn sweep(&mut self) -> Result<()> {
        let life = Life {
            habit: Habit::Quiet,
            stay: Some(Duration::ZERO),
            end: End::Sigterm,
            ..self.plan.life(self.judge.figures.vms)
        };
        self.join(0, life, Instant::now())?;
        while self.places.iter().any(Option::is_some) {
            self.wait(Instant::now())?;
            self.attend(0, false, Instant::now())?;
        }
        Ok(())
    }

    fn fill(&mut self, now: Instant) -> Result<()> {
        for place in 0..self.plan.vms {
            if self.places.get(place).is_some_and(Option::is_none) {
                self.join(place, self.plan.life(self.judge.figures.vms), now)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, place: usize, life: Life, now: Instant) -> Result<()> {
        let number = self.judge.figures.vms;
        let vm = Vm::new(life, self.plan, self.judge.gateway()?, now)?;
        let slot = Slot::start(self.plan, number, place, vm)?;
        self.judge.figures.vms += 1;
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
        self.judge.figures.restarted.insert(mac, self.judge.figures.vms);
        // The port of the host is its predecessor's still.
        self.join(spare, Life { mac, exposed: false, ..self.plan.life(self.judge.figures.vms) }, now)
    }

    /// Waits until somebody has something to do.
    fn wait(&mut self, now: Instant) -> Result<()> {
        let mut next = self.judge.deadline();
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
            let leaves = wants_to_end(&slot, open, now) && (self.calm.may_end() || !open || slot.spoilt);
            if !leaves {
                slot.vm.act(now, victim);
                slot.flush();
            }
            self.judge.lose_patience(&mut slot, now);
            if slot.monitor.gone {
                // Whoever claims what is another's by the server's file may lose its own.
                let deserved = slot.vm.life.habit == Habit::Attack(Attacker::Desync);
                self.judge.ledger.check(Invariant::Ends, deserved, || {
                    format!("a Softnet ended by itself: {}", tail(&slot.softnet.log()))
                });
                slot.spoilt = true;
                slot.phase = Phase::Ending(now);
            } else if leaves || slot.spoilt {
                *self.judge.figures.ends.entry(slot.vm.life.end).or_default() += 1;
                slot.end(now)?;
                if open && slot.vm.settled.is_some() && self.calm.may_start() && self.dice.chance(RESTARTS) {
                    self.restart(slot.vm.life.mac, now)?;
                }
            }
        }
        if slot.is_over() {
            return self.judge.bury(slot, now);
        }
        if !slot.killed && slot.ending_for(now).is_some_and(|time| time > PATIENCE) {
            let (remains, life) = (slot.remains(), &slot.vm.life);
            self.judge.ledger.check(Invariant::Ends, false, || {
                format!("{life} does not end\n{remains}{}", tail(&slot.softnet.log()))
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
        held.unwrap_or(NOBODY)
    }

    fn hear(&mut self, slot: &mut Slot, now: Instant) -> Result<()> {
        let mut buffer = [0; 2048];
        for _ in 0..BUDGET {
            let Some(port) = &slot.port else { break };
            let Some(length) = port.try_recv(&mut buffer)? else { break };
            let event = slot.vm.hear(buffer.get(..length).unwrap_or_default(), now);
            if let Some(event) = event {
                self.judge.note(slot, &self.places, event, now);
            }
        }
        Ok(())
    }
}

/// Whether the VM's time has come. When no more join, all others leave.
fn wants_to_end(slot: &Slot, open: bool, now: Instant) -> bool {
    if slot.spoilt {
        return true;
    }
    let early = slot.vm.life.end == End::Early;
    match slot.vm.settled {
        None => early && slot.vm.is_early(now),
        Some(settled) => early || !open || slot.vm.life.stay.is_some_and(|stay| now >= settled + stay),
    }
}

fn is_over(process: &Process) -> bool {
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut one = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    poll(&mut one, Some(&none)).is_ok_and(|ready| ready > 0)
}
