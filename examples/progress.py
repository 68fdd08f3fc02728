"""
One live line about a run: workers up, blocks done, blocks per second, time left.

tqdm draws it. Without tqdm, or where the output is not a terminal (a log file, a Batch job), a plain
line appears now and then instead.
"""

import sys
import threading
import time

try:
    import tqdm
except ImportError:
    tqdm = None

# The live line is redrawn this often, so that a worker that comes up shows before it finishes a block.
REDRAW_SECONDS = 0.5
PLAIN_SECONDS = 10.0


class Progress:
    """
    Parameters
    ----------
    total : int
        Number of blocks.
    stats : callable, optional
        `AWSBatchExecutor.stats`, for the number of workers.
    """

    def __init__(self, total, stats=None):
        self.stats = stats
        self.line = LiveLine(total) if tqdm and sys.stderr.isatty() else PlainLine(total)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._redraw)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stopped.set()
        self.thread.join()
        self.line.close(self._workers())

    def step(self):
        """One more block is done."""
        self.line.step()

    def _redraw(self):
        # Python waits for this thread: nothing is drawn while it ends.
        while not self.stopped.wait(REDRAW_SECONDS) and threading.main_thread().is_alive():
            self.line.show(self._workers())

    def _workers(self):
        if self.stats is None:
            return 'one process'
        stats = self.stats()
        return f'{stats["workers_up"]} of {stats["workers"]} workers'


class LiveLine:
    """Drawn by tqdm."""

    def __init__(self, total):
        self.bar = tqdm.tqdm(total=total, unit=' blocks', dynamic_ncols=True)

    def step(self):
        self.bar.update()

    def show(self, workers):
        self.bar.set_description_str(workers)

    def close(self, workers):
        self.show(workers)
        self.bar.close()


class PlainLine:
    """A line when the number of workers changes, every PLAIN_SECONDS, and at the end."""

    def __init__(self, total):
        self.total = total
        self.done = 0
        self.first_done = None
        self.shown_workers = None
        self.shown_at = None

    def step(self):
        self.done += 1
        # From the first block on: the minutes in which AWS starts the workers say nothing about the rate.
        self.first_done = self.first_done or time.monotonic()

    def show(self, workers):
        now = time.monotonic()
        if workers != self.shown_workers or now - self.shown_at > PLAIN_SECONDS:
            self.shown_workers = workers
            self.shown_at = now
            print(f'{workers}, {self.done} of {self.total} blocks{self._rate(now)}', file=sys.stderr)

    def close(self, workers):
        self.shown_workers = None
        self.show(workers)

    def _rate(self, now):
        if self.done < 2 or now <= self.first_done:
            return ''
        rate = (self.done - 1) / (now - self.first_done)
        return f', {rate:.1f} blocks/s, {(self.total - self.done) / rate:.0f} s left'
