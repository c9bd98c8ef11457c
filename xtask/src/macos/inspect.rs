//! Reads the contents of a finished program for macOS from its Mach-O headers, and compares them with the
//! expected ones.
//!
//! The program cannot run on this system, so the file itself is checked: that each slice is for the right
//! processor and system, loads what it should and nothing else, imports from the frameworks the functions
//! that [`Expected`] lists and none that older systems lack (a stripped program's symbol table names no
//! imported data), and has a code signature with a correct hash for every page. Apple's processors refuse to
//! run a program without one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use object::endian::{BigEndian, Endianness, U32};
use object::macho;
use object::read::macho::{FatArch, LoadCommandVariant, MachHeader, MachOFatFile32, Nlist};
use sha2::{Digest, Sha256};

type Header = macho::MachHeader64<Endianness>;

/// What every slice has to be.
#[derive(Debug)]
pub struct Expected {
    /// The oldest macOS that may run it, `(major, minor)`.
    pub minimum_version: (u32, u32),
    /// The exact libraries.
    pub libraries: BTreeSet<String>,
    /// The exact symbols of each library but libSystem, whose symbols the standard library chooses.
    pub imports: BTreeMap<String, BTreeSet<String>>,
}

impl Expected {
    /// Reads a list: lines of an install name, each followed by indented lines with its symbols.
    pub fn parse(text: &str, minimum_version: (u32, u32)) -> Result<Self> {
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut library = None;
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            match line.strip_prefix("  ") {
                None => {
                    imports.entry(line.to_owned()).or_default();
                    library = Some(line.to_owned());
                }
                Some(symbol) => {
                    let library = library.as_ref().context("a symbol before the first library")?;
                    imports.entry(library.clone()).or_default().insert(symbol.to_owned());
                }
            }
        }
        let libraries = imports.keys().cloned().collect();
        imports.remove(LIB_SYSTEM);
        Ok(Expected { minimum_version, libraries, imports })
    }
}

/// The one library that every program needs.
const LIB_SYSTEM: &str = "/usr/lib/libSystem.B.dylib";

/// One processor's part of a universal program.
#[derive(Debug)]
pub struct Slice {
    /// Its processor.
    pub architecture: Architecture,
    /// Bytes.
    pub size: usize,
    minimum_version: (u32, u32),
    libraries: Vec<String>,
    imports: BTreeMap<String, BTreeSet<String>>,
    signature: Signature,
}

/// A processor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Architecture {
    /// Apple's own.
    Arm64,
    /// Intel's.
    X86_64,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Architecture::Arm64 => "arm64",
            Architecture::X86_64 => "x86_64",
        })
    }
}

/// The checked parts of the code signature.
#[derive(Debug, Eq, PartialEq)]
struct Signature {
    ad_hoc: bool,
    /// Pages whose hash is correct.
    pages: usize,
}

/// The slices of a universal program.
pub fn slices(file: &[u8]) -> Result<Vec<Slice>> {
    let fat = MachOFatFile32::parse(file).context("not a universal program")?;
    fat.arches().iter().map(|arch| slice(arch.data(file).context("a slice beyond the end")?)).collect()
}

impl Slice {
    /// Fails with every difference between this slice and `expected`.
    pub fn check(&self, expected: &Expected) -> Result<()> {
        let mut wrong = Vec::new();
        if self.minimum_version != expected.minimum_version {
            wrong.push(format!("it requires macOS {:?} or newer", self.minimum_version));
        }
        let libraries: BTreeSet<String> = self.libraries.iter().cloned().collect();
        wrong.extend(difference("library", &libraries, &expected.libraries));
        let nothing = BTreeSet::new();
        for library in libraries.iter().filter(|library| *library != LIB_SYSTEM) {
            let actual = self.imports.get(library).unwrap_or(&nothing);
            let expected = expected.imports.get(library).unwrap_or(&nothing);
            wrong.extend(difference(&format!("import of {library}:"), actual, expected));
        }
        if !self.signature.ad_hoc {
            wrong.push("its signature is not ad hoc".to_owned());
        }
        ensure!(wrong.is_empty(), "{}: {}", self.architecture, wrong.join("; "));
        Ok(())
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.minimum_version;
        let imports: usize = self.imports.values().map(BTreeSet::len).sum();
        write!(
            f,
            "{}: {} bytes, macOS {major}.{minor} or newer, {} libraries, {imports} imports, ad-hoc signature over {} pages",
            self.architecture,
            self.size,
            self.libraries.len(),
            self.signature.pages
        )
    }
}

