"""
What the tests import: asking and telling the local AWS, main scripts, stacks and local AWSs of a test's own.

Everything runs inside ``scripts/local.sh``, as ``scripts/test.sh`` starts it: there is an AWS on this machine with a
stack, and its Batch jobs are real processes of worker.py. Nothing stands in for boto3. Fixtures are in conftest.py, of
this folder and of the one above.
"""
import contextlib
import functools
import json
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
import types
import urllib.request

import boto3
import botocore.session
import cloudpickle
import pytest
import yaml

import rios_awsbatch
import tests

# Workers have no file of ours, and so no module of the tests.
cloudpickle.register_pickle_by_value(tests)
ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / 'scripts'
EXAMPLES = ROOT / 'examples'
SCENE = EXAMPLES / 'data' / 'landsat7_olinda.tif'
sys.path[:0] = str(EXAMPLES), str(SCRIPTS)      # some are imported, too
from local_aws.push import push         # noqa: E402
REGION = rios_awsbatch.REGION
# Of an image without anything.
MANIFEST = {'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json', 'layers': []}
# Seconds after which something hangs. On a machine that does much else at the same time, all is slow.
PATIENCE = 800
# Quick enough for a test. Main scripts and workers get them alike.
QUICK = {'LEASE_SECONDS': 8, 'VISIBILITY_SECONDS': 2, 'WATCH_SECONDS': 1}
for name, value in QUICK.items():
    setattr(rios_awsbatch, name, value)
# The tests import them, and few of their calls need them; main scripts have the list as it is.
rios_awsbatch.HEAVY_MODULES = ()
# Each session would read botocore's models anew.
botocore.session.create_loader = functools.cache(botocore.session.create_loader)


def square(x, seconds=0.0):
    time.sleep(seconds)
    return x * x


# ---------------------------------------------------------------------------------------------
# Asking and telling the local AWS
# ---------------------------------------------------------------------------------------------

def local_aws(path, tell=None, env=os.environ):
    """Ask a local AWS something, or tell it something."""
    data = None if tell is None else json.dumps(tell).encode()
    with urllib.request.urlopen('{}/_local/{}'.format(env['AWS_ENDPOINT_URL'], path), data, timeout=PATIENCE) as answer:
        return json.loads(answer.read() or b'null')


def client(service, env=os.environ):
    return _client(service, env.get('RIOS_AWSBATCH_REGION', REGION), env['AWS_ENDPOINT_URL'],
                   env['AWS_ACCESS_KEY_ID'], env['AWS_SECRET_ACCESS_KEY'])


@functools.cache
def _client(service, region, endpoint, key, secret):
    return boto3.client(service, region, endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret)


def bucket():
    return rios_awsbatch.getStackOutputs()['BatchBucket']


def pids(run, env=os.environ):
    """Process ids of the workers of a run."""
    return [job['pid'] for job in local_aws('jobs', env=env)['jobs'] if run in job['jobName']]


