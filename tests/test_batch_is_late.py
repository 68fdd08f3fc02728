"""
What AWS Batch says of a worker is late, and may be wrong for as long: whether a worker lives is what it says and does.

That the local AWS is as late as that is in test_aws_facts.py; what becomes of workers that are gone in test_pool.py.
"""
import time

import pytest

from tests.helpers import ROOT, Stack, another_aws, finish, local_aws, run_main, wait_until

# Long enough for a worker to come up on a busy machine.
START_SECONDS = 15


@pytest.fixture(scope='module')
def aws(tmp_path_factory):
    """A local AWS for this module: the environment of its user."""
    with another_aws(tmp_path_factory.mktemp('aws')) as env:
        yield Stack(env=env).create().push('BatchECR', ROOT / 'worker.py').env


def test_worker_that_answers_before_batch_says_running_is_not_lost(tmp_path, aws):
    """That is 8 s later, and 8 more until the summary of the array says so."""
    local_aws('lag', {'seconds': 8}, env=aws)
    out, err = finish(run_main(tmp_path, aws, '''
        def tile(x):
            time.sleep(0.1)
            return x
        with rios_awsbatch.AWSBatchExecutor(4) as executor:
            up = executor.wait_for_workers(4, 60)
            until = time.monotonic() + 4 * rios_awsbatch.WATCH_SECONDS
            while time.monotonic() < until:
                assert list(executor.map(tile, range(16))) == list(range(16))
            stats = executor.stats()
            print(up, stats['workers_up'], stats['lost'], stats['replaced'])
        '''))
    assert out == '4 4 0 0\n', err
    assert err.count(' is up, ') == 4 and 'WARNING' not in err


@pytest.mark.slow
def test_start_time_out_is_not_for_workers_that_compute(tmp_path, aws):
    """It passes before Batch says that they run."""
    local_aws('lag', {'seconds': 100 * START_SECONDS}, env=aws)
    _, err = finish(run_main(tmp_path, dict(aws, RIOS_AWSBATCH_START_TIMEOUT=str(START_SECONDS)), '''
        def tile(x):
            time.sleep(0.1)
            return x
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            until = time.monotonic() + {} + 3 * rios_awsbatch.WATCH_SECONDS
            while time.monotonic() < until:
                assert list(executor.map(tile, range(16))) == list(range(16))
        '''.format(START_SECONDS)))
    assert 'WARNING' not in err


@pytest.mark.slow
def test_start_time_out_is_not_for_a_worker_whose_instance_was_taken_away(tmp_path, shared, aws):
    """The only one, later than that after the job was submitted; there is no other instance for some seconds."""
    local_aws('lag', {}, env=aws)
    process = run_main(tmp_path, dict(aws, RIOS_AWSBATCH_START_TIMEOUT=str(START_SECONDS)), '''
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            executor.submit(time.sleep, {} + 1).result()
            print('late', flush=True)
            def tile():
                while not os.path.exists({!r}):
                    time.sleep(0.05)
                return 7
            print(executor.submit(tile).result())
        '''.format(START_SECONDS, str(shared / 'go')))
    if process.stdout.readline() != 'late\n':
        pytest.fail(process.communicate()[1])
    local_aws('quota', {'vcpus': 0}, env=aws)
    job, = local_aws('jobs', env=aws)['jobs']
    local_aws('jobs/interrupt', {'jobId': job['jobId'], 'notice': False}, env=aws)
    wait_until(lambda: not local_aws('jobs', env=aws)['jobs'])
    time.sleep(6)       # until Batch has said so, and the main script has looked
    local_aws('quota', {}, env=aws)
    (shared / 'go').touch()
    assert finish(process)[0] == '7\n'