fn difference(
    what: &str,
    actual: &BTreeSet<String>,
    expected: &BTreeSet<String>,
) -> impl Iterator<Item = String> {
    let extra = actual.difference(expected).map(|name| format!("unexpected {what} {name}"));
    let missing = expected.difference(actual).map(|name| format!("missing {what} {name}"));
    extra.chain(missing).collect::<Vec<_>>().into_iter()
}

fn slice(data: &[u8]) -> Result<Slice> {
    let header = Header::parse(data, 0).context("a slice is not a 64-bit Mach-O file")?;
    let endian = header.endian()?;
    let architecture = match header.cputype(endian) {
        macho::CPU_TYPE_ARM64 => Architecture::Arm64,
        macho::CPU_TYPE_X86_64 => Architecture::X86_64,
        other => bail!("a slice is for the processor type {other:#x}"),
    };
    let mut minimum_version = None;
    let mut libraries = Vec::new();
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut signature = None;
    let mut symbols = None;
    let mut commands = header.load_commands(endian, data, 0)?;
    while let Some(command) = commands.next()? {
        match command.variant()? {
            LoadCommandVariant::BuildVersion(version, _) => {
                ensure!(version.platform.get(endian) == macho::PLATFORM_MACOS, "not for macOS");
                let packed = version.minos.get(endian).0;
                minimum_version = Some((packed >> 16, packed >> 8 & 0xff));
            }
            LoadCommandVariant::Dylib(dylib) if command.cmd() != macho::LC_ID_DYLIB => {
                ensure!(command.cmd() == macho::LC_LOAD_DYLIB, "a library is not loaded by LC_LOAD_DYLIB");
                let name = command.string(endian, dylib.dylib.name)?;
                libraries.push(String::from_utf8(name.to_vec())?);
            }
            LoadCommandVariant::Symtab(symtab) => {
                symbols = Some(symtab.symbols::<Header, _>(endian, data)?);
            }
            LoadCommandVariant::LinkeditData(linkedit) if command.cmd() == macho::LC_CODE_SIGNATURE => {
                let (start, len) =
                    (linkedit.dataoff.get(endian) as usize, linkedit.datasize.get(endian) as usize);
                let blob = data.get(start..start + len).context("the signature lies beyond the end")?;
                signature = Some(verify_signature(blob, data)?);
            }
            _ => {}
        }
    }
    let symbols = symbols.context("no symbol table")?;
    for symbol in symbols.iter().filter(|symbol| symbol.is_undefined()) {
        let name = String::from_utf8(symbol.name(endian, symbols.strings())?.to_vec())?;
        let ordinal =
            symbol.library_ordinal(endian).index().map(|ordinal| usize::from(ordinal).wrapping_sub(1));
        let library = ordinal.and_then(|ordinal| libraries.get(ordinal));
        let library = library.with_context(|| format!("{name} comes from no library"))?;
        imports.entry(library.clone()).or_default().insert(name);
    }
    Ok(Slice {
        architecture,
        size: data.len(),
        minimum_version: minimum_version.context("no minimum version")?,
        libraries,
        imports,
        signature: signature.context("no code signature")?,
    })
}

/// `CSMAGIC_EMBEDDED_SIGNATURE`, `CSMAGIC_CODEDIRECTORY` and what belongs to them, from XNU's `cs_blobs.h`. All
/// numbers in a signature are big-endian.
const EMBEDDED_SIGNATURE: u32 = 0xfade_0cc0;
const CODE_DIRECTORY: u32 = 0xfade_0c02;
const FLAG_AD_HOC: u32 = 0x2;
const HASH_SHA256: u8 = 2;

/// Reads the signature `blob` of the slice `data` and compares the hash of every page.
fn verify_signature(blob: &[u8], data: &[u8]) -> Result<Signature> {
    ensure!(word(blob, 0)? == EMBEDDED_SIGNATURE, "the signature is not an embedded signature");
    for index in 0..word(blob, 8)? as usize {
        let offset = word(blob, 12 + 8 * index + 4)? as usize;
        let directory = blob.get(offset..).context("a cut signature")?;
        if word(directory, 0)? == CODE_DIRECTORY {
            return verify_directory(directory, data);
        }
    }
    bail!("the signature has no code directory")
}

