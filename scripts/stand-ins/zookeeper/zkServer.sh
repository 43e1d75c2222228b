#!/usr/bin/env bash
# zkServer.sh start-foreground: the server, on the configuration of the entry point.
set -euo pipefail
[[ ${1:-} == start-foreground ]] || { echo "only start-foreground stands in here" >&2 && exit 2; }
# The variables that Apache's script knows.
read -r -a flags <<<"${SERVER_JVMFLAGS:-} ${JVMFLAGS:-}"
exec java "-Xmx${ZK_SERVER_HEAP:-1000}m" "${flags[@]}" -Dorg.slf4j.simpleLogger.showDateTime=true \
    -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS -Dorg.slf4j.simpleLogger.showShortLogName=true \
    -cp /usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar \
    org.apache.zookeeper.server.quorum.QuorumPeerMain "$ZOO_CONF_DIR/zoo.cfg"
