//! Reads the contents of a finished program for macOS from its Mach-O headers, and compares them with the
//! expected ones.
//!
//! The program cannot run on this system, so the file itself is checked: that each slice is for the right
//! processor and system, loads what it should and nothing else, binds the functions and the data that [`Expected`] lists
//! and nothing that one of the claimed systems lacks, and has a code signature with correct hashes and the one
//! entitlement.
//!
//! What is bound is read from where the loader reads it, the chained fixups or the bind opcodes: the symbol table of a
//! stripped program names no data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use object::endian::Endianness;
use object::macho;
use object::read::macho::{FatArch, LoadCommandVariant, MachHeader, MachOFatFile32, MachOFile64};
use object::{ImportFlags, NameOrOrdinal, Object};

use super::sdk::Exports;
use super::signature::{self, Signature};

type Header = macho::MachHeader64<Endianness>;

/// What every slice has to be.
#[derive(Debug)]
pub struct Expected {
    /// The versions of macOS that have to run it, oldest first.
    pub versions: Vec<u32>,
    /// What their libraries export.
    pub exports: Exports,
    /// The exact libraries.
    pub libraries: BTreeSet<String>,
    /// The exact symbols of each library but libSystem, whose symbols the standard library chooses.
    pub imports: BTreeMap<String, BTreeSet<String>>,
    /// The exact entitlements.
    pub entitlements: BTreeSet<String>,
}

