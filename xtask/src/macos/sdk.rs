//! The part of Apple's SDK that the linker needs: which library exports which symbol.
//!
//! The lists under `packaging/macos/sdk` name, in their first line that is no comment, where the stub lies in an SDK, what
//! the library is called at run time, and its versions; then one symbol a line, with the macOS that brought it
//! unless the oldest one that Softnet runs on has it. They are all that Softnet may import: a symbol that
//! is not listed, or that came later, does not link. A program that was linked with Apple's SDK is compared with them, too
//! ([`super::inspect`]).

use std::collections::BTreeMap;
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
    /// Each with the macOS that brought it.
    symbols: BTreeMap<String, u32>,
}

/// For each library, by the name under which a program loads it, its symbols with the macOS that brought them.
pub type Exports = BTreeMap<String, BTreeMap<String, u32>>;

/// What the lists in the folder `lists` say; symbols without a version have been there since `oldest`.
pub fn exports(lists: &Path, oldest: u32) -> Result<Exports> {
    Ok(read(lists, oldest)?.into_iter().map(|library| (library.install_name, library.symbols)).collect())
}

/// Writes the stubs of all `lists` into the folder `sdk`, if they differ, with what macOS `oldest` exports.
pub fn write(lists: &Path, sdk: &Path, oldest: u32) -> Result<()> {
    for library in read(lists, oldest)? {
        write_if_changed(&sdk.join(&library.stub), library.stub(oldest).as_bytes())?;
    }
    // Part of libSystem on macOS, but linked by their own names.
    let system = fs::read(sdk.join("usr/lib/libSystem.tbd")).context("the list of libSystem is missing")?;
    for name in ["libc", "libm"] {
        write_if_changed(&sdk.join(format!("usr/lib/{name}.tbd")), &system)?;
    }
    Ok(())
}

fn read(lists: &Path, oldest: u32) -> Result<Vec<Library>> {
    let mut libraries = Vec::new();
    for entry in fs::read_dir(lists).with_context(|| format!("read {}", lists.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        libraries.push(Library::parse(&text, oldest).with_context(|| format!("{}", path.display()))?);
    }
    ensure!(!libraries.is_empty(), "{} holds no symbol lists", lists.display());
    Ok(libraries)
}

impl Library {
    fn parse(text: &str, oldest: u32) -> Result<Self> {
        let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
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
        let mut symbols = BTreeMap::new();
        for line in lines {
            let (symbol, since) = match line.split_once(' ') {
                None => (line, oldest),
                Some((symbol, since)) => {
                    let since = since.parse().with_context(|| format!("{since:?} is not a version"))?;
                    (symbol, since)
                }
            };
            let is_word = symbol.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_$".contains(&byte));
            ensure!(is_word, "{symbol:?} is not a symbol");
            ensure!(symbols.insert(symbol.to_owned(), since).is_none(), "{symbol} is listed twice");
        }
        Ok(Library {
            stub: stub.into(),
            install_name: install_name.to_owned(),
            current_version: current_version.to_owned(),
            compatibility_version: compatibility_version.to_owned(),
            symbols,
        })
    }

    /// The stub as a text-based library, version 4, with what macOS `oldest` exports.
    fn stub(&self, oldest: u32) -> String {
        let mut text = String::from("--- !tapi-tbd\ntbd-version: 4\n");
        let targets = "[ x86_64-macos, arm64-macos ]";
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "targets: {targets}\ninstall-name: '{}'\ncurrent-version: {}\ncompatibility-version: {}\n",
            self.install_name, self.current_version, self.compatibility_version
        );
        let symbols: Vec<&str> = self
            .symbols
            .iter()
            .filter(|(_, since)| **since <= oldest)
            .map(|(symbol, _)| symbol.as_str())
            .collect();
        if !symbols.is_empty() {
            let symbols = symbols.join("', '");
            let _ = write!(text, "exports:\n  - targets: {targets}\n    symbols: [ '{symbols}' ]\n");
        }
        text.push_str("...\n");
        text
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
    fn a_list_becomes_a_stub_of_what_the_oldest_system_has() {
        let list = "# source\nusr/lib/libx.tbd /usr/lib/libx.1.dylib 7 1\n_a\n_b$X\n_new 15\n";
        let library = Library::parse(list, 13).unwrap();
        assert_eq!(library.stub, Path::new("usr/lib/libx.tbd"));
        assert_eq!(library.symbols["_new"], 15);
        assert_eq!(
            library.stub(13),
            "--- !tapi-tbd\ntbd-version: 4\ntargets: [ x86_64-macos, arm64-macos ]\n\
             install-name: '/usr/lib/libx.1.dylib'\ncurrent-version: 7\ncompatibility-version: 1\n\
             exports:\n  - targets: [ x86_64-macos, arm64-macos ]\n    symbols: [ '_a', '_b$X' ]\n...\n"
        );
        assert!(library.stub(15).contains("'_new'"));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "one two three\n_a\n",
            "/abs /usr/lib/x 1 1\n",
            "a.tbd /x 1 1\n_a'\n",
            "a.tbd /x 1 1\n_a new\n",
            "a.tbd /x 1 1\n_a\n_a 15\n",
        ] {
            assert!(Library::parse(text, 13).is_err(), "{text:?}");
        }
    }
}
