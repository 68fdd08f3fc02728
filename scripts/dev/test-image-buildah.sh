#!/usr/bin/env bash
# The buildah that scripts/dev/test-image.sh gives to build.sh. It does what buildah does, but for the registry, which
# only AWS has: a login is written down, and a push puts the image's name into the local AWS's ECR, whose entry point is
# image/run_image.py. What this machine's network needs is mounted for the time of the build.
#
# Environment: TEST_WORK (folder), TEST_BUILDAH (the real one), TEST_PYTHON, TEST_CERTIFICATES (file, or nothing),
# CONTAINERS_STORAGE_CONF

set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)

case $1 in
    login)
        password=$(cat)
        echo "$* (password of ${#password} characters)" >>"$TEST_WORK/registry" ;;
    push)
        echo "$*" >>"$TEST_WORK/registry"
        [[ $2 == *:latest ]] || exit 0          # the same once more, named after its processors
        case $2 in *main:latest) output=BatchECRMain ;; *) output=BatchECR ;; esac
        "$TEST_PYTHON" "$root/scripts/local_aws" push "$output" "$root/scripts/dev/image/run_image.py" "IMAGE=$2" \
            "BUILDAH=$TEST_BUILDAH" "CONTAINERS_STORAGE_CONF=$CONTAINERS_STORAGE_CONF" ;;
    build)
        shift
        exec "$TEST_BUILDAH" build --volume "$TEST_WORK/pip.conf:/etc/pip.conf:ro" \
            ${TEST_CERTIFICATES:+--volume "$TEST_CERTIFICATES:/run/host-certificates:ro"} "$@" ;;
    *)
        exec "$TEST_BUILDAH" "$@" ;;
esac
