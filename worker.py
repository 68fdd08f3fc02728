#!/usr/bin/env python3
"""
What runs inside each AWS Batch job: takes calls from the in queue of one run, computes them, and puts
the results on its out queue.

The main script (see rios_awsbatch.py) starts it, and gives it everything in the environment:

    RIOSBucket, RIOSInQueue, RIOSOutQueue   where calls come from and results go to
    RIOSRun, RIOSRunKey                     the run, and the key that its messages are signed with
    RIOSRegion, RIOSVersions                of the main script
    RIOSLease, RIOSVisibility               LEASE_SECONDS and VISIBILITY_SECONDS of the main script
    RIOS_NOMSG_TIMEOUT                      exit when nothing came for so many seconds

It ends by itself when the main script says so (a 'stop' message), when its queue is deleted, when
nothing came for RIOS_NOMSG_TIMEOUT, when the lease of the run was not renewed (the main script is dead),
and on SIGTERM (Batch ends the job, or takes the instance away), when it first gives its blocks back.

Who does what: the main thread computes (`Worker.run`); one thread fetches the next call in time
(`Worker._fetch_loop`); one sends results (`Worker._send_loop`); one waits for SIGTERM
(`Worker._end_on_signal`). A process of its own (`Keeper`) keeps the calls in hand from being given to
other workers, so that a function that holds Python's interpreter lock for minutes loses none.
"""
# MIT licence, see the file LICENSE.

import collections
import contextlib
import datetime
import importlib
import json
import logging
import os
import pickle
import queue
import select
import signal
import sys
import threading
import time
import traceback

import botocore.exceptions

import rios_awsbatch
from rios_awsbatch import Refused

NOMSG_TIMEOUT = 3600    # seconds, where the environment does not say
AHEAD_SECONDS = 0.15    # fetch the next call when there is less work than this at hand, ...
HOLD_SECONDS = 1.0      # ... and give it back if it had to wait for so long
FLUSH_SECONDS = 5       # how long a finished call may wait for others to be deleted together
FUNCTIONS = 8           # functions that are kept unpickled
EXIT_TERMINATED = 128 + signal.SIGTERM      # batch.yaml has Batch start such a job again, ...
EXIT_ORPHANED = 1                           # ... but not this one

log = logging.getLogger('worker')
AWS_ERRORS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)


class Task:
    """A call that this worker has taken."""
    def __init__(self, header, payload, receipt, tries):
        self.header, self.payload, self.receipt = header, payload, receipt
        self.tries = tries
        self.times = {'received': time.time()}
        self.held_since = time.monotonic()


class Keeper:
    """
    A small process that keeps the worker's calls invisible to other workers, and ends the worker when
    the main script is dead.

    It is forked before there are threads and ends with the worker, however that ends.
    """
    def __init__(self, channel, visibility, lease):
        self.channel, self.visibility, self.lease = channel, visibility, lease
        self.worker = os.getpid()
        reading, self.writing = os.pipe()
        if os.fork() == 0:
            os.close(self.writing)
            try:
                self._loop(reading)
            finally:
                os._exit(0)
        os.close(reading)

    def hold(self, receipt):
        """Keep a message from now on."""
        os.write(self.writing, b'+%s\n' % receipt.encode())

    def drop(self, receipts):
        """These were deleted."""
        for receipt in receipts:
            os.write(self.writing, b'-%s\n' % receipt.encode())

    def _loop(self, reading):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)       # the worker decides
        held, rest = set(), b''
        beat = self.visibility / 3
        next_beat = time.monotonic() + beat
        next_look = time.monotonic()
        while os.getppid() == self.worker:
            if select.select([reading], [], [], max(0, min(next_beat, next_look) - time.monotonic()))[0]:
                data = os.read(reading, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b'\n')
                for line in lines:
                    (held.add if line[:1] == b'+' else held.discard)(line[1:].decode())
            try:
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + beat
                    self._extend(sorted(held))
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + self.lease / 4
                    if not self._main_lives():
                        log.error('The main script has not renewed its lease for %d s, so it is dead: exiting', self.lease)
                        self._end_worker()
            except AWS_ERRORS as error:
                log.warning('Could not keep the calls in hand: %s', error)

    def _extend(self, receipts):
        for some in rios_awsbatch.batches(receipts, rios_awsbatch.BATCH_ENTRIES):
            self.channel.sqs.change_message_visibility_batch(QueueUrl=self.channel.in_queue, Entries=[
                {'Id': str(n), 'ReceiptHandle': receipt, 'VisibilityTimeout': self.visibility}
                for n, receipt in enumerate(some)])

    def _main_lives(self):
        """Whether the lease was renewed lately, by the clock of S3 alone."""
        try:
            head = self.channel.s3.head_object(Bucket=self.channel.bucket, Key=self.channel.folder + 'lease')
        except botocore.exceptions.ClientError as error:
            if rios_awsbatch.error_code(error) in rios_awsbatch._NO_OBJECT:
                return False
            raise
        now = head['ResponseMetadata']['HTTPHeaders']['date']
        now = datetime.datetime.strptime(now, '%a, %d %b %Y %H:%M:%S %Z').replace(tzinfo=datetime.timezone.utc)
        return (now - head['LastModified']).total_seconds() < self.lease

    def _end_worker(self):
        os.kill(self.worker, signal.SIGUSR1)
        time.sleep(10)
        os.kill(self.worker, signal.SIGKILL)


