//! Requests and answers as STUN messages.

use super::{Answer, Request};
use crate::wire::stun::attribute::{AddressKind, ChangeRequest};
use crate::wire::stun::fingerprint::Fingerprint;
use crate::wire::stun::writer::{NoRoom, Writer};
use crate::wire::stun::{Class, Message, Method, TransactionId};
use std::net::SocketAddr;

/// Bytes of a request, at most: header, CHANGE-REQUEST and RESPONSE-PORT.
pub const REQUEST_LEN_MAX: usize = 36;

/// What a datagram is to a [`Detection`](super::Detection).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// For [`answered`](super::Detection::answered).
    Answer(Answer),
    /// A binding request of this id, for [`request_heard`](super::Detection::request_heard).
    Request([u8; 12]),
}

impl Request {
    /// Writes the request at the front of `buffer`, which has [`REQUEST_LEN_MAX`] bytes or more,
    /// and returns its length.
    pub fn write(&self, buffer: &mut [u8]) -> Result<usize, NoRoom> {
        let id = TransactionId::new(self.id);
        let mut writer = Writer::new(buffer, Class::Request, Method::BINDING, id)?;
        if self.change_ip || self.change_port {
            let change = ChangeRequest { ip: self.change_ip, port: self.change_port };
            writer.change_request(change)?;
        }
        if let Some(port) = self.response_port {
            writer.response_port(port)?;
        }
        Ok(writer.finish())
    }
}

/// Reads a datagram that came from `from` to a socket. `None` if it is no STUN message, or none of
/// the binding method, or spoilt.
pub fn read(datagram: &[u8], from: SocketAddr, socket: u16) -> Option<Heard> {
    let message = Message::parse(datagram).ok()?;
    if message.method != Method::BINDING || message.fingerprint() == Fingerprint::Wrong {
        return None;
    }
    let id = message.id.id();
    let mapped = match message.class {
        Class::Request => return Some(Heard::Request(id)),
        Class::Indication => return None,
        // RFC 8489 section 6.3.3: without what it is about, an answer is no answer.
        Class::Success => Some(message.mapped_address().ok()??),
        Class::Error => None,
    };
    let address = |kind| message.address(kind).ok().flatten();
    let other = address(AddressKind::Other).or_else(|| address(AddressKind::Changed));
    Some(Heard::Answer(Answer { id, from, socket, mapped, other }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::attribute::ErrorCode;

    const ID: [u8; 12] = *b"abcdefghijkl";

    fn endpoint(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn request() -> Request {
        Request {
            socket: 1,
            to: endpoint("203.0.113.1:3478"),
            id: ID,
            change_ip: false,
            change_port: false,
            response_port: None,
        }
    }

    #[test]
    fn a_request_says_what_is_asked() {
        let mut buffer = [0; REQUEST_LEN_MAX];
        assert_eq!(request().write(&mut buffer), Ok(20));
        let heard = read(&buffer[..20], endpoint("192.0.2.1:5"), 0);
        assert_eq!(heard, Some(Heard::Request(ID)));

        let asks = Request { change_port: true, response_port: Some(5000), ..request() };
        assert_eq!(asks.write(&mut buffer), Ok(REQUEST_LEN_MAX));
        let message = Message::parse(&buffer).unwrap();
        let change = ChangeRequest { ip: false, port: true };
        assert_eq!(message.change_request(), Ok(Some(change)));
        assert_eq!(message.response_port(), Ok(Some(5000)));
        assert_eq!(asks.write(&mut buffer[1..]), Err(NoRoom));
    }

    #[test]
    fn an_answer_is_read_with_the_servers_other_address() {
        let (from, mapped) = (endpoint("203.0.113.1:3478"), endpoint("203.0.113.11:5000"));
        let other = endpoint("203.0.113.2:3479");
        for kind in [None, Some(AddressKind::Other), Some(AddressKind::Changed)] {
            let mut buffer = [0; 100];
            let id = TransactionId::new(ID);
            let mut writer = Writer::new(&mut buffer, Class::Success, Method::BINDING, id).unwrap();
            writer.mapped_address(mapped).unwrap();
            if let Some(kind) = kind {
                writer.address(kind, other).unwrap();
            }
            let len = writer.finish_with_fingerprint().unwrap();
            let other = kind.map(|_| other);
            let expected = Answer { id: ID, from, socket: 1, mapped: Some(mapped), other };
            assert_eq!(read(&buffer[..len], from, 1), Some(Heard::Answer(expected)));
            buffer[len - 1] ^= 1;
            assert_eq!(read(&buffer[..len], from, 1), None, "its fingerprint is wrong");
        }
    }

    #[test]
    fn an_error_is_an_answer_without_an_address_and_an_empty_success_is_none() {
        let from = endpoint("203.0.113.1:3478");
        for (class, is_answer) in [(Class::Error, true), (Class::Success, false)] {
            let mut buffer = [0; 100];
            let id = TransactionId::new(ID);
            let mut writer = Writer::new(&mut buffer, class, Method::BINDING, id).unwrap();
            writer.error_code(ErrorCode::UNKNOWN_ATTRIBUTE).unwrap();
            let len = writer.finish();
            let answer = Answer { id: ID, from, socket: 0, mapped: None, other: None };
            let expected = is_answer.then_some(Heard::Answer(answer));
            assert_eq!(read(&buffer[..len], from, 0), expected);
        }
        assert_eq!(read(b"\xf5rv\x01", from, 0), None);
    }
}
