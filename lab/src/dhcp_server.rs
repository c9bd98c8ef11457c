//! A DHCP server and client on the wire that the test controls, for tests that choose every byte of a reply.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::wire::{Dhcp, Mac, dhcp_kind as kind, dhcp_option as option, parse_dhcp};
use crate::{Segment, VmPort};

/// Plays the server of a [`Segment`]: the bridge's own addresses, one lease, no state but what a test sets.
#[derive(Debug)]
pub struct DhcpServer<'a> {
    segment: &'a Segment,
    /// Option 1.
    pub mask: Ipv4Addr,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 51, in seconds.
    pub lease_seconds: u32,
}

impl<'a> DhcpServer<'a> {
    /// A server for a /24 that offers itself as resolver, with leases of 600 s.
    #[must_use]
    pub fn new(segment: &'a Segment) -> Self {
        let mask = Ipv4Addr::new(255, 255, 255, 0);
        Self { segment, mask, dns: vec![segment.gateway], lease_seconds: 600 }
    }

    /// The same server with these resolvers in option 6.
    #[must_use]
    pub fn with_dns(self, dns: Vec<Ipv4Addr>) -> Self {
        Self { dns, ..self }
    }

    /// The same server with leases of so many seconds.
    #[must_use]
    pub fn with_lease_seconds(self, lease_seconds: u32) -> Self {
        Self { lease_seconds, ..self }
    }

    /// A valid reply of this type to the client's message, with `address`.
    #[must_use]
    pub fn answer(&self, kind: u8, xid: u32, client: Mac, address: Ipv4Addr) -> Dhcp {
        let server = self.segment.gateway;
        let mut answer = Dhcp::server(kind, xid, client, server);
        if kind != kind::NAK {
            answer.yiaddr = address;
            let dns: Vec<u8> = self.dns.iter().flat_map(Ipv4Addr::octets).collect();
            answer = answer
                .with(option::LEASE_TIME, &self.lease_seconds.to_be_bytes())
                .with(option::SUBNET_MASK, &self.mask.octets())
                .with(option::ROUTER, &server.octets());
            if !dns.is_empty() {
                answer = answer.with(option::RESOLVERS, &dns);
            }
        }
        answer
    }

    /// The frame of a reply as this server sends it: from the bridge, to the client's own MAC and new
    /// address.
    #[must_use]
    pub fn frame(&self, answer: &Dhcp, client: Mac) -> Vec<u8> {
        let to = if answer.message_type() == kind::NAK { Ipv4Addr::BROADCAST } else { answer.yiaddr };
        answer.packet(self.segment.gateway, to).frame(client, self.segment.mac)
    }

    /// Sends a reply.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub fn send(&self, answer: &Dhcp, client: Mac) -> Result<()> {
        self.segment.send(&self.frame(answer, client))
    }

    /// Waits until Softnet forwards a client's message of this type.
    ///
    /// # Errors
    /// Fails if none arrives.
    pub fn heard(&self, kind: u8, xid: u32) -> Result<Dhcp> {
        let is_it = |frame: &[u8]| {
            parse_dhcp(frame).is_some_and(|it| it.op == 1 && it.xid == xid && it.message_type() == kind)
        };
        let (_, frame) = self.segment.expect(&format!("DHCP message {kind} with xid {xid:#x}"), is_it)?;
        parse_dhcp(&frame).ok_or_else(|| anyhow::anyhow!("just parsed"))
    }

    /// The whole exchange: the VM at `vm` requests and gets `address`; its lease is active when this returns.
    ///
    /// # Errors
    /// Says which message did not arrive.
    pub fn lease(&self, vm: &VmPort, client: Mac, address: Ipv4Addr, xid: u32) -> Result<()> {
        vm.send(&Dhcp::client(kind::DISCOVER, xid, client).broadcast())?;
        self.heard(kind::DISCOVER, xid)?;
        self.send(&self.answer(kind::OFFER, xid, client, address), client)?;
        Self::told(vm, kind::OFFER, xid)?;
        self.confirm(vm, client, address, xid)
    }

    /// The second half of the exchange: REQUEST and ACK.
    ///
    /// # Errors
    /// Says which message did not arrive.
    pub fn confirm(&self, vm: &VmPort, client: Mac, address: Ipv4Addr, xid: u32) -> Result<()> {
        let request = Dhcp::client(kind::REQUEST, xid, client)
            .with(option::REQUESTED_ADDRESS, &address.octets())
            .with(option::SERVER, &self.segment.gateway.octets());
        vm.send(&request.broadcast())?;
        self.heard(kind::REQUEST, xid)?;
        self.send(&self.answer(kind::ACK, xid, client, address), client)?;
        Self::told(vm, kind::ACK, xid)?;
        Ok(())
    }

    /// Waits until the VM receives the server's message of this type.
    ///
    /// # Errors
    /// Fails if it does not arrive.
    pub fn told(vm: &VmPort, kind: u8, xid: u32) -> Result<Dhcp> {
        let is_it = |frame: &[u8]| {
            parse_dhcp(frame).is_some_and(|it| it.op == 2 && it.xid == xid && it.message_type() == kind)
        };
        let (_, frame) = vm.expect(&format!("DHCP message {kind} with xid {xid:#x}"), is_it)?;
        parse_dhcp(&frame).ok_or_else(|| anyhow::anyhow!("just parsed"))
    }
}
