//! TLS: servers through the openssl crate, clients through native-tls, which wraps the same library
//! on Linux but cannot ask for a client certificate. One loader of keys serves both.

use super::tls_failure::CLIENT_CERTIFICATE;
use openssl::asn1::{Asn1Integer, Asn1Time};
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    AlpnError, ErrorCode, ShutdownState, Ssl, SslAcceptor, SslMethod, SslOptions,
    SslSessionCacheMode, SslStream, SslVerifyMode, SslVersion,
};
use openssl::stack::Stack;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder};
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What is wrong with a certificate, a key, or the TLS library's view of them.
#[derive(Debug)]
pub enum TlsError {
    /// A file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file holds no certificate in PEM form.
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1).
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The key is protected by a passphrase, and nobody is there to type it.
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// The key belongs to another certificate.
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The TLS library refused.
    Library(String),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Unreadable { path, cause } => {
                write!(f, "cannot read {}: {cause}", path.display())
            }
            TlsError::NoCertificate { path } => {
                write!(f, "{} holds no certificate in PEM form", path.display())
            }
            TlsError::NoKey { path } => write!(
                f,
                "{} holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1)",
                path.display()
            ),
            TlsError::EncryptedKey { path } => write!(
                f,
                "the key in {} is encrypted: store it without a passphrase (openssl pkey)",
                path.display()
            ),
            TlsError::Mismatch { certificate, key } => write!(
                f,
                "the key in {} does not match the certificate in {}",
                key.display(),
                certificate.display()
            ),
            TlsError::Library(reason) => write!(f, "TLS library: {reason}"),
        }
    }
}

impl std::error::Error for TlsError {}

impl From<openssl::error::ErrorStack> for TlsError {
    fn from(stack: openssl::error::ErrorStack) -> TlsError {
        TlsError::Library(stack.to_string())
    }
}

impl From<native_tls::Error> for TlsError {
    fn from(error: native_tls::Error) -> TlsError {
        TlsError::Library(error.to_string())
    }
}

/// A certificate with its chain, and the key that belongs to it.
pub struct Identity {
    /// The certificate itself first, then those that lead to its root.
    chain: Vec<X509>,
    key: PKey<Private>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("chain_len", &self.chain.len()).finish_non_exhaustive()
    }
}

impl Identity {
    /// Loads PEM files, with any text around the blocks. The key may be PKCS#8, PKCS#1 or SEC1 and
    /// must belong to the first certificate of the file.
    pub fn load(certificate: &Path, key: &Path) -> Result<Identity, TlsError> {
        let chain = certificates(certificate)?;
        let pem = read(key)?;
        let private = PKey::private_key_from_pem_callback(&pem, |_| Ok(0)).map_err(|_| {
            let path = key.to_owned();
            if pem.windows(9).any(|window| window == b"ENCRYPTED") {
                TlsError::EncryptedKey { path }
            } else {
                TlsError::NoKey { path }
            }
        })?;
        let matches = match chain.first() {
            Some(first) => first.public_key()?.public_eq(&private),
            None => false,
        };
        if !matches {
            return Err(TlsError::Mismatch {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
            });
        }
        Ok(Identity { chain, key: private })
    }

    /// The same for the client side's library, which takes PKCS#8 alone.
    fn for_client(&self) -> Result<native_tls::Identity, TlsError> {
        let mut chain = Vec::new();
        for certificate in &self.chain {
            chain.extend(certificate.to_pem()?);
        }
        Ok(native_tls::Identity::from_pkcs8(&chain, &self.key.private_key_to_pem_pkcs8()?)?)
    }
}

/// The server's side of TLS: TLS 1.2 at least.
pub struct Acceptor {
    acceptor: SslAcceptor,
    wants_alpn: bool,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Serves as `identity`. With `client_ca`, a PEM file, clients must show a certificate that one
    /// of its certificates has signed.
    ///
    /// In TLS 1.3 the client has finished its handshake before the server judges its certificate: a
    /// refused client sees that in its first read.
    pub fn new(identity: &Identity, client_ca: Option<&Path>) -> Result<Acceptor, TlsError> {
        Acceptor::with_alpn(identity, client_ca, None)
    }

