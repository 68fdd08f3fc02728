#!/usr/bin/env python3
"""
What runs inside each AWS Batch job: takes calls from the in queue of one run, has them computed, and puts the
results on its out queue. The main script (see rios_awsbatch.py) gives it everything in the environment:

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
import functools
import importlib
import io
import json
import logging
import math
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

AHEAD_SECONDS = 0.15    # fetch the next call when there is less work than this at hand, ...
HOLD_SECONDS = 1.0      # ... and give it back if it would wait for so much longer
FLUSH_SECONDS = 5       # how long a finished call may wait for others to be deleted together
BLOBS = 8               # functions and shared data that a computer keeps
TAMPERED = 'what it needs was tampered with on its way'
OUTPUT_LINES = 20       # of what a call prints, to be sent home, ...
OUTPUT_CHARS = 10000    # ... and how much of it in all
EXIT_AGAIN = 128 + signal.SIGTERM       # batch.yaml has Batch start such a job again

log = logging.getLogger('worker')


# ---- The computer: a process that runs the user's functions ---------------------------------------------

class Computer:
    """
    Reads calls from a pipe, and writes results to it. It knows nothing of AWS.

    Every call unpickles its function anew, so none sees what another one did to it.
    """
    def __init__(self, pipe):
        self.pipe, self.pid = pipe, os.getpid()
        self.output = Tee(sys.stdout)
        self.space, self.set = {}, {}       # globals of the initializer, and those that it has set

    def run(self):
        if os.environ.get('RIOSOutput'):
            sys.stdout = self.output
        for name in os.environ.get('RIOSModules', '').split():      # what the first call will import
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self.pipe.send(('ready', b'', ()))
        call = self.pipe.recv()         # now the worker listens
        try:
            self.initialize()
        except BaseException as error:
            return self.pipe.send(('broken', explained(error, 'The initializer')[1], ()))
        while True:
            self.pipe.send((*self.compute(*call), self.output.take()))
            call = None
            call = self.pipe.recv()

    def initialize(self):
        """Call the initializer; what it has set of the script's globals is there for every call."""
        if os.environ.get('RIOSInitializer'):
            initializer, initargs = pickle.loads(self.blob(os.environ['RIOSInitializer']))
            self.space = globals_of(initializer)
            before = dict(self.space)
            initializer(*initargs)
            self.set = {name: value for name, value in self.space.items()
                        if name not in before or before[name] is not value}

    @functools.lru_cache(maxsize=BLOBS)
    def blob(self, digest):
        """A function or shared data, which the worker fetches once."""
        self.pipe.send(('want', digest, ()))
        return self.pipe.recv()

    def compute(self, header, payload):
        """Run one call: ('result' or 'error', a pickle)."""
        import cloudpickle
        label, paths = header['label'], []
        try:
            if header['gdal']:
                from osgeo import gdal
                gdal.UseExceptions()
            payload = io.BytesIO(payload)       # a small function comes before its arguments
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
                raise rios_awsbatch.AWSBatchException(
                    f'The result of {label}, a {type(result).__name__}, cannot be pickled, so it cannot '
                    f'travel to the main script: {rios_awsbatch._told(error)}. Return arrays, numbers and '
                    'text; open files and GDAL datasets stay in the worker.') from error
        except BaseException as error:          # sys.exit() in the user's function included
            if os.getpid() != self.pid:         # a fork ends with it, as in any script
                raise
            return 'error', explained(error, label, paths)[0]


class Tee:
    """Standard output, whose end is kept for the main script."""
    def __init__(self, stream):
        self.stream, self.end = stream, ''

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.end = (self.end + text)[-OUTPUT_CHARS:]
        return self.stream.write(text)

    def take(self):
        lines, self.end = self.end.split('\n'), ''
        return [line for line in lines if line][-OUTPUT_LINES:]


def globals_of(function):
    """The globals of whatever function is behind a callable (dict)."""
    for _ in range(9):
        if hasattr(function, '__globals__'):
            return function.__globals__
        function = getattr(function, 'func', None) or type(function).__call__
    return {}


