//! The program on the managed network and on bridges: what it sets up for its VM, and that nothing of it stays, however it
//! ends.
#![cfg(target_os = "linux")]

mod addresses;
mod boot;
mod bridge;
mod firewall;
mod keeper;
mod leases;
mod locks;
mod names;
mod passt;
mod stations;
mod surroundings;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use lab::deadline::{Deadline, until};
use lab::harness::{self, Test};
use lab::net::{HOST_ON_LAN, Host, INTERNET, World};
use lab::stage::run;
use lab::wire::{Arp, Dhcp, Ipv4, Mac, carries, dhcp_kind as kind, dhcp_option as option, udp};
use lab::{DhcpServer, Softnet, VmPort};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn main() -> ExitCode {
    // A user namespace with one user in it is not enough for dnsmasq, which becomes another.
    let mut tests = vec![
        Test::new("managed::an_exposed_port_leads_to_the_vm_while_it_runs", an_exposed_port_leads_to_the_vm)
            .as_root(),
        Test::new("managed::no_kind_of_death_leaves_anything_behind", no_kind_of_death_leaves_anything)
            .as_root(),
        Test::new("managed::a_disk_that_fills_up_leaves_nothing_behind", a_disk_that_fills_up).as_root(),
        Test::new("managed::a_taken_port_is_refused_before_anything_is_touched", a_taken_port_is_refused),
        Test::new("managed::a_lease_that_ends_takes_the_forward_along", a_lease_that_ends).as_root(),
        Test::new("managed::status_and_down_tell_what_they_see_and_do", status_and_down).as_root(),
        Test::new("managed::twenty_vms_at_once_have_twenty_addresses", twenty_vms_at_once).as_root(),
        Test::new("managed::an_address_that_another_vm_holds_is_refused", a_held_address_is_refused)
            .as_root(),
        Test::new("managed::a_host_only_vm_has_its_gateway_and_no_more", a_host_only_vm).as_root(),
        Test::new("managed::a_set_user_id_start_is_stopped_by_its_user", a_set_user_id_start).as_root(),
        Test::new("managed::what_is_read_only_is_named_with_the_way_out", where_switches_are_read_only)
            .as_root(),
        Test::new("managed::a_missing_program_is_named_with_its_package", a_missing_program_is_named)
            .as_root(),
        Test::new("bridge::a_new_tap_joins_and_goes", bridge::a_new_tap_joins_and_goes),
        Test::new("bridge::what_cannot_serve_is_refused", bridge::what_cannot_serve_is_refused),
        Test::new("bridge::a_lans_router_serves", stations::a_lans_router_serves).as_root(),
        Test::new(
            "bridge::a_dhcp_server_beside_the_host_serves",
            stations::a_dhcp_server_beside_the_host_serves,
        )
        .as_root(),
        Test::new(
            "bridge::a_server_that_is_not_believed_is_named",
            stations::a_server_that_is_not_believed_is_named,
        )
        .as_root(),
        Test::new(
            "bridge::a_tap_of_a_bridge_without_an_address_serves",
            stations::a_tap_of_a_bridge_without_an_address_serves,
        )
        .as_root(),
        Test::new(
            "bridge::a_router_that_would_be_a_guess_is_refused",
            stations::a_router_that_would_be_a_guess_is_refused,
        ),
        Test::new("bridge::a_spanning_tree_is_waited_for", stations::a_spanning_tree_is_waited_for),
    ];
    let leases = lab::tests![
        leases::{a_killed_workers_lease_is_given_back, the_next_start_gives_the_leases_of_the_killed_back},
        leases::{a_vm_that_comes_back_keeps_its_address, no_death_takes_a_lease_that_is_to_be_kept},
        leases::{a_lease_waits_for_a_server_that_was_killed_too, a_lease_is_given_back_once},
        leases::{a_lease_that_is_about_to_end_is_not_taken_over, a_request_in_the_servers_queue_is_waited_for},
        leases::{an_answer_that_finds_no_vm_is_given_back_too, an_answer_that_no_worker_lived_to_see_is_given_back_too},
        leases::{a_lease_that_no_monitor_lived_to_note_is_given_back_too, nobody_elses_lease_is_given_back},
        leases::{the_leases_of_many_dead_are_given_back_bit_by_bit},
    ];
    let keeper = lab::tests![
        keeper::{whatever_breaks_is_whole_within_five_seconds, a_server_that_reads_nothing_is_replaced, a_full_disk_keeps_nothing_from_being_repaired, starts_and_ends_are_no_damage},
        keeper::{the_children_of_a_dead_server_hold_nobody_up, no_death_of_a_keeper_is_the_last, the_server_owes_nothing_to_its_starter},
        keeper::{no_vm_hears_another_while_its_port_is_repaired, a_worker_that_lives_keeps_its_place, a_worker_that_outlives_its_monitor_loses_its_address, a_socket_that_closes_late_is_waited_for, a_port_that_another_program_has_is_named},
        keeper::{it_sleeps_while_no_vm_runs, the_server_tells_nothing_of_itself},
        locks::{no_user_can_lock_what_matters, a_wait_for_a_lock_ends_and_names_the_holder},
        locks::{a_process_that_looks_like_the_server_is_not_taken_for_it, status_serves_any_user},
        locks::{nobody_stops_a_set_user_id_start_inside_the_lock, a_set_user_id_start_changes_no_setting},
    ];
    let surroundings = lab::tests![
        surroundings::{h1_the_hosts_addresses_reach_the_filter_as_they_come_and_go},
        surroundings::{h2_ports_that_others_expose_reach_the_filter_in_every_mode},
        surroundings::{h3_the_host_is_ready_when_the_vm_hears_of_its_address, h3_what_is_for_another_address_does_not_reach_the_vm, a_start_and_a_look_at_filters_forget_no_neighbour},
        surroundings::{h10_the_vm_that_the_server_contradicts_is_ended, an_nft_that_fails_at_everything_tells_nothing_of_the_kernel},
    ];
    let addresses = lab::tests![
        addresses::{a_full_network_says_so, b9_a_fixed_address_serves_with_and_without_dhcp, the_pool_never_gives_a_fixed_address_away},
        boot::{h11_tftp_shows_a_vm_its_own_directory_and_nothing_else, what_cannot_be_booted_is_refused},
        names::{h11_names_of_vms_are_for_the_host_alone, h11_no_vm_learns_names_of_another_network_by_the_hosts_resolver},
        names::{a_name_is_one_vms_while_it_runs, a_network_with_the_name_of_a_domain_has_no_names},
        names::{a_set_user_id_start_names_no_vm, the_server_of_names_is_replaced, a_taken_port_of_names_is_said_and_tried_again},
        boot::{a_network_learns_to_boot_while_vms_run, qemu_boots_over_the_network},
        addresses::{an_address_that_a_vm_cannot_have_is_refused, a_fixed_address_is_free_again_after_any_death},
        addresses::{a_set_user_id_start_takes_no_address_that_another_has, d5_resolvers_and_search_domains_are_the_vms_own, the_server_outlives_the_end_of_a_vm_with_resolvers},
        addresses::{a_start_that_replaces_the_server_waits_for_it, search_domains_that_are_taken_arrive},
    ];
    let firewalls = lab::tests![
        firewall::{ufw_is_opened_as_told, firewalld_is_opened_as_told},
        firewall::{iptables_is_opened_as_told, legacy_iptables_is_opened_as_told},
        firewall::{a_filter_that_comes_later_is_named, a_filter_behind_the_routing_is_named},
    ];
    let passt = lab::tests![passt::{serves_a_user_without_privilege, what_it_needs_is_said}];
    let own =
        leases.into_iter().chain(keeper).chain(surroundings).chain(addresses).chain(firewalls).chain(passt);
    tests.extend(own.map(Test::as_root));
    harness::main(tests)
}

