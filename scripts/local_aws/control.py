"""What tests ask of the server itself, under /_local/. These requests are not counted, delayed or failed.
moto has a control of its own, which knows nothing of what this package adds.

GET  /_local/requests         counts by 'main' and 'workers' (credentials of jobs) and service:operation;
                              POST /_local/requests/reset starts anew
GET  /_local/jobs             running containers: jobId, jobName, pid, status, instance, instanceType
POST /_local/jobs/interrupt   {"jobId": ..., "notice": true}: its instance is taken away, with all jobs on it;
                              without a notice they get no SIGTERM
GET  /_local/faults           the settings in force; POST {"errors": 0.05, ...} replaces them
POST /_local/starts           {"fail": N, "reason": ..., "statusReason": ...}: the next N starts fail
POST /_local/quota            {"vcpus": N} or {}: of the account
POST /_local/lag              {"seconds": N}: so late is what Batch says of containers, for later jobs; {}:
                              each job has a lag of its own, of up to two seconds
POST /_local/speed            {"times": 60}: Batch's time-outs and limits pass so many times faster
POST /_local/login            {"expired": true} or {"late": true}, their clock: of everybody but jobs
POST /_local/credentials      {"seconds": N}: how long a job's next credentials last
POST /_local/sqs              {"hidden": 43200, "bytes": 1048576}: seconds for which a message may be hidden
                              in all, and the longest there may be
GET  /_local/latency          {"ms": 20}, and POST
POST /_local/conditions       {"faults": {...}, "latency": ms, "iam": true}: what is left out is off
GET  /_local/iam              {"enforced": ..., "denials": [...]}; POST {"enforced": true}
POST /_local/stack            {"region": ..., "name": ..., "status": "CREATE_IN_PROGRESS"}: show that status
POST /_local/images           {"path": ..., "variables": {...}}: what `push` puts into a manifest
GET  /_local/server           the kind of disk that jobs have (see `disk`)
"""
import hashlib
import json

from moto.cloudformation.models import cloudformation_backends

from local_aws import ACCOUNT, disk
from local_aws.containers import ANNOTATION
from local_aws.request import json_response


class Control:
    """What each verb and path does."""

    def __init__(self, aws):
        self.aws, batch, iam = aws, aws.scheduler, aws.iam
        reason = 'DockerTimeoutError: Could not transition to created; timed out after waiting 4m0s'
        self.work = {
            'GET requests': lambda _: aws.counts,
            'POST requests/reset': lambda _: aws.counts.clear(),
            'GET jobs': lambda _: {'jobs': batch.processes()},
            'POST jobs/interrupt': lambda given: batch.interrupt(given['jobId'], given.get('notice', True)),
            'GET faults': lambda _: aws.faults.settings,
            'POST faults': lambda given: aws.faults.set(given) or aws.faults.settings,
            'POST starts': lambda given: setattr(batch, 'failing', int(given['fail']) * [(
                given.get('reason', reason), given.get('statusReason', 'Task failed to start'))]),
            'POST quota': lambda given: setattr(batch, 'quota', float(given.get('vcpus', 'inf'))),
            'POST lag': lambda given: setattr(
                batch, 'lag', float(given['seconds']) if 'seconds' in given else None),
            'POST speed': lambda given: setattr(batch, 'speed', float(given['times'])),
            'POST login': lambda given: (setattr(iam, 'login_expired', bool(given.get('expired'))),
                                         setattr(iam, 'clock_is_late', bool(given.get('late')))) and None,
            'POST credentials': lambda given: setattr(iam, 'lifetime', float(given['seconds'])),
            'POST sqs': lambda given: (setattr(aws.sqs, 'hidden', float(given.get('hidden', 43200))),
                                       aws.sqs.limit(given.get('bytes', 1 << 20))) and None,
            'GET latency': lambda _: {'ms': 1000 * aws.latency},
            'POST latency': lambda given: setattr(aws, 'latency', float(given['ms']) / 1000),
            'POST conditions': self.conditions,
            'GET iam': lambda _: {'enforced': iam.enforced, 'denials': list(iam.denials)},
            'POST iam': lambda given: iam.enforce(bool(given['enforced'])),
            'POST images': self.image,
            'POST stack': lambda given: setattr(
                cloudformation_backends[ACCOUNT][given['region']].get_stack(given['name']),
                'status', given['status']),
            'GET server': lambda _: {'disk': disk.isolation()}}

    def answer(self, request):
        """The response to a request under /_local/."""
        name = request.path.removeprefix('/_local/').strip('/')
        if name.startswith('credentials/'):
            found = self.aws.iam.credentials_of(name.partition('/')[2])
            return json_response(found or {'message': 'no such task'}, 200 if found else 404)
        work = self.work.get(f'{request.method} {name}')
        if work is None:
            return json_response({'message': f'no such control: {request.method} {request.path}'}, 404)
        try:
            given = json.loads(request.body) if request.body else {}
            return json_response(work(given) or {})
        except (KeyError, ValueError, AttributeError) as error:
            return json_response({'message': repr(error)}, 400)

    def conditions(self, given):
        """All settings at once."""
        for name, value in (('faults', given.get('faults', {})), ('latency', {'ms': given.get('latency', 0)}),
                            ('iam', {'enforced': given.get('iam', False)}), ('requests/reset', {})):
            self.work['POST ' + name](value)

    def image(self, given):
        """Keep what is pushed."""
        image = self.aws.images.add(given['path'], given.get('variables', {}))
        digest = 'sha256:' + hashlib.sha256(image.encode()).hexdigest()
        return {'annotations': {ANNOTATION: image}, 'digest': digest}
