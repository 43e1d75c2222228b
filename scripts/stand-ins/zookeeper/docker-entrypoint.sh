#!/usr/bin/env bash
# Makes a configuration and an id of the environment, as the official image does, and runs the command as `zookeeper`.
set -euo pipefail

if [[ $1 == zkServer.sh ]] && ((EUID == 0)); then
    chown -R zookeeper "$ZOO_CONF_DIR" "$ZOO_DATA_DIR" "$ZOO_DATA_LOG_DIR" "$ZOO_LOG_DIR"
    exec gosu zookeeper "$0" "$@"
fi

if [[ ! -e $ZOO_CONF_DIR/zoo.cfg ]]; then
    cat >"$ZOO_CONF_DIR/zoo.cfg" <<CONFIG
dataDir=$ZOO_DATA_DIR
dataLogDir=$ZOO_DATA_LOG_DIR
tickTime=$ZOO_TICK_TIME
initLimit=$ZOO_INIT_LIMIT
syncLimit=$ZOO_SYNC_LIMIT
autopurge.snapRetainCount=$ZOO_AUTOPURGE_SNAPRETAINCOUNT
autopurge.purgeInterval=$ZOO_AUTOPURGE_PURGEINTERVAL
maxClientCnxns=$ZOO_MAX_CLIENT_CNXNS
standaloneEnabled=$ZOO_STANDALONE_ENABLED
admin.enableServer=$ZOO_ADMINSERVER_ENABLED
CONFIG
    # Words separated by spaces; each is a line.
    read -r -a lines <<<"${ZOO_SERVERS:-server.1=localhost:2888:3888;2181} ${ZOO_CFG_EXTRA:-}"
    if [[ -n ${ZOO_4LW_COMMANDS_WHITELIST:-} ]]; then
        lines+=("4lw.commands.whitelist=$ZOO_4LW_COMMANDS_WHITELIST")
    fi
    printf '%s\n' "${lines[@]}" >>"$ZOO_CONF_DIR/zoo.cfg"
fi
[[ -e $ZOO_DATA_DIR/myid ]] || printf '%s\n' "${ZOO_MY_ID:-1}" >"$ZOO_DATA_DIR/myid"

exec "$@"
