"""
Requests of AWS that fail, and messages that come twice, late and in any order, change no result.

Workers that are lost, logins that expire: test_pool.py. For hours, and with kills besides: scripts/dev/chaos.py.
"""
import contextlib
import datetime
import hashlib
import ipaddress
import os
import socketserver
import ssl
import subprocess
import sys
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import rios_awsbatch
from tests.helpers import ROOT, PATIENCE, local_aws, wait_until, Stack, write_main, another_aws


FAULTS = {'errors': 0.05, 'cut': 0.05, 'duplicate': 0.1, 'late': 0.1, 'reorder': 1, 'seed': 2}
MANY = '''
    import hashlib, logging
    import numpy
    logging.basicConfig(level=logging.WARNING)

    def tile(n, block):
        time.sleep(0.03)
        return n, block[::-1] if n % 3 else block.sum()

    def block(n):
        return numpy.random.default_rng(n).integers(0, 2**16, 120_000 if n % 10 == 0 else 50)
    with rios_awsbatch.AWSBatchExecutor(4) as executor:
        results = list(executor.map(tile, range(120), map(block, range(120)), buffersize=24))
    assert [n for n, _ in results] == list(range(120))
    for n, result in results:
        assert numpy.array_equal(result, tile(n, block(n))[1]), n
    print('identical', flush=True)
'''


@pytest.mark.slow
def test_faults_of_aws_change_no_result(tmp_path):
    """Of all requests 5 % fail, and of all answers 5 % break off; messages come twice, late and in any order."""
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        local_aws('faults', FAULTS, env=env)
        done = subprocess.run([sys.executable, write_main(tmp_path, MANY)], env=stack.env, capture_output=True, text=True,
                              timeout=PATIENCE)
        local_aws('faults', {}, env=env)
        assert (done.returncode, done.stdout) == (0, 'identical\n'), done.stderr[-5000:]
        assert not stack.queues()
        wait_until(lambda: not local_aws('jobs', env=env)['jobs'])
        assert not stack.objects('runs/')


def http_answer(status, body=b'', length=None):
    head = 'HTTP/1.1 {}\r\nContent-Length: {}\r\n\r\n'.format(status, length or len(body))
    return head.encode() + body


@contextlib.contextmanager
def server(handle):
    """The address of a server on this machine that has `handle` answer on each connection (a socket)."""
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            handle(self.request)
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield '127.0.0.1:{}'.format(found.server_address[1])
        found.shutdown()


