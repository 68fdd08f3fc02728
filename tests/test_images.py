"""
The promises of build.sh and submit.sh: an image for the workers, and a main script that is a job itself.

The other scripts are in test_scripts.py, what the jobs may do in test_permissions.py.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import rios_awsbatch
from tests.helpers import (
    MANIFEST, PATIENCE, ROOT, another_aws, copy_of_the_tree, local_aws, wait_until, run, succeeds, refuses, Stack,
    write_main, StandIn)


# ---------------------------------------------------------------------------------------------
# build.sh
# ---------------------------------------------------------------------------------------------

VERSIONS = 'versions--Python-{}.3--rios_awsbatch-2.1.0--cloudpickle-3.0.0--numpy-1.26.4--rios-2.0.9'


def argument(call, name):
    """The values that an option of `docker build` was given."""
    return [value for option, value in zip(call['words'], call['words'][1:]) if option == name]


def build_arguments(docker):
    build = docker.calls()[docker.verbs().index('build')]
    return dict(item.split('=', 1) for item in argument(build, '--build-arg'))


def python_of(folder, version, cloudpickle=None):
    """A Python without RIOS that takes itself for another version, and has this version of cloudpickle."""
    script = folder / 'python.py'
    script.write_text(
        'import sys, types\n'
        f'sys.version_info = ({version.replace(".", ", ")}, 1)\n'
        f'sys.modules["cloudpickle"] = {cloudpickle!r} and types.SimpleNamespace(__version__={cloudpickle!r})\n'
        'sys.modules["rios"] = None\n'
        'exec(sys.argv[2])\n')
    path = folder / f'python{version}'
    path.write_text('#!/bin/sh\nexec "{}" -S "{}" "$@"\n'.format(sys.executable, script))
    path.chmod(0o755)
    return str(path)


def test_build_logs_in_builds_and_pushes_what_the_job_definition_names(docker, tmp_path):
    stack = Stack(InstanceTypes='c7g', Architecture='ARM64').create()
    former = {'repositoryName': stack.outputs()['BatchECR'], 'imageManifest': json.dumps(MANIFEST)}
    for tag in 'arm64', VERSIONS.format('3.6'):
        stack.client('ecr').put_image(imageTag=tag, **former)
    docker.set(says={'run': VERSIONS.format('3.12'), 'inspect': 'arm64'})
    done = stack.run('build.sh', path=docker.path, env={
        'EXTRA_PACKAGES': 'python3-scipy gdal-bin', 'PIP_PACKAGES': 'odc-stac>=0.3', 'RIOS_VERSION': '2.0.6',
        'BASE_IMAGE': 'debian:12', 'PYTHON': python_of(tmp_path, '3.12', cloudpickle='3.1')})
    image = stack.client('batch').describe_job_definitions(
        jobDefinitionName=stack.outputs()['BatchProcessingJobDefinitionName'])['jobDefinitions'][0][
            'containerProperties']['image']
    succeeds(done, 'Done: ' + image)
    assert docker.verbs() == ['info', 'login', 'build', 'run', 'inspect', 'tag', 'tag', 'push', 'push', 'push']
    _, login, build, _, _, *tags_and_pushes = docker.calls()
    assert login['words'] == ['login', '--username', 'AWS', '--password-stdin', image.partition('/')[0]]
    assert len(login['input'].strip()) > 10
    assert build['words'][:5] == ['build', '--platform', 'linux/arm64', '--tag', image]
    assert argument(build, '--file') == [str(ROOT / 'Dockerfile')]
    arguments = build_arguments(docker)
    assert arguments == {'BASE_IMAGE': 'debian:12', 'VERSION': rios_awsbatch.__version__,
                         'RIOS_VERSION': '2.0.6',
                         'EXTRA_PACKAGES': 'python3-scipy gdal-bin',
                         'PIP_PACKAGES': 'odc-stac>=0.3 cloudpickle==3.*'}
    assert set(build['files']) == {'rios_awsbatch.py', 'worker.py'}
    kind, versions = (image.replace('latest', tag) for tag in ('arm64', VERSIONS.format('3.12')))
    assert [call['words'] for call in tags_and_pushes] == [
        ['tag', image, kind], ['tag', image, versions], ['push', kind], ['push', versions], ['push', image]]
    # What nobody could tell apart any more is not kept for ever.
    left = stack.client('ecr').list_images(repositoryName=former['repositoryName'])['imageIds']
    assert [item['imageTag'] for item in left] == ['arm64']
    for name in re.findall(r'^ARG (\w+)', build['dockerfile'], re.MULTILINE):
        assert name in arguments


@pytest.mark.parametrize('architecture, kind, other',
                         [('X86_64', 'amd64', 'arm64'), ('ARM64', 'arm64', 'amd64')])
def test_image_of_the_wrong_kind_is_never_pushed(architecture, kind, other, docker):
    """It would end on every machine with "exec format error"."""
    stack = Stack(Architecture=architecture).create()
    refuses(stack.run('build.sh', '--platform', 'linux/' + other, path=docker.path),
            'run images of the kind linux/{}, not linux/{}'.format(kind, other))
    assert docker.verbs() == ['info']
    docker.set(says={'inspect': other})         # a builder that overlooks --platform
    done = stack.run('build.sh', path=docker.path, env={'RIOS_VERSION': 'none'})
    assert done.returncode == 1
    assert 'is of the kind linux/{}, but'.format(other) in done.stderr.splitlines()[-1]
    assert 'push' not in docker.verbs()
    assert argument(docker.calls()[docker.verbs().index('build')], '--platform') == ['linux/' + kind]


def test_build_main_stands_on_the_worker_image(docker, stack, tmp_path):
    script, module, data = tmp_path / 'ndvi.py', tmp_path / 'mine', tmp_path / 'sites.csv'
    script.write_text('import mine')
    script.chmod(0o600)
    module.mkdir()
    (module / '__init__.py').touch()
    (module / '__pycache__').mkdir()
    (module / '__pycache__' / 'x.pyc').touch()
    data.touch()
    docker.set(says={'inspect': 'amd64'})
    done = stack.run('build.sh', '--main', script, module, data, path=docker.path)
    images = [stack.client('batch').describe_job_definitions(jobDefinitionName=stack.outputs()[name])[
        'jobDefinitions'][0]['containerProperties']['image'] for name in (
            'BatchProcessingJobDefinitionName', 'BatchProcessingJobDefinitionMainName')]
    succeeds(done, 'Done: ' + images[1])
    build = docker.calls()[docker.verbs().index('build')]
    assert argument(build, '--tag') == [images[1]]
    assert build['files'].keys() == {'ndvi.py', 'mine/__init__.py', 'sites.csv'}
    assert all(mode & 0o044 == 0o044 for mode in build['files'].values())       # for the image's user
    assert build['dockerfile'].splitlines() == [
        'FROM ' + images[0], 'COPY . /opt/main/', 'ENTRYPOINT ["python3", "/opt/main/ndvi.py"]']
    assert docker.calls()[-1]['words'] == ['push', images[1]]
    assert not list(pathlib.Path(build['words'][-1]).parent.glob('*'))          # its temporary folder is gone


def test_build_main_needs_the_worker_image_first(docker, stack, tmp_path):
    script = tmp_path / 'main.py'
    script.touch()
    docker.set(fails={'inspect': 'No such image'})
    done = stack.run('build.sh', '--main', script, path=docker.path)
    assert done.returncode == 1
    assert re.search('no worker image .* yet. Build it first', done.stderr), done.stderr
    assert 'build' not in docker.verbs()


def test_build_without_push_needs_no_aws(docker):
    env = {'AWS_ENDPOINT_URL': 'http://127.0.0.1:9', 'DOCKER': 'docker --context here',
           'RIOS_VERSION': 'none'}
    docker.set(says={'--context': ''})
    succeeds(run('build.sh', '--no-push', env=env, path=docker.path), 'Done: rios_awsbatch:latest')
    calls = [call['words'] for call in docker.calls()]
    assert all(words[:2] == ['--context', 'here'] for words in calls)
    assert [words[2] for words in calls] == ['info', 'build', 'run']
    assert 'RIOS_VERSION=' in calls[1]


@pytest.mark.parametrize('engine', ['podman', 'buildah'])
def test_build_works_with_other_engines(engine, tmp_path):
    stand_in = StandIn(tmp_path / 'bin', engine, says={'from': 'working-container'})
    succeeds(run('build.sh', '--no-push', env={'DOCKER': engine, 'RIOS_VERSION': 'none'}, path=stand_in.path))
    assert stand_in.verbs()[:2] == ['info', 'build']


def test_build_takes_the_rios_that_the_user_has(docker, tmp_path):
    package = tmp_path / 'site' / 'rios'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text("__version__ = '1.4.17'\n")
    (package / 'applier.py').touch()
    env = {'PYTHONPATH': str(package.parent), 'RIOS_VERSION': None, 'PYTHON': sys.executable}
    succeeds(run('build.sh', '--no-push', env=env, path=docker.path),
             'RIOS in the image: 1.4.17, a copy of ' + str(package))
    build = docker.calls()[1]
    assert {'rios/__init__.py', 'rios/applier.py'} <= set(build['files'])
    assert 'RIOS_VERSION=' in build['words']


# Which version of cloudpickle each has of its own is from packages.debian.org and packages.ubuntu.com.
@pytest.mark.parametrize('version, cloudpickle, base, pip', [
    ('3.10', '3.1', 'ubuntu:22.04', 'cloudpickle==3.*'), ('3.10', '2.0', 'ubuntu:22.04', ''),
    ('3.11', '3.1', 'debian:12-slim', 'cloudpickle==3.*'), ('3.11', '2.2', 'debian:12-slim', ''),
    ('3.12', '3.1', 'ubuntu:24.04', ''), ('3.13', '3.1', 'debian:13-slim', ''),
    ('3.13', '2.2', 'debian:13-slim', 'cloudpickle==2.*'), ('3.14', '3.1', 'ubuntu:26.04', ''),
    ('3.11', None, 'debian:12-slim', '')])
def test_build_starts_from_what_has_the_python_of_the_user(version, cloudpickle, base, pip, docker, tmp_path):
    docker.set(says={'run': VERSIONS.format(version)})
    env = {'PYTHON': python_of(tmp_path, version, cloudpickle)}
    succeeds(run('build.sh', '--no-push', env=env, path=docker.path), 'from ' + base)
    arguments = build_arguments(docker)
    assert (arguments['BASE_IMAGE'], arguments['PIP_PACKAGES']) == (base, pip)


def test_base_image_and_cloudpickle_that_the_user_names_are_taken(docker, tmp_path):
    env = {'PYTHON': python_of(tmp_path, '3.9', '3.1'), 'BASE_IMAGE': 'debian:11',
           'PIP_PACKAGES': 'cloudpickle==2.0'}
    succeeds(run('build.sh', '--no-push', env=env, path=docker.path))
    arguments = build_arguments(docker)
    assert (arguments['BASE_IMAGE'], arguments['PIP_PACKAGES']) == ('debian:11', 'cloudpickle==2.0')


def test_build_takes_the_python_of_the_virtual_environment_else_python3(docker, tmp_path):
    root = copy_of_the_tree(tmp_path / 'tree')
    python_of(docker.path, '3.12')
    (docker.path / 'python3.12').rename(docker.path / 'python3')
    succeeds(run('build.sh', '--no-push', env={'PYTHON': None}, path=docker.path, root=root), 'from ubuntu:24.04')
    folder = root / '.venv' / 'bin'
    folder.mkdir(parents=True)
    python_of(folder, '3.13')
    (folder / 'python3.13').rename(folder / 'python')
    succeeds(run('build.sh', '--no-push', env={'PYTHON': None}, path=docker.path, root=root), 'from debian:13-slim')


@pytest.mark.parametrize('version, said', [
    ('3.9', "python3.9' is Python 3.9, and we know no .*BASE_IMAGE=.*PYTHON="), (None, "'nosuch' does not run")])
def test_python_for_which_there_is_no_image_is_told_before_the_build(version, said, docker, tmp_path):
    python = python_of(tmp_path, version) if version else 'nosuch'
    refuses(run('build.sh', '--no-push', env={'PYTHON': python, 'BASE_IMAGE': None}, path=docker.path), said)
    assert docker.verbs() == []


def test_build_warns_of_another_python_in_the_image_and_says_the_whole_command(docker, tmp_path):
    docker.set(says={'run': VERSIONS.format('3.6')})
    python, module = python_of(tmp_path, '3.13'), tmp_path / "my module's.py"
    module.touch()
    env = {'PYTHON': python, 'BASE_IMAGE': 'debian:9', 'PIP_PACKAGES': 'affine odc-stac>=0.3'}
    done = run('build.sh', '--no-push', module, env=env, path=docker.path)
    assert done.returncode == 0
    said, command = done.stderr.rstrip('\n').split('run: ')
    assert re.search(r'the image has Python 3.6, but .* is Python 3.13', said), done.stderr
    docker.set(says={'run': VERSIONS.format('3.13')})
    docker.log.unlink()
    again = subprocess.run(command, shell=True, env={**os.environ, 'PATH': f'{docker.path}:{os.environ["PATH"]}'},
                           capture_output=True, text=True, timeout=PATIENCE)
    assert (again.returncode, again.stderr) == (0, ''), again.stderr
    arguments = build_arguments(docker)
    assert (arguments['BASE_IMAGE'], arguments['PIP_PACKAGES']) == ('debian:13-slim', env['PIP_PACKAGES'])
    assert module.name in docker.calls()[1]['files']


def test_no_command_is_said_where_we_know_no_image(docker, tmp_path):
    docker.set(says={'run': VERSIONS.format('3.6')})
    done = run('build.sh', '--no-push', path=docker.path,
               env={'PYTHON': python_of(tmp_path, '3.9'), 'BASE_IMAGE': 'debian:9'})
    assert done.returncode == 0
    assert done.stderr.endswith('name with BASE_IMAGE an image whose python3 is that\n'), done.stderr


FOUND = '{missing}|/opt/conda/bin/python3|3.12|{lacks}|numpy==2.1.0 boto3==1.35.0|{cloudpickle}|{pip}'


def build_from(docker, tmp_path, missing=0, lacks='', cloudpickle='3.1.0', pip='pip', **env):
    docker.set(says={'run': FOUND.format(missing=missing, lacks=lacks, cloudpickle=cloudpickle, pip=pip)})
    env = {'PYTHON': python_of(tmp_path, '3.12', cloudpickle='3.0'), 'BASE_IMAGE': None, **env}
    return run('build.sh', '--no-push', '--from', 'mine:latest', env=env, path=docker.path)


def test_image_of_ones_own_gets_workers_and_nothing_else(docker, tmp_path):
    succeeds(build_from(docker, tmp_path), 'Python in the image: /opt/conda/bin/python3, 3.12')
    build = docker.calls()[docker.verbs().index('build')]
    # One Python counts, wherever it is: for the worker, and for a main script on top of it.
    assert build['files'].pop('bin/python3') & 0o555 == 0o555
    assert set(build['files']) == {'rios_awsbatch.py', 'worker.py'}
    assert build_arguments(docker)['BASE_IMAGE'] == 'mine:latest'
    assert 'ENV PATH=/opt/rios_awsbatch/bin:${PATH}' in build['dockerfile'] and 'GDAL_CACHEMAX' in build['dockerfile']
    assert not re.search('^RUN|^USER|apt-get', build['dockerfile'], re.MULTILINE)


@pytest.mark.parametrize('given, added', [
    ({'missing': 1, 'lacks': 'boto3'}, 'boto3 numpy==2.1.0 boto3==1.35.0'),
    ({'missing': 1, 'lacks': 'cloudpickle', 'cloudpickle': ''}, "'cloudpickle==3.*' numpy==2.1.0 boto3==1.35.0"),
    ({'cloudpickle': '2.2.1', 'PIP_PACKAGES': 'affine'}, "affine 'cloudpickle==3.*' numpy==2.1.0 boto3==1.35.0")])
def test_what_an_image_of_ones_own_lacks_pip_adds(given, added, docker, tmp_path):
    succeeds(build_from(docker, tmp_path, **given))
    build = docker.calls()[docker.verbs().index('build')]
    assert re.search('^RUN .*/opt/conda/bin/python3 -m pip install --no-cache-dir (.*)$', build['dockerfile'],
                     re.MULTILINE)[1] == added


@pytest.mark.parametrize('given, said', [
    ({'missing': 2, 'lacks': 'osgeo numpy'}, 'lacks osgeo, numpy. .*conda-forge gdal numpy.*python3-gdal'),
    ({'missing': 1, 'lacks': 'boto3', 'pip': ''}, 'has no pip, which must add boto3'),
    ({'EXTRA_PACKAGES': 'gdal-bin'}, "put what EXTRA_PACKAGES names into 'mine:latest'")])
def test_image_of_ones_own_that_will_not_do_is_told_before_the_build(given, said, docker, tmp_path):
    done = build_from(docker, tmp_path, **given)
    assert done.returncode == 1 and re.search(said, done.stderr) and done.stderr.count('\n') == 1, done.stderr
    assert 'build' not in docker.verbs()


@pytest.mark.parametrize('step, said', [
    ('login', 'could not log in to'), ('build', 'could not be built.*EXTRA_PACKAGES'),
    ('push', 'could not push')])
def test_build_that_fails_says_at_what(step, said, docker, stack):
    docker.set(fails={step: 'denied: something of Docker'}, says={'inspect': 'amd64'})
    done = stack.run('build.sh', path=docker.path, env={'RIOS_VERSION': 'none'})
    assert done.returncode == 1
    assert 'denied: something of Docker' in done.stderr
    assert re.search(said, done.stderr.splitlines()[-1]), done.stderr
    assert docker.verbs()[-1] == step


@pytest.mark.parametrize('args, said', [
    (['--main', 'nosuch.py'], "no main script 'nosuch.py'"), (['nosuch'], "no file 'nosuch'"),
    (['worker.py'], 'holds a worker.py already')])
def test_build_checks_its_files_first(args, said, docker, monkeypatch):
    monkeypatch.chdir(ROOT)
    refuses(run('build.sh', *args, path=docker.path), said)
    assert docker.verbs() == []


# ---------------------------------------------------------------------------------------------
# submit.sh
# ---------------------------------------------------------------------------------------------

AS_A_JOB = '''
    print('arguments', sys.argv[1:], flush=True)
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        results = list(executor.map(pow, range(20), [2] * 20, buffersize=4))
    print('squares', results == [x * x for x in range(20)], flush=True)
    sys.exit(int(sys.argv[1]))
'''
ARGUMENTS = ['--scene', 'a "b" c', 'back\\slash', '$HOME', 'é']


@pytest.mark.slow
def test_submit_runs_the_main_script_as_a_job_and_follows_it(tmp_path):
    stack = Stack().create().push('BatchECR', ROOT / 'worker.py').push('BatchECRMain',
                                                                       write_main(tmp_path, AS_A_JOB))
    done = stack.run('submit.sh', '--wait', '--name', 'my-job', '--', 7, *ARGUMENTS)
    assert done.returncode == 7, done.stderr
    lines = done.stdout.splitlines()
    assert 'arguments {}'.format(['7'] + ARGUMENTS) in lines
    assert [line for line in lines if line.startswith('squares')] == ['squares True']
    assert 'Submitted job my-job' in done.stderr
    assert ' FAILED\n' in done.stderr
    assert re.match(r'submit.sh: your script ended with 7 \(job ', done.stderr.splitlines()[-1])
    # Its queue is not that of its workers.
    queues = [stack.outputs()[name]
              for name in ('BatchProcessingJobQueueName', 'BatchProcessingJobQueueMainName')]
    jobs = [stack.client('batch').list_jobs(jobQueue=queue,
                                            filters=[{'name': 'JOB_NAME', 'values': ['my-job']}])[
        'jobSummaryList'] for queue in queues]
    assert [len(each) for each in jobs] == [0, 1]
    wait_until(lambda: not stack.queues() and not stack.objects('runs/'))


def test_submit_without_waiting_says_the_job_id(tmp_path):
    stack = Stack().create().push('BatchECRMain', write_main(tmp_path, "print('hello')"))
    done = stack.run('submit.sh')
    assert done.returncode == 0 and 'Submitted job' in done.stderr
    assert 'no image for the workers' in done.stderr
    assert re.fullmatch(r'[0-9a-f-]{36}\n', done.stdout)
    batch, job = stack.client('batch'), done.stdout.strip()
    wait_until(lambda: batch.describe_jobs(jobs=[job])['jobs'][0]['status'] == 'SUCCEEDED')


@pytest.mark.slow
def test_submit_shows_the_whole_of_a_long_log(tmp_path):
    """AWS gives it in pages, of which some are empty."""
    stack = Stack().create().push('BatchECR', ROOT / 'worker.py').push('BatchECRMain', write_main(
        tmp_path, "for number in range(12000):\n    print('line', number, 'x' * 100)\n"))
    done = stack.run('submit.sh', '--wait')
    assert done.returncode == 0, done.stderr
    assert [int(line.split()[1]) for line in done.stdout.splitlines()] == list(range(12000))


def test_submit_without_a_main_image_starts_nothing(stack):
    refuses(stack.run('submit.sh', '--wait'), 'no main image in stack .* scripts/build.sh --main SCRIPT')
    assert not stack.client('batch').list_jobs(jobQueue=stack.outputs()['BatchProcessingJobQueueMainName'],
                                               filters=[
        {'name': 'JOB_NAME', 'values': ['*']}])['jobSummaryList']


WITHOUT_WORKERS_OF_ITS_OWN = """
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        print('got', executor.submit(pow, int(sys.argv[1]), 2).result(), flush=True)
"""


@pytest.mark.slow
def test_main_jobs_do_not_starve_their_workers(tmp_path):
    """Three at once on a stack that has room for a single worker: each gets it in its turn."""
    stack = Stack(MaxJobs=1, MaxVCPUS=1).create().push('BatchECR', ROOT / 'worker.py')
    stack.push('BatchECRMain', write_main(tmp_path, WITHOUT_WORKERS_OF_ITS_OWN))
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda x: stack.run('submit.sh', '--wait', '--name', 'main-{}'.format(x),
                                                    '--', x),
                                range(3)))
    assert [each.returncode for each in done] == [0, 0, 0], [each.stderr for each in done]
    assert [each.stdout for each in done] == ['got {}\n'.format(x * x) for x in range(3)]


@pytest.mark.slow
def test_main_job_that_did_not_start_for_a_passing_reason_is_started_again(tmp_path):
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        stack.push('BatchECRMain', write_main(tmp_path, "print('hello')"))
        local_aws('starts', {'fail': 1}, env=env)
        done = stack.run('submit.sh', '--wait')
        assert (done.returncode, done.stdout) == (0, 'hello\n'), done.stderr