const SOFTNET: &str = env!("CARGO_BIN_EXE_softnet");
const FIRST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SECOND: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// A VM that speaks for itself, behind the program.
struct Vm {
    port: VmPort,
    softnet: Softnet,
    mac: Mac,
    ready: serde_json::Value,
}

impl Vm {
    fn start(mac: Mac, arguments: &[&str]) -> Result<Vm> {
        let (port, theirs) = VmPort::pair()?;
        let mut softnet = start(theirs, mac, arguments)?;
        let ready = softnet.ready()?;
        Ok(Vm { port, softnet, mac, ready })
    }

    /// The whole exchange with the server of the network.
    fn lease(&self) -> Result<Ipv4Addr> {
        let offer = self.offer()?;
        self.request(&offer)?;
        Ok(DhcpServer::told(&self.port, kind::ACK, 7)?.yiaddr)
    }

    fn offer(&self) -> Result<Dhcp> {
        self.port.send(&Dhcp::client(kind::DISCOVER, 7, self.mac).broadcast())?;
        DhcpServer::told(&self.port, kind::OFFER, 7)
    }

    fn request(&self, offer: &Dhcp) -> Result<()> {
        let server = offer.option(option::SERVER).context("no server")?;
        let request = Dhcp::client(kind::REQUEST, 7, self.mac)
            .with(option::REQUESTED_ADDRESS, &offer.yiaddr.octets())
            .with(option::SERVER, server);
        self.port.send(&request.broadcast())
    }

