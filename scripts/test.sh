#!/usr/bin/env bash
# Run all tests, on the AWS of this machine (see local.sh). Nothing leaves the machine, and no account is needed.
#
#   scripts/test.sh [PYTEST-OPTION...]
#
#   scripts/test.sh                        everything: tests, a quick benchmark, linters
#   scripts/test.sh -k killed              only the tests whose name says so
#
# Does its own set-up first (see setup.sh). RIOS_SRC=FOLDER:FOLDER... names checkouts of RIOS to test with;
# without any, a small double of RIOS takes their place. What the tests write is in a temporary folder of this run,
# which goes away at its end.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

case ${1:-} in
    -h | --help)
        awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
        exit ;;
esac

lint() {
    local bin=.venv/bin status=0
    "$bin/shellcheck" --external-sources scripts/*.sh scripts/dev/*.sh .ci/run || status=1
    "$bin/hadolint" Dockerfile || status=1
    "$bin/cfn-lint" batch.yaml || status=1
    "$bin/flake8" || status=1
    "$bin/flake8" --max-line-length 110 rios_awsbatch.py worker.py scripts examples || status=1
    return "$status"
}

# What Python has compiled it may keep: hundreds of processes import the same.
unset PYTHONDONTWRITEBYTECODE
scripts/setup.sh test
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
status=0
# Beside the tests, which wait most of their time.
if [[ $# = 0 ]]; then
    lint >"$folder/lint" 2>&1 &
    linters=$!
fi
# In the home folder, Jupyter would leave files; in the shared one, tests and jobs meet.
mkdir "$folder/tmp" "$folder/home" "$folder/shared"
export TMPDIR=$folder/tmp HOME=$folder/home RIOS_AWSBATCH_LOCAL_SHARED=$folder/shared
unset XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME XDG_RUNTIME_DIR
# matplotlib looks for fonts once, and says so where a test looks at what is said.
export MPLCONFIGDIR=$root/.venv/matplotlib
.venv/bin/python -c 'import matplotlib.font_manager' 2>/dev/null
# There are more test processes than cores. They make the stack themselves, which takes less than with scripts/create.sh.
RIOS_AWSBATCH_LOCAL_STACK=no scripts/local.sh .venv/bin/python -m pytest -n 8 --durations=10 "$@" || status=$?
if [[ $# = 0 ]]; then
    [[ $status -ne 0 ]] || scripts/dev/bench.sh --quick || status=$?
    if wait "$linters"; then
        echo 'shellcheck, hadolint, cfn-lint and flake8 have nothing to say.'
    else
        status=1
        cat "$folder/lint"
        echo 'test.sh: a linter has failed, see above.' >&2
    fi
fi
exit "$status"
