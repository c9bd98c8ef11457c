//! Signs a program for macOS ad hoc, with entitlements, as `codesign --sign - --entitlements` does on a Mac.
//!
//! The linker's own ad-hoc signature carries none. Of the libraries that sign, apple-codesign brings some 400 crates,
//! and the small ones are alphas; what is needed is four blobs and a table of hashes, in the format that XNU
//! reads (`osfmk/kern/cs_blobs.h`). [`super::signature`] checks the result with another reader.

use anyhow::{Context, Result, ensure};
use object::Endianness;
use object::macho::{self, MachHeader64};
use object::read::macho::{MachHeader, Segment};
use sha2::{Digest, Sha256};

use super::entitlements;

/// Bytes that one hash covers, as a power of two. On either processor codesign takes 4 KiB.
const PAGE_SHIFT: u8 = 12;
const HASH: usize = 32;
/// Slots before the first page's hash: those of Info.plist to DER entitlements.
const SPECIAL_SLOTS: usize = 7;
/// Version 0x20400 has fields for the executable segment, which the kernel wants for entitlements.
const VERSION: u32 = 0x20400;
const DIRECTORY_HEADER: usize = 88;
/// A segment ends at a page of the processor with the larger ones.
const SEGMENT_ALIGNMENT: u64 = 0x4000;

/// Where the parts that signing changes are in the file.
#[derive(Debug, Default)]
struct Places {
    /// The offset of `LC_CODE_SIGNATURE`.
    signature_command: Option<usize>,
    /// The offset of the present signature, where the signed bytes end.
    limit: usize,
    /// The offset of `__LINKEDIT`'s command, and of its contents.
    link_edit: Option<(usize, u64)>,
    /// Offset and size of `__TEXT`'s contents.
    text: Option<(u64, u64)>,
}

/// `program`, a 64-bit Mach-O file of one architecture with the linker's signature at its end, with a signature under
/// the name `identifier` with the `plist` of entitlements instead.
pub fn sign(program: &[u8], identifier: &str, plist: &str) -> Result<Vec<u8>> {
    let places = find(program)?;
    let command = places.signature_command.context("the linker left no place for a signature")?;
    let (link_edit, link_edit_start) = places.link_edit.context("no segment __LINKEDIT")?;
    let text = places.text.context("no segment __TEXT")?;
    let mut signed = program.get(..places.limit).context("the signature lies beyond the end")?.to_vec();

    let pages = signed.len().div_ceil(1 << PAGE_SHIFT);
    let requirements = blob(macho::CSMAGIC_REQUIREMENTS, &0u32.to_be_bytes());
    let xml = blob(macho::CSMAGIC_EMBEDDED_ENTITLEMENTS, plist.as_bytes());
    let der = entitlements::to_der(&entitlements::of_xml(plist)?);
    let der = blob(macho::CSMAGIC_EMBEDDED_DER_ENTITLEMENTS, &der);
    // Holds the certificates of a signature that has some.
    let wrapper = blob(macho::CSMAGIC_BLOBWRAPPER, &[]);
    let directory_len = DIRECTORY_HEADER + identifier.len() + 1 + (SPECIAL_SLOTS + pages) * HASH;
    let others = [
        (macho::CSSLOT_REQUIREMENTS, requirements),
        (macho::CSSLOT_ENTITLEMENTS, xml),
        (macho::CSSLOT_DER_ENTITLEMENTS, der),
        (macho::CSSLOT_SIGNATURESLOT, wrapper),
    ];
    let index_len = 12 + 8 * (1 + others.len());
    let signature_len = index_len + directory_len + others.iter().map(|(_, blob)| blob.len()).sum::<usize>();
    let reserved = signature_len.next_multiple_of(16);

    // The load commands are under the first page's hash, so they are changed before.
    let file_size = (places.limit + reserved) as u64 - link_edit_start;
    put(&mut signed, command + 12, &(reserved as u32).to_le_bytes())?;
    put(&mut signed, link_edit + 32, &file_size.next_multiple_of(SEGMENT_ALIGNMENT).to_le_bytes())?;
    put(&mut signed, link_edit + 48, &file_size.to_le_bytes())?;

    let directory = directory(&signed, identifier, text, &others)?;
    ensure!(directory.len() == directory_len, "the code directory has another size than reserved");
    let mut signature = Vec::new();
    let words = [macho::CSMAGIC_EMBEDDED_SIGNATURE, signature_len as u32, 1 + others.len() as u32];
    words.iter().for_each(|word| signature.extend(word.to_be_bytes()));
    let mut offset = index_len;
    let first = (macho::CSSLOT_CODEDIRECTORY, directory);
    let blobs: Vec<_> = std::iter::once(first).chain(others).collect();
    for (slot, blob) in &blobs {
        signature.extend(slot.0.to_be_bytes());
        signature.extend((offset as u32).to_be_bytes());
        offset += blob.len();
    }
    blobs.iter().for_each(|(_, blob)| signature.extend(blob));
    signature.resize(reserved, 0);
    signed.extend(signature);
    Ok(signed)
}

