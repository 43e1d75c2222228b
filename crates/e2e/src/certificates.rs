//! Certificates, good ones and bad ones.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

use crate::janitor;

/// Somebody who signs certificates. Dropping it removes them.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Issued {
    /// A file with the certificate.
    pub certificate: PathBuf,
    /// A file with its key, which only we can read.
    pub key: PathBuf,
    /// A file with both, as ZooKeeper wants them.
    pub both: PathBuf,
}

impl Authority {
    /// One that signs nothing that another one has signed.
    #[must_use]
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("it has no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("it signs itself");
        let dir = TempDir::new_in(janitor::workshop()).expect("a temporary directory can be made");
        fs::write(dir.path().join("ca.pem"), issuer.pem()).expect("a file can be written");
        Authority { issuer, dir }
    }

    /// The file with its certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for these names and addresses.
    #[must_use]
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_until(names, 2999)
    }

    /// One that has expired long ago.
    #[must_use]
    pub fn issue_expired(&self, names: &[&str]) -> Issued {
        self.issue_until(names, 2001)
    }

    fn issue_until(&self, names: &[&str], year: i32) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the names are of certificates");
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("it can be signed").pem();
        let dir = tempfile::tempdir_in(&self.dir).expect("a directory can be made").keep();
        let (files, key) = (["certificate.pem", "key.pem", "both.pem"].map(|name| dir.join(name)), key.serialize_pem());
        let [certificate_file, key_file, both] = files;
        fs::write(&certificate_file, &certificate).expect("a file can be written");
        write_secret(&key_file, &key);
        write_secret(&both, &format!("{key}{certificate}"));
        Issued { certificate: certificate_file, key: key_file, both }
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

fn write_secret(file: &Path, text: &str) {
    fs::write(file, text).expect("a file can be written");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("it is ours");
}
