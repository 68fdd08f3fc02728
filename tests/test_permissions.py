"""
The policies of the stack suffice for what a run does, and for no more.

All else about batch.yaml is in test_template.py.
"""
import inspect
import json
import re
import subprocess
import sys
import textwrap

import pytest

import rios_awsbatch
from tests.helpers import (
    PATIENCE, REGION, ROOT, SCRIPTS, Stack, another_aws, load_template, local_aws, run, succeeds,
    user_who_may_all_but, user_with_main_policy, write_main)


ALLOWED = '''
    import json, signal
    import numpy

    def who():
        import boto3
        return boto3.client('sts', region_name=rios_awsbatch.REGION).get_caller_identity()['Arn']

    def dies_once(x, bucket, key):
        import boto3
        if x == 3:
            s3 = boto3.client('s3', region_name=rios_awsbatch.REGION)
            try:
                s3.get_object(Bucket=bucket, Key=key)
            except s3.exceptions.ClientError:
                s3.put_object(Bucket=bucket, Key=key)
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        return x

    image = numpy.arange(10**6)
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        for total, doubled in executor.map(lambda x: (x.sum(), x * 2), [image] * 6, buffersize=3):
            assert total == image.sum() and (doubled == 2 * image).all()
        bucket, key = rios_awsbatch.getStackOutputs()['BatchBucket'], 'runs/dead-once-' + sys.argv[1]
        assert list(executor.map(dies_once, range(12), [bucket] * 12, [key] * 12)) == list(range(12))
        import boto3
        s3 = boto3.client('s3', region_name=rios_awsbatch.REGION)
        s3.get_object(Bucket=bucket, Key=key)
        s3.delete_object(Bucket=bucket, Key=key)
        worker = executor.submit(who).result()
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        executor.submit(print, 'about to go').result()
        # What a broken run is told with: the first end is one too many.
        rios_awsbatch.MAX_UNANSWERED = 0
        log = str(executor.submit(lambda: os.kill(os.getppid(), signal.SIGKILL)).exception())
    print(json.dumps({'main': who(), 'worker': worker, 'log': log}), flush=True)
'''


def denials(stack, env):
    """What was denied, but for what means only that an object is not there, to those who may not list."""
    bucket = 'arn:aws:s3:::' + stack.outputs()['BatchBucket']
    return [each for each in local_aws('iam', env=env)['denials']
            if (each['action'], each['resource']) != ('s3:ListBucket', bucket)
            and not (each['action'] == 's3:GetObject'
                     and each['resource'].startswith(bucket + '/runs/dead-once-'))]


