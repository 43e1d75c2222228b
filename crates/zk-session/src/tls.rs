//! TLS: whom to believe, who we are, and what went wrong, in words that say which option is meant.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, InconsistentKeys, RootCertStore};

/// How to speak TLS with the servers.
///
/// The chain of a server's certificate is verified up to one of the authorities that are given here, and no others; its name
/// is that of the connect string, or the one given here.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

/// Why TLS cannot be spoken with what was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// Nobody could be believed.
    #[error("--tls-ca holds no certificate in PEM form: {0}")]
    Authorities(String),
    /// We could not show who we are.
    #[error("--tls-cert holds no certificate in PEM form: {0}")]
    Certificate(String),
    /// The certificate could not be proved to be ours.
    #[error("--tls-key holds no private key in PEM form that can be used: {0}")]
    Key(String),
    /// Likewise.
    #[error("the certificate of --tls-cert is not for the key of --tls-key")]
    Mismatch,
    /// No certificate can be for it.
    #[error("--tls-name is not a host name or an IP address: {0:?}")]
    Name(String),
}

impl Tls {
    /// With the certificates of authorities, our own certificate and its key, all as PEM texts; and the name that servers'
    /// certificates are for, where it is not that of the connect string.
    ///
    /// # Errors
    /// What cannot be used.
    pub fn new(authorities: &[u8], own: Option<(&[u8], &[u8])>, name: Option<&str>) -> Result<Tls, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(authorities).map_err(TlsError::Authorities)? {
            roots.add(authority).map_err(|error| TlsError::Authorities(error.to_string()))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has what these versions need")
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate).map_err(TlsError::Certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Key(error.to_string()))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch,
                    rustls::Error::InvalidCertificate(_) => TlsError::Certificate(error.to_string()),
                    error => TlsError::Key(error.to_string()),
                })?
            }
        };
        // A session that is resumed is not verified again.
        config.resumption = Resumption::disabled();
        let name = name.map(|name| server_name(name).ok_or_else(|| TlsError::Name(name.to_owned()))).transpose()?;
        Ok(Tls { config: Arc::new(config), name })
    }

    /// For a server at this host of a connect string, `name:port`.
    pub(crate) fn to(&self, host: &str) -> io::Result<Peer> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => {
                let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
                let name = name.trim_start_matches('[').trim_end_matches(']');
                server_name(name).ok_or_else(|| io::Error::other("no certificate can be for that name (--tls-name)"))?
            }
        };
        Ok(Peer { config: self.config.clone(), name })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| error.to_string())?;
    if found.is_empty() { Err("there is none".to_owned()) } else { Ok(found) }
}

fn server_name(name: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).ok()
}

/// Whom to speak TLS with.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Peer {
    /// Makes sure, over this stream, who is there.
    pub(crate) fn shake_hands(&self, stream: &mut (impl io::Read + io::Write)) -> io::Result<ClientConnection> {
        let mut tls = ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(stream).map_err(explained)?;
        }
        Ok(tls)
    }
}

/// An error of a TLS connection, in words that say what can be done about it.
pub(crate) fn explained(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return io::Error::new(
            error.kind(),
            "it closed the connection during the TLS handshake: is this its secureClientPort?",
        );
    }
    let Some(why) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else { return error };
    io::Error::other(sentence(why))
}

fn sentence(error: &rustls::Error) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is not of an authority in --tls-ca".to_owned()
        }
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired".to_owned()
        }
        InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not valid yet".to_owned()
        }
        InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented }) => {
            // They are written `DnsName("host")` and `IpAddress(10.0.0.1)`.
            let bare = |name: &String| {
                let (_kind, bare) = name.split_once('(').unwrap_or(("", name));
                bare.trim_end_matches(')').trim_matches('"').to_owned()
            };
            let presented: Vec<String> = presented.iter().map(bare).collect();
            format!("its certificate is not for {} but for {} (--tls-name)", expected.to_str(), presented.join(", "))
        }
        InvalidCertificate(CertificateError::NotValidForName) => {
            "its certificate is for another name (--tls-name)".to_owned()
        }
        // What a server says that wants a certificate and got none, or not one that it accepts, depends on the version of TLS.
        AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => format!("it wants a client certificate that it trusts (--tls-cert, --tls-key): {error}"),
        InvalidMessage(_) => "its answer is not TLS: is this its secureClientPort?".to_owned(),
        error => format!("TLS: {error}"),
    }
}
