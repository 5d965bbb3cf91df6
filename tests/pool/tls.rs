//! TLS between the sides, with the usual peers and with those who do it wrong.

use crate::pair::{Endpoint, Pki, Protection, Raw, Side, new_session, payload, words};
use crate::support::pki::{SERVER, authority, serial};
use crate::support::{Echo, PATIENCE, receive_from, remote};
use native_tls::{Certificate, TlsConnector, TlsStream};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

const RELOAD_ERRORS: &str = "certificate_reload_errors_total";
const TLS: &str = "connection_failures_total{reason=\"tls\"}";
const CLIENT_CERTIFICATE: &str = "connection_failures_total{reason=\"client-certificate\"}";
const QUICK: [&str; 2] = ["--backoff=0.2", "--pool-size=1"];

/// A TLS connection to the server, as a client that believes `ca` and offers `alpn`.
fn raw_tls(
    address: SocketAddr,
    ca: &[u8],
    alpn: Option<&str>,
) -> Option<Raw<TlsStream<TcpStream>>> {
    let mut builder = TlsConnector::builder();
    builder.disable_built_in_roots(true);
    builder.add_root_certificate(Certificate::from_pem(ca).unwrap());
    if let Some(alpn) = alpn {
        builder.request_alpns(&[alpn]);
    }
    let stream = Raw::connect(address).stream;
    builder.build().unwrap().connect(SERVER, stream).ok().map(Raw::over)
}

fn server_serial(address: SocketAddr, ca: &[u8]) -> String {
    let raw = raw_tls(address, ca, None).expect("no handshake");
    let der = raw.stream.peer_certificate().unwrap().unwrap().to_der().unwrap();
    serial(&openssl::x509::X509::from_der(&der).unwrap())
}

/// A client that must not get through: its log line that says so, after a second attempt and with
/// nothing at the target.
fn turned_away(server: &Side, args: &[String], says: &str) -> String {
    let mut all = words(args);
    all.extend(QUICK);
    let client = Side::client(server.address, &all);
    Endpoint::to(client.address).send(b"secret");
    let line = client.service.await_log(says);
    // It tries again, and not at once.
    crate::support::await_some(|| {
        (client.service.log().lines().filter(|line| line.contains(says)).count() > 1).then_some(())
    })
    .expect("it gives up");
    assert!(client.service.log().lines().count() < 50, "it tries in a loop");
    assert_eq!(server.metric("datagrams_total{direction=\"to-udp\"}"), 0);
    assert!(line.contains(" warning "), "{line}");
    let (status, _) = client.stop();
    assert!(status.success());
    line
}

#[test]
fn who_is_turned_away_learns_why() {
    let (_target, target) = remote();
    let pki = Pki::new();
    let server = |name: &str, more: &[String]| {
        let args = [pki.identity(name), more.to_vec()].concat();
        Side::server(target, &words(&args))
    };
    let mut lines = Vec::new();

    let other = authority("another authority");
    let other = vec!["-C".to_owned(), pki.file("other.pem", &other.pem())];
    lines.push(turned_away(&server("server", &[]), &other, "unable to get local issuer"));

    pki.issue("expired", &pki.authority.issue_expired());
    lines.push(turned_away(&server("expired", &[]), &pki.trust(), "certificate has expired"));

    let named = [pki.trust(), vec!["--tls-servername=elsewhere.test".to_owned()]].concat();
    lines.push(turned_away(&server("server", &[]), &named, "hostname mismatch"));

    let demanding = server("server", &pki.trust());
    lines.push(turned_away(&demanding, &pki.trust(), "certificate required"));
    demanding.service.await_log("peer did not return a certificate");
    demanding.await_at_least(CLIENT_CERTIFICATE, 2);
    assert_eq!(demanding.metric(TLS), 0);

    // System roots know nothing of the test's authority.
    lines.push(turned_away(&server("server", &[]), &[], "certificate verify failed"));
    let mut meanings = [
        "from an authority that is not trusted",
        "the server's certificate has expired",
        "the server's certificate is for another name",
        "the server wants a client certificate",
        "certificate is from an authority that is not trusted",
    ]
    .into_iter();
    for line in lines {
        assert!(!line.contains("secret"), "{line}");
        assert!(line.contains(meanings.next().unwrap()), "{line}");
        for raw in ["error:", "SSL routines", ".c:"] {
            assert!(!line.contains(raw), "{line}");
        }
    }
}