impl Expected {
    /// Reads a list: lines of an install name, each followed by indented lines with its symbols.
    pub fn parse(text: &str, versions: &[u32], exports: Exports, entitlement: &str) -> Result<Self> {
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
        let entitlements = BTreeSet::from([entitlement.to_owned()]);
        Ok(Expected { versions: versions.to_vec(), exports, libraries, imports, entitlements })
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
    has_uuid: bool,
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

/// The slices of a universal program.
pub fn slices(file: &[u8]) -> Result<Vec<Slice>> {
    let fat = MachOFatFile32::parse(file).context("not a universal program")?;
    fat.arches().iter().map(|arch| slice(arch.data(file).context("a slice beyond the end")?)).collect()
}

impl Slice {
    /// Fails with every difference between this slice and `expected`.
    pub fn check(&self, expected: &Expected) -> Result<()> {
        let mut wrong = Vec::new();
        let (major, minor) = self.minimum_version;
        if expected.versions.first() != Some(&major) || minor != 0 {
            wrong.push(format!("it requires macOS {major}.{minor} or newer"));
        }
        if !self.has_uuid {
            wrong.push("it has no LC_UUID, without which macOS 26 loads no program".to_owned());
        }
        let libraries: BTreeSet<String> = self.libraries.iter().cloned().collect();
        wrong.extend(difference("library", &libraries, &expected.libraries));
        let nothing = BTreeSet::new();
        for library in libraries.iter().filter(|library| *library != LIB_SYSTEM) {
            let actual = self.imports.get(library).unwrap_or(&nothing);
            let expected = expected.imports.get(library).unwrap_or(&nothing);
            wrong.extend(difference(&format!("import of {library}:"), actual, expected));
        }
        wrong.extend(self.missing(expected));
        if self.signature.flags != macho::CS_ADHOC {
            wrong.push(format!(
                "its signature's flags are {:#x}, not those of ad hoc",
                self.signature.flags.0
            ));
        }
        wrong.extend(difference("entitlement", &self.signature.xml, &expected.entitlements));
        wrong.extend(difference("entitlement in DER", &self.signature.der, &expected.entitlements));
        ensure!(wrong.is_empty(), "{}: {}", self.architecture, wrong.join("; "));
        Ok(())
    }

    /// Every bound symbol that an expected version does not have. The loader would refuse the program there.
    fn missing(&self, expected: &Expected) -> Vec<String> {
        let mut missing = Vec::new();
        for (library, symbols) in &self.imports {
            for symbol in symbols {
                let since = expected.exports.get(library).and_then(|exports| exports.get(symbol));
                let lacking =
                    expected.versions.iter().filter(|version| since.is_none_or(|since| since > version));
                let lacking: Vec<String> = lacking.map(u32::to_string).collect();
                if !lacking.is_empty() {
                    missing.push(format!("{library} has no {symbol} in macOS {}", lacking.join(", ")));
                }
            }
        }
        missing
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.minimum_version;
        let imports: usize = self.imports.values().map(BTreeSet::len).sum();
        let entitlements: Vec<&str> = self.signature.der.iter().map(String::as_str).collect();
        write!(
            f,
            "{}: {} bytes, macOS {major}.{minor} or newer, {} libraries, {imports} bound symbols; ad-hoc signature of {:?} over \
             {} pages with {}",
            self.architecture,
            self.size,
            self.libraries.len(),
            self.signature.identifier,
            self.signature.pages,
            entitlements.join(", ")
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
    let mut has_uuid = false;
    let mut libraries = Vec::new();
    let mut signature = None;
    let mut commands = header.load_commands(endian, data, 0)?;
    while let Some(command) = commands.next()? {
        match command.variant()? {
            LoadCommandVariant::BuildVersion(version, _) => {
                ensure!(version.platform.get(endian) == macho::PLATFORM_MACOS, "not for macOS");
                let packed = version.minos.get(endian).0;
                minimum_version = Some((packed >> 16, packed >> 8 & 0xff));
            }
            LoadCommandVariant::Uuid(_) => has_uuid = true,
            LoadCommandVariant::Dylib(dylib) if command.cmd() != macho::LC_ID_DYLIB => {
                ensure!(command.cmd() == macho::LC_LOAD_DYLIB, "a library is not loaded by LC_LOAD_DYLIB");
                let name = command.string(endian, dylib.dylib.name)?;
                libraries.push(String::from_utf8(name.to_vec())?);
            }
            LoadCommandVariant::LinkeditData(linkedit) if command.cmd() == macho::LC_CODE_SIGNATURE => {
                let (start, len) =
                    (linkedit.dataoff.get(endian) as usize, linkedit.datasize.get(endian) as usize);
                let blob = data.get(start..start + len).context("the signature lies beyond the end")?;
                ensure!(start + len == data.len(), "something follows the signature");
                signature = Some(signature::verify(blob, data)?);
            }
            _ => {}
        }
    }
    Ok(Slice {
        architecture,
        size: data.len(),
        minimum_version: minimum_version.context("no minimum version")?,
        has_uuid,
        libraries,
        imports: imports(data)?,
        signature: signature.context("no code signature")?,
    })
}

/// What the loader binds, functions and data, by library.
fn imports(data: &[u8]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let file = MachOFile64::<Endianness>::parse(data)?;
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for import in file.imports()? {
        let import = import?;
        let NameOrOrdinal::Name(name) = import.name() else { bail!("an import has no name") };
        let name = String::from_utf8(name.to_vec())?;
        // Anything else would be from the symbol table, which lacks data.
        ensure!(
            matches!(import.flags(), ImportFlags::MachOBind { .. }),
            "there is no table of what is bound"
        );
        ensure!(!import.library().is_empty(), "{name} comes from no library");
        let library = String::from_utf8(import.library().to_vec())?;
        imports.entry(library).or_default().insert(name);
    }
    Ok(imports)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Sample, universal};
    use super::super::sign::sign;
    use super::*;

    const LIST: &str =
        "# what it loads\n/usr/lib/libSystem.B.dylib\n/vmnet\n  _vmnet_read\n  _vmnet_mtu_key\n";
    const PLIST: &str = "<plist>\n<dict>\n<key>a.b</key><true/>\n</dict>\n</plist>\n";

    fn expected() -> Expected {
        let exports = |symbols: &[(&str, u32)]| {
            symbols.iter().map(|(symbol, since)| ((*symbol).to_owned(), *since)).collect()
        };
        let exports = Exports::from([
            (LIB_SYSTEM.to_owned(), exports(&[("_read", 13)])),
            (
                "/vmnet".to_owned(),
                exports(&[("_vmnet_read", 13), ("_vmnet_mtu_key", 13), ("_vmnet_new_key", 15)]),
            ),
        ]);
        Expected::parse(LIST, &[13, 14, 15, 26], exports, "a.b").unwrap()
    }

    fn sample() -> Sample {
        Sample {
            minimum_version: (13, 0),
            libraries: vec![LIB_SYSTEM, "/vmnet"],
            imports: vec![(1, "_read"), (2, "_vmnet_read"), (2, "_vmnet_mtu_key")],
            ..Sample::default()
        }
    }

    fn inspect(sample: &Sample, plist: &str) -> Result<()> {
        let signed = sign(&sample.linked(), "softnet", plist)?;
        let slices = slices(&universal(&signed))?;
        assert_eq!(slices.len(), 1);
        slices[0].check(&expected())
    }

    fn complaint(sample: &Sample, plist: &str) -> String {
        inspect(sample, plist).unwrap_err().to_string()
    }

    #[test]
    fn a_right_program_passes_by_either_table() {
        inspect(&sample(), PLIST).unwrap();
        inspect(&Sample { opcodes: true, ..sample() }, PLIST).unwrap();
    }

    #[test]
    fn data_and_functions_that_a_claimed_system_lacks_are_named() {
        for opcodes in [false, true] {
            let mut late = Sample { opcodes, ..sample() };
            late.imports.push((2, "_vmnet_new_key"));
            let error = complaint(&late, PLIST);
            assert!(error.contains("/vmnet has no _vmnet_new_key in macOS 13, 14"), "{error}");
            assert!(error.contains("unexpected import of /vmnet: _vmnet_new_key"), "{error}");
            let mut unknown = Sample { opcodes, ..sample() };
            unknown.imports.push((1, "_memrchr"));
            let error = complaint(&unknown, PLIST);
            assert!(error.contains("libSystem.B.dylib has no _memrchr in macOS 13, 14, 15, 26"), "{error}");
        }
    }

    #[test]
    fn every_difference_is_named() {
        let mut lacking = sample();
        lacking.imports.pop();
        assert!(complaint(&lacking, PLIST).contains("missing import of /vmnet: _vmnet_mtu_key"));
        let mut more = sample();
        more.libraries.push("/usr/lib/libiconv.2.dylib");
        assert!(complaint(&more, PLIST).contains("unexpected library /usr/lib/libiconv.2.dylib"));
        for version in [(14, 0), (13, 1), (12, 0)] {
            let error = complaint(&Sample { minimum_version: version, ..sample() }, PLIST);
            assert!(error.contains(&format!("macOS {}.{} or newer", version.0, version.1)), "{error}");
        }
        let error = complaint(&Sample { no_uuid: true, ..sample() }, PLIST);
        assert!(error.contains("LC_UUID"), "{error}");
        let none = PLIST.replace("<key>a.b</key><true/>", "");
        let error = complaint(&sample(), &none);
        assert!(
            error.contains("missing entitlement a.b") && error.contains("missing entitlement in DER a.b"),
            "{error}"
        );
        let two = PLIST.replace("<dict>", "<dict><key>com.apple.vm.networking</key><true/>");
        let error = complaint(&sample(), &two);
        assert!(error.contains("unexpected entitlement com.apple.vm.networking"), "{error}");
    }

    #[test]
    fn the_linkers_signature_is_not_enough() {
        let error = slices(&universal(&sample().linked())).unwrap_err();
        assert!(!format!("{error:#}").is_empty());
    }
}
