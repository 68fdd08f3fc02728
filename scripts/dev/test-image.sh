#!/usr/bin/env bash
# Builds the images and runs them, for real and without a Docker engine: scripts/build.sh with buildah, on a Debian
# made with debootstrap, pushes a worker image with an extra apt and an extra pip package and a main image on top of
# one that is made with --from; scripts/submit.sh runs the main image as a job of the local AWS, which starts its workers
# in their containers; scripts/check.sh finds nothing wrong with them.
#
#   scripts/dev/test-image.sh [--help] [RELEASE]      of Debian: bookworm (12), trixie (13, without RELEASE), sid
#
# It says how large the worker image is and how long the first block takes, from AWSBatchExecutor() to its result.
#
# Runs as root (by sudo otherwise) on Debian or Ubuntu and installs buildah and debootstrap where they are missing.
# The Debian that the images start from is kept in ~/.cache/rios_awsbatch (XDG_CACHE_HOME), so that a second run is
# quicker; everything else is in a temporary folder and goes away.
#
#   PYTHON          the Python to use where there is no .venv
#   DEBIAN_MIRROR   where Debian comes from; default: what apt uses on this machine, or debootstrap's own default

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/rios_awsbatch
BASE_DAYS=30           # then the kept Debian is made anew
BUILDAH=/usr/bin/buildah
PROGRAMS=$ROOT/scripts/dev/image       # those that are in the images, and the one that runs them
# Both small, and neither comes with GDAL: the blocks of the test import them.
EXTRA_APT=python3-affine EXTRA_PIP=geographiclib

step() {
    printf '%4d s  %s\n' "$SECONDS" "$*"
}

# quietly COMMAND...: its output only where it fails.
quietly() {
    local log=$WORK/log
    "$@" >"$log" 2>&1 </dev/null || { tail -n 40 "$log" >&2; die "failed: $*"; }
}

# ---------------------------------------------------------------------------------------------------- preparations

as_root() {
    [[ $EUID -ne 0 ]] || return 0
    type -P sudo >/dev/null || die "this needs root: debootstrap and buildah's chroot do."
    exec sudo -E "$0" "$@"
}

install_tools() {
    type -P buildah debootstrap >/dev/null && return
    type -P apt-get >/dev/null || die "install buildah and debootstrap; this system has no apt-get to do it with."
    step "installing buildah and debootstrap"
    quietly apt-get -q update
    quietly env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends buildah debootstrap
}

# The mirror of Debian that this machine is set up for; nothing on another system.
debian_mirror() {
    # shellcheck disable=SC2016  # apt-get fills these in
    apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(SITE)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $4; exit }'
}

