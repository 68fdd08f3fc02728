#!/usr/bin/env python3
"""
What runs inside each AWS Batch job: takes calls from the in queue of one run, has them computed, and puts the
results on its out queue.

The main script (see rios_awsbatch.py) starts it, and gives it everything in the environment:

    RIOSBucket, RIOSInQueue, RIOSOutQueue   where calls come from and results go to
    RIOSRun, RIOSRunKey, RIOSFirst          the run, the key of its messages, the job's first worker
    RIOSRegion, RIOSVersions, RIOSModules   of the main script
    RIOSLease, RIOSVisibility, RIOSTries    LEASE_SECONDS, VISIBILITY_SECONDS, and MAX_TRIES with MAX_RECEIVES
    RIOSInitializer, RIOSOutput             what the computer calls first; whether print() is sent home
    RIOS_NOMSG_TIMEOUT                      exit when nothing came for so many seconds

There are two processes. The worker talks to AWS: it fetches the next call in time, keeps the calls in hand
hidden from other workers, and sends results. The computer runs the user's function, and nothing of ours is in
its way: no thread, no signal handler. So a function may use signals, forks and threads, may hold the
interpreter lock for hours, or crash: then the worker knows which call it was, and starts another computer.

It ends when the main script says so (a 'stop' message), when its queue is deleted, when nothing came for
RIOS_NOMSG_TIMEOUT, when the lease of the run was not renewed (the main script is dead), and on SIGTERM (Batch
ends the job, or takes the instance away), when it first gives its calls back.
"""
# MIT licence, see the file LICENSE.

import collections
import contextlib
import email.utils
import importlib
import io
import json
import logging
import multiprocessing.connection
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback

NOMSG_TIMEOUT = 3600    # seconds, where the environment does not say
AHEAD_SECONDS = 0.15    # fetch the next call when there is less work than this at hand, ...
HOLD_SECONDS = 1.0      # ... and give it back if it had to wait for so long
FLUSH_SECONDS = 5       # how long a finished call may wait for others to be deleted together
BLOBS = 8               # functions and shared data that a computer keeps
OUTPUT_LINES = 20       # of what a call prints, to be sent home
EXIT_TERMINATED = 128 + signal.SIGTERM      # batch.yaml has Batch start such a job again, ...
EXIT_FAILED = 1                             # ... but not this one

log = logging.getLogger('worker')


# ---------------------------------------------------------------------------------------------
# The computer: a process that runs the user's functions
# ---------------------------------------------------------------------------------------------

