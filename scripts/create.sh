#!/usr/bin/env bash
# Makes the AWS resources that blocks are computed on: a CloudFormation stack from batch.yaml. Nothing in it costs
# money while no job runs, but the storage of images and logs.
#
#   scripts/create.sh [OPTION...]
#
#   --vcpus N             vCPUs of each worker (1)
#   --mem MIB             memory of each worker, in MiB (2048)
#   --maxjobs N           how many workers may run at a time (10)
#   --instancetype LIST   instance types or families, commas between them: optimal (any x86, the default), c7i,m7i;
#                         c7g,m7g for Graviton
#   --spot                Spot instances: much cheaper, may be taken back; interrupted workers are started again
#   --ondemand            on-demand instances (the default)
#   --volume GIB          root volume of an instance, which all workers on it share (30)
#   --az ZONE             an availability zone such as ap-southeast-2a; repeatable (all zones of the region)
#   --mainvcpus N         vCPUs of a main script that runs as a job (1)
#   --mainmem MIB         its memory, in MiB (4096)
#   --readbucket NAME     a bucket the workers may read inputs from; repeatable (none)
#   --writebucket NAME    a bucket a main script that runs as a job may write outputs to; repeatable (none)
#   --timeout SECONDS     AWS Batch ends a job after this time, as a last resort (86400, a day)
#   --idletimeout SECONDS a worker that is given no block ends after this time (3600)
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

# The value given for a parameter, or the default of batch.yaml.
value_of() {
    parameter "$1" || template_value "$1" Default
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
        die "another stack in region $REGION has the service name '$service' (there is a repository ${service}ecr). Choose another with --servicename."
    fi
}

use_all_zones() {
    local zones
    zones=$(aws ec2 describe-availability-zones --query 'AvailabilityZones[].ZoneName' --output text \
        --filters Name=zone-type,Values=availability-zone Name=state,Values=available)
    read -r -a ZONES <<<"$zones"
    finish_parameters
}

read_options "$@"
check_settings
finish_parameters
multiply_vcpus "$(value_of MaxJobs)" "$(value_of VCPUS)" "$(value_of MainVCPUS)"

refuse_existing_stack
refuse_taken_service_name
[[ ${#ZONES[@]} -gt 0 ]] || use_all_zones

# Without --wait a failed stack stays, so that scripts/status.sh can say why it failed.
STACK_ID=$(aws cloudformation create-stack --stack-name "$STACK" --template-body "file://$TEMPLATE" \
    --parameters "$(parameters_json '')" --capabilities CAPABILITY_IAM \
    --on-failure "$([[ -n $WAIT ]] && echo DELETE || echo ROLLBACK)" --query StackId --output text)
if [[ -z $WAIT ]]; then
    say "Stack '$STACK' is being created in region $REGION. It takes a few minutes; scripts/status.sh tells when it is done."
    exit
fi
wait_for_stack create ''
say "Stack '$STACK' is ready in region $REGION. Next: scripts/build.sh builds the image that the workers run in."
