//! Reads a code signature and compares every hash in it with what it covers.
//!
//! Apple's processors run no program without a valid one, and the kernel believes an entitlement only if the code
//! directory has its hash.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use object::BigEndian;
use object::macho;
use object::read::macho::{CodeDirectory, CodeSignature};
use sha2::{Digest, Sha256};

use super::entitlements;

/// A signature whose hashes are all right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The name of the program in it.
    pub identifier: String,
    /// `CS_` flags.
    pub flags: macho::CsFlags,
    /// Pages of the program under a hash.
    pub pages: usize,
    /// The entitlements by their XML form and by their DER form.
    pub xml: BTreeSet<String>,
    /// The same by the form that the kernel reads.
    pub der: BTreeSet<String>,
}

/// The signature `blob` of the program `data`.
///
/// # Errors
/// If a hash is wrong, or something in the signature is under none.
pub fn verify(blob: &[u8], data: &[u8]) -> Result<Signature> {
    let signature = CodeSignature::parse(blob)?;
    let blobs = signature.blobs().collect::<Result<Vec<_>, _>>()?;
    let mut directories = Vec::new();
    for blob in &blobs {
        directories.extend(blob.code_directory()?);
    }
    let &[directory] = directories.as_slice() else {
        anyhow::bail!("the signature has {} code directories", directories.len());
    };
    let header = directory.header();
    ensure!(
        header.hash_type == macho::CS_HASHTYPE_SHA256 && header.hash_size == 32,
        "the signature's hashes are not SHA-256"
    );
    let segment = directory.exec_seg().context("the code directory has no executable segment")?;
    ensure!(
        segment.exec_seg_flags.get(BigEndian) == macho::CS_EXECSEG_MAIN_BINARY,
        "the executable segment's flags are not those of a main program"
    );
    let special_slots = header.n_special_slots.get(BigEndian);
    for slot in (1..=special_slots).map(macho::CsSlot) {
        let recorded = directory.special_hash(slot)?;
        match blobs.iter().find(|blob| blob.slot() == slot) {
            None => {
                ensure!(recorded.iter().all(|&byte| byte == 0), "slot {} is empty, its hash is not", slot.0)
            }
            Some(blob) => {
                ensure!(
                    recorded == Sha256::digest(blob.data()).as_slice(),
                    "the hash of slot {} is wrong",
                    slot.0
                );
            }
        }
    }
    let mut xml = BTreeSet::new();
    let mut der = BTreeSet::new();
    for blob in &blobs {
        match (blob.slot(), blob.magic()) {
            (macho::CSSLOT_CODEDIRECTORY, macho::CSMAGIC_CODEDIRECTORY)
            | (macho::CSSLOT_SIGNATURESLOT, macho::CSMAGIC_BLOBWRAPPER) => continue,
            (macho::CSSLOT_REQUIREMENTS, macho::CSMAGIC_REQUIREMENTS) => {}
            (macho::CSSLOT_ENTITLEMENTS, macho::CSMAGIC_EMBEDDED_ENTITLEMENTS) => {
                xml = entitlements::of_xml(std::str::from_utf8(blob.contents())?)?;
            }
            (macho::CSSLOT_DER_ENTITLEMENTS, macho::CSMAGIC_EMBEDDED_DER_ENTITLEMENTS) => {
                der = entitlements::of_der(blob.contents())?;
            }
            (slot, magic) => anyhow::bail!("the signature has {magic:#x} in slot {}", slot.0),
        }
        ensure!(blob.slot().0 <= special_slots, "slot {} of the signature is under no hash", blob.slot().0);
    }
    Ok(Signature {
        identifier: String::from_utf8(directory.ident()?.to_vec())?,
        flags: header.flags.get(BigEndian),
        pages: verify_pages(directory, data)?,
        xml,
        der,
    })
}

fn verify_pages(directory: CodeDirectory<'_>, data: &[u8]) -> Result<usize> {
    let header = directory.header();
    let limit = usize::try_from(directory.code_limit())?;
    let code = data.get(..limit).context("the signature covers more than the file has")?;
    ensure!((12..=14).contains(&header.page_size), "pages of 2^{} bytes", header.page_size);
    let pages = code.chunks(1 << header.page_size);
    let slots = header.n_code_slots.get(BigEndian) as usize;
    ensure!(pages.len() == slots, "{slots} hashes for {} pages", pages.len());
    for (index, page) in pages.enumerate() {
        let recorded = directory.code_hash(index as u32)?;
        ensure!(recorded == Sha256::digest(page).as_slice(), "the hash of page {index} is wrong");
    }
    Ok(slots)
}
