"""Jobs, and what users ask about them.

moto knows compute environments, queues and job definitions. Its jobs want Docker, run as soon as they are
submitted, and have neither children that fail alone nor rules for retries: they are replaced here (what users
ask) and in `scheduler` (what happens by itself). AWS refuses what moto lets pass: a time-out below 60 s, more
than five retry rules, a Fargate job without what Fargate needs. Sources: botocore's model, and the Batch User
Guide ("Job states", "Array jobs", "Automated job retries", "Job timeouts").

What Batch says of a container is late: RUNNING comes after the container is up, and an array's summary has a
time of its own. So a job is what it is (what the scheduler goes by), and keeps what users see of it and from
when on (`Job.move` alone adds to that): see `Job.seen`."""
import collections
import copy
import fnmatch
import json
import re
import time
import uuid

from moto.batch.models import EC2_INSTANCE_FAMILIES, BatchBackend, JobQueue, batch_backends
from moto.batch.responses import BatchResponse

from local_aws import ACCOUNT, PARTITION, AwsError
from local_aws.instances import check_fargate, is_fargate

STATES = ('SUBMITTED', 'PENDING', 'RUNNABLE', 'STARTING', 'RUNNING', 'SUCCEEDED', 'FAILED')
ENDED = ('SUCCEEDED', 'FAILED')
TIMED_OUT = 'Job attempt duration exceeded timeout'
MAX_ARRAY, MAX_ATTEMPTS, MAX_RULES, MIN_TIMEOUT = 10_000, 10, 5, 60
MAX_BYTES = 30 << 10               # of SubmitJob (Batch User Guide, "Service quotas")


def batch_backend(region):
    """moto's Batch of a region."""
    return batch_backends[ACCOUNT][region]


def millis():
    """The time as Batch writes it."""
    return int(time.time() * 1000)


def named(pairs):
    """[{'name': ..., 'value': ...}] as a dictionary."""
    return {pair['name']: pair.get('value', '') for pair in pairs or []}


def present(answer):
    """What of an answer has a value."""
    return {name: value for name, value in answer.items() if value is not None}


def refuse(what):
    """Raise the error of a bad request."""
    raise AwsError('ClientException',
                   f'Error executing request, Exception : {what}, RequestId: {uuid.uuid4()}')


def needs_of(*sources):
    """vCPUs, MiB and GPUs that a job definition and the overrides of a job, which come later, ask for."""
    needs = {}
    for source in sources:
        needs.update({'VCPU': source['vcpus']} if 'vcpus' in source else {})
        needs.update({'MEMORY': source['memory']} if 'memory' in source else {})
        needs.update({need['type']: need['value'] for need in source.get('resourceRequirements') or []})
    return float(needs.get('VCPU', 1)), int(needs.get('MEMORY', 2048)), int(needs.get('GPU', 0))


def check(retry, timeout, capabilities, container, overrides):
    """Refuse what AWS refuses of a job, or of a job definition (without overrides)."""
    retry, is_on_fargate = retry or {}, 'FARGATE' in (capabilities or ())
    seconds = int((timeout or {}).get('attemptDurationSeconds') or MIN_TIMEOUT)
    plain = [name for source in (container, overrides) for name in ('vcpus', 'memory') if source.get(name)]
    wrong = is_on_fargate and check_fargate(*needs_of(container, overrides))
    for is_wrong, what in (
            (seconds < MIN_TIMEOUT, f'attemptDurationSeconds must be at least {MIN_TIMEOUT} seconds'),
            (not 1 <= int(retry.get('attempts') or 1) <= MAX_ATTEMPTS,
             f'retryStrategy: attempts must be between 1 and {MAX_ATTEMPTS}'),
            (len(retry.get('evaluateOnExit') or []) > MAX_RULES,
             f'retryStrategy: evaluateOnExit can have at most {MAX_RULES} entries'),
            (is_on_fargate and plain, f'Fargate takes no {plain}: use resourceRequirements'),
            (is_on_fargate and not container.get('executionRoleArn'),
             'executionRoleArn is required for Fargate jobs'),
            (wrong, wrong)):
        if is_wrong:
            refuse(what)


