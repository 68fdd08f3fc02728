"""
The scripts with version 2 of the AWS command line, which most users have; all else runs with version 1, which pip has.
"""
import os
import pathlib
import subprocess

import pytest

from tests.helpers import ROOT, SCRIPTS, Stack, run, succeeds, wait_until

# Where scripts/dev/aws2.sh puts it; else it is in the system, or nowhere.
PACKAGES = ROOT / '.venv' / 'aws2' / 'usr' / 'lib' / 'python3' / 'dist-packages'


@pytest.fixture
def version_2(tmp_path):
    """The folder of an `aws` that is of version 2, which one process has imported for all calls."""
    python, env = '/usr/bin/python3', dict(os.environ, PYTHONPATH=str(PACKAGES))
    found = subprocess.run([python, '-c', 'import awscli\nprint(awscli.__version__)'], env=env, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout if pathlib.Path(python).exists() else ''
    if not found.startswith('2.'):
        pytest.skip('there is no version 2 of the aws command; scripts/dev/aws2.sh brings it')
    local_aws, address = SCRIPTS / 'local_aws', tmp_path / 'socket'
    server = subprocess.Popen([python, local_aws / 'aws_command.py', address], env=env)
    try:
        wait_until(address.exists, 60)
        folder = tmp_path / 'bin'
        folder.mkdir()
        (folder / 'aws').write_text('#!/bin/sh\nexec {} -IS "{}" "{}" "$@"\n'.format(
            python, local_aws / 'aws_call.py', address))
        (folder / 'aws').chmod(0o755)
        yield folder
    finally:
        server.terminate()
        server.wait()


def test_scripts_work_with_version_2_of_the_command_line(version_2, tmp_path):
    stack = Stack()

    def script(*words):
        # As somebody who has it ask back at a terminal.
        return run(*words, env=dict(stack.env, AWS_CLI_AUTO_PROMPT='on'), path=version_2, folder=tmp_path)
    assert 'aws-cli/2.' in subprocess.run([version_2 / 'aws', '--version'], stdout=subprocess.PIPE, text=True).stdout
    succeeds(script('create.sh', '--servicename', stack.service, '--maxjobs', 3, '--wait'), 'is ready')
    succeeds(script('modify.sh', '--maxjobs', 4, '--wait'), 'is changed')
    assert (stack.status(), stack.outputs()['BatchMaxJobs']) == ('UPDATE_COMPLETE', '4')
    main = tmp_path / 'main.py'
    main.write_text('import sys\nprint("arguments:", sys.argv[1:])\nsys.exit(3)\n')
    stack.push('BatchECR', ROOT / 'worker.py').push('BatchECRMain', main)
    done = script('submit.sh', '--wait', '--', 'a "quoted" word', 'b')
    assert done.returncode == 3 and 'arguments: [\'a "quoted" word\', \'b\']' in done.stdout, done.stdout + done.stderr
    assert script('check.sh', '--dry').returncode == 0
    said = succeeds(script('status.sh'), stack.name)
    assert 'UPDATE_COMPLETE' in said
    succeeds(script('delete.sh', '--yes', '--wait'))
    assert stack.status() is None
