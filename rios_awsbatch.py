"""
Run per-block raster work on AWS Batch.

A block of raster work is a call: a function and its arguments. This module
sends such calls to worker containers on AWS Batch and brings the results
back as futures, so that AWS Batch looks like any other Python executor::

    import rios_awsbatch

    with rios_awsbatch.AWSBatchExecutor(max_workers=8) as executor:
        for result in executor.map(myFunction, blocks, buffersize=32):
            ...

Users of RIOS (rioshome.org) do not call it themselves. They import this
module and choose AWS Batch, and everything else in their script stays::

    import rios_awsbatch
    controls.setNumThreads(4)                  # RIOS 1.4, and RIOS 2.0
    controls.setJobManagerType('AWSBatch')

    controls.setConcurrencyStyle(applier.ConcurrencyStyle(     # RIOS 2
        computeWorkerKind='CW_AWSBATCH', numComputeWorkers=4))

What AWS needs for it is one CloudFormation stack, which ``scripts/create.sh``
creates from ``batch.yaml``, and one container image, which
``scripts/build.sh`` builds. ``worker.py`` is what runs in that container.

How a run works, and where each promise is kept:

* A run has two SQS queues of its own, a folder ``runs/<run id>/`` in the
  stack's bucket, and one Batch job; nothing is shared with any other run.
  See :meth:`AWSBatchExecutor._start` and :meth:`AWSBatchExecutor._clean_up`.
* Everything that travels is signed: see :class:`Channel`.
* Calls go out in :meth:`AWSBatchExecutor._send_loop`, results come back in
  :meth:`AWSBatchExecutor._collect_loop`; the first answer to a call wins.
* :meth:`AWSBatchExecutor._lease_loop` renews the run's lease, by which the
  workers know that this script lives; :meth:`AWSBatchExecutor._watch_loop`
  watches the Batch job, so that no future waits for workers that never come.
"""
# MIT licence, see the file LICENSE.

import atexit
import base64
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
import inspect
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
import tempfile
import threading
import time
import traceback
import weakref

import boto3
import botocore.config
import botocore.exceptions
import cloudpickle

__version__ = '1.0.0'
__all__ = ['STACK_NAME', 'REGION', 'AWSBatchException', 'BrokenAWSBatchExecutor',
           'getStackOutputs', 'AWSBatchExecutor', 'AWSBatchJobManager',
           'AWSBatchComputeWorkerMgr']

log = logging.getLogger('rios_awsbatch')

#: The CloudFormation stack to use, from $RIOS_AWSBATCH_STACK.
STACK_NAME = os.environ.get('RIOS_AWSBATCH_STACK') or 'RIOS'
#: The AWS region it is in, from $RIOS_AWSBATCH_REGION, $AWS_REGION or $AWS_DEFAULT_REGION.
REGION = (os.environ.get('RIOS_AWSBATCH_REGION') or os.environ.get('AWS_REGION') or
          os.environ.get('AWS_DEFAULT_REGION') or 'ap-southeast-2')

# How long things may take, in seconds.
LEASE_SECONDS = 180         # workers stop this long after the main script was last alive
WATCH_SECONDS = 5           # how often the Batch job is looked at
RUNNABLE_SECONDS = 300      # no worker after this long is worth a warning
VISIBILITY_SECONDS = 30     # a dead worker's block is given to another one after this
ROUNDS_AHEAD = 2            # rounds of RIOS 1.4 that are computed before RIOS waits for the first of them
STOP_SECONDS = 5            # what workers get to say goodbye before they are terminated
# How much may be on its way.
INLINE_BYTES = 192 * 1024   # a larger payload costs less by way of S3, see "Cost" in the README
OUTBOX_BYTES = 256 * 2**20  # submit() waits while this much is still to be sent
# What takes long to import: workers do that first, if the main script has imported it too.
HEAVY_MODULES = ('rios.applier',)
SHELF_BYTES = 256 * 2**20   # large results that the script has not let go of; more are kept in files
MAX_TRIES = 3               # a block whose worker died this often is not tried again
SENDERS = 4                 # threads that upload and send calls
COLLECTORS = 2              # threads that receive results: more get fewer of them per request

# Limits of AWS: "Amazon SQS message quotas" in the SQS developer guide, and the models of
# sqs:SendMessageBatch, sqs:CreateQueue and s3:DeleteObjects in botocore.
MESSAGE_BYTES = 1024 * 1024         # one message, and one batch of messages
BATCH_ENTRIES = 10                  # messages in a batch
LONG_POLL_SECONDS = 20
RETENTION_SECONDS = 14 * 86400
DELETE_OBJECTS = 1000               # keys in one request
DESCRIBE_JOBS = 100                 # jobs in one request
STACK_NAME_CHARS = 40               # of the 80 that a queue name may have

# Why a worker that should be there is not: what users find most often.
RUNNABLE_CAUSES = (
    'Usual causes: the account\'s EC2 vCPU quota or the stack\'s maximum number of jobs is used '
    'up by other jobs, no instance type of the stack is free (above all with Spot), or a job '
    'asks for more memory or vCPUs than any of them has. "scripts/status.sh" shows the jobs; '
    '"scripts/modify.sh" changes --maxjobs, --instancetype, --mem and --vcpus.')


class AWSBatchException(Exception):
    """Something about the stack, the run or a block is wrong; the message says what to do."""


class BrokenAWSBatchExecutor(concurrent.futures.BrokenExecutor, AWSBatchException):
    """No worker can finish the outstanding calls any more."""


class _RemoteTraceback(Exception):
    """The cause of an exception that was raised in a worker: its traceback there, as text."""
    def __init__(self, text):
        super().__init__(text)
        self.text = text

    def __str__(self):
        return '\n"""\n{}"""'.format(self.text)


# ---------------------------------------------------------------------------------------------
# Errors of AWS, in the words of somebody who does not know AWS
# ---------------------------------------------------------------------------------------------

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
    return (isinstance(error, _CONNECTION_ERRORS) or status >= 500 or
            error_code(error) in _THROTTLED)


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
    elif isinstance(error, (exceptions.NoCredentialsError, exceptions.PartialCredentialsError,
                            exceptions.CredentialRetrievalError)):
        text = 'No AWS credentials were found ({}). ' + _CREDENTIAL_HELP
    elif isinstance(error, (exceptions.SSOError, exceptions.TokenRetrievalError)) or code in _EXPIRED:
        text = 'Your AWS login has expired ({}). Log in again. ' + _CREDENTIAL_HELP
    elif code in _WRONG_KEY:
        text = 'AWS does not accept your credentials ({}). ' + _CREDENTIAL_HELP
    elif code in _DENIED:
        text = ('AWS does not allow you this ({}). Ask whoever manages your AWS account to attach '
                'the policy of the stack\'s output BatchMainPolicyArn to your user or role.')
    elif code in _THROTTLED:
        text = ('AWS refuses more requests for the moment ({}). Try again in a minute; if it '
                'stays so, another program in the same account makes too many requests.')
    elif isinstance(error, exceptions.InvalidRegionError) or (
            isinstance(error, exceptions.EndpointConnectionError) and not _is_region(REGION)):
        text = ('There is no AWS region "' + REGION + '" ({}). Set RIOS_AWSBATCH_REGION, for '
                'instance to ap-southeast-2.')
    elif isinstance(error, _CONNECTION_ERRORS):
        text = ('AWS cannot be reached ({}). Check the network connection, a proxy, and that '
                'RIOS_AWSBATCH_REGION ("' + REGION + '") is the region you mean.')
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
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise explain(error, doing) from error


# ---------------------------------------------------------------------------------------------
# The stack
# ---------------------------------------------------------------------------------------------

# What travels has a SHA-256 that is checked, so a CRC32 besides is only time. Known since botocore 1.36.
_NO_CHECKSUMS = {name: 'when_required' for name in ('request_checksum_calculation', 'response_checksum_validation')
                 if name in botocore.config.Config.OPTION_DEFAULTS}


