#!/usr/bin/env python3
"""
What runs inside each AWS Batch job: takes calls from the in queue of one run, has them computed, and puts the
answers on its out queue. For which run, the environment says (JobSettings in rios_awsbatch.py).

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
import gc
import importlib
import io
import logging
import math
import multiprocessing.connection
import multiprocessing.spawn
import os
import pickle
import select
import signal
import socket
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
PIPE_BYTES = 2**20      # a pipe holds no more: 16 pages, of 64 KiB at most
TEXT_CHARS = 50000      # of what ends a run: in JSON, SQS takes so many of any kind
FILES = 20              # names of files that functions have left behind
EXIT_AGAIN = 128 + signal.SIGTERM       # ended from outside: for the run that is no sign of a fault

log = logging.getLogger('worker')


# ---- The computer: a process that runs the user's functions ---------------------------------------------

class Computer:
    """
    Reads calls from a pipe, and writes results to it. It knows nothing of AWS.

    The script's modules live as long as it does. The function of a call, unless it is in one of them, and its
    arguments are unpickled for it.
    """
    def __init__(self, settings, pipe):
        self.settings, self.pipe, self.pid = settings, pipe, os.getpid()
        self.script = rios_awsbatch.script = rios_awsbatch.Script(self.fetch)
        self.switches = {}              # which modules of GDAL raise exceptions in the main script

    def run(self):
        for name in self.settings.modules:          # what the first call will import
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self.pipe.send(('ready', b''))
        call = self.pipe.recv()         # now the worker listens
        try:
            self.initialize(call[0])
        except BaseException as error:
            if os.getpid() != self.pid:         # a fork ends with it, as in any script
                raise
            return self.pipe.send(('broken', explained(error, 'The initializer')[1]))
        while True:
            self.send(self.compute(*call))
            call = None
            call = self.pipe.recv()

    def initialize(self, call):
        if self.settings.initializer:
            self.switch(call.gdal)
            initializer, initargs, _ = self.unpacked(self.fetch(self.settings.initializer))
            initializer(*initargs)
            if os.getpid() != self.pid:         # a fork that came back from it
                os._exit(0)
            self.send(('initialized', b''))
            self.pipe.recv()            # when the worker has read what was printed

    def send(self, answer):
        """Send it after all that was printed."""
        for stream in sys.stdout, sys.stderr:
            with contextlib.suppress(Exception):        # it may be closed, or something else
                stream.flush()
        self.pipe.send(answer)

    def fetch(self, digest):
        """What the main script has stored for all workers (bytes)."""
        self.pipe.send(('want', digest))
        return self.pipe.recv()

    @functools.lru_cache(maxsize=BLOBS)
    def function(self, digest):
        return self.fetch(digest)

    @functools.lru_cache(maxsize=BLOBS)
    def definitions(self, digest):
        return pickle.loads(self.fetch(digest))

    def switch(self, switches):
        """Have GDAL raise exceptions, or not, as the main script has it by now."""
        for name, on in switches.items():
            if on != self.switches.get(name, False):
                gdal = importlib.import_module('osgeo.' + name)
                gdal.UseExceptions() if on else gdal.DontUseExceptions()
                self.switches[name] = on

    def unpacked(self, payload):
        """A function, its args and kwargs, after the script's modules have what these need."""
        payload = io.BytesIO(payload)
        definitions, function = pickle.load(payload)
        self.script.define(*(self.definitions(definitions) if isinstance(definitions, str)
                             else pickle.loads(definitions)))
        self.script.define(*pickle.load(payload))
        function = pickle.loads(self.function(function) if isinstance(function, str) else function)
        return (function, *pickle.load(payload))

    def compute(self, call, payload):
        """Run one call: ('result' or 'error', a pickle)."""
        label, paths = call.label, []
        try:
            self.switch(call.gdal)
            function, args, kwargs = self.unpacked(payload)
            paths = [arg for arg in args if type(arg) is str]
            result = function(*args, **kwargs)
            if os.getpid() != self.pid:         # a fork that came back from the function
                os._exit(0)
            function = args = kwargs = None
            try:
                return 'result', rios_awsbatch.dumps(result)
            except BaseException as error:
                raise rios_awsbatch.unpicklable(
                    error, f'The result of {label}', [(result, 'it')], 'the main script') from error
        except BaseException as error:          # sys.exit() in the user's function included
            if os.getpid() != self.pid:
                raise
            return 'error', explained(error, label, paths)[0]


