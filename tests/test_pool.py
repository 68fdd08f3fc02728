"""
AWSBatchExecutor(n) means n workers for as long as calls are outstanding, and what AWS does to them is an
event, not the end of the run.

Tests that change the whole local AWS (its clock, its quota, the login) have one of their own. What Batch says too late is
in test_batch_is_late.py, requests and messages that go wrong in test_faults.py, blocks that kill their process and other
promises of the README in test_rios_awsbatch.py.
"""
import contextlib
import json
import logging
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

import cloudpickle
import pytest

import rios_awsbatch
from tests.helpers import (
    MANIFEST, PATIENCE, ROOT, SCRIPTS, Stack, another_aws, assert_nothing_left, channel_of, client, finish,
    job_definition, jobs_of, local_aws, output_of, pids, refuses, run, run_main, square, wait_until, write_main)

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope='module')
def aws(tmp_path_factory):
    """A local AWS for this module: the environment of its user."""
    with another_aws(tmp_path_factory.mktemp('aws')) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        yield stack.env


def kill(run, number=signal.SIGKILL, most=100):
    """Send a signal to workers of a run; how many there were."""
    victims = pids(run)[:most]
    for pid in victims:
        os.kill(pid, number)
    return len(victims)


def waits(path):
    """A function for workers, whose calls end when there is a file of that name."""
    def tile(x):
        while not path.exists():
            time.sleep(0.05)
        return x
    return tile


# ---------------------------------------------------------------------------------------------
# Workers that are gone
# ---------------------------------------------------------------------------------------------

def test_run_longer_than_the_job_time_out_goes_on(tmp_path, aws):
    """Two workers whose jobs are timed out after 10 s, 30 s of work."""
    local_aws('speed', {'times': 6}, env=aws)
    try:
        out, err = finish(run_main(tmp_path, aws, '''
            def tile(x):
                time.sleep(0.5)
                return x * x
            with rios_awsbatch.AWSBatchExecutor(2, timeout=60) as executor:
                assert list(executor.map(tile, range(60), buffersize=20)) == [x * x for x in range(60)]
                print(executor.stats()['lost'], executor.stats()['replaced'])
            '''))
    finally:
        local_aws('speed', {'times': 1}, env=aws)
    lost, replaced = map(int, out.split())
    assert lost >= 2 and replaced >= 2
    assert 'job time-out' in err and 'in place of those that are gone' in err


@pytest.mark.slow
def test_workers_that_fail_for_good_are_replaced(shared, caplog):
    """Two of three are gone in mid-run, and Batch does not start them again: soon there are three."""
    caplog.set_level(logging.INFO)
    tile = waits(shared / 'go')
    with job_definition(retry={'attempts': 1}) as name, \
            rios_awsbatch.AWSBatchExecutor(3, job_definition=name) as executor:
        assert executor.wait_for_workers(3, PATIENCE) == 3
        assert executor.submit(square, 3).result(PATIENCE) == 9
        futures = [executor.submit(tile, x) for x in range(30)]
        assert kill(executor.run, most=2) == 2
        wait_until(lambda: executor.stats()['lost'] == 2)
        assert executor.stats()['workers_up'] <= 3
        wait_until(lambda: executor.stats()['replaced'] == 2 and executor.stats()['workers_up'] == 3)
        (shared / 'go').touch()
        assert [future.result(PATIENCE) for future in futures] == list(range(30))
    assert re.search(r'workers? .*exit code 137', caplog.text)
    assert_nothing_left(executor.run)


def test_call_of_a_worker_that_is_asked_to_end_is_for_another_one_at_once(shared, monkeypatch):
    """Also while that worker fetches its next call: it does not take again what it has given back."""
    monkeypatch.setattr(rios_awsbatch, 'VISIBILITY_SECONDS', 3 * PATIENCE)

    def tile(x):
        if x == 4 and not (shared / 'begun').exists():
            (shared / 'begun').touch()
            time.sleep(3 * PATIENCE)
        return x
    with rios_awsbatch.AWSBatchExecutor(1, copies=False) as executor:
        assert list(executor.map(tile, range(4))) == list(range(4))
        future = executor.submit(tile, 4)
        wait_until((shared / 'begun').exists)
        kill(executor.run, signal.SIGTERM)
        assert future.result(PATIENCE) == 4


