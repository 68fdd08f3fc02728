"""Which job runs when, on which instance, and what follows an attempt. moto runs each job at once and alone.

- A queue is first in, first out: a job that cannot be placed holds up those behind it. Queues of higher
  priority are served first. The compute environments of a queue are tried in their order.
- A job that cannot be placed stays RUNNABLE, with Batch's reason as its statusReason where it has one; the
  queue's JobStateTimeLimitActions cancel it (Batch User Guide, "Jobs stuck in RUNNABLE").
- The parent of an array is PENDING until its last child has ended, and FAILED if one of them failed
  (botocore's model, ListJobsRequest.jobStatus).
- An attempt that runs past its time-out gets SIGTERM, 30 s later SIGKILL, and is not retried, whatever its
  exit code and the rules say ("Job timeouts"). A job that was told to stop FAILED, whatever its exit code.
- Where memory is used up, the kernel ends the largest process, and the container if that was its first.
- An instance that is taken away takes all its jobs with it. They have no exit code.
- All of this goes by what is true; users hear of it later (see `batch`)."""
import json
import os
import subprocess
import threading
import time
import traceback

from local_aws import ACCOUNT, PARTITION
from local_aws.batch import ENDED, TIMED_OUT, millis, present
from local_aws.containers import CannotStart, Task, processes_of
from local_aws.instances import Fleet, is_fargate

STOP_SECONDS = 30                  # between a container's SIGTERM and its SIGKILL
MAX_OVERRIDES = 8192               # characters of JSON (ECS, ContainerOverride); Batch's own are not counted
NOTICE_SECONDS = 120               # between the notice of a Spot interruption and the end of the instance
# Outlives the server by a moment, and ends the jobs whose folders are still there.
GUARDIAN = 'cat; for p in "$0"/job-*/.cgroup/cgroup.procs; do [ ! -e "$p" ] || kill -9 -"$(cat "$p")"; done'
TICK = 0.2                         # seconds between two looks at the running jobs
LAG_SECONDS = 2                    # at most, by which Batch is late; how much it is on AWS, nobody here knows