class Job:
    """A Batch job: a plain one, an array, or a child of an array. Batch is late by `lag` seconds for it."""

    def __init__(self, backend, queue, definition, request, lag, parent=None, index=None):
        self.backend, self.queue, self.definition, self.request = backend, queue, definition, request
        self.lag, self.parent, self.index, self.children = lag, parent, index, []
        self.shown = []                          # (since when on time.monotonic(), the job as users see it)
        self.id = str(uuid.uuid4()) if parent is None else f'{parent.id}:{index}'
        self.arn = f'arn:{PARTITION}:batch:{backend.region_name}:{ACCOUNT}:job/{self.id}'
        self.created = millis()
        self.started = self.stopped = self.stop_reason = None
        self.attempts = []
        self.container = {}                      # exit code, reason and log stream of the last attempt
        self.task = self.fleet = self.instance = None      # where it runs
        self.blocked = None                      # (why it waits, since when)
        self.not_before = 0.0
        overrides = request.get('containerOverrides') or {}
        self.properties = properties = definition.container_properties
        self.command = overrides.get('command') or properties.get('command') or []
        self.environment = {**named(properties.get('environment')), **named(overrides.get('environment'))}
        self.vcpus, self.memory, self.gpus = needs_of(properties, overrides)
        self.cards = []                          # ids of the GPUs that it has for itself
        self.retry = request.get('retryStrategy') or definition.retry_strategy or {}
        self.timeout = request.get('timeout') or definition.timeout or {}
        self.move('SUBMITTED')

    def move(self, status, reason=None, late=False):
        """
        Enter a state. Users see at once what Batch itself does, and `late` what it must hear of a container
        first; each state after the one before, and an array's after those of its children.
        """
        self.status, self.reason = status, reason
        if status in ENDED:
            self.stopped = millis()
        heard = max([time.monotonic(), *(child.shown[-1][0] for child in self.children)])
        since = max([heard + late * self.lag, *(since for since, _ in self.shown[-1:])])
        view = copy.copy(self)
        view.container, view.attempts = dict(self.container), list(self.attempts)
        self.shown.append((since, view))

    def seen(self, at=None):
        """The job as users see it at a moment, now if none is given."""
        at = time.monotonic() if at is None else at
        return next((view for since, view in reversed(self.shown) if since <= at), self.shown[0][1])

    def summary(self):
        """As ListJobs shows it."""
        container = {name: self.container[name] for name in ('exitCode', 'reason') if name in self.container}
        array = {'index': self.index} if self.parent else {'size': len(self.children)}
        answer = {'jobArn': self.arn, 'jobId': self.id, 'jobName': self.request['jobName'],
                  'createdAt': self.created, 'status': self.status, 'jobDefinition': self.definition.arn,
                  'statusReason': self.reason, 'startedAt': self.started, 'stoppedAt': self.stopped,
                  'arrayProperties': array if self.parent or self.children else None,
                  'container': container or None}
        return present(answer)

    def description(self):
        """As DescribeJobs shows it."""
        container = dict(self.properties)
        container.pop('vcpus', container.pop('memory', None))
        needs = {'VCPU': f'{self.vcpus:g}', 'MEMORY': str(self.memory),
                 **({'GPU': str(self.gpus)} if self.gpus else {})}
        container.update(
            command=self.command, networkInterfaces=[], **self.container,
            environment=[{'name': name, 'value': value} for name, value in self.environment.items()],
            resourceRequirements=[{'type': name, 'value': value} for name, value in needs.items()])
        answer = {**self.summary(), 'isTerminated': self.stop_reason is not None, 'jobQueue': self.queue.arn,
                  'attempts': self.attempts, 'container': container, 'timeout': self.timeout or None,
                  'retryStrategy': {'attempts': 1, **self.retry} if self.retry else None,
                  'dependsOn': [], 'parameters': self.request.get('parameters') or {},
                  'tags': self.backend.list_tags_for_resource(self.arn),
                  'platformCapabilities': self.definition.platform_capabilities or ['EC2']}
        if self.children:
            then = time.monotonic() - self.lag
            counts = collections.Counter(child.seen(then).status for child in self.children)
            answer['arrayProperties'] = {
                'size': len(self.children), 'statusSummary': {state: counts[state] for state in STATES},
                'statusSummaryLastUpdatedAt': max(self.created, millis() - int(1000 * self.lag))}
        return present(answer)

    def may_retry(self, status_reason):
        """Whether Batch tries again after this attempt: the first rule that matches decides."""
        if status_reason == TIMED_OUT or self.stop_reason is not None or (
                len(self.attempts) >= int(self.retry.get('attempts', 1))):
            return False
        code = self.container.get('exitCode')
        facts = {'onExitCode': '' if code is None else str(code), 'onStatusReason': status_reason,
                 'onReason': self.container.get('reason', '')}
        for rule in self.retry.get('evaluateOnExit') or []:
            asked = [(rule[name], facts[name]) for name in facts if name in rule]
            if all(fnmatch.fnmatchcase(fact, want) for want, fact in asked):
                return rule['action'].lower() == 'retry'
        return True


