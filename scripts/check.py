"""Whether an AWS account, the stack and the image are what main scripts need: scripts/check.sh runs it."""
import concurrent.futures
import contextlib
import email.utils
import json
import os
import pathlib
import re
import sys
import time

import rios_awsbatch
from rios_awsbatch import AWS_ERRORS, DENIED, REGION, STACK_NAME, AWSBatchException, is_one_of

# Of Service Quotas: vCPUs at a time, by the type of a compute environment; families with GPUs have their own.
QUOTAS = {'EC2': 'L-1216C47A', 'SPOT': 'L-34B43A08', 'FARGATE': 'L-3032A538', 'FARGATE_SPOT': 'L-36FBB829',
          'EC2 g': 'L-DB2E81BA', 'SPOT g': 'L-3819A6DF', 'EC2 p': 'L-417A185B', 'SPOT p': 'L-7212CCBC'}
# ComputeResource.instanceTypes in the model of Batch.
SETS = {'default_arm64': 'm6g c6g r6g c7g', **dict.fromkeys(('default_x86_64', 'optimal'), 'm6i c6i r6i c7i')}
END_SECONDS = 180       # a worker that is told to end, or that takes another one's place, has done so by then


class Checks:
    """A method for each check. What they `found`, and `facts` that were seen of AWS, are dictionaries."""

    def __init__(self, quiet):
        self.quiet, self.found, self.facts, self.arn, self.bucket = quiet, [], [], '', ''
        self.workers, self.stops = 2, []    # of the run, and what stands in its way

    def say(self, holds, name, text, then='', stops=False):
        """`holds` is None where that cannot be seen; `then` is what to do where it does not."""
        self.stops += [name] if stops and holds is False else []
        self.found.append({'check': name, 'holds': holds, 'text': text, 'next': '' if holds else then})
        if not self.quiet:
            sign = {True: '✓', False: '✗', None: '-'}[holds]
            print(sign, f'{name}: {text}', *(['→', then] if then and not holds else []), flush=True)

    @contextlib.contextmanager
    def asking(self, name, needed=False):
        """What AWS refuses to say cannot be seen. Where it is needed, the check fails, and is the last."""
        try:
            yield
        except (*AWS_ERRORS, AWSBatchException) as error:
            unseen = is_one_of(error, DENIED) and not needed
            if isinstance(error, AWS_ERRORS):
                error = rios_awsbatch.explain(error, 'asking AWS')
            self.say(None if unseen else False, name,
                     'your permissions do not let you see this' if unseen else str(error))
            if needed:
                raise error from None

    def who(self):
        with self.asking('login', needed=True):
            self.session = rios_awsbatch.new_session()
            self.client = lambda service: rios_awsbatch.make_client(service, self.session, attempts=2)
            self.arn = self.client('sts').get_caller_identity()['Arn']
            self.say(True, 'login', f'AWS knows you as {self.arn}, in region {REGION}')

    def stack(self):
        with self.asking('stack', needed=True):
            self.outputs = rios_awsbatch.getStackOutputs(self.session)
            self.bucket, self.queue = self.outputs['BatchBucket'], self.outputs['BatchProcessingJobQueueName']
            self.repository = self.outputs['BatchECR'].rpartition('/')[2]
            self.definition = self.outputs['BatchProcessingJobDefinitionName']
            self.logs = self.outputs.get('BatchLogGroup')       # older stacks lack it
            self.say(True, 'stack', f'{STACK_NAME} is there and usable')
        with self.asking('template'):
            body = self.client('cloudformation').get_template(StackName=STACK_NAME)['TemplateBody']
            same = body == pathlib.Path(rios_awsbatch.__file__).with_name('batch.yaml').read_text('utf-8')
            self.say(same, 'template', f'the stack has {"this" if same else "another"} version of batch.yaml',
                     'scripts/modify.sh --wait')

    def permissions(self):
        try:
            denied, how = set(self.denied_by_policies()), 'say your policies'
        except AWS_ERRORS:
            denied, how = set(self.denied_by_answers()), 'as far as requests tell'
        self.say(not denied, 'permissions', f'you may not {", ".join(sorted(denied))}' if denied else
                 f'you may do what main scripts do, {how}', 'docs/settings.md, Who may do what', True)

    def denied_by_policies(self):
        _, partition, _, _, account = self.arn.split(':')[:5]
        # A session has the policies of its role.
        source = re.sub('sts(::[0-9]+:)assumed-role/([^/]+)/.*', r'iam\1role/\2', self.arn)
        for service, resource, actions in (
                ('cloudformation', f'stack/{STACK_NAME}/x', 'DescribeStacks'),
                ('ecr', 'repository/' + self.repository, 'DescribeImages'),
                ('sqs', STACK_NAME + '_20260101T000000-0_in', 'CreateQueue TagQueue DeleteQueue SendMessage '
                 'ReceiveMessage DeleteMessage ChangeMessageVisibility'),
                ('s3', self.bucket + '/runs/x', 'GetObject PutObject DeleteObject'),
                ('s3', self.bucket, 'ListBucket'), ('batch', 'job-queue/' + self.queue, 'SubmitJob'),
                ('batch', f'job-definition/{self.definition}:1', 'SubmitJob'), ('sqs', '*', 'ListQueues'),
                ('batch', 'job/x', 'SubmitJob TerminateJob'), ('batch', '*', 'DescribeJobs ListJobs'),
                ('logs', f'log-group:{self.logs}:log-stream:x', 'GetLogEvents')):
            place = '::' if service == 's3' else f'{REGION}:{account}:'
            answer = self.client('iam').simulate_principal_policy(
                PolicySourceArn=source, ActionNames=[f'{service}:{action}' for action in actions.split()],
                ResourceArns=['*' if resource == '*' else f'arn:{partition}:{service}:{place}{resource}'])
            yield from (each['EvalActionName'] for each in answer['EvaluationResults']
                        if each['EvalDecision'] != 'allowed')

    def denied_by_answers(self):
        for service, operation, parameters in (
                ('ecr', 'DescribeImages', {'repositoryName': self.repository}),
                ('s3', 'ListObjectsV2', {'Bucket': self.bucket, 'Prefix': 'runs/none'}),
                ('s3', 'GetObject', {'Bucket': self.bucket, 'Key': 'runs/none'}),
                ('batch', 'ListJobs', {'jobQueue': self.queue}), ('batch', 'DescribeJobs', {'jobs': ['x']}),
                ('logs', 'GetLogEvents', {'logGroupName': self.logs, 'logStreamName': 'x'})):
            try:
                self.client(service)._make_api_call(operation, parameters)
            except AWS_ERRORS as error:
                if is_one_of(error, DENIED):
                    yield f'{service}:{operation}'

    def computers(self):
        with self.asking('computers'):
            found = self.client('batch').describe_compute_environments(
                computeEnvironments=[self.outputs['ComputeEnvironmentArn']])['computeEnvironments']
            found += self.client('batch').describe_job_queues(jobQueues=[self.queue])['jobQueues']
            said = ', '.join(f'{it["state"]} {it["status"]} {it.get("statusReason", "")}' for it in found)
            self.say(not re.search('DISABLED|INVALID|DELET', said), 'computers', f'AWS Batch says: {said}',
                     'mend that, or make the stack anew: scripts/delete.sh, scripts/create.sh', stops=True)
            resources = found[0]['computeResources']
            gpu = re.findall('^([gp])r?[0-9]', ','.join(resources.get('instanceTypes', [])))
            with self.asking('quota'):
                self.quota(' '.join([resources['type'], *gpu]), int(resources['maxvCpus']))
            if resources['type'] in ('EC2', 'SPOT'):
                with self.asking('instances'):
                    self.offered(resources)

    def quota(self, kind, most):
        """Of the workers, and of the main job, which is on Fargate and gets what they leave there."""
        stack, = self.client('cloudformation').describe_stacks(StackName=STACK_NAME)['Stacks']
        main = int({p['ParameterKey']: p['ParameterValue'] for p in stack['Parameters']}.get('MainVCPUS', 1))
        jobs, (free, said, more) = int(self.outputs['BatchMaxJobs']), self.free(kind, most)
        workers = max(0, min(jobs, free * jobs // most))
        self.workers = min(self.workers, workers)
        self.say(workers == jobs, 'quota', f'{said}; {jobs} workers want {most}, so {workers} run at a time',
                 more, not workers)
        free, said, more = self.free('FARGATE', main, min(most, free) if kind == 'FARGATE' else 0)
        self.say(free >= main, 'main job', f'{said}; scripts/submit.sh wants {main}', more)

    def free(self, kind, wanted, taken=0):
        """How many vCPUs are free. AWS counts those in use into a metric that it names, if there are any."""
        service, code = 'fargate' if 'FARGATE' in kind else 'ec2', QUOTAS[kind]
        quota = self.client('service-quotas').get_service_quota(ServiceCode=service, QuotaCode=code)['Quota']
        use, quota, points = quota.get('UsageMetric'), int(quota['Value']), []
        if use:
            points = self.client('cloudwatch').get_metric_statistics(
                Namespace=use['MetricNamespace'], MetricName=use['MetricName'], Statistics=['Maximum'],
                Dimensions=[{'Name': item[0], 'Value': item[1]} for item in use['MetricDimensions'].items()],
                Period=300, StartTime=time.time() - 600, EndTime=time.time())['Datapoints']
        used = taken + int(max((point['Maximum'] for point in points), default=0))
        return quota - used, f'{quota} vCPUs of the kind {kind}, {used} used{" by workers" * bool(taken)}', (
            f'aws service-quotas request-service-quota-increase --region {REGION} --service-code {service} '
            f'--quota-code {code} --desired-value {wanted + used}')

    def offered(self, resources):
        ec2 = self.client('ec2')
        subnets = ec2.describe_subnets(SubnetIds=resources['subnets'])['Subnets']
        names = ' '.join(SETS.get(name, name) for name in resources['instanceTypes']).split()
        pages = ec2.get_paginator('describe_instance_type_offerings').paginate(
            LocationType='availability-zone')
        offers = [each for page in pages for each in page['InstanceTypeOfferings']
                  if {each['InstanceType'], each['InstanceType'].partition('.')[0]} & {*names}]
        count = len({each['AvailabilityZone'] for each in subnets} & {each['Location'] for each in offers})
        self.say(count > 0, 'instances', f'{", ".join(names)}: offered in {count} of {len(subnets)} zones',
                 'scripts/modify.sh --instancetype, or --az', True)
        if resources['type'] == 'SPOT':
            with contextlib.suppress(*AWS_ERRORS):      # AWS does not answer this to everybody
                scores = ec2.get_spot_placement_scores(
                    TargetCapacity=int(resources['maxvCpus']), TargetCapacityUnitType='vcpu',
                    InstanceTypes=sorted({each['InstanceType'] for each in offers})[:1000],
                    RegionNames=[REGION])['SpotPlacementScores']
                self.say(True, 'Spot', f'{scores[0]["Score"]} of 10 that all workers are had at once')

    def image(self):
        with self.asking('image', needed=True):
            rios_awsbatch.require_image(self.outputs, self.session)
            tags = self.client('ecr').describe_images(repositoryName=self.repository, imageIds=[
                {'imageTag': 'latest'}])['imageDetails'][0]['imageTags']
            wanted = {'X86_64': 'amd64', 'ARM64': 'arm64'}.get(self.outputs.get('BatchArchitecture'))
            other = {'amd64', 'arm64'} & set(tags) - {wanted}
            if other:
                raise AWSBatchException(f'It is {other.pop()}, the computers {wanted}: run scripts/build.sh')
            said = [tag[10:].replace('--', ', ') for tag in tags if tag.startswith('versions--')]
            self.say(True, 'image', 'it fits: ' + said[0] if said else 'there; it does not say what it has')

    def run(self):
        if self.stops:
            return self.say(False, 'run', f'not started, as it could not end well: {", ".join(self.stops)}',
                            'mend that first')
        if not self.quiet:
            print('Now a run of two workers, some minutes, for less than a cent.', flush=True)
        rios_awsbatch.log.setLevel('ERROR')      # a worker is ended on purpose
        seen, began = {}, time.monotonic()
        with self.asking('run', needed=True), rios_awsbatch.AWSBatchExecutor(self.workers) as executor:
            run, first = executor.run, executor.submit(look, self.bucket)

            def until(step, done):
                """Note when a step is done, and meanwhile when a worker is first seen in each state."""
                while step not in seen:
                    for each in ('submitted', *(job['status'] for job in self.workers_of(run)), step):
                        if each != step or done():
                            seen.setdefault(each, time.monotonic() - began)
            until('hello', lambda: executor.wait_for_workers(1, 0.5))
            until('first result', lambda: concurrent.futures.wait([first], 0.5).done)
            executor.wait_for_workers(self.workers, END_SECONDS)
            calls = [executor.submit(time.sleep, 1) for _ in range(12)]
            cancelled, victim = calls.pop().cancel(), self.workers_of(run)[0]['jobId']
            time.sleep(1)
            self.client('batch').terminate_job(jobId=victim, reason='scripts/check.sh')
            end = time.monotonic() + END_SECONDS
            until('replacement', lambda: time.monotonic() > end or [
                *executor.map(time.sleep, [1] * 4)] and executor.stats()['replaced'])
            replaced, first, *_ = executor.stats()['replaced'], *(call.result() for call in [first, *calls])
        self.say(True, 'run', ', '.join(f'{name} {at:.0f} s' for name, at in seen.items()))
        self.say(not first['gdal'], '/vsis3/', first['gdal'] or 'a worker writes to the bucket and reads it',
                 'docs/large-images.md')
        self.say(cancelled and replaced > 0, 'ended worker', f'{replaced} took its place, no call is lost, '
                 f'{int(cancelled)} cancelled', 'report it, with check.json')
        self.say(True, 'round trips', f'{first["trips"]} from a worker, '
                 f'{trips(self.session, self.bucket)} from here')
        with self.asking('end of the run'):
            self.left(run)
            self.see(seen, self.client('batch').describe_jobs(jobs=[victim])['jobs'][0])

    def workers_of(self, run):
        """What Batch says of the jobs that were started first."""
        job = [*self.jobs_of(run), {'jobId': 'not seen yet'}][0]
        ids = [f'{job["jobId"]}:{n}' for n in range(job.get('arrayProperties', {}).get('size', 0))]
        return self.client('batch').describe_jobs(jobs=ids or [job['jobId']])['jobs']

    def jobs_of(self, run):
        """The first is the oldest."""
        return self.client('batch').list_jobs(jobQueue=self.queue, filters=[
            {'name': 'JOB_NAME', 'values': [f'{STACK_NAME}_{run}*']}])['jobSummaryList'][::-1]

    def left(self, run):
        end, jobs = time.monotonic() + END_SECONDS, True
        while jobs and time.monotonic() < end:
            time.sleep(1)
            jobs = [job for job in self.jobs_of(run) if job['status'] not in ('SUCCEEDED', 'FAILED')]
        objects = self.client('s3').list_objects_v2(Bucket=self.bucket, Prefix=f'runs/{run}/')['KeyCount']
        # SQS lists a queue for up to a minute after it is gone.
        queues = self.client('sqs').list_queues(QueueNamePrefix=f'{STACK_NAME}_{run}').get('QueueUrls', [])
        self.say(not (jobs or objects), 'end of the run', f'left: {len(jobs)} jobs, {objects} objects, '
                 f'{len(queues)} queues that AWS still lists', 'scripts/status.sh --clean')

    def see(self, seen, job):
        """What we believe of AWS, and what this run has seen; `job` is that of the worker that was ended."""
        code, stream = (job.get('container', {}).get(name) for name in ('exitCode', 'logStreamName'))
        lag = f'{seen["RUNNING"] - seen["hello"]:+.1f} s' if 'RUNNING' in seen else 'never RUNNING'
        for believed, saw in (
                ('RUNNING comes when a worker is up, before its hello or after', lag),
                ('a job that is terminated has FAILED', f'{job["status"]}, {job.get("statusReason")}'),
                ('its container ends with 143', code), ('it has one attempt', len(job.get('attempts', []))),
                ('its log is worker/default/ID', re.sub('/[0-9a-f]+$', '/ID', str(stream)))):
            self.facts.append({'believed': believed, 'seen': saw})
            if not self.quiet:
                print(f'    believed: {believed}; seen: {saw}')


def trips(session, bucket):
    """How long requests take that S3 and SQS refuse, and by how much the clock here is ahead."""
    s3, sqs = (rios_awsbatch.make_client(service, session) for service in ('s3', 'sqs'))
    queue, times = f'{sqs.meta.endpoint_url}/000000000000/none', {'S3': [], 'SQS': []}
    for name, request in 5 * [('S3', lambda: s3.get_object(Bucket=bucket, Key='runs/none')),
                              ('SQS', lambda: sqs.delete_message(QueueUrl=queue, ReceiptHandle='none'))]:
        began = time.time()
        try:
            request()
        except rios_awsbatch.botocore.exceptions.ClientError as error:
            date = error.response['ResponseMetadata']['HTTPHeaders']['date']
        times[name].append(time.time() - began)
    s3, sqs = (f'{1000 * min(each):.0f} ms' for each in times.values())
    return f'S3 {s3}, SQS {sqs}, clock {began - email.utils.parsedate_to_datetime(date).timestamp():+.0f} s'


def look(bucket):
    """What a worker sees."""
    channel, said = rios_awsbatch.Channel.of(rios_awsbatch.JobSettings.from_env(os.environ)), ''
    try:
        from osgeo import gdal
        gdal.UseExceptions()
        gdal.SetConfigOption('CPL_VSIL_USE_TEMP_FILE_FOR_RANDOM_WRITE', 'YES')
        path = f'/vsis3/{bucket}/{channel.folder}check.tif'
        raster = gdal.GetDriverByName('GTiff').Create(path, 64, 64)
        raster.GetRasterBand(1).Fill(7)
        raster = None
        assert (gdal.Open(path).ReadAsArray() == 7).all(), 'it reads other pixels than it wrote'
    except Exception as error:
        said = f'GDAL in a worker: {error}'
    return {'trips': trips(channel.session, bucket), 'gdal': said}


def main(dry, as_json):
    sys.stdout.reconfigure(errors='namereplace')    # not every terminal has the signs
    checks = Checks(as_json)
    with contextlib.suppress(*AWS_ERRORS, AWSBatchException):
        for check in (checks.who, checks.stack, checks.permissions, checks.computers, checks.image,
                      *([] if dry else [checks.run])):
            check()
    report = json.dumps({'versions': rios_awsbatch.versions(), 'checks': checks.found, 'facts': checks.facts},
                        indent=1, ensure_ascii=False)
    names = filter(None, [checks.arn.rpartition('/')[2], checks.bucket, STACK_NAME])
    secret = '|'.join(['[0-9]{12}', *map(re.escape, names)])
    said = 'All of this is in check.json, without account numbers and names.'
    try:
        pathlib.Path('check.json').write_text(re.sub(secret, '...', report) + '\n', 'utf-8')
    except OSError as error:
        said = f'check.json cannot be written in this folder: {error.strerror}.'
    print(report if as_json else said)
    sys.exit(any(each['holds'] is False for each in checks.found))


if __name__ == '__main__':
    main('--dry' in sys.argv, '--json' in sys.argv)
