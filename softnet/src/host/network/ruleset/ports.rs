//! Source ports of translated flows (rule H6): random, and from a range that no service of the host uses.
//!
//! Answers to a translated flow go to the VM by address and port alone, before the host's sockets and other
//! VMs' exposed ports are considered. So a flow must never get a port on which the host or another VM expects
//! packets, even while the peer is silent. The range leaves out the ports that VMs expose, those that sockets
//! of the host are bound to, and those for the host's own connections (`ip_local_port_range`).
//!
//! Protocols without ports or identifiers that conntrack knows (ESP, GRE) are translated by address only:
//! only one VM at a time can use them with a given peer, and the host's packets of such a protocol from that
//! peer go to that VM.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::RangeInclusive;

/// The chain that translates.
pub const CHAIN: &str = "translate";

/// The range of source ports if all are free: above the ports of most services, below those of the host's
/// connections.
const RANGE: RangeInclusive<u16> = 10240..=29999;

/// The largest number of pieces of the range; of more, the longest are kept.
const PIECES: usize = 64;

/// The pieces of the range that remain without `taken` ports and the host's range for its own connections.
pub fn free(taken: &BTreeSet<u16>, of_connections: &RangeInclusive<u16>) -> Vec<RangeInclusive<u16>> {
    let mut pieces: Vec<RangeInclusive<u16>> = Vec::new();
    for port in RANGE.filter(|port| !taken.contains(port) && !of_connections.contains(port)) {
        match pieces.last_mut() {
            Some(last) if last.end().checked_add(1) == Some(port) => *last = *last.start()..=port,
            _ => pieces.push(port..=port),
        }
    }
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
    pieces.truncate(PIECES);
    pieces.sort_by_key(|piece| *piece.start());
    pieces
}

/// How many ports the pieces hold.
pub fn count(pieces: &[RangeInclusive<u16>]) -> usize {
    pieces.iter().map(ExactSizeIterator::len).sum()
}

/// The chain that translates, and one for each piece. A flow's piece is drawn by the pieces' lengths.
pub fn chains(pieces: &[RangeInclusive<u16>]) -> String {
    const WITH_PORTS: &str = "meta l4proto { tcp, udp, icmp }";
    let mut text = String::new();
    let (mut choices, mut total) = (Vec::new(), 0_usize);
    for (number, piece) in pieces.iter().enumerate() {
        let (first, last) = (piece.start(), piece.end());
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\tchain ports{number} {{\n\t\t{WITH_PORTS} masquerade to :{first}-{last} fully-random\n\t}}\n"
        );
        choices.push(format!("{total}-{} : goto ports{number}", total + piece.len() - 1));
        total += piece.len();
    }
    let choice = match choices.as_slice() {
        [] => String::new(),
        [_] => format!("\t\t{WITH_PORTS} goto ports0\n"),
        some => format!("\t\t{WITH_PORTS} numgen random mod {total} vmap {{ {} }}\n", some.join(", ")),
    };
    text + &format!("\tchain {CHAIN} {{\n{choice}\t\tmasquerade fully-random\n\t}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_has_gaps_where_ports_are_taken() {
        let pieces = free(&[51820, 12000, 12001, 29999].into(), &(32768..=60999));
        assert_eq!(pieces, [10240..=11999, 12002..=29998]);
        assert_eq!(count(&pieces), 29999 - 10240 + 1 - 3);
        let text = chains(&pieces);
        assert!(
            text.contains("numgen random mod 19757 vmap { 0-1759 : goto ports0, 1760-19756 : goto ports1 }"),
            "{text}"
        );
    }

    #[test]
    fn the_hosts_own_connections_keep_their_ports() {
        assert_eq!(free(&BTreeSet::new(), &(20000..=65535)), [10240..=19999]);
        assert_eq!(free(&BTreeSet::new(), &(1024..=65535)), []);
        assert!(chains(&[]).contains("masquerade fully-random"));
    }

    #[test]
    fn of_many_pieces_the_longest_are_kept() {
        let taken: BTreeSet<u16> = (10240..=20000).step_by(2).collect();
        let pieces = free(&taken, &(32768..=60999));
        assert_eq!(pieces.len(), PIECES);
        assert!(pieces.contains(&(20001..=29999)));
    }

    #[test]
    fn a_piece_of_one_port_is_a_range_too() {
        assert!(chains(&[5..=5, 7..=9]).contains("0-0 : goto ports0, 1-3 : goto ports1"));
    }
}
