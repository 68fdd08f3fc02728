"""
The promises of batch.yaml.

That its policies suffice is in test_permissions.py, that it can be changed and deleted in test_scripts.py.
"""
import email
import os
import pathlib
import re
import shutil
import subprocess
import sys

import boto3
import pytest

from tests.helpers import OUTPUTS, PATIENCE, ROOT, Stack, load_template


def test_template_is_valid_in_every_region_that_has_batch():
    session = boto3.Session()
    regions = [name for partition in session.get_available_partitions()
               for name in session.get_available_regions('batch', partition)]
    assert len(regions) > 40
    done = subprocess.run([shutil.which('cfn-lint', path='{}{}{}'.format(
        pathlib.Path(sys.executable).parent, os.pathsep, os.environ['PATH'])), '-r', *regions, '--',
                           ROOT / 'batch.yaml'],
        capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout + done.stderr) == (0, '')


# What AWS asks no money for while no job runs, but for what is stored: bytes in the bucket, images, logs.
FREE_WHILE_IDLE = {
    'AWS::EC2::VPC', 'AWS::EC2::InternetGateway', 'AWS::EC2::VPCGatewayAttachment', 'AWS::EC2::RouteTable',
    'AWS::EC2::Route', 'AWS::EC2::VPCEndpoint', 'AWS::EC2::Subnet', 'AWS::EC2::SubnetRouteTableAssociation',
    'AWS::EC2::SecurityGroup', 'AWS::EC2::LaunchTemplate', 'AWS::S3::Bucket', 'AWS::S3::BucketPolicy',
    'AWS::ECR::Repository', 'AWS::Logs::LogGroup', 'AWS::IAM::Role', 'AWS::IAM::InstanceProfile',
    'AWS::IAM::Policy',
    'AWS::IAM::ManagedPolicy', 'AWS::Batch::ComputeEnvironment', 'AWS::Batch::JobQueue',
    'AWS::Batch::JobDefinition'}


def test_nothing_in_the_template_costs_money_while_idle():
    resources = load_template()['Resources']
    assert {item['Type'] for item in resources.values()} <= FREE_WHILE_IDLE
    for item in resources.values():
        properties = item.get('Properties', {})
        if item['Type'] == 'AWS::EC2::VPCEndpoint':
            assert properties['VpcEndpointType'] == 'Gateway'       # the other kinds cost by the hour
        elif item['Type'] == 'AWS::Batch::ComputeEnvironment':
            # Fargate has none that stay.
            least = properties['ComputeResources'].get('MinvCpus')
            assert least in (None, {'If': ['IsFargateWanted', {'Ref': 'AWS::NoValue'}, 0]})
            assert least or properties['ComputeResources']['Type'] == 'FARGATE'
            assert not properties['ComputeResources'].get('DesiredvCpus')
        elif item['Type'] == 'AWS::EC2::LaunchTemplate':
            data = properties['LaunchTemplateData']
            assert all(device['Ebs']['DeleteOnTermination'] for device in data['BlockDeviceMappings'])
        elif item['Type'] == 'AWS::S3::Bucket':
            assert any(rule.get('Prefix') == 'runs/' and rule['ExpirationInDays'] for rule in properties[
                'LifecycleConfiguration']['Rules'])
        elif item['Type'] == 'AWS::ECR::Repository':
            assert 'untagged' in properties['LifecyclePolicy']['LifecyclePolicyText']
        elif item['Type'] == 'AWS::Logs::LogGroup':
            assert properties['RetentionInDays']
        assert 'KmsKeyId' not in str(properties) and 'aws:kms' not in str(properties)


def test_every_parameter_of_the_template_is_explained_in_the_console():
    template = load_template()
    interface = template['Metadata']['AWS::CloudFormation::Interface']
    names = list(template['Parameters'])
    assert sorted(name for group in interface['ParameterGroups']
                  for name in group['Parameters']) == sorted(names)
    assert sorted(interface['ParameterLabels']) == sorted(names)
    assert all({'Description', 'Default'} <= set(item) for item in template['Parameters'].values())
    assert OUTPUTS <= set(template['Outputs'])
    assert all(item['Description'] for item in template['Outputs'].values())


def test_template_fits_into_a_request():
    """CloudFormation takes no larger one that is not on S3."""
    assert (ROOT / 'batch.yaml').stat().st_size <= 51200


def test_batch_retries_what_passes_and_nothing_else():
    for name in ('JobDefinition', 'JobDefinitionMain'):
        rules = load_template()['Resources'][name]['Properties']['RetryStrategy']['EvaluateOnExit']
        assert len(rules) <= 5 and rules[-1] == {'Action': 'EXIT', 'OnReason': '*'}
        # AWS refuses other characters: see EvaluateOnExit in its API reference.
        for rule in rules:
            assert re.fullmatch(r'[\w.: ]*\*?', rule.get('OnStatusReason') or rule.get('OnReason'))


