//! Turns a callback on a thread of the framework into an event of the loop.
//!
//! By all that can be known the framework's event is level-triggered: as long as frames are left, it calls back again as
//! soon as the last call has returned. A callback that returned at once would keep a core busy until the loop has read
//! them. So it sends the loop one byte and waits until the loop has read everything. A frame that arrives behind the
//! last read causes the next call, so no wake-up is lost, and one call stands for however many frames.
//!
//! It never waits for anything that could wait for it: whoever stops the interface calls [`Waker::close`] first, the
//! loop's end does so too, and from then on no callback waits.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use mio::{Interest, Registry, Token};

use crate::needs::Needs;

/// The loop's end.
#[derive(Debug)]
pub struct Wake {
    receiver: mio::net::UnixStream,
    shared: Arc<Shared>,
    registered: bool,
}

/// The callback's end.
#[derive(Debug)]
pub struct Waker {
    sender: UnixStream,
    shared: Arc<Shared>,
}

/// What both ends see.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The loop has been woken and has not read everything yet.
    pending: bool,
    /// Nobody waits any more.
    closed: bool,
}

impl Shared {
    /// Nothing that holds the lock can fail, but a callback must not panic even then.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Both ends.
///
/// # Errors
/// When the system gives no socket.
pub fn pair() -> io::Result<(Waker, Wake)> {
    let (sender, receiver) = UnixStream::pair()?;
    sender.set_nonblocking(true)?;
    receiver.set_nonblocking(true)?;
    let shared = Arc::<Shared>::default();
    let waker = Waker { sender, shared: Arc::clone(&shared) };
    Ok((waker, Wake { receiver: mio::net::UnixStream::from_std(receiver), shared, registered: false }))
}

impl Waker {
    /// Frames have arrived: wakes the loop, and returns when it has read everything or nobody waits any more. For the
    /// framework's callback; never panics.
    pub fn wake(&self) {
        let mut state = self.notify();
        while state.pending && !state.closed {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes the loop without waiting for it: frames may have arrived before the callback was set.
    pub fn wake_once(&self) {
        drop(self.notify());
    }

    /// From now on no callback waits, and one that waits returns. To be called before the interface is stopped.
    pub fn close(&self) {
        self.shared.close();
    }

    fn notify(&self) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        if !state.closed && !std::mem::replace(&mut state.pending, true) {
            // The socket is never full: the loop takes the byte before it clears the flag.
            let _ = (&self.sender).write(&[0]);
        }
        state
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

    /// Everything has been read: a callback that waits returns, and the next one wakes the loop again.
    pub fn drained(&mut self) {
        let mut state = self.shared.lock();
        if std::mem::take(&mut state.pending) {
            let _ = self.receiver.read(&mut [0; 16]);
            self.shared.changed.notify_all();
        }
    }

    /// Declares the descriptors that this needs.
    pub fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.receiver);
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        self.shared.close();
    }
}
