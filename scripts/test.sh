#!/usr/bin/env bash
# Run all tests, on the AWS of this machine (see local.sh). Nothing leaves the machine, and no account is needed.
#
#   scripts/test.sh [PYTEST-OPTION...]
#
#   scripts/test.sh                        everything: linters, tests, a quick benchmark
#   scripts/test.sh -k killed              only the tests whose name says so
#
# Does its own set-up first (see setup.sh). RIOS_SRC=FOLDER:FOLDER... names checkouts of RIOS to test with;
# without any, a small double of RIOS takes their place.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

case ${1:-} in
    -h | --help)
        awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
        exit ;;
esac

lint() {
    local bin=.venv/bin
    "$bin/shellcheck" --external-sources scripts/*.sh .ci/run
    "$bin/hadolint" Dockerfile
    "$bin/cfn-lint" batch.yaml
    "$bin/flake8"
    echo 'shellcheck, hadolint, cfn-lint and flake8 have nothing to say.'
}

scripts/setup.sh test
lint
# What tests and jobs share, as they would a network file system.
RIOS_AWSBATCH_LOCAL_SHARED=$(mktemp -d)
export RIOS_AWSBATCH_LOCAL_SHARED
trap 'rm -rf "$RIOS_AWSBATCH_LOCAL_SHARED"' EXIT
# Workers wait most of the time, so there are more test processes than cores.
scripts/local.sh .venv/bin/python -m pytest -n 4 "$@"
if [[ $# = 0 ]]; then
    scripts/bench.sh --quick
fi