def make_client(service, region, requests=None):
    """
    A boto3 client that is patient with AWS, and good for many threads.

    Args:
        service (str): boto3's name for it, as in 'sqs'.
        region (str): the AWS region.
        requests (collections.Counter): counts the requests made, by operation.
    """
    config = botocore.config.Config(
        retries={'mode': 'standard', 'total_max_attempts': 8}, max_pool_connections=32,
        connect_timeout=10, read_timeout=LONG_POLL_SECONDS + 20,
        user_agent='rios_awsbatch/' + __version__,      # botocore makes up its own for every request
        **_NO_CHECKSUMS)
    client = boto3.client(service, region_name=region, config=config)
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
        with _explained('reading the stack outputs'):
            client = make_client('cloudformation', REGION)
            stack = client.describe_stacks(StackName=STACK_NAME)['Stacks'][0]
    except AWSBatchException as error:
        if error_code(error.__cause__) == 'ValidationError':
            raise AWSBatchException('There is no {}. {}; "scripts/create.sh --wait" creates '
                                    'one.'.format(where, variables)) from None
        raise
    status = stack['StackStatus']
    if status in ('CREATE_IN_PROGRESS', 'REVIEW_IN_PROGRESS'):
        raise AWSBatchException('The {} is still being created. Wait until "scripts/status.sh" says '
                                'CREATE_COMPLETE, and try again.'.format(where))
    if status.startswith(('ROLLBACK', 'DELETE')) or status == 'CREATE_FAILED':
        raise AWSBatchException('The {} cannot be used: it is in state {}. Delete it with '
                                '"scripts/delete.sh --wait" and create it again with '
                                '"scripts/create.sh --wait".'.format(where, status))
    outputs = {out['OutputKey']: out['OutputValue'] for out in stack.get('Outputs', [])}
    missing = [name for name in ('BatchBucket', 'BatchProcessingJobQueueName', 'BatchMaxJobs',
                                 'BatchProcessingJobDefinitionName') if name not in outputs]
    if missing:
        raise AWSBatchException(
            'The {} has no output {}, so it was not created from this version\'s batch.yaml. {}; '
            '"scripts/modify.sh" updates an older stack of rios_awsbatch.'.format(
                where, ' and no '.join(missing), variables))
    return outputs


# ---------------------------------------------------------------------------------------------
# What travels between the main script and its workers
# ---------------------------------------------------------------------------------------------

class Refused(Exception):
    """A message or an object that this run did not make. It is never unpickled."""


def dumps(thing):
    """Pickle anything that cloudpickle can, lambdas and functions of the script included."""
    return cloudpickle.dumps(thing, protocol=5)


class Channel:
    """
    The two queues and the folder of one run, as the main script and the workers see them.

    A message is three lines: a signature, a header in JSON, and the payload in base64. The
    signature (HMAC-SHA256 with the secret key of the run) covers the header; the header names the
    run, the direction and the SHA-256 of the payload. So a payload that was forged, cut short,
    or taken from another run is refused before it is unpickled, wherever it lies: one larger
    than INLINE_BYTES is an object in the run's folder, which the header names.

    Args:
        run (str): the run id.
        key (bytes): the secret key of the run.
        bucket (str): name of the stack's bucket.
        in_queue (str): URL of the queue with calls for the workers.
        out_queue (str): URL of the queue with answers for the main script.
        region (str): AWS region of all three.
    """
    def __init__(self, run, key, bucket, in_queue, out_queue, region):
        self.run, self.key, self.bucket = run, key, bucket
        self.in_queue, self.out_queue = in_queue, out_queue
        self.folder = 'runs/{}/'.format(run)
        self.requests = collections.Counter()
        self.sqs = make_client('sqs', region, self.requests)
        self.s3 = make_client('s3', region, self.requests)

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
            (str, dict): the body of the message, and its complete header.
        """
        digest = hashlib.sha256(payload).hexdigest()
        header = dict(header, run=self.run, to=to, sha256=digest, bytes=len(payload))
        if len(payload) > INLINE_BYTES:
            header['object'] = '{}{}-{}-{}'.format(self.folder, header['kind'], header.get('id'), digest)
            self.s3.put_object(Bucket=self.bucket, Key=header['object'], Body=payload)
            if 'uploaded' in header:
                header['uploaded'] = time.time()
            payload = b''
        return self.reseal(header, payload), header

    def reseal(self, header, payload=b''):
        """Make the body of a message whose header is complete."""
        text = json.dumps(header, separators=(',', ':'))
        return '\n'.join((self.sign(text), text, base64.b64encode(payload).decode()))

    def open(self, to, body):
        """
        Check a message.

        Returns:
            (dict, str): its header, and its payload in base64, for :meth:`payload`.

        Raises:
            Refused: this run did not make it, or not for `to`.
        """
        signature, _, rest = body.partition('\n')
        text, _, payload = rest.partition('\n')
        if not hmac.compare_digest(signature.encode(), self.sign(text).encode()):
            raise Refused('its signature is wrong')
        header = json.loads(text)
        if (header['run'], header['to']) != (self.run, to):
            raise Refused('it is for the {} of run {}'.format(header['to'], header['run']))
        return header, payload

    def payload(self, header, text):
        """
        The pickle that belongs to a header that :meth:`open` gave.

        Raises:
            Refused: it is not the one that was signed.
        """
        if 'object' in header:
            return self.fetch(header['object'], header['sha256'])
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError:
            raise Refused('its payload is damaged') from None
        return self._checked(data, header['sha256'], 'its payload')

    def fetch(self, name, digest):
        """Read an object whose SHA-256 is known (bytes)."""
        for attempt in itertools.count(1):      # botocore retries requests, but not their bodies
            try:
                data = self.s3.get_object(Bucket=self.bucket, Key=name)['Body'].read()
                break
            except (botocore.exceptions.IncompleteReadError, botocore.exceptions.ReadTimeoutError,
                    botocore.exceptions.ResponseStreamingError):
                if attempt == 5:
                    raise
            except botocore.exceptions.ClientError as error:
                if error_code(error) in _NO_OBJECT:
                    raise Refused('object {} is not there'.format(name)) from error
                raise
        return self._checked(data, digest, 'object ' + name)

    @staticmethod
    def _checked(data, digest, what):
        if hashlib.sha256(data).hexdigest() != digest:
            raise Refused('{} is not what was signed'.format(what))
        return data

    def function_object(self, digest):
        """Where the function with this SHA-256 is kept for the run."""
        return '{}fn-{}'.format(self.folder, digest)

    def send(self, queue_url, bodies):
        """
        Send up to BATCH_ENTRIES message bodies, which together keep below MESSAGE_BYTES.

        Entries that AWS does not take are sent again, so all are sent when this returns.
        """
        entries = [{'Id': str(n), 'MessageBody': body} for n, body in enumerate(bodies)]
        _until_none_fails(entries, lambda left: self.sqs.send_message_batch(
            QueueUrl=queue_url, Entries=left))

    def receive(self, queue_url, wait, most=BATCH_ENTRIES):
        """Wait up to `wait` seconds for at least one message; a list of SQS's messages."""
        return self.sqs.receive_message(
            QueueUrl=queue_url, MaxNumberOfMessages=most, WaitTimeSeconds=wait,
            AttributeNames=['ApproximateReceiveCount']).get('Messages', [])

    def delete(self, queue_url, receipts):
        """Delete received messages, given their receipt handles (any number)."""
        for some in batches(receipts, BATCH_ENTRIES):
            self.sqs.delete_message_batch(QueueUrl=queue_url, Entries=[
                {'Id': str(n), 'ReceiptHandle': receipt} for n, receipt in enumerate(some)])


def _until_none_fails(entries, request):
    """Repeat an SQS batch request with those of its entries that failed."""
    pause = 0.1
    while entries:
        failed = {entry['Id']: entry for entry in request(entries).get('Failed', [])}
        for entry in failed.values():
            if entry.get('SenderFault'):
                raise AWSBatchException('AWS SQS refused a message: {} {}'.format(
                    entry.get('Code'), entry.get('Message', '')))
        entries = [entry for entry in entries if entry['Id'] in failed]
        if entries:
            time.sleep(pause)
            pause = min(2 * pause, 5)


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
        return ('The main script has {0} {1}, but the workers\' image has {0} {2}, and calls cannot '
                'travel between the two. Build the image again with "scripts/build.sh" (BASE_IMAGE '
                'and PIP_PACKAGES choose versions), or run the main script as a job with '
                '"scripts/build.sh --main" and "scripts/submit.sh".'.format(name, main[name], worker[name]))
    return None


# ---------------------------------------------------------------------------------------------
# The executor
# ---------------------------------------------------------------------------------------------

class _Call:
    """A call that has been submitted and not been answered."""
    __slots__ = ('id', 'future', 'label', 'object', 'queued', 'sent', 'bytes')

    def __init__(self, number, label, size):
        self.id, self.label, self.bytes = number, label, size
        self.future = _Future()
        self.object = None
        self.queued, self.sent = time.time(), None


class _Future(concurrent.futures.Future):
    """A future whose result may lie in a file: see :class:`_Shelf`."""
    def result(self, timeout=None):
        result = super().result(timeout)
        return result.read() if isinstance(result, _InFile) else result


class _InFile:
    """A result that is read whenever it is asked for."""
    def __init__(self, path):
        self.path = path

    def read(self):
        with open(self.path, 'rb') as file:
            return pickle.load(file)


