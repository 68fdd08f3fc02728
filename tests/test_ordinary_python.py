"""
Ordinary Python makes no result wrong, nothing hang, loses no call, and has no computer paid for nothing.

What a process pool can show as well is in test_like_a_process_pool.py, what cancelling saves in test_cancelling.py.
"""
import contextlib
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import cloudpickle
import numpy
import pytest

import rios_awsbatch
from tests.helpers import (
    PATIENCE, ROOT, QUICK, another_aws, assert_nothing_left, client, bucket, jobs_of, left_of, local_aws,
    main_script, output_of, pids, processes_of, script_module, shared_executor, Stack, wait_until, write_main)

cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENT = PATIENCE


executor = shared_executor(2)


@pytest.fixture
def script():
    """The names of a script: what a test executes there travels."""
    with script_module() as module:
        yield vars(module)


def square(x, seconds=0.0):
    time.sleep(seconds)
    return x * x


def ends_well(process, said, seconds=PATIENT):
    """The main script ends by itself, and its last words are these."""
    status, out, err = output_of(process, seconds)
    assert (status, out.splitlines()[-1:]) == (0, [said]), out + err


# ---------------------------------------------------------------------------------------------
# Never wrong: a call is what the function is when it is submitted
# ---------------------------------------------------------------------------------------------

# What a script, or a notebook's cells, define, and change later; f() must be 1 before and 2 then.
CHANGES = {
    'the function itself': ('def f(): return 1', 'def f(): return 2'),
    'a function that it calls': ('def helper(): return 1\ndef f(): return helper()',
                                 'def helper(): return 2'),
    'a function of a function': ('def low(): return 1\ndef mid(): return low()\ndef f(): return mid()',
                                 'def low(): return 2'),
    'a global': ('x = 1\ndef f(): return x', 'x = 2'),
    'a global that was not there': ('def f(): return 2 if "x" in globals() and x else 1',
                                    'x = 1'),
    'a global that changes in place': ('x = {"a": [1]}\ndef f(): return x["a"][0]', 'x["a"][0] = 2'),
    'an array': ('import numpy\nx = numpy.full(99_999, 1)\ndef f(): return int(x[-1])', 'x[-1] = 2'),
    'a class': ('class C:\n    x = 1\ndef f(): return C.x', 'class C:\n    x = 2'),
    'an attribute of a class': ('class C:\n    x = 1\ndef f(): return C().x', 'C.x = 2'),
    'a method of a class': ('class C:\n    def m(self): return 1\ndef f(): return C().m()',
                            'C.m = lambda self: 2'),
    'an attribute of a base class': ('class A:\n    x = 1\nclass C(A): pass\ndef f(): return C().x',
                                     'A.x = 2'),
    'an attribute of the function': ('def f(): return f.x\nf.x = 1', 'f.x = 2'),
    'a default argument': ('def f(x=[1]): return x[0]', 'f.__defaults__[0][0] = 2'),
    'what it closes over': ('def make():\n    x = [1]\n    return (lambda: x[0]), x\nf, x = make()',
                            'x[0] = 2'),
    'an argument of a partial': ('import functools\nx = [1]\nf = functools.partial(lambda x: x[0], x)',
                                 'x[0] = 2'),
    'an object whose method it is': ('class C:\n    x = 1\n    def m(self): return self.x\nc = C()\nf = c.m',
                                     'c.x = 2'),
    'the class of such an object': ('class C:\n    x = 1\n    def m(self): return self.x\nc = C()\nf = c.m',
                                    'C.x = 2'),
    'a decorator': ('def d(f):\n    return lambda: 1\ndef g(): pass\nf = d(g)',
                    'def d(f): return lambda: 2\nf = d(g)'),
}


@pytest.mark.parametrize('where', ['script', 'dict'])
@pytest.mark.parametrize('change', CHANGES)
def test_function_is_sent_as_it_is_when_it_is_submitted(change, where, executor, script):
    """Also where its globals are those of no module, as in a test of documentation."""
    script = script if where == 'script' else {'__name__': '__main__'}
    exec(CHANGES[change][0], script)
    before = [executor.submit(script['f']) for _ in range(4)]
    assert [future.result(PATIENT) for future in before] == [1] * 4
    exec(CHANGES[change][1], script)
    assert script['f']() == 2
    after = [executor.submit(script['f']) for _ in range(4)]
    assert [future.result(PATIENT) for future in after] == [2] * 4


