#!/usr/bin/env bash
# Run a command against an AWS on this machine. Nothing leaves the machine, and no account is needed.
#
#   scripts/local.sh COMMAND [ARGUMENT...]
#
#   scripts/local.sh python3 examples/texture_gdal.py     a main script, unchanged
#   scripts/local.sh aws s3 ls                            the AWS command line
#   scripts/local.sh bash                                 a shell, to look around
#
# Starts a moto server on the loopback address whose Batch jobs are processes that run worker.py, creates the
# stack with scripts/create.sh, puts a stand-in for the worker image into its repository, runs COMMAND and stops the
# server, with which all of that is gone. The exit status is COMMAND's. Credentials and profiles of a real account are
# hidden from all of it.
#
# COMMAND and the jobs have the Python of .venv, which scripts/setup.sh makes. What they import and it lacks:
# .venv/bin/pip install NAME, or a folder in PYTHONPATH, which is set before this is called.
#
# Environment:
#   RIOS_AWSBATCH_STACK, RIOS_AWSBATCH_REGION   name and region of the stack, as everywhere (RIOS, ap-southeast-2)
#   PYTHON                                      the Python to use where there is no .venv (python3)
#   RIOS_AWSBATCH_LOCAL_STACK=no                start the AWS only; create no stack
#   RIOS_AWSBATCH_LOCAL_CREATE="--maxjobs 8"    options for scripts/create.sh
#   RIOS_AWSBATCH_LOCAL_MAIN=FILE               push FILE as the main image too (as build.sh --main does)
#   RIOS_AWSBATCH_LOCAL_LATENCY_MS=20           delay every AWS request, while COMMAND runs
#   RIOS_AWSBATCH_LOCAL_FAULTS=errors=0.05,...  while COMMAND runs, of all requests and messages the fraction that
#                                               fails (errors), breaks off (cut), comes twice (duplicate), comes late
#                                               (late); reorder=1 for any order, seed=N for the same faults again
#   RIOS_AWSBATCH_LOCAL_IAM=1                   enforce IAM policies while COMMAND runs. COMMAND has the account
#                                               owner's credentials, which may do everything; jobs have their role's
#   RIOS_AWSBATCH_LOCAL_LAG=8                   Batch says so many seconds later what a container does; without, each
#                                               job has a lag of its own, of up to two
#   RIOS_AWSBATCH_LOCAL_START_MS=500            job i of an array starts i times that later
#   RIOS_AWSBATCH_LOCAL_SHARED=FOLDER           jobs see this folder of yours at the same path, read and write, as
#                                               they would a network file system
#   RIOS_AWSBATCH_LOCAL_LOG=FILE                keep what the server says
#
# For COMMAND, $AWS_ENDPOINT_URL/_local/ shows and changes the server: requests, jobs, faults, lag, latency, iam
# and more (see scripts/local_aws/control.py). PYTHONPATH reaches the jobs, as if it were in the image. Of everything
# else that is yours, jobs see nothing, as on AWS, where the machine allows it (the log says so).

# shellcheck disable=SC2317,SC2329  # the functions that traps call

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
}

# control NAME JSON: tell the server something; see local_aws/control.py.
control() {
    "$python" -S -c 'import sys, urllib.request
urllib.request.urlopen(sys.argv[1], sys.argv[2].encode(), timeout=60)' "$AWS_ENDPOINT_URL/_local/$1" "$2"
}

