//! Any bytes as a DHCP server's lease file: nothing in it ends the process, blank lines behind it change nothing, and in
//! bootpd's file nothing hides the entries before and behind it.
#![no_main]

use softnet::leases::Format;

const ENTRY: &[u8] = b"{\n\tip_address=192.168.64.5\n\thw_address=1,a6:3d:e2:1:0:f\n\tlease=0x65b2f0a1\n}\n";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for format in [Format::Bootpd, Format::Dnsmasq] {
        let understood = format.parse(data);
        let with_more = format.parse(&[data, b"\n\n"].concat());
        assert_eq!(understood.as_ref().ok(), with_more.as_ref().ok(), "{format:?}");
    }
    let bindings = |text: &[u8]| Format::Bootpd.parse(text).unwrap_or_default();
    let entry = bindings(ENTRY);
    let around = bindings(&[ENTRY, data, b"\n", ENTRY].concat());
    assert_eq!(around.first(), entry.first());
    assert_eq!(around.last(), entry.first());
    assert_eq!(around.len(), bindings(data).len() + 2);
});
