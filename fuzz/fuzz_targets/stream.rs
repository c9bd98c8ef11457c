//! Any bytes on a stream socket, in any pieces, against a second reading of the framing.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| softnet_fuzz::framing::check(data));
