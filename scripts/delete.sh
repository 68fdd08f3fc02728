#!/usr/bin/env bash
# Deletes the stack with all that is in it: running jobs, queues that runs have left, the bucket's objects, the images
# of both repositories. Nothing of another stack is touched.
#
#   scripts/delete.sh [OPTION...]
#
#   --yes              do not ask first; needed where this is not run on a terminal, as in a pipe
#   --stackname NAME   name of the stack (RIOS_AWSBATCH_STACK, or RIOS)
#   --region NAME      its region (RIOS_AWSBATCH_REGION, AWS_REGION, AWS_DEFAULT_REGION, or ap-southeast-2)
#   --wait             wait until it is gone, and say why if it fails
#   --help             this text

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

WAIT='' YES=''

# A job that is told to stop has half a minute for it, but one that is just starting may take minutes.
STOP_SECONDS=900

read_options() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --yes | -y) YES=yes ;;
            --stackname) need_value "$@"; STACK=$2; shift ;;
            --region) need_value "$@"; REGION=$2; shift ;;
            --wait) WAIT=yes ;;
            --help | -h) usage; exit 0 ;;
            *) unknown_option "$1" ;;
        esac
        shift
    done
}

ask() {
    local answer=''
    [[ -z $YES ]] || return 0
    [[ -t 0 ]] || die "say --yes to delete stack '$STACK' in region $REGION without being asked."
    read -r -p "Delete stack '$STACK' in region $REGION, with its images, logs and data? [y/N] " answer
    [[ $answer == [yY]* ]] || die "nothing was deleted."
}

# resource NAME: what AWS calls a resource of batch.yaml; nothing where the stack does not have it (any more).
resource() {
    awk -F '\t' -v name="$1" '$1 == name && $2 != "None" && $3 != "DELETE_COMPLETE" { print $2 }' <<<"$RESOURCES"
}

# clear_out NAME FUNCTION: calls the function with that resource where there is one.
clear_out() {
    local physical
    physical=$(resource "$1")
    if [[ -n $physical ]]; then
        "$2" "$physical"
    fi
}

# stop_jobs QUEUE: closes the queue, so that no main script submits to it any more, and waits until no job is left.
stop_jobs() {
    local queue=$1 state jobs job told='' waited=0
    state=$(aws batch describe-job-queues --job-queues "$queue" --query 'jobQueues[0].state' --output text)
    [[ $state != None ]] || return 0
    aws batch update-job-queue --job-queue "$queue" --state DISABLED >/dev/null
    while true; do
        jobs=$(unfinished_jobs "$queue" | cut -f 1)
        [[ -n $jobs ]] || break
        for job in $jobs; do
            [[ " $told " != *" $job "* ]] || continue
            aws batch terminate-job --job-id "$job" --reason "Stack $STACK is being deleted"
            told+=" $job"
        done
        [[ $waited -lt $STOP_SECONDS ]] ||
            die "jobs on $queue have not ended within $((STOP_SECONDS / 60)) minutes. Repeat the command."
        sleep 2
        waited=$((waited + 2))
    done
    [[ -z $told ]] || say "Stopped $(wc -w <<<"$told" | tr -d ' ') jobs."
}

delete_queues() {
    local queue queues
    queues=$(run_queues)
    for queue in $queues; do
        delete_queue "$queue"
        say "Deleted queue ${queue##*/}."
    done
}

# list_or_nothing CODE WORDS...: sets ANSWER to what aws says, empty where the thing is gone already, as CODE tells.
list_or_nothing() {
    if ! try_aws "${@:2}"; then
        [[ $ERROR == *$1* ]] || die "$(aws_error <<<"$ERROR")"
        ANSWER=''
    fi
}

# From now on nobody writes to the bucket: a main script that runs elsewhere would, until it learns that its workers are
# gone, and a bucket with an object in it cannot be deleted.
close_bucket() {
    try_aws s3api put-bucket-policy --bucket "$1" --policy "{\"Version\": \"2012-10-17\", \"Statement\": [{\"Effect\": \"Deny\",
        \"Principal\": \"*\", \"Action\": \"s3:PutObject\", \"Resource\": \"arn:$(cut -d : -f 2 <<<"$STACK_ID"):s3:::$1/*\"}]}" ||
        [[ $ERROR == *NoSuchBucket* ]] || die "$(aws_error <<<"$ERROR")"
}

