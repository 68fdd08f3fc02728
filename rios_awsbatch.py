"""
Run per-block raster work on AWS Batch.

A block of raster work is a call: a function and its arguments. This module sends such calls to worker
containers on AWS Batch and brings the results back as futures, so that AWS Batch looks like any other
Python executor::

    import rios_awsbatch

    with rios_awsbatch.AWSBatchExecutor(max_workers=8) as executor:
        for result in executor.map(myFunction, blocks, buffersize=32):
            ...

Users of RIOS (rioshome.org) do not call it themselves. They import this module and choose AWS Batch, and
everything else in their script stays::

    import rios_awsbatch
    controls.setNumThreads(4)                  # RIOS 1.4, and RIOS 2.0
    controls.setJobManagerType('AWSBatch')

    controls.setConcurrencyStyle(applier.ConcurrencyStyle(     # RIOS 2
        computeWorkerKind='CW_AWSBATCH', numComputeWorkers=4))

What AWS needs for it is one CloudFormation stack, which ``scripts/create.sh`` creates from ``batch.yaml``,
and one container image, which ``scripts/build.sh`` builds. ``worker.py`` is what runs in that container.

A run has two SQS queues of its own, a folder ``runs/<run id>/`` in the stack's bucket, and its Batch jobs;
nothing is shared with any other run. Its life, of which :class:`_Run` is the code::

    open ──── shutdown(), end of the with statement, of the script, of all references ───▶ closing
      │                                                                                      │
      └─ no worker can finish the calls ─▶ broken: every future fails ── shutdown() ─▶       │ no call is left,
                                                                                             │ or there is a hurry
    ended ◀── workers stopped, queues and objects deleted (_Run._clean_up) ◀─────────────────┘

and that of a call, whose future the script holds::

    submit ─▶ outbox ─▶ in queue ─▶ a worker ─▶ out queue ─▶ future settled (the first answer wins)
                │          │           │
                └──────────┴───────────┴── future.cancel(): taken back wherever it is (_Run._take_back)

Threads of the run move it along. They share no lock and wait for no other thread: what they tell each
other goes through queues, and what several of them change is changed by operations that Python does in one
step. So code of the script (a callback, a finaliser, a ``__repr__``) may come at any moment in any thread.
"""
# MIT licence, see the file LICENSE.

import atexit
import collections
import concurrent.futures
import contextlib
import copy
import copyreg
import functools
import hashlib
import hmac
import importlib
import importlib.metadata
import itertools
import json
import logging
import os
import pickle
import platform
import queue
import reprlib
import secrets
import signal
import sys
import threading
import time
import traceback
import weakref
import zlib

import boto3
import botocore.config
import botocore.exceptions
import cloudpickle

__version__ = '2.0.0'
__all__ = ['STACK_NAME', 'REGION', 'AWSBatchException', 'BrokenAWSBatchExecutor', 'getStackOutputs',
           'AWSBatchExecutor', 'AWSBatchJobManager', 'AWSBatchComputeWorkerMgr']

log = logging.getLogger('rios_awsbatch')

#: The CloudFormation stack to use, from $RIOS_AWSBATCH_STACK.
STACK_NAME = os.environ.get('RIOS_AWSBATCH_STACK') or 'RIOS'
#: The AWS region it is in, from $RIOS_AWSBATCH_REGION, $AWS_REGION or $AWS_DEFAULT_REGION.
REGION = (os.environ.get('RIOS_AWSBATCH_REGION') or os.environ.get('AWS_REGION') or
          os.environ.get('AWS_DEFAULT_REGION') or 'ap-southeast-2')

# How long things may take, in seconds.
LEASE_SECONDS = 180         # workers stop this long after the main script was last alive
WATCH_SECONDS = 5           # how often the Batch jobs are looked at
TELL_SECONDS = 300          # how often it is said that no worker is up yet, or that AWS is still away
VISIBILITY_SECONDS = 30     # a dead worker's block is given to another one after this
STOP_SECONDS = 5            # what workers get to say goodbye before they are terminated
ROUNDS_AHEAD = 2            # rounds of RIOS 1.4 that are computed before RIOS waits for the first of them
# How often things are tried.
MAX_TRIES = 3               # a call that ended the process that computed it this often is given up
MAX_RECEIVES = 12           # ... and so is one whose whole worker was gone each time
# How much may be on its way. SQS charges each 64 KiB of a message as a request, S3 a PUT like 14 of them, so
# a message of up to 8 is cheaper, and a ninth is worth the two round trips that it saves: "Cost" in the README.
INLINE_BYTES = 9 * 65536 - 2048
PACK_BYTES = 32768          # what is smaller is not compressed
OUTBOX_BYTES = 256 * 2**20  # submit() waits while this much is still to be sent
PREPARERS = 4               # threads that compress and upload calls ahead of the one that sends them
COLLECTORS = 2              # threads that receive results: more get fewer of them per request
# What takes long to import: workers do that first, if the main script has imported it too.
HEAVY_MODULES = ('numpy', 'osgeo.gdal_array', 'rios.applier')

# Limits of AWS: "Amazon SQS message quotas" in the SQS developer guide, and the models of
# sqs:SendMessageBatch, sqs:CreateQueue, s3:DeleteObjects and batch:SubmitJob in botocore.
MESSAGE_BYTES = 1024 * 1024         # one message with its attributes, and one batch of messages
BATCH_ENTRIES = 10                  # messages in a batch
LONG_POLL_SECONDS = 20
RETENTION_SECONDS = 14 * 86400
DELETE_OBJECTS = 1000               # keys in one request
DESCRIBE_JOBS = 100                 # jobs in one request
MAX_ARRAY = 10000                   # children of an array job
MIN_TIMEOUT = 60                    # seconds of a job
STACK_NAME_CHARS = 40               # of the 80 that a queue name may have

# Why a worker that should be there is not: what users find most often.
RUNNABLE_CAUSES = (
    'Usual causes: the account\'s EC2 vCPU quota or the stack\'s maximum number of jobs is used up by other jobs, '
    'no instance type of the stack is free (above all with Spot), or a job asks for more memory or vCPUs than any '
    'of them has. "scripts/status.sh" shows the jobs; "scripts/modify.sh" changes --maxjobs, --instancetype, --mem '
    'and --vcpus.')


class AWSBatchException(Exception):
    """Something about the stack, the run or a block is wrong; the message says what to do."""


class BrokenAWSBatchExecutor(concurrent.futures.BrokenExecutor, AWSBatchException):
    """No worker can finish the outstanding calls any more."""


class _RemoteTraceback(Exception):
    """The cause of an exception that was raised in a worker: its traceback there, as text."""
    def __str__(self):
        return '\n"""\n{}"""'.format(self.args[0])


# ---------------------------------------------------------------------------------------------
# Errors of AWS, in the words of somebody who does not know AWS
# ---------------------------------------------------------------------------------------------

AWS_ERRORS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
_CREDENTIAL_HELP = ('Run "aws configure" (or "aws sso login"), or set AWS_ACCESS_KEY_ID and '
                    'AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.')
_EXPIRED = {'ExpiredToken', 'ExpiredTokenException', 'RequestExpired', 'TokenRefreshRequired'}
_WRONG_KEY = {'InvalidClientTokenId', 'UnrecognizedClientException', 'InvalidAccessKeyId',
              'SignatureDoesNotMatch', 'InvalidSignatureException', 'AuthFailure'}
_DENIED = {'AccessDenied', 'AccessDeniedException', 'UnauthorizedOperation', 'AuthorizationError',
           'AWS.SimpleQueueService.AccessDenied'}
_NO_QUEUE = {'AWS.SimpleQueueService.NonExistentQueue', 'QueueDoesNotExist'}
_NO_OBJECT = {'NoSuchKey', '404', 'NotFound',
              'AccessDenied', '403', 'Forbidden'}   # what those are told who may not list the bucket
_THROTTLED = {'Throttling', 'ThrottlingException', 'TooManyRequestsException', 'SlowDown',
              'RequestThrottled', 'RequestLimitExceeded', 'RequestThrottledException'}
_CONNECTION_ERRORS = (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)


def error_code(error):
    """The error code of a botocore ClientError, '' for any other exception."""
    return getattr(error, 'response', {}).get('Error', {}).get('Code', '')


def is_temporary(error):
    """Whether an error of botocore (a network that is away, a throttle, a 5xx) may pass."""
    status = getattr(error, 'response', {}).get('ResponseMetadata', {}).get('HTTPStatusCode', 0)
    return isinstance(error, _CONNECTION_ERRORS) or status >= 500 or error_code(error) in _THROTTLED


def is_expired(error):
    """Whether an error of botocore passes when the user logs in again."""
    return error_code(error) in _EXPIRED or isinstance(
        error, (botocore.exceptions.SSOError, botocore.exceptions.TokenRetrievalError,
                botocore.exceptions.CredentialRetrievalError))


def explain(error, doing):
    """
    Turn an exception of botocore into an :class:`AWSBatchException` that a user can act on.

    Args:
        error: a BotoCoreError or ClientError.
        doing (str): what was being done, as in 'reading the stack outputs'.
    """
    code, said = error_code(error), str(error)
    exceptions = botocore.exceptions
    if isinstance(error, exceptions.ProfileNotFound):
        text = '{}. AWS_PROFILE names it; "aws configure list-profiles" shows those you have.'
    elif is_expired(error):
        text = 'Your AWS login has expired ({}). Log in again. ' + _CREDENTIAL_HELP
    elif isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)):
        text = 'No AWS credentials were found ({}). ' + _CREDENTIAL_HELP
    elif code in _WRONG_KEY:
        text = 'AWS does not accept your credentials ({}). ' + _CREDENTIAL_HELP
    elif code in _DENIED:
        text = ('AWS does not allow you this ({}). Ask whoever manages your AWS account to attach the policy of the '
                'stack\'s output BatchMainPolicyArn to your user or role.')
    elif code == 'NoSuchBucket':
        text = '{}. "scripts/delete.sh" and "scripts/create.sh" make the stack anew.'
    elif code in _THROTTLED:
        text = ('AWS refuses more requests for the moment ({}). Try again in a minute; if it stays so, another '
                'program in the same account makes too many requests.')
    elif isinstance(error, exceptions.InvalidRegionError) or (
            isinstance(error, exceptions.EndpointConnectionError) and not _is_region(REGION)):
        text = ('There is no AWS region "' + REGION + '" ({}). Set RIOS_AWSBATCH_REGION, for instance to '
                'ap-southeast-2.')
    elif isinstance(error, _CONNECTION_ERRORS):
        text = ('AWS cannot be reached ({}). Check the network connection, a proxy, and that RIOS_AWSBATCH_REGION '
                '("' + REGION + '") is the region you mean.')
    else:
        text = '{}'
    return AWSBatchException('Error when {} (stack {}, region {}): {}'.format(
        doing, STACK_NAME, REGION, text.format(said)))


def _is_region(name):
    session = boto3.session.Session()
    return any(name in session.get_available_regions('batch', partition)
               for partition in session.get_available_partitions())


@contextlib.contextmanager
def _explained(doing):
    """Errors of AWS inside the block are raised as an AWSBatchException that says `doing`."""
    try:
        yield
    except AWS_ERRORS as error:
        raise explain(error, doing) from error


# ---------------------------------------------------------------------------------------------
# The stack
# ---------------------------------------------------------------------------------------------

