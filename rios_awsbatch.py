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
shared with any other run. Its life (:class:`_Life`), and the way of a call::

    open ── shutdown(), end of the with statement, of the script, of all references ─▶ closing
     │                                                                                   │
     └─ no worker is left ─▶ broken: every future fails ── shutdown() ─▶ ────────────────┤
                                                               no call is left, or there │
    ended ◀─── workers stopped, queues and objects deleted ◀────────────── is a hurry ───┘

    submit ─▶ outbox ─▶ in queue ─▶ worker ─▶ out queue ─▶ inbox ─▶ future settled by the first answer
                │          │          │
                └──────────┴──────────┴── future.cancel(): taken back, or its answer dropped

Who does what in the main script, and in which threads::

    AWSBatchExecutor    what a script sees
    _Run                the calls and the life of a run; a thread that sees it to its end, one for the lease
    _Outbox             calls on their way out: threads that seal them, one that sends, one that takes back
    _Inbox              what workers send: threads that receive it and settle futures
    _Keeper             the workers, in the run's first thread; what Batch says of them is in _BatchJobs
    _MainChannel        AWS, with patience while it is away
    _Report             a file

A state has one class and one thread that change it; what others have to say goes through a queue. So code of
the script (a callback, a finaliser, a ``__repr__``) may come at any moment, in any thread, and meets no lock.
"""
# MIT licence, see the file LICENSE.

import atexit
import collections
import concurrent.futures.process
import contextlib
import copy
import copyreg
import dataclasses
import difflib
import enum
import functools
import graphlib
import hashlib
import hmac
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import linecache
import logging
import operator
import os
import pickle
import platform
import queue
import re
import reprlib
import secrets
import signal
import sys
import threading
import time
import types
import weakref
import zlib

import botocore.exceptions       # boto3 takes long, and what computes blocks does without
import cloudpickle

__version__ = '2.1.0'
__all__ = ['STACK_NAME', 'REGION', 'AWSBatchException', 'AWSBatchPicklingError', 'BrokenAWSBatchExecutor',
           'getStackOutputs', 'AWSBatchExecutor', 'AWSBatchJobManager', 'AWSBatchComputeWorkerMgr']

log = logging.getLogger('rios_awsbatch')

#: The CloudFormation stack to use, from $RIOS_AWSBATCH_STACK.
STACK_NAME = os.environ.get('RIOS_AWSBATCH_STACK') or 'RIOS'
#: The AWS region it is in, from $RIOS_AWSBATCH_REGION, $AWS_REGION or $AWS_DEFAULT_REGION.
REGION = (os.environ.get('RIOS_AWSBATCH_REGION') or os.environ.get('AWS_REGION') or
          os.environ.get('AWS_DEFAULT_REGION') or 'ap-southeast-2')

# How long things may take, in seconds.
LEASE_SECONDS = 180         # workers look every quarter of it whether the main script has lived since
WATCH_SECONDS = 5           # how often the Batch jobs are looked at
FORGOTTEN_SECONDS = 3600    # a job of which Batch knows nothing is not a new one any more, but gone
TELL_SECONDS = 300          # how often it is logged that no worker is up yet, or that AWS is still away
# A dead worker's block is given to another one after this. Each worker asks SQS three times in it to keep
# hidden what it has. 10 s would want 1,080 requests an hour instead of 360 (measured: none for blocks of
# 0.1 s, 3.5 instead of 1.3 for one of 10 s, 21 instead of 6.5 for one of 70 s), and a network that is away
# for 10 s would have blocks computed twice. The last blocks, for which all would wait, have copies before.
VISIBILITY_SECONDS = 30
STOP_SECONDS = 5            # what workers get to say goodbye before they are terminated
TAKE_BACK_SECONDS = 2       # while cancelled calls are looked for, wanted ones are hidden no longer than this
TAKE_BACK_AGAIN = 30        # ... and when none was found, they are not looked for again before this
COPY_SECONDS = 1            # a call that is so much later than usual has a copy, when workers are idle
ROUNDS_AHEAD = 3            # rounds of RIOS 1.4 that are computed before RIOS waits for the first of them
# How often things are tried.
MAX_TRIES = 3               # a call that ended the process that computed it this often is given up
MAX_RECEIVES = 12           # ... and so is one whose whole worker was gone each time
MAX_UNANSWERED = 10         # a run of n workers breaks off when n + 10 times so many ended without an answer
FAILED_COUNTS = 4           # ... where one that ended for another reason than its host counts for so many
# How much may be on its way. SQS charges each 64 KiB of a message as a request, S3 a PUT like 14 of them, so
# a message of up to 8 is cheaper, and a ninth is worth the two round trips that it saves.
INLINE_BYTES = 9 * 65536 - 2048
PACK_BYTES = 32768          # what is smaller is not compressed
FUNCTION_BYTES = 4096       # a function that is no larger travels with each call, which saves round trips
LARGE_BYTES = 100 * 10**6   # a call that takes so much along is worth a line in the log
DEFINITION_BYTES = 2**18    # a global that is larger travels by itself, so that others may change
OUTBOX_BYTES = 256 * 2**20  # submit() waits while this much is still to be sent
KEPT_BYTES = 64 * 2**20     # of calls that are sent, the newest, which may be sent again
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


class AWSBatchPicklingError(AWSBatchException, pickle.PicklingError):
    """A function, its arguments or its result cannot travel; the message says why."""


class BrokenAWSBatchExecutor(concurrent.futures.BrokenExecutor, AWSBatchException):
    """No worker can finish the outstanding calls any more."""


# ---- AWS, in the words of somebody who does not know it ----------------------------------------------

AWS_ERRORS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
# What AWS, or botocore in the name of an exception, calls what it means.
_CODE = {'RefreshWithMFAUnsupportedError'}
_CLOCK = {'RequestTimeTooSkewed'}
_EXPIRED = {'ExpiredToken', 'ExpiredTokenException', 'RequestExpired', 'TokenRefreshRequired', 'SSOError',
            'TokenRetrievalError', 'CredentialRetrievalError', 'LoginError'}
_THROTTLED = {'Throttling', 'ThrottlingException', 'TooManyRequestsException', 'SlowDown',
              'RequestThrottled', 'RequestLimitExceeded', 'RequestThrottledException'}
_AWAY = {'HTTPClientError', 'ConnectionError'}
_CUT = {'IncompleteReadError', 'ReadTimeoutError', 'ResponseStreamingError', 'RequestTimeout',
        'RequestTimeoutException', 'PriorRequestNotComplete',
        'BadDigest', 'XAmzContentSHA256Mismatch', 'IncompleteBody'}     # what S3 says of an upload
_UNKNOWN = {'InvalidClientTokenId', 'UnrecognizedClientException', 'InvalidAccessKeyId',
            'SignatureDoesNotMatch', 'InvalidSignatureException', 'AuthFailure', 'InvalidToken'}
DENIED = {'AccessDenied', 'AccessDeniedException', 'UnauthorizedOperation', 'AuthorizationError',
          'AWS.SimpleQueueService.AccessDenied'}
_WRONG = {'ParamValidationError', 'ValidationError', 'UnknownServiceError', 'InvalidRegionError',
          'MissingDependencyException'}
NO_QUEUE = {'AWS.SimpleQueueService.NonExistentQueue', 'QueueDoesNotExist'}
NO_OBJECT = {'NoSuchKey', '404', 'NotFound', 'AccessDenied', '403', 'Forbidden'}  # or not to be seen
# Where botocore reads keys, which may be others by now.
_READ = (None, 'env', 'shared-credentials-file', 'config-file', 'boto-config')
_LOG_IN = ('Run "aws configure" (or "aws login", "aws sso login"), or set AWS_ACCESS_KEY_ID and '
           'AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.')
_MEANINGS = (
    ({'ProfileNotFound'}, '{}. AWS_PROFILE names it; "aws configure list-profiles" shows those you have.'),
    (_CODE, 'Your AWS session has ended, and a new one wants an MFA code ({}). Run "aws sts '
            'get-caller-identity" in another terminal, with the same AWS_PROFILE: it asks for the code, and '
            'its session serves here, too.'),
    (_CLOCK, 'The clock of this computer is wrong, so AWS refuses its requests ({}). Set it.'),
    (_EXPIRED, 'Your AWS login has expired ({}). Log in again. ' + _LOG_IN),
    ({'MissingDependencyException'}, 'This way to log in needs one more package: run "' +
     (sys.executable or 'python') + '" -m pip install "botocore[crt]" ({})'),
    ({'NoCredentialsError', 'PartialCredentialsError'}, 'No AWS credentials were found ({}). ' + _LOG_IN),
    (_UNKNOWN, 'AWS does not accept your credentials ({}). ' + _LOG_IN + ' Or region "' + REGION +
               '" has first to be enabled for your account.'),
    (DENIED,
     'AWS does not allow you this ({}). Ask whoever manages your AWS account to attach the policy of the '
     'stack\'s output BatchMainPolicyArn to your user or role.'),
    ({'NoSuchBucket'}, '{}. "scripts/delete.sh" and "scripts/create.sh" make the stack anew.'),
    (_THROTTLED, 'AWS refuses more requests for the moment ({}). Try again in a minute; if it stays so, '
                 'another program in the same account makes too many requests.'),
    (_AWAY | {'InvalidRegionError'}, 'AWS cannot be reached ({}). Check the network connection, a proxy, and '
                                     'that RIOS_AWSBATCH_REGION ("' + REGION + '") is the region you mean.'))
RUNNABLE_CAUSES = (
    'Usual causes: the account\'s EC2 vCPU quota or the stack\'s maximum number of jobs is used up by other '
    'jobs, no instance type of the stack is free (above all with Spot), or a job asks for more memory, '
    'vCPUs or GPUs than any of them has. "scripts/status.sh" shows the jobs; "scripts/check.sh" the quota; '
    '"scripts/modify.sh" changes --maxjobs, --instancetype, --mem, --vcpus and --gpus.')
MORE_MEMORY = ('use smaller blocks, or give workers more: in the script, where it says memory= (MiB), else '
               'by "scripts/modify.sh --mem"')
# What Batch says of a job that has ended, and what to do about it.
_ADVICE = (
    ('OutOfMemory', 'It needed more memory than its job has: ' + MORE_MEMORY + '.'),
    ('CannotPullContainer', 'The image is not in the repository: "scripts/build.sh" builds and pushes it.'),
    ('exec format error', 'The image is for another kind of processor: "scripts/build.sh --platform".'),
    ('Host EC2', 'Its instance was taken away, as happens to Spot instances.'),
    ('timeout', 'The stack\'s job time-out ended it: "scripts/modify.sh --timeout".'))


def _response(error):
    """What AWS has answered (dict). Exceptions of botocore's own may have something else of that name."""
    return error.response if isinstance(error, botocore.exceptions.ClientError) else {}


def _status(error):
    return _response(error).get('ResponseMetadata', {}).get('HTTPStatusCode', 0)


def is_one_of(error, names):
    """Whether an error of botocore, by its code or as an exception, is one of those that are named."""
    said = _response(error).get('Error', {})
    # S3 has a code for a wrong clock; others say that the signature is wrong, and why in words.
    late = re.match('Signature (expired|not yet current)', said.get('Message') or '')
    code = 'RequestTimeTooSkewed' if late else said.get('Code', '')
    return not names.isdisjoint([code, *(kind.__name__ for kind in type(error).__mro__)])


def is_temporary(error):
    """Whether an error of botocore (a network that is away, a throttle, a 5xx) may pass."""
    status = _status(error)     # what is between us and a service says 408 or 429 without a code of AWS
    return status >= 500 or status in (408, 429) or is_one_of(error, _AWAY | _THROTTLED | _CUT)


def user_may_mend(error):
    """
    Whether an error of botocore that is not temporary passes when the user logs in again or sets the clock.
    There are ever more ways to log in, and each has errors of its own; so all are taken for that but those
    that cannot pass: a permission that is not there, and a wrong request. Keys that AWS does not know may be
    half of a login that is just being changed: new ones beside an old session token.
    """
    if isinstance(error, botocore.exceptions.ClientError):
        return is_one_of(error, _EXPIRED | _CLOCK | _UNKNOWN) or (
            _status(error) in (401, 403) and not is_one_of(error, DENIED))
    return not is_one_of(error, _WRONG)


def _meaning(error):
    return next((text for names, text in _MEANINGS if is_one_of(error, names)), '{}')


def explain(error, doing):
    """An :class:`AWSBatchException` that a user can act on, for one of botocore while `doing` something."""
    log.debug('AWS failed when %s', doing, exc_info=error)
    meaning = _meaning(error).format(error)
    return AWSBatchException(f'Error when {doing} (stack {STACK_NAME}, region {REGION}): {meaning}')


def new_session(expired=None):
    """
    A boto3 session with the credentials that there are now, instead of one whose login has expired.

    If the script has chosen a profile or keys (boto3.setup_default_session), they are used. The session
    itself is used if it has more than what it has read: keys of its own, or a role, which may have cost a
    code that AWS takes once. Raises AWSBatchException.
    """
    import boto3
    default = boto3.DEFAULT_SESSION
    try:
        if default is None:
            return _sharing(boto3.session.Session(), expired is None)
        method = getattr(default.get_credentials(), 'method', None)
        if method not in _READ and (default is not expired or method == 'explicit'):
            return default
        profile = default.profile_name
        return _sharing(boto3.session.Session(profile_name=None if profile == 'default' else profile),
                        expired is None)
    except AWS_ERRORS as error:             # a profile that does not exist, for instance
        raise explain(error, 'looking for your AWS login') from None


def _sharing(session, may_ask):
    """
    Let a role have the session for which the aws command has asked an MFA code, from where that command
    keeps it, since AWS takes a code once. Where a code may not be asked for, as in a thread of a run, to want
    one is an error.
    """
    import botocore.utils
    role = session._session.get_component('credential_provider').get_provider('assume-role')
    if os.access(os.path.expanduser('~'), os.W_OK):
        role.cache = botocore.utils.JSONFileCache(os.path.expanduser('~/.aws/cli/cache'))
    if not may_ask:
        role._prompter = _ask_nobody
    return session


def _ask_nobody(prompt):
    raise botocore.exceptions.RefreshWithMFAUnsupportedError


def make_client(service, session=None, requests=None, region=REGION, attempts=8):
    """A boto3 client for many threads, patient with AWS; `requests` (Counter) counts what it asks for."""
    import botocore.config
    import botocore.configprovider
    # botocore's retries of 2026 begin with a pause of 50 ms instead of 1 s; with 4 more they take as long.
    attempts += 4 * getattr(botocore.configprovider, 'NEW_RETRIES_ENABLED', False)
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
    client.meta.events.register('after-call-error', _raise_in_words_of_botocore)
    client.meta.events.register('after-call.batch', _raise_where_nothing_is_said)
    if requests is not None:
        client.meta.events.register('before-send.' + service, lambda event_name, **kwargs: requests.update(
            [event_name.partition('.')[2]]))
    return client


def _raise_in_words_of_botocore(exception, **kwargs):
    """
    It lets through as it is what urllib3 says of an error of S3 that breaks off in its middle, and what its
    parsers say of an answer that is none of AWS (a proxy's, an empty one).
    """
    import botocore.parsers
    import urllib3.exceptions
    if isinstance(exception, (urllib3.exceptions.HTTPError, botocore.parsers.ResponseParserError)):
        raise botocore.exceptions.ResponseStreamingError(error=exception) from exception


def _raise_where_nothing_is_said(parsed, model, **kwargs):
    """To botocore, an answer that is no JSON, or breaks off (before urllib3 2), is one without any field."""
    if model.output_shape.members and parsed.keys() == {'ResponseMetadata'}:
        raise botocore.exceptions.ResponseStreamingError(error='an answer that says nothing')


def getStackOutputs(session=None):
    """
    Return the outputs of the stack, which name everything a run uses (dict of str), as ``batch.yaml`` says.

    Args:
        session (boto3.session.Session): whose credentials are used. Default: those that there are now.

    Raises:
        AWSBatchException: there is no such stack, it is not ready, it is not one of ours, or AWS
            could not be asked.
    """
    where = f'stack "{STACK_NAME}" in region {REGION}'
    variables = 'RIOS_AWSBATCH_STACK and RIOS_AWSBATCH_REGION say which stack is used'
    try:
        # Somebody sits and waits for this, and no block can be lost yet, so few attempts are made.
        client = make_client('cloudformation', session, attempts=3)
        stack = client.describe_stacks(StackName=STACK_NAME)['Stacks'][0]
    except AWS_ERRORS as error:
        # botocore has exceptions of its own that are called so, for a region's name for instance.
        if isinstance(error, botocore.exceptions.ClientError) and is_one_of(error, {'ValidationError'}):
            raise AWSBatchException(
                f'There is no {where}. {variables}; "scripts/create.sh --wait" creates one.') from None
        raise explain(error, 'reading the stack outputs') from None
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