class Computer:
    """
    Reads calls from a pipe, and writes results to it. It knows nothing of AWS.

    Every call unpickles its function anew, so none sees what another one did to it.
    """
    def __init__(self, pipe):
        self.pipe, self.pid = pipe, os.getpid()
        self.blobs = collections.OrderedDict()
        self.space, self.set = {}, {}       # globals of the initializer, and those that it has set

    def run(self):
        if os.environ.get('RIOSOutput'):
            sys.stdout = self.output = Tee(sys.stdout)
        for name in os.environ.get('RIOSModules', '').split():      # what the first call will import
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self.pipe.send(('ready', b'', ()))
        call = self.pipe.recv()         # now the worker listens
        if os.environ.get('RIOSInitializer'):
            try:
                self.initialize()
            except BaseException as error:
                self.pipe.send(('broken', traceback_of(error), ()))
                return
        while True:
            kind, data = self.compute(*call)
            call = None
            self.pipe.send((kind, data, self.output.take() if os.environ.get('RIOSOutput') else ()))
            data = None
            call = self.pipe.recv()

    def initialize(self):
        """Call the initializer; what it has set of the script's globals is there for every call."""
        initializer, initargs = pickle.loads(self.blob(os.environ['RIOSInitializer']))
        self.space = globals_of(initializer)
        before = dict(self.space)
        initializer(*initargs)
        self.set = {name: value for name, value in self.space.items()
                    if name not in before or before[name] is not value}

    def blob(self, digest):
        """A function or shared data, which the worker fetches once."""
        if digest not in self.blobs:
            self.pipe.send(('want', digest, ()))
            data = self.pipe.recv()
            if isinstance(data, Exception):
                raise data
            self.blobs[digest] = data
            if len(self.blobs) > BLOBS:
                self.blobs.popitem(last=False)
        self.blobs.move_to_end(digest)
        return self.blobs[digest]

    def compute(self, header, payload):
        """Run one call: ('result' or 'error', a pickle)."""
        import cloudpickle
        label, paths = header['label'], []
        try:
            if header['gdal']:
                from osgeo import gdal
                gdal.UseExceptions()
            payload = io.BytesIO(payload)           # a small function comes before its arguments
            function = pickle.loads(self.blob(header['fn'])) if header['fn'] else pickle.load(payload)
            args, kwargs = pickle.load(payload)
            paths = [arg for arg in args if type(arg) is str]
            if self.set and globals_of(function).get('__name__') == self.space.get('__name__'):
                globals_of(function).update(self.set)       # as if both were of one module here too
            result = function(*args, **kwargs)
            if os.getpid() != self.pid:         # a fork that came back from the function
                os._exit(0)
            function = args = kwargs = None
            try:
                return 'result', cloudpickle.dumps(result, protocol=5)
            except BaseException as error:
                raise problem(
                    'The result of {}, a {}, cannot be pickled, so it cannot travel to the main script: {}. '
                    'Return arrays, numbers and text; open files and GDAL datasets stay in the '
                    'worker.'.format(label, type(result).__name__, told(error))) from error
        except BaseException as error:      # sys.exit() in the user's function included
            if os.getpid() != self.pid:     # a fork ends with it, as in any script
                raise
            return 'error', self.pickled_error(label, error, paths)

    @staticmethod
    def pickled_error(label, error, paths):
        import cloudpickle
        explained = None
        if isinstance(error, ImportError):
            explained = missing_module(error)
        elif isinstance(error, MemoryError):
            explained = problem('The worker had not enough memory for {}. Use smaller blocks, or give '
                                'workers more with "scripts/modify.sh --mem".'.format(label))
        if explained is not None:
            explained.__cause__ = error
            error = explained
        text = traceback_of(error)
        hint = missing_file(error, paths)
        if hint:
            text += hint + '\n'
            if hasattr(error, 'add_note'):      # since Python 3.11
                error.add_note(hint)
        print('{} failed:\n{}'.format(label, text), file=sys.stderr, flush=True)
        try:
            data = cloudpickle.dumps((error, text), protocol=5)
            # Not every exception that can be pickled can be unpickled.
            if isinstance(pickle.loads(data)[0], BaseException):
                return data
        except BaseException:
            pass
        return cloudpickle.dumps((problem('{} raised {}'.format(label, told(error))), text), protocol=5)


class Tee:
    """Standard output whose last lines are kept for the main script."""
    def __init__(self, stream):
        self.stream, self.lines, self.rest = stream, collections.deque(maxlen=OUTPUT_LINES), ''

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        *lines, self.rest = (self.rest + text)[-10000:].split('\n')
        self.lines.extend(line[:500] for line in lines)
        return self.stream.write(text)

    def take(self):
        lines = list(self.lines) + ([self.rest[:500]] if self.rest else [])
        self.lines.clear()
        self.rest = ''
        return lines


def globals_of(function):
    """The globals of whatever function is behind a callable (dict)."""
    for _ in range(9):
        if hasattr(function, '__globals__'):
            return function.__globals__
        function = (getattr(function, 'func', None) or getattr(function, '__func__', None) or
                    type(function).__call__)
    return {}


def shared(digest):
    """What AWSBatchExecutor.share() has stored, for rios_awsbatch.shared()."""
    return computer.blob(digest)


def problem(text):
    """An AWSBatchException. Its module takes a while to import, so not before it is needed."""
    import rios_awsbatch
    return rios_awsbatch.AWSBatchException(text)


def told(error):
    """Type and text of any exception, also of one whose __str__ fails."""
    try:
        return '{}: {}'.format(type(error).__name__, error)
    except Exception:
        return type(error).__name__


def traceback_of(error):
    try:
        return ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        return ''.join(traceback.format_tb(error.__traceback__)) + told(error) + '\n'


def missing_module(error):
    """A sentence for a module that the image lacks."""
    name = (getattr(error, 'name', None) or '').partition('.')[0]
    if not isinstance(error, ModuleNotFoundError) or not name:
        return problem('The worker cannot import what the block needs: {}.'.format(told(error)))
    if name == 'rios':
        how = 'Build the image again with RIOS in it: "RIOS_VERSION=... scripts/build.sh".'
    else:
        how = ('If it is a package, build the image again with it, as in "PIP_PACKAGES={} scripts/build.sh", '
               'or with its Debian package in EXTRA_PACKAGES. If it is a module of your own, call '
               'cloudpickle.register_pickle_by_value({}) in the main script.'.format(name, name))
    return problem('{} in the worker\'s image. {}'.format(error, how))


