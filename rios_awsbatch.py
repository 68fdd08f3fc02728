"""
Run per-block raster work on AWS Batch.

A block of raster work is a call: a function and its arguments. This module sends such calls to worker
containers on AWS Batch and brings the results back as futures, so that AWS Batch looks like any other
Python executor::

    import rios_awsbatch

    with rios_awsbatch.AWSBatchExecutor(max_workers=8) as executor:
        for result in executor.map(myFunction, blocks, buffersize=32):
            ...

Users of RIOS (rioshome.org) import this module and choose AWS Batch; all else in their script stays::

    import rios_awsbatch
    controls.setNumThreads(4)                  # RIOS 1.4, and RIOS 2.0
    controls.setJobManagerType('AWSBatch')

    controls.setConcurrencyStyle(applier.ConcurrencyStyle(     # RIOS 2
        computeWorkerKind='CW_AWSBATCH', numComputeWorkers=4))

What AWS needs for it is one CloudFormation stack, which ``scripts/create.sh`` creates from ``batch.yaml``,
and one container image, which ``scripts/build.sh`` builds. ``worker.py`` is what runs in that container.

A run has two SQS queues, a folder ``runs/<run id>/`` in the stack's bucket, and its Batch jobs; nothing is
shared with any other run. Its life, of which :class:`_Run` is the code, and that of a call::

    open ── shutdown(), end of the with statement, of the script, of all references ─▶ closing
     │                                                                                   │
     └─ no worker is left ─▶ broken: every future fails ── shutdown() ─▶ ────────────────┤
                                                               no call is left, or there │
    ended ◀─── workers stopped, queues and objects deleted ◀────────────── is a hurry ───┘

    submit ─▶ outbox ─▶ in queue ─▶ worker ─▶ out queue ─▶ future settled by the first answer
                │          │          │
                └──────────┴──────────┴── future.cancel(): taken back, or its answer dropped

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
import inspect
import io
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

import botocore.exceptions       # boto3 takes long, and what computes blocks does without
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
LEASE_SECONDS = 180         # workers look every quarter of it whether the main script has lived since
WATCH_SECONDS = 5           # how often the Batch jobs are looked at
TELL_SECONDS = 300          # how often it is said that no worker is up yet, or that AWS is still away
VISIBILITY_SECONDS = 30     # a dead worker's block is given to another one after this
STOP_SECONDS = 5            # what workers get to say goodbye before they are terminated
ROUNDS_AHEAD = 3            # rounds of RIOS 1.4 that are computed before RIOS waits for the first of them
# How often things are tried.
MAX_TRIES = 3               # a call that ended the process that computed it this often is given up
MAX_RECEIVES = 12           # ... and so is one whose whole worker was gone each time
MAX_KILLED = 10             # a run of n workers breaks off when n + 10 times so many were killed in a row
FAILED_COUNTS = 4           # ... where one that ended otherwise counts for so many
# How much may be on its way. SQS charges each 64 KiB of a message as a request, S3 a PUT like 14 of them, so
# a message of up to 8 is cheaper, and a ninth is worth the two round trips that it saves.
INLINE_BYTES = 9 * 65536 - 2048
PACK_BYTES = 32768          # what is smaller is not compressed
FUNCTION_BYTES = 4096       # a function that is no larger travels with each call, which saves round trips
OUTBOX_BYTES = 256 * 2**20  # submit() waits while this much is still to be sent
PREPARERS = 4               # threads that compress and upload calls ahead of the one that sends them
COLLECTORS = 2              # threads that receive results: more get fewer of them per request
HEAVY_MODULES = ('numpy', 'osgeo.gdal_array', 'rios.applier')   # imported first, if the main script has them

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


class AWSBatchException(Exception):
    """Something about the stack, the run or a block is wrong; the message says what to do."""


class BrokenAWSBatchExecutor(concurrent.futures.BrokenExecutor, AWSBatchException):
    """No worker can finish the outstanding calls any more."""


class _RemoteTraceback(Exception):
    """The cause of an exception that was raised in a worker: its traceback there, as text."""
    def __str__(self):
        return f'\n"""\n{self.args[0]}"""'


# ---- AWS, in the words of somebody who does not know it ----------------------------------------------

AWS_ERRORS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
# What AWS, or botocore in the name of an exception, calls what it means.
_EXPIRED = {'ExpiredToken', 'ExpiredTokenException', 'RequestExpired', 'TokenRefreshRequired', 'SSOError',
            'TokenRetrievalError', 'CredentialRetrievalError'}
_THROTTLED = {'Throttling', 'ThrottlingException', 'TooManyRequestsException', 'SlowDown',
              'RequestThrottled', 'RequestLimitExceeded', 'RequestThrottledException'}
_AWAY = {'HTTPClientError', 'ConnectionError'}
_CUT = {'IncompleteReadError', 'ReadTimeoutError', 'ResponseStreamingError'}
_NO_QUEUE = {'AWS.SimpleQueueService.NonExistentQueue', 'QueueDoesNotExist'}
_NO_OBJECT = {'NoSuchKey', '404', 'NotFound', 'AccessDenied', '403', 'Forbidden'}  # or not to be seen
_LOG_IN = ('Run "aws configure" (or "aws sso login"), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or '
           'AWS_PROFILE.')
_MEANINGS = (
    ({'ProfileNotFound'}, '{}. AWS_PROFILE names it; "aws configure list-profiles" shows those you have.'),
    (_EXPIRED, 'Your AWS login has expired ({}). Log in again. ' + _LOG_IN),
    ({'NoCredentialsError', 'PartialCredentialsError'}, 'No AWS credentials were found ({}). ' + _LOG_IN),
    ({'InvalidClientTokenId', 'UnrecognizedClientException', 'InvalidAccessKeyId', 'SignatureDoesNotMatch',
      'InvalidSignatureException', 'AuthFailure'}, 'AWS does not accept your credentials ({}). ' + _LOG_IN),
    ({'AccessDenied', 'AccessDeniedException', 'UnauthorizedOperation', 'AuthorizationError',
      'AWS.SimpleQueueService.AccessDenied'},
     'AWS does not allow you this ({}). Ask whoever manages your AWS account to attach the policy of the '
     'stack\'s output BatchMainPolicyArn to your user or role.'),
    ({'NoSuchBucket'}, '{}. "scripts/delete.sh" and "scripts/create.sh" make the stack anew.'),
    (_THROTTLED, 'AWS refuses more requests for the moment ({}). Try again in a minute; if it stays so, '
                 'another program in the same account makes too many requests.'),
    (_AWAY | {'InvalidRegionError'}, 'AWS cannot be reached ({}). Check the network connection, a proxy, and '
                                     'that RIOS_AWSBATCH_REGION ("' + REGION + '") is the region you mean.'))
RUNNABLE_CAUSES = (
    'Usual causes: the account\'s EC2 vCPU quota or the stack\'s maximum number of jobs is used up by other '
    'jobs, no instance type of the stack is free (above all with Spot), or a job asks for more memory or '
    'vCPUs than any of them has. "scripts/status.sh" shows the jobs; "scripts/modify.sh" changes --maxjobs, '
    '--instancetype, --mem and --vcpus.')
# What Batch says of a job that has ended, and what to do about it.
_ADVICE = (
    ('OutOfMemory', 'It needed more memory than its job has: use smaller blocks, or "scripts/modify.sh '
                    '--mem".'),
    ('CannotPullContainer', 'The image is not in the repository: "scripts/build.sh" builds and pushes it.'),
    ('exec format error', 'The image is for another kind of processor: "scripts/build.sh --platform".'),
    ('Host EC2', 'Its instance was taken away, as happens to Spot instances.'),
    ('timeout', 'The stack\'s job time-out ended it: "scripts/modify.sh --timeout".'))


def is_one_of(error, names):
    """Whether an error of botocore, by its code or as an exception, is one of those that are named."""
    code = getattr(error, 'response', {}).get('Error', {}).get('Code', '')
    return not names.isdisjoint([code, *(kind.__name__ for kind in type(error).__mro__)])


def is_temporary(error):
    """Whether an error of botocore (a network that is away, a throttle, a 5xx) may pass."""
    status = getattr(error, 'response', {}).get('ResponseMetadata', {}).get('HTTPStatusCode', 0)
    return status >= 500 or is_one_of(error, _AWAY | _THROTTLED)


def explain(error, doing):
    """An :class:`AWSBatchException` that a user can act on, for one of botocore while `doing` something."""
    meaning = next((text for names, text in _MEANINGS if is_one_of(error, names)), '{}').format(error)
    return AWSBatchException(f'Error when {doing} (stack {STACK_NAME}, region {REGION}): {meaning}')


@functools.lru_cache(maxsize=None)
def _models():
    import botocore.session
    return botocore.session.get_session().get_component('data_loader')


def new_session():
    """A boto3 session, with the credentials that there are now. What AWS's services can do is read once."""
    import boto3
    import botocore.session
    core = botocore.session.get_session()
    session = boto3.session.Session(botocore_session=core)      # adds a folder to the loader that it finds
    core.register_component('data_loader', _models())
    return session


def make_client(service, requests=None, session=None, region=REGION, attempts=8):
    """A boto3 client for many threads, patient with AWS; `requests` (Counter) counts what it asks for."""
    import botocore.config
    # What travels has a SHA-256 that is checked, so a CRC32 besides is only time. Known since botocore 1.36.
    checksums = {name: 'when_required' for name in (
        'request_checksum_calculation', 'response_checksum_validation')
        if name in botocore.config.Config.OPTION_DEFAULTS}
    config = botocore.config.Config(
        retries={'mode': 'standard', 'total_max_attempts': attempts}, max_pool_connections=32,
        connect_timeout=10, read_timeout=LONG_POLL_SECONDS + 20,
        user_agent='rios_awsbatch/' + __version__,      # botocore makes up its own for every request
        **checksums)
    client = (session or new_session()).client(service, region_name=region, config=config)
    if requests is not None:
        client.meta.events.register('before-send.' + service, lambda event_name, **kwargs: requests.update(
            [event_name.partition('.')[2]]))
    return client