def explained(error, label, paths=()):
    """An exception for the main script, with what to do about it: a pickle, and its traceback (str)."""
    told, advice = rios_awsbatch.describe, what_to_do(error, label)
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
    with contextlib.suppress(Exception):    # it may be closed, or something else
        print(f'{label} failed:\n{text}', file=sys.stderr, flush=True)
    for travels in error, rios_awsbatch.without_init(error):
        with contextlib.suppress(BaseException):
            data = rios_awsbatch.dumps((travels, text))
            if type(pickle.loads(data)[0]) is type(error):      # not each can be unpickled
                return data, text
    plain = rios_awsbatch.AWSBatchException(f'{label} raised {told(error)}')
    return rios_awsbatch.dumps((plain, text)), text


def what_to_do(error, label):
    """A sentence for an exception that says too little of its cause; None for any other."""
    if isinstance(error, MemoryError):
        return f'The worker had not enough memory for {label}: {rios_awsbatch.MORE_MEMORY}.'
    told = rios_awsbatch.describe(error)
    if isinstance(error, AttributeError) and "Can't get attribute" in told and "<module '__main__'" in told:
        return (f'{told}. It is in your script, but no function that travels names it, only bytes that are '
                'unpickled here: name it in the function that unpickles them, or pass the object itself.')
    if isinstance(error, AttributeError) and "Can't get attribute" in told and '<module' in told:
        return (f'{told}. The worker has another module of that name. If yours is beside the main script, '
                'call cloudpickle.register_pickle_by_value() for it there, or give it a name of its own.')
    if not isinstance(error, ImportError):
        return None
    name = str(error.name or '').partition('.')[0]
    if not isinstance(error, ModuleNotFoundError) or not name:
        return f'The worker cannot import what the block needs: {told}.'
    if name in rios_awsbatch.script.modules:        # it travels, but for what is not imported
        how = f'Import {error.name} at the top of the main script, or build the image with it.'
    elif name == 'rios':
        how = 'Build the image again with RIOS in it: "RIOS_VERSION=... scripts/build.sh".'
    else:
        how = (f'If it is a package, build the image again with it, as in "PIP_PACKAGES={name} '
               'scripts/build.sh" or with its Debian package in EXTRA_PACKAGES. (With scripts/local.sh: '
               f'".venv/bin/pip install {name}".) If it is a module of your own, call '
               f'cloudpickle.register_pickle_by_value({name}) in the main script.')
    return f'{told} in the worker\'s image. {how}'


def missing_file(error, paths):
    """A sentence for a file, maybe one of these, that the worker cannot reach; '' for any other error."""
    text, hint = rios_awsbatch.describe(error), ''
    if isinstance(error, (OSError, RuntimeError)) and ('/vsi' in text or 's3:' in text):
        hint = ('The worker could not read it: the name is wrong, or its role may not read that bucket. '
                '"scripts/modify.sh --readbucket" (or --writebucket) allows it.')
    elif isinstance(error, FileNotFoundError) or 'No such file' in text or 'in the file system' in text:
        hint = ('The worker has no such file: it runs on another computer, which has none of yours. Put it '
                'on S3 and open it as /vsis3/BUCKET/NAME, or read it in the main script and pass the array.')
    return f'{", ".join(paths)}: {hint}' if hint and paths else hint


# ---- The worker ---------------------------------------------------------------------------------------

def work_left(pace, running, waiting):
    """
    Seconds of work that a worker has at hand (float).

    `pace` is what a call has taken of late, `running` how long the current one has been computed (None where
    there is none), `waiting` how many wait for it to end. The current one is expected to take as long as
    calls have of late; if it is late, for as long again as it is late already.
    """
    current = 0 if running is None else abs(pace - running)
    return current + sum(pace for _ in range(waiting))          # pace is infinite at first


def calls_to_fetch(pace, running, waiting, ahead):
    """How many calls to fetch, to have work for `ahead` s; -1 for one that others had better have."""
    if waiting and work_left(pace, running, 0) > ahead + HOLD_SECONDS:
        return -1
    missing = ahead - work_left(pace, running, waiting)
    return max(1, min(rios_awsbatch.BATCH_ENTRIES, int(missing / pace))) if missing > 0 else 0