    fn gateway(&self) -> Result<Ipv4Addr> {
        Ok(self.ready["gateway"].as_str().context("no gateway")?.parse()?)
    }

    /// Sends datagrams to `to` from `host` until one arrives at the VM, which answers for its address.
    fn is_reached(&self, host: &Host, to: SocketAddrV4, address: Ipv4Addr) -> Result<()> {
        let sender = host.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        let deadline = Deadline::default();
        while !deadline.left().is_zero() {
            // Before the forward is there, the port is bound to nobody who reads.
            let _ = sender.send_to(b"to the VM", to);
            let soon = Deadline::after(std::time::Duration::from_millis(50));
            while let Some(frame) = self.port.recv(soon)? {
                if carries(&frame, b"to the VM") {
                    return Ok(());
                }
                if frame.get(12..14) == Some(&[8, 6]) {
                    self.answer_arp(&frame, address)?;
                }
            }
        }
        bail!("nothing that was sent to {to} arrived: {}", self.softnet.log())
    }

    /// Answers the ARP request in `frame` for the VM's address.
    fn answer_arp(&self, frame: &[u8], address: Ipv4Addr) -> Result<()> {
        let gateway = Mac(*frame[6..].first_chunk().context("cut short")?);
        self.port.send(&Arp::reply(self.mac, address, gateway, self.gateway()?).frame())
    }
}

fn start(theirs: OwnedFd, mac: Mac, arguments: &[&str]) -> Result<Softnet> {
    Softnet::start(Path::new(SOFTNET), theirs, &mac.to_string(), arguments)
}

/// Runs the program to its end: exit code, standard output, standard error.
fn softnet(arguments: &[&str]) -> Result<(i32, String, String)> {
    let output = Command::new(SOFTNET).args(arguments).stdin(Stdio::null()).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
}

fn refusal(mac: Mac, arguments: &[&str]) -> Result<String> {
    let (_port, theirs) = VmPort::pair()?;
    let mut softnet = start(theirs, mac, arguments)?;
    let status = softnet.wait()?;
    ensure!(status.code() == Some(2), "{status}: {}", softnet.log());
    let log = softnet.log();
    ensure!(log.lines().count() == 1, "more than one line: {log}");
    Ok(log)
}