def getStackOutputs():
    """
    Return the outputs of the stack, which name everything a run uses (dict of str), as ``batch.yaml`` says.

    Raises:
        AWSBatchException: there is no such stack, it is not ready, it is not one of ours, or AWS
            could not be asked.
    """
    where = f'stack "{STACK_NAME}" in region {REGION}'
    variables = 'RIOS_AWSBATCH_STACK and RIOS_AWSBATCH_REGION say which stack is used'
    try:
        # Somebody waits for it, and nothing is lost: so it is soon said that AWS cannot be reached.
        client = make_client('cloudformation', attempts=3)
        stack = client.describe_stacks(StackName=STACK_NAME)['Stacks'][0]
    except AWS_ERRORS as error:
        if is_one_of(error, {'ValidationError'}):
            raise AWSBatchException(
                f'There is no {where}. {variables}; "scripts/create.sh --wait" creates one.') from None
        raise explain(error, 'reading the stack outputs') from error
    status = stack['StackStatus']
    if status in ('CREATE_IN_PROGRESS', 'REVIEW_IN_PROGRESS'):
        raise AWSBatchException(f'The {where} is still being created. Wait until "scripts/status.sh" says '
                                'CREATE_COMPLETE, and try again.')
    if status.startswith(('ROLLBACK', 'DELETE', 'CREATE_FAILED')):
        raise AWSBatchException(f'The {where} cannot be used: it is in state {status}. Delete it with '
                                '"scripts/delete.sh --wait" and create it again with "scripts/create.sh '
                                '--wait".')
    outputs = {out['OutputKey']: out['OutputValue'] for out in stack.get('Outputs', [])}
    missing = ' and no '.join(name for name in (
        'BatchBucket', 'BatchProcessingJobQueueName', 'BatchMaxJobs', 'BatchProcessingJobDefinitionName')
        if name not in outputs)
    if missing:
        raise AWSBatchException(
            f'The {where} has no output {missing}, so it was not created from this version\'s batch.yaml. '
            f'{variables}; "scripts/modify.sh" updates an older stack of rios_awsbatch.')
    return outputs


def _require_image(stack):
    """Raise AWSBatchException where nobody has built the image: to find that out would cost an instance."""
    repository = stack.get('BatchECR', '').rpartition('/')[2]
    try:
        make_client('ecr').describe_images(repositoryName=repository, imageIds=[{'imageTag': 'latest'}])
    except AWS_ERRORS as error:
        if is_one_of(error, {'ImageNotFoundException', 'RepositoryNotFoundException'}):
            raise AWSBatchException(
                f'There is no image for the workers in the repository {repository} of stack {STACK_NAME} '
                'yet. "scripts/build.sh" builds and pushes it.') from None
        log.debug('Whether there is an image cannot be seen: %s', error)     # Batch will say


# ---- What travels between the main script and its workers --------------------------------------------

class Refused(Exception):
    """A message or an object that this run did not make. It is never unpickled."""


def _reduce_cached(fn):
    """A function of the script with a cache, which cloudpickle takes for one that workers can import."""
    module = sys.modules.get(fn.__module__)
    by_value = {'__main__', '__mp_main__'} | cloudpickle.list_registry_pickle_by_value()
    parents = itertools.accumulate(fn.__module__.split('.'), '{}.{}'.format)
    if getattr(module, fn.__qualname__, None) is fn and by_value.isdisjoint(parents):
        return fn.__reduce__()
    return _cached, (fn.__wrapped__, fn.cache_parameters())


def _cached(wrapped, parameters):
    return functools.lru_cache(**parameters)(wrapped)


class _Pickler(cloudpickle.CloudPickler):
    dispatch_table = collections.ChainMap(
        {type(_cached(len, {})): _reduce_cached}, cloudpickle.CloudPickler.dispatch_table)


class _Results(pickle.Unpickler):
    """Unpickles results. A class of the script that comes back with one stays as it is here."""
    def __init__(self, file):
        super().__init__(file)
        self.known = set(cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.keyrefs())

    def find_class(self, module, name):
        found, known = super().find_class(module, name), self.known     # the unpickler keeps what it gives
        if (module, name) != ('cloudpickle.cloudpickle', '_class_setstate'):
            return found
        return lambda cls, state: cls if weakref.ref(cls) in known else found(cls, state)


def dumps(thing):
    """Pickle anything that cloudpickle can, lambdas and functions of the script included."""
    # In a child that multiprocessing has spawned, this is the name of the main script.
    main = sys.modules.get('__mp_main__')
    if main is not None and main.__name__ not in cloudpickle.list_registry_pickle_by_value():
        cloudpickle.register_pickle_by_value(main)
    with io.BytesIO() as file:
        _Pickler(file, protocol=5).dump(thing)
        return file.getvalue()


def _pickled(thing, what):
    try:
        return dumps(thing)
    except Exception as error:
        raise AWSBatchException(
            f'{what} cannot be pickled, so it cannot travel to a worker: {_told(error)}. Open files, GDAL '
            'datasets, locks and connections must be made inside the function.') from error


def _told(error):
    """Type and text of any exception, also of one whose __str__ fails (str)."""
    try:
        return f'{type(error).__name__}: {error}'
    except Exception:
        return type(error).__name__


