//! The VM's control socket: admits one client at a time and carries its requests to the worker, which never opens or
//! accepts anything (rule K1). The monitor counts lines and does not read them: each has one answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send, sockopt};
use softnet_filter::Timestamp;

use crate::control::socket::ControlSocket;

/// Bytes that are carried at once, and wait at most in each direction.
const PIECE: usize = 1 << 16;
/// How long a client may neither ask nor read before it has to make room for another.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// The gate.
#[derive(Debug)]
pub struct Gate {
    socket: ControlSocket,
    worker: OwnedFd,
    client: Option<Client>,
    /// Requests that the worker has not read.
    requests: Vec<u8>,
    /// Whether the last of them is not whole.
    is_cut: bool,
    /// Answers that the worker owes.
    owed: usize,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    /// Answers that it has not read.
    answers: Vec<u8>,
    /// It will ask nothing more.
    has_ended: bool,
    leave_at: Timestamp,
}

impl Gate {
    /// The gate before `worker`, the other end of one of the worker's connections.
    pub fn new(socket: ControlSocket, worker: OwnedFd) -> Self {
        Gate { socket, worker, client: None, requests: Vec::new(), is_cut: false, owed: 0 }
    }

    /// The descriptors that it needs.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.socket.listener().as_fd(), self.worker.as_fd()]
    }

    /// The directory of the socket's file.
    pub fn directory(&self) -> Option<PathBuf> {
        self.socket.path().parent().map(Path::to_owned)
    }

    /// Undoes the socket of a VM that could not be started.
    pub fn abandon(&self) {
        self.socket.abandon();
    }

    /// Removes the socket's file.
    pub fn remove(&self) {
        self.socket.remove();
    }

    /// What to wait for.
    pub fn waits_for(&self) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        let mut add = |fd, read, write| {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, read);
            wanted.set(PollFlags::OUT, write);
            if !wanted.is_empty() {
                fds.push(PollFd::from_borrowed_fd(fd, wanted));
            }
        };
        add(self.socket.listener().as_fd(), self.may_admit(), false);
        let has_room = self.client.as_ref().is_none_or(|client| client.answers.is_empty());
        add(self.worker.as_fd(), self.owed > 0 && has_room, !self.requests.is_empty());
        if let Some(client) = &self.client {
            let asks = !client.has_ended && self.requests.is_empty();
            add(client.socket.as_fd(), asks, !client.answers.is_empty());
        }
        fds
    }

    /// When a client has to leave.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.client.as_ref().map(|client| client.leave_at)
    }

    /// Carries what can be carried without waiting.
    pub fn attend(&mut self, now: Timestamp) {
        if self.may_admit() {
            self.admit(now);
        }
        self.hear_client(now);
        self.send_requests();
        self.hear_worker();
        self.send_answers(now);
        if self.client.as_ref().is_some_and(|client| now >= client.leave_at || self.is_served(client)) {
            self.dismiss();
        }
    }

    /// Everything that an earlier client asked has been answered.
    fn may_admit(&self) -> bool {
        self.client.is_none() && self.owed == 0 && self.requests.is_empty()
    }

    fn is_served(&self, client: &Client) -> bool {
        client.has_ended && self.owed == 0 && self.requests.is_empty() && client.answers.is_empty()
    }

    fn admit(&mut self, now: Timestamp) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = accept_with(self.socket.listener(), flags) else { return };
        match sockopt::socket_peercred(&socket) {
            Ok(peer) if self.socket.admits(peer.uid) => {
                let leave_at = now.saturating_add(IDLE_LIMIT);
                self.client = Some(Client { socket, answers: Vec::new(), has_ended: false, leave_at });
            }
            Ok(peer) => tracing::warn!(user = peer.uid.as_raw(), "refused a user at the VM's control socket"),
            Err(error) => tracing::debug!(%error, "cannot tell who is at the VM's control socket"),
        }
    }

    fn hear_client(&mut self, now: Timestamp) {
        let Some(client) = self.client.as_mut().filter(|client| !client.has_ended) else { return };
        if !self.requests.is_empty() {
            return;
        }
        let mut bytes = [0; PIECE];
        match recv(&client.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.end_of_requests(),
            Ok((length, _)) => {
                let bytes = bytes.get(..length).unwrap_or_default();
                self.requests.extend_from_slice(bytes);
                self.owed += lines(bytes);
                self.is_cut = bytes.last() != Some(&b'\n');
                client.leave_at = now.saturating_add(IDLE_LIMIT);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.end_of_requests(),
        }
    }

    /// Ends a line that is not whole, so that it is not continued by the next client's.
    fn end_of_requests(&mut self) {
        if let Some(client) = &mut self.client {
            client.has_ended = true;
        }
        if std::mem::take(&mut self.is_cut) {
            self.requests.push(b'\n');
            self.owed += 1;
        }
    }

    fn send_requests(&mut self) {
        if send_some(&self.worker, &mut self.requests).is_err() {
            // The worker is ending.
            self.requests.clear();
            self.owed = 0;
        }
    }

    fn hear_worker(&mut self) {
        if self.owed == 0 || self.client.as_ref().is_some_and(|client| !client.answers.is_empty()) {
            return;
        }
        let mut bytes = [0; PIECE];
        match recv(&self.worker, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.owed = 0,
            Ok((length, _)) => {
                let bytes = bytes.get(..length).unwrap_or_default();
                self.owed = self.owed.saturating_sub(lines(bytes));
                if let Some(client) = &mut self.client {
                    client.answers.extend_from_slice(bytes);
                }
            }
            Err(_) => {}
        }
    }

    fn send_answers(&mut self, now: Timestamp) {
        let Some(client) = &mut self.client else { return };
        let waiting = client.answers.len();
        if send_some(&client.socket, &mut client.answers).is_err() {
            return self.dismiss();
        }
        if client.answers.len() < waiting {
            client.leave_at = now.saturating_add(IDLE_LIMIT);
        }
    }

    fn dismiss(&mut self) {
        self.end_of_requests();
        self.client = None;
    }
}