fn table() -> String {
    run("nft", &["list", "table", "ip", "softnet-softnet0"]).unwrap_or_default()
}

/// The processes that `parent` started.
fn children(parent: Pid) -> Result<Vec<Pid>> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    std::fs::read_to_string(path)?
        .split_ascii_whitespace()
        .map(|pid| Ok(Pid::from_raw(pid.parse()?)))
        .collect()
}

/// The monitor's one lasting child. An nft that it has just run may still be about.
fn worker_of(monitor: Pid) -> Result<Pid> {
    let mut found = Vec::new();
    ensure!(
        until(|| {
            found = children(monitor).unwrap_or_default();
            found.len() == 1
        }),
        "not one worker: {found:?}"
    );
    Ok(found[0])
}

fn is_gone(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// What a running Softnet has on the host, beside the network itself.
fn traces() -> Result<String> {
    let links = run("ip", &["-oneline", "link"])?;
    let taps = links.lines().filter(|link| link.contains("snt")).collect::<String>();
    let files = run("find", &["/run/softnet/softnet0/ports", "/run/softnet/softnet0/leases", "-type", "f"])?;
    let forwards = table().lines().filter(|line| line.contains("elements")).collect::<String>();
    Ok(format!("{taps}{files}{forwards}"))
}

fn an_exposed_port_leads_to_the_vm() -> Result<()> {
    let world = World::build()?;
    let mut vm = Vm::start(FIRST, &["--expose=5000:53/udp,127.0.0.1:5001:53/udp"])?;
    ensure!(vm.ready["mode"] == "network" && vm.ready["subnet"] == "192.168.64.0/24", "{}", vm.ready);
    ensure!(UdpSocket::bind("0.0.0.0:5000").is_err(), "the port is not kept from others");
    let address = vm.lease()?;
    for (host, to) in [
        (&world.lan, SocketAddrV4::new(HOST_ON_LAN, 5000)),
        (&world.main, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5000)),
        (&world.main, SocketAddrV4::new(HOST_ON_LAN, 5000)),
        (&world.main, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5001)),
    ] {
        vm.is_reached(host, to, address)
            .with_context(|| format!("{to} {:?} {:?}", host, vm.softnet.counters()))?;
    }
    // The monitor holds nothing of the VM's: no TAP, no socket.
    let monitor = vm.softnet.pid();
    let held = run("ls", &["-l", &format!("/proc/{monitor}/fd")])?;
    ensure!(!held.contains("/dev/net/tun"), "{held}");
    // What it may do: CAP_KILL (bit 5) and CAP_NET_ADMIN (bit 12), for the programs that it starts too.
    let status = std::fs::read_to_string(format!("/proc/{monitor}/status"))?;
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000001020",
        "CapEff:\t0000000000001020",
        "CapBnd:\t0000000000001020",
        "NoNewPrivs:\t1",
    ] {
        ensure!(status.contains(line), "{line} is not in {status}");
    }
    let status = vm.softnet.stop()?;
    ensure!(status.success(), "{status}: {}", vm.softnet.log());
    ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    ensure!(vm.port.is_closed());
    UdpSocket::bind("0.0.0.0:5000").context("the port is free again")?;
    Ok(())
}

