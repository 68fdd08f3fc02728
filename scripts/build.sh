#!/usr/bin/env bash
# Builds the image that the workers run in and pushes it to the stack's repository.
#
#   scripts/build.sh [OPTION...] [FILE...]
#       the worker image. Each FILE is a module (or a folder) of yours that the workers must be able to import.
#   scripts/build.sh --main SCRIPT [OPTION...] [FILE...]
#       the main image: your main script on top of the worker image, for scripts/submit.sh. Each FILE is a module, a
#       folder or a data file that the script finds beside itself. Build the worker image first.
#
# Each build starts afresh: name again what the one before was given.
#
#   --from IMAGE       put workers into an image of your own that has GDAL and numpy for Python, such as one with conda.
#                      Nothing is installed but what pip must add: boto3 and cloudpickle, where they are missing, and
#                      PIP_PACKAGES
#   --no-push          leave the image on this computer, as rios_awsbatch or rios_awsbatch_main; needs no AWS
#   --platform NAME    the kind of image with --no-push, linux/amd64 or linux/arm64 (that of this computer). An image
#                      that is pushed is of the kind that the stack's computers run; where this computer is of the
#                      other kind, Docker needs QEMU (docker run --privileged --rm tonistiigi/binfmt --install all)
#   --stackname NAME   the stack (RIOS_AWSBATCH_STACK, or RIOS)
#   --region NAME      its region (RIOS_AWSBATCH_REGION, AWS_REGION, AWS_DEFAULT_REGION, or ap-southeast-2)
#   --help             this text
#
# From the environment:
#   EXTRA_PACKAGES   Debian or Ubuntu packages to add, separated by spaces: 'python3-skimage python3-scipy'
#   PIP_PACKAGES     packages of the Python Package Index to add: 'pystac-client odc-stac>=0.3'
#   PYTHON           the Python that runs your script: .venv/bin/python where there is one, else python3
#   RIOS_VERSION     X.Y.Z for that release of RIOS, or 'none'. Unset, the image gets a copy of the RIOS that
#                    your Python imports, or none where there is none
#   BASE_IMAGE       an image with apt-get to start from, instead of the Debian or Ubuntu that has your Python
#   DOCKER           the command that builds: docker, podman, buildah, 'sudo docker'

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

BASE_IMAGE=${BASE_IMAGE:-}
read -r -a ENGINE <<<"${DOCKER:-docker}"
# Without this, Docker's builder adds a record of the build that ECR shows as a second image, without a tag.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1

MAIN='' FROM='' PLATFORM='' PUSH=yes FILES=()
HERE=''             # the version of PYTHON, as 3.12; nothing where that cannot be told
CLOUDPICKLE=''      # what pip adds, so that it is of the same major version here and there
VERSIONS=''         # those in the image
IMAGE_PYTHON=''     # the Python of FROM
ADD=()              # what pip must add to FROM
COMMAND=''          # this command as it was given, but for BASE_IMAGE

read_options() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --main) need_value "$@"; MAIN=$2; shift ;;
            --from) need_value "$@"; FROM=$2; shift ;;
            --platform) need_value "$@"; PLATFORM=$2; shift ;;
            --no-push) PUSH='' ;;
            --stackname) need_value "$@"; STACK=$2; shift ;;
            --region) need_value "$@"; REGION=$2; shift ;;
            --help | -h) usage; exit 0 ;;
            -*) unknown_option "$1" ;;
            *) FILES+=("$1") ;;
        esac
        shift
    done
}

