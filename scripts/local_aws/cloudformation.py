"""Stacks as AWS makes them: an event per resource, roll-back, updates in place, deletions that can fail.

moto reads templates, resolves what they refer to, and makes the resources. But it raises the first error to
the caller of CreateStack and leaves half a stack behind; an update makes resources anew that did not change,
stops at the first that fails, and forgets the defaults of parameters; a bucket that is not empty stays
without a word; and roles are made without the caller's acknowledgement. Here a stack is always brought from
what it has to a template: the new one, the old one (roll-back) or one without resources (deletion).

A stack of moto's gets `made`, its resources by logical id and name, and `failed`, what was wrong with the
first that failed. A resource map gets `stack`, and `used`: those of `made` that its template has."""
import threading
import uuid

from moto.cloudformation import models, parsing
from moto.cloudformation.responses import CloudFormationResponse
from moto.ec2.models import ec2_backends

from local_aws import ACCOUNT, AwsError

CHANGING = threading.Lock()          # moto's dictionaries, by one stack at a time
ROLLBACK = {'CREATE': 'ROLLBACK', 'UPDATE': 'UPDATE_ROLLBACK'}


def words_of(error):
    """What an error of moto's says."""
    return getattr(error, 'message', None) or getattr(error, 'description', None) or str(error)


def check_capabilities(request):
    """A template that makes roles or policies must be acknowledged."""
    form = request.form
    if request.operation in ('CreateStack', 'UpdateStack') and 'Capabilities.member.1' not in form and (
            'AWS::IAM::' in form.get('TemplateBody', '')):
        raise AwsError('InsufficientCapabilitiesException', 'Requires capabilities : [CAPABILITY_IAM]')


class Made:
    """A resource of a stack, and the properties it was made with."""

    def __init__(self, logical_id, kind, name, properties):
        self.logical_id, self.kind, self.name, self.properties = logical_id, kind, name, properties
        self.resource = None

    def event(self, stack, status, reason=None):
        """An event, as DescribeStackEvents shows it."""
        physical = getattr(self.resource, 'physical_resource_id', '')        # a rule of moto's has none
        if reason:
            reason = (f'Resource handler returned message: "{reason}" (RequestToken: {uuid.uuid4()}, '
                      'HandlerErrorCode: GeneralServiceException)')
        stack.events.append(models.Event(
            stack.stack_id, stack.name, self.logical_id, physical, self.kind, status, reason, None))


def must_be_replaced(before, now):
    """Whether a compute environment cannot be changed in place (CloudFormation's schema of it)."""
    if before.kind != 'AWS::Batch::ComputeEnvironment' or (
            now.properties.get('ReplaceComputeEnvironment') is False):
        return False
    old, new = (dict(each.properties['ComputeResources']) for each in (before, now))
    for name in 'MaxvCpus', 'MinvCpus', 'DesiredvCpus', 'UpdateToLatestImageVersion':
        old.pop(name, None), new.pop(name, None)
    return old != new


def make(logical_id, resource_json, resources, account_id, region_name):
    """The resource of that name: kept or changed if the stack has it, else created. With its events."""
    condition = resource_json.get('Condition')
    if condition and not resources.lazy_condition_map[condition]:
        return None
    kind, stack = resource_json['Type'], resources.stack
    found = parsing.parse_resource_and_generate_name(logical_id, resource_json, resources)
    if found is None:
        raise AwsError('ValidationError', f'Template format error: Unrecognized resource types: [{kind}]')
    cls, clean, name = found
    made = Made(logical_id, kind, name, clean['Properties'])
    before = next((each for each in stack.made.values() if each.logical_id == logical_id), None)
    verb = 'UPDATE' if before else 'CREATE'
    name_property = parsing.resource_name_property_from_type(kind) or ''
    if before and not must_be_replaced(before, made) and (
            before.kind, before.name) == (kind, made.properties.get(name_property, before.name)):
        made.name, made.resource = before.name, before.resource
    if made.resource is None or before.properties != made.properties:
        made.event(stack, verb + '_IN_PROGRESS')
        try:
            if made.resource:
                # moto takes a missing name for a change of the name. What it cannot change stays as it is.
                given = {**clean, 'Properties': {name_property: made.name, **made.properties}}
                made.resource = cls.update_from_cloudformation_json(
                    made.resource, made.name, given, account_id, region_name) or made.resource
            else:                                # in the place of another, that one goes when all is done
                made.resource = cls.create_from_cloudformation_json(
                    name, clean, account_id, region_name, LogicalId=logical_id, StackId=resources.stack_id,
                    ResourceType=kind)
        except Exception as error:
            made.event(stack, verb + '_FAILED', words_of(error))
            stack.failed = f'The following resource(s) failed to {verb.lower()}: [{logical_id}]. '
            raise
        made.resource.cf_resource_type, made.resource.logical_resource_id = kind, logical_id
        made.event(stack, verb + '_COMPLETE')
    stack.made[logical_id, made.name] = made
    resources.used.add((logical_id, made.name))
    return made.resource