# What travels has a SHA-256 that is checked, so a CRC32 besides is only time. Known since botocore 1.36.
_NO_CHECKSUMS = {name: 'when_required' for name in (
    'request_checksum_calculation', 'response_checksum_validation')
    if name in botocore.config.Config.OPTION_DEFAULTS}


def make_client(service, region, requests=None, session=boto3):
    """
    A boto3 client that is patient with AWS, and good for many threads.

    Args:
        service (str): boto3's name for it, as in 'sqs'.
        region (str): the AWS region.
        requests (collections.Counter): counts the requests made, by operation.
        session (boto3.session.Session): whose credentials it uses; default: boto3's own.
    """
    config = botocore.config.Config(
        retries={'mode': 'standard', 'total_max_attempts': 8}, max_pool_connections=32,
        connect_timeout=10, read_timeout=LONG_POLL_SECONDS + 20,
        user_agent='rios_awsbatch/' + __version__,      # botocore makes up its own for every request
        **_NO_CHECKSUMS)
    client = session.client(service, region_name=region, config=config)
    if requests is not None:
        def count(event_name, **kwargs):
            requests[event_name.partition('.')[2]] += 1
        client.meta.events.register('before-send.' + service, count)
    return client


def getStackOutputs():
    """
    Return the outputs of the CloudFormation stack, which name everything a run uses.

    The stack is $RIOS_AWSBATCH_STACK in $RIOS_AWSBATCH_REGION.

    Returns:
        dict: output name (str) to value (str), as ``batch.yaml`` describes them.

    Raises:
        AWSBatchException: there is no such stack, it is not ready, it is not one of ours, or AWS
            could not be asked.
    """
    where = 'stack "{}" in region {}'.format(STACK_NAME, REGION)
    variables = 'RIOS_AWSBATCH_STACK and RIOS_AWSBATCH_REGION say which stack is used'
    try:
        stack = make_client('cloudformation', REGION).describe_stacks(StackName=STACK_NAME)['Stacks'][0]
    except AWS_ERRORS as error:
        if error_code(error) == 'ValidationError':
            raise AWSBatchException('There is no {}. {}; "scripts/create.sh --wait" creates one.'.format(
                where, variables)) from None
        raise explain(error, 'reading the stack outputs') from error
    status = stack['StackStatus']
    if status in ('CREATE_IN_PROGRESS', 'REVIEW_IN_PROGRESS'):
        raise AWSBatchException('The {} is still being created. Wait until "scripts/status.sh" says '
                                'CREATE_COMPLETE, and try again.'.format(where))
    if status.startswith(('ROLLBACK', 'DELETE')) or status == 'CREATE_FAILED':
        raise AWSBatchException('The {} cannot be used: it is in state {}. Delete it with "scripts/delete.sh --wait" '
                                'and create it again with "scripts/create.sh --wait".'.format(where, status))
    outputs = {out['OutputKey']: out['OutputValue'] for out in stack.get('Outputs', [])}
    missing = [name for name in ('BatchBucket', 'BatchProcessingJobQueueName', 'BatchMaxJobs',
                                 'BatchProcessingJobDefinitionName') if name not in outputs]
    if missing:
        raise AWSBatchException(
            'The {} has no output {}, so it was not created from this version\'s batch.yaml. {}; '
            '"scripts/modify.sh" updates an older stack of rios_awsbatch.'.format(
                where, ' and no '.join(missing), variables))
    return outputs


def _require_image(stack):
    """Raise AWSBatchException where nobody has built the image: it would cost an instance to find that out."""
    repository = stack.get('BatchECR', '').rpartition('/')[2]
    if not repository:
        return
    try:
        make_client('ecr', REGION).describe_images(repositoryName=repository, imageIds=[{'imageTag': 'latest'}])
    except AWS_ERRORS as error:
        if error_code(error) in ('ImageNotFoundException', 'RepositoryNotFoundException'):
            raise AWSBatchException('There is no image for the workers in the repository {} of stack {} yet. '
                                    '"scripts/build.sh" builds and pushes it.'.format(
                                        repository, STACK_NAME)) from None
        log.debug('Whether there is an image cannot be seen: %s', error)     # Batch will say


# ---------------------------------------------------------------------------------------------
# What travels between the main script and its workers
# ---------------------------------------------------------------------------------------------

class Refused(Exception):
    """A message or an object that this run did not make. It is never unpickled."""


def dumps(thing):
    """Pickle anything that cloudpickle can, lambdas and functions of the script included."""
    # In a child that multiprocessing has spawned, this is the name of the main script.
    main = sys.modules.get('__mp_main__')
    if main is not None and main.__name__ not in cloudpickle.list_registry_pickle_by_value():
        cloudpickle.register_pickle_by_value(main)
    return cloudpickle.dumps(thing, protocol=5)


def pack(data):
    """
    Compress a pickle of pixels; the same bytes if that does not make them smaller.

    The four bytes of neighbouring pixels are sorted by their place first, and only runs and frequent bytes are
    looked for: twice as fast as zlib's level 1 on what satellites see, and as small.
    """
    if len(data) < PACK_BYTES or len(data) > 4 * INLINE_BYTES:
        return data
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    packed = packer.compress(b''.join(data[place::4] for place in range(4))) + packer.flush()
    return packed if len(packed) < len(data) else data


def unpack(packed):
    """What :func:`pack` has made smaller."""
    sorted_bytes = zlib.decompress(packed)
    data, begin = bytearray(len(sorted_bytes)), 0
    for place in range(4):
        count = len(range(place, len(data), 4))
        data[place::4] = sorted_bytes[begin:begin + count]
        begin += count
    return bytes(data)


class Channel:
    """
    The two queues and the folder of one run, as the main script and the workers see them.

    The body of a message is a signature and a header in JSON, a line each; its payload is the binary attribute
    `p`, which is counted and charged as it is, while the body would want it in base64. The signature
    (HMAC-SHA256 with the secret key of the run) covers the header; the header names the run, the direction and
    the SHA-256 of the payload. So a payload that was forged, cut short, or taken from another run is refused
    before it is unpickled, wherever it lies: one larger than INLINE_BYTES is an object in the run's folder, which
    the header names.

    Args:
        run (str): the run id.
        key (bytes): the secret key of the run.
        bucket (str): name of the stack's bucket.
        in_queue (str): URL of the queue with calls for the workers.
        out_queue (str): URL of the queue with answers for the main script.
        region (str): AWS region of all three.
    """
    def __init__(self, run, key, bucket, in_queue, out_queue, region):
        self.run, self.key, self.bucket, self.region = run, key, bucket, region
        self.in_queue, self.out_queue = in_queue, out_queue
        self.folder = 'runs/{}/'.format(run)
        self.requests = collections.Counter()
        self.connect()

    def connect(self):
        """Make the clients, with the credentials that there are now."""
        self.session = boto3.session.Session()
        self.sqs = make_client('sqs', self.region, self.requests, self.session)
        self.s3 = make_client('s3', self.region, self.requests, self.session)

    def sign(self, text):
        return hmac.new(self.key, text.encode(), 'sha256').hexdigest()

    def seal(self, to, header, payload=b''):
        """
        Make a message; a large payload is put in the bucket.

        Args:
            to (str): 'main' or 'worker', who may open it.
            header (dict): 'kind', and what else goes into JSON.
            payload (bytes): a pickle.

        Returns:
            (dict, dict): the message, as :meth:`send` takes it, and its complete header.
        """
        packed = pack(payload)
        digest = hashlib.sha256(packed).hexdigest()
        header = dict(header, run=self.run, to=to, sha256=digest, bytes=len(payload))
        if packed is not payload:
            header['packed'] = True
        if len(packed) > INLINE_BYTES:
            header['object'] = '{}{}-{}-{}'.format(self.folder, header['kind'], header.get('id'), digest)
            self.s3.put_object(Bucket=self.bucket, Key=header['object'], Body=packed)
            if 'uploaded' in header:
                header['uploaded'] = time.time()
            packed = b''
        text = json.dumps(header, separators=(',', ':'))
        message = {'MessageBody': '{}\n{}'.format(self.sign(text), text)}
        if packed:
            message['MessageAttributes'] = {'p': {'DataType': 'Binary', 'BinaryValue': packed}}
        return message, header

    def open(self, to, message):
        """
        Check a message that was received; its header (dict).

        Raises:
            Refused: this run did not make it, or not for `to`.
        """
        signature, _, text = message['Body'].partition('\n')
        if not hmac.compare_digest(signature.encode(), self.sign(text).encode()):
            raise Refused('its signature is wrong')
        header = json.loads(text)
        if (header['run'], header['to']) != (self.run, to):
            raise Refused('it is for the {} of run {}'.format(header['to'], header['run']))
        return header

    def payload(self, header, message):
        """
        The pickle (bytes) that belongs to a message and the header that :meth:`open` gave.

        Raises:
            Refused: it is not the one that was signed.
        """
        if 'object' in header:
            data = self.fetch(header['object'], header['sha256'])
        else:
            data = _checked(message.get('MessageAttributes', {}).get('p', {}).get('BinaryValue', b''),
                            header['sha256'], 'its payload')
        return unpack(data) if header.get('packed') else data

    def fetch(self, name, digest):
        """Read an object whose SHA-256 is known (bytes)."""
        for attempt in itertools.count(1):      # botocore retries requests, but not their bodies
            try:
                data = self.s3.get_object(Bucket=self.bucket, Key=name)['Body'].read()
                return _checked(data, digest, 'object ' + name)
            except (botocore.exceptions.IncompleteReadError, botocore.exceptions.ReadTimeoutError,
                    botocore.exceptions.ResponseStreamingError):
                if attempt == 5:
                    raise
            except botocore.exceptions.ClientError as error:
                if error_code(error) in _NO_OBJECT:
                    raise Refused('object {} is not there'.format(name)) from error
                raise

    def blob(self, digest):
        """Where what all calls share lies: a function, or what was given to AWSBatchExecutor.share()."""
        return '{}shared-{}'.format(self.folder, digest)

    def send(self, queue_url, messages):
        """
        Send up to BATCH_ENTRIES messages, which together keep below MESSAGE_BYTES.

        Those that AWS does not take are sent again, so all are sent when this returns.
        """
        entries, pause = [dict(message, Id=str(n)) for n, message in enumerate(messages)], 0.1
        while entries:
            answer = self.sqs.send_message_batch(QueueUrl=queue_url, Entries=entries)
            failed = {entry['Id']: entry for entry in answer.get('Failed', [])}
            for entry in failed.values():
                if entry.get('SenderFault'):
                    raise AWSBatchException('AWS SQS refused a message: {} {}'.format(
                        entry.get('Code'), entry.get('Message', '')))
            entries = [entry for entry in entries if entry['Id'] in failed]
            if entries:
                time.sleep(pause)
                pause = min(2 * pause, 5)

    def receive(self, queue_url, wait, most=BATCH_ENTRIES):
        """Wait up to `wait` seconds for at least one message; a list of SQS's messages."""
        return self.sqs.receive_message(
            QueueUrl=queue_url, MaxNumberOfMessages=most, WaitTimeSeconds=wait, MessageAttributeNames=['p'],
            AttributeNames=['ApproximateReceiveCount']).get('Messages', [])

    def delete(self, queue_url, receipts):
        """Delete received messages, given their receipt handles (any number)."""
        for some in batches(receipts, BATCH_ENTRIES):
            self.sqs.delete_message_batch(QueueUrl=queue_url, Entries=[
                {'Id': str(n), 'ReceiptHandle': receipt} for n, receipt in enumerate(some)])

    def hide(self, receipts, seconds):
        """Hide calls that were received from other workers for so long; 0 gives them back."""
        for some in batches(receipts, BATCH_ENTRIES):
            self.sqs.change_message_visibility_batch(QueueUrl=self.in_queue, Entries=[
                {'Id': str(n), 'ReceiptHandle': receipt, 'VisibilityTimeout': seconds}
                for n, receipt in enumerate(some)])


