//! DNS (RFC 1035) as far as the tests need it: questions, and a resolver of the internet.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::net::Host;

/// The port of DNS.
pub const DNS: u16 = 53;
/// A question below this name is never answered.
pub const SILENT: &str = "silent.test";
/// A and TXT.
pub const A: u16 = 1;
pub const TXT: u16 = 16;
/// Internet and CHAOS.
pub const IN: u16 = 1;
pub const CHAOS: u16 = 3;

/// What every other name leads to.
const ANSWER: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

/// A question, without the length in front of it that TCP needs.
pub fn question(id: u16, name: &str, kind: u16, class: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [id, 0x0100, 1, 0, 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(class.to_be_bytes());
    bytes
}

/// True if it answers the question `id` with at least one record.
pub fn answers(bytes: &[u8], id: u16) -> bool {
    let word = |at: usize| bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    word(0) == Some(id)
        && word(2).is_some_and(|flags| flags & 0x800f == 0x8000)
        && word(6).is_some_and(|count| count > 0)
}

/// Asks from the calling thread's host, once over UDP.
pub fn ask(server: Ipv4Addr, question: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((server, DNS))?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(question)?;
    let mut answer = vec![0; 4096];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// Asks from the calling thread's host over TCP.
pub fn ask_tcp(server: Ipv4Addr, question: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&SocketAddrV4::new(server, DNS).into(), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut message = (question.len() as u16).to_be_bytes().to_vec();
    message.extend(question);
    stream.write_all(&message)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// Knows every name but those below [`SILENT`]. Runs until the program ends.
pub struct Resolver;

impl Resolver {
    pub fn start(host: &Host, address: Ipv4Addr) -> Result<Self> {
        let at = SocketAddrV4::new(address, DNS);
        let (udp, tcp) = host
            .run(|| io::Result::Ok((UdpSocket::bind(at)?, TcpListener::bind(at)?)))?
            .with_context(|| format!("listen on {at}"))?;
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                if let Some(answer) = reply(&buffer[..length]) {
                    // Whoever asked may be gone.
                    let _ = udp.send_to(&answer, peer);
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                std::thread::spawn(move || serve(stream));
            }
        });
        Ok(Self)
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question)?;
        let Some(answer) = reply(&question) else { return Ok(()) };
        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

fn reply(question: &[u8]) -> Option<Vec<u8>> {
    let mut name = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name.push_str(&String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
        name.push('.');
        at += length;
    }
    if name.ends_with(&format!("{SILENT}.")) {
        return None;
    }
    let mut answer = question.get(..2)?.to_vec();
    for word in [0x8180u16, 1, 1, 0, 0] {
        answer.extend(word.to_be_bytes());
    }
    answer.extend(question.get(12..at + 4)?);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(ANSWER.octets());
    Some(answer)
}
