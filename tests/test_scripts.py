"""
The promises of create.sh, modify.sh, delete.sh and status.sh, and of every script to a new user.

build.sh and submit.sh are in test_images.py, local.sh in test_local_aws.py, timeline.py in test_report.py.

Only what is not on this machine has a stand-in, on the PATH or behind AWS_ENDPOINT_URL: Docker, and an AWS
that refuses.
"""
import collections
import concurrent.futures
import contextlib
import http.server
import itertools
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

import pytest

from tests.helpers import (
    MANIFEST, OUTPUTS, load_template, ROOT, SCRIPTS, REGION, PATIENCE, QUICK, pids, wait_until, run,
    succeeds, refuses, copy_of_the_tree, Stack, foreign_stack, start_long_run, another_aws, write_main, local_aws,
    user_who_may_all_but)


# Those a user runs against AWS, each with what it needs on its command line.
ON_AWS = ['create.sh', 'modify.sh', 'delete.sh', 'status.sh', 'build.sh', 'submit.sh']


# ---------------------------------------------------------------------------------------------
# Every script
# ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('script',
                         sorted(path.name for path in SCRIPTS.glob('*.sh') if os.access(path, os.X_OK)))
def test_help_is_the_header(script):
    done = run(script, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    header = [line[2:] for line in itertools.takewhile(
        lambda line: line.startswith('#'), (SCRIPTS / script).read_text().split('\n')[1:])]
    assert done.stdout.split('\n')[:-1] == header
    assert 'scripts/' + script in done.stdout


@pytest.mark.parametrize('script', [*ON_AWS, 'check.sh'])
def test_unknown_options_are_refused(script):
    refuses(run(script, '--vcpu', '2'), "'--vcpu'.*{} --help".format(script))
    refuses(run(script, '--stackname'), '--stackname needs a value')


@pytest.mark.parametrize('script, args, said', [
    ('create.sh', ['--vcpus', '0'], '--vcpus must be a whole number from 1 to 192'),
    ('create.sh', ['--mem', '2GB'], "--mem must be a whole number .* not '2GB'"),
    ('create.sh', ['--maxjobs', '10001'], '--maxjobs must be a whole number from 1 to 10000'),
    ('create.sh', ['--logdays', '31'], '--logdays must be one of 1, 3, 5'),
    ('create.sh', ['--instancetype', 'c7i, m7i'], '--instancetype must be names of instance types'),
    ('create.sh', ['--servicename', 'Rios'], '--servicename must be 1 to 40 lower-case'),
    ('create.sh', ['--az', 'us-east-1a'], '--az must be a zone of region'),
    ('create.sh', ['--readbucket', 'My_Bucket'], '--readbucket must be'),
    ('create.sh', ['--writebucket', 'bucket/*/x'], '--writebucket must be buckets or folders'),
    ('create.sh', ['--keepwarm', '19'], '--keepwarm must be a whole number from 20 to 10080'),
    ('create.sh', ['--idletimeout', '29'], '--idletimeout must be a whole number from 30'),
    ('create.sh', ['--maindisk', '201'], '--maindisk must be a whole number from 21 to 200'),
    ('create.sh', ['--mainvcpus', '3'], '--mainvcpus must be one of 1, 2, 4, 8, 16, 32'),
    ('create.sh', ['--mainmem', '4000'],
     r'Fargate does not have 4000 MiB .*--mainmem.*Nearest: 3072 or 4096\.'),
    ('create.sh', ['--fargate', '--vcpus', '3'], 'Fargate has 1, 2, 4, 8, 16 or 32 vCPUs, not 3'),
    ('create.sh', ['--fargate', '--mem', '1800'], r'Fargate does not have 1800 MiB .*--mem.*Nearest: 2048\.'),
    ('create.sh', ['--fargate', '--vcpus', '8', '--mem', '30000'], r'Nearest: 28672 or 32768\.'),
    ('create.sh', ['--fargate', '--vcpus', '2', '--mem', '20000'], r'Nearest: 16384\.'),
    ('create.sh', ['--fargate', '--volume', '201'], '200 GiB of disk at most'),
    ('create.sh', ['--fargate', '--keepwarm', '30'], 'no instances to keep'),
    ('create.sh', ['--fargate', '--instancetype', 'c7i'], 'no instance types to choose from .*--arm64'),
    ('create.sh', ['--stackname', 'my stack'], "'my stack' cannot be a stack name"),
    ('modify.sh', ['--servicename', 'other'], 'keeps its service name'),
    ('modify.sh', ['--tag', '--wait'], '--tag needs a value'),
    ('submit.sh', ['--name', 'a b'], "'a b' cannot be the name of a job"),
    ('submit.sh', ['in.tif', ''], 'takes no empty argument'),
    ('submit.sh', ['s3://bucket/scene.tif'] * 400, '7000 characters is the most, and these have 10000'),
    ('submit.sh', ['Ref::x'], "takes 'Ref::x' for the name of a parameter")])
def test_bad_values_are_refused_before_aws_is_asked(script, args, said):
    refuses(run(script, *args, env={'AWS_ENDPOINT_URL': 'http://127.0.0.1:9', 'AWS_MAX_ATTEMPTS': '1'}), said)


@pytest.mark.parametrize('script', ['common.sh', 'check.sh', *ON_AWS])
def test_scripts_for_aws_have_nothing_that_the_bash_of_macos_lacks(script):
    """That is version 3.2; and its sed takes \\t for a t."""
    text = (SCRIPTS / script).read_text()
    lacking = (r'[!=]= [@+?*!]\(|\$\{\w+\[-|mapfile|readarray|(?:local|declare) -[An]|,,\}|\^\^\}|@[QPAaE]\}|\|&|&>>'
               r'|wait -n|%\(|\bsed\b.*\\t|readlink|sort -V|xargs -r|head -n -')
    assert [line for line in text.splitlines() if re.search(lacking, line)] == []


# ---------------------------------------------------------------------------------------------
# As a new user
# ---------------------------------------------------------------------------------------------

class Answerer(http.server.BaseHTTPRequestHandler):
    """An AWS that answers each request with what a function makes of it, as CloudFormation writes it."""
    def do_POST(self):
        request = self.rfile.read(int(self.headers.get('Content-Length') or 0)).decode()
        self.server.asked += 1
        status, body = self.server.answer(dict(urllib.parse.parse_qsl(request)))
        self.send_response(status)
        self.send_header('Content-Type', 'text/xml')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def answering_aws(answer):
    """It, and its AWS_ENDPOINT_URL; it knows how often it was asked."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Answerer)
    server.answer, server.asked = answer, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, {'AWS_ENDPOINT_URL': 'http://127.0.0.1:{}'.format(server.server_port),
                       'AWS_MAX_ATTEMPTS': '1'}
    finally:
        server.shutdown()
        server.server_close()


CFN = 'xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"'


def refusing_aws(status, code, message):
    """An AWS that answers every request with one error."""
    return answering_aws(lambda _: (status, (
        '<ErrorResponse {}><Error><Type>Sender</Type><Code>{}</Code><Message>{}</Message></Error>'
        '<RequestId>1</RequestId></ErrorResponse>').format(CFN, code, message)))


@pytest.mark.parametrize('script', ON_AWS)
def test_expired_login_is_one_sentence(script, docker):
    with refusing_aws(403, 'ExpiredToken',
                      'The security token included in the request is expired') as (server, env):
        args = ['--yes'] if script == 'delete.sh' else []
        refuses(run(script, *args, env=env, path=docker.path),
                "login has expired. Log in again.*'aws login' or 'aws sso login'")
        assert server.asked == 1
    assert set(docker.verbs()) <= {'info'}


@pytest.mark.parametrize('status, code, message, said', [
    (403, 'InvalidClientTokenId', 'The security token included in the request is invalid.',
     'does not accept your credentials in region'),
    (403, 'SignatureDoesNotMatch', 'Signature expired: 20260101T000000Z is now earlier than ...',
     'clock of this computer is wrong'),
    (403, 'AccessDenied',
     'User: arn:aws:iam::1:user/me is not authorized to perform: cloudformation:DescribeStacks on '
     'resource: x because no identity-based policy allows it',
     'lacks a permission.*cloudformation:DescribeStacks'),
    (400, 'Throttling', 'Rate exceeded', 'fewer requests just now'),
    (500, 'InternalFailure', 'Odd: so it is', '^status.sh: Odd: so it is\n$')])
def test_refusal_of_aws_is_one_sentence(status, code, message, said):
    with refusing_aws(status, code, message) as (_, env):
        refuses(run('status.sh', env=env), said)


@pytest.mark.parametrize('error, said', [
    ('An error occurred (ValidationError) when calling the DescribeStacks operation: So it is', '^status.sh: So it is\n$'),
    ("Error loading login session token: Unable to load a existing login session for session x, Please reauthenticate with "
     "'aws login'.", 'login has expired'),
    ('An error occurred (ForbiddenException) when calling the GetRoleCredentials operation: No access',
     'lacks a permission.*: No access')])
def test_error_of_the_newest_version_2_is_one_sentence(error, said, tmp_path):
    """As 2.34.0 writes it, unless it is told to write as before."""
    aws = tmp_path / 'aws'
    aws.write_text("""#!/bin/sh
exec >&2
echo "aws: [ERROR]: {}"
[ "$AWS_CLI_ERROR_FORMAT" = legacy ] || printf '\\nAdditional error details:\\nType: Sender\\n'
exit 254
""".format(error))
    aws.chmod(0o755)
    refuses(run('status.sh', path=tmp_path), said)


def test_login_that_expires_while_cloudformation_works_is_no_failure_of_the_stack():
    with refusing_aws(403, 'ExpiredToken', 'The security token included in the request is expired') as (_, env):
        done = subprocess.run(['bash', '-c', 'set -e; . scripts/common.sh; STACK_ID=x; wait_for_stack update'],
                              cwd=ROOT, env=dict(os.environ, **env), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 1 and re.search('login has expired.*goes on meanwhile', done.stdout), done.stdout


def test_stack_with_a_long_history_says_why_it_failed_and_nothing_else():
    """CloudFormation keeps all events, a hundred to a page."""
    def event(number, kind, status, reason):
        return ('<member><EventId>{0}</EventId><StackId>x</StackId><StackName>x</StackName><Timestamp>{1}</Timestamp>'
                '<LogicalResourceId>R{0}</LogicalResourceId><ResourceType>AWS::{2}</ResourceType>'
                '<ResourceStatus>{3}</ResourceStatus><ResourceStatusReason>{4}</ResourceStatusReason></member>').format(
                    number, date, kind, status, reason)
    date = '2026-01-01T00:00:00Z'
    stack = ('<Stacks><member><StackId>x</StackId><StackName>x</StackName><Description>rios_awsbatch:</Description>'
             '<CreationTime>{}</CreationTime><StackStatus>DELETE_FAILED</StackStatus></member></Stacks>').format(date)
    events = [event(0, 'S3::Bucket', 'DELETE_FAILED', 'not empty'),
              event(1, 'CloudFormation::Stack', 'DELETE_IN_PROGRESS', ''),
              *(event(number, 'S3::Bucket', 'CREATE_FAILED', 'long ago ' * 50) for number in range(2, 600))]

    def answer(query):
        name, first = query['Action'], int(query.get('NextToken', 0))
        result = stack if name == 'DescribeStacks' else '<StackEvents>{}</StackEvents>'.format(
            ''.join(events[first:first + 100]))
        if name != 'DescribeStacks' and first + 100 < len(events):
            result += '<NextToken>{}</NextToken>'.format(first + 100)
        return 200, '<{0}Response {1}><{0}Result>{2}</{0}Result></{0}Response>'.format(name, CFN, result)
    with answering_aws(answer) as (_, env):
        succeeds(run('status.sh', env=env), r'first resource that failed was R0 \(AWS::S3::Bucket\): not empty\n')


NO_CREDENTIALS = {'AWS_ACCESS_KEY_ID': None, 'AWS_SECRET_ACCESS_KEY': None}


@pytest.mark.parametrize('env, said', [
    (NO_CREDENTIALS, "no AWS credentials were found. Run 'aws configure'"),
    (dict(NO_CREDENTIALS, AWS_PROFILE='nosuch'), 'AWS_PROFILE names a profile that'),
    ({'RIOS_AWSBATCH_REGION': 'Sydney'}, "'Sydney' is not the name of an AWS region"),
    ({'RIOS_AWSBATCH_REGION': 'ap-southwest-9', 'AWS_ENDPOINT_URL': 'http://127.0.0.1:9',
      'AWS_MAX_ATTEMPTS': '1'},
     "cannot be reached in region 'ap-southwest-9'"),
    ({'RIOS_AWSBATCH_REGION': 'us-east-1'},
     "no stack 'RIOS' in region us-east-1.*RIOS_AWSBATCH_REGION.*create.sh")])
def test_wrong_settings_are_one_sentence(env, said):
    refuses(run('submit.sh', env=dict(env, RIOS_AWSBATCH_STACK='RIOS')), said)


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM])
def test_script_that_is_interrupted_says_and_leaves_nothing(how, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        env = dict(os.environ, TMPDIR=str(tmp_path), AWS_ENDPOINT_URL='http://127.0.0.1:{}'.format(silent.getsockname()[1]))
        process = subprocess.Popen([SCRIPTS / 'create.sh', '--wait'], env=env, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, start_new_session=True)
        with silent.accept()[0]:
            os.killpg(process.pid, how)
            assert process.communicate(timeout=PATIENCE)[0] == ''
    assert process.returncode == -how and os.listdir(tmp_path) == []


@pytest.mark.parametrize('script', ON_AWS)
def test_missing_command_line_says_how_to_get_it(script, tmp_path, docker):
    tree = copy_of_the_tree(tmp_path / 'tree')
    tools = tmp_path / 'tools'
    tools.mkdir()
    for name in ('bash', 'env', 'awk', 'sed', 'grep', 'cat', 'mktemp', 'rm', 'basename', 'dirname', 'tail',
                 'cut', 'tr', 'python3'):
        (tools / name).symlink_to(shutil.which(name))
    args = ['--yes'] if script == 'delete.sh' else []
    refuses(run(script, *args, root=tree, env={'PATH': '{}:{}'.format(tools, docker.path)}),
            "AWS command line is not installed. Run 'pip install awscli'")


@pytest.mark.parametrize('fails, said', [
    (None, "'no-such-docker' is not installed. Install Docker"),
    ('ERROR: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon up?',
     'installed but not running. Start it'),
    ('ERROR: failed to connect to the docker API at unix:///var/run/docker.sock; check if the path is correct and if the '
     'daemon is running: dial unix /var/run/docker.sock: connect: no such file or directory', 'installed but not running'),
    ('permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock',
     "DOCKER='sudo docker'")])
def test_build_without_a_docker_that_works_is_one_sentence(fails, said, docker):
    docker.set(fails={'info': fails})
    env = {'DOCKER': 'no-such-docker'} if fails is None else {'DOCKER': 'docker'}
    refuses(run('build.sh', env=env, path=docker.path), said)
    assert set(docker.verbs()) <= {'info'}


@pytest.mark.parametrize('script, args', [
    ('create.sh', []), ('modify.sh', ['--vcpus', '2']), ('delete.sh', ['--yes', '--wait']), ('status.sh', []),
    ('status.sh', ['--clean']), ('build.sh', []), ('submit.sh', [])])
def test_stack_of_somebody_else_is_left_alone(script, args, docker):
    other = foreign_stack()
    before = other.describe()
    refuses(other.run(script, *args, path=docker.path),
            'was not made by create.sh, so it is left alone. Choose another')
    assert other.describe() == before
    assert set(docker.verbs()) <= {'info'}


@pytest.mark.parametrize('script', ['modify.sh', 'status.sh', 'build.sh', 'submit.sh'])
def test_missing_stack_is_one_sentence(script, docker):
    refuses(run(script, '--stackname', 'NoSuch', path=docker.path),
            "no stack 'NoSuch' in region .*RIOS_AWSBATCH_STACK.*scripts/create.sh")
    assert set(docker.verbs()) <= {'info'}


def test_deleting_a_missing_stack_succeeds():
    succeeds(run('delete.sh', '--stackname', 'NoSuch'), "no stack 'NoSuch' .*nothing to delete")


def set_status(stack, status):
    urllib.request.urlopen(stack.endpoint + '/_local/stack', json.dumps(
        {'region': REGION, 'name': stack.name, 'status': status}).encode(), timeout=30).close()


@pytest.mark.parametrize('status, script, said', [
    ('CREATE_IN_PROGRESS', 'submit.sh', 'still being created'),
    ('DELETE_IN_PROGRESS', 'create.sh', 'is being deleted'),
    ('ROLLBACK_COMPLETE', 'create.sh', 'Remove it with scripts/delete.sh'),
    ('ROLLBACK_COMPLETE', 'submit.sh', 'not usable .it is in state ROLLBACK_COMPLETE'),
    *[(status, 'modify.sh', 'just being changed') for status in (
        'UPDATE_IN_PROGRESS', 'UPDATE_COMPLETE_CLEANUP_IN_PROGRESS', 'UPDATE_ROLLBACK_IN_PROGRESS')]])
def test_stack_in_an_odd_state_is_one_sentence(status, script, said, stack):
    set_status(stack, status)
    refuses(stack.run(script), said)
    assert stack.status() == status


def test_deleting_a_stack_that_is_being_deleted_leaves_that_to_go_on(stack):
    def queue():
        name = stack.outputs()['BatchProcessingJobQueueName']
        return stack.client('batch').describe_job_queues(jobQueues=[name])['jobQueues'][0]['state']
    set_status(stack, 'DELETE_IN_PROGRESS')
    succeeds(stack.run('delete.sh'), 'is being deleted in region')
    assert (stack.status(), queue()) == ('DELETE_IN_PROGRESS', 'ENABLED')


def test_demo_that_cannot_be_set_up_leaves_no_folder(tmp_path):
    tree = copy_of_the_tree(tmp_path / 'tree')
    done = subprocess.run([tree / 'scripts' / 'demo.sh', '-o', tmp_path / 'output', ROOT / 'README.md'], text=True,
                          env=dict(os.environ, PYTHON='/bin/false'), capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1 and done.stdout == ''
    assert re.fullmatch('setup.sh: PYTHON=/bin/false cannot import GDAL .*\n', done.stderr)
    assert not (tmp_path / 'output').exists() and not (tree / '.venv').exists()


# ---------------------------------------------------------------------------------------------
# create.sh and modify.sh
# ---------------------------------------------------------------------------------------------

def make_buckets(stack, *names):
    """Buckets of a user's own, with names that no other test has."""
    for name in names:
        stack.client('s3').create_bucket(Bucket='{}-{}'.format(stack.service, name),
                                         CreateBucketConfiguration={'LocationConstraint': REGION})
    return ['{}-{}'.format(stack.service, name) for name in names]


def environment_of(stack, output='ComputeEnvironmentArn'):
    return stack.client('batch').describe_compute_environments(
        computeEnvironments=[stack.outputs()[output]])['computeEnvironments'][0]


def environments_of_queues(stack):
    """Of the workers, and of main jobs."""
    queues = [stack.outputs()[name] for name in ('BatchProcessingJobQueueArn', 'BatchProcessingJobQueueMainArn')]
    return [stack.client('batch').describe_job_queues(jobQueues=[queue])['jobQueues'][0]['computeEnvironmentOrder'][0][
        'computeEnvironment'] for queue in queues]


def definition_of(stack, output='BatchProcessingJobDefinitionName'):
    return stack.client('batch').describe_job_definitions(
        jobDefinitionName=stack.outputs()[output], status='ACTIVE')['jobDefinitions'][0]


# What design.md promises to users of the stack.
def test_options_of_create_reach_the_stack():
    stack = Stack()
    scenes, masks, results = make_buckets(stack, 'scenes', 'masks', 'results')
    done = stack.run(
        'create.sh', '--servicename', stack.service, '--vcpus', 2, '--mem', 3000, '--maxjobs', 7, '--spot',
        '--volume', 50,
        '--instancetype', 'c7g,m7g', '--az', REGION + 'c', '--az', REGION + 'a', '--mainvcpus', 2,
        '--mainmem', 5120,
        '--readbucket', 's3://{}/'.format(scenes), '--readbucket', masks, '--writebucket', results,
        '--timeout', 7200,
        '--idletimeout', 60, '--logdays', 7, '--tag', 'My project', '--keepwarm', 45, '--maindisk', 100,
        '--wait')
    succeeds(done, "Stack '{}' is ready .*scripts/build.sh".format(stack.name))
    assert stack.status() == 'CREATE_COMPLETE'
    outputs = stack.outputs()
    assert OUTPUTS <= set(outputs) and all(outputs.values())
    assert (outputs['BatchMaxJobs'], outputs['BatchVCPUS'], outputs['BatchArchitecture']) == ('7', '2',
                                                                                              'ARM64')
    assert outputs['BatchMaxVCPUS'].startswith('14 vCPUs')
    assert outputs['BatchProcessingJobQueueName'] == stack.service + 'JobQueue'
    computers = environment_of(stack)['computeResources']
    assert int(computers['maxvCpus']) == 7 * 2
    assert (computers['type'], computers['instanceTypes']) == ('SPOT', ['c7g', 'm7g'])
    assert int(computers['minvCpus']) == 0
    subnets = stack.client('ec2').describe_subnets(SubnetIds=computers['subnets'])['Subnets']
    assert sorted(subnet['AvailabilityZone'] for subnet in subnets) == [REGION + 'a', REGION + 'c']
    worker, main = definition_of(stack), definition_of(stack, 'BatchProcessingJobDefinitionMainName')
    assert needs(worker) == {'VCPU': '2', 'MEMORY': '3000'} and needs(main) == {'VCPU': '2', 'MEMORY': '5120'}
    assert worker['timeout'] == {'attemptDurationSeconds': 7200}
    assert worker['platformCapabilities'] == ['EC2']
    assert {'name': 'RIOS_NOMSG_TIMEOUT', 'value': '60'} in worker['containerProperties']['environment']
    assert {'name': 'RIOS_AWSBATCH_STACK', 'value': stack.name} in main['containerProperties']['environment']
    assert {'name': 'RIOS_AWSBATCH_REGION', 'value': REGION} in main['containerProperties']['environment']
    found = stack.parameters()
    assert found['ReadBuckets'] == 'arn:aws:s3:::{},arn:aws:s3:::{}'.format(scenes, masks)
    assert found['WriteBuckets'] == 'arn:aws:s3:::' + results
    assert (found['VolumeSize'], found['LogRetention'], found['Tag']) == ('50', '7', 'My project')
    assert (found['KeepWarm'], found['MainDisk'], found['ListBuckets']) == ('45', '100', '')
    assert outputs['BatchTag'] == 'My project'
    # And the same name again.
    refuses(stack.run('create.sh'),
            "stack '{}' exists already .*modify.sh.*delete.sh.*--stackname".format(stack.name))


def needs(definition):
    return {item['type']: item['value'] for item in definition['containerProperties']['resourceRequirements']}


def test_main_job_is_on_demand_and_has_computers_of_its_own():
    """Whatever its workers are on."""
    stack = Stack(Spot='yes').create()
    workers, main = environments_of_queues(stack)
    assert workers == stack.outputs()['ComputeEnvironmentArn'] != main
    resources = stack.client('batch').describe_compute_environments(
        computeEnvironments=[main])['computeEnvironments'][0]['computeResources']
    assert resources['type'] == 'FARGATE'
    definition = definition_of(stack, 'BatchProcessingJobDefinitionMainName')
    assert definition['platformCapabilities'] == ['FARGATE']
    # A run may be longer than a worker lives.
    assert definition['timeout'] == {'attemptDurationSeconds': 14 * 86400}


def test_fargate_takes_what_fargate_needs_and_changes_what_it_can(tmp_path):
    stack = Stack()
    succeeds(stack.run('create.sh', '--servicename', stack.service, '--fargate', '--spot', '--arm64',
                       '--vcpus', 4, '--maxjobs',
                       5, '--wait'))
    resources = environment_of(stack)['computeResources']
    assert resources['type'] == 'FARGATE_SPOT' and int(resources['maxvCpus']) == 20
    # AWS refuses a Fargate environment with any of these.
    assert not {'instanceTypes', 'instanceRole', 'allocationStrategy', 'launchTemplate', 'minvCpus',
                'ec2Configuration',
                'scalingPolicy', 'tags'} & {name for name, value in resources.items() if value}
    definition = definition_of(stack)
    container = definition['containerProperties']
    assert definition['platformCapabilities'] == ['FARGATE']
    assert needs(definition) == {'VCPU': '4',
                                 'MEMORY': '8192'}         # the least that Fargate has with 4 vCPUs
    assert container['networkConfiguration'] == {'assignPublicIp': 'ENABLED'}
    assert container['runtimePlatform'] == {'operatingSystemFamily': 'LINUX', 'cpuArchitecture': 'ARM64'}
    assert container['executionRoleArn'].startswith('arn:aws:iam::')
    assert int(container['ephemeralStorage']['sizeInGiB']) == 30
    before = stack.parameters()
    refuses(stack.run('modify.sh', '--ondemand'), 'on Fargate to Spot or back. Make a second stack')
    refuses(stack.run('modify.sh', '--vcpus', 8), r'Fargate does not have 8192 MiB .*Nearest: 16384\.')
    assert stack.parameters() == before
    # What Fargate can change in place, and what it cannot: AWS then makes the environments anew.
    environments = environments_of_queues(stack)
    succeeds(stack.run('modify.sh', '--maxjobs', 6, '--wait'), 'is changed')
    assert (environments_of_queues(stack), int(environment_of(stack)['computeResources']['maxvCpus'])) == (environments, 24)
    stack.push('BatchECRMain', write_main(tmp_path, 'time.sleep(1000)'))
    job = stack.run('submit.sh', '--name', 'busy').stdout.strip()
    refuses(stack.run('modify.sh', '--az', REGION + 'b'), 'job busy .*has not ended.*Repeat the command when it has')
    stack.client('batch').terminate_job(jobId=job, reason='enough')
    wait_until(lambda: stack.client('batch').describe_jobs(jobs=[job])['jobs'][0]['status'] == 'FAILED')
    succeeds(stack.run('modify.sh', '--az', REGION + 'b', '--wait'), 'is changed')
    assert not set(environments) & set(environments_of_queues(stack))
    assert environments_of_queues(stack)[0] == stack.outputs()['ComputeEnvironmentArn']
    assert len(environment_of(stack)['computeResources']['subnets']) == 1
    left = stack.client('batch').describe_compute_environments()['computeEnvironments']
    assert not {each['computeEnvironmentArn'] for each in left} & set(environments)


def test_instances_do_not_become_fargate(stack):
    refuses(stack.run('modify.sh', '--fargate', '--mem', 2048), 'cannot change an environment to Fargate')


@pytest.mark.parametrize('options, vcpus, said', [
    ([], 10, ''),                       # 1 vCPU and 1800 MiB fill c6i
    (['--vcpus', 4], 40, ''),           # so do 4 and 7200
    (['--mem', 2048], 20, '1 vCPUs and 2048 MiB .* on a c6i.large each takes 2 vCPUs'),
    (['--mem', 4096, '--instancetype', 'm6i,m7i'], 20, 'on a m[67]i.large each takes 2 vCPUs'),
    (['--mem', 3600, '--instancetype', 'm6i,m7i'], 10, ''),
    (['--mem', 7300, '--instancetype', 'r6i'], 10, ''),
    (['--vcpus', 3, '--mem', 3000, '--maxjobs', 5, '--instancetype', 'c6i.xlarge'], 20, 'each takes 4 vCPUs'),
    (['--vcpus', 5, '--mem', 3000, '--maxjobs', 4, '--instancetype', 'c6i.4xlarge'], 22, 'each takes 5.33'),
])
def test_instances_have_room_for_as_many_workers_as_asked_for(options, vcpus, said):
    """Batch counts the vCPUs of instances, whose memory is in part the system's."""
    stack = Stack()
    done = stack.run('create.sh', '--servicename', stack.service, *options)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: stack.status() == 'CREATE_COMPLETE')
    assert bool(done.stderr) == bool(said) and re.search(said, done.stderr), done.stderr
    assert int(environment_of(stack)['computeResources']['maxvCpus']) == vcpus