# Every version and delete marker, a thousand at a time.
empty_bucket() {
    local bucket=$1 count=0 failed
    close_bucket "$bucket"
    while true; do
        # shellcheck disable=SC2016  # the backquotes are the query's
        list_or_nothing NoSuchBucket s3api list-object-versions --bucket "$bucket" --no-paginate --max-keys 1000 --output json \
            --query '{Objects: [Versions, DeleteMarkers][].{Key: Key, VersionId: VersionId}, Quiet: `true`}'
        [[ $ANSWER == *'"Key"'* ]] || break
        failed=$(aws s3api delete-objects --bucket "$bucket" --delete file:///dev/stdin --query 'Errors[0].Message' \
            --output text <<<"$ANSWER")
        [[ $failed == None ]] || die "cannot empty bucket $bucket: $failed"
        count=$((count + $(grep -c '"Key"' <<<"$ANSWER")))
    done
    [[ $count -eq 0 ]] || say "Deleted $count objects from bucket $bucket."
}

# A hundred images at a time. One that a multi-platform image holds can only go after that one, hence the rounds.
empty_repository() {
    local repository=$1 images before=''
    while true; do
        list_or_nothing RepositoryNotFound ecr list-images --repository-name "$repository" --no-paginate --max-results 100 \
            --query imageIds --output json
        images=$ANSWER
        [[ $images == *imageDigest* ]] || break
        [[ $images != "$before" ]] ||
            die "cannot delete the images of repository $repository. Delete them in the AWS console and repeat the command."
        aws ecr batch-delete-image --repository-name "$repository" --image-ids "$images" --output json >/dev/null
        before=$images
    done
    [[ -z $before ]] || say "Deleted the images of repository $repository."
}

# CloudFormation does not delete a policy that somebody else has attached, as the README tells users to.
detach_policy() {
    local policy=$1 kind name
    list_or_nothing NoSuchEntity iam list-entities-for-policy --policy-arn "$policy" --output text --query \
        "[PolicyUsers[].['USER', UserName], PolicyGroups[].['GROUP', GroupName], PolicyRoles[?RoleName!='$(resource MainRole)'].['ROLE', RoleName]][]"
    while IFS=$'\t' read -r kind name; do
        case $kind in
            USER) aws iam detach-user-policy --user-name "$name" --policy-arn "$policy" ;;
            GROUP) aws iam detach-group-policy --group-name "$name" --policy-arn "$policy" ;;
            ROLE) aws iam detach-role-policy --role-name "$name" --policy-arn "$policy" ;;
            *) continue ;;
        esac
        say "Detached the stack's policy from $name."
    done <<<"$ANSWER"
}

# begin: clears out what CloudFormation would not delete, then has it delete the rest.
begin() {
    RESOURCES=$(aws cloudformation describe-stack-resources --stack-name "$STACK" \
        --query 'StackResources[].[LogicalResourceId, PhysicalResourceId, ResourceStatus]' --output text)
    # The main jobs first, since they start others.
    clear_out JobQueueMain stop_jobs
    clear_out JobQueue stop_jobs
    delete_queues
    clear_out Bucket empty_bucket
    clear_out Repository empty_repository
    clear_out RepositoryMain empty_repository
    clear_out MainPolicy detach_policy
    aws cloudformation delete-stack --stack-name "$STACK_ID"
}

read_options "$@"
check_settings
describe_stack
if [[ $STACK_STATUS == NONE ]]; then
    say "There is no stack '$STACK' in region $REGION: nothing to delete."
    exit
fi
require_ours
if [[ $STACK_STATUS != DELETE_IN_PROGRESS ]]; then
    ask
    begin
fi
if [[ -z $WAIT ]]; then
    say "Stack '$STACK' is being deleted in region $REGION. It takes a few minutes."
    exit
fi
wait_for_stack delete
say "Stack '$STACK' is gone from region $REGION."