def missing_file(error, paths):
    """A sentence for a file, maybe one of these, that the worker cannot reach; '' for any other error."""
    text, hint = told(error), ''
    if ('/vsi' in text or 's3:' in text) and any(word in text for word in (
            '403', 'AccessDenied', 'Access Denied', 'not authorized', '404', 'NoSuchKey', 'not recognized',
            'does not exist', 'No such file')):
        hint = ('The worker cannot read it: the name is wrong, or its role may not read that bucket. '
                '"scripts/modify.sh --readbucket" (or --writebucket) allows it.')
    elif isinstance(error, FileNotFoundError) or 'No such file' in text or 'in the file system' in text:
        hint = ('The worker has no such file: it runs on another computer, which has none of yours. Put it '
                'on S3 and open it as /vsis3/BUCKET/NAME, or read it in the main script and pass the array.')
    return '{}: {}'.format(', '.join(paths), hint) if hint and paths else hint


# ---------------------------------------------------------------------------------------------
# The worker
# ---------------------------------------------------------------------------------------------

class Task:
    """A call that this worker has taken."""
    def __init__(self, header, message):
        self.header, self.message = header, message
        self.receipt = message['ReceiptHandle']
        self.payload, self.tries, self.output = None, 0, ()
        self.times = {'received': time.time()}
        self.held_since = time.monotonic()


class Terminated(BaseException):
    """SIGTERM: Batch ends the job, or the instance goes."""


