"""
The promises of local.sh.

That its AWS does what AWS does is in test_aws_facts.py.
"""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.helpers import (
    ROOT, PATIENCE, wait_until, copy_of_the_tree, write_main, RUNS_LONG, processes_with, Local, refuses, run)

SCENE = ROOT / 'examples' / 'data' / 'landsat7_olinda.tif'


@pytest.mark.parametrize('command, status', [(['sh', '-c', 'exit 7'], 7), (['sh', '-c', 'kill -9 $$'], 137)])
def test_local_has_the_status_of_its_command_and_leaves_nothing(command, status, tmp_path):
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no')
    process = local.start(*command)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (status, '')
    assert err == '' or status == 137       # bash says by which signal its child ended
    local.assert_nothing_left()


def clone(folder, tools):
    """
    A clone as scripts/setup.sh leaves it, in a folder whose name has a space; in `tools` all commands of the system
    but `aws`.
    """
    tree = copy_of_the_tree(folder / 'my clone')
    python = tree / '.venv' / 'bin' / 'python'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', '--system-site-packages', tree / '.venv'], check=True)
    packages, = tree.glob('.venv/lib/python3*/site-packages')
    (packages / 'ours.pth').write_text('\n'.join(
        [str(tree), *(path for path in sys.path if path.endswith('-packages'))]))
    # As pip installs it; what setup.sh does then.
    (python.parent / 'aws').write_text('#!{}\nimport awscli\n'.format(python))
    (python.parent / 'aws').chmod(0o755)
    subprocess.run(['bash', '-c', ". <(sed '$d' scripts/setup.sh); VENV=$PWD/.venv; mend_aws"], cwd=tree, check=True)
    tools.mkdir()
    for place in ('/usr/bin', '/bin'):
        for path in pathlib.Path(place).iterdir():
            if path.name != 'aws' and not (tools / path.name).exists():
                (tools / path.name).symlink_to(path)
    return tree


@pytest.mark.slow
def test_local_runs_a_main_script_in_a_folder_with_spaces(tmp_path):
    """It says what it does; the stack is create.sh's; the script's own status; nothing is left."""
    tree = clone(tmp_path, tmp_path / 'tools')
    script = tree / 'main script.py'
    script.write_text(textwrap.dedent('''
        import os, sys
        import rios_awsbatch
        import my_module
        with rios_awsbatch.AWSBatchExecutor(2) as executor:
            squares = list(executor.map(pow, range(5), [2] * 5)) + [executor.submit(my_module.answer).result()]
        print(squares, sys.executable, rios_awsbatch.getStackOutputs()['BatchMaxVCPUS'])
        print(os.environ['AWS_ENDPOINT_URL'])
        sys.exit(7)
        '''))
    (tmp_path / 'modules').mkdir()
    (tmp_path / 'modules' / 'my_module.py').write_text('def answer():\n    return 42\n')
    local = Local(tmp_path, tree, PATH=str(tmp_path / 'tools'), PYTHONPATH=str(tmp_path / 'modules'),
                  RIOS_AWSBATCH_LOCAL_CREATE='--mem 2048 --maxjobs 3')
    process = local.start('python3', script)
    out, err = process.communicate(timeout=PATIENCE)
    python = str(tree / '.venv' / 'bin' / 'python')
    assert process.returncode == 7, err
    assert err == 'local.sh: an AWS is up on this machine, making the stack; Python is {}\n'.format(python)
    said, endpoint = out.splitlines()
    assert re.fullmatch(r'\[0, 1, 4, 9, 16, 42\] {}3? 6 vCPUs.*'.format(re.escape(python)), said), said
    local.assert_nothing_left(endpoint)


