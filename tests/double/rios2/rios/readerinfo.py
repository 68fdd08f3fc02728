"""Double of rios.readerinfo."""
import double_grid


def makeReaderInfo(workinggrid, blockDefn, controls, infiles, inputs, allInfo):
    return double_grid.Info(workinggrid, controls.window, controls.overlap, *blockDefn)
