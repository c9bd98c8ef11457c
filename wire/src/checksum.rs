//! The Internet checksum (RFC 1071), fast enough to be computed over every byte that passes.
//!
//! One's complement sums may be added in any order and any word size, and do not depend on byte order
//! (RFC 1071 §2), so the bulk is summed as native 32-bit words in independent lanes, which compilers turn into vector
//! instructions, and folded to 16 bits once at the end.
#![allow(clippy::arithmetic_side_effects, reason = "adding sums cannot overflow: the carry comes around")]

use core::ops::{Add, AddAssign};

use crate::transport;

/// Bytes that one step of the inner loop sums: eight 32-bit lanes.
const STEP: usize = 32;

/// The most steps for which the sum of 16-bit halves certainly fits into a 32-bit lane.
const LONGEST_RUN: usize = 1 << 16;

/// A one's complement sum of 16-bit big-endian words, folded to 16 bits and not yet inverted.
///
/// Zero has two representations here (`0x0000` and `0xffff`), so the type has no `PartialEq`: use
/// [`is_valid`](Sum::is_valid) or compare [`finish`](Sum::finish)ed values of the same derivation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u16);

impl Sum {
    /// The sum of no bytes.
    pub const ZERO: Sum = Sum(0);

    /// The sum of `data`; an odd last byte counts as the high byte of a word (RFC 1071 §4.1).
    #[inline]
    #[must_use]
    pub fn of(data: &[u8]) -> Sum {
        let (steps, rest) = data.as_chunks::<STEP>();
        let mut total = steps.chunks(LONGEST_RUN).fold(0_u64, |total, run| add_with_carry(total, bulk(run)));
        let (words, tail) = rest.as_chunks::<4>();
        for word in words {
            total = add_with_carry(total, u64::from(u32::from_ne_bytes(*word)));
        }
        let mut last = [0_u8; 4];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        total = add_with_carry(total, u64::from(u32::from_ne_bytes(last)));
        Sum(u16::from_be(fold(total)))
    }

    /// The sum of the TCP or UDP pseudo-header (RFC 9293 §3.1, RFC 768): the two addresses, the protocol number
    /// and the length of the transport header with its payload.
    #[inline]
    #[must_use]
    pub fn pseudo_header(addresses: [u8; 8], protocol: u8, length: u16) -> Sum {
        Sum::of(&addresses) + Sum(u16::from(protocol)) + Sum(length)
    }

    /// The sum of a message whose first `at` bytes sum to `self` and whose remaining bytes sum to `next`.
    ///
    /// When `at` is odd the bytes of `next` are in the other halves of their words, so its sum is swapped
    /// (RFC 1071 §2 (B)).
    #[inline]
    #[must_use]
    pub fn followed_by(self, at: usize, next: Sum) -> Sum {
        self + if at.is_multiple_of(2) { next } else { Sum(next.0.swap_bytes()) }
    }

    /// Whether the summed bytes included their own correct checksum: the sum is then all ones (RFC 1071 §1 (3)).
    #[inline]
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.0 == 0xffff
    }

    /// The value for a checksum field that was zero, or not included, while summing.
    #[inline]
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.0
    }

    /// Like [`finish`](Sum::finish), for UDP: there 0 means "no checksum", so a computed 0 is sent as its other
    /// representation (RFC 768).
    #[inline]
    #[must_use]
    pub fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// The folded sum itself: what a checksum field holds while the receiver has to complete the checksum, in a frame
    /// with a partial checksum.
    #[inline]
    #[must_use]
    pub fn partial(self) -> u16 {
        self.0
    }
}

impl From<u16> for Sum {
    /// The sum of one word, given as its value (not its bytes).
    #[inline]
    fn from(word: u16) -> Sum {
        Sum(word)
    }
}

impl Add for Sum {
    type Output = Sum;

    #[inline]
    fn add(self, other: Sum) -> Sum {
        let (sum, carry) = self.0.overflowing_add(other.0);
        // A sum that carried is at most 0xfffe, so the end-around carry cannot carry again.
        Sum(sum.wrapping_add(u16::from(carry)))
    }
}

impl AddAssign for Sum {
    #[inline]
    fn add_assign(&mut self, other: Sum) {
        *self = *self + other;
    }
}

/// The sum of the pseudo-header and the datagram that the UDP checksum covers (RFC 768). Valid if it includes its
/// checksum; otherwise [`Sum::finish_udp`] returns the checksum.
#[inline]
#[must_use]
pub fn udp(source: [u8; 4], destination: [u8; 4], datagram: &[u8]) -> Sum {
    let [[a, b, c, d], [e, f, g, h]] = [source, destination];
    Sum::pseudo_header([a, b, c, d, e, f, g, h], transport::UDP, datagram.len() as u16) + Sum::of(datagram)
}

/// Whether the checksum of an IPv4 header without options is right. The sum does not depend on the order of bytes, so
/// the header is read in the largest words of the machine.
#[inline(always)]
#[must_use]
pub fn is_header_valid(header: &[u8; 20]) -> bool {
    let mut sum: u64 = 0;
    let (words, _) = header.as_chunks::<4>();
    for word in words {
        sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
    }
    let sum = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    sum == 0xffff
}

