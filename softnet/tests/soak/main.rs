//! An hour of a busy host in minutes: many VMs join and leave a small network, in every way in which one can leave, while
//! some of them flood it, and at each moment what Softnet promises is held against what can be seen.
//!
//! Everything is real but the guests, which [`vm`] plays on their sockets: Softnet, the managed network with its bridge,
//! its table and its dnsmasq, and a small world around it. The network has fewer addresses than there are VMs in a run, and
//! no lease ends by itself before the run does, so it lasts only if each lease is given back, whatever its VM died of.
//!
//! Some of those who take part work against the others, as [`attacker`] lists them: guests who trick the server, fill the
//! kernel's tables, keep the resolver busy, or speak from ports of the host; servers that go on talking to those who have left;
//! and somebody with root who breaks the network, one piece at a time. Honest guests must not notice.
//!
//! `cargo test` runs a short form; `cargo xtask soak` runs as long as it is told, by [`plan`], and prints the figures.
//! What all choices follow from is a seed; when they happen is the machine's business, so no two runs are the same.
#![cfg(target_os = "linux")]
#![expect(clippy::print_stdout, reason = "the figures of a run are for whoever asked for it")]

mod aftermath;
mod attack;
mod attacker;
mod breaker;
mod census;
mod churn;
mod client;
mod dice;
mod end;
mod errand;
mod figures;
mod flood;
mod growth;
mod judge;
mod ledger;
mod plan;
mod slot;
mod town;
mod tracked;
mod vm;
mod watch;
mod words;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use lab::harness::{self, Test};
use lab::net::{LAN, METADATA, World};
use lab::stage::{self, Stage};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use breaker::{Breaker, Calm};
use churn::Churn;
use judge::Judge;
use ledger::{Invariant, Ledger};
use plan::Plan;
use town::Town;
use watch::Watch;

/// The network of a Softnet that is not told another.
const NETWORK: &str = "softnet0";

fn main() -> ExitCode {
    let asked = match Plan::from_environment() {
        Ok(None) => {
            let test = Test::new("soak::vms_come_and_go_and_nothing_is_lost", short).as_root();
            return harness::main(vec![test]);
        }
        Ok(Some(plan)) => long(&plan),
        Err(error) => Err(error),
    };
    match asked {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The run that `cargo xtask soak` asks for, in namespaces like those of a test, but with no limit to its time.
fn long(plan: &Plan) -> Result<ExitCode> {
    if stage::enter() == Stage::Outside {
        let status =
            stage::command::<&str>([])?.status().context("start the run in namespaces of its own")?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    println!(
        "{} VMs at a time in {} for {} s, seed {}",
        plan.vms,
        plan.subnet()?,
        plan.duration.as_secs(),
        plan.seed
    );
    Ok(if perform(plan)?.failures() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn short() -> Result<()> {
    let plan = Plan::short();
    let ledger = perform(&plan)?;
    ensure!(ledger.failures() == 0, "not everything held");
    // A run that looks at nothing proves nothing.
    let idle: Vec<Invariant> = plan.looks_at().filter(|it| ledger.is_idle(*it)).collect();
    ensure!(idle.is_empty(), "never looked at: {idle:?}");
    Ok(())
}

/// Lets programs that are started from here be ended by every signal, whatever the one that started this had ignored:
/// what is ignored stays so across exec(2), and what is handled does not.
fn heed_signals() -> Result<()> {
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::new(AtomicBool::new(true)))?;
    }
    Ok(())
}

/// Does the whole run and prints what came of it.
fn perform(plan: &Plan) -> Result<Ledger> {
    heed_signals()?;
    let world = World::build()?;
    let town = Town::build(&world)?;
    let calm = Arc::new(Calm::default());
    let watch = Watch::start(&calm)?;
    let known = census::processes();
    let mut churn = Churn::new(plan, &calm)?;
    let breaker = Breaker::start(plan, &calm)?;
    let outcome = churn.run();
    let Judge { figures, mut ledger, .. } = churn.judge;
    if let Some(breaker) = breaker {
        ledger.add(breaker.end());
    }
    town.conclude(&mut ledger);
    aftermath::inspect(plan, &figures, &known, &mut ledger)?;
    ledger.add(watch.end()?);
    let closed = world.services.iter().filter(|service| [LAN, METADATA].contains(service.at.ip()));
    for service in closed {
        let seen = service.seen();
        ledger.check(Invariant::World, seen.is_empty(), || format!("{} was reached by {seen:?}", service.at));
    }
    println!("\n{figures}\n{ledger}");
    outcome?;
    Ok(ledger)
}