def pack(data):
    """
    Compress a pickle of pixels; the same bytes if that does not make them smaller, or not a sample of them.

    The bytes are sorted by their place in four first, and only runs and frequent bytes are looked for: twice
    as fast as zlib's level 1 on what satellites see, and as small.
    """
    def packed(data):
        packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
        return packer.compress(b''.join(data[place::4] for place in range(4))) + packer.flush()

    middle = len(data) // 2
    sample = data[middle:middle + PACK_BYTES // 4]
    if not PACK_BYTES <= len(data) <= 4 * INLINE_BYTES or len(packed(sample)) > 0.95 * len(sample):
        return data
    return min(data, packed(data), key=len)


def unpack(packed):
    """What :func:`pack` has made smaller."""
    places = io.BytesIO(zlib.decompress(packed))
    data = bytearray(len(places.getbuffer()))
    for place in range(4):
        data[place::4] = places.read(len(range(place, len(data), 4)))
    return bytes(data)


class Channel:
    """
    The two queues and the folder of one run, as the main script and the workers see them.

    The body of a message is a signature and a header in JSON, a line each; its payload is the binary
    attribute `p`, which is counted and charged as it is, while the body would want it in base64. The
    signature (HMAC-SHA256 with the secret key of the run) covers the header; the header names the run, the
    direction and the SHA-256 of the payload. So a payload that was forged, cut short, or taken from another
    run is refused before it is unpickled, wherever it lies: one larger than INLINE_BYTES is an object in the
    run's folder, which the header names.
    """
    def __init__(self, run, key, bucket, in_queue, out_queue, region):
        self.run, self.key, self.bucket, self.region = run, key, bucket, region
        self.in_queue, self.out_queue = in_queue, out_queue
        self.folder, self.requests = f'runs/{run}/', collections.Counter()
        self.connect()

    def connect(self):
        """Make the clients, with the credentials that there are now."""
        self.session = new_session()
        self.sqs, self.s3 = self.client('sqs'), self.client('s3')

    def client(self, service):
        return make_client(service, self.requests, self.session, self.region)

    def sign(self, text):
        return hmac.new(self.key, text.encode(), 'sha256').hexdigest()

    def seal(self, to, header, payload=b''):
        """
        A message that 'main' or 'worker' may open, and its complete header (dict, dict). The header has a
        'kind', and what else goes into JSON; the payload is a pickle, and put in the bucket if it is large.
        """
        packed = pack(payload)
        digest = hashlib.sha256(packed).hexdigest()
        header = dict(header, run=self.run, to=to, sha256=digest, bytes=len(packed),
                      packed=packed is not payload)
        if len(packed) > INLINE_BYTES:
            header['object'] = f'{self.folder}{header["kind"]}-{header.get("id")}-{digest}'
            self.s3.put_object(Bucket=self.bucket, Key=header['object'], Body=packed)
            if 'uploaded' in header:
                header['uploaded'] = time.time()
            packed = b''
        text = json.dumps(header, separators=(',', ':'))
        message = {'MessageBody': f'{self.sign(text)}\n{text}'}
        if packed:
            message['MessageAttributes'] = {'p': {'DataType': 'Binary', 'BinaryValue': packed}}
        return message, header

    def open(self, to, message):
        """Check a message that was received; its header. Refused where this run has made none such."""
        signature, _, text = message['Body'].partition('\n')
        if not hmac.compare_digest(signature.encode(), self.sign(text).encode()):
            raise Refused('its signature is wrong')
        header = json.loads(text)
        if (header['run'], header['to']) != (self.run, to):
            raise Refused(f'it is for the {header["to"]} of run {header["run"]}')
        return header

    def payload(self, header, message):
        """The pickle of a message with this header (bytes). Refused where it is not what was signed."""
        if 'object' in header:
            data = self.fetch(header['object'], header['sha256'])
        else:
            data = _checked(message.get('MessageAttributes', {}).get('p', {}).get('BinaryValue', b''),
                            header['sha256'], 'its payload')
        return unpack(data) if header['packed'] else data

    def fetch(self, name, digest):
        """Read an object whose SHA-256 is known (bytes)."""
        for attempt in itertools.count(1):      # botocore retries requests, but not their bodies
            try:
                data = self.s3.get_object(Bucket=self.bucket, Key=name)['Body'].read()
                return _checked(data, digest, 'object ' + name)
            except AWS_ERRORS as error:
                if is_one_of(error, _NO_OBJECT):
                    raise Refused(f'object {name} is not there') from error
                if attempt == 5 or not is_one_of(error, _CUT):
                    raise

    def blob(self, digest):
        """Where something that calls share lies: a function, for instance."""
        return f'{self.folder}shared-{digest}'

    def send(self, queue_url, messages):
        """Send messages (any number) in as few requests as AWS allows; all are sent when this returns."""
        entries, pause = [dict(message, Id=str(n)) for n, message in enumerate(messages)], 0.1
        while entries:
            some, size = [], 0
            while entries and len(some) < BATCH_ENTRIES and size + size_of(entries[0]) <= MESSAGE_BYTES:
                size += size_of(entries[0])
                some.append(entries.pop(0))
            failed = self.sqs.send_message_batch(QueueUrl=queue_url, Entries=some).get('Failed', [])
            for entry in failed:
                if entry.get('SenderFault'):
                    raise AWSBatchException(
                        f'AWS SQS refused a message: {entry.get("Code")} {entry.get("Message", "")}')
            if failed:
                names = {entry['Id'] for entry in failed}
                entries[:0] = [entry for entry in some if entry['Id'] in names]
                time.sleep(pause)
                pause = min(2 * pause, 5)

    def receive(self, queue_url, wait, most=BATCH_ENTRIES):
        """Wait up to `wait` seconds for at least one message; a list of SQS's messages."""
        return self.sqs.receive_message(
            QueueUrl=queue_url, MaxNumberOfMessages=most, WaitTimeSeconds=wait, MessageAttributeNames=['p'],
            AttributeNames=['ApproximateReceiveCount']).get('Messages', [])

    def delete(self, queue_url, receipts):
        """Delete received messages, given their receipt handles (any number)."""
        self._each(self.sqs.delete_message_batch, queue_url, receipts)

    def hide(self, receipts, seconds):
        """Hide received calls from other workers for so long; 0 gives them back, and SQS counts it."""
        self._each(self.sqs.change_message_visibility_batch, self.in_queue, receipts,
                   VisibilityTimeout=seconds)

    def give_back(self, messages):
        """Let others have calls that were received: as new messages, since SQS counts how often one was."""
        self.send(self.in_queue, [
            {'MessageBody': message['Body'], 'MessageAttributes': message.get('MessageAttributes', {})}
            for message in messages])
        self.delete(self.in_queue, [message['ReceiptHandle'] for message in messages])

    @staticmethod
    def _each(request, queue_url, receipts, **more):
        for some in batches(receipts, BATCH_ENTRIES):
            request(QueueUrl=queue_url, Entries=[
                dict(more, Id=str(n), ReceiptHandle=receipt) for n, receipt in enumerate(some)])


class Mailbox:
    """
    A queue.SimpleQueue for one reader, whose time-out holds when a signal comes meanwhile. After one that
    comes past the time-out, CPython's waits for ever (3.11; the process was stopped, and terminated then).
    """
    def __init__(self):
        self.items, self.bell = collections.deque(), threading.Lock()

    def put(self, item):
        self.items.append(item)
        with contextlib.suppress(RuntimeError):     # it rings already
            self.bell.release()

    def get(self, timeout=None):
        """The next item; queue.Empty if there is none for so many seconds."""
        end = time.monotonic() + (timeout or 0)
        while not self.items:
            if not self.bell.acquire(timeout=-1 if timeout is None else max(0, end - time.monotonic())):
                raise queue.Empty
        return self.items.popleft()


def _checked(data, digest, what):
    if hashlib.sha256(data).hexdigest() != digest:
        raise Refused(f'{what} is not what was signed')
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
    of_use = 'rios' in sys.modules or 'RIOSRun' in os.environ       # to the main script, which asks
    for name in ['cloudpickle', 'numpy'] + ['rios'] * of_use:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def mismatch(main, worker):
    """
    A sentence on why pickles cannot travel between two sets of :func:`versions`; None where they can.

    Functions travel as bytecode, which is that of one minor version of Python. numpy 2 renamed the
    module that arrays are unpickled with; 1.26 knows both names. RIOS 2 has other classes than RIOS 1.4.
    """
    for name, count in {'Python': 2, 'rios_awsbatch': 2, 'cloudpickle': 1, 'numpy': 2, 'rios': 1}.items():
        if name in main and name in worker:
            ours, theirs = ([int(part) for part in each[name].split('.')[:count]] for each in (main, worker))
            fit = name == 'numpy' and (ours[0] == theirs[0] or min(ours, theirs) >= [1, 26])
            if ours != theirs and not fit:
                return (f'The main script has {name} {main[name]}, but the workers\' image has {name} '
                        f'{worker[name]}, and calls cannot travel between the two. Build the image again '
                        'with "scripts/build.sh" (BASE_IMAGE and PIP_PACKAGES choose versions), or run the '
                        'main script as a job with "scripts/build.sh --main" and "scripts/submit.sh".')
    return None


def _shared(token):
    """In a worker: what _Run.share() has stored (bytes). It is fetched once."""
    return sys.modules['__main__'].shared(token)        # worker.py


# ---- A run -------------------------------------------------------------------------------------------

class _Call(concurrent.futures.Future):
    """A call, which is the future that the script holds."""
    def __init__(self, number, label, function, payload):
        super().__init__()
        self.id, self.label, self.size = number, label, len(payload)
        self.function, self.payload = function, payload
        self.prepared = threading.Event() if len(payload) > PACK_BYTES else None    # when it is sealed
        self.message = self.bytes = self.object = self.sent = None
        self.queued = time.time()
        self._unclaimed = threading.Lock()

    def claim(self):
        """Whether the caller is to settle it: only the first is, and nobody if it was cancelled."""
        return self._unclaimed.acquire(blocking=False) and self.set_running_or_notify_cancel()


class _Run:
    """
    What an executor has on AWS, and the threads here that serve it; see the top of the module for its life.

    Threads refer to the run and not to its executor, so that an executor that is dropped ends its run.
    """
    def __init__(self, workers, initializer, vcpus, memory, timeout, job_definition):
        self.pid, self.began = os.getpid(), time.time()
        self.id = f'{time.strftime("%Y%m%dT%H%M%S", time.gmtime())}-{secrets.token_hex(4)}'
        # A stack name has no underscore, so these names never begin with another stack's.
        self.name = f'{STACK_NAME}_{self.id}'
        self.report = _open_report(os.environ.get('RIOS_AWSBATCH_REPORT'), self.id)
        self.start_timeout, self.tell_after = _start_timeout(), TELL_SECONDS
        if len(STACK_NAME) > STACK_NAME_CHARS:
            raise AWSBatchException(f'The stack name "{STACK_NAME}" is longer than {STACK_NAME_CHARS} '
                                    'characters, which is too long for the names of its queues.')
        self.stack = getStackOutputs()
        most = int(self.stack['BatchMaxJobs'])
        self.workers, self.vcpus = workers or most, vcpus or self.stack.get('BatchVCPUS')
        if self.workers > most:
            log.warning('%d workers are asked for, but stack %s runs at most %s jobs at a time, so some will '
                        'wait. "scripts/modify.sh --maxjobs %d" raises that.',
                        self.workers, STACK_NAME, most, self.workers)
        _require_image(self.stack)
        self.job = {'jobName': self.name, 'jobQueue': self.stack['BatchProcessingJobQueueName'],
                    'jobDefinition': job_definition or self.stack['BatchProcessingJobDefinitionName']}
        if timeout:
            self.job['timeout'] = {'attemptDurationSeconds': timeout}
        needs = [{'type': kind, 'value': str(value)}
                 for kind, value in (('VCPU', vcpus), ('MEMORY', memory)) if value]
        self.overrides = {'resourceRequirements': needs} if needs else {}
        self.calls = {}                     # the outstanding calls by id
        self.ids = itertools.count(1)
        self.outbox = queue.SimpleQueue()   # calls in the order in which they were submitted; None ends it
        self.large = queue.SimpleQueue()    # those of them that want preparation
        self.backlog = 0                    # bytes in the outbox, more or less
        self.stored = set()                 # digests of what lies in the run's folder for all calls
        self.spent = collections.deque()    # objects of answered calls, to be deleted
        self.revoked = set()                # ids of cancelled calls that are in the queue
        self.wake = Mailbox()               # for the keeper: a cancelled call, or None to have a look
        self.jobs = {}                      # Batch jobs by id: (the worker's number, when it was submitted)
        self.up = set()                     # workers that are up, by their numbers (str)
        self.starts = set()                 # each with when it was started, and started again
        self.quiet = set()                  # workers that have said that they end
        self.ends = collections.deque(maxlen=5)     # what Batch said of the lost ones: (sentence, job)
        self.answers = []                   # the worker of each call that is answered
        self.started = self.lost = self.awaited = 0
        self.killed = self.failed = 0       # workers that have ended since the last answer
        self.doomed = self.closing = self.hurry = False
        self.broken = self.told = self.channel = None
        self.ended = threading.Event()      # the threads stop
        self.clean = threading.Event()      # nothing is left
        threads = [threading.Thread(target=self._guarded, args=(loop,), name='rios_awsbatch', daemon=True)
                   for loop in (self._renew, *[self._prepare] * PREPARERS, self._send, self._keep,
                                *[self._collect] * COLLECTORS)]
        self.writers = []                   # those of them that write objects
        try:
            self._start(initializer, memory)
        except BaseException as error:
            self._clean_up(orderly=False)
            if isinstance(error, AWS_ERRORS):
                raise explain(error, 'starting a run') from error
            raise
        self.writers = threads[:1 + PREPARERS]
        for thread in threads:
            thread.start()
        _runs.add(self)

    def _start(self, initializer, memory):
        self.channel = channel = Channel(
            self.id, secrets.token_bytes(32), self.stack['BatchBucket'], None, None, REGION)
        self.batch = channel.client('batch')
        self._put_lease()
        for name in ('in', 'out'):
            url = channel.sqs.create_queue(
                QueueName=f'{self.name}_{name}',
                Attributes={'VisibilityTimeout': str(VISIBILITY_SECONDS), 'SqsManagedSseEnabled': 'true',
                            'MessageRetentionPeriod': str(RETENTION_SECONDS)},
                tags={'Project': self.stack.get('BatchTag', 'rios')})['QueueUrl']
            setattr(channel, name + '_queue', url)
        self.environment = {
            'RIOSBucket': channel.bucket, 'RIOSInQueue': channel.in_queue, 'RIOSOutQueue': channel.out_queue,
            'RIOSRun': self.id, 'RIOSRunKey': channel.key.hex(), 'RIOSRegion': REGION,
            'RIOSLease': str(LEASE_SECONDS), 'RIOSVisibility': str(VISIBILITY_SECONDS),
            'RIOSVersions': json.dumps(versions()), 'RIOSTries': f'{MAX_TRIES} {MAX_RECEIVES}',
            'RIOSModules': ' '.join(name for name in HEAVY_MODULES if name in sys.modules),
            'RIOSOutput': os.environ.get('RIOS_AWSBATCH_WORKER_OUTPUT', ''),
            'RIOSInitializer': self.share(_pickled(initializer, 'The initializer')) if initializer else ''}
        self.note('run', run=self.id, began=self.began, workers=self.workers, stack=STACK_NAME, region=REGION,
                  inline_bytes=INLINE_BYTES, vcpus=self.vcpus, memory=memory)
        self.opened = time.monotonic()
        self._start_workers(self.workers)

    def _start_workers(self, count):
        """Submit an array job of so many workers, which are its children; a plain job for one."""
        environment = dict(self.environment, RIOSFirst=str(self.started))
        array = {'arrayProperties': {'size': count}} if count > 1 else {}
        submitted = self.batch.submit_job(**self.job, **array, containerOverrides=dict(
            self.overrides, environment=[{'name': name, 'value': environment[name]} for name in environment]))
        job_id, now = submitted['jobId'], time.monotonic()
        for index in range(count):
            self.jobs[f'{job_id}:{index}' if array else job_id] = str(self.started + index), now
        self.started += count
        if submitted['ResponseMetadata'].get('RetryAttempts'):
            # AWS may have carried out a request whose answer was lost: one job is enough.
            found = self.batch.list_jobs(
                jobQueue=self.job['jobQueue'], filters=[{'name': 'JOB_NAME', 'values': [self.name]}])
            for job in found['jobSummaryList']:
                if job['status'] not in _ENDED and job['jobId'] not in self._arrays():
                    self.batch.terminate_job(jobId=job['jobId'], reason='Started twice')

    def share(self, data):
        """Put bytes into the run's folder, once; the token by which a worker finds them."""
        self._check_open()
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
        return self.closing and (self.hurry or bool(self.broken) or not self.calls)

    def persist(self, doing, request):
        """
        Make an AWS request, again and again while AWS is away or the login has expired; None when the run is
        over. Raises AWSBatchException where AWS refuses it for a reason that does not pass.
        """
        while not self.ended.is_set():
            try:
                return request()
            except AWS_ERRORS as error:
                no_queue, expired = is_one_of(error, _NO_QUEUE), is_one_of(error, _EXPIRED)
                if self.over() or self.closing and no_queue:
                    break
                # A new queue may not be known everywhere yet: sqs:CreateQueue asks to wait a second.
                new = no_queue and time.monotonic() < self.opened + 10
                if not (new or expired or is_temporary(error)):
                    raise explain(error, doing) from error
                # It is told at once, and then every TELL_SECONDS, whichever thread notices.
                if self.told is None or self.told[0] != expired or time.monotonic() > self.told[1]:
                    self.told = expired, time.monotonic() + TELL_SECONDS
                    log.warning('%s %s', explain(error, doing), 'The run goes on when you have: no block is '
                                'lost.' if expired else 'Trying again.')
                self.ended.wait(1)
                if expired:                 # logged in again? New clients look for it.
                    self.channel.connect()
                    self.batch = self.channel.client('batch')
        return None

    # Calls out

    def submit(self, function, fn, args, kwargs):
        """A future for fn(*args, **kwargs); `function` is what :meth:`pickled` gave, if it was asked."""
        self._check_open()
        try:
            digest, data = function or self.pickled(fn)
            label = _label(fn, args)
            payload = data + _pickled((args, kwargs), f'The arguments of {label}')
        except AWSBatchException as error:
            future = concurrent.futures.Future()
            future.set_exception(error)
            return future
        while self.backlog and self.backlog + len(payload) > OUTBOX_BYTES:
            self._check_open()
            time.sleep(0.01)
        self._check_open()
        call = _Call(next(self.ids), label, digest, payload)
        self.backlog += len(payload)
        self.calls[call.id] = call
        call.add_done_callback(self._cancelled)
        if call.prepared:
            self.large.put(call)
        self.outbox.put(call)
        if self.broken or self.ended.is_set():      # just now, in another thread
            self._settle_rest()
        return call

    def _check_open(self):
        if self.pid != os.getpid():
            raise RuntimeError(f'This executor belongs to process {self.pid}, which made it. A forked '
                               'process makes one of its own.')
        if self.broken:
            raise BrokenAWSBatchExecutor(self.broken)
        if self.closing:
            raise RuntimeError('cannot schedule new futures after shutdown')

    def pickled(self, fn):
        """The function as it is now: its token, and what of it travels with each call (str, bytes)."""
        data = _pickled(fn, f'The function {_name(fn)}')
        return (self.share(data), b'') if len(data) > FUNCTION_BYTES else ('', data)

    def _prepare(self):
        """Thread: seal the calls that take time, several at once, and send those that fill a batch alone."""
        for call in iter(self.large.get, None):
            self._seal(call)
            if call.message is not None and 2 * size_of(call.message) > MESSAGE_BYTES:
                self._send_batch([call])
            call.prepared.set()
            del call                # nothing here may keep a future, and so its result

    def _seal(self, call):
        """Make the message for a call; none where it was cancelled."""
        try:
            if call.id in self.calls:
                gdal = sys.modules.get('osgeo.gdal')
                header = {'kind': 'call', 'id': call.id, 'fn': call.function, 'label': call.label,
                          'gdal': bool(gdal and gdal.GetUseExceptions())}
                call.message, header = self.persist(
                    'sending a call to the workers',
                    lambda: self.channel.seal('worker', header, call.payload)) or (None, {})
                call.bytes, call.object = header.get('bytes'), header.get('object')     # as it travels
        except Exception as error:
            self._settle(call, error=error)
        call.payload = None

    def _send(self):
        """Thread: send the calls in their order, together with those that came meanwhile."""
        call = self.outbox.get()
        while call is not None and not self.ended.is_set():
            batch = []
            while call is not None and len(batch) < BATCH_ENTRIES:
                if call.prepared is None:
                    self._seal(call)
                elif not call.prepared.wait(0 if batch else None):
                    break
                self.backlog = self.backlog - call.size if self.outbox.qsize() else 0
                if call.message is not None:
                    batch.append(call)
                call = self.outbox.get() if self.outbox.qsize() else None
            self._send_batch(batch)
            batch = None                # nothing here may keep a future, and so its result
            call = call or self.outbox.get()

    def _send_batch(self, batch):
        for call in batch:
            call.sent = time.time()
        try:
            self.persist('sending calls to the workers', lambda: self.channel.send(
                self.channel.in_queue, [call.message for call in batch]))
        except AWSBatchException as error:
            for call in batch:
                self._settle(call, error=error)
        for call in batch:
            call.message = None

    def _cancelled(self, call):
        if call.cancelled() and self.calls.pop(call.id, None):
            self.wake.put(call)

    def _take_back(self):
        """Take cancelled calls out of the queue, so that no worker begins them; not a few among very many."""
        persist, channel = functools.partial(self.persist, 'taking cancelled calls back'), self.channel
        while self.revoked and 2 * len(self.revoked) > len(self.calls) and not self.over():
            wanted, unwanted = [], []
            for message in persist(lambda: channel.receive(channel.in_queue, 1)) or ():
                number = None
                with contextlib.suppress(Refused):
                    number = channel.open('worker', message).get('id')
                (wanted if number in self.calls else unwanted).append(message)
                self.revoked.discard(number)
            persist(lambda: channel.give_back(wanted))
            persist(lambda: channel.delete(
                channel.in_queue, [message['ReceiptHandle'] for message in unwanted]))
            if not unwanted or len(wanted) > len(unwanted):     # the workers have the others
                break
        self.revoked.clear()

    # Answers back

    def _collect(self):
        """Thread: take in what the workers send."""
        channel, receipts, most, since = self.channel, [], BATCH_ENTRIES, time.monotonic()
        soon = VISIBILITY_SECONDS / 4       # results that are not deleted by then would come again
        while not self.ended.is_set():
            wait = LONG_POLL_SECONDS if not receipts else min(LONG_POLL_SECONDS, max(1, int(soon)))
            messages = self.persist('receiving results', lambda: channel.receive(
                channel.out_queue, wait, most)) or []
            for message in messages:
                header = self._take(message)
                receipts.append(message['ReceiptHandle'])
                # Large results are taken one by one, so that all collectors have some to download.
                most = 1 if 'object' in header else BATCH_ENTRIES
            if len(receipts) >= BATCH_ENTRIES or not messages or time.monotonic() > since + soon:
                self.persist('deleting messages', lambda: channel.delete(channel.out_queue, receipts))
                receipts, since = [], time.monotonic()

    def _take(self, message):
        """Handle one message from a worker; its header."""
        try:
            header = self.channel.open('main', message)
        except Refused as refused:
            log.warning('A message to run %s was refused: %s', self.id, refused)
            return {}
        kind, worker = header['kind'], header.get('worker')
        if kind == 'hello':
            self._worker_up(worker, header['start'])
        elif kind == 'refused':     # for its versions; if the image was pushed in mid-run, the others go on
            log.warning('Worker %s is refused. %s', worker, header['text'])
            if not self.up:
                self.break_off(header['text'])
        elif kind == 'bye':
            self.quiet.add(worker)
            self.up.discard(worker)
            self.channel.requests.update(header['requests'])
            self.note('ended', worker=worker, time=time.time())
            self.wake.put(None)
        elif kind == 'note':
            log.warning('Worker %s: %s', worker, header['text'])
        elif kind == 'broken':
            self.break_off(header['text'])
        else:
            self._answer(header, message)
        return header

    def _worker_up(self, worker, start):
        if (worker, start) not in self.starts:  # else SQS has delivered it twice
            self.starts.add((worker, start))
            if worker in self.up:
                self._lost([worker], 'AWS Batch has started it again')
            self.up.add(worker)
            self.note('up', worker=worker, time=time.time())
            self.wake.put(None)
            log.info('Worker %s is up, %d of %d', worker, len(self.up), self.workers)

    def _answer(self, header, message):
        """Settle the future that a result, an error or a given-up call belongs to."""
        call, times = self.calls.get(header['id']), {'arrived': time.time()}
        times.update((name, header.get(name)) for name in (
            'id', 'worker', 'tries', 'received', 'downloaded', 'started', 'computed', 'uploaded'))
        if call is None:            # answered before by another worker, or cancelled
            return self.note('unwanted', **times)
        error = result = None
        try:
            if header['kind'] == 'lost':
                error = AWSBatchException(f'The call {call.label} was tried {header["tries"]} times, and '
                                          f'each time {header["text"]}, so it is given up.')
            else:
                data = self.persist('downloading a result', lambda: self.channel.payload(header, message))
                if data is None:
                    return None
                result = _Results(io.BytesIO(data)).load()
                if header['kind'] == 'error':
                    error, remote = result
                    error.__cause__ = _RemoteTraceback(remote)
        except Refused as refused:
            log.warning('The result of %s in run %s was refused: %s', call.label, self.id, refused)
            error = AWSBatchException(f'The result of {call.label} was tampered with on its way: {refused}.')
        except BaseException as problem:        # sys.exit() in a result included
            error = AWSBatchException(
                f'The result of {call.label} cannot be unpickled here: {_told(problem)}. What a function '
                'returns must be importable by the main script too.')
            error.__cause__ = problem
        for line in header.get('output', ()):
            log.warning('Worker %s, %s: %s', header.get('worker'), call.label, line)
        if self._settle(call, result, error, header.get('worker')):
            self.killed = self.failed = 0
            self.note('block', label=call.label, bytes_in=call.bytes, bytes_out=header.get('bytes'),
                      error=error and _told(error)[:300], queued=call.queued, sent=call.sent,
                      collected=time.time(), **times)
        self.spent.extend(filter(None, (call.object, header.get('object'))))
        if len(self.spent) >= DELETE_OBJECTS // 10:
            with contextlib.suppress(IndexError):
                names = [self.spent.popleft() for _ in range(len(self.spent))]
                self.persist('deleting objects', lambda: self._delete_objects(names))

    def _delete_objects(self, names):
        for some in batches(names, DELETE_OBJECTS):
            self.channel.s3.delete_objects(Bucket=self.channel.bucket, Delete={
                'Objects': [{'Key': name} for name in some], 'Quiet': True})

    def _settle(self, call, result=None, error=None, worker=None):
        """Give a future its result or exception; False where somebody else has."""
        if not call.claim():
            return False
        if worker is not None:
            self.answers.append(worker)
        try:
            if error is not None:
                call.set_exception(error)
            else:
                call.set_result(result)
        finally:
            self.calls.pop(call.id, None)
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
                    call.cancel()
                    call.claim()

    def break_off(self, text):
        """Fail every outstanding call, and refuse new ones."""
        self.broken = self.broken or text
        self._settle_rest()
        self.wake.put(None)

    # The pool

    def _keep(self):
        """Thread: keep the workers' number, take cancelled calls back, and clean up when the run is over."""
        self._guarded(self._tend)
        try:
            self._clean_up(orderly=not (self.broken or self.hurry))
        finally:
            self.ended.set()
            self._settle_rest()
            _runs.discard(self)
            self.note('end', time=time.time(), submitted=next(self.ids) - 1, broken=self.broken,
                      requests=dict(self.channel.requests))
            self.clean.set()
            log.info('Run %s ended: %d blocks', self.id, len(self.answers))

    def _tend(self):
        look = time.monotonic() + WATCH_SECONDS
        while not self.over():
            wait = max(0, look - time.monotonic())
            with contextlib.suppress(queue.Empty):
                while True:
                    call, wait = self.wake.get(wait), 0
                    if call is not None:
                        call.claim()            # nobody else settles it; those who wait for it are told
                        if call.sent:
                            self.revoked.add(call.id)
            call = None
            if self.revoked:
                self._take_back()
            if time.monotonic() >= look:
                if (self.calls or self.awaited) and not self.broken:
                    self.persist('looking at the Batch jobs', self._look)
                look = time.monotonic() + WATCH_SECONDS

    def _look(self):
        """Replace the workers that are gone, as far as there are calls for others."""
        suspects, reasons = self._suspects(), collections.defaultdict(list)
        found = self._described(suspects)
        for job_id in suspects:
            worker, submitted = self.jobs[job_id]
            # A child that is not there has not come into being, or Batch has forgotten it.
            new = time.monotonic() < submitted + TELL_SECONDS
            job = found.get(job_id, {'status': 'SUBMITTED' if new else 'FAILED'})
            if job['status'] in _ENDED:
                del self.jobs[job_id]
                if _was_killed(job):
                    self.killed += 1
                else:
                    self.failed += 1
                why = _how_ended(job)
            elif worker in self.up and job['status'] != 'RUNNING':
                why = 'AWS Batch starts it again'
            else:
                continue
            self.up.discard(worker)
            if worker not in self.quiet:
                self.ends.append((why, job_id))
                reasons[why].append(worker)
        for why, workers in reasons.items():
            self._lost(workers, why)
        # The more of them are killed without an answer, the more are started for the few calls that are left.
        missing = min(self.workers, max(len(self.calls) + self.killed, self.awaited)) - len(self.jobs)
        never = self.failed and not (self.jobs or self.starts)
        futile = self.killed + FAILED_COUNTS * self.failed
        if missing > 0 and never and not self.doomed:
            self.doomed = True              # a first answer may still be on its way, so look twice
        elif missing > 0 and (never or futile > MAX_KILLED * (self.workers + 10)):
            self.break_off(f'No worker of run {self.id} is left, with {len(self.calls)} calls outstanding. '
                           f'{self._how_workers_ended()}')
        elif missing > 0:
            log.warning('Starting %d worker%s in place of those that are gone', missing, 's' * (missing > 1))
            self._start_workers(missing)
        elif not self.up and self.jobs:
            self._none_is_up(self._described(list(self.jobs)[:10]).values())

    def _suspects(self):
        """
        The jobs that may have ended or be starting again (list of ids). Batch sends some kB for a child of an
        array, so it is asked of an array first: how many are in which state.
        """
        arrays, suspects = self._arrays(), []
        found = self._described(arrays)
        for array, ours in arrays.items():
            job = found.get(array, {'arrayProperties': {'statusSummary': {}}})      # Batch has forgotten it
            states = job.get('arrayProperties', {}).get('statusSummary', {job.get('status'): 1})
            alive = sum(count for status, count in states.items() if status not in _ENDED)
            up = sum(self.jobs[job_id][0] in self.up for job_id in ours)
            if alive != len(ours) or up > states.get('RUNNING', 0):
                suspects += ours
        return suspects

    def _arrays(self):
        """The jobs by the array that they are children of; a plain one is by itself (dict of lists)."""
        arrays = collections.defaultdict(list)
        for job_id in self.jobs:
            arrays[job_id.partition(':')[0]].append(job_id)
        return arrays

    def _described(self, job_ids):
        """What Batch says of jobs (dict by id), a hundred of them in a request."""
        return {job['jobId']: job for some in batches(list(job_ids), DESCRIBE_JOBS)
                for job in self.batch.describe_jobs(jobs=some)['jobs']}

    def _lost(self, workers, why):
        """A line in the log, and in the report, for workers that were lost for one reason."""
        self.lost += len(workers)
        log.warning('Worker%s %s: %s', 's' * (len(workers) > 1), ', '.join(workers), why)
        for worker in workers:
            self.note('lost', worker=worker, time=time.time(), why=why)

    def _none_is_up(self, jobs):
        """Say every now and then why no worker is up; end the run if none ever will be."""
        waited = time.monotonic() - min(submitted for _, submitted in self.jobs.values())
        reasons = list(dict.fromkeys(filter(None, (job.get('statusReason') for job in jobs))))
        said = f'AWS Batch says: {"; ".join(reasons)}. ' if reasons else ''
        if any(job['status'] == 'RUNNABLE' and job.get('statusReason', '').startswith('MISCONFIGURATION:')
               for job in jobs):
            self.break_off(f'No worker can start. {said}Ask for less with "scripts/modify.sh --mem" and '
                           '--vcpus, or for other instances with --instancetype.')
        elif waited > self.start_timeout:
            self.break_off(f'No worker has come up within {self.start_timeout:g} seconds '
                           f'(RIOS_AWSBATCH_START_TIMEOUT). {said}{RUNNABLE_CAUSES}')
        elif waited > self.tell_after:
            self.tell_after = waited + TELL_SECONDS
            log.warning('No worker has come up after %d minutes; the jobs are %s. %s%s', waited // 60,
                        ', '.join(sorted({job['status'] for job in jobs})), said, RUNNABLE_CAUSES)

    def _how_workers_ended(self):
        """What Batch says of the workers that were lost, with the last lines of a log (str)."""
        if not self.ends:
            return 'AWS Batch does not say how the workers ended; "scripts/status.sh" shows the jobs.'
        sentences, job_id = list(dict.fromkeys(why for why, _ in self.ends)), self.ends[-1][1]
        try:
            container = self._described([job_id])[job_id]['container']
            group = container['logConfiguration']['options']['awslogs-group']
            stream, lines, token = container['logStreamName'], [], {}
            logs = self.channel.client('logs')
            for _ in range(10):             # a page may be empty though there are more
                page = logs.get_log_events(
                    logGroupName=group, logStreamName=stream, limit=20, startFromHead=False, **token)
                lines = ['\n    ' + event['message'] for event in page['events']] + lines
                if len(lines) >= 20 or page['nextBackwardToken'] == token.get('nextToken'):
                    break
                token = {'nextToken': page['nextBackwardToken']}
            if lines:
                sentences.append('The end of its log:{}\n'.format(''.join(lines[-20:])))
            sentences.append(f'All of its log: aws logs get-log-events --region {REGION} --log-group-name '
                             f'{group} --log-stream-name {stream}')
        except (*AWS_ERRORS, LookupError) as error:     # it never had one, or nobody may read it
            log.debug('The log of the last worker cannot be found: %s', error)
        return 'Why: ' + ' '.join(sentences)

    def _renew(self):
        """Thread: keep the lease, by which the workers know that this script lives."""
        while not self.ended.wait(LEASE_SECONDS / 4):
            self.persist('renewing the lease of the run', self._put_lease)

    def _put_lease(self):
        state = {'host': platform.node(), 'pid': os.getpid(), 'seconds': LEASE_SECONDS, 'began': self.began,
                 'now': time.time(), 'workers': self.workers, 'workers_up': len(self.up), 'vcpus': self.vcpus,
                 'done': len(self.answers), 'outstanding': len(self.calls)}
        self.channel.s3.put_object(Bucket=self.channel.bucket, Key=self.channel.folder + 'lease',
                                   Body=json.dumps(state).encode())

    # The end

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
        Leave nothing of the run on AWS: no job, no queue, no object. A step that fails is told, and neither
        keeps the others from being done nor hides an exception that is on its way to the user.
        """
        channel = self.channel
        if channel is None:
            return
        with self._told_only('stopping the workers'):
            if not (orderly and self._stop_workers()):
                for job_id in self._arrays():
                    self.batch.terminate_job(jobId=job_id, reason='The main script has ended the run')
                # No worker writes another object once it has ended.
                deadline, left = time.monotonic() + STOP_SECONDS, list(self.jobs)[:DESCRIBE_JOBS]
                while time.monotonic() < deadline and not all(
                        job['status'] in _ENDED for job in self._described(left).values()):
                    time.sleep(0.25)
        self.ended.set()
        for waiting in [self.outbox] + [self.large] * PREPARERS:
            waiting.put(None)
        for thread in self.writers:         # what one writes now is to be deleted, too
            thread.join(STOP_SECONDS)
        for url in filter(None, (channel.in_queue, channel.out_queue)):
            with self._told_only('deleting a queue'):
                channel.sqs.delete_queue(QueueUrl=url)
        with self._told_only('deleting the objects of the run'):
            for page in channel.s3.get_paginator('list_objects_v2').paginate(
                    Bucket=channel.bucket, Prefix=channel.folder):
                self._delete_objects([item['Key'] for item in page.get('Contents', [])])

    def _stop_workers(self):
        """Ask the workers to stop; whether all did."""
        if {worker for worker, _ in self.jobs.values()} - self.up - self.quiet:
            return False                    # some have not even started
        stop = self.channel.seal('worker', {'kind': 'stop'})[0]
        self.channel.send(self.channel.in_queue, [stop] * len(self.up))
        deadline = time.monotonic() + STOP_SECONDS
        while self.up and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.up

    @contextlib.contextmanager
    def _told_only(self, doing):
        try:
            yield
        except (*AWS_ERRORS, AWSBatchException) as error:
            if not is_one_of(error, _NO_QUEUE):
                log.warning('%s "scripts/status.sh --clean" removes what run %s has left.',
                            explain(error, doing), self.id)


_ENDED = ('SUCCEEDED', 'FAILED')
_EXIT_KILLED = (137, 143)       # 128 + SIGKILL, SIGTERM


def _was_killed(job):
    """Whether a job was ended from outside, so that the next one may fare better."""
    container = job.get('container', {})
    return 'Host EC2' in job.get('statusReason', '') or (
        container.get('exitCode') in _EXIT_KILLED and 'OutOfMemory' not in container.get('reason', ''))


def _how_ended(job):
    """What Batch says of a job that has ended, and what to do about it (str)."""
    container = job.get('container', {})
    code = f' with exit code {container["exitCode"]}' if 'exitCode' in container else ''
    said = '; '.join(filter(None, (job.get('statusReason'), container.get('reason')))).rstrip('.')
    advice = next((' ' + advice for words, advice in _ADVICE if words in said), '')
    return f'it ended{code}{": " + said if said else ""}.{advice}'


def _name(fn):
    with contextlib.suppress(Exception):        # getattr may run code of the script
        return str(getattr(fn, '__name__', None) or fn.func.__name__)[:80]
    return type(fn).__name__


def _label(fn, args):
    """A short name for a call in messages: what its arguments are, without their data or code of theirs."""
    plain, numpy = (int, float, str, bytes, bool, type(None)), sys.modules.get('numpy')

    def name(arg):
        if type(arg) in plain or type(arg) is tuple and all(type(item) in plain for item in arg[:8]):
            return reprlib.repr(arg)
        return type(arg).__name__ + (str(arg.shape) if numpy and type(arg) is numpy.ndarray else '')
    return f'{_name(fn)}({", ".join([*map(name, args[:4]), *["..."] * (len(args) > 4)])})'


def _open_report(folder, run):
    """Open the report of a run: a file descriptor, None where no report is wanted."""
    if not folder:
        return None
    try:
        os.makedirs(folder, exist_ok=True)
        return os.open(os.path.join(folder, run + '.jsonl'), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise AWSBatchException(
            f'The report of the run cannot be written to the folder "{folder}": {error.strerror or error}. '
            'Set RIOS_AWSBATCH_REPORT to a folder where you may write, or unset it.') from error


def _start_timeout():
    """Seconds (float) to wait for the first worker."""
    text = os.environ.get('RIOS_AWSBATCH_START_TIMEOUT') or 'inf'
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise AWSBatchException(
        f'RIOS_AWSBATCH_START_TIMEOUT must be a number of seconds above zero, not "{text}".')


# ---- The end of the script ---------------------------------------------------------------------------
# Open runs end with it. A script that is asked to end (kill, a closed terminal) ends in an orderly way too,
# unless it handles the signal itself.

_runs = set()
_entered = []           # executors whose with statements are open, in their order
_SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]


@atexit.register
def _end_runs():
    """The script ends without shutdown(): what was submitted is finished, unless the script failed."""
    runs = list(_runs)
    for run in runs:
        run.close(hurry=getattr(sys, 'last_value', None) is not None)
    for run in runs:
        run.join()


def _exit_on_signal(number, frame):
    if _runs:
        for run in list(_runs):
            run.close(hurry=True)
        sys.exit(128 + number)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _handle_signals():
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _exit_on_signal)


def _before_fork():
    """A signal to the child waits until _exit_on_signal is not its handler; Python would forget it else."""
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _after_fork():
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


def _forget_runs():
    """In a forked child, which has nothing to do with its parent's runs."""
    _runs.clear()
    _entered.clear()
    for number in _SIGNALS:
        if signal.getsignal(number) is _exit_on_signal:
            signal.signal(number, signal.SIG_DFL)
    _after_fork()


_fork = threading.local()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forget_runs)


