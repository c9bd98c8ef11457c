//! Replays the fuzz target's seeds and crashes, and plays arbitrary frames in arbitrary pieces.
#![cfg(unix)]

mod check;

use std::path::Path;

use proptest::prelude::*;

#[test]
fn seeds_and_crashes_of_stream() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for folder in ["../fuzz/seeds/stream", "tests/fixtures/stream"] {
        let Ok(entries) = std::fs::read_dir(here.join(folder)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display());
            check::check(&std::fs::read(path).unwrap());
            count += 1;
        }
    }
    assert!(count > 0, "no seeds");
}

proptest! {
    #[test]
    fn frames_in_any_pieces_come_out_whole(
        cuts in any::<[u8; 4]>(),
        lens in prop::collection::vec(prop_oneof![0..100u32, 1400..1600u32, Just(65_564), Just(65_565)], 0..40),
        rest in prop::collection::vec(any::<u8>(), 0..10),
    ) {
        let mut data = cuts.to_vec();
        for (number, len) in lens.iter().enumerate() {
            data.extend(len.to_be_bytes());
            data.extend(std::iter::repeat_n(number as u8, *len as usize));
        }
        data.extend(rest);
        check::check(&data);
    }

    #[test]
    fn any_bytes_are_read_the_same_in_any_pieces(data in prop::collection::vec(any::<u8>(), 0..5_000)) {
        check::check(&data);
    }
}
