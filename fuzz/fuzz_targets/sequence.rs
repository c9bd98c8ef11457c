//! Sequences of valid and spoilt frames from both sides, against the oracle.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| softnet_fuzz::fuzzing::sequence(data));
