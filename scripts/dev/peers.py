"""
Measures rios_awsbatch beside others that do its work, on the same blocks, in turns. scripts/dev/bench.sh
--peers runs it, and says what it shows.

RIOS's own code for AWS Batch runs as it is: with the stack of its own template, in an image whose command is
its own worker. RIOS 2's workers talk to the main script over TCP, so each has a proxy beside it that delays
what passes by half of the latency in each direction, as every request to AWS is delayed by all of it.
"""
import argparse
import asyncio
import concurrent.futures
import contextlib
import heapq
import json
import multiprocessing
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy

import bench
from bench import ROOT, Meter, control, expect

WORKERS, SIDE = 4, 7                # SIDE * SIDE windows of a Landsat scene
SHORTEST, LONGEST = 0.02, 0.5       # of uneven blocks (s)
SLOWER = 4                          # so many times, where one worker is slow
PATIENCE = 120                      # seconds after which a run has failed
NEAR = 1                            # ms of latency that a main script in the region has


# ---------------------------------------------------------------------------------------------
# The work
# ---------------------------------------------------------------------------------------------

def uneven(block):
    """How long a block takes (s), which its pixels decide."""
    return random.Random(int(block.sum())).uniform(SHORTEST, LONGEST)


def compute(block, seconds, slow):
    """
    What workers do with an array of (bands, rows, columns). `seconds` is None for uneven blocks; the first
    worker that makes the file `slow`, if it is a name, takes longer.
    """
    length = uneven(block) if seconds is None else seconds
    if slow:
        me = os.environ.get('AWS_BATCH_JOB_ID', '')     # that of a worker
        with contextlib.suppress(FileExistsError), open(slow, 'x') as file:
            file.write(me)
        length *= SLOWER if pathlib.Path(slow).read_text() == me else 1
    time.sleep(length)
    return block[:2] + 1


def with_rios(info, inputs, outputs, otherargs):
    outputs.result = compute(inputs.image, otherargs.seconds, otherargs.slow)


def limit(seconds, slow):
    """Seconds that blocks take at least: whoever is free takes the next at once."""
    blocks = SIDE * SIDE
    if seconds is not None:
        return blocks * seconds / (WORKERS - 1 + 1 / SLOWER if slow else WORKERS)
    free = [0.0] * WORKERS
    for block in bench.blocks_of('landsat', blocks):
        heapq.heapreplace(free, free[0] + uneven(block))
    return max(free)


# ---------------------------------------------------------------------------------------------
# Who does it. Each runs in a process of its own, and gives what a Meter has found.
# ---------------------------------------------------------------------------------------------

@contextlib.contextmanager
def from_when_workers_are_up(meter, version, own):
    """Start the meter when RIOS has all its workers."""
    if not own:
        from rios_awsbatch import AWSBatchExecutor
        with AWSBatchExecutor(WORKERS) as executor:
            executor.wait_for_workers(WORKERS)
            meter.start()
            yield
    elif version == 1:
        from rios.parallel.aws.batch import AWSBatchJobManager as manager
        make = manager.__init__

        def made(self, *args, **kwargs):
            make(self, *args, **kwargs)
            while sum(counts.get('sqs:ReceiveMessage', 0) for counts in control('requests').values()) < (
                    WORKERS - 1):       # it computes a block of each round itself, and has a worker less
                time.sleep(0.1)
            meter.start()

        manager.__init__ = made
        yield
    else:
        from rios.computemanager import AWSBatchComputeWorkerMgr as manager
        begin = manager.startWorkers

        def begun(self, *args, **kwargs):
            begin(self, *args, **kwargs)        # returns when all are there
            meter.start()

        manager.startWorkers = begun
        yield


def kill_one():
    """Every process of one worker, without notice."""
    for pid in bench.processes(control('jobs')['jobs'][0]['pid']):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def rios(version, own, seconds, workers_read, slow=False, killed=False):
    """RIOS, with its own code for AWS Batch or with ours."""
    if not own:
        import rios_awsbatch  # noqa: F401
    elif version == 1:
        import rios.parallel.aws.batch  # noqa: F401
    folder = os.environ['RIOS_AWSBATCH_LOCAL_SHARED']
    style = {'computeWorkersRead': workers_read, 'numReadWorkers': 0 if workers_read else 1,
             'haveSharedTemp': False}
    meter = Meter(SIDE * SIDE, limit(seconds, slow))
    if killed:
        start = meter.start
        meter.start = lambda: (start(), threading.Timer(0.5, kill_one).start())
    with bench.applied(
            with_rios, bench.pixels('landsat', SIDE), WORKERS, version, folder, style, seconds=seconds,
            slow=os.path.join(folder, 'slow-{}'.format(os.getpid())) if slow else None) as apply:
        with from_when_workers_are_up(meter, version, own):
            apply()
            meter.stop()
        meter.finish()
    return meter.found


