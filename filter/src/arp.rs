//! Address resolution (RFC 826), the rules A and I3.

use core::net::Ipv4Addr;

use crate::frame::Frame;
use crate::lease::Lease;
use crate::mac::MacAddr;
use crate::port::Identity;
use crate::table::{Class, Table};
use crate::verdict::DropReason;

const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// ARP for IPv4 over Ethernet, of full length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arp {
    operation: u16,
    sender_mac: MacAddr,
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

impl Arp {
    /// Bytes of ARP for IPv4 over Ethernet.
    pub(crate) const LEN: usize = 28;

    /// `None` if the packet is truncated, or for other hardware, another protocol or other address lengths (A1).
    #[inline(always)]
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let packet = bytes.first_chunk::<{ Self::LEN }>()?;
        // Hardware type 1, protocol type 0x0800, address lengths 6 and 4.
        let [
            0,
            1,
            8,
            0,
            6,
            4,
            op0,
            op1,
            m0,
            m1,
            m2,
            m3,
            m4,
            m5,
            s0,
            s1,
            s2,
            s3,
            _,
            _,
            _,
            _,
            _,
            _,
            t0,
            t1,
            t2,
            t3,
        ] = *packet
        else {
            return None;
        };
        Some(Self {
            operation: u16::from_be_bytes([op0, op1]),
            sender_mac: MacAddr([m0, m1, m2, m3, m4, m5]),
            sender: Ipv4Addr::new(s0, s1, s2, s3),
            target: Ipv4Addr::new(t0, t1, t2, t3),
        })
    }

    /// Judges ARP of the VM. `lease` is valid now; `offered` is the address that the server has just offered.
    #[inline(always)]
    pub(crate) fn judge_from_vm(
        &self,
        frame: &Frame<'_>,
        identity: &Identity,
        table: &Table,
        lease: Option<&Lease>,
        offered: Option<Ipv4Addr>,
    ) -> Result<(), DropReason> {
        // A1
        if self.operation != REQUEST && self.operation != REPLY {
            return Err(DropReason::ArpMalformed);
        }
        // L5: ARP goes to one station or to all, never to the groups of bridges and switches.
        if !identity.may_be_peer(frame.destination) && !frame.destination.is_broadcast() {
            return Err(if frame.destination.is_group() {
                DropReason::GroupMac
            } else {
                DropReason::DestinationMac
            });
        }
        // A2
        if self.sender_mac != identity.vm_mac {
            return Err(DropReason::ArpSenderMac);
        }
        // A3, A4: whether somebody else has the address that the VM is about to use (RFC 5227, section 2.1.1).
        let own = lease.map(|lease| lease.address);
        if self.operation == REQUEST && self.sender.is_unspecified() {
            let may_probe = Some(self.target) == own || Some(self.target) == offered;
            return match own {
                _ if may_probe => Ok(()),
                Some(_) => Err(DropReason::ArpTarget),
                None => Err(DropReason::ArpNoLease),
            };
        }
        let Some(lease) = lease else {
            return Err(DropReason::ArpNoLease);
        };
        if self.sender != lease.address {
            return Err(DropReason::ArpSenderAddress);
        }
        // A5. A reply tells nothing but the truth about the VM's own address, whoever asked.
        if self.operation == REPLY
            || self.target == identity.gateway
            || self.target == lease.address
            || lease.resolvers.contains(self.target)
            || (identity.is_on_link(self.target) && table.classify(self.target) == Class::Allowed)
        {
            Ok(())
        } else {
            Err(DropReason::ArpTarget)
        }
    }

    /// Judges ARP on its way to the VM: nobody but the gateway claims the gateway's address (I3).
    pub(crate) fn judge_from_host(&self, frame: &Frame<'_>, identity: &Identity) -> Result<(), DropReason> {
        let from_gateway = self.sender_mac == identity.gateway_mac && frame.source == identity.gateway_mac;
        if self.sender == identity.gateway && !from_gateway {
            return Err(DropReason::ArpGateway);
        }
        Ok(())
    }
}