fn no_kind_of_death_leaves_anything() -> Result<()> {
    let _world = World::build()?;
    type Deed = fn(&mut Vm, Pid, Pid) -> Result<()>;
    let deaths: &[(&str, bool, Deed)] = &[
        ("SIGTERM", true, |vm, _, _| vm.softnet.signal(Signal::SIGTERM)),
        ("SIGINT to both, as from a terminal", true, |_, monitor, worker| {
            kill(worker, Signal::SIGINT)?;
            Ok(kill(monitor, Signal::SIGINT)?)
        }),
        ("the VM's end", true, |vm, _, _| {
            vm.port = VmPort::pair()?.0;
            Ok(())
        }),
        ("the worker killed", true, |_, _, worker| Ok(kill(worker, Signal::SIGKILL)?)),
        ("the worker crashed", true, |_, _, worker| Ok(kill(worker, Signal::SIGABRT)?)),
        ("the monitor killed", false, |_, monitor, _| Ok(kill(monitor, Signal::SIGKILL)?)),
        ("both killed", false, |_, monitor, worker| {
            kill(monitor, Signal::SIGSTOP)?;
            kill(worker, Signal::SIGKILL)?;
            Ok(kill(monitor, Signal::SIGKILL)?)
        }),
    ];
    for (death, at_once, deed) in deaths {
        let mut vm = Vm::start(FIRST, &["--expose=5000:80"]).context(*death)?;
        let address = vm.lease().context(*death)?;
        ensure!(until(|| table().contains(&format!("{address} . 80"))), "{death}: no forward\n{}", table());
        let monitor = vm.softnet.pid();
        let worker = worker_of(monitor).context(*death)?;
        deed(&mut vm, monitor, worker).context(*death)?;
        vm.softnet.wait().context(*death)?;
        ensure!(until(|| is_gone(worker) && is_gone(monitor)), "{death}: a process stayed");
        if !at_once {
            let second = Vm::start(SECOND, &[]).context(*death)?;
            ensure!(!table().contains("elements"), "{death}: {}", table());
            drop(second.port);
            let mut softnet = second.softnet;
            softnet.wait()?;
        }
        ensure!(traces()?.is_empty(), "{death}: left behind: {}", traces()?);
        TcpListener::bind("0.0.0.0:5000").with_context(|| format!("{death}: the port is not free"))?;
    }
    Ok(())
}

