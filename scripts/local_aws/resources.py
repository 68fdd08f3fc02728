"""Kinds of resources in a stack that moto lacks, or cannot change or delete.

moto makes all of batch.yaml's resources but the policies of buckets, which bind nobody here. Of Batch's it
wants properties that are optional and drops others (retry rules, time-outs, platform), and it cannot change
them, so that an update would make them anew. Roles do not get their managed policies, and parts of the
network are left behind."""
import json

from local_aws import ACCOUNT, PARTITION, AwsError
from local_aws.batch import batch_backend


def camel(value, keep=('Options', 'Tags', 'Parameters')):
    """Properties of a template as the Batch API writes them: lower first letters, but not in user's maps."""
    if isinstance(value, dict):
        return {key[0].lower() + key[1:]: item if key in keep else camel(item) for key, item in value.items()}
    return [camel(item) for item in value] if isinstance(value, list) else value


def install():
    """Put these in the place of moto's."""
    plain_resources()
    batch_resources()
    other_resources()


def plain_resources():
    """Types that moto does not know, and that need only be there: Ref and GetAtt work."""
    from moto.core.common_models import CloudFormationModel

    def create(cls, resource_name, *_, **__):
        item = cls()
        item.name = resource_name
        return item

    # moto finds models among the living subclasses.
    CloudFormationModel.of_the_local_aws = [type(kind.replace('::', ''), (CloudFormationModel,), {
        'cloudformation_type': staticmethod(lambda kind=kind: kind),
        'cloudformation_name_type': staticmethod(lambda: ''),
        'create_from_cloudformation_json': classmethod(create),
        'update_from_cloudformation_json': classmethod(lambda cls, item, *_: item),
        'delete': lambda item, *_: None,
        'physical_resource_id': property(lambda item: item.name),
        'has_cfn_attr': classmethod(lambda cls, attr: True),
        'get_cfn_attribute': lambda item, name: f'{item.name}.{name}'})
        for kind in ('AWS::S3::BucketPolicy', 'AWS::SQS::QueuePolicy', 'AWS::EC2::SecurityGroupEgress')]


def batch_resources():
    """Optional properties optional, changes in place, definitions with all their settings."""
    from moto.batch import models
    from moto.iam.models import iam_backends

    def environment(cls, resource_name, cloudformation_json, account_id, region_name, **_):
        given = camel(cloudformation_json['Properties'])
        iam, name = iam_backends[ACCOUNT][PARTITION], 'AWSServiceRoleForBatch'
        if not any(role.name == name for role in iam.roles.values()):      # AWS makes it by itself
            iam.create_role(name, '{}', '/aws-service-role/batch.amazonaws.com/', None, '', [], 3600)
        role = given.get('serviceRole') or next(role.arn for role in iam.roles.values() if role.name == name)
        return batch_backend(region_name).create_compute_environment(
            resource_name, given['type'].upper(), given.get('state', 'ENABLED'), given['computeResources'],
            role, given.get('tags'))

    def change_environment(cls, item, resource_name, cloudformation_json, *_):
        given = camel(cloudformation_json['Properties'])
        item.compute_resources, item.state = given['computeResources'], given.get('state', 'ENABLED')
        return item

    def queue(cls, resource_name, cloudformation_json, account_id, region_name, **_):
        given = camel(cloudformation_json['Properties'])
        item = batch_backend(region_name).create_job_queue(
            resource_name, int(given['priority']), None, given.get('state', 'ENABLED'),
            given['computeEnvironmentOrder'], given.get('tags'))
        item.limits = given.get('jobStateTimeLimitActions', ())
        return item

    def change_queue(cls, item, resource_name, cloudformation_json, account_id, region_name):
        given = camel(cloudformation_json['Properties'])
        batch_backend(region_name).update_job_queue(
            item.arn, int(given['priority']), given.get('state', 'ENABLED'), given['computeEnvironmentOrder'],
            None)
        item.limits = given.get('jobStateTimeLimitActions', ())
        return item

    def definition(cls, resource_name, cloudformation_json, account_id, region_name, **_):
        given = camel(cloudformation_json['Properties'])
        container = given['containerProperties']
        for pair in [*container.get('environment', []), *container.get('resourceRequirements', [])]:
            pair['value'] = str(pair['value'])
        return batch_backend(region_name).register_job_definition(
            def_name=resource_name, parameters=given.get('parameters') or {}, _type=given['type'],
            tags=given.get('tags') or {}, retry_strategy=given.get('retryStrategy') or {},
            container_properties=container, node_properties=None, eks_properties=None,
            timeout=given.get('timeout') or {}, propagate_tags=given.get('propagateTags', False),
            platform_capabilities=given.get('platformCapabilities') or ['EC2'])

    def change_definition(cls, item, *given):
        item.deregister()                        # a change is a new revision; the old one becomes INACTIVE
        return definition(cls, *given)

    for model, create, change, remove in (
            (models.ComputeEnvironment, environment, change_environment,
             lambda item, _, region: batch_backend(region).delete_compute_environment(item.arn)),
            (models.JobQueue, queue, change_queue,
             lambda item, _, region: batch_backend(region).delete_job_queue(item.arn)),
            (models.JobDefinition, definition, change_definition, lambda item, *_: item.deregister())):
        model.create_from_cloudformation_json = classmethod(create)
        model.update_from_cloudformation_json = classmethod(change)
        model.delete = remove
        model.has_cfn_attr = classmethod(lambda cls, attr: True)
        model.get_cfn_attribute = lambda item, name: item.arn