def processes_of(pid):
    """A process and all that descend from it."""
    parents = {}
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / 'stat').read_text().rpartition(')')[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def jobs_of(run, env=os.environ):
    """What Batch says of the jobs of a run (its id), the latest first; an array is one job."""
    name = env.get('RIOS_AWSBATCH_STACK', rios_awsbatch.STACK_NAME)
    batch, queue = client('batch', env), Stack(name, env=env).outputs()['BatchProcessingJobQueueName']
    found = batch.list_jobs(jobQueue=queue, filters=[{'name': 'JOB_NAME', 'values': [name + '_' + run]}])
    jobs = batch.describe_jobs(jobs=[job['jobId'] for job in found['jobSummaryList']])['jobs']
    return sorted(jobs, key=lambda job: -job['createdAt'])


def channel_of(executor):
    """The channel of a run, as its workers have it: from the environment of its first job."""
    return rios_awsbatch.Channel.of(rios_awsbatch.JobSettings.from_env(
        {item['name']: item['value'] for item in jobs_of(executor.run)[-1]['container']['environment']}))


def wait_until(condition, seconds=PATIENCE):
    """Wait for something that must become true; what it is then."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, 'waited {} s in vain'.format(seconds)
        time.sleep(0.05)


def assert_nothing_left(run):
    """The queues and objects of a run are gone, and its workers go."""
    left = left_of(run)
    assert all(isinstance(each, int) for each in left)
    wait_until(lambda: not left_of(run))


def shared_executor(workers, scope='module'):
    """A fixture: an executor, up to its last worker, of which nothing is left in the end."""
    @pytest.fixture(scope=scope)
    def executor():
        with rios_awsbatch.AWSBatchExecutor(workers) as made:
            made.wait_for_workers(workers, PATIENCE)
            yield made
        assert_nothing_left(made.run)
    return executor


def left_of(run):
    """What there is of a run on AWS: queues, objects, and process ids of workers."""
    queues = client('sqs').list_queues(QueueNamePrefix='{}_{}'.format(rios_awsbatch.STACK_NAME, run)).get('QueueUrls', [])
    objects = client('s3').list_objects_v2(Bucket=bucket(), Prefix='runs/{}/'.format(run)).get('Contents', [])
    return queues + [item['Key'] for item in objects] + pids(run)


# ---------------------------------------------------------------------------------------------
# Main scripts
# ---------------------------------------------------------------------------------------------

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


def main_script(folder, text, *args, env=(), **options):
    """Start a main script of its own, with the quick settings; `env` adds to or changes the environment."""
    return subprocess.Popen([sys.executable, str(write_main(folder, text)), *map(str, args)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ, **dict(env)), **options)


def run_main(folder, env, text):
    """Start a main script with the quick settings whose log is on its standard error."""
    logged = 'import logging\nlogging.basicConfig(level=logging.INFO)\n'
    return main_script(folder, logged + textwrap.dedent(text), env=env)


@contextlib.contextmanager
def script_module():
    """A module that workers cannot import, and that travels as the script's own does."""
    module = types.ModuleType('script_{:08x}'.format(random.getrandbits(32)))
    sys.modules[module.__name__] = module
    cloudpickle.register_pickle_by_value(module)
    try:
        yield module
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[module.__name__]


def output_of(process, seconds=PATIENCE):
    """Wait for a main script: (exit status, standard output, standard error)."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail('the main script hangs:\n{}\n{}'.format(*process.communicate()))
    return process.returncode, out, err


def finish(process):
    """Wait for a main script that must succeed: (standard output, standard error)."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out, err


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
    process = main_script(folder, '    rios_awsbatch.LEASE_SECONDS = {}\n'.format(lease) + RUNS_LONG, folder / 'enough',
                          env=env)
    name = process.stdout.readline().strip()
    if process.stdout.readline() != 'going\n':
        pytest.fail(process.communicate()[1])
    return process, name


# ---------------------------------------------------------------------------------------------
# Running shell scripts
# ---------------------------------------------------------------------------------------------

def run(script, *args, env=(), input='', root=ROOT, path=None, folder=None):
    """Run a script to its end, in a folder: its exit status, standard output and standard error."""
    environment = {name: value for name, value in dict(os.environ, **dict(env)).items() if value is not None}
    if path:
        environment['PATH'] = '{}{}{}'.format(path, os.pathsep, os.environ['PATH'])
    return subprocess.run([str(root / 'scripts' / script), *map(str, args)], env=environment, input=input, text=True,
                          cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE)


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


def copy_of_the_tree(folder):
    """What the scripts need, elsewhere, for a test that changes it or leaves something out."""
    folder.mkdir(parents=True)
    shutil.copytree(SCRIPTS, folder / 'scripts')
    for name in ('batch.yaml', 'rios_awsbatch.py', 'worker.py', 'Dockerfile'):
        shutil.copy(ROOT / name, folder)
    return folder


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
# Stacks of a test's own
# ---------------------------------------------------------------------------------------------

class Stack:
    """A stack made from batch.yaml, as create.sh makes it, and how to look at it."""
    def __init__(self, name=None, service=None, region=REGION, env=os.environ, **parameters):
        self.name = name or 'T{:08x}'.format(random.getrandbits(32))
        self.service = service or self.name.lower().replace('-', '')
        self.endpoint = env['AWS_ENDPOINT_URL']
        self.env = dict(env, RIOS_AWSBATCH_STACK=self.name, RIOS_AWSBATCH_REGION=region)
        self.given = dict(parameters, ServiceName=self.service)

    def client(self, service):
        return client(service, self.env)

    def create(self, template=ROOT / 'batch.yaml'):
        self.client('cloudformation').create_stack(
            StackName=self.name, TemplateBody=pathlib.Path(template).read_text(), Capabilities=['CAPABILITY_IAM'],
            Parameters=[{'ParameterKey': key, 'ParameterValue': str(value)} for key, value in self.given.items()])
        assert self.status() == 'CREATE_COMPLETE'
        return self

    def push(self, output, path, *variables):
        """Put an image whose entry point is a Python script into one of the two repositories."""
        push(self.client, self.endpoint, self.name, output, path, *variables)
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


def user_with_main_policy(stack):
    """The environment of a user to whom just the policy for main scripts is attached; and the user's ARN."""
    iam, name = stack.client('iam'), 'scientist-' + stack.name
    arn = iam.create_user(UserName=name)['User']['Arn']
    iam.attach_user_policy(UserName=name, PolicyArn=stack.outputs()['BatchMainPolicyArn'])
    key = iam.create_access_key(UserName=name)['AccessKey']
    return dict(stack.env, AWS_ACCESS_KEY_ID=key['AccessKeyId'],
                AWS_SECRET_ACCESS_KEY=key['SecretAccessKey']), arn


def user_who_may_all_but(action, stack, resource='*'):
    """The keys of a user whom a policy denies one action on a resource (dict of environment variables)."""
    iam, name = stack.client('iam'), 'hampered-' + stack.name
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName='p', PolicyDocument=json.dumps({
        'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': '*', 'Resource': '*'},
                                               {'Effect': 'Deny', 'Action': action, 'Resource': resource}]}))
    key = iam.create_access_key(UserName=name)['AccessKey']
    return {'AWS_ACCESS_KEY_ID': key['AccessKeyId'], 'AWS_SECRET_ACCESS_KEY': key['SecretAccessKey']}