def _checked(data, digest, what):
    if hashlib.sha256(data).hexdigest() != digest:
        raise Refused('{} is not what was signed'.format(what))
    return data


def size_of(message):
    """What a message counts for, as SQS does it (bytes)."""
    attribute = message.get('MessageAttributes', {}).get('p')
    return len(message['MessageBody']) + (len(attribute['BinaryValue']) + len('pBinary') if attribute else 0)


def batches(things, size):
    """Cut a list into lists of at most `size`."""
    return [things[n:n + size] for n in range(0, len(things), size)]


def versions():
    """The versions that must fit between the main script and its workers, by name."""
    found = {'Python': platform.python_version(), 'rios_awsbatch': __version__}
    for name in ('cloudpickle', 'numpy'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def mismatch(main, worker):
    """
    Say why pickles cannot travel between two sets of :func:`versions`.

    Functions travel as bytecode, which is that of one minor version of Python. numpy 2 renamed the
    module that arrays are unpickled with; 1.26 knows both names. The rest is our own protocol.

    Returns:
        str: one sentence, or None where they fit.
    """
    def parts(found, name, count):
        return [int(part) for part in found[name].split('.')[:count]]

    for name, count in (('Python', 2), ('rios_awsbatch', 2), ('cloudpickle', 1), ('numpy', 1)):
        if name not in main or name not in worker or parts(main, name, count) == parts(worker, name, count):
            continue
        if name == 'numpy' and min(parts(main, name, 2), parts(worker, name, 2)) >= [1, 26]:
            continue
        return ('The main script has {0} {1}, but the workers\' image has {0} {2}, and calls cannot travel between '
                'the two. Build the image again with "scripts/build.sh" (BASE_IMAGE and PIP_PACKAGES choose '
                'versions), or run the main script as a job with "scripts/build.sh --main" and '
                '"scripts/submit.sh".'.format(name, main[name], worker[name]))
    return None


def shared(token):
    """
    In a worker: what the main script has given to :meth:`AWSBatchExecutor.share`.

    It is fetched once, and kept by the process that computes the blocks.

    Args:
        token (str): what share() has returned.

    Returns:
        bytes
    """
    return sys.modules['__main__'].shared(token)        # worker.py


# ---------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------

class _Call:
    """A call that has been submitted and not been answered."""
    __slots__ = ('id', 'future', 'label', 'size', 'digest', 'function', 'payload', 'prepared', 'message', 'object',
                 'queued', 'sent', '_unclaimed')

    def __init__(self, number, label, digest, function, payload):
        self.id, self.label, self.size = number, label, len(payload)
        self.digest, self.function, self.payload = digest, function, payload
        self.future = concurrent.futures.Future()
        # What takes time is done ahead of the thread that sends.
        self.prepared = threading.Event() if function or len(payload) > PACK_BYTES else None
        self.message = self.object = self.sent = None
        self.queued = time.time()
        self._unclaimed = threading.Lock()

    def claim(self):
        """Whether the caller is to settle the future: only the first one is, and nobody if it was cancelled."""
        return self._unclaimed.acquire(blocking=False) and self.future.set_running_or_notify_cancel()


class _BatchJob:
    """A Batch job of the run: an array of workers, or a plain one for one. Worker `first` is its child 0."""
    def __init__(self, job_id, first, size):
        self.id, self.first, self.size = job_id, first, size
        self.ended = set()          # children
        self.summary = None         # Batch's, when the children were last looked at
        self.submitted = time.monotonic()

    def child(self, index):
        return '{}:{}'.format(self.id, index) if self.size > 1 else self.id


class _Run:
    """
    What an executor has on AWS, and the threads here that serve it; see the top of the module for its life.

    Threads refer to the run and not to its executor, so that an executor that is dropped ends its run.

    Args:
        workers (int): how many there are to be while calls are outstanding.
        initializer (tuple or None): a function and its arguments, called first by each process that computes.
        job (dict): parameters for batch:SubmitJob.
        overrides (dict): its containerOverrides.
    """

    def __init__(self, workers, initializer=None, job=None, overrides=None):
        self.workers, self.job, self.overrides = workers, job or {}, overrides or {}
        self.pid, self.began = os.getpid(), time.time()
        self.id = '{}-{}'.format(time.strftime('%Y%m%dT%H%M%S', time.gmtime()), secrets.token_hex(4))
        # A stack name has no underscore, so these names never begin with another stack's.
        self.name = '{}_{}'.format(STACK_NAME, self.id)
        self.report = _open_report(os.environ.get('RIOS_AWSBATCH_REPORT'), self.id)
        self.start_timeout = _start_timeout()
        if len(STACK_NAME) > STACK_NAME_CHARS:
            raise AWSBatchException('The stack name "{}" is longer than {} characters, which is too long for the names '
                                    'of its queues.'.format(STACK_NAME, STACK_NAME_CHARS))
        self.stack = getStackOutputs()
        most = int(self.stack['BatchMaxJobs'])
        self.workers = workers = workers or most
        if workers > most:
            log.warning('%d workers are asked for, but stack %s runs at most %s jobs at a time, so some will wait. '
                        '"scripts/modify.sh --maxjobs %d" raises that.', workers, STACK_NAME, most, workers)
        _require_image(self.stack)
        self.calls = {}                     # the outstanding calls by id
        self.settling = {}                  # those of them whose futures are being settled
        self.ids = itertools.count(1)
        self.outbox = queue.SimpleQueue()   # calls in the order in which they were submitted; None ends it
        self.large = queue.SimpleQueue()    # those of them that want preparation
        self.backlog = 0                    # bytes in the outbox, more or less
        self.stored = set()                 # digests of what lies in the run's folder for all calls
        self.spent = collections.deque()    # objects of answered calls, to be deleted
        self.revoked = set()                # ids of cancelled calls that are in the queue
        self.wake = queue.SimpleQueue()     # for the keeper: a cancelled call, or None to have a look
        self.jobs = {}                      # Batch jobs that have not ended, by their ids
        self.up = {}                        # workers that are up: number (str) to versions
        self.quiet = set()                  # those that have said why they end
        self.ends = collections.deque(maxlen=5)     # what Batch said of those that were lost: (sentence, child)
        self.tallies = [collections.Counter() for _ in range(COLLECTORS)]      # calls answered, by worker
        self.started = self.lost = self.futile = self.awaited = 0
        self.seen_up = self.doomed = self.closing = self.hurry = False
        self.broken = self.told = None
        self.channel = None
        self.ended = threading.Event()      # the threads stop
        self.clean = threading.Event()      # nothing is left
        try:
            with _explained('starting a run'):
                self._start(initializer)
        except BaseException:
            self._clean_up(orderly=False)
            raise
        loops = [self._keep, self._renew, self._send] + [self._prepare] * PREPARERS + [
            functools.partial(self._collect, tally) for tally in self.tallies]
        for loop in loops:
            threading.Thread(target=self._guarded, args=(loop,), name='rios_awsbatch', daemon=True).start()
        _runs.add(self)

    def _start(self, initializer):
        self.channel = Channel(self.id, secrets.token_bytes(32), self.stack['BatchBucket'], None, None, REGION)
        self.batch = make_client('batch', REGION, self.channel.requests, self.channel.session)
        self._put_lease()
        for name in ('in', 'out'):
            url = self.channel.sqs.create_queue(
                QueueName='{}_{}'.format(self.name, name),
                Attributes={'VisibilityTimeout': str(VISIBILITY_SECONDS), 'SqsManagedSseEnabled': 'true',
                            'MessageRetentionPeriod': str(RETENTION_SECONDS)},
                tags={'Project': self.stack.get('BatchTag', 'rios')})['QueueUrl']
            setattr(self.channel, name + '_queue', url)
        self.environment = {
            'RIOSBucket': self.channel.bucket, 'RIOSInQueue': self.channel.in_queue,
            'RIOSOutQueue': self.channel.out_queue, 'RIOSRun': self.id, 'RIOSRunKey': self.channel.key.hex(),
            'RIOSRegion': REGION, 'RIOSLease': str(LEASE_SECONDS), 'RIOSVisibility': str(VISIBILITY_SECONDS),
            'RIOSVersions': json.dumps(versions()), 'RIOSTries': '{} {}'.format(MAX_TRIES, MAX_RECEIVES),
            'RIOSModules': ' '.join(name for name in HEAVY_MODULES if name in sys.modules),
            'RIOSOutput': os.environ.get('RIOS_AWSBATCH_WORKER_OUTPUT', ''),
            'RIOSInitializer': self.share(_pickled(initializer, 'The initializer')) if initializer else ''}
        self.note('run', run=self.id, began=self.began, workers=self.workers, stack=STACK_NAME, region=REGION,
                  vcpus=self.stack.get('BatchVCPUS'), memory=self.stack.get('BatchMemory'),
                  inline_bytes=INLINE_BYTES)
        self.opened = time.monotonic()
        self._start_workers(self.workers)

    def _start_workers(self, count):
        """Submit a job for so many workers: the first ones, and those in place of others that are gone."""
        environment = dict(self.environment, RIOSFirst=str(self.started))
        array = {'arrayProperties': {'size': count}} if count > 1 else {}
        submitted = self.batch.submit_job(
            jobName=self.name, jobQueue=self.stack['BatchProcessingJobQueueName'],
            containerOverrides=dict(self.overrides, environment=[
                {'name': name, 'value': value} for name, value in environment.items()]),
            **dict({'jobDefinition': self.stack['BatchProcessingJobDefinitionName']}, **array, **self.job))
        self.jobs[submitted['jobId']] = _BatchJob(submitted['jobId'], self.started, count)
        self.started += count
        if submitted['ResponseMetadata'].get('RetryAttempts'):
            # AWS may have carried out a request whose answer was lost: one job is enough.
            found = self.batch.list_jobs(jobQueue=self.stack['BatchProcessingJobQueueName'],
                                         filters=[{'name': 'JOB_NAME', 'values': [self.name]}])['jobSummaryList']
            for job in found:
                if job['status'] not in _ENDED and job['jobId'] not in self.jobs:
                    self.batch.terminate_job(jobId=job['jobId'], reason='Started twice')

    def share(self, data):
        """Put bytes into the run's folder, once; the token by which a worker finds them."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self.stored:
            self.persist('storing what all blocks share', lambda: self.channel.s3.put_object(
                Bucket=self.channel.bucket, Key=self.channel.blob(digest), Body=data))
            self.stored.add(digest)
        return digest

    def note(self, kind, **record):
        """Append to the report of the run. A report that cannot be written any more is no reason to stop."""
        if self.report is not None:
            try:
                os.write(self.report, (json.dumps(dict({'is': kind}, **record), default=str) + '\n').encode())
            except OSError as error:
                self.report = None
                log.warning('The report of run %s cannot be written any more: %s', self.id, error)

    def _guarded(self, loop):
        """Run a loop; should it ever fail, all futures learn of it instead of waiting for ever."""
        try:
            loop()
        except BaseException as error:
            if not self.ended.is_set():
                log.debug('A thread of run %s failed', self.id, exc_info=True)
                self.break_off(str(error) if isinstance(error, AWSBatchException) else repr(error))

    def over(self):
        """Whether nobody waits for anything of this run any more, so that it is to be cleaned up."""
        return self.closing and (self.hurry or bool(self.broken) or not (self.calls or self.settling))

    def persist(self, doing, request):
        """
        Make an AWS request, again and again while AWS is away or the login has expired; None when the run is over.

        Raises:
            AWSBatchException: AWS refuses it for a reason that does not pass.
        """
        while not self.ended.is_set():
            try:
                return request()
            except AWS_ERRORS as error:
                no_queue = error_code(error) in _NO_QUEUE
                if self.over() or self.closing and no_queue:
                    break
                # A new queue may not be known everywhere yet: sqs:CreateQueue asks to wait a second.
                new = no_queue and time.monotonic() < self.opened + 10
                if not (new or is_temporary(error) or is_expired(error)):
                    raise explain(error, doing) from error
                self._tell(error, doing)
                self.ended.wait(1)
                if is_expired(error):       # logged in again? New clients look for it.
                    self.channel.connect()
                    self.batch = make_client('batch', REGION, self.channel.requests, self.channel.session)
        return None

    def _tell(self, error, doing):
        """Say that AWS is away: at once, and then every TELL_SECONDS, whichever thread notices."""
        kind, now = is_expired(error), time.monotonic()
        if self.told is None or self.told[0] != kind or now > self.told[1] + TELL_SECONDS:
            self.told = kind, now
            log.warning('%s %s', explain(error, doing), 'The run goes on when you have: no block is lost.' if kind else
                        'Trying again.')

    # Calls out ---------------------------------------------------------------------------------

    def submit(self, function, fn, args, kwargs):
        """A future for fn(*args, **kwargs); `function` is what :meth:`pickled` gave, if it was asked before."""
        if self.pid != os.getpid():
            raise RuntimeError('This executor belongs to process {}, which made it. A forked process makes one of '
                               'its own.'.format(self.pid))
        self._check_open()
        try:
            digest, data = function or self.pickled(fn)
            payload = _pickled((args, kwargs), 'The arguments {} of {}'.format(_label(args), _name(fn)))
        except AWSBatchException as error:
            future = concurrent.futures.Future()
            future.set_exception(error)
            return future
        while self.backlog and self.backlog + len(payload) > OUTBOX_BYTES and not (self.broken or self.closing):
            time.sleep(0.01)
        self._check_open()
        new = digest not in self.stored
        self.stored.add(digest)
        call = _Call(next(self.ids), _name(fn) + _label(args), digest, data if new else None, payload)
        self.backlog += len(payload)
        self.calls[call.id] = call
        future = call.future
        future.add_done_callback(functools.partial(self._cancelled, call.id))
        if call.prepared:
            self.large.put(call)
        self.outbox.put(call)
        if self.broken or self.ended.is_set():      # just now, in another thread
            self._settle_rest()
        return future

    def _check_open(self):
        if self.broken:
            raise BrokenAWSBatchExecutor(self.broken)
        if self.closing:
            raise RuntimeError('cannot schedule new futures after shutdown')

    @staticmethod
    def pickled(fn):
        """The function as it is now: its SHA-256, and its pickle (str, bytes)."""
        data = _pickled(fn, 'The function {}'.format(_name(fn)))
        return hashlib.sha256(data).hexdigest(), data

    def _prepare(self):
        """Thread: seal the calls that take time, several at once."""
        while True:
            call = self.large.get()
            if call is None:
                return
            self._seal(call)
            call.prepared.set()
            del call                # nothing here may keep a future, and so its result

    def _seal(self, call):
        """Make the message for a call, and upload what it needs; none where it was cancelled or cannot travel."""
        try:
            if call.function is not None:
                self.persist('sending a function to the workers', lambda: self.channel.s3.put_object(
                    Bucket=self.channel.bucket, Key=self.channel.blob(call.digest), Body=call.function))
            if call.id in self.calls:
                gdal = sys.modules.get('osgeo.gdal')
                header = {'kind': 'call', 'id': call.id, 'fn': call.digest, 'label': call.label,
                          'gdal': bool(gdal and gdal.GetUseExceptions())}
                call.message, header = self.persist('sending a call to the workers', lambda: self.channel.seal(
                    'worker', header, call.payload)) or (None, {})
                call.object = header.get('object')
        except Exception as error:
            self.stored.discard(call.digest)
            self._settle(call, error=error)
        call.function = call.payload = None

    def _send(self):
        """Thread: send the calls in their order, and with each those that came while a request was under way."""
        call = None
        while True:
            batch, size, call = [], 0, call or self.outbox.get()
            while call is not None:
                if call.prepared is None:
                    self._seal(call)
                call.prepared and call.prepared.wait()
                if call.message is not None:
                    if size + size_of(call.message) > MESSAGE_BYTES:
                        break
                    batch.append(call)
                    size += size_of(call.message)
                self.backlog = self.backlog - call.size if self.outbox.qsize() else 0
                call = None
                if len(batch) < BATCH_ENTRIES and self.outbox.qsize():
                    call = self.outbox.get()
                    if batch and call and call.prepared and not call.prepared.is_set():
                        break
            if not batch:
                if call is None and self.ended.is_set():
                    return
                continue
            try:
                self._send_batch(batch)
            except AWSBatchException:
                for each in batch:      # which of them is to blame fails alone
                    try:
                        self._send_batch([each])
                    except AWSBatchException as error:
                        self._settle(each, error=error)
            del batch

    def _send_batch(self, batch):
        for call in batch:
            call.sent = time.time()
        self.persist('sending calls to the workers', lambda: self.channel.send(
            self.channel.in_queue, [call.message for call in batch]))
        for call in batch:
            call.message = None

    def _cancelled(self, number, future):
        if future.cancelled():
            call = self.calls.pop(number, None)
            if call is not None:
                self.wake.put(call)

    def _take_back(self):
        """
        Take cancelled calls out of the queue, so that no worker begins them; those that are wanted are put back.

        A few among very many are left to the workers, whose answers are then dropped.
        """
        while self.revoked and 2 * len(self.revoked) > len(self.calls) and not self.over():
            messages = self.persist('taking cancelled calls back', lambda: self.channel.receive(
                self.channel.in_queue, 1))
            if not messages:            # the workers have them
                break
            wanted, unwanted = [], []
            for message in messages:
                number = None
                with contextlib.suppress(Refused):
                    number = self.channel.open('worker', message).get('id')
                (wanted if number in self.calls else unwanted).append(message['ReceiptHandle'])
                self.revoked.discard(number)
            self.persist('taking cancelled calls back', lambda: (
                self.channel.hide(wanted, 0), self.channel.delete(self.channel.in_queue, unwanted)))
            if len(wanted) > len(unwanted):
                break
        self.revoked.clear()

    # Answers back ------------------------------------------------------------------------------

    def _collect(self, tally):
        """Thread: take in what the workers send."""
        channel, receipts, most, since = self.channel, [], BATCH_ENTRIES, time.monotonic()
        soon = VISIBILITY_SECONDS / 4       # results that are not deleted by then would come again
        while not self.ended.is_set():
            wait = LONG_POLL_SECONDS if not receipts else min(LONG_POLL_SECONDS, max(1, int(soon)))
            messages = self.persist('receiving results', lambda: channel.receive(
                channel.out_queue, wait, most)) or []
            for message in messages:
                header = self._take(message, tally)
                receipts.append(message['ReceiptHandle'])
                # Large results are taken one by one, so that all collectors have some to download.
                most = 1 if 'object' in header else BATCH_ENTRIES
            if len(receipts) >= BATCH_ENTRIES or not messages or time.monotonic() > since + soon:
                self.persist('deleting messages', lambda: channel.delete(channel.out_queue, receipts))
                receipts, since = [], time.monotonic()

    def _take(self, message, tally):
        """Handle one message from a worker; its header."""
        try:
            header = self.channel.open('main', message)
        except Refused as refused:
            log.warning('A message to run %s was refused: %s', self.id, refused)
            return {}
        kind, worker = header['kind'], header.get('worker')
        if kind == 'hello':
            self._worker_up(worker, header)
        elif kind == 'bye':
            self.quiet.add(worker)
            self.up.pop(worker, None)
            self.channel.requests.update(header['requests'])
            self.note('ended', worker=worker, time=time.time())
            self.wake.put(None)
        elif kind == 'note':
            log.warning('Worker %s: %s', worker, header['text'])
        elif kind == 'broken':
            self.break_off(header['text'])
        else:
            self._answer(header, message, tally)
        return header

    def _worker_up(self, worker, header):
        wrong = mismatch(versions(), header['versions'])
        if wrong:                   # an image that was pushed in mid-run: the others go on
            log.warning('Worker %s is refused. %s', worker, wrong)
            if not self.up:
                self.break_off(wrong)
            return
        if worker in self.up:
            self._lost([worker], 'AWS Batch has started it again')
        self.up[worker] = header['versions']
        self.seen_up = True
        self.note('up', worker=worker, time=time.time())
        self.wake.put(None)
        log.info('Worker %s is up, %d of %d', worker, len(self.up), self.workers)

    def _answer(self, header, message, tally):
        """Settle the future that a result, an error or a given-up call belongs to."""
        arrived, call = time.time(), self.calls.get(header['id'])
        times = {name: header.get(name) for name in ('received', 'downloaded', 'started', 'computed', 'uploaded')}
        times.update(id=header['id'], worker=header.get('worker'), tries=header.get('tries'), arrived=arrived)
        if call is None:            # answered before by another worker, or cancelled
            self.note('unwanted', **times)
            return
        error = result = None
        try:
            if header['kind'] == 'lost':
                error = AWSBatchException('The call {} was tried {} times, and each time {}, so it is given up.'.format(
                    call.label, header['tries'], header['text']))
            else:
                data = self.persist('downloading a result', lambda: self.channel.payload(header, message))
                if data is None:
                    return
                result = pickle.loads(data)
                if header['kind'] == 'error':
                    error, remote = result
                    error.__cause__ = _RemoteTraceback(remote)
        except Refused as refused:
            log.warning('The result of %s in run %s was refused: %s', call.label, self.id, refused)
            error = AWSBatchException('The result of {} was tampered with on its way: {}.'.format(call.label, refused))
        except Exception as problem:
            error = AWSBatchException(
                'The result of {} cannot be unpickled here: {}. What a function returns must be importable by the main '
                'script too.'.format(call.label, _told(problem)))
            error.__cause__ = problem
        for line in header.get('output', ()):
            log.warning('Worker %s, %s: %s', header.get('worker'), call.label, line)
        if self._settle(call, result, error, tally, header.get('worker')):
            self.futile = 0
            self.note('block', label=call.label, bytes_in=call.size, bytes_out=header.get('bytes'), queued=call.queued,
                      error=error and _told(error)[:300], sent=call.sent, collected=time.time(), **times)
        self.spent.extend(filter(None, (call.object, header.get('object'))))
        if len(self.spent) >= DELETE_OBJECTS // 10:
            with contextlib.suppress(IndexError):
                names = [self.spent.popleft() for _ in range(len(self.spent))]
                self.persist('deleting objects', lambda: self._delete_objects(names))

    def _settle(self, call, result=None, error=None, tally=None, worker=None):
        """Give a future its result or exception; False where somebody else has."""
        if not call.claim():
            return False
        self.settling[call.id] = call       # so that the run does not end between these lines
        self.calls.pop(call.id, None)
        if tally is not None:
            tally[worker] += 1
        try:
            if error is not None:
                call.future.set_exception(error)
            else:
                call.future.set_result(result)
        finally:
            self.settling.pop(call.id, None)
            if self.closing:
                self.wake.put(None)
        return True

    def _settle_rest(self):
        """Nobody will answer the calls that are left."""
        while self.calls:
            with contextlib.suppress(KeyError):
                call = self.calls.popitem()[1]
                if self.broken:
                    self._settle(call, error=BrokenAWSBatchExecutor(self.broken))
                else:
                    call.future.cancel()
                    call.claim()

    def cancel_all(self):
        for call in list(self.calls.copy().values()):
            call.future.cancel()

    def break_off(self, text):
        """Fail every outstanding call, and refuse new ones."""
        self.broken = self.broken or text
        self._settle_rest()
        self.wake.put(None)

    # The pool ----------------------------------------------------------------------------------

    def _keep(self):
        """Thread: keep the workers' number, take cancelled calls back, and clean up when the run is over."""
        try:
            self._tend()
        except BaseException as error:
            self.break_off(str(error) if isinstance(error, AWSBatchException) else repr(error))
        try:
            self._clean_up(orderly=not (self.broken or self.hurry))
        finally:
            self.ended.set()
            self._settle_rest()
            _runs.discard(self)
            self.note('end', time=time.time(), submitted=next(self.ids) - 1, broken=self.broken,
                      requests=dict(self.channel.requests))
            self.clean.set()
            log.info('Run %s ended: %d blocks by %d workers', self.id, self.done(), len(self.answered()))

    def _tend(self):
        look = time.monotonic() + WATCH_SECONDS
        while not self.over():
            with contextlib.suppress(queue.Empty):
                call = self.wake.get(timeout=max(0, look - time.monotonic()))
                while call is not None:
                    call.claim()            # nobody else settles it; those who wait for it are told
                    if call.sent:
                        self.revoked.add(call.id)
                    call = None
                    with contextlib.suppress(queue.Empty):
                        call = self.wake.get_nowait()
            if self.revoked:
                self._take_back()
            if time.monotonic() >= look:
                if (self.calls or self.awaited) and not self.broken:
                    self.persist('looking at the Batch jobs', self._look)
                look = time.monotonic() + WATCH_SECONDS

    def answered(self):
        """How many calls each worker has answered (Counter)."""
        return sum((tally.copy() for tally in self.tallies), collections.Counter())

    def done(self):
        return sum(self.answered().values())

    def _look(self):
        """See which workers are gone, and start others in their place while there are calls for them."""
        asked = list(self.jobs)
        if not self.up:                     # why the first one waits, its child knows
            asked += [job.child(min(set(range(job.size)) - job.ended)) for job in self.jobs.values() if job.size > 1]
        found = {}
        for some in batches(asked, DESCRIBE_JOBS):
            found.update((job['jobId'], job) for job in self.batch.describe_jobs(jobs=some)['jobs'])
        reasons = collections.defaultdict(list)
        for job in list(self.jobs.values()):
            for index, child in self._children(job, found.get(job.id)).items():
                worker, ended = str(job.first + index), child.get('status', 'FAILED') in _ENDED
                if index in job.ended or not (ended or worker in self.up and child['status'] != 'RUNNING'):
                    continue
                self.up.pop(worker, None)
                if ended:
                    job.ended.add(index)
                    self.futile += 1
                if worker not in self.quiet:
                    why = _how_ended(child) if ended else 'AWS Batch starts it again'
                    self.ends.append((why, job.child(index)))
                    reasons[why].append(worker)
            if len(job.ended) == job.size:
                del self.jobs[job.id]
        for why, workers in reasons.items():
            self._lost(workers, why)
        alive = sum(job.size - len(job.ended) for job in self.jobs.values())
        missing = min(self.workers, max(len(self.calls), self.awaited)) - alive
        never = not (alive or self.seen_up)
        if missing > 0 and never and not self.doomed:
            self.doomed = True              # a first answer may still be on its way, so look twice
        elif missing > 0 and (never or self.futile > 2 * self.workers + 30):
            self.break_off('No worker of run {} is left, with {} calls outstanding. {}'.format(
                self.id, len(self.calls), self._how_workers_ended()))
        elif missing > 0:
            log.warning('Starting %d worker%s in place of those that are gone', missing, 's' * (missing > 1))
            self._start_workers(missing)
        elif not self.up and self.jobs:
            self._none_is_up([found[name] for name in asked if name in found])

    def _children(self, job, found):
        """What Batch says of the workers of a job, by their place in it; nothing where nothing has changed."""
        if found is None:                   # Batch has forgotten the job
            return dict.fromkeys(range(job.size), {})
        if job.size == 1:
            return {0: found}
        summary = found.get('arrayProperties', {}).get('statusSummary', {})
        if summary == job.summary:
            return {}
        job.summary, children = summary, dict.fromkeys(range(job.size), {'status': 'RUNNABLE'})
        for status in ('RUNNING', *_ENDED):
            for page in self.batch.get_paginator('list_jobs').paginate(arrayJobId=job.id, jobStatus=status):
                children.update((child['arrayProperties']['index'], child) for child in page['jobSummaryList'])
        return children

    def _lost(self, workers, why):
        """A line in the log, and in the report, for workers that were lost for one reason."""
        self.lost += len(workers)
        log.warning('Worker%s %s: %s', 's' * (len(workers) > 1), ', '.join(workers), why)
        for worker in workers:
            self.note('lost', worker=worker, time=time.time(), why=why)

    def _none_is_up(self, jobs):
        """Say every now and then why no worker is up; end the run if none ever will be."""
        waited = time.monotonic() - min(job.submitted for job in self.jobs.values())
        reasons = list(dict.fromkeys(job['statusReason'] for job in jobs if job.get('statusReason')))
        said = '; '.join(reasons)
        for job in jobs:
            reason = job.get('statusReason', '')
            if job['status'] == 'RUNNABLE' and reason.startswith('MISCONFIGURATION:'):
                self.break_off('No worker can start: AWS Batch says {}. Ask for less with "scripts/modify.sh --mem" and '
                               '--vcpus, or for other instances with --instancetype.'.format(reason))
                return
        if self.start_timeout and waited > self.start_timeout:
            self.break_off('No worker has come up within {:g} seconds (RIOS_AWSBATCH_START_TIMEOUT). {}{}'.format(
                self.start_timeout, 'AWS Batch says: {}. '.format(said) if said else '', RUNNABLE_CAUSES))
        elif waited > TELL_SECONDS * getattr(self, 'waits_told', 1):
            self.waits_told = int(waited // TELL_SECONDS) + 1
            log.warning('No worker has come up after %d minutes; the jobs are %s. %s%s', waited // 60, ', '.join(sorted(
                {job['status'] for job in jobs})), 'AWS Batch says: {}. '.format(said) if said else '', RUNNABLE_CAUSES)

    def _how_workers_ended(self):
        """What Batch says of the workers that were lost, with the last lines of a log (str)."""
        if not self.ends:
            return 'AWS Batch does not say how the workers ended; "scripts/status.sh" shows the jobs.'
        sentences = list(dict.fromkeys(why for why, _ in self.ends))
        try:
            container = self.batch.describe_jobs(jobs=[self.ends[-1][1]])['jobs'][0]['container']
            if container.get('logStreamName'):
                group = container['logConfiguration']['options']['awslogs-group']
                sentences.append(self._log_tail(group, container['logStreamName']))
        except (*AWS_ERRORS, LookupError) as error:
            log.debug('The log of the last worker cannot be found: %s', error)
        return ' '.join(sentences)

    def _log_tail(self, group, stream):
        more = 'All of its log: aws logs get-log-events --region {} --log-group-name {} --log-stream-name {}'.format(
            REGION, group, stream)
        client, events, token = make_client('logs', REGION, session=self.channel.session), [], {}
        for _ in range(10):                 # a page may be empty though there are more
            page = client.get_log_events(logGroupName=group, logStreamName=stream, limit=20, startFromHead=False, **token)
            events = page['events'] + events
            if len(events) >= 20 or page['nextBackwardToken'] == token.get('nextToken'):
                break
            token = {'nextToken': page['nextBackwardToken']}
        if not events:
            return more
        return 'The end of its log:\n{}\n{}'.format('\n'.join('    ' + event['message'] for event in events[-20:]), more)

    def _renew(self):
        """Thread: keep the lease, by which the workers know that this script lives."""
        while not self.ended.wait(LEASE_SECONDS / 4):
            self.persist('renewing the lease of the run', self._put_lease)

    def _put_lease(self):
        state = {'host': platform.node(), 'pid': os.getpid(), 'seconds': LEASE_SECONDS, 'began': self.began,
                 'now': time.time(), 'workers': self.workers, 'workers_up': len(self.up), 'done': self.done(),
                 'outstanding': len(self.calls), 'vcpus': self.stack.get('BatchVCPUS')}
        self.channel.s3.put_object(Bucket=self.channel.bucket, Key=self.channel.folder + 'lease',
                                   Body=json.dumps(state).encode())

    # The end -----------------------------------------------------------------------------------

    def close(self, hurry=False):
        """No more calls. With `hurry` those that are outstanding are not waited for. Safe in a finaliser."""
        if self.pid == os.getpid():
            self.hurry = self.hurry or hurry and bool(self.calls)
            self.closing = True
            self.wake.put(None)

    def join(self):
        """Wait until the run has ended. Ctrl-C while waiting: it ends without waiting for its calls."""
        if self.pid != os.getpid():
            return
        try:
            self.clean.wait()
        except BaseException:
            self.close(hurry=True)
            self.clean.wait()
            raise

    def _clean_up(self, orderly):
        """
        Leave nothing of the run on AWS: no job, no queue, no object.

        A step that fails is told and does not keep the others from being done, nor hide an exception that is on its
        way to the user.
        """
        channel = self.channel
        if channel is None:
            return
        with self._told_only('stopping the workers'):
            if not (orderly and self._stop_workers()):
                for job_id in self.jobs:
                    self.batch.terminate_job(jobId=job_id, reason='The main script has ended the run')
                self._await_ends()
        self.ended.set()
        for waiting in [self.outbox] + [self.large] * PREPARERS:
            waiting.put(None)
        for url in filter(None, (channel.in_queue, channel.out_queue)):
            with self._told_only('deleting a queue'):
                channel.sqs.delete_queue(QueueUrl=url)
        with self._told_only('deleting the objects of the run'):
            pages = channel.s3.get_paginator('list_objects_v2').paginate(Bucket=channel.bucket, Prefix=channel.folder)
            for page in pages:
                self._delete_objects([item['Key'] for item in page.get('Contents', [])])

    def _stop_workers(self):
        """Ask the workers to stop; whether all did."""
        alive = sum(job.size - len(job.ended) for job in self.jobs.values())
        if len(self.up) < alive - len(self.quiet):
            return False                    # some have not even started
        stop = self.channel.seal('worker', {'kind': 'stop'})[0]
        for messages in batches([stop] * len(self.up), BATCH_ENTRIES):
            self.channel.send(self.channel.in_queue, messages)
        deadline = time.monotonic() + STOP_SECONDS
        while self.up and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self.wake.get(timeout=max(0.01, deadline - time.monotonic()))
        return not self.up

    def _await_ends(self):
        """Wait until the terminated jobs have ended, so that no worker writes another object."""
        deadline = time.monotonic() + STOP_SECONDS
        left = list(self.jobs)
        while left and time.monotonic() < deadline:
            found = self.batch.describe_jobs(jobs=left[:DESCRIBE_JOBS])['jobs']
            left = [job['jobId'] for job in found if job['status'] not in _ENDED]
            if left:
                time.sleep(0.25)

    def _delete_objects(self, names):
        for some in batches(names, DELETE_OBJECTS):
            self.channel.s3.delete_objects(Bucket=self.channel.bucket, Delete={
                'Objects': [{'Key': name} for name in some], 'Quiet': True})

    @contextlib.contextmanager
    def _told_only(self, doing):
        try:
            yield
        except (*AWS_ERRORS, AWSBatchException) as error:
            if error_code(error) not in _NO_QUEUE:
                log.warning('%s "scripts/status.sh --clean" removes what run %s has left.',
                            explain(error, doing), self.id)


