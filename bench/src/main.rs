//! The benchmark: the cost of Softnet with its filter on, and that of other programs.
//!
//! `cargo xtask bench` starts it in a release build.
#![expect(clippy::print_stdout, reason = "a report for people")]

mod decision;
mod floor;
mod peers;
mod plot;
mod pump;
mod report;
mod startup;
mod traffic;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lab::stage::{self, Stage};

use peers::{Kind, Running, Site};
use report::{Figures, Report};
use traffic::{Direction, Servers};

#[derive(Debug, Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// One short repetition, to check that everything works; its figures are not comparable
    #[arg(long)]
    quick: bool,
    /// Compare only these peers
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Measure only these: tcp1-up, tcp4-up, udp-up, tcp1-down, tcp4-down, udp-down, rtt, start, idle or
    /// filter
    #[arg(long, value_name = "NAME")]
    measure: Vec<String>,
    /// The folder for the report's files
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    output: PathBuf,
}

impl Args {
    fn wants(&self, name: &str) -> bool {
        self.measure.is_empty() || self.measure.iter().any(|wanted| wanted == name)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count the instructions per decision of the filter with callgrind
    Filter,
    /// Draw the plot of an earlier run
    Plot {
        /// Its bench.json
        json: PathBuf,
        /// The file to draw
        svg: PathBuf,
    },
    #[command(hide = true)]
    Pump { peer: pump::Peer },
    #[command(hide = true)]
    Receive,
    #[command(hide = true)]
    Decide { case: decision::Case, plain: usize, with_ports: usize, times: u64 },
}

fn main() -> ExitCode {
    let stage = stage::enter();
    match perform(Args::parse(), stage) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(args: Args, stage: Stage) -> Result<ExitCode> {
    match args.command {
        Some(Command::Pump { peer }) => pump::run(peer).map(|()| ExitCode::SUCCESS),
        Some(Command::Receive) => floor::receive().map(|()| ExitCode::SUCCESS),
        Some(Command::Decide { case, plain, with_ports, times }) => {
            decision::decide(case, plain, with_ports, times).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Filter) => {
            let counts = decision::count()?;
            print!("{}", decision::table(&counts));
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Plot { json, svg }) => {
            let json = serde_json::from_str(&std::fs::read_to_string(json)?)?;
            plot::draw(&Report::from_json(&json)?, &svg)?;
            Ok(ExitCode::SUCCESS)
        }
        None if stage == Stage::Outside => {
            let status = stage::command(std::env::args_os().skip(1))?.status()?;
            Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
        }
        None => inside(&args),
    }
}

/// The whole benchmark, in its own namespaces.
fn inside(args: &Args) -> Result<ExitCode> {
    let (repetitions, duration) =
        if args.quick { (1, Duration::from_millis(500)) } else { (3, Duration::from_millis(1500)) };
    let site = Site::build()?;
    let servers = Servers::start()?;
    let traffic = ["tcp", "udp", "rtt"];
    let any_traffic = args.measure.is_empty()
        || args.measure.iter().any(|name| traffic.iter().any(|of| name.starts_with(of)));
    let repetitions = if any_traffic { repetitions } else { 0 };
    let wanted = |kind: &Kind| args.only.is_empty() || args.only.iter().any(|name| name == kind.name());
    let mut report = Report::default();
    for repetition in 1..=repetitions {
        for kind in Kind::ALL.into_iter().filter(wanted) {
            eprintln!("{repetition}/{repetitions} {}", kind.name());
            match measure(kind, &site, &servers, duration, args) {
                Ok(figures) => report.add(kind, repetition, figures),
                // The others can still be compared.
                Err(error) => eprintln!("  {error:#}"),
            }
        }
    }
    if args.wants("start") {
        startup::measure(&site, if args.quick { 3 } else { 21 }, &mut report)?;
    }
    if args.wants("idle") {
        startup::measure_idle(&site, if args.quick { 10 } else { 100 }, &mut report)?;
    }
    if args.wants("filter") {
        report.decisions =
            decision::count().inspect_err(|error| eprintln!("decisions: {error:#}")).unwrap_or_default();
    }
    std::fs::create_dir_all(&args.output).context("make the folder for the report")?;
    std::fs::write(args.output.join("bench.json"), serde_json::to_string_pretty(&report.json())? + "\n")?;
    plot::draw(&report, &args.output.join("bench.svg"))?;
    print!("{}", report.table());
    println!("\n{}", args.output.join("bench.json").display());
    println!("{}", args.output.join("bench.svg").display());
    Ok(ExitCode::SUCCESS)
}

/// Runs all traffic through one peer once.
fn measure(kind: Kind, site: &Site, servers: &Servers, duration: Duration, args: &Args) -> Result<Figures> {
    let running = Running::start(kind, site)?;
    let (guest, server, peer) = (&running.guest, running.server, running.process.as_ref());
    let mut figures = Figures::default();
    let idle = peer.map(usage::Process::memory).transpose()?;
    for (way, direction) in [("up", Direction::Up), ("down", Direction::Down)] {
        for count in [1, 4] {
            let name = format!("tcp{count}-{way}");
            if args.wants(&name) {
                figures.flow(&name, servers.streams(guest, server, (direction, count), duration, peer)?);
            }
        }
        let name = format!("udp-{way}");
        if args.wants(&name) {
            figures.flow(&name, servers.datagrams(guest, server, direction, duration, peer)?);
        }
    }
    if kind == Kind::Softnet && (args.wants("tcp1-up") || args.wants("tcp4-up")) {
        figures.set("receive-cpu", floor::datagrams(duration)?);
    }
    if args.wants("rtt") {
        figures.round_trips(&servers.round_trips(guest, server, duration)?);
    }
    if let Some((idle, peer)) = idle.zip(peer) {
        figures.set("memory-idle", idle.0 as f64);
        figures.set("memory", peer.memory()?.1 as f64);
    }
    Ok(figures)
}