def test_class_of_an_argument_is_as_it_is_when_it_is_submitted(executor, script):
    exec('class C:\n    x = 1\ndef f(c): return c.x', script)
    assert executor.submit(script['f'], script['C']()).result(PATIENT) == 1
    script['C'].x = 2
    assert [executor.submit(script['f'], script['C']()).result(PATIENT) for _ in range(4)] == [2] * 4


# What a call changes: the next must find it as the script has it, as it is none of what is in the script's module.
LEAKS = {
    'what it closes over': 'def make():\n    n = 0\n    def f(x):\n        nonlocal n\n        n += 1\n'
                           '        return n\n    return f\nf = make()',
    'an object': 'class C:\n    n = 0\n    def __call__(self, x):\n        self.n += 1\n'
                 '        return self.n\nf = C()',
    'an object whose method it is': 'class C:\n    n = 0\n    def f(self, x):\n        self.n += 1\n'
                                    '        return self.n\nf = C().f',
    'an iterator': 'import itertools\ndef make(it):\n    return lambda x: next(it)\n'
                   'f = make(itertools.count(1))',
    'a partial': 'import functools\ndef g(seen, x):\n    seen.append(x)\n    return len(seen)\n'
                 'f = functools.partial(g, [])',
}


@pytest.mark.parametrize('what', LEAKS)
def test_what_a_call_changes_in_its_own_function_does_not_reach_the_next(what, executor, script):
    exec(LEAKS[what], script)
    assert list(executor.map(script['f'], range(12))) == [1] * 12
    assert [executor.submit(script['f'], 0).result(PATIENT) for _ in range(4)] == [1] * 4


def test_classes_of_the_script_stay_themselves(executor, script):
    """An instance that comes back, or meets a function that was sent before, is still one of that class."""
    exec(textwrap.dedent('''
        import enum
        class Tile: pass
        class Band(enum.Enum):
            RED = 4
        class Cloudy(Exception): pass
        def same(tile, band):
            return tile if isinstance(tile, Tile) and band is Band.RED else None
        def fails():
            raise Cloudy()
        '''), script)
    for _ in range(4):
        tile = executor.submit(script['same'], script['Tile'](), script['Band'].RED).result(PATIENT)
        assert isinstance(tile, script['Tile'])
    assert executor.submit(lambda band: band, script['Band'].RED).result(PATIENT) is script['Band'].RED
    with pytest.raises(script['Cloudy']):
        executor.submit(script['fails']).result(PATIENT)


@pytest.mark.parametrize('where', ['script', 'dict'])
def test_result_does_not_change_a_class_of_the_script(where, executor, script):
    """It may bring its class along, as that was when the call was submitted."""
    script = script if where == 'script' else {'__name__': '__main__'}
    exec('import time\nclass C:\n    x = 1\ndef f(s):\n    time.sleep(s)\n    return C()', script)
    futures = [executor.submit(script['f'], 1.0) for _ in range(4)]
    script['C'].x = 2
    assert [future.result(PATIENT).x for future in futures] == [2] * 4
    assert script['C'].x == 2


def test_function_is_uploaded_once(executor):
    class Unhashable:
        def __init__(self):
            self.table = numpy.random.default_rng(1).random(100_000)

        def __eq__(self, other):
            return self is other

        def __call__(self, x):
            return x

    def large_objects():
        folder = 'runs/{}/'.format(executor.run)
        found = client('s3').list_objects_v2(Bucket=bucket(), Prefix=folder).get('Contents', [])
        return [(item['Key'], item['LastModified']) for item in found if item['Size'] > 700_000]
    function, others = Unhashable(), large_objects()
    executor.submit(function, 0).result(PATIENT)
    before = large_objects()
    time.sleep(1.1)         # the resolution of LastModified
    assert list(executor.map(function, range(20))) == list(range(20))
    assert [executor.submit(function, x).result(PATIENT) for x in range(3)] == [0, 1, 2]
    assert len(before) == len(others) + 1 and large_objects() == before


