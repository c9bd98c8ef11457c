//! Cutting: whatever a TAP hands over.
#![no_main]

#[path = "../../offload/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| common::invariants::super_frame(bytes));