def explained(error, label, paths=()):
    """An exception for the main script, with what to do about it: a pickle, and its traceback (str)."""
    told, advice = rios_awsbatch._told, what_to_do(error, label)
    if advice:
        cause, error = error, rios_awsbatch.AWSBatchException(advice)
        error.__cause__ = cause
    try:
        text = ''.join(traceback.format_exception(error))
    except Exception:                   # in code of the exception
        text = ''.join(traceback.format_tb(error.__traceback__)) + told(error) + '\n'
    hint = missing_file(error, paths)
    if hint:
        text += hint + '\n'
        if hasattr(error, 'add_note'):      # since Python 3.11
            error.add_note(hint)
    print(f'{label} failed:\n{text}', file=sys.stderr, flush=True)
    with contextlib.suppress(BaseException):
        data = rios_awsbatch.dumps((error, text))
        if isinstance(pickle.loads(data)[0], BaseException):    # not each can be unpickled
            return data, text
    plain = rios_awsbatch.AWSBatchException(f'{label} raised {told(error)}')
    return rios_awsbatch.dumps((plain, text)), text


def what_to_do(error, label):
    """A sentence for an exception that says too little of its cause; None for any other."""
    if isinstance(error, MemoryError):
        return (f'The worker had not enough memory for {label}. Use smaller blocks, or give workers more '
                'with "scripts/modify.sh --mem".')
    if not isinstance(error, ImportError):
        return None
    told, name = rios_awsbatch._told(error), str(error.name or '').partition('.')[0]
    if not isinstance(error, ModuleNotFoundError) or not name:
        return f'The worker cannot import what the block needs: {told}.'
    if name == 'rios':
        how = 'Build the image again with RIOS in it: "RIOS_VERSION=... scripts/build.sh".'
    else:
        how = (f'If it is a package, build the image again with it, as in "PIP_PACKAGES={name} '
               'scripts/build.sh" or with its Debian package in EXTRA_PACKAGES. If it is a module of your '
               f'own, call cloudpickle.register_pickle_by_value({name}) in the main script.')
    return f'{told} in the worker\'s image. {how}'


def missing_file(error, paths):
    """A sentence for a file, maybe one of these, that the worker cannot reach; '' for any other error."""
    text, hint = rios_awsbatch._told(error), ''
    if ('/vsi' in text or 's3:' in text) and any(word in text for word in (
            '403', 'AccessDenied', 'Access Denied', 'not authorized', '404', 'NoSuchKey', 'not recognized',
            'does not exist', 'No such file')):
        hint = ('The worker cannot read it: the name is wrong, or its role may not read that bucket. '
                '"scripts/modify.sh --readbucket" (or --writebucket) allows it.')
    elif isinstance(error, FileNotFoundError) or 'No such file' in text or 'in the file system' in text:
        hint = ('The worker has no such file: it runs on another computer, which has none of yours. Put it '
                'on S3 and open it as /vsis3/BUCKET/NAME, or read it in the main script and pass the array.')
    return f'{", ".join(paths)}: {hint}' if hint and paths else hint


# ---- The worker ---------------------------------------------------------------------------------------

class Task:
    """A call that this worker has taken, and the header of its answer."""
    def __init__(self, header, message):
        self.header, self.message, self.receipt = header, message, message['ReceiptHandle']
        self.payload = b''              # the arguments, and then the result
        self.answer = {'id': header['id'], 'tries': 0, 'received': time.time()}


