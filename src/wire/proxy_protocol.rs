//! The PROXY protocol header, versions 1 and 2: a proxy's word on whose connection this is.
//!
//! Source: `HAProxy`'s `doc/proxy-protocol.txt`, sections 2.1 and 2.2.
//!
//! Version 1 is one line of text, at most [`V1_MAX`] bytes with its CRLF:
//!
//! ```text
//! PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n
//! PROXY UNKNOWN\r\n
//! ```
//!
//! Version 2 is binary, integers big-endian:
//!
//! ```text
//!  0        12          13            14        16            16 + length
//! +--------+-----------+-------------+---------+-------------+
//! | magic  | version 2 | family      | length  | addresses,  |
//! | 12 B   | / command | / transport | 2 B     | then TLVs   |
//! +--------+-----------+-------------+---------+-------------+
//! addresses: source, destination (4 B each for IPv4, 16 B for IPv6), source port, destination port
//! ```
//!
//! ```
//! use udpferry::wire::proxy_protocol::{Source, parse};
//!
//! let stream = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nfirst bytes";
//! let header = parse(stream).unwrap().unwrap();
//! assert_eq!(&stream[header.len..], b"first bytes");
//! assert_eq!(
//!     header.source,
//!     Source::Proxied {
//!         source: "192.0.2.1:56324".parse().unwrap(),
//!         destination: "198.51.100.7:443".parse().unwrap(),
//!     }
//! );
//! assert_eq!(parse(b"PROXY TC"), Ok(None));
//! assert!(parse(b"GET /").is_err());
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest version 1 line with its CRLF, in bytes (section 2.1).
pub const V1_MAX: usize = 107;

/// The longest header that is accepted, in bytes: a reader needs no larger buffer.
///
/// The specification sets no limit for receivers. It wants headers to fit the smallest TCP segment,
/// 536 bytes, but TLVs outgrow that: an authority name of 255 bytes, a unique id of 128 and the TLS
/// names are more. 4096 is what nginx accepts (`NGX_PROXY_PROTOCOL_MAX_HEADER`).
pub const HEADER_MAX: usize = 4096;

/// Section 2.2; chosen to be refused by the receivers of other protocols.
const V2_MAGIC: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The bytes of a version 2 header before the addresses.
const V2_FIXED: usize = 16;

/// A whole header at the start of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the header, at most [`HEADER_MAX`]. What follows belongs to the client.
    pub len: usize,
    /// Whose connection this is.
    pub source: Source,
}

/// Whose connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The proxy relays a connection that went from `source` to `destination`. The addresses are as
    /// sent: an IPv4 client of a dual-stack listener may come as IPv4-mapped IPv6.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
    /// The connection's own addresses count: the proxy speaks for itself (version 2 LOCAL, a health
    /// check), or for a client without an IP address (version 1 UNKNOWN, version 2 unspecified or
    /// Unix).
    Local,
}

/// Why a stream does not start with a header. The connection must be closed (section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The stream starts as neither version does.
    NotProxy,
    /// Version 1: neither `TCP4`, `TCP6` nor `UNKNOWN`.
    Protocol,
    /// Version 1: an address or port that is none, or is not in its one canonical spelling.
    Field,
    /// Version 1: a CR or LF alone, or no CRLF within [`V1_MAX`] bytes.
    LineEnd,
    /// Version 2: a version other than 2.
    Version,
    /// Version 2: a command other than LOCAL and PROXY.
    Command,
    /// Version 2: an unassigned address family or transport.
    Family,
    /// Version 2: the length is too small for the addresses, or goes beyond [`HEADER_MAX`].
    Length,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotProxy => "not a PROXY protocol header",
            Self::Protocol => "PROXY line with a protocol other than TCP4, TCP6 and UNKNOWN",
            Self::Field => "PROXY line with a wrong address or port",
            Self::LineEnd => "PROXY line that does not end in CRLF within 107 bytes",
            Self::Version => "PROXY header of an unknown version",
            Self::Command => "PROXY header with an unknown command",
            Self::Family => "PROXY header with an unknown address family or transport",
            Self::Length => "PROXY header with a length out of range",
        })
    }
}

