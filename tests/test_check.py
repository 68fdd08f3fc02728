"""
What check.sh finds wrong: each thing broken in turn, on a local AWS of its own; and that nothing is wrong otherwise.
"""
import contextlib
import json
import re
import subprocess
import sys

import pytest

import rios_awsbatch
from tests.helpers import (MANIFEST, PATIENCE, ROOT, Stack, another_aws, load_template, local_aws, run,
                           user_with_main_policy, wait_until)

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


@pytest.fixture(scope='module')
def user(aws):
    """The environment and the ARN of a user of that stack who is no administrator."""
    return user_with_main_policy(aws)


@contextlib.contextmanager
def enforced(stack, *denied, allowed='iam:Other'):
    """While policies hold; `denied` are pairs of an ARN of a user or role, and an action that it may not do."""
    iam, inline = stack.client('iam'), []
    for arn, actions in denied:
        kind, name = arn.rpartition(':')[2].split('/')
        inline.append((kind, {kind.title() + 'Name': name, 'PolicyName': 'less'}))
        getattr(iam, 'put_{}_policy'.format(kind))(**inline[-1][1], PolicyDocument=json.dumps({
            'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': allowed, 'Resource': '*'},
                                                   {'Effect': 'Deny', 'Action': actions, 'Resource': '*'}]}))
    local_aws('iam', {'enforced': True}, env=stack.env)
    try:
        yield
    finally:
        local_aws('iam', {'enforced': False}, env=stack.env)
        for kind, names in inline:
            getattr(iam, 'delete_{}_policy'.format(kind))(**names)


def check(stack, folder, *args, env=()):
    """(exit status, what holds by name of the check, all that was said)"""
    done = run('check.sh', '--json', *args, env={**stack.env, 'PYTHONPATH': '', **dict(env)}, folder=folder)
    assert done.stderr == '', done.stderr
    report = json.loads(done.stdout)
    return done.returncode, {each['check']: each['holds'] for each in report['checks']}, done.stdout


def test_check_runs_in_a_folder_and_on_a_terminal_that_lack_something(aws):
    done = run('check.sh', '--dry', env={**aws.env, 'PYTHONPATH': '', 'PYTHONIOENCODING': 'latin-1'}, folder='/proc')
    assert (done.returncode, done.stderr) == (0, ''), done.stdout + done.stderr
    assert done.stdout.startswith('\\N{CHECK MARK} login: ')
    assert done.stdout.splitlines()[-1].startswith('check.json cannot be written in this folder: ')


def test_check_finds_nothing_wrong_where_nothing_is(aws, tmp_path):
    done = run('check.sh', env={**aws.env, 'PYTHONPATH': ''}, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, ''), done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line[0] in '✓✗-']
    assert [re.match('(.) (.*?): ', line).groups() for line in lines] == [('✓', name) for name in (
        'login', 'stack', 'template', 'permissions', 'computers', 'quota', 'main job', 'instances', 'image', 'run',
        '/vsis3/', 'ended worker', 'round trips', 'end of the run')]
    # The costs are said before the run, and its steps with their seconds after it.
    assert done.stdout.index('less than a cent') < done.stdout.index('✓ run: ')
    assert re.search('run: submitted [0-9]+ s.*hello [0-9]+ s.*first result [0-9]+ s.*, replacement [0-9]+ s', done.stdout)
    assert done.stdout.count('believed: ') == 5
    text = (tmp_path / 'check.json').read_text()
    assert len(json.loads(text)['facts']) == 5
    for secret in (aws.name, '123456789012', aws.outputs()['BatchBucket'], aws.env['AWS_ACCESS_KEY_ID']):
        assert secret not in text
    assert not aws.queues() and not aws.objects('runs/')