class Worker:
    """Has calls computed, one at a time, until there are no more: `env` says for which run."""
    def __init__(self, env, process, pipe):
        self.channel = rios_awsbatch.Channel(
            env['RIOSRun'], bytes.fromhex(env['RIOSRunKey']), env['RIOSBucket'], env['RIOSInQueue'],
            env['RIOSOutQueue'], env['RIOSRegion'])
        self.process, self.pipe, self.memory_kills = process, pipe, 0       # the computer
        self.idle = float(env.get('RIOS_NOMSG_TIMEOUT') or 3600)
        self.visibility, self.lease = int(env['RIOSVisibility']), float(env['RIOSLease'])
        self.tries, self.receives = map(int, env['RIOSTries'].split())
        self.number = str(int(env['RIOSFirst']) + int(env.get('AWS_BATCH_JOB_ARRAY_INDEX', 0)))
        self.held = set()                       # receipts of the calls in hand
        self.outbox = rios_awsbatch.Mailbox()   # tasks that are answered; None is the end
        self.changed = threading.Condition()    # of what follows here
        self.ready = collections.deque()        # tasks whose turn comes
        self.current = self.started = None      # the task that is computed, and since when
        self.stopping = False                   # whether no more calls are fetched
        self.pace = math.inf                    # seconds that a call has taken of late
        self.download = 0.0                     # seconds that its arguments have taken of late

    def run(self):
        """Work until there is no more to do."""
        self.pipe.poll(None)                    # the computer is ready, or has died
        wrong = rios_awsbatch.mismatch(json.loads(os.environ['RIOSVersions']), rios_awsbatch.versions())
        self._say('refused' if wrong else 'hello', text=wrong, start=time.time())
        if wrong:
            raise rios_awsbatch.AWSBatchException(wrong)
        if self.idle < self.visibility:
            self._break_off(f'RIOS_NOMSG_TIMEOUT ({self.idle:g} s) is below the visibility time-out of the '
                            f'queue, {self.visibility} s. "scripts/modify.sh --idletimeout" raises it.')
        threads = [threading.Thread(target=guarded, args=(loop,), daemon=True)
                   for loop in (self._send_loop, self._fetch_loop, self._hold_loop, self._lease_loop)]
        for thread in threads:
            thread.start()
        try:
            while self._next():
                self._compute(self.current)
            self.outbox.put(None)
            threads[0].join()
        finally:                                # on SIGTERM too
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.outbox.put(None)
            threads[0].join(5)
            self.channel.hide(list(self.held), 0)       # what is not answered is given back
        self._say('bye', requests=dict(self.channel.requests))

    def _next(self):
        """Wait for the next call (Task); None if there are no more."""
        with self.changed:
            self.changed.wait_for(lambda: self.ready or self.stopping)
            if self.ready:
                self.current, self.started = self.ready.popleft(), time.monotonic()
            return self.current

    def _compute(self, task):
        """Have one call computed, and its result or its exception sent."""
        label, answer = task.header['label'], task.answer
        answer['started'] = time.time()
        while 'kind' not in answer:
            answer['tries'] += 1
            try:
                answer['kind'], task.payload = self._ask_computer(task)
                break
            except (EOFError, OSError):
                how = how_it_ended(self.process.wait(), out_of_memory() > self.memory_kills)
            except rios_awsbatch.Refused as refused:    # the function
                how = f'{TAMPERED} ({refused})'
            self._say('note', text=f'{label}, try {answer["tries"]} of {self.tries}: {how}.')
            if answer['tries'] == self.tries:
                answer.update(kind='lost', text=how)
                task.payload = b''
            with contextlib.suppress(OSError):          # what it has left behind
                os.killpg(self.process.pid, signal.SIGKILL)
            self.pipe.close()
            self.process, self.pipe = start_computer()
        answer['computed'] = time.time()
        took = time.monotonic() - self.started
        task.message = None             # it is as large as the arguments
        self.outbox.put(task)
        with self.changed:
            self.pace = took if self.pace == math.inf else 0.7 * self.pace + 0.3 * took
            self.current = None
            self.changed.notify_all()

    def _ask_computer(self, task):
        """What the computer says of a call: ('result' or 'error', a pickle); EOFError, OSError if it dies."""
        self.pipe.send((task.header, task.payload))
        self.memory_kills = out_of_memory()
        while True:
            while not self.pipe.poll(0.2):      # what it has left running may hold the pipe open
                if self.process.poll() is not None and not self.pipe.poll(0):
                    raise EOFError
            kind, data, task.answer['output'] = self.pipe.recv()
            if kind == 'want':
                self.pipe.send(self.channel.fetch(self.channel.blob(data), data))
            elif kind == 'broken':
                self._break_off('A worker\'s initializer failed:\n' + data)
            elif kind != 'ready':
                return kind, data

    def _break_off(self, text):
        self._say('broken', text=text)
        raise rios_awsbatch.AWSBatchException(text)

    def _fetch_loop(self):
        """Have the next call at hand when the current one ends; sooner, an idle worker could have it."""
        last = time.monotonic()
        while not self.stopping:
            surplus = []
            with self.changed:
                ahead, left = AHEAD_SECONDS + self.download, sum(self.pace for _ in self.ready)
                busy = bool(self.current or self.ready)
                last = time.monotonic() if busy else last
                if self.current:        # one that is late is expected to be so for as long again
                    left += abs(self.started + self.pace - time.monotonic())
                    if self.ready and left - self.pace > ahead + HOLD_SECONDS:
                        surplus = [self.ready.pop().message]
                if left >= ahead and not surplus:
                    self.changed.wait(min(left - ahead, HOLD_SECONDS / 4))
            self._give_back(surplus)
            if left >= ahead:
                continue
            count = max(1, min(rios_awsbatch.BATCH_ENTRIES, int((ahead - left) / self.pace)))
            wait = 1 if busy else int(min(rios_awsbatch.LONG_POLL_SECONDS, self.idle))
            messages = self.channel.receive(self.channel.in_queue, wait, count)
            self.held.update(message['ReceiptHandle'] for message in messages)
            for message in messages:
                self._take(message)
            if not messages and time.monotonic() - last > self.idle:
                log.info('No message for %d s: exiting', self.idle)
                self.stopping = True
        with self.changed:
            self.changed.notify_all()

    def _take(self, message):
        """Make a task of a message."""
        try:
            header = self.channel.open('worker', message)
        except rios_awsbatch.Refused as refused:
            log.warning('A message was refused: %s', refused)
            return self._forget([message['ReceiptHandle']])
        if header['kind'] == 'stop':
            if self.stopping:           # this one is for another worker
                return self._give_back([message])
            self.stopping = True
            return self._forget([message['ReceiptHandle']])
        task = Task(header, message)
        received = int(message['Attributes']['ApproximateReceiveCount'])
        why = 'its worker was gone before it had answered' if received > self.receives else ''
        try:
            task.payload = self.channel.payload(header, message)
        except rios_awsbatch.Refused as refused:
            why = f'{TAMPERED} ({refused})'
        if why:
            log.error('%s is given up: %s', header['label'], why)
            task.answer.update(kind='lost', tries=max(1, received - 1), text=why)
            task.payload = b''
            return self.outbox.put(task)
        task.answer['downloaded'] = time.time()
        with self.changed:
            self.download += 0.3 * (task.answer['downloaded'] - task.answer['received'] - self.download)
            self.ready.append(task)
            self.changed.notify_all()

    def _give_back(self, messages):
        """Let other workers have them."""
        self.channel.give_back(messages)
        self.held.difference_update(message['ReceiptHandle'] for message in messages)

    def _forget(self, receipts):
        self.channel.delete(self.channel.in_queue, receipts)
        self.held.difference_update(receipts)

    def _hold_loop(self):
        """Keep the calls in hand from being given to others."""
        while True:
            try:
                self.channel.hide(list(self.held), self.visibility)
            except rios_awsbatch.AWS_ERRORS as error:
                log.warning('Could not keep the calls in hand: %s', error)
            time.sleep(self.visibility / 3)

    def _lease_loop(self):
        """See whether the main script lives: it has renewed the lease lately, by the clock of S3 alone."""
        while True:
            time.sleep(self.lease / 4)
            try:
                head = self.channel.s3.head_object(
                    Bucket=self.channel.bucket, Key=self.channel.folder + 'lease')
                now = email.utils.parsedate_to_datetime(head['ResponseMetadata']['HTTPHeaders']['date'])
                alive = (now - head['LastModified']).total_seconds() < self.lease
            except rios_awsbatch.AWS_ERRORS as error:
                alive = not rios_awsbatch.is_one_of(error, rios_awsbatch._NO_OBJECT)
            if not alive:
                raise rios_awsbatch.AWSBatchException(
                    f'The lease was not renewed for {self.lease:g} s, so the main script is dead')

    def _send_loop(self):
        """Send results, as many in one request as there are; only then delete their calls."""
        answered, since, going = [], time.monotonic(), True
        while going:
            tasks = []
            with contextlib.suppress(queue.Empty):
                tasks.append(self.outbox.get(timeout=FLUSH_SECONDS if answered else None))
                while len(tasks) < rios_awsbatch.BATCH_ENTRIES:
                    tasks.append(self.outbox.get(0))
            going = None not in tasks
            tasks = [task for task in tasks if task]
            self.channel.send(self.channel.out_queue, [
                self._seal(dict(task.answer, uploaded=time.time()), task.payload) for task in tasks])
            answered += [task.receipt for task in tasks]
            for task in tasks:          # not where the next call would wait for it
                log.info('%s of %s', task.answer['kind'].capitalize(), task.header['label'])
            late = time.monotonic() - since > FLUSH_SECONDS
            if late or not going or len(answered) >= rios_awsbatch.BATCH_ENTRIES:
                self._forget(answered)
                answered, since = [], time.monotonic()

    def _say(self, kind, **more):
        self.channel.send(self.channel.out_queue, [self._seal(dict(more, kind=kind))])

    def _seal(self, header, payload=b''):
        return self.channel.seal('main', dict(header, worker=self.number), payload)[0]


