//! The entitlements in a code signature: XML, and its DER encoding, which the kernel reads since macOS 12.
//!
//! The DER form is an application tag 16 that holds the version 1 and, under a context tag 16, the dictionary: for each
//! key a sequence of a UTF-8 string and its value. Only boolean values are written and read here; Softnet has no other.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

/// Tags of DER; the first two are constructed, with the class application and context.
const ENTITLEMENTS: u8 = 0x70;
const DICTIONARY: u8 = 0xb0;
const SEQUENCE: u8 = 0x30;
const UTF8_STRING: u8 = 0x0c;
const INTEGER: u8 = 0x02;
const BOOLEAN: u8 = 0x01;
const TRUE: u8 = 0xff;

/// The names in a property list, all of whose values are true.
///
/// # Errors
/// If it holds anything else.
pub fn of_xml(text: &str) -> Result<BTreeSet<String>> {
    let (_, rest) = text.split_once("<dict>").context("the entitlements are no dictionary")?;
    let (mut rest, behind) = rest.rsplit_once("</dict>").context("the entitlements' dictionary is cut")?;
    ensure!(behind.trim() == "</plist>", "{behind:?} follows the entitlements' dictionary");
    let mut names = BTreeSet::new();
    while !rest.trim().is_empty() {
        let entry = rest.trim_start().strip_prefix("<key>").and_then(|rest| rest.split_once("</key>"));
        let (name, value) = entry.with_context(|| format!("{:?} is not a key", rest.trim()))?;
        let value = value.trim_start().strip_prefix("<true/>");
        rest = value.with_context(|| format!("the value of the entitlement {name} is not true"))?;
        ensure!(names.insert(name.to_owned()), "the entitlement {name} is given twice");
    }
    Ok(names)
}

/// The DER encoding of `names`, all true.
pub fn to_der(names: &BTreeSet<String>) -> Vec<u8> {
    // A set's order is the order by bytes that DER wants.
    let entries = names.iter().flat_map(|name| {
        element(SEQUENCE, &[element(UTF8_STRING, name.as_bytes()), element(BOOLEAN, &[TRUE])].concat())
    });
    let entries: Vec<u8> = entries.collect();
    element(ENTITLEMENTS, &[element(INTEGER, &[1]), element(DICTIONARY, &entries)].concat())
}

fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let len = contents.len();
    let mut bytes = vec![tag];
    match u8::try_from(len) {
        Ok(len @ ..=0x7f) => bytes.push(len),
        Ok(len) => bytes.extend([0x81, len]),
        Err(_) => bytes.extend([0x82, (len >> 8) as u8, len as u8]),
    }
    bytes.extend(contents);
    bytes
}

/// The names in a DER encoding, all of whose values are true.
///
/// # Errors
/// If it holds anything else.
pub fn of_der(bytes: &[u8]) -> Result<BTreeSet<String>> {
    let mut bytes = bytes;
    let mut whole = take(&mut bytes, ENTITLEMENTS)?;
    ensure!(bytes.is_empty(), "something follows the DER entitlements");
    ensure!(take(&mut whole, INTEGER)? == [1], "the DER entitlements' version is not 1");
    let mut entries = take(&mut whole, DICTIONARY)?;
    ensure!(whole.is_empty(), "something follows the DER entitlements' dictionary");
    let mut names = BTreeSet::new();
    while !entries.is_empty() {
        let mut entry = take(&mut entries, SEQUENCE)?;
        let name = String::from_utf8(take(&mut entry, UTF8_STRING)?.to_vec())?;
        ensure!(take(&mut entry, BOOLEAN)? == [TRUE] && entry.is_empty(), "the value of {name} is not true");
        ensure!(names.insert(name.clone()), "the entitlement {name} is given twice");
    }
    Ok(names)
}

/// Takes the first element, which has `tag`, from the front of `bytes`, and returns its contents.
fn take<'a>(bytes: &mut &'a [u8], tag: u8) -> Result<&'a [u8]> {
    let (len, rest) = match **bytes {
        [found, ..] if found != tag => bail!("a DER tag {found:#x} instead of {tag:#x}"),
        [_, len @ ..=0x7f, ref rest @ ..] => (usize::from(len), rest),
        [_, 0x81, len, ref rest @ ..] => (usize::from(len), rest),
        [_, 0x82, high, low, ref rest @ ..] => (usize::from(high) << 8 | usize::from(low), rest),
        _ => bail!("a cut DER element"),
    };
    let (contents, rest) = rest.split_at_checked(len).context("a cut DER element")?;
    *bytes = rest;
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// As Apple's codesign encodes it; the same literal is in the tests of other implementations.
    #[test]
    fn the_encoding_is_apples() {
        let expected = [0x70, 15, 0x02, 1, 1, 0xb0, 10, 0x30, 8, 0x0c, 3, b'k', b'e', b'y', 0x01, 1, 0xff];
        assert_eq!(to_der(&names(&["key"])), expected);
        assert_eq!(to_der(&names(&[])), [0x70, 5, 0x02, 1, 1, 0xb0, 0]);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let long = "x".repeat(200);
        for set in [
            names(&[]),
            names(&["a"]),
            names(&["b", "a"]),
            names(&[&long]),
            names(&[&long, "y", &long[..150]]),
        ] {
            assert_eq!(of_der(&to_der(&set)).unwrap(), set);
        }
    }

    #[test]
    fn what_is_no_true_entitlement_is_refused() {
        let good = to_der(&names(&["key"]));
        for (at, value) in [(0, 0x30), (1, 14), (4, 2), (8, 7), (9, 0x13), (16, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(of_der(&bad).is_err(), "byte {at}");
        }
        assert!(of_der(&[good.as_slice(), &[0]].concat()).is_err());
        let list =
            |body: &str| format!("<?xml?>\n<plist version=\"1.0\">\n<dict>\n{body}</dict>\n</plist>\n");
        assert_eq!(
            of_xml(&list("\t<key>a</key>\n\t<true/>\n<key>b</key><true/>")).unwrap(),
            names(&["a", "b"])
        );
        for body in [
            "<key>a</key><false/>",
            "<key>a</key><string>b</string>",
            "a",
            "<key>a</key><true/><key>a</key><true/>",
        ] {
            assert!(of_xml(&list(body)).is_err(), "{body}");
        }
        assert!(of_xml("<dict></dict><dict>").is_err());
    }
}
