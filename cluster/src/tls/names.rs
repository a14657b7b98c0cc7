//! The names in a certificate, out of its bytes (RFC 5280, 4.2.1.6). What verifies certificates tells names for people only, and
//! some addresses of IPv6 not in full.

use std::net::IpAddr;

const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
/// `[3]`, where the extensions are.
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.17
const ALTERNATIVE_NAMES: [u8; 3] = [0x55, 0x1d, 0x11];
const DNS_NAME: u8 = 0x82;
const ADDRESS: u8 = 0x87;

/// DNS names and addresses in the order of the certificate; `None` where these are no bytes of one, or it names something else.
pub fn alternative_names(certificate: &[u8]) -> Option<Vec<String>> {
    let signed = Elements(inside(SEQUENCE, certificate)?).next()?;
    let extensions = Elements(signed.1).find(|(tag, _)| *tag == EXTENSIONS)?;
    let names = Elements(inside(SEQUENCE, extensions.1)?).find_map(|(_, extension)| {
        let mut parts = Elements(extension);
        let is_names = parts.next()? == (OBJECT, &ALTERNATIVE_NAMES[..]);
        // Whether it is critical may stand between.
        let value = parts.find(|(tag, _)| *tag == OCTETS)?;
        is_names.then_some(value.1)
    })?;
    Elements(inside(SEQUENCE, names)?).map(|(tag, name)| text(tag, name)).collect()
}

fn text(tag: u8, name: &[u8]) -> Option<String> {
    match tag {
        DNS_NAME => String::from_utf8(name.to_vec()).ok(),
        ADDRESS => {
            let v4 = || <[u8; 4]>::try_from(name).map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(name).map(IpAddr::from);
            v4().or_else(|_| v6()).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

/// The contents of one element of that kind.
fn inside(tag: u8, bytes: &[u8]) -> Option<&[u8]> {
    Elements(bytes).next().filter(|found| found.0 == tag).map(|found| found.1)
}

/// Elements one after another: tag and contents. Ends where the bytes are none.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }
}