@pytest.mark.slow
def test_permissions_suffice(tmp_path):
    """
    A user with the stack's policy alone can run main scripts here and, with submit.sh, there, look at both
    with status.sh and clean up; and the main job can run one with its role.
    """
    with another_aws(tmp_path) as env:
        script = write_main(tmp_path, ALLOWED)
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py').push('BatchECRMain', script)
        outputs = stack.outputs()
        user, arn = user_with_main_policy(stack)
        dead = '20260101T000000-0123abcd'
        for end in ('in', 'out'):
            stack.client('sqs').create_queue(QueueName='{}_{}_{}'.format(stack.name, dead, end))
        stack.client('s3').put_object(Bucket=outputs['BatchBucket'], Key='runs/{}/call-1'.format(dead),
                                      Body=b'x')
        local_aws('iam', {'enforced': True}, env=env)
        with subprocess.Popen([SCRIPTS / 'submit.sh', '--wait', '--', 'there'], env=user, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as there:
            here = subprocess.run([sys.executable, script, 'here'], env=user, capture_output=True, text=True,
                                  timeout=PATIENCE)
            assert here.returncode == 0, here.stderr
            out, err = there.communicate(timeout=PATIENCE)
        assert there.returncode == 0, out + err
        for text in (here.stdout, out):
            said = json.loads(text.splitlines()[-1])
            role = '/{}/'.format(outputs['BatchJobRoleArn'].rpartition('/')[2])
            assert ':assumed-role/' in said['worker'] and role in said['worker']
            assert said['main'] == arn or 'MainRole' in said['main']
            # What Batch says, and the tail of the log.
            assert 'about to go' in said['log']
        done = run('status.sh', '--clean', env=user)
        assert 'Removed what was left of ' + dead in succeeds(done)
        assert not stack.queues() and not stack.objects('runs/')
        assert denials(stack, env) == []


FORBIDDEN = '''
    import json

{denied}

    requests = json.loads(sys.argv[1])
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        settings = rios_awsbatch.JobSettings.from_env(executor.submit(lambda: dict(os.environ)).result())
        bucket, folder = settings.bucket, 'runs/' + settings.run_id + '/'
        requests['worker'] += [
            ['sqs', 'receive_message', {{'QueueUrl': settings.out_queue}}],
            ['sqs', 'purge_queue', {{'QueueUrl': settings.in_queue}}],
            ['sqs', 'delete_queue', {{'QueueUrl': settings.in_queue}}],
            ['s3', 'delete_object', {{'Bucket': bucket, 'Key': folder + 'lease'}}],
            ['s3', 'list_objects_v2', {{'Bucket': bucket, 'Prefix': folder}}]]
        answers = {{'worker': executor.submit(denied, requests['worker']).result(),
                   'main': denied(requests['main'])}}
        assert executor.submit(abs, -1).result() == 1
    for who in requests:
        for request, answer in zip(requests[who], answers[who]):
            if answer:
                print(who, *request[:2], answer)
'''


def denied(requests):
    """Make requests with own credentials: for each None where AWS denies it, else what happened instead."""
    import boto3
    import botocore.exceptions
    clients, answers = {}, []
    for service, operation, parameters in requests:
        if service not in clients:
            clients[service] = boto3.client(service, region_name=rios_awsbatch.REGION)
        try:
            getattr(clients[service], operation)(**parameters)
            answers.append('was allowed')
        except botocore.exceptions.ClientError as error:
            refused = ('AccessDenied', 'AccessDeniedException', 'UnauthorizedOperation')
            answers.append(None if error.response['Error']['Code'] in refused else repr(error))
    return answers


@pytest.mark.slow
def test_permissions_go_no_further(tmp_path):
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        other = Stack(stack.name + '-2', env=env).create()
        mine, theirs = stack.outputs(), other.outputs()
        queue = stack.client('sqs').create_queue(
            QueueName=other.name + '_20260101T000000-0123abcd_in')['QueueUrl']
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
            ['s3', 'create_bucket',
             {'Bucket': 'another', 'CreateBucketConfiguration': {'LocationConstraint': REGION}}],
            ['s3', 'delete_bucket', {'Bucket': mine['BatchBucket']}],
            ['s3', 'delete_bucket_policy', {'Bucket': mine['BatchBucket']}],
            ['sqs', 'receive_message', {'QueueUrl': queue}],
            ['sqs', 'receive_message', {'QueueUrl': foreign}],
            ['sqs', 'send_message', {'QueueUrl': queue, 'MessageBody': 'x'}],
            ['sqs', 'delete_queue', {'QueueUrl': queue}],
            ['sqs', 'create_queue', {'QueueName': other.name + '_20260101T000000-0123abcd_out'}],
            ['batch', 'submit_job', dict(job, jobQueue=theirs['BatchProcessingJobQueueName'])],
            ['batch', 'submit_job', dict(job, jobDefinition=theirs['BatchProcessingJobDefinitionName'])],
            ['batch', 'submit_job', dict(job, jobDefinition=theirs['BatchProcessingJobDefinitionMainName'])],
            ['batch', 'submit_job', dict(job, jobQueue=theirs['BatchProcessingJobQueueMainName'])],
            ['batch', 'register_job_definition',
             {'jobDefinitionName': 'x', 'type': 'container', 'containerProperties': {
                'image': 'x', 'vcpus': 1, 'memory': 128}}],
            ['batch', 'update_job_queue',
             {'jobQueue': mine['BatchProcessingJobQueueName'], 'state': 'DISABLED'}],
            ['cloudformation', 'create_stack', {'StackName': 'another', 'TemplateBody': '{}'}],
            ['cloudformation', 'delete_stack', {'StackName': stack.name}],
            ['cloudformation', 'describe_stacks', {'StackName': other.name}],
            ['iam', 'create_user', {'UserName': 'me-too'}], ['iam', 'list_users', {}],
            ['iam', 'create_access_key', {'UserName': 'scientist-' + stack.name}],
            ['iam', 'attach_user_policy', {'UserName': 'scientist-' + stack.name,
                                           'PolicyArn': 'arn:aws:iam::aws:policy/AdministratorAccess'}],
            ['logs', 'get_log_events',
             {'logGroupName': theirs['BatchLogGroup'], 'logStreamName': 'worker/default/x'}],
            ['logs', 'delete_log_group', {'logGroupName': mine['BatchLogGroup']}],
            ['ecr', 'get_authorization_token', {}],
            ['ecr', 'describe_images', {'repositoryName': theirs['BatchECR']}],
            ['ecr', 'batch_delete_image',
             {'repositoryName': mine['BatchECR'], 'imageIds': [{'imageTag': 'latest'}]}],
            ['ec2', 'describe_instances', {}],
            ['ec2', 'run_instances', {'MinCount': 1, 'MaxCount': 1, 'ImageId': 'ami-1'}]]
        worker = [
            ['sqs', 'create_queue', {'QueueName': stack.name + '_20260101T000000-0123abcd_in'}],
            ['sqs', 'list_queues', {}], ['ecr', 'describe_images', {'repositoryName': mine['BatchECR']}],
            ['batch', 'submit_job', job],
            ['batch', 'list_jobs', {'jobQueue': mine['BatchProcessingJobQueueName']}],
            ['batch', 'terminate_job', {'jobId': 'x', 'reason': 'x'}],
            ['cloudformation', 'describe_stacks', {'StackName': stack.name}],
            ['logs', 'get_log_events',
             {'logGroupName': mine['BatchLogGroup'], 'logStreamName': 'worker/default/x'}]]
        user, _ = user_with_main_policy(stack)
        local_aws('iam', {'enforced': True}, env=env)
        script = write_main(tmp_path,
                            FORBIDDEN.format(denied=textwrap.indent(inspect.getsource(denied), '    ')))
        done = subprocess.run([sys.executable, script, json.dumps({'main': both, 'worker': both + worker})],
                              env=user,
                              capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stdout) == (0, ''), done.stdout + done.stderr
        # The owner could have done each of these.
        local_aws('iam', {'enforced': False}, env=env)
        assert other.status() == stack.status() == 'CREATE_COMPLETE'


