#!/usr/bin/env bash
# Breaks a whole cluster in every way, and says how long each take-over took and whether any promise was broken.
#
# Usage: scripts/failover.sh [OPTIONS]        (--help says more)
# Reads JAVA_HOME, TMPDIR and CARGO_TARGET_DIR when they are set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=lib.sh
source scripts/lib.sh

need_cargo
# Whoever only asks what it does gets nothing installed.
case " $* " in
    *' --help '* | *' -h '*) ;;
    *' --docker '*)
        install_missing linker
        need_docker
        build_images
        ;;
    *) install_missing linker zookeeper namespaces ;;
esac
say "building"
cargo build --quiet --release --locked -p zk-master -p zk-worker -p e2e
# None of the daemons' own variables may leak into those that are started.
unset "${!ZK_@}" RUST_LOG
# The program itself takes Ctrl-C and ends all that it started.
exec "${CARGO_TARGET_DIR:-target}/release/failover" "$@"
