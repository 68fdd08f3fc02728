#!/usr/bin/env python3
"""
Chaos: main scripts one after another, while their processes are killed, stopped and continued at random.

    scripts/local.sh .venv/bin/python scripts/dev/chaos.py --seconds 3600 --seed 1

AWS fails, repeats, delays and reorders meanwhile, and each request takes 20 ms. Whatever happens, no result
may be wrong, no call lost, nothing may hang, and nothing of a run may be left: at once where its main script
could end in an orderly way; of one that was killed, no worker when its lease has run out, and nothing at all
after status.sh --clean. The same seed does the same, as far as the machine's own timing lets it.
The exit status is 1 when a promise was broken; the last words of that main script are printed.
"""
import argparse
import collections
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
from tests.helpers import QUICK, left_of, local_aws, pids, write_main      # noqa: E402

FAULTS = {'errors': 0.03, 'cut': 0.03, 'duplicate': 0.05, 'late': 0.05, 'reorder': 1}
LATENCY_MS = 20
HANGS = 300                                 # seconds after which a main script hangs
DEAD = 4 * QUICK['LEASE_SECONDS'] + 30      # the workers of a killed main script have ended after this
# How likely each thing is, one of which happens every second or so.
HARM = {'kill': 6, 'stop': 6, 'terminate': 3, 'reclaim': 2, 'stop main': 1, 'end main': 0.4}
STOPS = (0.2, 1, 3, 1.5 * QUICK['LEASE_SECONDS'])       # seconds
MAIN = '''
    import hashlib, logging, random
    logging.basicConfig(format='%(asctime)s %(message)s')
    logging.getLogger('rios_awsbatch').setLevel(logging.INFO)
    rios_awsbatch.MAX_TRIES = 20        # most calls are unlucky here
    rng = random.Random(int(sys.argv[1]))

    def tile(n, data, seconds):
        time.sleep(seconds)
        if n % 13 == 12:
            raise LookupError(n)
        return n, hashlib.sha256(data).hexdigest(), data[::-1] if n % 3 else None

    def check(n, data, future):
        if n % 13 == 12:
            error = future.exception()
            assert type(error) is LookupError and error.args == (n,), (n, error)
        else:
            assert future.result() == tile(n, data, 0), n

    blocks = [(n, rng.randbytes(rng.choice([10, 1000, 1000, 100_000, 900_000])), rng.uniform(0, 0.4))
              for n in range(rng.randrange(40, 160))]
    with rios_awsbatch.AWSBatchExecutor(rng.randrange(1, 5)) as executor:
        print(executor.run, flush=True)
        if rng.random() < 0.5:
            blocks = [block for block in blocks if block[0] % 13 != 12]
            results = list(executor.map(tile, *zip(*blocks), buffersize=rng.randrange(4, 40)))
            assert results == [tile(n, data, 0) for n, data, _ in blocks]
        else:
            for n, data, future in [(n, data, executor.submit(tile, n, data, s)) for n, data, s in blocks]:
                if rng.random() > 0.1 or not future.cancel():
                    check(n, data, future)
    print('right', flush=True)
'''


class Run:
    """A main script, and what is done to it."""
    def __init__(self, seed, folder):
        self.rng, self.done, self.stopped = random.Random(seed), collections.Counter(), {}
        self.ended_by = 0               # the signal that ends the main script
        self.log = folder / 'log'
        self.process = subprocess.Popen([sys.executable, write_main(folder, MAIN), str(seed)], text=True,
                                        stdout=subprocess.PIPE, stderr=self.log.open('w'))
        self.run = self.process.stdout.readline().strip()

    def harm(self):
        """One thing that goes wrong."""
        kind = self.rng.choices(list(HARM), HARM.values())[0]
        pid = self.process.pid
        if 'main' not in kind:
            workers = sorted(pids(self.run))
            if not workers:
                return
            worker = pid = self.rng.choice(workers)
            if kind in ('kill', 'stop'):        # any of its processes
                children = pathlib.Path('/proc/{0}/task/{0}/children'.format(worker)).read_text().split()
                pid = self.rng.choice([worker, *map(int, children)])
        if 'stop' in kind:
            self.stopped[pid] = time.monotonic() + self.rng.choice(STOPS)
            self.send(pid, signal.SIGSTOP)
        elif kind == 'reclaim':
            job = next(job['jobId'] for job in local_aws('jobs')['jobs'] if job['pid'] == worker)
            local_aws('jobs/interrupt', {'jobId': job})
        elif kind == 'end main':
            self.ended_by = self.rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            self.send(pid, self.ended_by)
        else:
            self.send(pid, signal.SIGKILL if kind == 'kill' else signal.SIGTERM)
        self.done[kind] += 1

    @staticmethod
    def send(pid, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def go_on(self, until=float('inf')):
        """Continue what was stopped until that moment."""
        for pid in [pid for pid, moment in self.stopped.items() if moment < until]:
            self.send(pid, signal.SIGCONT)
            del self.stopped[pid]

    def play(self):
        """Let it run in chaos to its end; the promise that it broke, or None."""
        deadline = time.monotonic() + HANGS
        while self.process.poll() is None and not self.ended_by and time.monotonic() < deadline:
            with contextlib.suppress(OSError, StopIteration):       # what was to be harmed is gone
                self.harm()
            time.sleep(self.rng.uniform(0.2, 2))
            self.go_on(time.monotonic())
        self.go_on()
        try:
            said = self.process.communicate(timeout=HANGS)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            return 'the main script hangs'
        status = self.process.returncode
        by_order = self.ended_by and status in (-self.ended_by, 128 + self.ended_by)
        if not by_order and (status, said) != (0, 'right\n'):
            return 'the main script ended with {} and said {!r}'.format(status, said)
        return self.left()

    def left(self):
        """What should be gone: the workers; queues and objects too if the main script was not killed."""
        deadline = time.monotonic() + DEAD
        killed = self.process.returncode == -signal.SIGKILL
        while True:
            left = pids(self.run) if killed else left_of(self.run)
            if not left or time.monotonic() > deadline:
                return 'left behind: {}'.format(left) if left else None
            time.sleep(1)


def main():
    parser = argparse.ArgumentParser(description='See the head of this file.')
    parser.add_argument('--seconds', type=float, default=60)
    parser.add_argument('--seed', type=int, default=int(time.time()))
    given = parser.parse_args()
    local_aws('conditions', {'faults': dict(FAULTS, seed=given.seed), 'latency': LATENCY_MS})
    began, broken, done, runs = time.monotonic(), 0, collections.Counter(), []
    while time.monotonic() - began < given.seconds:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(given.seed * 10_000 + len(runs), pathlib.Path(folder))
            runs.append(run.run)
            wrong = run.play()
            done.update(run.done)
            print('{:4d} {} {}: {}'.format(len(runs), run.run, dict(run.done), wrong or 'fine'), flush=True)
            if wrong:
                broken += 1
                print(run.log.read_text()[-4000:], flush=True)
    local_aws('conditions', {})
    time.sleep(2 * QUICK['LEASE_SECONDS'])
    subprocess.run([ROOT / 'scripts' / 'status.sh', '--clean'], stdout=subprocess.DEVNULL, check=True)
    left = [each for run in runs for each in left_of(run)]
    print('chaos: seed {}, {:.0f} s, {} main scripts, {}; {} broke a promise; left: {}'.format(
        given.seed, time.monotonic() - began, len(runs), dict(done), broken, left or 'nothing'))
    return bool(broken or left)


if __name__ == '__main__':
    sys.exit(main())