DATA = '''
    import json

{denied}

    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        print(json.dumps(executor.submit(denied, json.loads(sys.argv[1])).result()), flush=True)
'''


@pytest.mark.slow
def test_workers_read_and_write_in_the_folders_that_were_given_and_nowhere_else(tmp_path):
    """So does the main job. A folder is not its neighbour whose name begins alike."""
    with another_aws(tmp_path) as env:
        stack = Stack(env=env)
        s3, buckets = stack.client('s3'), ('whole-' + stack.service, 'scenes-' + stack.service,
                                           'results-' + stack.service)
        whole, scenes, results = buckets
        for bucket in buckets:
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={'LocationConstraint': REGION})
            for key in ('a/x', 'ab/x', 'x', 'b/x'):
                s3.put_object(Bucket=bucket, Key=key, Body=b'x')
        succeeds(run('create.sh', '--servicename', stack.service, '--wait', '--readbucket', whole,
                     '--readbucket',
                     's3://{}/a/'.format(scenes), '--writebucket', results + '/b', env=stack.env))
        stack.push('BatchECR', ROOT / 'worker.py')

        def get(bucket, key):
            return ['s3', 'get_object', {'Bucket': bucket, 'Key': key}]

        def put(bucket, key):
            return ['s3', 'put_object', {'Bucket': bucket, 'Key': key, 'Body': 'y'}]

        def listing(bucket, prefix=''):
            return ['s3', 'list_objects_v2', {'Bucket': bucket, 'Prefix': prefix}]

        allowed = [get(whole, 'x'), get(whole, 'a/x'), listing(whole), get(scenes, 'a/x'),
                   listing(scenes, 'a/'),
                   get(results, 'b/x'), put(results, 'b/x'), put(results, 'b/c/y'), listing(results, 'b/c'),
                   ['s3', 'delete_object', {'Bucket': results, 'Key': 'b/x'}]]
        refused = [put(whole, 'x'), get(scenes, 'x'), get(scenes, 'ab/x'), put(scenes, 'a/x'),
                   listing(scenes),
                   listing(scenes, 'ab/'), get(results, 'a/x'), put(results, 'x'), put(results, 'a/x'),
                   put(results, 'bc/x'), listing(results),
                   ['s3', 'delete_object', {'Bucket': scenes, 'Key': 'a/x'}]]
        script = write_main(tmp_path, DATA.format(denied=textwrap.indent(inspect.getsource(denied), '    ')))
        user, _ = user_with_main_policy(stack)
        local_aws('iam', {'enforced': True}, env=env)
        done = subprocess.run([sys.executable, script, json.dumps(allowed + refused)], env=user,
                              capture_output=True,
                              text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
        assert answers == ['was allowed'] * len(allowed) + [None] * len(refused), answers


def test_policies_have_no_wildcard_that_aws_does_not_ask_for():
    resources = load_template()['Resources'].values()
    documents = [item['Properties']['PolicyDocument'] for item in resources if item['Type'] in (
        'AWS::IAM::ManagedPolicy', 'AWS::IAM::Policy')]
    documents += [policy['PolicyDocument'] for item in resources if item['Type'] == 'AWS::IAM::Role'
                  for policy in item['Properties'].get('Policies', [])]
    assert len(documents) == 6
    for statement in (statement for document in documents for statement in document['Statement']):
        actions, targets = (item if isinstance(item, list) else [item]
                            for item in (statement['Action'], statement['Resource']))
        assert statement['Effect'] == 'Allow' and not any('*' in action for action in actions), statement
        for target in targets:
            if target == '*':
                # Service authorization reference: these have no resource.
                assert set(actions) <= {'batch:DescribeJobs', 'batch:ListJobs', 'sqs:ListQueues',
                                        'ecr:GetAuthorizationToken'}, statement
            else:
                # Something of this stack or of the user's, or
                assert set(target) <= {'Ref', 'GetAtt', 'Sub', 'Split'}, statement
                if str(target.get('Sub')).endswith(':job/*'):       # a job, which AWS names
                    assert actions == ['batch:SubmitJob', 'batch:TerminateJob']
                elif 'Sub' in target:
                    assert re.search(r'[{]AWS::StackName[}]|[{]Bucket.Arn[}]|[{]ServiceName[}]',
                                     target['Sub']), statement
    # Jobs have these policies and no others.
    roles = {name: load_template()['Resources'][name]['Properties'] for name in ('JobRole', 'MainRole')}
    assert 'ManagedPolicyArns' not in roles['JobRole']
    assert roles['MainRole']['ManagedPolicyArns'] == [{'Ref': 'MainPolicy'}]


@pytest.mark.parametrize('action', ['batch:ListJobs', 'iam:ListEntitiesForPolicy'])
def test_delete_stops_where_it_may_not_see_what_is_in_its_way(action, tmp_path):
    """A job that is not seen would go on, and cost money, when its stack is gone."""
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create()
        keys = user_who_may_all_but(action, stack)
        local_aws('iam', {'enforced': True}, env=env)
        done = stack.run('delete.sh', '--yes', '--wait', env=keys)
        assert done.returncode and action in done.stderr, done.stdout + done.stderr
        assert stack.status() == 'CREATE_COMPLETE'


def test_objects_that_cleaning_up_cannot_remove_are_told(tmp_path):
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create()
        stack.client('s3').put_object(Bucket=stack.outputs()['BatchBucket'], Key='runs/20260101T000000-0abc/x')
        keys = user_who_may_all_but('s3:DeleteObject', stack, 'arn:aws:s3:::*/runs/2*')
        local_aws('iam', {'enforced': True}, env=env)
        done = stack.run('status.sh', '--clean', env=keys)
        assert done.returncode and 's3:DeleteObject' in done.stderr, done.stdout + done.stderr
