"""Images, and the processes that stand for containers.

moto runs jobs in Docker, which is not at hand on every machine, nor is the worker image quick to build. Here
an image is what `push` puts into ECR: a manifest whose annotations name an entry point, a copy of the modules
as they were then, and environment variables. Its tag is looked up whenever a container starts, as ECS does
(ECS developer guide, "ECS_IMAGE_PULL_BEHAVIOR": default). A container is a session of processes with a disk
of its own (see `disk`), the environment that AWS gives it, an exit code and a log stream.

Credentials come as from ECS: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is the only variable of its kind that
GDAL before 3.8 reads (port/cpl_aws.cpp). GDAL and boto3 put http://169.254.170.2 before it; the "@" in ours
makes that a user name, and this AWS the host."""
import contextlib
import json
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid

from moto.ec2.models import ec2_backends
from moto.ecr.models import ecr_backends
from moto.logs.models import LogStream, logs_backends

from local_aws import ACCOUNT, ROOT, disk
from local_aws.batch import millis
from local_aws.instances import is_fargate

ANNOTATION = 'local.image'
# What a job may see of the server's own environment: it stands for what is installed in the image.
IMAGE_VARIABLES = ('PYTHONPATH', 'LD_LIBRARY_PATH', 'GDAL_DATA', 'PROJ_LIB', 'PROJ_DATA', 'LANG', 'LC_ALL',
                   'OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE', 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS')


class CannotStart(Exception):
    """Why a container never ran: ECS's reason, and Batch's statusReason."""

    def __init__(self, reason, status_reason='Task failed to start'):
        super().__init__(reason)
        self.reason, self.status_reason = reason, status_reason


class Images:
    """The images that were pushed, in a folder."""

    PLAIN = {'folder': None, 'entry': None, 'variables': {}}

    def __init__(self, folder):
        self.folder = os.path.join(folder, 'images')
        os.makedirs(self.folder)

    def add(self, path, variables):
        """Copy what an image holds; the manifest's annotation for it."""
        folder = tempfile.mkdtemp(prefix='image-', dir=self.folder)
        for name in ('rios_awsbatch.py', 'worker.py'):
            shutil.copy(os.path.join(ROOT, name), folder)
        py_compile.compile(os.path.join(folder, 'rios_awsbatch.py'))        # as the Dockerfile does
        entry = os.path.join(folder, os.path.basename(path))
        shutil.copyfile(path, entry)
        return json.dumps({'folder': folder, 'entry': entry, 'variables': variables})

    @staticmethod
    def find(name):
        """What is behind a job definition's image now. An image from elsewhere has no entry point."""
        ecr = re.fullmatch(rf'{ACCOUNT}\.dkr\.ecr\.([^.]+)\.amazonaws\.com/([^:@]+)(?::(.+))?', name)
        if not ecr:
            return Images.PLAIN
        region, repository, tag = ecr[1], ecr[2], ecr[3] or 'latest'
        found = ecr_backends[ACCOUNT][region].repositories.get(repository)
        images = found.images if found else []
        manifest = next((item.image_manifest for item in images if tag in item.image_tags), None)
        if manifest is None:
            raise CannotStart('CannotPullContainerError: Error response from daemon: manifest for '
                              f'{name} not found: manifest unknown: Requested image not found')
        image = json.loads(manifest).get('annotations', {}).get(ANNOTATION)
        return json.loads(image) if image else Images.PLAIN


class Task:
    """The container of one attempt."""

    def __init__(self, job, scheduler):
        self.job, self.scheduler = job, scheduler
        self.id = uuid.uuid4().hex
        self.started = None                      # when its time-out begins
        self.kill_at = None                      # moment of the SIGKILL that follows a SIGTERM
        self.status_reason, self.container_reason = 'Essential container in task exited', None
        self.killed = 0                          # processes that the kernel has ended for want of memory
        self.lost = False                        # the host is gone: there is no exit code
        image = Images.find(job.properties['image'])
        self._check_network()
        stream = self._log_stream()
        self.folder = tempfile.mkdtemp(prefix='job-', dir=scheduler.images.folder)
        environment = self._environment(image)
        command = [*([sys.executable, image['entry']] if image['entry'] else []), *job.command]
        program = command and shutil.which(command[0], path=environment['PATH'])
        if not program:
            raise CannotStart('CannotStartContainerError: Error response from daemon: failed to create task: '
                              f'exec: {command[:1]}: executable file not found in $PATH: unknown')
        self.process = subprocess.Popen(
            disk.command(self.folder, image['folder'], environment) + [program, *command[1:]],
            cwd=self.folder + disk.WRITABLE[0], env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.pid = self.process.pid
        with open(f'{self.folder}{disk.CGROUP}/cgroup.procs', 'w', encoding='ascii') as file:
            file.write(f'{self.pid}')            # see the guardian in `scheduler`
        self.pump = threading.Thread(target=self._pump, args=(stream,), daemon=True)
        self.pump.start()
        threading.Thread(target=self._wait, daemon=True).start()

    def _check_network(self):
        """On Fargate a container has a network interface of its own; without a way out it has no image."""
        network = self.job.properties.get('networkConfiguration') or {}
        if is_fargate(self.job.fleet.environment) and network.get('assignPublicIp') != 'ENABLED' and not (
                ec2_backends[ACCOUNT][self.job.backend.region_name].nat_gateways):
            raise CannotStart(None, (
                'ResourceInitializationError: unable to pull secrets or registry auth: The task cannot pull '
                'registry auth from Amazon ECR: There is a connection issue between the task and Amazon ECR. '
                'Check your task network configuration.'))

    def _log_stream(self):
        job, logs = self.job, logs_backends[ACCOUNT][self.job.backend.region_name]
        options = (job.properties.get('logConfiguration') or {}).get('options') or {}
        group = options.get('awslogs-group', '/aws/batch/job')
        logs.ensure_log_group(group)
        prefix = options.get('awslogs-stream-prefix') or job.definition.name
        job.container['logStreamName'] = name = f'{prefix}/default/{self.id}'
        logs.groups[group].create_log_stream(name)
        return logs.groups[group].streams[name]

    def _environment(self, image):
        """What AWS gives to a container, the image's variables, and the way to this AWS."""
        job, here, compute = self.job, self.scheduler.endpoint, self.job.fleet.environment
        host = here.partition('//')[2]
        paths = [image['folder'], image['variables'].get('PYTHONPATH'), os.environ.get('PYTHONPATH')]
        answer = {name: os.environ[name] for name in IMAGE_VARIABLES if name in os.environ}
        answer.update(image['variables'])
        answer.update(PYTHONUNBUFFERED='1', PYTHONPATH=os.pathsep.join(filter(None, paths)),
                      PATH=os.path.dirname(sys.executable) + ':/usr/local/bin:/usr/bin:/bin',
                      AWS_EXECUTION_ENV='AWS_ECS_FARGATE' if is_fargate(compute) else 'AWS_ECS_EC2',
                      AWS_ENDPOINT_URL=here, AWS_S3_ENDPOINT=host, AWS_HTTPS='NO',
                      AWS_VIRTUAL_HOSTING='FALSE', AWS_EC2_METADATA_DISABLED='true')
        answer.update(job.environment)
        answer.update(AWS_BATCH_JOB_ID=job.id, AWS_BATCH_JOB_ATTEMPT=str(len(job.attempts) + 1),
                      AWS_BATCH_CE_NAME=compute.name, AWS_BATCH_JQ_NAME=job.queue.name)
        if job.cards:                            # the agent of ECS says it so (agent/api/task/task.go)
            answer['NVIDIA_VISIBLE_DEVICES'] = ','.join(job.cards)
        if job.parent:
            answer.update(AWS_BATCH_JOB_ARRAY_INDEX=str(job.index),
                          AWS_BATCH_JOB_ARRAY_SIZE=str(len(job.parent.children)))
        if 'jobRoleArn' in job.properties:
            self.scheduler.iam.tasks[self.id] = job.properties['jobRoleArn']
            answer['AWS_CONTAINER_CREDENTIALS_RELATIVE_URI'] = f'@{host}/_local/credentials/{self.id}'
        return answer

    def _pump(self, stream):
        """Every line that the container writes is an event of its log stream."""
        for line in self.process.stdout:
            text = line.decode(errors='replace').rstrip('\r\n')
            if text:
                stream.put_log_events([{'timestamp': millis(), 'message': text}])

    def _wait(self):
        """When the first process ends, so does the container."""
        self.process.wait()
        self.kill()
        self.pump.join(5)
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.scheduler.iam.tasks.pop(self.id, None)
        self.scheduler.ended(self)

    def stop(self, reason, seconds):
        """SIGTERM to the first process, as `docker stop` does; SIGKILL to all after so many seconds."""
        if self.kill_at is None:
            self.status_reason = reason
            self.kill_at = time.monotonic() + seconds
            self.process.send_signal(signal.SIGTERM)

    def out_of_memory(self, used):
        """The kernel ends the largest of the processes (process id to bytes)."""
        self.killed += 1
        disk.note_killed(self.folder, self.killed)
        largest = max(used, key=used.get)
        if largest == self.pid:
            self.kill(container_reason='OutOfMemoryError: Container killed due to memory usage')
        else:
            os.kill(largest, signal.SIGKILL)

    def kill(self, status_reason=None, container_reason=None):
        """SIGKILL to every process of the container."""
        self.status_reason = status_reason or self.status_reason
        self.container_reason = container_reason or self.container_reason
        end_session(self.pid)


def end_session(session):
    """SIGKILL to every process of a session."""
    for pid in processes_of({session})[session]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_of(sessions):
    """For each of the sessions the resident bytes of its processes, by process id."""
    found = {session: {} for session in sessions}
    if os.path.isdir('/proc/self'):
        pids = dict.fromkeys(filter(str.isdigit, os.listdir('/proc')) if sessions else ())
    else:                                        # macOS
        listed = subprocess.run(['ps', '-A', '-o', 'pid=,rss='], capture_output=True, text=True).stdout
        pids = dict(line.split() for line in listed.splitlines())
    for pid, kilobytes in pids.items():
        with contextlib.suppress(OSError):       # it has just ended
            session = os.getsid(int(pid))
            if session in found and kilobytes is None:
                with open(f'/proc/{pid}/statm', encoding='ascii') as file:
                    kilobytes = int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1024
            if session in found:
                found[session][int(pid)] = float(kilobytes) * 1024
    return found


def install_logs():
    """GetLogEvents as AWS answers it: a page may be empty though more follow, and the end is a token that
    stays the same (botocore's model). Here an empty page precedes every one that is read forward.
    """
    moto_get = LogStream.get_log_events

    def get_log_events(stream, start_time, end_time, limit, next_token, start_from_head):
        if next_token is None and start_from_head:
            next_token = f'f/{-1:056d}'
        if (next_token or '').startswith('f/') and not next_token.endswith('/full'):
            more = moto_get(stream, start_time, end_time, limit, next_token, start_from_head)[0]
            return [], 'b' + next_token[1:], next_token + ('/full' if more else '')
        return moto_get(stream, start_time, end_time, limit, next_token and next_token.removesuffix('/full'),
                        start_from_head)
    LogStream.get_log_events = get_log_events
