"""Double of rios.rioserrors."""


class FileOpenError(Exception):
    """No raster and no vector."""


class JobMgrError(Exception):
    """There is no such job manager."""