@pytest.mark.slow
def test_random_kills_lose_no_block_and_give_none_up():
    """180 blocks; a worker is killed at random every 0.3 s, when ten have been answered since the last one was."""
    rng, stop, killed = random.Random(os.urandom(8)), threading.Event(), []

    def killer():
        answered = 0
        while not stop.wait(0.3):
            done = executor.stats()['done']     # on a busy machine, too, a kill finds a run that moves
            victims = pids(executor.run) if done >= answered + 10 else []
            if victims:
                answered = done
                killed.append(rng.choice(victims))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)
    with rios_awsbatch.AWSBatchExecutor(4) as executor:
        executor.wait_for_workers(4, PATIENCE)
        thread = threading.Thread(target=killer)
        thread.start()
        try:
            while len(killed) <= 5:             # mostly once
                results = list(executor.map(square, range(180), [0.1] * 180, buffersize=24))
                assert results == [x * x for x in range(180)]
        finally:
            stop.set()
            thread.join()
    assert_nothing_left(executor.run)


def test_worker_that_is_killed_before_it_is_up_is_replaced(shared):
    """Python itself imports what keeps the first from coming up."""
    (shared / 'sitecustomize.py').write_text('import os, time\nif not os.path.exists({0!r}):\n'
                                             '    open({0!r}, "x")\n    time.sleep(1000)\n'.format(str(shared / 'first')))
    with job_definition(environment=[{'name': 'PYTHONPATH', 'value': str(shared)}]) as name, \
            rios_awsbatch.AWSBatchExecutor(1, job_definition=name) as executor:
        future = executor.submit(square, 3)
        wait_until((shared / 'first').exists)
        os.kill(pids(executor.run)[0], signal.SIGKILL)
        assert executor.stats()['workers_up'] == 0
        assert future.result(PATIENCE) == 9
        assert executor.stats()['replaced'] == 1


def test_last_call_has_more_workers_the_more_of_them_were_killed(shared):
    """With one for one call, kills that come faster than a worker computes would never let it be answered."""
    with rios_awsbatch.AWSBatchExecutor(3) as executor:
        executor.wait_for_workers(3, PATIENCE)
        future = executor.submit(waits(shared / 'go'), 3)
        for pid in pids(executor.run):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: executor.stats()['workers_up'] == 3 and executor.stats()['lost'] == 3)
        (shared / 'go').touch()
        assert future.result(PATIENCE) == 3
        assert executor.stats()['replaced'] == 3


def test_idle_workers_come_back_when_there_are_calls_for_them(shared):
    """Two of three end idle while one computes for long; then all three are wanted again."""
    environment = [{'name': 'RIOS_NOMSG_TIMEOUT', 'value': '2'}]
    with job_definition(environment=environment) as name, \
            rios_awsbatch.AWSBatchExecutor(3, job_definition=name, copies=False) as executor:
        long, *others = (executor.submit(waits(shared / file), 1) for file in ('long', 'short', 'short'))
        wait_until(lambda: executor.stats()['workers_up'] == 3)
        (shared / 'short').touch()
        wait_until(lambda: executor.stats()['workers_up'] == 1)
        (shared / 'long').touch()
        assert [future.result(PATIENCE) for future in (long, *others)] == [1] * 3
        futures = [executor.submit(waits(shared / 'more'), x) for x in range(12)]
        wait_until(lambda: executor.stats()['workers_up'] == 3)
        (shared / 'more').touch()
        assert [future.result(PATIENCE) for future in futures] == list(range(12))
        assert executor.stats()['lost'] == 0