choose_python() {
    local candidate=$root/.venv/bin/python
    [[ -x $candidate ]] || candidate=${PYTHON:-python3}
    if ! python=$("$candidate" -c 'import importlib.util, sys
for name in "flask", "boto3", "moto", "awscli":
    importlib.util.find_spec(name).origin
print(sys.executable)' 2>/dev/null); then
        echo "local.sh: $candidate has no moto server. Run scripts/setup.sh, or: pip install 'moto[server]' awscli" >&2
        exit 1
    fi
}

# ours PROGRAM [ARGUMENT...]: a program of scripts/local_aws. What Python has compiled it may keep, which is beside
# what setup.sh has installed, and half of the time that a start takes.
ours() {
    local program=$root/scripts/local_aws/$1
    shift
    exec env -u PYTHONDONTWRITEBYTECODE "$python" "$program" "$@"
}

# Before anything is started: COMMAND may be a program that is not there.
check_command() {
    local name=$1 hint=''
    if [[ $1 == jupyter ]]; then
        hint=" Install it: '$root/.venv/bin/pip' install jupyterlab"
        # `jupyter lab` is a program of its own.
        [[ ${2:--} == -* ]] || name=jupyter-$2
    fi
    if ! type -P "$name" >/dev/null; then
        echo "local.sh: there is no command '$name', neither in $root/.venv/bin nor on the PATH.$hint" >&2
        exit 127
    fi
}

# No variable or file of a real account reaches COMMAND.
hide_account() {
    local name
    while read -r name; do
        unset "$name"
    done < <(compgen -e AWS_ || true)
    export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
    export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
}

# start_servers [now]: the AWS, and an `aws` that costs less to call (see aws_command.py).
start_servers() {
    local tries=0
    ours . serve "$folder/port" >"$log" 2>&1 &
    servers+=($!)
    ours aws_command.py "$folder/aws" "$@" &
    servers+=($!)
    mkdir "$folder/bin"
    # shellcheck disable=SC2016  # for the program to expand
    printf '#!/bin/sh\nexec "%s" -IS "%s" "%s" "$@"\n' \
        "$python" "$root/scripts/local_aws/aws_call.py" "$folder/aws" >"$folder/bin/aws"
    chmod +x "$folder/bin/aws"
    PATH=$folder/bin:$PATH
    until [[ -s $folder/port && -S $folder/aws ]]; do
        if ! { kill -0 "${servers[0]}" && kill -0 "${servers[1]}"; } 2>/dev/null || [[ $((tries += 1)) -gt 600 ]]; then
            echo "local.sh: the local AWS does not start: $(tail -n 1 "$log")" >&2
            exit 1
        fi
        sleep 0.1
    done
    AWS_ENDPOINT_URL=http://127.0.0.1:$(<"$folder/port")
    export AWS_ENDPOINT_URL
    export AWS_ACCESS_KEY_ID=AKIALOCALOWNERKEY000 AWS_SECRET_ACCESS_KEY=local
    export AWS_DEFAULT_REGION=$RIOS_AWSBATCH_REGION
    # The same for GDAL's /vsis3/.
    export AWS_S3_ENDPOINT=${AWS_ENDPOINT_URL#http://} AWS_HTTPS=NO AWS_VIRTUAL_HOSTING=FALSE
}

create_stack() {
    local options=()
    echo "local.sh: an AWS is up on this machine, making the stack; Python is $python" >&2
    read -r -a options <<<"${RIOS_AWSBATCH_LOCAL_CREATE:-}"
    if ! "$root/scripts/create.sh" --wait "${options[@]}" >"$folder/create" 2>&1; then
        cat "$folder/create" >&2
        exit 1
    fi
    (ours . push BatchECR "$root/worker.py")
    if [[ -n ${RIOS_AWSBATCH_LOCAL_MAIN:-} ]]; then
        (ours . push BatchECRMain "$RIOS_AWSBATCH_LOCAL_MAIN")
    fi
}

# The delays, faults and policies hold while COMMAND runs, not while the stack is made.
set_conditions() {
    local item faults='' iam=true
    local -a items=()
    IFS=, read -r -a items <<<"${RIOS_AWSBATCH_LOCAL_FAULTS:-}"
    for item in "${items[@]}"; do
        faults+=",\"${item%%=*}\": ${item#*=}"
    done
    [[ ${RIOS_AWSBATCH_LOCAL_IAM:-no} != @(0|no) ]] || iam=false
    control conditions "{\"faults\": {${faults#,}}, \"latency\": ${RIOS_AWSBATCH_LOCAL_LATENCY_MS:-0}, \"iam\": $iam}"
}

# In the background, so that a signal to this script can be passed on at once; with its own Ctrl-C, which bash takes
# from what it puts into the background.
run_command() {
    trap 'pass_on TERM' TERM HUP
    trap 'on_terminal || pass_on INT' INT
    "$python" -S -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"local.sh: {sys.argv[1]}: {error.strerror}")' "$@" <&3 3<&- &
    command=$!
    while true; do
        status=0
        wait "$command" || status=$?
        kill -0 "$command" 2>/dev/null || break
    done
    command=''
}

# A Ctrl-C on a terminal reaches the command by itself.
on_terminal() {
    local fields
    read -r -a fields <<<"$(sed 's/.*) //' "/proc/$$/stat")"
    [[ ${fields[2]} == "${fields[5]}" ]]
}

pass_on() {
    [[ -z $command ]] || kill -s "$1" "$command" 2>/dev/null || true
}

clean_up() {
    local status=$?
    trap '' INT TERM HUP
    trap - EXIT
    set +e
    # Jobs end with the server; a Ctrl-C is not for what answers `aws`.
    if [[ ${#servers[@]} -gt 0 ]]; then
        kill "${servers[@]}" 2>/dev/null
        wait "${servers[@]}"
    fi
    rm -rf "$folder"
    exit "$status"
}

case ${1:-} in
    '' | -h | --help)
        usage
        [[ -n ${1:-} ]] || exit 2
        exit 0 ;;
esac

servers=() command='' status=0 stack=yes
[[ ${RIOS_AWSBATCH_LOCAL_STACK:-yes} != @(0|no) ]] || stack=''
export RIOS_AWSBATCH_STACK=${RIOS_AWSBATCH_STACK:-RIOS}
export RIOS_AWSBATCH_REGION=${RIOS_AWSBATCH_REGION:-${AWS_REGION:-${AWS_DEFAULT_REGION:-ap-southeast-2}}}
choose_python
PATH=$root/.venv/bin:$PATH
check_command "$@"
folder=$(mktemp -d)
log=${RIOS_AWSBATCH_LOCAL_LOG:-$folder/log}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
hide_account
exec 3<&0
start_servers ${stack:+now}
[[ -z $stack ]] || create_stack
set_conditions
run_command "$@"
exit "$status"
