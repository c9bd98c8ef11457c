//! Judges one frame many times, for counting what a decision costs.
//!
//! ```text
//! cargo build --release -p softnet-filter --example decide
//! valgrind --tool=callgrind target/release/examples/decide udp 0 100000
//! ```
//!
//! The first word is the kind of frame, the second the number of `--allow` and `--block` rules, the third how often
//! the frame is judged. Two runs that differ in the last differ in nothing but decisions, so the instructions of a
//! decision are the difference of the counts over the difference of the numbers. Callgrind counts what the processor
//! is told to do, which is the same on every machine and under every load.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use softnet_filter::{
    Action, Gateway, Ipv4Net, Lease, MacAddr, NetType, Policy, Port, PortConfig, Resolvers, Rule, Target,
    Timestamp,
};

const VM: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0x01]);
const GATEWAY: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xfe]);
const OWN_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 2);
const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
const WORLD_IP: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
const NOW: Timestamp = Timestamp::from_secs(1);

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(kind), Some(rules), Some(count)) =
        (args.next(), args.next().and_then(|n| n.parse().ok()), args.next().and_then(|n| n.parse().ok()))
    else {
        eprintln!("usage: decide udp|udp-1500|tcp|arp|from-host RULES COUNT");
        return ExitCode::FAILURE;
    };
    let Some((frame, is_from_vm)) = frame(&kind) else {
        eprintln!("decide: {kind} is none of udp, udp-1500, tcp, arp, from-host");
        return ExitCode::FAILURE;
    };
    let mut port = port(rules);
    let count: u64 = count;
    let mut forwarded = 0_u64;
    for _ in 0..count {
        let frame = black_box(&frame[..]);
        let verdict = if is_from_vm { port.from_vm(frame, NOW) } else { port.from_host(frame, NOW) };
        forwarded += u64::from(verdict.is_forward());
    }
    assert_eq!(forwarded, count, "the frame must pass: {}", port.counters());
    ExitCode::SUCCESS
}

/// A port with a lease and `rules` rules, of all lengths of prefixes, alternately allowed and blocked. None of them
/// matches the frames.
fn port(rules: u32) -> Port {
    let rules = (0..rules).map(|n| {
        // Spread over 16.0.0.0/4 by a permutation of its addresses.
        let address = Ipv4Addr::from(0x1000_0000 | n.wrapping_mul(0x9e37_79b1) & 0x0fff_ffff);
        let prefix = 12 + (n % 21) as u8;
        Rule {
            target: Target::Net(Ipv4Net::new(address, prefix).expect("12 to 32 bits").trunc()),
            action: if n % 2 == 0 { Action::Allow } else { Action::Block },
        }
    });
    let mut port = Port::new(PortConfig {
        vm_mac: VM,
        gateway: Gateway {
            mac: GATEWAY,
            address: GATEWAY_IP,
            subnet: Ipv4Net::new(GATEWAY_IP, 24).expect("24 bits"),
        },
        net_type: NetType::Nat,
        policy: Policy::new(rules.collect()),
        mtu: 1500,
        server_files_by_mac: false,
        host_addresses: Vec::new(),
    })
    .expect("the configuration is right");
    let lease = Lease {
        address: OWN_IP,
        server: GATEWAY_IP,
        expires: Some(Timestamp::from_secs(600)),
        resolvers: Resolvers::default(),
    };
    port.adopt(lease, None, NOW).expect("the lease is right");
    port
}

/// A frame that passes, and whether the VM sends it.
fn frame(kind: &str) -> Option<(Vec<u8>, bool)> {
    Some(match kind {
        // 64 bytes on the wire are 60 without the frame check sequence.
        "udp" => (ipv4(GATEWAY, VM, OWN_IP, WORLD_IP, 17, &udp(18)), true),
        "udp-1500" => (ipv4(GATEWAY, VM, OWN_IP, WORLD_IP, 17, &udp(1472)), true),
        "tcp" => {
            let mut segment = vec![0; 1480];
            (segment[1], segment[3], segment[12], segment[13]) = (80, 80, 5 << 4, 0x10);
            (ipv4(GATEWAY, VM, OWN_IP, WORLD_IP, 6, &segment), true)
        }
        "from-host" => (ipv4(VM, GATEWAY, WORLD_IP, OWN_IP, 17, &udp(18)), false),
        "arp" => {
            let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
            body.extend(VM.octets());
            body.extend(OWN_IP.octets());
            body.extend([0; 6]);
            body.extend(GATEWAY_IP.octets());
            (ethernet(MacAddr::BROADCAST, VM, 0x0806, &body), true)
        }
        _ => return None,
    })
}

fn ethernet(destination: MacAddr, source: MacAddr, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&destination.octets()[..], &source.octets(), &ether_type.to_be_bytes(), payload].concat()
}

fn udp(len: u16) -> Vec<u8> {
    let header = [4000_u16.to_be_bytes(), 4000_u16.to_be_bytes(), (8 + len).to_be_bytes(), [0, 0]].concat();
    [header, vec![0; len.into()]].concat()
}

fn ipv4(
    destination: MacAddr,
    source: MacAddr,
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    ethernet(destination, source, 0x0800, &[&header[..], payload].concat())
}