def executor(kind, seconds):
    """Executors, without RIOS: what they are given, they are sent."""
    blocks, none = list(bench.blocks_of('landsat', SIDE * SIDE)), [None] * SIDE * SIDE
    lengths, meter = [seconds] * len(blocks), Meter(len(blocks), limit(seconds, False))

    def check(results):
        for block, result in zip(blocks, results, strict=True):
            expect(numpy.array_equal(result, block[:2] + 1), 'a block')
        meter.stop()

    if kind == 'this':
        from rios_awsbatch import AWSBatchExecutor
        with AWSBatchExecutor(WORKERS) as pool:
            pool.wait_for_workers(WORKERS)
            meter.start()
            check(pool.map(compute, blocks, lengths, none))
    elif kind == 'process pool':
        context = multiprocessing.get_context('spawn')
        with concurrent.futures.ProcessPoolExecutor(WORKERS, context) as pool:
            list(pool.map(compute, blocks[:16], [0.1] * 16, none))      # all processes are up
            meter.start()
            check(pool.map(compute, blocks, lengths, none))
    else:
        import distributed
        with distributed.LocalCluster(
                n_workers=WORKERS, threads_per_worker=1, host='127.0.0.1',
                dashboard_address=None) as cluster, distributed.Client(cluster) as client:
            client.wait_for_workers(WORKERS)
            meter.start()
            check(client.gather(client.map(compute, blocks, lengths, none)))
    meter.finish()
    return meter.found


CASES = {'rios': rios, 'executor': executor}


# ---------------------------------------------------------------------------------------------
# RIOS 2's own workers: the latency of their way to the main script
# ---------------------------------------------------------------------------------------------