ALL_AT_ONCE = """
with rios_awsbatch.AWSBatchExecutor(3) as executor:
    executor.wait_for_workers(3)
    print(list(executor.map(abs, [-1, -2, -3])), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('options', [['--mem', 2048], ['--fargate'], ['--fargate', '--spot', '--arm64']])
def test_as_many_workers_run_at_once_as_were_asked_for(options, tmp_path):
    """Also where each takes more than its vCPUs of an instance."""
    stack = Stack()
    done = stack.run('create.sh', '--servicename', stack.service, '--wait', '--maxjobs', 3, *options)
    assert done.returncode == 0, done.stderr
    stack.push('BatchECR', ROOT / 'worker.py')
    done = subprocess.run([sys.executable, write_main(tmp_path, ALL_AT_ONCE)], env=stack.env, text=True,
                          capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, '[1, 2, 3]\n'), done.stderr


@pytest.mark.parametrize('options, said', [
    (['--instancetype', 'c7i,m7g'], 'not all of one architecture .*arm64, x86_64'),
    (['--instancetype', 'c99'], "no instance types 'c99'"),
    (['--mem', 100000, '--instancetype', 'c7i.large'],
     "no instance of 'c7i.large' holds a worker of 1 vCPUs and 100000 MiB"),
    (['--readbucket', 'there-is-no-such-bucket/folder'], "no bucket 'there-is-no-such-bucket'")])
def test_create_refuses_what_would_never_run(options, said):
    stack = Stack()
    refuses(stack.run('create.sh', '--servicename', stack.service, *options), said)
    assert stack.status() is None


def test_zone_without_fargate_is_refused():
    stack = Stack(region='us-west-1')
    refuses(stack.run('create.sh', '--servicename', stack.service, '--az', 'us-west-1a', '--az', 'us-west-1c'),
            r'zone us-west-1c .usw1-az2. has no Fargate')
    assert stack.status() is None


def test_folders_reach_the_policies_by_themselves():
    stack = Stack()
    scenes, results = make_buckets(stack, 'scenes', 'results')
    succeeds(stack.run('create.sh', '--servicename', stack.service, '--readbucket',
                       '/vsis3/{}/2026/'.format(scenes),
                       '--writebucket', 's3://{}/ann/x/'.format(results), '--readbucket', results + '/ann/x',
                       '--wait'))
    found = stack.parameters()
    assert found['ReadBuckets'] == 'arn:aws:s3:::{}/2026,arn:aws:s3:::{}/ann/x'.format(scenes, results)
    assert found['ListBuckets'] == 'arn:aws:s3:::{},arn:aws:s3:::{}'.format(scenes, results)
    assert found['ListPrefixes'] == '2026/*,ann/x/*'
    succeeds(stack.run('modify.sh', '--readbucket', 'none', '--wait'))
    found = stack.parameters()
    assert (found['ReadBuckets'], found['ListPrefixes']) == ('', 'ann/x/*')


@pytest.mark.parametrize('region', ['us-east-1', 'us-west-1'])
def test_create_without_options_makes_the_default_stack_in_all_zones(region):
    """In a region with six zones, and in one with two and one that has no Fargate; without waiting for it."""
    stack = Stack(region=region)
    succeeds(stack.run('create.sh', '--servicename', stack.service),
             "'{}' is being created in region {}".format(stack.name, region))
    wait_until(lambda: stack.status() == 'CREATE_COMPLETE')
    template, outputs, ec2 = load_template(), stack.outputs(), stack.client('ec2')
    assert OUTPUTS <= set(template['Outputs']) == set(outputs)
    zones = [zone['ZoneName'] for zone in ec2.describe_availability_zones()['AvailabilityZones']
             if zone['ZoneId'] != 'usw1-az2']
    subnets = ec2.describe_subnets(Filters=[{'Name': 'vpc-id', 'Values': [outputs['VPC']]}])['Subnets']
    assert sorted(subnet['AvailabilityZone'] for subnet in subnets) == sorted(zones)
    assert len({subnet['CidrBlock'] for subnet in subnets}) == len(zones) == {'us-east-1': 6,
                                                                              'us-west-1': 2}[region]
    for name, value in stack.parameters().items():
        if name not in ('ServiceName', 'AvailabilityZones'):
            assert value == str(template['Parameters'][name]['Default']), name


def test_create_names_the_first_resource_that_fails_and_leaves_nothing():
    stack = Stack()
    stack.client('ecr').create_repository(repositoryName=stack.service + 'ecrmain')
    done = stack.run('create.sh', '--servicename', stack.service, '--wait')
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert re.search('could not create .*first resource that failed was RepositoryMain .AWS::ECR.*exist',
                     done.stderr), done.stderr
    assert 'RequestToken' not in done.stderr
    assert stack.status() is None
    names = [item['repositoryName'] for item in stack.client('ecr').describe_repositories()['repositories']]
    assert stack.service + 'ecr' not in names and stack.service + 'ecrmain' in names
    assert not [vpc for vpc in stack.client('ec2').describe_vpcs()['Vpcs']
                if {'Key': 'Name', 'Value': stack.name} in vpc.get('Tags', [])]


def test_account_that_never_used_aws_batch_gets_its_stack(tmp_path):
    """Its first cluster fails for want of a role that AWS makes only then."""
    with another_aws(tmp_path) as env:
        stack = Stack(env=env)
        iam = stack.client('iam')
        for service in 'ECS', 'Batch':
            iam.delete_service_linked_role(RoleName='AWSServiceRoleFor' + service)
        succeeds(stack.run('create.sh', '--servicename', stack.service, '--wait'), 'is ready')
        assert {'AWSServiceRoleForECS', 'AWSServiceRoleForBatch'} <= {
            role['RoleName'] for role in iam.list_roles()['Roles']}
        # Who may not make it is told that all will be well the second time.
        iam.delete_service_linked_role(RoleName='AWSServiceRoleForECS')
        other = Stack(env=env)
        keys = user_who_may_all_but('iam:CreateServiceLinkedRole', other)
        local_aws('iam', {'enforced': True}, env=env)
        create = ['create.sh', '--servicename', other.service, '--wait']
        done = other.run(*create, env=keys)
        assert done.returncode == 1 and re.search('service linked role.*has made .* meanwhile: run .*create.sh again',
                                                  done.stderr), done.stderr
        succeeds(other.run(*create, env=keys), 'is ready')


def test_create_refuses_a_service_name_that_is_taken(stack):
    other = Stack(service=stack.service)
    refuses(other.run('create.sh', '--servicename', other.service, '--wait'),
            "has the service name '{}'.*--servicename".format(stack.service))
    assert other.status() is None


def test_modify_changes_what_is_given_and_nothing_else():
    stack = Stack(MaxJobs=7, VCPUS=2, MaxVCPUS=14, Tag='mine', Spot='yes',
                  ReadBuckets='arn:aws:s3:::scenes').create()
    before, outputs = stack.parameters(), stack.outputs()
    succeeds(stack.run('modify.sh', '--mem', 3000, '--maxjobs', 9, '--ondemand', '--readbucket', 'none',
                       '--wait'),
             "Instances are replaced. Jobs that run may go on(.|\n)*Waiting(.|\n)*'{}' is changed".format(stack.name))
    expected = dict(before, Memory='3000', MaxJobs='9', MaxVCPUS='18', Spot='no', ReadBuckets='')
    assert stack.parameters() == expected
    after = stack.outputs()
    assert {name for name in outputs if outputs[name] != after[name]} <= {
        'BatchProcessingJobDefinitionArn', 'BatchMaxJobs', 'BatchMaxVCPUS'}
    definition = stack.client('batch').describe_job_definitions(
        jobDefinitionName=after['BatchProcessingJobDefinitionName'], status='ACTIVE')['jobDefinitions']
    assert [needs(each) for each in definition] == [{'VCPU': '2', 'MEMORY': '3000'}]
    # vCPUs in all are a product: each factor alone changes it.
    done = succeeds(stack.run('modify.sh', '--vcpus', 4, '--mainvcpus', 2))
    assert 'replaced' not in done
    assert stack.parameters() == dict(expected, VCPUS='4', MaxVCPUS='36', MainVCPUS='2')
    assert stack.outputs()['BatchMaxVCPUS'].startswith('36 vCPUs')


def test_another_tag_keeps_the_environment(stack):
    """AWS makes an environment anew for another tag of its own, and jobs of the old one end."""
    before = stack.outputs()
    succeeds(stack.run('modify.sh', '--tag', 'another project', '--wait'), 'Instances are replaced')
    assert stack.outputs()['ComputeEnvironmentArn'] == before['ComputeEnvironmentArn']
    for item in load_template()['Resources'].values():
        if item['Type'] == 'AWS::Batch::ComputeEnvironment':
            assert 'Tags' not in item['Properties']         # create-only, says CloudFormation's schema


def test_modify_with_nothing_to_change_says_so_and_succeeds(stack):
    succeeds(stack.run('modify.sh', '--vcpus', 1, '--wait'),
             "nothing to change in stack '{}'".format(stack.name))


def test_modify_brings_an_older_stack_up_to_date(tmp_path, stack):
    """The stack was made before batch.yaml had one of its parameters and outputs."""
    older = tmp_path / 'batch.yaml'
    text = (ROOT / 'batch.yaml').read_text()
    text = re.sub(r'  BatchMainPolicyArn:\n(    .*\n)+', '', text)
    text = re.sub(r'\n  LogRetention:\n(    .*\n)+', '\n', text, count=1)
    text = text.replace('!Ref LogRetention', '30').replace(', LogRetention]', ']')
    text = re.sub(r'      LogRetention: .*\n', '', text)
    older.write_text(text)
    stack = Stack(MaxJobs=4, MaxVCPUS=4).create(older)
    assert 'LogRetention' not in stack.parameters() and 'BatchMainPolicyArn' not in stack.outputs()
    succeeds(stack.run('modify.sh', '--wait'), 'is changed')
    assert stack.parameters()['MaxJobs'] == '4' and stack.parameters()['LogRetention'] == '30'
    assert stack.outputs()['BatchMainPolicyArn']


def test_modify_that_fails_says_why_and_keeps_the_stack_as_it_was(tmp_path, stack):
    tree = copy_of_the_tree(tmp_path / 'tree')
    stack.client('ecr').create_repository(repositoryName=stack.service + 'taken')
    another = '\n  Another:\n    Type: AWS::ECR::Repository\n    Properties: {{RepositoryName: {}taken}}\n'
    text = (tree / 'batch.yaml').read_text()
    text = text.replace('\nOutputs:\n', another.format(stack.service) + '\nOutputs:\n')
    (tree / 'batch.yaml').write_text(text)
    before = stack.parameters()
    done = stack.run('modify.sh', '--maxjobs', 3, '--wait', root=tree)
    assert done.returncode == 1
    assert re.search('could not update stack .*first resource that failed was Another',
                     done.stderr), done.stderr
    assert stack.status() == 'UPDATE_ROLLBACK_COMPLETE'
    assert stack.parameters() == before and stack.outputs()['BatchMaxJobs'] == '10'


# ---------------------------------------------------------------------------------------------
# delete.sh
# ---------------------------------------------------------------------------------------------

def answer_on_a_terminal(stack, script, answer):
    """Run a script on a terminal and answer its question; (exit status, all it said)."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen([SCRIPTS / script, '--wait'], env=stack.env, stdin=theirs,
                                   stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        os.write(ours, answer.encode() + b'\n')
        return process.communicate(timeout=PATIENCE)[0], process.returncode
    finally:
        os.close(ours)
        os.close(theirs)


