"""
The promises of the scripts, of batch.yaml and of the local AWS, checked by making things happen.

Run with ``scripts/test.sh``, as test_rios_awsbatch.py is: inside ``scripts/local.sh``. The scripts are run as a user
runs them, on stacks of their own; tests that need faults or permissions start an AWS of their own beside it. Only
what is not on this machine has a stand-in, on the PATH or behind AWS_ENDPOINT_URL: Docker, and an AWS that refuses.
"""
import concurrent.futures
import contextlib
import http.server
import inspect
import itertools
import json
import os
import pathlib
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request

import boto3
import pytest
import yaml

import rios_awsbatch

ROOT = pathlib.Path(__file__).resolve().parent
SCRIPTS = ROOT / 'scripts'
REGION = rios_awsbatch.REGION
# Those a user runs against AWS, each with what it needs on its command line.
ON_AWS = ['create.sh', 'modify.sh', 'delete.sh', 'status.sh', 'build.sh', 'submit.sh']
# Seconds after which something hangs. On a machine that does much else at the same time, all is slow.
PATIENCE = 270
# Quick enough for a test; see test_rios_awsbatch.py.
QUICK = {'LEASE_SECONDS': 8, 'VISIBILITY_SECONDS': 2, 'WATCH_SECONDS': 1}


# ---------------------------------------------------------------------------------------------
# Running scripts
# ---------------------------------------------------------------------------------------------

def run(script, *args, env=(), input='', root=ROOT, path=None):
    """Run a script to its end: its exit status, standard output and standard error."""
    environment = {name: value for name, value in dict(os.environ, **dict(env)).items() if value is not None}
    if path:
        environment['PATH'] = '{}{}{}'.format(path, os.pathsep, os.environ['PATH'])
    return subprocess.run([str(root / 'scripts' / script), *map(str, args)], env=environment, input=input, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE)


def succeeds(done, said=''):
    """The script succeeded, without a complaint, and said so."""
    assert (done.returncode, done.stderr) == (0, ''), done.stdout + done.stderr
    assert re.search(said, done.stdout), done.stdout
    return done.stdout


def refuses(done, said):
    """The script failed with one sentence, which begins with its name."""
    script = pathlib.Path(done.args[0]).name
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith(script + ': ') and done.stderr.count('\n') == 1, done.stderr
    assert re.search(said, done.stderr), done.stderr
    return done.stderr


def wait_until(condition, seconds=120):
    """Wait for something that must become true; what it is then."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, 'waited {} s in vain'.format(seconds)
        time.sleep(0.1)


def copy_of_the_tree(folder):
    """What the scripts need, elsewhere, for a test that changes it or leaves something out."""
    folder.mkdir(parents=True)
    shutil.copytree(SCRIPTS, folder / 'scripts')
    for name in ('batch.yaml', 'rios_awsbatch.py', 'worker.py', 'Dockerfile'):
        shutil.copy(ROOT / name, folder)
    return folder


# ---------------------------------------------------------------------------------------------
# Stacks of a test's own
# ---------------------------------------------------------------------------------------------

class Stack:
    """A stack made from batch.yaml, as create.sh makes it, and how to look at it."""
    def __init__(self, name=None, service=None, region=REGION, env=os.environ, **parameters):
        self.name = name or 'T{:08x}'.format(random.getrandbits(32))
        self.service = service or self.name.lower().replace('-', '')
        self.session = boto3.Session(env['AWS_ACCESS_KEY_ID'], env['AWS_SECRET_ACCESS_KEY'], region_name=region)
        self.endpoint = env['AWS_ENDPOINT_URL']
        self.env = dict(env, RIOS_AWSBATCH_STACK=self.name, RIOS_AWSBATCH_REGION=region)
        self.given = dict(parameters, ServiceName=self.service)

    def client(self, service):
        return self.session.client(service, endpoint_url=self.endpoint)

    def create(self, template=ROOT / 'batch.yaml'):
        self.client('cloudformation').create_stack(
            StackName=self.name, TemplateBody=pathlib.Path(template).read_text(), Capabilities=['CAPABILITY_IAM'],
            Parameters=[{'ParameterKey': key, 'ParameterValue': str(value)} for key, value in self.given.items()])
        assert self.status() == 'CREATE_COMPLETE'
        return self

    def push(self, output, path):
        """Put an image whose entry point is a Python script into one of the two repositories."""
        subprocess.run([sys.executable, SCRIPTS / 'local_aws.py', 'push', output, path], env=self.env, check=True,
                       timeout=60)
        return self

    def describe(self):
        return self.client('cloudformation').describe_stacks(StackName=self.name)['Stacks'][0]

    def status(self):
        """CloudFormation's word; None where there is no such stack."""
        try:
            return self.describe()['StackStatus']
        except self.client('cloudformation').exceptions.ClientError as error:
            assert 'does not exist' in str(error)
            return None

    def parameters(self):
        return {item['ParameterKey']: item['ParameterValue'] for item in self.describe()['Parameters']}

    def outputs(self):
        return {item['OutputKey']: item['OutputValue'] for item in self.describe()['Outputs']}

    def queues(self):
        return self.client('sqs').list_queues(QueueNamePrefix=self.name + '_').get('QueueUrls', [])

    def objects(self, prefix=''):
        s3 = self.client('s3')
        pages = s3.get_paginator('list_objects_v2').paginate(Bucket=self.outputs()['BatchBucket'], Prefix=prefix)
        return [item['Key'] for page in pages for item in page.get('Contents', [])]

    def run(self, script, *args, env=(), **more):
        return run(script, *args, env={**self.env, **dict(env)}, **more)


@pytest.fixture
def stack():
    return Stack().create()


def foreign_stack():
    """A stack that something else has made, with a bucket in it."""
    other = Stack()
    other.client('cloudformation').create_stack(StackName=other.name, TemplateBody=json.dumps({
        'Description': 'The web site', 'Resources': {'Site': {'Type': 'AWS::S3::Bucket'}}}))
    return other


MAIN = '''
import os, sys, time
sys.path.insert(0, {root!r})
import rios_awsbatch
{quick}
'''


def write_main(folder, text):
    """A main script with the quick settings."""
    script = folder / 'main.py'
    script.write_text(MAIN.format(root=str(ROOT), quick='\n'.join(
        'rios_awsbatch.{} = {!r}'.format(*item) for item in QUICK.items())) + textwrap.dedent(text))
    return script


RUNS_LONG = '''
    def slow(x):
        time.sleep(1)
        return x
    executor = rios_awsbatch.AWSBatchExecutor(2)
    print(executor.run, flush=True)
    executor.wait_for_workers(2)
    executor.submit(slow, 0).result()
    print('going', flush=True)
    while not os.path.exists(sys.argv[1]):
        assert list(executor.map(slow, range(4))) == list(range(4))
    executor.shutdown()
    print('fine', flush=True)
'''


def start_long_run(folder, env, lease=QUICK['LEASE_SECONDS']):
    """A main script with two workers that runs until the file `enough` is there; (process, run id)."""
    folder.mkdir(exist_ok=True)
    script = write_main(folder, '    rios_awsbatch.LEASE_SECONDS = {}\n'.format(lease) + RUNS_LONG)
    process = subprocess.Popen([sys.executable, script, folder / 'enough'], env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    name = process.stdout.readline().strip()
    if process.stdout.readline() != 'going\n':
        pytest.fail(process.communicate()[1])
    return process, name


def pids(stack, name):
    """Process ids of the workers of a run."""
    with urllib.request.urlopen(stack.endpoint + '/_local/jobs', timeout=30) as answer:
        jobs = json.load(answer)['jobs']
    described = [(job, stack.client('batch').describe_jobs(jobs=[job['jobId']])['jobs']) for job in jobs]
    return [job['pid'] for job, found in described if found and name in found[0]['jobName']]


# ---------------------------------------------------------------------------------------------
# Every script
# ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('script', sorted(path.name for path in SCRIPTS.glob('*.sh') if os.access(path, os.X_OK)))
def test_help_is_the_header(script):
    done = run(script, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    header = [line[2:] for line in itertools.takewhile(
        lambda line: line.startswith('#'), (SCRIPTS / script).read_text().split('\n')[1:])]
    assert done.stdout.split('\n')[:-1] == header
    assert 'scripts/' + script in done.stdout


@pytest.mark.parametrize('script', ON_AWS)
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
    ('create.sh', ['--stackname', 'my stack'], "'my stack' cannot be a stack name"),
    ('modify.sh', ['--servicename', 'other'], 'keeps its service name'),
    ('submit.sh', ['--name', 'a b'], "'a b' cannot be the name of a job")])
