//! Certificates of the tests' own: authorities, what they sign, and keys in every encoding.

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::symm::Cipher;
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder};

/// A certificate and its key.
pub struct Issued {
    pub certificate: X509,
    pub key: PKey<Private>,
}

/// The name in every certificate that is no authority's, beside 127.0.0.1.
pub const SERVER: &str = "gateway.test";

pub fn ec_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

pub fn rsa_key() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

/// Signs itself.
pub fn authority(name: &str) -> Issued {
    let key = ec_key();
    let certificate = build(name, &key, None, true);
    Issued { certificate, key }
}

impl Issued {
    /// An authority below this one.
    pub fn authority(&self, name: &str) -> Issued {
        let key = ec_key();
        let certificate = build(name, &key, Some(self), true);
        Issued { certificate, key }
    }

    /// A certificate for [`SERVER`] or a client, signed by this authority.
    pub fn issue(&self) -> Issued {
        self.issue_for(ec_key())
    }

    pub fn issue_for(&self, key: PKey<Private>) -> Issued {
        let certificate = build(SERVER, &key, Some(self), false);
        Issued { certificate, key }
    }

    /// A certificate for [`SERVER`] that has not been valid since 2001.
    pub fn issue_expired(&self) -> Issued {
        let key = ec_key();
        let mut builder = unsigned(SERVER, &key, Some(self), false);
        builder.set_not_before(&Asn1Time::from_unix(946_684_800).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::from_unix(978_307_200).unwrap()).unwrap();
        builder.sign(&self.key, MessageDigest::sha256()).unwrap();
        Issued { certificate: builder.build(), key }
    }

    pub fn pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    pub fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().unwrap()
    }

    /// PKCS#1 or SEC1, by the kind of key.
    pub fn old_key_pem(&self) -> Vec<u8> {
        match self.key.rsa() {
            Ok(rsa) => rsa.private_key_to_pem().unwrap(),
            Err(_) => self.key.ec_key().unwrap().private_key_to_pem().unwrap(),
        }
    }

    pub fn encrypted_key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), b"secret").unwrap()
    }

    pub fn serial(&self) -> String {
        serial(&self.certificate)
    }
}

pub fn serial(certificate: &X509) -> String {
    certificate.serial_number().to_bn().unwrap().to_hex_str().unwrap().to_string()
}

fn name_of(name: &str) -> X509Name {
    let mut builder = X509NameBuilder::new().unwrap();
    builder.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
    builder.build()
}

fn build(name: &str, key: &PKey<Private>, issuer: Option<&Issued>, is_authority: bool) -> X509 {
    let mut builder = unsigned(name, key, issuer, is_authority);
    builder.sign(issuer.map_or(key, |issuer| &issuer.key), MessageDigest::sha256()).unwrap();
    builder.build()
}

fn unsigned(
    name: &str,
    key: &PKey<Private>,
    issuer: Option<&Issued>,
    is_authority: bool,
) -> X509Builder {
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    let mut serial = BigNum::new().unwrap();
    serial.rand(64, MsbOption::ONE, false).unwrap();
    builder.set_serial_number(serial.to_asn1_integer().unwrap().as_ref()).unwrap();
    let subject = name_of(name);
    builder.set_subject_name(&subject).unwrap();
    let issuer_name = issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name());
    builder.set_issuer_name(issuer_name).unwrap();
    builder.set_pubkey(key).unwrap();
    builder.set_not_before(Asn1Time::days_from_now(0).unwrap().as_ref()).unwrap();
    builder.set_not_after(Asn1Time::days_from_now(1).unwrap().as_ref()).unwrap();
    if is_authority {
        builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    } else {
        let mut names = SubjectAlternativeName::new();
        let names = names.dns(name).ip("127.0.0.1");
        let context = builder.x509v3_context(None, None);
        let extension = names.build(&context).unwrap();
        builder.append_extension(extension).unwrap();
    }
    builder
}
