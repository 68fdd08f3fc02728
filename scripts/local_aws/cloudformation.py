"""Stacks as AWS makes them: an event per resource, roll-back, updates in place, deletions that can fail.

moto raises the first error to the caller of CreateStack and leaves half a stack behind; it makes resources anew that
did not change; it forgets parameter defaults in an update; and it deletes nothing of a bucket that is not empty
without saying so. moto still reads templates, resolves what they refer to, and makes the resources.
"""
import re
import uuid

from local_aws import ACCOUNT, AwsError


class CloudFormation:
    """What replaces moto's ways with a whole stack; `resources` has the kinds of resources."""

    def install(self):
        """Put these rules in the place of moto's."""
        from moto.cloudformation import models, parsing, responses
        self.parsing = parsing
        parsing.parse_and_create_resource = self._make
        # Fn::GetAZs of the stack's own region, with that region's real zones.
        moto_clean = parsing.clean_json

        def clean_json(value, resources):
            if isinstance(value, dict) and 'Fn::GetAZs' in value:
                from moto.ec2.models import ec2_backends
                region = moto_clean(value['Fn::GetAZs'], resources) or resources['AWS::Region']
                return [zone.name for zone in ec2_backends[ACCOUNT][region].describe_availability_zones()]
            if isinstance(value, list):          # AWS::NoValue is no element
                return [item for item in moto_clean(value, resources) if item is not None]
            return moto_clean(value, resources)
        parsing.clean_json = clean_json
        models.Stack.create_resources = lambda stack: self._create(stack)
        models.Stack.update = lambda stack, *args, **kwargs: self._update(stack, *args, **kwargs)
        models.Stack.delete = lambda stack: self._delete(stack)
        response = responses.CloudFormationResponse
        response._validate_different_update = lambda *_: None
        for name in ('create_stack', 'update_stack'):
            setattr(response, name, self._with_capabilities(models.Stack, getattr(response, name)))

        class StackResource(responses.StackResourceDTO):
            """With the status of the resource itself."""

            def __init__(this, stack, made):
                super().__init__(stack, made)
                this.resource_status = getattr(made, 'cf_status', stack.status)
        responses.StackResourceDTO = StackResource
        backend = models.CloudFormationBackend
        backend._resolve_update_parameters = staticmethod(self._update_parameters)
        moto_delete, moto_create = backend.delete_stack, backend.create_stack

        def delete_stack(this, name_or_stack_id):
            moto_delete(this, name_or_stack_id)
            for stack in list(this.deleted_stacks.values()):
                if stack.status == 'DELETE_FAILED':
                    this.stacks[stack.stack_id] = this.deleted_stacks.pop(stack.stack_id)

        def create_stack(this, name, template, parameters, *args, **kwargs):
            self._check(models.Stack.parse_template(template), parameters)
            return moto_create(this, name, template, parameters, *args, **kwargs)
        backend.delete_stack, backend.create_stack = delete_stack, create_stack

    def _check(self, template, parameters):
        """Refuse a template or parameters as AWS does before it makes anything."""
        def refuse(message):
            raise AwsError('ValidationError', message)
        known = self.parsing.get_model_map()
        unknown = {item['Type'] for item in template['Resources'].values()} - set(known)
        unknown = sorted(name for name in unknown if not name.startswith('Custom::'))
        if unknown:
            refuse(f'Template format error: Unrecognized resource types: [{", ".join(unknown)}]')
        slots = template.get('Parameters') or {}
        foreign = sorted(set(parameters) - set(slots))
        if foreign:
            refuse(f'Parameters: [{", ".join(foreign)}] do not exist in the template')
        missing = [name for name, slot in slots.items() if name not in parameters and 'Default' not in slot]
        if missing:
            refuse(f'Parameters: [{", ".join(missing)}] must have values')
        for name, value in parameters.items():
            slot, text = slots[name], str(value)
            words = text.split(',') if 'List' in slot['Type'] else [text]
            allowed = [str(item) for item in slot.get('AllowedValues', [])]
            faulty = None
            if allowed and not set(words) <= set(allowed):
                faulty = f"Parameter '{name}' must be one of AllowedValues"
            elif slot['Type'] == 'Number' and not re.fullmatch(r'-?\d+(\.\d+)?', text):
                faulty = f"Parameter '{name}' must be a number"
            elif 'AllowedPattern' in slot and not all(re.fullmatch(slot['AllowedPattern'], word) for word in words):
                faulty = f"Parameter '{name}' must match pattern {slot['AllowedPattern']}"
            elif 'MinValue' in slot and float(text) < float(slot['MinValue']):
                faulty = f"Parameter '{name}' must be a number not less than {slot['MinValue']}"
            elif 'MaxValue' in slot and float(text) > float(slot['MaxValue']):
                faulty = f"Parameter '{name}' must be a number not greater than {slot['MaxValue']}"
            if faulty and 'ConstraintDescription' in slot:
                faulty = f'Parameter {name} failed to satisfy constraint: {slot["ConstraintDescription"]}'
            if faulty:
                refuse(faulty)

    def _with_capabilities(self, stack, method):
        def checked(response):
            body = response._get_param('TemplateBody')
            if not body:
                name = response._get_param('StackName')
                body = response.cloudformation_backend.get_stack(name).template
            self._check_capabilities(stack.parse_template(body), response._get_param('Capabilities') or [])
            return method(response)
        return checked

    @staticmethod
    def _check_capabilities(template, given):
        """A template that makes roles or policies must be acknowledged, more so if it names them."""
        names = {'RoleName', 'ManagedPolicyName', 'InstanceProfileName', 'UserName', 'GroupName'}
        iam = [item for item in template['Resources'].values() if item['Type'].startswith('AWS::IAM::')]
        is_named = any(names & set(item.get('Properties', {})) for item in iam)
        accepted = {'CAPABILITY_NAMED_IAM'} if is_named else {'CAPABILITY_NAMED_IAM', 'CAPABILITY_IAM'}
        if iam and not accepted & set(given):
            needed = 'CAPABILITY_NAMED_IAM' if is_named else 'CAPABILITY_IAM'
            raise AwsError('InsufficientCapabilitiesException', f'Requires capabilities : [{needed}]')

    # ---- one resource

    def _make(self, logical_id, resource_json, resources, account_id, region_name):
        """The resource of that name: kept or changed if the stack has it, else created. With its events."""
        condition = resource_json.get('Condition')
        if condition and not resources.lazy_condition_map[condition]:
            return None
        kind = resource_json['Type']
        cls, clean, name = self.parsing.parse_resource_and_generate_name(logical_id, resource_json, resources)
        explicit = clean['Properties'].get(self.parsing.resource_name_property_from_type(kind) or '')
        state, before = resources.made, resources.previous.get(logical_id)
        if before and before['kind'] == kind and before['properties'] == clean['Properties']:
            state[logical_id] = before
            return before['resource']
        verb = 'UPDATE' if before else 'CREATE'
        if before and (before['kind'] != kind or explicit and explicit != before['name']):
            before = None                        # another kind or name: a new resource; the old one goes when all is done
        elif before:
            name = before['name']
        stack = resources.stack
        self._event(stack, logical_id, '', kind, f'{verb}_IN_PROGRESS')
        try:
            if before:
                resource = self._change(cls, before, name, kind, clean, region_name)
            else:
                resource = cls.create_from_cloudformation_json(
                    name, clean, account_id, region_name, LogicalId=logical_id, StackId=resources.stack_id,
                    ResourceType=kind)
        except Exception as error:
            reason = getattr(error, 'message', None) or getattr(error, 'description', None) or str(error)
            self._event(stack, logical_id, '', kind, f'{verb}_FAILED',
                        f'Resource handler returned message: "{reason}" (RequestToken: {uuid.uuid4()}, '
                        'HandlerErrorCode: InvalidRequest)')
            stack.failed = logical_id
            raise
        resource.cf_resource_type, resource.logical_resource_id = kind, logical_id
        resource.cf_status = f'{verb}_COMPLETE'
        state[logical_id] = {'kind': kind, 'properties': clean['Properties'], 'name': name, 'resource': resource}
        self._event(stack, logical_id, resource.physical_resource_id, kind, f'{verb}_COMPLETE')
        return resource

    def _change(self, cls, before, name, kind, clean, region_name):
        """Change a resource in place where moto (or this file) can; else it stays as it is."""
        if hasattr(cls.update_from_cloudformation_json, '__isabstractmethod__'):
            return before['resource']
        properties = dict(clean['Properties'])
        name_property = self.parsing.resource_name_property_from_type(kind)
        if name_property:                        # moto takes a missing name for a change of the name
            properties.setdefault(name_property, name)
        return cls.update_from_cloudformation_json(
            before['resource'], name, {**clean, 'Properties': properties}, ACCOUNT, region_name)

    def _remove(self, stack, logical_id, made):
        """Delete a resource; False, and an event that says why, if AWS would refuse to."""
        resource, kind = made['resource'], made['kind']
        physical = resource.physical_resource_id
        try:
            if kind == 'AWS::S3::Bucket' and (resource.keys or resource.multiparts):
                raise AwsError('BucketNotEmpty', 'The bucket you tried to delete is not empty')
            if kind == 'AWS::ECR::Repository' and made['properties'].get('EmptyOnDelete') in (True, 'true'):
                resource.images.clear()
            stack.resource_map._delete_resource(resource, {'Type': kind, 'Properties': made['properties']})
        except Exception as error:
            made['reason'] = getattr(error, 'message', None) or str(error)
            if 'does not exist' not in made['reason'] and 'NotFound' not in type(error).__name__:
                return False
        self._event(stack, logical_id, physical, kind, 'DELETE_COMPLETE')
        return True

    @staticmethod
    def _event(stack, logical_id, physical_id, kind, status, reason=None):
        from moto.cloudformation.models import Event
        stack.events.append(Event(stack.stack_id, stack.name, logical_id, physical_id, kind, status, reason, None))

    # ---- the whole stack

    def _create(self, stack):
        resources = stack.resource_map
        resources.stack, resources.previous, resources.made = stack, {}, {}
        stack.status, stack.failed = 'CREATE_IN_PROGRESS', None
        try:
            resources.create(stack.template_dict)
            list(stack.output_map.values())
        except Exception as error:
            reason = (f'The following resource(s) failed to create: [{stack.failed}]. Rollback requested by user.'
                      if stack.failed else str(error))
            stack._add_stack_event('ROLLBACK_IN_PROGRESS', resource_status_reason=reason)
            self._remove_all(stack, resources.made)
            stack.output_map = type(stack.output_map)(resources, {}, stack.stack_id)
            stack.status, stack.status_reason = 'ROLLBACK_COMPLETE', reason
            stack.stack_status_reason = reason
            stack._add_stack_event('ROLLBACK_COMPLETE')
            return
        stack.mark_creation_complete()

    def _remove_all(self, stack, made):
        """Delete all resources that AWS lets go, whatever their order. The names of those that stay."""
        progress = True
        while made and progress:
            progress = False
            for name in list(reversed(made)):
                if self._remove(stack, name, made[name]):
                    del made[name]
                    stack.resource_map._parsed_resources.pop(name, None)
                    progress = True
        # What is gone must not come back when moto looks it up.
        templates = stack.resource_map._resource_json_map
        stack.resource_map._resource_json_map = {name: templates[name] for name in templates if name in made}
        for name, item in made.items():
            item['resource'].cf_status = 'DELETE_FAILED'
            self._event(stack, name, item['resource'].physical_resource_id, item['kind'], 'DELETE_FAILED',
                        f'Resource handler returned message: "{item["reason"]}" (RequestToken: {uuid.uuid4()}, '
                        'HandlerErrorCode: GeneralServiceException)')
        return list(made)

    def _delete(self, stack):
        if stack.status == 'DELETE_COMPLETE':
            return
        stack._add_stack_event('DELETE_IN_PROGRESS', resource_status_reason='User Initiated')
        made = stack.resource_map.made
        templates = stack.template_dict.get('Resources', {})
        kept = {name: made.pop(name) for name in list(made)
                if templates.get(name, {}).get('DeletionPolicy') == 'Retain'}
        for name, item in kept.items():
            self._event(stack, name, item['resource'].physical_resource_id, item['kind'], 'DELETE_SKIPPED')
        left = self._remove_all(stack, made)
        if left:
            reason = f'The following resource(s) failed to delete: [{", ".join(left)}]. '
            stack.status = 'DELETE_FAILED'
            stack.stack_status_reason = reason
            stack._add_stack_event('DELETE_FAILED', resource_status_reason=reason)
        else:
            stack.status = 'DELETE_COMPLETE'
            stack._add_stack_event('DELETE_COMPLETE')

    @staticmethod
    def _update_parameters(instance, incoming_params):
        """UsePreviousValue also means a default that nobody ever gave."""
        answer = {}
        defaults = {name: item.get('Default') for name, item in (getattr(instance, 'template_dict', None) or {}).get(
            'Parameters', {}).items()}
        for item in incoming_params:
            name = item['ParameterKey']
            if str(item.get('UsePreviousValue', '')).lower() == 'true':
                answer[name] = instance.parameters.get(name, defaults.get(name))
            else:
                answer[name] = item['ParameterValue']
        return answer

    def _update(self, stack, template, role_arn=None, parameters=None, tags=None):
        fresh = type(stack).parse_template(template)
        self._check(fresh, parameters or {})
        old = (stack.template, stack.template_dict, stack.parameters, stack.resource_map)
        new_map = self._map(stack, fresh, parameters or {}, old[3].made)
        if fresh == old[1] and new_map.resolved_parameters == old[3].resolved_parameters and (
                tags is None or tags == stack.tags):
            raise AwsError('ValidationError', 'No updates are to be performed.')
        stack._add_stack_event('UPDATE_IN_PROGRESS', resource_status_reason='User Initiated')
        stack.failed = None
        try:
            self._apply(stack, new_map, fresh)
        except Exception as error:
            reason = (f'The following resource(s) failed to update: [{stack.failed}]. ' if stack.failed else str(error))
            stack._add_stack_event('UPDATE_ROLLBACK_IN_PROGRESS', resource_status_reason=reason)
            # What was made so far is removed, what was changed is changed back.
            state = dict(old[3].made)
            for name, item in new_map.made.items():
                if name in state and item['name'] == state[name]['name']:
                    state[name] = item
                else:
                    self._remove(stack, name, item)
            back = self._map(stack, old[1], old[2], state)
            self._apply(stack, back, old[1])
            stack.status = 'UPDATE_ROLLBACK_COMPLETE'
            stack.stack_status_reason = reason
            stack._add_stack_event('UPDATE_ROLLBACK_COMPLETE')
            return
        stack.template, stack.template_dict, stack.parameters = template, fresh, parameters or {}
        stack.description, stack.role_arn = fresh.get('Description'), role_arn
        stack.tags = stack.tags if tags is None else tags
        stack.status = 'UPDATE_COMPLETE'
        stack._add_stack_event('UPDATE_COMPLETE')

    def _map(self, stack, template, parameters, previous):
        resources = self.parsing.ResourceMap(
            stack.stack_id, stack.name, parameters, stack.tags, stack.region_name, ACCOUNT, template,
            stack.cross_stack_resources)
        resources.stack, resources.previous, resources.made = stack, previous, {}
        resources.load()
        return resources

    def _apply(self, stack, resources, template):
        """Bring the stack to the template, then remove what it no longer has."""
        resources.create(template)
        outputs = type(stack.output_map)(resources, template, stack.stack_id)
        list(outputs.values())
        stack.resource_map, stack.output_map = resources, outputs
        for name, item in reversed(resources.previous.items()):
            if resources.made.get(name, {}).get('name') != item['name']:
                self._remove(stack, name, item)