class Printed:
    """
    What computers, and all that they start, write to standard output and standard error. It goes on to the
    log of the job, and the end of what a call has written to the main script. A thread and take() read it,
    one at a time.
    """
    def __init__(self):
        self.source, self.sink = os.pipe()
        self.lock, self.end = threading.Lock(), b''
        threading.Thread(target=self._pump, daemon=True).start()

    def streams(self):
        """For subprocess.Popen."""
        return {'stdout': self.sink, 'stderr': self.sink}

    def _pump(self):
        while True:
            select.select([self.source], [], [])
            self._read()

    def _read(self):
        """Take in what there is by now. More may come, without an end."""
        with self.lock:
            if select.select([self.source], [], [], 0)[0]:
                data = os.read(self.source, PIPE_BYTES)
                self.end = (self.end + data)[-OUTPUT_CHARS:]
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()

    def take(self):
        """The last lines since this was asked before (list of str)."""
        self._read()
        with self.lock:
            lines, self.end = self.end.decode(errors='replace').splitlines(), b''
        return [line for line in lines if line][-OUTPUT_LINES:]


class Task:
    """A call that this worker has taken, and its answer."""
    def __init__(self, received, worker):
        self.call, self.message, self.receipt = received.said, received.message, received.receipt
        self.payload = b''              # the arguments, and then the result
        self.answer = rios_awsbatch.Message(
            'result', worker=worker, id=self.call.id, tries=0, received=time.time())


