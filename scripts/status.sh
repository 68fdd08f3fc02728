#!/usr/bin/env bash
# Shows the stack: its state and outputs, its images and jobs, the runs in progress, and what runs that died have left
# behind.
#
#   scripts/status.sh [OPTION...]
#
#   --watch            the runs in progress, again and again until Ctrl-C: blocks done and to do, blocks per second since
#                      the last look, time left, what the workers have cost so far (at an on-demand price)
#   --clean            remove what dead runs left: jobs, queues, objects. A living run is never touched
#   --stackname NAME   name of the stack (RIOS_AWSBATCH_STACK, or RIOS)
#   --region NAME      its region (RIOS_AWSBATCH_REGION, AWS_REGION, AWS_DEFAULT_REGION, or ap-southeast-2)
#   --help             this text
#
# A run lives while its main script renews the object runs/RUN/lease in the bucket, which says for how many seconds
# it holds, and how far the run is. It counts as dead when half as much again has passed; without a lease, five minutes
# after it began.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CLEAN='' WATCH=''
START_SECONDS=300      # for a run that has no lease, or none that can be read
WATCH_SECONDS=10       # between two looks; main scripts renew their leases four times per LEASE_SECONDS

read_options() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --watch) WATCH=yes ;;
            --clean) CLEAN=yes ;;
            --stackname) need_value "$@"; STACK=$2; shift ;;
            --region) need_value "$@"; REGION=$2; shift ;;
            --help | -h) usage; exit 0 ;;
            *) unknown_option "$1" ;;
        esac
        shift
    done
}

show_stack() {
    say "Stack $STACK in region $REGION: $STACK_STATUS"
    case $STACK_STATUS in
        *FAILED | *ROLLBACK*) say "  Why: $(explain_failure "$(last_change)")" ;;
    esac
    awk -F '\t' '$2 != "" { printf "  %-38s %s\n", $1, $2 }' <<<"$STACK_OUTPUTS"
}

show_images() {
    say
    say Images
    show_image worker BatchECR 'scripts/build.sh'
    show_image main BatchECRMain 'scripts/build.sh --main SCRIPT'
}

# show_image NAME OUTPUT COMMAND
show_image() {
    local wanted
    if ! image_of "$2"; then
        say "  $1: none yet ($3 builds it)"
        return
    fi
    wanted=$(stack_platform) || wanted=''
    say "  $1: ${IMAGE_KIND:-of unknown kind}$IMAGE_VERSIONS, pushed $(age_of "$IMAGE_DATE") ago"
    [[ -z $IMAGE_KIND || $IMAGE_KIND == "$wanted" ]] ||
        say "    but the stack's computers run $wanted: build it anew with $3"
}

# age_of DATE: as "3 days"; the AWS command line writes seconds or an ISO date.
age_of() {
    python3 - "$1" <<'PYTHON'
import datetime
import sys

try:
    then = datetime.datetime.fromtimestamp(float(sys.argv[1]), datetime.timezone.utc)
except ValueError:
    then = datetime.datetime.fromisoformat(sys.argv[1].replace('Z', '+00:00'))
minutes = max(0, int((datetime.datetime.now(datetime.timezone.utc) - then).total_seconds())) // 60
print(f'{minutes} min' if minutes < 120 else f'{minutes // 60} h' if minutes < 2880 else f'{minutes // 1440} days')
PYTHON
}

