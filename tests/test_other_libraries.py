"""
What other libraries do with an executor, they do with ours: the recipes of the docs. That it is one like those of the
standard library is in test_like_a_process_pool.py.
"""
import asyncio
import sys
import time

import cloudpickle
import pytest

import rios_awsbatch
from tests.helpers import PATIENCE, assert_nothing_left, square

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope='module')
def executor():
    with rios_awsbatch.AWSBatchExecutor(4) as made:
        made.wait_for_workers(4, PATIENCE)
        yield made
    assert_nothing_left(made.run)


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
        assert all(dask.compute(*[dask.delayed(meet)(shared, x, 4, 60) for x in range(4)]))


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