# quote WORD: as one types it.
quote() {
    local escaped="'\\''"
    if [[ $1 =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
        printf '%s' "$1"
    else
        printf "'%s'" "${1//\'/$escaped}"
    fi
}

# command_given [ARGUMENT...]: what was typed.
command_given() {
    local name word
    for name in EXTRA_PACKAGES PIP_PACKAGES RIOS_VERSION DOCKER PYTHON; do
        [[ -z ${!name:-} ]] || printf '%s=%s ' "$name" "$(quote "${!name}")"
    done
    quote "$0"
    for word in "$@"; do
        printf ' %s' "$(quote "$word")"
    done
}

# ------------------------------------------------------------------------------- checks, before anything is built

check_files() {
    local file name
    if [[ -n $FROM ]]; then
        [[ -z $MAIN ]] || die "--from is for the worker image, on which the main image stands. Leave one of the two out."
        for name in EXTRA_PACKAGES BASE_IMAGE RIOS_VERSION; do
            [[ -z ${!name:-} || ${!name} == none ]] ||
                die "with --from nothing is installed but by pip: put what $name names into '$FROM', or into PIP_PACKAGES."
        done
        BASE_IMAGE=$FROM
    fi
    if [[ -n $MAIN ]]; then
        [[ -f $MAIN ]] || die "there is no main script '$MAIN'."
        [[ $(basename "$MAIN") =~ ^[A-Za-z0-9._-]+$ ]] ||
            die "rename '$MAIN': the name of a main script may hold letters, digits, dots, hyphens and underscores."
    fi
    for file in ${FILES[@]+"${FILES[@]}"}; do
        [[ -e $file ]] || die "there is no file '$file'."
        name=$(basename "$file")
        [[ -n $MAIN || ($name != worker.py && $name != rios_awsbatch.py) ]] ||
            die "the image holds a $name already. Give '$file' another name."
    done
}

# ask_python CODE: what PYTHON prints; nothing where it fails.
ask_python() {
    "$PYTHON" -c "$1" 2>/dev/null || true
}

# base_image VERSION: what has this Python as its own; nothing where we know none.
base_image() {
    case $1 in
        3.10) echo ubuntu:22.04 ;;
        3.11) echo debian:12-slim ;;
        3.12) echo ubuntu:24.04 ;;
        3.13) echo debian:13-slim ;;
        3.14) echo ubuntu:26.04 ;;
    esac
}

# Functions travel as bytecode, which one Python 3.x cannot run for another.
choose_base() {
    [[ ! -x $ROOT/.venv/bin/python ]] || PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
    PYTHON=${PYTHON:-python3}
    HERE=$(ask_python 'import sys; print("%d.%d" % sys.version_info[:2])')
    [[ -z $BASE_IMAGE ]] || return 0
    [[ -n $HERE ]] ||
        die "'$PYTHON' does not run. Name the Python that runs your script: PYTHON=/path/to/python3 $0 ..."
    BASE_IMAGE=$(base_image "$HERE")
    [[ -n $BASE_IMAGE ]] ||
        die "'$PYTHON' is Python $HERE, and we know no Debian or Ubuntu that has it. Name an image that does, with apt-get and python3-gdal (BASE_IMAGE=...), or another Python that runs your script (PYTHON=...)."
}

# Their pickles are cloudpickle's, of the same major version. Debian 12 and Ubuntu 22.04 have 2, pip brings 3. What the
# base has of its own pip leaves as it is, where that will do.
choose_cloudpickle() {
    local major
    [[ ${PIP_PACKAGES:-} != *cloudpickle* ]] || return 0
    major=$(ask_python 'import cloudpickle; print(cloudpickle.__version__.split(".")[0])')
    case $BASE_IMAGE,$major in
        *, | ubuntu:22.04,2 | debian:12-slim,2 | ubuntu:24.04,3 | debian:13-slim,3 | ubuntu:26.04,3) ;;
        *) CLOUDPICKLE="cloudpickle==$major.*" ;;
    esac
}

