"""
Measures rios_awsbatch on a local AWS. scripts/dev/bench.sh runs it, and says what it shows.

Every case is a process of its own, so that the memory of one is not that of another: this script starts
itself with --case for each, with the module of the commit that is measured on its path and an image with its
worker, and prints what they found as tables. Cases use what is public only, so that they can measure other
commits as well.

A case waits until all its workers are up before its clock starts, because AWS takes minutes to start an
instance and that is no property of a run; the column "whole" is from before the start to after the end. AWS
requests are those of the whole run.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import functools
import heapq
import itertools
import json
import multiprocessing
import operator
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

import botocore.session
import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCENE = ROOT / 'examples' / 'data' / 'landsat7_olinda.tif'

# List prices in US dollars, without the free tier. SQS: standard queue, March 2026. S3: Standard, September
# 2026, ap-southeast-2 (in us-east-1 they are 10 % lower). S3 DELETE, Batch and CloudFormation are free.
PRICE_SQS_REQUEST = 0.40 / 1e6
PRICE_S3_PUT = 0.0055 / 1000        # and LIST
PRICE_S3_GET = 0.0044 / 10000       # and HEAD
FREE = ('s3:Delete', 'batch:', 'cloudformation:', 'ecr:', 'logs:', 'sts:')
SQS_CHUNK = 64 * 1024               # SQS counts a request once for every so many bytes of its messages

MB = 2**20
CASE_SECONDS = 900                  # a case that takes longer has failed
WINDOW = 256                        # RIOS's default; 4 bands of uint16 in are 525 kB, 2 bands out 262 kB


class WrongResult(Exception):
    """What no speed is worth."""


def expect(right, what):
    if not right:
        raise WrongResult('{} is wrong'.format(what))


# ---------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------

def compute(block, seconds):
    """
    What workers do: take so long without needing a processor, so that many fit on a small machine.

    Args:
        block (int or numpy.ndarray): a number, an array of (bands, rows, columns), or one of floats.
    """
    time.sleep(seconds)
    if isinstance(block, int):
        return block * block
    return (block[:2] if block.ndim == 3 else block) + 1


def blocks_of(kind, count):
    """Arguments for :func:`compute`: 'small' numbers, 'landsat' or 'noise' windows, or '4MB' arrays."""
    if kind == 'small':
        yield from range(count)
    elif kind.endswith('MB'):
        template = numpy.random.default_rng(1).random(int(kind[:-2]) * MB // 8)
        yield from (template + number for number in range(count))
    else:
        image = pixels(kind)
        per_row = image.shape[2] // WINDOW
        for number in range(count):
            row, column = (WINDOW * place for place in divmod(number % per_row**2, per_row))
            yield numpy.ascontiguousarray(image[:, row:row + WINDOW, column:column + WINDOW])


@functools.lru_cache
def pixels(kind, side=7):
    """Four bands (uint16) of side * side windows: a Landsat scene, resampled as products are, or noise."""
    from osgeo import gdal
    gdal.UseExceptions()
    size = side * WINDOW
    if kind == 'noise':
        return numpy.random.default_rng(1).integers(0, 65536, (4, size, size), dtype=numpy.uint16)
    scene = gdal.Warp('', str(SCENE), format='MEM', width=800, height=800, resampleAlg='cubic',
                      outputType=gdal.GDT_Float32).ReadAsArray()[:4]
    scene = (scene.clip(0, 255) * 37.7).astype(numpy.uint16)
    return numpy.pad(scene, ((0, 0), (0, size - 800), (0, size - 800)), mode='reflect')


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------

def control(name, tell=None):
    """Ask the local AWS something, or tell it something: see its class Control."""
    data = None if tell is None else json.dumps(tell).encode()
    with urllib.request.urlopen('{}/_local/{}'.format(os.environ['AWS_ENDPOINT_URL'], name), data,
                                timeout=60) as answer:
        return json.loads(answer.read() or b'null')


def peak_mb(pid='self'):
    """The most memory that a process has had at any time (MB)."""
    status = pathlib.Path('/proc/{}/status'.format(pid)).read_text()
    return int(re.search(r'VmHWM:\s+(\d+)', status)[1]) / 1024


def cpu_seconds(pid):
    fields = stat_of(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def stat_of(pid):
    return pathlib.Path('/proc/{}/stat'.format(pid)).read_text().rpartition(')')[2].split()


def processes(session):
    """The processes of a job, which has a session of its own."""
    found = []
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):      # it has ended meanwhile
            if int(stat_of(folder.name)[3]) == session:
                found.append(folder.name)
    return found


class Wire:
    """
    Counts what the main script sends and receives: bytes, and the chunks that SQS adds to the requests. The
    workers' requests are taken to have the same messages, each for itself.
    """
    def __init__(self):
        self.bytes, self.chunks = collections.Counter(), 0
        create = botocore.session.Session.create_client

        def hooked(session, service, *args, **kwargs):
            client = create(session, service, *args, **kwargs)
            for event, count in (
                    ('provide-client-params.sqs.SendMessage', self._sent_messages),
                    ('provide-client-params.sqs.SendMessageBatch', self._sent_messages),
                    ('after-call.sqs.ReceiveMessage', self._got_messages),
                    ('before-send.s3.PutObject', self._put), ('after-call.s3.GetObject', self._got)):
                client.meta.events.register(event, count)
            return client

        botocore.session.Session.create_client = hooked

    def _sent_messages(self, params, **_):
        self._messages('out', [(entry['MessageBody'], entry.get('MessageAttributes'))
                               for entry in params.get('Entries', [params])])

    def _got_messages(self, parsed, **_):
        self._messages('in', [(message['Body'], message.get('MessageAttributes'))
                              for message in parsed.get('Messages', ())])

    def _messages(self, way, messages):
        sizes = [len(body.encode()) + sum(
            len(name) + len(value['DataType']) + len(value.get('BinaryValue', value.get('StringValue', '')))
            for name, value in (attributes or {}).items()) for body, attributes in messages]
        self.bytes[way] += sum(sizes)
        self.chunks += sum(max(0, size - 1) // SQS_CHUNK for size in [sum(sizes), *sizes])

    def _put(self, request, **_):
        self.bytes['out'] += int(request.headers.get('Content-Length', 0))

    def _got(self, parsed, **_):
        self.bytes['in'] += parsed.get('ContentLength', 0)


class Meter:
    """
    Measures a run: from start(), when all its workers are up, to stop(), when it is through. `found` (dict)
    is complete after finish(), when the workers are gone.
    """
    def __init__(self, blocks, limit=None):
        self.blocks, self.wire = blocks, Wire()
        self.found, self.before = {'blocks': blocks, 'limit': limit}, {}
        control('requests/reset', {})
        self.made = time.perf_counter()

    def start(self):
        self.pids = [job['pid'] for job in control('jobs')['jobs']]
        self.before.update(self._cpu(), started=time.perf_counter())

    def stop(self):
        if 'seconds' not in self.found:
            self.found['seconds'] = time.perf_counter() - self.before['started']
            self.found['cpu_ms'] = {who: 1000 * (now - self.before[who]) / self.blocks
                                    for who, now in self._cpu().items()}
            self.found['worker_mb'] = max(
                (sum(map(peak_mb, processes(pid))) for pid in self.pids), default=0)

    def finish(self):
        self.found['whole'] = time.perf_counter() - self.made
        self.found['kb'] = {way: count / 1000 / self.blocks for way, count in self.wire.bytes.items()}
        requests = collections.Counter()
        for operations in control('requests').values():
            requests.update(operations)
        self.found['requests'] = {name: count / self.blocks for name, count in requests.items()}
        self.found['dollars'] = 1e6 / self.blocks * (
            dollars(requests) + self.wire.chunks * PRICE_SQS_REQUEST)

    def _cpu(self):
        workers = sum(cpu_seconds(each) for pid in self.pids for each in processes(pid))
        return {'main': time.process_time(), 'workers': workers}


@contextlib.contextmanager
def metered(blocks, limit=None):
    """
    Measure the run of the executor that is made inside the block, until it is shut down. Gives what was
    found (dict), complete after the block.
    """
    from rios_awsbatch import AWSBatchExecutor as cls
    init, shutdown, meter = cls.__init__, cls.shutdown, Meter(blocks, limit)

    def measured_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.wait_for_workers(self.stats()['workers'])
        meter.start()

    def measured_shutdown(self, *args, **kwargs):
        meter.stop()
        shutdown(self, *args, **kwargs)

    cls.__init__, cls.shutdown = measured_init, measured_shutdown
    try:
        yield meter.found
    finally:
        cls.__init__, cls.shutdown = init, shutdown
    meter.finish()


def dollars(requests):
    """The list price of AWS requests (service:operation to count)."""
    total = 0
    for name, count in requests.items():
        if name.startswith('sqs:'):
            total += count * PRICE_SQS_REQUEST
        elif name.startswith(('s3:Put', 's3:List')):
            total += count * PRICE_S3_PUT
        elif name.startswith(('s3:Get', 's3:Head')):
            total += count * PRICE_S3_GET
        elif not name.startswith(FREE):
            raise WrongResult('the price of ' + name)
    return total


# ---------------------------------------------------------------------------------------------
# Cases. Each is a process; what it returns is printed, and written with -o.
# ---------------------------------------------------------------------------------------------

def check_all(executor, kind, blocks, seconds, **options):
    results = executor.map(compute, blocks_of(kind, blocks), itertools.repeat(seconds), **options)
    for block, result in itertools.zip_longest(blocks_of(kind, blocks), results):
        expect(numpy.array_equal(result, compute(block, 0)), 'a block')


def process_pool(kind, blocks, seconds, workers):
    """The standard library's executor on this machine: no AWS, no network, nothing that can fail."""
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context('spawn')) as executor:
        list(executor.map(compute, range(4 * workers), itertools.repeat(0.1)))     # all processes are up
        started = time.perf_counter()
        check_all(executor, kind, blocks, seconds)
        took = time.perf_counter() - started
    return {'blocks': blocks, 'limit': blocks * seconds / workers, 'seconds': took}


