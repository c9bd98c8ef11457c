//! Real guests behind the real program, on networks that the lab makes: what works, and what does not.
#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::deadline::until;
use lab::guest::{Answer, Guest, Image, Lease, Request, Vmm};
use lab::harness::{self, Test};
use lab::hello;
use lab::net::{HOST_ON_LAN, Host, INTERNET, INTERNET_TOO, LAN, METADATA, NAME, World};
use lab::stage::SCRATCH;
use lab::wire::{Arp, Ipv4, Mac, udp};

const UML: &[Vmm] = &[Vmm::UserModeLinux];

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("uml::gets_its_network_and_nothing_else", || network_and_nothing_else(Vmm::UserModeLinux))
            .with_guests(UML)
            .as_root(),
        Test::new("qemu::gets_its_network_and_nothing_else", || network_and_nothing_else(Vmm::Qemu))
            .with_guests(&[Vmm::Qemu])
            .as_root(),
        Test::new("qemu::gets_its_devices_from_softnet_run", qemu_gets_its_devices)
            .with_guests(&[Vmm::Qemu])
            .as_root(),
        Test::new("qemu::learns_the_mtu_from_its_card", qemu_learns_the_mtu)
            .with_guests(&[Vmm::Qemu])
            .as_root(),
        Test::new("qemu::b6_boots_what_the_boot_server_names", boots_over_the_network)
            .with_guests(&[Vmm::Qemu])
            .as_root(),
        Test::new("uml::rules_open_and_close_destinations", rules_open_and_close).with_guests(UML).as_root(),
        Test::new("uml::an_exposed_port_is_reached_from_everywhere", an_exposed_port)
            .with_guests(UML)
            .as_root(),
        Test::new("uml::a_host_network_has_no_way_out", a_host_network).with_guests(UML).as_root(),
        Test::new("uml::isolation_ends_only_by_consent", isolation).with_guests(UML).as_root(),
        Test::new("uml::an_existing_bridge_serves", an_existing_bridge).with_guests(UML).as_root(),
        Test::new("uml::a_second_vm_outlives_the_first", a_second_vm_outlives_the_first)
            .with_guests(UML)
            .as_root(),
        Test::new("uml::a_user_without_privilege_has_passt", a_user_without_privilege)
            .with_guests(UML)
            .as_root(),
        Test::new("uml::twenty_at_once", twenty_at_once).with_guests(UML).as_root(),
    ])
}

/// For an attempt that must work, in milliseconds.
const PATIENCE_MS: u64 = 10_000;
/// For one that must not.
const IMPATIENCE_MS: u64 = 1500;

fn softnet() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_softnet"))
}

fn start(vmm: Vmm, flags: &[&str]) -> Result<Guest> {
    Guest::start(softnet(), flags, &Image::prepared(vmm)?)
}

/// A guest that is up and has its lease.
fn leased(vmm: Vmm, flags: &[&str]) -> Result<(Guest, Lease)> {
    let mut guest = start(vmm, flags)?;
    guest.booted()?;
    let lease = guest.dhcp()?;
    Ok((guest, lease))
}

fn tcp(guest: &mut Guest, to: Ipv4Addr, patience_ms: u64) -> Result<Answer> {
    guest.ask(&Request::Tcp { to: SocketAddrV4::new(to, 80), patience_ms })
}

fn reaches(guest: &mut Guest, to: Ipv4Addr) -> Result<String> {
    match tcp(guest, to, PATIENCE_MS)? {
        Answer::Heard(said) => Ok(said),
        other => bail!("{to} is not reached: {other:?}; {:?}", guest.softnet.counters()),
    }
}

fn does_not_reach(guest: &mut Guest, to: Ipv4Addr) -> Result<()> {
    match tcp(guest, to, IMPATIENCE_MS)? {
        Answer::Failed(_) => Ok(()),
        other => bail!("{to} is reached: {other:?}"),
    }
}

/// Runs a busybox program in the guest; true if it succeeds.
fn runs(guest: &mut Guest, words: &str) -> Result<(bool, String)> {
    match guest.ask(&Request::Run { argv: words.split(' ').map(str::to_owned).collect() })? {
        Answer::Exited { code, output } => Ok((code == 0, output)),
        other => bail!("{words}: {other:?}"),
    }
}

