#!/usr/bin/env bash
# A Debian package of the three programs, with their units, manual pages and completions.
#
# Usage: packaging/build-deb.sh [FOLDER]        (--help says more)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=../scripts/lib.sh
source scripts/lib.sh

usage() {
    cat <<'END'
Usage: packaging/build-deb.sh [FOLDER]

Builds zk-tasks_<version>_<architecture>.deb in FOLDER (default: target/debian) and prints its path. It has
zk-master, zk-worker and zk-client, systemd units that are not started by the installation, /etc/default/zk-master and
/etc/default/zk-worker, manual pages, shell completions and the documentation.

Environment: PROFILE=release (default) or dev: how to build; DEBEMAIL: who maintains the package.
END
}

# install_file MODE SOURCE TARGET
install_file() { install -D -m "$1" "$2" "$ROOT$3"; }

# What the binaries need, by their symbols: libc6 of which version.
dependencies() {
    mkdir -p "$DIR/control/debian"
    printf 'Source: zk-tasks\n\nPackage: zk-tasks\nArchitecture: any\n' >"$DIR/control/debian/control"
    (cd "$DIR/control" && dpkg-shlibdeps -O "$ROOT"/usr/bin/* 2>/dev/null) | sed -n 's/^shlibs:Depends=//p'
}

main() {
    case ${1:-} in
        -h | --help)
            usage
            exit
            ;;
    esac
    need_cargo
    install_missing linker deb
    local folder=${1:-target/debian} profile=${PROFILE:-release} version architecture target name file
    target=$(cargo metadata --format-version 1 --no-deps --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    cargo build --quiet --locked --profile "$profile" -p zk-master -p zk-worker -p zk-client
    target+=/${profile/#dev/debug}

    DIR=$(mktemp -d)
    trap 'rm -rf -- "$DIR"' EXIT
    ROOT=$DIR/root
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
    architecture=$(dpkg --print-architecture)
    for name in zk-master zk-worker zk-client; do
        install_file 755 "$target/$name" "/usr/bin/$name"
        strip --strip-unneeded "$ROOT/usr/bin/$name"
    done
    for name in zk-master zk-worker; do
        install_file 644 "packaging/systemd/$name.service" "/lib/systemd/system/$name.service"
        install_file 644 "packaging/$name.default" "/etc/default/$name"
    done
    cargo run --quiet --locked --profile "$profile" -p zk-pages -- "$DIR/pages"
    gzip -9 -n "$DIR"/pages/man/*
    for file in "$DIR"/pages/man/*; do install_file 644 "$file" "/usr/share/man/man1/${file##*/}"; done
    install_file 644 "$DIR/pages/completions/bash/zk-client" /usr/share/bash-completion/completions/zk-client
    install_file 644 "$DIR/pages/completions/zsh/_zk-client" /usr/share/zsh/vendor-completions/_zk-client
    install_file 644 "$DIR/pages/completions/fish/zk-client.fish" /usr/share/fish/vendor_completions.d/zk-client.fish
    for file in README.md CHANGELOG.md docs/*; do
        install_file 644 "$file" "/usr/share/doc/zk-tasks/${file#docs/}"
    done
    for file in packaging/{prometheus,grafana}/*; do
        install_file 644 "$file" "/usr/share/doc/zk-tasks/examples/${file#packaging/}"
    done
    install_file 644 LICENSE /usr/share/doc/zk-tasks/copyright

    mkdir "$ROOT/DEBIAN"
    sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@DEPENDS@/$(dependencies)/" \
        -e "s/@MAINTAINER@/${DEBEMAIL:-nobody <nobody@localhost>}/" packaging/debian/control >"$ROOT/DEBIAN/control"
    install -m 755 packaging/debian/{postinst,prerm,postrm} "$ROOT/DEBIAN"
    printf '/etc/default/zk-master\n/etc/default/zk-worker\n' >"$ROOT/DEBIAN/conffiles"
    mkdir -p "$folder"
    dpkg-deb --root-owner-group --build "$ROOT" "$folder" >/dev/null
    printf '%s\n' "$folder/zk-tasks_${version}_$architecture.deb"
}

main "$@"