#[test]
fn a_client_certificate_of_somebody_else_is_refused() {
    let (_target, target) = remote();
    let pki = Pki::new();
    let args = [pki.identity("server"), pki.trust()].concat();
    let server = Side::server(target, &words(&args));
    pki.issue("stranger", &authority("another authority").issue());
    let stranger = [pki.identity("stranger"), pki.trust()].concat();
    turned_away(&server, &stranger, "unknown ca");
    server.await_at_least(CLIENT_CERTIFICATE, 2);
    assert_eq!(server.metric(TLS), 0);
    server.service.await_log("client certificate: ");
}

#[test]
fn a_refused_client_certificate_is_a_failure_and_waits_as_one() {
    let (_target, target) = remote();
    let pki = Pki::new();
    let args = [pki.identity("server"), pki.trust()].concat();
    let server = Side::server(target, &words(&args));
    pki.issue("stranger", &authority("another authority").issue());
    let stranger = [pki.identity("stranger"), pki.trust()].concat();
    for (args, alert) in [(pki.trust(), "certificate required"), (stranger, "unknown ca")] {
        let mut args = words(&args);
        args.extend(["--backoff=0.2", "--pool-size=1"]);
        let client = Side::client(server.address, &args);
        let endpoint = Endpoint::to(client.address);
        endpoint.send(b"secret");
        for attempt in 1..=3 {
            client.await_at_least(CLIENT_CERTIFICATE, attempt);
            // Something to write for every connection, which may fail before the alert is read.
            endpoint.send(b"secret");
        }
        let log = client.service.log();
        let told: Vec<_> =
            log.lines().filter_map(|line| line.split_once("next attempt in ")).collect();
        // Each wait is twice as long as the one before: the whole backoff, not its tenth.
        for ((line, wait), expected) in told.into_iter().zip([200.0, 400.0, 800.0]) {
            assert!(line.contains(" warning ") && line.contains(alert), "{line}");
            let wait: f64 = wait.split_once("ms").unwrap().0.parse().unwrap();
            // A fifth more or less, by chance.
            assert!((wait - expected).abs() <= expected * 0.21, "{wait} for {expected}");
        }
        let failed = "connections_down_total{reason=\"failed\"}";
        assert!(client.metric(failed) <= client.metric("connections_up_total"));
        for other in ["tls", "connect"] {
            let name = format!("connection_failures_total{{reason=\"{other}\"}}");
            assert_eq!(client.metric(&name), 0, "{}", client.service.log());
        }
        client.await_metric("connections", 0);
        let log = client.service.log();
        let warnings: Vec<_> = log.lines().filter(|line| line.contains(" warning ")).collect();
        assert!(warnings.iter().all(|line| line.contains("next attempt")), "{warnings:?}");
    }
    assert_eq!(server.metric("datagrams_total{direction=\"to-udp\"}"), 0);
}

#[test]
fn names_are_checked_as_told() {
    let echo = Echo::start();
    let pki = Pki::new();
    let server = Side::server(echo.address, &words(&Protection::Tls.server(&pki)));
    for more in [format!("--tls-servername={SERVER}"), "--no-hostname-check".to_owned()] {
        let args = [pki.trust(), vec![more]].concat();
        // "localhost" is in no certificate.
        let client =
            Side::client_on("127.0.0.1", "localhost", server.address.port(), &words(&args));
        Endpoint::to(client.address).echo(b"hello");
    }
}

#[test]
fn a_certificate_and_its_key_may_share_a_file() {
    let echo = Echo::start();
    let pki = Pki::new();
    let issued = pki.authority.issue();
    let both = pki.file("both.pem", &[issued.key_pem(), issued.pem()].concat());
    let server = Side::server(echo.address, &["-c", &both, "-C", &pki.path("ca.pem")]);
    let client = Side::client(server.address, &["-c", &both, "-C", &pki.path("ca.pem")]);
    Endpoint::to(client.address).echo(b"hello");
}

#[test]
fn a_client_never_falls_back_to_plain_text() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut args = pki.trust();
    args.extend(QUICK.map(str::to_owned));
    let client = Side::client(listener.local_addr().unwrap(), &words(&args));
    let endpoint = Endpoint::to(client.address);
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\0\x02hi", b""] {
        endpoint.send(b"a secret that must not be seen");
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut first = [0; 3];
        stream.read_exact(&mut first).unwrap();
        // RFC 8446 §5.1: a handshake record.
        assert_eq!(first[0], 22);
        stream.write_all(answer).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!rest.windows(6).any(|window| window == b"secret"));
    }
    client.await_at_least(TLS, 2);
    client.service.await_log("the server does not speak TLS (wrong version number)");
}