impl std::error::Error for Malformed {}

/// Reads the header at the start of `bytes`.
///
/// Returns `Ok(None)` while more bytes are needed; at most [`HEADER_MAX`] are ever. More bytes never
/// turn an error into a header, nor a header into another answer.
///
/// TLVs are skipped unread, a CRC32C (section 2.2.3) among them: TCP guards the header as well.
///
/// # Errors
///
/// [`Malformed`] at the first byte with which `bytes` cannot become a header any more. Only the
/// length of a version 1 line is judged late: when [`V1_MAX`] bytes are there.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    // The versions differ in the first byte.
    if bytes.first() == V2_MAGIC.first() { parse_v2(bytes) } else { parse_v1(bytes) }
}

/// What follows `expected`, or `None` when `bytes` ends within it.
fn after<'a>(bytes: &'a [u8], expected: &[u8]) -> Result<Option<&'a [u8]>, Malformed> {
    match bytes.strip_prefix(expected) {
        None if !expected.starts_with(bytes) => Err(Malformed::NotProxy),
        rest => Ok(rest),
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let bytes = bytes.get(..V1_MAX).unwrap_or(bytes);
    if after(bytes, b"PROXY ")?.is_none() {
        return Ok(None);
    }
    let line = Line::read(bytes)?;
    let source = match line.word(1) {
        Word::Whole(b"UNKNOWN") => Some(Source::Local),
        Word::Whole(b"TCP4") => proxied(&line, address::<Ipv4Addr>, IPV4_ENDINGS)?,
        Word::Whole(b"TCP6") => proxied(&line, address::<Ipv6Addr>, IPV6_ENDINGS)?,
        Word::CutOff(start)
            if [&b"UNKNOWN"[..], b"TCP4", b"TCP6"].iter().any(|name| name.starts_with(start)) =>
        {
            None
        }
        _ => return Err(Malformed::Protocol),
    };
    match (line.end, source) {
        (End::CrLf, Some(source)) => {
            // Cannot overflow: a line is at most V1_MAX bytes.
            Ok(Some(Header { len: line.text.len().saturating_add(2), source }))
        }
        _ => Ok(None),
    }
}

/// What has come of a line.
struct Line<'a> {
    /// Without its CRLF.
    text: &'a [u8],
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Missing,
    /// The LF may still come, but the text is whole.
    Cr,
    CrLf,
}

enum Word<'a> {
    /// A space or the line's end follows.
    Whole(&'a [u8]),
    /// The last one of an unfinished line: more of it may come.
    CutOff(&'a [u8]),
    None,
}

impl<'a> Line<'a> {
    /// `bytes` holds `V1_MAX` bytes at most; when so many are there, the line must end in them.
    fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let (text, end) = bytes.split_at_checked(end.unwrap_or(bytes.len())).unwrap_or_default();
        let end = match end {
            [] if bytes.len() < V1_MAX => End::Missing,
            [b'\r'] if bytes.len() < V1_MAX => End::Cr,
            [b'\r', b'\n', ..] => End::CrLf,
            _ => return Err(Malformed::LineEnd),
        };
        Ok(Self { text, end })
    }

    fn word(&self, index: usize) -> Word<'a> {
        let mut words = self.text.split(|&byte| byte == b' ').skip(index);
        match (words.next(), words.next(), self.end) {
            (None, ..) => Word::None,
            (Some(word), None, End::Missing) => Word::CutOff(word),
            (Some(word), ..) => Word::Whole(word),
        }
    }
}

