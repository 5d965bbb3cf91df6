//! What a certificate says of itself, for people.

use super::tls::TlsError;
use openssl::asn1::Asn1Time;
use openssl::nid::Nid;
use openssl::x509::{X509, X509NameRef};
use std::net::IpAddr;

/// The parts of a certificate that decide whether a client takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The names and addresses that it is for; its subject if it lists none.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Whether it is signed with its own key, so that it is its own authority.
    pub is_self_signed: bool,
    /// Its last second, such as `Nov 21 12:00:00 2027 GMT`.
    pub not_after: String,
    /// Whole days until then; negative when it has expired.
    pub days_left: i64,
    /// Whether its time has not begun yet.
    pub is_early: bool,
}

/// Reads a certificate in DER form.
pub fn summarize(der: &[u8]) -> Result<Summary, TlsError> {
    let certificate = X509::from_der(der)?;
    let now = Asn1Time::days_from_now(0)?;
    let left = now.diff(certificate.not_after())?;
    let own = certificate.public_key()?;
    Ok(Summary {
        names: names(&certificate),
        issuer: text_of(certificate.issuer_name()),
        is_self_signed: certificate.verify(&own).unwrap_or(false),
        not_after: certificate.not_after().to_string(),
        days_left: i64::from(left.days) - i64::from(left.secs < 0),
        is_early: now < certificate.not_before(),
    })
}

/// RFC 6125: the names of the extension count, and the subject only without them.
fn names(certificate: &X509) -> Vec<String> {
    let mut names = Vec::new();
    for name in certificate.subject_alt_names().into_iter().flatten() {
        if let Some(name) = name.dnsname() {
            names.push(name.to_owned());
        } else if let Some(address) = name.ipaddress() {
            let address = <[u8; 4]>::try_from(address)
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from));
            names.extend(address.map(|address| address.to_string()));
        }
    }
    if names.is_empty() {
        names.push(text_of(certificate.subject_name()));
    }
    names
}

/// The common name, else the organisation, else nothing to show.
fn text_of(name: &X509NameRef) -> String {
    [Nid::COMMONNAME, Nid::ORGANIZATIONNAME]
        .into_iter()
        .find_map(|part| name.entries_by_nid(part).next())
        .and_then(|entry| entry.data().to_string().ok())
        .unwrap_or_else(|| "nobody".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tls::self_signed;

    #[test]
    fn a_certificate_tells_its_name_its_issuer_and_its_end() {
        let (pem, _) = self_signed("pool.example").unwrap();
        let der = X509::from_pem(&pem).unwrap().to_der().unwrap();
        let summary = summarize(&der).unwrap();
        assert_eq!(summary.names, ["pool.example"]);
        assert!(summary.is_self_signed && !summary.is_early);
        // Made for a day.
        assert!((0..=1).contains(&summary.days_left), "{summary:?}");
        assert!(summary.not_after.ends_with("GMT"), "{summary:?}");
        assert!(!summary.issuer.is_empty());
        assert!(summarize(b"no certificate").is_err());
    }
}