class Worker:
    """
    Has calls computed, one at a time, until there are no more.

    Args:
        channel (rios_awsbatch.Channel): of the run.
        computer (subprocess.Popen, Connection): as :func:`start_computer` gives it.
        env (dict): the environment.
    """
    def __init__(self, channel, computer, env):
        self.channel, self.process, self.pipe = channel, *computer
        self.idle = float(env.get('RIOS_NOMSG_TIMEOUT') or NOMSG_TIMEOUT)
        self.visibility, self.lease = int(env['RIOSVisibility']), float(env['RIOSLease'])
        self.most_tries, self.most_receives = map(int, env['RIOSTries'].split())
        self.number = str(int(env['RIOSFirst']) + int(env.get('AWS_BATCH_JOB_ARRAY_INDEX', 0)))
        self.changed = threading.Condition()    # of what follows here
        self.held = {}                          # receipts of the calls in hand
        self.ready = collections.deque()        # tasks whose turn comes
        self.current = self.started = None      # the task that is computed, and since when
        self.stopping = None                    # why no more calls are fetched
        self.pace = None                        # seconds that a call has taken of late
        self.download = 0.0                     # seconds that its arguments have taken of late
        self.outbox = queue.Queue()
        self.sending = threading.Thread(target=self._guarded, args=(self._send_loop,), daemon=True)

    # The main thread ---------------------------------------------------------------------------

    def run(self):
        """Work until there is no more to do."""
        self.sending.start()
        for loop in (self._fetch_loop, self._hold_loop):
            threading.Thread(target=self._guarded, args=(loop,), daemon=True).start()
        while True:
            with self.changed:
                self.current = None
                self.changed.notify_all()
                self.changed.wait_for(lambda: self.ready or self.stopping)
                if not self.ready:
                    break
                task = self.current = self.ready.popleft()
                self.started = time.monotonic()
                self.changed.notify_all()
            self._compute(task)
        self.outbox.put(None)
        self.sending.join()
        self._say('bye', why=self.stopping, requests=dict(self.channel.requests))

    def _say(self, kind, **more):
        message, _ = self.channel.seal('main', dict(more, kind=kind, worker=self.number))
        self.channel.send(self.channel.out_queue, [message])

    def _compute(self, task):
        """Have one call computed, and its result or its exception sent."""
        label = task.header['label']
        task.times['started'] = time.time()
        if isinstance(task.payload, rios_awsbatch.Refused):
            kind, data = 'error', self._error(
                'The arguments of {} were tampered with on their way: {}.'.format(label, task.payload))
        else:
            kind, data = self._ask_computer(task)
            while kind == 'died' and task.tries < self.most_tries:
                kind, data = self._ask_computer(task)
        task.times['computed'] = time.time()
        if kind == 'died':
            kind, task.header['text'], data = 'lost', data, b''
        took = time.monotonic() - self.started
        with self.changed:
            self.pace = took if self.pace is None else 0.7 * self.pace + 0.3 * took
        task.payload = task.message = None
        log.info('%s of %s after %.3f s', kind.capitalize(), label, took)
        self.outbox.put((task, kind, data))

    def _ask_computer(self, task):
        """What the computer says of a call: ('result' or 'error', a pickle), or ('died', how)."""
        label = task.header['label']
        task.tries += 1
        memory_kills = out_of_memory()
        try:
            self.pipe.send((task.header, task.payload))
            while True:
                while not self.pipe.poll(0.2):
                    if self.process.poll() is not None and not self.pipe.poll(0):
                        raise EOFError
                kind, data, task.output = self.pipe.recv()
                if kind == 'broken':
                    self._say('broken', text='A worker\'s initializer failed:\n' + data)
                    os._exit(EXIT_FAILED)
                if kind in ('result', 'error'):
                    return kind, data
                if kind == 'ready':
                    continue
                try:
                    self.pipe.send(self.channel.fetch(self.channel.blob(data), data))
                except rios_awsbatch.Refused as refused:
                    self.pipe.send(rios_awsbatch.AWSBatchException(
                        'The function of {} was tampered with on its way: {}.'.format(label, refused)))
        except (EOFError, OSError):
            how = how_it_ended(self.process.wait(), out_of_memory() > memory_kills)
        log.warning('%s: %s', label, how)
        self._say('note', text='{}: {}{}.'.format(
            label, how, '' if task.tries >= self.most_tries else '; it is tried again'))
        with contextlib.suppress(OSError):      # what it has left behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self.pipe.close()
        self.process, self.pipe = start_computer()
        return 'died', how

    @staticmethod
    def _error(text):
        error = rios_awsbatch.AWSBatchException(text)
        return rios_awsbatch.dumps((error, text + '\n'))

    # Fetching ----------------------------------------------------------------------------------

    def _fetch_loop(self):
        """
        Have the next call at hand when the current one ends, but not much sooner: a call that waits here
        could be computed by a worker that is idle.
        """
        last = time.monotonic()
        while True:
            count, wait = self._wanted()
            if not count:
                return
            messages = self.channel.receive(self.channel.in_queue, wait, count)
            for message in messages:
                self._take(message)
            if messages or self.current or self.ready:
                last = time.monotonic()
            elif time.monotonic() - last > self.idle:
                log.info('No message for %d s: exiting', self.idle)
                self._stop('idle')

    def _wanted(self):
        """Wait until calls should be fetched: how many at most, and how long to wait for them (s)."""
        with self.changed:
            while not self.stopping:
                ahead = AHEAD_SECONDS + self.download
                if self.current is None and not self.ready:
                    return self._count(ahead), min(rios_awsbatch.LONG_POLL_SECONDS, max(1, int(self.idle)))
                elapsed = time.monotonic() - self.started if self.current else 0
                if self.ready and time.monotonic() - self.ready[0].held_since > HOLD_SECONDS + self.download:
                    self._give_back()
                    continue        # it let go of the lock: the current call may have ended meanwhile
                if self.current and self.pace and elapsed < self.pace + HOLD_SECONDS:
                    left = max(0, self.pace - elapsed) + len(self.ready) * self.pace
                    if left < ahead:
                        return self._count(ahead - left), 1
                    self.changed.wait(left - ahead)
                    continue
                self.changed.wait(HOLD_SECONDS / 4 if self.ready else None)
            return 0, 0

    def _count(self, seconds):
        """How many calls that is."""
        return max(1, min(rios_awsbatch.BATCH_ENTRIES, int(seconds / self.pace) if self.pace else 1))

    def _take(self, message):
        """Make a task of a message."""
        receipt = message['ReceiptHandle']
        self.held[receipt] = True
        try:
            header = self.channel.open('worker', message)
        except rios_awsbatch.Refused as refused:
            log.warning('A message was refused: %s', refused)
            return self._forget([receipt])
        if header['kind'] == 'stop':
            if self.stopping:           # this one is for another worker
                self.channel.give_back([message])
                return self.held.pop(receipt)
            self._forget([receipt])
            return self._stop('stop')
        task = Task(header, message)
        received = int(message['Attributes']['ApproximateReceiveCount'])
        if received > self.most_receives:
            log.error('%s was received %d times before: given up', header['label'], received - 1)
            task.tries, header['text'] = received - 1, 'its worker was gone before it had answered'
            return self.outbox.put((task, 'lost', b''))
        try:
            task.payload = self.channel.payload(header, message)
        except rios_awsbatch.Refused as refused:
            log.warning('The arguments of %s were refused: %s', header['label'], refused)
            task.payload = refused
        task.times['downloaded'] = time.time()
        took = task.times['downloaded'] - task.times['received'] if 'object' in header else 0
        with self.changed:
            self.download = 0.7 * self.download + 0.3 * took
            task.held_since = time.monotonic()
            self.ready.append(task)
            self.changed.notify_all()

    def _stop(self, why):
        with self.changed:
            self.stopping = self.stopping or why
            self.changed.notify_all()

    def _give_back(self):
        """Let other workers have the calls that wait for the end of the current one."""
        tasks = list(self.ready)
        self.ready.clear()
        self.changed.release()
        try:
            for task in tasks:
                self.channel.give_back([task.message])
                self.held.pop(task.receipt, None)
                log.info('Gave %s back', task.header['label'])
        finally:
            self.changed.acquire()

    def _forget(self, receipts):
        self.channel.delete(self.channel.in_queue, receipts)
        for receipt in receipts:
            self.held.pop(receipt, None)

    def _hold_loop(self):
        """Keep the calls in hand from being given to others, and see whether the main script lives."""
        beat = self.visibility / 3
        look = time.monotonic() + self.lease / 4
        while True:
            try:
                if time.monotonic() >= look:
                    look = time.monotonic() + self.lease / 4
                    if not self._main_lives():
                        log.error('The lease was not renewed for %d s, so the main script is dead: exiting',
                                  self.lease)
                        os._exit(EXIT_FAILED)
                self.channel.hide(sorted(self.held.copy()), self.visibility)
            except rios_awsbatch.AWS_ERRORS as error:
                log.warning('Could not keep the calls in hand: %s', error)
            time.sleep(min(beat, self.lease / 4))

    def _main_lives(self):
        """Whether the lease was renewed lately, by the clock of S3 alone."""
        try:
            head = self.channel.s3.head_object(Bucket=self.channel.bucket, Key=self.channel.folder + 'lease')
        except rios_awsbatch.AWS_ERRORS as error:
            if rios_awsbatch.error_code(error) in rios_awsbatch._NO_OBJECT:
                return False
            raise
        now = email.utils.parsedate_to_datetime(head['ResponseMetadata']['HTTPHeaders']['date'])
        return (now - head['LastModified']).total_seconds() < self.lease

    # Sending -----------------------------------------------------------------------------------

    def _send_loop(self):
        """Send results, as many in one request as there are; only then delete their calls."""
        answered, since, item = [], time.monotonic(), ()
        while item is not None:
            messages = []
            with contextlib.suppress(queue.Empty):
                item = ()
                item = self.outbox.get(timeout=FLUSH_SECONDS if answered else None)
                while item is not None:
                    messages.append(self._answer(*item))
                    answered.append(item[0].receipt)
                    item = ()
                    if len(messages) == rios_awsbatch.BATCH_ENTRIES:
                        break
                    item = self.outbox.get_nowait()
            self.channel.send(self.channel.out_queue, messages)
            late = time.monotonic() - since > FLUSH_SECONDS
            if late or item is None or len(answered) >= rios_awsbatch.BATCH_ENTRIES:
                self._forget(answered)
                answered, since = [], time.monotonic()

    def _answer(self, task, kind, payload):
        header = dict(task.times, kind=kind, id=task.header['id'], worker=self.number, tries=task.tries,
                      uploaded=time.time())
        for name, value in (('text', task.header.get('text')), ('output', list(task.output))):
            if value:
                header[name] = value
        return self.channel.seal('main', header, payload)[0]

    # Ending ------------------------------------------------------------------------------------

    def _guarded(self, loop):
        try:
            loop()
        except BaseException as error:
            fail(error)

    def terminate(self):
        """On SIGTERM: give back what is in hand, but send what is computed."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        log.warning('Asked to end: giving the calls in hand back')
        tasks = ([self.current] if self.current and self.current.message else []) + list(self.ready)
        self.channel.hide([task.receipt for task in tasks], 0)
        self.outbox.put(None)
        self.sending.join(5)
        os._exit(EXIT_TERMINATED)


def fail(error):
    """The worker cannot go on. What it held comes back by itself after RIOSVisibility seconds."""
    if rios_awsbatch.error_code(error) in rios_awsbatch._NO_QUEUE:
        log.info('The queues of the run are gone, so the run has ended: exiting')
        os._exit(0)
    of_aws = isinstance(error, rios_awsbatch.AWS_ERRORS)
    log.error('%s', rios_awsbatch.explain(error, 'working for a run') if of_aws else traceback_of(error))
    os._exit(EXIT_TERMINATED if rios_awsbatch.is_temporary(error) else EXIT_FAILED)


def start_computer():
    """Start the process that runs the user's functions: (subprocess.Popen, Connection)."""
    ours, its = multiprocessing.connection.Pipe()
    process = subprocess.Popen([sys.executable, os.path.abspath(__file__), 'compute', str(its.fileno())],
                               stdin=subprocess.DEVNULL, pass_fds=[its.fileno()])
    its.close()
    return process, ours