def of_another_kind(stack):
    other = Stack(env=stack.env, Architecture='ARM64', InstanceTypes='c7g', Spot='yes').create()
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
    older, template = Stack(env=stack.env), (ROOT / 'batch.yaml').read_text().rpartition('  BatchLogGroup:')
    older.client('cloudformation').create_stack(
        StackName=older.name, TemplateBody=template[0] + '  Old:' + template[2], Capabilities=['CAPABILITY_IAM'],
        Parameters=[{'ParameterKey': 'ServiceName', 'ParameterValue': older.service}])
    return older


def with_disabled_computers(stack):
    other = Stack(env=stack.env).create()
    other.client('batch').update_compute_environment(computeEnvironment=other.outputs()['ComputeEnvironmentArn'],
                                                     state='DISABLED')
    return other


@pytest.mark.parametrize('broken, name, said', [
    (with_disabled_computers, 'computers', 'AWS Batch says: DISABLED VALID'),
    (of_another_kind, 'image', 'kind SPOT, .*"9 of 10 that all .*It is amd64, the computers arm64: run scripts/build.sh'),
    (with_another_python, 'image', "workers' image has Python 3.6.1"),
    (lambda stack: Stack(env=stack.env, InstanceTypes='g4dn').create(), 'image',
     'kind EC2 g, .*There is no image for the workers'),
    (of_an_older_template, 'template', 'another version of batch.yaml.*scripts/modify.sh'),
    (lambda stack: Stack(env=stack.env), 'stack', 'scripts/create.sh'),
    (lambda stack: Stack(env=stack.env, InstanceTypes='c7a.large').create(), 'instances', 'offered in 0 of')])
def test_check_says_what_is_wrong_with_a_stack(broken, name, said, aws, tmp_path):
    status, found, text = check(broken(aws), tmp_path, '--dry')
    assert status == 1 and found[name] is False
    assert re.search(said, text.replace('\n', ' ')), text
    assert 'run' not in found


def test_check_says_that_the_quota_is_too_small_and_starts_no_run_for_which_there_is_none(aws, tmp_path):
    (tmp_path / 'main.py').write_text('import time\ntime.sleep(600)\n')
    outputs, batch = aws.push('BatchECRMain', tmp_path / 'main.py').outputs(), aws.client('batch')
    job = batch.submit_job(jobName='main', jobQueue=outputs['BatchProcessingJobQueueMainName'],
                           jobDefinition=outputs['BatchProcessingJobDefinitionMainName'])['jobId']
    try:
        wait_until(lambda: local_aws('jobs', env=aws.env)['jobs'])
        local_aws('quota', {'vcpus': 5}, env=aws.env)
        status, found, text = check(aws, tmp_path, '--dry')
        assert (status, found['quota'], found['main job']) == (1, False, True)
        assert '5 vCPUs of the kind EC2, 1 used; 10 workers want 10, so 4 run at a time' in text
        assert 'quota-code L-1216C47A --desired-value 11' in text
        local_aws('quota', {'vcpus': 1}, env=aws.env)
        status, found, text = check(aws, tmp_path)
        assert (status, found['main job'], found['run']) == (1, False, False)
        assert 'scripts/submit.sh wants 1' in text and 'quota-code L-3032A538 --desired-value 2' in text
        assert re.search('not started, as it .*: quota"', text)
    finally:
        batch.terminate_job(jobId=job, reason='the test has ended')
        local_aws('quota', {}, env=aws.env)