/// Fails unless the guest's frame is dropped for this reason.
fn drops(guest: &mut Guest, reason: &str, frame: Vec<u8>) -> Result<()> {
    let before = guest.softnet.counters()?;
    guest.send(&[frame])?;
    let mut seen = Vec::new();
    let dropped = until(|| {
        seen = guest.softnet.counters().map(|now| now.drops_since(&before)).unwrap_or_default();
        seen.iter().any(|(name, _)| name == reason)
    });
    ensure!(dropped, "dropped for {seen:?}, not for {reason}");
    Ok(())
}

fn mac(text: &str) -> Result<Mac> {
    let bytes =
        text.split(':').map(|digits| u8::from_str_radix(digits, 16)).collect::<Result<Vec<u8>, _>>()?;
    Ok(Mac(bytes.try_into().ok().context("six bytes")?))
}

fn network_and_nothing_else(vmm: Vmm) -> Result<()> {
    let world = World::build()?;
    let (mut guest, lease) = leased(vmm, &[])?;
    let gateway = lease.router.context("the lease names no router")?;
    ensure!(lease.seconds == Some(600), "the lease is for {:?} s", lease.seconds);
    let said = reaches(&mut guest, INTERNET)?;
    ensure!(said == "hello from the internet to 203.0.113.2", "the internet sees somebody else: {said}");
    let to = SocketAddrV4::new(INTERNET_TOO, 80);
    let said = guest.ask(&Request::Udp { to, patience_ms: PATIENCE_MS })?;
    ensure!(matches!(said, Answer::Heard(_)), "no UDP: {said:?}");
    ensure!(runs(&mut guest, &format!("ping -c 1 -W 5 {INTERNET}"))?.0, "no ping");
    ensure!(runs(&mut guest, &format!("ping -c 1 -W 5 {gateway}"))?.0, "no ping to the gateway");
    let resolver = lease.dns.first().context("the lease names no resolver")?;
    let (found, output) = runs(&mut guest, &format!("nslookup -type=a {NAME} {resolver}"))?;
    ensure!(found && output.contains(&INTERNET_TOO.to_string()), "no DNS: {output}");
    for to in [LAN, METADATA, HOST_ON_LAN] {
        does_not_reach(&mut guest, to)?;
    }
    let facts = guest.facts()?;
    let own = mac(&facts.mac)?;
    let known = facts.neighbours.iter().find(|(address, _)| *address == gateway);
    let router = mac(&known.context("the guest does not know its gateway")?.1)?;
    let stranger = Mac([0x02, 0, 0, 0, 0, 0x99]);
    let packet = |from: Ipv4Addr| Ipv4::new(from, INTERNET, udp((from, 4), (INTERNET, 80), b"forged"));
    drops(&mut guest, "source-mac", packet(lease.address).frame(router, stranger))?;
    drops(&mut guest, "source-address", packet([10, 99, 0, 1].into()).frame(router, own))?;
    drops(&mut guest, "arp-sender-address", Arp::reply(own, gateway, Mac::BROADCAST, gateway).frame())?;
    for service in world.services.iter().filter(|service| [LAN, METADATA].contains(service.at.ip())) {
        ensure!(service.seen().is_empty(), "{} was visited by {:?}", service.at, service.seen());
    }
    ensure!(guest.power_off()?.success(), "the guest's end is no success: {}", guest.softnet.log());
    Ok(())
}

/// Without placeholders on its command line QEMU gets its network devices from `softnet run` itself.
fn qemu_gets_its_devices() -> Result<()> {
    let _world = World::build()?;
    let mut guest = qemu_without_devices(&[])?;
    ensure!(guest.facts()?.mac == "52:54:00:aa:bb:07", "the guest has another MAC");
    guest.dhcp()?;
    reaches(&mut guest, INTERNET)?;
    Ok(())
}

/// A bridge whose packets are shorter than a guest assumes.
fn qemu_learns_the_mtu() -> Result<()> {
    let main = Host::main()?;
    main.bridge("virbr7", "10.55.0.1/24")?;
    main.ip("link set virbr7 mtu 1400")?;
    let mut guest = qemu_without_devices(&["--bridge=virbr7"])?;
    let (read, mtu) = runs(&mut guest, "cat /sys/class/net/eth0/mtu")?;
    ensure!(read && mtu.trim() == "1400", "the guest's MTU is {mtu}");
    Ok(())
}

