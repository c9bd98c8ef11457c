//! `cargo xtask demo`: two real guests behind Softnet, one of them hostile, and a table of results.
//!
//! Everything runs in private namespaces: the internet, the LAN and the metadata service are hosts in there.

mod attempts;
mod table;

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use lab::guest::{Guest, Image, Lease, Request, Vmm};
use lab::hello;
use lab::net::World;
use lab::stage::{self, Stage};

use crate::{cargo, packages};

/// Boot two real Linux guests behind Softnet, let one of them attack, and show a table of results
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The VMM that runs the guests
    #[arg(long, value_enum, default_value_t = Machine::Uml)]
    vmm: Machine,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Machine {
    /// User-mode Linux
    Uml,
    /// QEMU without hardware acceleration
    Qemu,
}

impl Machine {
    fn vmm(self) -> Vmm {
        match self {
            Self::Uml => Vmm::UserModeLinux,
            Self::Qemu => Vmm::Qemu,
        }
    }
}

/// Prepares outside the namespaces, with a network; shows inside, without one.
pub fn run(args: &Args, stage: Stage) -> Result<ExitCode> {
    match stage {
        Stage::Outside => {
            let machine = match args.vmm {
                Machine::Uml => packages::UML,
                Machine::Qemu => packages::QEMU,
            };
            packages::need_root("demo")?;
            packages::ensure_installed(&[packages::LAB, machine])?;
            println!("building softnet and the guests' file system");
            cargo::build_softnet()?;
            Image::prepare(args.vmm.vmm())?;
            let status = stage::command(std::env::args_os().skip(1))?
                .status()
                .context("enter the demo's namespaces")?;
            Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Stage::Inside => show(args.vmm.vmm()),
    }
}

/// The guests and what they know of each other.
struct Cast {
    /// The hostile guest.
    mallory: Guest,
    /// The peaceful guest.
    alice: Guest,
    /// The hostile guest's lease.
    mallory_lease: Lease,
    /// The other's.
    alice_lease: Lease,
}

fn show(vmm: Vmm) -> Result<ExitCode> {
    let started = Instant::now();
    let say = |text: &str| println!("[{:5.1} s] {text}", started.elapsed().as_secs_f64());
    say("building an internet, a LAN and a cloud's metadata service in namespaces without a way out");
    let world = World::build()?;
    for service in &world.services {
        // If the host can reach it, only Softnet keeps a guest from it.
        hello(service.at, Duration::from_secs(5))
            .with_context(|| format!("reach {} from the host", service.at))?;
    }
    say("the host reaches 8.8.8.8, 1.1.1.1, its neighbour 192.168.77.10 and 169.254.169.254");
    let image = Image::prepared(vmm)?;
    let softnet = cargo::softnet()?;
    say(&format!("booting two {vmm} guests: softnet run -- {} …", image.kernel.display()));
    let mut cast = boot(&softnet, &image, &say)?;
    say("every attempt, with Softnet's counters read before and after it:");
    let rows = attempts::perform(&mut cast, &world)?;
    let wrong = rows.iter().filter(|row| !row.is_right()).count();
    println!("\n{}", table::draw(&rows));
    cast.mallory.power_off()?;
    cast.alice.power_off()?;
    say(&format!("{} attempts, {} as expected, {wrong} not", rows.len(), rows.len() - wrong));
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn boot(softnet: &Path, image: &Image, say: &impl Fn(&str)) -> Result<Cast> {
    let mut mallory = Guest::start(softnet, &[], image)?;
    let mut alice = Guest::start(softnet, &[], image)?;
    for (name, guest) in [("mallory", &mut mallory), ("alice", &mut alice)] {
        let ready = guest.softnet.ready()?;
        say(&format!("{name}'s softnet is ready: {ready}"));
    }
    for (name, guest) in [("mallory", &mallory), ("alice", &alice)] {
        guest.booted()?;
        say(&format!("{name} is up"));
    }
    let mallory_lease = mallory.dhcp()?;
    let alice_lease = alice.dhcp()?;
    for (name, lease) in [("mallory", &mallory_lease), ("alice", &alice_lease)] {
        let router = lease.router.unwrap_or(Ipv4Addr::UNSPECIFIED);
        say(&format!("{name} got {} by DHCP, router {router}", lease.address));
    }
    ensure!(mallory_lease.address != alice_lease.address, "both guests have the same address");
    alice.ask(&Request::Serve { port: 80, say: "hello from alice".into() })?;
    Ok(Cast { mallory, alice, mallory_lease, alice_lease })
}
