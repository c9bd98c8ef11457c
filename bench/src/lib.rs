//! Code that the programs of the benchmark share.
//!
//! The forwarders are the references: they carry frames between a VM's datagram socket and a TAP without
//! looking at them, one frame per system call (`forward-one`) or many (`forward-batch`). The pump makes a
//! network namespace look like a VM. `bench` itself builds the networks, runs each peer, generates traffic,
//! and reports.

pub mod sys;
