//! STUN: a client is told where its requests come from, and with two addresses what its NAT does.

use super::counters::{Asked, DropReason};
use super::desk::Desk;
use super::sockets::Sockets;
use crate::state::contact::Contact;
use crate::wire::stun::attribute::{AddressKind, ChangeRequest, ErrorCode, UnknownTypes, kind};
use crate::wire::stun::fingerprint::Fingerprint;
use crate::wire::stun::writer::{NoRoom, Writer};
use crate::wire::stun::{BadValue, Class, Message, Method};
use std::time::Instant;

/// More than any answer: three IPv6 addresses at 24 bytes, or an error with 16 unknown attributes;
/// header, SOFTWARE, FINGERPRINT.
const ANSWER_LEN_MAX: usize = 256;

const SOFTWARE: &str = concat!("udpferry ", env!("CARGO_PKG_VERSION"));

/// What only a server with two addresses understands (RFC 5780).
const BEHAVIOUR: [u16; 3] = [kind::CHANGE_REQUEST, kind::RESPONSE_PORT, kind::PADDING];

enum Reply {
    /// Where the request came from; of a server with two addresses also where the answer does, and
    /// so many bytes of PADDING if the request has them.
    Mapped {
        change: Option<ChangeRequest>,
        padding: Option<usize>,
    },
    Unknown(UnknownTypes),
    Malformed,
}

impl Reply {
    fn padding_len(&self) -> usize {
        match self {
            Reply::Mapped { padding: Some(len), .. } => *len,
            _ => 0,
        }
    }
}

impl Desk {
    pub(super) fn answer_stun(&mut self, now: Instant, from: Contact, datagram: &[u8]) {
        if !self.admit(now, from, 1) {
            return;
        }
        let Ok(request) = Message::parse(datagram) else {
            return self.refuse(now, from, DropReason::Malformed);
        };
        if request.class != Class::Request || request.method != Method::BINDING {
            return self.refuse(now, from, DropReason::NoRequest);
        }
        let fingerprint = request.fingerprint();
        if fingerprint == Fingerprint::Wrong {
            return self.refuse(now, from, DropReason::Malformed);
        }
        let mut to = from;
        let reply = match read(&request, &self.sockets, &mut to) {
            Ok(reply) => reply,
            Err(BadValue { .. }) => Reply::Malformed,
        };
        let is_reflected = to != from;
        if is_reflected && !self.admit(now, from, 1) {
            return;
        }
        self.asked(Asked::Stun);
        if !matches!(reply, Reply::Mapped { .. }) {
            self.counters.stun_refused.increment();
        }
        let Desk { outbox, sockets, shows_software, .. } = self;
        outbox.add(to, |bytes| {
            let begin = bytes.len();
            bytes.resize(begin + ANSWER_LEN_MAX + reply.padding_len(), 0);
            let written = write(
                &mut bytes[begin..],
                &request,
                &reply,
                from,
                sockets,
                *shows_software,
                fingerprint == Fingerprint::Right,
            );
            bytes.truncate(begin + written.unwrap_or(0));
            written.ok().map(|_| ())
        });
    }
}

/// What to reply, and to whom.
fn read(request: &Message<'_>, sockets: &Sockets, to: &mut Contact) -> Result<Reply, BadValue> {
    let serves_behaviour = sockets.change(to.socket, ChangeRequest::default()).is_some();
    let understood = if serves_behaviour { &BEHAVIOUR[..] } else { &[] };
    let unknown = request.unknown_types(understood);
    if !unknown.is_empty() {
        return Ok(Reply::Unknown(unknown));
    }
    if !serves_behaviour {
        return Ok(Reply::Mapped { change: None, padding: None });
    }
    let change = request.change_request()?.unwrap_or_default();
    let port = request.response_port()?;
    // RFC 5780 section 7.6 wants as much as the outgoing interface's MTU; as much as the request has
    // is fragmented as well as that was, and gives a forger nothing.
    let padding = request.padding();
    if let Some(port) = port {
        // Section 6.1: not together.
        if port == 0 || padding.is_some() {
            return Ok(Reply::Malformed);
        }
        to.endpoint.set_port(port);
    }
    if let Some((socket, _)) = sockets.change(to.socket, change) {
        to.socket = socket;
    }
    Ok(Reply::Mapped { change: Some(change), padding })
}

fn write(
    buffer: &mut [u8],
    request: &Message<'_>,
    reply: &Reply,
    from: Contact,
    sockets: &Sockets,
    shows_software: bool,
    has_fingerprint: bool,
) -> Result<usize, NoRoom> {
    let class = if matches!(reply, Reply::Mapped { .. }) { Class::Success } else { Class::Error };
    let mut answer = Writer::new(buffer, class, request.method, request.id)?;
    match reply {
        Reply::Mapped { change, padding } => {
            answer.mapped_address(from.endpoint)?;
            if let Some(change) = *change {
                let is_classic = request.id.is_classic();
                let (origin, other) = if is_classic {
                    (AddressKind::Source, AddressKind::Changed)
                } else {
                    (AddressKind::ResponseOrigin, AddressKind::Other)
                };
                // The other address is the one opposite to where the request came to.
                let opposite = ChangeRequest { ip: true, port: true };
                for (kind, change) in [(origin, change), (other, opposite)] {
                    if let Some((_, address)) = sockets.change(from.socket, change) {
                        answer.address(kind, address)?;
                    }
                }
            }
            if let Some(len) = *padding {
                answer.padding(len)?;
            }
        }
        Reply::Unknown(types) => {
            answer.error_code(ErrorCode::UNKNOWN_ATTRIBUTE)?;
            answer.unknown_attributes(types.as_slice())?;
        }
        Reply::Malformed => answer.error_code(ErrorCode::BAD_REQUEST)?,
    }
    if shows_software {
        answer.software(SOFTWARE)?;
    }
    if has_fingerprint { answer.finish_with_fingerprint() } else { Ok(answer.finish()) }
}
