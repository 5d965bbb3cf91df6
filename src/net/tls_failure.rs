//! What a client's failures of TLS mean. The library tells them as text: OpenSSL's reasons.

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
}
