//! TLS on the listeners, with the usual peers and with those who do it wrong.

use crate::support::pki::{Issued, SERVER, authority, ec_key, rsa_key, serial};
use crate::support::programs::{Process, await_listener, only_line, program, read_pipe};
use crate::support::{Client, Echo, Gateway, PATIENCE, Scratch, frame, run};
use native_tls::{Protocol, TlsConnector, TlsStream};
use nix::sys::signal::Signal;
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const CLOSED_BY_HANDSHAKE: &str = "udpferry_udpgw_clients_closed_total{reason=\"tls-handshake\"}";
const RELOAD_ERRORS: &str = "udpferry_udpgw_certificate_reload_errors_total";

/// A gateway that serves TLS with a certificate of the test's own authority.
struct TlsGateway {
    gateway: Gateway,
    authority: Issued,
    issued: Issued,
    files: Files,
}

/// Where the gateway reads its certificate and key.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    scratch: Scratch,
}

impl Files {
    fn new() -> Files {
        let scratch = Scratch::new();
        Files { certificate: scratch.path("cert.pem"), key: scratch.path("key.pem"), scratch }
    }

    fn write(&self, certificate: &[u8], key: &[u8]) {
        std::fs::write(&self.certificate, certificate).unwrap();
        std::fs::write(&self.key, key).unwrap();
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.scratch.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn args(&self) -> [String; 2] {
        [
            format!("--tls-cert={}", self.certificate.display()),
            format!("--tls-key={}", self.key.display()),
        ]
    }

    fn gateway(&self, more: &[&str]) -> Gateway {
        let args = self.args();
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Gateway::start(&args)
    }

    /// The one line of a start that must fail.
    fn refused(&self, more: &[&str]) -> String {
        let args = self.args();
        let mut all = vec!["udpgw", "--listen-addr=127.0.0.1:0"];
        all.extend(args.iter().map(String::as_str));
        all.extend(more);
        let output = run(&all);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        only_line(&output)
    }
}

impl TlsGateway {
    fn start(more: &[&str]) -> TlsGateway {
        let authority = authority("udpferry test authority");
        let issued = authority.issue();
        let files = Files::new();
        files.write(&issued.pem(), &issued.key_pem());
        let gateway = files.gateway(more);
        TlsGateway { gateway, authority, issued, files }
    }

    fn connect(&self) -> Client<TlsStream<TcpStream>> {
        Client::over(trusting(&self.authority, None, None, self.gateway.address).unwrap())
    }

