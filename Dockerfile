# zk-master, zk-worker and zk-client, an image each: docker build --target zk-worker .
#
# Needs neither BuildKit nor anything but the two images named below. Each daemon's guard is process 1: it passes on the
# stop signals, and reaps what tasks leave behind.

# The manifests, with empty sources: they differ only when a dependency does.
FROM rust:1.95-slim-bookworm AS manifests
WORKDIR /src
COPY . .
RUN find crates -type f ! -name Cargo.toml -delete \
    && for crate in crates/*; do mkdir -p "$crate/src" && : > "$crate/src/lib.rs" && echo 'fn main() {}' > "$crate/src/main.rs"; done

# All dependencies, in a layer of their own.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY --from=manifests /src .
RUN cargo build --release --locked -p zk-master -p zk-worker -p zk-client
COPY crates crates
# What was checked out before that layer was built is newer than it all the same.
RUN find crates -name '*.rs' -exec touch {} + \
    && cargo build --release --locked -p zk-master -p zk-worker -p zk-client

FROM debian:bookworm-slim AS base
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/zk-worker zk \
    && install -d -o zk -g zk /var/lib/zk-worker
USER zk

FROM base AS zk-client
COPY --from=build /src/target/release/zk-client /usr/local/bin/
ENTRYPOINT ["zk-client"]

FROM base AS zk-master
COPY --from=build /src/target/release/zk-master /usr/local/bin/
EXPOSE 2223
HEALTHCHECK --interval=5s --timeout=5s CMD ["zk-master", "--health"]
ENTRYPOINT ["zk-master"]

# Tasks find here what Debian's smallest image has; whoever needs more builds on it.
FROM base AS zk-worker
COPY --from=build /src/target/release/zk-worker /usr/local/bin/
ENV ZK_WORK_DIR=/var/lib/zk-worker
EXPOSE 2224
HEALTHCHECK --interval=5s --timeout=5s CMD ["zk-worker", "--health"]
ENTRYPOINT ["zk-worker"]