def alone(kind, blocks, seconds, workers, buffersize=None):
    """The executor, without RIOS."""
    from rios_awsbatch import AWSBatchExecutor
    next(blocks_of(kind, 1))                # what takes long to make is made before the clock starts
    with metered(blocks, blocks * seconds / workers) as found, AWSBatchExecutor(workers) as executor:
        check_all(executor, kind, blocks, seconds, buffersize=buffersize)
    return found


def varying(blocks, shortest, longest, workers):
    """Blocks of different lengths; the limit is a list schedule: whoever is free takes the next at once."""
    from rios_awsbatch import AWSBatchExecutor
    lengths = [random.Random(n).uniform(shortest, longest) for n in range(blocks)]
    free = [0.0] * workers
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    with metered(blocks, max(free)) as found, AWSBatchExecutor(workers) as executor:
        results = list(executor.map(compute, range(blocks), lengths))
        expect(results == [number * number for number in range(blocks)], 'a block')
    return found


class JobInfo:
    """Stands for a RIOS 1.4 JobInfo: parameters in, outputs back."""
    def __init__(self, block, seconds):
        self.block, self.seconds = block, seconds

    def prepareForPickling(self):
        return self

    def getFunctionParams(self):
        return [self, {}]

    @staticmethod
    def getFunctionResult(params):
        return params[1]