# ---------------------------------------------------------------------------------------------
# Never hang
# ---------------------------------------------------------------------------------------------

# One after the other; what the last ones set is so until the executor has ended.
FOREIGN = {
    'repr': '''
        class Curious:
            def __repr__(self):
                executor = sys.modules['__main__'].executor
                executor.stats()
                return str(executor.submit(square, 3).result())
        executor.submit(type, Curious()).result()
        executor.submit(len, [Curious()]).result()
        ''',
    'pickling': '''
        class Curious:
            def __reduce__(self):
                executor = sys.modules['__main__'].executor
                executor.stats()
                return int, (executor.submit(square, 3).result(),)
            def __call__(self): pass
        assert executor.submit(square, Curious()).result() == 81
        executor.submit(Curious()).exception()
        ''',
    'unpickling of a result': '''
        class Curious:
            def __reduce__(self):
                return eval, ("__import__('__main__').executor.submit(abs, -3).result()",)
        def curious(): return Curious()
        assert executor.submit(curious).result() == 3
        ''',
    'a callback': '''
        done = []
        def go_on(future):
            executor.stats()
            done.append(executor.submit(square, 3))
        for x in range(5):
            executor.submit(square, x).add_done_callback(go_on)
        while len(done) < 5:
            time.sleep(0.1)
        assert [future.result() for future in done] == [9] * 5
        ''',
    'a callback that cancels all others': '''
        futures = [executor.submit(square, x) for x in range(200)]
        futures[0].add_done_callback(lambda done: [future.cancel() for future in futures])
        for future in futures:
            while not future.done():
                time.sleep(0.1)
        ''',
    'a callback that ends the script, and one that ends the executor': '''
        futures = [executor.submit(square, x) for x in range(20)]
        futures[0].add_done_callback(lambda done: sys.exit(3))
        futures[1].add_done_callback(lambda done: executor.shutdown())
        assert [future.result() for future in futures] == [x * x for x in range(20)]
        executor = rios_awsbatch.AWSBatchExecutor(1)
        ''',
    'a handler of a signal': '''
        import signal
        def ring(number, frame):
            executor.stats()
            futures.append(executor.submit(square, 3))
        futures = []
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        for x in range(300):
            executor.submit(square, x)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert all(future.result() == 9 for future in futures)
        ''',
    'a handler of a signal that comes while a function is pickled': '''
        import cloudpickle, signal
        def ring(number, frame):
            futures.append(executor.submit(square, 3))
        futures = []
        signal.signal(signal.SIGALRM, ring)
        with cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
            signal.raise_signal(signal.SIGALRM)
        assert futures[0].result() == 9
        ''',
    'a handler of a signal that ends the executor, which comes while that is waited for': '''
        import signal, threading
        lock, = (each for each in vars(executor._run.clean).values() if isinstance(each, threading.Condition))
        signal.signal(signal.SIGALRM, lambda number, frame: executor.shutdown())
        with lock:
            signal.raise_signal(signal.SIGALRM)
        executor = rios_awsbatch.AWSBatchExecutor(1)
        ''',
    'an abandoned map() in a cycle of references': '''
        import gc
        gc.set_threshold(3)
        for x in range(60):
            results = executor.map(square, range(3))
            next(results)
            cycle = [results]
            cycle.append(cycle)
            del results, cycle
            executor.submit(square, x)
        ''',
    'a finaliser': '''
        import gc, weakref
        class Thing: pass
        gc.set_threshold(3)
        for x in range(60):
            thing = Thing()
            thing.me = thing
            weakref.finalize(thing, lambda: (executor.stats(), executor.submit(square, 1)))
            del thing
            executor.submit(square, x)
        ''',
    'a handler of the log': '''
        import logging
        class Curious(logging.Handler):
            def emit(self, record):
                executor.stats()
                if not getattr(self, 'inside', False):
                    self.inside = True
                    executor.submit(square, 3).cancel()
                    self.inside = False
        logging.getLogger('rios_awsbatch').addHandler(Curious())
        logging.getLogger('rios_awsbatch').setLevel(logging.DEBUG)
        list(executor.map(square, range(30)))
        ''',
}