@contextlib.contextmanager
def s3_over_tls(folder, answers):
    """The address of an S3 that gives these answers, one a connection, and a file with its certificate."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'S3')])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address('127.0.0.1'))])
    certificate = x509.CertificateBuilder().issuer_name(name).subject_name(name).public_key(key.public_key()).serial_number(
        1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1)).add_extension(
        address, False).sign(key, hashes.SHA256())
    file = folder / 'certificate'
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    def handle(connection):
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(2**16)
            clear, damaged = answers.pop(0)
            secure.sendall(clear)
            os.write(secure.fileno(), damaged)
    with server(handle) as address:
        yield 'https://' + address, str(file)


def test_object_that_is_damaged_on_its_way_is_read_again(tmp_path, monkeypatch):
    """TLS notices it. What is said of that reaches the reader in words of urllib3, which botocore lets through."""
    data = os.urandom(5000)
    cut, whole = (http_answer('200 OK', data[:size], 5000) for size in (1000, 5000))
    record = b'\x17\x03\x03\x00\x40' + bytes(64)       # of application data: RFC 8446, 5.1
    with s3_over_tls(tmp_path, [(cut, record), (cut, record), (whole, b'')]) as (url, certificate):
        monkeypatch.setenv('AWS_ENDPOINT_URL', url)
        monkeypatch.setenv('AWS_CA_BUNDLE', certificate)
        channel = rios_awsbatch.Channel('run', b'key', 'bucket', None, None, rios_awsbatch.REGION).connect()
        assert channel.fetch('object', hashlib.sha256(data).hexdigest()) == data


@pytest.mark.parametrize('service, ask, answer', [
    # botocore says in words of its own, or not at all, what is wrong with these.
    ('s3', lambda s3: s3.get_object(Bucket='bucket', Key='key'), http_answer('503 Slow Down', b'<Error><Code>Slo', 99)),
    ('cloudformation', lambda stacks: stacks.describe_stacks(), http_answer('502 Bad Gateway', b'<HTML><p>')),
    ('cloudformation', lambda stacks: stacks.describe_stacks(), http_answer('408 Request Timeout')),
    ('sts', lambda sts: sts.get_caller_identity(), http_answer('403 Forbidden', b'<!DOCTYPE html><p>')),
    ('batch', lambda batch: batch.describe_jobs(jobs=['a']), http_answer('200 OK', b'<html>')),
    # Nobody has given these a code.
    ('sqs', lambda sqs: sqs.receive_message(QueueUrl='http://queue'), http_answer('408 Request Timeout')),
    ('batch', lambda batch: batch.describe_jobs(jobs=['a']), http_answer('429 Too Many Requests', b'{"message": ""}'))])
def test_answer_that_is_none_of_AWS_is_an_error_that_passes(service, ask, answer, monkeypatch):
    def handle(connection):
        connection.recv(2**16)
        connection.sendall(answer)
    with server(handle) as address:
        monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://' + address)
        with pytest.raises(rios_awsbatch.AWS_ERRORS) as caught:
            ask(rios_awsbatch.make_client(service, attempts=1))
    assert rios_awsbatch.is_temporary(caught.value)


def test_worker_whose_host_has_no_credentials_for_a_while_is_no_sign_of_a_fault(tmp_path):
    """For the run: an agent of ECS that is started again waits for them."""
    settings = rios_awsbatch.JobSettings(
        'bucket', 'in', 'out', rios_awsbatch.REGION, 'run', '00', rios_awsbatch.versions(), [], 180, 30, 3, 12, False, '')
    env = {name: value for name, value in os.environ.items() if not name.startswith('AWS_')}
    done = subprocess.run([sys.executable, ROOT / 'worker.py'], capture_output=True, text=True, timeout=PATIENCE, env=dict(
        env, **settings.to_env(), HOME=str(tmp_path), AWS_CONTAINER_CREDENTIALS_FULL_URI='http://127.0.0.1:1/'))
    assert 'container-role' in done.stderr and rios_awsbatch.was_killed({'container': {'exitCode': done.returncode}})


@pytest.mark.parametrize('new', ['true', 'false'])
def test_patience_is_the_same_with_new_retries_of_botocore(new):
    """They are the default from November 2026 on (AWS Developer Tools Blog), and wait 50 ms first instead of 1 s."""
    done = subprocess.run([sys.executable, '-c', '''if True:
        import random, time
        import rios_awsbatch
        sqs, pauses = rios_awsbatch.make_client('sqs'), []
        random.seed(1)
        time.sleep = pauses.append
        try:
            sqs.delete_queue(QueueUrl='http://queue')
        except rios_awsbatch.AWS_ERRORS:
            print(sum(pauses))
        '''], env=dict(os.environ, AWS_NEW_RETRIES_2026=new, AWS_ENDPOINT_URL='http://127.0.0.1:1'), cwd=ROOT, text=True,
        capture_output=True, timeout=PATIENCE)
    assert 25 < float(done.stdout) < 60, done


def test_objects_that_S3_does_not_delete_are_told(tmp_path):
    """It says so of each, in an answer that is none of an error."""
    with another_aws(tmp_path) as env:
        stack = Stack(env=env).create().push('BatchECR', ROOT / 'worker.py')
        done = subprocess.run([sys.executable, write_main(tmp_path, '''
            import json
            from tests.helpers import bucket, client
            rios_awsbatch.DELETE_OBJECTS = 100      # so some go before the end
            with rios_awsbatch.AWSBatchExecutor(1) as executor:
                client('s3').put_bucket_policy(Bucket=bucket(), Policy=json.dumps({'Version': '2012-10-17', 'Statement': [
                    {'Effect': 'Deny', 'Principal': '*', 'Action': 's3:DeleteObject',
                     'Resource': 'arn:aws:s3:::' + bucket() + '/*'}]}))
                assert sum(executor.map(len, 20 * [os.urandom(600_000)])) == 20 * 600_000
                time.sleep(4)
                assert executor.submit(pow, 2, 3).result() == 8
            ''')], env=stack.env, capture_output=True, text=True, timeout=PATIENCE)
        assert len(stack.objects('runs/')) > 20
    assert done.returncode == 0 and done.stderr.count('removes what run') == 1, done.stderr
    assert 'AWS does not allow you this' in done.stderr


DELETES = '''
    from tests.helpers import client, local_aws
    url = client('sqs').create_queue(QueueName='calls')['QueueUrl']
    channel = rios_awsbatch.Channel('run', b'key', None, url, url, rios_awsbatch.REGION).connect()
    channel.send(url, [{'MessageBody': str(n)} for n in range(60)])
    receipts = []
    while len(receipts) < 60:
        receipts += [message['ReceiptHandle'] for message in channel.receive(url, 1)]
    local_aws('faults', {'errors': 0.1, 'seed': 1})
    channel.delete(url, receipts)
    local_aws('faults', {})
    there = client('sqs').get_queue_attributes(QueueUrl=url, AttributeNames=['All'])['Attributes']
    print({name: there[name] for name in there if name.startswith('ApproximateNumber')})
'''


def test_entries_of_a_batch_that_are_not_deleted_are_deleted_later(tmp_path):
    """SQS says of each whether it was deleted, and calls that were not would be computed again."""
    with another_aws(tmp_path) as env:
        done = subprocess.run([sys.executable, write_main(tmp_path, DELETES)], env=env, capture_output=True, text=True,
                              timeout=PATIENCE)
    assert done.stdout.count("'0'") == 3, (done.stdout, done.stderr)
