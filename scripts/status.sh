#!/usr/bin/env bash
# Shows the stack: its state and outputs, its jobs, the runs in progress, and what runs that died have left behind.
#
#   scripts/status.sh [OPTION...]
#
#   --clean            remove what dead runs left: jobs, queues, objects. A living run is never touched
#   --stackname NAME   name of the stack (RIOS_AWSBATCH_STACK, or RIOS)
#   --region NAME      its region (RIOS_AWSBATCH_REGION, AWS_REGION, AWS_DEFAULT_REGION, or ap-southeast-2)
#   --help             this text
#
# A run lives while its main script renews the object runs/RUN/lease in the bucket, which says for how many seconds
# it holds. It counts as dead when half as much again has passed; without a lease, five minutes after it began.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CLEAN=''
START_SECONDS=300      # for a run that has no lease, or none that can be read

read_options() {
    while [[ $# -gt 0 ]]; do
        case $1 in
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

# The event with which the last change or deletion began; nothing where there was none since the stack was created.
last_change() {
    aws cloudformation describe-stack-events --stack-name "$STACK_ID" --output json --query "StackEvents[?ResourceType==\
        'AWS::CloudFormation::Stack' && contains(['UPDATE_IN_PROGRESS', 'DELETE_IN_PROGRESS'], ResourceStatus)] | [0].EventId" |
        tr -d '"' | grep -v null || true
}

# All jobs that Batch still knows of, to the file JOBS: id, name, state, how many of an array.
list_jobs() {
    local state
    for state in SUBMITTED PENDING RUNNABLE STARTING RUNNING SUCCEEDED FAILED; do
        aws batch list-jobs --job-queue "$QUEUE" --job-status "$state" --output text \
            --query 'jobSummaryList[].[jobId, jobName, status, arrayProperties.size]'
    done >"$JOBS"
}

# An array counts as its children, each in its own state, while it runs.
show_jobs() {
    local id name state size
    say
    say "Jobs on $QUEUE (Batch forgets finished ones after some days)"
    while IFS=$'\t' read -r id name state size; do
        if [[ $size == None ]]; then
            say "$state 1"
        else
            aws batch describe-jobs --jobs "$id" --output json --query 'jobs[0].arrayProperties.statusSummary' |
                sed -n 's/.*"\([A-Z]*\)": \([0-9]*\).*/\1 \2/p'
        fi
    done <"$JOBS" | awk '
        { count[$1] += $2 }
        END {
            n = split("SUBMITTED PENDING RUNNABLE STARTING RUNNING SUCCEEDED FAILED", states, " ")
            for (i = 1; i <= n; i++) if (count[states[i]]) { printf "  %-10s %d\n", states[i], count[states[i]]; any = 1 }
            if (!any) print "  none"
        }'
}

# All runs there is anything of, to the file RUNS, one a line: id, living or dead, age, queues, objects, megabytes, jobs.
list_runs() {
    local key now
    run_queues >"$QUEUES"
    now=$(date -u +%Y-%m-%dT%H:%M:%S)
    # Before anything is removed, S3's clock counts: this computer's may be wrong.
    [[ -z $CLEAN ]] || aws s3api put-object --bucket "$BUCKET" --key runs/clock >/dev/null
    aws s3api list-objects-v2 --bucket "$BUCKET" --prefix runs/ --output text \
        --query 'Contents[].[Key, LastModified, Size]' >"$OBJECTS"
    [[ -z $CLEAN ]] || aws s3api delete-object --bucket "$BUCKET" --key runs/clock >/dev/null
    while IFS= read -r key; do
        # Where the run has just ended, its lease is gone.
        printf '%s\t%s\n' "$key" "$(aws_command s3 cp --quiet "s3://$BUCKET/$key" - </dev/null 2>/dev/null || true)"
    done < <(cut -f 1 "$OBJECTS" | grep '/lease$' || true) >"$LEASES"
    python3 - "$now" "$STACK" "$START_SECONDS" "$QUEUES" "$OBJECTS" "$JOBS" "$LEASES" >"$RUNS" <<'PYTHON'
import collections
import datetime
import json
import re
import sys

now, stack, start_seconds, queues, objects, jobs, leases = sys.argv[1:]
start_seconds = float(start_seconds)
runs = collections.defaultdict(lambda: {'alive': None, 'queues': 0, 'objects': 0, 'bytes': 0, 'jobs': 0})
run_id = re.compile(r'\d{8}T\d{6}-[0-9a-f]+')


def seconds_since(text, form='%Y-%m-%dT%H:%M:%S'):
    return (datetime.datetime.strptime(now[:19], '%Y-%m-%dT%H:%M:%S') - datetime.datetime.strptime(text, form)).total_seconds()


def holds(lease):
    try:
        return 1.5 * json.loads(lease)['seconds']
    except (ValueError, KeyError, TypeError):
        return start_seconds


leases = dict(line.rstrip('\n').split('\t', 1) for line in open(leases))
for line in open(objects):
    if line.startswith('runs/clock\t'):
        now = line.split('\t')[1]
for line in open(queues):
    runs[line.strip().rsplit('/', 1)[1].split('_')[1]]['queues'] += 1
for line in open(objects):
    key, *rest = line.rstrip('\n').split('\t')
    parts = key.split('/')
    if len(parts) > 2 and run_id.fullmatch(parts[1]):
        run = runs[parts[1]]
        run['objects'] += 1
        run['bytes'] += int(rest[1])
        if parts[2:] == ['lease']:
            run['alive'] = seconds_since(rest[0][:19]) < holds(leases.get(key))
for line in open(jobs):
    _, name, state, _ = line.rstrip('\n').split('\t')
    owner, _, run = name.partition('_')
    if owner == stack and run_id.fullmatch(run) and state not in ('SUCCEEDED', 'FAILED'):
        runs[run]['jobs'] += 1
for name, run in sorted(runs.items()):
    age = seconds_since(name[:15], '%Y%m%dT%H%M%S')
    living = age < start_seconds if run['alive'] is None else run['alive']
    hours, minutes = divmod(max(0, int(age)) // 60, 60)
    days, hours = divmod(hours, 24)
    text = f'{days} days' if days > 1 else f'{days * 24 + hours} h {minutes} min' if days or hours else f'{minutes} min'
    print(name, 'living' if living else 'dead', text, run['queues'], run['objects'],
          f"{run['bytes'] / 1e6:.1f}", run['jobs'], sep='\t')
PYTHON
}

# show_runs living|dead
show_runs() {
    awk -F '\t' -v which="$1" '
        $2 == which {
            printf "  %s  began %s ago: jobs %d, queues %d, objects %d (%s MB)\n", $1, $3, $7, $4, $5, $6; any = 1
        }
        END { if (!any) print "  none" }' "$RUNS"
}

remove_run() {
    local run=$1 id name state size queue
    while IFS=$'\t' read -r id name state size; do
        if [[ $name == "${STACK}_$run" && $state != SUCCEEDED && $state != FAILED ]]; then
            aws batch terminate-job --job-id "$id" --reason 'The main script of this run is dead'
        fi
    done <"$JOBS"
    while read -r queue; do
        if [[ ${queue##*/} == "${STACK}_${run}_"* ]]; then
            delete_queue "$queue"
        fi
    done <"$QUEUES"
    aws s3 rm --recursive --quiet "s3://$BUCKET/runs/$run/"
    say "  Removed what was left of $run."
}

read_options "$@"
check_settings
describe_stack
if [[ $STACK_STATUS == NONE ]]; then
    require_stack
fi
require_ours
show_stack
# A stack that is only half there has nothing more to show.
case $STACK_STATUS in
    CREATE_COMPLETE | UPDATE_*) ;;
    *) exit ;;
esac

FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
JOBS=$FOLDER/jobs QUEUES=$FOLDER/queues OBJECTS=$FOLDER/objects LEASES=$FOLDER/leases RUNS=$FOLDER/runs
QUEUE=$(stack_output BatchProcessingJobQueueName)
BUCKET=$(stack_output BatchBucket)

list_jobs
show_jobs
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
