//! A blocking connection to a server of ours or of others, for `check` and `selftest`.

use super::report::Report;
use crate::error::Error;
use crate::net::certificate::{Summary, summarize};
use crate::net::tls::{ClientTrust, connector};
use crate::net::tls_failure::in_plain_words;
use crate::runtime::clock;
use crate::runtime::signals::uninterrupted;
use native_tls::HandshakeError;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

trait ReadWrite: Read + Write + Send {}
impl<T: Read + Write + Send> ReadWrite for T {}

/// What reading yields instead of bytes.
#[derive(Debug)]
pub enum NoBytes {
    /// Nothing came in time.
    TimedOut,
    /// The server closed the connection.
    Closed,
    /// The connection failed.
    Failed(io::Error),
}

/// One connection.
pub struct Dial {
    stream: Box<dyn ReadWrite>,
    /// The same connection below TLS, for time-outs.
    socket: TcpStream,
    address: SocketAddr,
    timeout: Duration,
}

impl Dial {
    /// Connects over TCP; each step may take `timeout`.
    pub fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Dial> {
        let socket = TcpStream::connect_timeout(&address, timeout)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        let stream = Box::new(socket.try_clone()?);
        Ok(Dial { stream, socket, address, timeout })
    }

    /// Goes over to TLS with a server named `name`; returns what its certificate says. The error
    /// says what the TLS library says; [`in_plain_words`] says it for people.
    pub fn start_tls(
        &mut self,
        name: &str,
        trust: &ClientTrust<'_>,
    ) -> Result<Option<Summary>, String> {
        let connector = connector(trust).map_err(|error| error.to_string())?;
        let socket = self.socket.try_clone().map_err(|error| error.to_string())?;
        let deadline = clock::now() + self.timeout;
        let mut shaken = connector.connect(name, BelowTls(socket));
        let stream = loop {
            match shaken {
                Ok(stream) => break stream,
                Err(HandshakeError::Failure(error)) => return Err(error.to_string()),
                Err(HandshakeError::WouldBlock(half)) => {
                    let left = clock::until(deadline, clock::now());
                    if left.is_zero() {
                        return Err(NO_ANSWER.to_owned());
                    }
                    self.socket.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
                    shaken = half.handshake();
                }
            }
        };
        let certificate = stream.peer_certificate().ok().flatten();
        self.stream = Box::new(stream);
        Ok(certificate.and_then(|shown| shown.to_der().ok()).and_then(|der| summarize(&der).ok()))
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads what is there, and waits for something until `deadline`.
    pub fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<usize, NoBytes> {
        loop {
            let left = clock::until(deadline, clock::now());
            if left.is_zero() {
                return Err(NoBytes::TimedOut);
            }
            self.socket.set_read_timeout(Some(left)).map_err(NoBytes::Failed)?;
            return match self.stream.read(bytes) {
                Ok(0) => Err(NoBytes::Closed),
                Ok(len) => Ok(len),
                Err(error) => Err(match error.kind() {
                    io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut => continue,
                    io::ErrorKind::ConnectionReset => NoBytes::Closed,
                    _ => NoBytes::Failed(error),
                }),
            };
        }
    }
}

/// A socket below TLS, whose library takes an interrupted call for the end; one that would block may be
/// made again.
#[derive(Debug)]
struct BelowTls(TcpStream);

impl Read for BelowTls {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => io::ErrorKind::WouldBlock.into(),
            _ => error,
        })
    }
}

impl Write for BelowTls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        uninterrupted(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

const NO_ANSWER: &str = "no answer in time";

/// A step of a check: a TCP connection to the first of `addresses` that takes one. `hints` are
/// what to say of the service when it refuses, and when it is silent.
pub fn connect_step(
    report: &mut Report,
    host: &str,
    addresses: &[SocketAddr],
    timeout: Duration,
    hints: &ConnectHints,
) -> Result<Dial, Error> {
    let mut last = None;
    for address in addresses {
        match Dial::connect(*address, timeout) {
            Ok(dial) => {
                report.ok(&format!("TCP connection to {address}"))?;
                return Ok(dial);
            }
            Err(error) => last = Some((address, error)),
        }
    }
    let Some((address, error)) = last else {
        return Err(report.failed(&format!("{host} has no address"), &[]));
    };
    let advice: &[&str] = match error.kind() {
        io::ErrorKind::ConnectionRefused => &[
            "Nothing listens there. Is the service running, and on this address and port?",
            "On the server: ss -tlnp | grep -i udp",
            hints.refused,
        ],
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => &[
            "Nothing answers. A firewall may drop it: the port must be open for TCP, not UDP.",
            hints.silent,
        ],
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            &["There is no route to that address from here."]
        }
        _ => &[],
    };
    Err(report.failed(&format!("TCP connection to {address}: {error}"), advice))
}

