"""
A graphics card per worker: create.sh and modify.sh --gpus, AWSBatchExecutor(gpus=), and what the local AWS does with them.
"""
import importlib
import json
import os
import re
import subprocess
import sys

import numpy
import pytest
from osgeo import gdal

import rios_awsbatch
from tests.helpers import (
    EXAMPLES, PATIENCE, ROOT, SCENE, SCRIPTS, Stack, finish, refuses, run, run_main, succeeds, wait_until, write_main)
from tests.rios_sources import every


@pytest.mark.parametrize('args, said', [
    (['--gpus', '17'], "--gpus must be a whole number from 0 to 16, not '17'"),
    (['--gpus', '1', '--fargate'], 'Fargate has no GPUs'),
    (['--gpus', '1', '--arm64'], 'x86 alone, so workers on Graviton .ARM. get no GPUs')])
def test_gpus_where_there_are_none_are_refused_before_aws_is_asked(args, said):
    refuses(run('create.sh', *args, env={'AWS_ENDPOINT_URL': 'http://127.0.0.1:9', 'AWS_MAX_ATTEMPTS': '1'}), said)


def sizes(stack):
    names = 'GPUS', 'InstanceTypes', 'VCPUS', 'Memory', 'VolumeSize', 'MaxVCPUS', 'Architecture'
    return dict(zip(names, map(stack.parameters().get, names)))


ONE_EACH = {'GPUS': '1', 'InstanceTypes': 'g4dn.xlarge,g5.xlarge,g6.xlarge', 'VCPUS': '4', 'Memory': '14700',
            'VolumeSize': '100', 'MaxVCPUS': '40', 'Architecture': 'X86_64'}


def what_aws_has(stack):
    """The image of the instances, and what a worker asks for."""
    batch, outputs = stack.client('batch'), stack.outputs()
    environment, = batch.describe_compute_environments(
        computeEnvironments=[outputs['ComputeEnvironmentArn']])['computeEnvironments']
    definition, = batch.describe_job_definitions(
        jobDefinitionName=outputs['BatchProcessingJobDefinitionName'], status='ACTIVE')['jobDefinitions']
    return environment['computeResources']['ec2Configuration'], {
        need['type']: need['value'] for need in definition['containerProperties']['resourceRequirements']}


def test_create_with_gpus_alone_chooses_instances_that_workers_fill():
    stack = Stack()
    done = stack.run('create.sh', '--servicename', stack.service, '--gpus', 1, '--wait')
    assert (done.returncode, done.stderr) == (0, ''), done.stderr       # and so no warning of waste
    assert re.search('--gpus 1 --vcpus 4 --mem 14700, on g4dn.xlarge,g5.xlarge,g6.xlarge. .*"Running On-Demand G and '
                     'VT instances" a new account has 0 vCPUs; scripts/check.sh --dry', done.stdout)
    assert sizes(stack) == ONE_EACH
    assert what_aws_has(stack) == ([{'imageType': 'ECS_AL2023_NVIDIA'}],
                                   {'VCPU': '4', 'MEMORY': '14700', 'GPU': '1'})


# ---------------------------------------------------------------------------------------------
# What AWS does, acted out: botocore's model of Batch, ResourceRequirement.value and Ec2Configuration.imageType
# ---------------------------------------------------------------------------------------------

def submit(stack, **overrides):
    outputs = stack.outputs()
    return stack.client('batch').submit_job(
        jobName='job', jobQueue=outputs['BatchProcessingJobQueueName'],
        jobDefinition=outputs['BatchProcessingJobDefinitionName'], containerOverrides=overrides)['jobId']


def job_of(stack, job):
    return stack.client('batch').describe_jobs(jobs=[job])['jobs'][0]


def test_job_waits_for_a_card_that_another_has_though_there_are_vcpus(tmp_path):
    stack = Stack(GPUS=1, InstanceTypes='g5.xlarge', VCPUS=1, Memory=600, MaxVCPUS=4).create()
    stack.push('BatchECR', write_main(tmp_path, 'time.sleep(1)'))
    first, second = (wait_until(lambda job=job: job_of(stack, job)['status'] == 'SUCCEEDED' and job_of(stack, job))
                     for job in [submit(stack), submit(stack)])
    assert second['startedAt'] >= first['stoppedAt']