def test_run_that_ends_takes_back_a_worker_that_has_not_started(aws, monkeypatch):
    """Another has ended idle before; the new one waits for a quota, and would cost an instance later on."""
    for name in ('AWS_ENDPOINT_URL', 'AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.setenv(name, aws[name])
    monkeypatch.setattr(rios_awsbatch, 'STACK_NAME', aws['RIOS_AWSBATCH_STACK'])
    environment = [{'name': 'RIOS_NOMSG_TIMEOUT', 'value': '2'}]
    with job_definition(environment=environment) as name, \
            rios_awsbatch.AWSBatchExecutor(1, job_definition=name) as executor:
        executor.wait_for_workers(1, PATIENCE)
        wait_until(lambda: executor.stats()['workers_up'] == 0)
        local_aws('quota', {'vcpus': 0})
        try:
            call = executor.submit(square, 1)
            wait_until(lambda: executor.stats()['replaced'] == 1)
            assert call.cancel()
            executor.shutdown()
        finally:
            local_aws('quota', {})
    found = jobs_of(executor.run, aws)[0]
    assert found['status'] == 'FAILED' and 'startedAt' not in found


@pytest.mark.slow
def test_idle_time_out_begins_when_the_last_call_has_ended():
    """However long that took. A worker asks for calls for 20 s at a time."""
    environment = [{'name': 'RIOS_NOMSG_TIMEOUT', 'value': '30'}]
    with job_definition(environment=environment) as name, \
            rios_awsbatch.AWSBatchExecutor(1, job_definition=name) as executor:
        assert executor.submit(square, 5, 31).result(PATIENCE) == 25
        time.sleep(25)
        assert executor.stats()['workers_up'] == 1
        assert executor.submit(square, 6).result(PATIENCE) == 36
        assert executor.stats()['replaced'] == 0


def test_idle_time_out_below_the_visibility_time_out_is_refused():
    environment = [{'name': 'RIOS_NOMSG_TIMEOUT', 'value': '1'}]
    with job_definition(environment=environment) as name, \
            rios_awsbatch.AWSBatchExecutor(1, job_definition=name) as executor:
        with pytest.raises(rios_awsbatch.BrokenAWSBatchExecutor, match='RIOS_NOMSG_TIMEOUT .* visibility'):
            executor.submit(square, 1).result(PATIENCE)


def test_initializer_that_fails_with_a_long_text_ends_the_run_at_once():
    """SQS takes no message of that length."""
    def load():
        raise ValueError('\U0001f6f0' * 2**20)
    with rios_awsbatch.AWSBatchExecutor(1, initializer=load) as executor:
        with pytest.raises(rios_awsbatch.BrokenAWSBatchExecutor, match='initializer failed(.|\n)*ValueError: \U0001f6f0'):
            executor.submit(square, 1).result(PATIENCE)
        assert executor.stats()['lost'] == 0


def test_block_that_ends_its_process_costs_no_worker(caplog):
    """exit(1) in compiled code, and a crash: that block alone fails, and says how, from the first time on."""
    def tile(x):
        import ctypes
        if x == 5:
            ctypes.CDLL(None).exit(1)
        if x == 6:
            os.kill(os.getpid(), signal.SIGSEGV)
        return x
    with rios_awsbatch.AWSBatchExecutor(2, copies=False) as executor:
        futures = [executor.submit(tile, x) for x in range(20)]
        for x, said in (5, 'exit code 1'), (6, 'SIGSEGV.*compiled code'):
            with pytest.raises(rios_awsbatch.AWSBatchException, match='tried 3 times.*' + said):
                futures[x].result(PATIENCE)
        assert [future.result(PATIENCE) for x, future in enumerate(futures) if x not in (5, 6)] == [
            x for x in range(20) if x not in (5, 6)]
        assert executor.stats()['lost'] == 0
    told = [record.getMessage() for record in caplog.records if 'tile(5)' in record.getMessage()]
    assert len(told) == 3 and told[0].endswith('exit code 1.') and 'try 1 of 3' in told[0]


def test_exception_comes_home_from_a_process_that_has_no_standard_error_any_more(caplog):
    """It is printed there, too."""
    class Tee:
        def write(self, text):
            pass

    def tile(x):
        if x == 0:
            sys.stderr.close()
        else:
            sys.stderr = Tee()
        raise ZeroDivisionError(x)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        for x in range(2):
            with pytest.raises(ZeroDivisionError, match=str(x)):
                executor.submit(tile, x).result(PATIENCE)
    assert not [record for record in caplog.records if 'try 1' in record.getMessage()]


@pytest.mark.parametrize('how', ['fork', 'exec'])
def test_block_that_ends_its_process_and_leaves_a_daemon_behind_is_no_block_to_wait_for(how, shared):
    """A daemon is in a session of its own, and may have all that is open."""
    daemon = 'echo $$ >> {}; exec sleep 1000'.format(shared / 'daemons')

    def tile(how):
        if how == 'exec':
            os.system("exec setsid sh -c '{}' &".format(daemon))
        elif os.fork() == 0:
            os.setsid()
            os.execlp('sh', 'sh', '-c', daemon)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        with pytest.raises(rios_awsbatch.AWSBatchException, match='tried 3 times.*SIGKILL'):
            executor.submit(tile, how).result(PATIENCE)
        assert executor.submit(square, 3).result(PATIENCE) == 9
    for pid in wait_until(lambda: (found := (shared / 'daemons').read_text().split())[2:] and found):
        os.kill(int(pid), signal.SIGKILL)


@pytest.mark.slow
def test_worker_that_cannot_reach_s3_in_the_middle_of_a_call_ends_and_another_one_computes_it(tmp_path, stack):
    """A connection that fails is an OSError, as a pipe of a process is that has died."""
    stack.push('BatchECR', ROOT / 'worker.py', stack.endpoint.replace('http:', 'AWS_ENDPOINT_URL_S3=https:'))
    process = run_main(tmp_path, stack.env, '''
        data = os.urandom(2 * rios_awsbatch.FUNCTION_BYTES)
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            future = executor.submit(lambda: len(data))
            executor.wait_for_workers(1)
            print('up', flush=True)
            print(future.result() == len(data), executor.stats()['lost'])
        ''')
    assert process.stdout.readline() == 'up\n'
    stack.push('BatchECR', ROOT / 'worker.py')
    out, err = finish(process)
    assert out == 'True 1\n', err


def test_argument_that_does_not_exist_is_told_with_the_one_that_is_meant():
    with pytest.raises(TypeError, match=r"no argument 'mem': did you mean memory \(MiB\)\?"):
        rios_awsbatch.AWSBatchExecutor(1, mem=3000)


def test_lack_of_memory_is_told_at_once_and_not_tried_again(tmp_path, aws):
    """The memory is too little for the worker itself; Batch starts its job once."""
    process = run_main(tmp_path, aws, '''
        executor = rios_awsbatch.AWSBatchExecutor(1, memory=15)
        print(executor.run, executor.submit(time.sleep, 60).exception(), flush=True)
        executor.shutdown()
        ''')
    out, err = finish(process)
    run, _, told = out.partition(' ')
    assert re.match('No worker .* OutOfMemoryError.*more memory than its job has.*--mem', told)
    assert [len(job['attempts']) for job in jobs_of(run, aws)] == [1] * len(jobs_of(run, aws))
    first = next(line for line in err.splitlines() if line.startswith('WARNING'))
    assert re.search('worker 0: .*OutOfMemoryError.*more memory than its job has.*--mem', first)


def test_spot_reclaims_are_no_tries_of_a_block(tmp_path, shared, aws):
    """The instance of the only worker is taken away without a notice, five times."""
    process = run_main(tmp_path, aws, '''
        folder = {!r}
        def tile():
            with open(folder + '/begun', 'a') as file:
                file.write('x')
            while not os.path.exists(folder + '/go'):
                time.sleep(0.05)
            return 7
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            print(executor.run, flush=True)
            print(executor.submit(tile).result())
        '''.format(str(shared)))
    run, begun = process.stdout.readline().strip(), shared / 'begun'
    for times in range(1, 6):
        wait_until(lambda: begun.exists() and len(begun.read_text()) >= times)
        job, = (job for job in local_aws('jobs', env=aws)['jobs'] if run in job['jobName'])
        local_aws('jobs/interrupt', {'jobId': job['jobId'], 'notice': False}, env=aws)
    (shared / 'go').touch()
    assert finish(process)[0] == '7\n'


def test_main_script_that_slept_longer_than_its_lease_goes_on(tmp_path, aws):
    """A closed laptop: its worker has ended when it wakes, and another takes its place."""
    process = run_main(tmp_path, aws, '''
        def tile(x):
            time.sleep(0.2)
            return x
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            futures = [executor.submit(tile, x) for x in range(100)]
            futures[0].result()
            print(executor.run, flush=True)
            assert [future.result() for future in futures] == list(range(100))
        ''')
    assert process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not local_aws('jobs', env=aws)['jobs'])
    process.send_signal(signal.SIGCONT)
    assert 'in place of those that are gone' in finish(process)[1]


