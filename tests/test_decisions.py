"""
What the keeper of the workers decides, and when a worker fetches calls: tables of numbers, without any AWS. That the
decisions are carried out is in test_pool.py.
"""
import math
import re
import types

import botocore.exceptions as errors
import pytest

import rios_awsbatch
import worker

worker.rios_awsbatch = rios_awsbatch        # worker.py imports it when it starts


@pytest.mark.parametrize('workers, alive, wanted, unanswered, ever_up, decision', [
    # All is well, or there is nothing to do.
    (4, 4, 100, 0, True, ('wait', 0)),
    (4, 0, 0, 0, True, ('wait', 0)),
    (4, 0, 0, 1000, True, ('wait', 0)),
    (4, 4, 100, 1000, True, ('wait', 0)),           # those that are there may still answer
    # Those that are gone are replaced, as far as there are calls for them.
    (4, 3, 100, 1, True, ('start', 1)),
    (4, 0, 2, 0, True, ('start', 2)),
    (4, 2, 1, 0, True, ('wait', 0)),
    # A few calls whose workers are killed get some more workers, but not more than were asked for.
    (4, 1, 1, 2, True, ('start', 2)),
    (4, 0, 1, 50, True, ('start', 4)),
    # A run that has worked stands a lot: n + 10 times MAX_UNANSWERED.
    (1, 0, 9, 110, True, ('start', 1)),
    (1, 0, 9, 111, True, ('give up', 0)),
    (50, 0, 9, 600, True, ('start', 50)),
    (50, 0, 9, 601, True, ('give up', 0)),
    # When none has ever come up, a second try (of one or two workers, a third) must do.
    (1, 0, 9, 4, False, ('start', 1)),
    (1, 0, 9, 12, False, ('give up', 0)),
    (50, 0, 90, 200, False, ('start', 50)),
    (50, 0, 90, 204, False, ('give up', 0)),
    (50, 49, 90, 204, False, ('give up', 0)),
    # Somebody waits for workers, without a call.
    (3, 0, 3, 0, False, ('start', 3))])
def test_verdict(workers, alive, wanted, unanswered, ever_up, decision):
    assert rios_awsbatch.verdict(workers, alive, wanted, unanswered, ever_up) == decision


@pytest.mark.parametrize('sent, twice, idle, since, copied', [
    # Of calls that take 2 s, at 100 s, one is late 3 s after it was taken (COPY_SECONDS is 1).
    ({1: 90}, set(), 1, 95, [1]),
    ({1: 90}, set(), 1, 98, []),                # it may have waited until just now
    ({1: 98}, set(), 1, 95, []),
    ({1: 90}, {1}, 1, 95, []),                  # once is enough
    ({2: 90, 1: 91, 3: 99}, set(), 2, 95, [1, 2]),
    ({2: 90, 1: 91, 3: 92}, set(), 1, 95, [1]),
    ({2: 90, 1: 91, 3: 92}, {1}, 1, 95, [2]),
    ({2: 90, 1: 91, 3: 92}, set(), 0, 95, []),
    ({2: 90, 1: 91, 3: 92}, set(), -2, 95, []),
    ({}, {7}, 4, 95, [])])
def test_calls_to_copy(sent, twice, idle, since, copied):
    assert rios_awsbatch.calls_to_copy(sent, twice, idle, since, 2, 100) == copied


@pytest.mark.parametrize('status_reason, container, killed', [
    ('Host EC2 (instance i-0abc) terminated.', {}, True),
    ('Essential container in task exited', {'exitCode': 137}, True),
    ('Essential container in task exited', {'exitCode': 143}, True),
    ('Essential container in task exited', {'exitCode': 137, 'reason': 'OutOfMemoryError: Container killed'}, False),
    ('Essential container in task exited', {'exitCode': 1}, False),
    ('Task failed to start', {'reason': 'CannotPullContainerError: no such image'}, False),
    ('Job attempt duration exceeded timeout', {}, False)])
def test_end_that_was_the_doing_of_its_host(status_reason, container, killed):
    assert rios_awsbatch.was_killed({'statusReason': status_reason, 'container': container}) == killed


