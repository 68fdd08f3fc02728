"""
The promises of the README about the executor, checked by making things happen: the tests to read first.

The others are by subject in tests/: how like a process pool it is (test_like_a_process_pool.py, test_ordinary_python.py),
workers that are lost or do not come (test_pool.py, test_batch_is_late.py), faults of AWS, cancelling, RIOS, large images.
"""
import contextlib
import functools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import cloudpickle
import numpy
import pytest
from osgeo import gdal

import rios_awsbatch
from rios_awsbatch import Message
from tests.helpers import (
    PATIENCE, ROOT, REGION, square, local_aws, client, pids, wait_until, assert_nothing_left, job_definition, channel_of,
    left_of, main_script, output_of, shared_executor, Stack)

cloudpickle.register_pickle_by_value(sys.modules[__name__])


executor = shared_executor(2, 'function')      # a fresh one, for what meddles with its run
kept = shared_executor(2)                       # one for all others


# ---------------------------------------------------------------------------------------------
# An executor like any other
# ---------------------------------------------------------------------------------------------

def test_map_gives_results_in_order(kept):
    assert list(kept.map(square, range(100))) == [x * x for x in range(100)]


def test_map_with_buffersize_reads_no_further_ahead(kept):
    taken = []

    def numbers():
        for x in range(40):
            taken.append(x)
            yield x
    results = kept.map(square, numbers(), buffersize=5)
    for n, result in enumerate(results):
        assert result == n * n
        assert len(taken) <= n + 7
    assert len(taken) == 40


def test_map_refuses_a_bad_buffersize(kept):
    with pytest.raises(ValueError, match='buffersize'):
        kept.map(square, [1], buffersize=0)


def test_functions_of_the_standard_library_work(kept):
    from concurrent.futures import as_completed, wait
    futures = [kept.submit(square, x=x) for x in range(10)]
    assert sorted(future.result() for future in as_completed(futures, timeout=PATIENCE)) == [x * x for x in range(10)]
    assert not wait(futures).not_done


def test_lambdas_closures_and_methods_travel(kept):
    table = numpy.arange(10)

    class Scaler:
        def __init__(self, factor):
            self.factor = factor

        def scale(self, x):
            return x * self.factor
    assert kept.submit(lambda x: table[x] + 1, 4).result(PATIENCE) == 5
    assert kept.submit(Scaler(3).scale, 5).result(PATIENCE) == 15
    assert kept.submit(functools.partial(square, 7)).result(PATIENCE) == 49


def test_large_arrays_travel_unchanged(kept):
    image = numpy.random.default_rng(1).integers(0, 2**16, (6, 800, 800), dtype=numpy.uint16)
    for result in kept.map(lambda block: block[::-1], [image] * 4):
        numpy.testing.assert_array_equal(result, image[::-1])


def test_cancelled_future_is_not_waited_for(kept):
    futures = [kept.submit(square, x, 0.2) for x in range(20)]
    assert futures[-1].cancel()
    with pytest.raises(Exception) as raised:
        futures[-1].result(PATIENCE)
    assert type(raised.value).__name__ == 'CancelledError'
    assert [future.result(PATIENCE) for future in futures[:-1]] == [x * x for x in range(19)]


def test_shutdown_without_waiting_finishes_what_was_submitted_and_takes_no_more():
    executor = rios_awsbatch.AWSBatchExecutor(1)
    futures = [executor.submit(square, x) for x in range(5)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match='after shutdown'):
        executor.submit(square, 3)
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 4, 9, 16]
    wait_until(lambda: not left_of(executor.run))


