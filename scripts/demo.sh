#!/usr/bin/env bash
# The whole system at work, and one of its masters killed in the middle.
#
# Usage: scripts/demo.sh [--keep] [FOLDER]        (--help says more)
# Reads ZK_CONNECT (an ensemble to use), ZK_AUTH, TMPDIR and CARGO_TARGET_DIR when they are set.
set -euo pipefail
FOLDER_FROM=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=lib.sh
source scripts/lib.sh

usage() {
    cat <<'END'
Usage: scripts/demo.sh [--keep] [FOLDER]

Runs the whole system: installs what is missing (apt-get, says so before), builds, starts a private ZooKeeper, two masters
and three workers on 127.0.0.1, and has them compute the sha256 of every file below FOLDER (default: /usr/share/doc).
In the middle it kills the primary master with kill -9. At the end it compares the result with sha256sum run directly,
prints one line of verdict and removes everything it started and wrote.

  --keep     keep the temporary folder with the logs and the results, and say where it is
  --help     this text

FOLDER is not changed. Symbolic links, other file systems and files that can't be read are left out; a file that changes
meanwhile is not compared.

Environment: ZK_CONNECT=host:port[,host:port...][/chroot]  use that ensemble, below a fresh chroot /demo-<random>, instead of
a private one; ZK_AUTH as for the daemons.

Exit status: 0 when everything was done and is identical, 1 otherwise.
END
}

# --- what the run knows ---------------------------------------------------------------------------------------------

KEEP='' FOLDER=/usr/share/doc
STEP='setting up'   # what it is doing, for the verdict of a run that breaks off
VERDICT='' REASON='' # the line at the end; why it is a FAILED
DIR=''              # the temporary folder
CHROOT=''           # in a foreign ensemble: what to remove there, below OUTSIDE
OUTSIDE=''
ZOOKEEPER_PID=''
DAEMONS=()          # pids, masters first
declare -A MASTER   # address -> pid
LIVE=''             # set when one line can be redrawn
NEXT_LINE=0         # when the next one is due where none can

TASKS=()            # names, in the order of submission
PRIMARY='' STANDBY='' WORKERS=0 DONE=0 # what the last `zk-client status` said
VICTIM=''           # the primary that was killed
KILLED_MS=''        # when
TAKEOVER_MS=''      # how long there was no other

# A run that makes no progress for so long has failed.
readonly STALLED_SECONDS=300

# --- messages -------------------------------------------------------------------------------------------------------

# A line that stays.
note() {
    [[ -z $LIVE ]] || printf '\r\033[K' >&2
    say "$*"
}

# How things stand: on a terminal a line that is redrawn, elsewhere one now and then.
draw() {
    local line now
    line="master ${PRIMARY:-none} | workers $WORKERS | done $DONE of $TOTAL"
    if [[ -n $TAKEOVER_MS ]]; then
        line+=" | taken over in $TAKEOVER_MS ms"
    elif [[ -n $KILLED_MS ]]; then
        now_ms now
        line+=" | taking over: $((now - KILLED_MS)) ms"
    fi
    if [[ -z $LIVE ]]; then
        ((SECONDS < NEXT_LINE)) || say "$line"
        ((SECONDS < NEXT_LINE)) || NEXT_LINE=$((SECONDS + 30))
        return
    fi
    printf '\r\033[K%s' "${line:0:${COLUMNS:-80}-1}" >&2
}

fail() {
    REASON=$*
    exit 1
}

# --- cleaning up ----------------------------------------------------------------------------------------------------

