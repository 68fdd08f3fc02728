#!/usr/bin/env bash
# Measures what a run takes on the AWS of this machine (scripts/local.sh): seconds against the limit of B blocks of
# t seconds on N workers, AWS requests and their price, memory, and how all of it grows with the number of blocks.
#
# usage: scripts/dev/bench.sh [--quick | --scale | --peers] [--against REV] [--repeat N] [-o FILE]
#
#   --quick        less of everything, in a quarter of a minute
#   --scale        only what is large: 100,000 small calls, and 200 blocks of 30 MB (minutes)
#   --peers        measure what else does this work beside it: RIOS's own code for AWS Batch (with RIOS_SRC), a process
#                  pool, and dask, where .venv/bin/pip has installed distributed (minutes)
#   --against REV  measure that commit too, in turns, each with its own stack, module and worker
#   --repeat N     the best of N runs of each case (1); with --peers the medians (3)
#   -o FILE        write the figures as JSON too
#
# RIOS_SRC=FOLDER:FOLDER names checkouts of RIOS to measure with, as for scripts/test.sh; without, calls take the
# place of RIOS 1.4. The exit status is 1 if any result is wrong. Seconds depend on the machine and what else it
# does, so compare only those of one run with each other.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
options=() against='' program=bench.py

clean_up() {
    local status=$?
    [[ -z $against ]] || git -C "$root" worktree remove --force "$against"
    rm -rf "$folder"
    exit "$status"
}

while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help)
            awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
            exit ;;
        --against)
            revision=${2:?bench.sh: --against needs a commit}
            shift ;;
        --peers) program=peers.py ;;
        *) options+=("$1") ;;
    esac
    shift
done
folder=$(mktemp -d)
trap clean_up EXIT
"$root/scripts/setup.sh" demo
if [[ -n ${revision:-} ]]; then
    git -C "$root" worktree add --quiet --detach "$folder/against" "$revision"
    against=$folder/against
    options+=(--against "$against")
fi
echo 'bench: starting an AWS on this machine'
# Workers come up one after the other, so that it can be seen that no block waits for all of them.
export RIOS_AWSBATCH_LOCAL_START_MS=${RIOS_AWSBATCH_LOCAL_START_MS:-250}
# bench.py asks Batch when a job has started, as soon as its worker is up.
export RIOS_AWSBATCH_LOCAL_LAG=0
# bench.py makes the stack, which is quicker.
export RIOS_AWSBATCH_LOCAL_STACK=no
# What is in these folders, jobs can see.
PYTHONPATH=$root${RIOS_SRC:+:$RIOS_SRC}${against:+:$against}
export PYTHONPATH
# The rasters of peers.py, which workers read.
export RIOS_AWSBATCH_LOCAL_SHARED=$folder/shared
mkdir "$RIOS_AWSBATCH_LOCAL_SHARED"
"$root/scripts/local.sh" "$root/.venv/bin/python" "$root/scripts/dev/$program" "${options[@]}"
