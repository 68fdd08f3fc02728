"""
The report of a run, and what scripts/timeline.py makes of it. Runs inside scripts/local.sh, as test_rios_awsbatch.py.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import rios_awsbatch
from tests.conftest import ROOT, client

BLOCK_TIMES = ['queued', 'sent', 'received', 'downloaded', 'started', 'computed', 'uploaded', 'arrived', 'collected']
COUNT = 24


def tile(x, marker):
    """A block of 0.2 s: one kills its worker when it is first tried, one fails, one returns much."""
    time.sleep(0.2)
    if x == 5 and not os.path.exists(marker):
        open(marker, 'w').close()
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 9:
        raise ValueError('band 7 is missing')
    return bytes(10**6 if x == 11 else 10)


def read(folder):
    return json.loads((folder / 'run.json').read_text())


def timeline(*args, env=None):
    """Run scripts/timeline.py: (exit status, standard output, standard error)."""
    done = subprocess.run([sys.executable, str(ROOT / 'scripts' / 'timeline.py'), *map(str, args)], text=True,
                          capture_output=True, env=dict(os.environ, **(env or {})), timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """What a run with a killed worker and a failed block has written."""
    where = tmp_path_factory.mktemp('report')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('RIOS_AWSBATCH_REPORT', str(where))
        with rios_awsbatch.AWSBatchExecutor(3) as executor:
            executor.wait_for_workers(3, 120)
            futures = [executor.submit(tile, x, str(where / 'marker')) for x in range(COUNT)]
            assert sum(future.exception(60) is None for future in futures) == COUNT - 1
    return where


def test_every_block_is_in_the_report_once(folder):
    blocks = [block for block in read(folder)['blocks'] if block['label']]
    assert sorted(block['id'] for block in blocks) == list(range(1, COUNT + 1))
    assert {block['label'] for block in blocks} == {
        'tile({}, {})'.format(x, rios_awsbatch.reprlib.repr(str(folder / 'marker'))) for x in range(COUNT)}
    assert {block['id']: block['error'] for block in blocks if block['error']} == {10: 'ValueError: band 7 is missing'}
    assert [block['id'] for block in blocks if block['bytes_out'] > 10**6] == [12]
    assert read(folder)['run']['submitted'] == COUNT


def test_times_are_in_order_and_within_the_run(folder):
    report = read(folder)
    ends = {}
    for block in sorted(report['blocks'], key=lambda block: block['started']):
        times = [block[name] for name in BLOCK_TIMES if block[name] is not None]
        assert times == sorted(times)
        assert 0 <= times[0] and times[-1] <= report['run']['ended']
        assert block['started'] >= ends.get(block['worker'], 0)         # one at a time
        ends[block['worker']] = block['computed']
        if block['error'] is None and block['label']:
            assert 0.2 <= block['computed'] - block['started'] < 5
    for worker in report['workers']:
        assert 0 < worker['up'] < (worker['ended'] or report['run']['ended']) <= report['run']['ended']


def test_killed_worker_is_a_retry_and_a_worker_without_an_end(folder):
    report = read(folder)
    killer = next(block for block in report['blocks'] if block['label'] and block['id'] == 6)
    assert killer['tries'] == 2
    without_end = [worker for worker in report['workers'] if worker['ended'] is None]
    assert len(without_end) == 1
    assert {worker['worker'] for worker in report['workers']} == {'0', '1', '2'}


def test_run_says_what_its_price_depends_on(folder):
    run, stack = read(folder)['run'], rios_awsbatch.getStackOutputs()
    assert (run['workers'], run['vcpus'], run['region']) == (3, stack['BatchVCPUS'], rios_awsbatch.REGION)
    assert run['requests']['sqs.CreateQueue'] == 2 and run['requests']['s3.PutObject'] >= 3
    assert run['broken'] is None
    assert abs(run['worker_clocks_behind']) < 0.5       # they are the same clock here


def test_timeline_draws_and_its_numbers_are_those_of_the_report(folder):
    status, out, err = timeline(folder)
    assert status == 0, err
    assert (folder / 'timeline.png').read_bytes().startswith(b'\x89PNG')
    report = read(folder)
    blocks = [block for block in report['blocks'] if block['label']]
    first_up = min(worker['up'] for worker in report['workers'])
    last = max(block['collected'] for block in blocks)
    computing = sum(block['computed'] - block['started'] for block in blocks)
    assert 'efficiency {:.0%}'.format(computing / (3 * (last - first_up))) in out
    assert '{} blocks, 3 workers'.format(COUNT) in out and '3 of 3 came up' in out
    retries = sum(block['tries'] > 1 for block in blocks)
    assert re.search(r'retries +{} block'.format(retries), out)
    assert re.search(r'failures +1 block, such as tile\(9, .*ValueError: band 7 is missing', out)
    shares = [int(share) for share in re.findall(r'(\d+)% [a-z]', out.partition('worker time')[2].partition('\n')[0])]
    assert 96 <= sum(shares) <= 102
    sqs = sum(count for name, count in report['run']['requests'].items() if name.startswith('sqs.')) * 0.4e-6
    assert float(re.search(r'SQS \$([\d.]+)', out).group(1)) == pytest.approx(sqs, rel=0.1)


class JobInfo:
    """A block of RIOS 1.4."""
    def __init__(self, number):
        self.number = number

    def prepareForPickling(self):
        return self

    def getFunctionParams(self):
        return [self.number]

    def getFunctionResult(self, params):
        return params


def test_blocks_of_the_main_script_are_in_the_report(tmp_path, monkeypatch):
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path))
    manager = rios_awsbatch.AWSBatchJobManager(3)
    manager.executor.wait_for_workers(2, 60)
    for _ in range(2):
        manager.runSubJobs(time.sleep, [JobInfo(0.1) for _ in range(3)])
    manager.finalise()
    blocks = read(tmp_path)['blocks']
    assert sorted(block['worker'] == 'main' for block in blocks) == [False] * 4 + [True] * 2
    status, out, err = timeline(tmp_path)
    assert status == 0 and '2 by the main script: 2' in out, out + err


def test_second_run_keeps_the_report_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path / 'new' / 'folder'))
    for number in (1, 2):
        report = rios_awsbatch._Report(os.environ['RIOS_AWSBATCH_REPORT'], 1)
        report.write(id=str(number), submitted=0, broken=None, vcpus='1', requests={})
    written = sorted(path.name for path in (tmp_path / 'new' / 'folder').iterdir())
    assert written == ['run-1.json', 'run.json']
    assert read(tmp_path / 'new' / 'folder')['run']['id'] == '2'


def test_report_that_cannot_be_written_is_told_before_anything_starts(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path / 'file' / 'folder'))
    before = client('sqs').list_queues().get('QueueUrls', [])
    with pytest.raises(rios_awsbatch.AWSBatchException, match='file/folder.*RIOS_AWSBATCH_REPORT'):
        rios_awsbatch.AWSBatchExecutor(1)
    assert client('sqs').list_queues().get('QueueUrls', []) == before


def test_report_that_is_lost_hides_no_result_and_no_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path / 'report'))
    with pytest.raises(LookupError, match='mine'):
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            assert executor.submit(pow, 2, 5).result(60) == 32
            shutil.rmtree(tmp_path / 'report')
            raise LookupError('mine')
    assert 'could not be written' in caplog.text


def test_nothing_is_kept_without_a_report(monkeypatch):
    monkeypatch.delenv('RIOS_AWSBATCH_REPORT', raising=False)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        assert executor.submit(pow, 2, 5).result(60) == 32
    assert executor._report.blocks == [] and executor._report.workers == []


@pytest.mark.parametrize('behind', [-7.0, 0.0, 7.0])
def test_clock_of_the_main_script_may_be_off(tmp_path, behind):
    """The workers' clocks differ from the main script's by some seconds; in the report they do not."""
    report = rios_awsbatch._Report(str(tmp_path), 1)
    began = report.began
    for n in range(3):
        call = rios_awsbatch._Call(n + 1, 'tile({})'.format(n), 10)
        call.queued, call.sent = began, began + 0.01
        header = {'worker': '0', 'tries': 1, 'bytes': 10}
        for step, name in enumerate(report._AT_WORKER):
            header[name] = began + n + 0.1 * (step + 1) - behind
        report.block(call, header, None, began + n + 0.52)
        report.blocks[-1] = (*report.blocks[-1][:-1], began + n + 0.53)
    report.write(id='x', submitted=3, broken=None, vcpus='1', requests={})
    for n, block in enumerate(read(tmp_path)['blocks']):
        times = [block[name] for name in BLOCK_TIMES]
        assert times == sorted(times)
        assert block['computed'] == pytest.approx(n + 0.4, abs=0.05)


# ---------------------------------------------------------------------------------------------
# What the script says
# ---------------------------------------------------------------------------------------------

def made_up(folder, workers, seconds, *, wait=0.0, upload=0.01, size=100, start=2.0, **changed):
    """
    Write the run.json of a run: each worker computes blocks of so many seconds, one after another.

    Args:
        seconds (list): for each worker the list of its blocks' seconds.
        wait (float): seconds from the end of a block until the worker has the next.
    """
    blocks = []
    for worker, each in enumerate(seconds):
        now = start
        for took in each:
            begin = now + wait
            times = [0.1, 0.2, begin, begin, begin, begin + took, begin + took + upload, begin + took + upload, None]
            times[-1] = times[-2] + 0.01
            blocks.append(dict(zip(BLOCK_TIMES, times), id=len(blocks) + 1, label='tile', worker=str(worker), tries=1,
                               bytes_in=size, bytes_out=size, error=None))
            now = begin + took + (upload if size > 10**6 else 0)
    run = {'id': 'x', 'began': '2026-01-01T00:00:00Z', 'stack': 'RIOS', 'region': 'ap-southeast-2', 'workers': workers,
           'vcpus': '2', 'submitted': len(blocks), 'broken': None, 'inline_bytes': 196608,
           'ended': max(block['collected'] for block in blocks) + 1,
           'requests': {'sqs.ReceiveMessage': 10**6, 's3.PutObject': 1000, 'batch.SubmitJob': 1}}
    folder.mkdir(exist_ok=True)
    (folder / 'run.json').write_text(json.dumps({
        'run': dict(run, **changed), 'blocks': blocks,
        'workers': [{'worker': str(worker), 'up': start, 'ended': None} for worker in range(len(seconds))]}))
    return folder


@pytest.mark.parametrize('given, said', [
    (dict(workers=4, seconds=[[1.0] * 30] * 4), 'more workers would help, up to about 30'),
    (dict(workers=4, seconds=[[1.0]] * 4, start=0.5), 'more workers would help, with smaller blocks'),
    (dict(workers=4, seconds=[[1.0] * 4] * 4, start=200.0), 'starting them took 3.33 min'),
    (dict(workers=4, seconds=[[0.01] * 300] * 4, wait=0.02), 'about 20 times bigger'),
    (dict(workers=2, seconds=[[1.0] * 8, [1.0] * 7 + [9.0]]), 'last blocks .the longest took 9 s'),
    (dict(workers=8, seconds=[[1.0]] * 3), '5 of 8 workers never came up'),
    (dict(workers=2, seconds=[[1.0] * 9] * 2, upload=2.0, size=10**7), 'moving data .20 MB a block'),
    (dict(workers=1, seconds=[[1.0]], broken='No worker of run x is left. Why.'), 'broke off: No worker of run x is left')])
def test_verdict_says_what_to_change(tmp_path, given, said):
    sys.path.insert(0, str(ROOT / 'scripts'))
    try:
        import timeline as script
    finally:
        sys.path.pop(0)
    run = script.Run(made_up(tmp_path, **given) / 'run.json')
    assert re.search(said, run.verdict()), run.verdict()
    assert sum(run.shares.values()) == pytest.approx(1, abs=0.01)
    assert run.costs()['sqs'] == pytest.approx(0.4) and run.costs()['s3'] == pytest.approx(0.005)


def test_many_blocks_are_drawn_quickly(tmp_path):
    made_up(tmp_path, 100, [[1.0] * 100] * 100, wait=0.05)
    began = time.monotonic()
    status, out, err = timeline(tmp_path)
    assert status == 0 and '10,000 blocks, 100 workers' in out, err
    assert time.monotonic() - began < 120


@pytest.mark.parametrize('text, said', [
    (None, 'There is no .*run.json.*RIOS_AWSBATCH_REPORT'),
    ('nonsense', 'not written by rios_awsbatch'),
    ('[]', 'not written by rios_awsbatch')])
def test_timeline_without_a_report_is_one_sentence(tmp_path, text, said):
    if text is not None:
        (tmp_path / 'run.json').write_text(text)
    status, out, err = timeline(tmp_path)
    assert status == 1 and out == '' and err.count('\n') == 1
    assert re.search(said, err)


def test_timeline_without_matplotlib_prints_the_summary_and_one_sentence(tmp_path):
    (tmp_path / 'matplotlib.py').write_text('raise ImportError("No module named \'matplotlib\'")')
    folder = made_up(tmp_path / 'report', 1, [[1.0] * 5])
    status, out, err = timeline(folder, env={'PYTHONPATH': str(tmp_path)})
    assert status == 1 and 'more workers would help' in out
    assert err.count('\n') == 1 and 'pip install matplotlib' in err
    assert not pathlib.Path(folder / 'timeline.png').exists()
