//! One controller's stream socket: requests in, answers out, never waiting for either.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send, sockopt};

use super::lines::{Line, Lines};
use super::request::{self, Code, Methods, Refusal, Request};
use crate::link::Registration;
use crate::needs::{Needs, Syscall};

/// Bytes of the answers that wait for a controller to read. No request is taken beyond that.
const LONGEST_OUTPUT: usize = 4 << 20;
/// Bytes of the longest answer: a policy of 4,096 targets, each of at most 64 characters.
pub const LONGEST_ANSWER: usize = 1 << 19;
/// Bytes that are received in one turn.
const PIECE: usize = 1 << 16;

/// Why a descriptor cannot be a controller's.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Not a stream socket of the Unix domain.
    #[error("is not a Unix stream socket; pass one end of a socketpair(AF_UNIX, SOCK_STREAM)")]
    WrongKind,
    /// A listening socket, or one without a peer.
    #[error("is not connected; pass one end of a socketpair or connect it first")]
    NotConnected,
    /// A system call failed.
    #[error("cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// A checked socket.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    methods: Methods,
    registration: Registration,
    lines: Lines,
    output: Vec<u8>,
    /// How much of `output` has been sent.
    sent: usize,
    /// Whether there may be more to receive.
    readable: bool,
    /// Whether the controller has closed its end, or the socket has failed.
    ended: bool,
}

impl Connection {
    /// Checks that `socket` is a connected stream socket of the Unix domain; an unnamed pair counts. Changes nothing:
    /// the socket may stay blocking, because it is used without waiting.
    ///
    /// # Errors
    /// What is wrong with it, and what to pass instead.
    pub fn check(socket: OwnedFd, methods: Methods) -> Result<Self, SocketError> {
        match sockopt::socket_type(&socket) {
            Ok(SocketType::STREAM) => {}
            Ok(_) | Err(Errno::NOTSOCK) => return Err(SocketError::WrongKind),
            Err(error) => return Err(SocketError::Io(error.into())),
        }
        let family = rustix::net::getsockname(&socket).map_err(io::Error::from)?.address_family();
        if family != rustix::net::AddressFamily::UNIX {
            return Err(SocketError::WrongKind);
        }
        match rustix::net::getpeername(&socket) {
            Ok(_) => {}
            Err(Errno::NOTCONN | Errno::INVAL) => return Err(SocketError::NotConnected),
            Err(error) => return Err(SocketError::Io(error.into())),
        }
        Ok(Connection {
            socket,
            methods,
            registration: Registration::default(),
            lines: Lines::default(),
            output: Vec::new(),
            sent: 0,
            readable: true,
            ended: false,
        })
    }