def test_code_of_the_script_may_use_the_executor_wherever_it_is_called(tmp_path):
    """The last line that the script prints says which code of FOREIGN it was."""
    ends_well(main_script(tmp_path, '''
        import json
        def square(x): return x * x
        executor = rios_awsbatch.AWSBatchExecutor(1)
        for name, code in json.loads(sys.argv[1]).items():
            print(name, flush=True)
            exec(code)
            assert list(executor.map(square, range(9))) == [x * x for x in range(9)]
        executor.shutdown()
        print('fine')
        ''', json.dumps({name: textwrap.dedent(code) for name, code in FOREIGN.items()})), 'fine')


@pytest.mark.slow
def test_submit_does_not_hang_when_AWS_is_away_for_longer_than_the_lease(tmp_path):
    """It goes on or says that the run is broken; what is answered is right."""
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        process = subprocess.Popen([sys.executable, write_main(tmp_path, '''
            rios_awsbatch.OUTBOX_BYTES = 2**20
            executor = rios_awsbatch.AWSBatchExecutor(2)
            assert executor.submit(pow, 2, 3).result() == 8
            print('going', flush=True)
            sys.stdin.readline()
            futures = []
            try:
                for x in range(60):
                    futures.append(executor.submit(len, bytes(300_000 + x)))
                for x, future in enumerate(futures):
                    assert future.result() == 300_000 + x
                executor.shutdown()
            except rios_awsbatch.BrokenAWSBatchExecutor:
                for x, future in enumerate(futures):
                    assert future.exception() is not None or future.result() == 300_000 + x
            print('fine', flush=True)
            ''')], env=stack.env, text=True, **dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE))
        try:
            assert process.stdout.readline() == 'going\n'
            local_aws('faults', {'errors': 1}, env=env)
            process.stdin.write('\n')
            process.stdin.flush()
            time.sleep(3 * QUICK['LEASE_SECONDS'])
            local_aws('faults', {}, env=env)
            ends_well(process, 'fine')
        finally:
            process.kill()


@pytest.mark.parametrize('service, said', [
    ('sqs', ''), ('sqs', 'HTTP/1.1 200 OK|Content-Length: 9999||{'), ('sqs', 'HTTP/1.1 200 OK||<html>'),
    ('s3', ''), ('s3', 'HTTP/1.1 200 OK|Content-Length: 9999||<xml>')])
def test_answers_that_are_not_from_AWS_or_break_off_cost_no_call(service, said, tmp_path):
    """A proxy, for instance, takes all requests for a while, and has no network itself."""
    ends_well(main_script(tmp_path, '''
        import socketserver, threading
        class Proxy(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.recv(2**20)
                self.request.sendall(sys.argv[2].replace('|', '\\r\\n').encode())
        server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Proxy)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def detour(request, **kwargs):
            if detours:
                request.url = 'http://127.0.0.1:{}/'.format(server.server_address[1])

        def made(service, *args, make=rios_awsbatch.make_client, **kwargs):
            client = make(service, *args, **dict(kwargs, attempts=1))
            client.meta.events.register('before-sign.' + sys.argv[1], detour)
            return client
        rios_awsbatch.make_client, detours, noise = made, [], os.urandom(700_000)
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            results = executor.map(bytes, 8 * [noise])
            assert next(results) == noise
            detours.append(True)
            more = [executor.submit(len, noise + bytes(x)) for x in range(8)]
            time.sleep(2)
            detours.clear()
            assert list(results) == 7 * [noise]
            assert [future.result() for future in more] == list(range(700_000, 700_008))
        print('fine')
        ''', service, said), 'fine')


