#!/usr/bin/env bash
# Runs the main image, which scripts/build.sh --main has pushed, as a job on the stack's queue for main scripts. With the
# main script on AWS too, this computer may be switched off meanwhile. The job sees no file of this computer: give it
# names such as /vsis3/mybucket/scene.tif (see --readbucket and --writebucket of scripts/create.sh).
#
#   scripts/submit.sh [OPTION...] [--] [ARGUMENT...]
#       each ARGUMENT goes to the main script
#
#   --wait             follow the job's state (on standard error) and its log (on standard output) until it ends,
#                      and exit with the main script's exit status
#   --name NAME        the job's name; default: the stack's name and the time
#   --stackname NAME   the stack (RIOS_AWSBATCH_STACK, or RIOS)
#   --region NAME      its region (RIOS_AWSBATCH_REGION, AWS_REGION, AWS_DEFAULT_REGION, or ap-southeast-2)
#   --help             this text

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

POLL_SECONDS=3
LOG_SECONDS=3          # what the last lines of a log may need to arrive
RUNNABLE_SECONDS=900   # a machine is there before that, if one can be had at all
FAILURES=20            # answers missed in a row, before giving up following
# ECS takes 8192 characters of JSON (API reference, ContainerOverride), in which AWS Batch has variables of its own.
ARGUMENTS_MOST=7000

WAIT='' NAME='' ARGUMENTS=()

read_options() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --wait) WAIT=yes ;;
            --name) need_value "$@"; NAME=$2; shift ;;
            --stackname) need_value "$@"; STACK=$2; shift ;;
            --region) need_value "$@"; REGION=$2; shift ;;
            --help | -h) usage; exit 0 ;;
            --) shift; ARGUMENTS+=("$@"); break ;;
            -*) die "do not understand '$1'. What is for the main script stands after '--'. See $(basename "$0") --help." ;;
            *) ARGUMENTS+=("$@"); break ;;
        esac
        shift
    done
    [[ -z $NAME || $NAME =~ ^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$ ]] ||
        die "'$NAME' cannot be the name of a job: use letters, digits, hyphens and underscores, 128 at most."
}

