"""Double of rios.applier of RIOS 2: blocks are written as they come."""
import os
import queue
import signal
import sys

import double_grid
from rios import imagereader, readerinfo, rioserrors
from rios.computemanager import getComputeWorkerManager
from rios.structures import (  # noqa: F401
    ApplierBlockDefn, ApplierReturn, BlockAssociations, BlockBuffer, ConcurrencyStyle, FilenameAssociations,
    OtherInputs, RasterizationMgr, TempfileManager, Timers, WorkerErrorRecord)


class ApplierControls:
    def __init__(self):
        self.window, self.overlap, self.progress, self.loggingstream = 256, 0, None, None
        self.tempdir, self.jobName = '.', None
        self.numThreads, self.jobManagerType = 1, os.environ.get('RIOS_DFLT_JOBMGRTYPE')
        self.concurrency = ConcurrencyStyle()

    def setWindowXsize(self, size):
        self.window = size

    setWindowYsize = setWindowXsize

    def setOverlap(self, overlap):
        self.overlap = overlap

    def setProgress(self, progress):
        self.progress = progress

    def setConcurrencyStyle(self, style):
        self.concurrency = style

    def setNumThreads(self, number):
        self.numThreads = number

    def setJobManagerType(self, kind):
        self.jobManagerType = kind

    def setOutputDriverName(self, name):
        assert name == 'GTiff'

    def ignored(self, *args):
        """Statistics, pyramids, names: for what the tests do not look at."""

    setCreationOptions = setCalcStats = setOmitPyramids = setStatsIgnore = setLayerNames = ignored


def apply(userFunction, infiles, outfiles, otherArgs=None, controls=None):
    controls = controls or ApplierControls()
    if controls.numThreads > 1 and controls.jobManagerType == 'AWSBatch':
        controls.setConcurrencyStyle(ConcurrencyStyle(
            computeWorkerKind='CW_AWSBATCH', numComputeWorkers=controls.numThreads, numReadWorkers=1))
    allInfo = {(name, number): double_grid.file_info(filename, rioserrors.FileOpenError)
               for name, number, filename in infiles}
    grid = double_grid.grid_of(next(filename for name, number, filename in infiles
                                    if not allInfo[name, number].isVector))
    blocks = [ApplierBlockDefn(*block) for block in double_grid.blocks_of(grid, controls.window)]
    given = dict(userFunction=userFunction, infiles=infiles, otherArgs=otherArgs, controls=controls,
                 blockList=blocks, workinggrid=grid, allInfo=allInfo,
                 tmpfileMgr=TempfileManager(controls.tempdir))
    writer = double_grid.Writer(outfiles, grid, controls.overlap)
    timings = Timers()
    with timings.interval('walltime'):
        run = _serially if controls.concurrency.computeWorkerKind == 'CW_NONE' else _concurrently
        result = run(writer, outfiles, timings, **given)
    result.timings = timings
    return result


def _progress(controls, number, count):
    if controls.progress:
        controls.progress.setProgress(100 * number // count)


def _serially(writer, outfiles, timings, userFunction, infiles, otherArgs, controls, blockList, workinggrid,
              allInfo, tmpfileMgr):
    cache, rasterizeMgr = {}, RasterizationMgr()
    for number, block in enumerate(blockList):
        _progress(controls, number, len(blockList))
        inputs, outputs = BlockAssociations(infiles), BlockAssociations()
        with timings.interval('reading'):
            for file in infiles:
                inputs[file[:2]] = imagereader.readBlockOneFile(
                    block, *file, cache, controls, tmpfileMgr, rasterizeMgr, workinggrid, allInfo)
        info = readerinfo.makeReaderInfo(workinggrid, block, controls, infiles, inputs, allInfo)
        with timings.interval('userfunction'):
            userFunction(info, inputs, outputs, *([] if otherArgs is None else [otherArgs]))
        with timings.interval('writing'):
            writer.write(outputs, block.top, block.left)
    _progress(controls, 1, 1)
    result = ApplierReturn()
    result.otherArgsList = [otherArgs]
    return result


def _concurrently(writer, outfiles, timings, **given):
    controls, blockList = given['controls'], given['blockList']
    style, errors = controls.concurrency, queue.Queue()
    manager = getComputeWorkerManager(style.computeWorkerKind)
    manager.setJobName(controls.jobName)
    outBuffer = BlockBuffer(outfiles, style.numComputeWorkers, style.computeBufferInsertTimeout,
                            style.computeBufferPopTimeout, 'compute')
    if style.computeWorkersRead is None:
        style.computeWorkersRead = manager.computeWorkersRead_default
    inBuffer = readers = None
    if not style.computeWorkersRead:
        inBuffer = BlockBuffer(given['infiles'], style.numReadWorkers, style.readBufferInsertTimeout,
                               style.readBufferPopTimeout, 'read')
        readers = imagereader.ReadWorkerMgr()
        readers.startReadWorkers(blockList, given['infiles'], given['allInfo'], controls, given['tmpfileMgr'],
                                 RasterizationMgr(), given['workinggrid'], inBuffer, timings, errors)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    try:
        try:
            with timings.interval('startcomputeworkers'):
                manager.startWorkers(
                    numWorkers=style.numComputeWorkers, inBlockBuffer=inBuffer, outBlockBuffer=outBuffer,
                    outfiles=outfiles, singleBlockComputeWorkers=False, haveSharedTemp=True,
                    exceptionQue=errors, **given)
            for number in range(len(blockList)):
                _progress(controls, number, len(blockList))
                try:
                    with timings.interval('pop_computebuffer'):
                        block, outputs = outBuffer.popNextBlock()
                    with timings.interval('writing'):
                        writer.write(outputs, block.top, block.left)
                except Exception as error:
                    errors.put(WorkerErrorRecord(error, 'main'))
                if errors.qsize():
                    print(errors.get(), file=sys.stderr)
                    raise rioserrors.WorkerExceptionError('The error above was raised in a worker')
            _progress(controls, 1, 1)
        finally:
            manager.shutdown()
    finally:
        if readers:
            readers.shutdown()
    signal.signal(signal.SIGTERM, before)
    result = ApplierReturn()
    for each in manager.outObjList:
        if isinstance(each, Timers):
            timings.merge(each)
    result.otherArgsList = [each for each in manager.outObjList if isinstance(each, OtherInputs)]
    return result