class Hands:
    """
    The calls that a worker has taken, until it has answered them.

    The fetching thread takes calls and gives them back, the main thread computes them, and the sending thread
    lets go of them: three threads, so one lock is around all that.
    """
    def __init__(self):
        self.changed = threading.Condition()
        self.held = set()                       # receipts of all of them
        self.ready = collections.deque()        # tasks whose turn comes
        self.current = self.started = None      # the task that is computed, and since when
        self.worked = time.monotonic()          # when the last one was computed
        self.pace = math.inf                    # seconds that a call has taken of late
        self.download = 0.0                     # seconds that its arguments have taken of late
        self.stopping = False                   # no more calls are fetched

    def receipts(self):
        with self.changed:
            return list(self.held)

    def take(self, receipts):
        """These were received, so they are to be hidden from others."""
        with self.changed:
            self.held.update(receipts)

    def let_go(self, receipts):
        with self.changed:
            self.held.difference_update(receipts)

    def add(self, task):
        """A task is ready to be computed."""
        with self.changed:
            took = max(0, task.answer.downloaded - task.answer.received)    # a clock may be set back
            self.download += 0.3 * (took - self.download)
            self.ready.append(task)
            self.changed.notify_all()

    def next(self):
        """Wait for the next task and begin it; None if there are no more."""
        with self.changed:
            self.changed.wait_for(lambda: self.ready or self.stopping)
            if self.ready:
                self.current, self.started = self.ready.popleft(), time.monotonic()
            return self.current

    def done(self):
        """The current task is computed."""
        with self.changed:
            self.worked = time.monotonic()
            took = self.worked - self.started
            self.pace = took if self.pace == math.inf else 0.7 * self.pace + 0.3 * took
            self.current = None
            self.changed.notify_all()

    def stop(self):
        """There are no more calls."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def balance(self):
        """
        Wait until there is something to do: (calls to fetch, task to give back, whether any is here). None
        at the end.
        """
        with self.changed:
            while not self.stopping:
                running = time.monotonic() - self.started if self.current else None
                ahead = AHEAD_SECONDS + self.download
                count = calls_to_fetch(self.pace, running, len(self.ready), ahead)
                if count:
                    surplus = self.ready.pop() if count < 0 else None
                    return count, surplus, bool(self.current or self.ready)
                left = work_left(self.pace, running, len(self.ready))
                self.changed.wait(min(left - ahead, HOLD_SECONDS / 4))
        return None


class Worker:
    """
    Has calls computed, one at a time, until there are no more. The main thread does that; a thread each
    fetches calls, sends answers, keeps calls hidden from other workers, and looks at the lease.
    """
    def __init__(self, settings, index, attempt, process, pipe, printed):
        self.settings, self.attempt, self.printed = settings, attempt, printed
        self.number = str(settings.first + index)
        self.channel = rios_awsbatch.Channel.of(settings)
        self.process, self.pipe, self.memory_kills = process, pipe, 0       # the computer: of the main thread
        self.hands = Hands()
        self.outbox = rios_awsbatch.Mailbox()   # tasks that are answered; None is the end
        self.files = working_folder()           # before any function had it

    def run(self):
        """Work until there is no more to do."""
        self.pipe.poll(None)                    # the computer is ready, or has died
        wrong = rios_awsbatch.mismatch(self.settings.versions, rios_awsbatch.versions())
        if wrong:
            self._say('misfit', text=wrong)
            raise rios_awsbatch.AWSBatchException(wrong)
        self._say('hello', attempt=self.attempt)
        gc.freeze()
        gc.enable()
        idle, visibility = self.settings.idle, self.settings.visibility
        if idle < visibility:
            self._break_off(f'RIOS_NOMSG_TIMEOUT ({idle:g} s) is below the visibility time-out of the queue, '
                            f'{visibility:g} s. "scripts/modify.sh --idletimeout" raises it.')
        threads = [threading.Thread(target=guarded, args=(loop,), daemon=True)
                   for loop in (self._send_loop, self._fetch_loop, self._hold_loop, self._lease_loop)]
        for thread in threads:
            thread.start()
        try:
            while (task := self.hands.next()) is not None:
                self._compute(task)
                del task
            self.outbox.put(None)
            threads[0].join()
        finally:                                # on SIGTERM too
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self.hands.stop()
            self.outbox.put(None)
            threads[1].join(2)      # it may be fetching, and would take again what is given back
            threads[0].join(5)
            self.channel.hide(self.hands.receipts(), 0)     # what is not answered is given back
        self._say('bye', requests=dict(self.channel.requests),
                  files=sorted(working_folder() - self.files)[:FILES])

    def _compute(self, task):
        """Have one call computed, and its result or its exception sent."""
        label, answer, kind = task.call.label, task.answer, None
        answer.started = time.time()
        while kind is None:
            answer.tries += 1
            try:
                kind, task.payload = self._ask_computer(task)
                break
            except rios_awsbatch.AWS_ERRORS:    # some of them are an OSError, too
                raise
            except (EOFError, OSError):
                how = how_it_ended(self.process.wait(), out_of_memory() > self.memory_kills)
            except rios_awsbatch.Refused as refused:    # the function
                how = f'{TAMPERED} ({refused})'
            self._say('note', text=f'{label}, try {answer.tries} of {self.settings.max_tries}: {how}.')
            if answer.tries == self.settings.max_tries:
                kind, answer.text, task.payload = 'lost', how, b''
            self.pipe.close()
            self.process, self.pipe = start_computer(self.printed)
        answer.kind, answer.computed = kind, time.time()
        if self.printed:
            answer.output = self.printed.take()
        task.message = None             # it is as large as the arguments
        self.outbox.put(task)
        self.hands.done()

    def _ask_computer(self, task):
        """What the computer says of a call: ('result' or 'error', a pickle); EOFError, OSError if it dies."""
        self.pipe.send((task.call, task.payload))
        self.memory_kills = out_of_memory()
        while True:
            kind, data = self.pipe.recv()
            if kind == 'want':
                self.pipe.send(self.channel.fetch(self.channel.shared(data), data))
            elif kind == 'broken':
                self._break_off('A worker\'s initializer failed:\n' + data)
            elif kind == 'initialized':     # the call begins now
                began, task.answer.started = task.answer.started, time.time()
                task.answer.initialized = task.answer.started - began
                self._tell_output('the initializer')
                self.pipe.send(None)
            elif kind != 'ready':
                return kind, data

    def _tell_output(self, whose):
        lines = self.printed.take() if self.printed else []
        if lines:
            self._say('note', text='\n'.join([whose + ':', *lines]))

    def _break_off(self, text):
        self._say('broken', text=text[:TEXT_CHARS])
        raise rios_awsbatch.AWSBatchException(text)

    def _fetch_loop(self):
        """Have the next call at hand when the current one ends; sooner, an idle worker could have it."""
        idle = self.settings.idle
        while (to_do := self.hands.balance()) is not None:
            count, surplus, busy = to_do
            if surplus:
                self._give_back([surplus.message])
                continue
            wait = 1 if busy else int(min(rios_awsbatch.LONG_POLL_SECONDS, idle))
            messages = self.channel.receive(self.channel.in_queue, wait, count)
            self.hands.take(message['ReceiptHandle'] for message in messages)
            if self.hands.stopping:     # whoever has said so gives them back
                break
            stops = [message for message in messages if self._take(message)]
            if stops:
                self._forget([stops.pop()['ReceiptHandle']])
                self._give_back(stops)          # the others are for other workers
                # Now: who ends gives back what it holds, and its own would end another one, too.
                self.hands.stop()
            if not messages and not busy and time.monotonic() - self.hands.worked > idle:
                log.info('No message for %d s: exiting', idle)
                self.hands.stop()

    def _take(self, message):
        """Make a task of a message; whether it says that a worker is to end."""
        try:
            received = self.channel.open('worker', message)
        except rios_awsbatch.Refused as refused:
            log.warning('A message was refused: %s', refused)
            self._forget([message['ReceiptHandle']])
            return False
        if received.said.kind == 'stop':
            return True
        task, why = Task(received, self.number), None
        if received.times > self.settings.max_receives:
            why = 'its worker was gone before it had answered'
        try:
            task.payload = self.channel.payload(received)
        except rios_awsbatch.Refused as refused:
            why = f'{TAMPERED} ({refused})'
        if why:
            log.error('%s is given up: %s', task.call.label, why)
            task.answer.kind, task.answer.text, task.payload = 'lost', why, b''
            task.answer.tries = max(1, received.times - 1)
            self.outbox.put(task)
        else:
            task.answer.downloaded = time.time()
            self.hands.add(task)
        return False

    def _give_back(self, messages):
        """Let other workers have them."""
        self.channel.send_anew(messages)
        self.hands.let_go([message['ReceiptHandle'] for message in messages])

    def _forget(self, receipts):
        self.channel.delete(self.channel.in_queue, receipts)
        self.hands.let_go(receipts)

    def _hold_loop(self):
        """Keep the calls in hand from being given to others."""
        while True:
            try:
                self.channel.hide(self.hands.receipts(), int(self.settings.visibility))
            except rios_awsbatch.AWS_ERRORS as error:
                log.warning('Could not keep the calls in hand: %s', error)
            time.sleep(self.settings.visibility / 3)

    def _lease_loop(self):
        """See whether the main script lives: it has renewed the lease lately, by the clock of S3 alone."""
        while True:
            time.sleep(self.settings.lease / 4)
            try:
                head = self.channel.s3.head_object(
                    Bucket=self.channel.bucket, Key=self.channel.folder + 'lease')
                now = email.utils.parsedate_to_datetime(head['ResponseMetadata']['HTTPHeaders']['date'])
                alive = (now - head['LastModified']).total_seconds() < self.settings.lease
            except rios_awsbatch.AWS_ERRORS as error:
                alive = not rios_awsbatch.is_one_of(error, rios_awsbatch.NO_OBJECT)
            if not alive:
                raise rios_awsbatch.AWSBatchException(
                    f'The lease was not renewed for {self.settings.lease:g} s, so the main script is dead')

    def _send_loop(self):
        """Send answers, as many in one request as there are; only then delete their calls."""
        answered, since, going = [], time.monotonic(), True
        while going:
            tasks = self.outbox.take(FLUSH_SECONDS if answered else None, rios_awsbatch.BATCH_ENTRIES)
            going = None not in tasks
            tasks = [task for task in tasks if task]
            self.channel.send(self.channel.out_queue, [
                self.channel.seal(task.answer, task.payload)[0] for task in tasks])
            answered += [task.receipt for task in tasks]
            for task in tasks:          # not where the next call would wait for it
                log.info('%s of %s', task.answer.kind.capitalize(), task.call.label)
            late = time.monotonic() - since > FLUSH_SECONDS
            if late or not going or len(answered) >= rios_awsbatch.BATCH_ENTRIES:
                self._forget(answered)
                answered, since = [], time.monotonic()

    def _say(self, kind, **fields):
        """Tell the main script something that is not an answer."""
        said = rios_awsbatch.Message(kind, worker=self.number, **fields)
        self.channel.send(self.channel.out_queue, [self.channel.seal(said)[0]])


def working_folder():
    """The names that are in it (set). It is the home folder, too, where libraries have files like .cache."""
    with contextlib.suppress(OSError):
        return {name for name in os.listdir() if not name.startswith('.')}
    return set()


def guarded(work):
    """Do it, and end the worker if it fails. What it held comes back by itself after RIOSVisibility s."""
    try:
        return work()
    except SystemExit as end:
        log.warning('Asked to end')
        status = end.code
    except BaseException as error:
        gone = rios_awsbatch.is_one_of(error, rios_awsbatch.NO_QUEUE)       # the run has ended
        # An agent of ECS that was started again has no credentials for a while.
        again = rios_awsbatch.is_temporary(error) or rios_awsbatch.is_one_of(
            error, {'CredentialRetrievalError'})
        status = 0 if gone else EXIT_AGAIN if again else 1
        if isinstance(error, rios_awsbatch.AWS_ERRORS):
            error = rios_awsbatch.explain(error, 'working for a run')
        log.error('%s', error, exc_info=not isinstance(error, rios_awsbatch.AWSBatchException))
    os._exit(status)


def start_computer(printed):
    """Start the process that runs the user's functions: (subprocess.Popen, Connection)."""
    ours, its = multiprocessing.connection.Pipe()
    process = subprocess.Popen([sys.executable, os.path.abspath(__file__), 'compute', str(its.fileno())],
                               stdin=subprocess.DEVNULL, pass_fds=[its.fileno()],
                               **(printed.streams() if printed else {}))
    its.close()
    pipe = socket.socket(fileno=os.dup(ours.fileno()))
    threading.Thread(target=end_what_it_leaves, args=(process, pipe), daemon=True).start()
    return process, ours