def test_bad_values_are_refused_before_aws_is_asked(script, args, said):
    refuses(run(script, *args, env={'AWS_ENDPOINT_URL': 'http://127.0.0.1:9', 'AWS_MAX_ATTEMPTS': '1'}), said)


@pytest.fixture
def docker(tmp_path):
    """A stand-in for Docker on the PATH; what it was asked, as (words, input, files of the build)."""
    return StandIn(tmp_path / 'bin', 'docker')


class StandIn:
    """
    A command that does nothing but write down how it was called.

    `fails` maps its first words to what it says while it fails, `says` to what it prints.
    """
    TEXT = '''import json, os, sys
settings = json.load(open({settings!r}))
words = sys.argv[1:]
call = {{'words': words, 'input': '', 'files': {{}}}}
if words[0] == 'login':
    call['input'] = sys.stdin.read()
if words[0] == 'build':
    for base, _, names in os.walk(words[-1]):
        for name in names:
            path = os.path.join(base, name)
            call['files'][os.path.relpath(path, words[-1])] = os.stat(path).st_mode & 0o777
    call['dockerfile'] = open(words[words.index('--file') + 1]).read()
with open({calls!r}, 'a') as calls:
    calls.write(json.dumps(call) + '\\n')
if words[0] in settings['fails']:
    sys.exit(settings['fails'][words[0]])
print(settings['says'].get(words[0], ''))
'''

    def __init__(self, folder, name, fails=(), says=()):
        folder.mkdir(exist_ok=True)
        self.path, self.log, self.settings = folder, folder / 'calls', folder / 'settings'
        script = folder / (name + '.py')
        script.write_text(self.TEXT.format(settings=str(self.settings), calls=str(self.log)))
        (folder / name).write_text('#!/bin/sh\nexec "{}" -S "{}" "$@"\n'.format(sys.executable, script))
        (folder / name).chmod(0o755)
        self.set(fails, says)

    def set(self, fails=(), says=()):
        self.settings.write_text(json.dumps({'fails': dict(fails), 'says': dict(says)}))

    def calls(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def verbs(self):
        return [call['words'][0] for call in self.calls()]


# ---------------------------------------------------------------------------------------------
# As a new user
# ---------------------------------------------------------------------------------------------

class Refuser(http.server.BaseHTTPRequestHandler):
    """An AWS that answers every request with one error, as CloudFormation writes it."""
    def do_POST(self):
        self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.server.asked += 1
        body = ('<ErrorResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"><Error><Type>Sender</Type>'
                '<Code>{}</Code><Message>{}</Message></Error><RequestId>1</RequestId></ErrorResponse>').format(
                    *self.server.error[1:]).encode()
        self.send_response(self.server.error[0])
        self.send_header('Content-Type', 'text/xml')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def refusing_aws(status, code, message):
    """Its AWS_ENDPOINT_URL and how often it was asked."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Refuser)
    server.error, server.asked = (status, code, message), 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, {'AWS_ENDPOINT_URL': 'http://127.0.0.1:{}'.format(server.server_port), 'AWS_MAX_ATTEMPTS': '1'}
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize('script', ON_AWS)
def test_expired_login_is_one_sentence(script, docker):
    with refusing_aws(403, 'ExpiredToken', 'The security token included in the request is expired') as (server, env):
        args = ['--yes'] if script == 'delete.sh' else []
        refuses(run(script, *args, env=env, path=docker.path), "login has expired. Log in again.*'aws sso login'")
        assert server.asked == 1
    assert set(docker.verbs()) <= {'info'}


@pytest.mark.parametrize('status, code, message, said', [
    (403, 'InvalidClientTokenId', 'The security token included in the request is invalid.',
     'does not accept your credentials in region'),
    (403, 'SignatureDoesNotMatch', 'Signature expired: 20260101T000000Z is now earlier than ...',
     'clock of this computer is wrong'),
    (403, 'AccessDenied', 'User: arn:aws:iam::1:user/me is not authorized to perform: cloudformation:DescribeStacks on '
     'resource: x because no identity-based policy allows it', 'lacks a permission.*cloudformation:DescribeStacks'),
    (400, 'Throttling', 'Rate exceeded', 'fewer requests just now')])
def test_refusal_of_aws_is_one_sentence(status, code, message, said):
    with refusing_aws(status, code, message) as (_, env):
        refuses(run('status.sh', env=env), said)


NO_CREDENTIALS = {'AWS_ACCESS_KEY_ID': None, 'AWS_SECRET_ACCESS_KEY': None}


@pytest.mark.parametrize('env, said', [
    (NO_CREDENTIALS, "no AWS credentials were found. Run 'aws configure'"),
    (dict(NO_CREDENTIALS, AWS_PROFILE='nosuch'), 'AWS_PROFILE names a profile that'),
    ({'RIOS_AWSBATCH_REGION': 'Sydney'}, "'Sydney' is not the name of an AWS region"),
    ({'RIOS_AWSBATCH_REGION': 'ap-southwest-9', 'AWS_ENDPOINT_URL': 'http://127.0.0.1:9', 'AWS_MAX_ATTEMPTS': '1'},
     "cannot be reached in region 'ap-southwest-9'"),
    ({'RIOS_AWSBATCH_REGION': 'us-east-1'}, "no stack 'RIOS' in region us-east-1.*RIOS_AWSBATCH_REGION.*create.sh")])
def test_wrong_settings_are_one_sentence(env, said):
    refuses(run('submit.sh', env=dict(env, RIOS_AWSBATCH_STACK='RIOS')), said)


@pytest.mark.parametrize('script', ON_AWS)
def test_missing_command_line_says_how_to_get_it(script, tmp_path, docker):
    tree = copy_of_the_tree(tmp_path / 'tree')
    tools = tmp_path / 'tools'
    tools.mkdir()
    for name in ('bash', 'env', 'awk', 'sed', 'grep', 'cat', 'mktemp', 'rm', 'basename', 'dirname', 'tail', 'cut', 'tr'):
        (tools / name).symlink_to(shutil.which(name))
    args = ['--yes'] if script == 'delete.sh' else []
    refuses(run(script, *args, root=tree, env={'PATH': '{}:{}'.format(tools, docker.path)}),
            "AWS command line is not installed. Run 'pip install awscli'")


@pytest.mark.parametrize('fails, said', [
    (None, "'no-such-docker' is not installed. Install Docker"),
    ('ERROR: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?',
     'installed but not running. Start it'),
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
    refuses(other.run(script, *args, path=docker.path), 'was not made by create.sh, so it is left alone. Choose another')
    assert other.describe() == before
    assert set(docker.verbs()) <= {'info'}


@pytest.mark.parametrize('script', ['modify.sh', 'status.sh', 'build.sh', 'submit.sh'])
def test_missing_stack_is_one_sentence(script, docker):
    refuses(run(script, '--stackname', 'NoSuch', path=docker.path),
            "no stack 'NoSuch' in region .*RIOS_AWSBATCH_STACK.*scripts/create.sh")
    assert set(docker.verbs()) <= {'info'}


def test_deleting_a_missing_stack_succeeds():
    succeeds(run('delete.sh', '--stackname', 'NoSuch'), "no stack 'NoSuch' .*nothing to delete")


@pytest.mark.parametrize('status, script, said', [
    ('CREATE_IN_PROGRESS', 'submit.sh', 'still being created'),
    ('DELETE_IN_PROGRESS', 'create.sh', 'is being deleted'),
    ('ROLLBACK_COMPLETE', 'create.sh', 'Remove it with scripts/delete.sh'),
    ('ROLLBACK_COMPLETE', 'submit.sh', 'not usable .it is in state ROLLBACK_COMPLETE'),
    ('UPDATE_IN_PROGRESS', 'modify.sh', 'just being changed')])
def test_stack_in_an_odd_state_is_one_sentence(status, script, said, stack):
    urllib.request.urlopen(stack.endpoint + '/_local/stack', json.dumps(
        {'region': REGION, 'name': stack.name, 'status': status}).encode(), timeout=30).close()
    refuses(stack.run(script), said)
    assert stack.status() == status


# ---------------------------------------------------------------------------------------------
# create.sh and modify.sh
# ---------------------------------------------------------------------------------------------

# What design.md promises to users of the stack.
OUTPUTS = {
    'BatchBucket', 'BatchProcessingJobQueueName', 'BatchProcessingJobQueueArn', 'BatchProcessingJobDefinitionName',
    'BatchProcessingJobDefinitionArn', 'BatchProcessingJobDefinitionMainName', 'BatchProcessingJobDefinitionMainArn',
    'BatchECR', 'BatchECRMain', 'BatchMaxJobs', 'BatchVCPUS', 'BatchMaxVCPUS', 'ComputeEnvironmentArn', 'VPC'}


def test_options_of_create_reach_the_stack():
    stack = Stack()
    done = stack.run(
        'create.sh', '--servicename', stack.service, '--vcpus', 2, '--mem', 3000, '--maxjobs', 7, '--spot', '--volume', 50,
        '--instancetype', 'c7g,m7g', '--az', REGION + 'c', '--az', REGION + 'a', '--mainvcpus', 3, '--mainmem', 5000,
        '--readbucket', 'scenes', '--readbucket', 'masks', '--writebucket', 'results', '--timeout', 7200,
        '--idletimeout', 60, '--logdays', 7, '--tag', 'My project', '--wait')
    succeeds(done, "Stack '{}' is ready .*scripts/build.sh".format(stack.name))
    assert stack.status() == 'CREATE_COMPLETE'
    outputs = stack.outputs()
    assert OUTPUTS <= set(outputs) and all(outputs.values())
    assert (outputs['BatchMaxJobs'], outputs['BatchVCPUS'], outputs['BatchMaxVCPUS']) == ('7', '2', '14')
    assert outputs['BatchProcessingJobQueueName'] == stack.service + 'JobQueue'
    batch = stack.client('batch')
    computers = batch.describe_compute_environments(
        computeEnvironments=[outputs['ComputeEnvironmentArn']])['computeEnvironments'][0]['computeResources']
    assert int(computers['maxvCpus']) == 7 * 2 + 3      # a main script that runs as a job takes no worker's place
    assert (computers['type'], computers['instanceTypes']) == ('SPOT', ['c7g', 'm7g'])
    assert int(computers['minvCpus']) == 0
    subnets = stack.client('ec2').describe_subnets(SubnetIds=computers['subnets'])['Subnets']
    assert sorted(subnet['AvailabilityZone'] for subnet in subnets) == [REGION + 'a', REGION + 'c']
    worker, main = (batch.describe_job_definitions(jobDefinitionName=outputs[name], status='ACTIVE')['jobDefinitions'][0]
                    for name in ('BatchProcessingJobDefinitionName', 'BatchProcessingJobDefinitionMainName'))
    assert needs(worker) == {'VCPU': '2', 'MEMORY': '3000'} and needs(main) == {'VCPU': '3', 'MEMORY': '5000'}
    assert worker['timeout'] == {'attemptDurationSeconds': 7200}
    assert {'name': 'RIOS_NOMSG_TIMEOUT', 'value': '60'} in worker['containerProperties']['environment']
    assert {'name': 'RIOS_AWSBATCH_STACK', 'value': stack.name} in main['containerProperties']['environment']
    assert {'name': 'RIOS_AWSBATCH_REGION', 'value': REGION} in main['containerProperties']['environment']
    found = stack.parameters()
    assert found['ReadBuckets'] == 'arn:aws:s3:::scenes,arn:aws:s3:::masks'
    assert found['WriteBuckets'] == 'arn:aws:s3:::results'
    assert (found['VolumeSize'], found['LogRetention'], found['Tag']) == ('50', '7', 'My project')
    assert outputs['BatchTag'] == 'My project'
    # And the same name again.
    refuses(stack.run('create.sh'), "stack '{}' exists already .*modify.sh.*delete.sh.*--stackname".format(stack.name))


def needs(definition):
    return {item['type']: item['value'] for item in definition['containerProperties']['resourceRequirements']}


@pytest.mark.parametrize('region', ['us-east-1', 'us-west-1'])
def test_create_without_options_makes_the_default_stack_in_all_zones(region):
    """In a region with six zones, and in one with two; without waiting for it."""
    stack = Stack(region=region)
    succeeds(stack.run('create.sh', '--servicename', stack.service),
             "'{}' is being created in region {}".format(stack.name, region))
    wait_until(lambda: stack.status() == 'CREATE_COMPLETE')
    template, outputs, ec2 = load_template(), stack.outputs(), stack.client('ec2')
    assert OUTPUTS <= set(template['Outputs']) == set(outputs)
    zones = [zone['ZoneName'] for zone in ec2.describe_availability_zones()['AvailabilityZones']]
    subnets = ec2.describe_subnets(Filters=[{'Name': 'vpc-id', 'Values': [outputs['VPC']]}])['Subnets']
    assert sorted(subnet['AvailabilityZone'] for subnet in subnets) == sorted(zones)
    assert len({subnet['CidrBlock'] for subnet in subnets}) == len(zones) == {'us-east-1': 6, 'us-west-1': 2}[region]
    for name, value in stack.parameters().items():
        if name not in ('ServiceName', 'AvailabilityZones'):
            assert value == str(template['Parameters'][name]['Default']), name


def test_create_names_the_first_resource_that_fails_and_leaves_nothing():
    stack = Stack()
    stack.client('ecr').create_repository(repositoryName=stack.service + 'ecrmain')
    done = stack.run('create.sh', '--servicename', stack.service, '--wait')
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert re.search('could not create stack .*first resource that failed was RepositoryMain .AWS::ECR::Repository.*exist',
                     done.stderr), done.stderr
    assert 'RequestToken' not in done.stderr
    assert stack.status() in (None, 'ROLLBACK_COMPLETE')
    names = [item['repositoryName'] for item in stack.client('ecr').describe_repositories()['repositories']]
    assert stack.service + 'ecr' not in names and stack.service + 'ecrmain' in names
    assert not [vpc for vpc in stack.client('ec2').describe_vpcs()['Vpcs']
                if {'Key': 'Name', 'Value': stack.name} in vpc.get('Tags', [])]


def test_create_refuses_a_service_name_that_is_taken(stack):
    other = Stack(service=stack.service)
    refuses(other.run('create.sh', '--servicename', other.service, '--wait'),
            "has the service name '{}'.*--servicename".format(stack.service))
    assert other.status() is None


def test_modify_changes_what_is_given_and_nothing_else():
    stack = Stack(MaxJobs=7, VCPUS=2, MaxVCPUS=14, ComputeVCPUS=15, Tag='mine', Spot='yes',
                  ReadBuckets='arn:aws:s3:::scenes').create()
    before, outputs = stack.parameters(), stack.outputs()
    succeeds(stack.run('modify.sh', '--mem', 3000, '--maxjobs', 9, '--ondemand', '--readbucket', 'none', '--wait'),
             "'{}' is changed".format(stack.name))
    expected = dict(before, Memory='3000', MaxJobs='9', MaxVCPUS='18', ComputeVCPUS='19', Spot='no', ReadBuckets='')
    assert stack.parameters() == expected
    after = stack.outputs()
    assert {name for name in outputs if outputs[name] != after[name]} <= {
        'BatchProcessingJobDefinitionArn', 'BatchMaxJobs', 'BatchMaxVCPUS'}
    definition = stack.client('batch').describe_job_definitions(
        jobDefinitionName=after['BatchProcessingJobDefinitionName'], status='ACTIVE')['jobDefinitions']
    assert [needs(each) for each in definition] == [{'VCPU': '2', 'MEMORY': '3000'}]
    # vCPUs in all are a product: each factor alone changes it.
    succeeds(stack.run('modify.sh', '--vcpus', 4, '--mainvcpus', 2))
    assert stack.parameters() == dict(expected, VCPUS='4', MaxVCPUS='36', ComputeVCPUS='38', MainVCPUS='2')
    assert stack.outputs()['BatchMaxVCPUS'] == '36'


def test_modify_with_nothing_to_change_says_so_and_succeeds(stack):
    succeeds(stack.run('modify.sh', '--vcpus', 1, '--wait'), "nothing to change in stack '{}'".format(stack.name))


def test_modify_brings_an_older_stack_up_to_date(tmp_path, stack):
    """The stack was made before batch.yaml had one of its parameters and outputs."""
    older = tmp_path / 'batch.yaml'
    text = (ROOT / 'batch.yaml').read_text()
    text = re.sub(r'  BatchMainPolicyArn:\n(    .*\n)+', '', text)
    text = re.sub(r'\n  LogRetention:\n(    .*\n)+', '\n', text, count=1)
    text = text.replace('!Ref LogRetention', '30').replace(', LogRetention]', ']')
    text = re.sub(r'      LogRetention: .*\n', '', text)
    older.write_text(text)
    stack = Stack(MaxJobs=4, MaxVCPUS=4, ComputeVCPUS=5).create(older)
    assert 'LogRetention' not in stack.parameters() and 'BatchMainPolicyArn' not in stack.outputs()
    succeeds(stack.run('modify.sh', '--wait'), 'is changed')
    assert stack.parameters()['MaxJobs'] == '4' and stack.parameters()['LogRetention'] == '30'
    assert stack.outputs()['BatchMainPolicyArn']


def test_modify_that_fails_says_why_and_keeps_the_stack_as_it_was(tmp_path, stack):
    tree = copy_of_the_tree(tmp_path / 'tree')
    stack.client('ecr').create_repository(repositoryName=stack.service + 'taken')
    another = '\n  Another:\n    Type: AWS::ECR::Repository\n    Properties: {RepositoryName: %staken}\n' % stack.service
    text = (tree / 'batch.yaml').read_text()
    (tree / 'batch.yaml').write_text(text.replace('\nOutputs:\n', another + '\nOutputs:\n'))
    before = stack.parameters()
    done = stack.run('modify.sh', '--maxjobs', 3, '--wait', root=tree)
    assert done.returncode == 1
    assert re.search('could not update stack .*first resource that failed was Another', done.stderr), done.stderr
    assert stack.status() == 'UPDATE_ROLLBACK_COMPLETE'
    assert stack.parameters() == before and stack.outputs()['BatchMaxJobs'] == '10'


# ---------------------------------------------------------------------------------------------
# delete.sh
# ---------------------------------------------------------------------------------------------

def answer_on_a_terminal(stack, script, answer):
    """Run a script on a terminal and answer its question; (exit status, all it said)."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen([SCRIPTS / script, '--wait'], env=stack.env, stdin=theirs, stdout=subprocess.PIPE,
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


MANIFEST = {'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json', 'layers': []}


def fill(stack, count):
    """Put into a stack all that delete.sh has to take away."""
    outputs, s3, sqs, ecr = stack.outputs(), stack.client('s3'), stack.client('sqs'), stack.client('ecr')
    bucket = outputs['BatchBucket']
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={'Status': 'Enabled'})
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: s3.put_object(Bucket=bucket, Key='runs/x/{} "é"'.format(n), Body=b'x'), range(count)))
    s3.put_object(Bucket=bucket, Key='mine', Body=b'1')
    s3.put_object(Bucket=bucket, Key='mine', Body=b'2')
    s3.delete_object(Bucket=bucket, Key='mine')
    for end in ('in', 'out'):
        sqs.create_queue(QueueName='{}_20260101T000000-0123abcd_{}'.format(stack.name, end))
    sqs.create_queue(QueueName=stack.name + '_mine')
    for n in range(count // 10):
        ecr.put_image(repositoryName=outputs['BatchECR'], imageTag='v{}'.format(n), imageManifest=json.dumps(
            dict(MANIFEST, config={'digest': 'sha256:{:064x}'.format(n)})))
    ecr.put_image(repositoryName=outputs['BatchECRMain'], imageTag='latest', imageManifest=json.dumps(MANIFEST))


def test_delete_takes_all_of_a_stack_and_nothing_of_another(tmp_path):
    """Jobs that run, queues of runs, versions, images, an attached policy; beside it a stack whose name begins alike."""
    stack = Stack().create().push('BatchECR', ROOT / 'worker.py')
    other = Stack(stack.name + '-2').create()
    fill(stack, 1010)       # more than AWS lists in one answer
    fill(other, 10)
    iam, user = stack.client('iam'), 'user-of-' + stack.name
    iam.create_user(UserName=user)
    iam.attach_user_policy(UserName=user, PolicyArn=stack.outputs()['BatchMainPolicyArn'])
    iam.attach_user_policy(UserName=user, PolicyArn=other.outputs()['BatchMainPolicyArn'])
    process, name = start_long_run(tmp_path, stack.env)
    workers, bucket = pids(stack, name), stack.outputs()['BatchBucket']
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
    assert [item['PolicyArn'] for item in iam.list_attached_user_policies(UserName=user)['AttachedPolicies']] == [
        other.outputs()['BatchMainPolicyArn']]


# ---------------------------------------------------------------------------------------------
# status.sh
# ---------------------------------------------------------------------------------------------

def test_status_tells_living_runs_from_dead_ones_and_cleans_up_after_the_dead(tmp_path):
    stack = Stack().create().push('BatchECR', ROOT / 'worker.py')
    dead, dead_run = start_long_run(tmp_path / 'dead', stack.env)
    living, living_run = start_long_run(tmp_path / 'living', stack.env, 60)
    dead.kill()
    dead.communicate()
    s3, bucket = stack.client('s3'), stack.outputs()['BatchBucket']
    s3.put_object(Bucket=bucket, Key='runs/notes.txt', Body=b'not of a run')
    try:
        wait_until(lambda: not pids(stack, dead_run))
        renewed = s3.head_object(Bucket=bucket, Key='runs/{}/lease'.format(dead_run))['LastModified'].timestamp()
        wait_until(lambda: time.time() > renewed + 1.5 * QUICK['LEASE_SECONDS'] + 1)
        said = succeeds(stack.run('status.sh'), 'Stack {} in region {}: CREATE_COMPLETE'.format(stack.name, REGION))
        for name, value in stack.outputs().items():
            assert re.search(r'{} +{}\n'.format(name, re.escape(value)), said)
        in_progress, _, left = said.partition('Runs in progress\n')[2].partition('Left behind by dead runs\n')
        assert re.match(r'  {}  began \d+ min ago: jobs 1, queues 2, objects \d+ '.format(living_run), in_progress)
        assert re.match(r'  {}  began \d+ min ago: jobs 0, queues 2, objects \d+ '.format(dead_run), left)
        assert dead_run not in in_progress and living_run not in left and '--clean' in left
        assert re.search(r'Jobs on .*\n  RUNNING    2\n  FAILED     2\n', said), said

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
    succeeds(stack.run('status.sh'), 'ROLLBACK_COMPLETE\n  Why: the first resource that failed was RepositoryMain')


# ---------------------------------------------------------------------------------------------
# build.sh
# ---------------------------------------------------------------------------------------------

def argument(call, name):
    """The values that an option of `docker build` was given."""
    return [value for option, value in zip(call['words'], call['words'][1:]) if option == name]


def test_build_logs_in_builds_and_pushes_what_the_job_definition_names(docker, stack):
    docker.set(says={'run': '{}.{}'.format(*sys.version_info)})
    done = stack.run('build.sh', '--platform', 'linux/arm64', path=docker.path, env={
        'EXTRA_PACKAGES': 'python3-scipy gdal-bin', 'PIP_PACKAGES': 'odc-stac>=0.3', 'RIOS_VERSION': '2.0.6',
        'BASE_IMAGE': 'debian:12', 'PYTHON': sys.executable})
    image = stack.client('batch').describe_job_definitions(
        jobDefinitionName=stack.outputs()['BatchProcessingJobDefinitionName'])['jobDefinitions'][0][
            'containerProperties']['image']
    succeeds(done, 'Done: ' + image)
    assert docker.verbs() == ['info', 'login', 'build', 'push', 'run']
    _, login, build, push, _ = docker.calls()
    assert login['words'] == ['login', '--username', 'AWS', '--password-stdin', image.partition('/')[0]]
    assert len(login['input'].strip()) > 10
    assert build['words'][:5] == ['build', '--platform', 'linux/arm64', '--tag', image]
    assert argument(build, '--file') == [str(ROOT / 'Dockerfile')]
    arguments = dict(item.split('=', 1) for item in argument(build, '--build-arg'))
    assert arguments == {'BASE_IMAGE': 'debian:12', 'VERSION': rios_awsbatch.__version__, 'RIOS_VERSION': '2.0.6',
                         'EXTRA_PACKAGES': 'python3-scipy gdal-bin', 'PIP_PACKAGES': 'odc-stac>=0.3'}
    assert set(build['files']) == {'rios_awsbatch.py', 'worker.py'}
    assert push['words'] == ['push', image]
    for name in re.findall(r'^ARG (\w+)', build['dockerfile'], re.MULTILINE):
        assert name in arguments


def test_build_main_stands_on_the_worker_image(docker, stack, tmp_path):
    script, module, data = tmp_path / 'ndvi.py', tmp_path / 'mine', tmp_path / 'sites.csv'
    script.write_text('import mine')
    script.chmod(0o600)
    module.mkdir()
    (module / '__init__.py').touch()
    (module / '__pycache__').mkdir()
    (module / '__pycache__' / 'x.pyc').touch()
    data.touch()
    done = stack.run('build.sh', '--main', script, module, data, path=docker.path)
    images = [stack.client('batch').describe_job_definitions(jobDefinitionName=stack.outputs()[name])[
        'jobDefinitions'][0]['containerProperties']['image'] for name in (
            'BatchProcessingJobDefinitionName', 'BatchProcessingJobDefinitionMainName')]
    succeeds(done, 'Done: ' + images[1])
    build = docker.calls()[docker.verbs().index('build')]
    assert argument(build, '--tag') == [images[1]]
    assert build['files'].keys() == {'ndvi.py', 'mine/__init__.py', 'sites.csv'}
    assert all(mode & 0o044 == 0o044 for mode in build['files'].values())       # for the image's user
    assert build['dockerfile'].splitlines() == [
        'FROM ' + images[0], 'COPY . /opt/main/', 'ENTRYPOINT ["python3", "/opt/main/ndvi.py"]']
    assert docker.calls()[-1]['words'] == ['push', images[1]]
    assert not list(pathlib.Path(build['words'][-1]).parent.glob('*'))          # its temporary folder is gone


def test_build_main_needs_the_worker_image_first(docker, stack, tmp_path):
    script = tmp_path / 'main.py'
    script.touch()
    docker.set(fails={'inspect': 'No such image'})
    done = stack.run('build.sh', '--main', script, path=docker.path)
    assert done.returncode == 1
    assert re.search('no worker image .* yet. Build it first', done.stderr), done.stderr
    assert 'build' not in docker.verbs()


def test_build_without_push_needs_no_aws(docker):
    env = {'AWS_ENDPOINT_URL': 'http://127.0.0.1:9', 'DOCKER': 'docker --context here', 'RIOS_VERSION': 'none'}
    docker.set(says={'--context': ''})
    succeeds(run('build.sh', '--no-push', env=env, path=docker.path), 'Done: rios_awsbatch:latest')
    calls = [call['words'] for call in docker.calls()]
    assert all(words[:2] == ['--context', 'here'] for words in calls)
    assert [words[2] for words in calls] == ['info', 'build', 'run']
    assert 'RIOS_VERSION=' in calls[1]


@pytest.mark.parametrize('engine', ['podman', 'buildah'])
def test_build_works_with_other_engines(engine, tmp_path):
    stand_in = StandIn(tmp_path / 'bin', engine, says={'from': 'working-container'})
    succeeds(run('build.sh', '--no-push', env={'DOCKER': engine, 'RIOS_VERSION': 'none'}, path=stand_in.path))
    assert stand_in.verbs()[:2] == ['info', 'build']


def test_build_takes_the_rios_that_the_user_has(docker, tmp_path):
    package = tmp_path / 'site' / 'rios'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text("__version__ = '1.4.17'\n")
    (package / 'applier.py').touch()
    env = {'PYTHONPATH': str(package.parent), 'RIOS_VERSION': None, 'PYTHON': sys.executable}
    succeeds(run('build.sh', '--no-push', env=env, path=docker.path), 'RIOS in the image: 1.4.17, a copy of ' + str(package))
    build = docker.calls()[1]
    assert {'rios/__init__.py', 'rios/applier.py'} <= set(build['files'])
    assert 'RIOS_VERSION=' in build['words']


def test_build_warns_of_another_python_in_the_image(docker):
    docker.set(says={'run': '3.6'})
    done = run('build.sh', '--no-push', path=docker.path, env={'PYTHON': sys.executable, 'RIOS_VERSION': 'none'})
    assert done.returncode == 0
    assert re.search(r'the image has Python 3.6, but .* is Python 3.*BASE_IMAGE=', done.stderr), done.stderr


@pytest.mark.parametrize('step, said', [
    ('login', 'could not log in to'), ('build', 'could not be built.*EXTRA_PACKAGES'), ('push', 'could not push')])
def test_build_that_fails_says_at_what(step, said, docker, stack):
    docker.set(fails={step: 'denied: something of Docker'})
    done = stack.run('build.sh', path=docker.path, env={'RIOS_VERSION': 'none'})
    assert done.returncode == 1
    assert 'denied: something of Docker' in done.stderr
    assert re.search(said, done.stderr.splitlines()[-1]), done.stderr
    assert docker.verbs()[-1] == step


@pytest.mark.parametrize('args, said', [
    (['--main', 'nosuch.py'], "no main script 'nosuch.py'"), (['nosuch'], "no file 'nosuch'"),
    (['worker.py'], 'holds a worker.py already')])
def test_build_checks_its_files_first(args, said, docker, monkeypatch):
    monkeypatch.chdir(ROOT)
    refuses(run('build.sh', *args, path=docker.path), said)
    assert docker.verbs() == []


# ---------------------------------------------------------------------------------------------
# submit.sh
# ---------------------------------------------------------------------------------------------

AS_A_JOB = '''
    print('arguments', sys.argv[1:], flush=True)
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        results = list(executor.map(pow, range(20), [2] * 20, buffersize=4))
    print('squares', results == [x * x for x in range(20)], flush=True)
    sys.exit(int(sys.argv[1]))
'''
ARGUMENTS = ['--scene', 'a "b" c', 'back\\slash', '$HOME', 'é', '']


def test_submit_runs_the_main_script_as_a_job_and_follows_it(tmp_path):
    stack = Stack().create().push('BatchECR', ROOT / 'worker.py').push('BatchECRMain', write_main(tmp_path, AS_A_JOB))
    done = stack.run('submit.sh', '--wait', '--name', 'my-job', '--', 7, *ARGUMENTS)
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert 'arguments {}'.format(['7'] + ARGUMENTS) in lines
    assert [line for line in lines if line.startswith('squares')] == ['squares True']
    assert 'Submitted job my-job' in done.stderr
    assert ' FAILED\n' in done.stderr
    wait_until(lambda: not stack.queues() and not stack.objects('runs/'))


def test_submit_without_waiting_says_the_job_id(tmp_path):
    stack = Stack().create().push('BatchECRMain', write_main(tmp_path, "print('hello')"))
    done = stack.run('submit.sh')
    assert done.returncode == 0 and 'Submitted job' in done.stderr
    assert re.fullmatch(r'[0-9a-f-]{36}\n', done.stdout)
    batch, job = stack.client('batch'), done.stdout.strip()
    wait_until(lambda: batch.describe_jobs(jobs=[job])['jobs'][0]['status'] == 'SUCCEEDED')


def test_submit_without_a_main_image_says_what_to_do(stack):
    done = stack.run('submit.sh', '--wait')
    assert done.returncode == 1
    assert 'CannotPullContainer' in done.stderr
    assert 'scripts/build.sh --main' in done.stderr.splitlines()[-1]


# ---------------------------------------------------------------------------------------------
# local.sh
# ---------------------------------------------------------------------------------------------

def processes_with(text):
    """Processes whose command line or environment holds the text, but this one."""
    found = []
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if folder.name != str(os.getpid()) and text.encode() in (
                    (folder / 'cmdline').read_bytes() + b'\0' + (folder / 'environ').read_bytes()):
                found.append((folder.name, (folder / 'cmdline').read_bytes()))
    return found


class Local:
    """Runs scripts/local.sh with a folder of its own for temporary files."""
    def __init__(self, folder, root=ROOT, **env):
        self.temporary = folder / 'temporary files'
        self.temporary.mkdir()
        self.root = root
        hidden = {name for name in os.environ if name.startswith(('AWS_', 'RIOS_AWSBATCH_'))}
        self.env = {name: value for name, value in os.environ.items() if name not in hidden}
        self.env.update(env, TMPDIR=str(self.temporary), RIOS_AWSBATCH_REGION=REGION)

    def start(self, *command, **options):
        return subprocess.Popen([self.root / 'scripts' / 'local.sh', *map(str, command)], env=self.env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def assert_nothing_left(self, endpoint=None):
        """No process, no file, no listening port. The guardian of the jobs takes a moment longer than its server."""
        wait_until(lambda: not processes_with(str(self.temporary)), 60)
        assert list(self.temporary.iterdir()) == []
        if endpoint:
            host, port = endpoint.rpartition('/')[2].split(':')
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), timeout=5)


