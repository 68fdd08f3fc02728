"""
Measures rios_awsbatch on a local AWS. scripts/bench.sh runs it, and says what it shows.

Every case is a process of its own, so that the memory of one is not that of another: this script starts itself with
--case for each, sets the latency of the local AWS before, and prints what they found as tables.

A case waits until all its workers are up before its clock starts, because AWS takes minutes to start an instance
and that is no property of a run. AWS requests are those of the whole run, its start and its end included.
"""
import argparse
import collections
import concurrent.futures
import contextlib
import heapq
import itertools
import json
import multiprocessing
import operator
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request

import numpy

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import rios_awsbatch  # noqa: E402

# List prices in US dollars, without the free tier. SQS: standard queue, March 2026, us-east-1. S3: Standard,
# September 2026, ap-southeast-2 (in us-east-1 they are 10 % lower). S3 DELETE, Batch and CloudFormation are free.
PRICE_SQS_REQUEST = 0.40 / 1e6
PRICE_S3_PUT = 0.0055 / 1000        # and LIST
PRICE_S3_GET = 0.0044 / 10000       # and HEAD
FREE = ('s3:Delete', 'batch:', 'cloudformation:', 'logs:', 'sts:')
SQS_CHUNK = 64 * 1024               # a request counts once for every so many bytes of messages

MB = 2**20
CASE_SECONDS = 900                  # a case that takes longer has failed


# ---------------------------------------------------------------------------------------------
# Work for the workers
# ---------------------------------------------------------------------------------------------

def sleep_block(number, seconds):
    """A block that takes so long and needs no processor: many fit on a small machine."""
    time.sleep(seconds)
    return number * number


def array_block(array, seconds):
    """A block of pixels in, a block of pixels out."""
    time.sleep(seconds)
    return array + 1


def double(number):
    return 2 * number


def started_at(seconds):
    started = time.time()
    time.sleep(seconds)
    return started


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------

class WrongResult(Exception):
    """What no speed is worth."""


def expect(found, wanted, what):
    if found != wanted:
        raise WrongResult('{}: {!r:.200} instead of {!r:.200}'.format(what, found, wanted))


def control(name, tell=None):
    """Ask the local AWS something, or tell it something: see local_aws/control.py."""
    data = None if tell is None else json.dumps(tell).encode()
    with urllib.request.urlopen('{}/_local/{}'.format(os.environ['AWS_ENDPOINT_URL'], name), data, timeout=60) as answer:
        return json.loads(answer.read() or b'null')


def peak_mb(pid='self'):
    """The most memory that a process has had at any time (MB)."""
    with open('/proc/{}/status'.format(pid)) as status:
        return int(re.search(r'VmHWM:\s+(\d+)', status.read())[1]) / 1024


def cpu_seconds(pid):
    with open('/proc/{}/stat'.format(pid)) as stat:
        fields = stat.read().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class Wire:
    """Counts the bytes of objects and messages that the main script sends and receives."""
    def __init__(self, channel):
        self.bytes = collections.Counter()
        self.extra_chunks = 0       # of SQS requests with more than SQS_CHUNK bytes
        self.lock = threading.Lock()
        for client, event, count in (
                (channel.s3, 'before-send.s3.PutObject', self._sent), (channel.s3, 'after-call.s3.GetObject', self._got),
                (channel.sqs, 'before-send.sqs.SendMessageBatch', self._sent_messages),
                (channel.sqs, 'after-call.sqs.ReceiveMessage', self._got_messages)):
            client.meta.events.register(event, count)

    def _add(self, kind, count):
        with self.lock:
            self.bytes[kind] += count
            if kind.startswith('messages'):
                self.extra_chunks += max(0, count - 1) // SQS_CHUNK

    def _sent(self, request, **_):
        self._add('objects out', int(request.headers.get('Content-Length', 0)))

    def _got(self, parsed, **_):
        self._add('objects in', parsed.get('ContentLength', 0))

    def _sent_messages(self, request, **_):
        self._add('messages out', len(request.body))

    def _got_messages(self, parsed, **_):
        self._add('messages in', sum(len(message['Body']) for message in parsed.get('Messages', ())))


