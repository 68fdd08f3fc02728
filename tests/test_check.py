"""
What check.sh finds wrong: each thing broken in turn, on a local AWS of its own; and that nothing is wrong otherwise.
"""
import json
import re

import pytest

import rios_awsbatch
from tests.helpers import MANIFEST, ROOT, Stack, another_aws, local_aws, run, user_with_main_policy

VERSIONS = 'versions--' + '--'.join('{}-{}'.format(*item) for item in rios_awsbatch.versions().items())


@pytest.fixture(scope='module')
def aws(tmp_path_factory):
    """A local AWS, and a stack on it whose image says what it has."""
    with another_aws(tmp_path_factory.mktemp('check')) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        image = stack.client('ecr').batch_get_image(repositoryName=stack.outputs()['BatchECR'],
                                                    imageIds=[{'imageTag': 'latest'}])['images'][0]
        for tag in 'amd64', VERSIONS:
            stack.client('ecr').put_image(repositoryName=stack.outputs()['BatchECR'], imageTag=tag,
                                          imageManifest=image['imageManifest'])
        yield stack


def check(stack, folder, *args, env=()):
    """(exit status, what holds by name of the check, all that was said)"""
    done = run('check.sh', '--json', *args, env={**stack.env, 'PYTHONPATH': '', **dict(env)}, folder=folder)
    assert done.stderr == '', done.stderr
    report = json.loads(done.stdout)
    return done.returncode, {each['check']: each['holds'] for each in report['checks']}, done.stdout


def test_check_finds_nothing_wrong_where_nothing_is(aws, tmp_path):
    done = run('check.sh', env={**aws.env, 'PYTHONPATH': ''}, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, ''), done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line[0] in '✓✗-']
    assert [re.match('(.) (.*?): ', line).groups() for line in lines] == [('✓', name) for name in (
        'login', 'stack', 'template', 'permissions', 'quota', 'instances', 'image', 'run', '/vsis3/', 'cancelling',
        'ended worker', 'round trips', 'end of the run')]
    # The costs are said before the run, and its steps with their seconds after it.
    assert done.stdout.index('less than a cent') < done.stdout.index('✓ run: ')
    assert re.search('run: .*submitted [0-9]+ s.*hello [0-9]+ s, first result [0-9]+ s', done.stdout)
    assert done.stdout.count('believed: ') == 6
    text = (tmp_path / 'check.json').read_text()
    assert len(json.loads(text)['facts']) == 6
    for secret in (aws.name, '123456789012', aws.outputs()['BatchBucket'], aws.env['AWS_ACCESS_KEY_ID']):
        assert secret not in text
    assert not aws.queues() and not aws.objects('runs/')


def of_another_kind(stack):
    other = Stack(env=stack.env, Architecture='ARM64', InstanceTypes='c7g').create()
    for tag in 'latest', 'amd64':
        other.client('ecr').put_image(repositoryName=other.outputs()['BatchECR'], imageTag=tag,
                                      imageManifest=json.dumps(MANIFEST))
    return other


def with_another_python(stack):
    other = Stack(env=stack.env).create()
    for tag in 'latest', 'versions--Python-3.6.1':
        other.client('ecr').put_image(repositoryName=other.outputs()['BatchECR'], imageTag=tag,
                                      imageManifest=json.dumps(MANIFEST))
    return other


def of_an_older_template(stack):
    older = Stack(env=stack.env)
    older.client('cloudformation').create_stack(
        StackName=older.name, TemplateBody=(ROOT / 'batch.yaml').read_text() + '# older\n', Capabilities=['CAPABILITY_IAM'],
        Parameters=[{'ParameterKey': 'ServiceName', 'ParameterValue': older.service}])
    return older


@pytest.mark.parametrize('broken, name, said', [
    (of_another_kind, 'image', 'It is amd64, the computers arm64: run scripts/build.sh'),
    (with_another_python, 'image', "workers' image has Python 3.6.1"),
    (lambda stack: Stack(env=stack.env).create(), 'image', 'There is no image for the workers'),
    (of_an_older_template, 'template', 'another version of batch.yaml.*scripts/modify.sh'),
    (lambda stack: Stack(env=stack.env), 'stack', 'scripts/create.sh'),
    (lambda stack: Stack(env=stack.env, InstanceTypes='c7a.large').create(), 'instances', 'offered in 0 of')])
def test_check_says_what_is_wrong_with_a_stack(broken, name, said, aws, tmp_path):
    status, found, text = check(broken(aws), tmp_path, '--dry')
    assert status == 1 and found[name] is False
    assert re.search(said, text.replace('\n', ' ')), text
    assert 'run' not in found


def test_check_says_that_the_quota_is_too_small(aws, tmp_path):
    local_aws('quota', {'vcpus': 5}, env=aws.env)
    status, found, text = check(aws, tmp_path, '--dry')
    local_aws('quota', {}, env=aws.env)
    assert (status, found['quota']) == (1, False)
    assert '10 workers want 10, so 5 run at a time' in text and 'quota-code L-1216C47A --desired-value 10' in text


POLICIES = {'Version': '2012-10-17', 'Statement': [
    {'Effect': 'Allow', 'Action': 'iam:SimulatePrincipalPolicy', 'Resource': '*'},
    {'Effect': 'Deny', 'Action': 'sqs:SendMessage', 'Resource': '*'}]}


def test_check_names_the_permissions_that_are_missing(aws, tmp_path):
    """By the policies, if these may be asked; else by requests. What only an administrator may see is no fault."""
    user, arn = user_with_main_policy(aws)
    name, iam = arn.rpartition('/')[2], aws.client('iam')
    local_aws('iam', {'enforced': True}, env=aws.env)
    try:
        status, found, text = check(aws, tmp_path, '--dry', env=user)
        assert status == 0 and found['permissions'] is True and found['quota'] is found['template'] is None, text
        iam.put_user_policy(UserName=name, PolicyName='less', PolicyDocument=json.dumps(POLICIES).replace(
            'sqs:SendMessage', 'batch:ListJobs').replace('iam:Sim', 'iam:Other'))
        status, found, text = check(aws, tmp_path, '--dry', env=user)
        assert (status, found['permissions']) == (1, False) and 'you may not batch:ListJobs"' in text, text
        iam.put_user_policy(UserName=name, PolicyName='less', PolicyDocument=json.dumps(POLICIES))
        status, found, text = check(aws, tmp_path, '--dry', env=user)
        assert (status, found['permissions']) == (1, False) and 'you may not sqs:SendMessage"' in text, text
    finally:
        local_aws('iam', {'enforced': False}, env=aws.env)


@pytest.mark.parametrize('env, said', [
    ({'AWS_ENDPOINT_URL': 'http://127.0.0.1:9'}, 'AWS cannot be reached'),
    ({'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': ''}, 'No AWS credentials were found')])
def test_check_without_a_network_or_a_login_says_so(env, said, aws, tmp_path):
    status, found, text = check(aws, tmp_path, env=env)
    assert (status, found) == (1, {'login': False}) and said in text
