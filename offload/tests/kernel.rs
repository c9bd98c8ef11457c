//! Our segmentation and coalescing against the kernel's own.
//!
//! In a network namespace of its own (and a user namespace, where the test is not run by root) two TAPs are ports of
//! one bridge. A super-frame written to the first, which takes them, must leave by the second, which does not: the
//! kernel cuts it on the way, and what it makes of it is compared byte by byte with what we make of it.

#[cfg(target_os = "linux")]
mod common;
#[cfg(target_os = "linux")]
#[path = "kernel/net.rs"]
mod net;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use libtest_mimic::{Arguments, Trial, run};

    let mut arguments = Arguments::from_args();
    if !arguments.list {
        net::enter_namespaces().expect("namespaces: run as root, or allow unprivileged user namespaces");
    }
    // The cases share one bridge.
    arguments.test_threads = Some(1);
    let case = |name: &str, check: fn()| {
        Trial::test(name, move || {
            check();
            Ok(())
        })
    };
    let cases = vec![
        case("tcp_is_cut_as_the_kernel_cuts_it", cases::tcp),
        case("udp_is_cut_as_the_kernel_cuts_it", cases::udp),
        case("partial_checksums_are_completed_as_the_kernel_completes_them", cases::checksums),
        case("the_kernel_takes_coalesced_packets_apart_as_they_were", cases::coalesced),
    ];
    run(&arguments, cases).exit_code()
}

#[cfg(target_os = "linux")]
mod cases {
    use super::common::{ACK, BOTH, Body, CWR, ECE, FIN, PSH, Spec, coalesce, cut};
    use super::net::Wire;
    use softnet_offload::{VnetHeader, finish_checksum};

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 + at / 256) as u8).collect()
    }

    /// Names the first difference; whole frames are too much to read.
    fn assert_same(ours: &[u8], kernels: &[u8], of: &str) {
        let at = ours.iter().zip(kernels).position(|(ours, kernels)| ours != kernels);
        let end = |at: usize| 80.min(ours.len().min(kernels.len())).max(at);
        if let Some(at) = at {
            panic!(
                "byte {at} of {of}:\n  ours {:02x?}\nkernel {:02x?}",
                &ours[..end(at)],
                &kernels[..end(at)]
            );
        }
        assert_eq!(ours.len(), kernels.len(), "length of {of}");
    }

    fn compare(wire: &mut Wire, spec: &Spec, segment_size: u16) {
        let (vnet, frame) = spec.super_frame(segment_size);
        let ours = cut(&vnet, &frame);
        wire.write(&[&vnet.to_bytes(), &frame]);
        for (index, frame) in ours.iter().enumerate() {
            assert_same(
                frame,
                &wire.read(&frame[6..12]),
                &format!("segment {index} of {segment_size} bytes; {:?}", spec.body),
            );
        }
    }

    pub fn tcp() {
        let mut wire = Wire::new();
        for (length, size) in [(3000, 1448), (1449, 1448), (2896, 1448), (65_000, 1448), (777, 111), (5, 2)] {
            for (flags, options) in [
                (ACK, vec![]),
                (ACK | PSH, super::common::TIMESTAMPS.to_vec()),
                (ACK | PSH | FIN, vec![1, 1, 1, 0]),
                (ACK | ECE | CWR | PSH, vec![]),
            ] {
                let mut spec = Spec::tcp(&bytes(length));
                spec.id = 0xfffe;
                spec.tos = if flags & ECE != 0 { 2 } else { 0 };
                spec.fragment = if flags & FIN != 0 { 0 } else { 0x4000 };
                spec.body = Body::Tcp { sequence: u32::MAX - 1500, ack: 1, flags, window: 9, options };
                compare(&mut wire, &spec, size);
            }
        }
    }

    pub fn udp() {
        let mut wire = Wire::new();
        for (length, size) in [(3000, 1400), (1401, 1400), (2800, 1400), (777, 111), (5, 2)] {
            for fragment in [0, 0x4000] {
                let mut spec = Spec::udp(&bytes(length));
                spec.fragment = fragment;
                spec.id = 0xffff;
                compare(&mut wire, &spec, size);
            }
        }
    }

    pub fn checksums() {
        let mut wire = Wire::new();
        for spec in [Spec::tcp(&bytes(11)), Spec::udp(&bytes(12)), Spec::udp(&[]), Spec::tcp(&bytes(1400))] {
            let (vnet, mut frame) = spec.super_frame(100);
            let vnet = VnetHeader { gso: None, ..vnet };
            wire.write(&[&vnet.to_bytes(), &frame]);
            finish_checksum(&mut frame, &vnet).expect("a checksum in its place");
            assert_same(&frame, &wire.read(&frame[6..12]), &format!("{:?}", spec.body));
        }
    }

    pub fn coalesced() {
        let mut wire = Wire::new();
        for spec in [Spec::tcp(&bytes(40_001)), Spec::udp(&bytes(30_001))] {
            let (vnet, frame) = spec.super_frame(1000);
            let frames = cut(&vnet, &frame);
            let packets = coalesce(BOTH, &frames);
            assert_eq!(packets.len(), 1);
            wire.write(&[&packets[0].vnet.to_bytes(), &packets[0].frame]);
            for frame in &frames {
                assert_same(frame, &wire.read(&frame[6..12]), "a frame that was coalesced");
            }
        }
    }
}
