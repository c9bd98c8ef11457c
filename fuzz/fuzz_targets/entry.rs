//! Any text as an entry of a policy.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| softnet_fuzz::fuzzing::entry(data));
