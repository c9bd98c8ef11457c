//! `softnet network`: look at the managed network, and take it away.

use std::io::{self, Write};

use rustix::process::getuid;

use crate::cli::{NetworkAction, NetworkCommandArgs};
use crate::config::{ConfigError, network_name};
use crate::host::network::{self, Forwarding, NetworkName};

/// Carries out the command. What was asked for goes to standard output.
///
/// # Errors
/// When the name is none, VMs are attached, or something cannot be removed.
pub fn run(args: &NetworkCommandArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match &args.action {
        NetworkAction::Status(args) => match &args.network {
            Some(network) => show(&mut out, &name(network)?)?,
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
            return Err(ConfigError::flag("network keep", "is for Softnet itself only").into());
        }
        NetworkAction::Keep(args) => {
            drop(out);
            let status = network::keeper::keep(&name(&args.network)?);
            std::process::exit(status);
        }
        NetworkAction::Down(_) if !getuid().is_root() => {
            // Whatever the program's file adds: the network is everybody's.
            return Err(ConfigError::flag("network down", "is for root only; use sudo").into());
        }
        NetworkAction::Down(args) => {
            let down = network::down(&name(&args.network.network)?, args.force)?;
            let name = &args.network.network;
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

fn name(text: &str) -> anyhow::Result<NetworkName> {
    Ok(network_name(text)?.parse()?)
}