    fn authority_file(&self) -> String {
        self.files.file("authority.pem", &self.authority.pem())
    }
}

/// A native-tls client that believes `authority`.
fn trusting(
    authority: &Issued,
    version: Option<Protocol>,
    identity: Option<&Issued>,
    address: SocketAddr,
) -> Result<TlsStream<TcpStream>, String> {
    let mut builder = TlsConnector::builder();
    builder.disable_built_in_roots(true);
    builder.add_root_certificate(native_tls::Certificate::from_pem(&authority.pem()).unwrap());
    if version.is_some() {
        builder.min_protocol_version(version).max_protocol_version(version);
    }
    if let Some(own) = identity {
        let own = native_tls::Identity::from_pkcs8(&own.pem(), &own.key_pem()).unwrap();
        builder.identity(own);
    }
    let stream = Client::connect(address).stream;
    builder.build().unwrap().connect(SERVER, stream).map_err(|error| error.to_string())
}

fn serial_seen(client: &Client<TlsStream<TcpStream>>) -> String {
    let der = client.stream.peer_certificate().unwrap().unwrap().to_der().unwrap();
    serial(&X509::from_der(&der).unwrap())
}

#[test]
fn native_tls_clients_of_both_versions_echo() {
    let tls = TlsGateway::start(&[]);
    let echo = Echo::start();
    for version in [None, Some(Protocol::Tlsv12), Some(Protocol::Tlsv13)] {
        let stream = trusting(&tls.authority, version, None, tls.gateway.address).unwrap();
        let mut client = Client::over(stream);
        client.echo(1, echo.address, b"over TLS");
        client.echo(2, echo.address, b"");
        assert_eq!(serial_seen(&client), tls.issued.serial());
    }
    tls.gateway.await_metric("udpferry_udpgw_clients_closed_total{reason=\"closed\"}", 3);
    assert_eq!(tls.gateway.metric(CLOSED_BY_HANDSHAKE), 0);
}

#[test]
fn openssl_s_client_gets_its_datagram_back() {
    let tls = TlsGateway::start(&[]);
    let echo = Echo::start();
    for version in ["-tls1_2", "-tls1_3"] {
        let address = tls.gateway.address.to_string();
        let ca = tls.authority_file();
        let mut child = Command::new(program("openssl"))
            .args(["s_client", "-quiet", version, "-connect", &address, "-CAfile", &ca])
            .args(["-servername", SERVER, "-verify_hostname", SERVER, "-verify_return_error"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Without flags the answer is the question.
        let question = frame(0x1234, echo.address, b"from s_client\n");
        child.stdin.as_mut().unwrap().write_all(&question).unwrap();
        let answer = read_pipe(child.stdout.as_mut().unwrap(), question.len());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(answer, question, "{version}");
    }
}

#[test]
fn stunnel_in_front_of_a_plain_client_works() {
    let tls = TlsGateway::start(&[]);
    let local = SocketAddr::from(([127, 0, 0, 1], crate::support::free_port()));
    let config = format!(
        "foreground = yes\npid =\n[udpgw]\nclient = yes\naccept = {local}\nconnect = {}\n\
         CAfile = {}\nverifyChain = yes\ncheckHost = {SERVER}\n",
        tls.gateway.address,
        tls.authority_file()
    );
    let mut command = Command::new(program("stunnel"));
    command.arg(tls.files.file("stunnel.conf", config.as_bytes()));
    let _stunnel = Process::start(command);
    let mut client = Client::over(await_listener(local));
    let echo = Echo::start();
    for len in [0, 1, 1400, 65_507] {
        client.echo(9, echo.address, &vec![0x5a; len]);
    }
    let mut other = Client::connect(local);
    other.echo(9, echo.address, b"beside the first");
}

#[test]
fn tls_1_1_is_refused() {
    let tls = TlsGateway::start(&[]);
    let mut builder = SslConnector::builder(SslMethod::tls_client()).unwrap();
    // The library itself would refuse to send such an old hello.
    builder.set_security_level(0);
    builder.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
    builder.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
    builder.set_max_proto_version(Some(SslVersion::TLS1_1)).unwrap();
    builder.set_verify(SslVerifyMode::NONE);
    let stream = Client::connect(tls.gateway.address).stream;
    builder.build().connect(SERVER, stream).unwrap_err();
    let line = tls.gateway.service.await_log("TLS handshake failed");
    assert!(line.contains("unsupported protocol"), "{line}");
    tls.gateway.await_metric(CLOSED_BY_HANDSHAKE, 1);
    tls.connect().echo(1, Echo::start().address, b"TLS 1.3");
}

#[test]
fn a_plain_client_at_the_tls_port_is_closed_and_hurts_nobody() {
    let tls = TlsGateway::start(&[]);
    let echo = Echo::start();
    let mut other = tls.connect();
    other.echo(1, echo.address, b"before");
    let mut plain = tls.gateway.connect();
    plain.send(1, echo.address, b"no TLS");
    assert!(plain.is_closed());
    tls.gateway.await_metric(CLOSED_BY_HANDSHAKE, 1);
    let line = tls.gateway.service.await_log("TLS handshake failed");
    let local = plain.stream.local_addr().unwrap();
    assert!(line.contains(&format!("client {local}: ")), "{line}");
    // One that leaves in the middle of its hello is counted too.
    let mut leaver = tls.gateway.connect();
    leaver.write(HALF_HELLO);
    leaver.stream.shutdown(Shutdown::Write).unwrap();
    assert!(leaver.is_closed());
    tls.gateway.await_metric(CLOSED_BY_HANDSHAKE, 2);
    other.echo(1, echo.address, b"after");
}

/// The record's header announces 512 bytes, of which the beginning of a ClientHello follows.
const HALF_HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0xaa, 0xbb];

/// The one slow test: it waits for the deadlines of a handshake and of a scrape, 10 s each, side
/// by side.
#[test]
fn half_a_beginning_is_closed_at_its_deadline() {
    let tls = TlsGateway::start(&[]);
    let proxied = Gateway::start(&["--proxy-protocol"]);
    let begin = std::time::Instant::now();
    let mut silent = tls.gateway.connect();
    let mut half_hello = tls.gateway.connect();
    half_hello.write(HALF_HELLO);
    let mut half_header = proxied.connect();
    half_header.write(b"PROXY TCP4 203.0.113.7 ");
    let mut half_request = Client::connect(proxied.metrics);
    half_request.write(b"GET /metrics HTTP/1.1\r\nHost: ");
    // All the while others are accepted and served.
    let echo = Echo::start();
    tls.connect().echo(1, echo.address, b"meanwhile");
    for client in [&mut silent, &mut half_hello, &mut half_header, &mut half_request] {
        assert!(client.is_closed());
        let waited = begin.elapsed().as_secs_f64();
        assert!((9.9..PATIENCE.as_secs_f64()).contains(&waited), "closed after {waited} s");
    }
    let timeouts = "udpferry_udpgw_clients_closed_total{reason=\"handshake-timeout\"}";
    tls.gateway.await_metric(timeouts, 2);
    proxied.await_metric(timeouts, 1);
    tls.gateway.service.await_log("no handshake in 10s");
    tls.connect().echo(1, echo.address, b"afterwards");
}

#[test]
fn client_certificates_are_demanded_and_judged() {
    let own = authority("udpferry test clients");
    let stranger = authority("somebody else");
    let files = Files::new();
    let ca = format!("--tls-client-ca={}", files.file("clients.pem", &own.pem()));
    let tls = TlsGateway::start(&[&ca]);
    let address = tls.gateway.address;
    let echo = Echo::start();
    let good = own.issue();
    for version in [Protocol::Tlsv12, Protocol::Tlsv13] {
        let stream = trusting(&tls.authority, Some(version), Some(&good), address).unwrap();
        Client::over(stream).echo(1, echo.address, b"with a certificate");
    }
    // In TLS 1.3 the client has finished before the server judges: it sees it when it reads.
    let foreign = stranger.issue();
    for (identity, reason) in
        [(None, "peer did not return a certificate"), (Some(&foreign), "client certificate: ")]
    {
        let before = tls.gateway.service.log().matches(reason).count();
        let mut stream =
            trusting(&tls.authority, Some(Protocol::Tlsv13), identity, address).unwrap();
        stream.read(&mut [0; 1]).unwrap_err();
        tls.gateway.service.await_log(reason);
        let old = trusting(&tls.authority, Some(Protocol::Tlsv12), identity, address);
        assert!(old.is_err(), "{reason}");
        let twice = || tls.gateway.service.log().matches(reason).count() == before + 2;
        assert!(crate::support::await_some(|| twice().then_some(())).is_some(), "{reason}");
    }
    let line = tls.gateway.service.await_log("client certificate: ");
    assert!(line.contains("TLS handshake failed") && line.contains("issuer"), "{line}");
    tls.gateway.await_metric(CLOSED_BY_HANDSHAKE, 4);
}

#[test]
fn keys_of_every_encoding_with_text_around_serve() {
    let authority = authority("udpferry test authority");
    let echo = Echo::start();
    let decorated = |pem: &[u8]| [b"Bag Attributes: none\n\n", pem, b"\nThe end.\n"].concat();
    for key in [ec_key(), rsa_key()] {
        let issued = authority.issue_for(key);
        for key_pem in [issued.key_pem(), issued.old_key_pem()] {
            let files = Files::new();
            files.write(&decorated(&issued.pem()), &decorated(&key_pem));
            let gateway = files.gateway(&[]);
            let stream = trusting(&authority, None, None, gateway.address).unwrap();
            Client::over(stream).echo(1, echo.address, b"any key");
        }
        let old = String::from_utf8(issued.old_key_pem()).unwrap();
        assert!(old.contains("BEGIN RSA PRIVATE KEY") || old.contains("BEGIN EC PRIVATE KEY"));
    }
}

#[test]
fn the_chain_of_intermediates_is_sent() {
    let root = authority("udpferry test root");
    let middle = root.authority("udpferry test intermediate");
    let issued = middle.issue();
    let files = Files::new();
    files.write(&[issued.pem(), middle.pem()].concat(), &issued.key_pem());
    let gateway = files.gateway(&[]);
    let stream = trusting(&root, None, None, gateway.address).unwrap();
    Client::over(stream).echo(1, Echo::start().address, b"three certificates");
    // Without the intermediate the same client must not believe it.
    files.write(&issued.pem(), &issued.key_pem());
    let alone = files.gateway(&[]);
    trusting(&root, None, None, alone.address).unwrap_err();
}

#[test]
fn unusable_files_are_one_clear_line() {
    let authority = authority("udpferry test authority");
    let (one, other) = (authority.issue(), authority.issue());
    let files = Files::new();
    let (certificate, key) =
        (files.certificate.display().to_string(), files.key.display().to_string());
    let says = |certificate_pem: &[u8], key_pem: &[u8], parts: &[&str]| {
        files.write(certificate_pem, key_pem);
        let line = files.refused(&[]);
        for part in parts {
            assert!(line.contains(part), "no {part:?} in: {line}");
        }
    };
    says(&one.pem(), &other.key_pem(), &[&certificate, &key, "does not match"]);
    says(&one.pem(), &one.encrypted_key_pem(), &[&key, "encrypted", "passphrase"]);
    says(&one.pem(), b"", &[&key, "no private key"]);
    says(b"", &one.key_pem(), &[&certificate, "no certificate"]);
    says(b"text\n", &one.key_pem(), &[&certificate, "no certificate"]);
    says(&one.key_pem(), &one.pem(), &[&certificate, "no certificate"]);
    says(&one.pem(), &one.pem(), &[&key, "no private key"]);
    files.write(&one.pem(), &one.key_pem());
    let empty = files.file("empty", b"");
    let line = files.refused(&[&format!("--tls-client-ca={empty}")]);
    assert!(line.contains(&empty) && line.contains("no certificate"), "{line}");
    std::fs::remove_file(&files.key).unwrap();
    let line = files.refused(&[]);
    assert!(line.contains(&key) && line.contains("No such file"), "{line}");
    std::fs::remove_file(&files.certificate).unwrap();
    let line = files.refused(&[]);
    assert!(line.contains(&certificate) && line.contains("No such file"), "{line}");
}

#[test]
fn sighup_takes_a_new_certificate_and_keeps_connections() {
    let tls = TlsGateway::start(&[]);
    let echo = Echo::start();
    let mut old = tls.connect();
    old.echo(1, echo.address, b"before");
    let renewed = tls.authority.issue();
    tls.files.write(&renewed.pem(), &renewed.key_pem());
    // Nothing changes until it is asked for.
    assert_eq!(serial_seen(&tls.connect()), tls.issued.serial());
    tls.gateway.service.signal(Signal::SIGHUP);
    tls.gateway.service.await_log("certificate reloaded from ");
    let mut new = tls.connect();
    assert_eq!(serial_seen(&new), renewed.serial());
    new.echo(1, echo.address, b"new");
    old.echo(1, echo.address, b"after");
    assert_eq!(serial_seen(&old), tls.issued.serial());
    assert_eq!(tls.gateway.metric(RELOAD_ERRORS), 0);
}

#[test]
fn sighup_never_takes_a_broken_certificate() {
    let tls = TlsGateway::start(&[]);
    let echo = Echo::start();
    let other = tls.authority.issue();
    let good = (tls.issued.pem(), tls.issued.key_pem());
    let broken = [
        (other.pem(), good.1.clone(), "does not match"),
        (b"rubbish".to_vec(), good.1.clone(), "no certificate"),
        (good.0.clone(), b"rubbish".to_vec(), "no private key"),
        (good.0.clone(), other.encrypted_key_pem(), "encrypted"),
    ];
    for (errors, (certificate, key, reason)) in (1..).zip(broken) {
        tls.files.write(&certificate, &key);
        tls.gateway.service.signal(Signal::SIGHUP);
        tls.gateway.await_metric(RELOAD_ERRORS, errors);
        let line = tls.gateway.service.await_log(reason);
        assert!(line.contains("error the old certificate stays in use: "), "{line}");
        let mut client = tls.connect();
        assert_eq!(serial_seen(&client), tls.issued.serial());
        client.echo(1, echo.address, b"still the old one");
    }
}

#[test]
fn large_and_many_datagrams_come_back_whole() {
    // As many as a UDP receive buffer of default size holds for sure.
    const IN_FLIGHT: u32 = 100;
    let tls = TlsGateway::start(&[]);
    let echo = Echo::start();
    let mut client = tls.connect();
    for len in [16_383, 16_384, 16_385, 65_507, 65_507] {
        let payload: Vec<u8> = (0..len).map(|n: usize| (n * 7).to_le_bytes()[0]).collect();
        client.echo(3, echo.address, &payload);
    }
    for batch in 0..5000 / IN_FLIGHT {
        let numbers = (batch * IN_FLIGHT)..((batch + 1) * IN_FLIGHT);
        let payload = |number: u32| [&number.to_le_bytes()[..], &[0x77; 196]].concat();
        let mut frames = Vec::new();
        for number in numbers.clone() {
            frames.extend(frame(4, echo.address, &payload(number)));
        }
        client.write(&frames);
        for number in numbers {
            assert_eq!(client.receive().payload, payload(number));
        }
    }
}

/// What such a client misses is lost, as UDP loses it; what it gets is whole and in order.
#[test]
fn a_client_that_reads_late_reads_whole_frames() {
    const SENT: u32 = 6000;
    let tls = TlsGateway::start(&["--tcp-buffer=16k", "--udp-buffer=64k"]);
    let echo = Echo::start();
    let mut client = tls.connect();
    let payload = |number: u32| [&number.to_le_bytes()[..], &[0xa5; 1300]].concat();
    for number in 0..SENT {
        client.send(5, echo.address, &payload(number));
    }
    client.keepalive();
    // All of it has been read and sent on by the gateway.
    tls.gateway.await_metric("udpferry_udpgw_keepalives_total", 1);
    let (mut received, mut last) = (0, None);
    loop {
        let reply = client.receive();
        if reply.conid == 6 {
            break;
        }
        let number = u32::from_le_bytes(reply.payload[..4].try_into().unwrap());
        assert_eq!(reply.payload, payload(number));
        assert!(last.is_none_or(|last| number > last), "{number} after {last:?}");
        (received, last) = (received + 1, Some(number));
        // Lost while the buffers are full; the first that comes back follows all that waited.
        client.send(6, echo.address, b"empty?");
    }
    assert!(received > 0 && received < SENT, "{received} of {SENT}: nothing waited");
}