def test_shutdown_cancels_when_asked():
    executor = rios_awsbatch.AWSBatchExecutor(1)
    futures = [executor.submit(square, x, 5) for x in range(5)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    assert_nothing_left(executor.run)


def test_exception_arrives_with_the_remote_traceback(kept):
    def divide(x):
        return 1 / x
    with pytest.raises(ZeroDivisionError) as raised:
        kept.submit(divide, 0).result(PATIENCE)
    assert 'in divide' in str(raised.value.__cause__)
    assert kept.submit(divide, 4).result(PATIENCE) == 0.25


def test_exit_in_the_function_does_not_end_the_worker(kept):
    with pytest.raises(SystemExit):
        kept.submit(sys.exit, 3).result(PATIENCE)
    assert kept.submit(square, 3).result(PATIENCE) == 9


class Odd(Exception):
    """Its arguments are not those of its __init__, so pickle does not know how to make it."""
    def __init__(self, one, two):
        super().__init__('both {} {}'.format(one, two))
        self.two = two


def test_exception_with_arguments_of_its_own_arrives_as_itself(kept):
    def fail():
        raise Odd(1, 2)
    with pytest.raises(Odd, match='both 1 2') as raised:
        kept.submit(fail).result(60)
    assert raised.value.two == 2 and 'in fail' in str(raised.value.__cause__)


def test_exception_that_cannot_travel_is_told_in_words(kept):
    def fail():
        error = ValueError('both 1 2')
        error.lock = threading.Lock()
        raise error
    with pytest.raises(rios_awsbatch.AWSBatchException, match='both 1 2') as raised:
        kept.submit(fail).result(60)
    assert 'in fail' in str(raised.value.__cause__)


def test_module_that_is_another_one_in_the_image_is_named(kept, tmp_path, monkeypatch):
    """As a helper beside the script that has the name of one in the image."""
    (tmp_path / 'this.py').write_text('def helper(x):\n    return x\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'this', raising=False)
    import this
    with pytest.raises(rios_awsbatch.AWSBatchException, match='another module of that name.*register_pickle_by_value'):
        kept.submit(this.helper, 1).result(60)


@pytest.mark.parametrize('count', [0, -1, 2.5, 'four', True, 10001])
def test_bad_worker_count_starts_nothing(count):
    with pytest.raises(ValueError, match='workers'):
        rios_awsbatch.AWSBatchExecutor(count)


def test_more_workers_than_the_stack_has_is_a_warning(caplog, monkeypatch):
    stack = Stack(MaxJobs=1).create().push('BatchECR', ROOT / 'worker.py')
    monkeypatch.setattr(rios_awsbatch, 'STACK_NAME', stack.name)
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        assert executor.submit(square, 3).result(PATIENCE) == 9
    assert '--maxjobs 2' in caplog.text


# ---------------------------------------------------------------------------------------------
# Never hang, never lose a block, never a wrong pixel, never leak money
# ---------------------------------------------------------------------------------------------

def test_block_of_a_killed_worker_is_back_within_the_visibility_time_out():
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENCE)
        future = executor.submit(lambda: (time.sleep(1.5), os.getpid())[1])
        time.sleep(0.5)
        for pid in pids(executor.run):
            os.kill(pid, signal.SIGKILL)
        future.result(PATIENCE)


def test_block_that_holds_the_interpreter_lock_is_computed_once(shared, monkeypatch):
    """Python's lock is held for longer than the visibility time-out, in compiled code."""
    monkeypatch.setattr(rios_awsbatch, 'VISIBILITY_SECONDS', 5)         # a busy machine holds worker.py up, too

    def hold(marker, seconds):
        import ctypes
        import pathlib
        pathlib.Path(marker).open('a').write('x')
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))      # PyDLL does not let go of the lock
    with rios_awsbatch.AWSBatchExecutor(2, copies=False) as executor:
        executor.submit(hold, shared / 'marker', 8).result(PATIENCE)
    assert (shared / 'marker').read_text() == 'x'


def test_block_that_kills_every_worker_is_given_up_alone(kept):
    def tile(x):
        if x == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return x
    futures = [kept.submit(tile, x) for x in range(20)]
    with pytest.raises(rios_awsbatch.AWSBatchException) as raised:
        futures.pop(7).result(PATIENCE)
    assert [future.result(PATIENCE) for future in futures] == [x for x in range(20) if x != 7]
    message = str(raised.value)
    assert 'tile(7) was tried 3 times' in message and 'SIGKILL' in message
    assert 'memory' not in message and '--mem' not in message


def test_out_of_memory_says_so(kept):
    if local_aws('server')['disk'] != 'namespace':
        pytest.skip('no mount namespace here, so a job does not see that its container has run out of memory')

    def hungry():
        return bytearray(5 * 2**30)[::4096]
    with pytest.raises(rios_awsbatch.AWSBatchException, match='more memory than its job has.*--mem'):
        kept.submit(hungry).result(PATIENCE)


