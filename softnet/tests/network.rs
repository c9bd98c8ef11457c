//! The managed network with the real kernel, nft and dnsmasq: it becomes whole from any state, and goes without a trace.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::harness::{self, Test};
use lab::net::{HOST_ON_LAN, Host, INTERNET, LAN, World};
use lab::stage::run;
use lab::{Service, hello};
use softnet::config::NetworkName;
use softnet::config::client::ClientSettings;
use softnet::config::expose::Expose;
use softnet::host::forwarder::{Forward, Op};
use softnet::host::network::{
    self, Error, Forwarding, Member, Membership, NetworkConfig, Plan, down, status,
};
use softnet_filter::{MacAddr, NetType};

#[path = "network/faults.rs"]
mod faults;
#[path = "network/guard.rs"]
mod guard;
#[path = "network/rules.rs"]
mod rules;

fn main() -> ExitCode {
    // The network's keeper is the program that first needed it, started again.
    if let Some(status) = network::keeper::as_asked() {
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    // A user namespace with one user in it is not enough for dnsmasq, which becomes another.
    let mut tests = vec![
        Test::new("network::is_made_and_goes_without_a_trace", is_made_and_goes_without_a_trace).as_root(),
        Test::new("network::twenty_starts_at_once_make_one", twenty_starts_at_once_make_one).as_root(),
        Test::new("network::avoids_the_hosts_routes", avoids_the_hosts_routes).as_root(),
        Test::new("network::other_peoples_interfaces_are_left_alone", other_peoples_interfaces),
        Test::new("network::what_disagrees_is_refused", what_disagrees_is_refused).as_root(),
        Test::new("network::forwarding_is_restored_unless_it_is_needed", forwarding_is_restored).as_root(),
        Test::new("network::vms_reach_out_and_are_not_reached", vms_reach_out_and_are_not_reached).as_root(),
        Test::new("network::dhcp_serves_every_vm_and_one_address_a_mac", dhcp_serves_every_vm).as_root(),
        Test::new("network::a_host_only_network_has_no_way_out", a_host_only_network_has_no_way_out)
            .as_root(),
        Test::new("network::status_names_the_hosts_own_firewall", status_names_the_firewall).as_root(),
        Test::new("expose::reaches_the_vm_from_everywhere", reaches_the_vm_from_everywhere).as_root(),
        Test::new("expose::follows_the_lease", follows_the_lease).as_root(),
        Test::new("expose::a_dead_members_forwards_go_at_the_next_start", a_dead_members_forwards_go)
            .as_root(),
        Test::new("member::one_mac_and_one_address_a_vm", one_mac_and_one_address_a_vm).as_root(),
    ];
    tests.extend(faults::tests());
    tests.extend(guard::tests());
    tests.extend(rules::tests());
    harness::main(tests)
}

const PATIENCE: Duration = Duration::from_secs(5);
/// For what must not happen: enough for a packet that was let through, too short to slow the tests down.
const IMPATIENCE: Duration = Duration::from_millis(300);

fn config() -> NetworkConfig {
    NetworkConfig {
        name: NetworkName::default_for(NetType::Nat),
        subnet: None,
        net_type: NetType::Nat,
        lease_time: network::DEFAULT_LEASE_TIME,
        tftp: false,
        names: false,
    }
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn member(last: u8) -> Member {
    Member {
        mac: mac(last),
        exposes: Vec::new(),
        release: true,
        connections: softnet::config::DEFAULT_CONNECTIONS,
        name: None,
        client: ClientSettings::default(),
    }
}

/// Notes a lease in the server's file, as the server does.
fn lease(name: &NetworkName, last: u8, address: Ipv4Addr) -> Result<()> {
    let path = format!("/run/softnet/{name}/dnsmasq.leases");
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
    Ok(writeln!(file, "0 {} {address} * *", mac(last))?)
}

fn join(last: u8) -> Result<Membership> {
    Ok(Membership::join(&config(), &member(last))?)
}

/// A VM without a filter: a host whose cable ends in the bridge, as a TAP would.
struct Vm {
    host: Host,
    membership: Membership,
}

impl Vm {
    fn new(last: u8, config: &NetworkConfig) -> Result<Vm> {
        let mut membership = Membership::join(config, &member(last))?;
        let main = Host::main()?;
        let host = Host::new(&format!("vm{last}"))?;
        let port = format!("port{last}");
        main.ip(&format!("link add {port} type veth peer name eth0 netns vm{last}"))?;
        host.ip(&format!("link set eth0 address {} up", mac(last)))?;
        membership.attach(&port, true)?;
        Ok(Vm { host, membership })
    }

    fn with_address(last: u8, config: &NetworkConfig) -> Result<(Vm, Ipv4Addr)> {
        let mut vm = Vm::new(last, config)?;
        let plan = vm.membership.plan().clone();
        let address = Ipv4Addr::from_bits(plan.subnet.network().to_bits() + 100 + u32::from(last));
        vm.host.ip(&format!("addr add {address}/{} dev eth0", plan.subnet.prefix_len()))?;
        vm.host.ip(&format!("route add default via {}", plan.gateway().addr()))?;
        lease(&config.name, last, address)?;
        vm.membership.set_address(Some(address))?;
        Ok((vm, address))
    }

    fn expose(&mut self, text: &str, to: Ipv4Addr) -> Result<Forward> {
        let forward = Forward { expose: text.parse::<Expose>()?, to };
        self.membership.apply(&[Op::Install(forward)])?;
        Ok(forward)
    }

    /// Asks for an address as a guest does, with this client identifier, and returns it.
    fn dhcp(&self, client_id: &str) -> Result<String> {
        let script = "/run/lab/lease";
        std::fs::write(
            script,
            "#!/bin/sh\n[ \"$1\" = bound ] && echo \"$ip router=$router dns=$dns\"\nexit 0\n",
        )?;
        run("chmod", &["755", script])?;
        let id = format!("0x3d:{client_id}");
        let arguments = ["-i", "eth0", "-n", "-q", "-f", "-t", "20", "-T", "1", "-x", &id, "-s", script];
        let output = self.host.run(|| Command::new("busybox").arg("udhcpc").args(arguments).output())??;
        ensure!(output.status.success(), "no lease: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

fn hello_from(host: &Host, to: SocketAddrV4) -> Result<String> {
    host.run(|| hello(to, PATIENCE))?.with_context(|| format!("{to}"))
}

fn unreachable_from(host: &Host, to: SocketAddrV4) -> Result<()> {
    match host.run(|| hello(to, IMPATIENCE))? {
        Ok(answer) => bail!("{to} answered: {answer}"),
        Err(_) => Ok(()),
    }
}

fn whole(name: &NetworkName) -> Result<network::Status> {
    let status = status(name)?.context("the network has no status")?;
    let is_whole = status.bridge.as_ref().is_some_and(|bridge| bridge.up)
        && status.dnsmasq.is_some()
        && status.table != Some(false);
    ensure!(is_whole, "not whole:\n{status}");
    Ok(status)
}

fn traces() -> Result<String> {
    let links = run("ip", &["-oneline", "link"])?;
    let tables = run("nft", &["list", "tables"])?;
    let files =
        run("find", &["/run/softnet", "-mindepth", "1", "-not", "-name", "lock", "-not", "-name", "locks"])?;
    let processes = run("ps", &["-A", "-o", "comm="])?;
    let mut traces = String::new();
    traces += if links.contains("softnet") { "bridge " } else { "" };
    traces += &tables;
    traces += &files;
    traces += if processes.contains("dnsmasq") { "dnsmasq" } else { "" };
    Ok(traces)
}

fn is_made_and_goes_without_a_trace() -> Result<()> {
    let name = config().name;
    ensure!(status(&name)?.is_none());
    ensure!(
        down(&name, false)?
            == network::Down { existed: false, cut_off: 0, forwarding: Forwarding::Untouched }
    );
    let (plan, gateway) = network::ensure(&config())?;
    ensure!(gateway.address == plan.gateway().addr() && gateway.mac == plan.mac());
    let shown = whole(&name)?.to_string();
    for part in ["softnet0 (nat)", "192.168.64.0/24", "192.168.64.1", "600 s", "no VM is attached"] {
        ensure!(shown.contains(part), "{part} is missing in:\n{shown}");
    }
    ensure!(down(&name, false)?.existed);
    ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    ensure!(!down(&name, false)?.existed);
    Ok(())
}

fn twenty_starts_at_once_make_one() -> Result<()> {
    let members: Vec<Membership> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..20).map(|last| scope.spawn(move || join(last))).collect();
        starts.into_iter().map(|start| start.join().expect("a start panicked")).collect::<Result<_>>()
    })?;
    let status = whole(&config().name)?;
    ensure!(status.members.len() == 20);
    ensure!(members.iter().all(|member| member.plan() == &status.plan));
    let running = run("ps", &["-A", "-o", "comm="])?.matches("dnsmasq").count();
    ensure!(running == 1, "{running} dnsmasq run");
    drop(members);
    let status = whole(&config().name)?;
    ensure!(status.members.is_empty(), "the network survives its members, not the other way round");
    Ok(())
}

fn avoids_the_hosts_routes() -> Result<()> {
    let main = Host::main()?;
    main.ip("link add lan type veth peer name lan-peer")?;
    main.ip("addr add 192.168.64.7/23 dev lan")?;
    main.ip("link set lan up")?;
    let taken = NetworkConfig { subnet: Some("192.168.65.0/24".parse()?), ..config() };
    let text = network::ensure(&taken).err().context("a taken subnet was accepted")?.to_string();
    ensure!(text.contains("192.168.65.0/24 overlaps 192.168.64.0/23"), "{text}");
    let (plan, _) = network::ensure(&config())?;
    ensure!(plan.subnet == "192.168.66.0/24".parse()?, "{}", plan.subnet);
    let second = NetworkConfig { name: "second".parse()?, ..config() };
    let (plan, _) = network::ensure(&second)?;
    ensure!(plan.subnet == "192.168.67.0/24".parse()?, "{}", plan.subnet);
    Ok(())
}

fn other_peoples_interfaces() -> Result<()> {
    let main = Host::main()?;
    main.ip("link add softnet0 type veth")?;
    ensure!(matches!(network::ensure(&config()), Err(Error::Foreign(_))));
    ensure!(matches!(down(&config().name, true), Err(Error::Foreign(_))));
    main.ip("link del softnet0")?;
    main.bridge("softnet0", "10.0.0.1/24")?;
    ensure!(matches!(network::ensure(&config()), Err(Error::Foreign(_))));
    ensure!(matches!(down(&config().name, true), Err(Error::Foreign(_))));
    ensure!(main.ip("addr show softnet0")?.contains("10.0.0.1/24"));
    Ok(())
}

fn what_disagrees_is_refused() -> Result<()> {
    network::ensure(&NetworkConfig { subnet: Some("10.7.0.0/24".parse()?), ..config() })?;
    network::ensure(&config())?;
    let other = NetworkConfig { subnet: Some("10.8.0.0/24".parse()?), ..config() };
    ensure!(matches!(network::ensure(&other), Err(Error::SubnetDiffers { .. })));
    let host = NetworkConfig { net_type: NetType::Host, ..config() };
    ensure!(matches!(network::ensure(&host), Err(Error::TypeDiffers { present: "nat", .. })));
    let mut member = join(1)?;
    let address = Ipv4Addr::new(10, 7, 0, 9);
    lease(&config().name, 1, address)?;
    member.set_address(Some(address))?;
    ensure!(matches!(down(&config().name, false), Err(Error::InUse { count: 1, .. })));
    ensure!(down(&config().name, true)?.cut_off == 1);
    ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    // Whoever was cut off has no part in a network that is made anew under the name.
    let mut newcomer = join(1)?;
    let forward = Forward { expose: "8080:80".parse()?, to: address };
    ensure!(matches!(member.apply(&[Op::Install(forward)]), Err(Error::Gone(_))));
    ensure!(matches!(member.set_address(None), Err(Error::Gone(_))));
    drop(member);
    lease(&config().name, 1, Ipv4Addr::new(192, 168, 64, 9))?;
    newcomer.set_address(Some(Ipv4Addr::new(192, 168, 64, 9)))?;
    ensure!(whole(&config().name)?.members.len() == 1);
    drop(newcomer);
    ensure!(down(&config().name, false)?.existed);
    ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    Ok(())
}

fn forwarding_is_restored() -> Result<()> {
    let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    let second = NetworkConfig { name: "second".parse()?, ..config() };
    network::ensure(&config())?;
    network::ensure(&second)?;
    ensure!(down(&config().name, false)?.forwarding == Forwarding::LeftOnFor("second".into()));
    ensure!(forwarding()?.trim() == "1");
    ensure!(down(&second.name, false)?.forwarding == Forwarding::TurnedOff);
    ensure!(forwarding()?.trim() == "0");

    network::ensure(&config())?;
    Host::main()?.bridge("docker0", "172.17.0.1/16")?;
    ensure!(down(&config().name, false)?.forwarding == Forwarding::LeftOnFor("docker0".into()));
    ensure!(forwarding()?.trim() == "1");
    // As long as it is on because of Softnet, the host is no router for others (H5).
    let guarded =
        || run("nft", &["list", "table", "ip", "softnet"]).is_ok_and(|table| table.contains("drop"));
    ensure!(guarded());
    network::ensure(&config())?;
    ensure!(down(&config().name, false)?.forwarding == Forwarding::LeftOnFor("docker0".into()));
    ensure!(guarded());
    run("ip", &["link", "delete", "docker0"])?;
    ensure!(down(&config().name, false)?.forwarding == Forwarding::TurnedOff);
    ensure!(forwarding()?.trim() == "0" && !guarded());

    // What was there before does without forwarding, as it did.
    Host::main()?.bridge("before", "172.18.0.1/16")?;
    network::ensure(&config())?;
    ensure!(down(&config().name, false)?.forwarding == Forwarding::TurnedOff);
    ensure!(forwarding()?.trim() == "0");
    Ok(())
}

fn vms_reach_out_and_are_not_reached() -> Result<()> {
    let world = World::build()?;
    let (mut one, first) = Vm::with_address(1, &config())?;
    let (mut two, second) = Vm::with_address(2, &config())?;
    let _first = Service::start(&one.host, first, 80, "the first VM")?;
    let _second = Service::start(&two.host, second, 80, "the second VM")?;

    let answer = hello_from(&one.host, at(INTERNET, 80))?;
    ensure!(answer == "hello from the internet to 203.0.113.2", "not translated: {answer}");
    ensure!(hello_from(&world.main, at(first, 80))?.contains("the first VM"), "the host reaches its VMs");

    // The host may filter bridged frames as if they were routed; that changes nothing.
    one.membership.attach("port1", false)?;
    two.membership.attach("port2", false)?;
    ensure!(hello_from(&one.host, at(second, 80))?.contains("the second VM"), "not isolated, so they meet");
    one.membership.attach("port1", true)?;
    two.membership.attach("port2", true)?;

    // Isolated on the bridge, and not through the gateway either.
    unreachable_from(&one.host, at(second, 80))?;
    one.host.ip(&format!("route add {second}/32 via {}", one.membership.gateway().address))?;
    unreachable_from(&one.host, at(second, 80))?;

    // The neighbours in the office may know the way and still not come in, nor may what listens on the host's loopback
    // be reached.
    world.lan.ip(&format!("route add {} via {HOST_ON_LAN}", one.membership.plan().subnet))?;
    unreachable_from(&world.lan, at(first, 80))?;
    let loopback = Service::start(&world.main, Ipv4Addr::LOCALHOST, 7000, "the loopback")?;
    one.host.ip("addr del 127.0.0.1/8 dev lo")?;
    one.host.ip(&format!("route add 127.0.0.0/8 via {}", one.membership.gateway().address))?;
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
    one.host.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1"))??;
    unreachable_from(&one.host, at(Ipv4Addr::LOCALHOST, 7000))?;
    ensure!(loopback.seen().is_empty());
    Ok(())
}

fn dhcp_serves_every_vm() -> Result<()> {
    let one = Vm::new(1, &config())?;
    let two = Vm::new(2, &config())?;
    let firmware = one.dhcp("01")?;
    ensure!(firmware.contains("router=192.168.64.1 dns=192.168.64.1"), "{firmware}");
    ensure!(
        one.dhcp("ff0002")? == firmware,
        "another client identifier of the same MAC took another address"
    );
    ensure!(two.dhcp("01")? != firmware, "two VMs have one address");
    let leases = whole(&config().name)?.leases;
    ensure!(leases.len() == 2 && leases.iter().any(|lease| lease.mac == mac(2)), "{leases:?}");

    // A start that asks for another lease time replaces the server, and the leases stay.
    let longer = NetworkConfig { lease_time: Duration::from_secs(1200), ..config() };
    let three = Vm::new(3, &longer)?;
    let status = whole(&config().name)?;
    ensure!(status.plan.lease_time.as_secs() == 1200 && status.leases.len() == 2, "{status}");
    ensure!(three.dhcp("01")? != firmware && one.dhcp("01")? == firmware);
    Ok(())
}

fn a_host_only_network_has_no_way_out() -> Result<()> {
    let _world = World::build()?;
    let name = NetworkName::default_for(NetType::Host);
    let config = NetworkConfig { name, net_type: NetType::Host, ..config() };
    let (mut vm, address) = Vm::with_address(1, &config)?;
    let _service = Service::start(&vm.host, address, 80, "the VM")?;
    let lease = vm.dhcp("01")?;
    ensure!(lease.ends_with("router= dns="), "{lease}");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    unreachable_from(&vm.host, at(INTERNET, 80))?;
    vm.expose("8080:80", address)?;
    ensure!(hello(at(Ipv4Addr::LOCALHOST, 8080), PATIENCE)?.contains("the VM"));
    unreachable_from(&_world.lan, at(HOST_ON_LAN, 8080))
}

fn reaches_the_vm_from_everywhere() -> Result<()> {
    let world = World::build()?;
    let (mut one, first) = Vm::with_address(1, &config())?;
    let (mut two, second) = Vm::with_address(2, &config())?;
    let service = Service::start(&one.host, first, 80, "the VM")?;
    let _second = Service::start(&two.host, second, 80, "the second VM")?;
    one.expose("8080:80", first)?;
    one.expose(&format!("{HOST_ON_LAN}:8081:80"), first)?;
    one.expose("5353:80/udp", first)?;
    two.expose("9090:80", second)?;

    let answer = hello_from(&world.lan, at(HOST_ON_LAN, 8080))?;
    ensure!(answer.starts_with("hello from the VM"), "{answer}");
    // A neighbour comes as the gateway: its own address is one that the VM's filter would not let it answer.
    ensure!(!service.seen().contains(&LAN), "the VM cannot answer whom it sees: {:?}", service.seen());
    for own in
        [Ipv4Addr::LOCALHOST, HOST_ON_LAN, Ipv4Addr::new(203, 0, 113, 2), one.membership.gateway().address]
    {
        ensure!(
            hello(at(own, 8080), PATIENCE)
                .with_context(|| format!("{own} from the host"))?
                .contains("the VM")
        );
    }
    // Bound to one address only.
    ensure!(hello_from(&world.lan, at(HOST_ON_LAN, 8081))?.contains("the VM"));
    ensure!(hello(at(Ipv4Addr::LOCALHOST, 8081), IMPATIENCE).is_err());
    unreachable_from(&world.internet, at(Ipv4Addr::new(203, 0, 113, 2), 8081))?;
    // UDP, from outside and from the host.
    for host in [&world.lan, &world.main] {
        let answer = host.run(|| -> std::io::Result<String> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"?", at(HOST_ON_LAN, 5353))?;
            let mut buffer = [0; 64];
            let (length, from) = socket.recv_from(&mut buffer)?;
            Ok(format!("{from} {}", String::from_utf8_lossy(&buffer[..length])))
        })??;
        ensure!(answer.starts_with(&format!("{HOST_ON_LAN}:5353 hello from the VM")), "{answer}");
    }
    // A VM does not reach another by what it publishes; what is not published stays out of reach, and so does a published
    // port of another host.
    unreachable_from(&one.host, at(one.membership.gateway().address, 9090))?;
    unreachable_from(&one.host, at(second, 80))?;
    unreachable_from(&world.lan, at(HOST_ON_LAN, 80))?;
    unreachable_from(&one.host, at(INTERNET, 8080))
}