fn lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Sends from the front of `bytes` what the socket takes.
fn send_some(socket: &OwnedFd, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => drop(bytes.drain(..sent)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::clock::now;

    struct Scene {
        gate: Gate,
        worker: UnixStream,
        path: std::path::PathBuf,
        directory: std::path::PathBuf,
    }

    fn scene(name: &str) -> Scene {
        let directory = std::env::temp_dir().join(format!("softnet-gate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = ControlSocket::open(&directory, "vm", rustix::process::getuid()).unwrap();
        let path = socket.path().to_owned();
        let (theirs, worker) = UnixStream::pair().unwrap();
        worker.set_nonblocking(true).unwrap();
        Scene { gate: Gate::new(socket, theirs.into()), worker, path, directory }
    }

    impl Scene {
        fn client(&self) -> UnixStream {
            let client = UnixStream::connect(&self.path).unwrap();
            client.set_nonblocking(true).unwrap();
            client
        }

        /// What the worker gets.
        fn heard(&mut self) -> String {
            self.gate.attend(now());
            read(&mut self.worker)
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    fn read(stream: &mut UnixStream) -> String {
        let mut bytes = vec![0; 1 << 20];
        let length = stream.read(&mut bytes).unwrap_or(0);
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_next_client_gets_its_own_answers_only() {
        let mut scene = scene("next");
        let (mut first, mut second) = (scene.client(), scene.client());
        first.write_all(b"one\ntwo\nthr").unwrap();
        second.write_all(b"mine\n").unwrap();
        assert_eq!(scene.heard(), "one\ntwo\nthr");
        // It goes, with two answers and the half of a request outstanding.
        drop(first);
        assert_eq!(scene.heard(), "\n");
        assert_eq!(scene.heard(), "");
        scene.worker.write_all(b"1\n2\n3\n").unwrap();
        scene.gate.attend(now());
        assert_eq!(scene.heard(), "mine\n");
        scene.worker.write_all(b"4\n").unwrap();
        scene.gate.attend(now());
        assert_eq!(read(&mut second), "4\n");
    }

    #[test]
    fn whoever_does_nothing_makes_room() {
        let mut scene = scene("idle");
        let _idle = scene.client();
        let mut second = scene.client();
        second.write_all(b"mine\n").unwrap();
        scene.gate.attend(now());
        assert_eq!(scene.heard(), "");
        scene.gate.attend(now().saturating_add(IDLE_LIMIT));
        assert_eq!(scene.heard(), "mine\n");
    }

    #[test]
    fn a_client_that_has_said_all_gets_what_it_asked() {
        let mut scene = scene("shut");
        let mut client = scene.client();
        client.write_all(b"one\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(scene.heard(), "one\n");
        scene.gate.attend(now());
        assert!(scene.gate.client.is_some());
        scene.worker.write_all(b"1\n").unwrap();
        scene.gate.attend(now());
        assert_eq!(read(&mut client), "1\n");
        assert!(scene.gate.client.is_none());
    }
}