cleanup() {
    local status=$? log
    trap '' INT TERM HUP
    set +e
    [[ -z $LIVE ]] || printf '\r\033[K' >&2
    if [[ $VERDICT != OK:* ]]; then
        case $status in
            129 | 130 | 143) REASON="interrupted while $STEP" ;;
            *) [[ ! -d $DIR/logs ]] || for log in "$DIR"/*/zookeeper.log "$DIR"/logs/*.log; do show_log "$log" 15; done ;;
        esac
        VERDICT="FAILED: ${REASON:-$STEP (see above)}"
    fi
    ((${#DAEMONS[@]} == 0)) || stop_pid "${DAEMONS[@]}"
    if [[ -n $CHROOT ]] && ! zookeeper_delete "$OUTSIDE" "$CHROOT"; then
        say "if $CHROOT was made, it was left; to remove it: zkCli.sh -server $OUTSIDE deleteall $CHROOT"
    fi
    [[ -z $ZOOKEEPER_PID ]] || stop_pid "$ZOOKEEPER_PID"
    if [[ -n $DIR && -n $KEEP ]]; then
        say "kept: $DIR"
    elif [[ -n $DIR ]]; then
        rm -rf -- "$DIR"
    fi
    printf '%s\n' "$VERDICT"
    [[ $VERDICT == OK:* ]] || exit "$((status ? status : 1))"
}

# --- steps ----------------------------------------------------------------------------------------------------------

build() {
    STEP='building'
    note "building in release mode (the first time takes some minutes)"
    local started=$SECONDS target
    if ! cargo build --release --workspace --locked >"$DIR/build.log" 2>&1; then
        show_log "$DIR/build.log" 60
        fail "cargo build --release does not succeed"
    fi
    target=$(cargo metadata --format-version 1 --no-deps --locked 2>/dev/null |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
    [[ -x $target/release/zk-master ]] || fail "cargo build made no $target/release/zk-master"
    PATH=$target/release:$PATH
    note "built after $((SECONDS - started)) s"
}

# Which files, and which of them make a task: lists separated by NUL, because a file name may hold anything else.
cut_work() {
    STEP="listing the files below $FOLDER"
    mkdir "$DIR/chunks" "$DIR/results"
    touch "$DIR/started"
    # A folder that can't be entered makes find fail, and is left out like a file that can't be read.
    list_files >"$DIR/files" || true
    FILES=$(tr -cd '\0' <"$DIR/files" | wc -c)
    ((FILES > 0)) || fail "there is no readable file below $FOLDER"
    # Some hundred files a task, but at least some 60 tasks, so that there is a middle, and not more than some 600.
    local size=$((FILES / 64))
    ((size <= 300)) || size=300
    ((FILES / 600 <= size)) || size=$((FILES / 600))
    ((size > 0)) || size=1
    split -t '\0' -l "$size" -d -a 5 -- "$DIR/files" "$DIR/chunks/"
    CHUNKS=("$DIR"/chunks/*)
    TOTAL=${#CHUNKS[@]}
    note "$FILES files below $FOLDER make $TOTAL tasks of at most $size"
}

# list_files [TEST...]: those that find's TEST lets through too, sorted.
list_files() {
    find "$FOLDER" -xdev -path "$DIR" -prune -o -type f -readable "$@" -print0 2>/dev/null | sort -z
}

start_ensemble() {
    if [[ -n ${ZK_CONNECT:-} ]]; then
        STEP="using the ensemble $ZK_CONNECT"
        OUTSIDE=${ZK_CONNECT%/}
        CHROOT=/demo-$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
        export ZK_CONNECT=$OUTSIDE$CHROOT
        note "using the ensemble $OUTSIDE, below the fresh chroot $CHROOT"
        return
    fi
    STEP='starting a private ZooKeeper'
    local port
    port=$(free_port 1)
    mkdir "$DIR/zookeeper"
    start_zookeeper "$DIR/zookeeper" "$port"
    wait_zookeeper "$port"
    export ZK_CONNECT=127.0.0.1:$port
    note "a private ZooKeeper listens on $ZK_CONNECT"
}

# start_daemon LOG-NAME COMMAND...: in a session of its own, so that Ctrl-C reaches this script alone. Sets PID.
start_daemon() {
    local log=$DIR/logs/$1.log
    shift
    setsid "$@" </dev/null >"$log" 2>&1 &
    PID=$!
    # bash would report how it ended, into the middle of our lines.
    disown "$PID"
    DAEMONS+=("$PID")
}

start_daemons() {
    STEP='starting two masters and three workers'
    mkdir "$DIR/logs"
    local ports n address limit=$((SECONDS + 30))
    read -r -a ports <<<"$(free_port 5)"
    for n in 1 2; do
        address=127.0.0.1:${ports[n - 1]}
        start_daemon "master-$n" zk-master --address "$address" --session-timeout 4s
        MASTER[$address]=$PID
    done
    for n in 1 2 3; do
        mkdir "$DIR/worker-$n"
        start_daemon "worker-$n" zk-worker --name "worker-$n" --address "127.0.0.1:${ports[n + 1]}" \
            --work-dir "$DIR/worker-$n" --slots 2
    done
    until look && [[ -n $PRIMARY && -n $STANDBY ]] && ((WORKERS == 3)); do
        check_daemons
        ((SECONDS < limit)) || fail "no primary, standby and three workers within 30 s: $(tail -n 1 "$DIR/client.err")"
        sleep 0.1
    done
    NEXT_LINE=$((SECONDS + 30))
    note "two masters (primary $PRIMARY, standby $STANDBY) and three workers are up"
}

check_daemons() {
    local pid
    for pid in "${DAEMONS[@]}"; do
        alive "$pid" || fail "a daemon ended by itself (see the end of its log)"
    done
}

# look: asks what is, into PRIMARY, STANDBY, WORKERS and DONE; fails when there is no answer.
look() {
    local json string='"([^"]*)"' gap='[[:space:]]*'
    json=$(zk-client status --json 2>"$DIR/client.err") || return
    PRIMARY='' STANDBY=''
    [[ $json =~ \"master\"$gap:$gap$string ]] && PRIMARY=${BASH_REMATCH[1]}
    [[ $json =~ \"standby\"$gap:$gap\[$gap$string ]] && STANDBY=${BASH_REMATCH[1]}
    [[ $json =~ \"workers\"$gap:$gap([0-9]+) ]] && WORKERS=${BASH_REMATCH[1]}
    [[ $json =~ \"tasks\"$gap:$gap\{[^}]*\"done\"$gap:$gap([0-9]+) ]] && DONE=${BASH_REMATCH[1]}
    return 0
}

# The work itself: one chunk, by one command line for /bin/sh. A second start (possible after a fault) does no harm: mv is
# atomic, and the name before it is each start's own. xargs says 123 when sha256sum could not read a file that was readable
# before; the comparison at the end judges that.
submit() {
    local number=${1##*/} task command
    command="cd $(sh_quote "$DIR/results") && { xargs -0 sha256sum < ../chunks/$number > $number.\$\$.tmp || [ \$? -eq 123 ]; }"
    command+=" && mv $number.\$\$.tmp $number"
    task=$(zk-client submit --name "sha256 of chunk $number" -- "$command" 2>"$DIR/client.err") ||
        fail "zk-client submit: $(tail -n 1 "$DIR/client.err")"
    [[ $task =~ ^task-[0-9]+$ ]] || fail "zk-client submit printed '$task' instead of a task"
    TASKS+=("$task")
}

