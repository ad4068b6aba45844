//! Verifies the server's certificate, as libpq does.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, ServerName, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::net::IpAddr;
use std::time::SystemTime;
use x509_cert::der::asn1::{AnyRef, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::oid::db::rfc4519::CN;
use x509_cert::der::oid::db::rfc5280::{
    ID_CE_BASIC_CONSTRAINTS, ID_CE_CERTIFICATE_POLICIES, ID_CE_EXT_KEY_USAGE, ID_CE_KEY_USAGE,
    ID_CE_NAME_CONSTRAINTS, ID_CE_SUBJECT_ALT_NAME, ID_KP_SERVER_AUTH,
};
use x509_cert::der::{Decode, Encode, Tag, Tagged};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};
use x509_cert::{Certificate, Version};

/// The trusted certificates: as in OpenSSL, those that name themselves as issuer. Others in the
/// same file only help to build a chain to one of those.
#[derive(Debug)]
pub struct Roots {
    /// Those that may issue certificates, which webpki does not check.
    store: RootCertStore,
    /// The certificates themselves: a server's own may be among them.
    trusted: Vec<CertificateDer<'static>>,
    others: Vec<CertificateDer<'static>>,
    /// How many authorities may stand between any of them and a server.
    depth: u8,
}

impl Roots {
    /// Takes the certificates of a file.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Roots {
        let names_itself = |certificate: &CertificateDer<'_>| {
            parse(certificate)
                .is_ok_and(|parsed| parsed.tbs_certificate.issuer == parsed.tbs_certificate.subject)
        };
        let (trusted, others): (Vec<_>, Vec<_>) = certificates.into_iter().partition(names_itself);
        let mut store = RootCertStore::empty();
        let mut depth = 0;
        for root in &trusted {
            let limit = parse(root).ok().and_then(|parsed| authority(&parsed));
            if let Some(limit) = limit {
                store.add_parsable_certificates([root.clone()]);
                depth = depth.max(limit);
            }
        }
        Roots {
            store,
            trusted,
            others,
            depth,
        }
    }

    /// Whether one of them that may issue certificates has signed this one.
    fn have_signed(
        &self,
        certificate: &Certificate,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> bool {
        let roots = self.trusted.iter().filter_map(|root| parse(root).ok());
        let mut issuers = roots.filter(|root| {
            root.tbs_certificate.subject == certificate.tbs_certificate.issuer
                && authority(root).is_some()
        });
        issuers.any(|root| has_signed(&root, certificate, algorithms).unwrap_or(false))
    }
}