@pytest.mark.parametrize('command, status', [
    (['false'], 1), (['true'], 0), (['sh', '-c', 'exit 7'], 7), (['sh', '-c', 'kill -9 $$'], 137)])
def test_local_has_the_status_of_its_command_and_leaves_nothing(command, status, tmp_path):
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no')
    process = local.start(*command)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (status, '')
    assert err == '' or status == 137       # bash says by which signal its child ended
    local.assert_nothing_left()


def test_local_runs_a_main_script_in_a_folder_with_spaces(tmp_path):
    """A clone in such a folder: stack created, run, stack deleted, the script's own status."""
    tree = copy_of_the_tree(tmp_path / 'a folder')
    script = tree / 'main script.py'
    script.write_text(textwrap.dedent('''
        import os, sys
        import rios_awsbatch
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            print(list(executor.map(pow, range(5), [2] * 5)), rios_awsbatch.STACK_NAME, os.environ['AWS_ENDPOINT_URL'])
        sys.exit(7)
        '''))
    local = Local(tmp_path, tree, PYTHON=sys.executable)
    process = local.start(sys.executable, script)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (7, ''), err
    assert out.startswith('[0, 1, 4, 9, 16] RIOS http://127.0.0.1:')
    local.assert_nothing_left(out.split()[-1])


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_local_ends_its_command_and_all_else_on_a_signal(number, tmp_path):
    """In the middle of a run with two workers."""
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no')
    starter = tmp_path / 'starter.py'
    starter.write_text(textwrap.dedent('''
        import os, sys
        sys.path.insert(0, {!r})
        import test_scripts
        stack = test_scripts.Stack().create().push('BatchECR', test_scripts.ROOT / 'worker.py')
        print(os.environ['AWS_ENDPOINT_URL'], flush=True)
        os.execve(sys.executable, [sys.executable, sys.argv[1], sys.argv[2]], stack.env)
        ''').format(str(ROOT)))
    process = local.start(sys.executable, starter, write_main(tmp_path, RUNS_LONG), tmp_path / 'enough')
    endpoint = process.stdout.readline().strip()
    name = process.stdout.readline().strip()
    if process.stdout.readline() != 'going\n':
        pytest.fail(process.communicate()[1])
    assert re.fullmatch(r'\d{8}T\d{6}-[0-9a-f]{8}', name)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, err
    assert ('KeyboardInterrupt' in err) == (number == signal.SIGINT)
    local.assert_nothing_left(endpoint)