/// The disk is full when the lease comes, and when the end does.
fn a_disk_that_fills_up() -> Result<()> {
    let _world = World::build()?;
    std::fs::create_dir("/run/softnet")?;
    run("mount", &["-t", "tmpfs", "-o", "mode=755,size=256k", "none", "/run/softnet"])?;
    type End = fn(&Vm) -> Result<()>;
    let ends: [(&str, End); 2] = [
        ("SIGTERM", |vm| vm.softnet.signal(Signal::SIGTERM)),
        ("the worker killed", |vm| Ok(kill(worker_of(vm.softnet.pid())?, Signal::SIGKILL)?)),
    ];
    for (name, end) in ends {
        let mut vm = Vm::start(FIRST, &["--expose=5000:80"]).context(name)?;
        let filler = Path::new("/run/softnet/filler");
        let mut file = std::fs::File::create(filler)?;
        let full = std::iter::repeat_with(|| file.write_all(&[0; 4096])).find_map(Result::err);
        ensure!(full.is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
        vm.lease().context(name)?;
        // The server cannot note the lease either, so nobody can be sure whose the address is.
        let said = || vm.softnet.log().contains("cannot record the VM's address");
        ensure!(until(said), "{name}: not a word of it: {}", vm.softnet.log());
        ensure!(!table().contains("elements"), "{name}: a forward leads to an address that is not noted");
        end(&vm)?;
        vm.softnet.wait().context(name)?;
        ensure!(traces()?.is_empty(), "{name}: left behind: {}", traces()?);
        TcpListener::bind("0.0.0.0:5000").with_context(|| format!("{name}: the port is not free"))?;
        std::fs::remove_file(filler)?;
    }
    Ok(())
}

fn a_taken_port_is_refused() -> Result<()> {
    let taken = TcpListener::bind("0.0.0.0:0")?;
    let port = taken.local_addr()?.port();
    let log = refusal(FIRST, &[&format!("--expose={port}:80")])?;
    ensure!(log.contains("--expose") && log.contains("is taken by another program"), "{log}");
    let log = refusal(FIRST, &["--expose=192.0.2.1:8080:80"])?;
    ensure!(log.contains("192.0.2.1 is not an address of this host"), "{log}");
    ensure!(Host::main()?.ip("-oneline link")?.lines().count() == 1, "something was touched");
    ensure!(!Path::new("/run/softnet").exists());
    Ok(())
}

fn a_lease_that_ends() -> Result<()> {
    let vm = Vm::start(FIRST, &["--expose=5000:80"])?;
    let address = vm.lease()?;
    ensure!(until(|| table().contains(&format!("{address} . 80"))), "{}", table());
    let second = Vm::start(SECOND, &["--expose=5001:80"])?;
    ensure!(second.lease()? != address);
    let release = Dhcp { ciaddr: address, ..Dhcp::client(kind::RELEASE, 8, FIRST) }
        .with(option::SERVER, &vm.gateway()?.octets());
    let gateway = Mac(*hex(&run("ip", &["-oneline", "link", "show", "softnet0"])?)
        .context("no MAC")?
        .first_chunk()
        .context("short")?);
    vm.port.send(&release.packet(address, vm.gateway()?).frame(gateway, FIRST))?;
    ensure!(until(|| !table().contains(&format!("{address} . 80"))), "{}", table());
    ensure!(until(|| table().contains(". 5001 :")), "the other VM's forward went too: {}", table());
    Ok(())
}

fn twenty_vms_at_once() -> Result<()> {
    let mut starting = Vec::new();
    for last in 1..=20 {
        let (port, theirs) = VmPort::pair()?;
        let mac = Mac([2, 0, 0, 0, 0, last]);
        starting.push((
            port,
            mac,
            start(theirs, mac, &["--expose", &format!("{}:80", 5000 + u16::from(last))])?,
        ));
    }
    let mut vms = Vec::new();
    for (port, mac, mut softnet) in starting {
        let ready = softnet.ready()?;
        vms.push(Vm { port, softnet, mac, ready });
    }
    let addresses = vms.iter().map(Vm::lease).collect::<Result<BTreeSet<_>>>()?;
    ensure!(addresses.len() == 20, "{addresses:?}");
    let forwards = || addresses.iter().filter(|address| table().contains(&format!("{address} . 80"))).count();
    ensure!(until(|| forwards() == 20), "{} of 20 forwards:\n{}", forwards(), table());
    // The one that made the network ends, and the others do not notice.
    ensure!(vms.remove(0).softnet.stop()?.success());
    for vm in &vms {
        vm.lease()?;
    }
    ensure!(forwards() == 19, "{}", table());
    Ok(())
}

fn a_held_address_is_refused() -> Result<()> {
    // A pool of five, and somebody alive holds each of them.
    let mut vm = Vm::start(FIRST, &["--subnet=10.9.0.0/29"])?;
    let hold = || -> Result<Vec<_>> {
        (2..=6)
            .map(|last| {
                std::fs::write(format!("/run/softnet/softnet0/leases/10.9.0.{last}"), "somebody\n")?;
                let file =
                    std::fs::File::create(format!("/run/softnet/locks/softnet0/leases/10.9.0.{last}"))?;
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
            })
            .collect()
    };
    let held = hold()?;
    // Whoever leaves may take a moment.
    let address = vm.lease()?;
    let record =
        || std::fs::read_to_string(format!("/run/softnet/softnet0/ports/{FIRST}")).unwrap_or_default();
    ensure!(!record().contains("address "), "{}", record());
    drop(held);
    ensure!(until(|| record().contains(&format!("address {address}\n"))), "{}", vm.softnet.log());
    ensure!(vm.softnet.stop()?.success());
    // Whoever stays has it.
    let mut vm = Vm::start(FIRST, &["--subnet=10.9.0.0/29"])?;
    let _held = hold()?;
    vm.lease()?;
    let status = vm.softnet.wait()?;
    ensure!(
        status.code() == Some(1) && vm.softnet.log().contains("is already held by"),
        "{status} {}",
        vm.softnet.log()
    );
    ensure!(vm.port.is_closed());
    Ok(())
}

/// The MAC address in a line of `ip link`.
fn hex(line: &str) -> Option<Vec<u8>> {
    let text = line.split("link/ether ").nth(1)?.split(' ').next()?;
    text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect()
}

fn status_and_down() -> Result<()> {
    let (code, said, _) = softnet(&["network", "status"])?;
    ensure!(code == 0 && said.starts_with("there is no managed network"), "{code} {said}");
    ensure!(softnet(&["network", "status", "--json"])?.1 == "[]\n");
    let mut vm = Vm::start(FIRST, &["--expose=5000:80"])?;
    let address = vm.lease()?.to_string();
    let shown = || softnet(&["network", "status"]).map(|(_, shown, _)| shown).unwrap_or_default();
    ensure!(until(|| shown().contains(&format!("0.0.0.0:5000 -> {address}:80 tcp"))), "{}", shown());
    ensure!(shown().contains(&format!("{FIRST} {address} on snt0")), "{}", shown());
    let (_, json, _) = softnet(&["network", "status", "--json"])?;
    let networks: serde_json::Value = serde_json::from_str(&json)?;
    let (network, member) = (&networks[0], &networks[0]["vms"][0]);
    ensure!(network["name"] == "softnet0" && network["gateway"] == vm.ready["gateway"], "{json}");
    ensure!(network["bridge"]["up"] == true && network["dnsmasq"].is_u64(), "{json}");
    ensure!(member["mac"] == FIRST.to_string() && member["address"] == *address, "{json}");
    ensure!(member["exposed"][0]["port"] == 5000 && member["exposed"][0]["vm_port"] == 80, "{json}");
    let (code, _, refused) = softnet(&["network", "down"])?;
    ensure!(code == 1 && refused.contains("has 1 running VM(s); stop them first"), "{code} {refused}");
    vm.softnet.stop()?;
    let (code, said, _) = softnet(&["network", "down"])?;
    ensure!(code == 0 && said.contains("network softnet0 was removed"), "{code} {said}");
    ensure!(said.contains("IPv4 forwarding was turned off again"), "{said}");
    ensure!(softnet(&["network", "down"])?.1 == "there is no network softnet0\n");
    Ok(())
}

/// As in a container, where the switches are what its launcher made them.
fn where_switches_are_read_only() -> Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")?;
    run("mount", &["--bind", "/proc/sys", "/proc/sys"])?;
    run("mount", &["-o", "remount,ro,bind", "/proc/sys"])?;
    let error = Vm::start(FIRST, &[]).err().context("it started without forwarding")?;
    let text = format!("{error:#}");
    ensure!(text.contains("--sysctl net.ipv4.ip_forward=1"), "{text}");
    ensure!(text.matches("may not be written").count() == 1 && !text.contains("os error"), "{text}");
    let links = run("ip", &["-oneline", "link"])?;
    ensure!(
        !links.contains("softnet0") && !Path::new("/run/softnet/softnet0").exists(),
        "left behind: {links}"
    );
    run("umount", &["/proc/sys"])?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    run("mount", &["--bind", "/proc/sys", "/proc/sys"])?;
    run("mount", &["-o", "remount,ro,bind", "/proc/sys"])?;
    let vm = Vm::start(FIRST, &[])?;
    vm.lease()?;
    ensure!(vm.softnet.log().contains("127.0.0.1"), "{}", vm.softnet.log());
    Ok(())
}

