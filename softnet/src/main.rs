//! The `softnet` program.
fn main() {}
