#!/usr/bin/env bash
# Brings version 2 of the AWS command line, which most users have, for the test that runs the scripts with it. Where the
# system has none, Debian's or Ubuntu's package and what it needs are unpacked into .venv/aws2: nothing is installed, and
# nothing else uses it. Needs no root, but .venv, and a network the first time.
#
#   scripts/dev/aws2.sh [--help]

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

FOLDER=$ROOT/.venv/aws2
case ${1:-} in
    '') ;;
    --help | -h) usage; exit 0 ;;
    *) unknown_option "$1" ;;
esac
! PYTHONPATH=$FOLDER/usr/lib/python3/dist-packages /usr/bin/python3 -c 'import awscli' 2>/dev/null || exit 0
type -P apt-get >/dev/null || die "this system has no apt-get to bring it with."
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
read -r -d '' -a PACKAGES < <(
    apt-get install -s --no-install-recommends awscli 2>/dev/null | awk '/^Inst/ { print $2 }') || true
[[ ${#PACKAGES[@]} -gt 0 ]] || die "apt-get knows no package awscli. Is 'apt-get update' needed?"
(cd "$WORK" && apt-get download "${PACKAGES[@]}" >log 2>&1 </dev/null) || die "apt-get could not download ${PACKAGES[*]}."
for package in "$WORK"/*.deb; do
    dpkg -x "$package" "$WORK/root"
done
rm -rf "$FOLDER"
mv "$WORK/root" "$FOLDER"
