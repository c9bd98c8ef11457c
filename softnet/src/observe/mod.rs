//! What is told of the traffic: each judged frame to an observer, the counters and the port's events to standard error.

mod drops;
mod events;

use std::fmt;
use std::io::{self, Write};

use softnet_filter::{Counters, Direction, Verdict};

pub use drops::DropLog;
pub use events::log_event;

/// Is shown every frame that the filter has judged.
pub trait Observer: fmt::Debug {
    /// `frame` goes in `direction`, unless `verdict` stops it.
    fn judged(&mut self, direction: Direction, frame: &[u8], verdict: Verdict);
}

/// Prints the counters as one line on standard error.
pub fn print_counters(counters: &Counters) {
    // Nobody reading is no reason to end.
    let _ = writeln!(io::stderr(), "softnet: {counters}");
}
