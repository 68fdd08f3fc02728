"""
What cancelling saves: a call that nobody waits for any more is not computed, and those that are wanted lose nothing.

That cancel() and shutdown(cancel_futures=True) do what they do in a process pool is in test_like_a_process_pool.py, in
short in test_rios_awsbatch.py; that callbacks may cancel in test_ordinary_python.py.
"""
import concurrent.futures
import contextlib
import os
import random
import sys
import threading
import time

import cloudpickle
import pytest

import rios_awsbatch
from tests.helpers import PATIENCE, assert_nothing_left, bucket, client, square, wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def messages(run, hidden=True):
    """How many calls are in the queue of a run, those that somebody has received included, unless told otherwise."""
    sqs, names = client('sqs'), ['ApproximateNumberOfMessages'] + ['ApproximateNumberOfMessagesNotVisible'] * hidden
    url = sqs.get_queue_url(QueueName='{}_{}_in'.format(rios_awsbatch.STACK_NAME, run))['QueueUrl']
    return sum(map(int, sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)['Attributes'].values()))


def test_cancelled_tail_is_not_computed_and_wanted_calls_keep_their_place(shared, monkeypatch):
    """Of 60 calls the last 50 are cancelled, while both workers are busy with the first two."""
    monkeypatch.setattr(rios_awsbatch, 'VISIBILITY_SECONDS', 60)        # none is begun twice, however slow a worker is

    def tile(x):
        with (shared / 'begun').open('a') as file:
            file.write('{}\n'.format(x))
        while x < 2 and not (shared / 'go').exists():
            time.sleep(0.05)
        time.sleep(0.2)
        return x

    (shared / 'begun').touch()

    def begun():
        return list(map(int, (shared / 'begun').read_text().split()))
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        futures = [executor.submit(tile, x) for x in range(60)]
        executor.wait_for_workers(2, PATIENCE)
        wait_until(lambda: messages(executor.run) == 60 and len(begun()) == 2)
        for future in futures[10:]:
            assert future.cancel()
        with contextlib.suppress(AssertionError):       # what they begin all the same is counted below
            # Those that are wanted are back, too, which the main script has hidden while it looked.
            wait_until(lambda: messages(executor.run) == 10 and messages(executor.run, hidden=False) == 8, 20)
        (shared / 'go').touch()
        wanted = futures[:10] + [executor.submit(tile, x) for x in range(60, 70)]
        assert [future.result(PATIENCE) for future in wanted] == [*range(10), *range(60, 70)]
    cancelled = [x for x in begun() if 10 <= x < 60]
    assert len(cancelled) < 5
    order = [x for x in begun() if x not in cancelled]
    late = [abs(place - x % 50) for place, x in enumerate(order)]
    assert len(order) == 20 and max(late) < 6, order


def test_call_that_is_wanted_survives_the_cancelling_of_others(shared, monkeypatch):
    """To take cancelled calls out of the queue, the main script receives those that are wanted, too."""
    monkeypatch.setattr(rios_awsbatch, 'MAX_RECEIVES', 3)

    def wait():
        while not (shared / 'go').exists():
            time.sleep(0.05)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        long = executor.submit(wait)
        executor.wait_for_workers(1, PATIENCE)
        wanted = executor.submit(square, 3)
        for _ in range(6):
            others = [executor.submit(square, x) for x in range(4)]
            wait_until(lambda: messages(executor.run) == 6)
            for future in others:
                assert future.cancel()
            wait_until(lambda: messages(executor.run) == 2)
        (shared / 'go').touch()
        assert long.result(PATIENCE) is None
        assert wanted.result(PATIENCE) == 9


def marks(x, seconds):
    """Computes, and leaves a mark in the run's folder that it did."""
    import boto3
    boto3.client('s3', os.environ['RIOSRegion']).put_object(
        Bucket=os.environ['RIOSBucket'], Key='runs/{}/mark-{}'.format(os.environ['RIOSRun'], x))
    time.sleep(seconds)
    return x


def objects(run, prefix):
    """The names of objects in the folder of a run (set)."""
    found = client('s3').list_objects_v2(Bucket=bucket(), Prefix='runs/{}/{}'.format(run, prefix))
    return {item['Key'] for item in found.get('Contents', ())}


@pytest.mark.parametrize('how', ['break', 'cancel', 'close'])
def test_worker_does_not_begin_what_nobody_waits_for(how):
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        executor.wait_for_workers(1, PATIENCE)
        if how == 'break':
            for _ in executor.map(marks, range(100), [0.3] * 100):
                break
        elif how == 'close':
            results = executor.map(marks, range(100), [0.3] * 100)
            next(results)
            results.close()
        else:
            futures = [executor.submit(marks, x, 0.3) for x in range(100)]
            futures[0].result(PATIENCE)
            for future in futures[1:]:
                future.cancel()
        assert executor.submit(square, 3).result(PATIENCE) == 9
        assert [executor.submit(square, x, 0.3).result(PATIENCE) for x in range(4)] == [0, 1, 4, 9]
        assert len(objects(executor.run, 'mark-')) < 50
    assert_nothing_left(executor.run)


def test_large_call_that_is_cancelled_before_its_turn_is_not_uploaded(monkeypatch):
    """Its turn comes when another one has been sent, which takes until then."""
    cancelled = threading.Event()

    def slowly(request, **kwargs):
        if '/call-' in request.url:
            cancelled.wait(PATIENCE)

    def made(service, *args, make=rios_awsbatch.make_client, **kwargs):
        client = make(service, *args, **kwargs)
        client.meta.events.register('before-send.s3.PutObject', slowly)
        return client
    monkeypatch.setattr(rios_awsbatch, 'make_client', made)
    monkeypatch.setattr(rios_awsbatch, 'PREPARERS', 1)
    noise = random.Random(1).randbytes(2_000_000)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        first = executor.submit(len, noise)
        others = [executor.submit(len, noise[:700_000 + x]) for x in range(20)]
        assert all(future.cancel() for future in others)
        cancelled.set()
        last = executor.submit(len, noise[:800_000])
        uploaded = objects(executor.run, 'call-')
        assert (first.result(PATIENCE), last.result(PATIENCE)) == (2_000_000, 800_000)
        uploaded |= objects(executor.run, 'call-')
        assert len(uploaded) <= 2


@pytest.mark.parametrize('how', ['cancel', 'shutdown', 'break'])
def test_whoever_waits_for_a_cancelled_call_is_told(how):
    """At once where the run goes on, and when it ends, in whichever way."""
    with contextlib.suppress(ZeroDivisionError), rios_awsbatch.AWSBatchExecutor(1) as executor:
        futures = [executor.submit(square, 2, 1) for _ in range(60)]
        executor.wait_for_workers(1, PATIENCE)
        if how == 'cancel':
            for future in futures[1:]:
                future.cancel()
            assert not concurrent.futures.wait(futures[3:], PATIENCE).not_done
        elif how == 'shutdown':
            executor.shutdown(cancel_futures=True)
        else:
            raise ZeroDivisionError
    assert not concurrent.futures.wait(futures, 0).not_done
    assert sum(future.cancelled() for future in futures) > 15
    assert_nothing_left(executor.run)
