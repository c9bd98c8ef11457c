//! Files that other processes read or could have tampered with: written atomically, never through a symbolic
//! link, in directories that only root can write to.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// A file or a directory could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    /// A function that adds the action and `path` to a system error.
    pub fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error { action, path: path.to_owned(), source }
    }

    /// What kind of system error it is.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// The file's content, or `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    let mut content = String::new();
    match File::open(path).and_then(|mut file| file.read_to_string(&mut content)) {
        Ok(_) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new("read", path)(error)),
    }
}

/// Writes a file so that a reader sees either the old or the new content.
pub fn write_atomically(path: &Path, content: &str) -> Result<(), Error> {
    let staged = path.with_extension("new");
    let write = || {
        let mut file = create(&staged, 0o644).map_err(|error| error.source)?;
        file.set_len(0)?;
        file.write_all(content.as_bytes())?;
        fs::rename(&staged, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&staged);
        Error::new("write", path)(error)
    })
}

/// Removes a file; it is not an error if there is none.
pub fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::new("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The names in the directory, in order; none if there is no such directory.
pub fn list(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::new("list", directory)(error)),
    };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Opens a file for reading and writing, created with `mode` if it is missing; never through a symbolic link.
pub fn create(path: &Path, mode: u32) -> Result<File, Error> {
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        // Regardless of the umask.
        if file.metadata()?.mode() & mode != mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(file)
    };
    open().map_err(Error::new("open", path))
}

/// Creates the directory and ensures that no other user can have written to it, nor can read it if `mode`
/// forbids that.
pub fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::new("create", path)(error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(path).map_err(Error::new("look at", path))?;
    let forbidden = 0o022 | (0o077 & !mode);
    let trusted =
        metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & forbidden == 0;
    if trusted && metadata.mode() & mode == mode {
        return Ok(());
    }
    if trusted {
        // The umask of the process that started Softnet may hide what others must read, for example monitors
        // without privilege (rule H2).
        return fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(Error::new("change the mode of", path));
    }
    let message = match mode & 0o077 {
        0 => "it is not a directory that only root can enter; remove it and start again",
        _ => "it is not a directory that only root can write to; remove it and start again",
    };
    Err(Error::new("use", path)(io::Error::new(io::ErrorKind::PermissionDenied, message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("softnet-files-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let scratch = Scratch::new("link");
        let path = scratch.0.join("link");
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(create(&path, 0o644).is_err());
        let directory = scratch.0.join("directory");
        std::os::unix::fs::symlink("/tmp", &directory).unwrap();
        assert!(make_directory(&directory, 0o755).is_err());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("mode");
        let path = scratch.0.join("open");
        make_directory(&path, 0o755).unwrap();
        make_directory(&path, 0o755).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        make_directory(&path, 0o755).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o755);
        // Also refused at a second start.
        for mode in [0o777, 0o733] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            for _ in 0..2 {
                let text = make_directory(&path, 0o755).unwrap_err().to_string();
                assert!(text.contains("only root can write to"), "{text}");
            }
        }
    }

    #[test]
    fn an_atomic_write_leaves_no_other_file() {
        let scratch = Scratch::new("atomic");
        let path = scratch.0.join("network");
        write_atomically(&path, "first, longer").unwrap();
        write_atomically(&path, "second").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("second"));
        assert_eq!(list(&scratch.0).unwrap(), ["network"]);
    }
}
