//! What is left when the last VM has ended: the network, and nothing else.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use lab::deadline::until;
use lab::stage::run;

use crate::NETWORK;
use crate::census::{self, file};
use crate::figures::Figures;
use crate::ledger::{Invariant, Ledger};
use crate::plan::{Life, Plan};
use crate::slot::FIRST_PORT;

/// Looks for whatever a VM of the run may have left, and takes the network down. `known` are the processes that were
/// there before.
pub fn inspect(plan: &Plan, figures: &Figures, known: &[i32], ledger: &mut Ledger) -> Result<()> {
    nothing(ledger, Invariant::Traces, "leases", || {
        let whose = |(mac, address): &(String, _)| format!("{address} of {}\n", who(plan, figures, mac));
        census::leases().iter().map(whose).collect()
    });
    for (what, directory) in [("files of VMs", "ports"), ("files of addresses", "leases")] {
        nothing(ledger, Invariant::Traces, what, || {
            run("find", &[&file(directory), "-type", "f"]).unwrap_or_else(|error| error.to_string())
        });
    }
    nothing(ledger, Invariant::Traces, "TAPs and ports of the bridge", || {
        let links = run("ip", &["-oneline", "link"]).unwrap_or_else(|error| error.to_string());
        let is_trace = |line: &&str| line.contains("snt") || line.contains(&format!("master {NETWORK}"));
        links.lines().filter(is_trace).collect()
    });
    nothing(ledger, Invariant::Traces, "forwards", || {
        table().lines().filter(|line| line.contains("elements")).collect()
    });
    let server = census::server().map(|pid| pid.as_raw());
    nothing(ledger, Invariant::Traces, "processes", || others(known, server));
    let taken = (FIRST_PORT..FIRST_PORT + plan.vms)
        .filter(|port| u16::try_from(*port).is_ok_and(|port| UdpSocket::bind(("0.0.0.0", port)).is_err()));
    let taken: Vec<usize> = taken.collect();
    ledger.check(Invariant::Traces, taken.is_empty(), || format!("ports that are still reserved: {taken:?}"));
    go_down(known, ledger)
}

/// Which VM had this hardware address last, and what became of it.
fn who(plan: &Plan, figures: &Figures, mac: &str) -> String {
    let restarted =
        figures.restarted.iter().map(|(mac, number)| (*number, Life { mac: *mac, ..plan.life(*number) }));
    let started = (0..figures.vms).map(|number| (number, plan.life(number)));
    let found = restarted.chain(started).find(|(_, life)| life.mac.to_string() == mac);
    found.map_or_else(|| mac.to_owned(), |(number, life)| format!("VM {number}, {life}"))
}

fn go_down(known: &[i32], ledger: &mut Ledger) -> Result<()> {
    let down = Command::new(env!("CARGO_BIN_EXE_softnet")).args(["network", "down"]).output();
    let down = down.context("start softnet network down")?;
    ledger.check(Invariant::Down, down.status.success(), || format!("{down:?}"));
    nothing(ledger, Invariant::Down, "bridge", || {
        run("ip", &["-oneline", "link", "show", NETWORK]).unwrap_or_default()
    });
    nothing(ledger, Invariant::Down, "table", table);
    nothing(ledger, Invariant::Down, "processes", || others(known, None));
    let directory = file("");
    ledger.check(Invariant::Down, !Path::new(&directory).exists(), || format!("{directory} is still there"));
    Ok(())
}

/// The network's table as nft shows it, nothing if there is none.
fn table() -> String {
    run("nft", &["list", "table", "ip", &format!("softnet-{NETWORK}")]).unwrap_or_default()
}

/// Processes that nobody knows. While there is a server, it has a keeper and that one a warden.
fn others(known: &[i32], server: Option<i32>) -> String {
    let keeps =
        |pid: i32| server.is_some() && matches!(&*census::name(pid), "softnet-keeper" | "softnet-warden");
    let unknown = |pid: &i32| !known.contains(pid) && server != Some(*pid) && !keeps(*pid);
    census::processes()
        .into_iter()
        .filter(unknown)
        .map(|pid| format!("{pid} {}\n", census::name(pid)))
        .collect()
}

/// Waits until `found` finds nothing more.
fn nothing(ledger: &mut Ledger, invariant: Invariant, what: &str, found: impl Fn() -> String) {
    let mut left = String::new();
    let gone = until(|| {
        left = found();
        left.is_empty()
    });
    ledger.check(invariant, gone, || format!("{what}: {left}"));
}