make_base() {
    local mirror=${DEBIAN_MIRROR:-} proxy
    mkdir -p "$CACHE"
    find "$CACHE" -name "$RELEASE-*.tar" -mtime "+$BASE_DAYS" -delete
    TARBALL=$CACHE/$RELEASE-slim-$(dpkg --print-architecture).tar
    # A proxy that only apt's own configuration names is for the builds too.
    proxy=$(apt-config shell proxy Acquire::http::Proxy)
    [[ -z $proxy || -n ${http_proxy:-} ]] || { eval "$proxy"; export http_proxy=$proxy; }
    [[ ! -f $TARBALL ]] || return 0
    step "making Debian $RELEASE with debootstrap, once"
    mirror=${mirror:-$(debian_mirror)}
    quietly debootstrap --variant=minbase "$RELEASE" "$WORK/root" ${mirror:+"$mirror"}
    # As in Debian's own slim images: no manuals, and no waiting for the disk after each package.
    rm -rf "$WORK"/root/var/{cache/apt,lib/apt/lists,log}/* "$WORK"/root/usr/share/{doc,info,locale,man}/*
    echo force-unsafe-io >"$WORK/root/etc/dpkg/dpkg.cfg.d/slim"
    # A mirror may be some weeks behind.
    echo 'Acquire::Check-Valid-Until "false";' >"$WORK/root/etc/apt/apt.conf.d/slim"
    tar -C "$WORK/root" --one-file-system -cf "$TARBALL.part" .
    mv "$TARBALL.part" "$TARBALL"
    rm -rf "$WORK/root"
}

# buildah keeps its images in WORK. Its fast way to do so does not work on every file system.
prepare_buildah() {
    local driver
    export CONTAINERS_STORAGE_CONF=$WORK/storage.conf BUILDAH_ISOLATION=chroot
    for driver in overlay vfs; do
        printf '[storage]\ndriver = "%s"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$driver" "$WORK" "$WORK" \
            >"$WORK/storage.conf"
        "$BUILDAH" info >/dev/null 2>&1 && break
        rm -rf "${WORK:?}/graph" "${WORK:?}/run"
    done
    step "importing Debian $RELEASE (storage: $driver)"
    mkdir "$WORK/base"
    ln "$TARBALL" "$WORK/base/base.tar" 2>/dev/null || cp "$TARBALL" "$WORK/base/base.tar"
    printf 'FROM scratch\nADD base.tar /\n' >"$WORK/base/Dockerfile"
    quietly "$BUILDAH" build --tag "$BASE" "$WORK/base"
    rm -rf "$WORK/base"
}

# ------------------------------------------------------------------------------------------------------- stand-ins

# What build.sh is given for buildah, and the settings of pip for the time of the build.
prepare_engine() {
    printf '[global]\ncert = /run/host-certificates\n' >"$WORK/pip.conf"
    [[ -z ${PIP_INDEX_URL:-} ]] || printf 'index-url = %s\n' "$PIP_INDEX_URL" >>"$WORK/pip.conf"
    ln -s "$ROOT/scripts/dev/test-image-buildah.sh" "$WORK/buildah"
}

# ------------------------------------------------------------------------------------------------------- the test

# Runs under local.sh.
test_on_local_aws() {
    local worker main folder status=0 files=("$PROGRAMS/ground.py")
    export DOCKER=$WORK/buildah BASE_IMAGE=$BASE RIOS_VERSION=none EXTRA_PACKAGES=$EXTRA_APT PIP_PACKAGES=$EXTRA_PIP
    step "building the worker image"
    # That of Debian 12 knows no AWS_ENDPOINT_URL, and only the older protocol of SQS, which the local AWS does not.
    if [[ $RELEASE == bookworm ]]; then
        folder=$("$PYTHON" -c 'import boto3; print(boto3.__path__[0])')
        files+=("$folder" "${folder%/*}/botocore" "${folder%/*}/s3transfer")
    fi
    quietly "$ROOT/scripts/build.sh" "${files[@]}"
    # Each is pushed under other names, too.
    worker=$(awk '$1 == "push" && !/main/ && /:latest/ { print $2; exit }' "$WORK/registry")
    check_image "$worker"
    measure_image "$worker"
    step "building one from an image without apt-get, with a virtual environment"
    own_image "$worker"
    quietly env EXTRA_PACKAGES= PIP_PACKAGES= BASE_IMAGE= "$ROOT/scripts/build.sh" --from localhost/own:latest "${files[@]}"
    step "building the main image on it"
    quietly "$ROOT/scripts/build.sh" --main "$PROGRAMS/main.py"
    main=$(awk '$1 == "push" && /main/ && /:latest/ { print $2; exit }' "$WORK/registry")
    step "running the main image as a job, and its workers"
    # It ends with status 3 on purpose: submit.sh has to hand that on.
    "$ROOT/scripts/submit.sh" --wait -- /home/rios/areas.tif 'an argument with "quotes" and a , comma' \
        >"$WORK/output" 2>"$WORK/states" || status=$?
    if [[ $status -ne 3 ]] || ! grep -q '12 blocks by [12] workers with /opt/venv/bin/python3 .*same pixels.*with "quotes" and a , comma' "$WORK/output"; then
        cat "$WORK/states" "$WORK/output" >&2
        die "the job of $main ended with status $status, and without its last line."
    fi
    grep '12 blocks by' "$WORK/output"
    grep -q 'SUCCEEDED\|FAILED' "$WORK/states" || die "submit.sh showed no states."
    step "checking all that with scripts/check.sh"
    check_account "$worker"
}

# check_account IMAGE: with the Python that is in it, which fits that of the workers.
check_account() {
    local container
    container=$("$BUILDAH" from --pull-never "$1")
    # shellcheck disable=SC2016  # for that script
    printf '#!/usr/bin/env bash\nreadarray -t given < <(env | sed -nE "s/^(AWS|RIOS|PYTHONPATH)/--env=&/p")\n%s "${given[@]}" %s -- python3 "$@"\n' \
        "exec '$BUILDAH' run --network host --volume '$ROOT:$ROOT:ro'" "$container" >"$WORK/python"
    chmod +x "$WORK/python"
    PYTHON=$WORK/python PYTHONPATH=/opt/rios_awsbatch "$ROOT/scripts/check.sh" >"$WORK/output" ||
        { cat "$WORK/output" >&2; die "scripts/check.sh found something."; }
    grep '^. run: \|^. /vsis3/: ' "$WORK/output"
    "$BUILDAH" rm "$container" >/dev/null
}

# own_image IMAGE: what a user may have.
own_image() {
    mkdir "$WORK/own"
    printf 'FROM %s\nUSER 0\nRUN python3 -m venv --system-site-packages --without-pip /opt/venv && rm -f /usr/bin/apt* /usr/bin/dpkg*\nUSER 10001\n' \
        "$1" >"$WORK/own/Dockerfile"
    quietly "$BUILDAH" build --tag localhost/own:latest "$WORK/own"
}

# check_image IMAGE: what the Dockerfile promises.
check_image() {
    local container folder found version
    version=$(sed -n "s/^__version__ = ['\"]\(.*\)['\"].*/\1/p" "$ROOT/rios_awsbatch.py")
    found=$("$BUILDAH" inspect --type image --format \
        '{{index .OCIv1.Config.Labels "org.opencontainers.image.version"}} {{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}}' "$1")
    [[ $found == "$version 10001 [python3 /opt/rios_awsbatch/worker.py]" ]] || die "the image says of itself: $found"
    container=$("$BUILDAH" from --pull-never "$1")
    folder=$("$BUILDAH" mount "$container")
    found=$(find "$folder"/var/lib/apt/lists "$folder"/var/cache/apt "$folder"/root/.cache "$folder"/tmp -type f -size +0 2>/dev/null || true)
    [[ -z $found ]] || die "left in the image: $found"
    # The Dockerfile shortens what botocore knows of the services: all of them must still be there for a function.
    quietly "$BUILDAH" run "$container" python3 -B -I -c 'import boto3
for service in boto3.session.Session(region_name="us-west-2").get_available_services():
    boto3.client(service, "us-west-2", aws_access_key_id="a", aws_secret_access_key="b")'
    "$BUILDAH" rm "$container" >/dev/null
    grep -q "^login --username AWS --password-stdin ${1%%/*} (password of [1-9]" "$WORK/registry" ||
        die "build.sh did not log in to ${1%%/*}."
}