# ---- The executor ------------------------------------------------------------------------------------

class AWSBatchExecutor(concurrent.futures.Executor):
    """
    Runs calls in worker containers on AWS Batch.

    It is a ``concurrent.futures.Executor``, so ``with``, ``submit``, ``map``, ``as_completed`` and ``wait``
    are those of the standard library, and what a script does with a ``ProcessPoolExecutor`` it does with
    this one. Workers start when it is made, and take minutes to come up when AWS has to start an instance for
    them first; calls wait for them. A worker that is lost is replaced while there are calls for it.

    In a ``with`` statement, an exception (Ctrl-C included) stops the workers at once and cancels what is
    outstanding; a normal end waits for all calls. SIGTERM and SIGHUP end the script in the same orderly way,
    unless it handles them itself, or the executor was not made in the main thread. A script that is killed
    leaves workers that stop by themselves within four minutes.

    RIOS: each ``apply()`` in the ``with`` statement uses its workers instead of starting some of its own.

    Args:
        max_workers (int): how many workers, one Batch job each. Default: as many as the stack allows.
        initializer (callable), initargs (tuple): called by each worker first, to load a model for instance.
        vcpus (int), memory (int, MiB), timeout (int, seconds), job_definition (str): of this run's workers,
            instead of the stack's.

    Raises:
        ValueError: an argument is not a whole number above zero, or one that AWS does not know.
        TypeError: initializer is not callable.
        AWSBatchException: the stack or the image is not there, or AWS cannot be used. Nothing was started.
    """

    def __init__(self, max_workers=None, *, initializer=None, initargs=(), vcpus=None, memory=None,
                 timeout=None, job_definition=None):
        for name, value in (('max_workers', max_workers), ('vcpus', vcpus), ('memory', memory),
                            ('timeout', timeout)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f'{name} must be greater than 0 and a whole number, not {value!r}')
        if (max_workers or 1) > MAX_ARRAY:
            raise ValueError(f'AWS Batch starts at most {MAX_ARRAY:,} workers for a run, not {max_workers}.')
        if (timeout or MIN_TIMEOUT) < MIN_TIMEOUT:
            raise ValueError(f'AWS Batch knows no time-out below {MIN_TIMEOUT} seconds.')
        if initializer is not None and not callable(initializer):
            raise TypeError('initializer must be a callable')
        try:
            self._run = _Run(max_workers, (initializer, initargs) if initializer else None,
                             vcpus, memory, timeout, job_definition)
        except AWSBatchException as error:      # which says it all, without the insides of boto3
            raise error.with_traceback(None) from None
        #: The run id (str), which names its queues and its folder in the bucket.
        self.run = self._run.id
        _handle_signals()
        weakref.finalize(self, self._run.close).atexit = False

    def submit(self, fn, /, *args, **kwargs):
        """
        Have ``fn(*args, **kwargs)`` computed by a worker.

        `fn` travels as it is now, with whatever it closes over, and no call sees what another one did to it.
        It is pickled each time (0.12 s for 100 MB), and uploaded if it is large and has changed; workers keep
        it, and unpickle it for each call (0.06 s). :meth:`map` pickles it once. Returns at once otherwise,
        unless OUTBOX_BYTES of arguments are still waiting to be sent.

        Returns:
            concurrent.futures.Future: its result is what `fn` returns. Its exception is what `fn` raised,
            with the worker's traceback as the cause; or AWSBatchException when the call could not be run or
            travel; or BrokenAWSBatchExecutor when no worker is left.

        Raises:
            RuntimeError: after shutdown(), or in a forked child of the process that made the executor.
            BrokenAWSBatchExecutor: no worker is left.
        """
        return self._run.submit(None, fn, args, kwargs)

    def map(self, fn, *iterables, timeout=None, chunksize=1, buffersize=None):
        """
        Call `fn` with the elements of the iterables; an iterator over the results, in the same order. The
        exception of a call is raised where its result would be.

        Args:
            fn: called with as many arguments as there are iterables.
            timeout (float): seconds from this call until the last result, or TimeoutError.
            chunksize (int): has no effect; every call travels by itself.
            buffersize (int): how many calls may be unfinished or not yet taken by the caller. The
                iterables are read as results are taken, so a raster of any size needs bounded memory.
                Default: all are submitted at once. As in Python 3.14.
        """
        if chunksize < 1:
            raise ValueError('chunksize must be >= 1.')
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError('buffersize must be an integer or None')
        if buffersize is not None and buffersize < 1:
            raise ValueError('buffersize must be None or > 0')
        deadline = None if timeout is None else time.monotonic() + timeout
        arguments, run, function = zip(*iterables), self._run, None
        with contextlib.suppress(AWSBatchException):    # the calls say why
            function = run.pickled(fn)

        def submitted(count):
            return (run.submit(function, fn, args, {}) for args in itertools.islice(arguments, count))
        futures = collections.deque(submitted(buffersize))

        def results():
            try:
                while futures:
                    # Nothing here holds a future or a result that has been handed out.
                    result = [futures[0].result(None if deadline is None else deadline - time.monotonic())]
                    futures.popleft()
                    futures.extend(submitted(1))
                    given = time.time()
                    yield result.pop()
                    if time.time() > given + 0.01:
                        run.note('taken', given=given, asked=time.time())
            finally:
                for future in futures:
                    future.cancel()
        return results()

    def wait_for_workers(self, count=1, timeout=None):
        """
        Wait until `count` workers are up, at most `timeout` seconds; how many are up (int).

        Raises:
            BrokenAWSBatchExecutor: none will come.
        """
        run, deadline = self._run, None if timeout is None else time.monotonic() + timeout
        run.awaited = count
        while len(run.up) < count and not (run.broken or run.closing or
                                           deadline and time.monotonic() > deadline):
            time.sleep(0.02)
        run.awaited = 0
        if run.broken:
            raise BrokenAWSBatchExecutor(run.broken)
        return len(run.up)

    def stats(self):
        """
        What a progress line shows (dict): the 'run' id, 'workers' asked for, 'workers_up' now, those that are
        'lost' and 'replaced', calls 'done' and 'outstanding', 'blocks_per_worker' (worker to count) and
        'requests', the AWS requests that this script (not its workers) made for the run (int).
        """
        run = self._run
        return {'run': run.id, 'workers': run.workers, 'workers_up': len(run.up), 'lost': run.lost,
                'replaced': run.started - run.workers, 'outstanding': len(run.calls),
                'done': len(run.answers), 'blocks_per_worker': dict(collections.Counter(run.answers)),
                'requests': sum(run.channel.requests.copy().values())}

    def __repr__(self):
        return ('<AWSBatchExecutor run {run}: {workers_up} of {workers} workers up, {done} blocks done, '
                '{outstanding} outstanding>'.format(**self.stats()))

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
        for call in list(run.calls.copy().values()) if cancel_futures else ():
            call.cancel()
        if wait:
            run.join()

    def __enter__(self):
        _entered.append(self)
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        with contextlib.suppress(ValueError):
            _entered.remove(self)
        self.shutdown(wait=True, cancel_futures=exc_type is not None)


