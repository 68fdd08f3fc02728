"""
What real AWS does, and the local AWS too: where the code and it share a belief, no other test can tell.

Small job definitions of shell and Python commands, on a local AWS of these tests' own. What workers make of it is in
test_pool.py, test_batch_is_late.py and test_faults.py; how the local AWS starts and ends in test_local_aws.py.
"""
import contextlib
import json
import os
import pathlib
import random
import re
import sys
import tempfile
import textwrap
import time

import botocore.exceptions
import pytest

import rios_awsbatch
from tests.helpers import REGION, ROOT, another_aws, client, local_aws, wait_until

ENDED = ('SUCCEEDED', 'FAILED')
TRUST = json.dumps({'Version': '2012-10-17', 'Statement': [
    {'Effect': 'Allow', 'Principal': {'Service': 'ecs-tasks.amazonaws.com'}, 'Action': 'sts:AssumeRole'}]})


@pytest.fixture(scope='module')
def aws(tmp_path_factory):
    """The environment of a local AWS without a stack; Batch's minutes are seconds there."""
    with another_aws(tmp_path_factory.mktemp('facts')) as env:
        yield env


@pytest.fixture
def place(aws):
    made = Place(aws)
    yield made
    made.close()


class Place:
    """A compute environment and a queue, of a test's own."""

    def __init__(self, env, most=4, kinds=('c5.xlarge',), limits=(), kind='EC2'):
        self.env, self.name = env, 'p{:08x}'.format(random.getrandbits(32))
        self.batch, self.logs, iam, ec2 = (client(name, env) for name in ('batch', 'logs', 'iam', 'ec2'))
        self.role = iam.create_role(RoleName=self.name, AssumeRolePolicyDocument=TRUST)['Role']['Arn']
        iam.create_instance_profile(InstanceProfileName=self.name)
        iam.add_role_to_instance_profile(InstanceProfileName=self.name, RoleName=self.name)
        subnet = ec2.describe_subnets()['Subnets'][0]
        group = ec2.describe_security_groups(Filters=[{'Name': 'vpc-id', 'Values': [subnet['VpcId']]}])
        resources = {'type': kind, 'maxvCpus': most, 'subnets': [subnet['SubnetId']],
                     'securityGroupIds': [group['SecurityGroups'][0]['GroupId']]}
        if 'FARGATE' not in kind:
            resources.update(minvCpus=0, instanceTypes=list(kinds), instanceRole=self.name)
        self.batch.create_compute_environment(
            computeEnvironmentName=self.name, type='MANAGED', state='ENABLED', computeResources=resources,
            serviceRole=self.role)
        self.make_queue(self.name, limits=limits)

    def make_queue(self, name, priority=1, limits=()):
        self.batch.create_job_queue(
            jobQueueName=name, state='ENABLED', priority=priority, jobStateTimeLimitActions=list(limits),
            computeEnvironmentOrder=[{'order': 1, 'computeEnvironment': self.name}])
        return name

    def submit(self, command, vcpus=1, memory=512, queue=None, image='example.com/x:y', retry=(),
               timeout=None, size=None, capabilities=('EC2',), **container):
        """The id of a job that runs a command, of the shell if it is no list."""
        name = 'd{:08x}'.format(random.getrandbits(32))
        container.update(image=image, resourceRequirements=[
            {'type': 'VCPU', 'value': str(vcpus)}, {'type': 'MEMORY', 'value': str(memory)}],
            command=['sh', '-c', command] if isinstance(command, str) else command)
        self.batch.register_job_definition(
            jobDefinitionName=name, type='container', containerProperties=container,
            retryStrategy=dict(retry), platformCapabilities=list(capabilities))
        more = {'timeout': {'attemptDurationSeconds': timeout}} if timeout else {}
        more.update({'arrayProperties': {'size': size}} if size else {})
        return self.batch.submit_job(
            jobName=name, jobQueue=queue or self.name, jobDefinition=name, **more)['jobId']

    def job(self, job):
        return self.batch.describe_jobs(jobs=[job])['jobs'][0]

    def ended(self, job):
        """The job, when it has ended."""
        return wait_until(lambda: self.job(job)['status'] in ENDED and self.job(job))

    def running(self, *jobs):
        wait_until(lambda: all(self.job(job)['status'] == 'RUNNING' for job in jobs))

    def output(self, job):
        """What a job wrote, page by page to the end."""
        stream, said, token = self.job(job)['container']['logStreamName'], [], {}
        while True:
            page = self.logs.get_log_events(
                logGroupName='/aws/batch/job', logStreamName=stream, startFromHead=True, **token)
            said += [event['message'] for event in page['events']]
            if token.get('nextToken') == page['nextForwardToken']:
                return said
            token = {'nextToken': page['nextForwardToken']}

    def containers(self):
        ours = {job['jobId'] for status in ('RUNNING', 'STARTING') for job in self.batch.list_jobs(
            jobQueue=self.name, jobStatus=status)['jobSummaryList']}
        jobs = local_aws('jobs', env=self.env)['jobs']
        return [each for each in jobs if each['jobId'].split(':')[0] in ours]

    def close(self):
        for path, settings in (('quota', {}), ('speed', {'times': 1}), ('starts', {'fail': 0}), ('lag', {}),
                               ('credentials', {'seconds': 3600}), ('login', {'expired': False}),
                               ('iam', {'enforced': False}), ('sqs', {})):
            local_aws(path, settings, env=self.env)
        queues = self.batch.describe_job_queues()['jobQueues']
        for queue in queues:
            self.batch.update_job_queue(jobQueue=queue['jobQueueName'], state='DISABLED')
            self.batch.delete_job_queue(jobQueue=queue['jobQueueName'])
        wait_until(lambda: not local_aws('jobs', env=self.env)['jobs'])


