//! Real DHCP clients behind the program: whatever they do, they keep their network, and the filter drops nothing of theirs.
#![cfg(target_os = "linux")]

mod firmware;
mod guests;
mod kinds;
mod pause;
mod station;

use std::net::Ipv4Addr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::deadline::until;
use lab::guest::Vmm;
use lab::harness::{self, Test};
use lab::net::{INTERNET, World};
use lab::stage::run;
use lab::wire::{Mac, dhcp_kind as kind, dhcp_option as option};
use lab::{Message, Service};

use kinds::{Client, client};
use station::{Station, is_leased};

/// The tests wait for leases most of the time.
const AT_ONCE: usize = 12;

const FIRST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SECOND: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// Two tests for each client.
macro_rules! clients {
    ($($name:ident),* $(,)?) => {
        vec![$(
            Test::new(concat!(stringify!($name), "::keeps_its_address_at_every_boot"), || boots(client(stringify!($name))?)),
            Test::new(concat!(stringify!($name), "::renews_and_rebinds_in_time"), || renews(client(stringify!($name))?)),
        )*]
    };
}

fn main() -> ExitCode {
    // The longest first.
    let mut tests = vec![
        Test::new("pause::a_client_that_believes_in_its_lease_renews_it", pause::that_stops_the_clock)
            .with_guests(&[Vmm::Qemu]),
        Test::new("pause::a_stopped_process_has_its_network_again", pause::that_the_clock_outlives)
            .with_guests(&[Vmm::Qemu]),
        Test::new("guests::qemu_with_ifupdown_boots_twice_and_halts_cleanly", guests::qemu_with_ifupdown)
            .with_guests(&[Vmm::Qemu])
            .with_debian(),
        Test::new("guests::uml_with_ifupdown_boots_twice_and_halts_cleanly", guests::uml_with_ifupdown)
            .with_guests(&[Vmm::UserModeLinux])
            .with_debian(),
        Test::new("guests::uml_with_networkd_boots_twice_and_halts_cleanly", guests::uml_with_networkd)
            .with_guests(&[Vmm::UserModeLinux])
            .with_debian(),
        Test::new("firmware::ipxe_loads_a_file", firmware::ipxe),
        Test::new("firmware::ovmf_loads_a_file", firmware::ovmf),
        Test::new("live::identifiers_are_limited_in_one_vm", identifiers_are_limited).with_debian(),
    ];
    let clients = clients![
        connman,
        udhcpc,
        dhclient_without_identifier,
        dhclient_with_duid,
        dhclient_with_hardware_address,
        dhcpcd,
        networkd_by_mac,
        networkd_by_duid,
        networkd_by_duid_only,
        network_manager,
        ifupdown,
    ];
    tests.extend(clients.into_iter().map(Test::with_debian));
    harness::main_at_once(Some(AT_ONCE), tests.into_iter().map(Test::as_root).collect())
}

/// A live system that reboots inside of one VM, faster than any real one: the fifth identifier has to wait (C5).
fn identifiers_are_limited() -> Result<()> {
    let _world = World::build()?;
    let client = client("networkd_by_duid")?;
    let disk = Station::disk(client, "live1")?;
    let mut station = Station::boot(client, "live", FIRST, &disk, &[])?;
    let address = station.address(0)?;
    for boot in 2..=4 {
        let since = station.now();
        station.machine.reboot(&Station::disk(client, &format!("live{boot}"))?)?;
        station.start()?;
        ensure!(station.address(since)? == address, "another address at boot {boot}");
        station.reaches(INTERNET)?;
    }
    station.dropped_nothing()?;
    station.machine.reboot(&Station::disk(client, "live5")?)?;
    station.start()?;
    let limited = || {
        station
            .softnet
            .counters()
            .is_ok_and(|now| now.from_vm.get("dhcp-client-id-limit").is_some_and(|n| *n > 0))
    };
    ensure!(until(limited), "the fifth passes: {}", station.report(0));
    Ok(())
}

