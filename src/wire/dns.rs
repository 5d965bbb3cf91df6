//! As much of DNS (RFC 1035 §4) as it takes to ask a question and to recognise its answer.
//!
//! ```text
//! header   = id:u16 . flags:u16 . qdcount:u16 . ancount:u16 . nscount:u16 . arcount:u16
//! question = name (labels, each a length byte and its bytes, then 0) . type:u16 . class:u16
//! ```
//!
//! ```
//! use udpferry::wire::dns::{Answer, parse_answer, write_query};
//! let mut query = Vec::new();
//! assert!(write_query(&mut query, 0x1234, "a.example"));
//! assert_eq!(query, b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01");
//! query[2] |= 0x80;
//! query[3] |= 3;
//! assert_eq!(parse_answer(&query), Some(Answer { id: 0x1234, code: 3, records: 0 }));
//! ```

use super::cursor::Cursor;

/// What an answer's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The query's.
    pub id: u16,
    /// RCODE: 0 no error, 2 server failure, 3 no such name, 5 refused.
    pub code: u8,
    /// Records in the answer section.
    pub records: u16,
}

/// Appends a recursive query for the IPv4 address (A, IN) of `name`. Returns false, and appends
/// nothing, when that is no name: a label of 0 or over 63 bytes, or over 253 bytes in all.
pub fn write_query(out: &mut Vec<u8>, id: u16, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| (1..=63).contains(&label.len());
    if name.len() > 253 || !name.split('.').all(is_label) {
        return false;
    }
    out.extend_from_slice(&id.to_be_bytes());
    // Recursion desired; one question.
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).unwrap_or(0));
        out.extend_from_slice(label.as_bytes());
    }
    out.extend_from_slice(&[0, 0, 1, 0, 1]);
    true
}

/// Reads an answer's header; `None` for anything that is none.
pub fn parse_answer(bytes: &[u8]) -> Option<Answer> {
    let mut cursor = Cursor::new(bytes);
    let id = cursor.u16_be()?;
    let [high, low] = cursor.take_array()?;
    let _questions = cursor.u16_be()?;
    let records = cursor.u16_be()?;
    cursor.take(4)?;
    // QR: a response.
    (high & 0x80 != 0).then_some(Answer { id, code: low & 0x0f, records })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_name() {
        let long_label = "a".repeat(64);
        let long_name = vec!["a"; 128].join(".");
        for name in ["", ".", "a..b", ".a", &long_label, &long_name] {
            let mut out = Vec::new();
            assert!(!write_query(&mut out, 1, name), "{name}");
            assert!(out.is_empty());
        }
        assert!(write_query(&mut Vec::new(), 1, "example.com."));
    }

    #[test]
    fn a_query_or_a_fragment_is_no_answer() {
        let mut query = Vec::new();
        assert!(write_query(&mut query, 7, "example.com"));
        assert_eq!(parse_answer(&query), None);
        query[2] |= 0x80;
        assert!(parse_answer(&query).is_some());
        assert!((0..12).all(|len| parse_answer(&query[..len]).is_none()));
    }
}