def test_local_that_is_killed_leaves_no_server_and_no_job(tmp_path):
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no')
    process = local.start('sh', '-c', 'echo $AWS_ENDPOINT_URL; exec sleep 60')
    endpoint = process.stdout.readline().strip()
    process.kill()
    process.wait()
    wait_until(lambda: not [each for each in processes_with(str(local.temporary)) if b'local_aws.py' in each[1]], 60)
    for pid, words in processes_with(str(local.temporary)):     # the command itself is not ours to end
        assert words.startswith(b'sleep\0')
        os.kill(int(pid), signal.SIGKILL)
    process.communicate()
    host, port = endpoint.rpartition('/')[2].split(':')
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_local_hides_a_real_account(tmp_path):
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no', AWS_PROFILE='real', AWS_SESSION_TOKEN='real',
                  AWS_ACCESS_KEY_ID='real', AWS_ENDPOINT_URL_S3='https://real.example.com')
    process = local.start('env')
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert 'real' not in ''.join(line for line in out.splitlines() if line.startswith('AWS_'))


# ---------------------------------------------------------------------------------------------
# Permissions
# ---------------------------------------------------------------------------------------------

@contextlib.contextmanager
def another_aws(folder):
    """A local AWS of its own, without a stack; the environment for its owner."""
    local = Local(folder, RIOS_AWSBATCH_LOCAL_STACK='no')
    process = local.start(sys.executable, '-c', 'import json, os, sys\nprint(json.dumps(dict(os.environ)), flush=True)\n'
                          'sys.stdin.read()', stdin=subprocess.PIPE)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()
        process.stderr.close()
    local.assert_nothing_left()


