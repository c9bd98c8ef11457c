//! A `newc` archive, the format of an initial RAM file system (Linux, `buffer-format.rst`), as bytes.

/// Builds an archive.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CONSOLE: u32 = 0o020_600;

impl Archive {
    /// Adds a directory; its parent must have been added before.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds an executable file.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK, (0, 0), target.as_bytes());
    }

    /// Adds `/dev/console`, without which the first process has no standard input and output.
    pub fn console(&mut self) {
        self.entry("dev/console", CONSOLE, (5, 1), &[]);
    }

    /// The finished archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device, special device, length of the name, checksum
        // (none).
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// The writer follows the kernel's documentation; busybox's independent reader checks it.
    #[test]
    fn another_reader_lists_what_was_written() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.program("bin/odd", b"12345");
        archive.link("bin/sh", "odd");
        let mut reader = Command::new("busybox")
            .args(["cpio", "-t"])
            .stderr(Stdio::null())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("busybox is installed");
        reader.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listed = reader.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&listed.stdout), "bin\nbin/odd\nbin/sh\n");
    }
}
