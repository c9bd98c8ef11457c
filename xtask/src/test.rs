//! `cargo xtask test`: everything that must hold before a change goes in.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::packages;

/// Check formatting, lints and documentation, and run all tests: unit, property and end-to-end with real guests
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run the lints only
    #[arg(long)]
    lints: bool,
}

/// The numbers of `test result:` lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Runs every step, also after a failed one, and then lists what failed.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !args.lints {
        packages::need_root("test")?;
        packages::ensure_installed(&[
            packages::LAB,
            packages::UML,
            packages::QEMU,
            packages::UNPRIVILEGED,
            packages::FIREWALLS,
            packages::CLIENTS,
        ])?;
    }
    let mut documentation = cargo("doc --workspace --no-deps --quiet");
    // The crates are not published: a reader of that page has the private item in the next file.
    documentation.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    let mut steps = vec![
        ("formatting", cargo("fmt --all --check")),
        ("lints", cargo("clippy --workspace --all-targets --quiet -- -D warnings")),
        ("documentation", documentation),
    ];
    if !args.lints {
        steps.push(("tests", cargo("test --workspace --no-fail-fast")));
    }
    let mut results = Vec::new();
    let mut failures = Failures::default();
    let mut tally = Tally::default();
    let count = steps.len();
    for (index, (name, command)) in steps.into_iter().enumerate() {
        println!("==> {}/{count} {name}", index + 1);
        let started = Instant::now();
        let good = step(command, &mut tally, &mut failures)?;
        results.push((name, good, started.elapsed()));
    }
    if !args.lints {
        println!("==> fuzzing ({} s per target)", crate::fuzz::SHORT);
        let started = Instant::now();
        let good = crate::fuzz::run_shortly().unwrap_or_else(|error| {
            println!("{error:#}");
            Some(ExitCode::FAILURE)
        });
        results.push(("fuzzing", good != Some(ExitCode::FAILURE), started.elapsed()));
    }
    println!();
    // Printed again, because much output followed them.
    failures.print();
    for (name, good, took) in &results {
        let verdict = if *good { "ok" } else { "FAILED" };
        println!("{name:<16}{verdict:<8}{:>6.1} s", took.as_secs_f64());
    }
    let took: Duration = results.iter().map(|(.., took)| *took).sum();
    println!("{:<24}{:>6.1} s", "total", took.as_secs_f64());
    if !args.lints {
        println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.ignored);
    }
    let good = results.iter().all(|(_, good, _)| *good);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one step, prints its output as it comes, counts its tests, and keeps the messages of failed ones.
fn step(mut command: Command, tally: &mut Tally, failures: &mut Failures) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.stdout.take().context("standard output is piped")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        tally.add(&line);
        failures.add(&line);
    }
    Ok(child.wait()?.success())
}

/// The messages of failed tests.
#[derive(Debug, Default)]
struct Failures {
    lines: Vec<String>,
    within: bool,
}

impl Failures {
    /// Keeps a line between `failures:` and the next `test result:`.
    fn add(&mut self, line: &str) {
        self.within = (self.within || line == "failures:") && !line.starts_with("test result: ");
        if self.within && !line.is_empty() {
            self.lines.push(line.to_owned());
        }
    }

    fn print(&self) {
        for line in &self.lines {
            println!("{line}");
        }
    }
}

impl Tally {
    /// Adds a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; …`; ignores any other line.
    fn add(&mut self, line: &str) {
        let Some((_, numbers)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in numbers.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_kept() {
        let mut failures = Failures::default();
        let lines = [
            "test a ... ok",
            "failures:",
            "",
            "---- b ----",
            "why",
            "test result: FAILED. …",
            "test c ... ok",
        ];
        lines.iter().for_each(|line| failures.add(line));
        assert_eq!(failures.lines, ["failures:", "---- b ----", "why"]);
    }

    #[test]
    fn only_result_lines_count() {
        let mut tally = Tally::default();
        tally.add("test a ... ok");
        tally.add(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        );
        tally.add("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        assert_eq!(tally, Tally { passed: 14, failed: 3, ignored: 1 });
    }
}
