"""Double of rios.cuiprogress."""


class CUIProgressBar:
    totalsteps = 100

    def setTotalSteps(self, steps):
        self.totalsteps = steps

    def setProgress(self, progress):
        print('{}%'.format(int(progress / self.totalsteps * 100)), flush=True)
