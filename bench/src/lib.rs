//! What the programs of the benchmark share.
//!
//! The forwarders are the yardsticks: they carry frames between a VM's datagram socket and a TAP without looking at
//! them, one frame a system call (`forward-one`) or many (`forward-batch`). The pump makes a network namespace look
//! like a VM. `bench` itself builds the networks, runs each peer, makes traffic, and reports.

pub mod sys;