    /// The socket, to pass it to another process.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Adds what the connection needs once the process is sealed.
    pub fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.socket);
        needs.calls(&[Syscall::Recvfrom, Syscall::Sendto, Syscall::EpollCtl]);
    }

    /// Lets `registry` wake the event loop under `token`.
    ///
    /// # Errors
    /// Those of the poller.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.registration.set(&self.socket, registry, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// There may be something to receive.
    pub fn note_readable(&mut self) {
        self.readable = true;
    }

    /// Whether another turn could do something at once.
    pub fn has_work(&self) -> bool {
        !self.is_full() && (self.readable || self.lines.may_have_more())
    }

    /// Whether the connection is of no more use: its socket may be closed.
    pub fn is_over(&self) -> bool {
        self.ended && self.output.is_empty() && !self.lines.may_have_more()
    }

    /// Takes the socket away from the poller, which others with a copy of the socket would keep in it.
    pub fn deregister(self, registry: &Registry) {
        let _ = registry.deregister(&mut mio::unix::SourceFd(&std::os::fd::AsRawFd::as_raw_fd(&self.socket)));
    }

    fn is_full(&self) -> bool {
        self.output.len() - self.sent + LONGEST_ANSWER > LONGEST_OUTPUT
    }

    /// One turn: sends what waits, receives once, and takes one request. `None` if there is none.
    pub fn take_request(&mut self) -> Option<Result<Request, Refusal>> {
        self.flush();
        if self.is_full() {
            return None;
        }
        if !self.lines.may_have_more() && self.readable {
            self.receive();
        }
        Some(match self.lines.take_line()? {
            Line::Whole(line) => request::parse(line, self.methods),
            Line::TooLong => {
                Err(Refusal { id: None, code: Code::Parse, reason: "is longer than 1 MiB".to_owned() })
            }
        })
    }

    /// Sends `answer` and a newline, now or when the controller reads.
    pub fn answer(&mut self, answer: &str) {
        self.output.extend_from_slice(answer.as_bytes());
        self.output.push(b'\n');
        self.flush();
    }

    fn receive(&mut self) {
        let mut bytes = [0; PIECE];
        match recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.end_of_input(),
            Ok((length, _)) => self.lines.add(bytes.get(..length).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.readable = false,
            Err(_) => self.end_of_input(),
        }
    }

    fn end_of_input(&mut self) {
        self.readable = false;
        self.ended = true;
    }

    /// Sends as much as the socket takes.
    pub fn flush(&mut self) {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match send(&self.socket, rest, send_flags()) {
                Ok(sent) => self.sent += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => return,
                // Nobody reads any more.
                Err(_) => {
                    self.end_of_input();
                    self.lines = Lines::default();
                    break;
                }
            }
        }
        self.output = Vec::new();
        self.sent = 0;
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Without waiting, and without SIGPIPE where it is not ignored anyway.
fn send_flags() -> SendFlags {
    #[cfg(target_os = "linux")]
    return SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    SendFlags::DONTWAIT
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    const GET: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"softnet.policy.get\"}\n";

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::check(ours.into(), Methods::Policy).unwrap(), theirs)
    }

    #[test]
    fn only_a_connected_unix_stream_is_taken() {
        let check = |socket: OwnedFd| Connection::check(socket, Methods::Policy);
        assert!(matches!(
            check(std::fs::File::open("/dev/null").unwrap().into()),
            Err(SocketError::WrongKind)
        ));
        assert!(matches!(check(UnixDatagram::pair().unwrap().0.into()), Err(SocketError::WrongKind)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(matches!(check(tcp.into()), Err(SocketError::WrongKind)));
        let path = std::env::temp_dir().join(format!("softnet-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(check(listener.into()), Err(SocketError::NotConnected)));
    }

    #[test]
    fn requests_come_one_by_one_and_in_pieces() {
        let (mut ours, mut theirs) = pair();
        assert!(ours.take_request().is_none() && !ours.has_work());
        let (one, two) = GET.split_at(20);
        for part in [one, two, GET, GET] {
            theirs.write_all(part.as_bytes()).unwrap();
        }
        ours.note_readable();
        let taken: Vec<_> = std::iter::from_fn(|| ours.take_request()).collect();
        assert!(taken.len() == 3 && taken.iter().all(Result::is_ok), "{taken:?}");
        assert!(!ours.has_work() && !ours.is_over());
        drop(theirs);
        ours.note_readable();
        assert!(ours.take_request().is_none() && ours.is_over());
    }

    #[test]
    fn k2_a_controller_that_reads_nothing_is_bounded_and_loses_nothing() {
        let (mut ours, mut theirs) = pair();
        let requests = 60;
        theirs.write_all(GET.repeat(requests).as_bytes()).unwrap();
        let answer = "a".repeat(LONGEST_ANSWER - 1);
        let mut answered = 0;
        while let Some(request) = ours.take_request() {
            request.unwrap();
            ours.answer(&answer);
            answered += 1;
        }
        assert!(answered < requests && !ours.has_work());
        assert!(ours.output.len() - ours.sent <= LONGEST_OUTPUT);
        // It closes only its own sending side: what waits is still for it.
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut read = 0;
        let mut piece = vec![0; 1 << 20];
        theirs.set_nonblocking(true).unwrap();
        while !ours.is_over() {
            read += theirs.read(&mut piece).unwrap_or(0);
            if ours.take_request().is_some() {
                ours.answer(&answer);
            }
        }
        read +=
            std::iter::from_fn(|| theirs.read(&mut piece).ok().filter(|length| *length > 0)).sum::<usize>();
        assert_eq!(read, requests * LONGEST_ANSWER);
    }

    #[test]
    fn one_who_goes_ends_the_connection() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(GET.repeat(3).as_bytes()).unwrap();
        ours.take_request().unwrap().unwrap();
        drop(theirs);
        ours.answer("nobody reads this");
        while ours.take_request().is_some() {
            ours.answer("nor this");
        }
        assert!(ours.is_over() && !ours.has_work());
    }
}
