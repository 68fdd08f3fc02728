#!/usr/bin/env bash
# Changes the stack that scripts/create.sh made: what is given, and nothing else. It also brings a stack that was
# made from an older batch.yaml up to date. Running jobs go on as they are.
#
#   scripts/modify.sh [OPTION...]
#
#   --vcpus N             vCPUs of each worker
#   --mem MIB             memory of each worker, in MiB
#   --maxjobs N           how many workers may run at a time
#   --instancetype LIST   instance types or families, commas between them
#   --spot, --ondemand    Spot instances from now on, or on-demand ones
#   --volume GIB          root volume of an instance, which all workers on it share
#   --az ZONE             an availability zone; repeatable: the zones given replace those there were
#   --mainvcpus N         vCPUs of a main script that runs as a job
#   --mainmem MIB         its memory, in MiB
#   --readbucket NAME     a bucket the workers may read inputs from; repeatable: replaces those there were, and
#                         "none" takes them away
#   --writebucket NAME    the same for buckets a main script that runs as a job may write to
#   --timeout SECONDS     AWS Batch ends a job after this time, as a last resort
#   --idletimeout SECONDS a worker that is given no block ends after this time
#   --logdays DAYS        how long logs are kept
#   --tag VALUE           value of the tag "Project" on everything
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

# The value given for a parameter, or the one the stack has, or the default of batch.yaml.
value_of() {
    parameter "$1" || awk -F '\t' -v name="$1" '$1 == name { print $2; found = 1 } END { exit !found }' <<<"$CURRENT" ||
        template_value "$1" Default
}

read_options "$@"
check_settings
finish_parameters

require_stack
[[ $STACK_STATUS != UPDATE_IN_PROGRESS ]] ||
    die "stack '$STACK' is just being changed. Repeat the command when scripts/status.sh says that it is done."
CURRENT=$(aws cloudformation describe-stacks --stack-name "$STACK" \
    --query 'Stacks[0].Parameters[].[ParameterKey, ParameterValue]' --output text)
multiply_vcpus "$(value_of MaxJobs)" "$(value_of VCPUS)" "$(value_of MainVCPUS)"

BEFORE=$(last_event)
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
wait_for_stack update "$BEFORE"
say "Stack '$STACK' is changed."