/// On the managed network: lease, renewal, release, reboot, second boot, live system, clone.
fn boots(client: &'static Client) -> Result<()> {
    let _world = World::build()?;
    let disk = Station::disk(client, "disk")?;
    let mut station = Station::boot(client, "first", FIRST, &disk, &["--dhcp-lease-time=120"])?;
    let address = station.address(0)?;
    station.reaches(INTERNET)?;
    if let Some(renew) = client.renew {
        let since = station.now();
        station.machine.sh(renew)?;
        station.expect("renewal", since, SOON, |it| is_request(it, address))?;
        ensure!(station.address(since)? == address, "another address after a renewal");
        station.reaches(INTERNET)?;
    }
    if let Some(release) = client.release {
        let since = station.now();
        station.machine.sh(release)?;
        let is_release = |it: &Message| it.dhcp.message_type() == kind::RELEASE && it.dhcp.ciaddr == address;
        let message = station.expect("release", since, SOON, is_release)?;
        // dnsmasq ignores a RELEASE that names no server (RFC 2131, table 5): systemd-networkd 252 sends such.
        if message.dhcp.option(option::SERVER).is_some() {
            ensure!(until(|| !is_leased(FIRST)), "still leased: {}", station.report(since));
        }
        let since = station.now();
        station.start()?;
        ensure!(station.address(since)? == address, "another address after a release");
        station.reaches(INTERNET)?;
    }
    let since = station.now();
    station.machine.reboot(&disk)?;
    station.start()?;
    ensure!(station.address(since)? == address, "another address after a reboot");
    station.reaches(INTERNET)?;
    station.end()?;

    let station = Station::boot(client, "first", FIRST, &disk, &["--dhcp-lease-time=120"])?;
    ensure!(station.address(0)? == address, "another address at the second boot");
    station.reaches(INTERNET)?;
    // A clone beside it.
    let copy = disk.copy("copy")?;
    let clone = Station::boot(client, "clone", SECOND, &copy, &["--dhcp-lease-time=120"])?;
    ensure!(clone.address(0)? != address, "the clone has the template's address");
    clone.reaches(INTERNET)?;
    station.reaches(INTERNET)?;
    clone.end()?;
    station.end()?;

    for boot in 1..=5 {
        let live = Station::disk(client, &format!("live{boot}"))?;
        let station = Station::boot(client, "live", FIRST, &live, &["--dhcp-lease-time=120"])?;
        ensure!(station.address(0)? == address, "another address at boot {boot} of a live system");
        station.reaches(INTERNET)?;
        station.end()?;
    }
    Ok(())
}

/// For what a client does at once.
const SOON: Duration = Duration::from_secs(20);
/// For what it does in its own time: busybox knows no times of renewal and renews after half of the lease.
const IN_TIME: Duration = Duration::from_secs(130);

fn is_request(message: &Message, from: Ipv4Addr) -> bool {
    message.dhcp.message_type() == kind::REQUEST && message.dhcp.ciaddr == from
}

/// The gateway of the bridge.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 1);

/// On a bridge whose server tells clients to renew after 3 s and to rebind after 6 s. One that is asked nothing in
/// person for a while makes them rebind.
fn renews(client: &'static Client) -> Result<()> {
    let world = World::build()?;
    world.main.bridge("br1", &format!("{GATEWAY}/24"))?;
    let _service = Service::start(&world.main, GATEWAY, 80, "the bridge")?;
    let _server = server(&[])?;
    let disk = Station::disk(client, "disk")?;
    let station = Station::boot(client, "first", FIRST, &disk, &["--bridge=br1"])?;
    let address = station.address(0)?;
    let since = station.now();
    let renewal = |it: &Message| is_request(it, address) && it.destination == GATEWAY;
    station.expect("renewal", since, IN_TIME, renewal)?;
    ensure!(station.address(since)? == address, "another address after a renewal");
    run(
        "nft",
        &["add table ip lab; add chain ip lab in { type filter hook input priority 0; }; \
                  add rule ip lab in ip daddr 10.5.0.1 udp dport 67 drop"],
    )?;
    let since = station.now();
    if let Some(renew) = client.renew.filter(|_| !client.keeps_times) {
        station.machine.sh(renew)?;
    }
    let rebinding = |it: &Message| is_request(it, address) && it.destination == Ipv4Addr::BROADCAST;
    station.expect("rebinding", since, IN_TIME, rebinding)?;
    ensure!(station.address(since)? == address, "another address after rebinding");
    station.reaches(GATEWAY)?;
    station.end()
}

/// The server of `br1`. It files leases under client identifiers, as most do.
fn server(more: &[&str]) -> Result<Server> {
    let child = Command::new("dnsmasq")
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-hosts",
            "--user=root",
            "--no-ping",
            "--port=0",
        ])
        .args([
            "--pid-file=",
            "--interface=br1",
            "--except-interface=lo",
            "--bind-interfaces",
            "--dhcp-authoritative",
        ])
        .args(["--dhcp-range=10.5.0.10,10.5.0.99,255.255.255.0,120", "--dhcp-leasefile=/run/lab/br1.leases"])
        .args(["--dhcp-option=option:T1,3", "--dhcp-option=option:T2,6"])
        .args(more)
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Server(child))
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