def end_what_it_leaves(computer, pipe):
    """When it has ended, end the processes that it has left, and its pipe, which a daemon may still hold."""
    computer.wait()
    with contextlib.suppress(OSError):
        os.killpg(computer.pid, signal.SIGKILL)
    with contextlib.suppress(OSError), pipe:
        pipe.shutdown(socket.SHUT_RDWR)         # what it has said can still be read


def out_of_memory():
    """How often the kernel has ended a process of this container because its memory was used up."""
    for path in ('/sys/fs/cgroup/memory.events', '/sys/fs/cgroup/memory/memory.oom_control'):
        with contextlib.suppress(OSError, ValueError), open(path, encoding='ascii') as file:
            return int(dict(line.split() for line in file).get('oom_kill', 0))
    return 0


def how_it_ended(status, no_memory):
    """How a computer ended in the middle of a call, from its status as subprocess has it."""
    if no_memory:
        return f'it needed more memory than its job has ({rios_awsbatch.MORE_MEMORY})'
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
    gc.disable()                        # until it is up: what is imported and made until then stays
    printed = Printed() if os.environ.get('RIOSOutput') == 'true' else None
    computer = start_computer(printed)
    sys.modules['OpenSSL'] = None       # botocore would import it where there is one, and needs it not
    import rios_awsbatch                # meanwhile
    index = int(os.environ.get('AWS_BATCH_JOB_ARRAY_INDEX', 0))
    attempt = int(os.environ.get('AWS_BATCH_JOB_ATTEMPT', 1))
    guarded(lambda: Worker(rios_awsbatch.JobSettings.from_env(os.environ), index, attempt, *computer,
                           printed).run())
    os._exit(0)                 # whatever the user's functions have left running


