//! The dependencies, judged by cargo-deny and `deny.toml`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cargo::cargo;

/// Runs cargo-deny by deny.toml. What cannot be checked here is said, and is no failure.
pub fn check() -> Result<()> {
    let quietly = |command: &mut Command| {
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !quietly(&mut cargo("deny --version")) {
        println!("dependencies NOT checked: there is no cargo-deny (cargo install --locked cargo-deny)");
        return Ok(());
    }
    let mut checks = vec!["licenses", "bans", "sources"];
    if quietly(&mut cargo("deny fetch db")) {
        checks.push("advisories");
    } else {
        println!("advisories NOT checked: their database cannot be fetched");
    }
    let status =
        cargo("deny --locked check --hide-inclusion-graph").args(checks).status().context("start cargo")?;
    ensure!(status.success(), "cargo-deny found something");
    Ok(())
}