class Meter:
    """What a run of an executor takes, from when all its workers are up to when its last result is there."""
    def __init__(self):
        self.found = {}
        control('requests/reset', {})

    def begin(self, executor):
        executor.wait_for_workers(executor._max_workers)
        self.wire = Wire(executor._channel)
        self.pids = [job['pid'] for job in control('jobs')['jobs']]
        self.before = self._cpu()
        self.started = time.perf_counter()

    def end(self):
        """Only the first call counts."""
        if 'seconds' in self.found:
            return
        self.found['seconds'] = time.perf_counter() - self.started
        after = self._cpu()
        self.found['cpu'] = {who: after[who] - self.before[who] for who in after}
        self.found['worker_mb'] = max(map(peak_mb, self.pids))
        self.found['wire'] = dict(self.wire.bytes)

    def _cpu(self):
        return {'main': time.process_time(), 'workers': sum(map(cpu_seconds, self.pids)),
                'local AWS': control('server')['cpu']}

    def close(self, blocks):
        """After the run, when everything is counted."""
        counts = control('requests')
        requests = collections.Counter()
        for operations in counts.values():
            requests.update(operations)
        self.found['requests'] = counts
        self.found['requests_per_block'] = sum(requests.values()) / blocks
        self.found['dollars_per_million'] = (dollars(requests) +
                                             # The workers receive what the main script sends, and the other way round.
                                             2 * self.wire.extra_chunks * PRICE_SQS_REQUEST) / blocks * 1e6


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
            raise WrongResult('no price for ' + name)
    return total


@contextlib.contextmanager
def metered(blocks):
    """
    Measure the run of whatever makes an executor inside the block, as RIOS does. Gives a dict of what was found, which
    is complete after the block.
    """
    cls, meter = rios_awsbatch.AWSBatchExecutor, Meter()
    init, shutdown = cls.__init__, cls.shutdown

    def measured_init(self, *args, **kwargs):
        init(self, *args, **kwargs)
        meter.begin(self)

    def measured_shutdown(self, *args, **kwargs):
        meter.end()
        shutdown(self, *args, **kwargs)

    cls.__init__, cls.shutdown = measured_init, measured_shutdown
    try:
        yield meter.found
    finally:
        cls.__init__, cls.shutdown = init, shutdown
    meter.close(blocks)
    meter.found['blocks'] = blocks


def with_limit(found, blocks, seconds, workers):
    found.update(blocks=blocks, limit=blocks * seconds / workers)
    return found


# ---------------------------------------------------------------------------------------------
# Cases. Each is a process; what it returns is printed, and written with -o.
# ---------------------------------------------------------------------------------------------

def serial(blocks, seconds):
    started = time.perf_counter()
    for number in range(blocks):
        expect(sleep_block(number, seconds), number * number, 'block')
    return with_limit({'seconds': time.perf_counter() - started}, blocks, seconds, 1)


def process_pool(blocks, seconds, workers, megabytes=0):
    """The standard library's executor on this machine: no AWS, no network, nothing that can fail."""
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context('spawn')) as executor:
        list(executor.map(sleep_block, range(4 * workers), itertools.repeat(0.1)))     # all processes are up
        started = time.perf_counter()
        check_all(executor, blocks, seconds, megabytes)
        return with_limit({'seconds': time.perf_counter() - started}, blocks, seconds, workers)


def awsbatch(blocks, seconds, workers, megabytes=0, buffersize=None):
    with metered(blocks) as found, rios_awsbatch.AWSBatchExecutor(workers) as executor:
        check_all(executor, blocks, seconds, megabytes, **{'buffersize': buffersize} if buffersize else {})
    return with_limit(found, blocks, seconds, workers)


