//! Processes that seal themselves and then do what they may not.
#![expect(unsafe_code, reason = "forks, and makes system calls by number that no library would")]

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use softnet::needs::Needs;
use softnet::privilege::{Identity, Start, System};
use softnet::sandbox;

/// Does `work` in a process of its own and says how that ended, and what it printed on its standard error.
pub fn in_a_child(work: impl FnOnce() -> i32) -> Result<(WaitStatus, String)> {
    let (mut said, theirs) = io::pipe()?;
    // SAFETY: a test here is the only thread of its process.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(said);
            // SAFETY: both are open, and this process does not come back.
            unsafe { libc::dup2(theirs.as_raw_fd(), 2) };
            let status = work();
            // SAFETY: ends the process.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            let mut text = String::new();
            said.read_to_string(&mut text)?;
            Ok((waitpid(child, None)?, text))
        }
    }
}

/// Seals this process as the program would without any link.
fn seal(needs: &Needs) -> Result<()> {
    let identity = Identity::choose(None, None, &Start::of_this_process()?, &System)?;
    Ok(sandbox::seal(needs, &identity, true)?)
}

/// The status of a child that could not be sealed.
const UNSEALED: i32 = 99;

fn sealed(needs: &Needs, work: impl FnOnce() -> i32) -> Result<WaitStatus> {
    let (status, said) = in_a_child(|| match seal(needs) {
        Ok(()) => work(),
        Err(error) => {
            eprintln!("{error:#}");
            UNSEALED
        }
    })?;
    if matches!(status, WaitStatus::Exited(_, UNSEALED)) {
        bail!("the child could not be sealed: {said}");
    }
    Ok(status)
}

fn call(number: libc::c_long, arguments: [libc::c_long; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the callers pass numbers, null pointers, or pointers that live through the call.
    unsafe { libc::syscall(number, a, b, c, d, e, f) };
    0
}

pub fn every_other_call_ends_the_process() -> Result<()> {
    let address = libc::sockaddr_un { sun_family: libc::AF_UNIX as u16, sun_path: [0; 108] };
    let (near, _far) = UnixDatagram::pair()?;
    let socket = libc::c_long::from(near.as_raw_fd());
    let mut needs = Needs::new();
    needs.descriptor(&near);
    needs.calls(&[softnet::needs::Syscall::Sendto]);
    let flags = libc::c_long::from(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE);
    let executable = libc::c_long::from(libc::PROT_READ | libc::PROT_EXEC);
    let readable = libc::c_long::from(libc::PROT_READ);
    for (name, number, arguments) in [
        ("getpid", libc::SYS_getpid, [0; 6]),
        ("openat", libc::SYS_openat, [libc::AT_FDCWD.into(), c"/".as_ptr() as libc::c_long, 0, 0, 0, 0]),
        ("socket", libc::SYS_socket, [libc::AF_UNIX.into(), libc::SOCK_DGRAM.into(), 0, 0, 0, 0]),
        ("connect", libc::SYS_connect, [socket, 0, 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [0; 6]),
        ("clone", libc::SYS_clone, [0; 6]),
        ("ptrace", libc::SYS_ptrace, [0; 6]),
        ("kill", libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
        ("ioctl", libc::SYS_ioctl, [2, libc::TIOCSTI as libc::c_long, 0, 0, 0, 0]),
        ("setuid", libc::SYS_setuid, [0; 6]),
        ("unshare", libc::SYS_unshare, [0; 6]),
        ("mprotect", libc::SYS_mprotect, [0; 6]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]),
        // Its links are not in use.
        ("recvmmsg", libc::SYS_recvmmsg, [-1, 0, 0, 0, 0, 0]),
        // Allowed, but not so.
        ("mmap of executable memory", libc::SYS_mmap, [0, 4096, executable, flags, -1, 0]),
        ("mmap of a file", libc::SYS_mmap, [0, 4096, readable, libc::MAP_PRIVATE.into(), socket, 0]),
        ("sendto an address", libc::SYS_sendto, [socket, 0, 0, 0, (&raw const address) as libc::c_long, 3]),
    ] {
        let status = sealed(&needs, || call(number, arguments))?;
        let killed = matches!(status, WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _));
        ensure!(killed, "{name} did not end the process: {status:?}");
    }
    Ok(())
}

pub fn the_allowed_calls_work() -> Result<()> {
    let (near, far) = UnixDatagram::pair()?;
    let mut needs = Needs::new();
    needs.descriptor(&near);
    needs.calls(&[softnet::needs::Syscall::Sendto]);
    let status = sealed(&needs, || {
        let large = vec![1u8; 1 << 20];
        i32::from(near.send(&large[..1000]).ok() != Some(1000))
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    ensure!(far.recv(&mut [0; 2000])? == 1000);
    Ok(())
}

pub fn a_panic_is_told() -> Result<()> {
    let (status, said) = in_a_child(|| {
        if seal(&Needs::new()).is_err() {
            return UNSEALED;
        }
        panic!("the table has {} legs", 3)
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 101)), "{status:?}: {said}");
    ensure!(said.contains("calls.rs") && said.contains("the table has 3 legs"), "{said}");
    Ok(())
}

pub fn the_seal_refuses_a_second_thread() -> Result<()> {
    let (status, said) = in_a_child(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::park()
            }
        });
        i32::from(seal(&Needs::new()).is_err())
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 1)), "{status:?}: {said}");
    Ok(())
}

/// Landlock alone, because behind the other stages nobody gets as far as to meet it.
pub fn landlock_leaves_nothing_to_name() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?;
    let abstract_name = SocketAddr::from_abstract_name("softnet-test")?;
    let receiver = UnixDatagram::bind_addr(&abstract_name)?;
    let (near, far) = UnixDatagram::pair()?;
    let try_all = || -> Result<()> {
        // What is about to be denied works until then.
        near.send_to_addr(b"x", &abstract_name).context("send to the abstract socket")?;
        drop(TcpStream::connect(port)?);
        ensure!(sandbox::restrict_by_landlock()?, "this kernel has no Landlock");
        let denied = |what: &str, result: io::Result<()>| match result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(()),
            other => bail!("{what}: {other:?}"),
        };
        denied("read a file", std::fs::File::open("/etc/passwd").map(drop))?;
        denied("list a directory", std::fs::read_dir("/").map(drop))?;
        denied("make a file", std::fs::File::create("/run/lab/x").map(drop))?;
        denied("connect", TcpStream::connect(port).map(drop))?;
        denied("listen", TcpListener::bind((Ipv4Addr::LOCALHOST, 1)).map(drop))?;
        denied("send to an abstract socket", near.send_to_addr(b"x", &abstract_name).map(drop))?;
        denied(
            "signal another process",
            nix::sys::signal::kill(nix::unistd::getppid(), None).map_err(Into::into),
        )?;
        near.send(b"to the peer").context("send to the connected peer")?;
        Ok(())
    };
    let (status, said) = in_a_child(|| match try_all() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}: {said}");
    ensure!(far.recv(&mut [0; 64])? == 11 && receiver.recv(&mut [0; 64])? == 1);
    Ok(())
}
