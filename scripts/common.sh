# shellcheck shell=bash
# What the scripts in this folder share. Not run by itself: each script says `source .../common.sh`.
#
#   settings      STACK and REGION, from the environment; an option of the script may change them
#   messages      usage, say, warn, die
#   AWS           aws (the command line in REGION, its errors as one sentence)
#   the stack     describe_stack, require_ours, require_stack, stack_output, wait_for_stack
#   runs          run_queues, delete_queue
#   jobs          list_jobs, unfinished_jobs
#   images        image_of
#   parameters    of batch.yaml, for create.sh and modify.sh

STACK=${RIOS_AWSBATCH_STACK:-RIOS}
REGION=${RIOS_AWSBATCH_REGION:-${AWS_REGION:-${AWS_DEFAULT_REGION:-ap-southeast-2}}}
# shellcheck disable=SC2034  # used by the scripts
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:$ROOT/.venv/bin
# Version 2 of the command line would add lines to its errors, and ask back, where somebody has it do so.
export AWS_PAGER='' AWS_DEFAULT_OUTPUT=text AWS_CLI_ERROR_FORMAT=legacy AWS_CLI_AUTO_PROMPT=off

# The description of batch.yaml starts with this: it tells our stacks from any other, in whatever state they are.
STACK_MARK='rios_awsbatch:'

# ---------------------------------------------------------------------------------------------- messages

# The script's header comment, which is its help.
usage() {
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
}

say() {
    printf '%s\n' "$*"
}

warn() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

die() {
    warn "$*"
    exit 1
}

# need_value OPTION [VALUE...]: for option loops; refuses an option whose value is missing, be it before another option.
need_value() {
    [[ $# -ge 2 && -n $2 && $2 != --* ]] || die "$1 needs a value. See $(basename "$0") --help."
}

unknown_option() {
    die "do not understand '$1'. See $(basename "$0") --help."
}

# ---------------------------------------------------------------------------------------------- settings

# Refuses a stack or region name that AWS would refuse, before AWS is asked anything.
check_settings() {
    # 40 characters leave room for the run id in the names of queues (80 at most) and jobs.
    [[ $STACK =~ ^[A-Za-z][A-Za-z0-9-]{0,39}$ ]] ||
        die "'$STACK' cannot be a stack name: use letters, digits and hyphens, start with a letter, 40 characters at most."
    [[ $REGION =~ ^[a-z]{2,}(-[a-z]+)+-[0-9]+$ ]] ||
        die "'$REGION' is not the name of an AWS region. They look like ap-southeast-2 or us-west-2."
}

# ---------------------------------------------------------------------------------------------- AWS

# The aws command line in our region. Where it fails, its error becomes one sentence on standard error. No file holds that
# meanwhile, which a Ctrl-C would leave behind.
aws() {
    local error status=0
    { error=$(aws_command "$@" 2>&1 >&3 3>&-) || status=$?; } 3>&1
    [[ $status -eq 0 ]] || warn "$(aws_error <<<"$error")"
    return "$status"
}

# The same for callers that look at the error themselves: sets ANSWER and ERROR.
try_aws() {
    local both status=0
    both=$({ ANSWER=$(aws_command "$@") || status=$?; printf '\036%s' "$ANSWER"; exit "$status"; } 2>&1) || status=$?
    ANSWER=${both#*$'\036'} ERROR=${both%%$'\036'*}
    return "$status"
}

aws_command() {
    type -P aws >/dev/null ||
        { echo 'NoCommandLine' >&2; return 1; }
    # Version 1 of the command line overlooks AWS_ENDPOINT_URL for SQS.
    command aws --region "$REGION" ${AWS_ENDPOINT_URL:+--endpoint-url="$AWS_ENDPOINT_URL"} "$@"
}

# One sentence for a scientist, out of what the aws command line wrote to standard error.
aws_error() {
    local text
    text=$(cat)
    case $text in
        NoCommandLine*)
            echo "the AWS command line is not installed. Run 'pip install awscli', or see https://aws.amazon.com/cli/." ;;
        *'Unable to locate credentials'* | *NoCredentials* | *'Partial credentials'*)
            echo "no AWS credentials were found. Run 'aws configure' (or 'aws login', 'aws sso login'), or set AWS_PROFILE." ;;
        *ExpiredToken* | *RequestExpired* | *'token has expired'* | *'Token has expired'* | *'SSO session'*expired* | *'session has expired'* | *'Error loading SSO Token'* | *[Rr]eauthenticate*)
            echo "your AWS login has expired. Log in again, for instance with 'aws login' or 'aws sso login', and repeat the command." ;;
        *'config profile'*'could not be found'*)
            echo "AWS_PROFILE names a profile that 'aws configure list-profiles' does not show." ;;
        *'Signature expired'* | *'Signature not yet current'* | *RequestTimeTooSkewed*)
            echo "the clock of this computer is wrong, so AWS refuses its requests. Set it and repeat the command." ;;
        *InvalidClientTokenId* | *UnrecognizedClientException* | *SignatureDoesNotMatch* | *AuthFailure* | *InvalidAccessKeyId*)
            echo "AWS does not accept your credentials in region $REGION. Check them with 'aws sts get-caller-identity'; a region may also have to be enabled for your account first." ;;
        *'Could not connect to the endpoint'* | *'Failed to connect'* | *'timeout on endpoint'* | *'Connection was closed'* | *'Failed to resolve'* | *'SSL validation failed'* | *'proxy URL'*)
            echo "AWS cannot be reached in region '$REGION'. Check that this is a region's name, and that this computer has a network." ;;
        *AccessDenied* | *ForbiddenException* | *UnauthorizedOperation* | *'not authorized to perform'*)
            echo "your AWS user lacks a permission. Ask whoever runs your account for it: $(aws_error_text "$text")" ;;
        *Throttling* | *'Rate exceeded'* | *TooManyRequests*)
            echo "AWS asks for fewer requests just now. Repeat the command in a minute." ;;
        *)
            aws_error_text "$text" ;;
    esac
}