# What Batch refuses, or takes for something else.
check_arguments() {
    local word list
    for word in ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}; do
        [[ -n $word ]] || die "AWS Batch takes no empty argument. Leave it out, or let your script know a word for it."
        [[ $word != Ref::* ]] ||
            die "AWS Batch takes '$word' for the name of a parameter of its own. Let your script have it in another form."
    done
    list=$(json_list ${ARGUMENTS[@]+"${ARGUMENTS[@]}"})
    [[ ${#list} -le $ARGUMENTS_MOST ]] ||
        die "AWS starts no job with so many arguments: $ARGUMENTS_MOST characters is the most, and these have ${#list}. Let your script read them from a file, which scripts/build.sh --main SCRIPT FILE puts beside it."
}

# json_list WORD...: the words as a JSON list of strings.
json_list() {
    local word list=''
    for word in "$@"; do
        word=${word//\\/\\\\} word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
        list+=", \"${word//$'\r'/\\r}\""
    done
    printf '[%s]' "${list#, }"
}

# A job without an image would fail minutes later, on a machine that costs money.
check_images() {
    image_of BatchECRMain ||
        die "there is no main image in stack '$STACK' yet. Build and push it with scripts/build.sh --main SCRIPT."
    image_of BatchECR ||
        warn "note: there is no image for the workers in stack '$STACK' yet. scripts/build.sh builds it."
}

# submit: sets JOB.
submit() {
    local queue definition overrides=()
    queue=$(stack_output BatchProcessingJobQueueMainName)
    definition=$(stack_output BatchProcessingJobDefinitionMainName)
    if [[ ${#ARGUMENTS[@]} -gt 0 ]]; then
        overrides=(--container-overrides "{\"command\": $(json_list "${ARGUMENTS[@]}")}")
    fi
    JOB=$(aws batch submit-job --job-name "$NAME" --job-queue "$queue" --job-definition "$definition" \
        ${overrides[@]+"${overrides[@]}"} --query jobId) || exit 1
}

# ------------------------------------------------------------------------------------------------------- following

note() {
    printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2
}

# look: what Batch says of the job, as STATE, STREAM and GROUP (of its log), CODE and REASON.
look() {
    local answer status_reason container_reason
    answer=$(aws batch describe-jobs --jobs "$JOB" --query "jobs[0].[status, container.logStreamName,
        container.logConfiguration.options.\"awslogs-group\", container.exitCode, container.reason, statusReason]") || return
    IFS=$'\t' read -r STATE STREAM GROUP CODE container_reason status_reason <<<"$answer"
    [[ $GROUP != None ]] || GROUP=/aws/batch/job
    REASON=$status_reason
    [[ $container_reason == None ]] || REASON+="; $container_reason"
}

# show_log: the lines that are new. LOG_OF and LOG_NEXT remember how far it came: a second try has another stream. A page
# may be empty though more follow; the end is where the token stays the same.
show_log() {
    local answer next
    [[ $STREAM != None ]] || return 0
    [[ $STREAM == "$LOG_OF" ]] || { LOG_OF=$STREAM LOG_NEXT=''; }
    while :; do
        # The token is the first line, the messages follow. Before the first message there is no stream yet.
        answer=$(aws_command logs get-log-events --log-group-name "$GROUP" --log-stream-name "$STREAM" --start-from-head \
            ${LOG_NEXT:+--next-token "$LOG_NEXT"} --query '[[[nextForwardToken]], events[].[message]][]' 2>/dev/null) || return 0
        next=${answer%%$'\n'*}
        [[ $answer == "$next" ]] || printf '%s\n' "${answer#*$'\n'}"
        [[ $next != "$LOG_NEXT" ]] || break
        LOG_NEXT=$next
    done
}

# follow: until the job has ended.
follow() {
    local last='' missed=0 since=$SECONDS
    LOG_OF='' LOG_NEXT=''
    while :; do
        if look; then
            missed=0
            if [[ $STATE != "$last" ]]; then
                note "$STATE"
                last=$STATE since=$SECONDS
            fi
            show_log
            [[ $STATE != SUCCEEDED && $STATE != FAILED ]] || return 0
            if [[ $STATE == RUNNABLE && $((SECONDS - since)) -ge $RUNNABLE_SECONDS ]]; then
                note "still no machine for the job. Usual causes: the account's quota of Fargate vCPUs (6 in a new account), or no free capacity."
                since=$SECONDS
            fi
        else
            missed=$((missed + 1))
            [[ $missed -lt $FAILURES ]] || die "gave up following the job. $(goes_on)"
        fi
        sleep "$POLL_SECONDS"
    done
}

goes_on() {
    printf 'The job goes on. To stop it: aws batch terminate-job --region %s --job-id %s --reason stopped' "$REGION" "$JOB"
}

# finish: the end of a followed job, as the exit status of this script.
finish() {
    if [[ $STREAM != None ]]; then
        sleep "$LOG_SECONDS"
        show_log
    fi
    [[ $STATE == FAILED ]] || exit 0
    case $REASON in
        *CannotPullContainer*)
            die "AWS cannot start the main image ($REASON). Build and push it with scripts/build.sh --main SCRIPT." ;;
        *OutOfMemory*)
            warn "your script needs more memory than the main job has ($REASON). scripts/modify.sh --mainmem MIB gives it more." ;;
        *)
            if [[ $CODE =~ ^[1-9][0-9]*$ && $REASON == *'Essential container'* ]]; then
                warn "your script ended with $CODE (job $JOB)"
            else
                warn "job $JOB failed: $REASON"
            fi ;;
    esac
    [[ $CODE =~ ^[1-9][0-9]*$ && $CODE -le 255 ]] || exit 1
    exit "$CODE"
}

# ---------------------------------------------------------------------------------------------------------------

read_options "$@"
check_arguments
require_stack
check_images
NAME=${NAME:-$STACK-main-$(date +%Y%m%d-%H%M%S)}
submit
say "Submitted job $NAME, $JOB" >&2
if [[ -n $WAIT ]]; then
    trap 'echo >&2; say "$(goes_on)" >&2; exit 130' INT TERM
    follow
    finish
else
    say "$JOB"
fi
