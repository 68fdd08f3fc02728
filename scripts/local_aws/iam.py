"""Who may do what, and with credentials of what age.

moto looks at the action alone, and not in every service. AWS looks at action, resource and condition of every
statement, so this does; where AWS has no resource for an action, the resource is `*`. EC2, IAM and STS are checked by
action alone (their resource is None here, which every Resource element matches). Policies hold while `enforced`.

Credentials expire whether or not policies are enforced: those of a job after `lifetime` seconds, unless it fetches
new ones, which are there from half of that on, as ECS renews a role's; those of everybody else while `login_expired`.
S3 answers an old token with ExpiredToken and status 400 (S3 API reference, "Error responses"), query services and SQS
with ExpiredToken and 403, the others with ExpiredTokenException (Common errors of each API reference).
"""
import base64
import collections
import json
import os
import re
import time
import urllib.parse

from local_aws import ACCOUNT, OWNER_KEY, PARTITION, AwsError
from local_aws.batch import batch_backend
from local_aws.request import Response


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
    """Allows and denies requests by the policies in moto's IAM."""

    # Operations that have the permission of another, and those that need a second one (SubmitJob below).
    ACTION = {'SendMessageBatch': 'SendMessage', 'DeleteMessageBatch': 'DeleteMessage',
              'ChangeMessageVisibilityBatch': 'ChangeMessageVisibility', 'HeadObject': 'GetObject',
              'CopyObject': 'PutObject', 'HeadBucket': 'ListBucket', 'ListObjects': 'ListBucket',
              'ListObjectsV2': 'ListBucket', 'ListObjectVersions': 'ListBucketVersions', 'UploadPart': 'PutObject',
              'CreateMultipartUpload': 'PutObject', 'CompleteMultipartUpload': 'PutObject',
              'ListMultipartUploads': 'ListBucketMultipartUploads', 'ListParts': 'ListMultipartUploadParts',
              'ListBuckets': 'ListAllMyBuckets', 'GetBucketEncryption': 'GetEncryptionConfiguration',
              'PutBucketEncryption': 'PutEncryptionConfiguration',
              'PutPublicAccessBlock': 'PutBucketPublicAccessBlock',
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
        self.enforced = self.login_expired = False
        self.lifetime = 6 * 3600.0               # seconds of a job's credentials
        self.denials = collections.deque(maxlen=1000)
        self.tasks = {}                          # running task -> ARN of its role
        self.current = {}                        # task -> (moment of its last credentials, those)
        self.sessions = {}                       # access key of a job's credentials -> role ARN, task, end

    def credentials_of(self, task):
        """Temporary credentials of the task's role, as a container finds them; None for no such task."""
        if task not in self.tasks:
            return None
        now = time.time()
        made, answer = self.current.get(task, (0, None))
        if answer is None or now > made + self.lifetime / 2:
            key = 'ASIA' + base64.b32encode(os.urandom(10)).decode()
            self.sessions[key] = (self.tasks[task], task, now + self.lifetime)
            answer = {'RoleArn': self.tasks[task], 'AccessKeyId': key, 'SecretAccessKey': 'secret-of-' + key,
                      'Token': 'token-of-' + key,
                      'Expiration': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now + self.lifetime))}
            self.current[task] = (now, answer)
        return answer

    def set_lifetime(self, seconds):
        """Job credentials last that long from now on; those in use too."""
        self.lifetime, end = seconds, time.time() + seconds
        self.sessions = {key: (role, task, min(old, end)) for key, (role, task, old) in self.sessions.items()}
        self.current.clear()

    def check_age(self, request):
        """Raise the service's error for credentials that have expired."""
        session = self.sessions.get(request.access_key)
        if time.time() <= session[2] if session else not self.login_expired or request.access_key is None:
            return
        if request.service == 's3':
            raise AwsError('ExpiredToken', 'The provided token has expired.', 400)
        code = 'ExpiredToken' if request.form or request.service == 'sqs' else 'ExpiredTokenException'
        raise AwsError(code, 'The security token included in the request is expired',
                       400 if request.service in ('logs', 'ecr') else 403)

    def principal(self, access_key):
        """The principal of an access key; None for the account's owner."""
        from moto.iam.models import iam_backends
        if access_key == OWNER_KEY:
            return None
        backend = iam_backends[ACCOUNT][PARTITION]
        if access_key in self.sessions:
            role_arn, session, _ = self.sessions[access_key]
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
        text = ('<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
                f'<GetCallerIdentityResult><Arn>{arn}</Arn><UserId>{request.access_key}</UserId><Account>{ACCOUNT}'
                '</Account></GetCallerIdentityResult></GetCallerIdentityResponse>')
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
            for found, name, kind in (
                    (backend.get_job_definition(given.get('jobDefinition', '')), 'jobDefinition', 'job-definition'),
                    (backend.get_job_queue(given.get('jobQueue', '')), 'jobQueue', 'job-queue')):
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
        context = {'aws:securetransport': 'true', 'aws:principalarn': principal.role_arn,
                   'aws:resourceaccount': ACCOUNT, 'aws:principalaccount': ACCOUNT,
                   'aws:requestedregion': request.region}
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