/// What to say of one kind of service when no connection comes about.
#[derive(Debug)]
pub struct ConnectHints {
    /// The port is closed.
    pub refused: &'static str,
    /// Nothing answers.
    pub silent: &'static str,
}

/// What a check calls its TLS options.
#[derive(Debug)]
pub struct TlsWords {
    /// How to leave TLS off: `without --tls`.
    pub plain: &'static str,
    /// Trusted authorities.
    pub ca: &'static str,
    /// The certificate's name.
    pub server_name: &'static str,
    /// Certificate and key of the client.
    pub identity: &'static str,
}

/// Certificates that end sooner than this deserve a word, in days: renewal is late then.
const DAYS_LEFT_FEW: i64 = 14;

/// A step of a check: the TLS handshake, and what the certificate says.
pub fn tls_step(
    report: &mut Report,
    dial: &mut Dial,
    name: &str,
    trust: &ClientTrust<'_>,
    words: &TlsWords,
) -> Result<(), Error> {
    match dial.start_tls(name, trust) {
        Ok(certificate) => {
            report.ok(&if trust.any_server {
                "TLS handshake; the certificate was not checked".to_owned()
            } else if trust.any_name {
                "TLS handshake, the certificate is from a trusted authority".to_owned()
            } else {
                format!("TLS handshake, the certificate is valid for {name}")
            })?;
            match certificate {
                Some(certificate) => {
                    report.note(&describe(&certificate))?;
                    if (0..DAYS_LEFT_FEW).contains(&certificate.days_left) {
                        report.note("It expires soon: is its renewal still working?")?;
                    }
                    Ok(())
                }
                None => Ok(()),
            }
        }
        Err(cause) => {
            // Whoever shows a certificate to somebody who takes any speaks TLS.
            let any = ClientTrust { any_server: true, ..ClientTrust { ..*trust } };
            let shown = if cause == NO_ANSWER {
                None
            } else {
                Dial::connect(dial.address, dial.timeout)
                    .ok()
                    .and_then(|mut second| second.start_tls(name, &any).ok().flatten())
            };
            let advice = advise(&cause, shown.as_ref(), name, words);
            let advice: Vec<&str> = advice.iter().map(String::as_str).collect();
            Err(report
                .failed(&format!("TLS handshake as {name}: {}", in_plain_words(&cause)), &advice))
        }
    }
}

fn describe(certificate: &Summary) -> String {
    let Summary { names, issuer, not_after, days_left, .. } = certificate;
    let names = names.join(", ");
    let issuer = if certificate.is_self_signed { "itself" } else { issuer };
    if *days_left < 0 {
        format!("certificate for {names}, signed by {issuer}, expired on {not_after}")
    } else {
        format!("certificate for {names}, signed by {issuer}, until {not_after} ({days_left} days)")
    }
}

/// Where to look after a handshake that failed with `cause`, when the server shows `certificate`.
fn advise(cause: &str, certificate: Option<&Summary>, name: &str, words: &TlsWords) -> Vec<String> {
    let TlsWords { plain, ca, server_name, identity } = words;
    let has = |part: &str| cause.contains(part);
    if cause == NO_ANSWER {
        return vec![
            format!(
                "It takes connections and does not answer: it does not speak TLS (try {plain}),"
            ),
            "or a middlebox on the path swallows TLS.".to_owned(),
        ];
    }
    if has("alert handshake failure") || has("certificate required") || has("bad certificate") {
        return vec![
            format!("The server wants a client certificate, or another one: give {identity}."),
            "Its log says what it refused.".to_owned(),
        ];
    }
    if has("no application protocol") {
        return vec!["The server takes only clients that offer its --alpn.".to_owned()];
    }
    let Some(certificate) = certificate else {
        return vec![
            format!("The server does not speak TLS, or no version that we do: try {plain}."),
            format!(
                "Certificate errors: give its authority with {ca}, its name with {server_name}."
            ),
        ];
    };
    let mut advice = vec![format!("The server shows a {}.", describe(certificate))];
    if certificate.days_left < 0 {
        advice.push("It has expired: renew it, and let the service reload it (SIGHUP).".to_owned());
    } else if certificate.is_early {
        advice.push("It is not valid yet: is a clock wrong, there or here?".to_owned());
    } else if has("hostname mismatch") || has("IP address mismatch") {
        advice
            .push(format!("It is not for {name}: ask for its name with {server_name}, or is this"));
        advice.push(format!("another server? (Its authority is trusted: {ca} is right.)"));
    } else {
        advice.push(format!("Its authority is not trusted here: give that one with {ca}"));
        advice.push(format!("(and the name that it is for with {server_name}, if it differs)."));
        if certificate.is_self_signed {
            advice.push("It is signed with its own key: it is its own authority.".to_owned());
        }
    }
    advice
}