_ENDED = ('SUCCEEDED', 'FAILED')


def _how_ended(job):
    """What Batch says of a job that has ended, and what to do about it (str)."""
    container = job.get('container', {})
    code = container.get('exitCode')
    said = '; '.join(filter(None, (job.get('statusReason'), container.get('reason'))))
    advice = ''
    if 'OutOfMemory' in said:
        advice = ' It needed more memory than its job has: use smaller blocks, or "scripts/modify.sh --mem".'
    elif 'CannotPullContainer' in said:
        advice = ' The image is not in the repository: "scripts/build.sh" builds and pushes it.'
    elif 'exec format error' in said:
        advice = ' The image is for another kind of processor: "scripts/build.sh --platform".'
    elif 'Host EC2' in said:
        advice = ' Its instance was taken away, as happens to Spot instances.'
    elif 'timeout' in said:
        advice = ' The stack\'s job time-out ended it: "scripts/modify.sh --timeout".'
    return 'it ended{}{}.{}'.format('' if code is None else ' with exit code {}'.format(code),
                                    ': ' + said.rstrip('.') if said else '', advice)


def _told(error):
    """Type and text of any exception, also of one whose __str__ fails (str)."""
    try:
        return '{}: {}'.format(type(error).__name__, error)
    except Exception:
        return type(error).__name__