/// Whether the certificate's signature was made with the issuer's key.
fn has_signed(
    issuer: &Certificate,
    certificate: &Certificate,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<bool, x509_cert::der::Error> {
    let key = &issuer.tbs_certificate.subject_public_key_info;
    let message = certificate.tbs_certificate.to_der()?;
    // webpki identifies algorithms by the contents of the outermost sequence.
    let within = |der: Vec<u8>| AnyRef::from_der(&der).map(|any| any.value().to_vec());
    let signature_id = within(certificate.signature_algorithm.to_der()?)?;
    let key_id = within(key.algorithm.to_der()?)?;
    Ok(algorithms.iter().any(|algorithm| {
        let key = key.subject_public_key.raw_bytes();
        let signature = certificate.signature.raw_bytes();
        algorithm.signature_alg_id().as_ref() == signature_id
            && algorithm.public_key_alg_id().as_ref() == key_id
            && algorithm.verify_signature(key, &message, signature).is_ok()
    }))
}

/// The requirements on a server's certificate.
#[derive(Debug)]
pub struct Trust {
    /// The issuers to accept; `None` accepts any.
    pub roots: Option<Roots>,
    /// The host that it must be for.
    pub host: Option<String>,
    /// The supported signature algorithms.
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            if roots.trusted.iter().any(|root| root == certificate) {
                // `openssl req -x509` makes a certificate that is server and authority at once: a
                // chain of one.
                verify_time(certificate, now)?;
                if !serves(&parse(certificate)?) {
                    return Err(CertificateError::InvalidPurpose.into());
                }
            } else {
                let parsed = parse(certificate)?;
                if is_old(&parsed) {
                    verify_time(certificate, now)?;
                    if !roots.have_signed(&parsed, self.algorithms.all) {
                        return Err(CertificateError::UnknownIssuer.into());
                    }
                } else if intermediates.len() > usize::from(roots.depth) {
                    return Err(CertificateError::UnknownIssuer.into());
                } else {
                    let others = intermediates.iter().chain(&roots.others).cloned();
                    verify_server_cert_signed_by_trust_anchor(
                        &ParsedCertificate::try_from(certificate)?,
                        &roots.store,
                        &others.collect::<Vec<_>>(),
                        now,
                        self.algorithms.all,
                    )?;
                }
            }
        }
        if let Some(host) = &self.host {
            verify_host(&parse(certificate)?, host)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if is_old(&parse(certificate)?) {
            return self.verify_with_bare_key(message, certificate, signature);
        }
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if is_old(&parse(certificate)?) {
            return self.verify_with_bare_key(message, certificate, signature);
        }
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Trust {
    /// Whether the server has the key of its certificate, of which only the key is read.
    fn verify_with_bare_key(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = parse(certificate)?.tbs_certificate.subject_public_key_info;
        let key = key.to_der().map_err(|_| CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(key);
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

/// Whether it is X.509 before version 3, which webpki refuses to read: it has no extensions.
/// `openssl x509 -req`, as used in PostgreSQL's manual, makes such certificates.
fn is_old(certificate: &Certificate) -> bool {
    certificate.tbs_certificate.version != Version::V3
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding.into())
}

/// Whether a server, or the issuer of a server's certificate, may use it.
fn serves(certificate: &Certificate) -> bool {
    match certificate.tbs_certificate.get::<ExtendedKeyUsage>() {
        Ok(None) => true,
        Ok(Some((_, usages))) => usages.0.contains(&ID_KP_SERVER_AUTH),
        Err(_) => false,
    }
}

/// If it may issue certificates now: how many authorities it allows below itself, as far as it
/// says.
fn authority(certificate: &Certificate) -> Option<u8> {
    const UNDERSTOOD: [ObjectIdentifier; 6] = [
        ID_CE_BASIC_CONSTRAINTS,
        ID_CE_KEY_USAGE,
        ID_CE_EXT_KEY_USAGE,
        ID_CE_SUBJECT_ALT_NAME,
        ID_CE_NAME_CONSTRAINTS,
        ID_CE_CERTIFICATE_POLICIES,
    ];
    let about = &certificate.tbs_certificate;
    let (_, constraints) = about.get::<BasicConstraints>().ok()??;
    let signs = match about.get::<KeyUsage>().ok()? {
        Some((_, usage)) => usage.key_cert_sign(),
        None => true,
    };
    let mut extensions = about.extensions.iter().flatten();
    let understood =
        extensions.all(|extension| !extension.critical || UNDERSTOOD.contains(&extension.extn_id));
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    let valid = about.validity.not_before.to_unix_duration() <= now
        && now <= about.validity.not_after.to_unix_duration();
    (constraints.ca && signs && understood && valid && serves(certificate))
        .then_some(constraints.path_len_constraint.unwrap_or(u8::MAX))
}

fn verify_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let validity = parse(certificate)?.tbs_certificate.validity;
    let now = now.as_secs();
    if now < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// Whether the certificate is for this host. The common name counts if there are no alternative
/// names of the host's kind.
fn verify_host(certificate: &Certificate, host: &str) -> Result<(), Error> {
    let address: Option<IpAddr> = host.parse().ok();
    let alternatives = certificate.tbs_certificate.get::<SubjectAltName>();
    let alternatives = alternatives.map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let names = alternatives.map_or(Vec::new(), |(_, names)| names.0);
    let mut common_counts = true;
    let mut found = Vec::new();
    for name in &names {
        match name {
            GeneralName::DnsName(name) => {
                common_counts &= address.is_some();
                if matches(name.as_str(), host) {
                    return Ok(());
                }
                found.push(name.as_str().to_owned());
            }
            GeneralName::IpAddress(bytes) => {
                common_counts &= address.is_none();
                let is_it = address.is_some_and(|address| match address {
                    IpAddr::V4(address) => address.octets() == bytes.as_bytes(),
                    IpAddr::V6(address) => address.octets() == bytes.as_bytes(),
                });
                if is_it {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    if common_counts {
        if let Some(name) = common_name(certificate) {
            if matches(&name, host) {
                return Ok(());
            }
            found.push(name);
        }
    }
    Err(Error::General(format!(
        "the server's certificate is for {}, and not for the host {host:?}",
        if found.is_empty() {
            "nobody".to_owned()
        } else {
            format!("{found:?}")
        }
    )))
}

fn common_name(certificate: &Certificate) -> Option<String> {
    let names = certificate.tbs_certificate.subject.0.iter();
    let mut names = names.flat_map(|names| names.0.iter());
    let value = &names.find(|name| name.oid == CN)?.value;
    let text = match value.tag() {
        Tag::PrintableString => PrintableStringRef::try_from(value)
            .ok()?
            .as_str()
            .to_owned(),
        Tag::TeletexString => TeletexStringRef::try_from(value).ok()?.as_str().to_owned(),
        _ => Utf8StringRef::try_from(value).ok()?.as_str().to_owned(),
    };
    Some(text)
}

/// Whether a name in a certificate matches this host: it may begin with `*.`, which stands for one
/// label.
fn matches(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let Some(domain) = name
        .strip_prefix('*')
        .filter(|domain| domain.starts_with('.'))
    else {
        return false;
    };
    let Some((label, rest)) = host.find('.').map(|dot| host.split_at(dot)) else {
        return false;
    };
    !label.is_empty() && domain.len() > 1 && domain.eq_ignore_ascii_case(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        for (name, host, expected) in [
            ("db.example.org", "DB.example.org", true),
            ("*.example.org", "db.example.org", true),
            ("*.example.org", "db.eu.example.org", false),
            ("*.example.org", "example.org", false),
            ("*.example.org", ".example.org", false),
            ("*", "db", false),
            ("*.", "db.", false),
            ("d*.example.org", "db.example.org", false),
            ("db.example.org", "db.example.org.evil", false),
        ] {
            assert_eq!(matches(name, host), expected, "{name} {host}");
        }
    }
}