def other_resources():
    """Changes and deletions that moto leaves out."""
    from moto.ec2 import models as ec2
    from moto.iam.models import ManagedPolicy, Role, iam_backends
    from moto.logs.models import LogGroup
    iam = iam_backends[ACCOUNT][PARTITION]
    moto_make, moto_drop = Role.create_from_cloudformation_json, Role.delete_from_cloudformation_json

    def attach(role, wanted):
        """Attach these policies and no others. Those of AWS itself are not here: nothing needs them."""
        for arn in set(role.managed_policies) - set(wanted):
            role.managed_policies[arn].detach_from(role)
        for arn in wanted:
            if arn not in role.managed_policies and ':iam::aws:' not in arn:
                iam.attach_role_policy(arn, role.name)
        return role

    def change_role(cls, role, resource_name, cloudformation_json, *_):
        given = cloudformation_json['Properties']
        for policy in given.get('Policies', []):
            role.policies[policy['PolicyName']] = json.dumps(policy['PolicyDocument'])
        return attach(role, given.get('ManagedPolicyArns', []))

    def change_policy(cls, item, resource_name, cloudformation_json, *_):
        document = json.dumps(cloudformation_json['Properties']['PolicyDocument'])
        iam.create_policy_version(item.arn, document, 'true')
        return item

    def delete_policy(item, *_):
        if item.attachment_count:                # to what is not of the stack
            raise AwsError('DeleteConflict', 'Cannot delete a policy attached to entities.')
        iam.delete_policy(item.arn)

    def change_group(cls, item, resource_name, cloudformation_json, *_):
        item.retention_in_days = cloudformation_json['Properties'].get('RetentionInDays')
        return item
    Role.create_from_cloudformation_json = classmethod(lambda cls, name, given, *where, **more: attach(
        moto_make(name, given, *where, **more), given['Properties'].get('ManagedPolicyArns', [])))
    Role.update_from_cloudformation_json = classmethod(change_role)
    Role.delete = lambda role, account, region: (attach(role, []), moto_drop(role.name, {}, account, region))
    ManagedPolicy.update_from_cloudformation_json = classmethod(change_policy)
    ManagedPolicy.delete = delete_policy
    # AWS's attribute stands for the group and all its streams.
    LogGroup.get_cfn_attribute = lambda group, name: group.arn + ':*'
    LogGroup.update_from_cloudformation_json = classmethod(change_group)
    for model, work in (
            (ec2.route_tables.RouteTable, lambda backend, item: backend.delete_route_table(item.id)),
            (ec2.internet_gateways.InternetGateway,
             lambda backend, item: backend.delete_internet_gateway(item.id)),
            (ec2.vpn_gateway.VPCGatewayAttachment, lambda backend, item: item.vpc_id and (
                backend.detach_internet_gateway(item.gateway_id, item.vpc_id))),
            (ec2.vpcs.VPCEndPoint, lambda backend, item: backend.delete_vpc_endpoints([item.id]))):
        model.delete = lambda item, account, region, work=work: work(ec2.ec2_backends[account][region], item)
