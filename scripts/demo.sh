#!/usr/bin/env bash
# Shows the whole of it on this machine, without an AWS account: sets up what is missing (setup.sh), creates
# the stack on a local AWS (local.sh and create.sh), has 4 workers compute the texture of a satellite image,
# computes it again in one process and compares every pixel, writes a GeoTIFF and a PNG, and deletes the stack
# (delete.sh).
#
# usage: scripts/demo.sh [-o FOLDER] [FILE.tif [OPTION...]]
#
#   -o FOLDER   where the results go (default: demo-output in the current folder)
#   FILE.tif    your own image instead of examples/data/landsat7_olinda.tif: any raster that GDAL reads, with
#               a red and a near infrared band
#   OPTION      for examples/texture_gdal.py: '--red 4 --nir 5 --green 3' says which bands these are,
#               '--workers 2' how many workers, '--radius 3' is quicker; its --help lists all
#
# The exit status is 1 if any pixel differs.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT
export PYTHON_OF_DEMO=$ROOT/.venv/bin/python

main() {
    local folder=demo-output image=$ROOT/examples/data/landsat7_olinda.tif
    while [[ ${1:-} == -* ]]; do
        case $1 in
            -h | --help)
                awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
                return ;;
            -o)
                [[ -n ${2:-} ]] || die "-o needs a folder."
                folder=$2
                shift 2 ;;
            *) die "do not understand '$1'. See demo.sh --help." ;;
        esac
    done
    if [[ $# -gt 0 ]]; then
        image=$1
        shift
        [[ -r $image ]] || die "cannot read $image."
    fi

    "$ROOT/scripts/setup.sh" demo
    mkdir -p "$folder" || die "cannot make the folder $folder."
    "$ROOT/scripts/local.sh" bash -euo pipefail -c 'run_image "$@"' demo.sh "$image" "$folder" "$@"
    say "the stack is gone, the local AWS has stopped"
}

# What happens while the local AWS is up.
run_image() {
    local image=$1 folder=$2 name
    shift 2
    name=$folder/$(basename "${image%.*}")_texture
    say "computing the texture of $(basename "$image")"
    "$PYTHON_OF_DEMO" "$ROOT/examples/texture_gdal.py" "$image" "$name.tif" \
        --preview "$name.png" --check "$@" | tee "$folder/summary.txt"
    requests_per_block "$(sed -n 's/.*: \([0-9]*\) blocks in .*/\1/p' "$folder/summary.txt")" |
        tee -a "$folder/summary.txt"
    say "deleting the stack"
    "$ROOT/scripts/delete.sh" --yes --wait >/dev/null
}

# The local AWS counts what it is asked, by the main script and by the workers.
requests_per_block() {
    "$PYTHON_OF_DEMO" - "$1" <<'EOF'
import json, os, sys, urllib.request
with urllib.request.urlopen(os.environ['AWS_ENDPOINT_URL'] + '/_local/requests') as answer:
    counts = json.load(answer)
blocks = int(sys.argv[1])
main, workers = (sum(counts.get(who, {}).values()) for who in ('main', 'workers'))
print(f'{(main + workers) / blocks:.1f} AWS requests per block: {main} by the main script and {workers} by the workers '
      f'for {blocks} blocks, start and end of the run included')
EOF
}

say() {
    printf 'demo: %s\n' "$*"
}

die() {
    printf 'demo.sh: %s\n' "$*" >&2
    exit 2
}

export -f run_image requests_per_block say
main "$@"
