//! Rules J: what the VM hears of what is refused.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use lab::deadline::Deadline;
use lab::wire::{IPV4, Ipv4, Mac, checksum, ether_type, icmp, tcp, udp};

use crate::wire::{GATEWAY, OTHER_MAC, VM, VM_MAC, WORLD, Wire};

const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);

/// Sends a frame of the VM, and returns what the VM hears before the answer to the frame behind it.
fn heard(wire: &mut Wire, frame: &[u8]) -> Result<Vec<Vec<u8>>> {
    wire.vm.send(frame)?;
    // Everything before has been judged, and answered, when this one is.
    wire.settle()?;
    let follower = wire.next().to_be_bytes();
    let follower =
        Ipv4::new(GATEWAY, VM, udp((GATEWAY, 9), (VM, 9), &follower)).frame(VM_MAC, wire.segment.mac);
    wire.segment.send(&follower)?;
    let all = wire.vm.expect("the frame behind it", |seen| seen == follower)?.0;
    // The host answers the marker's ARP.
    Ok(all.into_iter().filter(|seen| ether_type(seen) == IPV4).collect())
}

fn one(wire: &mut Wire, what: &str, frame: &[u8]) -> Result<Vec<u8>> {
    let mut all = heard(wire, frame)?;
    ensure!(all.len() == 1, "{what}: {} answers", all.len());
    Ok(all.remove(0))
}

fn syn(wire: &Wire, to: Ipv4Addr) -> Vec<u8> {
    wire.routed(&Ipv4::new(VM, to, tcp((VM, 4000), (to, 443), 0x0a0b_0c0d, 2, b"")))
}

pub fn j1_refusals_are_answered() -> Result<()> {
    let mut wire = Wire::leased(&["--block=9.9.9.0/24,@host"])?;
    for to in [LAN, Ipv4Addr::new(9, 9, 9, 9), GATEWAY] {
        let frame = syn(&wire, to);
        let reset = one(&mut wire, "a SYN", &frame)?;
        ensure!(reset.len() == 54 && reset[23] == 6, "no segment: {reset:02x?}");
        // Ports, sequence and acknowledgement, flags.
        ensure!(reset[34..38] == [0x01, 0xbb, 0x0f, 0xa0], "its ports: {reset:02x?}");
        ensure!(reset[38..46] == [0, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0x0e], "its numbers: {reset:02x?}");
        ensure!(reset[47] == 0x14, "no RST with ACK: {reset:02x?}");
        for transport in
            [udp((VM, 4000), (to, 53), b"a question"), icmp(8, 0, &[0, 1, 0, 1]), (47, vec![7; 60])]
        {
            let frame = wire.routed(&Ipv4::new(VM, to, transport));
            let error = one(&mut wire, "a packet", &frame)?;
            ensure!(error[23] == 1 && error[34..36] == [3, 13], "not prohibited: {error:02x?}");
            ensure!(error[38..42] == [0; 4] && error[42..] == frame[14..], "its quote: {error:02x?}");
            ensure!(checksum(&[&error[34..]]) == 0, "its checksum: {error:02x?}");
        }
    }
    let counters = wire.softnet.counters()?;
    ensure!(counters.answers == 12, "{counters:?}");
    // What nobody may answer, or what is forged.
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let to_lan = |transport| Ipv4::new(VM, LAN, transport);
    for (what, frame) in [
        ("a segment that is no SYN", wire.routed(&to_lan(tcp((VM, 4000), (LAN, 443), 1, 0x10, b"")))),
        ("an echo reply", wire.routed(&to_lan(icmp(0, 0, &[0, 1, 0, 1])))),
        ("a later fragment", wire.routed(&Ipv4 { fragment: 9, ..to_lan((17, vec![0; 8])) })),
        (
            "a group",
            Ipv4::new(VM, group, udp((VM, 1), (group, 2), b"")).frame(Mac([1, 0, 0x5e, 0, 0, 0xfb]), VM_MAC),
        ),
        ("a broadcast frame", to_lan(udp((VM, 1), (LAN, 2), b"")).frame(Mac::BROADCAST, VM_MAC)),
        ("a foreign MAC address", to_lan(udp((VM, 1), (LAN, 2), b"")).frame(wire.segment.mac, OTHER_MAC)),
        ("a foreign address", wire.routed(&Ipv4::new(WORLD, LAN, udp((WORLD, 1), (LAN, 2), b"")))),
    ] {
        ensure!(heard(&mut wire, &frame)?.is_empty(), "{what} is answered");
    }
    wire.restart_leased(&["--on-block=drop"])?;
    for frame in [syn(&wire, LAN), wire.routed(&to_lan(udp((VM, 4000), (LAN, 53), b"")))] {
        ensure!(heard(&mut wire, &frame)?.is_empty(), "--on-block=drop answers");
    }
    let counters = wire.softnet.counters()?;
    ensure!(counters.answers == 0 && counters.from_vm.get("not-global") == Some(&2), "{counters:?}");
    Ok(())
}

pub fn j2_answers_go_to_the_vm_alone() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    for frame in
        [syn(&wire, LAN), wire.routed(&Ipv4::new(VM, LAN, udp((VM, 4000), (LAN, 53), b"a question")))]
    {
        // Fails if the host gets anything.
        wire.drops("a refused packet", &frame)?;
        let (_, answer) = wire.vm.expect("an answer", |seen| ether_type(seen) == IPV4)?;
        ensure!(answer.get(..6) == Some(&VM_MAC.0[..]), "for another station: {answer:02x?}");
        ensure!(answer[6..12] == wire.segment.mac.0, "not in a frame of the gateway: {answer:02x?}");
        ensure!(
            answer[26..30] == LAN.octets() && answer[30..34] == VM.octets(),
            "its addresses: {answer:02x?}"
        );
    }
    Ok(())
}

pub fn j3_answers_are_bounded_and_counted_apart() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let frame = syn(&wire, LAN);
    for _ in 0..300 {
        wire.vm.send(&frame)?;
    }
    wire.settle()?;
    let counters = wire.softnet.counters()?;
    ensure!(counters.from_vm.get("not-global") == Some(&300), "{counters:?}");
    // 20 at once, and 10 in each second that this took; it did not take 20 of them.
    ensure!((20..220).contains(&counters.answers), "{counters:?}");
    let mut answers = 0;
    while answers < counters.answers
        && let Some(frame) = wire.vm.recv(Deadline::default())?
    {
        answers += u64::from(ether_type(&frame) == IPV4);
    }
    ensure!(answers == counters.answers, "{answers} of {} answers arrived", counters.answers);
    ensure!(counters.from_host.get("forwarded").is_some_and(|frames| *frames < 10), "{counters:?}");
    Ok(())
}