/// QEMU with a kernel and no network card of its own, once it is up.
fn qemu_without_devices(flags: &[&str]) -> Result<Guest> {
    let image = Image::prepared(Vmm::Qemu)?;
    let mut command = Command::new(softnet());
    command.args(["run", lab::Softnet::READY_FLAG, "--vm-mac-address=52:54:00:aa:bb:07"]);
    command.args(flags).arg("--");
    command.args(
        "nice -n 1 qemu-system-x86_64 -accel tcg -cpu max -m 192 -nodefaults -no-reboot -display none"
            .split(' '),
    );
    command.args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1"]);
    command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
    let guest = Guest::spawn(command)?;
    guest.booted()?;
    Ok(guest)
}

/// PXE, by the firmware of QEMU's card (iPXE) and dnsmasq: of a menu, the client asks for its choice at port 4011.
fn boots_over_the_network() -> Result<()> {
    let main = lab::net::Host::main()?;
    main.bridge("br7", "10.55.0.1/24")?;
    let folder = format!("{SCRATCH}/tftp");
    std::fs::create_dir(&folder)?;
    // hlt, for ever
    std::fs::write(format!("{folder}/chosen.0"), [0xf4, 0xeb, 0xfd])?;
    let mut server = Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--port=0"])
        .args(["--interface=br7", "--bind-interfaces", "--dhcp-range=10.55.0.50,10.55.0.99,300"])
        .args(["--dhcp-authoritative", "--dhcp-leasefile=/run/lab/boot.leases", "--dhcp-no-override"])
        .args(["--enable-tftp", &format!("--tftp-root={folder}"), "--log-dhcp", "--log-facility=-"])
        .args(["--pxe-prompt=menu,0", "--pxe-service=x86PC,chosen,chosen", "--pxe-service=x86PC,other,other"])
        .stderr(Stdio::piped())
        .spawn()?;
    let (lines, log) = std::sync::mpsc::channel();
    let output = std::io::BufReader::new(server.stderr.take().context("its log is piped")?);
    std::thread::spawn(move || {
        use std::io::BufRead;
        output.lines().map_while(std::result::Result::ok).all(|line| lines.send(line).is_ok())
    });
    let mut command = Command::new(softnet());
    command.args(["run", lab::Softnet::READY_FLAG, "--bridge=br7", "--"]);
    let machine =
        "qemu-system-x86_64 -accel tcg -m 64 -nodefaults -no-user-config -no-reboot -display none -boot n";
    command.args(machine.split(' ')).stdin(Stdio::null()).stdout(Stdio::null());
    let mut softnet = lab::Softnet::spawn(command)?;
    softnet.ready()?;
    let mut seen = String::new();
    let sent = loop {
        match log.recv_timeout(Duration::from_secs(120)) {
            Ok(line) => seen += &format!("{line}\n"),
            Err(_) => break false,
        }
        if seen.ends_with('\n') && seen.lines().last().is_some_and(|line| line.contains("sent /")) {
            break true;
        }
    };
    let counters = softnet.counters()?;
    server.kill()?;
    server.wait()?;
    ensure!(
        sent && seen.contains("/chosen.0 to 10.55.0."),
        "no file was sent; {counters:?}; the server said\n{seen}"
    );
    ensure!(seen.contains("PXE(br7) 10.55.0."), "nobody asked the boot server:\n{seen}");
    let dhcp = |name: &&String| name.starts_with("reply-") || name.starts_with("dhcp-");
    let lost: Vec<_> = counters.from_vm.keys().chain(counters.from_host.keys()).filter(dhcp).collect();
    ensure!(lost.is_empty(), "DHCP was dropped: {counters:?}");
    Ok(())
}

fn rules_open_and_close() -> Result<()> {
    let _world = World::build()?;
    let (mut guest, lease) =
        leased(Vmm::UserModeLinux, &["--allow=192.168.77.0/24", "--block=8.0.0.0/8", "--block=@host"])?;
    let gateway = lease.router.context("the lease names no router")?;
    reaches(&mut guest, LAN)?;
    reaches(&mut guest, INTERNET_TOO)?;
    does_not_reach(&mut guest, INTERNET)?;
    does_not_reach(&mut guest, METADATA)?;
    ensure!(!runs(&mut guest, &format!("ping -c 1 -W 1 {gateway}"))?.0, "the blocked gateway answers");
    // A lease can be renewed all the same (D7).
    ensure!(guest.dhcp()?.address == lease.address, "the renewed lease is another");
    Ok(())
}

