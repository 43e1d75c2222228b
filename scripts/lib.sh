#!/usr/bin/env bash
# What the scripts share: messages, what a fresh Debian or Ubuntu lacks, a private ZooKeeper, ending what was started.
#
# Usage: source scripts/lib.sh    (from a bash 5 script with `set -euo pipefail`, at the top of the workspace)
# Reads JAVA_HOME and ZOOKEEPER_HOME (an unpacked Apache ZooKeeper) when they are set.

# Numbers with a decimal point, sorting by bytes, messages that can be matched: in every process that a script starts.
export LC_ALL=C

# For the reader, so on stderr: stdout is for results.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# need COMMAND [WHERE IT COMES FROM]
need() { command -v "$1" >/dev/null || die "cannot find the command $1${2:+: $2}"; }

# Milliseconds, for measuring: set into a variable, because a subshell takes longer than what is measured.
# now_ms VARIABLE
now_ms() { printf -v "$1" '%s' "$((${EPOCHREALTIME/[.,]/} / 1000))"; }

# A text as one word of /bin/sh (printf %q writes what only bash reads).
sh_quote() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# --- what must be installed -----------------------------------------------------------------------------------------

# need_cargo: cargo of at least the workspace's rust-version, or a line that says how to get it.
need_cargo() {
    local wanted have offered how
    wanted=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' Cargo.toml)
    # rustup puts it there and changes only the profile of later shells.
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo ]]; then
        PATH="${CARGO_HOME:-${HOME:-}/.cargo}/bin:$PATH"
    fi
    how="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    if command -v cargo >/dev/null; then
        have=$(cargo --version 2>&1) || die "cargo is installed but does not run: $have"
        have=$(sed -n 's/^cargo \([0-9.]*\).*/\1/p' <<<"$have")
        at_least "$have" "$wanted" && return
        command -v rustup >/dev/null && how='rustup update stable'
        die "cargo $have is too old: Rust $wanted or newer is needed; get it with: $how"
    fi
    offered=$(apt-cache policy cargo 2>/dev/null | sed -n 's/^ *Candidate: *\([0-9.]*\).*/\1/p') || offered=''
    if [[ -n $offered ]] && at_least "$offered" "$wanted"; then
        how="$(as_root)apt-get install cargo rustfmt rust-clippy   (or: $how)"
    fi
    die "cargo is missing: Rust $wanted or newer is needed; get it with: $how"
}

# at_least VERSION WANTED
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# need_docker: an engine that answers, and docker-compose.
need_docker() {
    need docker "install Docker, or the packages docker.io and docker-compose"
    docker info >/dev/null 2>&1 || die "no Docker engine answers: is it running, and may this user ask it?"
    compose version >/dev/null 2>&1 || die "cannot find docker-compose: install it, or the package docker-compose"
}