def rounds_function(info, outputs):
    outputs['result'] = compute(info.block, info.seconds)


def rounds(kind, blocks, seconds, workers):
    """The job manager as RIOS 1.4 uses it: rounds of blocks, the first of each computed by this process."""
    from rios_awsbatch import AWSBatchJobManager
    arguments = list(blocks_of(kind, blocks))
    with metered(blocks, blocks * seconds / workers) as found:
        manager = AWSBatchJobManager(workers)
        for some in (arguments[first:first + workers] for first in range(0, blocks, workers)):
            outputs = manager.runSubJobs(rounds_function, [JobInfo(block, seconds) for block in some])
            for block, output in zip(some, outputs):
                expect(numpy.array_equal(output['result'], compute(block, 0)), 'a block')
        manager.finalise()
    return found


def rios_function(info, inputs, outputs, otherargs):
    time.sleep(otherargs.seconds)
    outputs.result = inputs.image[:2] + 1


@contextlib.contextmanager
def applied(function, image, workers, version, folder=None, style=None, **otherargs):
    """
    Real RIOS: gives what applies `function` to windows of RIOS's default size of an image (bands, rows,
    columns), which lies in `folder`, and checks what was written afterwards. `style` is for RIOS 2.
    """
    from osgeo import gdal, gdal_array
    gdal.UseExceptions()
    from rios import applier
    infiles, outfiles, others = (
        applier.FilenameAssociations(), applier.FilenameAssociations(), applier.OtherInputs())
    vars(others).update(otherargs)
    controls = applier.ApplierControls()
    controls.setOutputDriverName('GTiff')
    controls.setCreationOptions(['TILED=YES'])
    controls.setCalcStats(False)
    if version == 1:
        controls.setNumThreads(workers)
        controls.setJobManagerType('AWSBatch')
    else:
        controls.setConcurrencyStyle(applier.ConcurrencyStyle(
            numComputeWorkers=workers, computeWorkerKind='CW_AWSBATCH', **style or {}))
    with tempfile.TemporaryDirectory(dir=folder) as folder:
        infiles.image, outfiles.result = os.path.join(folder, 'in.tif'), os.path.join(folder, 'out.tif')
        dataset = gdal_array.OpenArray(image)
        dataset.SetGeoTransform((0, 10, 0, 0, 0, -10))
        gdal.GetDriverByName('GTiff').CreateCopy(infiles.image, dataset, options=['TILED=YES'])
        yield functools.partial(applier.apply, function, infiles, outfiles, others, controls=controls)
        expect(numpy.array_equal(gdal.Open(outfiles.result).ReadAsArray(), image[:2] + 1), 'what RIOS wrote')


