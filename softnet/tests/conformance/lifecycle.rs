//! How it starts and ends: signals, sockets, parents, and the command of `softnet run`.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, until};
use lab::net::Host;
use lab::wire::{Arp, Dhcp, Ipv4, Mac, dhcp_kind as kind, parse_dhcp, udp};
use lab::{PacketSocket, Segment, Softnet, VmPort};
use nix::sys::signal::Signal;
use softnet::host::port_state;
use softnet::host::tap::Tap;
use softnet::netlink::Netlink;

use crate::wire::{GATEWAY, VM, VM_MAC, WORLD, Wire, packet, program};

pub fn int_and_term_end_it_and_give_the_lease_back() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        wire.restart_leased(&["--stats"])?;
        wire.softnet.signal(signal)?;
        ensure!(wire.softnet.wait()?.success(), "{signal} is no clean end: {}", wire.softnet.log());
        let release = |seen: &[u8]| {
            parse_dhcp(seen).is_some_and(|it| it.message_type() == kind::RELEASE && it.ciaddr == VM)
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

/// When a program attaches, TAP and bridge get their carriers. The kernel starts their queues and enables the port a moment
/// later. A DISCOVER or an OFFER in between would be lost, and asked for again only seconds later.
pub fn ready_means_that_frames_flow() -> Result<()> {
    let host = Host::main()?;
    let _busy = BusyKernel::start()?;
    for xid in 1..=8 {
        // Nobody has attached yet, so the bridge never had a carrier either.
        let segment = Segment::build(&host, GATEWAY, 24)?;
        let bridge = PacketSocket::open(Segment::BRIDGE)?;
        let (vm, theirs) = VmPort::pair()?;
        let tap = format!("--tap={}", Segment::TAP);
        let mut softnet = Softnet::start(program(), theirs, &VM_MAC.to_string(), [tap])?;
        softnet.ready()?;
        let inbound = Arp::request(segment.mac, GATEWAY, [10, 0, 0, xid].into()).frame();
        segment.send(&inbound)?;
        let asked = Dhcp::client(kind::DISCOVER, xid.into(), VM_MAC).broadcast();
        vm.send(&asked)?;
        vm.expect("a frame from the bridge", |seen| seen == inbound)?;
        let deadline = Deadline::default();
        while !bridge.try_recv().is_ok_and(|seen| seen == asked) {
            ensure!(deadline.readable(bridge.as_fd()), "the bridge dropped the DISCOVER of start {xid}");
        }
        softnet.stop()?;
        host.ip(&format!("link del {}", Segment::TAP))?;
        host.ip(&format!("link del {}", Segment::BRIDGE))?;
    }
    Ok(())
}

/// What such a start waits for, each state for itself.
pub fn the_state_of_a_link_tells_whether_it_carries() -> Result<()> {
    let host = Host::main()?;
    let mut netlink = Netlink::open()?;
    let mut carries = |name| anyhow::Ok(netlink.link(name)?.context("no such link")?.transmits);
    host.bridge(Segment::BRIDGE, &format!("{GATEWAY}/24"))?;
    host.tap(Segment::TAP, Segment::BRIDGE)?;
    ensure!(carries("lo")?, "a link without a carrier to lose");
    ensure!(!carries(Segment::TAP)? && !carries(Segment::BRIDGE)?, "nobody has attached");
    for _ in 0..2 {
        let tap = Tap::attach(Segment::TAP, false)?;
        ensure!(
            port_state::wait_until_frames_flow(&mut Netlink::open()?, Segment::TAP)?,
            "not within its time"
        );
        ensure!(carries(Segment::TAP)? && carries(Segment::BRIDGE)?, "somebody has attached");
        drop(tap);
        ensure!(until(|| carries(Segment::TAP).is_ok_and(|carries| !carries)), "nobody is attached any more");
    }
    Ok(())
}

/// Interfaces that come and go, so that the kernel is slow to see to others.
struct BusyKernel(Child);

impl BusyKernel {
    fn start() -> Result<Self> {
        let come_and_go = "while ip link add busy type bridge && ip link del busy; do :; done";
        Ok(Self(Command::new("sh").args(["-c", come_and_go]).spawn()?))
    }
}

impl Drop for BusyKernel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A TAP needs no bridge if the host routes what comes out of it.
pub fn a_routed_tap_serves_without_a_bridge() -> Result<()> {
    let host = Host::main()?;
    host.ip("tuntap add dev routed0 mode tap")?;
    host.ip("link set routed0 addrgenmode none up")?;
    host.ip(&format!("addr add {GATEWAY}/24 dev routed0"))?;
    let (vm, theirs) = VmPort::pair()?;
    let mut softnet = Softnet::start(program(), theirs, &VM_MAC.to_string(), ["--tap=routed0"])?;
    let ready = softnet.ready()?;
    ensure!(ready["gateway"] == GATEWAY.to_string() && !softnet.log().contains("yet"), "{}", softnet.log());
    let host_end = PacketSocket::open("routed0")?;
    let asked = Dhcp::client(kind::DISCOVER, 1, VM_MAC).broadcast();
    vm.send(&asked)?;
    let deadline = Deadline::default();
    while !host_end.try_recv().is_ok_and(|seen| seen == asked) {
        ensure!(deadline.readable(host_end.as_fd()), "the DISCOVER never came out");
    }
    let inbound =
        Ipv4::new(WORLD, VM, udp((WORLD, 80), (VM, 4000), b"in")).frame(VM_MAC, Mac([2, 0xb0, 0, 0, 0, 1]));
    host_end.send(&inbound)?;
    vm.expect("a frame of the host's", |seen| seen == inbound)?;
    Ok(())
}

/// `softnet run` on the TAP, with this shell script as the VM.
fn run(script: &str) -> Result<Command> {
    let mut command = Command::new(program());
    command.args(["run", "--vm-mac-address", &VM_MAC.to_string(), "--tap", Segment::TAP]);
    command.args(["--fd-from-env", "--", "sh", "-c", script]).stdin(Stdio::null());
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
    let output =
        run("test -S /proc/$$/fd/{stream_fd} && test $SOFTNET_FD = {stream_fd} && echo socket")?.output()?;
    ensure!(output.stdout == b"socket\n", "{}", String::from_utf8_lossy(&output.stderr));
    // A launcher may have started it with the ends of children ignored.
    let mut ignoring = Command::new("env");
    ignoring.arg("--ignore-signal=CHLD").arg(program()).args(["run", "--fd-from-env", "--tap"]);
    let status = ignoring.args([Segment::TAP, "--", "sh", "-c", "exit 7"]).stdin(Stdio::null()).status()?;
    ensure!(status.code() == Some(7), "with SIGCHLD ignored: {status}");
    let mut missing = Command::new(program());
    missing.args(["run", "--fd-from-env", "--tap", Segment::TAP, "--", "no-such-program"]);
    let output = missing.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("no-such-program"), "a missing command: {said}");
    Ok(())
}