# An array counts as its children, each in its own state.
show_jobs() {
    local arrays
    say
    say "Jobs (Batch forgets finished ones after some days)"
    arrays=$(awk -F '\t' '$4 != "None" { print $1 }' "$JOBS")
    {
        awk -F '\t' '$4 == "None" { print $3, 1 }' "$JOBS"
        # Batch describes a hundred at a time.
        xargs -n 100 <<<"$arrays" | while read -r -a ids; do
            [[ ${#ids[@]} -eq 0 ]] || aws batch describe-jobs --jobs "${ids[@]}" --output json \
                --query 'jobs[].arrayProperties.statusSummary' | sed -n 's/.*"\([A-Z]*\)": \([0-9]*\).*/\1 \2/p'
        done
    } | awk '
        { count[$1] += $2 }
        END {
            n = split("SUBMITTED PENDING RUNNABLE STARTING RUNNING SUCCEEDED FAILED", states, " ")
            for (i = 1; i <= n; i++) if (count[states[i]]) { printf "  %-10s %d\n", states[i], count[states[i]]; any = 1 }
            if (!any) print "  none"
        }'
}

# All runs there is anything of, to the file RUNS, one a line: id, living or dead, age, queues, objects, megabytes, jobs,
# how far it is. SEEN remembers how far it was at the last look.
list_runs() {
    local key now
    now=$(date -u +%Y-%m-%dT%H:%M:%S)
    # Before anything is removed, S3's clock counts: this computer's may be wrong.
    [[ -z $CLEAN ]] || aws s3api put-object --bucket "$BUCKET" --key runs/clock >/dev/null
    aws s3api list-objects-v2 --bucket "$BUCKET" --prefix runs/ --output text \
        --query 'Contents[].[Key, LastModified, Size]' >"$OBJECTS"
    # Asked for now: one that is there without is of a look that was broken off.
    [[ -z $CLEAN ]] || now=$(awk -F '\t' '$1 == "runs/clock" { print substr($2, 1, 19) }' "$OBJECTS")
    [[ -n $now ]] || die "somebody else is just cleaning up. Repeat the command."
    [[ -z $CLEAN ]] || aws s3api delete-object --bucket "$BUCKET" --key runs/clock >/dev/null
    while IFS= read -r key; do
        # Where the run has just ended, its lease is gone.
        printf '%s\t%s\n' "$key" "$(aws_command s3 cp --quiet "s3://$BUCKET/$key" - </dev/null 2>/dev/null || true)"
    done < <(cut -f 1 "$OBJECTS" | grep '/lease$' || true) >"$LEASES"
    python3 "$ROOT/scripts/runs.py" "$now" "$STACK" "$START_SECONDS" "$QUEUES" "$OBJECTS" "$JOBS" "$LEASES" "$SEEN" \
        >"$RUNS"
}

# show_runs living|dead
show_runs() {
    awk -F '\t' -v which="$1" '
        $2 == which {
            printf "  %s  began %s ago: jobs %d, queues %d, objects %d (%s MB)\n", $1, $3, $7, $4, $5, $6; any = 1
            if ($8) print "    " $8
        }
        END { if (!any) print "  none" }' "$RUNS"
}

watch_runs() {
    trap 'exit 0' INT TERM
    : >"$JOBS"
    : >"$QUEUES"
    while :; do
        list_runs
        [[ ! -t 1 ]] || printf '\033[H\033[2J'
        say "Runs on stack $STACK in region $REGION at $(date +%H:%M:%S); Ctrl-C ends this"
        awk -F '\t' '$2 == "living" { printf "  %s  began %s ago\n    %s\n", $1, $3, $8 ? $8 : "has not said yet how far it is"; any = 1 }
            END { if (!any) print "  none" }' "$RUNS"
        # In the background, so that Ctrl-C ends it at once.
        sleep "$WATCH_SECONDS" &
        wait $!
    done
}

remove_run() {
    local run=$1 id name state queue
    while IFS=$'\t' read -r id name state _; do
        if [[ $name == "${STACK}_$run" && $state != SUCCEEDED && $state != FAILED ]]; then
            aws batch terminate-job --job-id "$id" --reason 'The main script of this run is dead'
        fi
    done <"$JOBS"
    while read -r queue; do
        if [[ ${queue##*/} == "${STACK}_${run}_"* ]]; then
            delete_queue "$queue"
        fi
    done <"$QUEUES"
    aws s3 rm --recursive --only-show-errors "s3://$BUCKET/runs/$run/"
    say "  Removed what was left of $run."
}

read_options "$@"
check_settings
describe_stack
if [[ $STACK_STATUS == NONE ]]; then
    require_stack
fi
require_ours
[[ -n $WATCH ]] || show_stack
# A stack that is only half there has nothing more to show.
case $STACK_STATUS in
    CREATE_COMPLETE | UPDATE_*) ;;
    *) exit ;;
esac

FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
JOBS=$FOLDER/jobs QUEUES=$FOLDER/queues OBJECTS=$FOLDER/objects LEASES=$FOLDER/leases RUNS=$FOLDER/runs SEEN=$FOLDER/seen
BUCKET=$(stack_output BatchBucket)
[[ -z $WATCH ]] || watch_runs

QUEUE=$(stack_output BatchProcessingJobQueueName)
QUEUE_MAIN=$(stack_output BatchProcessingJobQueueMainName)
show_images
list_jobs "$QUEUE" >"$JOBS"
list_jobs "$QUEUE_MAIN" >>"$JOBS"
show_jobs
run_queues >"$QUEUES"
list_runs
say
say 'Runs in progress'
show_runs living
say
say 'Left behind by dead runs'
show_runs dead
DEAD=$(awk -F '\t' '$2 == "dead" { print $1 }' "$RUNS")
if [[ -n $DEAD && -n $CLEAN ]]; then
    for run in $DEAD; do
        remove_run "$run"
    done
elif [[ -n $DEAD ]]; then
    say '  Remove it with scripts/status.sh --clean.'
fi