/// The code directory: the hashes of the other blobs and of every page of `code`.
fn directory(
    code: &[u8],
    identifier: &str,
    (text_start, text_len): (u64, u64),
    others: &[(macho::CsSlot, Vec<u8>)],
) -> Result<Vec<u8>> {
    let pages = code.chunks(1 << PAGE_SHIFT);
    let identifier_at = DIRECTORY_HEADER as u32;
    let hashes_at = identifier_at + identifier.len() as u32 + 1 + (SPECIAL_SLOTS * HASH) as u32;
    let mut body = Vec::new();
    let limit = u32::try_from(code.len()).context("a program of 4 GiB")?;
    let words = [
        VERSION,
        macho::CS_ADHOC.0,
        hashes_at,
        identifier_at,
        SPECIAL_SLOTS as u32,
        pages.len() as u32,
        limit,
    ];
    words.iter().for_each(|word| body.extend(word.to_be_bytes()));
    body.extend([HASH as u8, macho::CS_HASHTYPE_SHA256.0, 0, PAGE_SHIFT]);
    // Unused, no scatter vector, no team, unused, no 64-bit limit.
    body.extend([0; 4 + 4 + 4 + 4 + 8]);
    for wide in [text_start, text_len, macho::CS_EXECSEG_MAIN_BINARY.0] {
        body.extend(wide.to_be_bytes());
    }
    body.extend(identifier.as_bytes());
    body.push(0);
    for slot in (1..=SPECIAL_SLOTS as u32).rev() {
        match others.iter().find(|(other, _)| other.0 == slot) {
            Some((_, blob)) => body.extend(Sha256::digest(blob)),
            None => body.extend([0; HASH]),
        }
    }
    pages.for_each(|page| body.extend(Sha256::digest(page)));
    Ok(blob(macho::CSMAGIC_CODEDIRECTORY, &body))
}