def test_delete_asks_first(stack):
    refuses(stack.run('delete.sh', '--wait'), "say --yes to delete stack '{}'".format(stack.name))
    said, status = answer_on_a_terminal(stack, 'delete.sh', 'n')
    assert status == 1 and 'nothing was deleted' in said
    assert stack.status() == 'CREATE_COMPLETE'


def fill(stack, count):
    """Put into a stack all that delete.sh has to take away."""
    outputs, s3, sqs, ecr = stack.outputs(), stack.client('s3'), stack.client('sqs'), stack.client('ecr')
    bucket = outputs['BatchBucket']
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={'Status': 'Enabled'})
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: s3.put_object(Bucket=bucket, Key='runs/x/{} "é"'.format(n), Body=b'x'),
                         range(count)))
    s3.put_object(Bucket=bucket, Key='mine', Body=b'1')
    s3.put_object(Bucket=bucket, Key='mine', Body=b'2')
    s3.delete_object(Bucket=bucket, Key='mine')
    for end in ('in', 'out'):
        sqs.create_queue(QueueName='{}_20260101T000000-0123abcd_{}'.format(stack.name, end))
    sqs.create_queue(QueueName=stack.name + '_mine')
    for n in range(count // 10):
        ecr.put_image(repositoryName=outputs['BatchECR'], imageTag='v{}'.format(n), imageManifest=json.dumps(
            dict(MANIFEST, config={'digest': 'sha256:{:064x}'.format(n)})))
    ecr.put_image(repositoryName=outputs['BatchECRMain'], imageTag='latest',
                  imageManifest=json.dumps(MANIFEST))


@pytest.mark.slow
def test_delete_takes_all_of_a_stack_and_nothing_of_another(tmp_path):
    """Jobs, queues, versions, images, an attached policy; beside it a stack whose name begins alike."""
    stack = Stack().create().push('BatchECR', ROOT / 'worker.py')
    other = Stack(stack.name + '-2').create()
    fill(stack, 1010)       # more than AWS lists in one answer
    fill(other, 10)
    iam, user = stack.client('iam'), 'user-of-' + stack.name
    iam.create_user(UserName=user)
    iam.attach_user_policy(UserName=user, PolicyArn=stack.outputs()['BatchMainPolicyArn'])
    iam.attach_user_policy(UserName=user, PolicyArn=other.outputs()['BatchMainPolicyArn'])
    process, name = start_long_run(tmp_path, stack.env)
    workers, bucket = pids(name, stack.env), stack.outputs()['BatchBucket']
    before = other.describe()
    said, status = answer_on_a_terminal(stack, 'delete.sh', 'y')
    assert status == 0, said
    assert "Stack '{}' is gone".format(stack.name) in said
    assert stack.status() is None
    assert not any(os.path.exists('/proc/{}'.format(pid)) for pid in workers)
    # The run's main script learns of it and ends.
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and 'rios_awsbatch' in err, err
    assert [url.rpartition('/')[2] for url in stack.queues()] == [stack.name + '_mine']
    assert bucket not in [item['Name'] for item in stack.client('s3').list_buckets()['Buckets']]
    assert other.describe() == before
    assert len(other.queues()) == 3 and len(other.objects('runs/')) == 10
    ecr = other.client('ecr')
    assert len(ecr.list_images(repositoryName=other.outputs()['BatchECR'], maxResults=1000)['imageIds']) == 1
    assert [item['PolicyArn']
            for item in iam.list_attached_user_policies(UserName=user)['AttachedPolicies']] == [
        other.outputs()['BatchMainPolicyArn']]


ENDS_LATE = """
import signal
import boto3

def put(name):
    boto3.client('s3', region_name=rios_awsbatch.REGION).put_object(
        Bucket=os.environ['RIOSBucket'], Key='runs/{}-{}'.format(name, os.getpid()), Body=b'x')

def late(*_):
    time.sleep(4)
    put('late')
    sys.exit(1)

signal.signal(signal.SIGTERM, late)
put('ready')
time.sleep(600)
"""


@pytest.mark.slow
def test_delete_waits_for_every_job_and_what_it_writes_last(tmp_path, stack):
    """The parent of an array is PENDING while its children run, and main jobs are on a queue of their own."""
    stack.push('BatchECR', write_main(tmp_path, ENDS_LATE)).push('BatchECRMain', tmp_path / 'main.py')
    batch, outputs = stack.client('batch'), stack.outputs()
    bucket = {'name': 'RIOSBucket', 'value': outputs['BatchBucket']}
    jobs = [batch.submit_job(
        jobName='job', jobQueue=outputs['BatchProcessingJobQueue{}Name'.format(kind)],
        jobDefinition=outputs['BatchProcessingJobDefinition{}Name'.format(kind)],
        containerOverrides={'environment': [bucket]}, **more)['jobId']
        for kind, more in (('', {'arrayProperties': {'size': 2}}), ('Main', {}))]
    wait_until(lambda: len(stack.objects('runs/ready')) == 3)
    said = succeeds(stack.run('delete.sh', '--yes', '--wait'), 'Stopped 1 jobs.\nStopped 1 jobs.')
    assert 'Deleted 6 objects from bucket ' + outputs['BatchBucket'] in said
    assert stack.status() is None
    assert [job['status'] for job in batch.describe_jobs(jobs=jobs)['jobs']] == ['FAILED'] * 2
    assert outputs['BatchBucket'] not in [item['Name'] for item in stack.client('s3').list_buckets()['Buckets']]


# ---------------------------------------------------------------------------------------------
# status.sh
# ---------------------------------------------------------------------------------------------

def states(stack):
    """How many workers are in which state, as Batch says."""
    batch = stack.client('batch')
    jobs = batch.list_jobs(jobQueue=stack.outputs()['BatchProcessingJobQueueName'],
                           filters=[{'name': 'JOB_NAME', 'values': ['*']}])['jobSummaryList']
    found = collections.Counter()
    for job in batch.describe_jobs(jobs=[job['jobId'] for job in jobs])['jobs']:
        found.update(job['arrayProperties']['statusSummary'])
    return +found


@pytest.mark.slow
def test_status_tells_living_runs_from_dead_ones_and_cleans_up_after_the_dead(tmp_path):
    stack, began = Stack().create(), time.time()
    stack.push('BatchECR', ROOT / 'worker.py')
    dead, dead_run = start_long_run(tmp_path / 'dead', stack.env)
    living, living_run = start_long_run(tmp_path / 'living', stack.env, 60)
    dead.kill()
    dead.communicate()
    s3, bucket = stack.client('s3'), stack.outputs()['BatchBucket']
    s3.put_object(Bucket=bucket, Key='runs/notes.txt', Body=b'not of a run')
    try:
        wait_until(lambda: not pids(dead_run, stack.env))
        renewed = s3.head_object(Bucket=bucket,
                                 Key='runs/{}/lease'.format(dead_run))['LastModified'].timestamp()
        wait_until(lambda: time.time() > renewed + 1.5 * QUICK['LEASE_SECONDS'] + 1)
        wait_until(lambda: states(stack) == {'RUNNING': 2, 'FAILED': 2})
        said = succeeds(stack.run('status.sh'),
                        'Stack {} in region {}: CREATE_COMPLETE'.format(stack.name, REGION))
        for name, value in stack.outputs().items():
            assert re.search(r'{} +{}\n'.format(name, re.escape(value)), said)
        minutes = re.search(r'worker: of unknown kind, pushed (\d+) min ago', said)[1]
        assert int(minutes) <= (time.time() - began + 1) / 60
        assert 'main: none yet (scripts/build.sh --main SCRIPT builds it)' in said
        in_progress, _, left = said.partition('Runs in progress\n')[2].partition('Left behind by dead runs\n')
        assert re.match(r'  {}  began \d+ min ago: jobs 1, queues 2, objects \d+ '.format(living_run),
                        in_progress)
        assert re.match(r'  {}  began \d+ min ago: jobs 0, queues 2, objects \d+ '.format(dead_run), left)
        assert dead_run not in in_progress and living_run not in left and '--clean' in left
        assert re.search(r'Jobs .*\n  RUNNING    2\n  FAILED     2\n', said), said

        said = succeeds(stack.run('status.sh', '--clean'), 'Removed what was left of ' + dead_run)
        assert 'Removed what was left of ' + living_run not in said
        assert not stack.objects('runs/{}/'.format(dead_run))
        assert {url.rpartition('/')[2] for url in stack.queues()} == {
            '{}_{}_{}'.format(stack.name, living_run, end) for end in ('in', 'out')}
        assert [name for name in stack.objects('runs/') if living_run not in name] == ['runs/notes.txt']
    finally:
        (tmp_path / 'living' / 'enough').touch()
        out, err = living.communicate(timeout=PATIENCE)
    assert (living.returncode, out) == (0, 'fine\n'), err
    assert not stack.queues()


def test_status_says_why_a_stack_failed():
    stack = Stack()
    stack.client('ecr').create_repository(repositoryName=stack.service + 'ecrmain')
    with pytest.raises(AssertionError):
        stack.create()
    succeeds(stack.run('status.sh'),
             'ROLLBACK_COMPLETE\n  Why: the first resource that failed was RepositoryMain')


def lease(stack, run, began, now, **numbers):
    """What a main script writes while it renews its lease."""
    stack.client('s3').put_object(
        Bucket=stack.outputs()['BatchBucket'], Key='runs/{}/lease'.format(run), Body=json.dumps(dict(
            {'host': 'laptop', 'pid': 1, 'seconds': 180, 'began': began, 'now': now, 'workers': 4,
             'workers_up': 3,
             'vcpus': 2}, **numbers)))


@pytest.mark.slow
def test_watching_shows_how_far_each_run_is(stack):
    """Of any computer that may read the bucket: the leases say it."""
    now = time.time()
    run_id = time.strftime('%Y%m%dT%H%M%S-0123abcd', time.gmtime(now - 7200))
    lease(stack, run_id, now - 7200, now, done=100, outstanding=300)
    process = subprocess.Popen([SCRIPTS / 'status.sh', '--watch'], env=stack.env, stdout=subprocess.PIPE,
                               text=True)
    try:
        said = ''.join(process.stdout.readline() for _ in range(3))
        assert re.search(r'{}  began 2 h 0 min ago\n    3 of 4 workers, 100 blocks done, 300 to do, '
                         r'0.014 blocks/s, \d h \d+ min left, about \$0.60 so far'.format(run_id), said), said
        lease(stack, run_id, now - 7200, now + 10, done=180,
              outstanding=220)       # 8 a second since the last look
        lines = iter(process.stdout.readline, '')       # it may have looked once more before
        said = next(line for line in lines if '100 blocks done' not in line and 'blocks done' in line)
        assert '180 blocks done, 220 to do, 8 blocks/s, 28 s left' in said, said
        stack.client('s3').delete_object(Bucket=stack.outputs()['BatchBucket'],
                                         Key='runs/{}/lease'.format(run_id))
        *_, header = itertools.takewhile(lambda line: line != '  none\n', lines)
        assert header.startswith('Runs on stack')
    finally:
        process.send_signal(signal.SIGINT)
        process.stdout.close()
    assert process.wait(PATIENCE) == 0


def test_status_says_what_an_image_has_and_that_it_is_of_the_wrong_kind(stack):
    ecr, repository = stack.client('ecr'), stack.outputs()['BatchECR']
    for tag in ('latest', 'arm64', 'versions--Python-3.6.1--rios_awsbatch-2.1.0--numpy-1.26.4'):
        ecr.put_image(repositoryName=repository, imageTag=tag, imageManifest=json.dumps(MANIFEST))
    succeeds(stack.run('status.sh'), r'worker: arm64, Python 3.6.1, rios_awsbatch 2.1.0, numpy 1.26.4, pushed \d min ago\n'
             '    but the stack.s computers run amd64')


# ---------------------------------------------------------------------------------------------
# The stack of RIOS 1.4
# ---------------------------------------------------------------------------------------------

def stack_template_of_rios_14():
    """batch.yaml of RIOS 1.4, where RIOS_SRC names a checkout of it."""
    for folder in filter(None, os.environ.get('RIOS_SRC', '').split(os.pathsep)):
        template = pathlib.Path(folder) / 'rios' / 'parallel' / 'aws' / 'templates' / 'batch.yaml'
        if template.exists():
            return template
    return None


@pytest.mark.skipif(not stack_template_of_rios_14(), reason='needs RIOS 1.4 in RIOS_SRC')
def test_stack_of_rios_14_goes_as_the_docs_say(tmp_path):
    with another_aws(tmp_path) as env:
        # moto wants ARNs of roles, and a retry strategy.
        text = stack_template_of_rios_14().read_text()
        text = text.replace('          Ref: IamInstanceProfile', '          !GetAtt IamInstanceProfile.Arn')
        text = text.replace('        Ref: BatchServiceRole', '        !GetAtt BatchServiceRole.Arn')
        template = tmp_path / 'batch.yaml'
        template.write_text(text.replace('      Type: container\n',
                                         '      Type: container\n      RetryStrategy: {Attempts: 1}\n'))
        old = Stack('RIOS', 'rios', env=env).create(template)
        old.client('s3').put_object(Bucket=old.outputs()['BatchBucket'], Key='block_0_0_in.pkl', Body=b'x')
        old.client('ecr').put_image(repositoryName='riosecr', imageTag='latest',
                                    imageManifest=json.dumps(MANIFEST))
        for script in ('create.sh', 'delete.sh', 'modify.sh'):
            refuses(old.run(script), "stack 'RIOS' .* was made by RIOS 1.4, so it is left alone. README.md")
        refuses(run('create.sh', '--stackname', 'mine', env=old.env),
                'perhaps that of RIOS 1.4, has the service name')
        commands = re.search('^    for name in riosecr .*?\n\n', (ROOT / 'docs' / 'rios.md').read_text(), re.M | re.S)
        done = subprocess.run(['bash', '-euc', commands.group()], text=True,
                              env=dict(old.env, AWS_DEFAULT_REGION=REGION), capture_output=True,
                              timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        succeeds(old.run('create.sh', '--wait'), 'is ready')
