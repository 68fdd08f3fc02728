#!/usr/bin/env python3
"""
The runs of a stack, from what scripts/status.sh has found of them on AWS.

    runs.py NOW STACK START_SECONDS QUEUES OBJECTS JOBS LEASES SEEN

NOW is UTC, as 2026-01-31T23:59:59. A run without a lease counts as living for START_SECONDS. Files, whose
columns tabs separate: QUEUES (URLs), OBJECTS (key, date, bytes), JOBS (id, name, state,
size), LEASES (key, JSON). SEEN is where this program remembers how far each run was at the last look.

Writes a line for each run: its id, living or dead, age, queues, objects, megabytes, jobs, how far it is.
"""
import collections
import datetime
import json
import re
import sys

from timeline import VCPU_HOUR, gpu_hour

RUN_ID = re.compile(r'\d{8}T\d{6}-[0-9a-f]+')


def moment(text, form='%Y-%m-%dT%H:%M:%S'):
    return datetime.datetime.strptime(text, form)


def rows(path):
    """The columns of each line of a file."""
    with open(path) as file:
        return [line.rstrip('\n').split('\t') for line in file]


def holds(lease, start_seconds):
    """Seconds for which a lease says that its run lives."""
    try:
        return 1.5 * json.loads(lease)['seconds']
    except (ValueError, KeyError, TypeError):
        return start_seconds


def duration(seconds):
    hours, minutes = divmod(max(0, int(seconds)) // 60, 60)
    days, hours = divmod(hours, 24)
    return (f'{days} days' if days > 1 else f'{days * 24 + hours} h {minutes} min' if days or hours else
            f'{minutes} min')


def progress(lease, before):
    """
    How far a run is by its lease, and what the next look wants to know of this one: [blocks, when, rate]. The
    rate is that since the last look. ('', before) where the lease does not say.
    """
    try:
        lease = json.loads(lease)
        gpus, gpu = float(lease.get('gpus') or 0), gpu_hour(lease.get('instances') or '')
        lease = {name: float(value) for name, value in lease.items()
                 if name not in ('host', 'instances') and value is not None}
        done, outstanding, began, at = (lease[name] for name in ('done', 'outstanding', 'began', 'now'))
        workers, up, vcpus = (lease[name] for name in ('workers', 'workers_up', 'vcpus'))
    except (ValueError, KeyError, TypeError, AttributeError):
        return '', before
    rate = done / (at - began) if at > began else 0
    if before:
        rate = (done - before[0]) / (at - before[1]) if at > before[1] else before[2]
    text = f'{up:.0f} of {workers:.0f} workers, {done:.0f} blocks done, {outstanding:.0f} to do'
    text += f', {rate:.2g} blocks/s' if rate < 10 else f', {rate:.0f} blocks/s'
    if rate > 0 and outstanding:
        left = outstanding / rate
        text += f', {duration(left)} left' if left >= 60 else f', {left:.0f} s left'
    cost = up * (vcpus * VCPU_HOUR + gpus * (gpu or 0)) * (at - began) / 3600
    without = ' without GPUs' if gpus and gpu is None else ''
    return text + f', about ${cost:.2f}{without} so far', [done, at, rate]


def main(now, stack, start_seconds, queues, objects, jobs, leases, seen):
    start_seconds = float(start_seconds)
    try:
        with open(seen) as file:
            looks = json.load(file)
    except (OSError, ValueError):
        looks = {}
    leases = {key: '\t'.join(rest) for key, *rest in rows(leases)}
    objects = rows(objects)
    now = moment(now)
    runs = collections.defaultdict(lambda: {'alive': None, 'queues': 0, 'objects': 0, 'bytes': 0, 'jobs': 0})
    for queue, in rows(queues):
        runs[queue.rsplit('/', 1)[1].split('_')[1]]['queues'] += 1
    for key, *rest in objects:
        parts = key.split('/')
        if len(parts) > 2 and RUN_ID.fullmatch(parts[1]):
            run = runs[parts[1]]
            run['objects'] += 1
            run['bytes'] += int(rest[1])
            if parts[2:] == ['lease']:
                age = (now - moment(rest[0][:19])).total_seconds()
                run['alive'] = age < holds(leases.get(key), start_seconds)
    for _, name, state, _ in rows(jobs):
        owner, _, run = name.partition('_')
        if owner == stack and RUN_ID.fullmatch(run) and state not in ('SUCCEEDED', 'FAILED'):
            runs[run]['jobs'] += 1
    for name, run in sorted(runs.items()):
        age, far = (now - moment(name[:15], '%Y%m%dT%H%M%S')).total_seconds(), ''
        living = age < start_seconds if run['alive'] is None else run['alive']
        if living:
            far, look = progress(leases.get(f'runs/{name}/lease', ''), looks.get(name))
            looks[name] = look
        print(name, 'living' if living else 'dead', duration(age), run['queues'], run['objects'],
              f"{run['bytes'] / 1e6:.1f}", run['jobs'], far, sep='\t')
    with open(seen, 'w') as file:
        json.dump(looks, file)


if __name__ == '__main__':
    main(*sys.argv[1:])
