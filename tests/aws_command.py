"""
The aws command line, for many calls: one process has imported it, and forks for each call.

Most of what a call of the aws command costs is that Python imports it, and the tests' scripts make hundreds. So
`command()` is a folder for the PATH whose `aws` hands its arguments, environment, working folder and files to such a
process, and has its exit status. It is awscli all the same, with everything it does to ask AWS.
"""
import array
import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

# What `aws` is; as the one of scripts/local.sh, it tells awscli AWS_ENDPOINT_URL, which that overlooks for SQS.
# The second line is for the shell: the name of a Python may have spaces, or be too long for the first.
CLIENT = '''#!/bin/sh
"exec" "{python}" "-IS" "$0" "$@"
import array, json, os, socket, sys
endpoint = os.environ.get('AWS_ENDPOINT_URL')
words = (['--endpoint-url', endpoint] if endpoint else []) + sys.argv[1:]
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    files = array.array('i', [0, 1, 2])
    server.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    server.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit((server.recv(1) or b'\\x01')[0])
'''


@contextlib.contextmanager
def command():
    """A folder with such an `aws` in it."""
    with tempfile.TemporaryDirectory(prefix='aws-') as name:
        folder = pathlib.Path(name)
        with subprocess.Popen([sys.executable, __file__, folder / 'socket'], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as server:
            assert server.stdout.readline() == b'ready\n'
            (folder / 'aws').write_text(CLIENT.format(python=sys.executable, path=str(folder / 'socket')))
            (folder / 'aws').chmod(0o755)
            yield folder
            server.terminate()


def serve(path):
    """Answer calls until told to end, or until standard input is closed since the tests are gone."""
    import awscli.clidriver
    awscli.clidriver.create_clidriver()         # imports what it imports for any command
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(100)
        print('ready', flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            caller, _ = listener.accept()
            with caller:
                if os.fork() == 0:
                    listener.close()
                    os._exit(answer(caller, awscli.clidriver.main))


def answer(caller, main):
    """Do what a call asks for, as the process that it would be."""
    files, status = array.array('i'), 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, sent, _, _ = caller.recvmsg(1, socket.CMSG_SPACE(3 * files.itemsize))
        files.frombytes(sent[0][2])
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        with caller.makefile('rb') as said:
            words, folder, environment = json.load(said)
        os.chdir(folder)
        data = os.environ['AWS_DATA_PATH']          # awscli's own setting, from when it was imported
        os.environ.clear()
        os.environ.update(environment, AWS_DATA_PATH=data)
        sys.argv = ['aws', *words]
        status = main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        status = status if isinstance(status, int) else int(status is not None)
        caller.send(bytes([status & 0xff]))
    return status & 0xff


if __name__ == '__main__':
    serve(sys.argv[1])
