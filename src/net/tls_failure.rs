//! What failures of TLS mean. The library tells them as text: OpenSSL's reasons.

/// Whether the server has refused the certificate that this client showed, or that it showed none
/// (alerts of RFC 8446 §6.2, which OpenSSL calls so). In TLS 1.3 it does so when the client's
/// handshake is over: as an error of the first read.
pub fn is_certificate_refused(error: &str) -> bool {
    const REFUSALS: [&str; 8] = [
        "alert certificate required",
        "alert bad certificate",
        "alert unsupported certificate",
        "alert certificate revoked",
        "alert certificate expired",
        "alert certificate unknown",
        "alert unknown ca",
        "alert access denied",
    ];
    REFUSALS.iter().any(|refusal| error.contains(refusal))
}

/// What a server's handshake begins its error with when it does not take the client's certificate.
pub(super) const CLIENT_CERTIFICATE: &str = "client certificate: ";

/// Whether a server's handshake failed for the client's certificate: none, or a bad one.
pub fn is_client_certificate_bad(error: &str) -> bool {
    error.starts_with(CLIENT_CERTIFICATE) || error.contains("peer did not return a certificate")
}

/// What a client's failure of TLS means, with the library's own reason, short, in parentheses: "the
/// server's certificate has expired (certificate verify failed: certificate has expired)". Texts
/// that are none of the library's, such as the system's, stay as they are.
pub fn in_plain_words(error: &str) -> String {
    let reason = reason_of(error);
    // OpenSSL before 3 wrote "self signed".
    let searched = reason.replace("self signed", "self-signed");
    let known = MEANINGS.iter().find(|(part, _)| searched.contains(part));
    match known {
        Some((_, meaning)) => format!("{meaning} ({reason})"),
        None => reason,
    }
}

/// Parts of OpenSSL's reasons (ssl/ssl_err.c, crypto/x509/x509_txt.c) and what they mean to a
/// client. The first that fits counts.
const MEANINGS: &[(&str, &str)] = &[
    ("unable to get local issuer", UNKNOWN_ISSUER),
    ("unable to get issuer certificate", UNKNOWN_ISSUER),
    ("unable to verify the first certificate", UNKNOWN_ISSUER),
    ("self-signed certificate in certificate chain", UNKNOWN_ISSUER),
    ("self-signed certificate", "the server's certificate is signed by itself, and not trusted"),
    ("verify failed: certificate has expired", "the server's certificate has expired"),
    (
        "verify failed: certificate is not yet valid",
        "the server's certificate is not valid yet, or a clock is wrong",
    ),
    ("hostname mismatch", OTHER_NAME),
    ("IP address mismatch", OTHER_NAME),
    ("certificate verify failed", "the server's certificate is not trusted"),
    ("alert certificate required", "the server wants a client certificate"),
    ("alert unknown ca", "the server does not know the client certificate's authority"),
    ("alert certificate expired", "the client certificate has expired"),
    ("alert certificate revoked", "the client certificate has been revoked"),
    ("alert bad certificate", REFUSED),
    ("alert unsupported certificate", REFUSED),
    ("alert certificate unknown", REFUSED),
    ("alert access denied", REFUSED),
    ("alert no application protocol", "the server takes another application protocol (ALPN)"),
    ("alert protocol version", NO_VERSION),
    ("unsupported protocol", NO_VERSION),
    (
        "alert handshake failure",
        "the server refused the handshake: it wants a client certificate, or has no cipher of ours",
    ),
    ("wrong version number", NO_TLS),
    ("packet length too long", NO_TLS),
    ("http request", NO_TLS),
    ("unexpected EOF", CLOSED),
    ("unexpected eof while reading", CLOSED),
];

const UNKNOWN_ISSUER: &str = "the server's certificate is from an authority that is not trusted";
const OTHER_NAME: &str = "the server's certificate is for another name";
const REFUSED: &str = "the server refused the client certificate";
const NO_VERSION: &str = "the server has no version of TLS that is good enough";
const NO_TLS: &str = "the server does not speak TLS";
const CLOSED: &str = "the server closed the connection";

/// The reason alone of `error:NUMBER:LIBRARY:FUNCTION:REASON:FILE:LINE:DATA (VERIFICATION)`, and
/// the verification's behind it.
fn reason_of(error: &str) -> String {
    let reason = error.strip_prefix("error:").and_then(|fields| fields.split(':').nth(3));
    let verification = error.rsplit_once(" (").and_then(|(_, text)| text.strip_suffix(')'));
    match (reason, verification) {
        (Some(reason), Some(verification)) => format!("{reason}: {verification}"),
        (Some(reason), None) => reason.to_owned(),
        (None, _) => error.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_certificate_is_told_from_other_alerts() {
        let alert = |what: &str| format!("error:0A000412:SSL routines:f:{what}:s.c:1:SSL alert");
        for refusal in [
            "tlsv13 alert certificate required",
            "tlsv1 alert unknown ca",
            "sslv3 alert bad certificate",
            "ssl/tls alert certificate expired",
        ] {
            assert!(is_certificate_refused(&alert(refusal)), "{refusal}");
        }
        for other in [
            "tlsv1 alert no application protocol",
            "tlsv1 alert internal error",
            "certificate verify failed",
        ] {
            assert!(!is_certificate_refused(&alert(other)), "{other}");
        }
    }

    #[test]
    fn each_failure_has_words_of_its_own() {
        let raw = |reason: &str| format!("error:0A000086:SSL routines:f:{reason}:ssl/x.c:1889:");
        let verify = |why: &str| raw("certificate verify failed") + &format!(" ({why})");
        let cases = [
            (verify("unable to get local issuer certificate"), "an authority that is not trusted"),
            (verify("self-signed certificate in certificate chain"), "authority that is not"),
            (verify("self signed certificate"), "is signed by itself"),
            (verify("certificate has expired"), "has expired"),
            (verify("certificate is not yet valid"), "not valid yet"),
            (verify("hostname mismatch"), "for another name"),
            (verify("IP address mismatch"), "for another name"),
            (verify("CRL has expired"), "is not trusted"),
            (raw("tlsv13 alert certificate required"), "the server wants a client certificate"),
            (raw("tlsv1 alert unknown ca"), "does not know the client certificate's authority"),
            (raw("sslv3 alert certificate expired"), "the client certificate has expired"),
            (raw("sslv3 alert bad certificate"), "the server refused the client certificate"),
            (raw("tlsv1 alert no application protocol"), "another application protocol"),
            (raw("tlsv1 alert protocol version"), "no version of TLS"),
            (raw("sslv3 alert handshake failure"), "the server refused the handshake"),
            (raw("wrong version number"), "the server does not speak TLS"),
            ("unexpected EOF".to_owned(), "the server closed the connection"),
        ];
        for (error, words) in cases {
            let text = in_plain_words(&error);
            let (meaning, reason) = text.split_once(" (").unwrap();
            assert!(meaning.contains(words), "{text}");
            assert!(reason.ends_with(')') && !reason.is_empty(), "{text}");
            for raw in ["error:", "SSL routines", "x.c", "1889"] {
                assert!(!text.contains(raw), "{text}");
            }
        }
        assert_eq!(
            in_plain_words(&verify("hostname mismatch")),
            "the server's certificate is for another name (certificate verify failed: hostname \
             mismatch)"
        );
        let two = format!("{}, {}", raw("bad signature"), raw("internal error"));
        assert_eq!(in_plain_words(&two), "bad signature");
        for text in ["Connection reset by peer (os error 104)", "no answer in time", "", "error:"] {
            assert_eq!(in_plain_words(text), text);
        }
    }
}