def test_wrong_image_that_was_pushed_in_mid_run_is_refused_alone(tmp_path, stack):
    """A worker that is started again gets the new `latest`; the other one goes on with the old."""
    stack.push('BatchECR', ROOT / 'worker.py')
    process = run_main(tmp_path, stack.env, '''
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            executor.wait_for_workers(2)
            print(executor.run, flush=True)
            while not os.path.exists({!r}):
                assert list(executor.map(abs, range(-20, 0))) == list(range(20, 0, -1))
        '''.format(str(tmp_path / 'enough')))
    run = process.stdout.readline().strip()
    assert run
    other = tmp_path / 'other.py'
    other.write_text('import os, platform, runpy\nplatform.python_version = lambda: "3.5.1"\n'
                     'runpy.run_path(os.path.dirname(__file__) + "/worker.py", run_name="__main__")\n')
    stack.push('BatchECR', other)
    os.kill(pids(run, stack.env)[0], signal.SIGKILL)
    refused = next(line for line in iter(process.stderr.readline, '') if 'is refused' in line)
    assert re.search(r'The main script has Python .* image has Python 3.5.1', refused)
    (tmp_path / 'enough').touch()
    finish(process)


# ---------------------------------------------------------------------------------------------
# Other workers than the stack's
# ---------------------------------------------------------------------------------------------