/// The sum of at most [`LONGEST_RUN`] steps.
///
/// Each lane sums its 32-bit words twice: as they are, modulo 2^32, and their upper halves alone. The lower halves
/// are the difference, and neither half's sum can overflow, so no word has to be widened.
#[inline]
fn bulk(steps: &[[u8; STEP]]) -> u64 {
    let (mut whole, mut upper) = ([0_u32; STEP / 4], [0_u32; STEP / 4]);
    for step in steps {
        let (words, _) = step.as_chunks::<4>();
        for ((whole, upper), word) in whole.iter_mut().zip(&mut upper).zip(words) {
            let word = u32::from_ne_bytes(*word);
            *whole = whole.wrapping_add(word);
            *upper = upper.wrapping_add(word >> 16);
        }
    }
    whole.iter().zip(upper).fold(0, |total, (whole, upper)| {
        let lower = whole.wrapping_sub(upper << 16);
        total.wrapping_add(u64::from(lower)).wrapping_add(u64::from(upper) << 16)
    })
}

#[inline]
fn add_with_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(u64::from(carry))
}

/// Folds to 16 bits; each line halves the width and leaves at most one bit above it.
#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    // The mask makes the conversion lossless.
    (sum & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1, word for word, as the reference.
    fn naive(data: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in data.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&data).partial(), 0xddf2);
        assert_eq!(Sum::of(&data).finish(), 0x220d);
    }

    /// The header of RFC 1071's descendants: the well-known example with checksum 0xb861.
    const HEADER: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
        0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn verifies_and_computes() {
        assert!(is_header_valid(&HEADER));
        assert!(Sum::of(&HEADER).is_valid());
        let mut header = HEADER;
        header[10..12].fill(0);
        assert!(!is_header_valid(&header));
        assert_eq!(Sum::of(&header).finish(), 0xb861);
        for bit in 0..160 {
            let mut header = HEADER;
            header[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_header_valid(&header), "bit {bit}");
            assert!(!Sum::of(&header).is_valid(), "bit {bit}");
        }
    }

    #[test]
    fn folds_every_carry() {
        // The sums of these need the second fold.
        assert!(is_header_valid(&[0xff; 20]) && Sum::of(&[0xff; 20]).is_valid());
        for seed in 0_u32..20_000 {
            let mut header = [0_u8; 20];
            let mut state = seed.wrapping_mul(2_654_435_761) | 1;
            for byte in &mut header {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                *byte = if state & 3 == 0 { 0xff } else { (state >> 8) as u8 };
            }
            header[10..12].fill(0);
            let checksum = Sum::of(&header).finish();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            assert!(is_header_valid(&header) && Sum::of(&header).is_valid());
            header[19] = header[19].wrapping_add(1);
            assert_eq!(is_header_valid(&header), Sum::of(&header).is_valid());
        }
    }

    #[test]
    fn sums_an_odd_length() {
        assert_eq!(Sum::of(&[1, 2, 3]).finish(), !0x0402);
        assert_eq!((Sum::from(0xffff) + Sum::from(1)).finish(), !1);
        // 10.0.0.1 to 10.0.0.2, port 1 to 2, the byte 'x'.
        let datagram = [0, 1, 0, 2, 0, 9, 0, 0, b'x'];
        let sum = 0x0a00 + 1 + 0x0a00 + 2 + 17 + 9 + 1 + 2 + 9 + 0x7800;
        assert_eq!(udp([10, 0, 0, 1], [10, 0, 0, 2], &datagram).finish(), !(sum as u16));
    }

    #[test]
    fn nothing_but_ones_folds_without_overflow() {
        for length in [1, 2, 31, 32, 33, 64, 1460, 65_535, STEP * LONGEST_RUN, STEP * (LONGEST_RUN + 2) + 5] {
            let data = vec![0xff; length];
            assert_eq!(Sum::of(&data).finish(), naive(&data), "{length}");
        }
    }

    #[test]
    fn udp_never_sends_zero() {
        assert_eq!(Sum::of(&[0xff, 0xff]).finish(), 0);
        assert_eq!(Sum::of(&[0xff, 0xff]).finish_udp(), 0xffff);
        assert_eq!(Sum::of(&[0x12, 0x34]).finish_udp(), 0xedcb);
    }

    proptest! {
        #[test]
        fn equals_the_reference(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::of(&data).finish(), naive(&data));
        }

        #[test]
        fn splits_anywhere(data in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..300) {
            let at = at.min(data.len());
            let (head, tail) = data.split_at(at);
            prop_assert_eq!(Sum::of(head).followed_by(at, Sum::of(tail)).finish(), naive(&data));
        }

        #[test]
        fn a_finished_message_is_valid(mut data in proptest::collection::vec(any::<u8>(), 2..300)) {
            data[..2].fill(0);
            let checksum = Sum::of(&data).finish();
            data[..2].copy_from_slice(&checksum.to_be_bytes());
            // A message of zeros alone has the sum 0 with checksum 0xffff, which is valid too.
            prop_assert!(Sum::of(&data).is_valid());
        }

        #[test]
        fn one_changed_bit_is_noticed(
            mut data in proptest::collection::vec(any::<u8>(), 2..300), bit in any::<proptest::sample::Index>(),
        ) {
            data[..2].fill(0);
            let checksum = Sum::of(&data).finish();
            data[..2].copy_from_slice(&checksum.to_be_bytes());
            let bit = bit.index(data.len() * 8);
            data[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!Sum::of(&data).is_valid());
        }

        #[test]
        fn the_pseudo_header_equals_its_bytes(addresses: [u8; 8], protocol: u8, length: u16) {
            let mut bytes = addresses.to_vec();
            bytes.extend([0, protocol]);
            bytes.extend(length.to_be_bytes());
            prop_assert_eq!(Sum::pseudo_header(addresses, protocol, length).finish(), naive(&bytes));
        }
    }
}
