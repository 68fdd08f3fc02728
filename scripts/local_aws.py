"""An AWS on this machine, for the demo, the tests and the benchmark.

moto keeps the state of S3, SQS, CloudFormation, ECR, IAM, STS, EC2, Batch and CloudWatch Logs. This file
serves it over HTTP on the loopback address, and replaces the few places where moto is untrue to AWS or too
slow to measure anything with:

    The front       HTTP/1.1 with keep-alive; counts, delays and fails requests as the settings say
    IAM             decides by action, resource and condition, as AWS does
    SQS             a message store of its own: long polls that wake at once, nothing that grows with the queue
    Batch           jobs are processes of this machine, with a container's environment, exit code and log
    CloudFormation  events, roll-back, updates that keep what did not change, deletions that can fail
    Control         GET and POST under /_local/, for the tests

`scripts/local.sh` starts and stops it. Its settings are environment variables, described there. By hand:

    python local_aws.py serve PORT-FILE        serve until SIGTERM; the port is written to PORT-FILE
    python local_aws.py push OUTPUT FILE       put an image `latest` whose entry point is FILE into the repository
                                               that this output of the stack names
"""
import base64
import collections
import email.utils
import fnmatch
import hashlib
import heapq
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
import uuid
from xml.sax.saxutils import escape

ACCOUNT = '123456789012'
PARTITION = 'aws'
# The access key of the account's owner, whom no policy binds. The one a user of local.sh has.
OWNER_KEY = 'AKIALOCALOWNERKEY000'
# An image's entry point is named in its manifest, under this annotation.
ENTRY_POINT = 'local.entrypoint'