@pytest.mark.parametrize('pace, running, waiting, ahead, count', [
    # Nothing is known yet: one call, and no other before it has ended.
    (math.inf, None, 0, 0.15, 1),
    (math.inf, 5.0, 0, 0.15, 0),
    # Quick calls are fetched several at a time, SQS's ten at most.
    (0.01, None, 0, 0.15, 10),
    (0.04, 0.0, 0, 0.15, 2),
    (0.05, 0.0, 2, 0.15, 0),
    # Calls of seconds are fetched when the current one is about to end; sooner, if their data take long to come.
    (3.0, 1.0, 0, 0.15, 0),
    (3.0, 2.9, 0, 0.15, 1),
    (3.0, 1.5, 0, 2.0, 1),
    # One that is late is expected to be late for long: what waits behind it is given back, and nothing fetched.
    (0.1, 0.3, 0, 0.15, 0),
    (0.1, 2.0, 1, 0.15, -1),
    (0.1, 2.0, 0, 0.15, 0)])
def test_calls_to_fetch(pace, running, waiting, ahead, count):
    assert worker.calls_to_fetch(pace, running, waiting, ahead) == count


def test_worker_whose_clock_is_set_back_during_a_download_fetches_more():
    hands = worker.Hands()
    hands.add(types.SimpleNamespace(answer=types.SimpleNamespace(received=1000.0, downloaded=990.0)))
    hands.next()
    hands.done()
    assert hands.balance()[0] > 0


def answer(code, status, message=''):
    return errors.ClientError({'Error': {'Code': code, 'Message': message}, 'ResponseMetadata': {'HTTPStatusCode': status}},
                              'Operation')


@pytest.mark.parametrize('error, passes, said', [
    # AWS is away.
    (errors.EndpointConnectionError(endpoint_url='x'), 'by itself', 'cannot be reached'),
    (errors.ConnectionClosedError(endpoint_url='x'), 'by itself', 'cannot be reached'),
    (errors.ReadTimeoutError(endpoint_url='x'), 'by itself', 'cannot be reached'),
    (errors.ResponseStreamingError(error='x'), 'by itself', 'cannot be reached'),
    (errors.IncompleteReadError(actual_bytes=1, expected_bytes=2), 'by itself', ''),
    (answer('SlowDown', 503), 'by itself', ''),
    (answer('RequestTimeout', 400), 'by itself', ''),           # of S3, when an upload is slow
    (answer('BadDigest', 400), 'by itself', ''),                # ... or is damaged on its way
    (answer('XAmzContentSHA256Mismatch', 400), 'by itself', ''),
    (answer('IncompleteBody', 400), 'by itself', ''),
    (answer('Throttling', 400), 'by itself', 'more requests'),
    # A login of any kind, also of a kind that nobody here knows.
    (answer('ExpiredTokenException', 400), 'when mended', 'login has expired'),
    (answer('TokenOfAnotherKind', 403), 'when mended', ''),
    (errors.RefreshWithMFAUnsupportedError(), 'when mended', 'MFA code .*aws sts get-caller-identity'),
    (getattr(errors, 'LoginRefreshRequired', errors.UnauthorizedSSOTokenError)(), 'when mended', '"aws login"'),
    (errors.NoCredentialsError(), 'when mended', 'No AWS credentials'),
    (errors.MetadataRetrievalError(error_msg='x'), 'when mended', ''),
    # A clock that is late after a laptop woke.
    (answer('RequestTimeTooSkewed', 403), 'when mended', 'clock'),
    (answer('SignatureDoesNotMatch', 403, 'Signature expired: 1 is now earlier than 2'), 'when mended', 'clock'),
    (answer('InvalidSignatureException', 400, 'Signature not yet current: 2 is still later than 1'), 'when mended', 'clock'),
    # A login that is half changed.
    (answer('InvalidClientTokenId', 403), 'when mended', 'does not accept your credentials'),
    (answer('InvalidToken', 400), 'when mended', 'does not accept your credentials'),       # of S3
    (answer('SignatureDoesNotMatch', 403, 'The request signature we calculated'), 'when mended', 'not accept'),
    # What cannot pass.
    (errors.MissingDependencyException(msg='aws login'), 'never', 'python.*-m pip install "botocore.crt."'),
    (answer('AccessDenied', 403), 'never', 'does not allow'),
    (answer('NoSuchBucket', 404), 'never', 'make the stack anew'),
    (answer('InvalidParameterValue', 400), 'never', ''),
    (errors.ParamValidationError(report='x'), 'never', '')])
def test_error_of_aws_that_may_pass_is_waited_for(error, passes, said):
    assert passes == ('by itself' if rios_awsbatch.is_temporary(error) else
                      'when mended' if rios_awsbatch.user_may_mend(error) else 'never')
    assert re.search(said, str(rios_awsbatch.explain(error, 'trying')))