def test_script_that_is_interrupted_without_a_network_tries_one_step_of_its_end(tmp_path):
    """Each takes botocore half a minute then. What is left is said once, with how to remove it."""
    status, out, err = output_of(main_script(tmp_path, '''
        def unplug(request, **kwargs):
            if unplugged:
                request.url = 'http://127.0.0.1:9/'

        def made(service, *args, make=rios_awsbatch.make_client, **kwargs):
            client = make(service, *args, **dict(kwargs, attempts=2))
            client.meta.events.register('before-sign', unplug)
            return client
        rios_awsbatch.make_client, unplugged = made, []
        try:
            with rios_awsbatch.AWSBatchExecutor(1) as executor:
                assert executor.submit(pow, 2, 3).result() == 8
                executor.submit(time.sleep, 600)
                unplugged.append(True)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            unplugged.clear()
            executor._run._clean_up(orderly=False)
        print(executor.run)
        '''))
    assert status == 0 and err.count('--clean" removes what run') == 1, err
    assert_nothing_left(out.strip())


def test_interrupted_shutdown_in_one_thread_does_not_hang_another(tmp_path):
    process = main_script(tmp_path, '''
        import threading
        executor = rios_awsbatch.AWSBatchExecutor(1)
        print(executor.run, flush=True)
        executor.submit(pow, 2, 3).result()
        thread = threading.Thread(target=executor.shutdown)
        thread.start()
        print('ending', flush=True)
        executor.shutdown()
        ''')
    run = process.stdout.readline().strip()
    assert process.stdout.readline() == 'ending\n'
    for _ in range(4):
        time.sleep(0.15)
        process.send_signal(signal.SIGINT)
    output_of(process, PATIENT)
    wait_until(lambda: not left_of(run))


# ---------------------------------------------------------------------------------------------
# Never lost
# ---------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_any_process_of_a_worker_can_be_killed():
    """The one that computes as well as the one that keeps its calls."""
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENT)
        for number in range(4):
            futures = [executor.submit(square, x, 0.3) for x in range(12)]
            futures[0].result(PATIENT)
            for worker in wait_until(lambda: pids(executor.run)):
                family = processes_of(worker)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(family[min(number, len(family) - 1)], signal.SIGKILL)
            assert [future.result(PATIENT) for future in futures] == [x * x for x in range(12)]
            assert executor.wait_for_workers(1, PATIENT) >= 1
    assert_nothing_left(executor.run)


def test_order_to_end_from_outside_is_obeyed_whatever_the_function_does_with_signals():
    """Its call is computed by another worker."""
    def stubborn(x):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(1.5)
        return x
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENT)
        futures = [executor.submit(stubborn, x) for x in range(6)]
        time.sleep(1)
        for worker in pids(executor.run)[:1]:
            os.kill(worker, signal.SIGTERM)
        assert [future.result(PATIENT) for future in futures] == list(range(6))
    assert_nothing_left(executor.run)


def test_call_that_ends_its_process_fails_though_a_child_of_it_lives_on(executor):
    """The child holds all that was open, the pipe to the worker with it."""
    def tile(x):
        if x == 3 and os.fork():
            os._exit(7)
        elif x == 3:
            time.sleep(900)
        return x
    futures = [executor.submit(tile, x) for x in range(6)]
    with pytest.raises(rios_awsbatch.AWSBatchException, match='each time .* ended with exit code 7'):
        futures[3].result(PATIENT)
    assert [futures[x].result(PATIENT) for x in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]


def test_call_that_has_its_worker_terminated_fails_alone():
    """It is given back each time, which must have an end."""
    def tile(x):
        if x == 3:
            subprocess.run(['sh', '-c', 'kill -TERM {}'.format(os.getpid())])
            time.sleep(60)
        return x
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        futures = [executor.submit(tile, x) for x in range(10)]
        assert [future.result(PATIENT) for future in futures if future is not futures[3]] == [
            x for x in range(10) if x != 3]
        error = futures[3].exception(PATIENT)
        assert isinstance(error, rios_awsbatch.AWSBatchException) and 'tile(3)' in str(error)
        assert executor.submit(square, 3).result(PATIENT) == 9
    assert_nothing_left(executor.run)


def test_exception_arrives_though_nothing_can_be_imported_any_more():
    """As when a function has used up all files that a process may have."""
    def fails():
        sys.path.clear()
        raise ValueError('mine')
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        assert repr(executor.submit(fails).exception(PATIENCE)) == "ValueError('mine')"


