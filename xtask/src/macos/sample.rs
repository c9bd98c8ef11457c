//! A small Mach-O file, as a linker leaves it, for the tests of what signs and inspects one.

/// What is in it.
#[derive(Debug, Default)]
pub struct Sample {
    pub minimum_version: (u32, u32),
    pub libraries: Vec<&'static str>,
    /// Each with its library, counted from one.
    pub imports: Vec<(u32, &'static str)>,
    /// Bound by opcodes instead of chained fixups.
    pub opcodes: bool,
    pub no_uuid: bool,
}

/// Where the contents of `__TEXT` end, and those of `__LINKEDIT` begin.
const LINK_EDIT: u32 = 0x2000;
/// What the linker's signature occupies; its contents do not matter.
const LINKERS_SIGNATURE: u32 = 64;

impl Sample {
    /// The program with room for a signature.
    pub fn linked(&self) -> Vec<u8> {
        let mut table = if self.opcodes { self.bind_opcodes() } else { self.chained_fixups() };
        table.resize(table.len().next_multiple_of(16), 0);
        let table_len = table.len() as u32;
        let signature = LINK_EDIT + table_len;
        let link_edit_len = table_len + LINKERS_SIGNATURE;
        let mut commands = vec![
            segment("__TEXT", 0x1_0000_0000, 0, LINK_EDIT),
            segment("__LINKEDIT", 0x1_0000_4000, LINK_EDIT, link_edit_len),
        ];
        let packed = self.minimum_version.0 << 16 | self.minimum_version.1 << 8;
        // LC_BUILD_VERSION, for macOS, with no tools.
        commands.push(words(&[0x32, 24, 1, packed, packed, 0]));
        if !self.no_uuid {
            // LC_UUID
            commands.push(words(&[0x1b, 24, 1, 2, 3, 4]));
        }
        for library in &self.libraries {
            let mut name = library.as_bytes().to_vec();
            name.resize((name.len() + 1).next_multiple_of(8), 0);
            // LC_LOAD_DYLIB, the name's offset, a time and two versions.
            let head = words(&[0xc, 24 + name.len() as u32, 24, 2, 0x1_0000, 0x1_0000]);
            commands.push([head, name].concat());
        }
        commands.push(if self.opcodes {
            // LC_DYLD_INFO_ONLY with nothing but binds.
            words(&[0x8000_0022, 48, 0, 0, LINK_EDIT, table_len, 0, 0, 0, 0, 0, 0])
        } else {
            // LC_DYLD_CHAINED_FIXUPS
            words(&[0x8000_0034, 16, LINK_EDIT, table_len])
        });
        // LC_CODE_SIGNATURE
        commands.push(words(&[0x1d, 16, signature, LINKERS_SIGNATURE]));
        let count = commands.len() as u32;
        let commands = commands.concat();
        // MH_MAGIC_64, arm64, MH_EXECUTE; dynamically linked, with two-level names.
        let mut file = words(&[0xfeed_facf, 0x0100_000c, 0, 2, count, commands.len() as u32, 0x84, 0]);
        file.extend(commands);
        assert!(file.len() < LINK_EDIT as usize);
        file.resize(LINK_EDIT as usize, 0xd4);
        file.extend(table);
        file.resize((signature + LINKERS_SIGNATURE) as usize, 0);
        file
    }

    fn chained_fixups(&self) -> Vec<u8> {
        let mut names = vec![0];
        let mut imports = Vec::new();
        for (library, name) in &self.imports {
            imports.push(library | (names.len() as u32) << 9);
            names.extend(name.as_bytes());
            names.push(0);
        }
        let (starts, imports_at) = (32, 40);
        let names_at = imports_at + 4 * imports.len() as u32;
        let count = imports.len() as u32;
        // The version, the offsets, DYLD_CHAINED_IMPORT, uncompressed; no segment has fixups.
        let head = words(&[0, starts, imports_at, names_at, count, 1, 0, 0, 0, 0]);
        [head, words(&imports), names].concat()
    }

    fn bind_opcodes(&self) -> Vec<u8> {
        let mut bytes = vec![0x51, 0x70, 0];
        for (library, name) in &self.imports {
            bytes.push(0x10 | *library as u8);
            bytes.push(0x40);
            bytes.extend(name.as_bytes());
            bytes.extend([0, 0x90]);
        }
        bytes.push(0);
        bytes
    }
}

fn segment(name: &str, address: u64, at: u32, len: u32) -> Vec<u8> {
    let mut bytes = words(&[0x19, 72]);
    bytes.extend(name.as_bytes());
    bytes.resize(24, 0);
    for wide in [address, u64::from(len).next_multiple_of(0x4000), u64::from(at), u64::from(len)] {
        bytes.extend(wide.to_le_bytes());
    }
    bytes.extend(words(&[5, 5, 0, 0]));
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A universal program with `slice` as its only one.
pub fn universal(slice: &[u8]) -> Vec<u8> {
    let at = 0x4000;
    let head: [u32; 7] = [0xcafe_babe, 1, 0x0100_000c, 0, at, slice.len() as u32, 14];
    let mut file: Vec<u8> = head.iter().flat_map(|word| word.to_be_bytes()).collect();
    file.resize(at as usize, 0);
    file.extend(slice);
    file
}