MIB = 1 << 20
SQS_MAX_BYTES = MIB                # of one message, and of one batch of messages
SQS_MAX_IN_FLIGHT = 120_000
SQS_MAX_VISIBILITY = 12 * 3600
ECS_STOP_SECONDS = 30              # between a container's SIGTERM and its SIGKILL
BATCH_MAX_ARRAY = 10_000
TICK = 0.2                         # seconds between two looks at the running jobs
# What a job may see of the server's own environment: it stands for what is installed in the image.
IMAGE_VARIABLES = ('PYTHONPATH', 'LD_LIBRARY_PATH', 'GDAL_DATA', 'PROJ_LIB', 'PROJ_DATA', 'LANG', 'LC_ALL',
                   'OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE', 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS')


class AwsError(Exception):
    """An answer that AWS gives instead of a result."""

    def __init__(self, code, message, status=400):
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


# --------------------------------------------------------------------------------------------- requests

class Request:
    """One HTTP request, and what it asks of which service."""

    CREDENTIAL = re.compile(r'Credential=([^/,\s]+)/\d+/([^/]+)/([^/]+)/aws4_request')
    BATCH = {name.lower(): name for name in (
        'CreateComputeEnvironment', 'DescribeComputeEnvironments', 'DeleteComputeEnvironment',
        'UpdateComputeEnvironment', 'CreateJobQueue', 'DescribeJobQueues', 'UpdateJobQueue', 'DeleteJobQueue',
        'RegisterJobDefinition', 'DeregisterJobDefinition', 'DescribeJobDefinitions', 'SubmitJob',
        'DescribeJobs', 'ListJobs', 'TerminateJob', 'CancelJob')}
    # S3 says in the query what it wants of a bucket or an object; the rest is plain get, put, delete, list.
    S3_BUCKET = {'policy': 'BucketPolicy', 'versioning': 'BucketVersioning', 'location': 'BucketLocation',
                 'encryption': 'BucketEncryption', 'lifecycle': 'BucketLifecycleConfiguration',
                 'tagging': 'BucketTagging', 'publicAccessBlock': 'PublicAccessBlock', 'acl': 'BucketAcl',
                 'ownershipControls': 'BucketOwnershipControls'}

    def __init__(self, method, target, headers, body, connection=None):
        self.method, self.target, self.headers, self.body = method, target, headers, body
        self.connection = connection
        path, _, self.query_string = target.partition('?')
        self.path = urllib.parse.unquote(path)
        self.query = dict(urllib.parse.parse_qsl(self.query_string, keep_blank_values=True))
        self.access_key, self.region, self.service = None, 'us-east-1', 's3'
        signed = self.CREDENTIAL.search(headers.get('authorization', ''))
        if signed:
            self.access_key, self.region, self.service = signed.groups()
        elif 'X-Amz-Credential' in self.query:
            self.access_key, _, self.region, self.service = self.query['X-Amz-Credential'].split('/')[:4]
        self.form = {}
        if headers.get('content-type', '').startswith('application/x-www-form-urlencoded'):
            self.form = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
        self.bucket, _, self.key = (self.path[1:].partition('/') if self.service == 's3' else ('', '', ''))
        self.operation = self._operation()
        self._parameters = None

    def _operation(self):
        target = self.headers.get('x-amz-target')
        if target:
            return target.rpartition('.')[2]
        if 'Action' in self.form:
            return self.form['Action']
        if self.service == 'batch':
            name = self.path.rsplit('/', 1)[-1]
            return self.BATCH.get(name) or {'GET': 'ListTagsForResource', 'POST': 'TagResource',
                                            'DELETE': 'UntagResource'}[self.method]
        return self._s3_operation() if self.service == 's3' else self.method

    def _s3_operation(self):
        verb = {'GET': 'Get', 'PUT': 'Put', 'DELETE': 'Delete', 'HEAD': 'Head', 'POST': 'Post'}[self.method]
        if not self.bucket:
            return 'ListBuckets'
        if not self.key:
            for word, name in self.S3_BUCKET.items():
                if word in self.query:
                    return verb + name
            if 'delete' in self.query:
                return 'DeleteObjects'
            if verb == 'Get':
                for word in ('versions', 'uploads'):
                    if word in self.query:
                        return {'versions': 'ListObjectVersions', 'uploads': 'ListMultipartUploads'}[word]
                return 'ListObjectsV2' if 'list-type' in self.query else 'ListObjects'
            return {'Put': 'CreateBucket', 'Delete': 'DeleteBucket', 'Head': 'HeadBucket'}.get(verb, verb)
        if 'uploads' in self.query:
            return 'CreateMultipartUpload'
        if 'uploadId' in self.query:
            return {'Put': 'UploadPart', 'Post': 'CompleteMultipartUpload', 'Delete': 'AbortMultipartUpload',
                    'Get': 'ListParts'}.get(verb, verb)
        if 'tagging' in self.query:
            return verb + 'ObjectTagging'
        return 'CopyObject' if 'x-amz-copy-source' in self.headers else verb + 'Object'

    @property
    def parameters(self):
        """The parameters of a JSON request, or the form of a query request."""
        if self._parameters is None:
            self._parameters = self.form
            if not self.form and self.service != 's3' and self.body[:1] == b'{':
                self._parameters = json.loads(self.body)
        return self._parameters

    def client_is_there(self):
        """Whether the client still waits. AWS hands no message to a connection that has been closed."""
        if self.connection is None:
            return True
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if not poll.poll(0):
            return True
        try:
            return self.connection.recv(1, socket.MSG_PEEK) != b''
        except OSError:
            return False


class Response:
    """Status, headers (a list of pairs) and body of an answer."""

    def __init__(self, status=200, headers=(), body=b''):
        self.status, self.headers, self.body = status, list(headers), body

    @classmethod
    def of_json(cls, value, status=200, headers=(), content_type='application/x-amz-json-1.0'):
        """An answer in JSON."""
        return cls(status, [('Content-Type', content_type), *headers], json.dumps(value).encode())


def error_response(request, error):
    """The error as the protocol of the request's service writes it."""
    request_id = str(uuid.uuid4())
    code, message, side = error.code, error.message, 'Sender' if error.status < 500 else 'Receiver'
    headers = [('x-amzn-RequestId', request_id)]
    if request.service == 's3':
        text = (f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{escape(message)}'
                f'</Message><RequestId>{request_id}</RequestId></Error>')
    elif request.service == 'ec2':
        text = (f'<Response><Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>'
                f'</Errors><RequestID>{request_id}</RequestID></Response>')
    elif request.form:
        text = (f'<ErrorResponse><Error><Type>{side}</Type><Code>{code}</Code><Message>{escape(message)}'
                f'</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>')
    else:
        name = code.rpartition('.')[2]
        shape = {'NonExistentQueue': 'QueueDoesNotExist'}.get(name, name)
        headers += [('x-amzn-ErrorType', shape), ('x-amzn-query-error', f'{code};{side}')]
        return Response.of_json({'__type': shape, 'message': message}, error.status, headers)
    return Response(error.status, [('Content-Type', 'text/xml'), *headers], text.encode())


# ------------------------------------------------------------------------------------------------ faults

class Faults:
    """What goes wrong, how often: settings that a running server can change.

    errors     fraction of all requests that fail: throttled, or with a 5xx before or after they were done;
               and of the entries of an SQS batch that fail alone
    duplicate  fraction of SQS messages that are delivered twice
    late       fraction of SQS messages that arrive one to two seconds late
    reorder    1: SQS messages come in random order
    seed       of the random numbers
    """

    THROTTLE = {'s3': ('SlowDown', 503), 'sqs': ('RequestThrottled', 403), 'batch': ('TooManyRequestsException', 429),
                'logs': ('ThrottlingException', 400), 'ecr': ('ThrottlingException', 400)}
    BROKEN = {'s3': ('InternalError', 500), 'sqs': ('InternalError', 500)}

    def __init__(self):
        self.random = random.Random()
        self.set({})

    def set(self, settings):
        """Replace all settings; those not named are off."""
        unknown = set(settings) - {'errors', 'duplicate', 'late', 'reorder', 'seed'}
        if unknown:
            raise ValueError(f'unknown fault: {", ".join(sorted(unknown))}')
        self.settings = {name: float(value) for name, value in settings.items()}
        for name in ('errors', 'duplicate', 'late', 'reorder'):
            setattr(self, name, self.settings.get(name, 0.0))
        if 'seed' in self.settings:
            self.random.seed(self.settings['seed'])

    def hits(self, fraction):
        """True for that fraction of the calls."""
        return fraction > 0 and self.random.random() < fraction

    def of_request(self, request):
        """(error, whether the request is carried out all the same), or None."""
        if not self.hits(self.errors):
            return None
        kind = self.random.choice(('throttle', 'broken', 'unavailable', 'done but broken'))
        if kind == 'throttle':
            code, status = self.THROTTLE.get(request.service, ('Throttling', 400))
            return AwsError(code, 'Rate exceeded', status), False
        if kind == 'unavailable':
            return AwsError('ServiceUnavailable', 'Service Unavailable', 503), False
        code, status = self.BROKEN.get(request.service, ('InternalFailure', 500))
        message = 'We encountered an internal error. Please try again.'
        return AwsError(code, message, status), kind == 'done but broken'


# --------------------------------------------------------------------------------------------------- IAM

class Principal:
    """Who makes a request: an ARN, the policy documents that bind it, and the role's ARN if it is one."""

    def __init__(self, arn, policies, role_arn=None):
        self.arn, self.policies, self.role_arn = arn, policies, role_arn or arn


def as_list(value):
    """The value in a list, unless it is one: policies may leave out the brackets."""
    return value if isinstance(value, list) else [value]


def policy_match(pattern, text):
    """Whether an IAM pattern (* and ?) matches the text."""
    return re.fullmatch(re.escape(pattern).replace(r'\*', '.*').replace(r'\?', '.'), text, re.DOTALL) is not None


class Iam:
    """Allows and denies requests by the policies in moto's IAM.

    AWS looks at action, resource and condition of every statement; moto looks at the action alone, and not
    in every service. Where AWS has no resource for an action, the resource is `*`. EC2, IAM and STS are
    checked by action alone (their resource is None here, which every Resource element matches).
    """

    # Operations that have the permission of another, and those that need a second one (SubmitJob below).
    ACTION = {'SendMessageBatch': 'SendMessage', 'DeleteMessageBatch': 'DeleteMessage',
              'ChangeMessageVisibilityBatch': 'ChangeMessageVisibility', 'HeadObject': 'GetObject',
              'CopyObject': 'PutObject', 'HeadBucket': 'ListBucket', 'ListObjects': 'ListBucket',
              'ListObjectsV2': 'ListBucket', 'ListObjectVersions': 'ListBucketVersions', 'UploadPart': 'PutObject',
              'CreateMultipartUpload': 'PutObject', 'CompleteMultipartUpload': 'PutObject',
              'ListMultipartUploads': 'ListBucketMultipartUploads', 'ListParts': 'ListMultipartUploadParts',
              'ListBuckets': 'ListAllMyBuckets', 'GetBucketEncryption': 'GetEncryptionConfiguration',
              'PutBucketEncryption': 'PutEncryptionConfiguration', 'PutPublicAccessBlock': 'PutBucketPublicAccessBlock',
              'GetBucketLifecycleConfiguration': 'GetLifecycleConfiguration',
              'PutBucketLifecycleConfiguration': 'PutLifecycleConfiguration'}
    OPERATORS = {
        'StringEquals': lambda want, have: want == have,
        'StringEqualsIgnoreCase': lambda want, have: want.lower() == have.lower(),
        'StringLike': policy_match, 'ArnLike': policy_match, 'ArnEquals': policy_match,
        'Bool': lambda want, have: want.lower() == have.lower(),
        'NumericLessThanEquals': lambda want, have: float(have) <= float(want),
        'NumericEquals': lambda want, have: float(have) == float(want)}

    def __init__(self):
        self.enforced = False
        self.denials = collections.deque(maxlen=1000)
        self.sessions = {}                       # access key of a job's credentials -> role name, session name

    def credentials_of(self, role_arn, session):
        """Temporary credentials of the role, as a container's credentials endpoint gives them."""
        access_key = 'ASIA' + base64.b32encode(os.urandom(10)).decode()
        self.sessions[access_key] = (role_arn, session)
        expiration = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(time.time() + 6 * 3600))
        return {'RoleArn': role_arn, 'AccessKeyId': access_key, 'SecretAccessKey': 'secret-of-' + access_key,
                'Token': 'token-of-' + access_key, 'Expiration': expiration}

    def principal(self, access_key):
        """The principal of an access key; None for the account's owner."""
        from moto.iam.models import iam_backends
        from moto.sts.models import sts_backends
        if access_key == OWNER_KEY:
            return None
        backend = iam_backends[ACCOUNT][PARTITION]
        role_arn, session = self.sessions.get(access_key, (None, None))
        for assumed in [] if role_arn else sts_backends[ACCOUNT][PARTITION].assumed_roles:
            if assumed.access_key_id == access_key:
                role_arn, session = assumed.role_arn, assumed.session_name
        if role_arn:
            name = role_arn.rpartition('/')[2]
            role = next((role for role in backend.roles.values() if role.name == name), None)
            arn = f'arn:{PARTITION}:sts::{ACCOUNT}:assumed-role/{name}/{session}'
            return Principal(arn, self._policies(role) if role else [], role_arn)
        for user in backend.users.values():
            if any(key.access_key_id == access_key for key in user.access_keys):
                holders = [user] + [group for group in backend.groups.values() if user in group.users]
                return Principal(user.arn, [policy for holder in holders for policy in self._policies(holder)])
        raise AwsError('InvalidClientTokenId', 'The security token included in the request is invalid.', 403)

    def identity(self, request):
        """GetCallerIdentity, which moto answers for its own users only."""
        principal = self.principal(request.access_key)
        arn = principal.arn if principal else f'arn:{PARTITION}:iam::{ACCOUNT}:root'
        text = (f'<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
                f'<Arn>{arn}</Arn><UserId>{request.access_key}</UserId><Account>{ACCOUNT}</Account>'
                '</GetCallerIdentityResult></GetCallerIdentityResponse>')
        return Response(200, [('Content-Type', 'text/xml')], text.encode())

    @staticmethod
    def _policies(holder):
        texts = list(holder.policies.values()) + [
            version.document for policy in holder.managed_policies.values() for version in policy.versions
            if version.version_id == policy.default_version_id]
        return [json.loads(text) if isinstance(text, str) else text for text in texts]

    def check(self, request):
        """Raise AccessDenied unless the policies allow all that the request does."""
        if not self.enforced or request.operation == 'GetCallerIdentity':
            return
        if request.access_key is None:
            raise AwsError(*{'s3': ('AccessDenied', 'Access Denied')}.get(request.service, (
                'MissingAuthenticationToken', 'Request is missing Authentication Token')), 403)
        principal = self.principal(request.access_key)
        if principal is None:
            return
        for action, target in self.needs(request):
            if not self.allows(principal, request, action, target):
                self.deny(principal, request, action, target)

    def deny(self, principal, request, action, target):
        """Raise AccessDenied in AWS's words, and remember it."""
        why = f'because no identity-based policy allows the {action} action'
        message = f'User: {principal.arn} is not authorized to perform: {action}'
        if target:
            message += f' on resource: {target}'
        self.denials.append({'user': principal.arn, 'action': action, 'resource': target})
        code = {'batch': 'AccessDeniedException', 'logs': 'AccessDeniedException', 'ec2': 'UnauthorizedOperation',
                'ecr': 'AccessDeniedException'}.get(request.service, 'AccessDenied')
        raise AwsError(code, f'{message} {why}', 400 if request.service in ('logs', 'ecr') else 403)

    def needs(self, request):
        """Every (action, resource ARN) that AWS asks for before it carries out the request."""
        given, operation, here = request.parameters, request.operation, f'{request.region}:{ACCOUNT}'
        action = f'{request.service}:{self.ACTION.get(operation, operation)}'
        arn = f'arn:{PARTITION}:{request.service}:'
        if request.service == 'sqs':
            name = (given.get('QueueUrl') or given.get('QueueName') or '').rpartition('/')[2]
            yield action, f'{arn}{here}:{name}' if name else '*'
            if operation == 'CreateQueue' and given.get('tags'):
                yield 'sqs:TagQueue', f'{arn}{here}:{name}'
        elif request.service == 's3':
            yield from self._s3_needs(request, action)
        elif operation == 'SubmitJob':
            backend = batch_backend(request.region)
            definition = backend.get_job_definition(given.get('jobDefinition', ''))
            queue = backend.get_job_queue(given.get('jobQueue', ''))
            for found, name, kind in ((definition, 'jobDefinition', 'job-definition'), (queue, 'jobQueue', 'job-queue')):
                yield action, found.arn if found else f'{arn}{here}:{kind}/{given.get(name)}'
            if given.get('tags'):
                yield 'batch:TagResource', f'{arn}{here}:job/*'
        elif operation in ('TerminateJob', 'CancelJob'):
            yield action, f'{arn}{here}:job/{given.get("jobId")}'
        elif request.service == 'batch' and '/tags/' in request.path:
            yield action, request.path.partition('/tags/')[2]
        elif request.service == 'logs' and 'logGroupName' in given:
            # AWS writes an empty stream name for what concerns the whole group.
            stream = given.get('logStreamName', '') if operation != 'FilterLogEvents' else ''
            yield action, f'{arn}{here}:log-group:{given["logGroupName"]}:log-stream:{stream}'
        elif request.service == 'cloudformation' and given.get('StackName'):
            yield action, self._stack_arn(request, given['StackName'])
        elif request.service == 'ecr' and 'repositoryName' in given:
            yield action, f'{arn}{here}:repository/{given["repositoryName"]}'
        else:
            yield action, None if request.service in ('ec2', 'iam', 'sts') else '*'

    def _s3_needs(self, request, action):
        bucket = f'arn:{PARTITION}:s3:::{request.bucket}'
        if request.operation == 'DeleteObjects':
            for key in re.findall(r'<Key>(.*?)</Key>', request.body.decode()):
                yield 's3:DeleteObject', f'{bucket}/{key}'
        elif not request.bucket:
            yield action, '*'
        else:
            if 'versionId' in request.query and action in ('s3:GetObject', 's3:DeleteObject'):
                action += 'Version'
            yield action, f'{bucket}/{request.key}' if request.key else bucket
            if request.operation == 'CopyObject':
                source = urllib.parse.unquote(request.headers['x-amz-copy-source']).lstrip('/')
                yield 's3:GetObject', f'arn:{PARTITION}:s3:::{source}'

    @staticmethod
    def _stack_arn(request, name):
        from moto.cloudformation.models import cloudformation_backends
        for stack in cloudformation_backends[ACCOUNT][request.region].stacks.values():
            if name in (stack.name, stack.stack_id):
                return stack.stack_id
        if name.startswith('arn:'):
            return name
        return f'arn:{PARTITION}:cloudformation:{request.region}:{ACCOUNT}:stack/{name}/*'

    def allows(self, principal, request, action, target):
        """Whether one statement allows the action on the resource, and none denies it."""
        context = self._context(principal, request, target)
        statements = [(statement, True) for policy in principal.policies for statement in as_list(policy['Statement'])]
        statements += [(statement, False) for statement in self._bucket_statements(request)]
        allowed = False
        for statement, of_identity in statements:
            if self._applies(statement, action, target, context):
                if statement['Effect'] == 'Deny':
                    return False
                allowed = allowed or of_identity
        return allowed

    @staticmethod
    def _bucket_statements(request):
        from moto.s3.models import s3_backends
        bucket = s3_backends[ACCOUNT][PARTITION].buckets.get(request.bucket) if request.bucket else None
        policy = bucket.policy if bucket is not None else None
        return as_list(json.loads(policy)['Statement']) if policy else []

    def _context(self, principal, request, target):
        """The condition keys of the request, in lower case. The loopback connection counts as TLS."""
        context = {'aws:securetransport': 'true', 'aws:principalarn': principal.role_arn, 'aws:resourceaccount': ACCOUNT,
                   'aws:principalaccount': ACCOUNT, 'aws:requestedregion': request.region}
        for name in ('prefix', 'delimiter'):
            if request.service == 's3' and name in request.query:
                context['s3:' + name] = request.query[name]
        given = request.parameters.get('tags', request.parameters.get('Tags')) or {}
        if isinstance(given, dict):
            context.update({f'aws:requesttag/{key}'.lower(): str(value) for key, value in given.items()})
            if given:
                context['aws:tagkeys'] = list(given)
        context.update({f'aws:resourcetag/{key}'.lower(): value for key, value in self._tags(request, target).items()})
        return context

    @staticmethod
    def _tags(request, target):
        if request.service == 'sqs' and target:
            from moto.sqs.models import sqs_backends
            queue = sqs_backends[ACCOUNT][request.region].queues.get(target.rpartition(':')[2])
            return queue.tags if queue else {}
        if request.service == 'batch' and target and target != '*':
            return batch_backend(request.region).list_tags_for_resource(target)
        return {}

    def _applies(self, statement, action, target, context):
        def any_match(patterns, text, fold=False):
            return any(policy_match(pattern.lower() if fold else pattern, text) for pattern in as_list(patterns))
        if 'Action' in statement and not any_match(statement['Action'], action.lower(), True):
            return False
        if 'NotAction' in statement and any_match(statement['NotAction'], action.lower(), True):
            return False
        if 'Principal' in statement and statement['Principal'] != '*':
            named_ones = as_list(statement['Principal'].get('AWS', []))
            if not set(named_ones) & {'*', context['aws:principalarn']}:
                return False
        if target is not None:
            if 'Resource' in statement and not any_match(statement['Resource'], target):
                return False
            if 'NotResource' in statement and any_match(statement['NotResource'], target):
                return False
        return all(self._condition(operator, key, wanted, context)
                   for operator, keys in statement.get('Condition', {}).items() for key, wanted in keys.items())

    def _condition(self, operator, key, wanted, context):
        wanted = [str(value).lower() if isinstance(value, bool) else str(value) for value in as_list(wanted)]
        quantifier, _, name = operator.rpartition(':')
        have = context.get(key.lower())
        if name == 'Null':
            return (have is None) == (wanted[0] == 'true')
        optional = name.endswith('IfExists')
        name = name.removesuffix('IfExists')
        negated = 'Not' in name
        test = self.OPERATORS[name.replace('Not', '')]
        if have is None:
            return optional or negated or quantifier == 'ForAllValues'
        matches = [any(test(want, value) for want in wanted) != negated for value in as_list(have)]
        return all(matches) if quantifier == 'ForAllValues' or not quantifier else any(matches)

    def hides_missing(self, request):
        """Whether a missing object is 'denied' to this principal: AWS tells only those who may list."""
        if not self.enforced or request.operation not in ('GetObject', 'HeadObject'):
            return None
        principal = self.principal(request.access_key)
        bucket = f'arn:{PARTITION}:s3:::{request.bucket}'
        if principal is None or self.allows(principal, request, 's3:ListBucket', bucket):
            return None
        return principal


# --------------------------------------------------------------------------------------------------- SQS

class Message:
    """A message in a queue, and how it fared."""

    __slots__ = ('key', 'id', 'body', 'md5', 'attributes', 'attributes_md5', 'sent', 'first', 'receives', 'due')

    def __init__(self, body, attributes, attributes_md5):
        self.key, self.id = uuid.uuid4().hex, str(uuid.uuid4())
        self.body, self.md5 = body, hashlib.md5(body.encode()).hexdigest()
        self.attributes, self.attributes_md5 = attributes, attributes_md5
        self.sent, self.first, self.receives = time.time(), None, 0
        self.due = 0.0                           # moment from which it may be received; None while it may

    def twin(self):
        """The same message once more, as a standard queue may deliver it."""
        other = Message(self.body, self.attributes, self.attributes_md5)
        other.id, other.sent = self.id, self.sent
        return other

    def handle(self):
        """The receipt handle of the last receive."""
        return base64.b64encode(f'{self.key} {self.receives}'.encode()).decode()