def out_of_memory():
    """How often the kernel has ended a process of this container because its memory was used up."""
    for path in ('/sys/fs/cgroup/memory.events', '/sys/fs/cgroup/memory/memory.oom_control'):
        with contextlib.suppress(OSError, ValueError), open(path, encoding='ascii') as file:
            return int(dict(line.split() for line in file).get('oom_kill', 0))
    return 0


def how_it_ended(status, no_memory):
    """How a computer ended in the middle of a call, from its status as subprocess has it."""
    if no_memory:
        return 'it needed more memory than its job has (use smaller blocks, or "scripts/modify.sh --mem")'
    if status < 0:
        name = {each: each.name for each in signal.Signals}.get(-status, 'signal {}'.format(-status))
        crash = name in ('SIGSEGV', 'SIGBUS', 'SIGABRT', 'SIGILL', 'SIGFPE')
        return 'the process that computed it was ended by {}{}'.format(
            name, ' (a crash in compiled code)' if crash else '')
    return 'the process that computed it ended with exit code {}'.format(status)


def main():
    global rios_awsbatch
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(levelname)s %(message)s')
    logging.getLogger('botocore').setLevel(logging.WARNING)
    env = os.environ
    if 'RIOSRun' not in env:
        sys.exit('This image computes blocks for rios_awsbatch, whose main script sets RIOSRun. If yours is '
                 'a script for RIOS, "import rios_awsbatch" is missing at its top.')
    started = start_computer()
    import rios_awsbatch                # meanwhile

    def terminate(number, frame):
        raise Terminated
    try:
        signal.signal(signal.SIGTERM, terminate)
        channel = rios_awsbatch.Channel(
            env['RIOSRun'], bytes.fromhex(env['RIOSRunKey']), env['RIOSBucket'], env['RIOSInQueue'],
            env['RIOSOutQueue'], env['RIOSRegion'])
        worker = Worker(channel, started, env)
        worker.pipe.poll(None)              # the computer is ready, or has died
        worker._say('hello', versions=rios_awsbatch.versions(), start=time.time())
        wrong = rios_awsbatch.mismatch(json.loads(env['RIOSVersions']), rios_awsbatch.versions())
        if wrong:
            sys.exit(wrong)
        if worker.idle < worker.visibility:
            wrong = 'RIOS_NOMSG_TIMEOUT ({:g} s) is below the visibility time-out of the queue, {} s.'.format(
                worker.idle, worker.visibility)
            worker._say('broken', text=wrong + ' "scripts/modify.sh --idletimeout" raises it.')
            sys.exit(wrong)
        worker.run()
    except Terminated:
        with contextlib.suppress(Exception):        # it may not even be there yet
            worker.terminate()
        os._exit(EXIT_TERMINATED)
    except rios_awsbatch.AWS_ERRORS as error:
        fail(error)
    os._exit(0)                 # whatever the user's functions have left running


def compute(fileno):
    global computer
    os.setpgid(0, 0)                    # so that what it leaves behind can be ended with it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError), open('/proc/self/oom_score_adj', 'w', encoding='ascii') as file:
        file.write('1000')              # where memory is short it is this process that goes
    computer = Computer(multiprocessing.connection.Connection(int(fileno)))
    with contextlib.suppress(EOFError, ConnectionError):        # the worker has ended
        computer.run()


if __name__ == '__main__':
    compute(sys.argv[2]) if sys.argv[1:2] == ['compute'] else main()