fn follows_the_lease() -> Result<()> {
    let world = World::build()?;
    let (mut vm, first) = Vm::with_address(1, &config())?;
    let second = Ipv4Addr::from_bits(first.to_bits() + 50);
    vm.host.ip(&format!("addr add {second}/24 dev eth0"))?;
    let _first = Service::start(&vm.host, first, 80, "the first address")?;
    let _second = Service::start(&vm.host, second, 80, "the second address")?;
    let old = vm.expose("8080:80", first)?;
    ensure!(hello_from(&world.lan, at(HOST_ON_LAN, 8080))?.contains("the first address"));

    // A UDP client that never pauses keeps its entry in conntrack alive.
    let old_udp = vm.expose("5353:80/udp", first)?;
    let client = world.lan.run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(at(HOST_ON_LAN, 5353))?;
        Ok(socket)
    })??;
    let ask = || -> Result<String> {
        client.send(b"?")?;
        let mut buffer = [0; 64];
        let length = client.recv(&mut buffer).context("no answer")?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    ensure!(ask()?.contains("the first address"));

    let new = Forward { to: second, ..old };
    ensure!(
        vm.membership.apply(&[Op::Remove(old), Op::Install(new)]).is_err(),
        "that is not its address yet"
    );
    ensure!(hello_from(&world.lan, at(HOST_ON_LAN, 8080))?.contains("the first address"), "all or nothing");
    lease(&config().name, 1, second)?;
    vm.membership.set_address(Some(second))?;
    let new_udp = Forward { to: second, ..old_udp };
    vm.membership.apply(&[Op::Remove(old), Op::Remove(old_udp), Op::Install(new), Op::Install(new_udp)])?;
    ensure!(ask()?.contains("the second address"));
    ensure!(hello_from(&world.lan, at(HOST_ON_LAN, 8080))?.contains("the second address"));

    // A forward that goes takes its connections with it.
    vm.membership.apply(&[Op::Remove(new)])?;
    let talk = Forward { expose: "8082:82".parse()?, to: second };
    vm.membership.apply(&[Op::Install(talk)])?;
    let listener = vm.host.run(|| TcpListener::bind(at(second, 82)))??;
    let mut outside = world.lan.run(|| TcpStream::connect(at(HOST_ON_LAN, 8082)))??;
    let (mut inside, _) = listener.accept()?;
    let mut byte = [0];
    outside.write_all(b"1")?;
    inside.read_exact(&mut byte)?;
    vm.membership.apply(&[Op::Remove(talk)])?;
    outside.write_all(b"2")?;
    inside.set_read_timeout(Some(IMPATIENCE))?;
    ensure!(inside.read_exact(&mut byte).is_err(), "the connection outlived its forward");
    Ok(())
}