class Worker:
    """
    Computes calls, one at a time, until there are no more.

    Args:
        channel (rios_awsbatch.Channel): of the run.
        keeper (Keeper): of this process.
        idle (float): exit when nothing came for so many seconds.
    """
    def __init__(self, channel, keeper, idle):
        self.channel, self.keeper, self.idle = channel, keeper, idle
        self.number = os.environ.get('AWS_BATCH_JOB_ARRAY_INDEX', '0')
        self.changed = threading.Condition()    # of what follows here
        self.ready = collections.deque()        # tasks at hand
        self.current = self.started = None      # the task that is computed, and since when
        self.fetching = False                   # a request for calls is under way
        self.stopping = False                   # no more calls are fetched
        self.patient = False                    # a call was given back: fetch none until the current is done
        self.pace = None                        # seconds that a call has taken of late
        self.download = 0.0                     # seconds that its arguments have taken of late
        self.scarce = True                      # other workers may have nothing to do
        self.outbox = queue.Queue()
        self.sending = threading.Thread(target=self._guarded, args=(self._send_loop,), daemon=True)
        self.functions = collections.OrderedDict()

    # The main thread ---------------------------------------------------------------------------

    def run(self):
        """Work until there is no more to do."""
        self._say('hello', versions=rios_awsbatch.versions())
        self.sending.start()
        for loop in (self._fetch_loop, self._end_on_signal):
            threading.Thread(target=self._guarded, args=(loop,), daemon=True).start()
        self._import_ahead()
        while True:
            task = self._next_task()
            if task is None:
                break
            self._compute(task)
        self.outbox.put(None)
        self.sending.join()
        self._say('bye', requests=dict(self.channel.requests))

    def _say(self, kind, **more):
        body, _ = self.channel.seal('main', dict(more, kind=kind, worker=self.number))
        self.channel.send(self.channel.out_queue, [body])

    @staticmethod
    def _import_ahead():
        """Import what the first call will, while that is on its way."""
        for name in os.environ.get('RIOSModules', '').split():
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    def _next_task(self):
        with self.changed:
            self.current = None
            self.patient = False
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.ready or self.stopping)
            if not self.ready:
                return None
            self.current = self.ready.popleft()
            suspect = self.current.tries > 1
            if suspect:
                # A worker ended with this call in hand. Should it kill this one too, then no other with it.
                self.patient = True
                self.changed.wait_for(lambda: not self.fetching)
                self._give_back_ready()
            self.started = time.monotonic()
            self.changed.notify_all()
        if suspect:
            self.outbox.join()
        return self.current

    def _compute(self, task):
        """Run one call, and have its result or its exception sent."""
        task.times['started'] = time.time()
        kind = 'result'
        try:
            function, (args, kwargs) = self._unpickled(task)
            payload = self._pickled_result(task, function(*args, **kwargs))
        except BaseException as error:      # sys.exit() in the user's function included
            kind, payload = 'error', self._pickled_error(task, error)
        args = kwargs = None
        task.times['computed'] = time.time()
        took = time.monotonic() - self.started
        with self.changed:
            self.pace = took if self.pace is None else 0.7 * self.pace + 0.3 * took
        task.payload = None
        log.info('%s of %s after %.3f s', kind.capitalize(), task.header['label'], took)
        self.outbox.put((task, kind, payload))

    def _unpickled(self, task):
        if isinstance(task.payload, Refused):
            raise rios_awsbatch.AWSBatchException(
                'The arguments of {} were tampered with on their way: {}.'.format(task.header['label'], task.payload))
        try:
            return self._function(task.header['fn']), pickle.loads(task.payload)
        except ImportError as error:
            raise _missing_module(error) from error
        except Refused as refused:
            raise rios_awsbatch.AWSBatchException(
                'The function of {} was tampered with on its way: {}.'.format(task.header['label'], refused)) from None
        except AWS_ERRORS as error:     # it could not be downloaded, which is not the call's fault
            self._fail(error)

    def _function(self, digest):
        """The function with this SHA-256, which is downloaded once."""
        if digest not in self.functions:
            self.functions[digest] = pickle.loads(self.channel.fetch(self.channel.function_object(digest), digest))
            if len(self.functions) > FUNCTIONS:
                self.functions.popitem(last=False)
        self.functions.move_to_end(digest)
        return self.functions[digest]

    @staticmethod
    def _pickled_result(task, result):
        try:
            return rios_awsbatch.dumps(result)
        except Exception as error:
            raise rios_awsbatch.AWSBatchException(
                'The result of {}, a {}, cannot be pickled, so it cannot travel to the main script: {}: {}.'.format(
                    task.header['label'], type(result).__name__, type(error).__name__, error)) from error

    @staticmethod
    def _pickled_error(task, error):
        if isinstance(error, ImportError) and not isinstance(error, rios_awsbatch.AWSBatchException):
            explained = _missing_module(error)
            explained.__cause__ = error
            error = explained
        if isinstance(error, MemoryError):
            explained = rios_awsbatch.AWSBatchException(
                'The worker had not enough memory for {}. Use smaller blocks, or give workers more with '
                '"scripts/modify.sh --mem".'.format(task.header['label']))
            explained.__cause__ = error
            error = explained
        text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
        log.warning('%s failed:\n%s', task.header['label'], text)
        try:
            payload = rios_awsbatch.dumps((error, text))
            pickle.loads(payload)       # not every exception that can be pickled can be unpickled
            return payload
        except Exception:
            return rios_awsbatch.dumps((rios_awsbatch.AWSBatchException(
                '{} raised {}: {}'.format(task.header['label'], type(error).__name__, error)), text))

    # Fetching ----------------------------------------------------------------------------------

    def _fetch_loop(self):
        """
        Have the next call at hand when the current one ends, but not much sooner: a call that waits
        here could be computed by a worker that is idle.
        """
        last = time.monotonic()
        while True:
            count, wait = self._wanted()
            if not count:
                return
            messages = self.channel.receive(self.channel.in_queue, wait, count)
            for message in messages:
                self._take(message)
            with self.changed:
                self.fetching = False
                self.changed.notify_all()
                busy = self.current or self.ready
            if messages or busy:
                last = time.monotonic()
            elif time.monotonic() - last > self.idle:
                log.info('No message for %d s: exiting', self.idle)
                self._stop()

    def _wanted(self):
        """Wait until calls should be fetched: how many at most, and how long to wait for them (s)."""
        with self.changed:
            while not self.stopping:
                ahead = AHEAD_SECONDS + self.download
                if self.current is None and not self.ready:
                    room = 1 if self.scarce or not self.pace else ahead / self.pace
                    self.fetching = True
                    return self._count(room), min(rios_awsbatch.LONG_POLL_SECONDS, max(1, int(self.idle)))
                if self.current is None:
                    pass                            # the main thread is about to take it
                elif self.ready and time.monotonic() - self.ready[0].held_since > HOLD_SECONDS + self.download:
                    self._give_back_ready()
                elif self.pace and not self.scarce and not self.patient:
                    elapsed = time.monotonic() - self.started
                    if elapsed > self.pace + HOLD_SECONDS:
                        self.patient = True         # it takes longer than others: who knows how long
                        continue
                    left = max(0, self.pace - elapsed) + len(self.ready) * self.pace
                    if left < ahead:
                        self.fetching = True
                        return self._count((ahead - left) / self.pace), 1
                    self.changed.wait(left - ahead)
                    continue
                self.changed.wait(HOLD_SECONDS / 4 if self.ready else None)
            return 0, 0

    @staticmethod
    def _count(room):
        return max(1, min(rios_awsbatch.BATCH_ENTRIES, int(room)))

    def _take(self, message):
        """Make a task of a message."""
        receipt = message['ReceiptHandle']
        self.keeper.hold(receipt)
        try:
            header, payload = self.channel.open('worker', message['Body'])
        except Refused as refused:
            log.warning('A message was refused: %s', refused)
            return self._forget([receipt])
        if header['kind'] == 'stop':
            if self.stopping:           # this one is for another worker
                self.channel.send(self.channel.in_queue, [message['Body']])
            self._forget([receipt])
            return self._stop()
        tries = header['tries'] + int(message['Attributes']['ApproximateReceiveCount'])
        task = Task(header, None, receipt, tries)
        if tries > rios_awsbatch.MAX_TRIES:
            log.error('%s was tried %d times before: given up', header['label'], tries - 1)
            task.tries = tries - 1
            return self.outbox.put((task, 'lost', b''))
        try:
            task.payload = self.channel.payload(header, payload)
        except Refused as refused:
            log.warning('The arguments of %s were refused: %s', header['label'], refused)
            task.payload = refused
        task.times['downloaded'] = time.time()
        took = task.times['downloaded'] - task.times['received'] if 'object' in header else 0
        with self.changed:
            self.download = 0.7 * self.download + 0.3 * took
            self.scarce = header['scarce']
            task.held_since = time.monotonic()
            self.ready.append(task)
            self.changed.notify_all()

    def _stop(self):
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def _give_back_ready(self):
        """Let other workers have the calls that wait for the end of the current one."""
        tasks, self.patient = list(self.ready), True
        self.ready.clear()
        self.changed.release()
        try:
            self._give_back(tasks)
        finally:
            self.changed.acquire()

    def _give_back(self, tasks):
        """
        Send calls to the queue again, as new messages: SQS would count them as tries otherwise.
        """
        for task in tasks:
            header = dict(task.header, tries=task.tries - 1)
            payload = b'' if 'object' in header or isinstance(task.payload, Refused) else task.payload
            self.channel.send(self.channel.in_queue, [self.channel.reseal(header, payload)])
            self._forget([task.receipt])
            log.info('Gave %s back', header['label'])

    def _forget(self, receipts):
        self.channel.delete(self.channel.in_queue, receipts)
        self.keeper.drop(receipts)

    # Sending -----------------------------------------------------------------------------------

    def _send_loop(self):
        """Send results, as many in one request as there are; only then delete their calls."""
        answered, since = [], time.monotonic()
        more = True
        while more:
            bodies, receipts = [], []
            with contextlib.suppress(queue.Empty):
                item = self.outbox.get(timeout=FLUSH_SECONDS if answered else None)
                while True:
                    more = item is not None
                    if not more:
                        break
                    bodies.append(self._answer(*item))
                    receipts.append(item[0].receipt)
                    item = None
                    if len(bodies) == rios_awsbatch.BATCH_ENTRIES or \
                            sum(map(len, bodies)) > rios_awsbatch.MESSAGE_BYTES // 2:
                        break
                    item = self.outbox.get_nowait()
            if bodies:
                self.channel.send(self.channel.out_queue, bodies)
            for _ in bodies:
                self.outbox.task_done()
            answered += receipts
            if len(answered) >= rios_awsbatch.BATCH_ENTRIES or time.monotonic() - since > FLUSH_SECONDS or not more:
                self._forget(answered)
                answered, since = [], time.monotonic()

    def _answer(self, task, kind, payload):
        header = dict(task.times, kind=kind, id=task.header['id'], worker=self.number, tries=task.tries,
                      uploaded=time.time())
        return self.channel.seal('main', header, payload)[0]

    # Ending ------------------------------------------------------------------------------------

    def _guarded(self, loop):
        try:
            loop()
        except BaseException as error:
            self._fail(error)

    @staticmethod
    def _fail(error):
        """The worker cannot go on. What it held comes back by itself after RIOSVisibility seconds."""
        if rios_awsbatch.error_code(error) in rios_awsbatch._NO_QUEUE:
            log.info('The queues of the run are gone, so the run has ended: exiting')
            os._exit(0)
        log.error('%s', rios_awsbatch.explain(error, 'working for a run') if isinstance(error, AWS_ERRORS)
                  else ''.join(traceback.format_exception(type(error), error, error.__traceback__)))
        os._exit(EXIT_TERMINATED if rios_awsbatch.is_temporary(error) else 1)

    def _end_on_signal(self):
        """
        On SIGTERM, give back what is in hand and exit, whatever the main thread is doing. On SIGUSR1, from
        the keeper, there is nobody to give it back to.

        Python runs signal handlers in the main thread, which may be busy in compiled code for long. The
        number of the signal is in a pipe at once.
        """
        if os.read(_signals, 1)[0] == signal.SIGUSR1:
            os._exit(EXIT_ORPHANED)
        log.warning('Asked to end: giving the calls in hand back')
        with self.changed:
            tasks = ([self.current] if self.current else []) + list(self.ready)
            self.ready.clear()
            self.stopping = True
        self._give_back([task for task in tasks if task.payload is not None])
        self.outbox.put(None)
        self.sending.join(5)
        os._exit(EXIT_TERMINATED)