#[test]
fn garbage_at_the_door_disturbs_nobody() {
    let echo = Echo::start();
    let pki = Pki::new();
    let server = Side::server(echo.address, &words(&Protection::Tls.server(&pki)));
    let client = Side::client(server.address, &words(&Protection::Tls.client(&pki)));
    let endpoint = Endpoint::to(client.address);
    endpoint.echo(b"before");
    for seed in 0..20 {
        let mut raw = Raw::connect(server.address);
        // A server that has closed already refuses the rest.
        let _ = raw.stream.write_all(&payload(100 * seed + 20, seed));
        assert!(raw.is_closed());
    }
    // And the plain protocol.
    let mut raw = Raw::join(server.address, new_session());
    raw.send(b"hello");
    assert!(raw.is_closed());
    server.await_metric(TLS, 21);
    endpoint.echo(b"after");
    assert_eq!(server.metric("sessions"), 1);
}

#[test]
fn a_server_takes_new_certificates_and_never_unusable_ones() {
    let echo = Echo::start();
    let pki = Pki::new();
    let server = Side::server(echo.address, &words(&Protection::Tls.server(&pki)));
    let ca = pki.authority.pem();
    let mut old = raw_tls(server.address, &ca, None).unwrap();
    old.stream.write_all(&new_session().bytes()).unwrap();
    old.echo(b"before");
    let first = server_serial(server.address, &ca);

    let second = pki.authority.issue();
    pki.issue("server", &second);
    server.service.signal(Signal::SIGHUP);
    server.service.await_log("certificate reloaded");
    assert_eq!(server_serial(server.address, &ca), second.serial());
    assert_ne!(first, second.serial());

    let third = pki.authority.issue();
    for (number, (certificate, says)) in [
        (third.pem(), "does not match"),
        (b"nonsense".to_vec(), "holds no certificate"),
        (Vec::new(), "holds no certificate"),
    ]
    .into_iter()
    .enumerate()
    {
        pki.file("server.pem", &certificate);
        server.service.signal(Signal::SIGHUP);
        server.await_metric(RELOAD_ERRORS, i64::try_from(number).unwrap() + 1);
        let line = server.service.await_log(says);
        assert!(line.contains("the old certificate stays in use"), "{line}");
        assert_eq!(server_serial(server.address, &ca), second.serial());
    }
    std::fs::remove_file(pki.path("server.key")).unwrap();
    server.service.signal(Signal::SIGHUP);
    server.await_metric(RELOAD_ERRORS, 4);
    assert_eq!(server_serial(server.address, &ca), second.serial());
    old.echo(b"the old connection has lived through all of it");
}

#[test]
fn a_client_takes_new_certificates_and_never_unusable_ones() {
    let echo = Echo::start();
    let pki = Pki::new();
    let protection = Protection::ClientCertificates;
    let server = Side::server(echo.address, &words(&protection.server(&pki)));
    pki.issue("client", &authority("another authority").issue());
    let mut args = protection.client(&pki);
    args.extend(QUICK.map(str::to_owned));
    let client = Side::client(server.address, &words(&args));
    let endpoint = Endpoint::to(client.address);
    endpoint.send(b"too early");
    client.service.await_log("unknown ca");

    pki.file("client.key", b"nonsense");
    client.service.signal(Signal::SIGHUP);
    client.await_metric(RELOAD_ERRORS, 1);
    client.service.await_log("the old certificates stay in use");

    pki.issue("client", &pki.authority.issue());
    client.service.signal(Signal::SIGHUP);
    client.service.await_log("certificates reloaded");
    endpoint.echo_at_last(b"now they fit");
}