def remove(stack, made):
    """Delete a resource; AWS's reason where it refuses to."""
    try:
        if made.kind == 'AWS::S3::Bucket' and (made.resource.keys or made.resource.multiparts):
            raise AwsError('BucketNotEmpty', 'The bucket you tried to delete is not empty')
        stack.resource_map._delete_resource(
            made.resource, {'Type': made.kind, 'Properties': made.properties})
    except Exception as error:
        if 'does not exist' not in words_of(error) and 'NotFound' not in type(error).__name__:
            return words_of(error)
    made.event(stack, 'DELETE_COMPLETE')
    del stack.made[made.logical_id, made.name]
    return None


def map_of(stack, template, parameters):
    """moto's map of what a template has."""
    resources = parsing.ResourceMap(
        stack.stack_id, stack.name, parameters, stack.tags, stack.region_name, ACCOUNT, template,
        stack.cross_stack_resources)
    resources.stack, resources.used = stack, set()
    resources.load()
    return resources


def nothing(stack):
    """The template and parameters of a stack without resources."""
    return {**stack.template_dict, 'Resources': {}, 'Outputs': {}}, stack.parameters


def bring(stack, template, parameters):
    """Bring the stack to the template; the logical ids of resources that should go and cannot."""
    with CHANGING:
        stack.failed = None
        resources = map_of(stack, template, parameters)
        resources.create(template)
        outputs = parsing.OutputMap(resources, template, stack.stack_id)
        list(outputs.values())
        stack.resource_map, stack.output_map = resources, outputs
        stack.template_dict, stack.description = template, template.get('Description')
        stack.parameters = resources.resolved_parameters        # a default can be a previous value too
        doomed = [made for key, made in stack.made.items() if key not in resources.used][::-1]
        while True:                                  # whatever their order, as long as one goes
            reasons = {made: remove(stack, made) for made in doomed}
            left = [made for made in doomed if reasons[made]]
            if len(left) in (0, len(doomed)):
                break
            doomed = left
        for made in left:
            made.event(stack, 'DELETE_FAILED', reasons[made])
            resources._resource_json_map[made.logical_id] = {'Type': made.kind}
            resources._parsed_resources[made.logical_id] = made.resource
        return [made.logical_id for made in left]


def enter(stack, status, reason=None):
    """Let the stack be in a state."""
    stack.status, stack.stack_status_reason = status, reason
    stack._add_stack_event(status, resource_status_reason=reason)


def attempt(stack, verb, wanted, back):
    """Bring the stack to the template and parameters that are wanted; where that fails, back."""
    try:
        bring(stack, *wanted)
        enter(stack, verb + '_COMPLETE')
    except Exception as error:
        reason = stack.failed or words_of(error)
        enter(stack, ROLLBACK[verb] + '_IN_PROGRESS', reason)
        bring(stack, *back)
        enter(stack, ROLLBACK[verb] + '_COMPLETE', reason)


def create(stack):
    """CreateStack"""
    stack.made = {}
    attempt(stack, 'CREATE', (stack.template_dict, stack.parameters), nothing(stack))


def update(stack, template, role_arn=None, parameters=None, tags=None):
    """UpdateStack"""
    wanted, back = (stack.parse_template(template), parameters or {}), (stack.template_dict, stack.parameters)
    if (wanted[0], map_of(stack, *wanted).resolved_parameters) == back:
        raise AwsError('ValidationError', 'No updates are to be performed.')
    enter(stack, 'UPDATE_IN_PROGRESS', 'User Initiated')
    attempt(stack, 'UPDATE', wanted, back)
    if stack.status == 'UPDATE_COMPLETE':
        stack.template = template


def delete(stack):
    """DeleteStack"""
    enter(stack, 'DELETE_IN_PROGRESS', 'User Initiated')
    left = ', '.join(bring(stack, *nothing(stack)))
    enter(stack, *(('DELETE_FAILED', f'The following resource(s) failed to delete: [{left}]. ') if left else
                   ('DELETE_COMPLETE',)))


def install():
    """Put these in the place of moto's."""
    moto_clean, moto_delete = parsing.clean_json, models.CloudFormationBackend.delete_stack

    def clean_json(value, resources):
        if isinstance(value, dict) and 'Fn::GetAZs' in value:          # those the region really has
            region = moto_clean(value['Fn::GetAZs'], resources) or resources['AWS::Region']
            return [zone.name for zone in ec2_backends[ACCOUNT][region].describe_availability_zones()]
        if isinstance(value, list):              # AWS::NoValue is no element
            return [item for item in moto_clean(value, resources) if item is not None]
        return moto_clean(value, resources)

    def delete_stack(backend, name_or_stack_id):
        moto_delete(backend, name_or_stack_id)
        for stack in list(backend.deleted_stacks.values()):
            if stack.status == 'DELETE_FAILED':
                backend.stacks[stack.stack_id] = backend.deleted_stacks.pop(stack.stack_id)

    def create_stack(response):
        answer, backend = moto_create(response), response.cloudformation_backend
        if response._get_param('OnFailure') == 'DELETE':
            stack = backend.get_stack(response._get_param('StackName'))
            if stack.status == 'ROLLBACK_COMPLETE':
                backend.delete_stack(stack.stack_id)
        return answer
    moto_create, CloudFormationResponse.create_stack = CloudFormationResponse.create_stack, create_stack
    parsing.clean_json, parsing.parse_and_create_resource = clean_json, make
    models.Stack.create_resources, models.Stack.update, models.Stack.delete = create, update, delete
    models.CloudFormationBackend.delete_stack = delete_stack
