"""What tests ask of the server itself, under /_local/. These requests are not counted, delayed or failed. moto has a
control of its own, which knows nothing of what this package adds.

GET  /_local/requests         counts by 'main' and 'workers' (temporary credentials of jobs), service:operation
POST /_local/requests/reset   start counting anew
GET  /_local/jobs             the running containers: jobId, pid, status, vcpus, rss (bytes), instance, instanceType
POST /_local/jobs/interrupt   {"jobId": ..., "notice": true}: its instance is taken away, with all jobs on it; without
                              a notice they get no SIGTERM
GET  /_local/faults           the settings in force; POST {"errors": 0.05, ...} replaces them
POST /_local/starts           {"fail": N, "reason": ..., "statusReason": ...}: the next N containers do not start
POST /_local/quota            {"vcpus": N} or {}: of the account
POST /_local/speed            {"times": 60}: Batch's time-outs and limits pass so many times faster
POST /_local/login            {"expired": true}: of everybody but jobs
POST /_local/credentials      {"seconds": N}: how long a job's credentials last
POST /_local/latency          {"ms": 20}
POST /_local/conditions       {"faults": {...}, "latency": ms, "iam": true}: all at once, what is left out is off
GET  /_local/iam              {"enforced": ..., "denials": [...]}; POST {"enforced": true}
POST /_local/stack            {"region": ..., "name": ..., "status": "CREATE_IN_PROGRESS"}: show that status
POST /_local/images           {"path": ..., "variables": {...}}: what `push` puts into a manifest
GET  /_local/server           seconds since start, CPU seconds, resident bytes, threads, disk (see `disk`)
"""
import hashlib
import json
import os
import resource
import threading
import time

from local_aws import ACCOUNT, disk
from local_aws.containers import ANNOTATION, processes_of
from local_aws.request import Response


class Control:
    """A method for each verb and path."""

    def __init__(self, aws):
        self.aws = aws

    def answer(self, request):
        """The response to a request under /_local/."""
        name = request.path.removeprefix('/_local/').strip('/')
        if name.startswith('credentials/'):
            found = self.aws.iam.credentials_of(name.partition('/')[2])
            return Response.of_json(found or {'message': 'no such task'}, 200 if found else 404)
        work = getattr(self, f'{request.method}_{name.replace("/", "_")}'.lower(), None)
        if work is None:
            return Response.of_json({'message': f'no such control: {request.method} {request.path}'}, 404)
        try:
            given = json.loads(request.body) if request.body else {}
            return Response.of_json(work(given) or {}, content_type='application/json')
        except (KeyError, ValueError, AttributeError) as error:
            return Response.of_json({'message': repr(error)}, 400)

    def get_requests(self, _):
        with self.aws.counts_lock:
            return {who: dict(sorted(counts.items())) for who, counts in self.aws.counts.items()}

    def post_requests_reset(self, _):
        with self.aws.counts_lock:
            self.aws.counts.clear()

    def get_jobs(self, _):
        return {'jobs': self.aws.scheduler.processes()}

    def post_jobs_interrupt(self, given):
        self.aws.scheduler.interrupt(given['jobId'], given.get('notice', True))

    def get_faults(self, _):
        return self.aws.faults.settings

    def post_faults(self, given):
        self.aws.faults.set(given)
        return self.aws.faults.settings

    def post_starts(self, given):
        reason = given.get('reason', 'DockerTimeoutError: Could not transition to created; timed out after waiting 4m0s')
        self.aws.scheduler.failing = [
            (reason, given.get('statusReason', 'Task failed to start'))] * int(given['fail'])

    def post_quota(self, given):
        self.aws.scheduler.quota = float(given.get('vcpus', 'inf'))

    def post_speed(self, given):
        self.aws.scheduler.speed = float(given['times'])

    def post_login(self, given):
        self.aws.iam.login_expired = bool(given['expired'])

    def post_credentials(self, given):
        self.aws.iam.set_lifetime(float(given['seconds']))

    def post_latency(self, given):
        self.aws.latency = float(given['ms']) / 1000

    def post_conditions(self, given):
        self.aws.faults.set(given.get('faults', {}))
        self.post_latency({'ms': given.get('latency', 0)})
        self.post_iam({'enforced': given.get('iam', False)})
        self.post_requests_reset(given)

    def get_iam(self, _):
        return {'enforced': self.aws.iam.enforced, 'denials': list(self.aws.iam.denials)}

    def post_iam(self, given):
        self.aws.iam.enforced = bool(given['enforced'])
        self.aws.iam.denials.clear()

    def post_stack(self, given):
        from moto.cloudformation.models import cloudformation_backends
        stack = cloudformation_backends[ACCOUNT][given['region']].get_stack(given['name'])
        before, stack.status = stack.status, given['status']
        return {'before': before}

    def post_images(self, given):
        image = self.aws.images.add(given['path'], given.get('variables', {}))
        return {'annotations': {ANNOTATION: image}, 'digest': 'sha256:' + hashlib.sha256(image.encode()).hexdigest()}

    def get_server(self, _):
        used = resource.getrusage(resource.RUSAGE_SELF)
        session = os.getsid(0)
        return {'seconds': time.time() - self.aws.began, 'cpu': used.ru_utime + used.ru_stime,
                'rss': processes_of({session})[session].get(os.getpid(), 0), 'threads': threading.active_count(),
                'pid': os.getpid(), 'disk': disk.isolation()}