class _Shelf:
    """
    Keeps large results until the script has taken them and dropped their futures: SHELF_BYTES in memory, where
    most programs need no more, and the others in files of a temporary folder.
    """
    def __init__(self):
        self._lock, self._used = threading.Lock(), 0
        self._freed = collections.deque()   # a future can end at any moment, also while the lock is held
        self._folder = None
        self._names = itertools.count(1)

    def put(self, future, result, data):
        """What the future is to be settled with; `data` is the pickle of the result."""
        with self._lock:
            while self._freed:
                self._used -= self._freed.popleft()
            fits = self._used + len(data) <= SHELF_BYTES
            if fits:
                self._used += len(data)
            elif self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix='rios_awsbatch-')
        if fits:
            weakref.finalize(future, self._freed.append, len(data)).atexit = False
            return result
        path = os.path.join(self._folder.name, str(next(self._names)))
        try:
            with open(path, 'wb') as file:
                file.write(data)
        except OSError as error:            # the disk is full: memory may still do
            log.warning('A result cannot be kept in a file: %s', error)
            self._remove(self._folder, path)
            return result
        weakref.finalize(future, self._remove, self._folder, path).atexit = False
        return _InFile(path)

    @staticmethod
    def _remove(folder, path):      # holding the folder keeps it until its last file is gone
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


class _Room:
    """Counts the bytes that wait to be sent, and lets submit() wait for room."""
    def __init__(self, size):
        self._size, self._used, self._changed = size, 0, threading.Condition()

    def take(self, count):
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + count <= self._size)
            self._used += count

    def give(self, count):
        with self._changed:
            self._used -= count
            self._changed.notify_all()


def _label(args):
    """A short name for a call in messages: what its arguments are, without their data."""
    def name(arg):
        if isinstance(arg, (int, float, str, bytes, tuple, list, dict, type(None))):
            return reprlib.repr(arg)
        shape = getattr(arg, 'shape', None)
        return type(arg).__name__ + ('' if shape is None else str(tuple(shape)))
    return '({})'.format(', '.join(name(arg) for arg in args[:4]) + (', ...' if len(args) > 4 else ''))