def check_all(executor, blocks, seconds, megabytes, **options):
    if not megabytes:
        results = executor.map(sleep_block, range(blocks), itertools.repeat(seconds), **options)
        expect(list(results), [number * number for number in range(blocks)], 'blocks')
        return
    random_array = numpy.random.default_rng(1).random(megabytes * MB // 8)
    inputs = (random_array + number for number in range(blocks))
    for number, result in enumerate(executor.map(array_block, inputs, itertools.repeat(seconds), **options)):
        if not numpy.array_equal(result, random_array + number + 1):
            raise WrongResult('block {} has wrong pixels'.format(number))


def varying(blocks, shortest, longest, workers):
    """Blocks of different lengths; the limit is a list schedule, where whoever is free takes the next block at once."""
    lengths = [random.Random(n).uniform(shortest, longest) for n in range(blocks)]
    free = [0.0] * workers
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    with metered(blocks) as found, rios_awsbatch.AWSBatchExecutor(workers) as executor:
        results = executor.map(sleep_block, range(blocks), lengths)
        expect(list(results), [number * number for number in range(blocks)], 'blocks')
    return dict(found, limit=max(free))


class JobInfo:
    """Stands for a RIOS 1.4 JobInfo: parameters in, outputs back."""
    def __init__(self, number, seconds):
        self.number, self.seconds = number, seconds

    def prepareForPickling(self):
        return self

    def getFunctionParams(self):
        return [self, {}]

    @staticmethod
    def getFunctionResult(params):
        return params[1]


def rios1_function(info, outputs):
    outputs['result'] = sleep_block(info.number, info.seconds)


def rios1_rounds(blocks, seconds, threads):
    """The job manager as RIOS 1.4 uses it: rounds of `threads` blocks, the first of each computed in the main script."""
    with metered(blocks) as found:
        manager = rios_awsbatch.AWSBatchJobManager(threads)
        for first in range(0, blocks, threads):
            numbers = range(first, min(blocks, first + threads))
            outputs = manager.runSubJobs(rios1_function, [JobInfo(number, seconds) for number in numbers])
            expect([output['result'] for output in outputs], [number * number for number in numbers], 'round')
        manager.finalise()
    return with_limit(found, blocks, seconds, threads)


def rios_function(info, inputs, outputs, otherargs):
    time.sleep(otherargs.seconds)
    outputs.result = inputs.image + 1


def rios(side, seconds, workers, version):
    """Real RIOS: side * side blocks of 64 by 64 pixels."""
    from osgeo import gdal
    from rios import applier
    blocks, size = side * side, side * 64
    pixels = (numpy.arange(size * size, dtype=numpy.uint32) % 60000).reshape(size, size).astype(numpy.uint16)
    infiles, outfiles, otherargs = applier.FilenameAssociations(), applier.FilenameAssociations(), applier.OtherInputs()
    controls = applier.ApplierControls()
    controls.setWindowXsize(64)
    controls.setWindowYsize(64)
    controls.setOutputDriverName('GTiff')
    controls.setCreationOptions(['TILED=YES', 'BLOCKXSIZE=64', 'BLOCKYSIZE=64'])
    controls.setCalcStats(False)
    if version == 1:
        controls.setNumThreads(workers)
        controls.setJobManagerType('AWSBatch')
    else:
        controls.setConcurrencyStyle(applier.ConcurrencyStyle(numComputeWorkers=workers, computeWorkerKind='CW_AWSBATCH'))
    otherargs.seconds = seconds
    with tempfile.TemporaryDirectory() as folder:
        infiles.image, outfiles.result = os.path.join(folder, 'in.tif'), os.path.join(folder, 'out.tif')
        dataset = gdal.GetDriverByName('GTiff').Create(infiles.image, size, size, 1, gdal.GDT_UInt16)
        dataset.SetGeoTransform((0, 10, 0, 0, 0, -10))
        dataset.WriteArray(pixels)
        del dataset
        with metered(blocks) as found:
            applier.apply(rios_function, infiles, outfiles, otherargs, controls=controls)
        result = gdal.Open(outfiles.result).ReadAsArray()
    if not numpy.array_equal(result, pixels + 1):
        raise WrongResult('RIOS wrote wrong pixels')
    return with_limit(found, blocks, seconds, workers)


class Backlog(rios_awsbatch.AWSBatchExecutor):
    """Lets results pile up before it collects any."""
    def __init__(self, *args):
        self.gate = threading.Event()
        super().__init__(*args)

    def _collect_loop(self):
        self.gate.wait()
        super()._collect_loop()

    def pile(self):
        found = self._channel.sqs.get_queue_attributes(QueueUrl=self._channel.out_queue, AttributeNames=[
            'ApproximateNumberOfMessages'])
        return int(found['Attributes']['ApproximateNumberOfMessages'])


def collecting(results, workers):
    """How many results a second the main script collects when the workers are never slower than it is."""
    with Backlog(workers) as executor:
        futures = [executor.submit(double, number) for number in range(results)]
        while executor.pile() < results + workers:      # each worker says hello
            time.sleep(0.1)
        before, started = (time.process_time(), control('server')['cpu']), time.perf_counter()
        executor.gate.set()
        concurrent.futures.wait(futures)
        found = {'blocks': results, 'seconds': time.perf_counter() - started, 'main_ms': time.process_time() - before[0],
                 'local_ms': control('server')['cpu'] - before[1]}
        expect([future.result() for future in futures], [2 * number for number in range(results)], 'results')
    for name in ('main_ms', 'local_ms'):
        found[name] *= 1000 / results
    return found


def first_block(workers):
    """When blocks start, while the workers come up one after the other."""
    hellos = []

    class Greeted(rios_awsbatch.AWSBatchExecutor):
        def _worker_up(self, *args):
            super()._worker_up(*args)
            hellos.append(time.time())

    with Greeted(workers) as executor:
        futures = [executor.submit(started_at, 0.05) for _ in range(workers)]
        first = min(future.result() for future in futures)
        executor.wait_for_workers(workers)
    return {'workers': workers, 'first_up_to_first_block': first - min(hellos),
            'first_block_to_last_up': max(hellos) - first}


def worker_start():
    """From the start of the job to the worker's first message, and what it imports meanwhile."""
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        executor.wait_for_workers(1)
        up = time.time()
        job = executor._batch.describe_jobs(jobs=[executor._job])['jobs'][0]
    # Without a key it imports everything, and then complains.
    done = subprocess.run([sys.executable, '-X', 'importtime', os.path.join(ROOT, 'worker.py')], capture_output=True,
                          text=True, env=dict(os.environ, RIOSRun='none'))
    lines = re.findall(r'import time:\s+(\d+) \|\s+(\d+) \| (.*)', done.stderr)
    own = collections.Counter()
    for microseconds, _, module in lines:
        own[module.strip().partition('.')[0]] += int(microseconds)
    top = sum(int(total) for _, total, module in lines if not module.startswith(' '))
    return {'seconds': up - job['startedAt'] / 1000, 'imports_seconds': top / 1e6, 'modules': len(lines),
            'packages_ms': {name: round(value / 1000, 1) for name, value in own.most_common(8)}}


def many_small(calls, workers):
    """All submitted at once, and the futures dropped as they complete."""
    started = time.perf_counter()
    with metered(calls) as found, rios_awsbatch.AWSBatchExecutor(workers) as executor:
        futures = [executor.submit(double, number) for number in range(calls)]
        found['submit_seconds'] = time.perf_counter() - started
        found['submitted_mb'] = peak_mb()
        done = concurrent.futures.as_completed(futures)
        del futures
        expect(sum(future.result() for future in done), calls * (calls - 1), 'sum')
    return found


def many_large(blocks, megabytes, workers, ahead):
    """
    Large blocks. With `ahead`, no more than that many are unfinished or not yet taken (map with buffersize); without,
    all are submitted, and then taken as they complete while their futures are dropped.
    """
    template = numpy.arange(megabytes * MB // 8, dtype=float)
    inputs = (template + number for number in range(blocks))
    with metered(blocks) as found, rios_awsbatch.AWSBatchExecutor(workers) as executor:
        if ahead:
            results = executor.map(array_block, inputs, itertools.repeat(0), buffersize=ahead)
        else:
            done = concurrent.futures.as_completed(executor.submit(array_block, array, 0) for array in inputs)
            results = map(operator.methodcaller('result'), done)
        seen = collections.Counter()
        for result in results:
            number = int(result[0]) - 1
            if not numpy.array_equal(result, template + (number + 1)):
                raise WrongResult('block {} has wrong pixels'.format(number))
            seen[number] += 1
            del result
        expect(seen, collections.Counter(range(blocks)), 'blocks')
    return found


# ---------------------------------------------------------------------------------------------
# All cases, and their tables
# ---------------------------------------------------------------------------------------------

class Failed(Exception):
    """A case has found a wrong result, or has not ended."""


class Bench:
    """Runs cases and keeps what they found."""
    def __init__(self):
        self.found = []
        self.latency = None

    def run(self, case, latency=0, **options):
        """Run a case in a process of its own; what it found."""
        if latency != self.latency:
            control('latency', {'ms': latency})
            self.latency = latency
        name = case.__name__
        done = subprocess.run([sys.executable, os.path.abspath(__file__), '--case', name, json.dumps(options)],
                              stdout=subprocess.PIPE, text=True, timeout=CASE_SECONDS)
        if done.returncode:
            raise Failed('{} {} failed'.format(name, options))
        found = dict(json.loads(done.stdout.strip().splitlines()[-1]), case=name, latency=latency, options=options)
        self.found.append(found)
        return found

    def both(self, label, case, latencies=(0, 20), **options):
        for latency in latencies:
            yield label, self.run(case, latency, **options)


COLUMNS = (
    ('blocks', '{:d}', lambda row: row['blocks']),
    ('latency', '{:.0f} ms', lambda row: row['latency'] if 'cpu' in row else None),
    ('seconds', '{:.2f}', lambda row: row['seconds']),
    ('limit', '{:.2f}', lambda row: row.get('limit') or None),
    ('efficiency', '{:.0%}', lambda row: row['limit'] / row['seconds'] if row.get('limit') else None),
    ('blocks/s', '{:.1f}', lambda row: row['blocks'] / row['seconds']),
    ('requests/block', '{:.2f}', lambda row: row.get('requests_per_block')),
    ('$/M blocks', '{:.2f}', lambda row: row.get('dollars_per_million')),
    ('main MB', '{:.0f}', lambda row: row['main_mb'] if 'cpu' in row else None),
    ('worker MB', '{:.0f}', lambda row: row.get('worker_mb')))

GROWTH = (
    ('seconds', '{:.2f}', lambda row: row['seconds']),
    ('ms/block', '{:.2f}', lambda row: 1000 * row['seconds'] / row['blocks']),
    ('requests/block', '{:.2f}', lambda row: row['requests_per_block']),
    ('$/M blocks', '{:.2f}', lambda row: row['dollars_per_million']),
    ('main MB', '{:.0f}', lambda row: row['main_mb']),
    ('worker MB', '{:.0f}', lambda row: row['worker_mb']),
    ('CPU ms/block: main', '{:.2f}', lambda row: 1000 * row['cpu']['main'] / row['blocks']),
    ('workers', '{:.2f}', lambda row: 1000 * row['cpu']['workers'] / row['blocks']),
    ('local AWS', '{:.2f}', lambda row: 1000 * row['cpu']['local AWS'] / row['blocks']))


def table(title, rows, columns, first='case'):
    """Print rows of (label, found) as they come, and give them back as a list."""
    label_width = 8 if first == 'blocks' else 36
    widths = [max(8, len(name)) for name, _, _ in columns]

    def line(label, cells):
        cells = [cell.rjust(width) for cell, width in zip(cells, widths)]
        print('  '.join([label.ljust(label_width)] + cells).rstrip(), flush=True)

    print('\n' + title)
    line(first, [name for name, _, _ in columns])
    kept = []
    for label, row in rows:
        values = [(form, value(row)) for _, form, value in columns]
        line(label, ['' if value is None else form.format(value) for form, value in values])
        kept.append((label, row))
    return kept


def rios_version():
    """Which generation of RIOS can be imported (1, 2, or None), without importing it here."""
    for version, module in ((2, 'rios.computemanager'), (1, 'rios.parallel.jobmanager')):
        if subprocess.run([sys.executable, '-c', 'import ' + module], capture_output=True).returncode == 0:
            return version
    return None


def speed(bench, quick):
    few, many = (10, 100) if quick else (20, 400)
    latencies = (20,) if quick else (0, 20)
    found_rios = rios_version()

    def rows():
        yield 'serial loop', bench.run(serial, blocks=few, seconds=0.1)
        for workers, blocks in ((4, many),) if quick else ((4, many * 3 // 10), (8, many)):
            yield 'process pool, {} processes'.format(workers), bench.run(
                process_pool, blocks=blocks // 2, seconds=0.1, workers=workers)
            yield from bench.both('AWS Batch, {} workers'.format(workers), awsbatch, latencies, blocks=blocks, seconds=0.1,
                                  workers=workers)
        if not quick:
            yield 'AWS Batch, 8 workers, 0.5-3 s', bench.run(varying, 20, blocks=32, shortest=0.5, longest=3, workers=8)
        yield from bench.both('RIOS 1.4 rounds, 4 threads', rios1_rounds, latencies, blocks=49, seconds=0.1, threads=4)
        if found_rios == 1:
            yield from bench.both('RIOS 1.4 itself, 4 threads', rios, latencies, side=7, seconds=0.1, workers=4, version=1)
        if found_rios == 2:
            yield from bench.both('RIOS 2 itself, 8 workers', rios, latencies, side=12 if quick else 20, seconds=0.1,
                                  workers=8, version=2)
    table('Blocks of 0.1 s; limit = blocks * seconds / workers (where lengths differ: a list schedule)', rows(), COLUMNS)
    for version, name in ((1, 'RIOS 1.4'), (2, 'RIOS 2')):
        if version != found_rios:
            print('no {} here'.format(name))


def large(bench, quick):
    blocks = 10 if quick else 40
    latencies = (0,) if quick else (0, 20)

    def rows():
        for seconds in (0,) if quick else (0, 0.1):
            label = '4 MB, {}'.format('{} s'.format(seconds) if seconds else 'no work')
            options = dict(blocks=blocks, seconds=seconds, workers=4, megabytes=4)
            if not quick:
                yield 'process pool, ' + label, bench.run(process_pool, **options)
            yield from bench.both('AWS Batch, ' + label, awsbatch, (20,) if seconds else latencies, buffersize=16, **options)
    for label, row in table('Blocks of 4 MB in and 4 MB out, 4 workers', rows(), COLUMNS):
        if 'cpu' in row:
            print('{}, {} ms: {}'.format(label, row['latency'], traffic(row)))


def traffic(row):
    """What crossed the wire, and whose time it took."""
    blocks, cpu, requests = row['blocks'], row['cpu'], collections.Counter()
    for operations in row['requests'].values():
        requests.update(operations)
    total = sum(cpu.values())
    return ('per block {:.2f} MB out of and {:.2f} MB into the main script, by {:.2f} PUT and {:.2f} GET; of {:.0f} ms of '
            'CPU the local AWS takes {:.0%}, the workers {:.0%}, the main script {:.0%}'.format(
                row['wire']['objects out'] / MB / blocks, row['wire']['objects in'] / MB / blocks,
                requests['s3:PutObject'] / blocks, requests['s3:GetObject'] / blocks, 1000 * total / blocks,
                *(cpu[who] / total for who in ('local AWS', 'workers', 'main'))))


def growth(bench, quick):
    counts = (100, 500) if quick else (100, 1000, 10000)
    options = dict(seconds=0.01, workers=2 if quick else 4, buffersize=100)
    runs = ((str(blocks), bench.run(awsbatch, blocks=blocks, **options)) for blocks in counts)
    title = 'Growth: blocks of 10 ms, {workers} workers, map(buffersize={buffersize})'.format(**options)
    rows = table(title, runs, GROWTH, 'blocks')
    before, last = (row['seconds'] / row['blocks'] for _, row in rows[-2:])
    if not quick:       # a few hundred blocks are over before this says anything
        print('time per block at {}: {:.2f} of that at {}'.format(counts[-1], last / before, counts[-2]))
    found = bench.run(collecting, results=500 if quick else 3000, workers=1 if quick else 2)
    print('\nCollecting a backlog of results: {:.0f} a second; {:.2f} ms of CPU each in the main script, {:.2f} in the local '  # noqa: E501
          'AWS'.format(found['blocks'] / found['seconds'], found['main_ms'], found['local_ms']))
    both = rows[-1][1]['cpu']['main'] / rows[-1][1]['blocks']
    print('Sending and collecting take {:.2f} ms of CPU a block in the main script: it can feed about {:.0f} workers with '
          'blocks of 1 s, {:.0f} with blocks of 10 s'.format(1000 * both, 1 / both, 10 / both))


def starting(bench, quick):
    found = bench.run(first_block, workers=2 if quick else 4)
    print('\n{} workers that come up one after the other: the first block starts {:+.2f} s after the first is up, {:.2f} s '
          'before the last'.format(found['workers'], found['first_up_to_first_block'], found['first_block_to_last_up']))
    found = bench.run(worker_start)
    print('A worker is up {:.2f} s after its job starts; {} imports take {:.2f} s: {}'.format(
        found['seconds'], found['modules'], found['imports_seconds'],
        ', '.join('{} {:.0f} ms'.format(*item) for item in found['packages_ms'].items())))


def scale(bench):
    def rows():
        yield '100,000 small calls', bench.run(many_small, calls=100000, workers=4)
        yield '200 of 30 MB, 8 at a time', bench.run(many_large, blocks=200, megabytes=30, workers=4, ahead=8)
        yield '200 of 30 MB, all at once', bench.run(many_large, blocks=200, megabytes=30, workers=4, ahead=None)
    table('Large runs, 4 workers; nothing lost', rows(), COLUMNS)


CASES = {case.__name__: case for case in (
    serial, process_pool, awsbatch, varying, rios1_rounds, rios, collecting, first_block, worker_start, many_small,
    many_large)}


def run_case(name, options):
    """What `--case` does: the last line is what was found."""
    try:
        found = CASES[name](**json.loads(options))
    except WrongResult as error:
        sys.exit('bench: wrong result: {}'.format(error))
    print(json.dumps(dict(found, main_mb=peak_mb())))


def main():
    parser = argparse.ArgumentParser(prog='bench.sh', description='Measures rios_awsbatch on a local AWS.')
    parser.add_argument('--quick', action='store_true', help='less of everything, in under a minute')
    parser.add_argument('--scale', action='store_true', help='only what is large')
    parser.add_argument('-o', metavar='FILE', help='write the figures as JSON too')
    parser.add_argument('--case', nargs=2, metavar=('NAME', 'OPTIONS'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return run_case(*args.case)
    bench, failed = Bench(), None
    try:
        if args.scale:
            scale(bench)
        else:
            speed(bench, args.quick)
            large(bench, args.quick)
            growth(bench, args.quick)
            starting(bench, args.quick)
    except (Failed, subprocess.TimeoutExpired):
        failed = traceback.format_exc(limit=0)
    if args.o:
        with open(args.o, 'w') as file:
            json.dump({'failed': failed, 'cases': bench.found}, file, indent=1)
    if failed:
        sys.exit(failed)


if __name__ == '__main__':
    main()