def test_workers_that_end_at_once_fail_every_future():
    """Replacements that answer nothing end the run, with what Batch and their log say."""
    with job_definition(image='example.com/x:y', command=['sh', '-c', 'echo about to go; exit 3']) as name:
        with rios_awsbatch.AWSBatchExecutor(2, job_definition=name) as executor:
            futures = [executor.submit(square, x) for x in range(4)]
            for future in futures:
                with pytest.raises(rios_awsbatch.BrokenAWSBatchExecutor) as raised:
                    future.result(PATIENCE)
            with pytest.raises(rios_awsbatch.BrokenAWSBatchExecutor):
                executor.submit(square, 3)
    message = str(raised.value)
    assert 'ended with exit code 3' in message and 'about to go' in message and 'get-log-events' in message
    assert_nothing_left(executor.run)


@pytest.mark.parametrize('changed, said', [
    ({'image': '123456789012.dkr.ecr.ap-southeast-2.amazonaws.com/riosecr:nosuchtag'}, 'CannotPullContainer.*build.sh'),
    ({'command': ['--nonsense'], 'image': 'example.com/x:y'}, 'No worker')])
def test_workers_that_cannot_start_fail_every_future(changed, said):
    with job_definition(**changed) as name:
        with rios_awsbatch.AWSBatchExecutor(2, job_definition=name) as executor:
            with pytest.raises(rios_awsbatch.BrokenAWSBatchExecutor, match='(?s)' + said):
                executor.submit(square, 3).result(PATIENCE)


def test_missing_job_definition_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path))
    with pytest.raises(rios_awsbatch.AWSBatchException, match='nosuch'):
        rios_awsbatch.AWSBatchExecutor(2, job_definition='nosuch')
    report, = tmp_path.iterdir()
    assert left_of(report.stem) == []


def test_idle_workers_stop_and_start_again_when_needed():
    with job_definition(environment=[{'name': 'RIOS_NOMSG_TIMEOUT', 'value': '2'}]) as name:
        with rios_awsbatch.AWSBatchExecutor(1, job_definition=name) as executor:
            assert executor.submit(square, 3).result(PATIENCE) == 9
            wait_until(lambda: not pids(executor.run))
            assert executor.submit(square, 4).result(PATIENCE) == 16


RUNS_LONG = '''
    def slow(x):
        time.sleep(0.3)
        return x
    executor = rios_awsbatch.AWSBatchExecutor(1)
    print(executor.run, flush=True)
    futures = [executor.submit(slow, x) for x in range(20)]
    futures[0].result()
    print('going', flush=True)
'''


@pytest.mark.slow
def test_killed_main_script_leaves_no_worker(tmp_path):
    process = main_script(tmp_path, RUNS_LONG + '    executor.submit(slow, -1).result()\n')
    run = process.stdout.readline().strip()
    assert process.stdout.readline() == 'going\n'
    process.kill()
    process.communicate()
    with rios_awsbatch.AWSBatchExecutor(1) as executor:      # the next run does not see what was left
        assert list(executor.map(square, range(50), timeout=PATIENCE)) == [x * x for x in range(50)]
    wait_until(lambda: not pids(run))
    assert left_of(run) != []               # queues and objects: scripts/status.sh --clean removes them


@pytest.mark.parametrize('ending, status, said', [
    ('time.sleep(60)', -signal.SIGINT, 'KeyboardInterrupt'),
    ('time.sleep(60)', 128 + signal.SIGTERM, ''),
    ('raise LookupError("mine")', 1, 'LookupError: mine'),
    ('executor.submit(lambda: {}["band 7"]).result()', 1, "KeyError: 'band 7'"),
    ('pass', 0, '')])
def test_nothing_of_a_run_stays_behind(tmp_path, ending, status, said):
    process = main_script(tmp_path, RUNS_LONG + '    {}\n'.format(ending))
    run = process.stdout.readline().strip()
    assert process.stdout.readline() == 'going\n'
    if 'sleep' in ending:
        process.send_signal(signal.SIGINT if status < 0 else signal.SIGTERM)
    found, out, err = output_of(process)
    assert found == status
    assert said in err
    assert 'Error when' not in err
    wait_until(lambda: not left_of(run))