def test_child_of_the_main_script_is_told_that_the_executor_is_its_parents(tmp_path):
    ends_well(main_script(tmp_path, '''
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            assert executor.submit(pow, 2, 3).result() == 8
            pid = os.fork()
            if pid == 0:
                try:
                    requests = executor.stats()['requests']
                    for attempt in (lambda: executor.submit(pow, 2, 3), lambda: list(executor.map(abs, [1])),
                                    lambda: list(executor.map(lambda x, large=bytes(100_000): x, [1]))):
                        try:
                            attempt()
                            os._exit(1)
                        except RuntimeError as error:
                            print(error, flush=True)
                    executor.shutdown()
                    if executor.stats()['requests'] != requests:
                        os._exit(1)
                finally:
                    os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert list(executor.map(abs, range(9))) == list(range(9))
        print('fine')
        '''), 'fine')


def test_child_that_is_terminated_at_once_ends(tmp_path):
    """Also by a signal that comes while it still has the signal handlers of its parent."""
    ends_well(main_script(tmp_path, '''
        import multiprocessing, signal
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            children = [multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))
                        for _ in range(50)]
            for child in children:
                child.start()
                child.terminate()
            for child in children:
                child.join()
                assert child.exitcode == -signal.SIGTERM
        print('fine')
        '''), 'fine')


def test_child_that_a_function_forks_answers_no_call(executor):
    """However it ends: what it raises or returns is not taken for the result of its parent."""
    def tile(n):
        pid = os.fork()
        if pid == 0:
            if n % 3 == 0:
                raise LookupError(n)
            if n % 3 == 1:
                sys.exit(7)
            return -n
        return n, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert list(executor.map(tile, range(9))) == [(n, (1, 7, 0)[n % 3]) for n in range(9)]


@pytest.mark.parametrize('status', [0, 7])
def test_child_that_an_initializer_forks_computes_no_call(status, shared):
    """However it ends, that does not end the run."""
    def start():
        pid = os.fork()
        if pid == 0:
            return status and sys.exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status

    def tile(n):
        with (shared / 'begun').open('a') as file:
            file.write(str(n))
        return n
    with rios_awsbatch.AWSBatchExecutor(1, initializer=start) as executor:
        assert list(executor.map(tile, range(4))) == list(range(4))
    assert (shared / 'begun').read_text() == '0123'


def test_child_of_the_main_script_may_have_a_run_of_its_own(tmp_path):
    ends_well(main_script(tmp_path, '''
        import multiprocessing

        def child():
            with rios_awsbatch.AWSBatchExecutor(1) as mine:
                assert list(mine.map(abs, range(9))) == list(range(9))
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            assert executor.submit(pow, 2, 3).result() == 8
            process = multiprocessing.get_context('fork').Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
            assert list(executor.map(abs, range(9))) == list(range(9))
        print('fine')
        '''), 'fine')


@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_child_that_imports_the_main_script_anew_may_use_its_functions(method, tmp_path):
    """There the script is __mp_main__. Usual on macOS and Windows, and with Python 3.14 everywhere."""
    ends_well(main_script(tmp_path, '''
        import multiprocessing

        OFFSET = 1

        class Tile:
            def __init__(self, x):
                self.x = x

        def helper(x):
            return Tile(x.x + OFFSET)

        def work():
            with rios_awsbatch.AWSBatchExecutor(1) as executor:
                print(sum(tile.x for tile in executor.map(helper, map(Tile, range(9)))), flush=True)

        if __name__ == '__main__':
            process = multiprocessing.get_context({!r}).Process(target=work)
            process.start()
            process.join()
            sys.exit(process.exitcode)
        '''.format(method)), '45')


def test_cached_function_of_the_script_travels(executor, script):
    """Such as one that opens a dataset once for each worker."""
    exec(textwrap.dedent('''
        import functools

        @functools.lru_cache(maxsize=None)
        def opened(name):
            return object()

        def tile(x):
            assert opened('a.tif') is opened('a.tif')
            return x
        '''), script)
    assert list(executor.map(script['tile'], range(9))) == list(range(9))


