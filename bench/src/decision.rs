//! The cost of the decision alone, in instructions, which unlike time is the same on a busy machine.
//!
//! callgrind counts the instructions of a whole program, so each case is run with few and with many
//! decisions, and the difference is divided by the difference in decisions: work that happens once, such as
//! building the table of rules, cancels out.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::wire::{self, Arp, Dhcp, Mac, dhcp_kind, dhcp_option};
use softnet_filter::{
    Action, Entry, Gateway, MacAddr, NetType, Policy, Port, PortConfig, Ports, Rule, Target, Timestamp,
    Verdict,
};

const VM: Mac = Mac([2, 0, 0, 0, 0x77, 2]);
const HOST: Mac = Mac([2, 0, 0, 0, 0x77, 1]);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
/// A destination that no rule names: the search has to go through the whole table.
const WORLD: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// The numbers of decisions in the short and in the long run.
const TIMES: [u64; 2] = [1_000, 11_000];

/// The kind of frame that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Case {
    /// A UDP frame of 64 bytes from the VM.
    Udp,
    /// An ARP request from the VM for the gateway.
    Arp,
    /// A TCP frame of 1,514 bytes from the VM.
    Tcp,
    /// A UDP frame of 64 bytes to the VM.
    Reply,
    /// A UDP frame of 64 bytes from the VM, of a flow that has been answered, in a stateful policy.
    UdpFlow,
    /// A TCP frame of 1,514 bytes from the VM, of a connection, in a stateful policy.
    TcpFlow,
    /// A UDP frame of 64 bytes to the VM, of a flow that has been answered, in a stateful policy.
    ReplyFlow,
    /// A TCP frame of 1,514 bytes to the VM, of a connection, in a stateful policy.
    TcpReplyFlow,
    /// A UDP frame of 64 bytes from the VM, of a flow that is recorded, in a policy without directions.
    UdpRecorded,
    /// A TCP frame of 1,514 bytes from the VM, of a connection that is recorded, in a policy without directions.
    TcpRecorded,
    /// A UDP frame of 64 bytes to the VM, of a flow that is recorded, in a policy without directions.
    ReplyRecorded,
}

impl Case {
    fn is_stateful(self) -> bool {
        matches!(self, Self::UdpFlow | Self::TcpFlow | Self::ReplyFlow | Self::TcpReplyFlow)
    }

    fn is_recorded(self) -> bool {
        matches!(self, Self::UdpRecorded | Self::TcpRecorded | Self::ReplyRecorded)
    }

    fn is_to_vm(self) -> bool {
        matches!(self, Self::Reply | Self::ReplyFlow | Self::TcpReplyFlow | Self::ReplyRecorded)
    }
}

/// Which rules a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Entries without ports.
    plain: usize,
    /// Entries with ports.
    with_ports: usize,
}

impl Rules {
    const fn plain(plain: usize) -> Self {
        Self { plain, with_ports: 0 }
    }
}

/// The decisions that are counted: case, rules, and the goal, a maximum of instructions.
const CASES: [(Case, Rules, Option<f64>); 16] = [
    (Case::Udp, Rules::plain(0), Some(170.0)),
    (Case::Udp, Rules::plain(10), None),
    (Case::Udp, Rules::plain(1_000), None),
    (Case::Udp, Rules::plain(10_000), Some(170.0)),
    (Case::Udp, Rules { plain: 9_000, with_ports: 1_000 }, Some(260.0)),
    (Case::Tcp, Rules::plain(0), None),
    (Case::Tcp, Rules { plain: 9_000, with_ports: 1_000 }, None),
    (Case::Reply, Rules::plain(0), None),
    (Case::Arp, Rules::plain(0), Some(130.0)),
    // 1.3 times what a decision without flows cost when flows were added: 166 from the VM, 146 to it.
    (Case::UdpFlow, Rules::plain(0), Some(216.0)),
    (Case::TcpFlow, Rules::plain(0), Some(216.0)),
    (Case::ReplyFlow, Rules::plain(0), Some(190.0)),
    (Case::TcpReplyFlow, Rules::plain(0), Some(190.0)),
    (Case::UdpRecorded, Rules::plain(0), Some(216.0)),
    (Case::TcpRecorded, Rules::plain(0), Some(216.0)),
    (Case::ReplyRecorded, Rules::plain(0), Some(190.0)),
];

/// One counted case.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// The kind of frame.
    pub case: Case,
    /// Rules of the port.
    pub rules: Rules,
    /// Instructions per decision.
    pub instructions: f64,
    /// The maximum that reaches the goal.
    pub reach: Option<f64>,
}

