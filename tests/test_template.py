"""
The promises of batch.yaml.
"""
import os
import pathlib
import shutil
import subprocess
import sys

import boto3

from tests.conftest import OUTPUTS, PATIENCE, ROOT, load_template


def test_template_is_valid_in_every_region_that_has_batch():
    session = boto3.Session()
    regions = [name for partition in ('aws', 'aws-cn', 'aws-us-gov')
               for name in session.get_available_regions('batch', partition)]
    assert len(regions) > 30
    done = subprocess.run([shutil.which('cfn-lint', path='{}{}{}'.format(
        pathlib.Path(sys.executable).parent, os.pathsep, os.environ['PATH'])), '-r', *regions, '--', ROOT / 'batch.yaml'],
        capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout + done.stderr) == (0, '')


# What AWS asks no money for while no job runs, but for what is stored: bytes in the bucket, images, logs.
FREE_WHILE_IDLE = {
    'AWS::EC2::VPC', 'AWS::EC2::InternetGateway', 'AWS::EC2::VPCGatewayAttachment', 'AWS::EC2::RouteTable',
    'AWS::EC2::Route', 'AWS::EC2::VPCEndpoint', 'AWS::EC2::Subnet', 'AWS::EC2::SubnetRouteTableAssociation',
    'AWS::EC2::SecurityGroup', 'AWS::EC2::LaunchTemplate', 'AWS::S3::Bucket', 'AWS::S3::BucketPolicy',
    'AWS::ECR::Repository', 'AWS::Logs::LogGroup', 'AWS::IAM::Role', 'AWS::IAM::InstanceProfile', 'AWS::IAM::Policy',
    'AWS::IAM::ManagedPolicy', 'AWS::Batch::ComputeEnvironment', 'AWS::Batch::JobQueue', 'AWS::Batch::JobDefinition'}


def test_nothing_in_the_template_costs_money_while_idle():
    resources = load_template()['Resources']
    assert {item['Type'] for item in resources.values()} <= FREE_WHILE_IDLE
    for item in resources.values():
        properties = item.get('Properties', {})
        if item['Type'] == 'AWS::EC2::VPCEndpoint':
            assert properties['VpcEndpointType'] == 'Gateway'       # the other kinds cost by the hour
        elif item['Type'] == 'AWS::Batch::ComputeEnvironment':
            assert properties['ComputeResources']['MinvCpus'] == 0
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
    assert sorted(name for group in interface['ParameterGroups'] for name in group['Parameters']) == sorted(names)
    assert sorted(interface['ParameterLabels']) == sorted(names)
    assert all({'Description', 'Default'} <= set(item) for item in template['Parameters'].values())
    assert OUTPUTS <= set(template['Outputs'])
    assert all(item['Description'] for item in template['Outputs'].values())