def rios(kind, side, seconds, workers, version):
    """Read and written by the main script."""
    import rios_awsbatch
    blocks = side * side
    with applied(rios_function, pixels(kind, side), workers, version, seconds=seconds) as apply:
        with metered(blocks, blocks * seconds / workers) as found, rios_awsbatch.AWSBatchExecutor(workers):
            apply()
    return found


def started_at(seconds):
    started = time.time()
    time.sleep(seconds)
    return started


def starting(workers):
    """When workers come up, one after the other, and when blocks start."""
    import boto3
    from rios_awsbatch import AWSBatchExecutor
    with AWSBatchExecutor(workers) as executor:
        futures = [executor.submit(started_at, 0.05) for _ in range(workers)]
        executor.wait_for_workers(1)
        first_up = time.time()
        first_block = min(future.result() for future in futures)
        executor.wait_for_workers(workers)
        last_up = time.time()
        batch = boto3.client('batch', region_name=os.environ['AWS_DEFAULT_REGION'])
        ids = [job['jobId'] for job in control('jobs')['jobs']]
        job_started = min(job['startedAt'] for job in batch.describe_jobs(jobs=ids)['jobs']) / 1000
    return {'up_after_job': first_up - job_started, 'block_after_up': first_block - first_up,
            'last_up_after_block': last_up - first_block}


def many_small(blocks, workers):
    """All submitted at once, and the futures dropped as they complete."""
    from rios_awsbatch import AWSBatchExecutor
    with metered(blocks) as found, AWSBatchExecutor(workers) as executor:
        done = concurrent.futures.as_completed([executor.submit(compute, n, 0) for n in range(blocks)])
        expect(sum(future.result() for future in done) == sum(n * n for n in range(blocks)), 'the sum')
    return found