def guarded(work):
    """Do it, and end the worker if it fails. What it held comes back by itself after RIOSVisibility s."""
    try:
        return work()
    except SystemExit as end:
        log.warning('Asked to end')
        status = end.code
    except BaseException as error:
        gone = rios_awsbatch.is_one_of(error, rios_awsbatch._NO_QUEUE)       # the run has ended
        status = 0 if gone else EXIT_AGAIN if rios_awsbatch.is_temporary(error) else 1
        if isinstance(error, rios_awsbatch.AWS_ERRORS):
            error = rios_awsbatch.explain(error, 'working for a run')
        log.error('%s', error, exc_info=not isinstance(error, rios_awsbatch.AWSBatchException))
    os._exit(status)


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
    if status >= 0:
        return f'the process that computed it ended with exit code {status}'
    name = {each: each.name for each in signal.Signals}.get(-status, f'signal {-status}')
    crash = name in ('SIGSEGV', 'SIGBUS', 'SIGABRT', 'SIGILL', 'SIGFPE')
    return f'the process that computed it was ended by {name}{" (a crash in compiled code)" * crash}'


def main():
    global rios_awsbatch
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(levelname)s %(message)s')
    logging.getLogger('botocore').setLevel(logging.WARNING)
    if 'RIOSRun' not in os.environ:
        sys.exit('This image computes blocks for rios_awsbatch, whose main script sets RIOSRun. If yours is '
                 'a script for RIOS, "import rios_awsbatch" is missing at its top.')
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_AGAIN))
    computer = start_computer()
    import rios_awsbatch                # meanwhile
    guarded(lambda: Worker(os.environ, *computer).run())
    os._exit(0)                 # whatever the user's functions have left running


def compute(fileno):
    global rios_awsbatch
    global shared                       # what _Run.share() has stored, for rios_awsbatch._shared()
    os.setpgid(0, 0)                    # so that what it leaves behind can be ended with it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError), open('/proc/self/oom_score_adj', 'w', encoding='ascii') as file:
        file.write('1000')              # where memory is short it is this process that goes
    import rios_awsbatch                # now, as nothing may be there to import it with after a call
    computer = Computer(multiprocessing.connection.Connection(int(fileno)))
    shared = computer.blob
    with contextlib.suppress(EOFError, ConnectionError):        # the worker has ended
        computer.run()


if __name__ == '__main__':
    compute(sys.argv[2]) if sys.argv[1:2] == ['compute'] else main()