# compose ARGUMENTS...: docker-compose as a plugin of docker (2), or as a program of its own (1).
compose() {
    if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

# build_images: those of docker-compose.yml, which no test builds by itself. One after the other, and each has the layers of
# those before.
build_images() {
    scripts/stand-ins.sh || return
    local service
    for service in master1 worker1 client; do
        say "building the image of $service"
        compose build --quiet "$service" || return
    done
    export E2E_DOCKER=built
}

# "sudo " when a command needs it, for messages and for running.
as_root() { ((EUID == 0)) || printf 'sudo '; }

# install_missing THING...: each of zookeeper, linker, namespaces, debootstrap, deb. Calls apt-get only when something is missing, and says
# before what and why.
install_missing() {
    MISSING=()
    local thing reasons=''
    for thing in "$@"; do
        case $thing in
            zookeeper)
                want default-jre-headless 'Java, which ZooKeeper runs on' find_java
                want zookeeper 'the ZooKeeper server and zkCli.sh' zookeeper_classpath
                ;;
            linker)
                want gcc 'the linker that Rust uses' command -v cc
                want libc6-dev 'what the linker links to' test -e /usr/include/stdlib.h
                ;;
            namespaces)
                want iproute2 'ip, for tests with silent links' command -v ip
                want util-linux 'unshare and nsenter, for network namespaces' command -v unshare
                ;;
            debootstrap)
                want debootstrap 'the root file system of Debian, from its packages' command -v debootstrap
                ;;
            deb)
                want dpkg-dev 'dpkg-shlibdeps, which finds out what a package depends on' command -v dpkg-shlibdeps
                ;;
            *) die "install_missing: no such thing: $thing" ;;
        esac
    done
    ((${#MISSING[@]})) || return 0

    if ! command -v apt-get >/dev/null; then
        die "missing, and there is no apt-get to install it: ${reasons#, }"
    fi
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "missing: ${reasons#, }; run as root: apt-get install ${MISSING[*]}"
    fi
    say "missing: ${reasons#, }"
    say "installing with $(as_root)apt-get: ${MISSING[*]} and what they depend on (takes a minute or two)"
    local log apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
    ((EUID == 0)) || apt=(sudo "${apt[@]}")
    log=$(mktemp)
    # Lists that are only partly fresh may do (a broken third-party source): the installation decides.
    "${apt[@]}" update >"$log" 2>&1 || say "apt-get update failed; trying with the package lists that are there"
    if ! "${apt[@]}" install --no-install-recommends "${MISSING[@]}" >>"$log" 2>&1; then
        tail -n 25 "$log" >&2
        rm -f -- "$log"
        die "apt-get install ${MISSING[*]} failed (its last lines are above)"
    fi
    rm -f -- "$log"
    hash -r
}

# want PACKAGE WHY CHECK...: adds to install_missing's lists when the check fails.
want() {
    local package=$1 why=$2
    shift 2
    "$@" >/dev/null 2>&1 && return
    MISSING+=("$package")
    reasons+=", $package ($why)"
}

# --- a private ZooKeeper --------------------------------------------------------------------------------------------

find_java() {
    if [[ -n ${JAVA_HOME:-} && -x $JAVA_HOME/bin/java ]]; then
        printf '%s\n' "$JAVA_HOME/bin/java"
    else
        command -v java
    fi
}

# The class path of the ZooKeeper that is installed: an unpacked release, or Debian's package.
zookeeper_classpath() {
    local jars=/usr/share/java from_debian=/etc/zookeeper/conf/environment path
    if compgen -G "${ZOOKEEPER_HOME:-/nonexistent}/lib/zookeeper-*.jar" >/dev/null; then
        printf '%s\n' "$ZOOKEEPER_HOME/lib/*"
        return
    fi
    [[ -e $jars/zookeeper.jar ]] || return
    path=$jars/zookeeper.jar
    if [[ -r $from_debian ]]; then
        # Older packages need the long list that stands there; in newer ones the jar carries it.
        # shellcheck source=/dev/null
        path=$(set +u && . "$from_debian" && printf '%s' "${CLASSPATH:-$path}")
    fi
    # Debian's 3.8 comes without anything that writes the log.
    [[ $path == *slf4j-log4j* || ! -e $jars/slf4j-simple.jar ]] || path+=:$jars/slf4j-simple.jar
    printf '%s\n' "$path"
}

# free_port [N]: N different ports (default 1) of 127.0.0.1 on which nobody listens, on one line. They are below the range
# from which the kernel gives ports to connections, so that none is taken between here and its use.
free_port() {
    local wanted=${1:-1} tries=0 port ports=' '
    while ((wanted > 0)); do
        ((++tries < 1000)) || die "no free port on 127.0.0.1"
        port=$((20000 + RANDOM % 12000))
        [[ $ports == *" $port "* ]] && continue
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue
        ports+="$port "
        wanted=$((wanted - 1))
    done
    ports=${ports# }
    printf '%s\n' "${ports% }"
}

# start_zookeeper DIR PORT: starts a server of its own on 127.0.0.1:PORT with everything it writes in DIR (its log is
# DIR/zookeeper.log), sets ZOOKEEPER_PID. It isn't ready yet: wait_zookeeper.
start_zookeeper() {
    local dir=$1 port=$2 java classpath
    java=$(find_java) || die "cannot find java"
    classpath=$(zookeeper_classpath) || die "cannot find ZooKeeper's jar: install the package zookeeper or set ZOOKEEPER_HOME"
    mkdir -p -- "$dir/data"
    # A tick decides how fine session timeouts are measured; 64 MB of preallocated log (the default) are for big servers.
    cat >"$dir/zoo.cfg" <<END
tickTime=500
minSessionTimeout=1000
maxSessionTimeout=60000
dataDir=$dir/data
clientPort=$port
clientPortAddress=127.0.0.1
maxClientCnxns=0
4lw.commands.whitelist=ruok,srvr,mntr
admin.enableServer=false
preAllocSize=1024
END
    # How it logs depends on the release: one of these two files, or the properties on the command line.
    cat >"$dir/log4j.properties" <<'END'
log4j.rootLogger=INFO, OUT
log4j.appender.OUT=org.apache.log4j.ConsoleAppender
log4j.appender.OUT.layout=org.apache.log4j.PatternLayout
log4j.appender.OUT.layout.ConversionPattern=%d{ISO8601} %-5p %c{1}: %m%n
END
    cat >"$dir/logback.xml" <<'END'
<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{ISO8601} %-5p %c{0}: %m%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="OUT"/></root>
</configuration>
END
    # A session of its own (setsid): Ctrl-C on the terminal reaches the script, and the script ends it in order.
    setsid "$java" -Xms32m -Xmx192m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.net.preferIPv4Stack=true \
        -Dlog4j.configuration="file:$dir/log4j.properties" -Dorg.slf4j.simpleLogger.showDateTime=true \
        -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS -Dorg.slf4j.simpleLogger.showShortLogName=true -cp "$dir:$classpath" \
        org.apache.zookeeper.server.quorum.QuorumPeerMain "$dir/zoo.cfg" </dev/null >"$dir/zookeeper.log" 2>&1 &
    ZOOKEEPER_PID=$!
    ZOOKEEPER_LOG=$dir/zookeeper.log
    disown "$ZOOKEEPER_PID"
}

# wait_zookeeper PORT: until the server that start_zookeeper started last serves requests; dies with the end of its log if
# it doesn't within 60 s (a JVM on a busy machine takes some).
wait_zookeeper() {
    local port=$1 limit=$((SECONDS + 60)) why
    until [[ $(four_letters "$port" ruok) == imok && $(four_letters "$port" srvr) == *Mode:* ]]; do
        why=''
        alive "$ZOOKEEPER_PID" || why='has ended'
        ((SECONDS < limit)) || why='did not answer within 60 s'
        if [[ -n $why ]]; then
            show_log "$ZOOKEEPER_LOG"
            die "the private ZooKeeper on 127.0.0.1:$port $why (the end of its log is above)"
        fi
        sleep 0.1
    done
    # Somebody else's server on that port would have answered too, while ours failed to bind.
    alive "$ZOOKEEPER_PID" || die "another ZooKeeper answers on 127.0.0.1:$port"
}

# four_letters PORT WORD: what the server answers; nothing when it can't be reached.
four_letters() {
    local port=$1 word=$2 answer=''
    {
        # Ends at the server's end of file, so `read` always returns non-zero.
        exec {FOUR_LETTERS}<>"/dev/tcp/127.0.0.1/$port" || return 0
        printf '%s' "$word" >&"$FOUR_LETTERS"
        IFS= read -r -u "$FOUR_LETTERS" -d '' -t 2 answer || true
        exec {FOUR_LETTERS}>&-
    } 2>/dev/null
    printf '%s' "$answer"
}

# zookeeper_delete CONNECT PATH: removes a znode and all below it with ZooKeeper's own client; fails when that is not
# installed or can't. What counts is that the znode is gone: an old client's exit code is 0 whatever happened.
zookeeper_delete() {
    local said
    said=$(zookeeper_cli "$1" deleteall "$2")
    # Before 3.5 it was called rmr, and an unknown command gets the list of all.
    [[ $said != *"cmd args"* ]] || zookeeper_cli "$1" rmr "$2" >/dev/null
    [[ $(zookeeper_cli "$1" stat "$2") == *"does not exist: $2"* ]]
}

# zookeeper_cli CONNECT COMMAND...: what ZooKeeper's own client says to one command.
zookeeper_cli() {
    local java classpath cli=(zkCli.sh) connect=$1
    shift
    if java=$(find_java) && classpath=$(zookeeper_classpath); then
        cli=("$java" -XX:TieredStopAtLevel=1 -cp "$classpath" org.apache.zookeeper.ZooKeeperMain)
    fi
    timeout 20 "${cli[@]}" -server "$connect" "$@" </dev/null 2>&1 || true
}

# --- processes ------------------------------------------------------------------------------------------------------

alive() { kill -0 "$1" 2>/dev/null; }

# stop_pid PID...: TERM, a bounded wait, KILL. Only for processes that the script itself started with setsid: KILL goes to
# the whole group, so that no helper of theirs stays behind. Returns when all are gone.
stop_pid() {
    local pid tries
    for pid in "$@"; do kill -TERM "$pid" 2>/dev/null || true; done
    for ((tries = 0; tries < 200; tries++)); do
        any_alive "$@" || break
        # Once more after a second: the first asks a worker to finish what it runs, the second to stop that too.
        if ((tries == 20)); then
            for pid in "$@"; do kill -TERM "$pid" 2>/dev/null || true; done
        fi
        sleep 0.05
    done
    for pid in "$@"; do
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    for ((tries = 0; tries < 100; tries++)); do
        any_alive "$@" || return 0
        sleep 0.05
    done
    say "a process does not die: $*"
}

any_alive() {
    local pid
    for pid in "$@"; do
        alive "$pid" && return
    done
    return 1
}

# show_log FILE [LINES]
show_log() {
    [[ -s $1 ]] || return 0
    printf -- '--- the end of %s\n' "${1##*/}" >&2
    tail -n "${2:-20}" -- "$1" >&2
}
