#!/usr/bin/env bash
# Looks for bytes with which a decoder panics, with libFuzzer, on the stable toolchain.
#
# Usage: scripts/fuzz.sh [SECONDS [DECODER...]]        a minute for each decoder of crates/decoders, unless told otherwise
# It begins with crates/decoders/corpus and what earlier runs have found, in target/fuzz/found. What makes one panic ends it, and is
# in target/fuzz: it belongs into the corpus, which the tests replay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=lib.sh
source scripts/lib.sh

# What cargo-fuzz passes, but for the sanitizers, which only nightly has. The target is named, so that build scripts and macros are
# not instrumented.
build() {
    local flags=(--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1)
    local argument
    for argument in level=4 inline-8bit-counters pc-table trace-compares; do
        flags+=("-Cllvm-args=-sanitizer-coverage-$argument")
    done
    host=$(rustc -vV | sed -n 's/^host: //p')
    RUSTFLAGS="${flags[*]}" CARGO_PROFILE_RELEASE_LTO=off cargo build --quiet --release --locked \
        --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --target "$host"
}

main() {
    local seconds=${1:-60} decoder
    shift || true
    (($#)) || set -- task documents names connect session http
    need_cargo
    build
    local fuzz=target/fuzz/$host/release/fuzz
    for decoder; do
        local corpus=crates/decoders/corpus/$decoder found=target/fuzz/found/$decoder
        mkdir -p "$found"
        say "$decoder for $seconds s"
        DECODER=$decoder "$fuzz" "$found" "$corpus" -max_total_time="$seconds" -max_len=4096 -timeout=10 \
            -artifact_prefix="target/fuzz/$decoder-" -print_final_stats=1 -verbosity=0
    done
}

main "$@"
