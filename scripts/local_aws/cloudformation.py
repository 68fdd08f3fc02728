"""Stacks as AWS makes them: an event per resource, roll-back, updates in place, deletions that can fail.

moto reads templates, resolves what they refer to, and makes the resources. But it raises the first error to
the caller of CreateStack and leaves half a stack behind; an update makes resources anew that did not change,
stops at the first that fails, and forgets the defaults of parameters; a bucket that is not empty stays
without a word; and roles are made without the caller's acknowledgement. `resources` has the kinds of
resources."""
import uuid

from local_aws import ACCOUNT, AwsError


def words_of(error):
    """What an error of moto's says."""
    return getattr(error, 'message', None) or getattr(error, 'description', None) or str(error)


def event(stack, logical_id, made, status, reason=None):
    """An event of a resource, as DescribeStackEvents shows it."""
    from moto.cloudformation.models import Event
    physical = made['resource'].physical_resource_id if 'resource' in made else ''
    if reason:
        reason = (f'Resource handler returned message: "{reason}" (RequestToken: {uuid.uuid4()}, '
                  'HandlerErrorCode: GeneralServiceException)')
    stack.events.append(Event(
        stack.stack_id, stack.name, logical_id, physical, made['kind'], status, reason, None))


class CloudFormation:
    """What replaces moto's ways with a whole stack.

    A resource map of moto's gets `stack`, `made` (logical id -> kind, properties, name, resource), and the
    `previous` of that.
    """

    def install(self):
        """Put these rules in the place of moto's."""
        from moto.cloudformation import models, parsing, responses
        self.parsing = parsing
        parsing.parse_and_create_resource = self._make
        moto_clean, backend = parsing.clean_json, models.CloudFormationBackend

        def clean_json(value, resources):
            if isinstance(value, dict) and 'Fn::GetAZs' in value:      # those the region really has
                from moto.ec2.models import ec2_backends
                region = moto_clean(value['Fn::GetAZs'], resources) or resources['AWS::Region']
                return [zone.name for zone in ec2_backends[ACCOUNT][region].describe_availability_zones()]
            if isinstance(value, list):          # AWS::NoValue is no element
                return [item for item in moto_clean(value, resources) if item is not None]
            return moto_clean(value, resources)
        parsing.clean_json = clean_json
        models.Stack.update = lambda stack, *args, **kwargs: self._update(stack, *args, **kwargs)
        models.Stack.delete = lambda stack: self._delete(stack)
        models.Stack.create_resources = lambda stack: self._create(stack)
        response = responses.CloudFormationResponse
        response._validate_different_update = lambda *_: None
        for name in ('create_stack', 'update_stack'):
            setattr(response, name, self._with_capabilities(models.Stack, getattr(response, name)))
        backend._resolve_update_parameters = staticmethod(self._update_parameters)
        moto_delete = backend.delete_stack

        def delete_stack(this, name_or_stack_id):
            moto_delete(this, name_or_stack_id)
            for stack in list(this.deleted_stacks.values()):
                if stack.status == 'DELETE_FAILED':
                    this.stacks[stack.stack_id] = this.deleted_stacks.pop(stack.stack_id)
        backend.delete_stack = delete_stack

    @staticmethod
    def _with_capabilities(stack, method):
        """A template that makes roles or policies must be acknowledged."""
        def checked(response):
            body = response._get_param('TemplateBody')
            items = stack.parse_template(body)['Resources'].values() if body else []
            given = set(response._get_param('Capabilities') or [])
            if any(item['Type'].startswith('AWS::IAM::') for item in items) and not given & {
                    'CAPABILITY_IAM', 'CAPABILITY_NAMED_IAM'}:
                raise AwsError('InsufficientCapabilitiesException',
                               'Requires capabilities : [CAPABILITY_IAM]')
            return method(response)
        return checked

    @staticmethod
    def _update_parameters(instance, incoming_params):
        """UsePreviousValue also means a default that nobody ever gave."""
        old = instance.resource_map.resolved_parameters
        return {item['ParameterKey']: item['ParameterValue'] if 'ParameterValue' in item else
                old[item['ParameterKey']] for item in incoming_params}

    # ---- one resource

    def _make(self, logical_id, resource_json, resources, account_id, region_name):
        """The resource of that name: kept or changed if the stack has it, else created. With its events."""
        condition = resource_json.get('Condition')
        if condition and not resources.lazy_condition_map[condition]:
            return None
        kind, stack = resource_json['Type'], resources.stack
        found = self.parsing.parse_resource_and_generate_name(logical_id, resource_json, resources)
        if found is None:
            raise AwsError('ValidationError', f'Template format error: Unrecognized resource types: [{kind}]')
        cls, clean, name = found
        made = {'kind': kind, 'properties': clean['Properties'], 'name': name}
        before = resources.previous.get(logical_id)
        if before and before['kind'] == kind and before['properties'] == made['properties']:
            resources.made[logical_id] = before
            return before['resource']
        verb = 'UPDATE' if before else 'CREATE'
        name_property = self.parsing.resource_name_property_from_type(kind) or ''
        if before and (before['kind'], before['name']) != (
                kind, made['properties'].get(name_property, before['name'])):
            before = None                        # a new resource; the old one goes when all is done
        event(stack, logical_id, made, verb + '_IN_PROGRESS')
        try:
            if before:
                made['name'] = before['name']
                made['resource'] = self._change(cls, before, name_property, clean, region_name)
            else:
                made['resource'] = cls.create_from_cloudformation_json(
                    name, clean, account_id, region_name, LogicalId=logical_id, StackId=resources.stack_id,
                    ResourceType=kind)
        except Exception as error:
            event(stack, logical_id, made, verb + '_FAILED', words_of(error))
            stack.failed = f'The following resource(s) failed to {verb.lower()}: [{logical_id}]. '
            raise
        made['resource'].cf_resource_type, made['resource'].logical_resource_id = kind, logical_id
        resources.made[logical_id] = made
        event(stack, logical_id, made, verb + '_COMPLETE')
        return made['resource']

    @staticmethod
    def _change(cls, before, name_property, clean, region_name):
        """Change a resource in place where moto (or `resources`) can; else it stays as it is."""
        if hasattr(cls.update_from_cloudformation_json, '__isabstractmethod__'):
            return before['resource']
        properties = dict(clean['Properties'])
        if name_property:                        # moto takes a missing name for a change of the name
            properties.setdefault(name_property, before['name'])
        return cls.update_from_cloudformation_json(
            before['resource'], before['name'], {**clean, 'Properties': properties}, ACCOUNT, region_name)

    @staticmethod
    def _remove(stack, logical_id, made):
        """Delete a resource; False, with the reason in `made`, if AWS would refuse to."""
        resource, kind = made['resource'], made['kind']
        try:
            if kind == 'AWS::S3::Bucket' and (resource.keys or resource.multiparts):
                raise AwsError('BucketNotEmpty', 'The bucket you tried to delete is not empty')
            if kind == 'AWS::ECR::Repository' and made['properties'].get('EmptyOnDelete') in (True, 'true'):
                resource.images.clear()
            stack.resource_map._delete_resource(resource, {'Type': kind, 'Properties': made['properties']})
        except Exception as error:
            made['reason'] = words_of(error)
            if 'does not exist' not in made['reason'] and 'NotFound' not in type(error).__name__:
                return False
        event(stack, logical_id, made, 'DELETE_COMPLETE')
        return True

    # ---- the whole stack

    def _map(self, stack, template, parameters, previous):
        resources = self.parsing.ResourceMap(
            stack.stack_id, stack.name, parameters, stack.tags, stack.region_name, ACCOUNT, template,
            stack.cross_stack_resources)
        resources.stack, resources.previous, resources.made = stack, previous, {}
        resources.load()
        return resources

    def _apply(self, stack, resources, template):
        """Bring the stack to the template, then remove what it no longer has."""
        stack.failed = None
        resources.create(template)
        outputs = type(stack.output_map)(resources, template, stack.stack_id)
        list(outputs.values())
        stack.resource_map, stack.output_map = resources, outputs
        for name, item in reversed(resources.previous.items()):
            if resources.made.get(name, {}).get('name') != item['name']:
                self._remove(stack, name, item)

    @staticmethod
    def _is(stack, status, reason=None):
        stack.status, stack.status_reason, stack.stack_status_reason = status, reason, reason
        stack._add_stack_event(status, resource_status_reason=reason)

    def _create(self, stack):
        resources = self._map(stack, stack.template_dict, stack.parameters, {})
        stack.resource_map = resources
        try:
            self._apply(stack, resources, stack.template_dict)
        except Exception as error:
            reason = stack.failed or words_of(error)
            self._is(stack, 'ROLLBACK_IN_PROGRESS', reason)
            self._remove_all(stack)
            stack.output_map = type(stack.output_map)(resources, {}, stack.stack_id)
            self._is(stack, 'ROLLBACK_COMPLETE', reason)
        else:
            self._is(stack, 'CREATE_COMPLETE')

    def _update(self, stack, template, role_arn=None, parameters=None, tags=None):
        fresh, parameters = type(stack).parse_template(template), parameters or {}
        old, old_template, old_parameters = stack.resource_map, stack.template_dict, stack.parameters
        resources = self._map(stack, fresh, parameters, old.made)
        if fresh == old_template and resources.resolved_parameters == old.resolved_parameters:
            raise AwsError('ValidationError', 'No updates are to be performed.')
        self._is(stack, 'UPDATE_IN_PROGRESS', 'User Initiated')
        try:
            self._apply(stack, resources, fresh)
        except Exception as error:
            reason = stack.failed or words_of(error)
            self._is(stack, 'UPDATE_ROLLBACK_IN_PROGRESS', reason)
            # What was made so far is removed, what was changed is changed back.
            state = dict(old.made)
            for name, item in resources.made.items():
                if name in state and item['name'] == state[name]['name']:
                    state[name] = item
                else:
                    self._remove(stack, name, item)
            self._apply(stack, self._map(stack, old_template, old_parameters, state), old_template)
            self._is(stack, 'UPDATE_ROLLBACK_COMPLETE', reason)
            return
        stack.template, stack.template_dict, stack.parameters = template, fresh, parameters
        stack.description, stack.role_arn, stack.tags = fresh.get('Description'), role_arn, tags or stack.tags
        self._is(stack, 'UPDATE_COMPLETE')

    def _remove_all(self, stack):
        """Delete all resources that AWS lets go, whatever their order. The names of those that stay."""
        resources, progress = stack.resource_map, True
        made = resources.made
        while made and progress:
            gone = [name for name in list(reversed(made)) if self._remove(stack, name, made[name])]
            progress = bool(gone)
            for name in gone:
                del made[name]
                resources._parsed_resources.pop(name, None)
        # What is gone must not come back when moto looks it up.
        resources._resource_json_map = {
            name: item for name, item in resources._resource_json_map.items() if name in made}
        for name, item in made.items():
            event(stack, name, item, 'DELETE_FAILED', item['reason'])
        return list(made)

    def _delete(self, stack):
        self._is(stack, 'DELETE_IN_PROGRESS', 'User Initiated')
        left = self._remove_all(stack)
        if left:
            self._is(stack, 'DELETE_FAILED',
                     f'The following resource(s) failed to delete: [{", ".join(left)}]. ')
        else:
            self._is(stack, 'DELETE_COMPLETE')
