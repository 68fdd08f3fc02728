"""
The end of a run: neither a worker that is dead or slow, nor one for which there is nothing to do, is waited for.

That a lost call comes back in any case is in test_rios_awsbatch.py and test_pool.py.
"""
import contextlib
import gc
import os
import signal
import sys
import time
import weakref

import cloudpickle
import numpy
import pytest

import rios_awsbatch
from tests.helpers import PATIENCE, assert_nothing_left, pids, processes_of, square, wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def hidden(monkeypatch):
    """SQS gives a call to nobody else, however slow its worker is on a busy machine."""
    monkeypatch.setattr(rios_awsbatch, 'VISIBILITY_SECONDS', 2 * PATIENCE)


def tile(folder, x):
    """Computes x; the first that computes 3 does not end before the file `go` is there."""
    with (folder / 'begun').open('a') as file:
        file.write('{}\n'.format(x))
    time.sleep(0.1)
    first = False
    if x == 3:
        with contextlib.suppress(FileExistsError), (folder / 'first').open('x') as file:
            file.write(str(os.getppid()))
            first = True
        while first and not (folder / 'go').exists():
            time.sleep(0.05)
    return x, first


def begun(folder):
    return list(map(int, (folder / 'begun').read_text().split()))


def test_call_that_crawls_is_computed_by_another_worker_when_no_other_call_waits(shared, hidden):
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENCE)
        results = list(executor.map(tile, [shared] * 40, range(40), timeout=PATIENCE))
    assert results == [(x, False) for x in range(40)]
    assert sorted(begun(shared)) == sorted([*range(40), 3]) and begun(shared)[-1] == 3
    assert_nothing_left(executor.run)


def test_call_that_must_not_run_twice_at_a_time_does_not(shared, hidden):
    with rios_awsbatch.AWSBatchExecutor(2, copies=False) as executor:
        futures = [executor.submit(tile, shared, x) for x in range(8)]
        wait_until(lambda: sum(future.done() for future in futures) == 7)
        time.sleep(3 * rios_awsbatch.COPY_SECONDS + 1)
        (shared / 'go').touch()
        assert futures[3].result(PATIENCE) == (3, True)
    assert begun(shared).count(3) == 1


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
def test_worker_that_is_gone_or_stopped_does_not_hold_up_the_end(number, shared, hidden, monkeypatch):
    monkeypatch.setattr(rios_awsbatch, 'COPY_SECONDS', 5)
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENCE)
        futures = [executor.submit(tile, shared, x) for x in range(8)]
        wait_until(lambda: sum(future.done() for future in futures) == 7)
        victims = processes_of(int((shared / 'first').read_text()))
        for process in victims:
            os.kill(process, number)
        assert futures[3].result(PATIENCE) == (3, False)
    with contextlib.suppress(ProcessLookupError):
        for process in victims:
            os.kill(process, signal.SIGCONT)
    assert_nothing_left(executor.run)


def test_result_of_a_call_that_was_nearly_late_is_let_go():
    """While nothing else is submitted."""
    def slow(x):
        time.sleep(1.2)
        return numpy.zeros(x)
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENCE)
        assert executor.submit(square, 3).result(PATIENCE) == 9
        future = executor.submit(slow, 7)
        kept = weakref.ref(future.result(PATIENCE))
        del future
        wait_until(lambda: (gc.collect(), kept())[1] is None, 60)


def test_future_that_is_kept_keeps_nothing_of_its_run(monkeypatch, tmp_path):
    """Neither connections, nor the file of its report."""
    def files():
        gc.collect()
        return len(os.listdir('/proc/self/fd'))
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path))
    before, kept = files(), []
    for x in range(2):
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            kept.append(executor.submit(square, x))
        run = weakref.ref(executor._run)
        del executor
        wait_until(lambda: (gc.collect(), run())[1] is None, 60)
    assert [future.result() for future in kept] == [0, 1]
    assert files() <= before


def test_workers_for_which_there_is_nothing_to_do_end_before_the_last_call(shared, hidden):
    """But for one that could compute its copy, if there were copies."""
    with rios_awsbatch.AWSBatchExecutor(4, copies=False) as executor:
        executor.wait_for_workers(4, PATIENCE)
        futures = [executor.submit(tile, shared, x) for x in range(4)]
        executor.shutdown(wait=False)
        wait_until(lambda: len(pids(executor.run)) == 2)
        assert not futures[3].done() and executor.stats()['lost'] == 0
        (shared / 'go').touch()
        assert futures[3].result(PATIENCE) == (3, True)
    assert_nothing_left(executor.run)
