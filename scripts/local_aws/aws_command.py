"""The aws command line, for many calls: one process has imported it, and forks for each call.

To import awscli is most of what a call of the aws command costs, and scripts make many. So the `aws` of
local.sh (`aws_call`) hands its arguments, environment, working folder and files to a process that has done
it, and has its exit status. It is awscli all the same, with everything it does to ask AWS.

    python aws_command.py SOCKET [now]      answer such calls, until who started this is gone

awscli is imported at once, or at the first call, which waits for it."""
import array
import ast
import contextlib
import functools
import gc
import os
import signal
import socket
import sys
import threading
import traceback

# Those of the scripts.
SERVICES = 'batch', 'cloudformation', 'ec2', 'ecr', 'iam', 'logs', 's3', 'service-quotas', 'sqs', 'sts'
# How often the server looks whether who started it is still there, in seconds.
LOOK_SECONDS = 1


def serve(path, when='later'):
    """Answer calls until who started this is gone."""
    parent = os.getppid()
    # A Ctrl-C is for the calls.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(os.path.dirname(path))
        listener.bind(os.path.basename(path))
        listener.listen(100)
        listener.settimeout(LOOK_SECONDS)
        if when == 'now':
            command_line()
        while os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                caller, _ = listener.accept()
                with caller:
                    main = command_line()
                    if os.fork() == 0:
                        listener.close()
                        os._exit(answer(caller, main))


@functools.cache
def command_line():
    """What awscli's `aws` runs, with what that imports and reads, so that no call does it again."""
    import awscli.clidriver
    driver = awscli.clidriver.create_clidriver()
    driver.session.get_available_services()
    loader = driver.session.get_component('data_loader')
    for name in 'endpoints', 'partitions', 'sdk-default-configuration', '_retry':
        with contextlib.suppress(Exception):        # version 2 lacks some
            loader.load_data(name)
    for service in SERVICES:
        for kind in 'service-2', 'endpoint-rule-set-1', 'paginators-1', 'waiters-2':
            with contextlib.suppress(Exception):
                loader.load_service_model(service, kind)
    gc.collect()
    gc.freeze()             # calls share it,
    gc.disable()            # ... and end before they need it
    # Version 2 has its messages of errors around it.
    return getattr(awscli.clidriver, 'AWSCLIEntryPoint', lambda driver: driver)(driver).main


def answer(caller, main):
    """Do what a call asks for, as the process that it would be."""
    files, status, over = array.array('i'), 1, threading.Event()
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        caller.settimeout(None)
        _, sent, _, _ = caller.recvmsg(1, socket.CMSG_SPACE(3 * files.itemsize))
        files.frombytes(sent[0][2])
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, 'w'), open(2, 'w')
        words, folder, environment = ast.literal_eval(caller.makefile().readline())
        threading.Thread(target=end_with, args=(caller, over), daemon=True).start()
        os.chdir(folder)
        data = os.environ['AWS_DATA_PATH']          # awscli's own setting, from when it was imported
        os.environ.clear()
        os.environ.update(environment, AWS_DATA_PATH=data)
        status = main(words)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        over.set()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        status = status if isinstance(status, int) else int(status is not None)
        with contextlib.suppress(OSError):
            caller.send(bytes([status & 0xff]))
    return status & 0xff


def end_with(caller, over):
    """A caller that is gone too soon has been ended by a signal; so is its command, and as silently."""
    with contextlib.suppress(OSError):
        caller.recv(1)
    if not over.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == '__main__':
    del sys.path[0]         # this file's folder, which would hide modules of others (request)
    serve(*sys.argv[1:])
