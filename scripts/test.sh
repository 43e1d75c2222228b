#!/usr/bin/env bash
# Every check of the project: format, lints, build, documentation, scripts, and every test against a real ZooKeeper.
#
# Usage: scripts/test.sh [--docker] [CARGO TEST ARGUMENTS...]        (--help says more)
# Reads E2E, JAVA_HOME and CARGO_TARGET_DIR when they are set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=lib.sh
source scripts/lib.sh

usage() {
    cat <<'END'
Usage: scripts/test.sh [--docker] [CARGO TEST ARGUMENTS...]

Installs what is missing (apt-get, rustup component; says so before), then checks format, lints, documentation and scripts,
builds, and runs every test; those that need ZooKeeper start private servers of their own. It stops at the first step that
fails; the tests come last, so that a run ends with cargo's summaries. The arguments go to `cargo test`, for example:

  scripts/test.sh -p znode-paths              the tests of one crate
  scripts/test.sh --test transcript           one file of tests
  scripts/test.sh -- --nocapture              what the tests print, too

Without arguments, and where a Docker engine answers, the cluster of docker-compose.yml is built and tested, too; --docker does
only that. All containers, networks and volumes are removed afterwards. The images stay, so that the next time is quicker.

Tests that cut links need network namespaces, hence root. Where none can be made, that is said and they are skipped, unless
E2E=required is in the environment: then they fail.

Exit status: 0 when everything passed.
END
}

# step COMMAND...: says it, with the seconds since the start, and runs it.
step() {
    say "[$SECONDS s] $*"
    "$@" || die "[$SECONDS s] FAILED: $*"
}

need_components() {
    local missing=()
    cargo fmt --version >/dev/null 2>&1 || missing+=(rustfmt)
    cargo clippy --version >/dev/null 2>&1 || missing+=(clippy)
    ((${#missing[@]})) || return 0
    command -v rustup >/dev/null ||
        die "cargo has no ${missing[*]}: install the distribution's packages rustfmt and rust-clippy, or Rust by rustup"
    say "cargo has no ${missing[*]}: installing with rustup component add ${missing[*]}"
    rustup component add "${missing[@]}" || die "rustup component add ${missing[*]} failed"
}

# What this machine does not allow is said aloud; everything else that a test would skip fails (E2E=required).
allow_skips() {
    unshare --net --mount true 2>/dev/null && export E2E=required
    if [[ ${E2E:-} != required ]]; then
        say "NOT HERE: tests that cut links are skipped: this user may not make network namespaces (run as root)"
    fi
}

# Licences, sources and known holes of dependencies (deny.toml).
check_dependencies() {
    if ! cargo deny --version >/dev/null 2>&1; then
        say "NOT HERE: licences and sources of dependencies are not checked: there is no cargo-deny (cargo install cargo-deny --locked)"
        return
    fi
    step cargo deny --locked check licenses bans sources
    # Nothing is fetched in a test: `cargo deny fetch` gets the database, and gets it anew.
    if compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/*" >/dev/null; then
        step cargo deny --locked --offline check advisories
    else
        say "NOT HERE: no known holes are looked for: there is no copy of the database of advisories (cargo deny fetch)"
    fi
}

main() {
    case ${1:-} in
        -h | --help)
            usage
            exit
            ;;
        --docker)
            shift
            need_cargo
            install_missing linker
            need_docker
            step build_images
            step cargo build --workspace --locked
            exec cargo test --locked -p e2e --test containers --test package "$@" -- --nocapture
            ;;
    esac
    need_cargo
    install_missing linker zookeeper namespaces
    need_components

    if command -v shellcheck >/dev/null; then
        step shellcheck -x scripts/*.sh scripts/stand-ins/*/*.sh packaging/*.sh packaging/debian/p* .ci/run
    else
        say "NOT HERE: the scripts are not checked: there is no shellcheck (apt-get install shellcheck)"
    fi
    command -v promtool >/dev/null ||
        say "NOT HERE: the rules for alerts are not checked: there is no promtool (apt-get install prometheus)"
    check_dependencies
    step cargo fmt --all --check
    step cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS=-Dwarnings step cargo doc --workspace --no-deps --locked
    # The end-to-end tests run these binaries.
    step cargo build --workspace --locked

    # None of the daemons' own variables may leak into those that the tests start.
    unset "${!ZK_@}" RUST_LOG
    allow_skips
    if (($#)); then
        say "NOT NOW: the cluster in containers is tested without arguments, or with --docker"
    elif docker info >/dev/null 2>&1 && compose version >/dev/null 2>&1; then
        step build_images
    else
        say "NOT HERE: the cluster in containers is not tested: no Docker engine answers, or there is no docker-compose"
    fi
    # All packages, unless the arguments choose some (--workspace would win over them).
    (($#)) || set -- --workspace
    say "[$SECONDS s] cargo test --locked --no-fail-fast $*"
    exec cargo test --locked --no-fail-fast "$@"
}

main "$@"
