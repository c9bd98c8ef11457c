//! What the fuzz targets do with their bytes. It stands here and not beside the targets so that `cargo test` replays
//! seeds and crashes with the very same code, on a stable compiler.
//!
//! Each function panics when the filter and the oracle disagree.

mod dialogue;

use std::net::Ipv4Addr;

use arbitrary::Unstructured;
use softnet_filter::{Entry, Timestamp};

use crate::oracle::dhcp;
use crate::oracle::packet::UDP;
use crate::scene::wire::{self, Dhcp};
use crate::scene::{
    Address, FIRST_LEASE, GATEWAY, GATEWAY_MAC, Question, Scene, Step, VM_MAC, Xid, allow, plain_config,
};

const NOW: Timestamp = Timestamp::from_secs(1_000);

/// The longest frame that a link can hand over, a super-frame included.
const MAX_FRAME_LEN: usize = 65_600;

/// A switch of a target: the lowest bit of `bits`, which are used up by and by.
fn switch(bits: &mut u8) -> bool {
    let set = *bits & 1 != 0;
    *bits >>= 1;
    set
}

/// Any bytes as one frame, after a first byte of switches: who sends it, whether the VM has a lease, whether all is
/// allowed, whether the stations and the checksums are made right, which no fuzzer guesses.
pub fn frame(data: &[u8]) {
    let Some((mut switches, bytes)) = data.split_first().map(|(first, rest)| (*first, rest)) else { return };
    let of_vm = switch(&mut switches);
    let has_lease = switch(&mut switches);
    let rules = if switch(&mut switches) { vec![allow("0.0.0.0/0")] } else { vec![] };
    let mut frame = bytes[..bytes.len().min(MAX_FRAME_LEN)].to_vec();
    if switch(&mut switches) && frame.len() >= 12 {
        let (to, from) = if of_vm { (GATEWAY_MAC, VM_MAC) } else { (VM_MAC, GATEWAY_MAC) };
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
    }
    if switch(&mut switches) {
        wire::fix(&mut frame);
    }
    let mut scene = Scene::new(plain_config(rules), NOW);
    if has_lease {
        agree(scene.play(&first_lease()));
    }
    agree(if of_vm { scene.vm(frame) } else { scene.host(frame) }.map(drop));
}

/// A DHCP message in a frame that is right, after a first byte of switches: who sends it, whether the VM has a lease,
/// and whether the fixed part of the message is right too, so that the bytes are options.
pub fn dhcp_message(data: &[u8]) {
    let Some((mut switches, bytes)) = data.split_first().map(|(first, rest)| (*first, rest)) else { return };
    let of_vm = switch(&mut switches);
    let has_lease = switch(&mut switches);
    let is_fixed_right = switch(&mut switches);
    let bytes = &bytes[..bytes.len().min(1_200)];

    let mut scene = Scene::new(plain_config(vec![]), NOW);
    if has_lease {
        agree(scene.play(&first_lease()));
    }
    agree(scene.ask(Question { xid: Xid::Numbered(9), ..Question::new(dhcp::REQUEST) }).map(drop));
    let message = if is_fixed_right {
        let (op, yiaddr) = if of_vm { (1, Ipv4Addr::UNSPECIFIED) } else { (2, FIRST_LEASE) };
        Dhcp { yiaddr, tail: bytes.to_vec(), ..wire::bootp(op, 0x5eed_0009, VM_MAC, vec![]) }.bytes()
    } else {
        bytes.to_vec()
    };
    let (source, destination, from, to) = if of_vm {
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 68, 67)
    } else {
        (GATEWAY, FIRST_LEASE, 67, 68)
    };
    let packet = wire::ipv4(source, destination, UDP, &wire::udp(from, to, &message));
    agree(if of_vm {
        scene.vm(wire::ethernet([0xff; 6], VM_MAC, wire::IPV4, &packet)).map(drop)
    } else {
        scene.host(wire::ethernet(VM_MAC, GATEWAY_MAC, wire::IPV4, &packet)).map(drop)
    });
}

/// A dialogue of valid frames, spoilt here and there.
pub fn sequence(data: &[u8]) {
    let Ok((config, start, steps)) = dialogue::dialogue(&mut Unstructured::new(data)) else { return };
    let mut scene = Scene::new(config, start);
    for (index, step) in steps.iter().enumerate() {
        if let Err(error) = scene.play(step) {
            panic!("step {index}, {step:?}: {error}");
        }
    }
}

/// Any text as an entry of a policy: what is taken is the same in its normal form, and the error of what is not names a part of
/// the text.
pub fn entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Entry>() {
        Ok(entry) => {
            let normal = entry.to_string();
            assert_eq!(normal.parse(), Ok(entry), "{text:?} is {normal:?}");
            assert_eq!(normal.parse::<Entry>().map(|entry| entry.to_string()), Ok(normal.clone()));
        }
        Err(error) => {
            assert!(text.get(error.span()).is_some(), "{text:?}: {:?}", error.span());
            assert!(!error.to_string().is_empty());
        }
    }
}

/// The first dialogue of a VM, with a resolver of a far network.
fn first_lease() -> Step {
    Step::Dora {
        address: Address::Any(FIRST_LEASE.into()),
        lease_time: 600,
        resolvers: vec![Address::Gateway, Address::FarResolver],
    }
}

fn agree(result: Result<(), String>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}
