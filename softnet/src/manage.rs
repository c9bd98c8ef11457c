//! `softnet network`: look at the managed network, and take it away.

use std::io::{self, Write};

use rustix::process::getuid;

use crate::cli::{NetworkAction, NetworkCommandArgs};
use crate::config::{NetworkName, network_name};
use crate::host::network::{self, Forwarding};
use crate::usage::UsageError;

/// Carries out the command. What was asked for goes to standard output.
///
/// # Errors
/// If the name is invalid, VMs are attached, or something cannot be removed.
pub fn run(args: &NetworkCommandArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match &args.action {
        NetworkAction::Status(args) => match &args.network {
            Some(network) => show(&mut out, &network_name(network)?)?,
            None => {
                let names = network::names()?;
                if names.is_empty() {
                    writeln!(out, "there is no network; the first Softnet that needs one makes it")?;
                }
                for name in &names {
                    show(&mut out, name)?;
                }
            }
        },
        NetworkAction::Keep(_) if !getuid().is_root() => {
            return Err(UsageError::flag("network keep", "is for Softnet itself only").into());
        }
        NetworkAction::Keep(args) => {
            drop(out);
            let status = network::keeper::keep(&network_name(&args.network)?);
            std::process::exit(status);
        }
        NetworkAction::Down(_) if !getuid().is_root() => {
            // Whatever the program's file adds: the network is everybody's.
            return Err(UsageError::flag("network down", "is for root only; use sudo").into());
        }
        NetworkAction::Down(args) => {
            let name = network_name(&args.network.network)?;
            let down = network::down(&name, args.force)?;
            if !down.existed {
                writeln!(out, "there is no network {name}")?;
                return Ok(());
            }
            writeln!(out, "network {name} is gone")?;
            if down.cut_off > 0 {
                writeln!(out, "{} running VM(s) have no network now", down.cut_off)?;
            }
            match down.forwarding {
                Forwarding::Untouched => {}
                Forwarding::TurnedOff => writeln!(out, "IPv4 forwarding is off again")?,
                Forwarding::LeftOnFor(other) => {
                    writeln!(
                        out,
                        "IPv4 forwarding, which Softnet turned on, stays on for {other}, and so do the rules that keep the host from \
                         forwarding for others; `softnet network down` ends both once {other} is gone"
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn show(out: &mut impl Write, name: &NetworkName) -> anyhow::Result<()> {
    match network::status(name)? {
        Some(status) => writeln!(out, "{status}")?,
        None => writeln!(out, "there is no network {name}")?,
    }
    Ok(())
}