def test_run_has_as_many_workers_as_the_stack_allows_and_of_the_size_that_it_asks_for(tmp_path):
    stack = Stack(MaxJobs=2, MaxVCPUS=8).create().push('BatchECR', ROOT / 'worker.py')
    out, _ = finish(run_main(tmp_path, stack.env, '''
        with rios_awsbatch.AWSBatchExecutor(vcpus=3, memory=2000, timeout=5000) as executor:
            assert executor.stats()['workers'] == 2
            print(executor.run, sum(executor.map(abs, range(9))))
        '''))
    run, total = out.split()
    found, = jobs_of(run, stack.env)
    assert total == '36' and found['arrayProperties']['size'] == 2
    assert found['timeout'] == {'attemptDurationSeconds': 5000}
    assert {need['type']: need['value'] for need in found['container']['resourceRequirements']} == {
        'VCPU': '3', 'MEMORY': '2000'}


@pytest.mark.parametrize('name', ['mp_context', 'max_tasks_per_child'])
def test_argument_that_means_nothing_on_aws_is_refused_by_its_name(name):
    with pytest.raises(TypeError, match=name):
        rios_awsbatch.AWSBatchExecutor(1, **{name: None})


# ---------------------------------------------------------------------------------------------
# Workers that do not come
# ---------------------------------------------------------------------------------------------

def test_container_that_does_not_start_at_first_is_no_event_for_the_user(tmp_path, aws):
    local_aws('starts', {'fail': 2}, env=aws)
    assert finish(run_main(tmp_path, aws, '''
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            print(list(executor.map(abs, range(-3, 0))))
        '''))[0] == '[3, 2, 1]\n'


def test_wait_for_a_worker_is_told_with_what_batch_says(tmp_path, aws):
    """The account's quota is used up; when that has passed, the run goes on."""
    local_aws('quota', {'vcpus': 0}, env=aws)
    process = run_main(tmp_path, aws, '''
        rios_awsbatch.TELL_SECONDS = 2
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            print(executor.submit(abs, -3).result())
        ''')
    try:
        lines = iter(process.stderr.readline, '')
        told = [next(line for line in lines if 'no worker has been up for' in line) for _ in range(2)]
    finally:
        local_aws('quota', {}, env=aws)
    assert 'RUNNABLE' in told[0] and 'CAPACITY' in told[1] and 'vCPU quota' in told[1]
    assert finish(process)[0] == '3\n'


def test_start_time_out_bounds_the_wait(tmp_path, aws):
    local_aws('quota', {'vcpus': 0}, env=aws)
    try:
        process = run_main(tmp_path, dict(aws, RIOS_AWSBATCH_START_TIMEOUT='3'), '''
            with rios_awsbatch.AWSBatchExecutor(2) as executor:
                executor.submit(abs, -3).result()
            ''')
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        local_aws('quota', {}, env=aws)
    assert process.returncode == 1
    assert 'No worker has come up within 3 seconds (RIOS_AWSBATCH_START_TIMEOUT)' in err


@pytest.mark.parametrize('value', ['soon', '-1', '0'])
def test_bad_start_time_out_starts_nothing(value, monkeypatch):
    monkeypatch.setenv('RIOS_AWSBATCH_START_TIMEOUT', value)
    with pytest.raises(rios_awsbatch.AWSBatchException, match='RIOS_AWSBATCH_START_TIMEOUT'):
        rios_awsbatch.AWSBatchExecutor(1)


def test_misconfiguration_ends_the_run_with_the_remedy(tmp_path, aws):
    """More memory than any instance has: that does not pass."""
    process = run_main(tmp_path, aws, '''
        with rios_awsbatch.AWSBatchExecutor(1, memory=9_000_000) as executor:
            executor.submit(abs, -3).result()
        ''')
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert re.search(r'No worker can start. AWS Batch says: MISCONFIGURATION.*[^.]\. Ask.*memory=.*--mem', err)