# What was started is the guard; the master's own process is its child.
kill_primary() {
    VICTIM=$PRIMARY
    local guard=${MASTER[$PRIMARY]:-} pid
    [[ -n $guard ]] || fail "the primary $PRIMARY is not one of the two masters"
    pid=$(<"/proc/$guard/task/$guard/children")
    pid=${pid%% *}
    [[ -n $pid ]] || fail "the guard of $PRIMARY (pid $guard) has no child"
    now_ms KILLED_MS
    kill -KILL "$pid"
    note "$DONE of $TOTAL tasks done: kill -9 of the primary master $VICTIM (pid $pid, below its guard $guard)"
}

# Submits everything, kills the primary when a third is done, and goes on submitting while there is none. The last third is
# held back until then, so that the work is never over before its middle, however fast the machine.
run_tasks() {
    STEP='running the tasks'
    local next=0 third=$(((TOTAL + 2) / 3)) held_back now progress='' limit=$((SECONDS + STALLED_SECONDS))
    held_back=$((2 * TOTAL / 3 > third ? 2 * TOTAL / 3 : third))
    while ((next < TOTAL)) || [[ -z $TAKEOVER_MS ]]; do
        if ((next < (${#KILLED_MS} ? TOTAL : held_back))); then
            submit "${CHUNKS[next]}"
            next=$((next + 1))
        fi
        look || true
        if [[ -z $KILLED_MS ]]; then
            [[ -z $PRIMARY ]] || ((DONE < third)) || kill_primary
        elif [[ -z $TAKEOVER_MS && -n $PRIMARY && $PRIMARY != "$VICTIM" ]]; then
            now_ms now
            TAKEOVER_MS=$((now - KILLED_MS))
            note "$PRIMARY is primary, $TAKEOVER_MS ms after the kill"
        fi
        draw
        check_daemons
        [[ $progress == "$next $DONE $PRIMARY" ]] || limit=$((SECONDS + STALLED_SECONDS))
        progress="$next $DONE $PRIMARY"
        ((SECONDS < limit)) || fail "nothing goes on since $STALLED_SECONDS s: $DONE of $TOTAL tasks done, primary ${PRIMARY:-none}"
    done
    note "all $TOTAL tasks are submitted, $DONE done"
}

wait_tasks() {
    STEP='waiting for the tasks'
    local waiter progress='' limit=$((SECONDS + STALLED_SECONDS)) task state
    setsid zk-client wait "${TASKS[@]}" </dev/null >"$DIR/wait.out" 2>"$DIR/wait.err" &
    waiter=$!
    disown "$waiter"
    DAEMONS+=("$waiter") # to be ended with them
    while alive "$waiter"; do
        look || true
        draw
        [[ $progress == "$DONE" ]] || limit=$((SECONDS + STALLED_SECONDS))
        progress=$DONE
        ((SECONDS < limit)) || fail "nothing goes on since $STALLED_SECONDS s: $DONE of $TOTAL tasks done"
        sleep 0.1
    done
    unset 'DAEMONS[-1]'
    check_daemons
    declare -A state_of=()
    while IFS=$'\t' read -r task state _; do
        state_of[$task]=$state
    done <"$DIR/wait.out"
    FINISHED=0 LOST=0
    local wrong=''
    for task in "${TASKS[@]}"; do
        case ${state_of[$task]:-} in
            done) FINISHED=$((FINISHED + 1)) ;;
            '' | lost) LOST=$((LOST + 1)) && wrong=${wrong:-$task} ;;
            *) wrong=${wrong:-$task} ;;
        esac
    done
    [[ -z $wrong ]] && return
    zk-client show "$wrong" >&2 || true
    [[ ! -s $DIR/wait.err ]] || tail -n 5 "$DIR/wait.err" >&2
    fail "$FINISHED of $TOTAL tasks done, $LOST lost; $wrong is ${state_of[$wrong]:-unknown to zk-client wait}"
}

# hash_files LIST: what sha256sum itself says of the list. Its code is 123 (xargs) when a file has gone meanwhile.
hash_files() {
    xargs -0 -r sha256sum <"$1" 2>/dev/null | sort || (($? == 123))
}

compare() {
    STEP='comparing with sha256sum'
    local identical changed wrong
    cat "$DIR"/results/[0-9][0-9][0-9][0-9][0-9] | sort >"$DIR/by-workers"
    hash_files "$DIR/files" >"$DIR/by-sha256sum"
    if ! cmp -s "$DIR/by-workers" "$DIR/by-sha256sum"; then
        # A file that changed or went away since the list was made is nobody's fault: all others must be there and be right.
        list_files ! -cnewer "$DIR/started" | comm -z -12 "$DIR/files" - >"$DIR/unchanged" || true
        hash_files "$DIR/unchanged" >"$DIR/by-sha256sum"
        comm -13 "$DIR/by-workers" "$DIR/by-sha256sum" >"$DIR/missing"
        wrong=$(comm -23 "$DIR/by-workers" "$DIR/by-sha256sum" | wc -l)
        if [[ -s $DIR/missing ]] || ((wrong > FILES - $(wc -l <"$DIR/by-sha256sum"))); then
            show_log "$DIR/missing"
            fail "the results differ from sha256sum's: $(wc -l <"$DIR/missing") lines are missing, $wrong should not be there"
        fi
    fi
    identical=$(wc -l <"$DIR/by-sha256sum")
    changed=$((FILES - identical))
    VERDICT="OK: $FINISHED of $TOTAL tasks done, $identical files identical"
    ((changed == 0)) || VERDICT+=" ($changed changed or went meanwhile)"
    VERDICT+=", new primary after $TAKEOVER_MS ms, $LOST lost"
}

# --- all together ---------------------------------------------------------------------------------------------------

parse_arguments() {
    local folders=() options=yes
    while (($#)); do
        case $options$1 in
            yes-h | yes--help)
                usage
                exit
                ;;
            yes--keep) KEEP=yes ;;
            yes--) options='' ;;
            yes-*) die "unknown option $1 (see --help)" ;;
            *) folders+=("$1") ;;
        esac
        shift
    done
    ((${#folders[@]} <= 1)) || die "more than one folder (see --help)"
    ((${#folders[@]} == 0)) || FOLDER=${folders[0]}
    FOLDER=$(cd -- "$FOLDER_FROM" && cd -- "$FOLDER" 2>/dev/null && pwd -P) || die "cannot enter the folder ${folders[0]:-$FOLDER}"
}

main() {
    parse_arguments "$@"
    trap cleanup EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    [[ ! -t 1 || ! -t 2 ]] || LIVE=yes

    need_cargo
    if [[ -n ${ZK_CONNECT:-} ]]; then
        install_missing linker
    else
        install_missing linker zookeeper
    fi
    DIR=$(mktemp -d "${TMPDIR:-/tmp}/zk-demo.XXXXXXXX")
    DIR=$(cd "$DIR" && pwd -P)
    build
    cut_work
    start_ensemble
    start_daemons
    run_tasks
    wait_tasks
    compare
}

main "$@"
