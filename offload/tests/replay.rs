//! Inputs with which a fuzzer found a mistake, or that lead it to the interesting code.

mod common;

use std::fs;
use std::path::Path;

use common::invariants;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(target);
    let files: Vec<_> = fs::read_dir(folder).expect("the fixtures").collect();
    assert!(!files.is_empty(), "no fixtures of {target}");
    for file in files {
        let file = file.expect("a fixture").path();
        // Names the one that fails.
        eprintln!("{}", file.display());
        check(&fs::read(file).expect("a fixture that can be read"));
    }
}

#[test]
fn batches() {
    replay("batch", invariants::batch);
}

#[test]
fn super_frames() {
    replay("super_frame", invariants::super_frame);
}
