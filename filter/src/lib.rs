//! The packet filter of Softnet.
#![forbid(unsafe_code)]