# ---- RIOS 1.4: a job manager, RIOS 2: a compute-worker manager; first what they share ------------------

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
        if innermost.f_code.co_filename != __file__:
            raise           # RIOS itself stumbles over something
        import rios
        raise AWSBatchException(f'RIOS {rios.__version__} has changed what rios_awsbatch {__version__} '
                                f'builds on: {error!r}. Get a newer one, or RIOS 2.0.9.') from error


class _Function:
    """Computes blocks of RIOS 1.4. It travels once, and workers keep it, with otherArgs until one changes."""
    given = args = None         # token of what the caller gave, and what the next block gets: (otherArgs,)

    def __call__(self, label, jobInfo):
        params = jobInfo.getFunctionParams()
        changed = self.call(*params)
        return jobInfo.getFunctionResult(params), changed

    def call(self, *params):
        """Call the user function; the pickle of (otherArgs,) if it has changed them, else None."""
        if self.args is None:
            self.args = pickle.loads(_shared(self.given)) if self.given else ()
            self.digest = _digest(self.args)
        args, self.args = self.args, None
        self.userFunction(*params, *args)
        if _digest(args) != self.digest:
            return _pickled(args, 'otherArgs, as the user function leaves it,')
        self.args = args
        return None


def _digest(thing):
    """A digest of what would travel, without a copy of the arrays in it."""
    digest = hashlib.sha256()
    with contextlib.suppress(Exception):        # _pickled() says why
        digest.update(cloudpickle.dumps(
            thing, protocol=5, buffer_callback=lambda buffer: digest.update(buffer.raw())))
    return digest.digest()


