#!/usr/bin/env bash
# Makes the AWS resources that blocks are computed on: a CloudFormation stack from batch.yaml. Nothing in it costs
# money while no job runs, but the storage of images and logs.
#
#   scripts/create.sh [OPTION...]
#
# Workers:
#   --vcpus N             vCPUs of each (1)
#   --mem MIB             memory of each, in MiB (1800 per vCPU: fills the cheapest instances; see --instancetype)
#   --gpus N              NVIDIA's GPUs of each, which no other worker shares (0). Without --instancetype, --vcpus and
#                         --mem: the sizes of g6, g5 and g4dn that such workers fill
#   --maxjobs N           how many may run at a time (10)
#   --spot                Spot capacity: a third of the price or less, may be taken back; interrupted workers are
#                         started again
#   --ondemand            on-demand capacity (the default)
#   --timeout SECONDS     AWS Batch ends a worker after this time, as a last resort (86400, a day)
#   --idletimeout SECONDS a worker that is given no block ends after this time (3600)
#
# Computers of the workers:
#   --instancetype LIST   instance types or families, commas between them (optimal: any x86). Memory that fills them,
#                         per vCPU: 1800 in families c (c6i,c7i), 3600 in m (m6i,m7i), 7300 in r (r6i,r7i)
#   --arm64               Graviton instead: cheaper, and scripts/build.sh builds the image for it
#   --fargate             AWS Fargate instead of EC2 instances: workers start in about a minute, and cost more per
#                         vCPU. Fixed pairs, such as 1 vCPU and 2048 to 8192 MiB, 2 and 4096 to 16384, 4 and 8192 to
#                         30720. A stack keeps this, and with it --spot, as long as it lives
#   --volume GIB          disk of an instance, which all workers on it share; with --fargate of each worker (30; 100 with
#                         --gpus, as images with CUDA are large)
#   --keepwarm MINUTES    an instance without a job waits so long for the next run, and is paid for: 20 to 10080
#                         (as AWS Batch does by itself: some minutes)
#   --az ZONE             an availability zone such as ap-southeast-2a; repeatable (all of the region that have
#                         Fargate)
#
# A main script that runs as a job; it has Fargate on demand for itself:
#   --mainvcpus N         its vCPUs: 1, 2, 4, 8, 16 or 32 (1)
#   --mainmem MIB         its memory, in MiB, in pairs as with --fargate (4096, or the least there is)
#   --maindisk GIB        its disk, 21 to 200; an output that GDAL writes to S3 is there as a whole first (30)
#
# Data:
#   --readbucket NAME     a bucket that workers and main job may read, or NAME/FOLDER; repeatable (none)
#   --writebucket NAME    one that they may read, write and replace objects in, or NAME/FOLDER; repeatable (none)
#
# The stack:
#   --logdays DAYS        how long logs are kept (30)
#   --tag VALUE           value of the tag "Project" on everything (rios)
#   --servicename NAME    what names the image repositories, queue and job definitions; a second stack in a region
#                         needs one of its own (rios)
#   --stackname NAME      name of the stack (RIOS_AWSBATCH_STACK, or RIOS)
#   --region NAME         region (RIOS_AWSBATCH_REGION, AWS_REGION, AWS_DEFAULT_REGION, or ap-southeast-2)
#   --wait                wait until it is there, and say why if it fails (a failed stack is then removed again)
#   --help                this text

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

WAIT=''

read_options() {
    while [[ $# -gt 0 ]]; do
        stack_option "$@"
        case $1 in
            --servicename) need_value "$@"; set_parameter "$1" ServiceName "$2"; SHIFT=2 ;;
            --wait) WAIT=yes; SHIFT=1 ;;
            --help | -h) usage; exit 0 ;;
            *) [[ $SHIFT -gt 0 ]] || unknown_option "$1" ;;
        esac
        shift "$SHIFT"
    done
}

# A stack that is not there has no values.
current() {
    return 1
}

refuse_existing_stack() {
    describe_stack
    case $STACK_STATUS in
        NONE) return ;;
        DELETE_IN_PROGRESS)
            die "stack '$STACK' is being deleted in region $REGION. Repeat the command when it is gone." ;;
    esac
    require_ours
    case $STACK_STATUS in
        CREATE_FAILED | ROLLBACK_* | DELETE_FAILED | REVIEW_IN_PROGRESS)
            die "what is left of a stack '$STACK' that failed is in the way in region $REGION ($STACK_STATUS). Remove it with scripts/delete.sh first." ;;
        *)
            die "stack '$STACK' exists already in region $REGION. Change it with scripts/modify.sh, delete it with scripts/delete.sh, or choose another name with --stackname." ;;
    esac
}

# Repository names are the account's, so a second stack with the same service name would fail half way.
refuse_taken_service_name() {
    local service
    service=$(value_of ServiceName)
    if try_aws ecr describe-repositories --repository-names "${service}ecr"; then
        die "another stack in region $REGION, perhaps that of RIOS 1.4, has the service name '$service' (there is a repository ${service}ecr). Choose another with --servicename, or delete that stack first (see RIOS in README.md)."
    fi
}

# All that have Fargate.
use_all_zones() {
    local zones zone id
    zones=$(aws ec2 describe-availability-zones --query 'AvailabilityZones[].[ZoneName, ZoneId]' --output text \
        --filters Name=zone-type,Values=availability-zone Name=state,Values=available)
    while IFS=$'\t' read -r zone id; do
        ! has_fargate "$id" || ZONES+=("$zone")
    done <<<"$zones"
    finish_parameters
}

# An account that has never used ECS, AWS Batch or Spot lacks the roles with which they work for it; AWS makes them when
# they are first needed, which may fail for just that. Here where we may; "has been taken" means that one is there.
make_service_roles() {
    local service
    for service in ecs batch spot; do
        try_aws iam create-service-linked-role --aws-service-name "$service.amazonaws.com" || true
    done
}

read_options "$@"
check_settings
finish_parameters
choose_sizes
check_sizes

refuse_existing_stack
refuse_taken_service_name
if [[ ${#ZONES[@]} -gt 0 ]]; then check_zones "${ZONES[@]}"; else use_all_zones; fi
use_partition
check_buckets
split_folders
work_out_computers
make_service_roles

# Without --wait a failed stack stays, so that scripts/status.sh can say why it failed.
STACK_ID=$(aws cloudformation create-stack --stack-name "$STACK" --template-body "file://$TEMPLATE" \
    --parameters "$(parameters_json '')" --capabilities CAPABILITY_IAM \
    --on-failure "$([[ -n $WAIT ]] && echo DELETE || echo ROLLBACK)" --query StackId --output text)
if [[ -z $WAIT ]]; then
    say "Stack '$STACK' is being created in region $REGION. It takes a few minutes; scripts/status.sh tells when it is done."
    exit
fi
wait_for_stack create
say "Stack '$STACK' is ready in region $REGION. Next: scripts/build.sh builds the image that the workers run in."
