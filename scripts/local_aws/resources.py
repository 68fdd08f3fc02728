"""Kinds of resources in a stack that moto lacks, or cannot change or delete.

moto makes all of batch.yaml's resources but the policies of buckets, which bind nobody here. Of Batch's it
wants properties that are optional and drops others (retry rules, time-outs, platform), and it cannot change
them, so that an update would make them anew. Roles do not get their managed policies, and parts of the
network are left behind."""
import json

from moto.batch import models as batch
from moto.cloudformation import parsing
from moto.ec2 import models as ec2
from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend, Zone
from moto.iam.models import SERVICE_NAME_CONVERSION, IAMBackend, ManagedPolicy, Role, iam_backends
from moto.logs.models import LogGroup

from local_aws import ACCOUNT, PARTITION, AwsError
from local_aws.batch import batch_backend
from local_aws.instances import INSTANCE_TYPES, is_fargate, types_of

# Roles with which services act for an account; moto makes them of the names of services.
SERVICE_ROLE, ECS_ROLE = 'AWSServiceRoleForBatch', 'AWSServiceRoleForECS'
SERVICE_NAME_CONVERSION.update(batch='Batch', ecs='ECS', spot='EC2Spot')


def camel(value, keep=('Options', 'Tags', 'Parameters')):
    """Properties of a template as the Batch API writes them: lower first letters, but not in user's maps."""
    if isinstance(value, dict):
        return {key[0].lower() + key[1:]: item if key in keep else camel(item) for key, item in value.items()}
    return [camel(item) for item in value] if isinstance(value, list) else value


# What UpdateComputeEnvironment refuses for Fargate, whether it changes or not. CloudFormation hands it over
# where the template has it, and `type` where it was told not to replace the environment (aws-cdk, issues
# 27054 and 34008).
NOT_ON_FARGATE = ('allocationStrategy', 'bidPercentage', 'ec2Configuration', 'ec2KeyPair', 'imageId',
                  'instanceRole', 'instanceTypes', 'launchTemplate', 'placementGroup', 'tags', 'type',
                  'updatePolicy', 'updateToLatestImageVersion')


class Plain:
    """A resource that moto does not know and that need only be there: Ref and GetAtt work."""

    KINDS = 'AWS::S3::BucketPolicy', 'AWS::SQS::QueuePolicy', 'AWS::EC2::SecurityGroupEgress'
    create_from_cloudformation_json = classmethod(lambda cls, name, *_, **__: cls(name))
    update_from_cloudformation_json = classmethod(lambda cls, item, *_: item)
    is_created = staticmethod(lambda: True)
    delete = staticmethod(lambda *_: None)

    def __init__(self, name):
        self.physical_resource_id = name

    def get_cfn_attribute(self, name):
        """What GetAtt gives."""
        return f'{self.physical_resource_id}.{name}'


def environment(item, name, given, backend):
    """Make or change a compute environment. Where it names no role, it has the one of Batch itself."""
    resources = given['computeResources']
    if 'NVIDIA' in str(resources.get('ec2Configuration')) and any(
            'arm64' in INSTANCE_TYPES[kind]['ProcessorInfo']['SupportedArchitectures']
            for *_, kind in types_of(tuple(resources['instanceTypes']))):
        raise AwsError('ClientException', 'Error executing request, Exception : ECS_AL2023_NVIDIA is not for '
                       'Graviton-based instance types.')
    if item:
        update = {**given['computeResources'], **given}
        if update.get('replaceComputeEnvironment', True):
            del update['type']
        if is_fargate(item) and set(NOT_ON_FARGATE) & set(update):
            raise AwsError('ClientException', 'The following parameters can\'t be updated for Fargate '
                           'compute environment: ' + ', '.join(NOT_ON_FARGATE) + '.')
        item.compute_resources, item.state = given['computeResources'], given.get('state', 'ENABLED')
        return item
    iam = iam_backends[ACCOUNT][PARTITION]
    known = {role.name for role in iam.roles.values()}
    if SERVICE_ROLE not in known:
        iam.create_service_linked_role('batch.amazonaws.com', '', '')
    if ECS_ROLE not in known:                    # the first cluster of an account makes it, and fails
        iam.create_service_linked_role('ecs.amazonaws.com', '', '')
        raise AwsError('ClientException', 'CLIENT_ERROR - Unable to assume the service linked role. Please '
                       'verify that the ECS service linked role exists.')
    role = given.get('serviceRole') or SERVICE_ROLE
    if not role.startswith('arn:'):     # Batch takes the name of a role as well (botocore's model)
        role = iam.get_role(role).arn
    return backend.create_compute_environment(
        name, given['type'].upper(), given.get('state', 'ENABLED'), given['computeResources'],
        role, given.get('tags'))


def queue(item, name, given, backend):
    """Make or change a job queue."""
    priority, state, order = int(given['priority']), given.get('state'), given['computeEnvironmentOrder']
    if item:
        backend.update_job_queue(item.arn, priority, state, order, None)
    else:
        item = backend.create_job_queue(name, priority, None, state or 'ENABLED', order, given.get('tags'))
    item.limits = given.get('jobStateTimeLimitActions', ())
    return item


