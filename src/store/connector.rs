//! TLS for a session: rustls over our stream, configured as libpq would.

use super::auth::Watch;
use super::stream::{Stream, show};
use super::tls::{Mode, Tls};
use super::trust::{Roots, Trust};
use super::url::RequireAuth;
use crate::error::{Error, Result};
use ring::digest;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys};
use std::fs;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc5912::{
    ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, SHA_1_WITH_RSA_ENCRYPTION,
    SHA_256_WITH_RSA_ENCRYPTION, SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
};

/// Secures a connection, if TLS is wanted.
#[derive(Clone)]
pub struct Connector {
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Which authentication methods the server may ask for.
    required: Option<RequireAuth>,
}

impl Connector {
    /// For a connection without TLS.
    pub fn plain() -> Connector {
        Connector {
            tls: None,
            required: None,
        }
    }

    /// The same, with a restriction on the authentication methods.
    #[must_use]
    pub fn requiring(self, required: Option<RequireAuth>) -> Connector {
        Connector { required, ..self }
    }

    /// Watches what the server sends, from the first byte on.
    pub fn watch(&self) -> Option<Watch> {
        let required = self.required.clone()?;
        Some(Watch::new(required, self.tls.is_some()))
    }

    /// For a TLS connection to this host; reads the certificate files again.
    pub fn new(tls: &Tls, host: &str) -> Result<Connector> {
        let provider = Arc::new(default_provider());
        let trust = Trust {
            roots: roots(tls)?,
            host: (tls.mode == Mode::VerifyFull).then(|| host.to_owned()),
            algorithms: provider.signature_verification_algorithms,
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Configuration(format!("TLS is not available: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust));
        let mut config = match identity(tls)? {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = provider.key_provider.load_private_key(key);
                let key = key.map_err(|error| refuse("sslkey", &error))?;
                let identity = CertifiedKey::new(chain, key);
                // If we cannot tell (X.509 version 1), the server will.
                if let Err(error @ rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) =
                    identity.keys_match()
                {
                    return Err(refuse("sslcert and sslkey", &error));
                }
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
        };
        // The host name for SNI. Addresses are not sent.
        let name = ServerName::try_from(host.to_owned()).unwrap_or_else(|_| {
            config.enable_sni = false;
            ServerName::from(IpAddr::from([0, 0, 0, 0]))
        });
        Ok(Connector {
            tls: Some((Arc::new(config), name)),
            required: None,
        })
    }
}

/// An error about an option.
fn refuse(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
    Error::Configuration(format!("{what}: {why}"))
}

/// A file in libpq's folder.
fn default_file(name: &str) -> Option<PathBuf> {
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty())?;
    Some(home.join(".postgresql").join(name))
}

/// A file that may be missing.
fn existing(given: Option<&PathBuf>, default: &str) -> Option<PathBuf> {
    let path = given.cloned().or_else(|| default_file(default))?;
    path.exists().then_some(path)
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = format!("{option}={}", path.display());
    let read = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
        .map_err(|error| refuse(&shown, error))?;
    if read.is_empty() {
        return Err(refuse(&shown, "there is no certificate in it"));
    }
    Ok(read)
}

/// The trusted certificates; `None` to accept any. As in libpq, an existing file is used in every
/// mode, and only `verify-…` requires one.
fn roots(tls: &Tls) -> Result<Option<Roots>> {
    use super::tls::Roots::{Default, File, System};
    let certificates = match &tls.roots {
        System => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err(refuse(
                    "sslrootcert=system",
                    "the operating system has no certificates",
                ));
            }
            found.certs
        }
        Default | File(_) => {
            let given = match &tls.roots {
                File(path) => Some(path),
                _ => None,
            };
            match existing(given, "root.crt") {
                Some(path) => certificates("sslrootcert", &path)?,
                None if matches!(tls.mode, Mode::VerifyCa | Mode::VerifyFull) => {
                    let path = given.cloned().or_else(|| default_file("root.crt"));
                    let path = path.unwrap_or_default();
                    return Err(refuse(
                        "sslmode=verify-ca and verify-full need root certificates",
                        format!(
                            "there is no file {}; name one with sslrootcert, or \
                             sslrootcert=system for those of the operating system",
                            path.display()
                        ),
                    ));
                }
                None => return Ok(None),
            }
        }
    };
    Ok(Some(Roots::new(certificates)))
}

/// Our identity: a chain of certificates and the key of the first.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(tls: &Tls) -> Result<Option<Identity>> {
    let Some(path) = existing(tls.certificate.as_ref(), "postgresql.crt") else {
        return Ok(None);
    };
    let chain = certificates("sslcert", &path)?;
    let key = tls.key.clone().or_else(|| default_file("postgresql.key"));
    let key = key.unwrap_or_default();
    let shown = format!("sslkey={}", key.display());
    let about = fs::metadata(&key).map_err(|error| refuse(&shown, error))?;
    // A key file of root's may be group-readable.
    let allowed = if about.uid() == 0 { 0o740 } else { 0o700 };
    if !about.is_file() {
        return Err(refuse(&shown, "it is not a file"));
    }
    if about.uid() != 0 && about.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refuse(
            &shown,
            "it must belong to the user of this process, or to root",
        ));
    }
    if about.mode() & 0o777 & !allowed != 0 {
        return Err(refuse(
            &shown,
            "others can read it; its mode must be 0600 or less, or 0640 if it is root's",
        ));
    }
    let key = PrivateKeyDer::from_pem_file(&key)
        .map_err(|error| refuse(&shown, format!("{error}; an encrypted key cannot be used")))?;
    Ok(Some((chain, key)))
}

impl TlsConnect<Stream> for Connector {
    type Stream = TlsStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TlsStream>> + Send>>;

    fn connect(self, stream: Stream) -> Self::Future {
        Box::pin(async move {
            let Some((config, name)) = self.tls else {
                return Err(io::Error::other("TLS was not asked for"));
            };
            let connector = tokio_rustls::TlsConnector::from(config);
            let watch = self.required.map(|required| Watch::new(required, false));
            let secured = connector.connect(name, stream).await?;
            Ok(TlsStream(secured, watch))
        })
    }
}

/// A secured connection.
pub struct TlsStream(tokio_rustls::client::TlsStream<Stream>, Option<Watch>);

impl tokio_postgres::tls::TlsStream for TlsStream {
    /// The hash of the server's certificate, with the hash function of its signature
    /// (RFC 5929). Some signatures have none, or hide it; then there is no channel binding.
    fn channel_binding(&self) -> ChannelBinding {
        let (_, session) = self.0.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let hash = certificate.and_then(|certificate| {
            let parsed = Certificate::from_der(certificate).ok()?;
            let algorithm = match parsed.signature_algorithm.oid {
                SHA_1_WITH_RSA_ENCRYPTION | SHA_256_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_256 => {
                    &digest::SHA256
                }
                SHA_384_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_384 => &digest::SHA384,
                SHA_512_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_512 => &digest::SHA512,
                _ => return None,
            };
            Some(digest::digest(algorithm, certificate).as_ref().to_vec())
        });
        hash.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        if self.1.is_some() && matches!(read, Poll::Ready(Ok(()))) {
            return Poll::Ready(show(&mut self.1, &buffer.filled()[before..]));
        }
        read
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