@functools.lru_cache(maxsize=2)
def _kept(token):
    return pickle.loads(_shared(token))


def _compute(token, *args):
    return _kept(token)(*args)


class _Apply:
    """One apply(): its executor, or that of the innermost with statement, its blocks, what they changed."""
    def __init__(self, workers, **options):
        usable = [each for each in _entered if not (each._run.closing or each._run.broken)]
        if usable and options:
            raise ValueError(f'computeWorkerExtraParams has {", ".join(options)}, but the workers are those '
                             'of a "with AWSBatchExecutor" around apply().')
        known = inspect.getfullargspec(AWSBatchExecutor).kwonlyargs
        for name in set(options).difference(known):
            raise ValueError(f'computeWorkerExtraParams of CW_AWSBATCH may have {", ".join(known)}, not '
                             f'{name}.')
        own = None if usable else AWSBatchExecutor(workers, **options)
        self.executor, self.userFunction = own or usable[-1], None
        self.copies = {}                        # of otherArgs, by block
        self.blocks = blocks = {}               # by future, in the order of submit()

        def end():
            if own:
                own.shutdown(cancel_futures=True)
            for future in list(blocks):
                future.cancel()
        # By itself too, as RIOS does not tell a job manager that something else has failed.
        self.end = weakref.finalize(self, end)

    def begin(self, function, userFunction, otherArgs):
        """Take a _Function and what the caller gave to the workers."""
        with contextlib.suppress(AttributeError):
            del otherArgs.otherArgsList         # of an earlier apply()
        run = self.executor._run
        function.given = otherArgs is not None and run.share(_pickled((otherArgs,), 'otherArgs'))
        self.userFunction = function.userFunction = userFunction
        self.otherArgs = otherArgs
        token = run.share(_pickled(function, f'The function {_name(userFunction)}'))
        self.compute = run.pickled(functools.partial(_compute, token))

    def submit(self, block, *args):
        """Send a block, which is anything that sorts; its future."""
        future = self.executor._run.submit(self.compute, self.userFunction, args, {})
        self.blocks[future] = block
        return future

    def result(self, future):
        result, changed = future.result()
        block = self.blocks.pop(future)
        if changed:
            if not self.copies:
                log.warning('The user function changes otherArgs. Each block has a copy of its own, and what '
                            'apply() was given stays as it is. The changed copies will be in the list '
                            'otherArgs.otherArgsList: sum(each.total for each in otherArgs.otherArgsList).')
            self.copies[block], = pickle.loads(changed)
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
        self._run = _Apply(numSubJobs)

    def runSubJobs(self, function, fnInputs):
        """
        Compute a round of blocks (fnInputs, a RIOS JobInfo for each); a list of outputs, in order.

        RIOS writes them in that order, so it gets those of ROUNDS_AHEAD rounds ago, and all with its last
        round: workers always have a next block. Raises what the user function raised, from its traceback
        there, or as :meth:`AWSBatchExecutor.submit`; the run has ended then.
        """
        try:
            for jobInfo in fnInputs:
                self.startOneJob(function, jobInfo)
            jobs, last = list(self._run.blocks), fnInputs[-1]
            if type(last).__module__ == 'rios.applier' and not last.info.isLastBlock():
                jobs = jobs[:-ROUNDS_AHEAD * len(fnInputs)]
            return self.gatherAllOutputs(jobs)
        except BaseException:
            self._run.end()
            raise

    def startOneJob(self, userFunc, jobInfo):
        """Send one block; a job (Future) for gatherAllOutputs()."""
        jobInfo = copy.copy(jobInfo.prepareForPickling())
        otherArgs, jobInfo.otherargs = getattr(jobInfo, 'otherargs', None), None
        if self._run.userFunction is not userFunc:
            self._run.begin(_Function(), userFunc, otherArgs)
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
        if self._run.blocks:
            raise AWSBatchException('RIOS has ended, but some of the last blocks are not written.')
        self._run.give_copies()


