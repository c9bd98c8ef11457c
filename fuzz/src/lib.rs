//! The oracle, the scenes and the targets themselves, as `cargo test` uses them too.

#[path = "../../softnet/tests/framing/check.rs"]
pub mod framing;
#[path = "../../filter/tests/fuzzing/mod.rs"]
pub mod fuzzing;
#[path = "../../filter/tests/oracle/mod.rs"]
mod oracle;
#[path = "../../filter/tests/scene/mod.rs"]
mod scene;
