"""Double of rios.computemanager."""
import abc


class ComputeWorkerManager(abc.ABC):
    computeWorkerKind = 'CW_NONE'
    outObjList = computeWorkersRead_default = jobName = None

    @abc.abstractmethod
    def startWorkers(self, **given):
        """Start computing."""

    @abc.abstractmethod
    def shutdown(self):
        """End it."""

    def setJobName(self, jobName):
        self.jobName = jobName


class AWSBatchComputeWorkerMgr(ComputeWorkerManager):
    """The deprecated one, which must not be used any more."""
    computeWorkerKind = 'CW_AWSBATCH'

    def startWorkers(self, **given):
        raise AssertionError('the compute-worker manager of RIOS itself was chosen')

    def shutdown(self):
        pass


def getComputeWorkerManager(cwKind):
    found = [each for each in ComputeWorkerManager.__subclasses__() if each.computeWorkerKind == cwKind]
    if not found:
        raise ValueError("Unknown compute-worker kind '{}'".format(cwKind))
    return found[-1]()