impl Count {
    /// Its name in the report.
    pub fn name(&self) -> String {
        let case = match self.case {
            Case::Udp => "UDP, 64 bytes, from the VM",
            Case::Arp => "ARP request from the VM",
            Case::Tcp => "TCP, 1,514 bytes, from the VM",
            Case::Reply => "UDP, 64 bytes, to the VM",
            Case::UdpFlow => "UDP, 64 bytes, from the VM, of a flow",
            Case::TcpFlow => "TCP, 1,514 bytes, from the VM, of a flow",
            Case::ReplyFlow => "UDP, 64 bytes, to the VM, of a flow",
            Case::TcpReplyFlow => "TCP, 1,514 bytes, to the VM, of a flow",
            Case::UdpRecorded => "UDP, 64 bytes, from the VM, recorded",
            Case::TcpRecorded => "TCP, 1,514 bytes, from the VM, recorded",
            Case::ReplyRecorded => "UDP, 64 bytes, to the VM, recorded",
        };
        match self.rules {
            Rules { plain, with_ports: 0 } => format!("{case}, {plain} rules"),
            Rules { plain, with_ports } => {
                format!("{case}, {} rules, {with_ports} of ports", plain + with_ports)
            }
        }
    }
}

/// Counts all cases.
///
/// # Errors
/// If valgrind is not installed or fails.
pub fn count() -> Result<Vec<Count>> {
    CASES
        .into_iter()
        .map(|(case, rules, reach)| {
            let [few, many] = TIMES;
            let instructions =
                (callgrind(case, rules, many)? - callgrind(case, rules, few)?) / (many - few) as f64;
            Ok(Count { case, rules, instructions, reach })
        })
        .collect()
}

/// The counts as a table.
pub fn table(counts: &[Count]) -> String {
    let mut table = format!("{:<58}{:>14}{:>10}\n", "decision", "instructions", "reach");
    for count in counts {
        let reach = count.reach.map_or(String::new(), |reach| format!("{reach:.0}"));
        let verdict = match count.reach {
            Some(reach) if count.instructions <= reach => "  reached",
            Some(_) => "  MISSED",
            None => "",
        };
        let _ = writeln!(table, "{:<58}{:>14.0}{reach:>10}{verdict}", count.name(), count.instructions);
    }
    table
}

/// Instructions of a whole run.
fn callgrind(case: Case, rules: Rules, times: u64) -> Result<f64> {
    let case = clap::ValueEnum::to_possible_value(&case).context("a value for every case")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["decide", case.get_name(), &rules.plain.to_string(), &rules.with_ports.to_string()])
        .arg(times.to_string())
        .stdin(Stdio::null())
        .output()
        .context("start valgrind (Debian package valgrind)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind: {text}");
    let collected =
        text.lines().find_map(|line| line.split_once("Collected : ")).context("valgrind counted nothing")?;
    Ok(collected.1.trim().parse()?)
}

/// Makes the same decision `times` times.
///
/// # Errors
/// If the frame is not forwarded: a drop would be cheaper.
pub fn decide(case: Case, plain: usize, with_ports: usize, times: u64) -> Result<()> {
    let now = Timestamp::from_secs(1);
    let mut port = bound_port(Rules { plain, with_ports }, case.is_stateful(), now)?;
    let udp = |from: Ipv4Addr, to: Ipv4Addr| {
        wire::Ipv4::new(from, to, wire::udp((from, 4000), (to, 4000), &[0; 22]))
    };
    let segment = |flags, data: &[u8]| {
        let payload = wire::tcp((ADDRESS, 4000), (WORLD, 80), 1, flags, data);
        wire::Ipv4::new(ADDRESS, WORLD, payload).frame(HOST, VM)
    };
    // The segments of the test acknowledge 0x01020304.
    let answer = |flags, data: &[u8]| {
        let payload = wire::tcp((WORLD, 80), (ADDRESS, 4000), 0x0102_0303, flags, data);
        wire::Ipv4::new(WORLD, ADDRESS, payload).frame(VM, HOST)
    };
    if case.is_recorded() {
        port.record_flows();
    }
    if case.is_stateful() || case.is_recorded() {
        for (from_vm, frame) in [
            (true, udp(ADDRESS, WORLD).frame(HOST, VM)),
            (false, udp(WORLD, ADDRESS).frame(VM, HOST)),
            (true, segment(0x02, &[])),
            (false, answer(0x12, &[])),
            (true, segment(0x10, &[])),
        ] {
            let verdict = if from_vm { port.from_vm(&frame, now) } else { port.from_host(&frame, now) };
            ensure!(verdict == Verdict::Forward, "the flow does not begin: {verdict:?}");
        }
    }
    let frame = match case {
        Case::Udp | Case::UdpFlow | Case::UdpRecorded => udp(ADDRESS, WORLD).frame(HOST, VM),
        Case::Reply | Case::ReplyFlow | Case::ReplyRecorded => udp(WORLD, ADDRESS).frame(VM, HOST),
        Case::Tcp | Case::TcpFlow | Case::TcpRecorded => segment(0x10, &[0; 1460]),
        Case::TcpReplyFlow => answer(0x10, &[0; 1460]),
        Case::Arp => Arp::request(VM, ADDRESS, GATEWAY).frame(),
    };
    for _ in 0..times {
        let frame = std::hint::black_box(&frame);
        let verdict = if case.is_to_vm() { port.from_host(frame, now) } else { port.from_vm(frame, now) };
        ensure!(verdict == Verdict::Forward, "{verdict:?}");
    }
    Ok(())
}

