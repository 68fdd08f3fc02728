#!/usr/bin/env python3
"""
CPython's own tests of executors, run on AWSBatchExecutor as far as they need no private parts.

    sudo apt-get install libpython3.11-testsuite      # of your Python's version
    scripts/local.sh .venv/bin/python scripts/dev/cpython.py [-v] [-k NAME]

Some depend on speed: they expect a call without work to be done within 1.5 s, so take a quiet machine.
"""
import importlib
import sys
import types
import unittest

import cloudpickle

import rios_awsbatch

LEFT_OUT = {
    'test_interpreter_shutdown': 'imports the executor from concurrent.futures, by its name',
    'test_submit_after_interpreter_shutdown': 'imports the executor from concurrent.futures, by its name',
    'test_hang_gh83386': 'imports the executor from concurrent.futures, by its name',
    'test_cancel_futures': 'expects that calls under way are finished: ours are cancelled, since they cost',
    'test_hang_gh94440': 'looks at the processes of a process pool',
    'test_killed_child': 'looks at the processes of a process pool',
    'test_max_workers_too_large': 'is for Windows',
    'test_max_tasks_per_child': 'is about an argument of process pools',
    'test_max_tasks_per_child_defaults_to_spawn_context': 'is about an argument of process pools',
    'test_max_tasks_early_shutdown': 'is about an argument of process pools',
    'test_saturation': 'looks at the processes of a process pool',
    'test_idle_process_reuse_one': 'looks at the processes of a process pool',
    'test_idle_process_reuse_multiple': 'looks at the processes of a process pool',
    'test_ressources_gced_in_workers': 'has the workers connect to a server of the main script',
    **dict.fromkeys((
        'test_exit_at_task_unpickle', 'test_error_at_task_unpickle', 'test_crash_at_task_unpickle',
        'test_crash_during_func_exec_on_worker', 'test_crash_during_result_pickle_on_worker',
        'test_error_during_result_unpickle_in_result_handler', 'test_shutdown_deadlock',
        'test_exit_during_result_unpickle_in_result_handler'),
        'expects that one call breaks the executor: ours fails that call alone'),
    'test_exit_during_result_pickle_on_worker': 'ours says of what cannot be pickled that it is so',
    'test_traceback_when_child_process_terminates_abruptly': 'looks at the processes of a process pool',
}


def theirs(name):
    """One of CPython's mixins: one module up to 3.11, a folder of them since."""
    for module in ('', '.executor', '.test_process_pool', '.test_wait', '.test_as_completed',
                   '.test_shutdown', '.test_init'):
        try:
            found = importlib.import_module('test.test_concurrent_futures' + module)
        except ModuleNotFoundError:
            continue
        if hasattr(found, name):
            cloudpickle.register_pickle_by_value(found)     # its functions are not in the workers
            return getattr(found, name)
    sys.exit('cpython.py: CPython\'s tests are not here: '
             f'apt-get install libpython{sys.version_info.major}.{sys.version_info.minor}-testsuite')


class OnAWSBatch:
    executor_type = rios_awsbatch.AWSBatchExecutor
    worker_count = 4
    executor_kwargs = {}

    def setUp(self):
        super().setUp()
        if self._testMethodName in LEFT_OUT:
            self.skipTest(LEFT_OUT[self._testMethodName])
        self.executor = self.executor_type(self.worker_count, **self.executor_kwargs)
        self.addCleanup(self.executor.shutdown)
        self.executor.wait_for_workers(self.worker_count)


class Calls(OnAWSBatch, theirs('ProcessPoolExecutorTest'), unittest.TestCase):
    pass


class Waiting(OnAWSBatch, theirs('WaitTests'), unittest.TestCase):
    pass


class AsCompleted(OnAWSBatch, theirs('AsCompletedTests'), unittest.TestCase):
    pass


class Shutdown(OnAWSBatch, theirs('ExecutorShutdownTest'), unittest.TestCase):
    pass


class Initializer(OnAWSBatch, unittest.TestCase):
    worker_count = 2
    executor_kwargs = {'initializer': theirs('InitializerMixin').test_initializer.__globals__['init'],
                       'initargs': ('initialized',)}
    test_initializer = theirs('InitializerMixin').test_initializer


class Deadlocks(OnAWSBatch, theirs('ExecutorDeadlockTest'), unittest.TestCase):
    worker_count = 2

    class executor_type(rios_awsbatch.AWSBatchExecutor):
        def __init__(self, max_workers, mp_context=None):
            super().__init__(max_workers)
            self._executor_manager_thread = types.SimpleNamespace(join=self.shutdown)

    def get_context(self):
        """Workers are no processes of ours."""


if __name__ == '__main__':
    unittest.main(verbosity=2)
