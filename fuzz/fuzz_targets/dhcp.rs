//! DHCP messages in frames that are right, against the oracle.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| softnet_fuzz::fuzzing::dhcp_message(data));
