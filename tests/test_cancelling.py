"""
What cancelling saves: a call that nobody waits for any more is not computed, and those that are wanted lose nothing.

That cancel() and shutdown(cancel_futures=True) do what they do in a process pool is in test_like_a_process_pool.py, in
short in test_rios_awsbatch.py; that callbacks may cancel in test_ordinary_python.py.
"""
import contextlib
import time

import rios_awsbatch
from tests.conftest import PATIENCE, client, wait_until


def messages(run):
    """How many calls are in the queue of a run, those that workers have included."""
    sqs, names = client('sqs'), ['ApproximateNumberOfMessages', 'ApproximateNumberOfMessagesNotVisible']
    url = sqs.get_queue_url(QueueName='{}_{}_in'.format(rios_awsbatch.STACK_NAME, run))['QueueUrl']
    return sum(map(int, sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)['Attributes'].values()))


def test_cancelled_tail_is_not_computed_and_wanted_calls_keep_their_place(shared):
    """Of 60 calls the last 50 are cancelled, while both workers are busy with the first two."""
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
            wait_until(lambda: messages(executor.run) == 10, 20)
        (shared / 'go').touch()
        wanted = futures[:10] + [executor.submit(tile, x) for x in range(60, 70)]
        assert [future.result(PATIENCE) for future in wanted] == [*range(10), *range(60, 70)]
    cancelled = [x for x in begun() if 10 <= x < 60]
    assert len(cancelled) < 5
    order = [x for x in begun() if x not in cancelled]
    late = [abs(place - x % 50) for place, x in enumerate(order)]
    assert len(order) == 20 and max(late) < 6, order