# The message alone: without "An error occurred (Code) when calling the Name operation (reached max retries: 4): ", or what
# version 2 has before any other error.
aws_error_text() {
    sed -n -e 's/^.*when calling the [A-Za-z0-9]* operation\( ([^)]*)\)*: //' -e 's/^aws: \[ERROR\]: //' \
        -e '/[^[:space:]]/p' <<<"$1" | tail -n 1
}

# describe_stack: sets STACK_STATUS (NONE where there is no such stack), STACK_ID, STACK_DESCRIPTION, and
# STACK_OUTPUTS, a line with name and value for each.
describe_stack() {
    STACK_OUTPUTS=''
    if try_aws cloudformation describe-stacks --stack-name "$STACK" --output text \
            --query 'Stacks[0].[[[StackStatus, StackId, Description]], Outputs[].[OutputKey, OutputValue]][]'; then
        IFS=$'\t' read -r STACK_STATUS STACK_ID STACK_DESCRIPTION <<<"$ANSWER"
        STACK_OUTPUTS=$(awk -F '\t' 'NR > 1 && NF > 1' <<<"$ANSWER")
    elif [[ $ERROR == *'does not exist'* ]]; then
        STACK_STATUS=NONE STACK_ID='' STACK_DESCRIPTION=''
    else
        die "$(aws_error <<<"$ERROR")"
    fi
}

# Refuses a stack of that name which something else has made.
require_ours() {
    [[ $STACK_DESCRIPTION != 'RIOS with AWS Batch'* ]] ||
        die "stack '$STACK' in region $REGION was made by RIOS 1.4, so it is left alone. README.md (RIOS) has the commands that delete it; or choose another name with --stackname or RIOS_AWSBATCH_STACK, and another --servicename."
    [[ $STACK_STATUS == NONE || $STACK_DESCRIPTION == "$STACK_MARK"* ]] ||
        die "stack '$STACK' in region $REGION was not made by create.sh, so it is left alone. Choose another name with --stackname or RIOS_AWSBATCH_STACK."
}

# Ends the script unless our stack is there and usable.
require_stack() {
    check_settings
    describe_stack
    [[ $STACK_STATUS != NONE ]] ||
        die "there is no stack '$STACK' in region $REGION. Set RIOS_AWSBATCH_STACK and RIOS_AWSBATCH_REGION to the one you mean, or make it with scripts/create.sh."
    require_ours
    case $STACK_STATUS in
        CREATE_COMPLETE | UPDATE_COMPLETE | UPDATE_ROLLBACK_COMPLETE | UPDATE_*IN_PROGRESS) ;;
        CREATE_IN_PROGRESS)
            die "stack '$STACK' is still being created. Wait a few minutes and repeat the command." ;;
        DELETE_IN_PROGRESS)
            die "stack '$STACK' is being deleted. Make it anew with scripts/create.sh when it is gone." ;;
        *)
            die "stack '$STACK' is not usable (it is in state $STACK_STATUS). Delete it with scripts/delete.sh and make it anew with scripts/create.sh." ;;
    esac
}

# stack_output NAME: the value of an output of the stack that describe_stack has described.
stack_output() {
    local value
    value=$(awk -F '\t' -v name="$1" '$1 == name { print $2 }' <<<"$STACK_OUTPUTS")
    [[ -n $value ]] ||
        die "stack '$STACK' has no output $1. It was made from another version: bring it up to date with scripts/modify.sh."
    printf '%s\n' "$value"
}