def test_image_that_is_not_there_or_does_not_fit_starts_nothing(tmp_path, stack):
    """The worker, which says the same, would cost an instance and minutes."""
    ecr, image = stack.client('ecr'), {'repositoryName': stack.outputs()['BatchECR'], 'imageManifest': json.dumps(MANIFEST)}
    for tags, said in (([], 'There is no image for the workers.*scripts/build.sh'),
                       (['latest', 'amd64', 'versions--Python-3.6.1--numpy-1.26.4'],
                        "The main script has Python .*, but the workers' image has Python 3.6.1.*scripts/build.sh")):
        for tag in tags:
            ecr.put_image(imageTag=tag, **image)
        _, _, err = output_of(run_main(tmp_path, stack.env, 'rios_awsbatch.AWSBatchExecutor(1)'))
        assert re.search(said, err.splitlines()[-1]), err
        assert not stack.queues() and not stack.objects()


@pytest.mark.parametrize('changed', [
    {'AWS_ENDPOINT_URL': 'http://127.0.0.1:9'}, {'AWS_ACCESS_KEY_ID': ''}, {'RIOS_AWSBATCH_STACK': 'NoSuch'}])
def test_what_keeps_a_run_from_starting_is_told_without_the_insides_of_boto3(changed, tmp_path):
    done = subprocess.run([sys.executable, write_main(tmp_path, 'rios_awsbatch.AWSBatchExecutor(1)')], text=True,
                          env=dict(os.environ, **changed), capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1 and 'botocore' not in done.stderr
    *above, last = done.stderr.splitlines()
    assert last.startswith('rios_awsbatch.AWSBatchException: ') and len(above) < 8


def test_each_message_to_stop_ends_one_worker_where_the_network_is_slow(tmp_path, aws):
    """Workers give back what they hold when they end, but not what has made them end."""
    local_aws('latency', {'ms': 150}, env=aws)
    try:
        out, err = finish(run_main(tmp_path, aws, '''
            def wait_for(bucket, key):
                import boto3
                while not boto3.client('s3').list_objects_v2(Bucket=bucket, Prefix=key)['KeyCount']:
                    time.sleep(0.5)
            bucket = rios_awsbatch.getStackOutputs()['BatchBucket']
            with rios_awsbatch.AWSBatchExecutor(6, copies=False) as executor:
                executor.wait_for_workers(6)
                key = 'runs/{}/go'.format(executor.run)
                executor.submit(wait_for, bucket, key)
                for _ in range(5):
                    executor.submit(time.sleep, 0)
                executor.shutdown(wait=False)
                while executor.stats()['workers_up'] > 2:
                    time.sleep(0.1)
                time.sleep(5)
                print('left:', executor.stats()['workers_up'])
                __import__('boto3').client('s3').put_object(Bucket=bucket, Key=key, Body=b'')
            '''))
    finally:
        local_aws('latency', {'ms': 0}, env=aws)
    assert out == 'left: 2\n', err


# ---------------------------------------------------------------------------------------------
# A login that expires
# ---------------------------------------------------------------------------------------------

def test_account_with_an_older_limit_of_sqs_is_told_at_once(tmp_path, aws):
    """Else a block that is too long for its queues would end the run later."""
    local_aws('sqs', {'bytes': 2**18}, env=aws)
    try:
        status, _, err = output_of(run_main(tmp_path, aws, 'rios_awsbatch.AWSBatchExecutor(1)'))
    finally:
        local_aws('sqs', {}, env=aws)
    assert status == 1 and 'MaximumMessageSize' in err.splitlines()[-1]
    assert 'AWSBatchException: Error when starting a run' in err


MFA = """
[profile role]
role_arn = {}
source_profile = keys
mfa_serial = arn:aws:iam::123456789012:mfa/me
[profile keys]
aws_access_key_id = {}
aws_secret_access_key = local
"""


def test_login_and_clock_that_pass_in_mid_run_are_waited_for(tmp_path, shared, aws):
    """AWS takes an MFA code once; in mid-run nobody is asked for one, who may not be at the terminal."""
    role = client('iam', aws).create_role(RoleName='mfa', AssumeRolePolicyDocument='{}')['Role']['Arn']
    (tmp_path / 'config').write_text(MFA.format(role, aws['AWS_ACCESS_KEY_ID']))
    env = dict(aws, AWS_ACCESS_KEY_ID='', AWS_SECRET_ACCESS_KEY='', AWS_CONFIG_FILE=str(tmp_path / 'config'),
               AWS_PROFILE='role', HOME=str(tmp_path))
    process = run_main(tmp_path, env, '''
        import getpass
        getpass.getpass = lambda prompt: print('code', flush=True) or '123456'
        def tile(x):
            time.sleep(0.1)
            while x == 50 and not os.path.exists({!r}):
                time.sleep(0.05)
            return x
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            futures = [executor.submit(tile, x) for x in range(100)]
            futures[0].result()
            print('going', flush=True)
            assert [future.result() for future in futures] == list(range(100))
        '''.format(str(shared / 'go')))
    lines = iter(process.stderr.readline, '')
    try:
        assert [process.stdout.readline() for _ in range(2)] == ['code\n', 'going\n']
        local_aws('login', {'late': True}, env=aws)
        assert 'The run goes on' in next(line for line in lines if 'clock of this computer' in line)
        local_aws('login', {'expired': True}, env=aws)
        assert 'The run goes on' in next(line for line in lines if 'login has expired' in line)
        for kept in (tmp_path / '.aws' / 'cli' / 'cache').iterdir():            # an hour later
            kept.write_text(re.sub('"Expiration": "[0-9]+', '"Expiration": "2020', kept.read_text()))
        assert 'aws sts get-caller-identity' in next(line for line in lines if 'MFA code' in line)
        wait_until(lambda: not local_aws('jobs', env=aws)['jobs'])
        local_aws('login', {}, env=aws)
        time.sleep(2)
        assert process.poll() is None
        (shared / 'go').touch()
        subprocess.run([sys.executable, '-m', 'awscli', 'sts', 'get-caller-identity'], env=env, input='654321\n',
                       text=True, check=True, capture_output=True, start_new_session=True)
        assert finish(process)[0] == ''
        # Scripts, which ask AWS several times, have that session, too.
        refuses(run('submit.sh', env=env, path=pathlib.Path(sys.executable).parent), 'no main image in stack')
    finally:
        local_aws('login', {}, env=aws)
        process.kill()


def test_login_that_is_half_changed_is_waited_for(tmp_path, aws):
    """New keys and an old session token, for instance: "aws configure" asks for the keys alone."""
    def log_in(key):
        (tmp_path / 'new').write_text('[default]\naws_access_key_id = {}\naws_secret_access_key = local\n'.format(key))
        (tmp_path / 'new').replace(tmp_path / 'credentials')
    log_in(aws['AWS_ACCESS_KEY_ID'])
    process = run_main(tmp_path, dict(aws, AWS_ACCESS_KEY_ID='', AWS_SECRET_ACCESS_KEY='', AWS_SHARED_CREDENTIALS_FILE=str(
        tmp_path / 'credentials')), '''
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            executor.wait_for_workers()
            print('going', flush=True)
            futures = [executor.submit(time.sleep, 0.1) for x in range(100)]
            assert [future.result() for future in futures] == [None] * 100
        ''')
    lines = iter(process.stderr.readline, '')
    try:
        assert process.stdout.readline() == 'going\n'
        local_aws('login', {'expired': True}, env=aws)
        assert 'The run goes on' in next(line for line in lines if 'login has expired' in line)
        local_aws('iam', {'enforced': True}, env=aws)
        log_in('half')
        local_aws('login', {}, env=aws)
        assert 'The run goes on' in next(line for line in lines if 'does not accept your credentials' in line)
        log_in(aws['AWS_ACCESS_KEY_ID'])
        assert finish(process)[0] == ''
    finally:
        local_aws('iam', {'enforced': False}, env=aws)
        local_aws('login', {}, env=aws)
        process.kill()


def test_login_that_a_program_does_not_give_is_waited_for(tmp_path, aws):
    """botocore lets through what its output is to JSON."""
    keys = '{{"Version": 1, "AccessKeyId": "{}", "SecretAccessKey": "local"}}'.format(aws['AWS_ACCESS_KEY_ID'])
    (tmp_path / 'keys').write_text(keys)
    (tmp_path / 'give').write_text('cd {}; echo asked >>asked; cat keys'.format(tmp_path))
    (tmp_path / 'config').write_text('[profile mine]\ncredential_process = sh {}\n'.format(tmp_path / 'give'))
    env = dict(aws, AWS_ACCESS_KEY_ID='', AWS_SECRET_ACCESS_KEY='', AWS_CONFIG_FILE=str(tmp_path / 'config'),
               AWS_PROFILE='mine')
    process = run_main(tmp_path, env, '''
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            executor.wait_for_workers()
            print('going', flush=True)
            futures = [executor.submit(time.sleep, 0.1) for x in range(100)]
            assert [future.result() for future in futures] == [None] * 100
        ''')
    try:
        assert process.stdout.readline() == 'going\n'
        (tmp_path / 'keys').write_text('')
        (tmp_path / 'asked').unlink()
        local_aws('login', {'expired': True}, env=aws)
        wait_until(lambda: process.poll() is not None or (
            tmp_path / 'asked').exists() and len((tmp_path / 'asked').read_text().split()) > 3)
        (tmp_path / 'keys').write_text(keys)
        local_aws('login', {}, env=aws)
        assert finish(process)[0] == ''
    finally:
        local_aws('login', {}, env=aws)
        process.kill()


def test_script_with_an_expired_login_can_be_interrupted(tmp_path, aws):
    process = run_main(tmp_path, aws, '''
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            executor.wait_for_workers()
            print('going', flush=True)
            executor.submit(time.sleep, 1000).result()
        ''')
    assert process.stdout.readline() == 'going\n'
    local_aws('login', {'expired': True}, env=aws)
    try:
        lines = iter(process.stderr.readline, '')
        next(line for line in lines if 'login has expired' in line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        local_aws('login', {'expired': False}, env=aws)
    assert 'KeyboardInterrupt' in err and 'scripts/status.sh --clean' in err
    wait_until(lambda: not local_aws('jobs', env=aws)['jobs'])
    done = subprocess.run([SCRIPTS / 'status.sh', '--clean'], env=aws, capture_output=True, text=True,
                          timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------
# What a user sees of it
# ---------------------------------------------------------------------------------------------

def test_output_of_workers_comes_home_when_asked_for(monkeypatch, caplog, tmp_path):
    """That of an initializer is its own, and so is the time that it takes."""
    monkeypatch.setenv('RIOS_AWSBATCH_WORKER_OUTPUT', '1')
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path))

    def load():
        print('the model is there')
        time.sleep(0.5)

    def tile(x):
        for n in range(1000 if x == 3 else 1):
            print('looking at', x, n)
        return x
    with rios_awsbatch.AWSBatchExecutor(2, initializer=load) as executor:
        assert list(executor.map(tile, range(4))) == list(range(4))
    blocks = [record for record in map(json.loads, next(tmp_path.iterdir()).open()) if record['is'] == 'block']
    first = [block for block in blocks if block['initialized']]
    loaded = [record.getMessage() for record in caplog.records if 'the model is there' in record.getMessage()]
    assert len(loaded) == len(first) == len({block['worker'] for block in blocks})
    assert all(re.search('worker [01]: the initializer:\nthe model is there$', text) for text in loaded)
    assert all(0.5 <= block['initialized'] <= block['started'] - block['downloaded'] for block in first)
    said = [record.getMessage() for record in caplog.records if 'looking at' in record.getMessage()]
    assert 'tile(2): looking at 2 0' in '\n'.join(said)
    assert 3 < len(said) < 50           # bounded


def test_output_of_a_call_is_all_that_it_and_its_children_write(monkeypatch, caplog):
    monkeypatch.setenv('RIOS_AWSBATCH_WORKER_OUTPUT', '1')

    def tile(x):
        import logging
        import warnings
        print('printed')
        sys.stderr.write('to standard error\n')
        warnings.warn('something is odd')
        logging.getLogger('mine').info('for the log')
        os.system('echo from a child')
        os.system('sleep 0.1; echo from a child, later >&2')
        return x
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        assert executor.submit(tile, 3).result(PATIENCE) == 3
        assert executor.submit(square, 3).result(PATIENCE) == 9
    said = '\n'.join(record.getMessage() for record in caplog.records if 'tile(3)' in record.getMessage())
    for text in ('printed', 'to standard error', 'UserWarning: something is odd', 'for the log', 'from a child',
                 'from a child, later'):
        assert ': ' + text in said or text + '\n' in said, said


def test_files_that_functions_leave_in_their_workers_are_named_once_at_the_end(caplog):
    def tile(x):
        for name in ('table.csv', '.hidden', 'made/for-all.txt'):
            os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
            with open(name, 'a') as file:
                file.write(str(x))
        time.sleep(0.2)
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        executor.wait_for_workers(2, PATIENCE)
        list(executor.map(tile, range(6)))
        assert 'table.csv' not in caplog.text
    said, = [record.getMessage() for record in caplog.records if 'table.csv' in record.getMessage()]
    assert 'functions have written to made, table.csv is gone' in said and '/vsis3/' in said


def test_lease_tells_how_a_run_is_doing():
    with rios_awsbatch.AWSBatchExecutor(2) as executor:
        list(executor.map(square, range(7)))
        channel = channel_of(executor)

        def lease():
            return json.load(channel.s3.get_object(Bucket=channel.bucket, Key=channel.folder + 'lease')['Body'])
        wait_until(lambda: lease()['done'] == 7)
        assert lease()['workers'] == 2 and lease()['now'] >= lease()['began']