_signals, _signalled = os.pipe()


def _missing_module(error):
    """A sentence for a module that the image lacks."""
    name = (getattr(error, 'name', None) or '').partition('.')[0]
    if not isinstance(error, ModuleNotFoundError) or not name:
        return rios_awsbatch.AWSBatchException('The worker cannot import what the block needs: {}.'.format(error))
    if name == 'rios':
        how = 'Build the image again with RIOS in it: "RIOS_VERSION=... scripts/build.sh".'
    else:
        how = ('If it is a package, build the image again with it, as in "PIP_PACKAGES={} scripts/build.sh", or with its '
               'Debian package in EXTRA_PACKAGES. If it is a module of your own, call '
               'cloudpickle.register_pickle_by_value({}) in the main script.'.format(name, name))
    return rios_awsbatch.AWSBatchException('{} in the worker\'s image. {}'.format(error, how))


def main():
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(levelname)s %(message)s')
    logging.getLogger('botocore').setLevel(logging.WARNING)
    env = os.environ
    try:
        channel = rios_awsbatch.Channel(
            env['RIOSRun'], bytes.fromhex(env['RIOSRunKey']), env['RIOSBucket'], env['RIOSInQueue'], env['RIOSOutQueue'],
            env['RIOSRegion'])
    except KeyError as error:
        sys.exit('This is started by AWS Batch for a run of rios_awsbatch, which sets {}.'.format(error))
    rios_awsbatch._channel_of_worker = channel      # STUB of branch G
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    os.set_blocking(_signalled, False)
    keeper = Keeper(channel, int(env['RIOSVisibility']), float(env['RIOSLease']))
    signal.set_wakeup_fd(_signalled)
    worker = Worker(channel, keeper, float(env.get('RIOS_NOMSG_TIMEOUT') or NOMSG_TIMEOUT))
    try:
        wrong = rios_awsbatch.mismatch(json.loads(env['RIOSVersions']), rios_awsbatch.versions())
        if wrong:
            worker._say('hello', versions=rios_awsbatch.versions())
            sys.exit(wrong)
        worker.run()
    except AWS_ERRORS as error:
        worker._fail(error)


if __name__ == '__main__':
    main()
