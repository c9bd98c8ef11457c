//! Any text as a DHCP server's lease file: nothing in it ends the process, and blank lines behind it change nothing.
#![no_main]

use softnet::leases::Format;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for format in [Format::Bootpd, Format::Dnsmasq] {
        let understood = format.parse(&text);
        let with_more = format.parse(&format!("{text}\n\n"));
        assert_eq!(understood.as_ref().ok(), with_more.as_ref().ok(), "{format:?}");
    }
});
