//! Any bytes as one frame of either side, against the oracle.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| softnet_fuzz::fuzzing::frame(data));