fn a_dead_members_forwards_go() -> Result<()> {
    let world = World::build()?;
    let (mut vm, address) = Vm::with_address(1, &config())?;
    let _service = Service::start(&vm.host, address, 80, "the VM")?;
    vm.expose("8080:80", address)?;
    let listed = || run("nft", &["list", "table", "ip", "softnet-softnet0"]);
    ensure!(listed()?.contains(". 8080 :"), "{}", listed()?);
    // What a SIGKILL leaves: the files without their locks.
    let member = std::fs::read_to_string(format!("/run/softnet/softnet0/ports/{}", mac(1)))?;
    drop(vm.membership);
    std::fs::write(format!("/run/softnet/softnet0/ports/{}", mac(1)), member)?;
    std::fs::write(format!("/run/softnet/softnet0/leases/{address}"), format!("{}\n", mac(1)))?;
    let newcomer = join(2)?;
    ensure!(!listed()?.contains(". 8080 :"), "{}", listed()?);
    ensure!(whole(&config().name)?.members.len() == 1);
    ensure!(std::fs::read_dir("/run/softnet/softnet0/leases")?.count() == 0);
    unreachable_from(&world.lan, at(HOST_ON_LAN, 8080))?;
    drop(newcomer);
    Ok(())
}

fn one_mac_and_one_address_a_vm() -> Result<()> {
    let mut first = join(1)?;
    let text = join(1).err().context("one MAC twice")?.to_string();
    ensure!(
        text.contains("network softnet0 already has a VM with the MAC address 02:00:00:00:00:01 (process"),
        "{text}"
    );
    let mut second = join(2)?;
    let plan: Plan = first.plan().clone();
    let address = Ipv4Addr::from_bits(plan.subnet.network().to_bits() + 9);
    let refused = first.set_address(Some(address));
    ensure!(matches!(refused, Err(Error::NotLeased { .. })), "the server knows nothing of it: {refused:?}");
    lease(&config().name, 1, address)?;
    lease(&config().name, 2, address)?;
    first.set_address(Some(address))?;
    let refused = second.set_address(Some(address));
    let text = refused.err().context("one address twice")?.to_string();
    ensure!(text.contains(&format!("{address} is already held by the VM 02:00:00:00:00:01")), "{text}");
    ensure!(matches!(second.set_address(Some(INTERNET)), Err(Error::NotOurs(..))));
    ensure!(matches!(second.set_address(Some(plan.gateway().addr())), Err(Error::NotOurs(..))));
    // A restart meets its predecessor still leaving, and waits for it.
    let restarted = std::thread::scope(|scope| {
        let restart = scope.spawn(|| join(1));
        first.leave()?;
        restart.join().expect("the restart panicked")
    })?;
    second.set_address(Some(address))?;
    drop(restarted);
    let gateway = Member { mac: plan.mac(), ..member(0) };
    ensure!(matches!(Membership::join(&config(), &gateway), Err(Error::MacIsGateway(_))));
    Ok(())
}

fn status_names_the_firewall() -> Result<()> {
    network::ensure(&config())?;
    ensure!(!whole(&config().name)?.to_string().contains("firewall"));
    let rules = "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
    run("nft", &[rules])?;
    let shown = whole(&config().name)?.to_string();
    // Where the host has no way to the world, nobody asks whether it forwards there.
    ensure!(!shown.contains("firewall"), "{shown}");
    run("ip", &["link", "add", "uplink", "up", "type", "veth"])?;
    run("ip", &["route", "add", "default", "dev", "uplink"])?;
    let shown = whole(&config().name)?.to_string();
    ensure!(shown.contains("packets to the world (chain FORWARD of table ip filter)"), "{shown}");
    Ok(())
}