def _name(fn):
    for thing in (fn, getattr(fn, 'func', None)):
        name = getattr(thing, '__name__', None)
        if isinstance(name, str):
            return name[:80]
    return type(fn).__name__


def _label(args):
    """A short name for a call in messages: what its arguments are, without their data, nor any code of theirs."""
    def name(arg):
        if type(arg) in (int, float, str, bytes, bool, type(None)):
            return reprlib.repr(arg)
        if isinstance(arg, tuple) and all(type(item) in (int, float, str) for item in arg[:8]):
            return '({})'.format(', '.join(map(reprlib.repr, arg[:8])) + (', ...' if len(arg) > 8 else ''))
        numpy = sys.modules.get('numpy')
        return type(arg).__name__ + (str(arg.shape) if numpy and type(arg) is numpy.ndarray else '')
    return '({})'.format(', '.join(name(arg) for arg in args[:4]) + (', ...' if len(args) > 4 else ''))


def _pickled(thing, what):
    try:
        return dumps(thing)
    except Exception as error:
        raise AWSBatchException(
            '{} cannot be pickled, so it cannot travel to a worker: {}. Open files, GDAL datasets, locks and connections '
            'must be made inside the function.'.format(what, _told(error))) from error


def _open_report(folder, run):
    """Open the report of a run: a file descriptor, None where no report is wanted."""
    if not folder:
        return None
    try:
        os.makedirs(folder, exist_ok=True)
        return os.open(os.path.join(folder, run + '.jsonl'), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise AWSBatchException('The report of the run cannot be written to the folder "{}": {}. Set '
                                'RIOS_AWSBATCH_REPORT to a folder where you may write, or unset it.'.format(
                                    folder, error.strerror or error)) from error


def _start_timeout():
    text = os.environ.get('RIOS_AWSBATCH_START_TIMEOUT')
    try:
        seconds = float(text) if text else None
    except ValueError:
        seconds = -1
    if seconds is not None and not seconds > 0:
        raise AWSBatchException('RIOS_AWSBATCH_START_TIMEOUT must be a number of seconds above zero, not "{}".'.format(text))
    return seconds


# Open runs end with the script. One that is asked to end (kill, a closed terminal) ends in an orderly way too,
# unless it handles the signal itself.
_runs = set()
_entered = []           # executors whose with statements are open, in their order
_SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]


