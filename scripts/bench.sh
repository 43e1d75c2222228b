#!/usr/bin/env bash
# The figures of the project, each beside what the machine itself does in the same run.
#
# Usage: scripts/bench.sh [--quick] [--ensemble] [--json] [FIGURE...]        (--help says more)
# Reads JAVA_HOME and CARGO_TARGET_DIR when they are set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=lib.sh
source scripts/lib.sh

usage() {
    cat <<'END'
Usage: scripts/bench.sh [--quick] [--ensemble] [--json] [FIGURE...]

Installs what is missing (apt-get; says so before), builds everything for release, starts ZooKeeper servers of its own on
127.0.0.1, each transaction forced to the disk, and measures: throughput, latency, growth, takeover, workers, idle, size,
capacity; or only those that are named. Beside each figure that has a goal stands the goal; docs/performance.md says what they mean.

  --quick      a tenth of everything: about a minute, and noisier
  --ensemble   three ZooKeeper servers instead of one
  --json       one JSON object on standard output instead of the table
  --help       this text

Exit status: 0 when everything was measured, whatever came out.
END
}

main() {
    local arg
    for arg in "$@"; do
        case $arg in
            -h | --help)
                usage
                exit
                ;;
        esac
    done
    need_cargo
    install_missing linker zookeeper
    say "building for release"
    cargo build --quiet --release --workspace --locked
    # None of the daemons' own variables may leak into those that it starts.
    unset "${!ZK_@}" RUST_LOG
    exec "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
}

main "$@"
