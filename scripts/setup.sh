#!/usr/bin/env bash
# Sets up everything that this folder's scripts need: GDAL for Python from the system's packages, and a
# virtual environment .venv with the rest. A second run finds that nothing is missing
# and needs no network.
#
# usage: scripts/setup.sh [demo|test]
#
#   demo      what demo.sh and local.sh need (default)
#   test      also what test.sh needs
#
# On Debian and Ubuntu it installs the system packages itself, with sudo where you are not root.
# Elsewhere, or to use the GDAL of a conda or other environment, name a Python that has GDAL and numpy:
#
#   PYTHON=~/miniforge3/bin/python3 scripts/setup.sh
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
# Debian's and Ubuntu's own Python, whichever python3 stands first on the PATH: it is the one that
# python3-gdal is for.
SYSTEM_PYTHON=/usr/bin/python3
SYSTEM_PACKAGES=(python3-gdal python3-venv)

say() {
    printf 'setup: %s\n' "$*"
}

die() {
    printf 'setup.sh: %s\n' "$*" >&2
    exit 1
}

main() {
    local extra=demo
    case ${1:-demo} in
        demo | test) extra=${1:-demo} ;;
        -h | --help)
            awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
            return ;;
        *) die "do not understand '$1'. See setup.sh --help." ;;
    esac

    LOG=$(mktemp)
    trap 'rm -f "$LOG"' EXIT

    if is_complete "$extra"; then
        return
    fi
    if ! [[ -f $VENV/.setup-base && $(<"$VENV/.setup-base") == "$(base)" ]] || ! has_gdal "$VENV/bin/python"; then
        if [[ -n ${PYTHON:-} ]]; then
            has_gdal "$PYTHON" || die "PYTHON=$PYTHON cannot import GDAL with numpy ('from osgeo import gdal_array'). Name a Python that can, or leave PYTHON unset."
        else
            install_system_packages
        fi
        make_venv "${PYTHON:-$SYSTEM_PYTHON}"
        base >"$VENV/.setup-base"
    fi
    install_extra "$extra"
    stamp "$extra" >"$VENV/.setup-$extra"
    say "done, in $VENV"
}

# What the environment was made from. If that changes it is made anew, and the folder belongs to it since an
# environment does not survive a move.
base() {
    printf '%s\n' "$ROOT" "${PYTHON:-$SYSTEM_PYTHON}"
}

# What was installed into it.
stamp() {
    base
    cksum <"$ROOT/setup.cfg"
}

# Test's extra includes demo's.
is_complete() {
    local done_before
    for done_before in "$1" test; do
        if [[ -f $VENV/.setup-$done_before &&
                $(<"$VENV/.setup-$done_before") == "$(stamp "$done_before")" ]] &&
                has_gdal "$VENV/bin/python"; then
            return 0
        fi
    done
    return 1
}

# gdal_array is the part of GDAL's bindings that needs numpy, and the numpy they were built for.
has_gdal() {
    "$1" -c 'from osgeo import gdal_array' >/dev/null 2>&1
}

install_system_packages() {
    if has_gdal "$SYSTEM_PYTHON" && "$SYSTEM_PYTHON" -c 'import ensurepip' 2>/dev/null; then
        return
    fi
    local packages="${SYSTEM_PACKAGES[*]}" as_root=()
    type -P apt-get >/dev/null ||
        die "this system has no apt-get. Install GDAL with its Python bindings and numpy in some other way, and name that Python: PYTHON=/path/to/python3 scripts/setup.sh"
    if [[ $EUID -ne 0 ]]; then
        type -P sudo >/dev/null ||
            die "you are not root and there is no sudo. Ask an administrator to run: apt-get install $packages"
        as_root=(sudo)
    fi
    say "installing the system packages $packages"
    # It may fail for one source of many, and not fail without a network: what counts is what can be installed then.
    "${as_root[@]}" apt-get -q update >/dev/null 2>&1 </dev/null || true
    quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -qy install --no-install-recommends "${SYSTEM_PACKAGES[@]}" ||
        die "apt-get could not install $packages. Is there a network?"
    has_gdal "$SYSTEM_PYTHON" ||
        die "$packages are installed, but $SYSTEM_PYTHON still cannot import GDAL ('from osgeo import gdal_array')."
}

make_venv() {
    say "making the virtual environment .venv with $("$1" --version) and GDAL $("$1" -c 'from osgeo import gdal; print(gdal.__version__)')"
    [[ ! -L $VENV ]] || die "$VENV is a link to another folder's environment. Remove the link."
    quietly "$1" -m venv --clear --system-site-packages "$VENV" ||
        die "$1 could not make a virtual environment."
    # A Python that is itself a virtual environment passes on only what its own base has.
    if ! has_gdal "$VENV/bin/python"; then
        packages_folder "$1" >"$(packages_folder "$VENV/bin/python")/gdal-of-PYTHON.pth"
        has_gdal "$VENV/bin/python" || die "the environment made with $1 does not see its GDAL."
    fi
}

packages_folder() {
    "$1" -c 'import sysconfig; print(sysconfig.get_path("platlib"))'
}

install_extra() {
    say "installing the Python packages for '$1' (setup.cfg lists them)"
    # Some packages would bring a newer numpy, which the system's GDAL was not built for.
    local constraint=$VENV/constraints.txt
    "$VENV/bin/python" -c 'import numpy; print("numpy ==", numpy.__version__)' >"$constraint"
    # What is used is compiled when it is first imported, which is little of it.
    (
        cd "$ROOT"
        quietly "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install \
            --no-compile --prefer-binary --constraint "$constraint" --editable ".[$1]"
    ) || die "pip could not install the packages. Is there a network?"
    mend_aws
    has_gdal "$VENV/bin/python" ||
        die "GDAL no longer works in .venv after the packages were installed: see $VENV/bin/pip list."
}

# As pip installs it, the aws command cannot start where the name of this folder has a space.
mend_aws() {
    # shellcheck disable=SC2016  # for the command itself
    [[ $VENV != *' '* ]] || printf '#!/bin/sh\nexec "${0%%/*}/python" -m awscli "$@"\n' >"$VENV/bin/aws"
}

# Runs a command; what it prints is shown only where it fails.
quietly() {
    if ! "$@" >"$LOG" 2>&1 </dev/null; then
        tail -n 20 "$LOG" >&2
        return 1
    fi
}

main "$@"
