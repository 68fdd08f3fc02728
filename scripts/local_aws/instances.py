"""The computers of a compute environment. moto starts none for jobs; it knows the sizes of all types.

AWS counts `maxvCpus` by the vCPUs of instances, and goes over it by at most one instance (botocore's model of
Batch, ComputeResource.maxvCpus). An instance offers jobs less memory than its name says (Batch User Guide,
"Compute resource memory management"). Which type Batch starts is its own choice; here it is the smallest that
holds the job. An instance goes with its last job. Fargate has none: a job counts as itself."""
import functools
import uuid

from moto.ec2.models.instance_types import INSTANCE_TYPES

# MiB that jobs see where somebody has looked; of others the same part as on the poorest of these.
SEEN = {'m5.large': 7763, 'm5.xlarge': 15575, 'c5.xlarge': 7623, 'r5.xlarge': 31703}
FRACTION = 7623 / 8192
# ComputeResource.instanceTypes in the model.
BUNDLES = {'optimal': ('m6i', 'c6i', 'r6i', 'c7i'), 'default_x86_64': ('m6i', 'c6i', 'r6i', 'c7i'),
           'default_arm64': ('m6g', 'c6g', 'r6g', 'c7g')}
# vCPUs of a Fargate job -> the MiB it may have (ResourceRequirement.value in the model).
GIB = 1024
FARGATE = {0.25: (512, 1024, 2048), 0.5: range(1 * GIB, 4 * GIB + 1, GIB),
           1: range(2 * GIB, 8 * GIB + 1, GIB), 2: range(4 * GIB, 16 * GIB + 1, GIB),
           4: range(8 * GIB, 30 * GIB + 1, GIB), 8: range(16 * GIB, 60 * GIB + 1, 4 * GIB),
           16: range(32 * GIB, 120 * GIB + 1, 8 * GIB),
           32: (60 * GIB, 120 * GIB, 244 * GIB)}


class Instance:
    """A running computer, and the jobs on it."""

    def __init__(self, kind, vcpus, memory):
        self.id, self.kind, self.vcpus, self.memory = 'i-' + uuid.uuid4().hex[:17], kind, vcpus, memory
        self.jobs = set()

    def has_room(self, job):
        """Whether the vCPUs and MiB that are free suffice."""
        jobs = [*self.jobs, job]
        return (sum(each.vcpus for each in jobs) <= self.vcpus
                and sum(each.memory for each in jobs) <= self.memory)


def is_fargate(environment):
    """Whether a compute environment of moto has no instances."""
    return 'FARGATE' in environment.compute_resources['type']


@functools.lru_cache(None)
def types_of(wanted):
    """(vCPUs, MiB for jobs, name) of all types that these types and families name, the smallest first."""
    families = {family for name in wanted for family in BUNDLES.get(name, [name])}
    found = []
    for name, facts in INSTANCE_TYPES.items():
        if families & {name, name.partition('.')[0]} and not name.endswith('.metal'):
            memory = SEEN.get(name) or int(facts['MemoryInfo']['SizeInMiB'] * FRACTION)
            found.append((facts['VCpuInfo']['DefaultVCpus'], memory, name))
    return sorted(found)


class Fleet:
    """The instances of one compute environment."""

    def __init__(self, environment):
        self.environment, self.instances = environment, []

    def used(self):
        """vCPUs that count towards maxvCpus and the account's quota."""
        return sum(instance.vcpus for instance in self.instances)

    def place(self, job, quota_left):
        """(the instance for a job, started if need be; else Batch's words for why there is none, if any)"""
        most = float(self.environment.compute_resources.get('maxvCpus') or 0)
        if job.vcpus > most:
            return None, ('MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE - CE(s) associated with the job '
                          'queue cannot meet the CPU requirement of the job.')
        if is_fargate(self.environment):
            kind, vcpus, memory = 'fargate', job.vcpus, job.memory
            full = self.used() + vcpus > most
        else:
            for instance in self.instances:
                if instance.has_room(job):
                    return instance, None
            types = types_of(tuple(self.environment.compute_resources.get('instanceTypes') or ['optimal']))
            fitting = next((each for each in types if each[0] >= job.vcpus and each[1] >= job.memory), None)
            if fitting is None:
                return None, ('MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement '
                              '(vCPU/memory/GPU) is higher than that can be met by the CE(s) attached to the '
                              'job queue.')
            vcpus, memory, kind = fitting
            full = self.used() >= most
        if full:
            return None, None
        if vcpus > quota_left:
            return None, ('CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity '
                          f'requested for instance type [{kind}]')
        self.instances.append(Instance(kind, vcpus, memory))
        return self.instances[-1], None

    def leave(self, job, instance):
        """A job has left its instance, which goes when it was the last."""
        instance.jobs.discard(job)
        if not instance.jobs and instance in self.instances:
            self.instances.remove(instance)


def check_fargate(vcpus, memory):
    """Words for a pair of vCPUs and MiB that Fargate does not have; None for one it has."""
    sizes = FARGATE.get(vcpus, ())
    return None if memory in sizes else (
        f'Fargate resource requirements ({vcpus:g} vCPU, {memory} MiB) not valid: choose one of '
        f'{list(sizes) or sorted(FARGATE)}')
