"""Who may do what, and with credentials of what age.

moto knows keys, roles and their policies; it looks at the action alone, and not in every service. AWS looks
at action, resource and condition of every statement, so this does; where AWS has no resource for an action,
the resource is `*`, and so it is here for all of EC2 and IAM. Policies hold while `enforced`.

Credentials expire whether or not policies are enforced: those of a job after `lifetime` seconds, unless it
fetches new ones; those of everybody else while `login_expired`. S3 answers an old token with ExpiredToken and
status 400 (S3 API reference, "Error responses"), query services and SQS with ExpiredToken and 403, the others
with ExpiredTokenException (Common errors of each API reference). While `clock_is_late`, signatures of
everybody but jobs are too old: S3 has a code for that, the others take it for a wrong signature."""
import collections
import fnmatch
import re
import time
import urllib.parse

from moto.cloudformation.models import cloudformation_backends
from moto.iam.access_control import CreateAccessKeyFailure, IAMPolicy, create_access_key
from moto.iam.exceptions import NotFoundException
from moto.sts.models import sts_backends

from local_aws import ACCOUNT, OWNER_KEY, PARTITION, AwsError
from local_aws.batch import batch_backend


def as_list(value):
    """The value in a list, unless it is one: policies may leave out the brackets."""
    return value if isinstance(value, list) else [value]


def policy_match(pattern, text):
    """Whether an IAM pattern (* and ?) matches the text."""
    return fnmatch.fnmatchcase(text, pattern.replace('[', '[[]'))


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

    def __init__(self):
        self.enforced = self.login_expired = self.clock_is_late = False
        self.lifetime = 6 * 3600.0               # seconds of a job's credentials
        self.denials = collections.deque(maxlen=1000)
        self.tasks = {}                          # running task -> ARN of its role
        self.sessions = {}                       # access key of a job's credentials -> their end

    def enforce(self, enforced):
        """Let the policies hold, or not."""
        self.enforced = enforced
        self.denials.clear()

    def credentials_of(self, task):
        """Temporary credentials of the task's role, as a container finds them; None for no such task."""
        if task not in self.tasks:
            return None
        end = time.time() + self.lifetime
        role = sts_backends[ACCOUNT][PARTITION].assume_role(
            'us-east-1', task, self.tasks[task], None, int(self.lifetime), None)
        self.sessions[role.access_key_id] = end
        return {'RoleArn': role.role_arn, 'AccessKeyId': role.access_key_id, 'Token': role.session_token,
                'SecretAccessKey': role.secret_access_key,
                'Expiration': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(end))}

    def check_age(self, request):
        """Raise the service's error for credentials that have expired."""
        end = self.sessions.get(request.access_key)
        if self.clock_is_late and request.access_key and not end:
            if request.service == 's3':
                raise AwsError('RequestTimeTooSkewed', 'The difference between the request time and the '
                               'current time is too large.', 403)
            raise AwsError('SignatureDoesNotMatch' if request.form else 'InvalidSignatureException',
                           'Signature expired: 20260101T000000Z is now earlier than 20260101T000500Z '
                           '(20260101T001000Z - 5 min.)', 403)
        is_expired = time.time() > end if end else self.login_expired
        if not is_expired or request.access_key is None:
            return
        if request.service == 's3':
            raise AwsError('ExpiredToken', 'The provided token has expired.', 400)
        code = 'ExpiredToken' if request.form or request.service == 'sqs' else 'ExpiredTokenException'
        raise AwsError(code, 'The security token included in the request is expired',
                       400 if request.service in ('logs', 'ecr') else 403)

    def check(self, request):
        """Raise AccessDenied unless the policies allow all that the request does."""
        if self.enforced and request.operation != 'GetCallerIdentity':
            self._demand(request, self.needs(request))

    def check_missing(self, request):
        """What is missing is 'denied' to those who may not list: AWS tells only those who may."""
        if self.enforced and request.operation in ('GetObject', 'HeadObject'):
            self._demand(request, [('s3:ListBucket', f'arn:{PARTITION}:s3:::{request.bucket}')])

    def _demand(self, request, needs):
        """Raise AccessDenied in AWS's words, and remember it, unless policies allow these actions."""
        if request.access_key == OWNER_KEY:
            return
        if request.access_key is None:
            raise AwsError('AccessDenied', 'Access Denied', 403)
        who, statements = self._statements(request)
        for action, target in needs:
            if self._allow(statements, action, target, request):
                continue
            self.denials.append({'user': who.arn, 'action': action, 'resource': target})
            code = 'AccessDeniedException' if request.service in ('batch', 'logs', 'ecr') else {
                'ec2': 'UnauthorizedOperation'}.get(request.service, 'AccessDenied')
            raise AwsError(
                code, f'User: {who.arn} is not authorized to perform: {action} on resource: {target} '
                f'because no identity-based policy allows the {action} action',
                400 if request.service in ('logs', 'ecr') else 403)

    def _statements(self, request):
        """Who makes a request, and all statements of the policies."""
        token = request.headers.get('x-amz-security-token')
        try:
            who = create_access_key(ACCOUNT, PARTITION, request.access_key,
                                    {'X-Amz-Security-Token': token} if token else {})
            policies = [IAMPolicy(policy)._policy_json for policy in who.collect_policies()]
        except (CreateAccessKeyFailure, NotFoundException):
            raise AwsError('InvalidClientTokenId', 'The security token included in the request is invalid.',
                           403) from None
        return who, [each for policy in policies for each in as_list(policy['Statement'])]

    def _allow(self, statements, action, target, request):
        """One statement must allow the action on the resource, and none deny it."""
        return {'Allow'} == {each['Effect'] for each in statements
                             if self._applies(each, action, target, request)}

    def simulate(self, request):
        """SimulatePrincipalPolicy, which moto lacks; of the one who asks."""
        asked = {name: [value for key, value in request.form.items() if key.startswith(name + '.member')]
                 for name in ('ActionNames', 'ResourceArns')}
        free = not self.enforced or request.access_key == OWNER_KEY
        statements = [] if free else self._statements(request)[1]

        def decide(*what):
            return 'allowed' if free or self._allow(statements, *what, request) else 'implicitDeny'
        members = ''.join(
            f'<member><EvalActionName>{action}</EvalActionName><EvalResourceName>{target}</EvalResourceName>'
            f'<EvalDecision>{decide(action, target)}</EvalDecision></member>'
            for action in asked['ActionNames'] for target in asked['ResourceArns'])
        return ('<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">'
                '<SimulatePrincipalPolicyResult><IsTruncated>false</IsTruncated>'
                f'<EvaluationResults>{members}</EvaluationResults></SimulatePrincipalPolicyResult>'
                '</SimulatePrincipalPolicyResponse>')

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
            yield action, f'{arn}job/*'          # as the service authorization reference says
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
        if operator != 'StringLike' or key not in ('s3:prefix', 's3:delimiter'):
            raise ValueError(f'the local AWS does not know the condition {operator} {key} of a policy')
        have = request.query.get(key.removeprefix('s3:'))
        return have is not None and any(policy_match(want, have) for want in wanted)