def require_image(stack, session):
    """
    Raise AWSBatchException where nobody has built the image, or its tags say that calls cannot travel to it:
    to find that out later would cost an instance.
    """
    repository = stack.get('BatchECR', '').rpartition('/')[2]
    try:
        image, = make_client('ecr', session).describe_images(
            repositoryName=repository, imageIds=[{'imageTag': 'latest'}])['imageDetails']
    except AWS_ERRORS as error:
        if is_one_of(error, {'ImageNotFoundException', 'RepositoryNotFoundException'}):
            raise AWSBatchException(
                f'There is no image for the workers in the repository {repository} of stack {STACK_NAME} '
                'yet. "scripts/build.sh" builds and pushes it.') from None
        log.debug('Whether there is an image cannot be seen: %s', error)     # Batch will say
        return
    for tag in image.get('imageTags', []):
        kind, *pairs = tag.split('--')
        if kind == 'versions' and (why := mismatch(versions(), dict(pair.split('-', 1) for pair in pairs))):
            raise AWSBatchException(why)


# ---- Shared with worker.py: what travels -------------------------------------------------------------
# Workers can import what is in their image. The script itself (__main__) is not in it, nor is a module that
# is registered by value (cloudpickle.register_pickle_by_value): such modules travel. Workers have them as
# modules, too. So what is in one of them under its name is pickled by reference, as pickle does it with any
# module, and with the reference goes what it needs: the definition of that name, of the globals that its
# code looks up, and so on. A worker takes of these only what is new to it. So what a call changes in a
# module stays, until the script itself changes it.
#
# Functions and classes are made first, empty, and then filled: so they may refer to one another in any way,
# and what refers to one still does when it is filled anew. Anything else is made anew, and so is what has it
# in it. A name is (module, qualified name).

_SCRIPT = {'__main__', '__mp_main__'}       # the latter where multiprocessing has started it anew
_ABOUT = {'__file__', '__package__', '__path__'}        # what a module says of itself
_AT_HOME = {'__builtins__', '__loader__', '__spec__'}   # ... and what is of no use elsewhere
_PLAIN = {str, bytes, int, float, complex, bool, type(None)}
_USUAL = object.__reduce_ex__, object.__reduce__
_Cached = type(functools.lru_cache(len))
_NOTHING = object()
_tracker, _tracked, _globals_of_code = (getattr(cloudpickle.cloudpickle, name) for name in (
    '_get_or_create_tracker_id', '_lookup_class_or_track', '_extract_code_globals'))
# Its own lock would wait for ever where a signal comes while it is held, and the handler submits a call.
cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK = threading.RLock()


class Refused(Exception):
    """A message or an object that this run did not make. It is never unpickled."""


def describe(error):
    """Type and text of any exception, also of one whose __str__ fails (str)."""
    try:
        return f'{type(error).__name__}: {error}'
    except Exception:
        return type(error).__name__


def _parents(module):
    """The names of a module's packages, and its own."""
    return itertools.accumulate(module.split('.'), '{}.{}'.format)


def _travels(module):
    """Whether a module (its name) is one that workers cannot import."""
    by_value = cloudpickle.list_registry_pickle_by_value()
    return module in _SCRIPT or bool(by_value) and not by_value.isdisjoint(_parents(module))


def _at(name):
    """What a name stands for; _NOTHING if there is no such thing."""
    first, *more = name[1].split('.')
    found = getattr(sys.modules.get(name[0]), '__dict__', {}).get(first, _NOTHING)
    for each in more:
        found = getattr(found, each, _NOTHING)
    return found


def _home(thing, name):
    """The travelling module in which a thing is under its name; None if it is in none."""
    home = getattr(thing, '__module__', None)
    return home if isinstance(home, str) and _at((home, name)) is thing and _travels(home) else None


def _is_code(thing):
    return issubclass(type(thing), (type, types.FunctionType))


def _codes(code):
    """Code, and that of the functions and classes in it."""
    yield code
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _codes(inner)


def _words(notes):
    """Names in annotations that are text."""
    return re.findall(r'[^\W\d]\w*', ' '.join(note for note in notes.values() if isinstance(note, str)))


class _Reduced:
    """Stands in a pickle for what a call gives when it is unpickled."""
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def _reduce_code(code):
    """As cloudpickle does it, but with the name of its file, which tracebacks say, and 3.1 leaves out."""
    make, args = cloudpickle.CloudPickler.dispatch_table[types.CodeType](code)
    return make, tuple(code.co_filename if arg == '<dynamic-code>' else arg for arg in args)


def _reduce_cell(cell):
    """A variable that functions close over: those that are pickled together share it."""
    try:
        return types.CellType, (), (cell.cell_contents,), None, None, _fill_cell
    except ValueError:
        return types.CellType, ()


class _Pickler(cloudpickle.CloudPickler):
    """Pickles by reference what is in a travelling module under its name, and notes what that takes."""
    dispatch_table = collections.ChainMap({
        types.CellType: _reduce_cell,
        types.CodeType: _reduce_code,
        dataclasses._FIELD_BASE: operator.attrgetter('name'),       # by value before cloudpickle 3
        functools.cached_property: lambda thing: (      # which has a lock before Python 3.12
            functools.cached_property, (thing.func,), {'attrname': thing.attrname}),
    }, cloudpickle.CloudPickler.dispatch_table)
    names = ()                  # what is defined here

    def __init__(self, file, known=None, **options):
        super().__init__(file, protocol=5, **options)
        self.known = known      # names that may be referred to; None: all
        self.refs = set()       # names that are referred to
        self.needs = set()      # names that code looks up
        self.wants = set()      # names that it may look up
        self.seen = {}          # what is here itself, and may be elsewhere too, by id

    def reducer_override(self, thing):
        kind = type(thing)
        if issubclass(kind, types.ModuleType) and _travels(thing.__name__):
            self.wants.update((thing.__name__, name) for name in vars(thing).keys() - _AT_HOME)
            return module, (thing.__name__,)
        if _is_code(thing):
            return thing.__qualname__ if self.refers(thing, thing.__qualname__) else self.by_value(thing)
        if (kind.__reduce_ex__, kind.__reduce__) == _USUAL or kind in self.dispatch_table:
            return NotImplemented
        reduced = thing.__reduce_ex__(5)
        if not isinstance(reduced, str) or self.refers(thing, reduced):     # text is the name that it has
            return reduced
        home = _home(thing, reduced)
        if kind is _Cached and (home or _at((thing.__module__, reduced)) is not thing):
            return _cached, (thing.__wrapped__, thing.cache_parameters()), vars(thing)
        return (copyreg.__newobj__, (kind,), vars(thing)) if home else reduced

    def refers(self, thing, name):
        """Whether the pickle can say of a thing where it is."""
        home, outer = _home(thing, name), name.rpartition('.')[0]
        # A method belongs to its class.
        owner = home, name if isinstance(thing, type) or not outer else outer
        if home is None or self.known is not None and owner not in self.known or (
                owner in self.names and not (_is_code(thing) and owner[1] == name)):    # it is a part of that
            return False
        self.refs.add(owner)
        if outer:
            self.needs.add((home, outer))
        return True

    def reduced(self, code):
        """What cloudpickle does with a function or class: (make, args, state, None, None, fill) by value."""
        reduced = super().reducer_override(code)
        if isinstance(code, type) and isinstance(reduced, tuple) and len(reduced) == 6:
            make, args, (state, slots), *rest = reduced
            state.pop('__slotnames__', None)        # pickle itself puts it there
            self.wants.update((code.__module__, word) for word in _words(state.get('__annotations__', {})))
            return (_make, (_tracker(code), make, args), (state, slots), *rest)
        return reduced

    def by_value(self, code):
        reduced = self.reduced(code)
        if isinstance(code, type) or reduced is NotImplemented:
            return reduced
        self.seen[id(code)] = code
        make, args, (state, slots), *rest = reduced
        # cloudpickle gives each function variables of its own to close over.
        return (make, (*args[:-1], code.__closure__), (state, dict(slots, __closure__=None)), *rest)

    def _dynamic_function_reduce(self, function):
        """As cloudpickle does it, but the globals are those of its module, where that travels."""
        space, home = function.__globals__, function.__globals__.get('__name__')
        there = getattr(sys.modules.get(home), '__dict__', None) is space
        if self.known is not None or not there or not _travels(home):
            return super()._dynamic_function_reduce(function)
        self.globals_ref[id(space)] = _Reduced(globals_of, (home,))
        make, args, (state, slots), *rest = super()._dynamic_function_reduce(function)
        codes = list(_codes(function.__code__))
        names = {name for code in codes for name in code.co_names}
        self.needs.update((home, name) for name in _globals_of_code(function.__code__))
        self.wants.update((home, name) for name in _words(function.__annotations__))
        self.wants.update((home, name) for code in codes if not code.co_flags & inspect.CO_OPTIMIZED
                          for name in code.co_names)        # of the bodies of classes
        packages = ['', *(each + '.' for each in _parents(space.get('__package__') or ''))]
        for found in {(package + name).rstrip('.') for package in packages for name in names}:
            if found in sys.modules and _travels(found):    # it may be imported
                self.wants.update((each, name) for each in _parents(found) for name in names | _ABOUT)
        return (make, args, (state, dict(slots, __globals__={})), *rest)


class _Maker(_Pickler):
    """Pickles what makes a function or class, and of others that travel with it as well what makes them."""
    def by_value(self, code):
        reduced = super().by_value(code)
        if isinstance(code, type) and isinstance(reduced, tuple) and len(reduced) == 6:
            self.seen[id(code)] = code
            return reduced[:2]
        return reduced


class _Definition(_Pickler):
    """A pickle of what some names of travelling modules stand for."""
    # As in a process that imports the module, its locks are new ones.
    dispatch_table = collections.ChainMap({
        **{type(make()): lambda lock, make=make: (make, ()) for make in (
            threading.Lock, threading.RLock, threading.local)},
        **{kind: lambda weak: (type(weak), (dict(weak),)) for kind in (
            weakref.WeakKeyDictionary, weakref.WeakValueDictionary)},
    }, _Pickler.dispatch_table)

    def __init__(self, names, others):
        self.names, self.others = names, others     # names by the ids of what they stand for
        self.makers = {}        # of functions and classes: (pickle, refs) by name
        with io.BytesIO() as file:
            super().__init__(file)
            self.dump([self.part(name) for name in names])
            self.data = file.getvalue()
        self.refs.difference_update(names)

    def persistent_id(self, thing):
        """The name of another global that is a part of it: so it stays the same thing."""
        if type(thing) in _PLAIN or type(thing).__hash__ not in (None, object.__hash__) or (
                _is_code(thing) or isinstance(thing, types.ModuleType)):
            return None         # an equal one is as good, or has a name
        name = self.others.get(id(thing))
        if name is None or name in self.names:
            self.seen[id(thing)] = thing
            return None
        self.refs.add(name)
        return name

    def part(self, name):
        thing, more = _at(name), []
        if not _is_code(thing) or name != (_home(thing, thing.__qualname__), thing.__qualname__):
            return thing
        if isinstance(thing, enum.EnumMeta):        # what its __init__ has set
            more = [(member.name, {key: value for key, value in vars(member).items() if key[0] != '_'})
                    for member in thing]
        make, args, state, _, _, fill = self.reduced(thing)
        with io.BytesIO() as file:
            maker = _Maker(file)
            maker.dump(_Reduced(_make, args if make is _make else (_tracker(thing), make, args)))
            self.makers[name] = file.getvalue(), maker.refs
        self.refs |= maker.refs
        self.needs |= maker.needs
        self.wants |= maker.wants
        return _Reduced(_fill, (thing, fill, state, more, list(maker.seen.values())))

    def must_follow(self, other):
        """Whether it refers to something that is not there before that is defined."""
        return not self.refs.isdisjoint(set(other.names).difference(other.makers))


def _parts(name):
    """All that the definition of a name depends on (list), where nothing of that can change; else None."""
    thing = _at(name)
    kind = type(thing)
    if kind in _PLAIN or kind is types.ModuleType and not _travels(thing.__name__):
        return [thing]
    if kind is types.FunctionType and name == (_home(thing, thing.__qualname__), thing.__qualname__) and not (
            thing.__closure__ or thing.__kwdefaults__ or vars(thing) or thing.__annotations__ or
            any(type(each) not in _PLAIN for each in thing.__defaults__ or ())):
        code = thing.__code__
        modules = [each for each in map(thing.__globals__.get, _globals_of_code(code))
                   if type(each) is types.ModuleType]
        for each in modules:        # cloudpickle adds those in them that the function uses
            inside = (f'{each.__name__}.{name}' for name in code.co_names)
            modules += [sys.modules[name] for name in inside if name in sys.modules]
        return [_tracker(thing), code, thing.__defaults__, thing.__doc__, thing.__name__, *modules]
    return None


class _InCommon(Exception):
    """Definitions that can only be one."""


class _Luggage:
    """The definitions that one pickle takes besides those that are known already (digests by name)."""
    def __init__(self, run, pickler, known):
        self.run, self.known = run, known
        self.found = {}         # definitions by name; None for what is not there any more
        wanted = self.find(pickler)
        for name in wanted:
            if name not in self.found and name not in known and _at(name) is not _NOTHING:
                found = self.found.copy()
                try:
                    wanted += self.find(types.SimpleNamespace(refs={name}, needs=set(), wants=set()))
                except Exception as error:
                    log.debug('%s.%s does not travel: %s', *name, describe(error))
                    self.found = found

    @functools.cached_property
    def names(self):
        """Names by the ids of what they stand for: of several, the one that travelled first."""
        return {id(_at(name)): name for name in reversed(self.run.sent.copy())}

    def find(self, pickler):
        """Add what a pickle needs, and what that needs; names of what it may be good to have (list)."""
        waiting, wanted = [pickler], []
        while waiting:
            pickler = waiting.pop()
            wanted += pickler.wants
            for name in (pickler.refs | pickler.needs) - self.found.keys() - self.known.keys():
                names = tuple(each for each in self.run.together.get(name, [name])
                              if _at(each) is not _NOTHING)
                if name in names:
                    definition = self.define(names)
                    self.found.update(dict.fromkeys(names, definition))
                    waiting.append(definition)
                    wanted += [(name[0], about) for about in _ABOUT if globals_of(name[0]).get(about)]
                elif name in self.run.sent:
                    self.found[name] = None
        return wanted

    def define(self, names):
        """The definition of names: that of an earlier call, where it can only be the same."""
        parts = _parts(names[0]) if len(names) == 1 else None
        definition, before = self.run.unchanged.get(names, (None, ()))
        if parts and len(parts) == len(before) and all(map(operator.is_, parts, before)):
            return definition
        try:
            definition = _Definition(names, self.names)
        except Exception as error:
            name = ', '.join(name[1] for name in names)
            raise unpicklable(error, f'The variable {name} of {names[0][0]}', [
                (_at(name), name[1]) for name in names]) from error
        if parts:
            self.run.unchanged[names] = definition, parts
        return definition

    def in_order(self):
        """The definitions, each after those that it refers to, as far as that matters. Raises _InCommon."""
        definitions, seen = list(dict.fromkeys(filter(None, self.found.values()))), {}
        for each in definitions:
            common = seen.keys() & each.seen.keys()
            if common:
                raise _InCommon([other for other in definitions if not common.isdisjoint(other.seen)])
            seen.update(each.seen)
        after = {each: {self.found[name] for name in each.refs if self.found.get(name)}
                 for each in definitions}
        while True:
            try:
                order = list(graphlib.TopologicalSorter(after).static_order())
                break
            except graphlib.CycleError as error:
                circle = error.args[1]          # each comes before the next
                for first, second in zip(circle, circle[1:]):
                    if not second.must_follow(first):
                        after[second].discard(first)
                        break
                else:
                    raise _InCommon(circle) from None
        late = set()            # data with code in them, which may run when they are unpickled
        for each in order:
            if each.refs and not each.makers or any(map(each.must_follow, after[each] & late)):
                late.add(each)
        return sorted(order, key=late.__contains__)

    def packed(self):
        """What Script.define() takes, and what is known then."""
        makers, definitions = {}, []

        def make(name):
            """Add what makes a function or class, after what makes those that it takes."""
            definition = self.found.get(name)
            if definition and name in definition.makers and name not in makers:
                data, refs = definition.makers[name]
                for each in [(name[0], name[1].rpartition('.')[0]), *sorted(refs)]:
                    make(each)
                makers[name] = data

        for each in self.in_order():
            for name in each.makers:
                make(name)
            data = each.data
            if len(data) > DEFINITION_BYTES:
                self.run.note_size(f'The variable {", ".join(name for _, name in each.names)}', len(data))
                data = self.run.share(data)
            digest = hashlib.sha256(data if isinstance(data, bytes) else data.encode())
            for name in each.makers:
                digest.update(makers[name])
            for name in sorted(each.refs):
                thing = _at(name)
                digest.update(_tracker(thing).encode() if _is_code(thing) else self.known.get(name, b''))
            definitions.append((each.names, digest.digest(), data))
            self.known.update(dict.fromkeys(each.names, digest.digest()))
        for name in (name for name, definition in self.found.items() if definition is None):
            definitions.append(((name,), b'', None))
            self.known[name] = b''
        self.run.sent.update(dict.fromkeys(self.found))
        return (list(makers.items()), definitions), self.known