def definition(item, name, given, backend):
    """Make or change a job definition. A change is a new revision; the old one becomes INACTIVE."""
    if item:
        item.deregister()
    container = given['containerProperties']
    for pair in [*container.get('environment', []), *container.get('resourceRequirements', [])]:
        pair['value'] = str(pair['value'])
    return backend.register_job_definition(
        def_name=name, parameters=given.get('parameters') or {}, _type=given['type'],
        tags=given.get('tags') or {}, retry_strategy=given.get('retryStrategy') or {},
        container_properties=container, node_properties=None, eks_properties=None,
        timeout=given.get('timeout') or {}, propagate_tags=given.get('propagateTags', False),
        platform_capabilities=given.get('platformCapabilities') or ['EC2'])


def install_batch(model, make, remove):
    """Let a model of Batch's be made or, where there is an item, changed, and removed so."""
    def change(item, name, template, account, region):
        return make(item, name, camel(template['Properties']), batch_backend(region))
    model.create_from_cloudformation_json = classmethod(lambda cls, *given, **_: change(None, *given))
    model.update_from_cloudformation_json = classmethod(lambda cls, *given: change(*given))
    model.delete = lambda item, account, region: remove(batch_backend(region), item)
    model.has_cfn_attr = classmethod(lambda cls, attr: True)
    model.get_cfn_attribute = lambda item, name: item.arn


def attach(role, wanted):
    """Attach these policies and no others. Those of AWS itself are not here: nothing needs them."""
    for arn in list(role.managed_policies):
        role.managed_policies[arn].detach_from(role)
    for arn in wanted:
        if ':iam::aws:' not in arn:
            iam_backends[ACCOUNT][PARTITION].attach_role_policy(arn, role.name)
    return role


def change_role(role, given):
    """Let a role have the policies that the properties name."""
    for policy in given.get('Policies', []):
        role.policies[policy['PolicyName']] = json.dumps(policy['PolicyDocument'])
    return attach(role, given.get('ManagedPolicyArns', []))


def change_policy(policy, given):
    """Let a policy have another document."""
    iam_backends[ACCOUNT][PARTITION].create_policy_version(
        policy.arn, json.dumps(given['PolicyDocument']), 'true')


def delete_policy(item, *_):
    """AWS keeps one that is attached to what is not of the stack."""
    if item.attachment_count:
        raise AwsError('DeleteConflict', 'Cannot delete a policy attached to entities.')
    iam_backends[ACCOUNT][PARTITION].delete_policy(item.arn)


def install():
    """Put these in the place of moto's."""
    parsing.get_model_map().update(dict.fromkeys(Plain.KINDS, Plain))
    moto_link = IAMBackend.create_service_linked_role

    def link(iam, service_name, *more):
        known = {role.name for role in iam.roles.values()}
        name = 'AWSServiceRoleFor' + SERVICE_NAME_CONVERSION.get(service_name.partition('.')[0], '')
        if name in known:
            raise AwsError('InvalidInput', f'Service role name {name} has been taken in this account, please '
                           'try a different suffix.')
        return moto_link(iam, service_name, *more)
    IAMBackend.create_service_linked_role = link
    # Older accounts have a zone without Fargate there (ECS developer guide, Fargate Regions).
    RegionsAndZonesBackend.zones['us-west-1'].append(Zone('us-west-1c', 'us-west-1', 'usw1-az2'))
    # The account has used these before.
    for service in 'batch', 'ecs':
        iam_backends[ACCOUNT][PARTITION].create_service_linked_role(service + '.amazonaws.com', '', '')
    install_batch(batch.ComputeEnvironment, environment,
                  lambda backend, item: backend.delete_compute_environment(item.arn))
    install_batch(batch.JobQueue, queue, lambda backend, item: backend.delete_job_queue(item.arn))
    install_batch(batch.JobDefinition, definition, lambda backend, item: item.deregister())
    moto_make, moto_drop = Role.create_from_cloudformation_json, Role.delete_from_cloudformation_json
    Role.create_from_cloudformation_json = classmethod(lambda cls, name, given, *where, **more: change_role(
        moto_make(name, given, *where, **more), given['Properties']))
    Role.delete = lambda role, account, region: (attach(role, []), moto_drop(role.name, {}, account, region))
    ManagedPolicy.delete = delete_policy
    for model, work in (
            (Role, change_role), (ManagedPolicy, change_policy),
            (LogGroup, lambda item, given: setattr(item, 'retention_in_days', given.get('RetentionInDays')))):
        model.update_from_cloudformation_json = classmethod(
            lambda cls, item, name, template, *_, work=work: work(item, template['Properties']))
    # AWS's attribute stands for the group and all its streams.
    LogGroup.get_cfn_attribute = lambda group, name: group.arn + ':*'
    for model, work in (
            (ec2.route_tables.RouteTable, lambda backend, item: backend.delete_route_table(item.id)),
            (ec2.internet_gateways.InternetGateway,
             lambda backend, item: backend.delete_internet_gateway(item.id)),
            (ec2.vpn_gateway.VPCGatewayAttachment, lambda backend, item: item.vpc_id and (
                backend.detach_internet_gateway(item.gateway_id, item.vpc_id))),
            (ec2.vpcs.VPCEndPoint, lambda backend, item: backend.delete_vpc_endpoints([item.id]))):
        model.delete = lambda item, account, region, work=work: work(ec2.ec2_backends[account][region], item)