def test_lease_that_is_being_renewed_at_the_end_is_deleted_too(monkeypatch):
    make_client, renewals, renewing = rios_awsbatch.make_client, [], threading.Event()

    def slowly(**kwargs):
        renewals.append(kwargs)
        if len(renewals) > 1:
            renewing.set()
            time.sleep(2)

    def made(service, *args, **kwargs):
        client = make_client(service, *args, **kwargs)
        if service == 's3':
            client.meta.events.register('before-send.s3.PutObject', slowly)
        return client
    monkeypatch.setattr(rios_awsbatch, 'make_client', made)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        assert renewing.wait(PATIENCE)
    time.sleep(3)
    assert_nothing_left(executor.run)


def test_signal_handler_of_the_script_is_left_alone(tmp_path):
    process = main_script(tmp_path, '''
        import signal
        signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            os.kill(os.getpid(), signal.SIGTERM)
            print(executor.submit(pow, 2, 3).result())
        ''')
    assert output_of(process)[:2] == (0, 'mine\n8\n')


def test_runs_side_by_side_get_their_own_results(tmp_path):
    processes = []
    for n in range(3):
        folder = tmp_path / str(n)
        folder.mkdir()
        processes.append(main_script(folder, '''
            n = int(sys.argv[1])
            with rios_awsbatch.AWSBatchExecutor(1) as executor:
                results = list(executor.map(lambda x: (n, x), range(100), buffersize=16))
            assert results == [(n, x) for x in range(100)], results
            ''', str(n)))
    assert [output_of(process)[0] for process in processes] == [0] * 3


def test_worker_gives_its_block_back_on_sigterm(monkeypatch):
    monkeypatch.setattr(rios_awsbatch, 'VISIBILITY_SECONDS', 2 * PATIENCE)       # until SQS gives it back
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENCE)
        victim = pids(executor.run)[0]
        futures = [executor.submit(square, x, 0.7) for x in range(4)]
        time.sleep(0.4)
        os.kill(victim, signal.SIGTERM)
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 4, 9]


def refused(caplog):
    return [record for record in caplog.records if 'refused' in record.getMessage()]


def test_forged_results_are_refused_and_the_run_goes_on(executor, caplog, shared):
    """Forged, cut short, of another run, signed with another key: none is unpickled."""
    channel, marker = channel_of(executor), shared / 'unpickled'

    class Evil:
        def __reduce__(self):
            return pathlib.Path.touch, (marker,)
    evil = rios_awsbatch.dumps(Evil())
    futures = [executor.submit(square, x, 0.2) for x in range(12)]
    other = rios_awsbatch.Channel('20260101T000000-00000000', b'other key', channel.bucket, channel.in_queue,
                                  channel.out_queue, REGION)
    forged, _ = other.seal(Message('result', id=12, worker='0'), evil)
    same_key = rios_awsbatch.Channel(other.run_id, channel.key, channel.bucket, channel.in_queue, channel.out_queue, REGION)
    replayed, _ = same_key.seal(Message('result', id=12, worker='0'), evil)
    to_worker, _ = channel.seal(Message('call', id=12, label='', gdal={}), evil)
    cut = dict(forged, MessageBody=forged['MessageBody'][:100])
    for message in (forged, replayed, to_worker, cut, {'MessageBody': 'nonsense'}, {'MessageBody': evil.hex()}):
        channel.send(channel.out_queue, [message])
    assert [future.result(PATIENCE) for future in futures] == [x * x for x in range(12)]
    wait_until(lambda: len(refused(caplog)) == 6)
    assert not marker.exists()