# The event with which the last change or deletion began; nothing where there was none since the stack was created.
last_change() {
    aws cloudformation describe-stack-events --stack-name "$STACK_ID" --output json --query "StackEvents[?ResourceType==\
        'AWS::CloudFormation::Stack' && contains(['UPDATE_IN_PROGRESS', 'DELETE_IN_PROGRESS'], ResourceStatus)] | [0].EventId" |
        tr -d '"' | grep -v null || true
}

# explain_failure EVENT: the first resource that failed after that event (from the beginning if empty), and why.
explain_failure() {
    local name type reason
    # The newest event comes first, so the first failure is the last one read.
    IFS=$'\t' read -r name type reason < <(
        aws cloudformation describe-stack-events --stack-name "$STACK_ID" --output text \
            --query 'StackEvents[].[EventId, ResourceStatus, LogicalResourceId, ResourceType, ResourceStatusReason]' |
            awk -F '\t' -v since="$1" '
                # To the end: of a pipe that nobody reads any more, the command line complains.
                $1 == since { over = 1 }
                !over && $2 ~ /_FAILED$/ { line = $3 "\t" $4 "\t" $5 }
                END { print line }'
    ) || true
    if [[ -n ${name:-} ]]; then
        # AWS wraps it: Resource handler returned message: "..." (RequestToken: ..., HandlerErrorCode: ...)
        reason=$(sed -E 's/^Resource handler returned message: "(.*)" \(RequestToken: .*$/\1/' <<<"$reason")
        [[ $reason != *'service linked role'* && $reason != *'service-linked role'* ]] ||
            reason="${reason%.}. AWS has made that role meanwhile: run scripts/create.sh again"
        printf 'the first resource that failed was %s (%s): %s' "$name" "$type" "${reason%.}"
    else
        printf 'CloudFormation names no resource that failed; see the events of the stack in the AWS console'
    fi
}

# wait_for_stack create|update|delete: until that is done. Where it fails, says why and ends the script.
wait_for_stack() {
    local since=''
    say "Waiting for CloudFormation. This takes a few minutes."
    if ! try_aws cloudformation wait "stack-$1-complete" --stack-name "$STACK_ID"; then
        case $ERROR in
            *'Max attempts exceeded'*)
                die "CloudFormation has not finished within an hour. scripts/status.sh tells how stack '$STACK' is doing." ;;
            *'terminal failure state'*)
                # A new stack that fails is deleted by itself.
                [[ $1 == create ]] || since=$(last_change)
                die "could not $1 stack '$STACK': $(explain_failure "$since")." ;;
            # It is the question that failed: an expired login, no network.
            *)
                die "$(aws_error <<<"$ERROR") CloudFormation goes on meanwhile; scripts/status.sh tells how stack '$STACK' is doing." ;;
        esac
    fi
}

# ---------------------------------------------------------------------------------------------- runs

# A run is named by when it began and a random number: 20261123T054312-1a2b3c4d. Its queues are STACK_RUN_in and
# STACK_RUN_out; no name of a stack holds an underscore, so none of these is another stack's.
RUN_ID='[0-9]{8}T[0-9]{6}-[0-9a-f]+'

# The addresses of all queues of runs on this stack.
run_queues() {
    local queues
    queues=$(aws sqs list-queues --queue-name-prefix "${STACK}_" --page-size 1000 --query 'QueueUrls[]' --output text) || return
    tr '\t' '\n' <<<"$queues" | grep -E "/${STACK}_${RUN_ID}_(in|out)$" || true
}

# delete_queue URL: AWS lists a queue for up to a minute after it has been deleted, which is no error.
delete_queue() {
    try_aws sqs delete-queue --queue-url "$1" || [[ $ERROR == *NonExistentQueue* || $ERROR == *QueueDoesNotExist* ]] ||
        die "$(aws_error <<<"$ERROR")"
}

# ---------------------------------------------------------------------------------------------- jobs and images

# list_jobs QUEUE: all jobs on it that Batch still knows of: id, name, state, how many of an array. A filter, because
# without one Batch lists the jobs of one state alone; the parent of an array is PENDING while its children run.
list_jobs() {
    aws batch list-jobs --job-queue "$1" --filters name=AFTER_CREATED_AT,values=0 --output text \
        --query 'jobSummaryList[].[jobId, jobName, status, arrayProperties.size]'
}

# unfinished_jobs QUEUE: those of them that have not ended.
unfinished_jobs() {
    list_jobs "$1" | awk -F '\t' '$3 != "SUCCEEDED" && $3 != "FAILED"'
}

