"""Whether an AWS account, the stack and the image are what main scripts need: scripts/check.sh runs it."""
import contextlib
import email.utils
import fnmatch
import json
import logging
import os
import pathlib
import re
import sys
import threading
import time

import rios_awsbatch
from rios_awsbatch import AWS_ERRORS, DENIED, REGION, STACK_NAME, AWSBatchException, is_one_of

# Of Service Quotas: vCPUs at a time, by the type of a compute environment; on EC2 for families from a to z.
QUOTAS = {'EC2': ('ec2', 'L-1216C47A'), 'SPOT': ('ec2', 'L-34B43A08'),
          'FARGATE': ('fargate', 'L-3032A538'), 'FARGATE_SPOT': ('fargate', 'L-36FBB829')}
# ComputeResource.instanceTypes in the model of Batch.
BUNDLES = {'optimal': 'm6i c6i r6i c7i', 'default_arm64': 'm6g c6g r6g c7g'}
SIGNS = {True: '✓', False: '✗', None: '-'}
UP_SECONDS, END_SECONDS = 900, 180          # workers that can be had are up by then, and have gone


class Failed(Exception):
    """Without what was checked, the other checks make no sense."""


class Checks:
    """A method for each check. What they `found`, and `facts` that were seen of AWS, are dictionaries."""

    def __init__(self, quiet):
        self.quiet, self.found, self.facts, self.arn, self.bucket = quiet, [], [], '', ''

    def client(self, service):
        return rios_awsbatch.make_client(service, self.session, attempts=2)

    def say(self, holds, name, text, then=''):
        """`holds` is None where it cannot be seen; what to do `then` is said where it does not."""
        then = '' if holds else then
        self.found.append({'check': name, 'holds': holds, 'text': text, 'next': then})
        if not self.quiet:
            print(SIGNS[holds], f'{name}: {text}' + (then and ' → ' + then), flush=True)

    @contextlib.contextmanager
    def asking(self, name, needed=False):
        """What AWS refuses to say cannot be seen; where it is needed, the check fails."""
        try:
            yield
        except (*AWS_ERRORS, AWSBatchException) as error:
            if is_one_of(error, DENIED) and not needed:
                return self.say(None, name, 'your permissions do not let you see this')
            ours = isinstance(error, AWSBatchException)
            self.say(False, name, str(error if ours else rios_awsbatch.explain(error, 'asking AWS')))
            if needed:
                raise Failed from None

    def who(self):
        with self.asking('login', needed=True):
            self.session = rios_awsbatch.new_session()
            self.arn = self.client('sts').get_caller_identity()['Arn']
            self.say(True, 'login', f'AWS knows you as {self.arn}, in region {REGION}')

    def stack(self):
        with self.asking('stack', needed=True):
            self.outputs = rios_awsbatch.getStackOutputs(self.session)
            self.bucket, self.queue = self.outputs['BatchBucket'], self.outputs['BatchProcessingJobQueueName']
            self.repository = self.outputs['BatchECR'].rpartition('/')[2]
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
                 f'you may do what main scripts do, {how}', 'an administrator attaches the policy of the '
                 'output BatchMainPolicyArn to your user or role: docs/settings.md, Who may do what')

    def denied_by_policies(self):
        _, partition, _, _, account = self.arn.split(':')[:5]
        # A session has the policies of its role.
        role = re.fullmatch('(arn:[^:]+:)sts(::[0-9]+:)assumed-role/([^/]+)/.*', self.arn)
        source = f'{role[1]}iam{role[2]}role/{role[3]}' if role else self.arn
        definition = self.outputs['BatchProcessingJobDefinitionName']
        for service, resource, actions in (
                ('cloudformation', f'stack/{STACK_NAME}/x', 'DescribeStacks'),
                ('ecr', 'repository/' + self.repository, 'DescribeImages'),
                ('sqs', STACK_NAME + '_20260101T000000-0_in', 'CreateQueue TagQueue DeleteQueue SendMessage '
                 'ReceiveMessage DeleteMessage ChangeMessageVisibility'),
                ('s3', self.bucket, 'ListBucket'),
                ('s3', self.bucket + '/runs/x', 'GetObject PutObject DeleteObject'),
                ('batch', 'job-queue/' + self.queue, 'SubmitJob'),
                ('batch', f'job-definition/{definition}:1', 'SubmitJob'), ('batch', 'job/x', 'TerminateJob'),
                ('batch', '*', 'DescribeJobs ListJobs'),
                ('logs', f'log-group:{self.outputs["BatchLogGroup"]}:log-stream:x', 'GetLogEvents')):
            place = '::' if service == 's3' else f'{REGION}:{account}:'
            answer = self.client('iam').simulate_principal_policy(
                PolicySourceArn=source, ActionNames=[f'{service}:{action}' for action in actions.split()],
                ResourceArns=['*' if resource == '*' else f'arn:{partition}:{service}:{place}{resource}'])
            yield from (each['EvalActionName'] for each in answer['EvaluationResults']
                        if each['EvalDecision'] != 'allowed')

    def denied_by_answers(self):
        log = {'logGroupName': self.outputs['BatchLogGroup'], 'logStreamName': 'none'}
        for service, operation, parameters in (
                ('ecr', 'DescribeImages', {'repositoryName': self.repository}),
                ('s3', 'ListObjectsV2', {'Bucket': self.bucket, 'Prefix': 'runs/none'}),
                ('s3', 'GetObject', {'Bucket': self.bucket, 'Key': 'runs/none'}),
                ('batch', 'ListJobs', {'jobQueue': self.queue}), ('logs', 'GetLogEvents', log),
                ('batch', 'DescribeJobs', {'jobs': ['none']})):
            try:
                self.client(service)._make_api_call(operation, parameters)
            except AWS_ERRORS as error:
                if is_one_of(error, DENIED):
                    yield f'{service}:{operation}'

    def computers(self):
        with self.asking('quota'):
            resources = self.client('batch').describe_compute_environments(computeEnvironments=[
                self.outputs['ComputeEnvironmentArn']])['computeEnvironments'][0]['computeResources']
            kind, most = resources['type'], int(resources['maxvCpus'])
            jobs, (service, code) = int(self.outputs['BatchMaxJobs']), QUOTAS[kind]
            answer = self.client('service-quotas').get_service_quota(ServiceCode=service, QuotaCode=code)
            quota, used = int(answer['Quota']['Value']), self.vcpus_in_use(kind) if service == 'ec2' else 0
            workers = min(jobs, max(0, quota - used) * jobs // most)
            more = f'--service-code {service} --quota-code {code} --desired-value {most + used}'
            self.say(workers == jobs, 'quota', f'{quota} vCPUs of the kind {kind}, {used} used; {jobs} '
                     f'workers want {most}, so {workers} run at a time',
                     f'aws service-quotas request-service-quota-increase --region {REGION} {more}')
            if service == 'ec2':
                with self.asking('instances'):
                    self.offered(resources)

    def vcpus_in_use(self, kind):
        pages = self.client('ec2').get_paginator('describe_instances').paginate(
            Filters=[{'Name': 'instance-state-name', 'Values': ['pending', 'running']}])
        return sum(each['CpuOptions']['CoreCount'] * each['CpuOptions']['ThreadsPerCore']
                   for page in pages for group in page['Reservations'] for each in group['Instances']
                   if (each.get('InstanceLifecycle') == 'spot') == (kind == 'SPOT'))

    def offered(self, resources):
        ec2 = self.client('ec2')
        subnets = ec2.describe_subnets(SubnetIds=resources['subnets'])['Subnets']
        names = ' '.join(BUNDLES.get(name, name) for name in resources['instanceTypes']).split()
        patterns = [name if '.' in name else name + '.*' for name in names]
        pages = ec2.get_paginator('describe_instance_type_offerings').paginate(
            LocationType='availability-zone')
        offers = [each for page in pages for each in page['InstanceTypeOfferings'] if any(
            fnmatch.fnmatchcase(each['InstanceType'], pattern) for pattern in patterns)]
        count = len({each['AvailabilityZone'] for each in subnets} & {each['Location'] for each in offers})
        self.say(count > 0, 'instances', f'{", ".join(names)}: offered in {count} of {len(subnets)} zones',
                 'scripts/modify.sh --instancetype, or --az')
        if resources['type'] == 'SPOT':
            with self.asking('Spot'):
                found = ec2.get_spot_placement_scores(
                    InstanceTypes=sorted({each['InstanceType'] for each in offers})[:1000],
                    TargetCapacity=int(resources['maxvCpus']), TargetCapacityUnitType='vcpu',
                    RegionNames=[REGION])['SpotPlacementScores']
                self.say(True, 'Spot', f'{found[0]["Score"]} of 10 that all workers are had at once')

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
        began, stop, seen = time.monotonic(), threading.Event(), {}
        logging.getLogger('rios_awsbatch').setLevel(logging.ERROR)      # a worker is ended on purpose
        with self.asking('run', needed=True), rios_awsbatch.AWSBatchExecutor(2) as executor:
            run = executor.run
            watch = threading.Thread(target=self.watch, args=(run, began, stop, seen))
            watch.start()
            try:
                if not executor.wait_for_workers(1, UP_SECONDS):
                    raise AWSBatchException(f'No worker is up after {UP_SECONDS} s; see README.md')
                seen['hello'] = time.monotonic() - began
                first = executor.submit(look, self.bucket).result()
                seen['first result'] = time.monotonic() - began
                executor.wait_for_workers(2, UP_SECONDS)
                calls = [executor.submit(time.sleep, 3) for _ in range(12)]
                cancelled, victim = calls.pop().cancel(), seen['jobs'][0]
                time.sleep(1)
                self.client('batch').terminate_job(jobId=victim, reason='scripts/check.sh')
                for call in calls:
                    call.result()
                replaced = executor.stats()['replaced']
            finally:
                stop.set()
                watch.join()
        self.say(True, 'run', ', '.join(f'{name} {at:.0f} s' for name, at in seen.items() if name != 'jobs'))
        self.say(not first['gdal'], '/vsis3/', first['gdal'] or 'a worker writes to the bucket and reads it',
                 'docs/large-images.md')
        self.say(cancelled, 'cancelling', f'a call that waits {"was" if cancelled else "was not"} cancelled')
        self.say(replaced > 0, 'ended worker', f'{replaced} other in its place, no block is lost')
        here = trips(self.session, self.bucket)
        self.say(True, 'round trips', f'{first["trips"]} from a worker, {here} from here')
        self.left(run)
        self.see(seen, first, self.client('batch').describe_jobs(jobs=[victim])['jobs'][0])

    def watch(self, run, began, stop, seen):
        """Thread: seconds after which jobs of the run were first seen in each state."""
        while not stop.wait(0.5):
            with contextlib.suppress(*AWS_ERRORS):
                for job in self.jobs_of(run)[:1]:
                    size = job.get('arrayProperties', {}).get('size', 0)
                    seen.setdefault('submitted', time.monotonic() - began)
                    seen.setdefault('jobs', [f'{job["jobId"]}:{n}' for n in range(size)] or [job['jobId']])
                    for each in self.client('batch').describe_jobs(jobs=seen['jobs'])['jobs']:
                        seen.setdefault(each['status'], time.monotonic() - began)

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

    def see(self, seen, first, job):
        """What we believe of AWS, and what this run has seen; `job` is that of the worker that was ended."""
        now = self.client('s3').list_objects_v2(Bucket=self.bucket, MaxKeys=1)
        code, stream = (job.get('container', {}).get(name) for name in ('exitCode', 'logStreamName'))
        lag = f'{seen["RUNNING"] - seen["hello"]:+.1f} s' if 'RUNNING' in seen else 'never RUNNING'
        for believed, saw in (
                ('RUNNING comes when a worker is up, before its hello or after', lag),
                ('a job that is terminated has FAILED', f'{job["status"]}, {job.get("statusReason")}'),
                ('its container ends with 143', code), ('it has one attempt', len(job.get('attempts', []))),
                ('its log is worker/default/ID', re.sub('/[0-9a-f]+$', '/ID', str(stream))),
                ('clocks are within seconds', f'here {late(now):+.0f} s, worker {first["late"]:+.0f} s')):
            self.facts.append({'believed': believed, 'seen': saw})
            if not self.quiet:
                print(f'    believed: {believed}; seen: {saw}')


def late(answer):
    """Seconds by which this computer is ahead of an answer of S3."""
    date = answer['ResponseMetadata']['HTTPHeaders']['date']
    return time.time() - email.utils.parsedate_to_datetime(date).timestamp()


def trips(session, bucket):
    """How long requests take that S3 and SQS refuse."""
    s3, sqs = (rios_awsbatch.make_client(service, session) for service in ('s3', 'sqs'))
    queue, times = f'{sqs.meta.endpoint_url}/000000000000/none', {'S3': [], 'SQS': []}
    for name, request in 5 * [('S3', lambda: s3.get_object(Bucket=bucket, Key='runs/none')),
                              ('SQS', lambda: sqs.delete_message(QueueUrl=queue, ReceiptHandle='none'))]:
        began = time.monotonic()
        with contextlib.suppress(*AWS_ERRORS):
            request()
        times[name].append(time.monotonic() - began)
    return ', '.join(f'{name} {1000 * min(each):.0f} ms' for name, each in times.items())


def look(bucket):
    """What a worker sees."""
    channel, said = rios_awsbatch.Channel.of(rios_awsbatch.JobSettings.from_env(os.environ)), ''
    answer = {'late': late(channel.s3.get_object(Bucket=bucket, Key=channel.folder + 'lease')),
              'trips': trips(channel.session, bucket)}
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
    return {**answer, 'gdal': said}


def main(dry, as_json):
    checks = Checks(as_json)
    with contextlib.suppress(Failed):
        for check in (checks.who, checks.stack, checks.permissions, checks.computers, checks.image):
            check()
        if not dry:
            if not as_json:
                print('Now a run of two workers, some minutes, for less than a cent.', flush=True)
            checks.run()
    report = json.dumps({'versions': rios_awsbatch.versions(), 'checks': checks.found, 'facts': checks.facts},
                        indent=1, ensure_ascii=False)
    names = filter(None, [checks.arn.rpartition('/')[2], checks.bucket, STACK_NAME])
    secret = '|'.join(['[0-9]{12}', *map(re.escape, names)])
    pathlib.Path('check.json').write_text(re.sub(secret, '...', report) + '\n', 'utf-8')
    print(report if as_json else 'All of this is in check.json, without account numbers and names.')
    sys.exit(any(each['holds'] is False for each in checks.found))


if __name__ == '__main__':
    main('--dry' in sys.argv, '--json' in sys.argv)