class MessageStore:
    """The messages of one standard queue.

    moto walks through all messages for each receive and sleeps between two looks. Here a long poll wakes when
    a message arrives or becomes visible again, and no call takes longer because the queue is long.
    """

    def __init__(self, queue):
        self.queue, self.deleted = queue, False
        self.changed = threading.Condition(threading.Lock())
        self.messages = {}                       # all that are not deleted, by key
        self.ready = collections.deque()         # those that may be received
        self.waiting = []                        # heap of (due, key): delayed or in flight; stale entries are skipped

    def put(self, message, delay):
        """Add a message that may be received after so many seconds."""
        with self.changed:
            self._alive()
            self.messages[message.key] = message
            self._schedule(message, delay)

    def _alive(self):
        if self.deleted:
            raise AwsError('AWS.SimpleQueueService.NonExistentQueue', 'The specified queue does not exist.')

    def _schedule(self, message, delay):
        if delay <= 0:
            message.due = None
            self.ready.append(message)
            self.changed.notify()
            return
        message.due = time.monotonic() + delay
        earlier = not self.waiting or message.due < self.waiting[0][0]
        heapq.heappush(self.waiting, (message.due, message.key))
        if earlier:
            self.changed.notify_all()

    def _ripen(self):
        """Move what has become visible to the ready ones."""
        now = time.monotonic()
        while self.waiting:
            due, key = self.waiting[0]
            message = self.messages.get(key)
            if message is not None and message.due == due:
                if due > now:
                    return
                message.due = None
                self.ready.append(message)
            heapq.heappop(self.waiting)

    def receive(self, count, wait, visibility, request, reorder):
        """Up to `count` messages, as soon as there is one, within `wait` seconds."""
        deadline = time.monotonic() + wait
        with self.changed:
            while True:
                self._alive()
                self._ripen()
                taken = []
                while self.ready and len(taken) < count:
                    if not taken and not request.client_is_there():
                        self.changed.notify()
                        return []
                    if reorder:
                        self.ready.rotate(request.faults.random.randrange(min(len(self.ready), 100)))
                    message = self.ready.popleft()
                    if self._may_go(message):
                        taken.append(message)
                now = time.monotonic()
                if taken or now >= deadline:
                    break
                due = min(deadline, self.waiting[0][0]) if self.waiting else deadline
                self.changed.wait(due - now)
            if len(self.waiting) > SQS_MAX_IN_FLIGHT and self.in_flight() > SQS_MAX_IN_FLIGHT:
                raise AwsError('OverLimit', 'The maximum number of in flight messages is reached.', 403)
            answer = []
            for message in taken:
                message.receives += 1
                message.first = message.first or time.time()
                answer.append((message, message.handle(), message.receives))
                self._schedule(message, visibility)
            if self.ready:
                self.changed.notify()
            return answer

    def _may_go(self, message):
        """False for a message deleted, too old, or received too often for its queue's redrive policy."""
        if self.messages.get(message.key) is not message:
            return False
        if time.time() - message.sent > self.queue.message_retention_period:
            del self.messages[message.key]
            return False
        limit = (self.queue.redrive_policy or {}).get('maxReceiveCount')
        if limit and self.queue.dead_letter_queue is not None and message.receives >= limit:
            del self.messages[message.key]
            store_of(self.queue.dead_letter_queue).put(message, 0)
            return False
        return True

    def _find(self, handle):
        """The message of a receipt handle, and whether the handle is of its last receive."""
        try:
            key, receives = base64.b64decode(handle, validate=True).decode().split(' ')
            receives = int(receives)
        except ValueError:
            raise AwsError('ReceiptHandleIsInvalid',
                           f'The input receipt handle "{handle}" is not a valid receipt handle.', 404) from None
        message = self.messages.get(key)
        return message, message is not None and message.receives == receives

    def delete(self, handle):
        """Delete by the last receipt handle; with an older one AWS says yes and deletes nothing."""
        with self.changed:
            self._alive()
            message, is_last = self._find(handle)
            if is_last:
                del self.messages[message.key]

    def change_visibility(self, handle, seconds):
        """Make a message in flight visible after so many seconds from now."""
        if not 0 <= seconds <= SQS_MAX_VISIBILITY:
            raise AwsError('InvalidParameterValue', f'Value {seconds} for parameter VisibilityTimeout is invalid. '
                                                    'Reason: Must be between 0 and 43200, if provided.')
        with self.changed:
            self._alive()
            self._ripen()
            message, is_last = self._find(handle)
            if not is_last or message.due is None:
                raise AwsError('InvalidParameterValue',
                               f'Value {handle} for parameter ReceiptHandle is invalid. Reason: Message does not '
                               'exist or is not available for visibility timeout change.')
            self._schedule(message, seconds)

    def purge(self):
        """Delete all messages."""
        with self.changed:
            self.messages.clear()
            self.ready.clear()
            self.waiting.clear()

    def close(self):
        """The queue is deleted: long polls answer at once that it does not exist."""
        with self.changed:
            self.deleted = True
            self.messages.clear()
            self.changed.notify_all()

    def visible(self):
        """How many may be received."""
        self._ripen()
        return sum(message.due is None for message in self.messages.values())

    def in_flight(self):
        """How many have been received and neither deleted nor become visible again."""
        return sum(message.due is not None and message.receives > 0 for message in self.messages.values())

    def delayed(self):
        """How many have not arrived yet."""
        return sum(message.due is not None and message.receives == 0 for message in self.messages.values())


def store_of(queue):
    """The message store of a moto queue."""
    store = queue.__dict__.get('store')
    return store if store is not None else queue.__dict__.setdefault('store', MessageStore(queue))


class Sqs:
    """The operations on messages, with AWS's limits and error texts. Everything else about queues is moto's."""

    INVALID_CHARACTER = re.compile('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')
    BATCH_ID = re.compile(r'[\w-]{1,80}', re.ASCII)

    def __init__(self, faults):
        self.faults = faults
        self.operations = {
            'SendMessage': self.send, 'SendMessageBatch': self.send_batch, 'ReceiveMessage': self.receive,
            'DeleteMessage': self.delete, 'DeleteMessageBatch': self.delete_batch,
            'ChangeMessageVisibility': self.change, 'ChangeMessageVisibilityBatch': self.change_batch}

    def call(self, request, given):
        """Carry out the operation of the request with the given parameters (in the JSON protocol's shape)."""
        from moto.sqs.models import sqs_backends
        name = given.get('QueueUrl', '').rpartition('/')[2]
        queue = sqs_backends[ACCOUNT][request.region].queues.get(name)
        if queue is None:
            raise AwsError('AWS.SimpleQueueService.NonExistentQueue', 'The specified queue does not exist.')
        request.faults = self.faults
        return self.operations[request.operation](queue, store_of(queue), given, request)

    def _message(self, queue, given):
        body = given.get('MessageBody')
        if not body:
            raise AwsError('MissingParameter', 'The request must contain the parameter MessageBody.')
        if self.INVALID_CHARACTER.search(body):
            raise AwsError('InvalidMessageContents', 'Invalid characters found. Valid unicode characters are #x9 | '
                                                     '#xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF')
        if self._size(given) > queue.maximum_message_size:
            raise AwsError('InvalidParameterValue', 'One or more parameters are invalid. Reason: Message must be '
                                                    f'shorter than {queue.maximum_message_size} bytes.')
        attributes = given.get('MessageAttributes') or {}
        return Message(body, attributes, self._attributes_md5(attributes))

    @staticmethod
    def _size(given):
        size = len(given['MessageBody'].encode())
        for name, value in (given.get('MessageAttributes') or {}).items():
            size += len(name) + sum(len(part) for part in value.values() if isinstance(part, (str, bytes)))
        return size

    @staticmethod
    def _attributes_md5(attributes):
        if not attributes:
            return None
        from moto.sqs.models import Message as MotoMessage
        model = MotoMessage('', '')
        for name, value in attributes.items():
            binary = value.get('BinaryValue')
            model.message_attributes[name] = {**value, 'BinaryValue': base64.b64decode(binary)} if isinstance(
                binary, str) else value
        return model.attribute_md5

    def _put(self, queue, store, message, given):
        delay = given.get('DelaySeconds')
        delay = queue.delay_seconds if delay is None else int(delay)
        if self.faults.hits(self.faults.late):
            delay += self.faults.random.uniform(1, 2)
        store.put(message, delay)
        if self.faults.hits(self.faults.duplicate):
            store.put(message.twin(), delay + self.faults.random.uniform(0, 1))
        answer = {'MessageId': message.id, 'MD5OfMessageBody': message.md5}
        if message.attributes_md5:
            answer['MD5OfMessageAttributes'] = message.attributes_md5
        return answer

    def send(self, queue, store, given, _):
        """SendMessage"""
        return self._put(queue, store, self._message(queue, given), given)

    def send_batch(self, queue, store, given, _):
        """SendMessageBatch"""
        entries = self._entries(given, 'Send')
        size = sum(self._size(entry) for entry in entries)
        if size > SQS_MAX_BYTES:
            raise AwsError('AWS.SimpleQueueService.BatchRequestTooLong', 'Batch requests cannot be longer than '
                           f'{SQS_MAX_BYTES} bytes. You have sent {size} bytes.')
        return self._each(entries, lambda entry: self._put(queue, store, self._message(queue, entry), entry))

    @classmethod
    def _entries(cls, given, verb):
        entries, prefix = given.get('Entries') or [], 'AWS.SimpleQueueService.'
        if not entries:
            raise AwsError(prefix + 'EmptyBatchRequest',
                           f'There should be at least one {verb}MessageBatchRequestEntry in the request.')
        if len(entries) > 10:
            raise AwsError(prefix + 'TooManyEntriesInBatchRequest',
                           f'Maximum number of entries per request are 10. You have sent {len(entries)}.')
        seen = set()
        for entry in entries:
            if not cls.BATCH_ID.fullmatch(entry['Id']):
                raise AwsError(prefix + 'InvalidBatchEntryId', 'A batch entry id can only contain alphanumeric '
                               'characters, hyphens and underscores. It can be at most 80 letters long.')
            if entry['Id'] in seen:
                raise AwsError(prefix + 'BatchEntryIdsNotDistinct', f'Id {entry["Id"]} repeated.')
            seen.add(entry['Id'])
        return entries

    def _each(self, entries, work):
        """Do each entry of a batch by itself; one that fails does not stop the others."""
        done, failed = [], []
        for entry in entries:
            try:
                if self.faults.hits(self.faults.errors):
                    raise AwsError('InternalError', 'We encountered an internal error. Please try again.', 500)
                done.append({'Id': entry['Id'], **(work(entry) or {})})
            except AwsError as error:
                if error.code.endswith('NonExistentQueue'):
                    raise
                failed.append({'Id': entry['Id'], 'SenderFault': error.status < 500, 'Code': error.code,
                               'Message': error.message})
        return {'Successful': done, 'Failed': failed} if failed else {'Successful': done}

    def receive(self, queue, store, given, request):
        """ReceiveMessage"""
        count = int(given.get('MaxNumberOfMessages', 1))
        wait = given.get('WaitTimeSeconds')
        wait = int(queue.receive_message_wait_time_seconds if wait is None else wait)
        for name, value, low, high in (('MaxNumberOfMessages', count, 1, 10), ('WaitTimeSeconds', wait, 0, 20)):
            if not low <= value <= high:
                raise AwsError('InvalidParameterValue', f'Value {value} for parameter {name} is invalid. Reason: '
                                                        f'Must be between {low} and {high}, if provided.')
        visibility = given.get('VisibilityTimeout')
        visibility = int(queue.visibility_timeout if visibility is None else visibility)
        taken = store.receive(count, wait, visibility, request, self.faults.reorder)
        system = set(given.get('AttributeNames') or []) | set(given.get('MessageSystemAttributeNames') or [])
        names = given.get('MessageAttributeNames') or []
        return {'Messages': [self._described(*item, system, names) for item in taken]} if taken else {}

    @staticmethod
    def _described(message, handle, receives, system, names):
        answer = {'MessageId': message.id, 'ReceiptHandle': handle, 'MD5OfBody': message.md5, 'Body': message.body}
        attributes = {'SenderId': 'AIDAIT2UOQQY3AUEKVGXU', 'SentTimestamp': str(int(message.sent * 1000)),
                      'ApproximateReceiveCount': str(receives),
                      'ApproximateFirstReceiveTimestamp': str(int(message.first * 1000))}
        wanted = {name: value for name, value in attributes.items() if name in system or 'All' in system}
        if wanted:
            answer['Attributes'] = wanted
        patterns = ['*' if name == 'All' else name for name in names]
        wanted = {name: value for name, value in message.attributes.items()
                  if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}
        if wanted:
            answer['MessageAttributes'] = wanted
            answer['MD5OfMessageAttributes'] = Sqs._attributes_md5(wanted)
        return answer

    def delete(self, _, store, given, __):
        """DeleteMessage"""
        store.delete(given['ReceiptHandle'])

    def delete_batch(self, _, store, given, __):
        """DeleteMessageBatch"""
        return self._each(self._entries(given, 'Delete'), lambda entry: store.delete(entry['ReceiptHandle']))

    def change(self, _, store, given, __):
        """ChangeMessageVisibility"""
        store.change_visibility(given['ReceiptHandle'], int(given['VisibilityTimeout']))

    def change_batch(self, _, store, given, __):
        """ChangeMessageVisibilityBatch"""
        return self._each(self._entries(given, 'ChangeVisibility'), lambda entry: store.change_visibility(
            entry['ReceiptHandle'], int(entry['VisibilityTimeout'])))

    def install(self):
        """Let moto's queues count from the store, and moto's own protocols (the older query one) use it."""
        from moto.core.responses import ActionResult, EmptyResult
        from moto.sqs.exceptions import SQSException
        from moto.sqs.models import Queue, SQSBackend
        from moto.sqs.responses import SQSResponse
        Queue.approximate_number_of_messages = property(lambda queue: store_of(queue).visible())
        Queue.approximate_number_of_messages_not_visible = property(lambda queue: store_of(queue).in_flight())
        Queue.approximate_number_of_messages_delayed = property(lambda queue: store_of(queue).delayed())
        moto_delete = SQSBackend.delete_queue

        def delete_queue(backend, queue_name):
            queue = backend.get_queue(queue_name)
            moto_delete(backend, queue_name)
            store_of(queue).close()
        SQSBackend.delete_queue = delete_queue
        SQSBackend.purge_queue = lambda backend, queue_name: store_of(backend.get_queue(queue_name)).purge()

        def method(operation):
            def run(response):
                class query_request:             # what `call` needs to know of the request
                    region, client_is_there = response.region, staticmethod(lambda: True)
                query_request.operation = operation
                try:
                    answer = self.call(query_request, {'QueueUrl': response._get_queue_name(), **response.params})
                except AwsError as error:
                    raise SQSException(error.code, error.message) from None
                return ActionResult(answer) if answer else EmptyResult()
            return run
        for operation in self.operations:
            setattr(SQSResponse, re.sub(r'(?<!^)([A-Z])', r'_\1', operation).lower(), method(operation))