# image_of OUTPUT: sets IMAGE_DATE, IMAGE_KIND and IMAGE_VERSIONS of the image in the repository that this output of the
# stack names; fails where it has none. build.sh tags each image with its kind, amd64 or arm64, and with its versions.
# shellcheck disable=SC2034
image_of() {
    local repository tags
    repository=$(stack_output "$1") || exit 1
    if ! try_aws ecr describe-images --repository-name "$repository" --image-ids imageTag=latest --output text \
            --query "imageDetails[0].[imagePushedAt, join(' ', imageTags)]"; then
        [[ $ERROR == *ImageNotFound* ]] || die "$(aws_error <<<"$ERROR")"
        return 1
    fi
    IFS=$'\t' read -r IMAGE_DATE tags <<<"$ANSWER"
    IMAGE_VERSIONS=$(tr ' ' '\n' <<<"$tags" | sed -n '/^versions--/ { s/--/, /g; s/\([a-z]\)-/\1 /g; s/^versions//p; }')
    IMAGE_KIND=$(tr ' ' '\n' <<<"$tags" | grep -Ex 'amd64|arm64' | head -n 1) || IMAGE_KIND=''
}

# The kind of image that the stack's computers run.
stack_platform() {
    case $(stack_output BatchArchitecture) in
        X86_64) echo amd64 ;;
        ARM64) echo arm64 ;;
        *) return 1 ;;
    esac
}

# ---------------------------------------------------------------------------------------------- parameters
# Options become parameters of batch.yaml, which says what each may be: nothing of that is repeated here.

TEMPLATE=$ROOT/batch.yaml
PARAMETERS=()       # NAME=VALUE, in the order given; the last of a name counts
ZONES=()
READ_BUCKETS=()
WRITE_BUCKETS=()

# Share of an instance's memory that is the jobs'. AWS's own figures are 93 to 95 % of the smaller instances (Batch user
# guide, Compute resource memory management); the rest is the system's.
MEMORY_PERCENT=90
# MiB per vCPU that fill instances of the families c; 3600 and 7300 fill m and r.
FILLING_MEMORY=1800
# Where workers have GPUs and no instance types are named: of these the sizes that they fill, as far as the region has them.
# Not the families, since Batch prefers what has the cheapest vCPUs (user guide, Allocation strategies): to a worker of one
# GPU a g6.16xlarge gives 60 vCPUs more than a g6.xlarge, and costs four times as much.
GPU_TYPES='g6.*xlarge,g5.*xlarge,g4dn.*xlarge'
# GiB, for images with CUDA's libraries: that of torch takes 6, and 3 more while it is pulled; the one before it stays.
GPU_VOLUME=100
# What Fargate has. Sources of all pairs: ResourceRequirement in AWS Batch's API reference.
FARGATE_VCPUS='1 2 4 8 16 32'

# has_fargate ID: whether Fargate is in a zone. By their ids, as their letters differ between accounts; source of the three
# regions where it is in some zones only: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/AWS_Fargate-Regions.html
has_fargate() {
    case $1 in
        usw1-az[13] | apne1-az[124] | cnn1-az[12]) ;;
        usw1-* | apne1-* | cnn1-*) return 1 ;;
    esac
}

# template_value PARAMETER KEY: what batch.yaml says of a parameter, such as its MinValue.
template_value() {
    awk -v name="  $1:" -v key="    $2: " '
        /^[A-Z]/ { section = $1 }
        /^  [A-Za-z]/ { inside = section == "Parameters:" && $0 == name }
        inside && index($0, key) == 1 { value = substr($0, length(key) + 1); gsub(/^\047|\047$/, "", value); print value }
        ' "$TEMPLATE"
}

# The names of all parameters of batch.yaml.
template_parameters() {
    awk '/^[A-Z]/ { section = $1 } section == "Parameters:" && /^  [A-Za-z]/ { sub(/:.*/, ""); print $1 }' "$TEMPLATE"
}

# set_parameter OPTION NAME VALUE: refuses what batch.yaml would refuse, before AWS is asked anything.
set_parameter() {
    local option=$1 name=$2 value=$3 least most pattern values LC_ALL=C
    least=$(template_value "$name" MinValue)
    most=$(template_value "$name" MaxValue)
    pattern=$(template_value "$name" AllowedPattern)
    values=$(template_value "$name" AllowedValues)
    if [[ -n $least ]]; then
        [[ $value =~ ^(0|[1-9][0-9]{0,8})$ && $value -ge $least && $value -le $most ]] ||
            die "$option must be a whole number from $least to $most, not '$value'."
    elif [[ -n $values ]]; then
        [[ ", ${values//[][\']/}, " == *", $value, "* ]] ||
            die "$option must be one of ${values//[][\']/}, not '$value'."
    elif [[ -n $pattern ]]; then
        [[ $value =~ ^($pattern)$ ]] ||
            die "$option $(template_value "$name" ConstraintDescription), not '$value'."
    fi
    PARAMETERS+=("$name=$value")
}