class Definitions:
    """
    What the workers of a run are told of travelling modules.

    share: stores bytes for all workers; gives the token (str) by which they find them.
    """
    def __init__(self, share):
        self.share = share
        self.together = {}      # names whose values have parts in common: all of them, by each
        self.sent = {}          # all names that have travelled, in their order
        self.unchanged = {}     # definitions, and what they depend on
        self.large = set()      # what was logged for its size
        main = sys.modules.get('__mp_main__')
        if main is not None:
            cloudpickle.register_pickle_by_value(main)

    def pickled(self, thing, what, parts, known=()):
        """
        A pickle of a thing (bytes), the definitions that it takes besides those of names that are `known`,
        and what is known then (digests by name). Raises AWSBatchPicklingError, which says `what` it was,
        and which of its `parts`, (thing, path) of each, cannot be pickled.
        """
        try:
            with io.BytesIO() as file:
                pickler = _Pickler(file)
                pickler.dump(thing)
                data = file.getvalue()
            if not (pickler.refs or pickler.needs or pickler.wants):
                return data, ([], []), known
            while True:
                luggage = _Luggage(self, pickler, dict(known))
                try:
                    return (data, *luggage.packed())
                except _InCommon as common:
                    if self.sent.keys() >= luggage.found.keys():    # what is in common has no name
                        names = tuple(sorted({name for each in common.args[0] for name in each.names}))
                        self.together.update(dict.fromkeys(names, names))
                    self.sent.update(dict.fromkeys(luggage.found))
        except Exception as error:
            raise unpicklable(error, what, parts) from error

    def function(self, fn, what):
        """A function as it is now: what of it travels with each call (bytes), and what workers know then."""
        data, definitions, known = self.pickled(fn, what, [(fn, _name(fn))])
        self.note_size(what, len(data))
        return self.packed(definitions, data), known

    def packed(self, definitions, data):
        """A pickle of two pickles (bytes), or of the tokens of those that are shared for their size."""
        return pickle.dumps([self.share(each) if len(each) > FUNCTION_BYTES else each
                             for each in (pickle.dumps(definitions), data)])

    def note_size(self, what, size, kind=None):
        """Log that something is so large that runs may be slow for it: once, or once for all of a kind."""
        if size > LARGE_BYTES and (kind or what) not in self.large:
            self.large.add(kind or what)
            log.warning('%s: %d MB travel to the workers. Where that takes long, put it on S3, and let an '
                        'initializer read it.', what, size / 10**6)

    def parcel(self, function, args, kwargs, what):
        """All that travels with a call (bytes): see Computer.unpacked in worker.py."""
        named = itertools.chain(enumerate(args, 1), kwargs.items())
        parts = ((arg, f'argument {name}') for name, arg in named)      # looked at only if one cannot travel
        data, definitions, _ = self.pickled((args, kwargs), what, parts, function[1])
        self.note_size(what, len(data), 'arguments')
        return function[0] + pickle.dumps(definitions) + data


# What pickles call when they are unpickled.

def module(name):
    """The travelling module of that name. In a worker, it is made when it is first asked for."""
    if script is not None:
        script.make_module(name)
    return sys.modules[name]


def globals_of(name):
    return vars(module(name))


def _make(tracker, make, args):
    """An empty function or class, or the one that was made of the same before."""
    found = cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    if isinstance(found, type):
        return found
    made = make(*args)
    if found is None:
        if script is not None:
            script.all.append(made)
        return _tracked(tracker, made)
    found.__code__ = made.__code__
    return found


def _fill(code, fill, state, members, others):
    if isinstance(code, types.FunctionType):
        vars(code).clear()
    fill(code, state)
    for name, values in members:
        vars(code[name]).update(values)
    return code


def _fill_cell(cell, content):
    cell.cell_contents, = content


def _cached(wrapped, parameters):
    return functools.lru_cache(**parameters)(wrapped)


def without_init(error):
    """Stands in a pickle for an exception whose __init__ wants other arguments than its args."""
    return _Reduced(_raised, (type(error), error.args, vars(error)))


def _raised(kind, args, state):
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, name):
        return _at(name)


class Script:
    """
    The travelling modules in a process that computes; the main script's is __main__ there.

    fetch: what Definitions have shared (bytes), by its token.
    """
    def __init__(self, fetch):
        self.fetch = fetch
        self.modules = set()    # names of those that are made
        self.all = []           # functions and classes: an old object may come whose class is redefined
        self.known = {}         # digests of definitions, by name
        self.make_module('__main__')

    def make_module(self, name):
        if name not in self.modules:
            made, package = types.ModuleType(name), name.rpartition('.')[0]
            for each in _SCRIPT if name in _SCRIPT else {name}:
                self.modules.add(each)
                sys.modules[each] = made
                cloudpickle.register_pickle_by_value(types.ModuleType(each))
            if package:
                with contextlib.suppress(ImportError):
                    importlib.import_module(package)
                setattr(sys.modules.get(package) or module(package), name.rpartition('.')[2], made)

    def define(self, makers, definitions):
        """Take what is new, or is something else than the main script said before."""
        new = {name: digest for names, digest, _ in definitions for name in names
               if self.known.get(name) != digest}
        for home in sorted({home for home, _ in new}):
            self.make_module(home)
        for name, data in makers:
            if name in new:
                self.place(name, pickle.loads(data))
        for names, digest, data in definitions:
            if not new.keys().isdisjoint(names):
                if data is None:
                    self.known.get(names[0]) and globals_of(names[0][0]).pop(names[0][1], None)
                else:
                    data = self.fetch(data) if isinstance(data, str) else data
                    for name, value in zip(names, _Unpickler(io.BytesIO(data)).load()):
                        self.place(name, value)
                self.known.update(dict.fromkeys(names, digest))

    def __reduce__(self):
        """For a process that multiprocessing starts anew from this one: it has what is here now."""
        modules = [sys.modules[name] for name in sorted(self.modules)]
        return _again, Definitions(bytes).pickled(modules, 'The script', ())[1]

    @staticmethod
    def place(name, value):
        outer, _, last = name[1].rpartition('.')
        if outer:
            setattr(_at((name[0], outer)), last, value)
        else:
            globals_of(name[0])[last] = value


script = None       # of a process that computes


def _again(makers, definitions):
    global script
    script = Script(None)
    script.define(makers, definitions)


class _Results(pickle.Unpickler):
    """Unpickles results. A class of the script that comes back with one stays as it is here."""
    def __init__(self, file):
        super().__init__(file)
        self.known = set(cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.keyrefs())

    def find_class(self, module, name):
        found, known = super().find_class(module, name), self.known     # the unpickler keeps what it gives
        if (module.partition('.')[0], name) != ('cloudpickle', '_class_setstate'):
            return found
        return lambda cls, state: cls if weakref.ref(cls) in known else found(cls, state)


def dumps(thing, **options):
    """A pickle for the main script of whatever cloudpickle can, which refers to what came from there."""
    with io.BytesIO() as file:
        _Pickler(file, script and script.known, **options).dump(thing)
        return file.getvalue()


def _from_gdal(thing):
    return type(thing).__module__.startswith('osgeo.')


def _inside(thing, path):
    """The parts of a thing that a user knows, and where they are: (part, path) of each."""
    if isinstance(thing, types.FunctionType):
        yield from zip((cell.cell_contents for cell in thing.__closure__ or ()), thing.__code__.co_freevars)
    if _from_gdal(thing):
        return
    if isinstance(thing, dict):
        yield from ((part, f'{path}[{reprlib.repr(key)}]') for key, part in thing.items())
    elif isinstance(thing, (list, tuple)):
        yield from ((part, f'{path}[{place}]') for place, part in enumerate(thing))
    else:
        yield from ((part, f'{path}.{name}') for name, part in getattr(thing, '__dict__', {}).items())


def _culprit(parts, depth=8):
    """Which of these, (thing, path) of each, or what in them, cannot be pickled; None if it is not found."""
    for thing, path in parts:
        try:
            dumps(thing)
        except Exception:
            inner = _culprit(_inside(thing, path), depth - 1) if depth else None
            return inner or (thing, path)
    return None


def unpicklable(error, what, parts, to='a worker'):
    """
    An AWSBatchPicklingError that says what to do. `parts` are those of what was to be pickled: (thing, path)
    of each.
    """
    if isinstance(error, AWSBatchPicklingError):        # it is about a variable that this one needs
        return AWSBatchPicklingError(f'{what} cannot be pickled. {error}')
    culprit, reason = None, describe(error)
    with contextlib.suppress(Exception):        # from code of the script
        culprit, path = _culprit(parts)
        reason = f'{path} is of type {type(culprit).__name__} ({reason})'
    if to != 'a worker':
        advice = 'Return arrays, numbers and text.'
    elif isinstance(culprit, io.IOBase) or _from_gdal(culprit):
        advice = 'Open it inside the function.'
    elif isinstance(culprit, types.GeneratorType):
        advice = 'Pass a list of what it gives.'
    else:
        advice = 'Make it inside the function.'
    return AWSBatchPicklingError(f'{what} cannot be pickled and sent to {to}: {reason}. {advice}')


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


def _of(variable, **more):
    return dataclasses.field(metadata={'variable': variable}, **more)


@dataclasses.dataclass
class JobSettings:
    """What a run tells its workers, in the environment of their Batch jobs."""
    bucket: str = _of('RIOSBucket')
    in_queue: str = _of('RIOSInQueue')              # where calls come from
    out_queue: str = _of('RIOSOutQueue')            # where answers go to
    region: str = _of('RIOSRegion')
    run_id: str = _of('RIOSRun')
    key: str = _of('RIOSRunKey')                    # of its messages, as hex
    versions: dict = _of('RIOSVersions')            # that the main script has
    modules: list = _of('RIOSModules')              # to be imported before the first call
    lease: float = _of('RIOSLease')                 # LEASE_SECONDS, VISIBILITY_SECONDS, ...
    visibility: float = _of('RIOSVisibility')
    max_tries: int = _of('RIOSTries')
    max_receives: int = _of('RIOSReceives')
    output: bool = _of('RIOSOutput')                # whether what calls print is sent home
    initializer: str = _of('RIOSInitializer')       # its token, or ''
    first: int = _of('RIOSFirst', default=0)        # the number of the job's first worker
    # A worker exits when nothing came for so many seconds. batch.yaml says it, in the job definition.
    idle: float = _of('RIOS_NOMSG_TIMEOUT', default=3600)

    def to_env(self):
        """The variables (dict of str)."""
        values = {field.metadata['variable']: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value if isinstance(value, str) else json.dumps(value)
                for name, value in values.items() if name != 'RIOS_NOMSG_TIMEOUT'}

    @classmethod
    def from_env(cls, environment):
        """The settings in the variables of a job."""
        fields = [field for field in dataclasses.fields(cls) if field.metadata['variable'] in environment]
        texts = {field: environment[field.metadata['variable']] for field in fields}
        return cls(**{field.name: text if field.type is str else json.loads(text)
                      for field, text in texts.items()})


#: What the main script and its workers tell each other: the fields of each kind of message, and who opens it.
MESSAGES = {
    # Compute this. The payload is what Definitions.parcel() has made; `gdal` says what raises exceptions.
    'call': ('worker', 'id label gdal'),
    # No more calls will come. There is one for each worker.
    'stop': ('worker', ''),
    # A worker is up, in this attempt of its job (AWS_BATCH_JOB_ATTEMPT).
    'hello': ('main', 'worker attempt'),
    # It cannot work for this main script, since mismatch() says so.
    'misfit': ('main', 'worker text'),
    # It has ended, as it should: `requests` are those that it has made (counts by operation), `files` what
    # functions have left in its working folder (names).
    'bye': ('main', 'worker requests files'),
    # Something for the log of the main script; something for which no worker of the run will ever answer.
    'note': ('main', 'worker text'),
    'broken': ('main', 'worker text'),
    # The end of a call. The payload is the pickled result, or (exception, traceback); 'lost' has a text.
    # `output` is what the call has printed (lines), `initialized` what the initializer took before it (s);
    # the others are the times of its way (s).
    **dict.fromkeys(('result', 'error', 'lost'), (
        'main', 'worker id tries text output received downloaded initialized started computed uploaded'))}


class Message:
    """One of MESSAGES, with its fields as attributes. What is not said is None; TypeError for other names."""
    def __init__(self, kind, **fields):
        self.kind, (self.to, names) = kind, MESSAGES[kind]
        self.__dict__.update(dict.fromkeys(names.split()), **fields)
        if len(vars(self)) > 2 + len(names.split()):
            raise TypeError(f'a message "{kind}" has {names or "no fields"}, not {", ".join(fields)}')


class Received:
    """A message as it came from SQS, after its signature was checked; `said` is what it says (Message)."""
    def __init__(self, message, header):
        self.message, self.header, self.said = message, header, Message(**header['said'])

    @property
    def receipt(self):
        return self.message['ReceiptHandle']

    @property
    def times(self):
        """How often it was received, this time included (int)."""
        return int(self.message['Attributes']['ApproximateReceiveCount'])

    @property
    def object(self):
        """The key of the object that the payload is in; None where it rides in the message."""
        return self.header.get('object')


def _check(data, digest, what):
    if hashlib.sha256(data).hexdigest() != digest:
        raise Refused(f'{what} is not what was signed')
    return data


def _read(answer):
    """The body of an object (bytes). What TLS says of one that is damaged, botocore lets through as it is."""
    try:
        return answer['Body'].read()
    except Exception as error:
        _raise_in_words_of_botocore(error)
        raise


def size_of(message):
    """What a message counts for, as SQS does it (bytes)."""
    attribute = message.get('MessageAttributes', {}).get('p')
    return len(message['MessageBody']) + (len(attribute['BinaryValue']) + len('pBinary') if attribute else 0)


