"""
The policies of the stack suffice for what a run does, and for no more.
"""
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap


import rios_awsbatch
from tests.conftest import (
    load_template, ROOT, REGION, PATIENCE, local_aws, wait_until, Stack, write_main, another_aws)


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


def test_permissions_suffice(tmp_path, shared):
    """A user with the stack's policy, and the main job with its role, can do all that a run needs."""
    with another_aws(tmp_path) as env:
        script = write_main(tmp_path, ALLOWED)
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py').push('BatchECRMain', script)
        user, arn = user_with_main_policy(stack)
        local_aws('iam', {'enforced': True}, env=env)
        names = [[str(shared / (who + what)) for what in ('-killed', '-answer')] for who in ('user', 'job')]
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
        assert [each for each in local_aws('iam', env=env)['denials'] if (each['action'], each['resource']) != (
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
        local_aws('iam', {'enforced': True}, env=env)
        script = write_main(tmp_path, FORBIDDEN.format(denied=textwrap.indent(inspect.getsource(denied), '    ')))
        done = subprocess.run([sys.executable, script, json.dumps({'main': both, 'worker': both + worker})], env=user,
                              capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stdout) == (0, ''), done.stdout + done.stderr
        # The owner could have done each of these.
        local_aws('iam', {'enforced': False}, env=env)
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