def python(text):
    """The words of a command that runs a piece of Python."""
    return [sys.executable, '-c', textwrap.dedent(text)]


@contextlib.contextmanager
def refused(code, said=''):
    with pytest.raises(botocore.exceptions.ClientError, match='(?s)' + said) as raised:
        yield
    assert raised.value.response['Error']['Code'] == code


# ---------------------------------------------------------------------------------------------
# Attempts
# ---------------------------------------------------------------------------------------------

RETRY_ALL = {'attempts': 5}


@pytest.mark.parametrize('trap, code', [('exit 0', 0), ('exit 143', 143)])
def test_attempt_past_its_time_out_fails_and_is_not_retried(place, trap, code):
    """Whatever the rules say, and though the container ends well when told to stop."""
    job = place.submit("trap '{}' TERM; echo up; sleep 60 & wait".format(trap), retry=RETRY_ALL, timeout=60)
    wait_until(lambda: 'logStreamName' in place.job(job)['container'] and place.output(job))
    local_aws('speed', {'times': 30}, env=place.env)
    done = place.ended(job)
    assert (done['status'], len(done['attempts'])) == ('FAILED', 1)
    assert done['statusReason'] == 'Job attempt duration exceeded timeout'
    assert done['container']['exitCode'] == code
    assert done['stoppedAt'] - done['startedAt'] >= 2000


def test_time_out_below_a_minute_is_refused(place):
    with refused('ClientException', '60'):
        place.submit('true', timeout=10)


def test_job_that_is_told_to_stop_fails_even_with_exit_code_0(place):
    job = place.submit("trap 'exit 0' TERM; echo up; sleep 60 & wait", retry=RETRY_ALL)
    wait_until(lambda: 'logStreamName' in place.job(job)['container'] and place.output(job))
    place.batch.terminate_job(jobId=job, reason='enough')
    done = place.ended(job)
    assert (done['status'], done['statusReason'], done['isTerminated']) == ('FAILED', 'enough', True)
    assert done['container']['exitCode'] == 0 and len(done['attempts']) == 1


def test_array_parent_is_pending_while_children_run_and_fails_with_one_of_them(place, shared):
    wait = 'while [ ! -e {}/go ]; do sleep 0.1; done'.format(shared)
    job = place.submit('[ $AWS_BATCH_JOB_ARRAY_INDEX = 0 ] || { ' + wait + '; exit 3; }', size=2)
    place.running(job + ':1')
    listed = {status: [each['jobId'] for each in place.batch.list_jobs(
        jobQueue=place.name, jobStatus=status)['jobSummaryList']] for status in ('PENDING', 'RUNNING')}
    assert listed == {'PENDING': [job], 'RUNNING': []}
    (shared / 'go').touch()
    done = place.ended(job)
    assert done['status'] == 'FAILED'
    assert {name: count for name, count in done['arrayProperties']['statusSummary'].items() if count} == {
        'SUCCEEDED': 1, 'FAILED': 1}


EXIT_ELSE = {'action': 'EXIT', 'onReason': '*'}


@pytest.mark.parametrize('rules, attempts, status', [
    ([{'action': 'RETRY', 'onStatusReason': 'Task failed to start'}, EXIT_ELSE], 3, 'SUCCEEDED'),
    ([{'action': 'RETRY', 'onReason': 'DockerTimeoutError*'}, EXIT_ELSE], 3, 'SUCCEEDED'),
    ([{'action': 'RETRY', 'onExitCode': '1*'}, EXIT_ELSE], 1, 'FAILED'),
    ([{'action': 'EXIT', 'onReason': 'CannotPull*'}], 3, 'SUCCEEDED')])