/// Guests keep identifiers that are made of their first MAC address.
pub fn run_gives_a_vm_the_same_mac_at_each_boot() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    let boot = |name: &[&str]| -> Result<String> {
        let mut command = Command::new(program());
        command.args(["run", "--fd-from-env", "--tap", Segment::TAP]).args(name);
        let output = command.args(["--", "sh", "-c", "echo $SOFTNET_MAC"]).stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let (first, named) = (boot(&[])?, boot(&["--name=web"])?);
    ensure!(first.trim().parse::<Mac>().is_ok_and(Mac::is_unicast), "{first:?}");
    ensure!(first == boot(&[])? && named == boot(&["--name=web"])? && first != named, "{first} {named}");
    Ok(())
}

/// The last resort against a VM whose network is not Softnet's: one line, and only for a VM that has sent nothing.
pub fn run_says_that_the_vm_has_sent_nothing() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    for (script, lines) in [
        ("exec sleep 7", 1),
        // A bad frame counts: whoever sends it uses the socket.
        ("printf 0123456789abcdef >&$SOFTNET_FD; exec sleep 7", 0),
    ] {
        let mut command = Command::new(program());
        command.args([
            "run",
            "--fd-from-env",
            "--vm-mac-address",
            &VM_MAC.to_string(),
            "--tap",
            Segment::TAP,
        ]);
        let output = command.args(["--", "bash", "-c", script]).stdin(Stdio::null()).output()?;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(log.matches("no frame has come from the VM yet").count() == lines, "{script}: {log}");
    }
    Ok(())
}

/// User-mode Linux closes its socket when its guest takes the interface down, as every shutdown does.
pub fn run_outlives_a_socket_that_the_vm_closes() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    let mut command = Command::new(program());
    command.args(["run", "--vm-mac-address", &VM_MAC.to_string(), "--tap", Segment::TAP, "--", "bash", "-c"]);
    // The filter is the supervisor's other child; the shell goes on once it has ended.
    let script = "exec {fd}>&-; filter=$(tr ' ' '\\n' < /proc/$PPID/task/$PPID/children | grep -v \"^$$\\$\"); \
                  while test -n \"$filter\" && test -e /proc/$filter/fd/2; do sleep 0.05; done; echo synced; exit 5";
    let output = command.arg(script).stdin(Stdio::null()).output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(5) && output.stdout == b"synced\n", "{}: {log}", output.status);
    ensure!(log.contains("has no network from now on"), "{log}");
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
