//! Turns a callback on a thread of the framework into an event of the loop.
//!
//! The callback must neither wait nor fail: it sets a flag and, if that was not set, sends one byte and
//! ignores errors. The loop takes the byte, clears the flag, and only then reads frames. So a frame that
//! arrived before the flag was cleared is read, and the callback of one that arrives later finds the flag
//! cleared and sends a byte: no wake-up is lost, and a thousand of them cost one.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::{Interest, Registry, Token};

use crate::needs::Needs;

/// The loop's end.
#[derive(Debug)]
pub struct Wake {
    receiver: mio::net::UnixStream,
    pending: Arc<AtomicBool>,
    registered: bool,
}

/// The callback's end.
#[derive(Debug)]
pub struct Waker {
    sender: UnixStream,
    pending: Arc<AtomicBool>,
}

/// Both ends.
///
/// # Errors
/// When the system gives no socket.
pub fn pair() -> io::Result<(Waker, Wake)> {
    let (sender, receiver) = UnixStream::pair()?;
    sender.set_nonblocking(true)?;
    receiver.set_nonblocking(true)?;
    let pending = Arc::new(AtomicBool::new(false));
    let waker = Waker { sender, pending: Arc::clone(&pending) };
    Ok((waker, Wake { receiver: mio::net::UnixStream::from_std(receiver), pending, registered: false }))
}

impl Waker {
    /// Frames may have arrived. Never waits and never panics, also when the loop's end is gone.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            // A full socket wakes the loop too, and behind a closed one the loop is gone.
            let _ = (&self.sender).write(&[0]);
        }
    }
}

impl Wake {
    /// Lets `registry` wake the event loop under `token`.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if std::mem::replace(&mut self.registered, true) {
            return Ok(());
        }
        registry.register(&mut self.receiver, token, Interest::READABLE)
    }

    /// Consumes the wake-ups so far. The frames that caused them can be read after this.
    pub fn acknowledge(&mut self) {
        if self.pending.load(Ordering::SeqCst) {
            let mut bytes = [0; 16];
            while self.receiver.read(&mut bytes).is_ok_and(|count| count == bytes.len()) {}
            self.pending.store(false, Ordering::SeqCst);
        }
    }

    /// Declares the descriptors that this needs.
    pub fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.receiver);
    }
}