class Batch:
    """What users ask of Batch."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def submit(self, backend, request):
        """SubmitJob"""
        name = request.get('jobName', '')
        if not re.fullmatch(r'[A-Za-z0-9][\w-]{0,127}', name, re.ASCII):
            refuse('Job name should match valid pattern')
        definition = backend.get_job_definition(request.get('jobDefinition', ''))
        if definition is None or definition.status != 'ACTIVE':
            refuse(f'JobDefinition {request.get("jobDefinition")} not found')
        queue = backend.get_job_queue(request.get('jobQueue', ''))
        if queue is None or queue.state != 'ENABLED':
            refuse(f'JobQueue {request.get("jobQueue")} not found, or not ENABLED')
        if request.get('dependsOn'):
            refuse('the local AWS has no dependsOn')
        if '' in (request.get('containerOverrides') or {}).get('command', ()):
            refuse('Container Overrides command should not be null or empty')
        size = (request.get('arrayProperties') or {}).get('size')
        if size is not None and not 2 <= size <= MAX_ARRAY:
            refuse(f'Array size must be between 2 and {MAX_ARRAY}')
        if len(json.dumps(request, ensure_ascii=False).encode()) >= MAX_BYTES:
            refuse('Job size must be less than 30 KiB')
        capabilities = definition.platform_capabilities or ['EC2']
        check(request.get('retryStrategy'), request.get('timeout'), capabilities,
              definition.container_properties, request.get('containerOverrides') or {})
        if is_fargate(queue.environments[0]) != ('FARGATE' in capabilities):
            refuse(f'Job definition {definition.name} has platform capabilities {capabilities}, which the '
                   f'compute environments of job queue {queue.name} do not have')
        given, draw_lag = (backend, queue, definition, request), self.scheduler.draw_lag
        job = Job(*given, draw_lag())
        job.children = [Job(*given, draw_lag(), job, index) for index in range(size or 0)]
        if request.get('tags'):
            backend.tag_resource(job.arn, request['tags'])
        self.scheduler.add(job)
        return {'jobArn': job.arn, 'jobName': name, 'jobId': job.id}

    def describe(self, _, request):
        """DescribeJobs"""
        ids = request.get('jobs') or []
        if len(ids) > 100:
            refuse('Too many jobs: at most 100 can be described in one request')
        with self.scheduler.lock:
            found = [self.scheduler.jobs.get(job.rpartition('job/')[2]) for job in ids]
            return {'jobs': [job.seen().description() for job in found if job]}

    def list(self, backend, request):
        """ListJobs"""
        with self.scheduler.lock:
            if 'arrayJobId' in request:
                parent = self.scheduler.jobs.get(request['arrayJobId'])
                jobs = parent.children if parent else []
            else:
                queue = backend.get_job_queue(request.get('jobQueue', ''))
                if queue is None:
                    refuse(f'JobQueue {request.get("jobQueue")} not found')
                jobs = [job for job in self.scheduler.jobs.values() if job.queue is queue and not job.parent]
            jobs = [job.seen() for job in jobs]
            if 'filters' not in request:
                # The running ones unless told otherwise; the parent of an array is never among them.
                jobs = [job for job in jobs if job.status == request.get('jobStatus', 'RUNNING')]
            for rule in request.get('filters') or []:
                matches = {'JOB_NAME': lambda job, value: fnmatch.fnmatchcase(
                               job.request['jobName'].lower(), value.lower()),
                           'AFTER_CREATED_AT': lambda job, value: job.created > int(value)}[rule['name']]
                jobs = [job for job in reversed(jobs) if any(matches(job, value) for value in rule['values'])]
            first, count = int(request.get('nextToken') or 0), int(request.get('maxResults') or 100)
            answer = {'jobSummaryList': [job.summary() for job in jobs[first:first + count]]}
            if len(jobs) > first + count:
                answer['nextToken'] = str(first + count)
            return answer

    def stop(self, request, running_too):
        """TerminateJob, and CancelJob for what has not been started"""
        with self.scheduler.lock:
            job = self.scheduler.jobs.get(request['jobId'].rpartition('job/')[2])
            if job is not None:
                self.scheduler.stop(job, request['reason'], running_too)
        return {}

    def install(self):
        """Put these operations in the place of moto's, and the checks before moto's."""
        for name, work in (('submitjob', self.submit), ('describejobs', self.describe),
                           ('listjobs', self.list),
                           ('terminatejob', lambda _, request: self.stop(request, True)),
                           ('canceljob', lambda _, request: self.stop(request, False))):
            setattr(BatchResponse, name, lambda response, work=work: json.dumps(
                work(response.batch_backend, json.loads(response.body))))
        # Batch's own names for groups of instance families.
        EC2_INSTANCE_FAMILIES.extend(['optimal', 'default_x86_64', 'default_arm64'])
        moto_delete, moto_register = BatchBackend.delete_job_queue, BatchBackend.register_job_definition
        moto_describe = JobQueue.describe

        def delete_job_queue(backend, queue_name):
            with self.scheduler.lock:
                for job in [job for job in self.scheduler.open.values() if queue_name in (
                        job.queue.name, job.queue.arn)]:
                    self.scheduler.stop(job, 'Job queue deleted')
            moto_delete(backend, queue_name)

        def register(backend, **given):
            check(given['retry_strategy'], given['timeout'], given['platform_capabilities'],
                  given['container_properties'], {})
            made = moto_register(backend, **given)
            made.platform_capabilities = given['platform_capabilities']     # moto keeps the former ones
            return made

        def with_limits(moto_answer):
            def answer(response):
                text = moto_answer(response)
                limits = json.loads(response.body).get('jobStateTimeLimitActions')
                if limits is not None:
                    response.batch_backend.get_job_queue(json.loads(text)['jobQueueArn']).limits = limits
                return text
            return answer
        for name in ('createjobqueue', 'updatejobqueue'):
            setattr(BatchResponse, name, with_limits(getattr(BatchResponse, name)))
        JobQueue.limits = ()
        JobQueue.describe = lambda queue: {
            **moto_describe(queue), 'jobStateTimeLimitActions': list(queue.limits)}
        BatchBackend.delete_job_queue, BatchBackend.register_job_definition = delete_job_queue, register
