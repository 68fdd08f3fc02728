"""Who may do what, and with credentials of what age.

moto looks at the action alone, and not in every service. AWS looks at action, resource and condition of every
statement, so this does; where AWS has no resource for an action, the resource is `*`, and so it is here for
all of EC2 and IAM. Policies hold while `enforced`.

Credentials expire whether or not policies are enforced: those of a job after `lifetime` seconds, unless it
fetches new ones, which are there from half of that on, as ECS renews a role's; those of everybody else while
`login_expired`. S3 answers an old token with ExpiredToken and status 400 (S3 API reference, "Error
responses"), query services and SQS with ExpiredToken and 403, the others with ExpiredTokenException (Common
errors of each API reference)."""
import collections
import json
import re
import time
import urllib.parse

from moto.cloudformation.models import cloudformation_backends
from moto.iam.models import iam_backends
from moto.sts.models import sts_backends

from local_aws import ACCOUNT, OWNER_KEY, PARTITION, AwsError
from local_aws.batch import batch_backend

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

    # Operations that have the permission of another; those on batches of messages have that on one.
    ACTION = {'HeadObject': 'GetObject', 'CopyObject': 'PutObject', 'UploadPart': 'PutObject',
              'UploadPartCopy': 'PutObject', 'CreateMultipartUpload': 'PutObject',
              'CompleteMultipartUpload': 'PutObject', 'HeadBucket': 'ListBucket', 'ListObjects': 'ListBucket',
              'ListObjectsV2': 'ListBucket', 'ListObjectVersions': 'ListBucketVersions',
              'ListBuckets': 'ListAllMyBuckets', 'ListParts': 'ListMultipartUploadParts'}
    # What an operation is on, by the parameter that names it.
    TARGETS = {'jobId': 'job/{jobId}', 'repositoryName': 'repository/{repositoryName}',
               'logGroupName': 'log-group:{logGroupName}:log-stream:{logStreamName}'}
    OPERATORS = {'StringEquals': str.__eq__, 'StringLike': policy_match}

    def __init__(self):
        self.enforced = self.login_expired = False
        self.lifetime = 6 * 3600.0               # seconds of a job's credentials
        self.denials = collections.deque(maxlen=1000)
        self.tasks = {}                          # running task -> ARN of its role
        self.current = {}                        # task -> (moment of its last credentials, those)
        self.sessions = {}                       # access key of a job's credentials -> moto's role, end

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
            role = sts_backends[ACCOUNT][PARTITION].assume_role(
                'us-east-1', task, self.tasks[task], None, int(self.lifetime), None)
            self.sessions[role.access_key_id] = (role, now + self.lifetime)
            answer = {'RoleArn': role.role_arn, 'AccessKeyId': role.access_key_id,
                      'SecretAccessKey': role.secret_access_key, 'Token': role.session_token,
                      'Expiration': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now + self.lifetime))}
            self.current[task] = (now, answer)
        return answer

    def set_lifetime(self, seconds):
        """Job credentials last that long from now on; those in use too."""
        self.lifetime, end = seconds, time.time() + seconds
        self.sessions = {key: (role, min(old, end)) for key, (role, old) in self.sessions.items()}
        self.current.clear()

    def check_age(self, request):
        """Raise the service's error for credentials that have expired."""
        session = self.sessions.get(request.access_key)
        if time.time() <= session[1] if session else not self.login_expired or request.access_key is None:
            return
        if request.service == 's3':
            raise AwsError('ExpiredToken', 'The provided token has expired.', 400)
        code = 'ExpiredToken' if request.form or request.service == 'sqs' else 'ExpiredTokenException'
        raise AwsError(code, 'The security token included in the request is expired',
                       400 if request.service in ('logs', 'ecr') else 403)

    def principal(self, access_key):
        """The principal of an access key; None for the account's owner."""
        if access_key == OWNER_KEY:
            return None
        backend = iam_backends[ACCOUNT][PARTITION]
        if access_key in self.sessions:
            assumed = self.sessions[access_key][0]
            roles = [role for role in backend.roles.values() if role.arn == assumed.role_arn]
            return Principal(assumed.arn, self._policies(*roles))
        user = backend.get_user_from_access_key_id(access_key)
        if user:
            return Principal(user.arn, self._policies(user))
        raise AwsError('InvalidClientTokenId', 'The security token included in the request is invalid.', 403)

    @staticmethod
    def _policies(*holders):
        texts = [text for holder in holders for text in holder.policies.values()] + [
            version.document for holder in holders for policy in holder.managed_policies.values()
            for version in policy.versions if version.version_id == policy.default_version_id]
        return [json.loads(text) if isinstance(text, str) else text for text in texts]

    def check(self, request):
        """Raise AccessDenied unless the policies allow all that the request does."""
        if not self.enforced or request.operation == 'GetCallerIdentity':
            return
        if request.access_key is None:
            raise AwsError(*{'s3': ('AccessDenied', 'Access Denied')}.get(request.service, (
                'MissingAuthenticationToken', 'Request is missing Authentication Token')), 403)
        self._demand(request, self.needs(request))

    def check_missing(self, request):
        """What is missing is 'denied' to those who may not list: AWS tells only those who may."""
        if self.enforced and request.operation in ('GetObject', 'HeadObject'):
            self._demand(request, [('s3:ListBucket', f'arn:{PARTITION}:s3:::{request.bucket}')])

    def _demand(self, request, needs):
        """Raise AccessDenied in AWS's words, and remember it, unless policies allow these actions."""
        principal = self.principal(request.access_key)
        for action, target in needs if principal else ():
            if self.allows(principal, request, action, target):
                continue
            self.denials.append({'user': principal.arn, 'action': action, 'resource': target})
            code = 'AccessDeniedException' if request.service in ('batch', 'logs', 'ecr') else {
                'ec2': 'UnauthorizedOperation'}.get(request.service, 'AccessDenied')
            raise AwsError(
                code, f'User: {principal.arn} is not authorized to perform: {action} on resource: {target} '
                f'because no identity-based policy allows the {action} action',
                400 if request.service in ('logs', 'ecr') else 403)

    def needs(self, request):
        """Every (action, resource ARN) that AWS asks for before it carries out the request."""
        given, operation = request.parameters, request.operation.removesuffix('Batch')
        action = f'{request.service}:{self.ACTION.get(operation, operation)}'
        arn = f'arn:{PARTITION}:{request.service}:{request.region}:{ACCOUNT}:'
        if request.service == 'sqs':
            name = (given.get('QueueUrl') or given.get('QueueName') or '').rpartition('/')[2]
            yield action, arn + name if name else '*'
            if operation == 'CreateQueue' and given.get('tags'):
                yield 'sqs:TagQueue', arn + name
        elif request.service == 's3':
            yield from self._s3_needs(request, action)
        elif operation == 'SubmitJob':
            backend = batch_backend(request.region)
            for name, kind, find in (('jobDefinition', 'job-definition', backend.get_job_definition),
                                     ('jobQueue', 'job-queue', backend.get_job_queue)):
                found = find(given.get(name, ''))
                yield action, found.arn if found else f'{arn}{kind}/{given.get(name)}'
            if given.get('tags'):
                yield 'batch:TagResource', f'{arn}job/*'
        elif 'StackName' in given:
            name = given['StackName']
            stacks = cloudformation_backends[ACCOUNT][request.region].stacks.values()
            found = [stack.stack_id for stack in stacks if name in (stack.name, stack.stack_id)]
            yield action, found[0] if found else name if name.startswith('arn:') else f'{arn}stack/{name}/*'
        else:
            found = [pattern for name, pattern in self.TARGETS.items() if name in given]
            # AWS writes an empty stream name for what concerns a whole log group.
            yield action, arn + found[0].format(**{'logStreamName': '', **given}) if found else '*'

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
            if 'x-amz-copy-source' in request.headers:
                source = urllib.parse.unquote(request.headers['x-amz-copy-source']).lstrip('/')
                yield 's3:GetObject', f'arn:{PARTITION}:s3:::{source}'

    def allows(self, principal, request, action, target):
        """Whether one statement allows the action on the resource, and none denies it."""
        statements = [each for policy in principal.policies for each in as_list(policy['Statement'])]
        effects = {each['Effect'] for each in statements if self._applies(each, action, target, request)}
        return effects == {'Allow'}

    def _applies(self, statement, action, target, request):
        """Whether a statement is about that; an element that is not known here is an error."""
        unknown = set(statement) - {'Sid', 'Effect', 'Action', 'Resource', 'Condition'}
        if unknown:
            raise ValueError(f'the local AWS does not know {unknown} of a policy')
        conditions = statement.get('Condition', {}).items()
        return (any(policy_match(each.lower(), action.lower()) for each in as_list(statement['Action']))
                and any(policy_match(each, target) for each in as_list(statement['Resource']))
                and all(self._condition(operator, key, as_list(wanted), request)
                        for operator, keys in conditions for key, wanted in keys.items()))

    def _condition(self, operator, key, wanted, request):
        """Whether a condition holds. All that are known here are on what a listing of S3 asks for."""
        if operator not in self.OPERATORS or key not in ('s3:prefix', 's3:delimiter'):
            raise ValueError(f'the local AWS does not know the condition {operator} {key} of a policy')
        have = request.query.get(key.removeprefix('s3:'))
        return have is not None and any(self.OPERATORS[operator](want, have) for want in wanted)