def tell(env, path, what=None):
    """Ask a local AWS something, or tell it something."""
    data = None if what is None else json.dumps(what).encode()
    with urllib.request.urlopen('{}/_local/{}'.format(env['AWS_ENDPOINT_URL'], path), data, timeout=30) as answer:
        return json.load(answer)


ALLOWED = '''
    import json, signal
    import numpy

    def who():
        import boto3
        return boto3.client('sts', region_name=rios_awsbatch.REGION).get_caller_identity()['Arn']

    def dies_once(x, marker):
        if x == 3 and not os.path.exists(marker):
            open(marker, 'w').close()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        return x

    def fails():
        print('about to go', flush=True)
        os._exit(3)

    image = numpy.arange(10**6)
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        for total, doubled in executor.map(lambda x: (x.sum(), x * 2), [image] * 6, buffersize=3):
            assert total == image.sum() and (doubled == 2 * image).all()
        assert list(executor.map(dies_once, range(12), [sys.argv[1]] * 12)) == list(range(12))
        worker = executor.submit(who).result()
    try:
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            executor.submit(fails).result()
    except rios_awsbatch.BrokenAWSBatchExecutor as error:
        broken = str(error)
    with open(sys.argv[2], 'w') as answer:
        json.dump({'main': who(), 'worker': worker, 'broken': broken}, answer)
'''