def test_start_that_fails_in_passing_is_retried_as_the_rules_say(place, rules, attempts, status):
    """What no rule matches is retried."""
    local_aws('starts', {'fail': 2, 'reason': 'DockerTimeoutError: Could not transition'}, env=place.env)
    done = place.ended(place.submit('true', retry={'attempts': 4, 'evaluateOnExit': rules}))
    assert (done['status'], len(done['attempts'])) == (status, attempts)
    first = done['attempts'][0]
    assert first['statusReason'] == 'Task failed to start'
    assert first['container']['reason'].startswith('DockerTimeout')
    assert 'startedAt' not in first and 'exitCode' not in first['container']


def test_empty_word_of_a_command_is_refused(place):
    definition = place.job(place.submit('true'))['jobDefinition']
    with refused('ClientException', 'command should not be null or empty'):
        place.batch.submit_job(jobName='x', jobQueue=place.name, jobDefinition=definition,
                               containerOverrides={'command': ['true', '']})


def test_job_with_too_long_a_command_does_not_start_and_with_a_longer_one_is_refused(place):
    request = {'jobName': 'x', 'jobQueue': place.name, 'jobDefinition': place.job(place.submit('true'))['jobDefinition']}
    job = place.batch.submit_job(**request, containerOverrides={'command': ['true', 'x' * 8192]})['jobId']
    assert place.ended(job)['statusReason'] == 'Container Overrides length must be at most 8192'
    with refused('ClientException', 'Job size must be less than 30 KiB'):
        place.batch.submit_job(**request, containerOverrides={'command': ['true', 'x' * (30 << 10)]})


def test_more_than_five_retry_rules_are_refused(place):
    with refused('ClientException', 'at most 5'):
        place.submit('true', retry={'attempts': 2, 'evaluateOnExit': [EXIT_ELSE] * 6})


@pytest.mark.parametrize('notice', [True, False])
def test_instance_that_is_taken_away_takes_all_its_jobs_perhaps_without_a_notice(place, notice):
    jobs = [place.submit("trap 'echo told; exit 0' TERM; echo up; sleep 60 & wait") for _ in range(2)]
    for job in jobs:
        wait_until(lambda: 'logStreamName' in place.job(job)['container'] and place.output(job))
    assert len({each['instance'] for each in place.containers()}) == 1
    local_aws('jobs/interrupt', {'jobId': jobs[0], 'notice': notice}, env=place.env)
    for job in jobs:
        done = place.ended(job)
        assert done['status'] == 'FAILED' and 'exitCode' not in done['container']
        assert done['statusReason'].startswith('Host EC2 (instance i-')
        assert place.output(job) == ['up'] + ['told'] * notice


# ---------------------------------------------------------------------------------------------
# What Batch says of a container is late
# ---------------------------------------------------------------------------------------------

def seconds_since(moment):
    """Of one that Batch gives, in milliseconds."""
    return time.time() - moment / 1000


def test_container_is_up_before_batch_says_running(place, shared):
    """And may have worked for as long as Batch is late."""
    local_aws('lag', {'seconds': 10**6}, env=place.env)
    job = place.submit('touch {}/up; sleep 60'.format(shared))
    wait_until((shared / 'up').exists)
    found = place.job(job)
    assert found['status'] == 'STARTING' and not {'startedAt', 'stoppedAt'} & set(found)
    assert 'logStreamName' not in found['container']


def test_batch_is_late_and_later_still_with_the_summary_of_an_array(place):
    """Both have been, and are, what is said of them some seconds later; an array ends after its children."""
    local_aws('lag', {'seconds': 2}, env=place.env)
    job = place.submit('sleep 60', size=2)
    children = [job + ':0', job + ':1']

    def array(status):
        said = place.job(job)['arrayProperties']
        return said['statusSummary'][status] == 2 and said['statusSummaryLastUpdatedAt']
    place.running(*children)
    started = max(place.job(child)['startedAt'] for child in children)
    assert seconds_since(started) >= 2
    said_of = wait_until(lambda: array('RUNNING'))
    assert seconds_since(started) >= 4 and seconds_since(said_of) >= 2
    place.batch.terminate_job(jobId=job, reason='enough')
    stopped = max(place.ended(child)['stoppedAt'] for child in children)
    assert seconds_since(stopped) >= 2
    place.ended(job)
    assert seconds_since(stopped) >= 4 and array('FAILED')


def test_batch_is_late_unless_a_test_says_otherwise(place):
    job, late = place.submit('true', size=10), {}

    def look():
        for found in place.batch.describe_jobs(jobs=[job + ':{}'.format(n) for n in range(10)])['jobs']:
            if found['status'] in ENDED:
                late.setdefault(found['jobId'], seconds_since(found['stoppedAt']))
        return len(late) == 10
    wait_until(look)
    assert max(late.values()) > 0.5