def test_forged_calls_are_refused_and_the_run_goes_on(kept, shared):
    channel, marker = channel_of(kept), shared / 'unpickled'

    class Evil:
        def __reduce__(self):
            return pathlib.Path.touch, (marker,)
    evil = rios_awsbatch.dumps(((Evil(),), {}))
    call = Message('call', id=99, label='evil', gdal={})
    other = rios_awsbatch.Channel(kept.run, b'other key', channel.bucket, channel.in_queue, channel.out_queue, REGION)
    forged, _ = other.seal(call, evil)
    stop, _ = other.seal(Message('stop'))
    real, _ = channel.seal(call, rios_awsbatch.dumps(((3,), {})))
    swapped = dict(real, MessageAttributes=forged['MessageAttributes'])
    channel.send(channel.in_queue, [forged, stop, swapped, dict(forged, MessageBody=forged['MessageBody'][:200])])
    assert list(kept.map(square, range(20), timeout=PATIENCE)) == [x * x for x in range(20)]
    assert not marker.exists()


def test_changed_object_is_refused(executor, shared):
    """Somebody overwrites the arguments of a call in the bucket."""
    channel = channel_of(executor)
    image = numpy.random.default_rng(1).random(10**6)

    def wait(x):
        (shared / str(x)).touch()
        while not (shared / 'go').exists():
            time.sleep(0.05)
    first = [executor.submit(wait, x) for x in range(2)]        # keep both workers busy
    wait_until(lambda: len(list(shared.iterdir())) == 2)
    future = executor.submit(numpy.sum, image)
    name = wait_until(lambda: channel.s3.list_objects_v2(
        Bucket=channel.bucket, Prefix=channel.folder + 'call-').get('Contents'))[0]['Key']
    channel.s3.put_object(Bucket=channel.bucket, Key=name, Body=rios_awsbatch.dumps(((image + 1,), {})))
    (shared / 'go').touch()
    with pytest.raises(rios_awsbatch.AWSBatchException, match='tampered'):
        future.result(PATIENCE)
    assert [each.result(PATIENCE) for each in first] == [None] * 2


def test_repeated_results_count_once(executor):
    """Every message to the main script is sent twice more; the first answer wins."""
    channel = channel_of(executor)
    futures = [executor.submit(square, x, 0.1) for x in range(10)]
    for x in range(10):
        answer = rios_awsbatch.dumps(x * x)
        message, _ = channel.seal(Message('result', id=x + 1, worker='0', tries=1), answer)
        channel.send(channel.out_queue, [message, message])
    assert [future.result(PATIENCE) for future in futures] == [x * x for x in range(10)]
    assert executor.stats()['done'] == 10


def test_worker_that_says_hello_again_and_after_its_end_is_neither_lost_nor_there():
    """SQS delivers a message twice, and late."""
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        channel = channel_of(executor)
        executor.wait_for_workers(2, PATIENCE)
        hello, _ = channel.seal(Message('hello', worker='0', attempt=1))
        stop, _ = channel.seal(Message('stop'))
        channel.send(channel.out_queue, [hello, hello])
        channel.send(channel.in_queue, [stop] * 2)
        wait_until(lambda: executor.stats()['workers_up'] == 0)
        channel.send(channel.out_queue, [hello])
        assert executor.submit(square, 3).result(PATIENCE) == 9         # by another worker
        wait_until(lambda: executor.stats()['workers_up'] == 1)     # what it says is read apart from its answers
        assert executor.stats()['lost'] == 0


@pytest.mark.parametrize('main, worker, said', [
    ({'Python': '3.11.2'}, {'Python': '3.11.9'}, None),
    ({'Python': '3.11.2'}, {'Python': '3.12.3'}, 'Python 3.11.2, but .* Python 3.12.3'),
    ({'numpy': '2.1.0'}, {'numpy': '1.24.2'}, 'numpy'),
    ({'numpy': '2.1.0'}, {'numpy': '1.26.4'}, None),
    ({'numpy': '2.1.0'}, {}, None),
    ({'rios': '1.4.17'}, {'rios': '2.0.9'}, 'rios 1.4.17, but .* rios 2.0.9'),
    ({'rios': '2.0.9'}, {'rios': '2.1dev'}, None),
    ({}, {'rios': '2.0.9'}, None),
    ({'cloudpickle': '3.1.1'}, {'cloudpickle': '2.2.0'}, 'cloudpickle'),
    ({'rios_awsbatch': '1.0.0'}, {'rios_awsbatch': '1.0.3'}, None),
    ({'rios_awsbatch': '1.0.0'}, {'rios_awsbatch': '1.1.0'}, 'build.sh')])
