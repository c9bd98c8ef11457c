//! The addresses that the VM may use, and how it gets them.

pub(crate) mod dhcpv4;