def submitting(calls, size):
    """Calls of so many bytes are submitted, and all but the first given up; how long the process takes."""
    from rios_awsbatch import AWSBatchExecutor
    with AWSBatchExecutor(1) as executor:
        expect(executor.submit(len, bytes(size)).result() == size, 'the first call')
        started, before = time.perf_counter(), peak_mb()
        futures = [executor.submit(len, bytes(size)) for _ in range(calls)]
        submitted = time.perf_counter()
        executor.shutdown(cancel_futures=True)
    ended = time.perf_counter()
    expect(all(future.done() for future in futures), 'the end')
    return {'submit': submitted - started, 'shutdown': ended - submitted,
            'kb_each': 1000 * (peak_mb() - before) / calls}


def many_large(blocks, megabytes, workers, ahead):
    """
    Large blocks. With `ahead`, no more than that many are unfinished or not yet taken (map with buffersize);
    without, all are submitted, and then taken as they complete while their futures are dropped.
    """
    from rios_awsbatch import AWSBatchExecutor
    template = numpy.arange(megabytes * MB // 8, dtype=float)
    inputs = (template + number for number in range(blocks))
    with metered(blocks) as found, AWSBatchExecutor(workers) as executor:
        if ahead:
            results = executor.map(compute, inputs, itertools.repeat(0), buffersize=ahead)
        else:
            done = concurrent.futures.as_completed(executor.submit(compute, array, 0) for array in inputs)
            results = map(operator.methodcaller('result'), done)
        seen = set()
        for result in results:
            seen.add(int(result[0]) - 1)
            expect(numpy.array_equal(result, template + result[0]), 'a block')
            del result
        expect(seen == set(range(blocks)), 'the set of blocks')
    return found


CASES = {case.__name__: case for case in (
    process_pool, alone, varying, rounds, rios, starting, many_small, submitting, many_large)}


# ---------------------------------------------------------------------------------------------
# All cases, and their tables
# ---------------------------------------------------------------------------------------------

COLUMNS = (
    ('seconds', '{:.2f}', lambda row: row['seconds']),
    ('limit', '{:.2f}', lambda row: row['limit']),
    ('of it', '{:.0%}', lambda row: row['limit'] / row['seconds']),
    ('whole', '{:.2f}', lambda row: row['whole']),
    ('requests', '{:.2f}', lambda row: sum(row['requests'].values())),
    ('$/million', '{:.2f}', lambda row: row['dollars']),
    ('kB out', '{:.1f}', lambda row: row['kb']['out']),
    ('kB in', '{:.1f}', lambda row: row['kb']['in']),
    ('ms main', '{:.2f}', lambda row: row['cpu_ms']['main']),
    ('worker', '{:.2f}', lambda row: row['cpu_ms']['workers']),
    ('MB main', '{:.0f}', lambda row: row['main_mb']),
    ('worker', '{:.0f}', lambda row: row['worker_mb']))


ENTRY_POINT = '''
import os, runpy, sys
sys.path[:0] = {0!r}
os.environ['PYTHONPATH'] = os.pathsep.join({0!r} + [os.environ['PYTHONPATH']])
runpy.run_path({1!r}, run_name='__main__')
'''


class Subject:
    """
    What is measured, a commit of this project or something else: a stack of its template, and an image that
    runs its worker with these variables.
    """
    def __init__(self, name, root, folder, template=None, worker=None, variables=()):
        self.name, self.root, self.folder = name, root, folder
        self.worker, self.variables = worker or root / 'worker.py', variables
        self.env = dict(os.environ, RIOS_AWSBATCH_STACK='RIOS-' + name)
        self.pushed, self.images = None, 0
        client = botocore.session.get_session().create_client(
            'cloudformation', os.environ['RIOS_AWSBATCH_REGION'])
        template = (template or root / 'batch.yaml').read_text()
        client.create_stack(        # quicker than with scripts/create.sh
            StackName='RIOS-' + name, TemplateBody=template, Parameters=[
                {'ParameterKey': key, 'ParameterValue': value} for key, value in (
                    ('ServiceName', name), ('MaxJobs', '64'), ('MaxVCPUS', '64'), ('ComputeVCPUS', '17'))
                if '\n  {}:\n'.format(key) in template],      # ComputeVCPUS: until 2.0
            Capabilities=['CAPABILITY_IAM'])

    def push(self, path):
        """Have jobs run this worker with these folders on their path."""
        if path != self.pushed:
            self.images += 1
            entry = self.folder / 'worker-{}-{}.py'.format(self.name, self.images)
            entry.write_text(ENTRY_POINT.format(path, str(self.worker)))
            subprocess.run([sys.executable, ROOT / 'scripts/local_aws', 'push', 'BatchECR', entry,
                            *self.variables], env=self.env, check=True)
            self.pushed = path

    def run(self, case, options, rios=None):
        """Run a case in a process of its own; what it found."""
        path = [str(self.root), *([rios] if rios else [])]
        self.push(path)
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, os.path.abspath(__file__), '--case', case.__name__, json.dumps(options)],
            env=dict(self.env, PYTHONPATH=os.pathsep.join(path)), stdout=subprocess.PIPE, text=True,
            timeout=CASE_SECONDS)
        if done.returncode:
            sys.exit('bench: {} {} of {} has failed'.format(case.__name__, options, self.name))
        return dict(json.loads(done.stdout.strip().splitlines()[-1]), case=case.__name__, options=options,
                    commit=self.name, rios=rios, process=time.perf_counter() - started)


