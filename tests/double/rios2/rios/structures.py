"""Double of rios.structures."""
import collections
import contextlib
import os
import queue
import tempfile
import threading
import time
import traceback

import double_grid
from rios import rioserrors

FilenameAssociations = double_grid.NamedFiles
BlockAssociations = double_grid.NamedBlocks
ApplierBlockDefn = collections.namedtuple('ApplierBlockDefn', 'top left nrows ncols')


class OtherInputs:
    pass


class ApplierReturn:
    timings = otherArgsList = None


class ConcurrencyStyle:
    def __init__(self, numReadWorkers=0, numComputeWorkers=0, computeWorkerKind='CW_NONE',
                 computeWorkerExtraParams=None, computeWorkersRead=None, singleBlockComputeWorkers=False,
                 haveSharedTemp=True, readBufferInsertTimeout=10, readBufferPopTimeout=10,
                 computeBufferInsertTimeout=10, computeBufferPopTimeout=20, computeBarrierTimeout=600):
        vars(self).update((name, value) for name, value in locals().items() if name != 'self')
        if numComputeWorkers and computeWorkersRead is False and not numReadWorkers:
            raise ValueError('nobody reads: numReadWorkers must be at least 1')
        if singleBlockComputeWorkers and numComputeWorkers:
            raise ValueError('numComputeWorkers makes no sense with singleBlockComputeWorkers')


class BlockBuffer:
    """Blocks on their way from one thread to another, no more than two for each worker."""
    def __init__(self, filenameAssoc, numWorkers, insertTimeout, popTimeout, bufferTypeName):
        self.files, self.name = filenameAssoc, bufferTypeName
        self.insertTimeout, self.popTimeout = insertTimeout, popTimeout
        self.room = threading.Semaphore(2 * numWorkers)
        self.lock, self.partial, self.missing = threading.Lock(), {}, {}
        self.complete = queue.Queue()

    def addBlockData(self, blockDefn, name, seqNum, array):
        with self.lock:
            new = blockDefn not in self.partial
        if new and not self.room.acquire(timeout=self.insertTimeout):
            raise rioserrors.TimeoutError('BlockBuffer timeout: {} insert'.format(self.name))
        with self.lock:
            if blockDefn in self.partial and new:
                self.room.release()
            block = self.partial.setdefault(blockDefn, BlockAssociations(self.files))
            block[name, seqNum] = array
            left = self.missing[blockDefn] = self.missing.get(blockDefn, len(list(self.files))) - 1
        if not left:
            self.complete.put((blockDefn, self.partial[blockDefn]))

    def insertCompleteBlock(self, blockDefn, blockData):
        # As in RIOS 2.0: any time-out but None waits for ever, and None not at all.
        if not self.room.acquire(self.insertTimeout):
            raise rioserrors.TimeoutError('BlockBuffer timeout: {} insert'.format(self.name))
        self.complete.put((blockDefn, blockData))

    def popNextBlock(self):
        try:
            found = self.complete.get(timeout=self.popTimeout)
        except queue.Empty:
            raise rioserrors.TimeoutError('BlockBuffer timeout: {} pop'.format(self.name)) from None
        self.room.release()
        return found


class RasterizationMgr:
    """Has one thread rasterise a vector, and the others wait for it."""
    def __init__(self):
        self.lock, self.done = threading.Lock(), {}

    def rasterize(self, filename, grid, tmpfileMgr):
        with self.lock:
            if filename not in self.done:
                self.done[filename] = tmpfileMgr.mktempfile('vector', '.tif')
                double_grid.rasterize(filename, grid, self.done[filename])
        return self.done[filename]


class TempfileManager:
    def __init__(self, tempdir):
        self.tempsubdir, self.files = tempfile.mkdtemp(dir=tempdir, prefix='rios_'), []

    def mktempfile(self, prefix=None, suffix=None):
        descriptor, name = tempfile.mkstemp(dir=self.tempsubdir, prefix=prefix, suffix=suffix)
        os.close(descriptor)
        self.files.append(name)
        return name

    def cleanup(self):
        for name in self.files:
            with contextlib.suppress(FileNotFoundError):
                os.remove(name)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(self.tempsubdir)

    def __del__(self):
        self.cleanup()


class Timers:
    def __init__(self):
        self.pairs, self.lock = {}, threading.Lock()

    def __getstate__(self):
        return self.pairs

    def __setstate__(self, pairs):
        self.__init__()
        self.pairs = pairs

    @contextlib.contextmanager
    def interval(self, intervalName):
        started = time.time()
        yield
        with self.lock:
            self.pairs.setdefault(intervalName, []).append((started, time.time()))

    def merge(self, other):
        with self.lock:
            for name, pairs in other.pairs.items():
                self.pairs.setdefault(name, []).extend(pairs)

    def formatReport(self, level=0):
        return '\n'.join('{:24}{:8.1f}'.format(name, sum(end - start for start, end in pairs))
                         for name, pairs in self.pairs.items())


class WorkerErrorRecord:
    def __init__(self, exc, workerType, workerID=None):
        self.exc, self.workerType = exc, workerType
        self.text = ''.join(traceback.format_exception(type(exc), exc, exc.__traceback__))

    def __str__(self):
        return 'Error in {} worker\n{}'.format(self.workerType, self.text)
