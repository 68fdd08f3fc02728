"""Double of rios.rioserrors."""


class FileOpenError(Exception):
    """No raster and no vector."""


class TimeoutError(Exception):
    """A buffer was waited for in vain."""


class WorkerExceptionError(Exception):
    """Something that runs beside the main thread has failed."""
