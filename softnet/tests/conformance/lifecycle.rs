//! How it starts and ends: signals, sockets, parents, and the command of `softnet run`.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, until};
use lab::net::Host;
use lab::wire::{Dhcp, Ipv4, dhcp_kind as kind, udp};
use lab::{PacketSocket, Segment, Softnet, VmPort};
use nix::sys::signal::Signal;

use crate::wire::{GATEWAY, VM, VM_MAC, WORLD, Wire, packet, program};

pub fn int_and_term_end_it_and_give_the_lease_back() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        wire.restart_leased(&["--stats"])?;
        wire.softnet.signal(signal)?;
        ensure!(wire.softnet.wait()?.success(), "{signal} is no clean end: {}", wire.softnet.log());
        let release = |seen: &[u8]| {
            Dhcp::parse(seen).is_some_and(|it| it.message_type() == kind::RELEASE && it.ciaddr == VM)
        };
        wire.segment.expect("a RELEASE of the lease", release)?;
        let log = wire.softnet.log();
        ensure!(
            lab::Counters::parse(log.lines().last().unwrap_or_default()).is_some(),
            "no counters at the end: {log}"
        );
    }
    Ok(())
}

pub fn an_empty_datagram_ends_it() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    wire.vm.send(&[])?;
    ensure!(wire.softnet.wait()?.success(), "the VM's goodbye is no clean end: {}", wire.softnet.log());
    Ok(())
}

pub fn a_dead_parent_ends_it() -> Result<()> {
    let segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    let (vm, theirs) = VmPort::pair()?;
    // A shell between this test and Softnet, for a parent that can be killed.
    let mut shell = Command::new("sh")
        .args(["-c", "exec 5<&0 </dev/null; \"$0\" --vm-fd=5 \"$@\" & wait"])
        .arg(program())
        .args([format!("--vm-mac-address={VM_MAC}"), format!("--tap={}", Segment::TAP)])
        .stdin(theirs)
        .spawn()?;
    let asked = Dhcp::client(kind::DISCOVER, 1, VM_MAC).broadcast();
    vm.send(&asked)?;
    segment.expect("a DISCOVER", |seen| seen == asked)?;
    shell.kill()?;
    shell.wait()?;
    ensure!(until(|| vm.is_closed()), "softnet outlives its parent");
    Ok(())
}

pub fn a_stream_socket_carries_frames_behind_their_length() -> Result<()> {
    let segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    let (mut vm, theirs) = UnixStream::pair()?;
    let tap = format!("--tap={}", Segment::TAP);
    let mut softnet = Softnet::start(program(), OwnedFd::from(theirs), &VM_MAC.to_string(), [tap])?;
    softnet.ready()?;
    let framed = |frame: &[u8]| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
    let asked: Vec<Vec<u8>> =
        (1..=4).map(|xid| Dhcp::client(kind::DISCOVER, xid, VM_MAC).broadcast()).collect();
    // One in a piece, one byte by byte, two at once.
    vm.write_all(&framed(&asked[0]))?;
    for byte in framed(&asked[1]) {
        vm.write_all(&[byte])?;
    }
    vm.write_all(&[framed(&asked[2]), framed(&asked[3])].concat())?;
    for frame in &asked {
        segment.expect("a DISCOVER", |seen| seen == frame)?;
    }
    let inbound = Ipv4::new(WORLD, VM, udp((WORLD, 80), (VM, 4000), b"inbound")).frame(VM_MAC, segment.mac);
    segment.send(&inbound)?;
    loop {
        let mut len = [0; 4];
        vm.read_exact(&mut len)?;
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        vm.read_exact(&mut frame)?;
        if frame == inbound {
            break;
        }
    }
    drop(vm);
    ensure!(softnet.wait()?.success(), "a closed stream is no clean end: {}", softnet.log());
    Ok(())
}

pub fn a_broken_stream_ends_it() -> Result<()> {
    let segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    for length in [0u32, 0x7fff_ffff, u32::MAX] {
        let (mut vm, theirs) = UnixStream::pair()?;
        let tap = format!("--tap={}", Segment::TAP);
        let mut softnet = Softnet::start(program(), OwnedFd::from(theirs), &VM_MAC.to_string(), [tap])?;
        softnet.ready()?;
        vm.write_all(&length.to_be_bytes())?;
        if length == 0 {
            // Nothing but an empty frame: the stream goes on behind it.
            let asked = Dhcp::client(kind::DISCOVER, 1, VM_MAC).broadcast();
            vm.write_all(&[&(asked.len() as u32).to_be_bytes()[..], &asked].concat())?;
            segment.expect("a DISCOVER behind an empty frame", |seen| seen == asked)?;
        } else {
            // There is no way to find the next frame behind such a length, and no room to wait for its end.
            ensure!(!softnet.wait()?.success(), "a frame of {length} bytes is no clean end");
        }
    }
    Ok(())
}