class AWSBatchExecutor(concurrent.futures.Executor):
    """
    Runs calls in worker containers on AWS Batch.

    It is a ``concurrent.futures.Executor``, so ``with``, ``submit``, ``map``, ``as_completed`` and
    ``wait`` are those of the standard library. Workers start when it is made, and take minutes to
    come up when AWS has to start an instance for them first; calls wait for them.

    In a ``with`` statement, an exception (Ctrl-C included) stops the workers at once and cancels
    what is outstanding; a normal end waits for all calls. SIGTERM and SIGHUP, unless the script
    handles them itself, end the script in the same orderly way. A script that is killed leaves
    workers that stop by themselves within LEASE_SECONDS.

    Args:
        max_workers (int): how many workers, one Batch job each. Default: 1.

    Raises:
        ValueError: max_workers is not a whole number above zero.
        AWSBatchException: the stack is not there or AWS cannot be used. Nothing was started.
    """

    def __init__(self, max_workers=1):
        if isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers < 1:
            raise ValueError('The number of workers must be a whole number above zero, not {!r}.'.format(max_workers))
        if max_workers > 10000:
            raise ValueError('AWS Batch starts at most 10,000 workers for a run, not {}.'.format(max_workers))
        if len(STACK_NAME) > STACK_NAME_CHARS:
            raise AWSBatchException('The stack name "{}" is longer than {} characters, which is too long for the '
                                    'names of its queues.'.format(STACK_NAME, STACK_NAME_CHARS))
        self._report = _Report(os.environ.get('RIOS_AWSBATCH_REPORT'), max_workers)
        self._stack = getStackOutputs()
        if max_workers > int(self._stack['BatchMaxJobs']):
            log.warning('%d workers are asked for, but stack %s runs at most %s jobs at a time, so some will wait. '
                        '"scripts/modify.sh --maxjobs %d" raises that.',
                        max_workers, STACK_NAME, self._stack['BatchMaxJobs'], max_workers)
        self._max_workers = max_workers
        self._lock = threading.Lock()
        self._calls = {}                    # the outstanding calls by id
        self._ids = itertools.count(1)
        self._outbox = queue.SimpleQueue()  # (call, function digest, pickled arguments)
        self._turn = threading.Lock()       # of the thread that sends a request that is not full
        self._room = _Room(OUTBOX_BYTES)
        self._shelf = _Shelf()
        self._spent = []                    # objects of answered calls, to be deleted
        self._spent_bytes = 0
        self._store_function = functools.lru_cache(maxsize=8)(self._store_function)
        self._idle = threading.Condition(self._lock)    # notified when a call or a worker ends
        self._workers = {}                  # those that are up: index to versions
        self._done = collections.Counter()  # calls answered, by worker
        self._broken = self._job = None
        self._shutdown = self._closing = self._finished = False
        self._ended = threading.Event()
        try:
            with _explained('starting a run'):
                self._start()
        except BaseException:
            self._clean_up(orderly=False)
            raise
        atexit.register(self._at_exit)
        _open_executors.add(self)
        _exit_on_signals()

    # The public interface ----------------------------------------------------------------------

    def submit(self, fn, /, *args, **kwargs):
        """
        Have ``fn(*args, **kwargs)`` computed by a worker.

        `fn` is pickled when it is first submitted, stored once per run and kept by the workers, with
        whatever it closes over: what changes from call to call belongs into the arguments. Returns at
        once, unless OUTBOX_BYTES of arguments are still waiting to be sent.

        Returns:
            concurrent.futures.Future: its result is what `fn` returns. Its exception is what `fn`
            raised, with the worker's traceback as the cause; or AWSBatchException when the call
            could not be run; or BrokenAWSBatchExecutor when no worker is left.

        Raises:
            RuntimeError: after shutdown().
            BrokenAWSBatchExecutor: no worker is left.
            AWSBatchException: `fn` or an argument cannot be pickled.
        """
        self._check_open()
        with _explained('sending a function to the workers'):
            try:
                digest = self._store_function(fn)
            except TypeError:               # not hashable, so it cannot be remembered
                digest = self._store_function.__wrapped__(fn)
        payload = _pickled((args, kwargs), 'The arguments {} of {}'.format(_label(args), _name(fn)))
        self._room.take(len(payload))
        with self._lock:
            try:
                self._check_open()
            except Exception:
                self._room.give(len(payload))
                raise
            call = _Call(next(self._ids), _name(fn) + _label(args), len(payload))
            self._calls[call.id] = call
        call.future.add_done_callback(functools.partial(self._forget_cancelled, call.id))
        self._outbox.put((call, digest, payload))
        return call.future

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
        if buffersize is not None and (not isinstance(buffersize, int) or buffersize < 1):
            raise ValueError('buffersize must be None or a whole number above zero, not {!r}.'.format(buffersize))
        deadline = None if timeout is None else time.monotonic() + timeout
        arguments = zip(*iterables)
        futures = collections.deque(self.submit(fn, *args) for args in itertools.islice(arguments, buffersize))

        def results():
            try:
                while futures:
                    # Nothing here holds a future or a result that has been handed out.
                    result = [futures[0].result(None if deadline is None else deadline - time.monotonic())]
                    futures.popleft()
                    futures.extend(self.submit(fn, *args) for args in itertools.islice(arguments, 1))
                    yield result.pop()
            finally:
                for future in futures:
                    future.cancel()
        return results()

    def wait_for_workers(self, count=1, timeout=None):
        """
        Wait until `count` workers are up, at most `timeout` seconds.

        Returns:
            int: how many are up.

        Raises:
            BrokenAWSBatchExecutor: none will come.
        """
        with self._idle:
            self._idle.wait_for(lambda: len(self._workers) >= count or self._broken or self._closing, timeout)
            if self._broken:
                raise BrokenAWSBatchExecutor(self._broken)
            return len(self._workers)

    def stats(self):
        """
        What a progress line shows.

        Returns:
            dict: 'workers' asked for, 'workers_up' now, calls 'done' and 'outstanding',
            'blocks_per_worker' (worker index to count) and 'requests', the AWS requests that this
            script (not its workers) made for the run (int).
        """
        with self._lock:
            return {'workers': self._max_workers, 'workers_up': len(self._workers), 'outstanding': len(self._calls),
                    'done': sum(self._done.values()), 'blocks_per_worker': dict(self._done),
                    'requests': sum(self._channel.requests.values())}

    def shutdown(self, wait=True, *, cancel_futures=False):
        """
        End the run: stop its workers, and delete its queues and objects.

        Args:
            wait (bool): return when all calls are answered and nothing of the run is left. Otherwise
                return at once, and the same happens in the background.
            cancel_futures (bool): do not finish outstanding calls but cancel their futures.
        """
        with self._lock:
            self._shutdown = True
        if cancel_futures:
            self._cancel_all()
        if wait:
            try:
                self._finish()
            except BaseException:       # Ctrl-C while waiting: do not wait any longer
                self._cancel_all()
                self._finish()
                raise
        else:
            threading.Thread(target=self._finish, daemon=True).start()

    def __exit__(self, exc_type, exc_value, traceback):
        self.shutdown(wait=True, cancel_futures=exc_type is not None)
        return False

    # Starting and ending a run -----------------------------------------------------------------

    def _start(self):
        self.run = '{}-{}'.format(time.strftime('%Y%m%dT%H%M%S', time.gmtime()), secrets.token_hex(4))
        # A stack name has no underscore, so these names never begin with another stack's.
        self._name = '{}_{}'.format(STACK_NAME, self.run)
        self._channel = Channel(self.run, secrets.token_bytes(32), self._stack['BatchBucket'], None, None, REGION)
        self._batch = make_client('batch', REGION, self._channel.requests)
        self._renew_lease()
        for queue_name in ('in', 'out'):
            url = self._channel.sqs.create_queue(
                QueueName='{}_{}'.format(self._name, queue_name),
                Attributes={'VisibilityTimeout': str(VISIBILITY_SECONDS), 'SqsManagedSseEnabled': 'true',
                            'MessageRetentionPeriod': str(RETENTION_SECONDS)},
                tags={'Project': self._stack.get('BatchTag', 'rios')})['QueueUrl']
            setattr(self._channel, queue_name + '_queue', url)
        self._start_workers()
        loops = [self._send_loop] * SENDERS + [self._collect_loop] * COLLECTORS + [self._lease_loop, self._watch_loop]
        for loop in loops:
            threading.Thread(target=self._guarded, args=(loop,), name='rios_awsbatch', daemon=True).start()

    def _start_workers(self):
        channel = self._channel
        environment = {
            'RIOSBucket': channel.bucket, 'RIOSInQueue': channel.in_queue, 'RIOSOutQueue': channel.out_queue,
            'RIOSRun': self.run, 'RIOSRunKey': channel.key.hex(), 'RIOSRegion': REGION,
            'RIOSLease': str(LEASE_SECONDS), 'RIOSVisibility': str(VISIBILITY_SECONDS),
            'RIOSVersions': json.dumps(versions()),
            'RIOSModules': ' '.join(name for name in HEAVY_MODULES if name in sys.modules)}
        array = {'arrayProperties': {'size': self._max_workers}} if self._max_workers > 1 else {}
        submitted = self._batch.submit_job(
            jobName=self._name, jobQueue=self._stack['BatchProcessingJobQueueName'],
            jobDefinition=self._stack['BatchProcessingJobDefinitionName'], containerOverrides={
                'environment': [{'name': name, 'value': value} for name, value in environment.items()]},
            **array)
        self._job = submitted['jobId']
        if submitted['ResponseMetadata'].get('RetryAttempts'):
            self._terminate_twins()
        self._submitted = time.monotonic()
        self._seen_up = self._seen_ended = self._warned = False

    def _terminate_twins(self):
        """A request that AWS carried out, but whose answer was lost, was repeated: one job is enough."""
        found = self._batch.list_jobs(jobQueue=self._stack['BatchProcessingJobQueueName'],
                                      filters=[{'name': 'JOB_NAME', 'values': [self._name]}])['jobSummaryList']
        for job in found:
            if job['jobId'] != self._job and job['status'] not in ('SUCCEEDED', 'FAILED'):
                self._batch.terminate_job(jobId=job['jobId'], reason='Started twice')

    def _finish(self):
        """Wait for the outstanding calls, then clean up; the work of shutdown()."""
        with self._idle:
            self._idle.wait_for(lambda: not self._calls)
            if self._closing:       # another thread does it
                self._idle.wait_for(lambda: self._finished)
                return
            self._closing = True
        try:
            self._clean_up(orderly=self._broken is None and not self._cancelled)
        except BaseException:
            self._closing = False   # interrupted by a second Ctrl-C: at exit it is tried again
            raise
        with self._idle:
            self._finished = True
            self._idle.notify_all()
        atexit.unregister(self._at_exit)
        _open_executors.discard(self)
        _restore_signals()
        self._report.write(id=self.run, submitted=next(self._ids) - 1, broken=self._broken,
                           vcpus=self._stack.get('BatchVCPUS'), requests=dict(self._channel.requests))
        log.info('Run %s ended: %d blocks by %d workers', self.run, sum(self._done.values()), len(self._done))

    _cancelled = False

    def _cancel_all(self):
        with self._lock:
            self._cancelled = self._cancelled or bool(self._calls)
            futures = [call.future for call in self._calls.values()]
        for future in futures:
            future.cancel()

    def _clean_up(self, orderly):
        """
        Leave nothing of the run on AWS: no job, no queue, no object.

        A step that fails is told and does not keep the others from being done, nor hide an
        exception that is on its way to the user.
        """
        channel = getattr(self, '_channel', None)
        if channel is None:
            return
        if self._job:
            with self._told('stopping the workers'):
                if not (orderly and self._stop_workers()):
                    self._batch.terminate_job(jobId=self._job, reason='The main script has ended the run')
                    self._await_end(STOP_SECONDS)
        self._ended.set()
        for _ in range(SENDERS):
            self._outbox.put(None)
        for url in filter(None, (channel.in_queue, channel.out_queue)):
            with self._told('deleting a queue'):
                channel.sqs.delete_queue(QueueUrl=url)
        with self._told('deleting the objects of the run'):
            pages = channel.s3.get_paginator('list_objects_v2').paginate(Bucket=channel.bucket, Prefix=channel.folder)
            for page in pages:
                self._delete_objects([item['Key'] for item in page.get('Contents', [])])

    def _stop_workers(self):
        """Ask the workers to stop; whether all did."""
        stop = self._channel.seal('worker', {'kind': 'stop'})[0]
        with self._idle:
            if len(self._workers) < self._max_workers:
                return False        # some have not even started
        for bodies in batches([stop] * self._max_workers, BATCH_ENTRIES):
            self._channel.send(self._channel.in_queue, bodies)
        with self._idle:
            return self._idle.wait_for(lambda: not self._workers, STOP_SECONDS)

    def _await_end(self, seconds):
        """Wait until the terminated job has ended, so that no worker writes another object."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            jobs = self._batch.describe_jobs(jobs=[self._job])['jobs']
            if not jobs or jobs[0]['status'] in ('SUCCEEDED', 'FAILED'):
                return
            self._ended.wait(0.25)

    @contextlib.contextmanager
    def _told(self, doing):
        try:
            yield
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, AWSBatchException) as error:
            if error_code(error) not in _NO_QUEUE:
                log.warning('%s "scripts/status.sh --clean" removes what run %s has left.',
                            explain(error, doing), self.run)

    def _at_exit(self):
        """The script ends and nobody called shutdown()."""
        if not self._shutdown:
            self.shutdown(cancel_futures=True)
        else:
            self._finish()

    # Calls out ---------------------------------------------------------------------------------

    def _check_open(self):
        if self._broken:
            raise BrokenAWSBatchExecutor(self._broken)
        if self._shutdown:
            raise RuntimeError('cannot schedule new futures after shutdown')

    def _store_function(self, fn):
        """Put a pickled function into the run's folder; its SHA-256."""
        data = _pickled(fn, 'The function {}'.format(_name(fn)))
        digest = hashlib.sha256(data).hexdigest()
        self._channel.s3.put_object(Bucket=self._channel.bucket, Key=self._channel.function_object(digest), Body=data)
        return digest

    def _send_loop(self):
        left = None
        while not self._ended.is_set():
            left = self._send_some(left)

    def _send_some(self, item):
        """
        Send a call, and in the same request those that came while another request was under way.

        This is a function of its own so that nothing holds their futures, and so their results, while there
        are no more to send.

        Returns:
            A call that is too large to travel with these, to be the next; or None.
        """
        item = item or self._outbox.get()
        if item is None:                    # the run has ended
            return None
        call, body = self._seal_call(*item)     # this may upload, so not in turn
        if call is None:
            return None
        item, calls, bodies, size = None, [call], [body], len(body)
        many = self._outbox.qsize() >= BATCH_ENTRIES
        with contextlib.nullcontext() if many else self._turn:
            while len(bodies) < BATCH_ENTRIES and size < MESSAGE_BYTES // 2:
                try:
                    item = self._outbox.get_nowait()
                except queue.Empty:
                    break
                if item is None or len(item[2]) > INLINE_BYTES:
                    break
                call, body = self._seal_call(*item)
                item = None
                if call is not None:
                    calls.append(call)
                    bodies.append(body)
                    size += len(body)
            for call in calls:
                call.sent = time.time()
            self._persist('sending calls to the workers',
                          lambda: self._channel.send(self._channel.in_queue, bodies))
        return item

    def _seal_call(self, call, digest, payload):
        """Make the message for a call; (None, None) if it was cancelled."""
        self._room.give(len(payload))
        if call.id not in self._calls:
            return None, None
        # Where there is no more than a call for each worker, workers do not take the next one ahead.
        header = {'kind': 'call', 'id': call.id, 'fn': digest, 'tries': 0, 'label': call.label,
                  'scarce': len(self._calls) <= self._max_workers}
        body, header = self._persist('sending a call to the workers',
                                     lambda: self._channel.seal('worker', header, payload)) or (None, {})
        call.object = header.get('object')
        return (call, body) if body else (None, None)

    def _forget_cancelled(self, number, future):
        """A future was cancelled by the user: nobody waits for its answer."""
        if future.cancelled():
            with self._idle:
                if self._calls.pop(number, None):
                    future.set_running_or_notify_cancel()
                self._idle.notify_all()

    # Answers back ------------------------------------------------------------------------------

    def _collect_loop(self):
        channel, receipts, most, since = self._channel, [], BATCH_ENTRIES, time.monotonic()
        soon = VISIBILITY_SECONDS / 4       # results that are not deleted by then would come again
        while not self._ended.is_set():
            wait = LONG_POLL_SECONDS if not receipts else min(LONG_POLL_SECONDS, max(1, int(soon)))
            messages = self._persist('receiving results', lambda: channel.receive(
                channel.out_queue, wait, most)) or []
            for message in messages:
                header = self._collect(message['Body'])
                receipts.append(message['ReceiptHandle'])
                # Large results are taken one by one, so that all collectors have some to download.
                most = 1 if 'object' in header else BATCH_ENTRIES
            if len(receipts) >= BATCH_ENTRIES or not messages or time.monotonic() > since + soon:
                self._persist('deleting messages', lambda: channel.delete(channel.out_queue, receipts))
                receipts, since = [], time.monotonic()

    def _collect(self, body):
        """Handle one message from a worker; its header."""
        try:
            header, payload = self._channel.open('main', body)
        except Refused as refused:
            log.warning('A message to run %s was refused: %s', self.run, refused)
            return {}
        kind, worker = header['kind'], header.get('worker')
        if kind == 'hello':
            self._worker_up(worker, header['versions'])
        elif kind == 'bye':
            with self._idle:
                self._workers.pop(worker, None)
                self._report.worker_ended(worker)
                self._channel.requests.update(header['requests'])
                self._idle.notify_all()
        else:
            self._answer(header, payload)
        return header

    def _worker_up(self, worker, found):
        wrong = mismatch(versions(), found)
        if wrong:
            self._break(wrong)
            return
        with self._idle:
            self._workers[worker] = found
            self._report.worker_up(worker)
            self._seen_up = True
            self._idle.notify_all()
        log.info('Worker %s is up, %d of %d', worker, len(self._workers), self._max_workers)

    def _answer(self, header, text):
        """Settle the future that a result, an error or a given-up call belongs to."""
        arrived = time.time()
        with self._lock:
            call = self._calls.get(header['id'])
        if call is None:            # answered before by another worker, or cancelled
            self._report.unwanted(header, arrived)
            return
        error = result = None
        try:
            if header['kind'] == 'lost':
                error = AWSBatchException(
                    'The call {} was tried {} times, and each time its worker ended before it had answered, so it '
                    'is given up. {}'.format(call.label, header['tries'], self._how_workers_ended()))
            else:
                data = self._persist('downloading a result', lambda: self._channel.payload(header, text))
                result = pickle.loads(data)
                if header['kind'] == 'error':
                    error, remote = result
                    error.__cause__ = _RemoteTraceback(remote)
                elif 'object' in header:
                    result = self._shelf.put(call.future, result, data)
                del data
        except Refused as refused:
            log.warning('The result of %s in run %s was refused: %s', call.label, self.run, refused)
            error = AWSBatchException('The result of {} was tampered with on its way: {}.'.format(call.label, refused))
        except Exception as problem:
            error = AWSBatchException('The result of {} cannot be unpickled here: {}: {}. What a function returns must '
                                      'be importable by the main script too.'.format(
                                          call.label, type(problem).__name__, problem))
            error.__cause__ = problem
        with self._idle:
            if self._calls.pop(call.id, None) is None:
                return
            self._done[header.get('worker')] += 1
            self._report.block(call, header, error, arrived)
            self._idle.notify_all()
        if call.future.set_running_or_notify_cancel():
            if error is not None:
                call.future.set_exception(error)
            else:
                call.future.set_result(result)
        self._discard(call.object, header.get('object'), call.bytes + header.get('bytes', 0))

    def _discard(self, *names):
        """Delete objects of an answered call, many at a time."""
        *names, size = names
        with self._lock:
            self._spent.extend(filter(None, names))
            self._spent_bytes += size if any(names) else 0
            if len(self._spent) < DELETE_OBJECTS and self._spent_bytes < OUTBOX_BYTES:
                return
            spent, self._spent, self._spent_bytes = self._spent, [], 0
        self._persist('deleting objects', lambda: self._delete_objects(spent))

    def _delete_objects(self, names):
        for some in batches(names, DELETE_OBJECTS):
            self._channel.s3.delete_objects(Bucket=self._channel.bucket, Delete={
                'Objects': [{'Key': name} for name in some], 'Quiet': True})

    # Watching ----------------------------------------------------------------------------------

    def _guarded(self, loop):
        """Run a loop; should it ever fail, all futures learn of it instead of waiting for ever."""
        try:
            loop()
        except BaseException as error:
            if not self._ended.is_set():
                log.debug('A thread of run %s failed', self.run, exc_info=True)
                self._break(str(error) if isinstance(error, AWSBatchException) else repr(error))

    def _persist(self, doing, request):
        """Make an AWS request, again and again while AWS is away, but no longer than the lease lasts."""
        deadline = time.monotonic() + LEASE_SECONDS
        while True:
            try:
                return request()
            except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
                if self._ended.is_set() or self._closing and error_code(error) in _NO_QUEUE:
                    return None
                # A new queue may not be known everywhere yet: sqs:CreateQueue asks to wait a second.
                new = error_code(error) in _NO_QUEUE and time.monotonic() < self._submitted + 10
                if not (new or is_temporary(error)) or time.monotonic() > deadline:
                    raise explain(error, doing) from error
                log.warning('%s Trying again.', explain(error, doing))
                self._ended.wait(1)

    def _renew_lease(self):
        self._channel.s3.put_object(Bucket=self._channel.bucket, Key=self._channel.folder + 'lease', Body=json.dumps(
            {'host': platform.node(), 'pid': os.getpid(), 'seconds': LEASE_SECONDS}).encode())

    def _lease_loop(self):
        while not self._ended.wait(LEASE_SECONDS / 4):
            self._persist('renewing the lease of the run', self._renew_lease)

    def _watch_loop(self):
        while not self._ended.wait(WATCH_SECONDS):
            if self._calls and not self._broken and not self._closing:
                self._persist('looking at the Batch job', self._watch_job)

    def _watch_job(self):
        """Fail the outstanding calls if no worker will ever come for them."""
        jobs = self._batch.describe_jobs(jobs=[self._job])['jobs']
        status = jobs[0]['status'] if jobs else 'FAILED'
        if status in ('SUCCEEDED', 'FAILED'):
            # The last answers may still be on their way, so look twice.
            before, self._seen_ended = self._seen_ended, (status, sum(self._done.values()))
            if before != self._seen_ended:
                return
            if status == 'SUCCEEDED' and self._seen_up:
                log.info('The workers of run %s had stopped because there was nothing to do; starting them again', self.run)
                with self._lock:
                    self._workers.clear()
                self._start_workers()
            else:
                self._break('No worker of run {} is left, with {} calls outstanding. {}'.format(
                    self.run, len(self._calls), self._how_workers_ended()))
        elif not self._seen_up and not self._warned and time.monotonic() > self._submitted + RUNNABLE_SECONDS:
            self._warned = True
            counts = jobs[0].get('arrayProperties', {}).get('statusSummary') or {status: 1}
            log.warning('No worker has come up after %d minutes; the jobs are %s. %s', RUNNABLE_SECONDS // 60,
                        ', '.join('{} {}'.format(count, state) for state, count in counts.items() if count),
                        RUNNABLE_CAUSES if counts.get('RUNNABLE') else '')

    def _break(self, text):
        """Fail every outstanding call, and refuse new ones."""
        with self._idle:
            self._broken = self._broken or text
            calls, self._calls = self._calls, {}
            self._idle.notify_all()
        for call in calls.values():
            if call.future.set_running_or_notify_cancel():
                call.future.set_exception(BrokenAWSBatchExecutor(text))

    def _how_workers_ended(self):
        """What Batch says of the workers that failed, with the last lines of a log (str)."""
        try:
            return self._ask_how_workers_ended()
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            return str(explain(error, 'asking Batch how the workers ended'))

    def _ask_how_workers_ended(self):
        indices = range(self._max_workers) if self._max_workers > 1 else [None]
        names = [self._job if index is None else '{}:{}'.format(self._job, index) for index in indices]
        ends = []
        for some in batches(names, DESCRIBE_JOBS)[:10]:
            for job in self._batch.describe_jobs(jobs=some)['jobs']:
                ends.extend(_attempt_ends(job))
        if not ends:
            return 'AWS Batch does not say how the workers ended; "scripts/status.sh" shows the jobs.'
        ends.sort(key=lambda end: end['stopped'])
        sentences = list(dict.fromkeys(end['sentence'] for end in ends[-5:]))
        logged = [end for end in ends if end['stream']]
        if logged:
            sentences.append(self._log_tail(logged[-1]['group'], logged[-1]['stream']))
        return ' '.join(sentences)

    def _log_tail(self, group, stream):
        more = 'All of its log: aws logs get-log-events --region {} --log-group-name {} --log-stream-name {}'.format(
            REGION, group, stream)
        try:
            events = make_client('logs', REGION).get_log_events(
                logGroupName=group, logStreamName=stream, limit=20, startFromHead=False)['events']
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            return '(Its log cannot be read: {}) {}'.format(error, more)
        return 'The end of its log:\n{}\n{}'.format('\n'.join('    ' + event['message'] for event in events), more)


