"""
What the local AWS runs for a job of scripts/dev/test-image.sh: a container of the image, with the job's
environment and command. A SIGTERM goes to the container's first process, as from a container engine.

Of the environment, BUILDAH, CONTAINERS_STORAGE_CONF and IMAGE are for this program.
"""
import json
import os
import signal
import subprocess
import sys

BUILDAH, IMAGE = os.environ['BUILDAH'], os.environ['IMAGE']
NOT_OF_THE_JOB = {'PATH', 'HOME', 'HOSTNAME', 'PYTHONPATH', 'LD_LIBRARY_PATH', 'GDAL_DATA', 'PROJ_LIB',
                  'PROJ_DATA', 'BUILDAH', 'CONTAINERS_STORAGE_CONF', 'IMAGE'}
job = {name: value for name, value in os.environ.items() if name not in NOT_OF_THE_JOB}
os.environ['BUILDAH_ISOLATION'] = 'chroot'


def buildah(*words):
    return subprocess.run([BUILDAH, *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def first_process(process):
    """Of the container: buildah runs it as its great-grandchild."""
    for _ in range(3):
        with open(f'/proc/{process}/task/{process}/children') as file:
            process = int(file.read().split()[0])
    return process


def forward(signum, _):
    os.kill(first_process(run.pid), signum)


container = buildah('from', '--pull-never', IMAGE)
try:
    entry_point = json.loads(buildah('inspect', container))['OCIv1']['config']['Entrypoint']
    environment = [word for item in job.items() for word in ('--env', '='.join(item))]
    run = subprocess.Popen([BUILDAH, 'run', '--network', 'host', *environment, container, '--',
                            *entry_point, *sys.argv[1:]])
    signal.signal(signal.SIGTERM, forward)
    status = run.wait()
finally:
    buildah('rm', container)
sys.exit(status)