/// Returns `None` while the line is unfinished and right so far.
fn proxied<A: Into<IpAddr>>(
    line: &Line<'_>,
    address: fn(&[u8]) -> Option<A>,
    endings: &[&str],
) -> Result<Option<Source>, Malformed> {
    let source = field(line, 2, address, endings)?;
    let destination = field(line, 3, address, endings)?;
    let source_port = field(line, 4, port, PORT_ENDINGS)?;
    let destination_port = field(line, 5, port, PORT_ENDINGS)?;
    if !matches!(line.word(6), Word::None) {
        return Err(Malformed::Field);
    }
    Ok(match (source, destination, source_port, destination_port) {
        (Some(source), Some(destination), Some(source_port), Some(destination_port)) => {
            Some(Source::Proxied {
                source: SocketAddr::new(source.into(), source_port),
                destination: SocketAddr::new(destination.into(), destination_port),
            })
        }
        _ => None,
    })
}

/// An unfinished value passes (as `None`) if one of `endings` would make it a right one.
fn field<T>(
    line: &Line<'_>,
    index: usize,
    value: fn(&[u8]) -> Option<T>,
    endings: &[&str],
) -> Result<Option<T>, Malformed> {
    let possible = match line.word(index) {
        Word::Whole(word) => return value(word).map(Some).ok_or(Malformed::Field),
        Word::CutOff(start) => {
            endings.iter().any(|ending| value(&[start, ending.as_bytes()].concat()).is_some())
        }
        Word::None => line.end == End::Missing,
    };
    if possible { Ok(None) } else { Err(Malformed::Field) }
}

/// Every beginning of an IPv4 address becomes one with one of these.
const IPV4_ENDINGS: &[&str] = &["", "0", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "0.0.0.0"];

/// The same for IPv6. Dotted tails (`::ffff:192.0.2.1`) are not in section 2.1, but `inet_ntop`,
/// with which `HAProxy` writes the line, makes them.
const IPV6_ENDINGS: &[&str] = &["", "0", ":", "::", ".0", "0.0", ".0.0", "0.0.0"];

const PORT_ENDINGS: &[&str] = &["", "0"];

/// The standard library refuses leading zeros in IPv4 numbers, as section 2.1 asks.
fn address<A: FromStr>(text: &[u8]) -> Option<A> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The standard library takes a sign and leading zeros; section 2.1 allows neither.
fn port(text: &[u8]) -> Option<u16> {
    match text {
        b"0" => Some(0),
        [b'1'..=b'9', ..] => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(fixed) = after(bytes, V2_MAGIC)? else { return Ok(None) };
    let Some(version_and_command) = fixed.first() else { return Ok(None) };
    if version_and_command >> 4 != 2 {
        return Err(Malformed::Version);
    }
    let local = match version_and_command & 0x0f {
        0 => true,
        1 => false,
        _ => return Err(Malformed::Command),
    };
    let Some(&family) = fixed.get(1) else { return Ok(None) };
    // LOCAL: "discard the protocol block including the family which is ignored".
    let family = if local { Family::Other } else { Family::read(family)? };
    let Some(&length_high) = fixed.get(2) else { return Ok(None) };
    let length_low = fixed.get(3).copied();
    let length = usize::from(u16::from_be_bytes([length_high, length_low.unwrap_or(0)]));
    // The high byte alone may say that it is too long.
    let len = V2_FIXED.saturating_add(length);
    if len > HEADER_MAX {
        return Err(Malformed::Length);
    }
    if length_low.is_none() {
        return Ok(None);
    }
    if length < family.addresses_len() {
        return Err(Malformed::Length);
    }
    let Some(block) = bytes.get(V2_FIXED..len) else { return Ok(None) };
    let source = match family {
        Family::Inet => endpoints::<4, Ipv4Addr>(block),
        Family::Inet6 => endpoints::<16, Ipv6Addr>(block),
        Family::Unix | Family::Other => Some(Source::Local),
    };
    source.map(|source| Some(Header { len, source })).ok_or(Malformed::Length)
}

#[derive(Clone, Copy)]
enum Family {
    Inet,
    Inet6,
    Unix,
    /// Unspecified family or transport: a receiver may use the connection's own addresses.
    Other,
}

impl Family {
    /// The high four bits are the family, the low four the transport: 1 stream, 2 datagram.
    fn read(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0x11 | 0x12 => Ok(Self::Inet),
            0x21 | 0x22 => Ok(Self::Inet6),
            0x31 | 0x32 => Ok(Self::Unix),
            0x00..=0x02 | 0x10 | 0x20 | 0x30 => Ok(Self::Other),
            _ => Err(Malformed::Family),
        }
    }

    /// In bytes; two addresses and two ports, or two Unix paths of 108 bytes.
    const fn addresses_len(self) -> usize {
        match self {
            Self::Inet => 12,
            Self::Inet6 => 36,
            Self::Unix => 216,
            Self::Other => 0,
        }
    }
}

