//! The Debian package, installed on a Debian that has nothing else.

use std::{path::Path, process::Command};

use e2e::{Compose, compose::docker};

/// As its `FROM` says.
const DEBIAN: &str = "debian:bookworm-slim";

#[test]
fn the_package_installs_programs_and_units_that_systemd_accepts() {
    if let Err(lack) = Compose::new() {
        eprintln!("skipped: {lack}");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory can be made");
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/build-deb.sh");
    let built = Command::new(build).arg(dir.path()).env("PROFILE", "dev").output().expect("it can be started");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let package = String::from_utf8_lossy(&built.stdout);
    let package = Path::new(package.trim_end()).file_name().expect("it prints a path").to_string_lossy();

    let script = format!(
        "set -e; export DEBIAN_FRONTEND=noninteractive; exec 3>&1 >&2
         apt-get update -q; apt-get install -q -y --no-install-recommends systemd /package/{package}; exec >&3
         for program in zk-master zk-worker zk-client; do $program --version; done
         stat --format '%U %a %n' /etc/default/zk-master /etc/default/zk-worker; id -un zk-master; id -un zk-worker
         dpkg -L zk-tasks
         systemctl is-enabled zk-master zk-worker || true
         systemd-analyze verify --man=no zk-master.service zk-worker.service 2>&1 && echo verified
         systemd-analyze security --offline=yes zk-master.service zk-worker.service | grep -o 'exposure level for .*'
         apt-get purge -q -y zk-tasks >&2; ls /usr/bin | grep ^zk- || echo purged"
    );
    let mount = format!("{}:/package:ro", dir.path().display());
    let says = docker(&["run", "--rm", "--volume", &mount, DEBIAN, "sh", "-c", &script]);
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        format!("zk-master {version}"),
        format!("zk-worker {version}"),
        format!("zk-client {version}"),
        "root 644 /etc/default/zk-worker".to_owned(),
        "zk-master".to_owned(),
        "zk-worker".to_owned(),
        "/usr/share/man/man1/zk-worker.1.gz".to_owned(),
        "/usr/share/man/man1/zk-client-submit.1.gz".to_owned(),
        "/usr/share/bash-completion/completions/zk-client".to_owned(),
        "/usr/share/zsh/vendor-completions/_zk-client".to_owned(),
        "/usr/share/fish/vendor_completions.d/zk-client.fish".to_owned(),
        "/usr/share/doc/zk-tasks/examples/grafana/zk-tasks.json".to_owned(),
        "disabled".to_owned(),
        "verified".to_owned(),
        "purged".to_owned(),
    ] {
        assert!(says.lines().any(|said| said == line), "{line:?} is missing:\n{says}");
    }
    for (unit, at_most) in [("zk-master", 2.0), ("zk-worker", 5.5)] {
        let prefix = format!("exposure level for {unit}.service: ");
        let level = says.lines().find_map(|line| line.strip_prefix(&prefix)).and_then(|rest| rest.split(' ').next());
        let level: f64 = level.and_then(|level| level.parse().ok()).expect("systemd judges it");
        assert!(level <= at_most, "{unit}: {level}");
    }
}
