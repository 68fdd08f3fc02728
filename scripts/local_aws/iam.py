"""Who may do what, and with credentials of what age.

moto looks at the action alone, and not in every service. AWS looks at action, resource and condition of every
statement, so this does; where AWS has no resource for an action, the resource is `*`. EC2, IAM and STS are
checked by action alone (their resource is None here, which every Resource element matches). Policies hold
while `enforced`.

Credentials expire whether or not policies are enforced: those of a job after `lifetime` seconds, unless it
fetches new ones, which are there from half of that on, as ECS renews a role's; those of everybody else while
`login_expired`. S3 answers an old token with ExpiredToken and status 400 (S3 API reference, "Error
responses"), query services and SQS with ExpiredToken and 403, the others with ExpiredTokenException (Common
errors of each API reference)."""
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


# Who makes a request: an ARN, and the policy documents that bind it.
Principal = collections.namedtuple('Principal', 'arn policies')


def as_list(value):
    """The value in a list, unless it is one: policies may leave out the brackets."""
    return value if isinstance(value, list) else [value]


def policy_match(pattern, text):
    """Whether an IAM pattern (* and ?) matches the text."""
    pattern = re.escape(pattern).replace(r'\*', '.*').replace(r'\?', '.')
    return re.fullmatch(pattern, text, re.DOTALL) is not None


class Iam:
    """Allows and denies requests by the policies in moto's IAM."""

    # Operations that have the permission of another, and those that need a second one (SubmitJob below).
    ACTION = {'SendMessageBatch': 'SendMessage', 'DeleteMessageBatch': 'DeleteMessage',
              'ChangeMessageVisibilityBatch': 'ChangeMessageVisibility', 'HeadObject': 'GetObject',
              'CopyObject': 'PutObject', 'HeadBucket': 'ListBucket', 'ListObjects': 'ListBucket',
              'ListObjectsV2': 'ListBucket', 'ListObjectVersions': 'ListBucketVersions',
              'UploadPart': 'PutObject', 'CreateMultipartUpload': 'PutObject',
              'CompleteMultipartUpload': 'PutObject',
              'ListMultipartUploads': 'ListBucketMultipartUploads', 'ListParts': 'ListMultipartUploadParts',
              'ListBuckets': 'ListAllMyBuckets', 'GetBucketEncryption': 'GetEncryptionConfiguration',
              'PutBucketEncryption': 'PutEncryptionConfiguration',
              'PutPublicAccessBlock': 'PutBucketPublicAccessBlock',
              'GetBucketLifecycleConfiguration': 'GetLifecycleConfiguration',
              'PutBucketLifecycleConfiguration': 'PutLifecycleConfiguration'}
    OPERATORS = {'StringEquals': str.__eq__, 'StringLike': policy_match, 'ArnLike': policy_match,
                 'ArnEquals': policy_match, 'Bool': lambda want, have: want.lower() == have.lower()}

    def __init__(self):
        self.enforced = self.login_expired = False
        self.lifetime = 6 * 3600.0               # seconds of a job's credentials
        self.denials = collections.deque(maxlen=1000)
        self.tasks = {}                          # running task -> ARN of its role
        self.current = {}                        # task -> (moment of its last credentials, those)
        self.sessions = {}                       # access key of a job's credentials -> role ARN, task, end

    def enforce(self, enforced):
        """Let the policies hold, or not."""
        self.enforced = enforced
        self.denials.clear()

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
            return Principal(arn, self._policies(role) if role else [])
        for user in backend.users.values():
            if any(key.access_key_id == access_key for key in user.access_keys):
                groups = [group for group in backend.groups.values() if user in group.users]
                return Principal(user.arn, sum(map(self._policies, groups), self._policies(user)))
        raise AwsError('InvalidClientTokenId', 'The security token included in the request is invalid.', 403)

    def identity(self, request):
        """GetCallerIdentity, which moto answers for its own users only."""
        principal = self.principal(request.access_key)
        arn = principal.arn if principal else f'arn:{PARTITION}:iam::{ACCOUNT}:root'
        text = ('<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
                f'<GetCallerIdentityResult><Arn>{arn}</Arn><UserId>{request.access_key}</UserId><Account>'
                f'{ACCOUNT}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>')
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
        code = 'AccessDeniedException' if request.service in ('batch', 'logs', 'ecr') else {
            'ec2': 'UnauthorizedOperation'}.get(request.service, 'AccessDenied')
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
            for name, kind, find in (('jobDefinition', 'job-definition', backend.get_job_definition),
                                     ('jobQueue', 'job-queue', backend.get_job_queue)):
                found = find(given.get(name, ''))
                yield action, found.arn if found else f'{arn}{here}:{kind}/{given.get(name)}'
            if given.get('tags'):
                yield 'batch:TagResource', f'{arn}{here}:job/*'
        elif operation in ('TerminateJob', 'CancelJob'):
            yield action, f'{arn}{here}:job/{given.get("jobId")}'
        elif request.service == 'logs' and 'logGroupName' in given:
            # AWS writes an empty stream name for what concerns the whole group.
            stream = given.get('logStreamName', '')
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
        context = {'aws:securetransport': 'true'}        # the loopback connection counts as TLS
        for name in ('prefix', 'delimiter'):
            if request.service == 's3' and name in request.query:
                context['s3:' + name] = request.query[name]
        statements = [each for policy in principal.policies for each in as_list(policy['Statement'])]
        effects = {each['Effect'] for each in statements if self._applies(each, action, target, context)}
        return effects == {'Allow'}

    def _applies(self, statement, action, target, context):
        """Whether a statement is about that; an element or operator that is not known here is an error."""
        known = {'Sid', 'Effect', 'Action', 'Resource', 'Condition'}
        if not known.issuperset(statement):
            raise ValueError(f'the local AWS does not know {set(statement) - known} of a policy')
        if not any(policy_match(each.lower(), action.lower()) for each in as_list(statement['Action'])):
            return False
        if target and not any(policy_match(each, target) for each in as_list(statement['Resource'])):
            return False
        conditions = statement.get('Condition', {}).items()
        return all(self._condition(operator, context.get(key.lower()), wanted)
                   for operator, keys in conditions for key, wanted in keys.items())

    def _condition(self, operator, have, wanted):
        name = operator.removesuffix('IfExists')
        negated, test = 'Not' in name, self.OPERATORS[name.replace('Not', '')]
        if have is None:
            return negated or operator != name
        return any(test(str(want), have) for want in as_list(wanted)) != negated

    def hides_missing(self, request):
        """Whether a missing object is 'denied' to this principal: AWS tells only those who may list."""
        if not self.enforced or request.operation not in ('GetObject', 'HeadObject'):
            return None
        principal = self.principal(request.access_key)
        bucket = f'arn:{PARTITION}:s3:::{request.bucket}'
        if principal is None or self.allows(principal, request, 's3:ListBucket', bucket):
            return None
        return principal