class Scheduler(threading.Thread):
    """Starts jobs while their compute environment has room, and watches those that run."""

    def __init__(self, iam, endpoint, images, random):
        super().__init__(daemon=True, name='scheduler')
        self.iam, self.endpoint, self.images, self.random = iam, endpoint, images, random
        self.lock = threading.Condition()        # notified when there may be something to do
        self.jobs = {}                           # by id, in the order of submission; children included
        self.open = {}                           # those that have not ended
        self.fleets = {}                         # by the ARN of the compute environment
        self.quota = float('inf')                # vCPUs of the account
        self.speed = 1.0                         # time-outs and limits pass so many times faster
        lag = os.environ.get('RIOS_AWSBATCH_LOCAL_LAG')
        self.lag = float(lag) if lag else None   # seconds by which Batch is late; None: each job has its own
        self.failing = []                        # reasons for which the next containers will not start
        self.guardian = subprocess.Popen(['sh', '-c', GUARDIAN, images.folder], stdin=subprocess.PIPE,
                                         start_new_session=True)
        self.start_delay = float(os.environ.get('RIOS_AWSBATCH_LOCAL_START_MS') or 0) / 1000

    # ---- what users and tests ask

    def draw_lag(self):
        """Seconds by which Batch will be late for a job."""
        return self.random.uniform(0, LAG_SECONDS) if self.lag is None else self.lag

    def add(self, job):
        """A job has been submitted."""
        with self.lock:
            for each in (job, *job.children):
                self.jobs[each.id] = self.open[each.id] = each
                each.move('PENDING' if each.children else 'RUNNABLE')
                each.not_before = time.monotonic() + self.start_delay * (each.index or 0)
            self.lock.notify()

    def stop(self, job, reason, running_too=True):
        """End a job and its children for that reason."""
        for each in [job, *job.children]:
            if each.status in ENDED or each.task and not running_too:
                continue
            each.stop_reason = reason
            if each.task:
                each.task.stop(reason, STOP_SECONDS)
            elif not each.children:
                self._end(each, 'FAILED', reason)
        self.lock.notify()

    def interrupt(self, job_id, notice):
        """Take away the instance of a job, with or without a notice to its containers."""
        with self.lock:
            instance = self.jobs[job_id].instance
            for job in list(instance.jobs):
                job.task.lost = True
                reason = f'Host EC2 (instance {instance.id}) terminated.'
                if instance.kind == 'fargate':   # which always tells its tasks
                    job.task.stop('Your Spot Task was interrupted.', STOP_SECONDS)
                elif notice:
                    job.task.stop(reason, NOTICE_SECONDS / self.speed)
                else:
                    job.task.kill(reason)

    def processes(self):
        """The running containers, for the control endpoint."""
        with self.lock:
            return [{'jobId': job.id, 'jobName': job.request['jobName'], 'status': job.status,
                     'pid': job.task.pid, 'instance': job.instance.id,
                     'instanceType': job.instance.kind}
                    for job in self.open.values() if job.task]

    # ---- what happens by itself

    def run(self):
        while True:
            with self.lock:
                try:
                    self._start_what_fits()
                    self._watch()
                except Exception:                # a bug here must not stop all jobs silently
                    traceback.print_exc()
                self.lock.wait(TICK if self.open else None)

    def _start_what_fits(self):
        held, now = set(), time.monotonic()
        waiting = [job for job in self.open.values() if job.status == 'RUNNABLE' and now >= job.not_before]
        for job in sorted(waiting, key=lambda job: -int(job.queue.priority)):
            if job.queue.arn not in held and not self._place(job):
                held.add(job.queue.arn)

    def _place(self, job):
        """Start a job where there is room for it; False where it stays and holds up those behind it."""
        why = None
        for environment in job.queue.environments:
            fleet = self.fleets.setdefault(environment.arn, Fleet(environment))
            if environment.state == 'ENABLED':
                left = self.quota - sum(each.used() for each in self.fleets.values())
                instance, why = fleet.place(job, left)
                if instance:
                    instance.take(job)
                    job.fleet, job.instance, job.blocked = fleet, instance, None
                    self._start(job)
                    return True
        kind = why and why.partition(' ')[0]
        if why != job.reason:
            job.move('RUNNABLE', why)
        if job.blocked is None or job.blocked[0] != kind:
            job.blocked = (kind, time.monotonic())
        for limit in job.queue.limits if kind else ():
            if limit['reason'] == kind and (
                    time.monotonic() - job.blocked[1] >= float(limit['maxTimeSeconds']) / self.speed):
                self._end(job, 'FAILED', f'Canceled by JobStateTimeLimit action due to reason: {kind}')
                return True
        return False

    def _start(self, job):
        job.move('STARTING')
        job.container = {} if is_fargate(job.fleet.environment) else {'containerInstanceArn': (
            f'arn:{PARTITION}:ecs:{job.backend.region_name}:{ACCOUNT}:container-instance/{job.instance.id}')}
        try:
            if self.failing:
                raise CannotStart(*self.failing.pop(0))
            if len(json.dumps(job.request.get('containerOverrides'), ensure_ascii=False)) > MAX_OVERRIDES:
                raise CannotStart(None, f'Container Overrides length must be at most {MAX_OVERRIDES}')
            job.task = Task(job, self)
        except CannotStart as error:
            job.container.update({'reason': error.reason} if error.reason else {})
            self._attempt_over(job, None, error.status_reason)
            return
        job.started, job.task.started = millis(), time.monotonic()
        job.move('RUNNING', late=True)

    def _watch(self):
        tasks = [job.task for job in self.open.values() if job.task]
        used = processes_of({task.pid for task in tasks})
        now = time.monotonic()
        for task in tasks:
            limit = task.job.timeout.get('attemptDurationSeconds')
            if task.kill_at is not None and now > task.kill_at:
                task.kill()
            elif sum(used[task.pid].values()) > task.job.memory << 20:
                task.out_of_memory(used[task.pid])
            elif limit and now > task.started + int(limit) / self.speed:
                task.stop(TIMED_OUT, STOP_SECONDS)

    def ended(self, task):
        """The container is gone."""
        with self.lock:
            job, code = task.job, task.process.returncode
            code = 128 - code if code < 0 else code
            if task.container_reason:
                job.container['reason'], code = task.container_reason, 137
            if not task.lost:
                job.container['exitCode'] = code
            self._attempt_over(job, code, job.stop_reason or task.status_reason)
            self.lock.notify()

    def _attempt_over(self, job, code, reason):
        was_stopped = job.task is None or job.task.lost or job.task.kill_at is not None
        job.task = None
        job.fleet.leave(job, job.instance)
        job.attempts.append(present({
            'container': {**job.container, 'networkInterfaces': []}, 'statusReason': reason,
            'startedAt': job.started, 'stoppedAt': millis()}))
        if code == 0 and not was_stopped:
            self._end(job, 'SUCCEEDED', reason, late=True)
        elif job.may_retry(reason):
            job.started = None
            job.move('RUNNABLE', reason, late=True)
        else:
            self._end(job, 'FAILED', reason, late=True)

    def _end(self, job, status, reason, late=False):
        job.move(status, reason, late)
        self.open.pop(job.id, None)
        parent = job.parent
        if parent and all(child.status in ENDED for child in parent.children):
            good = all(child.status == 'SUCCEEDED' for child in parent.children)
            parent.move('SUCCEEDED' if good else 'FAILED', None if good else
                        parent.stop_reason or 'Array Child Job failed', late=True)
            self.open.pop(parent.id, None)

    def close(self):
        """End all containers, and start no others."""
        with self.lock:
            tasks = [job.task for job in self.open.values() if job.task]
            self.open.clear()
            self.guardian.communicate(timeout=10)
        for task in tasks:
            task.process.wait(10)