fn an_exposed_port() -> Result<()> {
    let world = World::build()?;
    let (mut guest, _) = leased(Vmm::UserModeLinux, &["--expose=8080:80"])?;
    guest.ask(&Request::Serve { port: 80, say: "hello from the guest".into() })?;
    let visit = |to: Ipv4Addr| hello(SocketAddrV4::new(to, 8080), Duration::from_secs(2));
    // The forward follows the lease, which the program learns a moment after the guest.
    let mut last = String::new();
    let reached = until(|| {
        last = visit(HOST_ON_LAN).unwrap_or_else(|error| error.to_string());
        last == "hello from the guest"
    });
    ensure!(reached, "from the host itself: {last}");
    ensure!(visit(Ipv4Addr::LOCALHOST)? == "hello from the guest", "from the host by its loopback");
    let said = world.lan.run(|| visit(HOST_ON_LAN))??;
    ensure!(said == "hello from the guest", "from the LAN: {said}");
    let said = world.internet.run(|| visit([203, 0, 113, 2].into()))??;
    ensure!(said == "hello from the guest", "from the internet: {said}");
    guest.power_off()?;
    ensure!(world.lan.run(|| visit(HOST_ON_LAN))?.is_err(), "the port is open without its guest");
    Ok(())
}

fn a_host_network() -> Result<()> {
    let _world = World::build()?;
    let (mut guest, lease) = leased(Vmm::UserModeLinux, &["--vm-net-type=host"])?;
    let gateway = lease.router.or(lease.dns.first().copied());
    let ready_gateway = gateway.or_else(|| Some(Ipv4Addr::from(u32::from(lease.address) & 0xffff_ff00 | 1)));
    let gateway = ready_gateway.context("no gateway")?;
    ensure!(runs(&mut guest, &format!("ping -c 1 -W 5 {gateway}"))?.0, "the host does not answer");
    for to in [INTERNET, INTERNET_TOO, LAN, METADATA] {
        does_not_reach(&mut guest, to)?;
    }
    Ok(())
}

fn isolation() -> Result<()> {
    let _world = World::build()?;
    let all: &[&str] = &["--allow=0.0.0.0/0"];
    let (mut open, open_lease) = leased(Vmm::UserModeLinux, all)?;
    let (mut open_too, open_too_lease) = leased(Vmm::UserModeLinux, all)?;
    let (mut closed, closed_lease) = leased(Vmm::UserModeLinux, &[])?;
    for guest in [&mut open, &mut open_too, &mut closed] {
        guest.ask(&Request::Serve { port: 80, say: "hello".into() })?;
    }
    reaches(&mut open, open_too_lease.address)?;
    reaches(&mut open_too, open_lease.address)?;
    does_not_reach(&mut closed, open_lease.address)?;
    does_not_reach(&mut open, closed_lease.address)?;
    // All of them still have the internet.
    for guest in [&mut open, &mut open_too, &mut closed] {
        reaches(guest, INTERNET)?;
    }
    Ok(())
}

/// A bridge that somebody else made, with a DHCP server of somebody else's.
fn an_existing_bridge() -> Result<()> {
    let world = World::build()?;
    world.main.bridge("virbr7", "10.55.0.1/24")?;
    let mut dnsmasq = Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--port=0"])
        .args(["--interface=virbr7", "--bind-interfaces", "--dhcp-range=10.55.0.50,10.55.0.99,300"])
        .args(["--dhcp-authoritative", "--dhcp-leasefile=/run/lab/foreign.leases"])
        .stderr(Stdio::null())
        .spawn()?;
    let (mut guest, lease) = leased(Vmm::UserModeLinux, &["--bridge=virbr7"])?;
    ensure!(lease.address.octets()[..3] == [10, 55, 0], "a lease of somebody else: {lease:?}");
    ensure!(runs(&mut guest, "ping -c 1 -W 5 10.55.0.1")?.0, "the bridge does not answer");
    does_not_reach(&mut guest, LAN)?;
    guest.power_off()?;
    dnsmasq.kill()?;
    dnsmasq.wait()?;
    let ports = world.main.ip("-oneline link show master virbr7")?;
    ensure!(ports.is_empty(), "a port stays on the bridge: {ports}");
    Ok(())
}

