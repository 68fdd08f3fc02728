#!/usr/bin/env bash
# Checks that your AWS account, the stack and the image are what main scripts need, and says what to do where they are
# not. Run it once after scripts/build.sh, and whenever something is odd. It changes nothing; but last comes a run with
# two workers, which are up for some minutes and cost less than a cent.
#
#   scripts/check.sh [OPTION...]
#
#   --dry              leave that run out
#   --json             the same in JSON, for a program
#   --stackname NAME   the stack (RIOS_AWSBATCH_STACK, or RIOS)
#   --region NAME      its region (RIOS_AWSBATCH_REGION, AWS_REGION, AWS_DEFAULT_REGION, or ap-southeast-2)
#   --help             this text
#
# Each line is a check: ✓ it holds, ✗ it does not (what to do follows), - your permissions do not let you see it. The exit
# status is 0 if none is ✗. The file check.json gets all of it, without keys, account numbers and names, for a bug report.
# PYTHON names the Python that runs your script (.venv/bin/python where there is one, else python3).

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

OPTIONS=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --dry | --json) OPTIONS+=("$1") ;;
        --stackname) need_value "$@"; STACK=$2; shift ;;
        --region) need_value "$@"; REGION=$2; shift ;;
        --help | -h) usage; exit 0 ;;
        *) unknown_option "$1" ;;
    esac
    shift
done
check_settings
[[ ! -x $ROOT/.venv/bin/python ]] || PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
export RIOS_AWSBATCH_STACK=$STACK RIOS_AWSBATCH_REGION=$REGION RIOS_AWSBATCH_START_TIMEOUT=${RIOS_AWSBATCH_START_TIMEOUT:-900}
PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python3}" "$ROOT/scripts/check.py" ${OPTIONS[@]+"${OPTIONS[@]}"}