/// `None` if the block is too short.
fn endpoints<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(block: &[u8]) -> Option<Source> {
    let (&source, block) = block.split_first_chunk::<N>()?;
    let (&destination, block) = block.split_first_chunk::<N>()?;
    let (&source_port, block) = block.split_first_chunk::<2>()?;
    let &destination_port = block.first_chunk::<2>()?;
    let endpoint =
        |address: [u8; N], port| SocketAddr::new(A::from(address).into(), u16::from_be_bytes(port));
    Some(Source::Proxied {
        source: endpoint(source, source_port),
        destination: endpoint(destination, destination_port),
    })
}

/// Appends a version 2 header: command PROXY, stream transport, no TLVs; 28 bytes for IPv4, 52 for
/// IPv6.
///
/// If only one address is IPv4, it is written as IPv4-mapped IPv6. Scopes and flow labels have no
/// place in the format.
pub fn write_v2(out: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr) {
    out.extend_from_slice(V2_MAGIC);
    out.push(0x21);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out.extend_from_slice(&[0x11, 0, 12]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
        (source, destination) => {
            out.extend_from_slice(&[0x21, 0, 36]);
            out.extend_from_slice(&as_ipv6(source).octets());
            out.extend_from_slice(&as_ipv6(destination).octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxied(source: &str, destination: &str) -> Source {
        Source::Proxied {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn v2(version_and_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        bytes.extend([version_and_command, family]);
        bytes.extend(u16::try_from(block.len()).unwrap().to_be_bytes());
        bytes.extend(block);
        bytes
    }

    /// Parses as a whole with data behind it, and asks for more on every beginning.
    fn accepts(bytes: &[u8], source: Source) {
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{}", bytes[..cut].escape_ascii());
        }
        let header = Header { len: bytes.len(), source };
        assert_eq!(parse(bytes), Ok(Some(header)), "{}", bytes.escape_ascii());
        assert_eq!(parse(&[bytes, b"\r\n data"].concat()), Ok(Some(header)));
    }

    /// Malformed from byte `at` (counted from 1) on, and not before.
    fn refuses(bytes: &[u8], at: usize, reason: Malformed) {
        for cut in 0..at {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{}", bytes[..cut].escape_ascii());
        }
        assert_eq!(parse(&bytes[..at]), Err(reason), "{}", bytes[..at].escape_ascii());
        for cut in at..=bytes.len() {
            assert!(parse(&bytes[..cut]).is_err(), "{}", bytes[..cut].escape_ascii());
        }
    }

    /// The examples and worst cases of section 2.1.
    #[test]
    fn v1_lines() {
        accepts(
            b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            proxied("192.168.0.1:56324", "192.168.0.11:443"),
        );
        accepts(
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            proxied("255.255.255.255:65535", "255.255.255.255:65535"),
        );
        accepts(b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", proxied("0.0.0.0:0", "0.0.0.0:0"));
        accepts(
            b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
              FFFF:FFFF:FFFF:FFFF:FFFF:FFFF:FFFF:FFFF 65535 65535\r\n",
            proxied(
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            ),
        );
        accepts(b"PROXY TCP6 :: 2001:db8::7 1 2\r\n", proxied("[::]:1", "[2001:db8::7]:2"));
        accepts(
            b"PROXY TCP6 ::ffff:255.255.255.255 1:2:3:4:5:6:7:8 10 20\r\n",
            proxied("[::ffff:255.255.255.255]:10", "[1:2:3:4:5:6:7:8]:20"),
        );
        accepts(b"PROXY UNKNOWN\r\n", Source::Local);
        accepts(b"PROXY UNKNOWN \xff any  thing\0\r\n", Source::Local);
        accepts(
            b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
              ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
            Source::Local,
        );
    }

    #[test]
    fn v1_is_refused_at_the_first_wrong_byte() {
        use Malformed::{Field, LineEnd, NotProxy, Protocol};
        for (bytes, at, reason) in [
            (&b"GET / HTTP/1.1\r\n"[..], 1, NotProxy),
            (b"PROXx", 5, NotProxy),
            (b"PROXY\t", 6, NotProxy),
            (b"PROXY  TCP4", 7, Protocol),
            (b"PROXY TCP5 ", 10, Protocol),
            (b"PROXY TCP44", 11, Protocol),
            (b"PROXY TCP\r\n", 10, Protocol),
            (b"PROXY UNKNOWNS", 14, Protocol),
            (b"PROXY TCP4\r\n", 11, Field),
            (b"PROXY TCP4 \r\n", 12, Field),
            (b"PROXY TCP4 01.2.3.4 ", 13, Field),
            (b"PROXY TCP4 256.2.3.4 ", 14, Field),
            (b"PROXY TCP4 1.2.3 ", 17, Field),
            (b"PROXY TCP4 1.2.3.4.", 19, Field),
            (b"PROXY TCP4 1..", 14, Field),
            (b"PROXY TCP4 ::1 ", 12, Field),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 09", 29, Field),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 +9", 28, Field),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 65536", 32, Field),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8  9", 28, Field),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9\r\n", 29, Field),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 8 ", 31, Field),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 8\n", 31, LineEnd),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 8\rX", 32, LineEnd),
            (b"PROXY TCP6 1.2.3.4 ", 13, Field),
            (b"PROXY TCP6 12345", 16, Field),
            (b"PROXY TCP6 1::2::", 17, Field),
            (b"PROXY TCP6 :::", 14, Field),
            (b"PROXY TCP6 1:2:3:4:5:6:7:8:", 27, Field),
            (b"PROXY TCP6 ::1%eth0 ", 15, Field),
            (b"PROXY TCP6 g", 12, Field),
            (b"PROXY UNKNOWN\n", 14, LineEnd),
            (b"PROXY UNKNOWN a\rb\r\n", 17, LineEnd),
        ] {
            refuses(bytes, at, reason);
        }
    }

    #[test]
    fn v1_must_end_within_107_bytes() {
        let fits = [&b"PROXY UNKNOWN "[..], &[b'x'; 91], b"\r\n"].concat();
        assert_eq!(fits.len(), V1_MAX);
        accepts(&fits, Source::Local);
        refuses(&[&b"PROXY UNKNOWN "[..], &[b'x'; 92], b"\r\n"].concat(), 107, Malformed::LineEnd);
        refuses(&[&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(), 107, Malformed::LineEnd);
    }

    /// Laid out by hand after section 2.2.
    #[test]
    fn v2_headers() {
        let inet = [192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb];
        let expected = proxied("192.0.2.1:56324", "198.51.100.7:443");
        accepts(&v2(0x21, 0x11, &inet), expected);
        accepts(&v2(0x21, 0x12, &inet), expected);
        // A no-op TLV of two bytes, and bytes that are no TLV at all.
        accepts(&v2(0x21, 0x11, &[&inet[..], &[4, 0, 2, 9, 9, 0xff]].concat()), expected);

        let mut inet6 = [0u8; 36];
        inet6[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        inet6[15] = 1;
        inet6[16..20].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        inet6[31] = 2;
        inet6[32..].copy_from_slice(&[0, 1, 0xff, 0xff]);
        let expected = proxied("[2001:db8::1]:1", "[2001:db8::2]:65535");
        accepts(&v2(0x21, 0x21, &inet6), expected);
        accepts(&v2(0x21, 0x22, &inet6), expected);

        accepts(&v2(0x21, 0x31, &[b'/'; 216]), Source::Local);
        accepts(&v2(0x21, 0x32, &[b'/'; 220]), Source::Local);
        accepts(&v2(0x21, 0x00, &[]), Source::Local);
        accepts(&v2(0x21, 0x00, &[1, 2, 3]), Source::Local);
        accepts(&v2(0x21, 0x10, &inet), Source::Local);
        accepts(&v2(0x20, 0x00, &[]), Source::Local);
        accepts(&v2(0x20, 0x11, &inet), Source::Local);
        accepts(&v2(0x20, 0xff, &[]), Source::Local);
    }

    #[test]
    fn v2_is_refused_at_the_first_wrong_byte() {
        use Malformed::{Command, Family, Length, NotProxy, Version};
        refuses(b"\r\n\r\n\0\r\nQUIT\r", 12, NotProxy);
        refuses(b"\r\nGET", 3, NotProxy);
        refuses(&v2(0x11, 0x11, &[0; 12]), 13, Version);
        refuses(&v2(0x31, 0x11, &[0; 12]), 13, Version);
        refuses(&v2(0x22, 0x11, &[0; 12]), 13, Command);
        refuses(&v2(0x2f, 0x11, &[0; 12]), 13, Command);
        for family in [0x03, 0x13, 0x23, 0x40, 0x41, 0xf1] {
            refuses(&v2(0x21, family, &[0; 300]), 14, Family);
        }
        refuses(&v2(0x21, 0x11, &[0; 11]), 16, Length);
        refuses(&v2(0x21, 0x21, &[0; 35]), 16, Length);
        refuses(&v2(0x21, 0x31, &[0; 215]), 16, Length);
        // 4081 is 0x0ff1: only the low byte goes beyond; 0x1000 is seen in the high byte.
        refuses(&v2(0x20, 0, &[0; HEADER_MAX - V2_FIXED + 1]), 16, Length);
        refuses(&v2(0x20, 0, &[0; 0x1000]), 15, Length);
        accepts(&v2(0x20, 0, &[0; HEADER_MAX - V2_FIXED]), Source::Local);
    }

    #[test]
    fn written_headers_are_these_bytes() {
        let mut out = b"kept".to_vec();
        write_v2(&mut out, "192.0.2.1:56324".parse().unwrap(), "198.51.100.7:443".parse().unwrap());
        assert_eq!(
            out,
            b"kept\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x07\xdc\x04\x01\xbb"
        );
        out.clear();
        write_v2(&mut out, "[2001:db8::1]:1".parse().unwrap(), "192.0.2.1:2".parse().unwrap());
        assert_eq!(
            out,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\
              \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\
              \0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x01\0\x01\0\x02"
        );
    }

    /// The same decision from a whole stream, by splitting text: no incremental reading.
    fn naive_v1(bytes: &[u8]) -> Option<(usize, Source)> {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let text = &bytes[..end];
        if end + 2 > 107 || text.contains(&b'\r') || text.contains(&b'\n') {
            return None;
        }
        if text == b"PROXY UNKNOWN" || text.starts_with(b"PROXY UNKNOWN ") {
            return Some((end + 2, Source::Local));
        }
        let fields: Vec<&str> = std::str::from_utf8(text).ok()?.split(' ').collect();
        let &["PROXY", family, source, destination, source_port, destination_port] = &fields[..]
        else {
            return None;
        };
        let endpoint = |address: &str, port: &str| {
            let ip: IpAddr = address.parse().ok()?;
            let number: u16 = port.parse().ok()?;
            let right = ip.is_ipv4() == (family == "TCP4") && number.to_string() == port;
            right.then(|| SocketAddr::new(ip, number))
        };
        let source = endpoint(source, source_port)?;
        let destination = endpoint(destination, destination_port)?;
        matches!(family, "TCP4" | "TCP6")
            .then_some((end + 2, Source::Proxied { source, destination }))
    }

    fn same_family() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        prop_oneof![
            any::<([u8; 4], u16, [u8; 4], u16)>()
                .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q)))),
            // Groups of zeros make `::` and dotted tails.
            (sparse_ipv6(), any::<u16>(), sparse_ipv6(), any::<u16>())
                .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q)))),
        ]
    }

    fn sparse_ipv6() -> impl Strategy<Value = Ipv6Addr> {
        proptest::array::uniform8(prop_oneof![Just(0u16), Just(0xffff), any::<u16>()])
            .prop_map(Ipv6Addr::from)
    }

    fn v1_line((source, destination): (SocketAddr, SocketAddr)) -> String {
        format!(
            "PROXY TCP{} {} {} {} {}\r\n",
            if source.is_ipv4() { 4 } else { 6 },
            source.ip(),
            destination.ip(),
            source.port(),
            destination.port()
        )
    }

    proptest! {
        #[test]
        fn written_v2_reads_back(pair in same_family(), tail: Vec<u8>) {
            let mut bytes = Vec::new();
            write_v2(&mut bytes, pair.0, pair.1);
            accepts(&bytes, Source::Proxied { source: pair.0, destination: pair.1 });
            let len = bytes.len();
            bytes.extend(tail);
            prop_assert_eq!(parse(&bytes).unwrap().unwrap().len, len);
        }

        #[test]
        fn written_v1_reads_back(pair in same_family()) {
            let line = v1_line(pair);
            accepts(line.as_bytes(), Source::Proxied { source: pair.0, destination: pair.1 });
        }

        /// One byte of a right line changed, inserted or removed: both decoders must agree.
        #[test]
        fn mutated_v1_agrees_with_naive(
            pair in same_family(), unknown: bool, at: prop::sample::Index, edit in 0u8..3,
            byte in prop_oneof![
                prop::sample::select(b" \r\n.:0123456789af%+\0".to_vec()), any::<u8>(),
            ],
        ) {
            let line = if unknown { "PROXY UNKNOWN 1 2\r\n".to_owned() } else { v1_line(pair) };
            let mut bytes = line.into_bytes();
            let at = at.index(bytes.len());
            match edit {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
            let answer = parse(&bytes);
            match naive_v1(&bytes) {
                Some((len, source)) => {
                    prop_assert_eq!(answer, Ok(Some(Header { len, source })));
                    accepts(&bytes[..len], source);
                }
                None => prop_assert!(!matches!(answer, Ok(Some(_))), "{:?}", answer),
            }
        }

        /// Only `Ok(None)` may change when more bytes come.
        #[test]
        fn answers_are_never_taken_back(
            start in prop::sample::select(vec![
                &b""[..], b"PROXY ", b"PROXY TCP4 1.2.3.4 ", b"PROXY TCP6 ::", b"PROXY UNKNOWN",
                b"\r\n\r\n\0\r\nQUIT\n", b"\r\n\r\n\0\r\nQUIT\n\x21", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
            ]),
            tail in prop_oneof![any::<Vec<u8>>(), "[ 0-9a-f.:\r\n]{0,60}".prop_map(String::into_bytes)],
        ) {
            let bytes = [start, &tail].concat();
            let mut before = Ok(None);
            for cut in 0..=bytes.len() {
                let answer = parse(&bytes[..cut]);
                match before {
                    Ok(None) => {}
                    Ok(Some(_)) => prop_assert_eq!(answer, before),
                    Err(_) => prop_assert!(answer.is_err()),
                }
                if let Ok(Some(header)) = answer {
                    prop_assert!(header.len <= cut && header.len <= HEADER_MAX);
                }
                before = answer;
            }
        }
    }
}
