"""Double of rios.parallel.jobmanager."""
from rios import rioserrors


class JobInfo:
    """One block, as it travels."""
    def prepareForPickling(self):
        return self


class JobManager:
    """Computes rounds of blocks; subclasses say where."""
    jobMgrType = None

    def setTempdir(self, tempdir):
        self.tempdir = tempdir


def getJobMgrObject(controls):
    found = [each for each in JobManager.__subclasses__() if each.jobMgrType == controls.jobManagerType]
    if not found:
        raise rioserrors.JobMgrError("JobMgrType '{}' is not known".format(controls.jobManagerType))
    manager = found[-1](controls.numThreads)
    manager.setTempdir(controls.tempdir)
    return manager