def _is_remote(file):
    """Whether a worker can read a file of RIOS as well as the main script can."""
    return any(mark in file[2] for mark in (
        '/vsis3', '/vsicurl', '/vsigs', '/vsiaz', '/vsiadls', '/vsioss', '/vsiswift', 'http://', 'https://'))


class _Rios2Function(_Function):
    """Computes a block of RIOS 2 in a worker. `inputs` is None when the worker reads it."""
    def __init__(self, given):
        self.infiles, self.allInfo, self.grid = given['infiles'], given['allInfo'], given['workinggrid']
        self.controls, self.threads = copy.copy(given['controls']), None
        self.controls.progress = self.controls.loggingstream = None     # they belong to the main script
        from osgeo import osr           # of vectors in allInfo; GDAL does not know how to pickle it
        copyreg.pickle(osr.SpatialReference, lambda system: (
            osr.SpatialReference, (system.ExportToWkt(['FORMAT=WKT2']),), system.GetAxisMappingStrategy(),
            None, None, osr.SpatialReference.SetAxisMappingStrategy))

    def __call__(self, label, blockDefn, inputs):
        with _known_rios():
            from rios import readerinfo, structures
            outputs, timings = structures.BlockAssociations(), structures.Timers()
            if inputs is None:
                with timings.interval('reading'):
                    inputs = self.read(blockDefn)
            info = readerinfo.makeReaderInfo(
                self.grid, blockDefn, self.controls, self.infiles, inputs, self.allInfo)
        with timings.interval('userfunction'):
            changed = self.call(info, inputs, outputs)
        return (outputs, timings), changed

    def read(self, blockDefn):
        from rios import imagereader, structures
        inputs = structures.BlockAssociations(self.infiles)
        if self.threads is None:
            self.threads = concurrent.futures.ThreadPoolExecutor(self.controls.concurrency.numReadWorkers)
            self.opened = collections.defaultdict(dict)     # by thread: GDAL objects must not be shared
            self.managers = structures.TempfileManager(None), structures.RasterizationMgr()

        def read_one(file):
            try:
                inputs[file[:2]] = imagereader.readBlockOneFile(
                    blockDefn, *file, self.opened[threading.get_ident()], self.controls, *self.managers,
                    self.grid, self.allInfo)
            except RuntimeError as error:
                if _is_remote(file):
                    raise
                raise AWSBatchException(
                    f'A worker cannot read "{file[2]}" ({error}), as it has none of your files. Put it on '
                    'S3, or leave computeWorkersRead out: then the main script reads.') from error
        list(self.threads.map(read_one, self.infiles))
        return inputs