def test_version_mismatch_is_one_sentence(main, worker, said):
    found = rios_awsbatch.mismatch(main, worker)
    assert re.search(said, found) if said else found is None


def test_other_python_in_the_image_fails_the_run_at_once(monkeypatch):
    mine = dict(rios_awsbatch.versions(), Python='3.5.1')
    monkeypatch.setattr(rios_awsbatch, 'versions', lambda: mine)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        with pytest.raises(rios_awsbatch.BrokenAWSBatchExecutor, match='main script has Python 3.5.1, but'):
            executor.submit(square, 3).result(PATIENCE)


def test_missing_module_names_the_variable_to_set(kept):
    def needs():
        import skimage_of_nowhere
        return skimage_of_nowhere
    said = "No module named 'skimage_of_nowhere'.*PIP_PACKAGES.*local.sh: .*pip install skimage_of_nowhere"
    with pytest.raises(rios_awsbatch.AWSBatchException, match=said):
        kept.submit(needs).result(PATIENCE)


def test_missing_module_of_an_argument_names_it(kept, tmp_path, monkeypatch):
    (tmp_path / 'only_here.py').write_text('class Thing:\n    pass\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here
    with pytest.raises(rios_awsbatch.AWSBatchException, match="'only_here'.*register_pickle_by_value"):
        kept.submit(id, only_here.Thing()).result(PATIENCE)

    def needs():
        import only_here.part
        return only_here.part
    cloudpickle.register_pickle_by_value(only_here)
    with pytest.raises(rios_awsbatch.AWSBatchException, match='Import only_here.part at the top of the main script'):
        kept.submit(lambda: (only_here.Thing, needs())).result(PATIENCE)
    cloudpickle.unregister_pickle_by_value(only_here)


class Model:
    def __init__(self):
        self.parts = {'net': [1, threading.Lock()]}


def test_what_cannot_be_pickled_is_one_sentence_that_says_where_it_is(kept):
    lock, scene = threading.Lock(), gdal.GetDriverByName('MEM').Create('', 2, 2)

    def locked():
        return lock
    for call, said in [
            ((id, lock), r'arguments of id\(lock\) cannot be pickled and .* argument 1 is of type lock .*Make it inside'),
            ((max, 3, Model()), r"max\(3, Model\) cannot be .* argument 2.parts\['net'\]\[1\] is of type lock"),
            ((id, scene), r'argument 1 is of type Dataset .* Open it inside the function'),
            ((sum, (x for x in range(3))), r'argument 1 is of type generator .* Pass a list'),
            ((locked,), r'function .*locked cannot be pickled and .* lock is of type lock'),
            ((Model,), r"result of Model\(\) cannot .* it.parts\['net'\]\[1\] is of type lock .* Return arrays")]:
        with pytest.raises(rios_awsbatch.AWSBatchPicklingError, match=said):
            kept.submit(*call).result(PATIENCE)
    assert kept.submit(square, 3).result(PATIENCE) == 9


def test_traceback_of_a_worker_has_the_lines_of_the_script(kept, tmp_path):
    """Whose file is here alone."""
    (tmp_path / 'only_here.py').write_text('def tile(x):\n    return 1 / x     # that is it\n')
    space = {'__name__': '__main__'}
    exec(compile((tmp_path / 'only_here.py').read_text(), tmp_path / 'only_here.py', 'exec'), space)
    error = kept.submit(space['tile'], 0).exception(PATIENCE)
    assert re.search(r'only_here.py", line 2, in tile\n    return 1 / x     # that is it\n', str(error.__cause__))


# ---------------------------------------------------------------------------------------------
# The stack, and errors of AWS
# ---------------------------------------------------------------------------------------------

def test_who_logs_in_again_needs_no_new_process(monkeypatch):
    for key in 'OLD', 'NEW':
        monkeypatch.setenv('AWS_ACCESS_KEY_ID', key)
        used = rios_awsbatch.make_client('cloudformation')._request_signer._credentials
        assert used.access_key == key


SAYS_ERROR = '''
    try:
        rios_awsbatch.AWSBatchExecutor(1)
    except rios_awsbatch.AWSBatchException as error:
        print(error)
'''


@pytest.mark.parametrize('changed, said', [
    ({'RIOS_AWSBATCH_STACK': 'NoSuch'}, 'no stack "NoSuch" in region .*RIOS_AWSBATCH_STACK and '
                                        'RIOS_AWSBATCH_REGION.*scripts/create.sh'),
    ({'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': ''}, 'No AWS credentials.*aws configure'),
    ({'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': '', 'AWS_PROFILE': 'nosuch'}, 'nosuch.*AWS_PROFILE'),
    ({'RIOS_AWSBATCH_REGION': 'ap-southwest-9', 'AWS_ENDPOINT_URL': ''}, r'RIOS_AWSBATCH_REGION \("ap-southwest-9"\)'),
    ({'RIOS_AWSBATCH_REGION': 'us_west_2'}, r'RIOS_AWSBATCH_REGION \("us_west_2"\) is the region you mean'),
    ({'AWS_ENDPOINT_URL': 'http://127.0.0.1:9'}, 'cannot be reached'),
    ({'RIOS_AWSBATCH_STACK': 'S' * 41}, 'longer than 40')])
def test_what_is_wrong_with_aws_is_one_sentence(tmp_path, changed, said):
    if 'ap-southwest-9' in str(changed):        # no name of AWS's is asked for from a test
        changed = dict(changed, AWS_ENDPOINT_URL='http://127.0.0.1:9')
    env = {name: value for name, value in dict(os.environ, **changed).items() if value}
    script = tmp_path / 'main.py'
    script.write_text('import sys\nsys.path.insert(0, {!r})\nimport rios_awsbatch\n{}'.format(
        str(ROOT), textwrap.dedent(SAYS_ERROR)))
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert re.search(said, done.stdout), done.stdout + done.stderr
    assert done.stdout.count('\n') == 1


@pytest.mark.parametrize('status, said', [
    ('CREATE_IN_PROGRESS', 'still being created'),
    ('ROLLBACK_COMPLETE', 'state ROLLBACK_COMPLETE.*delete.sh.*create.sh'),
    ('DELETE_IN_PROGRESS', 'state DELETE_IN_PROGRESS')])
def test_stack_that_is_not_ready_is_one_sentence(tmp_path, status, said):
    with small_stack('Unready') as name:
        local_aws('stack', {'region': REGION, 'name': name, 'status': status})
        test_what_is_wrong_with_aws_is_one_sentence(tmp_path, {'RIOS_AWSBATCH_STACK': name}, said)
        local_aws('stack', {'region': REGION, 'name': name, 'status': 'CREATE_COMPLETE'})


def test_stack_of_somebody_else_is_one_sentence(tmp_path):
    with small_stack('NotOurs') as name:
        test_what_is_wrong_with_aws_is_one_sentence(
            tmp_path, {'RIOS_AWSBATCH_STACK': name}, 'has no output BatchBucket .*not created from this')


@contextlib.contextmanager
def small_stack(name):
    """A stack that is not ours: one log group."""
    cloudformation = client('cloudformation')
    name += '-{}'.format(random.getrandbits(32))
    cloudformation.create_stack(StackName=name, TemplateBody=json.dumps(
        {'Resources': {'Group': {'Type': 'AWS::Logs::LogGroup', 'Properties': {'LogGroupName': name}}}}))
    cloudformation.get_waiter('stack_create_complete').wait(StackName=name, WaiterConfig={'Delay': 1})
    yield name
    cloudformation.delete_stack(StackName=name)


def test_module_alone_is_enough(tmp_path):
    (tmp_path / 'rios_awsbatch.py').write_bytes((ROOT / 'rios_awsbatch.py').read_bytes())
    (tmp_path / 'main.py').write_text(textwrap.dedent('''
        import rios_awsbatch
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            print(executor.submit(pow, 2, 5).result(), rios_awsbatch.__file__)
        '''))
    done = subprocess.run([sys.executable, 'main.py'], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == '32 {}\n'.format(tmp_path / 'rios_awsbatch.py'), done.stderr