# find_python: which Python of FROM the workers take, as IMAGE_PYTHON, and what pip must ADD to it.
find_python() {
    local found version lacks pins pickle pip
    say "Looking for Python in $FROM"
    # Of those that have the same, the one that the image itself prefers, but for that of the distribution, which comes last.
    # shellcheck disable=SC2016  # for the image's shell
    found=$(run_image "$FROM" sh -c 'first=$(command -v python3 || command -v python)
        for python in "${first##/usr/bin/*}" /opt/conda/bin/python3 /opt/conda/envs/*/bin/python3 /opt/*/bin/python3 \
                "$HOME"/*/bin/python3 /usr/local/bin/python3 /usr/bin/python3; do
            [ ! -x "$python" ] || "$python" -B -c "$1"
        done' sh "$(<"$ROOT/scripts/probe.py")" | sort -t '|' -s -n -k 1,1 | sed -n 1p)
    IFS='|' read -r _ IMAGE_PYTHON version lacks pins pickle pip <<<"$found"
    [[ -n $version ]] || die "the image '$FROM' cannot be had or run here, or it has no Python 3 that this finds."
    [[ $lacks != *osgeo* && $lacks != *numpy* ]] ||
        die "$IMAGE_PYTHON in '$FROM' (Python $version) lacks ${lacks// /, }. Put it into that image: 'conda install -c conda-forge gdal numpy', or on Debian and Ubuntu 'apt-get install python3-gdal' (osgeo is GDAL's)."
    read -r -a ADD <<<"${PIP_PACKAGES:-}"
    [[ $lacks != *boto3* ]] || ADD+=(boto3)
    if [[ ${PIP_PACKAGES:-} != *cloudpickle* && ($lacks == *cloudpickle* ||
            (-n $CLOUDPICKLE && $CLOUDPICKLE != "cloudpickle==${pickle%%.*}.*")) ]]; then
        ADD+=("${CLOUDPICKLE:-cloudpickle}")
    fi
    [[ ${#ADD[@]} -eq 0 || -n $pip ]] ||
        die "$IMAGE_PYTHON in '$FROM' (Python $version) has no pip, which must add ${ADD[*]}. Put them, or pip, into that image."
    # GDAL was compiled for this numpy.
    [[ ${#ADD[@]} -eq 0 ]] || read -r -a ADD <<<"${ADD[*]} $pins"
    say "Python in the image: $IMAGE_PYTHON, $version"
}

# The kind of image: that of the stack's computers, as linux/arm64, since one of another kind would end there with
# "exec format error".
choose_platform() {
    local platform
    platform=linux/$(stack_platform) || exit 1
    [[ -z $PLATFORM || ${PLATFORM%/v8} == "$platform" ]] ||
        die "the computers of stack '$STACK' run images of the kind $platform, not $PLATFORM. Leave --platform out, or see --instancetype and --arm64 of scripts/modify.sh."
    PLATFORM=$platform
}

check_engine() {
    local error
    type -P "${ENGINE[0]}" >/dev/null ||
        die "'${ENGINE[0]}' is not installed. Install Docker (https://docs.docker.com/engine/install/), or podman or buildah and say which: DOCKER=podman $0 ..."
    error=$("${ENGINE[@]}" info 2>&1 >/dev/null) || case $error in
        *'permission denied'*)
            die "you may not use '${ENGINE[*]}' on this computer. Use DOCKER='sudo docker', or have yourself added to the group 'docker' and log in again." ;;
        # As Docker says it before and since version 29.
        *'Docker daemon'* | *'docker daemon'* | *'docker API'*)
            die "Docker is installed but not running. Start it (Docker Desktop, or 'sudo systemctl start docker') and repeat the command." ;;
        *)
            die "'${ENGINE[*]} info' fails, so it cannot build: $(tail -n 1 <<<"$error")" ;;
    esac
}

# run_image IMAGE COMMAND...: what a command says in an image; nothing where it cannot run here.
run_image() {
    local image=$1 container
    shift
    if [[ ${DOCKER:-} == *buildah ]]; then
        container=$("${ENGINE[@]}" from ${PLATFORM:+--platform "$PLATFORM"} "$image") || return 0
        "${ENGINE[@]}" run "$container" "$@" || true
        "${ENGINE[@]}" rm "$container" >/dev/null
    else
        "${ENGINE[@]}" run --rm --network none ${PLATFORM:+--platform "$PLATFORM"} --entrypoint "$1" "$image" "${@:2}" || true
    fi 2>/dev/null
}

# check_worker_image IMAGE: the main image stands on it, so it must be on this computer or in its repository.
check_worker_image() {
    local repository=${1#*/}
    "${ENGINE[@]}" inspect --type image "$1" >/dev/null 2>&1 && return
    if [[ -n $PUSH ]]; then
        aws_command ecr describe-images --repository-name "${repository%:*}" --image-ids "imageTag=${repository##*:}" \
            >/dev/null 2>&1 && return
    fi
    die "there is no worker image $1 yet. Build it first, with the same options but without --main."
}

# ------------------------------------------------------------------------------------------------- the repository

# repository_image OUTPUT: the image in the repository that this output of the stack names, as the stack's job
# definitions call it.
repository_image() {
    local name uri
    name=$(stack_output "$1") || exit 1
    uri=$(aws ecr describe-repositories --repository-names "$name" --query 'repositories[0].repositoryUri') || exit 1
    printf '%s:latest\n' "$uri"
}

log_in() {
    local registry=${1%%/*} password
    password=$(aws ecr get-login-password) || exit 1
    say "Logging in to $registry"
    "${ENGINE[@]}" login --username AWS --password-stdin "$registry" <<<"$password" >/dev/null ||
        die "'${ENGINE[*]}' could not log in to $registry."
}

# check_kind IMAGE: builders may overlook --platform; what was built counts.
check_kind() {
    local kind format='{{.Architecture}}'
    [[ ${DOCKER:-} != *buildah ]] || format='{{.OCIv1.Architecture}}'
    kind=$("${ENGINE[@]}" inspect --type image --format "$format" "$1") || exit 1
    [[ linux/$kind == "$PLATFORM" ]] ||
        die "the image is of the kind linux/$kind, but the computers of stack '$STACK' run $PLATFORM, so it is not pushed. Build it on a computer of that kind, or install QEMU (see --platform in build.sh --help)."
}

# push IMAGE: its kind and its versions are tags, too, which main scripts and scripts/status.sh read.
push() {
    local image=$1 name names=()
    for name in "${PLATFORM#linux/}" ${VERSIONS:+"$VERSIONS"}; do
        name=${image%:*}:$name
        names+=("$name")
        "${ENGINE[@]}" tag "$image" "$name"
    done
    say "Pushing $image"
    for name in "${names[@]}" "$image"; do
        "${ENGINE[@]}" push "$name" ||
            die "could not push $name. The image is on this computer; repeat the command to try again."
    done
    forget_versions "${image#*/}"
}