fn a_second_vm_outlives_the_first() -> Result<()> {
    let _world = World::build()?;
    let (mut first, _) = leased(Vmm::UserModeLinux, &[])?;
    let (mut second, lease) = leased(Vmm::UserModeLinux, &[])?;
    first.power_off()?;
    reaches(&mut second, INTERNET)?;
    ensure!(second.dhcp()?.address == lease.address, "another lease after the first VM's end");
    second.power_off()?;
    let output = Command::new(softnet()).args(["network", "down"]).output()?;
    ensure!(output.status.success(), "network down: {}", String::from_utf8_lossy(&output.stderr));
    let links = lab::net::Host::main()?.ip("-oneline link show type bridge")?;
    ensure!(links.is_empty(), "a bridge stays: {links}");
    Ok(())
}

/// A plain user: no root, no capability, no group. passt carries the frames, behind the same filter.
fn a_user_without_privilege() -> Result<()> {
    const USER: u32 = 54_321;
    let world = World::build()?;
    // The build directory may lie where other users cannot look.
    let image = Image::prepared(Vmm::UserModeLinux)?;
    let (program, initrd) = (Path::new(SCRATCH).join("softnet"), Path::new(SCRATCH).join("initrd"));
    std::fs::copy(softnet(), &program)?;
    std::fs::copy(&image.initrd, &initrd)?;
    let image = Image { initrd, ..image };
    let mut command = Command::new(&program);
    command
        .args(["run", lab::Softnet::READY_FLAG, "--"])
        .args(lab::guest::command_line(&image))
        .uid(USER)
        .gid(USER);
    let mut guest = Guest::spawn(command)?;
    let ready = guest.softnet.ready()?;
    ensure!(ready["mode"] == "passt", "the ready line is {ready}");
    guest.booted()?;
    let lease = guest.dhcp()?;
    reaches(&mut guest, INTERNET)?;
    does_not_reach(&mut guest, LAN)?;
    does_not_reach(&mut guest, METADATA)?;
    let facts = guest.facts()?;
    let router = lease.router.context("the lease names no router")?;
    let known = facts.neighbours.iter().find(|(address, _)| *address == router);
    let (own, router) = (mac(&facts.mac)?, mac(&known.context("the guest does not know its gateway")?.1)?);
    let from = Ipv4Addr::new(10, 99, 0, 1);
    let forged = Ipv4::new(from, INTERNET, udp((from, 4), (INTERNET, 80), b"forged"));
    drops(&mut guest, "source-address", forged.frame(router, own))?;
    for service in world.services.iter().filter(|service| [LAN, METADATA].contains(service.at.ip())) {
        ensure!(service.seen().is_empty(), "{} was visited by {:?}", service.at, service.seen());
    }
    ensure!(processes_of(USER)?.iter().any(|name| name.starts_with("passt")), "passt runs as somebody else");
    guest.power_off()?;
    ensure!(until(|| processes_of(USER).is_ok_and(|left| left.is_empty())), "left: {:?}", processes_of(USER));
    Ok(())
}

/// The names of a user's processes.
fn processes_of(user: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        let Ok(status) = std::fs::read_to_string(entry?.path().join("status")) else { continue };
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        if field("Uid:") == Some(&user.to_string()) {
            names.push(field("Name:").unwrap_or_default().to_owned());
        }
    }
    Ok(names)
}

fn twenty_at_once() -> Result<()> {
    let _world = World::build()?;
    let mut guests = (0..20).map(|_| start(Vmm::UserModeLinux, &[])).collect::<Result<Vec<_>>>()?;
    let mut addresses = BTreeSet::new();
    for guest in &mut guests {
        guest.booted()?;
        addresses.insert(guest.dhcp()?.address);
    }
    ensure!(addresses.len() == 20, "20 guests share {} addresses", addresses.len());
    for guest in &mut guests {
        reaches(guest, INTERNET)?;
    }
    Ok(())
}