def foreign_stack():
    """A stack that something else has made, with a bucket in it."""
    other = Stack()
    other.client('cloudformation').create_stack(StackName=other.name, TemplateBody=json.dumps({
        'Description': 'The web site', 'Resources': {'Site': {'Type': 'AWS::S3::Bucket'}}}))
    return other


# ---------------------------------------------------------------------------------------------
# A local AWS of a test's own
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
        hidden = {name for name in os.environ if name.startswith(('AWS_', 'RIOS_AWSBATCH_'))
                  and name != 'RIOS_AWSBATCH_LOCAL_SHARED'}
        self.env = {name: value for name, value in os.environ.items() if name not in hidden}
        self.env.update(env, TMPDIR=str(self.temporary), RIOS_AWSBATCH_REGION=REGION)

    def start(self, *command, **options):
        return subprocess.Popen([self.root / 'scripts' / 'local.sh', *map(str, command)], env=self.env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def assert_nothing_left(self, endpoint=None):
        """No process, no file, no listening port."""
        wait_until(lambda: not processes_with(str(self.temporary)))
        assert list(self.temporary.iterdir()) == []
        if endpoint:
            host, port = endpoint.rpartition('/')[2].split(':')
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, int(port)), timeout=5)


@contextlib.contextmanager
def job_definition(retry=None, **changed):
    """Another job definition than the stack's, for a run that goes wrong."""
    outputs, batch = rios_awsbatch.getStackOutputs(), client('batch')
    found = batch.describe_job_definitions(
        jobDefinitionName=outputs['BatchProcessingJobDefinitionName'], status='ACTIVE')['jobDefinitions'][0]
    name = 'broken-{}'.format(random.getrandbits(32))
    batch.register_job_definition(
        jobDefinitionName=name, type='container', retryStrategy=retry or found['retryStrategy'],
        containerProperties=dict(found['containerProperties'], **changed))
    yield name
    batch.deregister_job_definition(jobDefinition=name + ':1')


@contextlib.contextmanager
def another_aws(folder):
    """A local AWS of its own, without a stack; the environment for its owner."""
    local = Local(folder, RIOS_AWSBATCH_LOCAL_STACK='no')
    process = local.start(sys.executable, '-c', 'import json, os, sys\nprint(json.dumps(dict(os.environ)), flush=True)\n'
                          'sys.stdin.read()', stdin=subprocess.PIPE)
    try:
        yield dict(json.loads(process.stdout.readline()), PATH=os.environ['PATH'])
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()
        process.stderr.close()
    local.assert_nothing_left()


# ---------------------------------------------------------------------------------------------
# batch.yaml
# ---------------------------------------------------------------------------------------------

OUTPUTS = {
    'BatchBucket', 'BatchProcessingJobQueueName', 'BatchProcessingJobQueueArn', 'BatchProcessingJobDefinitionName',
    'BatchProcessingJobDefinitionArn', 'BatchProcessingJobDefinitionMainName', 'BatchProcessingJobDefinitionMainArn',
    'BatchECR', 'BatchECRMain', 'BatchMaxJobs', 'BatchVCPUS', 'BatchMaxVCPUS', 'ComputeEnvironmentArn', 'VPC'}


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms: !Ref X becomes {'Ref': 'X'}."""


def short_form(loader, suffix, node):
    construct = {yaml.ScalarNode: loader.construct_scalar, yaml.SequenceNode: loader.construct_sequence,
                 yaml.MappingNode: loader.construct_mapping}[type(node)]
    return {suffix: construct(node) if type(node) is yaml.ScalarNode else construct(node, deep=True)}


Loader.add_multi_constructor('!', short_form)


def load_template():
    return yaml.load((ROOT / 'batch.yaml').read_text(), Loader)
