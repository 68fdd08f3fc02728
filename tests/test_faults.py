"""
Requests of AWS that fail, and messages that come twice, late and in any order, change no result.

Workers that are lost, logins that expire: test_pool.py. For hours, and with kills besides: scripts/dev/chaos.py.
"""
import subprocess
import sys

import pytest

from tests.helpers import ROOT, PATIENCE, local_aws, wait_until, Stack, write_main, another_aws


FAULTS = {'errors': 0.05, 'cut': 0.05, 'duplicate': 0.1, 'late': 0.1, 'reorder': 1, 'seed': 2}
MANY = '''
    import hashlib, logging
    import numpy
    logging.basicConfig(level=logging.WARNING)

    def tile(n, block):
        time.sleep(0.03)
        return n, block[::-1] if n % 3 else block.sum()

    def block(n):
        return numpy.random.default_rng(n).integers(0, 2**16, 120_000 if n % 10 == 0 else 50)
    with rios_awsbatch.AWSBatchExecutor(4) as executor:
        results = list(executor.map(tile, range(200), map(block, range(200)), buffersize=24))
    assert [n for n, _ in results] == list(range(200))
    for n, result in results:
        assert numpy.array_equal(result, tile(n, block(n))[1]), n
    print('identical', flush=True)
'''


@pytest.mark.slow
def test_faults_of_aws_change_no_result(tmp_path):
    """Of all requests 5 % fail, and of all answers 5 % break off; messages come twice, late and in any order."""
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        local_aws('faults', FAULTS, env=env)
        done = subprocess.run([sys.executable, write_main(tmp_path, MANY)], env=stack.env, capture_output=True, text=True,
                              timeout=PATIENCE)
        local_aws('faults', {}, env=env)
        assert (done.returncode, done.stdout) == (0, 'identical\n'), done.stderr[-5000:]
        assert not stack.queues()
        wait_until(lambda: not local_aws('jobs', env=env)['jobs'])
        assert not stack.objects('runs/')


DELETES = '''
    from tests.helpers import client, local_aws
    url = client('sqs').create_queue(QueueName='calls')['QueueUrl']
    channel = rios_awsbatch.Channel('run', b'key', None, url, url, rios_awsbatch.REGION).connect()
    channel.send(url, [{'MessageBody': str(n)} for n in range(60)])
    receipts = []
    while len(receipts) < 60:
        receipts += [message['ReceiptHandle'] for message in channel.receive(url, 1)]
    local_aws('faults', {'errors': 0.1, 'seed': 1})
    channel.delete(url, receipts)
    local_aws('faults', {})
    there = client('sqs').get_queue_attributes(QueueUrl=url, AttributeNames=['All'])['Attributes']
    print({name: there[name] for name in there if name.startswith('ApproximateNumber')})
'''


def test_entries_of_a_batch_that_are_not_deleted_are_deleted_later(tmp_path):
    """SQS says of each whether it was deleted, and calls that were not would be computed again."""
    with another_aws(tmp_path) as env:
        done = subprocess.run([sys.executable, write_main(tmp_path, DELETES)], env=env, capture_output=True, text=True,
                              timeout=PATIENCE)
    assert done.stdout.count("'0'") == 3, (done.stdout, done.stderr)