RIOS_AWS = """
import sys
from osgeo import gdal
from rios import applier

source, kind = sys.argv[1:]
gdal.GetDriverByName('GTiff').Create(source, 64, 64)
infiles, outfiles = applier.FilenameAssociations(), applier.FilenameAssociations()
controls = applier.ApplierControls()
infiles.image, outfiles.image = source, source + '.out'
controls.setOutputDriverName('GTiff')
controls.setWindowXsize(16)
controls.setWindowYsize(16)
if kind == '1':
    from rios.parallel.aws import batch
    controls.setNumThreads(2)
    controls.setJobManagerType('AWSBatch')
else:
    controls.setConcurrencyStyle(applier.ConcurrencyStyle(
        computeWorkerKind='CW_AWSBATCH', numComputeWorkers=2, computeWorkersRead=True))


def function(info, inputs, outputs):
    outputs.image = inputs.image


applier.apply(function, infiles, outfiles, controls=controls)
"""


@pytest.mark.parametrize('folder', [
    folder for folder in filter(None, os.environ.get('RIOS_SRC', '').split(os.pathsep))
    if re.search('CW_AWSBATCH|AWSBatchJobManager', ''.join(path.read_text() for name in (
        'rios/computemanager.py', 'rios/parallel/aws/batch.py')
                                                           for path in pathlib.Path(folder).glob(name)))])
def test_rios_without_our_module_ends_at_once_on_our_stack(folder, tmp_path):
    """It waited ten minutes for workers that are none of its."""
    stack = Stack().create()
    kind = '2' if (pathlib.Path(folder) / 'rios' / 'computemanager.py').exists() else '1'
    script = tmp_path / 'main.py'
    script.write_text(RIOS_AWS)
    done = subprocess.run([sys.executable, script, tmp_path / 'in.tif', kind], capture_output=True, text=True,
                          timeout=PATIENCE, env=dict(stack.env, PYTHONPATH=folder))
    assert done.returncode == 1
    queue = stack.outputs()['BatchProcessingJobQueueName']
    jobs = stack.client('batch').list_jobs(jobQueue=queue, filters=[{'name': 'JOB_NAME', 'values': ['*']}])
    if kind == '2':
        assert 'needs the line: import rios_awsbatch' in done.stderr, done.stderr
        assert not jobs['jobSummaryList']
    else:       # whose workers end by themselves
        assert "KeyError: 'BatchInQueue'" in done.stderr, done.stderr


def test_worker_that_somebody_else_started_names_the_missing_import():
    env = {name: value for name, value in os.environ.items() if not name.startswith('RIOS')}
    done = subprocess.run([sys.executable, ROOT / 'worker.py'], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.count('\n') == 1 and '"import rios_awsbatch" is missing at its top' in done.stderr


def test_outputs_of_the_stack_are_not_those_that_rios_needs(stack):
    """RIOS 2 computes with two of them; RIOS 1.4 looks for a queue."""
    outputs = stack.outputs()
    with pytest.raises(ValueError, match='import rios_awsbatch'):
        int(int(outputs['BatchMaxVCPUS']) / int(outputs['BatchVCPUS']))
    assert not {'BatchInQueue', 'BatchOutQueue'} & set(outputs)


def test_instances_drain_on_a_spot_notice():
    """By user data that Batch can merge with its own, which it does with a MIME archive alone."""
    template = load_template()['Resources']['LaunchTemplate']['Properties']
    message = email.message_from_string(template['LaunchTemplateData']['UserData']['Fn::Base64'])
    assert message.is_multipart() and not message.defects
    script, = message.get_payload()
    assert script.get_content_type() == 'text/x-shellscript' and not script.defects
    assert script.get_payload().startswith('#!/bin/sh')
    assert 'echo ECS_ENABLE_SPOT_INSTANCE_DRAINING=true >>/etc/ecs/ecs.config' in script.get_payload()


def test_routes_of_a_subnet_outlive_the_computers_in_it():
    """ECS does not let go of an instance that has lost its way to AWS before it went."""
    for name in 'ComputeEnvironment', 'ComputeEnvironmentMain':
        subnets = load_template()['Resources'][name]['Properties']['ComputeResources']['Subnets']
        for letter, subnet in zip('ABCDEF', subnets, strict=True):
            refs = [{'Ref': 'Subnet' + letter}, {'Ref': 'Subnet{}Routes'.format(letter)}]
            assert subnet['If'] == ['IsZone{}Used'.format(letter), {'Select': [0, refs]}, {'Ref': 'AWS::NoValue'}]
