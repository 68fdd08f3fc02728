"""
The report of a run, and what scripts/timeline.py makes of it.

What a run says in its lease and its log is in test_pool.py.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import rios_awsbatch
from tests.helpers import PATIENCE, ROOT, main_script, output_of, pids, wait_until

AT_WORKER = ['received', 'downloaded', 'started', 'computed', 'uploaded']
BLOCK_TIMES = ['queued', 'sent', *AT_WORKER, 'arrived', 'collected']
COUNT = 24


def tile(x, marker):
    """A block of 0.2 s: one kills its process when it is first tried, one fails, one returns much."""
    time.sleep(0.2)
    if x == 5 and first_of(marker):
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 9:
        raise ValueError('band 7 is missing')
    return os.urandom(10**6 if x == 11 else 10)


def first_of(marker):
    """Whether this is the first to come by; `marker` is a bucket and a key, which workers may write."""
    import boto3
    s3 = boto3.client('s3')
    try:
        s3.get_object(Bucket=marker[0], Key=marker[1])
        return False
    except s3.exceptions.ClientError:
        s3.put_object(Bucket=marker[0], Key=marker[1], Body=b'')
        return True


def read(folder):
    """The records of the only report in a folder."""
    report, = folder.glob('*.jsonl')
    return [json.loads(line) for line in report.read_text().splitlines()]


def of(records, kind):
    return [record for record in records if record['is'] == kind]


def timeline(*args, env=None):
    """Run scripts/timeline.py: (exit status, standard output, standard error)."""
    done = subprocess.run([sys.executable, str(ROOT / 'scripts' / 'timeline.py'), *map(str, args)], text=True,
                          capture_output=True, env=dict(os.environ, **(env or {})), timeout=PATIENCE)
    return done.returncode, done.stdout, done.stderr


# ---------------------------------------------------------------------------------------------
# What a run writes
# ---------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """What a run with a killed worker, a killed block and a failed block has written."""
    where = tmp_path_factory.mktemp('report')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('RIOS_AWSBATCH_REPORT', str(where))
        with rios_awsbatch.AWSBatchExecutor(3, copies=False) as executor:       # which could be quicker than a second try
            executor.wait_for_workers(3, PATIENCE)
            os.kill(pids(executor.run)[0], signal.SIGKILL)
            while not executor.stats()['lost']:
                executor.submit(time.sleep, 0.2).result(PATIENCE)
            marker = (rios_awsbatch.getStackOutputs()['BatchBucket'], 'runs/{}/marker'.format(executor.run))
            futures = [executor.submit(tile, x, marker) for x in range(COUNT)]
            assert sum(future.exception(PATIENCE) is None for future in futures) == COUNT - 1
    return where


def tiles(folder):
    """What the report says of the calls of tile(), in their order."""
    blocks = [block for block in of(read(folder), 'block') if block['label'].startswith('tile(')]
    return sorted(blocks, key=lambda block: block['id'])


def test_every_block_is_in_the_report_once(folder):
    end, = of(read(folder), 'end')
    assert end['broken'] is None and end['submitted'] >= COUNT
    assert sorted(block['id'] for block in of(read(folder), 'block')) == list(range(1, end['submitted'] + 1))
    assert [re.match(r'tile\((\d+), ', block['label']).group(1) for block in tiles(folder)] == [
        str(x) for x in range(COUNT)]
    assert [(x, block['error']) for x, block in enumerate(tiles(folder)) if block['error']] == [
        (9, 'ValueError: band 7 is missing')]
    assert [x for x, block in enumerate(tiles(folder)) if block['bytes_out'] > 10**6] == [11]


def test_times_are_in_order_and_within_the_run(folder):
    records = read(folder)
    run, end = records[0], records[-1]
    assert (run['is'], end['is']) == ('run', 'end')
    ends = {}
    for block in sorted(of(records, 'block'), key=lambda block: block['started']):
        times = [block[name] for name in BLOCK_TIMES if block[name] is not None]    # one clock here
        assert times == sorted(times)
        assert run['began'] <= times[0] and times[-1] <= end['time']
        assert block['started'] >= ends.get(block['worker'], 0)         # one at a time
        ends[block['worker']] = block['computed']
        if block['error'] is None:
            assert block['computed'] - block['started'] >= 0.199
    assert all(run['began'] < each['time'] <= end['time']
               for kind in ('up', 'ended', 'lost') for each in of(records, kind))


def test_killed_worker_is_lost_and_another_comes_up(folder):
    records = read(folder)
    lost, = of(records, 'lost')
    assert lost['why'] and lost['worker'] in {up['worker'] for up in of(records, 'up')}
    assert [x for x, block in enumerate(tiles(folder)) if block['tries'] > 1] == [5]


def test_run_says_what_its_price_depends_on(folder):
    records, stack = read(folder), rios_awsbatch.getStackOutputs()
    run, end = records[0], records[-1]
    assert run['workers'] == 3
    assert (run['region'], run['stack']) == (rios_awsbatch.REGION, rios_awsbatch.STACK_NAME)
    assert float(run['vcpus']) == float(stack['BatchVCPUS'])
    assert end['requests']['sqs.CreateQueue'] == 2 and end['requests']['s3.PutObject'] >= 3


def test_timeline_draws_and_its_numbers_are_those_of_the_report(folder):
    status, out, err = timeline(folder)
    assert (status, err) == (0, '')
    records = read(folder)
    picture = folder / (records[0]['run'] + '.png')
    assert picture.read_bytes().startswith(b'\x89PNG') and out.rstrip().endswith(str(picture))
    blocks = of(records, 'block')
    first_up = min(up['time'] for up in of(records, 'up'))
    last = max(block['collected'] for block in blocks)
    computing = sum(block['computed'] - block['started'] for block in blocks)
    efficiency = float(re.search(r'efficiency (\d+)%', out).group(1)) / 100
    assert efficiency == pytest.approx(computing / (3 * (last - first_up)), abs=0.02)
    assert '{} blocks, 3 workers'.format(len(blocks)) in out and '3 of 3 came up' in out
    assert re.search(r'lost +1 worker: \S', out)
    retries = sum(block['tries'] > 1 for block in blocks)
    assert re.search(r'retries +{} block'.format(retries), out)
    assert re.search(r'failures +1 block, such as tile\(9, .*ValueError: band 7 is missing', out)
    worker_time = re.search('worker time(.*)', out).group(1)
    assert sum(int(share) for share in re.findall(r'(\d+)% [a-z]', worker_time)) == 100
    assert float(re.search(r'SQS \$([\d.]+)', out).group(1)) > 0


def test_report_shows_how_long_the_main_script_was_busy_with_a_result(tmp_path, monkeypatch):
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path))
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        for _ in executor.map(pow, range(3), range(3)):
            time.sleep(0.3)
    taken = of(read(tmp_path), 'taken')
    assert len(taken) == 3 and all(each['asked'] - each['given'] >= 0.3 for each in taken)
    assert re.search(r'main script +busy with results for \d+% of the time', timeline(tmp_path)[1])


def test_killed_main_script_has_its_report(tmp_path):
    process = main_script(tmp_path, '''
        def slow(x):
            time.sleep(0.3)
            return x
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            executor.wait_for_workers(2)
            for result in executor.map(slow, range(1000), buffersize=8):
                print(result, flush=True)
    ''', env={'RIOS_AWSBATCH_REPORT': str(tmp_path / 'report')})
    for expected in range(6):
        assert process.stdout.readline() == '{}\n'.format(expected)
    wait_until(lambda: len(of(read(tmp_path / 'report'), 'block')) >= 5)      # after their results
    process.kill()
    output_of(process)
    records = read(tmp_path / 'report')
    assert not of(records, 'end') and len(of(records, 'block')) >= 5 and len(of(records, 'up')) == 2
    status, out, err = timeline(tmp_path / 'report')
    assert status == 0 and 'The main script was killed, or still runs.' in out, out + err
    assert '{} by workers'.format(len(of(records, 'block'))) in out
    assert len(list((tmp_path / 'report').glob('*.png'))) == 1


def test_report_has_all_blocks_when_its_run_has_ended(tmp_path, monkeypatch):
    """Though the disk is slow."""
    note = rios_awsbatch._Report.note

    def slowly(report, kind, **record):
        time.sleep(kind == 'block')
        note(report, kind, **record)
    monkeypatch.setattr(rios_awsbatch._Report, 'note', slowly)
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path))
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        assert executor.submit(pow, 2, 5).result(PATIENCE) == 32
    kinds = [record['is'] for record in read(tmp_path)]
    assert kinds[-1] == 'end' and kinds.count('block') == 1


def test_each_run_has_its_report_and_the_newest_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path / 'new' / 'folder'))
    runs = []
    for _ in range(2):
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            assert executor.submit(pow, 2, 5).result(PATIENCE) == 32
            runs.append(executor.run)
    folder = tmp_path / 'new' / 'folder'
    assert {path.name for path in folder.iterdir()} == {name + '.jsonl' for name in runs}
    assert timeline(folder)[1].startswith('Run {} of 20'.format(runs[1]))
    assert timeline(folder / (runs[0] + '.jsonl'))[1].startswith('Run ' + runs[0])


def test_report_that_cannot_be_written_is_told_before_anything_starts(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path / 'file' / 'folder'))
    monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:9')        # where AWS is asked nothing
    with pytest.raises(rios_awsbatch.AWSBatchException, match='file/folder.*RIOS_AWSBATCH_REPORT'):
        rios_awsbatch.AWSBatchExecutor(1)


def test_report_that_is_lost_hides_no_result_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path / 'report'))
    with pytest.raises(LookupError, match='mine'):
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            assert executor.submit(pow, 2, 5).result(PATIENCE) == 32
            shutil.rmtree(tmp_path / 'report')
            assert executor.submit(pow, 2, 6).result(PATIENCE) == 64
            raise LookupError('mine')


def test_nothing_is_written_without_a_report(tmp_path, monkeypatch):
    monkeypatch.delenv('RIOS_AWSBATCH_REPORT', raising=False)
    monkeypatch.chdir(tmp_path)
    with rios_awsbatch.AWSBatchExecutor(1) as executor:
        assert executor.submit(pow, 2, 5).result(PATIENCE) == 32
    assert list(tmp_path.iterdir()) == []


def test_main_job_packs_nothing_that_rides_in_a_message(tmp_path, monkeypatch):
    """It has the network of AWS, and one processor; elsewhere pixels travel packed."""
    sent = {}
    for where in 'at home', 'on AWS':
        monkeypatch.setenv('RIOS_AWSBATCH_REPORT', str(tmp_path / where))
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            assert executor.submit(len, bytes(200_000)).result(PATIENCE) == 200_000
            assert executor.submit(len, bytes(800_000)).result(PATIENCE) == 800_000
        blocks = sorted(of(read(tmp_path / where), 'block'), key=lambda block: block['id'])
        sent[where] = [block['bytes_in'] for block in blocks]
        monkeypatch.setenv('AWS_BATCH_JOB_ID', '11111111-2222-3333-4444-555555555555')
    assert max(sent['at home']) < 20_000 and sent['on AWS'][0] > 200_000 > sent['on AWS'][1]


# ---------------------------------------------------------------------------------------------
# What the script says
# ---------------------------------------------------------------------------------------------

BEGAN = 1767225600.0


def block(number, worker, times, size=100):
    return {'is': 'block', 'id': number, 'label': 'tile', 'worker': str(worker), 'tries': 1, 'bytes_in': size,
            'bytes_out': size, 'error': None, 'initialized': None, **dict(zip(BLOCK_TIMES, times))}


def made_up(folder, workers, seconds, *, first=None, wait=0.0, upload=0.01, size=100, start=2.0, behind=0.0, gaps=(),
            more=(), end=True, **changed):
    """
    Write the report of a run: each worker computes blocks of so many seconds, one after another.

    Args:
        seconds (list): for each worker the list of its blocks' seconds.
        first (float): seconds of the initializer, before a worker's first block.
        wait (float): seconds from the end of a block until the worker has the next.
        behind (float): by how many seconds the workers' clocks are behind the main script's.
        gaps (list): (given, asked) of results that the main script was busy with.
        more (list): other records. All times are seconds since the run began.
        end (bool): whether the run has come to its end.
    """
    blocks = []
    for worker, each in enumerate(seconds):
        now = start
        for number, took in enumerate(each):
            got = now + wait
            begin = got + (first or 0) * (not number)
            arrived = begin + took + upload
            times = [0.1, 0.2, *(moment - behind for moment in (got, got, begin, begin + took, arrived)),
                     arrived, arrived + 0.01]
            blocks.append(block(len(blocks) + 1, worker, times, size))
            blocks[-1]['initialized'] = None if number else first
            now = begin + took + (upload if size > 10**6 else 0)
    records = [{'is': 'up', 'worker': str(worker), 'time': start} for worker in range(len(seconds))] + blocks
    records += [{'is': 'taken', 'given': given, 'asked': asked} for given, asked in gaps] + list(more)
    if end:
        records.append({'is': 'end', 'time': max(each['collected'] for each in blocks) + 1,
                        'submitted': len(blocks), 'broken': changed.pop('broken', None),
                        'requests': {'sqs.ReceiveMessage': 10**6, 's3.PutObject': 1000, 'batch.Any': 1}})
    for record in records:
        for name in ('time', 'given', 'asked', *BLOCK_TIMES):
            if name in record:
                record[name] += BEGAN
    run = {'is': 'run', 'run': 'x', 'began': BEGAN, 'stack': 'RIOS', 'region': 'ap-southeast-2',
           'workers': workers, 'vcpus': 2, 'memory': 4096, 'inline_bytes': 196608, **changed}
    folder.mkdir(exist_ok=True)
    (folder / 'x.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in [run, *records]))
    return folder


@pytest.fixture(scope='module')
def script():
    sys.path.insert(0, str(ROOT / 'scripts'))
    try:
        import timeline
    finally:
        sys.path.pop(0)
    return timeline


@pytest.mark.parametrize('given, said', [
    (dict(workers=4, seconds=[[1.0] * 30] * 4), 'more workers would help, up to about 30'),
    (dict(workers=4, seconds=[[1.0]] * 4, start=0.5), 'more workers would help, with smaller blocks'),
    (dict(workers=4, seconds=[[1.0] * 4] * 4, start=200.0), 'starting them took 3.33 min'),
    (dict(workers=4, seconds=[[0.01] * 300] * 4, wait=0.02), 'about 20 times bigger'),
    (dict(workers=2, seconds=[[1.0] * 8, [1.0] * 7 + [9.0]]), 'last blocks .the longest took 9 s'),
    (dict(workers=8, seconds=[[1.0]] * 3), 'not up for 6.% of the time.*take fewer'),
    (dict(workers=2, seconds=[[1.0] * 9] * 2, upload=2.0, size=10**7), 'moving data .20 MB a block'),
    # Each new worker would begin with its initializer.
    (dict(workers=2, seconds=[[1.0] * 50] * 2, first=4.0), 'up to about 25 .*each is 4 s in its initializer first'),
    (dict(workers=4, seconds=[[1.0] * 13] * 4, first=3.0, start=9.0), 'more workers would help, up to about 13 '),
    (dict(workers=4, seconds=[[0.25] * 20] * 4, first=9.8), 'initializer for 66% of the time .9.8 s each.: take fewer'),
    (dict(workers=1, seconds=[[1.0]], broken='No worker of run x is left. Why.'),
     'broke off: No worker of run x is left.$'),
    # The workers are well used, but the main script could not feed one more.
    (dict(workers=4, seconds=[[1.0] * 30] * 4, gaps=[(3 + n, 3.9 + n) for n in range(28)]),
     'busy with results for 8.% of the time.*more workers will not help.*NUM_THREADS=ALL_CPUS.*mosaic_s3.py'),
    (dict(workers=4, seconds=[[1.0] * 30] * 4, gaps=[(3 + n, 3.4 + n) for n in range(30)]),
     'more workers would help, up to about 10 '),
    (dict(workers=4, seconds=[[1.0]] * 4, end=False), 'killed, or still runs. Workers computed for')])
def test_verdict_says_what_to_change(tmp_path, script, given, said):
    run = script.Run(made_up(tmp_path, **given) / 'x.jsonl')
    assert re.search(said, run.verdict()), run.verdict()
    assert sum(run.shares.values()) == pytest.approx(1, abs=0.01)
    if run.end:
        assert run.costs()['sqs'] == pytest.approx(0.4) and run.costs()['s3'] == pytest.approx(0.005)


def test_worker_that_waits_while_the_main_script_is_busy_waits_for_it(tmp_path, script):
    run = script.Run(made_up(tmp_path, 1, [[1.0] * 5], more=[
        block(6, 0, [11, 11, 11, 11, 11, 12, 12, 12, 12])], gaps=[(7.0, 11.0)]) / 'x.jsonl')
    assert run.shares['writing'] == pytest.approx(0.4, abs=0.01)
    assert run.shares['compute'] == pytest.approx(0.6, abs=0.01)


def test_main_script_may_be_busy_long_after_the_last_block(tmp_path, script):
    gaps = [(3.0 + n, 3.9 + n) for n in range(10)]
    run = script.Run(made_up(tmp_path, 4, [[1.0]] * 4, gaps=gaps) / 'x.jsonl')
    assert run.writing == pytest.approx(9 / 10.9, abs=0.01) and 'busy with results for 83%' in run.verdict()


@pytest.mark.parametrize('again', ['2', '0'])       # a new one, or the same that AWS Batch has started again
def test_worker_that_replaces_another_has_its_lane(tmp_path, script, again):
    run = script.Run(made_up(tmp_path, 2, [[1.0] * 3, [1.0] * 8], more=[
        {'is': 'lost', 'worker': '0', 'time': 6.0, 'why': 'Host EC2 (instance i-1) terminated.'},
        {'is': 'up', 'worker': again, 'time': 8.0}, {'is': 'told', 'text': 'What is lost.'},
        block(20, again, [5, 5, 8, 8, 8, 9, 9, 9, 9])]) / 'x.jsonl')
    assert [[stay['worker'] for stay in lane] for lane in run.lanes] == [['0', again], ['1']]
    assert [len(stay['blocks']) for stay in run.stays if stay['worker'] in ('0', again)] == [3, 1]
    phases = [(round(begin, 1), round(end, 1), phase) for begin, end, phase in run.pieces[0]]
    assert (6.0, 8.0, 'gap') in phases and (5.0, 6.0, 'lost') in phases
    assert run.vcpu_hours() == pytest.approx(2 * (4 + 2 * (run.ended - 5)) / 3600)
    assert any('1 worker: Host EC2' in line for line in run.summary())
    assert '  note         What is lost.' in run.summary()


@pytest.mark.parametrize('behind', [-7.0, 0.0, 7.0])
def test_clock_of_the_main_script_may_be_off(tmp_path, script, behind):
    """The workers' clocks differ from the main script's by some seconds; in the picture they do not."""
    run = script.Run(made_up(tmp_path, 1, [[1.0] * 3], behind=behind) / 'x.jsonl')
    for n, block in enumerate(run.blocks):
        times = [block[name] for name in BLOCK_TIMES]
        assert times == sorted(times)
        assert block['computed'] == pytest.approx(3 + n, abs=0.05)


def test_many_blocks_are_drawn(tmp_path):
    made_up(tmp_path, 100, [[1.0] * 100] * 100, wait=0.05)
    status, out, err = timeline(tmp_path)
    assert status == 0 and '10,000 blocks, 100 workers' in out, err
    assert (tmp_path / 'x.png').exists()


def test_line_that_was_cut_is_left_out(tmp_path):
    report = made_up(tmp_path, 1, [[1.0] * 5], end=False) / 'x.jsonl'
    report.write_text(report.read_text()[:-30])
    status, out, err = timeline(tmp_path)
    assert status == 0 and '4 by workers' in out, err


@pytest.mark.parametrize('text, said', [
    (None, 'no report in .*RIOS_AWSBATCH_REPORT'),
    ('nonsense\n', 'not written by rios_awsbatch'),
    ('[]\n', 'not written by rios_awsbatch'),
    ('', 'not written by rios_awsbatch')])
def test_timeline_without_a_report_is_one_sentence(tmp_path, text, said):
    if text is not None:
        (tmp_path / 'x.jsonl').write_text(text)
    for path in (tmp_path, tmp_path / 'x.jsonl'):
        status, out, err = timeline(path)
        assert status == 1 and out == '' and err.count('\n') == 1
        assert re.search(said, err)


def test_timeline_without_matplotlib_prints_the_summary_and_one_sentence(tmp_path):
    (tmp_path / 'matplotlib.py').write_text('raise ImportError("No module named \'matplotlib\'")')
    folder = made_up(tmp_path / 'report', 1, [[1.0] * 5])
    status, out, err = timeline(folder, env={'PYTHONPATH': str(tmp_path)})
    assert status == 0 and 'more workers would help' in out
    assert err.count('\n') == 1 and 'pip install matplotlib' in err
    assert not (folder / 'x.png').exists()
