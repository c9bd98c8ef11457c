//! The log of dropped frames.

use softnet_filter::{Direction, Verdict};
use tracing::Level;

use super::Observer;

/// How many bytes of a frame are shown: Ethernet, an IPv4 header without options, and the ports.
const SHOWN: usize = 14 + 20 + 4;

/// Logs each frame that the filter drops: its direction, the reason, its length and its headers.
#[derive(Debug)]
pub struct DropLog(());

impl DropLog {
    /// The log, if its level is enabled (`RUST_LOG=trace`).
    pub fn if_wanted() -> Option<Self> {
        tracing::enabled!(Level::TRACE).then_some(DropLog(()))
    }
}

impl Observer for DropLog {
    fn judged(&mut self, direction: Direction, frame: &[u8], verdict: Verdict) {
        if let Verdict::Drop(reason) = verdict {
            let headers = &frame[..frame.len().min(SHOWN)];
            tracing::trace!(
                ?direction,
                reason = reason.name(),
                length = frame.len(),
                headers = format_args!("{headers:02x?}"),
                "dropped a frame"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use softnet_filter::DropReason;

    use super::*;

    #[test]
    fn a_dropped_frame_is_logged_with_its_reason_and_a_forwarded_one_is_not() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_ansi(false)
            .with_writer(Arc::new(writer))
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut log = DropLog::if_wanted().unwrap();
            log.judged(Direction::FromVm, &[0xab; 60], Verdict::Forward);
            log.judged(Direction::FromHost, &[0xcd; 2], Verdict::Drop(DropReason::Runt));
        });
        let mut logged = String::new();
        reader.read_to_string(&mut logged).unwrap();
        assert_eq!(logged.lines().count(), 1, "{logged}");
        for part in ["dropped a frame", "FromHost", "runt", "length=2", "headers=[cd, cd]"] {
            assert!(logged.contains(part), "{part} is not in {logged}");
        }
    }
}