/// A port whose VM has got its lease by the usual four messages.
fn bound_port(rules: Rules, is_stateful: bool, now: Timestamp) -> Result<Port> {
    let Rules { plain, with_ports } = rules;
    let rules = (0..plain + with_ports).map(|index| {
        // Networks of many prefix lengths all over the address space, none of which contains the destination.
        let bits = (index as u32).wrapping_mul(0x9e37_79b1) | 0x8000_0000;
        let length = 16 + (index % 17) as u8;
        let net = ipnet::Ipv4Net::new(Ipv4Addr::from(bits), length)?.trunc();
        let port = (index % 60_000) as u16 + 1;
        let ports = if index < plain { None } else { Ports::new(port, port) };
        Ok(Rule {
            entry: Entry { ports, ..Target::Ipv4(net).into() },
            action: if index % 2 == 0 { Action::Block } else { Action::Allow },
        })
    });
    let mut rules: Vec<Rule> = rules.collect::<Result<_>>()?;
    if is_stateful {
        rules.push(Rule { entry: "in 1.1.1.1".parse()?, action: Action::Block });
    }
    if with_ports > 0 {
        // Half of them say something about other ports of everything, and then one opens the destination.
        for (index, rule) in rules.iter_mut().skip(plain).step_by(2).enumerate() {
            let port = 5_000 + index as u16;
            *rule = Rule { entry: format!("0.0.0.0/0:{port}").parse()?, action: Action::Block };
        }
        let (blocked, allowed) = ("8.8.0.0/16:4000-4009/udp", "8.8.8.0/24:4000");
        rules.push(Rule { entry: blocked.parse()?, action: Action::Block });
        rules.push(Rule { entry: allowed.parse()?, action: Action::Allow });
    }
    let gateway =
        Gateway { mac: MacAddr(HOST.0), address: GATEWAY, subnet: ipnet::Ipv4Net::new(GATEWAY, 16)? };
    let mut port = Port::new(PortConfig {
        vm_mac: MacAddr(VM.0),
        gateway,
        dhcp_server: None,
        net_type: NetType::Nat,
        policy: Policy::new(rules),
        mtu: 1500,
        server_files_by_mac: false,
        host_addresses: Vec::new(),
        on_block: Default::default(),
        published: Vec::new(),
        seed: 7,
    })?;
    let request = Dhcp::client(dhcp_kind::REQUEST, 7, VM)
        .with(dhcp_option::REQUESTED_ADDRESS, &ADDRESS.octets())
        .with(dhcp_option::SERVER, &GATEWAY.octets());
    let discover = Dhcp::client(dhcp_kind::DISCOVER, 7, VM);
    let reply = |kind: u8| {
        let mut reply = Dhcp::server(kind, 7, VM, GATEWAY)
            .with(dhcp_option::LEASE_TIME, &3600_u32.to_be_bytes())
            .with(dhcp_option::SUBNET_MASK, &[255, 255, 0, 0])
            .with(dhcp_option::ROUTER, &GATEWAY.octets());
        reply.yiaddr = ADDRESS;
        reply.packet(GATEWAY, ADDRESS).frame(VM, HOST)
    };
    for (from_vm, frame) in [
        (true, discover.broadcast()),
        (false, reply(dhcp_kind::OFFER)),
        (true, request.broadcast()),
        (false, reply(dhcp_kind::ACK)),
    ] {
        let verdict = if from_vm { port.from_vm(&frame, now) } else { port.from_host(&frame, now) };
        ensure!(verdict == Verdict::Forward, "DHCP: {verdict:?}");
    }
    ensure!(port.lease().is_some(), "the port has no lease");
    Ok(port)
}
