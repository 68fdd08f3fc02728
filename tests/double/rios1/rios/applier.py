"""Double of rios.applier of RIOS 1.4: rounds of numThreads blocks, read and written in their order."""
import itertools
import os
import tempfile

import double_grid
from osgeo import gdal
from rios import rioserrors
from rios.parallel import jobmanager


class FilenameAssociations(double_grid.NamedFiles):
    pass


class BlockAssociations(double_grid.NamedBlocks):
    pass


class OtherInputs:
    pass


class ApplierControls:
    def __init__(self):
        self.window, self.overlap, self.progress, self.tempdir = 256, 0, None, '.'
        self.numThreads = 1
        self.jobManagerType = os.environ.get('RIOS_DFLT_JOBMGRTYPE')

    def setWindowXsize(self, size):
        self.window = size

    setWindowYsize = setWindowXsize

    def setOverlap(self, overlap):
        self.overlap = overlap

    def setProgress(self, progress):
        self.progress = progress

    def setNumThreads(self, number):
        self.numThreads = number

    def setJobManagerType(self, kind):
        self.jobManagerType = kind

    def setOutputDriverName(self, name):
        assert name == 'GTiff'

    def ignored(self, *args):
        """Statistics, pyramids, names: for what the tests do not look at."""

    setCreationOptions = setCalcStats = setOmitPyramids = setStatsIgnore = setLayerNames = ignored


class Info(double_grid.Info):
    """Knows what it was that an array was read from, as long as it is that array."""
    def __init__(self, *args):
        super().__init__(*args)
        self.blocklookup = {}

    def getFilenameFor(self, block):
        return self.blocklookup[id(block)][1]

    def getNoDataValueFor(self, block, band=1):
        return self.blocklookup[id(block)][0].GetRasterBand(band).GetNoDataValue()


class RIOSJobInfo(jobmanager.JobInfo):
    def __init__(self, info, inputs, otherargs=None):
        self.info, self.inputs, self.otherargs = info, inputs, otherargs

    def prepareForPickling(self):
        self.info.blocklookup = {}
        return self

    def getFunctionParams(self):
        more = () if self.otherargs is None else (self.otherargs,)
        return (self.info, self.inputs, BlockAssociations()) + more

    def getFunctionResult(self, params):
        return params[2]


def apply(userFunction, infiles, outfiles, otherArgs=None, controls=None):
    controls = controls or ApplierControls()
    infos = {filename: double_grid.file_info(filename, rioserrors.FileOpenError)
             for _, _, filename in infiles}
    grid = double_grid.grid_of(next(name for name, info in infos.items() if not info.isVector))
    writer = double_grid.Writer(outfiles, grid, controls.overlap)
    manager = jobmanager.getJobMgrObject(controls) if controls.numThreads > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        opened = {
            filename: double_grid.rasterize(filename, grid, os.path.join(folder, str(number)))
            if infos[filename].isVector else gdal.Open(filename) for number, filename in enumerate(infos)}
        blocks = double_grid.blocks_of(grid, controls.window)
        places, left = iter(blocks), iter(blocks)       # blocks are written in the order in which they come
        while True:
            some = list(itertools.islice(left, controls.numThreads))
            if not some:
                break
            jobs = [_read(block, infiles, opened, grid, controls, otherArgs) for block in some]
            if manager:
                results = manager.runSubJobs(userFunction, jobs)
            else:
                params = jobs[0].getFunctionParams()
                userFunction(*params)
                results = [jobs[0].getFunctionResult(params)]
            for outputs in results:
                writer.write(outputs, *next(places)[:2])
            if controls.progress:
                controls.progress.setProgress(100 * (blocks.index(some[-1]) + 1) // len(blocks))
    if manager:
        manager.finalise()


def _read(block, infiles, opened, grid, controls, otherArgs):
    inputs, info = BlockAssociations(infiles), Info(grid, controls.window, controls.overlap, *block)
    for name, number, filename in infiles:
        inputs[name, number] = array = double_grid.read(opened[filename], *block, controls.overlap)
        info.blocklookup[id(array)] = opened[filename], filename
    return RIOSJobInfo(info, inputs, otherArgs)