def _attempt_ends(job):
    """How the attempts of a Batch job that failed have ended, in sentences."""
    index = job.get('arrayProperties', {}).get('index', 0)
    definition = job.get('container', {})
    group = definition.get('logConfiguration', {}).get('options', {}).get('awslogs-group', '/aws/batch/job')
    attempts = [(attempt.get('container', {}), attempt.get('statusReason'), attempt.get('stoppedAt', 0))
                for attempt in job.get('attempts', [])]
    if job['status'] == 'FAILED' and not attempts:
        attempts = [(definition, job.get('statusReason'), job.get('stoppedAt', 0))]
    for container, status_reason, stopped in attempts:
        code, reason = container.get('exitCode'), container.get('reason')
        if code == 0:
            continue
        said = '; '.join(filter(None, (status_reason, reason)))
        yield {'stopped': stopped, 'group': group, 'stream': container.get('logStreamName'),
               'sentence': 'Worker {} ended{}{}.{}'.format(
                   index, '' if code is None else ' with exit code {}'.format(code),
                   ': ' + said.rstrip('.') if said else '', _advice(code, said))}


def _advice(code, reason):
    """What to do about a container that ended like this."""
    if 'OutOfMemory' in reason:
        return ' It needed more memory than its job has: use smaller blocks, or "scripts/modify.sh --mem".'
    if 'CannotPullContainer' in reason:
        return ' The image is not in the repository: "scripts/build.sh" builds and pushes it.'
    if 'Host EC2' in reason:
        return ' Its instance was taken away, as happens to Spot instances.'
    if code == 137:
        return ' It was killed, most often because it needed more memory than its job has: "scripts/modify.sh --mem".'
    if code in (134, 139):
        return ' It crashed in compiled code.'
    return ''