fn blob(magic: u32, contents: &[u8]) -> Vec<u8> {
    let len = (8 + contents.len()) as u32;
    [&magic.to_be_bytes()[..], &len.to_be_bytes(), contents].concat()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Result<()> {
    bytes.get_mut(at..at + value.len()).context("a load command beyond the end")?.copy_from_slice(value);
    Ok(())
}

fn find(program: &[u8]) -> Result<Places> {
    let header = MachHeader64::<Endianness>::parse(program, 0).context("not a 64-bit Mach-O file")?;
    let endian = header.endian()?;
    ensure!(endian == Endianness::Little, "a big-endian Mach-O file");
    let mut places = Places::default();
    let mut commands = header.load_commands(endian, program, 0)?;
    while let Some(command) = commands.next()? {
        let at = usize::try_from(command.offset())?;
        if let Some((segment, _)) = command.segment_64()? {
            match segment.name() {
                b"__LINKEDIT" => places.link_edit = Some((at, segment.fileoff(endian))),
                b"__TEXT" => places.text = Some((segment.fileoff(endian), segment.filesize(endian))),
                _ => {}
            }
        } else if command.cmd() == macho::LC_CODE_SIGNATURE {
            let linkedit: &macho::LinkeditDataCommand<Endianness> = command.data()?;
            places.signature_command = Some(at);
            places.limit = linkedit.dataoff.get(endian) as usize;
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::sample::Sample;
    use super::super::signature::{Signature, verify};
    use super::*;

    const PLIST: &str = "<plist><dict><key>com.apple.security.virtualization</key>\n<true/></dict></plist>\n";

    fn signed() -> Vec<u8> {
        let sample = Sample { libraries: vec!["/usr/lib/libSystem.B.dylib"], ..Sample::default() };
        sign(&sample.linked(), "softnet", PLIST).unwrap()
    }

    /// Where the signature begins.
    fn limit(program: &[u8]) -> usize {
        find(program).unwrap().limit
    }

    #[test]
    fn what_is_signed_verifies() {
        let signed = signed();
        let limit = limit(&signed);
        let names = BTreeSet::from(["com.apple.security.virtualization".to_owned()]);
        let expected = Signature {
            identifier: "softnet".to_owned(),
            flags: macho::CS_ADHOC,
            pages: 3,
            xml: names.clone(),
            der: names,
        };
        assert_eq!(verify(&signed[limit..], &signed).unwrap(), expected);
        // As in `cs_blobs.h`: the magic, five blobs, the code directory first and right behind the index.
        assert_eq!(signed[limit..limit + 4], [0xfa, 0xde, 0x0c, 0xc0]);
        assert_eq!(signed[limit + 8..limit + 20], [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 52]);
        assert_eq!(signed[limit + 52..limit + 56], [0xfa, 0xde, 0x0c, 0x02]);
        assert_eq!(signed[limit + 60..limit + 68], [0, 2, 4, 0, 0, 0, 0, 2], "version and flags");
    }

    #[test]
    fn the_last_segment_ends_with_the_signature() {
        let signed = signed();
        let header = MachHeader64::<Endianness>::parse(signed.as_slice(), 0).unwrap();
        let mut commands = header.load_commands(Endianness::Little, signed.as_slice(), 0).unwrap();
        let mut ends = Vec::new();
        while let Some(command) = commands.next().unwrap() {
            if let Some((segment, _)) = command.segment_64().unwrap() {
                let (start, len) = segment.file_range(Endianness::Little);
                ends.push(start + len);
                assert!(segment.vmsize(Endianness::Little) >= len);
            } else if command.cmd() == macho::LC_CODE_SIGNATURE {
                let data: &macho::LinkeditDataCommand<Endianness> = command.data().unwrap();
                ends.push(u64::from(
                    data.dataoff.get(Endianness::Little) + data.datasize.get(Endianness::Little),
                ));
            }
        }
        assert_eq!(ends[1..], [signed.len() as u64; 2]);
    }

    #[test]
    fn no_byte_can_change() {
        let good = signed();
        let limit = limit(&good);
        let len = u32::from_be_bytes(good[limit + 4..limit + 8].try_into().unwrap()) as usize;
        let index = limit..limit + 52;
        for at in (0..limit + len).filter(|at| !index.contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let verified = verify(&bad[limit..], &bad);
            // What no hash covers is the directory itself, whose hash is what the kernel remembers the program by, and the
            // wrapper for certificates.
            let same = verified.is_ok_and(|signature| signature == verify(&good[limit..], &good).unwrap());
            let directory = limit + 52..limit + 52 + 88;
            let wrapper = limit + len - 8..limit + len;
            assert!(!same || directory.contains(&at) || wrapper.contains(&at), "byte {at} of {}", good.len());
        }
    }

    #[test]
    fn signing_again_changes_nothing() {
        let once = signed();
        assert_eq!(sign(&once, "softnet", PLIST).unwrap(), once);
    }

    #[test]
    fn what_cannot_be_signed_is_refused() {
        let good = signed();
        assert!(sign(&good[..good.len() / 2], "softnet", PLIST).is_err());
        assert!(sign(b"#!/bin/sh\n", "softnet", PLIST).is_err());
        assert!(sign(&good, "softnet", "<plist><dict><key>a</key><false/></dict></plist>").is_err());
    }
}
