"""The `aws` of local.sh: has aws_command do it. Scripts call it often, so it imports little.

    python -IS aws_call.py SOCKET [WORD...]"""
import array
import os
import signal
import socket
import sys


def call(path, *words):
    """Have a command done; its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Version 1 of the command line overlooks AWS_ENDPOINT_URL for SQS, so it is told again.
    endpoint = os.environ.get('AWS_ENDPOINT_URL')
    words = (['--endpoint-url', endpoint] if endpoint else []) + list(words)
    request = repr((words, os.getcwd(), dict(os.environ)))
    with socket.socket(socket.AF_UNIX) as server:
        try:
            os.chdir(os.path.dirname(path))         # a socket's address may have 100 letters
            server.connect(os.path.basename(path))
        except OSError as error:
            sys.exit(f'aws: the local AWS has ended ({error}).')
        server.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0, 1, 2]))])
        server.sendall(request.encode() + b'\n')
        sys.exit((server.recv(1) or b'\x01')[0])


call(*sys.argv[1:])