def in_groups(things, size):
    """Cut a list into lists of at most `size`."""
    return [things[n:n + size] for n in range(0, len(things), size)]


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
    packs = True                            # whether what could ride in a message as it is gets packed

    def __init__(self, run_id, key, bucket, in_queue, out_queue, region):
        self.run_id, self.key, self.bucket, self.region = run_id, key, bucket, region
        self.in_queue, self.out_queue = in_queue, out_queue
        self.folder, self.requests = f'runs/{run_id}/', collections.Counter()
        self.session = self.sqs = self.s3 = None
        self.told = False                   # that a call cannot be hidden any longer

    @classmethod
    def of(cls, settings):
        """That of a run, as a worker has it, from its JobSettings."""
        return cls(settings.run_id, bytes.fromhex(settings.key), settings.bucket, settings.in_queue,
                   settings.out_queue, settings.region).connect()

    def connect(self, session=None):
        """Make the clients, with the credentials that there are now unless a session is given."""
        self.session = session = session or new_session(self.session)
        self.sqs, self.s3 = (
            make_client(service, session, self.requests, self.region) for service in ('sqs', 's3'))
        return self

    def client(self, service):
        return make_client(service, self.session, self.requests, self.region)

    def sign(self, text):
        return hmac.new(self.key, text.encode(), 'sha256').hexdigest()

    def seal(self, said, payload=b''):
        """
        A Message as SQS takes it, and its header (dict, dict). The payload is a pickle (bytes), and put in
        the bucket if it is large.
        """
        packed = pack(payload) if self.packs or len(payload) > INLINE_BYTES else payload
        digest = hashlib.sha256(packed).hexdigest()
        header = {'run': self.run_id, 'sha256': digest, 'bytes': len(packed), 'packed': packed is not payload}
        if len(packed) > INLINE_BYTES:
            header['object'] = f'{self.folder}{said.kind}-{said.id}-{digest}'
            self.s3.put_object(Bucket=self.bucket, Key=header['object'], Body=packed)
            packed = b''
        if 'uploaded' in vars(said):
            said.uploaded = time.time()
        header['said'] = {name: value for name, value in vars(said).items()
                          if value is not None and name != 'to'}
        text = json.dumps(header, separators=(',', ':'))
        message = {'MessageBody': f'{self.sign(text)}\n{text}'}
        if packed:
            message['MessageAttributes'] = {'p': {'DataType': 'Binary', 'BinaryValue': packed}}
        return message, header

    def open(self, to, message):
        """Check a message for 'main' or 'worker' (Received). Refused where this run has made none such."""
        signature, _, text = message['Body'].partition('\n')
        if not hmac.compare_digest(signature.encode(), self.sign(text).encode()):
            raise Refused('its signature is wrong')
        header = json.loads(text)
        try:
            received = Received(message, header)
        except (KeyError, TypeError):
            raise Refused('another version of rios_awsbatch has made it. "scripts/build.sh" builds an image '
                          'with this one') from None
        if (header['run'], received.said.to) != (self.run_id, to):
            raise Refused(f'it is for the {received.said.to} of run {header["run"]}')
        return received

    def payload(self, received):
        """The pickle that came with a message (bytes). Refused where it is not what was signed."""
        header = received.header
        if received.object:
            data = self.fetch(received.object, header['sha256'])
        else:
            data = received.message.get('MessageAttributes', {}).get('p', {}).get('BinaryValue', b'')
            _check(data, header['sha256'], 'its payload')
        return unpack(data) if header['packed'] else data

    def fetch(self, name, digest):
        """Read an object whose SHA-256 is known (bytes)."""
        for attempt in itertools.count(1):      # botocore retries requests, but not their bodies
            try:
                data = _read(self.s3.get_object(Bucket=self.bucket, Key=name))
                return _check(data, digest, 'object ' + name)
            except AWS_ERRORS as error:
                if is_one_of(error, NO_OBJECT):
                    raise Refused(f'object {name} is not there') from error
                if attempt == 5 or not is_one_of(error, _CUT):
                    raise

    def shared(self, digest):
        """The key of something that calls share: a function, for instance."""
        return f'{self.folder}shared-{digest}'

    def send(self, queue_url, messages):
        """Send messages (any number) in as few requests as AWS allows; all are sent when this returns."""
        entries, pause = [dict(message, Id=str(n)) for n, message in enumerate(messages)], 0.1
        while entries:
            some, size = [], 0
            while entries and len(some) < BATCH_ENTRIES and size + size_of(entries[0]) <= MESSAGE_BYTES:
                size += size_of(entries[0])
                some.append(entries.pop(0))
            answer = self.sqs.send_message_batch(QueueUrl=queue_url, Entries=some)
            for entry in answer.get('Failed', []):
                if entry.get('SenderFault'):
                    raise AWSBatchException(
                        f'AWS SQS refused a message: {entry.get("Code")} {entry.get("Message", "")}')
            sent = {entry['Id'] for entry in answer.get('Successful', [])}
            if len(sent) < len(some):
                entries[:0] = [entry for entry in some if entry['Id'] not in sent]
                time.sleep(pause)
                pause = min(2 * pause, 5)

    def receive(self, queue_url, wait, most=BATCH_ENTRIES):
        """Wait up to `wait` seconds for at least one message; a list of SQS's messages."""
        return self.sqs.receive_message(
            QueueUrl=queue_url, MaxNumberOfMessages=most, WaitTimeSeconds=wait, MessageAttributeNames=['p'],
            AttributeNames=['ApproximateReceiveCount']).get('Messages', [])

    def delete(self, queue_url, receipts):
        """Delete received messages, given their receipt handles (any number)."""
        for pause in (0, 0.1, 0.5, 2, 5):       # what is not deleted comes again
            if receipts:
                time.sleep(pause)
                failed = self._each(self.sqs.delete_message_batch, queue_url, receipts)
                receipts = [receipts[int(entry['Id'])] for entry in failed if not entry['SenderFault']]

    def hide(self, receipts, seconds):
        """
        Hide received calls from other workers for so long; 0 gives them back, and SQS counts it. SQS refuses
        it for a call that has been answered meanwhile, which is no news, and for one that it has hidden for
        12 hours in all, which is told once.
        """
        failed = self._each(self.sqs.change_message_visibility_batch, self.in_queue, receipts,
                            VisibilityTimeout=seconds)
        if not self.told and any('beyond the limit' in entry.get('Message', '') for entry in failed):
            self.told = True
            log.warning('A call takes longer than the 12 hours for which AWS SQS hides one from others. '
                        'Another worker may compute it, too; the first answer counts. Use smaller '
                        'blocks.')

    def send_anew(self, messages):
        """Let others have calls that were received: as new messages, since SQS counts how often one was."""
        self.send(self.in_queue, [
            {'MessageBody': message['Body'], 'MessageAttributes': message.get('MessageAttributes', {})}
            for message in messages])
        self.delete(self.in_queue, [message['ReceiptHandle'] for message in messages])

    @staticmethod
    def _each(request, queue_url, receipts, **more):
        """The entries that have failed; Id is the place of a receipt among all."""
        entries = [dict(more, Id=str(n), ReceiptHandle=receipt) for n, receipt in enumerate(receipts)]
        return [entry for some in in_groups(entries, BATCH_ENTRIES)
                for entry in request(QueueUrl=queue_url, Entries=some).get('Failed', [])]


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

    def take(self, timeout=None, most=sys.maxsize):
        """What there is, after the first has come (list); nothing after so many seconds without one."""
        items = []
        with contextlib.suppress(queue.Empty):
            items.append(self.get(timeout))
            while len(items) < most:
                items.append(self.get(0))
        return items


def versions():
    """The versions that must fit between the main script and its workers, by name."""
    found = {'Python': platform.python_version(), 'rios_awsbatch': __version__}
    for name in ('cloudpickle', 'numpy'):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if 'rios' in sys.modules or 'RIOSRun' in os.environ:    # the main script asks for it, a worker says it
        with contextlib.suppress(ImportError, AttributeError):
            found['rios'] = importlib.import_module('rios').__version__     # a copy has no metadata
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


# ---- A run: its parts --------------------------------------------------------------------------------

class _Life:
    """
    How far a run has come: open, closing, broken, ended. Any thread may take it further, and none takes it
    back: what is set here stays set, so it needs no lock.
    """
    def __init__(self):
        self.pid = os.getpid()
        self.closing = False                # no more calls
        self.hurry = False                  # ... and nobody waits for those that are outstanding
        self.reasons = []                   # why it is broken; the first is what users read
        self.ended = threading.Event()      # its threads stop

    @property
    def broken(self):
        """Why no call will be answered any more (str), or None."""
        return self.reasons[0] if self.reasons else None

    @property
    def is_open(self):
        return not (self.closing or self.reasons)

    def close(self, hurry):
        if hurry:
            self.hurry = True
        self.closing = True

    def break_off(self, text):
        self.reasons.append(text)

    def check_open(self):
        """Raise what submit() raises when no call can be taken."""
        if self.pid != os.getpid():
            raise RuntimeError(f'This executor belongs to process {self.pid}, which made it. A forked '
                               'process makes one of its own.')
        if self.broken:
            raise BrokenAWSBatchExecutor(self.broken)
        if self.closing:
            raise RuntimeError('cannot schedule new futures after shutdown')


