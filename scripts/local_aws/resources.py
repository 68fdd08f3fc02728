"""Kinds of resources in a stack that moto lacks, or cannot change or delete.

moto makes all of batch.yaml's resources but policies of buckets and queues. Of Batch's it wants properties that are
optional and drops others (retry rules, time-outs, platform); most of its resources cannot be changed, so an update
would make them anew; roles do not get their managed policies, and parts of the network are left behind.
"""
import json

from local_aws import ACCOUNT, PARTITION, AwsError
from local_aws.batch import batch_backend


class Resources:
    """What replaces moto's models of resources."""

    # Types of resources that moto does not know, and that need only be there: Ref and GetAtt work.
    PLAIN = ('AWS::SQS::QueuePolicy', 'AWS::EC2::SecurityGroupEgress')

    def install(self):
        """Put these in the place of moto's."""
        from moto.core.common_models import CloudFormationModel
        self._plain_resources(CloudFormationModel)
        self._batch_resources()
        self._other_resources()

    def _plain_resources(self, base):
        def create(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            item = cls()
            item.name, item.properties, item.region = resource_name, cloudformation_json['Properties'], region_name
            return item

        def model(kind, **more):
            return type(kind.replace('::', ''), (base,), {
                'cloudformation_type': staticmethod(lambda: kind),
                'cloudformation_name_type': staticmethod(lambda: ''),
                'create_from_cloudformation_json': classmethod(create),
                'update_from_cloudformation_json': classmethod(
                    lambda cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name:
                    create(cls, new_resource_name, cloudformation_json, account_id, region_name)),
                'delete': lambda self, account_id, region_name: None,
                'physical_resource_id': property(lambda self: self.name),
                'has_cfn_attr': classmethod(lambda cls, attr: True),
                'get_cfn_attribute': lambda self, name: f'{self.name}.{name}', **more})
        self.models = [model(kind) for kind in self.PLAIN]

        # A bucket's policy counts in Iam's decision on a request. moto's own reading of it knows no conditions.
        from moto.iam.access_control import PermissionResult
        from moto.s3.models import FakeBucket
        FakeBucket.get_permission = lambda *_: PermissionResult.NEUTRAL

        def create_policy(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            from moto.s3.models import s3_backends
            item = create(cls, resource_name, cloudformation_json, account_id, region_name)
            bucket = s3_backends[ACCOUNT][PARTITION].get_bucket(item.properties['Bucket'])
            bucket.policy = json.dumps(item.properties['PolicyDocument']).encode()
            return item

        def delete_policy(item, account_id, region_name):
            from moto.s3.models import s3_backends
            bucket = s3_backends[ACCOUNT][PARTITION].buckets.get(item.properties['Bucket'])
            if bucket is not None:
                bucket.policy = None
        self.models.append(model(
            'AWS::S3::BucketPolicy', create_from_cloudformation_json=classmethod(create_policy), delete=delete_policy,
            update_from_cloudformation_json=classmethod(lambda cls, _, name, *rest: create_policy(cls, name, *rest))))

    @classmethod
    def _camel(cls, value, keep=('Options', 'Tags', 'Parameters')):
        """Properties of a template as the Batch API writes them: lower first letters, but not in user's maps."""
        if isinstance(value, dict):
            return {key[0].lower() + key[1:]: item if key in keep else cls._camel(item) for key, item in value.items()}
        return [cls._camel(item) for item in value] if isinstance(value, list) else value

    def _batch_resources(self):
        """Batch resources: optional properties optional, changes in place, definitions with all their settings."""
        from moto.batch import models
        from moto.iam.models import iam_backends

        def environment(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            given = self._camel(cloudformation_json['Properties'])
            role = given.get('serviceRole')
            if not role:                         # AWS makes its service-linked role by itself
                iam, name = iam_backends[ACCOUNT][PARTITION], 'AWSServiceRoleForBatch'
                known = next((item for item in iam.roles.values() if item.name == name), None)
                role = (known or iam.create_role(name, '{}', '/aws-service-role/batch.amazonaws.com/', None, '', [],
                                                 3600)).arn
            return batch_backend(region_name).create_compute_environment(
                resource_name, given['type'].upper(), given.get('state', 'ENABLED'), given['computeResources'], role,
                given.get('tags'))

        def change_environment(cls, original_resource, new_resource_name, cloudformation_json, *_):
            given = self._camel(cloudformation_json['Properties'])
            original_resource.compute_resources = given['computeResources']
            original_resource.state = given.get('state', 'ENABLED')
            return original_resource

        def queue(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            given = self._camel(cloudformation_json['Properties'])
            return batch_backend(region_name).create_job_queue(
                resource_name, int(given['priority']), None, given.get('state', 'ENABLED'),
                given['computeEnvironmentOrder'], given.get('tags'))

        def change_queue(cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name):
            given = self._camel(cloudformation_json['Properties'])
            batch_backend(region_name).update_job_queue(
                original_resource.arn, int(given['priority']), given.get('state', 'ENABLED'),
                given['computeEnvironmentOrder'], None)
            return original_resource

        def definition(cls, resource_name, cloudformation_json, account_id, region_name, **_):
            given = self._camel(cloudformation_json['Properties'])
            container = given['containerProperties']
            for pair in [*container.get('environment', []), *container.get('resourceRequirements', [])]:
                pair['value'] = str(pair['value'])
            return batch_backend(region_name).register_job_definition(
                resource_name, given.get('parameters') or {}, given['type'], given.get('tags') or {},
                given.get('retryStrategy') or {}, container, None, None,
                given.get('timeout') or {}, given.get('platformCapabilities') or ['EC2'],
                given.get('propagateTags', False))

        def change_definition(cls, original_resource, *rest):
            original_resource.deregister()       # a change is a new revision; the old one becomes INACTIVE
            return definition(cls, *rest)

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

    @staticmethod
    def _other_resources():
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

        def make_role(cls, resource_name, cloudformation_json, account_id, region_name, **more):
            role = moto_make(resource_name, cloudformation_json, account_id, region_name, **more)
            attach(role, cloudformation_json['Properties'].get('ManagedPolicyArns', []))
            return role

        def change_role(cls, original_resource, new_resource_name, cloudformation_json, *_):
            given = cloudformation_json['Properties']
            original_resource.assume_role_policy_document = json.dumps(given['AssumeRolePolicyDocument'])
            for policy in given.get('Policies', []):
                original_resource.policies[policy['PolicyName']] = json.dumps(policy['PolicyDocument'])
            attach(original_resource, given.get('ManagedPolicyArns', []))
            return original_resource

        def drop_role(role, account_id, region_name):
            attach(role, [])
            moto_drop(role.name, {}, account_id, region_name)

        def change_group(cls, original_resource, new_resource_name, cloudformation_json, *_):
            original_resource.retention_in_days = cloudformation_json['Properties'].get('RetentionInDays')
            return original_resource
        Role.create_from_cloudformation_json = classmethod(make_role)
        Role.update_from_cloudformation_json = classmethod(change_role)
        Role.delete = drop_role
        # AWS's attribute stands for the group and all its streams.
        LogGroup.get_cfn_attribute = lambda group, name: group.arn + ':*'
        LogGroup.update_from_cloudformation_json = classmethod(change_group)

        def change_policy(cls, original_resource, new_resource_name, cloudformation_json, *_):
            document = json.dumps(cloudformation_json['Properties']['PolicyDocument'])
            iam.create_policy_version(original_resource.arn, document, 'true')
            return original_resource

        def delete_policy(item, *_):
            if item.attachment_count:            # to what is not of the stack
                raise AwsError('DeleteConflict', 'Cannot delete a policy attached to entities.')
            iam.delete_policy(item.arn)
        ManagedPolicy.update_from_cloudformation_json = classmethod(change_policy)
        ManagedPolicy.delete = delete_policy

        def ec2_delete(model, work):
            model.delete = lambda item, account_id, region_name: work(ec2.ec2_backends[ACCOUNT][region_name], item)
        ec2_delete(ec2.route_tables.RouteTable, lambda backend, item: backend.delete_route_table(item.id))
        ec2_delete(ec2.internet_gateways.InternetGateway, lambda backend, item: backend.delete_internet_gateway(item.id))
        ec2_delete(ec2.vpn_gateway.VPCGatewayAttachment, lambda backend, item: (
            item.vpc_id and backend.detach_internet_gateway(item.gateway_id, item.vpc_id)))
        ec2_delete(ec2.vpcs.VPCEndPoint, lambda backend, item: backend.delete_vpc_endpoints([item.id]))
