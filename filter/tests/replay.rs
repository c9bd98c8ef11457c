//! Replays the fuzz targets' seeds, and every crash that they have ever found.
//!
//! A crash becomes a fixture by moving its file from `fuzz/artifacts/TARGET/` to `filter/tests/fixtures/TARGET/`.

mod fuzzing;
mod oracle;
mod scene;

use std::path::{Path, PathBuf};

/// The files of a target, in order.
fn files(folder: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(target);
    let Ok(entries) = std::fs::read_dir(&folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("an entry of the folder").path()).collect();
    files.sort();
    files
}

fn replay(target: &str, run: fn(&[u8])) {
    let seeds = files("../fuzz/seeds", target);
    assert!(!seeds.is_empty(), "no seeds for {target}");
    for path in seeds.into_iter().chain(files("tests/fixtures", target)) {
        let bytes = std::fs::read(&path).expect("a readable file");
        // Tells which file it was if the next line panics.
        eprintln!("{}", path.display());
        run(&bytes);
    }
}

#[test]
fn i4_seeds_and_crashes_of_frame() {
    replay("frame", fuzzing::frame);
}

#[test]
fn b1_seeds_and_crashes_of_dhcp() {
    replay("dhcp", fuzzing::dhcp_message);
}

#[test]
fn p1_seeds_and_crashes_of_entry() {
    replay("entry", fuzzing::entry);
}

#[test]
fn i4_seeds_and_crashes_of_sequence() {
    replay("sequence", fuzzing::sequence);
}