class _Report:
    """The file in which a run writes down what happens. It owns the file descriptor; any thread may note."""
    def __init__(self, folder, run_id):
        self.run_id, self.file = run_id, None
        if folder:
            try:
                os.makedirs(folder, exist_ok=True)
                self.file = os.open(os.path.join(folder, run_id + '.jsonl'),
                                    os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                # When nobody can note anything any more: the number is another file's then.
                weakref.finalize(self, os.close, self.file).atexit = False
            except OSError as error:
                raise AWSBatchException(
                    f'The report of the run cannot be written to the folder "{folder}": '
                    f'{error.strerror or error}. Set RIOS_AWSBATCH_REPORT to a folder where you may write, '
                    'or unset it.') from error

    def note(self, kind, **record):
        """Append a line. A report that cannot be written any more is no reason to stop."""
        file = self.file
        if file is not None:
            try:
                os.write(file, (json.dumps(dict({'is': kind}, **record), default=str) + '\n').encode())
            except OSError as error:
                self.file = None
                log.warning('Run %s: its report cannot be written any more: %s', self.run_id, error)


class _MainChannel(Channel):
    """
    The main script's side of the channel: it makes the queues, and goes on asking while AWS is away.

    Any thread may ask. Who finds that the login has expired makes new clients, for all.
    """
    def __init__(self, run_id, bucket, life, is_over):
        super().__init__(run_id, secrets.token_bytes(32), bucket, None, None, REGION)
        self.life, self.is_over = life, is_over
        self.opened = 0                     # when the queues were made
        self.warned = {}                    # what was logged of AWS, and when it is to be logged again
        self.batch = None
        # In a main job, what packing takes of its processor is more than it saves of the network there.
        self.packs = 'AWS_BATCH_JOB_ID' not in os.environ

    def connect(self, session=None):
        super().connect(session)
        self.batch = self.client('batch')
        return self

    def make_queues(self, name, tag):
        """Make the two queues of the run."""
        for way in ('in', 'out'):           # one by one, as the second may not come about
            setattr(self, way + '_queue', self.sqs.create_queue(
                QueueName=f'{name}_{way}', tags={'Project': tag},
                Attributes={'VisibilityTimeout': str(VISIBILITY_SECONDS), 'SqsManagedSseEnabled': 'true',
                            'MessageRetentionPeriod': str(RETENTION_SECONDS),
                            'MaximumMessageSize': str(MESSAGE_BYTES)})['QueueUrl'])     # once it was less
        self.opened = time.monotonic()

    def persist(self, doing, request):
        """
        Make an AWS request, again and again while AWS is away, or the user has a login or a clock to mend.
        None means that the run is over, and nothing else: so nobody waits for what was not done. Raises
        AWSBatchException where AWS refuses it for a reason that does not pass.
        """
        while not self.life.ended.is_set():
            try:
                return request()
            except AWS_ERRORS as error:
                no_queue, away = is_one_of(error, NO_QUEUE), is_temporary(error)
                if self.is_over():
                    break
                # A new queue may not be known everywhere yet: sqs:CreateQueue asks to wait a second.
                new = no_queue and time.monotonic() < self.opened + 10
                if not (new or away or user_may_mend(error)):
                    raise explain(error, doing) from error
                self._warn(error, doing, 'Trying again.' if new or away else
                           'The run goes on when that is mended: no block is lost.')
                self.life.ended.wait(1)
                if not (new or away):       # logged in again? New clients look for it.
                    with contextlib.suppress(Exception):    # a program that gives a login may give anything
                        self.connect()
        return None

    def _warn(self, error, doing, then):
        """Log it at once when it is news, and then every TELL_SECONDS, whichever thread meets it."""
        if time.monotonic() > self.warned.get(_meaning(error), 0):
            self.warned[_meaning(error)] = time.monotonic() + TELL_SECONDS
            log.warning('Run %s: %s %s', self.run_id, explain(error, doing), then)

    def delete_objects(self, names, pauses=(0.1, 0.5, 2)):
        """Delete objects (any number). ClientError where S3 says of one that it is not deleted."""
        for some in in_groups(names, DELETE_OBJECTS):
            failed = self.s3.delete_objects(Bucket=self.bucket, Delete={
                'Objects': [{'Key': name} for name in some], 'Quiet': True}).get('Errors')
            if failed and pauses:
                time.sleep(pauses[0])
                self.delete_objects([each['Key'] for each in failed], pauses[1:])
            elif failed:
                raise botocore.exceptions.ClientError({'Error': failed[0]}, 'DeleteObjects')

    def delete_folder(self):
        """Delete the objects of the run."""
        for page in self.s3.get_paginator('list_objects_v2').paginate(Bucket=self.bucket, Prefix=self.folder):
            self.delete_objects([item['Key'] for item in page.get('Contents', [])])


def gdal_switches():
    """Which modules of GDAL raise exceptions here; before GDAL 3.7 each has a switch of its own."""
    loaded = {name: sys.modules.get('osgeo.' + name) for name in ('gdal', 'ogr', 'osr')}
    return {name: bool(each.GetUseExceptions()) for name, each in loaded.items() if each}


class _PendingCall(concurrent.futures.Future):
    """
    A call that is not answered yet; it is the future that the script holds. What concerns its way out is
    changed by the outbox: by the thread that has taken it out of a queue there.
    """
    def __init__(self, number, label, payload):
        super().__init__()
        self.id, self.label, self.payload, self.size = number, label, payload, len(payload)
        self.prepared = threading.Event() if len(payload) > PACK_BYTES else None    # when it is sealed
        self.message = None                 # as SQS takes it, from seal() on, as long as it may be sent
        self.bytes = self.object = None     # how large it travels, and the key of its object
        self.submitted_at, self.sent_at = time.time(), None
        self.total_put = 0                  # bytes that were put into the outbox up to this call
        self._unclaimed = threading.Lock()

    def claim(self):
        """Whether the caller is to settle it: only the first is, and nobody if it was cancelled."""
        return self._unclaimed.acquire(blocking=False) and self.set_running_or_notify_cancel()

    def seal(self, channel):
        """Make its message. Uploads what is large, so it may take time, and may fail as AWS does."""
        self.message, header = channel.seal(
            Message('call', id=self.id, label=self.label, gdal=gdal_switches()), self.payload)
        self.bytes, self.object = header['bytes'], header.get('object')


class _Calls:
    """
    The outstanding calls of a run by id, and which workers have answered the others.

    Any thread may add, cancel and settle them, since all that takes single operations of a dict and a list:
    whoever claims a call settles it, and takes it out.
    """
    def __init__(self, settled):
        self.settled = settled              # called after each
        self.outstanding, self.ids = {}, itertools.count(1)
        self.answers = []                   # the worker of each call that is answered
        self.seconds = collections.deque(maxlen=100)    # ... and what the latest of them have taken

    def __len__(self):
        return len(self.outstanding)

    def __contains__(self, number):
        return number in self.outstanding

    def get(self, number):
        return self.outstanding.get(number)

    def add(self, label, payload):
        """A new call (_PendingCall)."""
        call = _PendingCall(next(self.ids), label, payload)
        self.outstanding[call.id] = call
        return call

    def remove(self, call):
        """Whether it was outstanding until now."""
        return self.outstanding.pop(call.id, None) is not None

    def settle(self, call, result=None, error=None, worker=None, note=None):
        """Give a future its result or exception, unless somebody else has, and write it down by `note`."""
        if not call.claim():
            return
        if worker is not None:
            self.answers.append(worker)
        try:
            if error is not None:
                call.set_exception(error)
            else:
                call.set_result(result)
        except SystemExit:                  # Python logs what else a callback raises
            log.exception('A callback of %s failed', call.label)
        finally:            # not before, so that no run ends in the middle of a callback, or without the note
            if note:
                note()
            self.remove(call)
            call.message = None
            self.settled()

    def settle_all(self, broken):
        """Nobody will answer those that are left: they fail for a reason (str), or are cancelled (None)."""
        while self.outstanding:
            with contextlib.suppress(KeyError):         # another thread has taken the last one
                call = self.outstanding.popitem()[1]
                if broken:
                    self.settle(call, error=BrokenAWSBatchExecutor(broken))
                else:
                    call.cancel()
                    call.claim()

    def cancel_all(self):
        for call in list(self.outstanding.copy().values()):
            call.cancel()


class _Outbox:
    """
    Calls on their way into the queue, and cancelled ones on their way out of it again.

    Any thread puts them in. PREPARERS threads run prepare(), one send() and one take_back(); these hand calls
    to each other through queues.
    """
    def __init__(self, calls, channel, life):
        self.calls, self.channel, self.life = calls, channel, life
        self.waiting = queue.SimpleQueue()  # in the order in which they were submitted; None ends it
        self.large = queue.SimpleQueue()    # those of them that want preparation; None ends one thread
        self.total_put = self.total_sent = 0    # bytes; each call knows how many were put when it was
        self.cancelled = Mailbox()          # cancelled calls, and ids of those that a worker has answered
        self.kept, self.total_kept = collections.deque(), 0     # (id, bytes) of each; of send() alone

    def is_full(self, size):
        """Whether so many bytes more are to wait. If nothing else is on its way, they never are."""
        waiting = self.total_put - self.total_sent
        return waiting > 0 and waiting + size > OUTBOX_BYTES

    def put(self, call):
        # Two threads at once may count one of two calls only. That does no harm: the count of what was sent
        # is the one that was put, so both are the same again when all is sent.
        call.total_put = self.total_put = self.total_put + call.size
        if call.prepared:
            self.large.put(call)
        self.waiting.put(call)

    def revoke(self, call):
        """A call was cancelled: it need not be computed any more."""
        self.cancelled.put(call)
        if self.life.ended.is_set():        # take_back() may have read its last
            call.claim()

    def gone(self, number):
        """A worker has computed the call of this id, though it was cancelled, so it is not in the queue."""
        self.cancelled.put(number)

    def close(self):
        """Let the threads end, once the run has ended."""
        for queued in [self.waiting, *[self.large] * PREPARERS, self.cancelled]:
            queued.put(None)

    # Out

    def prepare(self):
        """Thread: seal the calls that take time, several at once, and send those that fill a batch alone."""
        for call in iter(self.large.get, None):
            self._seal(call)
            message = call.message
            wanted = message is not None and call.id in self.calls      # else it was cancelled meanwhile
            if wanted and 2 * size_of(message) > MESSAGE_BYTES:
                self._send_together([call])
            call.prepared.set()
            del call, message       # nothing here may keep a future, and so its result

    def _seal(self, call):
        """Make the message for a call; none where it was cancelled, or cannot be sent."""
        try:
            if call.id in self.calls:
                self.channel.persist('sending a call to the workers', lambda: call.seal(self.channel))
        except Exception as error:
            self.calls.settle(call, error=error)
        call.payload = None

    def send(self):
        """Thread: send the calls in their order."""
        after = None
        while not self.life.ended.is_set():
            first, after = after or self.waiting.get(), None
            after = first and self._send_from(first)
            first = None

    def _send_from(self, call):
        """Send a call, together with those that are ready behind it; the one behind them, if it was taken."""
        together = []
        while call is not None and len(together) < BATCH_ENTRIES:
            if call.prepared is None:
                self._seal(call)
            elif not call.prepared.wait(0 if together else None):
                break
            self.total_sent = max(self.total_sent, call.total_put)
            if call.message is not None and call.sent_at is None and call.id in self.calls:
                together.append(call)
            self._keep(call)
            call = self.waiting.get() if self.waiting.qsize() else None
        self._send_together(together)
        return call

    def _send_together(self, calls):
        for call in calls:
            call.sent_at = time.time()
        messages = [call.message for call in calls]
        try:
            self.channel.persist('sending calls to the workers', lambda: self.channel.send(
                self.channel.in_queue, list(filter(None, messages))))       # but for cancelled ones
        except AWSBatchException as error:
            for call in calls:
                self.calls.settle(call, error=error)

    def _keep(self, call):
        """A message is kept until its call is answered, but only the newest KEPT_BYTES."""
        message = call.message
        if message is not None:
            self.kept.append((call.id, size_of(message)))
            self.total_kept += size_of(message)
        while self.total_kept > KEPT_BYTES:
            number, size = self.kept.popleft()
            self.total_kept -= size
            old = self.calls.get(number)
            if old is not None:
                old.message = None

    def send_again(self, call):
        """A copy of a call that was sent; whether it was possible."""
        message = call.message
        return message is not None and self.channel.persist(
            'sending a call once more', lambda: [self.channel.send(self.channel.in_queue, [message])])

    # Back

    def take_back(self):
        """Thread: take cancelled calls out of the queue, so that no worker begins them."""
        revoked = set()                     # ids of cancelled calls that may be in the queue
        found = False                       # whether the last search has found some
        while not self.life.ended.is_set():
            self._read_cancelled(revoked, 0 if found else TAKE_BACK_AGAIN if revoked else None)
            # A few among very many are not looked for: workers compute them, and the answers are dropped.
            found = 2 * len(revoked) > len(self.calls) and self._search(revoked)
        self._read_cancelled(revoked, 0)    # the rest, since somebody may wait for them

    def _read_cancelled(self, revoked, timeout):
        for item in self.cancelled.take(timeout):
            if isinstance(item, int):
                revoked.discard(item)
            elif item is not None:
                item.claim()                # nobody else settles it, and wait() and as_completed() see it
                if item.sent_at:
                    revoked.add(item.id)

    def _search(self, revoked):
        """Look through the queue for a while; whether it is worth going on."""
        persist = functools.partial(self.channel.persist, 'taking cancelled calls back')
        queue_url, wanted, found = self.channel.in_queue, [], 0
        until = time.monotonic() + min(TAKE_BACK_SECONDS, VISIBILITY_SECONDS / 2)
        while revoked and time.monotonic() < until:
            messages = persist(lambda: self.channel.receive(queue_url, 1))
            if not messages:                # the workers have the others
                revoked.clear()
                break
            unwanted = [message for message in messages if not self._is_wanted(message, revoked)]
            wanted += [message for message in messages if message not in unwanted]
            found += len(unwanted)
            persist(lambda: self.channel.delete(queue_url, [each['ReceiptHandle'] for each in unwanted]))
        # Wanted calls come back where they were. SQS has counted this, so one that was received often comes
        # anew: it would be given up for that.
        often = [message for message in wanted
                 if 2 * int(message['Attributes']['ApproximateReceiveCount']) > MAX_RECEIVES]
        persist(lambda: self.channel.hide(
            [message['ReceiptHandle'] for message in wanted if message not in often], 0))
        persist(lambda: self.channel.send_anew(often))
        return bool(revoked and found)

    def _is_wanted(self, message, revoked):
        """Whether a message in the queue is for a worker. What nobody has made is not."""
        try:
            said = self.channel.open('worker', message).said
        except Refused:
            return False
        if said.kind == 'stop':
            return True
        revoked.discard(said.id)
        return said.id in self.calls


def _with_source(text):
    """A traceback from a worker, with those lines of the script in it that are only here (str)."""
    def frame(match):
        line = linecache.getline(match['file'], int(match['line'])).strip()
        return match[0] + (f'    {line}\n' if line else '')
    frames = r'^  File "(?P<file>.+)", line (?P<line>\d+), in .+\n(?!    )'
    return re.sub(frames, frame, text, flags=re.MULTILINE)


class _Inbox:
    """
    What workers send: answers settle calls, all else goes to the keeper or into the log.

    COLLECTORS threads run collect(), each for the messages that it has received.
    """
    def __init__(self, run, channel, life):
        self.run, self.channel, self.life, self.calls = run, channel, life, run.calls
        self.spent = collections.deque()    # keys of objects of answered calls, to be deleted

    def collect(self):
        """Thread: receive messages, take them in, and only then delete them."""
        channel, receipts, most, since = self.channel, [], BATCH_ENTRIES, time.monotonic()
        soon = VISIBILITY_SECONDS / 4       # results that are not deleted by then would come again
        while not self.life.ended.is_set():
            wait = LONG_POLL_SECONDS if not receipts else min(LONG_POLL_SECONDS, max(1, int(soon)))
            messages = channel.persist('receiving results', lambda: channel.receive(
                channel.out_queue, wait, most)) or []
            for message in messages:
                has_object = self._take(message)
                receipts.append(message['ReceiptHandle'])
                # Large results are taken one by one, so that all collectors have some to download.
                most = 1 if has_object else BATCH_ENTRIES
            if len(receipts) >= BATCH_ENTRIES or not messages or time.monotonic() > since + soon:
                channel.persist('deleting messages', lambda: channel.delete(channel.out_queue, receipts))
                receipts, since = [], time.monotonic()

    def _take(self, message):
        """Handle one message; whether its payload was an object."""
        try:
            received = self.channel.open('main', message)
        except Refused as refused:
            log.warning('Run %s: a message to it was refused: %s', self.run.id, refused)
            return False
        said = received.said
        if said.kind in ('result', 'error', 'lost'):
            self._answer(said, received)
        elif said.kind == 'note':
            log.warning('Run %s: worker %s: %s', self.run.id, said.worker, said.text)
        elif said.kind == 'broken':
            self.run.break_off(_with_source(said.text))
        else:
            self.run.keeper.tell(said)
        return bool(received.object)

    def _answer(self, answer, received):
        """Settle the call that an answer belongs to."""
        call = self.calls.get(answer.id)
        times = {name: getattr(answer, name) for name in (
            'id', 'worker', 'tries', 'received', 'downloaded', 'initialized', 'started', 'computed',
            'uploaded')}
        times['arrived'] = time.time()
        if call is None:            # answered before by another worker, or cancelled
            self.run.report.note('unwanted', **times)
            self._delete_later(received.object)
            self.run.copies.answered(answer.id)
            return self.run.outbox.gone(answer.id)
        opened = self._open(call, answer, received)
        if opened is None:          # the run is over
            return None
        for line in answer.output or ():
            log.warning('Run %s: worker %s, %s: %s', self.run.id, answer.worker, call.label, line)
        result, error = opened
        if answer.computed and answer.started:
            self.calls.seconds.append(answer.computed - answer.started)
        self.calls.settle(call, result, error, answer.worker, lambda: self.run.report.note(
            'block', label=call.label, bytes_in=call.bytes, bytes_out=received.header['bytes'],
            error=error and describe(error)[:300], queued=call.submitted_at, sent=call.sent_at,
            collected=time.time(), **times))
        self._delete_later(call.object, received.object)
        return None

    def _open(self, call, answer, received):
        """What a call is settled with: (result, error), of which one is None; None when the run is over."""
        if answer.kind == 'lost':
            return None, AWSBatchException(f'The call {call.label} was tried {answer.tries} times, and each '
                                           f'time {answer.text}, so it is given up.')
        try:
            data = self.channel.persist('downloading a result', lambda: self.channel.payload(received))
            if data is None:
                return None
            result = _Results(io.BytesIO(data)).load()
            if answer.kind == 'result':
                return result, None
            error, remote = result
            error.__cause__ = concurrent.futures.process._RemoteTraceback(_with_source(remote))
        except AWSBatchException as problem:
            error = problem
        except Refused as refused:
            log.warning('Run %s: the result of %s was refused: %s', self.run.id, call.label, refused)
            error = AWSBatchException(f'The result of {call.label} was tampered with on its way: {refused}.')
        except BaseException as problem:        # sys.exit() in a result included
            error = AWSBatchException(
                f'The result of {call.label} cannot be unpickled here: {describe(problem)}. What a function '
                'returns must be importable by the main script too.')
            error.__cause__ = problem
        return None, error

    def _delete_later(self, *names):
        """Objects go in large groups, and during the run: one of days would pay for terabytes else."""
        self.spent.extend(filter(None, names))
        if len(self.spent) >= DELETE_OBJECTS // 10:
            some = []
            with contextlib.suppress(IndexError):       # the other collector is at it, too
                while len(some) < DELETE_OBJECTS:
                    some.append(self.spent.popleft())
            with contextlib.suppress(AWSBatchException):    # the end tries it again, and tells
                self.channel.persist('deleting objects', lambda: self.channel.delete_objects(some))


# ---- A run: its workers ------------------------------------------------------------------------------

ENDED = ('SUCCEEDED', 'FAILED')
_EXIT_KILLED = (137, 143)       # 128 + SIGKILL, SIGTERM


def was_killed(job):
    """Whether a job was ended from outside, so that the next one may fare better."""
    container = job.get('container', {})
    return 'Host EC2' in job.get('statusReason', '') or (
        container.get('exitCode') in _EXIT_KILLED and 'OutOfMemory' not in container.get('reason', ''))


def how_ended(job):
    """What Batch says of a job that has ended, and what to do about it (str)."""
    container = job.get('container', {})
    code = f' with exit code {container["exitCode"]}' if 'exitCode' in container else ''
    said = '; '.join(filter(None, (job.get('statusReason'), container.get('reason')))).rstrip('.')
    advice = next((' ' + advice for words, advice in _ADVICE if words in said), '')
    return f'it ended{code}{": " + said if said else ""}.{advice}'


def verdict(workers, alive, wanted, unanswered, ever_up):
    """
    What is to be done about the workers of a run: ('wait', 0), ('start', how many) or ('give up', 0).

    Args:
        workers (int): how many were asked for.
        alive (int): how many have a job that has not ended, whether it has started or not.
        wanted (int): calls that are not answered, or workers that somebody waits for.
        unanswered (int): ends since the last answer, where one that was not the host's doing counts for
            FAILED_COUNTS, and one of a worker that had nothing to do for nothing.
        ever_up (bool): whether any worker has ever come up.

    A few calls that are left get a worker more for each that ended without an answer: one at a time would be
    killed again and again, where many are. When none has ever come up, the reason is mostly one that stays
    (an image, a permission), so a second try must do; a run that has worked is not given up so soon.
    """
    missing = min(workers, wanted + unanswered) - alive if wanted else 0
    if missing <= 0:
        return 'wait', 0
    limit = MAX_UNANSWERED * (workers + 10) if ever_up else max(MAX_UNANSWERED, FAILED_COUNTS * workers)
    return ('give up', 0) if unanswered > limit else ('start', missing)


class _BatchJobs:
    """What AWS Batch knows of a run: its jobs, and what it says of them. Used by the thread of the keeper."""
    def __init__(self, channel, request, resources):
        self.channel, self.settings = channel, None
        self.request = request              # of every job of the run
        self.overrides = {'resourceRequirements': resources} if resources else {}
        self.submitted = set()              # ids, of arrays and not of their children
        self.doubtful = False               # whether there may be a job of which no answer has told

    def configure(self, settings):
        """Take what every worker is told (JobSettings), before the first are submitted."""
        self.settings = settings

    def submit(self, first, count):
        """Submit an array job of workers, numbered from `first`; a plain job for one. Their ids (list)."""
        variables = dataclasses.replace(self.settings, first=first).to_env()
        array = {'arrayProperties': {'size': count}} if count > 1 else {}
        doubtful, self.doubtful = self.doubtful, True
        answer = self.channel.batch.submit_job(**self.request, **array, containerOverrides=dict(
            self.overrides, environment=[{'name': name, 'value': variables[name]} for name in variables]))
        job_id = answer['jobId']
        self.submitted.add(job_id)
        self.doubtful = doubtful or bool(answer['ResponseMetadata'].get('RetryAttempts'))
        return [f'{job_id}:{index}' for index in range(count)] if array else [job_id]

    def end_unknown(self):
        """End a job of which no answer has told: AWS carries out a request whose answer is lost, too."""
        if self.doubtful:
            found = self.channel.batch.list_jobs(
                jobQueue=self.request['jobQueue'],
                filters=[{'name': 'JOB_NAME', 'values': [self.request['jobName']]}])
            for job in found['jobSummaryList']:
                if job['status'] not in ENDED and job['jobId'] not in self.submitted:
                    self.channel.batch.terminate_job(
                        jobId=job['jobId'], reason='Its main script does not know of it')
            self.doubtful = False

    def describe(self, job_ids):
        """What Batch says of jobs (dict by id), a hundred of them in a request."""
        return {job['jobId']: job for some in in_groups(list(job_ids), DESCRIBE_JOBS)
                for job in self.channel.batch.describe_jobs(jobs=some)['jobs']}

    def count_states(self, job_ids):
        """
        How many of an array's children are in which state; of a plain job, its own (dict by id, of counts by
        state). Batch sends some kB for each child, and this is one answer for all of them.
        """
        states = {}
        for job_id, job in self.describe(job_ids).items():
            array = job.get('arrayProperties', {})
            states[job_id] = array.get('statusSummary') or {job['status']: 1}
        return states

    def terminate(self, job_ids, reason):
        for job_id in job_ids:
            self.channel.batch.terminate_job(jobId=job_id, reason=reason)

    def end_of_log(self, job_id):
        """The last lines of a job's log, and the command that shows all of it (list of sentences)."""
        try:
            container = self.describe([job_id])[job_id]['container']
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
        except (*AWS_ERRORS, LookupError) as error:     # it never had one, or nobody may read it
            log.debug('The log of job %s cannot be found: %s', job_id, error)
            return []
        all_of_it = (f'All of its log: aws logs get-log-events --region {REGION} --log-group-name {group} '
                     f'--log-stream-name {stream}')
        return [*(['The end of its log:{}\n'.format(''.join(lines[-20:]))] if lines else []), all_of_it]


class _Worker:
    """A worker whose job has not ended, as far as the keeper knows."""
    def __init__(self, number, job_id):
        self.number, self.job_id = number, job_id       # str
        self.submitted = time.monotonic()
        self.attempt = 0                    # the latest attempt of its job that has said hello
        self.said_bye = False


class _Keeper:
    """
    The workers of a run: how many there are, who is up, who has gone, and why.

    keep() and stop() run in one thread, which alone changes what is here. Others put what workers have said
    into `mail`, and may ask how many are up. Whether a worker lives is what it says itself: Batch's word
    comes late, so it counts only for what does not change any more (an attempt, or a job, has ended).
    """
    def __init__(self, run, channel, life, jobs, workers, start_timeout):
        self.run, self.channel, self.life, self.jobs = run, channel, life, jobs
        self.asked, self.start_timeout = workers, start_timeout
        self.mail = Mailbox()               # 'hello', 'misfit', 'bye', do(); None to see whether it is over
        self.awaited = []                   # what wait_for() is waiting for, in other threads
        self.workers = {}                   # _Worker by number
        self.up = set()                     # numbers of those that are up
        self.ever_up = False
        self.down_since = time.monotonic()  # no worker is up since then
        self.tell_after = TELL_SECONDS      # ... and when it is so long, it is logged
        self.started = self.lost = 0        # workers, in all
        self.leaving = 0                    # workers that have been asked to end since no more calls come
        self.unanswered = 0                 # ends since the last answer, as verdict() counts them
        self.answered = 0                   # calls, when that was looked at last
        self.ends = collections.deque(maxlen=5)     # what Batch said of lost ones: (sentence, job id)
        self.files = set()                  # names of those that functions have left in workers

    # For other threads

    def tell(self, said):
        self.mail.put(said)

    def do(self, request):
        """Have the thread make a request, which no signal interrupts there, so that its answer is known."""
        done = concurrent.futures.Future()

        def make():
            try:
                done.set_result(request())
            except BaseException as error:
                done.set_exception(error)
        self.tell(make)
        done.result()

    def wait_for(self, count, timeout):
        """Wait until so many workers are up; how many are up (int)."""
        deadline, count = None if timeout is None else time.monotonic() + timeout, min(count, self.asked)
        self.awaited.append(count)
        try:
            while len(self.up) < count and not (self.life.broken or self.run.is_over()) and not (
                    deadline and time.monotonic() > deadline):
                time.sleep(0.02)
        finally:
            self.awaited.remove(count)
        return len(self.up)

    def counts(self):
        """For stats(), and for the lease (dict)."""
        return {'workers': self.asked, 'workers_up': len(self.up), 'lost': self.lost,
                'replaced': max(0, self.started - self.asked)}

    # The thread

    def keep(self):
        """Keep the workers' number while the run needs them."""
        look_at = time.monotonic() + WATCH_SECONDS
        while not self.run.is_over():
            self._read_mail(max(0, look_at - time.monotonic()))
            if self.life.closing:
                self._let_go()
            if time.monotonic() >= look_at:
                if self._wanted() and not self.life.broken:
                    self.channel.persist('looking at the Batch jobs', self._look)
                look_at = time.monotonic() + WATCH_SECONDS

    def start(self, count):
        """Have Batch start workers."""
        for job_id in self.jobs.submit(self.started, count):
            worker = _Worker(str(self.started), job_id)
            self.workers[worker.number] = worker
            self.started += 1
        self.jobs.end_unknown()

    def stop(self, orderly):
        """End the workers: ask them, if all are up and it is to be `orderly`; terminate them else."""
        deaf = len(self.run.copies.twice)       # they compute what another one has answered
        if orderly and all(worker.number in self.up or worker.said_bye for worker in self.workers.values()):
            with contextlib.suppress(*AWS_ERRORS):      # else they are terminated
                self._ask_to_end(len(self.up))
                deadline = time.monotonic() + STOP_SECONDS
                while len(self.up) > deaf and time.monotonic() < deadline:
                    self._read_mail(0.05)
                if not self.up:
                    return
        self.jobs.terminate(self._by_job(), 'The main script has ended the run')
        # No worker writes another object once it has ended. Who is deaf may take long to.
        deadline = time.monotonic() + STOP_SECONDS
        some = [worker.job_id for worker in self.workers.values()][:DESCRIBE_JOBS]
        while time.monotonic() < deadline and deaf < sum(
                job['status'] not in ENDED for job in self.jobs.describe(some).values()):
            time.sleep(0.25)

    def _let_go(self):
        """No more calls will come: workers beyond those that are left, and a copy of each, end now."""
        surplus = len(self.up) - self.leaving - 2 * len(self.run.calls)
        if self.run.calls and surplus >= max(1, len(self.up) / 10):     # some at a time
            self.channel.persist('ending idle workers', lambda: self._ask_to_end(surplus))
            self.leaving += surplus

    def _ask_to_end(self, count):
        """So many workers are to end: whoever takes one of these messages, after what it took before."""
        stop, _ = self.channel.seal(Message('stop'))
        self.channel.send(self.channel.in_queue, [stop] * count)

    def _read_mail(self, timeout):
        for said in self.mail.take(timeout):
            if said is None:
                continue
            if callable(said):
                said()
            elif said.kind == 'hello':
                self._hello(said)
            elif said.kind == 'bye':
                self._bye(said)
            else:
                log.warning('Run %s: worker %s is refused. %s', self.run.id, said.worker, said.text)
                if not self.up:             # if the image was pushed in mid-run, the others go on
                    self.run.break_off(said.text)

    def _hello(self, hello):
        worker = self.workers.get(hello.worker)
        if worker is None or worker.said_bye or hello.attempt <= worker.attempt:
            return                          # it has ended, or SQS delivers this twice, or late
        if worker.number in self.up:
            self._lost([worker.number], 'AWS Batch has started it again')
        worker.attempt, self.ever_up = hello.attempt, True
        self.up.add(worker.number)
        self.run.report.note('up', worker=worker.number, time=time.time())
        log.info('Run %s: worker %s is up, %d of %d', self.run.id, worker.number, len(self.up), self.asked)

    def _bye(self, bye):
        worker = self.workers.get(bye.worker)
        if worker is not None and not worker.said_bye:
            worker.said_bye = True
            self.leaving = max(0, self.leaving - 1)
            self._down(worker)
            self.channel.requests.update(bye.requests)
            self.files.update(bye.files or ())
            self.run.report.note('ended', worker=worker.number, time=time.time())

    def _down(self, worker):
        self.up.discard(worker.number)
        if not self.up:
            self.down_since, self.tell_after = time.monotonic(), TELL_SECONDS

    def _lost(self, numbers, why):
        """A line in the log, and in the report, for workers that were lost for one reason."""
        self.lost += len(numbers)
        log.warning('Run %s: worker%s %s: %s', self.run.id, 's' * (len(numbers) > 1), ', '.join(numbers), why)
        for number in numbers:
            self.run.report.note('lost', worker=number, time=time.time(), why=why)

    def _wanted(self):
        """For how many workers there is something to do, or somebody who waits for them (int)."""
        return max(len(self.run.calls), *self.awaited, 0)

    def _look(self):
        """Hear from Batch who has gone, and do what the verdict says."""
        answered = len(self.run.calls.answers)
        if answered > self.answered:
            self.unanswered, self.answered = 0, answered
        self._notice_ends()
        numbers = {'workers': self.asked, 'alive': len(self.workers), 'wanted': self._wanted(),
                   'unanswered': self.unanswered, 'ever_up': self.ever_up}
        decision, count = verdict(**numbers)
        log.debug('Run %s: %s %s, as %s; up: %d', self.run.id, decision, count or '', numbers, len(self.up))
        if decision == 'give up':
            self.run.break_off(f'No worker of run {self.run.id} is left, with {len(self.run.calls)} calls '
                               f'outstanding. {self._why_they_ended()}')
        elif decision == 'start':
            log.warning('Run %s: starting %d worker%s in place of those that are gone',
                        self.run.id, count, 's' * (count > 1))
            self.start(count)
        elif self.workers and not self.up:
            self._none_is_up()

    def _notice_ends(self):
        """Take the workers out whose jobs, or whose last attempts, have ended."""
        suspects, reasons = self._suspects(), collections.defaultdict(list)
        found = self.jobs.describe([worker.job_id for worker in suspects])
        for worker in suspects:
            # A child that is not there has not come into being, or, much later, Batch has forgotten it.
            new = time.monotonic() < worker.submitted + FORGOTTEN_SECONDS
            job = found.get(worker.job_id, {'status': 'SUBMITTED' if new else 'FAILED'})
            attempts_over = sum('stoppedAt' in attempt for attempt in job.get('attempts', ()))
            if job['status'] in ENDED:
                del self.workers[worker.number]
                why = how_ended(job)
                if not worker.said_bye:
                    self.unanswered += 1 if was_killed(job) else FAILED_COUNTS
            elif worker.number in self.up and attempts_over >= worker.attempt:
                why = 'AWS Batch starts it again'
            else:
                continue
            self._down(worker)
            if not worker.said_bye:
                self.ends.append((why, worker.job_id))
                reasons[why].append(worker.number)
        for why, numbers in reasons.items():
            self._lost(numbers, why)

    def _suspects(self):
        """The workers that may have gone, by how many jobs of an array are in which state (list)."""
        by_job, suspects = self._by_job(), []
        states = self.jobs.count_states(by_job)
        for job_id, workers in by_job.items():
            counts = states.get(job_id, {})         # Batch has forgotten it
            alive = sum(count for state, count in counts.items() if state not in ENDED)
            up = [worker for worker in workers if worker.number in self.up]
            if alive != len(workers):
                suspects += workers
            elif len(up) > counts.get('RUNNING', 0):    # Batch is late, or starts one of them again
                suspects += up
        return suspects

    def _by_job(self):
        """The workers by the job that was submitted: an array that they are children of, or their own."""
        by_job = collections.defaultdict(list)
        for worker in self.workers.values():
            by_job[worker.job_id.partition(':')[0]].append(worker)
        return by_job

    def _none_is_up(self):
        """Log every now and then why no worker is up; end the run if none ever will be."""
        waited = time.monotonic() - self.down_since
        jobs = self.jobs.describe([worker.job_id for worker in self.workers.values()][:10]).values()
        reasons = list(dict.fromkeys(filter(None, (job.get('statusReason') for job in jobs))))
        said = f'AWS Batch says: {"; ".join(reasons).rstrip(".")}. ' if reasons else ''
        if any(job['status'] == 'RUNNABLE' and job.get('statusReason', '').startswith('MISCONFIGURATION:')
               for job in jobs):
            self.run.break_off(
                f'No worker can start. {said}Ask for less: in the script, where it says memory= (MiB), '
                'vcpus= or gpus=, else by "scripts/modify.sh" with --mem, --vcpus or --gpus. Or give the '
                'stack other instances with --instancetype.')
        elif not self.ever_up and waited > self.start_timeout:
            self.run.break_off(f'No worker has come up within {self.start_timeout:g} seconds '
                               f'(RIOS_AWSBATCH_START_TIMEOUT). {said}{RUNNABLE_CAUSES}')
        elif waited > self.tell_after:
            self.tell_after = waited + TELL_SECONDS
            states = ', '.join(sorted({job['status'] for job in jobs}))
            log.warning('Run %s: no worker has been up for %d minutes; the jobs are %s. %s%s', self.run.id,
                        waited // 60, states, said, RUNNABLE_CAUSES)

    def _why_they_ended(self):
        """What Batch says of the workers that were lost, with the last lines of a log (str)."""
        if not self.ends:
            return 'AWS Batch does not say how the workers ended; "scripts/status.sh" shows the jobs.'
        sentences, last_job = dict.fromkeys(why for why, _ in self.ends), self.ends[-1][1]
        return ' '.join(['Why:', *sentences, *self.jobs.end_of_log(last_job)])


def calls_to_copy(sent, twice, idle, since, usual, now):
    """
    Which calls are to be sent a second time, for workers that have nothing to do: ids, the oldest first.

    Args:
        sent (dict): when each outstanding call was sent, by id.
        twice (set): ids of those that were sent a second time, and some that are answered.
        idle (int): how many workers have nothing to do.
        since (float): since when no call has waited for a worker.
        usual (float): seconds that a call takes.
        now (float): as all times, in seconds.
    """
    late = [number for number in sorted(sent)
            if number not in twice and now > max(sent[number], since) + usual + COPY_SECONDS]
    return late[:max(0, idle)]


class _Copies:
    """
    The last calls of a run: a worker that is dead, or slow, is not to hold up its end. So idle workers
    compute those that are late, too, and the first answer counts. One thread sends them; any may say that
    one was answered.
    """
    def __init__(self, run, life):
        self.run, self.life = run, life
        self.twice = set()      # ids of calls that were sent twice, until both are answered

    def answered(self, number):
        """A call was answered that nobody waits for any more."""
        self.twice.discard(number)

    def watch(self):
        """Thread: send again what is late, when workers have nothing to do."""
        calls, since = self.run.calls, time.time()
        while not self.life.ended.wait(COPY_SECONDS / 2):
            seconds, up = sorted(calls.seconds), len(self.run.keeper.up)
            if len(calls) > up:         # else no call waits for a worker
                since = time.time()
            elif calls and seconds:
                # No call itself: nothing here may keep a future, and so its result.
                sent = {number: call.sent_at for number, call in calls.outstanding.copy().items()
                        if call.sent_at}
                idle, usual = up - len(sent) - len(self.twice & sent.keys()), seconds[len(seconds) // 2]
                for number in calls_to_copy(sent, self.twice, idle, since, usual, time.time()):
                    self._copy(number, usual)

    def _copy(self, number, usual):
        call = self.run.calls.get(number)
        self.twice.add(number)
        if call is not None and self.run.outbox.send_again(call):
            self.run.report.note('copy', id=number, time=time.time())
            log.info('Run %s: %s is late (most take %.3g s), so another worker computes it, too',
                     self.run.id, call.label, usual)
        else:
            self.twice.discard(number)


# ---- A run -------------------------------------------------------------------------------------------

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


def _start_timeout():
    """Seconds (float) to wait for the first worker."""
    text = os.environ.get('RIOS_AWSBATCH_START_TIMEOUT') or 'inf'
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise AWSBatchException(
        f'RIOS_AWSBATCH_START_TIMEOUT must be a number of seconds above zero, not "{text}".')


class _Run:
    """
    What an executor has on AWS: the parts above, from the first request to the last.

    Any thread may submit, or end the run; that of _tend() makes and removes queues and jobs. Threads refer to
    the run and not to its executor, so that an executor that is dropped ends its run.
    """
    def __init__(self, workers, initializer, vcpus, memory, gpus, timeout, job_definition, copies):
        self.began, self.life = time.time(), _Life()
        # Done when nothing of it is left. An Event's lock is none for the handler of a signal that comes
        # while it is held, and ends the run.
        self.clean = concurrent.futures.Future()
        self.id = f'{time.strftime("%Y%m%dT%H%M%S", time.gmtime())}-{secrets.token_hex(4)}'
        self.report = _Report(os.environ.get('RIOS_AWSBATCH_REPORT'), self.id)
        start_timeout = _start_timeout()
        if len(STACK_NAME) > STACK_NAME_CHARS:
            raise AWSBatchException(f'The stack name "{STACK_NAME}" is longer than {STACK_NAME_CHARS} '
                                    'characters, which is too long for the names of its queues.')
        session = new_session()
        stack = getStackOutputs(session)
        most = int(stack['BatchMaxJobs'])
        has_gpus = int(stack.get('BatchGPUS', 0))
        if gpus and not has_gpus:
            raise AWSBatchException(f'gpus={gpus}, but stack {STACK_NAME} has instances without GPUs. '
                                    f'"scripts/modify.sh --gpus {gpus} --wait" gives it others.')
        self.workers, self.vcpus = workers or most, vcpus or stack.get('BatchVCPUS')
        self.gpus, self.instances = gpus or has_gpus, stack.get('BatchInstanceTypes')
        if self.workers > most:
            log.warning('Run %s: %d workers are asked for, but stack %s runs at most %s jobs at a time, so '
                        'some will wait. "scripts/modify.sh --maxjobs %d" raises that.',
                        self.id, self.workers, STACK_NAME, most, self.workers)
        require_image(stack, session)
        self.calls = _Calls(self._settled)
        self.stored = set()                 # digests of what lies in the run's folder for all calls
        self.definitions = Definitions(self.share)
        self.channel = _MainChannel(self.id, stack['BatchBucket'], self.life, self.is_over)
        self.outbox = _Outbox(self.calls, self.channel, self.life)
        self.inbox = _Inbox(self, self.channel, self.life)
        # A stack name has no underscore, so these names never begin with another stack's.
        name = f'{STACK_NAME}_{self.id}'
        request = {'jobName': name, 'jobQueue': stack['BatchProcessingJobQueueName'],
                   'jobDefinition': job_definition or stack['BatchProcessingJobDefinitionName']}
        if timeout:
            request['timeout'] = {'attemptDurationSeconds': timeout}
        resources = [{'type': kind, 'value': str(value)}
                     for kind, value in (('VCPU', vcpus), ('MEMORY', memory), ('GPU', gpus)) if value]
        self.jobs = _BatchJobs(self.channel, request, resources)
        self.keeper = _Keeper(self, self.channel, self.life, self.jobs, self.workers, start_timeout)
        self.copies = _Copies(self, self.life)
        this = weakref.ref(self)            # a future that is kept is not to keep what boto3 has: 18 MB
        self.on_done = lambda call: (run := this()) and run._cancelled(call)
        # The first is to be there before anything is on AWS; next come those that write objects.
        loops = (self._tend, self._renew, *[self.outbox.prepare] * PREPARERS, self.outbox.send,
                 self.outbox.take_back, *[self.inbox.collect] * COLLECTORS, *[self.copies.watch] * copies)
        self.threads = [threading.Thread(
            target=self._guarded, args=(loop,), name='rios_awsbatch', daemon=True) for loop in loops]
        try:
            self.threads[0].start()
            self.channel.connect(session)
            self.keeper.do(self._put_lease)
            self.keeper.do(lambda: self.channel.make_queues(name, stack.get('BatchTag', 'rios')))
            self.jobs.configure(self._settings(initializer))
            self.report.note('run', run=self.id, began=self.began, workers=self.workers, stack=STACK_NAME,
                             region=REGION, inline_bytes=INLINE_BYTES, vcpus=self.vcpus, memory=memory,
                             gpus=self.gpus, instances=self.instances)
            self.keeper.do(lambda: self.keeper.start(self.workers))
            for thread in self.threads[1:]:
                thread.start()
        except BaseException as error:
            self.close(hurry=True)
            if self in _runs:               # else its first thread has done nothing, and will do nothing
                self.join()
            if isinstance(error, AWS_ERRORS):
                raise explain(error, 'starting a run') from None
            raise
        log.info('Run %s: %d workers asked for, in stack %s', self.id, self.workers, STACK_NAME)

    def _settings(self, initializer):
        channel = self.channel
        return JobSettings(
            bucket=channel.bucket, in_queue=channel.in_queue, out_queue=channel.out_queue, region=REGION,
            run_id=self.id, key=channel.key.hex(), versions=versions(),
            modules=[name for name in HEAVY_MODULES if name in sys.modules],
            lease=LEASE_SECONDS, visibility=VISIBILITY_SECONDS,
            max_tries=MAX_TRIES, max_receives=MAX_RECEIVES,
            output=bool(os.environ.get('RIOS_AWSBATCH_WORKER_OUTPUT')),
            initializer=self._share_initializer(*initializer) if initializer else '')

    def _share_initializer(self, fn, args):
        function = self.definitions.function(fn, 'The initializer')
        return self.share(self.definitions.parcel(function, args, {}, 'What initargs has'))

    def _guarded(self, loop):
        """Run a loop; should it ever fail, all futures learn of it instead of waiting for ever."""
        try:
            loop()
        except BaseException as error:
            if not self.life.ended.is_set():
                log.debug('Run %s: a thread of it failed', self.id, exc_info=True)
                self.break_off(str(error) if isinstance(error, AWSBatchException) else repr(error))

    # Calls

    def share(self, data):
        """Put bytes into the run's folder, once; the token by which a worker finds them."""
        self.life.check_open()
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self.stored:
            self.channel.persist('storing what all blocks share', lambda: self.channel.s3.put_object(
                Bucket=self.channel.bucket, Key=self.channel.shared(digest), Body=data))
            self.stored.add(digest)
        return digest

    def pickled(self, fn):
        """A function as it is now, for :meth:`submit`."""
        return self.definitions.function(fn, f'The function {_name(fn)}')

    def submit(self, function, fn, args, kwargs):
        """A future for fn(*args, **kwargs); `function` is what :meth:`pickled` gave, if it was asked."""
        self.life.check_open()
        try:
            label = _label(fn, args)
            payload = self.definitions.parcel(
                function or self.pickled(fn), args, kwargs, f'The arguments of {label}')
        except AWSBatchException as error:
            future = concurrent.futures.Future()
            future.set_exception(error)
            return future
        while self.outbox.is_full(len(payload)):
            self.life.check_open()
            time.sleep(0.01)
        self.life.check_open()
        call = self.calls.add(label, payload)
        call.add_done_callback(self.on_done)
        self.outbox.put(call)
        if self.life.broken or self.life.ended.is_set():        # just now, in another thread
            self.calls.settle_all(self.life.broken)
        return call

    def _cancelled(self, call):
        if call.cancelled() and self.calls.remove(call):
            self.outbox.revoke(call)
            self._settled()

    def _settled(self):
        if self.life.closing:
            self.keeper.tell(None)          # it may have been the last one

    def tell(self, text):
        """Warn the user, in the log and in the report."""
        log.warning('Run %s: %s', self.id, text)
        self.report.note('told', text=text)

    def stats(self):
        """See :meth:`AWSBatchExecutor.stats`."""
        answers = self.calls.answers.copy()
        return {'run': self.id, **self.keeper.counts(), 'outstanding': len(self.calls),
                'done': len(answers), 'blocks_per_worker': dict(collections.Counter(answers)),
                'requests': sum(self.channel.requests.copy().values())}

    # Its life

    def is_over(self):
        """Whether nobody waits for anything of this run any more, so that it is to be cleaned up."""
        life = self.life
        return life.closing and (life.hurry or bool(life.broken) or not self.calls)

    def break_off(self, text):
        """Fail every outstanding call, and refuse new ones."""
        self.life.break_off(text)
        self.calls.settle_all(self.life.broken)
        self.keeper.tell(None)

    def wait_for_workers(self, count, timeout):
        """See :meth:`AWSBatchExecutor.wait_for_workers`."""
        up = self.keeper.wait_for(count, timeout)
        if self.life.broken:
            raise BrokenAWSBatchExecutor(self.life.broken)
        return up

    def close(self, hurry=False):
        """No more calls. With `hurry` those that are outstanding are not waited for. Safe in a finaliser."""
        if self.life.pid == os.getpid():
            self.life.close(hurry and bool(self.calls))
            self.keeper.tell(None)

    def join(self):
        """
        Wait until the run has ended. Ctrl-C while waiting: it ends without waiting for its calls. A callback
        or a finaliser may call this in a thread of the run, which cannot wait for itself.
        """
        if self.life.pid != os.getpid() or threading.current_thread() in self.threads:
            return
        try:
            self.clean.result()
        except BaseException:
            self.close(hurry=True)
            self.clean.result()
            raise

    def _renew(self):
        """Thread: keep the lease, by which the workers know that this script lives."""
        while not self.life.ended.wait(LEASE_SECONDS / 4):
            self.channel.persist('renewing the lease of the run', self._put_lease)

    def _put_lease(self):
        state = {'host': platform.node(), 'pid': os.getpid(), 'seconds': LEASE_SECONDS, 'began': self.began,
                 'now': time.time(), 'vcpus': self.vcpus, 'gpus': self.gpus, 'instances': self.instances,
                 'done': len(self.calls.answers), 'outstanding': len(self.calls), **self.keeper.counts()}
        self.channel.s3.put_object(Bucket=self.channel.bucket, Key=self.channel.folder + 'lease',
                                   Body=json.dumps(state).encode())

    def _tend(self):
        """Thread: keep the workers, and clean up when the run is over."""
        _runs.add(self)
        self._guarded(self.keeper.keep)
        try:
            self._clean_up(orderly=not (self.life.broken or self.life.hurry))
            log.info('Run %s: ended, %d blocks', self.id, len(self.calls.answers))
        finally:                            # whoever waits goes on with its last line
            self.life.ended.set()
            self.calls.settle_all(self.life.broken)
            _runs.discard(self)
            self.report.note('end', time=time.time(), submitted=next(self.calls.ids) - 1,
                             broken=self.life.broken, requests=dict(self.channel.requests))
            self.clean.set_result(None)

    def _clean_up(self, orderly):
        """
        Leave nothing of the run on AWS: no job, no queue, no object. A step that fails is logged, and neither
        keeps the others from being done, unless there is a hurry and no network, nor hides an exception that
        is on its way to the user.
        """
        channel = self.channel
        if channel.batch is None:           # it has not even begun
            return
        reached = self._reached('stopping the workers', lambda: self.keeper.stop(orderly))
        files = sorted(self.keeper.files)
        if files:
            names = ', '.join(files[:10] + ['...'] * (len(files) > 10))
            self.tell(f'What functions have written to {names} is gone, as it was in the working folder of a '
                      'worker. Return it, or write it to S3 (/vsis3/BUCKET/NAME).')
        self.life.ended.set()
        self.outbox.close()
        for thread in self.threads[1:2 + PREPARERS]:    # what one writes now is to be deleted, too
            if thread.is_alive():
                thread.join(STOP_SECONDS)
        queues = filter(None, (channel.in_queue, channel.out_queue))
        for doing, step in (
                ('ending jobs', self.jobs.end_unknown),
                *(('deleting a queue', functools.partial(channel.sqs.delete_queue, QueueUrl=url))
                  for url in queues),
                ('deleting the objects of the run', channel.delete_folder)):
            reached = reached and self._reached(doing, step)

    def _reached(self, doing, step):
        """Do a step of the end. False where nobody is to wait for the others, since AWS cannot be reached."""
        try:
            step()
        except (*AWS_ERRORS, AWSBatchException) as error:
            if not is_one_of(error, NO_QUEUE):
                log.warning('%s "scripts/status.sh --clean" removes what run %s has left.',
                            explain(error, doing), self.id)
            return not (self.life.hurry and is_one_of(error, _AWAY))
        return True


# ---- The end of the script ---------------------------------------------------------------------------
# Open runs end with it. A script that is asked to end (kill, a closed terminal) ends in an orderly way too,
# unless it handles the signal itself. What concerns signals and forks begins with the first executor, so that
# nothing of it is in a process that only computes. What is called at exit is registered at once, so that it
# comes after what the script registers, which may still want blocks.

_runs = set()
_entered = []           # the runs of executors whose with statements are open, in their order
_fork = threading.local()
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@functools.lru_cache(maxsize=None)
def _watch_forks():
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_forget_runs)


@atexit.register
def _end_runs():
    """The script ends without shutdown(): what was submitted is finished, unless the script failed."""
    runs = list(_runs)
    try:
        _close_and_join(runs, hurry=getattr(sys, 'last_value', None) is not None)
    except BaseException:       # Ctrl-C, or a signal that ends the script, concerns them all
        _close_and_join(runs, hurry=True)
        raise


def _close_and_join(runs, hurry):
    for run in runs:
        run.close(hurry)
    for run in runs:
        run.join()


def _handle_signals():
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _exit_on_signal)


def _exit_on_signal(number, frame):
    if _runs:
        for run in list(_runs):
            run.close(hurry=True)
        sys.exit(128 + number)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _before_fork():
    """Hold signals to the child back until _exit_on_signal is not its handler: Python would forget them."""
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


# ---- The executor ------------------------------------------------------------------------------------

def _new_run(max_workers=None, initializer=None, initargs=(), vcpus=None, memory=None, gpus=None,
             timeout=None, job_definition=None, copies=True):
    """Start a run, for the arguments of AWSBatchExecutor, which says what is raised."""
    for name, value in (('max_workers', max_workers), ('vcpus', vcpus), ('memory', memory),
                        ('gpus', gpus), ('timeout', timeout)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f'{name} must be greater than 0 and a whole number, not {value!r}')
    if (max_workers or 1) > MAX_ARRAY:
        raise ValueError(f'AWS Batch starts at most {MAX_ARRAY:,} workers for a run, not {max_workers}.')
    if (timeout or MIN_TIMEOUT) < MIN_TIMEOUT:
        raise ValueError(f'AWS Batch knows no time-out below {MIN_TIMEOUT} seconds.')
    if initializer is not None and not callable(initializer):
        raise TypeError('initializer must be a callable')
    _watch_forks()
    _handle_signals()
    return _Run(max_workers, (initializer, initargs) if initializer else None, vcpus, memory, gpus,
                timeout, job_definition, bool(copies))


def _did_you_mean(name):
    """An end for a sentence about an argument that AWSBatchExecutor has not."""
    units = {'memory': 'memory (MiB)', 'timeout': 'timeout (seconds)'}
    known = ['max_workers', *inspect.getfullargspec(AWSBatchExecutor).kwonlyargs]
    return ''.join(f': did you mean {units.get(like, like)}?'
                   for like in difflib.get_close_matches(name, known, 1))


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
        vcpus (int), memory (int, MiB), gpus (int), timeout (int, seconds), job_definition (str): of this
            run's workers, instead of the stack's. A GPU takes a stack of "scripts/create.sh --gpus".
        copies (bool): when workers have nothing to do, they compute the last calls, too, if these take longer
            than usual, and the first answer counts. False for a function with effects of its own, which must
            not run twice at a time; when a worker is lost, its call is repeated in any case.

    Raises:
        ValueError: an argument is not a whole number above zero, or one that AWS does not know.
        TypeError: initializer is not callable, or there is no argument of that name.
        AWSBatchException: the stack or the image is not there, the stack has no GPUs, or AWS cannot be used.
            Nothing was started.
    """

    def __init__(self, max_workers=None, *, initializer=None, initargs=(), vcpus=None, memory=None,
                 gpus=None, timeout=None, job_definition=None, copies=True, **unknown):
        for name in unknown:
            raise TypeError(f'AWSBatchExecutor has no argument {name!r}{_did_you_mean(name)}')
        try:
            self._run = _new_run(
                max_workers, initializer, initargs, vcpus, memory, gpus, timeout, job_definition, copies)
        except AWSBatchException as error:      # which says it all
            raise error.with_traceback(None)
        self._max_workers = self._run.workers       # where dask and others look for it
        #: The run id (str), which names its queues and its folder in the bucket.
        self.run = self._run.id
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

        given = None            # when the last result was

        def next_result():
            nonlocal given
            try:
                result = futures[0].result(None if deadline is None else deadline - time.monotonic())
            finally:
                futures.popleft().cancel()
            futures.extend(submitted(1))
            given = time.time()
            return result

        def results():
            try:
                while futures:
                    yield next_result()         # nothing here keeps a result that was handed out
                    if time.time() > given + 0.01:
                        run.report.note('taken', given=given, asked=time.time())
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
        return self._run.wait_for_workers(count, timeout)

    def stats(self):
        """
        What a progress line shows (dict): the 'run' id, 'workers' asked for, 'workers_up' now, those that are
        'lost' and 'replaced', calls 'done' and 'outstanding', 'blocks_per_worker' (worker to count) and
        'requests', the AWS requests that this script (not its workers) made for the run (int).
        """
        return self._run.stats()

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
        self._run.close(hurry=cancel_futures)
        if cancel_futures:
            self._run.calls.cancel_all()
        if wait:
            self._run.join()

    def __enter__(self):
        _entered.append(self._run)
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        with contextlib.suppress(ValueError):
            _entered.remove(self._run)
        self.shutdown(wait=True, cancel_futures=exc_type is not None)


# ---- RIOS 1.4: a job manager, RIOS 2: a compute-worker manager; first what they share ------------------

def _from_rios(module, name):
    """A class of RIOS to build on; object where there is none, and in workers, which start sooner without."""
    try:
        return object if 'RIOSRun' in os.environ else getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return object


class _Function:
    """Computes blocks of RIOS 1.4. It travels once, and workers keep it, with otherArgs until one changes."""
    given = args = None         # a pickle of what the caller gave; what the next block gets: (otherArgs,)
    comes_back = True           # whether anybody wants to know what has changed

    def __call__(self, label, jobInfo, sources):
        params = jobInfo.getFunctionParams()
        for array, source, filename in sources:
            jobInfo.info.blocklookup[id(array)] = source, filename
        changed = self.call(*params)
        return jobInfo.getFunctionResult(params), changed

    def call(self, *params):
        """Call the user function; a pickle of what it has changed in otherArgs, else None."""
        if self.args is None:
            self.args, self.seen = pickle.loads(self.given) if self.given else (), {}
            self.before = self.looks(self.args, self.seen)
        args, self.args = self.args, None
        self.userFunction(*params, *args)
        now = self.looks(args, dict(self.seen))
        names = [name for name in now if now[name] != self.before.get(name)]
        gone = list(self.before.keys() - now.keys())
        if not names and not gone:
            self.args = args
            return None
        try:
            return dumps(({name: _attributes(*args)[name] for name in names}, gone))
        except Exception as error:
            what = 'otherArgs, as the user function leaves it,'
            raise unpicklable(error, what, [(args[0], 'otherArgs')], 'the main script') from error

    def looks(self, args, seen):
        """What otherArgs looks like: digests of its attributes, by name."""
        return {name: _look(value, seen) for each in args if self.comes_back
                for name, value in _attributes(each).items()}


class _Source:
    """What workers know of the dataset that a block of RIOS 1.4 was read from: enough for nodata values."""
    def __init__(self, dataset):
        bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
        self.bands = [(band.DataType, band.GetNoDataValue()) for band in bands]

    def GetRasterBand(self, number):
        kind, nodata = self.bands[number - 1]
        return types.SimpleNamespace(DataType=kind, GetNoDataValue=lambda: nodata)


def _arrays(inputs):
    """The arrays in what RIOS gives for an input, or for all: an array, a list or a dict (iterator)."""
    if hasattr(inputs, 'dtype'):
        yield inputs
    elif isinstance(inputs, (list, tuple, dict)):
        for each in inputs.values() if isinstance(inputs, dict) else inputs:
            yield from _arrays(each)


def _sources(jobInfo):
    """Each array among the inputs of a block, with its _Source and the name of its file (list)."""
    known = getattr(getattr(jobInfo, 'info', None), 'blocklookup', {})
    inputs = vars(jobInfo.inputs) if known else {}
    return [(array, _Source(known[id(array)][0]), known[id(array)][1])
            for array in _arrays(inputs) if id(array) in known]


def _brief(value):
    return ' '.join(reprlib.repr(value).split())


def _attributes(otherArgs):
    """Its attributes by name (dict); or, by the name '', itself if it is more than those, as a list is."""
    with contextlib.suppress(Exception):
        _, _, state, *items = otherArgs.__reduce_ex__(5)
        if items == [None, None] and (state or {}).keys() == vars(otherArgs).keys():
            return vars(otherArgs)
    return {'': otherArgs}


class _Look(_Pickler):
    """
    Pickles, for a comparison, what functions may change in an object, but not what it remembers of having
    been asked: attributes with "cache" in their name, and a functools.cached_property. In objects of packages
    also attributes "_name" that had no value at first, and numbers in their compiled parts.

    seen: the objects by id, each with the names of those attributes that had a value at first.
    """
    def __init__(self, file, seen, **options):
        super().__init__(file, script and script.known, **options)
        self.seen, self.kinds = seen, {}        # what is to be known of a class
        self.parts = set()                      # ids of what objects of packages have as attributes

    def about(self, kind):
        """Of a class: whether pickle itself knows what to do; whether it is the script's; what it caches."""
        cached = {name for each in kind.__mro__ for name, value in vars(each).items()
                  if isinstance(value, functools.cached_property)}
        usual = issubclass(kind, (type, types.FunctionType)) or kind in self.dispatch_table
        self.kinds[kind] = about = usual, _travels(kind.__module__), cached
        return about

    def reducer_override(self, thing):
        kind, reduced = type(thing), super().reducer_override(thing)
        usual, ours, cached = self.kinds.get(kind) or self.about(kind)
        if usual:
            return reduced
        if reduced is NotImplemented:
            reduced = thing.__reduce_ex__(5)
        if not isinstance(reduced, tuple) or len(reduced) < 3:
            return reduced
        make, args, state, *more = reduced
        states = state if isinstance(state, tuple) else (state,)
        _, first = self.seen.get(id(thing)) or self.seen.setdefault(id(thing), (thing, {
            name for each in states if type(each) is dict for name in each if each[name] is not None}))
        compiled = id(thing) in self.parts and isinstance(state, tuple) and not getattr(thing, '__dict__', 0)
        kept = []
        for each in states:
            if type(each) is dict:
                each = {name: value for name, value in each.items() if 'cache' not in str(name).lower() and
                        name not in cached and (ours or name in first or str(name)[:1] != '_')} or None
                self.parts.update(map(id, () if ours or each is None else each.values()))
            if each is not None and not (compiled and type(each) in (int, float)):
                kept.append(each)
        return make, args, kept, *more


def _look(thing, seen):
    """A digest of what _Look sees, without a copy of the arrays in it. What it cannot see has changed."""
    digest = hashlib.sha256()
    try:
        with io.BytesIO() as file:
            _Look(file, seen, buffer_callback=lambda buffer: digest.update(buffer.raw())).dump(thing)
            digest.update(file.getvalue())
        return digest.digest()
    except Exception as error:          # where it matters, dumps() says why
        log.debug('otherArgs cannot be compared: %s', describe(error))
        return secrets.token_bytes(8)


@functools.lru_cache(maxsize=2)
def _kept(token):
    return pickle.loads(script.fetch(token))


def _compute(token, *args):
    return _kept(token)(*args)


class _Apply:
    """One apply(): its run, or that of the innermost with statement, its blocks, and what they changed."""
    def __init__(self, workers, **options):
        usable = [run for run in _entered if run.life.is_open]
        if usable and options:
            raise ValueError(f'computeWorkerExtraParams has {", ".join(options)}, but the workers are those '
                             'of a "with AWSBatchExecutor" around apply().')
        known = inspect.getfullargspec(AWSBatchExecutor).kwonlyargs
        for name in set(options).difference(known):
            raise ValueError(f'computeWorkerExtraParams of CW_AWSBATCH may have {", ".join(known)}, not '
                             f'{name}{_did_you_mean(name)}')
        self.run = run = usable[-1] if usable else _new_run(workers, **options)
        self.own = not usable
        self.userFunction = self.otherArgs = self.compute = None
        self.changes = {}                       # in otherArgs, by block: attributes, and names of those gone
        self.changed = {}                       # names of all that are changed in any block
        self.blocks = blocks = {}               # by future, in the order of submit()

        def end():
            if not usable:
                run.close(hurry=True)
            for future in list(blocks):
                future.cancel()
            if not usable:
                run.join()
        # By itself too, as RIOS does not tell a job manager that something else has failed.
        self.end = weakref.finalize(self, end)

    def begin(self, function, userFunction, otherArgs):
        """Take a _Function and what the caller gave to the workers."""
        function.comes_back = getattr(otherArgs, 'otherArgsList', ()) is not None
        if function.comes_back and hasattr(otherArgs, 'otherArgsList'):
            del otherArgs.otherArgsList         # of an earlier apply()
        run, known, definitions = self.run, (), [[], []]
        if otherArgs is not None:
            function.given, definitions, known = run.definitions.pickled(
                (otherArgs,), 'otherArgs', [(otherArgs, 'otherArgs')])
        self.userFunction = function.userFunction = userFunction
        self.otherArgs = otherArgs
        what = f'The function {_name(userFunction)}'
        data, more, known = run.definitions.pickled(
            function, what, [(userFunction, _name(userFunction))], known)
        compute = functools.partial(_compute, run.share(data))
        definitions = list(map(operator.add, definitions, more))
        self.compute = run.definitions.packed(definitions, pickle.dumps(compute)), known

    def room(self):
        """How many blocks more may be under way, so that no worker waits (int)."""
        return 4 * self.run.workers - len(self.blocks)

    def submit(self, block, *args):
        """Send a block, which is anything that sorts; its future."""
        future = self.run.submit(self.compute, self.userFunction, args, {})
        self.blocks[future] = block
        return future

    def no_more(self):
        """RIOS has no more blocks: workers for which there is nothing to do may end."""
        if self.own:
            self.run.close()

    def result(self, future):
        result, changed = future.result()
        block = self.blocks.pop(future)
        if changed:
            self.changes[block] = changed, gone = pickle.loads(changed)
            self.changed.update(dict.fromkeys([*changed, *gone]))
            if len(self.changes) == 1:
                log.warning('The user function changes %s. Each block has a copy of its own, and what '
                            'apply() was given stays as it is. At its end it says how to add up the copies.',
                            self._names())
        return result

    def _names(self):
        return ', '.join(f'otherArgs.{name}' if name else 'otherArgs' for name in self.changed)

    def give_copies(self):
        """
        Give the caller the copies of otherArgs that blocks have changed, in the order of the blocks (list);
        without such a block, the caller's own. It becomes otherArgs.otherArgsList, unless that is None.
        """
        if self.otherArgs is None:
            return []
        copies = self._copies() or [self.otherArgs]
        if getattr(self.otherArgs, 'otherArgsList', ()) is not None:
            with contextlib.suppress(AttributeError):
                self.otherArgs.otherArgsList = copies
        if self.changes and not self.blocks:        # otherwise there was an error
            self.run.tell(self._what_changed(copies))
        return copies

    def _copies(self):
        """Those that blocks have changed. What no block has changed they have in common with the caller's."""
        own, copies = _attributes(self.otherArgs), []
        fresh = dumps({name: own[name] for name in self.changed if name in own})
        for changed, gone in map(self.changes.get, sorted(self.changes)):
            each = changed[''] if '' in changed else copy.copy(self.otherArgs)
            if '' not in changed:
                vars(each).update({**pickle.loads(fresh), **changed})
                for name in gone:
                    del vars(each)[name]
            copies.append(each)
        return copies

    def _what_changed(self, copies):
        """A warning for the end: what otherArgs lacks of what blocks have changed, and how it gets that."""
        name, *_ = self.changed
        text = (f'The user function has changed {self._names()} in {len(copies)} of the blocks, each time in '
                'a copy, and apply() has left yours as it was. ')
        if not name:
            return text + 'The copies are lost, since it is no object of the class applier.OtherInputs.'
        values, own = [vars(each).get(name) for each in copies], vars(self.otherArgs)
        had = _brief(own[name]) if name in own else 'not there'
        each = f'each.{name} for each in otherArgs.otherArgsList'
        would, line = f'{_brief(values[0])} in the first copy', f'[{each}]'
        # Arrays that became longer were not added up.
        shapes = {value.shape for value in (*values, own.get(name)) if hasattr(value, 'shape')}
        for start, adding in ((0, f'sum({each})'), ([], f'sum(({each}), [])')) if len(shapes) < 2 else ():
            with contextlib.suppress(Exception):        # not all can be added up
                would, line = f'{_brief(sum(values, start))} as a sum', adding
                break
        return text + (f'otherArgs.{name} is {had}, and would be {would}. The line to add below apply(): '
                       f'otherArgs.{name} = {line}')


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
        self._apply = _Apply(numSubJobs)

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
            jobs, last = list(self._apply.blocks), fnInputs[-1]
            if type(last).__module__ == 'rios.applier':
                if last.info.isLastBlock():
                    self._apply.no_more()
                else:
                    jobs = jobs[:-ROUNDS_AHEAD * len(fnInputs)]
            return self.gatherAllOutputs(jobs)
        except BaseException:
            self._apply.end()
            raise

    def startOneJob(self, userFunc, jobInfo):
        """Send one block; a job (Future) for gatherAllOutputs()."""
        sources = _sources(jobInfo)
        jobInfo = copy.copy(jobInfo.prepareForPickling())       # which forgets what a block was read from
        otherArgs, jobInfo.otherargs = getattr(jobInfo, 'otherargs', None), None
        if self._apply.userFunction is not userFunc:
            self._apply.begin(_Function(), userFunc, otherArgs)
        info = getattr(jobInfo, 'info', None)
        block = getattr(info, 'yblock', 0), getattr(info, 'xblock', 0)
        return self._apply.submit(block, 'block {1}, {0}'.format(*block), jobInfo, sources)

    def waitOnJobs(self, jobIDlist):
        """Nothing: gatherAllOutputs() waits."""

    def gatherAllOutputs(self, jobIDlist):
        """Wait for jobs; their outputs, in the order of the list. Raises as :meth:`runSubJobs`."""
        return [self._apply.result(job) if isinstance(job, concurrent.futures.Future) else job
                for job in jobIDlist]

    def finalise(self):
        """End the run, when RIOS has processed all blocks."""
        self._apply.give_copies()
        self._apply.end()
        if self._apply.blocks:
            raise AWSBatchException('RIOS has ended, but some of the last blocks are not written.')


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

    RIOS hands blocks over in its BlockBuffers. What is set there, and when:

    ============================  ===================  =======================  =========================
    attribute                     RIOS                 from startWorkers() on   at the end
    ============================  ===================  =======================  =========================
    inBlockBuffer.insertTimeout   some seconds         None: readers wait for   1: those that still wait
                                                       room for ever            for room give up
    inBlockBuffer.popTimeout      some seconds         0: what is not there is  2: what they have still
                                                       not waited for           read is thrown away
    outBlockBuffer.popNextBlock   its own, which       ours, which waits for a
                                  waits for a buffer   worker's answer
    ============================  ===================  =======================  =========================
    """
    computeWorkerKind = 'CW_AWSBATCH'
    computeWorkersRead_default = 'auto'     # true for RIOS, so that it leaves the reading to us

    def startWorkers(self, numWorkers=None, **given):
        """
        Start workers, or use those of ``with AWSBatchExecutor(n):``; return when the first is up. Raises
        ValueError for a ConcurrencyStyle that makes no sense; AWSBatchException as that class, or when no
        worker was up within computeBarrierTimeout.
        """
        given['controls'] = controls = copy.copy(given['controls'])     # the caller's stay as they are
        style = controls.concurrency = copy.copy(controls.concurrency)
        style.numReadWorkers = style.numReadWorkers or 1
        for name, usual in vars(type(style)()).items():
            if ('Buffer' in name or name == 'haveSharedTemp') and getattr(style, name) != usual:
                log.debug('CW_AWSBATCH does not need %s=%r', name, getattr(style, name))
        with contextlib.ExitStack() as self.ending:     # when the script is interrupted, RIOS does not end it
            # First of all, since RIOS's readers fill it already, and give up when it is full for long.
            self.inputs = given['inBlockBuffer'] and self._from_buffer(given['inBlockBuffer'])
            self.apply = _Apply(numWorkers, **(getattr(style, 'computeWorkerExtraParams', None) or {}))
            self.ending.callback(self.apply.end)
            self._start(style, **given)
            if not self.apply.run.wait_for_workers(1, style.computeBarrierTimeout):
                raise AWSBatchException(f'No worker was up within {style.computeBarrierTimeout} seconds '
                                        f'(computeBarrierTimeout). {RUNNABLE_CAUSES}')
            self.ending = self.ending.pop_all()

    def _start(self, style, *, outBlockBuffer, exceptionQue, infiles, **given):
        from rios import structures
        self.timings, self.exceptionQue = structures.Timers(), exceptionQue
        self.outObjList, self.answers = [self.timings], Mailbox()       # futures that are done
        self.ending.callback(lambda: self.outObjList.extend(self.apply.give_copies()))
        if style.computeWorkersRead == 'auto' and not all(map(_is_remote, infiles)):
            self.inputs = self._read_here(style, infiles=infiles, **given)
        elif self.inputs is None:               # workers read
            self.inputs = zip(given['blockList'], itertools.repeat(None))
        self.apply.begin(_Rios2Function(dict(given, infiles=infiles)), given['userFunction'],
                         given['otherArgs'])
        outBlockBuffer.popNextBlock = self._next_block
        self._send()

    def _read_here(self, style, *, infiles, blockList, allInfo, controls, tmpfileMgr, workinggrid, **given):
        """Have RIOS's readers read in the main script; an iterator as from :meth:`_from_buffer`."""
        from rios import imagereader, structures
        buffer = structures.BlockBuffer(infiles, style.numReadWorkers, None, 0, 'read')
        readers = imagereader.ReadWorkerMgr()
        readers.startReadWorkers(
            blockList, infiles, allInfo, controls, tmpfileMgr, structures.RasterizationMgr(), workinggrid,
            buffer, self.timings, self.exceptionQue)
        self.ending.callback(readers.shutdown)
        return self._from_buffer(buffer)

    def _from_buffer(self, buffer):
        """Blocks and their inputs, as they are read; next() raises RIOS's TimeoutError when none is there."""
        from rios.rioserrors import TimeoutError
        buffer.insertTimeout, buffer.popTimeout = None, 0
        blocks, there = iter(buffer.popNextBlock, None), []
        with contextlib.suppress(TimeoutError):     # makes room for a reader that waits for some already
            for block in blocks:
                there.append(block)
        self.ending.callback(self._drain, buffer)
        return itertools.chain(there, blocks)

    @staticmethod
    def _drain(buffer):
        """Let readers end, which would wait for room for ever; not only once, as one may miss its turn."""
        buffer.insertTimeout, buffer.popTimeout = 1, 2

        def drain():
            with contextlib.suppress(Exception):
                collections.deque(iter(buffer.popNextBlock, None), maxlen=0)
        threading.Thread(target=drain, daemon=True).start()

    def _send(self):
        """Send the blocks that there are, while there is room."""
        from rios.rioserrors import TimeoutError
        with contextlib.suppress(TimeoutError):
            room, sent = self.apply.room(), 0
            for sent, (blockDefn, inputs) in enumerate(itertools.islice(self.inputs, room), 1):
                label = f'block at {blockDefn.top}, {blockDefn.left}'
                self.apply.submit(blockDefn, label, blockDefn, inputs).add_done_callback(self.answers.put)
            if sent < room:
                self.apply.no_more()

    def _next_block(self):
        """What RIOS writes next (blockDefn, outputs). On an error it raises the first in exceptionQue."""
        from rios.structures import WorkerErrorRecord
        while True:
            try:
                self._send()
                future = self.answers.get(timeout=0.02)     # then the readers may have more
                blockDefn = self.apply.blocks[future]
                outputs, timings = self.apply.result(future)
                self.timings.merge(timings)
                return blockDefn, outputs
            except queue.Empty:
                if self.exceptionQue.qsize():       # of RIOS's readers
                    raise AWSBatchException('A block could not be read.') from None
            except Exception as error:
                self.exceptionQue.put(WorkerErrorRecord(error, 'compute'))
                # It leads to RIOS's frame, which keeps the error, and so would stay with a temporary folder.
                self.ending.callback(setattr, error, '__traceback__', None)
                raise

    def shutdown(self):
        """End the run. RIOS calls this after the last block, and after any error."""
        self.ending.close()
