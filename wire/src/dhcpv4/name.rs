//! The names that a client gives itself: option 12 (RFC 2132, section 3.14) and the name in option 81 (RFC 4702).
//!
//! Servers write them unchanged into their lease files, and some into a DNS that other hosts query.

/// The longest name, in characters without its end (RFC 1035, section 2.3.4).
const LONGEST: usize = 253;

/// The length of the flags and two codes before the name in option 81.
const FQDN_HEAD: usize = 3;
/// The flag E of option 81: the name has the wire format of DNS (RFC 4702, section 2.1).
const CANONICAL: u8 = 0x04;

/// Whether the value of option 12 is a host name: labels of letters, digits and hyphens.
pub fn is_host_name(name: &[u8]) -> bool {
    let name = match name {
        [name @ .., b'.' | 0] => name,
        name => name,
    };
    name.len() <= LONGEST && name.split(|byte| *byte == b'.').all(is_label)
}

/// Whether the value of option 81 holds a name, in either of its formats. It may be empty: the server chooses.
pub fn is_fqdn_option(value: &[u8]) -> bool {
    match value.split_at_checked(FQDN_HEAD) {
        Some((_, [])) => true,
        Some(([flags, ..], name)) if flags & CANONICAL != 0 => is_wire_name(name),
        Some((_, name)) => is_host_name(name),
        None => false,
    }
}

/// A name in the wire format of DNS, whose last, empty label may be missing (RFC 4702, section 2.3.1).
fn is_wire_name(mut rest: &[u8]) -> bool {
    // Each label counts with its length, in place of the dot before it.
    let mut len = 0_usize;
    loop {
        match rest.split_first() {
            None => return len <= LONGEST.saturating_add(1),
            Some((0, after)) => return after.is_empty() && len <= LONGEST.saturating_add(1),
            Some((label_len, after)) => {
                let Some((label, after)) = after.split_at_checked(usize::from(*label_len)) else {
                    return false;
                };
                if !is_label(label) {
                    return false;
                }
                len = len.saturating_add(label.len()).saturating_add(1);
                rest = after;
            }
        }
    }
}

fn is_label(label: &[u8]) -> bool {
    (1..=63).contains(&label.len()) && label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeated(label: &str, count: usize) -> Vec<u8> {
        vec![label; count].join(".").into_bytes()
    }

    /// C9: option 12.
    #[test]
    fn c9_host_names() {
        let label63 = "a".repeat(63);
        let longest = [repeated(&label63, 3), b".".to_vec(), vec![b'a'; 61]].concat();
        assert_eq!(longest.len(), 253);
        for good in [
            &b"vm"[..],
            b"a",
            b"VM-1.example.com",
            b"9",
            b"-",
            b"vm.",
            b"vm\0",
            label63.as_bytes(),
            &longest,
            &[&longest[..], b"."].concat(),
            &[&longest[..], b"\0"].concat(),
        ] {
            assert!(is_host_name(good), "{}", good.escape_ascii());
        }
        for bad in [
            &b""[..],
            b".",
            b"\0",
            b"vm..",
            b"vm\0\0",
            b"vm.\0",
            b".vm",
            b"a..b",
            b"a b",
            b"a_b",
            b"a\nb",
            b"a\0b",
            b"a=b",
            "ä".as_bytes(),
            b"*",
            "a".repeat(64).as_bytes(),
            &[&longest[..], b"a"].concat(),
            &repeated("a", 128),
        ] {
            assert!(!is_host_name(bad), "{}", bad.escape_ascii());
        }
        assert!(is_host_name(&repeated("a", 127)));
    }

    /// C9: option 81, as text and in the wire format.
    #[test]
    fn c9_names_in_option_81() {
        let text = |name: &[u8]| is_fqdn_option(&[&[1, 255, 255][..], name].concat());
        let wire = |name: &[u8]| is_fqdn_option(&[&[5, 0, 0][..], name].concat());
        assert!(text(b"") && wire(b""));
        assert!(text(b"vm.example.com") && text(b"vm.") && !text(b"v m") && !text(b"\x02vm\0"));
        for good in [&b"\0"[..], b"\x02vm", b"\x02vm\0", b"\x02vm\x07example\x03com\0"] {
            assert!(wire(good), "{}", good.escape_ascii());
        }
        for bad in [&b"vm"[..], b"\x03vm", b"\x02vm\0\0", b"\x02v.", b"\x02v\n\0", b"\xc0\x0c", b"\x40"] {
            assert!(!wire(bad), "{}", bad.escape_ascii());
        }
        let label = [&[63][..], &[b'a'; 63]].concat();
        let longest = [label.repeat(3), vec![61], vec![b'a'; 61]].concat();
        assert!(wire(&longest) && wire(&[&longest[..], &[0]].concat()));
        assert!(!wire(&[label.repeat(3), vec![62], vec![b'a'; 62]].concat()));
        for short in [&[][..], &[1], &[1, 0]] {
            assert!(!is_fqdn_option(short));
        }
    }
}