def test_job_that_is_started_again_keeps_when_it_was_created_and_gains_an_attempt(place):
    local_aws('lag', {'seconds': 0}, env=place.env)
    job = place.submit('sleep 60', retry={'attempts': 2})
    place.running(job)
    first = place.job(job)
    os.kill(place.containers()[0]['pid'], 9)
    wait_until(lambda: place.job(job)['attempts'])
    place.running(job)
    second = place.job(job)
    assert (first['attempts'], second['createdAt']) == ([], first['createdAt'])
    assert [each['startedAt'] for each in second['attempts']] == [first['startedAt']]
    assert second['startedAt'] > first['startedAt']


# ---------------------------------------------------------------------------------------------
# Room
# ---------------------------------------------------------------------------------------------

def test_queue_is_first_in_first_out(place):
    """A job that must wait for room holds up a smaller one behind it, which would fit."""
    first, big, small = place.submit('sleep 2', 3), place.submit('true', 3), place.submit('true', 1)
    done = [place.ended(job) for job in (first, big, small)]
    assert done[0]['stoppedAt'] <= done[1]['startedAt'] <= done[2]['startedAt']


def test_queue_of_higher_priority_is_served_first(place):
    urgent = place.make_queue(place.name + 'urgent', 10)
    local_aws('quota', {'vcpus': 0}, env=place.env)
    later, sooner = place.submit('true', 4), place.submit('true', 4, queue=urgent)
    local_aws('quota', {}, env=place.env)
    assert place.ended(sooner)['startedAt'] <= place.ended(later)['startedAt']


def test_vcpus_are_counted_by_instance_and_memory_is_what_an_instance_offers(aws):
    """A c5.large offers less than its 4 GiB, so two jobs of 2 GiB need two instances, a vCPU idle on each."""
    place = Place(aws, most=4, kinds=['c5.large'])
    jobs = [place.submit('sleep 60', 1, 2048) for _ in range(4)]
    place.running(*jobs[:2])
    time.sleep(1)
    assert [place.job(job)['status'] for job in jobs[2:]] == ['RUNNABLE'] * 2
    assert [each['instanceType'] for each in place.containers()] == ['c5.large'] * 2
    for job in jobs:
        place.batch.terminate_job(jobId=job, reason='enough')
    fitting = [place.submit('sleep 60', 1, 1700) for _ in range(4)]
    place.running(*fitting)
    assert len({each['instance'] for each in place.containers()}) == 2
    place.close()


def test_max_vcpus_is_exceeded_by_at_most_one_instance(aws):
    place = Place(aws, most=3, kinds=['c5.large'])
    jobs = [place.submit('sleep 60', 2) for _ in range(3)]
    place.running(*jobs[:2])                     # 2 x 2 vCPUs
    time.sleep(1)
    assert place.job(jobs[2])['status'] == 'RUNNABLE'
    place.close()


@pytest.mark.parametrize('kinds, memory, kind', [
    (['m5.large', 'm5.xlarge'], 7763, 'm5.large'), (['m5.large', 'm5.xlarge'], 7764, 'm5.xlarge'),
    (['c5.xlarge'], 7623, 'c5.xlarge'), (['r5.xlarge'], 31703, 'r5.xlarge'),
    (['optimal'], 1024, '[mcr][67]i.large')])
def test_instance_offers_what_jobs_see_on_aws(aws, kinds, memory, kind):
    place = Place(aws, kinds=kinds)
    place.running(place.submit('sleep 60', 1, memory))
    assert re.fullmatch(kind, place.containers()[0]['instanceType'])
    place.close()


@pytest.mark.parametrize('vcpus, memory, reason', [
    (64, 512, 'MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE'),
    (1, 900_000, 'MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT'),
    (2, 512, 'CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY')])
def test_job_without_room_says_why_and_is_cancelled_after_the_limit(aws, vcpus, memory, reason):
    place = Place(aws, limits=[
        {'action': 'CANCEL', 'state': 'RUNNABLE', 'maxTimeSeconds': 600, 'reason': reason}])
    if reason.startswith('CAPACITY'):
        local_aws('quota', {'vcpus': 1}, env=aws)
    job = place.submit('true', vcpus, memory)
    waiting = wait_until(lambda: place.job(job).get('statusReason') and place.job(job))
    assert waiting['status'] == 'RUNNABLE' and waiting['statusReason'].startswith(reason + ' - ')
    local_aws('speed', {'times': 600}, env=aws)
    done = place.ended(job)
    assert (done['status'], done['statusReason']) == (
        'FAILED', 'Canceled by JobStateTimeLimit action due to reason: ' + reason)
    place.close()


def test_job_without_quota_waits_until_there_is_some(place):
    local_aws('quota', {'vcpus': 0}, env=place.env)
    job = place.submit('true')
    wait_until(lambda: 'statusReason' in place.job(job))
    local_aws('quota', {}, env=place.env)
    assert place.ended(job)['status'] == 'SUCCEEDED'


# ---------------------------------------------------------------------------------------------
# Fargate
# ---------------------------------------------------------------------------------------------

PUBLIC = {'assignPublicIp': 'ENABLED'}


