#!/usr/bin/env bash
# The base images of Dockerfile and docker-compose.yml where no registry can be reached: made from Debian's packages.
#
# Usage: scripts/stand-ins.sh        (--help says more)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=lib.sh
source scripts/lib.sh

usage() {
    cat <<'END'
Usage: scripts/stand-ins.sh

Sees to it that Docker has the images that Dockerfile and docker-compose.yml name. What is missing is pulled; what cannot be
pulled is made under the same name:

  debian:*       by debootstrap
  rust:*         on it: Debian's gcc, the Rust toolchain of this machine, and whom this machine trusts
  zookeeper:*    on it: Debian's ZooKeeper, behind the variables and paths of the official image

A stand-in has the label `stand-in`, and is made again when what it is made of has changed. To get the real image later,
remove it: docker rmi NAME.
END
}

# named PATTERN FILE: the image whose name begins like this in the file.
named() { sed -nE "s/^ *(FROM|image:) +($1:[^ ]+).*/\2/p" "$2" | head -n 1; }

# Empty unless the image is there; then what its stand-in was made of, or `real`.
made_of() { docker image inspect --format '{{with index .Config.Labels "stand-in"}}{{.}}{{else}}real{{end}}' "$1" 2>/dev/null; }

# lacks IMAGE MADE-OF: whether a stand-in is to be made, because there is neither the image nor a way to get it.
lacks() {
    local there
    there=$(made_of "$1") || there=''
    case $there in
        "$2" | real) return 1 ;;
        '') ! docker pull -q "$1" >/dev/null 2>&1 && say "$1 cannot be pulled: making a stand-in" ;;
        *) say "$1 is an old stand-in: making it again" ;;
    esac
}

# The tar of a root file system, without what no image needs.
bootstrap() {
    local suite=$1 root=$2
    debootstrap --variant=minbase "$suite" "$root" http://deb.debian.org/debian >"$DIR/debootstrap.log" 2>&1 || {
        show_log "$DIR/debootstrap.log"
        die "debootstrap $suite failed"
    }
    find "$root"/var/{cache/apt,lib/apt/lists} "$root"/usr/share/{doc,info,locale,man} -type f -delete
    tar -C "$root" -c .
}

# build IMAGE MADE-OF FOLDER: the Dockerfile there, and whatever else is in the folder.
build() {
    DOCKER_BUILDKIT=0 docker build -q -t "$1" --label "stand-in=$2" --build-arg "BASE=$DEBIAN" "$3" 2>"$DIR/build.log" >&2 || {
        show_log "$DIR/build.log"
        die "the stand-in for $1 cannot be built"
    }
}

main() {
    case ${1:-} in
        -h | --help)
            usage
            exit
            ;;
    esac
    need docker
    local sources sysroot
    DEBIAN=$(named debian Dockerfile)
    RUST=$(named rust Dockerfile)
    ZOOKEEPER=$(named zookeeper docker-compose.yml)
    DIR=$(mktemp -d)
    trap 'rm -rf --one-file-system -- "$DIR"' EXIT
    sources=$(cat scripts/stand-ins.sh scripts/stand-ins/*/* | sha256sum | head -c 16)

    if lacks "$DEBIAN" debootstrap; then
        install_missing debootstrap
        # Of debian:bookworm-slim it is bookworm.
        [[ $DEBIAN =~ :([a-z]+) ]]
        bootstrap "${BASH_REMATCH[1]}" "$DIR/root" | docker import --change 'LABEL stand-in=debootstrap' - "$DEBIAN" >/dev/null
    fi
    if lacks "$ZOOKEEPER" "$sources"; then
        build "$ZOOKEEPER" "$sources" scripts/stand-ins/zookeeper
    fi
    need_cargo
    sources+=" $(rustc --version)"
    if lacks "$RUST" "$sources"; then
        sysroot=$(rustc --print sysroot)
        mkdir "$DIR/rust"
        # Neither its documentation nor the tools that no build needs, which are as large as the rest.
        mkdir "$DIR/rust/toolchain"
        tar -C "$sysroot" -c --exclude=./share --exclude='./bin/*clippy*' --exclude='./bin/rust?*-*' . |
            tar -C "$DIR/rust/toolchain" -x
        cp scripts/stand-ins/rust/Dockerfile /etc/ssl/certs/ca-certificates.crt "$DIR/rust"
        build "$RUST" "$sources" "$DIR/rust"
    fi
    docker image ls --format '{{.Repository}}:{{.Tag}}  {{.Size}}' | grep -Fw -e "$DEBIAN" -e "$RUST" -e "$ZOOKEEPER" >&2
}

main "$@"
