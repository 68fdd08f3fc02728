#!/usr/bin/env bash
# Measures what a run takes on the AWS of this machine (scripts/local.sh): seconds against the limit of B blocks of
# t seconds on N workers, AWS requests and their price, memory, and how all of it grows with the number of blocks.
#
# usage: scripts/bench.sh [--quick | --scale] [-o FILE]
#
#   --quick    less of everything, in under a minute
#   --scale    only what is large: 100,000 small calls, and 200 blocks of 30 MB (minutes; needs 14 GB of /tmp)
#   -o FILE    write the figures as JSON too
#
# RIOS itself is measured where Python can import it, as in PYTHONPATH=~/rios-2.0.9 scripts/bench.sh. The exit
# status is 1 if any result is wrong. Seconds depend on the machine and what else it does, so compare those of one
# run with each other: the table has them with a process pool and a plain loop for that.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

case ${1:-} in
    -h | --help)
        awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
        exit ;;
esac
"$ROOT/scripts/setup.sh" demo
echo 'bench: starting an AWS on this machine and creating the stack'
# Workers come up one after the other, so that it can be seen that no block waits for all of them.
export RIOS_AWSBATCH_LOCAL_START_MS=${RIOS_AWSBATCH_LOCAL_START_MS:-250}
export RIOS_AWSBATCH_LOCAL_CREATE="--maxjobs 16"
"$ROOT/scripts/local.sh" "$ROOT/.venv/bin/python" "$ROOT/scripts/bench.py" "$@"