# forget_versions IMAGE: takes the versions of former images away, which would keep these for ever.
forget_versions() {
    local repository=${1%:*} tags
    try_aws ecr list-images --repository-name "$repository" --output text \
        --query "imageIds[?starts_with(imageTag || '', 'versions--') && imageTag != '$VERSIONS'].imageTag" || return 0
    read -r -a tags <<<"$ANSWER"
    [[ ${#tags[@]} -eq 0 ]] ||
        try_aws ecr batch-delete-image --repository-name "$repository" --image-ids "${tags[@]/#/imageTag=}" || true
}

# ------------------------------------------------------------------------------------------------------ the images

# build IMAGE DOCKERFILE FOLDER [OPTION...]: FOLDER holds what the image gets.
build() {
    local image=$1 dockerfile=$2 folder=$3
    shift 3
    # The image's user is not the one who owns the files here.
    chmod -R u+w,a+rX "$folder"
    find "$folder" -name __pycache__ -prune -exec rm -rf {} +
    "${ENGINE[@]}" build ${PLATFORM:+--platform "$PLATFORM"} --tag "$image" --file "$dockerfile" "$@" "$folder" ||
        die "the image could not be built; the reason is above. A package that cannot be had is one of EXTRA_PACKAGES='${EXTRA_PACKAGES:-}' (apt), PIP_PACKAGES='${PIP_PACKAGES:-}' (pip; numpy, GDAL and boto3 stay as the distribution has them) or RIOS_VERSION='${RIOS_VERSION:-}'."
}

# add_rios FOLDER: the user's own RIOS. A copy, since the objects that travel between the main script and its workers
# must meet the very same code, be it a release, a checkout or a conda package. RIOS is Python alone, so it can be.
add_rios() {
    local found
    if [[ -n ${RIOS_VERSION:-} ]]; then
        say "RIOS in the image: ${RIOS_VERSION}"
    elif found=$("$PYTHON" -c 'import os, rios; print(os.path.dirname(rios.__file__), rios.__version__, sep="\t")' 2>/dev/null); then
        cp -RL "${found%$'\t'*}" "$1/rios"
        say "RIOS in the image: ${found#*$'\t'}, a copy of ${found%$'\t'*}"
    else
        say "RIOS in the image: none is copied, since '$PYTHON' does not import it. $([[ -n $FROM ]] || echo 'RIOS_VERSION=X.Y.Z adds that release.')"
    fi
}

build_worker() {
    local image=$1 version release=${RIOS_VERSION:-none} packages=${PIP_PACKAGES:-}
    version=$(sed -n "s/^__version__ = ['\"]\(.*\)['\"].*/\1/p" "$ROOT/rios_awsbatch.py")
    cp "$ROOT/rios_awsbatch.py" "$ROOT/worker.py" "$WORK/files"
    add_rios "$WORK/files"
    say "Building $image from $BASE_IMAGE"
    if [[ -n $FROM ]]; then
        prepare_own
        build "$image" "$WORK/Dockerfile" "$WORK/files" --build-arg "BASE_IMAGE=$FROM" --build-arg "VERSION=$version"
        return
    fi
    build "$image" "$ROOT/Dockerfile" "$WORK/files" \
        --build-arg "BASE_IMAGE=$BASE_IMAGE" --build-arg "VERSION=$version" \
        --build-arg "EXTRA_PACKAGES=${EXTRA_PACKAGES:-}" \
        --build-arg "PIP_PACKAGES=$packages${CLOUDPICKLE:+${packages:+ }$CLOUDPICKLE}" \
        --build-arg "RIOS_VERSION=${release#none}"
}

# An image of the user's own becomes one of workers: its python3 is the one that was found, with what is beside it.
prepare_own() {
    local word
    mkdir "$WORK/files/bin"
    # shellcheck disable=SC2016  # for the image's shell
    printf '#!/bin/sh\nPATH=%s:$PATH exec %s "$@"\n' "$(quote "${IMAGE_PYTHON%/*}")" "$(quote "$IMAGE_PYTHON")" \
        >"$WORK/files/bin/python3"
    chmod +x "$WORK/files/bin/python3"
    {
        # shellcheck disable=SC2016  # for the builder
        printf 'ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n'
        if [[ ${#ADD[@]} -gt 0 ]]; then
            printf 'RUN PIP_BREAK_SYSTEM_PACKAGES=1 %s -m pip install --no-cache-dir' "$(quote "$IMAGE_PYTHON")"
            for word in "${ADD[@]}"; do
                printf ' %s' "$(quote "$word")"
            done
        fi
        printf '\n'
        sed -n '/^# The modules/,/^LABEL/p' "$ROOT/Dockerfile"
        # shellcheck disable=SC2016
        printf 'ENV PATH=/opt/rios_awsbatch/bin:${PATH}\n'
        grep '^ENTRYPOINT' "$ROOT/Dockerfile"
    } >"$WORK/Dockerfile"
}

build_main() {
    local image=$1 worker=$2
    cp -L "$MAIN" "$WORK/files"
    # Not in the Dockerfile: an entry point cannot hold a build argument, and the script keeps its own name.
    printf 'FROM %s\nCOPY . /opt/main/\nENTRYPOINT ["python3", "/opt/main/%s"]\n' "$worker" "$(basename "$MAIN")" \
        >"$WORK/Dockerfile"
    say "Building $image from $worker"
    build "$image" "$WORK/Dockerfile" "$WORK/files"
}

# --------------------------------------------------------------------------------- Python here and in the image

# image_versions IMAGE: of Python and of what must fit to that of a main script, as a tag: versions--Python-3.12.3--...
# Nothing where the image cannot run here.
image_versions() {
    local ask='import os, re
os.environ["RIOSRun"] = ""
import rios_awsbatch
print("--".join(["versions"] + [
    name + "-" + re.sub("[^A-Za-z0-9.]", ".", version) for name, version in rios_awsbatch.versions().items()]))'
    run_image "$1" python3 -c "$ask"
}

compare_python() {
    local there base
    there=$(sed -n 's/.*--Python-\([0-9]*\.[0-9]*\).*/\1/p' <<<"$VERSIONS")
    [[ -n $there && -n $HERE && $there != "$HERE" ]] || return 0
    base=$(base_image "$HERE")
    if [[ -z $FROM && -n $base && $base != "$BASE_IMAGE" ]]; then
        base="run: BASE_IMAGE=$base $COMMAND"
    elif [[ -n $FROM ]]; then
        base="put that Python into '$FROM'"
    else
        base="name with BASE_IMAGE an image whose python3 is that"
    fi
    warn "the image has Python $there, but '$PYTHON' here is Python $HERE: a main script run here cannot use these workers. Either run the main script as a job too (scripts/build.sh --main, then scripts/submit.sh), or, for an image with Python $HERE, $base"
}

# ---------------------------------------------------------------------------------------------------------------

COMMAND=$(command_given "$@")
read_options "$@"
check_files
if [[ -z $MAIN ]]; then
    choose_base
    choose_cloudpickle
fi
check_engine
if [[ -n $PUSH ]]; then
    require_stack
    choose_platform
fi

[[ -z $FROM ]] || find_python

WORKER_IMAGE=rios_awsbatch:latest IMAGE=rios_awsbatch${MAIN:+_main}:latest
if [[ -n $PUSH ]]; then
    WORKER_IMAGE=$(repository_image BatchECR)
    IMAGE=$WORKER_IMAGE
    [[ -z $MAIN ]] || IMAGE=$(repository_image BatchECRMain)
    log_in "$IMAGE"
fi
[[ -z $MAIN ]] || check_worker_image "$WORKER_IMAGE"

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
mkdir "$WORK/files"
for file in ${FILES[@]+"${FILES[@]}"}; do
    cp -RL "${file%/}" "$WORK/files"
done
if [[ -n $MAIN ]]; then
    build_main "$IMAGE" "$WORKER_IMAGE"
else
    build_worker "$IMAGE"
fi
[[ -n $MAIN ]] || VERSIONS=$(image_versions "$IMAGE")
[[ $VERSIONS =~ ^versions[A-Za-z0-9._-]{1,119}$ ]] || VERSIONS=''
if [[ -n $PUSH ]]; then
    check_kind "$IMAGE"
    push "$IMAGE"
fi
[[ -n $MAIN ]] || compare_python
say "Done: $IMAGE"