pub fn a_frame_before_it_is_ready_is_not_lost() -> Result<()> {
    let segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    let (vm, theirs) = VmPort::pair()?;
    let asked = Dhcp::client(kind::DISCOVER, 1, VM_MAC).broadcast();
    vm.send(&asked)?;
    let tap = format!("--tap={}", Segment::TAP);
    let _softnet = Softnet::start(program(), theirs, &VM_MAC.to_string(), [tap])?;
    segment.expect("a DISCOVER", |seen| seen == asked)?;
    Ok(())
}

/// The kernel enables a bridge's port some time after a program has attached to its TAP. A DISCOVER in between would be
/// lost, and asked again only seconds later.
pub fn ready_means_that_the_bridge_carries_frames() -> Result<()> {
    let segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    let bridge = PacketSocket::open(Segment::BRIDGE)?;
    for xid in 1..=8 {
        let (vm, theirs) = VmPort::pair()?;
        let tap = format!("--tap={}", Segment::TAP);
        let mut softnet = Softnet::start(program(), theirs, &VM_MAC.to_string(), [tap])?;
        softnet.ready()?;
        let asked = Dhcp::client(kind::DISCOVER, xid, VM_MAC).broadcast();
        vm.send(&asked)?;
        segment.expect("a DISCOVER on the TAP", |seen| seen == asked)?;
        let inbound =
            Ipv4::new(WORLD, VM, udp((WORLD, 80), (VM, 4000), &[xid as u8])).frame(VM_MAC, segment.mac);
        segment.send(&inbound)?;
        vm.expect("a frame from the bridge", |seen| seen == inbound)?;
        let deadline = Deadline::default();
        loop {
            ensure!(deadline.readable(bridge.as_fd()), "the bridge dropped the DISCOVER of start {xid}");
            if bridge.try_recv().is_ok_and(|seen| seen == asked) {
                break;
            }
        }
        softnet.stop()?;
    }
    Ok(())
}

/// `softnet run` on the TAP, with this shell script as the VM.
fn run(script: &str) -> Result<Command> {
    let mut command = Command::new(program());
    command.args(["run", "--vm-mac-address", &VM_MAC.to_string(), "--tap", Segment::TAP]);
    command.args(["--", "sh", "-c", script]).stdin(Stdio::null());
    Ok(command)
}

pub fn run_ends_as_its_command_does() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 128 + 9), ("kill -TERM $$", 128 + 15)]
    {
        let status = run(script)?.status()?;
        ensure!(status.code() == Some(code), "{script:?} gives {status}, not {code}");
    }
    let output = run("echo {mac} $SOFTNET_MAC; test -S /proc/$$/fd/{fd} && echo socket")?.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(said == format!("{VM_MAC} {VM_MAC}\nsocket\n"), "the command said {said:?}");
    let mut missing = Command::new(program());
    missing.args(["run", "--tap", Segment::TAP, "--", "no-such-program"]);
    let output = missing.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("no-such-program"), "a missing command: {said}");
    Ok(())
}

pub fn run_passes_signals_on_and_ends_both() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    // Its first line says that the trap is set.
    let script = "trap 'exit 9' TERM; echo up; sleep infinity >/dev/null & wait";
    let mut child = run(script)?.stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("standard output is piped")?;
    let mut up = [0; 3];
    output.read_exact(&mut up)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().try_into()?), Signal::SIGTERM)?;
    let status = child.wait()?;
    ensure!(status.code() == Some(9), "the command did not end by the signal that was passed on: {status}");
    // The TAP goes, so the filter ends, so the command is ended.
    let mut child = run("echo up; exec sleep infinity")?.stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().context("standard output is piped")?;
    output.read_exact(&mut up)?;
    Host::main()?.ip(&format!("link del {}", Segment::TAP))?;
    ensure!(!child.wait()?.success(), "a dead network is no success");
    let mut rest = Vec::new();
    // Everybody who could still write to it is gone, or this would not end.
    output.read_to_end(&mut rest)?;
    Ok(())
}

pub fn nothing_goes_to_standard_output() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    let (vm, theirs) = VmPort::pair()?;
    let child = Command::new(program())
        .args([
            "--vm-fd=0",
            "--stats",
            &format!("--vm-mac-address={VM_MAC}"),
            &format!("--tap={}", Segment::TAP),
        ])
        .env("RUST_LOG", "trace")
        .stdin(theirs)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    vm.send(&packet(WORLD).frame(VM_MAC, VM_MAC))?;
    vm.send(&[])?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
    ensure!(!output.stderr.is_empty(), "RUST_LOG=trace says nothing");
    Ok(())
}