# measure_image IMAGE: its size on a worker's disk, and what a worker pulls: its layers, compressed as a push does it.
measure_image() {
    local container disk pulled
    container=$("$BUILDAH" from --pull-never "$1")
    disk=$(du -s --block-size=1MB "$("$BUILDAH" mount "$container")" | cut -f 1)
    "$BUILDAH" rm "$container" >/dev/null
    quietly "$BUILDAH" push --compression-format gzip "$1" "dir:$WORK/pushed"
    pulled=$(du -s --block-size=1MB "$WORK/pushed" | cut -f 1)
    rm -rf "$WORK/pushed"
    printf 'worker image: %d MB, compressed %d MB, which take %d.%d s at 100 MB/s\n' \
        "$disk" "$pulled" $((pulled / 100)) $((pulled / 10 % 10))
}

clean_up() {
    local status=$?
    trap - EXIT
    if [[ -f $WORK/storage.conf ]]; then
        "$BUILDAH" rm --all >/dev/null 2>&1 || true
        umount "$WORK/graph/overlay" 2>/dev/null || true
    fi
    rm -rf --one-file-system "$WORK"
    exit "$status"
}

# ----------------------------------------------------------------------------------------------------------------

PYTHON=${PYTHON:-python3}
[[ ! -x $ROOT/.venv/bin/python ]] || PYTHON=$ROOT/.venv/bin/python
RELEASE=${1:-trixie}
case $RELEASE in
    --help | -h) usage; exit 0 ;;
    --on-local-aws) RELEASE=$2 WORK=$3 SECONDS=$4 ;;                # by itself, under local.sh
    -*) unknown_option "$1" ;;
esac
BASE=localhost/$RELEASE:latest
[[ ${1:-} != --on-local-aws ]] || { test_on_local_aws; exit; }
"$ROOT/scripts/setup.sh"
as_root "$@"
WORK=$(mktemp -d)
chmod 755 "$WORK"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
CERTIFICATES=''
[[ ! -f /etc/ssl/certs/ca-certificates.crt ]] || CERTIFICATES=/etc/ssl/certs/ca-certificates.crt
install_tools
make_base
prepare_buildah
prepare_engine
# For test-image-buildah.sh, which build.sh calls: it has a WORK and a PYTHON of its own.
export TEST_WORK=$WORK TEST_BUILDAH=$BUILDAH TEST_PYTHON=$PYTHON TEST_CERTIFICATES=$CERTIFICATES
# The local AWS's jobs start containers, from the images that are there.
RIOS_AWSBATCH_LOCAL_SHARED=$WORK "$ROOT/scripts/local.sh" "$0" --on-local-aws "$RELEASE" "$WORK" "$SECONDS"
step "passed: the image builds, and works"