def test_fargate_job_needs_no_instance(aws):
    place = Place(aws, kind='FARGATE_SPOT')
    job = place.submit('echo $AWS_EXECUTION_ENV', 1, 2048, capabilities=['FARGATE'],
                       executionRoleArn=place.role, networkConfiguration=PUBLIC)
    done = place.ended(job)
    assert done['status'] == 'SUCCEEDED' and 'containerInstanceArn' not in done['container']
    assert done['platformCapabilities'] == ['FARGATE'] and place.output(job) == ['AWS_ECS_FARGATE']
    place.close()


def test_fargate_spot_always_tells_a_job_before_it_is_interrupted(aws):
    place = Place(aws, kind='FARGATE_SPOT')
    job = place.submit("trap 'echo told; exit 0' TERM; echo up; sleep 60 & wait", 1, 2048,
                       capabilities=['FARGATE'], executionRoleArn=place.role, networkConfiguration=PUBLIC)
    wait_until(lambda: 'logStreamName' in place.job(job)['container'] and place.output(job))
    local_aws('jobs/interrupt', {'jobId': job, 'notice': False}, env=aws)
    done = place.ended(job)
    assert (done['status'], done['statusReason']) == ('FAILED', 'Your Spot Task was interrupted.')
    assert place.output(job) == ['up', 'told']
    place.close()


@pytest.mark.parametrize('vcpus, memory, more, said', [
    (1, 1750, {}, '2048'), (3, 8192, {}, '0.25, 0.5, 1'),
    (1, 2048, {'executionRoleArn': ''}, 'executionRoleArn')])
def test_fargate_job_that_fargate_does_not_have_is_refused(aws, vcpus, memory, more, said):
    place = Place(aws, kind='FARGATE')
    with refused('ClientException', said):
        place.submit('true', vcpus, memory, capabilities=['FARGATE'], networkConfiguration=PUBLIC,
                     **dict({'executionRoleArn': place.role}, **more))
    place.close()


def test_fargate_job_without_a_way_out_does_not_start(aws):
    place = Place(aws, kind='FARGATE')
    job = place.submit('true', 1, 2048, capabilities=['FARGATE'], executionRoleArn=place.role)
    done = place.ended(job)
    assert done['status'] == 'FAILED' and done['statusReason'].startswith('ResourceInitializationError')
    place.close()


def test_job_of_one_platform_is_refused_on_the_other(aws):
    place = Place(aws, kind='FARGATE')
    with refused('ClientException', 'platform'):
        place.submit('true')
    place.close()


# ---------------------------------------------------------------------------------------------
# Containers
# ---------------------------------------------------------------------------------------------

LOOK = '''
    import json, os, tempfile
    paths = json.loads(os.environ['PATHS'])
    with open(os.path.join(tempfile.gettempdir(), 'mine'), 'x') as file:
        file.write('mine')
    temporary = [entry.name for entry in os.scandir(tempfile.gettempdir()) if entry.is_file()]
    print(json.dumps({'seen': [path for path in paths if os.path.exists(path)], 'temporary': temporary,
                      'here': os.listdir(os.getcwd()), 'home': os.listdir(os.path.expanduser('~'))}))
'''


def test_job_sees_an_empty_disk_and_no_file_of_the_submitter(place, tmp_path):
    """Twice, the second after the first: nothing of that is left either."""
    isolation = local_aws('server', env=place.env)['disk']
    with tempfile.NamedTemporaryFile(dir='/var/tmp') as mine:
        paths = [mine.name, str(tmp_path), '/mnt', '/srv']
        for _ in range(2):
            job = place.submit(python(LOOK), environment=[{'name': 'PATHS', 'value': json.dumps(paths)}])
            assert place.ended(job)['status'] == 'SUCCEEDED', place.output(job)
            saw = json.loads(place.output(job)[-1])
            assert (saw['here'], saw['home'], saw['temporary']) == ([], [], ['mine'])
            assert saw['seen'] == [] or isolation == 'folders'
    assert isolation == 'namespace' or sys.platform != 'linux' or os.geteuid() != 0


def test_job_changes_nothing_that_it_sees_of_the_machine(place):
    if local_aws('server', env=place.env)['disk'] != 'namespace':
        pytest.skip('no mount namespace here')
    prefix = pathlib.Path(sys.prefix)
    job = place.submit('touch {0}/spoilt /usr/spoilt; echo $?'.format(prefix))
    place.ended(job)
    assert place.output(job)[-1] == '1'
    assert not (prefix / 'spoilt').exists() and not pathlib.Path('/usr/spoilt').exists()


def test_job_reads_and_writes_the_folder_that_is_shared(place, shared):
    (shared / 'mine').write_text('for you')
    job = place.submit('cat {0}/mine; echo for me >{0}/theirs'.format(shared))
    assert place.ended(job)['status'] == 'SUCCEEDED' and place.output(job) == ['for you']
    assert (shared / 'theirs').read_text() == 'for me\n'