fn a_host_only_vm() -> Result<()> {
    let _world = World::build()?;
    let nat = Vm::start(SECOND, &[])?;
    let mut vm = Vm::start(FIRST, &["--vm-net-type=host", "--expose=5000:53/udp"])?;
    ensure!(vm.ready["gateway"] != nat.ready["gateway"], "NAT and host-only VMs share a network");
    vm.port.send(&Dhcp::client(kind::DISCOVER, 7, FIRST).broadcast())?;
    let offer = DhcpServer::told(&vm.port, kind::OFFER, 7)?;
    ensure!(offer.option(option::ROUTER).is_none() && offer.option(option::RESOLVERS).is_none(), "{offer:?}");
    let address = vm.lease()?;
    vm.is_reached(&Host::main()?, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5000), address)?;
    let mac = hex(&run("ip", &["-oneline", "link", "show", "softnet_host0"])?).context("no MAC")?;
    let gateway = Mac(*mac.first_chunk().context("short")?);
    let question = Ipv4::new(address, INTERNET, udp((address, 4000), (INTERNET, 80), b"?"));
    let before = vm.softnet.counters()?;
    vm.port.send(&question.frame(gateway, FIRST))?;
    ensure!(until(|| vm.softnet.counters().is_ok_and(|now| now.drops_since(&before).len() == 1)));
    ensure!(vm.softnet.stop()?.success());
    let (code, said, _) = softnet(&["network", "down", "--network=softnet_host0"])?;
    ensure!(code == 0 && said.contains("network softnet_host0 was removed"), "{code} {said}");
    Ok(())
}

