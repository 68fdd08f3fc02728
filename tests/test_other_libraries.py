"""
What other libraries do with an executor, they do with ours: the recipes of the docs; and what a script has told boto3
counts. That it is an executor like those of the standard library is in test_like_a_process_pool.py.
"""
import asyncio
import os
import sys
import time

import boto3
import cloudpickle
import pytest

import rios_awsbatch
from tests.helpers import PATIENCE, main_script, output_of, shared_executor, square

cloudpickle.register_pickle_by_value(sys.modules[__name__])


executor = shared_executor(2)


def meet(folder, name, how_many, seconds):
    """Wait until so many calls are under way at the same time; whether they were."""
    (folder / str(name)).touch()
    deadline = time.monotonic() + seconds
    while len(list(folder.iterdir())) < how_many:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_dask_keeps_all_workers_busy(executor, shared):
    dask = pytest.importorskip('dask')
    with dask.config.set(scheduler=executor):
        assert dask.compute(*[dask.delayed(square)(x) for x in range(20)]) == tuple(x * x for x in range(20))
        assert all(dask.compute(*[dask.delayed(meet)(shared, x, 2, 60) for x in range(2)]))


def test_asyncio_awaits_calls(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*[loop.run_in_executor(executor, square, x) for x in range(10)])
    assert asyncio.run(main()) == [x * x for x in range(10)]


def test_progress_bar_of_tqdm_counts_calls(executor, capsys):
    tqdm = pytest.importorskip('tqdm')
    blocks = range(10)
    assert list(tqdm.tqdm(executor.map(square, blocks), total=len(blocks))) == [x * x for x in blocks]
    assert '10/10' in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# The credentials that a script has chosen
# ---------------------------------------------------------------------------------------------

CREDENTIALS = '[mine]\naws_access_key_id = {}\naws_secret_access_key = local\n'


@pytest.mark.parametrize('chosen', [
    'profile_name="mine"',
    'aws_access_key_id=os.environ["KEY"], aws_secret_access_key="local"',
    'botocore_session=renewing()'])
def test_default_session_of_boto3_is_that_of_a_run(chosen, tmp_path):
    """There are no other credentials."""
    (tmp_path / 'credentials').write_text(CREDENTIALS.format(os.environ['AWS_ACCESS_KEY_ID']))
    process = main_script(tmp_path, '''
        import boto3, botocore.session, botocore.credentials, datetime
        def keys():
            later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
            return {{'access_key': os.environ['KEY'], 'secret_key': 'local', 'token': None,
                     'expiry_time': later.isoformat()}}
        def renewing():
            session = botocore.session.get_session()
            session._credentials = botocore.credentials.RefreshableCredentials.create_from_metadata(
                keys(), keys, 'sts-assume-role')
            return session
        boto3.setup_default_session({})
        with rios_awsbatch.AWSBatchExecutor(1) as executor:
            print(executor.submit(pow, 2, 3).result())
        '''.format(chosen), env={
            'KEY': os.environ['AWS_ACCESS_KEY_ID'], 'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': '',
            'AWS_SHARED_CREDENTIALS_FILE': str(tmp_path / 'credentials')})
    status, out, err = output_of(process, PATIENCE)
    assert (status, out) == (0, '8\n'), err


def test_login_that_is_renewed_counts_though_there_is_a_default_session(tmp_path, monkeypatch):
    credentials = tmp_path / 'credentials'
    for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
        monkeypatch.delenv(name)
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(credentials))
    monkeypatch.setattr(boto3, 'DEFAULT_SESSION', None)
    for key in ('FIRST', 'SECOND'):
        credentials.write_text(CREDENTIALS.format(key))
        if boto3.DEFAULT_SESSION is None:
            boto3.setup_default_session(profile_name='mine')
        assert rios_awsbatch.new_session().get_credentials().access_key == key
    assert boto3.DEFAULT_SESSION.get_credentials().access_key == 'FIRST'        # boto3 itself has not noticed