def _name(fn):
    return getattr(fn, '__name__', None) or getattr(getattr(fn, 'func', None), '__name__', None) or type(fn).__name__


def _pickled(thing, what):
    try:
        return dumps(thing)
    except Exception as error:
        raise AWSBatchException('{} cannot be pickled, so it cannot travel to a worker: {}: {}. Open files, GDAL datasets, '
                                'locks and connections must be made inside the function.'.format(
                                    what, type(error).__name__, error)) from error


# A script that is asked to end (kill, a closed terminal) ends in an orderly way, so that shutdown()
# and what is registered with atexit run. A handler of the script's own is left alone.
_open_executors = weakref.WeakSet()
_SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]


def _raise_exit(number, frame):
    sys.exit(128 + number)


def _exit_on_signals():
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _raise_exit)


def _restore_signals():
    if not _open_executors and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is _raise_exit:
                signal.signal(number, signal.SIG_DFL)


class _Report:
    """
    The records of a run, which scripts/timeline.py draws. Without a folder it keeps and does nothing.

    FOLDER/run.json has an entry for the run, one for each worker that came up, and one for each block that
    was answered. All times are seconds since the run began. Those of a block, in their order:

    ==========  ================================================================================
    queued      submit() has pickled the arguments and found room for them
    sent        the main script sends the call; large arguments are in the bucket
    received    a worker has the call
    downloaded  ... and its arguments
    started     ... and unpickles them and computes, having finished the block before
    computed    ... and has pickled the result
    uploaded    ... and sends the answer; a large result is in the bucket
    arrived     the main script has the answer
    collected   ... and has downloaded and unpickled the result
    ==========  ================================================================================

    Blocks that the main script computed have the worker "main". Of a block with several tries the times
    are those of the last. An answer that came when its block was answered or cancelled already has no
    label, and was not collected.

    Args:
        folder (str): where run.json is written; None for no report.
        workers (int): how many were asked for.

    Raises:
        AWSBatchException: nothing can be written in that folder.
    """
    _AT_WORKER = ('received', 'downloaded', 'started', 'computed', 'uploaded')
    _FIELDS = ('id', 'label', 'worker', 'tries', 'bytes_in', 'bytes_out', 'error', 'queued', 'sent', *_AT_WORKER,
               'arrived', 'collected')

    def __init__(self, folder, workers):
        self.folder, self.asked, self.began = folder, workers, time.time()
        self.blocks, self.workers = [], []      # values of _FIELDS; [worker, up, ended]
        if folder:
            try:
                os.makedirs(folder, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            except OSError as error:
                raise AWSBatchException('The report of the run cannot be written to the folder "{}": {}. Set '
                                        'RIOS_AWSBATCH_REPORT to a folder where you may write, or unset it.'.format(
                                            folder, error.strerror or error)) from error

    def worker_up(self, worker):
        if self.folder:
            self.workers.append([worker, time.time(), None])

    def worker_ended(self, worker):
        for entry in reversed(self.workers):
            if entry[0] == worker:
                entry[2] = time.time()
                break

    def block(self, call, header, error, arrived):
        """A block that was answered by the message with this header."""
        if self.folder:
            self.blocks.append((
                call.id, call.label, header.get('worker'), header.get('tries'), call.bytes, header.get('bytes'),
                error and '{}: {}'.format(type(error).__name__, error)[:300],
                call.queued, call.sent, *(header.get(name) for name in self._AT_WORKER), arrived, time.time()))

    def unwanted(self, header, arrived):
        """An answer to a call that was answered or cancelled before."""
        if self.folder:
            self.blocks.append((
                header['id'], None, header.get('worker'), header.get('tries'), None, header.get('bytes'), None,
                None, None, *(header.get(name) for name in self._AT_WORKER), arrived, None))

    def here(self, label, started):
        """A block that the main script computed itself."""
        if self.folder:
            now = time.time()
            self.blocks.append((None, label, 'main', 1, None, None, None, started, None, None, None, started, now,
                                None, None, now))

    def write(self, **run):
        """Write run.json, with what else there is to say of the run. An error is a warning."""
        if not self.folder:
            return
        path = os.path.join(self.folder, 'run.json')
        try:
            with open(path + '.part', 'w', encoding='utf-8') as report:
                report.writelines(self._lines(run))
            if os.path.exists(path):        # of an earlier run, which is kept
                with open(path, encoding='utf-8') as earlier:
                    os.replace(path, os.path.join(self.folder, 'run-{}.json'.format(json.load(earlier)['run']['id'])))
            os.replace(path + '.part', path)
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning('The report of run %s could not be written to %s: %s', run['id'], path, error)

    def _lines(self, run):
        # The workers' clocks are AWS's and agree; that of the main script may be off. The answer that came
        # quickest is taken to have taken no time, so nothing begins before it was sent or arrives before it left.
        left, came = self._FIELDS.index('uploaded'), self._FIELDS.index('arrived')
        behind = min((block[came] - block[left] for block in self.blocks if block[left]), default=0)

        def since(moment, offset=0):
            return moment and round(moment + offset - self.began, 4)

        run = dict(run, workers=self.asked, stack=STACK_NAME, region=REGION, inline_bytes=INLINE_BYTES,
                   began=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self.began)), ended=since(time.time()),
                   worker_clocks_behind=round(behind, 4))
        yield '{{"run": {},\n"workers": [\n'.format(json.dumps(run))
        yield ',\n'.join(json.dumps({'worker': worker, 'up': since(up), 'ended': since(ended)})
                         for worker, up, ended in self.workers)
        yield '\n],\n"blocks": [\n'
        for number, values in enumerate(self.blocks):
            block = dict(zip(self._FIELDS, values))
            for name in self._FIELDS[self._FIELDS.index('queued'):]:
                block[name] = since(block[name], behind if name in self._AT_WORKER and block['worker'] != 'main' else 0)
            yield (',\n' if number else '') + json.dumps(block)
        yield '\n]}\n'


# STUB of branch G for what the lead provides on main: _executor_for, share, shared.
_entered, _channel_of_worker = [], None


