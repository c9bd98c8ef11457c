//! Two copies of the sources, in folders with names of different lengths, must give the same bytes.
//!
//! The copies are what Git tracks, as it lies in the working tree: an untracked file that the build needs is missed
//! here first, and neither a build's leftovers nor the path of the sources can hide in what both have in common.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{PROGRAM, Shipped, checksum, make, overflow, remove};
use crate::cargo::root;

/// A path in the output would shift everything after it.
const NAMES: [&str; 2] = ["one", "another-one"];

/// Builds both copies, prints size and hash of what comes out, and compares.
pub fn check() -> Result<()> {
    let place = root().join("target/release-check");
    let copies = NAMES.map(|name| place.join(name));
    let tracked = tracked(root())?;
    // The second is made of the first, so that an edit in between changes neither.
    for (from, to) in [(root(), &copies[0]), (&copies[0], &copies[1])] {
        remove(to)?;
        copy(&tracked, from, to)?;
    }
    let mut builds = Vec::new();
    for copy in &copies {
        println!("==> building {}", copy.display());
        let shipped = make(copy, &copy.join("target"))?;
        for (name, bytes) in &shipped {
            println!("{}  {:>8} bytes  {name}", checksum(bytes), bytes.len());
        }
        builds.push(shipped);
        remove(copy)?;
    }
    let differing = differing(&builds[0], &builds[1]);
    ensure!(differing.is_empty(), "two clean builds DIFFER in {}", differing.join(" and "));
    println!("two clean builds of two copies are identical");
    for (_, program) in builds[0].iter().filter(|(name, _)| *name == PROGRAM) {
        overflow::check(program)?;
        println!("the program has overflow checks");
    }
    Ok(())
}

fn differing(one: &Shipped, other: &Shipped) -> Vec<&'static str> {
    one.iter().zip(other).filter(|(one, other)| one != other).map(|((name, _), _)| *name).collect()
}

/// The files that Git tracks and that exist in the working tree `tree`.
fn tracked(tree: &Path) -> Result<Vec<PathBuf>> {
    let output =
        Command::new("git").current_dir(tree).args(["ls-files", "-z"]).output().context("start git")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).context("a tracked file's name is not UTF-8")?;
    let files = names.split_terminator('\0').map(PathBuf::from);
    Ok(files.filter(|file| tree.join(file).symlink_metadata().is_ok()).collect())
}

fn copy(files: &[PathBuf], from: &Path, to: &Path) -> Result<()> {
    for file in files {
        let target = to.join(file);
        let folder = target.parent().context("a file lies in a folder")?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::copy(from.join(file), &target))
            .with_context(|| format!("copy {} to {}", file.display(), to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_what_is_tracked_as_it_is_now() {
        let place = std::env::temp_dir().join(format!("softnet-copy-{}", std::process::id()));
        let (tree, to) = (place.join("tree"), place.join("to"));
        fs::create_dir_all(tree.join("folder")).unwrap();
        let git = |words: &[&str]| {
            assert!(Command::new("git").current_dir(&tree).args(words).status().unwrap().success());
        };
        git(&["init", "--quiet"]);
        for name in ["folder/changed", "gone"] {
            fs::write(tree.join(name), "before").unwrap();
        }
        git(&["add", "."]);
        fs::write(tree.join("folder/changed"), "after").unwrap();
        fs::remove_file(tree.join("gone")).unwrap();
        fs::write(tree.join("untracked"), "").unwrap();

        copy(&tracked(&tree).unwrap(), &tree, &to).unwrap();
        assert_eq!(fs::read(to.join("folder/changed")).unwrap(), b"after");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1, "only the folder");
        remove(&place).unwrap();
    }

    #[test]
    fn what_differs_is_named() {
        let shipped = |program: &[u8]| [("program", program.to_vec()), ("bill", b"same".to_vec())];
        assert_eq!(differing(&shipped(b"1"), &shipped(b"1")), [""; 0]);
        assert_eq!(differing(&shipped(b"1"), &shipped(b"2")), ["program"]);
    }
}
