"""
The promises of local.sh.

That its AWS does what AWS does is in test_aws_facts.py.
"""
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.helpers import (
    ROOT, PATIENCE, wait_until, copy_of_the_tree, write_main, RUNS_LONG, processes_with, Local)


@pytest.mark.parametrize('command, status', [(['sh', '-c', 'exit 7'], 7), (['sh', '-c', 'kill -9 $$'], 137)])
def test_local_has_the_status_of_its_command_and_leaves_nothing(command, status, tmp_path):
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no')
    process = local.start(*command)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (status, '')
    assert err == '' or status == 137       # bash says by which signal its child ended
    local.assert_nothing_left()


@pytest.mark.slow
def test_local_runs_a_main_script_in_a_folder_with_spaces(tmp_path):
    """A clone in such a folder: stack created, run, stack deleted, the script's own status."""
    tree = copy_of_the_tree(tmp_path / 'a folder')
    script = tree / 'main script.py'
    script.write_text(textwrap.dedent('''
        import os, sys
        import rios_awsbatch
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            squares = list(executor.map(pow, range(5), [2] * 5))
        print(squares, rios_awsbatch.STACK_NAME, os.environ['AWS_ENDPOINT_URL'])
        sys.exit(7)
        '''))
    local = Local(tmp_path, tree, PYTHON=sys.executable)
    process = local.start(sys.executable, script)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (7, ''), err
    assert out.startswith('[0, 1, 4, 9, 16] RIOS http://127.0.0.1:')
    local.assert_nothing_left(out.split()[-1])


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_local_ends_its_command_and_all_else_on_a_signal(number, tmp_path):
    """In the middle of a run with two workers."""
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no')
    starter = tmp_path / 'starter.py'
    starter.write_text(textwrap.dedent('''
        import os, sys
        sys.path.insert(0, {!r})
        from tests import helpers
        stack = helpers.Stack().create().push('BatchECR', helpers.ROOT / 'worker.py')
        print(os.environ['AWS_ENDPOINT_URL'], flush=True)
        os.execve(sys.executable, [sys.executable, sys.argv[1], sys.argv[2]], stack.env)
        ''').format(str(ROOT)))
    process = local.start(sys.executable, starter, write_main(tmp_path, RUNS_LONG), tmp_path / 'enough')
    endpoint = process.stdout.readline().strip()
    name = process.stdout.readline().strip()
    if process.stdout.readline() != 'going\n':
        pytest.fail(process.communicate()[1])
    assert re.fullmatch(r'\d{8}T\d{6}-[0-9a-f]{8}', name)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, err
    assert ('KeyboardInterrupt' in err) == (number == signal.SIGINT)
    local.assert_nothing_left(endpoint)


def test_local_that_is_killed_leaves_no_server_and_no_job(tmp_path):
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no')
    process = local.start('sh', '-c', 'echo $AWS_ENDPOINT_URL; exec sleep 60')
    assert process.stdout.readline().startswith('http://127.0.0.1:')
    process.kill()
    process.wait()
    mine = str(local.temporary)
    wait_until(lambda: not [each for each in processes_with(mine) if b'local_aws' in each[1]], 60)
    for pid, words in processes_with(str(local.temporary)):     # the command itself is not ours to end
        assert words.startswith(b'sleep\0')
        os.kill(int(pid), signal.SIGKILL)
    process.communicate()


def test_local_with_a_wrong_region_says_so_in_one_sentence(tmp_path):
    local = Local(tmp_path)
    local.env['RIOS_AWSBATCH_REGION'] = 'ap-southwest-9'
    process = local.start('true')
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and out == ''
    assert err.count('\n') == 1 and "no AWS region 'ap-southwest-9'" in err
    local.assert_nothing_left()


@pytest.mark.skipif(shutil.which('unshare') is None or os.geteuid() != 0, reason='needs a network namespace')
def test_local_without_a_loopback_address_says_so_in_one_sentence(tmp_path):
    local = Local(tmp_path)
    done = subprocess.run(['unshare', '--net', local.root / 'scripts' / 'local.sh', 'true'], env=local.env,
                          text=True, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.count('\n') == 1 and 'needs the loopback address 127.0.0.1' in done.stderr
    local.assert_nothing_left()


def test_local_hides_a_real_account(tmp_path):
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no', AWS_PROFILE='real', AWS_SESSION_TOKEN='real',
                  AWS_ACCESS_KEY_ID='real', AWS_ENDPOINT_URL_S3='https://real.example.com')
    process = local.start('env')
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, '')
    local.assert_nothing_left()
    assert 'real' not in ''.join(line for line in out.splitlines() if line.startswith('AWS_'))