def test_thread_that_outlives_the_main_thread_goes_on(tmp_path):
    """Which a process pool does not let it."""
    ends_well(main_script(tmp_path, '''
        import threading

        def work():
            time.sleep(1)
            assert list(executor.map(abs, range(10))) == list(range(10))
            executor.shutdown()
            print('fine')
        executor = rios_awsbatch.AWSBatchExecutor(1)
        threading.Thread(target=work).start()
        '''), 'fine')


def test_time_out_ends_after_a_signal_that_comes_past_it(tmp_path):
    """A script is stopped (Ctrl-Z), terminated, and goes on: any of its threads may be given the signal."""
    process = main_script(tmp_path, '''
    import collections, queue, signal, threading
    came = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    rounds = collections.Counter()

    def wait(place):
        while True:
            try:
                rios_awsbatch.Mailbox().get(0.5)
            except queue.Empty:
                rounds[place] += 1

    for place in range(30):
        threading.Thread(target=wait, args=(place,), daemon=True).start()
    print('going', flush=True)
    while not came.wait(0.1):
        pass
    time.sleep(0.5)
    before, until = rounds.copy(), time.monotonic() + 60
    while (going := sum(rounds[place] > before[place] for place in range(30))) < 30 and time.monotonic() < until:
        time.sleep(0.1)
    print(going)
    ''')
    assert process.stdout.readline() == 'going\n'
    process.send_signal(signal.SIGSTOP)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=PATIENCE)[0] == '30\n'


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_run_that_a_thread_began_costs_nothing_when_its_script_is_ended(number, tmp_path):
    """Python has signal handlers in the main thread only, so workers may learn it from the lease."""
    process = main_script(tmp_path, '''
        import signal, threading
        signal.signal(signal.SIGHUP, signal.SIG_DFL)        # where the tests run under nohup
        def work():
            executor = rios_awsbatch.AWSBatchExecutor(1)
            print(executor.run, flush=True)
            executor.submit(pow, 2, 3).result()
            print('going', flush=True)
            executor.submit(time.sleep, 300).result()
        threading.Thread(target=work, daemon=True).start()
        while True:
            time.sleep(0.1)
        ''')
    run = process.stdout.readline().strip()
    assert process.stdout.readline() == 'going\n'
    process.send_signal(number)
    assert output_of(process, PATIENT)[0] in (128 + number, -number)
    wait_until(lambda: not pids(run))


# ---------------------------------------------------------------------------------------------
# Nothing is computed, and nobody paid, for nothing
# ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('event', ['thread', 's3.PutObject', 'sqs.CreateQueue', 'batch.SubmitJob'])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_script_that_is_ended_while_it_makes_an_executor_leaves_nothing(number, event, tmp_path):
    """
    Its thread has just been started; or AWS has done what it was asked, and its answer comes together with the signal,
    which comes twice.
    """
    status, out, err = output_of(main_script(tmp_path, '''
        import threading
        def signal_comes(**kwargs):
            while signals:
                os.kill(os.getpid(), signals.pop())
                time.sleep(0.5)

        def slowly(thread, start=threading.Thread.start):
            start(thread)
            if sys.argv[2] == 'thread':
                while not rios_awsbatch._runs:
                    time.sleep(0.01)
                signal_comes()
            time.sleep(0.2)             # a busy machine: the thread is further than who has started it
        threading.Thread.start = slowly

        def made(service, *args, make=rios_awsbatch.make_client, **kwargs):
            client = make(service, *args, **kwargs)
            client.meta.events.register('response-received.' + sys.argv[2], signal_comes)
            return client
        rios_awsbatch.make_client, signals = made, 2 * [int(sys.argv[1])]
        rios_awsbatch.AWSBatchExecutor(2)
        print('made')
        ''', int(number), event, env={'RIOS_AWSBATCH_REPORT': str(tmp_path / 'report')}))
    assert (status, out) == (-number if number == signal.SIGINT else 128 + number, ''), err
    report, = (tmp_path / 'report').iterdir()
    assert_nothing_left(report.stem)