@atexit.register
def _end_runs():
    """
    The script ends without shutdown(): like a standard pool, finish what was submitted, but not after an exception
    or a signal.
    """
    runs, hurry = list(_runs), _signalled or getattr(sys, 'last_value', None) is not None
    for run in runs:
        run.close(hurry)
    for run in runs:
        run.join()


_signalled = False


def _exit_on_signal(number, frame):
    global _signalled
    if _runs:
        _signalled = True
        sys.exit(128 + number)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _handle_signals():
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _exit_on_signal)


def _forget_runs():
    """In a forked child, which has nothing to do with its parent's runs."""
    _runs.clear()
    _entered.clear()
    for number in _SIGNALS:
        if signal.getsignal(number) is _exit_on_signal:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget_runs)


# ---------------------------------------------------------------------------------------------
# The executor
# ---------------------------------------------------------------------------------------------

class AWSBatchExecutor(concurrent.futures.Executor):
    """
    Runs calls in worker containers on AWS Batch.

    It is a ``concurrent.futures.Executor``, so ``with``, ``submit``, ``map``, ``as_completed`` and ``wait`` are
    those of the standard library, and what a script does with a ``ProcessPoolExecutor`` it does with this one.
    Workers start when it is made, and take minutes to come up when AWS has to start an instance for them first;
    calls wait for them. A worker that is lost is replaced while there are calls for it.

    In a ``with`` statement, an exception (Ctrl-C included) stops the workers at once and cancels what is
    outstanding; a normal end waits for all calls. SIGTERM and SIGHUP end the script in the same orderly way, unless
    it handles them itself, or the executor was not made in the main thread. A script that is killed leaves workers
    that stop by themselves within LEASE_SECONDS.

    RIOS: each ``apply()`` in the ``with`` statement uses its workers instead of starting some of its own.

    Args:
        max_workers (int): how many workers, one Batch job each. Default: as many as the stack allows.
        initializer (callable): called by each worker before its first call, to load a model for instance.
        initargs (tuple): its arguments.
        vcpus (int), memory (int, MiB), timeout (int, seconds), job_definition (str): of this run's workers, instead
            of the stack's.

    Raises:
        ValueError: an argument is not a whole number above zero, or one that AWS does not know.
        TypeError: initializer is not callable.
        AWSBatchException: the stack or the image is not there, or AWS cannot be used. Nothing was started.
    """

    def __init__(self, max_workers=None, *, initializer=None, initargs=(), vcpus=None, memory=None, timeout=None,
                 job_definition=None):
        for name, value in (('max_workers', max_workers), ('vcpus', vcpus), ('memory', memory), ('timeout', timeout)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError('{} must be a whole number above zero, not {!r}.'.format(name, value))
        if (max_workers or 1) > MAX_ARRAY:
            raise ValueError('AWS Batch starts at most 10,000 workers for a run, not {}.'.format(max_workers))
        if (timeout or MIN_TIMEOUT) < MIN_TIMEOUT:
            raise ValueError('AWS Batch knows no time-out below {} seconds.'.format(MIN_TIMEOUT))
        if initializer is not None and not callable(initializer):
            raise TypeError('initializer must be a callable')
        job = {}
        if timeout:
            job['timeout'] = {'attemptDurationSeconds': timeout}
        if job_definition:
            job['jobDefinition'] = job_definition
        needs = [{'type': kind, 'value': str(value)} for kind, value in (('VCPU', vcpus), ('MEMORY', memory)) if value]
        self._run = _Run(max_workers, (initializer, initargs) if initializer else None, job,
                         {'resourceRequirements': needs} if needs else {})
        #: The run id (str), which names its queues and its folder in the bucket.
        self.run = self._run.id
        _handle_signals()
        weakref.finalize(self, self._run.close).atexit = False

    def submit(self, fn, /, *args, **kwargs):
        """
        Have ``fn(*args, **kwargs)`` computed by a worker.

        `fn` travels as it is now, with whatever it closes over, and no call sees what another one did to it. It is
        pickled each time (0.3 s for 100 MB) but uploaded only if it has changed; workers keep it, and unpickle it
        for each call (0.1 s). :meth:`map` pickles it once. Returns at once, unless OUTBOX_BYTES of arguments
        are still waiting to be sent.

        Returns:
            concurrent.futures.Future: its result is what `fn` returns. Its exception is what `fn` raised, with the
            worker's traceback as the cause; or AWSBatchException when the call could not be run or travel; or
            BrokenAWSBatchExecutor when no worker is left.

        Raises:
            RuntimeError: after shutdown(), or in a forked child of the process that made the executor.
            BrokenAWSBatchExecutor: no worker is left.
        """
        return self._run.submit(None, fn, args, kwargs)

    def map(self, fn, *iterables, timeout=None, chunksize=1, buffersize=None):
        """
        Call `fn` with the elements of the iterables, and give the results in the same order.

        Args:
            fn: called with as many arguments as there are iterables.
            timeout (float): seconds from this call until the last result, or TimeoutError.
            chunksize (int): has no effect; every call travels by itself.
            buffersize (int): how many calls may be unfinished or not yet taken by the caller. The
                iterables are read as results are taken, so a raster of any size needs bounded memory.
                Default: all are submitted at once. As in Python 3.14.

        Returns:
            An iterator over the results. An exception of a call is raised where its result would be.
        """
        if chunksize < 1:
            raise ValueError('chunksize must be >= 1.')
        if buffersize is not None and (not isinstance(buffersize, int) or buffersize < 1):
            raise ValueError('buffersize must be None or a whole number above zero, not {!r}.'.format(buffersize))
        deadline = None if timeout is None else time.monotonic() + timeout
        arguments, run = zip(*iterables), self._run
        function = None
        with contextlib.suppress(AWSBatchException):    # the calls say why
            function = run.pickled(fn)
        futures = collections.deque(run.submit(function, fn, args, {})
                                    for args in itertools.islice(arguments, buffersize))

        def results():
            try:
                while futures:
                    # Nothing here holds a future or a result that has been handed out.
                    result = [futures[0].result(None if deadline is None else deadline - time.monotonic())]
                    futures.popleft()
                    futures.extend(run.submit(function, fn, args, {}) for args in itertools.islice(arguments, 1))
                    given = time.time()
                    yield result.pop()
                    if time.time() > given + 0.01:
                        run.note('taken', given=given, asked=time.time())
            finally:
                for future in futures:
                    future.cancel()
        return results()

    def share(self, data):
        """
        Put what many calls need into the run's folder, once.

        Args:
            data (bytes): a pickle, for instance.

        Returns:
            str: a token with which :func:`shared` gives it to a call.
        """
        return self._run.share(data)

    def wait_for_workers(self, count=1, timeout=None):
        """
        Wait until `count` workers are up, at most `timeout` seconds.

        Returns:
            int: how many are up.

        Raises:
            BrokenAWSBatchExecutor: none will come.
        """
        run, deadline = self._run, None if timeout is None else time.monotonic() + timeout
        run.awaited = count
        while len(run.up) < count and not (run.broken or run.closing or deadline and time.monotonic() > deadline):
            time.sleep(0.02)
        run.awaited = 0
        if run.broken:
            raise BrokenAWSBatchExecutor(run.broken)
        return len(run.up)

    def stats(self):
        """
        What a progress line shows.

        Returns:
            dict: the 'run' id, 'workers' asked for, 'workers_up' now, those that were 'lost' and 'replaced', calls
            'done' and 'outstanding', 'blocks_per_worker' (worker to count) and 'requests', the AWS requests
            that this script (not its workers) made for the run (int).
        """
        run = self._run
        return {'run': run.id, 'workers': run.workers, 'workers_up': len(run.up), 'lost': run.lost,
                'replaced': run.started - run.workers, 'outstanding': len(run.calls), 'done': run.done(),
                'blocks_per_worker': dict(run.answered()), 'requests': sum(run.channel.requests.copy().values())}

    def __repr__(self):
        return '<AWSBatchExecutor run {run}: {workers_up} of {workers} workers up, {done} blocks done, {outstanding} ' \
            'outstanding>'.format(**self.stats())

    def shutdown(self, wait=True, *, cancel_futures=False):
        """
        End the run: stop its workers, and delete its queues and objects.

        Args:
            wait (bool): return when all calls are answered and nothing of the run is left. Otherwise
                return at once, and the same happens in the background.
            cancel_futures (bool): do not finish outstanding calls but cancel their futures.
        """
        run = self._run
        run.close(hurry=cancel_futures)
        if cancel_futures:
            run.cancel_all()
        if wait:
            run.join()

    def __enter__(self):
        _entered.append(self)
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        with contextlib.suppress(ValueError):
            _entered.remove(self)
        self.shutdown(wait=True, cancel_futures=exc_type is not None)
        return False


def _executor_for(count, **given):
    """
    The executor that a manager of RIOS is to use: that of the innermost with statement, or a new one.

    Returns:
        (AWSBatchExecutor, bool): and whether it is new, so that the manager ends it.
    """
    for executor in reversed(_entered):
        if not (executor._run.closing or executor._run.broken):
            return executor, False
    return AWSBatchExecutor(count, **given), True


# ---------------------------------------------------------------------------------------------
# RIOS 1.4: a job manager
# ---------------------------------------------------------------------------------------------

def _import_rios(module, name):
    """A class of the installed RIOS; None if there is no RIOS, or not this generation of it."""
    if 'RIOSRun' in os.environ:
        return None         # in a worker, which starts faster without RIOS until a block asks for it
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None
    except AttributeError as error:
        log.warning('%s', _rios_has_changed(error))
        return None


def _rios_has_changed(detail):
    import rios
    return AWSBatchException(
        'RIOS {} has changed what rios_awsbatch {} builds on ({}). Look for a newer rios_awsbatch, or use RIOS '
        '2.0.9.'.format(getattr(rios, '__version__', 'of this version'), __version__, detail))


@contextlib.contextmanager
def _known_rios():
    """Calls into RIOS inside the block that do not fit this RIOS any more are told as such."""
    try:
        yield
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
        missing = isinstance(error, ImportError) and (error.name or '').startswith('rios.')
        if innermost.f_code.co_filename != __file__ and not missing:
            raise           # RIOS itself stumbles over something, or is not in the worker's image
        raise _rios_has_changed('{}: {}'.format(type(error).__name__, error)) from error


class _StandInJobManager:
    """What RIOS 1.4's JobManager does, for where there is no RIOS 1.4."""
    jobMgrType = None

    def __init__(self, numSubJobs):
        self.numSubJobs = numSubJobs
        self.tempdir = '.'

    def setTempdir(self, tempdir):
        self.tempdir = tempdir

    def runSubJobs(self, function, fnInputs):
        jobIDlist = self.startAllJobs(function, fnInputs)
        self.waitOnJobs(jobIDlist)
        return self.gatherAllOutputs(jobIDlist)

    def startAllJobs(self, function, jobInputs):
        return [None] + [self.startOneJob(function, jobInfo) for jobInfo in jobInputs[1:]]

    def __str__(self):
        return 'jobMgrType={}, numSubJobs={}'.format(self.jobMgrType, self.numSubJobs)


# RIOS takes the class that was defined last, so its own retired ones of the same name come first.
_import_rios('rios.parallel.aws.batch', 'AWSBatchJobManager')
_JobManager = _import_rios('rios.parallel.jobmanager', 'JobManager') or _StandInJobManager

_RiosBlock = collections.namedtuple('Block', 'top left nrows ncols')


def _run_job(userFunction, jobInfo):
    """One block of RIOS 1.4, wherever it is computed."""
    params = jobInfo.getFunctionParams()
    userFunction(*params)
    return jobInfo.getFunctionResult(params)


class _Job:
    """A block that startOneJob() has sent: what RIOS calls a jobID."""
    def __init__(self, future, jobInfo):
        self.future, self.jobInfo = future, jobInfo
        self.outputs = None


class _JobFunction:
    """RIOS 1.4's user function, as workers call it; `block` is there to name the block in messages."""
    def __init__(self, userFunction):
        self.userFunction = userFunction
        self.__name__ = _name(userFunction)

    def __call__(self, block, jobInfo):
        return _run_job(self.userFunction, jobInfo)


class AWSBatchJobManager(_JobManager):
    """
    Computes the blocks of RIOS 1.4 on AWS Batch; RIOS makes it for the job manager type 'AWSBatch'.

    The first block of a round is computed in the main script, and the others by numSubJobs - 1
    workers. While no worker is up yet, the main script computes the others as well. RIOS goes on to
    the next round while up to ROUNDS_AHEAD earlier ones are still with the workers.

    Args:
        numSubJobs (int): how many blocks are computed at a time, from controls.setNumThreads().

    Raises:
        ValueError: numSubJobs is not a whole number above zero.
        AWSBatchException: as for :class:`AWSBatchExecutor`.
    """
    jobMgrType = 'AWSBatch'

    def __init__(self, numSubJobs):
        if isinstance(numSubJobs, bool) or not isinstance(numSubJobs, int) or numSubJobs < 1:
            raise ValueError('setNumThreads() needs a whole number above zero, not {!r}.'.format(numSubJobs))
        super().__init__(numSubJobs)
        self.executor = None
        self._function = None
        self._rounds = collections.deque()      # those that RIOS has not been given yet
        if numSubJobs > 1:
            self.executor = AWSBatchExecutor(numSubJobs - 1)
            # RIOS calls finalise() only when all went well.
            weakref.finalize(self, self.executor.shutdown, cancel_futures=True)

    def runSubJobs(self, function, fnInputs):
        """
        Compute a round of blocks.

        RIOS writes blocks in the order in which it is given them, so applier.apply() is given them some
        rounds later, and the workers always have a next block. With its last round it is given all.

        Args:
            function: the user function.
            fnInputs (list): a RIOS JobInfo for each block.

        Returns:
            list: the outputs of blocks, in their order.

        Raises:
            As :meth:`gatherAllOutputs`.
        """
        cls = type(fnInputs[-1])
        if (cls.__module__, cls.__name__) != ('rios.applier', 'RIOSJobInfo'):
            return super().runSubJobs(function, fnInputs)       # who knows what is done with them
        jobs = self.startAllJobs(function, fnInputs)
        self.waitOnJobs(jobs)
        self._rounds.append(jobs)
        outputs = []
        while len(self._rounds) > (0 if fnInputs[-1].info.isLastBlock() else ROUNDS_AHEAD):
            outputs += self.gatherAllOutputs(self._rounds.popleft())
        return outputs

    def startAllJobs(self, function, jobInputs):
        """
        Send all blocks of a round but the first to the workers, and compute the first here.

        Args:
            function: the user function.
            jobInputs (list): a RIOS JobInfo for each block.

        Returns:
            list: the outputs of the first block, then a job for each other block.
        """
        with self._ended_on_error():
            jobs = [self.startOneJob(function, jobInfo) for jobInfo in jobInputs[1:]]
            return [self._compute_here(function, jobInputs[0])] + jobs

    def startOneJob(self, userFunc, jobInfo):
        """Send one block to the workers; a job for waitOnJobs() and gatherAllOutputs()."""
        jobInfo = jobInfo.prepareForPickling()
        if self._function is None or self._function.userFunction is not userFunc:
            self._function = _JobFunction(userFunc)
        return _Job(self.executor.submit(self._function, self._block(jobInfo), jobInfo), jobInfo)

    def waitOnJobs(self, jobIDlist):
        """Compute blocks here as long as no worker is up; gatherAllOutputs() waits for the others."""
        with self._ended_on_error():
            for job in jobIDlist[1:]:
                if self.executor.stats()['workers_up']:
                    break
                if not job.future.done():
                    outputs = self._compute_here(self._function.userFunction, job.jobInfo)
                    if job.future.cancel():     # else a worker was as fast
                        job.outputs = outputs

    def gatherAllOutputs(self, jobIDlist):
        """
        Wait for the blocks of a round.

        Returns:
            list: the outputs of each block, in the order of the list.

        Raises:
            What the user function raised, with the worker's traceback as the cause; or
            AWSBatchException as in :meth:`AWSBatchExecutor.submit`.
        """
        with self._ended_on_error():
            return jobIDlist[:1] + [job.future.result() if job.outputs is None else job.outputs
                                    for job in jobIDlist[1:]]

    def finalise(self):
        """End the run, when RIOS has processed all blocks."""
        with self._ended_on_error():
            if self._rounds:
                raise AWSBatchException('RIOS ended with {} rounds of blocks not written.'.format(len(self._rounds)))
        if self.executor is not None:
            self.executor.shutdown()

    @contextlib.contextmanager
    def _ended_on_error(self):
        try:
            yield
        except BaseException:
            if self.executor is not None:
                self.executor.shutdown(cancel_futures=True)
            raise

    def _compute_here(self, userFunction, jobInfo):
        started = time.time()
        outputs = _run_job(userFunction, jobInfo)
        if self.executor is not None:
            self.executor._run.note('here', label=str(self._block(jobInfo)), started=started, computed=time.time())
        return outputs

    @staticmethod
    def _block(jobInfo):
        info = getattr(jobInfo, 'info', None)
        return 'block {}, {}'.format(getattr(info, 'xblock', '?'), getattr(info, 'yblock', '?'))


# ---------------------------------------------------------------------------------------------
# RIOS 2: a compute-worker manager
# ---------------------------------------------------------------------------------------------

_ComputeWorkerManager = _import_rios('rios.computemanager', 'ComputeWorkerManager') or object

# GDAL's names for files that a worker can read as well as the main script can.
_REMOTE = ('/vsis3', '/vsicurl', '/vsigs', '/vsiaz', '/vsiadls', '/vsioss', '/vsiswift', 'http://', 'https://')


class _Rios2:
    """The parts of RIOS 2 that are used here, found when they are first needed."""
    def __init__(self):
        for module, names in (
                ('rios.structures', 'ApplierBlockDefn BlockAssociations BlockBuffer RasterizationMgr '
                                    'TempfileManager Timers WorkerErrorRecord ConcurrencyStyle'),
                ('rios.imagereader', 'ReadWorkerMgr readBlockOneFile'),
                ('rios.readerinfo', 'makeReaderInfo'),
                ('rios.rioserrors', 'TimeoutError')):
            for name in names.split():
                setattr(self, name, getattr(importlib.import_module(module), name))


class _BlockFunction:
    """
    Computes one block of RIOS 2 in a worker, which keeps this object, and so its open files, for the run.

    What is the same for all blocks is in here; `inputs` is None when the worker reads the block.
    """
    def __init__(self, userFunction, infiles, otherArgs, controls, workinggrid, allInfo):
        self.__name__ = _name(userFunction)
        self.userFunction, self.infiles, self.workinggrid, self.allInfo = userFunction, infiles, workinggrid, allInfo
        self.controls = copy.copy(controls)
        self.controls.progress = self.controls.loggingstream = None     # they belong to the main script
        from osgeo import osr
        copyreg.pickle(osr.SpatialReference, _reduce_system)            # of vectors in allInfo
        self.otherArgs = _pickled(otherArgs, 'otherArgs')
        self.unchanged = self.reader = None

    def __call__(self, block, inputs):
        from osgeo import gdal
        gdal.UseExceptions()        # as in applier.apply()
        with _known_rios():
            rios = _Rios2()
            blockDefn = rios.ApplierBlockDefn(*block)
            timings = rios.Timers()
            if inputs is None:
                self.reader = self.reader or _Reader(rios, self)
                with timings.interval('reading'):
                    inputs = self.reader.read(blockDefn)
            info = rios.makeReaderInfo(self.workinggrid, blockDefn, self.controls, self.infiles, inputs, self.allInfo)
            outputs = rios.BlockAssociations()
        otherArgs = pickle.loads(self.otherArgs)
        if self.unchanged is None:
            self.unchanged = dumps(otherArgs)       # as pickled here: not always the same bytes
        with timings.interval('userfunction'):
            self.userFunction(info, inputs, outputs, *([] if otherArgs is None else [otherArgs]))
        changed = _pickled(otherArgs, 'otherArgs, as the user function leaves it,')
        return outputs, timings, None if changed == self.unchanged else changed


def _reduce_system(system):
    """How a coordinate system is pickled, which GDAL does not know."""
    return _restore_system, (system.ExportToWkt(['FORMAT=WKT2']), system.GetAxisMappingStrategy())


def _restore_system(wkt, strategy):
    from osgeo import osr
    system = osr.SpatialReference(wkt)
    system.SetAxisMappingStrategy(strategy)
    return system


class _Reader:
    """Reads blocks in a worker, the files of one block in parallel if numReadWorkers asks for it."""
    def __init__(self, rios, function):
        self.rios, self.function = rios, function
        self.tmpfileMgr = rios.TempfileManager(None)
        weakref.finalize(self, self.tmpfileMgr.cleanup)     # at the end of the worker too
        self.rasterizeMgr = rios.RasterizationMgr()
        self.threads = concurrent.futures.ThreadPoolExecutor(max(1, function.controls.concurrency.numReadWorkers))
        self.opened = threading.local()         # GDAL objects must not be shared by threads

    def read(self, blockDefn):
        inputs = self.rios.BlockAssociations(self.function.infiles)
        files = list(self.function.infiles)
        arrays = self.threads.map(functools.partial(self._read_one, blockDefn), files)
        for (symbolicName, number, _), array in zip(files, arrays):
            inputs[symbolicName, number] = array
        return inputs

    def _read_one(self, blockDefn, file):
        cache = self.opened.__dict__.setdefault('cache', {})
        function = self.function
        return self.rios.readBlockOneFile(blockDefn, *file, cache, function.controls, self.tmpfileMgr,
                                          self.rasterizeMgr, function.workinggrid, function.allInfo)


class AWSBatchComputeWorkerMgr(_ComputeWorkerManager):
    """
    Computes the blocks of RIOS 2 on AWS Batch; RIOS makes it for computeWorkerKind='CW_AWSBATCH'.

    Blocks go to whichever worker is free. Each starts with the caller's otherArgs, and every copy that
    the user function changed is in otherArgsList of what applier.apply() returns, in the order of the blocks.

    computeWorkersRead=True has the workers read their blocks from the input files, which they must be
    able to reach; False has the main script read them. By default the workers read when all input files
    are on S3 or the web (/vsis3/, /vsicurl/ ...), and the main script otherwise.
    """
    computeWorkerKind = 'CW_AWSBATCH'
    computeWorkersRead_default = 'auto'     # true for RIOS, so that it leaves the reading to us

    def __init__(self):
        self.executor = self.rios = self.timings = self.reader = self.inBlockBuffer = None
        self.outObjList = []
        self.changed = {}       # block to its copy of otherArgs
        self.threads = []
        self.answers = queue.SimpleQueue()
        self.stopped = threading.Event()

    def startWorkers(self, numWorkers=None, **given):
        """
        Start the workers and the feeding of blocks; return when the first worker is up.

        Args:
            numWorkers (int): how many Batch jobs.
            given: userFunction, infiles, otherArgs, controls, blockList, inBlockBuffer, outBlockBuffer,
                workinggrid, allInfo, tmpfileMgr and exceptionQue, as RIOS 2 gives them.

        Raises:
            AWSBatchException: as for :class:`AWSBatchExecutor`; or no worker was up within
                computeBarrierTimeout; or this RIOS is not one that we know.
        """
        try:
            self._start(numWorkers, **given)
        except BaseException:
            self.shutdown()         # RIOS does it for an Exception, but not when the script is interrupted
            raise

    def _start(self, numWorkers, **given):
        with _known_rios():
            (userFunction, infiles, otherArgs, controls, blockList, workinggrid, allInfo) = (given[name] for name in (
                'userFunction', 'infiles', 'otherArgs', 'controls', 'blockList', 'workinggrid', 'allInfo'))
            self.inBlockBuffer, self.outBlockBuffer, self.exceptionQue = (given[name] for name in (
                'inBlockBuffer', 'outBlockBuffer', 'exceptionQue'))
            self.rios = _Rios2()
            self.timings = self.rios.Timers()
            self.blockList, self.concurrency = blockList, controls.concurrency
            self._lift_timeouts()
            function = _BlockFunction(userFunction, infiles, otherArgs, controls, workinggrid, allInfo)
        self.executor = AWSBatchExecutor(numWorkers)
        if self.concurrency.computeWorkersRead == 'auto' and not all(
                any(mark in filename for mark in _REMOTE) for _, _, filename in infiles):
            with _known_rios():
                self._read_here(infiles, allInfo, controls, given['tmpfileMgr'], workinggrid)
        self.room = threading.Semaphore(4 * numWorkers)     # blocks that are on their way
        for loop in (functools.partial(self._feed, function), self._deliver):
            self.threads.append(threading.Thread(target=self._guarded, args=(loop,), name='rios_awsbatch', daemon=True))
            self.threads[-1].start()
        if not self.executor.wait_for_workers(1, self.concurrency.computeBarrierTimeout):
            raise AWSBatchException('No worker has come up within {} seconds (computeBarrierTimeout). {}'.format(
                self.concurrency.computeBarrierTimeout, RUNNABLE_CAUSES))

    def _read_here(self, infiles, allInfo, controls, tmpfileMgr, workinggrid):
        """Have RIOS read the blocks in the main script, as it does for computeWorkersRead=False."""
        controls = copy.copy(controls)
        controls.concurrency = copy.copy(controls.concurrency)
        controls.concurrency.numReadWorkers = readers = max(1, controls.concurrency.numReadWorkers)
        self.inBlockBuffer = self.rios.BlockBuffer(infiles, readers, None, None, 'read')
        self._lift_timeouts()
        reader = self.rios.ReadWorkerMgr()
        reader.startReadWorkers(self.blockList, infiles, allInfo, controls, tmpfileMgr, self.rios.RasterizationMgr(),
                                workinggrid, self.inBlockBuffer, self.timings, self.exceptionQue)
        self.reader = reader

    def _lift_timeouts(self):
        """
        RIOS's buffers give up on workers that are silent for some seconds, so as never to wait for ever for
        one that has died. The executor sees to that, and instances of AWS take minutes to start.
        """
        if self.concurrency.computeBufferPopTimeout == self.rios.ConcurrencyStyle().computeBufferPopTimeout:
            self.outBlockBuffer.popTimeout = None       # else the user's own
        self.outBlockBuffer.insertTimeout = 1           # _insert() tries again
        if self.inBlockBuffer is not None:
            self.inBlockBuffer.insertTimeout = None
            self.inBlockBuffer.popTimeout = 1           # _next_block() looks for errors this often

    def _guarded(self, loop):
        """Thread: run a loop; should it fail, RIOS learns of it."""
        try:
            loop()
        except Exception as error:
            self._fail(error)

    def _fail(self, error):
        """Have RIOS raise an error: it looks for one after each block, so it is given an empty one."""
        if not self.stopped.is_set():
            self.stopped.set()
            self.exceptionQue.put(self.rios.WorkerErrorRecord(error, 'compute'))
            self._insert(self.blockList[0], self.rios.BlockAssociations())

    def _feed(self, function):
        """Send a call for each block, no more than there is room for."""
        for blockDefn in self.blockList:
            inputs = None
            self.room.acquire()
            if self.inBlockBuffer is not None:
                blockDefn, inputs = self._next_block()
            if self.stopped.is_set():
                return
            block = _RiosBlock(blockDefn.top, blockDefn.left, blockDefn.nrows, blockDefn.ncols)
            future = self.executor.submit(function, block, inputs)
            future.add_done_callback(lambda future, blockDefn=blockDefn: self.answers.put((blockDefn, future)))

    def _next_block(self):
        """Wait for a block from the readers (blockDefn, inputs)."""
        while not self.stopped.is_set():
            with contextlib.suppress(self.rios.TimeoutError), self.timings.interval('pop_readbuffer'):
                return self.inBlockBuffer.popNextBlock()
            if self.exceptionQue.qsize():
                raise AWSBatchException('A block could not be read; the preceding error says why.')
        return None, None

    def _deliver(self):
        """Give results to RIOS as they come, until all are there or one is an exception."""
        for _ in self.blockList:
            blockDefn, future = self.answers.get()
            if self.stopped.is_set():
                return
            if future.exception() is not None:
                self._fail(future.exception())
                return
            outputs, timings, changed = future.result()
            self.timings.merge(timings)
            if changed is not None:
                self.changed[blockDefn.top, blockDefn.left] = pickle.loads(changed)
            with self.timings.interval('insert_computebuffer'):
                self._insert(blockDefn, outputs)
            future = outputs = None
            self.room.release()

    def _insert(self, blockDefn, outputs):
        while True:
            try:
                return self.outBlockBuffer.insertCompleteBlock(blockDefn, outputs)
            except self.rios.TimeoutError:      # the main script is still writing
                if self.stopped.is_set():
                    return

    def shutdown(self):
        """End the run. RIOS calls this after the last block, and after any error."""
        self.stopped.set()
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
        for buffer in (self.inBlockBuffer, self.outBlockBuffer if self.threads else None):
            if buffer is not None and self.rios is not None:
                self._drain(buffer)
        if self.threads:
            self.room.release()
            self.answers.put((None, None))
        for thread in self.threads:
            thread.join()
        if self.reader is not None:
            self.reader.shutdown()
        if self.timings is not None:
            self.outObjList = [self.changed[block] for block in sorted(self.changed)] + [self.timings]
            self.timings = None         # RIOS calls this again where startWorkers() has failed

    def _drain(self, buffer):
        """Take what is left in one of RIOS's buffers, so that no thread waits for room in it any more."""
        buffer.insertTimeout, buffer.popTimeout = 1, 0
        with contextlib.suppress(self.rios.TimeoutError):
            while True:
                buffer.popNextBlock()
