//! Merging: whatever a VM sends in a batch.
#![no_main]

#[path = "../../offload/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|program: &[u8]| common::invariants::batch(program));