    /// The same, and takes only clients that offer this application protocol (ALPN, RFC 7301). The
    /// handshake with a client that offers none at all succeeds nevertheless, as the library asks
    /// nobody about it: see [`TlsStream::lacks_alpn`].
    pub fn with_alpn(
        identity: &Identity,
        client_ca: Option<&Path>,
        alpn: Option<&str>,
    ) -> Result<Acceptor, TlsError> {
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        let (first, rest) = identity
            .chain
            .split_first()
            .ok_or_else(|| TlsError::Library("an identity without a certificate".to_owned()))?;
        builder.set_certificate(first)?;
        for certificate in rest {
            builder.add_extra_chain_cert(certificate.clone())?;
        }
        builder.set_private_key(&identity.key)?;
        builder.check_private_key()?;
        // One read of the socket for a whole record instead of one for its header and one for its
        // body; the reader must then drain until it would block.
        builder.set_read_ahead(true);
        // Tickets resume sessions without memory here; a cache would hold 20,000 of them.
        builder.set_session_cache_mode(SslSessionCacheMode::OFF);
        // A client that renegotiates makes the server work; TLS 1.3 has none of it.
        builder.set_options(SslOptions::NO_RENEGOTIATION);
        // Without a context of its own OpenSSL refuses to resume sessions with client certificates.
        builder.set_session_id_context(b"udpferry")?;
        if let Some(path) = client_ca {
            let mut store = X509StoreBuilder::new()?;
            let mut names = Stack::<X509Name>::new()?;
            for authority in certificates(path)? {
                names.push(authority.subject_name().to_owned()?)?;
                store.add_cert(authority)?;
            }
            builder.set_verify_cert_store(store.build())?;
            // The file may hold an intermediate authority without its root.
            builder.verify_param_mut().set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
            builder.set_client_ca_list(names);
            builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        }
        if let Some(protocol) = alpn {
            let protocol = protocol.to_owned();
            builder.set_alpn_select_callback(move |_, offered| {
                let mut rest = offered;
                while let Some((len, names)) = rest.split_first() {
                    let (name, others) =
                        names.split_at_checked(usize::from(*len)).ok_or(AlpnError::ALERT_FATAL)?;
                    if name == protocol.as_bytes() {
                        return Ok(name);
                    }
                    rest = others;
                }
                Err(AlpnError::ALERT_FATAL)
            });
        }
        Ok(Acceptor { acceptor: builder.build(), wants_alpn: alpn.is_some() })
    }

    /// Wraps an accepted connection; nothing is sent or read yet.
    pub fn wrap<S: Read + Write>(&self, stream: S) -> Result<TlsStream<S>, TlsError> {
        let ssl = Ssl::new(self.acceptor.context())?;
        Ok(TlsStream { stream: SslStream::new(ssl, stream)?, wants_alpn: self.wants_alpn })
    }
}

/// The server's end of one TLS connection, over a non-blocking stream.
#[derive(Debug)]
pub struct TlsStream<S> {
    stream: SslStream<S>,
    wants_alpn: bool,
}

impl<S: Read + Write> TlsStream<S> {
    /// Goes on with the handshake. `WouldBlock` when it needs the other side; any other error ends
    /// it, with a text that says why.
    pub fn handshake(&mut self) -> io::Result<()> {
        self.stream.accept().map_err(|error| to_io(error, self.stream.ssl()))
    }

    /// Whether an application protocol was asked for and the handshake ended without one. To be
    /// asked after the handshake.
    pub fn lacks_alpn(&self) -> bool {
        self.wants_alpn && self.stream.ssl().selected_alpn_protocol().is_none()
    }

    /// The stream below.
    pub fn get_mut(&mut self) -> &mut S {
        self.stream.get_mut()
    }

    /// Tells the other side that nothing more comes, if it can be told without waiting.
    pub fn close(&mut self) {
        if !self.stream.get_shutdown().contains(ShutdownState::SENT) {
            // The connection ends whatever the answer is.
            let _ = self.stream.shutdown();
        }
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    /// 0 when the other side has closed, with or without saying so.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.stream.ssl_read(bytes) {
            Ok(len) => Ok(len),
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
            Err(error) => match to_io(error, self.stream.ssl()) {
                error if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                error => Err(error),
            },
        }
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    /// After `WouldBlock` the next call must begin with the same bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.stream.ssl_write(bytes).map_err(|error| to_io(error, self.stream.ssl()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().flush()
    }
}

