//! `softnet network`: show the managed network, or remove it.

use std::io::{self, Write};

use rustix::process::getuid;

use crate::cli::{NetworkAction, NetworkCommandArgs};
use crate::config::{NetworkName, network_name};
use crate::host::network::{self, Forwarding};
use crate::usage::UsageError;

/// Runs the command and prints its result to standard output.
///
/// # Errors
/// If the name is invalid, VMs are attached, or removal fails.
pub fn run(args: &NetworkCommandArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match &args.action {
        NetworkAction::Status(args) => {
            let names = match &args.network {
                Some(network) => vec![network_name(network)?],
                None => network::names()?,
            };
            if args.json {
                return print_json(&mut out, &names);
            }
            if names.is_empty() {
                writeln!(out, "there is no managed network; Softnet creates one when a VM first needs it")?;
            }
            for name in &names {
                show(&mut out, name)?;
            }
        }
        NetworkAction::Keep(_) if !getuid().is_root() => {
            return Err(
                UsageError::flag("network keep", "is run by Softnet itself only; do not call it").into()
            );
        }
        NetworkAction::Keep(args) => {
            drop(out);
            let status = network::keeper::keep(&network_name(&args.network)?);
            std::process::exit(status);
        }
        NetworkAction::Down(_) if !getuid().is_root() => {
            // A set-user-ID bit is not enough: all users share the network.
            return Err(UsageError::flag("network down", "requires root; use sudo").into());
        }
        NetworkAction::Down(args) => {
            let name = network_name(&args.network.network)?;
            let down = network::down(&name, args.force)?;
            if !down.existed {
                writeln!(out, "there is no network {name}")?;
                return Ok(());
            }
            writeln!(out, "network {name} was removed")?;
            if down.cut_off > 0 {
                writeln!(out, "{} running VM(s) lost their network", down.cut_off)?;
            }
            match down.forwarding {
                Forwarding::Untouched => {}
                Forwarding::TurnedOff => writeln!(out, "IPv4 forwarding was turned off again")?,
                Forwarding::LeftOnFor(other) => {
                    writeln!(
                        out,
                        "IPv4 forwarding, which Softnet turned on, stays on because {other} may rely on it, and so do the \
                         rules that drop other forwarded packets; run `softnet network down` again once {other} is gone"
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn print_json(out: &mut impl Write, names: &[NetworkName]) -> anyhow::Result<()> {
    let mut networks = Vec::new();
    for name in names {
        networks.extend(network::status(name)?.map(|status| status.to_json()));
    }
    Ok(writeln!(out, "{}", serde_json::Value::from(networks))?)
}

fn show(out: &mut impl Write, name: &NetworkName) -> anyhow::Result<()> {
    match network::status(name)? {
        Some(status) => writeln!(out, "{status}")?,
        None => writeln!(out, "there is no network {name}")?,
    }
    Ok(())
}
