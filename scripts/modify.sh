#!/usr/bin/env bash
# Changes the stack that scripts/create.sh made: what is given, and nothing else. It also brings a stack that was
# made from an older batch.yaml up to date.
#
# Running jobs keep the vCPUs, memory and time-outs with which they began; the next ones have the new. What is marked *
# replaces the instances: AWS lets their jobs run on for five days, then ends them.
#
#   scripts/modify.sh [OPTION...]
#
#   --vcpus N, --mem MIB, --maxjobs N, --timeout SECONDS, --idletimeout SECONDS
#   --gpus N*, --instancetype LIST*, --arm64*, --spot*, --ondemand*, --volume GIB*, --keepwarm MINUTES*, --az ZONE*
#   --tag VALUE*
#   --mainvcpus N, --mainmem MIB, --maindisk GIB, --logdays DAYS
#                         as in scripts/create.sh. Build the image anew when the kind of processor changes. A stack
#                         on Fargate stays there, and on Spot or not
#   --gpus N              with another N than before, instance types, vCPUs and memory become those that go with it, as
#                         in a new stack, but for those that are given, too; so does a disk that was never given
#   --az ZONE             the zones given replace those there were. Not while a main job has not ended, nor, on Fargate,
#                         any other job
#   --readbucket NAME, --writebucket NAME
#                         those given replace those there were; "none" takes them away
#   --keepwarm 0          instances go when AWS Batch thinks fit
#   --stackname NAME      name of the stack (RIOS_AWSBATCH_STACK, or RIOS)
#   --region NAME         its region (RIOS_AWSBATCH_REGION, AWS_REGION, AWS_DEFAULT_REGION, or ap-southeast-2)
#   --wait                wait until it is done, and say why if it fails (the stack is then as it was)
#   --help                this text

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

WAIT=''

read_options() {
    while [[ $# -gt 0 ]]; do
        stack_option "$@"
        case $1 in
            --wait) WAIT=yes; SHIFT=1 ;;
            --help | -h) usage; exit 0 ;;
            --servicename)
                die "a stack keeps its service name, since its images are under it. Make a second stack with scripts/create.sh --stackname NAME --servicename NAME." ;;
            *) [[ $SHIFT -gt 0 ]] || unknown_option "$1" ;;
        esac
        shift "$SHIFT"
    done
}

# The value that the stack has; fails where it was made before there was such a parameter.
current() {
    awk -F '\t' -v name="$1" '$1 == name { print $2; found = 1 } END { exit !found }' <<<"$CURRENT"
}

# What AWS Batch cannot change in an environment that is there.
refuse_another_kind() {
    local fargate spot
    fargate=$(current Fargate) || fargate=no
    spot=$(current Spot) || spot=no
    [[ $fargate == "$(value_of Fargate)" && ($fargate == no || $spot == "$(value_of Spot)") ]] ||
        die "AWS Batch cannot change an environment to Fargate, or on Fargate to Spot or back. Make a second stack with scripts/create.sh --stackname NAME --servicename NAME, or delete this one first."
}

# changes NAME: whether a parameter gets another value.
changes() {
    local value
    value=$(parameter "$1") && [[ $value != "$(current "$1" || true)" ]]
}

# The zones of an environment on Fargate, as that of main jobs is, change by making it anew, and AWS Batch asks that no job
# is on the old one (API reference, DeleteComputeEnvironment).
refuse_zones_of_running_jobs() {
    local queue output job outputs=(BatchProcessingJobQueueMainName)
    changes AvailabilityZones || return 0
    [[ $(value_of Fargate) == no ]] || outputs+=(BatchProcessingJobQueueName)
    for output in "${outputs[@]}"; do
        queue=$(stack_output "$output")
        job=$(unfinished_jobs "$queue" | cut -f 2 | sed -n 1p)
        [[ -z $job ]] ||
            die "job $job on $queue has not ended, and the zones of what it runs on cannot change until then (--az). Repeat the command when it has."
    done
}

# What was right for workers with as many GPUs as before is not for others. A disk that somebody has chosen is.
forget_what_goes_with_gpus() {
    local disks
    [[ $(value_of GPUS) != "$(current GPUS || echo 0)" ]] || return 0
    [[ $(current Architecture) != ARM64 ]] || parameter InstanceTypes >/dev/null || refuse_graviton_with_gpus
    disks="$(template_value VolumeSize Default)|$GPU_VOLUME"
    CURRENT=$(awk -F '\t' -v disks="^($disks)\$" '
        $1 !~ /^(InstanceTypes|VCPUS|Memory)$/ && !($1 == "VolumeSize" && $2 ~ disks)' <<<"$CURRENT")
}

# What happens to jobs that run. The parameters are those of which batch.yaml makes instances.
say_of_jobs() {
    local name
    [[ $(value_of Fargate) == no ]] || return 0
    for name in GPUS InstanceTypes Spot VolumeSize KeepWarm AvailabilityZones Tag; do
        if changes "$name"; then
            say "Instances are replaced. Jobs that run may go on for five days on theirs; then AWS Batch ends them. The change may take until the last of them has ended, and the stack can be changed no further meanwhile."
            return
        fi
    done
}

read_options "$@"
check_settings
finish_parameters

require_stack
[[ $STACK_STATUS != UPDATE_*IN_PROGRESS ]] ||
    die "stack '$STACK' is just being changed. Repeat the command when scripts/status.sh says that it is done."
CURRENT=$(aws cloudformation describe-stacks --stack-name "$STACK" \
    --query 'Stacks[0].Parameters[].[ParameterKey, ParameterValue]' --output text)
refuse_another_kind
forget_what_goes_with_gpus
choose_sizes
check_sizes
[[ ${#ZONES[@]} -eq 0 ]] || check_zones "${ZONES[@]}"
use_partition
check_buckets
split_folders
refuse_zones_of_running_jobs
work_out_computers

say_of_jobs
if ! try_aws cloudformation update-stack --stack-name "$STACK" --template-body "file://$TEMPLATE" \
        --parameters "$(parameters_json "$(cut -f 1 <<<"$CURRENT" | tr '\n' ' ')")" \
        --capabilities CAPABILITY_IAM; then
    [[ $ERROR == *'No updates are to be performed'* ]] || die "$(aws_error <<<"$ERROR")"
    say "There is nothing to change in stack '$STACK'."
    exit
fi
if [[ -z $WAIT ]]; then
    say "Stack '$STACK' is being changed. It takes a few minutes; scripts/status.sh tells when it is done."
    exit
fi
wait_for_stack update
say "Stack '$STACK' is changed."