SEES = '''import os, rios_awsbatch
print(os.environ.get('COLOUR'), rios_awsbatch.__file__, VERSION, flush=True)
'''


def put_image(env, tag, path, **variables):
    made = local_aws('images', {'path': str(path), 'variables': variables}, env=env)
    ecr = client('ecr', env)
    with contextlib.suppress(ecr.exceptions.RepositoryAlreadyExistsException):
        ecr.create_repository(repositoryName='images')
    manifest = {'schemaVersion': 2, 'mediaType': 'application/vnd.oci.image.manifest.v1+json', 'layers': [],
                'config': {'digest': made['digest']}, 'annotations': made['annotations']}
    ecr.put_image(repositoryName='images', imageTag=tag, imageManifest=json.dumps(manifest))
    return '123456789012.dkr.ecr.{}.amazonaws.com/images:{}'.format(REGION, tag)


def test_latest_is_looked_up_whenever_a_container_starts(place, tmp_path):
    """An image stays as it was pushed, though its files change; a second attempt gets what is latest."""
    entry = tmp_path / 'entry.py'
    entry.write_text(SEES.replace('VERSION', '"one"') + 'import time\ntime.sleep(60)\n')
    image = put_image(place.env, 'latest', entry, COLOUR='blue')
    entry.write_text(SEES.replace('VERSION', '"two"'))
    job = place.submit([], image=image, retry={'attempts': 2})
    place.running(job)
    first = wait_until(lambda: place.output(job))
    put_image(place.env, 'latest', entry, COLOUR='green')
    os.kill(place.containers()[0]['pid'], 9)
    done = place.ended(job)
    assert done['status'] == 'SUCCEEDED' and len(done['attempts']) == 2
    said = [text.split() for text in (first[0], place.output(job)[0])]
    assert [(words[0], words[-1]) for words in said] == [('blue', 'one'), ('green', 'two')]
    assert not said[0][1].startswith(str(ROOT / 'rios_awsbatch.py'))


def test_page_of_a_log_may_be_empty_and_its_end_is_a_token_that_stays(place):
    job = place.submit('for i in 1 2 3 4 5; do echo $i; done')
    place.ended(job)
    stream, pages, token = place.job(job)['container']['logStreamName'], [], {}
    while len(pages) < 20:
        page = place.logs.get_log_events(logGroupName='/aws/batch/job', logStreamName=stream, limit=2,
                                         startFromHead=True, **token)
        pages.append([event['message'] for event in page['events']])
        if page['nextForwardToken'] == token.get('nextToken'):
            break
        token = {'nextToken': page['nextForwardToken']}
    assert pages == [[], ['1', '2'], [], ['3', '4'], [], ['5'], []]


# ---------------------------------------------------------------------------------------------
# Credentials
# ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('service, operation, parameters, code, status', [
    ('s3', 'list_buckets', {}, 'ExpiredToken', 400), ('sqs', 'list_queues', {}, 'ExpiredToken', 403),
    ('cloudformation', 'describe_stacks', {}, 'ExpiredToken', 403),
    ('sts', 'get_caller_identity', {}, 'ExpiredToken', 403),
    ('batch', 'describe_job_queues', {}, 'ExpiredTokenException', 403),
    ('logs', 'describe_log_groups', {}, 'ExpiredTokenException', 400)])
def test_expired_login_is_told_as_each_service_tells_it(place, service, operation, parameters, code, status):
    asked = getattr(client(service, place.env), operation)
    asked(**parameters)
    local_aws('login', {'expired': True}, env=place.env)
    with pytest.raises(botocore.exceptions.ClientError, match='expired') as raised:
        asked(**parameters)
    answer = raised.value.response
    assert (answer['Error']['Code'], answer['ResponseMetadata']['HTTPStatusCode']) == (code, status)
    local_aws('login', {'expired': False}, env=place.env)
    asked(**parameters)


POLICY = {'Version': '2012-10-17', 'Statement': [
    {'Effect': 'Allow', 'Action': ['s3:GetObject', 's3:PutObject', 's3:AbortMultipartUpload'],
     'Resource': 'arn:aws:s3:::BUCKET/mine/*'},
    {'Effect': 'Allow', 'Action': 's3:ListBucket', 'Resource': 'arn:aws:s3:::BUCKET'}]}