class Bench:
    """Runs cases with each of the commits in turn, prints tables, and keeps what was found."""
    def __init__(self, subjects, repeat):
        self.subjects, self.repeat, self.found = subjects, repeat, []

    def table(self, title):
        print('\n' + title)
        self._line('case', 'commit', [name for name, _, _ in COLUMNS])

    def _line(self, label, commit, cells):
        commit = commit.ljust(9) if len(self.subjects) > 1 else ''
        print((label.ljust(38) + commit + ''.join(cell.rjust(10) for cell in cells)).rstrip(), flush=True)

    def row(self, label, case, latency=20, rios=None, **options):
        """Measure a case, and print its line for each commit."""
        control('latency', {'ms': latency})
        best = {}
        for _, subject in itertools.product(range(self.repeat), self.subjects):
            found = subject.run(case, options, rios)
            self.found.append(found)
            if subject.name not in best or found['seconds'] < best[subject.name]['seconds']:
                best[subject.name] = found
            if case is process_pool:
                break
        for name, row in best.items():
            self._line(label, name, [cell(row, form, value) for _, form, value in COLUMNS])

    def single(self, case, **options):
        """Measure a case that is no line of a table, of this commit alone."""
        control('latency', {'ms': 0})
        self.found.append(self.subjects[0].run(case, options))
        return self.found[-1]


def cell(row, form, value):
    try:
        return form.format(value(row))
    except (KeyError, TypeError):       # this case has no such figure
        return ''


def of_rios(bench, kinds, **options):
    """Windows of RIOS's default size through each RIOS that there is."""
    folders = list(filter(None, os.environ.get('RIOS_SRC', '').split(os.pathsep)))
    for folder in folders:
        version = 2 if os.path.exists(os.path.join(folder, 'rios', 'computemanager.py')) else 1
        for kind in kinds:
            bench.row('{}, {}'.format(os.path.basename(folder), kind), rios, rios=folder, kind=kind, side=7,
                      version=version, **options)
    if not folders:
        bench.row('RIOS 1.4 rounds, landsat', rounds, kind='landsat', blocks=49, **options)


