//! The socket of a running VM, on which its user and root reach its controller's channel by the VM's name (rule K1).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Uid, getuid};

/// Where the sockets of VMs are that root started. Others can enter it and not list it, so that nobody but root can lock it.
const OF_ROOT: &str = "/run/softnet/control";

/// How long another start may take to make its socket; it needs less than a millisecond.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Why a VM has no socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A running VM has the name.
    #[error("another running VM has the name")]
    Taken,
    /// The file system refused.
    #[error("cannot make the VM's control socket {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket, and its path.
#[derive(Debug)]
pub struct ControlSocket {
    listener: OwnedFd,
    path: PathBuf,
    owner: Uid,
}

impl ControlSocket {
    /// Makes the socket of the VM `name`, which may be a MAC address with hyphens, for `owner` and root. Sockets that were
    /// left in its directory by VMs that are gone are removed.
    ///
    /// # Errors
    /// [`Error::Taken`] if a running VM has the name.
    pub fn open(directory: &Path, name: &str, owner: Uid) -> Result<Self, Error> {
        let path = path(directory, name);
        let at = |source| Error::Io { path: path.clone(), source };
        // Whoever finds a socket of nobody's and removes it must not remove one that was made meanwhile.
        let lock = File::open(directory).map_err(at)?;
        let begun = Instant::now();
        while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK || begun.elapsed() >= LOCK_LIMIT {
                return Err(at(error.into()));
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        for entry in fs::read_dir(directory).map_err(at)?.flatten() {
            let is_left = UnixStream::connect(entry.path())
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if is_left {
                let _ = fs::remove_file(entry.path());
            }
        }
        // Nobody but the owner can connect before its mode is set: the directory can be written by root or the owner only,
        // and the umask applies to the socket.
        let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(&path);
        rustix::process::umask(umask);
        let listener = bound.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::Taken,
            _ => at(error),
        })?;
        let prepare = || {
            std::os::unix::fs::chown(&path, Some(owner.as_raw()), None)?;
            listener.set_nonblocking(true)
        };
        prepare().map_err(at)?;
        Ok(ControlSocket { listener: listener.into(), path, owner })
    }

    /// The listening socket.
    pub fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a user may speak on it.
    pub fn admits(&self, user: Uid) -> bool {
        user.is_root() || user == self.owner
    }

    /// Removes the file of a VM that could not be started, and the directories that are empty without it.
    pub fn abandon(&self) {
        self.remove();
        for directory in self.path.ancestors().skip(1).take(2) {
            if fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }

    /// Removes the file, if this process still may. What is left, the next start removes.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The directory of the sockets of VMs that this user starts, which is made if it is missing. `None` if there is no place
/// that nobody else can write to.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory() -> io::Result<Option<PathBuf>> {
    let directory = if getuid().is_root() {
        PathBuf::from(OF_ROOT)
    } else {
        match of_user(getuid()) {
            Some(directory) => directory,
            None => return Ok(None),
        }
    };
    let mode = if getuid().is_root() { 0o711 } else { 0o700 };
    let parent = directory.parent().unwrap_or(Path::new("/"));
    for (path, mode) in [(parent, 0o755), (directory.as_path(), mode)] {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Err(_) => {}
            Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode))?,
        }
        let metadata = fs::symlink_metadata(path)?;
        let is_safe =
            metadata.is_dir() && metadata.uid() == getuid().as_raw() && metadata.mode() & 0o022 == 0;
        if !is_safe {
            let reason = format!("{} is not a directory that only this user can write to", path.display());
            return Err(io::Error::other(reason));
        }
    }
    Ok(Some(directory))
}

/// Connects to the socket of the VM with this name or MAC address: one of this user's, or one that root has started for
/// this user.
///
/// # Errors
/// When there is none, or it admits somebody else.
pub fn connect(name: &str) -> io::Result<UnixStream> {
    let name = name.to_ascii_lowercase().replace(':', "-");
    let own = of_user(getuid()).filter(|_| !getuid().is_root());
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for directory in own.into_iter().chain([PathBuf::from(OF_ROOT)]) {
        match UnixStream::connect(path(&directory, &name)) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Where an ordinary user's are: below the directory that the system makes for a user who is logged in (`pam_systemd(8)`).
/// No variable names it, because a set-user-ID start must not believe one.
fn of_user(user: Uid) -> Option<PathBuf> {
    let runtime = PathBuf::from(format!("/run/user/{}", user.as_raw()));
    let metadata = fs::symlink_metadata(&runtime).ok()?;
    (metadata.is_dir() && metadata.uid() == user.as_raw()).then(|| runtime.join("softnet/control"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("softnet-control-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn a_name_is_one_vms_while_it_runs() {
        let directory = directory("one");
        let open = |name| ControlSocket::open(&directory, name, getuid());
        let web = open("web").unwrap();
        assert_eq!(fs::metadata(web.path()).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(open("web"), Err(Error::Taken)));
        open("other").unwrap();
        // It was killed; the next start removes what it left, whatever its own name is.
        let left = web.path().to_owned();
        drop(web);
        assert!(left.exists());
        open("third").unwrap();
        assert!(!left.exists());
        open("web").unwrap().remove();
        assert!(!left.exists());
        fs::remove_dir_all(&directory).unwrap();
    }
}