class AWSBatchComputeWorkerMgr(_from_rios('rios.computemanager', 'ComputeWorkerManager')):
    """
    Computes the blocks of RIOS 2 on AWS Batch; RIOS makes it for computeWorkerKind='CW_AWSBATCH'. otherArgs
    is as with RIOS 1.4, and the copies are in otherArgsList of what apply() returns, too.
    """
    computeWorkerKind = 'CW_AWSBATCH'
    computeWorkersRead_default = 'auto'     # true for RIOS, so that it leaves the reading to us

    def startWorkers(self, numWorkers=None, **given):
        """
        Start workers, or use those of ``with AWSBatchExecutor(n):``; return when the first is up. Raises
        ValueError for a ConcurrencyStyle that makes no sense; AWSBatchException as that class, or when no
        worker was up within computeBarrierTimeout, or when RIOS has changed too much.
        """
        given['controls'] = controls = copy.copy(given['controls'])     # the caller's stay as they are
        style = controls.concurrency = copy.copy(controls.concurrency)
        style.numReadWorkers = style.numReadWorkers or 1
        for name, usual in vars(type(style)()).items():
            if ('Buffer' in name or name == 'haveSharedTemp') and getattr(style, name) != usual:
                log.debug('CW_AWSBATCH does not need %s=%r', name, getattr(style, name))
        with contextlib.ExitStack() as self.ending:     # when the script is interrupted, RIOS does not end it
            self.run = _Apply(numWorkers, **(getattr(style, 'computeWorkerExtraParams', None) or {}))
            self.ending.callback(self.run.end)
            with _known_rios():
                self._start(style, **given)
            if not self.run.executor.wait_for_workers(1, style.computeBarrierTimeout):
                raise AWSBatchException(f'No worker was up within {style.computeBarrierTimeout} seconds '
                                        f'(computeBarrierTimeout). {RUNNABLE_CAUSES}')
            self.ending = self.ending.pop_all()

    def _start(self, style, *, inBlockBuffer, outBlockBuffer, exceptionQue, **given):
        from rios import structures
        self.timings, self.exceptionQue = structures.Timers(), exceptionQue
        self.outObjList, self.answers = [self.timings], Mailbox()       # futures that are done
        self.ending.callback(lambda: self.outObjList.extend(self.run.give_copies()))
        self.ready = self._inputs(style, inBlockBuffer, **given)
        self.run.begin(_Rios2Function(given), given['userFunction'], given['otherArgs'])
        outBlockBuffer.popNextBlock                         # RIOS takes the next block to write ...
        outBlockBuffer.popNextBlock = self._next_block      # ... from us
        self._send()

    def _inputs(self, style, buffer, infiles, blockList, allInfo, controls, tmpfileMgr, workinggrid, **given):
        """Blocks with their inputs, or None where workers read; RIOS's TimeoutError when none is there."""
        from rios import imagereader, structures
        if style.computeWorkersRead == 'auto' and not all(map(_is_remote, infiles)):    # then RIOS reads here
            buffer = structures.BlockBuffer(infiles, style.numReadWorkers, None, 0, 'read')
            readers = imagereader.ReadWorkerMgr()
            readers.startReadWorkers(
                blockList, infiles, allInfo, controls, tmpfileMgr, structures.RasterizationMgr(), workinggrid,
                buffer, self.timings, self.exceptionQue)
            self.ending.callback(readers.shutdown)
        if buffer is None:
            return zip(blockList, itertools.repeat(None))
        buffer.insertTimeout, buffer.popTimeout = None, 0   # RIOS gives up when it is full for some seconds
        self.ending.callback(self._drain, buffer)
        return iter(buffer.popNextBlock, None)

    def _drain(self, buffer):
        """Let readers end, which would wait for room for ever; not only once, as one may miss its turn."""
        buffer.insertTimeout, buffer.popTimeout = 1, 2

        def drain():
            with contextlib.suppress(Exception):
                collections.deque(self.ready, maxlen=0)
        threading.Thread(target=drain, daemon=True).start()

    def _send(self):
        """Send the blocks that there are, while there is room."""
        from rios.rioserrors import TimeoutError
        room = 4 * self.run.executor._run.workers - len(self.run.blocks)
        with contextlib.suppress(TimeoutError):
            for blockDefn, inputs in itertools.islice(self.ready, room):
                label = f'block at {blockDefn.top}, {blockDefn.left}'
                self.run.submit(blockDefn, label, blockDefn, inputs).add_done_callback(self.answers.put)

    def _next_block(self):
        """What RIOS writes next (blockDefn, outputs). On an error it raises the first in exceptionQue."""
        from rios.structures import WorkerErrorRecord
        while True:
            try:
                self._send()
                future = self.answers.get(timeout=0.02)     # then the readers may have more
                blockDefn = self.run.blocks[future]
                outputs, timings = self.run.result(future)
                self.timings.merge(timings)
                return blockDefn, outputs
            except queue.Empty:
                if self.exceptionQue.qsize():       # of RIOS's readers
                    raise AWSBatchException('A block could not be read.') from None
            except Exception as error:
                self.exceptionQue.put(WorkerErrorRecord(error, 'compute'))
                raise

    def shutdown(self):
        """End the run. RIOS calls this after the last block, and after any error."""
        self.ending.close()