def speed(bench, quick):
    bench.table('Blocks of 0.1 s, 20 ms for each AWS request; limit: blocks x seconds / workers; requests, '
                'kB and ms of CPU per block')
    kinds = ('landsat',) if quick else ('landsat', 'noise')
    for kind in kinds:
        bench.row('4 workers, 525 kB / 262 kB, ' + kind, alone, kind=kind, blocks=49, seconds=0.1,
                  workers=4)
    if quick and not os.environ.get('RIOS_SRC'):
        return
    of_rios(bench, kinds, seconds=0.1, workers=4)
    if quick:
        return
    bench.row('4 workers, small', alone, kind='small', blocks=120, seconds=0.1, workers=4)
    bench.row('8 workers, small', alone, kind='small', blocks=400, seconds=0.1, workers=8)
    bench.row('8 processes here, small', process_pool, kind='small', blocks=200, seconds=0.1, workers=8)
    bench.row('8 workers, small, 0.5 to 3 s', varying, blocks=32, shortest=0.5, longest=3, workers=8)
    of_4_mb = dict(kind='4MB', blocks=40, seconds=0.1, workers=4)
    bench.row('4 workers, 4 MB in and out', alone, buffersize=16, **of_4_mb)
    bench.row('4 processes here, 4 MB in and out', process_pool, **of_4_mb)


def growth(bench, quick):
    bench.table('Growth: blocks of 10 ms, map(buffersize=100), no latency')
    workers = 2 if quick else 4
    for blocks in (250,) if quick else (100, 1000, 10000):
        bench.row('{} workers, {} blocks'.format(workers, blocks), alone, 0, kind='small', blocks=blocks,
                  seconds=0.01, workers=workers, buffersize=100)
    found = bench.single(starting, workers=workers)
    print('\nThe first of {} workers is up {:.2f} s after its job starts; the first block starts {:+.2f} s '
          'after that, {:.2f} s before the last worker is up'.format(
              workers, found['up_after_job'], found['block_after_up'], found['last_up_after_block']))


def scale(bench):
    bench.table('Growth with workers: blocks of 1 s, 20 for each, no latency')
    for workers in 4, 16, 64:
        bench.row('{} workers'.format(workers), alone, 0, kind='small', blocks=20 * workers, seconds=1,
                  workers=workers)
    print('\nCalls of 2.45 kB that are submitted at once, and given up')
    for calls in 100000, 1000000:
        found = bench.single(submitting, calls=calls, size=2450)
        print('{:,} calls: submitted in {submit:.1f} s, shutdown(cancel_futures=True) in {shutdown:.1f} s, '
              'the process in {process:.1f} s; {kb_each:.1f} kB each'.format(calls, **found), flush=True)
    bench.table('Large runs, 4 workers, no latency; nothing lost')
    bench.row('100,000 small calls', many_small, 0, blocks=100000, workers=4)
    bench.row('200 of 30 MB, 8 at a time', many_large, 0, blocks=200, megabytes=30, workers=4, ahead=8)
    bench.row('200 of 30 MB, all at once', many_large, 0, blocks=200, megabytes=30, workers=4, ahead=None)


def main():
    parser = argparse.ArgumentParser(prog='bench.sh', description='Measures rios_awsbatch on a local AWS.')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--scale', action='store_true')
    parser.add_argument('--against', metavar='FOLDER', type=pathlib.Path)
    parser.add_argument('--repeat', metavar='N', type=int, default=1)
    parser.add_argument('-o', metavar='FILE', type=argparse.FileType('w'))
    parser.add_argument('--case', nargs=2, metavar=('NAME', 'OPTIONS'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        found = CASES[args.case[0]](**json.loads(args.case[1]))
        return print(json.dumps(dict(found, main_mb=peak_mb())))
    with tempfile.TemporaryDirectory() as folder:
        subjects = [Subject('this', ROOT, pathlib.Path(folder))]
        if args.against:
            subjects.append(Subject('against', args.against, pathlib.Path(folder)))
        bench = Bench(subjects, args.repeat)
        if args.scale:
            scale(bench)
        else:
            speed(bench, args.quick)
            growth(bench, args.quick)
    if args.o:
        json.dump(bench.found, args.o, indent=1)


if __name__ == '__main__':
    main()