def user_with_main_policy(stack):
    """The environment of a user of AWS to whom exactly the policy for main scripts is attached; and the user's ARN."""
    iam, name = stack.client('iam'), 'scientist-' + stack.name
    arn = iam.create_user(UserName=name)['User']['Arn']
    iam.attach_user_policy(UserName=name, PolicyArn=stack.outputs()['BatchMainPolicyArn'])
    key = iam.create_access_key(UserName=name)['AccessKey']
    return dict(stack.env, AWS_ACCESS_KEY_ID=key['AccessKeyId'], AWS_SECRET_ACCESS_KEY=key['SecretAccessKey']), arn


def log_of(stack, job):
    events = stack.client('logs').get_log_events(logGroupName=stack.outputs()['BatchLogGroup'], startFromHead=True,
                                                 logStreamName=job['container']['logStreamName'])['events']
    return '\n'.join(event['message'] for event in events)


def test_permissions_suffice(tmp_path):
    """A user with the stack's policy, and the main job with its role, can do all that a run needs."""
    with another_aws(tmp_path) as env:
        script = write_main(tmp_path, ALLOWED)
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py').push('BatchECRMain', script)
        user, arn = user_with_main_policy(stack)
        tell(env, 'iam', {'enforced': True})
        names = [[str(tmp_path / (who + what)) for what in ('-killed', '-answer')] for who in ('user', 'job')]
        batch, outputs = stack.client('batch'), stack.outputs()
        job = batch.submit_job(
            jobName='main', jobQueue=outputs['BatchProcessingJobQueueName'], containerOverrides={'command': names[1]},
            jobDefinition=outputs['BatchProcessingJobDefinitionMainName'])['jobId']
        done = subprocess.run([sys.executable, script, *names[0]], env=user, capture_output=True, text=True,
                              timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        ended = wait_until(lambda: [each for each in batch.describe_jobs(jobs=[job])['jobs'] if each['status'] in (
            'SUCCEEDED', 'FAILED')])
        assert ended[0]['status'] == 'SUCCEEDED', log_of(stack, ended[0])
        for killed, answer in names:
            assert os.path.exists(killed)
            said = json.loads(pathlib.Path(answer).read_text())
            role = '/{}/'.format(outputs['BatchJobRoleArn'].rpartition('/')[2])
            assert ':assumed-role/' in said['worker'] and role in said['worker']
            assert said['main'] == arn or 'MainRole' in said['main']
            assert 'exit code 3' in said['broken'] and 'about to go' in said['broken']      # the tail of the log
        assert not stack.queues() and not stack.objects('runs/')
        # To look for an object that is gone counts as listing for those who may not list.
        assert [each for each in tell(env, 'iam')['denials'] if (each['action'], each['resource']) != (
            's3:ListBucket', 'arn:aws:s3:::' + outputs['BatchBucket'])] == []


FORBIDDEN = '''
    import json

{denied}

    requests = json.loads(sys.argv[1])
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        channel = executor._channel
        requests['worker'] += [
            ['sqs', 'receive_message', {{'QueueUrl': channel.out_queue}}],
            ['sqs', 'purge_queue', {{'QueueUrl': channel.in_queue}}],
            ['sqs', 'delete_queue', {{'QueueUrl': channel.in_queue}}],
            ['s3', 'delete_object', {{'Bucket': channel.bucket, 'Key': channel.folder + 'lease'}}],
            ['s3', 'list_objects_v2', {{'Bucket': channel.bucket, 'Prefix': channel.folder}}]]
        answers = {{'worker': list(executor.map(denied, *zip(*requests['worker']))),
                   'main': [denied(*request) for request in requests['main']]}}
        assert executor.submit(abs, -1).result() == 1
    for who in requests:
        for request, answer in zip(requests[who], answers[who]):
            if answer:
                print(who, *request[:2], answer)
'''


def denied(service, operation, parameters):
    """Make a request with one's own credentials: None where AWS denies it, else what happened instead."""
    import boto3
    import botocore.exceptions
    try:
        getattr(boto3.client(service, region_name=rios_awsbatch.REGION), operation)(**parameters)
    except botocore.exceptions.ClientError as error:
        if error.response['Error']['Code'] in ('AccessDenied', 'AccessDeniedException', 'UnauthorizedOperation'):
            return None
        return repr(error)
    return 'was allowed'


def test_permissions_go_no_further(tmp_path):
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        other = Stack(stack.name + '-2', env=env).create()
        mine, theirs = stack.outputs(), other.outputs()
        queue = stack.client('sqs').create_queue(QueueName=other.name + '_20260101T000000-0123abcd_in')['QueueUrl']
        foreign = stack.client('sqs').create_queue(QueueName='mine')['QueueUrl']
        for bucket in (mine['BatchBucket'], theirs['BatchBucket']):
            for key in ('mine', 'runs/x/call-1'):
                stack.client('s3').put_object(Bucket=bucket, Key=key, Body=b'x')
        job = {'jobName': 'x', 'jobQueue': mine['BatchProcessingJobQueueName'],
               'jobDefinition': mine['BatchProcessingJobDefinitionName']}
        both = [
            ['s3', 'get_object', {'Bucket': mine['BatchBucket'], 'Key': 'mine'}],
            ['s3', 'put_object', {'Bucket': mine['BatchBucket'], 'Key': 'other', 'Body': 'x'}],
            ['s3', 'get_object', {'Bucket': theirs['BatchBucket'], 'Key': 'runs/x/call-1'}],
            ['s3', 'put_object', {'Bucket': theirs['BatchBucket'], 'Key': 'runs/x/call-2', 'Body': 'x'}],
            ['s3', 'list_objects_v2', {'Bucket': theirs['BatchBucket']}],
            ['s3', 'list_buckets', {}],
            ['s3', 'create_bucket', {'Bucket': 'another', 'CreateBucketConfiguration': {'LocationConstraint': REGION}}],
            ['s3', 'delete_bucket', {'Bucket': mine['BatchBucket']}],
            ['s3', 'delete_bucket_policy', {'Bucket': mine['BatchBucket']}],
            ['sqs', 'receive_message', {'QueueUrl': queue}], ['sqs', 'receive_message', {'QueueUrl': foreign}],
            ['sqs', 'send_message', {'QueueUrl': queue, 'MessageBody': 'x'}], ['sqs', 'delete_queue', {'QueueUrl': queue}],
            ['sqs', 'create_queue', {'QueueName': other.name + '_20260101T000000-0123abcd_out'}],
            ['sqs', 'list_queues', {}],
            ['batch', 'submit_job', dict(job, jobQueue=theirs['BatchProcessingJobQueueName'])],
            ['batch', 'submit_job', dict(job, jobDefinition=theirs['BatchProcessingJobDefinitionName'])],
            ['batch', 'submit_job', dict(job, jobDefinition=mine['BatchProcessingJobDefinitionMainName'])],
            ['batch', 'register_job_definition', {'jobDefinitionName': 'x', 'type': 'container', 'containerProperties': {
                'image': 'x', 'vcpus': 1, 'memory': 128}}],
            ['batch', 'update_job_queue', {'jobQueue': mine['BatchProcessingJobQueueName'], 'state': 'DISABLED'}],
            ['cloudformation', 'create_stack', {'StackName': 'another', 'TemplateBody': '{}'}],
            ['cloudformation', 'delete_stack', {'StackName': stack.name}],
            ['cloudformation', 'describe_stacks', {'StackName': other.name}],
            ['iam', 'create_user', {'UserName': 'me-too'}], ['iam', 'list_users', {}],
            ['iam', 'create_access_key', {'UserName': 'scientist-' + stack.name}],
            ['iam', 'attach_user_policy', {'UserName': 'scientist-' + stack.name,
                                           'PolicyArn': 'arn:aws:iam::aws:policy/AdministratorAccess'}],
            ['logs', 'get_log_events', {'logGroupName': theirs['BatchLogGroup'], 'logStreamName': 'worker/default/x'}],
            ['logs', 'delete_log_group', {'logGroupName': mine['BatchLogGroup']}],
            ['ecr', 'get_authorization_token', {}],
            ['ecr', 'batch_delete_image', {'repositoryName': mine['BatchECR'], 'imageIds': [{'imageTag': 'latest'}]}],
            ['ec2', 'describe_instances', {}], ['ec2', 'run_instances', {'MinCount': 1, 'MaxCount': 1, 'ImageId': 'ami-1'}]]
        worker = [
            ['sqs', 'create_queue', {'QueueName': stack.name + '_20260101T000000-0123abcd_in'}],
            ['batch', 'submit_job', job], ['batch', 'list_jobs', {'jobQueue': mine['BatchProcessingJobQueueName']}],
            ['batch', 'terminate_job', {'jobId': 'x', 'reason': 'x'}],
            ['cloudformation', 'describe_stacks', {'StackName': stack.name}],
            ['logs', 'get_log_events', {'logGroupName': mine['BatchLogGroup'], 'logStreamName': 'worker/default/x'}]]
        user, _ = user_with_main_policy(stack)
        tell(env, 'iam', {'enforced': True})
        script = write_main(tmp_path, FORBIDDEN.format(denied=textwrap.indent(inspect.getsource(denied), '    ')))
        done = subprocess.run([sys.executable, script, json.dumps({'main': both, 'worker': both + worker})], env=user,
                              capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stdout) == (0, ''), done.stdout + done.stderr
        # The owner could have done each of these.
        tell(env, 'iam', {'enforced': False})
        assert other.status() == stack.status() == 'CREATE_COMPLETE'


def test_policies_have_no_wildcard_that_aws_does_not_ask_for():
    resources = load_template()['Resources'].values()
    documents = [item['Properties']['PolicyDocument'] for item in resources if item['Type'] in (
        'AWS::IAM::ManagedPolicy', 'AWS::IAM::Policy')]
    documents += [policy['PolicyDocument'] for item in resources if item['Type'] == 'AWS::IAM::Role'
                  for policy in item['Properties'].get('Policies', [])]
    assert len(documents) == 4
    for statement in (statement for document in documents for statement in document['Statement']):
        actions, targets = (item if isinstance(item, list) else [item]
                            for item in (statement['Action'], statement['Resource']))
        assert statement['Effect'] == 'Allow' and not any('*' in action for action in actions), statement
        for target in targets:
            if target == '*':
                assert actions == ['batch:DescribeJobs', 'batch:ListJobs'], statement
            else:
                assert set(target) <= {'Ref', 'GetAtt', 'Sub', 'Split'}, statement      # something of this stack, or
                if str(target.get('Sub')).endswith(':job/*'):                           # a job, which AWS names
                    assert actions == ['batch:TerminateJob']
                elif 'Sub' in target:
                    assert re.search(r'[{]AWS::StackName[}]|[{]Bucket.Arn[}]|[{]ServiceName[}]', target['Sub']), statement
    # Jobs have these policies and no others.
    roles = {name: load_template()['Resources'][name]['Properties'] for name in ('JobRole', 'MainRole')}
    assert 'ManagedPolicyArns' not in roles['JobRole'] and roles['MainRole']['ManagedPolicyArns'] == [{'Ref': 'MainPolicy'}]


# ---------------------------------------------------------------------------------------------
# Faults of AWS
# ---------------------------------------------------------------------------------------------

FAULTS = {'errors': 0.05, 'duplicate': 0.1, 'late': 0.1, 'reorder': 1, 'seed': 2}
MANY = '''
    import hashlib, logging
    import numpy
    logging.basicConfig(level=logging.WARNING)

    def tile(n, block):
        time.sleep(0.03)
        return n, block[::-1] if n % 3 else block.sum()

    def block(n):
        return numpy.random.default_rng(n).integers(0, 2**16, 120_000 if n % 10 == 0 else 50)
    with rios_awsbatch.AWSBatchExecutor(4) as executor:
        results = list(executor.map(tile, range(200), map(block, range(200)), buffersize=24))
    assert [n for n, _ in results] == list(range(200))
    for n, result in results:
        assert numpy.array_equal(result, tile(n, block(n))[1]), n
    print('identical', flush=True)
'''


def test_faults_of_aws_change_no_result(tmp_path):
    """Of all requests 5 % fail; messages come twice, late and in any order."""
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        tell(env, 'faults', FAULTS)
        done = subprocess.run([sys.executable, write_main(tmp_path, MANY)], env=stack.env, capture_output=True, text=True,
                              timeout=PATIENCE)
        tell(env, 'faults', {})
        assert (done.returncode, done.stdout) == (0, 'identical\n'), done.stderr[-5000:]
        assert not stack.queues()
        wait_until(lambda: not tell(env, 'jobs')['jobs'])
        assert not stack.objects('runs/')


# ---------------------------------------------------------------------------------------------
# batch.yaml
# ---------------------------------------------------------------------------------------------

class Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms: !Ref X becomes {'Ref': 'X'}."""


def short_form(loader, suffix, node):
    construct = {yaml.ScalarNode: loader.construct_scalar, yaml.SequenceNode: loader.construct_sequence,
                 yaml.MappingNode: loader.construct_mapping}[type(node)]
    return {suffix: construct(node) if type(node) is yaml.ScalarNode else construct(node, deep=True)}


Loader.add_multi_constructor('!', short_form)


def load_template():
    return yaml.load((ROOT / 'batch.yaml').read_text(), Loader)


def test_template_is_valid_in_every_region_that_has_batch():
    session = boto3.Session()
    regions = [name for partition in ('aws', 'aws-cn', 'aws-us-gov')
               for name in session.get_available_regions('batch', partition)]
    assert len(regions) > 30
    done = subprocess.run([shutil.which('cfn-lint', path='{}{}{}'.format(
        pathlib.Path(sys.executable).parent, os.pathsep, os.environ['PATH'])), '-r', *regions, '--', ROOT / 'batch.yaml'],
        capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout + done.stderr) == (0, '')


# What AWS asks no money for while no job runs, but for what is stored: bytes in the bucket, images, logs.
FREE_WHILE_IDLE = {
    'AWS::EC2::VPC', 'AWS::EC2::InternetGateway', 'AWS::EC2::VPCGatewayAttachment', 'AWS::EC2::RouteTable',
    'AWS::EC2::Route', 'AWS::EC2::VPCEndpoint', 'AWS::EC2::Subnet', 'AWS::EC2::SubnetRouteTableAssociation',
    'AWS::EC2::SecurityGroup', 'AWS::EC2::LaunchTemplate', 'AWS::S3::Bucket', 'AWS::S3::BucketPolicy',
    'AWS::ECR::Repository', 'AWS::Logs::LogGroup', 'AWS::IAM::Role', 'AWS::IAM::InstanceProfile', 'AWS::IAM::Policy',
    'AWS::IAM::ManagedPolicy', 'AWS::Batch::ComputeEnvironment', 'AWS::Batch::JobQueue', 'AWS::Batch::JobDefinition'}


def test_nothing_in_the_template_costs_money_while_idle():
    resources = load_template()['Resources']
    assert {item['Type'] for item in resources.values()} <= FREE_WHILE_IDLE
    for item in resources.values():
        properties = item.get('Properties', {})
        if item['Type'] == 'AWS::EC2::VPCEndpoint':
            assert properties['VpcEndpointType'] == 'Gateway'       # the other kinds cost by the hour
        elif item['Type'] == 'AWS::Batch::ComputeEnvironment':
            assert properties['ComputeResources']['MinvCpus'] == 0
            assert not properties['ComputeResources'].get('DesiredvCpus')
        elif item['Type'] == 'AWS::EC2::LaunchTemplate':
            data = properties['LaunchTemplateData']
            assert all(device['Ebs']['DeleteOnTermination'] for device in data['BlockDeviceMappings'])
        elif item['Type'] == 'AWS::S3::Bucket':
            assert any(rule.get('Prefix') == 'runs/' and rule['ExpirationInDays'] for rule in properties[
                'LifecycleConfiguration']['Rules'])
        elif item['Type'] == 'AWS::ECR::Repository':
            assert 'untagged' in properties['LifecyclePolicy']['LifecyclePolicyText']
        elif item['Type'] == 'AWS::Logs::LogGroup':
            assert properties['RetentionInDays']
        assert 'KmsKeyId' not in str(properties) and 'aws:kms' not in str(properties)


def test_every_parameter_of_the_template_is_explained_in_the_console():
    template = load_template()
    interface = template['Metadata']['AWS::CloudFormation::Interface']
    names = list(template['Parameters'])
    assert sorted(name for group in interface['ParameterGroups'] for name in group['Parameters']) == sorted(names)
    assert sorted(interface['ParameterLabels']) == sorted(names)
    assert all({'Description', 'Default'} <= set(item) for item in template['Parameters'].values())
    assert OUTPUTS <= set(template['Outputs'])
    assert all(item['Description'] for item in template['Outputs'].values())
