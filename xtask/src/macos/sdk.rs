//! The part of Apple's SDK that the linker needs: which library exports which symbol.
//!
//! The lists under `packaging/macos/sdk` name, in their first line, where the stub lies in an SDK, what the
//! library is called at run time, and its versions; then one symbol a line. They are all that Softnet may
//! import: a symbol that is not listed does not link. Every symbol in them exists since macOS 13 or earlier,
//! but for those of `vmnet.txt` that [`super::inspect`] keeps out of the program.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// One library as its list describes it.
#[derive(Debug, PartialEq, Eq)]
struct Library {
    /// Its stub, relative to the SDK.
    stub: PathBuf,
    /// What a program that links to it loads.
    install_name: String,
    current_version: String,
    compatibility_version: String,
    symbols: Vec<String>,
}

/// Writes the stubs of all `lists` into the folder `sdk`, if they differ.
pub fn write(lists: &Path, sdk: &Path) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(lists).with_context(|| format!("read {}", lists.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let library = Library::parse(&text).with_context(|| format!("{}", path.display()))?;
        library.write(sdk)?;
        count += 1;
    }
    ensure!(count > 0, "{} holds no symbol lists", lists.display());
    // Part of libSystem on macOS, but linked by their own names.
    let system = fs::read(sdk.join("usr/lib/libSystem.tbd")).context("the list of libSystem is missing")?;
    for name in ["libc", "libm"] {
        write_if_changed(&sdk.join(format!("usr/lib/{name}.tbd")), &system)?;
    }
    Ok(())
}

impl Library {
    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let header = lines.next().context("empty")?;
        let [stub, install_name, current_version, compatibility_version] =
            header.split_whitespace().collect::<Vec<_>>()[..]
        else {
            anyhow::bail!("the first line is not: STUB INSTALL-NAME CURRENT COMPATIBLE");
        };
        ensure!(
            Path::new(stub).is_relative() && install_name.starts_with('/'),
            "the stub's path is relative, the install name absolute"
        );
        let symbols: Vec<String> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
        for symbol in &symbols {
            let is_word = symbol.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_$".contains(&byte));
            ensure!(is_word, "{symbol:?} is not a symbol");
        }
        Ok(Library {
            stub: stub.into(),
            install_name: install_name.to_owned(),
            current_version: current_version.to_owned(),
            compatibility_version: compatibility_version.to_owned(),
            symbols,
        })
    }

    /// The stub as a text-based library, version 4.
    fn stub(&self) -> String {
        let mut text = String::from("--- !tapi-tbd\ntbd-version: 4\n");
        let targets = "[ x86_64-macos, arm64-macos ]";
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "targets: {targets}\ninstall-name: '{}'\ncurrent-version: {}\ncompatibility-version: {}\n",
            self.install_name, self.current_version, self.compatibility_version
        );
        if !self.symbols.is_empty() {
            let symbols = self.symbols.join("', '");
            let _ = write!(text, "exports:\n  - targets: {targets}\n    symbols: [ '{symbols}' ]\n");
        }
        text.push_str("...\n");
        text
    }

    fn write(&self, sdk: &Path) -> Result<()> {
        write_if_changed(&sdk.join(&self.stub), self.stub().as_bytes())
    }
}

/// Does not touch a file with the right content, so that nothing is linked again.
fn write_if_changed(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(());
    }
    let folder = path.parent().context("a stub lies in a folder")?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, contents))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_becomes_a_stub() {
        let library = Library::parse("usr/lib/libx.tbd /usr/lib/libx.1.dylib 7 1\n_a\n_b$X\n").unwrap();
        assert_eq!(library.stub, Path::new("usr/lib/libx.tbd"));
        assert_eq!(
            library.stub(),
            "--- !tapi-tbd\ntbd-version: 4\ntargets: [ x86_64-macos, arm64-macos ]\n\
             install-name: '/usr/lib/libx.1.dylib'\ncurrent-version: 7\ncompatibility-version: 1\n\
             exports:\n  - targets: [ x86_64-macos, arm64-macos ]\n    symbols: [ '_a', '_b$X' ]\n...\n"
        );
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "one two three\n_a\n", "/abs /usr/lib/x 1 1\n", "a.tbd /x 1 1\n_a'\n"] {
            assert!(Library::parse(text).is_err(), "{text:?}");
        }
    }
}