def test_instance_without_the_driver_has_no_cards_and_graviton_and_fargate_get_none():
    stack = Stack(InstanceTypes='g5.xlarge').create()
    job = submit(stack, resourceRequirements=[{'type': 'GPU', 'value': '1'}])
    waiting = wait_until(lambda: job_of(stack, job).get('statusReason') and job_of(stack, job))
    assert waiting['status'] == 'RUNNABLE'
    assert re.match(r'MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - .*\(vCPU/memory/GPU\)', waiting['statusReason'])
    assert {'type': 'GPU', 'value': '1'} in waiting['container']['resourceRequirements']
    for wrong, said in (
            (Stack(GPUS=1, InstanceTypes='g5g.xlarge', Architecture='ARM64'), 'ECS_AL2023_NVIDIA is not for Graviton'),
            (Stack(GPUS=1, Fargate='yes', Memory=2048), 'GPU is not supported')):
        with pytest.raises(AssertionError):
            wrong.create()
        events = wrong.client('cloudformation').describe_stack_events(StackName=wrong.name)['StackEvents']
        assert any(said in event.get('ResourceStatusReason', '') for event in events)


# ---------------------------------------------------------------------------------------------
# modify.sh, the executor, costs
# ---------------------------------------------------------------------------------------------

WHOSE_CARDS = """
import os, time

def cards(folder):
    mine, until = os.environ['NVIDIA_VISIBLE_DEVICES'], time.monotonic() + 300
    open(os.path.join(folder, mine), 'w').close()
    while len(os.listdir(folder)) < 3 and time.monotonic() < until:     # the other workers have calls, too
        time.sleep(0.05)
    return mine

with rios_awsbatch.AWSBatchExecutor(3, gpus=2) as executor:
    executor.wait_for_workers(3)
    print(*set(executor.map(cards, [os.environ['MEET']] * 3)), flush=True)
try:
    with rios_awsbatch.AWSBatchExecutor(1, gpus=5) as executor:
        executor.submit(abs, 1).result()
except rios_awsbatch.BrokenAWSBatchExecutor as error:
    print(error)
"""


@pytest.fixture
def scripts(monkeypatch):
    """Imports a Python script by its name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def test_modify_gives_workers_cards_of_their_own_and_takes_them_back(tmp_path, shared, scripts):
    """From 0 to 1, and to instances of four, on which a run asks for 2 each; back to 0. With wrong choices between."""
    stack = Stack().create().push('BatchECR', ROOT / 'worker.py')
    before = stack.parameters()
    succeeds(stack.run('modify.sh', '--gpus', 1, '--wait'), 'Instances are replaced')
    assert sizes(stack) == ONE_EACH
    for args, said in (
            (['--instancetype', 'c7i,m7i'], "no instance of 'c7i,m7i' has so many GPUs .--gpus 1, --instancetype"),
            (['--instancetype', 'p3dn'], 'but for those of g3 and p3'),
            (['--instancetype', 'g5g'], 'Graviton .* get no GPUs')):
        refuses(stack.run('modify.sh', *args), said)
    assert sizes(stack) == ONE_EACH
    # What was chosen for one GPU stays, though a worker now has three quarters of its vCPUs in vain.
    done = stack.run('modify.sh', '--instancetype', 'g5.12xlarge', '--mem', 600, '--maxjobs', 6, '--wait')
    assert re.search('on a g5.12xlarge each takes 12 vCPUs, which cost money. Sizes such as g6.xlarge', done.stderr)
    assert sizes(stack) == dict(ONE_EACH, InstanceTypes='g5.12xlarge', Memory='600', MaxVCPUS='72')
    out, _ = finish(run_main(tmp_path, dict(stack.env, RIOS_AWSBATCH_REPORT=str(tmp_path), MEET=str(shared)), WHOSE_CARDS))
    seen, why = out.splitlines()
    workers = [text.split(',') for text in seen.split()]
    assert [len(cards) for cards in workers] == [2] * 3         # on two instances of four
    ids = [card for cards in workers for card in cards]
    assert len(set(ids)) == len(ids) and all(re.fullmatch('GPU-[0-9a-f-]{36}', card) for card in ids)
    assert 'AWS Batch says: MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - ' in why and '--gpus' in why
    report = scripts('timeline').Run(min(tmp_path.glob('*.jsonl')))     # of the first run
    assert report.gpu_hours() > 0 and report.vcpu_hours() == pytest.approx(2 * report.gpu_hours())
    assert report.costs()['compute'] == pytest.approx(report.gpu_hours() * (2 * 0.05 + 0.81))
    assert re.search(r' GPU-hours at \$0.81\)', '\n'.join(report.summary()))
    assert report.headline().endswith('(estimate)')
    succeeds(stack.run('modify.sh', '--gpus', 0, '--maxjobs', 10, '--wait'), 'Instances are replaced')
    assert stack.parameters() == before
    assert what_aws_has(stack) == ([{'imageType': 'ECS_AL2023'}], {'VCPU': '1', 'MEMORY': '1800'})


def test_executor_says_how_a_stack_without_gpus_gets_some():
    with pytest.raises(rios_awsbatch.AWSBatchException, match='gpus=2, but .*"scripts/modify.sh --gpus 2 --wait" gives it'):
        rios_awsbatch.AWSBatchExecutor(1, gpus=2)
    for wrong in 0, 0.5, True:
        with pytest.raises(ValueError, match='gpus must be greater than 0 and a whole number'):
            rios_awsbatch.AWSBatchExecutor(1, gpus=wrong)


RIOS_2 = """
import sys
from osgeo import gdal
from rios import applier
import rios_awsbatch

