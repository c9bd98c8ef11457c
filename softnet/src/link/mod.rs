//! What carries frames: the narrow trait that both sides of Softnet implement.
//!
//! A link hides its transport: partial writes, length prefixes, batching and full queues stay inside it. It knows
//! nothing of the filter, and the VM's link nothing of the host's.

mod batch;
mod cut;
mod losses;
mod registration;
mod stream;

use std::fmt;
use std::io;
use std::time::Duration;

use mio::{Interest, Registry, Token};

use crate::needs::Needs;

pub use batch::{BATCH_FRAMES, FrameBatch};
pub use cut::{Cutter, Pieces};
pub use losses::{Loss, Losses};
pub use registration::Registration;
pub use stream::StreamLink;

/// Bytes of an Ethernet header without a VLAN tag.
pub const ETHERNET_HEADER: usize = 14;

/// One side's carrier of Ethernet frames. Every call returns at once; none blocks.
pub trait Link: fmt::Debug {
    /// Lets `registry` wake the event loop under `token` for `interest`; called again when the interest changes.
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()>;

    /// Fills the empty `batch` with the frames that have arrived, as many as it takes. It is the same batch at every call:
    /// a stream leaves in it what it has read of the next frames.
    fn recv(&mut self, batch: &mut FrameBatch) -> Result<Received, LinkError>;

    /// Sends the frames of `batch` from its front, removing each that has left. What a full queue does not take stays
    /// in the batch, and the caller tries again when the link is writable.
    fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError>;

    /// How long to wait before a full queue is tried again, for transports that do not tell when it has room.
    fn full_queue_pause(&self) -> Option<Duration> {
        None
    }

    /// The longest frame in bytes that [`Link::recv`] may store, if the longest on the wire is `on_wire`: a link that
    /// takes super-frames from its far end needs room for them.
    fn longest_received(&self, on_wire: usize) -> usize {
        on_wire
    }

    /// Says which descriptors and system calls this link needs once the process is sealed.
    fn needs(&self, needs: &mut Needs);

    /// Whether the far end has gone without a word, for transports that have to be asked. Called about once a second,
    /// less often once the link has been silent for long, and only while [`Link::needs_probe`].
    fn probe(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    /// Whether the transport fails to report that its far end has gone, or has heard that it may have.
    fn needs_probe(&self) -> bool {
        false
    }
}

/// Whether a link may have more frames right now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Received {
    /// The batch is full: ask again before waiting for a wake-up.
    More,
    /// Nothing is left: the poller will tell.
    Drained,
}

/// Whether a batch has left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sent {
    /// The batch is empty.
    All,
    /// The far end's queue is full; the rest of the batch is still in it.
    Blocked,
}

/// Why a link is dead. A frame that could not be carried is never an error: it is dropped and counted.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The far end closed the link: the ordinary end.
    #[error("the far end closed the link")]
    Closed,
    /// The far end broke the framing; nothing after it can be read.
    #[error("broken framing: a frame of {0} bytes announced")]
    Framing(usize),
    /// The operating system refused.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
}