def _executor_for(count, **options):
    if _entered and options:
        raise ValueError('computeWorkerExtraParams has {}, but the workers are those of the "with AWSBatchExecutor(...)" '
                         'around apply(): give it that.'.format(', '.join(options)))
    return (_entered[-1], False) if _entered else (AWSBatchExecutor(count, **options), True)


def _share(self, data):
    token = self._channel.folder + 'shared-' + hashlib.sha256(data).hexdigest()
    self._channel.s3.put_object(Bucket=self._channel.bucket, Key=token, Body=data)
    return token


@functools.lru_cache(maxsize=4)
def shared(token):
    return _channel_of_worker.fetch(token, token.rpartition('-')[2])


AWSBatchExecutor.share = _share
AWSBatchExecutor.__enter__ = lambda self: _entered.append(self) or self
AWSBatchExecutor.__exit__ = lambda self, kind, *_: (_entered.remove(self), self.shutdown(cancel_futures=kind is not None))[2:]
# END OF STUB


# ---------------------------------------------------------------------------------------------
# RIOS 1.4: a job manager; first what it shares with RIOS 2
# ---------------------------------------------------------------------------------------------

def _from_rios(module, name):
    """A class of RIOS to build on; object where there is none, and in a worker, which starts sooner so."""
    try:
        return object if 'RIOSRun' in os.environ else getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return object


@contextlib.contextmanager
def _known_rios():
    """Calls into RIOS inside the block that do not fit this RIOS any more are told as such."""
    try:
        yield
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
        ours = innermost.f_code.co_filename == __file__
        if not ours and not str(getattr(error, 'name', '')).startswith('rios.'):
            raise           # RIOS itself stumbles over something, or is not in the worker's image
        import rios
        raise AWSBatchException('RIOS {} has changed what rios_awsbatch {} builds on: {!r}. Get a newer one, '
                                'or RIOS 2.0.9.'.format(rios.__version__, __version__, error)) from error


class _Function:
    """
    A user function with all that is the same for its blocks. It travels once, and workers keep it.

    Each block starts with the caller's otherArgs. One that does not change it leaves it to the next.
    """
    def __init__(self, executor, userFunction, otherArgs):
        with contextlib.suppress(AttributeError):
            del otherArgs.otherArgsList         # of an earlier apply()
        self.__name__, self.userFunction = _name(userFunction), userFunction
        self.token = self.args = None
        self.given = None if otherArgs is None else executor.share(_pickled(otherArgs, 'otherArgs'))

    def __reduce__(self):       # once as it is, and with each block where that is
        return (_kept, (self.token,)) if self.token else (copyreg.__newobj__, (type(self),), vars(self))

    def call(self, *params):
        """Call the user function; the pickle of otherArgs if that has changed, else None."""
        if self.given is None:
            self.userFunction(*params)
            return None
        if self.args is None:
            self.args = pickle.loads(shared(self.given))
            self.digest = _digest(self.args)
        args, self.args = self.args, None
        self.userFunction(*params, args)
        if _digest(args) != self.digest:
            return _pickled(args, 'otherArgs, as the user function leaves it,')
        self.args = args
        return None


@functools.lru_cache(maxsize=2)
def _kept(token):
    return pickle.loads(shared(token))


def _digest(thing):
    """A digest of what would travel, without a copy of the arrays in it; None if it cannot travel."""
    buffers = []
    try:
        digest = hashlib.sha256(cloudpickle.dumps(thing, protocol=5, buffer_callback=buffers.append))
    except Exception:
        return None
    for buffer in buffers:
        digest.update(buffer.raw())
    return digest.digest()


class _Run:
    """One apply(): the executor, the blocks that it has, and the copies of otherArgs that they changed."""
    def __init__(self, workers, **options):
        self.executor, own = _executor_for(workers, **options)
        self.blocks, self.copies, self.function = {}, {}, None      # future to block, block to copy
        # By itself too, as RIOS does not tell a job manager that something else has failed.
        self.end = weakref.finalize(self, self._end, self.executor if own else None, self.blocks)

    @staticmethod
    def _end(executor, blocks):
        if executor:
            executor.shutdown(cancel_futures=True)
        for future in list(blocks):
            future.cancel()

    def begin(self, function, otherArgs):
        self.function, self.otherArgs = function, otherArgs
        function.token = self.executor.share(_pickled(function, 'The function {}'.format(function.__name__)))

    def submit(self, block, *args):
        """Send a block, which is anything that sorts; its future."""
        future = self.executor.submit(self.function, *args)
        self.blocks[future] = block
        return future

    def result(self, future):
        result, changed = future.result()
        block = self.blocks.pop(future)
        if changed is not None:
            if not self.copies:
                log.warning('The user function changes otherArgs. Each block has a copy of its own, and what '
                            'apply() was given stays as it is. The changed copies will be in the list '
                            'otherArgs.otherArgsList: sum(each.total for each in otherArgs.otherArgsList).')
            self.copies[block] = pickle.loads(changed)
        return result

    def give_copies(self):
        """Give the caller the changed copies of otherArgs, in the order of the blocks (list)."""
        copies = [self.copies[block] for block in sorted(self.copies)]
        if copies:
            with contextlib.suppress(AttributeError):
                self.otherArgs.otherArgsList = copies
        return copies


# RIOS takes the class that was defined last, so its own retired one of the same name comes first.
_from_rios('rios.parallel.aws.batch', 'AWSBatchJobManager')


class _Rios1Function(_Function):
    def __call__(self, label, jobInfo):
        params = jobInfo.getFunctionParams()
        changed = self.call(*params)
        return jobInfo.getFunctionResult(params), changed


class AWSBatchJobManager(_from_rios('rios.parallel.jobmanager', 'JobManager')):
    """
    Computes the blocks of RIOS 1.4 on AWS Batch; RIOS makes it for the job manager type 'AWSBatch'.

    setNumThreads(n) means n workers, which compute all blocks; in ``with AWSBatchExecutor(n):``, those do.
    Each block starts with the caller's otherArgs; the copies that the user function changed are in the list
    otherArgs.otherArgsList when apply() returns, in the order of the blocks. Raises as AWSBatchExecutor.
    """
    jobMgrType = 'AWSBatch'

    def __init__(self, numSubJobs):
        self.numSubJobs, self.tempdir = numSubJobs, '.'
        self._run, self._rounds = _Run(numSubJobs), collections.deque()     # of jobs not gathered

    def runSubJobs(self, function, fnInputs):
        """
        Compute a round of blocks (fnInputs, a RIOS JobInfo for each); a list of outputs, in order.

        RIOS writes blocks in the order in which it gets them. So apply() is given them ROUNDS_AHEAD rounds
        later, and all with its last round: workers always have a next block. Raises what the user function
        raised, from its traceback there, or as :meth:`AWSBatchExecutor.submit`; the run has ended then.
        """
        try:
            self._rounds.append([self.startOneJob(function, jobInfo) for jobInfo in fnInputs])
            outputs, last = [], fnInputs[-1]
            more = type(last).__module__ == 'rios.applier' and not last.info.isLastBlock()
            while len(self._rounds) > (ROUNDS_AHEAD if more else 0):
                outputs += self.gatherAllOutputs(self._rounds.popleft())
            return outputs
        except BaseException:
            self._run.end()
            raise

    def startOneJob(self, userFunc, jobInfo):
        """Send one block; a job (Future) for gatherAllOutputs()."""
        jobInfo = copy.copy(jobInfo.prepareForPickling())
        otherArgs, jobInfo.otherargs = getattr(jobInfo, 'otherargs', None), None
        if self._run.function is None or self._run.function.userFunction is not userFunc:
            self._run.begin(_Rios1Function(self._run.executor, userFunc, otherArgs), otherArgs)
        info = getattr(jobInfo, 'info', None)
        block = getattr(info, 'yblock', 0), getattr(info, 'xblock', 0)
        return self._run.submit(block, 'block {1}, {0}'.format(*block), jobInfo)

    def waitOnJobs(self, jobIDlist):
        """Nothing: gatherAllOutputs() waits."""

    def gatherAllOutputs(self, jobIDlist):
        """Wait for jobs; their outputs, in the order of the list. Raises as :meth:`runSubJobs`."""
        return [self._run.result(job) if isinstance(job, concurrent.futures.Future) else job
                for job in jobIDlist]

    def finalise(self):
        """End the run, when RIOS has processed all blocks."""
        self._run.end()
        if self._rounds:
            raise AWSBatchException('RIOS has ended, but some of the last blocks are not written.')
        self._run.give_copies()


# ---------------------------------------------------------------------------------------------
# RIOS 2: a compute-worker manager
# ---------------------------------------------------------------------------------------------

_RiosBlock = collections.namedtuple('Block', 'top left nrows ncols')


