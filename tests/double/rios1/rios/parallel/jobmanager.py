"""Double of rios.parallel.jobmanager."""
from rios import rioserrors


class JobInfo:
    """One block, as it travels."""
    def prepareForPickling(self):
        return self


class JobManager:
    """Computes rounds of blocks; subclasses say where."""
    jobMgrType = None

    def __init__(self, numSubJobs):
        self.numSubJobs = numSubJobs
        self.tempdir = '.'

    def setTempdir(self, tempdir):
        self.tempdir = tempdir

    def runSubJobs(self, function, fnInputs):
        jobs = self.startAllJobs(function, fnInputs)
        self.waitOnJobs(jobs)
        return self.gatherAllOutputs(jobs)

    def startAllJobs(self, function, jobInputs):
        jobs = [self.startOneJob(function, inputs) for inputs in jobInputs[1:]]
        params = jobInputs[0].getFunctionParams()
        function(*params)
        return [jobInputs[0].getFunctionResult(params)] + jobs

    def finalise(self):
        pass


def getJobMgrObject(controls):
    found = [each for each in JobManager.__subclasses__() if each.jobMgrType == controls.jobManagerType]
    if not found:
        raise rioserrors.JobMgrError("JobMgrType '{}' is not known".format(controls.jobManagerType))
    manager = found[-1](controls.numThreads)
    manager.setTempdir(controls.tempdir)
    return manager
