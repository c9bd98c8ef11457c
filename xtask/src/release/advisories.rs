//! Advisory databases: Git repositories with a file for each advisory, as RustSec keeps them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

/// RustSec's database, which cargo-deny uses by default.
pub const PUBLIC: &str = "https://github.com/RustSec/advisory-db";
/// The branch of it that cargo-deny uses.
const BRANCH: &str = "main";
/// Seconds until a fetch is given up. With a network it takes ten.
pub const LIMIT: &str = "60";
/// A database that was not updated for this long says too little about today's dependencies.
const OLDEST: &str = "90.days";

/// A database on this machine.
#[derive(Debug)]
pub struct Database {
    /// The repository.
    pub folder: PathBuf,
    /// The day of its last change.
    pub date: String,
}

impl Database {
    /// The one in `folder`, if it is recent.
    pub fn open(folder: &Path) -> Result<Self> {
        ensure!(
            folder.join("crates").is_dir(),
            "{} is not an advisory database: it has no crates/",
            folder.display()
        );
        let folder = folder.canonicalize().with_context(|| format!("open {}", folder.display()))?;
        let last = |options: &[&str]| git(&folder, &[&["log", "-1", "--format=%cs"], options].concat());
        let date = last(&[])?;
        ensure!(
            !last(&["--since", OLDEST])?.is_empty(),
            "the advisory database {} is of {date}: bring it up to date with git pull",
            folder.display()
        );
        Ok(Database { folder, date })
    }

    /// Fetches `source` into `folder`, within `limit` seconds.
    pub fn fetch(source: &str, limit: &str, folder: &Path) -> Result<Self> {
        let mut clone = Command::new("timeout");
        clone.args([
            "--kill-after=5",
            limit,
            "git",
            "clone",
            "--quiet",
            "--depth=1",
            "--branch",
            BRANCH,
            source,
        ]);
        let output = clone.arg(folder).env("GIT_TERMINAL_PROMPT", "0").output().context("start timeout")?;
        // What timeout(1) ends with when it had to end the command.
        if output.status.code() == Some(124) {
            bail!("{source} did not answer within {limit} s");
        }
        said(&output).with_context(|| format!("fetch {source}"))?;
        Database::open(folder)
    }

    /// Creates a database in `folder` with an advisory against every version of `package`.
    pub fn plant(folder: &Path, package: &str) -> Result<Self> {
        let advisories = folder.join("crates").join(package);
        fs::create_dir_all(&advisories)?;
        let advisory = format!(
            "```toml\n[advisory]\nid = \"{PLANTED}\"\npackage = \"{package}\"\ndate = \"1970-01-01\"\n\n\
             [versions]\npatched = []\n```\n\n# Planted to be found\n\nIt is no real one.\n"
        );
        fs::write(advisories.join(format!("{PLANTED}.md")), advisory)?;
        git(folder, &["init", "--quiet", "--initial-branch", BRANCH])?;
        git(folder, &["add", "."])?;
        let author = ["-c", "user.name=xtask", "-c", "user.email=xtask", "-c", "commit.gpgsign=false"];
        git(folder, &[&author[..], &["commit", "--quiet", "--message", "One advisory"]].concat())?;
        Database::open(folder)
    }
}

/// The id of the advisory that [`Database::plant`] writes.
pub const PLANTED: &str = "RUSTSEC-1970-0001";

fn git(folder: &Path, words: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(words).output().context("start git")?;
    said(&output).with_context(|| format!("git {} in {}", words.join(" "), folder.display()))
}

/// What a command printed, or why it failed.
fn said(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("softnet-advisories-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_fetch_that_brings_nothing_is_given_up() {
        // It takes the connection and never answers.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = format!("http://{}/advisory-db", silent.local_addr().unwrap());
        let folder = place("silent");
        let error = Database::fetch(&source, "1", &folder).unwrap_err().to_string();
        assert_eq!(error, format!("{source} did not answer within 1 s"));
        drop(silent);
        let error = Database::fetch(&source, "20", &folder).unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("fetch {source}: fatal: ")), "{error:#}");
        assert!(!folder.exists(), "nothing is left");
    }

    #[test]
    fn what_is_no_recent_database_is_refused() {
        let folder = place("old");
        let planted = Database::plant(&folder, "libc").unwrap();
        assert_eq!(planted.folder, folder);
        let fetched = place("fetched");
        let source = format!("file://{}", folder.display());
        assert_eq!(Database::fetch(&source, "20", &fetched).unwrap().date, planted.date);

        let author = ["-c", "user.name=xtask", "-c", "user.email=xtask", "-c", "commit.gpgsign=false"];
        let amend = Command::new("git")
            .arg("-C")
            .arg(&folder)
            .args(author)
            .args(["commit", "--quiet", "--amend", "--no-edit"])
            .env("GIT_COMMITTER_DATE", "2020-02-01T12:00:00Z")
            .status();
        assert!(amend.unwrap().success());
        let error = Database::open(&folder).unwrap_err().to_string();
        assert!(error.contains("is of 2020-02-01: bring it up to date"), "{error}");
        fs::remove_dir_all(folder.join("crates")).unwrap();
        assert!(Database::open(&folder).unwrap_err().to_string().ends_with("it has no crates/"));
        for folder in [folder, fetched] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}