def _is_remote(file):
    """Whether a worker can read a file of RIOS as well as the main script can."""
    return any(mark in file[2] for mark in (
        '/vsis3', '/vsicurl', '/vsigs', '/vsiaz', '/vsiadls', '/vsioss', '/vsiswift', 'http://', 'https://'))


class _Rios2Function(_Function):
    """Computes a block of RIOS 2 in a worker. `inputs` is None when the worker reads it."""
    def __init__(self, executor, given):
        super().__init__(executor, given['userFunction'], given['otherArgs'])
        self.infiles, self.allInfo, self.grid = given['infiles'], given['allInfo'], given['workinggrid']
        self.controls, self.threads = copy.copy(given['controls']), None
        self.controls.concurrency = copy.copy(self.controls.concurrency)
        self.controls.concurrency.numReadWorkers = self.controls.concurrency.numReadWorkers or 1
        self.controls.progress = self.controls.loggingstream = None     # they belong to the main script
        from osgeo import osr           # of vectors in allInfo; GDAL does not know how to pickle it
        copyreg.pickle(osr.SpatialReference, lambda system: (
            osr.SpatialReference, (system.ExportToWkt(['FORMAT=WKT2']),), system.GetAxisMappingStrategy(),
            None, None, osr.SpatialReference.SetAxisMappingStrategy))

    def __call__(self, block, inputs):
        from osgeo import gdal
        gdal.UseExceptions()        # as in applier.apply()
        with _known_rios():
            from rios.readerinfo import makeReaderInfo
            from rios.structures import ApplierBlockDefn, BlockAssociations, Timers
            blockDefn, outputs, timings = ApplierBlockDefn(*block), BlockAssociations(), Timers()
            if inputs is None:
                with timings.interval('reading'):
                    inputs = self.read(blockDefn)
            info = makeReaderInfo(self.grid, blockDefn, self.controls, self.infiles, inputs, self.allInfo)
        with timings.interval('userfunction'):
            changed = self.call(info, inputs, outputs)
        return (outputs, timings), changed

    def read(self, blockDefn):
        from rios.structures import BlockAssociations, RasterizationMgr, TempfileManager
        if self.threads is None:
            self.threads = concurrent.futures.ThreadPoolExecutor(self.controls.concurrency.numReadWorkers)
            self.opened = threading.local()         # GDAL objects must not be shared by threads
            self.rasterizeMgr, self.tmpfileMgr = RasterizationMgr(), TempfileManager(None)
        inputs, files = BlockAssociations(self.infiles), list(self.infiles)
        for file, array in zip(files, self.threads.map(functools.partial(self.read_one, blockDefn), files)):
            inputs[file[:2]] = array
        return inputs

    def read_one(self, blockDefn, file):
        from rios.imagereader import readBlockOneFile
        try:
            cache = vars(self.opened).setdefault('cache', {})
            return readBlockOneFile(blockDefn, *file, cache, self.controls, self.tmpfileMgr,
                                    self.rasterizeMgr, self.grid, self.allInfo)
        except RuntimeError as error:
            if _is_remote(file):
                raise
            raise AWSBatchException(
                'A worker cannot read "{}" ({}): it has none of the files of your computer. Put it on S3, or '
                'leave computeWorkersRead out, and the main script reads.'.format(file[2], error)) from error


class AWSBatchComputeWorkerMgr(_from_rios('rios.computemanager', 'ComputeWorkerManager')):
    """
    Computes the blocks of RIOS 2 on AWS Batch; RIOS makes it for computeWorkerKind='CW_AWSBATCH'. otherArgs
    is as with RIOS 1.4, and the copies are in otherArgsList of what apply() returns, too.
    """
    computeWorkerKind = 'CW_AWSBATCH'
    computeWorkersRead_default = 'auto'     # true for RIOS, so that it leaves the reading to us

    def __init__(self):
        self.run = self.buffer = self.readers = None
        self.outObjList, self.answers = [], queue.SimpleQueue()     # (blockDefn, future) when done

    def startWorkers(self, numWorkers=None, **given):
        """
        Start workers, or use those of ``with AWSBatchExecutor(n):``; return when the first is up. Raises
        ValueError for a ConcurrencyStyle that makes no sense; AWSBatchException as that class, or when no
        worker was up within computeBarrierTimeout, or when RIOS has changed too much.
        """
        style = given['controls'].concurrency
        try:
            self.run = _Run(numWorkers, **self._options(style))
            with _known_rios():
                self._start(style, given)
            if not self.run.executor.wait_for_workers(1, style.computeBarrierTimeout):
                raise AWSBatchException('No worker was up within {} seconds (computeBarrierTimeout). {}'
                                        .format(style.computeBarrierTimeout, RUNNABLE_CAUSES))
        except BaseException:
            self.shutdown()         # RIOS does it for an Exception, but not when the script is interrupted
            raise

    def _start(self, style, given):
        from rios.structures import Timers
        self.timings, self.exceptionQue, self.buffer = Timers(), given['exceptionQue'], given['inBlockBuffer']
        self.run.begin(_Rios2Function(self.run.executor, given), given['otherArgs'])
        if style.computeWorkersRead == 'auto' and not all(map(_is_remote, given['infiles'])):
            self._read_here(given)
        if self.buffer is not None:     # RIOS would give up when nothing is taken from it for some seconds
            self.buffer.insertTimeout, self.buffer.popTimeout = None, 0
        given['outBlockBuffer'].popNextBlock                        # RIOS takes the next block to write ...
        given['outBlockBuffer'].popNextBlock = self._next_block     # ... from us
        self.left, self.most = collections.deque(given['blockList']), 4 * self.run.executor.stats()['workers']
        self._send()

    @staticmethod
    def _options(style):
        """Look at the parameters of a ConcurrencyStyle; options of AWSBatchExecutor (dict)."""
        options, usual = getattr(style, 'computeWorkerExtraParams', None) or {}, type(style)()
        known = inspect.getfullargspec(AWSBatchExecutor).kwonlyargs
        for name in set(options).difference(known):
            raise ValueError('computeWorkerExtraParams of CW_AWSBATCH may have {}, not {}.'.format(
                ', '.join(known), name))
        for name in ('haveSharedTemp', 'readBufferInsertTimeout', 'readBufferPopTimeout',
                     'computeBufferInsertTimeout', 'computeBufferPopTimeout'):
            if getattr(style, name, None) != getattr(usual, name, None):
                log.debug('CW_AWSBATCH does not need %s=%r', name, getattr(style, name))
        return options

    def _read_here(self, given):
        """Have RIOS read in the main script, as it does for computeWorkersRead=False."""
        from rios.imagereader import ReadWorkerMgr
        from rios.structures import BlockBuffer, RasterizationMgr
        controls, self.readers = self.run.function.controls, ReadWorkerMgr()
        self.buffer = BlockBuffer(given['infiles'], controls.concurrency.numReadWorkers, None, 0, 'read')
        self.readers.startReadWorkers(
            given['blockList'], given['infiles'], given['allInfo'], controls, given['tmpfileMgr'],
            RasterizationMgr(), given['workinggrid'], self.buffer, self.timings, self.exceptionQue)

    def _send(self):
        """Send blocks while there is room; whether the readers are ahead of the workers."""
        from rios.rioserrors import TimeoutError
        while self.left and len(self.run.blocks) < self.most:
            blockDefn, inputs = self.left[0], None
            if self.buffer is not None:
                try:
                    blockDefn, inputs = self.buffer.popNextBlock()      # does not wait
                except TimeoutError:
                    return False
            self.left.popleft()
            block = _RiosBlock(blockDefn.top, blockDefn.left, blockDefn.nrows, blockDefn.ncols)
            self.run.submit(block, block, inputs).add_done_callback(
                lambda future, blockDefn=blockDefn: self.answers.put((blockDefn, future)))
        return True

    def _next_block(self):
        """What RIOS writes next (blockDefn, outputs). On an error it raises the first in exceptionQue."""
        from rios.structures import WorkerErrorRecord
        while True:
            try:
                blockDefn, future = self.answers.get(timeout=1 if self._send() else 0.02)
                outputs, timings = self.run.result(future)
                break
            except queue.Empty:
                if self.exceptionQue.qsize():       # of RIOS's readers
                    raise AWSBatchException('A block could not be read.') from None
            except Exception as error:
                self.exceptionQue.put(WorkerErrorRecord(error, 'compute'))
                raise
        self.timings.merge(timings)
        return blockDefn, outputs

    def shutdown(self):
        """End the run. RIOS calls this after the last block, and after any error."""
        if self.buffer is not None:         # readers would wait for room in it for ever
            self.buffer.insertTimeout, self.buffer.popTimeout = 1, 0
            with contextlib.suppress(Exception):
                while True:
                    self.buffer.popNextBlock()
        if self.readers is not None:
            self.readers.shutdown()
        if self.run is not None:
            self.run.end()
            self.outObjList = self.run.give_copies() + [self.timings]