# parameter NAME: the value given for a parameter; fails where none was.
parameter() {
    local pair value='' status=1
    for pair in ${PARAMETERS[@]+"${PARAMETERS[@]}"}; do
        if [[ $pair == "$1="* ]]; then
            value=${pair#*=} status=0
        fi
    done
    printf '%s' "$value"
    return "$status"
}

# stack_option OPTION [VALUE]: takes an option that create.sh and modify.sh share. SHIFT is how many words it took;
# 0 where it is none of these.
# shellcheck disable=SC2034
stack_option() {
    SHIFT=2
    case $1 in
        --spot) SHIFT=1; set_parameter "$1" Spot yes; return ;;
        --ondemand) SHIFT=1; set_parameter "$1" Spot no; return ;;
        --fargate) SHIFT=1; set_parameter "$1" Fargate yes; return ;;
        --arm64) SHIFT=1; set_parameter "$1" InstanceTypes default_arm64; return ;;
        --stackname | --region | --az | --vcpus | --mem | --gpus | --maxjobs | --instancetype | --volume | --keepwarm | --tag | \
            --mainvcpus | --mainmem | --maindisk | --timeout | --idletimeout | --logdays | --readbucket | --writebucket)
            need_value "$@" ;;
        *) SHIFT=0; return ;;
    esac
    case $1 in
        --stackname) STACK=$2 ;;
        --region) REGION=$2 ;;
        --az) ZONES+=("$2") ;;
        --vcpus) set_parameter "$1" VCPUS "$2" ;;
        --mem) set_parameter "$1" Memory "$2" ;;
        --gpus) set_parameter "$1" GPUS "$2" ;;
        --maxjobs) set_parameter "$1" MaxJobs "$2" ;;
        --instancetype) set_parameter "$1" InstanceTypes "$2" ;;
        --volume) set_parameter "$1" VolumeSize "$2" ;;
        --keepwarm) set_parameter "$1" KeepWarm "$2" ;;
        --tag) set_parameter "$1" Tag "$2" ;;
        --mainvcpus) set_parameter "$1" MainVCPUS "$2" ;;
        --mainmem) set_parameter "$1" MainMemory "$2" ;;
        --maindisk) set_parameter "$1" MainDisk "$2" ;;
        --timeout) set_parameter "$1" JobTimeout "$2" ;;
        --idletimeout) set_parameter "$1" NoMessageTimeout "$2" ;;
        --logdays) set_parameter "$1" LogRetention "$2" ;;
        --readbucket) READ_BUCKETS+=("$2") ;;
        --writebucket) WRITE_BUCKETS+=("$2") ;;
    esac
}