async def delay(host, port, seconds, tell):
    """A proxy on the loopback address that passes on what it gets so much later; `tell` is told its port."""
    loop = asyncio.get_running_loop()

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                loop.call_later(seconds, writer.write, data)
        loop.call_later(seconds, writer.close)

    async def connected(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(connected, '127.0.0.1', 0)
    tell(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def rios_worker(number, address):
    """RIOS 2's own worker, behind a proxy that is a process of its own."""
    from rios.cmdline import rios_computeworker
    host, port, key = address.split(',')
    milliseconds = control('latency')['ms']
    proxy = subprocess.Popen([sys.executable, __file__, '--delay', host, port, str(milliseconds / 2000)],
                             stdout=subprocess.PIPE, text=True)
    sys.argv[1:] = ['-i', str(number), '--channaddr', '127.0.0.1,{},{}'.format(
        proxy.stdout.readline().strip(), key)]
    try:
        rios_computeworker.mainCmd()
    finally:
        proxy.kill()
        proxy.wait()


# ---------------------------------------------------------------------------------------------
# All of them, in turns, and their table
# ---------------------------------------------------------------------------------------------

COLUMNS = [column for column in bench.COLUMNS if column[0] not in ('whole', 'kB out', 'kB in', 'worker')]


class Peers:
    """The stacks of everybody; who takes part is told by the checkouts of RIOS in RIOS_SRC."""
    def __init__(self, folder, repeat):
        self.repeat, self.found = repeat, []
        self.this = bench.Subject('this', ROOT, folder)
        self.of_rios = {}                   # by version: (folder, its own Subject)
        keys = ['{}={}'.format(name, os.environ[name])
                for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_DEFAULT_REGION')]
        for source in map(pathlib.Path, filter(None, os.environ.get('RIOS_SRC', '').split(os.pathsep))):
            for version, template, worker in (
                    (1, 'rios/parallel/aws/templates/batch.yaml', source / 'bin/rios_subproc_awsbatch.py'),
                    (2, 'tools/awsbatch/batch.yaml', pathlib.Path(__file__))):
                if (source / template).exists():
                    self.of_rios[version] = source, bench.Subject(
                        'rios{}'.format(version), source, folder, source / template, worker, keys)

    def row(self, title, latency, versions=(2,), executors=(), **options):
        """Measure a case by everybody, in turns, and print the medians of each."""
        print('\n{}, {} ms'.format(title, latency), flush=True)
        todo = [(('{}, own code' if own else '{}').format(self.of_rios[version][0].name),
                 self.of_rios[version][1] if own else self.this, 'rios', self.of_rios[version][0],
                 dict(options, version=version, own=own))
                for version in versions if version in self.of_rios for own in (False, True)]
        todo += [(kind, self.this, 'executor', None, {'kind': kind, 'seconds': options['seconds']})
                 for kind in executors]
        rows = {}
        for _ in range(self.repeat):
            for label, subject, case, source, of_case in todo:
                control('latency', {'ms': latency})
                rows.setdefault(label, []).append(self._run(subject, case, source, of_case, latency))
                self.found.append({'title': title, 'latency': latency, 'who': label, **rows[label][-1]})
        for label, runs in rows.items():
            right = [run for run in runs if 'failed' not in run]
            cells = [form.format(statistics.median(map(value, right))) if right else '-'
                     for _, form, value in COLUMNS]
            print((label.ljust(28) + ''.join(cell.rjust(10) for cell in cells)).rstrip(), flush=True)
            for run in runs:
                if 'failed' in run:
                    print('    failed after {seconds:.1f} s: {failed}'.format(**run), flush=True)

    def _run(self, subject, case, source, options, latency):
        path = [str(ROOT / 'scripts/dev'), str(subject.root), *([str(source)] if source else [])]
        subject.push(path)
        # So little is for a main script in the region: a main job.
        variables = {'AWS_BATCH_JOB_ID': 'main'} if latency <= NEAR else {}
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, __file__, '--case', case, json.dumps(options)],
            env=dict(subject.env, PYTHONPATH=os.pathsep.join(path), **variables), text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, errors = process.communicate()[0], 'it hangs'
        took = time.monotonic() - began
        self._clear()
        if process.returncode:
            return {'failed': (errors.strip().splitlines() or ['?'])[-1][:90], 'seconds': took}
        return json.loads(out.strip().splitlines()[-1])

    @staticmethod
    def _clear():
        """Nothing of a run that failed is to disturb the next."""
        while jobs := control('jobs')['jobs']:
            for job in jobs:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(job['pid'], signal.SIGKILL)
            time.sleep(0.2)


def main():
    parser = argparse.ArgumentParser(prog='bench.sh --peers')
    parser.add_argument('--repeat', metavar='N', type=int, default=3)
    parser.add_argument('-o', metavar='FILE', type=argparse.FileType('w'))
    parser.add_argument('--only', metavar='TEXT', default='', help='only rows whose title has this text')
    for hidden in ('--channaddr', '-i'):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument('--case', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--delay', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.delay:
        host, port, seconds = args.delay
        return asyncio.run(delay(host, int(port), float(seconds), lambda port: print(port, flush=True)))
    if args.channaddr:
        return rios_worker(args.i, args.channaddr)
    if args.case:
        found = CASES[args.case[0]](**json.loads(args.case[1]))
        return print(json.dumps(dict(found, main_mb=bench.peak_mb())))
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(pathlib.Path(folder), args.repeat)
        executors = ['this', 'process pool']
        with contextlib.suppress(ImportError):
            import distributed  # noqa: F401
            executors.append('dask')
        print('{} blocks of 525 kB in and 262 kB out, {} workers; medians of {}'.format(
            SIDE * SIDE, WORKERS, args.repeat))
        print(' ' * 28 + ''.join(name.rjust(10) for name, _, _ in COLUMNS))
        for title, latency, options in [
                ('even blocks of 0.1 s, workers read', 20, dict(seconds=0.1, workers_read=True)),
                ('even blocks of 0.1 s, workers read', 1, dict(seconds=0.1, workers_read=True)),
                ('blocks of 0.02 s, workers read', 20, dict(seconds=0.02, workers_read=True)),
                ('blocks of 1 s, workers read', 20, dict(seconds=1, workers_read=True)),
                ('uneven blocks of 0.02 to 0.5 s, workers read', 20, dict(seconds=None, workers_read=True)),
                ('one worker 4 times slower, workers read', 20,
                 dict(seconds=0.1, workers_read=True, slow=True)),
                ('one worker killed, workers read', 20, dict(seconds=0.1, workers_read=True, killed=True)),
                *(('even blocks of 0.1 s, main script reads', latency, dict(
                    seconds=0.1, workers_read=False, versions=(2, 1), executors=executors))
                  for latency in (20, 1))]:
            if args.only in title:
                peers.row(title, latency, **options)
    if args.o:
        json.dump(peers.found, args.o, indent=1)


if __name__ == '__main__':
    main()
