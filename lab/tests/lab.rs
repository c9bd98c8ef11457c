//! The lab keeps its own promises: nothing gets out, nothing stays, frames and guests are real.

use std::io::BufRead;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use command_fds::{CommandFdExt, FdMapping};
use lab::deadline::{Deadline, until};
use lab::guest::{Answer, Guest, Image, Request, Vmm, command_line};
use lab::harness::{self, Test};
use lab::net::{Host, World};
use lab::wire::{Arp, Mac, carries};
use lab::{Segment, VmPort, hello, stage};

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("there_is_no_way_out", there_is_no_way_out),
        Test::new("a_killed_lab_leaves_no_process", a_killed_lab_leaves_no_process),
        Test::new("the_world_answers", the_world_answers),
        Test::new("a_segment_carries_frames", a_segment_carries_frames),
        Test::new("a_uml_guest_boots_and_sends", a_uml_guest_boots_and_sends)
            .with_guests(&[Vmm::UserModeLinux]),
        Test::new("a_qemu_guest_boots_and_sends", a_qemu_guest_boots_and_sends).with_guests(&[Vmm::Qemu]),
    ])
}

fn there_is_no_way_out() -> Result<()> {
    let links = Host::main()?.ip("-oneline link show")?;
    ensure!(
        links.lines().count() == 1 && links.contains("lo:"),
        "a fresh lab has more than a loopback: {links}"
    );
    ensure!(
        hello("1.1.1.1:80".parse()?, Duration::from_millis(100)).is_err(),
        "something answered from outside"
    );
    Ok(())
}

/// Kills the outermost process of a lab within this lab and looks whether its innermost is gone.
fn a_killed_lab_leaves_no_process() -> Result<()> {
    const STAY: &str = "SOFTNET_LAB_TEST_STAYS";
    if std::env::var_os(STAY).is_some() {
        eprintln!("inside");
        loop {
            std::thread::park();
        }
    }
    let (reader, writer) = std::io::pipe()?;
    let mut inner = {
        let mut command = stage::command::<&str>([])?;
        command.env(STAY, "1").stderr(writer).spawn()?
    };
    let mut reader = std::io::BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line == "inside\n", "the inner lab said {line:?}");
    inner.kill()?;
    inner.wait()?;
    // Every process of the inner lab holds the pipe's other end: the end of file says that the last one is gone.
    ensure!(Deadline::default().readable(reader.get_ref().as_fd()), "a process of a killed lab lives on");
    ensure!(reader.read_line(&mut line)? == 0);
    Ok(())
}

fn the_world_answers() -> Result<()> {
    let world = World::build()?;
    for service in &world.services {
        let line = hello(service.at, Duration::from_secs(5))
            .with_context(|| format!("connect to {}", service.at))?;
        ensure!(line.starts_with("hello from"), "{} said {line:?}", service.at);
        ensure!(service.seen().len() == 1);
    }
    Ok(())
}

fn a_segment_carries_frames() -> Result<()> {
    let segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    ensure!(Host::main()?.ip("-oneline link show br0")?.contains(&segment.mac.to_string()));
    Ok(())
}

fn a_uml_guest_boots_and_sends() -> Result<()> {
    a_guest_boots_and_sends(Vmm::UserModeLinux)
}

fn a_qemu_guest_boots_and_sends() -> Result<()> {
    a_guest_boots_and_sends(Vmm::Qemu)
}

fn a_guest_boots_and_sends(vmm: Vmm) -> Result<()> {
    let (port, wire) = VmPort::pair()?;
    let mut guest = Guest::spawn(bare(&Image::prepared(vmm)?, wire)?)?;
    guest.booted()?;
    let facts = guest.facts()?;
    ensure!(facts.mac == MAC.to_string(), "the guest's address is {}", facts.mac);
    let said = Arp::request(Mac([2, 0, 0, 0, 0, 7]), [10, 0, 0, 9].into(), [10, 0, 0, 1].into()).frame();
    guest.send(std::slice::from_ref(&said))?;
    port.expect("the guest's own frame", |frame| carries(frame, &said))?;
    let ran = guest.ask(&Request::Run { argv: ["echo", "hi"].map(Into::into).into() })?;
    ensure!(ran == Answer::Exited { code: 0, output: "hi\n".into() }, "{ran:?}");
    ensure!(guest.power_off()?.success());
    ensure!(until(|| port.is_closed()), "a guest that is off still holds its wire");
    Ok(())
}

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// A guest on a wire without Softnet.
fn bare(image: &Image, wire: OwnedFd) -> Result<Command> {
    let fd = wire.as_raw_fd();
    let words: Vec<String> = command_line(image)
        .into_iter()
        .map(|word| word.replace("{fd}", &fd.to_string()).replace("{mac}", &MAC.to_string()))
        .collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).fd_mappings(vec![FdMapping { parent_fd: wire, child_fd: fd }])?;
    Ok(command)
}