# The options whose values depend on the region, once that is known. Asks AWS nothing.
finish_parameters() {
    local value
    if [[ ${#ZONES[@]} -gt 0 ]]; then
        value=$(zone_places "${ZONES[@]}")
        set_parameter --az AvailabilityZones "$value"
    fi
    if [[ ${#READ_BUCKETS[@]} -gt 0 ]]; then
        value=$(bucket_arns "${READ_BUCKETS[@]}")
        set_parameter --readbucket ReadBuckets "$value"
    fi
    if [[ ${#WRITE_BUCKETS[@]} -gt 0 ]]; then
        value=$(bucket_arns "${WRITE_BUCKETS[@]}")
        set_parameter --writebucket WriteBuckets "$value"
    fi
}

# zone_places ZONE...: the zones, each in the place of its letter, with commas between the places.
zone_places() {
    local zone letter places=''
    for zone in "$@"; do
        [[ $zone =~ ^"$REGION"[a-f]$ ]] ||
            die "--az must be a zone of region $REGION, such as ${REGION}a, not '$zone'."
    done
    for letter in a b c d e f; do
        for zone in "$@"; do
            if [[ $zone == "$REGION$letter" ]]; then
                places+=$zone
                break
            fi
        done
        places+=,
    done
    while [[ $places == *, ]]; do
        places=${places%,}
    done
    printf '%s' "$places"
}

# check_zones ZONE...: refuses those where main jobs could not run.
check_zones() {
    local zones zone id
    zones=$(aws ec2 describe-availability-zones --zone-names "$@" --query 'AvailabilityZones[].[ZoneName, ZoneId]')
    while IFS=$'\t' read -r zone id; do
        has_fargate "$id" ||
            die "zone $zone ($id) has no Fargate, on which main scripts run. Leave it out (--az)."
    done <<<"$zones"
}

# bucket_arns NAME...: their ARNs with commas between them; nothing for the word "none". A name may be given as people
# copy it: mybucket, s3://mybucket/folder/, /vsis3/mybucket/folder, or its ARN. See use_partition, too.
bucket_arns() {
    local bucket arns=''
    for bucket in "$@"; do
        bucket=${bucket#s3://} bucket=${bucket#/vsis3/} bucket=${bucket%\*}
        while [[ $bucket == */ ]]; do
            bucket=${bucket%/}
        done
        case $bucket in
            none) ;;
            arn:*) arns+=,$bucket ;;
            *) arns+=,arn:aws:s3:::$bucket ;;
        esac
    done
    printf '%s' "${arns#,}"
}

# settled PARAMETER: the value given for it, or the one the stack has; fails where there is neither. create.sh and modify.sh
# define what the stack has: current PARAMETER.
settled() {
    parameter "$1" || current "$1"
}

is_settled() {
    settled "$1" >/dev/null
}

# value_of PARAMETER: the value it is going to have.
value_of() {
    settled "$1" || template_value "$1" Default
}

# The folders among the buckets, taken apart as CloudFormation cannot.
split_folders() {
    local -a arns
    local arn folder buckets='' prefixes=''
    IFS=, read -r -a arns <<<"$(value_of ReadBuckets),$(value_of WriteBuckets)"
    for arn in ${arns[@]+"${arns[@]}"}; do
        [[ $arn == */* ]] || continue
        folder=${arn#*/}
        [[ ",$buckets," == *",${arn%%/*},"* ]] || buckets+=,${arn%%/*}
        [[ ",$prefixes," == *",$folder/*,"* ]] || prefixes+=",$folder/*"
    done
    set_parameter '' ListBuckets "${buckets#,}"
    set_parameter '' ListPrefixes "${prefixes#,}"
}

# China and others have ARNs of their own: that of the caller says which.
use_partition() {
    local name value arn=''
    for name in ReadBuckets WriteBuckets; do
        value=$(parameter "$name") && [[ -n $value ]] || continue
        arn=${arn:-$(aws sts get-caller-identity --query Arn)} || exit 1
        PARAMETERS+=("$name=${value//arn:aws:/arn:$(cut -d : -f 2 <<<"$arn"):}")
    done
}

# Names a bucket that is given and that there is not. One that AWS hides from us (403) may be there for the workers.
check_buckets() {
    local arn bucket
    local -a arns
    IFS=, read -r -a arns <<<"$(parameter ReadBuckets || true),$(parameter WriteBuckets || true)"
    for arn in ${arns[@]+"${arns[@]}"}; do
        bucket=${arn##*:} bucket=${bucket%%/*}
        [[ -z $bucket ]] || try_aws s3api head-bucket --bucket "$bucket" || [[ $ERROR != *'(404)'* ]] ||
            die "there is no bucket '$bucket'. --readbucket and --writebucket take the name of one that is there, or NAME/FOLDER."
    done
}

# fargate_memories VCPUS: what memory (MiB) Fargate has for so many vCPUs.
fargate_memories() {
    local least step most memory
    case $1 in
        1) least=2048 step=1024 most=8192 ;;
        2) least=4096 step=1024 most=16384 ;;
        4) least=8192 step=1024 most=30720 ;;
        8) least=16384 step=4096 most=61440 ;;
        16) least=32768 step=8192 most=122880 ;;
        32) echo 61440 122880 249856; return ;;
        *) return 1 ;;
    esac
    for ((memory = least; memory <= most; memory += step)); do
        printf '%s ' "$memory"
    done
}

# fargate_memory VCPUS LEAST: the smallest of these that is no less.
fargate_memory() {
    local memory
    for memory in $(fargate_memories "$1"); do
        [[ $memory -lt $2 ]] || break
    done
    printf '%s' "${memory:-$2}"
}

# check_fargate VCPUS MEMORY OPTIONS: refuses what Fargate does not have, and says what is nearest.
check_fargate() {
    local memory below='' above=''
    [[ " $FARGATE_VCPUS " == *" $1 "* ]] ||
        die "Fargate has 1, 2, 4, 8, 16 or 32 vCPUs, not $1 ($3)."
    for memory in $(fargate_memories "$1"); do
        [[ $memory -gt $2 ]] || below=$memory
        [[ $memory -lt $2 || -n $above ]] || above=$memory
    done
    [[ $below == "$2" ]] ||
        die "Fargate does not have $2 MiB of memory with $1 vCPU ($3). Nearest: ${below}${below:+${above:+ or }}${above}."
}

# What belongs together, where neither the user nor the stack says otherwise. With GPUs, choose_gpu_sizes does the rest.
choose_sizes() {
    local name
    is_settled MainMemory || set_parameter --mainmem MainMemory "$(fargate_memory "$(value_of MainVCPUS)" 4096)"
    if [[ $(value_of GPUS) != 0 ]]; then
        is_settled VolumeSize || set_parameter --volume VolumeSize "$GPU_VOLUME"
        return
    fi
    for name in InstanceTypes VCPUS VolumeSize; do
        is_settled "$name" || set_parameter '' "$name" "$(template_value "$name" Default)"
    done
    if is_settled Memory; then
        return
    elif [[ $(value_of Fargate) == yes ]]; then
        set_parameter --mem Memory "$(fargate_memory "$(value_of VCPUS)" 2048)"
    else
        set_parameter --mem Memory $(($(value_of VCPUS) * FILLING_MEMORY))
    fi
}

# Refuses, before AWS is asked anything, what Fargate and Graviton cannot do.
check_sizes() {
    check_fargate "$(value_of MainVCPUS)" "$(value_of MainMemory)" '--mainvcpus, --mainmem'
    if [[ $(value_of GPUS) != 0 ]]; then
        [[ $(value_of Fargate) == no ]] ||
            die "Fargate has no GPUs (--gpus); on instances, without --fargate, workers can have them."
        [[ $(value_of InstanceTypes) != default_arm64 ]] || refuse_graviton_with_gpus
    fi
    [[ $(value_of Fargate) == yes ]] || return 0
    check_fargate "$(value_of VCPUS)" "$(value_of Memory)" '--vcpus, --mem'
    [[ $(value_of VolumeSize) -le 200 ]] || die "a worker on Fargate has 200 GiB of disk at most (--volume)."
    [[ -z $(value_of KeepWarm) ]] || die "on Fargate there are no instances to keep (--keepwarm)."
    case $(value_of InstanceTypes) in
        optimal | default_x86_64 | default_arm64) ;;
        *) die "Fargate has no instance types to choose from (--instancetype); --arm64 takes Graviton." ;;
    esac
}

refuse_graviton_with_gpus() {
    die "AWS Batch has NVIDIA's driver for x86 alone, so workers on Graviton (ARM) get no GPUs (--gpus, --arm64, --instancetype)."
}

# instance_types LIST: a line for each type that Batch may pick from: name, vCPUs, memory (MiB), architecture,
# NVIDIA's GPUs.
instance_types() {
    local item types filter=''
    local -a items
    IFS=, read -r -a items <<<"$1"
    for item in "${items[@]}"; do
        case $item in
            # So the Batch API describes instanceTypes.
            optimal | default_x86_64) filter+=',m6i.*,c6i.*,r6i.*,c7i.*' ;;
            default_arm64) filter+=',m6g.*,c6g.*,r6g.*,c7g.*' ;;
            *.*) filter+=",$item" ;;
            *) filter+=",$item.*" ;;
        esac
    done
    types=$(aws ec2 describe-instance-types --filters "Name=instance-type,Values=${filter#,}" --output text --query \
        "InstanceTypes[].[InstanceType, VCpuInfo.DefaultVCpus, MemoryInfo.SizeInMiB, ProcessorInfo.SupportedArchitectures[-1],
            GpuInfo.Gpus[?Manufacturer=='NVIDIA'] | [0].Count]") || return
    [[ -n $types && $types != None ]] || die "region $REGION has no instance types '$1' (--instancetype)."
    printf '%s\n' "$types"
}

# fits VCPUS MEMORY GPUS: of the instance types in the input those that hold such a worker, the one of which it takes most
# vCPUs first: these vCPUs, how many workers it holds, its name, its vCPUs, memory (MiB) that each may have. The driver is
# not for the GPUs of g3 and p3 (Batch's API reference, Ec2Configuration).
fits() {
    LC_ALL=C awk -F '\t' -v vcpus="$1" -v memory="$2" -v gpus="$3" -v percent=$MEMORY_PERCENT '
        gpus == 0 || $1 !~ /^[gp]3/ {
            fit = int($2 / vcpus); usable = $3 * percent / 100
            if (int(usable / memory) < fit) fit = int(usable / memory)
            if (gpus > 0 && int($5 / gpus) < fit) fit = int($5 / gpus)
            if (fit) print $2 / fit "\t" fit "\t" $1 "\t" $2 "\t" int(usable / fit)
        }' | LC_ALL=C sort -s -g -r -k 1,1
}

# With GPUs: refuses instances that have none, and chooses what is not settled: the sizes of GPU_TYPES that such workers
# fill, and the vCPUs and memory that fill these.
choose_gpu_sizes() {
    local gpus list types fitting least kind
    gpus=$(value_of GPUS) list=$(value_of InstanceTypes)
    [[ $gpus != 0 ]] || return 0
    [[ $list != optimal && $list != default_x86_64 ]] || list=$GPU_TYPES
    types=$(instance_types "$list") || exit 1
    [[ $types != *arm64* ]] || refuse_graviton_with_gpus
    [[ -n $(fits 1 1 "$gpus" <<<"$types") ]] ||
        die "no instance of '$list' has so many GPUs (--gpus $gpus, --instancetype). NVIDIA's count, but for those of g3 and p3, for which AWS Batch has no driver."
    fitting=$(fits "$(settled VCPUS || echo 1)" "$(settled Memory || echo 1)" "$gpus" <<<"$types")
    # Where no type holds such a worker, work_out_computers says so.
    [[ -n $fitting ]] || return 0
    least=$(tail -n 1 <<<"$fitting" | cut -f 1)
    fitting=$(awk -F '\t' -v least="$least" '$1 == least' <<<"$fitting")
    [[ $list != "$GPU_TYPES" ]] || set_parameter '' InstanceTypes "$(cut -f 3 <<<"$fitting" | paste -s -d , -)"
    if ! is_settled VCPUS || ! is_settled Memory; then
        is_settled VCPUS || set_parameter --vcpus VCPUS "${least%.*}"
        is_settled Memory || set_parameter --mem Memory $(($(cut -f 5 <<<"$fitting" | sort -n | sed -n 1p) / 100 * 100))
        [[ $(value_of InstanceTypes) == p* ]] && kind=P || kind='G and VT'
        [[ $(value_of Spot) == yes ]] && kind="All $kind Spot Instance Requests" || kind="Running On-Demand $kind instances"
        say "Each worker has --gpus $gpus --vcpus $(value_of VCPUS) --mem $(value_of Memory), on $(value_of InstanceTypes). Of the quota \"$kind\" a new account has 0 vCPUs; scripts/check.sh --dry says how many yours has."
    fi
}

# What CloudFormation cannot work out: the architecture, and how many vCPUs the instances need to have so that all
# workers find a place. Batch counts the vCPUs of instances, not of jobs, and may pick any type that holds a job.
work_out_computers() {
    local list vcpus memory gpus jobs types architectures each fit worst of hint
    choose_gpu_sizes
    list=$(value_of InstanceTypes) vcpus=$(value_of VCPUS) memory=$(value_of Memory) gpus=$(value_of GPUS) jobs=$(value_of MaxJobs)
    types=$(instance_types "$list") || exit 1
    architectures=$(cut -f 4 <<<"$types" | sort -u)
    case $architectures in
        x86_64) set_parameter '' Architecture X86_64 ;;
        arm64) set_parameter '' Architecture ARM64 ;;
        *) die "the instance types '$list' are not all of one architecture (--instancetype): ${architectures//$'\n'/, }." ;;
    esac
    if [[ $(value_of Fargate) == yes ]]; then
        set_parameter '--maxjobs times --vcpus' MaxVCPUS $((jobs * vcpus))
        return
    fi
    IFS=$'\t' read -r each fit worst of _ < <(fits "$vcpus" "$memory" "$gpus" <<<"$types") ||
        die "no instance of '$list' holds a worker of $vcpus vCPUs and $memory MiB (--vcpus, --mem, --instancetype); a tenth of its memory is the system's."
    if [[ $gpus == 0 ]]; then
        hint="Per vCPU, $FILLING_MEMORY MiB fill the families c, 3600 m and 7300 r (--instancetype m6i,m7i)."
    else
        hint="Sizes such as g6.xlarge (--instancetype), without --vcpus and --mem, are filled by workers of one GPU."
    fi
    [[ $of -le $((vcpus * fit)) ]] ||
        warn "note: workers of $vcpus vCPUs and $memory MiB do not fill the instances: on a $worst each takes $each vCPUs, which cost money. $hint"
    set_parameter '--maxjobs times --vcpus' MaxVCPUS $(((jobs * of + fit - 1) / fit))
}

# parameters_json NAMES: all given parameters for the aws command line. Those in NAMES (words) that are not given keep
# the value they have.
parameters_json() {
    local name value json=''
    for name in $(template_parameters); do
        if value=$(parameter "$name"); then
            json+=",{\"ParameterKey\": \"$name\", \"ParameterValue\": \"$value\"}"
        elif [[ " $1 " == *" $name "* ]]; then
            json+=",{\"ParameterKey\": \"$name\", \"UsePreviousValue\": true}"
        fi
    done
    printf '[%s]' "${json#,}"
}