GDAL = '''
    import os, time
    import boto3
    import numpy
    from osgeo import gdal
    gdal.UseExceptions()
    bucket = os.environ['BUCKET']
    gdal.SetConfigOption('CPL_VSIL_USE_TEMP_FILE_FOR_RANDOM_WRITE', 'YES')
    gdal.SetConfigOption('GDAL_DISABLE_READDIR_ON_OPEN', 'EMPTY_DIR')
    data = gdal.Open('/vsis3/{}/mine/in.tif'.format(bucket)).ReadAsArray()
    until, n = time.time() + float(os.environ['SECONDS']), 0
    while time.time() < until or not n:
        path = '/vsis3/{}/mine/out{}.tif'.format(bucket, n)
        made = gdal.GetDriverByName('GTiff').Create(path, 512, 512, 1, gdal.GDT_UInt16)
        made.GetRasterBand(1).WriteArray(data + 1)
        made = None
        gdal.VSICurlClearCache()
        assert (gdal.Open(path).ReadAsArray(100, 100, 50, 50) == data[100:150, 100:150] + 1).all()
        written = boto3.client('s3').head_object(Bucket=bucket, Key='mine/out{}.tif'.format(n))
        assert written['ContentLength'] > 2**19
        n += 1
    names = [entry for entry in gdal.ReadDir('/vsis3/{}/mine/'.format(bucket))]
    assert {'in.tif', 'out0.tif'} <= set(names), names
    try:
        gdal.Open('/vsis3/{}/theirs/in.tif'.format(bucket))
        print('was allowed')
    except RuntimeError as error:
        print('denied', n)
'''


def gdal_job(place, seconds):
    """A job that reads and writes rasters on S3 with its role's credentials; what it said."""
    iam, s3, bucket = client('iam', place.env), client('s3', place.env), place.name
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={'LocationConstraint': REGION})
    iam.put_role_policy(RoleName=place.name, PolicyName='it',
                        PolicyDocument=json.dumps(POLICY).replace('BUCKET', bucket))
    numpy, gdal = pytest.importorskip('numpy'), pytest.importorskip('osgeo.gdal')
    made = gdal.GetDriverByName('GTiff').Create('/vsimem/in.tif', 512, 512, 1, gdal.GDT_UInt16)
    made.GetRasterBand(1).WriteArray(numpy.arange(512 * 512, dtype=numpy.uint16).reshape(512, 512))
    made = None
    size = gdal.VSIStatL('/vsimem/in.tif').size
    file = gdal.VSIFOpenL('/vsimem/in.tif', 'rb')
    content = bytes(gdal.VSIFReadL(1, size, file))
    gdal.VSIFCloseL(file)
    for key in ('mine/in.tif', 'theirs/in.tif'):
        s3.put_object(Bucket=bucket, Key=key, Body=content)
    local_aws('iam', {'enforced': True}, env=place.env)
    job = place.submit(python(GDAL), memory=1024, jobRoleArn=place.role, environment=[
        {'name': 'BUCKET', 'value': bucket}, {'name': 'SECONDS', 'value': str(seconds)},
        {'name': 'AWS_DEFAULT_REGION', 'value': REGION}])
    done = place.ended(job)
    assert done['status'] == 'SUCCEEDED', place.output(job)
    return place.output(job)[-1]


def test_gdal_in_a_job_reads_and_writes_on_s3_as_its_role_may(place):
    assert gdal_job(place, 0) == 'denied 1'


def test_credentials_of_a_job_are_renewed_in_mid_run(place):
    local_aws('credentials', {'seconds': 4}, env=place.env)
    said, count = gdal_job(place, 10).split()
    assert said == 'denied' and int(count) > 1


def test_call_that_takes_longer_than_sqs_hides_it_is_told_once(place, monkeypatch, caplog):
    monkeypatch.setenv('AWS_ENDPOINT_URL', place.env['AWS_ENDPOINT_URL'])
    local_aws('sqs', {'hidden': 100}, env=place.env)
    url = client('sqs', place.env).create_queue(QueueName=place.name)['QueueUrl']
    channel = rios_awsbatch.Channel('run', b'key', 'bucket', url, url, REGION).connect()
    channel.send(url, [{'MessageBody': 'slow'}, {'MessageBody': 'quick'}])
    receipts = [message['ReceiptHandle'] for _ in range(2) for message in channel.receive(url, 5, 1)]
    assert len(receipts) == 2
    channel.hide(receipts, 90)
    assert not caplog.messages
    for _ in range(3):
        channel.hide(receipts, 110)
    channel.delete(url, receipts)
    channel.hide(receipts, 90)              # answered meanwhile
    said, = caplog.messages
    assert 'takes longer than the 12 hours' in said


# ---------------------------------------------------------------------------------------------
# A judge from outside: botocore's models
# ---------------------------------------------------------------------------------------------

