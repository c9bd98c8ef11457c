//! The dependencies, judged by cargo-deny and `deny.toml`: licences, bans, sources, yanked versions, advisories.
//!
//! Only the advisory database does not come from the registry. It may be a clone on disk, and where it cannot
//! be fetched everything else is still checked; this is reported, and does not count as a failure. Each run
//! first verifies that a planted advisory is found.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::advisories::{Database, LIMIT, PLANTED, PUBLIC};
use super::remove;
use crate::cargo::{cargo, root};

/// Checks everything, by the advisory database in the folder `advisory_db` or else the public one. Returns what could not
/// be checked, and why.
pub fn check(advisory_db: Option<&Path>) -> Result<Vec<String>> {
    println!("==> checking the dependencies");
    let given = advisory_db.map(Database::open).transpose()?;
    install()?;
    let place = root().join("target/release-check/dependencies");
    remove(&place)?;
    fs::create_dir_all(&place)?;
    let planted = Database::plant(&place.join("planted"), "libc")?;
    let output = deny(&place, &planted, &["advisories"])?.output().context("start cargo")?;
    let finds = !output.status.success() && String::from_utf8_lossy(&output.stderr).contains(PLANTED);
    ensure!(
        finds,
        "cargo-deny does not find a planted advisory: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("cargo-deny finds a planted advisory");

    let mut unchecked = Vec::new();
    if !refresh_index() {
        unchecked.push("versions yanked lately: the registry cannot be reached".to_owned());
    }
    let mut checks = vec!["licenses", "bans", "sources", "advisories"];
    let database = given.map_or_else(|| Database::fetch(PUBLIC, LIMIT, &place.join("fetched")), Ok);
    let database = database.inspect(|database| println!("the advisory database is of {}", database.date));
    let database = database.unwrap_or_else(|error| {
        unchecked.push(format!("advisories: {error:#}; pass a local clone with --advisory-db"));
        // Yanked versions belong to the check of advisories, which wants a database: the planted one, known by now.
        checks.insert(0, "--allow=vulnerability");
        planted
    });
    let status = deny(&place, &database, &checks)?.status().context("start cargo")?;
    ensure!(status.success(), "cargo-deny found a problem; it is above");
    remove(&place)?;
    Ok(unchecked)
}

/// Installs cargo-deny if it is missing.
fn install() -> Result<()> {
    let mut version = cargo("deny --version");
    if version.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    println!("installing cargo-deny, which takes some minutes");
    let status = cargo("install --quiet --locked cargo-deny").status().context("start cargo")?;
    ensure!(status.success(), "cannot install cargo-deny; try: cargo install --locked cargo-deny");
    Ok(())
}

/// Updates the registry's data about each locked crate, because a build does not query crates that it already
/// has. `false` if the registry cannot be reached.
fn refresh_index() -> bool {
    let mut update = Command::new("timeout");
    update.current_dir(root()).args(["--kill-after=5", LIMIT]).arg(cargo("").get_program());
    let status = update.args(["update", "--dry-run", "--quiet"]).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A cargo-deny check that uses `database` in place of the public one, and clones it into `place`.
fn deny(place: &Path, database: &Database, words: &[&str]) -> Result<Command> {
    let name = database.folder.file_name().context("a database has a name")?;
    let clones = place.join("clones").join(name);
    let config = place.join("deny.toml");
    fs::write(&config, with_clones_in(&clones, &fs::read_to_string(root().join("deny.toml"))?)?)?;
    let mut command = cargo("deny --locked --config");
    command
        .arg(config)
        // A version that was not looked up is not one that was not yanked.
        .args(["check", "--hide-inclusion-graph", "--deny=index-failure"])
        .args(words)
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", format!("url.file://{}.insteadOf", database.folder.display()))
        .env("GIT_CONFIG_VALUE_0", PUBLIC);
    Ok(command)
}

/// `deny.toml`, changed to clone into `folder` and not into Cargo's folder, which other projects' checks use.
fn with_clones_in(folder: &Path, config: &str) -> Result<String> {
    let section = "[advisories]\n";
    let (before, after) = config.split_once(section).context("deny.toml has no [advisories]")?;
    // Quoted as in Rust is quoted as in TOML.
    Ok(format!("{before}{section}db-path = {folder:?}\ngit-fetch-with-cli = true\n{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checks_are_those_of_the_project() {
        let config = fs::read_to_string(root().join("deny.toml")).unwrap();
        let changed = with_clones_in(Path::new("/a b/\"c"), &config).unwrap();
        let [original, mut changed] = [&config, &changed].map(|text| text.parse::<toml::Table>().unwrap());
        let advisories = changed["advisories"].as_table_mut().unwrap();
        assert_eq!(advisories.remove("db-path"), Some("/a b/\"c".into()));
        assert_eq!(advisories.remove("git-fetch-with-cli"), Some(true.into()));
        assert_eq!(changed, original);
        assert!(with_clones_in(Path::new("/"), "").is_err());
    }
}