fn to_io(error: openssl::ssl::Error, ssl: &openssl::ssl::SslRef) -> io::Error {
    match error.code() {
        ErrorCode::WANT_READ | ErrorCode::WANT_WRITE => io::ErrorKind::WouldBlock.into(),
        _ => {
            let verify = ssl.verify_result();
            if verify != openssl::x509::X509VerifyResult::OK {
                return io::Error::other(format!("{CLIENT_CERTIFICATE}{}", verify.error_string()));
            }
            match error.into_io_error() {
                Ok(error) => error,
                Err(error) => match error.ssl_error().and_then(|stack| stack.errors().first()) {
                    // OpenSSL 3 has a reason of its own for what was no error at all in 1.1.
                    Some(first) if first.reason() == Some("unexpected eof while reading") => {
                        io::ErrorKind::UnexpectedEof.into()
                    }
                    Some(first) => {
                        io::Error::other(first.reason().unwrap_or("protocol error").to_owned())
                    }
                    None => io::ErrorKind::UnexpectedEof.into(),
                },
            }
        }
    }
}

/// Whom a client believes, and who it is.
#[derive(Debug, Default)]
pub struct ClientTrust<'a> {
    /// Believe these certificates (a PEM file) instead of the system's.
    pub ca: Option<&'a Path>,
    /// Take whoever answers. For diagnosis only.
    pub any_server: bool,
    /// Take any server that the authorities know, whatever its name.
    pub any_name: bool,
    /// The application protocol to offer (ALPN).
    pub alpn: Option<&'a str>,
    /// What to show a server that asks for a certificate.
    pub identity: Option<&'a Identity>,
}

/// The client's side of TLS: TLS 1.2 at least.
pub fn connector(trust: &ClientTrust<'_>) -> Result<native_tls::TlsConnector, TlsError> {
    let mut builder = native_tls::TlsConnector::builder();
    builder.min_protocol_version(Some(native_tls::Protocol::Tlsv12));
    if let Some(path) = trust.ca {
        builder.disable_built_in_roots(true);
        for authority in certificates(path)? {
            let authority = native_tls::Certificate::from_pem(&authority.to_pem()?)?;
            builder.add_root_certificate(authority);
        }
    }
    if trust.any_server {
        builder.danger_accept_invalid_certs(true);
    }
    builder.danger_accept_invalid_hostnames(trust.any_name || trust.any_server);
    if let Some(protocol) = trust.alpn {
        builder.request_alpns(&[protocol]);
    }
    if let Some(identity) = trust.identity {
        builder.identity(identity.for_client()?);
    }
    Ok(builder.build()?)
}

/// A fresh certificate for `name`, signed by its own key (P-256), and that key, both PEM; valid
/// for a day. For self-tests, whose clients believe this one certificate.
pub fn self_signed(name: &str) -> Result<(Vec<u8>, Vec<u8>), TlsError> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut subject = X509NameBuilder::new()?;
    subject.append_entry_by_nid(Nid::COMMONNAME, name)?;
    let subject = subject.build();
    let mut builder = X509Builder::new()?;
    builder.set_version(2)?;
    let mut serial = BigNum::new()?;
    serial.rand(64, MsbOption::MAYBE_ZERO, false)?;
    builder.set_serial_number(Asn1Integer::from_bn(&serial)?.as_ref())?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(&subject)?;
    builder.set_pubkey(&key)?;
    builder.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
    builder.set_not_after(Asn1Time::days_from_now(1)?.as_ref())?;
    builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
    let names =
        SubjectAlternativeName::new().dns(name).build(&builder.x509v3_context(None, None))?;
    builder.append_extension(names)?;
    builder.sign(&key, MessageDigest::sha256())?;
    Ok((builder.build().to_pem()?, key.private_key_to_pem_pkcs8()?))
}

fn certificates(path: &Path) -> Result<Vec<X509>, TlsError> {
    let found = X509::stack_from_pem(&read(path)?).unwrap_or_default();
    if found.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|cause| TlsError::Unreadable { path: path.to_owned(), cause })
}