def faults_of(shape, value, path=''):
    """How a value differs from a shape of botocore's: members unknown or missing, wrong types and values."""
    if shape.type_name == 'structure':
        if not isinstance(value, dict):
            return ['{}: not a structure'.format(path)]
        found = ['{}: no {}'.format(path, name) for name in shape.required_members if name not in value]
        found += ['{}: unknown {}'.format(path, name) for name in value if name not in shape.members]
        # moto writes null where AWS writes nothing; botocore reads them alike.
        return found + [
            fault for name in value if name in shape.members and value[name] is not None
            for fault in faults_of(shape.members[name], value[name], '{}.{}'.format(path, name))]
    if shape.type_name == 'list':
        return [fault for item in value for fault in faults_of(shape.member, item, path + '[]')]
    if shape.type_name == 'map':
        return [fault for item in value.values() for fault in faults_of(shape.value, item, path + '{}')]
    kinds = {'string': str, 'integer': int, 'long': int, 'boolean': bool, 'float': float, 'double': float,
             'blob': str, 'timestamp': (int, float)}
    if not isinstance(value, kinds[shape.type_name]):
        return ['{}: {!r} is no {}'.format(path, value, shape.type_name)]
    if getattr(shape, 'enum', None) and value not in shape.enum:
        return ['{}: {!r} is none of {}'.format(path, value, shape.enum)]
    return []


# AWS's own examples of DescribeJobs lack startedAt where a job has not started, though the model requires it.
# AWS takes RETRY and gives back retry.
KNOWN = ('no startedAt', "'retry' is none of ['RETRY', 'EXIT']", "'exit' is none of ['RETRY', 'EXIT']")


def judge(env, service, operation, **parameters):
    """Ask, and hold the answer as it comes over the wire against the model."""
    asked, raw = client(service, env), []
    asked.meta.events.register('before-parse.*', lambda response_dict, **_: raw.append(response_dict['body']))
    getattr(asked, operation)(**parameters)
    name = asked.meta.method_to_api_mapping[operation]
    shape = asked.meta.service_model.operation_model(name).output_shape
    answer = json.loads(raw[0] or '{}') if raw[0] else {}
    if shape is None:
        return answer
    assert [fault for fault in faults_of(shape, answer, name) if not fault.endswith(KNOWN)] == []
    return answer


def test_answers_fit_the_models_of_botocore(place, tmp_path):
    env = place.env
    entry = tmp_path / 'entry.py'
    entry.write_text('print(1)')
    image = put_image(env, 'judged', entry)
    retry = {'attempts': 2, 'evaluateOnExit': [{'action': 'EXIT', 'onReason': '*'}]}
    jobs = [place.submit('exit 1', size=2, retry=retry), place.submit([], image=image),
            place.submit('true', 99), place.submit('true', 99)]
    place.batch.cancel_job(jobId=jobs[3], reason='enough')
    for job in jobs[:2] + jobs[3:]:
        place.ended(job)
    judge(env, 'batch', 'describe_jobs', jobs=jobs + [jobs[0] + ':1'])
    for status in ('RUNNABLE', 'SUCCEEDED', 'FAILED'):
        judge(env, 'batch', 'list_jobs', jobQueue=place.name, jobStatus=status)
    judge(env, 'batch', 'list_jobs', arrayJobId=jobs[0], jobStatus='FAILED')
    judge(env, 'batch', 'terminate_job', jobId=jobs[2], reason='enough')
    judge(env, 'batch', 'describe_job_queues')
    judge(env, 'batch', 'describe_compute_environments')
    judge(env, 'batch', 'describe_job_definitions')
    name = place.job(jobs[1])['jobDefinition']
    judge(env, 'batch', 'submit_job', jobName='x', jobQueue=place.name, jobDefinition=name)
    url = judge(env, 'sqs', 'create_queue', QueueName=place.name)['QueueUrl']
    judge(env, 'sqs', 'list_queues')
    judge(env, 'sqs', 'get_queue_attributes', QueueUrl=url, AttributeNames=['All'])
    colour = {'colour': {'DataType': 'Binary', 'BinaryValue': b'blue'}}
    judge(env, 'sqs', 'send_message', QueueUrl=url, MessageBody='x', MessageAttributes=colour)
    judge(env, 'sqs', 'send_message_batch', QueueUrl=url, Entries=[
        {'Id': '1', 'MessageBody': 'x'}, {'Id': '2', 'MessageBody': '\x00'}])
    received = judge(env, 'sqs', 'receive_message', QueueUrl=url, AttributeNames=['All'],
                     MaxNumberOfMessages=10, MessageAttributeNames=['All'])['Messages']
    handles = [{'Id': str(n), 'ReceiptHandle': each['ReceiptHandle']} for n, each in enumerate(received)]
    judge(env, 'sqs', 'change_message_visibility_batch', QueueUrl=url, Entries=[
        dict(handle, VisibilityTimeout=9) for handle in handles])
    judge(env, 'sqs', 'delete_message_batch', QueueUrl=url, Entries=handles)
    judge(env, 'ecr', 'describe_repositories')
    judge(env, 'ecr', 'list_images', repositoryName='images')
    judge(env, 'ecr', 'describe_images', repositoryName='images')
    judge(env, 'ecr', 'batch_get_image', repositoryName='images', imageIds=[{'imageTag': 'judged'}])