gdal.GetDriverByName('GTiff').Create(sys.argv[1], 64, 64)
infiles, outfiles, controls = applier.FilenameAssociations(), applier.FilenameAssociations(), applier.ApplierControls()
infiles.image, outfiles.image = sys.argv[1], sys.argv[1] + '.out'
controls.setConcurrencyStyle(applier.ConcurrencyStyle(
    computeWorkerKind='CW_AWSBATCH', numComputeWorkers=1, computeWorkersRead=True, computeWorkerExtraParams={'gpus': 1}))
applier.apply(lambda info, inputs, outputs: None, infiles, outfiles, controls=controls)
"""


@every(one=False)
def test_rios_asks_for_gpus_by_extra_parameters(source, tmp_path):
    (tmp_path / 'main.py').write_text(RIOS_2)
    done = subprocess.run([sys.executable, tmp_path / 'main.py', tmp_path / 'in.tif'], env=source.environment(), text=True,
                          capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert re.search('AWSBatchException: gpus=1, but stack .* without GPUs', done.stderr), done.stderr


@pytest.mark.parametrize('gpus, instances, said', [
    (0, 'optimal', r'about \$1.20 so far'), (None, None, r'about \$1.20 so far'),
    (1, 'g4dn.xlarge,g5.xlarge,g6.xlarge', r'about \$6.06 so far'),        # 3 workers, 2 hours, at $0.20 + $0.81
    (1, 'g5.xlarge,p5', r'about \$1.20 without GPUs so far')])
def test_cost_so_far_has_the_gpus_in_it_or_says_that_it_has_not(gpus, instances, said, scripts):
    lease = {'host': 'laptop', 'began': 0, 'now': 7200, 'workers': 4, 'workers_up': 3, 'vcpus': '4', 'done': 1,
             'outstanding': 1, 'gpus': gpus, 'instances': instances}
    assert re.search(said + '$', scripts('runs').progress(json.dumps(lease), None)[0])


@pytest.mark.parametrize('types, spot, code', [
    ('g5.xlarge,g6.xlarge', 'no', r'EC2 g, \d+ used.* L-DB2E81BA '), ('p5', 'yes', r'SPOT p, \d+ used.* L-7212CCBC ')])
def test_check_asks_for_the_quota_of_instances_with_gpus(types, spot, code, tmp_path):
    """None here is enough for 20,000 vCPUs, and all kinds have the same in use."""
    stack = Stack(InstanceTypes=types, Spot=spot, GPUS=1, MaxVCPUS=20000).create()
    done = stack.run('check.sh', '--dry', env={'PYTHONPATH': ''}, folder=tmp_path)
    assert re.search('✗ quota: 10000 vCPUs of the kind .*{}'.format(code), done.stdout), done.stdout + done.stderr


def segmented(output, *args, **env):
    """Let the example compute a raster: its pixels, what it said, and its log."""
    done = subprocess.run([sys.executable, EXAMPLES / 'segment_gpu.py', SCENE, output, *args], text=True, timeout=PATIENCE,
                          capture_output=True, env=dict(os.environ, PYTHONPATH=str(ROOT), **env))
    assert done.returncode == 0, done.stderr
    return gdal.Open(str(output)).ReadAsArray(), done.stdout, done.stderr


def test_example_gives_what_one_process_does_and_each_worker_loads_the_network_once(tmp_path):
    assert (EXAMPLES / 'segment_gpu.py').read_text().count('\n') <= 100
    serial, said, _ = segmented(tmp_path / 'serial.tif', '--serial')
    assert 'No GPU: computed on the CPU.' in said and '36 blocks on the CPU; water 15%, plants 38%' in said
    pixels, said, log = segmented(tmp_path / 'cover.tif', '--workers', '3', RIOS_AWSBATCH_WORKER_OUTPUT='1',
                                  RIOS_AWSBATCH_REPORT=str(tmp_path))
    assert numpy.array_equal(pixels, serial) and 'No GPU: computed on the CPU.' in said
    report, = tmp_path.glob('*.jsonl')
    workers = {record['worker'] for record in map(json.loads, report.read_text().splitlines()) if record['is'] == 'block'}
    assert log.count('the network is loaded, for the CPU') == len(workers), log
