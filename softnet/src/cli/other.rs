//! A system with one host side.

use clap::Args;

/// Nothing to choose.
#[derive(Debug, Args)]
pub struct HostArgs {}
