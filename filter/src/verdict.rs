//! What happens to a frame, and why.

use core::fmt;

/// The filter's answer for one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a frame whose verdict is not looked at is forwarded unfiltered"]
pub enum Verdict {
    /// Pass the frame on, as it is. If the link then loses it, that is counted too (rule L6).
    Forward,
    /// Do not pass the frame on; it has been counted under this reason.
    Drop(DropReason),
}

impl Verdict {
    /// Whether the frame is forwarded.
    pub const fn is_forward(self) -> bool {
        matches!(self, Self::Forward)
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])+ $variant:ident: $rule:literal $name:literal,)+) => {
        /// Why a frame was dropped: one way to break one rule.
        ///
        /// The [name](DropReason::name) is stable. It is the word that users see in logs, counters and captures.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of the rules.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// How many reasons there are.
            pub(crate) const COUNT: usize = Self::ALL.len();

            /// The stable, kebab-case word for users, such as `source-mac`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The rule that the frame broke, such as `L1`.
            pub const fn rule(self) -> &'static str {
                match self { $(Self::$variant => $rule,)+ }
            }
        }
    };
}

drop_reasons! {
    /// The VM sent from a MAC address that is not its own.
    SourceMac: "L1" "source-mac",
    /// The VM sent a VLAN-tagged frame.
    VlanTag: "L2" "vlan-tag",
    /// The VM sent IPv6, for which there are no rules yet.
    Ipv6: "L2" "ipv6",
    /// The VM sent neither IPv4 nor ARP: LLC, LLDP, pause, RARP and all others.
    EtherType: "L2" "ether-type",
    /// The frame is shorter than an Ethernet header.
    Runt: "L3" "runt",
    /// The link had to cut the frame when it received it.
    Truncated: "L3" "truncated",
    /// The frame is longer than the link's MTU allows. A packet that must not be fragmented is answered.
    Oversize: "L3" "oversize",
    /// A packet that a router would have to fragment, which Softnet does not: it is longer than the link's MTU allows,
    /// and all other rules let it through.
    MustFragment: "L3" "must-fragment",
    /// There are bytes after the packet beyond padding.
    TrailingBytes: "L4" "trailing-bytes",
    /// A unicast packet in a frame for a station that the VM may not address: neither the gateway nor an allowed
    /// neighbour.
    DestinationMac: "L5" "destination-mac",
    /// A unicast packet in a broadcast or multicast frame.
    GroupMac: "L5" "group-mac",
    /// A multicast packet in a frame that is not for its own multicast address.
    MulticastMac: "L5" "multicast-mac",
    /// A frame of the VM that passed, but the host's queue stayed full.
    HostQueueFull: "L6" "host-queue-full",
    /// A frame of the VM that passed, but the host's link refused it: its interface is down, for one.
    HostRefused: "L6" "host-refused",
    /// A frame for the VM that passed, but the VM's queue stayed full.
    VmQueueFull: "L6" "vm-queue-full",
    /// A frame for the VM that passed, but the VM's link refused it.
    VmRefused: "L6" "vm-refused",
    /// A frame from the host that is longer than the host's own MTU allows, or that the link could not cut.
    HostOversize: "L6" "host-oversize",

    /// ARP that is truncated, not for IPv4 over Ethernet, or neither request nor reply.
    ArpMalformed: "A1" "arp-malformed",
    /// ARP whose sender hardware address is not the VM's.
    ArpSenderMac: "A2" "arp-sender-mac",
    /// ARP whose sender protocol address is not the VM's leased address.
    ArpSenderAddress: "A3" "arp-sender-address",
    /// ARP from a VM that has no lease.
    ArpNoLease: "A4" "arp-no-lease",
    /// An ARP request for an address that the VM has no reason to resolve.
    ArpTarget: "A5" "arp-target",

    /// IPv4 from a VM that has no valid lease.
    NoLease: "S1" "no-lease",
    /// IPv4 from an address that is not the VM's lease.
    SourceAddress: "S1" "source-address",
    /// An IPv4 header with a wrong version or lengths that do not fit.
    Ipv4Malformed: "S2" "ipv4-malformed",
    /// An IPv4 header with a wrong checksum.
    Ipv4Checksum: "S2" "ipv4-checksum",
    /// An IPv4 packet that may not be forwarded: its time to live is 0.
    TtlZero: "S2" "ttl-zero",
    /// An IPv4 packet with the reserved flag.
    ReservedFlag: "S2" "reserved-flag",
    /// An IPv4 packet with options, other than Router Alert in IGMP to a multicast group.
    Ipv4Options: "S3" "ipv4-options",
    /// IGMP to a multicast group that is not what a host reports: of another type, to another group, malformed, or with
    /// a time to live above 1.
    IgmpMessage: "S3" "igmp-message",
    /// A fragment that reaches beyond the largest possible packet.
    FragmentBeyondEnd: "S4" "fragment-beyond-end",
    /// A fragment that forbids fragmentation.
    FragmentDontFragment: "S4" "fragment-dont-fragment",
    /// A fragment, not the last, whose length is no multiple of 8; or any without data.
    FragmentLength: "S4" "fragment-length",
    /// A first fragment that does not hold the whole header of its transport protocol.
    FragmentHeader: "S4" "fragment-header",
    /// A TCP fragment at offset 1, which would overwrite the flags of the first.
    FragmentOffset: "S4" "fragment-offset",
    /// A fragment to a destination where only some ports or protocols are open, or to a neighbour.
    FragmentRestricted: "S4" "fragment-restricted",
    /// A truncated TCP header.
    TcpHeader: "S5" "tcp-header",
    /// A truncated UDP header.
    UdpHeader: "S5" "udp-header",
    /// A UDP length that disagrees with the packet's.
    UdpLength: "S5" "udp-length",
    /// A truncated ICMP header.
    IcmpHeader: "S5" "icmp-header",

    /// A destination that nothing opens: this network, loopback, reserved, broadcast, the VM itself.
    NeverDestination: "D1" "never-destination",
    /// A destination that `--block` names.
    Blocked: "D2" "blocked",
    /// A destination that is not globally reachable: private, link-local, documentation and the like.
    NotGlobal: "D3" "not-global",
    /// A multicast destination.
    Multicast: "D3" "multicast",
    /// A neighbour on the VM's own network.
    Neighbour: "D3" "neighbour",
    /// Neither TCP nor UDP nor ICMP to the gateway, or to another address of the host.
    GatewayProtocol: "D4" "gateway-protocol",
    /// Anything but DNS to a resolver that is open for DNS only.
    ResolverPort: "D5" "resolver-port",
    /// ICMP of a type that a VM does not need to send.
    IcmpType: "D6" "icmp-type",
    /// An ICMP error about a packet that was not for the VM.
    IcmpQuote: "D6" "icmp-quote",
    /// A global destination in a network of the type `host`.
    HostOnly: "D9" "host-only",

    /// UDP of the VM on the DHCP ports, but not from 68 to 67.
    DhcpPorts: "C1" "dhcp-ports",
    /// A fragment of what would be DHCP.
    DhcpFragment: "C1" "dhcp-fragment",
    /// DHCP with a wrong UDP checksum.
    DhcpChecksum: "C1" "dhcp-checksum",
    /// DHCP neither broadcast nor to the server by a VM with a lease.
    DhcpDestination: "C1" "dhcp-destination",
    /// A message that is no BOOTP request of this VM.
    DhcpHeader: "C2" "dhcp-header",
    /// A `chaddr` that is not the VM's MAC address.
    DhcpHardwareAddress: "C2" "dhcp-hardware-address",
    /// DHCP options that are truncated, repeated, of a wrong length or without an end.
    DhcpOptions: "C2" "dhcp-options",
    /// A DHCP message that only a server or a relay may send.
    DhcpMessageType: "C3" "dhcp-message-type",
    /// DHCP from an IP address that is neither 0.0.0.0 nor the VM's lease.
    DhcpSource: "C4" "dhcp-source",
    /// A `ciaddr` that is neither 0.0.0.0 nor the VM's lease.
    DhcpClientAddress: "C4" "dhcp-client-address",
    /// Relay agent information (option 82), which only a relay may add.
    DhcpRelayOption: "C5" "dhcp-relay-option",
    /// Option overload (52), which could hide options.
    DhcpOverload: "C5" "dhcp-overload",
    /// A client identifier that is split or too short.
    DhcpClientId: "C5" "dhcp-client-id",
    /// A client identifier that names the MAC address of another station.
    DhcpClientIdForeign: "C5" "dhcp-client-id-foreign",
    /// New client identifiers at a higher rate than systems that start one after the other need.
    DhcpClientIdLimit: "C5" "dhcp-client-id-limit",
    /// A RELEASE of an address that is not the VM's lease.
    DhcpRelease: "C6" "dhcp-release",
    /// A DECLINE of an address that was not offered to the VM.
    DhcpDecline: "C6" "dhcp-decline",
    /// More DHCP than a client sends.
    DhcpRate: "C7" "dhcp-rate",
    /// DHCP for another server than the gateway (option 54).
    DhcpServer: "C8" "dhcp-server",
    /// A client's name that is no host name (options 12 and 81).
    DhcpName: "C9" "dhcp-name",

    /// A DHCP reply that is not from the known server: MAC address, IP address, port or server identifier.
    ReplyServer: "B1" "reply-server",
    /// A fragment of what would be a DHCP reply.
    ReplyFragment: "B1" "reply-fragment",
    /// A DHCP reply without a valid checksum.
    ReplyChecksum: "B1" "reply-checksum",
    /// A DHCP reply that is neither for the VM's MAC address nor broadcast, or for another IP address than it gives.
    ReplyDestination: "B1" "reply-destination",
    /// Not a BOOTP reply, in a frame for the port of a DHCP client.
    ReplyHeader: "B1" "reply-header",
    /// A DHCP reply whose `chaddr` is not the VM's MAC address.
    ReplyHardwareAddress: "B1" "reply-hardware-address",
    /// A DHCP reply to a request that the VM did not send, that has been answered, or that the VM has made void.
    ReplyTransaction: "B1" "reply-transaction",
    /// A DHCP reply of a type that servers do not send.
    ReplyType: "B1" "reply-type",
    /// A DHCP reply that gives an address which cannot be the VM's.
    ReplyAddress: "B2" "reply-address",
    /// A DHCP reply with broken options.
    ReplyOptions: "B3" "reply-options",
    /// A DHCP reply that gives an address without a lease time, or for 0 seconds.
    ReplyLeaseTime: "B3" "reply-lease-time",
    /// A DHCP message of the VM that requests something else under the number of one that waits for its answer.
    DhcpTransaction: "B7" "dhcp-transaction",

    /// A port of the host that leads to another VM.
    ExposedPort: "H2" "exposed-port",
    /// On its way to a VM whose address the host is not ready for yet: it may be for the address's former holder.
    NotReady: "H3" "not-ready",

    /// A frame for another station.
    OtherStation: "I2" "other-station",
    /// A VLAN-tagged frame on its way to the VM.
    HostVlanTag: "I2" "host-vlan-tag",
    /// Neither IPv4 nor ARP on its way to the VM.
    HostEtherType: "I2" "host-ether-type",
    /// ARP from elsewhere that claims the gateway's address.
    ArpGateway: "I3" "arp-gateway",
    /// IPv4 or ARP on its way to the VM that cannot be parsed, and therefore not be judged.
    HostMalformed: "I4" "host-malformed",

    /// What `--block` keeps from beginning towards the VM.
    IncomingBlocked: "P4" "incoming-blocked",

    /// A packet that belongs to no flow and can begin none.
    NoFlow: "F1" "no-flow",
    /// A packet that would begin a flow, of which there are too many.
    FlowsFull: "F4" "flows-full",
    /// A fragment of no flow.
    FragmentFlow: "F5" "fragment-flow",
    /// A packet of a connection that a new policy has ended.
    FlowEnded: "F6" "flow-ended",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_kebab_case_words() {
        let mut seen = HashSet::new();
        for reason in DropReason::ALL {
            let name = reason.name();
            assert!(seen.insert(name), "{name} twice");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
            assert_eq!(reason.to_string(), name);
        }
    }

    #[test]
    fn reasons_are_in_the_order_of_the_rules() {
        let order = |rule: &str| {
            let (group, number) = rule.split_at(1);
            ("LASDCBHIPF".find(group).unwrap(), number.parse::<u32>().unwrap())
        };
        assert!(DropReason::ALL.windows(2).all(|pair| order(pair[0].rule()) <= order(pair[1].rule())));
        assert!(DropReason::ALL.iter().enumerate().all(|(index, &reason)| reason as usize == index));
    }

    #[test]
    fn only_forward_is_forward() {
        assert!(Verdict::Forward.is_forward());
        assert!(!Verdict::Drop(DropReason::Runt).is_forward());
    }
}