@pytest.mark.slow
def test_demo_makes_its_stack_with_create_and_deletes_it_with_delete(tmp_path):
    """In such a clone. What it prints, and that no pixel differs."""
    tree = clone(tmp_path, tmp_path / 'tools')
    shutil.copytree(ROOT / 'examples', tree / 'examples')
    (tree / 'scripts' / 'setup.sh').write_text('#!/bin/sh\n')        # the environment is there
    for name in ('create.sh', 'delete.sh'):
        script = tree / 'scripts' / name
        script.rename(script.with_name('real-' + name))
        script.write_text('#!/bin/sh\necho "{0} $*" >>"${{0%/*}}/called"\nexec "${{0%/*}}/real-{0}" "$@"\n'.format(name))
        script.chmod(0o755)
    local = Local(tmp_path, tree, PATH=str(tmp_path / 'tools'))
    command = [tree / 'scripts' / 'demo.sh', '-o', tmp_path / 'the output', SCENE, '--radius', '1', '--workers', '2']
    done = subprocess.run(command, env=local.env, text=True, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tree / 'scripts' / 'called').read_text() == 'create.sh --wait\ndelete.sh --yes --wait\n'
    said = done.stdout.splitlines()
    assert said[0] == 'demo: computing the texture of landsat7_olinda.tif'
    assert re.match('checked in one process .*: 0 of 122848 pixels differ', said[3])
    assert re.match(r'\d+\.\d AWS requests per block', said[4])
    assert said[5:] == ['demo: deleting the stack', 'demo: the stack is gone, the local AWS has stopped']
    assert {path.name for path in (tmp_path / 'the output').iterdir()} == {
        'landsat7_olinda_texture.tif', 'landsat7_olinda_texture.png', 'summary.txt'}
    local.assert_nothing_left()


def test_scripts_run_in_a_folder_with_spaces_without_another_aws(tmp_path):
    """Where the `aws` that pip has installed cannot start by itself."""
    tree, tools = clone(tmp_path, tmp_path / 'tools'), tmp_path / 'tools'
    said = subprocess.run(['.venv/bin/aws', '--version'], cwd=tree, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.startswith('aws-cli/')
    refuses(run('status.sh', '--stackname', 'NoSuch', root=tree, env={'PATH': str(tools)}), "no stack 'NoSuch'")


def test_local_looks_for_its_command_before_it_starts_anything(tmp_path):
    local = Local(tmp_path, PATH='/usr/bin:/bin')
    for words, said in (
            (['no-such-program'], "there is no command 'no-such-program', neither in .*/.venv/bin nor on the PATH."),
            (['jupyter', 'no-such-lab'], "there is no command 'jupyter-no-such-lab', .*"
                                         "Install it: '.*/.venv/bin/pip' install jupyterlab")):
        process = local.start(*words)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (127, '')
        assert re.fullmatch('local.sh: ' + said + '\n', err), err
    local.assert_nothing_left()


def test_aws_under_local_ends_with_a_signal_as_any_program(tmp_path):
    """And its exit status, files, folder and environment are its own."""
    local = Local(tmp_path, RIOS_AWSBATCH_LOCAL_STACK='no')
    process = local.start('sh', '-c', '''
        aws s3api get-object --bucket no-such-bucket --key x y 2>error; echo $?
        aws sqs create-queue --queue-name q --output text
        echo text >"a file"; aws s3 mb s3://bucket; (cd / && aws s3 cp --quiet "$OLDPWD/a file" s3://bucket/x)
        AWS_ACCESS_KEY_ID= AWS_SECRET_ACCESS_KEY= aws s3 ls 2>&1 | tail -n 1
        aws s3 cp s3://bucket/x -
        exec aws sqs receive-message --queue-url $AWS_ENDPOINT_URL/123456789012/q --wait-time-seconds 20''', cwd=tmp_path)
    assert process.stdout.readline() == '255\n' and 'NoSuchBucket' in (tmp_path / 'error').read_text()
    assert process.stdout.readline().endswith('/q\n')
    assert process.stdout.readline() == 'make_bucket: bucket\n'
    assert 'credentials' in process.stdout.readline()
    assert process.stdout.readline() == 'text\n'
    mine = str(local.temporary)

    def waiting():
        return [pid for pid, words in processes_with(mine) if b'receive-message' in words and b'aws_call' in words]
    found = wait_until(waiting)
    os.kill(int(found[0]), signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (143, ''), err
    local.assert_nothing_left()


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
    process = local.start('sh', '-c', 'echo $AWS_ENDPOINT_URL; exec sleep 600')
    assert process.stdout.readline().startswith('http://127.0.0.1:')
    process.kill()
    process.wait()
    mine = str(local.temporary)
    wait_until(lambda: not [each for each in processes_with(mine) if b'local_aws' in each[1]])
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