def test_check_names_the_permissions_that_are_missing(aws, user, tmp_path):
    """By the policies, if these may be asked; else by requests. What only an administrator may see is no fault."""
    with enforced(aws):
        status, found, text = check(aws, tmp_path, '--dry', env=user[0])
        assert status == 0 and found['permissions'] is True and found['computers'] is found['template'] is None, text
    with enforced(aws, (user[1], 'batch:ListJobs')):
        status, found, text = check(aws, tmp_path, '--dry', env=user[0])
        assert (status, found['permissions']) == (1, False) and 'you may not batch:ListJobs"' in text, text
    with enforced(aws, (user[1], ['batch:*', 'ecr:*', 'logs:*', 's3:*', 'sqs:*']), allowed='iam:SimulatePrincipalPolicy'):
        status, found, text = check(aws, tmp_path, '--dry', env=user[0])
        assert (status, found['permissions']) == (1, False)
    policy = load_template()['Resources']['MainPolicy']['Properties']['PolicyDocument']
    wanted = {action for each in policy['Statement'] for action in (
        [each['Action']] if isinstance(each['Action'], str) else each['Action'])}
    # What the stack has is read before; its events are for status.sh.
    assert set(re.search('you may not ([^"]*)"', text)[1].split(', ')) == {
        action for action in wanted if not action.startswith('cloudformation:')}


@pytest.mark.parametrize('env, said', [
    ({'AWS_ENDPOINT_URL': 'http://127.0.0.1:9'}, 'AWS cannot be reached'),
    ({'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': ''}, 'No AWS credentials were found')])
def test_check_without_a_network_or_a_login_says_so(env, said, aws, tmp_path):
    status, found, text = check(aws, tmp_path, env=env)
    assert (status, found) == (1, {'login': False}) and said in text


def check_in_a_hurry(stack, folder, env=()):
    """As `check`, of a check.py that waits seconds for what never comes, instead of minutes."""
    (folder / 'check.py').write_text((ROOT / 'scripts' / 'check.py').read_text().replace(
        '\nEND_SECONDS = 180 ', '\nrios_awsbatch.WATCH_SECONDS = 1\nEND_SECONDS = 3 '))
    done = subprocess.run([sys.executable, 'check.py', '--json'], text=True, stdout=subprocess.PIPE, cwd=folder,
                          timeout=PATIENCE, env={**stack.env, **dict(env), 'PYTHONPATH': str(ROOT)})
    report = json.loads(done.stdout)
    return done.returncode, {each['check']: each['holds'] for each in report['checks']}, done.stdout


def test_check_says_why_no_worker_is_up_where_the_quota_cannot_be_seen(aws, user, tmp_path):
    local_aws('quota', {'vcpus': 0}, env=aws.env)
    try:
        with enforced(aws):
            status, found, text = check_in_a_hurry(aws, tmp_path, {**user[0], 'RIOS_AWSBATCH_START_TIMEOUT': '3'})
    finally:
        local_aws('quota', {}, env=aws.env)
    assert (status, found['computers'], found['run']) == (1, None, False) and 'quota' not in found
    assert re.search('No worker has come up within 3 seconds.*INSUFFICIENT_INSTANCE_CAPACITY', text), text


def test_check_says_what_workers_may_not_do(aws, tmp_path):
    with enforced(aws, (aws.outputs()['BatchJobRoleArn'], 'sqs:SendMessage')):
        status, found, text = check_in_a_hurry(aws, tmp_path)
    assert (status, found['run']) == (1, False) and 'end of the run' not in found
    assert re.search('No worker of run .* is left.*not authorized to perform: sqs:SendMessage', text), text


def test_check_says_what_goes_wrong_in_its_run(aws, user, tmp_path):
    """Workers may not write to the bucket, the main script may remove nothing, and Batch never says that a worker ended."""
    local_aws('lag', {'seconds': 300}, env=aws.env)
    try:
        with enforced(aws, (aws.outputs()['BatchJobRoleArn'], 's3:PutObject'), (user[1], 's3:DeleteObject')):
            status, found, text = check_in_a_hurry(aws, tmp_path, user[0])
    finally:
        local_aws('lag', {}, env=aws.env)
    assert (status, found['run']) == (1, True), text
    assert [name for name, holds in found.items() if holds is False] == ['/vsis3/', 'ended worker', 'end of the run'], text
    assert re.search('GDAL in a worker: (?s:.)*"0 took its place(?s:.)*left: 1 jobs, [1-9] objects', text), text
