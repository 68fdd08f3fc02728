"""The computers of a compute environment. moto starts none for jobs; it knows the sizes of all types.

AWS counts `maxvCpus` by the vCPUs of instances, and goes over it by at most one instance (botocore's model of
Batch, ComputeResource.maxvCpus). An instance offers jobs less memory than its name says (Batch User Guide,
"Compute resource memory management"). Which type Batch starts is its own choice; here it is the smallest that
holds the job. An instance goes with its last job. Fargate has none: a job counts as itself.

A job has the GPUs that it asks for to itself (ResourceRequirement.value in the model: physical GPUs, reserved
for the container). An instance has them where its system has NVIDIA's driver (Ec2Configuration.imageType)."""
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

    def __init__(self, kind, vcpus, memory, gpus=0):
        self.id, self.kind, self.vcpus, self.memory = 'i-' + uuid.uuid4().hex[:17], kind, vcpus, memory
        self.cards = [f'GPU-{uuid.uuid4()}' for _ in range(gpus)]
        self.jobs = set()

    def free(self):
        """The ids of the GPUs that no job has."""
        taken = {card for job in self.jobs for card in job.cards}
        return [card for card in self.cards if card not in taken]

    def has_room(self, job):
        """Whether the vCPUs, MiB and GPUs that are free suffice."""
        jobs = [*self.jobs, job]
        return (sum(each.vcpus for each in jobs) <= self.vcpus
                and sum(each.memory for each in jobs) <= self.memory and job.gpus <= len(self.free()))

    def take(self, job):
        """Have a job, for which there is room."""
        job.cards = self.free()[:job.gpus]
        self.jobs.add(job)


def is_fargate(environment):
    """Whether a compute environment of moto has no instances."""
    return 'FARGATE' in environment.compute_resources['type']


@functools.lru_cache(None)
def types_of(wanted):
    """(vCPUs, MiB for jobs, GPUs, name) of all types that these types and families name, smallest first."""
    families = {family for name in wanted for family in BUNDLES.get(name, [name])}
    found = []
    for name, facts in INSTANCE_TYPES.items():
        if families & {name, name.partition('.')[0]} and not name.endswith('.metal'):
            memory = SEEN.get(name) or int(facts['MemoryInfo']['SizeInMiB'] * FRACTION)
            gpus = sum(each['Count'] for each in facts.get('GpuInfo', {}).get('Gpus', ()))
            found.append((facts['VCpuInfo']['DefaultVCpus'], memory, gpus, name))
    return sorted(found)


class Fleet:
    """The instances of one compute environment."""

    def __init__(self, environment):
        self.environment, self.instances = environment, []

    def types(self):
        """Those of types_of(), with the GPUs that Batch sees."""
        resources = self.environment.compute_resources
        has_driver = any('NVIDIA' in each['imageType'] for each in resources.get('ec2Configuration') or ())
        return [(vcpus, memory, gpus * has_driver, name) for vcpus, memory, gpus, name in types_of(
            tuple(resources.get('instanceTypes') or ['optimal']))]

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
            vcpus, memory, gpus, kind = job.vcpus, job.memory, 0, 'fargate'
            full = self.used() + vcpus > most
        else:
            for instance in self.instances:
                if instance.has_room(job):
                    return instance, None
            fitting = next((each for each in self.types() if (
                each[0] >= job.vcpus and each[1] >= job.memory and each[2] >= job.gpus)), None)
            if fitting is None:
                return None, ('MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement '
                              '(vCPU/memory/GPU) is higher than that can be met by the CE(s) attached to the '
                              'job queue.')
            vcpus, memory, gpus, kind = fitting
            full = self.used() >= most
        if full:
            return None, None
        if vcpus > quota_left:
            return None, ('CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - Service cannot fulfill the capacity '
                          f'requested for instance type [{kind}]')
        self.instances.append(Instance(kind, vcpus, memory, gpus))
        return self.instances[-1], None

    def leave(self, job, instance):
        """A job has left its instance, which goes when it was the last."""
        instance.jobs.discard(job)
        if not instance.jobs and instance in self.instances:
            self.instances.remove(instance)


def check_fargate(vcpus, memory, gpus):
    """Words for a pair of vCPUs and MiB, or GPUs, that Fargate does not have; None for what it has."""
    if gpus:
        return 'Fargate resource requirements not valid: GPU is not supported'
    sizes = FARGATE.get(vcpus, ())
    return None if memory in sizes else (
        f'Fargate resource requirements ({vcpus:g} vCPU, {memory} MiB) not valid: choose one of '
        f'{list(sizes) or sorted(FARGATE)}')
