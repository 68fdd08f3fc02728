"""An AWS on this machine, for the demo, the tests and the benchmark.

moto keeps the state of S3, SQS, CloudFormation, ECR, IAM, STS, EC2, Batch and CloudWatch Logs. This package
serves it over HTTP on the loopback address, and replaces the few places where moto is untrue to AWS or too
slow to measure anything with. Each room says in its first lines what moto does by itself, what is added, and
why:

    lean            what moto need not read at its start
    front           HTTP with keep-alive; each request counted, delayed, failed, allowed, carried out
    control         GET and POST under /_local/, for the tests
    request         what a request asks of which service, and how each service writes an error
    faults          what goes wrong, how often
    iam             allows and denies by action, resource and condition; credentials that expire
    sqs             a message store of its own
    batch           jobs and what users ask about them
    scheduler       which job runs when, on which instance, and what follows an attempt
    instances       the computers of a compute environment
    containers      images, processes, logs
    push            what is in ECR after `docker push`
    disk            the empty disk of a container
    cloudformation  stacks: events, roll-back, updates in place, deletions that can fail
    resources       kinds of resources that moto lacks or cannot change
    aws_command     the `aws` under local.sh (aws_call), which is quicker than awscli's own

`scripts/local.sh` starts and stops it, and describes its settings. By hand:

    python scripts/local_aws serve PORT-FILE     serve until SIGTERM; the port is written to PORT-FILE
    python scripts/local_aws push OUTPUT FILE [NAME=VALUE...]
        put an image `latest` whose entry point is FILE into the repository that this output names
"""
import os

ACCOUNT = '123456789012'
PARTITION = 'aws'
# The access key of the account's owner, whom no policy binds. The one a user of local.sh has.
OWNER_KEY = 'AKIALOCALOWNERKEY000'
# What stands beside this folder's parent: the modules of an image.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class AwsError(Exception):
    """An answer that AWS gives instead of a result."""

    def __init__(self, code, message, status=400):
        super().__init__(message)
        self.code, self.message, self.status = code, message, status