def test_job_whose_start_no_answer_has_told_ends_with_its_executor(tmp_path):
    """AWS has started it, and then the network was away for good."""
    ends_well(main_script(tmp_path, '''
        from botocore.exceptions import ConnectionClosedError
        def answer_is_lost(**kwargs):
            raise ConnectionClosedError(endpoint_url='there')

        def made(service, *args, make=rios_awsbatch.make_client, **kwargs):
            client = make(service, *args, **kwargs)
            client.meta.events.register('after-call.batch.SubmitJob', answer_is_lost)
            return client
        rios_awsbatch.make_client = made
        try:
            rios_awsbatch.AWSBatchExecutor(1)
        except rios_awsbatch.AWSBatchException as error:
            print(str(error).partition(' (')[0])
        ''', env={'RIOS_AWSBATCH_REPORT': str(tmp_path / 'report')}), 'Error when starting a run')
    report, = (tmp_path / 'report').iterdir()
    assert_nothing_left(report.stem)
    job, = wait_until(lambda: [job for job in jobs_of(report.stem) if job['status'] in rios_awsbatch.ENDED])
    assert job['statusReason'] == 'Its main script does not know of it'


def test_executor_for_which_there_are_too_few_threads_leaves_nothing(tmp_path):
    """Not that many as it needs, but some."""
    ends_well(main_script(tmp_path, '''
        import pathlib, resource, threading
        stack = 2**28
        rios_awsbatch.AWSBatchExecutor(1).shutdown()
        threading.stack_size(stack)
        size = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 5 * stack,) * 2)
        os.environ['RIOS_AWSBATCH_REPORT'] = sys.argv[1]
        try:
            rios_awsbatch.AWSBatchExecutor(1)
        except RuntimeError as error:
            print(error)
        ''', tmp_path / 'report'), "can't start new thread")
    report, = (tmp_path / 'report').iterdir()
    assert_nothing_left(report.stem)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_script_that_is_ended_while_it_waits_for_its_runs_leaves_none_of_them(number, tmp_path):
    process = main_script(tmp_path, '''
        import atexit
        executors = [rios_awsbatch.AWSBatchExecutor(1) for _ in range(3)]
        print(*(executor.run for executor in executors), flush=True)
        for executor in executors:
            executor.wait_for_workers(1)
            executor.submit(time.sleep, 600)
        atexit.register(print, 'ending', flush=True)
        ''')
    runs = process.stdout.readline().split()
    assert process.stdout.readline() == 'ending\n'
    time.sleep(1)
    process.send_signal(number)
    output_of(process)
    for run in runs:
        assert_nothing_left(run)


def leaves_a_thread():
    threading.Thread(target=time.sleep, args=(900,)).start()
    return subprocess.Popen(['sleep', '900']).pid


def test_threads_and_programs_that_a_function_leaves_do_not_keep_its_worker():
    """Nothing is left when shutdown() returns; Batch takes a moment to see that a container ended."""
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENT)
        for _ in range(4):
            executor.submit(leaves_a_thread).result(PATIENT)
    assert [each for each in left_of(executor.run) if not isinstance(each, int)] == []
    wait_until(lambda: not pids(executor.run))


def test_executor_that_is_dropped_ends_its_workers():
    """As when a cell of a notebook is run twice."""
    runs, executor = [], None
    for _ in range(2):
        executor = rios_awsbatch.AWSBatchExecutor(1)
        runs.append(executor.run)
        assert executor.submit(square, 3).result(PATIENT) == 9
    gc.collect()
    wait_until(lambda: not left_of(runs[0]))
    assert executor.submit(square, 4).result(PATIENT) == 16
    executor.shutdown()


def test_calls_are_begun_in_the_order_in_which_they_were_submitted():
    """Small ones, and large ones; but for what one request of SQS holds, and without the disorder that SQS may add."""
    def begun(x, block):
        return x, time.monotonic()
    block = numpy.random.default_rng(1).bytes(600_000)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        for count, each in ((150, b''), (40, block)):
            futures = [executor.submit(begun, x, each) for x in range(count)]
            started = dict(future.result(PATIENT) for future in futures)
            order = sorted(started, key=started.get)
            assert max(abs(place - x) for place, x in enumerate(order)) < 10, order


def test_result_that_is_late_is_still_in_its_place(executor):
    results = executor.map(square, itertools.chain([7], range(20)), [2.0] + [0.0] * 20, buffersize=4)
    assert list(results) == [49] + [x * x for x in range(20)]
