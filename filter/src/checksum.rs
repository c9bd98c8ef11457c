//! The Internet checksum (RFC 1071): verified where a rule depends on it, computed for the one frame that the filter
//! makes itself.

/// A running ones' complement sum.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that start at an even offset of what is summed. An odd last byte counts as if a zero followed.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let mut sum = self.0;
        let mut words = bytes.chunks_exact(2);
        for word in &mut words {
            if let Ok(word) = <[u8; 2]>::try_from(word) {
                sum = sum.wrapping_add(u64::from(u16::from_be_bytes(word)));
            }
        }
        if let [last] = words.remainder() {
            sum = sum.wrapping_add(u64::from(u16::from_be_bytes([*last, 0])));
        }
        Self(sum)
    }

    /// Adds one number of 16 bits.
    pub(crate) fn add_u16(self, word: u16) -> Self {
        Self(self.0.wrapping_add(u64::from(word)))
    }

    /// Whether the sum, which includes a checksum, is right.
    pub(crate) fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    /// The checksum that makes the sum right.
    pub(crate) fn checksum(self) -> u16 {
        !self.fold()
    }

    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff).wrapping_add(sum >> 16);
        }
        sum as u16
    }
}

/// The sum of the pseudo header and the datagram that the UDP checksum covers (RFC 768).
pub(crate) fn udp(source: [u8; 4], destination: [u8; 4], datagram: &[u8]) -> Sum {
    Sum::default().add(&source).add(&destination).add_u16(17).add_u16(datagram.len() as u16).add(datagram)
}

/// Whether the checksum of an IPv4 header without options is right. The sum does not depend on the order of bytes, so
/// the header is read in the largest words of the machine.
#[inline(always)]
pub(crate) fn is_header_valid(header: &[u8; 20]) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of RFC 1071's descendants: the well-known example with checksum 0xb861.
    const HEADER: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
        0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn verifies_and_computes() {
        assert!(is_header_valid(&HEADER));
        assert!(Sum::default().add(&HEADER).is_valid());
        let mut header = HEADER;
        header[10..12].fill(0);
        assert!(!is_header_valid(&header));
        assert_eq!(Sum::default().add(&header).checksum(), 0xb861);
        for bit in 0..160 {
            let mut header = HEADER;
            header[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_header_valid(&header), "bit {bit}");
            assert!(!Sum::default().add(&header).is_valid(), "bit {bit}");
        }
    }

    #[test]
    fn folds_every_carry() {
        // The sums of these need the second fold.
        assert!(is_header_valid(&[0xff; 20]) && Sum::default().add(&[0xff; 20]).is_valid());
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
            let checksum = Sum::default().add(&header).checksum();
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            assert!(is_header_valid(&header) && Sum::default().add(&header).is_valid());
            header[19] = header[19].wrapping_add(1);
            assert_eq!(is_header_valid(&header), Sum::default().add(&header).is_valid());
        }
    }

    #[test]
    fn sums_an_odd_length() {
        assert_eq!(Sum::default().add(&[1, 2, 3]).checksum(), !0x0402);
        assert_eq!(Sum::default().add_u16(0xffff).add_u16(1).checksum(), !1);
        // 10.0.0.1 to 10.0.0.2, port 1 to 2, the byte 'x'.
        let datagram = [0, 1, 0, 2, 0, 9, 0, 0, b'x'];
        let sum = 0x0a00 + 1 + 0x0a00 + 2 + 17 + 9 + 1 + 2 + 9 + 0x7800;
        assert_eq!(udp([10, 0, 0, 1], [10, 0, 0, 2], &datagram).checksum(), !(sum as u16));
    }
}