fn verify_directory(directory: &[u8], data: &[u8]) -> Result<Signature> {
    let flags = word(directory, 12)?;
    let hashes = word(directory, 16)? as usize;
    let slots = word(directory, 28)? as usize;
    let limit = word(directory, 32)? as usize;
    let [hash_size, hash_type, _platform, page_shift] =
        *directory.get(36..40).and_then(|bytes| bytes.first_chunk()).context("a cut code directory")?;
    ensure!(hash_size == 32 && hash_type == HASH_SHA256, "the signature's hashes are not SHA-256");
    let code = data.get(..limit).context("the signature covers more than the file has")?;
    let pages = code.chunks(1 << page_shift);
    ensure!(pages.len() == slots, "{slots} hashes for {} pages", pages.len());
    for (index, page) in pages.enumerate() {
        let recorded = directory.get(hashes + 32 * index..).and_then(|hash| hash.get(..32));
        ensure!(recorded == Some(Sha256::digest(page).as_slice()), "the hash of page {index} is wrong");
    }
    Ok(Signature { ad_hoc: flags & FLAG_AD_HOC != 0, pages: slots })
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk()).context("a cut signature")?;
    Ok(U32::<BigEndian>::from_bytes(*chunk).get(BigEndian))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signature as the linker writes it, over `code`, in pages of 16 bytes.
    fn signed(code: &[u8], flags: u32) -> Vec<u8> {
        let pages: Vec<&[u8]> = code.chunks(16).collect();
        let mut directory = vec![0; 44];
        for (at, value) in
            [(0, CODE_DIRECTORY), (12, flags), (16, 44), (28, pages.len() as u32), (32, code.len() as u32)]
        {
            directory[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        directory[36..40].copy_from_slice(&[32, HASH_SHA256, 0, 4]);
        for page in pages {
            directory.extend_from_slice(&Sha256::digest(page));
        }
        let mut blob = Vec::new();
        for value in [EMBEDDED_SIGNATURE, 0, 1, 0, 20] {
            blob.extend_from_slice(&value.to_be_bytes());
        }
        blob.extend(directory);
        blob
    }

    #[test]
    fn a_true_signature_is_told_from_a_false_one() {
        let mut code = vec![7; 40];
        let blob = signed(&code, FLAG_AD_HOC);
        assert_eq!(verify_signature(&blob, &code).unwrap(), Signature { ad_hoc: true, pages: 3 });
        assert!(!verify_signature(&signed(&code, 0), &code).unwrap().ad_hoc);
        code[39] = 8;
        let error = verify_signature(&blob, &code).unwrap_err();
        assert_eq!(error.to_string(), "the hash of page 2 is wrong");
        assert!(verify_signature(&blob[..30], &code).is_err());
        assert!(verify_signature(&blob, &code[..30]).is_err());
    }

    #[test]
    fn every_difference_is_named() {
        let list = "# what it loads\n/usr/lib/libSystem.B.dylib\n/vmnet\n  _vmnet_read\n  _vmnet_write\n";
        let expected = Expected::parse(list, (13, 0)).unwrap();
        let imports = ["_vmnet_read", "_vmnet_network_create"].map(str::to_owned).into();
        let mut slice = Slice {
            architecture: Architecture::Arm64,
            size: 1,
            minimum_version: (13, 0),
            libraries: vec![LIB_SYSTEM.to_owned(), "/vmnet".to_owned()],
            imports: [("/vmnet".to_owned(), imports)].into(),
            signature: Signature { ad_hoc: true, pages: 1 },
        };
        let error = slice.check(&expected).unwrap_err().to_string();
        assert!(error.contains("unexpected import of /vmnet: _vmnet_network_create"), "{error}");
        assert!(error.contains("missing import of /vmnet: _vmnet_write"), "{error}");
        slice.imports.insert("/vmnet".to_owned(), ["_vmnet_read", "_vmnet_write"].map(str::to_owned).into());
        slice.check(&expected).unwrap();
        slice.libraries.push("/usr/lib/libiconv.2.dylib".to_owned());
        assert!(slice.check(&expected).is_err());
        slice.libraries.pop();
        slice.minimum_version = (14, 0);
        assert!(slice.check(&expected).is_err());
    }
}