# ------------------------------------------------------------------------------------------------- Batch

STATES = ('SUBMITTED', 'PENDING', 'RUNNABLE', 'STARTING', 'RUNNING', 'SUCCEEDED', 'FAILED')
ENDED = ('SUCCEEDED', 'FAILED')
TIMED_OUT = 'Job attempt duration exceeded timeout'     # never retried


def batch_backend(region):
    """moto's Batch of a region."""
    from moto.batch.models import batch_backends
    return batch_backends[ACCOUNT][region]


def millis():
    """The time as Batch writes it."""
    return int(time.time() * 1000)


def named(pairs):
    """[{'name': ..., 'value': ...}] as a dictionary."""
    return {pair['name']: pair.get('value', '') for pair in pairs or []}


class Job:
    """A Batch job: a plain one, an array, or a child of an array."""

    def __init__(self, backend, queue, definition, request, parent=None, index=None):
        self.backend, self.queue, self.definition, self.request = backend, queue, definition, request
        self.parent, self.index, self.children = parent, index, []
        self.id = str(uuid.uuid4()) if parent is None else f'{parent.id}:{index}'
        self.arn = f'arn:{PARTITION}:batch:{backend.region_name}:{ACCOUNT}:job/{self.id}'
        self.status, self.reason, self.created = 'SUBMITTED', None, millis()
        self.started = self.stopped = None
        self.attempts = []
        self.container = {}                      # exit code, reason and log stream of the last attempt
        self.task = None                         # the running container
        self.stop_reason = None                  # given by the user with TerminateJob or CancelJob
        self.not_before = 0.0
        overrides = request.get('containerOverrides') or {}
        properties = definition.container_properties
        self.command = overrides.get('command') or properties.get('command') or []
        parameters = {**definition.parameters, **(request.get('parameters') or {})}
        self.command = [re.sub(r'Ref::(\w+)', lambda m: parameters.get(m[1], m[0]), word) for word in self.command]
        self.environment = {**named(properties.get('environment')), **named(overrides.get('environment'))}
        needs = {need['type']: need['value'] for source in (properties, overrides)
                 for need in source.get('resourceRequirements') or []}
        self.vcpus = float(needs.get('VCPU') or overrides.get('vcpus') or properties.get('vcpus') or 1)
        self.memory = int(needs.get('MEMORY') or overrides.get('memory') or properties.get('memory') or 2048)
        self.retry = request.get('retryStrategy') or definition.retry_strategy or {}
        self.timeout = request.get('timeout') or definition.timeout or {}
        logs = properties.get('logConfiguration') or {}
        self.log_options = logs.get('options') or {}
        self.log_group = self.log_options.get('awslogs-group', '/aws/batch/job')

    def move(self, status, reason=None):
        """Enter a state."""
        self.status = status
        self.reason = reason or self.reason
        if status in ENDED:
            self.stopped = millis()
            self.task = None

    def summary(self):
        """As ListJobs shows it."""
        answer = {'jobArn': self.arn, 'jobId': self.id, 'jobName': self.request['jobName'], 'createdAt': self.created,
                  'status': self.status, 'jobDefinition': self.definition.arn}
        for name, value in (('statusReason', self.reason), ('startedAt', self.started), ('stoppedAt', self.stopped)):
            if value is not None:
                answer[name] = value
        if self.children:
            answer['arrayProperties'] = {'size': len(self.children)}
        elif self.parent:
            answer['arrayProperties'] = {'index': self.index}
        container = {name: self.container[name] for name in ('exitCode', 'reason') if name in self.container}
        if container:
            answer['container'] = container
        return answer

    def description(self):
        """As DescribeJobs shows it."""
        properties = self.definition.container_properties
        container = {name: properties[name] for name in (
            'image', 'jobRoleArn', 'executionRoleArn', 'logConfiguration', 'volumes', 'mountPoints', 'ulimits',
            'secrets') if name in properties}
        container.update(command=self.command, networkInterfaces=[],
                         environment=[{'name': name, 'value': value} for name, value in self.environment.items()],
                         resourceRequirements=[{'type': 'VCPU', 'value': f'{self.vcpus:g}'},
                                               {'type': 'MEMORY', 'value': str(self.memory)}], **self.container)
        answer = {**self.summary(), 'jobQueue': self.queue.arn, 'attempts': self.attempts, 'container': container,
                  'dependsOn': self.request.get('dependsOn') or [], 'parameters': self.request.get('parameters') or {},
                  'tags': self.backend.list_tags_for_resource(self.arn), 'platformCapabilities': ['EC2'],
                  'isCancelled': False, 'isTerminated': self.stop_reason is not None}
        if self.retry:
            answer['retryStrategy'] = {'attempts': 1, **self.retry}
        if self.timeout:
            answer['timeout'] = self.timeout
        if self.children:
            counts = collections.Counter(child.status for child in self.children)
            answer['arrayProperties'] = {'size': len(self.children),
                                         'statusSummary': {state: counts[state] for state in STATES}}
        return answer

    def may_retry(self, status_reason):
        """Whether Batch tries again after this attempt: the first rule that matches decides."""
        if status_reason == TIMED_OUT:
            return False
        if self.stop_reason is not None or len(self.attempts) >= int(self.retry.get('attempts', 1)):
            return False
        code = self.container.get('exitCode')
        facts = {'onExitCode': '' if code is None else str(code), 'onReason': self.container.get('reason', ''),
                 'onStatusReason': status_reason}
        for rule in self.retry.get('evaluateOnExit') or []:
            asked = [(rule[name], facts[name]) for name in facts if name in rule]
            if all(fact.startswith(want[:-1]) if want.endswith('*') else fact == want for want, fact in asked):
                return rule['action'].lower() == 'retry'
        return True


class CannotStart(Exception):
    """ECS's reason why a container never ran."""


class Task:
    """The container of one attempt: a process session in a temporary folder, with its log."""

    def __init__(self, job, scheduler):
        self.job, self.scheduler = job, scheduler
        self.id = uuid.uuid4().hex
        self.instance = 'i-' + uuid.uuid4().hex[:17]
        self.started = time.monotonic()
        self.kill_at = None                      # moment of the SIGKILL that follows a SIGTERM
        self.status_reason = 'Essential container in task exited'
        self.container_reason = None
        self.lost = False                        # the host is gone: there is no exit code
        argv = self._argv(job)
        stream = self._log_stream(job)
        self.folder = tempfile.mkdtemp(prefix='rios-batch-')
        try:
            self.process = subprocess.Popen(
                argv, cwd=self.folder, env=self._environment(job), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise CannotStart(
                'CannotStartContainerError: Error response from daemon: failed to create task for container: failed '
                'to create shim task: OCI runtime create failed: runc create failed: unable to start container '
                f'process: exec: "{argv[0]}": executable file not found in $PATH: unknown') from None
        self.pid = self.process.pid
        scheduler.guard(f'+ {self.pid} {self.folder}')
        self.pump = threading.Thread(target=self._pump, args=(stream,), daemon=True)
        self.pump.start()
        threading.Thread(target=self._wait, daemon=True).start()

    @staticmethod
    def _argv(job):
        """The image's entry point and the job's command, as `docker run` joins them."""
        image = job.definition.container_properties['image']
        entry = []
        ecr = re.fullmatch(rf'{ACCOUNT}\.dkr\.ecr\.([^.]+)\.amazonaws\.com/([^:@]+)(?::(.+))?', image)
        if ecr:
            from moto.ecr.models import ecr_backends
            region, repository, tag = ecr[1], ecr[2], ecr[3] or 'latest'
            found = ecr_backends[ACCOUNT][region].repositories.get(repository)
            if found is None:
                raise CannotStart(
                    f'CannotPullContainerError: Error response from daemon: repository {image.rpartition(":")[0]} not '
                    f"found: name unknown: The repository with name '{repository}' does not exist in the registry with "
                    f"id '{ACCOUNT}'")
            manifest = next((item.image_manifest for item in found.images if tag in item.image_tags), None)
            if manifest is None:
                raise CannotStart(
                    f'CannotPullContainerError: Error response from daemon: manifest for {image} not found: manifest '
                    'unknown: Requested image not found')
            path = json.loads(manifest).get('annotations', {}).get(ENTRY_POINT)
            entry = [sys.executable, path] if path else []
        if not entry + job.command:
            raise CannotStart('CannotStartContainerError: Error response from daemon: no command specified')
        return entry + job.command

    def _log_stream(self, job):
        from moto.logs.models import logs_backends
        logs = logs_backends[ACCOUNT][job.backend.region_name]
        if job.log_group not in logs.groups:
            if job.log_group != '/aws/batch/job' and job.log_options.get('awslogs-create-group') != 'true':
                raise CannotStart(
                    'CannotStartContainerError: Error response from daemon: failed to initialize logging driver: failed '
                    'to create Cloudwatch log stream: ResourceNotFoundException: The specified log group does not exist.')
            logs.ensure_log_group(job.log_group)
        prefix = job.log_options.get('awslogs-stream-prefix') or job.definition.name
        job.container['logStreamName'] = name = f'{prefix}/default/{self.id}'
        logs.groups[job.log_group].create_log_stream(name)
        return logs.groups[job.log_group].streams[name]

    def _environment(self, job):
        """What AWS gives to a container, the image's variables, and the way to this AWS."""
        properties = job.definition.container_properties
        environment = job.queue.environments[0]
        role = properties.get('jobRoleArn') or self.scheduler.instance_role(environment)
        here = self.scheduler.endpoint
        answer = {name: os.environ[name] for name in IMAGE_VARIABLES if name in os.environ}
        # As in the Dockerfile.
        modules = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), answer.get('PYTHONPATH')]
        answer.update(PYTHONUNBUFFERED='1', PYTHONPATH=os.pathsep.join(filter(None, modules)))
        answer.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), '/usr/local/bin', '/usr/bin', '/bin']),
                      HOME=self.folder, HOSTNAME='ip-10-0-0-1.ec2.internal', AWS_EXECUTION_ENV='AWS_ECS_EC2',
                      AWS_ENDPOINT_URL=here, AWS_S3_ENDPOINT=here.partition('//')[2], AWS_HTTPS='NO',
                      AWS_VIRTUAL_HOSTING='FALSE', AWS_EC2_METADATA_DISABLED='true')
        answer.update(job.environment)
        answer.update(AWS_BATCH_JOB_ID=job.id, AWS_BATCH_JOB_ATTEMPT=str(len(job.attempts) + 1),
                      AWS_BATCH_CE_NAME=environment.name, AWS_BATCH_JQ_NAME=job.queue.name)
        if job.parent:
            answer.update(AWS_BATCH_JOB_ARRAY_INDEX=str(job.index),
                          AWS_BATCH_JOB_ARRAY_SIZE=str(len(job.parent.children)))
        if role:
            self.scheduler.roles[self.id] = (role, self.id)
            answer['AWS_CONTAINER_CREDENTIALS_FULL_URI'] = f'{here}/_local/credentials/{self.id}'
        return answer

    def _pump(self, stream):
        """Every line that the container writes is an event of its log stream."""
        for line in self.process.stdout:
            text = line.decode(errors='replace').rstrip('\r\n')
            if text:
                stream.put_log_events([{'timestamp': millis(), 'message': text}])

    def _wait(self):
        """When the first process ends, so does the container."""
        self.process.wait()
        self.kill()
        self.pump.join(5)
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.scheduler.guard(f'- {self.pid} {self.folder}')
        self.scheduler.ended(self)

    def stop(self, reason):
        """SIGTERM to the first process, as `docker stop` does; SIGKILL to all after a grace time."""
        if self.kill_at is None:
            self.status_reason = reason
            self.kill_at = time.monotonic() + ECS_STOP_SECONDS
            self.process.send_signal(signal.SIGTERM)

    def kill(self, status_reason=None, container_reason=None):
        """SIGKILL to every process of the container."""
        self.status_reason = status_reason or self.status_reason
        self.container_reason = container_reason or self.container_reason
        end_session(self.pid)