fn a_set_user_id_start() -> Result<()> {
    std::fs::create_dir("/run/suid")?;
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", "/run/suid"])?;
    run("install", &["-m", "4755", SOFTNET, "/run/suid/softnet"])?;
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups", "--"];
    let (port, theirs) = VmPort::pair()?;
    let mut command = Command::new("setpriv");
    command.args(user).args(["/run/suid/softnet", "--vm-fd=0", "--expose=5000:53/udp"]).stdin(theirs);
    command.args([&format!("--vm-mac-address={FIRST}"), Softnet::READY_FLAG]);
    let mut softnet = Softnet::spawn(command)?;
    let ready = softnet.ready()?;
    let mut vm = Vm { port, softnet, mac: FIRST, ready };
    let address = vm.lease()?;
    vm.is_reached(&Host::main()?, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5000), address)?;
    let worker = worker_of(vm.softnet.pid())?;
    let status = std::fs::read_to_string(format!("/proc/{worker}/status"))?;
    ensure!(status.contains("Uid:\t1000\t1000\t1000\t1000"), "{status}");
    let refused =
        Command::new("setpriv").args(user).args(["/run/suid/softnet", "network", "down"]).output()?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");

    let pid = vm.softnet.pid().to_string();
    let stop: Vec<&str> = user.into_iter().chain(["kill", "-INT", &pid]).collect();
    run("setpriv", &stop)?;
    ensure!(vm.softnet.wait()?.success(), "{}", vm.softnet.log());
    ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    Ok(())
}

fn a_missing_program_is_named() -> Result<()> {
    for (program, package) in [("nft", "nftables"), ("dnsmasq", "dnsmasq-base")] {
        let hidden: Vec<String> = ["/usr/sbin", "/usr/bin"]
            .map(|directory| format!("{directory}/{program}"))
            .into_iter()
            .filter(|path| Path::new(path).exists())
            .collect();
        for path in &hidden {
            run("mount", &["--bind", "/dev/null", path])?;
        }
        let (_port, theirs) = VmPort::pair()?;
        let mut softnet = start(theirs, FIRST, &[])?;
        let status = softnet.wait()?;
        let wanted = format!(
            "{program} is not installed in /usr/sbin, /usr/bin, /sbin, /bin; install it with `apt install {package}`"
        );
        ensure!(until(|| softnet.log().contains(&wanted)), "{}", softnet.log());
        ensure!(status.code() == Some(1), "{status}");
        ensure!(Host::main()?.ip("-oneline link")?.lines().count() == 1, "something was touched");
        for path in &hidden {
            run("umount", &[path])?;
        }
    }
    Ok(())
}
