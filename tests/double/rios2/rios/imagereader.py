"""Double of rios.imagereader."""
import concurrent.futures
import queue
import threading

import double_grid
from osgeo import gdal
from rios.structures import WorkerErrorRecord


def readBlockOneFile(blockDefn, symbolicName, seqNum, filename, gdalObjCache, controls, tmpfileMgr,
                     rasterizeMgr, workinggrid, allInfo):
    if (symbolicName, seqNum) not in gdalObjCache:
        if allInfo[symbolicName, seqNum].isVector:
            filename = rasterizeMgr.rasterize(filename, workinggrid, tmpfileMgr)
        gdalObjCache[symbolicName, seqNum] = gdal.Open(filename)
    return double_grid.read(gdalObjCache[symbolicName, seqNum], *blockDefn, controls.overlap)


class ReadWorkerMgr:
    """Threads that read blocks into a buffer."""
    def startReadWorkers(self, blockList, infiles, allInfo, controls, tmpfileMgr, rasterizeMgr, workinggrid,
                         inBlockBuffer, timings, exceptionQue):
        self.forceExit, tasks = threading.Event(), queue.Queue()
        for blockDefn in blockList:
            for each in infiles:
                tasks.put((blockDefn, *each))

        def read():
            cache = {}
            try:
                while not self.forceExit.is_set():
                    task = tasks.get(block=False)
                    with timings.interval('reading'):
                        array = readBlockOneFile(*task, cache, controls, tmpfileMgr, rasterizeMgr,
                                                 workinggrid, allInfo)
                    with timings.interval('insert_readbuffer'):
                        inBlockBuffer.addBlockData(*task[:3], array)
            except queue.Empty:
                pass
            except Exception as error:
                exceptionQue.put(WorkerErrorRecord(error, 'read'))
        number = controls.concurrency.numReadWorkers
        self.pool = concurrent.futures.ThreadPoolExecutor(number)
        for _ in range(number):
            self.pool.submit(read)

    def shutdown(self):
        self.forceExit.set()
        self.pool.shutdown()