def end_session(session):
    """SIGKILL to every process of a session."""
    for pid in processes_of({session})[session]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def processes_of(sessions):
    """For each of the sessions the resident bytes of its processes, by process id."""
    found = {session: {} for session in sessions}
    page = resource.getpagesize()
    for name in os.listdir('/proc'):
        if name.isdigit():
            try:
                with open(f'/proc/{name}/stat', encoding='ascii', errors='replace') as file:
                    fields = file.read().rpartition(')')[2].split()
            except OSError:
                continue
            if int(fields[3]) in found and fields[0] != 'Z':
                found[int(fields[3])][int(name)] = int(fields[21]) * page
    return found


class Scheduler(threading.Thread):
    """Starts jobs while their compute environment has vCPUs, and watches those that run."""

    def __init__(self, iam, endpoint):
        super().__init__(daemon=True, name='scheduler')
        self.iam, self.endpoint = iam, endpoint
        self.lock = threading.RLock()
        self.wake = threading.Condition(self.lock)
        self.jobs = {}                           # by id, in the order of submission; children included
        self.open = {}                           # those that have not ended
        self.roles = {}                          # task id -> role ARN, session name
        self.start_delay = float(os.environ.get('RIOS_AWSBATCH_LOCAL_START_MS') or 0) / 1000
        # A process of its own outlives this one by a moment, and ends the jobs if this one is killed.
        self.guardian = subprocess.Popen([sys.executable, '-S', os.path.abspath(__file__), 'guard'],
                                         stdin=subprocess.PIPE, start_new_session=True)

    def guard(self, line):
        """Tell the guardian that a job's session began (+) or ended (-)."""
        with self.lock:
            if not self.guardian.stdin.closed:
                self.guardian.stdin.write(f'{line}\n'.encode())
                self.guardian.stdin.flush()

    def instance_role(self, environment):
        """The role of the compute environment's instances, which a job without a job role has."""
        from moto.iam.models import iam_backends
        profile = environment.compute_resources.get('instanceRole')
        for known in iam_backends[ACCOUNT][PARTITION].instance_profiles.values():
            if profile in (known.arn, known.name) and known.roles:
                return known.roles[0].arn
        return None

    # ---- what users ask

    def submit(self, backend, request):
        """SubmitJob"""
        def refuse(what):
            raise AwsError('ClientException', f'Error executing request, Exception : {what}, RequestId: {uuid.uuid4()}')
        name = request.get('jobName', '')
        if not re.fullmatch(r'[A-Za-z0-9][\w-]{0,127}', name, re.ASCII):
            refuse('Job name should match valid pattern')
        definition = backend.get_job_definition(request.get('jobDefinition', ''))
        if definition is None:
            refuse(f'JobDefinition {request.get("jobDefinition")} not found')
        if definition.status != 'ACTIVE':
            refuse(f'JobDefinition {request["jobDefinition"]} is not ACTIVE')
        queue = backend.get_job_queue(request.get('jobQueue', ''))
        if queue is None:
            refuse(f'JobQueue {request.get("jobQueue")} not found')
        if queue.state != 'ENABLED':
            refuse(f'JobQueue {queue.name} is not ENABLED')
        size = (request.get('arrayProperties') or {}).get('size')
        if size is not None and not 2 <= size <= BATCH_MAX_ARRAY:
            refuse(f'Array size must be between 2 and {BATCH_MAX_ARRAY}')
        with self.lock:
            job = Job(backend, queue, definition, request)
            for index in range(size or 0):
                job.children.append(Job(backend, queue, definition, request, job, index))
            for each in (job, *job.children):
                self.jobs[each.id] = self.open[each.id] = each
                each.move('PENDING')
                each.not_before = time.monotonic() + self.start_delay * (each.index or 0)
            if request.get('tags'):
                backend.tag_resource(job.arn, request['tags'])
            self.wake.notify()
        return {'jobArn': job.arn, 'jobName': name, 'jobId': job.id}

    def describe(self, ids):
        """DescribeJobs"""
        if len(ids) > 100:
            raise AwsError('ClientException', 'Too many jobs: at most 100 can be described in one request.')
        with self.lock:
            found = [self.jobs.get(job.rpartition('job/')[2]) for job in ids]
            return {'jobs': [job.description() for job in found if job]}

    def list(self, backend, request):
        """ListJobs"""
        with self.lock:
            if 'arrayJobId' in request:
                parent = self.jobs.get(request['arrayJobId'])
                jobs = parent.children if parent else []
            else:
                queue = backend.get_job_queue(request.get('jobQueue', ''))
                if queue is None:
                    raise AwsError('ClientException', f'JobQueue {request.get("jobQueue")} not found')
                jobs = [job for job in self.jobs.values() if job.queue is queue and job.parent is None]
            filters = request.get('filters') or []
            if not filters:
                # AWS lists only the running jobs unless told otherwise.
                wanted = request.get('jobStatus', 'RUNNING')
                jobs = [job for job in jobs if job.status == wanted]
            for rule in filters:
                values = [value.lower() for value in rule['values']]
                if rule['name'] == 'JOB_NAME':
                    jobs = [job for job in jobs if any(
                        fnmatch.fnmatchcase(job.request['jobName'].lower(), value) for value in values)]
                elif rule['name'] == 'JOB_DEFINITION':
                    jobs = [job for job in jobs if any(
                        fnmatch.fnmatchcase(job.definition.name.lower(), value) for value in values)]
            first, count = int(request.get('nextToken') or 0), int(request.get('maxResults') or 100)
            answer = {'jobSummaryList': [job.summary() for job in jobs[first:first + count]]}
            if len(jobs) > first + count:
                answer['nextToken'] = str(first + count)
            return answer

    def stop(self, job_id, reason, running_too=True):
        """TerminateJob, and CancelJob for jobs that have not been started."""
        if not job_id or not reason:
            raise AwsError('ClientException', 'jobId and reason must be given')
        with self.lock:
            job = self.jobs.get(job_id.rpartition('job/')[2])
            if job is None or job.status in ENDED:
                return {}
            if running_too or not job.task:
                job.stop_reason = reason
            for each in job.children or [job]:
                if each.status in ENDED or each.task and not running_too:
                    continue
                each.stop_reason = reason
                if each.task:
                    each.task.stop(reason)
                else:
                    self._end(each, 'FAILED', reason)
            self.wake.notify()
        return {}

    def interrupt(self, job_id):
        """Take away the Spot instance of a job: SIGTERM, and no exit code."""
        with self.lock:
            task = self.jobs[job_id].task
            task.lost = True
            task.stop(f'Host EC2 (instance {task.instance}) terminated.')

    # ---- what happens by itself

    def run(self):
        while True:
            with self.wake:
                try:
                    self._start_what_fits()
                    self._watch()
                except Exception:                # a bug here must not stop all jobs silently
                    traceback.print_exc()
                self.wake.wait(TICK if self.open else None)

    def _start_what_fits(self):
        used = collections.Counter()
        for job in self.open.values():
            if job.task:
                used[job.queue.environments[0].arn] += job.vcpus
        for job in list(self.open.values()):
            if job.children or job.task or job.status in ENDED:
                continue
            if job.status == 'PENDING' and self._ready(job):
                job.move('RUNNABLE')
            environment = job.queue.environments[0]
            free = float(environment.compute_resources.get('maxvCpus') or 0) - used[environment.arn]
            if (job.status == 'RUNNABLE' and job.vcpus <= free and time.monotonic() >= job.not_before
                    and environment.state == 'ENABLED'):
                used[environment.arn] += job.vcpus
                self._start(job)

    def _ready(self, job):
        """Whether all jobs that this one waits for have succeeded."""
        for dependency in job.request.get('dependsOn') or []:
            other = self.jobs.get(dependency.get('jobId'))
            if other is None or other.status == 'FAILED':
                self._end(job, 'FAILED', 'Dependent Job failed')
                return False
            if other.status != 'SUCCEEDED':
                return False
        return True

    def _start(self, job):
        job.move('STARTING')
        job.container = {'containerInstanceArn': f'arn:{PARTITION}:ecs:{job.backend.region_name}:{ACCOUNT}:container-'
                                                 f'instance/{job.queue.environments[0].ecs_name}/{uuid.uuid4().hex}'}
        try:
            job.task = Task(job, self)
        except CannotStart as error:
            job.container['reason'] = str(error)
            self._attempt_over(job, None, 'Task failed to start')
            return
        job.container['taskArn'] = f'arn:{PARTITION}:ecs:{job.backend.region_name}:{ACCOUNT}:task/{job.task.id}'
        job.started = millis()
        job.move('RUNNING')

    def _watch(self):
        tasks = [job.task for job in self.open.values() if job.task]
        used = processes_of({task.pid for task in tasks})
        now = time.monotonic()
        for task in tasks:
            limit = task.job.timeout.get('attemptDurationSeconds')
            if task.kill_at is not None and now > task.kill_at:
                task.kill()
            elif sum(used[task.pid].values()) > task.job.memory * MIB:
                task.kill(container_reason='OutOfMemoryError: Container killed due to memory usage')
            elif limit and now > task.started + int(limit):
                task.stop(TIMED_OUT)

    def ended(self, task):
        """The container is gone."""
        with self.lock:
            job = task.job
            code = task.process.returncode
            code = 128 - code if code < 0 else code
            if task.container_reason:
                job.container['reason'], code = task.container_reason, 137
            if not task.lost:
                job.container['exitCode'] = code
            job.task = None
            self.roles.pop(task.id, None)
            reason = job.stop_reason or task.status_reason
            self._attempt_over(job, None if task.lost or task.kill_at is not None and code == 0 else code, reason)
            self.wake.notify()

    def _attempt_over(self, job, code, reason):
        attempt = {'container': {name: job.container[name] for name in (
            'containerInstanceArn', 'taskArn', 'exitCode', 'reason', 'logStreamName') if name in job.container},
            'stoppedAt': millis(), 'statusReason': reason}
        if job.started:
            attempt['startedAt'] = job.started
        attempt['container']['networkInterfaces'] = []
        job.attempts.append(attempt)
        if code == 0:
            self._end(job, 'SUCCEEDED', reason)
        elif job.may_retry(reason):
            job.started = None
            job.move('RUNNABLE', reason)
        else:
            self._end(job, 'FAILED', reason)

    def _end(self, job, status, reason):
        job.move(status, reason)
        self.open.pop(job.id, None)
        parent = job.parent
        if parent and all(child.status in ENDED for child in parent.children):
            good = all(child.status == 'SUCCEEDED' for child in parent.children)
            parent.move('SUCCEEDED' if good else 'FAILED', None if good else parent.stop_reason or 'Array Child Job failed')
            self.open.pop(parent.id, None)

    def processes(self):
        """The running containers, for the control endpoint."""
        with self.lock:
            return [{'jobId': job.id, 'status': job.status, 'pid': job.task.pid, 'vcpus': job.vcpus,
                     'rss': sum(processes_of({job.task.pid})[job.task.pid].values())}
                    for job in self.open.values() if job.task]

    def close(self):
        """End all containers. The guardian, which reads the end of its input, ends what is left."""
        with self.lock:
            for job in list(self.open.values()):
                if job.task:
                    job.task.kill()
            self.open.clear()
        self.guardian.stdin.close()
        self.guardian.wait(10)

    def install(self):
        """Put this scheduler in the place of moto's jobs, which want Docker."""
        from moto.batch.models import EC2_INSTANCE_FAMILIES, BatchBackend
        from moto.batch.responses import BatchResponse

        def answer(work):
            def run(response):
                given = json.loads(response.body or '{}')
                return json.dumps(work(response.batch_backend, given))
            return run
        BatchResponse.submitjob = answer(self.submit)
        BatchResponse.describejobs = answer(lambda _, given: self.describe(given.get('jobs') or []))
        BatchResponse.listjobs = answer(self.list)
        BatchResponse.terminatejob = answer(lambda _, given: self.stop(given.get('jobId'), given.get('reason')))
        BatchResponse.canceljob = answer(lambda _, given: self.stop(given.get('jobId'), given.get('reason'), False))
        # Batch's own names for groups of instance families, and families newer than moto's list.
        EC2_INSTANCE_FAMILIES.extend(['optimal', 'default_x86_64', 'default_arm64'])
        moto_delete = BatchBackend.delete_job_queue

        def delete_job_queue(backend, queue_name):
            with self.lock:
                for job in [job for job in self.open.values() if queue_name in (job.queue.name, job.queue.arn)]:
                    self.stop(job.id, 'Job queue deleted')
            moto_delete(backend, queue_name)
        BatchBackend.delete_job_queue = delete_job_queue