def compute(fileno):
    global rios_awsbatch
    os.setpgid(0, 0)                    # so that what it leaves behind can be ended with it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError), open('/proc/self/oom_score_adj', 'w', encoding='ascii') as file:
        file.write('1000')              # where memory is short it is this process that goes
    logging.getLogger().setLevel(logging.INFO)  # to the job's log, unless the function wants it otherwise
    logging.lastResort.setLevel(logging.INFO)
    logging.getLogger('botocore').setLevel(logging.WARNING)
    import rios_awsbatch                # now, as nothing may be there to import it with after a call
    sys.modules['rios_awsbatch_worker'] = sys.modules['__main__']      # which is the script's from here on
    computer = Computer(rios_awsbatch.JobSettings.from_env(os.environ),
                        multiprocessing.connection.Connection(int(fileno)))
    prepare = multiprocessing.spawn.get_preparation_data
    multiprocessing.spawn.get_preparation_data = lambda name: {     # for processes that functions start anew
        **{key: value for key, value in prepare(name).items() if not key.startswith('init_main')},
        'script': computer.script}
    with contextlib.suppress(EOFError, ConnectionError):        # the worker has ended
        computer.run()


if __name__ == '__main__':
    compute(sys.argv[2]) if sys.argv[1:2] == ['compute'] else main()