/// Names the protocol that a server's first bytes look like, and what to do about it.
pub fn recognise<'a>(bytes: &[u8], tls_advice: &'a str) -> (String, &'a str) {
    match known(bytes) {
        Some(TLS) => (TLS.to_owned(), tls_advice),
        Some(known) => (known.to_owned(), WRONG_PORT),
        None => {
            let shown = &bytes[..bytes.len().min(16)];
            (format!("it says \"{}\"", shown.escape_ascii()), WRONG_PORT)
        }
    }
}

/// Whether these first bytes are those of a protocol that we know and do not speak.
pub fn is_known(bytes: &[u8]) -> bool {
    known(bytes).is_some()
}

const TLS: &str = "it speaks TLS";
const WRONG_PORT: &str = "Is this the right port?";

fn known(bytes: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 4] = [
        (b"SSH-", "it is an SSH server"),
        (b"HTTP/", "it is an HTTP server"),
        (&[0x15, 3], TLS),
        (&[0x16, 3], TLS),
    ];
    known.into_iter().find(|(prefix, _)| bytes.starts_with(prefix)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: TlsWords = TlsWords {
        plain: "--no-tls",
        ca: "--cafile",
        server_name: "--tls-servername",
        identity: "--cert and --key",
    };

    fn certificate() -> Summary {
        Summary {
            names: vec!["a.test".to_owned(), "b.test".to_owned()],
            issuer: "An Authority".to_owned(),
            is_self_signed: false,
            not_after: "Jan  1 00:00:00 2027 GMT".to_owned(),
            days_left: 40,
            is_early: false,
        }
    }

    #[test]
    fn each_failed_handshake_has_advice_of_its_own() {
        let verify = |why: &str| {
            format!("error:0A000086:SSL routines:f:certificate verify failed:x.c:1889: ({why})")
        };
        let advice = |cause: &str, shown: Option<&Summary>| {
            advise(cause, shown, "c.test", &WORDS).join("\n")
        };
        let own = certificate();
        let expired = Summary { days_left: -3, ..certificate() };
        let early = Summary { is_early: true, ..certificate() };
        let alone = Summary { is_self_signed: true, ..certificate() };
        for (cause, shown, parts) in [
            (verify("hostname mismatch"), Some(&own), ["not for c.test", "a.test, b.test"]),
            (verify("IP address mismatch"), Some(&own), ["not for c.test", "--tls-servername"]),
            (verify("certificate has expired"), Some(&expired), ["renew it", "expired on Jan"]),
            (verify("certificate is not yet valid"), Some(&early), ["not valid yet", "clock"]),
            (
                verify("unable to get local issuer certificate"),
                Some(&own),
                ["signed by An Authority", "--cafile"],
            ),
            (verify("self-signed certificate"), Some(&alone), ["its own authority", "--cafile"]),
            ("sslv3 alert handshake failure".to_owned(), None, ["--cert and --key", "client"]),
            ("no application protocol".to_owned(), None, ["--alpn", "clients"]),
            (NO_ANSWER.to_owned(), None, ["does not speak TLS", "--no-tls"]),
            ("wrong version number".to_owned(), None, ["does not speak TLS", "--no-tls"]),
        ] {
            let text = advice(&cause, shown);
            assert!(parts.iter().all(|part| text.contains(part)), "{cause}: {text}");
        }
    }

    #[test]
    fn protocols_are_told_by_their_first_bytes() {
        let recognised = |bytes: &[u8]| recognise(bytes, "Try TLS.");
        assert_eq!(recognised(b"SSH-2.0-x"), ("it is an SSH server".to_owned(), WRONG_PORT));
        assert_eq!(recognised(&[0x15, 3, 3, 0, 2]), ("it speaks TLS".to_owned(), "Try TLS."));
        let said = "it says \"\\x00\\x01hello\"";
        assert_eq!(recognised(b"\x00\x01hello"), (said.to_owned(), WRONG_PORT));
    }
}