#[test]
fn tls_at_a_plain_server_is_told_and_near_misses_are_ids() {
    let echo = Echo::start();
    let pki = Pki::new();
    let reason = "connection_failures_total{reason=\"tls-to-plain\"}";
    let server = Side::server(echo.address, &["--no-tls"]);
    assert!(raw_tls(server.address, &pki.authority.pem(), None).is_none());
    server.await_metric(reason, 1);
    let line = server.service.await_log("the client speaks TLS");
    assert!(line.contains("--no-tls") && line.contains("--cert"), "{line}");
    let mut args = pki.trust();
    args.extend(QUICK.map(str::to_owned));
    let client = Side::client(server.address, &words(&args));
    Endpoint::to(client.address).send(b"hello");
    server.await_at_least(reason, 2);
    client.await_at_least(TLS, 1);
    assert_eq!(server.metric("sessions_opened_total"), 0);
    client.stop();

    // A version 4 UUID that is as near as one comes, and one in pieces.
    let mut id = *b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\xde\xad\xbe\xef\0";
    let refused = server.metric(reason);
    let mut pieces = Raw::connect(server.address);
    for piece in id.chunks(3) {
        pieces.stream.write_all(piece).unwrap();
    }
    assert!(pieces.is_closed());
    server.await_metric(reason, refused + 1);
    id = udpferry::wire::pool::SessionId::from_random(id).bytes();
    let mut near = Raw::connect(server.address);
    near.stream.write_all(&id).unwrap();
    near.echo(b"a session");
}

#[test]
fn application_protocols_must_match() {
    let echo = Echo::start();
    let pki = Pki::new();
    let with_alpn = |side: Vec<String>, name: &str| [side, vec![format!("--alpn={name}")]].concat();
    let args = with_alpn(Protection::Tls.server(&pki), "http/1.1");
    let server = Side::server(echo.address, &words(&args));
    let args = with_alpn(Protection::Tls.client(&pki), "http/1.1");
    let client = Side::client(server.address, &words(&args));
    Endpoint::to(client.address).echo(b"hello");

    let ca = pki.authority.pem();
    let mut same = raw_tls(server.address, &ca, Some("http/1.1")).expect("the same");
    assert_eq!(same.stream.negotiated_alpn().unwrap().as_deref(), Some(&b"http/1.1"[..]));
    same.stream.write_all(&new_session().bytes()).unwrap();
    same.echo(b"raw");
    assert!(raw_tls(server.address, &ca, Some("h2")).is_none(), "another one is refused");

    let mut args = with_alpn(Protection::Tls.client(&pki), "h2");
    args.extend(QUICK.map(str::to_owned));
    let other = Side::client(server.address, &words(&args));
    Endpoint::to(other.address).send(b"hello");
    other.service.await_log("no application protocol");
    server.await_at_least(TLS, 2);
}

#[test]
fn a_client_without_an_application_protocol_is_refused_by_a_server_that_wants_one() {
    let (_target, target) = remote();
    let pki = Pki::new();
    let args = [Protection::Tls.server(&pki), vec!["--alpn=http/1.1".to_owned()]].concat();
    let server = Side::server(target, &words(&args));
    let mut raw = raw_tls(server.address, &pki.authority.pem(), None).expect("no handshake");
    // The server may have closed by now.
    let _ = raw.stream.write_all(&new_session().bytes());
    let _ = raw.stream.write_all(b"\0\x05hello");
    // An end or a reset: what it sent is never read.
    assert!(!matches!(raw.stream.read(&mut [0; 16]), Ok(1..)));
    server.await_metric("connection_failures_total{reason=\"alpn\"}", 1);
    let line = server.service.await_log("no application protocol");
    assert!(line.contains("--alpn") && line.contains("not set up"), "{line}");
    for nothing in ["sessions_opened_total", "connections_up_total"] {
        assert_eq!(server.metric(nothing), 0);
    }

    let mut args = Protection::Tls.client(&pki);
    args.extend(QUICK.map(str::to_owned));
    let client = Side::client(server.address, &words(&args));
    Endpoint::to(client.address).send(b"hello");
    server.await_at_least("connection_failures_total{reason=\"alpn\"}", 2);
    assert_eq!(server.metric("datagrams_total{direction=\"to-udp\"}"), 0);
}

#[test]
fn a_server_that_cares_for_no_application_protocol_takes_any() {
    let (target, target_address) = remote();
    let pki = Pki::new();
    let server = Side::server(target_address, &words(&Protection::Tls.server(&pki)));
    let args = [Protection::Tls.client(&pki), vec!["--alpn=h2".to_owned()]].concat();
    let client = Side::client(server.address, &words(&args));
    Endpoint::to(client.address).send(b"hello");
    assert_eq!(receive_from(&target).0, b"hello");
}