def guard():
    """The guardian: remembers the jobs' sessions; when the server is gone, kills them and removes their folders."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    running = {}
    for line in sys.stdin:
        sign, pid, folder = line.rstrip('\n').split(' ', 2)
        if sign == '+':
            running[int(pid)] = folder
        else:
            running.pop(int(pid), None)
    for session, folder in running.items():
        end_session(session)
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------------------------------- CloudFormation

class CloudFormation:
    """Stacks as AWS makes them: an event per resource, roll-back, updates in place, deletions that can fail.

    moto raises the first error to the caller of CreateStack and leaves half a stack behind; it makes resources
    anew that did not change; it forgets parameter defaults in an update; and it deletes nothing of a bucket
    that is not empty without saying so.
    """

    # Types of resources that moto does not know, and that need only be there: Ref and GetAtt work.
    PLAIN = ('AWS::SQS::QueuePolicy', 'AWS::EC2::SecurityGroupEgress')

    def install(self):
        """Put these rules in the place of moto's."""
        from moto.cloudformation import models, parsing, responses
        from moto.core.common_models import CloudFormationModel
        self.parsing = parsing
        self._plain_resources(CloudFormationModel)
        self._batch_resources()
        self._other_resources()
        parsing.parse_and_create_resource = self._make
        # Fn::GetAZs of the stack's own region, with that region's real zones.
        moto_clean = parsing.clean_json

        def clean_json(value, resources):
            if isinstance(value, dict) and 'Fn::GetAZs' in value:
                from moto.ec2.models import ec2_backends
                region = moto_clean(value['Fn::GetAZs'], resources) or resources['AWS::Region']
                return [zone.name for zone in ec2_backends[ACCOUNT][region].describe_availability_zones()]
            if isinstance(value, list):          # AWS::NoValue is no element
                return [item for item in moto_clean(value, resources) if item is not None]
            return moto_clean(value, resources)
        parsing.clean_json = clean_json
        models.Stack.create_resources = lambda stack: self._create(stack)
        models.Stack.update = lambda stack, *args, **kwargs: self._update(stack, *args, **kwargs)
        models.Stack.delete = lambda stack: self._delete(stack)
        response = responses.CloudFormationResponse
        response._validate_different_update = lambda *_: None
        for name in ('create_stack', 'update_stack'):
            setattr(response, name, self._with_capabilities(models.Stack, getattr(response, name)))

        class StackResource(responses.StackResourceDTO):
            """With the status of the resource itself."""

            def __init__(this, stack, made):
                super().__init__(stack, made)
                this.resource_status = getattr(made, 'cf_status', stack.status)
        responses.StackResourceDTO = StackResource
        backend = models.CloudFormationBackend
        backend._resolve_update_parameters = staticmethod(self._update_parameters)
        moto_delete, moto_create = backend.delete_stack, backend.create_stack

        def delete_stack(this, name_or_stack_id):
            moto_delete(this, name_or_stack_id)
            for stack in list(this.deleted_stacks.values()):
                if stack.status == 'DELETE_FAILED':
                    this.stacks[stack.stack_id] = this.deleted_stacks.pop(stack.stack_id)

        def create_stack(this, name, template, parameters, *args, **kwargs):
            self._check(models.Stack.parse_template(template), parameters)
            return moto_create(this, name, template, parameters, *args, **kwargs)
        backend.delete_stack, backend.create_stack = delete_stack, create_stack

    def _check(self, template, parameters):
        """Refuse a template or parameters as AWS does before it makes anything."""
        def refuse(message):
            raise AwsError('ValidationError', message)
        known = self.parsing.get_model_map()
        unknown = {item['Type'] for item in template['Resources'].values()} - set(known)
        unknown = sorted(name for name in unknown if not name.startswith('Custom::'))
        if unknown:
            refuse(f'Template format error: Unrecognized resource types: [{", ".join(unknown)}]')
        slots = template.get('Parameters') or {}
        foreign = sorted(set(parameters) - set(slots))
        if foreign:
            refuse(f'Parameters: [{", ".join(foreign)}] do not exist in the template')
        missing = [name for name, slot in slots.items() if name not in parameters and 'Default' not in slot]
        if missing:
            refuse(f'Parameters: [{", ".join(missing)}] must have values')
        for name, value in parameters.items():
            slot, text = slots[name], str(value)
            words = text.split(',') if 'List' in slot['Type'] else [text]
            allowed = [str(item) for item in slot.get('AllowedValues', [])]
            faulty = None
            if allowed and not set(words) <= set(allowed):
                faulty = f"Parameter '{name}' must be one of AllowedValues"
            elif slot['Type'] == 'Number' and not re.fullmatch(r'-?\d+(\.\d+)?', text):
                faulty = f"Parameter '{name}' must be a number"
            elif 'AllowedPattern' in slot and not all(re.fullmatch(slot['AllowedPattern'], word) for word in words):
                faulty = f"Parameter '{name}' must match pattern {slot['AllowedPattern']}"
            elif 'MinValue' in slot and float(text) < float(slot['MinValue']):
                faulty = f"Parameter '{name}' must be a number not less than {slot['MinValue']}"
            elif 'MaxValue' in slot and float(text) > float(slot['MaxValue']):
                faulty = f"Parameter '{name}' must be a number not greater than {slot['MaxValue']}"
            if faulty and 'ConstraintDescription' in slot:
                faulty = f'Parameter {name} failed to satisfy constraint: {slot["ConstraintDescription"]}'
            if faulty:
                refuse(faulty)

    def _with_capabilities(self, stack, method):
        def checked(response):
            body = response._get_param('TemplateBody')
            if not body:
                name = response._get_param('StackName')
                body = response.cloudformation_backend.get_stack(name).template
            self._check_capabilities(stack.parse_template(body), response._get_param('Capabilities') or [])
            return method(response)
        return checked

    @staticmethod
    def _check_capabilities(template, given):
        """A template that makes roles or policies must be acknowledged, more so if it names them."""
        names = {'RoleName', 'ManagedPolicyName', 'InstanceProfileName', 'UserName', 'GroupName'}
        iam = [item for item in template['Resources'].values() if item['Type'].startswith('AWS::IAM::')]
        is_named = any(names & set(item.get('Properties', {})) for item in iam)
        accepted = {'CAPABILITY_NAMED_IAM'} if is_named else {'CAPABILITY_NAMED_IAM', 'CAPABILITY_IAM'}
        if iam and not accepted & set(given):
            needed = 'CAPABILITY_NAMED_IAM' if is_named else 'CAPABILITY_IAM'
            raise AwsError('InsufficientCapabilitiesException', f'Requires capabilities : [{needed}]')

    # ---- one resource

    def _make(self, logical_id, resource_json, resources, account_id, region_name):
        """The resource of that name: kept or changed if the stack has it, else created. With its events."""
        condition = resource_json.get('Condition')
        if condition and not resources.lazy_condition_map[condition]:
            return None
        kind = resource_json['Type']
        cls, clean, name = self.parsing.parse_resource_and_generate_name(logical_id, resource_json, resources)
        explicit = clean['Properties'].get(self.parsing.resource_name_property_from_type(kind) or '')
        state, before = resources.made, resources.previous.get(logical_id)
        if before and before['kind'] == kind and before['properties'] == clean['Properties']:
            state[logical_id] = before
            return before['resource']
        verb = 'UPDATE' if before else 'CREATE'
        if before and (before['kind'] != kind or explicit and explicit != before['name']):
            before = None                        # another kind or name: a new resource; the old one goes when all is done
        elif before:
            name = before['name']
        stack = resources.stack
        self._event(stack, logical_id, '', kind, f'{verb}_IN_PROGRESS')
        try:
            if before:
                resource = self._change(cls, before, name, kind, clean, region_name)
            else:
                resource = cls.create_from_cloudformation_json(
                    name, clean, account_id, region_name, LogicalId=logical_id, StackId=resources.stack_id,
                    ResourceType=kind)
        except Exception as error:
            reason = getattr(error, 'message', None) or getattr(error, 'description', None) or str(error)
            self._event(stack, logical_id, '', kind, f'{verb}_FAILED',
                        f'Resource handler returned message: "{reason}" (RequestToken: {uuid.uuid4()}, '
                        'HandlerErrorCode: InvalidRequest)')
            stack.failed = logical_id
            raise
        resource.cf_resource_type, resource.logical_resource_id = kind, logical_id
        resource.cf_status = f'{verb}_COMPLETE'
        state[logical_id] = {'kind': kind, 'properties': clean['Properties'], 'name': name, 'resource': resource}
        self._event(stack, logical_id, resource.physical_resource_id, kind, f'{verb}_COMPLETE')
        return resource

    def _change(self, cls, before, name, kind, clean, region_name):
        """Change a resource in place where moto (or this file) can; else it stays as it is."""
        if hasattr(cls.update_from_cloudformation_json, '__isabstractmethod__'):
            return before['resource']
        properties = dict(clean['Properties'])
        name_property = self.parsing.resource_name_property_from_type(kind)
        if name_property:                        # moto takes a missing name for a change of the name
            properties.setdefault(name_property, name)
        return cls.update_from_cloudformation_json(
            before['resource'], name, {**clean, 'Properties': properties}, ACCOUNT, region_name)

    def _remove(self, stack, logical_id, made):
        """Delete a resource; False, and an event that says why, if AWS would refuse to."""
        resource, kind = made['resource'], made['kind']
        physical = resource.physical_resource_id
        try:
            if kind == 'AWS::S3::Bucket' and (resource.keys or resource.multiparts):
                raise AwsError('BucketNotEmpty', 'The bucket you tried to delete is not empty')
            if kind == 'AWS::ECR::Repository' and made['properties'].get('EmptyOnDelete') in (True, 'true'):
                resource.images.clear()
            stack.resource_map._delete_resource(resource, {'Type': kind, 'Properties': made['properties']})
        except Exception as error:
            made['reason'] = getattr(error, 'message', None) or str(error)
            if 'does not exist' not in made['reason'] and 'NotFound' not in type(error).__name__:
                return False
        self._event(stack, logical_id, physical, kind, 'DELETE_COMPLETE')
        return True

    @staticmethod
    def _event(stack, logical_id, physical_id, kind, status, reason=None):
        from moto.cloudformation.models import Event
        stack.events.append(Event(stack.stack_id, stack.name, logical_id, physical_id, kind, status, reason, None))

    # ---- the whole stack

    def _create(self, stack):
        resources = stack.resource_map
        resources.stack, resources.previous, resources.made = stack, {}, {}
        stack.status, stack.failed = 'CREATE_IN_PROGRESS', None
        try:
            resources.create(stack.template_dict)
            list(stack.output_map.values())
        except Exception as error:
            reason = (f'The following resource(s) failed to create: [{stack.failed}]. Rollback requested by user.'
                      if stack.failed else str(error))
            stack._add_stack_event('ROLLBACK_IN_PROGRESS', resource_status_reason=reason)
            self._remove_all(stack, resources.made)
            stack.output_map = type(stack.output_map)(resources, {}, stack.stack_id)
            stack.status, stack.status_reason = 'ROLLBACK_COMPLETE', reason
            stack.stack_status_reason = reason
            stack._add_stack_event('ROLLBACK_COMPLETE')
            return
        stack.mark_creation_complete()

    def _remove_all(self, stack, made):
        """Delete all resources that AWS lets go, whatever their order. The names of those that stay."""
        progress = True
        while made and progress:
            progress = False
            for name in list(reversed(made)):
                if self._remove(stack, name, made[name]):
                    del made[name]
                    stack.resource_map._parsed_resources.pop(name, None)
                    progress = True
        # What is gone must not come back when moto looks it up.
        templates = stack.resource_map._resource_json_map
        stack.resource_map._resource_json_map = {name: templates[name] for name in templates if name in made}
        for name, item in made.items():
            item['resource'].cf_status = 'DELETE_FAILED'
            self._event(stack, name, item['resource'].physical_resource_id, item['kind'], 'DELETE_FAILED',
                        f'Resource handler returned message: "{item["reason"]}" (RequestToken: {uuid.uuid4()}, '
                        'HandlerErrorCode: GeneralServiceException)')
        return list(made)

    def _delete(self, stack):
        if stack.status == 'DELETE_COMPLETE':
            return
        stack._add_stack_event('DELETE_IN_PROGRESS', resource_status_reason='User Initiated')
        made = stack.resource_map.made
        templates = stack.template_dict.get('Resources', {})
        kept = {name: made.pop(name) for name in list(made)
                if templates.get(name, {}).get('DeletionPolicy') == 'Retain'}
        for name, item in kept.items():
            self._event(stack, name, item['resource'].physical_resource_id, item['kind'], 'DELETE_SKIPPED')
        left = self._remove_all(stack, made)
        if left:
            reason = f'The following resource(s) failed to delete: [{", ".join(left)}]. '
            stack.status = 'DELETE_FAILED'
            stack.stack_status_reason = reason
            stack._add_stack_event('DELETE_FAILED', resource_status_reason=reason)
        else:
            stack.status = 'DELETE_COMPLETE'
            stack._add_stack_event('DELETE_COMPLETE')

    @staticmethod
    def _update_parameters(instance, incoming_params):
        """UsePreviousValue also means a default that nobody ever gave."""
        answer = {}
        defaults = {name: item.get('Default') for name, item in (getattr(instance, 'template_dict', None) or {}).get(
            'Parameters', {}).items()}
        for item in incoming_params:
            name = item['ParameterKey']
            if str(item.get('UsePreviousValue', '')).lower() == 'true':
                answer[name] = instance.parameters.get(name, defaults.get(name))
            else:
                answer[name] = item['ParameterValue']
        return answer

    def _update(self, stack, template, role_arn=None, parameters=None, tags=None):
        fresh = type(stack).parse_template(template)
        self._check(fresh, parameters or {})
        old = (stack.template, stack.template_dict, stack.parameters, stack.resource_map)
        new_map = self._map(stack, fresh, parameters or {}, old[3].made)
        if fresh == old[1] and new_map.resolved_parameters == old[3].resolved_parameters and (
                tags is None or tags == stack.tags):
            raise AwsError('ValidationError', 'No updates are to be performed.')
        stack._add_stack_event('UPDATE_IN_PROGRESS', resource_status_reason='User Initiated')
        stack.failed = None
        try:
            self._apply(stack, new_map, fresh)
        except Exception as error:
            reason = (f'The following resource(s) failed to update: [{stack.failed}]. ' if stack.failed else str(error))
            stack._add_stack_event('UPDATE_ROLLBACK_IN_PROGRESS', resource_status_reason=reason)
            # What was made so far is removed, what was changed is changed back.
            state = dict(old[3].made)
            for name, item in new_map.made.items():
                if name in state and item['name'] == state[name]['name']:
                    state[name] = item
                else:
                    self._remove(stack, name, item)
            back = self._map(stack, old[1], old[2], state)
            self._apply(stack, back, old[1])
            stack.status = 'UPDATE_ROLLBACK_COMPLETE'
            stack.stack_status_reason = reason
            stack._add_stack_event('UPDATE_ROLLBACK_COMPLETE')
            return
        stack.template, stack.template_dict, stack.parameters = template, fresh, parameters or {}
        stack.description, stack.role_arn = fresh.get('Description'), role_arn
        stack.tags = stack.tags if tags is None else tags
        stack.status = 'UPDATE_COMPLETE'
        stack._add_stack_event('UPDATE_COMPLETE')

    def _map(self, stack, template, parameters, previous):
        resources = self.parsing.ResourceMap(
            stack.stack_id, stack.name, parameters, stack.tags, stack.region_name, ACCOUNT, template,
            stack.cross_stack_resources)
        resources.stack, resources.previous, resources.made = stack, previous, {}
        resources.load()
        return resources

    def _apply(self, stack, resources, template):
        """Bring the stack to the template, then remove what it no longer has."""
        resources.create(template)
        outputs = type(stack.output_map)(resources, template, stack.stack_id)
        list(outputs.values())
        stack.resource_map, stack.output_map = resources, outputs
        for name, item in reversed(resources.previous.items()):
            if resources.made.get(name, {}).get('name') != item['name']:
                self._remove(stack, name, item)

    # ---- kinds of resources

    def _plain_resources(self, base):
        def create(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            item = cls()
            item.name, item.properties, item.region = resource_name, cloudformation_json['Properties'], region_name
            return item

        def model(kind, **more):
            return type(kind.replace('::', ''), (base,), {
                'cloudformation_type': staticmethod(lambda: kind),
                'cloudformation_name_type': staticmethod(lambda: ''),
                'create_from_cloudformation_json': classmethod(create),
                'update_from_cloudformation_json': classmethod(
                    lambda cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name:
                    create(cls, new_resource_name, cloudformation_json, account_id, region_name)),
                'delete': lambda self, account_id, region_name: None,
                'physical_resource_id': property(lambda self: self.name),
                'has_cfn_attr': classmethod(lambda cls, attr: True),
                'get_cfn_attribute': lambda self, name: f'{self.name}.{name}', **more})
        self.models = [model(kind) for kind in self.PLAIN]

        # A bucket's policy counts in Iam's decision on a request. moto's own reading of it knows no conditions.
        from moto.iam.access_control import PermissionResult
        from moto.s3.models import FakeBucket
        FakeBucket.get_permission = lambda *_: PermissionResult.NEUTRAL

        def create_policy(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            from moto.s3.models import s3_backends
            item = create(cls, resource_name, cloudformation_json, account_id, region_name)
            bucket = s3_backends[ACCOUNT][PARTITION].get_bucket(item.properties['Bucket'])
            bucket.policy = json.dumps(item.properties['PolicyDocument']).encode()
            return item

        def delete_policy(item, account_id, region_name):
            from moto.s3.models import s3_backends
            bucket = s3_backends[ACCOUNT][PARTITION].buckets.get(item.properties['Bucket'])
            if bucket is not None:
                bucket.policy = None
        self.models.append(model(
            'AWS::S3::BucketPolicy', create_from_cloudformation_json=classmethod(create_policy), delete=delete_policy,
            update_from_cloudformation_json=classmethod(lambda cls, _, name, *rest: create_policy(cls, name, *rest))))

    @classmethod
    def _camel(cls, value, keep=('Options', 'Tags', 'Parameters')):
        """Properties of a template as the Batch API writes them: lower first letters, but not in user's maps."""
        if isinstance(value, dict):
            return {key[0].lower() + key[1:]: item if key in keep else cls._camel(item) for key, item in value.items()}
        return [cls._camel(item) for item in value] if isinstance(value, list) else value

    def _batch_resources(self):
        """Batch resources: optional properties optional, changes in place, definitions with all their settings."""
        from moto.batch import models
        from moto.iam.models import iam_backends

        def environment(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            given = self._camel(cloudformation_json['Properties'])
            role = given.get('serviceRole')
            if not role:                         # AWS makes its service-linked role by itself
                iam, name = iam_backends[ACCOUNT][PARTITION], 'AWSServiceRoleForBatch'
                known = next((item for item in iam.roles.values() if item.name == name), None)
                role = (known or iam.create_role(name, '{}', '/aws-service-role/batch.amazonaws.com/', None, '', [],
                                                 3600)).arn
            return batch_backend(region_name).create_compute_environment(
                resource_name, given['type'].upper(), given.get('state', 'ENABLED'), given['computeResources'], role,
                given.get('tags'))

        def change_environment(cls, original_resource, new_resource_name, cloudformation_json, *_):
            given = self._camel(cloudformation_json['Properties'])
            original_resource.compute_resources = given['computeResources']
            original_resource.state = given.get('state', 'ENABLED')
            return original_resource

        def queue(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            given = self._camel(cloudformation_json['Properties'])
            return batch_backend(region_name).create_job_queue(
                resource_name, int(given['priority']), None, given.get('state', 'ENABLED'),
                given['computeEnvironmentOrder'], given.get('tags'))

        def change_queue(cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name):
            given = self._camel(cloudformation_json['Properties'])
            batch_backend(region_name).update_job_queue(
                original_resource.arn, int(given['priority']), given.get('state', 'ENABLED'),
                given['computeEnvironmentOrder'], None)
            return original_resource

        def definition(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            given = self._camel(cloudformation_json['Properties'])
            container = given['containerProperties']
            for pair in [*container.get('environment', []), *container.get('resourceRequirements', [])]:
                pair['value'] = str(pair['value'])
            return batch_backend(region_name).register_job_definition(
                resource_name, given.get('parameters') or {}, given['type'], given.get('tags') or {},
                given.get('retryStrategy') or {}, container, None, None,
                given.get('timeout') or {}, given.get('platformCapabilities') or ['EC2'],
                given.get('propagateTags', False))

        def change_definition(cls, original_resource, *rest):
            original_resource.deregister()       # a change is a new revision; the old one becomes INACTIVE
            return definition(cls, *rest)

        for model, create, change, remove in (
                (models.ComputeEnvironment, environment, change_environment,
                 lambda item, _, region: batch_backend(region).delete_compute_environment(item.arn)),
                (models.JobQueue, queue, change_queue,
                 lambda item, _, region: batch_backend(region).delete_job_queue(item.arn)),
                (models.JobDefinition, definition, change_definition, lambda item, *_: item.deregister())):
            model.create_from_cloudformation_json = classmethod(create)
            model.update_from_cloudformation_json = classmethod(change)
            model.delete = remove
            model.has_cfn_attr = classmethod(lambda cls, attr: True)
            model.get_cfn_attribute = lambda item, name: item.arn

    @staticmethod
    def _other_resources():
        """Changes and deletions that moto leaves out."""
        from moto.ec2 import models as ec2
        from moto.iam.models import ManagedPolicy, Role, iam_backends
        from moto.logs.models import LogGroup

        iam = iam_backends[ACCOUNT][PARTITION]
        moto_make, moto_drop = Role.create_from_cloudformation_json, Role.delete_from_cloudformation_json

        def attach(role, wanted):
            """Attach these policies and no others. Those of AWS itself are not here: nothing needs them."""
            for arn in set(role.managed_policies) - set(wanted):
                role.managed_policies[arn].detach_from(role)
            for arn in wanted:
                if arn not in role.managed_policies and ':iam::aws:' not in arn:
                    iam.attach_role_policy(arn, role.name)

        def make_role(cls, resource_name, cloudformation_json, account_id, region_name, **more):
            role = moto_make(resource_name, cloudformation_json, account_id, region_name, **more)
            attach(role, cloudformation_json['Properties'].get('ManagedPolicyArns', []))
            return role

        def change_role(cls, original_resource, new_resource_name, cloudformation_json, *_):
            given = cloudformation_json['Properties']
            original_resource.assume_role_policy_document = json.dumps(given['AssumeRolePolicyDocument'])
            for policy in given.get('Policies', []):
                original_resource.policies[policy['PolicyName']] = json.dumps(policy['PolicyDocument'])
            attach(original_resource, given.get('ManagedPolicyArns', []))
            return original_resource

        def drop_role(role, account_id, region_name):
            attach(role, [])
            moto_drop(role.name, {}, account_id, region_name)

        def change_group(cls, original_resource, new_resource_name, cloudformation_json, *_):
            original_resource.retention_in_days = cloudformation_json['Properties'].get('RetentionInDays')
            return original_resource
        Role.create_from_cloudformation_json = classmethod(make_role)
        Role.update_from_cloudformation_json = classmethod(change_role)
        Role.delete = drop_role
        # AWS's attribute stands for the group and all its streams.
        LogGroup.get_cfn_attribute = lambda group, name: group.arn + ':*'
        LogGroup.update_from_cloudformation_json = classmethod(change_group)

        def change_policy(cls, original_resource, new_resource_name, cloudformation_json, *_):
            document = json.dumps(cloudformation_json['Properties']['PolicyDocument'])
            iam.create_policy_version(original_resource.arn, document, 'true')
            return original_resource

        def delete_policy(item, *_):
            if item.attachment_count:            # to what is not of the stack
                raise AwsError('DeleteConflict', 'Cannot delete a policy attached to entities.')
            iam.delete_policy(item.arn)
        ManagedPolicy.update_from_cloudformation_json = classmethod(change_policy)
        ManagedPolicy.delete = delete_policy

        def ec2_delete(model, work):
            model.delete = lambda item, account_id, region_name: work(ec2.ec2_backends[ACCOUNT][region_name], item)
        ec2_delete(ec2.route_tables.RouteTable, lambda backend, item: backend.delete_route_table(item.id))
        ec2_delete(ec2.internet_gateways.InternetGateway, lambda backend, item: backend.delete_internet_gateway(item.id))
        ec2_delete(ec2.vpn_gateway.VPCGatewayAttachment, lambda backend, item: (
            item.vpc_id and backend.detach_internet_gateway(item.gateway_id, item.vpc_id)))
        ec2_delete(ec2.vpcs.VPCEndPoint, lambda backend, item: backend.delete_vpc_endpoints([item.id]))


# ----------------------------------------------------------------------------------------------- the front

class Aws:
    """Every request goes through `answer`: counted, delayed, failed, allowed, carried out."""

    def __init__(self, endpoint):
        self.applications = {}                   # moto's WSGI application of each service
        self.latency = 0.0                       # seconds by which each request is delayed
        self.faults = Faults()
        self.iam = Iam()
        self.sqs = Sqs(self.faults)
        self.scheduler = Scheduler(self.iam, endpoint)
        self.endpoint = endpoint
        self.counts, self.counts_lock = {}, threading.Lock()
        self.began = time.time()
        for part in (self.sqs, self.scheduler, CloudFormation()):
            part.install()
        self.scheduler.start()

    def answer(self, request):
        """The response to a request."""
        if request.path.startswith('/_local/'):
            return Control(self).answer(request)
        try:
            self._count(request)
            if self.latency:
                time.sleep(self.latency)
            fault = self.faults.of_request(request)
            if fault and not fault[1]:
                raise fault[0]
            self.iam.check(request)
            response = self._carry_out(request)
            if fault:
                raise fault[0]
            return response
        except AwsError as error:
            return error_response(request, error)

    def _count(self, request):
        who = 'workers' if request.access_key in self.iam.sessions else 'main'
        with self.counts_lock:
            operations = self.counts.setdefault(who, {})
            name = f'{request.service}:{request.operation}'
            operations[name] = operations.get(name, 0) + 1

    def _carry_out(self, request):
        if request.service == 'sqs' and not request.form and request.operation in self.sqs.operations:
            return Response.of_json(self.sqs.call(request, request.parameters) or {})
        if request.operation == 'GetCallerIdentity':
            return self.iam.identity(request)
        response = self._ask_moto(request)
        if response.status == 404 and request.service == 's3':
            principal = self.iam.hides_missing(request)
            if principal:
                self.iam.deny(principal, request, 's3:ListBucket', f'arn:{PARTITION}:s3:::{request.bucket}')
        return response

    def _ask_moto(self, request):
        """Call moto's WSGI application of the service. moto's own search for it costs more than most answers."""
        if request.service not in self.applications:
            from moto.server import create_backend_app
            self.applications[request.service] = create_backend_app(request.service)
        environ = {
            'REQUEST_METHOD': request.method, 'SCRIPT_NAME': '', 'PATH_INFO': request.path.encode().decode('latin-1'),
            'QUERY_STRING': request.query_string, 'RAW_URI': request.target, 'REQUEST_URI': request.target,
            'CONTENT_TYPE': request.headers.get('content-type', ''), 'CONTENT_LENGTH': str(len(request.body)),
            'SERVER_NAME': '127.0.0.1', 'SERVER_PORT': self.endpoint.rpartition(':')[2], 'SERVER_PROTOCOL': 'HTTP/1.1',
            'wsgi.version': (1, 0), 'wsgi.url_scheme': 'http', 'wsgi.input': io.BytesIO(request.body),
            'wsgi.input_terminated': True, 'wsgi.errors': sys.stderr, 'wsgi.multithread': True,
            'wsgi.multiprocess': False, 'wsgi.run_once': False}
        for name, value in request.headers.items():
            if name not in ('content-type', 'content-length', 'transfer-encoding'):
                environ['HTTP_' + name.upper().replace('-', '_')] = value
        begun = []
        parts = self.applications[request.service](
            environ, lambda status, headers, _=None: begun.append((status, headers)))
        body = b''.join(parts)
        if hasattr(parts, 'close'):
            parts.close()
        status, headers = begun[0]
        return Response(int(status.split()[0]), headers, body)


class Control:
    """What tests ask of the server itself, under /_local/. These requests are not counted, delayed or failed.

    GET  /_local/requests         counts by 'main' and 'workers' (temporary credentials of jobs), service:operation
    POST /_local/requests/reset   start counting anew
    GET  /_local/jobs             the running containers: jobId, pid, status, vcpus, rss (bytes)
    POST /_local/jobs/interrupt   {"jobId": ...}: its Spot instance is taken away
    GET  /_local/faults           the settings in force; POST {"errors": 0.05, ...} replaces them
    POST /_local/latency          {"ms": 20}
    POST /_local/conditions       {"faults": {...}, "latency": ms, "iam": true}: all at once, what is left out is off
    GET  /_local/iam              {"enforced": ..., "denials": [...]}; POST {"enforced": true}
    POST /_local/stack            {"region": ..., "name": ..., "status": "CREATE_IN_PROGRESS"}: show that status
    GET  /_local/server           seconds since start, CPU seconds, resident bytes, threads
    """

    def __init__(self, aws):
        self.aws = aws

    def answer(self, request):
        """The response to a request under /_local/."""
        given = json.loads(request.body) if request.body else {}
        name = request.path.removeprefix('/_local/').strip('/')
        if name.startswith('credentials/'):
            return self._credentials(name.partition('/')[2])
        work = getattr(self, f'{request.method}_{name.replace("/", "_")}'.lower(), None)
        if work is None:
            return Response.of_json({'message': f'no such control: {request.method} {request.path}'}, 404)
        try:
            return Response.of_json(work(given), content_type='application/json')
        except (KeyError, ValueError) as error:
            return Response.of_json({'message': repr(error)}, 400)

    def _credentials(self, task):
        """What a container finds at AWS_CONTAINER_CREDENTIALS_FULL_URI."""
        if task not in self.aws.scheduler.roles:
            return Response.of_json({'message': 'no such task'}, 404)
        return Response.of_json(self.aws.iam.credentials_of(*self.aws.scheduler.roles[task]))

    def get_requests(self, _):
        with self.aws.counts_lock:
            return {who: dict(sorted(counts.items())) for who, counts in self.aws.counts.items()}

    def post_requests_reset(self, _):
        with self.aws.counts_lock:
            self.aws.counts.clear()
        return {}

    def get_jobs(self, _):
        return {'jobs': self.aws.scheduler.processes()}

    def post_jobs_interrupt(self, given):
        self.aws.scheduler.interrupt(given['jobId'])
        return {}

    def get_faults(self, _):
        return self.aws.faults.settings

    def post_faults(self, given):
        self.aws.faults.set(given)
        return self.aws.faults.settings

    def post_latency(self, given):
        self.aws.latency = float(given['ms']) / 1000
        return {}

    def post_conditions(self, given):
        self.aws.faults.set(given.get('faults', {}))
        self.post_latency({'ms': given.get('latency', 0)})
        self.post_iam({'enforced': given.get('iam', False)})
        return self.post_requests_reset(given)

    def get_iam(self, _):
        return {'enforced': self.aws.iam.enforced, 'denials': list(self.aws.iam.denials)}

    def post_iam(self, given):
        self.aws.iam.enforced = bool(given['enforced'])
        self.aws.iam.denials.clear()
        return {}

    def post_stack(self, given):
        from moto.cloudformation.models import cloudformation_backends
        stack = cloudformation_backends[ACCOUNT][given['region']].get_stack(given['name'])
        before, stack.status = stack.status, given['status']
        return {'before': before}

    def get_server(self, _):
        used = resource.getrusage(resource.RUSAGE_SELF)
        with open('/proc/self/statm', encoding='ascii') as file:
            resident = int(file.read().split()[1]) * resource.getpagesize()
        return {'seconds': time.time() - self.aws.began, 'cpu': used.ru_utime + used.ru_stime, 'rss': resident,
                'threads': threading.active_count(), 'pid': os.getpid()}


class Connection(socketserver.StreamRequestHandler):
    """One client's connection, kept alive. A parser of its own: http.server's takes longer than an SQS call."""

    disable_nagle_algorithm = True
    rbufsize = 1 << 16
    REASONS = {200: 'OK', 204: 'No Content', 206: 'Partial Content', 400: 'Bad Request', 403: 'Forbidden',
               404: 'Not Found', 409: 'Conflict', 500: 'Internal Server Error', 503: 'Service Unavailable'}

    def handle(self):
        try:
            while self._one():
                pass
        except (ConnectionError, socket.timeout, ValueError):
            pass

    def _one(self):
        line = self.rfile.readline(65537)
        if not line.strip():
            return False
        method, target, version = line.decode('latin-1').split()
        headers = {}
        while True:
            line = self.rfile.readline(65537)
            if line in (b'\r\n', b'\n', b''):
                break
            name, _, value = line.decode('latin-1').partition(':')
            headers[name.lower()] = value.strip()
        if headers.get('expect', '').lower() == '100-continue':
            self.request.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        request = Request(method, target, headers, self._body(headers), self.connection)
        try:
            response = self.server.aws.answer(request)
        except Exception:
            traceback.print_exc()
            response = error_response(request, AwsError('InternalFailure', traceback.format_exc(limit=-1), 500))
        keep = version != 'HTTP/1.0' and headers.get('connection', '').lower() != 'close'
        self._send(method, response, keep)
        return keep

    def _body(self, headers):
        if headers.get('transfer-encoding', '').lower() != 'chunked':
            length = int(headers.get('content-length') or 0)
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionError('the client went away')
            return body
        parts = []
        while True:
            size = int(self.rfile.readline().split(b';')[0], 16)
            parts.append(self.rfile.read(size))
            self.rfile.readline()
            if not size:
                return b''.join(parts)

    def _send(self, method, response, keep):
        lines = [f'HTTP/1.1 {response.status} {self.REASONS.get(response.status, "")}',
                 f'Date: {email.utils.formatdate(usegmt=True)}', f'Connection: {"keep-alive" if keep else "close"}']
        has_length = False
        for name, value in response.headers:
            if name.lower() not in ('date', 'connection', 'content-length'):
                lines.append(f'{name}: {value}')
            elif name.lower() == 'content-length' and method == 'HEAD':
                lines.append(f'Content-Length: {value}')
                has_length = True
        if not has_length and response.status != 204:
            lines.append(f'Content-Length: {len(response.body)}')
        head = ('\r\n'.join(lines) + '\r\n\r\n').encode('latin-1')
        if method == 'HEAD' or response.status == 204:
            self.request.sendall(head)
        elif len(response.body) < 1 << 16:
            self.request.sendall(head + response.body)
        else:
            self.request.sendall(head)
            self.request.sendall(response.body)


class Server(socketserver.ThreadingTCPServer):
    """A thread per connection: enough for a few hundred long polls."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def handle_error(self, request, client_address):
        """A client that went away is no event."""


def serve(port_file):
    """Serve until SIGTERM, or until whoever started this is gone."""
    if os.getpid() != os.getpgid(0):             # a signal to local.sh's process group is not for this process
        os.setsid()
    server = Server(('127.0.0.1', 0), Connection)
    endpoint = f'http://127.0.0.1:{server.server_address[1]}'
    server.aws = Aws(endpoint)
    stop, parent = threading.Event(), os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open(port_file + '.new', 'w', encoding='ascii') as file:
        file.write(str(server.server_address[1]))
    os.replace(port_file + '.new', port_file)
    try:
        while not stop.wait(1) and os.getppid() == parent:
            pass
    except KeyboardInterrupt:                    # by hand; under local.sh a Ctrl-C is the command's
        pass
    server.aws.scheduler.close()
    os._exit(0)                                  # long polls still wait in their threads


def push(output, path):
    """Put an image `latest` whose entry point is that file into ECR: what `docker push` leaves there."""
    import boto3
    session = boto3.Session(region_name=os.environ['RIOS_AWSBATCH_REGION'])
    stack = session.client('cloudformation').describe_stacks(StackName=os.environ['RIOS_AWSBATCH_STACK'])['Stacks'][0]
    repository = next(item['OutputValue'] for item in stack['Outputs'] if item['OutputKey'] == output)
    manifest = {'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json',
                'config': {'mediaType': 'application/vnd.oci.image.config.v1+json', 'size': 0,
                           'digest': 'sha256:' + hashlib.sha256(path.encode()).hexdigest()},
                'layers': [], 'annotations': {ENTRY_POINT: os.path.abspath(path)}}
    session.client('ecr').put_image(
        repositoryName=repository.rpartition('/')[2], imageManifest=json.dumps(manifest), imageTag='latest')


if __name__ == '__main__':
    {'serve': serve, 'push': push, 'guard': guard}[sys.argv[1]](*sys.argv[2:])
