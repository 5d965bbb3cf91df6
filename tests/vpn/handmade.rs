//! A client made by hand: a socket, and messages one by one.

use crate::support::PATIENCE;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use udpferry::wire::icmp_echo::{Echo, parse_reply, write_request as write_echo};
use udpferry::wire::vpn::{Answer, ClientId, Cookie, Request, Wish, parse_answer, write_request};

pub(crate) const NO_COOKIE: Cookie = Cookie([0; 16]);

pub(crate) struct Client {
    pub(crate) socket: UdpSocket,
    pub(crate) id: ClientId,
}

impl Client {
    /// At an address of this host's loopback, known by that number.
    pub(crate) fn at(host: &str, server: SocketAddr, number: u8) -> Client {
        let socket = UdpSocket::bind((host, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(server).unwrap();
        Client { socket, id: ClientId([number; 16]) }
    }

    pub(crate) fn send(&self, request: &Request) {
        let mut datagram = Vec::new();
        write_request(&mut datagram, request);
        self.socket.send(&datagram).unwrap();
    }

    /// The next message.
    pub(crate) fn receive(&self) -> Answer {
        let mut bytes = [0; 2048];
        let len = self.socket.recv(&mut bytes).expect("no answer");
        parse_answer(&bytes[..len]).unwrap_or_else(|| panic!("no message: {:?}", &bytes[..len]))
    }

    /// Whether nothing comes, after something else has had its answer: no time need pass.
    pub(crate) fn hears_nothing(&self) -> bool {
        self.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let is_silent = self.socket.recv(&mut [0; 2048]).is_err();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        is_silent
    }

    pub(crate) fn hello(&self, cookie: Cookie, ipv4: Wish<Ipv4Addr>) -> Answer {
        self.send(&Request::Hello { tx: 7, cookie, client: self.id, ipv4, ipv6: Wish::Any });
        self.receive()
    }

    /// Asks for a cookie.
    pub(crate) fn cookie(&self) -> Cookie {
        match self.hello(NO_COOKIE, Wish::Any) {
            Answer::Cookie { tx: 7, cookie, endpoint } => {
                assert_eq!(endpoint, self.socket.local_addr().unwrap());
                cookie
            }
            answer => panic!("{answer:?}"),
        }
    }

    /// Shows a cookie, and says what came of it.
    pub(crate) fn enter(&self, ipv4: Wish<Ipv4Addr>) -> Answer {
        self.hello(self.cookie(), ipv4)
    }

    /// Gets addresses; returns the IPv4 one.
    pub(crate) fn welcome(&self, ipv4: Wish<Ipv4Addr>) -> Ipv4Addr {
        match self.enter(ipv4) {
            Answer::Welcome { tx: 7, ipv4: Some(ipv4), .. } => ipv4.address,
            answer => panic!("{answer:?}"),
        }
    }

    /// Sends a packet: an echo request.
    pub(crate) fn send_echo(&self, source: &str, destination: &str, sequence: u16) {
        let [source, destination] = [source, destination].map(|text| text.parse().unwrap());
        let echo = Echo { source, destination, identifier: 9, sequence, data: b"from a test" };
        let mut packet = Vec::new();
        assert!(write_echo(&mut packet, &echo));
        self.socket.send(&packet).unwrap();
    }

    /// The next echo reply, whatever else comes before it: whom it is for, and its number.
    pub(crate) fn receive_reply(&self) -> (IpAddr, u16) {
        let mut bytes = [0; 2048];
        loop {
            let len = self.socket.recv(&mut bytes).expect("no reply");
            if let Some(reply) = parse_reply(&bytes[..len]) {
                return (reply.destination, reply.sequence);
            }
        }
    }
}

/// The endpoint of a server on this host.
pub(crate) fn endpoint(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}
